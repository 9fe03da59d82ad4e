"""Convolution blocks that teachers and students are built from."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NormKind = Literal["batch", "instance", "none", "instance_tracked"]
BlockKind = Literal["residual", "inverted"]


def norm_layer(kind: NormKind, channels: int) -> nn.Module:
    """Normalisation layer.

    Args:
        kind: ``batch`` is affine batch norm (folds into the convolution when exported); ``instance`` is instance norm
            without affine parameters; ``instance_tracked`` is the same but keeps running statistics and normalises
            with them in evaluation mode, as the published vid2vid does; ``none`` leaves values as they are.
        channels: number of channels.
    """
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind in ("instance", "instance_tracked"):
        return nn.InstanceNorm2d(channels, affine=False, track_running_stats=kind == "instance_tracked")
    return nn.Identity()


def conv_block(
    c_in: int, c_out: int, kernel: int, *, stride: int = 1, norm: NormKind, reflect: bool = False
) -> nn.Sequential:
    """Convolution, norm, ReLU; padded to keep the size (divided by ``stride``).

    ``reflect`` pads by reflection, as vid2vid does before its 7x7 convolutions; otherwise with zeros.
    """
    pad = kernel // 2
    layers: list[nn.Module] = [nn.ReflectionPad2d(pad)] if reflect else []
    layers += [
        nn.Conv2d(c_in, c_out, kernel, stride=stride, padding=0 if reflect else pad),
        norm_layer(norm, c_out),
        nn.ReLU(),
    ]
    return nn.Sequential(*layers)


def up_block(c_in: int, c_out: int, *, norm: NormKind) -> nn.Sequential:
    """Doubles the size: transposed 3x3 convolution, norm, ReLU."""
    return nn.Sequential(
        nn.ConvTranspose2d(c_in, c_out, 3, stride=2, padding=1, output_padding=1), norm_layer(norm, c_out), nn.ReLU()
    )


class ResidualBlock(nn.Module):
    """Two reflected 3x3 convolutions beside the identity; no activation after the sum (He et al., CVPR 2016)."""

    def __init__(self, channels: int, *, norm: NormKind) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            norm_layer(norm, channels),
            nn.ReLU(),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            norm_layer(norm, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return x + self.branch(x)


class InvertedResidual(nn.Module):
    """Point-wise, depth-wise 3x3, point-wise: the published student's block, 2c^2 + 9c weights.

    Batch norm whatever the rest uses, no convolution biases, zero padding, ReLU6, linear end.

    Source:
        Sandler et al., "MobileNetV2", CVPR 2018; expansion 1 as in Fast-Vid2Vid (Zhuo et al., ECCV 2022).
    """

    def __init__(self, channels: int, *, expansion: int = 1) -> None:
        super().__init__()
        hidden = channels * expansion
        self.branch = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return x + self.branch(x)


def block_stack(kind: BlockKind, channels: int, count: int, *, norm: NormKind) -> nn.Sequential:
    """``count`` blocks of one kind at constant width."""
    if kind == "inverted":
        return nn.Sequential(*(InvertedResidual(channels) for _ in range(count)))
    return nn.Sequential(*(ResidualBlock(channels, norm=norm) for _ in range(count)))


def path_widths(width: int, depth: int, max_width: int | None = None) -> list[int]:
    """Channels at each of the ``depth`` + 1 sizes, finest first: doubled each time, at most ``max_width``."""
    return [min(width * 2**i, max_width or width * 2**i) for i in range(depth + 1)]


def used_channels(x: Tensor) -> Tensor | None:
    """Channels that are not zero everywhere, where training a convolution on those alone pays.

    Most classes of a one-hot condition are absent from most clips. A convolution gives the same without them, and the
    gradients of their weights are zeros, which ``index_select`` on the weights gives them.

    Args:
        x: what a convolution is about to see, (B, C, H, W).

    Returns:
        Ascending indices of the channels to take, or None to take all: where no gradients are recorded, or also those
        of ``x`` (zero channels have some); on a GPU, which the host would have to wait for; for tensors without values
        (shape propagation, export); and where less than a quarter of the channels could be left out.
    """
    if not torch.is_grad_enabled() or x.requires_grad or x.device.type != "cpu" or type(x) is not Tensor:
        return None
    # Extremes, since they are found many times faster than whether any value is not zero.
    used = ((x.amax((0, 2, 3)) != 0) | (x.amin((0, 2, 3)) != 0)).nonzero().flatten()
    return used if 0 < used.numel() <= 0.75 * x.shape[1] else None


class DownPath(nn.Sequential):
    """Reflected entry convolution, then ``depth`` 3x3 convolutions that double the width.

    In training the entry leaves out channels that are zero everywhere, as far as ``used_channels`` finds it worthwhile.

    Args:
        c_in: input channels.
        width: channels after the entry; width * 2^depth come out.
        depth: number of doublings.
        keep_size: how many of the first of them keep the size (stride 1); the rest halve it. A student whose input is
            reduced by 2^k keeps k, so that its bottleneck has the teacher's size.
        kernel: of the entry.
        norm: normalisation.
        max_width: no layer gets more channels than this.
    """

    def __init__(
        self,
        c_in: int,
        width: int,
        depth: int,
        *,
        keep_size: int = 0,
        kernel: int = 7,
        norm: NormKind,
        max_width: int | None = None,
    ) -> None:
        widths = path_widths(width, depth, max_width)
        super().__init__(
            conv_block(c_in, width, kernel, norm=norm, reflect=True),
            *(
                conv_block(widths[i], widths[i + 1], 3, stride=1 if i < keep_size else 2, norm=norm)
                for i in range(depth)
            ),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, H, W) to the features of the last convolution."""
        used = used_channels(x) if self.training else None
        if used is None:
            return super().forward(x)
        entry, *further = self.children()
        pad, conv, *rest = entry.children()
        assert isinstance(conv, nn.Conv2d)  # as built above
        # Channels innermost: CPU kernels fill any other layout up to a multiple of their vectors' length.
        padded = pad(x.index_select(1, used)).contiguous(memory_format=torch.channels_last)
        x = F.conv2d(padded, conv.weight.index_select(1, used), conv.bias).contiguous()
        for layer in (*rest, *further):
            x = layer(x)
        return x


class UpPath(nn.Sequential):
    """``depth`` transposed convolutions that double the size, down to ``width`` channels: ``DownPath`` backwards."""

    def __init__(self, width: int, depth: int, *, norm: NormKind, max_width: int | None = None) -> None:
        widths = path_widths(width, depth, max_width)
        super().__init__(*(up_block(widths[i + 1], widths[i], norm=norm) for i in reversed(range(depth))))


class Head(nn.Module):
    """Reflected convolution to the output channels, without activation."""

    def __init__(self, width: int, c_out: int, *, kernel: int = 7) -> None:
        super().__init__()
        self.pad = nn.ReflectionPad2d(kernel // 2)
        self.conv = nn.Conv2d(width, c_out, kernel)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) to (B, c_out, H, W)."""
        return self.conv(self.pad(x))


@torch.no_grad()
def init_gan_weights(module: nn.Module, std: float = 0.02) -> None:
    """Draw convolution weights from N(0, std), batch-norm weights from N(1, std); batch-norm biases become 0.

    Source:
        The initialisation of DCGAN (Radford et al., ICLR 2016), used by pix2pixHD and vid2vid.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(part.weight, 0.0, std)
        elif isinstance(part, nn.BatchNorm2d) and part.affine:
            nn.init.normal_(part.weight, 1.0, std)
            nn.init.zeros_(part.bias)
