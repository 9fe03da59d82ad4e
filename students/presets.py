"""Students by name. Each says what it costs: multiply-adds of one keyframe at 512x256 with 36 condition channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fastv2v.nn.composite import CompositeConfig
from fastv2v.nn.generators import VideoConfig
from fastv2v.nn.slim import SlimConfig


def published() -> CompositeConfig:
    """Fast-Vid2Vid's student: half-size input, inverted residual blocks; 259 GMACs with a foreground branch."""
    return CompositeConfig(width=128, num_downsamples=3, num_blocks=9, norm="batch", block="inverted", input_scale=2)


def demo() -> CompositeConfig:
    """The published skeleton, narrow enough to train in minutes on a CPU; 4.2 GMACs."""
    return CompositeConfig(width=12, num_downsamples=3, num_blocks=4, edge_kernel=3, norm="batch", input_scale=2)


def base() -> SlimConfig:
    """Everything at a quarter of the size, wide; 9.8 GMACs."""
    return SlimConfig(widths=(88, 144, 232), depths=(2, 2, 4), up_depths=(1, 2), refine_width=12)


def small() -> SlimConfig:
    """Half of ``base``; 4.9 GMACs."""
    return SlimConfig(widths=(68, 120, 168), depths=(1, 2, 4), up_depths=(1, 1), refine_width=8)


def tiny() -> SlimConfig:
    """For streams without a GPU; 2 GMACs."""
    return SlimConfig(widths=(48, 80, 104), depths=(1, 1, 3), up_depths=(1, 1), refine_width=4)


def micro() -> SlimConfig:
    """About half of ``tiny``; 1.08 GMACs."""
    return SlimConfig(widths=(32, 56, 80), depths=(1, 1, 3), up_depths=(1, 1), refine_width=4)


def nano() -> SlimConfig:
    """For very small devices; 0.46 GMACs."""
    return SlimConfig(widths=(28, 40, 56), depths=(0, 1, 3), up_depths=(0, 1))


def pico() -> SlimConfig:
    """As little as can still follow a scene; 0.26 GMACs."""
    return SlimConfig(widths=(20, 28, 40), depths=(0, 1, 2), up_depths=(0, 1))


STUDENTS: Mapping[str, Callable[[], VideoConfig]] = {
    "published": published,
    "demo": demo,
    "base": base,
    "small": small,
    "tiny": tiny,
    "micro": micro,
    "nano": nano,
    "pico": pico,
}
"""Students by the name the command line knows them by."""
