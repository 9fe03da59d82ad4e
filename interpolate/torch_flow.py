"""Optical flow between grey pictures in batched torch: no OpenCV, no weights, any device.

Dense inverse search as in ``cv2.DISOpticalFlow``, arranged so that all patches of all pictures move at once. On every
level of a pyramid, coarse to fine:

1. Each patch of 8x8 pixels starts from the flow of the level below, takes over a neighbour's motion where that explains
   it better, and descends to the nearest minimum of its squared difference, brightness of the whole patch left out; so
   for a few rounds. OpenCV goes through the patches in order, so that good motion spreads far in one pass; here it
   spreads by one patch a round.
2. Every pixel averages the patches around it by how well each explains it.
3. Variational refinement: the flow is bent to keep brightness and its slopes, and to be smooth but for edges, by a few
   red-black sweeps over all pixels.

Beside OpenCV's the frames that ``interpolate.torch_motion`` fills in with it score within 0.1 dB (docs/realtime.md).

Tried and left out, in dB of filled frames on CamVid: standing still and the mean motion as further candidates of step 1
(0.08 lost), patches every two pixels (0.1 lost for twice the time; every eight: 0.2 lost), one level less (0.2 lost).

Source:
    Kroeger et al., "Fast Optical Flow using Dense Inverse Search", ECCV 2016 (steps 1 and 2); Brox et al., "High
    Accuracy Optical Flow Estimation Based on a Theory for Warping", ECCV 2004 (step 3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastv2v.errors import ConfigError, ShapeError

# Shape letters: B batch, h and w of one level, N patches in R rows and Q columns, P pixels of a patch.
_PATCH = 8
_PAD = _PATCH // 2
_RIDGE = 2.0
"""What keeps flat patches where they are: added to the mean squared slope, in squared grey levels a pixel."""
# Weights of step 3, as in ``interpolate.motion``; brightness has OpenCV's.
_BRIGHTNESS_WEIGHT, _GRADIENT_WEIGHT, _SMOOTHNESS_WEIGHT = 5.0, 20.0, 10.0
_SLOPE_FLOOR = 0.01
"""Squared slope below which an equation does not count for more."""
_ROBUST = 1e-6
_OVERSHOOT = 1.6
"""Of successive over-relaxation."""


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """How much is searched for."""

    stride: int = 4
    """Distance of patches in pixels, a divisor of 8."""
    rounds: int = 2
    """How often each patch looks at its neighbours' motion."""
    descents: int = 4
    """Steps of descent after each round."""
    refinements: int = 2
    """How often a level's flow is refined."""
    sweeps: int = 5
    """Passes over all pixels in each refinement."""

    def __post_init__(self) -> None:
        if self.stride < 1 or _PATCH % self.stride:
            raise ConfigError(f"stride must divide {_PATCH}, got {self.stride}")
        if self.rounds < 1 or self.sweeps < 1 or min(self.descents, self.refinements) < 0:
            raise ConfigError(
                "rounds and sweeps must be at least 1, descents and refinements not negative; got "
                f"{self.rounds}, {self.sweeps}, {self.descents} and {self.refinements}"
            )


SEARCHES: Mapping[str, SearchConfig] = {
    "ultrafast": SearchConfig(refinements=0),
    "fast": SearchConfig(),
    "medium": SearchConfig(rounds=3, descents=6),
}
"""What stands for the grades of ``interpolate.motion.MotionConfig``."""


