"""Spectral normalisation: weights divided by their largest singular value."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization


class SpectralNorm(nn.Module):
    """Divides a weight by an estimate of its largest singular value, in float32 whatever the precision around it.

    Every use in training improves the estimate by one power iteration. torch's own parametrisation does the same but
    for the precision: under autocast its estimate is rounded to that of the convolutions.

    Args:
        weight: what is normalised; its first axis counts the outputs.

    Source:
        Miyato et al., "Spectral Normalization for Generative Adversarial Networks", ICLR 2018.
    """

    u: Tensor
    v: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        matrix = weight.detach().float().flatten(1)
        self.register_buffer("u", F.normalize(torch.randn_like(matrix[:, 0]), dim=0))
        self.register_buffer("v", F.normalize(torch.randn_like(matrix[0]), dim=0))
        self._improve(matrix, times=15)

    def forward(self, weight: Tensor) -> Tensor:
        """The same shape, of largest singular value 1 as far as is known."""
        matrix = weight.float().flatten(1)
        if self.training:
            self._improve(matrix.detach())
        # Copies, since the next iteration overwrites what this graph still needs. Products and sums rather than
        # torch.mv, which autocast would round.
        sigma = (self.u.clone() * (matrix * self.v.clone()).sum(dim=1)).sum()
        return weight / sigma

    @torch.no_grad()
    def _improve(self, matrix: Tensor, times: int = 1) -> None:
        """Power iterations."""
        with torch.autocast(matrix.device.type, enabled=False):
            for _ in range(times):
                self.u.copy_(F.normalize(torch.mv(matrix, self.v), dim=0, eps=1e-12))
                self.v.copy_(F.normalize(torch.mv(matrix.t(), self.u), dim=0, eps=1e-12))


def spectral_norm(layer: nn.Module) -> None:
    """Normalise the weight of a layer from now on. Initialise it before: afterwards its weight is a computed value."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    register_parametrization(layer, "weight", SpectralNorm(weight))


class SpectralMemory:
    """Lets a step run a second time with the weights of its first run, as gradient checkpointing needs.

    Args:
        model: a module, or a step model around one (its attributes are searched).
    """

    def __init__(self, model: Any) -> None:
        modules = [model] if isinstance(model, nn.Module) else vars(model).values()
        self._norms = [
            part
            for module in modules
            if isinstance(module, nn.Module)
            for part in module.modules()
            if isinstance(part, SpectralNorm)
        ]
        self._kept: list[tuple[Tensor, Tensor]] = []

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Around the first run: the estimates it ends with are kept. Each weight may be used once in it."""
        yield
        self._kept = [(norm.u.clone(), norm.v.clone()) for norm in self._norms]

    @contextmanager
    def recalling(self) -> Iterator[None]:
        """Around the second run: the estimates are those, and afterwards what they were."""
        before = [(norm.u.clone(), norm.v.clone(), norm.training) for norm in self._norms]
        for norm, (u, v) in zip(self._norms, self._kept, strict=True):
            norm.u.copy_(u)
            norm.v.copy_(v)
            norm.training = False
        try:
            yield
        finally:
            for norm, (u, v, training) in zip(self._norms, before, strict=True):
                norm.u.copy_(u)
                norm.v.copy_(v)
                norm.training = training
