"""Distillation terms: the student's frames and motion against the teacher's."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor, nn

from fastv2v.errors import ConfigError
from fastv2v.losses.contrast import magnitudes, map_distance
from fastv2v.losses.objective import FLOW_INPUT_SCALE
from fastv2v.ops.warp import compose_flow

MaskKind = Literal["none", "motion", "confidence"]
"""What ``kd_reconstruction`` and ``kd_perceptual`` are weighted by, pixel by pixel."""


@dataclass(frozen=True, kw_only=True)
class DistillWeights:
    """Weight of every distillation term. A term of weight 0 is not computed."""

    kd_reconstruction: float = 1.0
    """Mean absolute distance to the teacher's frame."""
    kd_perceptual: float = 1.0
    """Distance of ImageNet features to those of the teacher's frame."""
    kd_contrast: float = 0.0
    """Distance of local contrast, at several scales, to that of the teacher's frame: what a mean over guesses lacks."""
    kd_temporal: float = 0.0
    """How a window of keyframes moves, as seen by a further network: the global temporal term."""
    kd_flow: float = 0.0
    """Distance to the teacher's flow, composed over the gap."""
    kd_features: float = 0.0
    """Distance of inner feature maps to the teacher's, through 1x1 projections that are trained along."""
    kd_alignment: float = 0.0
    """1 - centred kernel alignment of inner feature maps with the teacher's; needs no projection."""
    kd_feature_change: float = 0.0
    """The same of how inner feature maps change from one frame of a rollout to the next."""

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

    @property
    def uses_features(self) -> bool:
        """Whether any term needs the teacher's inner feature maps."""
        return self.kd_features > 0 or self.kd_alignment > 0 or self.kd_feature_change > 0

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


def distill_mask(kind: MaskKind, flow: Tensor, confidence: Tensor) -> Tensor | None:
    """The mask a distillation term is weighted by: (..., 1, H, W) in [0, 1], or None for the whole picture."""
    if kind == "none":
        return None
    return motion_mask(flow) if kind == "motion" else confidence


def temporal_distance(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """Global temporal distillation on single frames: features of the student's window should change as the teacher's.

    The distance of each layer and sample is divided by the mean magnitude of the teacher's change, so that all count
    alike. Where the teacher stands still, a fiftieth of its features' magnitude takes that place, or a still clip would
    outweigh all others. (From frame to frame a talking face changes by 6 %, a street by 25 to 90 %.)

    Args:
        student: feature maps of K keyframes, (B, K, C, H, W) each, with gradient.
        teacher: the same of the teacher's frames at the same times.

    Returns:
        Scalar; a constant 0 for a window of one frame.

    Source:
        Stands in for the window features of Fast-Vid2Vid (Zhuo et al., ECCV 2022), whose weights few people have.
    """
    if student[0].shape[1] < 2:
        return student[0].new_zeros((), dtype=torch.float32)
    distances = []
    for made, goal in zip(student, teacher, strict=True):
        change, wanted = made.float().diff(dim=1), goal.float().diff(dim=1)
        size = torch.maximum(magnitudes(wanted), magnitudes(goal.float()) / 50)
        distances.append((magnitudes(change - wanted) / (size + 1e-6)).mean())
    return torch.stack(distances).mean()


def video_distance(network: nn.Module, student: Tensor, teacher: Tensor) -> Tensor:
    """Global temporal distillation through a frozen network of whole windows.

    Args:
        network: gives feature maps of (B, K, 3, H, W), as ``fastv2v.nn.video_features.VideoFeatures``.
        student: keyframes (B, K, 3, H, W) in [-1, 1], with gradient.
        teacher: the teacher's at the same times.

    Source:
        The global term of Fast-Vid2Vid (Zhuo et al., ECCV 2022), with its gradient and not pooled over the picture.
    """
    with torch.no_grad():
        goals = network(teacher)
    return map_distance(network(student), goals)


def judged_distance(judge: nn.Module, student: Tensor, teacher: Tensor, flow: Tensor, window: int) -> Tensor:
    """Global temporal distillation through the features of the teacher's frozen temporal discriminator.

    Args:
        judge: a temporal discriminator (``MultiScaleDiscriminator``) of ``window`` frames and the flow between them.
        student: keyframes (B, K, 3, H, W) in [-1, 1], with gradient.
        teacher: the teacher's at the same times.
        flow: reference flow from each keyframe but the first to the one before, (B, K-1, 2, H, W) in pixels.
        window: frames it sees at once.

    Returns:
        Scalar over all runs of ``window`` keyframes; a constant 0 where there are fewer.

    Source:
        Feature matching (Wang et al., pix2pixHD, CVPR 2018) with the teacher's frames in place of the real ones.
    """
    if student.shape[1] < window:
        return student.new_zeros((), dtype=torch.float32)

    def features(frames: Tensor) -> list[Tensor]:
        runs = [
            torch.cat(
                [
                    frames[:, k : k + window].flatten(1, 2),
                    flow[:, k : k + window - 1].flatten(1, 2) / FLOW_INPUT_SCALE,
                ],
                dim=1,
            )
            for k in range(frames.shape[1] - window + 1)
        ]
        return [maps for scale in judge(torch.cat(runs)) for maps in scale[:-1]]  # the last are scores

    with torch.no_grad():
        goals = features(teacher)
    return map_distance(features(student), goals)


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
