"""A stream whose frames are made, kept and filled in on a device, and leave it once. Needs torch.

Keyframes come from a ``DeviceStep`` and stay there; the gaps between are filled by ``interpolate.torch_motion``, on a
CUDA GPU recorded once for each length of a gap as a CUDA graph (but not with a RAFT). Finished gaps are packed into one
tensor of bytes and copied into pinned memory on a second CUDA stream while the next keyframe is made: at most two gaps
are under way. The calling thread queues work and takes what has arrived; there is no worker thread.

Frames are those of ``export.stream.Stream`` within rounding and what two ways of estimating flow differ by: keyframes
and blended frames within a level of 255 where the engines agree; frames filled by motion as good, but not the same.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export.bundle import Manifest
from export.device_step import DeviceStep, Recorder, TensorCondition, encode_on_device
from export.interpolation import NETWORK_METHOD
from export.stream import (
    Condition,
    ConditionMap,
    DeliveredFrame,
    MadeKeyframe,
    Stream,
    StreamError,
    checked_condition,
    motion_config,
)
from fastv2v.contracts import FlowEstimator
from fastv2v.errors import BundleError, ConfigError
from interpolate.fill import gap_times
from interpolate.motion import MotionConfig
from interpolate.torch_motion import TorchInterpolator, from_levels, to_levels

_Bytes = NDArray[np.uint8]
_UNDER_WAY = 1
"""Gaps that may still be on their way when the next one has been queued."""


class Arrival(Protocol):
    """Bytes on their way from a device to the host."""

    def is_here(self) -> bool:
        """Whether taking them would not wait."""
        ...

    def take(self) -> _Bytes:
        """Wait for them; they are the caller's to keep."""
        ...


class Ferry(Protocol):
    """The way between the host and a device."""

    def working(self) -> AbstractContextManager[object]:
        """Within: work on the device is queued in order, beside what travels."""
        ...

    def up(self, array: NDArray[Any]) -> Tensor:
        """A copy of an array on the device, in the order of the work; the array may be changed at once."""
        ...

    def down(self, data: Tensor) -> Arrival:
        """Send bytes (n,) to the host once what was queued before is done. Later work may overwrite them."""
        ...

    def wait(self) -> None:
        """Until all work is done."""
        ...


class HostFerry:
    """The CPU is the host: nothing travels, everything is done when it is asked for."""

    def working(self) -> AbstractContextManager[object]:
        """See ``Ferry.working``."""
        return contextlib.nullcontext()

    def up(self, array: NDArray[Any]) -> Tensor:
        """See ``Ferry.up``."""
        return torch.from_numpy(array.copy())

    def down(self, data: Tensor) -> Arrival:
        """See ``Ferry.down``."""
        return _Here(data.numpy().copy())

    def wait(self) -> None:
        """See ``Ferry.wait``."""


class _Here(NamedTuple):
    data: _Bytes

    def is_here(self) -> bool:
        return True

    def take(self) -> _Bytes:
        return self.data


