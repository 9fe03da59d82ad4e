"""What pictures of a camera become for a bundle, one after the other; and clips where there is no camera. Torch-free.

Nothing here waits for later pictures: what ``fastv2v prepare`` works out over a whole video is done causally.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Generic, Literal, TypeVar, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from export.bundle import Manifest
from export.convert import ClassColours, Picture, cover
from export.driving import Driven, drive_by_pictures, not_in_pictures
from export.stream import ConditionMap
from fastv2v.data.classes import bit_palette, colourise
from fastv2v.data.conditions import ConditionSpec, maps_to_float
from fastv2v.data.driving.config import DrivingConfig
from fastv2v.data.driving.profile import DrivingProfile, Kind
from fastv2v.data.face import draw_face
from fastv2v.data.images import read_image
from fastv2v.data.pose import NUM_PARTS, pose_picture
from fastv2v.data.prepare import landmarks
from fastv2v.data.prepare.body import BodyConfig, BodyFinder
from fastv2v.data.prepare.edges import EdgeConfig, draw_edges
from fastv2v.data.prepare.labels import LabelConfig, Segmenter
from fastv2v.data.transforms import Size
from fastv2v.data.unprojection import pyramid
from fastv2v.data.world import CLASS_NAMES, WorldConfig, render_clip
from fastv2v.errors import ConfigError

Reading = Literal["face", "pose", "edges", "picture", "palette", "network", "colours"]
"""What is read in a picture."""
Condition = ConditionMap | Driven
"""What a picture becomes: driven, where it is known how far it lies from what was trained."""

_CLIP_FRAMES: Final = 48

Result = TypeVar("Result")

_QUICK: Final = landmarks.FaceConfig(detect_every=10, detection_side=240, num_boxes=1)
"""Looking for faces in an eighth of the time that ``prepare`` takes, so that two cores follow a camera."""


@dataclass(frozen=True, kw_only=True)
class ReadingConfig:
    """How pictures of a camera or video become conditions."""

    reading: Reading | None = None
    """face, pose, palette: as the bundle's driving.json says (extra 'face'; mediapipe; nothing). edges: edge maps.
    picture: the picture itself. network: the classes of a segmentation network (--labels.model). colours: the class
    whose colour is nearest. By default the first of these that suits the bundle."""
    choose: landmarks.Choice = "largest"
    """Which of several faces drives."""
    pose: BodyConfig = field(default_factory=BodyConfig)
    """How people are found."""
    labels: LabelConfig = field(default_factory=LabelConfig)
    """A segmentation network of your own, as fastv2v prepare --kind labels takes it."""
    edges: EdgeConfig = field(default_factory=EdgeConfig)
    """Which edges are drawn; by default those the bundle was trained on, where it says so."""
    driving: DrivingConfig = field(default_factory=DrivingConfig)
    """How a driver is fitted to the trained person."""
    background: Path | None = None
    """Real frame of the trained person, for bundles of faces that were trained with edges of the background."""

    def __post_init__(self) -> None:
        if self.reading not in (None, *get_args(Reading)):
            raise ConfigError(f"a picture is read as one of {', '.join(get_args(Reading))}, got '{self.reading}'")
        if self.reading == "network" and not self.labels.is_named:
            raise ConfigError("reading by a network needs --labels.model FILE or --labels.network")
        if self.choose not in get_args(landmarks.Choice):
            raise ConfigError(f"unknown choice '{self.choose}'; there are {', '.join(get_args(landmarks.Choice))}")
        if self.driving.fit == "sequence":
            raise ConfigError("what is live has no end to wait for; leave out --driving.fit sequence")
        if self.background is not None and not self.background.is_file():
            raise ConfigError(f"{self.background}: there is no such file; check --background")


class OneByOne(Generic[Result]):
    """Asks a generator over pictures for the result of each picture as it comes.

    A generator ends with its first error, so that another one is begun then, and where pictures change their size.

    Args:
        start: makes the generator; it takes one picture for each result and looks at none ahead.
    """

    def __init__(self, start: Callable[[Iterable[Picture]], Iterator[Result]]) -> None:
        self._start = start
        self._shape: tuple[int, ...] = ()
        self._given: deque[Picture] = deque()
        self._results: Iterator[Result] = iter(())

    def _taken(self) -> Iterator[Picture]:
        while True:
            yield self._given.popleft()

    def __call__(self, picture: Picture) -> Result:
        """The result of the next picture; what the generator raises is raised."""
        if picture.shape != self._shape:
            self.close()
            self._shape, self._results = picture.shape, self._start(self._taken())
        self._given.append(picture)
        try:
            return next(self._results)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the generator; the next picture begins another."""
        self._shape = ()
        self._given.clear()
        close = getattr(self._results, "close", None)
        if close is not None:
            close()


