"""Rollouts: run any step model over a sequence of conditions, feeding its own frames back.

Where a video is guided by a painted world, its point ids come beside the conditions. For every frame, in this order:
the world is rendered into the condition's last channels, the model steps, the frame paints the world. So the guidance
of a frame rests on earlier frames only. Past conditions are kept without guidance: what it said is in the past frames,
and a generator looks back on labels and frames alone (Mallya et al., ECCV 2020).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastv2v.contracts import FrameOutput, History, StepModel
from fastv2v.data.painter import GUIDANCE_CHANNELS
from fastv2v.errors import ShapeError
from fastv2v.ops.painter import PaintedWorld, empty_world, paint, render_levels

Points = tuple[Tensor, ...]
"""Point ids beside a clip's conditions, finest level first: (B, T, H / 2^k, W / 2^k) integers each, -1 for none. Of one
frame: (B, H / 2^k, W / 2^k)."""


def cut(points: Points | None, frames: slice) -> Points | None:
    """The point ids of some frames of a clip, where there are any."""
    return None if points is None else tuple(level[:, frames] for level in points)


def at_frame(points: Points | None, t: int) -> Points | None:
    """The point ids of one frame of a clip, where there are any."""
    return None if points is None else tuple(level[:, t] for level in points)


def samples(points: Points | None, count: int) -> list[Points] | list[None]:
    """The point ids of every sample of a batch, as batches of one."""
    if points is None:
        return [None] * count
    return list(zip(*(level.split(1) for level in points), strict=True))


def guided(condition: Tensor, world: PaintedWorld | None, points: Points | None) -> Tensor:
    """Render what is painted into the last channels of a condition.

    Args:
        condition: (B, C, H, W), with zeros in these channels.
        world: painted by earlier frames; None if there are none.
        points: of this frame; None leaves the condition as it is, which means that nothing is known here.

    Returns:
        (B, C, H, W).

    Raises:
        ShapeError: if the condition has no room for so many levels, or sizes disagree.
    """
    if world is None or points is None:
        return condition
    guidance = render_levels(world, points)
    kept = condition.shape[1] - guidance.shape[1]
    if kept < 1 or guidance.shape[-2:] != condition.shape[-2:]:
        raise ShapeError(
            f"a condition {tuple(condition.shape)} has no room for guidance {tuple(guidance.shape)} at its end"
        )
    return torch.cat([condition[:, :kept], guidance.to(condition.dtype)], dim=1)


def painted(world: PaintedWorld | None, frame: Tensor, points: Points | None) -> PaintedWorld | None:
    """The world after a frame, through the point ids of full size; without gradients.

    Args:
        world: None if nothing was painted yet.
        frame: (B, 3, H, W) in [-1, 1].
        points: of this frame; None paints nothing.
    """
    if points is None:
        return world
    return paint(empty_world(frame.shape[0], device=frame.device) if world is None else world, frame, points[0])


def guided_step(
    model: StepModel, condition: Tensor, history: History, points: Points | None = None
) -> tuple[FrameOutput, History]:
    """One step within the painted world: render, step, paint. Without point ids it is the model's own step.

    Args:
        model: any step model. It is told of guidance by the condition alone.
        condition: of this frame, without guidance, (B, C, H, W).
        history: the past with its world.
        points: of this frame.
    """
    return _painting_step(model, condition, guided(condition, history.world, points), history, points)


def _painting_step(
    model: StepModel, condition: Tensor, shown: Tensor, history: History, points: Points | None
) -> tuple[FrameOutput, History]:
    """Step by a condition that holds its guidance, remember the one that does not, and paint."""
    # The world stays outside the step, which gradient checkpointing would otherwise keep one of for each frame.
    output, after = model.step(shown, history._replace(world=None))
    if shown is not condition:
        after = after._replace(conditions=torch.cat([history.conditions[:, 1:], condition.unsqueeze(1)], dim=1))
    return output, after._replace(world=painted(history.world, output.frame, points))


def start_history(
    conditions: Tensor,
    frames: Tensor | None,
    history_length: int,
    *,
    first_condition: Tensor | None = None,
    points: Points | None = None,
) -> History:
    """History before the first synthesised frame.

    Args:
        conditions: encoded conditions of the given frames, (B, K, C, H, W); K may be 0 when nothing is given.
        frames: the given real frames, (B, K, 3, H, W) in [-1, 1], or None to start from nothing.
        history_length: N-1. Fewer given frames are padded at the old end by repeating the oldest; more are cut.
        first_condition: (B, C, H, W), stands in for the missing past conditions when nothing is given.
        points: point ids of the given frames, K of them, which then paint the world one after the other.

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
    world = None
    for t in range(frames.shape[1] if points is not None else 0):
        world = painted(world, frames[:, t], at_frame(points, t))
    valid = frames.new_ones(frames.shape[0])
    return History(_last(conditions, history_length), _last(frames, history_length), valid, world=world)


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
        world=history.world,
    )


