"""Write a street world to disk in vid2vid's folder convention, all of it or nothing."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from fastv2v.data.unprojection import pyramid, write_unprojection
from fastv2v.data.world.config import CLASS_NAMES, PALETTE, WorldConfig, WorldFrame
from fastv2v.data.world.render import render_clip
from fastv2v.errors import ConfigError, DataError

RECORD = "world.json"
RENDERER_VERSION = 1
"""Raised whenever the same config gives other pictures, so that an old folder is not taken for a new one."""

Progress = Callable[[int, int], None]


class _Extras(NamedTuple):
    """What is written on request."""

    flow: bool
    points: bool


def write_world(
    out: Path,
    config: WorldConfig,
    *,
    train_clips: int = 6,
    test_clips: int = 2,
    overwrite: bool = False,
    write_flow: bool = False,
    write_points: bool = False,
    num_workers: int = 0,
    progress: Progress | None = None,
) -> Path:
    """Render clips into a data set folder.

    The folder holds, for each phase (``train``, ``test``) and sequence (``clip_000``, ...; test clips are other clips):

    ``<phase>_A/<sequence>/<frame>.png``: class ids, 8 bit.
    ``<phase>_B/<sequence>/<frame>.png``: RGB.
    ``<phase>_inst/<sequence>/<frame>.png``: instance ids, 16 bit, 0 is none.
    ``<phase>_depth/<sequence>/<frame>.png``: millimetres, 16 bit, 0 is none (sky, and what lies beyond 65.535 m).
    ``<phase>_camera/<sequence>/<frame>.txt``: camera-to-world, 4x4; ``intrinsics.txt`` beside them, 3x3.
    ``<phase>_flow/<sequence>/<frame>.npz``: ``to_previous`` and ``to_next``, float32 (H, W, 2), each where it exists.
    ``<phase>_unprojections/<sequence>/<frame>.npz``: which point is seen at which pixel, as ``write_unprojection``.
    ``classes.json``: names and colours of the classes; ``world.json``: what the folder was made from.

    It is written beside ``out`` and moved there when complete.

    Args:
        out: folder to make. One that was made from exactly this request is left as it is.
        config: the world.
        train_clips: number of training clips, at least 1; they are clips 0, 1, ...
        test_clips: number of held-out clips, at least 0; they follow the training clips.
        overwrite: replace a world made from something else. Folders that are not worlds are never replaced.
        write_flow: also write exact optical flow.
        write_points: also write exact unprojections.
        num_workers: processes that render clips side by side; 0 renders here. The files are the same. Workers are
            spawned, so a script that asks for them needs the usual ``if __name__ == "__main__"``.
        progress: called with (frames done, frames in all); after each frame here, after each clip with workers.

    Returns:
        ``out``.

    Raises:
        ConfigError: if a number is out of range.
        DataError: if ``out`` is a file, or a folder that holds something else.
    """
    if train_clips < 1 or test_clips < 0 or num_workers < 0:
        raise ConfigError(
            "train_clips must be at least 1, test_clips and num_workers at least 0, "
            f"got {train_clips}, {test_clips} and {num_workers}"
        )
    out = Path(out)
    # Through JSON and back, so that it compares equal to what is read from disk.
    record = json.loads(
        json.dumps(
            {
                "schema": 1,
                "renderer": RENDERER_VERSION,
                "config": asdict(config),
                "train_clips": train_clips,
                "test_clips": test_clips,
                "flow": write_flow,
                **({"unprojections": True} if write_points else {}),
            }
        )
    )
    if _is_done(out, record, overwrite):
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    # mkdtemp's own folder is private to the user; the payload inside gets ordinary permissions.
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    try:
        payload = scratch / "world"
        payload.mkdir()
        extras = _Extras(write_flow, write_points)
        _write_clips(payload, config, train_clips, test_clips, extras, num_workers, progress)
        classes = [{"name": name, "color": list(color)} for name, color in zip(CLASS_NAMES, PALETTE, strict=True)]
        (payload / "classes.json").write_text(json.dumps({"schema": 1, "classes": classes}, indent=2) + "\n")
        (payload / RECORD).write_text(json.dumps(record, indent=2) + "\n")
        _swap(payload, out, scratch / "old")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return out


def _swap(new: Path, out: Path, old: Path) -> None:
    """Put ``new`` in the place of ``out``, and put ``out`` back if that fails."""
    replaces = out.exists()
    if replaces:
        os.replace(out, old)
    try:
        os.replace(new, out)
    except OSError:
        if replaces:
            os.replace(old, out)
        raise


def _is_done(out: Path, record: Mapping[str, Any], overwrite: bool) -> bool:
    """Whether ``out`` already is what is asked for; refuses what may not be replaced."""
    if not out.exists():
        return False
    if not out.is_dir():
        raise DataError(f"{out} is a file; choose a folder for the world")
    if not any(out.iterdir()):
        return False
    path = out / RECORD
    if not path.is_file():
        raise DataError(f"{out} is not empty and is not a world (it has no {RECORD}); choose another folder")
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); remove {out} or choose another folder") from error
    if found == record:
        return True
    if not overwrite:
        raise DataError(f"{out} holds a world made from other settings ({path}); choose another folder or overwrite it")
    return False


def _write_clips(
    root: Path, config: WorldConfig, train_clips: int, test_clips: int, extras: _Extras, num_workers: int,
    progress: Progress | None,
) -> None:  # fmt: skip
    """Render every clip into ``root``, here or in worker processes."""
    jobs = [("train" if clip < train_clips else "test", clip) for clip in range(train_clips + test_clips)]
    total, done = len(jobs) * config.num_frames, 0

    def advance(frames: int) -> None:
        nonlocal done
        done += frames
        if progress is not None:
            progress(done, total)

    if num_workers == 0:
        for phase, clip in jobs:
            for _ in _write_clip(root, config, phase, clip, extras):
                advance(1)
        return
    # Spawned, not forked: the caller may hold threads (OpenCV's, a training loop's) that do not survive a fork.
    with ProcessPoolExecutor(min(num_workers, len(jobs)), mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(_write_whole_clip, root, config, phase, clip, extras) for phase, clip in jobs]
        try:
            for future in as_completed(futures):
                future.result()
                advance(config.num_frames)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _write_whole_clip(root: Path, config: WorldConfig, phase: str, clip: int, extras: _Extras) -> None:
    """What a worker does; the machine's cores are already shared out among the workers."""
    cv2.setNumThreads(1)
    for _ in _write_clip(root, config, phase, clip, extras):
        pass


