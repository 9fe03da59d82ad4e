"""The training task of the interpolation network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastv2v.contracts import Losses
from fastv2v.data.clip import Clip
from fastv2v.errors import ConfigError, DataError
from fastv2v.score import clip_psnr
from interpolate.learned.data import Triplets
from interpolate.learned.network import FusionNetwork, fuse
from interpolate.network import NUM_CORRECTIONS


@dataclass(frozen=True, kw_only=True)
class FusionWeights:
    """Weights of the loss terms; 0 leaves one out."""

    charbonnier: float = 1.0
    """Distance of the frame to the real one, between absolute and squared, so that outliers count but do not rule."""
    log_error: float = 0.05
    """Logarithm of the mean squared error of each frame: its mean is minus the mean PSNR, so that quiet footage with
    small errors counts as much as fast footage with large ones."""

    def __post_init__(self) -> None:
        if min(self.charbonnier, self.log_error) < 0 or not max(self.charbonnier, self.log_error):
            raise ConfigError("charbonnier and log_error must not be negative, and one of them positive")


_CHARBONNIER_WIDTH = 0.01
"""Errors far below this count as squares, far above as absolute values; in [-1, 1] units."""
_LEAST_ERROR = 1e-6
"""Added to a mean squared error before its logarithm: at 66 dB nothing is left to learn."""


class FusionTask:
    """Learns corrections by which the fused frame comes close to the real one.

    Args:
        network: is trained.
        weights: of the loss terms.
    """

    def __init__(self, network: FusionNetwork, weights: FusionWeights) -> None:
        self.players: Mapping[str, nn.Module] = {"generator": network}
        named = {"charbonnier": weights.charbonnier, "log_error": weights.log_error}
        self.weights: Mapping[str, Mapping[str, float]] = {"generator": {n: w for n, w in named.items() if w}}
        self._network = network

    def step(self, clip: Clip, rng: torch.Generator, at: int) -> Iterator[Losses]:
        """Yield the losses of one batch, in one chunk."""
        triplets = _triplets(clip)
        error = self._fused(triplets) - triplets.wanted()
        terms = {
            "charbonnier": (error.square() + _CHARBONNIER_WIDTH**2).sqrt().mean(),
            "log_error": (error.square().mean(dim=(1, 2, 3)) + _LEAST_ERROR).log().mean(),
        }
        yield {"generator": {name: terms[name] for name in self.weights["generator"]}}

    def sample(self, clip: Clip) -> Mapping[str, Tensor]:
        """The frames of a gap: real, by motion compensation alone, by the network."""
        triplets = _triplets(clip)
        made = {"real": triplets.wanted(), "motion": self._compensated(triplets), "network": self._fused(triplets)}
        return {name: frames.clamp(-1, 1)[None] for name, frames in made.items()}

    def evaluate(self, clip: Clip) -> Mapping[str, float]:
        """PSNR in dB of the network's frames, of those by motion compensation alone, and the gain."""
        triplets = _triplets(clip)
        real = triplets.wanted()[None]
        psnr = clip_psnr(self._fused(triplets)[None], real)
        motion = clip_psnr(self._compensated(triplets)[None], real)
        return {"psnr": psnr, "motion_psnr": motion, "gain": psnr - motion}

    def _fused(self, triplets: Triplets) -> Tensor:
        return _made(triplets, self._network(triplets.shown))

    def _compensated(self, triplets: Triplets) -> Tensor:
        shown = triplets.shown
        return _made(triplets, shown.new_zeros(shown.shape[0], NUM_CORRECTIONS, *shown.shape[-2:]))


def _made(triplets: Triplets, corrections: Tensor) -> Tensor:
    """The part of the frame, (B, 3, h, w), in float32 whatever the network computes in."""
    with torch.autocast(corrections.device.type, enabled=False):
        frames = triplets.frames
        return fuse(frames[:, 0], frames[:, 2], triplets.shown, corrections, triplets.origin)


def _triplets(clip: Clip) -> Triplets:
    if not isinstance(clip, Triplets):
        raise DataError("interpolation is trained on triplets; take the batches of a TripletLoader")
    return clip
