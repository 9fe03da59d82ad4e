"""The teacher as distillation sees it: frozen once, here, and asked through one door."""

from __future__ import annotations

from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from distill.features import captured
from fastv2v.contracts import FrameOutput, StepModel
from fastv2v.data.clip import Clip
from fastv2v.errors import ConfigError
from fastv2v.losses.rollout import opening
from fastv2v.nn.generators import VideoGenerator
from fastv2v.nn.norms import batch_statistics
from fastv2v.render import Points, cut, render_clip, rollout, samples, stack_outputs

Model = TypeVar("Model", bound=nn.Module)


class Taught(NamedTuple):
    """What a teacher makes of a clip. Entry k of each part belongs to clip frame k + N-1."""

    frame: Tensor
    """(B, T-N+1, 3, H, W) in [-1, 1]."""
    flow: Tensor | None = None
    """Flow from each frame to the one before in pixels, (B, T-N+1, 2, H, W); None where there is none."""
    features: dict[str, Tensor] | None = None
    """Inner feature maps by tap point, (B, T-N+1, C, h, w) each; None where nobody asked for them."""


class TeacherSource(Protocol):
    """Where the teacher's frames come from: a network that rolls out now, or what it once made, read from disk."""

    @property
    def has_flow(self) -> bool:
        """Whether ``teach`` gives flow."""
        ...

    @property
    def has_features(self) -> bool:
        """Whether ``teach`` gives inner feature maps."""
        ...

    def teach(self, clip: Clip, conditions: Tensor, start: str, points: Points | None = None) -> Taught:
        """What the full-time teacher makes of a clip; no gradients.

        Args:
            clip: the training clip, (B, T, ...), on the device.
            conditions: its encoded conditions, (B, T, C, H, W).
            start: how the clip begins, see ``fastv2v.losses.rollout.opening``. A source that reads from disk may know
                one start only.
            points: point ids of the clip, where the teacher is guided; all its frames paint its world.

        Returns:
            One entry for every frame after the history.
        """
        ...


class LiveTeacher:
    """A frozen generator that rolls out every clip anew, normalising each frame by its own statistics.

    So it is sampled and synthesised, and so its outputs on disk are made: what the student is taught is what the
    teacher delivers.

    Args:
        generator: the teacher; frozen here.
        features: also give its inner feature maps.
    """

    def __init__(self, generator: VideoGenerator, *, features: bool = False) -> None:
        self.generator = freeze(generator)
        self._features = features

    @property
    def has_flow(self) -> bool:
        """Whether the generator has a flow branch."""
        return self.generator.uses_flow

    @property
    def has_features(self) -> bool:
        """Whether feature maps are given."""
        return self._features

    def teach(self, clip: Clip, conditions: Tensor, start: str, points: Points | None = None) -> Taught:
        """See ``TeacherSource.teach``."""
        # One sample at a time: batch norms by the batch at hand would mix the clips.
        single = zip(conditions.split(1), clip.frames.split(1), samples(points, len(conditions)), strict=True)
        rows = [self._teach_one(condition, frames, start, ids) for condition, frames, ids in single]
        first = rows[0]
        flow = None if first.flow is None else torch.cat([row.flow for row in rows if row.flow is not None])
        features = {
            name: torch.cat([row.features[name] for row in rows if row.features]) for name in first.features or ()
        }
        return Taught(torch.cat([row.frame for row in rows]), flow, features or None)

    def _teach_one(self, conditions: Tensor, frames: Tensor, start: str, points: Points | None) -> Taught:
        """The same of a batch of one."""
        if not self._features:
            output = teacher_rollout(self.generator, conditions, frames, start, points)
            return Taught(output.frame, output.flow)
        with captured(self.generator, (frames.shape[-2], frames.shape[-1])) as kept:
            output = teacher_rollout(self.generator, conditions, frames, start, points)
        return Taught(output.frame, output.flow, kept.take(output.frame.shape[1]))

    def render(self, conditions: Tensor, given: Tensor, points: Points | None = None) -> Tensor:
        """The rollout of one clip from given real frames, as ``render_clip``: (B, T, 3, H, W)."""
        single = zip(conditions.split(1), given.split(1), samples(points, len(conditions)), strict=True)
        with batch_statistics(self.generator):
            return torch.cat([render_clip(self.generator, *sample) for sample in single])


def teacher_source(
    student: StepModel, teacher: VideoGenerator | TeacherSource | None, *, features: bool = False
) -> TeacherSource | None:
    """The teacher behind its door; a generator is frozen and put there.

    Args:
        student: whom it teaches.
        teacher: a generator, another source, or nobody.
        features: whether its inner feature maps are wanted.

    Raises:
        ConfigError: if student and generator do not fit each other, or a source has no feature maps.
    """
    source = LiveTeacher(teacher, features=features) if isinstance(teacher, nn.Module) else teacher
    if isinstance(source, LiveTeacher):
        check_pair(student, source.generator)
    if features and source is not None and not source.has_features:
        raise ConfigError(
            "kd_features, kd_alignment and kd_feature_change need a teacher that runs along: precomputed frames come "
            "without inner feature maps; leave out --taught or set these weights to 0"
        )
    return source


def shown_teacher(
    teacher: TeacherSource | None, conditions: Tensor, given: Tensor, gap: int = 1, points: Points | None = None
) -> dict[str, Tensor]:
    """The row ``teacher`` of a task's samples, every ``gap``-th frame; only a live teacher knows held-out clips."""
    if not isinstance(teacher, LiveTeacher):
        return {}
    return {"teacher": teacher.render(conditions, given, points)[:, ::gap]}


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
def teacher_rollout(
    teacher: StepModel, conditions: Tensor, frames: Tensor, start: str, points: Points | None = None
) -> FrameOutput:
    """What the full-time teacher makes of a clip from its own history, by each frame's own statistics.

    Args:
        teacher: frozen.
        conditions: (B, T, C, H, W).
        frames: real frames, (B, T, 3, H, W).
        start: how the clip begins, see ``fastv2v.losses.rollout.opening``.
        points: point ids of the clip, where the teacher is guided.

    Returns:
        Parts stacked over time, (B, T-N+1, ...): entry k belongs to clip frame k + N-1.
    """
    history, later = opening(teacher, conditions, frames, start, points), slice(teacher.history_length, None)
    with batch_statistics(teacher):
        return stack_outputs(list(rollout(teacher, conditions[:, later], history, cut(points, later))))