class CudaFerry:
    """To and from a CUDA GPU through pinned memory, downwards on a CUDA stream of its own.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._work, self._way_down = torch.cuda.Stream(device), torch.cuda.Stream(device)
        self._free: list[Tensor] = []

    def working(self) -> AbstractContextManager[object]:
        """See ``Ferry.working``. Not the default stream: TensorRT synchronises the whole GPU there."""
        return torch.cuda.stream(self._work)

    def up(self, array: NDArray[Any]) -> Tensor:
        """See ``Ferry.up``. Torch keeps pinned memory from being used again until the copy is done."""
        return torch.from_numpy(array).pin_memory().to(self._device, non_blocking=True)

    def down(self, data: Tensor) -> Arrival:
        """See ``Ferry.down``. The bytes are put aside on the GPU, so that later work need not wait for the bus."""
        aside = data.clone()
        self._way_down.wait_stream(torch.cuda.current_stream(self._device))
        pinned = self._pinned(data.numel())
        with torch.cuda.stream(self._way_down):
            pinned[: data.numel()].copy_(aside, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record(self._way_down)
        aside.record_stream(self._way_down)
        return _Landing(pinned, data.numel(), arrived, self._free.append)

    def wait(self) -> None:
        """See ``Ferry.wait``."""
        self._work.synchronize()
        self._way_down.synchronize()

    def _pinned(self, length: int) -> Tensor:
        """Pinned memory for so many bytes that nothing is on its way to."""
        fitting = [k for k, buffer in enumerate(self._free) if buffer.numel() >= length]
        return self._free.pop(fitting[0]) if fitting else torch.empty(length, dtype=torch.uint8, pin_memory=True)


class _Landing(NamedTuple):
    """Bytes that land in pinned memory."""

    pinned: Tensor
    length: int
    arrived: torch.cuda.Event
    give_back: Callable[[Tensor], None]

    def is_here(self) -> bool:
        return self.arrived.query()

    def take(self) -> _Bytes:
        self.arrived.synchronize()
        data = self.pinned[: self.length].numpy().copy()
        self.give_back(self.pinned)
        return data


def named_device(name: str) -> torch.device:
    """A device by torch's name, such as ``cuda``, ``cuda:1`` or ``cpu``.

    Raises:
        BundleError: if this machine has no such device.
        ConfigError: if streams run on no such device.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"{name!r} is no device; choose cuda, cuda:1 ... or cpu") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"streams run on cuda devices and the cpu, not on {name}")
    if device.type == "cuda" and not 0 <= (device.index or 0) < torch.cuda.device_count():
        why = "this torch was built without CUDA" if torch.version.cuda is None else "the driver shows fewer"
        raise BundleError(
            f"{name} is not to be had here ({why}); fastv2v doctor tells what is, or leave the device out"
        )
    return device


def ferry_for(device: torch.device) -> Ferry:
    """The way to a device of ``named_device``."""
    return CudaFerry(device) if device.type == "cuda" else HostFerry()


class _Between(Protocol):
    """Frames between keyframes, as ``TorchInterpolator.between`` makes them."""

    def __call__(
        self, first: Tensor, second: Tensor, times: Sequence[float], *, labels: Tensor | None = None
    ) -> Tensor: ...


def blend_between(first: Tensor, second: Tensor, times: Sequence[float], *, labels: Tensor | None = None) -> Tensor:
    """The plain average by time: ``interpolate.motion.BlendInterpolator`` behind the door of ``TorchInterpolator``."""
    return torch.stack([torch.lerp(first, second, time) for time in times], dim=1)


class _Gap:
    """Filling of gaps of one length, over fixed buffers.

    Args:
        first: keyframe before, (1, 3, H, W) in [-1, 1] and of whole levels; its buffer.
        second: keyframe after, as the step gave it; its buffer.
        count: frames between.
        labels: class ids (1, count + 2, H, W), or None; their buffer.
        between: fills.
    """

    def __init__(self, first: Tensor, second: Tensor, count: int, labels: Tensor | None, between: _Between) -> None:
        self._first, self._second, self._between = first, second, between
        self._times = gap_times(count + 1)
        self.labels = labels
        height, width = first.shape[-2:]
        # The frames between, the keyframe after them, and whether its values are finite.
        self.packed = torch.zeros((count + 1) * height * width * 3 + 1, dtype=torch.uint8, device=first.device)
        self.rounded = torch.zeros_like(first)
        """The keyframe after, rounded to whole levels."""

    def fill(self) -> None:
        """Make what lies in the buffers."""
        is_finite = self._second.isfinite().all()
        levels = to_levels(self._second)
        self.rounded.copy_(from_levels(levels))
        parts = [levels.flatten(), is_finite.byte().view(1)]
        if self._times:
            made = self._between(self._first, self.rounded, self._times, labels=self.labels)
            parts.insert(0, to_levels(made).flatten())
        self.packed.copy_(torch.cat(parts))


class _Batch(NamedTuple):
    """A filled gap with the keyframe that ends it, on its way to the host."""

    keyframe: int
    filled: int  # frames before it
    arrival: Arrival


class NotFiniteError(BundleError):
    """A keyframe held values that are not finite.

    Attributes:
        keyframe: its position.
        frames: what had arrived before it, with positions.
    """

    def __init__(self, keyframe: int, frames: list[tuple[int, _Bytes]]) -> None:
        super().__init__("it gave values that are not finite; choose precision f32")
        self.keyframe, self.frames = keyframe, frames


