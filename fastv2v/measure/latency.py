"""How long a call takes, and how much memory the process has needed. Torch-free."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastv2v.errors import ConfigError, MissingExtraError


@dataclass(frozen=True)
class Latency:
    """Times of repeated calls."""

    median_ms: float
    """Half of the calls were faster."""
    p95_ms: float
    """95 of 100 calls were faster."""
    p99_ms: float
    """99 of 100 calls were faster."""
    spread_ms: float
    """Distance between the first and the third quartile."""
    repeats: int
    """Number of timed calls."""

    @classmethod
    def from_times(cls, times_ms: Sequence[float]) -> Latency:
        """Summarise measured times.

        Raises:
            ConfigError: if there are none.
        """
        if not len(times_ms):
            raise ConfigError("a latency needs at least one timed call")
        q25, median, q75, p95, p99 = np.percentile(times_ms, (25, 50, 75, 95, 99)).tolist()
        return cls(median, p95, p99, q75 - q25, len(times_ms))


def measure_latency(
    call: Callable[[], Any], *, warmup: int = 10, repeats: int = 100, synchronize: Callable[[], Any] | None = None
) -> Latency:
    """Time a call, one at a time.

    Args:
        call: what is timed; its result is dropped.
        warmup: calls beforehand that are not counted.
        repeats: calls that are.
        synchronize: waits for a device to finish, such as ``torch.cuda.synchronize``; runs inside the timed region.

    Returns:
        Median, tail and spread.

    Raises:
        ConfigError: if ``repeats`` is below 1 or ``warmup`` negative.
    """
    if repeats < 1 or warmup < 0:
        raise ConfigError(f"repeats must be at least 1 and warmup at least 0, got {repeats} and {warmup}")
    for _ in range(warmup):
        call()
    if synchronize is not None:
        synchronize()
    times_ms = []
    for _ in range(repeats):
        start = time.perf_counter_ns()
        call()
        if synchronize is not None:
            synchronize()
        times_ms.append((time.perf_counter_ns() - start) / 1e6)
    return Latency.from_times(times_ms)


def peak_memory_mb() -> float:
    """The most memory this process has held at once since it began, in MB (10⁶ bytes); memory of a GPU not included.

    Raises:
        MissingExtraError: on Windows, where the standard library does not tell.
    """
    try:
        import resource
    except ModuleNotFoundError as error:
        raise MissingExtraError("peak memory is read from getrusage, which this system does not have") from error
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
