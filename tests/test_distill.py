import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from distill.spatial import SpatialConfig, SpatialTask
from distill.teacher import LiveTeacher, Taught, check_pair, freeze, teacher_rollout
from distill.temporal import TemporalConfig, TemporalTask
from distill.terms import (
    DistillWeights,
    composed_flow,
    distill_mask,
    motion_mask,
    temporal_distance,
)
from fastv2v.contracts import FrameOutput, History, Task
from fastv2v.data.clip import Clip
from fastv2v.data.conditions import ConditionSpec
from fastv2v.device import DeviceConfig, open_device
from fastv2v.errors import ConfigError, DataError, ShapeError
from fastv2v.losses.contrast import contrast_distance, local_contrast
from fastv2v.losses.objective import LossWeights, ObjectiveConfig, VideoObjective
from fastv2v.losses.perceptual import PerceptualLoss
from fastv2v.losses.rollout import RolloutConfig
from fastv2v.losses.total import weighted_total
from fastv2v.nn.composite import CompositeConfig, CompositeGenerator
from fastv2v.nn.discriminator import DiscriminatorConfig
from fastv2v.nn.norms import batch_statistics
from fastv2v.render import advance
from fastv2v.run import open_run, read_metrics
from fastv2v.seed import generator_for
from fastv2v.train import TrainConfig, fit
from students.schedule import GapConfig

MAPS = ConditionSpec(kind="maps", map_channels=1)
OFF = dict.fromkeys(LossWeights.__dataclass_fields__, 0.0)
SILENT = ObjectiveConfig(weights=LossWeights(**OFF))
SMALL = DiscriminatorConfig(width=2, num_layers=1, num_scales=1, norm="instance")
NO_KD = DistillWeights(kd_reconstruction=0, kd_perceptual=0)
SIZE = (4, 6)
FULL = {"start_from_nothing": 0.0, "start_from_one": 0.0}


class Clock(nn.Module):
    """A step model whose frame and flow tell the time that its condition carries: ``time * scale``."""

    condition_channels = 1
    size_multiple = 1

    def __init__(self, scale=1.0, flow=(0.0, 0.0), history_length=2):
        super().__init__()
        self.config = CompositeConfig(history_length=history_length)
        self.history_length = history_length
        self.scale = nn.Parameter(torch.tensor(scale))
        self.flow = nn.Parameter(torch.tensor(flow))
        self.seen = []

    @property
    def uses_flow(self):
        return self.config.use_flow

    def step(self, condition, history):
        self.seen.append(condition[0, 0, 0, 0].item())
        frame = self.scale * condition.expand(-1, 3, -1, -1)
        flow = self.flow.view(1, 2, 1, 1).expand(frame.shape[0], 2, *frame.shape[-2:])
        occlusion = torch.ones_like(frame[:, :1])
        return FrameOutput(frame, frame, frame, flow, occlusion), advance(history, condition, frame)


class Texture(nn.Module):
    """Feature maps of a frame, cheap and with gradients."""

    def forward(self, frames):
        return [frames * 2, frames[..., ::2] ** 2]


def still(current, previous):
    return torch.zeros_like(current[:, :2]), torch.ones_like(current[:, :1])


def clock_clip(frames=8, batch=1, size=SIZE):
    times = torch.arange(float(frames)).view(1, -1, 1, 1, 1).expand(batch, -1, 1, *size)
    return Clip(frames=times.expand(-1, -1, 3, -1, -1) / 100, maps=times)


def silent_objective(perceptual=False):
    network = PerceptualLoss(Texture(), (1.0, 1.0), relative=False) if perceptual else None
    return VideoObjective(SILENT, 1, network, still)


def temporal_task(student, teacher, weights, gap=2, chunk_frames=0, perceptual=False, **config):
    return TemporalTask(
        student,
        teacher,
        MAPS,
        silent_objective(perceptual),
        TemporalConfig(
            weights=weights,
            gap=GapConfig(smallest=gap, largest=gap, every_frame=0),
            objective=SILENT,
            rollout=RolloutConfig(chunk_frames=chunk_frames, **FULL),
            **config,
        ),
    )


def run_step(task, clip, seed=0):
    """Generator terms of every chunk."""
    return [losses["generator"] for losses in task.step(clip, torch.Generator().manual_seed(seed), 0)]


class TestTeacher:
    def test_freezing_takes_gradients_and_training_mode_away(self):
        module = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
        assert freeze(module) is module
        assert not any(m.training for m in module.modules())
        assert not any(p.requires_grad for p in module.parameters())

    def test_entry_k_of_its_rollout_belongs_to_frame_k_plus_history(self):
        clip = clock_clip()
        output = teacher_rollout(Clock(), clip.maps, clip.frames, "full")
        assert output.frame[0, :, 0, 0, 0].tolist() == [2, 3, 4, 5, 6, 7]
        assert output.flow.shape == (1, 6, 2, *SIZE)
        assert not output.frame.requires_grad

    def test_a_pair_shares_conditions_and_history(self):
        check_pair(Clock(), Clock())
        other = Clock()
        other.condition_channels = 3
        with pytest.raises(ConfigError, match="the teacher takes 3 channels, the student 1"):
            check_pair(Clock(), other)
        with pytest.raises(ConfigError, match="look back equally far, got 1 and 2"):
            check_pair(Clock(), Clock(history_length=1))


