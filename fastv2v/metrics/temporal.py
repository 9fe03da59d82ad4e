"""Temporal consistency: warping error along the motion of the real video, and flicker. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from fastv2v.errors import ShapeError
from fastv2v.metrics.image import aligned
from fastv2v.video import check_frame

_MIN_SIDE: Final = 12  # the least DIS accepts


class Motion(NamedTuple):
    """Motion of a real video of T frames; entry t belongs to frames t and t + 1."""

    flows: list[NDArray[np.float32]]
    """T-1 flows (H, W, 2) in pixels, +x right, +y down: where each pixel of the later frame is found in the earlier."""
    masks: list[NDArray[np.bool_]]
    """T-1 masks (H, W): pixels of the later frame that can be seen in the earlier one, off motion boundaries."""


def flows_and_masks(real_frames: Iterable[NDArray[np.uint8]]) -> Motion:
    """Estimate the motion of a real video with DIS optical flow, and where it can be trusted.

    A pixel p is masked out when the flows there and back do not cancel, |w + w_back(p + w)|² > 0.01 (|w|² + |w_back|²)
    + 0.5; on a motion boundary, |∇u|² + |∇v|² > 0.01 |w|² + 0.002; or when p + w lies outside the frame.

    Args:
        real_frames: RGB, each (H, W, 3) 8-bit, at least 12 pixels high and wide.

    Returns:
        Flows and masks, one fewer than frames.

    Raises:
        ShapeError: if frames are no 8-bit RGB pictures of one size, or too small.

    Source:
        The occlusion tests of Sundaram et al., "Dense point trajectories by GPU-accelerated large displacement optical
        flow", ECCV 2010, as used by Ruder et al., "Artistic style transfer for videos", GCPR 2016.
    """
    estimator = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    motion = Motion([], [])
    for earlier, later in pairwise(_grey(real_frames)):
        flow = estimator.calc(later, earlier, None)
        back = estimator.calc(earlier, later, None)
        motion.flows.append(flow)
        motion.masks.append(_is_visible(flow, back) & ~_is_motion_boundary(flow))
    return motion


def warping_errors(
    frames: Iterable[NDArray[np.uint8]], flows: Sequence[NDArray[np.float32]], masks: Sequence[NDArray[np.bool_]]
) -> NDArray[np.float64]:
    """Squared difference of each frame to the frame before it, moved along the real motion.

    E_t = Σ M ‖g_t − warp(g_{t−1})‖² / Σ M with RGB in [0, 1] and the mean over channels.

    Args:
        frames: T frames to judge, RGB, (H, W, 3) 8-bit.
        flows: T-1 flows of the real video, as ``flows_and_masks`` gives.
        masks: T-1 masks of the real video.

    Returns:
        (T-1,): entry t judges frame t + 1 against frame t; NaN where a mask is empty, as at a cut.

    Raises:
        ShapeError: if counts or sizes disagree.
    """
    if len(flows) != len(masks):
        raise ShapeError(f"every flow has its mask, got {len(flows)} flows and {len(masks)} masks")
    errors = []
    count = 0
    previous: NDArray[np.float32] | None = None
    for count, frame in enumerate(frames, start=1):
        check_frame(frame, f"frame {count - 1}")
        current = frame.astype(np.float32) / np.float32(255)
        if previous is not None and count - 2 < len(flows):
            flow, mask = flows[count - 2], masks[count - 2]
            if flow.shape[:2] != frame.shape[:2] or mask.shape != frame.shape[:2] or previous.shape != frame.shape:
                raise ShapeError(
                    f"frame {count - 1} is {frame.shape[:2]}, its flow {flow.shape[:2]}, mask {mask.shape}"
                )
            squares = np.square(current - warp_numpy(previous, flow)).mean(axis=2)
            errors.append(float(squares[mask].mean(dtype=np.float64)) if mask.any() else np.nan)
        previous = current
    if count != len(flows) + 1:
        raise ShapeError(f"{len(flows)} flows belong to {len(flows) + 1} frames, got {count} frames")
    return np.array(errors, np.float64)


def warping_error(
    frames: Iterable[NDArray[np.uint8]], flows: Sequence[NDArray[np.float32]], masks: Sequence[NDArray[np.bool_]]
) -> float:
    """Mean of ``warping_errors`` over a video; compare it with the same number for the real video.

    Blur lowers this error, so that a value below the real video's is no merit.

    Returns:
        The mean over pairs with a usable mask; NaN where there is none (a single frame, or cuts only).

    Raises:
        ShapeError: if counts or sizes disagree.
    """
    return nan_mean(warping_errors(frames, flows, masks))


def flickers(frames: Iterable[NDArray[np.uint8]], real: Iterable[NDArray[np.uint8]]) -> NDArray[np.float64]:
    """Mean absolute difference between the change of the frames and the change of the real ones, RGB in [0, 1].

    Args:
        frames: T frames, RGB, (H, W, 3) 8-bit.
        real: T real frames of the same size.

    Returns:
        (T-1,): entry t is about the step from frame t to frame t + 1.

    Raises:
        ShapeError: if counts or sizes disagree.
    """
    # The change of g minus the change of x is the change of g - x.
    residuals = (np.subtract(frame, original, dtype=np.int16) for frame, original in aligned(frames, real))
    return np.array([np.abs(later - earlier).mean() / 255 for earlier, later in pairwise(residuals)], np.float64)


def flicker(frames: Iterable[NDArray[np.uint8]], real: Iterable[NDArray[np.uint8]]) -> float:
    """Mean of ``flickers`` over a video, in [0, 2]; NaN for a single frame.

    Raises:
        ShapeError: if counts or sizes disagree.
    """
    return nan_mean(flickers(frames, real))


def warp_numpy(source: NDArray[np.float32], flow: NDArray[np.float32]) -> NDArray[np.float32]:
    """Move ``source`` onto the frame that ``flow`` starts from; bilinear, the border repeats.

    Args:
        source: (H, W, C) or (H, W).
        flow: (H, W, 2) in pixels, +x right, +y down; zero flow is the identity.
    """
    return cv2.remap(source, _targets(flow), None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def nan_mean(values: NDArray[np.float64]) -> float:
    """Mean of the values that are numbers; NaN where there is none."""
    usable = values[~np.isnan(values)]
    return float(usable.mean()) if usable.size else float("nan")


def _grey(frames: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    size: tuple[int, ...] | None = None
    for index, frame in enumerate(frames):
        check_frame(frame, f"frame {index}")
        size = size or frame.shape
        if frame.shape != size:
            raise ShapeError(f"frame {index} is {frame.shape[:2]}, the first one was {size[:2]} (height, width)")
        if min(size[:2]) < _MIN_SIDE:
            raise ShapeError(f"optical flow needs frames of at least {_MIN_SIDE}x{_MIN_SIDE} pixels, got {size[:2]}")
        yield cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)


def _targets(flow: NDArray[np.float32]) -> NDArray[np.float32]:
    """Where each pixel is looked up: its own (x, y) plus its flow, (H, W, 2)."""
    height, width = flow.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return flow + np.dstack([x, y])


def _is_visible(flow: NDArray[np.float32], back: NDArray[np.float32]) -> NDArray[np.bool_]:
    back_here = warp_numpy(back, flow)
    mismatch = np.square(flow + back_here).sum(axis=2)
    length = np.square(flow).sum(axis=2) + np.square(back_here).sum(axis=2)
    targets = _targets(flow)
    last = np.array([flow.shape[1] - 1, flow.shape[0] - 1], np.float32)
    is_inside = ((targets >= 0) & (targets <= last)).all(axis=2)
    return is_inside & (mismatch <= 0.01 * length + 0.5)


def _is_motion_boundary(flow: NDArray[np.float32]) -> NDArray[np.bool_]:
    down, right = np.gradient(flow, axis=(0, 1))
    return (np.square(down) + np.square(right)).sum(axis=2) > 0.01 * np.square(flow).sum(axis=2) + 0.002
