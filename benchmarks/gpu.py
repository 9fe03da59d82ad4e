"""How fast teacher, published student and ours are on a GPU, in every engine of torch, beside what the card could do.

One row for each network, size, way of running and number format: the time of a keyframe, frames delivered a second
(conditions go up as label maps, gaps are filled on the GPU, every frame comes down), memory and power. Beside it stands
the floor: the time that the layers' arithmetic or their memory traffic alone would take at the card's own speed, which
is measured in the same run by matrix products and copies. Networks are untrained, as weights do not change what a step
costs, and label maps are blocks that move: nothing on the GPU depends on what they show.

The teacher is vid2vid's for the size: one scale at 512x256, two at 1024x512, three at 2048x1024. Its norms use running
statistics and are folded like the students', which spares it work; it makes every frame, as ``gap 1``.

GPU time is short: every row is kept in a journal beside the result as soon as it is measured. The same command goes on
where the last one stopped; a row that fails is kept with its reason, and one that takes the whole process down or too
long is kept as that, and the rest goes on.
"""

from __future__ import annotations

import gc
import json as json_format
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.cost import step_cost
from benchmarks.engines import moving_conditions
from benchmarks.fps import StepSpeed, measure_step, measure_stream
from benchmarks.results import BenchmarkResult, format_table, result_path, write_result
from export.build import BundleDetails, build_bundle
from export.bundle import Cost, Manifest, Parity
from export.device_step import DeviceInputs, DeviceStep, TensorCondition, current_gpu, encode_on_device
from export.device_stream import DeviceStream, named_device
from export.engines import Candidate, engine_precisions, open_device_step, open_tested_engine
from export.inputs import PLAIN, ConditionForm, StepCondition, from_encoded
from export.onnx_graph import deployable
from export.runtime import ConditionMap, Stream
from export.tensorrt_builder import ParityClip, build_engine, moving_blocks
from export.tensorrt_store import TensorRTConfig
from export.torch_engine import DTYPES, Replay, TorchStep, card_id, deploy, device_name, numerics
from fastv2v.contracts import History, StepModel
from fastv2v.data.classes import preset_classes
from fastv2v.data.conditions import ConditionSpec
from fastv2v.errors import ConfigError, DataError, FastV2VError
from fastv2v.measure.cost import Cost as NetworkCost
from fastv2v.measure.gpu import GpuUse, GpuWatch, memory_beyond, read_gpu_use
from fastv2v.measure.latency import measure_latency
from fastv2v.nn.generators import build_generator
from fastv2v.run import write_bytes
from interpolate.fill import gap_times
from interpolate.keyframes import KeyframeConfig
from interpolate.motion import MotionConfig
from interpolate.torch_motion import TorchInterpolator
from students.presets import STUDENTS
from teachers import presets as teachers

Measured = Mapping[str, Any]
"""A row, of scalars."""
TEACHER, FILLING, PEAKS = "teacher", "filling", "peaks"
VARIANTS: Final = ("graph", "eager", "compiled")
"""Ways to run: kernels recorded as one CUDA graph; started one by one; written by torch's compiler and recorded."""
BUNDLED: Final = ("tensorrt", "onnxruntime-tensorrt", "onnxruntime-cuda")
"""Engines that run students from bundles, where they are installed. With ONNX Runtime's, history and filling stay on
the CPU."""
TARGETS: Final = {(256, 512): 1000.0, (1024, 2048): 60.0}
"""Delivered frames a second that ``base`` shall reach, by size."""
TARGET_RATIO: Final = 50.0
"""How many times the teacher's frames ``base`` shall deliver."""
COLUMNS: Final = {
    "name": "network, size, way, format",
    "gmacs_per_keyframe": "GMACs / keyframe",
    "keyframe_ms": "ms / keyframe",
    "keyframe_p99_ms": "p99 ms",
    "floor_ms": "floor ms",
    "floor_share": "floor / time",
    "keyframe_fps": "keyframes / s",
    "median": "delivered frames / s",
    "spread": "spread",
    "memory_mb": "GPU MB",
    "power_w": "W",
    "ratio": "times the teacher",
    "failed": "why not",
}
"""Columns of the table. ``ratio``: to the teacher at the same size, run in the same way and format."""
_MEASURED_S = 2.0
"""About how long a keyframe is timed."""
_BROKEN_DEVICE, _TIME_IS_UP = 3, 4
"""Exit statuses of a worker whose device takes no more work, or whose time is."""


