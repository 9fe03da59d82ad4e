"""Pose conditions: DensePose part maps and drawn OpenPose key points. Torch-free.

An OpenPose file becomes ``Person`` tuples, these become a picture of coloured limbs, and DensePose and OpenPose maps
together the channels that a pose generator reads. What training drops at random is drawn apart from the drawing itself,
so that one draw can serve a whole clip.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Literal, NamedTuple, get_args, get_origin, get_type_hints

import cv2
import numpy as np
from numpy.typing import NDArray

from fastv2v.data.drawing import MAX_COORDINATE, Compositing, fit_curve, stroke
from fastv2v.errors import ConfigError, DataError, ShapeError

Colour = tuple[int, int, int]
Size = tuple[int, int]

NUM_PARTS: Final = 24
"""DensePose part ids: 0 is background, 1 to 24 are parts of the body."""
HEAD_PARTS: Final = (23, 24)
"""DensePose part ids of the head."""
HEAD_POINTS: Final = (0, 15, 16, 17, 18)
"""BODY_25 points of the head: nose, eyes, ears."""

BODY_SEGMENTS: Final[tuple[tuple[tuple[int, int], Colour], ...]] = (
    # head
    ((17, 15), (153, 0, 153)),
    ((15, 0), (153, 0, 102)),
    ((0, 16), (102, 0, 153)),
    ((16, 18), (51, 0, 153)),
    # trunk
    ((0, 1), (153, 0, 51)),
    ((1, 8), (153, 0, 0)),
    # right arm
    ((1, 2), (153, 51, 0)),
    ((2, 3), (153, 102, 0)),
    ((3, 4), (153, 153, 0)),
    # left arm
    ((1, 5), (102, 153, 0)),
    ((5, 6), (51, 153, 0)),
    ((6, 7), (0, 153, 0)),
    # right leg and foot
    ((8, 9), (0, 153, 51)),
    ((9, 10), (0, 153, 102)),
    ((10, 11), (0, 153, 153)),
    ((11, 24), (0, 153, 153)),
    ((11, 22), (0, 153, 153)),
    ((22, 23), (0, 153, 153)),
    # left leg and foot
    ((8, 12), (0, 102, 153)),
    ((12, 13), (0, 51, 153)),
    ((13, 14), (0, 0, 153)),
    ((14, 21), (0, 0, 153)),
    ((14, 19), (0, 0, 153)),
    ((19, 20), (0, 0, 153)),
)
"""Limbs in drawing order: BODY_25 points and colour (R, G, B)."""
NUM_HEAD_SEGMENTS: Final = 4
"""How many of the first limbs belong to the head."""

_HAND_CHAINS: Final[tuple[tuple[tuple[int, ...], Colour], ...]] = (
    ((0, 1, 2, 3, 4), (204, 0, 0)),
    ((0, 5, 6, 7, 8), (163, 204, 0)),
    ((0, 9, 10, 11, 12), (0, 204, 82)),
    ((0, 13, 14, 15, 16), (0, 82, 204)),
    ((0, 17, 18, 19, 20), (163, 0, 204)),
)
_FACE_COLOUR: Final[Colour] = (255, 255, 255)
_FACE_CHAINS: Final[tuple[tuple[tuple[int, ...], Colour], ...]] = tuple(
    (chain, _FACE_COLOUR)
    for chain in (
        tuple(range(17, 22)),  # eyebrows
        tuple(range(22, 27)),
        tuple(range(27, 31)),  # nose
        tuple(range(31, 36)),
        (36, 37, 38, 39),  # eyes
        (39, 40, 41, 36),
        (42, 43, 44, 45),
        (45, 46, 47, 42),
        tuple(range(48, 55)),  # outer lips
        (54, 55, 56, 57, 58, 59, 48),
    )
)

_BODY_CONFIDENCE: Final = 0.01
_HAND_CONFIDENCE: Final = 0.01
_FACE_CONFIDENCE: Final = 0.1
_BODY_WIDTH: Final = 3
_FINE_WIDTH: Final = 1
_HEAD_NOISE_PX: Final = 5.0
_FACE_SHIFT_PX: Final = 2.0
_LARGEST_VALUE: Final = int(MAX_COORDINATE) // 2  # so that shifted points stay within the bound of curves
_CROP_MULTIPLE: Final = 32

_BODY_KEY: Final = "pose_keypoints_2d"
_NUM_BODY: Final = 25
_NUM_COCO: Final = 18
_OPTIONAL_KEYS: Final = (("face_keypoints_2d", 70), ("hand_left_keypoints_2d", 21), ("hand_right_keypoints_2d", 21))
_RERUN: Final = "run OpenPose again with --model_pose BODY_25 --face --hand"


class MissingPose(DataError):  # noqa: N818 - read as a claim about the frame, not as a fault of the file
    """A readable OpenPose file in which nobody was found; callers may hold the last pose or skip the frame."""


@dataclass(frozen=True, kw_only=True)
class PoseConfig:
    """Which pose maps make the condition and how they are drawn."""

    densepose: bool = True
    """Use the three channels of the DensePose map."""
    openpose: bool = True
    """Use the drawn OpenPose key points, three channels."""
    random_drop: float = 0.05
    """Probability that a body part is left out, each part by itself; training only. 0 switches it off."""
    drop_per: Literal["clip", "frame"] = "clip"
    """How long a part stays left out: ``frame`` draws anew for every frame as vid2vid does, which flickers."""
    remove_face_labels: bool = False
    """Empty the head in the DensePose map, in training and at inference, and in training (with ``random_drop`` above
    0) shift the key points of head and face a little, so that the generator does not learn one person's proportions."""
    basic_points_only: bool = False
    """Draw trunk, arms and legs only: no head, hands or face."""
    people: Literal["all", "tallest"] = "all"
    """Draw everybody in the file, or only the person who is tallest in the picture."""
    compositing: Compositing = "reference"
    """Where strokes cross: vid2vid's averaging of whole strokes, or the brighter value, whatever the order."""
    stroke_width: Literal["fixed", "scaled"] = "fixed"
    """``fixed``: the pixels of vid2vid at every size. ``scaled``: a 150th of the body's height, hands and face a 450th,
    at least 1, as in the later re-implementation by the same authors."""

    def __post_init__(self) -> None:
        if not (self.densepose or self.openpose):
            raise ConfigError("a pose condition needs densepose, openpose or both; both are switched off")
        if not 0 <= self.random_drop <= 1:
            raise ConfigError(f"random_drop is a probability from 0 to 1, got {self.random_drop}")
        for name, kind in get_type_hints(PoseConfig).items():
            if get_origin(kind) is Literal and (value := getattr(self, name)) not in get_args(kind):
                raise ConfigError(f"unknown {name} '{value}'; there are {' and '.join(get_args(kind))}")

    @property
    def channels(self) -> int:
        """C: channels of the condition, 6 with both maps and 3 with one; DensePose comes first."""
        return 3 * (self.densepose + self.openpose)


