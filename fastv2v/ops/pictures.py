"""Inner parts of a frame as pictures for people."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from fastv2v.contracts import FrameOutput


def flow_picture(flow: Tensor) -> Tensor:
    """Flow as colours: hue is the direction, brightness the length relative to the longest of the frame.

    Args:
        flow: (B, 2, H, W) in pixels.

    Returns:
        (B, 3, H, W) in [-1, 1].
    """
    pictures = []
    for x, y in flow.detach().float().cpu().numpy():
        length, angle = cv2.cartToPolar(x, y, angleInDegrees=True)
        longest = max(float(length.max()), 1e-6)
        hue = (angle / 2).round().astype(np.uint8) % 180
        value = (255 * length / longest).round().astype(np.uint8)
        hsv = np.stack([hue, np.full_like(hue, 255), value], axis=-1)
        pictures.append(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))
    rgb = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    return rgb.to(flow.device).float() / 127.5 - 1


def part_pictures(output: FrameOutput) -> dict[str, Tensor]:
    """What a step made a frame of.

    Args:
        output: of one step, (B, ..., H, W).

    Returns:
        Pictures (B, 3, H, W) in [-1, 1] by name: ``hallucinated``, and where the generator warps also ``warped``,
        ``flow`` and ``occlusion`` (white is hallucinated, black warped).
    """
    pictures = {"hallucinated": output.hallucinated}
    if output.warped is not None and output.flow is not None and output.occlusion is not None:
        pictures["warped"] = output.warped
        pictures["flow"] = flow_picture(output.flow)
        pictures["occlusion"] = output.occlusion.expand(-1, 3, -1, -1) * 2 - 1
    return pictures
