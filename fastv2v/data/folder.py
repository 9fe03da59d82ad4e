"""A data set in folders: finding its sequences and classes. Torch-free.

Two layouts are understood; ``<sequence>`` may be nested, and each directory that directly holds files is one::

    vid2vid       train_A/<sequence>/<frame>.png   train_B/...   train_inst/...   test_A/...
    Fast-Vid2Vid  A/train/<sequence>/<frame>.png   B/train/...   Inst/train/...   A/test/...

A holds label maps (or condition images), B frames, inst instance maps. Faces and poses have their frames in ``img``
and what a detector saw in ``keypoints`` (``.txt``), or in ``openpose`` (``.json``) and ``densepose``. ``flow`` may hold
optical flow, and ``unprojections`` which point of the world is seen at which pixel. Files belong together when sequence
and file stem are the same, apart from the endings ``_keypoints`` and ``_IUV`` that OpenPose and DensePose give theirs.

``fastv2v pack`` puts all of this into one database, which is read like a folder (``fastv2v.data.packed``). In place of
a folder, a JSON file may name the directories of each sequence (``fastv2v.data.manifest``).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from fastv2v.data.classes import ClassPreset, ClassTable, generic_classes, preset_classes, read_classes
from fastv2v.data.conditions import MAX_GUIDANCE_LEVELS, ConditionSpec
from fastv2v.data.face import NO_REFERENCE, TYPICAL, Crop, FaceConfig, crop_padded, read_landmarks
from fastv2v.data.face_reference import FaceReference, typical
from fastv2v.data.images import IMAGE_SUFFIXES, image_size, read_bytes, read_image, read_label
from fastv2v.data.manifest import list_manifest, read_manifest
from fastv2v.data.modalities import MODALITIES as MODALITIES
from fastv2v.data.modalities import Condition, Layout, list_sequences, place_of
from fastv2v.data.modalities import Phase as Phase
from fastv2v.data.packed import data_path
from fastv2v.data.pose import PoseConfig
from fastv2v.data.reader import FrameReader as FrameReader
from fastv2v.data.sequences import (
    Listing,
    Missing,
    cut_at_gaps,
    drop_empty,
    face_box,
    pair_files,
    settle_gaps,
    warn_without_points,
)
from fastv2v.data.sequences import Sequence as Sequence
from fastv2v.data.sequences import by_number as by_number
from fastv2v.data.transforms import GeometryConfig
from fastv2v.errors import ConfigError, DataError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FolderConfig:
    """Which data set is read, and what its condition is."""

    root: Path
    """Folder of the data set, a packed one (NAME.lmdb), or a JSON file that lists its sequences."""
    phase: Phase = "train"
    """Which part of it."""
    condition: Condition = "labels"
    """``labels``: maps of class ids. ``rgb``: colour images, scaled to [-1, 1] like frames. ``face``: maps drawn from
    landmarks; the face is cut out of all frames, placed by the first frame of the sequence. ``pose``: DensePose maps
    and drawn OpenPose key points, never mirrored."""
    num_classes: int | None = None
    """Number of label classes. ``None``: that of ``classes.json`` or of the preset; else one more than the highest id
    in the label maps for training, all of which are read for it each time the folder is opened."""
    classes: ClassPreset | None = None
    """Names and colours of the classes where the data set has no ``classes.json``."""
    use_instances: bool = False
    """Give the generator the borders of instance maps."""
    ignore_id: int | None = None
    """Label id that means no class, for example 255."""
    test_tail: int = 0
    """Frames held out at the end of each sequence where the data set has no folders for the phase ``test``: these make
    the test sequences and are never in the phase ``train``."""
    geometry: GeometryConfig = field(default_factory=GeometryConfig)
    """Size of the clips and how it is reached."""
    face: FaceConfig = field(default_factory=FaceConfig)
    """What face maps show."""
    pose: PoseConfig = field(default_factory=PoseConfig)
    """What pose maps show."""
    missing: Missing = "fail"
    """What is done about frames in which no face or nobody was detected. ``fail``: refuse the data set. ``hold``:
    repeat the landmarks or the pose before (the first one at the start); DensePose and OpenPose maps are repeated
    together. ``skip``: cut the sequence there."""
    flow_files: bool = False
    """Read the flow from each frame to the one before from files, instead of estimating it."""
    guidance_levels: int = 0
    """Levels of guidance from the painted world, each half the size of the one before; 0 for none. Reads which point of
    the world is seen at which pixel from ``<phase>_unprojections`` (``fastv2v unproject``); frames without such a file
    get no guidance. Crops then begin at multiples of 2^(levels - 1) pixels."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", data_path(self.root))
        if self.phase not in get_args(Phase):
            raise ConfigError(f"phase is 'train' or 'test', got '{self.phase}'")
        if self.condition not in get_args(Condition):
            raise ConfigError(f"condition is one of {', '.join(get_args(Condition))}, got '{self.condition}'")
        if self.missing not in get_args(Missing):
            raise ConfigError(f"missing is one of {', '.join(get_args(Missing))}, got '{self.missing}'")
        if self.classes is not None and self.classes not in get_args(ClassPreset):
            raise ConfigError(f"unknown class preset '{self.classes}'; there are {', '.join(get_args(ClassPreset))}")
        if self.num_classes is not None and self.num_classes < 1:
            raise ConfigError(f"num_classes must be at least 1, got {self.num_classes}")
        if self.ignore_id is not None and self.ignore_id < 0:
            raise ConfigError(f"ignore_id must be 0 or more, got {self.ignore_id}")
        if self.test_tail < 0:
            raise ConfigError(f"test_tail must be 0 or more, got {self.test_tail}")
        self._refuse_settings_of_others()
        if not 0 <= self.guidance_levels <= MAX_GUIDANCE_LEVELS:
            raise ConfigError(f"guidance_levels is 0 to {MAX_GUIDANCE_LEVELS}, got {self.guidance_levels}")
        if self.guidance_levels and self.condition == "face":
            raise ConfigError(
                "faces are cut out and move with the head; set guidance_levels to 0 for the condition face"
            )
        if self.phase == "test" and self.geometry.is_random:
            raise ConfigError(f"geometry mode '{self.geometry.mode}' is random and the phase 'test' must not be")

        if self.condition == "pose" and self.geometry.centre_crop is None:
            settled = replace(self.geometry, centre_crop=self.geometry.mode != "exact")
            object.__setattr__(self, "geometry", settled)

    def _refuse_settings_of_others(self) -> None:
        """Refuse settings that would change nothing."""
        owners: dict[str, tuple[tuple[str, ...], object]] = {
            "num_classes": (("labels",), None),
            "classes": (("labels",), None),
            "use_instances": (("labels",), False),
            "ignore_id": (("labels",), None),
            "face": (("face",), FaceConfig()),
            "pose": (("pose",), PoseConfig()),
            "missing": (("face", "pose"), "fail"),
        }
        given = [
            (name, of)
            for name, (of, default) in owners.items()
            if self.condition not in of and getattr(self, name) != default
        ]
        if given:
            names = " and ".join(name for name, _ in given)
            of = " or ".join(dict.fromkeys(condition for _, conditions in given for condition in conditions))
            raise ConfigError(f"{names} belong to the condition {of}; leave out for the condition '{self.condition}'")

    @property
    def modalities(self) -> tuple[str, ...]:
        """Kinds of files that are read, frames first."""
        chosen = {
            "labels": ("labels", "instances") if self.use_instances else ("labels",),
            "rgb": ("maps",),
            "face": ("keypoints",),
            "pose": tuple(name for name in ("densepose", "openpose") if getattr(self.pose, name)),
        }
        further = {"flow": self.flow_files, "unprojections": self.guidance_levels > 0}
        return ("frames", *chosen[self.condition], *(name for name, is_read in further.items() if is_read))


