"""What a step looks back on, as plain arrays. The torch twin is in ``fastv2v.render``. Runs without torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_SPARE_STEPS = 6


class ArrayHistory:
    """The past of one stream, oldest first; starts as ``fastv2v.render.start_history`` does.

    What is past is a window that moves along a longer array, so that nothing is moved itself but once in
    ``_SPARE_STEPS`` steps: at 36 channels and 256x512 a copy of the past conditions takes 3 ms. The next condition can
    be encoded right into its place.

    Args:
        condition: encoded condition of the first frame, (C, h, w), at the size at which they are kept; stands in for
            all past conditions.
        history_length: N-1, at least 1.
        seed_frame: the real first frame, (3, H, W) float32 in [-1, 1], or None to start from nothing.
        scale: how many times larger frames are than the conditions that are kept, along each side.
    """

    def __init__(
        self,
        condition: NDArray[np.float32],
        history_length: int,
        seed_frame: NDArray[np.float32] | None = None,
        *,
        scale: int = 1,
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

    def advance(self, condition: NDArray[np.float32], frame: NDArray[np.float32]) -> None:
        """The oldest step leaves; ``condition`` (C, h, w) and ``frame`` (3, H, W) in [-1, 1] enter."""
        if not np.may_share_memory(condition, self.next_condition):
            self.next_condition[:] = condition
        self._frames[0, self._begin + self._length] = frame
        self.valid[:] = 1
        self._begin += 1
        if self._begin == _SPARE_STEPS:  # the end of the array: the window goes back to its beginning
            for whole, window in ((self._conditions, self.conditions), (self._frames, self.frames)):
                whole[:, : self._length] = window
            self._begin = 0
