import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from distill.features import (
    Projections,
    alignment,
    alignment_distance,
    captured,
    change_distance,
    feature_channels,
    feature_distance,
    matched,
    tap_points,
)
from distill.spatial import SpatialConfig, SpatialTask
from distill.teacher import LiveTeacher, Taught
from distill.temporal import TemporalConfig, TemporalTask
from distill.terms import DistillWeights
from fastv2v.checkpoint import latest_checkpoint, load_tensors
from fastv2v.contracts import Task
from fastv2v.data.clip import Clip
from fastv2v.data.conditions import ConditionSpec
from fastv2v.device import DeviceConfig, open_device
from fastv2v.errors import ConfigError
from fastv2v.losses.objective import LossWeights, ObjectiveConfig, VideoObjective
from fastv2v.losses.rollout import RolloutConfig
from fastv2v.nn.coarse_to_fine import CoarseToFineGenerator
from fastv2v.nn.composite import CompositeConfig, CompositeGenerator
from fastv2v.nn.slim import SlimConfig, SlimGenerator
from fastv2v.render import rollout, start_history
from fastv2v.run import open_run
from fastv2v.seed import generator_for
from fastv2v.train import TrainConfig, fit
from students.schedule import GapConfig

TEACHER = CompositeConfig(width=2, num_downsamples=2, num_blocks=2, norm="batch")
SLIM = SlimConfig(input_scale=2, widths=(4, 6), depths=(1, 1), up_depths=(1,))
SPEC = ConditionSpec(class_names=("road", "car", "sky"))
OFF = dict.fromkeys(LossWeights.__dataclass_fields__, 0.0)
PLAIN = ObjectiveConfig(weights=LossWeights(**{**OFF, "reconstruction": 1.0}))
FEATURES = replace(DistillWeights.none(), kd_features=1.0, kd_alignment=1.0, kd_feature_change=1.0)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def still(current, previous):
    return torch.zeros_like(current[:, :2]), torch.ones_like(current[:, :1])


def generators():
    torch.manual_seed(0)
    return [
        CompositeGenerator(TEACHER, 3),
        CompositeGenerator(replace(TEACHER, input_scale=2, block="inverted"), 3),
        CoarseToFineGenerator(replace(TEACHER, num_scales=2, num_local_blocks=1), 3),
        SlimGenerator(SLIM, 3),
    ]


class TestTaps:
    @pytest.mark.parametrize(
        ("index", "bottom", "decoder"),
        [(0, (8, 4, 8), (2, 4, 8)), (1, (8, 4, 8), (2, 4, 8)), (2, (8, 2, 4), (1, 4, 8)), (3, (6, 4, 8), (4, 4, 8))],
    )
    def test_every_kind_of_generator_has_a_bottom_and_a_last_stage(self, index, bottom, decoder):
        generator = generators()[index]
        conditions, frames = noise(2, 3, 3, 16, 32), noise(2, 2, 3, 16, 32)
        history = start_history(conditions[:, :2], frames, 2)
        with captured(generator, (16, 32)) as kept:
            list(rollout(generator, conditions[:, 2:], history))
            list(rollout(generator, conditions[:, 2:], history))
        maps = kept.take(1)
        assert {name: tuple(m.shape) for name, m in maps.items()} == {
            "bottom": (2, 1, *bottom),
            "decoder": (2, 1, *decoder),
        }
        assert kept.take(1) == {}
        before = {name: value.clone() for name, value in generator.state_dict().items()}
        assert feature_channels(generator) == {"bottom": bottom[0], "decoder": decoder[0]}
        assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())

    def test_hooks_are_removed_whatever_happens(self):
        for generator in generators():
            with pytest.raises(RuntimeError, match="on purpose"), captured(generator, (16, 16)):
                raise RuntimeError("on purpose")
            assert not any(m._forward_pre_hooks for m in generator.modules())

    def test_other_networks_have_none(self):
        with pytest.raises(ConfigError, match="no inner maps of a Conv2d"):
            tap_points(nn.Conv2d(1, 1, 1))

    def test_sizes_are_matched_by_averages_over_the_smaller_grid(self):
        fine, coarse = torch.arange(8.0).view(1, 1, 1, 2, 4), torch.ones(1, 1, 5, 1, 2)
        for a, b in (matched(fine, coarse), reversed(matched(coarse, fine))):
            assert a.flatten().tolist() == [2.5, 4.5]
            assert b.shape == (1, 1, 5, 1, 2)


