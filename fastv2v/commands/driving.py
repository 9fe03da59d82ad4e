"""``fastv2v stream --drive``: whose video drives a bundle, and what is told about it. Runs without torch."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Final

import tyro

from export.bundle import Manifest
from export.camera import Camera
from export.convert import Picture
from export.driving import (
    Driven,
    ReachLog,
    drive_bodies,
    drive_by_pictures,
    drive_faces,
    not_in_pictures,
    read_driving,
    with_bar,
)
from fastv2v.data.driving.config import DrivingConfig
from fastv2v.data.driving.profile import DrivingProfile, driving_landmarks, driving_people, kind_of
from fastv2v.data.driving.seen import SeenPerson
from fastv2v.data.face import FaceConfig as FaceMaps
from fastv2v.data.folder import FolderConfig, Phase, open_folder
from fastv2v.data.images import read_image, read_planes
from fastv2v.data.pose import PoseConfig
from fastv2v.data.prepare.body import BodyConfig
from fastv2v.data.prepare.labels import LabelConfig
from fastv2v.data.prepare.landmarks import FaceConfig
from fastv2v.data.prepare.survey import reading_rate
from fastv2v.data.sequences import Sequence
from fastv2v.errors import ConfigError
from fastv2v.run import write_json
from fastv2v.video import VIDEO_SUFFIXES, VideoWriter, read_video

_LOG = logging.getLogger(__name__)

_SHOWS: Final = {
    "face": "a face",
    "pose": "a person",
    "edges": "edges",
    "palette": "classes of colour and texture",
    "labels": "labels",
}


@dataclass(frozen=True, kw_only=True)
class DrivingArgs:
    """How the driver is found, fitted and told about."""

    fitting: Annotated[DrivingConfig, tyro.conf.arg(name="")] = field(default_factory=DrivingConfig)
    """How the driver is fitted to the trained person."""
    report: Path | None = None
    """JSON file to write: how far each frame lies from what was trained."""
    preview: Path | None = None
    """Video to write of the conditions, with a bar that shows how far each lies from what was trained."""
    background: Path | None = None
    """Real frame of the trained person, for bundles of faces that were trained with edges of the background."""
    model: Path | None = None
    """Segmentation network (ONNX) that the labels were prepared with, for bundles of labels."""
    weights: Path | None = None
    """State dict that they were prepared with, where it was a network of torchvision with weights from disk."""
    face: FaceConfig = field(default_factory=FaceConfig)
    """How the driver's face is found, and which of several."""
    python: Path | None = None
    """Python that has mediapipe, for bundles of people; by default the one that runs this."""

    def __post_init__(self) -> None:
        if self.preview is not None and self.preview.suffix.lower() not in VIDEO_SUFFIXES:
            raise ConfigError(f"{self.preview}: a preview is a video, {' or '.join(VIDEO_SUFFIXES)}")
        for path in (self.background, self.model, self.weights):
            if path is not None and not path.is_file():
                raise ConfigError(f"{path}: there is no such file; check the path")


@dataclass(frozen=True)
class Driver:
    """A source of driven conditions that was opened."""

    names: list[str] | None
    """Stem of each frame, where it has one."""
    frames: Iterator[Driven]
    """What each frame becomes."""
    fps: Fraction | None
    """Frames per second of a video; a variable rate is made constant. None of others."""


def open_driver(
    source: str,
    bundle: Path,
    manifest: Manifest,
    args: DrivingArgs,
    opened: contextlib.ExitStack,
    *,
    is_live: bool = False,
    sequence: str | None = None,
    phase: Phase = "test",
    test_tail: int = 0,
) -> Driver:
    """Find the driver of a bundle.

    Args:
        source: a video, the folder of a data set, or the number of a camera.
        bundle: its folder; it was opened, and so is known to be whole.
        manifest: its manifest.
        args: how to find and fit the driver.
        opened: what must be closed in the end.
        is_live: whether the stream is causal.
        sequence: which one of a data set; the first by default.
        phase: which part of it.
        test_tail: frames at the end of each of its training sequences that are for testing, where it has no such part.

    Raises:
        BundleError: if the bundle cannot be driven.
        ConfigError: if the driver is of another kind.
        DataError: if a data set cannot be read.
        MissingExtraError: if what finds faces or people is not installed.
    """
    profile = read_driving(bundle, manifest)
    is_camera, path = source.isdecimal(), Path(source)
    if not is_camera and not path.exists():
        raise ConfigError(f"{path}: there is no such video, data set or camera; check --drive")
    fit = args.fitting.fit or ("causal" if is_live or is_camera else "sequence")
    if fit == "sequence" and is_camera:
        raise ConfigError("a camera has no end to wait for; leave out --driving.fit sequence")
    args = replace(args, fitting=replace(args.fitting, fit=fit))
    if path.is_dir() and not is_camera:
        return _of_data(path, profile, manifest, args, sequence, phase, test_tail)
    if sequence is not None or phase != "test" or test_tail:
        raise ConfigError(f"--sequence, --phase and --test-tail choose from a data set, and {source} is none")
    _warn(profile, manifest, args)
    if is_camera:
        return Driver(
            None, _of_pictures(iter(opened.enter_context(Camera(int(source)))), profile, manifest, args), None
        )
    fps, uneven = reading_rate(path)
    return Driver(None, _of_pictures(read_video(path, fps=fps if uneven else None), profile, manifest, args), fps)


