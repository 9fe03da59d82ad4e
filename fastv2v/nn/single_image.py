"""The single-image generator: one frame from one condition, for the first frames of a video."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn

from fastv2v.contracts import FrameOutput, History
from fastv2v.errors import ConfigError, ShapeError
from fastv2v.nn.blocks import DownPath, Head, NormKind, UpPath, block_stack, init_gan_weights, path_widths
from fastv2v.render import advance


@dataclass(frozen=True, kw_only=True)
class SingleImageConfig:
    """Size and shape of a single-image generator."""

    width: int = 64
    """Channels after the entry (pix2pixHD's ngf)."""
    num_downsamples: int = 3
    """How often the size is halved before the bottleneck."""
    num_blocks: int = 9
    """Residual blocks at the bottleneck."""
    max_width: int = 1024
    """No layer has more channels than this."""
    edge_kernel: int = 7
    """Kernel of the full-size convolutions at both ends."""
    norm: NormKind = "instance"
    """Normalisation of all layers."""

    def __post_init__(self) -> None:
        for name in ("width", "num_downsamples", "num_blocks"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_width < self.width:
            raise ConfigError(f"max_width ({self.max_width}) must not be below width ({self.width})")
        if self.edge_kernel < 1 or self.edge_kernel % 2 == 0:
            raise ConfigError(f"edge_kernel must be odd, got {self.edge_kernel}")
        if self.norm not in get_args(NormKind):
            raise ConfigError(f"norm is one of {', '.join(get_args(NormKind))}, got {self.norm!r}")


class SingleImageGenerator(nn.Module):
    """Draws a frame from its condition alone: down, residual blocks, up.

    Args:
        config: size and shape.
        condition_channels: C, channels of one encoded condition.

    Source:
        The global generator of Wang et al., "High-Resolution Image Synthesis and Semantic Manipulation with Conditional
        GANs", CVPR 2018.
    """

    def __init__(self, config: SingleImageConfig, condition_channels: int) -> None:
        super().__init__()
        self.config = config
        self._condition_channels = condition_channels
        width, depth, kernel, norm = config.width, config.num_downsamples, config.edge_kernel, config.norm
        bottom = path_widths(width, depth, config.max_width)[-1]
        self.encoder = DownPath(condition_channels, width, depth, kernel=kernel, norm=norm, max_width=config.max_width)
        self.blocks = block_stack("residual", bottom, config.num_blocks, norm=norm)
        self.decoder = UpPath(width, depth, norm=norm, max_width=config.max_width)
        self.head = Head(width, 3, kernel=kernel)
        init_gan_weights(self)

    @property
    def condition_channels(self) -> int:
        """C: channels of one encoded condition."""
        return self._condition_channels

    @property
    def history_length(self) -> int:
        """1: no generator looks back on less; what lies there is not looked at."""
        return 1

    @property
    def size_multiple(self) -> int:
        """Height and width must be divisible by this."""
        return 2**self.config.num_downsamples

    @property
    def uses_flow(self) -> bool:
        """Whether it predicts flow and warps the previous frame."""
        return False

    def forward(self, condition: Tensor) -> Tensor:
        """Draw a frame.

        Args:
            condition: (B, C, H, W).

        Returns:
            (B, 3, H, W) in [-1, 1], float32.

        Raises:
            ShapeError: if the condition has other channels, or a size that does not divide or is too small.
        """
        height, width = condition.shape[-2:]
        least = max(2 * self.size_multiple, self.config.edge_kernel // 2 + 1)
        if condition.ndim != 4 or condition.shape[1] != self.condition_channels:
            raise ShapeError(
                f"the generator wants conditions (B, {self.condition_channels}, H, W), got {tuple(condition.shape)}"
            )
        if height % self.size_multiple or width % self.size_multiple or min(height, width) < least:
            raise ShapeError(
                f"frames of {height}x{width}: height and width must be multiples of {self.size_multiple} and at least "
                f"{least}"
            )
        features = self.decoder(self.blocks(self.encoder(condition)))
        return torch.tanh(self.head(features).float())

    def step(self, condition: Tensor, history: History) -> tuple[FrameOutput, History]:
        """Draw a frame as a step model does, without looking back.

        Args:
            condition: (B, C, H, W).
            history: advanced and not looked at.
        """
        frame = self(condition)
        return FrameOutput(frame, frame), advance(history, condition, frame)