class Reader:
    """Makes conditions of the pictures of one camera or video.

    Args:
        manifest: of the bundle.
        config: how.
        profile: what the bundle keeps for being driven; None where it has no ``driving.json``.

    Raises:
        ConfigError: if the bundle takes what pictures cannot give, or not by this way.
    """

    def __init__(
        self, manifest: Manifest, config: ReadingConfig | None = None, profile: DrivingProfile | None = None
    ) -> None:
        config = config or ReadingConfig()
        self._manifest, self._config = manifest, config
        self.reading = _reading(manifest, config, profile)
        """What is read in pictures."""
        self._profile = _profile_for(self.reading, manifest, config, profile)
        self._background = None if config.background is None else read_image(config.background)
        self._driven = OneByOne(self._drive)
        if self.reading == "colours":
            assert manifest.palette is not None  # _reading sees to it
            self._colours = ClassColours(manifest.palette)

    @property
    def is_whole(self) -> bool:
        """Whether it needs whole pictures, and not their middle in the bundle's proportions."""
        return self.reading in ("face", "pose")

    @property
    def wanted(self) -> Size:
        """(height, width) in which it looks at pictures; larger ones gain nothing."""
        return self._manifest.size if self._profile is None else self._profile.size

    @property
    def warn_above(self) -> float | None:
        """From which distance from what was trained people are warned; None where nobody is fitted."""
        return self._config.driving.warn_above if self.is_whole else None

    @property
    def notes(self) -> list[str]:
        """What people should know before they judge the model, as sentences."""
        if self.reading == "colours":
            return ["pictures are taken for coloured label maps: each pixel becomes the class whose colour is nearest"]
        if self._profile is None:
            return []
        return not_in_pictures(self._profile, self._manifest, has_background=self._background is not None)

    def check(self) -> None:
        """Try what finding needs, before anybody waits for it.

        Raises:
            ConfigError: if the segmentation network cannot be used.
            MissingExtraError: if a package is missing; the message names it.
        """
        if self.reading == "face":
            landmarks.check_installed()
        elif self.reading == "pose":
            with BodyFinder(self._config.pose, 1):
                pass
        elif self.reading == "network":
            Segmenter(self._config.labels)

    def __call__(self, picture: Picture) -> Condition:
        """The condition of the next picture, (H, W, 3) RGB of any size.

        Raises:
            DataError: if a network gives unknown classes, or what finds people stopped.
        """
        spec = self._manifest.condition
        if self._profile is not None:
            return self._driven(picture)
        fitted = cover(picture, self._manifest.size)
        if self.reading == "picture":
            return ConditionMap(maps=maps_to_float(spec, fitted))
        labels = self._colours.of(fitted)
        return ConditionMap(labels=labels, instances=labels if spec.use_instances else None)

    def close(self) -> None:
        """Forget the driver, and end what finds people."""
        self._driven.close()

    def _drive(self, pictures: Iterable[Picture]) -> Iterator[Driven]:
        assert self._profile is not None
        config = self._config
        return drive_by_pictures(
            self._profile, self._manifest, pictures, config.driving, face=replace(_QUICK, choose=config.choose),
            body=config.pose, labels=config.labels, background=self._background,
        )  # fmt: skip


class Watched(Iterator[Condition]):
    """Conditions of the pictures of a camera or video of this machine.

    A picture in which nothing is found is an error and not the end: the next one may show it.

    Args:
        pictures: RGB, (H, W, 3).
        reader: makes the conditions.
        close: lets go of the camera.
    """

    def __init__(self, pictures: Iterator[Picture], reader: Reader, close: Callable[[], object] | None = None) -> None:
        self._pictures, self._reader, self._close = pictures, reader, close

    def __next__(self) -> Condition:
        """The next condition.

        Raises:
            DataError: if nothing was found in the picture.
        """
        return self._reader(next(self._pictures))

    def close(self) -> None:
        """Let go of the source."""
        self._reader.close()
        if self._close is not None:
            self._close()


