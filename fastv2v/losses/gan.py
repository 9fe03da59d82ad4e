"""Adversarial and feature-matching terms over multi-scale discriminator features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastv2v.nn.discriminator import Features


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
    return torch.stack([(scale[-1].float() - target).square().mean() for scale in features]).sum()


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
