"""Engines that run a step graph on arrays, and the choice among them by measurement. Runs without torch.

Every engine samples a half-pixel warp before it is used: engines have been known to sample the nearest pixel without a
word, which no shape check notices.
"""

from __future__ import annotations

import logging
import math
import os
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from export.bundle import (
    SELF_TEST,
    STEP_GRAPH,
    EngineChoice,
    EngineMeasurement,
    load_manifest,
    record_engine,
)
from export.history import ArrayHistory
from fastv2v.errors import BundleError, ConfigError, MissingExtraError, ShapeError

log = logging.getLogger(__name__)

STEP_INPUTS = ("condition", "history_conditions", "history_frames", "valid")
STEP_OUTPUTS = ("frame", "hallucinated", "flow", "occlusion")

Array = NDArray[np.float32]


class StepEngine(Protocol):
    """One step of a generator on arrays, batch 1, float32."""

    name: str
    """Name of the engine, as in ``ENGINES``."""
    precision: str
    """Number format it computes in, as the engine names it."""

    def run(
        self, condition: Array, history_conditions: Array, history_frames: Array, valid: Array
    ) -> dict[str, NDArray[Any]]:
        """Synthesise one frame.

        Args:
            condition: (1, C, H, W).
            history_conditions: (1, N-1, C, H, W), oldest first.
            history_frames: (1, N-1, 3, H, W) in [-1, 1].
            valid: (1,), 0 where there is no past frame yet.

        Returns:
            ``frame`` and those of ``hallucinated``, ``flow`` and ``occlusion`` the graph has, the caller's to keep.

        Raises:
            ShapeError: if an input does not have the shape of the graph.
        """
        ...


class GraphEngine(ABC):
    """A graph file opened in one engine.

    Args:
        path: an ONNX file.
        threads: CPU threads; None takes all this process may use.
        precision: number format to compute in.

    Raises:
        BundleError: if the file cannot be opened, or this processor lacks the precision.
        ConfigError: if the engine does not know the precision or threads is below 1.
        MissingExtraError: if the engine is not installed.
    """

    name: str
    precisions: tuple[str, ...]

    def __init__(self, path: Path, threads: int | None = None, precision: str = "f32") -> None:
        if precision not in self.precisions:
            raise ConfigError(f"{self.name} runs in {' or '.join(self.precisions)}, not in {precision!r}")
        if threads is not None and threads < 1:
            raise ConfigError(f"threads must be at least 1, got {threads}")
        if not Path(path).is_file():
            raise BundleError(f"{path} is missing; export it first")
        self.path = Path(path)
        self.threads = threads or usable_threads()
        self.precision = precision
        self.shapes: dict[str, tuple[int, ...]] = {}
        """Shape of every input of the graph."""

    @abstractmethod
    def infer(self, feeds: Mapping[str, Array]) -> dict[str, NDArray[Any]]:
        """Run the graph on all its inputs, by name; give all its outputs, by name."""

    def run(
        self, condition: Array, history_conditions: Array, history_frames: Array, valid: Array
    ) -> dict[str, NDArray[Any]]:
        """See ``StepEngine.run``."""
        given = dict(zip(STEP_INPUTS, (condition, history_conditions, history_frames, valid), strict=True))
        if unknown := self.shapes.keys() - given.keys():
            raise BundleError(f"{self.path} is not a step graph: it asks for {', '.join(sorted(unknown))}")
        for name, shape in self.shapes.items():
            if given[name].shape != shape:
                raise ShapeError(f"{name} has shape {given[name].shape} and {self.path.name} was exported for {shape}")
        feeds = {name: np.ascontiguousarray(given[name], dtype=np.float32) for name in self.shapes}
        return self.infer(feeds)


class OnnxRuntimeEngine(GraphEngine):
    """ONNX Runtime on the CPU, float32: runs everywhere, and is what the others are measured against."""

    name = "onnxruntime"
    precisions = ("f32",)

    def __init__(self, path: Path, threads: int | None = None, precision: str = "f32") -> None:
        super().__init__(path, threads, precision)
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise MissingExtraError("ONNX Runtime is not installed: pip install onnxruntime") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                os.fspath(path), sess_options=options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its errors share no base of their own below Exception
            raise BundleError(f"ONNX Runtime cannot open {path}: {_first_line(error)}") from error
        self.shapes = {value.name: tuple(value.shape) for value in self._session.get_inputs()}
        self._outputs = [value.name for value in self._session.get_outputs()]

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, NDArray[Any]]:
        """See ``GraphEngine.infer``."""
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(feeds)), strict=True))


