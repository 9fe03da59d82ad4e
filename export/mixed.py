"""A step graph in 16 bits, layer by layer, as a strongly typed engine takes it. Runs without torch.

TensorRT computes every layer in the types that the graph states, so the plan is written into the graph: convolutions in
16 bits; flow, coordinates, sampling, norms and what draws the finished frame in 32; casts wherever the two meet. Inputs
and outputs keep their types.

What a plan costs is measured on a CPU, where ONNX Runtime computes 16-bit layers in 32 bits and *does not round between
them*: of a chain in f16 it rounds what enters, the weights, and what leaves, and nothing else. So there is
``rounded_graph``, which states the rounding behind every layer as a pair of casts; those it keeps.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from export.graph_check import HALF_SCALE_OPSET, parser_table
from export.graphs import GraphView, attribute, check_valid, opset_of
from fastv2v.errors import BundleError, ConfigError

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

Low = Literal["f16", "bf16"]
"""Formats of 16 bits: f16 ends at 65504; bf16 has the range of f32 and steps eight times as wide as those of f16."""

CONVOLUTIONS: Final = ("Conv", "ConvTranspose", "MatMul", "Gemm", "QuantizeLinear", "DequantizeLinear")
"""Where looking back from an output or a warp ends: what lies before is work for 16 bits."""
_NORMS = ("InstanceNormalization", "BatchNormalization", "LayerNormalization", "GroupNormalization", "LpNormalization")
_WIDE = ("Softmax", "LogSoftmax", "Exp", "Log", "Pow", "Sqrt", "Reciprocal", "CumSum", "Range")
_MOVES = (
    "Concat", "DepthToSpace", "Expand", "Gather", "GatherElements", "GatherND", "Identity", "Pad", "Reshape", "Slice",
    "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
)  # fmt: skip
"""Operators that compute nothing: in 16 bits they lose nothing where their input is in 16 bits."""
_FIXED_INPUTS: Final[Mapping[str, tuple[int, ...]]] = {"Resize": (1, 2)}
"""Inputs that ONNX wants in f32 whatever the layer computes in."""
_LARGEST: Final[Mapping[str, float]] = {"f16": 65504.0, "bf16": 3.3895e38}
BF16_OPSET: Final = 22
"""The first operator set whose convolutions and norms know bf16."""


@dataclass(frozen=True, kw_only=True)
class MixedConfig:
    """Which layers leave f32."""

    low: Low = "f16"
    """Format of the layers that do."""
    keep_warp: bool = True
    """Keep flow, coordinates and sampling in f32: a normalised f16 grid resolves half a pixel at 2048 wide."""
    keep_blend: bool = True
    """Keep what stands between the last convolutions and the outputs in f32: tanh, blend weights, blends."""
    keep_norms: bool = True
    """Keep norms that take statistics in f32: in f16 these overflow."""
    keep: tuple[str, ...] = ()
    """Names of further nodes that stay in f32."""

    def __post_init__(self) -> None:
        if self.low not in get_args(Low):
            raise ConfigError(f"low must be {' or '.join(get_args(Low))}, got {self.low!r}")


class LayerPlan(NamedTuple):
    """One node and the format it computes in."""

    node: str
    """Its name."""
    operator: str
    """Its operator."""
    kind: str
    """``f32``, ``f16`` or ``bf16``."""
    reason: str
    """Why."""


@dataclass(frozen=True, kw_only=True)
class PrecisionPlan:
    """The format of every layer that computes in floating point, in the order of the graph."""

    low: Low
    """Format of the layers that leave f32."""
    layers: tuple[LayerPlan, ...]
    """The layers; those that handle whole numbers only are not among them."""

    def count(self, kind: str) -> int:
        """How many layers compute in a format."""
        return sum(layer.kind == kind for layer in self.layers)

    def rows(self) -> list[dict[str, str]]:
        """The plan as rows of a table."""
        return [layer._asdict() for layer in self.layers]

    def __str__(self) -> str:
        """A table for people, runs of equal layers in one line."""
        lines = []
        for (operator, kind, reason), group in itertools.groupby(self.layers, key=lambda x: x[1:]):
            names = [layer.node for layer in group]
            where = names[0] if len(names) == 1 else f"{names[0]} .. {names[-1]} ({len(names)})"
            lines.append((operator, kind, reason, where))
        widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)] if lines else []
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip() for cells in lines
        )


def plan_mixed(model: ModelProto, config: MixedConfig | None = None) -> PrecisionPlan:
    """Decide for every layer of an f32 graph whether it computes in 16 bits.

    Args:
        model: the graph, in f32; the warp in any of its forms.
        config: which layers leave f32.

    Returns:
        The plan.

    Raises:
        ConfigError: if ``keep`` names a node that is not there.
        BundleError: if two nodes share a name, or a node holds a graph of its own.
    """
    config, view = config or MixedConfig(), GraphView(model)
    names = [node.name for node in view.nodes]
    if len(set(names)) != len(names):
        raise BundleError("nodes of the graph share a name, so that no plan can tell them apart")
    if nested := [node.name for node in view.nodes if node.op_type in ("If", "Loop", "Scan")]:
        raise BundleError(f"node {nested[0]!r} holds a graph of its own; export without branches and loops")
    if unknown := [name for name in config.keep if name not in names]:
        raise ConfigError(f"there is no node {unknown[0]!r} to keep in f32")
    warps = [node for node in view.nodes if node.op_type == "GridSample"]
    warp = {x.name for x in [*warps, *_before(view, (name for node in warps for name in node.input))]}
    blend = {x.name for x in _before(view, view.outputs)} - warp
    table, low = parser_table(), config.low
    planned: dict[str, LayerPlan] = {}
    for node in view.nodes:
        if not any(view.kind(name) == "f32" for name in (*node.input, *node.output)):
            continue
        data = node.input[1 if node.op_type == "Where" else 0] if node.input else ""
        largest = _largest_constant(node, view)
        kind, reason = "f32", ""
        if node.name in config.keep:
            reason = "asked for"
        elif node.op_type in table.types and low not in table.types[node.op_type] and view.kind(data) == "f32":
            reason = f"the parser takes no {low}"
        elif node.op_type in _NORMS or node.op_type.startswith("Reduce"):
            kind, reason = ("f32" if config.keep_norms else low), "statistics"
        elif node.op_type in _WIDE or not node.input:
            reason = "needs the range or the digits"
        elif largest > _LARGEST[low]:
            reason = f"constants up to {largest:.3g}"
        elif node.name in warp:
            kind, reason = ("f32" if config.keep_warp else low), "flow, coordinates, sampling"
        elif node.name in blend:
            kind, reason = ("f32" if config.keep_blend else low), "draws the frame"
        else:
            kind, reason = low, "features"
        if kind == "f32" and node.op_type in _MOVES and node.name not in config.keep:
            makers = [view.producers.get(x) for x in node.input if view.kind(x) == "f32" and x not in view.initializers]
            if makers and all(x is not None and x.name in planned and planned[x.name].kind == low for x in makers):
                kind, reason = low, "moves what is in 16 bits"
        planned[node.name] = LayerPlan(node.name, node.op_type, kind, reason)
    return PrecisionPlan(low=low, layers=tuple(planned.values()))


def _before(view: GraphView, names: Iterable[str]) -> list[NodeProto]:
    """Everything these tensors come from, back to the convolutions and norms, which are not among it."""
    found: dict[str, NodeProto] = {}
    waiting = list(names)
    while waiting:
        node = view.producers.get(waiting.pop())
        if node is None or node.name in found or node.op_type in (*CONVOLUTIONS, *_NORMS):
            continue
        found[node.name] = node
        waiting += node.input
    return list(found.values())


def _largest_constant(node: NodeProto, view: GraphView) -> float:
    """Magnitude of the largest constant a layer computes with; limits may be infinite, which 16 bits can say."""
    if node.op_type == "Clip":
        return 0.0
    fixed = _FIXED_INPUTS.get(node.op_type, ())
    held = [view.constant(x) for i, x in enumerate(node.input) if i not in fixed and view.kind(x) == "f32"]
    return max((float(np.abs(x).max(initial=0.0)) for x in held if x is not None), default=0.0)


def mixed_graph(model: ModelProto, plan: PrecisionPlan) -> ModelProto:
    """Write a plan into a graph: 16-bit weights, casts where formats meet, types restated.

    Args:
        model: the f32 graph that was planned; left untouched.
        plan: see ``plan_mixed``.

    Returns:
        The converted graph; inputs and outputs have the types they had. Its operator set rises to 22 for bf16 and to 19
        where quantisation scales are in f16.

    Raises:
        BundleError: if the outcome is not valid ONNX.
        ConfigError: if the graph would need an operator set in which bilinear sampling has another name.
    """
    made = _Writer(model, plan, rounded=False).write()
    quantised = any(node.op_type == "QuantizeLinear" for node in made.graph.node)
    least = BF16_OPSET if plan.low == "bf16" else HALF_SCALE_OPSET if quantised else 0
    if plan.count(plan.low):
        _raise_opset(made, least)
    check_valid(made, f"the graph in {plan.low}")
    return made


def rounded_graph(model: ModelProto, plan: PrecisionPlan) -> ModelProto:
    """An f32 graph that gives what the planned one would, for engines that do not round between 16-bit layers.

    Args:
        model: the f32 graph that was planned; left untouched.
        plan: see ``plan_mixed``.

    Returns:
        The graph with weights rounded and a cast down and up again behind every 16-bit layer.

    Raises:
        BundleError: if the outcome is not valid ONNX.
    """
    made = _Writer(model, plan, rounded=True).write()
    check_valid(made, f"the graph that rounds to {plan.low}")
    return made


def _raise_opset(model: ModelProto, least: int) -> None:
    """State a newer operator set. From 18 to 22 our operators only gained types, all but ``GridSample``."""
    if opset_of(model) >= least:
        return
    if least >= 20 and any(node.op_type == "GridSample" for node in model.graph.node):
        raise ConfigError(
            f"bf16 needs operator set {least}, in which engines sample the warp as nearest; warp by gather or outside, "
            "or choose f16"
        )
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = least
    model.ir_version = max(model.ir_version, 10)


class _Writer:
    """One conversion: what has been written, and in which format each tensor is."""

    def __init__(self, model: ModelProto, plan: PrecisionPlan, *, rounded: bool) -> None:
        from onnx import TensorProto

        self._model, self._view, self._low, self._rounded = model, GraphView(model), plan.low, rounded
        self._kinds = {layer.node: layer.kind for layer in plan.layers}
        self._code = TensorProto.FLOAT16 if plan.low == "f16" else TensorProto.BFLOAT16
        self._float: int = TensorProto.FLOAT
        self._is_low: set[str] = set()
        self._in_kind: dict[tuple[str, str], str] = {}
        self._nodes: list[NodeProto] = []
        self._added: dict[str, TensorProto] = {}
        self._types: dict[str, int] = {}

    def write(self) -> ModelProto:
        for node in self._view.nodes:
            self._write_node(node)
        made = copy.deepcopy(self._model)
        graph = made.graph
        used = {name for node in self._nodes for name in node.input} | set(self._view.outputs)
        kept = [x for x in graph.initializer if x.name in used]
        for field, content in (
            (graph.node, self._nodes),
            (graph.initializer, [*kept, *self._added.values()]),
            (graph.value_info, self._values(used)),
        ):
            del field[:]
            field.extend(content)
        return made

    def _write_node(self, node: NodeProto) -> None:
        made = copy.deepcopy(node)
        kind = self._kinds.get(node.name)
        if kind is None:
            self._nodes.append(made)
            return
        fixed = _FIXED_INPUTS.get(node.op_type, ())
        for index, name in enumerate(node.input):
            if name and index not in fixed and self._view.kind(name) == "f32":
                made.input[index] = self._as(name, kind)
        self._nodes.append(made)
        if kind != self._low:
            return
        if node.op_type == "Cast" and not self._rounded and attribute(node, "to") == self._float:
            next(x for x in made.attribute if x.name == "to").i = self._code
        for index, name in enumerate(node.output):
            if name and self._view.kind(name) == "f32":
                made.output[index] = self._written_low(name)

    def _written_low(self, name: str) -> str:
        """What a 16-bit layer calls its output, and the casts behind it."""
        if self._rounded:
            self._is_low.add(name)
            raw = self._named(f"{name}_unrounded", name, self._float)
            self._round(raw, name)
            return raw
        if name not in self._view.outputs:
            self._is_low.add(name)
            self._types[name] = self._code
            return name
        low = self._named(f"{name}_{self._low}", name, self._code)
        self._in_kind[name, self._low] = low
        self._cast(low, name, self._float)
        return low

    def _as(self, name: str, kind: str) -> str:
        """Name of a tensor in a format, made where there is none yet."""
        low = kind == self._low
        if name in self._view.initializers:
            return self._constant(name) if low else name
        if low == (name in self._is_low) or (self._rounded and not low):
            return name
        if (name, kind) not in self._in_kind:
            if self._rounded:
                made = self._named(f"{name}_rounded", name, self._float)
                self._round(name, made)
            else:
                made = self._named(f"{name}_{kind}", name, self._code if low else self._float)
                self._cast(name, made, self._code if low else self._float)
            self._in_kind[name, kind] = made
        return self._in_kind[name, kind]

    def _constant(self, name: str) -> str:
        made = f"{name}_{'rounded' if self._rounded else self._low}"
        if made not in self._added:
            self._added[made] = _constant_in(made, self._view.constant(name), self._low, rounded=self._rounded)
        return made

    def _named(self, wanted: str, like: str, code: int) -> str:
        self._types[wanted] = code
        self._view.shapes.setdefault(wanted, self._view.shape(like) or ())
        return wanted

    def _cast(self, name: str, out: str, code: int) -> None:
        from onnx import helper

        self._nodes.append(helper.make_node("Cast", [name], [out], name=f"cast_{name}_to_{out}", to=code))

    def _round(self, name: str, out: str) -> None:
        middle = self._named(f"{out}_{self._low}", name, self._code)
        self._cast(name, middle, self._code)
        self._cast(middle, out, self._float)

    def _values(self, used: set[str]) -> list[Any]:
        """Types and shapes of what lies between inputs and outputs, restated."""
        from onnx import helper

        stated = {x.name: copy.deepcopy(x) for x in self._model.graph.value_info}
        for name, code in self._types.items():
            if name in stated:
                stated[name].type.tensor_type.elem_type = code
            elif (shape := self._view.shape(name)) is not None:
                stated[name] = helper.make_tensor_value_info(name, code, shape)
        return [x for x in stated.values() if x.name in used]


def _constant_in(name: str, values: NDArray[Any] | None, low: Low, *, rounded: bool) -> TensorProto:
    """A constant in 16 bits, or in f32 with the values it has there."""
    from onnx import TensorProto, helper, numpy_helper

    assert values is not None, "initializers hold their values"
    if low == "f16":
        with np.errstate(over="ignore"):  # limits of a clip may become infinite
            small = values.astype(np.float16)
        return numpy_helper.from_array(small.astype(np.float32) if rounded else small, name)
    bits = to_bf16_bits(values)
    if rounded:
        return numpy_helper.from_array((bits.astype(np.uint32) << 16).view(np.float32).reshape(values.shape), name)
    return helper.make_tensor(name, TensorProto.BFLOAT16, values.shape, bits.tobytes(), raw=True)


def to_bf16_bits(values: NDArray[Any]) -> NDArray[np.uint16]:
    """The upper half of each float32, rounded to the nearest, ties to even.

    Args:
        values: finite numbers, any shape.

    Returns:
        Bit patterns of bfloat16, same shape.
    """
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    return np.asarray(rounded.astype(np.uint16)).reshape(np.shape(values))