class Recorded:
    """A source of frames that were made before: every pixel tells the time, plus an offset."""

    has_flow = has_features = False

    def __init__(self, offset=0.0):
        self.offset, self.asked = offset, []

    def teach(self, clip, conditions, start, points=None):
        self.asked.append(start)
        return Taught(conditions[:, 2:].expand(-1, -1, 3, -1, -1) + self.offset)


class TestSources:
    def test_a_live_teacher_goes_by_the_statistics_of_each_frame_and_each_clip(self):
        torch.manual_seed(0)
        config = CompositeConfig(width=2, num_downsamples=2, num_blocks=2, norm="batch")
        teacher = CompositeGenerator(config, 1)
        before = {name: value.clone() for name, value in teacher.state_dict().items()}
        maps, frames = torch.rand(2, 4, 1, 16, 16), torch.rand(2, 4, 3, 16, 16) * 2 - 1
        both = LiveTeacher(teacher).teach(Clip(frames=frames, maps=maps), maps, "full")
        for b in range(2):
            history = History(maps[b : b + 1, :2], frames[b : b + 1, :2], torch.ones(1))
            with batch_statistics(teacher):
                for t in range(2, 4):
                    output, history = teacher.step(maps[b : b + 1, t], history)
                    assert_close(both.frame[b : b + 1, t - 2], output.frame)
                    assert_close(both.flow[b : b + 1, t - 2], output.flow)
        assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
        assert not teacher.training and not both.frame.requires_grad

    def test_frames_that_were_made_before_teach_both_stages(self):
        weights, recorded = replace(NO_KD, kd_reconstruction=1.0), Recorded(offset=3.0)
        spatial = SpatialConfig(weights=weights, objective=SILENT, rollout=RolloutConfig(**FULL))
        task = SpatialTask(Clock(), recorded, MAPS, silent_objective(), spatial)
        assert [t["kd_reconstruction"].item() for t in run_step(task, clock_clip())] == [3]
        assert "teacher" not in task.sample(clock_clip())  # held-out clips were not recorded
        task = temporal_task(Clock(), recorded, weights, gap=3)
        assert [t["kd_reconstruction"].item() for t in run_step(task, clock_clip())] == [3]
        assert recorded.asked == ["full", "full"]

    def test_without_a_teacher_or_weights_nobody_is_asked(self):
        recorded = Recorded()
        quiet = SpatialConfig(weights=NO_KD, objective=SILENT, rollout=RolloutConfig(**FULL))
        for teacher in (recorded, None):
            for task in (
                SpatialTask(Clock(), teacher, MAPS, silent_objective(), quiet),
                temporal_task(Clock(), teacher, NO_KD),
            ):
                assert run_step(task, clock_clip()) == [{}]
                assert set(task.sample(clock_clip(9))) == {"real", "student"}
        assert not recorded.asked

    def test_terms_without_a_teacher_are_refused(self):
        with pytest.raises(ConfigError, match="kd_reconstruction, kd_perceptual need a teacher"):
            SpatialTask(Clock(), None, MAPS, silent_objective(), SpatialConfig())
        with pytest.raises(ConfigError, match="kd_flow need a teacher"):
            temporal_task(Clock(), None, replace(NO_KD, kd_flow=1.0))