class Person(NamedTuple):
    """Key points of one person: rows of x, y in pixels and confidence, all float64; confidence 0 means not found."""

    body: NDArray[np.float64]
    """BODY_25, (25, 3)."""
    face: NDArray[np.float64]
    """(70, 3)."""
    left_hand: NDArray[np.float64]
    """(21, 3)."""
    right_hand: NDArray[np.float64]
    """(21, 3)."""


PERSON_SPLITS: Final = (25, 95, 116)
"""Where face, left and right hand begin in all points of a ``Person``, one below the other."""


@dataclass(frozen=True, kw_only=True)
class PoseDrop:
    """What is left out of a clip or a frame, and how its head is shifted. The default changes nothing."""

    segments: frozenset[int] = frozenset()
    """Limbs left out: positions in ``BODY_SEGMENTS``."""
    left_hand: bool = False
    """Whether left hands are left out."""
    right_hand: bool = False
    """Whether right hands are left out."""
    face: bool = False
    """Whether faces are left out."""
    parts: frozenset[int] = frozenset()
    """DensePose part ids left out, 1 to 24."""
    head_noise: tuple[tuple[float, float], ...] = ()
    """Shift (x, y) in pixels of each of ``HEAD_POINTS``; empty for none."""
    face_shift: tuple[float, float] = (0.0, 0.0)
    """Shift (x, y) in pixels of all points of the face together."""

    @property
    def changes_key_points(self) -> bool:
        """Whether the drawing of OpenPose key points looks otherwise with it."""
        is_left_out = bool(self.segments) or self.left_hand or self.right_hand or self.face
        return is_left_out or bool(self.head_noise) or self.face_shift != (0.0, 0.0)


