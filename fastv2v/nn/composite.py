"""The composite skeleton: hallucinate, warp, blend. Teacher and published student differ in three settings only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, get_args

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
    skips: bool = False
    """Whether decoders add the encoders' features of the same size, where there are any. Not in vid2vid; trainings of
    minutes need it, because layout and texture then need not pass the bottleneck. It costs no weights and no MACs."""
    input_scale: int = 1
    """1, 2 or 4: conditions and past frames are reduced by this factor at the entry; the output has full size."""
    input_antialias: bool = False
    """Whether inputs are smoothed before they are reduced; only for imported weights that expect it."""
    flow_scale: float = 20.0
    """Factor between the flow head and pixels."""
    warp_align_corners: bool = True
    """Grid convention of the warp; False only for imported weights that were trained with it."""
    num_scales: int = 1
    """Spatial scales (vid2vid's n_scales_spatial). Beyond the first, each doubles the size by a local generator of half
    the width; all other fields describe the coarsest."""
    num_local_blocks: int = 3
    """Residual blocks of each path of a local generator (vid2vid's n_blocks_local)."""

    def __post_init__(self) -> None:
        for name in ("history_length", "width", "num_downsamples", "num_scales", "num_local_blocks"):
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


class Features(NamedTuple):
    """Full-size features in front of the heads; a coarse scale hands them to the next finer one."""

    image: Tensor
    """(B, width, H, W), what the hallucinated frame is drawn from."""
    flow: Tensor | None = None
    """(B, width, H, W), what flow and occlusion are read from; None without a flow branch."""
    foreground: Tensor | None = None
    """(B, foreground width, H, W); None without a foreground branch."""


def check_shown(shown_channels: tuple[int, ...], condition_channels: int) -> None:
    """Refuse channels that cannot show a frame.

    Raises:
        ConfigError: if they are not three, or one does not exist.
    """
    if shown_channels and (len(shown_channels) != 3 or not set(shown_channels) <= set(range(condition_channels))):
        got = ", ".join(map(str, shown_channels))
        raise ConfigError(f"three of {condition_channels} condition channels can show a frame, got {got}")


def drawn_onto(shown: Tensor | None, drawn: Tensor) -> Tensor:
    """The hallucinated frame, (B, 3, H, W) in [-1, 1]: what a head drew, or a shown frame changed by it."""
    return torch.tanh(drawn) if shown is None else (shown + drawn).clamp(-1, 1)


class CompositeGenerator(nn.Module):
    """vid2vid's single-scale generator as a stateless step.

    Two encoders (conditions; past frames) are summed; one decoder draws the hallucinated frame, another predicts flow
    and occlusion; the previous frame is warped and blended in; a foreground branch may paint chosen classes on top.

    Args:
        config: size and shape.
        condition_channels: C, channels of one encoded condition.
        foreground_channels: condition channels that are drawn by a separate branch and never warped; empty for none.
        shown_channels: three condition channels in [-1, 1] that show a frame already: the hallucinated frame is then
            that frame and what is drawn onto it. Empty for none.

    Raises:
        ConfigError: if a foreground or shown channel does not exist.

    Source:
        Wang et al., "Video-to-Video Synthesis", NeurIPS 2018; low-resolution input as in Zhuo et al., "Fast-Vid2Vid",
        ECCV 2022.
    """

    def __init__(
        self,
        config: CompositeConfig,
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
        if self.shown_channels:
            with torch.no_grad():
                # Begin with what is shown.
                self.image_head.conv.weight.mul_(0.1)

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
            ShapeError: if the size does not divide or is too small for the padding, or condition and history do not
                fit the generator or each other.
        """
        output, _ = self.parts(condition, history)
        return output, advance(history, condition, output.frame)

    def forward(self, condition: Tensor, history: History) -> tuple[FrameOutput, History]:
        """Same as ``step``."""
        return self.step(condition, history)

    def parts(self, condition: Tensor, history: History, *, mask: Tensor | None = None) -> tuple[FrameOutput, Features]:
        """Synthesise one frame and give the features it was drawn from; the history stays where it is.

        Args:
            condition: (B, C, H, W).
            history: the last N-1 steps.
            mask: where the foreground is painted, (B, 1, H, W) in [0, 1]; read from the condition by default.

        Returns:
            The frame with its parts, and the features.

        Raises:
            ShapeError: as ``step``.
        """
        self._check(condition, history)
        conditions_BXHW = torch.cat([history.conditions, condition.unsqueeze(1)], dim=1).flatten(1, 2)
        frames_BXHW = history.frames.flatten(1, 2)
        conditions_BXHW, frames_BXHW = self._reduce(conditions_BXHW), self._reduce(frames_BXHW)

        # Before the first frame the past is all zeros: an instance norm would blow its rounding errors up to noise, so
        # the frame encoder is switched off there.
        valid = history.valid.view(-1, 1, 1, 1)
        levels = [
            now + past * valid
            for now, past in zip(
                self._encode(self.condition_encoder, conditions_BXHW),
                self._encode(self.frame_encoder, frames_BXHW),
                strict=True,
            )
        ]
        image_feature = _decode(self.image_decoder, levels)
        features = Features(image_feature)
        shown = condition[:, list(self.shown_channels)] if self.shown_channels else None
        hallucinated = drawn_onto(shown, self.image_head(image_feature).float())
        output = FrameOutput(hallucinated, hallucinated)
        if self.config.use_flow:
            flow_feature = _decode(self.flow_decoder, levels)
            features = features._replace(flow=flow_feature)
            output = blend_warped(
                hallucinated,
                self.motion_head(flow_feature),
                history,
                flow_scale=self.config.flow_scale,
                align_corners=self.config.warp_align_corners,
            )
        if self.foreground_channels:
            mask = foreground_mask(condition, self.foreground_channels) if mask is None else mask
            output, foreground_feature = self._paint_foreground(output, mask, conditions_BXHW)
            features = features._replace(foreground=foreground_feature)
        return output, features

    def _paint_foreground(self, output: FrameOutput, mask: Tensor, stack: Tensor) -> tuple[FrameOutput, Tensor]:
        """Draw the foreground from the conditions alone; also give the features it was drawn from."""
        down, blocks, up = self.foreground_branch
        levels = self._encode(nn.Sequential(down, blocks), stack)
        feature = _decode(nn.Sequential(nn.Identity(), up), levels)
        return paint_over(output, torch.tanh(self.foreground_head(feature).float()), mask), feature

    def _encode(self, encoder: nn.Sequential, x: Tensor) -> list[Tensor]:
        """Features of an encoder: those its decoder adds on the way, finest first, and the bottom."""
        if not self.config.skips:
            return [encoder(x)]
        down, blocks = encoder
        assert isinstance(down, DownPath)
        levels = []
        for layer in down:
            x = layer(x)
            levels.append(x)
        return [*levels[:-1], blocks(x)]

    def _reduce(self, x: Tensor) -> Tensor:
        """Inputs at the resolution the encoders work at (bilinear; as published, without anti-aliasing)."""
        if self.config.input_scale == 1:
            return x
        size = (x.shape[-2] // self.config.input_scale, x.shape[-1] // self.config.input_scale)
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=self.config.input_antialias)

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
        check_step_inputs(condition, history, self.condition_channels, self.history_length)


def _decode(decoder: nn.Sequential, levels: list[Tensor]) -> Tensor:
    """Features in front of a head, from those of an encoder (``CompositeGenerator._encode``)."""
    *skips, bottom = levels
    blocks, up = decoder
    assert isinstance(up, UpPath)
    x = blocks(bottom)
    for layer in up:
        x = layer(x)
        # A reduced entry keeps its size for the first levels: those have no partner.
        x = x + skips.pop() if skips and skips[-1].shape == x.shape else x
    return x


def check_step_inputs(condition: Tensor, history: History, channels: int, past: int) -> None:
    """Refuse a condition and a history that do not fit a generator or each other.

    Args:
        condition: should be (B, C, H, W).
        history: should hold the last N-1 steps of that size.
        channels: C of the generator.
        past: N-1 of the generator.

    Raises:
        ShapeError: if they do not.
    """
    batch, (height, width) = condition.shape[0], condition.shape[-2:]
    got = [tuple(x.shape) for x in (condition, history.conditions, history.frames, history.valid)]
    if got != [
        (batch, channels, height, width),
        (batch, past, channels, height, width),
        (batch, past, 3, height, width),
        (batch,),
    ]:
        raise ShapeError(
            f"generator wants conditions of {channels} channels and a history of {past}, got "
            f"condition {got[0]} and history of conditions {got[1]}, frames {got[2]} and valid {got[3]}"
        )


def blend_warped(
    hallucinated: Tensor, motion: Tensor, history: History, *, flow_scale: float, align_corners: bool
) -> FrameOutput:
    """Warp the previous frame and mix it with the hallucinated one.

    Args:
        hallucinated: (B, 3, H, W) in [-1, 1].
        motion: outputs of the motion head, (B, 3, H, W): flow x, flow y, occlusion before its sigmoid.
        history: its latest frame is warped, and only where it is valid.
        flow_scale: factor between the motion head and pixels.
        align_corners: grid convention of the warp.

    Returns:
        All parts of the frame.
    """
    motion = motion.float()
    return blend_moved(hallucinated, motion[:, :2] * flow_scale, motion[:, 2:], history, align_corners=align_corners)


def blend_moved(
    hallucinated: Tensor, flow: Tensor, unseen: Tensor, history: History, *, align_corners: bool
) -> FrameOutput:
    """Warp the previous frame by flow in pixels, (B, 2, H, W), and mix it with the hallucinated one.

    Args:
        hallucinated: (B, 3, H, W) in [-1, 1].
        flow: from this frame to the previous one, in pixels, float32.
        unseen: occlusion before its sigmoid, (B, 1, H, W), float32.
        history: its latest frame is warped, and only where it is valid.
        align_corners: grid convention of the warp.

    Returns:
        All parts of the frame.
    """
    predicted = torch.sigmoid(unseen)
    warped = warp_backward(history.frames[:, -1], flow, align_corners=align_corners)
    # Without a previous frame nothing can be warped: the weight becomes 1 and the frame is hallucinated whole.
    weight = 1 - history.valid.view(-1, 1, 1, 1) * (1 - predicted)
    frame = weight * hallucinated + (1 - weight) * warped
    return FrameOutput(frame, hallucinated, warped, flow, weight)


def foreground_mask(condition: Tensor, channels: tuple[int, ...]) -> Tensor:
    """Where the foreground classes are, (B, 1, H, W) in [0, 1]: soft where the condition was averaged to be smaller."""
    # One by one: a list of indices would be copied to the device anew, which no CUDA graph can record.
    return torch.stack([condition[:, channel] for channel in channels], dim=1).sum(dim=1, keepdim=True).clamp(0, 1)


def paint_over(output: FrameOutput, drawn: Tensor, mask: Tensor) -> FrameOutput:
    """Replace the pixels of the foreground classes, which are never warped.

    Args:
        output: what was made so far.
        drawn: the foreground, (B, 3, H, W) in [-1, 1].
        mask: where it shows, (B, 1, H, W) in [0, 1].
    """
    return output._replace(
        frame=mask * drawn + (1 - mask) * output.frame,
        hallucinated=mask * drawn + (1 - mask) * output.hallucinated,
    )
