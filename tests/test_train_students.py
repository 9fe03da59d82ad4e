"""``train-skd`` and ``train-tkd`` from their arguments: with a teacher, without one, and what they refuse."""

import json
from dataclasses import replace

import pytest
import torch

from distill.terms import DistillWeights
from fastv2v.checkpoint import latest_checkpoint, load_tensors, weights_file
from fastv2v.commands import train
from fastv2v.commands.train import TrainSpatial, TrainTeacher, TrainTemporal
from fastv2v.data.world import WorldConfig
from fastv2v.data.world.write import write_world
from fastv2v.device import DeviceConfig
from fastv2v.errors import ConfigError
from teachers import presets as teachers


def tiny(recipe, steps=0, frames=9):
    """A preset on small frames; after 0 steps the initial weights are saved."""
    folder = replace(recipe.data.folder, geometry=replace(recipe.data.folder.geometry, size=(32, 64)))
    sampling = replace(recipe.data.sampling, num_frames=frames)
    return replace(
        recipe,
        data=replace(recipe.data, folder=folder, sampling=sampling, batch_size=1, eval_frames=9),
        train=replace(recipe.train, steps=steps, max_minutes=None, sample_every=0, eval_every=0),
        device=DeviceConfig(cpu=True, precision="fp32"),
    )


def spatial(steps=0, **task):
    recipe = tiny(train.spatial_presets()["demo"][1], steps)
    return replace(recipe, task=replace(recipe.task, **task))