def draw_drop(config: PoseConfig, rng: np.random.Generator) -> PoseDrop:
    """Draw what is left out in training, for a clip or a frame.

    Args:
        config: with the probability ``random_drop``; each limb, hand, face and DensePose part is drawn by itself.
        rng: where the choice comes from.

    Returns:
        What is dropped. With ``remove_face_labels`` and a probability above 0 also the noise: normal, of 5 pixels for
        each point of the head and of 2 pixels for the face as a whole.

    Source:
        The augmentation of vid2vid's pose data (Wang et al., NeurIPS 2018), where it is drawn for every frame and
        every person anew.
    """
    p = config.random_drop
    segments, others, parts = (rng.random(count) < p for count in (len(BODY_SEGMENTS), 3, NUM_PARTS))
    noise = rng.normal(0, _HEAD_NOISE_PX, (len(HEAD_POINTS), 2)).tolist()
    shift_x, shift_y = rng.normal(0, _FACE_SHIFT_PX, 2).tolist()
    is_noisy = config.remove_face_labels and p > 0
    return PoseDrop(
        segments=frozenset(np.flatnonzero(segments).tolist()),
        left_hand=bool(others[0]),
        right_hand=bool(others[1]),
        face=bool(others[2]),
        parts=frozenset((np.flatnonzero(parts) + 1).tolist()),
        head_noise=tuple((x, y) for x, y in noise) if is_noisy else (),
        face_shift=(shift_x, shift_y) if is_noisy else (0.0, 0.0),
    )


