"""What an NVIDIA GPU draws and holds while something runs, told by the driver's own tool. Torch-free."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import tempfile
from dataclasses import dataclass
from types import TracebackType
from typing import IO

_FIELDS = ("power.draw", "memory.used", "clocks.sm", "temperature.gpu")
_EVERY_MS = 50


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

    Sees nothing where there is no ``nvidia-smi``.

    Args:
        index: number of the GPU, as the driver counts.
    """

    def __init__(self, index: int = 0) -> None:
        self._index = index
        self._process: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None
        self.use = GpuUse()

    def __enter__(self) -> GpuWatch:
        tool = shutil.which("nvidia-smi")
        if tool is not None:
            query = [f"--id={self._index}", f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits"]
            self._said = tempfile.TemporaryFile()  # a pipe that nobody reads would fill up
            self._process = subprocess.Popen(
                [tool, *query, f"--loop-ms={_EVERY_MS}"], stdout=self._said, stderr=subprocess.DEVNULL
            )
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
