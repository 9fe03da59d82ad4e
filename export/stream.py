"""One video being made: condition maps in, every frame out, in order. Runs without torch.

Keyframes are synthesised where the selector asks for them, the frames between are interpolated. One worker thread
synthesises the next keyframe while the calling thread fills the gap before it; what comes out is the same either way.

A causal stream waits for no keyframe to come: every condition gives its frame at once, a keyframe or one that continues
the motion of the last two.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from export.bundle import Manifest
from export.engines import StepEngine
from export.history import ArrayHistory, Points
from export.inputs import ConditionForm, encode_for
from export.interpolation import ENGINE_OPTIONS, NETWORK_METHOD
from fastv2v.data.conditions import ConditionSpec
from fastv2v.data.painter import paint
from fastv2v.data.unprojection import MAX_POINTS
from fastv2v.errors import BundleError, ConfigError, DataError, ShapeError
from interpolate.extrapolate import DISExtrapolator, Extrapolator, HoldExtrapolator
from interpolate.fill import Interpolator, StreamFiller
from interpolate.keyframes import KeyframeConfig, KeyframeSelector
from interpolate.motion import BlendInterpolator, DISInterpolator, MotionConfig
from interpolate.network import Network, NetworkInterpolator, check_size


@dataclass(frozen=True, eq=False)
class DeliveredFrame:
    """One finished frame of the stream."""

    index: int
    """Position in the stream, from 0."""
    frame: NDArray[np.uint8]
    """(H, W, 3) RGB."""
    is_keyframe: bool
    """Synthesised (or given) rather than interpolated."""


@dataclass(frozen=True, kw_only=True)
class ConditionMap:
    """What one frame is made from; which fields are needed depends on the bundle's condition."""

    labels: NDArray[np.integer] | None = None
    """Class ids, (H, W)."""
    instances: NDArray[np.integer] | None = None
    """Instance ids, (H, W)."""
    maps: NDArray[np.float32] | None = None
    """Condition channels, (C, H, W), without guidance."""
    points: Points | None = None
    """For a bundle with guidance: which point of the world is seen at which pixel, -1 for none, (H / 2^k, W / 2^k) of
    each level k. Without them the frame is not guided and does not paint."""
    name: str | None = None
    """What messages call it, such as its file; ``frame 3`` where it has none."""


Condition = ConditionMap | NDArray[Any] | tuple[NDArray[np.integer], NDArray[np.integer]]
"""A bare array is a label map, or the channels where the condition is of maps; a pair is labels and instances."""


@dataclass(frozen=True, kw_only=True)
class StreamStats:
    """Where a stream's time went so far."""

    frames: int = 0
    """Frames delivered."""
    keyframes: int = 0
    """Keyframes synthesised; a seed frame is none."""
    synthesis_s: float = 0.0
    """Seconds spent encoding conditions and running the engine."""
    fill_s: float = 0.0
    """Seconds spent interpolating."""
    wait_s: float = 0.0
    """Seconds the calling thread waited for a keyframe."""
    delay_s: float = 0.0
    """Seconds from taking a frame's condition to handing the frame over, summed over frames."""
    longest_delay_s: float = 0.0
    """The longest of these."""

    @property
    def mean_delay_s(self) -> float:
        """Seconds a frame took on average; 0 before the first."""
        return self.delay_s / self.frames if self.frames else 0.0


class StreamError(BundleError):
    """A keyframe could not be synthesised, or the frames before one not be interpolated.

    Attributes:
        frames: finished frames before it that could not be handed over otherwise.
    """

    def __init__(self, message: str, frames: tuple[DeliveredFrame, ...] = ()) -> None:
        super().__init__(message)
        self.frames = frames


class StreamEngine(Protocol):
    """What a stream has to know of any engine."""

    name: str
    """Name of the engine."""
    precision: str
    """Number format it computes in."""

    @property
    def form(self) -> ConditionForm:
        """How it wants conditions."""
        ...