@dataclass(frozen=True)
class Case:
    """What one row is about."""

    model: str
    """A student's name, ``teacher``, or ``filling`` for the frames between keyframes alone."""
    size: tuple[int, int]
    """(height, width)."""
    variant: str
    """One of ``VARIANTS``."""
    precision: str
    """One of ``export.torch_engine.DTYPES``."""

    @property
    def name(self) -> str:
        """As rows and the journal call it."""
        return f"{self.model} {self.size[0]}x{self.size[1]} {self.variant} {self.precision}"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all rows share."""

    device: str = "cuda"
    """A device as torch names it."""
    gap: int = 4
    """Distance of the students' keyframes."""
    num_frames: int = 65
    """Length of the delivered streams."""
    repeats: int = 5
    """Streams that are timed."""
    narrow: int = 0
    """Channels of the teacher's and the published student's first layer; 0 keeps their own. For tests."""

    @property
    def torch_device(self) -> torch.device:
        """The same for torch, with its number."""
        device = torch.device(self.device)
        return current_gpu() if self.device == "cuda" else device


SPEC: Final = ConditionSpec(class_names=preset_classes("cityscapes").names, use_instances=True)
"""The condition of the street recipes: 36 channels."""
_FOREGROUND: Final = (26,)
"""Cars, which the published street networks paint apart."""


def list_cases(
    models: Sequence[str], sizes: Sequence[tuple[int, int]], variants: Sequence[str], precisions: Sequence[str]
) -> list[Case]:
    """Every row to measure, what matters most first: way by way, small sizes first; filling once for each size.

    Raises:
        ConfigError: if a name is unknown.
    """
    for given, known in (
        (models, (TEACHER, FILLING, *STUDENTS)),
        (variants, (*VARIANTS, *BUNDLED)),
        (precisions, tuple(DTYPES)),
    ):
        if unknown := [name for name in given if name not in known]:
            raise ConfigError(f"there is no {unknown[0]!r}; choose from {', '.join(known)}")
    cases = [
        Case(model, size, variant, precision)
        for variant, size, model, precision in product(variants, sizes, models, precisions)
        if model != FILLING and (variant in VARIANTS or (model != TEACHER and precision in engine_precisions(variant)))
    ]
    # Filling keeps to float32, and is never compiled.
    ways = [variant for variant in variants if variant in ("graph", "eager")]
    filling = [Case(FILLING, size, way, "f32") for way in ways for size in sizes] if FILLING in models else []
    return filling + cases


def bundled_engines() -> list[str]:
    """Those of ``BUNDLED`` whose libraries are installed here."""
    providers: list[str] = []
    if find_spec("onnxruntime") is not None:
        import onnxruntime

        providers = onnxruntime.get_available_providers()
    found = {
        "tensorrt": find_spec("tensorrt") is not None,
        "onnxruntime-tensorrt": "TensorrtExecutionProvider" in providers,
        "onnxruntime-cuda": "CUDAExecutionProvider" in providers,
    }
    return [name for name in BUNDLED if found[name]]


def build_model(name: str, size: tuple[int, int], narrow: int = 0) -> StepModel:
    """A network of the benchmark, untrained.

    Args:
        name: a student's, or ``teacher``.
        size: (height, width), by which the teacher has its scales.
        narrow: see ``Settings``.
    """
    torch.manual_seed(0)
    config: Any
    if name == TEACHER:
        presets = {1024: teachers.street_1024, 2048: teachers.street_2048}
        config = presets.get(size[1], teachers.street)().generator
    else:
        config = STUDENTS[name]()
    if narrow and hasattr(config, "width"):
        config = type(config)(**{**vars(config), "width": narrow})
    foreground = _FOREGROUND if name in (TEACHER, "published") else ()
    model: StepModel = build_generator(config, SPEC.channels, foreground).eval()
    return model


