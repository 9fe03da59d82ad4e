import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastv2v.contracts import FrameOutput, History, StepModel
from fastv2v.errors import ConfigError, DataError, ShapeError
from fastv2v.losses.rollout import WORN, RolloutConfig, draw_start, opening, training_rollout, worn
from fastv2v.render import advance, detach, render_clip, rollout, rollout_chunks, stack_outputs, start_history
from fastv2v.score import clip_psnr, to_uint8

SIZE = (4, 6)


class Adder(nn.Module):
    """frame = condition + weight * (latest frame); counts on in whole numbers when the weight is 1."""

    condition_channels = 3
    history_length = 2
    size_multiple = 1

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def step(self, condition, history):
        frame = condition + self.weight * history.frames[:, -1]
        return FrameOutput(frame, frame), advance(history, condition, frame)


def steps(values, batch=1, channels=3):
    """(B, T, C, H, W) whose every pixel at time t is ``values[t]``."""
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1, 1).expand(batch, -1, channels, *SIZE)


def times(x):
    """The value of each frame of a constant sequence."""
    return x[0, :, 0, 0, 0].tolist()


class TestStartHistory:
    def test_a_full_history_is_taken_as_it_is(self):
        history = start_history(steps([1, 2]), steps([5, 6]), 2)
        assert times(history.conditions) == [1, 2]
        assert times(history.frames) == [5, 6]
        assert history.valid.tolist() == [1]

    def test_fewer_frames_are_padded_at_the_old_end(self):
        history = start_history(steps([1, 2]), steps([5, 6]), 4)
        assert times(history.conditions) == [1, 1, 1, 2]
        assert times(history.frames) == [5, 5, 5, 6]

    def test_of_more_frames_the_newest_are_kept(self):
        history = start_history(steps([1, 2, 3]), steps([5, 6, 7]), 2)
        assert times(history.conditions) == [2, 3]
        assert times(history.frames) == [6, 7]

    @pytest.mark.parametrize("given", [None, steps([])])
    def test_nothing_given_is_black_frames_and_the_first_condition_repeated(self, given):
        history = start_history(steps([]), given, 2, first_condition=steps([9], batch=2)[:, 0])
        assert times(history.conditions) == [9, 9]
        assert not history.frames.any()
        assert history.frames.shape == (2, 2, 3, *SIZE)
        assert history.valid.tolist() == [0, 0]

    def test_nothing_at_all_and_disagreement_are_refused(self):
        with pytest.raises(ShapeError, match="first_condition"):
            start_history(steps([]), None, 2)
        with pytest.raises(ShapeError, match="do not match"):
            start_history(steps([1]), steps([5, 6]), 2)


def test_advance_drops_the_oldest_and_marks_the_history_valid():
    history = History(steps([1, 2]), steps([5, 6]), torch.zeros(1))
    after = advance(history, steps([3])[:, 0], steps([7])[:, 0])
    assert times(after.conditions) == [2, 3]
    assert times(after.frames) == [6, 7]
    assert after.valid.tolist() == [1]
    assert history.valid.tolist() == [0]  # the old state is left alone


def test_detach_cuts_every_part():
    history = History(*(torch.zeros(1, requires_grad=True) * 1 for _ in range(3)))
    assert not any(x.requires_grad for x in detach(history)[:3])


def test_rollout_feeds_its_own_frames_back():
    outputs = list(rollout(Adder(), steps([1, 1, 1]), start_history(steps([0]), steps([10]), 2)))
    assert times(stack_outputs(outputs).frame) == [11, 12, 13]


def test_stacked_outputs_keep_missing_parts_missing():
    x = torch.zeros(2, 3, *SIZE)
    stacked = stack_outputs([FrameOutput(x, x, x), FrameOutput(x, x, x)])
    assert stacked.warped.shape == (2, 2, 3, *SIZE)
    assert stacked.flow is stacked.occlusion is None


