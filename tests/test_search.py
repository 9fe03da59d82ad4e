from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from benchmarks.cost import step_cost
from distill.spatial import SpatialConfig, SpatialTask
from distill.supernet import KeyClip, SlimView, SuperTask, extract, judge, recalibrate
from distill.terms import DistillWeights
from fastv2v.contracts import History
from fastv2v.data.clip import Clip
from fastv2v.data.conditions import ConditionSpec
from fastv2v.errors import ConfigError, DataError
from fastv2v.losses.objective import LossWeights, ObjectiveConfig, VideoObjective
from fastv2v.losses.rollout import RolloutConfig
from fastv2v.nn.slim import SlimConfig, SlimGenerator
from fastv2v.render import render_clip
from fastv2v.seed import generator_for
from students import presets
from students.space import SearchSpace, describe_student, slim_macs

LARGE = SlimConfig(widths=(8, 12), depths=(1, 2), up_depths=(1,), refine_width=4, input_scale=2)
SMALL = replace(LARGE, widths=(4, 4), depths=(0, 1), up_depths=(0,), refine_width=0)
SPACE = SearchSpace(largest=LARGE, smallest=SMALL)
MIDDLE = replace(LARGE, widths=(4, 8), depths=(1, 1), up_depths=(0,), refine_width=4)
SIZE = (32, 32)


def macs(config):
    return slim_macs(config, 3, SIZE)


def inputs(seed=0):
    rng = torch.Generator().manual_seed(seed)
    past = torch.rand(1, 2, 3, *SIZE, generator=rng), torch.rand(1, 2, 3, *SIZE, generator=rng) * 2 - 1
    return torch.rand(1, 3, *SIZE, generator=rng), History(*past, torch.ones(1))


def super_network(config=LARGE):
    torch.manual_seed(0)
    return SlimGenerator(config, 3, (1,))


def key_clips(count=2, frames=4):
    rng = torch.Generator().manual_seed(1)
    shape = (1, frames, 3, *SIZE)
    return [KeyClip(*(torch.rand(shape, generator=rng) * 2 - 1 for _ in range(3))) for _ in range(count)]


