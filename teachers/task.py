"""Training of a full-time teacher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fastv2v.contracts import Losses
from fastv2v.data.clip import Clip
from fastv2v.data.conditions import ConditionSpec
from fastv2v.losses.objective import ObjectiveConfig, VideoObjective
from fastv2v.losses.rollout import RolloutConfig, draw_start, training_rollout
from fastv2v.nn.composite import CompositeGenerator
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


class TeacherTask:
    """vid2vid's training: roll out from the generator's own frames, judge, repeat.

    Args:
        generator: the teacher.
        spec: how conditions are encoded.
        objective: losses and discriminators.
        config: rollout settings.

    Source:
        Wang et al., "Video-to-Video Synthesis", NeurIPS 2018.
    """

    def __init__(
        self, generator: CompositeGenerator, spec: ConditionSpec, objective: VideoObjective, config: TeacherTaskConfig
    ) -> None:
        self.generator = generator
        self.spec = spec
        self.objective = objective
        self.config = config
        self.players: Mapping[str, nn.Module] = {"generator": generator, **objective.discriminators}
        self.weights: Mapping[str, Mapping[str, float]] = objective.weights(uses_flow=generator.config.use_flow)

    def step(self, clip: Clip, rng: torch.Generator, at: int) -> Iterator[Losses]:
        """Losses of every player, chunk after chunk."""
        conditions = encode_clip(self.spec, clip)
        reference = self.objective.reference(conditions, clip.frames)
        start = draw_start(self.config.rollout, rng)
        past: list[Tensor] = []
        for chunk in training_rollout(self.generator, conditions, clip.frames, start, self.config.rollout):
            yield self.objective.chunk_losses(chunk, reference, past)
            past = [*past, *chunk.output.frame.detach().unbind(1)][-(self.objective.config.temporal_window - 1) :]

    def sample(self, clip: Clip) -> Mapping[str, Tensor]:
        """Real frames beside the teacher's own rollout from the first of them."""
        frames = render_clip(self.generator, encode_clip(self.spec, clip), clip.frames[:, :1])
        return {"real": clip.frames, "teacher": frames}

    def evaluate(self, clip: Clip) -> Mapping[str, float]:
        """PSNR in dB of the rollout from the first real frame, that frame left out."""
        frames = render_clip(self.generator, encode_clip(self.spec, clip), clip.frames[:, :1])
        return {"psnr": clip_psnr(frames[:, 1:], clip.frames[:, 1:])}