def _reading(manifest: Manifest, config: ReadingConfig, profile: DrivingProfile | None) -> Reading:
    """What is read in pictures for a bundle.

    Raises:
        ConfigError: if nothing can be.
    """
    spec, asked = manifest.condition, config.reading
    kind = None if profile is None else profile.kind
    ways: dict[Reading, bool] = {
        "face": kind == "face",
        "pose": kind == "pose",
        "edges": spec.encoder == "rgb",
        "picture": spec.encoder == "rgb",
        "palette": kind == "palette",
        "network": spec.kind == "labels" and config.labels.is_named,
        "colours": spec.kind == "labels" and manifest.palette is not None,
    }
    possible = tuple(way for way, is_there in ways.items() if is_there)
    if not possible:
        advice = (
            f"{manifest.name} lacks driving.json, what others need to drive it; export it again, or give --data"
            if spec.encoder in ("face", "pose")
            else "label maps come from --labels.model, other maps from --data"
        )
        raise ConfigError(f"no picture becomes {spec.describe()} here, so a camera cannot drive it: {advice}")
    if asked is not None and asked not in possible:
        raise ConfigError(f"{manifest.name} takes {spec.describe()}; read pictures as {' or '.join(possible)}")
    return asked or possible[0]


def _profile_for(
    reading: Reading, manifest: Manifest, config: ReadingConfig, profile: DrivingProfile | None
) -> DrivingProfile | None:
    """By what pictures become conditions; None where they hardly need anything."""
    kinds: dict[Reading, Kind] = {
        "face": "face", "pose": "pose", "edges": "edges", "palette": "palette", "network": "labels",
    }  # fmt: skip
    kind = kinds.get(reading)
    if kind is None:
        return None
    if profile is None or profile.kind != kind:
        size = manifest.size
        profile = DrivingProfile(
            kind=kind, size=size, resized=size, offset=(0, 0), interpolation="area", prepared=False, edges=config.edges
        )
    return profile if config.edges == EdgeConfig() else replace(profile, edges=config.edges)


class ConditionPictures:
    """Shows conditions to people: labels in their colours, curves white on black, poses as they are drawn.

    Args:
        manifest: of the bundle.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._spec = manifest.condition
        given = manifest.palette
        self.palette = bit_palette(self._spec.num_classes) if given is None else np.array(given, np.uint8)
        """A colour for each class, (L, 3) RGB."""

    def __call__(self, condition: ConditionMap) -> Picture:
        """RGB, (H, W, 3)."""
        if condition.labels is not None:
            return colourise(condition.labels, self.palette)
        assert condition.maps is not None, "a condition has labels or maps"
        maps, pose = condition.maps, self._spec.pose
        if pose is not None:
            half = np.full((len(maps), 1, 1), 127.5, np.float32)
            if pose.densepose:
                half[2] = NUM_PARTS / 2
            return pose_picture(_bytes((maps + 1) * half), pose)
        if self._spec.encoder == "rgb":
            return _bytes((maps + 1) * 127.5)
        first = maps[:1] * 255 if self._spec.encoder == "face" else (maps[:1] + 1) * 127.5
        return _bytes(np.repeat(first, 3, axis=0))


def _bytes(planes: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(C, H, W) to (H, W, C), rounded."""
    return np.ascontiguousarray(np.moveaxis(np.rint(np.clip(planes, 0, 255)).astype(np.uint8), 0, -1))


class Kept:
    """A clip that is made while it is first watched, and remembered; any number of threads may watch it.

    Args:
        conditions: makes it.
    """

    def __init__(self, conditions: Iterable[ConditionMap]) -> None:
        self._rest, self._lock = iter(conditions), threading.Lock()
        self._made: list[ConditionMap] = []

    def __iter__(self) -> Iterator[ConditionMap]:
        """The clip from its beginning."""
        for position in itertools.count():
            with self._lock:
                if position == len(self._made):
                    following = next(self._rest, None)
                    if following is None:
                        return
                    self._made.append(following)
            yield self._made[position]