class ModelStep:
    """Any generator as a ``DeviceStep``, those of several scales too; its whole past is copied at each step.

    Args:
        model: left untouched.
        size: (height, width).
        device: where it runs.
        precision: one of ``DTYPES``.
        compiled: let torch write kernels for it.
        graph: record the step as a CUDA graph.
    """

    name = "torch"
    form: ConditionForm = PLAIN
    memory_bytes: int | None = None

    def __init__(
        self,
        model: StepModel,
        size: tuple[int, int],
        device: torch.device,
        precision: str,
        *,
        compiled: bool,
        graph: bool,
    ) -> None:
        assert isinstance(model, nn.Module)
        self.device, self.precision = device, precision
        network = deploy(deployable(model), device, precision)
        self._step: Callable[..., Any] = network.step  # type: ignore[assignment]
        if compiled:
            self._step = torch.compile(self._step, fullgraph=True)
        channels, past = model.condition_channels, model.history_length
        self._inputs = DeviceInputs(from_encoded(PLAIN, np.zeros((channels, *size), np.float32)), device)
        scales = getattr(getattr(model, "config", None), "num_scales", 1)
        self._history = History(
            torch.zeros(1, past, channels, *size, device=device),
            torch.zeros(1, past, 3, *size, device=device),
            torch.zeros(1, device=device),
            tuple(torch.zeros(1, past, 3, size[0] >> k, size[1] >> k, device=device) for k in range(scales - 1, 0, -1)),
        )
        self._frame = torch.zeros(1, 3, *size, device=device)
        self._replay = Replay(self._work, device, graph=graph)

    def _work(self) -> None:
        with numerics(self.device, self.precision):
            output, after = self._step(self._inputs.tensors["condition"], self._history)
            self._frame.copy_(output.frame)
            # What comes out shares nothing with what went in.
            for buffer, value in zip(_tensors(self._history), _tensors(after), strict=True):
                buffer.copy_(value)

    def start(self, first: StepCondition | TensorCondition, seed_frame: NDArray[np.float32] | None = None) -> None:
        """See ``DeviceStep.start``; videos begin from nothing."""
        if seed_frame is not None:
            raise ConfigError("this benchmark begins its videos from nothing")
        self._inputs.load(first)
        for buffer in _tensors(self._history):
            buffer.zero_()
        self._history.conditions.copy_(self._inputs.past.expand_as(self._history.conditions))

    def step(self, condition: StepCondition | TensorCondition) -> Tensor:
        """See ``DeviceStep.step``."""
        self._inputs.load(condition)
        self._replay()
        return self._frame


def _tensors(history: History) -> list[Tensor]:
    return [history.conditions, history.frames, history.valid, *history.coarse_frames]


def open_step(case: Case, settings: Settings, model: StepModel) -> DeviceStep:
    """The network of a case, ready to run."""
    device, compiled = settings.torch_device, case.variant == "compiled"
    graph = case.variant == "graph" or (compiled and device.type == "cuda")
    if case.variant == "graph" and device.type != "cuda":
        raise ConfigError(f"a CUDA graph needs a CUDA GPU and this is {device.type}")
    if case.model == TEACHER:
        return ModelStep(model, case.size, device, case.precision, compiled=compiled, graph=graph)
    return TorchStep(
        model, case.size, SPEC, device=device, precision=case.precision, compiled=compiled, cuda_graph=graph
    )


def bare_manifest(model: StepModel, size: tuple[int, int], gap: int) -> Manifest:
    """What a stream has to know of a network that is in no bundle."""
    return Manifest(
        name="benchmark",
        task="street",
        condition=SPEC,
        size=size,
        history_length=model.history_length,
        keyframes=asdict(KeyframeConfig(gap=gap)),
        interpolation={"method": "dis", **asdict(MotionConfig())},
        fps=15.0,
        parity=Parity(max_abs_diff=0.0, frames=1),
        cost=Cost(macs_per_keyframe=0, macs_per_frame=0, output_position_macs_per_keyframe=0, parameters=1),
    )


