"""The doors between the rooms: what a step, a rollout state and a training task look like.

Shape letters, used throughout the project: B batch, T frames, N history window (past steps plus the current one),
L label classes, C channels of an encoded condition, H height, W width.

Only types live here; importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from fastv2v.data.clip import Clip
    from fastv2v.ops.painter import PaintedWorld

Losses = Mapping[str, Mapping[str, "Tensor"]]
"""One mapping of named scalar terms for each player (each network that has its own optimiser)."""


class History(NamedTuple):
    """What a generator may look back on, oldest first. State goes in and comes out; nothing is kept on a module."""

    conditions: Tensor
    """Encoded conditions of the last N-1 steps, (B, N-1, C, H, W)."""
    frames: Tensor
    """Frames of the last N-1 steps, (B, N-1, 3, H, W), in [-1, 1]; zeros where there is none yet."""
    valid: Tensor
    """(B,) float: 1 where the latest history frame exists, 0 at the very start of a video. At 0 nothing is warped and
    the frame is hallucinated whole (vid2vid's ``no_first_img``)."""
    coarse_frames: tuple[Tensor, ...] = ()
    """Own frames of the coarser scales of a coarse-to-fine generator, coarsest first, each (B, N-1, 3, H/2^k, W/2^k).
    Empty before the first step: such a generator then starts from the averaged given frames."""
    world: PaintedWorld | None = None
    """What this video has painted so far, where it is guided by that. Whoever rolls out keeps it (``guided_step`` in
    ``fastv2v.render``); generators need not know of it."""


class FrameOutput(NamedTuple):
    """What one step makes. Flow and its companions are ``None`` for a generator without a flow branch."""

    frame: Tensor
    """The finished frame, (B, 3, H, W), in [-1, 1]."""
    hallucinated: Tensor
    """The newly drawn frame before it was blended with the warped one, (B, 3, H, W)."""
    warped: Tensor | None = None
    """The previous frame moved onto this one, (B, 3, H, W)."""
    flow: Tensor | None = None
    """Flow from this frame to the previous one in pixels, (B, 2, H, W): +x right, +y down."""
    occlusion: Tensor | None = None
    """Blend weight in [0, 1], (B, 1, H, W): 1 takes the hallucinated pixel, 0 the warped one."""


@runtime_checkable
class StepModel(Protocol):
    """A generator of any kind: teacher, student, exported graph or engine."""

    @property
    def condition_channels(self) -> int:
        """C: channels of one encoded condition."""
        ...

    @property
    def history_length(self) -> int:
        """N-1: how many past steps ``step`` looks back on."""
        ...

    @property
    def size_multiple(self) -> int:
        """Height and width must be divisible by this."""
        ...

    def step(self, condition: Tensor, history: History) -> tuple[FrameOutput, History]:
        """Synthesise one frame from its condition (B, C, H, W) and the past; return it with the advanced history."""
        ...


class FlowEstimator(Protocol):
    """Reference optical flow between two frames, without gradients."""

    def __call__(self, current: Tensor, previous: Tensor) -> tuple[Tensor, Tensor]:
        """Estimate where each pixel of ``current`` is found in ``previous``.

        Args:
            current: (B, 3, H, W) in [-1, 1].
            previous: same shape.

        Returns:
            Flow (B, 2, H, W) in pixels and a confidence (B, 1, H, W) in [0, 1].
        """
        ...


class Task(Protocol):
    """One stage of training. ``fastv2v.train.fit`` runs any of them."""

    players: Mapping[str, nn.Module]
    """The networks that are trained, by name; each gets its own optimiser. Frozen networks are not among them."""
    weights: Mapping[str, Mapping[str, float]]
    """Loss weight for every term of every player; names must equal those ``step`` gives."""

    def step(self, clip: Clip, rng: torch.Generator, at: int) -> Iterator[Losses]:
        """Yield the losses of one clip, chunk after chunk.

        The loop updates every player after each yield and before it asks for the next chunk, so a task may carry
        detached history from chunk to chunk in local variables. ``rng`` is seeded alike for all clips of one update, on
        every rank, so that what it decides (a start, a gap) is the same for all of them. ``at`` counts the training
        steps made before this one: what follows a schedule derives from it alone, so that a resumed run meets the same.
        """
        ...

    def sample(self, clip: Clip) -> Mapping[str, Tensor]:
        """Pictures for people: name -> (B, T, 3, H, W) in [-1, 1], all of the same shape, ``real`` among them."""
        ...

    def evaluate(self, clip: Clip) -> Mapping[str, float]:
        """Numbers on a held-out clip, rolled out from the generator's own frames; ``psnr`` is among them."""
        ...
