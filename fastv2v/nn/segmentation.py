"""Segmentation networks of torchvision, an optional package."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastv2v.errors import CheckpointError, ConfigError, MissingExtraError
from fastv2v.nn.optical_flow import import_raft

_LAST: Final = ("classifier.4.weight", "classifier.low_classifier.weight")
"""The layer that gives the scores, by the kind of head; its first side is the number of classes."""


def segmentation_network(
    name: str, weights: Path | None
) -> tuple[Callable[[NDArray[np.float32]], NDArray[np.float32]], tuple[str, ...]]:
    """A segmentation network, ready to be asked on the CPU.

    Args:
        name: as torchvision calls it, such as ``deeplabv3_resnet50``.
        weights: its state dict on disk, of any number of classes. By default torchvision's own, which it downloads
            once, or finds among those downloaded before.

    Returns:
        A function of pictures (1, 3, H, W), normalised, that gives scores (1, L, H, W); and the names of the L classes,
        empty where the weights are not known to have torchvision's classes.

    Raises:
        MissingExtraError: if torchvision is not installed or does not fit this torch.
        CheckpointError: if the file cannot be read or holds other weights.
        ConfigError: if torchvision's weights cannot be had.
    """
    if importlib.util.find_spec("torchvision") is None:
        raise MissingExtraError(f"--labels.network {name} needs torchvision: pip install fastv2v[labels]")
    import_raft()  # where torchvision's compiled operators do not load, this makes its pure networks importable
    models = importlib.import_module("torchvision.models")
    known = models.get_model_weights(name).DEFAULT
    state = _published(name, known) if weights is None else _read(name, weights)
    where = str(weights or known.url)
    try:
        num_classes = next(len(state[key]) for key in _LAST if key in state)
        aux = {"aux_loss": True} if any(key.startswith("aux_classifier.") for key in state) else {}
        network: nn.Module = models.get_model(name, weights=None, weights_backbone=None, num_classes=num_classes, **aux)
        network.load_state_dict(state)
    except (StopIteration, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{where}: not the weights of torchvision's {name} ({_short(error)}); --labels.weights takes its state dict"
        ) from error
    network.eval().requires_grad_(False)

    def ask(picture: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            scores: Tensor = network(torch.from_numpy(picture))["out"]
        return scores.numpy()

    categories = tuple(known.meta["categories"])
    return ask, categories if len(categories) == num_classes else ()


def _published(name: str, known: Any) -> Mapping[str, Tensor]:
    try:
        state: Mapping[str, Tensor] = known.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:  # no way to the server, or a download that was cut short
        raise ConfigError(
            f"torchvision's weights of {name} cannot be had ({_short(error)}); fetch {known.url} elsewhere and give "
            "--labels.weights FILE, or a network of your own with --labels.model FILE.onnx"
        ) from error
    return state


def _read(name: str, path: Path) -> Mapping[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds; all mean that this file is not what was named
        raise CheckpointError(
            f"{path}: no state dict of torchvision's {name} can be read from it ({_short(error)}); check "
            "--labels.weights"
        ) from error
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path}: holds no state dict of torchvision's {name}; check --labels.weights")
    return state


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
