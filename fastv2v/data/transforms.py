"""Geometry of a clip: scaling, cropping and mirroring, drawn once and applied to every map alike. Torch-free.

The modes and their arithmetic are vid2vid's, so that its published settings keep their meaning; ``exact`` is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from fastv2v.data.pose import centre_crop_columns
from fastv2v.errors import ConfigError, ShapeError

Size = tuple[int, int]
"""(height, width) in pixels."""

Interpolation = Literal["bicubic", "area"]
"""How images are scaled."""

MapKind = Literal["image", "label", "drawing", "flow"]
"""How the pixels of a map move. ``image``: interpolated as the geometry says. ``label``: ids and colours that stand for
something, the nearest pixel. ``drawing``: lines and distances, bilinear. ``flow``: displacements (x, y) in pixels,
bilinear, and themselves scaled and mirrored."""

GeometryMode = Literal[
    "exact",
    "none",
    "crop",
    "scaledCrop",
    "resize",
    "resize_and_crop",
    "resize_and_scaledCrop",
    "scaleWidth",
    "scaleWidth_and_crop",
    "scaleWidth_and_scaledCrop",
    "scaleHeight",
    "scaleHeight_and_crop",
    "scaleHeight_and_scaledCrop",
    "randomScaleWidth",
    "randomScaleWidth_and_crop",
    "randomScaleWidth_and_scaledCrop",
    "randomScaleHeight",
    "randomScaleHeight_and_crop",
    "randomScaleHeight_and_scaledCrop",
]
"""vid2vid's names for scaling and cropping, and ``exact``."""

_UNSCALED: Final = ("none", "crop", "scaledCrop", "exact")
_SCALE_MULTIPLE: Final = 4
_SIZE_MULTIPLE: Final = 32
_SAME_SCALE: Final = 0.1
"""In octaves: a frame that is nearly half as large takes point ids of the level of half the size."""


@dataclass(frozen=True, kw_only=True)
class GeometryConfig:
    """How images of any size become clips of the size a generator takes.

    Except for ``exact``, heights and widths of the result are multiples of 32 and at least 32.
    """

    mode: GeometryMode = "scaleWidth"
    """``exact``: to ``size``. ``resize``: to load_size by load_size. ``scaleWidth``/``scaleHeight``: that side to
    load_size, the other in proportion. ``randomScale...``: that side to a random length from fine_size to load_size + 1
    (training only). ``..._and_crop`` cuts fine_size by fine_size out of it, ``..._and_scaledCrop`` a window of the
    images' own proportions. ``none``: only the rounding to multiples of 32."""
    load_size: int = 512
    """Length of the scaled side, in pixels."""
    fine_size: int = 512
    """Length of the crop, in pixels; for random scaling also the shortest length."""
    size: Size | None = None
    """(height, width) of the result in mode ``exact``, in pixels."""
    interpolation: Interpolation = "bicubic"
    """``bicubic`` for images as in vid2vid, though without its low-pass filter, so that fine texture aliases when
    shrinking by 2 or more; ``area`` averages when shrinking (and is bicubic when enlarging)."""
    centre_crop: bool | None = None
    """Keep the middle half of the columns only, rounded to a multiple of 64, after everything else: where a dancer is.
    ``None``: yes for poses, as in vid2vid, but not in mode ``exact``; otherwise no."""

    def __post_init__(self) -> None:
        if self.mode not in get_args(GeometryMode):
            raise ConfigError(f"unknown geometry mode '{self.mode}'; there are {', '.join(get_args(GeometryMode))}")
        if self.interpolation not in get_args(Interpolation):
            raise ConfigError(f"unknown interpolation '{self.interpolation}'; there are bicubic and area")
        if self.load_size < 1 or self.fine_size < 1:
            raise ConfigError(f"load_size ({self.load_size}) and fine_size ({self.fine_size}) must be at least 1")
        if self.is_random and self.fine_size > self.load_size:
            raise ConfigError(
                f"geometry mode '{self.mode}' scales to lengths from fine_size ({self.fine_size}) to load_size "
                f"({self.load_size}); make load_size the larger one"
            )
        if (self.size is not None) != (self.mode == "exact"):
            raise ConfigError(f"geometry mode 'exact' and size go together; got mode '{self.mode}', size {self.size}")
        if self.size is not None:
            object.__setattr__(self, "size", tuple(self.size))
            if len(self.size) != 2 or min(self.size) < 1:
                raise ConfigError(f"size is (height, width) of at least 1 pixel each, got {self.size}")
            if self.centre_crop:
                raise ConfigError("geometry mode 'exact' states the final size; leave centre_crop out")

    @property
    def is_random(self) -> bool:
        """Whether the scale is drawn anew for every batch."""
        return self.mode.startswith("randomScale")

    @property
    def scaling(self) -> str:
        """The scaling rule of the mode, without its crop; ``none`` where the mode does not scale."""
        return "none" if self.mode in _UNSCALED else self.mode.split("_and_")[0]


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """What is done to every image and map of one clip."""

    source: Size
    """Size of the images it was drawn for."""
    resized: Size
    """Size they are scaled to."""
    offset: tuple[int, int]
    """(top, left) corner of the crop in the scaled image."""
    size: Size
    """Size of the crop: the size of the result."""
    interpolation: Interpolation = "bicubic"
    """How images are scaled; maps of ids always take the nearest pixel."""


