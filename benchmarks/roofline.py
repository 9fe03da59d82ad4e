"""What an engine makes of the processor: multiply-adds a second of a keyframe beside those of a large matrix product.

The peak is measured here, in the same run and with the same threads, by torch's matrix product of large square matrices
in the same number format. What lies between the two is told by OpenVINO's own clock for each kind of layer:
convolutions of few channels at full size, and everything that only moves numbers, wait for memory, not for arithmetic.
"""

from __future__ import annotations

import json as json_format
import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import tyro

from benchmarks.realtime import Drive, make_drive, student_bundle
from benchmarks.results import BenchmarkResult, Row, format_table, write_result
from export.bundle import STEP_GRAPH
from export.engines import (
    ENGINES,
    Candidate,
    GraphEngine,
    available_candidates,
    open_engine,
    open_tested_engine,
    openvino_core,
)
from fastv2v.errors import ConfigError, FastV2VError
from fastv2v.measure.latency import measure_latency
from students.presets import STUDENTS

COLUMNS: Final = {
    "name": "student",
    "engine": "engine",
    "gmacs_per_keyframe": "GMACs / keyframe",
    "median": "ms / keyframe",
    "spread": "spread",
    "gmacs_per_s": "GMACs / s",
    "peak_gmacs_per_s": "of a matrix product",
    "share": "share",
}
"""Columns of the table."""
LAYER_COLUMNS: Final = {"name": "kind of layer", "count": "layers", "median": "ms", "share": "share of the keyframe"}
"""Columns of the profile."""
_DTYPES: Final = {"f32": torch.float32, "bf16": torch.bfloat16}


def matrix_peak(precision: str, *, side: int = 2048, repeats: int = 9) -> float:
    """Multiply-adds a second of a square matrix product, in 10^9.

    Args:
        precision: ``f32`` or ``bf16``.
        side: of the matrices.
        repeats: timed products; their median counts.

    Raises:
        ConfigError: if the precision is unknown.
    """
    if precision not in _DTYPES:
        raise ConfigError(f"peaks are measured in {', '.join(_DTYPES)}, got {precision!r}")
    a, b = (torch.randn(side, side, dtype=_DTYPES[precision]) for _ in range(2))
    times = measure_latency(lambda: torch.mm(a, b), warmup=2, repeats=repeats)
    return side**3 / times.median_ms / 1e6


def roofline(
    students: tuple[str, ...], size: tuple[int, int], *, threads: int = 2, repeats: int = 30, side: int = 2048
) -> list[Row]:
    """Time one keyframe of untrained students in every engine here, and the matrix product of the same format.

    Args:
        students: names of students.
        size: (height, width).
        threads: of engines and torch.
        repeats: timed keyframes.
        side: of the matrices.

    Returns:
        One row for each student and engine, see ``COLUMNS``; torch has no product to hold int8 against.

    Raises:
        ConfigError: if a student is unknown.
    """
    if unknown := [name for name in students if name not in STUDENTS]:
        raise ConfigError(f"unknown student {unknown[0]!r}; there are {', '.join(STUDENTS)}")
    torch.set_num_threads(threads)
    drive = make_drive(size, 2)
    peaks = {precision: matrix_peak(precision, side=side) for precision in _DTYPES}
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in students:
            folder = Path(scratch, f"{name}.v2v")
            gmacs = student_bundle(name, drive, 4, folder)
            for candidate in (c for c in available_candidates(folder) if c.engine in ENGINES):
                engine = open_tested_engine(candidate, folder, threads)
                assert isinstance(engine, GraphEngine)  # those of the CPU are
                feeds = engine.feeds(*step_inputs(drive))
                times = measure_latency(lambda e=engine, x=feeds: e.infer(x), warmup=3, repeats=repeats)  # type: ignore[misc]
                rate, peak = gmacs / times.median_ms * 1e3, peaks.get(candidate.precision)
                rows.append(
                    {
                        "name": name,
                        "engine": str(candidate),
                        "gmacs_per_keyframe": gmacs,
                        "median": times.median_ms,
                        "unit": "ms",
                        "spread": times.spread_ms,
                        "gmacs_per_s": rate,
                        "peak_gmacs_per_s": peak,
                        "share": None if peak is None else rate / peak,
                    }
                )
    return rows


