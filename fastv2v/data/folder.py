"""A data set in folders: finding its sequences, and reading frames with their maps from it. Torch-free.

Two layouts are understood; ``<sequence>`` may be nested, and each directory that directly holds images is one::

    vid2vid       train_A/<sequence>/<frame>.png   train_B/...   train_inst/...   test_A/...
    Fast-Vid2Vid  A/train/<sequence>/<frame>.png   B/train/...   Inst/train/...   A/test/...

A holds label maps (or condition images), B frames, inst instance maps. Files belong together when sequence and file
stem are the same.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as AnySequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from fastv2v.data.classes import ClassPreset, ClassTable, generic_classes, preset_classes, read_classes
from fastv2v.data.conditions import ConditionSpec, check_label_ids
from fastv2v.data.images import IMAGE_SUFFIXES, ArrayCache, is_image_file, read_image, read_label
from fastv2v.data.transforms import Geometry, GeometryConfig, Size, crop_and_flip, resize
from fastv2v.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

Phase = Literal["train", "test"]
Layout = Literal["vid2vid", "Fast-Vid2Vid"]


class Modality(NamedTuple):
    """One kind of file of a data set: where it lies and how it is read."""

    suffix: str
    """``<phase>_<suffix>`` in vid2vid's layout."""
    folder: str
    """``<folder>/<phase>`` in Fast-Vid2Vid's layout."""
    noun: str
    """What one file is called in messages."""
    kind: Literal["image", "label"]
    """``image``: colours, interpolated when scaled. ``label``: ids, which are not."""


MODALITIES: Final[Mapping[str, Modality]] = {
    "frames": Modality("B", "B", "frame", "image"),
    "labels": Modality("A", "A", "label map", "label"),
    "maps": Modality("A", "A", "condition image", "image"),
    "instances": Modality("inst", "Inst", "instance map", "label"),
}
"""Every kind of file, by the name of the ``Clip`` field it fills."""


@dataclass(frozen=True, kw_only=True)
class FolderConfig:
    """Which data set is read, and what its condition is."""

    root: Path
    """Folder of the data set."""
    phase: Phase = "train"
    """Which part of it."""
    condition: Literal["labels", "rgb"] = "labels"
    """``labels``: maps of class ids. ``rgb``: colour images, scaled to [-1, 1] like frames."""
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

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(self.root))
        if self.phase not in get_args(Phase):
            raise ConfigError(f"phase is 'train' or 'test', got '{self.phase}'")
        if self.condition not in ("labels", "rgb"):
            raise ConfigError(f"condition is 'labels' or 'rgb', got '{self.condition}'")
        if self.classes is not None and self.classes not in get_args(ClassPreset):
            raise ConfigError(f"unknown class preset '{self.classes}'; there are {', '.join(get_args(ClassPreset))}")
        if self.num_classes is not None and self.num_classes < 1:
            raise ConfigError(f"num_classes must be at least 1, got {self.num_classes}")
        if self.ignore_id is not None and self.ignore_id < 0:
            raise ConfigError(f"ignore_id must be 0 or more, got {self.ignore_id}")
        if self.test_tail < 0:
            raise ConfigError(f"test_tail must be 0 or more, got {self.test_tail}")
        of_labels = {"num_classes": None, "classes": None, "use_instances": False, "ignore_id": None}
        given = [name for name, default in of_labels.items() if getattr(self, name) != default]
        if self.condition == "rgb" and given:
            raise ConfigError(f"{' and '.join(given)} belong to label maps; leave out for the condition 'rgb'")
        if self.phase == "test" and self.geometry.is_random:
            raise ConfigError(f"geometry mode '{self.geometry.mode}' is random and the phase 'test' must not be")

    @property
    def modalities(self) -> tuple[str, ...]:
        """Kinds of files that are read, frames first."""
        if self.condition == "rgb":
            return "frames", "maps"
        return ("frames", "labels", "instances") if self.use_instances else ("frames", "labels")


@dataclass(frozen=True)
class Sequence:
    """Consecutive frames of one video with their maps."""

    name: str
    """Path of its directory below the phase, with forward slashes; ``.`` for the phase directory itself."""
    stems: tuple[str, ...]
    """File names without extension, in order."""
    files: Mapping[str, tuple[Path, ...]]
    """Files of each modality, in the order of ``stems``."""

    def __len__(self) -> int:
        return len(self.stems)

    def take(self, start: int, stop: int) -> Sequence:
        """The frames ``start:stop``."""
        files = {modality: paths[start:stop] for modality, paths in self.files.items()}
        return Sequence(self.name, self.stems[start:stop], files)


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
    """Names and colours of the classes; ``None`` for the condition ``rgb``."""

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
        """Display colours of the classes, (L, 3); (0, 3) for the condition ``rgb``."""
        return np.zeros((0, 3), dtype=np.uint8) if self.classes is None else self.classes.palette


