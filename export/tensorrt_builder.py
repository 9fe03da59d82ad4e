"""TensorRT engines built from the step graph of a bundle, and kept in it once they have proved themselves.

The network is strongly typed: every number format is written in the graph, and TensorRT changes none. Each way of
warping is tried in turn until one engine passes: TensorRT has sampled the nearest pixel in place of a bilinear warp,
and has compiled a warp wrongly in mixed precision, both without a word. So the modes are looked at in the graph and
again in the network that TensorRT read; the engine samples a half-pixel warp; and it rolls a clip out beside ONNX
Runtime.
Needs torch, onnx and ONNX Runtime; TensorRT when something is built.
"""

from __future__ import annotations

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
from export.choose import roll_out
from export.engines import REFERENCE, Array, StepEngine, check_warp, open_engine
from export.tensorrt_api import CudaRunner, Log, Runner, describe_site, refuse
from export.tensorrt_engine import LoadedPlan, PlanEngine
from export.tensorrt_store import (
    SELF_TEST_PLAN,
    STEP_PLAN,
    TIMING_CACHE,
    WARPS,
    Attempt,
    EngineRecord,
    Precision,
    Site,
    TensorRTConfig,
    Warp,
    find_timing_cache,
    store_engine,
)
from fastv2v.data.conditions import ConditionSpec, encode_condition_numpy
from fastv2v.errors import BuildCancelledError, BundleError, ConfigError, ParityError, ShapeError

if TYPE_CHECKING:
    import tensorrt as trt
    from onnx import ModelProto

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], bool]
"""Told a phase of the build, the steps done and all steps of it; gives False to cancel. Called from any thread."""
Prepare = Callable[[Path, Precision, Warp], bytes]
"""Makes the graph that TensorRT is given: number formats written into it, and the warp in the form asked for."""

_RENAMED_OPSET = 20
_BF16_CAPABILITY = (8, 0)


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
        prepare: makes TensorRT's graph; by default ``export.mixed.prepare_for_tensorrt``.
        progress: told how far the build is.
        runner: the GPU; by default torch's current one.
        warps: ways of warping, tried in turn.

    Returns:
        The record of the engine that was kept.

    Raises:
        BuildCancelledError: if ``progress`` said so. The bundle is as it was.
        BundleError: if the bundle is damaged, or no way of warping gives an engine that passes, with every reason.
        ConfigError: if this GPU or TensorRT version lacks what was asked for.
        MissingExtraError: if TensorRT is not installed or there is no GPU.
        ShapeError: if the clip does not suit the bundle.
    """
    config = config or TensorRTConfig()
    used = runner if runner is not None else CudaRunner()
    site = describe_site(used)
    if config.precision == "bf16" and site.gpu.capability < _BF16_CAPABILITY:
        raise ConfigError(f"bf16 needs compute capability 8.0 or later and this is {site.gpu}; choose precision f16")
    manifest = load_manifest(folder)
    wanted = (manifest.condition.channels, *manifest.size)
    if clip.conditions.shape[1:] != wanted or len(clip.conditions) < 2:
        raise ShapeError(
            f"the clip has shape {clip.conditions.shape}, expected (T, {', '.join(map(str, wanted))}), T > 1"
        )
    reference = _rolled(open_engine(REFERENCE, folder / STEP_GRAPH), clip, manifest.history_length)
    graphs = _Graphs(folder, config.precision, prepare or prepared_graph)
    cache, attempts = find_timing_cache(folder, site), []
    for warp in warps if _warps(folder / STEP_GRAPH) else warps[:1]:
        try:
            test = build_plan(graphs.of(SELF_TEST, warp), config, timing_cache=cache, site=site)
            step = build_plan(
                graphs.of(STEP_GRAPH, warp), config, timing_cache=test.timing_cache, progress=progress, site=site
            )
            cache = step.timing_cache
            check_warp(_opened(test.plan, SELF_TEST_PLAN, used, config))
            engine = _opened(step.plan, STEP_PLAN, used, config)
            parity, difference = _compare(_rolled(engine, clip, manifest.history_length), reference)
            if not parity >= config.least_parity_db:
                raise ParityError(
                    f"its frames reach {parity:.1f} dB beside ONNX Runtime's over {len(reference)} frames, and must "
                    f"reach {config.least_parity_db:g}"
                )
        except BuildCancelledError:
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
            frames=len(reference),
            clip=clip.name,
            max_abs_diff=difference,
            parity_psnr_db=parity if math.isfinite(parity) else None,
        )
        files = {STEP_PLAN: step.plan, SELF_TEST_PLAN: test.plan, TIMING_CACHE: cache}
        with tempfile.TemporaryDirectory() as scratch:
            store_engine(folder, record, files, Path(scratch))
        return record
    reasons = "; ".join(f"warp by {a.warp}: {a.outcome}" for a in attempts)
    raise BundleError(f"no TensorRT engine in {config.precision} was kept for {folder} ({reasons}); use another engine")


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


class _Graphs:
    """The graphs of a bundle as TensorRT is given them."""

    def __init__(self, folder: Path, precision: Precision, prepare: Prepare) -> None:
        self._folder, self._precision, self._prepare = folder, precision, prepare

    def of(self, name: str, warp: Warp) -> bytes:
        """The step, or the self-test: its one warp as the step warps, in float32 as it is there."""
        return self._prepare(self._folder / name, "f32" if name == SELF_TEST else self._precision, warp)


def prepared_graph(path: Path, precision: Precision, warp: Warp) -> bytes:
    """The graph of a file as TensorRT is given it, in float32 with its own warp only.

    Raises:
        BundleError: if it would have to be changed for that.
    """
    if (precision, warp) != ("f32", "grid_sample"):
        raise BundleError(f"there is no graph in {precision} with the warp by {warp}")
    return path.read_bytes()


def _opened(plan: bytes, name: str, runner: Runner, config: TensorRTConfig) -> PlanEngine:
    loaded = LoadedPlan(plan, runner, where=name, host_code=config.version_compatible)
    return PlanEngine(loaded, runner, config.precision, Path(name))


def _rolled(engine: StepEngine, clip: ParityClip, history_length: int) -> Array:
    """Frames of the whole clip, (T, 3, H, W), each from the engine's own past."""
    return np.stack(list(roll_out(engine, clip.conditions, history_length)))


