"""Which frames a part-time student synthesises while it is trained."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastv2v.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class GapConfig:
    """Keyframe gaps drawn for temporal distillation, one for each clip."""

    smallest: int = 2
    """Smallest gap that is drawn regularly, in frames."""
    largest: int = 4
    """Largest gap, in frames; what deployment uses should lie within."""
    every_frame: float = 0.1
    """Share of clips with gap 1, so that the student can also follow a still moment."""

    def __post_init__(self) -> None:
        if not 1 <= self.smallest <= self.largest:
            raise ConfigError(f"gaps must satisfy 1 <= smallest <= largest, got {self.smallest} and {self.largest}")
        if not 0 <= self.every_frame <= 1:
            raise ConfigError(f"every_frame is a share between 0 and 1, got {self.every_frame}")


def draw_gap(config: GapConfig, num_frames: int, history_length: int, rng: torch.Generator) -> int:
    """Draw the gap of one clip so that at least one keyframe follows a full history.

    Args:
        config: range of gaps.
        num_frames: T, frames of the clip.
        history_length: N-1 keyframes of history.
        rng: source of randomness.

    Returns:
        A gap g with (N-1) * g <= T - 1.

    Raises:
        DataError: if even the smallest gap does not fit into the clip.

    Source:
        The random gaps of Fast-Vid2Vid (Zhuo et al., ECCV 2022), without its rejection loop.
    """
    fits = (num_frames - 1) // history_length
    if fits < config.smallest:
        raise DataError(
            f"a clip of {num_frames} frames is too short for keyframes {config.smallest} frames apart after a history "
            f"of {history_length}; use clips of at least {config.smallest * history_length + 1} frames"
        )
    if float(torch.rand((), generator=rng)) < config.every_frame:
        return 1
    return int(torch.randint(config.smallest, min(config.largest, fits) + 1, (), generator=rng))


def keyframe_indices(num_frames: int, gap: int) -> list[int]:
    """Frames 0, g, 2g, ... of a clip of ``num_frames``."""
    return list(range(0, num_frames, gap))
