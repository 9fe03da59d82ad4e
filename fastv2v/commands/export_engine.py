"""``fastv2v export --bundle``: an engine for this machine is built from the graph of a bundle that exists."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import numpy as np
from tqdm import tqdm

from export.bundle import STEP_GRAPH, Manifest, load_manifest
from export.choose import Probe, choose_engine
from export.engines import Array, Candidate, available_engines, parse_engine
from export.history import Points
from export.stream import ConditionMap
from export.tensorrt_api import CudaRunner, describe_site, require_tensorrt
from export.tensorrt_builder import ParityClip, Progress, build_engine, moving_blocks, moving_points
from export.tensorrt_store import EngineRecord, Precision, TensorRTConfig, list_engines, misfit
from fastv2v.commands.arguments import parse
from fastv2v.commands.stream import PIPE, StreamArgs, open_sequence
from fastv2v.data.conditions import encode_condition_numpy
from fastv2v.errors import BundleError, ConfigError, DataError, MissingExtraError

_LOG = logging.getLogger(__name__)
TENSORRT = "tensorrt"


@dataclass(frozen=True, kw_only=True)
class ExportEngine:
    """Build a TensorRT engine for this machine's GPU from the graph of a bundle; the bundle keeps it once it passed."""

    bundle: Path
    """Bundle folder, NAME.v2v."""
    engine: str = TENSORRT
    """tensorrt, or tensorrt:PRECISION with f32, f16, bf16, int8 or fp8."""
    tensorrt: TensorRTConfig = field(default_factory=TensorRTConfig)
    """How it is built."""
    data: Path | None = None
    """Data set folder: the engine is compared with ONNX Runtime over keyframes of its training part. Without it, over
    blocks of random classes that move, which are harder and less like what it will see."""
    frames: int = 16
    """Keyframes of the comparison at most."""
    measure: bool = True
    """Then measure it beside ONNX Runtime and the engine chosen so far, so that --engine auto takes the fastest."""
    overwrite: bool = False
    """Build anew where the bundle holds an engine that fits this machine already."""

    def __post_init__(self) -> None:
        if self.frames < 2:
            raise ConfigError(f"a comparison needs at least 2 keyframes, got frames {self.frames}")
        tensorrt_config(self.engine, self.tensorrt)

    @property
    def config(self) -> TensorRTConfig:
        """How the engine is built, in the precision that was named."""
        return tensorrt_config(self.engine, self.tensorrt)


def tensorrt_config(engine: str, config: TensorRTConfig) -> TensorRTConfig:
    """The config with the precision that ``engine`` (``tensorrt`` or ``tensorrt:PRECISION``) names.

    Raises:
        ConfigError: if it is no such engine or precision, or the config names another precision.
    """
    name, precision = parse_engine(engine)
    if name != TENSORRT:
        raise ConfigError(
            f"only {TENSORRT} engines are built into a bundle, not {name!r}; others open its graph itself"
        )
    if precision is None:
        return config
    if config.precision not in (precision, TensorRTConfig().precision):
        raise ConfigError(f"--engine {engine} and --tensorrt.precision {config.precision} differ; give one of them")
    return replace(config, precision=cast(Precision, precision))


def check_tensorrt() -> CudaRunner:
    """The GPU, where it and TensorRT are there.

    Raises:
        MissingExtraError: saying what is missing, how to get it, and what runs without.
    """
    try:
        require_tensorrt()
        return CudaRunner()
    except MissingExtraError as error:
        others = " or ".join(f"--engine {name}" for name in available_engines())
        raise MissingExtraError(f"{error}; a bundle runs without, on the CPU: {others}") from error


