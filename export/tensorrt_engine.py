"""A TensorRT engine of a bundle, run: on arrays (``TensorRTEngine``) or with everything on the GPU (``TensorRTStep``).

Neither ever builds: an engine that does not fit this machine is refused with the reason, and
``export.tensorrt_builder`` builds another from the graph in the bundle. Needs torch; TensorRT when an engine is opened.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from export.bundle import STEP_GRAPH, load_manifest
from export.device_step import Array, DeviceHistory, DeviceInputs, TensorCondition, check_device_warp, upload_to
from export.engines import STEP_INPUTS, GraphEngine, check_warp
from export.inputs import ConditionForm, StepCondition, form_of
from export.outside import OutsideWarp
from export.tensorrt_api import CudaRunner, Log, Runner, describe_site, refuse, require_tensorrt
from export.tensorrt_store import (
    PRECISIONS,
    SELF_TEST_PLAN,
    STEP_PLAN,
    EngineRecord,
    find_engine,
    plan_version,
    version_numbers,
)
from fastv2v.errors import BundleError, ConfigError, MachineError, ShapeError

if TYPE_CHECKING:
    import tensorrt as trt

log = logging.getLogger(__name__)

NAME = "tensorrt"
_TYPES: Mapping[str, torch.dtype] = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "INT8": torch.int8,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "BOOL": torch.bool,
    "UINT8": torch.uint8,
}


class LoadedPlan:
    """A plan on a GPU with memory for everything that goes in and out.

    Args:
        plan: as the builder wrote it.
        runner: the GPU.
        where: file, for messages.
        host_code: let the plan bring code of its own, which version-compatible ones do.
        shapes: for inputs that it was built for a range of (``build_plan``), the shape to run at; by default the usual
            one of that range. Plans of bundles have fixed shapes.

    Raises:
        BundleError: if TensorRT refuses it or a shape, with both versions and what TensorRT said.
        ConfigError: if a shape is given for what is no input.
        MissingExtraError: if TensorRT is not installed.
    """

    def __init__(
        self,
        plan: bytes,
        runner: Runner,
        *,
        where: str,
        host_code: bool = False,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        version = require_tensorrt()
        self.where, self._runner, self._log = where, runner, Log()
        self._asked = dict(shapes or {})
        written = plan_version(plan)
        if written is not None and written != version_numbers(version) and not host_code:
            raise BundleError(
                f"{where} was written by TensorRT {'.'.join(map(str, written))} and this is {version}; build it anew"
            )
        with runner.on():  # TensorRT takes the current device
            self._load(plan, version, written, host_code=host_code)

    def _load(self, plan: bytes, version: str, written: tuple[int, int, int] | None, *, host_code: bool) -> None:
        import tensorrt as trt

        where = self.where
        self._runtime: trt.Runtime = self._log.made(trt.Runtime)
        self._runtime.engine_host_code_allowed = host_code
        self._log.begin()
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            by = "" if written is None else f" written by {'.'.join(map(str, written))}"
            refuse(f"TensorRT {version} refuses {where}{by}", self._log)
        self._engine = engine
        self._plan_bytes = len(plan)
        self._log.begin()
        context = engine.create_execution_context()
        if context is None:
            wanted = engine.device_memory_size_v2 >> 20
            raise MachineError(f"there is no room to run {where}, which wants {wanted} MiB: {self._log.reason()}")
        self._context = context
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        inputs = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        if unknown := self._asked.keys() - set(inputs):
            raise ConfigError(f"{where} has no input {min(unknown)}; choose from {', '.join(inputs)}")
        # Inputs first: the shapes of outputs follow from theirs.
        self.shapes = {name: self._fix_input(name) for name in inputs}
        """Shape of every input."""
        if missing := context.infer_shapes():
            raise BundleError(f"{where}: the shapes of {', '.join(missing)} are open; build it anew")
        shapes = self.shapes | {n: tuple(context.get_tensor_shape(n)) for n in names if n not in inputs}
        self.tensors = {name: self._allocate(name, shape) for name, shape in shapes.items()}
        """Every input and output by name, in the memory the plan reads and writes."""
        self.outputs = tuple(name for name in names if name not in inputs)
        """Names of the outputs."""

    def _fix_input(self, name: str) -> tuple[int, ...]:
        shape = tuple(self._context.get_tensor_shape(name))
        if name in self._asked:
            shape = self._asked[name]
        elif -1 in shape:  # a range of shapes: the one it was tuned for
            shape = tuple(self._engine.get_tensor_profile_shape(name, 0)[1])
        self._log.begin()
        if not self._context.set_input_shape(name, shape):
            refuse(f"{self.where} refuses shape {shape} for {name}", self._log)
        return shape

    def _allocate(self, name: str, shape: tuple[int, ...]) -> Tensor:
        kind = self._engine.get_tensor_dtype(name).name
        if kind not in _TYPES:
            raise BundleError(f"{self.where}: {name} is of type {kind}, which torch does not know; build it anew")
        made = torch.zeros(shape, dtype=_TYPES[kind], device=self._runner.device)
        self._point(name, made)
        return made

    def bind(self, name: str, tensor: Tensor) -> None:
        """Let the plan read or write memory of the caller's, which is kept alive from now on.

        Args:
            name: of an input or output.
            tensor: of its very shape and type, contiguous and aligned.

        Raises:
            ShapeError: if the memory does not suit.
        """
        own = self.tensors[name]
        wanted, given = (f"{tuple(x.shape)} of {x.dtype}" for x in (own, tensor))
        if wanted != given:
            raise ShapeError(f"{self.where}: {name} is {wanted}, not {given}")
        if not tensor.is_contiguous() or tensor.data_ptr() % self._runner.alignment:
            unit = self._runner.alignment
            raise ShapeError(f"{self.where}: the memory for {name} is not contiguous or not aligned to {unit} bytes")
        self._point(name, tensor)
        self.tensors[name] = tensor

    def _point(self, name: str, tensor: Tensor) -> None:
        self._log.begin()
        if not self._context.set_tensor_address(name, tensor.data_ptr()):
            refuse(f"{self.where} refuses the memory for {name}", self._log)

    def enqueue(self) -> None:
        """Queue one run on the runner's stream.

        Raises:
            BundleError: if TensorRT does not take it; while a graph is recorded this may mean that it cannot be.
        """
        self._log.begin()
        if not self._context.execute_async_v3(self._runner.handle):
            refuse(f"{self.where} did not run", self._log)

    @property
    def memory_bytes(self) -> int:
        """Weights, what a run needs beside them, inputs and outputs.

        TensorRT does not tell the size of the weights; the plan, which is little else, stands for them.
        """
        return self._plan_bytes + int(self._engine.device_memory_size_v2) + sum(x.nbytes for x in self.tensors.values())

    def describe(self) -> str:
        """TensorRT's own account of the layers it chose, in JSON."""
        import tensorrt as trt

        inspector = self._engine.create_engine_inspector()
        inspector.execution_context = self._context
        return inspector.get_engine_information(trt.LayerInformationFormat.JSON)


