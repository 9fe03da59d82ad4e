"""Reference optical flow and its confidence."""

from __future__ import annotations

from typing import Literal, get_args

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastv2v.contracts import FlowEstimator
from fastv2v.errors import ConfigError, DataError, ShapeError
from fastv2v.ops.warp import warp_backward

DISPreset = Literal["ultrafast", "fast", "medium"]
"""OpenCV's settings of DIS flow, quickest first."""

FlowConfidence = Literal["photometric", "forward-backward", "both"]
"""What a reference flow is trusted by: the colours it explains, the way back it agrees with, or both at once."""

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


def forward_backward_confidence(
    flow_ab: Tensor, flow_ba: Tensor, relative: float = 0.01, absolute: float = 0.5
) -> Tensor:
    """Where the way there and the way back cancel: |f_ab + f_ba(p + f_ab)|^2 < r (|f_ab|^2 + |f_ba(p + f_ab)|^2) + a.

    Args:
        flow_ab: (B, 2, H, W) in pixels.
        flow_ba: same shape, the flow of the other direction.
        relative: r, the accepted share of the motion.
        absolute: a, in square pixels.

    Returns:
        (B, 1, H, W) float32: 1 where they agree; 0 where they do not, or where the flow leaves the picture, since
        nothing can be seen there.

    Source:
        Sundaram, Brox and Keutzer, "Dense Point Trajectories by GPU-accelerated Large Displacement Optical Flow",
        ECCV 2010.
    """
    back = warp_backward(flow_ba, flow_ab)
    gap, size = ((x.square().sum(dim=1, keepdim=True)) for x in (flow_ab + back, torch.cat([flow_ab, back], dim=1)))
    height, width = flow_ab.shape[-2:]
    x = torch.arange(width, device=flow_ab.device) + flow_ab[:, :1]
    y = torch.arange(height, device=flow_ab.device).unsqueeze(1) + flow_ab[:, 1:]
    is_inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return ((gap < relative * size + absolute) & is_inside).float()


def resize_flow(flow: Tensor, size: tuple[int, int]) -> Tensor:
    """A flow at another resolution, in pixels of that resolution.

    Args:
        flow: (B, 2, H, W) in pixels.
        size: new (height, width).

    Returns:
        (B, 2, *size); dx follows the change of width, dy that of height.
    """
    height, width = flow.shape[-2:]
    scale = flow.new_tensor([size[1] / width, size[0] / height]).view(1, 2, 1, 1)
    return F.interpolate(flow, size=size, mode="bilinear", align_corners=False) * scale


class DISFlow:
    """Dense inverse search flow from OpenCV: a reference that needs no weights.

    Source:
        Kroeger et al., "Fast Optical Flow using Dense Inverse Search", ECCV 2016.
    """

    def __init__(self, preset: DISPreset = "medium", threshold: float = 0.02) -> None:
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


class TwoWayFlow:
    """Any estimator, asked in both directions so that its confidence is also that of forward-backward agreement.

    Args:
        estimator: asked twice for each pair of frames.
        confidence: ``forward-backward``, or ``both`` to keep the estimator's own confidence as well.
    """

    def __init__(self, estimator: FlowEstimator, confidence: Literal["forward-backward", "both"]) -> None:
        self.estimator = estimator
        self.confidence = confidence

    @torch.no_grad()
    def __call__(self, current: Tensor, previous: Tensor) -> tuple[Tensor, Tensor]:
        """Flow (B, 2, H, W) from current to previous and its confidence; see ``FlowEstimator``."""
        flow, own = self.estimator(current, previous)
        agreed = forward_backward_confidence(flow, self.estimator(previous, current)[0])
        return flow, agreed * own if self.confidence == "both" else agreed


class FilesFlow:
    """Stands for flow that is read from files: it knows neighbouring frames of clips and cannot estimate anything.

    Args:
        threshold: of the photometric confidence.
    """

    def __init__(self, threshold: float = 0.02) -> None:
        self.threshold = threshold

    def __call__(self, current: Tensor, previous: Tensor) -> tuple[Tensor, Tensor]:
        """Never succeeds.

        Raises:
            DataError: always.
        """
        raise DataError(
            "reference flow is to come from files and these frames carry none; have them read with "
            "--recipe.data.folder.flow-files, or choose an estimator (--recipe.helpers.flow medium)"
        )


def with_confidence(estimator: FlowEstimator, confidence: FlowConfidence) -> FlowEstimator:
    """An estimator whose flow is trusted as told; its own confidence is the photometric one.

    Raises:
        ConfigError: if flow from files is to be asked for the way back, or ``confidence`` is unknown.
    """
    if confidence not in get_args(FlowConfidence):
        raise ConfigError(f"flow_confidence is one of {', '.join(get_args(FlowConfidence))}, got {confidence!r}")
    if confidence == "photometric":
        return estimator
    if isinstance(estimator, FilesFlow):
        raise ConfigError("flow files hold one direction only; their flow_confidence can only be photometric")
    return TwoWayFlow(estimator, confidence)


def _grey(frames: Tensor) -> list[np.ndarray]:
    """Eight-bit luma pictures of frames (B, 3, H, W) in [-1, 1]."""
    pictures = ((frames.detach().float().cpu() + 1) * 127.5).round().clamp(0, 255).byte()
    return [cv2.cvtColor(np.ascontiguousarray(p.permute(1, 2, 0).numpy()), cv2.COLOR_RGB2GRAY) for p in pictures]


@torch.no_grad()
def clip_flow(estimator: FlowEstimator, frames: Tensor, flow: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Flow from every frame of a clip to the one before it.

    Args:
        estimator: a ``FlowEstimator``; ``FilesFlow`` for flow that was read from files.
        frames: (B, T, 3, H, W) in [-1, 1].
        flow: what was read, (B, T-1, 2, H, W) in pixels; only ``FilesFlow`` needs and uses it.

    Returns:
        Flow (B, T-1, 2, H, W) and confidence (B, T-1, 1, H, W); entry t belongs to frame t+1.

    Raises:
        DataError: if the clip has fewer than two frames, or lacks the flow that was to be read.
        ShapeError: if the flow read does not belong to these frames.
    """
    b, t, _, height, width = frames.shape
    if t < 2:
        raise DataError(f"a clip of {t} frame has no flow; use clips of at least 2 frames")
    current, previous = frames[:, 1:].flatten(0, 1), frames[:, :-1].flatten(0, 1)
    if isinstance(estimator, FilesFlow) and flow is not None:
        if flow.shape != (b, t - 1, 2, height, width):
            raise ShapeError(
                f"flow from files must be {(b, t - 1, 2, height, width)} for these frames, got {tuple(flow.shape)}"
            )
        return flow, photometric_confidence(current, previous, flow.flatten(0, 1), estimator.threshold).unflatten(
            0, (b, t - 1)
        )
    found, confidence = estimator(current, previous)
    return found.unflatten(0, (b, t - 1)), confidence.unflatten(0, (b, t - 1))
