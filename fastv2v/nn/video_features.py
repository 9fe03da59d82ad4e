"""Features of whole windows of frames, from 3-D networks of torchvision, an optional package."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any, Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastv2v.errors import CheckpointError, MissingExtraError, ShapeError
from fastv2v.nn.optical_flow import import_raft

VideoNetwork = Literal["r3d18", "s3d"]
"""torchvision's R3D-18 (Tran et al., CVPR 2018; 33 M weights) or S3D (Xie et al., ECCV 2018; 8 M), on Kinetics-400."""

_OPTION = "--recipe.task.temporal-weights"
_BUILDERS: Final[dict[VideoNetwork, str]] = {"r3d18": "r3d_18", "s3d": "s3d"}
_SIDES: Final[dict[VideoNetwork, int]] = {"r3d18": 112, "s3d": 224}
_LEAST_FRAMES: Final[dict[VideoNetwork, int]] = {"r3d18": 1, "s3d": 8}
"""S3D halves time three times, and its last pooling refuses fewer than two steps."""
_S3D_ENDS: Final = (3, 6, 12, 15)
"""Last layers of S3D at each size."""
# Of pictures in [0, 1], as torchvision trained both.
_MEAN: Final = (0.43216, 0.394666, 0.37645)
_DEVIATION: Final = (0.22803, 0.22145, 0.216989)


class VideoFeatures(nn.Module):
    """A frozen 3-D network that turns windows of frames into feature maps, with gradients to the frames.

    Frames are resized to the side the network was trained at (bilinear, averaging where they shrink, without a crop)
    and normalised as it was trained. It stays in evaluation mode.

    Args:
        kind: which network.
        weights: torchvision's state dict of it on disk.

    Raises:
        MissingExtraError: if torchvision is not installed.
        CheckpointError: if the file cannot be read or holds other weights.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, kind: VideoNetwork, weights: Path) -> None:
        super().__init__()
        self.kind = kind
        self.network = build_video_network(kind)
        try:
            self.network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        except Exception as error:  # torch.load raises many kinds; all mean that this file is not what was named
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{weights}: no state dict of torchvision's {_BUILDERS[kind]} for {_OPTION} ({reason}); give its "
                "Kinetics-400 weights, or leave the option out and use --recipe.task.temporal-features perceptual"
            ) from error
        # Rewritten for frames in [-1, 1].
        mean, deviation = torch.tensor(_MEAN), torch.tensor(_DEVIATION)
        self.register_buffer("mean", (2 * mean - 1).view(3, 1, 1, 1), persistent=False)
        self.register_buffer("deviation", (2 * deviation).view(3, 1, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, frames: Tensor) -> list[Tensor]:
        """Feature maps of windows.

        Args:
            frames: (B, K, 3, H, W) in [-1, 1], oldest first. Windows with fewer frames than the network can halve (S3D:
                8) are stretched by repeating frames.

        Returns:
            Four maps (B, C, k, h, w), finest first, each after convolutions over time.

        Raises:
            ShapeError: if the window has no frame or another layout.
        """
        if frames.ndim != 5 or frames.shape[1] < 1 or frames.shape[2] != 3:
            raise ShapeError(f"a window of frames is (B, K, 3, H, W), got {tuple(frames.shape)}")
        batch, count = frames.shape[:2]
        side, least = _SIDES[self.kind], _LEAST_FRAMES[self.kind]
        resized = F.interpolate(
            frames.flatten(0, 1), size=(side, side), mode="bilinear", align_corners=False, antialias=True
        ).unflatten(0, (batch, count))
        if count < least:
            resized = resized[:, torch.arange(least, device=frames.device) * count // least]
        x = (resized.transpose(1, 2) - self.mean) / self.deviation
        features = []
        for stage in self._stages():
            x = stage(x)
            features.append(x)
        return features

    def _stages(self) -> list[nn.Module]:
        """The network in four parts, without its classifier."""
        net: Any = self.network
        if self.kind == "s3d":
            starts = (0, *(end + 1 for end in _S3D_ENDS[:-1]))
            return [net.features[start : end + 1] for start, end in zip(starts, _S3D_ENDS, strict=True)]
        return [nn.Sequential(net.stem, net.layer1), net.layer2, net.layer3, net.layer4]

    def train(self, mode: bool = True) -> VideoFeatures:
        """Stays in evaluation mode: its batch-norm statistics are Kinetics'."""
        return super().train(False)


def build_video_network(kind: VideoNetwork) -> nn.Module:
    """A network of torchvision with fresh weights.

    Raises:
        MissingExtraError: if torchvision is not installed or does not fit this torch.
    """
    if importlib.util.find_spec("torchvision") is None:
        raise MissingExtraError(
            f"--recipe.task.temporal-features {kind} needs torchvision: pip install torchvision, or use perceptual"
        )
    import_raft()  # where torchvision's compiled operators do not load, this makes its pure networks importable
    network: nn.Module = getattr(importlib.import_module("torchvision.models.video"), _BUILDERS[kind])()
    return network
