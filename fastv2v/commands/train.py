"""``train-teacher``, ``train-skd`` and ``train-tkd``: three tasks for one training loop."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import torch
import tyro
from torch import nn

from distill import presets as distill_presets
from distill.cache import TaughtFrames
from distill.presets import SpatialRecipe, TemporalRecipe
from distill.spatial import SpatialTask
from distill.teacher import freeze
from distill.temporal import TemporalConfig, TemporalTask
from distill.terms import DistillWeights
from fastv2v.architecture import (
    Architecture,
    Generator,
    Stage,
    Trained,
    architecture_dict,
    load_trained,
    video_generator,
)
from fastv2v.checkpoint import load_weights, read_state, weights_file
from fastv2v.commands.arguments import parse_preset
from fastv2v.commands.initial import InitialWeights, adapted, load_initial, read_initial
from fastv2v.commands.parts import (
    build_objective,
    check_condition,
    check_flow,
    check_heads,
    check_held_out,
    check_size,
    check_stage,
    continue_discriminators,
    held_out_clips,
    num_parameters,
    open_train,
    palette_of,
)
from fastv2v.commands.synthesize import load_first
from fastv2v.config import to_dict
from fastv2v.contracts import Task
from fastv2v.data.conditions import ConditionSpec
from fastv2v.data.folder import VideoFolder
from fastv2v.data.loader import ClipLoader, read_sequence
from fastv2v.device import Device, open_device
from fastv2v.errors import ConfigError
from fastv2v.log import BarProgress, SilentProgress, clock
from fastv2v.losses.objective import temporal_discriminator
from fastv2v.nn.features import FeatureConfig, FeatureGenerator
from fastv2v.nn.generators import ImageConfig, ImageGenerator, VideoConfig, VideoGenerator
from fastv2v.nn.video_features import VideoFeatures, VideoNetwork
from fastv2v.recipe import UNSET_ROOT, DataRecipe
from fastv2v.run import open_run
from fastv2v.seed import derive_seed, seed_everything
from fastv2v.train import FitResult, TrainConfig, fit
from interpolate.keyframes import adaptive_keyframes, condition_change
from students import presets as student_presets
from students.inherit import inherit_weights
from students.schedule import GapConfig, draw_gap, gap_probabilities
from teachers import presets as teacher_presets
from teachers.presets import FirstRecipe, TeacherRecipe
from teachers.task import TeacherTask

_LOG = logging.getLogger(__name__)

MEASURED_SEQUENCES, MEASURED_FRAMES = 8, 128
"""How much of a data set is looked at where keyframe gaps are measured."""

Recipe = TypeVar("Recipe", SpatialRecipe, TemporalRecipe)


@dataclass(frozen=True, kw_only=True)
class TrainTeacher:
    """Train a full-time teacher."""

    data: Path
    """Data set folder (train_A, train_B, ... or the Fast-Vid2Vid layout)."""
    run: Path
    """Run folder: config, curves, samples, checkpoints. The same command again goes on where it stopped."""
    init: tuple[Path, ...] = ()
    """Weights to start from: a run of train-teacher with as many scales, or with one fewer to grow it; or folders of
    import-weights, whose shapes then replace the recipe's."""
    first_frames: Path | None = None
    """A run of train-first, or an imported network: clips that would begin from nothing begin with frames of its
    drawing."""
    recipe: TeacherRecipe = field(default_factory=TeacherRecipe)
    """What the preset says, open to change."""
    overwrite: bool = False
    """Delete what the run folder holds and start anew."""
    quiet: bool = False
    """No progress bar."""


@dataclass(frozen=True, kw_only=True)
class TrainFirst:
    """Train a generator of single images, which draws the first frames of a video from their conditions."""

    data: Path
    """Data set folder (train_A, train_B, ... or the Fast-Vid2Vid layout)."""
    run: Path
    """Run folder: config, curves, samples, checkpoints. The same command again goes on where it stopped."""
    recipe: FirstRecipe = field(default_factory=FirstRecipe)
    """What the preset says, open to change."""
    overwrite: bool = False
    """Delete what the run folder holds and start anew."""
    quiet: bool = False
    """No progress bar."""


