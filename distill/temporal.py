"""Temporal distillation: the student learns to synthesise keyframes only."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import torch
from torch import nn

from distill.spatial import check_lead_in
from distill.task import DistillTask, TemporalFeatures
from distill.teacher import TeacherSource
from distill.terms import DistillWeights, MaskKind
from fastv2v.data.clip import Clip
from fastv2v.data.conditions import ConditionSpec
from fastv2v.errors import ConfigError
from fastv2v.losses.objective import ObjectiveConfig, VideoObjective
from fastv2v.losses.rollout import RolloutConfig
from fastv2v.nn.generators import VideoGenerator
from fastv2v.ops.flow import FilesFlow
from students.schedule import GapConfig, draw_gap


@dataclass(frozen=True, kw_only=True)
class TemporalConfig:
    """How a student is distilled temporally."""

    weights: DistillWeights = field(default_factory=lambda: DistillWeights(kd_temporal=1.0))
    """Weights of the distillation terms, on top of the objective's."""
    mask: MaskKind = "none"
    """What kd_reconstruction and kd_perceptual are weighted by: nothing, the motion's magnitude between keyframes, or
    the flow's confidence."""
    gap: GapConfig = field(default_factory=GapConfig)
    """Keyframe gaps of the training clips."""
    window: int = 4
    """Keyframes the global temporal term looks at together; a longer chunk is looked at whole."""
    temporal_features: TemporalFeatures = "perceptual"
    """What it looks with: how features of the perceptual network change; the teacher's temporal discriminator; both,
    half each; or a 3-D network of torchvision, R3D-18 or S3D, for which ``temporal_weights`` is needed."""
    temporal_weights: Path | None = None
    """torchvision's Kinetics-400 state dict of R3D-18 or S3D on disk."""
    deployed_gap: int = 4
    """Gap at which held-out clips are scored."""
    lead_in: int = 0
    """Most keyframes that the student makes, as deployed and without gradients, before those it is trained on; drawn
    for each clip from 0 on, as far as the clip reaches. So it learns from histories of its own that are older than a
    clip. Clips must be longer by as many keyframes."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """vid2vid's losses, which stay active, over the keyframes."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """Starts and truncation of the rollouts."""

    def __post_init__(self) -> None:
        if self.window < 2:
            raise ConfigError(f"the temporal window needs at least 2 keyframes, got {self.window}")
        if self.deployed_gap < 1:
            raise ConfigError(f"deployed_gap must be at least 1 frame, got {self.deployed_gap}")
        check_lead_in(self.lead_in)
        kinds = get_args(TemporalFeatures)
        if self.temporal_features not in kinds:
            raise ConfigError(f"temporal_features is one of {', '.join(kinds)}, got {self.temporal_features!r}")
        uses_file = self.temporal_features in ("r3d18", "s3d")
        if uses_file and self.temporal_weights is None:
            raise ConfigError(
                f"temporal_features {self.temporal_features} needs --recipe.task.temporal-weights FILE (torchvision's "
                "Kinetics-400 state dict); or use --recipe.task.temporal-features perceptual"
            )
        if self.temporal_weights is not None and not uses_file:
            raise ConfigError(
                f"temporal_weights belong to temporal_features r3d18 or s3d, and that is {self.temporal_features}"
            )
        if self.uses_discriminator and self.window < self.objective.temporal_window:
            raise ConfigError(
                f"the temporal discriminator sees {self.objective.temporal_window} keyframes at once and the window "
                f"has {self.window}; raise --recipe.task.window"
            )

    @property
    def uses_discriminator(self) -> bool:
        """Whether the global term looks with the teacher's temporal discriminator."""
        return self.temporal_features in ("discriminator", "both")


class TemporalTask(DistillTask):
    """The teacher rolls out every frame, the student every g-th; they meet at the keyframes.

    Args:
        student: the generator that is trained, best after spatial distillation.
        teacher: a generator, another source of its frames, or None; see ``DistillTask``.
        spec: how conditions are encoded.
        objective: losses and discriminators, applied to the keyframe sequence.
        config: distillation settings.
        video: the frozen network that ``temporal_features`` names, unless it is the perceptual one.

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
        *,
        video: nn.Module | None = None,
    ) -> None:
        if isinstance(objective.estimator, FilesFlow):
            raise ConfigError(
                "temporal distillation needs flow across keyframe gaps and flow files hold neighbouring frames only; "
                "use an estimator (--recipe.helpers.flow medium)"
            )
        features = config.temporal_features
        super().__init__(
            student,
            teacher,
            spec,
            objective,
            config,
            window=config.window,
            temporal_features=features,
            video=video,
        )
        self.gap, self.deployed_gap = config.gap, config.deployed_gap

    def _draw_gap(self, clip: Clip, rng: torch.Generator) -> int:
        """One of the configured gaps that leaves a keyframe to synthesise."""
        return draw_gap(self.gap, clip.num_frames, self.student.history_length, rng)
