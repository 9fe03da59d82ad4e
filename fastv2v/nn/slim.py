"""Generators for students with a budget: all work at reduced size, one decoder for picture and motion, cheap edges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastv2v.contracts import FrameOutput, History
from fastv2v.errors import ConfigError, ShapeError
from fastv2v.nn.blocks import BlockKind, InvertedResidual, ResidualBlock, init_gan_weights
from fastv2v.nn.composite import blend_moved, check_shown, check_step_inputs, drawn_onto, foreground_mask
from fastv2v.render import advance

SlimBlock = Literal[BlockKind, "separable"]
UpKind = Literal["shuffle", "resize", "transposed"]


@dataclass(frozen=True, kw_only=True)
class SlimConfig:
    """Size and shape of a slim generator."""

    history_length: int = 2
    """N-1: past steps it looks back on; the teacher's."""
    input_scale: int = 4
    """1, 2 or 4: the size, as a fraction of the full one, at which the finest convolutions work."""
    widths: tuple[int, ...] = (32, 48, 64)
    """Channels at each size, finest first; every further entry halves the size once more."""
    depths: tuple[int, ...] = (1, 1, 3)
    """Blocks at each size on the way down; as many entries as ``widths``."""
    up_depths: tuple[int, ...] = (1, 1)
    """Blocks at each size on the way up, finest first; one entry less than ``widths``."""
    block: SlimBlock = "residual"
    """``residual`` (two 3x3), ``inverted`` (1x1, depth-wise 3x3, 1x1) or ``separable`` (depth-wise 3x3, 1x1)."""
    up: UpKind = "shuffle"
    """How sizes are doubled: 1x1 convolution and pixel shuffle, 1x1 and bilinear resize, or transposed 3x3."""
    entry_kernel: int = 1
    """Kernel of the first convolution, at the reduced size; it sees whole patches of the full-size frame."""
    head_kernel: int = 3
    """Kernel of the last one, which draws patches of the full-size frame."""
    shared_decoder: bool = True
    """One decoder for picture and motion; False gives motion a decoder of its own."""
    use_flow: bool = True
    """Whether to predict flow and occlusion and to warp the previous frame."""
    embedding: int = 4
    """Channels into which the full-size condition is mapped, pixel by pixel, so that borders between classes stay
    where they are."""
    refine_width: int = 0
    """Channels of a finishing stage at full size, two 3x3 convolutions over the blended frame; 0 leaves it out."""
    flow_scale: float = 20.0
    """Factor between the flow head and pixels."""

    def __post_init__(self) -> None:
        if self.history_length < 1 or self.embedding < 1 or self.refine_width < 0:
            raise ConfigError(
                f"history_length and embedding must be at least 1 and refine_width at least 0, got "
                f"{self.history_length}, {self.embedding} and {self.refine_width}"
            )
        if self.input_scale not in (1, 2, 4):
            raise ConfigError(f"input_scale must be 1, 2 or 4, got {self.input_scale}")
        if not self.widths or min(self.widths) < 1:
            raise ConfigError(f"widths must be positive, one for each size, got {self.widths}")
        if len(self.depths) != len(self.widths) or len(self.up_depths) != len(self.widths) - 1:
            raise ConfigError(
                f"{len(self.widths)} widths need {len(self.widths)} depths and {len(self.widths) - 1} up_depths, got "
                f"{len(self.depths)} and {len(self.up_depths)}"
            )
        if min((*self.depths, *self.up_depths)) < 0:
            raise ConfigError(f"depths must not be negative, got {self.depths} and {self.up_depths}")
        kinds = ("residual", "inverted", "separable")
        if self.block not in kinds or self.up not in get_args(UpKind):
            raise ConfigError(
                f"block is one of {', '.join(kinds)} and up one of {', '.join(get_args(UpKind))}, got {self.block!r} "
                f"and {self.up!r}"
            )
        for name in ("entry_kernel", "head_kernel"):
            if getattr(self, name) < 1 or getattr(self, name) % 2 == 0:
                raise ConfigError(f"{name} must be odd, got {getattr(self, name)}")
        if not self.flow_scale > 0:
            raise ConfigError(f"flow_scale must be positive, got {self.flow_scale}")


