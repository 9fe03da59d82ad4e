"""Backward warping."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastv2v.errors import ShapeError


def warp_backward(source: Tensor, flow: Tensor, *, align_corners: bool = True) -> Tensor:
    """Move ``source`` onto the frame that ``flow`` starts from.

    Args:
        source: frame to sample from, (B, C, H, W).
        flow: displacement (dx, dy) in pixels of this resolution, (B, 2, H, W); +x right, +y down.
        align_corners: how the sampling grid meets the pixels. True is exact: zero flow returns the source. False
            exists only for networks that were trained with the other convention (Fast-Vid2Vid's).

    Returns:
        Warped frame, (B, C, H, W), in the type of ``source``. Samples that fall outside repeat the border.

    Raises:
        ShapeError: if batch, height or width differ between the two, or the flow lacks its two channels.

    Source:
        The flow-warping term of Wang et al., "Video-to-Video Synthesis", NeurIPS 2018.
    """
    if source.shape[0] != flow.shape[0] or source.shape[-2:] != flow.shape[-2:] or flow.shape[1] != 2:
        raise ShapeError(
            f"source {tuple(source.shape)} and flow {tuple(flow.shape)} must share B, H, W; a flow has two channels"
        )
    height, width = source.shape[-2:]
    # Coordinates lose whole pixels in half precision, so sampling is always done in float32.
    with torch.autocast(source.device.type, enabled=False):
        x = torch.linspace(-1, 1, width, device=source.device).expand(height, width)
        y = torch.linspace(-1, 1, height, device=source.device)[:, None].expand(height, width)
        # Made on the device: two numbers copied there would make the host wait for all that a GPU has yet to do.
        per_pixel = torch.linspace(2 / max(width - 1, 1), 2 / max(height - 1, 1), 2, device=source.device)
        # Flow is scaled while its axes are planes and then turned around whole: axis by axis, a deployed graph would
        # pass over the picture eight times, and scaling interleaved axes is slow in ONNX Runtime.
        grid = torch.stack([x, y], dim=-1) + (flow.float() * per_pixel.view(1, 2, 1, 1)).permute(0, 2, 3, 1)
        warped = F.grid_sample(
            source.float(), grid, mode="bilinear", padding_mode="border", align_corners=align_corners
        )
    return warped.to(source.dtype)


def compose_flow(flow_ab: Tensor, flow_bc: Tensor) -> Tensor:
    """Flow from a to c through b: F_ac(p) = F_ab(p) + F_bc(p + F_ab(p)).

    Args:
        flow_ab: (B, 2, H, W) in pixels.
        flow_bc: same shape.

    Returns:
        flow_ac, same shape.
    """
    return flow_ab + warp_backward(flow_bc, flow_ab)
