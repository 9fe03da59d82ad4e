"""The painted world: what a video has shown so far, a colour for each point (numpy twin: ``fastv2v.data.painter``).

A point id map says which point of the still world is seen at which pixel; -1 is none. A point takes the colour of the
first frame that shows it and keeps it, so that a place looks the same when the camera returns.

For each frame, in this order: render the world, synthesise, paint. What is rendered then rests on earlier frames only.

Source:
    Mallya et al., "World-Consistent Video-to-Video Synthesis", ECCV 2020. Colours stay floats, holes are 0 and not
    black, and every sample of a batch has a world of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastv2v.data.painter import COLOUR_STEPS, GUIDANCE_CHANNELS
from fastv2v.errors import ConfigError, ShapeError


class PaintedWorld(NamedTuple):
    """A colour for each point of the worlds of a batch. A value: painting gives a new one."""

    colours: Tensor
    """(B, P, 3) float32 in [-1, 1]; 0 where nothing was painted."""
    seen: Tensor
    """(B, P) bool: whether the point has its colour."""


def empty_world(batch: int, num_points: int = 0, device: torch.device | str = "cpu") -> PaintedWorld:
    """A world without colours.

    Args:
        batch: B.
        num_points: P, room for so many points; painting makes more where it must.
        device: where it lies.

    Raises:
        ConfigError: if a number is out of range.
    """
    if batch < 1 or num_points < 0:
        raise ConfigError(f"a painted world has 1 sample and 0 points or more, got {batch} and {num_points}")
    colours = torch.zeros(batch, num_points, 3, device=device)
    return PaintedWorld(colours, torch.zeros(batch, num_points, dtype=torch.bool, device=device))


def render(world: PaintedWorld, points: Tensor) -> Tensor:
    """Show what is painted, as one camera sees it.

    Args:
        world: of B samples.
        points: point ids, (B, H, W) integers, -1 for none. Ids the world has never met are unpainted.

    Returns:
        Guidance (B, 4, H, W) float32: RGB in [-1, 1], then the mask: 1 where the point has a colour. Elsewhere all
        four are 0.

    Raises:
        ShapeError: if the batch differs.
    """
    batch, num_points = world.seen.shape
    _check_points(points, batch)
    if num_points == 0:
        return torch.zeros(batch, GUIDANCE_CHANNELS, *points.shape[1:], device=points.device)
    ids_BX = points.flatten(1).long()
    inside = (ids_BX >= 0) & (ids_BX < num_points)
    ids_BX = ids_BX.clamp(0, num_points - 1)
    mask = inside & world.seen.gather(1, ids_BX)
    colours_BX3 = world.colours.gather(1, ids_BX.unsqueeze(-1).expand(-1, -1, 3))
    guidance = torch.cat([colours_BX3, torch.ones_like(colours_BX3[..., :1])], -1)
    # Not a product: a colour that is not finite must not get into a hole.
    guidance = guidance.masked_fill(~mask.unsqueeze(-1), 0)
    return guidance.transpose(1, 2).unflatten(2, points.shape[1:]).contiguous()


@torch.no_grad()
def paint(world: PaintedWorld, frame: Tensor, points: Tensor) -> PaintedWorld:
    """Give every point that has no colour yet the colour of its pixel; those that have one keep it.

    Where a frame shows a point at several pixels, it takes their mean. The result depends on nothing but the input:
    neither on the device nor on the order of pixels.

    Args:
        world: of B samples; left as it is.
        frame: (B, 3, H, W), in [-1, 1]; no gradient is kept.
        points: point ids, (B, H, W) integers, -1 for none. The world grows where an id exceeds it.

    Returns:
        The world after this frame.

    Raises:
        ShapeError: if the sizes disagree.
    """
    batch, num_points = world.seen.shape
    _check_points(points, batch)
    if frame.shape != (batch, 3, *points.shape[1:]):
        raise ShapeError(f"a frame for point ids {tuple(points.shape)} has 3 channels, got {tuple(frame.shape)}")
    world = _grown(world, max(num_points, int(points.max()) + 1) if points.numel() else num_points)
    num_points = world.seen.shape[1]
    if num_points == 0:
        return world
    ids_BX = points.flatten(1).long()
    mapped = (ids_BX >= 0).long()
    samples = torch.arange(batch, device=points.device).unsqueeze(1)
    flat_X = (ids_BX.clamp_min(0) + samples * num_points).flatten()
    fixed_BX3 = (frame.detach().float().clamp(-1, 1).flatten(2).transpose(1, 2).double() * COLOUR_STEPS).round().long()
    sums = torch.zeros(batch * num_points, 3, dtype=torch.long, device=points.device)
    sums.index_add_(0, flat_X, (fixed_BX3 * mapped.unsqueeze(-1)).flatten(0, 1))
    counts = torch.zeros(batch * num_points, dtype=torch.long, device=points.device)
    counts.index_add_(0, flat_X, mapped.flatten())
    means = (sums.double() / (counts.clamp_min(1).unsqueeze(-1) * COLOUR_STEPS)).float().view(batch, num_points, 3)
    new = (counts.view(batch, num_points) > 0) & ~world.seen
    return PaintedWorld(torch.where(new.unsqueeze(-1), means, world.colours), world.seen | new)


def render_levels(world: PaintedWorld, points: Sequence[Tensor]) -> Tensor:
    """The guidance of several levels, each brought to full size by the nearest pixel.

    Args:
        world: of B samples.
        points: point ids of level k, (B, ceil(H / 2^k), ceil(W / 2^k)), k = 0, 1, ...

    Returns:
        (B, 4 * levels, H, W) float32: four channels of each level, finest first. Every 2^k-th pixel of level k's
        channels, from the first on, gives that level itself.

    Raises:
        ShapeError: if there is no level, or one is of another size.
    """
    if not points:
        raise ShapeError("guidance needs the point ids of at least one level")
    height, width = points[0].shape[-2:]
    levels = []
    for k, ids in enumerate(points):
        if ids.shape[-2:] != (-(-height >> k), -(-width >> k)):
            raise ShapeError(f"level {k} of point ids for {height}x{width} has another size: {tuple(ids.shape)}")
        small = render(world, ids)
        whole = small.repeat_interleave(2**k, dim=-2).repeat_interleave(2**k, dim=-1) if k else small
        levels.append(whole[..., :height, :width])
    return torch.cat(levels, dim=1)


def _grown(world: PaintedWorld, num_points: int) -> PaintedWorld:
    """The same world with room for more points."""
    more = num_points - world.seen.shape[1]
    if not more:
        return world
    batch = world.seen.shape[0]
    colours = torch.cat([world.colours, world.colours.new_zeros(batch, more, 3)], 1)
    return PaintedWorld(colours, torch.cat([world.seen, world.seen.new_zeros(batch, more)], 1))


def _check_points(points: Tensor, batch: int) -> None:
    if points.ndim != 3 or points.shape[0] != batch:
        raise ShapeError(f"point ids for a world of {batch} samples are ({batch}, H, W), got {tuple(points.shape)}")
