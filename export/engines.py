"""Engines that run a step graph on arrays, and the list of all engines by name. Runs without torch.

Engines for GPUs live in files of their own, which are imported when one is asked for. Every engine samples a half-pixel
warp before it is used: engines have been known to sample the nearest pixel without a word, and no shape check notices.
"""

from __future__ import annotations

import functools
import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from export.bundle import INT8_GRAPH, SELF_TEST, STEP_GRAPH, TORCH_WEIGHTS
from export.inputs import ConditionForm, StepCondition, average, form_of, from_encoded
from fastv2v.environment import describe_machine, has_fast_bf16, package_version, torch_cuda
from fastv2v.errors import BundleError, ConfigError, MissingExtraError, ShapeError

STEP_INPUTS = ("condition", "history_conditions", "history_frames", "valid")
STEP_OUTPUTS = ("frame", "hallucinated", "flow", "occlusion")

Array = NDArray[np.float32]
INT8 = "int8"
"""Precision of engines that run the graph with quantised convolutions."""


class StepEngine(Protocol):
    """One step of a generator on arrays, batch 1, float32."""

    name: str
    """Name of the engine, as in ``ENGINES``."""
    precision: str
    """Number format it computes in, as the engine names it."""

    @property
    def form(self) -> ConditionForm:
        """How its graph wants conditions."""
        ...

    def run(
        self, condition: Array | StepCondition, history_conditions: Array, history_frames: Array, valid: Array
    ) -> dict[str, NDArray[Any]]:
        """Synthesise one frame.

        Args:
            condition: made for ``form``; or all channels at full size, (1, C, H, W), which may have to be converted.
            history_conditions: what ``StepCondition.past`` was, (1, N-1, C, h, w), oldest first; or at full size.
            history_frames: (1, N-1, 3, H, W) in [-1, 1].
            valid: (1,), 0 where there is no past frame yet.

        Returns:
            ``frame`` and those of ``hallucinated``, ``flow`` and ``occlusion`` the graph has, the caller's to keep.

        Raises:
            ShapeError: if an input does not have the shape of the graph.
        """
        ...


class OpenedEngine(StepEngine, Protocol):
    """A step engine that says where it runs."""

    @property
    def where(self) -> str:
        """For messages: ``with 2 threads``, ``on NVIDIA L4``."""
        ...


class GraphEngine(ABC):
    """A graph file opened in one engine.

    Args:
        path: an ONNX file.
        threads: CPU threads; None takes all this process may use.
        precision: number format to compute in.

    Raises:
        BundleError: if the file cannot be opened, or this processor lacks the precision.
        ConfigError: if the engine does not know the precision or threads is below 1.
        MissingExtraError: if the engine is not installed.
    """

    name: str
    precisions: tuple[str, ...]

    def __init__(self, path: Path, threads: int | None = None, precision: str = "f32") -> None:
        if precision not in self.precisions:
            raise ConfigError(f"{self.name} runs in {' or '.join(self.precisions)}, not in {precision!r}")
        if threads is not None and threads < 1:
            raise ConfigError(f"threads must be at least 1, got {threads}")
        if not Path(path).is_file():
            raise BundleError(f"{path} is missing; export it first")
        self.path = Path(path)
        self.threads = threads or this_machine()["cores"]
        self.precision = precision
        self.shapes: dict[str, tuple[int, ...]] = {}
        """Shape of every input of the graph."""

    @abstractmethod
    def infer(self, feeds: Mapping[str, Array]) -> dict[str, NDArray[Any]]:
        """Run the graph on all its inputs, by name; give all its outputs, by name."""

    @functools.cached_property
    def form(self) -> ConditionForm:
        """See ``StepEngine.form``."""
        return form_of(self.shapes)

    @property
    def where(self) -> str:
        """See ``OpenedEngine.where``."""
        return f"with {self.threads} threads"

    def feeds(
        self, condition: Array | StepCondition, history_conditions: Array, history_frames: Array, valid: Array
    ) -> dict[str, NDArray[Any]]:
        """The inputs of the graph by name, from what ``run`` takes.

        Raises:
            BundleError: if this is no step graph.
            ShapeError: if an input does not have the shape of the graph.
        """
        if not isinstance(condition, StepCondition):
            condition = from_encoded(self.form, condition[0])
        if history_conditions.shape[-2:] == history_frames.shape[-2:]:
            history_conditions = average(history_conditions, self.form.scale)
        past = dict(zip(STEP_INPUTS[1:], (history_conditions, history_frames, valid), strict=True))
        given = {**condition.inputs, **past}
        if unknown := self.shapes.keys() - given.keys():
            raise BundleError(f"{self.path} is not a step graph: it asks for {', '.join(sorted(unknown))}")
        for name, shape in self.shapes.items():
            if given[name].shape != shape:
                raise ShapeError(f"{name} has shape {given[name].shape} and {self.path.name} was exported for {shape}")
        return {name: np.ascontiguousarray(given[name]) for name in self.shapes}

    def run(
        self, condition: Array | StepCondition, history_conditions: Array, history_frames: Array, valid: Array
    ) -> dict[str, NDArray[Any]]:
        """See ``StepEngine.run``."""
        return self.infer(self.feeds(condition, history_conditions, history_frames, valid))