def measure_peaks(settings: Settings, precisions: Sequence[str]) -> dict[str, Any]:
    """The speed of the device itself: copies within its memory, and large matrix products in each number format.

    Returns:
        A row: ``copy_gb_per_s`` (bytes read and written), ``f32_tmacs_per_s`` and so on; tf32 is not measured.
    """
    device = settings.torch_device
    is_gpu = device.type == "cuda"
    count, side = (1 << 28, 8192) if is_gpu else (1 << 22, 256)
    source, target = torch.zeros(2, count, device=device)
    copying = measure_latency(lambda: target.copy_(source), warmup=3, repeats=20, synchronize=_waiter(device))
    row: dict[str, Any] = {"name": PEAKS, "copy_gb_per_s": 8 * count / copying.median_ms / 1e6}
    for precision in precisions:
        if precision == "tf32":
            continue
        a, b = (torch.randn(side, side, device=device, dtype=DTYPES[precision]) for _ in range(2))
        product_of = measure_latency(lambda a=a, b=b: a @ b, warmup=3, repeats=10, synchronize=_waiter(device))  # type: ignore[misc]
        row[f"{precision}_tmacs_per_s"] = side**3 / product_of.median_ms / 1e9
    return row


def floor_ms(cost: NetworkCost, precision: str, peaks: Measured) -> dict[str, float | None]:
    """The least time a keyframe could take on this device, layer by layer.

    Every convolution reads its inputs and weights once, writes its outputs once, and takes the longer of that and its
    arithmetic; all else is free.

    Args:
        cost: layers of one keyframe.
        precision: number format.
        peaks: as ``measure_peaks`` gives them.

    Returns:
        ``floor_ms``, and both parts alone; None where the format's peak is not known.
    """
    peak, bandwidth = peaks.get(f"{precision}_tmacs_per_s"), peaks.get("copy_gb_per_s")
    if not isinstance(peak, float) or not isinstance(bandwidth, float):
        return {"arithmetic_floor_ms": None, "bytes_floor_ms": None, "floor_ms": None}
    width = DTYPES[precision].itemsize
    arithmetic = [layer.true_macs / peak / 1e9 for layer in cost.per_module]
    traffic = [width * (layer.values + layer.parameters) / bandwidth / 1e6 for layer in cost.per_module]
    return {
        "arithmetic_floor_ms": sum(arithmetic),
        "bytes_floor_ms": sum(traffic),
        "floor_ms": sum(map(max, arithmetic, traffic)),
    }


def measure_case(case: Case, settings: Settings, peaks: Measured) -> dict[str, Any]:
    """Measure one row.

    Raises:
        FastV2VError, RuntimeError: if the network cannot run so.
    """
    device = settings.torch_device
    torch.compiler.reset()  # it compiles a piece of code for eight networks at most
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    row = _labels(case) | (
        _measure_filling(case, settings) if case.model == FILLING else _measure_network(case, settings, peaks)
    )
    if device.type == "cuda" and case.variant not in BUNDLED:  # the engines of bundles have memory torch knows not of
        row["memory_mb"] = torch.cuda.max_memory_reserved(device) / 1e6
    return row


def _labels(case: Case) -> dict[str, Any]:
    return {
        "name": case.name,
        "model": case.model,
        "height": case.size[0],
        "width": case.size[1],
        "variant": case.variant,
        "precision": case.precision,
    }


def _measure_network(case: Case, settings: Settings, peaks: Measured) -> dict[str, Any]:
    model = build_model(case.model, case.size, settings.narrow)
    gap = 1 if case.model == TEACHER else settings.gap
    cost = step_cost(model, SPEC.channels, case.size, keyframe_fraction=1 / gap)
    conditions = moving_conditions(SPEC, case.size, settings.num_frames)
    before = read_gpu_use(_card(settings.torch_device))
    with tempfile.TemporaryDirectory() as scratch:
        started = time.perf_counter()
        stream, step = open_case(case, settings, model, Path(scratch, "student.v2v"))
        opened_s = time.perf_counter() - started
        with stream:
            device = settings.torch_device
            measured = _timed(step or stream.time_step(conditions[0]), device, conditions[0])
            delivered = measure_stream(lambda: _delivered(stream, conditions), settings.num_frames, settings.repeats)
            after = read_gpu_use(_card(device))
    floor, (speed, use) = floor_ms(cost.keyframe, case.precision, peaks), measured
    return {
        "gap": gap,
        "gmacs_per_keyframe": cost.keyframe.true_macs / 1e9,
        "gflops_per_keyframe": 2 * cost.keyframe.true_macs / 1e9,
        "output_position_gmacs_per_keyframe": cost.keyframe.output_position_macs / 1e9,
        "gmacs_per_frame": cost.true_macs_per_frame / 1e9,
        "parameters_m": cost.keyframe.parameters / 1e6,
        "opened_s": opened_s,
        "keyframe_ms": speed.latency.median_ms,
        "keyframe_spread_ms": speed.latency.spread_ms,
        "keyframe_p95_ms": speed.latency.p95_ms,
        "keyframe_p99_ms": speed.latency.p99_ms,
        "keyframe_fps": speed.keyframe_fps,
        "tflops_per_s": 2 * cost.keyframe.true_macs / speed.latency.median_ms / 1e9,
        **floor,
        "floor_share": None if floor["floor_ms"] is None else floor["floor_ms"] / speed.latency.median_ms,
        "median": delivered.delivered_fps,
        "unit": "frames / s",
        "spread": delivered.spread_fps,
        "pause_p99_ms": delivered.pause.p99_ms,
        "memory_mb": memory_beyond(before, use, after),
        "power_w": use.power_w,
        "clock_mhz": use.clock_mhz,
    }


