"""Masked distances used by the flow and warping terms."""

from __future__ import annotations

from torch import Tensor


def masked_l1(a: Tensor, b: Tensor | float, mask: Tensor) -> Tensor:
    """Mean over all elements of abs(a*m - b*m): a small mask weighs little, as in vid2vid.

    Args:
        a: (..., C, H, W).
        b: same shape, or a number.
        mask: (..., 1, H, W) in [0, 1].

    Returns:
        Scalar.
    """
    return ((a - b).abs() * mask).mean()
