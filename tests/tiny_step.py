"""A generator small enough to export in a second, with every operator family of the real ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastv2v.contracts import FrameOutput, History
from fastv2v.render import advance

if TYPE_CHECKING:
    from fastv2v.contracts import StepModel


class TinyStep(nn.Module):
    """Conv, flow, warp and blend; looks back on two steps of a four-channel condition."""

    condition_channels = 4
    history_length = 2
    size_multiple = 8

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        self.encoder = nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(4 * 3 + 3 * 2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 12, 3, 2, 1), nn.InstanceNorm2d(12, affine=True), nn.LeakyReLU(0.2),
            nn.ConvTranspose2d(12, 8, 3, 2, 1, output_padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, 2, 1), nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
        )  # fmt: skip
        self.head = nn.Conv2d(8, 6, 3, padding=1)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.2, generator=rng)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, generator=rng)
                nn.init.uniform_(module.running_var, 0.5, 2.0, generator=rng)

    def step(self, condition: Tensor, history: History) -> tuple[FrameOutput, History]:
        past = [history.conditions.flatten(1, 2), condition, history.frames.flatten(1, 2)]
        x = self.head(self.encoder(torch.cat(past, 1)))
        hallucinated, flow, occlusion = x[:, :3].tanh(), 4 * x[:, 3:5], x[:, 5:].sigmoid()
        warped = warp(history.frames[:, -1], flow)
        occlusion = torch.where(history.valid.view(-1, 1, 1, 1) > 0, occlusion, torch.ones_like(occlusion))
        frame = occlusion * hallucinated + (1 - occlusion) * warped
        return FrameOutput(frame, hallucinated, warped, flow, occlusion), advance(history, condition, frame)


def warp(source: Tensor, flow: Tensor) -> Tensor:
    h, w = source.shape[-2:]
    x = (torch.arange(w) + flow[:, 0]) * (2 / (w - 1)) - 1
    y = (torch.arange(h)[:, None] + flow[:, 1]) * (2 / (h - 1)) - 1
    return F.grid_sample(source, torch.stack([x, y], -1), padding_mode="border", align_corners=True)


def random_conditions(num_frames: int, size: tuple[int, int], seed: int = 1) -> Tensor:
    """(T, 4, H, W) one-hot blocks that move."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (num_frames, size[0] // 8, size[1] // 8), generator=rng)
    labels = labels.repeat_interleave(8, 1).repeat_interleave(8, 2)
    return F.one_hot(labels, 4).permute(0, 3, 1, 2).float()


if TYPE_CHECKING:
    _: StepModel = TinyStep()