class TestTerms:
    def test_motion_mask_is_the_magnitude_over_its_largest_for_each_frame(self):
        flow = torch.zeros(1, 2, 2, 1, 3)
        flow[0, 0, :, 0] = torch.tensor([[3.0, 0, 0], [4.0, 0, 1]])  # magnitudes 5, 0, 1
        flow[0, 1, :, 0] = torch.tensor([[0.0, 0, 0], [0.0, -0.1, 0.05]])
        mask = motion_mask(flow)
        assert_close(mask[0, :, 0, 0], torch.tensor([[1.0, 0, 0.2], [0.0, 1, 0.5]]))
        assert not motion_mask(torch.zeros(1, 2, 4, 4)).any()

    def test_kinds_of_masks(self):
        flow, confidence = torch.randn(2, 3, 2, 4, 4), torch.rand(2, 3, 1, 4, 4)
        assert distill_mask("none", flow, confidence) is None
        assert distill_mask("confidence", flow, confidence) is confidence
        assert torch.equal(distill_mask("motion", flow, confidence), motion_mask(flow))

    def test_temporal_distance_by_hand(self):
        student = torch.tensor([0.0, 1.0, 4.0]).view(1, 3, 1, 1, 1)  # changes 1, 3
        teacher = torch.tensor([5.0, 7.0, 9.0]).view(1, 3, 1, 1, 1)  # changes 2, 2
        assert temporal_distance([student], [teacher]).item() == pytest.approx(1 / 2, rel=1e-4)

    def test_change_is_taken_over_time_within_a_sample(self):
        student = torch.tensor([1.0, 2, 4, 10, 20, 40]).view(2, 3, 1, 1, 1)  # changes 1, 2 and 10, 20
        teacher = torch.tensor([0.0, 1, 3, 0, 10, 30]).view(2, 3, 1, 1, 1)
        assert temporal_distance([student], [teacher]).item() == 0

    def test_only_change_counts_and_layers_count_alike(self):
        teacher = torch.rand(1, 4, 2, 3, 3)
        assert temporal_distance([teacher + 7], [teacher]).item() == pytest.approx(0, abs=1e-4)
        student, teacher = torch.rand(2, 2, 2, 3, 3), torch.rand(2, 2, 2, 3, 3)
        one = temporal_distance([student], [teacher])
        both = temporal_distance([student, 1000 * student], [teacher, 1000 * teacher])
        assert_close(both, one, rtol=1e-3, atol=0)

    def test_one_keyframe_has_no_change(self):
        assert temporal_distance([torch.rand(2, 1, 1, 2, 2)], [torch.rand(2, 1, 1, 2, 2)]).item() == 0

    def test_a_teacher_that_stands_still_does_not_blow_it_up(self):
        teacher = torch.ones(1, 2, 1, 4, 4)
        student = torch.stack([torch.ones(1, 4, 4), torch.full((1, 4, 4), 1.02)]).unsqueeze(0)
        assert temporal_distance([student], [teacher]).item() == pytest.approx(1.0, rel=1e-3)

    def test_composed_flow_adds_the_flows_of_the_gap(self):
        # Constant flows of 1, 10, 100, ... pixels tell which entries were added.
        flows = (10.0 ** torch.arange(5)).view(1, 5, 1, 1, 1).expand(1, 5, 2, *SIZE)
        for last, gap, expected in [(4, 1, 10000), (4, 3, 11100), (3, 4, 1111), (2, 2, 110)]:
            assert_close(composed_flow(flows, last, gap), torch.full((1, 2, *SIZE), float(expected)))

    def test_composed_flow_is_read_where_it_leads(self):
        flows = torch.zeros(1, 2, 2, 1, 4)
        flows[0, 1, 0] = 1.0  # the newest step goes one pixel right
        flows[0, 0, 0, 0] = torch.tensor([10.0, 20, 30, 40])
        assert_close(composed_flow(flows, 1, 2)[0, 0, 0], torch.tensor([21.0, 31, 41, 41]))

    def test_weights(self):
        assert DistillWeights(kd_flow=2.0).active() == {"kd_reconstruction": 1.0, "kd_perceptual": 1.0, "kd_flow": 2.0}
        with pytest.raises(ConfigError, match="kd_flow is negative"):
            DistillWeights(kd_flow=-1.0)