class TestRolloutChunks:
    def chunks(self, model, num_frames, **settings):
        conditions = steps([1] * num_frames)
        history = start_history(conditions[:, :2], steps([10, 20]), 2)
        return list(rollout_chunks(model, conditions, history, start=2, **settings))

    @pytest.mark.parametrize(
        ("chunk_frames", "expected"), [(0, [(2, 5)]), (2, [(2, 2), (4, 2), (6, 1)]), (9, [(2, 5)]), (5, [(2, 5)])]
    )
    def test_chunks_cover_the_clip_in_order(self, chunk_frames, expected):
        chunks = self.chunks(Adder(), 7, chunk_frames=chunk_frames, backprop_frames=1)
        assert [(c.start, c.output.frame.shape[1]) for c in chunks] == expected
        assert [t for c in chunks for t in times(c.output.frame)] == [21, 22, 23, 24, 25]
        assert [t for c in chunks for t in times(c.previous)] == [20, 21, 22, 23, 24]

    def test_a_clip_without_frames_to_make_gives_no_chunks(self):
        assert self.chunks(Adder(), 2, chunk_frames=0, backprop_frames=1) == []

    @pytest.mark.parametrize(("backprop_frames", "expected"), [(1, [20, 21, 22, 23]), (2, [20, 41, 22, 45])])
    def test_gradients_reach_back_only_as_far_as_asked(self, backprop_frames, expected):
        # d frame_t / d weight = frame_{t-1} + weight * d frame_{t-1} / d weight, cut where the history is detached.
        model = Adder()
        (chunk,) = self.chunks(model, 6, chunk_frames=0, backprop_frames=backprop_frames)
        frames = chunk.output.frame[0, :, 0, 0, 0]
        gradients = [torch.autograd.grad(f, model.weight, retain_graph=True)[0].item() for f in frames]
        assert gradients == expected

    def test_the_count_starts_anew_in_every_chunk(self):
        model = Adder()
        _, second = self.chunks(model, 8, chunk_frames=3, backprop_frames=2)
        frames = second.output.frame[0, :, 0, 0, 0]
        gradients = [torch.autograd.grad(f, model.weight, retain_graph=True)[0].item() for f in frames]
        assert gradients == [23, 24 + 23, 25]

    def test_gradients_never_cross_a_chunk(self):
        model = Adder()
        first, second = self.chunks(model, 6, chunk_frames=2, backprop_frames=8)
        assert torch.autograd.grad(second.output.frame[0, 0, 0, 0, 0], model.weight)[0].item() == 22
        assert not first.previous.requires_grad
        assert not second.previous.requires_grad

    def test_only_the_first_frame_of_a_cold_start_is_not_valid(self):
        conditions = steps([1] * 5)
        history = start_history(conditions[:, :0], None, 2, first_condition=conditions[:, 2])
        chunks = list(rollout_chunks(Adder(), conditions, history, start=2, chunk_frames=2, backprop_frames=1))
        assert torch.cat([c.valid for c in chunks], dim=1).tolist() == [[0, 1, 1]]


class TestRenderClip:
    def test_given_frames_come_first(self):
        frames = render_clip(Adder(), steps([0, 0, 1, 1]), steps([7, 8]))
        assert times(frames) == [7, 8, 9, 10]
        assert not frames.requires_grad

    def test_a_clip_can_start_from_nothing(self):
        assert times(render_clip(Adder(), steps([1, 1, 1]), None)) == [1, 2, 3]

    def test_a_wholly_given_clip_is_returned(self):
        assert times(render_clip(Adder(), steps([0, 0]), steps([7, 8]))) == [7, 8]

    def test_a_model_is_a_step_model(self):
        assert isinstance(Adder(), StepModel)


