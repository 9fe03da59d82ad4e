"""What page and server say to each other over one WebSocket. Runs without torch, and without a web server.

Pictures are binary messages, little-endian; everything else is text, one JSON object with a ``type``.

Page to server, binary: a picture. 16 bytes, then one baseline JPEG::

    uint8 version = 1, uint8 kind = 1, uint16 0, uint32 number, float64 time

Server to page, binary: a frame. 32 bytes, then two JPEGs: the condition (``length`` bytes), the frame (the rest)::

    uint8 version = 1, uint8 kind = 2, uint16 flags, uint32 index, uint32 number, float64 time, float32 delay,
    float32 reach, uint32 length

``flags`` is the sum of 1 on a keyframe, 2 where nobody was found and the condition before stands in, and 4 where the
frame is guided by the painted world. ``reach`` is how far a fitted face or body lies from what was trained, 1 being as
far as 99 % of the trained frames; NaN of others. ``index`` counts the delivered frames of a stream; ``number`` and
``time`` are those of the picture the frame was made from, as the page gave them (0 where the server has the source);
``delay`` is in milliseconds from the arrival of that picture to the frame.

What text the page may send is in ``COMMANDS``; the first must be ``hello``. The server answers ``hello`` with what it
offers, sends ``state`` where settings change or are refused and ``stats`` every second, and ``error`` with a sentence,
empty when the last one is over; ``final`` says whether the stream ended with it.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from fastv2v.errors import DataError

VERSION: Final = 1
PICTURE_KIND, FRAME_KIND = 1, 2
KEYFRAME_FLAG, HELD_FLAG, GUIDED_FLAG = 1, 2, 4

MAX_TEXT: Final = 16_384
"""Characters of the longest text message that is read."""
MAX_POINTS: Final = 256
"""Points of one stroke."""

_PICTURE: Final = struct.Struct("<BBHId")
_FRAME: Final = struct.Struct("<BBHIIdffI")


class PictureMessage(NamedTuple):
    """A picture from the page."""

    number: int
    """Counted by the page."""
    time_ms: float
    """By the page's clock, in milliseconds."""
    jpeg: bytes
    """Baseline JPEG."""


@dataclass(frozen=True)
class FrameMessage:
    """A frame for the page."""

    index: int
    """Position in the stream, from 0."""
    number: int
    """Of the picture it was made from."""
    time_ms: float
    """Of that picture."""
    delay_ms: float
    """From the arrival of that picture to this frame."""
    is_keyframe: bool
    """Synthesised, not interpolated."""
    condition: bytes
    """JPEG of what it was made from."""
    frame: bytes
    """JPEG."""
    reach: float | None = None
    """How far the driver, as fitted, lies from what was trained; None where nobody is fitted."""
    is_held: bool = False
    """Whether nobody was found, so that the condition before stands in."""
    is_guided: bool = False
    """Whether the source says which points of the world are seen."""


def pack_picture(message: PictureMessage) -> bytes:
    """The bytes of a picture."""
    return _PICTURE.pack(VERSION, PICTURE_KIND, 0, message.number, message.time_ms) + message.jpeg


def unpack_picture(data: bytes) -> PictureMessage:
    """Read a picture message; the JPEG itself is not looked at.

    Raises:
        DataError: if it is not one.
    """
    if len(data) <= _PICTURE.size:
        raise DataError(f"a picture message has more than {_PICTURE.size} bytes, got {len(data)}")
    version, kind, zero, number, time_ms = _PICTURE.unpack_from(data)
    if (version, kind, zero) != (VERSION, PICTURE_KIND, 0):
        raise DataError(f"expected a picture of protocol {VERSION}, got kind {kind} of {version}; load the page again")
    if not math.isfinite(time_ms):
        raise DataError(f"the time of picture {number} is not a number")
    return PictureMessage(number, time_ms, data[_PICTURE.size :])


