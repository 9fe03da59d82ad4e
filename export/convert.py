"""What a picture means to a bundle: class ids, colours of classes, edges, or what a function of the user's makes of it.

Runs without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from export.bundle import Manifest
from export.stream import ConditionMap
from fastv2v.data.conditions import ConditionSpec, maps_to_float
from fastv2v.data.face import canny_edges
from fastv2v.data.transforms import GeometryConfig, Size, apply_geometry, draw_geometry
from fastv2v.errors import ConfigError, DataError

Picture = NDArray[np.uint8]
"""(H, W, 3) RGB, of any size."""
Converter = Callable[[Picture], ConditionMap]
"""Makes the condition of a frame from a picture, such as a segmentation network. Ids of another size than the bundle's
are scaled to it, maps are not. Where it leaves the name open, messages name the picture."""

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

    def of(self, picture: Picture) -> NDArray[np.integer]:
        """Class ids (H, W) of a picture (H, W, 3)."""
        red, green, blue = np.moveaxis(picture >> (8 - _LUT_BITS), -1, 0)
        classes: NDArray[np.integer] = self._classes[red, green, blue]
        return classes


def scale(picture: NDArray[Any], size: Size, kind: Literal["image", "label"]) -> NDArray[Any]:
    """To a bundle's size by the rules of the data set: the nearest pixel of label maps, an average of pictures."""
    config = GeometryConfig(mode="exact", size=size, interpolation="area")
    source = picture.shape[0], picture.shape[1]
    return apply_geometry(draw_geometry(config, source, None, "test"), picture, kind)


def cover(picture: Picture, size: Size) -> Picture:
    """The middle of a picture in the proportions of a size, scaled to it."""
    height, width = picture.shape[:2]
    rows, columns = min(height, round(width * size[0] / size[1])), min(width, round(height * size[1] / size[0]))
    top, left = (height - rows) // 2, (width - columns) // 2
    covered: Picture = scale(picture[top : top + rows, left : left + columns], size, "image")
    return covered


def check_plain(manifest: Manifest, what: str) -> None:
    """Refuse bundles whose conditions are more than one picture a frame.

    Raises:
        ConfigError: naming what it needs.
    """
    spec = manifest.condition
    if spec.use_instances:
        raise ConfigError(
            f"the bundle {manifest.name} needs an instance map with each label map, which {what} does not hold; give "
            "a folder of label maps with one of instance maps (--conditions DIR --instances DIR), or a converter that "
            "makes both"
        )
    if spec.encoder not in ("labels", "rgb"):
        raise ConfigError(
            f"the bundle {manifest.name} takes {spec.describe()}, which {what} does not hold; give a data set (--data "
            "DIR), or a converter that makes them"
        )


def picture_conditions(
    pictures: Iterable[Picture], manifest: Manifest, convert: Converter | None = None, *, source: str = "the source"
) -> Iterator[ConditionMap]:
    """Conditions from pictures as they come, scaled to the bundle's size as training data are.

    Without a converter a picture is the condition itself. Where a bundle takes label maps, it shows class ids in grey,
    or the colours of the bundle's classes, of which the nearest is taken. The first one decides which: grey with known
    ids only means ids.

    Args:
        pictures: RGB, (H, W, 3) uint8 each.
        manifest: of the bundle.
        convert: makes the condition of each.
        source: what messages call them; ``frame 3`` is added.

    Raises:
        ConfigError: if the bundle's conditions are no single pictures and there is no converter, or the bundle has no
            colours for coloured label maps.
        DataError: if colours follow ids.
    """
    reader = _PlainReader(manifest, source) if convert is None else None
    for index, picture in enumerate(pictures):
        name = f"{source} frame {index}"
        made = reader.read(picture, name) if reader is not None else convert(picture)  # type: ignore[misc]
        yield at_size(made, manifest.size, name)


def at_size(condition: ConditionMap, size: Size, name: str) -> ConditionMap:
    """A converter's condition with its ids scaled to a bundle's size, and a name where it has none.

    Args:
        condition: as a converter gives it.
        size: (height, width) of the bundle. Maps of another size stay as they are, which the stream refuses.
        name: what messages call it.
    """

    def scaled(ids: NDArray[np.integer] | None) -> NDArray[np.integer] | None:
        return ids if ids is None or ids.ndim != 2 or ids.shape == size else scale(ids, size, "label")

    return replace(
        condition,
        labels=scaled(condition.labels),
        instances=scaled(condition.instances),
        name=condition.name or name,
    )


class _PlainReader:
    """Pictures that are conditions themselves; remembers what the first one was."""

    def __init__(self, manifest: Manifest, source: str) -> None:
        check_plain(manifest, source)
        self._manifest = manifest
        self._colours: ClassColours | None = None
        self._is_first = True

    def read(self, picture: Picture, name: str) -> ConditionMap:
        """The condition of one picture."""
        spec, size, palette = self._manifest.condition, self._manifest.size, self._manifest.palette
        if spec.encoder == "rgb":
            return ConditionMap(maps=maps_to_float(spec, scale(picture, size, "image")))
        picture = scale(picture, size, "label")
        is_grey = bool((picture == picture[..., :1]).all())
        if self._is_first and not (is_grey and _are_ids(picture[..., 0], spec)):
            if palette is None:
                raise ConfigError(
                    f"{name} does not show class ids in grey, and the bundle {self._manifest.name} names no colours of "
                    "classes; give a lossless video of class ids, or a converter"
                )
            self._colours = ClassColours(palette)
        self._is_first = False
        if self._colours is not None:
            return ConditionMap(labels=self._colours.of(picture))
        if not is_grey:
            raise DataError(
                f"{name} is coloured, and the frames before it were class ids in grey; give a video of the one or the "
                "other (a compressed one cannot hold ids)"
            )
        return ConditionMap(labels=np.ascontiguousarray(picture[..., 0]))


def _are_ids(grey: NDArray[np.uint8], spec: ConditionSpec) -> bool:
    known = grey < spec.num_classes
    return bool((known if spec.ignore_id is None else known | (grey == spec.ignore_id)).all())


def edge_converter(manifest: Manifest, sigma: float = 1.0) -> Converter:
    """A converter for bundles that were trained on edges of pictures.

    Args:
        manifest: of a bundle of colour pictures, which then show edges white on black, or of one map, which is then 1
            at an edge and 0 elsewhere.
        sigma: blur before edges are looked for, in pixels of the bundle's size.

    Returns:
        A function that scales a picture to the bundle's size and finds its edges.

    Raises:
        ConfigError: if the bundle takes something else.

    Source:
        Canny, "A Computational Approach to Edge Detection", 1986, as ``fastv2v.data.face.canny_edges`` has it.
    """
    spec, size = manifest.condition, manifest.size
    if spec.encoder != "rgb" and (spec.encoder, spec.channels) != ("maps", 1):
        raise ConfigError(f"the bundle {manifest.name} takes {spec.describe()}, and not edges; give another converter")

    def convert(picture: Picture) -> ConditionMap:
        edges = canny_edges(cv2.cvtColor(scale(picture, size, "image"), cv2.COLOR_RGB2GRAY), sigma)
        if spec.encoder == "rgb":
            return ConditionMap(maps=maps_to_float(spec, cv2.merge([edges] * 3)))
        return ConditionMap(maps=(edges[None] > 0).astype(np.float32))

    return convert
