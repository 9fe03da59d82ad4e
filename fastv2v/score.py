"""Quick scores on tensors, for watching a training; finished frames are judged by ``fastv2v.metrics``."""

from __future__ import annotations

import torch
from torch import Tensor

from fastv2v.errors import ShapeError


def to_uint8(frames: Tensor) -> Tensor:
    """Frames in [-1, 1] as rounded 8-bit values, same shape."""
    return ((frames.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def clip_psnr(frames: Tensor, real: Tensor) -> float:
    """Mean over frames of the PSNR of 8-bit pictures, in dB, capped at 100.

    Args:
        frames: (B, T, 3, H, W) in [-1, 1].
        real: same shape.

    Raises:
        ShapeError: if the shapes differ or there is no frame to score.
    """
    if frames.shape != real.shape:
        raise ShapeError(f"frames of shape {tuple(frames.shape)} cannot be scored against {tuple(real.shape)}")
    if frames.numel() == 0:
        raise ShapeError("there is no frame to score beyond the given ones; held-out clips must be longer")
    error = (to_uint8(frames).double() - to_uint8(real).double()).square().mean(dim=(-3, -2, -1))
    return float((10 * torch.log10(255.0**2 / error.clamp_min(255.0**2 * 1e-10))).mean())