class DeviceFiller:
    """``interpolate.fill.StreamFiller`` on a device: the same frames at the same places, given once they have arrived.

    Args:
        size: (height, width) of the frames.
        device: where keyframes lie.
        ferry: the way to it.
        between: fills gaps.
        under_way: gaps that may still be on their way when ``push`` returns.
        record: makes something that does a piece of work again; on GPUs a CUDA graph.
    """

    def __init__(
        self,
        size: tuple[int, int],
        device: torch.device,
        ferry: Ferry,
        between: _Between,
        under_way: int = _UNDER_WAY,
        record: Callable[[Callable[[], None]], Callable[[], None]] | None = None,
    ) -> None:
        self._size, self._device, self._ferry, self._between = size, device, ferry, between
        self._under_way, self._record = under_way, record or (lambda work: work)
        self._first, self._second = torch.zeros(2, 1, 3, *size, device=device)
        self._gaps: dict[tuple[int, bool], tuple[_Gap, Callable[[], None]]] = {}
        self._batches: deque[_Batch] = deque()
        self._latest: int | None = None

    def restart(self) -> None:
        """Begin another video; what is on its way is dropped."""
        while self._batches:
            self._batches.popleft().arrival.take()
        self._latest = None

    def push(
        self, index: int, keyframe: Tensor, labels: Sequence[NDArray[np.integer]] | None = None, /
    ) -> list[tuple[int, _Bytes]]:
        """Take the next keyframe, (1, 3, H, W) in [-1, 1] on the device; see ``StreamFiller.push``.

        Returns:
            What has arrived, in order: frames with their positions.

        Raises:
            NotFiniteError: if a keyframe held values that are not finite.
        """
        count = 0 if self._latest is None else index - self._latest - 1
        known = labels if count else None
        with self._ferry.working(), torch.no_grad():
            self._second.copy_(keyframe)
            gap, fill = self._gap(count, known)
            fill()
            self._first.copy_(gap.rounded)
            self._batches.append(_Batch(index, count, self._ferry.down(gap.packed)))
        self._latest = index
        return self.arrived(self._under_way)

    def _gap(self, count: int, labels: Sequence[NDArray[np.integer]] | None) -> tuple[_Gap, Callable[[], None]]:
        """The filling of a gap, its label maps in place; recorded when the first of its kind comes."""
        given = None if labels is None else self._ferry.up(_stacked(labels))
        key = count, given is not None
        if key not in self._gaps:
            maps = None if given is None else torch.zeros(given.shape, dtype=torch.int32, device=self._device)
            gap = _Gap(self._first, self._second, count, maps, self._between)
            self._gaps[key] = gap, self._record(gap.fill)
        gap, fill = self._gaps[key]
        if gap.labels is not None and given is not None:
            gap.labels.copy_(given)
        return gap, fill

    def arrived(self, most_left: int) -> list[tuple[int, _Bytes]]:
        """Frames that are here, in order; wait while more than so many gaps are on their way.

        Raises:
            NotFiniteError: as ``push``.
        """
        frames: list[tuple[int, _Bytes]] = []
        while self._batches and (len(self._batches) > most_left or self._batches[0].arrival.is_here()):
            batch = self._batches.popleft()
            data = batch.arrival.take()
            if not data[-1]:
                raise NotFiniteError(batch.keyframe, frames)
            pictures = data[:-1].reshape(batch.filled + 1, *self._size, 3)
            frames += enumerate(pictures, start=batch.keyframe - batch.filled)
        return frames

    def finish(self, total: int, /) -> list[tuple[int, _Bytes]]:
        """All that is left; see ``StreamFiller.finish``. The last frame of a stream is a keyframe, so none is held."""
        assert self._latest == total - 1, "a stream ends with a keyframe"
        return self.arrived(0)


