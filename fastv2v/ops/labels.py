"""Conditions on the device: encoded for networks (numpy twin: ``fastv2v.data.conditions``), and as pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastv2v.data.clip import Clip
from fastv2v.data.conditions import ConditionSpec
from fastv2v.data.pose import NUM_PARTS, PoseConfig, pose_picture
from fastv2v.errors import ConfigError, DataError


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
    """Encode the conditions of a clip: (B, T, C, H, W) float32; channels of the guidance are last, and 0.

    Raises:
        DataError: if the clip lacks a map that the condition needs.
    """
    given = _encode_given(spec, clip)
    if not spec.guidance_levels:
        return given
    guidance = given.new_zeros(*given.shape[:2], spec.guidance_channels, *given.shape[3:])
    return torch.cat([given, guidance], dim=2)


def _encode_given(spec: ConditionSpec, clip: Clip) -> Tensor:
    """All channels but those of the guidance."""
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


def guidance_points(spec: ConditionSpec, clip: Clip) -> tuple[Tensor, ...] | None:
    """The point ids by which a condition is guided through a clip.

    Args:
        spec: how conditions are encoded.
        clip: with its point ids, or without.

    Returns:
        As many levels as the condition has, (B, T, H / 2^k, W / 2^k) each. None where the condition has no guidance, or
        the clip no point ids: its guidance is then empty.

    Raises:
        DataError: if the clip has fewer levels.
    """
    if not spec.guidance_levels or clip.points is None:
        return None
    if len(clip.points) < spec.guidance_levels:
        raise DataError(
            f"the condition has guidance of {spec.guidance_levels} levels and the clip point ids of {len(clip.points)}"
        )
    return clip.points[: spec.guidance_levels]


def condition_pictures(spec: ConditionSpec, clip: Clip, palette: NDArray[np.uint8] | Sequence[Sequence[int]]) -> Tensor:
    """Show the conditions of a clip to people.

    Args:
        spec: what the condition is.
        clip: with the maps it needs.
        palette: a colour for each class, (L, 3), 0 to 255; not used for conditions without classes.

    Returns:
        (B, T, 3, H, W) float32 in [-1, 1], on the device of the clip. Labels in their colours (black without a class),
        borders of instances white; the curves of faces white on black; poses as ``pose_picture`` shows them; colour
        images as they are; of other maps the first channel.

    Raises:
        DataError: if the clip lacks a map that the condition needs.
        ConfigError: if the palette does not fit the classes.
    """
    if spec.kind == "labels":
        return _label_pictures(spec, clip, palette)
    maps = _encode_given(spec, clip)
    if spec.pose is not None:
        return _pose_pictures(maps, spec.pose)
    if spec.encoder == "rgb":
        return maps
    first = maps[:, :, :1].expand(-1, -1, 3, -1, -1)
    return (first * 2 - 1 if spec.encoder == "face" else first).clamp(-1, 1)


def _label_pictures(spec: ConditionSpec, clip: Clip, palette: NDArray[np.uint8] | Sequence[Sequence[int]]) -> Tensor:
    if len(palette) != spec.num_classes:
        raise ConfigError(f"the palette has {len(palette)} colours and the condition {spec.num_classes} classes")
    channels = _encode_given(spec, clip)
    colours = torch.as_tensor(np.asarray(palette, dtype=np.float32), device=channels.device) / 127.5
    pictures = torch.einsum("btlhw,lc->btchw", channels[:, :, : spec.num_classes], colours) - 1
    return torch.where(channels[:, :, -1:] > 0, 1.0, pictures) if spec.use_instances else pictures


def _pose_pictures(maps: Tensor, config: PoseConfig) -> Tensor:
    """Back to the bytes that ``pose_to_float`` was given, and through the picture rule."""
    half = torch.full((config.channels, 1, 1), 127.5, device=maps.device)
    if config.densepose:
        half[2] = NUM_PARTS / 2
    stored = ((maps + 1) * half).round().clamp(0, 255).byte().movedim(2, -1).cpu().numpy()
    pictures = np.stack([[pose_picture(frame, config) for frame in clip] for clip in stored])
    return (torch.from_numpy(pictures).movedim(-1, 2).float() / 127.5 - 1).to(maps.device)
