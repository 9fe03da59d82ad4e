"""A stand-in for TensorRT's Python module in two editions, 10 and 11, whose engines run on ONNX Runtime.

Names and parameters are the real ones (tests/test_tensorrt_bindings.py compares them), and so are the manners: what
fails gives None or False and writes to the logger, enums are not Python's, shapes are ``Dims``, an attribute that does
not exist raises. Buffers are read and written at their addresses, so what is bound to the wrong place shows.

``World`` holds what a test may change: the GPU, and faults to play. ``FakeRunner`` stands in for the GPU itself.
"""

from __future__ import annotations

import ctypes
import json
import types
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from export.tensorrt_store import Gpu

VERSIONS = {10: "10.16.1.11", 11: "11.4.0.106"}

ENUMS: dict[str, dict[str, int]] = {
    "DataType": {"FLOAT": 0, "HALF": 1, "INT8": 2, "INT32": 3, "BOOL": 4, "UINT8": 5, "BF16": 7, "INT64": 8},
    "TensorIOMode": {"NONE": 0, "INPUT": 1, "OUTPUT": 2},
    "LayerType": {"CONVOLUTION": 0, "GRID_SAMPLE": 42},
    "InterpolationMode": {"NEAREST": 0, "LINEAR": 1, "CUBIC": 2},
    "SampleMode": {"CLAMP": 2, "FILL": 3, "REFLECT": 4},
    "HardwareCompatibilityLevel": {"NONE": 0, "AMPERE_PLUS": 1, "SAME_COMPUTE_CAPABILITY": 2},
    "MemoryPoolType": {"WORKSPACE": 0},
    "ProfilingVerbosity": {"LAYER_NAMES_ONLY": 0, "NONE": 1, "DETAILED": 2},
    "LayerInformationFormat": {"ONELINE": 0, "JSON": 1},
    "OnnxParserFlag": {"NATIVE_INSTANCENORM": 0},
}
EDITIONS: dict[int, dict[str, dict[str, int]]] = {
    10: {
        "NetworkDefinitionCreationFlag": {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1},
        "BuilderFlag": {"FP16": 0, "INT8": 1, "TF32": 6, "VERSION_COMPATIBLE": 13, "BF16": 17},
    },
    11: {
        "NetworkDefinitionCreationFlag": {"STRONGLY_TYPED": 0},
        "BuilderFlag": {"TF32": 6, "VERSION_COMPATIBLE": 12},
    },
}
KINDS = {np.float32: "FLOAT", np.float16: "HALF", np.int8: "INT8", np.int32: "INT32", np.int64: "INT64"}


@dataclass
class World:
    """What surrounds TensorRT, and what shall go wrong."""

    gpu: str = "Test GPU 1"
    has_driver: bool = True
    faults: dict[str, Any] = field(default_factory=dict)
    """``parse``: an operator that the parser lacks; ``noise``: what outputs are off by; and ``nearest``, ``build``,
    ``deserialize``, ``context``, ``enqueue``, ``capture``, ``address``."""
    calls: list[str] = field(default_factory=list)
    is_capturing: bool = False
    current: int = 0
    """How often the device has been made the current one and not been left."""
    builds: list[dict[str, Any]] = field(default_factory=list)
    """Settings of every build."""


class Enum:
    """As pybind11 makes them: equal by number, never identical by promise."""

    def __init__(self, kind: str, name: str, value: int) -> None:
        self._kind, self.name, self.value = kind, name, value

    def __int__(self) -> int:
        return self.value

    __index__ = __int__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Enum) and (self._kind, self.value) == (other._kind, other.value)

    def __hash__(self) -> int:
        return hash(self.value)


