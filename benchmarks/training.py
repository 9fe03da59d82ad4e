"""Throughput and memory of a teacher's training step, beside a plain transcription of vid2vid's step order.

Both sides start from the same weights and train on the same clip of the procedural street, with the same networks, loss
weights and chunk length. Ours is the loop that users run, ``fastv2v.train.fit``; the other is
``benchmarks.reference_step``. The discriminators normalise by instance norm and the perceptual distance is absolute, so
that no loss depends on how frames are grouped, and the losses before the first update must agree.

Inside the timing: encoding of the conditions, reference flow, all passes, all updates; on our side also what the loop
adds, such as the averaged weights. Outside: reading the clip, building, one or more warm-up steps. Each method lives in
a fresh process of its own, whose peak memory is reported. The reference takes turns with a few methods at a time, as
many as memory holds, so that a busy machine slows both sides of every ratio.
"""

from __future__ import annotations

import contextlib
import itertools
import json as json_format
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import torch
import tyro
from torch import nn

from benchmarks.reference_step import ReferenceTraining
from benchmarks.results import BenchmarkResult, Row, format_table, write_result
from fastv2v.contracts import Losses
from fastv2v.data.classes import preset_classes
from fastv2v.data.clip import Clip
from fastv2v.data.conditions import ConditionSpec
from fastv2v.data.world import CLASS_NAMES, WorldConfig, render_clip
from fastv2v.device import Device, DeviceConfig, Precision, open_device
from fastv2v.errors import ConfigError, FastV2VError
from fastv2v.losses.objective import VideoObjective
from fastv2v.losses.perceptual import EfficientNetLite0, PerceptualLoss
from fastv2v.measure.latency import peak_memory_mb
from fastv2v.memory import keep_freed_memory
from fastv2v.nn.composite import CompositeGenerator
from fastv2v.ops.flow import DISFlow
from fastv2v.optim import OptimConfig
from fastv2v.run import open_run
from fastv2v.train import TrainConfig, fit
from teachers.presets import street
from teachers.task import TeacherTask, TeacherTaskConfig

Report = list[dict[str, dict[str, float]]]
"""Losses of each chunk of a step by player and term."""

LOSS_TOLERANCE: Final = 1e-4
"""Largest relative difference at which two fp32 losses count as equal."""

COLUMNS: Final = {
    "size": "size",
    "name": "method",
    "median": "frames/s",
    "spread": "spread",
    "step_s": "s / step",
    "cpu_s": "CPU s / step",
    "speedup": "x faster",
    "peak_memory_mb": "peak MB",
    "resting_memory_mb": "MB before",
    "loss_difference": "loss difference",
    "losses_equal": "equal",
}
"""Columns of the table."""

# The world's classes by Cityscapes' names, so that conditions have the width of the street recipe.
_CITYSCAPES: Final = {
    "pavement": "sidewalk",
    "tree": "vegetation",
    "sign": "traffic sign",
    "cyclist": "rider",
    "other": "unlabeled",
}


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to train."""

    is_reference: bool = False
    """Whether in the reference's order; else through our loop."""
    frames_at_once: int = 0
    """Of the reference: frames of a chunk that the image-level losses take together, 0 for all."""
    precision: Precision = "fp32"
    """Arithmetic inside networks."""
    channels_last: bool = False
    """Whether convolutions keep channels innermost in memory."""


BASELINE: Final = "reference order"
METHODS: Final[Mapping[str, Method]] = {
    BASELINE: Method(is_reference=True, frames_at_once=1),
    "reference order, whole chunks": Method(is_reference=True),
    "ours": Method(),
    "ours, channels last": Method(channels_last=True),
    "ours, bf16": Method(precision="bf16"),
    "ours, bf16, channels last": Method(precision="bf16", channels_last=True),
}
"""Every method by name. The first judges one frame after the other, the second all frames of a chunk together."""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """What is trained: the street recipe, narrowed to what a CPU can do."""

    size: tuple[int, int] = (128, 256)
    """Height and width of the frames."""
    width: int = 16
    """Channels of the generator at full size (vid2vid: 128)."""
    discriminator_width: int = 64
    """Channels of the discriminators' first block (vid2vid: 64)."""
    num_frames: int = 5
    """Frames of the clip; the first two are given."""
    chunk_frames: int = 3
    """Frames between two updates. Losses are compared in the first chunk: with fewer than three frames it has nothing
    for the temporal discriminator."""
    seed: int = 0
    """Of the clip and of the weights."""
    threads: int = 2
    """CPU threads of torch and OpenCV."""
    cpu: bool = False
    """Stay on the CPU even where a GPU is present."""
    keep_memory: bool = True
    """Whether each process, of either side, keeps the memory it frees; see ``keep_freed_memory``."""

    def __post_init__(self) -> None:
        if self.threads < 1 or self.chunk_frames < 1:
            raise ConfigError(
                f"threads and chunk_frames must be at least 1, got {self.threads} and {self.chunk_frames}"
            )
        given = street().generator.history_length
        if self.num_frames <= given:
            raise ConfigError(f"num_frames must exceed the {given} given frames, got {self.num_frames}")


