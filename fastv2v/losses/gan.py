"""Adversarial and feature-matching terms over multi-scale discriminator features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fastv2v.losses.distance import picture_distance
from fastv2v.nn.discriminator import Features

GanKind = Literal["lsgan", "hinge"]
"""Which adversarial loss."""


def lsgan_loss(features: Features, *, real: bool, weight: Tensor | None = None) -> Tensor:
    """Least-squares adversarial loss: mean squared distance of the scores to 1 or 0, summed over scales.

    Args:
        features: discriminator features.
        real: whether the scores are pulled to 1 (True) or 0.
        weight: how much each picture counts, (B,); all alike by default.

    Returns:
        Scalar.

    Source:
        Mao et al., "Least Squares Generative Adversarial Networks", ICCV 2017.
    """
    target = 1.0 if real else 0.0
    return _over_scales(features, lambda scores: (scores - target).square(), weight)


def hinge_loss(features: Features, *, real: bool, weight: Tensor | None = None) -> Tensor:
    """Hinge loss of a discriminator: scores of real frames should reach 1, of synthesised ones -1; summed over scales.

    Args:
        features: discriminator features.
        real: whether they are of real frames.
        weight: how much each picture counts, (B,); all alike by default.

    Returns:
        Scalar. Scores beyond their goal add nothing.

    Source:
        Lim and Ye, "Geometric GAN", 2017; Miyato et al., "Spectral Normalization for GANs", ICLR 2018.
    """
    sign = 1.0 if real else -1.0
    return _over_scales(features, lambda scores: F.relu(1 - sign * scores), weight)


def hinge_generator_loss(features: Features, weight: Tensor | None = None) -> Tensor:
    """A generator's side of the hinge loss: minus the mean score, summed over scales. Scalar, not bounded below."""
    return _over_scales(features, lambda scores: -scores, weight)


def generator_loss(features: Features, kind: GanKind, weight: Tensor | None = None) -> Tensor:
    """How far synthesised frames are from passing for real. Scalar; ``weight`` (B,) as elsewhere."""
    if kind == "lsgan":
        return lsgan_loss(features, real=True, weight=weight)
    return hinge_generator_loss(features, weight)


def discriminator_loss(features: Features, kind: GanKind, *, real: bool, weight: Tensor | None = None) -> Tensor:
    """How far a discriminator is from telling what real or synthesised frames are. Scalar."""
    loss = lsgan_loss if kind == "lsgan" else hinge_loss
    return loss(features, real=real, weight=weight)


def _over_scales(features: Features, loss: Callable[[Tensor], Tensor], weight: Tensor | None) -> Tensor:
    """Sum over scales of the mean of a loss on the score maps."""
    return torch.stack([_mean(loss(scale[-1].float()), weight) for scale in features]).sum()


def _mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Mean over all elements of (B, ...), each picture multiplied by its weight (B,)."""
    return values.mean() if weight is None else (values * weight.view(-1, *(1 for _ in values.shape[1:]))).mean()


def feature_matching_loss(fake: Features, real: Features, weight: Tensor | None = None) -> Tensor:
    """Mean absolute distance of inner features, weighted 4 / (number of inner layers) and averaged over scales.

    Args:
        fake: features of synthesised frames.
        real: features of real frames; no gradient flows into them.
        weight: how much each picture counts, (B,); all alike by default.

    Returns:
        Scalar.

    Source:
        Wang et al., pix2pixHD, CVPR 2018, with vid2vid's weights.
    """
    terms = [
        _mean(picture_distance(f, r), weight) * (4 / (len(fake_scale) - 1))
        for fake_scale, real_scale in zip(fake, real, strict=True)
        for f, r in zip(fake_scale[:-1], real_scale[:-1], strict=True)
    ]
    return torch.stack(terms).sum() / len(fake)