class OnnxRuntimeEngine(GraphEngine):
    """ONNX Runtime on the CPU: runs everywhere, and in float32 is what the others are measured against.

    ``int8`` is a property of the graph it is given; the rest of that graph runs in float32.
    """

    name = "onnxruntime"
    precisions = ("f32", "int8")

    def __init__(self, path: Path, threads: int | None = None, precision: str = "f32") -> None:
        super().__init__(path, threads, precision)
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise MissingExtraError("ONNX Runtime is not installed: pip install onnxruntime") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                os.fspath(path), sess_options=options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its errors share no base of their own below Exception
            raise BundleError(
                f"ONNX Runtime cannot open {path}: {_first_line(error)}; export it again, or update onnxruntime"
            ) from error
        self.shapes = {value.name: tuple(value.shape) for value in self._session.get_inputs()}
        self._outputs = [value.name for value in self._session.get_outputs()]

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, NDArray[Any]]:
        """See ``GraphEngine.infer``."""
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(feeds)), strict=True))


_CORES: list[Any] = []


def openvino_core() -> Any:
    """OpenVINO's core, one for the whole process and never let go.

    Its CPU plugin puts an alternate signal stack under the thread that loads it and frees that memory with the core, in
    whichever thread drops it last. The loading thread then keeps a stack that is gone, and the next signal kills the
    process: one from a program that has ended is enough where a data loader with workers has asked to hear of it.

    Raises:
        MissingExtraError: if OpenVINO is not installed.
    """
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise MissingExtraError("OpenVINO is not installed: pip install openvino") from error
    if not _CORES:
        _CORES.append(openvino.Core())
    return _CORES[0]


class OpenVINOEngine(GraphEngine):
    """OpenVINO on the CPU. ``bf16`` only where the processor computes in it; elsewhere it would be emulated.

    ``int8`` is a property of the graph it is given; the rest of that graph runs in float32.
    """

    name = "openvino"
    precisions = ("f32", "bf16", "f16", "int8")

    def __init__(self, path: Path, threads: int | None = None, precision: str = "f32") -> None:
        super().__init__(path, threads, precision)
        openvino_core()
        if precision == "bf16" and not has_fast_bf16():
            raise BundleError(
                f"this processor ({this_machine()['cpu']}) has neither amx_bf16 nor avx512_bf16; choose precision f32"
            )
        hint = "f32" if precision == INT8 else precision
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": self.threads,
            # Stated even for f32: left alone, the CPU plugin takes bf16 wherever it can.
            "INFERENCE_PRECISION_HINT": hint,
        }
        try:
            compiled = openvino_core().compile_model(os.fspath(path), "CPU", settings)
        except RuntimeError as error:
            raise BundleError(
                f"OpenVINO cannot open {path}: {_last_line(error)}; export it again, or update openvino"
            ) from error
        taken = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if taken != hint:  # f16 becomes bf16 on some processors, without a word
            raise BundleError(f"OpenVINO computes in {taken} on this processor when asked for {hint}; choose that")
        self.shapes = {value.get_any_name(): tuple(value.shape) for value in compiled.inputs}
        self._outputs = [value.get_any_name() for value in compiled.outputs]
        self._request = compiled.create_infer_request()

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, NDArray[Any]]:
        """See ``GraphEngine.infer``."""
        # Inputs are read in place, which is safe because the call returns only when it is done; outputs are copied
        # because the next call overwrites them.
        self._request.infer(dict(feeds), share_inputs=True)
        return {name: self._request.get_tensor(name).data.copy() for name in self._outputs}


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _last_line(error: Exception) -> str:
    """OpenVINO puts source positions first and the reason last."""
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__


