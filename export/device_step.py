"""One synthesis step whose state stays on the device: conditions go up, frames and history stay. Needs torch.

``DeviceStep`` is what engines on a GPU offer, beside ``export.engines.StepEngine`` on arrays; ``export.device_stream``
makes every frame of a video with one. The rest is what such engines share: the torch twins of ``export.history`` and
``export.inputs``, in buffers whose addresses never change, so that a CUDA graph can be replayed over them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from export.engines import WARP_SELF_TEST, check_warped
from export.inputs import ConditionForm, StepCondition
from fastv2v.data.conditions import ConditionSpec
from fastv2v.errors import DataError, ShapeError
from fastv2v.ops.labels import instance_edges, one_hot

Array = NDArray[np.float32]
_WARM_UP_STEPS = 3


class TensorCondition(NamedTuple):
    """One frame's condition on a device; the torch twin of ``StepCondition``."""

    inputs: Mapping[str, Tensor]
    """Inputs of the graph by name, batch 1."""
    past: Tensor
    """(C, h, w): what a history keeps of it."""


class DeviceStep(Protocol):
    """One step of a generator, batch 1, that keeps its history on its device. One video at a time."""

    name: str
    """Name of the engine, as in ``export.engines``."""
    precision: str
    """Number format it computes in."""
    device: torch.device
    """Where it runs, and its frames lie."""

    @property
    def form(self) -> ConditionForm:
        """How it wants conditions."""
        ...

    @property
    def memory_bytes(self) -> int | None:
        """Device memory it holds: weights, history, buffers; None where the engine does not say."""
        ...

    def start(self, first: StepCondition | TensorCondition, seed_frame: Array | None = None) -> None:
        """Begin a video: the history goes back to where ``export.history.ArrayHistory`` starts.

        Args:
            first: condition of the first frame, which stands in for all past ones.
            seed_frame: the real first frame, (3, H, W) float32 in [-1, 1], or None to start from nothing.

        Raises:
            ShapeError: if they do not have the shape of the step.
        """
        ...

    def step(self, condition: StepCondition | TensorCondition) -> Tensor:
        """Synthesise one frame and let it and its condition enter the history.

        Args:
            condition: of the frame, in the step's form. It may be changed as soon as this returns.

        Returns:
            (1, 3, H, W) in [-1, 1] on the device: the step's own buffer, good until the next call. The work may still
            be under way on the current stream.

        Raises:
            ShapeError: if the condition does not have the shape of the step.
        """
        ...


