"""What a step looks back on, as plain arrays. The torch twin is in ``fastv2v.render``. Runs without torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class ArrayHistory:
    """The past of one stream, oldest first; starts as ``fastv2v.render.start_history`` does.

    The arrays are moved up in place: at 35 channels and 256x512 a fresh copy for each step would cost as much as a
    small network's first layers.

    Args:
        condition: encoded condition of the first frame, (C, H, W); stands in for all past conditions.
        history_length: N-1, at least 1.
        seed_frame: the real first frame, (3, H, W) float32 in [-1, 1], or None to start from nothing.
    """

    def __init__(
        self, condition: NDArray[np.float32], history_length: int, seed_frame: NDArray[np.float32] | None = None
    ) -> None:
        shape = (1, history_length, *condition.shape)
        self.conditions = np.ascontiguousarray(np.broadcast_to(condition, shape), dtype=np.float32)
        self.frames = np.zeros((1, history_length, 3, *condition.shape[-2:]), dtype=np.float32)
        self.valid = np.zeros(1, dtype=np.float32)
        if seed_frame is not None:
            self.frames[:] = seed_frame
            self.valid[:] = 1

    def advance(self, condition: NDArray[np.float32], frame: NDArray[np.float32]) -> None:
        """The oldest step leaves; ``condition`` (C, H, W) and ``frame`` (3, H, W) in [-1, 1] enter."""
        for past, new in ((self.conditions, condition), (self.frames, frame)):
            past[:, :-1] = past[:, 1:]
            past[:, -1] = new
        self.valid[:] = 1
