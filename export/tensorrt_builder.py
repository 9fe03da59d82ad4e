"""TensorRT engines built from the step graph of a bundle, and kept in it once they have proved themselves.

The network is strongly typed: every number format is written in the graph, and TensorRT changes none. Each way of
warping is tried in turn until one engine passes: TensorRT has sampled the nearest pixel in place of a bilinear warp,
and has compiled a warp wrongly in mixed precision, both without a word. So the modes are looked at in the graph and
again in the network that TensorRT read; the engine samples a half-pixel warp; and it rolls a clip out beside ONNX
Runtime.
Needs torch, onnx and ONNX Runtime; TensorRT when something is built.
"""

from __future__ import annotations

import functools
import logging
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from export.bundle import SELF_TEST, STEP_GRAPH, load_manifest
from export.choose import Probe
from export.engines import REFERENCE, Array, check_warp, open_engine
from export.graph_check import RENAMED_OPSET
from export.graphs import attribute, load_graph, opset_of
from export.history import Points
from export.outside import OutsideWarp
from export.parity import compare_engines
from export.prepare import QUANTISED, Precision, precision_loss, prepare_for_tensorrt
from export.quantize import Feeds, calibration_feeds
from export.tensorrt_api import CudaRunner, Log, Runner, describe_site, refuse
from export.tensorrt_engine import LoadedPlan, PlanEngine, warp_outside
from export.tensorrt_store import (
    SELF_TEST_PLAN,
    STEP_PLAN,
    TIMING_CACHE,
    WARPS,
    Attempt,
    EngineRecord,
    Site,
    TensorRTConfig,
    find_timing_cache,
    store_engine,
)
from export.warp_graph import Warp, warps_of
from fastv2v.data.conditions import ConditionSpec, encode_condition_numpy
from fastv2v.errors import BuildCancelledError, BundleError, ConfigError, MachineError, ShapeError

if TYPE_CHECKING:
    import tensorrt as trt
    from onnx import ModelProto

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], bool]
"""Told a phase of the build, the steps done and all steps of it; gives False to cancel. Called from any thread."""
Prepare = Callable[[Path, Precision, Warp], bytes]
"""Makes the graph that TensorRT is given: number formats written into it, and the warp in the form asked for."""

_CAPABILITIES: Mapping[Precision, tuple[int, int]] = {"bf16": (8, 0), "fp8": (8, 9)}
"""The oldest compute capability that has a format."""


class Range(NamedTuple):
    """Shapes of an input that is open in the graph."""

    least: tuple[int, ...]
    usual: tuple[int, ...]
    most: tuple[int, ...]


@dataclass(frozen=True)
class Built:
    """What one build gives."""

    plan: bytes
    timing_cache: bytes
    """What was measured while it was built; makes the next build fast."""


class ParityClip(NamedTuple):
    """Conditions that an engine is compared over."""

    conditions: Array
    """Encoded, (T, C, H, W), of successive keyframes."""
    name: str
    """What they are, for the record."""
    points: Points | None = None
    """Point ids of the same moments, (T, H / 2^k, W / 2^k) of each level, where the student is guided."""


