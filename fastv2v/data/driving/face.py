"""Landmarks of one face, moved like those of another. Torch-free.

A face is taken apart into where the head is (a similarity, found by points that expressions hardly move) and its shape
in units of the head. The driver's resting face is replaced by the trained person's; what a part of the face does beyond
rest is scaled by how large that part is in both. Points are complex numbers inside: a similarity is then a product.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastv2v.data.driving.config import DrivingConfig
from fastv2v.data.driving.space import Array, Space, numbers, rounded
from fastv2v.data.face_reference import NUM_LANDMARKS
from fastv2v.errors import DataError

Complex = NDArray[np.complex128]

STEADY: Final = (0, 16, 27, 28, 29, 30, 33, 36, 39, 42, 45)
"""Landmarks that expressions hardly move: ends of the jaw, bridge of the nose, corners of the eyes."""
GROUPS: Final = (
    slice(0, 17), slice(17, 22), slice(22, 27), slice(27, 36), slice(36, 42), slice(42, 48), slice(48, 68),
)  # fmt: skip
"""Jaw, brows, nose, eyes, mouth: what has proportions of its own."""

_ROUNDS: Final = 3
_NOISE: Final = 0.02
"""What finding landmarks adds to each coordinate, in units of the head: about half a pixel on a face of 100 pixels."""
_MOST_RATIO: Final = 2.0
_LEAST_LEASH: Final = 0.1


class FittedFace(NamedTuple):
    """A driver's face as the trained person's."""

    landmarks: Array
    """(x, y) in pixels of the trained frames, (68, 2)."""
    shape: float
    """How far the shape of the face lies from what was trained; 1 is as far as 99 % of the trained frames."""
    place: float
    """The same of position, size and tilt of the head."""

    @property
    def reach(self) -> float:
        """The larger of both."""
        return max(self.shape, self.place)


@dataclass(frozen=True)
class FaceProfile:
    """What driving must know of the face a generator was trained on."""

    neutral: Array
    """Mean shape in units of the head, (68, 2): steady points have centre 0 and root mean square radius 1."""
    head: Array
    """Mean centre (x, y) of the steady points, logarithm of their radius, all in pixels, and tilt in radians, (4,)."""
    leash: Array
    """How far the centre of the head went from its mean, at most, across and along the head, in units of it, (2,)."""
    shapes: Space
    """Of shapes, 136 values."""
    places: Space
    """Of the head: how far it is from the mean across and along it, logarithm of its relative size, and tilt."""

    @classmethod
    def of(cls, landmarks: Array) -> FaceProfile:
        """Measure a person.

        Args:
            landmarks: (x, y) in pixels of all frames, (T, 68, 2), all of one frame size.

        Raises:
            DataError: if there are fewer than two frames, or a face has no size.
        """
        if len(landmarks) < 2:
            raise DataError(f"driving needs at least 2 faces to know a person by, got {len(landmarks)}")
        points = _complex(landmarks)
        neutral = _unit(points.mean(axis=0))
        for _ in range(_ROUNDS):
            turn, centre = _heads(points, neutral)
            shapes = (points - centre[:, None]) / turn[:, None]
            neutral = _unit(shapes.mean(axis=0))
        turn, centre = _heads(points, neutral)
        shapes = (points - centre[:, None]) / turn[:, None]
        heads = _described(turn, centre)
        head = heads.mean(axis=0)
        places = _relative(heads, head)
        leash = np.maximum(np.abs(places[:, :2]).max(axis=0), _LEAST_LEASH)
        return cls(
            _real(neutral), head, leash, Space.of(_real(shapes).reshape(len(shapes), -1), _NOISE),
            Space.of(places, _NOISE),
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """As values that JSON has."""
        return {
            "neutral": rounded(self.neutral),
            "head": rounded(self.head),
            "leash": rounded(self.leash),
            "shapes": self.shapes.to_json(),
            "places": self.places.to_json(),
        }

    @classmethod
    def from_json(cls, record: dict[str, Any], where: str) -> FaceProfile:
        """The inverse of ``to_json``.

        Raises:
            DataError: if values are missing or damaged.
        """
        return cls(
            numbers(record, "neutral", (NUM_LANDMARKS, 2), where),
            numbers(record, "head", (4,), where),
            numbers(record, "leash", (2,), where),
            Space.from_json(record.get("shapes", {}), 2 * NUM_LANDMARKS, where),
            Space.from_json(record.get("places", {}), 4, where),
        )

    def at_rest(self) -> FittedFace:
        """The trained person's resting face, where it usually is."""
        x, y, size, tilt = self.head.tolist()
        landmarks = _real(_complex(self.neutral) * np.exp(size + 1j * tilt) + complex(x, y))
        return FittedFace(landmarks, self.shapes.distance(self.neutral.ravel()), self.places.distance(np.zeros(4)))


