"""Fréchet distance between sets of features, whichever network they come from. Torch-free."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastv2v.errors import DataError, ShapeError

Features = NDArray[np.floating[Any]]


def frechet_distance(a: Features, b: Features) -> float:
    """‖μa − μb‖² + Tr(Σa + Σb − 2 (Σa Σb)^½) with sample covariances (N − 1), in float64.

    No matrix root is taken. With centred samples A and B, Σa = AᵀA and Σb = BᵀB, the trace of (Σa Σb)^½ is the sum of
    the singular values of A Bᵀ: exact, never complex, and as small as the smaller set, so that singular covariances
    (fewer samples than dimensions) need no special case. See ``has_few_samples`` for what such a value is worth.

    Args:
        a: features of one set, (N, D), N at least 2.
        b: features of the other, (M, D), M at least 2.

    Returns:
        The squared distance, at least 0 up to rounding; 0 for equal sets.

    Raises:
        ShapeError: if these are no two sets of at least two vectors of one length.
        DataError: if a feature is not finite.

    Source:
        Dowson and Landau, "The Fréchet distance between multivariate normal distributions", 1982; Heusel et al., "GANs
        trained by a two time-scale update rule", NeurIPS 2017, for its use on features.
    """
    for name, x in (("first", a), ("second", b)):
        if x.ndim != 2 or x.shape[0] < 2 or x.shape[1] < 1:
            raise ShapeError(f"a Fréchet distance needs (N, D) features with N of at least 2; the {name} are {x.shape}")
        if not np.isfinite(x).all():
            raise DataError(f"the {name} features of a Fréchet distance hold NaN or infinity; look at their network")
    if a.shape[1] != b.shape[1]:
        raise ShapeError(f"features of one network are compared, got lengths {a.shape[1]} and {b.shape[1]}")
    mean_a, root_a = _mean_and_root(a)
    mean_b, root_b = _mean_and_root(b)
    overlap = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    return float(np.square(mean_a - mean_b).sum() + np.square(root_a).sum() + np.square(root_b).sum() - 2 * overlap)


def has_few_samples(count: int, dimension: int) -> bool:
    """Whether a set is too small for its Fréchet distance to mean much on its own.

    Below twice as many samples as dimensions the covariance is close to singular and the distance is biased upwards.
    Such values may be compared side by side, for sets of one size, and never with other tables.

    Args:
        count: samples of the smaller set.
        dimension: length of a feature vector.
    """
    return count < 2 * dimension


def video_features(frame_features: Features) -> NDArray[np.float64]:
    """One vector for a video: what its frames show, and how much that changes from frame to frame.

    Args:
        frame_features: of consecutive frames, (T, D), T at least 2.

    Returns:
        (2D,): the mean over frames, then the mean absolute difference of neighbours.

    Raises:
        ShapeError: if there are fewer than two frames.
    """
    if frame_features.ndim != 2 or len(frame_features) < 2:
        raise ShapeError(f"a video feature needs (T, D) features of at least two frames, got {frame_features.shape}")
    features = frame_features.astype(np.float64)
    return np.concatenate([features.mean(axis=0), np.abs(np.diff(features, axis=0)).mean(axis=0)])


def _mean_and_root(features: Features) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean (D,) and a matrix R of at most D rows with RᵀR the sample covariance."""
    x = features.astype(np.float64)
    mean = x.mean(axis=0)
    root = (x - mean) / np.sqrt(len(x) - 1)
    return mean, np.asarray(np.linalg.qr(root, mode="r")) if len(x) > x.shape[1] else root
