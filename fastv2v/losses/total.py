"""The one place where loss terms meet their weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fastv2v.errors import ConfigError, ShapeError


def weighted_total(terms: Mapping[str, Tensor], weights: Mapping[str, float], *, player: str = "losses") -> Tensor:
    """Sum of ``weight * term``, matched by name.

    Args:
        terms: scalars by name, each of shape ().
        weights: one number for each term, by the same names.
        player: whose losses these are, for messages.

    Returns:
        The total, shape (), float32.

    Raises:
        ConfigError: if a term has no weight, a weight has no term, or there is no term at all.
        ShapeError: if a term is not a scalar.
    """
    if terms.keys() != weights.keys() or not terms:
        no_weight, no_term = sorted(terms.keys() - weights.keys()), sorted(weights.keys() - terms.keys())
        raise ConfigError(f"{player}: loss terms without a weight: {no_weight}; weights without a term: {no_term}")
    for name, term in terms.items():
        if term.ndim != 0:
            raise ShapeError(f"{player}: the loss term {name} must be a scalar, got shape {tuple(term.shape)}")
    return torch.stack([weights[name] * term.float() for name, term in terms.items()]).sum()
