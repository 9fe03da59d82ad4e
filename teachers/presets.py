"""Ways to train a teacher, by name."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from fastv2v.data.folder import FolderConfig
from fastv2v.data.sampling import SamplingConfig
from fastv2v.data.transforms import GeometryConfig
from fastv2v.device import DeviceConfig
from fastv2v.errors import ConfigError
from fastv2v.losses.objective import LossWeights, ObjectiveConfig
from fastv2v.losses.rollout import RolloutConfig
from fastv2v.nn.composite import CompositeConfig
from fastv2v.nn.discriminator import DiscriminatorConfig
from fastv2v.nn.single_image import SingleImageConfig
from fastv2v.optim import OptimConfig
from fastv2v.recipe import UNSET_ROOT, DataRecipe, HelperRecipe
from fastv2v.train import TrainConfig
from teachers.task import TeacherTaskConfig


@dataclass(frozen=True, kw_only=True)
class TeacherRecipe:
    """Everything that decides what a teacher becomes."""

    data: DataRecipe = field(default_factory=DataRecipe)
    """Data set and clips."""
    generator: CompositeConfig = field(default_factory=CompositeConfig)
    """Size and shape of the generator."""
    foreground: tuple[str, ...] = ()
    """Label classes painted by the foreground branch, by name or id; none leaves the branch out."""
    task: TeacherTaskConfig = field(default_factory=TeacherTaskConfig)
    """Losses, discriminators and rollouts."""
    helpers: HelperRecipe = field(default_factory=HelperRecipe)
    """Perceptual network and reference flow."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """How long, how fast, how often to look."""
    device: DeviceConfig = field(default_factory=DeviceConfig)
    """Where and in what precision."""


@dataclass(frozen=True, kw_only=True)
class FirstRecipe:
    """Everything that decides what a single-image generator becomes."""

    data: DataRecipe = field(default_factory=DataRecipe)
    """Data set and clips."""
    generator: SingleImageConfig = field(default_factory=SingleImageConfig)
    """Size and shape of the generator."""
    task: TeacherTaskConfig = field(default_factory=TeacherTaskConfig)
    """Losses and discriminators; those of motion must be off."""
    helpers: HelperRecipe = field(default_factory=HelperRecipe)
    """Perceptual network."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """How long, how fast, how often to look."""
    device: DeviceConfig = field(default_factory=DeviceConfig)
    """Where and in what precision."""

    def __post_init__(self) -> None:
        weights = self.task.objective.weights
        moving = [n for n in ("warp", "temporal_gan", "temporal_feature_matching") if getattr(weights, n) > 0]
        if moving:
            raise ConfigError(f"a single image does not move: set the weight of {', '.join(moving)} to 0")


def street() -> TeacherRecipe:
    """vid2vid's street recipe at 512x256: 35 Cityscapes classes with instance borders, cars as foreground."""
    return TeacherRecipe(
        data=DataRecipe(
            folder=FolderConfig(
                root=UNSET_ROOT,
                classes="cityscapes",
                use_instances=True,
                geometry=GeometryConfig(mode="scaleWidth", load_size=512, interpolation="area"),
            ),
            sampling=SamplingConfig(num_frames=8),
            num_workers=4,
        ),
        foreground=("car",),
        task=TeacherTaskConfig(rollout=RolloutConfig(chunk_frames=2, start_from_nothing=0.1, start_from_one=0.1)),
        train=TrainConfig(steps=60_000, checkpoint_every=1000, sample_every=1000, eval_every=1000),
    )


def demo() -> TeacherRecipe:
    """A small teacher that learns one place in minutes on a CPU, at 256x128."""
    discriminator = DiscriminatorConfig(width=16, num_scales=2, norm="instance")
    weights = LossWeights(
        gan=0.1,
        feature_matching=1.0,
        perceptual=0.5,
        reconstruction=10.0,
        flow=4.0,
        flow_warp=10.0,
        warp=0.0,
        temporal_gan=0.1,
        temporal_feature_matching=1.0,
    )
    objective = ObjectiveConfig(
        weights=weights,
        image_discriminator=discriminator,
        temporal_discriminator=discriminator,
        supervise_hallucinated=False,
        judged_frames=1,
    )
    base = street()
    return replace(
        base,
        data=DataRecipe(
            folder=FolderConfig(
                root=UNSET_ROOT,
                test_tail=16,
                geometry=GeometryConfig(mode="exact", size=(128, 256), interpolation="area"),
            ),
            sampling=SamplingConfig(num_frames=14),
            batch_size=2,
        ),
        generator=CompositeConfig(width=16, num_downsamples=3, num_blocks=4, edge_kernel=3, norm="batch"),
        foreground=(),
        task=TeacherTaskConfig(
            objective=objective,
            rollout=RolloutConfig(chunk_frames=3, backprop_frames=3, start_from_nothing=0.15, start_from_one=0.5),
        ),
        helpers=HelperRecipe(flow="fast"),
        train=TrainConfig(
            steps=100_000,
            max_minutes=9.0,
            optim=OptimConfig(lr=1e-3),
            discriminator_lr_multiplier=0.4,
            ema_decay=0.995,
            log_every=10,
            sample_every=100,
            eval_every=25,
            checkpoint_every=10,
        ),
    )


def first_of(teacher: TeacherRecipe, generator: SingleImageConfig) -> FirstRecipe:
    """A single-image generator on the data, losses and schedule of a teacher: pairs of frames, judged one by one."""
    objective = teacher.task.objective
    still = replace(objective.weights, warp=0.0, temporal_gan=0.0, temporal_feature_matching=0.0)
    return FirstRecipe(
        data=replace(teacher.data, sampling=replace(teacher.data.sampling, num_frames=2, given_frames=1)),
        generator=generator,
        task=TeacherTaskConfig(
            objective=replace(objective, weights=still), rollout=RolloutConfig(start_from_nothing=0, start_from_one=1)
        ),
        helpers=teacher.helpers,
        train=teacher.train,
        device=teacher.device,
    )


def first_street() -> FirstRecipe:
    """pix2pixHD's global generator on the street recipe's data at 512x256."""
    return first_of(street(), SingleImageConfig(width=64, num_downsamples=3, norm="instance"))


def first_demo() -> FirstRecipe:
    """A small single-image generator that learns one place in minutes on a CPU."""
    small = SingleImageConfig(width=16, num_downsamples=3, num_blocks=3, edge_kernel=3, norm="instance")
    return first_of(demo(), small)


FIRST_PRESETS = {"street": first_street, "demo": first_demo}
"""Presets of single-image generators by the name the command line knows them by."""

PRESETS = {"street": street, "demo": demo}
"""Presets by the name the command line knows them by."""
