"""What was found in one frame, moved onto the next: how maps are kept from flickering. Torch-free."""

from __future__ import annotations

from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from fastv2v.data.prepare.survey import Frame

_DIFFERENCE: Final = 12.0
"""Grey levels by which a pixel and the one it came from may differ."""


class Follower:
    """Finds where the pixels of each frame were in the frame before it.

    Frames are RGB, (H, W, 3), and follow each other; the first one has no past.
    """

    def __init__(self) -> None:
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        self._last: NDArray[np.uint8] | None = None
        self._positions: NDArray[np.float32] | None = None
        self.trusted: NDArray[np.bool_] | None = None
        """(H, W): where this frame looks like the place it came from; None for the first one."""

    def advance(self, frame: Frame) -> None:
        """Go on to the next frame."""
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        if self._last is not None:
            height, width = grey.shape
            flow = self._flow.calc(grey, self._last, None)
            grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1)
            self._positions = (grid + flow).astype(np.float32)
            came_from = self.moved(self._last.astype(np.float32), cv2.INTER_LINEAR)
            self.trusted = np.abs(cv2.blur(came_from - grey, (3, 3))) < _DIFFERENCE
        self._last = grey

    def moved(self, values: NDArray[Any], method: int = cv2.INTER_NEAREST) -> NDArray[Any]:
        """Values of the frame before, (H, W) or (H, W, C), where they are in this one."""
        assert self._positions is not None
        return cv2.remap(values, self._positions, None, method, borderMode=cv2.BORDER_REPLICATE)


def steady_argmin(
    cost: NDArray[np.float32], before: NDArray[np.uint8] | None, follower: Follower, bonus: float
) -> NDArray[np.uint8]:
    """The cheapest class of every pixel, where the class it had before is cheaper by ``bonus``.

    Args:
        cost: (H, W, L).
        before: classes of the frame before, (H, W), or None for the first one.
        follower: advanced to this frame.
        bonus: in units of the cost.

    Returns:
        Class ids, (H, W).
    """
    if before is not None and follower.trusted is not None:
        rows, columns = np.nonzero(follower.trusted)
        cost = cost.copy()
        cost[rows, columns, follower.moved(before)[rows, columns]] -= bonus
    return cost.argmin(axis=-1).astype(np.uint8)


def without_specks(labels: NDArray[np.uint8], min_area: int) -> NDArray[np.uint8]:
    """Give connected pieces of fewer than ``min_area`` pixels to their nearest larger neighbours, (H, W)."""
    small = np.zeros(labels.shape, np.uint8)
    for label in np.unique(labels):
        _, pieces, stats, _ = cv2.connectedComponentsWithStats((labels == label).astype(np.uint8), connectivity=4)
        is_small = stats[:, cv2.CC_STAT_AREA] < min_area
        is_small[0] = False
        small |= is_small[pieces].astype(np.uint8)
    if not small.any() or small.all():
        return labels
    _, nearest = cv2.distanceTransformWithLabels(small, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    owner = np.zeros(int(nearest.max()) + 1, np.uint8)
    owner[nearest[small == 0]] = labels[small == 0]
    return owner[nearest]