@dataclass(frozen=True, kw_only=True)
class TrainSpatial:
    """Distil a low-resolution student from a teacher, frame by frame."""

    data: Path
    """Data set folder; the one the teacher was trained on."""
    run: Path
    """Run folder of the student."""
    teacher: Path | None = None
    """Run or checkpoint of the teacher. Without one the same student is trained alone: what a distilled student must
    beat."""
    taught: Path | None = None
    """What ``fastv2v precompute`` made of that teacher, read in its place: it then need not run."""
    inherit: Path | None = None
    """Run or checkpoint of a wider generator of the student's kind whose most important channels the student starts
    from: of a wider student, or of the teacher itself where both are composite."""
    recipe: SpatialRecipe = field(default_factory=SpatialRecipe)
    """What the preset says, open to change."""
    overwrite: bool = False
    """Delete what the run folder holds and start anew."""
    quiet: bool = False
    """No progress bar."""


@dataclass(frozen=True, kw_only=True)
class TrainTemporal:
    """Make a spatially distilled student part-time: keyframes only."""

    data: Path
    """Data set folder; the one the teacher was trained on."""
    student: Path
    """Run or checkpoint of the spatially distilled student."""
    run: Path
    """Run folder of the part-time student."""
    teacher: Path | None = None
    """Run or checkpoint of the teacher. Without one the student learns alone."""
    taught: Path | None = None
    """What ``fastv2v precompute`` made of that teacher, read in its place: it then need not run."""
    recipe: TemporalRecipe = field(default_factory=TemporalRecipe)
    """What the preset says, open to change."""
    overwrite: bool = False
    """Delete what the run folder holds and start anew."""
    quiet: bool = False
    """No progress bar."""


def train_teacher(args: TrainTeacher) -> FitResult:
    """Train a teacher as told; resumes a run that is there."""
    recipe = args.recipe
    check_flow(recipe.data, recipe.helpers)
    device = open_device(recipe.device)
    folder, loader = open_train(recipe.data, args.data, device, recipe.train.seed)
    initial = read_initial(args.init)
    if args.first_frames is not None and recipe.task.rollout.start_from_nothing == 0:
        raise ConfigError("--first-frames has nothing to draw: raise --recipe.task.rollout.start-from-nothing above 0")
    if recipe.task.fixed_coarse_steps and not args.init:
        raise ConfigError(
            "fixed_coarse_steps keeps the coarse scales as they are, and without --init they are random; give --init a "
            "run with one scale fewer, or --recipe.task.fixed-coarse-steps 0"
        )
    check_heads(recipe.task.objective, folder.spec)
    recipe = adapted(recipe, initial, folder.spec)
    seed_everything(derive_seed(recipe.train.seed, "weights"))
    architecture = _architecture("teacher", recipe.generator, recipe.foreground, recipe.data, folder, loader)
    architecture = replace(architecture, features=recipe.features)
    teacher = architecture.build()
    check_size(teacher, architecture.size, "the teacher")
    objective = build_objective(recipe.task.objective, folder.spec, recipe.helpers, device)
    initial = _start_encoder(initial, teacher, recipe.features)
    inner = teacher.generator if isinstance(teacher, FeatureGenerator) else teacher
    load_initial(initial, video_generator(inner, "the teacher"), objective, folder)
    first = None
    if args.first_frames is not None:
        first = _first_model(args.first_frames, folder.spec, architecture).to(device.device)
    task = TeacherTask(teacher, folder.spec, objective, recipe.task, architecture.palette, first)
    _LOG.info("teacher: %.2f M weights, %d condition channels", num_parameters(teacher) / 1e6, folder.spec.channels)
    return _fit(args, task, loader, recipe.data, recipe.train, device, architecture)


def _first_model(path: Path, spec: ConditionSpec, architecture: Architecture) -> ImageGenerator:
    """The frozen generator that draws first frames.

    Raises:
        ConfigError: if it is none, or takes other conditions or sizes than the teacher's, or features.
    """
    first = load_first(path, spec)
    if first.config.feature_channels:
        raise ConfigError(f"{path} draws with features, which training has none of; give a run of train-first")
    check_size(first, architecture.size, f"the first-frame generator {path}")
    return first.eval().requires_grad_(False)


