"""Measures on single frames: PSNR and SSIM. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import zip_longest
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from fastv2v.errors import ShapeError
from fastv2v.video import check_frame

PSNR_CAP_DB: Final = 100.0
"""PSNR of identical frames, which would be infinite, so that a mean over frames stays a number."""

_WINDOW: Final = 11
_SIGMA: Final = 1.5
_C1: Final = (0.01 * 255) ** 2
_C2: Final = (0.03 * 255) ** 2


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio, 10 log10(255² / MSE), over all pixels and channels.

    Args:
        a: RGB frame, (H, W, 3), 8-bit.
        b: same shape.

    Returns:
        Decibels, at most ``PSNR_CAP_DB``. Average it over frames; do not pool the errors first.

    Raises:
        ShapeError: if they are no 8-bit RGB frames of one size.
    """
    check_pair(a, b)
    squares = cv2.norm(a, b, cv2.NORM_L2SQR)  # exact: integers, summed in double
    if squares == 0:
        return PSNR_CAP_DB
    return min(PSNR_CAP_DB, float(10 * np.log10(255.0**2 * a.size / squares)))


def ssim(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Structural similarity, mean over the RGB channels and over the windows that lie wholly inside the frame.

    Gaussian window of 11x11 with sigma 1.5, K1 = 0.01, K2 = 0.03, window-weighted (population) moments.

    Args:
        a: RGB frame, (H, W, 3), 8-bit, at least 11x11.
        b: same shape.

    Returns:
        1 for identical frames, less for others; may be negative.

    Raises:
        ShapeError: if they are no 8-bit RGB frames of one size, or too small.

    Source:
        Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004.
    """
    check_pair(a, b)
    if min(a.shape[:2]) < _WINDOW:
        raise ShapeError(f"SSIM looks through windows of 11x11 pixels and the frames are {a.shape[0]}x{a.shape[1]}")
    # Variances do not depend on the mean: around mid-grey, float32 keeps all digits that matter.
    x, y = a.astype(np.float32) - 128, b.astype(np.float32) - 128
    mean_x, mean_y = _blur(x), _blur(y)
    covariance = _blur(x * y) - mean_x * mean_y
    variances = _blur(x * x + y * y) - mean_x * mean_x - mean_y * mean_y
    mean_x += 128
    mean_y += 128
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x * mean_x + mean_y * mean_y + _C1)
    similarity = luminance * (2 * covariance + _C2) / (variances + _C2)
    return min(1.0, float(similarity.mean(dtype=np.float64)))  # rounding may pass 1 by 1e-8


def check_pair(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> None:
    """Refuse two frames that are no 8-bit RGB pictures of one size.

    Raises:
        ShapeError: saying what came.
    """
    check_frame(a, "first frame")
    check_frame(b, "second frame")
    if a.shape != b.shape:
        raise ShapeError(f"frames of one size are compared, got {a.shape[:2]} and {b.shape[:2]} (height, width)")


def aligned(
    frames: Iterable[NDArray[np.uint8]], reference: Iterable[NDArray[np.uint8]]
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Pairs of frames with the same index, streamed.

    Raises:
        ShapeError: if one video is longer, sizes differ or change, or a frame is no 8-bit RGB picture.
    """
    size: tuple[int, ...] | None = None
    for index, (frame, real) in enumerate(zip_longest(frames, reference)):
        if frame is None or real is None:
            raise ShapeError(
                f"videos of equal length are compared by frame index; one of them ends after {index} frames"
            )
        check_pair(frame, real)
        size = size or frame.shape
        if frame.shape != size:
            raise ShapeError(f"frame {index} is {frame.shape[:2]}, the first one was {size[:2]} (height, width)")
        yield frame, real


def _blur(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Gaussian mean around every pixel whose window lies inside."""
    border = _WINDOW // 2
    return cv2.GaussianBlur(x, (_WINDOW, _WINDOW), _SIGMA)[border:-border, border:-border]
