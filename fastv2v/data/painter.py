"""The painted world of one video in arrays, for deployments: the twin of ``fastv2v.ops.painter``. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastv2v.errors import ConfigError, ShapeError

GUIDANCE_CHANNELS: Final = 4
"""Red, green, blue and the mask."""

COLOUR_STEPS: Final = 2.0**32
"""Colours are summed as multiples of 1 / this: whole numbers (below 2^53 also in float64) add up to the same in any
order, on any device."""


class ArrayWorld(NamedTuple):
    """A colour for each point of one world. A value: painting gives a new one."""

    colours: NDArray[np.float32]
    """(P, 3) in [-1, 1]; 0 where nothing was painted."""
    seen: NDArray[np.bool_]
    """(P,): whether the point has its colour."""


def empty_world(num_points: int = 0) -> ArrayWorld:
    """A world without colours, with room for ``num_points``; painting makes more where it must.

    Raises:
        ConfigError: if the number is negative.
    """
    if num_points < 0:
        raise ConfigError(f"a painted world has 0 points or more, got {num_points}")
    return ArrayWorld(np.zeros((num_points, 3), np.float32), np.zeros(num_points, np.bool_))


def render(world: ArrayWorld, points: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
    """Show what is painted, as one camera sees it.

    Args:
        world: what was painted so far.
        points: point ids, (H, W), -1 for none. Ids the world has never met are unpainted.

    Returns:
        Guidance (4, H, W) float32: RGB in [-1, 1], then the mask; 0 in holes.

    Raises:
        ShapeError: if the ids are no map.
    """
    _check_points(points)
    guidance = np.zeros((GUIDANCE_CHANNELS, *points.shape), np.float32)
    ids = points.ravel()
    where = np.flatnonzero((ids >= 0) & (ids < len(world.seen)))
    where = where[world.seen[ids[where]]]
    flat = guidance.reshape(GUIDANCE_CHANNELS, -1)
    flat[:3, where] = world.colours[ids[where]].T
    flat[3, where] = 1
    return guidance


def paint(world: ArrayWorld, frame: NDArray[np.float32], points: NDArray[np.integer[Any]]) -> ArrayWorld:
    """Give every point that has no colour yet the colour of its pixel; those that have one keep it.

    Args:
        world: left as it is.
        frame: (3, H, W), in [-1, 1]. Where it shows a point at several pixels, that takes their mean.
        points: point ids, (H, W), -1 for none. The world grows where an id exceeds it.

    Returns:
        The world after this frame.

    Raises:
        ShapeError: if the sizes disagree.
    """
    _check_points(points)
    if frame.shape != (3, *points.shape):
        raise ShapeError(f"a frame for point ids {points.shape} has shape (3, H, W), got {frame.shape}")
    ids = points.ravel()
    num_points = max(len(world.seen), int(ids.max(initial=-1)) + 1)
    more = num_points - len(world.seen)
    colours = np.concatenate([world.colours, np.zeros((more, 3), np.float32)])
    seen = np.concatenate([world.seen, np.zeros(more, np.bool_)])
    where = np.flatnonzero(ids >= 0)
    where = where[~seen[ids[where]]]
    new, position, counts = np.unique(ids[where], return_inverse=True, return_counts=True)
    clipped = np.clip(frame.reshape(3, -1)[:, where], -1, 1).astype(np.float64)
    for channel, values in enumerate(np.rint(clipped * COLOUR_STEPS)):
        colours[new, channel] = np.bincount(position, values, minlength=len(new)) / (counts * COLOUR_STEPS)
    seen[new] = True
    return ArrayWorld(colours, seen)


def render_levels(world: ArrayWorld, points: Sequence[NDArray[np.integer[Any]]]) -> NDArray[np.float32]:
    """The guidance of several levels, each brought to full size by the nearest pixel.

    Args:
        world: what was painted so far.
        points: point ids of level k, (ceil(H / 2^k), ceil(W / 2^k)), k = 0, 1, ...

    Returns:
        (4 * levels, H, W) float32: four channels of each level, finest first.

    Raises:
        ShapeError: if there is no level, or one is of another size.
    """
    if not points:
        raise ShapeError("guidance needs the point ids of at least one level")
    height, width = points[0].shape
    levels = []
    for k, ids in enumerate(points):
        if ids.shape != (-(-height >> k), -(-width >> k)):
            raise ShapeError(f"level {k} of point ids for {height}x{width} has another size: {ids.shape}")
        small = render(world, ids)
        levels.append(small.repeat(2**k, -2).repeat(2**k, -1)[:, :height, :width])
    return np.concatenate(levels)


def _check_points(points: NDArray[np.integer[Any]]) -> None:
    if points.ndim != 2:
        raise ShapeError(f"point ids have shape (H, W), got {points.shape}")