def _write_clip(root: Path, config: WorldConfig, phase: str, clip: int, extras: _Extras) -> Iterator[None]:
    """Write one clip, yielding after each frame."""
    further = {"flow": extras.flow, "unprojections": extras.points}
    kinds = ("A", "B", "inst", "depth", "camera", *(kind for kind, wanted in further.items() if wanted))
    folders = {kind: root / f"{phase}_{kind}" / f"clip_{clip:03d}" for kind in kinds}
    for folder in folders.values():
        folder.mkdir(parents=True)
    np.savetxt(folders["camera"] / "intrinsics.txt", config.intrinsics, fmt="%.9g")
    for index, frame in enumerate(render_clip(config, clip, points=extras.points)):
        stem = f"{index:06d}"
        _write_png(folders["A"] / f"{stem}.png", frame.labels)
        _write_png(folders["B"] / f"{stem}.png", np.ascontiguousarray(frame.frame[..., ::-1]))
        _write_png(folders["inst"] / f"{stem}.png", frame.instances)
        _write_png(folders["depth"] / f"{stem}.png", depth_to_millimetres(frame.depth))
        np.savetxt(folders["camera"] / f"{stem}.txt", frame.camera_to_world, fmt="%.9g")
        if frame.points is not None:
            write_unprojection(folders["unprojections"] / f"{stem}.npz", pyramid(frame.points, frame.depth))
        if extras.flow:
            _write_flow(folders["flow"] / f"{stem}.npz", frame)
        yield


def depth_to_millimetres(depth: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Depth in metres (``inf`` for none) to 16-bit millimetres, 0 for none and for what does not fit."""
    scaled = np.rint(np.where(depth < 65.5355, depth, 0) * 1000.0)
    return np.minimum(scaled, 65535).astype(np.uint16)


def _write_flow(path: Path, frame: WorldFrame) -> None:
    named = {"to_previous": frame.flow_to_previous, "to_next": frame.flow_to_next}
    np.savez_compressed(path, **{name: flow for name, flow in named.items() if flow is not None})  # type: ignore[arg-type]


def _write_png(path: Path, image: NDArray[np.generic]) -> None:
    if not cv2.imwrite(str(path), image, [cv2.IMWRITE_PNG_COMPRESSION, 3]):
        raise DataError(f"{path} could not be written; is the disk full?")