def _start_encoder(initial: InitialWeights, teacher: Generator, features: FeatureConfig) -> InitialWeights:
    """Copy the feature encoder of an initial run; what is left is for the generator inside.

    Raises:
        ConfigError: if the initial weights have other instance features than the teacher.
    """
    there = FeatureConfig() if initial.run is None else initial.run.architecture.features
    if (initial.run is not None or initial.generators) and there.channels != features.channels:
        raise ConfigError(
            f"--init has {there.channels} channels of instance features and the recipe {features.channels}; set "
            f"--recipe.features.channels {there.channels}"
        )
    if initial.run is None or not isinstance(teacher, FeatureGenerator):
        return initial
    source = initial.run.model
    if there != features or not isinstance(source, FeatureGenerator):
        raise ConfigError(f"--init has another feature encoder ({there}) than the recipe ({features})")
    teacher.encoder.load_state_dict(source.encoder.state_dict())
    return replace(initial, run=replace(initial.run, model=source.generator))


def train_first(args: TrainFirst) -> FitResult:
    """Train a single-image generator as told; resumes a run that is there."""
    recipe = args.recipe
    check_flow(recipe.data, recipe.helpers)
    device = open_device(recipe.device)
    folder, loader = open_train(recipe.data, args.data, device, recipe.train.seed)
    seed_everything(derive_seed(recipe.train.seed, "weights"))
    architecture = _architecture("first", recipe.generator, (), recipe.data, folder, loader)
    generator = architecture.build()
    check_size(generator, architecture.size, "the generator")
    objective = build_objective(recipe.task.objective, folder.spec, recipe.helpers, device)
    task = TeacherTask(generator, folder.spec, objective, recipe.task, architecture.palette)
    return _fit(args, task, loader, recipe.data, recipe.train, device, architecture)


def train_spatial(args: TrainSpatial) -> FitResult:
    """Distil a student spatially as told; resumes a run that is there."""
    recipe = args.recipe
    check_flow(recipe.data, recipe.helpers)
    device = open_device(recipe.device)
    folder, loader = open_train(recipe.data, args.data, device, recipe.train.seed)
    teacher = _load_teacher(args.teacher, folder)
    if teacher is None:
        recipe = _alone(recipe)
        args = replace(args, recipe=recipe)
    seed_everything(derive_seed(recipe.train.seed, "weights"))
    foreground = recipe.foreground if teacher is None else teacher.architecture.foreground
    architecture = _architecture("spatial", recipe.student, foreground, recipe.data, folder, loader)
    student = architecture.build_video()
    check_size(student, architecture.size, "the student")
    if args.inherit is not None:
        source_run = load_trained(args.inherit)
        check_condition(source_run.architecture, folder, f"the source {args.inherit}")
        inherit_weights(student, source_run.generator)
    objective = build_objective(recipe.task.objective, folder.spec, recipe.helpers, device)
    if teacher is not None:
        continue_discriminators(objective, teacher.checkpoint)
    source = _teacher_source(args, teacher, student, architecture, folder, device)
    task = SpatialTask(student, source, folder.spec, objective, recipe.task)
    _LOG.info("student: %.2f M weights", num_parameters(student) / 1e6)
    return _fit(args, task, loader, recipe.data, recipe.train, device, architecture)


def _load_teacher(path: Path | None, folder: VideoFolder) -> Trained | None:
    """The teacher of a distillation, if there is one.

    Raises:
        ConfigError: if it is no teacher, or one of another condition than the data set's.
    """
    if path is None:
        return None
    teacher = load_trained(path)
    check_stage(teacher, ("teacher",), "the teacher", "a run of train-teacher")
    check_condition(teacher.architecture, folder, f"the teacher {path}")
    _LOG.info("teacher: %.2f M weights", num_parameters(teacher.model) / 1e6)
    return teacher


