"""Names and display colours of label classes. Torch-free."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fastv2v.errors import ConfigError, DataError

ClassPreset = Literal["camvid", "cityscapes", "cityscapes20"]
"""Class tables known by name."""

CLASSES_FILE: Final = "classes.json"
_SCHEMA: Final = 1

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class ClassTable:
    """The classes of a data set, in id order."""

    names: tuple[str, ...]
    """Names, all different."""
    colours: tuple[Colour, ...]
    """Display colours (R, G, B), 0 to 255."""

    def __post_init__(self) -> None:
        if not self.names:
            raise ConfigError("a class table needs at least one class")
        if len(self.names) != len(self.colours):
            raise ConfigError(f"a class table has {len(self.names)} names and {len(self.colours)} colours")
        if len(set(self.names)) != len(self.names):
            repeated = next(name for name in self.names if self.names.count(name) > 1)
            raise ConfigError(f"class name '{repeated}' occurs more than once")

    @property
    def palette(self) -> NDArray[np.uint8]:
        """Colours as an array, (L, 3)."""
        return np.array(self.colours, dtype=np.uint8)


def read_classes(root: Path) -> ClassTable | None:
    """Read the class table at the root of a data set.

    The file is ``classes.json``: ``{"schema": 1, "classes": [{"name": "road", "color": [128, 64, 128]}, ...]}``.

    Args:
        root: folder of the data set.

    Returns:
        The table, or ``None`` where the data set has no such file.

    Raises:
        DataError: if the file is there and does not follow this form.
    """
    path = root / CLASSES_FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable JSON file ({error})") from error
    if not isinstance(content, dict) or content.get("schema") != _SCHEMA:
        raise DataError(f'{path}: expected an object with "schema": {_SCHEMA}')
    classes = content.get("classes")
    if not isinstance(classes, list):
        raise DataError(f'{path}: expected a list under "classes"')
    for position, entry in enumerate(classes):
        if not _is_class(entry):
            raise DataError(f'{path}: class {position} is not {{"name": text, "color": [r, g, b]}} with 0 to 255')
    try:
        return ClassTable(tuple(e["name"] for e in classes), tuple(tuple(e["color"]) for e in classes))
    except ConfigError as error:
        raise DataError(f"{path}: {error}") from error


def preset_classes(preset: ClassPreset) -> ClassTable:
    """The class table known by this name.

    Args:
        preset: ``camvid``: 11 classes of the SegNet selection and ``Unlabelled``. ``cityscapes``: the label ids 0 to
            33, with the licence plate (-1 in the original list) as 34. ``cityscapes20``: the 19 train ids, and 19 for
            everything else, black.

    Returns:
        Names and colours.

    Raises:
        ConfigError: if there is no such preset.
    """
    if preset not in get_args(ClassPreset):
        raise ConfigError(f"unknown class preset '{preset}'; there are {', '.join(get_args(ClassPreset))}")
    rows = {"camvid": _CAMVID, "cityscapes": _CITYSCAPES, "cityscapes20": _CITYSCAPES_TRAINED}[preset]
    return ClassTable(tuple(name for name, _ in rows), tuple(colour for _, colour in rows))


def generic_classes(num_classes: int) -> ClassTable:
    """Names ``class_0``, ``class_1``, ... with the bit-interleaved palette."""
    palette = bit_palette(num_classes)
    return ClassTable(
        tuple(f"class_{i}" for i in range(num_classes)), tuple((int(r), int(g), int(b)) for r, g, b in palette)
    )


def bit_palette(num_classes: int) -> NDArray[np.uint8]:
    """Colours for any number of classes, neighbours far apart, class 0 black.

    Three bits of the id at a time, lowest first, become a bit of red, green and blue, highest first.

    Args:
        num_classes: L, at least 1.

    Returns:
        (L, 3).

    Source:
        The colour map of the PASCAL VOC development kit (Everingham et al., 2010), which vid2vid uses too.
    """
    ids = np.arange(num_classes)[:, None]
    palette = np.zeros((num_classes, 3), dtype=np.int64)
    for j in range(7):
        palette |= ((ids >> (3 * j + np.arange(3))) & 1) << (7 - j)
    return palette.astype(np.uint8)


def colourise(labels: NDArray[np.integer[Any]], palette: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Paint label ids with their display colours, for people to look at.

    Args:
        labels: class ids, any shape (..., H, W).
        palette: colours, (L, 3).

    Returns:
        RGB, (..., H, W, 3). Ids outside the palette, such as an ignored id, are black.
    """
    known = (labels >= 0) & (labels < len(palette))
    with_black = np.concatenate([palette, np.zeros((1, 3), dtype=np.uint8)])
    return with_black[np.where(known, labels, len(palette)).astype(np.intp)]


def _is_class(entry: object) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or not entry["name"]:
        return False
    colour = entry.get("color")
    return (
        isinstance(colour, list)
        and len(colour) == 3
        and all(type(value) is int and 0 <= value <= 255 for value in colour)
    )


_CAMVID: Final[tuple[tuple[str, Colour], ...]] = (
    ("Sky", (128, 128, 128)),
    ("Building", (128, 0, 0)),
    ("Pole", (192, 192, 128)),
    ("Road", (128, 64, 128)),
    ("Pavement", (60, 40, 222)),
    ("Tree", (128, 128, 0)),
    ("SignSymbol", (192, 128, 128)),
    ("Fence", (64, 64, 128)),
    ("Car", (64, 0, 128)),
    ("Pedestrian", (64, 64, 0)),
    ("Bicyclist", (0, 128, 192)),
    ("Unlabelled", (0, 0, 0)),
)

_CITYSCAPES: Final[tuple[tuple[str, Colour], ...]] = (
    ("unlabeled", (0, 0, 0)),
    ("ego vehicle", (0, 0, 0)),
    ("rectification border", (0, 0, 0)),
    ("out of roi", (0, 0, 0)),
    ("static", (0, 0, 0)),
    ("dynamic", (111, 74, 0)),
    ("ground", (81, 0, 81)),
    ("road", (128, 64, 128)),
    ("sidewalk", (244, 35, 232)),
    ("parking", (250, 170, 160)),
    ("rail track", (230, 150, 140)),
    ("building", (70, 70, 70)),
    ("wall", (102, 102, 156)),
    ("fence", (190, 153, 153)),
    ("guard rail", (180, 165, 180)),
    ("bridge", (150, 100, 100)),
    ("tunnel", (150, 120, 90)),
    ("pole", (153, 153, 153)),
    ("polegroup", (153, 153, 153)),
    ("traffic light", (250, 170, 30)),
    ("traffic sign", (220, 220, 0)),
    ("vegetation", (107, 142, 35)),
    ("terrain", (152, 251, 152)),
    ("sky", (70, 130, 180)),
    ("person", (220, 20, 60)),
    ("rider", (255, 0, 0)),
    ("car", (0, 0, 142)),
    ("truck", (0, 0, 70)),
    ("bus", (0, 60, 100)),
    ("caravan", (0, 0, 90)),
    ("trailer", (0, 0, 110)),
    ("train", (0, 80, 100)),
    ("motorcycle", (0, 0, 230)),
    ("bicycle", (119, 11, 32)),
    ("license plate", (0, 0, 142)),
)
_IN_TRAINING: Final = (7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33)  # label ids in the order of the train ids
_CITYSCAPES_TRAINED: Final = (*(_CITYSCAPES[i] for i in _IN_TRAINING), _CITYSCAPES[0])
