"""``fastv2v stream``: label maps in, every frame out. Runs without torch."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from export.bundle import Manifest
from export.camera import Camera
from export.convert import check_plain, scale
from export.engines import AUTO, parse_engine, this_machine
from export.runtime import ConditionMap, DeliveredFrame, Stream, StreamError, filling_threads, open_bundle
from export.sources import (
    camera_conditions,
    check_drawn,
    condition_files,
    instance_files,
    piped_conditions,
    read_conditions,
    read_seed,
    settle_missing,
    unprojection_files,
    video_conditions,
)
from fastv2v.commands.arguments import parse
from fastv2v.commands.driving import DrivingArgs, Told, open_driver
from fastv2v.data.conditions import maps_to_float
from fastv2v.data.face import FaceConfig
from fastv2v.data.folder import FolderConfig, FrameReader, Phase, VideoFolder, open_folder
from fastv2v.data.images import read_image
from fastv2v.data.pose import PoseConfig
from fastv2v.data.reader import points_key
from fastv2v.data.sequences import Missing
from fastv2v.data.transforms import Geometry, GeometryConfig, Size, draw_geometry
from fastv2v.errors import ConfigError, DataError, FastV2VError
from fastv2v.places import check_place
from fastv2v.video import VIDEO_SUFFIXES, VideoWriter, probe_video, write_image

_LOG = logging.getLogger(__name__)
PIPE: Final = Path("-")
"""Names standard input or output."""


@dataclass(frozen=True, kw_only=True)
class StreamArgs:
    """Run a bundle over label maps of a folder, video, camera, pipe or data set, or let somebody else drive it."""

    bundle: Path
    """Bundle folder, NAME.v2v."""
    out: Path | None = None
    """Video to write (.mp4, .mkv), or a folder for PNG frames; either appears when it is complete. - writes raw RGB to
    standard output, H x W x 3 bytes a frame, as they come; what is else told goes to standard error then."""
    window: bool = False
    """Show the frames in a window as they come; q closes it and ends the stream."""
    conditions: Path | None = None
    """Folder of one sequence's label maps or condition images, all of one size, in the order of the numbers in their
    names. Or a video of them: class ids in grey where it is lossless, else the colours of the bundle's classes. Or -
    for raw bytes from standard input, of the bundle's size: H x W class ids a frame, or H x W x 3 of a picture. For
    faces and poses, which are drawn from landmarks and key points, give --data instead."""
    camera: str | None = None
    """Camera to take pictures from, by its number (0 is the first) or address: what a picture means is as for a video.
    The oldest waiting one is dropped where they come too fast. Ctrl-C, q in the window and --frames end it, and what
    was made until then is kept."""
    frames: int | None = None
    """Stop after this many frames; all by default."""
    missing: Missing = "fail"
    """What is done where numbers are missing between the files of a folder: fail, hold the one before in their place,
    or skip them."""
    drive: str | None = None
    """Somebody else, who moves the model: a video of another face or body, a data set of one (fastv2v prepare), or the
    number of a camera. Landmarks and joints are fitted to the trained person. Models of edges, palettes and labels are
    driven by any video."""
    driving: DrivingArgs = field(default_factory=DrivingArgs)
    """How --drive is fitted, and what is told of it."""
    data: Path | None = None
    """Data set folder to take a sequence from, read as ``fastv2v synthesize`` reads it."""
    sequence: str | None = None
    """Which sequence of --data, or of a data set that drives; the first by default."""
    phase: Phase = "test"
    """Which part of it."""
    test_tail: int = 0
    """Frames at the end of each of its training sequences that make its phase ``test``, where it has no test part."""
    given_frame: bool = False
    """Start from the real first frame of the sequence of --data."""
    instances: Path | None = None
    """Folder of instance maps with the same names, where the bundle uses them."""
    unprojections: Path | None = None
    """Folder of unprojections with the same names, where the bundle is guided by its painted world, such as
    DATA/test_unprojections/SEQUENCE. With --data they are found by themselves."""
    seed_frame: Path | None = None
    """Real picture of the first frame to start from; without it the stream starts from nothing."""
    engine: str = AUTO
    """Engine, as NAME or NAME:PRECISION (openvino:bf16, torch:f16); auto takes the fastest that was measured and
    accepted at export."""
    device: str | None = None
    """cuda, cuda:1 ... or cpu: make, keep and fill in all frames there with torch, so that they leave a GPU once. Takes
    the engines torch, torch-compiled and tensorrt. By default gaps are filled on the CPU."""
    flow: Literal["search", "raft"] = "search"
    """With --device, what finds the motion that gaps are filled by: a search, or RAFT-small, slower, with weights."""
    raft_weights: Path | None = None
    """State dict of torchvision's raft_small, for --flow raft."""
    host_code: bool = False
    """Let a named engine that was built into the bundle bring code of its own for the CPU, as version-compatible ones
    of TensorRT do. Only for bundles from people you trust."""
    threads: int | None = None
    """CPU threads of the engine and of filling; all by default. Not used with --device."""
    causal: bool = False
    """Make every frame as soon as its condition is there: between keyframes the motion of the last two goes on, instead
    of being filled in when the next one has come. For live use; quality is lower."""
    mark: bool = True
    """Say in the metadata of what is written (video or PNG) that it was synthesised, and by which bundle. Raw frames
    have no place for it."""
    overwrite: bool = False
    """Replace a video, or a folder of nothing but PNG frames, of this name as a whole."""

    @property
    def is_piped_out(self) -> bool:
        """Whether frames go to standard output."""
        return self.out == PIPE

    def __post_init__(self) -> None:
        parse_engine(self.engine)
        if self.out is None and not self.window:
            raise ConfigError("nobody would see the frames: give --out, --window or both")
        if [self.conditions, self.data, self.camera, self.drive].count(None) != 3:
            raise ConfigError(
                "give one of --conditions, a folder, a video or -, --camera, its number, --data, a data set, and "
                "--drive, a video of somebody else"
            )
        if self.drive is None and self.driving != DrivingArgs():
            raise ConfigError("the options --driving belong to --drive, a video of somebody else")
        if self.frames is not None and self.frames < 1:
            raise ConfigError(f"--frames must be at least 1, got {self.frames}")
        if (self.flow == "raft") != (self.raft_weights is not None) or (self.flow == "raft" and self.device is None):
            raise ConfigError(
                "RAFT, its weights and a device go together: --device cuda --flow raft --raft-weights FILE"
            )
        of_data = self.sequence is not None or self.phase != "test" or self.test_tail
        paths = (self.instances, self.unprojections, None if self.drive else self.seed_frame)
        of_pictures = any(path is not None for path in paths) or self.missing != "fail"
        has_data, has_pictures = self.data is not None, self.data is None and self.drive is None
        if (
            (of_data and not (has_data or self.drive))
            or (self.given_frame and not has_data)
            or (of_pictures and not has_pictures)
        ):
            raise ConfigError(
                "--sequence, --phase and --test-tail belong to --data and --drive, --given-frame to --data; "
                "--instances, --unprojections and --missing to --conditions, --seed-frame to it and --drive"
            )


