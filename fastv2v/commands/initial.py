"""Weights to start a teacher from: a run of as many scales or of one fewer, or imported networks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from fastv2v.architecture import Architecture, Trained, load_trained
from fastv2v.commands.parts import check_condition, continue_discriminators
from fastv2v.data.conditions import ConditionSpec
from fastv2v.data.folder import VideoFolder
from fastv2v.errors import CheckpointError, ConfigError
from fastv2v.losses.objective import ObjectiveConfig, VideoObjective
from fastv2v.nn.coarse_to_fine import CoarseToFineGenerator, VideoGenerator, local_config
from fastv2v.nn.composite import CompositeConfig, CompositeGenerator
from fastv2v.nn.discriminator import DiscriminatorConfig, MultiScaleDiscriminator
from fastv2v.nn.local import LocalConfig, LocalGenerator
from teachers.import_weights import Imported, load_imported
from teachers.presets import TeacherRecipe

_LOG = logging.getLogger(__name__)

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
                f"{path} is a {imported.blueprint.network!r}: give it to synthesize --first-frames instead"
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
    config = replace(first.config, num_scales=len(initial.generators))
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
    objective = _judged_by(recipe.task.objective, initial.discriminators, spec)
    return replace(recipe, generator=config, foreground=names, task=replace(recipe.task, objective=objective))


def _judged_by(config: ObjectiveConfig, judges: Sequence[Imported], spec: ConditionSpec) -> ObjectiveConfig:
    """The objective with discriminators of imported shapes."""
    for judge in judges:
        shape = judge.blueprint.config
        assert isinstance(shape, DiscriminatorConfig)  # read_initial sorted them
        if judge.blueprint.channels == spec.channels + 3:
            config = replace(config, image_discriminator=shape)
        else:
            config = replace(config, temporal_discriminator=shape)
    return config


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
        place.load_state_dict(imported.network.state_dict())
    temporal = iter(name for name in objective.discriminators if name.startswith("temporal_discriminator"))
    for imported in initial.discriminators:
        is_image = imported.blueprint.channels == folder.spec.channels + 3
        name = "image_discriminator" if is_image else next(temporal, None)
        if name is None or name not in objective.discriminators:
            raise ConfigError(
                "--init has more discriminators than the recipe trains; raise temporal_scales or leave out"
            )
        target = objective.discriminators[name]
        assert isinstance(target, MultiScaleDiscriminator)
        try:
            target.load_state_dict(imported.network.state_dict())
        except RuntimeError as error:
            raise CheckpointError(f"the imported discriminator does not fit {name}: {error}") from error


def _take_generator(run: Trained, generator: VideoGenerator) -> bool:
    """Copy a trained generator; whether the new one has a scale more."""
    old = run.generator
    shape, wanted = _shape(run.architecture), generator.config
    grown = shape.num_scales + 1 == wanted.num_scales
    if replace(shape, num_scales=wanted.num_scales, num_local_blocks=wanted.num_local_blocks) != wanted or not (
        grown or shape.num_scales == wanted.num_scales
    ):
        raise ConfigError(
            f"{run.checkpoint} holds a generator of another shape ({shape}) than the recipe's ({wanted}); start from "
            "one of as many scales or one fewer, with all else equal"
        )
    for place, source in zip(_scales(generator), _scales(old), strict=False):
        place.load_state_dict(source.state_dict())
    if grown:
        _LOG.info("grown from %d to %d scales; the finest starts fresh", shape.num_scales, wanted.num_scales)
    return grown


def _shape(architecture: Architecture) -> CompositeConfig:
    if not isinstance(architecture.generator, CompositeConfig):
        raise ConfigError("a generator of single images cannot start one of videos")
    return architecture.generator


def _scales(generator: VideoGenerator) -> list[nn.Module]:
    """The networks of a generator, coarsest first."""
    if isinstance(generator, CoarseToFineGenerator):
        return [generator.coarse, *generator.local]
    assert isinstance(generator, CompositeGenerator | LocalGenerator)
    return [generator]