def read_openpose(data: bytes, where: str) -> tuple[Person, ...]:
    """Read the people of one OpenPose file.

    Args:
        data: content of a JSON file as OpenPose writes it with BODY_25, x and y in pixels of the frame.
        where: name of the file, for messages.

    Returns:
        One entry for each person, in the file's order. Hands and faces that were not looked for (key absent or list
        empty) have confidence 0.

    Raises:
        MissingPose: if the file lists nobody, or nobody of whom a point of the body was found (confidence above 0.01).
        DataError: if the file is no JSON, of another body model, of another unit than pixels, or lacks or spoils a key.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not a readable JSON file ({error}); write it with OpenPose again") from error
    people = content.get("people") if isinstance(content, dict) else None
    if not isinstance(people, list):
        raise DataError(f"{where}: expected an object with a list under 'people', as OpenPose's --write_json gives it")
    if not people:
        raise MissingPose(f"{where}: OpenPose found nobody in this frame; leave the frame out or hold the last pose")
    found = tuple(_read_person(person, f"{where}: person {index}") for index, person in enumerate(people))
    if not any((person.body[:, 2] > _BODY_CONFIDENCE).any() for person in found):
        raise MissingPose(
            f"{where}: OpenPose found no point of any body in this frame; leave the frame out or hold the last pose"
        )
    return found


def check_people_in_frame(people: Sequence[Person], size: Size, where: str) -> None:
    """Refuse people who lie outside the frame with more than half of the points of their bodies that were found.

    Args:
        people: everybody in the frame.
        size: (height, width) of the frame, in pixels.
        where: name of the file, for the message.

    Raises:
        DataError: if they do.
    """
    points = np.concatenate([person.body for person in people])
    found = points[(points[:, 2] > _BODY_CONFIDENCE) & (points[:, 0] != 0), :2]
    is_out = ((found < 0) | (found >= np.array(size[::-1]))).any(axis=1)
    outside = int(np.count_nonzero(is_out))
    if 2 * outside > len(found):
        raise DataError(
            f"{where}: {outside} of {len(found)} points of bodies lie outside the {size[1]}x{size[0]} frame; check "
            "that the file belongs to this frame and that OpenPose was run on frames of this size"
        )


def draw_openpose(
    people: Sequence[Person], size: Size, config: PoseConfig, *, drop: PoseDrop | None = None
) -> NDArray[np.uint8]:
    """Draw key points as coloured limbs on black.

    A limb is drawn where both of its points have a confidence above 0.01, a finger where all of its points have, and a
    line of the face where all of its points are above 0.1. Points of x = 0 count as not found. Points outside of the
    picture are drawn at its border.

    Args:
        people: who is in the frame. Each one is drawn alone; where they overlap, colours are added up to 255 (or, with
            compositing ``max``, the brighter one is taken).
        size: (height, width) of the frame that the key points belong to, in pixels.
        config: what is drawn and how.
        drop: what is left out and shifted, in training.

    Returns:
        RGB, (H, W, 3), 0 to 255.

    Raises:
        ShapeError: if the size is empty.

    Source:
        The pose maps of vid2vid (Wang et al., NeurIPS 2018), colours and strokes equal to its published code. Noise is
        kept away from points that were not found, where that code draws limbs to the corner of the picture.
    """
    if min(size) < 1:
        raise ShapeError(f"a pose is drawn on at least 1 x 1 pixels, got (height, width) {tuple(size)}")
    chosen = list(people)
    if config.people == "tallest":
        chosen = sorted(chosen, key=body_height, reverse=True)[:1]
    canvas = np.zeros((*size, 3), dtype=np.uint8)
    for index, person in enumerate(chosen):
        own = canvas if index == 0 else np.zeros_like(canvas)
        _draw_person(own, person, config, drop or PoseDrop())
        if index:
            # cv2.add saturates, where + would wrap around from 255 to 0.
            canvas = np.maximum(canvas, own) if config.compositing == "max" else cv2.add(canvas, own)
    return canvas


def prepare_densepose(
    image: NDArray[np.uint8], config: PoseConfig, where: str, *, drop: PoseDrop | None = None
) -> NDArray[np.uint8]:
    """Check a DensePose map and empty the parts that are left out.

    Args:
        image: V, U and part id in RGB order, (H, W, 3); coordinates 0 to 255, ids 0 to 24.
        config: whether the head is removed.
        where: name of the file, for messages.
        drop: part ids that are left out, in training.

    Returns:
        A copy, (H, W, 3), all three channels 0 at the parts left out.

    Raises:
        ShapeError: if the image is not (H, W, 3) of 8 bits.
        DataError: if the third channel holds something else than part ids.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ShapeError(f"{where}: a DensePose map is 8-bit of shape (H, W, 3), got {image.dtype} {image.shape}")
    ids = image[..., 2]
    highest = int(ids.max(initial=0))
    if highest > NUM_PARTS:
        raise DataError(
            f"{where}: part id {highest} in the third channel, and DensePose has 0 to {NUM_PARTS}; read as RGB, the "
            "channels must be V, U and part id, so swap the first and the last if the file holds id, U, V, or "
            "make the map again as PNG if it was stored as JPEG"
        )
    left_out = (drop.parts if drop else frozenset()) | set(HEAD_PARTS if config.remove_face_labels else ())
    keep = np.ones(NUM_PARTS + 1, dtype=np.uint8)
    keep[sorted(left_out)] = 0
    return image * keep[ids][..., None]


def pose_to_float(maps: NDArray[np.uint8], config: PoseConfig) -> NDArray[np.float32]:
    """Bring stored pose maps to the values a generator reads.

    Args:
        maps: DensePose and OpenPose channels as configured, (..., H, W, C), 0 to 255; part ids 0 to 24.
        config: which maps these are.

    Returns:
        The same shape, in [-1, 1]: ``x / 127.5 - 1``, and ``id / 12 - 1`` for the part id of DensePose, so that the
        head is at 0.917 and 1.

    Raises:
        ShapeError: if the number of channels is not the configured one.
    """
    _check_channels(maps.shape, -1, config)
    half = np.full(config.channels, 127.5, dtype=np.float32)
    if config.densepose:
        half[2] = NUM_PARTS / 2
    values: NDArray[np.float32] = np.divide(maps, half, dtype=np.float32)
    values -= 1
    return values


