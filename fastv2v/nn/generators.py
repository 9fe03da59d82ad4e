"""Every generator, and how a config becomes one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from fastv2v.errors import ConfigError
from fastv2v.nn.coarse_to_fine import CoarseToFineGenerator
from fastv2v.nn.composite import CompositeConfig, CompositeGenerator
from fastv2v.nn.single_image import SingleImageConfig, SingleImageGenerator
from fastv2v.nn.slim import SlimConfig, SlimGenerator
from fastv2v.nn.spade import SpadeConfig, SpadeGenerator
from fastv2v.nn.spade_image import SpadeImageConfig, SpadeImageGenerator

VideoGenerator = CompositeGenerator | CoarseToFineGenerator | SlimGenerator | SpadeGenerator
"""A generator of videos: of one scale or of several, made for a budget, or of SPADE blocks."""

VideoConfig = CompositeConfig | SlimConfig | SpadeConfig
"""Size and shape of any of them."""

ImageGenerator = SingleImageGenerator | SpadeImageGenerator
"""A generator of single images, for the first frames of a video."""

ImageConfig = SingleImageConfig | SpadeImageConfig
"""Size and shape of any of these."""


def build_generator(
    config: VideoConfig,
    condition_channels: int,
    foreground_channels: tuple[int, ...] = (),
    *,
    guidance_levels: int = 0,
    shown_channels: tuple[int, ...] = (),
) -> VideoGenerator:
    """The generator that a config describes, with fresh weights.

    Args:
        config: size, shape and number of scales.
        condition_channels: C.
        foreground_channels: see the generators.
        guidance_levels: levels of guidance that the condition ends with; to most generators they are channels like
            any others.
        shown_channels: channels of the condition that show a frame already (``ConditionSpec.shown_channels``), which
            slim generators and composite ones of one scale begin from; to others they are channels like any.

    Raises:
        ConfigError: if the generator has no use for a foreground or the guidance.
    """
    if isinstance(config, SpadeConfig):
        if foreground_channels:
            raise ConfigError("a SPADE generator has no foreground branch: leave --recipe.foreground empty")
        return SpadeGenerator(config, condition_channels, guidance_levels)
    if isinstance(config, SlimConfig):
        return SlimGenerator(config, condition_channels, foreground_channels, shown_channels)
    if config.num_scales == 1:
        return CompositeGenerator(config, condition_channels, foreground_channels, shown_channels)
    return CoarseToFineGenerator(config, condition_channels, foreground_channels)


def build_image_generator(config: ImageConfig, condition_channels: int) -> ImageGenerator:
    """The generator of single images that a config describes, with fresh weights.

    Args:
        config: size and shape.
        condition_channels: C.
    """
    if isinstance(config, SpadeImageConfig):
        return SpadeImageGenerator(config, condition_channels)
    return SingleImageGenerator(config, condition_channels)


def in_one_style(generator: ImageGenerator, count: int, rng: torch.Generator | None) -> Callable[[Tensor], Tensor]:
    """How a generator draws the first frames of ``count`` videos: each in one random style, drawn here.

    Args:
        generator: of single images.
        count: B, videos.
        rng: source of randomness, on the CPU; None for the mean style. A generator without style does not use it.

    Returns:
        Conditions (B, C, H, W) to frames (B, 3, H, W).
    """
    if rng is None or not isinstance(generator, SpadeImageGenerator) or not generator.style_channels:
        return generator
    return partial(generator, style=generator.draw_style(count, rng))
