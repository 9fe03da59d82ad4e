"""The teacher as distillation sees it: frozen once, here."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from fastv2v.contracts import FrameOutput, StepModel
from fastv2v.errors import ConfigError
from fastv2v.losses.rollout import opening
from fastv2v.render import rollout, stack_outputs

Model = TypeVar("Model", bound=nn.Module)


def freeze(module: Model) -> Model:
    """Evaluation mode, no gradients; returns the same module."""
    return module.eval().requires_grad_(False)


def check_pair(student: StepModel, teacher: StepModel) -> None:
    """Refuse a teacher that was trained on other conditions or looks back another number of steps.

    Raises:
        ConfigError: if condition channels or history lengths differ.
    """
    if student.condition_channels != teacher.condition_channels:
        raise ConfigError(
            f"teacher and student must share their condition: the teacher takes {teacher.condition_channels} channels, "
            f"the student {student.condition_channels}; distil on the data set the teacher was trained on"
        )
    if student.history_length != teacher.history_length:
        raise ConfigError(
            f"teacher and student must look back equally far, got {teacher.history_length} and "
            f"{student.history_length} past frames; set the student's history_length to the teacher's"
        )


@torch.no_grad()
def teacher_rollout(teacher: StepModel, conditions: Tensor, frames: Tensor, start: str) -> FrameOutput:
    """What the full-time teacher makes of a clip from its own history.

    Args:
        teacher: frozen.
        conditions: (B, T, C, H, W).
        frames: real frames, (B, T, 3, H, W).
        start: how the clip begins, see ``fastv2v.losses.rollout.opening``.

    Returns:
        Parts stacked over time, (B, T-N+1, ...): entry k belongs to clip frame k + N-1.
    """
    history = opening(teacher, conditions, frames, start)
    return stack_outputs(list(rollout(teacher, conditions[:, teacher.history_length :], history)))
