"""What TensorRT's ONNX parser makes of a graph, node by node, told without TensorRT. Runs without torch.

``operators.json`` lists the operators and types that the parser takes. What it takes only in some forms, or takes and
then computes something else, is written out here, one function for each operator. Passing says that a graph keeps to
what is known of the parser; whether an engine computes the same is for ``export.parity.compare_engines`` to find.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from export.graphs import GraphView, attribute, load_graph, opset_of
from fastv2v.errors import BundleError, ConfigError

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

OLDEST: Final = "10.0"
"""The oldest TensorRT that is known here: graphs are checked for it where no version is named."""
RENAMED_OPSET: Final = 20
"""From this operator set on ``GridSample`` calls bilinear sampling ``linear``, which the parser takes for nearest."""
HALF_SCALE_OPSET: Final = 19
"""The first operator set whose quantisation takes scales in 16 bits."""
_RESIZE_COORDINATES = ("half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners")
_FLOATS = ("f32", "f16", "bf16")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing the parser lacks or takes wrongly."""

    node: str
    """Name of the node, or of the tensor where no node is to blame."""
    operator: str
    """Its operator; empty for a tensor or the whole graph."""
    reason: str
    """What is wrong and, where there is a way, what to do."""

    def __str__(self) -> str:
        return f"{self.operator} {self.node!r}: {self.reason}" if self.operator else f"{self.node}: {self.reason}"


@dataclass(frozen=True)
class ParserTable:
    """What the parser of one TensorRT version takes."""

    opsets: tuple[int, int]
    """Oldest and newest operator set."""
    types: Mapping[str, frozenset[str]]
    """Element types by operator."""
    constant_inputs: Mapping[str, tuple[int, ...]]
    """Inputs that must be written in the graph, by operator."""


def _release(version: str) -> tuple[int, int]:
    numbers = version.split(".")
    if len(numbers) < 2 or not all(x.isdecimal() for x in numbers[:2]):
        raise ConfigError(f"{version!r} is no TensorRT version; write it like 10.3 or 11.4.0.106")
    return int(numbers[0]), int(numbers[1])


@functools.cache
def parser_table(version: str = OLDEST) -> ParserTable:
    """What the parser of a TensorRT version takes. A version between two that are known counts as the older one.

    Args:
        version: like ``10.3`` or ``11.4.0.106``.

    Raises:
        ConfigError: if this is no version, or an older one than is known here.
    """
    known = json.loads(Path(__file__).with_name("operators.json").read_text(encoding="utf-8"))
    wanted = _release(version)
    ranges = [tuple(x) for since, x in known["opsets"].items() if _release(since) <= wanted]
    if not ranges:
        raise ConfigError(f"TensorRT {version} is older than {OLDEST}, the oldest that is known here")
    types = {name: set(kinds.split()) for kinds, names in known["types"].items() for name in names.split()}
    for since, added in known["added_types"].items():
        for name, kinds in added.items() if _release(since) <= wanted else ():
            types[name] |= set(kinds.split())
    return ParserTable(
        opsets=(ranges[-1][0], ranges[-1][1]),
        types={name: frozenset(kinds) for name, kinds in types.items()},
        constant_inputs={name: tuple(indices) for name, indices in known["constant_inputs"].items()},
    )


def check_graph(model: ModelProto | Path, version: str = OLDEST) -> tuple[Fault, ...]:
    """Walk a graph and name what TensorRT's parser would refuse or take wrongly.

    Args:
        model: the graph, or its file.
        version: the TensorRT that is to parse it.

    Returns:
        The faults in the order of the nodes; none for a graph that suits.

    Raises:
        BundleError: if the file cannot be read.
        ConfigError: if the version is unknown.
        MissingExtraError: if onnx is not installed.
    """
    if isinstance(model, Path):
        model = load_graph(model)
    table, view, opset = parser_table(version), GraphView(model), opset_of(model)
    faults = []
    oldest, newest = table.opsets
    if not oldest <= opset <= newest:
        faults.append(_whole(f"operator set {opset} is not among {oldest} to {newest} of TensorRT {version}"))
    for name in dict.fromkeys((*view.inputs, *view.initializers, *view.producers)):
        if reason := _fault_of_tensor(name, view):
            faults.append(Fault(node=name, operator="", reason=reason))
    for node in view.nodes:
        walk = _Walk(node, view, opset)
        faults += [Fault(node=node.name, operator=node.op_type, reason=x) for x in _faults_of_node(walk, table)]
    return tuple(faults)


