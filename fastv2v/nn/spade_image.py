"""SPADE generator of single images, for the first frames of a video."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastv2v.contracts import FrameOutput, History
from fastv2v.errors import ConfigError, ShapeError
from fastv2v.nn.blocks import NormKind, path_widths
from fastv2v.nn.spade import (
    SLOPE,
    Hint,
    ModulationConfig,
    MultiSpade,
    NormedConv2d,
    NormedLinear,
    SpadeBlock,
    doubled,
    init_normed,
    plain_conv,
    resized,
)
from fastv2v.render import advance


@dataclass(frozen=True, kw_only=True)
class StyleConfig:
    """A random style that first frames are drawn in, and the encoder that finds it in real frames while training."""

    channels: int = 0
    """Numbers that make a style, each drawn from N(0, 1) (published: 256). 0 for none: a label has one picture only."""
    code: int = 512
    """Numbers that two linear layers make of them, which every adaptive norm sees."""
    encoder_width: int = 64
    """Channels of the encoder's first convolution; they double up to eight times as many."""
    encoder_size: int = 256
    """Side of the square that a real frame is resized to for the encoder, in pixels; it is halved six times."""

    def __post_init__(self) -> None:
        if self.channels < 0:
            raise ConfigError(f"style channels must be 0 (no style) or more, got {self.channels}")
        if self.code < 1 or self.encoder_width < 1:
            raise ConfigError(
                f"code and encoder_width of a style must be at least 1, got {self.code} and {self.encoder_width}"
            )
        if self.encoder_size < 64 or self.encoder_size % 64:
            raise ConfigError(f"encoder_size must be a multiple of 64, got {self.encoder_size}")


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
    style: StyleConfig = field(default_factory=StyleConfig)
    """The random style; none by default."""
    coordinates: bool = False
    """Whether the first convolution also sees where each pixel lies: row and column, from -1 to 1 (published)."""
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