class DeviceStream(Stream):
    """``export.stream.Stream`` on a device; ``export.runtime.open_bundle`` with a ``device`` opens one.

    On a GPU ``stats`` count what the calling thread spends: queueing keyframes (``synthesis_s``), queueing gaps and
    waiting for their frames (``fill_s``). A causal stream fetches each keyframe and extrapolates on the CPU.

    Args:
        step: makes keyframes; this stream is the only one that uses it.
        manifest: of the bundle the step belongs to.
        overlap: let one gap be on its way while the next keyframe is made. The frames are the same; which call hands
            them over then depends on timing.
        seed_frame: real first frame, uint8 RGB (H, W, 3), or None to start from nothing.
        causal: hand over the frame of each condition at once.
        estimator: finds the flow between keyframes, such as a RAFT; None searches for it.
        ferry: the way to the step's device; None takes the usual one.

    Raises:
        BundleError: if the manifest asks for an interpolation that is not made on devices.
        ConfigError: if a causal stream shall choose keyframes by frames that come later.
        DataError: if the seed frame does not suit the bundle.
    """

    def __init__(
        self,
        step: DeviceStep,
        manifest: Manifest,
        *,
        overlap: bool = True,
        seed_frame: NDArray[np.uint8] | None = None,
        causal: bool = False,
        estimator: FlowEstimator | None = None,
        ferry: Ferry | None = None,
    ) -> None:
        self._step = step
        self._ferry = ferry or ferry_for(step.device)
        self._overlaps = overlap and not causal
        self._device_filler = DeviceFiller(
            manifest.size,
            step.device,
            self._ferry,
            _between(manifest, estimator),
            _UNDER_WAY if self._overlaps else 0,
            recorder_for(step.device, estimator),
        )
        self._open(step, manifest, False, seed_frame, causal, None)

    @property
    def frames_waited(self) -> int:
        """See ``Stream.frames_waited``: a gap more while frames are on their way."""
        return super().frames_waited + (self._keyframes.gap if self._overlaps else 0)

    def time_step(self, condition: Condition) -> Callable[[], object]:
        """One bare synthesis step, encoding and waiting for it included, for measuring before a video begins.

        Args:
            condition: of any frame.

        Raises:
            StreamError: if a video has begun: its history is on the device and would be lost.
        """
        if self._pushed:
            raise StreamError("a step is timed before a video begins; restart the stream first")
        taken = checked_condition(condition, self.manifest.condition, self.manifest.size, "the probe")
        with self._ferry.working(), torch.no_grad():
            self._step.start(self._encoded(taken))

        def step() -> object:
            with self._ferry.working(), torch.no_grad():
                made = self._step.step(self._encoded(taken))
            self._ferry.wait()
            return made

        return step

    def close(self) -> None:
        """Wait until the device has done what was queued, so that its memory may be freed; see ``Stream.close``."""
        super().close()
        self._device_filler.restart()
        self._ferry.wait()

    def restart(self, seed_frame: NDArray[np.uint8] | None = None) -> None:
        """See ``Stream.restart``."""
        self._has_started = self._is_ending = False
        self._keyframes_out: set[int] = set()  # queued and not handed over yet
        super().restart(seed_frame)

    def flush(self) -> list[DeliveredFrame]:
        """See ``Stream.flush``."""
        self._is_ending = True
        return super().flush()

    def _new_filler(self) -> DeviceFiller:
        self._device_filler.restart()
        return self._device_filler

    def _encoded(self, condition: ConditionMap) -> TensorCondition:
        """The condition on the device; a label map is sent as it is and encoded there."""
        maps = (condition.labels, condition.instances, condition.maps)
        sent = [None if x is None else self._ferry.up(_sendable(x)) for x in maps]
        return encode_on_device(self.engine.form, self.manifest.condition, *sent)

    def _synthesise(self, condition: ConditionMap) -> MadeKeyframe:
        start = time.perf_counter()
        with self._ferry.working(), torch.no_grad():
            encoded = self._encoded(condition)
            is_given = not self._has_started and self._seed is not None
            if not self._has_started:
                self._step.start(encoded, self._past_frame(condition))
                self._has_started = True
            if is_given:
                assert self._seed is not None
                made: Any = self._seed if self._is_causal else from_levels(self._ferry.up(self._seed[None]))
            else:
                frame = self._step.step(encoded)
                # Copied: the next keyframe may be begun before the gap up to this one is filled.
                made = self._fetched(frame) if self._is_causal else frame.clone()
        return MadeKeyframe(made, not is_given, time.perf_counter() - start)

    def _fetched(self, frame: Tensor) -> NDArray[np.uint8]:
        """A keyframe (1, 3, H, W) as bytes on the host."""
        parts = [to_levels(frame).flatten(), frame.isfinite().all().byte().view(1)]
        data = self._ferry.down(torch.cat(parts)).take()
        if not data[-1]:
            raise NotFiniteError(self._pushed - 1, [])
        return data[:-1].reshape(*self.manifest.size, 3)

    def _fill(self, keyframes: Iterable[tuple[int, Any]]) -> list[DeliveredFrame]:
        """Queue the gap before each keyframe; give what has arrived."""
        frames: list[DeliveredFrame] = []
        start = time.perf_counter()
        try:
            for index, keyframe in keyframes:
                self._keyframes_out.add(index)
                frames += self._deliver(self._filler.push(index, keyframe, self._classes_up_to(index)), None)
            # At the end, and before an error, all that is on its way goes out.
            left = 0 if self._is_ending or self._failure is not None else _UNDER_WAY
            frames += self._deliver(self._device_filler.arrived(left), None)
        except NotFiniteError as error:
            frames += self._deliver(error.frames, None)
            self._failure = StreamError(
                f"keyframe {error.keyframe} could not be synthesised by {self.engine_name}: {error}"
            )
        except RuntimeError as error:  # torch's, such as a GPU without memory
            self._failure = StreamError(f"gaps could not be filled on {self._step.device}: {error}")
            self._failure.__cause__ = error
        self._count(fill_s=time.perf_counter() - start)
        return frames

    def _deliver(self, filled: Iterable[tuple[int, _Bytes]], keyframe: int | None) -> list[DeliveredFrame]:
        if keyframe is not None:  # of a causal stream
            return super()._deliver(filled, keyframe)
        frames = [
            DeliveredFrame(x.index, x.frame, x.index in self._keyframes_out) for x in super()._deliver(filled, None)
        ]
        self._keyframes_out.difference_update(x.index for x in frames)
        return frames