class Dims:
    """Has a length and indices, and no iterator of its own."""

    __slots__ = ("_sides",)

    def __init__(self, shape) -> None:
        self._sides = tuple(int(side) for side in shape)

    def __len__(self) -> int:
        return len(self._sides)

    def __getitem__(self, index):
        return self._sides[index]

    def __eq__(self, other: object) -> bool:
        return self._sides == tuple(other)  # type: ignore[call-overload]

    __hash__ = None  # type: ignore[assignment]


class IHostMemory:
    __slots__ = ("_content",)

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __bytes__(self) -> bytes:
        return self._content

    @property
    def nbytes(self) -> int:
        return len(self._content)


def _header(version: str) -> bytes:
    return b"ftrt" + bytes(20) + bytes(min(int(part), 255) for part in version.split("."))


class FakeRunner:
    """A GPU that is the processor: its graphs do their work again when replayed."""

    device = torch.device("cpu")
    alignment = 8
    handle = 7

    def __init__(self, world: World, capability: tuple[int, int] = (8, 6)) -> None:
        self.world, self.capability, self.driver = world, capability, "580.1"
        self.replays = 0

    @contextmanager
    def on(self):
        self.world.current += 1
        try:
            yield
        finally:
            self.world.current -= 1

    def capture(self, work):
        self.world.is_capturing = True
        try:
            with self.on():
                work()
        except RuntimeError:
            return None
        finally:
            self.world.is_capturing = False

        def replay():
            self.replays += 1
            work()

        return replay

    def wait(self):
        pass

    def describe(self) -> Gpu:
        return Gpu(
            name=self.world.gpu,
            capability=self.capability,
            memory_bytes=8 << 30,
            multiprocessors=30,
            cuda="13.0",
            driver=self.driver,
        )