def _timed(
    step: DeviceStep | Callable[[], object], device: torch.device, condition: ConditionMap
) -> tuple[StepSpeed, GpuUse]:
    """The time of a keyframe: of a step on a device without its condition being brought there, else with it."""
    waiter = _waiter(device)
    if callable(step):
        call: Callable[[], object] = step
    else:
        probe = _encoded(condition, step)
        step.start(probe)

        def call() -> object:
            return step.step(probe)

    once = measure_latency(call, warmup=2, repeats=3, synchronize=waiter).median_ms
    repeats = int(np.clip(1000 * _MEASURED_S / once, 5, 400))
    with GpuWatch(_card(device)) as watch:
        speed = measure_step(call, warmup=3, repeats=repeats, synchronize=waiter)
    return speed, watch.use


def _card(device: torch.device) -> str:
    """The GPU whose power and memory are watched; that of a test on the CPU is any."""
    return card_id(device if device.type == "cuda" else None)


def open_case(case: Case, settings: Settings, model: StepModel, folder: Path) -> tuple[Stream, DeviceStep | None]:
    """A case as a stream, and its step where that keeps its history on the device.

    Args:
        case: what to run.
        settings: shared by all cases.
        model: the network of the case.
        folder: where engines that need a bundle get one, NAME.v2v.

    Raises:
        FastV2VError, RuntimeError: if the network cannot run so.
    """
    gap = 1 if case.model == TEACHER else settings.gap
    manifest = bare_manifest(model, case.size, gap)
    if case.variant not in BUNDLED:
        step = open_step(case, settings, model)
        return DeviceStream(step, manifest), step
    clip = moving_blocks(SPEC, case.size, 4, np.random.default_rng(0))
    names = [field.name for field in fields(BundleDetails) if hasattr(manifest, field.name)]
    details = BundleDetails(**{name: getattr(manifest, name) for name in names})
    build_bundle(model, folder, details, torch.from_numpy(clip), measure=False, int8=False)
    candidate = Candidate(case.variant, case.precision)
    if case.variant != "tensorrt":
        return Stream(open_tested_engine(candidate, folder), manifest), None
    # Untrained weights say nothing of what a format costs in quality.
    config = TensorRTConfig(precision=case.precision, min_parity_psnr_db=0.0)  # type: ignore[arg-type]
    build_engine(folder, ParityClip(clip, "moving blocks"), config)
    step = open_device_step(candidate, folder, settings.torch_device)
    return DeviceStream(step, manifest), step


def _encoded(condition: ConditionMap, step: DeviceStep) -> TensorCondition:
    assert condition.labels is not None and condition.instances is not None
    maps = (torch.from_numpy(np.asarray(x)).to(step.device) for x in (condition.labels, condition.instances))
    return encode_on_device(step.form, SPEC, *maps)


def _delivered(stream: Stream, conditions: Sequence[ConditionMap]) -> Iterator[NDArray[np.uint8]]:
    stream.restart()
    for item in stream.frames(conditions):
        yield item.frame