class _Seen(NamedTuple):
    """A driver's face in one frame."""

    shape: Complex
    """In units of the head, (68,)."""
    head: Array
    """As ``FaceProfile.head``."""


class FaceFit:
    """Fits a driver's faces to a trained one, one after the other.

    What the driver looks like at rest, and where, is learnt from the frames given to ``learn``; without it, from the
    frames pushed so far, never from later ones.

    Args:
        profile: of the trained person.
        config: how.
    """

    def __init__(self, profile: FaceProfile, config: DrivingConfig) -> None:
        self._profile, self._config = profile, config
        self._trained = _complex(profile.neutral)
        self._window: deque[_Seen] = deque(maxlen=config.memory)
        self._driver: tuple[Complex, Array] | None = None
        self._drag = np.zeros(2)

    def learn(self, landmarks: Sequence[Array]) -> None:
        """Take the driver's rest from a whole sequence: landmarks (68, 2) in pixels of each frame."""
        seen = [self._look(points) for points in landmarks]
        self._driver = np.mean([one.shape for one in seen], axis=0), np.mean([one.head for one in seen], axis=0)

    def push(self, landmarks: Array) -> FittedFace:
        """Fit the face of the next frame.

        Args:
            landmarks: the driver's (x, y) in pixels of the driving frame, (68, 2).

        Raises:
            DataError: if the face has no size.
        """
        seen = self._look(landmarks)
        rest, usual = self._driver or self._so_far(seen)
        shape = self._shape(seen.shape, rest)
        place = _relative(seen.head[None], usual)[0]
        place[:2] = self._leashed(place[:2])
        profile, limit = self._profile, self._config.within
        flat = _real(shape).ravel()
        far = profile.shapes.distance(flat), profile.places.distance(place)
        if limit is not None:
            flat, place = profile.shapes.pulled(flat, limit), profile.places.pulled(place, limit)
        x, y, size, tilt = profile.head.tolist()
        centre = complex(x, y) + np.exp(size + 1j * tilt) * complex(place[0], place[1])
        turn = np.exp(size + place[2] + 1j * (tilt + place[3]))
        return FittedFace(_real(_complex(flat.reshape(-1, 2)) * turn + centre), *far)

    def _look(self, landmarks: Array) -> _Seen:
        points = _complex(landmarks)[None]
        turn, centre = _heads(points, self._trained)
        return _Seen(((points - centre[:, None]) / turn[:, None])[0], _described(turn, centre)[0])

    def _so_far(self, seen: _Seen) -> tuple[Complex, Array]:
        """Rest and usual head of the frames up to this one."""
        self._window.append(seen)
        rest = np.mean([one.shape for one in self._window], axis=0)
        return rest, np.mean([one.head for one in self._window], axis=0)

    def _shape(self, shape: Complex, rest: Complex) -> Complex:
        """The trained face at rest with what the driver's does, part by part."""
        out = np.empty_like(shape)
        for group in GROUPS:
            trained, own, now = self._trained[group], rest[group], shape[group]
            moved = now.mean() - own.mean()
            bent = (now - now.mean()) - (own - own.mean())
            wide, high = (
                np.clip(
                    part(trained - trained.mean()).std() / max(part(own - own.mean()).std(), 1e-9),
                    1 / _MOST_RATIO,
                    _MOST_RATIO,
                )
                for part in (np.real, np.imag)
            )
            out[group] = trained + self._config.expression * (moved + wide * bent.real + 1j * high * bent.imag)
        return out

    def _leashed(self, place: Array) -> Array:
        """Position within the trained range; a head that goes further drags the frame along, as a camera follows."""
        free = place - self._drag
        held = np.clip(free, -self._profile.leash, self._profile.leash)
        self._drag = self._drag + free - held
        return held