class MadeKeyframe(NamedTuple):
    """A keyframe as the worker hands it over."""

    frame: Any
    """(H, W, 3) uint8; a tensor where it stays on a device (``export.device_stream``)."""
    is_synthesised: bool
    """Whether the engine made it; a seed frame was given."""
    seconds: float
    """What making it took."""


class _Filler(Protocol):
    """What is used here of a ``StreamFiller``."""

    def push(
        self, index: int, keyframe: Any, labels: Sequence[NDArray[np.integer]] | None = None, /
    ) -> list[tuple[int, NDArray[np.uint8]]]: ...

    def finish(self, total: int, /) -> list[tuple[int, NDArray[np.uint8]]]: ...


class _Executor(Protocol):
    """The one method of an executor that is used here."""

    def submit(self, work: Callable[[], MadeKeyframe], /) -> Future[MadeKeyframe]: ...


class _Inline:
    """Does the work at once, in the calling thread."""

    def submit(self, work: Callable[[], MadeKeyframe], /) -> Future[MadeKeyframe]:
        done: Future[MadeKeyframe] = Future()
        try:
            done.set_result(work())
        except Exception as error:  # handed over through the future, as a worker thread would
            done.set_exception(error)
        return done


class Stream:
    """One video being made. Use ``export.runtime.open_bundle`` to get one.

    Args:
        engine: the step.
        manifest: of the bundle the step belongs to.
        overlap: synthesise in a worker thread while the calling thread interpolates. The frames are the same; which
            call hands them over then depends on timing.
        seed_frame: real first frame, uint8 RGB (H, W, 3); it is delivered as frame 0 and the stream goes on from it.
        causal: hand over the frame of each condition at once. Frames between keyframes are then extrapolated from the
            keyframes before, which is worse than filling in; nothing overlaps.
        network: the interpolation network, where the manifest's interpolation is one.

    Raises:
        BundleError: if the manifest asks for keyframes or an interpolation that this version does not know.
        ConfigError: if a causal stream shall choose keyframes by frames that come later.
        DataError: if the seed frame does not suit the bundle.
    """

    def __init__(
        self,
        engine: StepEngine,
        manifest: Manifest,
        *,
        overlap: bool = True,
        seed_frame: NDArray[np.uint8] | None = None,
        causal: bool = False,
        network: Network | None = None,
    ) -> None:
        self._steps = engine
        self._open(engine, manifest, overlap, seed_frame, causal, _interpolator(manifest, network))

    def _open(
        self,
        engine: StreamEngine,
        manifest: Manifest,
        overlap: bool,
        seed_frame: NDArray[np.uint8] | None,
        causal: bool,
        interpolator: Interpolator | None,
    ) -> None:
        """What streams of every kind begin with; those on a device fill gaps without the interpolator."""
        self.engine = engine
        self.manifest = manifest
        self._keyframes = _keyframe_config(manifest)
        self._interpolator = interpolator
        self._is_causal = causal
        if causal and self._keyframes.policy == "adaptive":
            raise ConfigError(
                f"the bundle {manifest.name} chooses keyframes by frames that come later (adaptive), so it cannot "
                "stream causally; export it with --keyframes.policy uniform, causal or budgeted"
            )
        overlap = overlap and not causal
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="keyframes") if overlap else None
        self._executor: _Executor = self._pool or _Inline()
        self._pending: deque[tuple[int, Future[MadeKeyframe]]] = deque()
        self._closed = False
        self.restart(seed_frame)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the worker thread. Frames that were not handed over are lost; ``flush`` first to get them."""
        self._closed = self._finished = True
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    @property
    def steps(self) -> StepEngine:
        """What makes the keyframes, to open another stream on it; not for streams on a device."""
        return self._steps

    @property
    def engine_name(self) -> str:
        """Engine and precision, such as ``openvino bf16``."""
        return f"{self.engine.name} {self.engine.precision}"

    @property
    def frames_waited(self) -> int:
        """How many conditions after its own a frame may have to wait for at most.

        Up to its keyframe's own, and where that is made beside the conditions that follow, up to a gap more.
        """
        config = self._keyframes
        if self._is_causal:
            return 0
        waited = config.gap - 1 + (config.look_ahead if config.policy == "adaptive" else 0)
        return waited if self._pool is None else waited + config.gap

    @property
    def num_taken(self) -> int:
        """Conditions that were taken since the stream began."""
        return self._pushed

    def time_step(self, condition: Condition) -> Callable[[], object]:
        """One bare synthesis step, for measuring: encoding, engine, and nothing remembered.

        Args:
            condition: of any frame.
        """
        taken = checked_condition(condition, self.manifest.condition, self.manifest.size, "the probe")
        spec = self.manifest.condition
        form = self.engine.form
        first = encode_for(form, spec, taken.labels, taken.instances, taken.maps)
        past = ArrayHistory(first.past, self.manifest.history_length, scale=form.scale)
        if taken.points is not None:  # rendering a painted world takes longer than an empty one
            past.world = paint(past.world, np.zeros((3, *self.manifest.size), np.float32), taken.points[0])

        def step() -> object:
            encoded = encode_for(form, spec, taken.labels, taken.instances, taken.maps, out=past.next_condition)
            return self._steps.run(past.guided(encoded, taken.points), past.conditions, past.frames, past.valid)

        return step

    def restart(self, seed_frame: NDArray[np.uint8] | None = None) -> None:
        """Begin another video with the same engine; what is left of the last one is dropped.

        Args:
            seed_frame: real first frame, uint8 RGB (H, W, 3), or None to start from nothing.

        Raises:
            DataError: if it does not suit the bundle.
            StreamError: if the stream was closed.
        """
        if self._closed:
            raise StreamError("this stream was closed; open the bundle again")
        seed = None if seed_frame is None else _checked_seed(seed_frame, self.manifest.size)
        for _, result in self._pending:
            result.exception()  # the worker still writes the old history until it is done
        self._pending.clear()
        self._seed = seed
        self._selector = KeyframeSelector(self._keyframes, self.manifest.fps)
        self._filler = self._new_filler()
        self._extrapolator = _extrapolator(self.manifest)
        self._latest: tuple[int, NDArray[np.integer] | None] | None = None
        self._history: ArrayHistory | None = None
        self._waiting: dict[int, ConditionMap] = {}
        self._classes: dict[int, NDArray[np.integer]] = {}
        self._came: dict[int, float] = {}
        self._pushed = 0
        self._failure: StreamError | None = None
        self._finished = False
        self.stats = StreamStats()
        """Where the time of this video went so far."""

    def push(self, condition: Condition) -> list[DeliveredFrame]:
        """Take the condition of the next frame and hand over the frames that are finished.

        Args:
            condition: its label map, (H, W) integers; or labels and instances; or a ``ConditionMap``. It is copied.

        Returns:
            Finished frames in order; often none, sometimes a whole gap.

        Raises:
            DataError: if the condition does not suit the bundle; it is then not counted as a frame.
            StreamError: if a keyframe could not be synthesised. Frames before it have been handed over by then.
        """
        if self._failure is not None:
            raise self._failure
        if self._finished:
            raise StreamError("this stream has ended; restart it before pushing more")
        taken = checked_condition(condition, self.manifest.condition, self.manifest.size, f"frame {self._pushed}")
        self._waiting[self._pushed] = taken
        self._came[self._pushed] = time.perf_counter()
        self._pushed += 1
        if self._is_causal:
            return [self._at_once(self._pushed - 1, taken)]
        if taken.labels is not None:
            self._classes[self._pushed - 1] = taken.labels
        frames = self._request(self._selector.push(_plane(taken)))
        frames += self._fill(self._collect(most_left=1, block=False))
        if self._failure is not None and not frames:
            raise self._failure
        return frames

    def flush(self) -> list[DeliveredFrame]:
        """End the stream and hand over all that is left.

        Returns:
            The last frames, in order; none when called again.

        Raises:
            StreamError: if a keyframe could not be synthesised; its ``frames`` are the finished ones before it.
        """
        if self._failure is not None:
            raise self._failure
        if self._finished or not self._pushed:
            return []
        if self._is_causal:
            self._finished = True
            return []
        frames = self._request(self._selector.finish())
        frames += self._fill(self._collect(most_left=0, block=True))
        if self._failure is not None:
            self._failure.frames = tuple(frames)
            raise self._failure
        frames += self._deliver(self._filler.finish(self._pushed), keyframe=None)
        self._finished = True
        return frames

    def frames(self, conditions: Iterable[Condition]) -> Iterator[DeliveredFrame]:
        """Stream a whole sequence.

        Args:
            conditions: one per frame.

        Yields:
            Every frame once, in order. Where the conditions break off with an error, or one does not suit the bundle,
            the stream ends there: the frames of all conditions before it come first, then the error.

        Raises:
            DataError: if a condition does not suit the bundle; the message names the frame.
            StreamError: if a keyframe could not be synthesised, after the frames before it.
        """
        broken: Exception | None = None
        source = iter(conditions)
        while True:
            try:
                frames = self.push(next(source))
            except StopIteration:
                break
            except StreamError:
                raise
            except Exception as error:  # whatever stopped the source: what is due goes out first
                broken = error
                break
            yield from frames
        try:
            last = self.flush()
        except StreamError as error:
            yield from error.frames
            raise
        yield from last
        if broken is not None:
            raise broken

    def _new_filler(self) -> _Filler:
        assert self._interpolator is not None, "streams without one have fillers of their own"
        return StreamFiller(self._interpolator)

    def _at_once(self, index: int, condition: ConditionMap) -> DeliveredFrame:
        """The frame of a condition without waiting for others.

        Raises:
            StreamError: if it is a keyframe and could not be synthesised.
        """
        del self._waiting[index]
        is_keyframe = bool(self._selector.push(_plane(condition)))
        if is_keyframe:
            self._pending.append((index, self._executor.submit(partial(self._synthesise, condition))))
            made = self._collect(most_left=0, block=True)
            if self._failure is not None:
                raise self._failure
            ((_, frame),) = made
            before = None if self._latest is None else self._latest[0]
            self._extrapolator.observe(frame, 1 if before is None else index - before)
            self._latest = index, condition.labels
        else:
            assert self._latest is not None  # the first frame always is a keyframe
            start = time.perf_counter()
            keyframe, classes = self._latest
            labels = None if classes is None or condition.labels is None else [classes, condition.labels]
            frame = self._extrapolator.ahead(index - keyframe, labels)
            self._count(fill_s=time.perf_counter() - start)
        (delivered,) = self._deliver([(index, frame)], keyframe=index if is_keyframe else None)
        return delivered

    def _request(self, keyframes: Iterable[int]) -> list[DeliveredFrame]:
        """Have keyframes synthesised, one in flight at a time; give what became due meanwhile."""
        frames: list[DeliveredFrame] = []
        for index in keyframes:
            ready = self._collect(most_left=0, block=True)
            if self._failure is None:
                work = partial(self._synthesise, self._waiting[index])
                self._waiting = {i: c for i, c in self._waiting.items() if i > index}
                self._pending.append((index, self._executor.submit(work)))
            # Filled only now, so that the worker is busy with the next keyframe while this thread interpolates.
            frames += self._fill(ready)
        return frames

    def _collect(self, *, most_left: int, block: bool) -> list[tuple[int, NDArray[np.uint8]]]:
        """Take finished keyframes, oldest first; wait while more than ``most_left`` are in flight."""
        ready = []
        while self._pending and self._failure is None:
            index, future = self._pending[0]
            if not future.done() and not (block and len(self._pending) > most_left):
                break
            start = time.perf_counter()
            error = future.exception()
            self._count(wait_s=time.perf_counter() - start)
            self._pending.popleft()
            if error is None:
                made = future.result()
                self._count(keyframes=int(made.is_synthesised), synthesis_s=made.seconds)
                ready.append((index, made.frame))
            else:
                self._failure = StreamError(f"keyframe {index} could not be synthesised by {self.engine.name}: {error}")
                self._failure.__cause__ = error
        return ready

    def _synthesise(self, condition: ConditionMap) -> MadeKeyframe:
        """Make one keyframe and remember it, unrounded, for the next."""
        start = time.perf_counter()
        place = None if self._history is None else self._history.next_condition
        form, spec = self.engine.form, self.manifest.condition
        encoded = encode_for(form, spec, condition.labels, condition.instances, condition.maps, out=place)
        if self._history is None:
            past_frame = self._past_frame(condition)
            self._history = ArrayHistory(
                encoded.past, self.manifest.history_length, past_frame, scale=form.scale, points=condition.points
            )
            if self._seed is not None:
                return MadeKeyframe(self._seed, False, time.perf_counter() - start)
        past = self._history
        shown = past.guided(encoded, condition.points)
        frame = self._steps.run(shown, past.conditions, past.frames, past.valid)["frame"][0]
        if not np.isfinite(frame).all():
            raise BundleError(f"{self.engine.precision} gave values that are not finite; choose precision f32")
        past.advance(encoded.past, frame, condition.points)
        return MadeKeyframe(to_uint8(frame), True, time.perf_counter() - start)

    def _past_frame(self, condition: ConditionMap) -> NDArray[np.float32] | None:
        """What the first condition looks back on, (3, H, W) in [-1, 1]: the seed frame, or what it shows itself."""
        if self._seed is not None:
            return from_uint8(self._seed)
        shown = self.manifest.condition.shown_channels
        return condition.maps[list(shown)] if shown and condition.maps is not None else None

    def _fill(self, keyframes: Iterable[tuple[int, NDArray[np.uint8]]]) -> list[DeliveredFrame]:
        """Interpolate up to each keyframe."""
        frames: list[DeliveredFrame] = []
        for index, keyframe in keyframes:
            start = time.perf_counter()
            try:
                filled = self._filler.push(index, keyframe, self._classes_up_to(index))
            except Exception as error:  # what comes after would be filled from the wrong keyframe
                self._failure = StreamError(f"the frames before keyframe {index} could not be interpolated: {error}")
                self._failure.__cause__ = error
                break
            self._count(fill_s=time.perf_counter() - start)
            frames += self._deliver(filled, keyframe=index)
        return frames

    def _classes_up_to(self, keyframe: int) -> list[NDArray[np.integer]] | None:
        """Label maps from the keyframe before to this one, where the condition has any; older ones are let go."""
        known = [self._classes[i] for i in sorted(self._classes) if i <= keyframe]
        self._classes = {i: labels for i, labels in self._classes.items() if i >= keyframe}
        return known or None

    def _deliver(self, filled: Iterable[tuple[int, NDArray[np.uint8]]], keyframe: int | None) -> list[DeliveredFrame]:
        # A keyframe is copied: the filler still needs its own when the caller already draws on this one.
        frames = [DeliveredFrame(i, x.copy() if i == keyframe else x, i == keyframe) for i, x in filled]
        now = time.perf_counter()
        delays = [now - self._came.pop(item.index) for item in frames]
        self._count(frames=len(frames), delay_s=sum(delays))
        longest = max(delays, default=0.0)
        self.stats = replace(self.stats, longest_delay_s=max(self.stats.longest_delay_s, longest))
        return frames

    def _count(self, **more: float) -> None:
        self.stats = replace(self.stats, **{name: getattr(self.stats, name) + x for name, x in more.items()})


def filling_threads(threads: int, *, overlap: bool = True) -> int:
    """How many threads to give OpenCV (``cv2.setNumThreads``, which holds for the whole process) for filling gaps.

    Beside an engine at work, half of what the engine has. On two cores two threads each waited for each other: gaps of
    a small student took up to twice their median time, and with one thread for filling hardly more than the median.

    Args:
        threads: CPU threads of the engine.
        overlap: whether keyframes are synthesised meanwhile.
    """
    return max(1, threads // 2) if overlap else threads


def to_uint8(frame: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A frame (3, H, W) in [-1, 1] as it is shown, (H, W, 3), rounded to nearest."""
    # OpenCV rounds and saturates above; what lies below -1 must not come back from the other side.
    picture = cv2.merge([np.maximum(channel, -1) for channel in frame])
    levels: NDArray[np.uint8] = cv2.convertScaleAbs(picture, alpha=127.5, beta=127.5)
    return levels