class SeparableBlock(nn.Module):
    """Depth-wise 3x3 and point-wise convolution beside the identity, c^2 + 9c weights (Howard et al., 2017)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return x + self.branch(x)


class _Levels(NamedTuple):
    """Feature maps of the encoder, finest first."""

    skips: list[Tensor]
    bottom: Tensor


class SlimGenerator(nn.Module):
    """A student whose convolutions work at 1/4 (or 1/2, 1/1) of the full size, as a stateless step.

    Past and present conditions and frames enter together, averaged to the working size; the present condition and the
    latest frame also enter whole, rearranged so that every full-size pixel of a patch is a channel. One encoder and
    one decoder with additive skips make features, from which a single convolution draws patches of the full-size
    picture and of the blend weight, and flow at the working size, which is enlarged (flow is smooth). The previous
    full-size frame is warped and blended in as in the composite generator. Classes of the foreground are never warped.

    Args:
        config: size and shape.
        condition_channels: C, channels of one encoded condition.
        foreground_channels: condition channels that are always drawn anew; empty for none.
        shown_channels: three condition channels in [-1, 1] that show a frame already: the hallucinated frame is then
            that frame and what is drawn onto it. Empty for none.

    Raises:
        ConfigError: if a foreground or shown channel does not exist.

    Source:
        Patches as channels: Shi et al., "Real-Time Single Image and Video Super-Resolution Using an Efficient
        Sub-Pixel Convolutional Neural Network", CVPR 2016. Warp and blend: Wang et al., "Video-to-Video Synthesis",
        NeurIPS 2018. Low-resolution input of a part-time student: Zhuo et al., "Fast-Vid2Vid", ECCV 2022.
    """

    def __init__(
        self,
        config: SlimConfig,
        condition_channels: int,
        foreground_channels: tuple[int, ...] = (),
        shown_channels: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        if bad := [c for c in foreground_channels if not 0 <= c < condition_channels]:
            raise ConfigError(f"foreground channel {bad[0]} does not exist: the condition has {condition_channels}")
        check_shown(shown_channels, condition_channels)
        self.config = config
        self.shown_channels = tuple(shown_channels)
        self.foreground_channels = tuple(foreground_channels)
        self._condition_channels = condition_channels
        c, n, patch = condition_channels, config.history_length, config.input_scale**2
        self.embed = nn.Conv2d(c, config.embedding, 1)
        # Averaged: all conditions, the older frames. Whole: the embedded condition, what it shows, the latest frame.
        # And `valid`.
        num_shown = len(self.shown_channels)
        entering = c * (n + 1) + 3 * (n - 1) + (config.embedding + num_shown + 3) * patch + 1
        self.encoder = SlimEncoder(config, entering)
        self.bottom = nn.Sequential(*(_block(config, config.widths[-1]) for _ in range(config.depths[-1])))
        self.decoder = SlimDecoder(config)
        shares = 3 + int(config.use_flow)
        pad = config.head_kernel // 2
        self.head = nn.Conv2d(config.widths[0], shares * patch, config.head_kernel, padding=pad)
        if config.use_flow:
            self.motion_decoder = None if config.shared_decoder else SlimDecoder(config)
            self.flow_head = nn.Conv2d(config.widths[0], 2, config.head_kernel, padding=pad)
        if config.refine_width:
            blended = 3 + 3 + config.embedding + num_shown
            last = nn.Conv2d(config.refine_width, 3, 3, padding=1)
            self.refine = nn.Sequential(*_conv(blended, config.refine_width, 3), last)
        init_gan_weights(self)
        with torch.no_grad():
            if config.use_flow:
                # Begin close to standing still, as the composite generator does.
                self.flow_head.weight.mul_(0.1)
            if self.shown_channels:
                # Begin with what is shown.
                self.head.weight.mul_(0.1)
            if config.refine_width:
                # Begin with the blended frame as it is.
                last.weight.mul_(0.1)

    @property
    def condition_channels(self) -> int:
        """C: channels of one encoded condition."""
        return self._condition_channels

    @property
    def history_length(self) -> int:
        """N-1."""
        return self.config.history_length

    @property
    def size_multiple(self) -> int:
        """Height and width must be divisible by this."""
        return self.config.input_scale * 2 ** (len(self.config.widths) - 1)

    @property
    def uses_flow(self) -> bool:
        """Whether it predicts flow and warps the previous frame."""
        return self.config.use_flow

    def step(self, condition: Tensor, history: History) -> tuple[FrameOutput, History]:
        """Synthesise one frame.

        Args:
            condition: (B, C, H, W).
            history: the last N-1 steps.

        Returns:
            The frame with its parts, and the advanced history.

        Raises:
            ShapeError: if the size does not divide or is too small, or condition and history do not fit the generator
                or each other.
        """
        height, width = condition.shape[-2:]
        if height % self.size_multiple or width % self.size_multiple:
            raise ShapeError(
                f"frames of {height}x{width} do not divide: height and width must be multiples of {self.size_multiple}"
            )
        if min(height, width) < 2 * self.size_multiple:  # reflection at the bottom needs two pixels
            least = 2 * self.size_multiple
            raise ShapeError(f"frames of {height}x{width} are too small: this generator needs at least {least}x{least}")
        check_step_inputs(condition, history, self.condition_channels, self.history_length)
        past, present = (self.coarse(x) for x in (history.conditions.flatten(1, 2), condition))
        mask = foreground_mask(condition, self.foreground_channels) if self.foreground_channels else None
        embedded = self.embed(condition)
        if self.shown_channels:
            embedded = torch.cat([embedded, condition[:, list(self.shown_channels)].to(embedded.dtype)], dim=1)
        output = self.draw(embedded, torch.cat([past, present], dim=1), history, mask)
        return output, advance(history, condition, output.frame)

    def coarse(self, maps: Tensor) -> Tensor:
        """Average maps (B, C, H, W) to the working size, (B, C, H / scale, W / scale)."""
        scale = self.config.input_scale
        return F.avg_pool2d(maps, scale) if scale > 1 else maps

    def draw(self, embedded: Tensor, conditions: Tensor, history: History, foreground: Tensor | None) -> FrameOutput:
        """The frame, from conditions in the form that the convolutions take in: what ``step`` does once it has them.

        A deployed graph begins here, so that it need not average the same past conditions again and again.

        Args:
            embedded: the present condition through ``embed``, (B, E, H, W); then the channels that show a frame.
            conditions: past and present conditions, oldest first, averaged by ``coarse``, (B, N * C, h, w).
            history: its frames (B, N-1, 3, H, W) and ``valid``; its conditions are not looked at.
            foreground: where the picture is drawn anew, (B, 1, H, W) in [0, 1]; None where there is no foreground.

        Returns:
            The frame with its parts.
        """
        scale = self.config.input_scale
        levels = self.encoder(self._entering(embedded, conditions, history))
        bottom = self.bottom(levels.bottom)
        features = self.decoder(bottom, levels.skips)
        patches = F.pixel_shuffle(self.head(features).float(), scale)
        shown = embedded[:, -3:].float() if self.shown_channels else None
        hallucinated = drawn_onto(shown, patches[:, :3])
        output = FrameOutput(hallucinated, hallucinated)
        if self.config.use_flow:
            if self.motion_decoder is not None:
                features = self.motion_decoder(bottom, levels.skips)
            flow = self.flow_head(features).float()
            if scale > 1:
                flow = F.interpolate(flow, scale_factor=float(scale), mode="bilinear", align_corners=False)
            output = blend_moved(
                hallucinated, flow * self.config.flow_scale, patches[:, 3:], history, align_corners=True
            )
            if foreground is not None:
                output = _drawn_anew(output, foreground)
        if self.config.refine_width:
            finishing = torch.cat([output.frame, hallucinated, embedded.float()], dim=1)
            frame = (output.frame + self.refine(finishing).float()).clamp(-1, 1)
            output = output._replace(frame=frame)
        return output

    def forward(self, condition: Tensor, history: History) -> tuple[FrameOutput, History]:
        """Same as ``step``."""
        return self.step(condition, history)

    def _entering(self, embedded: Tensor, conditions: Tensor, history: History) -> Tensor:
        """All inputs at the working size, (B, channels, H / scale, W / scale)."""
        older, latest = history.frames[:, :-1].flatten(1, 2), history.frames[:, -1]
        whole = torch.cat([embedded, latest.to(embedded.dtype)], dim=1)
        if self.config.input_scale > 1:
            whole = F.pixel_unshuffle(whole, self.config.input_scale)
        averaged = [conditions, self.coarse(older)] if older.shape[1] else [conditions]
        flag = history.valid.view(-1, 1, 1, 1).expand(-1, 1, *conditions.shape[-2:])
        return torch.cat([*averaged, whole.to(conditions.dtype), flag], dim=1)


class SlimEncoder(nn.Module):
    """From everything that enters to one feature map for each size.

    Args:
        config: widths and depths; the blocks of the last size are not among it.
        c_in: channels that enter.
    """

    def __init__(self, config: SlimConfig, c_in: int) -> None:
        super().__init__()
        widths = config.widths
        self.entry = _conv(c_in, widths[0], config.entry_kernel)
        self.levels = nn.ModuleList(
            nn.Sequential(*(_block(config, width) for _ in range(depth)))
            for width, depth in zip(widths[:-1], config.depths[:-1], strict=True)
        )
        self.downs = nn.ModuleList(_conv(widths[i], widths[i + 1], 3, stride=2) for i in range(len(widths) - 1))

    def forward(self, x: Tensor) -> _Levels:
        """(B, c_in, h, w) to features of every size; the last, at the bottom, is not among the skips."""
        x = self.entry(x)
        skips = []
        for level, down in zip(self.levels, self.downs, strict=True):
            x = level(x)
            skips.append(x)
            x = down(x)
        return _Levels(skips, x)


class SlimDecoder(nn.Module):
    """From the bottom back to the working size, adding the encoder's features on the way."""

    def __init__(self, config: SlimConfig) -> None:
        super().__init__()
        widths = config.widths
        self.ups = nn.ModuleList(_up(config.up, widths[i + 1], widths[i]) for i in range(len(widths) - 1))
        self.levels = nn.ModuleList(
            nn.Sequential(*(_block(config, width) for _ in range(depth)))
            for width, depth in zip(widths[:-1], config.up_depths, strict=True)
        )

    def forward(self, x: Tensor, skips: list[Tensor]) -> Tensor:
        """(B, widths[-1], ...) and the skips, finest first, to (B, widths[0], h, w)."""
        for i in reversed(range(len(self.ups))):
            x = self.levels[i](self.ups[i](x) + skips[i])
        return x


