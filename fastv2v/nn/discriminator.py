"""Multi-scale patch discriminators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

import torch.nn.functional as F
from torch import Tensor, nn

from fastv2v.errors import ConfigError
from fastv2v.nn.blocks import NormKind, init_gan_weights, norm_layer, used_channels

Features = list[list[Tensor]]
"""For each scale, finest first: the outputs of all blocks; the last is the patch map of scores."""


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """Size of a multi-scale patch discriminator."""

    width: int = 64
    """Channels of the first block (vid2vid's ndf)."""
    num_layers: int = 3
    """Blocks that halve the size."""
    num_scales: int = 2
    """Number of networks; each next one sees half the size (vid2vid's num_D)."""
    norm: NormKind = "batch"
    """Normalisation of all blocks but the first and the last."""
    coarse_widths: bool = False
    """Double the width from each scale to the next coarser one, up to 64 (vid2vid's rule, which matters below 64)."""

    def __post_init__(self) -> None:
        for name in ("width", "num_layers", "num_scales"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.norm not in get_args(NormKind):
            raise ConfigError(f"norm is one of {', '.join(get_args(NormKind))}, got {self.norm!r}")

    def width_of(self, net: int) -> int:
        """Channels of the first block of ``nets[net]``; the last net sees the full size."""
        if not self.coarse_widths:
            return self.width
        return min(64, self.width * 2 ** (self.num_scales - 1 - net))


class PatchDiscriminator(nn.Module):
    """One patch network: 4x4 convolutions with padding 2, LeakyReLU 0.2, a map of scores at the end.

    Source:
        Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks", CVPR 2017.
    """

    def __init__(self, c_in: int, config: DiscriminatorConfig) -> None:
        super().__init__()
        widths = [min(config.width * 2**i, 512) for i in range(config.num_layers + 1)]
        blocks = [nn.Sequential(nn.Conv2d(c_in, widths[0], 4, stride=2, padding=2), nn.LeakyReLU(0.2))]
        for i in range(1, config.num_layers + 1):
            stride = 2 if i < config.num_layers else 1
            conv = nn.Conv2d(widths[i - 1], widths[i], 4, stride=stride, padding=2)
            blocks.append(nn.Sequential(conv, norm_layer(config.norm, widths[i]), nn.LeakyReLU(0.2)))
        blocks.append(nn.Sequential(nn.Conv2d(widths[-1], 1, 4, padding=2)))
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Outputs of all blocks for (B, C, H, W)."""
        return self._follow(self.blocks[0](x))

    def judge(self, condition: Tensor, pictures: Sequence[Tensor], used: Tensor | None) -> list[list[Tensor]]:
        """Outputs of all blocks for several pictures under one condition; see ``MultiScaleDiscriminator.judge``.

        ``condition`` holds the channels ``used`` of the condition; None for all.
        """
        entry, activation = self.blocks[0].children()
        assert isinstance(entry, nn.Conv2d)  # as built above; no norm follows it
        count = entry.in_channels - pictures[0].shape[1]
        of_condition, of_picture = entry.weight[:, :count], entry.weight[:, count:]
        if used is not None:
            of_condition = of_condition.index_select(1, used)
        shared = F.conv2d(condition, of_condition, entry.bias, stride=entry.stride, padding=entry.padding)
        return [
            self._follow(activation(shared + F.conv2d(x, of_picture, stride=entry.stride, padding=entry.padding)))
            for x in pictures
        ]

    def _follow(self, first: Tensor) -> list[Tensor]:
        """Outputs of all blocks from that of the first."""
        outputs = [first]
        for block in self.blocks[1:]:
            outputs.append(block(outputs[-1]))
        return outputs


class MultiScaleDiscriminator(nn.Module):
    """Patch discriminators on an average-pooled pyramid.

    ``nets[-1]`` sees the full size and ``nets[0]`` the coarsest, so that after growing by one scale the old networks
    keep seeing the resolution they were trained at.

    Source:
        Wang et al., "High-Resolution Image Synthesis and Semantic Manipulation with Conditional GANs", CVPR 2018.
    """

    def __init__(self, c_in: int, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        self.nets = nn.ModuleList(
            PatchDiscriminator(c_in, replace(config, width=config.width_of(i))) for i in range(config.num_scales)
        )
        init_gan_weights(self)

    def forward(self, x: Tensor) -> Features:
        """Features of (B, C, H, W) for each scale, finest first."""
        features = []
        for i, net in enumerate(reversed(self.nets)):
            if i:
                x = _halve(x)
            features.append(net(x))
        return features

    def judge(self, condition: Tensor, pictures: Sequence[Tensor]) -> list[Features]:
        """Features of several pictures under one condition: the same as of ``cat([condition, picture], dim=1)`` each.

        The first convolution is linear, so what it makes of the condition is computed once for all pictures, and
        gradients that go back to the pictures are not computed for the many channels of the condition as well. In
        training, channels of the condition that are zero everywhere are left out (``used_channels``).

        Args:
            condition: (B, C, H, W).
            pictures: each (B, D, H, W), where this discriminator takes C + D channels.
        """
        used = used_channels(condition) if self.training else None
        if used is not None:
            condition = condition.index_select(1, used)
        found: list[Features] = [[] for _ in pictures]
        for i, net in enumerate(reversed(self.nets)):
            if i:
                condition, pictures = _halve(condition), [_halve(x) for x in pictures]
            for features, outputs in zip(found, net.judge(condition, pictures, used), strict=True):  # type: ignore[operator]
                features.append(outputs)
        return found


def _halve(x: Tensor) -> Tensor:
    """Half the size, averaged over real pixels only."""
    return F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
