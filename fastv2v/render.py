"""Rollouts: run any step model over a sequence of conditions, feeding its own frames back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastv2v.contracts import FrameOutput, History, StepModel
from fastv2v.errors import ShapeError


def start_history(
    conditions: Tensor, frames: Tensor | None, history_length: int, *, first_condition: Tensor | None = None
) -> History:
    """History before the first synthesised frame.

    Args:
        conditions: encoded conditions of the given frames, (B, K, C, H, W); K may be 0 when nothing is given.
        frames: the given real frames, (B, K, 3, H, W) in [-1, 1], or None to start from nothing.
        history_length: N-1. Fewer given frames are padded at the old end by repeating the oldest; more are cut.
        first_condition: (B, C, H, W), stands in for the missing past conditions when nothing is given.

    Returns:
        The history, with ``valid`` 1 where at least one frame was given.

    Raises:
        ShapeError: if conditions and frames disagree, or nothing at all was given.
    """
    if frames is None or frames.shape[1] == 0:
        if first_condition is None:
            raise ShapeError("a history from nothing needs first_condition")
        b, _, h, w = first_condition.shape
        past = first_condition.unsqueeze(1).expand(-1, history_length, -1, -1, -1)
        return History(past, first_condition.new_zeros(b, history_length, 3, h, w), first_condition.new_zeros(b))
    if conditions.shape[:2] != frames.shape[:2] or conditions.shape[-2:] != frames.shape[-2:]:
        raise ShapeError(f"given conditions {tuple(conditions.shape)} and frames {tuple(frames.shape)} do not match")
    return History(_last(conditions, history_length), _last(frames, history_length), frames.new_ones(frames.shape[0]))


def _last(x: Tensor, count: int) -> Tensor:
    """The newest ``count`` steps, padded at the old end by repetition."""
    missing = count - x.shape[1]
    if missing > 0:
        x = torch.cat([x[:, :1].expand(-1, missing, *x.shape[2:]), x], dim=1)
    return x[:, x.shape[1] - count :]


def advance(history: History, condition: Tensor, frame: Tensor) -> History:
    """History after ``frame`` was made from ``condition``: the oldest step leaves, this one enters.

    Of one scale: a coarse-to-fine generator adds its coarse frames itself.
    """
    return History(
        torch.cat([history.conditions[:, 1:], condition.unsqueeze(1)], dim=1),
        torch.cat([history.frames[:, 1:], frame.unsqueeze(1)], dim=1),
        torch.ones_like(history.valid),
    )


def detach(history: History) -> History:
    """The same history cut from the graph."""
    conditions, frames, valid, coarse = history
    return History(conditions.detach(), frames.detach(), valid.detach(), tuple(x.detach() for x in coarse))


def rollout(model: StepModel, conditions: Tensor, history: History) -> Iterator[FrameOutput]:
    """Synthesise one frame for each condition, in order.

    Args:
        model: any step model.
        conditions: (B, T, C, H, W).
        history: state before the first of them.

    Yields:
        The output of each step.
    """
    for condition in conditions.unbind(1):
        output, history = model.step(condition, history)
        yield output


class Chunk(NamedTuple):
    """Consecutive synthesised frames of a clip with what they were made from; n frames."""

    start: int
    """Index of the first of them within the clip."""
    output: FrameOutput
    """Parts stacked over time, (B, n, ..., H, W)."""
    previous: Tensor
    """The frame each was made from, detached, (B, n, 3, H, W): the latest history frame."""
    valid: Tensor
    """(B, n): 0 where there was no such frame."""
    guidance: Tensor | None = None
    """What the network was shown of the painted world, (B, n, 4 * levels, H, W): colours in [-1, 1] and mask of each
    level, zeros where nothing was known; None without a world."""


def rollout_chunks(
    model: StepModel, conditions: Tensor, history: History, *, start: int, chunk_frames: int, backprop_frames: int
) -> Iterator[Chunk]:
    """Roll out with gradients, chunk by chunk: truncated back-propagation through time.

    Args:
        model: the generator that is trained.
        conditions: conditions of the whole clip, (B, T, C, H, W).
        history: state before frame ``start``.
        start: first frame to synthesise.
        chunk_frames: frames per chunk; weights may be updated between chunks. 0 takes the rest of the clip at once.
        backprop_frames: gradients run back over at most this many frames; 1 cuts between every two.

    Yields:
        Chunks in order; the last may be shorter.
    """
    num_frames = conditions.shape[1]
    chunk_frames = chunk_frames or max(num_frames - start, 1)
    for first in range(start, num_frames, chunk_frames):
        outputs, previous, valid = [], [], []
        for t in range(first, min(first + chunk_frames, num_frames)):
            if (t - first) % backprop_frames == 0:
                history = detach(history)
            previous.append(history.frames[:, -1].detach())
            valid.append(history.valid)
            output, history = model.step(conditions[:, t], history)
            outputs.append(output)
        history = detach(history)
        yield Chunk(first, stack_outputs(outputs), torch.stack(previous, 1), torch.stack(valid, 1))


def stack_outputs(outputs: Sequence[FrameOutput]) -> FrameOutput:
    """Outputs of consecutive steps with a time axis: each part becomes (B, T, ..., H, W).

    Parts that are one and the same tensor in every step, as frame and hallucinated frame where nothing is blended, are
    one again.
    """
    stacked: dict[tuple[int, ...], Tensor | None] = {}
    parts = []
    for of_steps in zip(*outputs, strict=True):
        key = tuple(map(id, of_steps))
        if key not in stacked:
            stacked[key] = None if of_steps[0] is None else torch.stack(of_steps, dim=1)
        parts.append(stacked[key])
    return FrameOutput(*parts)  # type: ignore[arg-type]


@torch.no_grad()
def render_clip(model: StepModel, conditions: Tensor, given: Tensor | None) -> Tensor:
    """Synthesise a whole clip from its conditions and, where given, its first real frames.

    Args:
        model: any step model.
        conditions: (B, T, C, H, W).
        given: (B, K, 3, H, W) in [-1, 1], or None to start from nothing.

    Returns:
        (B, T, 3, H, W): the given frames, then the model's own.
    """
    num_given = 0 if given is None else given.shape[1]
    history = start_history(conditions[:, :num_given], given, model.history_length, first_condition=conditions[:, 0])
    made = [output.frame for output in rollout(model, conditions[:, num_given:], history)]
    frames = list(given.unbind(1)) if given is not None else []
    return torch.stack(frames + made, dim=1)
