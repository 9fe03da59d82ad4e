"""Cameras of posed frames: read, checked, and used to project. Torch-free.

Axes follow OpenCV: x right, y down, z forward. Pixel centres have whole coordinates: the centre of the top left pixel
is (0, 0), and a point belongs to the pixel at (floor(x + 0.5), floor(y + 0.5)). COLMAP counts from the corner of that
pixel: its principal point is half a pixel larger both ways.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastv2v.data.images import read_bytes
from fastv2v.errors import DataError

Float = NDArray[np.float64]

_NOT_A_ROTATION: Final = 0.02
"""How far R^T R may be from the identity, in any entry: rounding in files leaves 1e-3 at most."""
_UNDISTORT_STEPS: Final = 8


class Camera(NamedTuple):
    """A pinhole camera, with one coefficient for the bending of its lens."""

    intrinsics: Float
    """3x3: focal lengths and principal point in pixels."""
    radial: float = 0.0
    """k of x' = x (1 + k r^2) in coordinates of depth 1: COLMAP's SIMPLE_RADIAL."""

    def project(self, points: Float) -> tuple[Float, Float]:
        """Pixel coordinates (x, y) of points in camera coordinates, (n, 3), all of positive depth."""
        x, y = points[:, 0] / points[:, 2], points[:, 1] / points[:, 2]
        bend = 1 + self.radial * (x * x + y * y)
        k = self.intrinsics
        return k[0, 0] * bend * x + k[0, 2], k[1, 1] * bend * y + k[1, 2]

    def rays(self, size: tuple[int, int]) -> Float:
        """Directions of depth 1 through the pixel centres of a frame of (height, width), (H, W, 3)."""
        rows, columns = np.mgrid[: size[0], : size[1]].astype(np.float64)
        return self.rays_through(columns, rows)

    def rays_through(self, columns: Float, rows: Float) -> Float:
        """Directions of depth 1 through places of the picture in pixels, any shape, with three numbers as last axis."""
        k = self.intrinsics
        bent_x, bent_y = (columns - k[0, 2]) / k[0, 0], (rows - k[1, 2]) / k[1, 1]
        x, y = bent_x, bent_y
        for _ in range(_UNDISTORT_STEPS if self.radial else 0):
            bend = 1 + self.radial * (x * x + y * y)
            x, y = bent_x / bend, bent_y / bend
        return np.stack([x, y, np.ones_like(x)], -1)


def read_intrinsics(path: Path) -> Float:
    """Read a 3x3 camera matrix.

    Raises:
        DataError: if the file is missing, holds other numbers, or is no camera matrix.
    """
    matrix = _read_matrix(path, (3, 3), "camera matrix")
    lower = matrix[[1, 2, 2], [0, 0, 1]]
    if not (matrix[0, 0] > 0 and matrix[1, 1] > 0 and np.allclose(lower, 0) and np.isclose(matrix[2, 2], 1)):
        raise DataError(f"{path}: expected rows 'fx 0 cx', '0 fy cy', '0 0 1' in pixels, got {matrix.tolist()}")
    return matrix


def read_pose(path: Path) -> Float:
    """Read a camera-to-world matrix, 4x4; its rotation is made exactly orthonormal.

    Raises:
        DataError: if the file is missing or holds other numbers, or as ``checked_pose``.
    """
    return checked_pose(_read_matrix(path, (4, 4), "camera pose"), str(path))


def checked_pose(matrix: Float, where: str) -> Float:
    """A pose whose rotation is exactly orthonormal, from one that is so up to rounding.

    Args:
        matrix: camera-to-world, 4x4.
        where: file or frame, for messages.

    Raises:
        DataError: if it is not finite, no rotation with a shift, or mirrors.
    """
    if not np.isfinite(matrix).all():
        raise DataError(f"{where}: the camera pose is not finite; leave the file out if this frame has no pose")
    if not np.allclose(matrix[3], (0, 0, 0, 1), atol=1e-3):
        raise DataError(f"{where}: the last row of a camera pose is 0 0 0 1, got {matrix[3].tolist()}; transpose it?")
    rotation = matrix[:3, :3]
    off = float(np.abs(rotation.T @ rotation - np.eye(3)).max())
    if off > _NOT_A_ROTATION:
        raise DataError(
            f"{where}: the camera pose is no rotation, R^T R is {off:.3g} away from the identity (at most "
            f"{_NOT_A_ROTATION}); write camera-to-world without scale"
        )
    if np.linalg.det(rotation) < 0:
        raise DataError(f"{where}: the camera pose mirrors (determinant -1); use axes x right, y down, z forward")
    left, _, right = np.linalg.svd(rotation)
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = left @ right, matrix[:3, 3]
    return pose


def scaled_intrinsics(intrinsics: Float, factor: float) -> Float:
    """The camera matrix of a frame scaled by ``factor``: c' = (c + 0.5) factor - 0.5, as pixel centres are whole."""
    scaled = intrinsics.copy()
    scaled[:2] *= factor
    scaled[:2, 2] = (intrinsics[:2, 2] + 0.5) * factor - 0.5
    return scaled


def _read_matrix(path: Path, shape: tuple[int, int], noun: str) -> Float:
    text = read_bytes(path, noun)
    try:
        values = np.array(text.decode("ascii").split(), np.float64)
    except (UnicodeDecodeError, ValueError) as error:
        raise DataError(f"{path}: a {noun} is {shape[0]}x{shape[1]} numbers as text; this file is not") from error
    if values.size != shape[0] * shape[1]:
        raise DataError(f"{path}: a {noun} is {shape[0]}x{shape[1]} numbers, and this file has {values.size}")
    return values.reshape(shape)
