"""Inner feature maps of teacher and student: where they are tapped, and how the student's learn to resemble them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastv2v.errors import ConfigError
from fastv2v.nn.coarse_to_fine import CoarseToFineGenerator
from fastv2v.nn.composite import CompositeGenerator
from fastv2v.nn.generators import VideoGenerator
from fastv2v.nn.norms import batch_statistics
from fastv2v.nn.slim import SlimGenerator
from fastv2v.nn.spade import SpadeGenerator
from fastv2v.render import start_history

Maps = dict[str, Tensor]
"""Feature maps by tap point."""

TAP_STRIDE = 4
"""Maps are kept at no more than this fraction of the frame's size: pooled, they cost little memory over a clip."""


def tap_points(generator: VideoGenerator) -> dict[str, nn.Module]:
    """The modules that are given the maps which are compared.

    Returns:
        ``bottom``: what takes the features of the smallest size, after the blocks there; ``decoder``: the head that
        draws the picture.

    Raises:
        ConfigError: if the generator is of a kind that has none.
    """
    match generator:
        case SlimGenerator():
            return {"bottom": generator.decoder, "decoder": generator.head}
        case CoarseToFineGenerator():
            finest: Any = generator.local[-1]
            return {**tap_points(generator.coarse), "decoder": finest.image_head}
        case SpadeGenerator():
            return {"bottom": generator.up[-1], "decoder": generator.image_head}
        case CompositeGenerator():
            up: Any = generator.image_decoder[1]
            return {"bottom": up[0], "decoder": generator.image_head}
    raise ConfigError(f"feature distillation knows no inner maps of a {type(generator).__name__}")


class Captured:
    """What the tap points were given since it was last taken, one entry a step."""

    def __init__(self) -> None:
        self._maps: dict[str, list[Tensor]] = {}

    def add(self, name: str, maps: Tensor) -> None:
        """Keep maps (B, C, h, w) of one step."""
        self._maps.setdefault(name, []).append(maps)

    def take(self, count: int) -> Maps:
        """The newest ``count`` steps, (B, count, C, h, w) by tap point; nothing is kept."""
        taken = {name: torch.stack(maps[-count:], dim=1) for name, maps in self._maps.items()}
        self.clear()
        return taken

    def clear(self) -> None:
        """Forget what was kept, such as steps that were run again for their gradients."""
        self._maps.clear()


