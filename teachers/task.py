"""Training of a full-time teacher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fastv2v.architecture import Generator
from fastv2v.contracts import Losses, StepModel
from fastv2v.data.clip import Clip
from fastv2v.data.conditions import ConditionSpec
from fastv2v.errors import ConfigError
from fastv2v.losses.objective import ObjectiveConfig, VideoObjective
from fastv2v.losses.rollout import RolloutConfig, draw_start, training_rollout
from fastv2v.nn.coarse_to_fine import CoarseToFineGenerator, FinestOnly
from fastv2v.ops.labels import encode_clip
from fastv2v.render import render_clip
from fastv2v.score import clip_psnr


@dataclass(frozen=True, kw_only=True)
class TeacherTaskConfig:
    """How a teacher is trained."""

    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """Losses and discriminators."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """Starts and truncation of the rollouts."""
    fixed_coarse_steps: int = 0
    """Training steps in which only the finest of several scales learns (vid2vid's niter_fix_global)."""

    def __post_init__(self) -> None:
        if self.fixed_coarse_steps < 0:
            raise ConfigError(f"fixed_coarse_steps must be at least 0, got {self.fixed_coarse_steps}")


class TeacherTask:
    """vid2vid's training: roll out from the generator's own frames, judge, repeat.

    Args:
        generator: the teacher; of one scale or several, or one that draws single images.
        spec: how conditions are encoded.
        objective: losses and discriminators.
        config: rollout settings.

    Raises:
        ConfigError: if coarse scales shall be fixed and there are none.

    Source:
        Wang et al., "Video-to-Video Synthesis", NeurIPS 2018.
    """

    def __init__(
        self, generator: Generator, spec: ConditionSpec, objective: VideoObjective, config: TeacherTaskConfig
    ) -> None:
        if config.fixed_coarse_steps and not isinstance(generator, CoarseToFineGenerator):
            raise ConfigError("fixed_coarse_steps is for generators of several scales; this one has one (num_scales)")
        self.generator = generator
        self.spec = spec
        self.objective = objective
        self.config = config
        self.players: Mapping[str, nn.Module] = {"generator": generator, **objective.discriminators}
        self.weights: Mapping[str, Mapping[str, float]] = objective.weights(uses_flow=generator.uses_flow)

    def step(self, clip: Clip, rng: torch.Generator, at: int) -> Iterator[Losses]:
        """Losses of every player, chunk after chunk."""
        conditions = encode_clip(self.spec, clip)
        reference = self.objective.reference(conditions, clip.frames, clip.flow)
        start = draw_start(self.config.rollout, rng)
        past: list[Tensor] = []
        for chunk in training_rollout(self._trained(at), conditions, clip.frames, start, self.config.rollout, at):
            num_made = chunk.start - self.generator.history_length
            yield self.objective.chunk_losses(chunk, reference, past, num_made=num_made)
            past = self.objective.past_after(past, chunk)

    def _trained(self, at: int) -> StepModel:
        """The generator, or its finest scale while the coarse ones are fixed."""
        if isinstance(self.generator, CoarseToFineGenerator) and at < self.config.fixed_coarse_steps:
            return FinestOnly(self.generator)
        return self.generator

    def sample(self, clip: Clip) -> Mapping[str, Tensor]:
        """Real frames beside the teacher's own rollout from the first of them."""
        frames = render_clip(self.generator, encode_clip(self.spec, clip), clip.frames[:, :1])
        return {"real": clip.frames, "teacher": frames}

    def evaluate(self, clip: Clip) -> Mapping[str, float]:
        """PSNR in dB of the rollout from the first real frame, that frame left out."""
        frames = render_clip(self.generator, encode_clip(self.spec, clip), clip.frames[:, :1])
        return {"psnr": clip_psnr(frames[:, 1:], clip.frames[:, 1:])}
