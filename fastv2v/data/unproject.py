"""Make the unprojections of a data set: from depth and pose, from plain frames, or from the procedural world itself.

Torch-free. Each sequence appears whole or not at all, with ``about.json`` (where its points come from, how much they
cover) and ``coverage.png`` (frames, what earlier frames painted of them, and what has points) beside its files.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Protocol, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from fastv2v.data.cameras import Camera, read_intrinsics, read_pose
from fastv2v.data.classes import read_classes
from fastv2v.data.conditions import MAX_GUIDANCE_LEVELS
from fastv2v.data.images import read_image, read_label
from fastv2v.data.modalities import MODALITIES, Layout, Modality, Phase, list_sequences
from fastv2v.data.packed import data_path, is_packed
from fastv2v.data.painter import ArrayWorld, empty_world, paint, render
from fastv2v.data.registration import PointRegister, PosedDepth, RegistrationConfig, seen_from
from fastv2v.data.sequences import by_number
from fastv2v.data.sfm import NoMotionError, Notice, SfmConfig, reconstruct
from fastv2v.data.unprojection import Levels, pyramid, write_unprojection
from fastv2v.data.world.config import WorldConfig
from fastv2v.data.world.render import render_clip
from fastv2v.data.world.write import RECORD, RENDERER_VERSION
from fastv2v.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

PointSource = Literal["auto", "depth", "sfm", "world"]
"""Where points come from."""
Progress = Callable[[int, int, str], None]
"""Called with frames done, frames in all, and what is being done."""

MOVABLE: Final = (
    "car",
    "truck",
    "bus",
    "train",
    "motorcycle",
    "bicycle",
    "person",
    "rider",
    "cyclist",
    "pedestrian",
    "bicyclist",
    "sky",
)
"""Classes whose points would paint a wrong place later, and sky."""

ABOUT: Final = "about.json"
PICTURE: Final = "coverage.png"
_SCHEMA: Final = 1
_FRAMES: Final = (MODALITIES["frames"], MODALITIES["frames"]._replace(suffix="img", folder="img"))
_DEPTH: Final = Modality("depth", "depth", "depth map", "label")
_CAMERA: Final = Modality("camera", "camera", "camera pose", "label", (".txt",))
_INTRINSICS: Final = "intrinsics"
_MILLIMETRE: Final = 0.001
_NO_DEPTH: Final = 65535
_LITTLE: Final = 0.02
_SHOWN, _SHOWN_WIDTH = 6, 200


@dataclass(frozen=True, kw_only=True)
class UnprojectConfig:
    """Where points come from, and what is written."""

    source: PointSource = "auto"
    """``depth``: depth maps and camera poses (``<phase>_depth``, ``<phase>_camera``). ``sfm``: plain frames, by
    structure from motion (extra ``world``). ``world``: the procedural street, exact. ``auto``: what the data set has,
    in the order world, depth, sfm."""
    levels: int = MAX_GUIDANCE_LEVELS
    """Levels that are written, each half the size of the one before."""
    movable: tuple[str, ...] = MOVABLE
    """Classes that get no points, where there are label maps with named classes (not for the procedural street, where
    points move with their objects)."""
    phases: tuple[Phase, ...] = ("train", "test")
    """Which parts of the data set."""
    file_format: Literal["npz", "pkl"] = "npz"
    """``pkl``: imaginaire's layout."""
    colour_focal: float | None = None
    """Focal length in pixels of the camera that took the frames, where intrinsics and poses are those of a depth
    sensor beside it (``depth``). ``None``: depth maps and frames were taken by one camera, or fit already."""
    colour_shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """With ``colour_focal``: what is added to coordinates of the depth sensor to have those of the other camera, in
    metres (x right, y down, z forward)."""
    registration: RegistrationConfig = field(default_factory=RegistrationConfig)
    """When a known point and a pixel are the same place (``depth``, ``sfm``)."""
    sfm: SfmConfig = field(default_factory=SfmConfig)
    """How plain frames are reconstructed."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "movable", tuple(self.movable))
        object.__setattr__(self, "phases", tuple(self.phases))
        if self.source not in get_args(PointSource):
            raise ConfigError(f"source is one of {', '.join(get_args(PointSource))}, got '{self.source}'")
        if not 1 <= self.levels <= MAX_GUIDANCE_LEVELS:
            raise ConfigError(f"levels is 1 to {MAX_GUIDANCE_LEVELS}, got {self.levels}")
        object.__setattr__(self, "colour_shift", tuple(self.colour_shift))
        if self.colour_focal is not None and self.colour_focal <= 0:
            raise ConfigError(f"colour_focal must be above 0 pixels, got {self.colour_focal}")
        if self.colour_focal is None and any(self.colour_shift):
            raise ConfigError("colour_shift goes with colour_focal; give both")
        if self.file_format not in ("npz", "pkl"):
            raise ConfigError(f"file_format is npz or pkl, got '{self.file_format}'")
        if not self.phases or not set(self.phases) <= set(get_args(Phase)):
            raise ConfigError(f"phases are train and test, got {self.phases}")


class Video(NamedTuple):
    """The frames of one sequence."""

    phase: Phase
    layout: Layout
    name: str
    """Path of its folder below the phase."""
    frames: Mapping[str, Path]
    """Pictures by stem, in order of time."""


class Seen(NamedTuple):
    """The points of one frame."""

    ids: NDArray[np.int32]
    """(H, W), -1 for none."""
    depth: NDArray[np.floating]
    """(H, W), in any unit; used where there is a point."""


@dataclass(frozen=True)
class Coverage:
    """How much of a sequence has points, and how well they keep their colours."""

    phase: str
    """Part of the data set."""
    sequence: str
    """Path of the sequence."""
    source: str
    """Where its points come from."""
    num_frames: int
    """Frames of the sequence."""
    frames_without: tuple[str, ...]
    """Stems of frames without points."""
    num_points: int
    """Points of the sequence."""
    covered: tuple[float, ...]
    """Share of pixels that show a point, of each level, over frames that have points."""
    guided: tuple[float, ...]
    """Share of pixels that earlier frames have painted, of each level, over all frames but the first."""
    colour_error: float
    """Mean absolute difference between painted colours and the frame they are shown in, 8-bit levels; painted with real
    frames, over the same frames. Above 8 on slow video, with little change of light, something is wrong."""
    kept: float
    """Share of a frame's points that the frame before showed too."""
    failure: str = ""
    """Why there are none, where structure from motion did not succeed."""


