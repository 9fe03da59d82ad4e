"""``fastv2v export``: a trained student becomes a bundle."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from export.build import BundleDetails, InterpolationPart, build_bundle
from export.bundle import Cost, Manifest, check_target, load_manifest
from export.choose import EngineGuard, Probe, choose_engine
from export.engines import AUTO, Candidate, parse_engine
from export.interpolation import NETWORK_METHOD
from export.tensorrt_builder import ParityClip, build_engine
from export.tensorrt_store import TensorRTConfig
from fastv2v import __version__
from fastv2v.architecture import load_trained
from fastv2v.commands import export_engine
from fastv2v.commands.arguments import parse
from fastv2v.data.clip import Clip
from fastv2v.data.driving.profile import DrivingProfile, measure_profile
from fastv2v.data.folder import FrameReader, VideoFolder, open_folder
from fastv2v.data.loader import read_clip
from fastv2v.data.prepare.write import prepared_fps
from fastv2v.data.transforms import draw_geometry
from fastv2v.errors import CheckpointError, ConfigError, DataError, ShapeError
from fastv2v.measure.cost import count_macs
from fastv2v.nn.coarse_to_fine import CoarseToFineGenerator
from fastv2v.ops.labels import encode_clip, guidance_points
from fastv2v.score import to_uint8
from interpolate.fill import fill
from interpolate.keyframes import KeyframeConfig, KeyframeSelector
from interpolate.learned.network import TrainedFusion, load_fusion
from interpolate.motion import MotionConfig
from interpolate.network import NUM_CORRECTIONS, Network, NetworkInterpolator, check_size

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Export:
    """Export a student: ONNX step graph, checked against torch over a clip; engines measured; all in one folder.

    With --bundle NAME.v2v, a bundle that exists is given a TensorRT engine for this machine instead; fastv2v export
    --bundle NAME.v2v --help has the options.
    """

    run: Path
    """Run or checkpoint of the student."""
    data: Path
    """Data set folder; graph and engines are compared over keyframes of its training part, so that no held-out frame
    takes part in a choice."""
    out: Path
    """Bundle to write; its name ends in .v2v."""
    keyframes: KeyframeConfig = field(default_factory=KeyframeConfig)
    """Which frames the stream synthesises."""
    motion: MotionConfig = field(default_factory=MotionConfig)
    """How it fills the others."""
    interpolation: Path | None = None
    """Run or checkpoint of train-interpolation, to fill them better at more cost. It brings the motion it was trained
    with; the scene cuts and the doubt in label maps stay those of the option before."""
    guard: EngineGuard = field(default_factory=EngineGuard)
    """How much quality a faster engine may cost."""
    measure: bool = True
    """Choose the engine by measuring; otherwise the bundle names none and ONNX Runtime is used."""
    int8: bool = True
    """Also measure engines on a copy of the graph with quantised convolutions, calibrated on the same keyframes; the
    bundle keeps it where it passes the guard."""
    engine: str = AUTO
    """Engine to choose, as NAME or NAME:PRECISION; auto takes the fastest of all that run here and keep the quality.
    tensorrt is built for this machine's GPU first, which takes minutes."""
    tensorrt: TensorRTConfig = field(default_factory=TensorRTConfig)
    """How a TensorRT engine is built."""
    torch_weights_mb: float = 64.0
    """Also keep the student's own weights in the bundle, for the engines of torch, where they take at most so many MB
    (10^6 bytes); 0 leaves them out."""
    task: str | None = None
    """Kind of material, for the manifest; by default street, face or pose after the condition."""
    fps: float | None = None
    """Frames per second of the material; by default those of the video that --data were prepared from, else 15."""
    tolerance: float = 1e-3
    """Greatest difference accepted between graph and torch, in units of [-1, 1]."""
    threads: int | None = None
    """CPU threads for the measurement; all by default."""
    frames: int = 16
    """Keyframes of the comparison at most, spaced by the largest keyframe gap."""
    overwrite: bool = False
    """Replace a bundle of this name."""

    def __post_init__(self) -> None:
        if self.frames < 2:
            raise ConfigError(f"a comparison needs at least 2 keyframes, got frames {self.frames}")
        if parse_engine(self.engine)[0] != AUTO and not self.measure:
            raise ConfigError(f"--engine {self.engine} is chosen by measuring; leave out --no-measure")
        if self.is_tensorrt:
            export_engine.tensorrt_config(self.engine, self.tensorrt)

    @property
    def is_tensorrt(self) -> bool:
        """Whether an engine is built for the GPU of this machine."""
        return parse_engine(self.engine)[0] == export_engine.TENSORRT