ENGINES: Mapping[str, type[GraphEngine]] = {
    OnnxRuntimeEngine.name: OnnxRuntimeEngine,
    OpenVINOEngine.name: OpenVINOEngine,
}
"""Engines of the CPU."""


class GpuEngine(NamedTuple):
    """An engine for GPUs by the place of its code."""

    opener: str
    """``module:function``, imported when the engine is asked for. Called with the bundle's folder, a precision and a
    number of CPU threads or None; gives an ``OpenedEngine`` that has passed the half-pixel warp, or raises a
    BundleError or MissingExtraError whose one sentence names what is missing and how to get it."""
    precisions: tuple[str, ...]
    """Number formats it knows."""
    package: str
    """The Python package it cannot do without."""
    measured: tuple[str, ...] = ()
    """The precisions that are worth measuring, where a bundle holds no engines built for it."""
    part: str | None = None
    """A file of the bundle that it cannot do without; None where the step graph is enough."""
    step_opener: str | None = None
    """``module:function`` like ``opener``, for ``export.device_stream``. Called with the bundle's folder, a precision
    and a torch device; gives an ``export.device_step.DeviceStep``. None where there is none."""
    built: str | None = None
    """``module:function`` where it runs what was built into a bundle before. Called with the bundle's folder; gives the
    precisions that are there, the preferred one first. Its openers also take ``host_code``: whether what was built may
    bring code of its own for the CPU."""


ONNXRUNTIME_GPU_INSTALL = "pip uninstall onnxruntime; pip install 'onnxruntime-gpu[cuda,cudnn]'"
"""The command that puts the build for GPUs in the place of the one for CPUs; both are the module onnxruntime."""
TENSORRT_INSTALL = (
    "pip install 'fastv2v[tensorrt]' (CUDA 13; 'fastv2v[tensorrt-cu12]' where torch is built for CUDA 12)"
)
"""The command that brings TensorRT."""
PROVIDERS = {"onnxruntime-cuda": "CUDAExecutionProvider", "onnxruntime-tensorrt": "TensorrtExecutionProvider"}
"""What ONNX Runtime calls the way to a GPU that an engine takes."""
_TORCH_PRECISIONS = ("f32", "tf32", "bf16", "f16")
GPU_ENGINES: Mapping[str, GpuEngine] = {
    "torch": GpuEngine(
        "export.torch_engine:open_torch",
        _TORCH_PRECISIONS,
        "torch",
        ("tf32", "bf16", "f16"),
        TORCH_WEIGHTS,
        "export.torch_engine:open_torch_step",
    ),
    "torch-compiled": GpuEngine(
        "export.torch_engine:open_compiled",
        _TORCH_PRECISIONS,
        "torch",
        ("bf16", "f16"),
        TORCH_WEIGHTS,
        "export.torch_engine:open_compiled_step",
    ),
    "onnxruntime-cuda": GpuEngine("export.onnxruntime_gpu:open_cuda", ("f32", "tf32"), "onnxruntime", ("tf32",)),
    "onnxruntime-tensorrt": GpuEngine(
        "export.onnxruntime_gpu:open_tensorrt", ("tf32", "bf16", "f16"), "onnxruntime", ("f16",)
    ),
    "tensorrt": GpuEngine(
        "export.tensorrt_engine:open_tensorrt",
        ("f16", "bf16", "f32", "int8", "fp8"),
        "tensorrt",
        built="export.tensorrt_store:built_precisions",
        step_opener="export.tensorrt_engine:open_step",
    ),
}
"""Engines of GPUs. torch also runs on a CPU, where it is asked for by name."""
DEVICE_ENGINES = tuple(name for name, engine in GPU_ENGINES.items() if engine.step_opener is not None)
"""Those that can keep history and frames on the GPU."""

AUTO = "auto"
"""In the place of an engine's name: choose by measurement."""


