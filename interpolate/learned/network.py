"""The fusion network, and warping and blending by its corrections with gradients."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastv2v.checkpoint import find_checkpoint, load_weights, read_state, weights_file
from fastv2v.config import from_dict
from fastv2v.errors import CheckpointError, ConfigError
from interpolate.motion import MotionConfig
from interpolate.network import (
    BLUR_SIDE,
    BLUR_SIGMA,
    CHANNELS,
    LOG_ODDS_LIMIT,
    MOTION_UNIT,
    NUM_CORRECTIONS,
    NUM_FEATURES,
    SOFTNESS_LIMIT,
)

_OFFSET_UNIT = 0.25
"""Full-size pixels that 1 at the head means for an offset: early steps shall not spoil motion that is good already."""


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """Size of the fusion network."""

    channels: tuple[int, int, int] = (24, 48, 96)
    """Channels at a quarter, an eighth and a sixteenth of the frames' size."""
    blocks: tuple[int, int, int] = (1, 1, 2)
    """Residual blocks on either way at a quarter and an eighth, and at the bottom."""

    def __post_init__(self) -> None:
        if len(self.channels) != 3 or min(self.channels) < 1:
            raise ConfigError(f"channels must be three counts of at least 1, got {self.channels}")
        if len(self.blocks) != 3 or min(self.blocks) < 0:
            raise ConfigError(f"blocks must be three counts of at least 0, got {self.blocks}")


class _Block(nn.Module):
    """Two convolutions beside the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(F.relu(self.first(x))))


def _blocks(channels: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(_Block(channels) for _ in range(count)))


class FusionNetwork(nn.Module):
    """Features of a frame to corrections of its motion-compensated blend.

    An hourglass from a quarter to a sixteenth of the frames' size, with sums for skips. The head starts at zero, so
    that an untrained network corrects nothing.

    Args:
        config: channels and depth.
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.config = config
        fine, middle, coarse = config.channels
        self.stem = nn.Conv2d(NUM_FEATURES, fine, 4, stride=2, padding=1)
        self.down_fine = _blocks(fine, config.blocks[0])
        self.to_middle = nn.Conv2d(fine, middle, 3, stride=2, padding=1)
        self.down_middle = _blocks(middle, config.blocks[1])
        self.to_coarse = nn.Conv2d(middle, coarse, 3, stride=2, padding=1)
        self.bottom = _blocks(coarse, config.blocks[2])
        self.from_coarse = nn.Conv2d(coarse, middle, 1)
        self.up_middle = _blocks(middle, config.blocks[1])
        self.from_middle = nn.Conv2d(middle, fine, 1)
        self.up_fine = _blocks(fine, config.blocks[0])
        self.head = nn.Conv2d(fine, 4 * NUM_CORRECTIONS, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)

    def forward(self, shown: Tensor) -> Tensor:
        """Corrections of frames.

        Args:
            shown: features, (B, NUM_FEATURES, H/2, W/2), sides multiples of 8; see ``interpolate.network.Channels``.

        Returns:
            (B, NUM_CORRECTIONS, H/2, W/2): residual offsets of either side in full-size pixels, log odds, softness.
        """
        fine = self.down_fine(F.relu(self.stem(shown)))
        middle = self.down_middle(F.relu(self.to_middle(fine)))
        x = self.bottom(F.relu(self.to_coarse(middle)))
        x = self.up_middle(middle + F.interpolate(self.from_coarse(x), scale_factor=2.0))
        x = self.up_fine(fine + F.interpolate(self.from_middle(x), scale_factor=2.0))
        made = F.pixel_shuffle(self.head(x), 2)
        return torch.cat([made[:, :4] * _OFFSET_UNIT, made[:, 4:]], dim=1)


