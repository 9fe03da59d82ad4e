"""Which frames a part-time student synthesises while it is trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

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
    probabilities: tuple[float, ...] = ()
    """Shares of clips with gap 1, 2, 3 and so on, in place of the range above: those that deployment will meet. They
    need not sum to 1. Gaps that a clip is too short for are left out."""
    adaptive: bool = False
    """Measure these shares on the training conditions when training starts: those of adaptive keyframes at most
    ``largest`` apart."""

    def __post_init__(self) -> None:
        if self.adaptive and self.probabilities:
            raise ConfigError("gap probabilities are measured where adaptive is set; give one of the two")
        if self.probabilities and (min(self.probabilities) < 0 or not sum(self.probabilities) > 0):
            raise ConfigError(
                f"gap probabilities must not be negative and not all 0, got {', '.join(map(str, self.probabilities))}"
            )
        if not 1 <= self.smallest <= self.largest:
            raise ConfigError(f"gaps must satisfy 1 <= smallest <= largest, got {self.smallest} and {self.largest}")
        if not 0 <= self.every_frame <= 1:
            raise ConfigError(f"every_frame is a share between 0 and 1, got {self.every_frame}")


def draw_gap(config: GapConfig, num_frames: int, history_length: int, rng: torch.Generator) -> int:
    """Draw the gap of one clip so that at least one keyframe follows a full history.

    Args:
        config: range or probabilities of gaps.
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
    smallest = next((g for g, p in enumerate(config.probabilities, start=1) if p > 0), config.smallest)
    if fits < smallest:
        raise DataError(
            f"a clip of {num_frames} frames is too short for keyframes {smallest} frames apart after a history "
            f"of {history_length}; use clips of at least {smallest * history_length + 1} frames"
        )
    if config.probabilities:
        return int(torch.multinomial(torch.tensor(config.probabilities[:fits]), 1, generator=rng)) + 1
    if float(torch.rand((), generator=rng)) < config.every_frame:
        return 1
    return int(torch.randint(config.smallest, min(config.largest, fits) + 1, (), generator=rng))


def gap_probabilities(keyframes: Iterable[Sequence[int]]) -> tuple[float, ...]:
    """Shares of gaps 1, 2, 3, ... that make clips meet them as often as these keyframes do.

    A clip with a large gap has few keyframes, so what counts is the share of the frames that lie in gaps of each
    length, not that of the gaps.

    Args:
        keyframes: increasing frame indices of the keyframes of each video.

    Returns:
        Probabilities for ``GapConfig``, which sum to 1.

    Raises:
        DataError: if no video has two keyframes.
    """
    frames: Counter[int] = Counter()
    for indices in keyframes:
        for earlier, later in pairwise(indices):
            frames[later - earlier] += later - earlier
    if not frames:
        raise DataError("no sequence has two keyframes, so that no gap can be measured; use longer sequences")
    return tuple(frames[gap] / frames.total() for gap in range(1, max(frames) + 1))


def keyframe_indices(num_frames: int, gap: int) -> list[int]:
    """Frames 0, g, 2g, ... of a clip of ``num_frames``."""
    return list(range(0, num_frames, gap))
