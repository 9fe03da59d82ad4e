"""``fastv2v export``: a trained student becomes a bundle."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from benchmarks.cost import step_cost
from export.build import BundleDetails, build_bundle
from export.bundle import Cost, Manifest
from export.choose import EngineGuard
from fastv2v import __version__
from fastv2v.architecture import load_trained
from fastv2v.commands.arguments import parse
from fastv2v.commands.parts import check_condition
from fastv2v.commands.synthesize import data_of
from fastv2v.data.folder import FolderConfig, open_folder
from fastv2v.data.loader import read_sequence
from fastv2v.environment import describe_commit
from fastv2v.errors import ConfigError
from fastv2v.ops.labels import encode_clip
from fastv2v.recipe import UNSET_ROOT
from interpolate.keyframes import KeyframeConfig
from interpolate.motion import MotionConfig

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Export:
    """Export a student: ONNX step graph, checked against torch over a clip; engines measured; all in one folder."""

    run: Path
    """Run or checkpoint of the student."""
    data: Path
    """Data set folder, for the clip that graph and engines are compared over."""
    out: Path
    """Bundle to write; its name ends in .v2v."""
    keyframes: KeyframeConfig = field(default_factory=KeyframeConfig)
    """Which frames the stream synthesises."""
    motion: MotionConfig = field(default_factory=MotionConfig)
    """How it fills the others."""
    folder: FolderConfig = field(default_factory=lambda: FolderConfig(root=UNSET_ROOT, phase="test", test_tail=16))
    """Which part of the data set is used; size and classes follow the run."""
    guard: EngineGuard = field(default_factory=EngineGuard)
    """How much quality a faster engine may cost."""
    measure: bool = True
    """Choose the engine by measuring; otherwise the bundle names none and ONNX Runtime is used."""
    task: str = "street"
    """Kind of material, for the manifest."""
    fps: float = 15.0
    """Frames per second of the material."""
    tolerance: float = 1e-3
    """Greatest difference accepted between graph and torch, in units of [-1, 1]."""
    threads: int | None = None
    """CPU threads for the measurement; all by default."""
    frames: int = 16
    """Frames of the comparison clip."""
    overwrite: bool = False
    """Replace a bundle of this name."""


def export_bundle(args: Export) -> Manifest:
    """Write the bundle as told."""
    if args.out.suffix != ".v2v":
        raise ConfigError(f"{args.out}: a bundle's name ends in .v2v")
    trained = load_trained(args.run)
    spec, size = trained.architecture.condition, trained.architecture.size
    folder = open_folder(data_of(spec, size, args.folder, args.data))
    check_condition(trained.architecture, folder, str(args.run))
    longest = max(range(len(folder.sequences)), key=folder.lengths.__getitem__)
    clip = read_sequence(folder, longest, 0, min(args.frames, folder.lengths[longest]))
    fraction = 1 / args.keyframes.gap
    cost = step_cost(trained.generator, spec.channels, size, keyframe_fraction=fraction)
    details = BundleDetails(
        task=args.task,
        condition=spec,
        size=size,
        keyframes=asdict(args.keyframes),
        interpolation={"method": "dis", **asdict(args.motion)},
        fps=args.fps,
        cost=Cost(
            macs_per_keyframe=cost.keyframe.true_macs,
            macs_per_frame=cost.true_macs_per_frame,
            output_position_macs_per_keyframe=cost.keyframe.output_position_macs,
            parameters=cost.keyframe.parameters,
        ),
        palette=trained.architecture.palette or None,
        training_commit=describe_commit(),
        created_by=f"fastv2v {__version__}",
    )
    with torch.no_grad():
        conditions = encode_clip(spec, clip)[0]
    return build_bundle(
        trained.generator,
        args.out,
        details,
        conditions,
        clip.frames[0],
        tolerance=args.tolerance,
        measure=args.measure,
        guard=args.guard,
        threads=args.threads,
        overwrite=args.overwrite,
    )


def main(argv: list[str]) -> int:
    """``fastv2v export --run RUN --data DIR --out NAME.v2v``."""
    args = parse(Export, "fastv2v export", argv)
    manifest = export_bundle(args)
    print(
        f"{args.out}: graph equals torch within {manifest.parity.max_abs_diff:.1e} over {manifest.parity.frames} "
        f"frames; {manifest.cost.macs_per_keyframe / 1e9:.2f} GMACs per keyframe"
    )
    for m in manifest.engine.measurements if manifest.engine else ():
        took = "could not run" if m.median_ms is None else f"{m.median_ms:.1f} ms a step"
        print(f"  {m.engine} {m.precision}: {took}")
    if manifest.engine:
        print(f"  chosen: {manifest.engine.engine} {manifest.engine.precision}")
    print(json.dumps({"bundle": str(args.out), "manifest": manifest.to_json()}))
    return 0
