"""Which frames the student synthesises: every g-th, where the condition changes most, or what a budget allows."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from fastv2v.errors import ConfigError, ShapeError

Policy = Literal["uniform", "adaptive", "causal", "budgeted"]
"""Ways to choose keyframes."""


@dataclass(frozen=True, kw_only=True)
class KeyframeConfig:
    """How keyframes are chosen. The first frame always is one, and the last where the end is known in time."""

    policy: Policy = "uniform"
    """``uniform``: every ``gap`` frames. ``adaptive``: where the condition changes most, which is known a few frames
    later. ``causal``: as soon as the condition has changed enough since the last keyframe, known at once.
    ``budgeted``: likewise, with never more than ``per_second`` keyframes in any second."""
    gap: int = 4
    """Largest distance between two keyframes, in frames, whatever the policy."""
    min_gap: int = 1
    """Smallest distance (not for ``uniform``); at most (gap + 1) / 2, so that any longer stretch can be split."""
    window: int = 5
    """Length of the Hann window that smooths the change (``adaptive`` only): 1 (none) or odd; 3 smooths nothing."""
    every: float | None = None
    """Distance of keyframes that is aimed at on average (``causal`` only), in frames, at least 1; three quarters of
    ``gap`` by default."""
    per_second: int | None = None
    """Most keyframes within any second (``budgeted`` only)."""

    def __post_init__(self) -> None:
        if self.policy not in get_args(Policy):
            raise ConfigError(f"keyframe policy {self.policy!r} is unknown; choose {', '.join(get_args(Policy))}")
        if self.every is not None and (self.policy != "causal" or not 1 <= self.every <= self.gap):
            raise ConfigError(
                f"every ({self.every}) is the mean distance that the policy causal aims at, from 1 to the gap of "
                f"{self.gap}; leave it out elsewhere"
            )
        has_budget = self.per_second is not None
        if has_budget and not isinstance(self.per_second, int):
            raise ConfigError(f"per_second is a whole number of keyframes, got {self.per_second!r}")
        if has_budget != (self.policy == "budgeted") or (self.per_second is not None and self.per_second < 1):
            raise ConfigError(
                f"per_second ({self.per_second}) is the budget of the policy budgeted, at least 1; give both or neither"
            )
        if self.gap < 1:
            raise ConfigError(f"gap must be at least 1, got {self.gap}")
        _check_min_gap(self.min_gap, self.gap)
        _check_window(self.window)
        if self.policy == "adaptive" and _look_ahead(self.window) > self.gap:
            raise ConfigError(
                f"a window of {self.window} looks {_look_ahead(self.window)} frames ahead, more than the gap of "
                f"{self.gap}; shorten the window or widen the gap"
            )

    @property
    def look_ahead(self) -> int:
        """Frames that must come after one before ``adaptive`` knows whether it is a keyframe."""
        return _look_ahead(self.window)

    def mean_gap(self, fps: float) -> float:
        """Distance of keyframes that is to be expected, in frames; the largest where the condition decides alone.

        Args:
            fps: frames a second.
        """
        if self.per_second is not None:
            return max(1.0, fps / self.per_second)
        if self.policy == "causal":
            return self.every or max(1.0, 0.75 * self.gap)
        return float(self.gap)


def _check_min_gap(min_gap: int, max_gap: int) -> None:
    if min_gap < 1 or 2 * min_gap > max_gap + 1:
        raise ConfigError(
            f"min_gap must lie in 1 to {(max_gap + 1) // 2} for a largest gap of {max_gap}, got {min_gap}"
        )


def _check_window(window: int) -> None:
    if window < 1 or window % 2 == 0:
        raise ConfigError(f"the smoothing window must be odd and positive, got {window}")


def _look_ahead(window: int) -> int:
    """Frames after i that must have come before it is known whether i is a peak."""
    return max(1, (window - 1) // 2)


def uniform_keyframes(num_frames: int, gap: int) -> list[int]:
    """Every ``gap``-th frame from the first on, and the last.

    Args:
        num_frames: length of the sequence, at least 1.
        gap: distance in frames, at least 1.

    Returns:
        Increasing frame indices.

    Raises:
        ConfigError: if either is below 1.
    """
    if num_frames < 1 or gap < 1:
        raise ConfigError(f"keyframes need at least one frame and a gap of at least 1, got {num_frames} and {gap}")
    return [*range(0, num_frames - 1, gap), num_frames - 1]


def label_change(a: NDArray[np.integer], b: NDArray[np.integer]) -> float:
    """Fraction of pixels, in [0, 1], whose class differs between two label maps (H, W).

    Raises:
        ShapeError: if the maps differ in size.
    """
    _check_same_shape(a, b)
    return float(np.count_nonzero(a != b) / a.size)


def picture_change(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Difference of two rendered conditions in 8-bit LUV: the sum over channels, averaged over pixels.

    Args:
        a: (H, W, 3) RGB or (H, W) grey, uint8.
        b: same shape.

    Returns:
        A number in [0, 765]. (The reference sums over pixels too; only ratios matter to the choice of keyframes.)

    Raises:
        ShapeError: if shapes differ or are of another form.
    """
    _check_same_shape(a, b)
    if a.dtype != np.uint8 or a.ndim not in (2, 3) or (a.ndim == 3 and a.shape[2] != 3):
        raise ShapeError(f"a rendered condition is (H, W, 3) or (H, W) uint8, got {a.shape} {a.dtype}")
    difference = cv2.absdiff(_to_luv(a), _to_luv(b))
    return float(difference.sum(dtype=np.int64) / (a.shape[0] * a.shape[1]))


