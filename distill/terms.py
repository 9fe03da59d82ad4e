"""Distillation terms: the student's frames and motion against the teacher's."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from fastv2v.errors import ConfigError
from fastv2v.ops.warp import compose_flow


@dataclass(frozen=True, kw_only=True)
class DistillWeights:
    """Weight of every distillation term. A term of weight 0 is not computed."""

    kd_reconstruction: float = 1.0
    """Mean absolute distance to the teacher's frame."""
    kd_perceptual: float = 1.0
    """Distance of ImageNet features to those of the teacher's frame."""
    kd_temporal: float = 0.0
    """Distance of how those features change from keyframe to keyframe: the global temporal term."""
    kd_flow: float = 0.0
    """Distance to the teacher's flow, composed over the gap."""

    def __post_init__(self) -> None:
        for f in fields(self):
            if getattr(self, f.name) < 0:
                raise ConfigError(f"distillation weight {f.name} is negative: {getattr(self, f.name)}")

    def active(self) -> dict[str, float]:
        """The positive weights by name."""
        return {f.name: float(getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) > 0}

    @classmethod
    def none(cls) -> DistillWeights:
        """No term at all: the student trains alone."""
        return cls(**dict.fromkeys((f.name for f in fields(cls)), 0.0))

    def check_taught(self, has_teacher: bool) -> None:
        """Refuse terms without a teacher.

        Raises:
            ConfigError: naming the terms.
        """
        if not has_teacher and (active := self.active()):
            raise ConfigError(f"{', '.join(active)} need a teacher; give one, or set these weights to 0")


def motion_mask(flow: Tensor) -> Tensor:
    """Where things move: flow magnitude over its largest value, per frame and sample.

    Args:
        flow: (..., 2, H, W) in pixels.

    Returns:
        (..., 1, H, W) in [0, 1]; all zero for a still frame.

    Source:
        The motion weighting of Fast-Vid2Vid (Zhuo et al., ECCV 2022), here without the detour over a colour picture.
    """
    magnitude = flow.square().sum(dim=-3, keepdim=True).sqrt()
    return magnitude / magnitude.amax(dim=(-2, -1), keepdim=True).clamp_min(1e-6)


def distill_mask(kind: Literal["none", "motion", "confidence"], flow: Tensor, confidence: Tensor) -> Tensor | None:
    """The mask a distillation term is weighted by: (..., 1, H, W) in [0, 1], or None for the whole picture."""
    if kind == "none":
        return None
    return motion_mask(flow) if kind == "motion" else confidence


def feature_change(features: list[Tensor], batch: int, time: int) -> list[Tensor]:
    """How feature maps change from one keyframe to the next.

    Args:
        features: maps (B*K, C, H, W).
        batch: B.
        time: K, keyframes in the window, at least 2.

    Returns:
        Maps (B, K-1, C, H, W).
    """
    return [f.float().unflatten(0, (batch, time)).diff(dim=1) for f in features]


def temporal_distance(student: list[Tensor], teacher: list[Tensor], batch: int, time: int) -> Tensor:
    """Global temporal distillation: features of the student's window should change as the teacher's do.

    Each layer's distance is divided by the mean magnitude of the teacher's change, so that layers count alike. Where
    the teacher stands still, a fiftieth of its features' magnitude takes that place, or a still clip would outweigh
    all others. (From frame to frame a talking face changes by 6 %, a street by 25 to 90 %.)

    Args:
        student: feature maps of K keyframes, (B*K, C, H, W) each, with gradient.
        teacher: the same of the teacher's frames at the same times.
        batch: B.
        time: K.

    Returns:
        Scalar; 0 for a window of one frame.

    Source:
        Stands in for the I3D window features of Fast-Vid2Vid where those weights are not at hand.
    """
    if time < 2:
        return student[0].new_zeros((), dtype=torch.float32)
    distances = []
    changes = zip(feature_change(student, batch, time), feature_change(teacher, batch, time), teacher, strict=True)
    for change, goal, features in changes:
        size = torch.maximum(goal.abs().mean(), features.float().abs().mean() / 50)
        distances.append((change - goal).abs().mean() / (size + 1e-6))
    return torch.stack(distances).mean()


def composed_flow(flows: Tensor, last: int, gap: int) -> Tensor:
    """Flow over a whole gap from the flows between neighbours.

    Args:
        flows: flow from frame t to frame t-1 at entry t, (B, T, 2, H, W) in pixels.
        last: entry of the frame the composed flow starts from.
        gap: how many frames it reaches back.

    Returns:
        Flow from that frame to the one ``gap`` frames earlier, (B, 2, H, W).
    """
    flow = flows[:, last]
    for t in range(last - 1, last - gap, -1):
        flow = compose_flow(flow, flows[:, t])
    return flow
