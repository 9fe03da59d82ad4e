"""Coarse-to-fine synthesis: a composite generator at the coarsest scale, local generators that double its size."""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastv2v.contracts import FrameOutput, History
from fastv2v.errors import ConfigError, ShapeError
from fastv2v.nn.composite import CompositeConfig, CompositeGenerator, check_step_inputs
from fastv2v.nn.local import LocalConfig, LocalGenerator
from fastv2v.render import advance

Pyramid = list[Tensor]
"""The same picture at every scale, coarsest first."""


class CoarseToFineGenerator(nn.Module):
    """Several spatial scales as one stateless step.

    For each frame the scales run from coarse to fine; each hands its features to the next. Every scale looks back on
    frames of its own making (``History.coarse_frames``), not on the reduced fine ones. Only the finest frame is
    returned and judged; coarser scales learn through the features alone.

    Args:
        config: of the coarsest scale, and how many scales there are. Scale s has ``width / 2**s`` channels.
        condition_channels: C, channels of one encoded condition.
        foreground_channels: condition channels that are drawn by separate branches; empty for none.

    Raises:
        ConfigError: if there is only one scale, the width cannot be halved that often, or inputs are reduced.

    Source:
        Wang et al., "Video-to-Video Synthesis", NeurIPS 2018, section on coarse-to-fine synthesis.
    """

    def __init__(
        self, config: CompositeConfig, condition_channels: int, foreground_channels: tuple[int, ...] = ()
    ) -> None:
        super().__init__()
        if config.num_scales < 2:
            raise ConfigError(f"coarse-to-fine synthesis needs num_scales of at least 2, got {config.num_scales}")
        self.config = config
        self.foreground_channels = tuple(foreground_channels)
        self._condition_channels = condition_channels
        self.coarse = CompositeGenerator(config, condition_channels, foreground_channels)
        painted = bool(foreground_channels)
        self.local = nn.ModuleList(
            LocalGenerator(local_config(config, scale, foreground=painted), condition_channels, foreground_channels)
            for scale in range(1, config.num_scales)
        )

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
        return self.coarse.size_multiple * 2 ** len(self.local)

    @property
    def uses_flow(self) -> bool:
        """Whether it predicts flow and warps the previous frame."""
        return self.config.use_flow

    def step(self, condition: Tensor, history: History) -> tuple[FrameOutput, History]:
        """Synthesise one frame.

        Args:
            condition: (B, C, H, W).
            history: the last N-1 steps. Without coarse frames in it the given frames are averaged for every scale.

        Returns:
            The finest frame with its parts, and the advanced history with the coarse frames.

        Raises:
            ShapeError: if the size does not divide, or condition and history do not fit the generator or each other.
        """
        return self._step(condition, history, scales_fixed=0)

    def _step(self, condition: Tensor, history: History, *, scales_fixed: int) -> tuple[FrameOutput, History]:
        """A step in which the coarsest scales get no gradients."""
        height, width = condition.shape[-2:]
        if height % self.size_multiple or width % self.size_multiple:
            raise ShapeError(
                f"frames of {height}x{width} do not divide: height and width must be multiples of {self.size_multiple}"
            )
        check_step_inputs(condition, history, self.condition_channels, self.history_length)
        num_scales = len(self.local) + 1
        conditions = pyramid(condition, num_scales)
        past_conditions = pyramid(history.conditions, num_scales)
        past_frames = self._past_frames(history, num_scales)
        features = None
        made: list[Tensor] = []
        output: FrameOutput | None = None
        for scale in range(num_scales):
            own = History(past_conditions[scale], past_frames[scale], history.valid)
            with torch.no_grad() if scale < scales_fixed else nullcontext():
                if features is None:
                    output, features = self.coarse.parts(conditions[0], own)
                else:
                    output, features = self.local[scale - 1](conditions[scale], own, features)
            made.append(output.frame)
        assert output is not None  # there are at least two scales
        after = advance(history, condition, output.frame)
        coarse = (
            torch.cat([past[:, 1:], frame.unsqueeze(1)], dim=1)
            for past, frame in zip(past_frames[:-1], made[:-1], strict=True)
        )
        return output, after._replace(coarse_frames=tuple(coarse))

    def forward(self, condition: Tensor, history: History) -> tuple[FrameOutput, History]:
        """Same as ``step``."""
        return self.step(condition, history)

    def _past_frames(self, history: History, num_scales: int) -> Pyramid:
        """Past frames of every scale: its own, or the given ones averaged before the first step."""
        if not history.coarse_frames:
            return pyramid(history.frames, num_scales)
        batch, past, channels, height, width = history.frames.shape
        shapes = [
            (batch, past, channels, height >> (num_scales - 1 - s), width >> (num_scales - 1 - s))
            for s in range(num_scales - 1)
        ]
        got = [tuple(x.shape) for x in history.coarse_frames]
        if got != shapes:
            raise ShapeError(f"the generator wants coarse frames of {shapes}, got {got}")
        return [*history.coarse_frames, history.frames]


