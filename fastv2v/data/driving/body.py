"""Key points of one body, moved like those of another. Torch-free.

Every limb keeps the direction it has in the driver and gets the trained person's length, from the neck outwards. Where
the body stands is decided by a line: that of the ankles, where both are seen to stand on it, else of the hips, else the
neck.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from fastv2v.data.driving.config import DrivingConfig
from fastv2v.data.driving.space import Array, Space, numbers, rounded
from fastv2v.data.pose import Person, Size, body_height
from fastv2v.errors import DataError

Line = Literal["ankles", "hips", "neck"]
"""By what a body is placed up and down."""

TREE: Final[tuple[tuple[int, int, str], ...]] = (
    (1, 0, "neck"), (1, 8, "trunk"), (1, 2, "shoulder"), (1, 5, "shoulder"),
    (2, 3, "upper arm"), (3, 4, "lower arm"), (5, 6, "upper arm"), (6, 7, "lower arm"),
    (8, 9, "hip"), (9, 10, "thigh"), (10, 11, "shin"), (8, 12, "hip"), (12, 13, "thigh"), (13, 14, "shin"),
    (0, 15, "eye"), (15, 17, "ear"), (0, 16, "eye"), (16, 18, "ear"),
    (11, 22, "foot"), (22, 23, "toe"), (11, 24, "heel"), (14, 19, "foot"), (19, 20, "toe"), (14, 21, "heel"),
)  # fmt: skip
"""Limbs from the neck outwards: BODY_25 points, inner one first, and which limbs are equally long."""
GROUPS: Final = tuple(dict.fromkeys(group for _, _, group in TREE))
"""Lengths a body has on both sides."""

_ROOT: Final = 1
_FROM, _TO = (np.array([limb[i] for limb in TREE]) for i in (0, 1))
_OF_GROUP: Final = {group: [i for i, limb in enumerate(TREE) if limb[2] == group] for group in GROUPS}
_SCALE_GROUPS: Final = ("trunk", "shoulder", "upper arm", "neck", "thigh", "shin", "hip")
_HANDS: Final = (("left_hand", 7), ("right_hand", 4))
_LINES: Final[Mapping[Line, tuple[int, ...]]] = {"ankles": (11, 14), "hips": (8,), "neck": (1,)}
_ORDER: Final[tuple[Line, ...]] = get_args(Line)
_SEEN: Final = 0.01
_MOSTLY: Final = 0.8
_EVER: Final = 0.05
_LONG: Final = 0.9
_GROUND: Final = 0.95
_NOISE: Final = 0.03
_MOST_RATIO: Final = 2.5


class FittedBody(NamedTuple):
    """A driver's body as the trained person's."""

    person: Person
    """Key points in pixels of the trained frames."""
    shape: float
    """How far the directions of the limbs lie from what was trained; 1 is as far as 99 % of the trained frames."""
    place: float
    """The same of where the neck is."""

    @property
    def reach(self) -> float:
        """The larger of both."""
        return max(self.shape, self.place)


class Proportions(NamedTuple):
    """What one person measures in a run of frames."""

    lengths: dict[str, float]
    """Length of each group of limbs, of ``hand`` and of ``face``, in pixels, as far as they were seen. Limbs are
    measured where they look long, since most look shorter than they are."""
    neck: Array
    """Mean position of the neck in pixels, (2,)."""
    lines: dict[Line, float]
    """Height of each line that is seen in most frames, in pixels: for ankles the ground, else the mean."""

    @classmethod
    def of(cls, people: Sequence[Person]) -> Proportions:
        """Measure a person.

        Args:
            people: the person in each frame; the neck must be seen in one of them.

        Raises:
            DataError: if it is not.
        """
        body = np.stack([person.body for person in people])
        seen = body[..., 2] > _SEEN
        necks = body[seen[:, _ROOT], _ROOT, :2]
        if not len(necks):
            raise DataError("the neck of the person is not seen in any frame; give a video that shows the shoulders")
        vectors, is_seen = _limbs(body)
        long = np.where(is_seen, np.linalg.norm(vectors, axis=-1), np.nan)
        lengths = {group: _typical(long[:, rows]) for group, rows in _OF_GROUP.items()}
        hands = [_radius(getattr(person, name)) for person in people for name, _ in _HANDS]
        lengths |= {"hand": _typical(np.array(hands)), "face": _typical(np.array([_radius(p.face) for p in people]))}
        lines: dict[Line, float] = {}
        for line, points in _LINES.items():
            found = [y for y in (_line_height(frame, line) for frame in body) if y is not None]
            if line == "neck" or all(seen[:, point].mean() >= _MOSTLY for point in points):
                lines[line] = float(np.quantile(found, _GROUND) if line == "ankles" else np.mean(found))
        return cls({name: length for name, length in lengths.items() if length > 0}, necks.mean(axis=0), lines)


@dataclass(frozen=True)
class BodyProfile:
    """What driving must know of the body a generator was trained on."""

    proportions: Proportions
    """What it measures."""
    points: frozenset[int]
    """Points of BODY_25 that were seen in some of the frames; others would be something new to the generator."""
    shapes: Space
    """Of limbs, x and y of each in its own length, 48 values."""
    places: Space
    """Of the neck: x and y from its mean, in units of the body."""

    @property
    def unit(self) -> float:
        """Size of the body in pixels: its longest measure around the trunk."""
        return _unit(self.proportions)

    @classmethod
    def of(cls, people: Sequence[Person]) -> BodyProfile:
        """Measure a person.

        Args:
            people: the person in every frame, key points in pixels, all of one frame size.

        Raises:
            DataError: if there are fewer than two frames, or no neck is seen.
        """
        if len(people) < 2:
            raise DataError(f"driving needs at least 2 frames to know a person by, got {len(people)}")
        proportions = Proportions.of(people)
        body = np.stack([person.body for person in people])
        share = (body[..., 2] > _SEEN).mean(axis=0)
        necks = body[body[:, _ROOT, 2] > _SEEN, _ROOT, :2]
        shapes = np.stack([_shape(person.body, proportions.lengths) for person in people])
        places = (necks - proportions.neck) / _unit(proportions)
        return cls(
            proportions,
            frozenset(np.flatnonzero(share >= _EVER).tolist()),
            Space.of(shapes.reshape(len(shapes), -1), _NOISE),
            Space.of(places, _NOISE),
        )

    def at_rest(self) -> FittedBody:
        """The trained person's mean posture, where it usually is, without hands and face."""
        long = np.array([self.proportions.lengths.get(group, np.nan) for _, _, group in TREE])
        body = _rooted(self.shapes.mean.reshape(-1, 2) * long[:, None])
        body[:, :2] += self.proportions.neck
        body[~np.isin(np.arange(len(body)), sorted(self.points))] = 0
        nothing = (np.zeros((count, 3)) for count in (70, 21, 21))
        return FittedBody(Person(body, *nothing), 0.0, 0.0)

    def to_json(self) -> dict[str, Any]:
        """As values that JSON has."""
        return {
            "lengths": {name: round(length, 4) for name, length in self.proportions.lengths.items()},
            "neck": rounded(self.proportions.neck),
            "lines": {line: round(y, 4) for line, y in self.proportions.lines.items()},
            "points": sorted(self.points),
            "shapes": self.shapes.to_json(),
            "places": self.places.to_json(),
        }

    @classmethod
    def from_json(cls, record: dict[str, Any], where: str) -> BodyProfile:
        """The inverse of ``to_json``.

        Raises:
            DataError: if values are missing or damaged.
        """
        lengths, lines = ({n: float(numbers(record[key], n, (), where)) for n in record[key]} for key in _NAMED)
        known = {*GROUPS, "hand", "face"}
        points = numbers(record, "points", (-1,), where)
        if (
            not lengths.keys() <= known
            or not lines.keys() <= set(get_args(Line))
            or not lengths.keys() & {*_SCALE_GROUPS}
        ):
            raise DataError(f"{where}: lengths or lines of no known names; export the bundle again")
        if min(lengths.values()) <= 0 or not all(0 <= point < 25 for point in points):
            raise DataError(f"{where}: lengths must be positive and points 0 to 24; export the bundle again")
        proportions = Proportions(
            lengths,
            numbers(record, "neck", (2,), where),
            {line: lines[line] for line in get_args(Line) if line in lines},
        )
        return cls(
            proportions,
            frozenset(points.astype(int).tolist()),
            Space.from_json(record.get("shapes", {}), 2 * len(TREE), where),
            Space.from_json(record.get("places", {}), 2, where),
        )