class OpenVINOEngine(GraphEngine):
    """OpenVINO on the CPU. ``bf16`` only where the processor computes in it; elsewhere it would be emulated."""

    name = "openvino"
    precisions = ("f32", "bf16", "f16")

    def __init__(self, path: Path, threads: int | None = None, precision: str = "f32") -> None:
        super().__init__(path, threads, precision)
        try:
            import openvino
        except ModuleNotFoundError as error:
            raise MissingExtraError("OpenVINO is not installed: pip install openvino") from error
        if precision == "bf16" and not has_fast_bf16():
            raise BundleError(
                f"this processor ({cpu_name()}) has neither amx_bf16 nor avx512_bf16; choose precision f32"
            )
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": self.threads,
            # Stated even for f32: left alone, the CPU plugin takes bf16 wherever it can.
            "INFERENCE_PRECISION_HINT": precision,
        }
        try:
            compiled = openvino.Core().compile_model(os.fspath(path), "CPU", settings)
        except RuntimeError as error:
            raise BundleError(f"OpenVINO cannot open {path}: {_last_line(error)}") from error
        taken = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if taken != precision:  # f16 becomes bf16 on some processors, without a word
            raise BundleError(f"OpenVINO computes in {taken} on this processor when asked for {precision}; choose that")
        self.shapes = {value.get_any_name(): tuple(value.shape) for value in compiled.inputs}
        self._outputs = [value.get_any_name() for value in compiled.outputs]
        self._request = compiled.create_infer_request()

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, NDArray[Any]]:
        """See ``GraphEngine.infer``."""
        # Inputs are read in place, which is safe because the call returns only when it is done; outputs are copied
        # because the next call overwrites them.
        self._request.infer(dict(feeds), share_inputs=True)
        return {name: self._request.get_tensor(name).data.copy() for name in self._outputs}


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _last_line(error: Exception) -> str:
    """OpenVINO puts source positions first and the reason last."""
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__


ENGINES: Mapping[str, type[GraphEngine]] = {
    OnnxRuntimeEngine.name: OnnxRuntimeEngine,
    OpenVINOEngine.name: OpenVINOEngine,
}


class Candidate(NamedTuple):
    """An engine and the number format to run it in."""

    engine: str
    precision: str

    def __str__(self) -> str:
        return f"{self.engine} {self.precision}"


REFERENCE = Candidate("onnxruntime", "f32")
"""What other candidates are compared with."""


def available_engines() -> tuple[str, ...]:
    """Names of the engines installed here, without importing them."""
    return tuple(name for name in ENGINES if find_spec(name) is not None)


def available_candidates() -> tuple[Candidate, ...]:
    """What is worth measuring here. OpenVINO's f16 is not: CPUs emulate it, slower than f32, or take bf16 instead."""
    candidates = [REFERENCE, Candidate("openvino", "f32")]
    if has_fast_bf16():
        candidates.append(Candidate("openvino", "bf16"))
    return tuple(c for c in candidates if c.engine in available_engines())


def usable_threads() -> int:
    """CPU cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_CPU_INFO = Path("/proc/cpuinfo")
_CPU_FEATURES = ("amx_bf16", "amx_fp16", "amx_int8", "avx512_bf16", "avx512_fp16", "avx512_vnni", "avx_vnni", "avx2")


def _cpu_info() -> dict[str, str]:
    """Facts of the first processor; empty on systems that do not publish them this way."""
    if not _CPU_INFO.is_file():
        return {}
    first = _CPU_INFO.read_text(encoding="utf-8").split("\n\n", 1)[0]
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def cpu_name() -> str:
    """Model name of the processor, or ``unknown``."""
    return _cpu_info().get("model name", "unknown")


def cpu_features() -> tuple[str, ...]:
    """Low-precision and matrix features of the processor, most valuable first."""
    flags = _cpu_info().get("flags", "").split()
    return tuple(feature for feature in _CPU_FEATURES if feature in flags)


def has_fast_bf16() -> bool:
    """Whether the processor multiplies bfloat16 itself."""
    return bool({"amx_bf16", "avx512_bf16"} & set(cpu_features()))


def open_engine(candidate: Candidate, path: Path, threads: int | None = None) -> GraphEngine:
    """Open a graph in the named engine.

    Raises:
        ConfigError: if there is no engine of this name.
        BundleError: if it cannot open the graph.
        MissingExtraError: if it is not installed.
    """
    if candidate.engine not in ENGINES:
        raise ConfigError(f"there is no engine {candidate.engine!r}; choose from {', '.join(ENGINES)}")
    return ENGINES[candidate.engine](path, threads, candidate.precision)


def open_tested_engine(candidate: Candidate, folder: Path, threads: int | None = None) -> GraphEngine:
    """Open a bundle's step graph in an engine that has passed the half-pixel warp.

    Args:
        candidate: which engine, in which precision.
        folder: the bundle.
        threads: CPU threads, None for all.

    Raises:
        BundleError: if the engine cannot open the graphs, or warps wrongly.
        ConfigError: if there is no such engine or precision.
        MissingExtraError: if it is not installed.
    """
    check_warp(open_engine(candidate, Path(folder) / SELF_TEST, 1))
    return open_engine(candidate, Path(folder) / STEP_GRAPH, threads)


@dataclass(frozen=True)
class WarpCase:
    """A picture, where to sample it, and what bilinear sampling gives."""

    image: Array
    """(1, 1, H, W)."""
    grid: Array
    """(1, H, W, 2): x then y, -1 and 1 are the centres of the outermost pixels."""
    warped: Array
    """(1, 1, H, W)."""


def _half_pixel_case() -> WarpCase:
    """A ramp of 1 per column and 4 per row, sampled half a pixel right and down.

    Inside, that adds 0.5 + 2. Past the last column only 2 is left to add, past the last row only 0.5, past both 0.
    Nearest sampling gives whole numbers, corners not aligned give other fractions, zero padding darkens the border.
    All values are exact in bfloat16.
    """
    height, width = 2, 4
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    grid = np.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], axis=-1)
    image = np.arange(height * width).reshape(1, 1, height, width)
    warped = [[2.5, 3.5, 4.5, 5.0], [4.5, 5.5, 6.5, 7.0]]
    return WarpCase(
        image.astype(np.float32), grid[None].astype(np.float32), np.array(warped, dtype=np.float32)[None, None]
    )


WARP_SELF_TEST = _half_pixel_case()
_WARP_TOLERANCE = 0.05
"""Far above bfloat16's rounding of the grid (0.01 here), far below the 0.5 of nearest sampling."""