def draw_scale(config: GeometryConfig, rng: np.random.Generator) -> int | None:
    """Draw the length that a random mode scales to; ``None`` for all other modes. All clips of a batch share it."""
    return int(rng.integers(config.fine_size, config.load_size + 1, endpoint=True)) if config.is_random else None


def draw_geometry(
    config: GeometryConfig,
    image_size: Size,
    rng: np.random.Generator | None,
    phase: str = "train",
    *,
    scale: int | None = None,
    multiple: int = 1,
) -> Geometry:
    """Decide scale and crop, once for a clip.

    Scaled sizes are rounded to multiples of 4, crops to multiples of 32, halves to even. A side that is not longer
    than the crop is not cropped but rounded to a multiple of 32 (vid2vid pads with black where only one side is too
    short). In training the crop lies at random, near the middle across and near the top down; otherwise it lies in
    the middle of that range, without randomness.

    Args:
        config: the mode and its lengths.
        image_size: (height, width) of the first image of the clip.
        rng: where a random crop comes from; not used outside of training.
        phase: ``train`` or any other.
        scale: length drawn by ``draw_scale`` for the batch; drawn here when ``None``.
        multiple: crops begin at a multiple of so many pixels, the one above and to the left of what was drawn.

    Returns:
        The geometry of this clip.

    Raises:
        ConfigError: if a random mode is asked for outside of training, training has no ``rng``, or too few columns are
            left for the centre crop.
    """
    if phase == "train" and rng is None:
        raise ConfigError("the geometry of a training clip needs a random generator")
    if phase != "train" and config.is_random:
        raise ConfigError(
            f"geometry mode '{config.mode}' draws a random scale, which is for training only; "
            f"take '{config.mode.replace('randomScale', 'scale')}' for phase '{phase}'"
        )
    if config.size is not None:
        return Geometry(
            source=image_size,
            resized=config.size,
            offset=(0, 0),
            size=config.size,
            interpolation=config.interpolation,
        )
    if scale is None and rng is not None:
        scale = draw_scale(config, rng)
    scaled_h, scaled_w = (_round_to(n, _SCALE_MULTIPLE) for n in _scaled_size(config, image_size, scale))
    crop_h, crop_w = _crop_size(config, image_size) or (scaled_h, scaled_w)
    if scaled_h <= crop_h:
        scaled_h = crop_h = _round_to(scaled_h, _SIZE_MULTIPLE)
    if scaled_w <= crop_w:
        scaled_w = crop_w = _round_to(scaled_w, _SIZE_MULTIPLE)
    top, left = _crop_offset((scaled_h, scaled_w), (crop_h, crop_w), rng if phase == "train" else None)
    first, last = centre_crop_columns(crop_w) if config.centre_crop else (0, crop_w)
    return Geometry(
        source=image_size,
        resized=(scaled_h, scaled_w),
        offset=(top - top % multiple, left + first - (left + first) % multiple),
        size=(crop_h, last - first),
        interpolation=config.interpolation,
    )


def apply_geometry(
    geometry: Geometry, image: NDArray[Any], kind: MapKind = "image", *, flip: bool = False
) -> NDArray[Any]:
    """Scale, crop and mirror one image or map.

    Args:
        geometry: what to do.
        image: (H, W) or (H, W, C) of size ``geometry.source``.
        kind: what the pixels are; see ``MapKind``.
        flip: mirror left and right.

    Returns:
        Array of the same type, ``geometry.size``, contiguous.

    Raises:
        ShapeError: if the image is of another size than the geometry was drawn for.
    """
    return np.ascontiguousarray(crop_and_flip(geometry, resize(geometry, image, kind), kind, flip=flip))


