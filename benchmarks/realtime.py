"""Delivered frames per second at full size: our streams in every engine beside the published pipeline, in one run.

The networks are untrained, as weights do not change what a step costs. So that filling has real motion to work on,
every synthesised keyframe is exchanged for the frame of a procedural drive that it would show; its label maps are the
condition. The published pipeline is rebuilt from our own parts: the published student, eager in float32, its keyframes
written as JPEG and read again, ffmpeg's ``minterpolate`` with the published options. (Frames go to ffmpeg and back
through pipes, which is faster than the files of the original.)

``--soak-frames N`` streams N frames through the first student instead and watches memory, count and order.
"""

from __future__ import annotations

import gc
import hashlib
import itertools
import json as json_format
import math
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import torch
import tyro
from numpy.typing import NDArray

from benchmarks.cost import step_cost
from benchmarks.fps import compare_streams, measure_step, speed_ratio
from benchmarks.results import BenchmarkResult, Row, format_table, write_result
from export.build import BundleDetails, build_bundle
from export.bundle import Cost, load_manifest
from export.choose import EngineGuard
from export.engines import Candidate, StepEngine, available_candidates, open_tested_engine
from export.runtime import ConditionMap, Stream, filling_threads, open_bundle
from fastv2v.contracts import StepModel
from fastv2v.data.classes import preset_classes
from fastv2v.data.conditions import ConditionSpec, encode_condition_numpy
from fastv2v.data.world.config import WorldConfig, WorldFrame
from fastv2v.data.world.render import render_clip
from fastv2v.errors import ConfigError, DataError, FastV2VError
from fastv2v.nn.generators import build_generator
from fastv2v.render import advance, start_history
from interpolate.fill import fill
from interpolate.keyframes import KeyframeConfig, uniform_keyframes
from interpolate.minterpolate import MinterpolateInterpolator
from interpolate.motion import MotionConfig
from students.presets import STUDENTS

PUBLISHED: Final = "published pipeline"
MOST_GROWTH: Final = 0.02
"""How much memory may grow over a soak."""
COLUMNS: Final = {
    "name": "pipeline",
    "engine": "engine",
    "gmacs_per_keyframe": "GMACs / keyframe",
    "keyframe_ms": "ms / keyframe",
    "median": "delivered frames / s",
    "spread": "spread",
    "interval_p50_ms": "gap p50 ms",
    "interval_p95_ms": "gap p95 ms",
    "interval_p99_ms": "gap p99 ms",
    "synthesis_share": "synthesis",
    "fill_share": "filling",
    "cpu_s_per_s": "CPUs busy",
    "ratio": "times the published",
}
"""Columns of the table. ``gap``: time between two keyframes' arrivals. Shares are of the run's time; they overlap."""


@dataclass(frozen=True, kw_only=True)
class Drive:
    """The frames and conditions every pipeline is given."""

    spec: ConditionSpec
    """How conditions are encoded."""
    frames: Sequence[NDArray[np.uint8]]
    """(H, W, 3) RGB."""
    conditions: Sequence[ConditionMap]
    """Labels and instances of each."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        height, width = self.frames[0].shape[:2]
        return height, width

    def encoded(self, index: int) -> NDArray[np.float32]:
        """Condition channels of a frame, (C, H, W)."""
        given = self.conditions[index]
        return encode_condition_numpy(self.spec, given.labels, given.instances, None)


def make_drive(size: tuple[int, int], num_frames: int, seed: int = 0) -> Drive:
    """A procedural drive under the condition of the street recipes: Cityscapes' 35 classes and instance borders."""
    names = preset_classes("cityscapes").names
    config = WorldConfig(size=size, num_frames=num_frames, seed=seed)
    frames: list[WorldFrame] = list(render_clip(config, 0))
    return Drive(
        spec=ConditionSpec(class_names=names, use_instances=True),
        frames=[x.frame for x in frames],
        conditions=[ConditionMap(labels=x.labels, instances=x.instances) for x in frames],
    )


