"""FID, FVD and LPIPS where their networks are at hand: files are named by the user, nothing is downloaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.features import to_tensor
from fastv2v.errors import CheckpointError, ShapeError

Frames = Sequence[NDArray[np.uint8]]

MIN_CLIP_FRAMES: Final = 10
"""I3D halves time three times and looks at two of the rest."""

_ALEXNET: Final = ((3, 64, 11, 4, 2), (64, 192, 5, 1, 2), (192, 384, 3, 1, 1), (384, 256, 3, 1, 1), (256, 256, 3, 1, 1))
_ALEXNET_LAYERS: Final = (0, 3, 6, 8, 10)  # position of each convolution in torchvision's ``features``
_POOLED_BEFORE: Final = (1, 2)


class InceptionFeatures:
    """Pooled Inception-v3 features of frames, for FID.

    Args:
        file: TorchScript of the TensorFlow port, published as ``inception-2015-12-05.pt``. Called with 8-bit frames and
            ``return_features=True`` it gives 2048 numbers for each; it resizes to 299x299 itself. TorchScript is a
            program: take it from a source you trust.
        device: where it runs.

    Raises:
        CheckpointError: if the file is no such network.

    Source:
        Heusel et al., "GANs trained by a two time-scale update rule", NeurIPS 2017.
    """

    def __init__(self, file: Path, device: torch.device) -> None:
        self._network, self._file = _load_script(file, device, ("return_features",)), file
        self._device = device

    @torch.no_grad()
    def __call__(self, frames: Frames) -> NDArray[np.float32]:
        """Features (T, D) of frames, RGB (H, W, 3) 8-bit."""
        made = [self._network(_planes([frame]).to(self._device), return_features=True) for frame in frames]
        return _vectors(torch.cat(made), len(frames), self._file)


class I3DFeatures:
    """Logits of I3D for clips of one length, for FVD.

    Args:
        file: TorchScript of the original graph, published as ``i3d_torchscript.pt``. Called with
            ``rescale=True, resize=True, return_features=True`` it scales values of 0 to 255 to [-1, 1], resizes to
            224x224 and gives 400 numbers for each clip. TorchScript is a program: take it from a source you trust.
        device: where it runs.
        clip_frames: T, frames of a clip.

    Raises:
        CheckpointError: if the file is no such network.
        ShapeError: if clips are too short for it.

    Source:
        Unterthiner et al., "Towards accurate generative models of video", 2018; Carreira and Zisserman, "Quo vadis,
        action recognition?", CVPR 2017.
    """

    def __init__(self, file: Path, device: torch.device, clip_frames: int = 16) -> None:
        if clip_frames < MIN_CLIP_FRAMES:
            raise ShapeError(f"FVD needs clips of at least {MIN_CLIP_FRAMES} frames, got {clip_frames}")
        self._network, self._file = _load_script(file, device, ("rescale", "resize", "return_features")), file
        self._device, self._clip_frames = device, clip_frames

    @torch.no_grad()
    def __call__(self, frames: Frames) -> NDArray[np.float32]:
        """Features (N, D) of the N whole clips that a video is cut into, one after the other; N may be 0."""
        count = self._clip_frames
        clips = [frames[start : start + count] for start in range(0, len(frames) - count + 1, count)]
        if not clips:
            return np.zeros((0, 1), np.float32)
        made = [
            self._network(
                _planes(clip).float().transpose(0, 1)[None].to(self._device),
                rescale=True,
                resize=True,
                return_features=True,
            )
            for clip in clips
        ]
        return _vectors(torch.cat(made), len(clips), self._file)


class LPIPS(nn.Module):
    """Learned perceptual distance v0.1 on AlexNet; lower is more alike, 0 for equal frames.

    Args:
        alexnet: torchvision's ``alexnet`` state dict (``features.0.weight`` ...).
        linear: the calibration published with the metric, ``alex.pth`` of version 0.1 (``lin0.model.1.weight`` ...).

    Raises:
        CheckpointError: if a file cannot be read or does not hold these weights.

    Source:
        Zhang et al., "The unreasonable effectiveness of deep features as a perceptual metric", CVPR 2018.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, alexnet: Path, linear: Path) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(i, o, k, s, p) for i, o, k, s, p in _ALEXNET)
        self.weights = nn.ParameterList(nn.Parameter(torch.empty(1, o, 1, 1)) for _, o, *_ in _ALEXNET)
        trunk = {
            f"convolutions.{i}.{kind}": f"features.{layer}.{kind}"
            for i, layer in enumerate(_ALEXNET_LAYERS)
            for kind in ("weight", "bias")
        }
        heads = {f"weights.{i}": f"lin{i}.model.1.weight" for i in range(len(_ALEXNET))}
        tensors = _renamed(alexnet, trunk, "torchvision AlexNet") | _renamed(linear, heads, "LPIPS calibration (v0.1)")
        try:
            self.load_state_dict(tensors)
        except RuntimeError as error:
            raise CheckpointError(f"{alexnet} and {linear} are not AlexNet and its LPIPS weights ({error})") from error
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, frames: Tensor, reference: Tensor) -> Tensor:
        """Distances (B,) of frames (B, 3, H, W) in [-1, 1] to others of the same shape."""
        total = frames.new_zeros(len(frames))
        for weight, a, b in zip(self.weights, self._features(frames), self._features(reference), strict=True):
            total = total + ((a - b).square() * weight).sum(dim=1).mean(dim=(1, 2))
        return total

    def _features(self, x: Tensor) -> list[Tensor]:
        """Five feature maps, every pixel of unit length over the channels."""
        x = (x - self.shift) / self.scale
        found = []
        for i, convolution in enumerate(self.convolutions):
            x = F.relu(convolution(F.max_pool2d(x, 3, 2) if i in _POOLED_BEFORE else x))
            found.append(x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10))
        return found

    @torch.no_grad()
    def distances(self, frames: Frames, reference: Frames) -> list[float]:
        """Distance of each finished frame to the reference of the same index."""
        return [float(self(to_tensor(a, self), to_tensor(b, self))) for a, b in zip(frames, reference, strict=True)]


def _load_script(file: Path, device: torch.device, options: tuple[str, ...]) -> torch.jit.ScriptModule:
    """A TorchScript network whose ``forward`` has these options."""
    try:
        network = torch.jit.load(str(file), map_location=device).eval()
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{file}: no TorchScript network can be read from it ({reason})") from error
    known = [argument.name for argument in network.forward.schema.arguments]
    if missing := [option for option in options if option not in known]:
        raise CheckpointError(f"{file}: this network takes no {' and no '.join(missing)}; it is not the published one")
    return network


def _planes(frames: Frames) -> Tensor:
    """Finished frames as (T, 3, H, W) uint8."""
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).contiguous()


def _vectors(features: Tensor, count: int, file: Path) -> NDArray[np.float32]:
    if features.ndim != 2 or len(features) != count:
        raise CheckpointError(f"{file}: expected one vector each, the network gave {tuple(features.shape)}")
    return features.float().cpu().numpy()


def _renamed(file: Path, names: Mapping[str, str], what: str) -> dict[str, Any]:
    """Tensors of a state dict under our names."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        return {ours: state[theirs] for ours, theirs in names.items()}
    except Exception as error:  # torch.load raises many kinds; all mean that this file is another
        raise CheckpointError(f"{file}: no {what} state dict ({error})") from error
