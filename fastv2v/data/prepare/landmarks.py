"""68 landmarks of every face in a video, whose face it is, and a crop that follows the head. Torch-free.

Detector and predictor are dlib's, as in vid2vid's own data. The detector is asked now and then, on a reduced copy; in
between a face is looked for where it was in the frame before. The predictor depends on the box it is given, so its
answers for a few shifted boxes, all placed by the landmarks themselves, are averaged: steadier, and closer to the mean.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from fastv2v.data.face import CropBox
from fastv2v.data.face_reference import NUM_LANDMARKS
from fastv2v.data.prepare.chunks import Found, Piece
from fastv2v.data.prepare.survey import Frame
from fastv2v.errors import ConfigError, DataError, MissingExtraError

Points = NDArray[np.float64]
"""Landmarks (x, y) in pixels, (68, 2)."""
Choice = Literal["largest", "leftmost", "rightmost", "topmost", "bottommost"]
"""Which of several faces."""

_NEEDED: Final = (
    "--kind face needs the extra 'face': pip install 'fastv2v[face]', or pip install --no-deps dlib-bin "
    "face_recognition_models"
)
_PREDICTOR: Final = "shape_predictor_68_face_landmarks.dat"
_DETECTION_SIDE: Final = 480
_MOST_ENLARGED: Final = 3.0
"""A smaller frame is not enlarged by more than this before the detector sees it."""
_MOST_FACES: Final = 5
# The detector's box against the spread of the inner landmarks (17 to 67), measured on vid2vid's example faces.
_INNER: Final = slice(17, NUM_LANDMARKS)
_BOX_SHIFT: Final = (-0.13, 0.075)
_BOX_SIDE: Final = 3.39
_MOST_BOXES: Final = 100
_JITTER, _JITTER_SIDE = 0.05, 0.04  # in sides of a box
_MOVED: Final = 0.5
_LOOK_SIDE, _LENIENT = 160, -0.5
_CROP_WIDTHS: Final = 2.5
_STILL: Final = 0.08
_FOLLOW_S: Final = 0.5


@dataclass(frozen=True, kw_only=True)
class FaceConfig:
    """How faces are found."""

    detect_every: int = 5
    """A detector looks at every so many frames; between them faces are followed."""
    detection_side: int = _DETECTION_SIDE
    """Shorter side of the copy that the detector sees, in pixels, reduced or enlarged; faces must be an eighth of it
    or more."""
    num_boxes: int = 12
    """Landmarks are the mean over so many boxes around a face: steadier, 2 ms a box."""
    choose: Choice = "largest"
    """Which face, where a shot begins with several; it is then followed."""
    smooth: float = 0.0
    """Smooth landmarks over time: standard deviation in frames. Quick turns lag."""
    min_width: float = 24.0
    """Faces narrower than this many pixels are not taken."""

    def __post_init__(self) -> None:
        if not 1 <= self.detect_every <= 100:
            raise ConfigError(f"detect_every must lie in 1 to 100 frames, got {self.detect_every}")
        if not 80 <= self.detection_side <= 4320:
            raise ConfigError(f"detection_side must lie in 80 to 4320 pixels, got {self.detection_side}")
        if not 1 <= self.num_boxes <= _MOST_BOXES:
            raise ConfigError(f"num_boxes must lie in 1 to {_MOST_BOXES}, got {self.num_boxes}")
        if self.choose not in get_args(Choice):
            raise ConfigError(f"unknown choice '{self.choose}'; there are {', '.join(get_args(Choice))}")
        if not 0 <= self.smooth <= 10 or not 0 <= self.min_width < float("inf"):
            raise ConfigError(f"smooth lies in 0 to 10 frames and min_width at 0 or more, got {self}")


class _Networks(NamedTuple):
    dlib: Any
    detector: Any
    predictor: Any


@functools.cache
def _networks() -> _Networks:
    """Dlib's detector and predictor, once for a process."""
    # The package of models is not imported: its first line needs an old setuptools.
    models = importlib.util.find_spec("face_recognition_models")
    if models is None or importlib.util.find_spec("dlib") is None:
        raise MissingExtraError(_NEEDED)
    dlib = importlib.import_module("dlib")
    path = Path(next(iter(models.submodule_search_locations or []))) / "models" / _PREDICTOR
    return _Networks(dlib, dlib.get_frontal_face_detector(), dlib.shape_predictor(str(path)))


def check_installed() -> None:
    """Raise ``MissingExtraError`` where dlib or its models are not there."""
    _networks()


def find_faces(frames: Sequence[Frame], config: FaceConfig) -> list[NDArray[np.float64]]:
    """All faces in frames that follow each other; see ``each_frame_faces``."""
    return list(each_frame_faces(frames, config))