class TestOpening:
    def open(self, start):
        return opening(Adder(), steps([1, 2, 3, 4]), steps([11, 12, 13, 14]), start)

    def test_full_gives_the_real_history(self):
        history = self.open("full")
        assert (times(history.conditions), times(history.frames)) == ([1, 2], [11, 12])

    def test_one_repeats_the_newest_real_frame(self):
        history = self.open("one")
        assert (times(history.conditions), times(history.frames)) == ([2, 2], [12, 12])
        assert history.valid.tolist() == [1]

    def test_nothing_knows_only_the_first_condition(self):
        history = self.open("nothing")
        assert (times(history.conditions), times(history.frames)) == ([3, 3], [0, 0])
        assert history.valid.tolist() == [0]

    @pytest.mark.parametrize("start", ["nothing", "one", "full"])
    def test_the_same_frames_are_synthesised_whatever_the_start(self, start):
        conditions, config = steps([0] * 5), RolloutConfig(chunk_frames=2)
        chunks = list(training_rollout(Adder(), conditions, conditions, start, config, 0))
        assert [(c.start, c.output.frame.shape[1]) for c in chunks] == [(2, 2), (4, 1)]

    @pytest.mark.parametrize(("start", "factor"), list(WORN.items()))
    def test_a_worn_history_is_blurred_and_nothing_else(self, start, factor):
        frames = torch.rand(2, 3, 3, 16, 32, generator=torch.Generator().manual_seed(0))
        history = opening(Adder(), frames, frames, start)
        assert torch.equal(history.conditions, frames[:, :2]) and history.valid.tolist() == [1, 1]
        inner = history.frames.flatten(0, 1), frames[:, :2].flatten(0, 1)
        # Averages over whole squares are (nearly) kept where the enlargement is linear; what lies within is gone.
        kept = [F.avg_pool2d(x, factor).mean() for x in inner]
        assert kept[0] == pytest.approx(float(kept[1]), abs=0.02)
        assert history.frames.var() < frames.var() / factor
        assert torch.equal(worn(torch.full((1, 1, 3, 8, 8), 0.5), factor), torch.full((1, 1, 3, 8, 8), 0.5))

    def test_a_clip_no_longer_than_the_history_is_refused(self):
        with pytest.raises(DataError, match="at least 3 frames"):
            opening(Adder(), steps([1, 2]), steps([1, 2]), "full")


class TestDrawStart:
    def test_shares_are_met(self):
        rng = torch.Generator().manual_seed(0)
        config = RolloutConfig(start_from_nothing=0.2, start_from_one=0.3)
        draws = [draw_start(config, rng) for _ in range(2000)]
        shares = [draws.count(kind) / 2000 for kind in ("nothing", "one", "full")]
        assert shares == pytest.approx([0.2, 0.3, 0.5], abs=0.04)

    def test_worn_starts_are_drawn_alike(self):
        rng = torch.Generator().manual_seed(0)
        config = RolloutConfig(start_from_nothing=0.1, start_from_one=0.1, start_from_worn=0.6)
        draws = [draw_start(config, rng) for _ in range(2000)]
        shares = [draws.count(kind) / 2000 for kind in ("nothing", "one", *WORN, "full")]
        assert shares == pytest.approx([0.1, 0.1, 0.2, 0.2, 0.2, 0.2], abs=0.04)

    def test_the_same_generator_state_draws_the_same(self):
        draws = [draw_start(RolloutConfig(), torch.Generator().manual_seed(s)) for s in range(20)]
        assert draws == [draw_start(RolloutConfig(), torch.Generator().manual_seed(s)) for s in range(20)]

    @pytest.mark.parametrize(
        "wrong",
        [{"chunk_frames": -1}, {"backprop_frames": 0}, {"start_from_nothing": 0.7, "start_from_one": 0.4}],
    )
    def test_nonsense_is_refused(self, wrong):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            RolloutConfig(**wrong)


class TestScore:
    def test_bytes_are_rounded_and_clamped(self):
        assert to_uint8(torch.tensor([-1.0, 0.0, 1.0, 3.0, -9.0])).tolist() == [0, 128, 255, 255, 0]

    def test_psnr_of_a_known_error(self):
        real = torch.zeros(1, 1, 3, 4, 4)
        frames = real + 10 / 127.5  # ten grey levels
        assert clip_psnr(frames, real) == pytest.approx(20 * math.log10(255 / 10), abs=1e-3)

    def test_psnr_is_a_mean_over_frames_capped_at_100(self):
        real = torch.zeros(1, 2, 3, 4, 4)
        frames = real.clone()
        frames[:, 1] += 10 / 127.5
        assert clip_psnr(real, real) == pytest.approx(100)
        assert clip_psnr(frames, real) == pytest.approx((100 + 20 * math.log10(25.5)) / 2, abs=1e-3)

    def test_nothing_to_score_and_other_shapes_are_refused(self):
        with pytest.raises(ShapeError, match="cannot be scored against"):
            clip_psnr(torch.zeros(1, 2, 3, 4, 5), torch.zeros(1, 2, 3, 4, 4))
        with pytest.raises(ShapeError, match="held-out clips must be longer"):
            clip_psnr(torch.zeros(1, 0, 3, 4, 4), torch.zeros(1, 0, 3, 4, 4))
