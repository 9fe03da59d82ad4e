"""What was painted onto label maps: strokes that can be taken back. Runs without torch."""

from __future__ import annotations

from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from export.live.protocol import Stroke
from fastv2v.data.transforms import Size
from fastv2v.errors import DataError

MAX_STROKES: Final = 200
"""Strokes that can be taken back; older ones stay for good."""
MAX_KEPT: Final = 32_768
"""Points of these strokes in all; where there are more, the oldest strokes stay for good."""
MAX_OF_A_STROKE: Final = 4096
"""Points of a stroke; a longer one is taken back part by part."""

_NOTHING: Final = -1
_SHIFT: Final = 4


class Overlay:
    """Classes painted over label maps.

    Args:
        size: (height, width) of the maps.
        num_classes: classes there are.
    """

    def __init__(self, size: Size, num_classes: int) -> None:
        self._num_classes = num_classes
        self._base = np.full(size, _NOTHING, np.int32)
        self._strokes: list[list[Stroke]] = []
        self._kept = 0
        self._painted = self._base.copy()

    @property
    def num_strokes(self) -> int:
        """Strokes that can be taken back."""
        return len(self._strokes)

    def add(self, stroke: Stroke) -> None:
        """Paint.

        Raises:
            DataError: if there is no such class.
        """
        if stroke.label >= self._num_classes:
            raise DataError(f"there is no class {stroke.label}; the bundle has 0 to {self._num_classes - 1}")
        if stroke.begins or not self._strokes or _points_of(self._strokes[-1]) >= MAX_OF_A_STROKE:
            self._strokes.append([])
        self._strokes[-1].append(stroke)
        self._kept += len(stroke.points)
        _draw(self._painted, stroke)
        while len(self._strokes) > MAX_STROKES or self._kept > MAX_KEPT:
            oldest = self._strokes.pop(0)
            self._kept -= _points_of(oldest)
            for part in oldest:
                _draw(self._base, part)

    def undo(self) -> None:
        """Take back the last stroke, if there is one."""
        if not self._strokes:
            return
        self._kept -= _points_of(self._strokes.pop())
        self._painted = self._base.copy()
        for stroke in self._strokes:
            for part in stroke:
                _draw(self._painted, part)

    def clear(self) -> None:
        """Take back everything."""
        self._strokes.clear()
        self._kept = 0
        self._base.fill(_NOTHING)
        self._painted.fill(_NOTHING)

    def over(self, ids: NDArray[np.integer[Any]]) -> NDArray[np.integer[Any]]:
        """Class or instance ids, (H, W), with what was painted over them; a copy where there is something."""
        where = self._painted != _NOTHING
        return np.where(where, self._painted, ids).astype(np.result_type(ids, np.int32)) if where.any() else ids


def _points_of(stroke: list[Stroke]) -> int:
    return sum(len(part.points) for part in stroke)


def _draw(canvas: NDArray[np.int32], stroke: Stroke) -> None:
    points = np.rint(np.array(stroke.points) * (1 << _SHIFT)).astype(np.int32)
    colour, radius = (float(stroke.label),), stroke.size / 2
    cv2.polylines(canvas, [points], False, colour, max(1, round(stroke.size)), shift=_SHIFT)
    for x, y in points.tolist():
        cv2.circle(canvas, (x, y), round(radius * (1 << _SHIFT)), colour, cv2.FILLED, shift=_SHIFT)