def detach(history: History) -> History:
    """The same history cut from the graph."""
    conditions, frames, valid, coarse, world = history  # the world has no gradients
    return History(conditions.detach(), frames.detach(), valid.detach(), tuple(x.detach() for x in coarse), world)


def rollout(
    model: StepModel, conditions: Tensor, history: History, points: Points | None = None
) -> Iterator[FrameOutput]:
    """Synthesise one frame for each condition, in order.

    Args:
        model: any step model.
        conditions: (B, T, C, H, W).
        history: state before the first of them.
        points: point ids of the same T frames, where the model is guided.

    Yields:
        The output of each step.
    """
    for t, condition in enumerate(conditions.unbind(1)):
        output, history = guided_step(model, condition, history, at_frame(points, t))
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
    model: StepModel,
    conditions: Tensor,
    history: History,
    *,
    start: int,
    chunk_frames: int,
    backprop_frames: int,
    points: Points | None = None,
) -> Iterator[Chunk]:
    """Roll out with gradients, chunk by chunk: truncated back-propagation through time.

    Args:
        model: the generator that is trained.
        conditions: conditions of the whole clip, (B, T, C, H, W).
        history: state before frame ``start``.
        start: first frame to synthesise.
        chunk_frames: frames per chunk; weights may be updated between chunks. 0 takes the rest of the clip at once.
        backprop_frames: gradients run back over at most this many frames; 1 cuts between every two.
        points: point ids of the whole clip, where the model is guided. Gradients do not run through the painted world.

    Yields:
        Chunks in order; the last may be shorter.
    """
    num_frames = conditions.shape[1]
    chunk_frames = chunk_frames or max(num_frames - start, 1)
    num_guiding = 0 if points is None else GUIDANCE_CHANNELS * len(points)
    for first in range(start, num_frames, chunk_frames):
        outputs, previous, valid, guidance = [], [], [], []
        for t in range(first, min(first + chunk_frames, num_frames)):
            if (t - first) % backprop_frames == 0:
                history = detach(history)
            previous.append(history.frames[:, -1].detach())
            valid.append(history.valid)
            condition, here = conditions[:, t], at_frame(points, t)
            shown = guided(condition, history.world, here)
            if num_guiding:
                guidance.append(shown[:, -num_guiding:])
            output, history = _painting_step(model, condition, shown, history, here)
            outputs.append(output)
        history = detach(history)
        seen = torch.stack(guidance, 1) if guidance else None
        yield Chunk(first, stack_outputs(outputs), torch.stack(previous, 1), torch.stack(valid, 1), seen)


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
def render_clip(model: StepModel, conditions: Tensor, given: Tensor | None, points: Points | None = None) -> Tensor:
    """Synthesise a whole clip from its conditions and, where given, its first real frames.

    Args:
        model: any step model.
        conditions: (B, T, C, H, W).
        given: (B, K, 3, H, W) in [-1, 1], or None to start from nothing.
        points: point ids of the whole clip, where the model is guided; given frames paint the world too.

    Returns:
        (B, T, 3, H, W): the given frames, then the model's own.
    """
    num_given = 0 if given is None else given.shape[1]
    history = start_history(
        conditions[:, :num_given],
        given,
        model.history_length,
        first_condition=conditions[:, 0],
        points=cut(points, slice(num_given)),
    )
    later = cut(points, slice(num_given, None))
    made = [output.frame for output in rollout(model, conditions[:, num_given:], history, later)]
    frames = list(given.unbind(1)) if given is not None else []
    return torch.stack(frames + made, dim=1)
