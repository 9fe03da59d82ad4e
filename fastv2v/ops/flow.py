"""Reference optical flow and its confidence."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from fastv2v.contracts import FlowEstimator
from fastv2v.errors import DataError, ShapeError
from fastv2v.ops.warp import warp_backward

_PRESETS = {
    "ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
    "fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
    "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
}

_MIN_SIDE = 12
"""Below this OpenCV refuses a picture."""


def photometric_confidence(current: Tensor, previous: Tensor, flow: Tensor, threshold: float = 0.02) -> Tensor:
    """Where a flow explains the colours.

    Args:
        current: (B, 3, H, W) in [-1, 1].
        previous: same shape.
        flow: from current to previous, (B, 2, H, W) in pixels.
        threshold: largest accepted squared colour error, summed over channels.

    Returns:
        (B, 1, H, W) float32: 1 where the warped previous frame matches the current one, else 0.

    Source:
        The confidence map of vid2vid (Wang et al., NeurIPS 2018).
    """
    error = (current - warp_backward(previous, flow)).square().sum(dim=1, keepdim=True)
    return (error < threshold).float()


class DISFlow:
    """Dense inverse search flow from OpenCV: a reference that needs no weights.

    Source:
        Kroeger et al., "Fast Optical Flow using Dense Inverse Search", ECCV 2016.
    """

    def __init__(self, preset: Literal["ultrafast", "fast", "medium"] = "medium", threshold: float = 0.02) -> None:
        self.preset = preset
        self.threshold = threshold

    @torch.no_grad()
    def __call__(self, current: Tensor, previous: Tensor) -> tuple[Tensor, Tensor]:
        """Flow (B, 2, H, W) from current to previous and its confidence; see ``FlowEstimator``.

        Raises:
            ShapeError: if the frames differ in shape or are smaller than the estimator's coarsest patches allow.
        """
        if current.shape != previous.shape or min(current.shape[-2:]) < _MIN_SIDE:
            raise ShapeError(
                f"DIS flow needs two frames of equal shape and at least {_MIN_SIDE}x{_MIN_SIDE} pixels, "
                f"got {tuple(current.shape)} and {tuple(previous.shape)}"
            )
        # OpenCV's estimator keeps buffers inside, so each call makes its own: safe under threads and cheap beside it.
        estimator = cv2.DISOpticalFlow.create(_PRESETS[self.preset])
        flows = [
            np.moveaxis(estimator.calc(a, b, None), -1, 0) for a, b in zip(_grey(current), _grey(previous), strict=True)
        ]
        flow = torch.from_numpy(np.ascontiguousarray(np.stack(flows))).to(current.device)
        return flow, photometric_confidence(current, previous, flow, self.threshold)


def _grey(frames: Tensor) -> list[np.ndarray]:
    """Eight-bit luma pictures of frames (B, 3, H, W) in [-1, 1]."""
    pictures = ((frames.detach().float().cpu() + 1) * 127.5).round().clamp(0, 255).byte()
    return [cv2.cvtColor(np.ascontiguousarray(p.permute(1, 2, 0).numpy()), cv2.COLOR_RGB2GRAY) for p in pictures]


def clip_flow(estimator: FlowEstimator, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Flow from every frame of a clip to the one before it.

    Args:
        estimator: a ``FlowEstimator``.
        frames: (B, T, 3, H, W) in [-1, 1].

    Returns:
        Flow (B, T-1, 2, H, W) and confidence (B, T-1, 1, H, W); entry t belongs to frame t+1.

    Raises:
        DataError: if the clip has fewer than two frames.
    """
    b, t = frames.shape[:2]
    if t < 2:
        raise DataError(f"a clip of {t} frame has no flow; use clips of at least 2 frames")
    flow, confidence = estimator(frames[:, 1:].flatten(0, 1), frames[:, :-1].flatten(0, 1))
    return flow.unflatten(0, (b, t - 1)), confidence.unflatten(0, (b, t - 1))