def centre_crop_columns(width: int) -> tuple[int, int]:
    """The columns a pose generator sees: about the middle half, of a length it can halve six times.

    Args:
        width: of the maps after scaling, in pixels.

    Returns:
        (left, right), right excluded: ``width // 2 - b`` and ``width // 2 + b`` with ``b`` a quarter of the width,
        rounded down to a multiple of 32. A width of 896 gives (224, 672).

    Raises:
        ConfigError: if nothing would be left.
    """
    half = width // 4 // _CROP_MULTIPLE * _CROP_MULTIPLE
    if half < 1:
        raise ConfigError(
            f"the centre crop of poses keeps nothing of {width} columns; scale the frames to at least "
            f"{4 * _CROP_MULTIPLE} columns"
        )
    return width // 2 - half, width // 2 + half


def head_mask(maps: NDArray[np.floating[Any]], config: PoseConfig) -> NDArray[np.bool_]:
    """Mark the pixels of the head, where vid2vid's face discriminator looks.

    Args:
        maps: the condition, (..., C, H, W), in [-1, 1].
        config: which maps these are.

    Returns:
        (..., H, W): DensePose parts 23 and 24; with OpenPose alone the limb from neck to nose, known by its colour.
        Reference compositing leaves that colour pure on a few pixels by the nose only, since the strokes of the head
        lie below; ``max`` keeps most of the limb.

    Raises:
        ShapeError: if the number of channels is not the configured one.
    """
    _check_channels(maps.shape, -3, config)
    red, green, blue = (maps[..., channel, :, :] for channel in range(3))
    if config.densepose:
        return blue > 0.9
    return (red > 0.19) & (red < 0.21) & (green < -0.99) & (blue > -0.61) & (blue < -0.59)


def pose_picture(maps: NDArray[np.uint8], config: PoseConfig) -> NDArray[np.uint8]:
    """Show pose maps to people: DensePose with the drawn limbs over it.

    Args:
        maps: DensePose and OpenPose channels as configured, (H, W, C), 0 to 255; part ids 0 to 24.
        config: which maps these are.

    Returns:
        RGB, (H, W, 3); part ids are spread over 0 to 255.

    Raises:
        ShapeError: if the number of channels is not the configured one.
    """
    _check_channels(maps.shape, -1, config)
    if not config.densepose:
        return maps.copy()
    picture = maps[..., :3].copy()
    spread = np.rint(np.minimum(np.arange(256), NUM_PARTS) * (255 / NUM_PARTS)).astype(np.uint8)
    picture[..., 2] = spread[picture[..., 2]]
    if config.openpose:
        limbs = maps[..., 3:]
        drawn = limbs.any(axis=-1)
        picture[drawn] = limbs[drawn]
    return picture


def _read_person(person: object, where: str) -> Person:
    if not isinstance(person, dict):
        raise DataError(f"{where}: expected an object of key points, got {reprlib.repr(person)}")
    if _BODY_KEY not in person:
        raise DataError(f"{where}: there is no '{_BODY_KEY}'; {_RERUN} (version 1.2 or later)")
    values = person[_BODY_KEY]
    if isinstance(values, list) and len(values) == 3 * _NUM_COCO:
        raise DataError(f"{where}: '{_BODY_KEY}' holds the {_NUM_COCO} points of the older COCO body model; {_RERUN}")
    body = _read_points(values, _NUM_BODY, f"{where}: '{_BODY_KEY}'")
    found = body[body[:, 2] > _BODY_CONFIDENCE, :2]
    if len(found) > 1 and np.abs(found).max() <= 1:
        raise DataError(
            f"{where}: '{_BODY_KEY}' is scaled to 0 to 1 and pixels are needed; run OpenPose with --keypoint_scale 0"
        )
    others = (
        _read_points(person[key], count, f"{where}: '{key}'") if person.get(key, []) != [] else np.zeros((count, 3))
        for key, count in _OPTIONAL_KEYS
    )
    return Person(body, *others)


