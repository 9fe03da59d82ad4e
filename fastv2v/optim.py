"""The optimiser and its learning-rate schedule."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from fastv2v.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Adam with a learning rate that is constant first and falls linearly at the end."""

    lr: float = 2e-4
    """Learning rate of the constant part."""
    betas: tuple[float, float] = (0.5, 0.999)
    """Decay of Adam's running mean and running square."""
    warmup_fraction: float = 0.0
    """Part of the training, in [0, 1], over which the rate rises linearly from ``final_factor`` to full."""
    decay_fraction: float = 0.5
    """Last part of the training, in [0, 1], over which the rate falls linearly."""
    final_factor: float = 0.01
    """What is left of the rate at the very end, as a factor in [0, 1]."""

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ConfigError(f"lr must be positive, got {self.lr}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas must be two numbers in [0, 1), got {self.betas}")
        for name in ("warmup_fraction", "decay_fraction", "final_factor"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if self.warmup_fraction + self.decay_fraction > 1:
            raise ConfigError(
                f"warmup_fraction ({self.warmup_fraction}) and decay_fraction ({self.decay_fraction}) overlap; "
                "their sum must not exceed 1"
            )

    def lr_factor(self, progress: float) -> float:
        """Factor on ``lr`` at a point of the training.

        Args:
            progress: how much of the training is over, in [0, 1], by steps or by time.

        Returns:
            A factor in [``final_factor``, 1]: 1 in the constant part, linear in progress elsewhere.

        Source:
            Constant, then linear decay over the second half: the schedule of Wang et al., "Video-to-Video Synthesis",
            NeurIPS 2018.
        """
        part = 1.0
        if progress < self.warmup_fraction:
            part = progress / self.warmup_fraction
        elif progress > 1 - self.decay_fraction:
            part = max(0.0, 1 - progress) / self.decay_fraction
        return self.final_factor + (1 - self.final_factor) * part


def trainable_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a module that require gradients, by name, each once."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def build_adam(parameters: Iterable[nn.Parameter], config: OptimConfig) -> torch.optim.Adam:
    """Adam over the parameters, one fused kernel a step (on CPUs as well)."""
    return torch.optim.Adam(list(parameters), lr=config.lr, betas=config.betas, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group the learning rate ``lr``."""
    for group in optimizer.param_groups:
        group["lr"] = lr