def _to_luv(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    rgb = cv2.cvtColor(picture, cv2.COLOR_GRAY2RGB) if picture.ndim == 2 else picture
    return cv2.cvtColor(rgb, cv2.COLOR_RGB2LUV)


def condition_change(a: NDArray, b: NDArray) -> float:
    """Change between two conditions of any kind.

    Args:
        a: label map (H, W) of integers, rendered picture (H, W, 3) uint8, or encoded channels (C, H, W) of floats.
        b: same kind and shape.

    Returns:
        ``label_change``, ``picture_change``, or the mean absolute difference.

    Raises:
        ShapeError: if shapes differ or the kind is none of these.
    """
    _check_same_shape(a, b)
    if a.ndim == 2 and np.issubdtype(a.dtype, np.integer):
        return label_change(a, b)
    if a.ndim == 3 and a.dtype == np.uint8:
        return picture_change(a, b)
    if a.ndim == 3 and np.issubdtype(a.dtype, np.floating):
        return float(np.mean(np.abs(a.astype(np.float64) - b)))
    raise ShapeError(
        f"a condition is a label map (H, W) of integers, a picture (H, W, 3) uint8 or channels (C, H, W) of floats, "
        f"got {a.shape} {a.dtype}"
    )


def _check_same_shape(a: NDArray, b: NDArray) -> None:
    if a.shape != b.shape or a.size == 0:
        raise ShapeError(f"two conditions of one sequence must share a size, got {a.shape} and {b.shape}")


def smooth_change(change: Sequence[float] | NDArray, window: int) -> NDArray[np.float64]:
    """Smooth a series with a Hann window over ends reflected through their points.

    Args:
        change: d_0 .. d_{M-1}.
        window: length w of the window, odd. Below 3, or with fewer than w values, nothing is smoothed.

    Returns:
        (M,) float64.

    Raises:
        ConfigError: if the window is even or not positive.

    Source:
        The key-frame selection of Zhuo et al., "Fast-Vid2Vid", ECCV 2022: 2 d_0 - d[w..2] in front (one further than
        a plain reflection), 2 d_last - d[last..last-w+2] behind.
    """
    _check_window(window)
    values = np.asarray(change, dtype=np.float64)
    return values if window < 3 or len(values) < window else _hann(values, window)


def _hann(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    kernel = np.hanning(window)
    front = np.minimum(np.arange(window, 1, -1), len(values) - 1)  # only index w can lie past the end; its weight is 0
    extended = np.concatenate([2 * values[0] - values[front], values, 2 * values[-1] - values[:-window:-1]])
    margin = window - 1 - window // 2
    return np.convolve(extended, kernel / kernel.sum(), mode="valid")[margin : margin + len(values)]


def change_peaks(change: Sequence[float] | NDArray, window: int) -> list[int]:
    """Frames at which the change peaks.

    Args:
        change: d_k, the change from frame k to k + 1, for k = 0 .. N - 2.
        window: length of the smoothing window, odd; see ``smooth_change``.

    Returns:
        k + 1 for every k whose smoothed change is above both neighbours. Ends and plateaus are no peaks, so indices
        lie in 2 .. N - 2.

    Raises:
        ConfigError: if the window is even or not positive.
    """
    return _peaks(smooth_change(change, window))


def _peaks(smoothed: NDArray[np.float64]) -> list[int]:
    is_peak = (smoothed[1:-1] > smoothed[:-2]) & (smoothed[1:-1] > smoothed[2:])
    return (np.flatnonzero(is_peak) + 2).tolist()


def adaptive_keyframes(
    change: Sequence[float] | NDArray, *, max_gap: int, min_gap: int = 1, window: int = 5
) -> list[int]:
    """First frame, peaks of the change, last frame; longer stretches are split evenly.

    Args:
        change: change between neighbouring frames, N - 1 values for N frames.
        max_gap: largest distance between two keyframes, in frames.
        min_gap: smallest distance; a peak closer to the keyframe before it is passed over. Only the last frame may
            follow more closely.
        window: length of the smoothing window, odd.

    Returns:
        Increasing frame indices from 0 to N - 1.

    Raises:
        ConfigError: if the gaps contradict each other or the window is even.
    """
    if max_gap < 1:
        raise ConfigError(f"max_gap must be at least 1, got {max_gap}")
    _check_min_gap(min_gap, max_gap)
    chosen = [0]
    last = len(change)
    for peak in change_peaks(change, window):
        if peak - chosen[-1] >= min_gap:
            chosen += _split(chosen[-1], peak, max_gap)
    return chosen + (_split(chosen[-1], last, max_gap) if last > chosen[-1] else [])


def _split(start: int, stop: int, max_gap: int) -> list[int]:
    """Indices after ``start`` up to ``stop``, as evenly spaced as can be, none further apart than ``max_gap``."""
    parts = -(-(stop - start) // max_gap)
    return [start + (stop - start) * k // parts for k in range(1, parts + 1)]


def select_keyframes(config: KeyframeConfig, conditions: Sequence[NDArray], fps: float | None = None) -> list[int]:
    """Keyframes of a whole sequence.

    Args:
        config: the policy.
        conditions: one for each frame; see ``condition_change`` for what they may be. Only counted if uniform.
        fps: frames a second, which ``budgeted`` needs.

    Returns:
        Increasing frame indices, the first and the last frame among them.

    Raises:
        ConfigError: if there is no frame, or gap and budget contradict each other at this rate.
        ShapeError: if conditions differ in size or are of no known kind.
    """
    if config.policy == "uniform" or not conditions:
        return uniform_keyframes(len(conditions), config.gap)
    if config.policy != "adaptive":
        selector = KeyframeSelector(config, fps)
        return [index for condition in conditions for index in selector.push(condition)] + selector.finish()
    change = [condition_change(a, b) for a, b in pairwise(conditions)]
    return adaptive_keyframes(change, max_gap=config.gap, min_gap=config.min_gap, window=config.window)


class _Pace:
    """When the condition has changed enough since the last keyframe: as much as it does in ``every`` frames on average.

    The average is over the past, so that nothing of the future is needed: of all changes at first, then of about
    ``_PACE_MEMORY`` times ``every`` frames.

    Args:
        every: distance of keyframes that is aimed at, in frames.
    """

    def __init__(self, every: float) -> None:
        self._every = every
        self._since = self._mean = 0.0
        self._count = 0

    def add(self, change: float) -> None:
        """Take the change from the frame before to this one."""
        self._since += change
        self._count += 1
        self._mean += (change - self._mean) / min(self._count, _PACE_MEMORY * self._every)

    @property
    def is_due(self) -> bool:
        """Whether this frame should be a keyframe."""
        # Sums of equal changes round: a hair less than enough is enough.
        return self._since > 0 and self._since >= self._mean * self._every * (1 - 1e-9)

    def begin(self) -> None:
        """Count anew from a keyframe."""
        self._since = 0.0


_PACE_MEMORY = 16


class _Allowance:
    """Keeps keyframes within a budget without ever having to exceed the largest gap later.

    A keyframe is allowed if it and all that would follow it at the largest gap stay within the budget. So one that the
    gap demands is always allowed: the one before was admitted with it in mind.

    Args:
        per_second: most keyframes in any second.
        fps: frames a second.
        gap: largest distance of keyframes.

    Raises:
        ConfigError: if keyframes at the largest gap exceed the budget already.
    """

    def __init__(self, per_second: int, fps: float, gap: int) -> None:
        if per_second * gap < fps:
            raise ConfigError(
                f"{per_second} keyframes a second are fewer than a gap of {gap} needs at {fps:g} frames/s; allow "
                f"{math.ceil(fps / gap)} or widen the gap to {math.ceil(fps / per_second)}"
            )
        self._fps, self._gap = fps, gap
        self._latest: deque[int] = deque(maxlen=per_second)

    def allows(self, index: int) -> bool:
        """Whether frame ``index`` may be a keyframe."""
        # In a budget of k, a keyframe and the k-th before it lie at least a second apart. The j-th after this one is
        # due at index + j gap, and the k-th before that is our (k-j)-th newest.
        newest = reversed(self._latest)
        k = self._latest.maxlen or 0
        return all(index + (k - back) * self._gap - past >= self._fps for back, past in enumerate(newest, start=1))

    def take(self, index: int) -> None:
        """Count a keyframe."""
        self._latest.append(index)


class KeyframeSelector:
    """Keyframes of a stream, decided as conditions arrive.

    ``uniform`` decides at once and exactly as ``uniform_keyframes``; so do ``causal`` and ``budgeted``, which compare
    what has changed since the last keyframe with what changes on average. The last frame of a sequence is a keyframe
    even where that exceeds the budget by one. ``adaptive`` knows whether frame i is a peak
    when frame i + (window - 1) / 2 has come (one frame later without smoothing), never more than ``gap`` frames on.
    It finds the same peaks as ``adaptive_keyframes`` and differs from it in this only:

    - a stretch without a peak cannot be split evenly before its end is known, so the keyframe that has to be inserted
      goes as far as it may, ``gap`` frames after the one before;
    - hence a peak less than ``min_gap`` after such a keyframe is passed over;
    - a sequence of no more frames than the window is not smoothed offline; here the frames decided before its end
      were.

    Memory does not grow with the stream.

    Args:
        config: the policy.
        fps: frames a second, which ``budgeted`` needs.

    Raises:
        ConfigError: if gap and budget contradict each other at this rate, or it is missing.
    """

    def __init__(self, config: KeyframeConfig | None = None, fps: float | None = None) -> None:
        self.config = config or KeyframeConfig()
        self._pace: _Pace | None = None
        self._allowance: _Allowance | None = None
        if self.config.per_second is not None:
            if fps is None or not fps > 0:
                raise ConfigError(f"a budget of keyframes a second needs the frame rate, got {fps}")
            self._allowance = _Allowance(self.config.per_second, fps, self.config.gap)
        if self.config.policy in ("causal", "budgeted"):
            self._pace = _Pace(self.config.mean_gap(fps or math.inf))
        self._num_frames = 0
        self._latest_keyframe = -1
        self._previous: NDArray | None = None
        # Enough past changes that smoothing around the undecided ones does not see where the record was cut.
        self._changes: deque[float] = deque(maxlen=3 * self.config.window + 3)
        self._is_finished = False

    def push(self, condition: NDArray) -> list[int]:
        """Take the condition of the next frame.

        Args:
            condition: see ``condition_change``; uniform selection does not look at it. Kept until the next push, so
                do not write to it.

        Returns:
            Frames that have just been decided to be keyframes, in order; often none.

        Raises:
            ShapeError: if the condition differs in size from the one before or is of no known kind.
            ConfigError: if the stream was finished.
        """
        if self._is_finished:
            raise ConfigError("a condition came after finish; start a new KeyframeSelector for a new sequence")
        index = self._num_frames
        if self.config.policy != "uniform":
            if self._previous is not None:
                change = condition_change(self._previous, condition)
                self._changes.append(change)
                if self._pace is not None:
                    self._pace.add(change)
            self._previous = condition
        self._num_frames += 1
        if index == 0:
            return self._choose(0)
        if self.config.policy == "uniform":
            return self._choose(index) if index % self.config.gap == 0 else []
        if self._pace is not None:
            return self._choose(index) if self._is_time(index, self._pace) else []
        candidate = index - _look_ahead(self.config.window)
        return self._decide(candidate, self._recent_peaks(is_complete=False)) if candidate > 0 else []

    def finish(self) -> list[int]:
        """Say that the sequence has ended.

        Returns:
            The keyframes not announced yet: the last frame, and adaptive ones shortly before it.

        Raises:
            ConfigError: if no condition came, or it was finished before.
        """
        if self._is_finished or self._num_frames == 0:
            raise ConfigError(
                "finish was called twice" if self._is_finished else "the stream ended before its first frame"
            )
        self._is_finished, self._previous = True, None
        last, chosen = self._num_frames - 1, []
        if self.config.policy == "adaptive":
            peaks = self._recent_peaks(is_complete=True)
            for candidate in range(max(1, last - _look_ahead(self.config.window) + 1), last):
                chosen += self._decide(candidate, peaks)
        return chosen + (self._choose(last) if last > self._latest_keyframe else [])

    def _recent_peaks(self, *, is_complete: bool) -> set[int]:
        """Peaks among the latest frames; valid where no later change can matter any more."""
        values = np.array(self._changes)
        window = self.config.window
        # Before the end it is not known that there will be too few changes to smooth, so they are.
        is_smoothed = window >= 3 and len(values) > 0 and not (is_complete and self._num_frames - 1 < window)
        offset = self._num_frames - 1 - len(values)
        return {peak + offset for peak in _peaks(_hann(values, window) if is_smoothed else values)}

    def _decide(self, candidate: int, peaks: set[int]) -> list[int]:
        distance = candidate - self._latest_keyframe
        is_wanted = candidate in peaks and distance >= self.config.min_gap
        return self._choose(candidate) if is_wanted or distance == self.config.gap else []

    def _is_time(self, index: int, pace: _Pace) -> bool:
        """Whether a policy that decides at once takes this frame."""
        distance = index - self._latest_keyframe
        if distance >= self.config.gap:
            return True
        is_allowed = self._allowance is None or self._allowance.allows(index)
        return distance >= self.config.min_gap and pace.is_due and is_allowed

    def _choose(self, index: int) -> list[int]:
        self._latest_keyframe = index
        if self._pace is not None:
            self._pace.begin()
        if self._allowance is not None:
            self._allowance.take(index)
        return [index]
