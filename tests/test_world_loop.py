"""The painted world in every rollout: render, step, paint, whoever rolls out."""

from dataclasses import fields, replace

import pytest
import torch

from distill.temporal import TemporalConfig, TemporalTask
from distill.terms import DistillWeights
from fastv2v.contracts import FrameOutput, History
from fastv2v.data.clip import Clip, ClipInfo
from fastv2v.data.conditions import ConditionSpec
from fastv2v.errors import DataError, ShapeError
from fastv2v.losses.objective import LossWeights, ObjectiveConfig, VideoObjective
from fastv2v.losses.rollout import RolloutConfig, opening, training_rollout
from fastv2v.nn.slim import SlimConfig, SlimGenerator
from fastv2v.ops.flow import DISFlow
from fastv2v.ops.labels import encode_clip, guidance_points
from fastv2v.render import (
    advance,
    cut,
    detach,
    guided,
    guided_step,
    render_clip,
    rollout,
    rollout_chunks,
    start_history,
)
from students.schedule import GapConfig

SPEC = ConditionSpec(class_names=("road", "sky"), guidance_levels=1)
SIZE = (16, 16)
SLIM = SlimConfig(widths=(8, 8), depths=(1, 1), up_depths=(1,), history_length=2)


class Numbered:
    """Frame number n of a video is grey 0.1 n everywhere, counted by its own past; remembers what it was shown."""

    condition_channels, history_length, size_multiple = 6, 1, 1

    def __init__(self):
        self.shown: list[torch.Tensor] = []
        self.past: list[torch.Tensor] = []

    def step(self, condition, history):
        assert history.world is None  # no business of a generator
        self.shown.append(condition[:, -4:].clone())
        self.past.append(history.conditions.clone())
        frame = history.frames[:, -1] + 0.1
        return FrameOutput(frame, frame), advance(history, condition, frame)


def still(num_frames: int, batch: int = 1) -> tuple[torch.Tensor, ...]:
    """A camera that does not move: each pixel its point, the upper half unknown."""
    ids = torch.arange(256).view(16, 16).int()
    ids[:8] = -1
    return (ids.expand(batch, num_frames, 16, 16).contiguous(),)


def panning(num_frames: int) -> tuple[torch.Tensor, ...]:
    """Two columns of new points come in from the right with every frame."""
    ids = torch.arange(16)[:, None] * 100 + torch.arange(16)[None]
    return (torch.stack([ids + 2 * t for t in range(num_frames)])[None].int(),)


def conditions(num_frames: int, batch: int = 1) -> torch.Tensor:
    made = torch.zeros(batch, num_frames, 6, *SIZE)
    made[:, :, 0] = 1
    return made


def begin(count: int = 0, points=None, batch: int = 1) -> History:
    shown = conditions(max(count, 1), batch)
    frames = torch.full((batch, count, 3, *SIZE), -0.5) if count else None
    return start_history(shown[:, :count], frames, 1, first_condition=shown[:, 0], points=points)


def test_the_first_frame_is_unguided_and_the_first_colour_wins():
    model = Numbered()
    frames = [output.frame for output in rollout(model, conditions(4), begin(), still(4))]
    assert not model.shown[0].any()
    for guidance in model.shown[1:]:
        assert torch.equal(guidance[:, :3, 8:], frames[0][:, :, 8:]) and guidance[:, 3, 8:].eq(1).all()
        assert not guidance[:, :, :8].any()  # no point, no guidance


def test_guidance_rests_on_earlier_frames_only():
    class Tinted(Numbered):
        def __init__(self, at):
            super().__init__()
            self.at = at

        def step(self, condition, history):
            output, after = super().step(condition, history)
            if len(self.shown) - 1 == self.at:
                output = output._replace(frame=output.frame + 0.5)
            return output, after

    plain, tinted = Numbered(), Tinted(2)
    for model in (plain, tinted):
        list(rollout(model, conditions(5), begin(), panning(5)))
    assert all(torch.equal(plain.shown[t], tinted.shown[t]) for t in range(3))
    assert not torch.equal(plain.shown[3], tinted.shown[3])


def test_given_frames_paint_and_past_conditions_stay_without_guidance():
    model = Numbered()
    list(rollout(model, conditions(3), begin(1, still(1)), still(3)))
    assert model.shown[0][:, :3, 8:].eq(-0.5).all() and model.shown[2][:, :3, 8:].eq(-0.5).all()
    assert all(not past[:, :, -4:].any() for past in model.past)


def test_clips_of_a_batch_do_not_mix():
    points = (torch.cat([still(4)[0], panning(4)[0]]),)
    both, alone = Numbered(), Numbered()
    list(rollout(both, conditions(4, 2), begin(batch=2), points))
    list(rollout(alone, conditions(4), begin(), panning(4)))
    assert all(torch.equal(a[1:], b) for a, b in zip(both.shown, alone.shown, strict=True))


def test_without_point_ids_nothing_changes():
    model = Numbered()
    _, after = guided_step(model, conditions(1)[:, 0], begin())
    assert after.world is None and not model.shown[0].any()
    assert render_clip(Numbered(), conditions(3), None).shape == (1, 3, 3, *SIZE)


