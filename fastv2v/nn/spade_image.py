"""SPADE generator of single images, for the first frames of a video."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastv2v.contracts import FrameOutput, History
from fastv2v.errors import ConfigError, ShapeError
from fastv2v.nn.blocks import NormKind, path_widths
from fastv2v.nn.spade import SLOPE, Hint, ModulationConfig, SpadeBlock, doubled, init_normed, plain_conv, resized
from fastv2v.render import advance


@dataclass(frozen=True, kw_only=True)
class SpadeImageConfig:
    """Size and shape of a SPADE generator of single images. The defaults are the published ones for 1024x512."""

    finest_width: int = 128
    """Channels of the finest block; each coarser one has twice as many."""
    max_width: int = 2048
    """No layer has more channels than this."""
    doublings: int = 5
    """How often the size is doubled from where the picture begins (published: 16x32) to the frame's."""
    label: ModulationConfig = field(default_factory=lambda: ModulationConfig(hidden=128, kernel=5))
    """How labels modulate."""
    norm: NormKind = "batch"
    """The normalisation below the modulation."""
    spectral: bool = True
    """Whether the weights of the main convolutions are normalised by their largest singular value."""

    def __post_init__(self) -> None:
        if self.finest_width < 1 or self.doublings < 2:
            raise ConfigError(
                f"finest_width must be at least 1 and doublings at least 2, got {self.finest_width} and "
                f"{self.doublings}"
            )
        if self.max_width < self.finest_width:
            raise ConfigError(f"max_width ({self.max_width}) must not be below finest_width ({self.finest_width})")
        if self.norm not in get_args(NormKind):
            raise ConfigError(f"norm is one of {', '.join(get_args(NormKind))}, got {self.norm!r}")

    @property
    def feature_channels(self) -> int:
        """Channels of features behind the condition: it takes none."""
        return 0


class SpadeImageGenerator(nn.Module):
    """Draws a frame from its label alone: a small one first, doubled block by block, two of the last add up.

    The published generator also mixes in the code of a random style; this one draws the same frame every time.

    Args:
        config: size and shape.
        condition_channels: C.

    Source:
        Park et al., "Semantic Image Synthesis with Spatially-Adaptive Normalization", CVPR 2019, in the shape of the
        first-frame model of Mallya et al., "World-Consistent Video-to-Video Synthesis", ECCV 2020.
    """

    def __init__(self, config: SpadeImageConfig, condition_channels: int) -> None:
        super().__init__()
        self.config = config
        self._condition_channels = condition_channels
        widths = path_widths(config.finest_width, config.doublings - 1, config.max_width)  # finest first
        source = {"label": (condition_channels, config.label)}

        def block(c_in: int, c_out: int) -> SpadeBlock:
            return SpadeBlock(c_in, c_out, source, norm=config.norm)

        self.entry = plain_conv(condition_channels, widths[-1], 3)
        self.head = nn.ModuleList(block(widths[-1], widths[-1]) for _ in range(2))
        pairs = [(widths[i + 1], widths[i]) for i in reversed(range(config.doublings - 1))]
        self.up = nn.ModuleList(nn.ModuleList([block(a, b), block(b, b)]) for a, b in pairs)
        self.coarse_head = plain_conv(widths[1], 3, 5)
        self.fine_head = plain_conv(widths[0], 3, 5)
        init_normed(self, spectral=config.spectral)

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
        return 2**self.config.doublings

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
            ShapeError: if the condition has other channels or a size that does not divide.
        """
        height, width = condition.shape[-2:]
        if condition.ndim != 4 or condition.shape[1] != self.condition_channels:
            raise ShapeError(
                f"the generator wants conditions (B, {self.condition_channels}, H, W), got {tuple(condition.shape)}"
            )
        if height % self.size_multiple or width % self.size_multiple:
            raise ShapeError(f"frames of {height}x{width}: height and width must be multiples of {self.size_multiple}")
        count = self.config.doublings
        x = F.leaky_relu(self.entry(resized(condition, (height >> count, width >> count))), SLOPE)
        for block in self.head:
            x = self._drawn(block, x, condition)
        x = doubled(x)
        picture = x
        for i, pair in enumerate(self.up):
            if i == len(self.up) - 1:
                picture = doubled(self.coarse_head(F.leaky_relu(x, SLOPE)))
            for block in pair.children():
                x = self._drawn(block, x, condition)
            x = doubled(x)
        return torch.tanh((picture + self.fine_head(F.leaky_relu(x, SLOPE))).float())

    def _drawn(self, block: nn.Module, x: Tensor, label: Tensor) -> Tensor:
        """One block under the label at its size."""
        drawn: Tensor = block(x, {"label": Hint(resized(label, x.shape[-2:]))})
        return drawn

    def step(self, condition: Tensor, history: History) -> tuple[FrameOutput, History]:
        """Draw a frame as a step model does, without looking back.

        Args:
            condition: (B, C, H, W).
            history: advanced and not looked at.
        """
        frame = self(condition)
        return FrameOutput(frame, frame), advance(history, condition, frame)
