"""Ways to train a teacher, by name."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from fastv2v.data.face import TYPICAL, FaceConfig
from fastv2v.data.folder import FolderConfig
from fastv2v.data.sampling import SamplingConfig
from fastv2v.data.transforms import GeometryConfig
from fastv2v.device import DeviceConfig
from fastv2v.errors import ConfigError
from fastv2v.losses.objective import LossWeights, ObjectiveConfig, face_discriminator_like
from fastv2v.losses.rollout import RolloutConfig
from fastv2v.nn.composite import CompositeConfig
from fastv2v.nn.discriminator import DiscriminatorConfig
from fastv2v.nn.features import FeatureConfig
from fastv2v.nn.generators import ImageConfig
from fastv2v.nn.pyramid import PyramidConfig
from fastv2v.nn.single_image import SingleImageConfig
from fastv2v.nn.spade import ModulationConfig, SpadeConfig
from fastv2v.nn.spade_image import SpadeImageConfig, StyleConfig
from fastv2v.optim import OptimConfig
from fastv2v.recipe import UNSET_ROOT, DataRecipe, HelperRecipe
from fastv2v.train import TrainConfig
from teachers.task import TeacherTaskConfig


@dataclass(frozen=True, kw_only=True)
class TeacherRecipe:
    """Everything that decides what a teacher becomes."""

    data: DataRecipe = field(default_factory=DataRecipe)
    """Data set and clips."""
    generator: CompositeConfig | SpadeConfig = field(default_factory=CompositeConfig)
    """Size and shape of the generator."""
    foreground: tuple[str, ...] = ()
    """Label classes painted by the foreground branch, by name or id; none leaves the branch out."""
    features: FeatureConfig = field(default_factory=FeatureConfig)
    """Instance features, by which the look of each object can be chosen; none by default."""
    task: TeacherTaskConfig = field(default_factory=TeacherTaskConfig)
    """Losses, discriminators and rollouts."""
    helpers: HelperRecipe = field(default_factory=HelperRecipe)
    """Perceptual network and reference flow."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """How long, how fast, how often to look."""
    device: DeviceConfig = field(default_factory=DeviceConfig)
    """Where and in what precision."""

    @property
    def composite(self) -> CompositeConfig:
        """The generator, where only vid2vid's own will do.

        Raises:
            ConfigError: if it is of another kind.
        """
        if not isinstance(self.generator, CompositeConfig):
            raise ConfigError(f"this needs a recipe with a composite generator, not a {type(self.generator).__name__}")
        return self.generator


@dataclass(frozen=True, kw_only=True)
class FirstRecipe:
    """Everything that decides what a single-image generator becomes."""

    data: DataRecipe = field(default_factory=DataRecipe)
    """Data set and clips."""
    generator: ImageConfig = field(default_factory=SingleImageConfig)
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
        if self.generator.feature_channels:
            raise ConfigError("generators with features are imported, not trained: set feature_channels to 0")
        if moving:
            raise ConfigError(f"a single image does not move: set the weight of {', '.join(moving)} to 0")


EPOCH = 2975
"""Clips of vid2vid's street data set, whose schedules count in epochs of it; ours count in steps."""


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
            sampling=SamplingConfig(num_frames=8, grow_every=5 * EPOCH),
            num_workers=4,
        ),
        foreground=("car",),
        task=TeacherTaskConfig(
            objective=ObjectiveConfig(temporal_scales=2),
            rollout=RolloutConfig(chunk_frames=2, start_from_nothing=0.1, start_from_one=0.1),
        ),
        train=TrainConfig(steps=20 * EPOCH, checkpoint_every=1000, sample_every=1000, eval_every=1000),
    )


def street_1024() -> TeacherRecipe:
    """The second scale, 1024x512: give --init a run of the recipe street; the coarse scale rests half of the time."""
    return _finer(street(), 1024, lr=1e-4, growth=2, fixed=10, epochs=20)


def street_2048() -> TeacherRecipe:
    """The third scale, 2048x1024: give --init a run of the recipe street-1024."""
    return _finer(street_1024(), 2048, lr=5e-5, growth=1, fixed=5, epochs=10)


