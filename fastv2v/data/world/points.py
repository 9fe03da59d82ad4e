"""Which point of the world does each pixel see? Surfaces are cut into cells, which are numbered as they appear.

A cell belongs to one surface and is about as large as a pixel is from where the camera comes nearest to it, so that it
does not depend on the view. Moving things are cut in their own coordinates: their points move with them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastv2v.data.world.geometry import Float, moved_points
from fastv2v.data.world.raster import KERB_FACE_ID, NUM_GROUND, SKY_ID, GBuffer, Surfaces, View
from fastv2v.data.world.scene import CAMERA_HEIGHT, CameraPath, Scene

_NEAREST, _MOVING = 2.0, 8.0
"""Metres: nothing is cut finer than from the one, moving things are cut as from the other."""
_OFFSET = 0.37
"""Of a cell: surfaces often lie at round coordinates, which must not be the borders of cells."""
_POSITIONS = 32


class PointNumbers:
    """Numbers the points of one clip, frame after frame; the same cell keeps its number."""

    def __init__(self, scene: Scene, camera: CameraPath, intrinsics: Float) -> None:
        self._scene = scene
        self._focal = float(intrinsics[0, 0])
        positions = camera.camera_to_world[:, :3, 3]
        self._positions = positions[np.linspace(0, len(positions) - 1, _POSITIONS).astype(int)]
        self._numbers: dict[bytes, int] = {}

    def number(self, view: View, buffer: GBuffer, surfaces: Surfaces, poses: Float) -> NDArray[np.int32]:
        """Point ids of a frame.

        Args:
            view: its camera.
            buffer: what each sample sees.
            surfaces: the shapes that ``buffer`` refers to.
            poses: object-to-world transforms of the moment, (O, 4, 4).

        Returns:
            (H, W) ids, in the order of first appearance over all frames that were numbered so far; -1 for sky.
        """
        every_second = slice(1, None, 2)
        centres = _part(buffer, (every_second, every_second))
        ids = centres.ids
        out = np.full(ids.size, -1, np.int32)
        seen = np.flatnonzero(ids.ravel() != SKY_ID)
        cells = self._cells(view, _part(centres, np.unravel_index(seen, ids.shape)), seen, surfaces, poses)
        keys, first, inverse = np.unique(_as_keys(cells), return_index=True, return_inverse=True)
        order = np.argsort(first)  # numbers follow the pixels of a frame, not the bytes of keys
        numbers = np.empty(len(keys), np.int32)
        for position in order.tolist():
            numbers[position] = self._numbers.setdefault(keys[position].tobytes(), len(self._numbers))
        out[seen] = numbers[inverse]
        return out.reshape(ids.shape)

    def _cells(
        self, view: View, seen: GBuffer, pixels: NDArray[np.intp], surfaces: Surfaces, poses: Float
    ) -> NDArray[np.int32]:
        """(n, 6): surface, size of the cells along and across, and the cell, up to three numbers."""
        width = len(view.xs) // 2
        rows, columns = np.divmod(pixels, width)
        depth = 1 / seen.inverse_depth.astype(np.float64)
        k = view.intrinsics
        x, y = (columns - k[0, 2]) / k[0, 0] * depth, (rows - k[1, 2]) / k[1, 1] * depth
        world = moved_points(view.camera_to_world[:3], np.stack([x, y, depth], -1))
        squared = [((world - position) ** 2).sum(1) for position in self._positions]
        distance = np.maximum(np.sqrt(np.min(squared, axis=0)), _NEAREST)
        cells = np.zeros((len(pixels), 6), np.int32)
        first_blob = NUM_GROUND + len(surfaces.quad)
        parts = (seen.ids < NUM_GROUND, (seen.ids >= NUM_GROUND) & (seen.ids < first_blob), seen.ids >= first_blob)
        ground, quads, blobs = (np.flatnonzero(part) for part in parts)
        cells[ground] = self._ground(_part(seen, ground), distance[ground])
        quad = surfaces.quad[seen.ids[quads] - NUM_GROUND]
        points, size = self._in_object(self._scene.quads.obj[quad], world[quads], distance[quads], poses)
        # Texture coordinates in metres: two numbers, whichever way the quad faces.
        uv = self._scene.quads.uv[quad]
        metres = (np.einsum("nij,nj->ni", uv[..., :3], points) + uv[..., 3]) / np.linalg.norm(uv[..., :3], axis=-1)
        cells[quads] = _cut(NUM_GROUND + quad, [metres[:, 0], metres[:, 1]], size, size)
        blob = surfaces.blob[seen.ids[blobs] - first_blob]
        points, size = self._in_object(self._scene.blobs.obj[blob], world[blobs], distance[blobs], poses)
        cells[blobs] = _cut(NUM_GROUND + len(self._scene.quads.obj) + blob, list(points.T), size, size)
        return cells

    def _ground(self, seen: GBuffer, distance: Float) -> NDArray[np.int32]:
        """Cells in street coordinates; pixels are longer along the street, as they meet the ground at an angle."""
        across = distance / self._focal
        t = seen.street_t.astype(np.float64)
        t = np.where(seen.ids == KERB_FACE_ID, np.sign(t), t)  # upright: one t on each side, up to rounding
        along = across * np.maximum(distance / CAMERA_HEIGHT, 1)
        return _cut(seen.ids, [t, seen.street_s.astype(np.float64)], _rounded(across), _rounded(along))

    def _in_object(
        self, obj: NDArray[np.int32], world: Float, distance: Float, poses: Float
    ) -> tuple[Float, NDArray[np.int32]]:
        """Points in the coordinates of their objects, and the size of the cells there."""
        to_object = np.linalg.inv(poses)[obj]
        points = np.einsum("nij,nj->ni", to_object[:, :3, :3], world) + to_object[:, :3, 3]
        return points, _rounded(np.where(obj > 0, _MOVING, distance) / self._focal)


def _part(buffer: GBuffer, index: Any) -> GBuffer:
    """Some of the samples."""
    return GBuffer(buffer.ids[index], buffer.inverse_depth[index], buffer.street_t[index], buffer.street_s[index])


def _rounded(size: Float) -> NDArray[np.int32]:
    """Exponent of the next power of two, in metres: from one to two pixels."""
    return np.ceil(np.log2(size)).astype(np.int32)


def _cut(
    surface: NDArray[np.int32], metres: list[Float], across: NDArray[np.int32], along: NDArray[np.int32]
) -> NDArray[np.int32]:
    """Rows of ``_cells``; the second number is cut by ``along``, the others by ``across``."""
    columns = [surface, across, along]
    for axis, position in enumerate(metres):
        columns.append(np.floor(np.ldexp(position, -(along if axis == 1 else across)) + _OFFSET).astype(np.int32))
    columns += [np.zeros_like(surface)] * (6 - len(columns))
    return np.stack(columns, 1)


def _as_keys(cells: NDArray[np.int32]) -> NDArray[np.void]:
    """Each row as one value that can be compared."""
    rows = np.ascontiguousarray(cells, dtype=">i4")
    return rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).ravel()
