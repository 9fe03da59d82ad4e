"""Batch norm beyond one process and beyond training: shared statistics, and statistics of the frame at hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


@contextmanager
def batch_statistics(*models: Any) -> Iterator[None]:
    """Within: every norm goes by the statistics of what it is given, and remembers nothing.

    The published vid2vid generates so, with batch norms as with instance norms that keep running statistics: it never
    leaves training mode. Here the running statistics stay as they are, so that one frame does not depend on how many
    came before it.

    Args:
        models: modules, or step models around one (their attributes are searched).
    """
    norms = [(norm, norm.training, norm.track_running_stats, norm.momentum) for norm in _norms(*models)]
    try:
        for norm, *_ in norms:
            # Batch norms that do not track are given no running statistics; instance norms always are, and write them.
            norm.training, norm.track_running_stats, norm.momentum = True, False, 0.0
        yield
    finally:
        for norm, training, tracks, momentum in norms:
            norm.training, norm.track_running_stats, norm.momentum = training, tracks, momentum


@contextmanager
def kept_statistics(model: Any) -> Iterator[None]:
    """Within: norms compute exactly as before, and their running statistics stay what they are.

    For running a step a second time. (Not the same as ``batch_statistics``: checkpointing counts saved tensors, so the
    second run must make the same calls as the first.)

    Args:
        model: a module, or a step model around one.
    """
    kept = [
        (norm, norm.momentum, norm.num_batches_tracked.clone())
        for norm in _norms(model)
        if norm.track_running_stats and norm.num_batches_tracked is not None
    ]
    try:
        for norm, _, _ in kept:
            norm.momentum = 0.0
        yield
    finally:
        for norm, momentum, count in kept:
            norm.momentum = momentum
            assert norm.num_batches_tracked is not None
            norm.num_batches_tracked.copy_(count)


def _norms(*models: Any) -> list[_NormBase]:
    """Every norm that may keep running statistics."""
    found = []
    for model in models:
        modules = [model] if isinstance(model, nn.Module) else vars(model).values()
        found += [m for module in modules if isinstance(module, nn.Module) for m in module.modules()]
    return [module for module in found if isinstance(module, _NormBase)]


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the batch of all processes, so that splitting a batch does not change what is learnt.

    torch's own ``SyncBatchNorm`` runs on GPUs only; this one uses any backend, gloo on CPUs among them. In evaluation
    mode, and without other processes, it is ``BatchNorm2d``. All processes must call it equally often and in the same
    order, with batches of equal size.

    Source:
        Mean and variance over all processes: Peng et al., "MegDet", CVPR 2018.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, H, W)."""
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            wide = x.float()
            # One message: the mean and the mean square of this process, averaged over all.
            own = torch.stack([wide.mean(dim=(0, 2, 3)), wide.square().mean(dim=(0, 2, 3))])
            mean, square = _AllMean.apply(own)
            variance = (square - mean.square()).clamp_min(0)
            if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
                self._remember(mean.detach(), variance.detach(), x)
            scale = torch.rsqrt(variance + self.eps)
            shift = -mean * scale
            if self.affine:
                scale, shift = scale * self.weight, shift * self.weight + self.bias
            made = wide * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)
        return made.to(x.dtype)

    def _remember(self, mean: Tensor, variance: Tensor, x: Tensor) -> None:
        """Move the running statistics, with the unbiased variance as ``BatchNorm2d`` does."""
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None and self.running_var is not None
        self.num_batches_tracked.add_(1)
        count = x.shape[0] * x.shape[2] * x.shape[3] * dist.get_world_size()
        momentum = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance * (count / max(count - 1, 1)), momentum)


class _AllMean(torch.autograd.Function):
    """Mean over all processes; its gradient is the mean of theirs."""

    @staticmethod
    def forward(_context: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x / dist.get_world_size()

    @staticmethod
    def backward(_context: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone()
        dist.all_reduce(gradient)
        return gradient / dist.get_world_size()


def share_batch_norms(module: nn.Module) -> nn.Module:
    """Turn every ``BatchNorm2d`` inside a module into one over all processes, in place; weights and names stay.

    Returns:
        The same module.
    """
    for part in module.modules():
        if type(part) is nn.BatchNorm2d:
            part.__class__ = SharedBatchNorm2d
    return module
