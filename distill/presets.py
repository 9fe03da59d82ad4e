"""Ways to distil a student, by name. The student's shape comes from ``students.presets``."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from distill.spatial import SpatialConfig
from distill.temporal import TemporalConfig
from distill.terms import DistillWeights
from fastv2v.device import DeviceConfig
from fastv2v.losses.objective import ObjectiveConfig
from fastv2v.losses.rollout import RolloutConfig
from fastv2v.nn.composite import CompositeConfig
from fastv2v.nn.generators import VideoConfig
from fastv2v.recipe import DataRecipe, HelperRecipe
from fastv2v.train import TrainConfig
from students.schedule import GapConfig

DEMO_ROLLOUT = RolloutConfig(
    chunk_frames=3, backprop_frames=3, start_from_nothing=0.1, start_from_one=0.3, start_from_worn=0.2
)
"""Rollouts of the stages that take minutes."""


@dataclass(frozen=True, kw_only=True)
class SpatialRecipe:
    """Everything that decides what spatial distillation makes of a student."""

    data: DataRecipe = field(default_factory=DataRecipe)
    """Data set and clips."""
    student: VideoConfig = field(default_factory=CompositeConfig)
    """Size and shape of the student."""
    foreground: tuple[str, ...] = ()
    """Label classes painted by a foreground branch, where there is no teacher; with one, the teacher's are."""
    task: SpatialConfig = field(default_factory=SpatialConfig)
    """Distillation terms, losses, discriminators and rollouts."""
    alone: ObjectiveConfig | None = None
    """vid2vid's losses where there is no teacher to take their place: then they count instead of the task's objective.
    None keeps that."""
    helpers: HelperRecipe = field(default_factory=HelperRecipe)
    """Perceptual network and reference flow."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """How long, how fast, how often to look."""
    device: DeviceConfig = field(default_factory=DeviceConfig)
    """Where and in what precision."""


@dataclass(frozen=True, kw_only=True)
class TemporalRecipe:
    """Everything that decides what temporal distillation makes of a student."""

    data: DataRecipe = field(default_factory=DataRecipe)
    """Data set and clips."""
    task: TemporalConfig = field(default_factory=TemporalConfig)
    """Distillation terms, gaps, losses, discriminators and rollouts."""
    alone: ObjectiveConfig | None = None
    """vid2vid's losses where there is no teacher to take their place: then they count instead of the task's objective.
    None keeps that."""
    helpers: HelperRecipe = field(default_factory=HelperRecipe)
    """Perceptual network and reference flow."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """How long, how fast, how often to look."""
    device: DeviceConfig = field(default_factory=DeviceConfig)
    """Where and in what precision."""


def spatial(
    student: VideoConfig, data: DataRecipe, helpers: HelperRecipe, objective: ObjectiveConfig, train: TrainConfig
) -> SpatialRecipe:
    """The published spatial stage on the data, losses and schedule of a teacher's recipe."""
    return SpatialRecipe(
        data=data,
        student=student,
        task=SpatialConfig(objective=objective, rollout=RolloutConfig(chunk_frames=2)),
        helpers=helpers,
        train=train,
    )


def temporal(data: DataRecipe, helpers: HelperRecipe, objective: ObjectiveConfig, train: TrainConfig) -> TemporalRecipe:
    """The published temporal stage, with weights that mean what they say."""
    return TemporalRecipe(
        data=replace(data, sampling=replace(data.sampling, num_frames=17, grow_every=0, max_step=1)),
        task=TemporalConfig(
            weights=DistillWeights(kd_reconstruction=4.0, kd_perceptual=4.0, kd_temporal=1.0),
            gap=GapConfig(smallest=2, largest=6),
            temporal_features="both" if objective.uses_temporal_discriminator else "perceptual",
            objective=objective,
            rollout=RolloutConfig(chunk_frames=2),
        ),
        helpers=helpers,
        train=train,
    )


def _taught(objective: ObjectiveConfig) -> ObjectiveConfig:
    """The objective beside a teacher: its frames stand in for the perceptual and temporal judgement of the truth.

    In minutes that is both better and faster: a student's step costs little, the networks that judge it cost most. A
    light image discriminator stays, for contrast.
    """
    lighter = {"gan": 0.1, "feature_matching": 1.0, "reconstruction": 5.0}
    none = dict.fromkeys(("perceptual", "temporal_gan", "temporal_feature_matching"), 0.0)
    return replace(objective, weights=replace(objective.weights, **lighter, **none), supervise_hallucinated=False)


def spatial_demo(
    student: VideoConfig, data: DataRecipe, helpers: HelperRecipe, objective: ObjectiveConfig, train: TrainConfig
) -> SpatialRecipe:
    """The spatial stage in minutes on a CPU: the teacher in place of most of what judges the truth, longer chunks.

    All frames of a clip but six may lie in the lead-in, so that the student learns where its own rollout leads.
    """
    alone, objective = objective, _taught(objective)
    return replace(
        spatial(student, data, helpers, objective, replace(train, max_minutes=3.0)),
        task=SpatialConfig(
            weights=DistillWeights(kd_reconstruction=5.0, kd_perceptual=6.0),
            lead_in=max(data.sampling.num_frames - 8, 0),
            objective=objective,
            rollout=DEMO_ROLLOUT,
        ),
        alone=alone,
    )


def temporal_demo(
    data: DataRecipe,
    helpers: HelperRecipe,
    objective: ObjectiveConfig,
    train: TrainConfig,
    num_frames: int | None = None,
) -> TemporalRecipe:
    """The temporal stage in minutes on a CPU, for a stream with gap 4.

    Flow over a gap is several times larger than between neighbours, so its term weighs less; the student is nearly
    there, so it learns at half the rate.
    """
    alone = replace(objective, weights=replace(objective.weights, flow=1.0))
    objective = _taught(alone)
    # Sequences of faces and poses are often short.
    num_frames = num_frames or (29 if data.folder.condition == "labels" else 17)
    lead_in = 3 if num_frames > 17 else 1
    return TemporalRecipe(
        data=replace(data, sampling=replace(data.sampling, num_frames=num_frames)),
        task=TemporalConfig(
            weights=DistillWeights(kd_reconstruction=5.0, kd_perceptual=6.0, kd_contrast=8.0, kd_temporal=0.0),
            gap=GapConfig(smallest=3, largest=4),
            lead_in=lead_in,
            deployed_gap=4,
            objective=objective,
            rollout=DEMO_ROLLOUT,
        ),
        alone=alone,
        helpers=helpers,
        train=replace(train, max_minutes=3.0, optim=replace(train.optim, lr=train.optim.lr / 2)),
    )
