"""How well predicted class maps agree with the label maps that frames were made from. Torch-free."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastv2v.errors import ShapeError

IGNORED: Final = 255
"""Label of pixels that are not judged."""


class SegmentationScore(NamedTuple):
    """Agreement of a prediction with the truth, every number in [0, 1]."""

    miou: float
    """Mean over the classes present (union above 0) of intersection over union."""
    pixel_accuracy: float
    """Share of all judged pixels that are right."""
    class_accuracy: float
    """Mean over the classes that occur in the truth of the share of their pixels that are right."""
    iou: tuple[float, ...]
    """Intersection over union of each class; NaN where a class is absent."""


def confusion_matrix(
    truth: NDArray[np.integer[Any]], predicted: NDArray[np.integer[Any]], num_classes: int
) -> NDArray[np.int64]:
    """Count pixels by true and predicted class. Add the matrices of many frames before they are scored.

    Args:
        truth: class ids, any shape; pixels of ``IGNORED`` are left out.
        predicted: class ids in [0, num_classes), same shape.
        num_classes: K, at most 255.

    Returns:
        (K, K): row i, column j holds the pixels of class i that were taken for class j.

    Raises:
        ShapeError: if shapes differ or an id is out of range.
    """
    if truth.shape != predicted.shape:
        raise ShapeError(f"true and predicted class maps differ in shape: {truth.shape} and {predicted.shape}")
    judged = truth != IGNORED
    rows, columns = truth[judged].astype(np.int64), predicted[judged].astype(np.int64)
    for name, ids in (("true", rows), ("predicted", columns)):
        if ids.size and not (ids.min() >= 0 and ids.max() < num_classes):
            raise ShapeError(f"{name} class ids must lie in 0 to {num_classes - 1}, got {ids.min()} to {ids.max()}")
    return np.bincount(rows * num_classes + columns, minlength=num_classes**2).reshape(num_classes, num_classes)


def segmentation_score(matrix: NDArray[np.integer[Any]]) -> SegmentationScore:
    """Scores of a confusion matrix over a whole data set. Classes that are absent count for nothing.

    Args:
        matrix: (K, K) counts, as ``confusion_matrix`` gives.

    Raises:
        ShapeError: if it is not square or counts no pixel.
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ShapeError(f"a confusion matrix is square, got {matrix.shape}")
    if not matrix.any():
        raise ShapeError("no pixel was judged: every label is ignored")
    counts = matrix.astype(np.float64)
    right, true_pixels, predicted_pixels = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    with np.errstate(invalid="ignore"):  # 0 / 0 of absent classes becomes NaN, which the means leave out
        iou = right / (true_pixels + predicted_pixels - right)
        recall = right / true_pixels
    return SegmentationScore(
        float(np.nanmean(iou)), float(right.sum() / counts.sum()), float(np.nanmean(recall)), tuple(iou.tolist())
    )
