"""Shapes a street is built from, collected in lists and frozen into arrays.

World axes follow OpenCV: x right, y down, z forward, metres; the road surface is y = 0, so heights are negative y.
There are two kinds of shape: flat quads with an affine texture, and ellipsoids ("blobs") for foliage and limbs.
Each belongs to an object: object 0 is the still world, every other object has a pose for each moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Point = tuple[float, float, float]
WHITE: Point = (1.0, 1.0, 1.0)


def place(x: float, z: float, yaw: float = 0.0, y: float = 0.0) -> Float:
    """Pose with the given position whose forward axis is turned ``yaw`` radians from +z towards +x."""
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, 0, s, x], [0, 1, 0, y], [-s, 0, c, z], [0, 0, 0, 1]])


def moved_points(transform: Float, points: Float) -> Float:
    """A 3x4 transform of (..., 3) points, without BLAS, whose sums may depend on the number of threads."""
    return np.stack(
        [points[..., 0] * r[0] + points[..., 1] * r[1] + points[..., 2] * r[2] + r[3] for r in transform], -1
    )


class Quads(NamedTuple):
    """Q flat convex quadrilaterals (a triangle repeats a corner)."""

    corners: Float  # (Q, 4, 3) object coordinates; seen from the front: top left, top right, bottom right, bottom left
    normals: Float  # (Q, 3) unit, towards the front
    uv: Float  # (Q, 2, 4) texture coordinates = uv[:, :, :3] @ point + uv[:, :, 3]
    density: Float  # (Q,) texels per metre
    tile: NDArray[np.int32]
    tint: Float  # (Q, 3)
    label: NDArray[np.uint8]
    instance: NDArray[np.uint16]
    obj: NDArray[np.int32]
    two_sided: NDArray[np.bool_]
    cutout: NDArray[np.bool_]


class Blobs(NamedTuple):
    """E ellipsoids, aligned with the axes of their object."""

    centre: Float  # (E, 3) object coordinates
    radii: Float  # (E, 3) metres
    tile: NDArray[np.int32]
    texture_scale: Float  # (E,) texture repetitions per metre
    tint: Float  # (E, 3)
    tint_below: Float  # (E, 3) tint on the far side of the split plane
    split: Float  # (E, 4) plane n, d in unit-sphere coordinates: n . q > d takes the second tint
    ragged: NDArray[np.bool_]  # leafy outline
    label: NDArray[np.uint8]
    instance: NDArray[np.uint16]
    obj: NDArray[np.int32]


@dataclass
class Builder:
    """Collects shapes. ``index`` names the textures, ``sizes`` holds their width and height in texels."""

    index: dict[str, int]
    sizes: NDArray[np.float32]
    cutouts: frozenset[int]
    _quads: list[tuple] = field(default_factory=list)
    _blobs: list[tuple] = field(default_factory=list)

    def quad(
        self,
        pose: Float,
        corners: Sequence[Point],
        tile: str,
        label: int,
        *,
        uv: tuple[float, ...] = (0.0, 0.0, 1.0, 1.0),
        tint: Point = WHITE,
        instance: int = 0,
        obj: int = 0,
        two_sided: bool = False,
    ) -> None:
        """Add a quad; corners as seen from the front, from the top left, clockwise.

        ``uv`` is (u, v) at the first corner and (u, v) at the third, with u along the first edge and v along the last;
        or six numbers, (u, v) at the first, second and fourth corner.
        """
        if len(uv) == 4:
            uv = (uv[0], uv[1], uv[2], uv[1], uv[0], uv[3])
        world = np.asarray(corners, float) @ pose[:3, :3].T + pose[:3, 3]
        self._quads.append((world, uv, self.index[tile], tint, label, instance, obj, two_sided))

    def wall(
        self, pose: Float, a: tuple[float, float], b: tuple[float, float], top: float, bottom: float, tile: str,
        label: int, **options: object,
    ) -> None:  # fmt: skip
        """Add an upright rectangle between the ground points a (left as seen) and b, given as (x, z); heights > 0."""
        corners = [(a[0], -top, a[1]), (b[0], -top, b[1]), (b[0], -bottom, b[1]), (a[0], -bottom, a[1])]
        self.quad(pose, corners, tile, label, **options)  # type: ignore[arg-type]

    def box(
        self, pose: Float, x: tuple[float, float], height: tuple[float, float], z: tuple[float, float], tile: str,
        label: int, *, metres: float = 1.0, underside: bool = False, **options: object,
    ) -> None:  # fmt: skip
        """Add a box without its underside; the texture repeats every ``metres``."""
        (x0, x1), (low, high), (z0, z1) = x, height, z
        ring = [(x0, z0), (x1, z0), (x1, z1), (x0, z1)]
        for i, a in enumerate(ring):
            b = ring[(i + 1) % 4]
            run = abs(b[0] - a[0]) + abs(b[1] - a[1])
            uv = (0.0, 0.0, run / metres, (high - low) / metres)
            self.wall(pose, a, b, high, low, tile, label, uv=uv, **options)
        uv = (0.0, 0.0, (x1 - x0) / metres, (z1 - z0) / metres)
        lid = [(x0, -high, z1), (x1, -high, z1), (x1, -high, z0), (x0, -high, z0)]
        self.quad(pose, lid, tile, label, uv=uv, **options)  # type: ignore[arg-type]
        if underside:
            floor = [(x0, -low, z0), (x1, -low, z0), (x1, -low, z1), (x0, -low, z1)]
            self.quad(pose, floor, tile, label, uv=uv, **options)  # type: ignore[arg-type]

    def blob(
        self,
        centre: Sequence[float] | Float,
        radii: Point,
        tile: str,
        label: int,
        *,
        metres: float = 1.0,
        tint: Point = WHITE,
        tint_below: Point | None = None,
        split: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 9.0),
        ragged: bool = False,
        instance: int = 0,
        obj: int = 0,
    ) -> None:
        """Add an ellipsoid; where n . q > d of the split plane (unit-sphere coordinates) it takes ``tint_below``."""
        below = tint if tint_below is None else tint_below
        centre = np.asarray(centre, float)
        record = (centre, radii, self.index[tile], 1 / metres, tint, below, split, ragged, label, instance, obj)
        self._blobs.append(record)

    def quads(self) -> Quads:
        """The quads collected so far, as arrays."""
        columns = list(zip(*self._quads, strict=True))
        corners = np.array(columns[0])
        ends = np.array(columns[1])
        origin, across, down = corners[:, 0], corners[:, 1] - corners[:, 0], corners[:, 3] - corners[:, 0]
        normals = np.cross(down, across)
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        # Dual basis: e_u . across = 1 and e_u . down = 0; e_v the other way round.
        e_u, e_v = np.cross(down, normals), np.cross(normals, across)
        e_u /= (e_u * across).sum(1, keepdims=True)
        e_v /= (e_v * down).sum(1, keepdims=True)
        steps_u, steps_v = ends[:, 2:4] - ends[:, :2], ends[:, 4:6] - ends[:, :2]
        gradients = e_u[:, None] * steps_u[..., None] + e_v[:, None] * steps_v[..., None]
        offset = ends[:, :2] - np.einsum("qij,qj->qi", gradients, origin)
        tile = np.array(columns[2], np.int32)
        texels = self.sizes[tile].astype(float)
        area = np.linalg.norm(np.cross(gradients[:, 0], gradients[:, 1]), axis=1) * texels[:, 0] * texels[:, 1]
        return Quads(
            corners=corners,
            normals=normals,
            uv=np.concatenate([gradients, offset[..., None]], -1),
            density=np.sqrt(area),
            tile=tile,
            tint=np.array(columns[3]),
            label=np.array(columns[4], np.uint8),
            instance=np.array(columns[5], np.uint16),
            obj=np.array(columns[6], np.int32),
            two_sided=np.array(columns[7], bool),
            cutout=np.isin(tile, list(self.cutouts)),
        )

    def blobs(self) -> Blobs:
        """The ellipsoids collected so far, as arrays."""
        columns = list(zip(*self._blobs, strict=True)) if self._blobs else [()] * 11
        count = len(self._blobs)
        return Blobs(
            centre=np.array(columns[0], float).reshape(count, 3),
            radii=np.array(columns[1], float).reshape(count, 3),
            tile=np.array(columns[2], np.int32),
            texture_scale=np.array(columns[3], float),
            tint=np.array(columns[4], float).reshape(count, 3),
            tint_below=np.array(columns[5], float).reshape(count, 3),
            split=np.array(columns[6], float).reshape(count, 4),
            ragged=np.array(columns[7], bool),
            label=np.array(columns[8], np.uint8),
            instance=np.array(columns[9], np.uint16),
            obj=np.array(columns[10], np.int32),
        )