def build_engine(
    folder: Path,
    clip: ParityClip,
    config: TensorRTConfig | None = None,
    *,
    prepare: Prepare | None = None,
    progress: Progress | None = None,
    runner: Runner | None = None,
    warps: Sequence[Warp] = WARPS,
) -> EngineRecord:
    """Build a TensorRT engine for this machine from a bundle's graph, and put it into the bundle once it has passed.

    An engine of the same GPU, TensorRT version and precision is replaced. The bundle keeps the timing cache, so that
    building again is fast.

    Args:
        folder: the bundle.
        clip: what the engine is compared with ONNX Runtime over.
        config: how it is built.
        prepare: makes TensorRT's graph; by default ``export.prepare.prepare_for_tensorrt``.
        progress: told how far the build is.
        runner: the GPU; by default torch's current one.
        warps: ways of warping, tried in turn.

    Returns:
        The record of the engine that was kept.

    Raises:
        BuildCancelledError: if ``progress`` said so. The bundle is as it was.
        BundleError: if the bundle is damaged, or no way of warping gives an engine that passes, with every reason.
        MachineError: if TensorRT cannot start here, or memory is short.
        ConfigError: if this GPU or TensorRT version lacks what was asked for.
        MissingExtraError: if TensorRT is not installed or there is no GPU.
        ShapeError: if the clip does not suit the bundle.
    """
    config = config or TensorRTConfig()
    used = runner if runner is not None else CudaRunner()
    site = describe_site(used)
    needed = _CAPABILITIES.get(config.precision, (0, 0))
    if site.gpu.capability < needed:
        raise ConfigError(
            f"{config.precision} needs compute capability {needed[0]}.{needed[1]} or later and this is {site.gpu}; "
            "choose precision f16"
        )
    manifest = load_manifest(folder)
    wanted = (manifest.condition.channels, *manifest.size)
    if clip.conditions.shape[1:] != wanted or len(clip.conditions) < 2:
        raise ShapeError(
            f"the clip has shape {clip.conditions.shape}, expected (T, {', '.join(map(str, wanted))}), T > 1"
        )
    levels = manifest.condition.guidance_levels
    if levels and (clip.points is None or [len(x) for x in clip.points] != levels * [len(clip.conditions)]):
        raise ShapeError(f"the student is guided: the clip needs point ids of {levels} levels for each of its frames")
    reference = open_engine(REFERENCE, folder / STEP_GRAPH)
    feeds = None
    if config.precision in QUANTISED:
        feeds = calibration_feeds(reference, Probe(clip.conditions, points=clip.points), manifest.history_length)
    if prepare is None:
        prepare = functools.partial(_prepared, version=site.tensorrt, feeds=feeds)
    attempt = _Attempt(folder, config, site, used, prepare, progress, find_timing_cache(folder, site))
    attempts: list[Attempt] = []
    for warp in warps if warps_of(load_graph(folder / STEP_GRAPH)) else warps[:1]:
        try:
            with used.on():  # TensorRT builds for the current device
                engine = attempt.build(warp)
            parity = compare_engines(engine, reference, clip.conditions, manifest.history_length, points=clip.points)
            parity.require(config.least_parity_db)
        except (BuildCancelledError, MachineError):  # another warp would not help
            raise
        except BundleError as error:
            log.warning("%s: no engine with the warp by %s: %s", folder.name, warp, error)
            attempts.append(Attempt(warp=warp, outcome=str(error)))
            continue
        record = EngineRecord(
            site=site,
            graph=manifest.files[STEP_GRAPH],
            config=config,
            attempts=(*attempts, Attempt(warp=warp, outcome="kept")),
            frames=parity.frames,
            clip=clip.name,
            max_abs_diff=parity.frame.greatest,
            parity_psnr_db=parity.frame.psnr_db if parity.frame.greatest else None,
            expected_psnr_db=_expected_psnr_db(folder / STEP_GRAPH, clip, config, warp, manifest.history_length, feeds),
        )
        with tempfile.TemporaryDirectory() as scratch:
            store_engine(folder, record, attempt.files, Path(scratch))
        return record
    reasons = "; ".join(f"warp by {a.warp}: {a.outcome}" for a in attempts)
    raise BundleError(f"no TensorRT engine in {config.precision} was kept for {folder} ({reasons}); use another engine")


def _expected_psnr_db(
    step: Path, clip: ParityClip, config: TensorRTConfig, warp: Warp, length: int, feeds: Sequence[Feeds] | None
) -> float | None:
    """What rounding alone costs; see ``EngineRecord.expected_psnr_db``."""
    if config.precision == "f32":
        return None
    # A graph that ends before its warp has no frame. It rounds as others do, and bf16 does not go with sampling.
    form: Warp = "gather" if warp == "gather" or config.precision == "bf16" else "grid_sample"
    loss = precision_loss(
        step, config.precision, clip.conditions, length, warp=form, feeds=feeds, outputs=("frame",), points=clip.points
    )
    found = loss.rounded.frame.psnr_db
    return found if found is not None and math.isfinite(found) else None


