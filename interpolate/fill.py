"""From keyframes to every frame: exact times, keyframes untouched, all at once or as a stream."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fastv2v.errors import ConfigError, ShapeError

Frame = NDArray[np.uint8]
Labels = NDArray[np.integer]


class Interpolator(Protocol):
    """Makes the frames between two keyframes."""

    def between(
        self, first: Frame, second: Frame, times: Sequence[float], labels: Sequence[Labels] | None = None
    ) -> list[Frame]:
        """Frames at ``times``.

        Args:
            first: keyframe at time 0, (H, W, 3) uint8 RGB.
            second: keyframe at time 1, same size.
            times: strictly between 0 and 1.
            labels: where they are known, class ids (H, W) of the first keyframe, of each wanted frame, and of the
                second keyframe.

        Returns:
            One (H, W, 3) uint8 frame for each time, in the same order.
        """
        ...


@runtime_checkable
class SequenceInterpolator(Protocol):
    """Fills a whole sequence in one go, for methods that are slow to start (an external program)."""

    def fill_sequence(self, keyframes: Sequence[Frame], indices: Sequence[int], total: int) -> list[Frame]:
        """Every frame of the sequence, as ``fill`` promises it. The arguments have been checked."""
        ...


def check_keyframes(keyframes: Sequence[Frame], indices: Sequence[int], total: int) -> None:
    """Refuse keyframes that do not describe a sequence of ``total`` frames.

    Raises:
        ConfigError: if there is no keyframe, or indices are out of [0, total), unsorted, repeated or not as many.
        ShapeError: if keyframes are not (H, W, 3) uint8 of one size.
    """
    if not keyframes:
        raise ConfigError("no keyframes were given; at least one is needed")
    if len(keyframes) != len(indices):
        raise ConfigError(f"{len(keyframes)} keyframes came with {len(indices)} indices; give one index for each")
    if indices[0] < 0 or indices[-1] >= total:
        raise ConfigError(
            f"keyframe indices must lie in 0 to {total - 1} for {total} frames, got {indices[0]} to {indices[-1]}"
        )
    for before, after in pairwise(indices):
        _check_order(before, after)
    for index, keyframe in zip(indices, keyframes, strict=True):
        _check_frame(index, keyframe, keyframes[0])


def _check_order(before: int, after: int) -> None:
    if after == before:
        raise ConfigError(f"keyframe index {after} was given twice")
    if after < before:
        raise ConfigError(f"keyframe indices must increase, got {after} after {before}")


def _check_frame(index: int, frame: Frame, first: Frame) -> None:
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or frame.size == 0:
        raise ShapeError(f"keyframe {index} must be (H, W, 3) uint8, got {frame.shape} {frame.dtype}")
    if frame.shape != first.shape:
        raise ShapeError(f"keyframe {index} is {frame.shape[:2]} where the first one is {first.shape[:2]}")


def gap_times(length: int) -> list[float]:
    """The times j / L of the L - 1 frames inside a gap of ``length`` L frames."""
    return [j / length for j in range(1, length)]


def fill(
    keyframes: Sequence[Frame],
    indices: Sequence[int],
    total: int,
    interpolator: Interpolator | SequenceInterpolator,
    labels: Sequence[Labels] | None = None,
) -> list[Frame]:
    """Every frame of a sequence from its keyframes.

    Args:
        keyframes: (H, W, 3) uint8 RGB, all of one size.
        indices: position of each keyframe, strictly increasing, in [0, total).
        total: number of frames wanted.
        interpolator: makes the frames inside the gaps.
        labels: class ids (H, W) of every frame, where they are known; methods that cannot use them do without.

    Returns:
        Exactly ``total`` frames. Those at ``indices`` are the given arrays themselves; inside a gap of L frames the
        j-th is interpolated at time j / L; before the first and after the last keyframe that keyframe is held (the
        same array again, so copy a frame before writing to it).

    Raises:
        ConfigError: if the indices are unsorted, repeated, out of range or not as many as the keyframes.
        ShapeError: if the keyframes differ in size or are not (H, W, 3) uint8, or labels are not one for each frame.
    """
    check_keyframes(keyframes, indices, total)
    if labels is not None and len(labels) != total:
        raise ShapeError(f"{len(labels)} label maps came for {total} frames; give one for each")
    if isinstance(interpolator, SequenceInterpolator):
        return interpolator.fill_sequence(keyframes, indices, total)
    filler = StreamFiller(interpolator)
    frames, before = [], indices[0]
    for index, keyframe in zip(indices, keyframes, strict=True):
        known = None if labels is None else labels[before : index + 1]
        frames += [frame for _, frame in filler.push(index, keyframe, known)]
        before = index
    return frames + [frame for _, frame in filler.finish(total)]


class StreamFiller:
    """``fill`` for a stream: the same frames, each as soon as it can be known.

    Keeps one keyframe, whatever the length of the stream.

    Args:
        interpolator: makes the frames inside the gaps.
    """

    def __init__(self, interpolator: Interpolator) -> None:
        self._interpolator = interpolator
        self._latest: tuple[int, Frame] | None = None
        self._is_finished = False

    def push(self, index: int, keyframe: Frame, labels: Sequence[Labels] | None = None) -> list[tuple[int, Frame]]:
        """Take the next keyframe.

        Args:
            index: its position in the sequence, above the previous one.
            keyframe: (H, W, 3) uint8. Held until the next push, so do not write to it.
            labels: class ids (H, W) of the previous keyframe, of every frame since and of this one, where they are
                known; not looked at for the first keyframe.

        Returns:
            The frames now due with their positions, in order: those since the previous keyframe, then this one. For
            the first keyframe the frames before it, all of them that keyframe.

        Raises:
            ConfigError: if ``index`` is negative or not above the previous one, or the stream was finished.
            ShapeError: if the keyframe is not (H, W, 3) uint8 or differs in size from the previous one, or labels do
                not belong to it.
        """
        if self._is_finished:
            raise ConfigError(f"keyframe {index} came after finish; start a new StreamFiller for a new sequence")
        if self._latest is None:
            if index < 0:
                raise ConfigError(f"a keyframe index cannot be negative, got {index}")
            _check_frame(index, keyframe, keyframe)
            due = [(i, keyframe) for i in range(index)]
        else:
            before, previous = self._latest
            _check_order(before, index)
            _check_frame(index, keyframe, previous)
            frames = self._between(previous, keyframe, gap_times(index - before), labels)
            due = list(enumerate(frames, start=before + 1))
        self._latest = index, keyframe
        return [*due, (index, keyframe)]

    def _between(self, first: Frame, second: Frame, times: list[float], labels: Sequence[Labels] | None) -> list[Frame]:
        return self._interpolator.between(first, second, times, labels) if times else []

    def finish(self, total: int) -> list[tuple[int, Frame]]:
        """Frames after the last keyframe, which is held.

        Args:
            total: number of frames of the whole sequence.

        Returns:
            The remaining frames with their positions; empty when the last frame was a keyframe.

        Raises:
            ConfigError: if no keyframe came, ``total`` does not reach past the last one, or it was finished before.
        """
        if self._is_finished:
            raise ConfigError("finish was called twice; start a new StreamFiller for a new sequence")
        if self._latest is None:
            raise ConfigError("the stream ended before its first keyframe")
        index, keyframe = self._latest
        if total <= index:
            raise ConfigError(f"a sequence of {total} frames cannot hold keyframe {index}")
        self._is_finished, self._latest = True, None
        return [(i, keyframe) for i in range(index + 1, total)]
