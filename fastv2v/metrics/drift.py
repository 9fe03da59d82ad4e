"""Drift: how much of its quality a generator loses while it lives on its own frames. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from fastv2v.errors import ConfigError, ShapeError

Window = tuple[int, int]
"""First frame of a stretch and the one after its last, counted from the first frame of the sequence."""

EARLY: Final[Window] = (10, 20)
LATE: Final[Window] = (90, 100)


class Drift(NamedTuple):
    """Quality early and late in one rollout."""

    early_db: float
    """Mean PSNR of the early frames."""
    late_db: float
    """Mean PSNR of the late frames."""

    @property
    def drop_db(self) -> float:
        """What was lost in between, in dB; negative where the late frames are better."""
        return self.early_db - self.late_db


def drift(curve_db: Sequence[float], early: Window = EARLY, late: Window = LATE) -> Drift:
    """Compare two stretches of a rollout's PSNR curve.

    Scenes differ in difficulty along a video: read the value beside that of the teacher on the same frames.

    Args:
        curve_db: PSNR in dB of every frame of the sequence, by index; given frames may be NaN if no window has them.
        early: half-open range of frames near the start.
        late: half-open range of frames near the end.

    Returns:
        Mean PSNR of both stretches.

    Raises:
        ConfigError: if a window is empty or negative, or they are in the wrong order.
        ShapeError: if the rollout is shorter than the late window, or a frame inside a window has no value.
    """
    check_windows(early, late)
    if len(curve_db) < late[1]:
        raise ShapeError(f"the late window ends at frame {late[1]} and the rollout has {len(curve_db)} frames")
    means = [float(np.mean(curve_db[start:stop])) for start, stop in (early, late)]
    if not np.isfinite(means).all():
        raise ShapeError(f"a frame of the windows {early} and {late} has no PSNR; begin after the given frames")
    return Drift(*means)


def check_windows(early: Window, late: Window) -> None:
    """Refuse windows that are empty or in the wrong order.

    Raises:
        ConfigError: naming both.
    """
    if not 0 <= early[0] < early[1] <= late[0] < late[1]:
        raise ConfigError(
            f"drift compares an early stretch of frames with a late one, each as START STOP, got {early} and {late}"
        )
