"""What a trained generator is made of: enough to build it again from a checkpoint, whatever code trained it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fastv2v.checkpoint import find_checkpoint, load_weights, read_state, weights_file
from fastv2v.config import from_dict, to_dict
from fastv2v.data.conditions import ConditionSpec
from fastv2v.data.folder import FolderConfig
from fastv2v.errors import CheckpointError, ConfigError
from fastv2v.nn.features import FeatureConfig, FeatureEncoder, FeatureGenerator
from fastv2v.nn.generators import (
    ImageConfig,
    ImageGenerator,
    VideoConfig,
    VideoGenerator,
    build_generator,
    build_image_generator,
)
from fastv2v.recipe import UNSET_ROOT

Stage = Literal["first", "teacher", "spatial", "temporal"]
"""Training stages; ``first`` draws single images, for the first frames of a video."""

Generator = VideoGenerator | FeatureGenerator | ImageGenerator
"""Whatever a checkpoint may hold: a step model with weights."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A generator, its condition and what it was trained on. Written into every checkpoint."""

    generator: VideoConfig | ImageConfig
    """Size and shape."""
    foreground: tuple[str, ...] = ()
    """Names of the label classes the foreground branch paints."""
    features: FeatureConfig = field(default_factory=FeatureConfig)
    """The encoder of instance features, which follow the condition."""
    condition: ConditionSpec
    """How its conditions are encoded."""
    palette: tuple[tuple[int, int, int], ...] = ()
    """Display colour of each label class."""
    size: tuple[int, int]
    """(height, width) it was trained at."""
    stage: Stage = "teacher"
    """The training stage its weights come from."""
    folder: FolderConfig
    """How its training data were read, and what was held out of them: whoever reads data for it does the same. Where
    they lay is left out."""

    def __post_init__(self) -> None:
        if isinstance(self.generator, ImageConfig) != (self.stage == "first"):
            raise ConfigError("the stage 'first' and a single-image generator go together")
        if self.folder.phase != "train" or self.folder.root != UNSET_ROOT:
            raise ConfigError("the folder of an architecture names no root and the phase 'train'")
        if self.features.channels and self.stage != "teacher":
            raise ConfigError("only teachers have instance features; set features.channels to 0")
        if self.features.channels and self.condition.guidance_levels:
            raise ConfigError("instance features and guidance do not go together; set one of them to 0")
        if self.features.channels and not self.condition.use_instances:
            raise ConfigError(
                "instance features need label maps with instance maps: give --recipe.data.folder.use-instances, or "
                "--recipe.features.channels 0"
            )

    def build(self) -> Generator:
        """The generator with fresh weights.

        Raises:
            ConfigError: if a foreground class is not among the condition's classes.
        """
        channels = foreground_channels(self.condition, self.foreground)
        spec = self.condition
        if isinstance(self.generator, ImageConfig):
            return build_image_generator(self.generator, spec.channels)
        generator = build_generator(
            self.generator,
            spec.channels + self.features.channels,
            channels,
            guidance_levels=spec.guidance_levels,
            shown_channels=spec.shown_channels,
        )
        return FeatureGenerator(generator, FeatureEncoder(self.features)) if self.features.channels else generator

    def build_video(self) -> VideoGenerator:
        """The same, where nothing but a generator of videos will do.

        Raises:
            ConfigError: if it draws single images or takes instance features.
        """
        return video_generator(self.build(), "the generator")


def foreground_channels(spec: ConditionSpec, names: tuple[str, ...]) -> tuple[int, ...]:
    """Channels of the named classes; a name may also be a class id in digits.

    Raises:
        ConfigError: if a class is unknown.
    """
    channels = []
    for name in names:
        if name in spec.class_names:
            channels.append(spec.class_names.index(name))
        elif name.isdecimal() and int(name) < spec.num_classes:
            channels.append(int(name))
        else:
            raise ConfigError(
                f"unknown foreground class {name!r}; the condition has {', '.join(spec.class_names) or 'no classes'}"
            )
    return tuple(channels)


def video_generator(model: Generator, what: str) -> VideoGenerator:
    """A model where nothing but a generator of videos from conditions alone will do.

    Args:
        model: to look at.
        what: its name, for the message.

    Raises:
        ConfigError: if it draws single images or takes instance features.
    """
    if isinstance(model, ImageGenerator):
        raise ConfigError(
            f"{what} draws single images, for the first frames of a video; give a run of train-teacher, train-skd or "
            "train-tkd here"
        )
    if isinstance(model, FeatureGenerator):
        raise ConfigError(
            f"{what} takes instance features, which only the verbs looks and synthesize can give it; distillation, "
            "export, predict and benchmark need a teacher trained with --recipe.features.channels 0"
        )
    return model


def architecture_dict(architecture: Architecture) -> dict[str, Any]:
    """JSON values for ``fit``."""
    return to_dict(architecture)


@dataclass(frozen=True)
class Trained:
    """A generator with its weights."""

    model: Generator
    """In evaluation mode."""
    architecture: Architecture
    """What it is made of."""
    checkpoint: Path
    """Where it came from."""
    step: int
    """Training steps behind it."""

    @property
    def generator(self) -> VideoGenerator:
        """The generator of videos.

        Raises:
            ConfigError: if the run draws single images or takes instance features.
        """
        return video_generator(self.model, str(self.checkpoint))


def load_trained(path: Path | str, which: Literal["best", "latest"] = "latest") -> Trained:
    """Load a generator from a run or a checkpoint folder; averaged weights where they are kept.

    Args:
        path: a run or one checkpoint.
        which: which checkpoint of a run. ``latest``, the default, keeps reported numbers honest: ``best`` was picked by
            its score on held-out clips.

    Raises:
        CheckpointError: if there is none, it is damaged, or it is of another architecture.
    """
    checkpoint = find_checkpoint(path, which)
    state = read_state(checkpoint)
    described: Mapping[str, Any] = state.get("architecture") or {}
    try:
        architecture = from_dict(Architecture, described)
    except ConfigError as error:
        raise CheckpointError(
            f"{checkpoint}: does not describe a generator of this version ({error}); train it again"
        ) from error
    generator = architecture.build()
    load_weights(generator, weights_file(checkpoint))
    return Trained(generator.eval(), architecture, checkpoint, int(state["step"]))
