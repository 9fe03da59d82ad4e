import multiprocessing.dummy
from dataclasses import replace

import pytest
import torch

from benchmarks.reference_step import ReferenceTraining
from benchmarks.results import load_result, write_result
from benchmarks.training import (
    BASELINE,
    METHODS,
    TrainingSettings,
    _Worker,
    build_task,
    loss_difference,
    measure,
    street_clip,
    street_spec,
    train_steps,
    training_benchmark,
    unequal,
)
from fastv2v.errors import ConfigError
from fastv2v.losses.objective import VideoObjective
from fastv2v.losses.perceptual import PerceptualLoss
from fastv2v.ops.flow import DISFlow
from fastv2v.optim import OptimConfig
from teachers.task import TeacherTask

TINY = TrainingSettings(
    size=(32, 64), width=2, discriminator_width=2, num_frames=6, threads=1, cpu=True, keep_memory=False
)


def reports(method, settings=TINY, steps=1):
    found = []
    train_steps(METHODS[method], settings, steps, lambda: None, found.append)
    return found


class TestReferenceOrder:
    @pytest.mark.parametrize("name", [BASELINE, "reference order, whole chunks"])
    def test_every_loss_of_every_chunk_equals_ours(self, name):
        settings = replace(TINY, num_frames=7, chunk_frames=3)
        reference, ours = reports(name, settings)[0].losses, reports("ours", settings)[0].losses
        assert len(ours) == 2
        assert ours[1]["generator"]["temporal_gan_0"] > 0
        assert loss_difference(ours[:1], reference[:1]) < 2e-6
        # Adam makes whole steps of gradients that are nothing but rounding, so one update later less is equal.
        assert loss_difference(ours, reference) < 1e-3

    def test_losses_are_still_equal_after_two_updates_of_every_player(self):
        settings = replace(TINY, num_frames=8)
        reference, ours = reports(BASELINE, settings, 2)[1].losses, reports("ours", settings, 2)[1].losses
        # Adam's whole steps of rounding again, twice: how memory happens to be aligned decides between 1e-6 and 1e-2.
        assert loss_difference(ours[:1], reference[:1]) < 3e-2

    def test_a_second_temporal_scale_equals_ours(self):
        settings = replace(TINY, num_frames=9, chunk_frames=7)
        reference, ours = reports(BASELINE, settings)[0].losses, reports("ours", settings)[0].losses
        assert reference[0]["generator"]["temporal_feature_matching_1"] > 0
        assert loss_difference(ours, reference) < 2e-6

    def test_one_step_moves_every_player(self):
        settings = replace(TINY, num_frames=9, chunk_frames=7)  # the first tuple of scale 1 spans 7 frames
        task = build_task(settings)
        before = {name: [p.clone() for p in module.parameters() if p.ndim > 1] for name, module in task.players.items()}
        ReferenceTraining(task, OptimConfig()).step(street_clip(settings))
        for name, module in task.players.items():
            after = {k: p for k, p in module.named_parameters() if p.ndim > 1}
            still = [k for (k, a), b in zip(after.items(), before[name], strict=True) if torch.equal(a, b)]
            assert not still, name

    @pytest.mark.parametrize(
        ("change", "message"),
        [({"judged_frames": 1}, "every frame"), ({"supervise_hallucinated": False}, "hallucinated")],
    )
    def test_other_objectives_are_refused(self, change, message):
        with pytest.raises(ConfigError, match=message):
            ReferenceTraining(self.with_objective(build_task(TINY), **change), OptimConfig())

    def test_a_relative_perceptual_distance_is_refused(self):
        task = build_task(TINY)
        task.objective.perceptual = PerceptualLoss(task.objective.perceptual.network, (0.2,) * 5, relative=True)
        with pytest.raises(ConfigError, match="relative=False"):
            ReferenceTraining(task, OptimConfig())

    def test_unknown_terms_are_refused(self):
        task = build_task(TINY)
        weights = replace(task.objective.config.weights, occlusion=1.0)
        with pytest.raises(ConfigError, match="occlusion"):
            ReferenceTraining(self.with_objective(task, weights=weights), OptimConfig())

    @staticmethod
    def with_objective(task, **changes):
        config = replace(task.objective.config, **changes)
        torch.manual_seed(0)
        objective = VideoObjective(config, task.spec.channels, task.objective.perceptual, DISFlow())
        return TeacherTask(task.generator, task.spec, objective, replace(task.config, objective=config))


