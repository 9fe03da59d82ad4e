"""World consistency: does a place look the same when it is seen again? Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from fastv2v.errors import ShapeError
from fastv2v.metrics.temporal import nan_mean
from fastv2v.video import check_frame

AWAY: Final = 5
"""Successive frames a point must be out of sight before seeing it again counts as a return: where points come and go
from frame to frame, as on the edge of what a depth test accepts, that is none."""


class WorldErrors(NamedTuple):
    """How far points have moved from the colour they were first seen in; T frames, 8-bit levels."""

    seen_again: NDArray[np.float64]
    """(T,): mean over the points of each frame that an earlier one has shown; NaN where there are none."""
    returned: NDArray[np.float64]
    """(T,): the same over those that were out of sight since; NaN where there are none."""
    by_lag: NDArray[np.float64]
    """(T,): mean over all points seen again so many frames after they were first seen; NaN where there are none."""

    @property
    def error(self) -> float:
        """World-consistency error of the video: the mean over its frames, NaN where nothing is seen again."""
        return nan_mean(self.seen_again)

    @property
    def return_error(self) -> float:
        """The same of what comes back into sight."""
        return nan_mean(self.returned)


def world_errors(
    frames: Iterable[NDArray[np.uint8]], points: Sequence[NDArray[np.integer[Any]]], *, away: int = AWAY
) -> WorldErrors:
    """Compare every view of a point with its first one.

    The distance is the mean over red, green and blue of the absolute difference. Where a frame shows a point at several
    pixels, their mean counts, once. Compare with the same number for the real video: light, noise and points that are
    not quite right are in it too. Blur lowers it.

    Args:
        frames: T frames to judge, RGB, (H, W, 3) 8-bit.
        points: T maps of point ids, (H, W), -1 for none.
        away: frames out of sight after which a point counts as returned, at least 1.

    Returns:
        Errors frame by frame and by lag.

    Raises:
        ShapeError: if counts or sizes disagree.

    Source:
        Mallya et al., "World-Consistent Video-to-Video Synthesis", ECCV 2020: what its guidance is to keep equal.
    """
    count = len(points)
    size = 1 + max((int(ids.max(initial=-1)) for ids in points), default=-1)
    first = np.zeros((size, 3))
    first_at, last_at = np.full((2, size), -1)
    has_left = np.zeros(size, np.bool_)
    seen_again, returned = np.full((2, count), np.nan)
    lag_sums, lag_counts = np.zeros((2, count))
    taken = 0
    for t, frame in enumerate(frames):
        check_frame(frame, f"frame {t}")
        if t >= count or points[t].shape != frame.shape[:2]:
            expected = f"{count} maps of point ids" if t >= count else f"point ids of {points[t].shape}"
            raise ShapeError(f"frame {t} is {frame.shape[:2]} (height, width) and there are {expected}")
        ids, colours = _colours(frame, points[t])
        known = first_at[ids] >= 0
        again, fresh = ids[known], ids[~known]
        has_left[again] |= t - last_at[again] > away
        distances = np.abs(colours[known] - first[again]).mean(axis=1)
        seen_again[t] = nan_mean(distances)
        returned[t] = nan_mean(distances[has_left[again]])
        lags = t - first_at[again]
        lag_sums += np.bincount(lags, distances, minlength=count)
        lag_counts += np.bincount(lags, minlength=count)
        first[fresh], first_at[fresh] = colours[~known], t
        last_at[ids] = t
        taken = t + 1
    if taken != count:
        raise ShapeError(f"there are {taken} frames and {count} maps of point ids; they are compared by index")
    by_lag = np.divide(lag_sums, lag_counts, out=np.full(count, np.nan), where=lag_counts > 0)
    return WorldErrors(seen_again, returned, by_lag)


def _colours(
    frame: NDArray[np.uint8], points: NDArray[np.integer[Any]]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Ids that a frame shows, each once, with their mean colours (n, 3)."""
    ids = points.ravel()
    pixels = np.flatnonzero(ids >= 0)
    found, place, counts = np.unique(ids[pixels].astype(np.int64), return_inverse=True, return_counts=True)
    values = frame.reshape(-1, 3)[pixels].astype(np.float64)
    sums = [np.bincount(place, values[:, channel], minlength=len(found)) for channel in range(3)]
    return found, np.stack(sums, axis=1) / counts[:, None]


class ForwardBackward(NamedTuple):
    """Distance of each frame on the way there to the one on the way back; entry k is about step k."""

    rgb: NDArray[np.float64]
    """(N,): mean absolute difference over pixels and channels, 8-bit levels."""
    lab: NDArray[np.float64]
    """(N,): mean CIE76 distance over pixels, in CIELAB (sRGB, D65)."""


def there_and_back(num_frames: int) -> list[int]:
    """Frame numbers 0, ..., N, ..., 0 of a sequence of N + 1 frames."""
    return [*range(num_frames), *reversed(range(num_frames - 1))]


def forward_backward(frames: Sequence[NDArray[np.uint8]]) -> ForwardBackward:
    """Compare a rollout that runs a sequence there and back with itself.

    Args:
        frames: 2N + 1 frames made of the conditions that ``there_and_back`` lists, RGB, (H, W, 3) 8-bit. History and
            painted world must have run through without a restart.

    Returns:
        Distances of frame k and frame 2N - k, k = 0, ..., N - 1. Entry 0 is the published number; leave out the entries
        of frames that were given.

    Raises:
        ShapeError: if the number of frames is even or sizes differ.

    Source:
        Forward-backward consistency of Mallya et al., "World-Consistent Video-to-Video Synthesis", ECCV 2020.
    """
    if len(frames) % 2 == 0:
        raise ShapeError(f"a video that runs there and back has an odd number of frames, got {len(frames)}")
    steps = len(frames) // 2
    rgb, lab = np.zeros((2, steps))
    for k in range(steps):
        there, back = frames[k], frames[-1 - k]
        check_frame(there, f"frame {k}")
        check_frame(back, f"frame {len(frames) - 1 - k}")
        if there.shape != back.shape:
            raise ShapeError(f"frame {k} is {there.shape[:2]} and its return {back.shape[:2]} (height, width)")
        rgb[k] = np.abs(there.astype(np.int16) - back).mean()
        lab[k] = np.linalg.norm(_lab(there) - _lab(back), axis=2).mean()
    return ForwardBackward(rgb, lab)


def _lab(frame: NDArray[np.uint8]) -> NDArray[np.float32]:
    return cv2.cvtColor(frame.astype(np.float32) / np.float32(255), cv2.COLOR_RGB2LAB)
