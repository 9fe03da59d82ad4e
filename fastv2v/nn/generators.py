"""Every generator of videos, and how a config becomes one."""

from __future__ import annotations

from fastv2v.nn.coarse_to_fine import CoarseToFineGenerator
from fastv2v.nn.composite import CompositeConfig, CompositeGenerator
from fastv2v.nn.slim import SlimConfig, SlimGenerator

VideoGenerator = CompositeGenerator | CoarseToFineGenerator | SlimGenerator
"""A generator of one scale or of several, or one made for a budget."""

VideoConfig = CompositeConfig | SlimConfig
"""Size and shape of any of them."""


def build_generator(
    config: VideoConfig, condition_channels: int, foreground_channels: tuple[int, ...] = ()
) -> VideoGenerator:
    """The generator that a config describes, with fresh weights.

    Args:
        config: size, shape and number of scales.
        condition_channels: C.
        foreground_channels: see the generators.
    """
    if isinstance(config, SlimConfig):
        return SlimGenerator(config, condition_channels, foreground_channels)
    kind = CompositeGenerator if config.num_scales == 1 else CoarseToFineGenerator
    return kind(config, condition_channels, foreground_channels)
