"""A real frame bent to the landmarks of other frames: what a face generator need not invent. Torch-free.

A small network that sees curves only has to learn every pixel of a face from minutes of video. Shown one real frame,
already in the wanted pose, it has to learn what differs: the inside of the mouth, lids, folds, light.
"""

from __future__ import annotations

import base64
import binascii
from functools import lru_cache
from typing import Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from fastv2v.data.images import jpeg_size
from fastv2v.errors import DataError, ShapeError

Size = tuple[int, int]
"""(height, width) in pixels."""

NUM_LANDMARKS: Final = 68
"""Landmarks in the order of dlib: 0-16 jaw, 17-26 brows, 27-35 nose, 36-47 eyes, 48-67 mouth."""

_QUALITY: Final = 95
_MOST_BYTES: Final = 16 * 2**20
_MOST_PIXELS: Final = 2**24
_GRID: Final = 8
_STIFFNESS: Final = 1e-3
_WHOLE: Final = 0.15
_REACH: Final = 0.35


class FaceReference(NamedTuple):
    """A frame that is shown bent."""

    picture: NDArray[np.uint8]
    """RGB, (H, W, 3)."""
    landmarks: NDArray[np.float64]
    """(x, y) in its pixels, (68, 2)."""

    def encode(self) -> str:
        """One line of text that keeps it, for a configuration: the picture as JPEG in base 64, then the points.

        Raises:
            ShapeError: if there are not 68 points.
        """
        if self.landmarks.shape != (NUM_LANDMARKS, 2):
            raise ShapeError(f"a face has landmarks of shape ({NUM_LANDMARKS}, 2), got {self.landmarks.shape}")
        bgr = cv2.cvtColor(self.picture, cv2.COLOR_RGB2BGR)
        _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
        points = ",".join(f"{number:.2f}" for number in self.landmarks.ravel())
        return f"{base64.b64encode(data.tobytes()).decode('ascii')}:{points}"


@lru_cache(maxsize=8)
def decode_reference(text: str) -> FaceReference:
    """What ``FaceReference.encode`` kept; its arrays must not be changed.

    Raises:
        DataError: if the text is damaged or holds a picture of more than 16 megapixels.
    """
    picture, _, numbers = text.partition(":")
    remedy = "export the bundle or train the run again"
    if len(picture) > _MOST_BYTES:
        raise DataError(f"the face reference holds {len(picture)} characters, more than {_MOST_BYTES}; {remedy}")
    try:
        data = np.frombuffer(base64.b64decode(picture, validate=True), np.uint8)
        points = np.array([float(number) for number in numbers.split(",")], np.float64)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"the face reference is damaged ({error}); {remedy}") from error
    if points.size != 2 * NUM_LANDMARKS or not np.isfinite(points).all():
        raise DataError(f"the face reference has {points.size / 2:g} landmarks instead of {NUM_LANDMARKS}; {remedy}")
    size = jpeg_size(data.tobytes())
    if size is None or size[0] * size[1] > _MOST_PIXELS:
        raise DataError(f"the face reference is no JPEG of at most {_MOST_PIXELS} pixels; {remedy}")
    image = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None or image.shape[:2] != size:
        raise DataError(f"the picture of the face reference is damaged; {remedy}")
    found = FaceReference(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), points.reshape(NUM_LANDMARKS, 2))
    for array in found:
        array.flags.writeable = False
    return found


def typical(landmarks: NDArray[np.float64]) -> int:
    """The face whose landmarks lie nearest to the mean of all.

    Args:
        landmarks: (N, 68, 2), N at least 1.

    Returns:
        Its number, 0 to N-1; the first of several.
    """
    away = np.abs(landmarks - landmarks.mean(axis=0)).mean(axis=(1, 2))
    return int(np.argmin(away.round(6)))