class Candidate(NamedTuple):
    """An engine and the number format to run it in."""

    engine: str
    precision: str

    def __str__(self) -> str:
        return f"{self.engine} {self.precision}"


REFERENCE = Candidate("onnxruntime", "f32")
"""What other candidates are compared with."""


def available_engines() -> tuple[str, ...]:
    """Names of the engines installed here, without importing them."""
    return tuple(name for name in ENGINES if find_spec(name) is not None)


def available_candidates(folder: Path | None = None) -> tuple[Candidate, ...]:
    """What is worth measuring here. OpenVINO's f16 is not: CPUs emulate it, slower than f32, or take bf16 instead.

    Args:
        folder: a bundle; int8 is among them where it holds the graph for it, and the engines of GPUs where this machine
            has one and the bundle what they need. Without it only those that open any graph are named.
    """
    candidates = [REFERENCE, Candidate("openvino", "f32")]
    if has_fast_bf16():
        candidates.append(Candidate("openvino", "bf16"))
    if folder is not None and (folder / INT8_GRAPH).is_file():
        candidates += [Candidate("onnxruntime", INT8), Candidate("openvino", INT8)]
    here = [c for c in candidates if c.engine in available_engines()]
    return tuple(here if folder is None else [*here, *_gpu_candidates(folder)])


def _gpu_candidates(folder: Path) -> list[Candidate]:
    """Engines of GPUs that may run this bundle here; whether they do shows when they are opened."""
    if this_machine()["gpu"] is None:
        return []
    return [
        Candidate(name, precision)
        for name, engine in GPU_ENGINES.items()
        if find_spec(engine.package) is not None and (engine.part is None or any(folder.glob(engine.part)))
        for precision in (engine.measured if engine.built is None else built_precisions(name, folder))
    ]


def built_precisions(name: str, folder: Path) -> tuple[str, ...]:
    """The precisions of an engine that were built into a bundle, the preferred one first; none for one not built."""
    place = GPU_ENGINES[name].built if name in GPU_ENGINES else None
    if place is None:
        return ()
    module, function = place.split(":")
    found: tuple[str, ...] = getattr(importlib.import_module(module), function)(Path(folder))
    return found


class EngineReport(NamedTuple):
    """Whether an engine can be expected to run here."""

    name: str
    """As in ``ENGINES`` and ``GPU_ENGINES``."""
    runs: bool
    """Whether what it needs is here. That it really runs a bundle shows when it opens one."""
    reason: str
    """What is here, or what is missing."""
    install: str | None = None
    """How to get what is missing."""


def survey_engines() -> list[EngineReport]:
    """Every engine and whether this machine has what it needs. Imports ONNX Runtime and no other engine."""
    reports = []
    for name in (*ENGINES, *GPU_ENGINES):
        package = GPU_ENGINES[name].package if name in GPU_ENGINES else name
        version = package_version(package)
        if version is None:
            reports.append(
                EngineReport(name, False, f"{package} is not installed", _INSTALLS.get(name, f"pip install {name}"))
            )
        elif name in ENGINES:
            reports.append(EngineReport(name, True, f"{version}, on the CPU"))
        else:
            reports.append(_survey_gpu_engine(name, package, version))
    return reports


_INSTALLS = {
    "torch": "pip install torch",
    "torch-compiled": "pip install torch",
    "onnxruntime-cuda": ONNXRUNTIME_GPU_INSTALL,
    "onnxruntime-tensorrt": ONNXRUNTIME_GPU_INSTALL,
    "tensorrt": TENSORRT_INSTALL,
}
_CUDA_TORCH = "the CUDA build of torch: https://pytorch.org/get-started/locally"
_DRIVER = "a machine with an NVIDIA GPU and its driver (nvidia-smi then lists the GPU)"