def find_videos(root: Path, phases: Sequence[Phase]) -> tuple[Video, ...]:
    """The sequences of a data set by their frames, whatever else it holds.

    Args:
        root: its folder, or a packed data set; vid2vid's or Fast-Vid2Vid's layout, frames in ``B`` or ``img``.
        phases: which parts.

    Raises:
        DataError: if there are no frames.
    """
    root = data_path(root)
    videos = []
    for phase in phases:
        for layout in get_args(Layout):
            for place in _FRAMES:
                directory = place.directory(root, layout, phase)
                found = list_sequences(directory, place) if directory.is_dir() else {}
                for name, stems in found.items():
                    ordered = {stem: stems[stem] for stem in sorted(stems, key=by_number)}
                    videos += [Video(phase, layout, name, ordered)] if ordered else []
    if not videos:
        raise DataError(f"{root}: there are no frames; looked for train_B, train_img, B/train and img/train")
    return tuple(videos)


def unproject_folder(
    root: Path,
    config: UnprojectConfig,
    *,
    out: Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[Coverage, ...]:
    """Write which point of the world is seen at which pixel of every frame.

    Args:
        root: the data set.
        config: where points come from.
        out: where ``<phase>_unprojections`` are written; beside the frames by default.
        overwrite: make sequences again that are there. Otherwise those that were made with equal settings are kept, and
            those made with others are an error.
        progress: called after each frame, and before each step of structure from motion.

    Returns:
        What each sequence got. One whose cameras cannot be found gets no points, with a warning, and is tried again by
        the next call.

    Raises:
        DataError: if the data set lacks what the source needs, a file is damaged or has another size, or nothing at all
            gets points.
        MissingExtraError: if structure from motion is wanted and not installed.
    """
    out = Path(root) if out is None else out
    videos = find_videos(root, config.phases)
    if is_packed(out):
        raise DataError(f"{root} is packed and never changed; give --out, or unproject its folder and pack that")
    source = _settled(data_path(root), videos, config.source)
    total, done = sum(len(video.frames) for video in videos), 0
    results = []
    for video in videos:
        target = MODALITIES["unprojections"].directory(out, video.layout, video.phase) / video.name
        kept = _kept(target, source, config, overwrite)
        if kept is None:

            def advance(frames: int, text: str = "", *, base: int = done, name: str = video.name) -> None:
                if progress is not None:
                    progress(base + frames, total, f"{name}: {text}" if text else name)

            kept = _unproject_video(data_path(root), video, source, config, target, advance)
        results.append(kept)
        done += len(video.frames)
        if progress is not None:
            progress(done, total, video.name)
        _judge(kept)
    if not any(result.num_points for result in results):
        why = next((result.failure for result in results if result.failure), "check depth maps, poses and classes")
        raise DataError(f"{root}: no frame of any sequence has a point (source {source}); {why}")
    return tuple(results)


class _Advance(Protocol):
    """Takes the frames of a sequence that are done, and what is being done."""

    def __call__(self, frames: int, text: str = "") -> None: ...


def _settled(root: Path, videos: Sequence[Video], source: PointSource) -> Literal["depth", "sfm", "world"]:
    """The source that ``auto`` stands for."""
    if source != "auto":
        return source
    if (root / RECORD).is_file():
        return "world"
    has_depth = any(_DEPTH.directory(root, video.layout, video.phase).is_dir() for video in videos)
    chosen: Literal["depth", "sfm"] = "depth" if has_depth else "sfm"
    logger.info("%s: points come from %s", root, {"depth": "depth and pose", "sfm": "structure from motion"}[chosen])
    return chosen


def _unproject_video(
    root: Path, video: Video, source: str, config: UnprojectConfig, target: Path, progress: _Advance
) -> Coverage:
    """Write one sequence beside its place, and move it there."""
    makers: dict[str, Callable[[Path, Video, UnprojectConfig, Notice], Iterator[Seen | None]]] = {
        "depth": _from_depth,
        "sfm": _from_frames,
        "world": _from_world,
    }
    failure = ""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    try:
        folder = scratch / "new"
        folder.mkdir()
        tally = _Tally(config.levels)
        made = makers[source](root, video, config, partial(progress, 0))
        try:
            for number, (stem, seen) in enumerate(zip(video.frames, made, strict=True), 1):
                picture = read_image(video.frames[stem])
                if seen is not None and seen.ids.shape != picture.shape[:2]:
                    raise DataError(f"{video.frames[stem]} and its points differ in size: {seen.ids.shape}")
                levels = None if seen is None else pyramid(seen.ids, seen.depth, config.levels)
                if levels is not None:
                    write_unprojection(folder / f"{stem}.{config.file_format}", levels)
                tally.add(stem, picture, levels)
                progress(number)
        except NoMotionError as error:  # comes before the first frame
            failure = str(error)
            logger.warning("sequence '%s' (%s): %s", video.name, video.phase, failure)
            for stem in video.frames:
                tally.skip(stem)
        coverage = replace(tally.result(video, source), failure=failure)
        about = {"schema": _SCHEMA, "request": _request(source, config), "coverage": asdict(coverage)}
        about |= {"convention": "pixel centres are whole numbers", "versions": _versions(source)}
        (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        cv2.imwrite(str(folder / PICTURE), tally.sheet()[..., ::-1])
        if target.exists():
            os.replace(target, scratch / "old")
        os.replace(folder, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return coverage


def _request(source: str, config: UnprojectConfig) -> dict[str, Any]:
    """Everything that decides what is written, as JSON gives it back."""
    ours = asdict(config) | {"source": source}
    for name, used_by in {"registration": ("depth", "sfm"), "sfm": ("sfm",), "movable": ("depth", "sfm")}.items():
        if source not in used_by:
            ours.pop(name)
    ours.pop("phases")
    answer: dict[str, Any] = json.loads(json.dumps(ours))
    return answer


def _kept(target: Path, source: str, config: UnprojectConfig, overwrite: bool) -> Coverage | None:
    """What an earlier run made of a sequence, if that is what is wanted and it succeeded."""
    if overwrite or not target.is_dir() or not any(target.iterdir()):
        return None
    try:
        about = json.loads((target / ABOUT).read_text(encoding="utf-8"))
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in about["coverage"].items()}
        coverage = Coverage(**fields)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{target} holds unprojections of another origin; choose --out, or --overwrite") from error
    if coverage.failure:
        return None
    if about.get("request") != _request(source, config):
        raise DataError(f"{target} was made with other settings ({ABOUT}); choose --out, or --overwrite")
    return coverage


def _judge(coverage: Coverage) -> None:
    """Warn, with numbers, where guidance will be of little use."""
    where = f"sequence '{coverage.sequence}' ({coverage.phase})"
    if coverage.frames_without:
        named = ", ".join(coverage.frames_without[:3]) + (", ..." if len(coverage.frames_without) > 3 else "")
        logger.warning(
            "%s: %d of %d frames have no points (%s); they are trained without guidance",
            where,
            len(coverage.frames_without),
            coverage.num_frames,
            named,
        )
    if not coverage.num_points:
        logger.warning("%s: no pixel has a point; it is trained as plain vid2vid", where)
    elif coverage.num_frames > 1 and coverage.guided[0] < _LITTLE:
        logger.warning(
            "%s: earlier frames paint %.1f %% of the pixels (%.1f %% have points); guidance covers next to nothing and "
            "the sequence is trained as plain vid2vid",
            where,
            100 * coverage.guided[0],
            100 * coverage.covered[0],
        )


def _versions(source: str) -> dict[str, str]:
    names = ("numpy", "opencv-python", *(("pycolmap",) if source == "sfm" else ()))
    return {name: importlib.metadata.version(name) for name in names}


# --------------------------------------------------------------------------------------------------------- sources


def posed_frames(root: Path, video: Video, config: UnprojectConfig) -> Iterator[PosedDepth | None]:
    """Depth and pose of each frame of a sequence, read from ``<phase>_depth`` and ``<phase>_camera``.

    Depth maps are 16 bits, in millimetres; 0 and 65535 (as in the original 7-Scenes) are none. Poses are 4x4
    camera-to-world; ``intrinsics.txt`` is 3x3 and lies beside the poses, above them or in the data set's folder.

    Args:
        root: of the data set.
        video: the sequence.
        config: which camera took the frames, what is movable.

    Yields:
        In the order of frames; ``None`` for those without depth or pose.

    Raises:
        DataError: if folders or intrinsics are missing, no frame has both, or a file is damaged or of another size.
    """
    cameras = _CAMERA.directory(root, video.layout, video.phase)
    depths = _DEPTH.directory(root, video.layout, video.phase)
    lacking = [str(d.relative_to(root)) for d in (depths, cameras) if not d.is_dir()]
    if lacking:
        raise DataError(
            f"{root}: the folder {' and '.join(lacking)} is missing; give depth maps and poses, or --source"
        )
    depth_files = list_sequences(depths, _DEPTH).get(video.name, {})
    poses = dict(list_sequences(cameras, _CAMERA).get(video.name, {}))
    candidates = (poses.pop(_INTRINSICS, None), cameras / f"{_INTRINSICS}.txt", root / f"{_INTRINSICS}.txt")
    intrinsics = next((path for path in candidates if path is not None and path.is_file()), None)
    if intrinsics is None:
        raise DataError(
            f"{cameras / video.name}: there is no {_INTRINSICS}.txt, here, above or in {root}; add 3x3 numbers"
        )
    camera = Camera(read_intrinsics(intrinsics))
    if not any(stem in depth_files and stem in poses for stem in video.frames):
        raise DataError(
            f"{root}: no frame of sequence '{video.name}' has a depth map and a pose of the same name; "
            f"{len(depth_files)} depth maps and {len(poses)} poses were found"
        )
    moving = _MovingMask(root, video, config.movable)
    size: tuple[int, ...] | None = None
    for stem, path in video.frames.items():
        if stem not in depth_files or stem not in poses:
            yield None
            continue
        stored = read_label(depth_files[stem])
        depth = np.where(stored == _NO_DEPTH, 0, stored).astype(np.float32) * np.float32(_MILLIMETRE)
        size = size or read_image(path).shape[:2]
        if depth.shape != size:
            raise DataError(
                f"{depth_files[stem]} is {depth.shape[1]}x{depth.shape[0]} pixels and the frames "
                f"{size[1]}x{size[0]}; scale depth maps to the frames, with the nearest pixel"
            )
        pose, taken_by = read_pose(poses[stem]), camera
        if config.colour_focal is not None:
            taken_by = _colour_camera(config.colour_focal, depth.shape)
            depth = seen_from(depth, camera, taken_by, config.colour_shift)
            pose[:3, 3] -= pose[:3, :3] @ config.colour_shift
        yield PosedDepth(depth, taken_by, pose, moving.of(stem, depth.shape))


def _from_depth(root: Path, video: Video, config: UnprojectConfig, _: Notice) -> Iterator[Seen | None]:
    """Registration of depth maps with their poses."""
    points = PointRegister(config.registration)
    for frame in posed_frames(root, video, config):
        yield None if frame is None else Seen(points.add(frame), frame.depth)


def _colour_camera(focal: float, size: tuple[int, ...]) -> Camera:
    """A camera whose axis meets the middle of the picture."""
    return Camera(np.array([[focal, 0, (size[1] - 1) / 2], [0, focal, (size[0] - 1) / 2], [0, 0, 1]]))


def _from_frames(root: Path, video: Video, config: UnprojectConfig, notice: Notice) -> Iterator[Seen | None]:
    """Structure from motion, then registration of the depth that it gives."""
    moving = _MovingMask(root, video, config.movable)
    # Depth is in no unit: only tolerances relative to it have a meaning.
    tolerances = asdict(config.registration) | {"absolute_tolerance": 0.0, "min_depth": 1e-9, "max_depth": 1e12}
    points = PointRegister(RegistrationConfig(**tolerances))
    for frame in reconstruct(video.frames, config.sfm, excluded=moving.of, notice=notice):
        yield None if frame is None else Seen(points.add(frame), frame.depth)


def _from_world(root: Path, video: Video, config: UnprojectConfig, _: Notice) -> Iterator[Seen | None]:
    """The renderer's own points."""
    path = root / RECORD
    if not path.is_file():
        raise DataError(f"{root} is no procedural world (it has no {RECORD}); choose another --source")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        world = WorldConfig(**record["config"] | {"size": tuple(record["config"]["size"])})
        clip = int(video.name.removeprefix("clip_"))
        renderer = record["renderer"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} or the name of '{video.name}' is not of this program; make the world again") from error
    if renderer != RENDERER_VERSION or world.num_frames != len(video.frames):
        raise DataError(f"{root}: '{video.name}' was drawn otherwise than this version would; make the world again")
    for frame in render_clip(world, clip, points=True):
        assert frame.points is not None
        yield Seen(frame.points, frame.depth)


class _MovingMask:
    """Which pixels show movable classes, from the label maps of a sequence."""

    def __init__(self, root: Path, video: Video, movable: Sequence[str]) -> None:
        place = MODALITIES["labels"]
        table = read_classes(root)
        directory = place.directory(root, video.layout, video.phase)
        has_labels = table is not None and directory.is_dir()
        self._files = list_sequences(directory, place).get(video.name, {}) if has_labels else {}
        self._ids = [] if table is None else [i for i, name in enumerate(table.names) if name.lower() in movable]

    def of(self, stem: str, size: tuple[int, ...]) -> NDArray[np.bool_] | None:
        """(H, W); ``None`` where there is no label map, or no such class."""
        if not self._ids or stem not in self._files:
            return None
        labels = read_label(self._files[stem])
        if labels.shape != size:
            raise DataError(f"{self._files[stem]} is {labels.shape[1]}x{labels.shape[0]} pixels and the frames are not")
        return np.isin(labels, self._ids)


# ------------------------------------------------------------------------------------------------------- coverage


class _Tally:
    """Plays a sequence through with its real frames: what earlier ones painted, and how far it is off."""

    def __init__(self, num_levels: int) -> None:
        self._world: ArrayWorld = empty_world()
        self._num_levels = num_levels
        self._without: list[str] = []
        self._covered: list[list[float]] = []
        self._guided: list[list[float]] = []
        self._errors: list[float] = []
        self._kept: list[float] = []
        self._last: NDArray[np.int32] | None = None
        self._shown: list[NDArray[np.uint8]] = []
        self._stride = 1
        self._frames = 0

    def skip(self, stem: str) -> None:
        """Count one more frame, which has no points."""
        self._frames += 1
        self._without.append(stem)
        self._guided += [[0.0] * self._num_levels] if self._frames > 1 else []

    def add(self, stem: str, picture: NDArray[np.uint8], levels: Levels | None) -> None:
        """Play one more frame."""
        if levels is None:
            self.skip(stem)
            return
        self._frames += 1
        frame = (picture.astype(np.float32) / 127.5 - 1).transpose(2, 0, 1)
        guidance = render(self._world, levels[0])
        shares = [float(guidance[3].mean()), *(float(render(self._world, ids)[3].mean()) for ids in levels[1:])]
        self._covered.append([float((ids >= 0).mean()) for ids in levels])
        if self._frames > 1:
            self._guided.append(shares)
        mask = guidance[3] > 0
        if mask.any():
            self._errors.append(float(np.abs(guidance[:3] - frame)[:, mask].mean() * 127.5))
        now = np.unique(levels[0][levels[0] >= 0])
        if self._last is not None and len(now):
            self._kept.append(float(np.isin(now, self._last, assume_unique=True).mean()))
        self._last = now
        if (self._frames - 1) % self._stride == 0:
            self._shown.append(_strip(picture, guidance, levels[0]))
        if len(self._shown) > 2 * _SHOWN:  # every second one, so that the sheet spans any length in little memory
            self._shown, self._stride = self._shown[::2], 2 * self._stride
        self._world = paint(self._world, frame, levels[0])

    def result(self, video: Video, source: str) -> Coverage:
        """The numbers of the sequence."""
        levels = [values for values in (self._covered, self._guided) if values]
        width = min((len(row) for values in levels for row in values), default=self._num_levels)

        def mean(rows: list[list[float]]) -> tuple[float, ...]:
            columns = [[row[k] for row in rows] for k in range(width)]
            return tuple(round(float(np.mean(column)), 4) if column else 0.0 for column in columns)

        return Coverage(
            phase=video.phase,
            sequence=video.name,
            source=source,
            num_frames=self._frames,
            frames_without=tuple(self._without),
            num_points=len(self._world.seen),
            covered=mean(self._covered),
            guided=mean(self._guided),
            colour_error=round(float(np.mean(self._errors)), 3) if self._errors else 0.0,
            kept=round(float(np.mean(self._kept)), 4) if self._kept else 0.0,
        )

    def sheet(self) -> NDArray[np.uint8]:
        """Some frames side by side: as they are, as earlier ones painted them, and what has points."""
        if not self._shown:
            return np.zeros((8, 8, 3), np.uint8)
        chosen = np.linspace(0, len(self._shown) - 1, min(_SHOWN, len(self._shown))).round().astype(int)
        return np.concatenate([self._shown[i] for i in chosen], axis=1)


def _strip(picture: NDArray[np.uint8], guidance: NDArray[np.float32], ids: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Three small pictures above each other. In the last one green is painted, red has a point, black has none."""
    painted = np.where(guidance[3] > 0, (guidance[:3] + 1) * 127.5, 0).round().astype(np.uint8).transpose(1, 2, 0)
    state = np.zeros_like(picture)
    state[ids >= 0] = (190, 60, 50)
    state[guidance[3] > 0] = (70, 160, 80)
    height = max(round(_SHOWN_WIDTH * picture.shape[0] / picture.shape[1]), 1)
    small = [
        cv2.resize(image, (_SHOWN_WIDTH, height), interpolation=cv2.INTER_AREA) for image in (picture, painted, state)
    ]
    return np.concatenate(small)
