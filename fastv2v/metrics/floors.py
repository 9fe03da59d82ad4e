"""What a model must beat before it can be said to have learnt: two predictions that need no network. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastv2v.errors import DataError, ShapeError
from fastv2v.video import check_frame


@dataclass(frozen=True)
class MeanColourFloor:
    """Paints every label with its mean colour over the training pixels."""

    colours: NDArray[np.uint8]
    """(L, 3) RGB, one row for each label up to the highest seen; labels never seen have the mean of all pixels."""
    mean_colour: NDArray[np.uint8]
    """(3,) RGB mean of all pixels, also used for labels beyond the table."""

    @classmethod
    def fit(cls, pairs: Iterable[tuple[NDArray[np.integer[Any]], NDArray[np.uint8]]]) -> MeanColourFloor:
        """Average the colours of each label.

        Args:
            pairs: label ids (H, W) from 0 to 65535 with their frame, RGB (H, W, 3) 8-bit; training data only.

        Raises:
            ShapeError: if a pair does not fit together.
            DataError: if there is no pair, or an id is negative or above 65535.
        """
        sums, counts = np.zeros((0, 3)), np.zeros(0, np.int64)
        for labels, frame in pairs:
            check_frame(frame, "training frame")
            if labels.shape != frame.shape[:2]:
                raise ShapeError(f"label map {labels.shape} and frame {frame.shape[:2]} differ in size")
            ids = _checked_ids(labels)
            length = max(len(counts), int(ids.max()) + 1)
            counts = _grown(counts, length) + np.bincount(ids, minlength=length)
            colour_sums = [np.bincount(ids, frame[..., c].ravel(), minlength=length) for c in range(3)]
            sums = _grown(sums, length) + np.stack(colour_sums, axis=1)
        if not counts.sum():
            raise DataError("the mean-colour floor needs at least one training frame with its label map")
        mean = sums.sum(axis=0) / counts.sum()
        colours = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], mean)
        return cls(np.rint(colours).astype(np.uint8), np.rint(mean).astype(np.uint8))

    def paint(self, labels: NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
        """The floor's frame for a label map.

        Args:
            labels: ids, (H, W).

        Returns:
            RGB, (H, W, 3).

        Raises:
            DataError: if an id is negative or above 65535.
        """
        ids = np.minimum(_checked_ids(labels), len(self.colours))
        return np.concatenate([self.colours, self.mean_colour[None]])[ids].reshape(*labels.shape, 3)


def previous_frame_floor(real: Sequence[NDArray[np.uint8]], before: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Predict every frame by the real frame before it.

    Args:
        real: the T real frames to predict.
        before: the real frame that precedes them (the last of those given to the generator).

    Returns:
        T frames, aligned by index with ``real``.
    """
    return [before, *real[:-1]] if real else []


def _checked_ids(labels: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    ids = labels.ravel().astype(np.int64)
    if ids.size and (ids.min() < 0 or ids.max() > 65535):
        raise DataError(f"label ids lie in 0..65535, got {ids.min()} to {ids.max()}")
    return ids


def _grown(x: NDArray[Any], length: int) -> NDArray[Any]:
    """``x`` with zero rows appended up to ``length``."""
    return np.concatenate([x, np.zeros((length - len(x), *x.shape[1:]), x.dtype)])
