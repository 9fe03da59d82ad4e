"""How a clip is rolled out in training: where it starts, how far gradients reach."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastv2v.contracts import FrameOutput, History, StepModel
from fastv2v.errors import ConfigError, DataError
from fastv2v.nn.norms import batch_statistics, kept_statistics
from fastv2v.nn.spectral import SpectralMemory
from fastv2v.render import Chunk, Points, at_frame, cut, guided_step, rollout_chunks, start_history

WORN: Final = {"worn2": 2, "worn4": 4, "worn8": 8}
"""Starts from a blurred history, with the side of the squares in pixels."""


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """Starts and truncation of training rollouts."""

    chunk_frames: int = 0
    """Frames between two weight updates; 0 takes the whole clip at once."""
    backprop_frames: int = 1
    """Gradients run back over at most this many of the generator's own frames."""
    backprop_grow_every: int = 0
    """Training steps after which ``backprop_frames`` doubles, again and again; 0 never (vid2vid: with the clips)."""
    max_backprop_frames: int = 1
    """Where the doubling of ``backprop_frames`` ends (vid2vid's max_frames_backpropagate)."""
    gradient_checkpointing: bool = False
    """Keep only frames between the steps of a rollout and compute the rest again for gradients: memory for about a
    third more time. The knob to turn where a long chunk or a large frame does not fit."""
    start_from_nothing: float = 0.1
    """Share of clips that begin without any given frame, so that a stream can start cold."""
    start_from_one: float = 0.4
    """Share of clips that begin from one real frame, repeated; the rest gets a full real history."""
    start_from_worn: float = 0.0
    """Share of clips that begin from a real history blurred over 2, 4 or 8 pixels, as if many own frames lay behind
    it: so a generator learns to draw anew what a long rollout wears out, which short clips never show it."""

    def __post_init__(self) -> None:
        if self.chunk_frames < 0 or self.backprop_frames < 1:
            raise ConfigError(
                f"chunk_frames must be at least 0 and backprop_frames at least 1, "
                f"got {self.chunk_frames} and {self.backprop_frames}"
            )
        if self.backprop_grow_every < 0:
            raise ConfigError(f"backprop_grow_every must be at least 0, got {self.backprop_grow_every}")
        if self.backprop_grow_every and self.max_backprop_frames < self.backprop_frames:
            raise ConfigError(
                f"max_backprop_frames ({self.max_backprop_frames}) must not be below backprop_frames "
                f"({self.backprop_frames}) where it grows"
            )
        shares = (self.start_from_nothing, self.start_from_one, self.start_from_worn)
        if min(shares) < 0 or sum(shares) > 1:
            raise ConfigError(
                f"start_from_nothing, start_from_one and start_from_worn are shares of all clips, got {shares}"
            )

    def backprop_at(self, at: int) -> int:
        """Frames that gradients run back over after ``at`` training steps.

        In a chunk of n frames, b becomes n // ceil(n / b): spans of about equal length.

        Source:
            The schedule of Wang et al., "Video-to-Video Synthesis", NeurIPS 2018.
        """
        span = self.backprop_frames
        if self.backprop_grow_every:
            doublings = min(at // self.backprop_grow_every, 30)
            span = min(span * 2**doublings, self.max_backprop_frames)
        if self.chunk_frames == 0:
            return span
        span = min(span, self.chunk_frames)
        return self.chunk_frames // math.ceil(self.chunk_frames / span)


def draw_start(config: RolloutConfig, rng: torch.Generator) -> str:
    """Draw how a clip begins: ``nothing``, ``one``, one of ``WORN``, or ``full``."""
    draw = float(torch.rand((), generator=rng))
    if draw < config.start_from_nothing:
        return "nothing"
    if draw < config.start_from_nothing + config.start_from_one:
        return "one"
    if draw < config.start_from_nothing + config.start_from_one + config.start_from_worn:
        return list(WORN)[int(torch.randint(len(WORN), (), generator=rng))]
    return "full"


def worn(frames: Tensor, factor: int) -> Tensor:
    """Frames as a long rollout leaves them: averaged over squares of ``factor`` pixels and enlarged again.

    Args:
        frames: (B, K, 3, H, W); H and W divisible by ``factor``.
        factor: side of the squares in pixels.

    Returns:
        The same shape.

    Source:
        Worn context in training against drift: Valevski et al., "Diffusion Models Are Real-Time Game Engines", ICLR
        2025 (noise there; blur here, which is what repeated warping does).
    """
    flat = frames.flatten(0, 1)
    small = F.avg_pool2d(flat, factor)
    return F.interpolate(small, size=flat.shape[-2:], mode="bilinear", align_corners=False).view_as(frames)


def opening(model: StepModel, conditions: Tensor, frames: Tensor, start: str, points: Points | None = None) -> History:
    """History before frame N-1 of a clip, whatever the start: the same frames are synthesised in each case.

    Args:
        model: the generator.
        conditions: (B, T, C, H, W).
        frames: real frames, (B, T, 3, H, W).
        start: ``nothing``, ``one``, ``full`` or one of ``WORN``.
        points: point ids of the clip, where the model is guided: the frames of the history paint its world, as worn as
            they are.

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
    given = frames[:, oldest:past]
    given = worn(given, WORN[start]) if start in WORN else given
    return start_history(conditions[:, oldest:past], given, past, points=cut(points, slice(oldest, past)))


def training_rollout(
    model: StepModel,
    conditions: Tensor,
    frames: Tensor,
    start: str,
    config: RolloutConfig,
    at: int,
    *,
    lead_in: int = 0,
    own_statistics: bool = False,
    points: Points | None = None,
) -> Iterator[Chunk]:
    """Chunks of a clip from frame N-1 to its end; see ``rollout_chunks``.

    With a lead-in the model first makes so many frames as it will be deployed: in evaluation mode and without
    gradients. The chunks are those of the clip without its first ``lead_in`` frames, made from a history of its own.

    Args:
        model: the generator that is trained.
        conditions: (B, T, C, H, W).
        frames: real frames, (B, T, 3, H, W).
        start: ``nothing``, ``one``, ``full`` or one of ``WORN``.
        config: truncation and memory.
        at: training steps made so far.
        lead_in: frames made before the first chunk.
        own_statistics: whether norms go by those frames' own statistics, as teachers are deployed, or by running ones.
        points: point ids of the clip, where the model is guided; the lead-in paints the world too.
    """
    history = opening(model, conditions, frames, start, points)
    if lead_in:
        ahead = slice(model.history_length, model.history_length + lead_in)
        history = run_ahead(
            model, conditions[:, ahead], history, own_statistics=own_statistics, points=cut(points, ahead)
        )
    return rollout_chunks(
        CheckpointedStep(model) if config.gradient_checkpointing else model,
        conditions[:, lead_in:],
        history,
        start=model.history_length,
        chunk_frames=config.chunk_frames,
        backprop_frames=config.backprop_at(at),
        points=cut(points, slice(lead_in, None)),
    )


def draw_lead_in(most: int, num_frames: int, history_length: int, rng: torch.Generator) -> tuple[int, int]:
    """Draw how many frames of a clip are made before those that are trained on, whose number is the same for each draw.

    Args:
        most: largest lead-in, in frames; cut where the clip is too short for it.
        num_frames: T, frames of the clip.
        history_length: N-1.
        rng: source of randomness; not used where there is nothing to draw.

    Returns:
        First frame of the clip that is used, and the lead-in.
    """
    most = min(most, num_frames - history_length - 1)
    if most <= 0:
        return 0, 0
    lead = int(torch.randint(most + 1, (), generator=rng))
    return most - lead, lead


@torch.no_grad()
def run_ahead(
    model: StepModel,
    conditions: Tensor,
    history: History,
    *,
    own_statistics: bool = False,
    points: Points | None = None,
) -> History:
    """The history a model reaches by itself, as it is deployed: without dropout, its spectral norms at rest.

    Args:
        model: a generator in training; its modes are put back.
        conditions: of the frames it makes, (B, L, C, H, W).
        history: where it begins.
        own_statistics: whether norms go by those frames' own statistics; by running ones otherwise.
        points: point ids of the same frames, where the model is guided.
    """
    # A view of a student in training goes by its frames' statistics there too, and is no module.
    parts = [model, *vars(model).values()] if own_statistics else [model]
    with _evaluation(*parts), batch_statistics(model) if own_statistics else nullcontext():
        for t, condition in enumerate(conditions.unbind(1)):
            _, history = guided_step(model, condition, history, at_frame(points, t))
    return history


@contextmanager
def _evaluation(*parts: object) -> Iterator[None]:
    """Within: the modules among these are in evaluation mode; afterwards every one has its own mode again."""
    modules = [m for part in parts if isinstance(part, nn.Module) for m in part.modules()]
    modes = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


class CheckpointedStep:
    """A step model that keeps its inputs only and runs again when gradients are wanted."""

    def __init__(self, model: StepModel) -> None:
        self._model = model
        self.condition_channels = model.condition_channels
        self.history_length = model.history_length
        self.size_multiple = model.size_multiple

    def step(self, condition: Tensor, history: History) -> tuple[FrameOutput, History]:
        """See ``StepModel.step``."""
        result: tuple[FrameOutput, History] = checkpoint(
            self._model.step, condition, history, use_reentrant=False, context_fn=self._contexts
        )
        return result

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """The second run must be the first once more, and must not count its batches again."""
        memory = SpectralMemory(self._model)
        return memory.keeping(), self._again(memory)

    @contextmanager
    def _again(self, memory: SpectralMemory) -> Iterator[None]:
        with kept_statistics(self._model), memory.recalling():
            yield
