"""How a driver is fitted. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from fastv2v.errors import ConfigError

Fit = Literal["sequence", "causal"]
"""What of the driver is known when a frame is fitted."""


@dataclass(frozen=True, kw_only=True)
class DrivingConfig:
    """How another person's face or body is fitted to the trained one."""

    fit: Fit | None = None
    """``sequence``: proportions and usual place of the driver are taken from the whole video first. ``causal``: from
    the frames so far, for live use. By default causal for cameras and with --causal, else sequence."""
    expression: float = 1.0
    """What the driver's face does beyond its rest counts so much; below 1 calms it, 0 leaves only the head moving."""
    within: float | None = None
    """Pull what lies further than this from what was trained back to this distance; 1 is as far as 99 % of the trained
    frames go. Nothing is pulled by default."""
    warn_above: float = 1.5
    """Warn of frames further outside than this."""
    memory: int = 300
    """Frames that a causal fit remembers."""
    settle: int = 12
    """Frames by which a causal fit of a body prefers one scale for all limbs at its start, since limbs look short until
    they were seen at their length; 0 believes the first frame."""

    def __post_init__(self) -> None:
        if self.fit not in (None, *get_args(Fit)):
            raise ConfigError(f"a driver is fitted by {' or '.join(get_args(Fit))}, got '{self.fit}'")
        if not 0 <= self.expression <= 3:
            raise ConfigError(f"expression lies in 0 to 3, got {self.expression}")
        if self.within is not None and not 0 < self.within < float("inf"):
            raise ConfigError(f"within is a positive distance, got {self.within}")
        if not 0 < self.warn_above < float("inf"):
            raise ConfigError(f"warn_above is a positive distance, got {self.warn_above}")
        if self.memory < 1 or self.settle < 0:
            raise ConfigError(f"memory is 1 or more frames and settle 0 or more, got {self.memory} and {self.settle}")
