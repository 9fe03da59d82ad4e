"""A bundle in several engines, on this machine: keyframes and delivered frames a second, latency, GPU memory, power.

Label maps are blocks that move, maps are smooth noise: what a step costs does not depend on what it shows. Engines are
timed one after the other.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.fps import measure_step, measure_stream
from benchmarks.results import Row
from export.bundle import EngineChoice, Manifest, load_manifest
from export.choose import Probe, choose_engine
from export.device_stream import why_not_on_a_device
from export.engines import AUTO, DEVICE_ENGINES, Candidate, available_candidates, parse_engine, this_machine
from export.runtime import ConditionMap, Stream, measured_precision, open_bundle
from export.tensorrt_builder import moving_blocks
from export.torch_engine import card_id
from fastv2v.data.conditions import ConditionSpec
from fastv2v.errors import ConfigError, FastV2VError
from fastv2v.measure.gpu import GpuWatch, memory_beyond, read_gpu_use

COLUMNS: Final = {
    "name": "engine",
    "where": "where",
    "keyframe_ms": "ms / keyframe",
    "keyframe_p95_ms": "p95 ms",
    "keyframe_p99_ms": "p99 ms",
    "keyframe_fps": "keyframes / s",
    "median": "delivered frames / s",
    "spread": "spread",
    "gmacs_per_keyframe": "GMACs / keyframe",
    "gflops_per_keyframe": "GFLOPs / keyframe",
    "gpu_memory_mb": "GPU MB",
    "power_w": "W",
    "failed": "why not",
}
"""Columns of the table. A MAC is two FLOPs. Memory is what the card holds more than before the engine was opened, power
that of the whole card; both while keyframes and streams are timed."""
_BLOCKS = (8, 16)


def moving_conditions(spec: ConditionSpec, size: tuple[int, int], num_frames: int) -> list[ConditionMap]:
    """Conditions of blocks that move two pixels a frame.

    Args:
        spec: how conditions are encoded.
        size: (height, width).
        num_frames: how many.
    """
    width = size[1]
    rows, columns = (np.arange(n * k) * b // n % b for n, k, b in zip(size, (1, 2), _BLOCKS, strict=True))
    ids = (rows[:, None] * _BLOCKS[1] + columns).astype(np.int32)
    shifts = [2 * t % width for t in range(num_frames)]
    rng = np.random.default_rng(0)
    if spec.kind == "maps":
        values = rng.uniform(-1, 1, (spec.map_channels, *_BLOCKS)).astype(np.float32)[:, rows][:, :, columns]
        return [ConditionMap(maps=values[..., s : s + width].copy()) for s in shifts]
    classes = rng.integers(0, spec.num_classes, _BLOCKS).astype(np.uint16 if spec.num_classes > 256 else np.uint8)
    labels: NDArray[Any] = classes[rows][:, columns]
    return [
        ConditionMap(
            labels=labels[:, s : s + width].copy(),
            instances=ids[:, s : s + width].copy() if spec.use_instances else None,
        )
        for s in shifts
    ]


def wanted_candidates(folder: Path, engines: Sequence[str]) -> list[Candidate]:
    """What is measured of a bundle.

    Args:
        folder: the bundle.
        engines: ``NAME`` or ``NAME:PRECISION`` each; ``auto`` stands for all that may run here.

    Returns:
        Each once; of a name alone the precision that was measured best for the bundle, else its widest.

    Raises:
        BundleError: if the bundle is damaged.
        ConfigError: if there is no such engine or precision.
    """
    manifest = load_manifest(folder)
    found: list[Candidate] = []
    for text in engines:
        name, precision = parse_engine(text)
        if name == AUTO:
            found += available_candidates(folder)
        else:
            found.append(Candidate(name, precision or measured_precision(manifest, name)))
    return list(dict.fromkeys(found))


def measure_engines(
    folder: Path,
    candidates: Sequence[Candidate],
    *,
    num_frames: int = 65,
    repeats: int = 5,
    threads: int | None = None,
    host_code: bool = False,
) -> list[Row]:
    """Time a bundle's keyframes and streams in each engine.

    Args:
        folder: the bundle.
        candidates: engines and precisions.
        num_frames: length of the streams.
        repeats: timed streams; keyframes are timed 20 times as often.
        threads: CPU threads, None for all.
        host_code: see ``open_bundle``.

    Returns:
        One row each, see ``COLUMNS``; an engine that cannot run has the reason under ``failed``.

    Raises:
        BundleError: if the bundle is damaged.
        ConfigError: if a number makes no sense.
    """
    if num_frames < 2 or repeats < 1:
        raise ConfigError(f"num_frames must be at least 2 and repeats at least 1, got {num_frames} and {repeats}")
    manifest = load_manifest(folder)
    conditions = moving_conditions(manifest.condition, manifest.size, num_frames)
    rows: list[Row] = []
    for candidate in candidates:
        try:
            rows.append(
                _measure(folder, candidate, manifest, conditions, repeats, threads=threads, host_code=host_code)
            )
        except FastV2VError as error:
            rows.append({"name": str(candidate), **_cost(manifest), "failed": str(error)})
        gc.collect()
    return rows


def _measure(
    folder: Path,
    candidate: Candidate,
    manifest: Manifest,
    conditions: Sequence[ConditionMap],
    repeats: int,
    **options: Any,
) -> Row:
    keeps_frames = candidate.engine in DEVICE_ENGINES and why_not_on_a_device(manifest) is None
    device = "cuda" if keeps_frames and this_machine()["gpu"] else None
    if torch.cuda.is_available():
        torch.zeros(1, device="cuda")  # what CUDA itself takes is of no engine
        torch.cuda.empty_cache()  # nor is what the engine before has left
    card = card_id()
    before = read_gpu_use(card)
    with open_bundle(
        folder, engine=candidate.engine, precision=candidate.precision, device=device, **options
    ) as stream:
        step = stream.time_step(conditions[0])
        with GpuWatch(card) as watch:
            speed = measure_step(step, warmup=3, repeats=20 * repeats)
            delivered = measure_stream(lambda: _delivered(stream, conditions), len(conditions), repeats)
        where = f"on {this_machine()['gpu']}, frames too" if device else getattr(stream.engine, "where", "")
    return {
        "name": str(candidate),
        "where": where,
        "keyframe_ms": speed.latency.median_ms,
        "keyframe_spread_ms": speed.latency.spread_ms,
        "keyframe_p95_ms": speed.latency.p95_ms,
        "keyframe_p99_ms": speed.latency.p99_ms,
        "keyframe_fps": speed.keyframe_fps,
        "median": delivered.delivered_fps,
        "unit": "frames / s",
        "spread": delivered.spread_fps,
        "pause_p95_ms": delivered.pause.p95_ms,
        "pause_p99_ms": delivered.pause.p99_ms,
        **_cost(manifest),
        "gpu_memory_mb": memory_beyond(before, watch.use),
        "power_w": watch.use.power_w,
    }


def _cost(manifest: Manifest) -> dict[str, float]:
    cost = manifest.cost
    return {
        "gmacs_per_keyframe": cost.macs_per_keyframe / 1e9,
        "gflops_per_keyframe": 2 * cost.macs_per_keyframe / 1e9,
        "gmacs_per_frame": cost.macs_per_frame / 1e9,
        "gflops_per_frame": 2 * cost.macs_per_frame / 1e9,
    }


def _delivered(stream: Stream, conditions: Sequence[ConditionMap]) -> Iterator[NDArray[np.uint8]]:
    stream.restart()
    for item in stream.frames(conditions):
        yield item.frame


def choose_here(folder: Path, candidates: Sequence[Candidate], threads: int | None = None) -> EngineChoice:
    """Choose the engine anew on this machine and write it into the bundle; moving blocks stand in for real material.

    Args:
        folder: the bundle.
        candidates: what may be chosen, beside ONNX Runtime in float32.
        threads: CPU threads, None for all.

    Raises:
        BundleError: if the bundle is damaged.
        MissingExtraError: if ONNX Runtime is not installed.
    """
    manifest = load_manifest(folder)
    clip = moving_blocks(manifest.condition, manifest.size, 16, np.random.default_rng(0))
    return choose_engine(folder, Probe(clip), candidates=candidates, threads=threads)