def require_supported(model: ModelProto | Path, version: str = OLDEST) -> None:
    """Refuse a graph that TensorRT's parser would refuse or take wrongly.

    Args:
        model: the graph, or its file.
        version: the TensorRT that is to parse it.

    Raises:
        BundleError: naming every fault.
        ConfigError: if the version is unknown.
        MissingExtraError: if onnx is not installed.
    """
    if faults := check_graph(model, version):
        raise BundleError(f"the graph does not suit TensorRT {version}: {'; '.join(map(str, faults))}")


def _whole(reason: str) -> Fault:
    return Fault(node="the graph", operator="", reason=reason)


def _fault_of_tensor(name: str, view: GraphView) -> str | None:
    kind = view.kind(name)
    if kind == "u8" and name not in (*view.inputs, *view.outputs):
        return "bytes (u8) exist at the network's inputs and outputs only; cast them there"
    if kind == "f64":
        return "f64 is cut down to f32; write f32"
    if kind in ("u16", "i16", "u32", "u64", "text", "u4"):
        return f"there is no type {kind}"
    return None


@dataclass(frozen=True)
class _Walk:
    """A node in its graph."""

    node: NodeProto
    view: GraphView
    opset: int

    def given(self, index: int) -> str:
        """Name of an input, empty where it is left out."""
        return self.node.input[index] if index < len(self.node.input) else ""

    def kind(self, index: int) -> str:
        return self.view.kind(self.given(index))

    def rank(self, index: int) -> int | None:
        shape = self.view.shape(self.given(index))
        return None if shape is None else len(shape)

    def constant(self, index: int) -> Any:
        return self.view.constant(self.given(index))

    def attribute(self, name: str, default: Any = None) -> Any:
        return attribute(self.node, name, default)


def _faults_of_node(walk: _Walk, table: ParserTable) -> Iterator[str]:
    node = walk.node
    if node.domain not in ("", "ai.onnx"):
        yield f"operators of {node.domain} are unknown to the parser"
        return
    if node.op_type not in table.types:
        yield "the parser has no such operator"
        return
    if node.op_type in ("If", "Loop", "Scan"):
        yield "holds graphs of its own, which are not looked into here; export without branches and loops"
    taken = table.types[node.op_type]
    data = 1 if node.op_type == "Where" else 0  # the first input of a choice is its condition
    if walk.given(data) and (kind := walk.kind(data)) not in taken and kind != "?":
        yield f"takes {', '.join(sorted(taken))}, not {kind}"
    for index in table.constant_inputs.get(node.op_type, ()):
        if walk.given(index) and walk.constant(index) is None:
            yield f"its input {index} ({walk.given(index)!r}) must be written in the graph, not computed"
    if check := _LIMITS.get(node.op_type):
        yield from check(walk)


def _convolution(walk: _Walk) -> Iterator[str]:
    rank = walk.rank(0)
    if rank is not None and not 3 <= rank <= 5:
        yield f"takes 3 to 5 dimensions, not {rank}"
    if walk.node.op_type == "ConvTranspose" and min(walk.attribute("pads", [0]), default=0) < 0:
        yield "negative padding is not taken"
    yield from _one_type(walk, range(len(walk.node.input)))


def _one_type(walk: _Walk, indices: range) -> Iterator[str]:
    """Engines are strongly typed: nothing is cast that the graph does not cast."""
    kinds = [walk.kind(i) for i in indices if walk.given(i)]
    if len(set(kinds)) > 1:
        yield f"its inputs are {', '.join(kinds)} and must be of one type"


def _all_of_one_type(walk: _Walk) -> Iterator[str]:
    yield from _one_type(walk, range(len(walk.node.input)))


def _instance_norm(walk: _Walk) -> Iterator[str]:
    rank = walk.rank(0)
    if rank is not None and rank < 3:
        yield f"takes at least 3 dimensions, not {rank}"
    yield from _one_type(walk, range(3))


def _grid_sample(walk: _Walk) -> Iterator[str]:
    mode = walk.attribute("mode", "bilinear")
    if mode != "nearest" and walk.opset >= RENAMED_OPSET:
        yield (
            f"operator set {walk.opset} calls bilinear sampling 'linear', which the parser silently samples as "
            "nearest; export at operator set 18"
        )
    elif mode not in ("bilinear", "nearest"):
        yield f"mode {mode!r} is not relied on; use bilinear"
    for index, what in enumerate(("picture", "grid")):
        if (rank := walk.rank(index)) not in (4, None):
            yield f"the {what} has {rank} dimensions and 4 are taken"
    yield from _one_type(walk, range(2))