def each_frame_faces(frames: Iterable[Frame], config: FaceConfig) -> Iterator[NDArray[np.float64]]:
    """All faces of each frame as it comes.

    Args:
        frames: RGB, (H, W, 3), of one size, that follow each other.
        config: how to look.

    Yields:
        For each frame landmarks (x, y) in its pixels, (faces, 68, 2).
    """
    faces: list[Points] = []
    for number, frame in enumerate(frames):
        tracked = [_placed(frame, _box_of(_predict(frame, _box_of(face))), config.num_boxes) for face in faces]
        # A face that jumped or changed its size was not followed but lost.
        tracked = [new for new, old in zip(tracked, faces, strict=True) if _is_same(new, old)]
        if number % config.detect_every == 0 or not faces or len(tracked) < len(faces):
            detected = [_placed(frame, box, config.num_boxes) for box in _detect(frame, config.detection_side)]
            # The detector misses profiles; a face that was followed goes on where a lenient look confirms it.
            unseen = [face for face in tracked if not any(_is_same(face, other) for other in detected)]
            faces = detected + [face for face in unseen if _looks_like_face(frame, face)]
        else:
            faces = tracked
        faces = [face for face in faces if np.ptp(face[:, 0]) >= config.min_width][:_MOST_FACES]
        yield np.array(faces).reshape(-1, NUM_LANDMARKS, 2)


def _looks_like_face(frame: Frame, face: Points) -> bool:
    """Whether a lenient detector, shown the surroundings of a face, finds one."""
    left, top, right, bottom = _box_of(face)
    side = right - left
    around = frame[max(0, int(top - side / 2)) : int(bottom + side / 2)]
    around = around[:, max(0, int(left - side / 2)) : int(right + side / 2)]
    if not around.size:
        return False
    scale = _LOOK_SIDE / side
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    around = cv2.resize(around, None, fx=scale, fy=scale, interpolation=method)
    boxes, _, _ = _networks().detector.run(np.ascontiguousarray(around), 0, _LENIENT)
    return len(boxes) > 0


def _detect(frame: Frame, side: int) -> list[NDArray[np.float64]]:
    """Boxes (left, top, right, bottom) in pixels of the frame, best first."""
    scale = max(1 / _MOST_ENLARGED, min(frame.shape[:2]) / side)
    method = cv2.INTER_AREA if scale > 1 else cv2.INTER_LINEAR
    shown = frame if scale == 1 else cv2.resize(frame, None, fx=1 / scale, fy=1 / scale, interpolation=method)
    boxes, _, _ = _networks().detector.run(np.ascontiguousarray(shown), 0, 0.0)
    return [scale * np.array([box.left(), box.top(), box.right(), box.bottom()], np.float64) for box in boxes]


def _predict(frame: Frame, box: NDArray[np.float64]) -> Points:
    networks = _networks()
    shape = networks.predictor(frame, networks.dlib.rectangle(*(round(float(edge)) for edge in box)))
    return np.array([(part.x, part.y) for part in shape.parts()], np.float64)


def _placed(frame: Frame, box: NDArray[np.float64], num_boxes: int) -> Points:
    """The mean over boxes around the one that landmarks found in a first box belong in."""
    box = _box_of(_predict(frame, box))
    side = box[2] - box[0]
    return np.mean([_predict(frame, box + side * shift) for shift in _shifts(num_boxes)], axis=0)


@functools.cache
def _shifts(num_boxes: int) -> NDArray[np.float64]:
    """Changes of (left, top, right, bottom) in sides of the box, always the same ones."""
    rng = np.random.default_rng(0)
    x, y = rng.uniform(-_JITTER, _JITTER, (2, num_boxes))
    grown = rng.uniform(-_JITTER_SIDE, _JITTER_SIDE, num_boxes)
    return np.stack([x - grown, y - grown, x + grown, y + grown], axis=1)


def _box_of(face: Points) -> NDArray[np.float64]:
    """The box that the detector would put around landmarks."""
    centre = face[_INNER].mean(axis=0)
    spread = float(np.sqrt(((face[_INNER] - centre) ** 2).sum(axis=1).mean()))
    middle, half = centre + spread * np.array(_BOX_SHIFT), _BOX_SIDE * spread / 2
    return np.concatenate([middle - half, middle + half])


def _is_same(a: Points, b: Points) -> bool:
    """Whether two sets of landmarks may be one face in neighbouring frames."""
    one, other = _box_of(a), _box_of(b)
    sides = one[2] - one[0], other[2] - other[0]
    is_near = np.abs((one + one[[2, 3, 0, 1]]) / 2 - (other + other[[2, 3, 0, 1]]) / 2).max() < _MOVED * min(sides)
    return bool(is_near and 0.7 < sides[0] / sides[1] < 1.4)


def look_for_faces(piece: Piece, frames: list[Frame], config: FaceConfig) -> Found:
    """``find_faces`` for one piece: all faces below each other, and how many each frame has."""
    faces = find_faces(frames, config)[len(piece.lead) :]
    return {"faces": np.concatenate(faces), "counts": np.array([len(found) for found in faces], np.int64)}


