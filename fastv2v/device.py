"""Devices, precision and processes: the only file that knows Hugging Face Accelerate.

One process is the case of a world of size 1, so nothing else in the project asks how many there are, except for who
writes files. Start several with ``accelerate launch`` or ``torchrun``; each then holds all networks and its own clips.

Gradients are computed per player with ``torch.autograd.grad`` and averaged over processes in one explicit reduction
instead of by ``DistributedDataParallel``: its hooks expect one forward through the wrapper followed by one backward,
while here several players share one graph, a network runs many times a chunk (for each frame, for real and for fake),
and no player's loss may leave anything in another's ``.grad``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from accelerate.utils import broadcast  # type: ignore[import-untyped]
from torch import Tensor, nn

from fastv2v.environment import has_fast_bf16
from fastv2v.errors import ConfigError
from fastv2v.nn.norms import share_batch_norms

Precision = Literal["auto", "fp32", "bf16", "fp16"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class DeviceConfig:
    """Where and how precisely to compute."""

    precision: Precision = "auto"
    """Arithmetic inside networks; weights stay float32. ``auto`` is bf16 where the hardware has it, else fp32.
    ``fp16`` needs a CUDA GPU and scales the loss."""
    cpu: bool = False
    """Stay on the CPU even where a GPU is present."""
    gradient_accumulation: int = 1
    """Batches whose gradients are averaged before an update: a batch this many times larger, in the memory of one."""
    shared_batch_norm: bool = True
    """Batch norm over the clips of all processes, so that how many there are does not change what is learnt. Switch off
    to spare its messages where each process has a large batch of its own."""

    def __post_init__(self) -> None:
        if self.precision not in ("auto", *_DTYPES):
            raise ConfigError(f"precision must be auto, fp32, bf16 or fp16, got {self.precision!r}")
        if self.gradient_accumulation < 1:
            raise ConfigError(f"gradient_accumulation must be at least 1, got {self.gradient_accumulation}")


class Device:
    """What the training loop needs to know about hardware and other processes; made by ``open_device``."""

    def __init__(
        self, accelerator: Accelerator, dtype: torch.dtype, gradient_accumulation: int, *, shared_norms: bool = True
    ) -> None:
        self._accelerator = accelerator
        self.device: torch.device = accelerator.device
        """Where networks and clips go."""
        self.dtype = dtype
        """Type of the arithmetic inside ``autocast``."""
        self.gradient_accumulation = gradient_accumulation
        """Batches per update."""
        self.rank: int = accelerator.process_index
        """Number of this process, from 0."""
        self.world_size: int = accelerator.num_processes
        """How many processes train together."""
        self.is_main: bool = accelerator.is_main_process
        """Whether this process writes the files."""

        self._shared_norms = shared_norms

    def place(self, module: nn.Module) -> nn.Module:
        """Move a network that is trained here; its batch norms then look at the clips of all processes."""
        module.to(self.device)
        return share_batch_norms(module) if self._shared_norms and self.world_size > 1 else module

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Context in which networks run in the configured precision."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def grad_scaler(self) -> torch.amp.GradScaler | None:
        """A loss scaler for fp16; the wider range of bf16 and fp32 needs none."""
        return torch.amp.GradScaler(self.device.type) if self.dtype == torch.float16 else None

    @torch.no_grad()
    def average_gradients(
        self, gradients: Sequence[Tensor | None], parameters: Sequence[nn.Parameter]
    ) -> list[Tensor | None]:
        """Mean of the gradients over all processes, in one message.

        Args:
            gradients: one for each parameter; None for a parameter that took no part.
            parameters: in the same order in every process.

        Returns:
            The means. A gradient is None only where it is None in every process, and counts as zero where it is None
            in some, so that any split of a batch gives the same update.
        """
        if self.world_size == 1:
            return list(gradients)
        filled = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True)]
        took_part = torch.tensor([float(g is not None) for g in gradients], device=self.device)
        flat = self.mean(torch.cat([*(g.reshape(-1).float() for g in filled), took_part]))
        means = flat.split([*(g.numel() for g in filled), len(filled)])
        used = means[-1].tolist()
        shaped = [m.view_as(g).to(g.dtype) for m, g in zip(means, filled, strict=False)]
        return [mean if part > 0 else None for mean, part in zip(shaped, used, strict=True)]

    def mean(self, values: Tensor) -> Tensor:
        """Elementwise mean over all processes."""
        return self._accelerator.reduce(values, "mean") if self.world_size > 1 else values

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise sum over all processes."""
        return self._accelerator.reduce(values, "sum") if self.world_size > 1 else values

    @torch.no_grad()
    def broadcast_(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite the tensors with those of the main process, one message for each type of number."""
        if self.world_size == 1:
            return
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            by_dtype.setdefault(tensor.dtype, []).append(tensor)
        for group in by_dtype.values():
            flat = broadcast(torch.cat([tensor.reshape(-1) for tensor in group]))
            for tensor, part in zip(group, flat.split([tensor.numel() for tensor in group]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def barrier(self) -> None:
        """Wait until every process is here."""
        self._accelerator.wait_for_everyone()

    def close(self) -> None:
        """Leave the process group, if there is one; the device must not be used afterwards."""
        if self.world_size > 1:
            torch.distributed.destroy_process_group()


def open_device(config: DeviceConfig) -> Device:
    """Find the device, join the other processes if there are any, and settle the precision.

    Args:
        config: what is wanted.

    Returns:
        The device of this process: its own GPU where there is one, else the CPU.

    Raises:
        ConfigError: if fp16 is asked for without a CUDA GPU, or bf16 on a GPU that has none.
    """
    # Told to use the CPU, Accelerate joins processes through gloo. Left to find out by itself that there is no GPU, it
    # takes every process for a lone one. Its own mixed precision stays off: it is fixed once per Python process.
    accelerator = Accelerator(cpu=config.cpu or not torch.accelerator.is_available(), mixed_precision="no")
    dtype = _DTYPES[_resolve_precision(config.precision, accelerator.device)]
    return Device(accelerator, dtype, config.gradient_accumulation, shared_norms=config.shared_batch_norm)


def _resolve_precision(precision: Precision, device: torch.device) -> str:
    """The precision to use, ``auto`` resolved and impossible ones refused."""
    gpu_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "auto":
        return "bf16" if gpu_bf16 or (device.type == "cpu" and has_fast_bf16()) else "fp32"
    if precision == "fp16" and device.type != "cuda":
        raise ConfigError(f"precision fp16 needs a CUDA GPU and this is {device.type}; use auto, bf16 or fp32")
    if precision == "bf16" and device.type == "cuda" and not gpu_bf16:
        raise ConfigError("this GPU has no bf16 arithmetic; use precision fp16 or fp32")
    return precision


def player_gradients(total: Tensor, parameters: Sequence[nn.Parameter], *, retain_graph: bool) -> list[Tensor | None]:
    """Gradients of one player's total loss with respect to its own parameters and to nothing else.

    Args:
        total: scalar loss, shape ().
        parameters: the player's trainable parameters.
        retain_graph: True while another player still needs the graph.

    Returns:
        One gradient for each parameter, None for one the loss does not depend on.
    """
    return list(torch.autograd.grad(total, parameters, retain_graph=retain_graph, allow_unused=True))
