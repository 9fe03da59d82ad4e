"""Conditions that come as a video or through a pipe, for ``fastv2v stream``. Runs without torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from export.bundle import Manifest
from export.runtime import ConditionMap
from fastv2v.data.conditions import ConditionSpec
from fastv2v.data.transforms import GeometryConfig, Size, apply_geometry, draw_geometry
from fastv2v.errors import ConfigError, DataError
from fastv2v.video import read_video

_LUT_BITS: Final = 6
_STEP: Final = 256 >> _LUT_BITS


class ClassColours:
    """Finds the class of a colour: the nearest of the palette.

    Colours are told apart in steps of four levels, so that a video that was compressed still shows its classes, if not
    exactly at their borders. Classes of one colour cannot be told apart: the first is taken.

    Args:
        palette: (red, green, blue), 0 to 255, of every class.
    """

    def __init__(self, palette: Sequence[tuple[int, int, int]]) -> None:
        levels = np.arange(1 << _LUT_BITS, dtype=np.int32) * _STEP + _STEP // 2
        colours = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1)
        nearest = np.full(colours.shape[:3], np.iinfo(np.int32).max, np.int32)
        self._classes = np.zeros(colours.shape[:3], np.uint8 if len(palette) <= 256 else np.uint16)
        for index, colour in enumerate(palette):
            distance = ((colours - np.array(colour, np.int32)) ** 2).sum(axis=-1)
            self._classes[distance < nearest] = index
            np.minimum(distance, nearest, out=nearest)

    def of(self, picture: NDArray[np.uint8]) -> NDArray[np.integer]:
        """Class ids (H, W) of a picture (H, W, 3)."""
        red, green, blue = np.moveaxis(picture >> (8 - _LUT_BITS), -1, 0)
        classes: NDArray[np.integer] = self._classes[red, green, blue]
        return classes


def check_plain(manifest: Manifest, what: str) -> None:
    """Refuse bundles whose conditions are more than one picture a frame.

    Raises:
        ConfigError: naming what it needs.
    """
    spec = manifest.condition
    if spec.use_instances:
        raise ConfigError(
            f"the bundle {manifest.name} needs an instance map with each label map, which {what} does not hold; give "
            "--conditions DIR with --instances DIR"
        )
    if spec.encoder not in ("labels", "rgb"):
        raise ConfigError(
            f"the bundle {manifest.name} takes {spec.describe()}, which {what} does not hold; give --data DIR"
        )


def scale(picture: NDArray[Any], size: Size, kind: Literal["image", "label"]) -> NDArray[Any]:
    """To a bundle's size by the rules of the data set: the nearest pixel of label maps, an average of pictures."""
    config = GeometryConfig(mode="exact", size=size, interpolation="area")
    source = picture.shape[0], picture.shape[1]
    return apply_geometry(draw_geometry(config, source, None, "test"), picture, kind)


def video_conditions(path: Path, manifest: Manifest) -> Iterator[ConditionMap]:
    """Conditions from a video, scaled to the bundle's size as training data are.

    Where a bundle takes label maps, a video shows class ids in grey (it must be lossless: compression changes them), or
    the colours of its classes, of which the nearest is taken. The first frame decides which: grey with known ids only
    means ids.

    Args:
        path: any video that ffmpeg reads.
        manifest: of the bundle.

    Raises:
        ConfigError: if the bundle's conditions are no single pictures, or it has no colours for a coloured video.
        DataError: if colours follow ids.
        MediaError: if the video is missing or damaged.
    """
    check_plain(manifest, f"the video {path}")
    spec = manifest.condition
    colours: ClassColours | None = None
    for index, picture in enumerate(read_video(path)):
        name = f"{path} frame {index}"
        if spec.encoder == "rgb":
            yield _picture_condition(scale(picture, manifest.size, "image"), name)
            continue
        picture = scale(picture, manifest.size, "label")
        is_grey = bool((picture == picture[..., :1]).all())
        if index == 0 and not (is_grey and _are_ids(picture[..., 0], spec)):
            if manifest.palette is None:
                raise ConfigError(
                    f"{name} does not show class ids in grey, and the bundle {manifest.name} names no colours of "
                    "classes; give a lossless video of class ids"
                )
            colours = ClassColours(manifest.palette)
        if colours is not None:
            yield ConditionMap(labels=colours.of(picture), name=name)
        elif is_grey:
            yield ConditionMap(labels=np.ascontiguousarray(picture[..., 0]), name=name)
        else:
            raise DataError(
                f"{name} is coloured, and the frames before it were class ids in grey; give a video of the one or the "
                "other (a compressed one cannot hold ids)"
            )


def _are_ids(grey: NDArray[np.uint8], spec: ConditionSpec) -> bool:
    known = grey < spec.num_classes
    return bool((known if spec.ignore_id is None else known | (grey == spec.ignore_id)).all())


def piped_conditions(source: IO[bytes], manifest: Manifest) -> Iterator[ConditionMap]:
    """Conditions as raw bytes of the bundle's size, one frame after the other.

    A frame is H x W bytes of class ids where the bundle takes label maps, and H x W x 3 bytes, red, green, blue, where
    it takes pictures.

    Args:
        source: binary stream, such as standard input.
        manifest: of the bundle.

    Raises:
        ConfigError: if the bundle's conditions are no single pictures.
        DataError: if it ends in the middle of a frame; after the frames before it.
    """
    check_plain(manifest, "standard input")
    height, width = manifest.size
    is_picture = manifest.condition.encoder == "rgb"
    length = height * width * (3 if is_picture else 1)
    index = 0
    while data := source.read(length):
        name = f"standard input frame {index}"
        if len(data) < length:
            raise DataError(
                f"{name}: the input broke off after {len(data)} of {length} bytes; a frame of this bundle is "
                f"{width}x{height} {'RGB pixels' if is_picture else 'class ids'} of a byte each"
            )
        pixels = np.frombuffer(data, np.uint8)
        if is_picture:
            yield _picture_condition(pixels.reshape(height, width, 3), name)
        else:
            yield ConditionMap(labels=pixels.reshape(height, width), name=name)
        index += 1


def _picture_condition(picture: NDArray[np.uint8], name: str) -> ConditionMap:
    return ConditionMap(maps=np.moveaxis(picture, -1, 0).astype(np.float32) / 127.5 - 1, name=name)