def check_output(args: StreamArgs) -> None:
    """Refuse an output that cannot be written or must not be replaced, before anything is computed.

    Raises:
        ConfigError: naming it and what to change.
    """
    drive = None if args.drive is None else Path(args.drive)
    read = (args.bundle, args.conditions, args.instances, args.unprojections, args.seed_frame, args.data, drive,
            args.driving.background)  # fmt: skip
    given = [path.resolve() for path in read if path is not None]
    told = [path for path in (args.driving.report, args.driving.preview) if path is not None]
    frames = [] if args.out is None or args.is_piped_out else [args.out]
    taken: list[Path] = []
    for path in (*frames, *told):
        out = path.resolve()
        if any(one.is_relative_to(out) for one in given):
            raise ConfigError(f"{path} holds what is to be read; name another output")
        if any(one == out or one in out.parents for one in taken):
            raise ConfigError(f"{path} is written twice; name another --driving.preview or --driving.report")
        taken.append(out)
    for path in told:
        if path.exists() and (path.is_dir() or not args.overwrite):
            raise ConfigError(f"{path} exists; name another file or give --overwrite")
    for path in frames:
        _check_frames_output(path, args.overwrite)


def _check_frames_output(path: Path, overwrite: bool) -> None:
    out = path.resolve()
    if out.suffix.lower() not in (*VIDEO_SUFFIXES, ""):
        raise ConfigError(
            f"{path}: nothing is written as {out.suffix}; name a video {' or '.join(VIDEO_SUFFIXES)}, or a folder "
            "without a dot in its name"
        )
    check_place(out)
    if not out.exists() or (out.is_dir() and not out.suffix and not any(out.iterdir())):
        return
    if out.is_dir() == bool(out.suffix):
        raise ConfigError(f"{path} is a {'folder' if out.is_dir() else 'file'} already; name another output")
    if not overwrite:
        raise ConfigError(f"{path} exists; name another output or give --overwrite")
    strange = [] if out.suffix else [p.name for p in out.iterdir() if p.suffix != ".png" or not p.is_file()]
    if strange:
        raise ConfigError(
            f"{path} holds {min(strange)}, which is no PNG frame, and is not replaced; name another output"
        )