def _finer(base: TeacherRecipe, load_size: int, *, lr: float, growth: int, fixed: int, epochs: int) -> TeacherRecipe:
    """The same task at twice the size with one scale more, in vid2vid's schedule: lengths in epochs."""
    objective = base.task.objective
    judges = {
        name: replace(getattr(objective, name), num_scales=getattr(objective, name).num_scales + 1)
        for name in ("image_discriminator", "temporal_discriminator")
    }
    folder = base.data.folder
    # Flow counts in pixels of the finest scale: vid2vid halves its weight with every doubling.
    weights = replace(objective.weights, flow=objective.weights.flow / 2)
    return replace(
        base,
        data=replace(
            base.data,
            folder=replace(folder, geometry=replace(folder.geometry, load_size=load_size)),
            sampling=replace(base.data.sampling, num_frames=6, grow_every=growth * EPOCH),
        ),
        generator=replace(base.composite, num_scales=base.composite.num_scales + 1),
        task=replace(
            base.task,
            objective=replace(objective, weights=weights, **judges),
            rollout=replace(base.task.rollout, chunk_frames=1),
            fixed_coarse_steps=fixed * EPOCH,
        ),
        train=replace(base.train, steps=epochs * EPOCH, optim=OptimConfig(lr=lr)),
    )


def street_one_gpu() -> TeacherRecipe:
    """The student edition of vid2vid for one small GPU: 256x128, two halvings, one patch scale."""
    base = street()
    judge = DiscriminatorConfig(num_scales=1)
    folder = base.data.folder
    return replace(
        base,
        data=replace(base.data, folder=replace(folder, geometry=replace(folder.geometry, load_size=256))),
        generator=CompositeConfig(num_downsamples=2),
        task=replace(
            base.task,
            objective=replace(base.task.objective, image_discriminator=judge, temporal_discriminator=judge),
            rollout=replace(base.task.rollout, chunk_frames=6),
        ),
    )


def face() -> TeacherRecipe:
    """vid2vid's face recipe at 512x512: landmarks drawn as curves, distance maps, edges of the background."""
    judge = DiscriminatorConfig(num_scales=3)
    return TeacherRecipe(
        data=DataRecipe(
            folder=FolderConfig(
                root=UNSET_ROOT,
                condition="face",
                missing="skip",
                geometry=GeometryConfig(mode="scaleWidth", load_size=512, interpolation="area"),
            ),
            sampling=SamplingConfig(num_frames=14, grow_every=3520),
            num_workers=4,
        ),
        task=TeacherTaskConfig(
            objective=ObjectiveConfig(temporal_scales=2, image_discriminator=judge, temporal_discriminator=judge),
            rollout=RolloutConfig(chunk_frames=2, start_from_nothing=0.1, start_from_one=0.1),
        ),
        train=TrainConfig(steps=28_160, checkpoint_every=1000, sample_every=1000, eval_every=1000),
    )


def face_one_gpu() -> TeacherRecipe:
    """Faces at 256x256 and half the width, for one GPU."""
    base = face()
    judge = DiscriminatorConfig(num_scales=2)
    folder = base.data.folder
    return replace(
        base,
        data=replace(base.data, folder=replace(folder, geometry=replace(folder.geometry, load_size=256))),
        generator=CompositeConfig(width=64),
        task=replace(
            base.task,
            objective=replace(base.task.objective, image_discriminator=judge, temporal_discriminator=judge),
            rollout=replace(base.task.rollout, chunk_frames=6),
        ),
    )


def pose() -> TeacherRecipe:
    """vid2vid's pose recipe at its first scale, 256 pixels high: DensePose and OpenPose, videos from nothing."""
    return TeacherRecipe(
        data=DataRecipe(
            folder=FolderConfig(
                root=UNSET_ROOT,
                condition="pose",
                missing="skip",
                geometry=GeometryConfig(
                    mode="randomScaleHeight_and_scaledCrop", load_size=384, fine_size=256, interpolation="area"
                ),
            ),
            sampling=SamplingConfig(num_frames=14, max_step=4, flip=False, grow_every=15_000),
            num_workers=4,
        ),
        task=TeacherTaskConfig(
            objective=ObjectiveConfig(weights=LossWeights(occlusion=1.0), temporal_scales=2),
            rollout=RolloutConfig(chunk_frames=6, start_from_nothing=0.8, start_from_one=0.2),
        ),
        train=TrainConfig(steps=30_000, checkpoint_every=1000, sample_every=1000, eval_every=1000),
    )


def pose_512() -> TeacherRecipe:
    """The second scale of poses, with a discriminator of faces: give --init a run of the recipe pose."""
    return _taller(pose(), 768, 512, lr=1e-4)


def pose_1024() -> TeacherRecipe:
    """The third scale of poses: give --init a run of the recipe pose-512."""
    return _taller(pose_512(), 1536, 1024, lr=5e-5)


