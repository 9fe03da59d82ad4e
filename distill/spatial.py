"""Spatial distillation: a low-resolution student learns to draw what the full-size teacher draws."""

from __future__ import annotations

from dataclasses import dataclass, field

from distill.task import DistillTask
from distill.teacher import TeacherSource
from distill.terms import DistillWeights, MaskKind
from fastv2v.data.conditions import ConditionSpec
from fastv2v.errors import ConfigError
from fastv2v.losses.objective import ObjectiveConfig, VideoObjective
from fastv2v.losses.rollout import RolloutConfig
from fastv2v.nn.generators import VideoGenerator


@dataclass(frozen=True, kw_only=True)
class SpatialConfig:
    """How a student is distilled spatially."""

    weights: DistillWeights = field(default_factory=DistillWeights)
    """Weights of the distillation terms, on top of the objective's."""
    mask: MaskKind = "none"
    """What kd_reconstruction and kd_perceptual are weighted by: nothing, the motion's magnitude, or the flow's
    confidence."""
    lead_in: int = 0
    """Most frames that the student makes, as deployed and without gradients, before those it is trained on; drawn for
    each clip from 0 on. So it learns from histories of its own that are older than a clip. Clips must be longer by as
    many frames."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """vid2vid's losses, which stay active."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """Starts and truncation of the rollouts."""

    def __post_init__(self) -> None:
        if self.weights.kd_temporal or self.weights.kd_flow:
            raise ConfigError("kd_temporal and kd_flow belong to temporal distillation; leave them 0 here")
        check_lead_in(self.lead_in)


def check_lead_in(lead_in: int) -> None:
    """Refuse a negative lead-in.

    Raises:
        ConfigError: if it is.
    """
    if lead_in < 0:
        raise ConfigError(f"lead_in must be at least 0 frames, got {lead_in}")


class SpatialTask(DistillTask):
    """Teacher and student roll out the same clip, frame by frame, each from its own history; the student follows.

    Args:
        student: the generator that is trained.
        teacher: a generator, another source of its frames, or None; see ``DistillTask``.
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
        super().__init__(student, teacher, spec, objective, config)
