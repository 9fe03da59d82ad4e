"""The interpolation network of a bundle: its graph behind a callable, its engine chosen by measurement. No torch."""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.bundle import EngineMeasurement, Manifest
from export.choose import EngineGuard
from export.engines import REFERENCE, Array, Candidate, GraphEngine, available_candidates, open_engine, this_machine
from fastv2v.errors import BundleError, ConfigError, MissingExtraError, ShapeError

log = logging.getLogger(__name__)

INTERPOLATION_GRAPH = "interpolate.onnx"
"""The interpolation network, where a bundle has one."""
NETWORK_METHOD = "network"
"""``method`` of a manifest's ``interpolation`` that needs the graph."""
FEATURES, CORRECTIONS = "features", "corrections"
"""Input and output of the graph."""
ENGINE_OPTIONS = ("engine", "precision", "median_ms")
"""What a manifest's ``interpolation`` says of the measured engine, beside the options of the motion."""

Frame = NDArray[np.uint8]
Fill = Callable[[Callable[[Array], Array]], Sequence[Frame]]
"""Fills the gaps of a clip by the network it is given."""


class GraphNetwork:
    """The graph in an engine, as the callable that an interpolator takes.

    Args:
        engine: opened on ``INTERPOLATION_GRAPH``.

    Raises:
        BundleError: if the graph is no interpolation network.
    """

    def __init__(self, engine: GraphEngine) -> None:
        if set(engine.shapes) != {FEATURES}:
            raise BundleError(
                f"{engine.path} is no interpolation network: it asks for {', '.join(sorted(engine.shapes))}; export it "
                "again"
            )
        self.engine = engine
        self.times_ms: list[float] = []
        """How long each call took while ``is_timed``."""
        self.is_timed = False

    def __call__(self, features: Array) -> Array:
        """Corrections (1, K, H/2, W/2) for features (1, C, H/2, W/2).

        Raises:
            ShapeError: if the features are of another size than the graph was exported for.
        """
        expected = self.engine.shapes[FEATURES]
        if features.shape != expected:
            raise ShapeError(f"features have shape {features.shape} and {self.engine.path.name} takes {expected}")
        start = time.perf_counter()
        corrections: Array = self.engine.infer({FEATURES: np.ascontiguousarray(features)})[CORRECTIONS]
        if self.is_timed:
            self.times_ms.append(1000 * (time.perf_counter() - start))
        return corrections


@dataclass(frozen=True, kw_only=True)
class NetworkChoice:
    """The engine of an interpolation network, and what was measured."""

    engine: str
    precision: str
    median_ms: float
    measurements: tuple[EngineMeasurement, ...]

    def options(self) -> dict[str, str | float]:
        """The entries named in ``ENGINE_OPTIONS``."""
        return {"engine": self.engine, "precision": self.precision, "median_ms": self.median_ms}


