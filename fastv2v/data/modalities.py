"""The kinds of files a data set is made of: where they lie and how they are listed. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Literal, NamedTuple

from fastv2v.data.images import IMAGE_SUFFIXES
from fastv2v.data.transforms import MapKind
from fastv2v.errors import DataError

Phase = Literal["train", "test"]
"""Parts of a data set."""
Layout = Literal["vid2vid", "Fast-Vid2Vid"]
"""How a data set names its folders."""
Condition = Literal["labels", "rgb", "face", "pose"]
"""What frames are generated from."""


class Modality(NamedTuple):
    """One kind of file of a data set: where it lies and how it is read."""

    suffix: str
    """``<phase>_<suffix>`` in vid2vid's layout."""
    folder: str
    """``<folder>/<phase>`` in Fast-Vid2Vid's layout."""
    noun: str
    """What one file is called in messages."""
    kind: MapKind
    """How its pixels are scaled."""
    extensions: tuple[str, ...] = IMAGE_SUFFIXES
    """Accepted extensions in lower case."""
    stem_end: str = ""
    """What its tool appends to the stem of the frame."""

    def directory(self, root: Path, layout: Layout, phase: Phase) -> Path:
        """Folder of this kind of file."""
        return root / f"{phase}_{self.suffix}" if layout == "vid2vid" else root / self.folder / phase


MODALITIES: Final[Mapping[str, Modality]] = {
    "frames": Modality("B", "B", "frame", "image"),
    "labels": Modality("A", "A", "label map", "label"),
    "maps": Modality("A", "A", "condition image", "image"),
    "instances": Modality("inst", "Inst", "instance map", "label"),
    "keypoints": Modality("keypoints", "keypoints", "landmark file", "drawing", (".txt",)),
    "densepose": Modality("densepose", "densepose", "DensePose map", "label", IMAGE_SUFFIXES, "_IUV"),
    "openpose": Modality("openpose", "openpose", "OpenPose file", "label", (".json",), "_keypoints"),
    "flow": Modality("flow", "flow", "flow file", "flow", (".npz", ".flo")),
    "unprojections": Modality("unprojections", "unprojections", "unprojection file", "label", (".npz", ".pkl")),
}
"""Every kind of file: those of a ``Clip`` field by its name, and those from which its maps are drawn."""

MAY_LACK: Final = ("keypoints", "densepose", "openpose")
"""What a detector makes of a frame, or fails to."""

OPTIONAL: Final = ("unprojections",)
"""What a frame may be without: where no geometry is known, nothing is painted."""


def place_of(modality: str, condition: Condition) -> Modality:
    """Where a kind of file lies: frames of faces and poses have a folder name of their own."""
    place = MODALITIES[modality]
    return place._replace(suffix="img", folder="img") if modality == "frames" and condition in _FROM_IMG else place


_FROM_IMG: Final = ("face", "pose")


def list_sequences(directory: Path, place: Modality) -> dict[str, dict[str, Path]]:
    """Files by stem of each directory that has such files, or that has nothing at all below it.

    Args:
        directory: searched to any depth; links are followed, hidden entries are not, no circle is walked twice.
        place: the kind of file.

    Returns:
        For each directory, named by its path below ``directory`` with forward slashes (``.`` for itself), its files.

    Raises:
        DataError: if two files of one directory have the same stem.
    """
    found: dict[str, dict[str, Path]] = {}
    for folder, entries in _walk(directory, ()):
        stems = _by_stem(entries, place)
        is_leaf = folder != directory and not any(entry.is_dir() for entry in entries)
        if stems or is_leaf:
            found[folder.relative_to(directory).as_posix()] = stems
    return found


def list_files(directory: Path, place: Modality) -> dict[str, Path]:
    """Files of one directory by stem, not those below it.

    Raises:
        DataError: if two have the same stem.
    """
    return _by_stem(_entries(directory), place)


def _entries(directory: Path) -> list[Path]:
    return [entry for entry in sorted(directory.iterdir()) if not entry.name.startswith(".")]


def _by_stem(entries: list[Path], place: Modality) -> dict[str, Path]:
    stems: dict[str, Path] = {}
    for path in entries:
        if path.suffix.lower() in place.extensions and path.is_file():
            other = stems.setdefault(path.stem.removesuffix(place.stem_end), path)
            if other != path:
                raise DataError(f"{path} and {other.name} have the same stem; keep one of them")
    return stems


def _walk(directory: Path, above: tuple[Path, ...]) -> Iterator[tuple[Path, list[Path]]]:
    """Every directory with what it holds."""
    real = directory.resolve()
    if real in above:
        return
    entries = _entries(directory)
    yield directory, entries
    for entry in entries:
        if entry.is_dir():
            yield from _walk(entry, (*above, real))
