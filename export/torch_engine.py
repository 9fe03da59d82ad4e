"""The student's own network as an engine: on GPUs through torch, in any of its number formats. Needs torch.

Channels lie innermost, norms are folded into convolutions, and weights of convolutions are kept in the format they are
used in; what must not lose precision (flow, positions, the blend, the history) stays in float32, as in training under
autocast. On a CUDA GPU the whole step, shifting the history included, is recorded once as a CUDA graph: a small student
is a hundred kernels of a few microseconds each, and starting them one by one takes longer than they do.

The weights come from the ``torch/`` part of a bundle: safetensors and JSON, nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from export.bundle import MANIFEST, TORCH_ARCHITECTURE, TORCH_WEIGHTS, load_manifest
from export.device_step import (
    DeviceHistory,
    DeviceInputs,
    Recorder,
    TensorCondition,
    check_device_warp,
    current_gpu,
    upload_to,
)
from export.engines import Array, this_machine
from export.inputs import ConditionForm, StepCondition, average, form_of, from_encoded
from export.onnx_graph import step_module
from fastv2v.architecture import Architecture
from fastv2v.checkpoint import load_weights
from fastv2v.config import from_dict
from fastv2v.contracts import StepModel
from fastv2v.data.conditions import ConditionSpec
from fastv2v.errors import BundleError, CheckpointError, ConfigError

log = logging.getLogger(__name__)

DTYPES = {"f32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
"""What convolutions compute in. ``tf32`` multiplies float32 with 10 bits of mantissa, on NVIDIA's GPUs only."""


class Replay:
    """Work on fixed buffers; on CUDA GPUs recorded as a graph at once, and replayed when called.

    Args:
        work: reads and writes tensors whose addresses stay; runs a few times while it is recorded.
        device: where they lie.
        graph: whether to record; only on CUDA GPUs.

    Raises:
        BundleError: if the GPU lacks the memory.
    """

    def __init__(self, work: Callable[[], None], device: torch.device, *, graph: bool) -> None:
        if graph:
            self._again = Recorder(device)(work)
        else:
            work()  # what is compiled or chosen on first use is then done
            self._again = work

    def __call__(self) -> None:
        """Do the work; on a GPU it is only begun."""
        self._again()


def usable_device() -> torch.device:
    """The GPU that torch can use here, else the CPU."""
    if torch.cuda.is_available():
        return current_gpu()
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """For messages and records: the model of a CUDA GPU, else the kind of device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return {"mps": "Apple's GPU", "cpu": "the CPU"}.get(device.type, device.type)


def card_id(device: torch.device | None = None) -> str:
    """The name by which NVIDIA's driver knows a CUDA GPU, for ``fastv2v.measure.gpu``.

    Args:
        device: a CUDA device; None: torch's current one.

    Returns:
        Its UUID. CUDA counts the GPUs that it is let see, in an order of its own, and the driver all of them. Where
        torch sees none: the first that CUDA is let see.
    """
    if torch.cuda.is_available():
        return f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    return os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0] or "0"


def deploy(network: nn.Module, device: torch.device, precision: str) -> nn.Module:
    """Make a network fast to run: on its device, channels innermost, norms folded, convolutions in their format.

    Args:
        network: in evaluation mode, its weights plain; changed in place.
        device: where it shall run.
        precision: one of ``DTYPES``.

    Returns:
        The same network. Run it within ``numerics``.
    """
    for module in list(network.modules()):
        if isinstance(module, nn.Sequential):
            _fold_norms(module)
    network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.to(DTYPES[precision])
    return network


def _fold_norms(part: nn.Sequential) -> None:
    """Fold batch norms that keep running statistics into the convolutions right before them."""
    for index, (conv, norm) in enumerate(pairwise(list(part))):
        if not isinstance(conv, nn.Conv2d | nn.ConvTranspose2d) or not isinstance(norm, nn.BatchNorm2d):
            continue
        if norm.running_var is not None:
            part[index] = fuse_conv_bn_eval(conv, norm, transpose=isinstance(conv, nn.ConvTranspose2d))
            part[index + 1] = nn.Identity()


@contextlib.contextmanager
def numerics(device: torch.device, precision: str) -> Iterator[None]:
    """Within: no gradients, convolutions in the precision, and the fastest of cuDNN's ways of computing them.

    Args:
        device: where the network runs.
        precision: one of ``DTYPES``.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if DTYPES[precision] != torch.float32:
            # Weights have their format already; a cache of converted ones could not be recorded in a graph.
            stack.enter_context(torch.autocast(device.type, DTYPES[precision], cache_enabled=False))
        if device.type == "cuda":
            flags = torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=precision != "f32")
            stack.enter_context(flags)
        yield