def temporal(steps=0, frames=9, **task):
    recipe = tiny(train.temporal_presets()["demo"][1], steps, frames)
    gap = replace(recipe.task.gap, smallest=2, largest=3)
    return replace(recipe, task=replace(recipe.task, **{"gap": gap, **task}))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A world, a teacher and a student of the spatial stage, all untrained."""
    out = tmp_path_factory.mktemp("students")
    write_world(out / "world", WorldConfig(size=(32, 64), num_frames=12), train_clips=1, test_clips=1, num_workers=1)
    data = {"data": out / "world", "quiet": True}
    train.train_teacher(TrainTeacher(**data, run=out / "teacher", recipe=tiny(teachers.demo())))
    train.train_spatial(TrainSpatial(**data, teacher=out / "teacher", run=out / "skd", recipe=spatial()))
    return out


def players(run):
    folder = latest_checkpoint(run)
    return {name: load_tensors(folder / f"{name}.safetensors") for name in ("generator", "image_discriminator")}


def equal(one, two):
    return all(torch.equal(one[name], two[name]) for name in one)


class TestWithoutTeacher:
    def test_the_same_student_is_trained_alone_with_fresh_discriminators(self, made, tmp_path, caplog):
        arguments = {"data": made / "world", "run": tmp_path / "alone", "quiet": True}
        train.train_spatial(TrainSpatial(**arguments, recipe=spatial()))
        assert "no --teacher: the student is trained alone, without kd_reconstruction" in caplog.text
        teacher, distilled, alone = (players(run) for run in (made / "teacher", made / "skd", tmp_path / "alone"))
        assert equal(distilled["generator"], alone["generator"])  # the same initial weights
        assert equal(distilled["image_discriminator"], teacher["image_discriminator"])
        assert not equal(alone["image_discriminator"], teacher["image_discriminator"])
        config = json.loads((tmp_path / "alone" / "config.json").read_text())
        assert config["teacher"] is None
        assert not any(config["recipe"]["task"]["weights"].values())
        # One step of both stages, no teacher anywhere.
        train.train_spatial(TrainSpatial(**arguments, recipe=spatial(1), overwrite=True))
        arguments["run"] = tmp_path / "alone-tkd"
        train.train_temporal(TrainTemporal(**arguments, student=tmp_path / "alone", recipe=temporal(1)))
        assert not equal(players(tmp_path / "alone-tkd")["generator"], players(tmp_path / "alone")["generator"])

    def test_the_foreground_of_the_preset_is_painted_as_the_teachers_would_be(self):
        presets = train.spatial_presets()
        assert presets["street"][1].foreground == teachers.PRESETS["street"]().foreground == ("car",)
        assert presets["demo"][1].foreground == ()


class TestWindowNetworks:
    def test_the_teachers_temporal_discriminator_is_read_and_frozen(self, made, monkeypatch):
        seen = []
        monkeypatch.setattr(train, "TemporalTask", lambda *a, video, **k: seen.append(video))
        monkeypatch.setattr(train, "_fit", lambda *a, **k: None)
        weights = DistillWeights(kd_temporal=1.0)
        recipe = temporal(temporal_features="both", weights=weights)
        arguments = {"data": made / "world", "run": made / "unused", "student": made / "skd"}
        train.train_temporal(TrainTemporal(**arguments, teacher=made / "teacher", recipe=recipe))
        (judge,) = seen
        saved = load_tensors(weights_file(latest_checkpoint(made / "teacher"), "temporal_discriminator_0"))
        assert equal(dict(judge.state_dict()), saved)
        assert not judge.training
        assert not any(p.requires_grad for p in judge.parameters())
        for other in ({"temporal_features": "perceptual"}, {"weights": recipe.task.weights.none()}):
            recipe = temporal(**{"temporal_features": "both", "weights": weights, **other})
            train.train_temporal(TrainTemporal(**arguments, teacher=made / "teacher", recipe=recipe))
        assert seen[1:] == [None, None]

    def test_a_teacher_without_one_is_refused(self, made, tmp_path):
        recipe = tiny(teachers.demo())
        weights = replace(recipe.task.objective.weights, temporal_gan=0, temporal_feature_matching=0)
        objective = replace(recipe.task.objective, weights=weights)
        recipe = replace(recipe, task=replace(recipe.task, objective=objective))
        data = {"data": made / "world", "quiet": True}
        train.train_teacher(TrainTeacher(**data, run=tmp_path / "teacher", recipe=recipe))
        with pytest.raises(
            ConfigError, match=r"the teacher .* has none; use --recipe.task.temporal-features perceptual"
        ):
            train.train_temporal(
                TrainTemporal(
                    **data,
                    teacher=tmp_path / "teacher",
                    student=made / "skd",
                    run=tmp_path / "tkd",
                    recipe=temporal(temporal_features="discriminator", weights=DistillWeights(kd_temporal=1.0)),
                )
            )


class TestGaps:
    def test_adaptive_gaps_are_measured_on_the_training_conditions_and_recorded(self, made, tmp_path):
        gap = replace(temporal().task.gap, adaptive=True, largest=4)
        arguments = {"data": made / "world", "quiet": True, "student": made / "skd", "teacher": made / "teacher"}
        train.train_temporal(TrainTemporal(**arguments, run=tmp_path / "tkd", recipe=temporal(gap=gap)))
        config = json.loads((tmp_path / "tkd" / "config.json").read_text())["recipe"]["task"]["gap"]
        assert not config["adaptive"]
        assert sum(config["probabilities"]) == pytest.approx(1, abs=1e-3)
        assert len(config["probabilities"]) <= 4


class TestRefusals:
    def arguments(self, made, **more):
        return {"data": made / "world", "quiet": True, "teacher": made / "teacher", "run": made / "refused", **more}

    def test_a_gap_longer_than_the_clip(self, made):
        arguments = self.arguments(made, student=made / "skd")
        with pytest.raises(Exception, match="a clip of 5 frames is too short for keyframes 3 frames apart"):
            gap = replace(temporal().task.gap, smallest=3)
            train.train_temporal(TrainTemporal(**arguments, recipe=temporal(frames=5, gap=gap)))
        with pytest.raises(ConfigError, match="a held-out clip has 9 frames and scoring needs at least 12"):
            train.train_temporal(TrainTemporal(**arguments, recipe=temporal(deployed_gap=11)))

    def test_a_size_that_does_not_divide(self, made):
        recipe = spatial()
        recipe = replace(recipe, student=replace(recipe.student, widths=(4,) * 5, depths=(1,) * 5, up_depths=(1,) * 4))
        with pytest.raises(ConfigError, match=r"frames of 32x64 do not suit the student: .* multiples of 64"):
            train.train_spatial(TrainSpatial(**self.arguments(made), recipe=recipe))

    def test_another_history_length(self, made):
        recipe = spatial()
        recipe = replace(recipe, student=replace(recipe.student, history_length=3))
        with pytest.raises(ConfigError, match="look back equally far, got 2 and 3 past frames"):
            train.train_spatial(TrainSpatial(**self.arguments(made), recipe=recipe))

    def test_other_classes(self, made):
        recipe = spatial()
        folder = replace(recipe.data.folder, use_instances=not recipe.data.folder.use_instances)
        recipe = replace(recipe, data=replace(recipe.data, folder=folder))
        with pytest.raises(ConfigError, match=r"the teacher .* was trained on another condition"):
            train.train_spatial(TrainSpatial(**self.arguments(made), recipe=recipe))
