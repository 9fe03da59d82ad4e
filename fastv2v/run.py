"""The folder of one training run: its config, its surroundings, its curves and its pictures.

``runs/<name>/`` holds ``config.json``, ``environment.json``, ``metrics.jsonl``, ``tensorboard/``, ``checkpoints/`` and
``samples/``. The same command again finds the folder and continues.
"""

from __future__ import annotations

import io
import json
import logging
import math
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fastv2v.environment import describe_commit, describe_machine, describe_versions
from fastv2v.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

_LOG = logging.getLogger(__name__)
_OWN_ENTRIES = (
    "environment.json",
    "config.json",
    "metrics.jsonl",
    "tensorboard",
    "checkpoints",
    "samples",
    "looks.npz",
)
_ENVIRONMENT_KEYS = {"command", "commit", "versions", "machine"}
_PATH_KEYS = ("data", "teacher", "taught", "student", "init", "inherit")


class Run:
    """An open run folder; made by ``open_run``, closed by ``close`` or by leaving its ``with`` block.

    In a process that does not write (``is_main`` False) every method does nothing.
    """

    def __init__(self, folder: Path, *, is_main: bool, lock: IO[str] | None) -> None:
        self.folder = folder
        self.is_main = is_main
        self._lock = lock
        self._metrics: IO[str] | None = None
        self._board: SummaryWriter | None = None

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.folder / "checkpoints"

    @property
    def samples(self) -> Path:
        """Folder of the pictures made during training."""
        return self.folder / "samples"

    def begin(self, step: int) -> None:
        """Open the curves for writing after ``step``; whatever they hold beyond it is cut.

        A run that was killed may have reported steps after its last checkpoint. They are trained, and reported, again.
        """
        if not self.is_main:
            return
        from torch.utils.tensorboard.writer import SummaryWriter  # half a second, and only training needs it

        path = self.folder / "metrics.jsonl"
        _trim_metrics(path, step)
        self._metrics = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step + 1)

    def log(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Write one report to ``metrics.jsonl`` and TensorBoard.

        Args:
            step: after which update.
            kind: ``train`` or ``eval``; the prefix of the TensorBoard tags.
            values: numbers by name; one that is not finite is written as null.
        """
        if self._metrics is None or self._board is None:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        # One write of one line: a killed process leaves at most a torn last line, which ``begin`` removes.
        self._metrics.write(json.dumps({"step": step, "kind": kind, **finite}) + "\n")
        self._metrics.flush()
        for name, value in values.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)

    def log_samples(self, step: int, rows: Mapping[str, NDArray[np.uint8]], *, fps: float = 8.0) -> None:
        """Write pictures for people: a contact sheet as PNG, and each row as a short film in TensorBoard.

        Args:
            step: after which update.
            rows: frames by name, each (T, H, W, 3) RGB, all of the same shape.
            fps: speed of the film.

        Raises:
            DataError: if the picture cannot be written.
        """
        if self._board is None:
            return
        sheet = contact_sheet(rows)
        write_png(self.samples / f"step-{step:08d}.png", sheet)
        self._board.add_image("samples/sheet", sheet, step, dataformats="HWC")
        for name, frames in rows.items():
            _add_film(self._board, f"samples/{name}", frames, step, fps)
        self._board.flush()

    def close(self) -> None:
        """Flush and close everything, and let another process open the folder."""
        for file in (self._metrics, self._board, self._lock):
            if file is not None:
                file.close()
        self._metrics = self._board = self._lock = None

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_run(
    folder: Path | str,
    config: Mapping[str, Any],
    *,
    resume: bool = True,
    overwrite: bool = False,
    is_main: bool = True,
) -> Run:
    """Open the folder of a run: a new one, or one that the same config has begun.

    ``environment.json`` keeps what the run was begun with; a resume under another command, commit, versions or machine
    is added to its list ``resumed``. A run that has no checkpoint yet is simply begun again, whatever its config.

    Args:
        folder: ``runs/<name>``; made if it does not exist.
        config: everything that decides what is trained, as plain JSON values (see ``fastv2v.config.to_dict``). Its
            paths ``data``, ``teacher`` and ``student`` are made absolute; ``run``, where the run lies, may change.
        resume: whether to continue a run found there.
        overwrite: delete a run found there first; files beside it that are not part of a run are left alone.
        is_main: whether this process writes; the others only learn where the folder is.

    Returns:
        The run, to be used in a ``with`` block.

    Raises:
        ConfigError: if the folder holds a run with another config (naming the keys that differ), a run although
            ``resume`` is False, or something that is no run; or if another process is training in it.
    """
    folder = Path(folder)
    if folder.is_file():
        raise ConfigError(f"{folder} is a file, and a run is a folder; name another one with --run")
    if not is_main:
        return Run(folder, is_main=False, lock=None)
    config = _with_absolute_paths(json.loads(json.dumps(config, allow_nan=False)))
    folder.mkdir(parents=True, exist_ok=True)
    _check_run_or_empty(folder)  # before the lock: nothing is written into a folder that is not ours
    lock = lock_folder(folder, "training")
    try:
        if overwrite:
            _remove_run(folder)
        if any((folder / "checkpoints").glob("step-*")):
            _check_same(folder, _with_absolute_paths(read_config(folder)), config, resume)
            _record_resume(folder)
        else:
            if (folder / "config.json").exists() and _differences(_with_absolute_paths(read_config(folder)), config):
                _remove_run(folder)  # a start that failed: nothing was trained
            # The environment first: with it alone the folder is still known as a run that was about to begin.
            write_json(folder / "environment.json", _surroundings())
            write_json(folder / "config.json", config)
        (folder / "checkpoints").mkdir(exist_ok=True)
        (folder / "samples").mkdir(exist_ok=True)
    except BaseException:
        lock.close()
        raise
    return Run(folder, is_main=True, lock=lock)


def read_config(folder: Path | str) -> dict[str, Any]:
    """Config of a run as it was written.

    Raises:
        ConfigError: if there is none, or it is not a JSON object.
    """
    path = Path(folder) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{folder} is not a run: it has no config.json") from None
    except ValueError as error:
        raise ConfigError(
            f"{path} is not valid JSON ({error}); restore it, or use another name or --overwrite"
        ) from error
    if not isinstance(config, dict):
        raise ConfigError(f"{path} must hold a JSON object")
    return config


def read_metrics(folder: Path | str, kind: str | None = None) -> list[dict[str, Any]]:
    """Reports of a run, oldest first.

    Args:
        folder: the run.
        kind: only ``train`` or only ``eval`` reports; all when None.

    Returns:
        One mapping for each report, with ``step`` and ``kind`` beside the values. A torn last line is left out.
    """
    path = Path(folder) / "metrics.jsonl"
    reports = _parse_metrics(path.read_text(encoding="utf-8")) if path.exists() else []
    return [report for report in reports if kind in (None, report["kind"])]


def contact_sheet(
    rows: Mapping[str, NDArray[np.uint8]], *, max_columns: int = 8, cell_width: int = 256
) -> NDArray[np.uint8]:
    """One picture of several clips: a named row for each, time to the right.

    Args:
        rows: frames by name, each (T, H, W, 3) RGB, all of the same shape.
        max_columns: frames shown; evenly spread over the clip, first and last among them.
        cell_width: larger frames are reduced to this width, in pixels.

    Returns:
        (H', W', 3) RGB.

    Raises:
        DataError: if there are no rows or their shapes differ.
    """
    shapes = {name: frames.shape for name, frames in rows.items()}
    if len(set(shapes.values())) != 1:
        raise DataError(f"samples must all have the same shape, got {shapes}")
    count, height, width, _ = next(iter(shapes.values()))
    chosen = np.unique(np.linspace(0, count - 1, min(count, max_columns)).round().astype(int))
    size = (min(width, cell_width), max(1, round(height * min(1.0, cell_width / width))))
    bands: list[NDArray[np.uint8]] = []
    for name, frames in rows.items():
        title = np.full((18, size[0] * len(chosen), 3), 255, np.uint8)
        cv2.putText(title, name, (4, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
        band = np.hstack([cv2.resize(frames[i], size, interpolation=cv2.INTER_AREA) for i in chosen])
        bands += [title, band.astype(np.uint8)]
    return np.vstack(bands)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: under a temporary name, fsynced, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is None:  # a full disk, for one, is reported without a name
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all; infinities and NaN are refused by ``json``."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def write_png(path: Path, image: NDArray[np.uint8]) -> None:
    """Write an RGB image (H, W, 3) whole or not at all.

    Raises:
        DataError: if it cannot be encoded.
    """
    done, encoded = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not done:
        raise DataError(f"{path}: an image of shape {image.shape} cannot be encoded as PNG")
    write_bytes(path, encoded.tobytes())


def lock_folder(folder: Path, doing: str) -> IO[str]:
    """Hold a folder against a second process; the system lets go of it however this one ends.

    Args:
        folder: it exists.
        doing: what the process does, for the message.

    Returns:
        The lock; closing it lets go.

    Raises:
        ConfigError: if another process holds it.
    """
    file = (folder / ".lock").open("w", encoding="utf-8")
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise ConfigError(f"another process is {doing} in {folder}; wait for it or use another name") from None
    return file


def _read_environment(folder: Path) -> dict[str, Any] | None:
    """``environment.json`` if it is one of ours, else None."""
    try:
        found = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) and found.keys() >= _ENVIRONMENT_KEYS else None


def _check_run_or_empty(folder: Path) -> None:
    """Refuse a folder with other people's files: nothing there may be deleted or mixed with a run."""
    names = {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")}
    # An environment alone is what a start, or a deletion, that was killed leaves.
    known = "config.json" in names or names == {"environment.json"}
    if names and not (known and _read_environment(folder)):
        raise ConfigError(
            f"{folder} is not empty and holds no run (a run has a config.json and an environment.json of fastv2v); "
            "use another name, or empty the folder yourself"
        )


def _surroundings() -> dict[str, Any]:
    """What this process trains with."""
    return {
        "command": sys.argv,
        "commit": describe_commit(),
        "machine": describe_machine(),
        "versions": describe_versions(),
    }


def _record_resume(folder: Path) -> None:
    """Add this process to the environment of a run where it differs from the one before."""
    environment = _read_environment(folder) or {}
    resumed = environment.get("resumed", [])
    now = _surroundings()
    before = resumed[-1] if resumed else {key: environment.get(key) for key in now}
    if now != before:
        write_json(folder / "environment.json", {**environment, "resumed": [*resumed, now]})


def _with_absolute_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with its paths made independent of the folder the command is called in."""

    def absolute(value: Any) -> Any:
        if isinstance(value, list):
            return [absolute(item) for item in value]
        return str(Path(value).resolve()) if isinstance(value, str) else value

    return {key: absolute(value) if key in _PATH_KEYS else value for key, value in config.items()}


def _remove_run(folder: Path) -> None:
    """Delete what a run writes, what names it last, so that an interrupted deletion is still recognised as a run."""
    for name in reversed(_OWN_ENTRIES):
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _check_same(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any], resume: bool) -> None:
    """Refuse to continue a run with another config."""
    remedy = "use another name, or --overwrite to delete that run and start again"
    if not resume:
        raise ConfigError(f"{folder} already holds a run; {remedy}")
    if different := _differences(old, new):
        raise ConfigError(f"{folder} holds a run with another config ({'; '.join(different)}); {remedy}")


def _differences(old: Any, new: Any, key: str = "") -> list[str]:
    """Paths of the keys whose values differ, with both values; where the run lies is none of them."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found = []
        for name in [*old, *(name for name in new if name not in old)]:
            path = f"{key}.{name}" if key else name
            if path == "run":
                continue
            if name not in old or name not in new:
                found.append(f"{path} is {'new' if name in new else 'gone'}")
            else:
                found += _differences(old[name], new[name], path)
        return found
    return [] if old == new else [f"{key} was {json.dumps(old)}, is {json.dumps(new)}"]


def _parse_metrics(text: str) -> list[dict[str, Any]]:
    """Complete reports of a metrics file; a line that was torn by a kill ends them."""
    reports = []
    for line in text.splitlines():
        try:
            reports.append(json.loads(line))
        except ValueError:
            _LOG.warning("metrics.jsonl: dropping an incomplete line after %d reports", len(reports))
            break
    return reports


def _trim_metrics(path: Path, step: int) -> None:
    """Cut the reports after ``step``."""
    if not path.exists():
        return
    kept = [report for report in read_metrics(path.parent) if report["step"] <= step]
    write_bytes(path, "".join(json.dumps(report) + "\n" for report in kept).encode())


def _add_film(board: SummaryWriter, tag: str, frames: NDArray[np.uint8], step: int, fps: float) -> None:
    """Add an animated GIF, which TensorBoard plays; its own ``add_video`` would need moviepy."""
    from PIL import Image  # comes with tensorboard
    from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]

    pictures = [Image.fromarray(frame) for frame in frames]
    file = io.BytesIO()
    pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:], duration=round(1000 / fps), loop=0)
    height, width = frames.shape[1:3]
    film = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=file.getvalue())
    writer: Any = board._get_file_writer()
    writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=film)]), step)