def _of_pictures(
    pictures: Iterator[Picture], profile: DrivingProfile, manifest: Manifest, args: DrivingArgs
) -> Iterator[Driven]:
    network = None if args.weights is None else profile.labels.network
    return drive_by_pictures(
        profile,
        manifest,
        pictures,
        args.fitting,
        face=args.face,
        body=BodyConfig(python=args.python),
        labels=LabelConfig(model=args.model, network=network, weights=args.weights),
        background=_background(args),
    )


def _warn(profile: DrivingProfile, manifest: Manifest, args: DrivingArgs) -> None:
    for sentence in not_in_pictures(profile, manifest, has_background=args.background is not None):
        _LOG.warning("%s (--driving.background)" if profile.kind == "face" else "%s", sentence)


def _of_data(
    root: Path,
    profile: DrivingProfile,
    manifest: Manifest,
    args: DrivingArgs,
    sequence: str | None,
    phase: Phase,
    test_tail: int,
) -> Driver:
    """Landmarks or key points of a data set."""
    kind = kind_of(root)
    if profile.kind not in ("face", "pose"):
        raise ConfigError(
            f"{manifest.name} shows {_SHOWS[profile.kind]}, which are made of pictures: drive it by a video, or stream "
            "the conditions of a data set with --data"
        )
    if kind not in (None, profile.kind):
        raise ConfigError(
            f"{root} was prepared for {_SHOWS[str(kind)]} and {manifest.name} shows {_SHOWS[profile.kind]}; prepare "
            f"that video with --kind {profile.kind}, or give the video itself"
        )
    spec = manifest.condition
    config = FolderConfig(
        root=root,
        phase=phase,
        test_tail=test_tail,
        condition="face" if profile.kind == "face" else "pose",
        face=FaceMaps(crop="none", background="none") if profile.kind == "face" else FaceMaps(),
        pose=PoseConfig() if spec.pose is None else spec.pose,
        missing="hold",
    )
    folder = open_folder(config)
    found = {one.name: one for one in folder.sequences}
    chosen = found.get(sequence or folder.sequences[0].name)
    if chosen is None:
        raise ConfigError(f"{root} has no sequence {sequence!r} in its part '{phase}'; it has {', '.join(found)}")
    if profile.kind == "face":
        _warn(profile, manifest, args)
        frames = drive_faces(profile, manifest, driving_landmarks(chosen), args.fitting, _background(args))
    else:
        frames = drive_bodies(profile, manifest, _people_of(chosen), args.fitting)
    return Driver(list(chosen.stems), frames, None)


def _people_of(sequence: Sequence) -> Iterator[SeenPerson | None]:
    has_parts = "densepose" in sequence.files
    for t, person in enumerate(driving_people(sequence)):
        parts = read_planes(sequence.path("densepose", t)) if has_parts and person is not None else None
        yield None if person is None else SeenPerson(person, parts)


def _background(args: DrivingArgs) -> Picture | None:
    return None if args.background is None else read_image(args.background)


class Told:
    """Notes how far driven conditions lie from what was trained, and tells it in the end; a context manager.

    Args:
        args: what is written.
        fps: frames per second of the preview.
    """

    def __init__(self, args: DrivingArgs, fps: float) -> None:
        self._args, self._fps = args, fps
        self._opened = contextlib.ExitStack()
        self._preview: VideoWriter | None = None
        self.log = ReachLog(args.fitting.warn_above)

    def __enter__(self) -> Told:
        if self._args.preview is not None:
            writer = VideoWriter(self._args.preview, self._fps, synthetic=False)
            self._preview = self._opened.enter_context(writer)
        return self

    def __exit__(self, *exception: object) -> None:
        self._opened.__exit__(*exception)  # type: ignore[arg-type]
        if self._args.report is not None:
            write_json(self._args.report, self.log.to_json())
        share = self.log.to_json().get("share_above_warning", 0)
        if share:
            _LOG.warning(
                "%.0f %% of the driven frames lie more than %g times as far outside as nearly all trained ones: expect "
                "them to look worse; --driving.within %g pulls them back",
                100 * share,
                self.log.warn_above,
                self.log.warn_above,
            )

    def watch(self, frames: Iterator[Driven], most: int | None) -> Iterator[Driven]:
        """The frames on their way, at most so many."""
        for driven in itertools.islice(frames, most):
            self.log.note(driven)
            if self._preview is not None:
                self._preview.write(with_bar(driven, self.log.warn_above))
            yield driven