class _Network:
    """A step of fixed shapes with its buffers; what ``TorchStep`` and ``TorchEngine`` share.

    Args:
        model: a generator of one scale.
        size: (height, width).
        spec: how conditions are encoded.
        device: where it runs.
        precision: one of ``DTYPES``.
        compiled: let torch write kernels for it, which takes a minute or more.

    Raises:
        BundleError: if the device lacks the precision, or the memory.
    """

    def __init__(
        self,
        model: StepModel,
        size: tuple[int, int],
        spec: ConditionSpec | None,
        device: torch.device,
        precision: str,
        *,
        compiled: bool,
    ) -> None:
        _check_precision(precision, device)
        self.device, self.precision = device, precision
        module, example = step_module(model, size, spec, ("frame",))
        self.form = form_of({name: tuple(x.shape) for name, x in example.items()})
        past = example["history_conditions"].shape[2:]
        deployed = deploy(module, device, precision)
        self._run: Callable[..., tuple[Tensor, ...]] = torch.compile(deployed, fullgraph=True) if compiled else deployed
        self.history = DeviceHistory(
            (past[0], past[1], past[2]), model.history_length, scale=self.form.scale, device=device
        )
        like = from_encoded(self.form, np.zeros((past[0], *size), np.float32))
        if spec is not None and spec.guidance_levels:
            like = like._replace(past=like.past.copy())  # what is kept has no guidance: it is no input itself
        self.inputs = DeviceInputs(like, device)
        self.frame = torch.zeros(1, 3, *size, device=device)

    def draw(self) -> None:
        """Make the frame of what lies in the buffers."""
        past = self.history
        with numerics(self.device, self.precision):
            (frame,) = self._run(
                **self.inputs.tensors,
                history_conditions=past.conditions,
                history_frames=past.frames,
                valid=past.valid,
            )
            self.frame.copy_(frame)

    def draw_and_advance(self) -> None:
        """Make the frame and let it enter the history."""
        self.draw()
        self.history.advance(self.inputs.past, self.frame)


class TorchStep:
    """A generator's step on a device, its history kept there: an ``export.device_step.DeviceStep``.

    Args:
        model: a generator of one scale; left untouched.
        size: (height, width), which the generator must be able to take.
        spec: how conditions are encoded; None: not known, and the step takes all channels.
        device: where it runs; None takes the GPU that torch can use, else the CPU.
        precision: one of ``DTYPES``.
        compiled: let torch write kernels for it, which takes a minute or more.
        cuda_graph: record the step as a CUDA graph; None: wherever there is CUDA.

    Raises:
        BundleError: if the device lacks the precision or the memory, samples between pixels wrongly, or the step cannot
            be compiled.
        ConfigError: if the precision is unknown, or a CUDA graph is asked for without CUDA.
    """

    def __init__(
        self,
        model: StepModel,
        size: tuple[int, int],
        spec: ConditionSpec | None = None,
        *,
        device: torch.device | None = None,
        precision: str = "f32",
        compiled: bool = False,
        cuda_graph: bool | None = None,
    ) -> None:
        self.name = "torch-compiled" if compiled else "torch"
        self.precision = precision
        self.device = usable_device() if device is None else device
        self._network, self._replay, self.memory_bytes = _opened(
            self, model, size, spec, compiled=compiled, cuda_graph=cuda_graph, advance=True
        )

    @property
    def form(self) -> ConditionForm:
        """See ``DeviceStep.form``."""
        return self._network.form

    def start(self, first: StepCondition | TensorCondition, seed_frame: Array | None = None) -> None:
        """See ``DeviceStep.start``."""
        self._network.inputs.load(first)
        self._network.history.start(self._network.inputs.past, seed_frame)

    def step(self, condition: StepCondition | TensorCondition) -> Tensor:
        """See ``DeviceStep.step``."""
        self._network.inputs.load(condition)
        self._replay()
        return self._network.frame


