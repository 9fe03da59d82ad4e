"""From a plain video to a data set: what is done in which order, and what is written. Torch-free."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from fastv2v.data.classes import CLASSES_FILE
from fastv2v.data.face import CropBox
from fastv2v.data.modalities import MODALITIES, Condition, Phase, place_of
from fastv2v.data.prepare import body, landmarks
from fastv2v.data.prepare.body import BodyConfig, BodyFinder
from fastv2v.data.prepare.chunks import Found, Piece, cut_into_pieces, process_pool, work_through
from fastv2v.data.prepare.edges import EdgeConfig, draw_edges
from fastv2v.data.prepare.labels import LabelConfig, classes_of, draw_labels, segmenter_of
from fastv2v.data.prepare.landmarks import FaceConfig
from fastv2v.data.prepare.palette import (
    PALETTE_FILE,
    Palette,
    PaletteConfig,
    draw_palette,
    fit_palette,
    palette_record,
    sample_pixels,
)
from fastv2v.data.prepare.survey import Excerpt, Frame, Progress, Survey, read_frames, survey_video
from fastv2v.environment import usable_cores
from fastv2v.errors import ConfigError, DataError, MediaError
from fastv2v.run import lock_folder, write_bytes, write_json
from fastv2v.video import first_look, write_image

logger = logging.getLogger(__name__)

Kind = Literal["face", "pose", "edges", "palette", "labels"]
"""What frames shall be generated from."""

CONDITIONS: Final[dict[Kind, Condition]] = {
    "face": "face",
    "pose": "pose",
    "edges": "rgb",
    "palette": "labels",
    "labels": "labels",
}
"""The condition of the data room that a kind becomes."""

SUMMARY: Final = "summary.json"
_SCHEMA: Final = 1
_VERSION: Final = 1
"""Raised when the same request gives other files, so that pieces of two versions are never mixed."""
_PIECE, _LEAD = 16, 8
_HELD_BYTES: Final = 2 << 30
"""Frames waiting for a process take no more memory than this, whatever the number of cores."""


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """What is made of a video."""

    kind: Kind
    """face: 68 landmarks (extra 'face'), and frames cut around the head. pose: body, hands, face and a map of body
    parts (mediapipe). edges: edge maps. palette: classes of colour and texture, found by themselves. labels: classes of
    a segmentation network, your own or torchvision's."""
    excerpt: Excerpt = field(default_factory=Excerpt)
    """Which part of the video, at what rate."""
    size: int | None = None
    """Shorter side of the frames that are written, in pixels; by default, and where the video is smaller, frames keep
    their size. Faces are square."""
    multiple: int = 16
    """Sides become multiples of this: frames are cut to it, evenly on both sides."""
    crop_bars: bool = True
    """Cut off black bars."""
    split_shots: bool = True
    """Make a sequence of each shot."""
    drop_repeats: bool = False
    """Leave out frames that show what the one before shows."""
    holdout: float = 0.2
    """Share of each sequence that is held out for testing: its end."""
    shortest: int = 12
    """Sequences of fewer frames are left out."""
    face: FaceConfig = field(default_factory=FaceConfig)
    """How faces are found."""
    pose: BodyConfig = field(default_factory=BodyConfig)
    """How people are found."""
    edges: EdgeConfig = field(default_factory=EdgeConfig)
    """Which edges are drawn."""
    palette: PaletteConfig = field(default_factory=PaletteConfig)
    """How a palette is fitted."""
    labels: LabelConfig = field(default_factory=LabelConfig)
    """Which network reads the labels, and how."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ConfigError(f"kind is one of {', '.join(get_args(Kind))}, got '{self.kind}'")
        if self.size is not None and not 32 <= self.size <= 4320:
            raise ConfigError(f"size is the shorter side, 32 to 4320 pixels, got {self.size}")
        if not 1 <= self.multiple <= 64 or (self.size is not None and self.size % self.multiple):
            raise ConfigError(f"multiple lies in 1 to 64 and divides size, got {self.multiple} and size {self.size}")
        if not 0 <= self.holdout <= 0.9:
            raise ConfigError(f"holdout is a share of 0 to 0.9, got {self.holdout}")
        if self.shortest < 2:
            raise ConfigError(f"the shortest sequence has at least 2 frames, got {self.shortest}")


class Shot(NamedTuple):
    """A sequence that will be written."""

    name: str
    """As its folders are called."""
    frames: tuple[int, ...]
    """Numbers of its frames in the video."""


class Losses:
    """Frames that are not written, and why."""

    def __init__(self) -> None:
        self.reasons: dict[str, int] = {}

    def add(self, reason: str, count: int) -> None:
        """Count some."""
        if count:
            self.reasons[reason] = self.reasons.get(reason, 0) + count


def prepare_video(
    video: Path, out: Path, config: PrepareConfig, *, num_workers: int = 0, overwrite: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> dict[str, Any]:  # fmt: skip
    """Make a data set of a video, in vid2vid's folder convention.

    ``train_*`` holds the beginning of every sequence, ``test_*`` the end of it. What was done is kept beside ``out``
    until all is there, so that the same call goes on where it was stopped; then ``out`` appears.

    Args:
        video: any file ffmpeg can decode.
        out: folder to make. One that was made by the same request from the same file is left as it is.
        config: what is made.
        num_workers: processes; 0 for one on each core. The files are the same.
        overwrite: replace a data set that was prepared otherwise. Other folders are never replaced.
        progress: told how far each stage is.

    Returns:
        The summary, as it is written into ``summary.json``.

    Raises:
        MediaError: if the video cannot be read.
        DataError: if nothing can be made of it, or ``out`` holds something else.
        MissingExtraError: if the kind needs packages that are not installed.
        ConfigError: if another process prepares the same folder.
    """
    video, out = Path(video), Path(out)
    _check_tools(config)
    request = _request(video, config)
    if (summary := _found(out, request, overwrite)) is not None:
        return summary
    first_look(video)  # what cannot be read leaves nothing behind
    kept = out.with_name(f".{out.name}.partial")
    kept.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(lock_folder(kept, "preparing a data set")):
        _begin(kept, request)
        workers = num_workers or usable_cores()
        try:
            with process_pool(workers) as executor:
                summary = _Preparation(video, kept, config, executor, workers, progress).run()
        except MediaError:
            shutil.rmtree(kept)  # the same call cannot go on from here
            raise
        except BrokenExecutor as error:
            raise DataError(
                f"{video}: a process that worked on it was ended from outside, for want of memory perhaps; run the "
                "same command again, with fewer --num-workers"
            ) from error
        write_json(kept / "data" / SUMMARY, {"schema": _SCHEMA, "request": request, **summary})
        if out.exists():
            shutil.rmtree(out)
        os.replace(kept / "data", out)
        shutil.rmtree(kept)
    return _read_json(out / SUMMARY)


def _begin(kept: Path, request: dict[str, Any]) -> None:
    """Keep what an earlier call with the same request has done, and nothing else."""
    if _read_json(kept / "request.json") != request:
        for entry in kept.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name != ".lock":
                entry.unlink()
    write_json(kept / "request.json", request)


def _check_tools(config: PrepareConfig) -> None:
    if config.kind == "face":
        landmarks.check_installed()
    if config.kind == "labels":
        segmenter_of(config.labels)


def _request(video: Path, config: PrepareConfig) -> dict[str, Any]:
    """What decides the files, through JSON so that it compares equal to what is read."""
    settings = asdict(config)
    for other in ("face", "pose", "edges", "palette", "labels"):
        if other != config.kind:
            settings.pop(other)
    settings.get("pose", {}).pop("python", None)  # where mediapipe is installed changes nothing
    if config.kind == "labels":
        for name, path in (("model", config.labels.model), ("weights", config.labels.weights)):
            settings["labels"][name] = path and file_digest(path)
    request = {"version": _VERSION, "video": video.name, "sha256": file_digest(video), "config": settings}
    return dict(json.loads(json.dumps(request)))


def file_digest(path: Path) -> str | None:
    """The sha256 of a file's content; None where there is no file, which is told where it is used."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _found(out: Path, request: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """The summary of ``out`` if it is what is asked for; refuses what may not be replaced."""
    if not out.exists():
        return None
    if not out.is_dir():
        raise DataError(f"{out} is a file; name a folder for the data set")
    if not any(out.iterdir()):
        return None
    summary = _read_json(out / SUMMARY)
    if summary is None:
        raise DataError(f"{out} is not empty and was not prepared from a video; name another folder")
    if summary.get("request") == request:
        return summary
    if not overwrite:
        raise DataError(
            f"{out} was prepared from another video or with other settings; name another folder or pass --overwrite"
        )
    return None