def export_bundle(args: Export) -> Manifest:
    """Write the bundle as told.

    Raises:
        BundleError: if something of its name exists that may not be replaced, or the graph strays from torch.
        DataError: if no training sequence is long enough for two keyframes.
    """
    # A board that only builds engines (--bundle) lacks what these need.
    from benchmarks.cost import step_cost
    from fastv2v.commands.parts import check_condition, data_of

    check_target(args.out, overwrite=args.overwrite)  # before minutes are spent
    runner = export_engine.check_tensorrt() if args.is_tensorrt else None
    trained = load_trained(args.run)
    spec = trained.architecture.condition
    if isinstance(trained.generator, CoarseToFineGenerator):
        raise ConfigError(
            f"{trained.checkpoint} holds a generator of {trained.generator.config.num_scales} scales and a graph has "
            "one; export a student that was distilled from it"
        )
    folder = open_folder(data_of(trained.architecture, args.data, "train"))
    check_condition(trained.architecture, folder, str(args.run))
    fps = prepared_fps(args.data, 15.0) if args.fps is None else args.fps
    KeyframeSelector(args.keyframes, fps)  # refuses what no stream could keep
    clip = keyframe_clip(folder, args.keyframes.gap, args.frames)
    fraction = 1 / args.keyframes.mean_gap(fps)
    cost = step_cost(trained.generator, spec.channels, clip.size, keyframe_fraction=fraction)
    part, motion, filling_macs = None, args.motion, 0
    if args.interpolation is not None:
        fusion = load_fusion(args.interpolation)
        motion = motion_of(fusion, args)
        part = interpolation_part(fusion, motion, folder, args.keyframes.gap, args.frames)
        network, probe = fusion.network, part.probe
        filling_macs = count_macs(lambda: network(probe), network).true_macs
    details = BundleDetails(
        task=args.task or {"labels": "street"}.get(spec.encoder or "", spec.encoder or spec.kind),
        condition=spec,
        size=clip.size,
        keyframes=asdict(args.keyframes),
        interpolation={"method": "dis" if part is None else NETWORK_METHOD, **asdict(motion)},
        fps=fps,
        cost=Cost(
            macs_per_keyframe=cost.keyframe.true_macs,
            macs_per_frame=cost.true_macs_per_frame + filling_macs * (1 - fraction),
            output_position_macs_per_keyframe=cost.keyframe.output_position_macs,
            parameters=cost.keyframe.parameters,
        ),
        palette=trained.architecture.palette or None,
        training_commit=training_commit(trained.checkpoint),
        created_by=f"fastv2v {__version__}",
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    weights_mb = sum(x.nbytes for x in trained.generator.state_dict().values()) / 1e6
    if keeps_weights := weights_mb <= args.torch_weights_mb:
        _LOG.info("%s: keeps %.1f MB of weights for the engines of torch", args.out.name, weights_mb)
    with torch.no_grad():
        conditions = encode_clip(spec, clip)[0]
    points = guidance_points(spec, clip)
    points = None if points is None else tuple(level[0] for level in points)
    manifest = build_bundle(
        trained.generator,
        args.out,
        details,
        conditions,
        clip.frames[0],
        tolerance=args.tolerance,
        measure=args.measure,
        int8=args.int8,
        guard=args.guard,
        engine=AUTO if args.is_tensorrt else args.engine,
        architecture=trained.architecture if keeps_weights else None,
        threads=args.threads,
        overwrite=args.overwrite,
        interpolation=part,
        points=points,
        driving=driving_profile(folder),
    )
    if runner is None:
        return manifest
    config = export_engine.tensorrt_config(args.engine, args.tensorrt)
    what = f"{len(conditions)} keyframes of {args.data.name}, {args.keyframes.gap} frames apart"
    ids = None if points is None else [level.numpy() for level in points]
    compared = ParityClip(conditions.numpy(), what, ids)
    print(
        f"{args.out}: written; now TensorRT builds its engine, which may be interrupted: the bundle stays whole, and "
        f"fastv2v export --bundle {args.out} --engine {args.engine} builds it later"
    )
    with export_engine.build_bar(args.out.stem) as progress:
        record = build_engine(args.out, compared, config, progress=progress, runner=runner)
    export_engine.show(args.out, record)
    if config.version_compatible:  # auto would not take it
        return load_manifest(args.out)
    chosen = [Candidate(export_engine.TENSORRT, config.precision)]
    keyframes = Probe(conditions.numpy(), clip.frames[0].numpy(), ids)
    choose_engine(args.out, keyframes, candidates=chosen, guard=args.guard, threads=args.threads, forced=True)
    return load_manifest(args.out)


def driving_profile(folder: VideoFolder) -> DrivingProfile | None:
    """What others need to drive the bundle, measured on the training part of the data set.

    Args:
        folder: the training part.

    Returns:
        The profile; None, with a warning where key points are too few, if the bundle cannot be driven.
    """
    longest = max(range(len(folder.sequences)), key=folder.lengths.__getitem__)
    size = FrameReader(folder, cache_mb=0).image_size(longest)
    geometry = draw_geometry(folder.config.geometry, size, None, "test")
    try:
        return measure_profile(folder, geometry)
    except DataError as error:
        _LOG.warning("the bundle will not be driven by other videos: %s", error)
        return None


def motion_of(fusion: TrainedFusion, args: Export) -> MotionConfig:
    """The motion compensation an interpolation network was trained with; what decides when it is used is the caller's.

    Args:
        fusion: the trained network.
        args: their motion gives scene cuts and the doubt in label maps.

    Raises:
        ConfigError: if effort or working size were asked for beside the network.
    """
    default = MotionConfig()
    if (args.motion.grade, args.motion.working_scale) != (default.grade, default.working_scale):
        raise ConfigError(
            f"{args.interpolation} corrects the motion it was trained with; leave out --motion.grade and "
            "--motion.working-scale"
        )
    trained = fusion.architecture.motion
    return replace(trained, cut_threshold=args.motion.cut_threshold, doubt=args.motion.doubt)


def interpolation_part(
    fusion: TrainedFusion, motion: MotionConfig, folder: VideoFolder, gap: int, most: int
) -> InterpolationPart:
    """The network with real gaps to measure its engines on.

    Args:
        fusion: the trained network.
        motion: the motion compensation it corrects.
        folder: training part of the data set.
        gap: distance of keyframes, in frames.
        most: gaps that are filled at most.

    Raises:
        ConfigError: if the frames' size does not suit the network, or there is nothing between keyframes.
        DataError: if the longest sequence is shorter than a gap.
    """
    if gap < 2:
        raise ConfigError("a keyframe gap of 1 leaves nothing to interpolate; leave out --interpolation")
    longest = max(range(len(folder.sequences)), key=folder.lengths.__getitem__)
    count = min(most, (folder.lengths[longest] - 1) // gap)
    if count < 1:
        raise DataError(f"{folder.root}: the longest training sequence has no {gap + 1} frames, a keyframe gap")
    reader = FrameReader(folder, cache_mb=0)
    geometry = draw_geometry(folder.config.geometry, reader.image_size(longest), None, "test")
    clip = read_clip(folder, longest, range(count * gap + 1), geometry, reader=reader)
    try:
        check_size(clip.size)
    except ShapeError as error:
        raise ConfigError(f"{error}; leave out --interpolation, or train a student of another size") from error
    frames = list(to_uint8(clip.frames[0]).permute(0, 2, 3, 1).contiguous().numpy())
    labels = None if clip.labels is None else list(clip.labels[0].numpy())

    def fill_gaps(network: Network) -> list[NDArray[np.uint8]]:
        interpolator = NetworkInterpolator(network, replace(motion, cut_threshold=None))
        made = fill(frames[::gap], range(0, len(frames), gap), len(frames), interpolator, labels)
        return [frame for index, frame in enumerate(made) if index % gap]

    shown: list[NDArray[np.float32]] = []

    def look(features: NDArray[np.float32]) -> NDArray[np.float32]:
        shown.append(features.copy())
        return np.zeros((1, NUM_CORRECTIONS, *features.shape[2:]), dtype=np.float32)

    fill_gaps(look)
    real = [frame for index, frame in enumerate(frames) if index % gap]
    return InterpolationPart(network=fusion.network, probe=torch.from_numpy(shown[0]), fill=fill_gaps, real=real)


def keyframe_clip(folder: VideoFolder, gap: int, most: int) -> Clip:
    """Keyframes 0, gap, 2 gap, ... of the longest sequence, at most ``most`` of them.

    Raises:
        DataError: if it is too short for two.
    """
    longest = max(range(len(folder.sequences)), key=folder.lengths.__getitem__)
    indices = range(0, folder.lengths[longest], gap)[:most]
    if len(indices) < 2:
        raise DataError(
            f"{folder.root}: the longest training sequence has {folder.lengths[longest]} frames; keyframes {gap} "
            f"frames apart need at least {gap + 1}: give a longer sequence or a smaller --keyframes.gap"
        )
    reader = FrameReader(folder, cache_mb=0)
    geometry = draw_geometry(folder.config.geometry, reader.image_size(longest), None, "test")
    return read_clip(folder, longest, indices, geometry, reader=reader)


def training_commit(checkpoint: Path) -> str | None:
    """The commit that the checkpoint's run noted; None where it lies in no run or none was known.

    Raises:
        CheckpointError: if the run's note is damaged.
    """
    noted = checkpoint.parent.parent / "environment.json"
    if not noted.is_file():
        return None
    try:
        commit = json.loads(noted.read_text(encoding="utf-8")).get("commit")
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{noted}: is no JSON object; restore it, or remove it to export without") from error
    return None if commit is None else str(commit)


def show(args: Export, manifest: Manifest) -> None:
    """Tell people what the bundle holds and which engine was chosen."""
    print(
        f"{args.out}: graph equals torch within {manifest.parity.max_abs_diff:.1e} over {manifest.parity.frames} "
        f"frames; {manifest.cost.macs_per_keyframe / 1e9:.2f} GMACs per keyframe"
    )
    for m in manifest.engine.measurements if manifest.engine else ():
        took = "could not run" if m.median_ms is None else f"{m.median_ms:.1f} ms a step"
        print(f"  {m.engine} {m.precision}: {took}")
    if manifest.engine:
        print(f"  chosen: {manifest.engine.engine} {manifest.engine.precision}")
    filling = manifest.interpolation
    if "engine" in filling:
        took = f"{filling['median_ms']:.1f} ms a frame"
        print(f"  interpolation network: {filling['engine']} {filling['precision']}, {took}")


def main(argv: list[str]) -> int:
    """``fastv2v export --run RUN --data DIR --out NAME.v2v``, or ``--bundle NAME.v2v`` for one that exists."""
    if any(word.split("=")[0] == "--bundle" for word in argv):
        return export_engine.main(argv)
    args = parse(Export, "fastv2v export", argv)
    manifest = export_bundle(args)
    show(args, manifest)
    print(json.dumps({"bundle": str(args.out), "manifest": manifest.to_json()}))
    return 0
