"""ONNX graphs as they are read, looked through and written. Runs without torch."""

from __future__ import annotations

import math
import os
import tempfile
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastv2v.errors import BundleError, MissingExtraError

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

TYPE_NAMES = {
    1: "f32", 2: "u8", 3: "i8", 4: "u16", 5: "i16", 6: "i32", 7: "i64", 8: "text", 9: "bool", 10: "f16", 11: "f64",
    12: "u32", 13: "u64", 16: "bf16", 17: "f8", 19: "f8", 21: "u4", 22: "i4",
}  # fmt: skip
"""Short names of ONNX's element types."""
_SMALL = 256
"""Constants of more numbers are weights; those of fewer may be shapes."""


def load_graph(path: str | os.PathLike[str]) -> ModelProto:
    """Read an ONNX file.

    Raises:
        BundleError: if it is missing or no ONNX file.
        MissingExtraError: if onnx is not installed.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"reading graphs needs {error.name}: pip install onnx") from error
    try:
        return onnx.load(os.fspath(path))
    except FileNotFoundError as error:
        raise BundleError(f"{path} is missing; export it first") from error
    except DecodeError as error:
        raise BundleError(f"{path} is no ONNX file: {error}") from error


def save_graph(model: ModelProto, path: Path) -> None:
    """Write an ONNX file; it appears complete or not at all, and equal graphs give equal files."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(model.SerializeToString(deterministic=True))
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def check_valid(model: ModelProto, what: str) -> None:
    """Refuse a graph that breaks ONNX's rules, types and shapes included.

    Raises:
        BundleError: with ``what`` and ONNX's own words.
    """
    import onnx

    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise BundleError(f"{what} is not valid ONNX: {str(error).strip()}") from error


def opset_of(model: ModelProto) -> int:
    """Version of the default operator set; 0 where the graph names none."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """An attribute of a node, text as ``str``; ``default`` where it is not written."""
    from onnx import helper

    for item in node.attribute:
        if item.name == name:
            value = helper.get_attribute_value(item)
            return value.decode() if isinstance(value, bytes) else value
    return default


class GraphView:
    """A graph with everything by name. It shows the graph as it was when it was made.

    Args:
        model: the graph; shapes and types that it does not state are inferred.

    Raises:
        BundleError: if these cannot be inferred.
    """

    def __init__(self, model: ModelProto) -> None:
        from onnx import shape_inference

        try:
            graph = shape_inference.infer_shapes(_without_weights(model)).graph
        except shape_inference.InferenceError as error:
            raise BundleError(f"the graph's types and shapes cannot be inferred: {str(error).strip()}") from error
        self.nodes: list[NodeProto] = list(model.graph.node)
        self.inputs = [value.name for value in model.graph.input]
        self.outputs = [value.name for value in model.graph.output]
        self.initializers: dict[str, TensorProto] = {x.name: x for x in model.graph.initializer}
        self.producers: dict[str, NodeProto] = {name: node for node in self.nodes for name in node.output if name}
        self.types: dict[str, int] = {x.name: x.data_type for x in model.graph.initializer}
        """ONNX's number of the element type of every tensor that is known."""
        self.shapes: dict[str, tuple[int | None, ...]] = {x.name: tuple(x.dims) for x in model.graph.initializer}
        """Sides of every tensor that are known."""
        for value in (*graph.input, *graph.value_info, *graph.output):
            tensor = value.type.tensor_type
            self.types[value.name] = tensor.elem_type
            if tensor.HasField("shape"):
                sides = tensor.shape.dim
                self.shapes[value.name] = tuple(x.dim_value if x.HasField("dim_value") else None for x in sides)

    @cached_property
    def consumers(self) -> dict[str, list[NodeProto]]:
        """Who reads each tensor."""
        found: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in filter(None, node.input):
                found.setdefault(name, []).append(node)
        return found

    def kind(self, name: str) -> str:
        """Short name of a tensor's element type, ``?`` where it cannot be known."""
        return TYPE_NAMES.get(self.types.get(name, 0), "?")

    def shape(self, name: str) -> tuple[int | None, ...] | None:
        """A tensor's sides, None for one that is not fixed; None where even their number is unknown."""
        return self.shapes.get(name)

    def constant(self, name: str) -> NDArray[Any] | None:
        """What a tensor holds, where that is written in the graph."""
        from onnx import numpy_helper

        if name in self.initializers:
            return np.asarray(numpy_helper.to_array(self.initializers[name]))
        node = self.producers.get(name)
        if node is None or node.op_type != "Constant":
            return None
        value = attribute(node, "value")
        return None if value is None else np.asarray(numpy_helper.to_array(value))


def _without_weights(model: ModelProto) -> ModelProto:
    """The same graph with large constants as inputs: inference needs their types and shapes only, and copies all."""
    from onnx import helper

    large = [x for x in model.graph.initializer if math.prod(x.dims) > _SMALL]
    graph = helper.make_graph(
        model.graph.node,
        model.graph.name or "graph",
        [*model.graph.input, *(helper.make_tensor_value_info(x.name, x.data_type, x.dims) for x in large)],
        model.graph.output,
        [x for x in model.graph.initializer if math.prod(x.dims) <= _SMALL],
        value_info=model.graph.value_info,
    )
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def free_name(model: ModelProto, wanted: str) -> str:
    """``wanted``, or with a number after it where a tensor or node of the graph is called so already."""
    graph = model.graph
    taken = {x.name for x in (*graph.input, *graph.output, *graph.initializer, *graph.node)}
    taken |= {name for node in graph.node for name in (*node.input, *node.output)}
    name, count = wanted, 1
    while name in taken:
        count += 1
        name = f"{wanted}_{count}"
    return name