class TorchEngine:
    """The same on arrays, for streams and measurements that keep their history themselves: a ``StepEngine``.

    Arguments and errors are those of ``TorchStep``.
    """

    def __init__(
        self,
        model: StepModel,
        size: tuple[int, int],
        spec: ConditionSpec | None = None,
        *,
        device: torch.device | None = None,
        precision: str = "f32",
        compiled: bool = False,
        cuda_graph: bool | None = None,
    ) -> None:
        self.name = "torch-compiled" if compiled else "torch"
        self.precision = precision
        self.device = usable_device() if device is None else device
        self._network, self._replay, self.memory_bytes = _opened(
            self, model, size, spec, compiled=compiled, cuda_graph=cuda_graph, advance=False
        )
        self._upload = upload_to(self.device)

    @property
    def form(self) -> ConditionForm:
        """See ``StepEngine.form``."""
        return self._network.form

    @property
    def where(self) -> str:
        """See ``OpenedEngine.where``."""
        return f"on {device_name(self.device)}"

    def run(
        self, condition: Array | StepCondition, history_conditions: Array, history_frames: Array, valid: Array
    ) -> dict[str, NDArray[Any]]:
        """See ``StepEngine.run``."""
        if not isinstance(condition, StepCondition):
            condition = from_encoded(self.form, condition[0])
        if history_conditions.shape[-2:] == history_frames.shape[-2:]:
            history_conditions = average(history_conditions, self.form.scale)
        self._network.inputs.load(condition)
        history = self._network.history
        given, buffers = (
            (history_conditions, history_frames, valid),
            (history.conditions, history.frames, history.valid),
        )
        self._upload(list(zip(given, buffers, strict=True)))
        self._replay()
        return {"frame": self._network.frame.cpu().numpy().copy()}


def _opened(
    engine: TorchStep | TorchEngine,
    model: StepModel,
    size: tuple[int, int],
    spec: ConditionSpec | None,
    *,
    compiled: bool,
    cuda_graph: bool | None,
    advance: bool,
) -> tuple[_Network, Replay, int | None]:
    """Network, what runs it, and the bytes of GPU memory both took."""
    device, who = engine.device, f"{engine.name} {engine.precision}"
    is_cuda = device.type == "cuda"
    if cuda_graph and not is_cuda:
        raise ConfigError(f"a CUDA graph needs a CUDA GPU and this is {device.type}; leave it out")
    check_device_warp(_sample, who, device)
    before = _held_bytes(device)
    try:
        network = _Network(model, size, spec, device, engine.precision, compiled=compiled)
        work = network.draw_and_advance if advance else network.draw
        replay = Replay(work, device, graph=is_cuda if cuda_graph is None else cuda_graph)
    except torch.OutOfMemoryError as error:
        raise BundleError(f"{who}: {device_name(device)} has too little free memory for this step") from error
    except RuntimeError as error:  # the compiler's errors are of it, and whatever a driver refuses
        if isinstance(error, BundleError):
            raise
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise BundleError(f"{who} cannot run this step on {device_name(device)}: {reason}") from error
    if is_cuda:
        torch.cuda.synchronize(device)
    held = [after - earlier for after, earlier in zip(_held_bytes(device), before, strict=True)]
    return network, replay, max(held, default=None)


def _held_bytes(device: torch.device) -> list[int]:
    """Memory that torch has on a CUDA GPU: all of it, and what is in use; what a graph needs is only in the first."""
    if device.type != "cuda":
        return []
    return [torch.cuda.memory_reserved(device), torch.cuda.memory_allocated(device)]