def _survey_gpu_engine(name: str, package: str, version: str) -> EngineReport:
    """An engine of GPUs whose package is installed."""
    gpu = this_machine()["gpu"]
    if package == "torch":
        if gpu is None:
            return EngineReport(name, True, f"{version}, on the CPU alone: no NVIDIA GPU", _DRIVER)
        if torch_cuda() is None:
            return EngineReport(name, True, f"{version}, on the CPU alone: built without CUDA", _CUDA_TORCH)
        return EngineReport(name, True, f"{version} for CUDA {torch_cuda()}, on {gpu}")
    if gpu is None:
        return EngineReport(name, False, f"{package} {version} is installed, and there is no NVIDIA GPU", _DRIVER)
    if package == "onnxruntime":
        import onnxruntime

        if (provider := PROVIDERS[name]) not in onnxruntime.get_available_providers():
            return EngineReport(name, False, f"this onnxruntime {version} has no {provider}", _INSTALLS[name])
    if package == "tensorrt" and torch_cuda() is None:  # torch holds its buffers
        return EngineReport(name, False, f"{package} {version} is installed, and no torch built for CUDA", _CUDA_TORCH)
    return EngineReport(name, True, f"{package} {version}, on {gpu}")


def engine_precisions(name: str) -> tuple[str, ...]:
    """The number formats of an engine.

    Raises:
        ConfigError: if there is no engine of this name.
    """
    if name in ENGINES:
        return ENGINES[name].precisions
    if name in GPU_ENGINES:
        return GPU_ENGINES[name].precisions
    raise ConfigError(f"there is no engine {name!r}; choose from {', '.join((*ENGINES, *GPU_ENGINES))}")


def parse_engine(text: str) -> tuple[str, str | None]:
    """Take ``NAME`` or ``NAME:PRECISION`` apart; ``auto`` is a name.

    Returns:
        The engine's name, and the precision or None.

    Raises:
        ConfigError: if there is no such engine, or it does not know the precision.
    """
    name, colon, precision = text.partition(":")
    if name == AUTO:
        if colon:
            raise ConfigError(
                f"{text!r}: auto chooses the precision too; name an engine or leave {colon + precision} out"
            )
        return AUTO, None
    known = engine_precisions(name)
    if colon and precision not in known:
        raise ConfigError(f"{name} runs in {' or '.join(known)}, not in {precision!r}")
    return name, precision or None


@functools.cache
def this_machine() -> Mapping[str, Any]:
    """``fastv2v.environment.describe_machine``, asked once: it may start other programs."""
    return describe_machine()


def open_engine(candidate: Candidate, path: Path, threads: int | None = None) -> GraphEngine:
    """Open a graph in the named engine.

    Raises:
        ConfigError: if there is no engine of this name.
        BundleError: if it cannot open the graph.
        MissingExtraError: if it is not installed.
    """
    if candidate.engine not in ENGINES:
        engine_precisions(candidate.engine)  # which says so where there is none
        raise ConfigError(f"{candidate.engine} opens whole bundles, no single graph; choose from {', '.join(ENGINES)}")
    return ENGINES[candidate.engine](path, threads, candidate.precision)


def open_tested_engine(
    candidate: Candidate, folder: Path, threads: int | None = None, *, host_code: bool = False
) -> OpenedEngine:
    """Open a bundle's step in an engine that has passed the half-pixel warp.

    Args:
        candidate: which engine, in which precision.
        folder: the bundle.
        threads: CPU threads, None for all.
        host_code: let an engine that was built into the bundle bring code of its own; nothing to any other.

    Raises:
        BundleError: if the engine cannot open the graphs, or warps wrongly.
        ConfigError: if there is no such engine or precision.
        MissingExtraError: if it is not installed.
    """
    folder = Path(folder)
    if candidate.engine in GPU_ENGINES:
        return _open_gpu_engine(candidate, folder, threads, host_code=host_code)
    check_warp(open_engine(candidate, folder / SELF_TEST, 1))
    graph = INT8_GRAPH if candidate.precision == INT8 else STEP_GRAPH
    return open_engine(candidate, folder / graph, threads)


def _open_gpu_engine(candidate: Candidate, folder: Path, threads: int | None, *, host_code: bool) -> OpenedEngine:
    engine = GPU_ENGINES[candidate.engine]
    opener: Callable[..., OpenedEngine] = _gpu_function(candidate, engine.opener)
    return opener(folder, candidate.precision, threads, **_host_code(engine, host_code))


def _host_code(engine: GpuEngine, host_code: bool) -> dict[str, bool]:
    return {"host_code": host_code} if engine.built is not None else {}