def linear_cka(x, y):
    """By the definition, with kernels over pixels: HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))."""
    n = len(x)
    centre = np.eye(n) - np.ones((n, n)) / n
    k, m = x @ x.T, y @ y.T

    def hsic(a, b):
        return np.trace(a @ centre @ b @ centre)

    return hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))


class TestAlignment:
    @pytest.mark.parametrize("channels", [(2, 3), (40, 3), (2, 40), (40, 50)])
    def test_it_is_linear_cka_by_its_definition(self, channels):
        x, y = (noise(2, 3, c, 2, 4, seed=c) for c in channels)
        y = y + x.mean(dim=2, keepdim=True)
        for sample, value in enumerate(alignment(x, y)):
            rows = [m[sample].permute(0, 2, 3, 1).reshape(24, -1).double().numpy() for m in (x, y)]
            assert value.item() == pytest.approx(linear_cka(*rows), abs=1e-5)

    def test_rotation_factor_and_offset_of_the_channels_do_not_matter(self):
        x = noise(1, 2, 5, 4, 4)
        rotation, _ = torch.linalg.qr(noise(5, 5, seed=1))
        turned = torch.einsum("bkchw,dc->bkdhw", x, rotation)
        assert_close(alignment(x, 300 * turned + 7), torch.ones(1), rtol=1e-4, atol=1e-4)
        assert alignment(x, noise(1, 2, 5, 4, 4, seed=2)).item() < 0.6

    def test_maps_that_do_not_vary_give_zero_and_no_gradients_that_are_not_numbers(self):
        x = noise(1, 2, 3, 4, 4).requires_grad_()
        for constant in (torch.ones(1, 2, 4, 4, 4), torch.zeros(1, 2, 4, 4, 4)):
            value = alignment(x, constant)
            assert value.item() == 0
            assert torch.autograd.grad(value.sum(), x)[0].isfinite().all()
        flat = torch.ones(1, 2, 3, 4, 4, requires_grad=True)
        assert torch.autograd.grad(alignment(flat, x.detach()).sum(), flat)[0].isfinite().all()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_it_is_as_exact_in_mixed_precision(self, dtype):
        x = noise(1, 2, 3, 192, 192)  # more pixels than half precision counts to
        y = x + 0.1 * noise(1, 2, 3, 192, 192, seed=1)
        with torch.autocast("cpu", dtype):
            mixed = alignment(y, x)
        assert mixed.dtype == torch.float32
        assert torch.equal(mixed, alignment(y, x))

    def test_its_gradient_aligns(self):
        goal = {"bottom": noise(1, 2, 4, 4, 4)}
        x = noise(1, 2, 3, 4, 4, seed=1).requires_grad_()
        optimizer = torch.optim.Adam([x], lr=0.1)
        first = alignment_distance({"bottom": x}, goal).item()
        for _ in range(60):
            optimizer.zero_grad()
            alignment_distance({"bottom": x}, goal).backward()
            optimizer.step()
        assert alignment_distance({"bottom": x}, goal).item() < 0.2 * first