def _resize(walk: _Walk) -> Iterator[str]:
    mode = walk.attribute("mode", "nearest")
    if mode not in ("nearest", "linear"):
        yield f"mode {mode!r} is not taken; use nearest or linear"
    if walk.attribute("antialias", 0):
        yield "antialiasing is not taken"
    if (policy := walk.attribute("keep_aspect_ratio_policy", "stretch")) != "stretch":
        yield f"keep_aspect_ratio_policy {policy!r} is not taken; use stretch"
    if (place := walk.attribute("coordinate_transformation_mode", "half_pixel")) not in _RESIZE_COORDINATES:
        yield f"coordinate_transformation_mode {place!r} is not taken"
    before, after = walk.view.shape(walk.given(0)), walk.view.shape(walk.node.output[0])
    if mode == "linear" and before and after:
        changed = sum(a != b for a, b in zip(before, after, strict=True))
        if changed > 3:
            yield f"{changed} axes are resized and linear takes 3 at most"


def _pad(walk: _Walk) -> Iterator[str]:
    if (mode := walk.attribute("mode", "constant")) not in ("constant", "reflect", "edge"):
        yield f"mode {mode!r} is not taken by every version; use constant, reflect or edge"


def _depth_to_space(walk: _Walk) -> Iterator[str]:
    if (rank := walk.rank(0)) not in (4, None):
        yield f"takes 4 dimensions, not {rank}"


def _average_pool(walk: _Walk) -> Iterator[str]:
    if any(x != 1 for x in walk.attribute("dilations", [])):
        yield "dilations are not taken"
    if (rank := walk.rank(0)) not in (4, 5, None):
        yield f"takes 4 or 5 dimensions, not {rank}"


def _quantisation(walk: _Walk) -> Iterator[str]:
    """Symmetric int8 only: one scale for activations, one for each output channel of a convolution's weight."""
    quantised = walk.node.output[0] if walk.node.op_type == "QuantizeLinear" else walk.given(0)
    kind, scale, zero = walk.view.kind(quantised), walk.constant(1), walk.constant(2)
    if kind not in ("i8", "f8", "i4", "?"):
        yield f"quantises to {kind}; the parser takes i8 (f8, and i4 for weights)"
    if zero is not None and np.any(zero.astype(np.float32) != 0):
        yield f"zero point {zero.ravel()[0]} is not 0: only symmetric quantisation is taken"
    if scale is not None and not np.all(scale.astype(np.float32) > 0):
        yield "a scale is not positive"
    if walk.kind(1) in ("f16", "bf16") and walk.opset < HALF_SCALE_OPSET:
        yield f"scales in {walk.kind(1)} need operator set {HALF_SCALE_OPSET}; this is {walk.opset}"
    if walk.node.op_type == "QuantizeLinear":
        yield from _one_type(walk, range(2))
    if scale is None or scale.size == 1:
        return
    if walk.node.op_type == "QuantizeLinear" and walk.constant(0) is None:
        yield f"activations take one scale, not {scale.size}"
    for reader in walk.view.consumers.get(walk.node.output[0], ()):
        if walk.node.op_type != "DequantizeLinear":
            break
        if reader.op_type != "Conv" or walk.attribute("axis", 1) != 0:
            yield (
                f"{scale.size} scales along axis {walk.attribute('axis', 1)} for {reader.op_type} {reader.name!r}: one "
                "for each channel is taken for Conv along axis 0 only"
            )


_LIMITS: Final[Mapping[str, Callable[[_Walk], Iterator[str]]]] = {
    "AveragePool": _average_pool,
    "Conv": _convolution,
    "ConvTranspose": _convolution,
    "DepthToSpace": _depth_to_space,
    "DequantizeLinear": _quantisation,
    "GridSample": _grid_sample,
    "InstanceNormalization": _instance_norm,
    "Pad": _pad,
    "QuantizeLinear": _quantisation,
    "Resize": _resize,
    **dict.fromkeys(("Add", "Concat", "Div", "Max", "Min", "Mul", "Sub"), _all_of_one_type),
}
"""Limits of single operators."""