def fuse(first: Tensor, second: Tensor, shown: Tensor, corrections: Tensor, origin: Tensor) -> Tensor:
    """Warp and blend as ``NetworkInterpolator`` does, with gradients to the corrections.

    Args:
        first: whole keyframes at time 0, (B, 3, H, W) in [-1, 1].
        second: whole keyframes at time 1.
        shown: features of a part of the frame, (B, NUM_FEATURES, h/2, w/2).
        corrections: of the same part, (B, NUM_CORRECTIONS, h/2, w/2).
        origin: (B, 2) x and y of the part's first pixel in the whole frame.

    Returns:
        The part of the frame, (B, 3, h, w), not clamped.
    """
    shown, corrections = shown.float(), corrections.float()
    size = shown.shape[-2] * 2, shown.shape[-1] * 2
    time = shown[:, CHANNELS.time]
    motion = shown[:, CHANNELS.motion] * MOTION_UNIT
    log_odds = (shown[:, CHANNELS.log_odds] + corrections[:, 4:5]).clamp(-LOG_ODDS_LIMIT, LOG_ODDS_LIMIT)
    share = torch.sigmoid(log_odds + torch.log((1 - time) / time))
    share = _enlarge(share, size)
    sides = []
    for keyframe, amount, correction in ((first, -time, corrections[:, :2]), (second, 1 - time, corrections[:, 2:4])):
        sides.append(_sample(keyframe, _enlarge(amount * motion + correction, size), origin))
    blended = share * sides[0] + (1 - share) * sides[1]
    softness = _enlarge(corrections[:, 5:6].clamp(-SOFTNESS_LIMIT, SOFTNESS_LIMIT), size)
    return blended + softness * (_blurred(blended) - blended)


def _blurred(frames: Tensor) -> Tensor:
    """The frames behind a small Gaussian; borders repeat."""
    place = torch.arange(BLUR_SIDE, device=frames.device, dtype=frames.dtype) - BLUR_SIDE // 2
    line = torch.exp(-place.square() / (2 * BLUR_SIGMA**2))
    kernel = torch.outer(line, line) / line.sum().square()
    padded = F.pad(frames, (BLUR_SIDE // 2,) * 4, mode="replicate")
    return F.conv2d(padded, kernel.expand(frames.shape[1], 1, -1, -1), groups=frames.shape[1])


def _enlarge(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def _sample(keyframe: Tensor, offset: Tensor, origin: Tensor) -> Tensor:
    """Read whole keyframes at every pixel of a part of the frame plus an offset in pixels; borders repeat."""
    height, width = keyframe.shape[-2:]
    x = torch.arange(offset.shape[-1], device=offset.device) + origin[:, 0].view(-1, 1, 1)
    y = torch.arange(offset.shape[-2], device=offset.device).view(-1, 1) + origin[:, 1].view(-1, 1, 1)
    grid = torch.stack(
        [(x + offset[:, 0]) * (2 / (width - 1)) - 1, (y + offset[:, 1]) * (2 / (height - 1)) - 1], dim=-1
    )
    return F.grid_sample(keyframe, grid, mode="bilinear", padding_mode="border", align_corners=True)


@dataclass(frozen=True, kw_only=True)
class FusionArchitecture:
    """What a run of ``train-interpolation`` trained; kept in every checkpoint."""

    network: FusionConfig = field(default_factory=FusionConfig)
    """The network."""
    motion: MotionConfig = field(default_factory=MotionConfig)
    """The motion compensation whose features it has learnt to read."""
    kind: Literal["interpolation"] = "interpolation"
    """Tells its checkpoints from others."""


@dataclass(frozen=True)
class TrainedFusion:
    """A fusion network read from disk."""

    network: FusionNetwork
    """In evaluation mode."""
    architecture: FusionArchitecture
    """How it was built and what it reads."""
    checkpoint: Path
    """Where its weights came from."""


def load_fusion(path: Path | str, which: Literal["best", "latest"] = "latest") -> TrainedFusion:
    """Load a fusion network from a run or a checkpoint folder; averaged weights where they are kept.

    Args:
        path: a run of ``train-interpolation`` or one checkpoint of it.
        which: which checkpoint of a run.

    Raises:
        CheckpointError: if there is none, it is damaged, or it holds no interpolation network.
    """
    checkpoint = find_checkpoint(path, which)
    described: dict[str, Any] = read_state(checkpoint).get("architecture") or {}
    if described.get("kind") != "interpolation":
        raise CheckpointError(f"{checkpoint} holds no interpolation network; give a run of train-interpolation")
    try:
        architecture = from_dict(FusionArchitecture, described)
    except ConfigError as error:
        raise CheckpointError(
            f"{checkpoint}: does not describe an interpolation network of this version ({error}); train it again"
        ) from error
    network = FusionNetwork(architecture.network)
    load_weights(network, weights_file(checkpoint))
    return TrainedFusion(network.eval(), architecture, checkpoint)