def _read_points(values: object, count: int, where: str) -> NDArray[np.float64]:
    if not isinstance(values, list) or len(values) != 3 * count:
        got = f"{len(values)}" if isinstance(values, list) else reprlib.repr(values)
        raise DataError(
            f"{where} must be a list of {3 * count} numbers (x, y, confidence of {count} points), got {got}; {_RERUN}"
        )
    for index, value in enumerate(values):
        # bool is an int to isinstance; a NaN fails every comparison.
        if type(value) not in (int, float) or not -_LARGEST_VALUE <= value <= _LARGEST_VALUE:
            raise DataError(
                f"{where}: value {index} is {reprlib.repr(value)}, and a pixel position or confidence is a number "
                f"between -{_LARGEST_VALUE} and {_LARGEST_VALUE}; {_RERUN}"
            )
    return np.array(values, dtype=np.float64).reshape(count, 3)


def body_height(person: Person) -> float:
    """Extent of the found body points from top to bottom, in pixels; 0 where none was found."""
    y = person.body[person.body[:, 2] > _BODY_CONFIDENCE, 1]
    return float(np.ptp(y)) if len(y) else 0.0


def _stroke_widths(person: Person, config: PoseConfig) -> tuple[int, int]:
    """Stroke of the body and of hands and face, in pixels."""
    if config.stroke_width == "fixed":
        return _BODY_WIDTH, _FINE_WIDTH
    height = int(body_height(person))
    return max(1, height // 150), max(1, height // 450)


def _draw_person(canvas: NDArray[np.uint8], person: Person, config: PoseConfig, drop: PoseDrop) -> None:
    thick, fine = _stroke_widths(person, config)
    body, face = person.body, person.face
    if drop.head_noise:
        body = _shift(body, HEAD_POINTS, drop.head_noise)
    if drop.face_shift != (0.0, 0.0):
        face = _shift(face, range(len(face)), [drop.face_shift] * len(face))

    def draw(points: NDArray[np.float64], chain: Sequence[int], threshold: float, colour: Colour, width: int) -> None:
        if not (points[list(chain), 2] > threshold).all():
            return
        for pair in pairwise(chain):
            ends = points[list(pair), :2]
            if ends[:, 0].all():
                stroke(canvas, fit_curve(ends), colour, width=width, ends=True, compositing=config.compositing)

    first = NUM_HEAD_SEGMENTS if config.basic_points_only else 0
    for index, (pair, colour) in enumerate(BODY_SEGMENTS[first:], first):
        if index not in drop.segments:
            draw(body, pair, _BODY_CONFIDENCE, colour, thick)
    if config.basic_points_only:
        return
    for hand, is_dropped in ((person.left_hand, drop.left_hand), (person.right_hand, drop.right_hand)):
        for chain, colour in () if is_dropped else _HAND_CHAINS:
            draw(hand, chain, _HAND_CONFIDENCE, colour, fine)
    for chain, colour in () if drop.face else _FACE_CHAINS:
        draw(face, chain, _FACE_CONFIDENCE, colour, fine)


def _shift(
    points: NDArray[np.float64], which: Sequence[int], offsets: Sequence[tuple[float, float]]
) -> NDArray[np.float64]:
    """Move some of the points, but none at x = 0: these were not found and must not become limbs."""
    shifted = points.copy()
    rows = list(which)
    shifted[rows, :2] += np.where(points[rows, :1] != 0, np.asarray(offsets), 0)
    return shifted


def _check_channels(shape: tuple[int, ...], axis: int, config: PoseConfig) -> None:
    if len(shape) < 3 or shape[axis] != config.channels:
        layout = "(..., H, W, C)" if axis == -1 else "(..., C, H, W)"
        raise ShapeError(f"pose maps are {layout} with {config.channels} channels as configured, got {shape}")