@dataclass(frozen=True)
class StepReport:
    """What one training step came to."""

    seconds: float
    """Wall-clock time."""
    cpu_seconds: float
    """Time of all threads of the process together, which other processes on the machine disturb less."""
    losses: Report
    """Before each update."""
    peak_memory_mb: float
    """The most memory held so far: of the process on a CPU, of torch's allocator on a GPU; MB of 10^6 bytes."""


def street_spec() -> ConditionSpec:
    """Conditions of the street recipe: Cityscapes' classes with instance borders."""
    return ConditionSpec(class_names=preset_classes("cityscapes").names, use_instances=True)


def street_clip(settings: TrainingSettings) -> Clip:
    """A seeded clip of the procedural street, with Cityscapes' class ids."""
    names = street_spec().class_names
    ids = torch.tensor([names.index(_CITYSCAPES.get(name, name)) for name in CLASS_NAMES], dtype=torch.uint8)
    config = WorldConfig(size=settings.size, num_frames=settings.num_frames, seed=settings.seed)
    made = list(render_clip(config, 0))
    frames = torch.from_numpy(np.stack([one.frame for one in made])).permute(0, 3, 1, 2).contiguous()
    labels = torch.from_numpy(np.stack([one.labels for one in made]))
    instances = torch.from_numpy(np.stack([one.instances for one in made]).astype(np.int32))
    return Clip(frames=(frames.float() / 127.5 - 1)[None], labels=ids[labels.long()][None], instances=instances[None])


def build_task(settings: TrainingSettings) -> TeacherTask:
    """The narrowed street teacher with all of vid2vid's terms; equal settings give equal weights."""
    recipe, spec = street(), street_spec()
    discriminator = replace(
        recipe.task.objective.image_discriminator, width=settings.discriminator_width, norm="instance"
    )
    objective = recipe.task.objective
    num_made, window = settings.num_frames - recipe.generator.history_length, objective.temporal_window
    objective = replace(
        objective,
        image_discriminator=discriminator,
        temporal_discriminator=discriminator,
        # Without the discriminators of frames further apart than this clip is long: nothing would reach them.
        temporal_scales=sum(window**scale * (window - 1) < num_made for scale in range(objective.temporal_scales)),
    )
    rollout = replace(
        recipe.task.rollout, chunk_frames=settings.chunk_frames, start_from_nothing=0.0, start_from_one=0.0
    )
    foreground = tuple(spec.class_names.index(name) for name in recipe.foreground)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        perceptual = PerceptualLoss(EfficientNetLite0(), (0.2,) * 5, relative=False)
        generator = CompositeGenerator(replace(recipe.composite, width=settings.width), spec.channels, foreground)
        judges = VideoObjective(objective, spec.channels, perceptual, DISFlow())
    return TeacherTask(generator, spec, judges, TeacherTaskConfig(objective=objective, rollout=rollout))


Tell = Callable[[StepReport], None]
"""Takes the report of a step."""


class _Metered:
    """A task that waits for its turn before each step and reports after it."""

    def __init__(self, task: TeacherTask, device: Device, await_turn: Callable[[], None], tell: Tell) -> None:
        self._task, self._device, self._await_turn, self._tell = task, device, await_turn, tell
        self.players, self.weights = task.players, task.weights
        self.sample, self.evaluate = task.sample, task.evaluate

    def step(self, clip: Clip, rng: torch.Generator, at: int) -> Iterator[Losses]:
        """The task's own step. The loop asks for what follows the last chunk once all players are updated."""
        self._await_turn()
        chunks: list[Losses] = []
        clock = _Clock(self._device)
        for losses in self._task.step(clip, rng, at):
            chunks.append({player: {k: v.detach() for k, v in of.items()} for player, of in losses.items()})
            yield losses
        self._tell(clock.report(chunks))