class TestMaterial:
    def test_the_clip_has_the_street_recipes_conditions(self):
        clip, names = street_clip(TINY), street_spec().class_names
        assert clip.frames.shape == (1, 6, 3, 32, 64)
        assert {names[i] for i in clip.labels.unique().tolist()} >= {"sky", "road", "building"}
        assert street_spec().channels == 36

    def test_equal_settings_give_equal_weights_and_leave_the_generator_of_chance_alone(self):
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        first, second = (build_task(TINY).generator.state_dict() for _ in range(2))
        assert torch.equal(torch.rand(3), expected)
        assert all(torch.equal(first[name], second[name]) for name in first)

    def test_channels_last_and_half_precision_train_too(self):
        (report,) = reports("ours, bf16, channels last", replace(TINY, num_frames=3))
        assert report.seconds > 0
        assert report.peak_memory_mb > 10


class TestLossDifference:
    def test_it_is_the_greatest_relative_one(self):
        ours = [{"generator": {"gan": 1.0, "flow": 2.0}}]
        reference = [{"generator": {"gan": 0.9, "flow": 2.0}}]
        assert loss_difference(ours, reference) == pytest.approx(0.1)
        assert loss_difference(ours, ours) == 0

    def test_other_terms_are_refused(self):
        with pytest.raises(ConfigError, match="flow"):
            loss_difference([{"generator": {"gan": 1.0, "flow": 2.0}}], [{"generator": {"gan": 1.0}}])


class TestBenchmark:
    def test_the_result_file_holds_its_fields(self, tmp_path):
        settings = replace(TINY, num_frames=3)
        names = (BASELINE, "ours")
        result = measure(settings, [(32, 64)], names, 2, processes=multiprocessing.dummy)
        write_result(tmp_path / "training.json", result)
        loaded = load_result(tmp_path / "training.json")
        assert loaded.suite == "training"
        assert loaded.settings["size"] == [[32, 64]]
        assert [row["name"] for row in loaded.rows] == list(names)
        for row in loaded.rows:
            assert row["median"] > 0
            assert row["unit"] == "frames / s"
            assert row["speedup"] > 0
            assert row["peak_memory_mb"] >= row["resting_memory_mb"] > 0
            assert row["losses_equal"] is True
            assert (row["height"], row["width"], row["size"]) == (32, 64, "64x32")
        assert loaded.rows[0]["loss_difference"] == 0
        assert not unequal(loaded.rows)

    def test_groups_of_methods_take_turns_with_one_reference(self, monkeypatch):
        turns = []
        step = _Worker.step
        monkeypatch.setattr(_Worker, "step", lambda worker: (turns.append(worker.name), step(worker)))
        names = ("reference order, whole chunks", BASELINE, "ours", "ours, bf16")
        rows = training_benchmark(replace(TINY, num_frames=3), names, 1, at_once=3, processes=multiprocessing.dummy)
        first, second = (BASELINE, names[0], "ours"), ("ours, bf16",)
        assert turns == [*first, *first, *second, BASELINE, *second]
        assert [row["name"] for row in rows] == list(names)
        assert all(row["speedup"] > 0 for row in rows)

    def test_unequal_fp32_losses_are_told_and_rounding_of_bf16_is_not(self):
        row = {"name": "ours", "size": "64x32", "loss_difference": 0.01, "losses_equal": False, "precision": "fp32"}
        assert "1.0e-02" in unequal([row])[0]
        assert not unequal([row | {"precision": "bf16"}])

    def test_a_process_that_fails_tells_why(self):
        with pytest.raises(ConfigError, match="multiples of 4"):
            training_benchmark(replace(TINY, size=(30, 64)), ("ours",), 1, processes=multiprocessing.dummy)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"methods": ("theirs",)}, "choose from"),
            ({"repeats": 0}, "at least 1"),
            ({"methods": ()}, "named"),
            ({"at_once": 1}, "at least 2"),
        ],
    )
    def test_bad_arguments_are_refused(self, arguments, message):
        with pytest.raises(ConfigError, match=message):
            training_benchmark(TINY, **arguments)

    @pytest.mark.parametrize("change", [{"num_frames": 2}, {"threads": 0}, {"chunk_frames": 0}])
    def test_bad_settings_are_refused(self, change):
        with pytest.raises(ConfigError, match=r"at least 1|exceed"):
            replace(TINY, **change)