def _measure_filling(case: Case, settings: Settings) -> dict[str, Any]:
    """The frames of one gap, made of keyframes and label maps that lie on the device."""
    device, gap = settings.torch_device, settings.gap
    if gap < 2:
        raise ConfigError("a gap of 1 leaves nothing to fill")
    if case.variant == "graph" and device.type != "cuda":
        raise ConfigError(f"a CUDA graph needs a CUDA GPU and this is {device.type}")
    first, second = torch.rand(2, 1, 3, *case.size, device=device) * 2 - 1
    maps = np.stack([x.labels for x in moving_conditions(SPEC, case.size, gap + 1) if x.labels is not None])
    labels = torch.from_numpy(maps.astype(np.int32))[None].to(device)
    made = torch.zeros(1, gap - 1, 3, *case.size, device=device)
    interpolator = TorchInterpolator(MotionConfig())

    @torch.no_grad()
    def work() -> None:
        made.copy_(interpolator.between(first, second, gap_times(gap), labels=labels))

    replay, waiter = Replay(work, device, graph=case.variant == "graph"), _waiter(device)
    once = measure_latency(replay, warmup=1, repeats=2, synchronize=waiter).median_ms
    repeats = int(np.clip(1000 * _MEASURED_S / once, 3, 200))
    filled = measure_latency(replay, warmup=2, repeats=repeats, synchronize=waiter)
    return {
        "gap": gap,
        "filled_frames": gap - 1,
        "gap_ms": filled.median_ms,
        "gap_p99_ms": filled.p99_ms,
        "median": 1000 * (gap - 1) / filled.median_ms,
        "unit": "filled frames / s",
        "spread": 1000 * (gap - 1) * filled.spread_ms / filled.median_ms**2,
    }