class TestContrast:
    """Local contrast: how much texture there is, wherever exactly it lies."""

    picture = torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(1)) - 0.5

    def test_brightness_and_position_do_not_count_and_strength_does(self):
        stripes = (torch.arange(64) // 8 % 2).float().expand(1, 3, 48, 64)
        assert contrast_distance(self.picture + 0.2, self.picture).item() == pytest.approx(0, abs=1e-3)
        assert contrast_distance(1 - stripes, stripes).item() == pytest.approx(0, abs=1e-3)
        assert contrast_distance(self.picture * 0.5, self.picture).item() == pytest.approx(0.5, abs=0.01)
        assert contrast_distance(self.picture * 3, self.picture).item() == pytest.approx(2, abs=0.04)
        flat = torch.zeros_like(self.picture)  # its contrast is the least there is, not quite 0
        assert contrast_distance(flat, self.picture).item() == pytest.approx(1, abs=0.1)

    def test_maps_are_standard_deviations_of_windows(self):
        finest, half, quarter = local_contrast(self.picture)
        window = self.picture[0, 1, 4:11, 10:17]
        assert finest[0, 1, 2, 5].item() == pytest.approx((window.var(correction=0) + 1e-4).sqrt().item(), rel=1e-4)
        assert [x.shape[-2:] for x in (finest, half, quarter)] == [(21, 29), (9, 13), (3, 5)]

    def test_blurring_is_noticed_and_undone_by_its_gradient(self):
        blurred = torch.nn.functional.avg_pool2d(self.picture, 3, 1, 1).requires_grad_()
        before = contrast_distance(blurred, self.picture)
        (slope,) = torch.autograd.grad(before, blurred)
        after = contrast_distance(blurred - 0.02 * slope / slope.abs().max(), self.picture)
        assert before > 0.3
        assert after < before

    def test_flat_and_tiny_pictures_have_finite_gradients(self):
        flat = torch.zeros(1, 3, 16, 16, requires_grad=True)
        (slope,) = torch.autograd.grad(contrast_distance(flat, torch.zeros(1, 3, 16, 16)), flat)
        assert torch.isfinite(slope).all()
        assert contrast_distance(torch.zeros(1, 3, 6, 6), torch.ones(1, 3, 6, 6)).item() == 0
        assert len(local_contrast(torch.zeros(1, 3, 16, 16))) == 2

    def test_students_are_taught_the_contrast_of_the_same_moments(self):
        student, teacher = Clock(), Clock()
        rows = torch.linspace(-1, 1, 16).view(1, 1, 16, 1)
        for model, strength in ((student, 0.5), (teacher, 1.0)):
            model.step = lambda c, h, step=model.step, k=strength: step(c * rows * k, h)
        task = temporal_task(student, teacher, replace(NO_KD, kd_contrast=1.0), gap=2)
        (terms,) = run_step(task, clock_clip(8, size=(16, 16)))
        assert terms["kd_contrast"].item() == pytest.approx(0.5, abs=0.01)


class TestAlignment:
    """Frames that tell their time: a distance of 0 means that student and teacher meet at the same moments."""

    weights = replace(NO_KD, kd_reconstruction=1.0)

    @settings(max_examples=40, deadline=None)
    @given(
        gap=st.integers(1, 4),
        more=st.integers(0, 7),
        chunk_frames=st.integers(0, 4),
        history=st.integers(1, 3),
        window=st.integers(2, 5),
    )
    def test_temporal_distillation_matches_by_time(self, gap, more, chunk_frames, history, window):
        student, teacher = Clock(history_length=history), Clock(history_length=history)
        task = temporal_task(student, teacher, self.weights, gap, chunk_frames, window=window)
        num_frames = gap * history + 1 + more
        terms = run_step(task, clock_clip(num_frames))
        assert student.seen == list(range(history * gap, num_frames, gap))
        assert teacher.seen == list(range(history, num_frames))
        assert [t["kd_reconstruction"].item() for t in terms] == [0] * len(terms)

    @pytest.mark.parametrize(("gap", "keyframes", "entries"), [(3, [2], [4]), (2, [2, 3], [2, 4])])
    def test_the_worked_example_of_8_frames(self, gap, keyframes, entries):
        task = temporal_task(Clock(), Clock(), self.weights, gap)
        assert [task.teacher_entry(k, gap) for k in keyframes] == entries
        clip = clock_clip(8)
        taught = task.teacher.teach(clip, clip.maps, "full").frame
        assert [taught[0, entry, 0, 0, 0].item() for entry in entries] == [k * gap for k in keyframes]
        run_step(task, clip)
        assert task.student.seen == [k * gap for k in keyframes]

    def test_another_moment_would_be_noticed(self):
        (terms,) = run_step(temporal_task(Clock(1.5), Clock(), self.weights, gap=2), clock_clip(8))
        assert terms["kd_reconstruction"].item() == pytest.approx((2 + 3) / 2)  # half of the times 4 and 6

    @pytest.mark.parametrize("chunk_frames", [0, 1, 5, 6])
    def test_every_keyframe_counts_however_long_the_chunk_is_beside_the_window(self, chunk_frames):
        # Gap 1, 13 frames: keyframes 2 to 12, and a student that is wrong by 1 at each.
        student, teacher = Clock(), Clock()
        teacher.step = lambda c, h, step=teacher.step: step(c + 1, h)
        task = temporal_task(student, teacher, self.weights, 1, chunk_frames, window=2)
        terms = run_step(task, clock_clip(13))
        assert [t["kd_reconstruction"].item() for t in terms] == [1.0] * math.ceil(11 / (chunk_frames or 11))
        reached = sum(torch.autograd.grad(t["kd_reconstruction"], student.scale)[0] * n for t, n in zip(
            terms, [min(chunk_frames or 11, 11 - i) for i in range(0, 11, chunk_frames or 11)], strict=True
        ))  # fmt: skip
        assert reached.item() == pytest.approx(-sum(range(2, 13)))  # d|x - goal| / d scale is -time for each keyframe

    @pytest.mark.parametrize("chunk_frames", [0, 1, 2, 4])
    def test_spatial_distillation_matches_frame_by_frame(self, chunk_frames):
        config = SpatialConfig(weights=self.weights, objective=SILENT, rollout=RolloutConfig(chunk_frames=chunk_frames))
        task = SpatialTask(Clock(), freeze(Clock()), MAPS, silent_objective(), config)
        assert all(terms["kd_reconstruction"].item() == 0 for terms in run_step(task, clock_clip(9)))
        task = SpatialTask(Clock(2.0), freeze(Clock()), MAPS, silent_objective(), config)
        first = run_step(task, clock_clip(9))[0]["kd_reconstruction"].item()
        assert first == pytest.approx({0: 5.0, 1: 2.0, 2: 2.5, 4: 3.5}[chunk_frames])  # mean time of the first chunk


class TestTemporalTerms:
    @pytest.mark.parametrize("kd_temporal", [0.0, 1.0])
    def test_local_perceptual_distance_judges_the_frames_the_objective_judges(self, kd_temporal):
        weights = replace(NO_KD, kd_perceptual=1.0, kd_temporal=kd_temporal)
        task = temporal_task(Clock(2.0), Clock(), weights, gap=3, perceptual=True)
        task.objective.config = replace(SILENT, judged_frames=1)
        # Keyframes 6 and 9 are made in one chunk; only 9 counts: |18 - 9| * 2 and |18^2 - 9^2|.
        (terms,) = run_step(task, clock_clip(10))
        assert terms["kd_perceptual"].item() == pytest.approx(18 + 243)

    def test_local_perceptual_distance_covers_all_samples(self):
        task = temporal_task(Clock(2.0), Clock(), replace(NO_KD, kd_perceptual=1.0), gap=3, perceptual=True)
        clip = clock_clip(8, batch=2)
        maps = torch.cat([clip.maps[:1], 0 * clip.maps[:1]])  # at time 0 all are right
        (terms,) = run_step(task, replace(clip, maps=maps))
        # At time 6: |24 - 12| and |144 - 36| in the first sample, nothing in the second.
        assert terms["kd_perceptual"].item() == pytest.approx((12 + 108) / 2)

    def test_the_global_term_reaches_the_student_and_not_the_teacher(self):
        student, teacher = Clock(2.0), Clock()
        task = temporal_task(student, teacher, replace(NO_KD, kd_temporal=1.0), gap=2, perceptual=True)
        (terms,) = run_step(task, clock_clip(9))
        # Times 4, 6, 8. Linear features change by 8 instead of 4; squares by 80 and 112 instead of 20 and 28.
        assert terms["kd_temporal"].item() == pytest.approx((1 + 3) / 2, rel=1e-4)
        assert torch.autograd.grad(terms["kd_temporal"], student.scale)[0].item() > 0
        assert teacher.scale.grad is None

    def test_it_looks_back_over_chunks_but_sends_gradients_into_the_present_one_only(self):
        student = Clock(2.0)
        task = temporal_task(student, Clock(), replace(NO_KD, kd_temporal=1.0), 2, 1, perceptual=True, window=3)
        looked_at = []
        task.objective.perceptual.network.register_forward_hook(
            lambda _, frames, __: looked_at.append(frames[0][:, 0, 0, 0].tolist())
        )
        terms = [t["kd_temporal"] for t in run_step(task, clock_clip(11))]
        # Every frame once: the student's, which is twice the teacher's, and the teacher's. Earlier ones are remembered.
        assert looked_at == [[8], [4], [12], [6], [16], [8], [20], [10]]
        assert [t.item() for t in terms] == pytest.approx([0, 2, 2, 2], rel=1e-4)
        assert not terms[0].requires_grad
        assert all(torch.autograd.grad(t, student.scale)[0].item() > 0 for t in terms[1:])

    @pytest.mark.parametrize("gap", [1, 2, 3])
    def test_flow_is_compared_with_the_teachers_over_the_same_span(self, gap):
        teacher = Clock(flow=(1.0, -2.0))
        clip, weights = clock_clip(10), replace(NO_KD, kd_flow=1.0)
        same = temporal_task(Clock(flow=(1.0 * gap, -2.0 * gap)), teacher, weights, gap)
        assert run_step(same, clip)[0]["kd_flow"].item() == pytest.approx(0, abs=1e-5)
        student = Clock(flow=(1.0 * gap + 3, -2.0 * gap))
        (terms,) = run_step(temporal_task(student, teacher, weights, gap), clip)
        assert terms["kd_flow"].item() == pytest.approx(1.5, rel=1e-4)  # 3 pixels in one of two components
        assert torch.autograd.grad(terms["kd_flow"], student.flow)[0][0].item() > 0

    def test_a_cold_start_has_no_flow_to_learn(self):
        task = temporal_task(Clock(flow=(5.0, 0.0)), Clock(), replace(NO_KD, kd_flow=1.0), 3, 1)
        task.config = replace(
            task.config, rollout=RolloutConfig(chunk_frames=1, start_from_nothing=1, start_from_one=0)
        )
        first, second = run_step(task, clock_clip(10))
        assert first["kd_flow"].item() == 0
        assert second["kd_flow"].item() == pytest.approx(2.5)


@pytest.mark.parametrize("stage", ["spatial", "temporal"])
class TestMasks:
    def distances(self, stage, mask, estimator):
        objective = VideoObjective(SILENT, 1, PerceptualLoss(Texture(), (1.0, 0.0), relative=False), estimator)
        shared = {"mask": mask, "objective": SILENT, "rollout": RolloutConfig(**FULL)}
        weights = replace(NO_KD, kd_reconstruction=1.0, kd_perceptual=0.5)
        if stage == "spatial":
            task = SpatialTask(Clock(2.0), Clock(), MAPS, objective, SpatialConfig(weights=weights, **shared))
        else:
            gap = GapConfig(smallest=1, largest=1)
            config = TemporalConfig(weights=weights, gap=gap, **shared)
            task = TemporalTask(Clock(2.0), Clock(), MAPS, objective, config)
        (terms,) = run_step(task, clock_clip(4))
        assert terms["kd_perceptual"].item() == pytest.approx(2 * terms["kd_reconstruction"].item())
        return terms["kd_reconstruction"].item()

    def test_a_mask_weighs_pixels_of_both_frames(self, stage):
        def left_moves(current, _):
            flow = torch.zeros_like(current[:, :2])
            flow[..., :3] = 2.0
            return flow, torch.full_like(current[:, :1], 0.25)

        # Without a mask, times 2 and 3 are wrong by 2 and 3.
        assert self.distances(stage, "none", left_moves) == pytest.approx(2.5)
        assert self.distances(stage, "motion", left_moves) == pytest.approx(2.5 / 2)
        assert self.distances(stage, "confidence", left_moves) == pytest.approx(2.5 / 4)


class Moving(nn.Module):
    """In place of a video network: how frames of a window change, in one map."""

    def forward(self, frames):
        return [frames.diff(dim=1)]


class TestWindowNetworks:
    weights = replace(NO_KD, kd_temporal=1.0)

    def task(self, features, video, perceptual=False, window=4, chunk_frames=1):
        student, objective = Clock(2.0), silent_objective(perceptual)
        weights_file = "r3d.pth" if features == "r3d18" else None
        config = TemporalConfig(
            weights=self.weights,
            gap=GapConfig(smallest=2, largest=2, every_frame=0),
            window=window,
            temporal_features=features,
            temporal_weights=weights_file,
            objective=SILENT,
            rollout=RolloutConfig(chunk_frames=chunk_frames, **FULL),
        )
        return TemporalTask(student, Clock(), MAPS, objective, config, video=video)

    def test_a_video_network_sees_the_same_moments_of_both_and_the_present_gets_gradients(self):
        task = self.task("r3d18", Moving())
        terms = [t["kd_temporal"] for t in run_step(task, clock_clip(11))]
        # A window of one frame has no change: the mean over nothing.
        assert [t.item() for t in terms[1:]] == pytest.approx([1, 1, 1], rel=1e-4)  # changes by 4 instead of 2
        assert all(torch.autograd.grad(t, task.student.scale)[0].item() > 0 for t in terms[1:])

    def test_a_discriminator_sees_runs_of_keyframes_and_speaks_when_there_are_enough(self):
        seen = []

        def judge(x):
            seen.append(x[:, [0, 3, 6], 0, 0].tolist())
            return [[x[:, :9], x[:, :1]]]

        terms = [t["kd_temporal"] for t in run_step(self.task("discriminator", judge), clock_clip(11))]
        assert [t.item() for t in terms] == pytest.approx([0, 0, 1, 1])
        assert not terms[1].requires_grad
        assert seen == [[[4, 6, 8]], [[8, 12, 16]], [[4, 6, 8], [6, 8, 10]], [[8, 12, 16], [12, 16, 20]]]

    def test_both_is_the_mean_of_changes_and_discriminator(self):
        def judge(x):
            return [[x[:, :9], x[:, :1]]]

        one, two, both = (
            run_step(self.task(f, judge, perceptual=True, chunk_frames=0), clock_clip(11))[0]["kd_temporal"].item()
            for f in ("perceptual", "discriminator", "both")
        )
        assert both == pytest.approx((one + two) / 2)
        assert one != pytest.approx(two)

    @pytest.mark.parametrize("features", ["discriminator", "both", "r3d18"])
    def test_a_missing_network_is_noticed(self, features):
        with pytest.raises(ConfigError, match=f"kd_temporal on {features} features needs the network"):
            self.task(features, None, perceptual=True)


class TestLeadIn:
    weights = replace(NO_KD, kd_reconstruction=1.0)

    def test_what_is_trained_on_stays_and_the_student_comes_from_further_back(self):
        leads = set()
        for seed in range(12):
            student, teacher = Clock(), Clock()
            task = temporal_task(student, teacher, self.weights, gap=2, chunk_frames=1, lead_in=3)
            terms = run_step(task, clock_clip(16), seed)
            # Keyframes 0, 2, ..., 14. Two are history; at most three are led in with, so that three are trained on.
            assert [t["kd_reconstruction"].item() for t in terms] == [0, 0, 0]
            assert student.seen[-3:] == [10, 12, 14]
            lead = len(student.seen) - 3
            assert student.seen == list(range(10 - 2 * lead, 16, 2))
            assert teacher.seen[-6:] == [10, 11, 12, 13, 14, 15]
            leads.add(lead)
        assert leads == {0, 1, 2, 3}

    def test_it_ends_where_the_clip_does(self):
        task = temporal_task(Clock(), Clock(), self.weights, gap=4, lead_in=50)
        for seed in range(6):
            task.student.seen.clear()
            (terms,) = run_step(task, clock_clip(16), seed)
            assert terms["kd_reconstruction"].item() == 0
            assert task.student.seen[-1] == 12

    def test_frames_led_in_with_are_made_as_deployed_without_gradients(self):
        modes = []
        student = Clock(2.0)
        student.step = lambda c, h, step=student.step: (
            modes.append((student.training, torch.is_grad_enabled(), h.frames[0, -1, 0, 0, 0].item())) or step(c, h)
        )
        config = SpatialConfig(
            weights=self.weights, objective=SILENT, rollout=RolloutConfig(chunk_frames=2, **FULL), lead_in=4
        )
        task = SpatialTask(student.train(), Clock(), MAPS, silent_objective(), config)
        clip = clock_clip(9)
        for seed in range(50):
            modes.clear()
            run_step(task, clip, seed)
            if len(modes) == 7:
                break
        # Frames 2 to 5 led in, 6 to 8 trained on; histories are the student's own, twice the time, after the first.
        assert [m[:2] for m in modes] == [(False, False)] * 4 + [(True, True)] * 3
        assert [m[2] for m in modes] == pytest.approx([0.01, 4, 6, 8, 10, 12, 14])
        assert student.training

    def test_losses_on_the_past_count_from_the_first_frame_that_is_trained_on(self):
        objective = ObjectiveConfig(
            weights=LossWeights(**{**OFF, "temporal_gan": 1.0, "warp": 1.0}),
            temporal_discriminator=SMALL,
            temporal_scales=2,
            sparse_temporal=True,
        )
        config = SpatialConfig(
            weights=self.weights, objective=objective, rollout=RolloutConfig(chunk_frames=2, **FULL), lead_in=5
        )
        for seed in range(6):
            task = SpatialTask(Clock(), Clock(), MAPS, VideoObjective(objective, 1, None, still), config)
            chunks = run_step(task, clock_clip(14, size=(16, 16)), seed)
            assert len(chunks) == 4  # 7 frames

    def test_without_it_everything_is_drawn_as_before(self):
        task = temporal_task(Clock(), Clock(), self.weights, gap=2)
        run_step(task, clock_clip(9))
        assert task.student.seen == [4, 6, 8]


class TestRefusals:
    def test_a_missing_network_is_noticed_before_training(self):
        with pytest.raises(ConfigError, match=r"^kd_temporal need the perceptual network"):
            temporal_task(Clock(), Clock(), replace(NO_KD, kd_temporal=1.0))
        with pytest.raises(ConfigError, match=r"^kd_perceptual need the perceptual network"):
            SpatialTask(Clock(), freeze(Clock()), MAPS, silent_objective(), SpatialConfig())
        flowless = Clock()
        flowless.config = replace(flowless.config, use_flow=False)
        with pytest.raises(ConfigError, match="kd_flow needs a flow branch"):
            temporal_task(flowless, Clock(), replace(NO_KD, kd_flow=1.0))

    @pytest.mark.parametrize("history_length", [1, 3])
    def test_pairs_that_do_not_fit(self, history_length):
        for build in (
            lambda: temporal_task(Clock(), Clock(history_length=history_length), NO_KD),
            lambda: SpatialTask(
                Clock(), Clock(history_length=history_length), MAPS, silent_objective(), SpatialConfig(weights=NO_KD)
            ),
        ):
            with pytest.raises(ConfigError, match="look back equally far"):
                build()

    @pytest.mark.parametrize(
        ("wrong", "message"), [({"window": 1}, "at least 2 keyframes"), ({"deployed_gap": 0}, "deployed_gap must be")]
    )
    def test_temporal_nonsense(self, wrong, message):
        with pytest.raises(ConfigError, match=message):
            TemporalConfig(**wrong)

    @pytest.mark.parametrize("weights", [{"kd_temporal": 1.0}, {"kd_flow": 1.0}])
    def test_temporal_terms_in_the_spatial_stage(self, weights):
        with pytest.raises(ConfigError, match="belong to temporal distillation"):
            SpatialConfig(weights=DistillWeights(**weights))

    def test_clips_too_short_for_the_gap(self):
        task = temporal_task(Clock(), Clock(), replace(NO_KD, kd_reconstruction=1.0), gap=4)
        with pytest.raises(DataError, match="at least 9 frames"):
            run_step(task, clock_clip(8))

    def test_held_out_clips_without_a_second_keyframe(self):
        task = temporal_task(Clock(), Clock(), NO_KD, deployed_gap=8)
        with pytest.raises(ShapeError, match="held-out clips must be longer"):
            task.evaluate(clock_clip(8))


class TestEvaluation:
    def test_keyframes_at_the_deployed_gap_are_shown_and_scored(self):
        clip = clock_clip(9)
        task = temporal_task(Clock(0.01), Clock(0.01), NO_KD, deployed_gap=4)
        rows = task.sample(clip)
        for name in ("real", "teacher", "student"):
            assert_close(rows[name][0, :, 0, 0, 0], torch.tensor([0, 0.04, 0.08]))
        assert task.student.seen == [4, 8]
        assert task.evaluate(clip) == {"psnr": pytest.approx(100)}

    def test_the_spatial_stage_shows_every_frame(self):
        clip = clock_clip(5)
        task = SpatialTask(Clock(0.01), Clock(0.01), MAPS, silent_objective(), SpatialConfig(weights=NO_KD))
        rows = task.sample(clip)
        assert torch.equal(rows["real"], clip.frames)
        assert_close(rows["student"], clip.frames)
        assert_close(rows["teacher"], clip.frames)
        assert task.evaluate(clip) == {"psnr": pytest.approx(100)}


SPEC = ConditionSpec(class_names=("road", "car", "sky"))
OBJECTIVE = ObjectiveConfig(
    weights=LossWeights(reconstruction=1.0), image_discriminator=SMALL, temporal_discriminator=SMALL
)


def real_task(kind):
    """A tiny composite pair; the teacher has batch norm, whose statistics would drift if it were not frozen."""
    torch.manual_seed(0)
    config = CompositeConfig(width=2, num_downsamples=2, num_blocks=2, norm="batch")
    teacher = freeze(CompositeGenerator(config, 3, (1,)))
    student = CompositeGenerator(replace(config, block="inverted", input_scale=2), 3, (1,))
    objective = VideoObjective(OBJECTIVE, 3, PerceptualLoss(Texture(), (1.0, 0.5), relative=True), still)
    rollout = RolloutConfig(chunk_frames=2, backprop_frames=2)
    if kind == "spatial":
        return SpatialTask(student, teacher, SPEC, objective, SpatialConfig(objective=OBJECTIVE, rollout=rollout))
    weights = DistillWeights(kd_temporal=1.0, kd_flow=1.0)
    gap = GapConfig(smallest=2, largest=2)
    config = TemporalConfig(weights=weights, gap=gap, objective=OBJECTIVE, rollout=rollout)
    return TemporalTask(student, teacher, SPEC, objective, config)


def label_clips(start):
    while True:
        rng = generator_for(4, start)
        labels = torch.randint(0, 3, (2, 9, 16, 16), generator=rng, dtype=torch.uint8)
        yield Clip(frames=torch.rand(2, 9, 3, 16, 16, generator=rng) * 2 - 1, labels=labels)
        start += 1


@pytest.mark.parametrize("kind", ["spatial", "temporal"])
class TestTraining:
    def test_the_student_moves_and_the_teacher_stays_bit_equal(self, kind, tmp_path):
        task = real_task(kind)
        _: Task = task
        teacher = {name: value.clone() for name, value in task.teacher.generator.state_dict().items()}
        student = {name: value.clone() for name, value in task.student.named_parameters()}
        clip = next(label_clips(50))
        with open_run(tmp_path / "run", {}) as run:
            device = open_device(DeviceConfig(cpu=True, precision="fp32"))
            config = TrainConfig(steps=2, eval_every=2, sample_every=2, log_every=2, checkpoint_every=2)
            fit(task, label_clips, run, config, device, sample_clip=clip, eval_clips=[clip])
        assert all(torch.equal(value, teacher[name]) for name, value in task.teacher.generator.state_dict().items())
        assert not any(m.training for m in task.teacher.generator.modules())
        moved = [not torch.equal(value, student[name]) for name, value in task.student.named_parameters()]
        assert sum(moved) > 0.7 * len(moved)
        row = next(row for row in read_metrics(tmp_path / "run") if row["kind"] == "train")
        assert {f"generator/{term}" for term in task.weights["generator"]} <= row.keys()
        saved = {file.stem.split(".")[0] for file in (tmp_path / "run/checkpoints").rglob("*.safetensors")}
        assert saved == {"generator", "image_discriminator", "temporal_discriminator_0", "ema", "rng"}  # no teacher

    def test_names_of_terms_and_weights_agree_and_every_parameter_gets_a_gradient(self, kind):
        task = real_task(kind)
        reached = set()
        for losses in task.step(next(label_clips(0)), torch.Generator().manual_seed(1), 0):
            assert {p: set(terms) for p, terms in losses.items()} == {p: set(w) for p, w in task.weights.items()}
            total = weighted_total(losses["generator"], task.weights["generator"])
            names, parameters = zip(*task.student.named_parameters(), strict=True)
            gradients = torch.autograd.grad(total, parameters, allow_unused=True)
            reached |= {name for name, g in zip(names, gradients, strict=True) if g is not None and g.isfinite().all()}
        assert reached == {name for name, _ in task.student.named_parameters()}
