"""What a street world is made from and what each rendered frame holds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastv2v.errors import ConfigError

CLASS_NAMES: tuple[str, ...] = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "person",
    "cyclist",
    "other",
)
"""Label classes in id order. Markings belong to road, kerbs to pavement, hedges and lawns to tree, bins, benches, post
boxes and planters to other."""

SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, FENCE, CAR, PERSON, CYCLIST, OTHER = range(12)

PALETTE: tuple[tuple[int, int, int], ...] = (
    (128, 176, 220),
    (132, 58, 52),
    (196, 196, 132),
    (120, 70, 128),
    (232, 120, 200),
    (92, 140, 40),
    (224, 180, 30),
    (96, 84, 140),
    (40, 60, 190),
    (220, 40, 60),
    (20, 150, 170),
    (150, 150, 150),
)
"""A colour (red, green, blue; 0 to 255) for each class, for pictures of label maps."""


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """A family of procedural street drives. Clip ``n`` of a config is always the same video, on every run."""

    size: tuple[int, int] = (128, 256)
    """(height, width) of the frames in pixels: multiples of 4, at least 32."""
    num_frames: int = 32
    """Frames in each clip, 2 to 10000."""
    fps: float = 15.0
    """Frames per second; at a higher rate everything moves less from frame to frame."""
    seed: int = 0
    """Chooses the family: facade, car and road textures are shared by all clips of one seed."""
    camera: Literal["drive", "return"] = "drive"
    """``drive`` goes down the street. ``return`` steps and pans aside, then comes back to exactly where it began."""
    cars: float = 1.0
    """Density of parked and moving cars and of cyclists, 0 (none) to 2; 1 is an ordinary street."""
    people: float = 1.0
    """Density of walking people, 0 (none) to 2."""
    trees: float = 1.0
    """Density of street trees, 0 (none) to 2."""
    noise: float = 0.0
    """Standard deviation of sensor noise in 8-bit levels, 0 to 32; 0 is a clean picture."""

    def __post_init__(self) -> None:
        try:
            height, width = (int(n) for n in self.size)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"size must be (height, width), got {self.size!r}") from error
        object.__setattr__(self, "size", (height, width))
        if min(height, width) < 32 or height % 4 or width % 4 or max(height, width) > 8192:
            raise ConfigError(f"size must be multiples of 4 from 32 to 8192 (height, width), got {height}x{width}")
        if not 2 <= self.num_frames <= 10000:
            raise ConfigError(f"num_frames must be 2 to 10000, got {self.num_frames}")
        if not 1 <= self.fps <= 240:
            raise ConfigError(f"fps must be 1 to 240, got {self.fps}")
        if self.seed < 0:
            raise ConfigError(f"seed must not be negative, got {self.seed}")
        if self.camera not in ("drive", "return"):
            raise ConfigError(f"camera must be 'drive' or 'return', got {self.camera!r}")
        for name, top in (("cars", 2.0), ("people", 2.0), ("trees", 2.0), ("noise", 32.0)):
            value = getattr(self, name)
            if not (math.isfinite(value) and 0 <= value <= top):
                raise ConfigError(f"{name} must be 0 to {top:g}, got {value}")

    @property
    def intrinsics(self) -> NDArray[np.float64]:
        """3x3 camera matrix. Pixel centres have integer coordinates, so the principal point is ((W-1)/2, ...)."""
        height, width = self.size
        focal = 0.8 * max(width, 1.5 * height)
        return np.array([[focal, 0, (width - 1) / 2], [0, focal, 0.46 * (height - 1)], [0, 0, 1.0]])


class WorldFrame(NamedTuple):
    """One rendered moment with everything that is known about it. H, W as configured."""

    frame: NDArray[np.uint8]
    """(H, W, 3) RGB, anti-aliased."""
    labels: NDArray[np.uint8]
    """(H, W) class id of the surface at each pixel centre, see ``CLASS_NAMES``."""
    instances: NDArray[np.uint16]
    """(H, W) instance id: 0 is none, every car, person and cyclist keeps its own id through the clip."""
    depth: NDArray[np.float32]
    """(H, W) metres along the optical axis; ``inf`` for sky."""
    camera_to_world: NDArray[np.float64]
    """4x4, OpenCV axes (x right, y down, z forward) on both sides, metres."""
    intrinsics: NDArray[np.float64]
    """3x3; pixel centres have integer coordinates."""
    flow_to_previous: NDArray[np.float32] | None
    """(H, W, 2) where each pixel's surface point was one frame earlier, minus the pixel: +x right, +y down, in pixels.
    Holds for moving objects and for sky (points at infinity); says nothing about visibility there. ``None`` for the
    first frame."""
    flow_to_next: NDArray[np.float32] | None
    """Likewise one frame later; ``None`` for the last frame. A point that leaves behind the camera plane is given a
    position far outside the picture."""
    points: NDArray[np.int32] | None = None
    """(H, W) id of the surface point at each pixel centre, the same wherever it is seen again in the clip; -1 for sky.
    ``None`` where it was not asked for."""
