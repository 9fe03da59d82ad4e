"""Pack frames, label maps, instance maps and unprojections that belong together. Torch-free.

The result is read like any packed data set (``fastv2v.data.packed``). It holds nothing but whole frames, and
unprojections in the form that is read fastest.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Final, get_args

from fastv2v.data.classes import CLASSES_FILE
from fastv2v.data.images import image_size
from fastv2v.data.modalities import MODALITIES, Layout, Modality, Phase, list_sequences
from fastv2v.data.packed import Progress, is_packed, pack_files
from fastv2v.data.sequences import pair_files
from fastv2v.data.unprojection import stored_bytes
from fastv2v.errors import DataError

logger = logging.getLogger(__name__)

PAIRED: Final = ("frames", "labels", "instances", "unprojections")
"""Kinds of files that are packed; the first must be there."""
_POINTS: Final = "unprojections"
_INSTANCES: Final = "instances"

Listed = dict[str, dict[str, dict[str, Path]]]
"""Files of each kind by sequence and stem."""


@dataclass(frozen=True)
class PairedSummary:
    """What was packed."""

    target: Path
    """The packed data set."""
    num_frames: int
    """Frames, each with all its files."""
    num_sequences: int
    """Sequences, each counted once for its phase."""
    num_left_out: int
    """Frames that lacked a file."""
    num_without_points: int
    """Frames without an unprojection, where others have one."""
    num_bytes: int
    """Bytes that are stored."""
    seconds: float
    """Time taken, with the check at the end."""


def pack_paired(
    source: Path,
    target: Path,
    *,
    phases: Sequence[Phase] = ("train", "test"),
    remove_missing: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> PairedSummary:
    """Pack what belongs together, frame by frame.

    Args:
        source: folder of the data set, in either layout. A sequence may have no instance maps at all.
        target: the packed data set; appears complete or not at all.
        phases: which parts of it.
        remove_missing: leave out frames that lack a file; otherwise they are an error. An unprojection may always lack.
        overwrite: replace a packed data set found there.
        progress: as for ``pack_folder``.

    Returns:
        What was packed.

    Raises:
        DataError: if there are no frames, a frame lacks a file, an unprojection is damaged, or as ``pack_files``.
        MissingExtraError: if lmdb is not installed.
    """
    started = time.monotonic()
    if is_packed(source) or not source.is_dir():
        raise DataError(f"{source} is no folder of a data set; give the one that holds train_B or B/train")
    files: dict[str, Path | None] = {}
    shown: dict[str, tuple[Path, Path]] = {}
    folders: list[str] = []
    frames = sequences = left_out = without = 0
    for phase in phases:
        for layout in get_args(Layout):
            listed, places = _listed(source, layout, phase)
            for part in _alike(listed):
                found, lost = _whole(part) if remove_missing else (part, 0)
                left_out += lost
                for sequence in pair_files(source, found) if any(found.values()) else ():
                    sequences, frames = sequences + 1, frames + len(sequence)
                    for modality, paths in sequence.files.items():
                        files |= {_key(places[modality], sequence.name, path): path for path in paths if path}
                    for path, frame in zip(sequence.files.get(_POINTS, ()), sequence.files["frames"], strict=False):
                        without += path is None
                        if path is not None and frame is not None:
                            shown[_key(places[_POINTS], sequence.name, path)] = path, frame
            folders += places.values()
    if not frames:
        raise DataError(f"{source}: there is nothing to pack; looked for frames with label maps in train_B and train_A")
    table = source / CLASSES_FILE
    if table.is_file():
        files[CLASSES_FILE] = table
    if left_out or without:
        logger.warning(
            "%s: %d frames are left out as they lack a file, %d have no unprojection", source, left_out, without
        )
    record = {"source": source.resolve().name, "folders": folders, "paired": True}
    convert = partial(_stored, shown)
    _, num_bytes = pack_files(files, target, record=record, overwrite=overwrite, convert=convert, progress=progress)
    seconds = time.monotonic() - started
    return PairedSummary(target, frames, sequences, left_out, without, num_bytes, seconds)


def _listed(source: Path, layout: Layout, phase: Phase) -> tuple[Listed, dict[str, str]]:
    """Files of each kind by sequence and stem, and the folder of each kind below the source."""
    found, places = {}, {}
    for modality in PAIRED:
        place: Modality = MODALITIES[modality]
        candidates = [place, place._replace(suffix="img", folder="img")] if modality == "frames" else [place]
        for candidate in candidates:
            directory = candidate.directory(source, layout, phase)
            if directory.is_dir():
                found[modality] = list_sequences(directory, candidate)
                places[modality] = directory.relative_to(source).as_posix()
                break
    return (found, places) if "frames" in found else ({}, {})


def _alike(found: Listed) -> list[Listed]:
    """The same sequences in up to two parts: those with instance maps, and those that have none at all."""
    bare = {name for sequences in found.values() for name in sequences} - set(found.get(_INSTANCES, {}))
    if _INSTANCES not in found or not bare:
        return [found]
    return [
        {kind: {name: stems for name, stems in by_name.items() if name not in bare} for kind, by_name in found.items()},
        {
            kind: {name: stems for name, stems in by_name.items() if name in bare}
            for kind, by_name in found.items()
            if kind != _INSTANCES
        },
    ]


def _whole(found: Listed) -> tuple[Listed, int]:
    """Frames that have a file of every kind but unprojections, and how many have not."""
    needed = [modality for modality in found if modality != _POINTS]
    names = {name for sequences in found.values() for name in sequences}
    kept: Listed = {modality: {} for modality in found}
    lost = 0
    for name in names:
        stems = {modality: found[modality].get(name, {}) for modality in found}
        every = set().union(*stems.values())
        whole = set.intersection(*(set(stems[modality]) for modality in needed))
        lost += len(every - whole)
        if whole:
            for modality, paths in stems.items():
                kept[modality][name] = {stem: path for stem, path in paths.items() if stem in whole}
    return kept, lost


def _key(folder: str, sequence: str, path: Path) -> str:
    """Where a file lies in the packed data set; every unprojection is stored as ``.npz``."""
    name = f"{path.stem}.npz" if path.suffix.lower() == ".pkl" else path.name
    return (PurePosixPath(folder) / sequence / name).as_posix()


def _stored(shown: Mapping[str, tuple[Path, Path]], key: str, data: bytes) -> bytes:
    """The bytes of a file; unprojections, whose own path and frame are given, in the form that is read fastest."""
    if key not in shown:
        return data
    path, frame = shown[key]
    return stored_bytes(data, str(path), image_size(frame))
