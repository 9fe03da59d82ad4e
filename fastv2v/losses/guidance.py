"""Faithfulness to the painted world."""

from __future__ import annotations

from torch import Tensor


def guidance_loss(frame: Tensor, guidance: Tensor) -> Tensor:
    """Mean absolute distance of a frame to the colours it was shown, over the pixels that had one.

    How many holes there are does not matter. What a network is held to here it drew itself, earlier: the term asks for
    consistency, not for likeness to a real frame.

    Args:
        frame: (..., 3, H, W).
        guidance: (..., 4, H, W): colours, and 1 where there is one, 0 elsewhere.

    Returns:
        Scalar, float32; 0 with zero gradient where no pixel had a colour.

    Source:
        The guidance term of Mallya et al., "World-Consistent Video-to-Video Synthesis", ECCV 2020.
    """
    colours, mask = guidance[..., :3, :, :].float(), guidance[..., 3:, :, :].float()
    distance = ((frame.float() - colours).abs() * mask).sum()
    return distance / (3 * mask.sum()).clamp_min(1)


def unseen_loss(occlusion: Tensor, warped: Tensor, real: Tensor, valid: Tensor) -> Tensor:
    """Distance of the occlusion to whether the warped frame shows something else than the real one.

    Args:
        occlusion: (..., 1, H, W) in [0, 1].
        warped: the own previous frame, warped, (..., 3, H, W) in [-1, 1]; no gradient flows into the comparison.
        real: same shape.
        valid: (..., 1, 1, 1): 0 where there was nothing to warp.

    Returns:
        Mean over all pixels of ``a * occlusion + (1 - a) * (1 - occlusion)``, where a falls from 1 to 0 as the
        distance of the colours, summed over the three, rises from 0 to 1. Scalar.

    Source:
        The mask term in the published code of Mallya et al., "World-Consistent Video-to-Video Synthesis", ECCV 2020.
    """
    agrees = (1 - (warped - real).detach().abs().sum(dim=-3, keepdim=True)).clamp(0, 1)
    return ((agrees * occlusion + (1 - agrees) * (1 - occlusion)) * valid).mean()