def check_warp(engine: GraphEngine) -> None:
    """Refuse an engine that samples between pixels wrongly.

    Args:
        engine: opened on ``selftest.onnx``.

    Raises:
        BundleError: if the half-pixel warp differs from the value worked out by hand.
    """
    case = WARP_SELF_TEST
    (warped,) = engine.infer({"image": case.image, "grid": case.grid}).values()
    error = float(np.abs(warped.astype(np.float32) - case.warped).max())
    if not error <= _WARP_TOLERANCE:
        raise BundleError(
            f"{engine.name} {engine.precision} warps wrongly here (off by {error:.2f} on a half-pixel shift, "
            "as nearest sampling would be); choose another engine or update it"
        )


def roll_out(
    engine: StepEngine, conditions: Array, history_length: int, seed_frame: Array | None = None
) -> Iterator[Array]:
    """Synthesise a frame for each condition, feeding the engine its own frames.

    Args:
        engine: the step.
        conditions: encoded conditions, (T, C, H, W).
        history_length: N-1.
        seed_frame: the real frame of the first condition, (3, H, W) in [-1, 1]; that condition is then not synthesised.

    Yields:
        Frames (3, H, W) in [-1, 1].
    """
    history = ArrayHistory(conditions[0], history_length, seed_frame)
    for condition in conditions[0 if seed_frame is None else 1 :]:
        made = engine.run(condition[None], history.conditions, history.frames, history.valid)
        frame = made["frame"][0]
        history.advance(condition, frame)
        yield frame


class Probe(NamedTuple):
    """The clip on which engines are measured."""

    conditions: Array
    """Encoded conditions of successive keyframes, (T, C, H, W)."""
    frames: Array | None = None
    """The real frames of the same moments, (T, 3, H, W) in [-1, 1]; without them only parity can be judged."""


@dataclass(frozen=True, kw_only=True)
class EngineGuard:
    """How much quality an engine may cost."""

    max_psnr_loss_db: float = 0.5
    """Greatest loss of PSNR to the real frames, against ONNX Runtime in float32 (used when real frames are given)."""
    min_parity_psnr_db: float = 35.0
    """Least PSNR between its frames and those of ONNX Runtime in float32 (used when no real frames are given). An error
    independent of the student's own costs 10 log10(1 + 10^((student - parity) / 10)) dB: 0.5 dB at 35 dB parity for a
    student at 26 dB."""

    def __post_init__(self) -> None:
        if self.max_psnr_loss_db < 0:
            raise ConfigError(f"max_psnr_loss_db must not be negative, got {self.max_psnr_loss_db}")


def _psnr(a: Array, b: Array) -> float:
    """PSNR of values in [-1, 1], whose peak-to-peak is 2; infinite where they are equal."""
    mse = float(np.mean(np.square(a.astype(np.float64) - b)))
    return math.inf if mse == 0 else 10 * math.log10(4 / mse)


class _Trial(NamedTuple):
    """Frames and step times of one candidate."""

    frames: Array
    milliseconds: list[float]


_WARM_UP_STEPS = 2