def _teacher_source(
    args: TrainSpatial | TrainTemporal,
    teacher: Trained | None,
    student: VideoGenerator,
    architecture: Architecture,
    folder: VideoFolder,
    device: Device,
) -> VideoGenerator | TaughtFrames | None:
    """What teaches the student: the teacher itself, or what was precomputed of it.

    Raises:
        ConfigError: if there is no such teacher, or it does not suit the student's data.
        DataError: if precomputed frames are missing or damaged.
    """
    if teacher is None:
        if args.taught is not None:
            raise ConfigError("--taught needs --teacher, the teacher it was made by")
        return None
    if args.taught is None:
        check_size(teacher.generator, architecture.size, "the teacher")
        return teacher.generator.to(device.device)
    taught = TaughtFrames(args.taught, flow=args.recipe.task.weights.kd_flow > 0)
    taught.check(folder, teacher.checkpoint, student.history_length)
    return taught


def _alone(recipe: Recipe) -> Recipe:
    """The recipe of a student without a teacher: no distillation terms, and vid2vid's as they are meant for that."""
    if active := recipe.task.weights.active():
        losses = "" if recipe.alone is None else "; its losses are those of --recipe.alone, not --recipe.task.objective"
        _LOG.warning("no --teacher: the student is trained alone, without %s%s", ", ".join(active), losses)
    objective = recipe.alone or recipe.task.objective
    return replace(recipe, task=replace(recipe.task, weights=DistillWeights.none(), objective=objective))


def train_temporal(args: TrainTemporal) -> FitResult:
    """Distil a student temporally as told; resumes a run that is there."""
    recipe = args.recipe
    check_flow(recipe.data, recipe.helpers)
    device = open_device(recipe.device)
    folder, loader = open_train(recipe.data, args.data, device, recipe.train.seed)
    teacher, student = _load_teacher(args.teacher, folder), load_trained(args.student)
    if teacher is None:
        recipe = _alone(recipe)
        args = replace(args, recipe=recipe)
    check_stage(student, ("spatial", "temporal"), "the student", "a run of train-skd")
    check_condition(student.architecture, folder, f"the student {args.student}")
    seed_everything(derive_seed(recipe.train.seed, "weights"))
    architecture = _architecture(
        "temporal",
        student.generator.config,
        student.architecture.foreground,
        recipe.data,
        folder,
        loader,
    )
    check_size(student.generator, architecture.size, "the student")
    recipe = replace(recipe, task=replace(recipe.task, gap=_measured(recipe.task.gap, folder)))
    args = replace(args, recipe=recipe)
    # Draws one gap for nothing: it refuses clips that even the smallest does not fit into.
    draw_gap(recipe.task.gap, recipe.data.sampling.num_frames, student.generator.history_length, torch.Generator())
    objective = build_objective(recipe.task.objective, folder.spec, recipe.helpers, device)
    continue_discriminators(objective, student.checkpoint)
    source = _teacher_source(args, teacher, student.generator, architecture, folder, device)
    video = _window_network(recipe.task, teacher, device)
    task = TemporalTask(student.generator, source, folder.spec, objective, recipe.task, video=video)
    least = recipe.task.deployed_gap + 1  # the first keyframe is given, the second is scored
    return _fit(args, task, loader, recipe.data, recipe.train, device, architecture, least)


def _measured(gap: GapConfig, folder: VideoFolder) -> GapConfig:
    """The gaps with probabilities measured on the first training sequences, if they shall be those of deployment."""
    if not gap.adaptive:
        return gap
    keyframes = []
    for i, sequence in enumerate(folder.sequences[:MEASURED_SEQUENCES]):
        clip = read_sequence(folder, i, 0, min(len(sequence), MEASURED_FRAMES))
        maps = clip.maps if clip.labels is None else clip.labels
        assert maps is not None  # one of the two is the condition
        change = [condition_change(a, b) for a, b in pairwise(maps[0].numpy())]
        keyframes.append(adaptive_keyframes(change, max_gap=gap.largest))
    shares = gap_probabilities(keyframes)
    _LOG.info("keyframe gaps 1, 2, ... in shares of %s", ", ".join(f"{share:.2f}" for share in shares))
    return replace(gap, adaptive=False, probabilities=tuple(round(share, 4) for share in shares))


