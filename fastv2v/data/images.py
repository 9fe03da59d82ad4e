"""Reading pictures and label maps from files, and keeping the decoded ones within a bound. Torch-free.

OpenCV may pad a file that was cut short, and rescales or colours label maps of unusual PNG kinds. Both would train on
wrong pixels without a word, so files are looked at before they are decoded.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from fastv2v.errors import ConfigError, DataError

IMAGE_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".pgm", ".ppm", ".bmp", ".tiff")
"""Accepted extensions, in lower case; upper case is accepted as well."""

_PNG_START: Final = b"\x89PNG\r\n\x1a\n"
_PNG_END: Final = b"IEND\xaeB`\x82"
_PNG_PALETTE: Final = 3
_JPEG_START: Final = b"\xff\xd8"
_JPEG_END: Final = b"\xff\xd9"
_JPEG_SCAN: Final = 0xDA


def is_image_file(path: Path) -> bool:
    """Whether the name is that of an accepted image; hidden files are not."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read a picture.

    Stored pixels are taken as they are: a rotation noted in EXIF is not applied, since label maps carry none.

    Args:
        path: an image file; grey, 16-bit and transparent ones are brought to 8-bit RGB.

    Returns:
        RGB, (H, W, 3), 0 to 255.

    Raises:
        DataError: if the file is missing, unreadable, cut short or no image.
    """
    image = _decode(path, _read_bytes(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_label(path: Path) -> NDArray[np.integer[Any]]:
    """Read a map of class or instance ids.

    Args:
        path: a single-channel image of 1 to 16 bits (PNG, PGM) or up to 32 bits (TIFF).

    Returns:
        Ids as stored, (H, W), of the file's own integer type.

    Raises:
        DataError: if the file is missing, unreadable, cut short, no image, or does not hold one integer a pixel.
    """
    data = _read_bytes(path)
    depth, colour_type = (data[24], data[25]) if data.startswith(_PNG_START) else (8, 0)
    if colour_type == _PNG_PALETTE:
        raise DataError(
            f"{path}: a palette PNG would be read as colours and lose its ids; store the ids as a single-channel PNG"
        )
    labels = _decode(path, data, cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if labels.ndim != 2:
        raise DataError(
            f"{path}: a label map has one channel of ids and this file has {labels.shape[2]}; "
            "store the ids as a single-channel PNG, or read colour images with the condition 'rgb'"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{path}: a label map holds integers and this file holds {labels.dtype}")
    if depth < 8:  # the decoder spreads 1-, 2- and 4-bit grey over 0..255; this is the exact way back to the ids
        labels //= 255 // (2**depth - 1)
    return labels


class ArrayCache:
    """Keeps the arrays used last, up to a number of bytes. They are handed out read-only."""

    def __init__(self, max_mb: float) -> None:
        if max_mb < 0:
            raise ConfigError(f"a cache holds 0 MB or more, got {max_mb}")
        self._max_bytes = max_mb * 2**20
        self._bytes = 0
        self._arrays: OrderedDict[Hashable, NDArray[Any]] = OrderedDict()

    def get(self, key: Hashable) -> NDArray[Any] | None:
        """The array kept under ``key``, now the youngest; ``None`` where there is none."""
        array = self._arrays.get(key)
        if array is not None:
            self._arrays.move_to_end(key)
        return array

    def put(self, key: Hashable, array: NDArray[Any]) -> NDArray[Any]:
        """Keep ``array`` if it fits, dropping the oldest ones for it, and return it read-only."""
        array.flags.writeable = False
        old = self._arrays.pop(key, None)
        self._bytes -= 0 if old is None else old.nbytes
        if array.nbytes > self._max_bytes:
            return array
        self._arrays[key] = array
        self._bytes += array.nbytes
        while self._bytes > self._max_bytes:
            self._bytes -= self._arrays.popitem(last=False)[1].nbytes
        return array

    @property
    def num_bytes(self) -> int:
        """Bytes held now."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._arrays)


def _read_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such image file") from error
    except OSError as error:
        raise DataError(f"{path}: the image file cannot be read ({error.strerror})") from error
    if not data:
        raise DataError(f"{path}: the image file is empty")
    if not _reaches_its_end(data):
        raise DataError(f"{path}: the image file is cut short; copy or extract it again")
    return data


def _reaches_its_end(data: bytes) -> bool:
    """Whether a PNG or JPEG holds its end marker; other formats are judged by the decoder."""
    if data.startswith(_PNG_START):
        return data.rfind(_PNG_END) > 0
    if data.startswith(_JPEG_START):
        # The thumbnail in a header segment has an end marker of its own: look behind the start of the scan only.
        # Inside a scan 0xFF is followed by 0x00, so that the marker found there is the real one.
        return data.find(_JPEG_END, _jpeg_scan_start(data)) > 0
    return True


def _jpeg_scan_start(data: bytes) -> int:
    """Where the header segments end: at the first scan, or beyond the data of a file cut off before it."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == _JPEG_SCAN:
            return position
        # 0xFF before a marker is padding; every segment before the scan states its length.
        position += 1 if marker == 0xFF else 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return position


def _decode(path: Path, data: bytes, flags: int) -> NDArray[Any]:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise DataError(f"{path}: the image cannot be decoded ({error.err})") from error
    if image is None:
        raise DataError(f"{path}: not a readable image, or damaged (accepted: {', '.join(IMAGE_SUFFIXES)})")
    return image