def write_frames(
    out: Path,
    frames: Iterable[DeliveredFrame],
    names: Sequence[str] | None,
    fps: float,
    *,
    synthetic: bool = True,
    made_by: str = "",
) -> None:
    """Write a video, or a folder of ``<name>.png``; it takes its name, replacing what had it, when it is complete.

    Args:
        out: video, or folder where it has no extension; ``PIPE`` for raw RGB to standard output, at once.
        frames: every frame in order.
        names: stem of each, for a folder; None numbers them.
        fps: delivered frames per second, for a video.
        synthetic: mark what is written as made by a network.
        made_by: the bundle, for the mark.

    Raises:
        MediaError: if a file cannot be written.
    """
    if out == PIPE:
        for item in frames:
            sys.stdout.buffer.write(item.frame.data)
            sys.stdout.buffer.flush()
        return
    out = out.resolve()
    if out.suffix:
        with VideoWriter(out, fps, synthetic=synthetic, made_by=made_by) as writer:
            for item in frames:
                writer.write(item.frame)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    # mkdtemp's own folder is private to the user; the one inside gets ordinary permissions.
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    try:
        made, old = scratch / "new", scratch / "old"
        made.mkdir()
        for item in frames:
            stem = f"{item.index:06}" if names is None else names[item.index]
            write_image(made / f"{stem}.png", item.frame, synthetic=synthetic, made_by=made_by)
        replaces = out.exists()
        if replaces:
            os.replace(out, old)
        try:
            os.replace(made, out)
        except OSError:
            if replaces:
                os.replace(old, out)
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def show_frames(frames: Iterable[DeliveredFrame], title: str) -> Iterator[DeliveredFrame]:
    """Show frames in a window on their way; they end where its user presses q.

    Args:
        frames: to show.
        title: of the window.

    Raises:
        ConfigError: if there is no screen, or this OpenCV was built without windows.
    """
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise ConfigError("--window needs a screen and there is none (DISPLAY is not set); write with --out instead")
    try:
        for item in frames:
            has_ended = _show(item.frame, title)
            yield item
            if has_ended:
                return
    finally:
        with contextlib.suppress(cv2.error):  # there may never have been one
            cv2.destroyAllWindows()