class StyleEncoder(nn.Module):
    """What style a real frame has: the mean and the logarithm of the variance of each of its numbers.

    Args:
        config: its size.

    Source:
        Kingma and Welling, "Auto-Encoding Variational Bayes", ICLR 2014, as in Park et al., CVPR 2019.
    """

    def __init__(self, config: StyleConfig) -> None:
        super().__init__()
        self._size = config.encoder_size
        widths = path_widths(config.encoder_width, 5, 8 * config.encoder_width)
        layers = [nn.Sequential(NormedConv2d(a, b, stride=2), nn.LeakyReLU(SLOPE)) for a, b in pairwise([3, *widths])]
        self.layers = nn.Sequential(*layers)
        seen = widths[-1] * (config.encoder_size // 64) ** 2
        self.mean = nn.Linear(seen, config.channels)
        self.log_variance = nn.Linear(seen, config.channels)

    def forward(self, frame: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance, each (B, S), float32, of frames (B, 3, H, W) in [-1, 1] of any size."""
        size = (self._size, self._size)
        small = F.interpolate(frame, size=size, mode="bilinear", align_corners=False, antialias=True)
        seen = self.layers(small).flatten(1)
        return self.mean(seen).float(), self.log_variance(seen).float()


def style_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """How far encoded styles are from those that are drawn: divergence of N(mean, variance) from N(0, 1).

    Args:
        mean: (B, S).
        log_variance: natural logarithm of the variance, (B, S).

    Returns:
        Scalar: summed over the S numbers and averaged over pictures. The published code sums over pictures too, so that
        its weight there grows with the batch; the two are equal at one picture.

    Source:
        Kullback-Leibler divergence of two normal distributions, Kingma and Welling, ICLR 2014, appendix B.
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1).mean()


class StyleBlock(nn.Module):
    """Adaptive norm by the code of a style, activation, convolution.

    Args:
        c_in: channels in.
        c_out: channels out.
        code: channels of the code.
        norm: the normalisation below.

    Source:
        Huang and Belongie, "Arbitrary Style Transfer in Real-time with Adaptive Instance Normalization", ICCV 2017.
    """

    def __init__(self, c_in: int, c_out: int, code: int, *, norm: NormKind) -> None:
        super().__init__()
        # Modulated by one pixel, which makes its convolution a linear layer: y * (1 + gamma) + beta.
        self.norm = MultiSpade(c_in, {"style": (code, ModulationConfig(kernel=1))}, norm=norm)
        self.conv = NormedConv2d(c_in, c_out)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """(B, C_in, h, w) and the code (B, K, 1, 1) to (B, C_out, h, w)."""
        made: Tensor = self.conv(F.leaky_relu(self.norm(x, {"style": Hint(code)}), SLOPE))
        return made


class SpadeImageGenerator(nn.Module):
    """Draws a frame from its label alone: a small one first, doubled block by block, two of the last add up.

    With a style it draws one of many frames that the label may mean. The style comes in between the two blocks of each
    size but the last, and before the first block of all; the block before the last doubling then narrows late, as
    published. Its encoder is part of the generator, and runs in training only.

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
        style = config.style

        def block(c_in: int, c_out: int) -> SpadeBlock:
            return SpadeBlock(c_in, c_out, source, norm=config.norm)

        entered = condition_channels + 2 * config.coordinates
        self.entry = plain_conv(entered, widths[-2] if style.channels else widths[-1], 3)
        self.head = nn.ModuleList(block(widths[-1], widths[-1]) for _ in range(2))
        pairs = [(widths[i + 1], widths[i]) for i in reversed(range(config.doublings - 1))]
        # Between the two blocks of each size.
        inner = [b for _, b in pairs]
        if style.channels and len(pairs) > 1:
            inner[-2] = pairs[-2][0]
        self.up = nn.ModuleList(
            nn.ModuleList([block(a, c), block(c, b)]) for (a, b), c in zip(pairs, inner, strict=True)
        )
        self.coarse_head = plain_conv(widths[1], 3, 5)
        self.fine_head = plain_conv(widths[0], 3, 5)
        if style.channels:
            self.style_code = nn.Sequential(
                NormedLinear(style.channels, style.code), nn.ReLU(), NormedLinear(style.code, style.code), nn.ReLU()
            )
            self.style_head = StyleBlock(widths[-2], widths[-1], style.code, norm=config.norm)
            self.style_up = nn.ModuleList(StyleBlock(c, c, style.code, norm=config.norm) for c in inner[:-1])
            self.style_encoder = StyleEncoder(style)
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

    @property
    def style_channels(self) -> int:
        """S: numbers that make a style; 0 for none."""
        return self.config.style.channels

    def draw_style(self, count: int, rng: torch.Generator) -> Tensor:
        """So many random styles, (count, S), where the weights lie; ``rng``, on the CPU, is not used where S is 0."""
        weight = self.entry.weight
        if not self.style_channels:
            return weight.new_zeros(count, 0)
        return torch.randn(count, self.style_channels, generator=rng).to(weight.device)

    def forward(self, condition: Tensor, style: Tensor | None = None) -> Tensor:
        """Draw a frame.

        Args:
            condition: (B, C, H, W).
            style: (B, S); None takes the mean of all styles, zeros, for each.

        Returns:
            (B, 3, H, W) in [-1, 1], float32.

        Raises:
            ShapeError: if the condition has other channels or a size that does not divide, or the style has another
                shape.
        """
        height, width = condition.shape[-2:]
        if condition.ndim != 4 or condition.shape[1] != self.condition_channels:
            raise ShapeError(
                f"the generator wants conditions (B, {self.condition_channels}, H, W), got {tuple(condition.shape)}"
            )
        if height % self.size_multiple or width % self.size_multiple:
            raise ShapeError(f"frames of {height}x{width}: height and width must be multiples of {self.size_multiple}")
        wanted = (condition.shape[0], self.style_channels)
        if style is None:
            style = condition.new_zeros(wanted)
        if tuple(style.shape) != wanted:
            raise ShapeError(f"the generator wants a style {wanted}, got {tuple(style.shape)}")
        code = self.style_code(style)[:, :, None, None] if self.style_channels else style
        count = self.config.doublings
        x = F.leaky_relu(self.entry(self._start(condition, (height >> count, width >> count))), SLOPE)
        if self.style_channels:
            x = self.style_head(x, code)
        for block in self.head:
            x = self._drawn(block, x, condition)
        x = doubled(x)
        picture = x
        for i, pair in enumerate(self.up):
            if i == len(self.up) - 1:
                picture = doubled(self.coarse_head(F.leaky_relu(x, SLOPE)))
            first, second = pair.children()
            x = self._drawn(first, x, condition)
            if self.style_channels and i < len(self.style_up):
                x = self.style_up[i](x, code)
            x = doubled(self._drawn(second, x, condition))
        return torch.tanh((picture + self.fine_head(F.leaky_relu(x, SLOPE))).float())

    def _start(self, condition: Tensor, size: tuple[int, int]) -> Tensor:
        """What the first convolution sees."""
        small = resized(condition, size)
        if not self.config.coordinates:
            return small
        rows, columns = (torch.linspace(-1, 1, n, device=small.device, dtype=small.dtype) for n in size)
        places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
        return torch.cat([small, places.expand(small.shape[0], -1, -1, -1)], dim=1)

    def _drawn(self, block: nn.Module, x: Tensor, label: Tensor) -> Tensor:
        """One block under the label at its size."""
        drawn: Tensor = block(x, {"label": Hint(resized(label, x.shape[-2:]))})
        return drawn

    def step(self, condition: Tensor, history: History) -> tuple[FrameOutput, History]:
        """Draw a frame as a step model does, without looking back.

        Args:
            condition: (B, C, H, W).
            history: advanced and not looked at.

        Returns:
            The frame in the mean style, and the advanced history.
        """
        frame = self(condition)
        return FrameOutput(frame, frame), advance(history, condition, frame)


class EncodedStyle:
    """A generator that draws in the style of a given real frame, as a step model for training.

    The frame is encoded inside the step and not once for the clip: weights are updated between the chunks of a rollout,
    and gradients of a later chunk could not run back through an encoder that has changed since.

    Args:
        generator: with a style.
        frame: one real frame of each clip, (B, 3, H, W), in whose style all its frames are drawn.
        noise: from ``draw_style``, (B, S): where within the encoded distribution the style lies.
    """

    def __init__(self, generator: SpadeImageGenerator, frame: Tensor, noise: Tensor) -> None:
        self._generator, self._frame, self._noise = generator, frame, noise
        self.condition_channels = generator.condition_channels
        self.history_length = generator.history_length
        self.size_multiple = generator.size_multiple
        self.divergence: Tensor | None = None
        """``style_divergence`` of the latest step, with its graph; None before the first."""

    def step(self, condition: Tensor, history: History) -> tuple[FrameOutput, History]:
        """Encode the style and draw a frame; see ``SpadeImageGenerator.step``."""
        mean, log_variance = self._generator.style_encoder(self._frame)
        self.divergence = style_divergence(mean, log_variance)
        frame = self._generator(condition, mean + (0.5 * log_variance).exp() * self._noise)
        return FrameOutput(frame, frame), advance(history, condition, frame)