def builtin_clip(manifest: Manifest) -> Kept:
    """A clip that needs nothing else: the procedural street, a drawn face, or shapes that pass by.

    Args:
        manifest: of the bundle.

    Raises:
        ConfigError: if there is none for its condition.
    """
    spec, size = manifest.condition, manifest.size
    times = range(_CLIP_FRAMES)
    if spec.kind == "labels":
        is_street = tuple(spec.class_names) == tuple(CLASS_NAMES) and not any(side % 4 or side < 32 for side in size)
        return Kept(_street(spec, size, manifest.fps) if is_street else (_shapes(spec, size, t) for t in times))
    if spec.face is not None and spec.face.background == "none":
        return Kept(_drawn_face(spec, size, t) for t in times)
    if spec.encoder == "rgb":
        made = (_shapes(ConditionSpec(class_names=("0", "1", "2")), size, t).labels for t in times)
        coloured = (colourise(ids, bit_palette(3)) for ids in made if ids is not None)
        drawn = (cv2.merge([edges] * 3) for edges in draw_edges(coloured, EdgeConfig(hold=False)))
        return Kept(ConditionMap(maps=maps_to_float(spec, edges)) for edges in drawn)
    raise ConfigError(f"there is no built-in clip of {spec.describe()}; give a data set (--data)")


def _street(spec: ConditionSpec, size: Size, fps: float) -> Iterator[ConditionMap]:
    config = WorldConfig(size=size, num_frames=_CLIP_FRAMES, fps=min(240.0, max(1.0, fps)), camera="return")
    for made in render_clip(config, 0, points=spec.guidance_levels > 0):
        points = None if made.points is None else pyramid(made.points, made.depth, spec.guidance_levels)
        yield ConditionMap(labels=made.labels, instances=made.instances, points=points)


def _shapes(spec: ConditionSpec, size: Size, t: int) -> ConditionMap:
    """Bands of classes, and discs of others that go around; frame ``_CLIP_FRAMES`` is frame 0 again."""
    height, width = size
    count, turn = spec.num_classes, 2 * np.pi * t / _CLIP_FRAMES
    bands = min(count, 4)
    ids = np.repeat(np.arange(height) * bands // height, width).reshape(size).astype(np.int32)
    for number in range(min(count, 8)):
        angle = turn + number * 2.4
        x = width * (0.5 + 0.35 * np.cos(angle))
        y = height * (0.5 + 0.35 * np.sin(angle + number))
        cv2.circle(ids, (round(x), round(y)), max(2, min(size) // 9), (float(count - 1 - number % count),), cv2.FILLED)
    return ConditionMap(labels=ids, instances=ids if spec.use_instances else None)


def _drawn_face(spec: ConditionSpec, size: Size, t: int) -> ConditionMap:
    """A face of ellipses that speaks and sways, in the units of a face's width; frame 48 is frame 0 again."""
    turn = 2 * np.pi * t / _CLIP_FRAMES
    opened, blink = 0.02 + 0.05 * (1 - np.cos(3 * turn)), 0.3 if t % _CLIP_FRAMES in (20, 21) else 1.0

    def arc(x: float, y: float, a: float, b: float, first: float, last: float, count: int) -> NDArray[np.float64]:
        angles = np.radians(np.linspace(first, last, count))
        return np.stack([x + a * np.cos(angles), y + b * np.sin(angles)], axis=1)

    eyes = [
        np.concatenate([arc(x, -0.1, 0.09, 0.045 * blink, 180, 300, 3), arc(x, -0.1, 0.09, 0.035 * blink, 0, 120, 3)])
        for x in (-0.2, 0.2)
    ]
    outer = np.concatenate([
        arc(0, 0.33, 0.19, 0.06, 180, 360, 7), arc(0, 0.33, 0.19, 0.07 + opened, 30, 150, 5),
    ])  # fmt: skip
    inner = np.concatenate([
        arc(0, 0.33, 0.14, 0.02, 180, 360, 5), arc(0, 0.33, 0.14, 0.02 + opened, 45, 135, 3),
    ])  # fmt: skip
    face = np.concatenate([
        arc(0, -0.05, 0.5, 0.68, 170, 10, 17),
        arc(-0.22, -0.2, 0.16, 0.06, 190, 340, 5), arc(0.22, -0.2, 0.16, 0.06, 200, 350, 5),
        np.stack([np.zeros(4), np.linspace(-0.1, 0.1, 4)], axis=1), arc(0, 0.12, 0.09, 0.04, 160, 20, 5),
        *eyes, outer, inner,
    ])  # fmt: skip
    # As prepare cuts it: 2.5 widths to the side, the face a little below the middle.
    sway = np.array([0.03 * np.sin(turn), 0.015 * np.sin(2 * turn)])
    points = (face + sway + (1.25, 1.35)) / 2.5 * (size[1], size[0])
    assert spec.face is not None
    return ConditionMap(maps=maps_to_float(spec, draw_face(points, size, spec.face)))
