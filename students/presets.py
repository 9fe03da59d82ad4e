"""Students by name. Each says what it costs and derives from another where it can."""

from __future__ import annotations

from fastv2v.nn.composite import CompositeConfig


def published() -> CompositeConfig:
    """Fast-Vid2Vid's student: half-size input, inverted residual blocks; 259 G MACs per street keyframe at 512x256."""
    return CompositeConfig(width=128, num_downsamples=3, num_blocks=9, norm="batch", block="inverted", input_scale=2)


def demo() -> CompositeConfig:
    """A student that trains in minutes on a CPU: half-size input."""
    return CompositeConfig(width=12, num_downsamples=3, num_blocks=4, edge_kernel=3, norm="batch", input_scale=2)
