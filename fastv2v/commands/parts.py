"""What several verbs build alike."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)

from fastv2v.architecture import Architecture, Stage, Trained
from fastv2v.checkpoint import load_tensors, load_weights, read_state, weights_file
from fastv2v.contracts import FlowEstimator, History, StepModel
from fastv2v.data.clip import Clip
from fastv2v.data.conditions import ConditionSpec
from fastv2v.data.folder import FolderConfig, Phase, VideoFolder, has_phase, open_folder
from fastv2v.data.loader import ClipLoader, read_sequence
from fastv2v.data.modalities import MODALITIES, Layout
from fastv2v.data.transforms import GeometryConfig, Size
from fastv2v.device import Device
from fastv2v.errors import CheckpointError, ConfigError, ShapeError
from fastv2v.losses.objective import ObjectiveConfig, VideoObjective
from fastv2v.losses.perceptual import PerceptualLoss
from fastv2v.memory import keep_freed_memory
from fastv2v.nn.discriminator import MultiScaleDiscriminator
from fastv2v.nn.optical_flow import RAFTFlow
from fastv2v.ops.flow import DISFlow, FilesFlow, with_confidence
from fastv2v.recipe import DataRecipe, HelperRecipe

_LOG = logging.getLogger(__name__)


def build_perceptual(helpers: HelperRecipe, device: Device) -> PerceptualLoss:
    """The frozen perceptual loss on the device."""
    if helpers.perceptual == "vgg19" and helpers.vgg19_weights is not None:
        loss = PerceptualLoss.vgg19(helpers.vgg19_weights, normalised=helpers.vgg19_normalised)
        return loss.to(device.device)
    return PerceptualLoss.efficientnet().to(device.device)


def build_flow(helpers: HelperRecipe, device: Device) -> FlowEstimator:
    """The reference flow.

    Raises:
        MissingExtraError: if RAFT is wanted and torchvision is not installed.
        CheckpointError: if its weights are not to be had.
    """
    estimator: FlowEstimator
    match helpers.flow:
        case "files":
            estimator = FilesFlow()
        case "raft-small":
            estimator = RAFTFlow.torchvision("small", helpers.raft_weights, device.device)
        case "raft-large":
            estimator = RAFTFlow.torchvision("large", helpers.raft_weights, device.device)
        case preset:
            estimator = DISFlow(preset)
    return with_confidence(estimator, helpers.flow_confidence)


def build_objective(
    config: ObjectiveConfig, spec: ConditionSpec, helpers: HelperRecipe, device: Device
) -> VideoObjective:
    """Losses and discriminators for frames of such conditions."""
    return VideoObjective(
        config,
        spec.channels,
        build_perceptual(helpers, device),
        build_flow(helpers, device),
        guidance_levels=spec.guidance_levels,
    )


def continue_discriminators(objective: VideoObjective, checkpoint: Path, *, grown: bool = False) -> None:
    """Go on from the discriminators saved beside a generator.

    Args:
        objective: its discriminators are overwritten in place.
        checkpoint: where they were saved.
        grown: this training sees larger frames than the one before. Discriminators may then have more scales, of
            which the finest are new, and there may be new discriminators; what is new stays fresh.

    Raises:
        CheckpointError: if the checkpoint lacks one of them, or has it in another shape.
    """
    saved = read_state(checkpoint)["files"]
    for name, module in objective.discriminators.items():
        if not grown:
            if f"{name}.safetensors" not in saved:
                raise CheckpointError(
                    f"{checkpoint} holds no {name} to go on from: it was trained with other options of the objective, "
                    "or one of the two stages with --teacher and the other without; train both alike"
                )
            load_weights(module, weights_file(checkpoint, name))
        elif f"{name}.safetensors" in saved:
            _continue_grown(name, module, weights_file(checkpoint, name))
        else:
            _LOG.info("%s is new: %s has none", name, checkpoint)


def _continue_grown(name: str, module: nn.Module, file: Path) -> None:
    """Load the coarse scales that were there before; ``nets[0]`` is the coarsest then and now."""
    if not isinstance(module, MultiScaleDiscriminator):  # a pyramid has the same weights at every size
        load_weights(module, file)
        return
    saved = {tensor.split(".")[1] for tensor in load_tensors(file) if tensor.startswith("nets.")}
    load_weights(_Coarse(module.nets[: len(saved)]), file)
    if fresh := len(module.nets) - len(saved):
        _LOG.info("%s: %d scales continue, the finest %d are new", name, len(saved), fresh)


class _Coarse(nn.Module):
    """The coarse scales of a discriminator, under their names there."""

    def __init__(self, nets: nn.ModuleList) -> None:
        super().__init__()
        self.nets = nets


def check_flow(data: DataRecipe, helpers: HelperRecipe) -> None:
    """Refuse flow files that are read and not used, or used and not read.

    Raises:
        ConfigError: naming both options.
    """
    if data.folder.flow_files != (helpers.flow == "files"):
        raise ConfigError(
            "flow from files needs both --recipe.data.folder.flow-files and --recipe.helpers.flow files; give both or "
            "neither"
        )


def check_heads(objective: ObjectiveConfig, spec: ConditionSpec) -> None:
    """Refuse a discriminator of faces where the condition shows no heads.

    Raises:
        ConfigError: naming what is lacking.
    """
    if not objective.uses_face_discriminator:
        return
    pose, region = spec.pose, objective.face_region
    if pose is None or not (pose.densepose if region == "densepose" else pose.openpose):
        raise ConfigError(
            f"the face discriminator finds heads in {region} maps, and the condition is {spec.describe()}; change "
            "--recipe.task.objective.face-region, or set the weights face_gan and face_feature_matching to 0"
        )
    if region == "densepose" and pose.remove_face_labels:
        raise ConfigError(
            "remove_face_labels leaves no heads in DensePose maps for the face discriminator; set the weights face_gan "
            "and face_feature_matching to 0, or keep the labels"
        )


def open_train(recipe: DataRecipe, root: Path, device: Device, seed: int) -> tuple[VideoFolder, ClipLoader]:
    """The training part of a data set and its clips for this process, which on a CPU keeps the memory it frees."""
    if device.device.type == "cpu":
        keep_freed_memory()
    folder = open_folder(recipe.at(root, "train"))
    loader = ClipLoader(
        folder,
        recipe.sampling,
        batch_size=recipe.batch_size,
        seed=seed,
        batches_per_step=device.gradient_accumulation,
        num_workers=recipe.num_workers,
        cache_mb=recipe.cache_mb,
        rank=device.rank,
        world_size=device.world_size,
    )
    return folder, loader


def open_test(folder: FolderConfig) -> VideoFolder:
    """The held-out part of a data set."""
    return open_folder(replace(folder, phase="test", geometry=_test_geometry(folder.geometry)))


def _test_geometry(geometry: GeometryConfig) -> GeometryConfig:
    """The geometry without chance; other crops lie in the middle anyway.

    Whole images at the length that random scales are cropped to, or the largest one where nothing is cropped.
    """
    if not geometry.is_random:
        return geometry
    length = geometry.fine_size if geometry.mode.endswith("rop") else geometry.load_size
    return replace(geometry, mode="scaleHeight" if "Height" in geometry.mode else "scaleWidth", load_size=length)


def has_test_part(folder: FolderConfig) -> bool:
    """Whether the data set has a part for the phase ``test`` of its own."""
    return has_phase(folder, "test")


def data_of(architecture: Architecture, root: Path, phase: Phase, test_tail: int | None = None) -> FolderConfig:
    """A data set as the run of this architecture read its own, without chance, and split as the run split it.

    Args:
        architecture: of the run.
        root: the data set; the one the run was trained on or another of the same classes.
        phase: ``train`` for what such a run learns from, ``test`` for what it never sees.
        test_tail: fewer held-out frames than the run's own, counted from the end of each sequence.

    Raises:
        ConfigError: if nothing is held out, or ``test_tail`` reaches into frames that were trained on.
    """
    trained, spec = architecture.folder, architecture.condition
    config = replace(
        trained,
        root=root,
        phase=phase,
        # A number that was counted stays, whatever ids occur here.
        num_classes=spec.num_classes if spec.kind == "labels" else None,
        geometry=_test_geometry(trained.geometry),
    )
    has_test = has_test_part(config)
    if phase == "test" and root.exists() and not has_test and not trained.test_tail:
        raise ConfigError(
            f"{root} has no held-out part: it has no test folders and the run was trained on every frame (test_tail 0)"
            "; train with --recipe.data.folder.test-tail N or give another data set"
        )
    if test_tail is None:
        return config
    if phase == "train" or has_test:
        raise ConfigError(
            "test_tail belongs to the phase 'test' of a data set without test folders; leave it out for "
            + (f"{root}, which has them" if has_test else "the phase 'train'")
        )
    if not 1 <= test_tail <= trained.test_tail:
        raise ConfigError(
            f"test_tail must lie in 1 to {trained.test_tail}, the frames that the run held out of each sequence, "
            f"got {test_tail}"
        )
    return replace(config, test_tail=test_tail)


def held_out_clips(recipe: DataRecipe, root: Path, device: Device, limit: int = 4) -> Sequence[Clip]:
    """The beginnings of the first held-out sequences, on the device; empty where nothing is held out."""
    config = recipe.at(root, "train")
    if not config.test_tail and not has_test_part(config):
        return ()
    folder = open_test(config)
    return [
        read_sequence(folder, i, 0, min(recipe.eval_frames, len(sequence))).to(device.device)
        for i, sequence in enumerate(folder.sequences[:limit])
    ]


def with_points(folder: FolderConfig, levels: int = 1) -> FolderConfig:
    """The same data set with its point ids read, if it has any: measures need them, whether a model does or not.

    Args:
        folder: as a model reads it.
        levels: how many at least.
    """
    wanted = max(folder.guidance_levels, levels)
    if folder.guidance_levels == wanted or folder.condition == "face" or folder.root.is_file():
        return folder
    phase: Phase = folder.phase if has_phase(folder, folder.phase) else "train"
    places = (MODALITIES["unprojections"].directory(folder.root, layout, phase) for layout in get_args(Layout))
    has_any = folder.guidance_levels or any(place.is_dir() for place in places)
    return replace(folder, guidance_levels=wanted) if has_any else folder


def check_condition(architecture: Architecture, folder: VideoFolder, what: str) -> None:
    """Refuse a network that was trained on other classes.

    Raises:
        ConfigError: naming both.
    """
    if architecture.condition != folder.spec:
        raise ConfigError(
            f"{what} was trained on another condition ({architecture.condition.describe()}) than {folder.root} has "
            f"({folder.spec.describe()}); use the data set it was trained on"
        )


def check_stage(trained: Trained, accepted: Sequence[Stage], role: str, remedy: str) -> None:
    """Refuse a network of another training stage.

    Raises:
        ConfigError: naming its stage, the role it should play and what to give.
    """
    stage = trained.architecture.stage
    if stage not in accepted:
        kinds = {"teacher": "a teacher", "first": "a generator of single images"}
        kind = kinds.get(stage, f"a student of the {stage} stage")
        raise ConfigError(f"{trained.checkpoint} holds {kind} and cannot be {role}; give {remedy}")


def check_size(generator: StepModel, size: Size, what: str) -> None:
    """Refuse frames that a generator cannot take apart evenly, or that are too small for its convolutions.

    Raises:
        ConfigError: naming the size, and the divisor or what the network says.
    """
    height, width = size
    if height % generator.size_multiple or width % generator.size_multiple:
        raise ConfigError(
            f"frames of {height}x{width} do not suit {what}: height and width must be multiples of "
            f"{generator.size_multiple}; change --recipe.data.folder.geometry"
        )
    if isinstance(generator, nn.Module):
        _check_large_enough(generator, generator, size, what)


_NOT_IN_SHAPES_ALONE = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
    NotImplementedError,
)
"""What a step raises that looks at values, or does what has no rule for shapes."""


def _check_large_enough(generator: StepModel, module: nn.Module, size: Size, what: str) -> None:
    """Take one step in shapes alone: what is too small fails there as it would after minutes of preparation."""
    modes = {inner: inner.training for inner in module.modules()}
    module.eval()  # no statistics move
    past, channels = generator.history_length, generator.condition_channels
    try:
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
            like = next(module.parameters())
            history = History(
                like.new_zeros(1, past, channels, *size), like.new_zeros(1, past, 3, *size), like.new_ones(1)
            )
            generator.step(like.new_zeros(1, channels, *size), history)
    except _NOT_IN_SHAPES_ALONE:
        pass  # only a real step can tell
    except (RuntimeError, ShapeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"frames of {size[0]}x{size[1]} are too small for {what} ({reason}); change --recipe.data.folder.geometry "
            "or take a network that halves the size less often"
        ) from error
    finally:
        for inner, mode in modes.items():
            inner.training = mode


def check_held_out(clips: Sequence[Clip], least: int, remedy: str) -> None:
    """Refuse held-out clips that are too short to be scored.

    Raises:
        ConfigError: naming the shortest and what is needed.
    """
    shortest = min((clip.num_frames for clip in clips), default=least)
    if shortest < least:
        raise ConfigError(f"a held-out clip has {shortest} frames and scoring needs at least {least}; {remedy}")


def palette_of(folder: VideoFolder) -> tuple[tuple[int, int, int], ...]:
    """Display colours as plain numbers."""
    return tuple((int(r), int(g), int(b)) for r, g, b in folder.palette)


def num_parameters(module: nn.Module) -> int:
    """Weights of a network."""
    return sum(p.numel() for p in module.parameters())
