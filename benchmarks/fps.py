"""Frames per second: keyframes of a step, delivered frames of a stream, and their ratios from one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from benchmarks.results import Scalar
from fastv2v.errors import ConfigError, DataError
from fastv2v.measure.latency import Latency, measure_latency

COLUMNS: Final = {
    "name": "what",
    "median": "median",
    "unit": "unit",
    "spread": "spread",
    "p95_ms": "p95 ms",
    "p99_ms": "p99 ms",
    "first_frame_ms": "first frame ms",
    "ratio": "ratio",
}
"""Columns of a speed table."""


@dataclass(frozen=True)
class StepSpeed:
    """How fast single frames are synthesised."""

    latency: Latency
    """Time of one step."""

    @property
    def keyframe_fps(self) -> float:
        """Synthesised frames per second: the inverse of the median latency."""
        return 1000 / self.latency.median_ms

    def row(self, name: str, **more: Scalar) -> dict[str, Scalar]:
        """One row for a table or result file."""
        times = self.latency
        return {
            "name": name,
            "median": times.median_ms,
            "unit": "ms / step",
            "spread": times.spread_ms,
            "p95_ms": times.p95_ms,
            "p99_ms": times.p99_ms,
            "keyframe_fps": self.keyframe_fps,
            **more,
        }


@dataclass(frozen=True)
class StreamSpeed:
    """How fast a whole pipeline delivers frames."""

    fps_of_repeats: tuple[float, ...]
    """Delivered frames per second of each repeat, from asking for the stream to the last frame."""
    first_frame_ms: float
    """Median over repeats of the time to the first frame."""
    pause: Latency
    """Times between delivered frames, the first one of each stream left out; its tail shows stutter."""

    @property
    def delivered_fps(self) -> float:
        """Median over repeats."""
        return float(np.median(self.fps_of_repeats))

    @property
    def spread_fps(self) -> float:
        """Distance between the first and the third quartile of the repeats."""
        return float(np.subtract(*np.percentile(self.fps_of_repeats, (75, 25))))

    def row(self, name: str, **more: Scalar) -> dict[str, Scalar]:
        """One row for a table or result file."""
        return {
            "name": name,
            "median": self.delivered_fps,
            "unit": "frames / s",
            "spread": self.spread_fps,
            "p95_ms": self.pause.p95_ms,
            "p99_ms": self.pause.p99_ms,
            "first_frame_ms": self.first_frame_ms,
            **more,
        }


def measure_step(
    step: Callable[[], Any], *, warmup: int = 10, repeats: int = 100, synchronize: Callable[[], Any] | None = None
) -> StepSpeed:
    """Time one step of a generator, without conditions being read, interpolation or encoding.

    Args:
        step: synthesises one frame.
        warmup: steps beforehand that are not counted.
        repeats: steps that are.
        synchronize: waits for a device to finish; runs inside the timed region.

    Returns:
        Latency and keyframe FPS.

    Raises:
        ConfigError: if ``repeats`` is below 1 or ``warmup`` negative.
    """
    return StepSpeed(measure_latency(step, warmup=warmup, repeats=repeats, synchronize=synchronize))


def measure_stream(
    make_stream: Callable[[], Iterator[Any]], num_frames: int, repeats: int = 5, *, warmup: int = 1
) -> StreamSpeed:
    """Time a pipeline end to end; what ``make_stream`` does is inside the timing, so leave out what should not be.

    Args:
        make_stream: starts a fresh stream that yields finished frames in memory.
        num_frames: frames taken from each stream, at least 2; a longer stream is closed there.
        repeats: timed streams.
        warmup: streams beforehand that are not counted.

    Returns:
        Delivered FPS, time to the first frame, and the pauses between frames.

    Raises:
        ConfigError: if a number makes no sense.
        DataError: if a stream ends early.
    """
    return compare_streams({"stream": make_stream}, num_frames, repeats, warmup=warmup)["stream"]


def compare_streams(
    make_streams: Mapping[str, Callable[[], Iterator[Any]]], num_frames: int, repeats: int = 5, *, warmup: int = 1
) -> dict[str, StreamSpeed]:
    """Time several pipelines in turn, one repeat of each after the other, so that a busy moment hits all alike.

    Args:
        make_streams: each starts a fresh stream.
        num_frames: frames taken from each stream, at least 2.
        repeats: timed rounds.
        warmup: rounds beforehand that are not counted.

    Returns:
        The speed of each by name; see ``speed_ratio``.

    Raises:
        ConfigError: if a number makes no sense.
        DataError: if a stream ends early.
    """
    if num_frames < 2 or repeats < 1 or warmup < 0:
        raise ConfigError(f"need num_frames >= 2, repeats >= 1, warmup >= 0; got {num_frames}, {repeats}, {warmup}")
    arrivals_ms: dict[str, list[np.ndarray]] = {name: [] for name in make_streams}
    for turn in range(warmup + repeats):
        for name, make_stream in make_streams.items():
            arrived = _arrivals_ms(name, make_stream, num_frames)
            if turn >= warmup:
                arrivals_ms[name].append(arrived)
    return {name: _summarise(np.stack(times)) for name, times in arrivals_ms.items()}


def speed_ratio(fast: StreamSpeed, slow: StreamSpeed) -> float:
    """How many times faster one pipeline is: the median over rounds of the ratio within each round.

    Raises:
        ConfigError: if they were not measured in the same rounds.
    """
    if len(fast.fps_of_repeats) != len(slow.fps_of_repeats):
        raise ConfigError("a ratio is taken between pipelines measured in one run, with the same repeats")
    return float(np.median(np.divide(fast.fps_of_repeats, slow.fps_of_repeats)))


def _arrivals_ms(name: str, make_stream: Callable[[], Iterator[Any]], num_frames: int) -> np.ndarray:
    """When each frame arrived, in milliseconds after the stream was asked for, (num_frames,)."""
    times = []
    start = time.perf_counter_ns()
    stream = iter(make_stream())
    for _ in stream:
        times.append((time.perf_counter_ns() - start) / 1e6)
        if len(times) == num_frames:
            break
    close = getattr(stream, "close", None)
    if close is not None:
        close()
    if len(times) < num_frames:
        raise DataError(f"{name}: the stream delivered {len(times)} of {num_frames} frames; give it more conditions")
    return np.array(times)


def _summarise(arrivals_RT: np.ndarray) -> StreamSpeed:
    """Speeds from arrival times of R repeats and T frames."""
    fps = 1000 * arrivals_RT.shape[1] / arrivals_RT[:, -1]
    pauses = np.diff(arrivals_RT, axis=1).ravel()
    return StreamSpeed(tuple(fps.tolist()), float(np.median(arrivals_RT[:, 0])), Latency.from_times(pauses.tolist()))