def _taller(base: TeacherRecipe, load_size: int, fine_size: int, *, lr: float) -> TeacherRecipe:
    """The pose task at twice the height."""
    finer = _finer(base, load_size, lr=lr, growth=1, fixed=1, epochs=1)
    objective = finer.task.objective
    folder = finer.data.folder
    return replace(
        finer,
        data=replace(
            finer.data,
            folder=replace(folder, geometry=replace(folder.geometry, fine_size=fine_size)),
            sampling=base.data.sampling,
        ),
        task=replace(
            finer.task,
            objective=replace(objective, face_discriminator=face_discriminator_like(objective.image_discriminator)),
            fixed_coarse_steps=9_000,
        ),
        train=replace(finer.train, steps=base.train.steps),
    )


def _minutes() -> TeacherRecipe:
    """What all recipes for minutes on a CPU share."""
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


def demo() -> TeacherRecipe:
    """A small teacher that learns one place in minutes on a CPU, at 256x128.

    Its decoders see the layout at full size (``skips``), the hallucinated frame is judged as well, perceptual and
    adversarial terms weigh more than elsewhere at this size, and most clips begin from a history that is worn or of the
    teacher's own making: without, all that minutes teach is to smear the first frame along the flow.
    """
    base = _minutes()
    objective = base.task.objective
    weights = replace(objective.weights, gan=0.25, feature_matching=2.5, perceptual=2.5)
    return replace(
        base,
        data=replace(base.data, sampling=replace(base.data.sampling, num_frames=18)),
        generator=replace(base.composite, skips=True),
        task=replace(
            base.task,
            objective=replace(objective, weights=weights, supervise_hallucinated=True),
            lead_in=10,
            rollout=replace(base.task.rollout, start_from_nothing=0.1, start_from_one=0.2, start_from_worn=0.2),
        ),
    )


def face_demo() -> TeacherRecipe:
    """A talking head from its landmarks, in minutes on a CPU, at 192x192: the demo's recipe on frames cut out already.

    Nothing of the real frames is given away (``background="none"``), so that another face may drive it. One training
    frame, bent to the landmarks of each frame, is shown instead (``reference``): minutes suffice to learn what differs
    from it, and not to learn a face. Nothing is mirrored, for neither are people.
    """
    base = demo()
    folder = FolderConfig(
        root=UNSET_ROOT,
        condition="face",
        face=FaceConfig(background="none", crop="none", reference=TYPICAL),
        missing="hold",
        test_tail=16,
        geometry=GeometryConfig(mode="exact", size=(192, 192), interpolation="area"),
    )
    return replace(
        base,
        data=replace(base.data, folder=folder, sampling=replace(base.data.sampling, flip=False)),
    )