@dataclass(frozen=True)
class VideoFolder:
    """An opened data set. Nothing but file names is held."""

    config: FolderConfig
    """What was opened."""
    sequences: tuple[Sequence, ...]
    """Its sequences, by name."""
    spec: ConditionSpec
    """How the condition is encoded."""
    classes: ClassTable | None
    """Names and colours of the classes; ``None`` for all conditions but ``labels``."""

    @property
    def root(self) -> Path:
        """Folder of the data set."""
        return self.config.root

    @property
    def phase(self) -> Phase:
        """Which part of the data set it is."""
        return self.config.phase

    @property
    def lengths(self) -> tuple[int, ...]:
        """Frames of each sequence."""
        return tuple(len(sequence) for sequence in self.sequences)

    @property
    def palette(self) -> NDArray[np.uint8]:
        """Display colours of the classes, (L, 3); (0, 3) for all conditions but ``labels``."""
        return np.zeros((0, 3), dtype=np.uint8) if self.classes is None else self.classes.palette


def open_folder(config: FolderConfig) -> VideoFolder:
    """Find the sequences of a data set and its classes.

    Args:
        config: which data set.

    Returns:
        The data set. Pictures are read later, and checked then; the small files of detectors are looked into now.

    Raises:
        DataError: if folders are missing, sequences are empty, files have no counterpart, somebody was detected
            outside the frame, nobody was detected in some frames and ``missing`` is ``fail``, or nothing is left.
        ConfigError: if the number of classes contradicts the class table.
    """
    if not config.root.exists():
        raise DataError(f"{config.root}: there is no such data set folder; check the path, or make one: fastv2v world")
    has_test = has_phase(config, "test")
    if config.phase == "test" and not has_test and not config.test_tail:
        raise DataError(
            f"{config.root}: there is nothing to test on; {_convention(config, 'test')}, or set test_tail to hold out "
            "the last frames of each training sequence"
        )
    source: Phase = "test" if config.phase == "test" and has_test else "train"
    sequences = settle_gaps(config.root, drop_empty(config.root, _find(config, source)), config.missing)
    if config.test_tail and has_test:
        logger.info("%s has folders for the phase 'test': test_tail is not used", config.root)
    elif config.test_tail:
        sequences = _split_tail(config, sequences)
    sequences = cut_at_gaps(sequences)
    warn_without_points(config.root, sequences)
    if not sequences:
        raise DataError(f"{config.root}: nobody was detected in any frame; run the detector again")
    if config.condition == "face":
        for sequence in sequences:  # a face that cannot be cropped is found now and not in the middle of a run
            face_box(sequence, image_size(sequence.path("frames", 0)), config.face.crop)
        if config.face.reference == TYPICAL:
            known = sequences if config.phase == "train" else open_folder(_plain_train(config)).sequences
            reference = typical_face(known, config.face.crop).encode()
            config = replace(config, face=replace(config.face, reference=reference))
    if config.condition == "labels":
        classes = _resolve_classes(config)
        spec = ConditionSpec(
            class_names=classes.names,
            use_instances=config.use_instances,
            ignore_id=config.ignore_id,
            guidance_levels=config.guidance_levels,
        )
        return VideoFolder(config, sequences, spec, classes)
    return VideoFolder(config, sequences, _map_spec(config), None)


