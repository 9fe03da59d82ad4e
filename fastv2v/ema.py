"""Exponential moving average of a network's weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fastv2v.errors import ConfigError


class Ema:
    """A running average of one module's weights, kept beside it.

    Parameters are averaged: ``average <- d * average + (1 - d) * value``. Buffers are copied: the vectors of spectral
    norm lose their unit length when averaged, and batch statistics are running averages already.

    The decay warms up, ``d = min(decay, (1 + n) / (10 + n))`` at update n, so that a short run is not dominated by its
    random start.

    Args:
        module: the network to follow.
        decay: d once warm, in [0, 1).

    Raises:
        ConfigError: if the decay lies outside [0, 1).

    Source:
        Averaged generator weights as in Karras et al., "Progressive Growing of GANs", ICLR 2018; the warm-up is that of
        TensorFlow's ``ExponentialMovingAverage``.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ConfigError(f"ema_decay must lie in [0, 1), got {decay}")
        self.decay = decay
        self.num_updates = 0
        self._module = module
        self._average = {name: value.detach().clone() for name, value in self._live().items()}
        self._averaged = [name for name, value in self._live().items() if isinstance(value, nn.Parameter)]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the module's present weights; call once after each optimiser step."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        live = self._live()
        torch._foreach_lerp_([self._average[n] for n in self._averaged], [live[n] for n in self._averaged], 1 - decay)
        for name in live.keys() - set(self._averaged):
            self._average[name].copy_(live[name])

    @contextlib.contextmanager
    def swap(self) -> Iterator[None]:
        """Put the averaged weights into the module for the length of the block, then the live ones back, bit for bit.

        Nothing is copied: the two exchange their storage. Do not train or update inside the block. Weights loaded into
        the module inside the block become the average.
        """
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        """Swap the storage of live and averaged tensors."""
        for name, live in self._live().items():
            average = self._average[name]
            live.data, average.data = average.data, live.data

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights under the module's own names, so that they load straight into it."""
        first = {id(value): name for name, value in self._live().items()}
        return {name: self._average[first[id(value)]] for name, value in _state(self._module).items()}

    def _live(self) -> dict[str, Tensor]:
        """The module's own tensors by name, each once, even where two names share one."""
        names: dict[int, str] = {}
        for name, value in (state := _state(self._module)).items():
            names.setdefault(id(value), name)
        return {name: state[name] for name in names.values()}


def _state(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a module's state dict: the parameters themselves, not detached copies."""
    return {name: value for name, value in module.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