class _Exchanged:
    """An engine whose work is done and whose frame is exchanged for the drive's own."""

    def __init__(self, engine: StepEngine, keyframes: Sequence[NDArray[np.uint8]]) -> None:
        self.name, self.precision, self.form = engine.name, engine.precision, engine.form
        self._engine = engine
        self._frames = [x.transpose(2, 0, 1)[None].astype(np.float32) / 127.5 - 1 for x in keyframes]
        self._turn: Iterator[NDArray[np.float32]] = itertools.cycle(self._frames)

    def begin(self) -> None:
        """Start the drive again."""
        self._turn = itertools.cycle(self._frames)

    def run(self, *inputs: Any) -> dict[str, NDArray[Any]]:
        """See ``StepEngine.run``."""
        return {**self._engine.run(*inputs), "frame": next(self._turn)}


def untrained_student(name: str, channels: int) -> torch.nn.Module:
    """A student of this name with its first weights, in evaluation mode; the published one paints cars anew."""
    torch.manual_seed(0)
    foreground = (26,) if name == "published" else ()  # cars, as in the street recipe
    return build_generator(STUDENTS[name](), channels, foreground).eval()


def student_bundle(name: str, drive: Drive, gap: int, folder: Path) -> float:
    """Export an untrained student; its GMACs a keyframe."""
    model = untrained_student(name, drive.spec.channels)
    cost = step_cost(model, drive.spec.channels, drive.size, keyframe_fraction=1 / gap)  # type: ignore[arg-type]
    details = BundleDetails(
        task="street",
        condition=drive.spec,
        size=drive.size,
        keyframes=asdict(KeyframeConfig(gap=gap)),
        interpolation={"method": "dis", **asdict(MotionConfig())},
        fps=15.0,
        cost=Cost(
            macs_per_keyframe=cost.keyframe.true_macs,
            macs_per_frame=cost.true_macs_per_frame,
            output_position_macs_per_keyframe=cost.keyframe.output_position_macs,
            parameters=cost.keyframe.parameters,
        ),
    )
    conditions = torch.from_numpy(np.stack([drive.encoded(i) for i in range(2)]))
    # Random weights say nothing of what int8 costs in quality, so the guard lets everything pass.
    build_bundle(model, folder, details, conditions, guard=EngineGuard(min_parity_psnr_db=-100.0))  # type: ignore[arg-type]
    return cost.keyframe.true_macs / 1e9


def _open(folder: Path, candidate: Candidate, drive: Drive, gap: int, threads: int) -> tuple[Stream, _Exchanged]:
    engine = open_tested_engine(candidate, folder, threads)
    keyframes = [drive.frames[i] for i in uniform_keyframes(len(drive.frames), gap)]
    exchanged = _Exchanged(engine, keyframes)
    return Stream(exchanged, load_manifest(folder)), exchanged  # type: ignore[arg-type]


class _Watched:
    """A stream started again and again, with what its runs say of themselves."""

    def __init__(self, stream: Stream, exchanged: _Exchanged, drive: Drive) -> None:
        self._stream, self._exchanged, self._drive = stream, exchanged, drive
        self.stages: list[tuple[float, float]] = []
        self.intervals_ms: list[list[float]] = []

    def close(self) -> None:
        """Let the stream's thread go."""
        self._stream.close()

    def run(self) -> Iterator[NDArray[np.uint8]]:
        """Every frame of the drive."""
        self._exchanged.begin()
        self._stream.restart()
        began = time.perf_counter()
        arrived: list[float] = []
        try:
            for item in self._stream.frames(self._drive.conditions):
                if item.is_keyframe:
                    arrived.append(time.perf_counter())
                yield item.frame
        finally:  # whoever times it stops after the last frame
            seconds, stats = time.perf_counter() - began, self._stream.stats
            self.stages.append((stats.synthesis_s / seconds, stats.fill_s / seconds))
            self.intervals_ms.append((1000 * np.diff(arrived)).tolist())

    def row(self) -> dict[str, float]:
        """Medians over the runs; the first one warmed up."""
        synthesis, filling = np.median(self.stages[1:] or self.stages, axis=0)
        timed = self.intervals_ms[1:] or self.intervals_ms
        p50, p95, p99 = np.percentile(np.concatenate(timed), (50, 95, 99))
        return {
            "synthesis_share": float(synthesis),
            "fill_share": float(filling),
            "interval_p50_ms": float(p50),
            "interval_p95_ms": float(p95),
            "interval_p99_ms": float(p99),
        }


