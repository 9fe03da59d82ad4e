"""From 68 face landmarks to the maps a face generator is conditioned on. Torch-free.

The maps are those of vid2vid: one picture of all curves of the face, with edges of the background around it, and one
map for each of 14 curves that tells how far away it is. Everything is drawn in the pixels of the original frame; crop
with `crop_padded` and scale afterwards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from fastv2v.data.drawing import fit_curve, stroke
from fastv2v.data.face_reference import NUM_LANDMARKS, bend, decode_reference
from fastv2v.errors import ConfigError, DataError, ShapeError

Size = tuple[int, int]
"""(height, width) in pixels."""

Background = Literal["canny", "none"]
"""What is drawn outside the face."""

Crop = Literal["face", "none"]
"""What is cut out of the frames of a sequence."""


class MissingFace(DataError):  # noqa: N818 - a state of the data that callers hold or skip, rarely an error to them
    """A landmark file without lines: no face was found in that frame."""


class CropBox(NamedTuple):
    """A rectangle of pixels, right and bottom excluded; it may reach outside the image."""

    left: int
    top: int
    right: int
    bottom: int


class Part(NamedTuple):
    """A part of the face."""

    name: str
    label: int
    edges: tuple[tuple[int, ...], ...]
    """Curves as indices into the 83 points; each is one distance map."""
    scale: tuple[float, float] = (1.0, 1.0)
    """(x, y) ratios about the part's own centre under ``scale_points``."""

    @property
    def points(self) -> list[int]:
        """Its points, each once."""
        return list(dict.fromkeys(index for edge in self.edges for index in edge))


PARTS: Final = (
    Part("contour", 1, ((*range(17), *range(68, 83), 0),), (0.9, 1.0)),
    Part("right brow", 2, (tuple(range(17, 22)),)),
    Part("left brow", 2, (tuple(range(22, 27)),)),
    Part("nose", 3, ((28, 31), tuple(range(31, 36)), (35, 28)), (0.9, 1.0)),
    Part("right eye", 4, ((36, 37, 38, 39), (39, 40, 41, 36)), (1.0, 1.1)),
    Part("left eye", 4, ((42, 43, 44, 45), (45, 46, 47, 42)), (1.0, 1.1)),
    Part("mouth", 5, (tuple(range(48, 55)), (*range(54, 60), 48)), (0.9, 0.9)),
    Part("inner mouth", 6, (tuple(range(60, 65)), (*range(64, 68), 60)), (0.9, 0.9)),
)
"""The parts in the order in which they are drawn; later ones lie above earlier ones. 14 curves in all."""

NO_REFERENCE: Final = "none"
TYPICAL: Final = "typical"
"""The two references that can be asked for; see ``FaceConfig.reference``."""

_EDGES: Final = tuple(edge for part in PARTS for edge in part.edges)
_PAIRS: Final = (("right brow", "left brow"), ("right eye", "left eye"))
_PAIR_DISTANCE: Final = 0.9
_STROKE: Final = 1
_FULL: Final = 255
_PIXELS_PER_LEVEL: Final = 3
_CROP_WIDTHS: Final = 2.5
_LOW, _HIGH = 0.1 * _FULL, 0.2 * _FULL


@dataclass(frozen=True, kw_only=True)
class FaceConfig:
    """What the condition maps of a face show."""

    background: Background = "canny"
    """``canny``: edges of the real frame around the face, as in vid2vid. The frame that is to be synthesised must then
    exist, and its background is given away to the generator, at test time too. ``none``: black around the face."""
    canny_sigma: float = 1.0
    """Blur before edges are looked for: standard deviation in pixels of the original frame."""
    distance_maps: bool = True
    """Add 14 channels, each the distance to one curve."""
    scale_points: bool = False
    """Draw a narrower face than the landmarks show, by fixed ratios, to try another shape (inference only)."""
    crop: Crop = "face"
    """``face``: a square of 2.5 face widths, placed by the first frame of a sequence, is cut out of all its frames, as
    in vid2vid. ``none``: whole frames; right where the face was cut out already, as ``fastv2v prepare`` does."""
    reference: str = NO_REFERENCE
    """``typical``: three more channels show the training frame whose landmarks lie nearest to the mean, bent so that
    they meet those of each frame; short trainings then need not invent a face. Once the data set is read, the frame
    itself stands here as text, so that runs and bundles keep it. ``none``: curves only, as in vid2vid."""

    def __post_init__(self) -> None:
        if self.background not in get_args(Background):
            raise ConfigError(f"unknown face background '{self.background}'; there are canny and none")
        if self.crop not in get_args(Crop):
            raise ConfigError(f"unknown face crop '{self.crop}'; there are face and none")
        if not 0 < self.canny_sigma < math.inf:
            raise ConfigError(f"canny_sigma is a positive number of pixels, got {self.canny_sigma}")
        if not self.reference or (":" not in self.reference and self.reference not in (NO_REFERENCE, TYPICAL)):
            raise ConfigError(f"unknown face reference '{self.reference[:40]}'; there are none and typical")

    @property
    def channels(self) -> int:
        """C: channels of one condition."""
        return 1 + len(_EDGES) * self.distance_maps + self.shown_channels

    @property
    def shown_channels(self) -> int:
        """How many of them, the last ones, show a frame: 3 (RGB) or 0."""
        return 0 if self.reference == NO_REFERENCE else 3


