"""What a video holds before anything is taken from it: size, shots, bars, repeats, damage. Torch-free."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from fastv2v.data.face import CropBox
from fastv2v.errors import ConfigError, MediaError
from fastv2v.video import first_look, frame_times, read_video

Frame = NDArray[np.uint8]
"""RGB, (H, W, 3)."""
Progress = Callable[[str, int, int], None]
"""Called with the name of a stage, how much of it is done, and how much there is to do."""

_THUMB_WIDTH: Final = 160
_BINS: Final = 8
_BLOCK: Final = 8
_BLACK_MEAN, _BLACK_PEAK = 20.0, 64.0  # a bar is black on average, and compression rings at its edge
_CUT_COLOURS: Final = 0.35
_CUT_LIGHT: Final = 12.0
_REPEAT_LIGHT: Final = 0.6
_UNEVEN: Final = 0.25


@dataclass(frozen=True, kw_only=True)
class Excerpt:
    """Which part of a video is read, and at what rate."""

    start: float = 0.0
    """Where to begin, in seconds."""
    stop: float | None = None
    """Where to end, in seconds from the beginning of the file; its end by default."""
    fps: float | None = None
    """Frames per second to bring the video to, by repeating and leaving out whole frames. By default each stored frame
    is taken once; a video whose frames are shown for unequal times is brought to its usual rate."""

    def __post_init__(self) -> None:
        if not 0 <= self.start < float("inf") or (self.stop is not None and not self.start < self.stop):
            raise ConfigError(f"an excerpt starts at 0 s or later and stops after that, got {self.start}, {self.stop}")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise ConfigError(f"fps must lie between 0 and 1000, got {self.fps}")


@dataclass(frozen=True)
class Survey:
    """What a first look at a video found. Frames are counted as they are read, from 0."""

    size: tuple[int, int]
    """(height, width) of the frames as shown."""
    fps: Fraction
    """Frames per second, after any change of rate."""
    resampled: bool
    """Whether frames were repeated or left out to reach that rate."""
    num_frames: int
    """Frames that can be read."""
    picture: CropBox
    """What is left without black bars."""
    cuts: tuple[int, ...]
    """Frames at which another shot begins; 0 is not among them."""
    repeats: tuple[int, ...]
    """Frames that show what the one before shows."""
    damage: str | None
    """Why the video ends before its end, if it does."""
    unread: int = 0
    """Frames that the file lists behind the damage."""

    def shots(self) -> list[tuple[int, int]]:
        """First frame of each shot and the one after its last."""
        return list(itertools.pairwise((0, *self.cuts, self.num_frames)))

    def to_json(self) -> dict[str, Any]:
        """As values that JSON has."""
        return {
            "size": list(self.size),
            "fps": str(self.fps),
            "resampled": self.resampled,
            "num_frames": self.num_frames,
            "picture": list(self.picture),
            "cuts": list(self.cuts),
            "repeats": list(self.repeats),
            "damage": self.damage,
            "unread": self.unread,
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Survey:
        """The inverse of ``to_json``."""
        return cls(
            tuple(content["size"]),
            Fraction(content["fps"]),
            content["resampled"],
            content["num_frames"],
            CropBox(*content["picture"]),
            tuple(content["cuts"]),
            tuple(content["repeats"]),
            content["damage"],
            content.get("unread", 0),
        )


def survey_video(path: Path, excerpt: Excerpt, progress: Progress) -> Survey:
    """Read a video once from beginning to end, and remember little of it.

    Args:
        path: any file ffmpeg can decode.
        excerpt: which part of it.
        progress: told how far it is; the number of frames is an estimate.

    Returns:
        What was found. A video that breaks off is taken as far as it can be read.

    Raises:
        MediaError: if there is no such file, no picture in it, or fewer than two frames.
    """
    size, _ = first_look(path)
    times = frame_times(path)
    fps, resampled = reading_rate(path, excerpt)
    begins = times[0] if len(times) else 0.0
    within = times[(times >= begins + excerpt.start) & (times < begins + (excerpt.stop or np.inf))]
    expected = round(np.ptp(within) * float(fps)) + 1 if resampled and len(within) else len(within)
    bars, changes = _Bars(), _Changes()
    count, damage = 0, None
    frames = read_video(path, start_s=excerpt.start, stop_s=excerpt.stop, fps=fps if resampled else None)
    try:
        for frame in frames:
            if frame.shape[:2] != size and count:
                damage = (
                    f"frame {count} is {frame.shape[1]}x{frame.shape[0]} pixels where {size[1]}x{size[0]} came before"
                )
                break
            size = frame.shape[0], frame.shape[1]
            bars.add(frame)
            changes.add(frame)
            count += 1
            progress("survey", count, max(expected, count))
    except MediaError as error:
        if not count:
            raise
        damage = str(error).removeprefix(f"{path}: ")
    if count < 2:
        part = "this part of the video" if excerpt.start or excerpt.stop else "the video"
        raise MediaError(f"{path}: {part} holds {count} frame{'s' * (count != 1)}; a sequence needs at least two")
    progress("survey", count, count)
    cuts, repeats = changes.settle()
    unread = max(0, expected - count) if damage else 0
    return Survey(size, fps, resampled, count, bars.picture(size), cuts, repeats, damage, unread)


def read_frames(path: Path, excerpt: Excerpt, survey: Survey, *, crop_bars: bool = True) -> Iterator[Frame]:
    """The frames that a survey counted.

    Args:
        path: the video.
        excerpt: the part that was surveyed.
        survey: what was found.
        crop_bars: cut off black bars.

    Yields:
        RGB, (H, W, 3).

    Raises:
        MediaError: if the video now ends earlier than it did.
    """
    fps = survey.fps if survey.resampled else None
    # Of a damaged video not always the same number of frames comes before the error, so that none is asked for.
    lenient = survey.damage is not None
    frames = read_video(path, start_s=excerpt.start, stop_s=excerpt.stop, fps=fps, lenient=lenient)
    left, top, right, bottom = survey.picture if crop_bars else (0, 0, *survey.size[::-1])
    count = 0
    try:
        for frame in itertools.islice(frames, survey.num_frames):
            count += 1
            yield np.ascontiguousarray(frame[top:bottom, left:right])
    except MediaError as error:
        raise MediaError(f"{path}: frame {count} could be read before and cannot now ({error})") from error
    if count < survey.num_frames:
        raise MediaError(f"{path}: {survey.num_frames} frames were read before and only {count} now; begin anew")


def reading_rate(path: Path, excerpt: Excerpt | None = None) -> tuple[Fraction, bool]:
    """The rate to read a video at, in frames per second, and whether frames must be repeated or left out for it.

    Args:
        path: any file ffmpeg can decode.
        excerpt: the part that is read; its ``fps`` is taken where it has one.

    Raises:
        MediaError: if the file is missing, empty, or holds no picture at its beginning.
    """
    if excerpt is not None and excerpt.fps is not None:
        return Fraction(excerpt.fps).limit_denominator(1001), True
    _, nominal = first_look(path)
    gaps = np.diff(frame_times(path))
    gaps = gaps[gaps > 0]
    if len(gaps) < 2:
        return nominal, False
    usual = float(np.median(gaps))
    # Time stamps of whole milliseconds jitter; only a share of frames that clearly differ makes a rate variable.
    is_usual = np.abs(gaps - usual) <= _UNEVEN * usual
    if np.mean(~is_usual) <= 0.01:
        return nominal, False
    return Fraction(1 / float(gaps[is_usual].mean())).limit_denominator(1001), True


class _Bars:
    """Finds rows and columns at the border that are black in every frame."""

    def __init__(self) -> None:
        self._levels: list[NDArray[np.float64]] = []

    def add(self, frame: Frame) -> None:
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        found = [level for axis in (1, 0) for level in (grey.mean(axis), grey.max(axis).astype(np.float64))]
        self._levels = [np.maximum(a, b) for a, b in zip(self._levels or found, found, strict=True)]

    def picture(self, size: tuple[int, int]) -> CropBox:
        """The rest of the frame; all of it where nearly nothing would be left."""
        (top, bottom), (left, right) = (self._inside(*self._levels[i : i + 2]) for i in (0, 2))
        if 2 * (bottom - top) < size[0] or 2 * (right - left) < size[1]:
            return CropBox(0, 0, size[1], size[0])
        return CropBox(left, top, right, bottom)

    @staticmethod
    def _inside(mean: NDArray[np.float64], peak: NDArray[np.float64]) -> tuple[int, int]:
        is_lit = np.flatnonzero((mean > _BLACK_MEAN) | (peak > _BLACK_PEAK))
        if not len(is_lit):
            return 0, len(mean)
        start, stop = int(is_lit[0]), int(is_lit[-1]) + 1
        # The border row of a picture is half black where it was scaled.
        return start + 2 * (start > 0), stop - 2 * (stop < len(mean))


class _Changes:
    """Finds cuts and repeated frames from small copies of neighbours."""

    def __init__(self) -> None:
        self._last: tuple[NDArray[np.float32], NDArray[np.float64]] | None = None
        self._light: list[float] = []
        self._block: list[float] = []
        self._colours: list[float] = []

    def add(self, frame: Frame) -> None:
        height = max(_BLOCK, round(frame.shape[0] * _THUMB_WIDTH / frame.shape[1]))
        thumb = cv2.resize(frame, (_THUMB_WIDTH, height), interpolation=cv2.INTER_AREA)
        grey = cv2.cvtColor(thumb, cv2.COLOR_RGB2GRAY).astype(np.float32)
        codes = (thumb.astype(np.int32) * _BINS // 256) @ np.array([_BINS * _BINS, _BINS, 1])
        colours = np.bincount(codes.ravel(), minlength=_BINS**3) / codes.size
        if self._last is not None:
            difference = np.abs(grey - self._last[0])
            blocks = cv2.resize(difference, None, fx=1 / _BLOCK, fy=1 / _BLOCK, interpolation=cv2.INTER_AREA)
            self._light.append(float(difference.mean()))
            self._block.append(float(blocks.max()))
            self._colours.append(float(np.abs(colours - self._last[1]).sum() / 2))
        self._last = grey, colours

    def settle(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(cuts, repeats), as numbers of frames."""
        light, colours = np.array(self._light), np.array(self._colours)
        # Fast motion changes every frame alike; a cut stands out among its neighbours.
        around = np.array([np.median(light[max(0, i - 4) : i + 5]) for i in range(len(light))])
        is_cut = (colours > _CUT_COLOURS) & (light > _CUT_LIGHT) & (light > 2.5 * around)
        is_repeat = np.array(self._block) < _REPEAT_LIGHT
        return tuple((np.flatnonzero(is_cut) + 1).tolist()), tuple((np.flatnonzero(is_repeat) + 1).tolist())
