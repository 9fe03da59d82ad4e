"""What several verbs build alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from fastv2v.architecture import Architecture
from fastv2v.checkpoint import load_weights, weights_file
from fastv2v.data.clip import Clip
from fastv2v.data.folder import FolderConfig, VideoFolder, open_folder
from fastv2v.data.loader import ClipLoader, read_sequence
from fastv2v.device import Device
from fastv2v.errors import ConfigError, DataError
from fastv2v.losses.objective import ObjectiveConfig, VideoObjective
from fastv2v.losses.perceptual import PerceptualLoss
from fastv2v.ops.flow import DISFlow
from fastv2v.recipe import DataRecipe, HelperRecipe


def build_perceptual(helpers: HelperRecipe, device: Device) -> PerceptualLoss:
    """The frozen perceptual loss on the device."""
    if helpers.perceptual == "vgg19" and helpers.vgg19_weights is not None:
        return PerceptualLoss.vgg19(helpers.vgg19_weights).to(device.device)
    return PerceptualLoss.efficientnet().to(device.device)


def build_objective(
    config: ObjectiveConfig, condition_channels: int, helpers: HelperRecipe, device: Device
) -> VideoObjective:
    """Losses and discriminators."""
    return VideoObjective(config, condition_channels, build_perceptual(helpers, device), DISFlow(helpers.flow))


def continue_discriminators(objective: VideoObjective, checkpoint: Path) -> None:
    """Go on from the discriminators saved beside a generator.

    Raises:
        CheckpointError: if the checkpoint has none, or they are of another shape.
    """
    for name, module in objective.discriminators.items():
        load_weights(module, weights_file(checkpoint, name))


def open_train(recipe: DataRecipe, root: Path, device: Device, seed: int) -> tuple[VideoFolder, ClipLoader]:
    """The training part of a data set and its clips for this process."""
    folder = open_folder(recipe.at(root, "train"))
    loader = ClipLoader(
        folder,
        recipe.sampling,
        batch_size=recipe.batch_size,
        seed=seed,
        num_workers=recipe.num_workers,
        cache_mb=recipe.cache_mb,
        rank=device.rank,
        world_size=device.world_size,
    )
    return folder, loader


def open_test(folder: FolderConfig) -> VideoFolder:
    """The held-out part of a data set."""
    geometry = folder.geometry
    if geometry.is_random:
        # Random scales have no place in a test: take the largest, without the crop.
        geometry = replace(geometry, mode="scaleHeight" if "Height" in geometry.mode else "scaleWidth")
    return open_folder(replace(folder, phase="test", geometry=geometry))


def held_out_clips(recipe: DataRecipe, root: Path, device: Device, limit: int = 4) -> Sequence[Clip]:
    """The beginnings of the first held-out sequences, on the device; empty where nothing is held out."""
    try:
        folder = open_test(recipe.at(root, "train"))
    except DataError as error:
        if "nothing to test on" in str(error):
            return ()
        raise
    return [
        read_sequence(folder, i, 0, min(recipe.eval_frames, len(sequence))).to(device.device)
        for i, sequence in enumerate(folder.sequences[:limit])
    ]


def check_condition(architecture: Architecture, folder: VideoFolder, what: str) -> None:
    """Refuse a network that was trained on other classes.

    Raises:
        ConfigError: naming both.
    """
    if architecture.condition != folder.spec:
        raise ConfigError(
            f"{what} was trained on another condition ({_describe(architecture.condition.class_names)}) than "
            f"{folder.root} has ({_describe(folder.spec.class_names)}); use the data set it was trained on"
        )


def _describe(names: tuple[str, ...]) -> str:
    return f"{len(names)} classes: {', '.join(names[:3])}, ..." if len(names) > 3 else ", ".join(names) or "maps"


def palette_of(folder: VideoFolder) -> tuple[tuple[int, int, int], ...]:
    """Display colours as plain numbers."""
    return tuple((int(r), int(g), int(b)) for r, g, b in folder.palette)


def num_parameters(module: nn.Module) -> int:
    """Weights of a network."""
    return sum(p.numel() for p in module.parameters())