def _sample(image: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=True)


def _check_precision(precision: str, device: torch.device) -> None:
    if precision not in DTYPES:
        raise ConfigError(f"torch runs in {' or '.join(DTYPES)}, not in {precision!r}")
    if precision == "tf32" and device.type != "cuda":
        raise BundleError(f"tf32 is a format of NVIDIA's GPUs and this is {device_name(device)}; choose f32 or bf16")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise BundleError(f"{device_name(device)} has no bf16 arithmetic; choose f16")


def load_student(folder: Path) -> tuple[StepModel, tuple[int, int], ConditionSpec]:
    """The generator of a bundle's torch part, its size, and how its conditions are encoded.

    Args:
        folder: the bundle, which is checked.

    Raises:
        BundleError: if the bundle is damaged or has no such part.
    """
    manifest = load_manifest(folder)
    for needed in (TORCH_WEIGHTS, TORCH_ARCHITECTURE):
        if needed not in manifest.files:
            raise BundleError(
                f"{folder} holds no weights for torch ({MANIFEST} does not list {needed}): export it again with a "
                "larger --torch-weights-mb"
            )
    try:
        described = json.loads((folder / TORCH_ARCHITECTURE).read_text(encoding="utf-8"))
        architecture = from_dict(Architecture, described)
        generator = architecture.build_video()
        load_weights(generator, folder / TORCH_WEIGHTS)
    except (ValueError, CheckpointError) as error:  # a ConfigError is a ValueError
        raise BundleError(f"{folder}/torch does not suit this fastv2v ({error}); export the bundle again") from error
    if architecture.condition != manifest.condition:
        raise BundleError(f"{folder}/torch and {MANIFEST} speak of different conditions; export the bundle again")
    return generator.eval(), manifest.size, manifest.condition


def open_torch_step(
    folder: Path, precision: str = "f32", device: torch.device | None = None, *, compiled: bool = False
) -> TorchStep:
    """Open a bundle's student as a step that keeps its history on the device.

    Args:
        folder: the bundle.
        precision: one of ``DTYPES``.
        device: where it runs; None takes the GPU that torch can use, else the CPU.
        compiled: see ``TorchStep``.

    Raises:
        BundleError: if the bundle has no weights for torch, or ``TorchStep`` refuses.
    """
    return TorchStep(*load_student(folder), device=device, precision=precision, compiled=compiled)


def open_compiled_step(folder: Path, precision: str = "f32", device: torch.device | None = None) -> TorchStep:
    """``open_torch_step`` with kernels that torch writes for it."""
    return open_torch_step(folder, precision, device, compiled=True)


def open_torch(folder: Path, precision: str, threads: int | None = None) -> TorchEngine:
    """The engine ``torch``; see ``export.engines.GpuEngine.opener``.

    Args:
        folder: the bundle.
        precision: one of ``DTYPES``.
        threads: CPU threads of torch, for the whole process, where it runs on the CPU; None leaves them.

    Raises:
        BundleError: if the bundle has no weights for torch, or the step cannot run here.
    """
    return _open(folder, precision, threads, compiled=False)


def open_compiled(folder: Path, precision: str, threads: int | None = None) -> TorchEngine:
    """The engine ``torch-compiled``; see ``open_torch``."""
    return _open(folder, precision, threads, compiled=True)


def _open(folder: Path, precision: str, threads: int | None, *, compiled: bool) -> TorchEngine:
    device = usable_device()
    if device.type == "cpu":
        why = (
            "this torch was built without CUDA" if torch.version.cuda is None else "its driver does not suit this torch"
        )
        if gpu := this_machine()["gpu"]:
            raise BundleError(f"torch cannot use the {gpu} here ({why}): install torch for its driver, see pytorch.org")
        log.warning("there is no GPU here and torch runs on the CPU; the engines made for it are faster")
        if threads is not None:
            torch.set_num_threads(threads)
    return TorchEngine(*load_student(folder), device=device, precision=precision, compiled=compiled)