def test_chunks_say_what_was_shown_and_cut_the_world_from_the_graph():
    model = SlimGenerator(SLIM, 6)
    history = start_history(conditions(1)[:, :0], None, 2, first_condition=conditions(1)[:, 0])
    chunks = list(
        rollout_chunks(model, conditions(4), history, start=0, chunk_frames=2, backprop_frames=2, points=still(4))
    )
    first, second = chunks
    assert first.output.frame.requires_grad and not first.guidance.requires_grad
    assert first.guidance.shape == (1, 2, 4, *SIZE) and not first.guidance[:, 0].any()
    torch.testing.assert_close(first.guidance[:, 1, :3, 8:], first.output.frame[:, 0, :, 8:].detach())
    assert torch.equal(second.guidance[:, 0], first.guidance[:, 1])  # the world outlives the chunk
    (unguided,) = rollout_chunks(model, conditions(2), history, start=0, chunk_frames=0, backprop_frames=1)
    assert unguided.guidance is None


def clip(num_frames: int, points) -> Clip:
    rng = torch.Generator().manual_seed(0)
    info = ClipInfo(sequence="s", indices=tuple(range(num_frames)), names=tuple(map(str, range(num_frames))))
    return Clip(
        frames=torch.rand(1, num_frames, 3, *SIZE, generator=rng) * 2 - 1,
        labels=torch.randint(2, (1, num_frames, *SIZE), generator=rng),
        points=points,
        info=(info,),
    )


@pytest.mark.parametrize("start", ["nothing", "one", "full", "worn2"])
def test_gradient_checkpointing_and_lead_in_keep_the_world(start):
    torch.manual_seed(0)
    model, taken = SlimGenerator(SLIM, 6), clip(7, panning(7))
    encoded, grads, shown = encode_clip(SPEC, taken), [], []
    for config in (RolloutConfig(backprop_frames=4), RolloutConfig(backprop_frames=4, gradient_checkpointing=True)):
        state = {k: v.clone() for k, v in model.state_dict().items()}
        (chunk,) = training_rollout(
            model, encoded, taken.frames, start, config, 0, lead_in=2, points=guidance_points(SPEC, taken)
        )
        model.zero_grad()
        chunk.output.frame.square().mean().backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        shown.append(chunk.guidance)
        model.load_state_dict(state)
    assert torch.equal(*shown) and shown[0][:, 0, 3].mean() > 0.7  # two frames of lead-in have painted already
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*grads, strict=True))


def test_the_history_of_a_start_paints_as_worn_as_it_is():
    model, taken = SlimGenerator(SLIM, 6), clip(4, still(4))
    encoded = encode_clip(SPEC, taken)
    worn, full = (opening(model, encoded, taken.frames, start, taken.points) for start in ("worn2", "full"))
    assert not torch.equal(worn.world.colours, full.world.colours)
    assert torch.equal(full.world.colours[0, 128:256].T.view(3, 8, 16), taken.frames[0, 0, :, 8:])
    assert opening(model, encoded, taken.frames, "nothing", taken.points).world is None
    assert detach(full).world is full.world


def test_keyframes_alone_paint_the_students_world_and_all_frames_the_teachers(monkeypatch):
    taken = clip(9, panning(9))
    teacher, student = SlimGenerator(SLIM, 6), SlimGenerator(SLIM, 6)
    shown: dict[str, list[torch.Tensor]] = {"teacher": [], "student": []}
    for name, model in (("teacher", teacher), ("student", student)):
        step = model.step

        def watched(condition, history, step=step, name=name):
            shown[name].append(condition[:, -1:].detach().clone())
            return step(condition, history)

        monkeypatch.setattr(model, "step", watched)
    off = {field.name: 0.0 for field in fields(LossWeights)}
    losses = ObjectiveConfig(weights=LossWeights(**off | {"reconstruction": 1.0}), temporal_scales=0)
    objective = VideoObjective(losses, SPEC.channels, None, DISFlow("ultrafast"))
    config = TemporalConfig(
        weights=replace(DistillWeights.none(), kd_reconstruction=1.0),
        gap=GapConfig(smallest=2, largest=2, every_frame=0),
        rollout=RolloutConfig(start_from_nothing=0, start_from_one=0),
        deployed_gap=2,
    )
    task = TemporalTask(student, teacher, SPEC, objective, config)
    for _ in task.step(taken, torch.Generator().manual_seed(0), 0):
        pass
    # A frame further, two columns of sixteen are new; a gap of two further, four.
    assert [float(x[..., 0, :].mean()) for x in shown["teacher"]] == [14 / 16] * 7
    assert [float(x[..., 0, :].mean()) for x in shown["student"]] == [12 / 16] * 3


def test_point_ids_of_a_clip_follow_the_condition():
    taken = clip(3, (*still(3), torch.full((1, 3, 8, 8), -1).int()))
    assert len(guidance_points(SPEC, taken)) == 1
    assert guidance_points(replace(SPEC, guidance_levels=0), taken) is None
    assert guidance_points(SPEC, replace(taken, points=None)) is None
    with pytest.raises(DataError, match="guidance of 3 levels and the clip point ids of 2"):
        guidance_points(replace(SPEC, guidance_levels=3), taken)
    assert cut(None, slice(2)) is None and cut(still(3), slice(1, 2))[0].shape == (1, 1, 16, 16)


def test_a_condition_without_room_is_refused():
    world = begin(1, still(1)).world
    with pytest.raises(ShapeError, match="no room for guidance"):
        guided(torch.zeros(1, 4, *SIZE), world, (still(1)[0][:, 0],))
