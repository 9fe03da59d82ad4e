"""Multiply-adds and parameters of a network, counted while it runs once.

1 MAC is one multiply-add, 2 FLOPs. Convolutions and linear layers are counted; normalisation, activations, warping and
blending are not, as in the literature. A transposed convolution has two counts: the *true* one multiplies its kernel
with every input position; several counting tools, and the figures published for Fast-Vid2Vid, take the output
positions instead, four times as many at stride 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from fastv2v.errors import ConfigError

_CONVOLUTIONS: Final = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED: Final = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_COUNTED: Final = (*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear)


@dataclass(frozen=True)
class ModuleCost:
    """Share of one layer."""

    name: str
    """Dotted path of the layer; a shared layer goes by its first one."""
    kind: str
    """Class of the layer."""
    calls: int
    """How often it ran."""
    true_macs: int
    """Multiply-adds of all calls."""
    output_position_macs: int
    """The same under the output-position convention."""
    parameters: int
    """Weights and biases of this layer."""
    values: int
    """Numbers in its inputs and outputs, over all calls: what has to pass through memory beside the weights."""


@dataclass(frozen=True)
class Cost:
    """What one call of a network costs."""

    true_macs: int
    """Multiply-adds that are carried out."""
    output_position_macs: int
    """Multiply-adds under the convention of published tables."""
    parameters: int
    """All parameters of the module, each once."""
    trainable_parameters: int
    """Those that require gradients."""
    per_module: tuple[ModuleCost, ...]
    """Layers that ran, in the order of their first call."""


def count_macs(call: Callable[[], Any], module: nn.Module) -> Cost:
    """Count what the layers inside ``module`` do while ``call`` runs; its batch size counts as it is.

    Runs under ``torch.no_grad``. Any device will do, ``meta`` among them, where nothing is computed. Convolutions that
    are called as functions rather than as modules go unseen.

    Args:
        call: runs the module once.
        module: the network whose layers are counted.

    Returns:
        Totals and the share of each layer.

    Raises:
        ConfigError: if no convolution or linear layer of the module ran.
    """
    calls: dict[nn.Module, list[tuple[int, int, int]]] = {}

    def note(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        passing = inputs[0].numel() + output.numel()
        calls.setdefault(layer, []).append((*_macs(layer, inputs[0], output), passing))

    names: dict[nn.Module, str] = {layer: name for name, layer in module.named_modules() if isinstance(layer, _COUNTED)}
    hooks = [layer.register_forward_hook(note) for layer in names]
    try:
        with torch.no_grad():
            call()
    finally:
        for hook in hooks:
            hook.remove()
    if not calls:
        raise ConfigError("nothing was counted: the call ran no convolution or linear layer of the given module")
    table = tuple(
        ModuleCost(
            names[layer],
            type(layer).__name__,
            len(counted),
            sum(true for true, _, _ in counted),
            sum(by_output for _, by_output, _ in counted),
            sum(p.numel() for p in layer.parameters()),
            sum(passing for _, _, passing in counted),
        )
        for layer, counted in calls.items()
    )
    return Cost(
        sum(row.true_macs for row in table),
        sum(row.output_position_macs for row in table),
        sum(p.numel() for p in module.parameters()),
        sum(p.numel() for p in module.parameters() if p.requires_grad),
        table,
    )


def _macs(layer: nn.Module, source: Tensor, output: Tensor) -> tuple[int, int]:
    """True and output-position multiply-adds of one call."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if isinstance(layer, _TRANSPOSED):
        # weight: (C_in, C_out / groups, *kernel): one row of it spreads one input value.
        return source.numel() * weight[0].numel(), output.numel() // layer.out_channels * weight.numel()
    # weight: (C_out, C_in / groups, *kernel) or (out, in): one row of it makes one output value.
    macs = output.numel() * weight[0].numel()
    return macs, macs