def open_device_step(candidate: Candidate, folder: Path, device: Any, *, host_code: bool = False) -> Any:
    """Open a bundle's step so that its history stays on a device.

    Args:
        candidate: which engine, in which precision.
        folder: the bundle.
        device: a ``torch.device``.
        host_code: see ``open_tested_engine``.

    Returns:
        An ``export.device_step.DeviceStep`` (not named here: this module knows no torch).

    Raises:
        BundleError: if it cannot run there.
        ConfigError: if there is no such engine or precision, or the engine keeps nothing on a device.
        MissingExtraError: if it is not installed.
    """
    engine_precisions(candidate.engine)  # refuses an engine there is not
    engine = GPU_ENGINES.get(candidate.engine)
    if engine is None or engine.step_opener is None:
        raise ConfigError(
            f"{candidate.engine} keeps no frames on a device; with a device choose from {', '.join(DEVICE_ENGINES)}"
        )
    open_step = _gpu_function(candidate, engine.step_opener)
    return open_step(Path(folder), candidate.precision, device, **_host_code(engine, host_code))


def _gpu_function(candidate: Candidate, place: str) -> Callable[..., Any]:
    """``module:function`` of an engine of GPUs, imported."""
    parse_engine(f"{candidate.engine}:{candidate.precision}")  # refuses a precision it does not know
    module, function = place.split(":")
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        if error.name != GPU_ENGINES[candidate.engine].package:
            raise
        raise MissingExtraError(f"{candidate.engine} needs {error.name}: pip install {error.name}") from error
    return found


@contextmanager
def offering_the_cpu(engine: str) -> Iterator[None]:
    """Within: where an engine of GPUs cannot run, the error also says which engine of the CPU can.

    Args:
        engine: its name.
    """
    try:
        yield
    except (BundleError, MissingExtraError) as error:
        others = available_engines()
        if engine in ENGINES or not others:
            raise
        raise type(error)(f"{error}; meanwhile --engine {others[-1]} runs here, on the CPU") from error


@dataclass(frozen=True)
class WarpCase:
    """A picture, where to sample it, and what bilinear sampling gives."""

    image: Array
    """(1, 1, H, W)."""
    grid: Array
    """(1, H, W, 2): x then y, -1 and 1 are the centres of the outermost pixels."""
    warped: Array
    """(1, 1, H, W)."""


def _half_pixel_case() -> WarpCase:
    """A ramp of 1 per column and 4 per row, sampled half a pixel right and down.

    Inside, that adds 0.5 + 2. Past the last column only 2 is left to add, past the last row only 0.5, past both 0.
    Nearest sampling gives whole numbers, corners not aligned give other fractions, zero padding darkens the border.
    All values are exact in bfloat16.
    """
    height, width = 2, 4
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    grid = np.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], axis=-1)
    image = np.arange(height * width).reshape(1, 1, height, width)
    warped = [[2.5, 3.5, 4.5, 5.0], [4.5, 5.5, 6.5, 7.0]]
    return WarpCase(
        image.astype(np.float32), grid[None].astype(np.float32), np.array(warped, dtype=np.float32)[None, None]
    )


WARP_SELF_TEST = _half_pixel_case()
_WARP_TOLERANCE = 0.05
"""Far above bfloat16's rounding of the grid (0.01 here), far below the 0.5 of nearest sampling."""


def check_warp(engine: GraphEngine) -> None:
    """Refuse an engine that samples between pixels wrongly.

    Args:
        engine: opened on ``selftest.onnx``.

    Raises:
        BundleError: if the half-pixel warp differs from the value worked out by hand.
    """
    case = WARP_SELF_TEST
    (warped,) = engine.infer({"image": case.image, "grid": case.grid}).values()
    check_warped(warped, f"{engine.name} {engine.precision}")


def check_warped(warped: Array, who: str) -> None:
    """Refuse what an engine made of ``WARP_SELF_TEST`` where it differs from the value worked out by hand.

    Args:
        warped: (1, 1, H, W).
        who: engine and precision, for the message.

    Raises:
        BundleError: if it is off by more than rounding.
    """
    error = float(np.abs(warped.astype(np.float32) - WARP_SELF_TEST.warped).max())
    if not error <= _WARP_TOLERANCE:
        raise BundleError(
            f"{who} warps wrongly here (off by {error:.2f} on a half-pixel shift, as nearest sampling would be); "
            "choose another engine or update it"
        )