_NAMED: Final = ("lengths", "lines")


class BodyFit:
    """Fits a driver's bodies to a trained one, one after the other.

    What the driver measures, and where they stand, is learnt from the frames given to ``learn``; without it, from the
    frames pushed so far, never from later ones.

    Args:
        profile: of the trained person.
        size: (height, width) of the trained frames; points that land outside are left out.
        config: how.
    """

    def __init__(self, profile: BodyProfile, size: Size, config: DrivingConfig) -> None:
        self._profile, self._size, self._config = profile, size, config
        self._window: deque[Person] = deque(maxlen=config.memory)
        self._driver: Proportions | None = None
        self._line: Line | None = None
        self._shift = 0.0

    def learn(self, people: Sequence[Person]) -> None:
        """Take the driver's measures from a whole sequence.

        Raises:
            DataError: if the neck is never seen.
        """
        self._driver = Proportions.of(people)

    def push(self, person: Person) -> FittedBody:
        """Fit the body of the next frame.

        Args:
            person: the driver's key points in pixels of the driving frame; the neck is among them.

        Raises:
            DataError: if it is not.
        """
        if person.body[_ROOT, 2] <= _SEEN:
            raise DataError("a body cannot be fitted without its neck; hold the frame before")
        driver = self._driver or self._so_far(person)
        trained = self._profile.proportions
        scale, ratios = self._ratios(trained, driver)
        vectors, seen = _limbs(person.body[None])
        factors = np.array([ratios.get(group, scale) for _, _, group in TREE])
        vectors = np.where(seen[0, :, None], vectors[0] * factors[:, None], np.nan)
        neck = trained.neck + scale * (person.body[_ROOT, :2] - driver.neck)
        neck[1] = self._height(person.body, driver, vectors, scale, neck[1])
        profile, limit, unit = self._profile, self._config.within, self._profile.unit
        long = np.array([trained.lengths.get(group, unit) for _, _, group in TREE])[:, None]
        flat, place = (vectors / long).ravel(), (neck - trained.neck) / unit
        far = profile.shapes.distance(flat), profile.places.distance(place)
        if limit is not None:
            vectors = profile.shapes.pulled(flat, limit).reshape(-1, 2) * long
            neck = trained.neck + unit * profile.places.pulled(place, limit)
        return FittedBody(self._built(person, neck, vectors, ratios, scale), *far)

    def _so_far(self, person: Person) -> Proportions:
        self._window.append(person)
        return Proportions.of(self._window)

    def _ratios(self, trained: Proportions, driver: Proportions) -> tuple[float, dict[str, float]]:
        """How much larger the trained body is, and each group of its limbs."""
        known = {
            name: np.log(trained.lengths[name] / length)
            for name, length in driver.lengths.items()
            if name in trained.lengths
        }
        common = [known[name] for name in _SCALE_GROUPS if name in known]
        if not common:
            raise DataError("the driver shows none of the limbs the trained person showed; give a video of a person")
        scale = float(np.median(common))
        # At the start of a causal fit a limb may never have been seen at its length: all grow alike then.
        trust = 1.0 if self._driver else len(self._window) / (len(self._window) + self._config.settle)
        bound = np.log(_MOST_RATIO)
        ratios = {
            name: float(np.exp(scale + np.clip(trust * (ratio - scale), -bound, bound)))
            for name, ratio in known.items()
        }
        return float(np.exp(scale)), ratios

    def _height(self, body: Array, driver: Proportions, vectors: Array, scale: float, otherwise: float) -> float:
        """Height of the neck, so that the line keeps its distance from where it lies in training."""
        trained = self._profile.proportions
        shared = [one for one in _ORDER if one in trained.lines and one in driver.lines]
        line = self._line or shared[0]
        self._line = line
        own, drop = _line_height(body, line), _line_height(_rooted(vectors), line)
        if own is None or drop is None or line not in driver.lines:
            return otherwise + self._shift  # as far from the neck's own path as in the frame before
        y = trained.lines[line] + scale * (own - driver.lines[line]) - drop
        self._shift = y - otherwise
        return y

    def _built(self, person: Person, neck: Array, vectors: Array, ratios: Mapping[str, float], scale: float) -> Person:
        """All points of the fitted body, with the driver's confidences."""
        body = _rooted(vectors)
        body[:, :2] += neck
        body[:, 2] = np.where(body[:, 2] > 0, person.body[:, 2], 0)
        keep = np.isin(np.arange(len(body)), sorted(self._profile.points))
        body[~keep] = 0
        parts = {}
        for name, (points, inner, group) in {
            "face": (person.face, 0, "face"),
            **{name: (getattr(person, name), wrist, "hand") for name, wrist in _HANDS},
        }.items():
            has = body[inner, 2] > 0 and group in self._profile.proportions.lengths
            moved = points.copy()
            moved[:, :2] = body[inner, :2] + ratios.get(group, scale) * (points[:, :2] - person.body[inner, :2])
            parts[name] = _inside(moved, self._size) if has else np.zeros_like(points)
        return Person(_inside(body, self._size), parts["face"], parts["left_hand"], parts["right_hand"])