def bend(
    reference: FaceReference, landmarks: NDArray[np.float64], outline: NDArray[np.float64], size: Size, *, still: bool
) -> NDArray[np.uint8]:
    """Show the reference with its landmarks where others are.

    Inside the face the bend is a thin-plate spline through the landmarks, a little stiff, since points that nearly
    meet (closed lips) would fold it. Ears and hair go along; between 0.15 and 0.35 face widths outside it fades out.

    Args:
        reference: the frame.
        landmarks: (x, y) in pixels of the result, (68, 2).
        outline: points around the face, (N, 2), within which nothing fades.
        size: (height, width) of the result.
        still: whether what lies around the face stays where it is in the reference, as before a camera that stands;
            otherwise all of the picture is moved, turned and scaled with the face.

    Returns:
        RGB, (H, W, 3).

    Source:
        Bookstein, "Principal Warps: Thin-Plate Splines and the Decomposition of Deformations", PAMI 1989; Wahba,
        "Spline Models for Observational Data", 1990, for the stiffness.
    """
    height, width = size
    face_width = max(float(np.ptp(landmarks[:, 0])), 1.0)
    base = _scale(reference.picture.shape[:2], size) if still else _similarity(landmarks, reference.landmarks)
    residual = reference.landmarks - _apply(base, landmarks)
    x, y = (np.arange(0, length + _GRID, _GRID, dtype=np.float64) for length in (width, height))
    nodes = np.stack(np.meshgrid(x, y), axis=-1)
    spline = _spline(landmarks / face_width, residual, nodes / face_width)
    mask = np.full(size, 255, np.uint8)
    cv2.fillConvexPoly(mask, cv2.convexHull(outline.round().astype(np.int32)), 0)
    away = cv2.distanceTransform(mask, cv2.DIST_L2, 5) / face_width
    near = np.clip((_REACH - away) / (_REACH - _WHOLE), 0, 1, dtype=np.float32)
    fade = near * near * (3 - 2 * near)
    px, py = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    moved = cv2.remap(spline.astype(np.float32), px / _GRID, py / _GRID, cv2.INTER_LINEAR)
    there = cv2.transform(cv2.merge([px, py]), base.astype(np.float32)) + cv2.merge([fade, fade]) * moved
    bent = cv2.remap(reference.picture, there, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(bent, np.uint8)


def _apply(affine: NDArray[np.float64], points: NDArray[np.floating]) -> NDArray[np.float64]:
    """Points (..., 2) through a (2, 3) map."""
    return np.asarray(points @ affine[:, :2].T + affine[:, 2])


def _scale(there: Size, here: Size) -> NDArray[np.float64]:
    """From pixels of one picture to those of another of the same view, corner to corner."""
    x, y = there[1] / here[1], there[0] / here[0]
    return np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2]])


def _similarity(source: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rotation, scale and shift that bring points (N, 2) nearest to others (Umeyama, PAMI 1991), as (2, 3)."""
    mean, aim = source.mean(axis=0), target.mean(axis=0)
    a, b = (source - mean) @ [1, 1j], (target - aim) @ [1, 1j]
    factor = np.vdot(a, b) / max(np.vdot(a, a).real, 1e-9)
    matrix = np.array([[factor.real, -factor.imag], [factor.imag, factor.real]])
    return np.column_stack([matrix, aim - matrix @ mean])


def _spline(knots: NDArray[np.float64], values: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.float64]:
    """A smoothing thin-plate spline through values (N, 2) at knots (N, 2), evaluated at points (..., 2)."""
    count = len(knots)
    system = np.zeros((count + 3, count + 3))
    system[:count, :count] = _kernel(knots, knots) + _STIFFNESS * np.eye(count)
    system[:count, count:] = np.column_stack([np.ones(count), knots])
    system[count:, :count] = system[:count, count:].T
    # The least-squares solution: knots on one line leave the affine part open.
    weights = np.linalg.lstsq(system, np.concatenate([values, np.zeros((3, 2))]), rcond=1e-10)[0]
    flat = at.reshape(-1, 2)
    made = _kernel(flat, knots) @ weights[:count] + np.column_stack([np.ones(len(flat)), flat]) @ weights[count:]
    return np.asarray(made.reshape(at.shape))


def _kernel(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """r^2 log r between all pairs, (len(a), len(b))."""
    squared = np.maximum((a**2).sum(axis=-1)[:, None] + (b**2).sum(axis=-1) - 2 * a @ b.T, 1e-12)
    return np.asarray(0.5 * squared * np.log(squared))