class _Clock:
    """Times a step on a device."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._wait()
        self._start, self._cpu_start = time.perf_counter(), time.process_time()

    def report(self, chunks: Sequence[Losses]) -> StepReport:
        """What the step came to, once all its work is done."""
        self._wait()
        seconds, cpu_seconds = time.perf_counter() - self._start, time.process_time() - self._cpu_start
        losses = [{player: {name: float(x) for name, x in of.items()} for player, of in one.items()} for one in chunks]
        return StepReport(seconds, cpu_seconds, losses, _peak_mb(self._device))

    def _wait(self) -> None:
        if self._device.device.type == "cuda":
            torch.cuda.synchronize()


def train_steps(
    method: Method, settings: TrainingSettings, steps: int, await_turn: Callable[[], None], tell: Tell
) -> None:
    """Train for some steps on one clip.

    Args:
        method: how.
        settings: what.
        steps: how many.
        await_turn: called before each step; returns when it may begin.
        tell: called after each step.
    """
    device = open_device(DeviceConfig(precision=method.precision, cpu=settings.cpu))
    torch.backends.cudnn.allow_tf32 = False  # or fp32 would be something else on a GPU
    task, clip = build_task(settings), street_clip(settings)
    networks: list[nn.Module] = [*task.players.values()]
    if task.objective.perceptual is not None:
        networks.append(task.objective.perceptual)
    for network in networks:
        network.to(device.device)
        if method.channels_last:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optim = OptimConfig(decay_fraction=0.0)
    if method.is_reference:
        clip, reference = clip.to(device.device), ReferenceTraining(task, optim, frames_at_once=method.frames_at_once)
        for _ in range(steps):
            await_turn()
            clock = _Clock(device)
            tell(clock.report(reference.step(clip)))
        return
    config = TrainConfig(
        steps=steps, seed=settings.seed, optim=optim, log_every=steps, sample_every=0, eval_every=0,
        checkpoint_every=steps,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, open_run(folder, {}) as run:
        fit(_Metered(task, device, await_turn, tell), lambda _: itertools.repeat(clip), run, config, device)


def _peak_mb(device: Device) -> float:
    return torch.cuda.max_memory_allocated() / 1e6 if device.device.type == "cuda" else peak_memory_mb()


def loss_difference(ours: Report, reference: Report) -> float:
    """The greatest relative difference between two reports of losses.

    Raises:
        ConfigError: if they do not hold the same chunks, players and terms.
    """
    mine, theirs = (
        {(i, player, name): value for i, chunk in enumerate(report) for player, of in chunk.items()
         for name, value in of.items()}
        for report in (ours, reference)
    )  # fmt: skip
    if mine.keys() != theirs.keys():
        raise ConfigError(f"the two sides report different losses: {sorted(mine.keys() ^ theirs.keys())}")
    return max(abs(value - theirs[key]) / max(abs(value), abs(theirs[key]), 1e-12) for key, value in mine.items())


def _serve(connection: Connection, method: Method, settings: TrainingSettings, steps: int) -> None:
    """What a worker process does: say what memory it holds when ready, then one step for each message."""
    if settings.keep_memory:
        keep_freed_memory()
    torch.set_num_threads(settings.threads)
    cv2.setNumThreads(settings.threads)
    is_ready = False

    def await_turn() -> None:
        nonlocal is_ready
        if not is_ready:
            connection.send(peak_memory_mb())
            is_ready = True
        connection.recv()

    # The other end closes early only where the benchmark is given up.
    with contextlib.suppress(EOFError):
        try:
            train_steps(method, settings, steps, await_turn, connection.send)
        except FastV2VError as error:
            connection.send(error)


class _Worker:
    """One method in a process of its own."""

    def __init__(self, name: str, settings: TrainingSettings, steps: int, processes: Any) -> None:
        self.name = name
        self.reports: list[StepReport] = []
        self.resting_mb = 0.0
        self._connection, end = processes.Pipe()
        self._process = processes.Process(target=_serve, args=(end, METHODS[name], settings, steps))
        self._process.daemon = True
        self._process.start()
        end.close()

    def await_ready(self) -> None:
        """Wait until it could take its first step."""
        self.resting_mb = float(self._receive())

    def step(self) -> None:
        """Let it train for one step."""
        with contextlib.suppress(BrokenPipeError):  # a process that has ended is named by _receive
            self._connection.send("step")
        self.reports.append(self._receive())

    def close(self) -> None:
        """Wait until it has ended."""
        self._connection.close()
        self._process.join()

    def _receive(self) -> Any:
        with contextlib.suppress(EOFError):
            while self._process.is_alive() or self._connection.poll():
                if self._connection.poll(0.2):
                    message = self._connection.recv()
                    if isinstance(message, FastV2VError):
                        raise message
                    return message
        raise ConfigError(
            f"the process of '{self.name}' ended early; its own message is above, or memory has run out: give a "
            "smaller --at-once, size or width"
        )


def training_benchmark(
    settings: TrainingSettings,
    methods: Sequence[str] = tuple(METHODS),
    repeats: int = 3,
    *,
    warmup: int = 1,
    at_once: int = 3,
    processes: Any = None,
) -> list[Row]:
    """Time the training step of each method, in turns.

    Args:
        settings: what is trained.
        methods: names from ``METHODS``.
        repeats: timed steps of each.
        warmup: steps beforehand, at least 1: the losses are compared in the first.
        at_once: how many methods are held in memory, ``BASELINE`` among them, where it is wanted: it stays, and takes
            its timed steps anew beside each group of the others.
        processes: where workers come from, with the interface of ``multiprocessing``; spawned processes by default.

    Returns:
        One row for each method: ``name``; ``median``, ``unit`` and ``spread`` (between quartiles) of the synthesised
        frames per second; ``step_s`` and ``cpu_s`` (medians; the latter of all threads together); ``speedup`` (time of
        ``BASELINE`` over this one's, median of the ratios within each repeat; None without it); ``peak_memory_mb`` and
        ``resting_memory_mb`` (before the first step; of the process, on a GPU the first is of torch's allocator);
        ``loss_difference`` (greatest relative difference of any loss to the baseline's before the first update),
        ``losses_equal`` (whether that is within ``LOSS_TOLERANCE``); ``precision``, ``channels_last``, ``size``,
        ``height``, ``width``.

    Raises:
        ConfigError: if a method is unknown, a number out of range, or a process ends early.
    """
    if unknown := [name for name in methods if name not in METHODS]:
        raise ConfigError(f"unknown method {unknown[0]!r}; choose from {', '.join(METHODS)}")
    if repeats < 1 or warmup < 1 or not methods:
        raise ConfigError(
            f"repeats and warmup must be at least 1 and a method named, got {repeats}, {warmup} and {len(methods)}"
        )
    if at_once < 2:
        raise ConfigError(f"at_once must be at least 2, the reference and a method beside it, got {at_once}")
    context = processes or multiprocessing.get_context("spawn")
    others = [name for name in methods if name != BASELINE]
    size = at_once - (BASELINE in methods)
    groups = [others[i : i + size] for i in range(0, len(others), size)] or [[]]
    rows: dict[str, Row] = {}
    with contextlib.ExitStack() as stack:
        start = partial(_open_worker, settings=settings, processes=context)
        baseline = start(stack, BASELINE, steps=warmup + repeats * len(groups)) if BASELINE in methods else None
        for number, group in enumerate(groups):
            with contextlib.ExitStack() as inner:
                workers = [start(inner, name, steps=warmup + repeats) for name in group]
                taking_turns = workers if baseline is None else [baseline, *workers]
                for _ in range(warmup):
                    for worker in workers if number else taking_turns:
                        worker.step()
                for _ in range(repeats):
                    for worker in taking_turns:
                        worker.step()
            rows |= {worker.name: _row(worker, baseline, settings, warmup) for worker in workers}
    if baseline is not None:
        rows[BASELINE] = _row(baseline, baseline, settings, warmup)
    return [rows[name] for name in methods]


def _open_worker(
    stack: contextlib.ExitStack, name: str, *, settings: TrainingSettings, steps: int, processes: Any
) -> _Worker:
    """Start a method; the stack ends it."""
    worker = _Worker(name, settings, steps, processes)
    stack.callback(worker.close)
    worker.await_ready()
    return worker


def _row(worker: _Worker, baseline: _Worker | None, settings: TrainingSettings, warmup: int) -> Row:
    """What was found of one method; the last timed steps of the baseline are those it took turns with."""
    seconds = [report.seconds for report in worker.reports[warmup:]]
    num_made = settings.num_frames - street().generator.history_length
    rates = [num_made / s for s in seconds]
    first_quartile, third_quartile = np.percentile(rates, (25, 75)).tolist()
    row: dict[str, Any] = {
        "name": worker.name,
        "median": statistics.median(rates),
        "unit": "frames / s",
        "spread": third_quartile - first_quartile,
        "step_s": statistics.median(seconds),
        "cpu_s": statistics.median(report.cpu_seconds for report in worker.reports[warmup:]),
        "speedup": None,
        "peak_memory_mb": worker.reports[-1].peak_memory_mb,
        "resting_memory_mb": worker.resting_mb,
        "loss_difference": None,
        "losses_equal": None,
        "precision": METHODS[worker.name].precision,
        "channels_last": METHODS[worker.name].channels_last,
        "size": "{1}x{0}".format(*settings.size),
        "height": settings.size[0],
        "width": settings.size[1],
    }
    if baseline is not None:
        beside = baseline.reports[-len(seconds) :]
        ratios = [theirs.seconds / s for theirs, s in zip(beside, seconds, strict=True)]
        difference = loss_difference(worker.reports[0].losses[:1], baseline.reports[0].losses[:1])
        row |= {
            "speedup": statistics.median(ratios),
            "loss_difference": difference,
            "losses_equal": difference <= LOSS_TOLERANCE,
        }
    return row


def unequal(rows: Sequence[Row]) -> list[str]:
    """A sentence for every fp32 method whose losses are not the baseline's."""
    return [
        f"{row['name']} at {row['size']}: losses differ from the reference's by {row['loss_difference']:.1e}, more "
        f"than {LOSS_TOLERANCE:.0e}; its speed is of another training"
        for row in rows
        if row["precision"] == "fp32" and row["losses_equal"] is False
    ]


def measure(
    settings: TrainingSettings,
    sizes: Sequence[tuple[int, int]],
    methods: Sequence[str] = tuple(METHODS),
    repeats: int = 3,
    *,
    warmup: int = 1,
    at_once: int = 3,
    processes: Any = None,
) -> BenchmarkResult:
    """Run the benchmark at several sizes; the arguments are those of ``training_benchmark``."""
    rows: list[Row] = []
    for size in sizes:
        at_size = replace(settings, size=size)
        rows += training_benchmark(at_size, methods, repeats, warmup=warmup, at_once=at_once, processes=processes)
    return BenchmarkResult(
        suite="training",
        rows=tuple(rows),
        device="cpu" if settings.cpu or not torch.cuda.is_available() else "cuda",
        threads=settings.threads,
        precision="fp32 where a row says nothing else",
        repeats=repeats,
        settings={**asdict(settings), "size": [list(size) for size in sizes], "warmup": warmup, "at_once": at_once},
    )


def main(
    *,
    size: tuple[tuple[int, int], ...] = ((128, 256), (256, 512)),
    width: int = TrainingSettings.width,
    discriminator_width: int = TrainingSettings.discriminator_width,
    num_frames: int = TrainingSettings.num_frames,
    chunk_frames: int = TrainingSettings.chunk_frames,
    seed: int = TrainingSettings.seed,
    threads: int = TrainingSettings.threads,
    cpu: bool = TrainingSettings.cpu,
    keep_memory: bool = TrainingSettings.keep_memory,
    methods: tuple[str, ...] = tuple(METHODS),
    repeats: int = 3,
    warmup: int = 1,
    at_once: int = 3,
    json: Path | None = None,
) -> None:
    """Compare ways to train a teacher and print a table, then one line of JSON.

    Args:
        size: height and width of the frames; several pairs for several sizes.
        width: channels of the generator at full size; vid2vid's 128 takes minutes a step on a CPU.
        discriminator_width: channels of the discriminators' first block.
        num_frames: frames of the clip; the first two are given.
        chunk_frames: frames between two updates.
        seed: of the clip and of the weights.
        threads: CPU threads of torch and OpenCV.
        cpu: stay on the CPU even where a GPU is present.
        keep_memory: whether each process, of either side, keeps the memory it frees.
        methods: which methods to compare.
        repeats: timed steps of each method.
        warmup: steps beforehand.
        at_once: how many methods to hold in memory, the reference among them.
        json: also write the result to this file.

    Raises:
        ConfigError: if a setting is out of range.
        SystemExit: with status 1 if fp32 losses are not equal.
    """
    settings = TrainingSettings(
        width=width,
        discriminator_width=discriminator_width,
        num_frames=num_frames,
        chunk_frames=chunk_frames,
        seed=seed,
        threads=threads,
        cpu=cpu,
        keep_memory=keep_memory,
    )
    result = measure(settings, size, methods, repeats, warmup=warmup, at_once=at_once)
    print(
        f"{num_frames - street().generator.history_length} frames a step in chunks of {chunk_frames}, generator width "
        f"{width}, discriminator width {discriminator_width}, {threads} threads, medians of {repeats}, {result.device}"
    )
    print(format_table(result.rows, COLUMNS))
    print("bf16 rounds, so its losses cannot be equal; channels last only changes the order of sums")
    if json is not None:
        write_result(json, result)
    print(json_format.dumps(result.to_dict()))
    if failures := unequal(result.rows):
        print("\n".join(f"benchmarks.training: {failure}" for failure in failures), file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except FastV2VError as error:
        print(f"benchmarks.training: {error}", file=sys.stderr)
        raise SystemExit(2) from error