class OnePerson:
    """Picks one person's face in each frame as it comes.

    Args:
        choose: which one to begin with, and to go on with after it was lost.
    """

    def __init__(self, choose: Choice) -> None:
        self._choose = choose
        self._last: Points | None = None
        self._is_lost = True

    def pick(self, faces: NDArray[np.float64]) -> Points | None:
        """The face of the person in the next frame.

        Args:
            faces: all of the frame, (faces, 68, 2).

        Returns:
            Landmarks (68, 2), or None where that face is not there. When it was lost, it is waited for one frame, so
            that nobody takes its place unnoticed; then whoever stands where it was goes on, else who is chosen.
        """
        last = self._last
        near = [] if last is None else [face for face in faces if _is_same(face, last)]
        if last is not None and near:
            face = min(near, key=lambda face: float(np.abs(face - last).mean()))
        elif self._is_lost and len(faces):
            face = min(faces, key=_ORDERS[self._choose])
        else:
            self._is_lost = True
            return None
        self._last, self._is_lost = face, False
        return face


_ORDERS: Final[dict[Choice, Callable[[Points], float]]] = {
    "largest": lambda face: -float(np.ptp(face[:, 0])),
    "leftmost": lambda face: float(face[:, 0].mean()),
    "rightmost": lambda face: -float(face[:, 0].mean()),
    "topmost": lambda face: float(face[:, 1].mean()),
    "bottommost": lambda face: -float(face[:, 1].mean()),
}


def follow_one(found: Iterable[NDArray[np.float64]], choose: Choice) -> list[Points | None]:
    """One person's face in every frame of a shot; see ``OnePerson``."""
    person = OnePerson(choose)
    return [person.pick(faces) for faces in found]


def smooth_track(points: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    """Gaussian mean over time, (T, ...), where the ends count what is there only; sigma in frames, 0 for none."""
    if sigma == 0:
        return points
    radius = max(1, round(4 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    flat = points.reshape(len(points), -1)
    sums, counts = (
        cv2.sepFilter2D(values, cv2.CV_64F, np.ones(1), kernel, borderType=cv2.BORDER_CONSTANT)
        for values in (flat, np.ones((len(flat), 1)))
    )
    return (sums.reshape(flat.shape) / counts.reshape(-1, 1)).reshape(points.shape)


def head_crops(track: NDArray[np.float64], size: tuple[int, int], fps: float) -> list[CropBox]:
    """Squares of one size around a face, 2.5 times as wide as it.

    They follow the head smoothly, or stand still where it stays nearly where it is, so that the background does too.

    Args:
        track: landmarks of each frame, (T, 68, 2).
        size: (height, width) of the frames.
        fps: frames per second.

    Returns:
        One box for each frame. They lie within the frame as far as it is large enough.

    Raises:
        DataError: if the face has no width.
    """
    low, high = track.min(axis=1), track.max(axis=1)
    width = float(np.percentile(high[:, 0] - low[:, 0], 90))
    side = round(_CROP_WIDTHS * width)
    if side < 8:
        raise DataError(f"the face is {width:g} pixels wide, too little to cut out")
    # Up to a tenth less is better than a border that is not of the picture.
    side = min(size) if min(size) <= side <= 1.1 * min(size) else side
    centres = np.stack([(low[:, 0] + high[:, 0]) / 2, (3 * low[:, 1] + high[:, 1]) / 4], axis=1)
    # As in vid2vid, the face sits a little below the middle, so that the hair has room.
    if np.ptp(centres, axis=0).max() <= 2 * _STILL * side:
        path = np.broadcast_to((centres.min(axis=0) + centres.max(axis=0)) / 2, centres.shape)
    else:
        path = smooth_track(centres, _FOLLOW_S * fps)
    return [_inside(round(x - side / 2), round(y - side / 2), side, size) for x, y in path.tolist()]


def _inside(left: int, top: int, side: int, size: tuple[int, int]) -> CropBox:
    """A square moved into the frame, or centred on it where it is larger."""
    x, y = (
        min(max(start, 0), length - side) if side <= length else (length - side) // 2
        for start, length in zip((left, top), size[::-1], strict=True)
    )
    return CropBox(x, y, x + side, y + side)


def crop_mirrored(image: Frame, box: CropBox) -> Frame:
    """Cut a box out of an image; what lies outside is mirrored at its border."""
    height, width = image.shape[:2]
    top, bottom = max(0, -box.top), max(0, box.bottom - height)
    left, right = max(0, -box.left), max(0, box.right - width)
    inner = image[max(0, box.top) : box.bottom, max(0, box.left) : box.right]
    if not (top or bottom or left or right):
        return inner
    return cv2.copyMakeBorder(inner, top, bottom, left, right, borderType=cv2.BORDER_REFLECT_101).astype(np.uint8)
