"""``fastv2v benchmark``: teacher and bundle in one run, on frames neither has seen; or a bundle in several engines."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from benchmarks.cost import step_cost
from benchmarks.engines import COLUMNS as ENGINE_COLUMNS
from benchmarks.engines import choose_here, measure_engines, wanted_candidates
from benchmarks.fps import compare_streams, measure_step, speed_ratio
from benchmarks.interpolation import interpolation_benchmark
from benchmarks.quality import MEAN_COLOUR, mean_scores, quality_table, score_rows
from benchmarks.results import BenchmarkResult, format_table, write_result
from export.engines import AUTO, parse_engine, this_machine
from export.runtime import HOST_CODE_UNNAMED, ConditionMap, DeliveredFrame, Stream, filling_threads, open_bundle
from fastv2v.architecture import Trained, load_trained
from fastv2v.commands.arguments import parse
from fastv2v.commands.parts import check_condition, with_points
from fastv2v.commands.report import PAGE, SOURCES, columns_of, write_page
from fastv2v.commands.synthesize import data_of, synthesise
from fastv2v.data.classes import colourise
from fastv2v.data.clip import Clip
from fastv2v.data.folder import VideoFolder, open_folder
from fastv2v.data.loader import read_sequence
from fastv2v.device import Device, DeviceConfig, open_device
from fastv2v.errors import ConfigError
from fastv2v.metrics.floors import MeanColourFloor
from fastv2v.metrics.temporal import nan_mean
from fastv2v.metrics.world import forward_backward, there_and_back
from fastv2v.nn.norms import batch_statistics
from fastv2v.places import check_place
from fastv2v.render import start_history
from fastv2v.run import write_bytes, write_json
from fastv2v.score import to_uint8
from fastv2v.video import write_video
from interpolate.keyframes import KeyframeConfig

_LOG = logging.getLogger(__name__)

Suite = Literal["cost", "fps", "quality", "interpolation"]
TEACHER, DELIVERED = "teacher", "delivered stream"


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Measure a bundle beside its teacher: arithmetic, speed, quality on held-out frames, interpolation.

    Without --teacher, --data and --out: its speed in each engine, with latency, GPU memory and power.
    """

    bundle: Path
    """Bundle of the student, NAME.v2v."""
    teacher: Path | None = None
    """Run or checkpoint of the teacher."""
    data: Path | None = None
    """Data set folder; its held-out part is used."""
    out: Path | None = None
    """Folder for results, videos and the page. An earlier benchmark there is replaced as a whole, once this one is
    complete; any other folder that is not empty is refused."""
    suites: tuple[Suite, ...] = ("cost", "fps", "quality", "interpolation")
    """What is measured."""
    runs: tuple[Path, ...] = ()
    """Training runs whose curves the page shows."""
    max_frames: int = 64
    """Frames of each held-out sequence."""
    round_trip_frames: int = 24
    """Where point ids are known: frames from which a rollout runs back to its start, to be compared with itself; 0
    leaves it out."""
    repeats: int = 5
    """Repeats of everything that is timed."""
    engine: tuple[str, ...] = (AUTO,)
    """Engine of the bundle, NAME or NAME:PRECISION; without a teacher, several of them, and auto for all that may run
    here."""
    record: bool = False
    """Without a teacher: also choose the fastest of the named engines that keeps the quality, and ONNX Runtime, anew on
    this machine, and write it into the bundle for --engine auto."""
    host_code: bool = False
    """Let a named engine that was built into the bundle bring code of its own for the CPU, as version-compatible ones
    of TensorRT do. Only for bundles from people you trust."""
    frames: int = 65
    """Without a teacher: length of the streams that are timed."""
    threads: int | None = None
    """CPU threads of teacher, engine, OpenCV and ffmpeg alike; all by default."""
    vmaf: bool = True
    """Also run VMAF."""
    device: DeviceConfig = field(default_factory=DeviceConfig)
    """Where and in what precision the teacher runs."""
    json: Path | None = None
    """Also write the last line of the output, the JSON object, to this file."""

    def __post_init__(self) -> None:
        if self.max_frames < 3 or self.repeats < 1:
            raise ConfigError(
                f"max_frames must be at least 3 and repeats at least 1, got {self.max_frames} and {self.repeats}"
            )
        if self.frames < 2:
            raise ConfigError(f"--frames must be at least 2, got {self.frames}")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"--threads must be at least 1, got {self.threads}")
        check_round_trip(self.round_trip_frames)
        for engine in self.engine:
            parse_engine(engine)
        beside = [self.teacher, self.data, self.out]
        if None in beside and any(beside):
            raise ConfigError("--teacher, --data and --out go together; leave out all three to compare engines")
        if not self.engine or (self.teacher is not None and len(self.engine) > 1):
            raise ConfigError("beside a teacher one engine is measured; leave out --teacher, --data and --out for more")
        if self.host_code and AUTO in self.engine:
            raise ConfigError(HOST_CODE_UNNAMED)
        if self.teacher is not None and self.record:
            raise ConfigError("--record goes without --teacher, --data and --out")


