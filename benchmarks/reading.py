"""How fast are clips with point ids read: from folders, from LMDB, and from LMDB of paired files?

``python -m benchmarks.reading`` writes a small procedural world with unprojections, packs it both ways, checks that the
samples are equal bit for bit, and reads them with several numbers of workers, one way after the other in each round.
Databases must be as fast as folders, but for the spread.
"""

from __future__ import annotations

import itertools
import json as json_format
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import torch
import tyro

from benchmarks.results import BenchmarkResult, Row, format_table, write_result
from fastv2v.data.clip import Clip
from fastv2v.data.folder import FolderConfig, open_folder
from fastv2v.data.loader import ClipLoader
from fastv2v.data.packed import pack_folder
from fastv2v.data.paired import pack_paired
from fastv2v.data.sampling import SamplingConfig
from fastv2v.data.transforms import GeometryConfig
from fastv2v.data.world import WorldConfig, write_world
from fastv2v.errors import ConfigError, FastV2VError

COLUMNS = {
    "name": "read from",
    "workers": "workers",
    "median": "frames/s",
    "spread": "spread",
    "mb": "MB on disk",
    "wanted": "wanted",
    "met": "met",
}
FOLDERS = "folders"


def loader(root: Path, workers: int, clip_frames: int, size: tuple[int, int]) -> ClipLoader:
    """Batches of one clip with three levels of guidance, nothing remembered."""
    config = FolderConfig(root=root, geometry=GeometryConfig(mode="exact", size=size), guidance_levels=3)
    sampling = SamplingConfig(num_frames=clip_frames, max_step=1)
    return ClipLoader(open_folder(config), sampling, batch_size=1, seed=0, num_workers=workers, cache_mb=0)


def equal(a: Clip, b: Clip) -> bool:
    """Whether two clips hold the same numbers."""
    tensors = [(a.frames, b.frames), (a.labels, b.labels), *zip(a.points or (), b.points or (), strict=True)]
    return a.info == b.info and all(x is not None and y is not None and torch.equal(x, y) for x, y in tensors)


def first_difference(roots: Mapping[str, Path], num_clips: int, clip_frames: int, size: tuple[int, int]) -> str | None:
    """The first way of reading that gives other samples than the first one; ``None`` where all are equal."""
    streams = {name: loader(root, 0, clip_frames, size).batches() for name, root in roots.items()}
    first, *others = streams
    for _ in range(num_clips):
        clips = {name: next(stream) for name, stream in streams.items()}
        for other in others:
            if not equal(clips[first], clips[other]):
                return other
    return None


def frames_per_second(root: Path, workers: int, num_clips: int, clip_frames: int, size: tuple[int, int]) -> float:
    """Rate over some clips, from the second one on: the first waits for the workers to start."""
    batches = loader(root, workers, clip_frames, size).batches()
    next(batches)
    started = time.perf_counter()
    for _ in itertools.islice(batches, num_clips):
        pass
    return num_clips * clip_frames / (time.perf_counter() - started)


def reading_rows(
    roots: Mapping[str, Path],
    workers: Sequence[int],
    *,
    num_clips: int,
    clip_frames: int,
    size: tuple[int, int],
    repeats: int,
) -> list[Row]:
    """Rates of every way with every number of workers; the ways take turns. All others must keep up with folders."""
    rows: list[Row] = []
    for count in workers:
        rates: dict[str, list[float]] = {name: [] for name in roots}
        for _ in range(repeats):
            for name, root in roots.items():
                rates[name].append(frames_per_second(root, count, num_clips, clip_frames, size))
        for name, root in roots.items():
            low, high = min(rates[name]), max(rates[name])
            held = sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) / 1e6
            rows.append(
                {
                    "name": name,
                    "workers": count,
                    "median": median(rates[name]),
                    "spread": high - low,
                    "unit": "frames/s",
                    "mb": round(held, 1),
                }
            )
    return [{**row, **keeps_up(row, rows)} for row in rows]


def keeps_up(row: Row, rows: Sequence[Row]) -> Row:
    """Whether a database is at least as fast as folders with as many workers, but for the larger of the two spreads."""
    if row["name"] == FOLDERS:
        return {}
    (folders,) = (other for other in rows if other["name"] == FOLDERS and other["workers"] == row["workers"])
    rate, spread = (float(folders[key] or 0) for key in ("median", "spread"))
    wanted = rate - max(spread, float(row["spread"] or 0))
    return {"wanted": f"at least {wanted:.1f}", "met": float(row["median"] or 0) >= wanted}


def main(
    *,
    size: tuple[int, int] = (256, 512),
    frames: int = 12,
    clips: int = 2,
    clip_frames: int = 6,
    num_clips: int = 8,
    workers: tuple[int, ...] = (0, 1, 2),
    repeats: int = 3,
    json: Path | None = None,
) -> None:
    """Compare ways to read a data set and print a table, then one line of JSON.

    Exits with 1 where samples differ, or a database is slower than folders by more than the spread.

    Args:
        size: height and width of the frames.
        frames: frames of each sequence.
        clips: sequences.
        clip_frames: frames of a training clip.
        num_clips: clips that are read and timed in one go.
        workers: numbers of reading processes.
        repeats: rounds.
        json: result file to write.
    """
    if min(clips, num_clips, repeats, clip_frames, *workers, *size, frames - clip_frames) < 0 or repeats < 1:
        raise ConfigError("counts must not be negative, repeats at least 1 and frames at least clip_frames")
    with tempfile.TemporaryDirectory(prefix="fastv2v-reading-") as name:
        folder = Path(name) / "world"
        config = WorldConfig(size=size, num_frames=frames)
        write_world(folder, config, train_clips=clips, test_clips=0, write_points=True)
        roots = {FOLDERS: folder, "packed": Path(name) / "all.lmdb", "packed, paired": Path(name) / "paired.lmdb"}
        pack_folder(folder, roots["packed"])
        pack_paired(folder, roots["packed, paired"])
        differing = first_difference(roots, num_clips, clip_frames, size)
        rows = reading_rows(roots, workers, num_clips=num_clips, clip_frames=clip_frames, size=size, repeats=repeats)
    result = BenchmarkResult(
        suite="reading",
        rows=tuple(rows),
        device="cpu",
        threads=1,
        precision="samples equal bit for bit" if differing is None else f"samples of '{differing}' differ",
        repeats=repeats,
        settings={"size": list(size), "clip_frames": clip_frames, "num_clips": num_clips, "guidance_levels": 3},
    )
    print(format_table(result.rows, COLUMNS))
    print(result.precision)
    if json is not None:
        write_result(json, result)
    print(json_format.dumps(result.to_dict()))
    slow = [f"{row['name']} ({row['workers']} workers)" for row in result.rows if row.get("met") is False]
    if slow:
        print(f"benchmarks.reading: slower than folders: {', '.join(slow)}", file=sys.stderr)
    if differing is not None or slow:
        raise SystemExit(1)


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except FastV2VError as error:
        print(f"benchmarks.reading: {error}", file=sys.stderr)
        raise SystemExit(2) from error
