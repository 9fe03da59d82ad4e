"""The warp outside the engine: what a step cut before its warp is finished with. Needs torch.

``export.warp_graph.cut_warp`` leaves some twenty layers behind the warp, all but two of them arithmetic on pictures.
They are run here one by one, on the device where the engine's outputs lie, without a copy or a wait, so that a CUDA
graph can hold them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from export.engines import Array, GraphEngine
from export.graphs import GraphView, attribute, load_graph
from export.inputs import ConditionForm, StepCondition
from export.warp_graph import cut_warp
from fastv2v.errors import BundleError

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

_Layer = Callable[..., Tensor]


class OutsideWarp:
    """The part of a step from its warp on, in torch and in f32.

    Args:
        step: the whole step graph in f32, or its file; the very graph that the engine's head was cut from.
        device: where the engine's outputs lie.

    Raises:
        BundleError: if the graph has no warp, or layers behind it that are not known here.
        MissingExtraError: if onnx is not installed.
    """

    def __init__(self, step: ModelProto | Path, device: torch.device | str = "cpu") -> None:
        whole = load_graph(step) if isinstance(step, Path) else step
        cut = cut_warp(whole)
        graph = cut.tail.graph
        self.given = cut.given
        """Outputs of the head that are needed."""
        self.inputs = tuple(x.name for x in graph.input if x.name not in cut.given)
        """Inputs of the step that are needed: ``history_frames``, whose latest is warped, and perhaps others."""
        self.outputs = tuple(x.name for x in whole.graph.output)
        """Outputs of the step, ``frame`` among them."""
        view = GraphView(cut.tail)
        self._weights = {x: _tensor(view.constant(x), device) for x in view.initializers if view.kind(x) == "f32"}
        self._layers: list[tuple[str, Sequence[str], _Layer]] = []
        for node in graph.node:
            if node.op_type not in _LAYERS:
                raise BundleError(f"a warp outside the engine cannot be followed by {node.op_type} ({node.name!r})")
            layer, data = _LAYERS[node.op_type](node, view)
            self._layers.append((node.output[0], [node.input[i] for i in data], layer))

    @torch.no_grad()
    def __call__(self, made: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Warp and finish one frame.

        Args:
            made: outputs of the engine.
            inputs: what the engine was given, by name.

        Returns:
            Every output of the step.
        """
        values = {**self._weights, **{x: inputs[x] for x in self.inputs}, **made}
        for name, given, layer in self._layers:
            values[name] = layer(*(values[x] for x in given))
        return {x: values[x] for x in self.outputs}


class OutsideEngine:
    """An engine on arrays whose graph was cut before the warp, and torch behind it; satisfies ``StepEngine``.

    Args:
        head: opened on the head, on the CPU.
        step: the whole step graph.
    """

    def __init__(self, head: GraphEngine, step: Path) -> None:
        self._head, self._finish = head, OutsideWarp(step)
        self.name, self.precision = head.name, head.precision

    @property
    def form(self) -> ConditionForm:
        """See ``StepEngine.form``."""
        return self._head.form

    def run(
        self, condition: Array | StepCondition, history_conditions: Array, history_frames: Array, valid: Array
    ) -> dict[str, NDArray[Any]]:
        """See ``StepEngine.run``."""
        feeds = self._head.feeds(condition, history_conditions, history_frames, valid)
        made = {name: torch.from_numpy(x) for name, x in self._head.infer(feeds).items()}
        whole = self._finish(made, {name: torch.from_numpy(x) for name, x in feeds.items()})
        return {name: x.numpy() for name, x in whole.items()}


def _tensor(values: NDArray[Any] | None, device: torch.device | str) -> Tensor:
    assert values is not None, "initializers hold their values"
    return torch.from_numpy(values.copy()).to(device)


def _numbers(node: NodeProto, view: GraphView, index: int) -> list[int]:
    """A constant input of whole numbers."""
    values = view.constant(node.input[index])
    if values is None:
        raise BundleError(f"{node.op_type} {node.name!r} computes its range, which a warp outside cannot follow")
    return [int(x) for x in np.ravel(values)]


_Made = tuple[_Layer, Sequence[int]]


def _plain(layer: _Layer) -> Callable[[NodeProto, GraphView], _Made]:
    return lambda node, view: (layer, range(len(node.input)))