def _compare(ours: Array, theirs: Array) -> tuple[float, float]:
    """PSNR in dB and greatest difference; NaN where a frame holds one."""
    difference = np.abs(ours.astype(np.float64) - theirs)
    mse = float(np.mean(np.square(difference)))
    return math.inf if mse == 0 else 10 * math.log10(4 / mse), float(difference.max())


def _warps(path: Path) -> bool:
    """Whether the graph samples between pixels."""
    import onnx

    return any(node.op_type == "GridSample" for node in onnx.load(path).graph.node)


def check_warp_modes(model: ModelProto) -> None:
    """Refuse a graph whose warp TensorRT's parser would read as another.

    Args:
        model: the graph.

    Raises:
        BundleError: if a ``GridSample`` is not bilinear, or the operator set is one in which that has another name.
    """
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    for node in model.graph.node:
        if node.op_type != "GridSample":
            continue
        mode = next((a.s.decode() for a in node.attribute if a.name == "mode"), "bilinear")
        if opset >= _RENAMED_OPSET:
            raise BundleError(
                f"GridSample '{node.name}' is of operator set {opset}, and TensorRT's parser silently samples the "
                f"nearest pixel from {_RENAMED_OPSET} on; export the graph at 18"
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

            def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
                sizes[phase_name] = num_steps

            def step_complete(self, phase_name: str, step: int) -> bool:
                return watch.goes_on(lambda: tell is None or tell(phase_name, step + 1, sizes.get(phase_name, 0)))

            def phase_finish(self, phase_name: str) -> None:
                sizes.pop(phase_name, None)

        self.monitor: trt.IProgressMonitor = Monitor()
        """What TensorRT is given; whoever gave it must keep it alive."""

    def goes_on(self, ask: Callable[[], bool]) -> bool:
        """Whether the build goes on."""
        if self._stopped is not None:
            return False
        try:
            if not ask():
                self._stopped = BuildCancelledError(
                    "the build of the TensorRT engine was cancelled; nothing was written"
                )
        except BaseException as error:  # KeyboardInterrupt too: raised again when TensorRT has let go
            self._stopped = error
        return self._stopped is None

    def raise_if_stopped(self) -> None:
        """Raise what stopped the build, if anything did."""
        if self._stopped is not None:
            raise self._stopped