def _waiter(device: torch.device) -> Callable[[], None] | None:
    """Waits until a GPU has done its work."""
    return (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else None


class Journal:
    """Rows as they come, one JSON line each, so that a benchmark that was stopped can go on.

    Args:
        path: the file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, dict[str, Any]] = {}
        self._begun: str | None = None
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        for line in text.splitlines():
            self._read(line)
        self._between = "" if not text or text.endswith("\n") else "\n"  # its last line was cut off

    def _read(self, line: str) -> None:
        try:
            entry = json_format.loads(line)
        except ValueError:
            return  # cut off when the process was killed
        if "begun" in entry:
            self._begun = entry["begun"]["name"]
            self.rows[self._begun] = {**entry["begun"], "failed": "the process ended while this was measured"}
        else:
            self.rows[entry["name"]] = entry
            self._begun = None

    def begin(self, labels: dict[str, Any]) -> None:
        """Note what is measured now, in case it takes the process down."""
        self._write({"begun": labels})

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row."""
        self.rows[str(row["name"])] = row
        self._write(row)

    def close_case(self, reason: str) -> None:
        """Keep as failed what was begun last and not finished."""
        if self._begun is not None:
            self.add({**self.rows[self._begun], "failed": reason})
            self._begun = None

    def _write(self, entry: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(self._between + json_format.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._between = ""


def measure_all(cases: Sequence[Case], settings: Settings, journal: Journal, until: float) -> bool:
    """Measure what the journal does not hold yet.

    Args:
        cases: rows in their order.
        settings: shared by all.
        journal: holds what was measured, and takes what is.
        until: no row is begun after this time of ``time.monotonic``.

    Returns:
        Whether nothing is left.

    Raises:
        SystemExit: if the device takes no more work; another process goes on.
    """
    if PEAKS not in journal.rows:
        journal.add(measure_peaks(settings, list(dict.fromkeys(case.precision for case in cases))))
    for case in cases:
        if case.name in journal.rows:
            continue
        if time.monotonic() > until:
            return False
        journal.begin(_labels(case))
        try:
            row = measure_case(case, settings, journal.rows[PEAKS])
        except Exception as error:  # whatever stands in the way of this row, the others go on
            said = next(iter(str(error).strip().splitlines()), "")
            reason = said if isinstance(error, FastV2VError) else f"{type(error).__name__}: {said}"
            row = {**_labels(case), "failed": reason}
        journal.add(row)
        print(_progress(row), file=sys.stderr, flush=True)
        gc.collect()
        if "failed" in row:
            _check_alive(settings.torch_device)
    return True


def _progress(row: Measured) -> str:
    if "failed" in row:
        return f"{row['name']}: {row['failed']}"
    took = row.get("keyframe_ms", row.get("gap_ms"))
    return f"{row['name']}: {took:.3f} ms, {row['median']:.1f} {row['unit']}"


def _check_alive(device: torch.device) -> None:
    """End this process where an error has made the device useless for it."""
    if device.type != "cuda":
        return
    try:
        torch.zeros(1, device=device)
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        raise SystemExit(_BROKEN_DEVICE) from error


def with_ratios(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with ``ratio``: delivered frames over the teacher's at the same size, way and format."""
    teacher = {_setting(row): row["median"] for row in rows if row.get("model") == TEACHER and "median" in row}
    return [
        {**row, "ratio": row["median"] / teacher[_setting(row)]}
        if row.get("model") not in (None, TEACHER, FILLING) and "median" in row and _setting(row) in teacher
        else row
        for row in rows
    ]


def _setting(row: Measured) -> tuple[Any, ...]:
    return row["height"], row["width"], row["variant"], row["precision"]


def verdicts(rows: Sequence[Measured]) -> list[dict[str, Any]]:
    """The targets of this benchmark beside what was reached; nothing is said of sizes that were not measured.

    Args:
        rows: as measured.

    Returns:
        A row for each target with ``value``, ``target``, ``passed`` and ``by``, the row that reached it. The ratio is
        taken to the teacher in the same way and format (the best pair), and to the teacher as published: eager, f32.
    """
    found: list[dict[str, Any]] = []
    for size in sorted({(row["height"], row["width"]) for row in rows if row.get("model") == "base"}):
        here = [row for row in rows if (row.get("height"), row.get("width")) == size and row.get("median")]
        ours = [row for row in here if row["model"] == "base"]
        if not ours:
            continue
        label = f"{size[0]}x{size[1]}"
        best = max(ours, key=lambda row: row["median"])
        if size in TARGETS:
            name = f"verdict: base delivers at {label}"
            found.append(_verdict(name, best["median"], TARGETS[size], best["name"]))
        paired = [(row, other) for row in ours for other in here if _is_pair(row, other)]
        if paired:
            row, other = max(paired, key=lambda pair: pair[0]["median"] / pair[1]["median"])
            name = f"verdict: base over the teacher in the same way at {label}"
            found.append(_verdict(name, row["median"] / other["median"], TARGET_RATIO, row["name"]))
        published = [row for row in here if row["model"] == TEACHER and _setting(row)[2:] == ("eager", "f32")]
        if published:
            name = f"verdict: base over the teacher as published (eager f32) at {label}"
            found.append(_verdict(name, best["median"] / published[0]["median"], TARGET_RATIO, best["name"]))
    return found


def _is_pair(row: Measured, other: Measured) -> bool:
    return other["model"] == TEACHER and _setting(row) == _setting(other)


def _verdict(name: str, value: float, target: float, by: str) -> dict[str, Any]:
    return {"name": name, "value": value, "target": target, "passed": value >= target, "by": by}


def parse_size(text: str) -> tuple[int, int]:
    """``HxW`` as (height, width).

    Raises:
        ConfigError: if it is none.
    """
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if found is None:
        raise ConfigError(f"a size is height x width, such as 256x512, got {text!r}")
    return int(found[1]), int(found[2])


def device_slug(device: torch.device) -> str:
    """The device for file names, such as ``nvidia-h200``."""
    name = "cpu" if device.type == "cpu" else device_name(device)
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def main(
    models: tuple[str, ...] = (FILLING, "base", TEACHER, "published", "small", "tiny"),
    *,
    sizes: tuple[str, ...] = ("256x512", "512x1024", "1024x2048"),
    variants: tuple[str, ...] = (),
    precisions: tuple[str, ...] = ("bf16", "f16", "f32"),
    device: str = "cuda",
    gap: int = 4,
    num_frames: int = 65,
    repeats: int = 5,
    minutes: float = 9.0,
    row_minutes: float = 4.0,
    narrow: int = 0,
    retry_failed: bool = False,
    out: Path | None = None,
    worker: bool = False,
) -> None:
    """Measure every row that is not in the journal yet, then print the table, verdicts and one line of JSON.

    Args:
        models: Networks; filling is the interpolation alone.
        sizes: Heights and widths, HxW.
        variants: Ways to run; by default all of torch's, then TensorRT and ONNX Runtime's where they are installed.
        precisions: Number formats.
        device: Device as torch names it.
        gap: Distance of the students' keyframes.
        num_frames: Length of the delivered streams.
        repeats: Timed streams.
        minutes: No row is begun after so long; run the same command again to go on.
        row_minutes: A row that takes longer is given up.
        narrow: Width of teacher and published student, for tests; 0 keeps their own.
        retry_failed: Measure rows that failed once more.
        out: Result file; by default where the results of this project lie. The journal lies beside it.
        worker: Measure in this process; used by the command itself.

    Raises:
        ConfigError: if a name or number makes no sense, or there is no such device.
    """
    settings = Settings(device=device, gap=gap, num_frames=num_frames, repeats=repeats, narrow=narrow)
    ways = variants or (*VARIANTS, *bundled_engines())
    cases = list_cases(models, [parse_size(size) for size in sizes], ways, precisions)
    if num_frames <= gap or gap < 1 or repeats < 1:
        raise ConfigError(f"a stream longer than a gap is needed, got {num_frames} frames and a gap of {gap}")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(
            "torch finds no CUDA GPU here; run this where nvidia-smi shows one and torch is built for CUDA, or try it "
            "out with --device cpu --sizes 32x64 --variants eager"
        )
    named_device(device)
    target = out or result_path("gpu", device_slug(settings.torch_device))
    path = target.with_suffix(".rows.jsonl")
    if retry_failed and not worker:
        _forget_failed(path)
    if worker:
        is_done = measure_all(cases, settings, Journal(path), time.monotonic() + 60 * minutes)
        raise SystemExit(0 if is_done else _TIME_IS_UP)
    _supervise(path, 60 * minutes, 60 * row_minutes)
    journal = Journal(path)
    rows = with_ratios([journal.rows[name] for name in (PEAKS, *(c.name for c in cases)) if name in journal.rows])
    if not rows:
        raise DataError(f"nothing was measured; see what was said above, and {path}")
    found = verdicts(rows)
    rows += found
    result = BenchmarkResult(
        suite="gpu",
        rows=tuple(rows),
        device=device_slug(settings.torch_device),
        threads=torch.get_num_threads(),
        precision="as named",
        repeats=repeats,
        settings={**asdict(settings), "gpu": device_name(settings.torch_device), "cuda": torch.version.cuda},
    )
    write_result(target, result)
    print(format_table([row for row in rows if "model" in row], COLUMNS))
    for verdict in found:
        said = "reached" if verdict["passed"] else "NOT reached"
        print(f"{verdict['name']}: {verdict['value']:.1f}, {said} ({verdict['target']:g} wanted), by {verdict['by']}")
    missing = len(cases) - sum(case.name in journal.rows for case in cases)
    print(f"{target}" + (f"; {missing} rows are left, run the same command again" if missing else ""))
    print(json_format.dumps(result.to_dict()))


def _forget_failed(path: Path) -> None:
    """Leave out of the journal what failed."""
    rows = [row for row in Journal(path).rows.values() if "failed" not in row]
    write_bytes(path, "".join(json_format.dumps(row) + "\n" for row in rows).encode())


def _supervise(path: Path, seconds: float, row_seconds: float) -> None:
    """Measure in a process of its own, and in another where that one ends early, as long as rows come of it."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        before = len(Journal(path).rows)
        command = [sys.executable, "-m", "benchmarks.gpu", *sys.argv[1:], "--worker"]
        left = max(0.1, (until - time.monotonic()) / 60)
        process = subprocess.Popen([*command, "--minutes", str(left)])
        reason = _watched(process, path, row_seconds)
        Journal(path).close_case(reason)
        if process.returncode in (0, _TIME_IS_UP) or len(Journal(path).rows) == before:
            return


def _watched(process: subprocess.Popen[bytes], path: Path, row_seconds: float) -> str:
    """Wait for a worker, but for a row no longer than allowed; gives what to say of a row that was not finished."""
    began, size = time.monotonic(), -1
    while process.poll() is None:
        time.sleep(0.2)
        if (now := path.stat().st_size if path.is_file() else 0) != size:
            began, size = time.monotonic(), now
        elif time.monotonic() - began > row_seconds:
            process.kill()
            process.wait()
            return f"given up after {row_seconds / 60:g} minutes"
    return f"the process ended with status {process.returncode} while this was measured"


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except FastV2VError as error:
        print(f"benchmarks.gpu: {error}", file=sys.stderr)
        raise SystemExit(2) from error
