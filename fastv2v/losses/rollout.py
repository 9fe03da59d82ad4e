"""How a clip is rolled out in training: where it starts, how far gradients reach."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastv2v.contracts import History, StepModel
from fastv2v.errors import ConfigError, DataError
from fastv2v.render import Chunk, rollout_chunks, start_history


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """Starts and truncation of training rollouts."""

    chunk_frames: int = 0
    """Frames between two weight updates; 0 takes the whole clip at once."""
    backprop_frames: int = 1
    """Gradients run back over at most this many of the generator's own frames."""
    start_from_nothing: float = 0.1
    """Share of clips that begin without any given frame, so that a stream can start cold."""
    start_from_one: float = 0.4
    """Share of clips that begin from one real frame, repeated; the rest gets a full real history."""

    def __post_init__(self) -> None:
        if self.chunk_frames < 0 or self.backprop_frames < 1:
            raise ConfigError(
                f"chunk_frames must be at least 0 and backprop_frames at least 1, "
                f"got {self.chunk_frames} and {self.backprop_frames}"
            )
        shares = (self.start_from_nothing, self.start_from_one)
        if min(shares) < 0 or sum(shares) > 1:
            raise ConfigError(f"start_from_nothing and start_from_one are shares of all clips, got {shares}")


def draw_start(config: RolloutConfig, rng: torch.Generator) -> str:
    """Draw how a clip begins: ``nothing``, ``one`` or ``full``."""
    draw = float(torch.rand((), generator=rng))
    if draw < config.start_from_nothing:
        return "nothing"
    return "one" if draw < config.start_from_nothing + config.start_from_one else "full"


def opening(model: StepModel, conditions: Tensor, frames: Tensor, start: str) -> History:
    """History before frame N-1 of a clip, whatever the start: the same frames are synthesised in each case.

    Args:
        model: the generator.
        conditions: (B, T, C, H, W).
        frames: real frames, (B, T, 3, H, W).
        start: one of ``nothing``, ``one``, ``full``.

    Raises:
        DataError: if the clip is not longer than the history.
    """
    past = model.history_length
    if frames.shape[1] <= past:
        raise DataError(
            f"a clip of {frames.shape[1]} frames leaves nothing to synthesise after a history of {past}; "
            f"use clips of at least {past + 1} frames"
        )
    if start == "nothing":
        return start_history(conditions[:, :0], None, past, first_condition=conditions[:, past])
    oldest = past - 1 if start == "one" else 0
    return start_history(conditions[:, oldest:past], frames[:, oldest:past], past)


def training_rollout(
    model: StepModel, conditions: Tensor, frames: Tensor, start: str, config: RolloutConfig
) -> Iterator[Chunk]:
    """Chunks of a clip from frame N-1 to its end; see ``rollout_chunks``."""
    return rollout_chunks(
        model,
        conditions,
        opening(model, conditions, frames, start),
        start=model.history_length,
        chunk_frames=config.chunk_frames,
        backprop_frames=config.backprop_frames,
    )