@dataclass(frozen=True)
class _Bench:
    """What all suites use."""

    args: Benchmark
    device: Device
    teacher: Trained
    stream: Stream
    folder: VideoFolder
    clips: list[Clip]
    threads: int
    out: Path

    def deliver(self, conditions: Sequence[ConditionMap], first: NDArray[np.uint8]) -> Iterator[DeliveredFrame]:
        """All frames of a clip from its first real frame, through the stream."""
        self.stream.restart(first)
        yield from self.stream.frames(conditions)


def condition_maps(clip: Clip) -> list[ConditionMap]:
    """Conditions of a clip as a deployment gets them."""
    count = clip.num_frames
    levels = [level[0].numpy() for level in clip.points or ()]
    points = [[level[t] for level in levels] or None for t in range(count)]
    if clip.maps is not None:
        return [ConditionMap(maps=clip.maps[0, t].numpy(), points=points[t]) for t in range(count)]
    assert clip.labels is not None  # a clip has maps or labels
    labels, instances = clip.labels[0].numpy(), None if clip.instances is None else clip.instances[0].numpy()
    given = [None] * count if instances is None else list(instances)
    return [ConditionMap(labels=labels[t], instances=given[t], points=points[t]) for t in range(count)]


def check_round_trip(frames: int) -> None:
    """Refuse a way that has no way back.

    Raises:
        ConfigError: naming the option.
    """
    if frames != 0 and frames < 3:
        raise ConfigError(f"round_trip_frames is 0 for none, or at least 3, got {frames}")