def published_pipeline(
    model: StepModel, drive: Drive, gap: int, threads: int, quality: int = 95
) -> Iterator[NDArray[np.uint8]]:
    """Fast-Vid2Vid's deployment: keyframes of its student as JPEG on disk, the rest by ffmpeg's motion compensation.

    Args:
        model: the published student, ``published_student``.
        drive: conditions, and the frames that stand in for the student's.
        gap: distance of keyframes.
        threads: of ffmpeg.
        quality: of the JPEG files.

    Yields:
        Every frame, all after the last was made.

    Raises:
        DataError: if a keyframe cannot be read back.

    Source:
        Zhuo et al., "Fast-Vid2Vid", ECCV 2022. Its code loses the last keyframe and re-times the others; not so here.
    """
    indices = uniform_keyframes(len(drive.frames), gap)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        history = None
        for index in indices:
            condition = torch.from_numpy(drive.encoded(index))[None]
            if history is None:
                history = start_history(
                    condition[:, None][:, :0], None, model.history_length, first_condition=condition
                )
            model.step(condition, history)
            real = torch.from_numpy(drive.frames[index].transpose(2, 0, 1)[None].astype(np.float32) / 127.5 - 1)
            history = advance(history, condition, real)
            picture = cv2.cvtColor(drive.frames[index], cv2.COLOR_RGB2BGR)
            cv2.imwrite(os.path.join(folder, f"{index:06}.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
        keyframes = []
        for index in indices:
            picture = cv2.imread(os.path.join(folder, f"{index:06}.jpg"))
            if picture is None:
                raise DataError(f"keyframe {index} could not be read back")
            keyframes.append(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
        yield from fill(keyframes, indices, len(drive.frames), MinterpolateInterpolator(threads=threads))


def published_student(channels: int) -> StepModel:
    """Fast-Vid2Vid's student, untrained."""
    model: StepModel = untrained_student("published", channels)  # type: ignore[assignment]
    return model


def _step_ms(stream: Stream, drive: Drive, repeats: int = 20) -> float:
    """Median time of one keyframe, encoding included."""
    return measure_step(stream.time_step(drive.conditions[0]), warmup=3, repeats=repeats).latency.median_ms


def _cpu_seconds() -> float:
    """Processor time of this process and of those it started, in seconds."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(x.ru_utime + x.ru_stime for x in used)


def realtime_benchmark(
    students: Sequence[str],
    size: tuple[int, int],
    *,
    gap: int = 4,
    num_frames: int = 33,
    repeats: int = 3,
    threads: int = 2,
    published: bool = True,
) -> list[Row]:
    """Time every student in every engine that is installed here, and the published pipeline, in turn.

    Args:
        students: names of students.
        size: (height, width).
        gap: distance of keyframes.
        num_frames: length of the drive; the last frame is a keyframe whatever the gap.
        repeats: timed rounds; one more warms up.
        threads: of engines, torch, OpenCV and ffmpeg.
        published: also time the published pipeline, which takes minutes on a CPU.

    Returns:
        One row for each pipeline and engine, see ``COLUMNS``; ``ratio`` is the median over rounds of the delivered
        frames per second over the published pipeline's in the same round.

    Raises:
        ConfigError: if a student is unknown or a number makes no sense.
    """
    if unknown := [name for name in students if name not in STUDENTS]:
        raise ConfigError(f"unknown student {unknown[0]!r}; there are {', '.join(STUDENTS)}")
    if gap < 1 or num_frames <= 2 * gap:
        raise ConfigError(f"a drive of more than two gaps is needed, got {num_frames} frames and a gap of {gap}")
    torch.set_num_threads(threads)
    cv2.setNumThreads(filling_threads(threads))
    drive = make_drive(size, num_frames)
    watched: dict[tuple[str, str], _Watched] = {}
    costs: dict[str, float] = {}
    steps: dict[tuple[str, str], float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in students:
            folder = Path(scratch, f"{name}.v2v")
            costs[name] = student_bundle(name, drive, gap, folder)
            for candidate in available_candidates(folder):
                stream, exchanged = _open(folder, candidate, drive, gap, threads)
                key = name, str(candidate)
                watched[key] = _Watched(stream, exchanged, drive)
                steps[key] = _step_ms(stream, drive)
        busy: dict[tuple[str, str], list[float]] = {}

        def counted(key: tuple[str, str], make: Callable[[], Iterator[Any]]) -> Callable[[], Iterator[Any]]:
            def run() -> Iterator[Any]:
                began, before = time.perf_counter(), _cpu_seconds()
                try:
                    yield from make()
                finally:
                    busy.setdefault(key, []).append((_cpu_seconds() - before) / (time.perf_counter() - began))

            return run

        pipelines = {key: counted(key, one.run) for key, one in watched.items()}
        if published:
            key = PUBLISHED, "torch f32, ffmpeg"
            model = published_student(drive.spec.channels)
            pipelines[key] = counted(key, lambda: published_pipeline(model, drive, gap, threads))
            costs[PUBLISHED] = step_cost(model, drive.spec.channels, drive.size).keyframe.true_macs / 1e9
        found = compare_streams({" ".join(key): make for key, make in pipelines.items()}, num_frames, repeats)
        speeds = {key: found[" ".join(key)] for key in pipelines}
        for one in watched.values():
            one.close()
    slowest = speeds.get((PUBLISHED, "torch f32, ffmpeg"))
    rows: list[Row] = []
    for key, speed in speeds.items():
        name, engine = key
        row: dict[str, Any] = {
            "name": name,
            "engine": engine,
            "gmacs_per_keyframe": costs[name],
            "keyframe_ms": steps.get(key),
            "median": speed.delivered_fps,
            "unit": "frames / s",
            "spread": speed.spread_fps,
            "cpu_s_per_s": float(np.median(busy[key][1:] or busy[key])),
            "ratio": None if slowest is None else speed_ratio(speed, slowest),
        }
        rows.append(row | (watched[key].row() if key in watched else {}))
    return rows


def _resident_mb() -> float:
    """Memory that this process holds now, in MB (10^6 bytes).

    Raises:
        ConfigError: where the system does not tell by /proc.
    """
    status = Path("/proc/self/statm")
    if not status.exists():
        raise ConfigError("a soak reads memory from /proc, which this system does not have")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@dataclass(frozen=True, kw_only=True)
class Soak:
    """What a long stream came to."""

    frames: int
    """Frames delivered, in order and without a gap."""
    seconds: float
    """Time taken."""
    early_mb: float
    """Memory after the warm-up."""
    final_mb: float
    """Memory at the end."""
    early_p99_ms: float
    """99th percentile of the time between keyframes over the first tenth after the warm-up."""
    late_p99_ms: float
    """The same over the last tenth."""
    same_as_offline: bool
    """Whether its first frames are those that a stream without a second thread gives."""

    @property
    def growth(self) -> float:
        """Memory at the end over that after the warm-up, less 1."""
        return self.final_mb / self.early_mb - 1


def soak(name: str, size: tuple[int, int], num_frames: int, *, gap: int = 4, threads: int = 2) -> Soak:
    """Stream an endless drive through a student, in the fastest engine of this machine, with its own frames.

    Args:
        name: of the student.
        size: (height, width).
        num_frames: frames to stream, at least 1100; memory is read after 1000 and at the end.
        gap: distance of keyframes.
        threads: of engine and OpenCV.

    Raises:
        ConfigError: if the numbers make no sense.
        DataError: if a frame is missing, twice there or out of order.
    """
    if num_frames < 1100 or not 1 <= gap <= 20:
        raise ConfigError(
            f"a soak has at least 1100 frames, 1000 of them to warm up, and a gap of 1 to 20; got {num_frames} frames "
            f"and a gap of {gap}"
        )
    cv2.setNumThreads(filling_threads(threads))
    drive = make_drive(size, 48)
    there_and_back = [*drive.conditions, *drive.conditions[-2:0:-1]]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, f"{name}.v2v")
        student_bundle(name, drive, gap, folder)
        fastest = min(available_candidates(folder), key=lambda c: _candidate_ms(folder, c, drive, threads))
        options: dict[str, Any] = {"engine": fastest.engine, "precision": fastest.precision, "threads": threads}
        with open_bundle(folder, overlap=False, **options) as stream:
            offline = _digest(x.frame for x in stream.frames(there_and_back))
        with open_bundle(folder, **options) as stream:
            head, arrived, early_mb, count = hashlib.sha256(), [], math.nan, 0
            began = time.perf_counter()
            for item in stream.frames(itertools.islice(itertools.cycle(there_and_back), num_frames)):
                if item.index != count:
                    raise DataError(f"frame {count} of the soak is frame {item.index}")
                # The last frame of a finished sequence is a keyframe; in a longer one it may not be.
                if count < len(there_and_back) - gap:
                    head.update(item.frame.tobytes())
                count += 1
                if item.is_keyframe:
                    arrived.append(time.perf_counter())
                if count == 1000:
                    gc.collect()
                    early_mb = _resident_mb()
            seconds = time.perf_counter() - began
            gc.collect()
            final_mb = _resident_mb()
    if count != num_frames:
        raise DataError(f"the soak delivered {count} of {num_frames} frames")
    intervals = 1000 * np.diff(arrived)[1000 // gap :]
    tenth = max(1, len(intervals) // 10)
    return Soak(
        frames=count,
        seconds=seconds,
        early_mb=early_mb,
        final_mb=final_mb,
        early_p99_ms=float(np.percentile(intervals[:tenth], 99)),
        late_p99_ms=float(np.percentile(intervals[-tenth:], 99)),
        same_as_offline=head.hexdigest() == offline[len(there_and_back) - gap - 1],
    )


def _candidate_ms(folder: Path, candidate: Candidate, drive: Drive, threads: int) -> float:
    options: dict[str, Any] = {"engine": candidate.engine, "precision": candidate.precision, "threads": threads}
    with open_bundle(folder, **options) as stream:
        return _step_ms(stream, drive)


def _digest(frames: Iterator[NDArray[np.uint8]]) -> list[str]:
    """The sha256 of all frames up to each."""
    whole, digests = hashlib.sha256(), []
    for frame in frames:
        whole.update(frame.tobytes())
        digests.append(whole.hexdigest())
    return digests


def main(
    students: tuple[str, ...] = ("tiny", "small", "base"),
    *,
    size: tuple[int, int] = (256, 512),
    gap: int = 4,
    num_frames: int = 33,
    repeats: int = 3,
    threads: int = 2,
    published: bool = True,
    soak_frames: int = 0,
    json: Path | None = None,
) -> None:
    """Compare our streams with the published pipeline and print a table, then one line of JSON.

    Args:
        students: which students.
        size: (height, width) of the frames.
        gap: distance of two keyframes.
        num_frames: length of the drive.
        repeats: timed rounds; one more warms up.
        threads: CPU threads of everything.
        published: also time the published pipeline.
        soak_frames: stream so many frames through the first student instead.
        json: also write the result to this file.

    Raises:
        ConfigError: if a setting is out of range.
        SystemExit: with status 1 if a soak gives other frames than offline, or memory grows by more than 2 %.
    """
    has_failed = False
    if soak_frames:
        outcome = soak(students[0], size, soak_frames, gap=gap, threads=threads)
        print(
            f"{outcome.frames} frames in {outcome.seconds:.0f} s, {outcome.frames / outcome.seconds:.1f} frames/s; "
            f"memory {outcome.early_mb:.0f} MB after 1000 frames and {outcome.final_mb:.0f} MB at the end "
            f"({100 * outcome.growth:+.1f} %); "
            f"p99 between keyframes {outcome.early_p99_ms:.1f} ms at first, {outcome.late_p99_ms:.1f} ms at last; "
            f"{'the same' if outcome.same_as_offline else 'NOT the same'} frames as offline"
        )
        rows: list[Row] = [{"name": students[0], **asdict(outcome)}]
        has_failed = not outcome.same_as_offline or outcome.growth > MOST_GROWTH
    else:
        rows = realtime_benchmark(
            students, size, gap=gap, num_frames=num_frames, repeats=repeats, threads=threads, published=published
        )
        print(format_table(rows, COLUMNS))
    suite = "soak" if soak_frames else "realtime"
    settings = {"size": list(size), "gap": gap, "num_frames": soak_frames or num_frames}
    result = BenchmarkResult(
        suite=suite,
        rows=tuple(rows),
        device="cpu",
        threads=threads,
        precision="as named",
        repeats=1 if soak_frames else repeats,
        settings=settings,
    )
    if json is not None:
        write_result(json, result)
    print(json_format.dumps(result.to_dict()))
    if has_failed:
        raise SystemExit(1)


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except FastV2VError as error:
        print(f"benchmarks.realtime: {error}", file=sys.stderr)
        raise SystemExit(2) from error