def _show(frame: NDArray[np.uint8], title: str) -> bool:
    """Show one frame; whether the user has pressed q."""
    try:
        cv2.imshow(title, cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        return cv2.waitKey(1) & 0xFF == ord("q")
    except cv2.error as error:
        raise ConfigError(
            "this OpenCV shows no windows (it is built without them: opencv-python-headless?); write with --out instead"
        ) from error


def main(argv: list[str]) -> int:
    """``fastv2v stream --bundle NAME.v2v --conditions DIR --out VIDEO``."""
    args = parse(StreamArgs, "fastv2v stream", argv)
    check_output(args)
    given = args.conditions
    files = None
    if given is not None and given != PIPE and not given.is_file():
        files = settle_missing(condition_files(given), args.missing)
    with open_bundle(
        args.bundle,
        engine=args.engine,
        threads=args.threads,
        causal=args.causal,
        device=args.device,
        raft_weights=args.raft_weights,
        host_code=args.host_code,
    ) as stream:
        cv2.setNumThreads(filling_threads(args.threads or this_machine()["cores"], overlap=not args.causal))
        written, seconds, broken = _run(args, stream, files)
        stats = stream.stats
    told = sys.stderr if args.is_piped_out else sys.stdout
    where = args.out or "window"
    print(
        f"{where}: {written} frames ({stats.keyframes} synthesised) in {seconds:.2f} s with reading and "
        f"writing, {written / seconds:.1f} frames/s; synthesis {stats.synthesis_s:.2f} s, filling "
        f"{stats.fill_s:.2f} s; a frame waits for up to {stream.frames_waited} later conditions and came "
        f"{1000 * stats.mean_delay_s:.0f} ms after its own on average, {1000 * stats.longest_delay_s:.0f} ms at most",
        file=told,
    )
    print(
        json.dumps(
            {
                "out": str(where),
                "frames": written,
                "keyframes": stats.keyframes,
                "seconds": round(seconds, 3),
                "synthesis_s": round(stats.synthesis_s, 3),
                "fill_s": round(stats.fill_s, 3),
                "frames_waited": stream.frames_waited,
                "mean_delay_s": round(stats.mean_delay_s, 4),
                "longest_delay_s": round(stats.longest_delay_s, 4),
            }
        ),
        file=told,
        flush=True,
    )
    if broken is not None:
        raise DataError(f"{broken} (the {written} frames before it are in {where})") from broken
    return 0


def _run(args: StreamArgs, stream: Stream, files: dict[str, Path] | None) -> tuple[int, float, FastV2VError | None]:
    """Write every frame with a live counter: how many, the seconds it took, and where the source broke off."""
    broken: list[FastV2VError] = []
    with contextlib.ExitStack() as opened:
        names, conditions, fps = _open_source(args, stream, files, opened)
        frames = stream.frames(itertools.islice(conditions, args.frames))
        if names is None:
            frames = _until_it_breaks(stream, frames, broken)
        began = time.perf_counter()
        total = args.frames if names is None else len(names[: args.frames])
        with tqdm(total=total, unit="frame", desc=args.bundle.stem, dynamic_ncols=True) as bar:
            shown = _counted(stream, show_frames(frames, args.bundle.stem) if args.window else frames, bar)
            if args.out is None:
                for _ in shown:
                    pass
            else:
                write_frames(args.out, shown, names, fps, synthetic=args.mark, made_by=args.bundle.resolve().name)
            written = int(bar.n)
        return written, time.perf_counter() - began, broken[0] if broken else None


def _open_source(
    args: StreamArgs, stream: Stream, files: dict[str, Path] | None, opened: contextlib.ExitStack
) -> tuple[list[str] | None, Iterator[ConditionMap], float]:
    """Names of the frames, where they have any, their conditions, and how many a second are delivered."""
    manifest = stream.manifest
    if args.drive is not None:
        return _open_driver(args, args.drive, stream, opened)
    if args.data is not None:
        taken = open_sequence(args, manifest)
        if args.given_frame:
            stream.restart(taken.first_frame())
        return taken.names, taken.conditions(), manifest.fps
    if files is not None:
        check_drawn(manifest)
        inside = list(files.values())
        instances = instance_files(manifest, inside, args.instances)
        ids = unprojection_files(manifest, inside, args.unprojections)
        if args.seed_frame is not None:
            stream.restart(read_seed(args.seed_frame, inside[0], manifest.size))
        labels = manifest.condition.kind == "labels"
        conditions = read_conditions(inside, manifest.size, labels=labels, instances=instances, unprojections=ids)
        return list(files), conditions, manifest.fps
    for option, path in (("instances", args.instances), ("unprojections", args.unprojections)):
        if path is not None:
            raise ConfigError(f"{option} go with a folder of label maps; leave out --{option} {path}")
    if manifest.condition.guidance_levels:
        _LOG.warning("%s is guided by what was painted, and a camera, video or pipe says not where", manifest.name)
    if args.seed_frame is not None:
        stream.restart(scale(read_image(args.seed_frame), manifest.size, "image"))
    if args.camera is not None:
        check_plain(manifest, f"camera {args.camera}")
        camera = opened.enter_context(Camera(int(args.camera) if args.camera.isdecimal() else args.camera))
        return None, opened.enter_context(_until_interrupted(camera_conditions(camera, manifest))), manifest.fps
    assert args.conditions is not None  # StreamArgs sees to it
    if args.conditions == PIPE:
        return None, piped_conditions(sys.stdin.buffer, manifest), manifest.fps
    rate = _told_rate(str(args.conditions), float(probe_video(args.conditions).fps), manifest)
    return None, video_conditions(args.conditions, manifest), rate


def _open_driver(
    args: StreamArgs, source: str, stream: Stream, opened: contextlib.ExitStack
) -> tuple[list[str] | None, Iterator[ConditionMap], float]:
    """``_open_source`` for somebody who drives."""
    manifest = stream.manifest
    driver = open_driver(
        source,
        args.bundle,
        manifest,
        args.driving,
        opened,
        is_live=args.causal,
        sequence=args.sequence,
        phase=args.phase,
        test_tail=args.test_tail,
    )
    face = manifest.condition.face
    if args.seed_frame is not None:
        stream.restart(scale(read_image(args.seed_frame), manifest.size, "image"))
    elif manifest.condition.encoder in ("face", "pose") and not (face and face.shown_channels):
        _LOG.warning(
            "%s starts from nothing and may need seconds to find the person: --seed-frame FILE, a real frame of the "
            "training data (train_img), is a better start",
            manifest.name,
        )
    fps = manifest.fps if driver.fps is None else _told_rate(source, float(driver.fps), manifest)
    told = opened.enter_context(Told(args.driving, fps))
    told_to = sys.stderr if args.is_piped_out else sys.stdout
    opened.callback(lambda: print(told.log.told(), file=told_to) if len(told.log.shapes) else None)
    conditions: Iterator[ConditionMap] = (made.condition for made in told.watch(driver.frames, args.frames))
    if source.isdecimal():
        conditions = opened.enter_context(_until_interrupted(conditions))
    return driver.names, conditions, fps


@contextlib.contextmanager
def _until_interrupted(conditions: Iterator[ConditionMap]) -> Iterator[Iterator[ConditionMap]]:
    """Conditions that end, as a shorter source would, where the user presses Ctrl-C; the next interrupts at once."""
    asked: list[int] = []

    def note(number: int, frame: object) -> None:
        asked.append(number)
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield itertools.takewhile(lambda _: not asked, conditions)
    finally:
        signal.signal(signal.SIGINT, before)


def _told_rate(video: str, fps: float, manifest: Manifest) -> float:
    """Frames a second of a video, at which its frames are delivered again; warns where training had others."""
    if abs(fps / manifest.fps - 1) > 0.01:
        _LOG.warning(
            "%s has %g frames/s and the bundle was trained at %g: motion looks faster or slower to it, and a budget of "
            "keyframes a second counts its own seconds",
            video,
            fps,
            manifest.fps,
        )
    return fps


def _counted(stream: Stream, frames: Iterable[DeliveredFrame], bar: tqdm[Any]) -> Iterator[DeliveredFrame]:
    """Frames on their way, with frames a second and the mean delay so far on the bar."""
    for item in frames:
        bar.set_postfix_str(f"delay {1000 * stream.stats.mean_delay_s:.0f} ms", refresh=False)
        bar.update()
        yield item


def _until_it_breaks(
    stream: Stream, frames: Iterable[DeliveredFrame], broken: list[FastV2VError]
) -> Iterator[DeliveredFrame]:
    """Frames of a source that does not come again: where it breaks off they end, and why goes to ``broken``.

    Raises:
        FastV2VError: if that is so before the first frame.
    """
    try:
        yield from frames
    except StreamError:
        raise
    except FastV2VError as error:
        if not stream.num_taken:
            raise
        broken.append(error)


@dataclass(frozen=True)
class TakenSequence:
    """A sequence of a data set, read frame by frame at a bundle's size."""

    folder: VideoFolder
    """The data set."""
    index: int
    """Position of the sequence in it."""
    geometry: Geometry
    """What is done to its images."""
    reader: FrameReader
    """Reads it."""

    @property
    def names(self) -> list[str]:
        """Stem of each frame."""
        return list(self.folder.sequences[self.index].stems)

    def conditions(self) -> Iterator[ConditionMap]:
        """Condition of each frame."""
        sequence = self.folder.sequences[self.index]
        for t, stem in enumerate(sequence.stems):
            arrays = self.reader.read(self.index, [t], self.geometry)
            name = f"{sequence.name}/{stem}"
            points = [arrays[points_key(k)][0] for k in range(self.folder.config.guidance_levels)] or None
            if "labels" in arrays:
                instances = arrays["instances"][0] if "instances" in arrays else None
                yield ConditionMap(labels=arrays["labels"][0], instances=instances, points=points, name=name)
            else:
                maps = maps_to_float(self.folder.spec, arrays["maps"])[0]
                yield ConditionMap(maps=maps, points=points, name=name)

    def first_frame(self) -> NDArray[np.uint8]:
        """The real first frame, RGB (H, W, 3)."""
        frame: NDArray[np.uint8] = self.reader.read(self.index, [0], self.geometry)["frames"][0]
        return frame


class SequenceArgs(Protocol):
    """What names a sequence of a data set on a command line; see ``StreamArgs``."""

    @property
    def data(self) -> Path | None:
        """The data set."""
        ...

    @property
    def sequence(self) -> str | None:
        """Which sequence; None for the first."""
        ...

    @property
    def phase(self) -> Phase:
        """Which part."""
        ...

    @property
    def test_tail(self) -> int:
        """Held-out frames at the end of each training sequence."""
        ...


def open_sequence(args: SequenceArgs, manifest: Manifest) -> TakenSequence:
    """Find the sequence of ``--data`` that a bundle shall run over.

    Raises:
        ConfigError: if there is no such sequence, or the data set does not suit the bundle.
        DataError: if the data set cannot be read.
    """
    assert args.data is not None  # its callers see to it
    spec, (height, width) = manifest.condition, manifest.size
    if spec.encoder is None or spec.encoder == "maps":
        raise ConfigError(f"the bundle {manifest.name} takes {spec.describe()} of no known kind; push arrays to it")
    config = FolderConfig(
        root=args.data,
        phase=args.phase,
        test_tail=args.test_tail,
        condition=spec.encoder,
        num_classes=spec.num_classes or None,
        use_instances=spec.use_instances,
        ignore_id=spec.ignore_id,
        geometry=GeometryConfig(mode="exact", size=(height, width), interpolation="area"),
        face=spec.face or FaceConfig(),
        pose=spec.pose or PoseConfig(),
        missing="hold" if spec.encoder in ("face", "pose") else "fail",
        guidance_levels=spec.guidance_levels,
    )
    folder = open_folder(config)
    # Names of classes depend on how the data set was opened; their number decides.
    if folder.spec.channels != spec.channels or (spec.kind == "maps" and folder.spec != spec):
        raise ConfigError(
            f"the bundle {manifest.name} takes {spec.describe()} and {args.data} gives {folder.spec.describe()}"
        )
    found = [sequence.name for sequence in folder.sequences]
    name = args.sequence if args.sequence is not None else found[0]
    if name not in found:
        raise ConfigError(
            f"{args.data} has no sequence {name!r} for the phase '{args.phase}'; it has {', '.join(found)}"
        )
    index = found.index(name)
    reader = FrameReader(folder, cache_mb=0)
    drawn = _fitting(folder.config, reader.image_size(index))
    if drawn is None:
        raise ConfigError(
            f"frames of sequence '{name}' of {args.data} cannot be brought to the {width}x{height} pixels of the "
            f"bundle {manifest.name} without distortion; use frames of the proportions it was trained on"
        )
    return TakenSequence(folder, index, drawn, reader)


def _fitting(config: FolderConfig, source: Size) -> Geometry | None:
    """The geometry that brings images to a bundle's size; of poses one of those that training may have used.

    A dancer is cut out of the middle by height, or the frame is scaled whole; everything else takes its size as it is.
    """
    exact = draw_geometry(config.geometry, source, None, "test")
    if config.condition != "pose":
        return exact
    height, width = exact.size
    for centre_crop in (True, False):
        by_height = replace(config.geometry, mode="scaleHeight", size=None, load_size=height, centre_crop=centre_crop)
        drawn = draw_geometry(by_height, source, None, "test")
        if drawn.size == exact.size:
            return drawn
    is_like = abs(source[1] * height / (source[0] * width) - 1) < 0.05
    return exact if is_like else None