class TestSpace:
    def test_it_counts_and_holds_what_lies_between_its_ends(self):
        # widths 4 8, 4 8 12; depths 0 1, 1 2; up 0 1; refine 0 4
        assert SPACE.num_students == 2 * 3 * 2 * 2 * 2 * 2
        assert LARGE in SPACE and SMALL in SPACE and MIDDLE in SPACE
        assert replace(MIDDLE, widths=(5, 8)) not in SPACE
        assert replace(MIDDLE, widths=(4, 16)) not in SPACE
        assert replace(MIDDLE, block="separable") not in SPACE
        rng = generator_for(0)
        drawn = {SPACE.draw(rng) for _ in range(600)}
        assert all(config in SPACE for config in drawn) and len(drawn) > 90

    def test_every_slim_preset_lies_in_the_usual_space(self):
        for name in ("base", "small", "tiny", "micro", "nano", "pico"):
            assert presets.STUDENTS[name]() in SearchSpace()

    def test_changes_stay_inside_and_come_from_the_generator(self):
        rng = generator_for(1)
        assert SPACE.mutate(MIDDLE, 0.0, rng) == MIDDLE
        children = {SPACE.mutate(MIDDLE, 0.5, rng) for _ in range(50)}
        assert len(children) > 5 and all(child in SPACE for child in children)
        mixed = {SPACE.cross(SMALL, LARGE, rng) for _ in range(50)}
        assert all({*child.widths} <= {4, 8, 12} and child in SPACE for child in mixed)
        assert SPACE.draw(generator_for(3)) == SPACE.draw(generator_for(3))

    @given(st.integers(0, 1000), st.floats(0.0, 1.2))
    @settings(max_examples=30, deadline=None)
    def test_a_filled_student_uses_its_budget_up(self, seed, share):
        rng = generator_for(seed)
        limit = share * macs(LARGE)
        made = SPACE.fill(SPACE.draw(rng), lambda config: macs(config) <= limit, rng)
        assert made in SPACE
        if macs(SMALL) > limit:
            assert made == SMALL
            return
        assert macs(made) <= limit
        for name, index in (("widths", 0), ("widths", 1), ("depths", 0), ("depths", 1)):
            more = list(getattr(made, name))
            more[index] += 4 if name == "widths" else 1
            grown = replace(made, **{name: tuple(more)})
            assert grown not in SPACE or macs(grown) > limit

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"smallest": replace(SMALL, block="separable")}, "do not fit across block: it is separable"),
            ({"smallest": replace(SMALL, embedding=2)}, "do not fit across embedding"),
            ({"smallest": LARGE, "largest": SMALL}, r"exceeds the largest in widths: \(8, 12\) and \(4, 4\)"),
            ({"smallest": SlimConfig(input_scale=2, widths=(4,), depths=(1,), up_depths=())}, "has 1 sizes"),
            ({"width_step": 0}, "width_step must be at least 1"),
        ],
    )
    def test_nonsense_is_refused(self, wrong, message):
        with pytest.raises(ConfigError, match=message):
            SearchSpace(**{"largest": LARGE, "smallest": SMALL, **wrong})

    @pytest.mark.parametrize("block", ["residual", "inverted", "separable"])
    @pytest.mark.parametrize("up", ["shuffle", "resize", "transposed"])
    def test_the_closed_form_of_the_cost_is_what_is_counted(self, block, up):
        rng = generator_for(2)
        for more in ({}, {"shared_decoder": False, "entry_kernel": 3}, {"use_flow": False, "head_kernel": 1}):
            config = replace(SPACE.draw(rng), block=block, up=up, input_scale=4, **more)
            counted = step_cost(SlimGenerator(config, 5), 5, (64, 96)).keyframe.true_macs
            assert slim_macs(config, 5, (64, 96)) == counted

    def test_a_student_is_described_in_a_few_words(self):
        assert describe_student(MIDDLE) == "4-8 1/1 0 +4"
        assert describe_student(SMALL) == "4-4 0/1 0"


class TestViews:
    def test_the_view_of_the_largest_is_the_super_network(self):
        whole = super_network().train()
        assert torch.equal(SlimView(whole, LARGE).step(*inputs())[0].frame, whole.step(*inputs())[0].frame)

    def test_gradients_reach_the_leading_weights_and_no_others(self):
        whole = super_network()
        SlimView(whole, MIDDLE).step(*inputs())[0].frame.square().mean().backward()
        gradient = whole.encoder.downs[0][0].weight.grad
        assert gradient[:8, :4].all() and not gradient[8:].any() and not gradient[:, 4:].any()
        assert whole.bottom[0].branch[1].weight.grad is not None
        assert whole.bottom[1].branch[1].weight.grad is None  # a block that MIDDLE does not have
        assert all(value.isfinite().all() for value in (p.grad for p in whole.parameters()) if value is not None)

    def test_a_view_follows_the_weights_and_keeps_nothing(self):
        whole, state = super_network(), torch.get_rng_state()
        view = SlimView(whole, MIDDLE)
        before = view.step(*inputs())[0].frame
        assert torch.equal(torch.get_rng_state(), state)  # or a resumed run would draw other numbers
        assert torch.equal(view.step(*inputs())[0].frame, before)
        with torch.no_grad():
            whole.head.weight.mul_(2)
        assert not torch.equal(view.step(*inputs())[0].frame, before)
        assert not any(buffer.any() for name, buffer in whole.named_buffers() if "running_mean" in name)

    def test_what_is_extracted_draws_as_the_view_does(self):
        whole = super_network()
        student = extract(whole, MIDDLE)
        assert torch.equal(student.train().step(*inputs())[0].frame, SlimView(whole, MIDDLE).step(*inputs())[0].frame)
        assert student.head.weight.data_ptr() != whole.head.weight.data_ptr()
        with pytest.raises(ConfigError, match="wider than its source"):
            extract(whole, replace(LARGE, widths=(8, 16)))

    def test_statistics_are_the_mean_over_all_steps_of_the_rollouts(self):
        student, clips = extract(super_network(), MIDDLE), key_clips()
        seen = []
        norm = student.encoder.entry[1]
        hook = norm.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
        recalibrate(student, clips)
        hook.remove()
        assert len(seen) == 6 and not student.training and norm.momentum == 0.1
        assert_close(norm.running_mean, torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0))
        assert_close(norm.running_var, torch.stack([x.var((0, 2, 3)) for x in seen]).mean(0))
        before = norm.running_mean.clone()
        recalibrate(student, clips)
        assert torch.equal(norm.running_mean, before)
        with pytest.raises(DataError, match="no clip has a frame to synthesise"):
            recalibrate(student, key_clips(frames=1))

    def test_on_one_frame_the_recalibrated_student_draws_as_in_training(self):
        student, (clip,) = extract(super_network(), MIDDLE), key_clips(count=1, frames=2)
        student.train()
        drawn = render_clip(student, clip.conditions, clip.real[:, :1])
        recalibrate(student, [clip])
        assert_close(
            render_clip(student, clip.conditions, clip.real[:, :1]), drawn, atol=2e-2, rtol=0
        )  # the variance kept is the unbiased one

    def test_quality_is_the_mean_distance_to_the_real_and_to_the_teachers_frames(self):
        student, clips = extract(super_network(), SMALL).eval(), key_clips()
        made = [render_clip(student, clip.conditions, clip.real[:, :1]) for clip in clips]
        perfect = judge(student, [clip._replace(teacher=frames) for clip, frames in zip(clips, made, strict=True)])
        assert perfect.teacher_psnr == 100 and perfect.psnr < 20
        assert perfect.score == (perfect.psnr + 100) / 2