def main_person(people: Sequence[Person]) -> Person | None:
    """The tallest of some people, whose neck is seen; None where there is none."""
    upright = [person for person in people if person.body[_ROOT, 2] > _SEEN]
    return max(upright, key=body_height, default=None)


def fit_bodies(
    profile: BodyProfile, size: Size, people: Iterable[Person | None], config: DrivingConfig
) -> Iterator[tuple[FittedBody, bool]]:
    """Fit bodies as they come.

    Args:
        profile: of the trained person.
        size: (height, width) of the trained frames.
        people: the driver; None where nobody was found, which holds the one before. With ``config.fit`` ``sequence``
            all of them are taken first; else none is asked for before it is due.
        config: how.

    Yields:
        The fitted body, and whether it was held. Before the first body that is the trained one at rest, or, where the
        whole sequence is known, the first body.

    Raises:
        DataError: if a whole sequence shows nobody.
    """
    fit = BodyFit(profile, size, config)
    last = profile.at_rest()
    if config.fit == "sequence":
        people = list(people)
        found = [person for person in people if person is not None]
        if not found:
            raise DataError(
                "nobody was found in any frame of the driving video, and this bundle shows a person; give a video of "
                "one whose shoulders are seen"
            )
        fit.learn(found)
        people = [found[0] if person is None else person for person in people[:1]] + people[1:]
    for person in people:
        if person is not None:
            last = fit.push(person)
        yield last, person is None


