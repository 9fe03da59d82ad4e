"""A step graph made ready for TensorRT: number formats, quantisation and the form of the warp, and what they cost.

Runs without torch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, get_args

from export.engines import Array, OnnxRuntimeEngine
from export.graph_check import OLDEST, check_graph
from export.graphs import check_valid, load_graph, opset_of, save_graph
from export.history import Points
from export.mixed import BF16_OPSET, MixedConfig, PrecisionPlan, mixed_graph, plan_mixed, rounded_graph
from export.parity import EngineParity, compare_engines
from export.quantize import FP8_OPSET, Feeds, quantize_step
from export.warp_graph import WARPED, Warp, cut_warp, gather_warp, name_warp, warps_of, with_outputs
from fastv2v.errors import BundleError, ConfigError

if TYPE_CHECKING:
    from onnx import ModelProto

Precision = Literal["f32", "f16", "bf16", "int8", "fp8"]
"""Formats of an engine; in ``int8`` and ``fp8`` the inner convolutions are quantised and the rest is in 16 bits."""
QUANTISED: Final = ("int8", "fp8")
"""Formats that need ranges of activations."""


class Tolerance(NamedTuple):
    """What the frames of a format must reach over a rolled-out clip, in dB of PSNR."""

    graph_db: float
    """Of the prepared graph on a CPU, with every layer rounded, beside the torch module: for networks untrained too."""
    engine_db: float
    """Of an engine that is kept, beside ONNX Runtime in f32, where nothing else is asked for."""


TOLERANCES: Final[Mapping[Precision, Tolerance]] = {
    "f32": Tolerance(90.0, 60.0),
    "f16": Tolerance(50.0, 40.0),
    "bf16": Tolerance(35.0, 35.0),
    "int8": Tolerance(25.0, 35.0),
    "fp8": Tolerance(20.0, 30.0),
}


class PreparedGraph(NamedTuple):
    """A graph for TensorRT, with what it was made from."""

    model: ModelProto
    """What TensorRT is given."""
    plan: PrecisionPlan | None
    """Which layer computes in what; None for a graph in f32 throughout."""
    plain: ModelProto
    """The same graph with every layer in f32: what ``plan`` was made for."""


def prepare_graph(
    path: Path,
    precision: Precision,
    *,
    warp: Warp = "grid_sample",
    config: MixedConfig | None = None,
    feeds: Sequence[Feeds] | None = None,
    outputs: Sequence[str] | None = None,
) -> PreparedGraph:
    """Make a step graph ready for TensorRT, without checking it against a version of the parser.

    Args:
        path: the exported f32 graph, its warp a ``GridSample`` at operator set 18.
        precision: format of the engine.
        warp: ``grid_sample``, ``gather``, or ``outside``: the graph then ends before the warp and ``export.outside``
            finishes the frame.
        config: which layers stay in f32; for quantised graphs also the format of the rest. ``low`` must suit the
            precision.
        feeds: inputs that ranges of activations are taken from, for int8 and fp8; see
            ``export.quantize.calibration_feeds``.
        outputs: tensors to give, ``warped`` for the sampled picture among them; None for those of the graph.

    Raises:
        BundleError: if the graph does not suit, or nothing in it is worth quantising.
        ConfigError: if the settings contradict each other.
        MissingExtraError: if onnx, or for int8 onnxruntime, is not installed.
    """
    if precision not in get_args(Precision) or warp not in get_args(Warp):
        raise ConfigError(
            f"precision is one of {', '.join(get_args(Precision))} and warp one of {', '.join(get_args(Warp))}, got "
            f"{precision!r} and {warp!r}"
        )
    config = config or MixedConfig(low="bf16" if precision == "bf16" else "f16")
    if precision in ("f16", "bf16") and config.low != precision:
        raise ConfigError(f"an engine in {precision} was asked for and the plan's format is {config.low}")
    model = name_warp(load_graph(path))
    if precision == "int8" or precision == "fp8":
        model = _quantised(model, feeds, precision)
    if outputs is not None:
        model = with_outputs(model, outputs)
    if warps_of(model):
        if warp == "gather":
            model = gather_warp(model)
        elif warp == "outside":
            model = cut_warp(model).head
        elif config.low == "bf16" and precision != "f32":
            raise ConfigError(
                f"bf16 needs operator set {BF16_OPSET}, and from 20 on engines sample the warp as nearest; warp by "
                "gather or outside, or choose f16"
            )
    check_valid(model, f"the graph prepared from {path}")
    if precision == "f32":
        return PreparedGraph(model, None, model)
    plan = plan_mixed(model, config)
    return PreparedGraph(mixed_graph(model, plan), plan, model)


def prepare_for_tensorrt(
    path: Path,
    precision: Precision,
    warp: Warp = "grid_sample",
    *,
    out: Path | None = None,
    version: str = OLDEST,
    config: MixedConfig | None = None,
    feeds: Sequence[Feeds] | None = None,
    outputs: Sequence[str] | None = None,
) -> ModelProto:
    """Make a step graph ready for TensorRT and refuse what its parser would not take as it is meant.

    Args:
        path: see ``prepare_graph``, as for what is not named here.
        precision: format of the engine.
        warp: form of the warp.
        out: file to write; None writes none.
        version: the TensorRT that is to parse it.
        config: which layers stay in f32.
        feeds: for int8 and fp8.
        outputs: tensors to give.

    Returns:
        The graph.

    Raises:
        BundleError: if the parser lacks something, with every node and reason; or as ``prepare_graph``.
        ConfigError: as ``prepare_graph``.
        MissingExtraError: as ``prepare_graph``.
    """
    made = prepare_graph(path, precision, warp=warp, config=config, feeds=feeds, outputs=outputs).model
    if faults := check_graph(made, version):
        raise BundleError(f"{path} does not suit TensorRT {version}: {'; '.join(map(str, faults))}")
    if out is not None:
        save_graph(made, out)
    return made


def _quantised(model: ModelProto, feeds: Sequence[Feeds] | None, kind: Literal["int8", "fp8"]) -> ModelProto:
    if not feeds:
        raise ConfigError(f"{kind} needs inputs to take ranges from; see export.quantize.calibration_feeds")
    with tempfile.TemporaryDirectory() as scratch:
        step, out = Path(scratch, "step.onnx"), Path(scratch, "quantised.onnx")
        save_graph(model, step)
        if not quantize_step(step, out, feeds, symmetric=True, kind=kind):
            raise BundleError(f"no convolution of the graph is large enough to be worth {kind}; choose f16")
        made = load_graph(out)
    least = FP8_OPSET if kind == "fp8" else 0
    assert opset_of(made) == max(opset_of(model), least), "the quantiser keeps the operator set"
    return made


class Emulation(NamedTuple):
    """Graphs by which a CPU shows what a prepared graph will give."""

    rounded: ModelProto
    """With the rounding of every 16-bit layer: what a GPU is expected to show."""
    as_run: ModelProto | None
    """As ONNX Runtime runs the prepared graph, in f32 between casts; None where it cannot (bf16)."""


def emulate(made: PreparedGraph) -> Emulation:
    """The graphs to run in place of a prepared one where there is no GPU; both the same for one in f32 throughout."""
    if made.plan is None:
        return Emulation(made.model, made.model)
    return Emulation(rounded_graph(made.plain, made.plan), None if made.plan.low == "bf16" else made.model)


class PrecisionLoss(NamedTuple):
    """What a prepared graph costs beside the graph it was made from, over a rolled-out clip on the CPU."""

    rounded: EngineParity
    """See ``Emulation.rounded``."""
    as_run: EngineParity | None
    """See ``Emulation.as_run``."""


def precision_loss(
    path: Path,
    precision: Precision,
    conditions: Array,
    history_length: int,
    *,
    seed_frame: Array | None = None,
    warp: Warp = "grid_sample",
    config: MixedConfig | None = None,
    feeds: Sequence[Feeds] | None = None,
    outputs: Sequence[str] | None = None,
    threads: int | None = None,
    points: Points | None = None,
) -> PrecisionLoss:
    """Roll a clip out in the prepared and in the f32 graph and compare them: warped frame and finished frame apart.

    Args:
        path: the exported f32 graph.
        precision: format of the engine.
        conditions: encoded conditions of successive keyframes, (T, C, H, W).
        history_length: N-1.
        seed_frame: the real frame of the first condition, (3, H, W) in [-1, 1].
        warp: ``grid_sample`` or ``gather``.
        config: which layers stay in f32.
        feeds: for int8 and fp8.
        outputs: what to compare; by default the frame and, where there is a warp, the warped frame.
        threads: CPU threads, None for all.
        points: point ids of each level, (T, H / 2^k, W / 2^k), where the student is guided by its painted world.

    Returns:
        The differences; NaN where a 16-bit layer overflowed.

    Raises:
        BundleError: as ``prepare_graph``.
        ConfigError: as ``prepare_graph``; or if the warp is outside, where a graph has no frame to compare.
        MissingExtraError: if onnx or onnxruntime is not installed.
        ShapeError: if the clip does not suit the graph.
    """
    if warp == "outside":
        raise ConfigError("a graph that ends before its warp has no frame; its loss is that of grid_sample")
    plain = name_warp(load_graph(path))
    if outputs is None:
        outputs = ("frame", WARPED) if any(WARPED in node.output for node in plain.graph.node) else ("frame",)
    made = emulate(prepare_graph(path, precision, warp=warp, config=config, feeds=feeds, outputs=outputs))
    clip: dict[str, Any] = {
        "conditions": conditions,
        "history_length": history_length,
        "seed_frame": seed_frame,
        "points": points,
    }
    with tempfile.TemporaryDirectory() as scratch:

        def opened(model: ModelProto, name: str) -> OnnxRuntimeEngine:
            save_graph(model, file := Path(scratch, f"{name}.onnx"))
            return OnnxRuntimeEngine(file, threads)

        reference = opened(with_outputs(plain, outputs), "plain")
        rounded = compare_engines(opened(made.rounded, "rounded"), reference, **clip)
        if made.as_run is None or made.as_run is made.rounded:
            return PrecisionLoss(rounded, rounded if made.as_run is made.rounded else None)
        return PrecisionLoss(rounded, compare_engines(opened(made.as_run, "made"), reference, **clip))