def _plain_train(config: FolderConfig) -> FolderConfig:
    """The training part of a data set of faces, without a reference."""
    return replace(config, phase="train", face=replace(config.face, reference=NO_REFERENCE))


def typical_face(sequences: tuple[Sequence, ...], crop: Crop) -> FaceReference:
    """The frame whose landmarks, as they lie in what is cut out, are nearest to the mean of all.

    Args:
        sequences: of faces, at least one.
        crop: what is cut out of their frames.

    Raises:
        DataError: if a landmark file or the chosen frame is damaged.
    """
    places, points = [], []
    for sequence in sequences:
        box = face_box(sequence, image_size(sequence.path("frames", 0)), crop)
        for frame in range(len(sequence)):
            path = sequence.path("keypoints", frame)
            places.append((sequence, frame, box))
            points.append(read_landmarks(read_bytes(path, MODALITIES["keypoints"].noun), str(path)) - box[:2])
    chosen = typical(np.array(points))
    sequence, frame, box = places[chosen]
    return FaceReference(crop_padded(read_image(sequence.path("frames", frame)), box), points[chosen])


def _map_spec(config: FolderConfig) -> ConditionSpec:
    if config.condition == "face":
        return ConditionSpec(kind="maps", map_channels=config.face.channels, encoder="face", face=config.face)
    levels = config.guidance_levels
    if config.condition == "pose":
        channels = config.pose.channels
        return ConditionSpec(
            kind="maps", map_channels=channels, encoder="pose", pose=config.pose, guidance_levels=levels
        )
    return ConditionSpec(kind="maps", map_channels=3, encoder="rgb", guidance_levels=levels)


def has_phase(config: FolderConfig, phase: Phase) -> bool:
    """Whether the data set has files of its own for a phase.

    Raises:
        DataError: if the data set is described by a file and that is damaged.
    """
    if config.root.is_file():
        return bool(read_manifest(config.root)[phase])
    return _find_layout(config, phase) is not None


def _find(config: FolderConfig, phase: Phase) -> tuple[Sequence, ...]:
    """The sequences of a phase, gaps included."""
    if config.root.is_file():
        entries = read_manifest(config.root)[phase]
        if not entries:
            raise DataError(f"{config.root}: no sequence was found under '{phase}'; add one: its name and directories")
        places = {modality: place_of(modality, config.condition) for modality in config.modalities}
        found = list_manifest(config.root, entries, places)
    else:
        directories = _directories(config, phase)
        found = {m: list_sequences(d, place_of(m, config.condition)) for m, d in directories.items()}
    return pair_files(config.root, found)


def _find_layout(config: FolderConfig, phase: Phase) -> Layout | None:
    """Layout in which the phase has a folder of conditions or frames; vid2vid's where it has both."""
    places = [place_of(modality, config.condition) for modality in config.modalities[:2]]
    for layout in get_args(Layout):
        if any(place.directory(config.root, layout, phase).is_dir() for place in places):
            return layout
    return None