def resize(geometry: Geometry, image: NDArray[Any], kind: MapKind = "image") -> NDArray[Any]:
    """The scaling part of ``apply_geometry``: (H, W[, C]) to ``geometry.resized``."""
    if image.shape[:2] != geometry.source:
        raise ShapeError(f"geometry was drawn for images of {geometry.source}, got one of {image.shape[:2]}")
    height, width = geometry.resized
    if geometry.resized == geometry.source:
        return image
    if kind == "label":
        return image[_nearest(image.shape[0], height)][:, _nearest(image.shape[1], width)]
    if kind == "drawing":
        scaled = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        return scaled.reshape(height, width, *image.shape[2:])  # OpenCV drops a single channel
    if kind == "flow":
        ratios = np.array((width / image.shape[1], height / image.shape[0]), dtype=image.dtype)
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR) * ratios
    shrinks = height <= image.shape[0] and width <= image.shape[1]
    method = cv2.INTER_AREA if geometry.interpolation == "area" and shrinks else cv2.INTER_CUBIC
    return cv2.resize(image, (width, height), interpolation=method)


def crop_and_flip(
    geometry: Geometry, image: NDArray[Any], kind: MapKind = "image", *, flip: bool = False
) -> NDArray[Any]:
    """The rest of ``apply_geometry``: a window of ``geometry.size`` in a scaled image, a view of it where possible."""
    (top, left), (height, width) = geometry.offset, geometry.size
    window = image[top : top + height, left : left + width]
    if not flip:
        return window
    return window[:, ::-1] * np.array((-1, 1), dtype=image.dtype) if kind == "flow" else window[:, ::-1]


def take_points(
    geometry: Geometry, levels: Sequence[NDArray[np.int32]], level: int, *, flip: bool = False
) -> NDArray[np.int32]:
    """What ``apply_geometry`` is for images, for one level of a pyramid of point ids.

    Each pixel takes the id under its centre. A shrunken frame is served by the stored level of its own scale, or one up
    to 7 % coarser, not by every n-th pixel of a finer one, which would leave more holes.

    Args:
        geometry: what is done to the frame.
        levels: stored point ids; level j is (H, W) / 2^j of ``geometry.source``, either rounding.
        level: k, which level of the result.
        flip: mirror left and right.

    Returns:
        Ids (ceil(h / 2^k), ceil(w / 2^k)) of ``geometry.size`` (h, w), contiguous.

    Raises:
        ShapeError: if level 0 is of another size than the geometry was drawn for.
    """
    if levels[0].shape != geometry.source:
        raise ShapeError(f"geometry was drawn for images of {geometry.source}, got point ids of {levels[0].shape}")
    shrinking = min(source / scaled for source, scaled in zip(geometry.source, geometry.resized, strict=True))
    stored = min(max(math.floor(level + math.log2(shrinking) + _SAME_SCALE), 0), len(levels) - 1)
    chosen = levels[stored]
    indices = []
    for axis in (0, 1):
        length = geometry.size[axis]
        # Twice the place of each centre in the crop, so that all is in whole numbers.
        centres = (2 * np.arange(-(-length >> level)) + 1) << level
        if flip and axis == 1:
            centres = 2 * length - centres
        centres = np.maximum(centres + 2 * geometry.offset[axis], 0)
        index = centres * geometry.source[axis] // (2 * geometry.resized[axis] << stored)
        indices.append(np.minimum(index, chosen.shape[axis] - 1))
    return np.ascontiguousarray(chosen[np.ix_(*indices)])


def _round_to(length: int, multiple: int) -> int:
    """Nearest multiple, halves to the even one, never less than one multiple (vid2vid gives 0 for tiny images)."""
    return max(1, round(length / multiple)) * multiple


def _scaled_size(config: GeometryConfig, image_size: Size, scale: int | None) -> Size:
    height, width = image_size
    length = config.load_size if scale is None else scale
    match config.scaling:
        case "resize":
            return length, length
        case "scaleWidth" | "randomScaleWidth":
            return length * height // width, length
        case "scaleHeight" | "randomScaleHeight":
            return length, length * width // height
        case _:
            return height, width


def _crop_size(config: GeometryConfig, image_size: Size) -> Size | None:
    height, width = image_size
    length = config.fine_size
    if config.mode.endswith("scaledCrop"):
        size = (length * height // width, length) if "Width" in config.mode else (length, length * width // height)
    elif config.mode.endswith("crop"):
        size = (length, length)
    else:
        return None
    return _round_to(size[0], _SIZE_MULTIPLE), _round_to(size[1], _SIZE_MULTIPLE)


def _crop_offset(scaled: Size, crop: Size, rng: np.random.Generator | None) -> tuple[int, int]:
    """Gaussian about the middle across; uniform over the upper part down. The middle of both without a generator."""
    span = (scaled[1] - crop[1]) // 2
    lowest = min(scaled[0] - crop[0], scaled[0] // 8)
    if rng is None:
        return lowest // 2, span
    left = int(rng.standard_normal() * span / 3 + span)
    return int(rng.integers(0, lowest, endpoint=True)), min(max(left, 0), 2 * span)


def _nearest(source: int, target: int) -> NDArray[np.intp]:
    """Index of the source pixel in which the centre of each target pixel lies."""
    return (2 * np.arange(target) + 1) * source // (2 * target)
