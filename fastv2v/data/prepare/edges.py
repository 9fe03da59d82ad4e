"""Edge maps that stay where they are from frame to frame. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from fastv2v.data.prepare.steady import Follower
from fastv2v.data.prepare.survey import Frame
from fastv2v.errors import ConfigError

_MIX: Final = 0.5
_CREST: Final = 0.8
_NEAR: Final = np.ones((3, 3), np.uint8)


@dataclass(frozen=True, kw_only=True)
class EdgeConfig:
    """Which edges are drawn."""

    low: float = 40.0
    """Gradient from which an edge goes on, in sums over a Sobel mask (0 to 1020)."""
    high: float = 100.0
    """Gradient from which an edge begins."""
    blur: float = 1.2
    """Standard deviation of the blur before, in pixels."""
    hold: bool = True
    """Keep edges where they were in the frame before, moved along, and average away noise along the motion."""

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high <= 2000 or not 0 < self.blur <= 20:
            raise ConfigError(f"edges need 0 < low <= high <= 2000 and a blur of up to 20 pixels, got {self}")


def draw_edges(frames: Iterable[Frame], config: EdgeConfig) -> Iterator[NDArray[np.uint8]]:
    """Edges of frames that follow each other.

    Args:
        frames: RGB, (H, W, 3).
        config: which edges.

    Yields:
        For each frame (H, W): 255 on edges, else 0.
    """
    follower = Follower()
    mean: NDArray[np.float32] | None = None
    edges: NDArray[np.uint8] | None = None
    for frame in frames:
        grey = cv2.GaussianBlur(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), (0, 0), config.blur).astype(np.float32)
        if config.hold:
            follower.advance(frame)
        if mean is not None and follower.trusted is not None:
            moved = follower.moved(mean, cv2.INTER_LINEAR)
            grey = np.where(follower.trusted, _MIX * grey + (1 - _MIX) * moved, grey)
        mean = grey
        smooth = np.rint(grey).astype(np.uint8)
        found = cv2.Canny(smooth, config.low, config.high, L2gradient=True)
        if edges is not None and follower.trusted is not None:
            # An edge goes on where it was, and not a pixel beside it, while the picture is nearly as steep there.
            steep = cv2.magnitude(cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1))
            is_crest = (steep > config.low) & (steep > _CREST * cv2.dilate(steep, _NEAR))
            kept = np.where(is_crest & follower.trusted, follower.moved(edges), 0).astype(np.uint8)
            found = kept | (found & ~cv2.dilate(kept, _NEAR))
        edges = found.astype(np.uint8)
        yield edges
