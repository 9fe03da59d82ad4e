"""The step graph in int8 or fp8: post-training quantisation of its inner convolutions, calibrated on real conditions.

Weights are quantised per output channel, activations by the range they take over calibration, asymmetrically: after a
ReLU half of a symmetric range would lie idle. TensorRT knows symmetric ranges only (``symmetric``). Convolutions with
few channels on either side stay as they are: those at full size, which wait for memory and not for arithmetic, and
those that draw flow, where a step of 1/256 of the range is pixels of motion. So does everything else. fp8 (E4M3FN: 3
bits of mantissa, up to 448) is for TensorRT alone and differs from its int8 in number format and scales only;
convolutions whose channels are no multiples of 16 TensorRT may still compute in 16 bits.

Runs without torch.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from export.choose import Probe, roll_out
from export.engines import Array, GraphEngine
from export.graphs import load_graph, save_graph
from export.inputs import StepCondition
from fastv2v.errors import MissingExtraError

if TYPE_CHECKING:
    from onnx import ModelProto

LEAST_CHANNELS = 16
"""Convolutions that take or give fewer channels keep their floating point."""

_LEAST_SCALE = 2.0**-14
_LARGEST = {"int8": 127.0, "fp8": 448.0}
FP8_OPSET = 19
"""The first operator set whose quantisation knows fp8."""
_TENSORRT = {"AddQDQPairToWeight": True, "QuantizeBias": False, "OpTypesToExcludeOutputQuantization": ["Conv"]}

Feeds = Mapping[str, NDArray[Any]]


class _Recorder:
    """An engine that remembers what it was fed."""

    def __init__(self, engine: GraphEngine) -> None:
        self._engine, self.name, self.precision, self.form = engine, engine.name, engine.precision, engine.form
        self.feeds: list[Feeds] = []

    def run(
        self, condition: Array | StepCondition, history_conditions: Array, history_frames: Array, valid: Array
    ) -> dict[str, NDArray[Any]]:
        """See ``StepEngine.run``."""
        feeds = self._engine.feeds(condition, history_conditions, history_frames, valid)
        self.feeds.append({name: x.copy() for name, x in feeds.items()})
        return self._engine.infer(feeds)


def calibration_feeds(engine: GraphEngine, probe: Probe, history_length: int) -> list[Feeds]:
    """What a step sees in use: the probe rolled out from nothing and, where there are real frames, from the first one.

    Args:
        engine: in full precision.
        probe: a clip of the training part.
        history_length: N-1.

    Returns:
        Inputs of every step.
    """
    recorder = _Recorder(engine)
    for seed in [None] if probe.frames is None else [None, probe.frames[0]]:
        for _ in roll_out(recorder, probe.conditions, history_length, seed, probe.points):
            pass
    return recorder.feeds


def quantize_step(
    step: Path,
    out: Path,
    feeds: Sequence[Feeds],
    *,
    least_channels: int = LEAST_CHANNELS,
    symmetric: bool = False,
    kind: Literal["int8", "fp8"] = "int8",
) -> int:
    """Write a quantised copy of a step graph, with the same inputs and outputs in float32.

    Args:
        step: the graph.
        out: file to write; none where nothing is worth quantising.
        feeds: inputs that ranges are taken from.
        least_channels: convolutions with fewer channels on either side are left out.
        symmetric: in the form that TensorRT takes: ranges around 0; a quantising and a dequantising node on input and
            weight of each chosen convolution and nowhere else, so that bias and activation fuse with it; biases in
            floating point; no scale below the smallest normal number of f16.
        kind: number format; fp8 is always symmetric, and raises the operator set to 19.

    Returns:
        How many convolutions were quantised; 0 where there is none, and then nothing is written.

    Raises:
        MissingExtraError: if onnx or onnxruntime is not installed.
    """
    try:
        import onnx
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"int8 needs {error.name}, which comes with the extra export: pip install fastv2v[export]"
        ) from error
    graph = onnx.load(str(step)).graph
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    chosen = [n.name for n in convolutions if min(weights.get(n.input[1], (0, 0))[:2]) >= least_channels]
    if not chosen:
        return 0
    symmetric = symmetric or kind == "fp8"
    names = {value.name for value in graph.input}

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(feeds)

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            feed = next(self._left, None)
            return None if feed is None else {name: x for name, x in feed.items() if name in names}

    options = {"ActivationSymmetric": symmetric, "WeightSymmetric": True, **(_TENSORRT if symmetric else {})}
    with _quiet():
        quantize_static(
            str(step),
            str(out),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["Conv"],
            nodes_to_quantize=chosen,
            extra_options=options,
        )
    if symmetric:
        _tidy(out, kind)
    return len(chosen)


def _tidy(path: Path, kind: str) -> None:
    """Let only quantised convolutions read what was quantised for them; keep scales where f16 has all its digits.

    Weights of a channel whose scale is raised are nothing to the others. For fp8 the same ranges end at 448.
    """
    from onnx import numpy_helper

    model = load_graph(path)
    made_by = {name: node for node in model.graph.node for name in node.output}
    dequantised = {name for name, node in made_by.items() if node.op_type == "DequantizeLinear"}
    for node in model.graph.node:
        if node.op_type == "Conv" and node.input[1] in dequantised:
            continue
        for index, name in enumerate(node.input):
            if name in dequantised:
                node.input[index] = made_by[made_by[name].input[0]].input[0]
    scales = {node.input[1] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    for tensor in model.graph.initializer:
        if tensor.name in scales:
            scale = numpy_helper.to_array(tensor) * np.float32(_LARGEST["int8"] / _LARGEST[kind])
            raised = np.maximum(scale, np.float32(_LEAST_SCALE))
            tensor.CopyFrom(numpy_helper.from_array(raised, tensor.name))
    if kind == "fp8":
        _to_fp8(model)
    save_graph(model, path)


def _to_fp8(model: ModelProto) -> None:
    """Quantise to fp8 what was quantised to int8 around 0: the type of the zero points says to what."""
    from onnx import TensorProto

    graph = model.graph
    quantising = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    zeros = {node.input[2] for node in quantising}
    for tensor in graph.initializer:
        if tensor.name in zeros:
            sides = list(tensor.dims)
            tensor.CopyFrom(
                TensorProto(
                    name=tensor.name, dims=sides, data_type=TensorProto.FLOAT8E4M3FN, raw_data=bytes(math.prod(sides))
                )
            )
    quantised = {node.output[0] for node in quantising if node.op_type == "QuantizeLinear"}
    for value in graph.value_info:
        if value.name in quantised:
            value.type.tensor_type.elem_type = TensorProto.FLOAT8E4M3FN
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = max(entry.version, FP8_OPSET)
    model.ir_version = max(model.ir_version, 9)  # the first that knows the type


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser gives advice on the root logger that does not apply: shapes are fixed and norms are folded."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