def _drawn_anew(output: FrameOutput, mask: Tensor) -> FrameOutput:
    """The same output with the masked pixels, (B, 1, H, W) in [0, 1], hallucinated."""
    assert output.occlusion is not None  # only generators with flow are asked
    frame = mask * output.hallucinated + (1 - mask) * output.frame
    return output._replace(frame=frame, occlusion=torch.maximum(output.occlusion, mask))


def _conv(c_in: int, c_out: int, kernel: int, *, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, kernel, stride=stride, padding=kernel // 2, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()
    )


def _block(config: SlimConfig, channels: int) -> nn.Module:
    if config.block == "separable":
        return SeparableBlock(channels)
    return InvertedResidual(channels) if config.block == "inverted" else ResidualBlock(channels, norm="batch")


def _up(kind: UpKind, c_in: int, c_out: int) -> nn.Sequential:
    """Doubles the size."""
    if kind == "shuffle":
        layers: list[nn.Module] = [nn.Conv2d(c_in, 4 * c_out, 1, bias=False), nn.PixelShuffle(2)]
    elif kind == "resize":
        layers = [
            nn.Conv2d(c_in, c_out, 1, bias=False),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
        ]
    else:
        layers = [nn.ConvTranspose2d(c_in, c_out, 3, stride=2, padding=1, output_padding=1, bias=False)]
    return nn.Sequential(*layers, nn.BatchNorm2d(c_out), nn.ReLU())