@contextmanager
def captured(generator: VideoGenerator, size: tuple[int, int]) -> Iterator[Captured]:
    """Within: what the generator's tap points are given is kept, with gradients where there are any.

    Args:
        generator: teacher or student; its hooks are removed at the end, whatever happens.
        size: height and width of the frames; larger maps than 1/4 of that are averaged down to it.
    """
    kept = Captured()
    limit = tuple(max(side // TAP_STRIDE, 1) for side in size)

    def keep(name: str, _module: nn.Module, given: tuple[Any, ...]) -> None:
        kept.add(name, _pooled(given[0], limit))

    handles = [module.register_forward_pre_hook(partial(keep, name)) for name, module in tap_points(generator).items()]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def _pooled(x: Tensor, limit: tuple[int, ...]) -> Tensor:
    """Maps (..., h, w) averaged to at most ``limit``."""
    height, width = min(x.shape[-2], limit[0]), min(x.shape[-1], limit[1])
    if (height, width) == tuple(x.shape[-2:]):
        return x
    return F.adaptive_avg_pool2d(x.flatten(0, -4), (height, width)).unflatten(0, x.shape[:-3])


def matched(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps (B, K, C, h, w) in float32 at the smaller of their sizes, by adaptive average pooling."""
    return _pooled(student.float(), teacher.shape[-2:]), _pooled(teacher.float(), student.shape[-2:])


@torch.no_grad()
def feature_channels(generator: VideoGenerator) -> dict[str, int]:
    """Channels at each tap point, found by one step over an empty frame; the generator stays as it is."""
    side = 4 * generator.size_multiple
    device = next(generator.parameters()).device
    condition = torch.zeros(1, generator.condition_channels, side, side, device=device)
    past = generator.history_length
    history = start_history(condition[:, None, :0], None, past, first_condition=condition)
    with batch_statistics(generator), captured(generator, (side, side)) as kept:
        generator.step(condition, history)
    return {name: maps.shape[2] for name, maps in kept.take(1).items()}


class Projections(nn.Module):
    """1x1 convolutions from the student's channels to the teacher's: trained beside the student, never delivered.

    Args:
        student: channels at each tap point.
        teacher: the same of the teacher.

    Source:
        The regressor of Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015.
    """

    def __init__(self, student: Mapping[str, int], teacher: Mapping[str, int]) -> None:
        super().__init__()
        self.maps = nn.ModuleDict({name: nn.Conv2d(student[name], teacher[name], 1) for name in teacher})

    def forward(self, features: Mapping[str, Tensor]) -> Maps:
        """Maps (B, K, C, h, w) of the student with the teacher's number of channels."""
        return {
            name: layer(features[name].flatten(0, 1)).unflatten(0, features[name].shape[:2])
            for name, layer in self.maps.items()
        }


def feature_distance(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
    """Mean absolute distance of projected maps to the teacher's over the mean magnitude of these, tap by tap.

    Args:
        student: projected maps (B, K, C, h, w).
        teacher: maps (B, K, C, h', w').

    Returns:
        Scalar; 0 where all are equal. Samples and frames count alike, whatever else is in the batch.
    """
    distances = []
    for name, goal in teacher.items():
        made, goal = matched(student[name], goal)
        distance, size = (x.abs().mean(dim=(2, 3, 4)) for x in (made - goal, goal))
        distances.append((distance / (size + 1e-6)).mean())
    return torch.stack(distances).mean()


def alignment(student: Tensor, teacher: Tensor) -> Tensor:
    """Centred kernel alignment of two sets of maps with linear kernels over pixels.

    Every pixel of every frame of a sample is an example. It is 1 where the teacher's maps are those of the student up
    to rotation of the channels, a common factor and an offset, so that no projection between them is needed.

    Args:
        student: (B, K, C, h, w).
        teacher: (B, K, C', h', w'); brought to one size with the student's.

    Returns:
        (B,) in [0, 1]; 0 where one of the two does not vary at all.

    Source:
        Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019: linear CKA,
        |Y'X|^2 / (|X'X| |Y'Y|) in Frobenius norms of centred features.
    """
    # In float32 whatever the training's precision: sums over so many pixels leave the range of half precision, and
    # bfloat16 would round the result to steps of 1/256.
    with torch.autocast(student.device.type, enabled=False):
        x, y = (_examples(maps) for maps in matched(student, teacher))
        shared = torch.linalg.matrix_norm(y.transpose(1, 2) @ x).square()
        return shared / (_own_norm(x) * _own_norm(y)).clamp_min(1e-12)


def _examples(maps: Tensor) -> Tensor:
    """Maps (B, K, C, h, w) as centred examples (B, K*h*w, C), scaled to unit mean square: squares stay in range."""
    rows = maps.movedim(2, -1).flatten(1, 3)
    rows = rows - rows.mean(dim=1, keepdim=True)
    return rows / rows.detach().square().mean(dim=(1, 2), keepdim=True).sqrt().clamp_min(1e-6)


def _own_norm(x: Tensor) -> Tensor:
    """|X'X| of examples (B, n, C), by way of the smaller of X'X and XX'."""
    flat = x.transpose(1, 2)
    return torch.linalg.matrix_norm(flat @ x if x.shape[1] > x.shape[2] else x @ flat)


def alignment_distance(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
    """1 - ``alignment``, averaged over tap points and samples. Scalar in [0, 1]."""
    return torch.stack([1 - alignment(student[name], goal).mean() for name, goal in teacher.items()]).mean()


def change_distance(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
    """Feature distillation in time: 1 - alignment of how maps change from frame to frame.

    Args:
        student: maps (B, K, C, h, w).
        teacher: maps (B, K, C', h', w').

    Returns:
        Scalar in [0, 1]; a constant 0 for a window of one frame.
    """
    first = next(iter(teacher.values()))
    if first.shape[1] < 2:
        return first.new_zeros((), dtype=torch.float32)
    changes = [{name: maps.float().diff(dim=1) for name, maps in of.items()} for of in (student, teacher)]
    return alignment_distance(changes[0], changes[1])