def pack_frame(message: FrameMessage) -> bytes:
    """The bytes of a frame."""
    flags = KEYFRAME_FLAG * message.is_keyframe + HELD_FLAG * message.is_held + GUIDED_FLAG * message.is_guided
    head = _FRAME.pack(
        VERSION, FRAME_KIND, flags, message.index, message.number, message.time_ms, message.delay_ms,
        math.nan if message.reach is None else message.reach, len(message.condition),
    )  # fmt: skip
    return head + message.condition + message.frame


def unpack_frame(data: bytes) -> FrameMessage:
    """Read a frame message, as the page does.

    Raises:
        DataError: if it is not one.
    """
    if len(data) < _FRAME.size:
        raise DataError(f"a frame message has at least {_FRAME.size} bytes, got {len(data)}")
    version, kind, flags, index, number, time_ms, delay_ms, reach, length = _FRAME.unpack_from(data)
    if (version, kind) != (VERSION, FRAME_KIND) or length > len(data) - _FRAME.size:
        raise DataError(f"expected a frame of protocol {VERSION}, got kind {kind} of {version}")
    middle = _FRAME.size + length
    is_keyframe, is_held, is_guided = (bool(flags & flag) for flag in (KEYFRAME_FLAG, HELD_FLAG, GUIDED_FLAG))
    pictures = data[_FRAME.size : middle], data[middle:]
    told = None if math.isnan(reach) else reach
    return FrameMessage(index, number, time_ms, delay_ms, is_keyframe, *pictures, told, is_held, is_guided)


_BASELINE, _EXTENDED = 0xC0, 0xC1
_FRAME_MARKERS: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_FIRST_MARKER: Final = 0xC0
_BARE_MARKERS: Final = frozenset([0x01, *range(0xD0, 0xD9)])


def jpeg_size(data: bytes) -> tuple[int, int]:
    """(height, width) that a JPEG states, read from its markers without decoding a pixel.

    Only what browsers write is taken: 8 bits, baseline. A progressive one can demand any amount of work.

    Raises:
        DataError: if it is another kind of file, or broken before its size.
    """
    if data[:2] != b"\xff\xd8":
        raise DataError("a picture is a JPEG file, and this is none")
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill bytes may stand before a marker
            at += 1
            continue
        if marker in _BARE_MARKERS:
            at += 2
            continue
        if marker < _FIRST_MARKER:
            # Decoders look for the next marker inside of such a piece, and would find another size than is found here.
            raise DataError("a picture is a baseline JPEG of 8 bits, as browsers write it")
        if marker in _FRAME_MARKERS:
            if marker not in (_BASELINE, _EXTENDED) or at + 10 > len(data) or data[at + 4] != 8:
                raise DataError("a picture is a baseline JPEG of 8 bits, as browsers write it")
            height, width = struct.unpack_from(">HH", data, at + 5)
            if not height or not width or data[at + 9] not in (1, 3):
                raise DataError(f"a picture has pixels and 1 or 3 channels, got {width}x{height} of {data[at + 9]}")
            return height, width
        at += 2 + max(2, int.from_bytes(data[at + 2 : at + 4], "big"))
    raise DataError("a JPEG picture broke off before it said its size")


@dataclass(frozen=True)
class Hello:
    """Begin; where the server asks for a token, with it."""

    token: str | None = None


@dataclass(frozen=True)
class Settings:
    """Change what is given; the rest stays."""

    engine: str | None = None
    """``auto`` or one of those offered."""
    gap: int | None = None
    """Frames from keyframe to keyframe, 1 to 32."""
    grade: str | None = None
    """Interpolation, one of those offered."""
    causal: bool | None = None
    """Give each frame at once, without waiting for the next keyframe."""


@dataclass(frozen=True)
class Source:
    """Where conditions come from: ``page`` for pictures of the page, or one that the server has."""

    name: str


@dataclass(frozen=True)
class Hold:
    """Stay at the present condition, or go on."""

    on: bool


@dataclass(frozen=True)
class Stroke:
    """Paint a class onto the label map."""

    label: int
    """Class id; -1 rubs out what was painted."""
    size: float
    """Breadth of the brush in pixels of the bundle."""
    points: tuple[tuple[float, float], ...]
    """(x, y) in pixels of the bundle."""
    begins: bool = True
    """Whether it is a new stroke; otherwise it goes on with the last, so that both are undone together."""