class TestDistances:
    def test_feature_distance_by_hand_at_the_smaller_size(self):
        goal = torch.tensor([2.0, -4.0]).view(1, 1, 2, 1, 1)
        made = torch.tensor([1.0, 3.0, -4.0, -4.0]).view(1, 1, 2, 1, 2)  # averages 2, -4
        assert feature_distance({"a": made}, {"a": goal}).item() == 0
        assert feature_distance({"a": made + 3}, {"a": goal}).item() == pytest.approx(1, rel=1e-4)

    def test_changes_are_compared_and_not_the_maps(self):
        goal = {"a": noise(2, 3, 4, 4, 4)}
        assert change_distance({"a": goal["a"] + 5}, goal).item() == pytest.approx(0, abs=1e-5)
        other = {"a": goal["a"] + 0.0}
        other["a"][:, 1] = noise(2, 4, 4, 4, seed=3)
        assert change_distance(other, goal).item() > 0.1
        one = change_distance({"a": goal["a"][:, :1]}, {"a": goal["a"][:, :1]})
        assert one.item() == 0

    def test_projections_bring_channels_to_the_teachers(self):
        torch.manual_seed(0)
        layers = Projections({"bottom": 3, "decoder": 2}, {"bottom": 5, "decoder": 4})
        made = layers({"bottom": noise(2, 3, 3, 4, 4), "decoder": noise(2, 3, 2, 8, 8)})
        assert made["bottom"].shape == (2, 3, 5, 4, 4)
        assert made["decoder"].shape == (2, 3, 4, 8, 8)
        alone = layers.maps["decoder"](noise(2, 3, 2, 8, 8)[1])
        assert_close(made["decoder"][1], alone)


def task_of(kind, weights=FEATURES, checkpointing=False, chunk_frames=2, student=None, lead_in=0, objective=PLAIN):
    torch.manual_seed(0)
    teacher = CompositeGenerator(TEACHER, 3)
    student = student or SlimGenerator(SLIM, 3)
    judges = VideoObjective(objective, 3, None, still)
    rollout = RolloutConfig(
        chunk_frames=chunk_frames,
        backprop_frames=2,
        gradient_checkpointing=checkpointing,
        start_from_nothing=0,
        start_from_one=0,
    )
    shared = {"weights": weights, "objective": objective, "rollout": rollout, "lead_in": lead_in}
    if kind == "spatial":
        return SpatialTask(student, teacher, SPEC, judges, SpatialConfig(**shared))
    gap = GapConfig(smallest=2, largest=2, every_frame=0)
    return TemporalTask(student, teacher, SPEC, judges, TemporalConfig(gap=gap, **shared))


def clips(start):
    while True:
        rng = generator_for(4, start)
        labels = torch.randint(0, 3, (1, 11, 16, 16), generator=rng, dtype=torch.uint8)
        yield Clip(frames=torch.rand(1, 11, 3, 16, 16, generator=rng) * 2 - 1, labels=labels)
        start += 1


def terms_of(task, clip):
    """Generator terms of every chunk; gradients are taken as the loop does, so that checkpointing runs again."""
    found = []
    parameters = [p for player in task.players.values() for p in player.parameters()]
    for losses in task.step(clip, torch.Generator().manual_seed(0), 0):
        total = sum(losses["generator"].values())
        torch.autograd.grad(total, parameters, allow_unused=True)
        found.append({name: term.item() for name, term in losses["generator"].items()})
    return found