def read_summary(data: Path) -> dict[str, Any] | None:
    """What ``prepare_video`` wrote about a data set; None where it was not prepared from a video.

    Raises:
        DataError: if the file holds something else.
    """
    summary = _read_json(data / SUMMARY)
    if summary is not None and not (isinstance(summary, dict) and {"request", "video"} <= summary.keys()):
        raise DataError(f"{data / SUMMARY}: not a summary as fastv2v prepare writes it; prepare the video again")
    return summary


def prepared_fps(data: Path, otherwise: float) -> float:
    """Frames per second of the video a data set was prepared from, or ``otherwise`` where it was from none."""
    summary = read_summary(data)
    return otherwise if summary is None else float(summary["video"]["fps"])


def _read_json(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not a readable JSON file ({error}); remove {path.parent}") from error


class _Preparation:
    """One run of ``prepare_video``: its stages read top to bottom in ``run``."""

    def __init__(
        self, video: Path, kept: Path, config: PrepareConfig, executor: Executor, workers: int, progress: Progress
    ) -> None:
        self.video, self.kept, self.config = video, kept, config
        self.executor, self.workers, self.progress = executor, workers, progress
        self.losses = Losses()

    def run(self) -> dict[str, Any]:
        """All stages; returns what was done."""
        survey = self._survey()
        shots = self._shots(survey)
        looks = {
            "face": self._face,
            "pose": self._pose,
            "palette": self._palette,
            "edges": self._edges,
            "labels": self._labels,
        }
        shots, extra = looks[self.config.kind](survey, shots) if shots else ([], {})
        if not shots:
            raise DataError(f"{self.video}: no sequence of {self.config.shortest} frames is left ({self._why_lost()})")
        return self._summary(survey, shots, extra)

    def _survey(self) -> Survey:
        path = self.kept / "survey.json"
        if path.is_file():
            return Survey.from_json(_read_json(path))
        survey = survey_video(self.video, self.config.excerpt, self.progress)
        write_json(path, survey.to_json())
        if survey.damage:
            logger.warning("%s: %d frames can be read, then: %s", self.video, survey.num_frames, survey.damage)
        return survey

    def _shots(self, survey: Survey) -> list[Shot]:
        """The sequences as far as the frames alone decide them."""
        bounds = survey.shots() if self.config.split_shots else [(0, survey.num_frames)]
        repeats = set(survey.repeats) if self.config.drop_repeats else set()
        self.losses.add("repeats of the frame before", len(repeats))
        self.losses.add("behind the place where the video breaks off", survey.unread)
        runs = [tuple(i for i in range(*bound) if i not in repeats) for bound in bounds]
        return self._long_enough(runs)

    def _long_enough(self, runs: Sequence[Sequence[int]]) -> list[Shot]:
        short = sum(len(run) for run in runs if len(run) < self.config.shortest)
        self.losses.add(f"in sequences of fewer than {self.config.shortest} frames", short)
        runs = [run for run in runs if len(run) >= self.config.shortest]
        return [Shot(f"shot_{number:03d}", tuple(run)) for number, run in enumerate(runs)]

    def _why_lost(self) -> str:
        return ", ".join(f"{count} frames {reason}" for reason, count in self.losses.reasons.items()) or "none was read"

    def _work(
        self, stage: str, survey: Survey, shots: Sequence[Shot],
        work: Callable[[Piece], Callable[[list[Frame]], Found]], lead: int = 0, executor: Executor | None = None,
    ) -> dict[str, Found]:  # fmt: skip
        """One stage over all frames."""
        frames = read_frames(self.video, self.config.excerpt, survey, crop_bars=self.config.crop_bars)
        pieces = cut_into_pieces([shot.frames for shot in shots], _PIECE, lead)
        height, width = survey.size
        fitting = _HELD_BYTES // (3 * height * width * (_PIECE + lead))
        side_by_side = max(1, min(self.workers + 1, fitting))
        return work_through(
            stage, pieces, frames, work, self.kept, executor or self.executor, side_by_side, self.progress
        )

    def _writer(self, shots: Sequence[Shot]) -> FrameWriter:
        places: dict[int, Place] = {}
        for shot in shots:
            held_out = round(self.config.holdout * len(shot.frames))
            for position, number in enumerate(shot.frames):
                phase: Phase = "test" if position >= len(shot.frames) - held_out else "train"
                places[number] = Place(phase, shot.name, f"{number:06d}")
        return FrameWriter(self.kept / "data", CONDITIONS[self.config.kind], places)

    def _picture_size(self, survey: Survey) -> tuple[int, int]:
        """(height, width) of the frames as they are read."""
        if not self.config.crop_bars:
            return survey.size
        box = survey.picture
        return box.bottom - box.top, box.right - box.left

    def _edges(self, survey: Survey, shots: list[Shot]) -> tuple[list[Shot], dict[str, Any]]:
        fit = Fit.of(self._picture_size(survey), self.config.size, self.config.multiple)
        writer = self._writer(shots)

        def work(piece: Piece) -> Callable[[list[Frame]], Found]:
            return functools.partial(write_edges, piece, writer=writer.of(piece), fit=fit, config=self.config.edges)

        self._work("write", survey, shots, work, _LEAD)
        return shots, {"size": list(fit.size)}

    def _palette(self, survey: Survey, shots: list[Shot]) -> tuple[list[Shot], dict[str, Any]]:
        fit = Fit.of(self._picture_size(survey), self.config.size, self.config.multiple)
        samples = self._work("sample", survey, shots, lambda piece: functools.partial(sample_palette, piece, fit=fit))
        features, colours = (
            np.concatenate([samples[name][key] for name in sorted(samples)]) for key in ("features", "colours")
        )
        palette = fit_palette(features, colours, self.config.palette)
        writer = self._writer(shots)

        def work(piece: Piece) -> Callable[[list[Frame]], Found]:
            return functools.partial(
                write_palette, piece, writer=writer.of(piece), fit=fit, palette=palette, config=self.config.palette
            )

        self._work("write", survey, shots, work, _LEAD)
        names = [f"colour_{number:02d}" for number in range(len(palette.colours))]
        self._write_classes(names, palette.colours)
        write_json(self.kept / "data" / PALETTE_FILE, palette_record(palette, self.config.palette))
        return shots, {"size": list(fit.size), "classes": len(names)}

    def _labels(self, survey: Survey, shots: list[Shot]) -> tuple[list[Shot], dict[str, Any]]:
        fit = Fit.of(self._picture_size(survey), self.config.size, self.config.multiple)
        writer = self._writer(shots)

        def work(piece: Piece) -> Callable[[list[Frame]], Found]:
            return functools.partial(write_labels, piece, writer=writer.of(piece), fit=fit, config=self.config.labels)

        written = self._work("write", survey, shots, work, _LEAD)
        table = classes_of(max(int(found["largest"]) for found in written.values()), self.config.labels)
        self._write_classes(table.names, table.palette)
        return shots, {"size": list(fit.size), "classes": len(table.names)}

    def _write_classes(self, names: Iterable[str], colours: NDArray[np.uint8]) -> None:
        classes = [{"name": name, "color": colour} for name, colour in zip(names, colours.tolist(), strict=True)]
        write_json(self.kept / "data" / CLASSES_FILE, {"schema": 1, "classes": classes})

    def _face(self, survey: Survey, shots: list[Shot]) -> tuple[list[Shot], dict[str, Any]]:
        config = self.config.face
        look = functools.partial(functools.partial, landmarks.look_for_faces, config=config)
        looked = self._work("faces", survey, shots, look, config.detect_every)
        seen = {
            number: faces
            for piece in cut_into_pieces([shot.frames for shot in shots], _PIECE, config.detect_every)
            for number, faces in zip(piece.frames, _split(looked[piece.name]), strict=True)
        }
        if not any(map(len, seen.values())):
            raise DataError(
                f"{self.video}: no face was found in any of {len(seen)} frames; faces must look towards the camera and "
                "be an eighth of the picture's shorter side or more (--face.detection-side finds smaller ones)"
            )
        tracks: dict[int, NDArray[np.float64]] = {}
        boxes: dict[int, CropBox] = {}
        runs: list[list[int]] = []
        size = self._picture_size(survey)
        for shot in shots:
            followed = landmarks.follow_one([seen[number] for number in shot.frames], config.choose)
            self.losses.add("without a face", sum(face is None for face in followed))
            for run in _runs(followed):
                numbers = [shot.frames[i] for i in run]
                runs.append(numbers)
                track = landmarks.smooth_track(np.array([followed[i] for i in run]), config.smooth)
                tracks |= dict(zip(numbers, track, strict=True))
                if len(run) >= self.config.shortest:
                    boxes |= dict(zip(numbers, landmarks.head_crops(track, size, float(survey.fps)), strict=True))
        shots = self._long_enough(runs)
        if not shots:
            return [], {}
        sides = {box.right - box.left for box in boxes.values()}
        # One size for all sequences, that of the largest head unless told otherwise.
        side = Fit.of((max(sides), max(sides)), self.config.size, self.config.multiple).size[0]
        writer = self._writer(shots)

        def work(piece: Piece) -> Callable[[list[Frame]], Found]:
            faces = {number: (boxes[number], tracks[number]) for number in piece.frames}
            return functools.partial(write_face, piece, writer=writer.of(piece), side=side, faces=faces)

        self._work("write", survey, shots, work)
        several = sum(len(faces) > 1 for faces in seen.values())
        reaches_out = sum(
            box.left < 0 or box.top < 0 or box.right > size[1] or box.bottom > size[0] for box in boxes.values()
        )
        found = sum(map(bool, map(len, seen.values())))
        return shots, {
            "size": [side, side],
            "frames_with_a_face": found,
            "frames_looked_at": len(seen),
            "frames_with_several_faces": several,
            "frames_mirrored_at_the_border": reaches_out,
        }

    def _pose(self, survey: Survey, shots: list[Shot]) -> tuple[list[Shot], dict[str, Any]]:
        with BodyFinder(self.config.pose, self.workers) as finder, ThreadPoolExecutor(self.workers) as threads:
            looked = self._work(
                "people", survey, shots, lambda piece: functools.partial(finder.look, piece), _LEAD, threads
            )
        seen = {
            number: has
            for piece in cut_into_pieces([shot.frames for shot in shots], _PIECE, _LEAD)
            for number, has in zip(piece.frames, body.has_body(looked[piece.name]), strict=True)
        }
        if not any(seen.values()):
            raise DataError(f"{self.video}: nobody was found in any of {len(seen)} frames; choose another kind")
        self.losses.add("without a person", sum(not has for has in seen.values()))
        runs = [
            [shot.frames[i] for i in run]
            for shot in shots
            for run in _runs([seen[number] or None for number in shot.frames])
        ]
        places = {
            number: (looked[piece.name], position)
            for piece in cut_into_pieces([shot.frames for shot in shots], _PIECE, _LEAD)
            for position, number in enumerate(piece.frames)
        }
        shots = self._long_enough(runs)
        fit = Fit.of(self._picture_size(survey), self.config.size, self.config.multiple)
        writer = self._writer(shots)

        def work(piece: Piece) -> Callable[[list[Frame]], Found]:
            chosen = [places[number] for number in piece.frames]
            found = {name: np.stack([one[name][i] for one, i in chosen]) for name in chosen[0][0]}
            return functools.partial(
                write_pose, piece, writer=writer.of(piece), fit=fit, found=found, config=self.config.pose
            )

        self._work("write", survey, shots, work)
        return shots, {
            "size": list(fit.size),
            "frames_with_a_person": sum(seen.values()),
            "frames_looked_at": len(seen),
            "left_hands": sum(int((one["left_hand"][:, 0, 2] > 0).sum()) for one in looked.values()),
            "right_hands": sum(int((one["right_hand"][:, 0, 2] > 0).sum()) for one in looked.values()),
        }

    def _summary(self, survey: Survey, shots: Sequence[Shot], extra: dict[str, Any]) -> dict[str, Any]:
        kept = sum(len(shot.frames) for shot in shots)
        places = self._writer(shots).places
        return {
            "video": {
                "size": list(survey.size),
                "fps": float(survey.fps),
                "rate_made_constant": survey.resampled,
                "frames": survey.num_frames,
                "picture": list(survey.picture),
                "cuts": list(survey.cuts),
                "repeated_frames": list(survey.repeats),
                "damage": survey.damage,
            },
            "kept": kept,
            "train": sum(place.phase == "train" for place in places.values()),
            "test": sum(place.phase == "test" for place in places.values()),
            "lost": dict(self.losses.reasons),
            "sequences": {shot.name: {"frames": len(shot.frames), "first": shot.frames[0], "last": shot.frames[-1]}
                          for shot in shots},
            **extra,
        }  # fmt: skip


def _split(found: Found) -> list[NDArray[np.float64]]:
    """Faces of each frame of a piece."""
    return list(np.split(found["faces"], np.cumsum(found["counts"])[:-1]))


def _runs(followed: Sequence[object | None]) -> Iterator[list[int]]:
    """Positions that follow each other and have something."""
    run: list[int] = []
    for position, item in enumerate((*followed, None)):
        if item is not None:
            run.append(position)
        elif run:
            yield run
            run = []


class Place(NamedTuple):
    """Where a frame belongs in the data set."""

    phase: Phase
    sequence: str
    stem: str


@dataclass(frozen=True)
class FrameWriter:
    """Knows under which name each file of a data set is written."""

    root: Path
    """Folder of the data set."""
    condition: Condition
    """What it will be read as."""
    places: dict[int, Place]
    """By number of the frame."""

    def of(self, piece: Piece) -> FrameWriter:
        """The same for the frames of a piece alone, which is little to hand to another process."""
        return replace(self, places={number: self.places[number] for number in piece.frames})

    def path(self, modality: str, number: int, extension: str) -> Path:
        """Of one file of a frame."""
        place, kind = self.places[number], place_of(modality, self.condition)
        name = f"{place.stem}{kind.stem_end}{extension}"
        return kind.directory(self.root, "vid2vid", place.phase) / place.sequence / name

    def image(self, modality: str, number: int, rgb: Frame) -> None:
        """Write a picture, without loss."""
        write_image(self.path(modality, number, ".png"), rgb)

    def plane(self, modality: str, number: int, values: NDArray[np.uint8]) -> None:
        """Write a map of ids, (H, W)."""
        done, data = cv2.imencode(".png", values)
        assert done
        write_bytes(self.path(modality, number, ".png"), data.tobytes())


@dataclass(frozen=True)
class Fit:
    """How frames are brought to the size that is written: scaled, then cut evenly on both sides."""

    scaled: tuple[int, int]
    """(height, width) before the cut."""
    size: tuple[int, int]
    """(height, width) that is written."""

    @classmethod
    def of(cls, source: tuple[int, int], side: int | None, multiple: int) -> Fit:
        """The fit of frames of a size.

        Args:
            source: their (height, width).
            side: shorter side wanted; None, or more than there is, keeps the size.
            multiple: what both sides must be multiples of.

        Raises:
            DataError: if the frames are smaller than one multiple.
        """
        scale = min(1.0, (side or min(source)) / min(source))
        scaled = round(source[0] * scale), round(source[1] * scale)
        size = scaled[0] // multiple * multiple, scaled[1] // multiple * multiple
        if not min(size):
            raise DataError(f"frames of {source[1]}x{source[0]} pixels are too small; a side has at least {multiple}")
        return cls(scaled, size)

    def __call__(self, frame: Frame) -> Frame:
        """The frame as it is written."""
        if frame.shape[:2] != self.scaled:
            frame = cv2.resize(frame, self.scaled[::-1], interpolation=cv2.INTER_AREA).astype(np.uint8)
        top, left = (self.scaled[0] - self.size[0]) // 2, (self.scaled[1] - self.size[1]) // 2
        return np.ascontiguousarray(frame[top : top + self.size[0], left : left + self.size[1]])


def sample_palette(piece: Piece, frames: list[Frame], *, fit: Fit) -> Found:
    """``sample_pixels`` of frames as they will be written."""
    return sample_pixels(piece, [fit(frame) for frame in frames])


def write_edges(piece: Piece, frames: list[Frame], *, writer: FrameWriter, fit: Fit, config: EdgeConfig) -> Found:
    """Write the frames of a piece and their edges."""
    fitted = [fit(frame) for frame in frames]
    drawn = list(draw_edges(fitted, config))[len(piece.lead) :]
    for number, frame, edges in zip(piece.frames, fitted[len(piece.lead) :], drawn, strict=True):
        writer.image("frames", number, frame)
        writer.image("maps", number, cv2.merge([edges, edges, edges]).astype(np.uint8))
    return {}


def write_palette(
    piece: Piece, frames: list[Frame], *, writer: FrameWriter, fit: Fit, palette: Palette, config: PaletteConfig
) -> Found:
    """Write the frames of a piece and their classes."""
    fitted = [fit(frame) for frame in frames]
    drawn = list(draw_palette(fitted, palette, config))[len(piece.lead) :]
    for number, frame, labels in zip(piece.frames, fitted[len(piece.lead) :], drawn, strict=True):
        writer.image("frames", number, frame)
        writer.plane("labels", number, labels)
    return {}


def write_labels(piece: Piece, frames: list[Frame], *, writer: FrameWriter, fit: Fit, config: LabelConfig) -> Found:
    """Write the frames of a piece and what a network reads in them."""
    fitted = [fit(frame) for frame in frames]
    drawn = list(draw_labels(fitted, segmenter_of(config), config))[len(piece.lead) :]
    for number, frame, labels in zip(piece.frames, fitted[len(piece.lead) :], drawn, strict=True):
        writer.image("frames", number, frame)
        writer.plane("labels", number, labels)
    return {"largest": np.array(max(int(labels.max()) for labels in drawn))}


def write_face(
    piece: Piece, frames: list[Frame], *, writer: FrameWriter, side: int,
    faces: dict[int, tuple[CropBox, NDArray[np.float64]]],
) -> Found:  # fmt: skip
    """Write the heads of a piece and their landmarks, in pixels of what is written."""
    for number, frame in zip(piece.frames, frames, strict=True):
        box, points = faces[number]
        scale = side / (box.right - box.left)
        head = landmarks.crop_mirrored(frame, box)
        if scale != 1:
            method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
            head = cv2.resize(head, (side, side), interpolation=method)
        writer.image("frames", number, np.ascontiguousarray(head.astype(np.uint8)))
        # Pixel centres: the middle of the first source pixel is the middle of scale written ones.
        points = (points - (box.left, box.top) + 0.5) * scale - 0.5
        text = "".join(f"{x:.2f},{y:.2f}\n" for x, y in points)
        write_bytes(writer.path("keypoints", number, MODALITIES["keypoints"].extensions[0]), text.encode())
    return {}


def write_pose(
    piece: Piece, frames: list[Frame], *, writer: FrameWriter, fit: Fit, found: Found, config: BodyConfig
) -> Found:
    """Write the frames of a piece with the points of the person, and the map of body parts."""
    for position, (number, frame) in enumerate(zip(piece.frames, frames, strict=True)):
        cut = body.cut_to(found, position, fit.scaled, fit.size)
        content = body.to_openpose(cut, 0, fit.size, config.confidence)
        parts = body.part_map(content, cut["mask"][0], fit.size, config.min_mask)
        writer.image("frames", number, fit(frame))
        writer.image("densepose", number, parts)
        write_bytes(writer.path("openpose", number, ".json"), json.dumps(content).encode())
    return {}
