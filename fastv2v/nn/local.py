"""The local generator: one finer scale of coarse-to-fine synthesis, on top of what a coarser generator felt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn

from fastv2v.contracts import FrameOutput, History
from fastv2v.errors import ConfigError, ShapeError
from fastv2v.nn.blocks import DownPath, Head, NormKind, UpPath, block_stack, init_gan_weights
from fastv2v.nn.composite import Features, blend_warped, check_step_inputs, foreground_mask, paint_over


@dataclass(frozen=True, kw_only=True)
class LocalConfig:
    """Size and shape of a local generator."""

    history_length: int = 2
    """N-1: past steps it looks back on."""
    width: int = 64
    """Channels at full size; half of the coarser generator's."""
    num_blocks: int = 3
    """Residual blocks of each path (vid2vid's n_blocks_local)."""
    scale: int = 1
    """How often the size was doubled since the coarsest generator; the flow head counts in its pixels."""
    edge_kernel: int = 7
    """Kernel of the full-size convolutions at both ends."""
    norm: NormKind = "batch"
    """Normalisation of all layers."""
    use_flow: bool = True
    """Whether to predict flow and occlusion and to warp the previous frame."""
    narrow_foreground: bool = True
    """Whether the foreground branch has half the width, as above a coarsest generator of more than two halvings."""
    flow_scale: float = 20.0
    """Factor between the flow head and pixels of the coarsest scale."""
    warp_align_corners: bool = True
    """Grid convention of the warp; False only for imported weights that were trained with it."""

    def __post_init__(self) -> None:
        for name in ("history_length", "width", "num_blocks", "scale"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.norm not in get_args(NormKind):
            raise ConfigError(f"norm is one of {', '.join(get_args(NormKind))}, got {self.norm!r}")
        if self.edge_kernel < 1 or self.edge_kernel % 2 == 0:
            raise ConfigError(f"edge_kernel must be odd, got {self.edge_kernel}")
        if not self.flow_scale > 0:
            raise ConfigError(f"flow_scale must be positive, got {self.flow_scale}")

    @property
    def foreground_width(self) -> int:
        """Channels of the foreground branch at full size."""
        return max(self.width // 2, 1) if self.narrow_foreground else self.width


class LocalGenerator(nn.Module):
    """Doubles the resolution of a coarser generator: its features are added halfway, its frames are not used.

    Works on conditions and past frames of its own scale. It is no step model by itself, since each step also needs the
    features of the coarser one.

    Args:
        config: size and shape.
        condition_channels: C, channels of one encoded condition.
        foreground_channels: condition channels that are drawn by a separate branch; empty for none.

    Raises:
        ConfigError: if a foreground channel does not exist.

    Source:
        Wang et al., "Video-to-Video Synthesis", NeurIPS 2018, section on coarse-to-fine synthesis.
    """

    def __init__(self, config: LocalConfig, condition_channels: int, foreground_channels: tuple[int, ...] = ()) -> None:
        super().__init__()
        if bad := [c for c in foreground_channels if not 0 <= c < condition_channels]:
            raise ConfigError(f"foreground channel {bad[0]} does not exist: the condition has {condition_channels}")
        self.config = config
        self.condition_channels = condition_channels
        self.foreground_channels = tuple(foreground_channels)
        c, n, width, kernel, norm = (
            condition_channels,
            config.history_length,
            config.width,
            config.edge_kernel,
            config.norm,
        )

        def decoder(width: int) -> nn.Sequential:
            stack = block_stack("residual", 2 * width, config.num_blocks, norm=norm)
            return nn.Sequential(stack, UpPath(width, 1, norm=norm))

        self.condition_encoder = DownPath(c * (n + 1), width, 1, kernel=kernel, norm=norm)
        self.frame_encoder = DownPath(3 * n, width, 1, kernel=kernel, norm=norm)
        self.image_decoder = decoder(width)
        self.image_head = Head(width, 3, kernel=kernel)
        if config.use_flow:
            self.flow_decoder = decoder(width)
            self.motion_head = Head(width, 3, kernel=kernel)
        if foreground_channels:
            narrow = config.foreground_width
            self.foreground_encoder = DownPath(c * (n + 1), narrow, 1, kernel=kernel, norm=norm)
            self.foreground_decoder = decoder(narrow)
            self.foreground_head = Head(narrow, 3, kernel=kernel)
        init_gan_weights(self)
        if config.use_flow:
            with torch.no_grad():
                self.motion_head.conv.weight.mul_(0.1)  # begin close to standing still, as the composite generator

    def forward(
        self, condition: Tensor, history: History, coarse: Features, *, mask: Tensor | None = None
    ) -> tuple[FrameOutput, Features]:
        """Same as ``parts``."""
        return self.parts(condition, history, coarse, mask=mask)

    def parts(
        self, condition: Tensor, history: History, coarse: Features, *, mask: Tensor | None = None
    ) -> tuple[FrameOutput, Features]:
        """Synthesise one frame of this scale.

        Args:
            condition: (B, C, H, W).
            history: the last N-1 steps of this scale.
            coarse: features of the coarser generator for this frame, at half this size: image and flow features of
                2 * width channels, foreground features of 2 * foreground_width.
            mask: where the foreground is painted, (B, 1, H, W) in [0, 1]; read from the condition by default.

        Returns:
            The frame with its parts, flow in pixels of this scale; and the features for the next finer scale.

        Raises:
            ShapeError: if the size is odd or too small for the padding, or an input does not fit.
        """
        self._check(condition, history, coarse)
        conditions_BXHW = torch.cat([history.conditions, condition.unsqueeze(1)], dim=1).flatten(1, 2)
        # A past of zeros has no influence, as in the composite generator.
        past = self.frame_encoder(history.frames.flatten(1, 2)) * history.valid.view(-1, 1, 1, 1)
        bottom = self.condition_encoder(conditions_BXHW) + past
        features = Features(self.image_decoder(bottom + coarse.image))
        hallucinated = torch.tanh(self.image_head(features.image).float())
        output = FrameOutput(hallucinated, hallucinated)
        if self.config.use_flow:
            assert coarse.flow is not None  # checked above
            flow_feature = self.flow_decoder(bottom + coarse.flow)
            features = features._replace(flow=flow_feature)
            output = blend_warped(
                hallucinated,
                self.motion_head(flow_feature),
                history,
                flow_scale=self.config.flow_scale * 2**self.config.scale,
                align_corners=self.config.warp_align_corners,
            )
        if self.foreground_channels:
            assert coarse.foreground is not None  # checked above
            feature = self.foreground_decoder(self.foreground_encoder(conditions_BXHW) + coarse.foreground)
            features = features._replace(foreground=feature)
            mask = foreground_mask(condition, self.foreground_channels) if mask is None else mask
            output = paint_over(output, torch.tanh(self.foreground_head(feature).float()), mask)
        return output, features

    def _check(self, condition: Tensor, history: History, coarse: Features) -> None:
        """Refuse inputs that do not fit."""
        check_step_inputs(condition, history, self.condition_channels, self.config.history_length)
        batch, _, height, width = condition.shape
        least = max(4, self.config.edge_kernel // 2 + 1)  # reflection needs more pixels than it pads
        if height % 2 or width % 2 or min(height, width) < least:
            raise ShapeError(f"frames of {height}x{width}: height and width must be even and at least {least}")
        wide, narrow = 2 * self.config.width, 2 * self.config.foreground_width
        wanted = {"image": wide}
        wanted |= {"flow": wide} if self.config.use_flow else {}
        wanted |= {"foreground": narrow} if self.foreground_channels else {}
        for name, channels in wanted.items():
            feature: Tensor | None = getattr(coarse, name)
            shape = (batch, channels, height // 2, width // 2)
            if feature is None or tuple(feature.shape) != shape:
                got = "none" if feature is None else f"one of {tuple(feature.shape)}"
                raise ShapeError(f"the local generator wants a coarse {name} feature of {shape}, got {got}")
