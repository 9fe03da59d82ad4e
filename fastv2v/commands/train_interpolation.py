"""``fastv2v train-interpolation``: the network behind interpolation of grade ``best``."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastv2v.commands.arguments import parse
from fastv2v.commands.parts import num_parameters
from fastv2v.commands.train import report_fit
from fastv2v.config import to_dict
from fastv2v.device import open_device
from fastv2v.errors import ConfigError
from fastv2v.log import BarProgress, SilentProgress
from fastv2v.memory import keep_freed_memory
from fastv2v.run import open_run
from fastv2v.seed import derive_seed, seed_everything
from fastv2v.train import FitResult, fit
from interpolate.learned.data import TripletLoader, find_sequences
from interpolate.learned.network import FusionArchitecture, FusionNetwork, load_fusion
from interpolate.learned.presets import InterpolationRecipe
from interpolate.learned.task import FusionTask

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainInterpolation:
    """Train the network that corrects motion-compensated frames, on any frames that follow each other."""

    data: tuple[Path, ...]
    """Data sets, folders of frames or of videos, video files; label maps of data sets are used too."""
    run: Path
    """Run folder: config, curves, samples, checkpoints. The same command again goes on where it stopped."""
    init: Path | None = None
    """Run or checkpoint of train-interpolation whose weights to start from, to go on with other footage."""
    recipe: InterpolationRecipe = field(default_factory=InterpolationRecipe)
    """How it is built and trained."""
    overwrite: bool = False
    """Delete what the run folder holds and start anew."""
    quiet: bool = False
    """No progress bar."""


def train_interpolation(args: TrainInterpolation) -> FitResult:
    """Train as told; resumes a run that is there."""
    recipe, train = args.recipe, args.recipe.train
    device = open_device(recipe.device)
    if device.device.type == "cpu":
        keep_freed_memory()
    sequences = [sequence for source in args.data for sequence in find_sequences(source, recipe.data)]
    loader = TripletLoader(
        sequences,
        recipe.data,
        recipe.motion,
        seed=train.seed,
        rank=device.rank,
        world_size=device.world_size,
    )
    seed_everything(derive_seed(train.seed, "weights"))
    network = _starting_network(args)
    _LOG.info("interpolation network: %.2f M weights, %d sequences", num_parameters(network) / 1e6, len(sequences))
    clips = [clip.to(device.device) for clip in loader.held_out()]
    config: dict[str, Any] = to_dict(args)
    for name in ("overwrite", "quiet"):
        config.pop(name)  # say how this call behaves, not what the run is
    with open_run(args.run, config, overwrite=args.overwrite, is_main=device.is_main) as run:
        return fit(
            FusionTask(network, recipe.losses),
            loader.batches,
            run,
            train,
            device,
            sample_clip=clips[0] if clips else None,
            eval_clips=clips,
            progress=SilentProgress() if args.quiet or not device.is_main else BarProgress(args.run.name),
            architecture=to_dict(FusionArchitecture(network=recipe.network, motion=recipe.motion)),
        )


def _starting_network(args: TrainInterpolation) -> FusionNetwork:
    """The network of the recipe, with the weights of another run where one is named.

    Raises:
        CheckpointError: if that is none of an interpolation network.
        ConfigError: if it has another size.
    """
    network = FusionNetwork(args.recipe.network)
    if args.init is not None:
        before = load_fusion(args.init)
        if before.architecture.network != args.recipe.network:
            raise ConfigError(
                f"{args.init} holds a network of {before.architecture.network} and the recipe asks for "
                f"{args.recipe.network}; set --recipe.network.channels and --recipe.network.blocks alike"
            )
        network.load_state_dict(before.network.state_dict())
    return network


def main(argv: list[str]) -> int:
    """``fastv2v train-interpolation --data PATH ... --run DIR``."""
    args = parse(TrainInterpolation, "fastv2v train-interpolation", argv)
    return report_fit(args.run, train_interpolation(args))