def super_task(whole):
    silent = ObjectiveConfig(
        weights=LossWeights(**{**dict.fromkeys(LossWeights.__dataclass_fields__, 0.0), "reconstruction": 1.0})
    )
    objective = VideoObjective(silent, 3, None, lambda a, _b: (torch.zeros_like(a[:, :2]), torch.ones_like(a[:, :1])))
    config = SpatialConfig(weights=DistillWeights.none(), objective=silent, rollout=RolloutConfig())
    spec = ConditionSpec(kind="maps", map_channels=3)
    return SuperTask(whole, SPACE, lambda view: SpatialTask(view, None, spec, objective, config))


def random_clip():
    rng = torch.Generator().manual_seed(4)
    return Clip(
        frames=torch.rand(1, 4, 3, *SIZE, generator=rng) * 2 - 1, maps=torch.rand(1, 4, 3, *SIZE, generator=rng)
    )


class TestSuperTask:
    def run(self, whole, at, seed=0):
        losses = [row["generator"] for row in super_task(whole).step(random_clip(), generator_for(seed), at)]
        return torch.stack([sum(terms.values()) for terms in losses]).sum()

    def test_turns_are_the_largest_the_smallest_and_two_by_chance(self):
        whole = super_network()
        spare = whole.bottom[1].branch[1].weight
        reached = [torch.autograd.grad(self.run(whole, at), spare, allow_unused=True)[0] for at in range(2)]
        assert reached[0] is not None and reached[1] is None
        assert self.run(whole, 2) == self.run(whole, 2) == self.run(whole, 6)
        assert len({self.run(whole, 3, seed).item() for seed in range(8)}) > 3

    def test_it_trains_the_super_network_and_shows_both_ends(self):
        whole = super_network()
        task = super_task(whole)
        assert task.players == {"generator": whole}
        assert set(task.sample(random_clip())) == {"real", "student", "smallest"}
        found = task.evaluate(random_clip())
        assert found["psnr"] == pytest.approx((found["psnr_largest"] + found["psnr_smallest"]) / 2)
        with pytest.raises(ConfigError, match="must be the largest student"):
            super_task(super_network(MIDDLE))