def fit_faces(
    profile: FaceProfile, landmarks: Iterable[Array | None], config: DrivingConfig
) -> Iterator[tuple[FittedFace, bool]]:
    """Fit faces as they come.

    Args:
        profile: of the trained person.
        landmarks: the driver's, (68, 2) in pixels; None where no face was found, which holds the one before. With
            ``config.fit`` ``sequence`` all of them are taken first; else none is asked for before it is due.
        config: how.

    Yields:
        The fitted face, and whether it was held. Before the first face that is the trained one at rest, or, where the
        whole sequence is known, the first face.

    Raises:
        DataError: if a whole sequence has no face.
    """
    fit = FaceFit(profile, config)
    if config.fit == "sequence":
        landmarks = list(landmarks)
        found = [points for points in landmarks if points is not None]
        if not found:
            raise DataError(
                "no face was found in any frame of the driving video, and this bundle shows a face; give a video of a "
                "person who looks towards the camera"
            )
        fit.learn(found)
        landmarks = [found[0] if points is None else points for points in landmarks[:1]] + landmarks[1:]
    last = profile.at_rest()
    for points in landmarks:
        if points is not None:
            last = fit.push(points)
        yield last, points is None


def _heads(points: Complex, neutral: Complex) -> tuple[Complex, Complex]:
    """Turn and scale, and centre, that bring a neutral shape onto faces (T, 68) by their steady points; (T,) each."""
    steady, own = points[:, STEADY], neutral[list(STEADY)]
    centre = steady.mean(axis=1)
    own = own - own.mean()
    turn = ((steady - centre[:, None]) * own.conj()).sum(axis=1) / (np.abs(own) ** 2).sum()
    if not np.isfinite(points).all() or np.abs(turn).min() < 1e-6:
        raise DataError("the landmarks of a face are not finite, or all lie in one place; find the face again")
    # Of a neutral shape whose steady points are centred, the centre of the head is theirs.
    return turn, centre


def _unit(shape: Complex) -> Complex:
    """The shape with its steady points around 0, of root mean square radius 1."""
    steady = shape[list(STEADY)]
    radius = np.sqrt((np.abs(steady - steady.mean()) ** 2).mean())
    if not radius > 1e-9:
        raise DataError("the landmarks of a face all lie in one place; find the faces again")
    unit: Complex = (shape - steady.mean()) / radius
    return unit


def _described(turn: Complex, centre: Complex) -> Array:
    return np.stack([centre.real, centre.imag, np.log(np.abs(turn)), np.angle(turn)], axis=-1)


def _relative(heads: Array, usual: Array) -> Array:
    """Heads (T, 4) beside the usual one: moved in units of it and along its axes, relatively large, tilted."""
    offset = heads - usual
    moved = _complex(offset[:, :2]) / np.exp(usual[2] + 1j * usual[3])
    return np.concatenate([_real(moved), offset[:, 2:]], axis=1)


def _complex(points: Array) -> Complex:
    """(..., 2) to (...)."""
    values: Complex = points[..., 0] + 1j * points[..., 1]
    return values


def _real(points: Complex) -> Array:
    """(...) to (..., 2)."""
    return np.stack([points.real, points.imag], axis=-1)