def _try(engine: StepEngine, probe: Probe, history_length: int) -> _Trial:
    """Roll the probe out once and time each step after the warm-up."""
    times: list[float] = []
    first = ArrayHistory(probe.conditions[0], history_length)
    for _ in range(_WARM_UP_STEPS):
        engine.run(probe.conditions[:1], first.conditions, first.frames, first.valid)
    frames = []
    steps = roll_out(engine, probe.conditions, history_length)
    for _ in probe.conditions:
        start = time.perf_counter()
        frames.append(next(steps))
        times.append(1000 * (time.perf_counter() - start))
    return _Trial(np.stack(frames), times)


def choose_engine(
    folder: Path,
    probe: Probe,
    *,
    candidates: Sequence[Candidate] | None = None,
    guard: EngineGuard | None = None,
    threads: int | None = None,
    opener: Callable[[Candidate, Path, int | None], GraphEngine] = open_tested_engine,
) -> EngineChoice:
    """Measure engines on this machine, choose the fastest that keeps the quality, and write both into the manifest.

    Each candidate rolls the probe out on its own frames, so that errors may grow as they would in use. The time of a
    step includes shifting the history. ONNX Runtime in float32 is always measured first and always acceptable.

    Args:
        folder: the bundle.
        probe: a clip, best of a few dozen keyframes.
        candidates: what to measure; None takes all that can run here.
        guard: how much quality may be lost.
        threads: CPU threads for each candidate, None for all.
        opener: opens a candidate on the bundle.

    Returns:
        The choice with every measurement.

    Raises:
        BundleError: if the bundle is damaged.
        MissingExtraError: if ONNX Runtime is not installed.
        ShapeError: if the probe does not suit the bundle.
    """
    folder, guard = Path(folder), guard or EngineGuard()
    manifest = load_manifest(folder)
    wanted = (manifest.condition.channels, *manifest.size)
    if probe.conditions.ndim != 4 or probe.conditions.shape[1:] != wanted or not len(probe.conditions):
        raise ShapeError(
            f"the probe's conditions have shape {probe.conditions.shape}, expected (T, {', '.join(map(str, wanted))})"
        )
    if probe.frames is not None and probe.frames.shape != (len(probe.conditions), 3, *manifest.size):
        raise ShapeError(f"the probe has frames {probe.frames.shape} for conditions {probe.conditions.shape}")
    used = threads or usable_threads()
    reference = _try(opener(REFERENCE, folder, threads), probe, manifest.history_length)
    results = [_judge(REFERENCE, used, reference, reference, probe, guard)]
    for candidate in candidates if candidates is not None else available_candidates():
        if candidate == REFERENCE:
            continue
        try:
            trial = _try(opener(candidate, folder, threads), probe, manifest.history_length)
        except (BundleError, MissingExtraError) as error:
            results.append(
                EngineMeasurement(
                    engine=candidate.engine,
                    precision=candidate.precision,
                    threads=used,
                    accepted=False,
                    reason=f"cannot run here: {error}",
                )
            )
            continue
        results.append(_judge(candidate, used, trial, reference, probe, guard))
    best = min((r for r in results if r.accepted), key=lambda r: r.median_ms or math.inf)
    for result in results:
        log.info("%s %s: %s ms, %s", result.engine, result.precision, result.median_ms, result.reason)
    choice = EngineChoice(
        engine=best.engine,
        precision=best.precision,
        median_ms=best.median_ms or 0.0,
        cpu=cpu_name(),
        cpu_features=cpu_features(),
        measurements=tuple(results),
    )
    record_engine(folder, choice)
    return choice


def _judge(
    candidate: Candidate, threads: int, trial: _Trial, reference: _Trial, probe: Probe, guard: EngineGuard
) -> EngineMeasurement:
    """Turn a trial into a measurement and a verdict."""
    parity = _psnr(trial.frames, reference.frames)
    loss = None
    if probe.frames is not None:
        loss = _psnr(reference.frames, probe.frames) - _psnr(trial.frames, probe.frames)
    if candidate == REFERENCE:
        accepted, reason = True, "the reference"
    elif loss is not None:
        accepted = loss <= guard.max_psnr_loss_db
        reason = f"loses {loss:.2f} dB of {guard.max_psnr_loss_db:g} allowed"
    else:
        accepted = parity >= guard.min_parity_psnr_db
        reason = f"parity {parity:.1f} dB of at least {guard.min_parity_psnr_db:g}"
    quartiles = statistics.quantiles(trial.milliseconds, n=4) if len(trial.milliseconds) > 1 else [0.0, 0.0, 0.0]
    return EngineMeasurement(
        engine=candidate.engine,
        precision=candidate.precision,
        threads=threads,
        median_ms=round(statistics.median(trial.milliseconds), 3),
        spread_ms=round(quartiles[2] - quartiles[0], 3),
        parity_psnr_db=round(parity, 2) if math.isfinite(parity) else None,
        psnr_loss_db=round(loss, 3) if loss is not None and math.isfinite(loss) else None,
        accepted=accepted,
        reason=reason,
    )
