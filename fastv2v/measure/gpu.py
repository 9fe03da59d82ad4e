"""What an NVIDIA GPU draws and holds while something runs, told by the driver's own tool. Torch-free."""

from __future__ import annotations

import logging
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass
from types import TracebackType
from typing import IO

log = logging.getLogger(__name__)

_FIELDS = ("power.draw", "memory.used", "clocks.sm", "temperature.gpu")
_EVERY_MS = 50
_FIRST_WORD_S = 5.0
"""How long to wait for its first line; where nothing keeps the driver loaded, it loads that first."""


@dataclass(frozen=True, kw_only=True)
class GpuUse:
    """What was seen; None where the driver does not tell."""

    power_w: float | None = None
    """Median power of the whole card, in watts."""
    memory_mb: float | None = None
    """Most memory in use on the card at once, by whatever process, in MB (10^6 bytes)."""
    clock_mhz: float | None = None
    """Median clock of its processors."""
    temperature_c: float | None = None
    """Highest temperature."""


class GpuWatch:
    """Watches a GPU for as long as it is entered; afterwards ``use`` says what was seen.

    Entering waits until the driver tells something. Sees nothing where there is no ``nvidia-smi``.

    Args:
        card: the GPU as the driver names it: its number there, which need not be that of CUDA, or its UUID
            (``export.torch_engine.card_id``).
    """

    def __init__(self, card: str = "0") -> None:
        self._card = card
        self._process: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None
        self.use = GpuUse()

    def __enter__(self) -> GpuWatch:
        query = _query(self._card)
        if query is not None:
            self._said = tempfile.TemporaryFile()  # a pipe that nobody reads would fill up
            self._process = subprocess.Popen(
                [*query, f"--loop-ms={_EVERY_MS}"], stdout=self._said, stderr=subprocess.DEVNULL
            )
            end = time.monotonic() + _FIRST_WORD_S
            while not os.fstat(self._said.fileno()).st_size and self._process.poll() is None:
                if time.monotonic() > end:
                    log.warning("nvidia-smi said nothing for %g s: power and memory may be missing", _FIRST_WORD_S)
                    break
                time.sleep(_EVERY_MS / 1000)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._said is not None:
            self._process.terminate()
            self._process.wait()
            self._said.seek(0)
            self.use = parse_gpu_use(self._said.read().decode(errors="replace"))
            self._said.close()


def read_gpu_use(card: str = "0") -> GpuUse:
    """What a GPU draws and holds now.

    Args:
        card: as ``GpuWatch`` takes it.

    Returns:
        One sample; nothing where there is no ``nvidia-smi``, or it does not answer.
    """
    query = _query(card)
    if query is None:
        return GpuUse()
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=2 * _FIRST_WORD_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("nvidia-smi does not tell what the GPU holds: %s", error)
        return GpuUse()
    return parse_gpu_use(done.stdout)


def memory_beyond(before: GpuUse, *later: GpuUse) -> float | None:
    """Memory that a card held more, in MB (10^6 bytes); None where the driver did not tell.

    Args:
        before: what was seen before.
        later: what was seen afterwards; the most counts.
    """
    held = [use.memory_mb for use in later if use.memory_mb is not None]
    return None if before.memory_mb is None or not held else max(0.0, max(held) - before.memory_mb)


def _query(card: str) -> list[str] | None:
    """The command that asks for a sample; None where there is no such tool."""
    tool = shutil.which("nvidia-smi")
    wanted = [f"--id={card}", f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits"]
    return None if tool is None else [tool, *wanted]


def parse_gpu_use(said: str) -> GpuUse:
    """Make sense of the tool's lines.

    Args:
        said: one line a sample, the fields apart by commas; ``[N/A]`` and the like for what is not told.
    """
    columns: list[list[float]] = [[] for _ in _FIELDS]
    for line in said.splitlines():
        values = line.split(",")
        if len(values) != len(_FIELDS):
            continue  # cut off when the tool was stopped
        for column, value in zip(columns, values, strict=True):
            try:
                column.append(float(value))
            except ValueError:
                continue
    power, memory, clock, temperature = columns
    return GpuUse(
        power_w=statistics.median(power) if power else None,
        memory_mb=1.048576 * max(memory) if memory else None,
        clock_mhz=statistics.median(clock) if clock else None,
        temperature_c=max(temperature) if temperature else None,
    )