def choose_network(
    graph: Path,
    fill: Fill,
    real: Sequence[Frame],
    *,
    candidates: Sequence[Candidate] | None = None,
    guard: EngineGuard | None = None,
    threads: int | None = None,
    opener: Callable[[Candidate, Path, int | None], GraphEngine] = open_engine,
) -> NetworkChoice:
    """Measure engines on this machine and choose the fastest whose frames are good enough.

    Args:
        graph: the ONNX file.
        fill: makes the frames of a clip by a network; called twice for each candidate, the first time to warm up.
        real: the frames that ``fill`` imitates, in the same order.
        candidates: what to measure; None takes all that can run here.
        guard: how much PSNR to the real frames may be lost against ONNX Runtime in float32.
        threads: CPU threads for each candidate, None for all.
        opener: opens a candidate on the graph.

    Returns:
        The choice with every measurement.

    Raises:
        BundleError: if the graph cannot be opened by ONNX Runtime.
        MissingExtraError: if that is not installed.
        ConfigError: if there is nothing to compare, or the frames are filled without the network.
    """
    guard = guard or EngineGuard()
    if not real:
        raise ConfigError("there are no frames between keyframes to measure interpolation on")
    asked = candidates if candidates is not None else available_candidates()
    results: list[EngineMeasurement] = []
    reference = math.nan
    for candidate in (REFERENCE, *(c for c in asked if c != REFERENCE)):
        try:
            network = GraphNetwork(opener(candidate, graph, threads))
            fill(network)
            network.is_timed = True
            psnr = _mean_psnr(fill(network), real)
            if not network.times_ms:
                raise ConfigError("the clip never asks for the network: scene cuts lie across its gaps; take another")
        # Values that are not finite, which low precision may give, are a ConfigError of the interpolator.
        except (BundleError, ConfigError, MissingExtraError) as error:
            if candidate == REFERENCE:
                raise
            results.append(_refused(candidate, threads, error))
            continue
        if candidate == REFERENCE:
            reference = psnr
        loss = reference - psnr
        is_accepted = candidate == REFERENCE or loss <= guard.max_psnr_loss_db
        quartiles = statistics.quantiles(network.times_ms, n=4) if len(network.times_ms) > 1 else [0.0, 0.0, 0.0]
        results.append(
            EngineMeasurement(
                engine=candidate.engine,
                precision=candidate.precision,
                threads=network.engine.threads,
                median_ms=round(statistics.median(network.times_ms), 3),
                spread_ms=round(quartiles[2] - quartiles[0], 3),
                psnr_loss_db=round(loss, 3),
                accepted=is_accepted,
                reason="the reference" if candidate == REFERENCE else f"loses {loss:.2f} dB",
            )
        )
    for result in results:
        log.info("interpolation: %s %s: %s ms, %s", result.engine, result.precision, result.median_ms, result.reason)
    best = min((r for r in results if r.accepted), key=lambda r: r.median_ms or math.inf)
    return NetworkChoice(
        engine=best.engine, precision=best.precision, median_ms=best.median_ms or 0.0, measurements=tuple(results)
    )


def _refused(candidate: Candidate, threads: int | None, error: Exception) -> EngineMeasurement:
    return EngineMeasurement(
        engine=candidate.engine,
        precision=candidate.precision,
        threads=threads or this_machine()["cores"],
        accepted=False,
        reason=f"cannot run here: {error}",
    )


def _mean_psnr(made: Sequence[Frame], real: Sequence[Frame]) -> float:
    """Mean over frames of the PSNR of bytes, at most 100 dB."""
    errors = [float(np.mean(np.square(a.astype(np.float32) - b))) for a, b in zip(made, real, strict=True)]
    return statistics.fmean(10 * math.log10(255**2 / max(error, 255**2 * 1e-10)) for error in errors)


def open_network(
    folder: Path, manifest: Manifest, threads: int | None = None, asked: Candidate | None = None
) -> GraphNetwork:
    """Open the interpolation network of a bundle in its measured engine, else in ONNX Runtime, which is announced.

    Args:
        folder: the bundle, whose files were checked.
        manifest: of the bundle; its interpolation method is ``network``.
        threads: CPU threads, None for all.
        asked: an engine to take instead of the measured one, or to fail.

    Raises:
        BundleError: if the bundle lacks the graph, or no engine opens it.
        MissingExtraError: if the engine that was asked for, or else ONNX Runtime, is needed and not installed.
    """
    if INTERPOLATION_GRAPH not in manifest.files:
        raise BundleError(
            f"{folder} interpolates by a network and its manifest does not list {INTERPOLATION_GRAPH}; export it again"
        )
    graph = Path(folder) / INTERPOLATION_GRAPH
    if asked is not None:
        return GraphNetwork(open_engine(asked, graph, threads))
    options = manifest.interpolation
    measured = Candidate(
        str(options.get("engine", REFERENCE.engine)), str(options.get("precision", REFERENCE.precision))
    )
    try:
        return GraphNetwork(open_engine(measured, graph, threads))
    except (BundleError, MissingExtraError, ConfigError) as error:
        if measured == REFERENCE:
            raise
        log.warning("%s: interpolation runs on %s: %s cannot be used: %s", folder, REFERENCE, measured, error)
        return GraphNetwork(open_engine(REFERENCE, graph, threads))
