"""A bundle that is made without torch and without ``onnx``: its graphs are written as protobuf bytes by hand.

So the runtime can be tested where there is nothing but numpy, OpenCV, pytest and one engine (scripts/test_runtime.sh).
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from export.bundle import Cost, Manifest, Parity, write_bundle
from export.engines import WARP_SELF_TEST
from export.inputs import PLAIN
from fastv2v.data.conditions import ConditionSpec

SIZE = (16, 24)
SPEC = ConditionSpec(class_names=("road", "car", "tree", "sky"))
PALETTE = ((128, 64, 128), (220, 20, 60), (70, 70, 70), (70, 130, 180))


def manifest(gap: int = 4, **changes) -> Manifest:
    values = {
        "name": "tiny",
        "task": "street",
        "condition": SPEC,
        "size": SIZE,
        "history_length": 2,
        "keyframes": {"policy": "uniform", "gap": gap},
        "interpolation": {"method": "blend"},
        "fps": 17.0,
        "parity": Parity(max_abs_diff=2e-6, frames=12),
        "cost": Cost(
            macs_per_keyframe=1e6, macs_per_frame=2.5e5, output_position_macs_per_keyframe=2e6, parameters=1000
        ),
    }
    return Manifest(**values | changes)


def label_maps(num_frames: int, seed: int = 0) -> list[np.ndarray]:
    blocks = np.random.default_rng(seed).integers(0, 4, (num_frames, 2, 3), dtype=np.uint8)
    return list(blocks.repeat(8, 1).repeat(8, 2))


class FakeEngine:
    """Fades from its last frame towards a colour of the condition; records what it was asked."""

    name, precision, form = "fake", "f32", PLAIN

    def __init__(self, fail_at: int = -1, delay_s: float = 0.0) -> None:
        self.fail_at, self.delay_s = fail_at, delay_s
        self.calls: list[tuple[np.ndarray, ...]] = []
        self.threads: set[int] = set()

    def run(self, condition, history_conditions, history_frames, valid):
        condition = condition.inputs["condition"]
        self.threads.add(threading.get_ident())
        if len(self.calls) == self.fail_at:
            raise RuntimeError("out of coffee")
        time.sleep(self.delay_s)
        self.calls.append(tuple(x.copy() for x in (condition, history_conditions, history_frames, valid)))
        target = np.tanh(condition[:, :3] + 0.3 * history_conditions[:, 0, :3] - 0.5)
        return {"frame": (0.5 * history_frames[:, -1] + 0.5 * target).astype(np.float32)}


# What follows writes the protobuf wire format: a key (field number and kind), then a varint, four bytes, or a length
# and that many bytes. Numbers of fields are those of onnx.proto.

_VARINT, _BYTES, _FOUR_BYTES = 0, 2, 5
_FLOAT, _INT64 = 1, 7  # kinds of tensors


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | float | str | bytes) -> bytes:
    """One field of a message."""
    if isinstance(value, int):
        return _varint(number << 3 | _VARINT) + _varint(value)
    if isinstance(value, float):
        return _varint(number << 3 | _FOUR_BYTES) + struct.pack("<f", value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | _BYTES) + _varint(len(data)) + data


def fields(number: int, values: Sequence[int | float | str | bytes]) -> bytes:
    """A repeated field."""
    return b"".join(field(number, value) for value in values)


def _attribute(name: str, value: int | str | Sequence[int]) -> bytes:
    if isinstance(value, int):
        return field(1, name) + field(3, value) + field(20, 2)
    if isinstance(value, str):
        return field(1, name) + field(4, value) + field(20, 3)
    return field(1, name) + fields(8, value) + field(20, 7)


def node(op: str, inputs: Sequence[str], output: str, **attributes: int | str | Sequence[int]) -> bytes:
    """A NodeProto."""
    made = [_attribute(name, value) for name, value in attributes.items()]
    return fields(1, inputs) + field(2, output) + field(4, op) + fields(5, made)


def constant(name: str, array: np.ndarray) -> bytes:
    """A TensorProto."""
    kind = _INT64 if array.dtype == np.int64 else _FLOAT
    return fields(1, array.shape) + field(2, kind) + field(8, name) + field(9, array.tobytes())


def _value(name: str, shape: Sequence[int]) -> bytes:
    """A ValueInfoProto of floats."""
    dims = b"".join(field(1, field(1, side)) for side in shape)
    return field(1, name) + field(2, field(1, field(1, _FLOAT) + field(2, dims)))


def model(
    nodes: Sequence[bytes],
    constants: Sequence[bytes],
    inputs: Mapping[str, Sequence[int]],
    outputs: Mapping[str, Sequence[int]],
) -> bytes:
    """A ModelProto, IR version 8, operator set 18."""
    ends = [[_value(name, shape) for name, shape in side.items()] for side in (inputs, outputs)]
    graph = fields(1, nodes) + field(2, "graph") + fields(5, constants) + fields(11, ends[0]) + fields(12, ends[1])
    return field(1, 8) + field(8, field(1, "") + field(2, 18)) + field(7, graph)


_RNG = np.random.default_rng(7)
WEIGHT = _RNG.normal(0, 0.4, (3, 11, 3, 3)).astype(np.float32)
BIAS = _RNG.normal(0, 0.2, 3).astype(np.float32)


def step_graph() -> bytes:
    """A convolution of the condition, the oldest past one and the last frame, halfway mixed with that frame."""
    height, width = SIZE
    nodes = [
        node("Gather", ["history_conditions", "oldest"], "past", axis=1),
        node("Gather", ["history_frames", "newest"], "last", axis=1),
        node("Mul", ["last", "valid"], "known"),
        node("Concat", ["condition", "past", "known"], "seen", axis=1),
        node("Conv", ["seen", "weight", "bias"], "drawn", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("Tanh", ["drawn"], "target"),
        node("Add", ["known", "target"], "sum"),
        node("Mul", ["sum", "half"], "frame"),
    ]
    constants = [
        constant("oldest", np.array(0, np.int64)),
        constant("newest", np.array(1, np.int64)),
        constant("weight", WEIGHT),
        constant("bias", BIAS),
        constant("half", np.array(0.5, np.float32)),
    ]
    inputs = {
        "condition": (1, 4, height, width),
        "history_conditions": (1, 2, 4, height, width),
        "history_frames": (1, 2, 3, height, width),
        "valid": (1,),
    }
    return model(nodes, constants, inputs, {"frame": (1, 3, height, width)})


def step_in_numpy(condition, history_conditions, history_frames, valid):
    """What ``step_graph`` computes, worked out in double precision."""
    known = history_frames[:, 1].astype(float) * valid
    seen = np.concatenate([condition, history_conditions[:, 0], known], axis=1)[0]
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(seen, ((0, 0), (1, 1), (1, 1))), (3, 3), axis=(1, 2))
    drawn = np.einsum("chwyx,ocyx->ohw", windows, WEIGHT.astype(float)) + BIAS[:, None, None]
    return (known + np.tanh(drawn)[None]) / 2


def self_test_graph(mode: str = "bilinear") -> bytes:
    """The half-pixel warp that engines must pass."""
    case = WARP_SELF_TEST
    warp = node("GridSample", ["image", "grid"], "warped", mode=mode, padding_mode="border", align_corners=1)
    return model([warp], [], {"image": case.image.shape, "grid": case.grid.shape}, {"warped": case.warped.shape})


def write_tiny(folder: Path, **changes) -> Path:
    """Write ``folder`` (NAME.v2v) from the hand-written graphs; ``changes`` are fields of its manifest."""
    graphs = {"step.onnx": step_graph(), "selftest.onnx": self_test_graph()}
    scratch = folder.with_suffix(".graphs")
    scratch.mkdir()
    for name, content in graphs.items():
        (scratch / name).write_bytes(content)
    write_bundle(folder, manifest(**changes), {name: scratch / name for name in graphs})
    return folder
