"""Randomness that comes from a place (root seed, step, rank), not from history.

Only the training loop reseeds the process; every other function is handed a ``torch.Generator``. Importing this module
does not import torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive_seed(root: int, *parts: int | str) -> int:
    """Seed for one use: the same on every machine, different for each ``parts``.

    Args:
        root: the seed of the run.
        parts: what the randomness is for, for example ``"step", 120, "rank", 0``.

    Returns:
        An integer in [0, 2**63). Types and borders of the parts count: ``("a", 1)``, ``("a", "1")`` and ``("a1",)``
        give three seeds.
    """
    # JSON keeps the borders between parts, which joining with a separator would not.
    digest = hashlib.sha256(json.dumps([root, *parts]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator_for(root: int, *parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator seeded with ``derive_seed(root, *parts)``.

    Args:
        root: the seed of the run.
        parts: what the randomness is for.
        device: where numbers are drawn. Draws on the CPU are the same on every machine.
    """
    import torch

    return torch.Generator(device=device).manual_seed(derive_seed(root, *parts))


def seed_everything(seed: int) -> None:
    """Seed the global generators of python, NumPy and torch (all devices), for layers such as dropout.

    Args:
        seed: an integer in [0, 2**63), usually from ``derive_seed``.
    """
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # NumPy's legacy generator takes 32 bits
    torch.manual_seed(seed)


@contextlib.contextmanager
def deterministic_algorithms(enabled: bool) -> Iterator[None]:
    """Hold torch to deterministic kernels inside the block; put everything back after it.

    Off, cuDNN may try several kernels and keep the fastest, which is faster and gives slightly different sums from run
    to run. On, an operation that has no deterministic kernel on this device raises torch's own error, which names it.
    On CPUs the operations used here are deterministic either way.

    Args:
        enabled: whether results must repeat bit for bit on a GPU.
    """
    import torch

    cudnn = torch.backends.cudnn
    before = (torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark)
    if enabled:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it and reads it nowhere else
        torch.use_deterministic_algorithms(True)
    if not before[0]:  # who asked for determinism outside keeps it
        cudnn.deterministic, cudnn.benchmark = enabled, not enabled
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        cudnn.deterministic, cudnn.benchmark = before[1:]
