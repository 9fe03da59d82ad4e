"""Weights to start a teacher from: a run of as many scales or of one fewer, or imported networks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from torch import nn

from fastv2v.architecture import Trained, load_trained
from fastv2v.commands.parts import check_condition, continue_discriminators
from fastv2v.data.conditions import ConditionSpec
from fastv2v.data.folder import VideoFolder
from fastv2v.errors import CheckpointError, ConfigError
from fastv2v.losses.objective import VideoObjective
from fastv2v.nn.coarse_to_fine import CoarseToFineGenerator, local_config
from fastv2v.nn.composite import CompositeConfig, CompositeGenerator
from fastv2v.nn.discriminator import DiscriminatorConfig
from fastv2v.nn.generators import VideoGenerator
from fastv2v.nn.local import LocalConfig, LocalGenerator
from fastv2v.nn.spade import SpadeGenerator
from teachers.import_weights import Imported, load_imported
from teachers.presets import TeacherRecipe

_LOG = logging.getLogger(__name__)

_SAME = "a SPADE generator starts from one of the same shape only"

IMPORTED = "network.json"
"""File by which a folder of ``fastv2v import-weights`` is known."""


@dataclass(frozen=True)
class InitialWeights:
    """Where a training starts."""

    run: Trained | None = None
    """A trained teacher."""
    generators: tuple[Imported, ...] = ()
    """Imported generators, coarsest first."""
    discriminators: tuple[Imported, ...] = ()
    """Imported discriminators."""


def read_initial(paths: Sequence[Path]) -> InitialWeights:
    """Load what a training shall start from.

    Args:
        paths: one run or checkpoint; or folders of imported networks in any order; or none.

    Raises:
        ConfigError: if runs and imported networks are mixed, or scales are missing or given twice.
        CheckpointError: if something cannot be read.
    """
    imported_paths = [path for path in paths if (path / IMPORTED).is_file()]
    runs = [path for path in paths if path not in imported_paths]
    if len(runs) > 1 or (runs and imported_paths):
        raise ConfigError("--init takes one run of train-teacher, or folders of import-weights, not both or several")
    if runs:
        return InitialWeights(run=load_trained(runs[0]))
    networks = [(path, load_imported(path)) for path in imported_paths]
    scales: dict[int, Imported] = {}
    judges = []
    for path, imported in networks:
        config = imported.blueprint.config
        if isinstance(config, DiscriminatorConfig):
            judges.append(imported)
            continue
        if not isinstance(config, CompositeConfig | LocalConfig):
            raise ConfigError(
                f"{path} is a {imported.blueprint.network!r}: give it to synthesize instead, as --first-frames, or an "
                "encoder of faces as --first-encoder"
            )
        scale = config.scale if isinstance(config, LocalConfig) else 0
        if scale in scales:
            raise ConfigError(f"{path}: another generator of scale {scale} was given already")
        scales[scale] = imported
    if networks and sorted(scales) != list(range(len(scales))):
        raise ConfigError(f"--init has generators of the scales {sorted(scales)}; they must be 0, 1, ... without a gap")
    return InitialWeights(generators=tuple(scales[s] for s in sorted(scales)), discriminators=tuple(judges))


def adapted(recipe: TeacherRecipe, initial: InitialWeights, spec: ConditionSpec) -> TeacherRecipe:
    """The recipe with the shapes of imported networks, which cannot be chosen.

    Args:
        recipe: what was asked for.
        initial: weights to start from.
        spec: condition of the data set, whose classes name the foreground.

    Raises:
        ConfigError: if an imported network does not suit the data set or another imported one.
    """
    if not initial.generators:
        return recipe
    first = initial.generators[0].blueprint
    if not isinstance(first.config, CompositeConfig):
        raise ConfigError("--init lacks the composite generator of scale 0")
    # One scale more than was imported is grown; otherwise their number is as imported.
    asked, there = _composite(recipe.generator), len(initial.generators)
    config = replace(first.config, num_scales=there + int(asked.num_scales == there + 1))
    config = replace(config, num_local_blocks=asked.num_local_blocks)
    locals_ = [g.blueprint for g in initial.generators[1:]]
    if locals_ and isinstance(locals_[0].config, LocalConfig):
        config = replace(config, num_local_blocks=locals_[0].config.num_blocks)
    for blueprint in (first, *locals_):
        if blueprint.channels != spec.channels:
            raise ConfigError(
                f"the imported {blueprint.network!r} takes conditions of {blueprint.channels} channels and the data "
                f"set gives {spec.channels}; change --recipe.data.folder (classes, use_instances, face, pose)"
            )
        if blueprint.foreground != first.foreground:
            raise ConfigError(f"the imported {blueprint.network!r} has another foreground than that of scale 0")
    for scale, blueprint in enumerate(locals_, start=1):
        wanted = local_config(config, scale)
        if blueprint.config != wanted:
            raise ConfigError(f"the imported generator of scale {scale} is {blueprint.config}, not {wanted}")
    names = tuple(spec.class_names[c] if c < spec.num_classes else str(c) for c in first.foreground)
    _LOG.info("generator as imported: %s", config)
    objective = recipe.task.objective
    for name, judge in judge_roles(initial.discriminators, spec).items():
        shape = judge.blueprint.config
        assert isinstance(shape, DiscriminatorConfig)  # read_initial sorted them
        if name == "image_discriminator":
            objective = replace(objective, image_discriminator=shape)
        elif name == "face_discriminator":
            objective = replace(objective, face_discriminator=shape)
        else:
            objective = replace(objective, temporal_discriminator=shape)
    return replace(recipe, generator=config, foreground=names, task=replace(recipe.task, objective=objective))


def judge_roles(judges: Sequence[Imported], spec: ConditionSpec) -> dict[str, Imported]:
    """Which player each imported discriminator is, told by its input: a condition and a frame, or a run of frames.

    Of two that take a condition and a frame the second judges faces. Those of runs of frames are numbered in order.

    Args:
        judges: in the order they were given.
        spec: condition of the data set.

    Raises:
        ConfigError: if one takes neither, or cannot be told, or there are too many.
    """
    single, runs = spec.channels + 3, {3 * window + 2 * (window - 1) for window in range(2, 32)}
    roles: dict[str, Imported] = {}
    num_temporal = 0
    for judge in judges:
        channels = judge.blueprint.channels
        if channels == single and channels in runs:
            raise ConfigError(
                f"an imported discriminator of {channels} channels may judge single frames or runs of them with this "
                "condition; train discriminators afresh"
            )
        if channels in runs:
            roles[f"temporal_discriminator_{num_temporal}"] = judge
            num_temporal += 1
            continue
        name = "face_discriminator" if "image_discriminator" in roles else "image_discriminator"
        if channels != single or name in roles:
            raise ConfigError(
                f"no use for an imported discriminator of {channels} channels: one of images takes {single} with this "
                "condition, and at most a second of these judges faces"
            )
        roles[name] = judge
    return roles


def load_initial(
    initial: InitialWeights, generator: VideoGenerator, objective: VideoObjective, folder: VideoFolder
) -> None:
    """Put the initial weights into fresh networks.

    Args:
        initial: from ``read_initial``.
        generator: to fill; after a run of one scale fewer its finest scale stays fresh.
        objective: whose discriminators go on as well; after growing, their new finest nets stay fresh.
        folder: the data set.

    Raises:
        ConfigError: if the run is of another stage, condition or shape.
        CheckpointError: if weights do not fit.
    """
    if initial.run is not None:
        check_condition(initial.run.architecture, folder, f"--init {initial.run.checkpoint}")
        grown = _take_generator(initial.run, generator)
        continue_discriminators(objective, initial.run.checkpoint, grown=grown)
    for place, imported in zip(_scales(generator), initial.generators, strict=False):
        _fill(place, imported.network, "the imported generator")
    for name, imported in judge_roles(initial.discriminators, folder.spec).items():
        if name not in objective.discriminators:
            raise ConfigError(
                f"--init has a {name} and the recipe trains none; raise temporal_scales or its loss weights, or leave "
                "it out"
            )
        _fill(objective.discriminators[name], imported.network, f"the imported {name}")


def _fill(target: nn.Module, source: nn.Module, what: str) -> None:
    """Copy weights.

    Raises:
        CheckpointError: if the networks differ in shape.
    """
    try:
        target.load_state_dict(source.state_dict())
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{what} does not fit the recipe's network: {reason}") from error


def _take_generator(run: Trained, generator: VideoGenerator) -> bool:
    """Copy a trained generator; whether the new one has a scale more."""
    old = run.generator
    if isinstance(old, SpadeGenerator) and isinstance(generator, SpadeGenerator):
        if old.config != generator.config:
            raise ConfigError(f"{run.checkpoint} holds a generator of the shape {old.config}; {_SAME}")
        _fill(generator, old, f"the generator of {run.checkpoint}")
        return False
    shape, wanted = _composite(run.architecture.generator), _composite(generator.config)
    grown = shape.num_scales + 1 == wanted.num_scales
    scales = wanted.num_scales if grown else shape.num_scales
    blocks = wanted.num_local_blocks if shape.num_scales == 1 else shape.num_local_blocks  # of no scale yet
    if replace(shape, num_scales=scales, num_local_blocks=blocks) != wanted:
        differing = [
            f"{f.name} {getattr(shape, f.name)} instead of {getattr(wanted, f.name)}"
            for f in fields(CompositeConfig)
            if getattr(shape, f.name) != getattr(wanted, f.name)
        ]
        raise ConfigError(
            f"{run.checkpoint} holds a generator of another shape than the recipe's: {', '.join(differing)}; start "
            "from one of as many scales or one fewer, with all else equal"
        )
    if old.foreground_channels != generator.foreground_channels:
        raise ConfigError(
            f"{run.checkpoint} paints the condition channels {list(old.foreground_channels)} as foreground and the "
            f"recipe {list(generator.foreground_channels)}; give --recipe.foreground as there"
        )
    for place, source in zip(_scales(generator), _scales(old), strict=False):
        _fill(place, source, f"the generator of {run.checkpoint}")
    if grown:
        _LOG.info("grown from %d to %d scales; the finest starts fresh", shape.num_scales, wanted.num_scales)
    return grown


def _composite(config: object) -> CompositeConfig:
    """The config, where nothing but a composite generator of videos will do."""
    if not isinstance(config, CompositeConfig):
        raise ConfigError(
            f"a {type(config).__name__} cannot start a teacher or grow; --init takes composite generators, and for a "
            "SPADE generator one of the same shape"
        )
    return config


def _scales(generator: VideoGenerator) -> list[nn.Module]:
    """The networks of a generator, coarsest first."""
    if isinstance(generator, CoarseToFineGenerator):
        return [generator.coarse, *generator.local]
    assert isinstance(generator, CompositeGenerator | LocalGenerator | SpadeGenerator)
    return [generator]