def _window_network(task: TemporalConfig, teacher: Trained | None, device: Device) -> nn.Module | None:
    """The frozen network the global temporal term looks with, where it is not the perceptual one.

    Raises:
        ConfigError: if the teacher has no temporal discriminator to look with.
        CheckpointError: if that or a file of weights does not fit.
        MissingExtraError: if torchvision is needed and not installed.
    """
    if teacher is None or not task.weights.kd_temporal:
        return None
    if task.temporal_weights is not None:
        kind: VideoNetwork = "s3d" if task.temporal_features == "s3d" else "r3d18"
        return VideoFeatures(kind, task.temporal_weights).to(device.device)
    if not task.uses_discriminator:
        return None
    name = "temporal_discriminator_0"
    if f"{name}.safetensors" not in read_state(teacher.checkpoint)["files"]:
        raise ConfigError(
            f"temporal_features {task.temporal_features} looks with a temporal discriminator, and the teacher "
            f"{teacher.checkpoint} has none; use --recipe.task.temporal-features perceptual"
        )
    judge = temporal_discriminator(task.objective)
    load_weights(judge, weights_file(teacher.checkpoint, name))
    return freeze(judge).to(device.device)


def _architecture(
    stage: Stage,
    generator: VideoConfig | ImageConfig,
    foreground: tuple[str, ...],
    data: DataRecipe,
    folder: VideoFolder,
    loader: ClipLoader,
) -> Architecture:
    """Describe the generator on this data set; the size is that of the first clip."""
    first = next(iter(loader.batches(0)))
    return Architecture(
        generator=generator,
        foreground=foreground,
        condition=folder.spec,
        palette=palette_of(folder),
        size=first.size,
        stage=stage,
        folder=replace(folder.config, root=UNSET_ROOT, phase="train"),
    )


def _fit(
    args: TrainTeacher | TrainFirst | TrainSpatial | TrainTemporal,
    task: Task,
    loader: ClipLoader,
    data: DataRecipe,
    train: TrainConfig,
    device: Device,
    architecture: Architecture,
    least_held_out: int = 2,
) -> FitResult:
    """Open the run and train, if held-out clips have as many frames as scoring them takes."""
    config: dict[str, Any] = to_dict(args)
    for name in ("overwrite", "quiet"):
        config.pop(name)  # say how this call behaves, not what the run is
    clips = held_out_clips(data, args.data, device)
    remedy = "hold out longer sequences or raise --recipe.data.eval-frames"
    if isinstance(args, TrainTemporal):
        remedy += ", or lower --recipe.task.deployed-gap"
    check_held_out(clips, least_held_out, remedy)
    make_progress: Callable[[], BarProgress | SilentProgress] = (
        SilentProgress if args.quiet or not device.is_main else lambda: BarProgress(args.run.name)
    )
    if device.world_size > 1 and device.is_main and not args.quiet:
        print(f"{args.run.name}: {device.world_size} processes", file=sys.stderr)
    with open_run(args.run, config, overwrite=args.overwrite, is_main=device.is_main) as run:
        return fit(
            task,
            loader.batches,
            run,
            train,
            device,
            sample_clip=clips[0] if clips else None,
            eval_clips=clips,
            progress=make_progress(),
            architecture=architecture_dict(architecture),
        )


def main_teacher(argv: list[str]) -> int:
    """``fastv2v train-teacher PRESET --data DIR --run DIR ...``."""
    args = parse_preset(
        "fastv2v train-teacher",
        TrainTeacher.__doc__ or "",
        {
            name: (make.__doc__ or "", TrainTeacher(data=tyro.MISSING, run=tyro.MISSING, recipe=make()))
            for name, make in teacher_presets.PRESETS.items()
        },
        argv,
    )
    return report_fit(args.run, train_teacher(args))