def read_landmarks(data: bytes, where: str) -> NDArray[np.float64]:
    """Read the landmarks of one frame.

    Args:
        data: content of the file: 68 lines ``x,y`` in pixels of the frame; blank lines are passed over.
        where: file, for messages.

    Returns:
        (x, y) in pixels, shape (68, 2).

    Raises:
        MissingFace: if the file holds no lines.
        DataError: if it holds another number of lines, or one that is not two finite numbers.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: not a text file; landmarks are {NUM_LANDMARKS} lines 'x,y': extract this frame again"
        ) from error
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise MissingFace(f"{where}: empty, no face was found in this frame; leave the frame out or add its landmarks")
    points = np.array([_read_point(line, f"{where}, line {number}") for number, line in lines])
    if len(points) != NUM_LANDMARKS:
        raise DataError(
            f"{where}: {len(points)} landmarks instead of {NUM_LANDMARKS}; "
            "extract this frame again with a 68-point predictor, or leave it out"
        )
    return points


def check_in_frame(landmarks: NDArray[np.float64], size: Size, where: str) -> None:
    """Refuse a face that lies outside the frame with more than half of its landmarks, and points that went astray.

    Faces at the border reach out of the frame by rights; a point further than one frame outside is a mistake of the
    detector or of the file, and would spoil the crop of a whole clip.

    Args:
        landmarks: (x, y) in pixels, shape (68, 2).
        size: (height, width) of the frame.
        where: file, for the message.

    Raises:
        DataError: if it does, or if a point lies further outside than the frame is wide or high.
    """
    is_out = (landmarks < 0) | (landmarks >= np.array(size[::-1]))
    outside = int(np.count_nonzero(is_out.any(axis=1)))
    if 2 * outside > len(landmarks):
        raise DataError(
            f"{where}: {outside} of {len(landmarks)} landmarks lie outside the {size[1]}x{size[0]} frame; "
            "check that the file belongs to this frame and counts in pixels of its original size"
        )
    extent = np.array(size[::-1])
    astray = np.flatnonzero(((landmarks < -extent) | (landmarks > 2 * extent)).any(axis=1))
    if len(astray):
        x, y = landmarks[astray[0]]
        raise DataError(
            f"{where}: landmark {astray[0]} (of 0 to {len(landmarks) - 1}) is at ({x:g}, {y:g}), more than one frame "
            f"outside the {size[1]}x{size[0]} frame; extract this frame again, correct or remove the file"
        )


def face_crop(landmarks: NDArray[np.float64], size: Size) -> CropBox:
    """The square around a face that is cut out of every frame of a clip.

    Its sides are 2.5 times the width of the face. It is moved into the image as far as it fits; a larger square ends
    at the right and bottom border and reaches out on the left and top.

    Args:
        landmarks: (x, y) in pixels, shape (68, 2), of the first frame of the clip.
        size: (height, width) of the frame.

    Returns:
        The box, in pixels of the frame.

    Raises:
        DataError: if the landmarks have no width, or are wider than the longer side of the frame.

    Source:
        The face loader of vid2vid, in its arithmetic.
    """
    (min_x, min_y), (max_x, max_y) = landmarks.min(axis=0), landmarks.max(axis=0)
    side = _CROP_WIDTHS * float(max_x - min_x)
    half = side // 2
    if half < 1:
        raise DataError(f"the face is {max_x - min_x:g} pixels wide, too little to crop; check its landmarks")
    if side > _CROP_WIDTHS * max(size):
        raise DataError(
            f"the face is {max_x - min_x:g} pixels wide in a {size[1]}x{size[0]} frame, and a crop around it would be "
            "mostly black; correct its landmarks, or begin the sequence with another frame"
        )
    centre = ((min_x + max_x) // 2, (3 * min_y + max_y) // 4)
    x, y = (min(max(0.0, float(c) - half) + side, length) - half for c, length in zip(centre, size[::-1], strict=True))
    return CropBox(*(math.floor(edge) for edge in (x - half, y - half, x + half, y + half)))


def crop_padded(image: NDArray[np.uint8], box: CropBox) -> NDArray[np.uint8]:
    """Cut a box out of an image; what lies outside the image is 0.

    Args:
        image: (H, W) or (H, W, C).
        box: in pixels of the image.

    Returns:
        A copy, (box height, box width) or with C behind.

    Raises:
        ShapeError: if the box is empty.
    """
    if box.right <= box.left or box.bottom <= box.top:
        raise ShapeError(f"a crop box holds at least one pixel, got {box}")
    height, width = image.shape[:2]
    out = np.zeros((box.bottom - box.top, box.right - box.left, *image.shape[2:]), image.dtype)
    left, right = max(box.left, 0), min(box.right, width)
    top, bottom = max(box.top, 0), min(box.bottom, height)
    if left < right and top < bottom:
        out[top - box.top : bottom - box.top, left - box.left : right - box.left] = image[top:bottom, left:right]
    return out


def part_labels(landmarks: NDArray[np.float64], size: Size) -> NDArray[np.uint8]:
    """Mark the parts of a face.

    Args:
        landmarks: (x, y) in pixels, shape (68, 2).
        size: (height, width) of the frame.

    Returns:
        (H, W): 0 outside the face, otherwise the label of the topmost of ``PARTS``, 1 to 6.

    Raises:
        ShapeError: if there are not 68 points.
        DataError: if one is not finite.
    """
    points = _outline(landmarks, size).astype(np.int32)
    labels = np.zeros(size, np.uint8)
    for part in PARTS:
        cv2.fillPoly(labels, [points[[index for edge in part.edges for index in edge]]], part.label)
    return labels


def draw_face(
    landmarks: NDArray[np.float64], size: Size, config: FaceConfig, frame: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """Draw the condition maps of one frame.

    Args:
        landmarks: (x, y) in pixels, shape (68, 2). Points further than one frame outside are moved to that distance.
        size: (height, width) of the frame.
        config: what to draw.
        frame: the real frame, RGB, (H, W, 3), for the background ``canny``.

    Returns:
        (H, W, C), C being ``config.channels``. Channel 0: all curves and the edges around the face, 0 or 255. Then for
        each of the 14 curves a third of the city-block distance to it in pixels, rounded down, at most 255. Then the
        bent reference, RGB.

    Raises:
        ConfigError: if the background needs a frame and there is none, or the reference is asked for and not chosen
            yet (``open_folder`` does).
        ShapeError: if landmarks or frame have another shape.
        DataError: if a landmark is not finite, or the reference is damaged.

    Source:
        Section "Face" of Wang et al., "Video-to-Video Synthesis", NeurIPS 2018, as its published code draws.
    """
    points = _outline(landmarks, size)
    if config.scale_points:
        points = _scaled(points)
    curves = [_edge_samples(points[list(edge)]) for edge in _EDGES]
    edges = np.zeros(size, np.uint8)
    if config.background == "canny":
        if frame is None:
            raise ConfigError("the face background 'canny' is taken from the real frame and there is none; use 'none'")
        if frame.shape != (*size, 3) or frame.dtype != np.uint8:
            raise ShapeError(f"expected an RGB frame of uint8 {(*size, 3)}, got {frame.dtype} of {frame.shape}")
        edges = canny_edges(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), config.canny_sigma)
        edges[part_labels(landmarks, size) > 0] = 0
    for samples in curves:
        stroke(edges, samples, _FULL, width=_STROKE)
    planes = [edges]
    if config.distance_maps:
        planes += [_distance_map(samples, size) for samples in curves]
    if config.shown_channels:
        planes += cv2.split(_bent(points, size, config))
    return cv2.merge(planes) if len(planes) > 1 else edges[..., None]


def _bent(points: NDArray[np.float64], size: Size, config: FaceConfig) -> NDArray[np.uint8]:
    """The reference where the 83 points are, (H, W, 3)."""
    if config.reference == TYPICAL:
        raise ConfigError("the typical frame of a data set is chosen when that is opened, and here is none; use 'none'")
    reference = decode_reference(config.reference)
    # Faces that were cut out already lie before a background that stands; others take theirs along.
    return bend(reference, points[:NUM_LANDMARKS], points, size, still=config.crop == "none")


def canny_edges(grey: NDArray[np.uint8], sigma: float = 1.0) -> NDArray[np.uint8]:
    """Thin edges of a grey picture: blur, Sobel, interpolated non-maximum suppression, hysteresis.

    Follows scikit-image's ``feature.canny`` with its default thresholds (gradients of 0.1 and 0.2 of full scale, in
    sums over the Sobel mask) and borders. What differs: sums are of 32 instead of 64 bits, so that a pixel is decided
    otherwise where two neighbouring gradients, or gradient and threshold, are equal to six digits. OpenCV's own Canny
    suppresses along four directions only and keeps visibly other pixels.

    Args:
        grey: (H, W), 0 to 255.
        sigma: standard deviation of the blur, in pixels.

    Returns:
        (H, W), 255 on edges and 0 elsewhere. The outermost pixels are never edges.
    """
    smooth = _blur(grey.astype(np.float32), sigma)
    gx = cv2.Sobel(smooth, cv2.CV_32F, 1, 0, ksize=3, borderType=cv2.BORDER_REFLECT)
    gy = cv2.Sobel(smooth, cv2.CV_32F, 0, 1, ksize=3, borderType=cv2.BORDER_REFLECT)
    strength = cv2.magnitude(gx, gy)
    weak = np.zeros(grey.shape, np.uint8)
    weak[1:-1, 1:-1] = strength[1:-1, 1:-1] >= _LOW
    spots = np.flatnonzero(weak)
    crests = spots[_is_crest(spots, gx.ravel(), gy.ravel(), strength.ravel(), grey.shape[1])]
    weak[:] = 0
    weak.ravel()[crests] = 1
    num, labels = cv2.connectedComponents(weak, connectivity=8)
    is_kept = np.zeros(num, bool)
    is_kept[labels.ravel()[crests[strength.ravel()[crests] >= _HIGH]]] = True
    out = np.zeros_like(weak)
    out.ravel()[crests[is_kept[labels.ravel()[crests]]]] = _FULL
    return out


def _is_crest(
    spots: NDArray[np.int64],
    gx: NDArray[np.float32],
    gy: NDArray[np.float32],
    strength: NDArray[np.float32],
    width: int,
) -> NDArray[np.bool_]:
    """Whether the gradient at each flat index is no weaker than one step up and down its own direction."""
    dx, dy, here = gx[spots], gy[spots], strength[spots]
    across, down = np.abs(dx), np.abs(dy)
    step_x, step_y = np.where(dx < 0, -1, 1), np.where(dy < 0, -width, width)
    straight = np.where(across > down, step_x, step_y)
    diagonal = step_x + step_y
    lean = np.minimum(across, down) / np.maximum(across, down)
    ahead = strength[spots + straight] * (1 - lean) + strength[spots + diagonal] * lean
    behind = strength[spots - straight] * (1 - lean) + strength[spots - diagonal] * lean
    return (ahead <= here) & (behind <= here)


def _blur(image: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """Gaussian blur cut off at four sigma; near the border, the mean over what lies inside."""
    radius = int(4 * sigma + 0.5)
    steps = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (steps / sigma) ** 2)
    kernel /= kernel.sum()
    blurred = cv2.sepFilter2D(image, cv2.CV_32F, kernel, kernel, borderType=cv2.BORDER_CONSTANT)
    rows, columns = (np.convolve(np.ones(n), kernel)[radius : radius + n].astype(np.float32) for n in image.shape)
    return blurred / (rows[:, None] * columns)


def _read_point(line: str, where: str) -> tuple[float, float]:
    try:
        x, y = (float(part) for part in line.split(","))
    except ValueError as error:
        raise DataError(f"{where}: expected two numbers 'x,y', got {line[:40]!r}; extract this frame again") from error
    if not (math.isfinite(x) and math.isfinite(y)):
        raise DataError(f"{where}: coordinates must be finite, got {line[:40]!r}; extract this frame again")
    return x, y


def _outline(landmarks: NDArray[np.float64], size: Size) -> NDArray[np.float64]:
    """The landmarks and the upper face, (83, 2): the jaw mirrored about its ends at two thirds of its depth."""
    if landmarks.shape != (NUM_LANDMARKS, 2):
        raise ShapeError(f"a face has landmarks of shape ({NUM_LANDMARKS}, 2), got {landmarks.shape}")
    if not np.isfinite(landmarks).all():
        raise DataError("face landmarks must be finite numbers; extract this frame again")
    extent = np.array(size[::-1], np.float64)
    points = np.clip(landmarks.astype(np.float64), -extent, 2 * extent)
    upper = points[15:0:-1].copy()
    base = (points[0, 1] + points[16, 1]) / 2
    upper[:, 1] = np.trunc(base + (base - upper[:, 1]) * 2 // 3)
    return np.concatenate([points, upper])


def _scaled(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The 83 points of a narrower face: brows and eyes move together, then every part shrinks or grows."""
    points = points.copy()
    by_name = {part.name: part.points for part in PARTS}
    for pair in _PAIRS:
        centre = points[[index for name in pair for index in by_name[name]], 0].mean()
        for name in pair:
            points[by_name[name], 0] -= (1 - _PAIR_DISTANCE) * (points[by_name[name], 0].mean() - centre)
    for part in PARTS:
        middle = points[part.points].mean(axis=0)
        points[part.points] = middle + (points[part.points] - middle) * part.scale
    return points


