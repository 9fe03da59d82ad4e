"""How a long job shows its progress to a person; libraries report, only these objects draw."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Protocol, TextIO

from tqdm import tqdm


class Progress(Protocol):
    """Somebody who is told how training goes."""

    def start(self, steps: int, step: int) -> None:
        """Training of ``steps`` steps begins, or continues, after ``step``."""
        ...

    def advance(self, step: int, done: float, left_s: float) -> None:
        """``step`` is over, and with it the fraction ``done`` of the training; about ``left_s`` seconds remain."""
        ...

    def report(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Means since the last report (``kind`` ``train``) or an evaluation (``eval``)."""
        ...

    def close(self) -> None:
        """Training has ended, one way or another."""
        ...


class SilentProgress:
    """Shows nothing."""

    def start(self, steps: int, step: int) -> None:
        """Do nothing."""

    def advance(self, step: int, done: float, left_s: float) -> None:
        """Do nothing."""

    def report(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class BarProgress:
    """One line on a terminal: the bar, the step, time left, learning rate and loss terms.

    Where the stream is not a terminal (a log file, a pipe) every report becomes a line of its own instead.

    Args:
        title: what is trained, in front of the bar.
        stream: where to draw.
    """

    def __init__(self, title: str, stream: TextIO | None = None) -> None:
        self._title = title
        self._stream = stream or sys.stderr
        self._bar: tqdm | None = None
        self._steps = 0
        self._latest: dict[str, str] = {}
        self._head = ""

    def start(self, steps: int, step: int) -> None:
        """Draw the bar."""
        self._steps = steps
        self._head = f"step {step}/{steps}"
        if self._stream.isatty():
            shape = "{desc} {percentage:3.0f}%|{bar:20}| {postfix}"
            self._bar = tqdm(total=1.0, desc=self._title, bar_format=shape, file=self._stream, dynamic_ncols=True)

    def advance(self, step: int, done: float, left_s: float) -> None:
        """Move the bar."""
        self._head = f"step {step}/{self._steps}, {clock(left_s)} left"
        if self._bar is not None:
            self._bar.n = min(done, 1.0)
            self._bar.set_postfix_str(self._text(), refresh=False)
            self._bar.update(0)  # draws, but no oftener than tqdm's interval

    def report(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Show the newest numbers."""
        self._latest[kind] = " ".join(
            f"{name.removeprefix('generator/')} {value:.3g}"
            for name, value in values.items()
            if not name.endswith(("/total", "/grad_norm"))  # these are for the curves
        )
        if self._bar is None:
            self._stream.write(f"{self._title}: {self._head}  {kind}: {self._latest[kind]}\n")
            self._stream.flush()

    def close(self) -> None:
        """Leave the last state of the line standing."""
        if self._bar is not None:
            self._bar.set_postfix_str(self._text(), refresh=True)
            self._bar.close()
            self._bar = None

    def _text(self) -> str:
        """Everything to the right of the bar."""
        return "  ".join([self._head, *self._latest.values()])


def clock(seconds: float) -> str:
    """Seconds as minutes and seconds, or hours, minutes and seconds: ``4:05``, ``2:04:05``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
