"""Sequences of a data set: bringing the files of each frame together, and what to do where some are lacking.

Torch-free. Files belong together when sequence and file stem are the same.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastv2v.data.face import Crop, CropBox, MissingFace, Size, check_in_frame, face_crop, read_landmarks
from fastv2v.data.images import image_size, read_bytes
from fastv2v.data.modalities import MAY_LACK, MODALITIES, OPTIONAL
from fastv2v.data.pose import MissingPose, check_people_in_frame, read_openpose
from fastv2v.errors import DataError

logger = logging.getLogger(__name__)

Missing = Literal["fail", "hold", "skip"]
"""What is done where nobody was detected in a frame."""
Listing = Mapping[str, Mapping[str, Path]]
"""Files of one modality, by sequence and stem."""

_COORDINATES = ("keypoints", "openpose")
"""Files that name places in the frame."""
_NAMED = 3
"""How many files, and sequences, a message names before it breaks off."""


@dataclass(frozen=True)
class Sequence:
    """Consecutive frames of one video with their maps."""

    name: str
    """Path of its directory below the phase, with forward slashes; ``.`` for the phase directory itself. A part of a
    sequence that was cut at frames without a condition ends in ``#1``, ``#2``, ..."""
    stems: tuple[str, ...]
    """File names without extension, in order."""
    files: Mapping[str, tuple[Path | None, ...]]
    """Files of each modality, in the order of ``stems``. Once a data set is open, only unprojections may be ``None``,
    and the flow file of the first frame, which is not needed."""

    def __len__(self) -> int:
        return len(self.stems)

    def take(self, start: int, stop: int) -> Sequence:
        """The frames ``start:stop``."""
        files = {modality: paths[start:stop] for modality, paths in self.files.items()}
        return Sequence(self.name, self.stems[start:stop], files)

    def path(self, modality: str, frame: int) -> Path:
        """File of one frame.

        Raises:
            DataError: if there is no such frame or file.
        """
        if not 0 <= frame < len(self):
            raise DataError(f"there is no frame {frame} in sequence '{self.name}'; it has {len(self)} frames")
        path = self.files[modality][frame]
        if path is None:
            raise DataError(f"frame {self.stems[frame]} of sequence '{self.name}' has no {MODALITIES[modality].noun}")
        return path


def by_number(stem: str) -> tuple[list[tuple[int, int | str]], str]:
    """Sort key by the numbers in a stem, so that frame_2 precedes frame_10; the usual order where they are padded."""
    parts = re.findall(r"\d+|\D+", stem)
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts], stem


def pair_files(root: Path, found: Mapping[str, Listing]) -> tuple[Sequence, ...]:
    """Bring the files of all modalities together by sequence and stem.

    Args:
        root: of the data set, for messages.
        found: files of each modality.

    Returns:
        The sequences by name; ``None`` stands for what a detector did not give (``MAY_LACK``) and for what a frame may
        be without (``OPTIONAL``).

    Raises:
        DataError: if there is no sequence, one is empty, or other files have no counterpart.
    """
    names = sorted({name for sequences in found.values() for name in sequences})
    if not names:
        accepted = ", ".join(sorted({e for modality in found for e in MODALITIES[modality].extensions}))
        raise DataError(f"{root}: no sequence was found in it, that is, no folder with images or maps ({accepted})")
    return tuple(
        _pair_one(root, name, {m: sequences.get(name, {}) for m, sequences in found.items()}) for name in names
    )


def _pair_one(root: Path, name: str, files: Mapping[str, Mapping[str, Path]]) -> Sequence:
    if not any(files.values()):
        raise DataError(f"{root}: sequence '{name}' is empty; remove its folder or fill it with images")
    stems = sorted({stem for paths in files.values() for stem in paths}, key=by_number)
    lacks = [
        text
        for modality, paths in files.items()
        if modality not in (*MAY_LACK, *OPTIONAL) and (text := _lack(modality, files, stems))
    ]
    if lacks:
        raise DataError(
            f"{root}: in sequence '{name}' {', and '.join(lacks)}; every frame needs files of the same name "
            "in all folders: add those or remove the rest"
        )
    return Sequence(name, tuple(stems), {m: tuple(paths.get(s) for s in stems) for m, paths in files.items()})


def _lack(modality: str, files: Mapping[str, Mapping[str, Path]], stems: list[str]) -> str | None:
    """Say which files of the other modalities have no counterpart in this one."""
    needed = stems[1:] if modality == "flow" else stems
    lacking = [stem for stem in needed if stem not in files[modality]]
    if not lacking:
        return None
    owners = [f"{MODALITIES[other].noun}s" for other, others in files.items() if any(s in others for s in lacking)]
    return f"{len(lacking)} {' and '.join(owners)} have no {MODALITIES[modality].noun} ({_first(lacking)})"


def drop_empty(root: Path, sequences: Iterable[Sequence]) -> tuple[Sequence, ...]:
    """Look into the small files of detectors, and treat those in which nobody is found as if they were not there.

    Args:
        root: of the data set, for messages.
        sequences: as paired.

    Returns:
        The sequences with ``None`` in place of such files.

    Raises:
        DataError: if a file is damaged, of another kind, or shows somebody outside the first frame of its sequence.
    """
    crowded: list[str] = []

    def checked(modality: str, path: Path | None, size: Size | None) -> Path | None:
        if path is None or size is None or modality not in _COORDINATES:
            return path
        data = read_bytes(path, MODALITIES[modality].noun)
        try:
            if modality == "keypoints":
                check_in_frame(read_landmarks(data, str(path)), size, str(path))
            else:
                people = read_openpose(data, str(path))
                check_people_in_frame(people, size, str(path))
                crowded.extend([path.name] * (len(people) > 1))
        except (MissingFace, MissingPose):
            return None
        return path

    def looked_at(s: Sequence) -> Sequence:
        # All frames of a sequence have the size of the first, which the reader makes sure of.
        size = image_size(s.path("frames", 0)) if any(m in s.files for m in _COORDINATES) else None
        return Sequence(
            s.name, s.stems, {m: tuple(checked(m, path, size) for path in paths) for m, paths in s.files.items()}
        )

    looked = tuple(looked_at(sequence) for sequence in sequences)
    if crowded:
        logger.warning(
            "%s: %d of %d frames show several people (%s); 'people' of the pose condition says who is drawn",
            root,
            len(crowded),
            sum(map(len, looked)),
            _first(crowded),
        )
    return looked