def layer_profile(student: str, size: tuple[int, int], *, threads: int = 2, repeats: int = 20) -> list[Row]:
    """Where OpenVINO spends a keyframe, by kind of layer, in the best format of this processor.

    Args:
        student: name of a student.
        size: (height, width).
        threads: of the engine.
        repeats: timed keyframes; the median of each kind is told.

    Returns:
        One row for each kind, see ``LAYER_COLUMNS``, the dearest first.

    Raises:
        MissingExtraError: if OpenVINO is not installed.
    """
    precision = "bf16" if Candidate("openvino", "bf16") in available_candidates() else "f32"
    drive = make_drive(size, 2)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, f"{student}.v2v")
        student_bundle(student, drive, 4, folder)
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": precision,
            "PERF_COUNT": True,
        }
        compiled = openvino_core().compile_model(str(folder / STEP_GRAPH), "CPU", settings)
        request = compiled.create_infer_request()
        graph = open_engine(Candidate("openvino", precision), folder / STEP_GRAPH, threads)
        inputs = graph.feeds(*step_inputs(drive))
        spent: dict[str, list[float]] = defaultdict(list)
        counts: dict[str, int] = {}
        for turn in range(repeats + 2):
            request.infer(inputs)
            if turn < 2:
                continue
            by_kind: dict[str, float] = defaultdict(float)
            seen: dict[str, int] = defaultdict(int)
            for layer in request.get_profiling_info():
                if str(layer.status).endswith("EXECUTED"):
                    by_kind[layer.node_type] += layer.real_time.total_seconds() * 1e3
                    seen[layer.node_type] += 1
            for kind, ms in by_kind.items():
                spent[kind].append(ms)
            counts |= seen
    medians = {kind: statistics.median(times) for kind, times in spent.items()}
    whole = sum(medians.values())
    return [
        {
            "name": kind,
            "count": counts[kind],
            "median": ms,
            "unit": "ms",
            "spread": float(np.subtract(*np.percentile(spent[kind], (75, 25)))),
            "share": ms / whole,
        }
        for kind, ms in sorted(medians.items(), key=lambda item: -item[1])
    ]


def step_inputs(drive: Drive) -> tuple[np.ndarray[Any, Any], ...]:
    """Inputs of one step with a full history: condition, past conditions, past frames, and that they are valid."""
    height, width = drive.size
    condition = drive.encoded(0)[None]
    past = np.repeat(condition[:, None], 2, axis=1)
    return condition, past, np.zeros((1, 2, 3, height, width), np.float32), np.ones(1, np.float32)


def main(
    students: tuple[str, ...] = ("tiny", "small", "base"),
    *,
    size: tuple[int, int] = (256, 512),
    threads: int = 2,
    repeats: int = 30,
    profile: bool = True,
    json: Path | None = None,
) -> None:
    """Compare engines with the peak of the processor and print tables, then one line of JSON.

    Args:
        students: which students; the last is profiled.
        size: (height, width) of the frames.
        threads: CPU threads.
        repeats: timed keyframes.
        profile: also tell where OpenVINO spends its time.
        json: also write the result to this file.

    Raises:
        ConfigError: if a student is unknown.
        MissingExtraError: if a profile is wanted and OpenVINO is not installed.
    """
    rows = roofline(students, size, threads=threads, repeats=repeats)
    print(format_table(rows, COLUMNS))
    if profile:
        layers = layer_profile(students[-1], size, threads=threads)
        print(f"\n{students[-1]} in OpenVINO\n{format_table(layers, LAYER_COLUMNS)}")
        rows += [{**row, "name": f"{students[-1]}: {row['name']}"} for row in layers]
    result = BenchmarkResult(
        suite="roofline",
        rows=tuple(rows),
        device="cpu",
        threads=threads,
        precision="as named",
        repeats=repeats,
        settings={"size": list(size)},
    )
    if json is not None:
        write_result(json, result)
    print(json_format.dumps(result.to_dict()))


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except FastV2VError as error:
        print(f"benchmarks.roofline: {error}", file=sys.stderr)
        raise SystemExit(2) from error
