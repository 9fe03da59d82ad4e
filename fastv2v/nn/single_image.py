"""The single-image generator: one frame from one condition, for the first frames of a video."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastv2v.contracts import FrameOutput, History
from fastv2v.errors import ConfigError, ShapeError
from fastv2v.nn.blocks import DownPath, Head, NormKind, UpPath, block_stack, init_gan_weights, path_widths, up_block
from fastv2v.render import advance


@dataclass(frozen=True, kw_only=True)
class SingleImageConfig:
    """Size and shape of a single-image generator."""

    width: int = 64
    """Channels after the entry at full size (pix2pixHD's ngf)."""
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
    num_enhancers: int = 0
    """Local enhancers: each doubles the size that the rest works at, so that the bottleneck is halved as often again
    (published for 2048 pixels: 1, with width 32 and 4 downsamplings)."""
    num_local_blocks: int = 3
    """Residual blocks of each enhancer."""
    feature_channels: int = 0
    """Channels of features behind the condition, fed in at the entry, around the bottleneck and before the end
    (published for faces: 16). They come from a bank; ``train-first`` has none to give, leave it 0 there."""

    def __post_init__(self) -> None:
        for name in ("width", "num_downsamples", "num_blocks", "num_local_blocks"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("num_enhancers", "feature_channels"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be 0 (none) or more, got {getattr(self, name)}")
        if self.num_enhancers and self.feature_channels:
            raise ConfigError("num_enhancers and feature_channels do not go together; set one of them to 0")
        if self.max_width < self.inner_width:
            raise ConfigError(
                f"max_width ({self.max_width}) must not be below width ({self.width}), doubled by each of "
                f"{self.num_enhancers} enhancers"
            )
        if self.edge_kernel < 1 or self.edge_kernel % 2 == 0:
            raise ConfigError(f"edge_kernel must be odd, got {self.edge_kernel}")
        if self.norm not in get_args(NormKind):
            raise ConfigError(f"norm is one of {', '.join(get_args(NormKind))}, got {self.norm!r}")

    @property
    def inner_width(self) -> int:
        """Channels after the entry of the coarsest part: ``width`` without enhancers, doubled by each of them."""
        return self.width * 2**self.num_enhancers


class LocalEnhancer(nn.Module):
    """Doubles the size of coarser features, guided by the condition at the doubled size.

    Args:
        condition_channels: C.
        width: channels that come out; the coarser features have twice as many.
        num_blocks: residual blocks.
        kernel: of the entry.
        norm: normalisation.
    """

    def __init__(self, condition_channels: int, width: int, num_blocks: int, *, kernel: int, norm: NormKind) -> None:
        super().__init__()
        self.encoder = DownPath(condition_channels, width, 1, kernel=kernel, norm=norm)
        self.blocks = block_stack("residual", 2 * width, num_blocks, norm=norm)
        self.decoder = UpPath(width, 1, norm=norm)

    def forward(self, condition: Tensor, coarse: Tensor) -> Tensor:
        """(B, C, H, W) and (B, 2 * width, H/2, W/2) to (B, width, H, W)."""
        return self.decoder(self.blocks(self.encoder(condition) + coarse))


class SingleImageGenerator(nn.Module):
    """Draws a frame from its condition alone: down, residual blocks, up.

    With enhancers this happens at a reduced size, and each enhancer doubles it. With features the condition says in its
    last channels what the parts of the picture look like, and they are shown to the network at both sizes it works at.

    Args:
        config: size and shape.
        condition_channels: C, channels of one encoded condition, features left out.

    Source:
        Global generator and local enhancer of Wang et al., "High-Resolution Image Synthesis and Semantic Manipulation
        with Conditional GANs", CVPR 2018; where features enter, as in the published code of vid2vid.
    """

    def __init__(self, config: SingleImageConfig, condition_channels: int) -> None:
        super().__init__()
        self.config = config
        self._condition_channels = condition_channels
        depth, kernel, norm, features = config.num_downsamples, config.edge_kernel, config.norm, config.feature_channels
        width = config.inner_width
        widths = path_widths(width, depth, config.max_width)
        self.encoder = DownPath(
            condition_channels + features, width, depth, kernel=kernel, norm=norm, max_width=config.max_width
        )
        self.blocks = block_stack("residual", widths[-1] + features, config.num_blocks, norm=norm)
        self.decoder = UpPath(width, depth, norm=norm, max_width=config.max_width)
        if features:  # those of the blocks, and the map once more
            self.decoder[0] = up_block(widths[-1] + 2 * features, widths[-2], norm=norm)
        self.enhancers = nn.ModuleList(
            LocalEnhancer(condition_channels, width // 2**i, config.num_local_blocks, kernel=kernel, norm=norm)
            for i in range(1, config.num_enhancers + 1)
        )
        self.head = Head(config.width + features, 3, kernel=kernel)
        init_gan_weights(self)

    @property
    def condition_channels(self) -> int:
        """C + F: channels of one encoded condition, then those of the features."""
        return self._condition_channels + self.config.feature_channels

    @property
    def history_length(self) -> int:
        """1: no generator looks back on less; what lies there is not looked at."""
        return 1

    @property
    def size_multiple(self) -> int:
        """Height and width must be divisible by this."""
        return 2 ** (self.config.num_downsamples + self.config.num_enhancers)

    @property
    def uses_flow(self) -> bool:
        """Whether it predicts flow and warps the previous frame."""
        return False

    def forward(self, condition: Tensor) -> Tensor:
        """Draw a frame.

        Args:
            condition: (B, C + F, H, W).

        Returns:
            (B, 3, H, W) in [-1, 1], float32.

        Raises:
            ShapeError: if the condition has other channels, or a size that does not divide or is too small.
        """
        height, width = condition.shape[-2:]
        least = max(2 * self.size_multiple, (self.config.edge_kernel // 2 + 1) * 2**self.config.num_enhancers)
        if condition.ndim != 4 or condition.shape[1] != self.condition_channels:
            features = self.config.feature_channels
            raise ShapeError(
                f"the generator wants conditions (B, {self.condition_channels}, H, W)"
                f"{f', the last {features} channels of which are features' if features else ''}, got "
                f"{tuple(condition.shape)}"
            )
        if height % self.size_multiple or width % self.size_multiple or min(height, width) < least:
            raise ShapeError(
                f"frames of {height}x{width}: height and width must be multiples of {self.size_multiple} and at least "
                f"{least}"
            )
        return torch.tanh(self.head(self._features(condition)).float())

    def _features(self, condition: Tensor) -> Tensor:
        """What the head draws from, (B, width + F, H, W)."""
        if not self.config.feature_channels:
            sizes = [condition]  # finest first
            for _ in self.enhancers:
                sizes.append(_halved(sizes[-1]))
            features = self.decoder(self.blocks(self.encoder(sizes.pop())))
            for enhancer in self.enhancers:
                features = enhancer(sizes.pop(), features)
            return features
        given = small = condition[:, self._condition_channels :]
        for _ in range(self.config.num_downsamples):
            small = _halved(small)
        features = self.blocks(torch.cat([self.encoder(condition), small], dim=1))
        return torch.cat([self.decoder(torch.cat([features, small], dim=1)), given], dim=1)

    def step(self, condition: Tensor, history: History) -> tuple[FrameOutput, History]:
        """Draw a frame as a step model does, without looking back.

        Args:
            condition: (B, C + F, H, W).
            history: advanced and not looked at.
        """
        frame = self(condition)
        return FrameOutput(frame, frame), advance(history, condition, frame)


def _halved(maps: Tensor) -> Tensor:
    """Half the size by means over 3x3 pixels, of which those outside do not count."""
    return F.avg_pool2d(maps, 3, stride=2, padding=1, count_include_pad=False)
