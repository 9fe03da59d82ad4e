"""A procedural street world: seeded drives with labels, instances, depth, cameras and exact optical flow.

Our own renderer on numpy and OpenCV; nothing here imports torch.
"""

from fastv2v.data.world.config import CLASS_NAMES, PALETTE, WorldConfig, WorldFrame
from fastv2v.data.world.render import render_clip
from fastv2v.data.world.write import write_world

__all__ = ["CLASS_NAMES", "PALETTE", "WorldConfig", "WorldFrame", "render_clip", "write_world"]
