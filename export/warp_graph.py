"""The warp of a step graph in three forms: as it was exported, written with gathers, or left out. Runs without torch.

Engines have compiled ``GridSample`` wrongly without a word, so two ways round it exist. ``gather_warp`` writes bilinear
sampling out in operators that nothing is special about. ``cut_warp`` ends the graph where the warp would begin: the
engine gives flow, blend weight and hallucinated frame, or what stands for them, and ``export.outside`` samples in torch
and finishes the frame.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from export.graphs import GraphView, attribute, check_valid, free_name
from fastv2v.errors import BundleError, ConfigError

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

Warp = Literal["grid_sample", "gather", "outside"]
"""``GridSample`` in f32; gathers; or none, the runtime warps."""
WARPED = "warped"
"""What the sampled picture is called in graphs that ``name_warp`` has seen."""

_ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Max", "Min", "Clip", "Transpose", "Reshape", "Unsqueeze", "Squeeze")
_READS = (*_ARITHMETIC, "Gather", "Slice", "Cast", "Expand")
_EXACT_INTEGERS = 2**24
"""Below it every whole number is an f32."""


def warps_of(model: ModelProto) -> list[NodeProto]:
    """The nodes that sample."""
    return [node for node in model.graph.node if node.op_type == "GridSample"]


def name_warp(model: ModelProto) -> ModelProto:
    """A copy whose sampled picture is called ``warped``, so that it can be found in every form of the graph.

    Raises:
        BundleError: if the graph samples more than once.
    """
    made = copy.deepcopy(model)
    warps = warps_of(made)
    if len(warps) > 1:
        raise BundleError(f"the graph samples {len(warps)} times; a step warps one frame")
    if not warps or (old := warps[0].output[0]) == WARPED or old in {x.name for x in made.graph.output}:
        return made
    new = free_name(made, WARPED)
    for node in made.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new
    for value in made.graph.value_info:
        if value.name == old:
            value.name = new
    return made


def with_outputs(model: ModelProto, names: Sequence[str]) -> ModelProto:
    """A copy that gives these tensors, in f32, and computes nothing that they do not need.

    Args:
        model: the graph.
        names: tensors of it, outputs or not, f32 all of them.

    Raises:
        ConfigError: if there is no such tensor.
    """
    from onnx import helper

    view = GraphView(model)
    if missing := [name for name in names if name not in view.producers]:
        raise ConfigError(f"the graph has no tensor {missing[0]!r}; its outputs are {', '.join(view.outputs)}")
    if other := [name for name in names if view.kind(name) != "f32"]:
        raise ConfigError(f"{other[0]!r} is {view.kind(other[0])} and outputs are f32")
    made = copy.deepcopy(model)
    graph = made.graph
    outputs = [helper.make_tensor_value_info(name, 1, view.shape(name)) for name in names]
    values = [x for x in graph.value_info if x.name not in names]
    left_over = set(view.outputs) - set(names)
    values += [x for x in graph.output if x.name in left_over]
    del graph.output[:], graph.value_info[:]
    graph.output.extend(outputs)
    graph.value_info.extend(values)
    _drop_unused(made)
    return made


def _drop_unused(model: ModelProto) -> None:
    """Remove nodes and constants that no output needs. Inputs stay, needed or not: they are the step's contract."""
    graph = model.graph
    needed = {x.name for x in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(filter(None, node.input))
            kept.append(node)
    kept.reverse()
    initializers = [x for x in graph.initializer if x.name in needed]
    made = {name for node in kept for name in node.output} - {x.name for x in graph.output}
    values = [x for x in graph.value_info if x.name in made]
    for field, content in ((graph.node, kept), (graph.initializer, initializers), (graph.value_info, values)):
        del field[:]
        field.extend(content)


def gather_warp(model: ModelProto) -> ModelProto:
    """A copy in which every ``GridSample`` is written with clips, floors, four gathers and three lerps.

    Bilinear sampling that repeats the border, in pixel coordinates and in f32: coordinates are clipped to the picture,
    so that the lower neighbour always exists and the upper one is the same pixel on the border, where its share is 0.

    Args:
        model: a graph of fixed shapes.

    Raises:
        BundleError: if the graph samples in another way, or a picture is too large to count its pixels in f32.
    """
    made = copy.deepcopy(model)
    view, nodes = GraphView(made), []
    for node in made.graph.node:
        nodes += _Gathers(made, view, node).nodes if node.op_type == "GridSample" else [node]
    nodes = [copy.deepcopy(node) for node in nodes]
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    check_valid(made, "the graph that warps by gathers")
    return made


class _Gathers:
    """One ``GridSample`` written out; the constants go into the graph, the nodes into ``nodes``."""

    def __init__(self, model: ModelProto, view: GraphView, node: NodeProto) -> None:
        self._graph, self._prefix = model.graph, free_name(model, "gather_warp")
        self.nodes: list[NodeProto] = []
        mode, padding = attribute(node, "mode", "bilinear"), attribute(node, "padding_mode", "zeros")
        if mode not in ("bilinear", "linear") or padding != "border":
            raise BundleError(f"{node.name!r} samples {mode} with {padding} around; only bilinear with border is known")
        image, grid = node.input
        shape, target = view.shape(image), view.shape(grid)
        if shape is None or target is None or None in (*shape, *target) or len(shape) != 4:
            raise BundleError(f"{node.name!r} has no fixed shape; export at a fixed size")
        batch, channels, height, width = (int(x or 0) for x in shape)
        _, rows, columns, _ = (int(x or 0) for x in target)
        if batch != 1 or height * width > _EXACT_INTEGERS:
            raise BundleError(f"{node.name!r}: {batch}x{height}x{width} pixels are more than indices in f32 tell apart")
        aligned = bool(attribute(node, "align_corners", 0))
        pixels = self._op("Reshape", image, self._ints([1, channels, height * width]))
        x = self._coordinate(grid, 0, width, aligned)
        y = self._coordinate(grid, 1, height, aligned)
        left, up = self._op("Floor", x), self._op("Floor", y)
        right = self._op("Min", self._op("Add", left, self._float(1)), self._float(width - 1))
        down = self._op("Min", self._op("Add", up, self._float(1)), self._float(height - 1))
        to_right, to_down = self._op("Sub", x, left), self._op("Sub", y, up)

        def row(line: str) -> str:
            start = self._op("Mul", line, self._float(width))
            ends = []
            for column in (left, right):
                index = self._op("Cast", self._op("Add", start, column), to=7)
                wide = self._op("Expand", index, self._ints([1, channels, rows * columns]))
                ends.append(self._op("GatherElements", pixels, wide, axis=2))
            return self._lerp(ends[0], ends[1], to_right)

        sampled = self._lerp(row(up), row(down), to_down)
        self._op("Reshape", sampled, self._ints([1, channels, rows, columns]), out=node.output[0])

    def _coordinate(self, grid: str, axis: int, size: int, aligned: bool) -> str:
        """Pixel coordinate (1, 1, pixels) from the normalised one, clipped to the picture."""
        part = self._op("Slice", grid, self._ints([axis]), self._ints([axis + 1]), self._ints([3]))
        flat = self._op("Reshape", part, self._ints([1, 1, -1]))
        half = (size - 1) / 2 if aligned else size / 2
        scaled = self._op("Mul", flat, self._float(half))
        place = self._op("Add", scaled, self._float((size - 1) / 2))
        return self._op("Clip", place, self._float(0), self._float(size - 1))

    def _lerp(self, start: str, end: str, share: str) -> str:
        return self._op("Add", start, self._op("Mul", share, self._op("Sub", end, start)))

    def _op(self, operator: str, *given: str, out: str | None = None, **attributes: Any) -> str:
        from onnx import helper

        name = f"{self._prefix}_{operator}_{len(self.nodes)}"
        out = out or f"{name}_out"
        self.nodes.append(helper.make_node(operator, list(given), [out], name=name, **attributes))
        return out

    def _float(self, value: float) -> str:
        return self._constant(np.array(value, np.float32))

    def _ints(self, values: Sequence[int]) -> str:
        return self._constant(np.array(values, np.int64))

    def _constant(self, values: np.ndarray[Any, Any]) -> str:
        from onnx import numpy_helper

        name = f"{self._prefix}_{'_'.join(map(str, values.ravel().tolist()))}_{values.dtype}_{values.ndim}"
        if all(x.name != name for x in self._graph.initializer):
            self._graph.initializer.append(numpy_helper.from_array(values, name))
        return name


class CutGraph(NamedTuple):
    """A step in two parts; ``export.outside`` runs the second."""

    head: ModelProto
    """Up to the warp; its outputs are what the tail needs, and those of the step that do not hang on the warp."""
    tail: ModelProto
    """From the warp to the outputs; takes the head's outputs and some of the step's own inputs."""
    given: tuple[str, ...]
    """Outputs of the head that the tail takes."""


def cut_warp(model: ModelProto) -> CutGraph:
    """Cut a step before its warp.

    Simple arithmetic before the warp goes with it where that leaves no more tensors to hand over. What is handed over
    is then the flow, the blend weight and the hallucinated frame; where layers finish the blended frame or a foreground
    is painted over it, what these take as well.

    Args:
        model: an f32 graph.

    Raises:
        BundleError: if there is no warp, or nothing lies before it.
    """
    from onnx import helper

    view = GraphView(model)
    warps = warps_of(model)
    if not warps:
        raise BundleError("the graph has no warp to leave out")
    tail: set[str] = set()
    reached = {name for node in warps for name in node.output}
    for node in view.nodes:
        if node in warps or reached.intersection(node.input):
            tail.update(node.output)
            reached.update(node.output)
    cut = _cut(view, tail)
    pulled = True
    while pulled:
        pulled = False
        for name in sorted(cut):
            node = view.producers[name]
            new = _open(view, node, tail) - cut
            reads_inputs = not _open(view, node, tail) and node.op_type in _READS
            if name not in view.outputs and (reads_inputs or (node.op_type in _ARITHMETIC and len(new) <= 1)):
                tail.update(node.output)
                cut = _cut(view, tail)
                pulled = True
                break
    if not cut:
        raise BundleError("nothing lies before the warp of this graph, so that there is nothing to cut off")
    own = [name for name in view.outputs if name not in tail]
    given = tuple(sorted(cut))
    head = with_outputs(model, [*own, *(name for name in given if name not in own)])
    check_valid(head, "the part of the graph before the warp")
    nodes = [node for node in view.nodes if tail.intersection(node.output)]
    read = {name for node in nodes for name in node.input}
    wanted = [x for x in model.graph.input if x.name in read]
    handed = [helper.make_tensor_value_info(name, view.types[name], view.shape(name)) for name in given]
    graph = helper.make_graph(
        nodes,
        f"{model.graph.name}_tail",
        [*wanted, *handed],
        [x for x in model.graph.output if x.name in tail],
        [x for x in model.graph.initializer if x.name in read],
    )
    made = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    check_valid(made, "the part of the graph from the warp on")
    return CutGraph(head, made, given)


def _open(view: GraphView, node: NodeProto, tail: set[str]) -> set[str]:
    """What a node takes that neither the tail makes nor the step is given nor the graph holds."""
    return {x for x in node.input if x in view.producers and x not in tail and view.constant(x) is None}


def _cut(view: GraphView, tail: set[str]) -> set[str]:
    return {x for node in view.nodes if tail.intersection(node.output) for x in _open(view, node, tail)}
