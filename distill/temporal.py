"""Temporal distillation: the student learns to synthesise keyframes only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from distill.teacher import Taught, TeacherSource, shown_teacher, teacher_source
from distill.terms import DistillWeights, composed_flow, temporal_distance
from fastv2v.contracts import Losses
from fastv2v.data.clip import Clip
from fastv2v.data.conditions import ConditionSpec
from fastv2v.errors import ConfigError
from fastv2v.losses.flow import masked_l1
from fastv2v.losses.objective import ObjectiveConfig, Reference, VideoObjective
from fastv2v.losses.rollout import RolloutConfig, draw_start, training_rollout
from fastv2v.nn.generators import VideoGenerator
from fastv2v.ops.flow import FilesFlow
from fastv2v.ops.labels import encode_clip
from fastv2v.render import Chunk, render_clip
from fastv2v.score import clip_psnr
from students.schedule import GapConfig, draw_gap


@dataclass(frozen=True, kw_only=True)
class TemporalConfig:
    """How a student is distilled temporally."""

    weights: DistillWeights = field(default_factory=lambda: DistillWeights(kd_temporal=1.0))
    """Weights of the distillation terms, on top of the objective's."""
    gap: GapConfig = field(default_factory=GapConfig)
    """Keyframe gaps of the training clips."""
    window: int = 4
    """Keyframes the global temporal term looks at together; a longer chunk is looked at whole."""
    deployed_gap: int = 4
    """Gap at which held-out clips are scored."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """vid2vid's losses, which stay active, over the keyframes."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """Starts and truncation of the rollouts."""

    def __post_init__(self) -> None:
        if self.window < 2:
            raise ConfigError(f"the temporal window needs at least 2 keyframes, got {self.window}")
        if self.deployed_gap < 1:
            raise ConfigError(f"deployed_gap must be at least 1 frame, got {self.deployed_gap}")