def _edge_samples(points: NDArray[np.float64]) -> NDArray[np.int64]:
    """Samples of the curve through points, (M, 2): a parabola through each three, the last one shared with the next."""
    starts = range(0, max(1, len(points) - 1), 2)
    return np.concatenate([fit_curve(points[i : i + 3]) for i in starts])


def _distance_map(samples: NDArray[np.int64], size: Size) -> NDArray[np.uint8]:
    """A third of the city-block distance to a stroke along samples, (H, W), at most 255.

    The transform is run on the box around the stroke only. Outside, the way to any pixel of the stroke leads through
    the nearest pixel of the box, so that the distance is exactly the way to that pixel plus what is left from there.
    """
    out = np.full(size, _FULL, np.uint8)
    if not len(samples):
        return out
    border = np.array(size[::-1]) - 1
    low = np.clip(samples.min(axis=0) - _STROKE, 0, border)
    high = np.clip(samples.max(axis=0) + _STROKE - 1, 0, border)
    blank = np.full((high - low + 1)[::-1], _FULL, np.uint8)
    stroke(blank, samples - low, 0, width=_STROKE)
    inside = np.minimum(cv2.distanceTransform(blank, cv2.DIST_L1, 3), _PIXELS_PER_LEVEL * _FULL).astype(np.uint16)
    (left, top), (right, bottom) = low, high + 1
    down, across = _way(size[0], top, bottom), _way(size[1], left, right)
    wide = np.pad(inside, ((0, 0), (left, size[1] - right)), mode="edge") + across
    for rows, distance in (
        (slice(0, top), np.add.outer(down[:top], wide[0])),
        (slice(top, bottom), wide),
        (slice(bottom, size[0]), np.add.outer(down[bottom:], wide[-1])),
    ):
        if distance.size:
            # (d - 1) / 3 rounded to the nearest is d / 3 rounded down; the conversion saturates at 255.
            out[rows] = cv2.convertScaleAbs(distance, alpha=1 / _PIXELS_PER_LEVEL, beta=-1 / _PIXELS_PER_LEVEL)
    return out


def _way(length: int, start: int, stop: int) -> NDArray[np.uint16]:
    """Pixels from each of ``length`` positions to the nearest one in [start, stop), at most as many as count."""
    places = np.arange(length)
    way = np.maximum(np.maximum(start - places, places - (stop - 1)), 0)
    return np.minimum(way, _PIXELS_PER_LEVEL * _FULL).astype(np.uint16)