def search_flow(first: Tensor, second: Tensor, config: SearchConfig | None = None) -> Tensor:
    """Where the pixels of one picture are found in another, without gradients.

    Args:
        first: grey pictures, (B, 1, h, w), in levels of 255.
        second: as many of the same size.
        config: how much is searched for.

    Returns:
        Flow (B, 2, h, w) from first to second in pixels: +x right, +y down.

    Raises:
        ShapeError: if they are no grey pictures of one shape.
    """
    if first.shape != second.shape or first.ndim != 4 or first.shape[1] != 1:
        raise ShapeError(
            f"flow is sought between grey pictures (B, 1, h, w), got {tuple(first.shape)} and {tuple(second.shape)}"
        )
    config = config or SearchConfig()
    with torch.no_grad():
        pyramid = [(first, second)]
        for _ in range(_coarser_levels(first.shape[-2], first.shape[-1])):
            one, other = pyramid[-1]
            size = (one.shape[-2] + 1) // 2, (one.shape[-1] + 1) // 2
            pyramid.append((F.interpolate(one, size, mode="area"), F.interpolate(other, size, mode="area")))
        flow = first.new_zeros(first.shape[0], 2, *pyramid[-1][0].shape[-2:])
        for one, other in reversed(pyramid):
            flow = _search(one, other, scaled_flow(flow, one.shape[-2], one.shape[-1]), config)
            for _ in range(config.refinements):
                flow = _refine(one, other, flow, config.sweeps)
    return flow


def scaled_flow(flow: Tensor, height: int, width: int) -> Tensor:
    """A flow (B, 2, h, w) at another size, in its pixels: averages of areas where it shrinks, else bilinear."""
    rows, columns = flow.shape[-2:]
    if (rows, columns) == (height, width):
        return flow
    mode = "area" if height <= rows and width <= columns else "bilinear"
    resized = F.interpolate(flow, (height, width), mode=mode, align_corners=None if mode == "area" else False)
    # Factors as numbers: a tensor of them would be sent to the GPU each time.
    return torch.stack([resized[:, 0] * (width / columns), resized[:, 1] * (height / rows)], dim=1)


def _coarser_levels(height: int, width: int) -> int:
    """How often a picture can be halved so that the coarsest keeps about 16 pixels along and 6 across."""
    return max(0, round(math.log2(min(max(height, width) / 16, min(height, width) / 6))))


def sample_at(source: Tensor, x: Tensor, y: Tensor, mode: str = "bilinear") -> Tensor:
    """Read pictures at positions; borders repeat.

    Args:
        source: (B, C, h, w).
        x: positions along the width, in pixels, (B, P, Q); 0 is the centre of the first pixel.
        y: the same along the height.
        mode: of ``grid_sample``.

    Returns:
        (B, C, P, Q).
    """
    height, width = source.shape[-2:]
    grid = torch.stack([x * (2 / max(width - 1, 1)) - 1, y * (2 / max(height - 1, 1)) - 1], dim=-1)
    return F.grid_sample(source, grid, mode=mode, padding_mode="border", align_corners=True)


