"""Data sets described by a JSON file instead of folder names. Torch-free.

The file names the directories of every sequence, relative to itself; each directly holds one file per frame::

    {"train": [{"name": "drive-1", "frames": "videos/1/rgb", "labels": "videos/1/ids"}],
     "test": [{"name": "drive-2", "frames": "videos/2/rgb", "labels": "videos/2/ids"}]}

The keys are those of ``fastv2v.data.modalities.MODALITIES``. ``classes.json`` lies beside the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, get_args

from fastv2v.data.images import read_bytes
from fastv2v.data.modalities import MODALITIES, Modality, Phase, list_files
from fastv2v.data.sequences import Listing
from fastv2v.errors import DataError

Entries = tuple[Mapping[str, str], ...]
"""Sequences of one phase: ``name`` and the directory of each modality."""


def read_manifest(path: Path) -> dict[Phase, Entries]:
    """Read the file that describes a data set.

    Args:
        path: the JSON file.

    Returns:
        The sequences of both phases; none for a phase that is not in the file.

    Raises:
        DataError: if the file is damaged or does not follow its form.
    """
    try:
        content = json.loads(read_bytes(path, "data set file"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a readable JSON file ({error}); correct it there") from error
    phases = get_args(Phase)
    if not isinstance(content, dict) or not content or not content.keys() <= set(phases):
        raise DataError(
            f"{path}: expected an object with the keys {' and '.join(phases)}, and no others; write it as "
            '{"train": [SEQUENCES], "test": [SEQUENCES]}'
        )
    return {phase: _entries(path, phase, content.get(phase, [])) for phase in phases}


def _entries(path: Path, phase: str, entries: Any) -> Entries:
    known = ("name", *MODALITIES)
    if not isinstance(entries, list):
        raise DataError(f"{path}: '{phase}' must be a list of sequences; put them in square brackets")
    seen: set[str] = set()
    for number, entry in enumerate(entries):
        where = f"{path}: sequence {number} of '{phase}'"
        if not isinstance(entry, dict) or not all(isinstance(v, str) and v for v in entry.values()):
            raise DataError(
                f'{where} must be an object of texts, such as {{"name": "drive-1", "frames": "videos/1", ...}}'
            )
        if "name" not in entry or not entry.keys() <= set(known):
            unknown = ", ".join(sorted(entry.keys() - set(known))) or "no name"
            raise DataError(f"{where} has {unknown}; it needs a name and may have {', '.join(MODALITIES)}")
        if not _is_name(entry["name"]):
            raise DataError(
                f"{where} has the name {entry['name']!a}; results are written to folders of this name: leave out "
                "'..', backslashes, drives, a slash at the start and whatever no file name can hold"
            )
        if entry["name"] in seen:
            raise DataError(f"{path}: two sequences of '{phase}' have the name '{entry['name']}'; give each its own")
        seen.add(entry["name"])
    return tuple(entries)


def _is_name(name: str) -> bool:
    """Whether a name makes a path that stays below the folder it is joined to, on any system."""
    is_absolute = PurePosixPath(name).is_absolute() or bool(PureWindowsPath(name).anchor)
    has_surrogates = any("\ud800" <= character <= "\udfff" for character in name)
    return not (is_absolute or ".." in name.split("/") or "\\" in name or "\0" in name or has_surrogates)


def list_manifest(path: Path, entries: Entries, places: Mapping[str, Modality]) -> dict[str, Listing]:
    """List the files of the sequences of one phase.

    Args:
        path: the JSON file.
        entries: of the phase.
        places: the kinds of files that are wanted.

    Returns:
        For each kind, files by sequence and stem.

    Raises:
        DataError: if a sequence lacks a wanted directory.
    """
    found: dict[str, dict[str, dict[str, Path]]] = {modality: {} for modality in places}
    for entry in entries:
        for modality, place in places.items():
            if modality not in entry:
                raise DataError(
                    f"{path}: sequence '{entry['name']}' names no directory of {place.noun}s; add '{modality}'"
                )
            directory = path.parent / entry[modality]
            if not directory.is_dir():
                raise DataError(
                    f"{path}: {directory}, the {place.noun}s of sequence '{entry['name']}', is no directory; "
                    "correct the path, which counts from where the file lies"
                )
            found[modality][entry["name"]] = list_files(directory, place)
    return dict(found)
