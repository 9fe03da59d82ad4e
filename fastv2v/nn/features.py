"""Instance features: what an object looks like, as a few numbers that the generator is given beside its labels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, get_args

import torch
from torch import Tensor, nn

from fastv2v.contracts import FrameOutput, History, StepModel
from fastv2v.data.clip import Clip
from fastv2v.data.conditions import ConditionSpec
from fastv2v.errors import ConfigError, DataError, ShapeError
from fastv2v.nn.blocks import DownPath, Head, NormKind, UpPath, init_gan_weights
from fastv2v.nn.coarse_to_fine import CoarseToFineGenerator, FinestOnly
from fastv2v.nn.generators import VideoGenerator
from fastv2v.ops.labels import encode_clip


@dataclass(frozen=True, kw_only=True)
class FeatureConfig:
    """The encoder of instance features, and whether there is one."""

    channels: int = 0
    """Numbers that say what an instance looks like (vid2vid: 3); 0 for none. They need instance maps."""
    width: int = 32
    """Channels after the encoder's entry (vid2vid's nef)."""
    num_downsamples: int = 3
    """How often the encoder halves the size (vid2vid's n_downsample_E)."""
    norm: NormKind = "batch"
    """Normalisation of the encoder."""

    def __post_init__(self) -> None:
        if self.channels < 0:
            raise ConfigError(f"features.channels must be 0 (none) or more, got {self.channels}")
        for name in ("width", "num_downsamples"):
            if getattr(self, name) < 1:
                raise ConfigError(f"features.{name} must be at least 1, got {getattr(self, name)}")
        if self.norm not in get_args(NormKind):
            raise ConfigError(f"features.norm is one of {', '.join(get_args(NormKind))}, got {self.norm!r}")


class FeatureEncoder(nn.Module):
    """Frames to feature maps of the same size: down, up, tanh. ``instance_mean`` comes after it.

    Args:
        config: size and shape; with at least one channel.

    Raises:
        ConfigError: if there are no channels.

    Source:
        The feature encoder of Wang et al., "High-Resolution Image Synthesis and Semantic Manipulation with Conditional
        GANs", CVPR 2018.
    """

    def __init__(self, config: FeatureConfig) -> None:
        super().__init__()
        if config.channels < 1:
            raise ConfigError("a feature encoder needs features.channels of at least 1")
        self.config = config
        self.down = DownPath(3, config.width, config.num_downsamples, norm=config.norm)
        self.up = UpPath(config.width, config.num_downsamples, norm=config.norm)
        self.head = Head(config.width, config.channels)
        init_gan_weights(self)

    @property
    def size_multiple(self) -> int:
        """Height and width must be divisible by this."""
        return 2**self.config.num_downsamples

    def forward(self, frames: Tensor) -> Tensor:
        """Encode frames.

        Args:
            frames: (B, 3, H, W) in [-1, 1].

        Returns:
            (B, F, H, W) in [-1, 1], float32.

        Raises:
            ShapeError: if the size does not divide or is too small for the padding.
        """
        height, width = frames.shape[-2:]
        least = max(2 * self.size_multiple, 4)  # a 7x7 kernel reflects three pixels
        if height % self.size_multiple or width % self.size_multiple or min(height, width) < least:
            raise ShapeError(
                f"frames of {height}x{width}: the feature encoder needs multiples of {self.size_multiple}, at least "
                f"{least}"
            )
        return torch.tanh(self.head(self.up(self.down(frames))).float())


class Pooled(NamedTuple):
    """Features averaged over groups of pixels; G groups over the whole batch, in ascending order of (sample, id)."""

    means: Tensor
    """(G, C)."""
    counts: Tensor
    """Pixels of each group, (G,) int64."""
    group: Tensor
    """Which group each pixel belongs to, (B, H, W) int64."""


def pool_instances(features: Tensor, instances: Tensor) -> Pooled:
    """Average features over the pixels of each instance, each sample by itself.

    Args:
        features: (B, C, H, W).
        instances: ids, (B, H, W), any integer type.

    Raises:
        ShapeError: if the shapes do not match.
    """
    batch, channels, height, width = features.shape
    if instances.shape != (batch, height, width):
        raise ShapeError(f"features {tuple(features.shape)} and instances {tuple(instances.shape)} do not match")
    _, ids = torch.unique(instances, return_inverse=True)  # small numbers, so that the sample fits in front of them
    sample = torch.arange(batch, device=ids.device).view(-1, 1, 1)
    _, group, counts = torch.unique(sample * (ids.max() + 1) + ids, return_inverse=True, return_counts=True)
    values_NC = features.float().movedim(1, -1).flatten(0, 2)
    sums = values_NC.new_zeros(len(counts), channels).index_add(0, group.flatten(), values_NC)
    return Pooled(sums / counts.unsqueeze(1), counts, group)


def instance_mean(features: Tensor, instances: Tensor) -> Tensor:
    """Give every pixel the mean over its instance, within its own sample.

    Args:
        features: (B, C, H, W).
        instances: ids, (B, H, W), any integer type. Which numbers they are does not matter.

    Returns:
        (B, C, H, W) float32; gradients reach all pixels of an instance evenly.

    Raises:
        ShapeError: if the shapes do not match.

    Source:
        Instance-wise average pooling of Wang et al., CVPR 2018 (pix2pixHD).
    """
    pooled = pool_instances(features, instances)
    return pooled.means[pooled.group].movedim(-1, 1)


def instance_keys(labels: Tensor, instances: Tensor) -> Tensor:
    """One number for each object: class id * 2^32 + instance id.

    The class belongs to the key because many data sets use one id for all pixels without an instance (0, or 255 in
    8-bit maps), and because ids may repeat from class to class. So two classes never share a vector, and all pixels of
    a class that has no instances do.

    Args:
        labels: class ids of any shape, 0 or more.
        instances: instance ids of the same shape, 0 to 2^31 - 1.

    Returns:
        int64, of the same shape.
    """
    return (labels.long() << 32) + instances.long()


def instance_groups(clip: Clip) -> Tensor:
    """Number the objects of a clip.

    Args:
        clip: with label and instance maps.

    Returns:
        (B, T, H, W) int64: 0 to G-1 in ascending order of (class, instance), see ``instance_keys``.

    Raises:
        DataError: if the clip lacks a map.
    """
    if clip.labels is None or clip.instances is None:
        raise DataError("instance features need label maps and instance maps, and the clip lacks one of them")
    return torch.unique(instance_keys(clip.labels, clip.instances), return_inverse=True)[1]


class FeatureGenerator(nn.Module):
    """A generator that is also told what each instance looks like, with the encoder that finds it out from real frames.

    Both are one player: one optimiser, one average of the weights, one checkpoint. As a step model it takes conditions
    of C + F channels: labels, instance borders, features. Where the features come from is the caller's choice:
    ``encode`` takes them from real frames; painted vectors give objects another look (``teachers.looks``).

    Args:
        generator: for conditions of C + F channels.
        encoder: makes F channels.
    """

    def __init__(self, generator: VideoGenerator, encoder: FeatureEncoder) -> None:
        super().__init__()
        self.generator = generator
        self.encoder = encoder

    @property
    def condition_channels(self) -> int:
        """C + F."""
        return self.generator.condition_channels

    @property
    def feature_channels(self) -> int:
        """F, the last of them."""
        return self.encoder.config.channels

    @property
    def history_length(self) -> int:
        """N-1."""
        return self.generator.history_length

    @property
    def size_multiple(self) -> int:
        """Height and width must be divisible by this."""
        return math.lcm(self.generator.size_multiple, self.encoder.size_multiple)

    @property
    def uses_flow(self) -> bool:
        """Whether it predicts flow and warps the previous frame."""
        return self.generator.uses_flow

    def step(self, condition: Tensor, history: History) -> tuple[FrameOutput, History]:
        """Synthesise one frame from a condition (B, C + F, H, W); see the generator inside."""
        return self.generator.step(condition, history)

    def forward(self, condition: Tensor, history: History) -> tuple[FrameOutput, History]:
        """Same as ``step``."""
        return self.step(condition, history)

    def features(self, frames: Tensor, instances: Tensor) -> Tensor:
        """Features of real frames, averaged over instances.

        Args:
            frames: (B, 3, H, W) in [-1, 1].
            instances: ids, (B, H, W).

        Returns:
            (B, F, H, W) float32 in [-1, 1], with gradients to the encoder.
        """
        return instance_mean(self.encoder(frames), instances)

    def encode(self, spec: ConditionSpec, clip: Clip) -> Tensor:
        """Conditions of a clip with the look of its real frames.

        Args:
            spec: what the first C channels are.
            clip: with frames, label and instance maps.

        Returns:
            (B, T, C + F, H, W) float32, with gradients to the encoder.

        Raises:
            DataError: if the clip lacks a map.
        """
        features = self.features(clip.frames.flatten(0, 1), instance_groups(clip).flatten(0, 1))
        return torch.cat([encode_clip(spec, clip), features.unflatten(0, clip.frames.shape[:2])], dim=2)


def clip_conditions(model: StepModel, spec: ConditionSpec, clip: Clip) -> Tensor:
    """What a generator of any kind is given for a clip whose real frames may be looked at.

    Args:
        model: any step model; a ``FeatureGenerator`` gets the look of the real frames.
        spec: how conditions are encoded, features left out.
        clip: with the maps that takes.

    Returns:
        (B, T, C, H, W), or (B, T, C + F, H, W) for a ``FeatureGenerator``.
    """
    return model.encode(spec, clip) if isinstance(model, FeatureGenerator) else encode_clip(spec, clip)


def observations(spec: ConditionSpec, clip: Clip) -> Tensor:
    """What ``EncodingStep`` takes for the conditions of a clip.

    Args:
        spec: how conditions are encoded, features left out.
        clip: with frames, label and instance maps.

    Returns:
        (B, T, C + 4, H, W): conditions, the real frames, the number of the instance.
    """
    # Float32 holds these numbers exactly: a clip has far fewer than 2^24 instances.
    return torch.cat([encode_clip(spec, clip), clip.frames, instance_groups(clip).unsqueeze(2).float()], dim=2)


class EncodingStep:
    """A feature generator that looks at the real frame in each step, as a step model for training.

    Features are made inside the step and not once for the clip: weights are updated between the chunks of a rollout,
    and gradients of a later chunk could not run back through an encoder that has changed since. Histories hold finished
    conditions of C + F channels, as those of the generator do.

    Args:
        model: generator and encoder.
        finest_only: whether the coarse scales of the generator are left alone; the encoder learns either way.

    Raises:
        ConfigError: if the generator has no coarse scales to leave alone.
    """

    def __init__(self, model: FeatureGenerator, *, finest_only: bool = False) -> None:
        if finest_only and not isinstance(model.generator, CoarseToFineGenerator):
            raise ConfigError("only a generator of several scales has coarse ones to leave alone")
        self._model = model
        self._finest_only = finest_only
        self.condition_channels = model.condition_channels - model.feature_channels + 4
        self.history_length = model.history_length
        self.size_multiple = model.size_multiple

    def step(self, condition: Tensor, history: History) -> tuple[FrameOutput, History]:
        """Encode the frame and synthesise it.

        Args:
            condition: (B, C + 4, H, W), one of ``observations``.
            history: with conditions of C + F channels.

        Raises:
            ShapeError: if the condition has other channels; and as the generator does.
        """
        if condition.shape[1] != self.condition_channels:
            raise ShapeError(f"expected {self.condition_channels} channels to encode, got {condition.shape[1]}")
        given, frame, instances = condition.split([self.condition_channels - 4, 3, 1], dim=1)
        features = self._model.features(frame, instances[:, 0].long())
        generator: StepModel = self._model.generator
        if self._finest_only and isinstance(generator, CoarseToFineGenerator):
            generator = FinestOnly(generator)
        return generator.step(torch.cat([given, features], dim=1), history)