def from_uint8(frame: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A frame (H, W, 3) as the engine takes it, (3, H, W) in [-1, 1]."""
    return frame.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1


def _checked_seed(frame: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    if frame.shape != (*size, 3) or frame.dtype != np.uint8:
        raise DataError(
            f"seed frame: expected uint8 RGB of shape {(*size, 3)}, got {frame.dtype} of shape {frame.shape}; resize it"
        )
    return frame.copy()


def checked_condition(condition: Condition, spec: ConditionSpec, size: tuple[int, int], where: str) -> ConditionMap:
    """A copy of a condition that is known to suit the bundle: it is encoded later.

    Args:
        condition: as it was given.
        spec: how conditions of the bundle are encoded.
        size: (height, width).
        where: what messages call it where it has no name.

    Raises:
        DataError: if it does not suit.
    """
    given = _named(condition, spec)
    where = given.name or where
    points = _checked_points(given.points, spec.guidance_levels, size, where)
    if spec.kind == "maps":
        shape = (spec.map_channels, *size)
        return ConditionMap(maps=_checked_array(given.maps, shape, "f", f"{where}: condition maps"), points=points)
    labels = _checked_array(given.labels, size, "iu", f"{where}: label map")
    _check_known(labels, spec, where)
    if not spec.use_instances:
        return ConditionMap(labels=labels, points=points)
    instances = _checked_array(given.instances, size, "iu", f"{where}: instance map")
    return ConditionMap(labels=labels, instances=instances, points=points)


def _checked_points(points: Points | None, levels: int, size: tuple[int, int], where: str) -> Points | None:
    """Copies of the point ids a bundle takes; None where it takes none or there are none."""
    if points is None or not levels:
        return None
    if len(points) < levels:
        raise DataError(f"{where}: point ids of {len(points)} levels, and this bundle has guidance of {levels}")
    checked = []
    for k in range(levels):
        shape = (-(-size[0] >> k), -(-size[1] >> k))
        checked.append(_checked_array(points[k], shape, "iu", f"{where}: map of point ids of level {k}"))
        if (most := int(checked[k].max())) >= MAX_POINTS:
            raise DataError(f"{where}: point id {most} is too large; ids lie below {MAX_POINTS}")
    return checked


def _check_known(labels: NDArray[np.integer], spec: ConditionSpec, where: str) -> None:
    """Refuse ids the bundle was not trained on; its classes cannot be changed any more, the label map can."""
    unknown = (labels < 0) | (labels >= spec.num_classes)
    if spec.ignore_id is not None:
        unknown &= labels != spec.ignore_id
    if unknown.any():
        names = spec.class_names
        ignored = "" if spec.ignore_id is None else f", and {spec.ignore_id} for none"
        raise DataError(
            f"{where}: label id {int(labels[unknown][0])} is out of range; the classes of this bundle are 0 "
            f"({names[0]}) to {len(names) - 1} ({names[-1]}){ignored}: give the pixel one of these ids"
        )


def _named(condition: Condition, spec: ConditionSpec) -> ConditionMap:
    """Give the parts of a condition their names."""
    if isinstance(condition, ConditionMap):
        return condition
    if isinstance(condition, tuple):
        labels, instances = condition
        return ConditionMap(labels=labels, instances=instances)
    return ConditionMap(maps=condition) if spec.kind == "maps" else ConditionMap(labels=condition)


def _checked_array(array: NDArray[Any] | None, shape: tuple[int, ...], kinds: str, where: str) -> NDArray[Any]:
    if array is None:
        raise DataError(f"{where} is missing and this bundle needs one")
    if array.shape != shape:
        raise DataError(
            f"{where} has shape {array.shape} and this bundle was exported for {shape}; resize it (nearest)"
        )
    if array.dtype.kind not in kinds:
        raise DataError(
            f"{where} has values of type {array.dtype}, expected {'floats' if kinds == 'f' else 'integers'}"
        )
    return array.copy()


def _plane(condition: ConditionMap) -> NDArray[Any]:
    """What the keyframe selector looks at."""
    plane = condition.maps if condition.labels is None else condition.labels
    assert plane is not None, "a checked condition has labels or maps"
    return plane


def _keyframe_config(manifest: Manifest) -> KeyframeConfig:
    try:
        config = KeyframeConfig(**manifest.keyframes)  # type: ignore[arg-type]
        KeyframeSelector(config, manifest.fps)  # refuses a gap that the budget does not allow
        return config
    except (TypeError, ConfigError) as error:
        raise BundleError(f"manifest.json of {manifest.name}: keyframes: {error}; export the bundle again") from error


def _interpolator(manifest: Manifest, network: Network | None) -> Interpolator:
    options = dict(manifest.interpolation)
    method = options.pop("method")
    if method not in EXTRAPOLATORS:
        raise BundleError(
            f"manifest.json of {manifest.name}: interpolation method {method!r} is not one of "
            f"{', '.join(EXTRAPOLATORS)}; upgrade fastv2v or export the bundle again"
        )
    try:
        if method != NETWORK_METHOD:
            return INTERPOLATORS[str(method)](**options)
        if network is None:
            raise BundleError(f"{manifest.name} interpolates by a network; open it with export.runtime.open_bundle")
        check_size(manifest.size)
        return NetworkInterpolator(network, motion_config(**options))
    except (TypeError, ConfigError, ShapeError) as error:
        raise BundleError(f"manifest.json of {manifest.name}: interpolation: {error}; export it again") from error


def _extrapolator(manifest: Manifest) -> Extrapolator:
    """What continues motion where the interpolator fills it in; options that this one understood suit it too."""
    options: dict[str, Any] = dict(manifest.interpolation)
    return EXTRAPOLATORS[str(options.pop("method"))](**options)


def motion_config(**options: Any) -> MotionConfig:
    """Motion compensation from the options of a manifest; those of the network's engine are not its.

    Raises:
        ConfigError: if a value makes no sense.
        TypeError: if there is no such option.
    """
    return MotionConfig(**{name: value for name, value in options.items() if name not in ENGINE_OPTIONS})


def _dis(**options: Any) -> Interpolator:
    return DISInterpolator(MotionConfig(**options))


def _dis_ahead(**options: Any) -> Extrapolator:
    return DISExtrapolator(motion_config(**options))


INTERPOLATORS: Mapping[str, Callable[..., Interpolator]] = {"dis": _dis, "blend": BlendInterpolator}
"""Interpolation methods a bundle may name that need no network."""
EXTRAPOLATORS: Mapping[str, Callable[..., Extrapolator]] = {
    "dis": _dis_ahead,
    "blend": HoldExtrapolator,
    NETWORK_METHOD: _dis_ahead,
}
"""What a causal stream does in the place of every interpolation method."""