def open_folder(config: FolderConfig) -> VideoFolder:
    """Find the sequences of a data set and its classes.

    Args:
        config: which data set.

    Returns:
        The data set. Pictures are read later, and checked then.

    Raises:
        DataError: if folders are missing, sequences are empty, files have no counterpart, or nothing is left.
        ConfigError: if the number of classes contradicts the class table.
    """
    if not config.root.is_dir():
        raise DataError(f"{config.root}: there is no such data set folder; check the path, or make one: fastv2v world")
    has_test = _find_layout(config, "test") is not None
    if config.phase == "test" and not has_test and not config.test_tail:
        raise DataError(
            f"{config.root}: there is nothing to test on; {_convention(config, 'test')}, or set test_tail to hold out "
            "the last frames of each training sequence"
        )
    source: Phase = "test" if config.phase == "test" and has_test else "train"
    sequences = _pair(config, {m: _list_sequences(d) for m, d in _directories(config, source).items()})
    if config.test_tail and has_test:
        logger.info("%s has folders for the phase 'test': test_tail is not used", config.root)
    elif config.test_tail:
        sequences = _split_tail(config, sequences)
    if config.condition == "rgb":
        return VideoFolder(config, sequences, ConditionSpec(kind="maps", map_channels=3), None)
    classes = _resolve_classes(config)
    spec = ConditionSpec(class_names=classes.names, use_instances=config.use_instances, ignore_id=config.ignore_id)
    return VideoFolder(config, sequences, spec, classes)


class FrameReader:
    """Reads frames with their maps, checks them, and keeps what was used last.

    Kept are scaled images, or those of the file where the scale changes from clip to clip, so that a small data set is
    decoded once. Each process has its own.
    """

    def __init__(self, folder: VideoFolder, cache_mb: float = 512) -> None:
        self._folder = folder
        self._cache = ArrayCache(cache_mb)
        self._sizes: dict[int, tuple[Path, Size]] = {}

    def image_size(self, sequence: int, frame: int = 0) -> Size:
        """(height, width) of all images of a sequence; ``frame`` is read where no image of it was read before."""
        if sequence not in self._sizes:
            path = self._path(sequence, "frames", frame)
            # Kept unscaled for a moment: the same frame is wanted next, once its geometry is known.
            self._cache.put((path, None), self._decode(sequence, "frames", frame))
        return self._sizes[sequence][1]

    def read(
        self, sequence: int, indices: AnySequence[int], geometry: Geometry, flip: bool = False
    ) -> dict[str, NDArray[Any]]:
        """Read some frames of a sequence.

        Args:
            sequence: its position in the folder.
            indices: which frames, T of them.
            geometry: what is done to every image and map.
            flip: mirror them.

        Returns:
            For each modality (T, H, W, 3) uint8 or (T, H, W) integers.

        Raises:
            DataError: if a file is damaged, differs in size from its neighbours or counterparts, or holds an unknown
                id; or if there is no such frame.
        """
        stacks: dict[str, NDArray[Any]] = {}
        for modality in self._folder.config.modalities:
            images = (self._scaled(sequence, modality, index, geometry) for index in indices)
            stacks[modality] = np.stack([crop_and_flip(geometry, image, flip=flip) for image in images])
        return stacks

    def _scaled(self, sequence: int, modality: str, frame: int, geometry: Geometry) -> NDArray[Any]:
        path = self._path(sequence, modality, frame)
        keep_raw = self._folder.config.geometry.is_random
        key = (path, None if keep_raw else (geometry.resized, geometry.interpolation))
        kept = self._cache.get(key)
        if kept is None:
            raw = self._cache.get((path, None))
            raw = self._decode(sequence, modality, frame) if raw is None else raw
            kept = self._cache.put(key, raw if keep_raw else resize(geometry, raw, MODALITIES[modality].kind))
        return resize(geometry, kept, MODALITIES[modality].kind) if keep_raw else kept

    def _decode(self, sequence: int, modality: str, frame: int) -> NDArray[Any]:
        path = self._path(sequence, modality, frame)
        image: NDArray[Any] = read_image(path) if MODALITIES[modality].kind == "image" else read_label(path)
        size: Size = (image.shape[0], image.shape[1])
        if modality == "frames":
            first, first_size = self._sizes.setdefault(sequence, (path, size))
        else:
            first, first_size = self._path(sequence, "frames", frame), self.image_size(sequence, frame)
        if size != first_size:
            raise DataError(
                f"{path} is {size[1]}x{size[0]} pixels and {first} is {first_size[1]}x{first_size[0]}; all images and "
                "maps of a sequence must have the same size"
            )
        if modality == "labels":
            check_label_ids(image, self._folder.spec, str(path))
        return image

    def _path(self, sequence: int, modality: str, frame: int) -> Path:
        if not 0 <= sequence < len(self._folder.sequences):
            raise DataError(f"there is no sequence {sequence}; {self._folder.root} has {len(self._folder.sequences)}")
        chosen = self._folder.sequences[sequence]
        if not 0 <= frame < len(chosen):
            raise DataError(f"there is no frame {frame} in sequence '{chosen.name}'; it has {len(chosen)} frames")
        return chosen.files[modality][frame]


