"""Spatial distillation: a low-resolution student learns to draw what the full-size teacher draws."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from distill.teacher import TeacherSource, shown_teacher, teacher_source
from distill.terms import DistillWeights, distill_mask
from fastv2v.contracts import Losses
from fastv2v.data.clip import Clip
from fastv2v.data.conditions import ConditionSpec
from fastv2v.errors import ConfigError
from fastv2v.losses.objective import ObjectiveConfig, VideoObjective
from fastv2v.losses.rollout import RolloutConfig, draw_start, training_rollout
from fastv2v.nn.generators import VideoGenerator
from fastv2v.ops.labels import encode_clip
from fastv2v.render import render_clip
from fastv2v.score import clip_psnr


@dataclass(frozen=True, kw_only=True)
class SpatialConfig:
    """How a student is distilled spatially."""

    weights: DistillWeights = field(default_factory=DistillWeights)
    """Weights of the distillation terms, on top of the objective's."""
    mask: Literal["none", "motion", "confidence"] = "none"
    """What the distillation terms are weighted by: nothing, the motion's magnitude, or the flow's confidence."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """vid2vid's losses, which stay active."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """Starts and truncation of the rollouts."""

    def __post_init__(self) -> None:
        if self.weights.kd_temporal or self.weights.kd_flow:
            raise ConfigError("kd_temporal and kd_flow belong to temporal distillation; leave them 0 here")


class SpatialTask:
    """Teacher and student roll out the same clip, each from its own history; the student follows.

    Args:
        student: the generator that is trained.
        teacher: a generator, which is frozen, or another source of its frames. None trains the student alone; every
            distillation weight must then be 0. It is not asked either where all of them are.
        spec: how conditions are encoded.
        objective: losses and discriminators; the discriminators go on from the teacher's.
        config: distillation settings.

    Raises:
        ConfigError: if teacher and student do not fit each other, or a term lacks its network.

    Source:
        Spatial knowledge distillation of Zhuo et al., "Fast-Vid2Vid", ECCV 2022.
    """

    def __init__(
        self,
        student: VideoGenerator,
        teacher: VideoGenerator | TeacherSource | None,
        spec: ConditionSpec,
        objective: VideoObjective,
        config: SpatialConfig,
    ) -> None:
        config.weights.check_taught(teacher is not None)
        if config.weights.kd_perceptual and objective.perceptual is None:
            raise ConfigError("kd_perceptual needs the perceptual network")
        self.student, self.teacher = student, teacher_source(student, teacher)
        self.spec, self.objective, self.config = spec, objective, config
        self.players: Mapping[str, nn.Module] = {"generator": student, **objective.discriminators}
        self.weights: Mapping[str, Mapping[str, float]] = objective.weights(
            uses_flow=student.uses_flow, more=config.weights.active()
        )

    def step(self, clip: Clip, rng: torch.Generator, at: int) -> Iterator[Losses]:
        """Losses of every player, chunk after chunk."""
        conditions = encode_clip(self.spec, clip)
        reference = self.objective.reference(conditions, clip.frames, clip.flow)
        start = draw_start(self.config.rollout, rng)
        taught = None
        if self.teacher is not None and self.config.weights.active():
            taught = self.teacher.teach(clip, conditions, start)
        past: list[Tensor] = []
        for chunk in training_rollout(self.student, conditions, clip.frames, start, self.config.rollout, at):
            first, count = chunk.start, chunk.output.frame.shape[1]
            offset = first - self.student.history_length
            losses = self.objective.chunk_losses(chunk, reference, past, num_made=offset)
            if taught is not None:
                before = slice(first - 1, first - 1 + count)
                mask = distill_mask(self.config.mask, reference.flow[:, before], reference.confidence[:, before])
                goal = taught.frame[:, offset : offset + count]
                losses["generator"].update(self._terms(chunk.output.frame, goal, mask))
            yield losses
            past = self.objective.past_after(past, chunk)

    def _terms(self, made: Tensor, goal: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """Distillation terms of one chunk, (B, n, 3, H, W) each."""
        if mask is not None:
            made, goal = made * mask, goal * mask
        terms = {}
        if self.config.weights.kd_reconstruction > 0:
            terms["kd_reconstruction"] = (made - goal).abs().mean()
        if self.objective.perceptual is not None and self.config.weights.kd_perceptual > 0:
            terms["kd_perceptual"] = self.objective.perceptual(made.flatten(0, 1), goal.flatten(0, 1))
        return terms

    def sample(self, clip: Clip) -> Mapping[str, Tensor]:
        """Real, live teacher and student, each rolled out from the first real frame."""
        conditions = encode_clip(self.spec, clip)
        return {
            "real": clip.frames,
            **shown_teacher(self.teacher, conditions, clip.frames[:, :1]),
            "student": render_clip(self.student, conditions, clip.frames[:, :1]),
        }

    def evaluate(self, clip: Clip) -> Mapping[str, float]:
        """PSNR in dB against the real frames of the student's rollout from the first real frame."""
        frames = render_clip(self.student, encode_clip(self.spec, clip), clip.frames[:, :1])
        return {"psnr": clip_psnr(frames[:, 1:], clip.frames[:, 1:])}