def _concat(node: NodeProto, view: GraphView) -> _Made:
    axis = attribute(node, "axis")
    return (lambda *parts: torch.cat(parts, dim=axis)), range(len(node.input))


def _conv(node: NodeProto, view: GraphView) -> _Made:
    top, left, bottom, right = attribute(node, "pads", [0, 0, 0, 0])
    if (top, left) != (bottom, right) or attribute(node, "auto_pad", "NOTSET") != "NOTSET":
        raise BundleError(f"Conv {node.name!r} pads unevenly, which a warp outside the engine cannot follow")
    stride, dilation = attribute(node, "strides", [1, 1]), attribute(node, "dilations", [1, 1])
    groups = attribute(node, "group", 1)

    def layer(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.conv2d(x, weight, bias, tuple(stride), (top, left), tuple(dilation), groups)

    return layer, range(len(node.input))


def _clip(node: NodeProto, view: GraphView) -> _Made:
    limits = [float(view.constant(x)) if x else None for x in [*node.input[1:], "", ""][:2]]  # type: ignore[arg-type]
    return (lambda x: x.clamp(*limits)), [0]


def _slice(node: NodeProto, view: GraphView) -> _Made:
    starts, ends = _numbers(node, view, 1), _numbers(node, view, 2)
    axes = _numbers(node, view, 3) if len(node.input) > 3 else list(range(len(starts)))
    steps = _numbers(node, view, 4) if len(node.input) > 4 else [1] * len(starts)

    def layer(x: Tensor) -> Tensor:
        where = [slice(None)] * x.ndim
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
            where[axis] = slice(start, end, step)
        return x[tuple(where)]

    return layer, [0]


def _gather(node: NodeProto, view: GraphView) -> _Made:
    """One of several frames, or a row of a table for every pixel."""
    indices, axis = view.constant(node.input[1]), attribute(node, "axis", 0)
    if indices is not None and not indices.ndim:
        return (lambda x: x.select(axis, int(indices))), [0]
    if indices is None and axis == 0 and view.constant(node.input[0]) is not None:
        return (lambda table, x: F.embedding(x, table)), [0, 1]
    raise BundleError(f"Gather {node.name!r} picks in a way that a warp outside the engine cannot follow")


def _grid_sample(node: NodeProto, view: GraphView) -> _Made:
    padding, aligned = attribute(node, "padding_mode", "zeros"), bool(attribute(node, "align_corners", 0))
    return (lambda x, grid: F.grid_sample(x, grid, "bilinear", padding, align_corners=aligned)), [0, 1]


def _leaky(node: NodeProto, view: GraphView) -> _Made:
    slope = attribute(node, "alpha", 0.01)
    return (lambda x: F.leaky_relu(x, slope)), [0]


def _transpose(node: NodeProto, view: GraphView) -> _Made:
    order = attribute(node, "perm")
    return (lambda x: x.permute(order)), [0]


def _shape(node: NodeProto, view: GraphView) -> _Made:
    shape = [int(x or 0) for x in view.shape(node.output[0]) or ()]
    return (lambda x: x.reshape(shape)), [0]


def _expand(node: NodeProto, view: GraphView) -> _Made:
    shape = [int(x or 0) for x in view.shape(node.output[0]) or ()]
    return (lambda x: x.expand(shape)), [0]


_LAYERS: Final[Mapping[str, Callable[[NodeProto, GraphView], _Made]]] = {
    "Add": _plain(torch.add),
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "Div": _plain(torch.div),
    "Expand": _expand,
    "Gather": _gather,
    "GridSample": _grid_sample,
    "LeakyRelu": _leaky,
    "Max": _plain(torch.maximum),
    "Min": _plain(torch.minimum),
    "Mul": _plain(torch.mul),
    "Relu": _plain(torch.relu),
    "Reshape": _shape,
    "Sigmoid": _plain(torch.sigmoid),
    "Slice": _slice,
    "Squeeze": _shape,
    "Sub": _plain(torch.sub),
    "Tanh": _plain(torch.tanh),
    "Transpose": _transpose,
    "Unsqueeze": _shape,
}
"""Layers that may stand behind a warp: each makes a function of tensors, and says which inputs it takes."""