def first_of(teacher: TeacherRecipe, generator: ImageConfig) -> FirstRecipe:
    """A single-image generator on the data, losses and schedule of a teacher: pairs of frames, judged one by one."""
    objective = teacher.task.objective
    pairs = replace(teacher.data.sampling, num_frames=2, given_frames=1, grow_every=0, max_step=1)
    still = replace(objective.weights, warp=0.0, temporal_gan=0.0, temporal_feature_matching=0.0)
    # No first frame has guidance.
    return FirstRecipe(
        data=replace(teacher.data, sampling=pairs, folder=replace(teacher.data.folder, guidance_levels=0)),
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


def first_street_2048() -> FirstRecipe:
    """A global generator and a local enhancer on top, for the street recipe at 2048x1024."""
    return first_of(street_2048(), SingleImageConfig(width=32, num_downsamples=4, num_enhancers=1, norm="instance"))


def first_face() -> FirstRecipe:
    """A single-image generator of faces at 512x512, from their curves and distance maps."""
    return first_of(face(), SingleImageConfig(width=64, num_downsamples=3, norm="instance"))


def first_pose() -> FirstRecipe:
    """A single-image generator of poses, 256 pixels high."""
    return first_of(pose(), SingleImageConfig(width=64, num_downsamples=3, norm="instance"))


def first_world() -> FirstRecipe:
    """A SPADE generator of first frames for the world recipe at 1024x512, with a random style.

    Its two patch networks and the three sizes of the pyramid discriminator count alike, and together as one.
    """
    recipe = first_of(world(), SpadeImageConfig(style=StyleConfig(channels=256), coordinates=True))
    objective = recipe.task.objective
    judged = replace(
        objective,
        weights=replace(objective.weights, gan=0.2, pyramid_gan=0.2),
        pyramid_discriminator=PyramidConfig(width=128),
    )
    return replace(recipe, task=replace(recipe.task, objective=judged))


def first_world_small() -> FirstRecipe:
    """A small SPADE generator of first frames for world-small."""
    small = SpadeImageConfig(
        finest_width=8,
        max_width=64,
        doublings=4,
        label=ModulationConfig(hidden=16),
        norm="instance",
        spectral=False,
    )
    recipe = first_of(world_small(), small)
    return replace(recipe, train=replace(recipe.train, max_minutes=3.0))


FIRST_PRESETS = {
    "street": first_street,
    "street-2048": first_street_2048,
    "face": first_face,
    "pose": first_pose,
    "demo": first_demo,
    "world": first_world,
    "world-small": first_world_small,
}
"""Presets of single-image generators by the name the command line knows them by."""


def street_small() -> TeacherRecipe:
    """Street with all its classes and foreground on a CPU, at 128x64: the coarse scale of street-small-2."""
    base = _minutes()
    return replace(
        base,
        data=replace(
            base.data,
            folder=replace(
                base.data.folder,
                classes="cityscapes",
                use_instances=True,
                geometry=GeometryConfig(mode="exact", size=(64, 128), interpolation="area"),
            ),
        ),
        foreground=MOVABLE,
        train=replace(base.train, max_minutes=None, steps=400, eval_every=100),
    )


def street_small_2() -> TeacherRecipe:
    """The second scale on a CPU, 256x128: give --init a run of the recipe street-small."""
    base = street_small()
    folder, objective = base.data.folder, base.task.objective
    judge = replace(objective.image_discriminator, num_scales=objective.image_discriminator.num_scales + 1)
    weights = replace(objective.weights, flow=objective.weights.flow / 2)
    objective = replace(objective, weights=weights, image_discriminator=judge, temporal_discriminator=judge)
    return replace(
        base,
        data=replace(
            base.data,
            folder=replace(folder, geometry=replace(folder.geometry, size=(128, 256))),
            sampling=replace(base.data.sampling, num_frames=8),
            batch_size=1,
        ),
        generator=replace(base.composite, num_scales=2, num_local_blocks=2),
        task=replace(base.task, objective=objective, fixed_coarse_steps=100),
        train=replace(base.train, steps=300),
    )


def face_small() -> TeacherRecipe:
    """Faces in minutes on a CPU, at 128x128."""
    return _small_maps(
        FolderConfig(
            root=UNSET_ROOT,
            condition="face",
            missing="hold",
            test_tail=6,
            geometry=GeometryConfig(mode="exact", size=(128, 128), interpolation="area"),
        )
    )


def pose_small() -> TeacherRecipe:
    """Poses in minutes on a CPU, at 128x192 (width, height), videos from nothing as well."""
    recipe = _small_maps(
        FolderConfig(
            root=UNSET_ROOT,
            condition="pose",
            missing="hold",
            test_tail=6,
            geometry=GeometryConfig(mode="scaleHeight", load_size=192, interpolation="area"),
        )
    )
    objective = recipe.task.objective
    face = DiscriminatorConfig(width=16, num_scales=1, norm="instance")
    weights = replace(objective.weights, face_gan=0.2, face_feature_matching=2.0)
    return replace(
        recipe,
        data=replace(recipe.data, sampling=replace(recipe.data.sampling, flip=False), batch_size=1),
        task=replace(recipe.task, objective=replace(objective, face_discriminator=face, weights=weights)),
    )


def _small_maps(folder: FolderConfig) -> TeacherRecipe:
    """The demo's recipe on other conditions: few frames, so that clips are short.

    Landmarks say nothing about what stands still around them, so the blend is drawn to the warped frame where the
    reference flow can be trusted (vid2vid's term for poses): without it the background fades within a few frames.
    """
    base = _minutes()
    objective = base.task.objective
    weights = replace(objective.weights, occlusion=1.0)
    return replace(
        base,
        data=replace(base.data, folder=folder, sampling=SamplingConfig(num_frames=11), eval_frames=6),
        task=replace(base.task, objective=replace(objective, weights=weights)),
        train=replace(base.train, max_minutes=None, steps=300, eval_every=100),
    )


def world() -> TeacherRecipe:
    """World-consistent vid2vid at 1024x512: 35 Cityscapes classes, and what the video has painted of the world.

    Lengths are in epochs of the street data set, as published. One frame a chunk, so that every network is updated
    after each; clips start at 4 frames. Adversarial terms count half: ours are summed over two scales, not averaged.
    """
    judge = DiscriminatorConfig(num_scales=2, norm="instance")
    weights = LossWeights(
        gan=0.5,
        flow_warp=0.0,
        warp=0.0,
        own_warp=10.0,
        unseen=10.0,
        guidance=20.0,
        temporal_gan=0.0,
        temporal_feature_matching=0.0,
    )
    return TeacherRecipe(
        data=DataRecipe(
            folder=FolderConfig(
                root=UNSET_ROOT,
                classes="cityscapes",
                guidance_levels=3,
                geometry=GeometryConfig(mode="exact", size=(512, 1024), interpolation="area"),
            ),
            sampling=SamplingConfig(num_frames=4, grow_every=20 * EPOCH, max_frames=30),
            num_workers=4,
        ),
        generator=SpadeConfig(),
        task=TeacherTaskConfig(
            objective=ObjectiveConfig(weights=weights, image_discriminator=judge, temporal_scales=0, gan="hinge"),
            rollout=RolloutConfig(chunk_frames=1, start_from_nothing=0.5, start_from_one=0.25),
        ),
        train=TrainConfig(
            steps=100 * EPOCH,
            optim=OptimConfig(lr=1e-4, betas=(0.0, 0.999), decay_fraction=0.6),
            discriminator_lr_multiplier=4.0,
            checkpoint_every=1000,
            sample_every=1000,
            eval_every=1000,
        ),
    )


def world_plain() -> TeacherRecipe:
    """The same SPADE teacher without guidance: what world must beat."""
    return _unguided(world())


def world_small() -> TeacherRecipe:
    """World-consistent vid2vid in minutes on a CPU, at 128x64, on the procedural world.

    Drawn and warped pixels are blended, modulations are narrow, and clips begin deep in rollouts of the teacher's own,
    whose frames have painted the world by then.
    """
    base = _minutes()
    objective = base.task.objective
    weights = replace(
        objective.weights, flow_warp=5.0, own_warp=5.0, guidance=5.0, temporal_gan=0.0, temporal_feature_matching=0.0
    )
    return replace(
        base,
        data=replace(
            base.data,
            folder=replace(
                base.data.folder,
                guidance_levels=3,
                geometry=GeometryConfig(mode="exact", size=(64, 128), interpolation="area"),
            ),
            sampling=SamplingConfig(num_frames=12),
            batch_size=1,
        ),
        generator=SpadeConfig(
            base_width=8,
            max_width=64,
            frame_downsamples=3,
            bottleneck_blocks=2,
            label=ModulationConfig(kernel=1),
            guidance=ModulationConfig(hidden=8),
            combine="blend",
            flow_width=8,
            flow_downsamples=3,
            flow_blocks=2,
            flow_scale=20.0,
            spectral=False,
        ),
        task=replace(
            base.task,
            objective=replace(objective, weights=weights, temporal_scales=0),
            lead_in=6,
            rollout=RolloutConfig(chunk_frames=2, backprop_frames=2, start_from_nothing=0.15, start_from_one=0.5),
        ),
        train=replace(base.train, max_minutes=8.0),
        device=DeviceConfig(precision="fp32"),  # convolutions this narrow are slower in bf16 on CPUs
    )


def world_small_plain() -> TeacherRecipe:
    """World-small without guidance, all else alike."""
    return _unguided(world_small())


def _unguided(base: TeacherRecipe) -> TeacherRecipe:
    """The same recipe without guidance."""
    return replace(base, data=replace(base.data, folder=replace(base.data.folder, guidance_levels=0)))


MOVABLE = ("person", "rider", "car", "truck", "bus", "caravan", "trailer", "train", "motorcycle", "bicycle")
"""Cityscapes' classes 24 to 33: what moves by itself."""

PRESETS = {
    "street": street,
    "street-1024": street_1024,
    "street-2048": street_2048,
    "street-one-gpu": street_one_gpu,
    "face": face,
    "face-one-gpu": face_one_gpu,
    "pose": pose,
    "pose-512": pose_512,
    "pose-1024": pose_1024,
    "demo": demo,
    "street-small": street_small,
    "street-small-2": street_small_2,
    "face-small": face_small,
    "face-demo": face_demo,
    "pose-small": pose_small,
    "world": world,
    "world-plain": world_plain,
    "world-small": world_small,
    "world-small-plain": world_small_plain,
}
"""Presets by the name the command line knows them by."""

SMALL = frozenset(
    {
        "demo",
        "street-small",
        "street-small-2",
        "face-small",
        "face-demo",
        "pose-small",
        "world-small",
        "world-small-plain",
    }
)
"""Presets that train in minutes on a CPU."""