class DeviceHistory:
    """The past of one stream in fixed buffers, oldest first; the torch twin of ``export.history.ArrayHistory``.

    ``advance`` writes in place by device operations alone, so that it can be part of a CUDA graph.

    Args:
        past_shape: (C, h, w) of a condition as it is kept.
        history_length: N-1, at least 1.
        scale: how many times larger frames are than the conditions that are kept, along each side.
        device: where the buffers lie.
        dtype: of the buffers.
    """

    def __init__(
        self,
        past_shape: tuple[int, int, int],
        history_length: int,
        *,
        scale: int = 1,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        channels, height, width = past_shape
        self.conditions = torch.zeros(1, history_length, channels, height, width, device=device, dtype=dtype)
        """Past conditions, (1, N-1, C, h, w)."""
        self.frames = torch.zeros(1, history_length, 3, scale * height, scale * width, device=device, dtype=dtype)
        """Past frames, (1, N-1, 3, H, W) in [-1, 1]."""
        self.valid = torch.zeros(1, device=device, dtype=dtype)
        """(1,): 0 while there is no past frame."""

    def start(self, past: Tensor, seed_frame: Array | Tensor | None = None) -> None:
        """Go back to the beginning of a video.

        Args:
            past: what is kept of the first condition, (C, h, w).
            seed_frame: the real first frame, (3, H, W) in [-1, 1], or None to start from nothing.

        Raises:
            ShapeError: if one does not have the shape of the buffers.
        """
        _check_shape("the first condition", past, self.conditions.shape[2:])
        self.conditions.copy_(past.expand_as(self.conditions))
        if seed_frame is None:
            self.frames.zero_()
            self.valid.zero_()
            return
        seed = torch.as_tensor(seed_frame)
        _check_shape("the seed frame", seed, self.frames.shape[2:])
        self.frames.copy_(seed.expand_as(self.frames))
        self.valid.fill_(1)

    def advance(self, past: Tensor, frame: Tensor) -> None:
        """The oldest step leaves; ``past`` (C, h, w) and ``frame`` (3, H, W) or (1, 3, H, W) in [-1, 1] enter."""
        for buffer, newest in ((self.conditions, past), (self.frames, frame.reshape(self.frames.shape[2:]))):
            for older, newer in pairwise(buffer[0]):
                older.copy_(newer)
            buffer[0, -1].copy_(newest)
        self.valid.fill_(1)


class DeviceInputs:
    """What a step reads of the present condition, in fixed buffers on its device.

    Arrays go to a GPU through pinned memory, so that copying them there holds nobody up.

    Args:
        example: a condition of the step's form; only its names, shapes and kinds count.
        device: where the buffers lie.
        dtype: of those that hold real numbers; ids keep their own.
    """

    def __init__(
        self,
        example: StepCondition | TensorCondition,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        device = torch.device(device)
        given = {name: torch.as_tensor(x) for name, x in example.inputs.items()}
        self.tensors = {
            name: torch.zeros(x.shape, device=device, dtype=dtype if x.is_floating_point() else x.dtype)
            for name, x in given.items()
        }
        """Inputs of the graph by name, batch 1."""
        past = torch.as_tensor(example.past)
        # Mostly what is kept is an input itself, which need not be copied twice.
        same = (n for n, x in given.items() if x.data_ptr() == past.data_ptr() and x.numel() == past.numel())
        self._shared = next(same, None)
        if self._shared is not None:
            self.past = self.tensors[self._shared].view(past.shape)
        else:
            self.past = torch.zeros(past.shape, device=device, dtype=dtype)
        """What a history keeps of the condition, (C, h, w)."""
        self._upload = upload_to(device)

    def load(self, condition: StepCondition | TensorCondition) -> None:
        """Fill the buffers; the condition may be changed as soon as this returns.

        Raises:
            ShapeError: if an input is missing or has another shape.
        """
        if condition.inputs.keys() != self.tensors.keys():
            raise ShapeError(
                f"the step takes {', '.join(sorted(self.tensors))} and was given {', '.join(sorted(condition.inputs))}"
            )
        given = {name: (condition.inputs[name], buffer) for name, buffer in self.tensors.items()}
        if self._shared is None:
            given["past"] = condition.past, self.past
        for name, (source, buffer) in given.items():
            _check_shape(name, source, buffer.shape)
        self._upload(list(given.values()))


class CopyUpload:
    """Fills buffers by plain copies, which are done when it returns (on a CPU, and from device to device in order)."""

    def __call__(self, pairs: list[tuple[NDArray[Any] | Tensor, Tensor]]) -> None:
        """Copy each source into its buffer."""
        for source, buffer in pairs:
            buffer.copy_(_as_tensor(source))


class PinnedUpload(CopyUpload):
    """Fills buffers on a GPU through pinned memory: the copies are queued on the current stream, not waited for."""

    def __init__(self) -> None:
        self._staging: dict[int, Tensor] = {}
        self._copied = torch.cuda.Event()

    def __call__(self, pairs: list[tuple[NDArray[Any] | Tensor, Tensor]]) -> None:
        """Copy each source into its buffer; arrays may be changed as soon as this returns."""
        if all(isinstance(source, Tensor) for source, _ in pairs):
            super().__call__(pairs)
            return
        self._copied.synchronize()  # the staging memory is still being read until then
        for source, buffer in pairs:
            if isinstance(source, Tensor):
                buffer.copy_(source, non_blocking=True)
                continue
            key = buffer.data_ptr()
            if key not in self._staging:
                self._staging[key] = torch.empty(buffer.shape, dtype=buffer.dtype, pin_memory=True)
            buffer.copy_(self._staging[key].copy_(_as_tensor(source)), non_blocking=True)
        self._copied.record()


def upload_to(device: torch.device) -> CopyUpload:
    """The way arrays take into buffers on this device."""
    return PinnedUpload() if device.type == "cuda" else CopyUpload()


def encode_on_device(
    form: ConditionForm,
    spec: ConditionSpec,
    labels: Tensor | None = None,
    instances: Tensor | None = None,
    maps: Tensor | None = None,
) -> TensorCondition:
    """Encode the condition of one frame where it lies; the torch twin of ``export.inputs.encode_for``.

    A label map is a hundredth of its channels, so that a GPU is better sent the map.

    Args:
        form: what the step wants.
        spec: how conditions are encoded.
        labels: class ids, (H, W), for label conditions. Ids without a class count as ignored: check them before.
        instances: instance ids, (H, W), when the spec uses them.
        maps: channels, (C, H, W), for map conditions.

    Raises:
        DataError: if a needed map is missing.
        ShapeError: if the size does not divide.
    """
    given = maps if spec.kind == "maps" else labels
    if given is None or (spec.use_instances and instances is None):
        raise DataError(f"the condition needs {'maps' if spec.kind == 'maps' else 'label and instance maps'}")
    height, width = given.shape[-2:]
    if height % form.scale or width % form.scale:
        raise ShapeError(f"a condition of {height}x{width} does not divide by {form.scale}")
    encoded = given.float() if spec.kind == "maps" else one_hot(given, spec.num_classes)
    edges = instance_edges(instances) if spec.use_instances and instances is not None else None
    if edges is not None:
        encoded = torch.cat([encoded, edges])
    past = encoded if form.scale == 1 else F.avg_pool2d(encoded, form.scale)
    if not form.labels:
        return TensorCondition({"condition": encoded[None]}, past)
    codes = given.int()
    codes = torch.where((codes < 0) | (codes > spec.num_classes), spec.num_classes, codes)
    inputs = {"labels": codes[None], "coarse": past[None]}
    if edges is not None:
        inputs["edges"] = edges[None]
    return TensorCondition(inputs, past)


def current_gpu() -> torch.device:
    """The CUDA device that torch works on now, with its number; there must be one."""
    return torch.device("cuda", torch.cuda.current_device())


def record_graph(
    work: Callable[[], None], stream: torch.cuda.Stream, pool: tuple[int, int] | None = None
) -> torch.cuda.CUDAGraph:
    """Record work on fixed buffers as a CUDA graph, without its effects.

    Only what this thread does counts: others may go on working on the GPU meanwhile.

    Args:
        work: everything in it has been done before, on the same stream, so that nothing is set up in the graph.
        stream: what it is recorded on; not the default stream.
        pool: memory that it shares with other graphs, as ``torch.cuda.graph_pool_handle`` gives it; None: its own.

    Raises:
        RuntimeError: if it cannot be recorded. The caller's stream is the current one again.
    """
    graph = torch.cuda.CUDAGraph()
    # Entered here as well: where a recording fails, torch's own context leaves its stream the current one.
    with (
        torch.cuda.stream(stream),
        torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"),  # type: ignore[arg-type]
    ):
        work()
    return graph


class Recorder:
    """Records pieces of work on a CUDA GPU, each as a graph that does it again when it is called.

    All share memory for what they need in between, so that one of them runs at a time, on one stream, and what they
    make lies in buffers that were there before.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # Recording wants a stream of its own, and graphs that share memory want the same one.
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        """Do the work a few times and record it.

        Args:
            work: reads and writes tensors whose addresses stay.

        Returns:
            Begins the work on the current stream.

        Raises:
            RuntimeError: if it cannot be recorded, or the GPU lacks the memory.
        """
        with torch.cuda.device(self._device):
            caller = torch.cuda.current_stream(self._device)
            self._stream.wait_stream(caller)
            with torch.cuda.stream(self._stream):
                for _ in range(_WARM_UP_STEPS):
                    work()
            caller.wait_stream(self._stream)
            graph = record_graph(work, self._stream, self._pool)
            # Whoever replays it may do so on another stream, which does not wait for this one.
            torch.cuda.synchronize(self._device)
        return graph.replay


def check_device_warp(
    sample: Callable[[Tensor, Tensor], Tensor],
    who: str,
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Refuse a way of sampling between pixels that is wrong on this device; see ``export.engines.check_warp``.

    Args:
        sample: called with a picture (1, 1, H, W) and positions (1, H, W, 2) from -1 to 1 (corners aligned); gives the
            picture there, borders repeated.
        who: engine and precision, for the message.
        device: where to try.
        dtype: of picture and positions.

    Raises:
        BundleError: if the half-pixel warp differs from the value worked out by hand.
    """
    image, grid = (torch.from_numpy(x).to(device, dtype) for x in (WARP_SELF_TEST.image, WARP_SELF_TEST.grid))
    check_warped(sample(image, grid).float().cpu().numpy(), who)


def _check_shape(name: str, given: NDArray[Any] | Tensor, expected: torch.Size) -> None:
    if tuple(given.shape) != tuple(expected):
        raise ShapeError(f"{name} has shape {tuple(given.shape)} and the step takes {tuple(expected)}")


def _as_tensor(source: NDArray[Any] | Tensor) -> Tensor:
    return source if isinstance(source, Tensor) else torch.from_numpy(np.ascontiguousarray(source))
