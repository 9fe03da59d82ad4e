"""The composite skeleton: hallucinate, warp, blend. Teacher and published student differ in three settings only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastv2v.contracts import FrameOutput, History
from fastv2v.errors import ConfigError, ShapeError
from fastv2v.nn.blocks import BlockKind, DownPath, Head, NormKind, UpPath, block_stack, init_gan_weights
from fastv2v.ops.warp import warp_backward
from fastv2v.render import advance


@dataclass(frozen=True, kw_only=True)
class CompositeConfig:
    """Size and shape of a composite generator."""

    history_length: int = 2
    """N-1: past steps it looks back on (vid2vid's n_frames_G - 1)."""
    width: int = 128
    """Channels after the 7x7 entry (vid2vid's ngf)."""
    num_downsamples: int = 3
    """How often the size is halved before the bottleneck (vid2vid's n_downsample_G)."""
    num_blocks: int = 9
    """Residual blocks from condition to image; the encoders get the larger half, each decoder the smaller."""
    edge_kernel: int = 7
    """Kernel of the full-size convolutions at both ends (vid2vid: 7). 3 costs a fifth of that."""
    norm: NormKind = "batch"
    """Normalisation of all layers but inverted residual blocks, which always use batch norm."""
    use_flow: bool = True
    """Whether to predict flow and occlusion and to warp the previous frame."""
    block: BlockKind = "residual"
    """``residual`` (vid2vid) or ``inverted`` (the published student)."""
    input_scale: int = 1
    """1, 2 or 4: conditions and past frames are reduced by this factor at the entry; the output has full size."""
    flow_scale: float = 20.0
    """Factor between the flow head and pixels."""
    warp_align_corners: bool = True
    """Grid convention of the warp; False only for imported weights that were trained with it."""

    def __post_init__(self) -> None:
        for name in ("history_length", "width", "num_downsamples"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.norm not in get_args(NormKind) or self.block not in get_args(BlockKind):
            raise ConfigError(
                f"norm is one of {', '.join(get_args(NormKind))} and block one of {', '.join(get_args(BlockKind))}, "
                f"got {self.norm!r} and {self.block!r}"
            )
        if not self.flow_scale > 0:
            raise ConfigError(f"flow_scale must be positive, got {self.flow_scale}")
        if self.edge_kernel < 1 or self.edge_kernel % 2 == 0:
            raise ConfigError(f"edge_kernel must be odd, got {self.edge_kernel}")
        if self.num_blocks < 2:
            raise ConfigError(f"num_blocks must be at least 2 (one on each side), got {self.num_blocks}")
        if self.input_scale not in (1, 2, 4) or self.input_scale.bit_length() - 1 > self.num_downsamples:
            raise ConfigError(
                f"input_scale must be 1, 2 or 4 and at most 2^num_downsamples ({2**self.num_downsamples}), "
                f"got {self.input_scale}"
            )


class CompositeGenerator(nn.Module):
    """vid2vid's single-scale generator as a stateless step.

    Two encoders (conditions; past frames) are summed; one decoder draws the hallucinated frame, another predicts flow
    and occlusion; the previous frame is warped and blended in; a foreground branch may paint chosen classes on top.

    Args:
        config: size and shape.
        condition_channels: C, channels of one encoded condition.
        foreground_channels: condition channels that are drawn by a separate branch and never warped; empty for none.

    Raises:
        ConfigError: if a foreground channel does not exist.

    Source:
        Wang et al., "Video-to-Video Synthesis", NeurIPS 2018; low-resolution input as in Zhuo et al., "Fast-Vid2Vid",
        ECCV 2022.
    """

    def __init__(
        self, config: CompositeConfig, condition_channels: int, foreground_channels: tuple[int, ...] = ()
    ) -> None:
        super().__init__()
        if bad := [c for c in foreground_channels if not 0 <= c < condition_channels]:
            raise ConfigError(f"foreground channel {bad[0]} does not exist: the condition has {condition_channels}")
        self.config = config
        self.foreground_channels = tuple(foreground_channels)
        self._condition_channels = condition_channels
        c, n = condition_channels, config.history_length
        width, depth, kernel, norm = config.width, config.num_downsamples, config.edge_kernel, config.norm
        bottom = width * 2**depth
        keep = config.input_scale.bit_length() - 1
        num_decoder = config.num_blocks // 2
        num_encoder = config.num_blocks - num_decoder

        def encoder(c_in: int) -> nn.Sequential:
            return nn.Sequential(
                DownPath(c_in, width, depth, keep_size=keep, kernel=kernel, norm=norm),
                block_stack(config.block, bottom, num_encoder, norm=norm),
            )

        def decoder() -> nn.Sequential:
            return nn.Sequential(
                block_stack(config.block, bottom, num_decoder, norm=norm), UpPath(width, depth, norm=norm)
            )

        self.condition_encoder = encoder(c * (n + 1))
        self.frame_encoder = encoder(3 * n)
        self.image_decoder = decoder()
        self.image_head = Head(width, 3, kernel=kernel)
        if config.use_flow:
            self.flow_decoder = decoder()
            # Flow x, flow y and occlusion from one convolution: two would cost twice as much, few channels fill no
            # vector register.
            self.motion_head = Head(width, 3, kernel=kernel)
        if foreground_channels:
            narrow = max(width // 2, 1) if depth > 2 else width
            self.foreground_branch = nn.Sequential(
                DownPath(c * (n + 1), narrow, depth, keep_size=keep, kernel=kernel, norm=norm),
                block_stack(config.block, narrow * 2**depth, config.num_blocks, norm=norm),
                UpPath(narrow, depth, norm=norm),
            )
            self.foreground_head = Head(narrow, 3, kernel=kernel)
        init_gan_weights(self)
        if config.use_flow:
            with torch.no_grad():
                # Begin close to standing still: random motion of many pixels would have to be unlearnt first.
                self.motion_head.conv.weight.mul_(0.1)

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
        return 2**self.config.num_downsamples

    def step(self, condition: Tensor, history: History) -> tuple[FrameOutput, History]:
        """Synthesise one frame.

        Args:
            condition: (B, C, H, W).
            history: the last N-1 steps.

        Returns:
            The frame with its parts, and the advanced history.

        Raises:
            ShapeError: if the size does not divide or is too small for the padding, or condition and history do not
                fit the generator or each other.
        """
        self._check(condition, history)
        conditions_BXHW = torch.cat([history.conditions, condition.unsqueeze(1)], dim=1).flatten(1, 2)
        frames_BXHW = history.frames.flatten(1, 2)
        conditions_BXHW, frames_BXHW = self._reduce(conditions_BXHW), self._reduce(frames_BXHW)

        # Before the first frame the past is all zeros: an instance norm would blow its rounding errors up to noise, so
        # the frame encoder is switched off there.
        past = self.frame_encoder(frames_BXHW) * history.valid.view(-1, 1, 1, 1)
        bottom = self.condition_encoder(conditions_BXHW) + past
        hallucinated = torch.tanh(self.image_head(self.image_decoder(bottom)).float())
        if self.config.use_flow:
            output = self._blend(hallucinated, bottom, history)
        else:
            output = FrameOutput(hallucinated, hallucinated)
        if self.foreground_channels:
            output = self._paint_foreground(output, condition, conditions_BXHW)
        return output, advance(history, condition, output.frame)

    def forward(self, condition: Tensor, history: History) -> tuple[FrameOutput, History]:
        """Same as ``step``."""
        return self.step(condition, history)

    def _blend(self, hallucinated: Tensor, bottom: Tensor, history: History) -> FrameOutput:
        """Warp the previous frame and mix it with the hallucinated one."""
        motion = self.motion_head(self.flow_decoder(bottom)).float()
        flow = motion[:, :2] * self.config.flow_scale
        predicted = torch.sigmoid(motion[:, 2:])
        previous = history.frames[:, -1]
        warped = warp_backward(previous, flow, align_corners=self.config.warp_align_corners)
        # Without a previous frame nothing can be warped: the weight becomes 1 and the frame is hallucinated whole.
        weight = 1 - history.valid.view(-1, 1, 1, 1) * (1 - predicted)
        frame = weight * hallucinated + (1 - weight) * warped
        return FrameOutput(frame, hallucinated, warped, flow, weight)

    def _paint_foreground(self, output: FrameOutput, condition: Tensor, stack: Tensor) -> FrameOutput:
        """Replace the pixels of the foreground classes; they are never warped."""
        drawn = torch.tanh(self.foreground_head(self.foreground_branch(stack)).float())
        mask = condition[:, list(self.foreground_channels)].sum(dim=1, keepdim=True).clamp(0, 1)
        return output._replace(
            frame=mask * drawn + (1 - mask) * output.frame,
            hallucinated=mask * drawn + (1 - mask) * output.hallucinated,
        )

    def _reduce(self, x: Tensor) -> Tensor:
        """Inputs at the resolution the encoders work at (bilinear, without anti-aliasing, as published)."""
        if self.config.input_scale == 1:
            return x
        size = (x.shape[-2] // self.config.input_scale, x.shape[-1] // self.config.input_scale)
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)

    def _check(self, condition: Tensor, history: History) -> None:
        height, width = condition.shape[-2:]
        if height % self.size_multiple or width % self.size_multiple:
            raise ShapeError(
                f"frames of {height}x{width} do not divide: height and width must be multiples of {self.size_multiple}"
            )
        # Reflection needs more pixels than it pads: one at the bottleneck, half the kernel at the reduced entry.
        least = max(2 * self.size_multiple, self.config.input_scale * (self.config.edge_kernel // 2 + 1))
        if min(height, width) < least:
            raise ShapeError(f"frames of {height}x{width} are too small: this generator needs at least {least}x{least}")
        batch, past = condition.shape[0], self.history_length
        got = [tuple(x.shape) for x in (condition, *history)]
        if got != [
            (batch, self.condition_channels, height, width),
            (batch, past, self.condition_channels, height, width),
            (batch, past, 3, height, width),
            (batch,),
        ]:
            raise ShapeError(
                f"generator wants conditions of {self.condition_channels} channels and a history of {past}, got "
                f"condition {got[0]} and history of conditions {got[1]}, frames {got[2]} and valid {got[3]}"
            )
