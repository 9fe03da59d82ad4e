"""RAFT from torchvision, an optional package, as reference flow."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastv2v.errors import CheckpointError, MissingExtraError, ShapeError
from fastv2v.ops.flow import photometric_confidence, resize_flow

RAFTSize = Literal["small", "large"]
"""Which of torchvision's two networks: 1.0 or 5.3 million weights."""

_MIN_SIDE = 128
"""RAFT compares at an eighth of the size over a pyramid of four levels; a shorter side leaves the last one empty."""
_MULTIPLE = 8

_COMPILED = ("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
             "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # fmt: skip
"""The compiled operators that torchvision describes to torch at import, whether it could load them or not."""


@functools.cache
def import_raft() -> ModuleType:
    """Import torchvision's module of optical-flow networks.

    The compiled part of torchvision's default wheel needs CUDA libraries. Beside a CPU-only torch it does not load,
    and the import of the package ends at its first operator, ``nms``, although RAFT uses none of them. So where, and
    only where, the operators turn out to be missing, their names are declared without any code behind them, and the
    import is made again. Calling such an operator still fails, as it should.

    Raises:
        MissingExtraError: if torchvision is not installed or does not fit this torch.
    """
    if importlib.util.find_spec("torchvision") is None:
        raise MissingExtraError("RAFT needs torchvision: pip install torchvision, or pip install 'fastv2v[raft]'")
    try:
        return importlib.import_module("torchvision.models.optical_flow")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _COMPILED:
        if not hasattr(torch.ops.torchvision, schema.partition("(")[0]):
            library.define(schema)
    try:
        module = importlib.import_module("torchvision.models.optical_flow")
    except (ImportError, RuntimeError) as error:
        raise MissingExtraError(
            f"torchvision cannot be imported beside torch {torch.__version__} ({error}); install the one that belongs "
            "to it: pip install -c constraints.txt torchvision"
        ) from error
    module.declared_operators = library  # type: ignore[attr-defined]  # they vanish with this object
    return module


class RAFTFlow:
    """A reference flow from a frozen RAFT.

    Args:
        network: called with two pictures (B, 3, H, W) in [-1, 1], H and W multiples of 8 and at least 128; gives
            flows from the first to the second, the last one the best.
        threshold: of the photometric confidence.

    Source:
        Teed and Deng, "RAFT: Recurrent All-Pairs Field Transforms for Optical Flow", ECCV 2020.
    """

    def __init__(self, network: nn.Module, threshold: float = 0.02) -> None:
        self.network = network.eval().requires_grad_(False)
        self.threshold = threshold

    @classmethod
    def torchvision(cls, size: RAFTSize, weights: Path | None, device: torch.device | str = "cpu") -> RAFTFlow:
        """A RAFT of torchvision.

        Args:
            size: which network.
            weights: its state dict on disk; None has torchvision download its own.
            device: where it runs.

        Raises:
            MissingExtraError: if torchvision is not installed.
            CheckpointError: if the weights are not to be had or are of another network.
        """
        models: Any = import_raft()
        network = getattr(models, f"raft_{size}")()
        state = _downloaded(models, size) if weights is None else _read(weights)
        try:
            network.load_state_dict(state)
        except (RuntimeError, TypeError) as error:
            where = "torchvision's download" if weights is None else weights
            raise CheckpointError(f"{where} is no state dict of torchvision's raft_{size} ({error})") from error
        return cls(network.to(device))

    @torch.no_grad()
    def __call__(self, current: Tensor, previous: Tensor) -> tuple[Tensor, Tensor]:
        """Flow (B, 2, H, W) from current to previous and its confidence; see ``FlowEstimator``.

        Sides that are no multiples of 8 are padded by repeating the border. Frames with a side below 128 are enlarged,
        and their flow is scaled back for each axis.

        Raises:
            ShapeError: if the frames differ in shape.
        """
        if current.shape != previous.shape:
            raise ShapeError(f"flow needs two frames of equal shape, got {current.shape} and {previous.shape}")
        height, width = current.shape[-2:]
        pair = torch.cat([current, previous]).float()
        enlarged = _MIN_SIDE / min(height, width)
        size = _ceil(height * max(enlarged, 1)), _ceil(width * max(enlarged, 1))
        if enlarged > 1:
            pair = F.interpolate(pair, size=size, mode="bilinear", align_corners=False)
        else:
            pair = F.pad(pair, (0, size[1] - width, 0, size[0] - height), mode="replicate")
        with torch.autocast(pair.device.type, enabled=False):  # matching costs overflow in half precision
            flow = self.network(*pair.chunk(2))[-1]
        flow = resize_flow(flow, (height, width)) if enlarged > 1 else flow[..., :height, :width].contiguous()
        return flow, photometric_confidence(current, previous, flow, self.threshold)


def _ceil(length: float) -> int:
    """The next multiple that the network takes."""
    return math.ceil(length / _MULTIPLE) * _MULTIPLE


def _read(path: Path) -> Any:
    """What a file of weights holds."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds; all mean that this file holds no weights
        # Torch's own words are a page, and advise to read the file without safety.
        reason = str(error) if isinstance(error, OSError) else "it holds no plain tensors"
        raise CheckpointError(
            f"{path}: no readable weights ({reason}); give the file of a state dict of torchvision's RAFT"
        ) from error


def _downloaded(models: Any, size: RAFTSize) -> Any:
    """Weights that torchvision offers, downloaded once and then kept by torch."""
    weights = getattr(models, f"Raft_{size.title()}_Weights").DEFAULT
    try:
        return weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"torchvision could not download the weights of raft_{size} ({error}); name a file of them with "
            "--recipe.helpers.raft-weights, or use --recipe.helpers.flow medium"
        ) from error