def face_box(sequence: Sequence, size: Size, crop: Crop) -> CropBox:
    """The box that is cut out of all frames of a sequence, placed by the landmarks of its first one.

    Args:
        sequence: with landmark files.
        size: (height, width) of its frames in pixels.
        crop: ``none`` for the whole frame.

    Raises:
        DataError: if that file is damaged, or its face lies outside the frame or cannot be cropped.
    """
    if crop == "none":
        return CropBox(0, 0, size[1], size[0])
    path = sequence.path("keypoints", 0)
    landmarks = read_landmarks(read_bytes(path, MODALITIES["keypoints"].noun), str(path))
    check_in_frame(landmarks, size, str(path))
    try:
        return face_crop(landmarks, size)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def settle_gaps(root: Path, sequences: tuple[Sequence, ...], missing: Missing) -> tuple[Sequence, ...]:
    """Refuse, fill or keep the gaps of sequences, with one warning in the latter cases.

    Args:
        root: of the data set, for messages.
        sequences: as given by ``drop_empty``.
        missing: ``fail`` refuses gaps; ``hold`` fills them with the files of the last frame before that has all kinds,
            or of the first such frame at the start; ``skip`` keeps them for ``cut_at_gaps``.

    Returns:
        The sequences.

    Raises:
        DataError: if there are gaps and ``missing`` is ``fail``; or if there is nothing to hold.
    """
    gaps = [
        f"in sequence '{s.name}' {len(lacking)} frames have no usable {MODALITIES[modality].noun} ({_first(lacking)})"
        for s in sequences
        for modality in MAY_LACK
        if (lacking := [stem for stem, path in zip(s.stems, s.files.get(modality, ()), strict=False) if path is None])
    ]
    if not gaps:
        return sequences
    text = ", ".join(gaps[:_NAMED]) + (f", and {len(gaps) - _NAMED} more" if len(gaps) > _NAMED else "")
    if missing == "fail":
        raise DataError(
            f"{root}: {text}; detect them again, or set missing to 'hold' (repeat the one before) or to 'skip' "
            "(cut the sequence there)"
        )
    done = "the one before is repeated" if missing == "hold" else "the sequences are cut there"
    logger.warning("%s: %s; %s", root, text, done)
    return sequences if missing == "skip" else tuple(_held(root, sequence) for sequence in sequences)


def _held(root: Path, sequence: Sequence) -> Sequence:
    whole = _whole_frames(sequence)
    if not any(whole):
        kinds = [MODALITIES[m].noun for m in sequence.files if m in MAY_LACK]
        nouns = " and ".join(kinds) + (" of one frame" if len(kinds) > 1 else "")
        raise DataError(
            f"{root}: sequence '{sequence.name}' has no usable {nouns} to hold; remove the sequence or set missing to "
            "'skip'"
        )
    last = whole.index(True)
    # All kinds come from one frame, lest a held body lie beside limbs that moved on.
    source = [last := i if is_whole else last for i, is_whole in enumerate(whole)]
    files = {m: tuple(paths[i] for i in source) if m in MAY_LACK else paths for m, paths in sequence.files.items()}
    return Sequence(sequence.name, sequence.stems, files)


def _whole_frames(sequence: Sequence) -> list[bool]:
    """Of each frame, whether detectors gave everything."""
    return [
        all(paths[i] is not None for m, paths in sequence.files.items() if m in MAY_LACK) for i in range(len(sequence))
    ]


def cut_at_gaps(sequences: Iterable[Sequence]) -> tuple[Sequence, ...]:
    """The runs of frames that have everything; a sequence without gaps keeps its name."""
    pieces = []
    for sequence in sequences:
        whole = _whole_frames(sequence)
        if all(whole):
            pieces.append(sequence)
            continue
        ends = list(itertools.accumulate(len(list(run)) for _, run in itertools.groupby(whole)))
        runs = [(start, stop) for start, stop in itertools.pairwise([0, *ends]) if whole[start]]
        for number, (start, stop) in enumerate(runs, 1):
            run = sequence.take(start, stop)
            pieces.append(Sequence(f"{sequence.name}#{number}", run.stems, run.files))
    return tuple(pieces)


def warn_without_points(root: Path, sequences: tuple[Sequence, ...]) -> None:
    """Say, with one warning, how many frames have no unprojection file and so get no guidance."""
    lacking = {
        s.name: [stem for stem, path in zip(s.stems, s.files["unprojections"], strict=True) if path is None]
        for s in sequences
        if "unprojections" in s.files
    }
    total = sum(len(s) for s in sequences)
    if missing := sum(map(len, lacking.values())):
        named = [f"{len(stems)} in sequence '{name}' ({_first(stems)})" for name, stems in lacking.items() if stems]
        logger.warning(
            "%s: %d of %d frames have no unprojection file and get no guidance: %s; make them: fastv2v unproject",
            root,
            missing,
            total,
            _first(named),
        )


def _first(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