def main_first(argv: list[str]) -> int:
    """``fastv2v train-first PRESET --data DIR --run DIR ...``."""
    args = parse_preset(
        "fastv2v train-first",
        TrainFirst.__doc__ or "",
        {
            name: (make.__doc__ or "", TrainFirst(data=tyro.MISSING, run=tyro.MISSING, recipe=make()))
            for name, make in teacher_presets.FIRST_PRESETS.items()
        },
        argv,
    )
    return report_fit(args.run, train_first(args))


def main_spatial(argv: list[str]) -> int:
    """``fastv2v train-skd PRESET[:STUDENT] --data DIR --teacher RUN --run DIR ...``."""
    presets, argv = spatial_presets(), list(argv)
    if argv and ":" in argv[0]:
        argv[0], _, student = argv[0].partition(":")
        presets = {name: (text, with_student(recipe, student)) for name, (text, recipe) in presets.items()}
    names = ", ".join(student_presets.STUDENTS)
    args = parse_preset(
        "fastv2v train-skd",
        f"{TrainSpatial.__doc__} PRESET:STUDENT, such as street:base, takes another student ({names}).",
        {
            name: (text, TrainSpatial(data=tyro.MISSING, run=tyro.MISSING, recipe=recipe))
            for name, (text, recipe) in presets.items()
        },
        argv,
    )
    return report_fit(args.run, train_spatial(args))


def with_student(recipe: SpatialRecipe, name: str) -> SpatialRecipe:
    """The recipe for another student.

    Raises:
        ConfigError: if there is no student of that name.
    """
    if name not in student_presets.STUDENTS:
        raise ConfigError(f"no student {name!r}; there are {', '.join(student_presets.STUDENTS)}")
    return replace(recipe, student=student_presets.STUDENTS[name]())


def main_temporal(argv: list[str]) -> int:
    """``fastv2v train-tkd PRESET --data DIR [--teacher RUN] --student RUN --run DIR ...``."""
    missing = {"data": tyro.MISSING, "student": tyro.MISSING, "run": tyro.MISSING}
    args = parse_preset(
        "fastv2v train-tkd",
        TrainTemporal.__doc__ or "",
        {name: (text, TrainTemporal(**missing, recipe=recipe)) for name, (text, recipe) in temporal_presets().items()},
        argv,
    )
    return report_fit(args.run, train_temporal(args))


def spatial_presets() -> dict[str, tuple[str, SpatialRecipe]]:
    """Spatial recipes by name, with their descriptions: each continues the teacher preset of the same name."""
    found = {}
    for name, make in teacher_presets.PRESETS.items():
        recipe, small = make(), name in teacher_presets.SMALL
        build = distill_presets.spatial_demo if small else distill_presets.spatial
        student = student_presets.tiny() if small else student_presets.published()
        made = build(student, recipe.data, recipe.helpers, recipe.task.objective, recipe.train)
        found[name] = (_summary(build, name), replace(made, foreground=recipe.foreground))
    return found


def temporal_presets() -> dict[str, tuple[str, TemporalRecipe]]:
    """Temporal recipes by name, with their descriptions."""
    found = {}
    for name, make in teacher_presets.PRESETS.items():
        recipe = make()
        build = distill_presets.temporal_demo if name in teacher_presets.SMALL else distill_presets.temporal
        made = build(recipe.data, recipe.helpers, recipe.task.objective, recipe.train)
        found[name] = (_summary(build, name), made)
    return found


def _summary(build: Callable[..., Any], name: str) -> str:
    """First sentence about a recipe, with the teacher it continues."""
    first = (build.__doc__ or "").strip().splitlines()[0].rstrip(".")
    return f"{first}; after a teacher of the recipe {name}."


def report_fit(run: Path, result: FitResult) -> int:
    """Tell what training came to: a line for people, one JSON object for programs."""
    best = f", best {result.best.metric} {result.best.value:.2f} at step {result.best.step}" if result.best else ""
    print(f"{run}: {result.step} steps in {clock(result.elapsed_s)}{best}")
    print(
        json.dumps(
            {
                "run": str(run),
                "step": result.step,
                "elapsed_s": round(result.elapsed_s, 1),
                "metrics": dict(result.metrics),
                "best": None if result.best is None else asdict(result.best),
            }
        )
    )
    return 0