def _limbs(body: Array) -> tuple[Array, NDArray[np.bool_]]:
    """Vectors (T, limbs, 2) of bodies (T, 25, 3), and which are seen, (T, limbs)."""
    seen = (body[:, _FROM, 2] > _SEEN) & (body[:, _TO, 2] > _SEEN)
    return body[:, _TO, :2] - body[:, _FROM, :2], seen


def _shape(body: Array, lengths: Mapping[str, float]) -> Array:
    """Limbs in their own lengths, (limbs, 2); NaN where they are not seen."""
    vectors, seen = _limbs(body[None])
    long = np.array([lengths.get(group, np.nan) for _, _, group in TREE])
    return np.where(seen[0, :, None], vectors[0] / long[:, None], np.nan)


def _rooted(vectors: Array) -> Array:
    """Points of a body (25, 3) whose neck is at 0, with confidence 1 where all limbs on the way are known."""
    body = np.zeros((25, 3))
    body[_ROOT, 2] = 1
    for (inner, outer, _), vector in zip(TREE, vectors, strict=True):
        if body[inner, 2] > 0 and np.isfinite(vector).all():
            body[outer] = *(body[inner, :2] + vector), 1
    return body


def _line_height(body: Array, line: Line) -> float | None:
    """Height of a line in one body: of the lower ankle, the hip or the neck; None where it is not seen."""
    ys = [float(body[point, 1]) for point in _LINES[line] if body[point, 2] > _SEEN]
    return max(ys, default=None)


def _radius(points: Array) -> float:
    """Root mean square distance of points (N, 3) from their middle; NaN where fewer than half are seen."""
    seen = points[points[:, 2] > _SEEN, :2]
    return float(np.sqrt(seen.var(axis=0).sum())) if 2 * len(seen) >= len(points) else float("nan")


def _typical(lengths: Array) -> float:
    """A length that a tenth of the frames exceed; 0 where none was measured."""
    known = lengths[np.isfinite(lengths)]
    return float(np.quantile(known, _LONG)) if len(known) else 0.0


def _unit(proportions: Proportions) -> float:
    return max(proportions.lengths.get(group, 0.0) for group in _SCALE_GROUPS)


def _inside(points: Array, size: Size) -> Array:
    """Points with those outside of a frame marked as not found, as detectors mark them."""
    is_in = ((points[:, :2] >= 0) & (points[:, :2] < np.array(size[::-1]))).all(axis=1) & (points[:, 2] > 0)
    return np.where(is_in[:, None], points, 0.0)