def moving_blocks(spec: ConditionSpec, size: tuple[int, int], frames: int, rng: np.random.Generator) -> Array:
    """Conditions for want of real ones: blocks of random classes, or soft random maps, that drift over the frame.

    Args:
        spec: how conditions are encoded.
        size: (height, width).
        frames: T.
        rng: what is drawn.

    Returns:
        Encoded conditions, (T, C, H, W).
    """
    height, width = size

    def drifting(still: NDArray[Any]) -> list[NDArray[Any]]:
        return [np.ascontiguousarray(np.roll(still, (t, 2 * t), axis=(-2, -1))) for t in range(frames)]

    if spec.kind == "maps":
        coarse = rng.uniform(-1, 1, (spec.map_channels, height // 8 + 1, width // 8 + 1)).astype(np.float32)
        soft = np.stack([cv2.resize(plane, (width, height), interpolation=cv2.INTER_CUBIC) for plane in coarse])
        return np.stack([encode_condition_numpy(spec, maps=x) for x in drifting(np.clip(soft, -1, 1))])
    blocks = rng.integers(0, spec.num_classes, (height // 8 + 1, width // 8 + 1), dtype=np.int32)
    ids = drifting(blocks.repeat(8, axis=0).repeat(8, axis=1)[:height, :width])
    return np.stack([encode_condition_numpy(spec, x, x if spec.use_instances else None) for x in ids])


def moving_points(levels: int, size: tuple[int, int], frames: int) -> list[NDArray[np.int32]]:
    """Point ids that drift as ``moving_blocks`` do, for a student that is guided.

    Args:
        levels: of guidance.
        size: (height, width).
        frames: T.

    Returns:
        Of each level k, (T, H / 2^k, W / 2^k): every point is seen again, moved, in the next frame.
    """
    height, width = size
    ids = np.arange(height * width, dtype=np.int32).reshape(height, width)
    moved = np.stack([np.roll(ids, (t, 2 * t), axis=(0, 1)) for t in range(frames)])
    return [np.ascontiguousarray(moved[:, :: 2**k, :: 2**k]) for k in range(levels)]


class _Attempt:
    """Builds the engine of a bundle with one warp after the other; what was timed for one serves the next."""

    def __init__(
        self,
        folder: Path,
        config: TensorRTConfig,
        site: Site,
        runner: Runner,
        prepare: Prepare,
        progress: Progress | None,
        timing_cache: bytes,
    ) -> None:
        self._folder, self._config, self._site, self._runner = folder, config, site, runner
        self._prepare, self._progress = prepare, progress
        self.files: dict[str, bytes] = {TIMING_CACHE: timing_cache}
        """The files of the latest engine, by name."""

    def build(self, warp: Warp) -> PlanEngine:
        """The engine with this warp, which has passed the half-pixel test.

        Raises:
            BuildCancelledError, BundleError, ConfigError: see ``build_engine``.
        """
        self.files = {TIMING_CACHE: self.files[TIMING_CACHE]}
        graph = self._graph(STEP_GRAPH, self._config.precision, warp)
        if warp == "outside":
            finish = warp_outside(self._folder / STEP_GRAPH, self._runner, self._config.precision)
        else:
            finish = None
            # Whatever the engine computes in, positions and sampling stay in f32.
            check_warp(self._opened(SELF_TEST_PLAN, self._graph(SELF_TEST, "f32", warp), None))
        return self._opened(STEP_PLAN, graph, self._progress, finish)

    def _graph(self, name: str, precision: Precision, warp: Warp) -> bytes:
        try:
            return self._prepare(self._folder / name, precision, warp)
        except ConfigError as error:  # this precision and this warp do not go together; others may
            raise BundleError(str(error)) from error

    def _opened(
        self, name: str, graph: bytes, progress: Progress | None, finish: OutsideWarp | None = None
    ) -> PlanEngine:
        cache = self.files[TIMING_CACHE]
        built = build_plan(graph, self._config, timing_cache=cache, progress=progress, site=self._site)
        self.files |= {name: built.plan, TIMING_CACHE: built.timing_cache}
        loaded = LoadedPlan(built.plan, self._runner, where=name, host_code=self._config.version_compatible)
        return PlanEngine(loaded, self._runner, self._config.precision, Path(name), finish)


def _prepared(path: Path, precision: Precision, warp: Warp, *, version: str, feeds: Sequence[Feeds] | None) -> bytes:
    """The graph of a file as TensorRT is given it."""
    graph = prepare_for_tensorrt(path, precision, warp, version=version, feeds=feeds)
    return graph.SerializeToString(deterministic=True)


def check_warp_modes(model: ModelProto) -> None:
    """Refuse a graph whose warp TensorRT's parser would read as another.

    Args:
        model: the graph.

    Raises:
        BundleError: if a ``GridSample`` is not bilinear, or the operator set is one in which that has another name.
    """
    opset = opset_of(model)
    for node in warps_of(model):
        mode = attribute(node, "mode", "bilinear")
        if opset >= RENAMED_OPSET:
            raise BundleError(
                f"GridSample '{node.name}' is of operator set {opset}, and TensorRT's parser silently samples the "
                f"nearest pixel from {RENAMED_OPSET} on; export the graph at 18"
            )
        if mode != "bilinear":
            raise BundleError(f"GridSample '{node.name}' samples {mode}, and a warp is bilinear; export the graph anew")


def build_plan(
    graph: bytes,
    config: TensorRTConfig,
    *,
    timing_cache: bytes = b"",
    shapes: Mapping[str, Range] | None = None,
    progress: Progress | None = None,
    site: Site | None = None,
) -> Built:
    """Build a plan from a graph for the GPU of this machine.

    Args:
        graph: an ONNX model whose number formats are as they shall be.
        config: how to build.
        timing_cache: of an earlier build; one of another GPU or version is left aside.
        shapes: for inputs that are open in the graph, the range they may take.
        progress: told how far it is.
        site: this machine, where it is known already; for messages.

    Raises:
        BuildCancelledError: if ``progress`` said so.
        BundleError: if TensorRT cannot read or build the graph, with node and reason.
        ConfigError: if this TensorRT lacks an option, or an open input has no range.
        MissingExtraError: if onnx is not installed.
    """
    import onnx
    import tensorrt as trt

    check_warp_modes(onnx.load_from_string(graph))
    said = Log()
    builder: trt.Builder = said.made(trt.Builder)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(network, graph, said)
    check_network_warps(network)
    settings = builder.create_builder_config()
    _configure(settings, config)
    _add_profile(builder, settings, network, shapes or {})
    known = settings.create_timing_cache(timing_cache)
    if not settings.set_timing_cache(known, ignore_mismatch=False):
        log.info("the timing cache is of another GPU or TensorRT version; kernels are measured anew")
        settings.set_timing_cache(settings.create_timing_cache(b""), ignore_mismatch=False)
    watch = _Watch(progress)
    settings.progress_monitor = watch.monitor
    said.begin()
    plan = builder.build_serialized_network(network, settings)
    watch.raise_if_stopped()
    if plan is None:
        where = "" if site is None else f" on {site.gpu}"
        refuse(f"TensorRT built no engine in {config.precision}{where}", said)
    used = settings.get_timing_cache()
    return Built(bytes(plan), b"" if used is None else bytes(used.serialize()))


def _parse(network: trt.INetworkDefinition, graph: bytes, said: Log) -> None:
    """Read a graph into a network."""
    import tensorrt as trt

    parser = trt.OnnxParser(network, said.listener)
    # On by default, and needed where an engine shall run on other versions or GPUs.
    parser.set_flag(trt.OnnxParserFlag.NATIVE_INSTANCENORM)
    if parser.parse(graph):
        return
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    nodes = "; ".join(f"{e.node_operator()} '{e.node_name()}' (node {e.node()}): {e.desc()}" for e in errors)
    if not nodes:
        refuse("TensorRT cannot read the graph", said)
    raise BundleError(f"TensorRT cannot read the graph: {nodes}")


def check_network_warps(network: trt.INetworkDefinition) -> None:
    """Refuse a network in which the parser made another sampling of a bilinear warp.

    Raises:
        BundleError: naming the layer.
    """
    import tensorrt as trt

    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type != trt.LayerType.GRID_SAMPLE:
            continue
        # A layer comes as its base class, and becomes what it is in this way only.
        layer.__class__ = trt.IGridSampleLayer  # type: ignore[assignment]
        mode = cast("trt.IGridSampleLayer", layer).interpolation_mode
        if mode != trt.InterpolationMode.LINEAR:
            raise BundleError(
                f"TensorRT {trt.__version__} read the bilinear warp '{layer.name}' as {mode.name.lower()}; its parser "
                "cannot be used for this graph"
            )


def _configure(settings: trt.IBuilderConfig, config: TensorRTConfig) -> None:
    """Set what the config asks for."""
    import tensorrt as trt

    if config.tf32:
        settings.set_flag(trt.BuilderFlag.TF32)
    else:
        settings.clear_flag(trt.BuilderFlag.TF32)  # on by default
    if config.version_compatible:
        settings.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    names = {"same": "NONE", "same-capability": "SAME_COMPUTE_CAPABILITY", "ampere-plus": "AMPERE_PLUS"}
    level = getattr(trt.HardwareCompatibilityLevel, names[config.hardware], None)
    if level is None:
        raise ConfigError(
            f"TensorRT {trt.__version__} cannot build for hardware {config.hardware!r}; update it, or choose another"
        )
    settings.hardware_compatibility_level = level
    settings.builder_optimization_level = config.optimization_level
    settings.max_aux_streams = 0  # one stream: a plain graph to record, and less memory
    settings.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if config.workspace_mb is not None:
        settings.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, config.workspace_mb << 20)


def _add_profile(
    builder: trt.Builder, settings: trt.IBuilderConfig, network: trt.INetworkDefinition, shapes: Mapping[str, Range]
) -> None:
    """Say which shapes open inputs take; a graph whose shapes are all fixed needs no profile."""
    inputs = {t.name: tuple(t.shape) for t in (network.get_input(i) for i in range(network.num_inputs))}
    opened = [name for name, shape in inputs.items() if -1 in shape]
    if not opened:
        return
    if missing := [name for name in opened if name not in shapes]:
        raise ConfigError(f"the shape of {missing[0]} is open in the graph and no range was given for it")
    profile = builder.create_optimization_profile()
    for name in opened:
        try:
            profile.set_shape(name, *shapes[name])
        except ValueError as error:
            raise ConfigError(f"TensorRT does not take the range {tuple(shapes[name])} for {name}: {error}") from error
    if settings.add_optimization_profile(profile) < 0:
        raise ConfigError(f"TensorRT does not take the ranges given for {', '.join(opened)}")


class _Watch:
    """Hears how far a build is. What is raised inside would cancel it without a word, and so is raised afterwards."""

    def __init__(self, tell: Progress | None) -> None:
        import tensorrt as trt

        self._stopped: BaseException | None = None
        sizes: dict[str, int] = {}
        watch = self

        class Monitor(trt.IProgressMonitor):
            def __init__(self) -> None:
                trt.IProgressMonitor.__init__(self)

            # Ctrl-C is raised in whichever of these runs first.
            def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
                watch.hear(lambda: sizes.__setitem__(phase_name, num_steps))

            def step_complete(self, phase_name: str, step: int) -> bool:
                return watch.goes_on(lambda: tell is None or tell(phase_name, step + 1, sizes.get(phase_name, 0)))

            def phase_finish(self, phase_name: str) -> None:
                watch.hear(lambda: sizes.pop(phase_name, None))

        self.monitor: trt.IProgressMonitor = Monitor()
        """What TensorRT is given; whoever gave it must keep it alive."""

    def goes_on(self, ask: Callable[[], bool]) -> bool:
        """Whether the build goes on."""
        if self._stopped is not None:
            return False
        if self.hear(ask) is False:
            self._stopped = BuildCancelledError("the build of the TensorRT engine was cancelled; nothing was written")
        return self._stopped is None

    def hear(self, act: Callable[[], object]) -> object:
        """What ``act`` gives; what it raises stops the build at its next step, and is kept until it has stopped."""
        try:
            return act()
        except BaseException as error:  # KeyboardInterrupt too: raised again when TensorRT has let go
            self._stopped = self._stopped or error
            return None

    def raise_if_stopped(self) -> None:
        """Raise what stopped the build, if anything did."""
        if self._stopped is not None:
            raise self._stopped