def _directory(root: Path, layout: Layout, phase: Phase, modality: str) -> Path:
    where = MODALITIES[modality]
    return root / f"{phase}_{where.suffix}" if layout == "vid2vid" else root / where.folder / phase


def _find_layout(config: FolderConfig, phase: Phase) -> Layout | None:
    """Layout in which the phase has a folder of conditions or frames; vid2vid's where it has both."""
    for layout in get_args(Layout):
        if any(_directory(config.root, layout, phase, modality).is_dir() for modality in config.modalities[:2]):
            return layout
    return None


def _convention(config: FolderConfig, phase: Phase) -> str:
    vid2vid, fast = (
        " and ".join(str(_directory(Path(), layout, phase, m)) for m in config.modalities)
        for layout in get_args(Layout)
    )
    nouns = " and ".join(f"{MODALITIES[m].noun}s" for m in config.modalities)
    return f"looked for {vid2vid} (or {fast}) with {nouns} as <sequence>/<frame>.png"


def _directories(config: FolderConfig, phase: Phase) -> dict[str, Path]:
    """Folder of each modality."""
    layout = _find_layout(config, phase) or "vid2vid"
    directories = {modality: _directory(config.root, layout, phase, modality) for modality in config.modalities}
    missing = [directory.relative_to(config.root) for directory in directories.values() if not directory.is_dir()]
    if missing:
        raise DataError(
            f"{config.root}: the folder {' and '.join(map(str, missing))} is missing; {_convention(config, phase)}"
        )
    return directories


def _list_sequences(directory: Path) -> dict[str, dict[str, Path]]:
    """Files by stem of each directory that has images, or that has nothing at all below it."""
    found: dict[str, dict[str, Path]] = {}
    for folder, files, is_leaf in _walk(directory, ()):
        stems: dict[str, Path] = {}
        for path in files:
            other = stems.setdefault(path.stem, path)
            if other != path:
                raise DataError(f"{path} and {other.name} have the same stem; keep one of them")
        if stems or (is_leaf and folder != directory):
            found[folder.relative_to(directory).as_posix()] = stems
    return found


def _walk(directory: Path, above: tuple[Path, ...]) -> Iterator[tuple[Path, list[Path], bool]]:
    """Directories with their images; links are followed, hidden entries are not, and no circle is walked twice."""
    real = directory.resolve()
    if real in above:
        return
    entries = [entry for entry in sorted(directory.iterdir()) if not entry.name.startswith(".")]
    below = [entry for entry in entries if entry.is_dir()]
    yield directory, [entry for entry in entries if is_image_file(entry) and entry.is_file()], not below
    for entry in below:
        yield from _walk(entry, (*above, real))


def _pair(config: FolderConfig, found: Mapping[str, Mapping[str, Mapping[str, Path]]]) -> tuple[Sequence, ...]:
    """Bring the files of all modalities together by sequence and stem."""
    names = sorted({name for sequences in found.values() for name in sequences})
    if not names:
        accepted = ", ".join(IMAGE_SUFFIXES)
        raise DataError(f"{config.root}: no sequence was found in it, that is, no folder with images ({accepted})")
    paired = []
    for name in names:
        files = {modality: sequences.get(name, {}) for modality, sequences in found.items()}
        if not any(files.values()):
            raise DataError(f"{config.root}: sequence '{name}' is empty; remove its folder or fill it with images")
        stems = sorted({stem for paths in files.values() for stem in paths}, key=by_number)
        gaps = [gap for modality, paths in files.items() if (gap := _describe_gap(modality, paths, files, stems))]
        if gaps:
            raise DataError(
                f"{config.root}: in sequence '{name}' {', and '.join(gaps)}; every frame needs files of the same name "
                "in all folders: add those or remove the rest"
            )
        paired.append(Sequence(name, tuple(stems), {m: tuple(p[s] for s in stems) for m, p in files.items()}))
    return tuple(paired)


def _describe_gap(
    modality: str, paths: Mapping[str, Path], files: Mapping[str, Mapping[str, Path]], stems: list[str]
) -> str | None:
    """Say which files of the other modalities have no counterpart in this one."""
    lacking = [stem for stem in stems if stem not in paths]
    if not lacking:
        return None
    owners = [f"{MODALITIES[other].noun}s" for other, others in files.items() if any(s in others for s in lacking)]
    first = ", ".join(lacking[:3]) + (", ..." if len(lacking) > 3 else "")
    return f"{len(lacking)} {' and '.join(owners)} have no {MODALITIES[modality].noun} ({first})"


def by_number(stem: str) -> tuple[list[tuple[int, int | str]], str]:
    """Sort key by the numbers in a stem, so that frame_2 precedes frame_10; the usual order where they are padded."""
    parts = re.findall(r"\d+|\D+", stem)
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts], stem


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
    table = read_classes(config.root)
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
    directory = _directory(config.root, _find_layout(config, "train") or "vid2vid", "train", "labels")
    found = _list_sequences(directory) if directory.is_dir() else {}
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