def _sendable(array: NDArray[Any]) -> NDArray[Any]:
    """Ids in a type that torch computes with."""
    return array if array.dtype in (np.uint8, np.int32, np.float32) else array.astype(_wide(array))


def _wide(array: NDArray[Any]) -> type[np.float32] | type[np.int32]:
    return np.float32 if array.dtype.kind == "f" else np.int32


def _stacked(labels: Sequence[NDArray[np.integer]]) -> NDArray[Any]:
    """Label maps (1, T, H, W)."""
    return _sendable(np.stack(labels)[None])


def why_not_on_a_device(manifest: Manifest) -> str | None:
    """What keeps a bundle from being streamed on a device; None where nothing does.

    Args:
        manifest: of the bundle.
    """
    method = manifest.interpolation["method"]
    if manifest.condition.guidance_levels:
        return "is guided by what it has painted, which is kept on the host"
    if method == NETWORK_METHOD:
        return "fills gaps by a network, which runs on the CPU"
    return None if method in ("blend", "dis") else f"fills gaps in an unknown way ({method})"


def _between(manifest: Manifest, estimator: FlowEstimator | None) -> _Between:
    """What fills gaps as the manifest asks for.

    Raises:
        BundleError: if nothing does on a device.
    """
    reason = why_not_on_a_device(manifest)
    if reason is not None:
        raise BundleError(f"{manifest.name} {reason}; stream it without --device")
    options = dict(manifest.interpolation)
    if options.pop("method") == "blend":
        return blend_between
    try:
        config: MotionConfig = motion_config(**options)
    except (TypeError, ConfigError) as error:
        raise BundleError(f"manifest.json of {manifest.name}: interpolation: {error}; export it again") from error
    return TorchInterpolator(config, estimator).between


def recorder_for(
    device: torch.device, estimator: FlowEstimator | None = None
) -> Callable[[Callable[[], None]], Callable[[], None]] | None:
    """What records the filling of gaps on a device, for a ``DeviceFiller``.

    On a CUDA GPU it is hundreds of kernels of a few microseconds, which take longer to start than to run.

    Args:
        device: where gaps are filled.
        estimator: finds the flow; None: the search does.

    Returns:
        None where nothing is recorded: not on a GPU, and not with an estimator of the caller's (torchvision's RAFT
        copies tensors of the CPU each time, which no graph may hold).
    """
    return Recorder(device) if device.type == "cuda" and estimator is None else None
