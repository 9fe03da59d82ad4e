"""Local contrast: how much texture a picture has, wherever exactly it lies."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

CONTRAST_SCALES = 3
"""Scales at which local contrast is compared, each half the size of the one before."""
CONTRAST_WINDOW = 7
"""Side in pixels of the windows whose contrast is taken."""
_LEAST_VARIANCE = 1e-4  # about one grey level: below it there is no contrast to speak of, and a root has no slope


def local_contrast(frames: Tensor) -> list[Tensor]:
    """Standard deviation within every window, at ``CONTRAST_SCALES`` scales.

    Args:
        frames: (N, 3, H, W) in [-1, 1].

    Returns:
        One map (N, 3, h, w) for each scale whose picture holds a window, half as many windows as pixels each way;
        none for a picture smaller than one.
    """
    maps = []
    pictures = frames.float()
    for scale in range(CONTRAST_SCALES):
        if scale:
            pictures = avg_pool2d(pictures, 2)
        if min(pictures.shape[-2:]) < CONTRAST_WINDOW:
            break
        mean, power = (avg_pool2d(x, CONTRAST_WINDOW, stride=2) for x in (pictures, pictures.square()))
        maps.append((power - mean.square()).clamp_min(0).add(_LEAST_VARIANCE).sqrt())
    return maps


def contrast_distance(made: Tensor, goal: Tensor) -> Tensor:
    """How far the local contrast of frames is from that of others, over the mean of theirs.

    Distances pixel by pixel are smallest for the mean of all that could be there, which has no texture; this one asks
    for as much of it as the goal shows, wherever exactly it lies.

    Args:
        made: (N, 3, H, W) in [-1, 1], with gradient.
        goal: the same moments as the teacher shows them, or real; same shape.

    Returns:
        Scalar; a constant 0 for pictures smaller than a window.

    Source:
        The contrast comparison of Wang et al., "Image quality assessment: from error visibility to structural
        similarity", IEEE TIP 2004, as an absolute distance.
    """
    with torch.no_grad():
        goals = local_contrast(goal)
    if not goals:
        return made.new_zeros((), dtype=torch.float32)
    return map_distance(local_contrast(made), goals)


def map_distance(made: Sequence[Tensor], goal: Sequence[Tensor]) -> Tensor:
    """Mean absolute distance of feature maps over the mean magnitude of the goal, layers and samples alike.

    Args:
        made: maps (B, ...).
        goal: maps of the same shapes.

    Returns:
        Scalar.
    """
    distances = []
    for ours, theirs in zip(made, goal, strict=True):
        distance, size = magnitudes(ours.float() - theirs.float()), magnitudes(theirs.float())
        distances.append((distance / (size + 1e-6)).mean())
    return torch.stack(distances).mean()


def magnitudes(maps: Tensor) -> Tensor:
    """Mean magnitude of each sample's maps: (B, ...) to (B,)."""
    return maps.abs().flatten(1).mean(dim=1)