class PlanEngine(GraphEngine):
    """A plan on arrays; what every engine of a bundle is compared and tested with.

    Args:
        plan: on the GPU.
        runner: the GPU.
        precision: number format it computes in.
        path: file, for messages.
        finish: what follows the plan, where that ends before the warp.
    """

    name = NAME
    precisions = PRECISIONS

    def __init__(
        self, plan: LoadedPlan, runner: Runner, precision: str, path: Path, finish: OutsideWarp | None = None
    ) -> None:
        # Nothing is opened here and no CPU threads are asked for, so the base class has nothing to set up.
        self.path, self.threads, self.precision = path, 1, precision
        self.shapes = plan.shapes
        self._plan, self._runner, self._finish = plan, runner, finish
        self._upload = upload_to(runner.device)

    def infer(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """See ``GraphEngine.infer``."""
        with self._runner.on():
            self._upload([(feeds[name], self._plan.tensors[name]) for name in self.shapes])
            self._plan.enqueue()
            made = {name: self._plan.tensors[name] for name in self._plan.outputs}
            if self._finish is not None:
                made = self._finish(made, self._plan.tensors)
            copied = {name: x.float().to("cpu", copy=True) for name, x in made.items()}
        return {name: x.numpy() for name, x in copied.items()}

    @property
    def memory_bytes(self) -> int:
        """Device memory it holds."""
        return self._plan.memory_bytes


class TensorRTEngine(PlanEngine):
    """The TensorRT engine of a bundle on arrays: see ``export.engines.StepEngine``.

    Args:
        folder: the bundle.
        precision: number format; None takes the first the bundle has of f16, bf16, f32, int8 and fp8.
        runner: the GPU; by default torch's current one.
        host_code: see ``open_plan``.

    Raises:
        BundleError: if the bundle is damaged, no engine fits, or it warps wrongly here.
        MissingExtraError: if TensorRT is not installed or there is no GPU.
    """

    def __init__(
        self, folder: Path, precision: str | None = None, *, runner: Runner | None = None, host_code: bool = False
    ) -> None:
        opened = open_plan(Path(folder), precision, runner, host_code=host_code)
        super().__init__(opened.plan, opened.runner, opened.record.config.precision, opened.path, opened.finish)
        self.record = opened.record
        """What is known of the engine."""

    @property
    def where(self) -> str:
        """Where it runs, for messages."""
        return f"on {self._runner.describe().name}"


def open_tensorrt(
    folder: Path, precision: str, threads: int | None = None, *, host_code: bool = False
) -> TensorRTEngine:
    """Open the TensorRT engine of a bundle, as the list of engines asks for it; ``threads`` is of no use here.

    Raises:
        BundleError: if the bundle is damaged, no engine fits, or it warps wrongly here.
        MissingExtraError: if TensorRT is not installed or there is no GPU.
    """
    return TensorRTEngine(folder, precision, host_code=host_code)


class OpenedPlan(NamedTuple):
    """The step of a bundle on a GPU, after its self-test."""

    plan: LoadedPlan
    runner: Runner
    record: EngineRecord
    path: Path
    finish: OutsideWarp | None
    """What follows the plan, where that ends before the warp."""
    is_guided: bool
    """Whether a painted world is part of the condition; what is kept of it goes without."""


def open_plan(folder: Path, precision: str | None, runner: Runner | None, *, host_code: bool = False) -> OpenedPlan:
    """Find the engine of a bundle that fits, let it sample a half-pixel warp, and put the step onto the GPU.

    Args:
        folder: the bundle.
        precision: number format; None takes the first the bundle has of f16, bf16, f32, int8 and fp8.
        runner: the GPU; by default torch's current one.
        host_code: let a version-compatible engine run the code that it brings for the CPU. What the bundle says of
            itself does not allow that.

    Raises:
        BundleError: if the bundle is damaged, no engine fits, it warps wrongly here, or it brings code that was not
            allowed.
        MissingExtraError: if TensorRT is not installed or there is no GPU.
    """
    require_tensorrt()
    used = runner if runner is not None else CudaRunner()
    site = describe_site(used)
    manifest = load_manifest(folder)
    place, record = find_engine(folder, site, precision, manifest=manifest)
    if record.config.version_compatible and not host_code:
        raise BundleError(
            f"{place} is a version-compatible engine, which brings code of its own: where you trust where the bundle "
            "comes from, name the engine and allow it (--engine tensorrt --host-code), or build another"
        )
    if site.gpu.driver != record.site.gpu.driver:
        log.warning("%s was built under driver %s and this is %s", place, record.site.gpu.driver, site.gpu.driver)

    def load(name: str) -> LoadedPlan:
        path = place / name
        return LoadedPlan(path.read_bytes(), used, where=str(path), host_code=record.config.version_compatible)

    finish = None
    if record.warp == "outside":
        finish = warp_outside(folder / STEP_GRAPH, used, record.config.precision)
    else:
        check_warp(PlanEngine(load(SELF_TEST_PLAN), used, record.config.precision, place / SELF_TEST_PLAN))
    is_guided = manifest.condition.guidance_levels > 0
    return OpenedPlan(load(STEP_PLAN), used, record, place / STEP_PLAN, finish, is_guided)


def warp_outside(step: Path, runner: Runner, precision: str) -> OutsideWarp:
    """What follows an engine that ends before the warp, after torch's own sampling has been tested on this GPU.

    Args:
        step: the whole step graph.
        runner: the GPU.
        precision: of the engine, for messages.

    Raises:
        BundleError: if torch warps wrongly here, or the graph cannot be cut.
    """
    sample = functools.partial(F.grid_sample, mode="bilinear", padding_mode="border", align_corners=True)
    check_device_warp(sample, f"torch behind {NAME} {precision}", runner.device)
    return OutsideWarp(step, runner.device)


class TensorRTStep:
    """The TensorRT engine of a bundle with its history on the GPU: see ``export.device_step.DeviceStep``.

    The step and the moving of the history are one CUDA graph, queued by a single call. Where the engine cannot be
    recorded, they are queued one by one.

    Args:
        folder: the bundle.
        precision: number format; None takes the first the bundle has of f16, bf16, f32, int8 and fp8.
        runner: the GPU; by default torch's current one.
        graph: False queues every step by itself.
        host_code: see ``open_plan``.

    Raises:
        BundleError: if the bundle is damaged, no engine fits, or it warps wrongly here.
        MissingExtraError: if TensorRT is not installed or there is no GPU.
    """

    name = NAME

    def __init__(
        self,
        folder: Path,
        precision: str | None = None,
        *,
        runner: Runner | None = None,
        graph: bool = True,
        host_code: bool = False,
    ) -> None:
        opened = open_plan(Path(folder), precision, runner, host_code=host_code)
        self._plan, self._runner, self.record, path, self._finish, is_guided = opened
        self.precision, self.device = str(self.record.config.precision), self._runner.device
        self.form: ConditionForm = form_of(self._plan.shapes)
        """How it wants conditions."""
        missing = [name for name in STEP_INPUTS[1:3] if name not in self._plan.shapes]
        if missing or (self._finish is None and "frame" not in self._plan.outputs):
            raise BundleError(f"{path} is not a step: it lacks {', '.join(missing) or 'the output frame'}")
        self._inputs, self._history = _buffers(self._plan, self.form, self.device, shared=not is_guided)
        past = zip(STEP_INPUTS[1:], (self._history.conditions, self._history.frames, self._history.valid), strict=True)
        for name, tensor in {**self._inputs.tensors, **dict(past)}.items():
            if name in self._plan.shapes:
                self._plan.bind(name, tensor)
        frames = self._history.frames
        self._frame = torch.zeros_like(frames[:, 0]) if self._finish else self._plan.tensors["frame"]
        with self._runner.on():
            self._work()  # whatever is set up at the first run cannot be part of a graph
        self._runner.wait()
        replay = self._runner.capture(self._work) if graph else None
        self.is_graph = replay is not None
        """Whether a step is one CUDA graph."""
        self._step: Callable[[], None] = replay or self._work

    def _work(self) -> None:
        self._plan.enqueue()
        if self._finish is not None:
            made = {name: self._plan.tensors[name] for name in self._plan.outputs}
            self._frame.copy_(self._finish(made, self._plan.tensors)["frame"])
        self._history.advance(self._inputs.past, self._frame)

    @property
    def memory_bytes(self) -> int:
        """See ``DeviceStep.memory_bytes``."""
        return self._plan.memory_bytes

    def start(self, first: StepCondition | TensorCondition, seed_frame: Array | None = None) -> None:
        """See ``DeviceStep.start``."""
        with self._runner.on():
            self._history.start(torch.as_tensor(first.past), seed_frame)

    def step(self, condition: StepCondition | TensorCondition) -> Tensor:
        """See ``DeviceStep.step``."""
        with self._runner.on():
            self._inputs.load(condition)
            self._step()
        return self._frame


def open_step(folder: Path, precision: str, device: torch.device, *, host_code: bool = False) -> TensorRTStep:
    """Open the TensorRT engine of a bundle with its history on the GPU, as the list of engines asks for it.

    Raises:
        BundleError: if the bundle is damaged, no engine fits, or it warps wrongly here.
        MissingExtraError: if TensorRT is not installed or there is no GPU.
    """
    return TensorRTStep(folder, precision, runner=CudaRunner(device), host_code=host_code)


def _buffers(
    plan: LoadedPlan, form: ConditionForm, device: torch.device, *, shared: bool
) -> tuple[DeviceInputs, DeviceHistory]:
    """Inputs and history of a plan's shapes; ``shared`` where what is kept of a condition may be an input itself."""
    past_shape = plan.shapes["history_conditions"]
    present = {name: shape for name, shape in plan.shapes.items() if name not in STEP_INPUTS[1:]}
    arrays: dict[str, NDArray[Any]] = {
        name: np.zeros(shape, np.float32 if plan.tensors[name].is_floating_point() else np.int32)
        for name, shape in present.items()
    }
    kept = ("coarse", "condition") if shared else ()
    same = [x for name, x in arrays.items() if name in kept and x.shape[1:] == past_shape[2:]]
    past = same[0][0] if same else np.zeros(past_shape[2:], np.float32)
    history = DeviceHistory(
        (past_shape[2], past_shape[3], past_shape[4]), past_shape[1], scale=form.scale, device=device
    )
    return DeviceInputs(StepCondition(arrays, past), device), history