@dataclass(frozen=True)
class Undo:
    """Take back the last stroke."""


@dataclass(frozen=True)
class Clear:
    """Take back all strokes."""


@dataclass(frozen=True)
class Restart:
    """Begin another video: forget all frames."""


Command = Hello | Settings | Source | Hold | Stroke | Undo | Clear | Restart


def parse_command(text: str) -> Command:
    """Read a text message of the page.

    Raises:
        DataError: naming what is wrong with it.
    """
    if len(text) > MAX_TEXT:
        raise DataError(f"a command has up to {MAX_TEXT} characters, got {len(text)}")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError("a command is one JSON object, and this is none") from error
    kind = content.pop("type", None) if isinstance(content, dict) else None
    if not isinstance(kind, str) or kind not in COMMANDS:
        raise DataError(f"a command is a JSON object whose type is one of {', '.join(COMMANDS)}")
    names, make = COMMANDS[kind]
    unknown = sorted(set(content) - set(names))
    if unknown:
        raise DataError(f"the command {kind} has no {unknown[0][:40]!r}; it has {', '.join(names) or 'no fields'}")
    return make(content)


def _text(content: Mapping[str, Any], name: str, *, needed: bool = False) -> str | None:
    value = content.get(name)
    if (value is None and needed) or not isinstance(value, str | None) or len(value or "") > 200:
        raise DataError(f"{name} is a text of up to 200 characters")
    if any("\ud800" <= letter <= "\udfff" for letter in value or ""):
        raise DataError(f"{name} holds half a character")  # JSON can say so, UTF-8 cannot
    return value


def _flag(content: Mapping[str, Any], name: str, *, needed: bool = False) -> bool | None:
    value = content.get(name)
    if (value is None and needed) or not isinstance(value, bool | None):
        raise DataError(f"{name} is true or false")
    return value


def _number(value: Any, name: str, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise DataError(f"{name} is a number from {low:g} to {high:g}")
    return float(value)


def _whole(value: Any, name: str, low: int, high: int) -> int:
    number = _number(value, name, low, high)
    if number != int(number):
        raise DataError(f"{name} is a whole number from {low} to {high}")
    return int(number)


def _settings(content: Mapping[str, Any]) -> Settings:
    gap = content.get("gap")
    return Settings(
        engine=_text(content, "engine"),
        gap=None if gap is None else _whole(gap, "gap", 1, 32),
        grade=_text(content, "grade"),
        causal=_flag(content, "causal"),
    )


def _stroke(content: Mapping[str, Any]) -> Stroke:
    points = content.get("points")
    if not isinstance(points, list) or not 1 <= len(points) <= MAX_POINTS:
        raise DataError(f"a stroke has 1 to {MAX_POINTS} points")
    if not all(isinstance(point, list) and len(point) == 2 for point in points):
        raise DataError("a point of a stroke is [x, y]")
    return Stroke(
        label=_whole(content.get("label"), "label", -1, 65_535),
        size=_number(content.get("size"), "size", 1, 1024),
        points=tuple((_number(x, "x", -4096, 16_384), _number(y, "y", -4096, 16_384)) for x, y in points),
        begins=_flag(content, "begins") is not False,
    )


COMMANDS: Final[Mapping[str, tuple[tuple[str, ...], Callable[[Mapping[str, Any]], Command]]]] = {
    "hello": (("token",), lambda content: Hello(_text(content, "token"))),
    "settings": (("engine", "gap", "grade", "causal"), _settings),
    "source": (("name",), lambda content: Source(_text(content, "name", needed=True) or "")),
    "hold": (("on",), lambda content: Hold(bool(_flag(content, "on", needed=True)))),
    "stroke": (("label", "size", "points", "begins"), _stroke),
    "undo": ((), lambda content: Undo()),
    "clear": ((), lambda content: Clear()),
    "restart": ((), lambda content: Restart()),
}
"""Every command of the page: its fields, and what reads it."""