@pytest.mark.parametrize("kind", ["spatial", "temporal"])
class TestTask:
    def test_names_agree_and_every_player_gets_gradients(self, kind):
        task = task_of(kind)
        _: Task = task
        assert set(task.players) == {"generator", "projections"}
        for losses in task.step(next(clips(0)), torch.Generator().manual_seed(1), 0):
            assert {p: set(terms) for p, terms in losses.items()} == {p: set(w) for p, w in task.weights.items()}
            assert losses["projections"]["kd_features"] is losses["generator"]["kd_features"]
            parameters = list(task.players["projections"].parameters())
            gradients = torch.autograd.grad(losses["projections"]["kd_features"], parameters, retain_graph=True)
            assert all(g.abs().sum() > 0 for g in gradients)
            for name in FEATURES.active():
                inner = torch.autograd.grad(
                    losses["generator"][name], task.student.bottom.parameters(), retain_graph=True, allow_unused=True
                )
                assert any(g is not None and g.abs().sum() > 0 for g in inner)
        assert not any(m._forward_pre_hooks for m in [*task.student.modules(), *task.teacher.generator.modules()])

    def test_a_student_equal_to_its_teacher_is_aligned(self, kind):
        # Every frame by itself, so that norms in training see what the teacher's see.
        torch.manual_seed(0)
        task = task_of(kind, chunk_frames=1, student=CompositeGenerator(TEACHER, 3))
        if kind == "temporal":  # at gap 2 histories differ
            task.gap = GapConfig(smallest=1, largest=1, every_frame=1)
        for terms in terms_of(task, next(clips(0))):
            assert terms["kd_alignment"] == pytest.approx(0, abs=1e-4)
            assert terms["kd_feature_change"] == pytest.approx(0, abs=1e-4)
            assert terms["kd_features"] > 0.1  # through projections that know nothing yet

    def test_gradient_checkpointing_and_lead_in_leave_the_terms_as_they_are(self, kind):
        plain, again = (terms_of(task_of(kind, checkpointing=c), next(clips(0))) for c in (False, True))
        for a, b in zip(plain, again, strict=True):
            assert a == pytest.approx(b, rel=1e-4)

    def test_a_resumed_run_equals_one_that_was_not_stopped(self, kind, tmp_path):
        weights = replace(FEATURES, kd_reconstruction=1.0)
        device = open_device(DeviceConfig(cpu=True, precision="fp32"))

        def train(name, *stops):
            for steps in stops:
                task = task_of(kind, weights, lead_in=2)
                with open_run(tmp_path / name, {}) as run:
                    fit(task, clips, run, TrainConfig(steps=steps, checkpoint_every=2, log_every=1), device)
            return latest_checkpoint(tmp_path / name)

        whole, resumed = train("whole", 4), train("resumed", 2, 4)
        names = {file.name for file in whole.glob("*.safetensors")}
        assert "projections.safetensors" in names
        for name in names - {"rng.safetensors"}:
            a, b = load_tensors(whole / name), load_tensors(resumed / name)
            assert a.keys() == b.keys()
            assert all(torch.equal(a[key], b[key]) for key in a), name
        fresh = task_of(kind, weights).players["projections"].state_dict()
        moved = load_tensors(whole / "projections.safetensors")
        assert all(not torch.equal(moved[key], fresh[key]) for key in fresh)
        assert not any("projections" in key for key in load_tensors(whole / "ema.safetensors"))


class Recorded:
    has_flow = has_features = False

    def teach(self, clip, conditions, start, points=None):
        return Taught(clip.frames[:, 2:])


def test_a_precomputed_teacher_has_no_feature_maps():
    objective = VideoObjective(PLAIN, 3, None, still)
    for name in FEATURES.active():
        weights = replace(DistillWeights.none(), **{name: 1.0})
        with pytest.raises(ConfigError, match=r"need a teacher that runs along.*leave out --taught"):
            SpatialTask(SlimGenerator(SLIM, 3), Recorded(), SPEC, objective, SpatialConfig(weights=weights))
    alone = SpatialConfig(weights=replace(DistillWeights.none(), kd_alignment=1.0))
    with pytest.raises(ConfigError, match="kd_alignment need a teacher"):
        SpatialTask(SlimGenerator(SLIM, 3), None, SPEC, objective, alone)


def test_the_teachers_features_belong_to_its_frames_for_every_sample():
    torch.manual_seed(0)
    teacher = LiveTeacher(CompositeGenerator(TEACHER, 3), features=True)
    conditions, frames = noise(2, 5, 3, 16, 16), noise(2, 5, 3, 16, 16, seed=1).clamp(-1, 1)
    both = teacher.teach(Clip(frames=frames), conditions, "full")
    assert both.features["bottom"].shape == (2, 3, 8, 4, 4)
    alone = teacher.teach(Clip(frames=frames[1:]), conditions[1:], "full")
    for name, maps in alone.features.items():
        assert_close(both.features[name][1:], maps)
