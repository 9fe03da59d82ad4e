"""The engine for a bundle, chosen by measurement on the machine it will run on. Runs without torch."""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from export.bundle import EngineChoice, EngineMeasurement, load_manifest, record_engine
from export.engines import (
    REFERENCE,
    Array,
    Candidate,
    OpenedEngine,
    StepEngine,
    available_candidates,
    open_tested_engine,
    this_machine,
)
from export.history import ArrayHistory, Points
from export.inputs import StepCondition, from_encoded
from export.parity import psnr
from fastv2v.errors import BundleError, ConfigError, MissingExtraError, ShapeError

log = logging.getLogger(__name__)


def roll_out(
    engine: StepEngine,
    conditions: Array,
    history_length: int,
    seed_frame: Array | None = None,
    points: Points | None = None,
) -> Iterator[Array]:
    """Synthesise a frame for each condition, feeding the engine its own frames.

    Args:
        engine: the step.
        conditions: encoded conditions, (T, C, H, W).
        history_length: N-1.
        seed_frame: the real frame of the first condition, (3, H, W) in [-1, 1]; that condition is then not synthesised.
        points: point ids of each level, (T, H / 2^k, W / 2^k), where the student is guided by its painted world.

    Returns:
        Frames (3, H, W) in [-1, 1], each made when it is asked for. All conditions are converted by then, so that a
        step takes what it takes where they come in the engine's form.
    """
    given = [from_encoded(engine.form, x) for x in conditions]
    ids = [None if points is None else [level[t] for level in points] for t in range(len(given))]
    history = ArrayHistory(given[0].past, history_length, seed_frame, scale=engine.form.scale, points=ids[0])
    first = 0 if seed_frame is None else 1
    return _steps(engine, given[first:], ids[first:], history)


def _steps(
    engine: StepEngine, conditions: Sequence[StepCondition], points: Sequence[Points | None], history: ArrayHistory
) -> Iterator[Array]:
    for condition, ids in zip(conditions, points, strict=True):
        shown = history.guided(condition, ids)
        frame = engine.run(shown, history.conditions, history.frames, history.valid)["frame"][0]
        history.advance(condition.past, frame, ids)
        yield frame


class Probe(NamedTuple):
    """The clip on which engines are measured."""

    conditions: Array
    """Encoded conditions of successive keyframes, (T, C, H, W)."""
    frames: Array | None = None
    """The real frames of the same moments, (T, 3, H, W) in [-1, 1]; without them only parity can be judged."""
    points: Points | None = None
    """Point ids of the same moments, (T, H / 2^k, W / 2^k) of each level, where the student is guided."""


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


class _Trial(NamedTuple):
    """Frames and step times of one candidate."""

    frames: Array
    milliseconds: list[float]


_WARM_UP_STEPS = 2


def _try(engine: StepEngine, probe: Probe, history_length: int) -> _Trial:
    """Roll the probe out once and time each step after the warm-up."""
    times: list[float] = []
    for _ in roll_out(engine, probe.conditions[:1].repeat(_WARM_UP_STEPS, axis=0), history_length):
        pass
    frames = []
    steps = roll_out(engine, probe.conditions, history_length, points=probe.points)
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
    opener: Callable[[Candidate, Path, int | None], OpenedEngine] = open_tested_engine,
    forced: bool = False,
) -> EngineChoice:
    """Measure engines on this machine, choose the fastest that keeps the quality, and write both into the manifest.

    Each candidate rolls the probe out on its own frames, so that errors may grow as they would in use. The time of a
    step includes shifting the history and, for a guided student, rendering and painting its world. ONNX Runtime in
    float32 is always measured first and always acceptable. What was measured before of other candidates, on the same
    processor and GPU, stays in the manifest and can still be chosen.

    Args:
        folder: the bundle.
        probe: a clip, best of a few dozen keyframes.
        candidates: what to measure; None takes all that can run here.
        guard: how much quality may be lost.
        threads: CPU threads for each candidate, None for all.
        opener: opens a candidate on the bundle.
        forced: choose among ``candidates`` alone; ONNX Runtime in float32 is then measured to compare with.

    Returns:
        The choice with every measurement, those that were kept last.

    Raises:
        BundleError: if the bundle is damaged, or none of the forced candidates can be chosen.
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
    if probe.points is not None and any(len(level) != len(probe.conditions) for level in probe.points):
        raise ShapeError(f"the probe has point ids of other frames than its {len(probe.conditions)} conditions")
    used = threads or this_machine()["cores"]
    reference = _try(opener(REFERENCE, folder, threads), probe, manifest.history_length)
    results = [_judge(REFERENCE, used, reference, reference, probe, guard)]
    for candidate in candidates if candidates is not None else available_candidates(folder):
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
    for result in results:
        log.info("%s %s: %s ms, %s", result.engine, result.precision, result.median_ms, result.reason)
    results += _kept_measurements(manifest.engine, results)
    eligible = [r for r in results if not forced or (r.engine, r.precision) in (candidates or ())]
    accepted = [r for r in eligible if r.accepted]
    if not accepted:
        reasons = "; ".join(f"{r.engine} {r.precision}: {r.reason}" for r in eligible)
        raise BundleError(f"no engine that was asked for can be chosen ({reasons}); leave the choice to --engine auto")
    best = min(accepted, key=lambda r: r.median_ms or math.inf)
    choice = EngineChoice(
        engine=best.engine,
        precision=best.precision,
        median_ms=best.median_ms or 0.0,
        cpu=this_machine()["cpu"],
        cpu_features=tuple(this_machine()["cpu_features"]),
        gpu=this_machine()["gpu"],
        measurements=tuple(results),
    )
    record_engine(folder, choice)
    return choice


def _kept_measurements(earlier: EngineChoice | None, measured: Sequence[EngineMeasurement]) -> list[EngineMeasurement]:
    """Measurements made before on this processor and GPU, of what was not measured now."""
    here = this_machine()
    if earlier is None or (earlier.cpu, earlier.gpu) != (here["cpu"], here["gpu"]):
        return []
    anew = {(m.engine, m.precision) for m in measured}
    return [m for m in earlier.measurements if (m.engine, m.precision) not in anew]


def _judge(
    candidate: Candidate, threads: int, trial: _Trial, reference: _Trial, probe: Probe, guard: EngineGuard
) -> EngineMeasurement:
    """Turn a trial into a measurement and a verdict."""
    parity = psnr(trial.frames, reference.frames)
    loss = None
    if probe.frames is not None:
        loss = psnr(reference.frames, probe.frames) - psnr(trial.frames, probe.frames)
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
