"""Reading pictures, label maps and flow from files, and keeping the decoded ones within a bound. Torch-free.

OpenCV may pad a file that was cut short, and rescales or colours label maps of unusual PNG kinds. Both would train on
wrong pixels without a word, so files are looked at before they are decoded.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from fastv2v.errors import ConfigError, DataError

IMAGE_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".pgm", ".ppm", ".bmp", ".tiff")
"""Accepted extensions, in lower case; upper case is accepted as well."""

FLOW_KEY: Final = "to_previous"
"""Name of the array in a flow file ``.npz``."""

_FLO_START: Final = b"PIEH"
_FLO_UNKNOWN: Final = 1e9
_PNG_START: Final = b"\x89PNG\r\n\x1a\n"
_PNG_END: Final = b"IEND\xaeB`\x82"
_PNG_HEADER: Final = b"IHDR"
_PNG_HEADER_END: Final = 33
_PNG_PALETTE: Final = 3
_JPEG_START: Final = b"\xff\xd8"
_JPEG_END: Final = b"\xff\xd9"
_JPEG_SCAN: Final = 0xDA
_JPEG_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


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
    image = _decode(path, _read_whole(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_planes(path: Path) -> NDArray[np.uint8]:
    """Read an image whose three channels are numbers and no colours: nothing is converted to make it fit.

    Args:
        path: an image file of 8 bits and 3 channels.

    Returns:
        The channels in RGB order, (H, W, 3), 0 to 255.

    Raises:
        DataError: as ``read_image``, and if the file has another number of channels or bits.
    """
    image = _decode(path, _read_whole(path), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        channels = 1 if image.ndim == 2 else image.shape[2]
        raise DataError(
            f"{path}: expected 3 channels of 8 bits, and this file has {channels} of {image.dtype}; write it again as "
            "an RGB PNG"
        )
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) of a picture in pixels as stored; of PNG and JPEG read from the header, nothing is decoded.

    Args:
        path: an image file.

    Raises:
        DataError: as ``read_image``.
    """
    data = _read_whole(path)
    if data.startswith(_PNG_START):
        return int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")
    if data.startswith(_JPEG_START) and (stated := jpeg_size(data)) is not None:
        return stated
    height, width = _decode(path, data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION).shape[:2]
    return height, width


def read_label(path: Path) -> NDArray[np.integer[Any]]:
    """Read a map of class or instance ids.

    Args:
        path: a single-channel image of 1 to 16 bits (PNG, PGM) or up to 32 bits (TIFF).

    Returns:
        Ids as stored, (H, W), of the file's own integer type.

    Raises:
        DataError: if the file is missing, unreadable, cut short, no image, or does not hold one integer a pixel.
    """
    data = _read_whole(path)
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


def read_flow(path: Path) -> NDArray[np.float32]:
    """Read the flow from one frame to the frame before it.

    Args:
        path: ``.npz`` with the array ``to_previous``, or Middlebury's ``.flo``.

    Returns:
        Displacement (x, y) in pixels, (H, W, 2): where each pixel is found in the frame before.

    Raises:
        DataError: if the file is missing, damaged, of another length, shape or type, or holds unknown or infinite flow.
    """
    data = read_bytes(path, "flow file")
    flow = _parse_flo(path, data) if path.suffix.lower() == ".flo" else _parse_npz(path, data)
    # Middlebury marks unknown flow by huge numbers.
    if not (np.abs(flow) < _FLO_UNKNOWN).all():
        raise DataError(f"{path}: holds flow that is unknown or not finite; every pixel needs a displacement in pixels")
    return flow


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


def read_bytes(path: Path, noun: str) -> bytes:
    """Content of a file.

    Args:
        path: the file.
        noun: what it is, for messages.

    Raises:
        DataError: if it is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such {noun}") from error
    except OSError as error:
        raise DataError(f"{path}: the {noun} cannot be read ({error.strerror})") from error


def _read_whole(path: Path) -> bytes:
    data = read_bytes(path, "image file")
    if not data:
        raise DataError(f"{path}: the image file is empty")
    if not _reaches_its_end(data):
        raise DataError(f"{path}: the image file is cut short; copy or extract it again")
    return data


def _reaches_its_end(data: bytes) -> bool:
    """Whether a PNG or JPEG holds its header and end marker; other formats are judged by the decoder."""
    if data.startswith(_PNG_START):
        return data[12:16] == _PNG_HEADER and data.find(_PNG_END, _PNG_HEADER_END) > 0
    if data.startswith(_JPEG_START):
        # The thumbnail in a header segment has an end marker of its own: look behind the start of the scan only.
        # Inside a scan 0xFF is followed by 0x00, so that the marker found there is the real one.
        return data.find(_JPEG_END, _jpeg_scan_start(data)) > 0
    return True


def _jpeg_scan_start(data: bytes) -> int:
    """Where the header segments end: at the first scan, or beyond the data of a file cut off before it."""
    return next((position for marker, position in _jpeg_segments(data) if marker == _JPEG_SCAN), len(data))


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) that the header of a JPEG states; None where there is no such header. Nothing is decoded."""
    for marker, at in _jpeg_segments(data):
        if marker in _JPEG_FRAMES:
            return int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
    return None


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Marker and position of each segment of a JPEG, up to the first scan."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        yield marker, position
        # 0xFF before a marker is padding; every segment before the scan states its length.
        position += 1 if marker == 0xFF else 2 + int.from_bytes(data[position + 2 : position + 4], "big")


def _decode(path: Path, data: bytes, flags: int) -> NDArray[Any]:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise DataError(f"{path}: the image cannot be decoded ({error.err})") from error
    if image is None:
        raise DataError(f"{path}: not a readable image, or damaged (accepted: {', '.join(IMAGE_SUFFIXES)})")
    return image


def _parse_flo(path: Path, data: bytes) -> NDArray[np.float32]:
    width, height = (int.from_bytes(data[at : at + 4], "little", signed=True) for at in (4, 8))
    if not data.startswith(_FLO_START) or width < 1 or height < 1 or len(data) != 12 + 8 * width * height:
        raise DataError(
            f"{path}: not a Middlebury flow file, or cut short ({len(data)} bytes); it holds PIEH, width, height and "
            "two 32-bit floats a pixel: write it again"
        )
    return np.frombuffer(data, "<f4", offset=12).astype(np.float32).reshape(height, width, 2)


def _parse_npz(path: Path, data: bytes) -> NDArray[np.float32]:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            flow = arrays.get(FLOW_KEY)
    except (ValueError, TypeError, AttributeError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        # NumPy's own words are kept back: of pickled files they advise to load them unsafely.
        raise DataError(
            f"{path}: not a readable .npz file of plain numbers, or cut short; write it again with "
            f"numpy.savez(FILE, {FLOW_KEY}=FLOW)"
        ) from error
    if flow is None:
        raise DataError(f"{path}: has no array '{FLOW_KEY}', the flow from this frame to the one before; add it")
    if flow.dtype != np.float32 or flow.ndim != 3 or flow.shape[2] != 2:
        raise DataError(
            f"{path}: '{FLOW_KEY}' must be float32 of shape (height, width, 2), got {flow.dtype} of {flow.shape}; "
            "convert it and write it again"
        )
    checked: NDArray[np.float32] = flow
    return checked
