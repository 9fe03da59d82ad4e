"""Adversarial and feature-matching terms over multi-scale discriminator features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fastv2v.nn.discriminator import Features

GanKind = Literal["lsgan", "hinge"]
"""Which adversarial loss."""


def lsgan_loss(features: Features, *, real: bool) -> Tensor:
    """Least-squares adversarial loss: mean squared distance of the scores to 1 or 0, summed over scales.

    Args:
        features: discriminator features.
        real: whether the scores are pulled to 1 (True) or 0.

    Returns:
        Scalar.

    Source:
        Mao et al., "Least Squares Generative Adversarial Networks", ICCV 2017.
    """
    target = 1.0 if real else 0.0
    return _over_scales(features, lambda scores: (scores - target).square().mean())


def hinge_loss(features: Features, *, real: bool) -> Tensor:
    """Hinge loss of a discriminator: scores of real frames should reach 1, of synthesised ones -1; summed over scales.

    Args:
        features: discriminator features.
        real: whether they are of real frames.

    Returns:
        Scalar. Scores beyond their goal add nothing.

    Source:
        Lim and Ye, "Geometric GAN", 2017; Miyato et al., "Spectral Normalization for GANs", ICLR 2018.
    """
    sign = 1.0 if real else -1.0
    return _over_scales(features, lambda scores: F.relu(1 - sign * scores).mean())


def hinge_generator_loss(features: Features) -> Tensor:
    """A generator's side of the hinge loss: minus the mean score, summed over scales. Scalar, not bounded below."""
    return _over_scales(features, lambda scores: -scores.mean())


def generator_loss(features: Features, kind: GanKind) -> Tensor:
    """How far synthesised frames are from passing for real. Scalar."""
    return lsgan_loss(features, real=True) if kind == "lsgan" else hinge_generator_loss(features)


def discriminator_loss(features: Features, kind: GanKind, *, real: bool) -> Tensor:
    """How far a discriminator is from telling what real or synthesised frames are. Scalar."""
    return lsgan_loss(features, real=real) if kind == "lsgan" else hinge_loss(features, real=real)


def _over_scales(features: Features, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Sum over scales of a loss on the score maps."""
    return torch.stack([loss(scale[-1].float()) for scale in features]).sum()


def feature_matching_loss(fake: Features, real: Features) -> Tensor:
    """Mean absolute distance of inner features, weighted 4 / (number of inner layers) and averaged over scales.

    Args:
        fake: features of synthesised frames.
        real: features of real frames; no gradient flows into them.

    Returns:
        Scalar.

    Source:
        Wang et al., pix2pixHD, CVPR 2018, with vid2vid's weights.
    """
    terms = [
        F.l1_loss(f.float(), r.detach().float()) * (4 / (len(fake_scale) - 1))
        for fake_scale, real_scale in zip(fake, real, strict=True)
        for f, r in zip(fake_scale[:-1], real_scale[:-1], strict=True)
    ]
    return torch.stack(terms).sum() / len(fake)
