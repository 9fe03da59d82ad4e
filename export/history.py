"""What a step looks back on, as plain arrays. The torch twin is in ``fastv2v.render``. Runs without torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.inputs import StepCondition, with_guidance
from fastv2v.data.painter import empty_world, paint, render_levels

Points = Sequence[NDArray[np.integer[Any]]]
"""Which point of the world is seen at which pixel of a frame, -1 for none: (H / 2^k, W / 2^k) of each level k."""

_SPARE_STEPS = 6


class ArrayHistory:
    """The past of one stream, oldest first; starts as ``fastv2v.render.start_history`` does.

    What is past is a window that moves along a longer array, so that nothing is moved itself but once in
    ``_SPARE_STEPS`` steps: at 36 channels and 256x512 a copy of the past conditions takes 3 ms. The next condition can
    be encoded right into its place.

    A video that is guided by a painted world has that here, too: ``guided`` before the step, ``advance`` after it.

    Args:
        condition: encoded condition of the first frame, (C, h, w), at the size at which they are kept; stands in for
            all past conditions.
        history_length: N-1, at least 1.
        seed_frame: the real first frame, (3, H, W) float32 in [-1, 1], or None to start from nothing.
        scale: how many times larger frames are than the conditions that are kept, along each side.
        points: point ids of the seed frame, which then paints the world.
    """

    def __init__(
        self,
        condition: NDArray[np.float32],
        history_length: int,
        seed_frame: NDArray[np.float32] | None = None,
        *,
        scale: int = 1,
        points: Points | None = None,
    ) -> None:
        steps, size = history_length + _SPARE_STEPS, [scale * side for side in condition.shape[-2:]]
        self._length, self._begin = history_length, 0
        self._conditions = np.empty((1, steps, *condition.shape), np.float32)
        self._conditions[:, :history_length] = condition
        self._frames = np.zeros((1, steps, 3, *size), np.float32)
        self.valid = np.zeros(1, dtype=np.float32)
        if seed_frame is not None:
            self._frames[:, :history_length] = seed_frame
            self.valid[:] = 1
        self.world = empty_world()
        """What the video has painted so far."""
        if seed_frame is not None and points is not None:
            self.world = paint(self.world, seed_frame, points[0])

    @property
    def conditions(self) -> NDArray[np.float32]:
        """Past conditions, (1, N-1, C, h, w); good until the next ``advance``."""
        return self._conditions[:, self._begin : self._begin + self._length]

    @property
    def frames(self) -> NDArray[np.float32]:
        """Past frames, (1, N-1, 3, H, W) in [-1, 1]; good until the next ``advance``."""
        return self._frames[:, self._begin : self._begin + self._length]

    @property
    def next_condition(self) -> NDArray[np.float32]:
        """Where the next condition will lie, (C, h, w): written there, it need not be copied."""
        place: NDArray[np.float32] = self._conditions[0, self._begin + self._length]
        return place

    def guided(self, condition: StepCondition, points: Points | None) -> StepCondition:
        """The condition of the next frame with what is painted of the world, where its point ids are known."""
        if points is None or not len(self.world.seen):
            return condition
        return with_guidance(condition, render_levels(self.world, points))

    def advance(self, condition: NDArray[np.float32], frame: NDArray[np.float32], points: Points | None = None) -> None:
        """The oldest step leaves; ``condition`` (C, h, w) and ``frame`` (3, H, W) in [-1, 1] enter, and it paints."""
        if points is not None:
            self.world = paint(self.world, frame, points[0])
        if not np.may_share_memory(condition, self.next_condition):
            self.next_condition[:] = condition
        self._frames[0, self._begin + self._length] = frame
        self.valid[:] = 1
        self._begin += 1
        if self._begin == _SPARE_STEPS:  # the end of the array: the window goes back to its beginning
            for whole, window in ((self._conditions, self.conditions), (self._frames, self.frames)):
                whole[:, : self._length] = window
            self._begin = 0
