"""Precomputed teachers: what a teacher makes of a data set, written once and read back for training clips.

``OUT/`` holds ``manifest.json`` and, for sequence number i, ``0000i.frame.npy`` and, where flow was asked for,
``0000i.flow.npy``: plain arrays of all frames after the history, read through memory maps. So a clip costs one copy,
and what is held in memory is the page cache of the system, which gives way by itself. No path stands in the manifest.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import shutil
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any, Final, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.teacher import Taught
from fastv2v.checkpoint import weights_file
from fastv2v.config import from_dict, to_dict
from fastv2v.contracts import FrameOutput
from fastv2v.data.clip import Clip, ClipInfo
from fastv2v.data.conditions import ConditionSpec
from fastv2v.data.folder import VideoFolder
from fastv2v.data.images import read_bytes
from fastv2v.data.transforms import GeometryConfig
from fastv2v.errors import ConfigError, DataError
from fastv2v.render import Points
from fastv2v.run import write_json
from fastv2v.score import to_uint8

_LOG = logging.getLogger(__name__)

SCHEMA: Final = 1
"""Version of the files."""
MANIFEST: Final = "manifest.json"

Kind = Literal["frame", "flow"]
_TYPES: Final[dict[Kind, type[np.generic]]] = {"frame": np.uint8, "flow": np.float16}
_CHANNELS: Final[dict[Kind, int]] = {"frame": 3, "flow": 2}
# What numpy raises over a damaged header.
_NO_ARRAY: Final = (ValueError, TypeError, KeyError, ArithmeticError, SyntaxError, TokenError, OSError, MemoryError)
_AGAIN: Final = "make them again: fastv2v precompute"


@dataclass(frozen=True, kw_only=True)
class TaughtSequence:
    """A sequence the teacher has drawn."""

    name: str
    """As in the data set."""
    stems: tuple[str, ...]
    """File names without extension of all its frames, the history at its start included."""


@dataclass(frozen=True, kw_only=True)
class TaughtRecord:
    """What decides the frames of a precomputed teacher. Equal records, equal frames; paths are for people."""

    schema: int = SCHEMA
    """Version of the files."""
    teacher: Path = field(compare=False)
    """The checkpoint that was rolled out."""
    weights_sha256: str
    """Of its generator's weights file."""
    data: Path = field(compare=False)
    """The data set, its training part."""
    condition: ConditionSpec
    """How its conditions were encoded."""
    geometry: GeometryConfig
    """How its frames were brought to size."""
    history_length: int
    """N-1 of the teacher: so many frames at the start of each sequence are not drawn."""
    window: int
    """Frames after which the rollout began again from real frames; 0 never."""
    has_flow: bool
    """Whether the teacher's flow was kept."""
    sequences: tuple[TaughtSequence, ...]
    """In the order of their files."""

    def __post_init__(self) -> None:
        check_geometry(self.geometry)
        if self.schema != SCHEMA:
            raise ConfigError(f"it has schema {self.schema} and this version of fastv2v reads {SCHEMA}")
        if self.window < 0:
            raise ConfigError(f"window must be 0 or more frames, got {self.window}")
        if self.history_length < 1:
            raise ConfigError(f"history_length must be at least 1, got {self.history_length}")
        if not self.sequences:
            raise ConfigError(
                f"no sequence of {self.data} has more frames than a history of {self.history_length}; give longer "
                "ones, or more --max-frames"
            )
        for sequence in self.sequences:
            if len(sequence.stems) <= self.history_length:
                raise ConfigError(f"sequence '{sequence.name}' has no frame beyond a history of {self.history_length}")

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Which arrays a sequence has."""
        return ("frame", "flow") if self.has_flow else ("frame",)


class Span(NamedTuple):
    """One rollout: it reads from frame ``start`` on, and its frames ``first:stop`` are kept."""

    start: int
    first: int
    stop: int


def rollout_spans(num_frames: int, history_length: int, window: int) -> list[Span]:
    """Cut a sequence into rollouts that each begin with a whole history of real frames.

    A teacher drifts away from the real frames; a student that is shown short rollouts, as in training, learns from
    fresh ones. Rollouts overlap, so that all kept frames but the first N-1 of a sequence were made from a whole history
    of the teacher's own.

    Args:
        num_frames: T, frames of the sequence.
        history_length: N-1.
        window: frames kept of one rollout; 0 keeps all of one.

    Returns:
        Spans that keep each of the frames N-1 to T-1 once; none where the sequence is no longer than the history.
    """
    step = window or max(num_frames, 1)
    return [
        Span(max(0, first - 2 * history_length), first, min(first + step, num_frames))
        for first in range(history_length, num_frames, step)
    ]


def check_geometry(geometry: GeometryConfig) -> None:
    """Refuse clips that are scaled or cropped at random: they do not say where they were cut.

    Raises:
        ConfigError: naming the mode and what to do.
    """
    if geometry.is_random or geometry.mode.endswith("rop"):
        raise ConfigError(
            f"a precomputed teacher needs whole frames of one size, and the geometry mode '{geometry.mode}' crops or "
            "scales each clip by chance; use a mode without crop, such as 'exact' or 'scaleWidth', or let the teacher "
            "run live (no --taught)"
        )


def weights_sha256(checkpoint: Path) -> str:
    """sha256 of a generator's weights, by which taught frames know their teacher.

    Raises:
        CheckpointError: if the checkpoint is damaged.
    """
    return _sha256(weights_file(checkpoint))


class TaughtWriter:
    """Writes a precomputed teacher, sequence by sequence; it appears complete under its name or not at all.

    What is finished lies in a hidden folder beside it. A writer with an equal record goes on from there.

    Args:
        folder: where it shall be.
        record: what will be written.
        overwrite: replace a precomputed teacher of other settings. Anything else is never replaced.

    Raises:
        ConfigError: if something else lies there.
        DataError: if a precomputed teacher lies there and is damaged.
    """

    def __init__(self, folder: Path, record: TaughtRecord, *, overwrite: bool = False) -> None:
        self.folder, self.record = Path(folder), record
        self._partial = self.folder.with_name(f".{self.folder.name}.partial")
        self._checksums: list[dict[Kind, str]] = []
        self._is_placed = False
        if os.path.lexists(self.folder):
            if self.folder.is_symlink() or not (self.folder / MANIFEST).is_file():
                raise ConfigError(f"{self.folder} exists and is no precomputed teacher; name another folder with --out")
            found, checksums = (None, []) if overwrite else _read_manifest(self.folder)
            if found == record:
                self._checksums, self._is_placed = checksums, True
                return
            if not overwrite:
                raise ConfigError(
                    f"{self.folder} holds a teacher precomputed with other settings, weights or data; name another "
                    "folder with --out, or pass --overwrite"
                )
        if (self._partial / MANIFEST).is_file():
            try:
                found, checksums = _read_manifest(self._partial)
            except DataError as error:  # nobody but a writer reads it, and the remedy is this very command
                _LOG.warning("%s; what was finished there is made again", error)
                found, checksums = None, []
            if found == record:
                self._checksums = checksums
                return
        shutil.rmtree(self._partial, ignore_errors=True)  # of other settings, or nothing was finished in it

    @property
    def num_done(self) -> int:
        """Sequences that are written already: the first ones of the record."""
        return len(self._checksums)

    def add(self, outputs: Iterable[FrameOutput]) -> None:
        """Write the next sequence.

        Args:
            outputs: one for each of its frames after the history, in order: frame (1, 3, H, W) in [-1, 1] and, where
                flow is kept, flow (1, 2, H, W) in pixels.

        Raises:
            DataError: if an output is not finite.
        """
        number = self.num_done
        sequence = self.record.sequences[number]
        self._partial.mkdir(parents=True, exist_ok=True)
        rows = len(sequence.stems) - self.record.history_length
        with ExitStack() as stack:
            files: dict[Kind, IO[bytes]] = {
                kind: stack.enter_context(_array_file(self._partial, number, kind).open("wb"))
                for kind in self.record.kinds
            }
            count = 0
            for output in outputs:
                for kind, file in files.items():
                    row = _to_row(output, kind, f"'{sequence.name}', frame {self.record.history_length + count}")
                    if not count:
                        header = {"descr": np.dtype(_TYPES[kind]).str, "fortran_order": False}
                        np.lib.format.write_array_header_1_0(file, {**header, "shape": (rows, *row.shape)})
                    file.write(row.tobytes())
                count += 1
            assert count == rows, (count, rows)
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
        self._checksums.append({k: _sha256(_array_file(self._partial, number, k)) for k in self.record.kinds})
        write_json(self._partial / MANIFEST, {"record": to_dict(self.record), "checksums": self._checksums})

    def finish(self) -> int:
        """Put the folder in its place, once all sequences are written.

        Returns:
            Bytes of its arrays.
        """
        assert self.num_done == len(self.record.sequences)
        if not self._is_placed:
            old = self.folder.with_name(f".{self.folder.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            if self.folder.exists():  # only where overwriting was allowed
                self.folder.rename(old)
            self._partial.rename(self.folder)
            shutil.rmtree(old, ignore_errors=True)
            self._is_placed = True
        return sum(path.stat().st_size for path in self.folder.glob("*.npy"))


class TaughtFrames:
    """A precomputed teacher: a ``TeacherSource`` that reads from disk.

    It knows one start only: its own frames, mirrored where a clip is. Frames are 8-bit, as delivered ones are; flow is
    half precision. An array is checked against its sum when it is first used.

    Args:
        folder: what ``fastv2v precompute`` wrote.
        flow: whether ``teach`` shall give flow, which is read only then.

    Raises:
        DataError: if it is missing, incomplete, damaged or of another version.
        ConfigError: if flow is wanted and was not kept.
    """

    def __init__(self, folder: Path, *, flow: bool = False) -> None:
        self.folder = Path(folder)
        self.record, self._checksums = _read_manifest(self.folder)
        if len(self._checksums) != len(self.record.sequences):
            raise DataError(f"{self.folder} is not complete; {_AGAIN}")
        if flow and not self.record.has_flow:
            raise ConfigError(f"{self.folder} holds no flow, which kd_flow compares with; {_AGAIN} --flow")
        self._kinds: tuple[Kind, ...] = ("frame", "flow") if flow else ("frame",)
        self._numbers = {sequence.name: number for number, sequence in enumerate(self.record.sequences)}
        self._checked: set[Path] = set()
        for number in range(len(self.record.sequences)):
            for kind in self._kinds:
                self._array(number, kind)

    @property
    def has_flow(self) -> bool:
        """Whether ``teach`` gives flow."""
        return "flow" in self._kinds

    @property
    def has_features(self) -> bool:
        """Never: inner feature maps are not kept."""
        return False

    def check(self, folder: VideoFolder, checkpoint: Path, history_length: int) -> None:
        """Refuse frames of another teacher, or for other clips than will be drawn, before training begins.

        Args:
            folder: the training part of the data set, as the student reads it.
            checkpoint: of the teacher.
            history_length: N-1 of the student.

        Raises:
            ConfigError: if teacher, condition, history or geometry differ.
            DataError: if sequences or frames are missing.
        """
        record = self.record
        check_geometry(folder.config.geometry)
        if record.weights_sha256 != weights_sha256(checkpoint):
            raise ConfigError(
                f"{self.folder} was made by other weights ({record.teacher}) than {checkpoint} holds; give that one "
                f"with --teacher, or {_AGAIN}"
            )
        ours = (folder.spec, folder.config.geometry, history_length)
        theirs = (record.condition, record.geometry, record.history_length)
        for what, made, wanted in zip(("condition", "geometry", "history length"), theirs, ours, strict=True):
            if made != wanted:
                raise ConfigError(
                    f"{self.folder} was made with another {what} than is used here, {_shown(made)} and "
                    f"{_shown(wanted)}; set it alike, or {_AGAIN}"
                )
        for sequence in folder.sequences:
            if len(sequence) > history_length:  # shorter ones are never drawn
                self._check_frames(sequence.name, dict(enumerate(sequence.stems)))

    def teach(self, clip: Clip, conditions: Tensor, start: str, points: Points | None = None) -> Taught:
        """What the teacher made of the frames of a clip, whatever the start.

        Args:
            clip: (B, T, ...), with its ``info``.
            conditions: not used.
            start: not used: these frames come from longer rollouts.
            points: not used: guidance is in the frames already.

        Returns:
            Frames (B, T-N+1, 3, H, W) and, where asked for, flow (B, T-N+1, 2, H, W), on the clip's device.

        Raises:
            DataError: if a sequence or frame is missing or damaged, its size is another one, or flow is asked of
                frames that are no neighbours.
        """
        if len(clip.info) != clip.frames.shape[0] or any(len(i.names) != clip.num_frames for i in clip.info):
            raise DataError("a precomputed teacher needs to know which frames a clip holds: its info is missing")
        # Stacked as arrays: torch refuses to stack half precision within autocast on a CPU.
        parts = {kind: np.stack([self._read(kind, info, clip) for info in clip.info]) for kind in self._kinds}
        as_float = {kind: torch.from_numpy(part).to(clip.frames.device).float() for kind, part in parts.items()}
        return Taught(as_float["frame"].div_(127.5).sub_(1.0), as_float.get("flow"))

    def _read(self, kind: Kind, info: ClipInfo, clip: Clip) -> NDArray[Any]:
        """Rows of one kind for one clip, (T-N+1, C, H, W) as stored."""
        past = self.record.history_length
        self._check_frames(info.sequence, dict(zip(info.indices, info.names, strict=True)))
        if kind == "flow" and any(b - a != 1 for a, b in itertools.pairwise(info.indices)):
            raise DataError(
                "a precomputed teacher has flow between neighbouring frames only; set "
                "--recipe.data.sampling.max-step 1, or the weight kd_flow to 0"
            )
        number = self._numbers[info.sequence]
        array = self._checked_array(number, kind)
        if array.shape[-2:] != clip.size:
            raise DataError(
                f"{self.folder}: sequence '{info.sequence}' has frames of {array.shape[-1]}x{array.shape[-2]} pixels "
                f"and the clip {clip.size[1]}x{clip.size[0]}; {_AGAIN}"
            )
        rows = np.asarray(array[[index - past for index in info.indices[past:]]])
        if info.flipped:
            rows = rows[..., ::-1]
            if kind == "flow":
                rows[:, 0] *= -1
        return rows

    def _check_frames(self, name: str, stems: dict[int, str]) -> None:
        """Refuse a sequence or frames, given as names by index, that the teacher has not drawn."""
        if name not in self._numbers:
            raise DataError(f"{self.folder} has no sequence '{name}' of {self.record.data}; {_AGAIN}")
        known = self.record.sequences[self._numbers[name]].stems
        for index, stem in stems.items():
            if index >= len(known) or known[index] != stem:
                raise DataError(f"{self.folder} lacks frame {index} ('{stem}') of sequence '{name}'; {_AGAIN}")

    def _checked_array(self, number: int, kind: Kind) -> NDArray[Any]:
        """The same, its content compared with its sum when it is used for the first time."""
        path = _array_file(self.folder, number, kind)
        if path not in self._checked and _sha256(path) != self._checksums[number][kind]:
            raise DataError(f"{path}: was altered or damaged (its sha256 differs from {MANIFEST}); {_AGAIN}")
        self._checked.add(path)
        return self._array(number, kind)

    def _array(self, number: int, kind: Kind) -> NDArray[Any]:
        """A memory map of one array, (T-N+1, C, H, W)."""
        path = _array_file(self.folder, number, kind)
        if path.is_symlink() or not path.is_file():
            raise DataError(f"{path}: there is no such file; copy the folder again, or {_AGAIN}")
        try:
            array: NDArray[Any] = np.lib.format.open_memmap(path, mode="r")  # refuses pickled objects
        except _NO_ARRAY as error:
            raise DataError(f"{path}: not a whole array; copy the folder again, or {_AGAIN}") from error
        rows = len(self.record.sequences[number].stems) - self.record.history_length
        if array.dtype != _TYPES[kind] or array.ndim != 4 or array.shape[:2] != (rows, _CHANNELS[kind]):
            raise DataError(
                f"{path}: holds {array.dtype} of shape {array.shape} and not what {MANIFEST} says; {_AGAIN}"
            )
        return array


def _array_file(folder: Path, number: int, kind: Kind) -> Path:
    """Where one array lies: names follow from numbers, so that no manifest can point elsewhere."""
    return folder / f"{number:05d}.{kind}.npy"


def _to_row(output: FrameOutput, kind: Kind, where: str) -> NDArray[Any]:
    """One frame (3, H, W) or flow (2, H, W) as it is stored."""
    part = output.frame if kind == "frame" else output.flow
    if part is None or not bool(part.isfinite().all()):
        raise DataError(f"{where}: the teacher gives {'no' if part is None else 'infinite or undefined'} {kind}")
    row = to_uint8(part[0]) if kind == "frame" else part[0].half()
    return row.cpu().numpy()


def _read_manifest(folder: Path) -> tuple[TaughtRecord, list[dict[Kind, str]]]:
    """Record and sums of a folder."""
    path = folder / MANIFEST
    try:
        content = json.loads(read_bytes(path, "manifest of a precomputed teacher"))
        record = from_dict(TaughtRecord, content["record"])
        checksums = [{kind: str(sums[kind]) for kind in record.kinds} for sums in content["checksums"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: no manifest of a precomputed teacher of this version ({error}); {_AGAIN}") from error
    if len(checksums) > len(record.sequences):
        raise DataError(f"{path}: has {len(checksums)} sums for {len(record.sequences)} sequences; {_AGAIN}")
    return record, checksums


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _shown(value: Any) -> str:
    return value.describe() if isinstance(value, ConditionSpec) else str(value)