class FinestOnly:
    """A coarse-to-fine generator of which the finest scale alone is trained, as a step model.

    A stage of progressive training (vid2vid's niter_fix_global): the coarser scales run as they are and get no
    gradients, so that an optimiser over all weights leaves them alone.
    """

    def __init__(self, generator: CoarseToFineGenerator) -> None:
        self._generator = generator
        self.condition_channels = generator.condition_channels
        self.history_length = generator.history_length
        self.size_multiple = generator.size_multiple

    def step(self, condition: Tensor, history: History) -> tuple[FrameOutput, History]:
        """See ``CoarseToFineGenerator.step``."""
        return self._generator._step(condition, history, scales_fixed=len(self._generator.local))


def local_config(config: CompositeConfig, scale: int, *, foreground: bool = False) -> LocalConfig:
    """Size and shape of the local generator at a scale.

    Args:
        config: of the coarsest scale.
        scale: how often the size was doubled since, from 1.
        foreground: whether there is a foreground branch, which may have half the width.

    Raises:
        ConfigError: if the width cannot be halved that often, or inputs are reduced.
    """
    if config.input_scale != 1 or config.block != "residual":
        raise ConfigError("a generator of several scales takes full-size inputs and residual blocks only")
    divisor = 2 ** (scale + int(foreground and config.num_downsamples > 2))
    if config.width % divisor:
        raise ConfigError(
            f"width {config.width} cannot be halved often enough: scale {scale} of {config.num_scales} has width / "
            f"{divisor} channels; take a multiple of {divisor}"
        )
    return LocalConfig(
        history_length=config.history_length,
        width=config.width >> scale,
        num_blocks=config.num_local_blocks,
        scale=scale,
        edge_kernel=config.edge_kernel,
        norm=config.norm,
        use_flow=config.use_flow,
        narrow_foreground=config.num_downsamples > 2,
        flow_scale=config.flow_scale,
        warp_align_corners=config.warp_align_corners,
    )


def pyramid(x: Tensor, num_scales: int) -> Pyramid:
    """A picture at several scales, each the average of the next finer one.

    Args:
        x: (..., C, H, W); H and W divisible by 2^(num_scales - 1).
        num_scales: how many, at least 1.

    Returns:
        Coarsest first; the last is ``x`` itself. One-hot maps become fractional.

    Source:
        3x3 averages at every second pixel that leave the padding out, as in vid2vid.
    """
    scales = [x]
    for _ in range(num_scales - 1):
        flat = scales[0].flatten(0, -4) if x.ndim > 4 else scales[0]
        smaller = F.avg_pool2d(flat, 3, stride=2, padding=1, count_include_pad=False)
        scales.insert(0, smaller.view(*x.shape[:-2], *smaller.shape[-2:]))
    return scales
