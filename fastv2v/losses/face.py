"""Where the head is in a pose condition, for the discriminator that looks at faces alone."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fastv2v.errors import ShapeError

FaceRegion = Literal["densepose", "openpose"]
"""How head pixels are told from others: by DensePose's part ids, or by the drawn limb from neck to nose."""


class FaceBoxes(NamedTuple):
    """One square for each clip."""

    corners: Tensor
    """Upper left pixel (row, column), (B, 2) int64."""
    found: Tensor
    """Whether the clip shows a head, (B,) bool; the square lies somewhere inside in any case."""
    side: int
    """Side of every square in pixels."""


def face_side(height: int, width: int) -> int:
    """Side of the square around a face: vid2vid's quarter of the shorter side, a multiple of 8.

    Raises:
        ShapeError: if the frames are too small to have one.
    """
    side = min(height, width) // 32 * 8
    if side == 0:
        raise ShapeError(f"a face discriminator needs frames of at least 32x32 pixels, got {height}x{width}")
    return side


def head_pixels(conditions: Tensor, region: FaceRegion) -> Tensor:
    """Which pixels belong to a head.

    Args:
        conditions: encoded, (..., C, H, W) in [-1, 1]. DensePose maps come first; a drawn OpenPose map comes last.
        region: where to look: the third channel of a DensePose map, whose head parts 23 and 24 of 24 lie above 0.9;
            or the colour (153, 0, 51) of a drawn limb.

    Returns:
        (..., H, W) bool.

    Source:
        The face discriminator of vid2vid's published implementation.
    """
    if region == "densepose":
        return conditions[..., 2, :, :] > 0.9
    red, green, blue = conditions[..., -3:, :, :].unbind(-3)
    return ((red - 0.2).abs() < 0.01) & (green < -0.99) & ((blue + 0.6).abs() < 0.01)


@torch.no_grad()
def face_boxes(conditions: Tensor, region: FaceRegion) -> FaceBoxes:
    """Squares around the middles of the heads' bounding boxes, moved inside the frame where they stick out.

    Args:
        conditions: encoded conditions of the frames that share a box, (B, n, C, H, W).
        region: how heads are found.

    Returns:
        One box for each clip.

    Raises:
        ShapeError: if the frames are smaller than 32 pixels.
    """
    side = face_side(*conditions.shape[-2:])
    head = head_pixels(conditions, region).any(dim=1)
    corners = [_start(head.any(dim=other), side) for other in (-1, -2)]
    return FaceBoxes(torch.stack(corners, dim=1), head.flatten(1).any(dim=1), side)


def _start(marked: Tensor, side: int) -> Tensor:
    """First index along one axis, (B,), of a square around the middle of what is marked, (B, length)."""
    length = marked.shape[1]
    first = marked.int().argmax(dim=1)
    last = length - 1 - marked.flip(1).int().argmax(dim=1)
    # The reference keeps the centre within [side/2, length - 1 - side/2].
    return ((first + last) // 2 - side // 2).clamp(0, length - 1 - side)


def crop_faces(frames: Tensor, boxes: FaceBoxes) -> Tensor:
    """Cut every clip's square out of its frames; gradients pass.

    Args:
        frames: (B, n, C, H, W).
        boxes: of the same clips.

    Returns:
        (B, n, C, side, side).
    """
    steps = torch.arange(boxes.side, device=frames.device)
    rows = (boxes.corners[:, 0, None] + steps)[:, :, None]
    columns = (boxes.corners[:, 1, None] + steps)[:, None, :]
    clips = torch.arange(frames.shape[0], device=frames.device)[:, None, None]
    return frames[clips, :, :, rows, columns].permute(0, 3, 4, 1, 2)