def _convention(config: FolderConfig, phase: Phase) -> str:
    places = [place_of(modality, config.condition) for modality in config.modalities]
    vid2vid, fast = (
        " and ".join(str(place.directory(Path(), layout, phase)) for place in places) for layout in get_args(Layout)
    )
    nouns = " and ".join(f"{place.noun}s" for place in places)
    # The usual extension of pictures is not the first accepted one.
    endings = dict.fromkeys(".png" if place.extensions == IMAGE_SUFFIXES else place.extensions[0] for place in places)
    files = " and ".join(f"<sequence>/<frame>{ending}" for ending in endings)
    return f"looked for {vid2vid} (or {fast}) with {nouns} as {files}"


def _hint(config: FolderConfig) -> str:
    """What the data set seems to hold instead."""
    found = {"face": "keypoints", "pose": "openpose"}
    kinds = [kind for kind, suffix in found.items() if (config.root / f"train_{suffix}").is_dir()]
    return f"; it looks like a data set of the condition '{kinds[0]}'" if kinds and kinds[0] != config.condition else ""


def _directories(config: FolderConfig, phase: Phase) -> dict[str, Path]:
    """Folder of each modality."""
    layout = _find_layout(config, phase) or "vid2vid"
    directories = {
        modality: place_of(modality, config.condition).directory(config.root, layout, phase)
        for modality in config.modalities
    }
    missing = [directory.relative_to(config.root) for directory in directories.values() if not directory.is_dir()]
    if missing:
        several = len(missing) > 1
        raise DataError(
            f"{config.root}: the folder{'s' if several else ''} {' and '.join(map(str, missing))} "
            f"{'are' if several else 'is'} missing; {_convention(config, phase)}{_hint(config)}"
            + ("; make unprojections: fastv2v unproject" if missing[-1].name.endswith("unprojections") else "")
        )
    return directories


def _split_tail(config: FolderConfig, sequences: tuple[Sequence, ...]) -> tuple[Sequence, ...]:
    """The part of training sequences that belongs to the phase."""
    cuts = [(sequence, max(len(sequence) - config.test_tail, 0)) for sequence in sequences]
    if config.phase == "test":
        return tuple(sequence.take(cut, len(sequence)) for sequence, cut in cuts)
    kept = tuple(sequence.take(0, cut) for sequence, cut in cuts if cut)
    if not kept:
        raise DataError(
            f"{config.root}: test_tail ({config.test_tail}) holds out every frame; the longest sequence has "
            f"{max(map(len, sequences))} frames"
        )
    if len(kept) < len(sequences):
        logger.warning("%d of %d sequences are held out whole by test_tail", len(sequences) - len(kept), len(sequences))
    return kept


def _resolve_classes(config: FolderConfig) -> ClassTable:
    """Classes of a label data set: its own file, else the preset, else as many as are needed."""
    table = read_classes(config.root.parent if config.root.is_file() else config.root)
    preset = None if config.classes is None else preset_classes(config.classes)
    if table is not None and preset is not None and table.names != preset.names:
        raise ConfigError(f"{config.root} has a classes.json that is not '{config.classes}'; set classes to None")
    table = table or preset
    if table is None:
        return generic_classes(_count_classes(config) if config.num_classes is None else config.num_classes)
    if config.num_classes not in (None, len(table.names)):
        origin = "the preset" if preset is not None else "classes.json"
        raise ConfigError(f"num_classes is {config.num_classes} and {origin} has {len(table.names)} classes")
    return table


def _count_classes(config: FolderConfig) -> int:
    """One more than the highest id in all label maps for training."""
    found: Listing = {}
    directory = config.root
    if config.root.is_file():
        entries = read_manifest(config.root)["train"]
        found = list_manifest(config.root, entries, {"labels": MODALITIES["labels"]})["labels"]
    else:
        layout = _find_layout(config, "train") or "vid2vid"
        directory = MODALITIES["labels"].directory(config.root, layout, "train")
        found = list_sequences(directory, MODALITIES["labels"]) if directory.is_dir() else {}
    paths = [path for stems in found.values() for path in stems.values()]
    if not paths:
        raise DataError(f"{directory}: there are no label maps for training to count classes in; set num_classes")
    logger.info("reading %d label maps in %s to count classes; set num_classes to spare this", len(paths), directory)
    highest = 0
    for path in paths:
        labels = read_label(path)
        known = labels if config.ignore_id is None else labels[labels != config.ignore_id]
        highest = max(highest, int(known.max(initial=0)))
    if highest >= 255:
        logger.warning(
            "the highest label id in %s is %d, which makes %d classes; if it means no class, set ignore_id",
            directory,
            highest,
            highest + 1,
        )
    return highest + 1
