"""What pictures of a camera become for a bundle, one after the other; and clips where there is no camera. Torch-free.

Nothing here waits for later pictures: what ``fastv2v prepare`` works out over a whole video is done causally.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Generic, Literal, TypeVar, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from export.bundle import Manifest
from export.convert import ClassColours, Picture, cover, scale
from export.stream import ConditionMap
from fastv2v.data.classes import bit_palette, colourise
from fastv2v.data.conditions import ConditionSpec, maps_to_float
from fastv2v.data.face import CropBox, draw_face
from fastv2v.data.pose import NUM_PARTS, pose_picture
from fastv2v.data.prepare import landmarks
from fastv2v.data.prepare.edges import EdgeConfig, draw_edges
from fastv2v.data.prepare.labels import LabelConfig, Segmenter, draw_labels
from fastv2v.data.prepare.palette import draw_palette, read_palette
from fastv2v.data.transforms import Size
from fastv2v.data.world import CLASS_NAMES, WorldConfig, render_clip
from fastv2v.errors import ConfigError, DataError

Reading = Literal["face", "edges", "picture", "palette", "network", "colours"]
"""What is read in a picture."""

_FOLLOW: Final = 0.15
_STILL: Final = 0.06
_CLIP_FRAMES: Final = 48

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class ReadingConfig:
    """How pictures of a camera or video become conditions."""

    reading: Reading | None = None
    """face: landmarks (extra 'face'). edges: edge maps. picture: the picture itself. palette: the classes that prepare
    fitted (--palette). network: the classes of a segmentation network (--labels.model). colours: the class whose colour
    is nearest. By default face for faces, edges for colour images, and for labels the first of palette and network that
    is given, else colours."""
    palette: Path | None = None
    """The palette.json that fastv2v prepare --kind palette wrote."""
    labels: LabelConfig = field(default_factory=LabelConfig)
    """A segmentation network of your own, as fastv2v prepare --kind labels takes it."""
    edges: EdgeConfig = field(default_factory=EdgeConfig)
    """Which edges are drawn."""

    def __post_init__(self) -> None:
        if self.reading not in (None, *get_args(Reading)):
            raise ConfigError(f"a picture is read as one of {', '.join(get_args(Reading))}, got '{self.reading}'")
        if (self.reading == "palette" and self.palette is None) or (
            self.reading == "network" and self.labels.model is None
        ):
            raise ConfigError("reading a palette needs --palette FILE, and reading a network --labels.model FILE")


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


class HeadFollower:
    """The square around a head that moves with it, known at once: 2.5 face widths, as ``fastv2v prepare`` cuts it."""

    def __init__(self) -> None:
        self._centre: NDArray[np.float64] | None = None
        self._side = 0.0

    def crop(self, face: NDArray[np.float64]) -> CropBox:
        """The square around the landmarks (68, 2) of the next picture."""
        low, high = face.min(axis=0), face.max(axis=0)
        side = max(8.0, 2.5 * float(high[0] - low[0]))
        centre = np.array([(low[0] + high[0]) / 2, (3 * low[1] + high[1]) / 4])
        if self._centre is None or np.abs(centre - self._centre).max() > self._side / 2:
            self._centre, self._side = centre, side  # another face, or a leap: there is nothing to follow smoothly
        elif np.abs(centre - self._centre).max() > _STILL * self._side:
            self._centre = self._centre + _FOLLOW * (centre - self._centre)
        self._side += 0.1 * _FOLLOW * (side - self._side)  # size breathes with every word; it may only drift
        half = round(self._side / 2)
        x, y = np.rint(self._centre).astype(int).tolist()
        return CropBox(x - half, y - half, x + half, y + half)


class Reader:
    """Makes conditions of the pictures of one camera or video.

    Args:
        manifest: of the bundle.
        config: how.

    Raises:
        ConfigError: if the bundle takes what pictures cannot give, or not by this way.
        DataError: if the palette cannot be read, or has other classes.
        MissingExtraError: if a package is missing; the message names it.
    """

    def __init__(self, manifest: Manifest, config: ReadingConfig | None = None) -> None:
        config = config or ReadingConfig()
        spec = manifest.condition
        self._manifest, self.reading = manifest, _reading(manifest, config)
        self._latest: ConditionMap | None = None
        self._head = HeadFollower()
        if self.reading == "face":
            landmarks.check_installed()
            finding = landmarks.FaceConfig()
            self._faces = OneByOne(lambda pictures: landmarks.each_frame_faces(pictures, finding))
        elif self.reading == "edges":
            self._edges = OneByOne(lambda pictures: draw_edges(pictures, config.edges))
        elif self.reading == "palette":
            assert config.palette is not None  # ReadingConfig sees to it
            palette, cleaning = read_palette(config.palette)
            _check_classes(spec, len(palette.centres), f"{config.palette}")
            self._labels = OneByOne(lambda pictures: draw_palette(pictures, palette, cleaning))
        elif self.reading == "network":
            segmenter = Segmenter(config.labels)
            self._labels = OneByOne(lambda pictures: draw_labels(pictures, segmenter, config.labels))
        elif self.reading == "colours":
            assert manifest.palette is not None  # _reading sees to it
            self._colours = ClassColours(manifest.palette)

    def __call__(self, picture: Picture) -> ConditionMap:
        """The condition of the next picture, (H, W, 3) RGB of any size.

        Raises:
            DataError: if nothing can be found in it and nothing was found before, or a network gives unknown classes.
        """
        if self.reading == "face":
            self._latest = self._face(picture)
            return self._latest
        spec, size = self._manifest.condition, self._manifest.size
        fitted = cover(picture, size)
        if self.reading == "picture":
            return ConditionMap(maps=maps_to_float(spec, fitted))
        if self.reading == "edges":
            return _edge_maps(spec, self._edges(fitted))
        labels = self._colours.of(fitted) if self.reading == "colours" else self._labels(fitted)
        return ConditionMap(labels=labels, instances=labels if spec.use_instances else None)

    def _face(self, picture: Picture) -> ConditionMap:
        faces = self._faces(picture)
        if not len(faces):
            if self._latest is None:
                raise DataError("no face is seen; come nearer, face the camera, and see to light")
            return self._latest
        face = max(faces, key=lambda found: float(np.ptp(found[:, 0])))
        spec, size = self._manifest.condition, self._manifest.size
        box = self._head.crop(face)
        inside = (face - (box.left, box.top)) * (size[1] / (box.right - box.left), size[0] / (box.bottom - box.top))
        assert spec.face is not None  # _reading sees to it
        frame = None
        if spec.face.background == "canny":
            frame = scale(landmarks.crop_mirrored(picture, box), size, "image")
        return ConditionMap(maps=maps_to_float(spec, draw_face(inside, size, spec.face, frame)))


class Watched(Iterator[ConditionMap]):
    """Conditions of the pictures of a camera or video of this machine.

    A picture in which nothing is found is an error and not the end: the next one may show it.

    Args:
        pictures: RGB, (H, W, 3).
        reader: makes the conditions.
        close: lets go of the camera.
    """

    def __init__(self, pictures: Iterator[Picture], reader: Reader, close: Callable[[], object] | None = None) -> None:
        self._pictures, self._reader, self._close = pictures, reader, close

    def __next__(self) -> ConditionMap:
        """The next condition.

        Raises:
            DataError: if nothing was found in the picture.
        """
        return self._reader(next(self._pictures))

    def close(self) -> None:
        """Let go of the source."""
        if self._close is not None:
            self._close()


def _reading(manifest: Manifest, config: ReadingConfig) -> Reading:
    """What is read in pictures for a bundle.

    Raises:
        ConfigError: if nothing can be.
    """
    spec, asked = manifest.condition, config.reading
    possible: tuple[Reading, ...] = ()
    if spec.encoder == "face":
        possible = ("face",)
    elif spec.encoder == "rgb":
        possible = ("edges", "picture")
    elif spec.encoder == "maps" and spec.given_channels == 1:
        possible = ("edges",)
    elif spec.kind == "labels":
        ways: dict[Reading, bool] = {
            "palette": config.palette is not None,
            "network": config.labels.model is not None,
            "colours": manifest.palette is not None,
        }
        possible = tuple(way for way, is_there in ways.items() if is_there)
    if not possible:
        raise ConfigError(
            f"no picture becomes {spec.describe()} here: a camera cannot drive {manifest.name}; label maps come from "
            "--palette or --labels.model, and poses and other maps from --data"
        )
    if asked is not None and asked not in possible:
        raise ConfigError(f"{manifest.name} takes {spec.describe()}; read pictures as {' or '.join(possible)}")
    return asked or possible[0]


def _check_classes(spec: ConditionSpec, found: int, where: str) -> None:
    if found != spec.num_classes:
        raise DataError(
            f"{where} has {found} classes and the bundle {spec.num_classes}; give the palette.json of the data set it "
            "was trained on"
        )


def _edge_maps(spec: ConditionSpec, edges: NDArray[np.uint8]) -> ConditionMap:
    if spec.encoder == "rgb":
        return ConditionMap(maps=maps_to_float(spec, cv2.merge([edges] * 3)))
    return ConditionMap(maps=(edges[None] > 0).astype(np.float32))


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
        return Kept(_street(size, manifest.fps) if is_street else (_shapes(spec, size, t) for t in times))
    if spec.face is not None and spec.face.background == "none":
        return Kept(_drawn_face(spec, size, t) for t in times)
    if spec.encoder == "rgb" or (spec.encoder == "maps" and spec.given_channels == 1):
        made = (_shapes(ConditionSpec(class_names=("0", "1", "2")), size, t).labels for t in times)
        coloured = (colourise(ids, bit_palette(3)) for ids in made if ids is not None)
        return Kept(_edge_maps(spec, edges) for edges in draw_edges(coloured, EdgeConfig(hold=False)))
    raise ConfigError(f"there is no built-in clip of {spec.describe()}; give a data set (--data)")


def _street(size: Size, fps: float) -> Iterator[ConditionMap]:
    config = WorldConfig(size=size, num_frames=_CLIP_FRAMES, fps=min(240.0, max(1.0, fps)), camera="return")
    return (ConditionMap(labels=made.labels, instances=made.instances) for made in render_clip(config, 0))


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