def _slopes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences along x and y."""
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    along = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    return along, (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2


class _Patches:
    """The patches of the first picture of a level, ready to be looked for in the second.

    They begin half a patch outside the picture, so that every pixel lies in as many; what lies outside does not count.
    """

    def __init__(self, one: Tensor, other: Tensor, stride: int) -> None:
        height, width = one.shape[-2:]
        self.other, self.stride, self.size = other, stride, (height, width)
        self.rows, self.columns = height // stride + 1, width // stride + 1
        y, x = (torch.arange(-_PAD, side + _PAD, device=one.device, dtype=one.dtype) for side in (height, width))
        self.y, self.x = F.unfold(
            torch.stack(torch.meshgrid(y, x, indexing="ij")).unsqueeze(1), _PATCH, stride=stride
        )  # (P, N) each
        self.inside = ((self.x >= 0) & (self.y >= 0) & (self.x <= width - 1) & (self.y <= height - 1)).to(one.dtype)
        self.count = self.inside.sum(0)
        self.grey = self._cut(one)
        self.slope_x, self.slope_y = (self._centred(self._cut(slope)) for slope in _slopes(one))
        xx, xy, yy = (
            (a * b).sum(1)
            for a, b in ((self.slope_x, self.slope_x), (self.slope_x, self.slope_y), (self.slope_y, self.slope_y))
        )
        xx, yy = xx + _RIDGE * self.count, yy + _RIDGE * self.count
        determinant = xx * yy - xy * xy
        self.inverse = yy / determinant, -xy / determinant, xx / determinant

    def _cut(self, x: Tensor) -> Tensor:
        """(B, 1, h, w) to (B, P, N)."""
        return F.unfold(F.pad(x, (_PAD,) * 4, mode="replicate"), _PATCH, stride=self.stride)

    def _centred(self, x: Tensor) -> Tensor:
        """Less the mean of each patch; 0 outside the picture. (..., P, N)."""
        x = x * self.inside
        return (x - x.sum(-2, keepdim=True) / self.count) * self.inside

    def at_centres(self, flow: Tensor) -> Tensor:
        """A flow (B, 2, h, w) at the middle of each patch, (B, 2, N)."""
        x = torch.arange(self.columns, device=flow.device, dtype=flow.dtype) * self.stride - 0.5
        y = torch.arange(self.rows, device=flow.device, dtype=flow.dtype) * self.stride - 0.5
        rows, columns = torch.meshgrid(y, x, indexing="ij")
        batch = flow.shape[0]
        return sample_at(flow, columns.expand(batch, -1, -1), rows.expand(batch, -1, -1)).flatten(2)

    def seen(self, motion: Tensor) -> Tensor:
        """What the second picture shows where the patches would be, less what they show: (B, 2, N) to (B, P, N)."""
        return sample_at(self.other, self.x + motion[:, :1], self.y + motion[:, 1:])[:, 0] - self.grey

    def difference(self, motion: Tensor) -> _Match:
        """How patches match under a motion (B, 2, N)."""
        difference = self._centred(self.seen(motion))
        return _Match(motion, difference, difference.square().sum(1, keepdim=True))

    def step(self, match: _Match) -> Tensor:
        """Motion after one step of descent."""
        along, across = (self.slope_x * match.difference).sum(1), (self.slope_y * match.difference).sum(1)
        xx, xy, yy = self.inverse
        return match.motion - torch.stack([xx * along + xy * across, xy * along + yy * across], dim=1)

    def spread(self, motion: Tensor) -> Tensor:
        """Flow (B, 2, h, w): at each pixel the average of the patches around, by how well each explains it."""
        batch, (height, width) = motion.shape[0], self.size
        weight = (self.inside / self.seen(motion).abs().clamp(min=1)).unsqueeze(1)
        parts = torch.cat([weight * motion.unsqueeze(2), weight], dim=1).flatten(1, 2)  # (B, 3 P, N)
        padded = height + 2 * _PAD, width + 2 * _PAD
        summed = F.fold(parts, padded, _PATCH, stride=self.stride)[..., _PAD : _PAD + height, _PAD : _PAD + width]
        return summed[:, :2] / summed[:, 2:].view(batch, 1, height, width)


class _Match(NamedTuple):
    """A motion of each patch and how well it explains it."""

    motion: Tensor  # (B, 2, N)
    difference: Tensor  # (B, P, N)
    cost: Tensor  # (B, 1, N)

    def better(self, other: _Match) -> _Match:
        """For each patch the one that explains it better."""
        is_better = other.cost < self.cost
        return _Match(*(torch.where(is_better, theirs, ours) for ours, theirs in zip(self, other, strict=True)))


def _search(one: Tensor, other: Tensor, flow: Tensor, config: SearchConfig) -> Tensor:
    """Steps 1 and 2 of one level."""
    patches = _Patches(one, other, config.stride)
    best = patches.difference(patches.at_centres(flow))
    for _ in range(config.rounds):
        around = F.pad(best.motion.unflatten(2, (patches.rows, patches.columns)), (1, 1, 1, 1), mode="replicate")
        for neighbour in (
            around[..., 1:-1, :-2],
            around[..., 1:-1, 2:],
            around[..., :-2, 1:-1],
            around[..., 2:, 1:-1],
        ):
            best = best.better(patches.difference(neighbour.flatten(2)))
        for _ in range(config.descents):
            best = best.better(patches.difference(patches.step(best)))
    return patches.spread(best.motion)


def _refine(one: Tensor, other: Tensor, flow: Tensor, sweeps: int) -> Tensor:
    """Step 3: the equations linear about ``flow``, their robust weights held, solved by red-black sweeps."""
    height, width = one.shape[-2:]
    x = torch.arange(width, device=one.device, dtype=one.dtype)
    y = torch.arange(height, device=one.device, dtype=one.dtype).view(-1, 1)
    moved = sample_at(other, x + flow[:, 0], y + flow[:, 1])
    along, across = _slopes((one + moved) / 2)
    change = moved - one
    # Each equation: slopes along x and y, what is left to explain, its weight.
    (xx, xy), (_, yy), (change_x, change_y) = _slopes(along), _slopes(across), _slopes(change)
    scale = 1 / (along.square() + across.square() + _SLOPE_FLOOR)
    scale_x, scale_y = (1 / (a.square() + xy.square() + _SLOPE_FLOOR) for a in (xx, yy))
    bright = _BRIGHTNESS_WEIGHT / torch.sqrt(scale * change.square() + _ROBUST)
    steep = _GRADIENT_WEIGHT / torch.sqrt(scale_x * change_x.square() + scale_y * change_y.square() + _ROBUST)
    equations = (
        (along, across, change, bright * scale),
        (xx, xy, change_x, steep * scale_x),
        (xy, yy, change_y, steep * scale_y),
    )
    a11, a12, a22 = (
        sum((w * e[i] * e[j] for *e, w in equations), torch.zeros_like(one)) for i, j in ((0, 0), (0, 1), (1, 1))
    )
    # Right-hand side for the whole flow, not its change.
    left = [e[0] * flow[:, :1] + e[1] * flow[:, 1:] - e[2] for e in equations]
    wanted = torch.cat(
        [sum((e[3] * e[i] * v for e, v in zip(equations, left, strict=True)), torch.zeros_like(one)) for i in (0, 1)], 1
    )
    to_left, to_right, up, down = _bonds(flow)
    bond = to_left + to_right + up + down
    d1, d2 = a11 + bond, a22 + bond
    determinant = d1 * d2 - a12 * a12
    i11, i12, i22 = d2 / determinant, -a12 / determinant, d1 / determinant
    is_red = (x + y) % 2 == 0
    for _ in range(sweeps):
        for mask in (is_red, ~is_red):
            around = F.pad(flow, (1, 1, 1, 1), mode="replicate")
            pull = to_left * around[..., 1:-1, :-2] + to_right * around[..., 1:-1, 2:]
            pull = wanted + pull + up * around[..., :-2, 1:-1] + down * around[..., 2:, 1:-1]
            solved = torch.cat([i11 * pull[:, :1] + i12 * pull[:, 1:], i12 * pull[:, :1] + i22 * pull[:, 1:]], 1)
            flow = torch.where(mask, flow + _OVERSHOOT * (solved - flow), flow)
    return flow


def _bonds(flow: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """How strongly each pixel is held to its left, right, upper and lower neighbour, (B, 1, h, w) each; 0 outside."""
    along = F.pad(flow[..., 1:] - flow[..., :-1], (0, 1))
    across = F.pad(flow[..., 1:, :] - flow[..., :-1, :], (0, 0, 0, 1))
    stiff = _SMOOTHNESS_WEIGHT / torch.sqrt((along.square() + across.square()).sum(1, keepdim=True) + _ROBUST)
    beside = F.pad((stiff[..., 1:] + stiff[..., :-1]) / 2, (1, 1))
    above = F.pad((stiff[..., 1:, :] + stiff[..., :-1, :]) / 2, (0, 0, 1, 1))
    return beside[..., :-1], beside[..., 1:], above[..., :-1, :], above[..., 1:, :]