class TemporalTask:
    """The teacher rolls out every frame, the student every g-th; they meet at the keyframes.

    Args:
        student: the generator that is trained, best after spatial distillation.
        teacher: a generator, which is frozen, or another source of its frames. None trains the student alone; every
            distillation weight must then be 0. It is not asked either where all of them are.
        spec: how conditions are encoded.
        objective: losses and discriminators, applied to the keyframe sequence.
        config: distillation settings.

    Raises:
        ConfigError: if teacher and student do not fit each other, or a term lacks its network.

    Source:
        Temporal knowledge distillation of Zhuo et al., "Fast-Vid2Vid", ECCV 2022: teacher frames are matched by time,
        the global term has a gradient, and flow is compared only over equal spans.
    """

    def __init__(
        self,
        student: VideoGenerator,
        teacher: VideoGenerator | TeacherSource | None,
        spec: ConditionSpec,
        objective: VideoObjective,
        config: TemporalConfig,
    ) -> None:
        source, weights = teacher_source(student, teacher), config.weights
        weights.check_taught(source is not None)
        if (weights.kd_perceptual or weights.kd_temporal) and objective.perceptual is None:
            raise ConfigError("kd_perceptual and kd_temporal need the perceptual network")
        if weights.kd_flow and not (student.uses_flow and source is not None and source.has_flow):
            raise ConfigError("kd_flow needs a flow branch in teacher and student")
        if isinstance(objective.estimator, FilesFlow):
            raise ConfigError(
                "temporal distillation needs flow across keyframe gaps and flow files hold neighbouring frames only; "
                "use an estimator (--recipe.helpers.flow medium)"
            )
        self.student, self.teacher = student, source
        self.spec, self.objective, self.config = spec, objective, config
        self.players: Mapping[str, nn.Module] = {"generator": student, **objective.discriminators}
        self.weights: Mapping[str, Mapping[str, float]] = objective.weights(
            uses_flow=student.uses_flow, more=weights.active()
        )

    def step(self, clip: Clip, rng: torch.Generator, at: int) -> Iterator[Losses]:
        """Losses of every player, chunk after chunk."""
        gap = draw_gap(self.config.gap, clip.num_frames, self.student.history_length, rng)
        start = draw_start(self.config.rollout, rng)
        conditions = encode_clip(self.spec, clip)
        taught = None
        if self.teacher is not None and self.config.weights.active():
            taught = self.teacher.teach(clip, conditions, start)
        keyframes = replace(clip, flow=None).take(0, clip.num_frames, gap)  # flow files know no gaps
        key_conditions = conditions[:, ::gap]
        reference = self.objective.reference(key_conditions, keyframes.frames)
        past: list[Tensor] = []
        window: list[Tensor] = []
        for chunk in training_rollout(self.student, key_conditions, keyframes.frames, start, self.config.rollout, at):
            num_made = chunk.start - self.student.history_length
            losses = self.objective.chunk_losses(chunk, reference, past, num_made=num_made)
            # A long chunk counts whole, with the step into its first frame.
            length = max(self.config.window, chunk.output.frame.shape[1] + 1)
            made = [*window, *chunk.output.frame.unbind(1)][-length:]
            if taught is not None:
                losses["generator"].update(self._terms(chunk, made, taught, reference, gap))
            yield losses
            detached = list(chunk.output.frame.detach().unbind(1))
            past = self.objective.past_after(past, chunk)
            window = [*window, *detached][-(self.config.window - 1) :]

    def teacher_entry(self, keyframe: int, gap: int) -> int:
        """Entry of the teacher's rollout that shows the same moment as keyframe number ``keyframe``."""
        return keyframe * gap - self.student.history_length

    def _terms(
        self, chunk: Chunk, made: list[Tensor], taught: Taught, reference: Reference, gap: int
    ) -> dict[str, Tensor]:
        """Distillation terms of one chunk; ``made`` is the window of keyframes that ends with it, whole."""
        weights, perceptual = self.config.weights, self.objective.perceptual
        count = chunk.output.frame.shape[1]
        batch, end = chunk.output.frame.shape[0], chunk.start + count
        window = torch.stack(made, dim=1)
        goal = torch.stack([taught.frame[:, self.teacher_entry(k, gap)] for k in range(end - len(made), end)], dim=1)
        terms: dict[str, Tensor] = {}
        if weights.kd_reconstruction > 0:
            terms["kd_reconstruction"] = (chunk.output.frame - goal[:, -count:]).abs().mean()
        if perceptual is not None and weights.kd_perceptual > 0:
            terms["kd_perceptual"] = perceptual(chunk.output.frame.flatten(0, 1), goal[:, -count:].flatten(0, 1))
        if perceptual is not None and weights.kd_temporal > 0:
            student_features = perceptual.network(window.flatten(0, 1))
            terms["kd_temporal"] = temporal_distance(
                student_features, perceptual.features(goal.flatten(0, 1)), batch, len(made)
            )
        if weights.kd_flow > 0:
            terms["kd_flow"] = self._flow_term(chunk, taught, reference, gap)
        return terms

    def _flow_term(self, chunk: Chunk, taught: Taught, reference: Reference, gap: int) -> Tensor:
        """Student flow against the teacher's flow composed over the gap, where the reference flow is confident."""
        distances = []
        for i in range(chunk.output.frame.shape[1]):
            entry = self.teacher_entry(chunk.start + i, gap)
            if entry - gap + 1 < 0 or chunk.output.flow is None or taught.flow is None:
                continue
            goal = composed_flow(taught.flow, entry, gap)
            confidence = reference.confidence[:, chunk.start + i - 1] * chunk.valid[:, i].view(-1, 1, 1, 1)
            distances.append(masked_l1(chunk.output.flow[:, i], goal, confidence))
        return torch.stack(distances).mean() if distances else chunk.output.frame.new_zeros(())

    def sample(self, clip: Clip) -> Mapping[str, Tensor]:
        """Keyframes at the deployed gap: real, live teacher and student, rolled out from the first real frame."""
        conditions = encode_clip(self.spec, clip)
        gap = self.config.deployed_gap
        keyframes = clip.frames[:, ::gap]
        return {
            "real": keyframes,
            **shown_teacher(self.teacher, conditions, clip.frames[:, :1], gap),
            "student": render_clip(self.student, conditions[:, ::gap], keyframes[:, :1]),
        }

    def evaluate(self, clip: Clip) -> Mapping[str, float]:
        """PSNR in dB against the real frames of the student's keyframes at the deployed gap."""
        gap = self.config.deployed_gap
        real = clip.frames[:, ::gap]
        frames = render_clip(self.student, encode_clip(self.spec, clip)[:, ::gap], real[:, :1])
        return {"psnr": clip_psnr(frames[:, 1:], real[:, 1:])}