def make(edition: int, world: World) -> types.ModuleType:
    """The module ``tensorrt`` of an edition, in a world."""
    import onnx
    import onnxruntime

    trt = types.ModuleType("tensorrt")
    trt.__version__ = VERSIONS[edition]
    for name, members in {**ENUMS, **EDITIONS[edition]}.items():
        made = {member: Enum(name, member, number) for member, number in members.items()}
        setattr(trt, name, type(name, (), {"__slots__": (), **made}))

    class ILogger:
        class Severity:
            pass

        def __init__(self) -> None:
            self.is_set_up = True

        def log(self, severity, msg):
            raise NotImplementedError

    for number, name in enumerate(("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")):
        for place in (ILogger, ILogger.Severity):
            setattr(place, name, Enum("Severity", name, number))

    class IProgressMonitor:
        def __init__(self) -> None:
            self.is_set_up = True

        def phase_start(self, phase_name, parent_phase, num_steps):
            raise NotImplementedError

        def step_complete(self, phase_name, step):
            raise NotImplementedError

        def phase_finish(self, phase_name):
            raise NotImplementedError

    def started(what, logger):
        if not getattr(logger, "is_set_up", False):
            raise TypeError("ILogger.__init__() must be called when overriding __init__")
        if not world.has_driver:
            logger.log(ILogger.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        world.calls.append(what)

    class ITensor:
        __slots__ = ("dtype", "name", "shape")

        def __init__(self, value) -> None:
            tensor = value.type.tensor_type
            self.name = value.name
            self.shape = Dims(d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim)
            kind = KINDS[onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).type]
            self.dtype = getattr(trt.DataType, kind)

    class ILayer:
        __slots__ = ("_mode", "name", "type")

        def __init__(self, name, kind, mode) -> None:
            self.name, self.type, self._mode = name, kind, mode

    class IGridSampleLayer(ILayer):
        __slots__ = ()

        @property
        def interpolation_mode(self):
            return self._mode

        @property
        def align_corners(self):
            return True

        @property
        def sample_mode(self):
            return trt.SampleMode.CLAMP

    class INetworkDefinition:
        def __init__(self, logger, flags) -> None:
            self._logger, self._flags = logger, flags
            self._inputs, self._outputs, self._layers, self._model = [], [], [], None

        num_inputs = property(lambda self: len(self._inputs))
        num_outputs = property(lambda self: len(self._outputs))
        num_layers = property(lambda self: len(self._layers))

        def get_input(self, index):
            return self._inputs[index]

        def get_output(self, index):
            return self._outputs[index]

        def get_layer(self, index):
            return self._layers[index]

        def read(self, model):
            self._model = model
            self._inputs = [ITensor(value) for value in model.graph.input]
            self._outputs = [ITensor(value) for value in model.graph.output]
            for node in model.graph.node:
                kind, mode = trt.LayerType.CONVOLUTION, None
                if node.op_type == "GridSample":
                    kind, mode = trt.LayerType.GRID_SAMPLE, trt.InterpolationMode.LINEAR
                    # The real parser compares with the old names only.
                    asked = next((a.s for a in node.attribute if a.name == "mode"), b"bilinear")
                    if asked != b"bilinear" or "nearest" in world.faults:
                        mode = trt.InterpolationMode.NEAREST
                self._layers.append(ILayer(node.name, kind, mode))

    class ParserError:
        __slots__ = ("_desc", "_node", "_op", "_where")

        def __init__(self, node, name, op, desc) -> None:
            self._node, self._where, self._op, self._desc = node, name, op, desc

        def desc(self):
            return self._desc

        def node(self):
            return self._node

        def node_name(self):
            return self._where

        def node_operator(self):
            return self._op

    class OnnxParser:
        def __init__(self, network, logger) -> None:
            self._network, self._logger, self._errors, self._flags = network, logger, [], set()

        num_errors = property(lambda self: len(self._errors))

        def parse(self, model, path=None):
            read = onnx.load_from_string(bytes(model))
            self._errors = [
                ParserError(index, node.name, node.op_type, "no importer registered")
                for index, node in enumerate(read.graph.node)
                if node.op_type == world.faults.get("parse")
            ]
            if self._errors:
                self._logger.log(ILogger.ERROR, "failed to parse")
                return False
            self._network.read(read)
            return True

        def get_error(self, index):
            return self._errors[index]

        def set_flag(self, flag):
            self._flags.add(flag)

    class IOptimizationProfile:
        def __init__(self) -> None:
            self._shapes = {}

        def set_shape(self, input, min, opt, max):
            low, usual, high = tuple(min), tuple(opt), tuple(max)
            if not all(a <= b <= c for a, b, c in zip(low, usual, high, strict=True)):
                raise ValueError("Invalid inputs for set_shape()")
            self._shapes[input] = [low, usual, high]

    class ITimingCache:
        def __init__(self, content) -> None:
            self._content = content

        def serialize(self):
            return IHostMemory(self._content)

    own_cache = f"{VERSIONS[edition]} {world.gpu}".encode

    class IBuilderConfig:
        __slots__ = (
            "_cache",
            "_flags",
            "_pools",
            "_profiles",
            "builder_optimization_level",
            "hardware_compatibility_level",
            "max_aux_streams",
            "profiling_verbosity",
            "progress_monitor",
        )

        def __init__(self) -> None:
            self._flags, self._pools, self._profiles, self._cache = {trt.BuilderFlag.TF32}, {}, [], None
            self.builder_optimization_level, self.max_aux_streams = 3, -1
            self.hardware_compatibility_level = trt.HardwareCompatibilityLevel.NONE
            self.profiling_verbosity = trt.ProfilingVerbosity.LAYER_NAMES_ONLY
            self.progress_monitor = None

        def set_flag(self, flag):
            self._flags.add(flag)

        def clear_flag(self, flag):
            self._flags.discard(flag)

        def get_flag(self, flag):
            return flag in self._flags

        def set_memory_pool_limit(self, pool, pool_size):
            self._pools[pool.name] = pool_size

        def add_optimization_profile(self, profile):
            self._profiles.append(profile)
            return len(self._profiles) - 1

        def create_timing_cache(self, serialized_timing_cache):
            return ITimingCache(bytes(serialized_timing_cache))

        def set_timing_cache(self, cache, ignore_mismatch):
            if cache._content not in (b"", own_cache()) and not ignore_mismatch:
                return False
            self._cache = cache
            return True

        def get_timing_cache(self):
            return self._cache

    class Builder:
        def __init__(self, logger) -> None:
            started("Builder", logger)
            self._logger = logger

        def create_network(self, flags=0):
            return INetworkDefinition(self._logger, flags)

        def create_builder_config(self):
            return IBuilderConfig()

        def create_optimization_profile(self):
            return IOptimizationProfile()

        def build_serialized_network(self, network, config):
            strong = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
            assert edition == 11 or network._flags & strong, "a weakly typed network"
            cached = config._cache is not None and config._cache._content != b""
            world.builds.append(
                {
                    "flags": {flag.name for flag in config._flags},
                    "pools": dict(config._pools),
                    "level": config.builder_optimization_level,
                    "hardware": config.hardware_compatibility_level.name,
                    "cached": cached,
                    "profiles": [p._shapes for p in config._profiles],
                }
            )
            monitor = config.progress_monitor
            if monitor is not None:
                assert monitor.is_set_up
                monitor.phase_start("Building Engine", None, 2)
                for step in range(2):
                    if not monitor.step_complete("Building Engine", step):
                        return None
                monitor.phase_finish("Building Engine")
            if "build" in world.faults:
                self._logger.log(ILogger.ERROR, "Error Code 10: Could not find any implementation for node")
                return None
            config._cache = ITimingCache(own_cache())
            ranges = {name: shapes for profile in config._profiles for name, shapes in profile._shapes.items()}
            about = json.dumps(
                {
                    "gpu": world.gpu,
                    "host_code": config.get_flag(trt.BuilderFlag.VERSION_COMPATIBLE),
                    "any_gpu": config.hardware_compatibility_level.name != "NONE",
                    "ranges": ranges,
                }
            ).encode()
            graph = network._model.SerializeToString()
            return IHostMemory(_header(VERSIONS[edition]) + len(about).to_bytes(4, "little") + about + graph)

    class EngineInspector:
        execution_context = None

        def get_engine_information(self, format):
            return json.dumps({"Layers": []})

    class IExecutionContext:
        def __init__(self, engine, logger) -> None:
            self._engine, self._logger, self._addresses = engine, logger, {}
            self._shapes = {t.name: tuple(t.shape) for t in engine._inputs}

        def set_input_shape(self, name, shape):
            if name not in self._shapes:
                return False
            own = tuple(self._engine.get_tensor_shape(name))
            least, _, most = self._engine.get_tensor_profile_shape(name, 0) if -1 in own else (own, own, own)
            if not all(a <= b <= c for a, b, c in zip(tuple(least), shape, tuple(most), strict=True)):
                self._logger.log(ILogger.ERROR, f"Error Code 3: Static dimension or profile mismatch for {name}")
                return False
            self._shapes[name] = tuple(shape)
            return True

        def get_tensor_shape(self, name):
            if name in self._shapes:
                return Dims(self._shapes[name])
            shape = self._engine.get_tensor_shape(name)
            if -1 not in tuple(shape):
                return shape
            feeds = {t.name: np.zeros(self._shapes[t.name], np.float32) for t in self._engine._inputs}
            return Dims(self._engine._session.run([name], feeds)[0].shape)

        def set_tensor_address(self, name, memory):
            assert isinstance(memory, int) and memory
            if "address" in world.faults:
                self._logger.log(ILogger.ERROR, f"Error Code 3: no tensor {name}")
                return False
            self._addresses[name] = memory
            return True

        def infer_shapes(self):
            return [name for name, shape in self._shapes.items() if -1 in shape]

        def execute_async_v3(self, stream_handle):
            assert stream_handle and world.current, "the default stream, or another's device"
            fault = "capture" if world.is_capturing else "enqueue"
            if fault in world.faults:
                self._logger.log(ILogger.ERROR, f"Error Code 1: Cuda Runtime ({fault})")
                return False
            feeds = {t.name: self._memory(t.name, self._shapes[t.name], t.dtype).copy() for t in self._engine._inputs}
            made = self._engine._session.run(None, feeds)
            for tensor, value in zip(self._engine._outputs, made, strict=True):
                place = self._memory(tensor.name, value.shape, tensor.dtype)
                place[...] = value
                noise = world.faults.get("noise", {})
                if place.dtype == np.float32:
                    place += np.float32(noise.get(tensor.name, noise.get("*", 0)))
            world.calls.append("captured" if world.is_capturing else "executed")
            return True

        def _memory(self, name, shape, dtype):
            kind = next(np.dtype(k) for k, word in KINDS.items() if word == dtype.name)
            count = int(np.prod(shape)) * kind.itemsize
            raw = (ctypes.c_char * count).from_address(self._addresses[name])
            return np.frombuffer(raw, dtype=kind).reshape(shape)

    class ICudaEngine:
        device_memory_size_v2 = 1 << 20

        def __init__(self, about, graph, logger) -> None:
            model = onnx.load_from_string(graph)
            self._logger, self._ranges = logger, about["ranges"]
            self._inputs = [ITensor(value) for value in model.graph.input]
            self._outputs = [ITensor(value) for value in model.graph.output]
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            options.log_severity_level = 3
            self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

        num_io_tensors = property(lambda self: len(self._inputs) + len(self._outputs))

        def _tensor(self, name):
            return next(t for t in self._inputs + self._outputs if t.name == name)

        def get_tensor_name(self, index):
            return (self._inputs + self._outputs)[index].name

        def get_tensor_mode(self, name):
            is_input = any(t.name == name for t in self._inputs)
            return trt.TensorIOMode.INPUT if is_input else trt.TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name):
            return self._tensor(name).dtype

        def get_tensor_shape(self, name):
            return self._tensor(name).shape

        def get_tensor_profile_shape(self, name, profile_index):
            return [Dims(shape) for shape in self._ranges[name]]

        def create_execution_context(self):
            if "context" in world.faults:
                self._logger.log(ILogger.ERROR, "Error Code 2: OutOfMemory")
                return None
            return IExecutionContext(self, self._logger)

        def create_engine_inspector(self):
            return EngineInspector()

    class Runtime:
        def __init__(self, logger) -> None:
            started("Runtime", logger)
            self._logger, self.engine_host_code_allowed = logger, False

        def deserialize_cuda_engine(self, serialized_engine):
            content = bytes(serialized_engine)
            size = int.from_bytes(content[28:32], "little")
            about = json.loads(content[32 : 32 + size])
            reason = None
            if "deserialize" in world.faults:
                reason = "Version tag does not match"
            elif content[:28] != _header(VERSIONS[edition]) and not about["host_code"]:
                reason = "The engine plan file is not compatible with this version of TensorRT"
            elif about["host_code"] and not self.engine_host_code_allowed:
                reason = "Cannot deserialize engine with lean runtime; engine_host_code_allowed is false"
            elif about["gpu"] != world.gpu and not about["any_gpu"]:
                reason = "The engine plan file is generated on an incompatible device"
            if reason is not None:
                self._logger.log(ILogger.ERROR, reason)
                return None
            assert world.current, "a plan is loaded onto whatever device is the current one"
            world.calls.append("deserialized")
            return ICudaEngine(about, content[32 + size :], self._logger)

    for made in list(locals().values()):
        if isinstance(made, type) and made is not types.ModuleType:
            setattr(trt, made.__name__, made)
    trt.Dims, trt.IHostMemory = Dims, IHostMemory
    return trt
