"""Encoding of label and instance maps on the device (the numpy twin is in ``fastv2v.data.conditions``)."""

from __future__ import annotations

import torch
from torch import Tensor

from fastv2v.data.clip import Clip
from fastv2v.data.conditions import ConditionSpec
from fastv2v.errors import DataError


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """One channel per class.

    Args:
        labels: class ids, (..., H, W), any integer type. Ids outside [0, num_classes) give an all-zero vector.
        num_classes: L.

    Returns:
        (..., L, H, W) float32 of 0 and 1.
    """
    ids = torch.arange(num_classes, device=labels.device).view(-1, 1, 1)
    return (labels.unsqueeze(-3) == ids).float()


def instance_edges(instances: Tensor) -> Tensor:
    """Mark the pixels that differ from a 4-neighbour; both sides of a border, never the image border.

    Args:
        instances: ids, (..., H, W).

    Returns:
        (..., 1, H, W) float32 of 0 and 1.

    Source:
        The boundary map of pix2pixHD (Wang et al., CVPR 2018), used by vid2vid.
    """
    edges = torch.zeros_like(instances, dtype=torch.bool)
    across = instances[..., 1:] != instances[..., :-1]
    edges[..., 1:] |= across
    edges[..., :-1] |= across
    down = instances[..., 1:, :] != instances[..., :-1, :]
    edges[..., 1:, :] |= down
    edges[..., :-1, :] |= down
    return edges.float().unsqueeze(-3)


def encode_clip(spec: ConditionSpec, clip: Clip) -> Tensor:
    """Encode the conditions of a clip: (B, T, C, H, W) float32.

    Raises:
        DataError: if the clip lacks a map that the condition needs.
    """
    if spec.kind == "maps":
        if clip.maps is None or clip.maps.shape[2] != spec.map_channels:
            raise DataError(f"the condition needs maps with {spec.map_channels} channels and the clip has none such")
        return clip.maps
    if clip.labels is None:
        raise DataError("the condition needs label maps and the clip has none")
    channels = one_hot(clip.labels, spec.num_classes)
    if not spec.use_instances:
        return channels
    if clip.instances is None:
        raise DataError("the condition uses instance borders and the clip has no instance maps")
    return torch.cat([channels, instance_edges(clip.instances)], dim=2)
