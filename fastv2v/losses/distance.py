"""The mean absolute distance of feature maps, in little memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def picture_distance(maps: Tensor, goal: Tensor) -> Tensor:
    """Mean absolute distance of each picture's feature maps to their goal, which gets no gradient.

    Differences and signs are made in place and not kept for the backward pass, where they are found again from the two
    maps that their networks hold anyway: for the large maps of a discriminator, getting memory takes longer than
    computing.

    Args:
        maps: (B, ...) in any floating type.
        goal: same shape.

    Returns:
        (B,), float32.
    """
    distances: Tensor = _PictureDistance.apply(maps, goal.detach())  # type: ignore[no-untyped-call]
    return distances


class _PictureDistance(torch.autograd.Function):
    """``picture_distance`` with its own backward pass: sign(maps - goal) / number of elements."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, goal: Tensor) -> Tensor:
        ctx.save_for_backward(maps, goal)
        inner = tuple(range(1, maps.ndim))
        distances = _difference(maps, goal).abs_()
        return distances.mean(inner) if inner else distances

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        maps, goal = ctx.saved_tensors
        share = (gradient / maps[0].numel()).view(-1, *(1 for _ in maps.shape[1:]))
        return _difference(maps, goal).sign_().mul_(share).to(maps.dtype), None


def _difference(maps: Tensor, goal: Tensor) -> Tensor:
    """The difference in float32, a tensor of its own."""
    return torch.sub(maps.float(), goal.float())