def export_engine(args: ExportEngine) -> EngineRecord:
    """Build the engine as told.

    Raises:
        BundleError: if the bundle is damaged, holds a fitting engine already, or no engine passes.
        ConfigError: if the GPU or TensorRT lacks what was asked for.
        MissingExtraError: if there is no TensorRT or no GPU.
    """
    manifest = load_manifest(args.bundle)
    runner = check_tensorrt()
    here, graph = describe_site(runner), manifest.files[STEP_GRAPH]
    if not args.overwrite:
        for place, record in list_engines(args.bundle, manifest).whole.items():
            if record.config.precision == args.config.precision and misfit(record, here, graph) is None:
                raise BundleError(f"{args.bundle / place} is a {record} already; pass --overwrite to build it anew")
    clip = clip_for(args.bundle, manifest, args.data, args.frames)
    with build_bar(args.bundle.stem) as progress:
        record = build_engine(args.bundle, clip, args.config, progress=progress, runner=runner)
    if args.measure and args.config.version_compatible:
        _LOG.warning("the engine brings code of its own, so auto will not take it and it is not measured")
    elif args.measure:
        rivals = [Candidate(TENSORRT, args.config.precision)]
        if manifest.engine is not None:
            rivals.append(Candidate(manifest.engine.engine, manifest.engine.precision))
        choose_engine(args.bundle, Probe(clip.conditions, points=clip.points), candidates=list(dict.fromkeys(rivals)))
    return record


def clip_for(bundle: Path, manifest: Manifest, data: Path | None, frames: int) -> ParityClip:
    """Conditions to compare engines over.

    Args:
        bundle: its folder.
        manifest: of the bundle.
        data: data set; None for moving blocks.
        frames: how many keyframes at most.

    Raises:
        ConfigError: if the data set does not suit the bundle.
        DataError: if it has fewer than two keyframes.
    """
    if data is None:
        _LOG.warning("no --data was given: the engine is compared over moving blocks")
        spec = manifest.condition
        blocks = moving_blocks(spec, manifest.size, frames, np.random.default_rng(0))
        ids = moving_points(spec.guidance_levels, manifest.size, frames) if spec.guidance_levels else None
        return ParityClip(blocks, "moving blocks", ids)
    taken = open_sequence(StreamArgs(bundle=bundle, data=data, phase="train", out=PIPE), manifest)
    gap = int(manifest.keyframes["gap"] or 1)
    maps = list(itertools.islice(taken.conditions(), 0, gap * frames, gap))
    spec = manifest.condition
    encoded: list[Array] = [encode_condition_numpy(spec, m.labels, m.instances, m.maps) for m in maps]
    if len(encoded) < 2:
        raise DataError(f"{data}: its first training sequence holds no two keyframes {gap} frames apart")
    return ParityClip(np.stack(encoded), f"{len(encoded)} keyframes of {data.name}, {gap} frames apart", _points(maps))


def _points(maps: Sequence[ConditionMap]) -> Points | None:
    """The point ids of frames, level by level; None where they have none."""
    shown = [m.points for m in maps if m.points is not None]
    if len(shown) < len(maps):
        return None
    return [np.stack(level) for level in zip(*shown, strict=True)]


@contextmanager
def build_bar(title: str) -> Iterator[Progress]:
    """A progress bar for a build, for as long as it takes."""
    with tqdm(total=None, desc=f"{title}: TensorRT", unit="step", leave=False, dynamic_ncols=True) as bar:

        def tell(phase: str, done: int, steps: int) -> bool:
            bar.set_postfix_str(phase, refresh=False)
            bar.total, bar.n = steps, done
            bar.refresh()
            return True

        yield cast(Callable[[str, int, int], bool], tell)


def show(bundle: Path, record: EngineRecord) -> None:
    """Tell people what was kept and why."""
    parity = "exactly" if record.parity_psnr_db is None else f"at {record.parity_psnr_db:.1f} dB"
    expected = "" if record.expected_psnr_db is None else f", {record.expected_psnr_db:.1f} dB expected of rounding"
    print(f"{bundle}: {record}; follows ONNX Runtime {parity} over {record.frames} frames ({record.clip}){expected}")
    for attempt in record.attempts:
        print(f"  warp by {attempt.warp}: {attempt.outcome}")


def main(argv: list[str]) -> int:
    """``fastv2v export --bundle NAME.v2v --engine tensorrt``."""
    args = parse(ExportEngine, "fastv2v export", argv)
    record = export_engine(args)
    show(args.bundle, record)
    choice = load_manifest(args.bundle).engine
    for m in choice.measurements if args.measure and choice is not None else ():
        took = m.reason if m.median_ms is None else f"{m.median_ms:.1f} ms a step"
        print(f"  {m.engine} {m.precision}: {took}")
    if args.measure and choice is not None:
        print(f"  chosen: {choice.engine} {choice.precision}")
    print(json.dumps({"bundle": str(args.bundle), "engine": record.key, "warp": record.warp}))
    return 0
