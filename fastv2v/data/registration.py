"""Point ids from depth and pose: every frame finds the points known so far, and adds those it sees first. Torch-free.

A known point is seen where it projects if its depth agrees with the depth map there; what lies behind is hidden,
however many gaps the points in front have. So a place that comes back gets the ids it had.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastv2v.data.cameras import Camera, Float
from fastv2v.data.unprojection import MAX_POINTS
from fastv2v.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class RegistrationConfig:
    """When a known point and a pixel are the same place."""

    relative_tolerance: float = 0.02
    """How much the depth of a point may differ from that of its pixel, as a share of the latter."""
    absolute_tolerance: float = 0.01
    """The same in the unit of depth (metres); the larger of both counts."""
    min_depth: float = 0.05
    """Nearer depth is no measurement, in metres."""
    max_depth: float = 1000.0
    """Farther depth is no measurement, in metres."""
    share_ids: bool = True
    """Where no point projects into a pixel, it takes that of a neighbouring pixel if it lies within 1.5 pixels of it in
    space: several pixels may then show one point. Without, every such pixel makes a new point."""
    max_points: int = MAX_POINTS
    """Points of a sequence; when they are used up, new places get none."""

    def __post_init__(self) -> None:
        if not 0 < self.relative_tolerance < 1 or self.absolute_tolerance < 0:
            raise ConfigError(
                f"relative_tolerance must lie between 0 and 1 and absolute_tolerance not be negative, got "
                f"{self.relative_tolerance} and {self.absolute_tolerance}"
            )
        if not 0 < self.min_depth < self.max_depth:
            raise ConfigError(f"min_depth ({self.min_depth}) must be above 0 and below max_depth ({self.max_depth})")
        if not 1 <= self.max_points <= MAX_POINTS:
            raise ConfigError(f"max_points is 1 to {MAX_POINTS}, got {self.max_points}")


class PosedDepth(NamedTuple):
    """What is known of one frame."""

    depth: NDArray[np.floating]
    """(H, W) along the optical axis; 0, NaN or infinite where nothing was measured."""
    camera: Camera
    """How it projects."""
    camera_to_world: Float
    """4x4, checked (``cameras.checked_pose``)."""
    excluded: NDArray[np.bool_] | None = None
    """(H, W): pixels of things that move, or of sky; they show no point."""


def seen_from(
    depth: NDArray[np.floating], camera: Camera, other: Camera, shift: tuple[float, float, float]
) -> NDArray[np.float32]:
    """A depth map as another camera beside the first one has it: that of the colour picture.

    Args:
        depth: (H, W) along the optical axis, 0 where nothing was measured.
        camera: took the depth map.
        other: takes the frame, of the same size and looking the same way.
        shift: is added to coordinates of the first camera to have those of the other.

    Returns:
        (H, W) as the other camera sees it, the nearest where several fall into one pixel; 0 for none.
    """
    values = np.asarray(depth, np.float64).ravel()
    known = np.flatnonzero(np.isfinite(values) & (values > 0))
    points = camera.rays(depth.shape).reshape(-1, 3)[known] * values[known, None] + np.asarray(shift, np.float64)
    points = points[points[:, 2] > 0]
    columns, rows = (np.floor(c + 0.5) for c in other.project(points))
    inside = (columns >= 0) & (columns < depth.shape[1]) & (rows >= 0) & (rows < depth.shape[0])
    pixel = (rows[inside] * depth.shape[1] + columns[inside]).astype(np.int64)
    nearest = np.full(depth.size, np.inf)
    np.minimum.at(nearest, pixel, points[inside, 2])
    return np.where(np.isfinite(nearest), nearest, 0).reshape(depth.shape).astype(np.float32)


class PointRegister:
    """The points of one sequence; every frame finds those known so far and adds what it sees first.

    Source:
        Incremental registration: project, compare with depth, add what is new (as in RGB-D mapping).
    """

    def __init__(self, config: RegistrationConfig) -> None:
        self._config = config
        self._points = np.empty((0, 3))

    def add(self, frame: PosedDepth) -> NDArray[np.int32]:
        """Say which point is seen at which pixel of the next frame.

        Returns:
            Point ids, (H, W), numbered by first appearance; -1 without depth.

        Raises:
            DataError: if the mask differs in size from the depth map.
        """
        ids, fresh = _register_one(self._points, frame, self._config)
        self._points = np.concatenate([self._points, fresh])
        return ids


def _register_one(points: Float, frame: PosedDepth, config: RegistrationConfig) -> tuple[NDArray[np.int32], Float]:
    """Ids of one frame, and the points it adds."""
    depth: Float = np.array(frame.depth, dtype=np.float64)
    usable = np.isfinite(depth) & (depth >= config.min_depth) & (depth <= config.max_depth)
    if frame.excluded is not None:
        if frame.excluded.shape != depth.shape:
            raise DataError(f"depth is {depth.shape} and the mask of what moves {frame.excluded.shape}: sizes differ")
        usable &= ~frame.excluded
    own = frame.camera.rays(depth.shape) * np.where(usable, depth, 1)[..., None]  # (H, W, 3), camera coordinates
    ids = np.full(depth.shape, -1, np.int32)
    world_to_camera = np.asarray(np.linalg.inv(frame.camera_to_world), np.float64)
    if len(points):
        pixel, seen, there = _seen(points, world_to_camera, frame.camera, depth, usable, config)
        miss = ((there - own.reshape(-1, 3)[pixel]) ** 2).sum(1)
        order = np.lexsort((seen, miss, pixel))  # of the points in one pixel the nearest; of equals the first
        first = np.flatnonzero(np.diff(pixel[order], prepend=-1))
        best = order[first]
        ids.ravel()[pixel[best]] = seen[best]
        if config.share_ids:
            placed = np.full((*depth.shape, 3), np.inf)
            placed.reshape(-1, 3)[pixel[best]] = there[best]
            _share(ids, placed, own, usable, frame.camera)
    new = np.flatnonzero((ids.ravel() < 0) & usable.ravel())[: config.max_points - len(points)]
    ids.ravel()[new] = np.arange(len(points), len(points) + len(new))
    pose = frame.camera_to_world
    return ids, own.reshape(-1, 3)[new] @ pose[:3, :3].T + pose[:3, 3]


def _seen(
    points: Float, world_to_camera: Float, camera: Camera, depth: Float, usable: NDArray[np.bool_],
    config: RegistrationConfig,
) -> tuple[NDArray[np.int64], NDArray[np.int64], Float]:  # fmt: skip
    """Pixel, number and camera coordinates of every point that this frame shows."""
    there = points @ world_to_camera[:3, :3].T + world_to_camera[:3, 3]
    number = np.flatnonzero(there[:, 2] >= config.min_depth)
    there = there[number]
    x, y = camera.project(there)
    height, width = depth.shape
    inside = (x >= -0.5) & (x < width - 0.5) & (y >= -0.5) & (y < height - 0.5)
    number, there = number[inside], there[inside]
    pixel = np.floor(y[inside] + 0.5).astype(np.int64) * width + np.floor(x[inside] + 0.5).astype(np.int64)
    measured = depth.ravel()[pixel]
    allowed = np.maximum(config.absolute_tolerance, config.relative_tolerance * measured)
    visible = usable.ravel()[pixel]
    visible[visible] = (np.abs(there[:, 2] - measured) <= allowed)[visible]
    return pixel[visible], number[visible], there[visible]


def _share(ids: NDArray[np.int32], placed: Float, own: Float, usable: NDArray[np.bool_], camera: Camera) -> None:
    """Give pixels that no point fell into the point of a neighbour; ``ids`` is changed."""
    lacking = usable & (ids < 0)
    reach = 1.5 * own[..., 2] / min(camera.intrinsics[0, 0], camera.intrinsics[1, 1])
    least = np.where(lacking, reach**2, -1.0)
    given = ids.copy()
    height, width = ids.shape
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            to = (slice(max(down, 0), height + min(down, 0)), slice(max(right, 0), width + min(right, 0)))
            of = (slice(max(-down, 0), height + min(-down, 0)), slice(max(-right, 0), width + min(-right, 0)))
            miss = ((placed[of] - own[to]) ** 2).sum(-1)
            better = miss < least[to]
            given[to][better] = ids[of][better]
            least[to][better] = miss[better]
    ids[:] = given
