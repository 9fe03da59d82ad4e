"""The feature-pyramid discriminator, which asks of every place whether it looks real and whether it fits its label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from fastv2v.errors import ConfigError, ShapeError
from fastv2v.nn.blocks import path_widths
from fastv2v.nn.discriminator import Features
from fastv2v.nn.spade import SLOPE, NormedConv2d, init_normed

HALVINGS = 5
"""How often the way up the pyramid halves the size."""
JUDGED = 3
"""Sizes that are judged: 1/4, 1/8 and 1/16 of the frame's."""


@dataclass(frozen=True, kw_only=True)
class PyramidConfig:
    """Size of a feature-pyramid discriminator."""

    width: int = 0
    """Channels at half size; they double up to eight times as many. 0 for none: nothing is built."""

    def __post_init__(self) -> None:
        if self.width < 0:
            raise ConfigError(f"the width of a pyramid discriminator must be 0 (none) or more, got {self.width}")


class PyramidDiscriminator(nn.Module):
    """Scores at three sizes from features of all: true or false, plus how well the features fit the condition.

    Features go down to 1/32 of the size by strided convolutions, and up again by doubling, where those of the way down
    are added. At each judged size a score is the sum of a convolution of the features and of their inner product with
    an embedding of the condition there, so that a place must show what its label says, however real it looks.

    Args:
        condition_channels: C, channels of one encoded condition: one-hot classes, or whatever else.
        config: size, of width 1 or more.

    Source:
        Liu et al., "Learning to Predict Layout-to-image Conditional Convolutions for Semantic Image Synthesis", NeurIPS
        2019. The inner product is that of Miyato and Koyama, "cGANs with Projection Discriminator", ICLR 2018.
    """

    def __init__(self, condition_channels: int, config: PyramidConfig) -> None:
        super().__init__()
        self.config = config
        self.condition_channels = condition_channels
        width = config.width
        widths = path_widths(width, HALVINGS - 1, 8 * width)
        self.down = nn.ModuleList(_layer(a, b, stride=2) for a, b in pairwise([3, *widths]))
        # From half size nothing is judged, so that nothing leads there.
        self.lateral = nn.ModuleList(_layer(c, 4 * width, kernel=1) for c in widths[1:])
        self.last = nn.ModuleList(_layer(4 * width, 2 * width) for _ in range(JUDGED))
        self.real = NormedConv2d(2 * width, 1)
        self.fit = NormedConv2d(2 * width, 2 * width, 1)
        self.embedding = NormedConv2d(condition_channels, 2 * width, 1)
        init_normed(self, spectral=True)

    def forward(self, condition: Tensor, picture: Tensor) -> Features:
        """Scores of one picture; see ``judge``."""
        return self.judge(condition, [picture])[0]

    def judge(self, condition: Tensor, pictures: Sequence[Tensor]) -> list[Features]:
        """Scores of several pictures under one condition, which is embedded once.

        Args:
            condition: (B, C, H, W).
            pictures: each (B, 3, H, W).

        Returns:
            For each picture and size, finest first, a list of one map of scores, (B, 1, h, w); h and w are H and W
            divided by 4, 8 and 16, rounded up.

        Raises:
            ShapeError: if the condition has other channels, or frames are too small for norms of the coarsest features.
        """
        if condition.shape[1] != self.condition_channels:
            raise ShapeError(
                f"the pyramid discriminator wants {self.condition_channels} condition channels, got "
                f"{condition.shape[1]}"
            )
        if max(condition.shape[-2:]) <= 2**HALVINGS:
            raise ShapeError(
                f"frames of {condition.shape[-2]}x{condition.shape[-1]} are too small for the pyramid discriminator: "
                f"one side must exceed {2**HALVINGS}"
            )
        embedded = self._embedded(condition)
        return [[[score] for score in self._scores(picture, embedded)] for picture in pictures]

    def _embedded(self, condition: Tensor) -> list[Tensor]:
        """The embedding at the judged sizes, finest first.

        It is linear, so that the mean of embeddings over the pixels of a block is the embedding of their mean.
        """
        made, small = [], F.avg_pool2d(condition, 2, ceil_mode=True)  # over real pixels only
        for _ in range(JUDGED):
            small = F.avg_pool2d(small, 2, ceil_mode=True)
            made.append(self.embedding(small))
        return made

    def _scores(self, picture: Tensor, embedded: list[Tensor]) -> list[Tensor]:
        """Maps of scores, finest first."""
        seen = [picture]
        for layer in self.down:
            seen.append(layer(seen[-1]))
        sides = [layer(x) for layer, x in zip(self.lateral, seen[2:], strict=True)]
        made = [sides[-1]]  # coarsest first
        for side in reversed(sides[:-1]):
            larger = F.interpolate(made[-1], size=side.shape[-2:], mode="bilinear", align_corners=False)
            made.append(larger + side)
        features = [layer(x) for layer, x in zip(self.last, made[:0:-1], strict=True)]
        return [self.real(x) + (self.fit(x) * e).sum(1, keepdim=True) for x, e in zip(features, embedded, strict=True)]


def _layer(c_in: int, c_out: int, *, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, norm, activation."""
    return nn.Sequential(
        NormedConv2d(c_in, c_out, kernel, stride=stride), nn.InstanceNorm2d(c_out), nn.LeakyReLU(SLOPE)
    )