def round_trip(clip: Clip, most: int, *, gap: int = 1, given_frames: int = 1) -> Clip:
    """The first frames of a clip and back again, at most ``most`` there: 2 * most - 1 of them.

    Keyframes are ``gap`` frames apart, from the last given one. It turns where the way back has them at the same places
    as the way there, so that keyframes are compared with keyframes. Only a clip too short for that turns at its end.
    """
    last = min(most, clip.num_frames) - 1
    first = given_frames - 1
    fitting = (turn for turn in range(last, max(first, 1), -1) if 2 * (turn - first) % gap == 0)
    order = there_and_back(next(fitting, last) + 1)

    def taken(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[:, order]

    return Clip(
        frames=clip.frames[:, order],
        labels=taken(clip.labels),
        instances=taken(clip.instances),
        maps=taken(clip.maps),
        points=None if clip.points is None else tuple(level[:, order] for level in clip.points),
        info=tuple(
            replace(i, indices=tuple(i.indices[t] for t in order), names=tuple(i.names[t] for t in order))
            for i in clip.info
        ),
    )


def return_distance(frames: Sequence[NDArray[np.uint8]], given_frames: int) -> float:
    """Mean distance of a rollout there and back to itself, in 8-bit levels, given frames left out."""
    return nan_mean(forward_backward(frames).rgb[given_frames:])


def pictures(clip: Clip) -> list[NDArray[np.uint8]]:
    """Real frames of a clip, RGB (H, W, 3)."""
    return list(np.ascontiguousarray(to_uint8(clip.frames)[0].permute(0, 2, 3, 1).numpy()))


def run_benchmark(args: Benchmark) -> dict[str, Any]:
    """Run the suites, write results, videos and page; returns all rows by suite.

    Raises:
        ConfigError: if the output folder holds something else than an earlier benchmark.
    """
    assert args.out is not None  # Benchmark sees to it
    if args.out.exists() and not (args.out / SOURCES).is_file() and any(args.out.iterdir()):
        raise ConfigError(f"{args.out} is not empty and holds no earlier benchmark; name another folder with --out")
    threads = args.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    cv2.setNumThreads(filling_threads(threads))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{args.out.name}.", dir=args.out.parent))
    try:
        rows = _run_suites(args, threads, staging)
        write_page(staging, shown_as=args.out)
        staging.chmod(0o755)
        if args.out.exists():
            shutil.rmtree(args.out)
        staging.rename(args.out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return rows


def _run_suites(args: Benchmark, threads: int, out: Path) -> dict[str, Any]:
    """Run the suites into a fresh folder."""
    assert args.teacher is not None and args.data is not None  # Benchmark sees to it
    device = open_device(args.device)
    teacher = load_trained(args.teacher)
    teacher.generator.to(device.device)
    stream = open_bundle(args.bundle, engine=args.engine[0], threads=threads, host_code=args.host_code)
    size = stream.manifest.size
    folder = open_folder(data_of(teacher.architecture, args.data, "test"))
    check_condition(teacher.architecture, folder, str(args.teacher))
    if stream.manifest.condition != folder.spec:
        raise ConfigError(
            f"{args.bundle} and {args.teacher} take different conditions; export a student of this teacher"
        )
    seen = open_folder(with_points(folder.config))
    clips = [read_sequence(seen, i, 0, min(args.max_frames, count)) for i, count in enumerate(seen.lengths)]
    if clips[0].size != size:
        raise ConfigError(f"{args.bundle} makes frames of {size}, {args.teacher} was trained at {clips[0].size}")
    bench = _Bench(args, device, teacher, stream, folder, clips, threads, out)
    measures = {"cost": _cost, "fps": _fps, "quality": _quality, "interpolation": _interpolation}
    command = {"engine": args.engine[0], "threads": threads, "repeats": args.repeats, "max_frames": args.max_frames}
    write_json(out / SOURCES, {"runs": [str(run) for run in args.runs], "suites": list(args.suites), **command})
    rows: dict[str, Any] = {}
    settings = {
        "teacher": str(teacher.checkpoint),
        "bundle": str(args.bundle),
        "data": str(args.data),
        "size": list(size),
        "engine": stream.engine_name,
        "keyframes": dict(stream.manifest.keyframes),
        "teacher_precision": str(device.dtype).removeprefix("torch."),
    }
    for suite in args.suites:
        if not (found := measures[suite](bench)):
            _LOG.warning("%s: nothing to measure on these clips at this gap; left out", suite)
            continue
        rows[suite] = found
        result = BenchmarkResult(
            suite=suite,
            rows=tuple(rows[suite]),
            device=str(device.device.type),
            threads=threads,
            precision=stream.engine_name.split()[-1],
            repeats=args.repeats,
            settings=settings,
        )
        write_result(out / f"{suite}.json", result)
    stream.close()
    return rows


def _cost(bench: _Bench) -> list[dict[str, Any]]:
    """MACs and weights of teacher and student."""
    spec, size = bench.stream.manifest.condition, bench.stream.manifest.size
    # The given first frame of each clip is neither synthesised nor delivered by the student.
    total, keyframes = 0, 0
    for clip in bench.clips:
        for _ in bench.deliver(condition_maps(clip), pictures(clip)[0]):
            pass
        total += clip.num_frames - 1
        keyframes += bench.stream.stats.keyframes
    student = bench.stream.manifest.cost
    teacher = step_cost(bench.teacher.generator, spec.channels, size)
    rows = [teacher.row(TEACHER)]
    rows.append(
        {
            "name": "student",
            "gmacs_per_keyframe": student.macs_per_keyframe / 1e9,
            "gmacs_per_frame": student.macs_per_keyframe / 1e9 * keyframes / total,
            "output_position_gmacs_per_keyframe": student.output_position_macs_per_keyframe / 1e9,
            "output_position_gmacs_per_frame": student.output_position_macs_per_keyframe / 1e9 * keyframes / total,
            "gflops_per_keyframe": 2 * student.macs_per_keyframe / 1e9,
            "parameters_m": student.parameters / 1e6,
            "keyframe_fraction": keyframes / total,
        }
    )
    return rows


def _fps(bench: _Bench) -> list[dict[str, Any]]:
    """Keyframe and delivered FPS of teacher and bundle, in one run."""
    clip = max(bench.clips, key=lambda c: c.num_frames)
    spec, generator, device = bench.stream.manifest.condition, bench.teacher.generator, bench.device
    conditions = torch.zeros(1, 1, spec.channels, *clip.size, device=device.device)
    history = start_history(conditions, clip.frames[:, :1].to(device.device), generator.history_length)

    @torch.no_grad()
    def teacher_step() -> None:
        with device.autocast():
            generator.step(conditions[:, 0], history)
        if device.device.type == "cuda":
            torch.cuda.synchronize()

    def teacher_stream() -> Iterator[Any]:
        return synthesise(generator, spec, clip, 1, device)

    given, first = condition_maps(clip), pictures(clip)[0]
    warm, repeats = 3, max(10, 4 * bench.args.repeats)
    steps = {
        TEACHER: measure_step(teacher_step, warmup=warm, repeats=repeats),
        DELIVERED: measure_step(bench.stream.time_step(given[0]), warmup=warm, repeats=repeats),
    }
    streams = compare_streams(
        {TEACHER: teacher_stream, DELIVERED: lambda: bench.deliver(given, first)}, clip.num_frames, bench.args.repeats
    )
    rows = []
    for name in (TEACHER, DELIVERED):
        precision = str(device.dtype).replace(".", " ") if name == TEACHER else bench.stream.engine_name
        rows.append(
            {
                "name": name,
                "keyframe_ms": steps[name].latency.median_ms,
                "keyframe_p95_ms": steps[name].latency.p95_ms,
                "keyframe_fps": steps[name].keyframe_fps,
                "median": streams[name].delivered_fps,
                "unit": "frames / s",
                "spread": streams[name].spread_fps,
                "ratio_to_teacher": speed_ratio(streams[name], streams[TEACHER]),
                "engine": precision,
            }
        )
    return rows


def _quality(bench: _Bench) -> list[dict[str, Any]]:
    """Scores of teacher and delivered stream beside the floors; writes the videos."""
    floor = _mean_colour_floor(bench)
    scores: dict[str, list[Mapping[str, Any]]] = {}
    for sequence, clip in zip(bench.folder.sequences, bench.clips, strict=True):
        real = pictures(clip)
        with batch_statistics(bench.teacher.generator):  # as synthesize does
            taught = list(
                tqdm(
                    synthesise(bench.teacher.generator, bench.stream.manifest.condition, clip, 1, bench.device),
                    total=clip.num_frames,
                    desc=f"teacher {sequence.name}",
                )
            )
        stream = bench.deliver(condition_maps(clip), real[0])
        delivered = list(tqdm(stream, total=clip.num_frames, desc=f"stream {sequence.name}"))
        made = [item.frame for item in delivered]
        mask = [item.is_keyframe for item in delivered]
        labels = None if clip.labels is None else list(clip.labels[0, 1:].numpy())
        turned: dict[str, float] = {}
        if clip.points is not None and bench.args.round_trip_frames:
            gap = KeyframeConfig(**bench.stream.manifest.keyframes).gap  # type: ignore[arg-type]
            way = round_trip(clip, bench.args.round_trip_frames, gap=gap)
            first = pictures(way)[0]
            with batch_statistics(bench.teacher.generator):
                spec = bench.stream.manifest.condition
                taken = list(synthesise(bench.teacher.generator, spec, way, 1, bench.device))
            turned[TEACHER] = return_distance(taken, 1)
            turned[DELIVERED] = return_distance([x.frame for x in bench.deliver(condition_maps(way), first)], 1)
        table = quality_table(
            real[1:],
            {TEACHER: taught[1:], DELIVERED: made[1:]},
            keyframe_masks={DELIVERED: mask[1:]},
            before=real[0],
            labels=labels if floor else None,
            mean_colour=floor,
            with_vmaf=bench.args.vmaf,
            points=None if clip.points is None else list(clip.points[0][0, 1:].numpy()),
            forward_backward=turned,
        )
        for row in table:
            scores.setdefault(row["name"], []).append(row)
        _write_videos(bench, sequence.name, clip, {"real": real, "teacher": taught, "delivered": made}, mask)
    return [row for name, of in scores.items() for row in score_rows(mean_scores(name, of))]


def _mean_colour_floor(bench: _Bench) -> MeanColourFloor | None:
    """Mean colour of each label over the training part; None without labels."""
    if bench.stream.manifest.condition.kind != "labels":
        return None
    folder = open_folder(replace(bench.folder.config, phase="train"))

    def pairs() -> Iterator[tuple[NDArray[np.integer[Any]], NDArray[np.uint8]]]:
        for i in tqdm(range(len(folder.sequences)), desc="mean colours"):
            clip = read_sequence(folder, i)
            assert clip.labels is not None  # the condition is of labels
            yield from zip(clip.labels[0].numpy(), pictures(clip), strict=True)

    return MeanColourFloor.fit(pairs())


def _write_videos(
    bench: _Bench, name: str, clip: Clip, videos: dict[str, list[NDArray[np.uint8]]], mask: Sequence[bool]
) -> None:
    """Save what the page shows: condition, real, teacher, delivered, and which frames are keyframes."""
    fps = bench.stream.manifest.fps
    folder = bench.out / "videos" / name
    folder.mkdir(parents=True, exist_ok=True)
    if clip.labels is not None:
        videos = {"condition": [colourise(x.numpy(), bench.folder.palette) for x in clip.labels[0]], **videos}
    for kind, frames in videos.items():
        maker = {"teacher": bench.args.teacher, "delivered": bench.args.bundle}.get(kind)
        made_by = "" if maker is None else maker.resolve().name
        write_video(folder / f"{kind}.mp4", frames, fps, crf=16, synthetic=maker is not None, made_by=made_by)
    write_json(folder / "keyframes.json", [bool(x) for x in mask])


def _interpolation(bench: _Bench) -> list[dict[str, Any]]:
    """Fill-in of real held-out frames at the bundle's gap: ours beside the published filter."""
    gap = KeyframeConfig(**bench.stream.manifest.keyframes).gap  # type: ignore[arg-type]
    clip = max(bench.clips, key=lambda c: c.num_frames)
    frames = pictures(clip)
    if gap < 2 or len(frames) <= gap:
        return []
    labels = None if clip.labels is None else [x.numpy() for x in clip.labels[0]]
    rows = interpolation_benchmark(frames, gap, repeats=bench.args.repeats, threads=bench.threads, labels=labels)
    return [{"name": row["method"], **row} for row in rows]


def _shortcomings(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """What a reader of the numbers must know before trusting them."""
    scores = {row["name"]: row["psnr_db"] for row in rows.get("quality", ()) if row["frames"] == "all"}
    floor = scores.get(MEAN_COLOUR)
    found = [
        f"the {name} does not beat mean colours ({scores[name]:.2f} against {floor:.2f} dB): it has not learnt yet; "
        "train longer"
        for name in (TEACHER, DELIVERED)
        if floor is not None and name in scores and scores[name] <= floor
    ]
    for row in rows.get("fps", ()):
        if row["spread"] > 0.25 * row["median"]:
            found.append(
                f"the speed of the {row['name']} varied by {row['spread']:.0f} around {row['median']:.0f} frames/s: "
                "the machine was busy with something else; measure again"
            )
    return found


def measure_and_show(args: Benchmark) -> Path:
    """Run the suites, print their tables and one JSON object as the last line; returns the page."""
    assert args.out is not None  # Benchmark sees to it
    rows = run_benchmark(args)
    for suite, of in rows.items():
        print(f"\n{suite}\n{format_table(of, columns_of(suite, of))}")
    for warning in _shortcomings(rows):
        print(f"warning: {warning}", file=sys.stderr)
    page = args.out / PAGE
    line = json.dumps({"out": str(args.out), "page": str(page), "suites": rows}, default=float)
    if args.json is not None:
        write_bytes(args.json, f"{line}\n".encode())
    print(f"\nopen {page} in a browser; the videos lie in {args.out / 'videos'}")
    print(line)
    return page


def compare_engines(args: Benchmark) -> int:
    """Time the bundle in each engine; print a table and one JSON object as the last line.

    Returns:
        Exit status: 1 where an engine that was named cannot run.
    """
    threads = args.threads or this_machine()["cores"]
    torch.set_num_threads(threads)
    cv2.setNumThreads(filling_threads(threads))
    candidates = wanted_candidates(args.bundle, args.engine)
    rows = measure_engines(
        args.bundle,
        candidates,
        num_frames=args.frames,
        repeats=args.repeats,
        threads=args.threads,
        host_code=args.host_code,
    )
    print(format_table(rows, ENGINE_COLUMNS))
    if args.record:
        choice = choose_here(args.bundle, candidates, args.threads)
        print(f"\nwritten into {args.bundle}: {choice.engine} {choice.precision}, {choice.median_ms:g} ms a keyframe")
        for m in choice.measurements:
            print(f"  {m.engine} {m.precision}: {m.reason}")
    document = {"bundle": str(args.bundle), "machine": dict(this_machine()), "threads": threads, "engines": rows}
    line = json.dumps(document, default=float)
    if args.json is not None:
        write_bytes(args.json, f"{line}\n".encode())
    print(line)
    has_failed = any("failed" in row for row in rows)
    return int(has_failed and AUTO not in args.engine)


def main(argv: list[str]) -> int:
    """``fastv2v benchmark --bundle NAME.v2v [--teacher RUN --data DIR --out DIR]``."""
    args = parse(Benchmark, "fastv2v benchmark", argv)
    for path in (args.out, args.json):
        if path is not None:
            check_place(path)
    if args.teacher is None:
        return compare_engines(args)
    measure_and_show(args)
    return 0
