import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from fastv2v.architecture import Architecture, architecture_dict, foreground_channels, load_trained
from fastv2v.checkpoint import save_checkpoint
from fastv2v.commands.export import keyframe_clip, training_commit
from fastv2v.commands.parts import check_condition, check_held_out, check_size, check_stage, data_of
from fastv2v.config import from_dict
from fastv2v.data.classes import preset_classes
from fastv2v.data.conditions import ConditionSpec
from fastv2v.data.folder import FolderConfig, open_folder
from fastv2v.data.transforms import GeometryConfig
from fastv2v.errors import CheckpointError, ConfigError, DataError
from fastv2v.nn.composite import CompositeConfig
from fastv2v.recipe import UNSET_ROOT
from fastv2v.run import open_run

ARCHITECTURE = Architecture(
    generator=CompositeConfig(width=2, num_downsamples=2, num_blocks=2, norm="instance", input_scale=2),
    foreground=("car",),
    condition=ConditionSpec(class_names=("road", "car", "7"), use_instances=True, ignore_id=255),
    palette=((128, 64, 128), (0, 0, 142), (70, 130, 180)),
    size=(16, 32),
    stage="spatial",
    folder=FolderConfig(
        root=UNSET_ROOT,
        use_instances=True,
        ignore_id=255,
        test_tail=4,
        geometry=GeometryConfig(mode="exact", size=(16, 32), interpolation="area"),
    ),
)


def write_checkpoint(run, step, architecture, *, ema=False, best=None):
    """A checkpoint as the training loop writes it; returns the generator whose weights should be delivered."""
    torch.manual_seed(step)
    live, average = ARCHITECTURE.build(), ARCHITECTURE.build()
    tensors = {"generator": live.state_dict()} | ({"ema": average.state_dict()} if ema else {})
    state = {
        "ema_player": "generator" if ema else None,
        "architecture": architecture,
        "best": {"step": best, "metric": "psnr", "value": 1.0} if best else None,
    }
    save_checkpoint(run / "checkpoints", step, tensors, state)
    return average if ema else live


def same_weights(a, b):
    return all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())


class TestArchitecture:
    def test_survives_json(self):
        plain = json.loads(json.dumps(architecture_dict(ARCHITECTURE)))
        assert from_dict(Architecture, plain) == ARCHITECTURE

    def test_builds_what_it_describes(self):
        generator = ARCHITECTURE.build()
        assert generator.config == ARCHITECTURE.generator
        assert generator.condition_channels == 4
        assert generator.foreground_channels == (1,)

    def test_an_unknown_foreground_class_is_named(self):
        with pytest.raises(ConfigError, match="unknown foreground class 'tram'; the condition has road, car, 7"):
            replace(ARCHITECTURE, foreground=("tram",)).build()


class TestForegroundChannels:
    @pytest.mark.parametrize(
        ("names", "expected"), [((), ()), (("car", "road"), (1, 0)), (("0", "1"), (0, 1)), (("7",), (2,))]
    )
    def test_names_win_over_ids(self, names, expected):
        assert foreground_channels(ARCHITECTURE.condition, names) == expected

    @pytest.mark.parametrize("name", ["3", "-1", "²", ""])
    def test_what_is_neither_is_refused(self, name):
        with pytest.raises(ConfigError, match="unknown foreground class"):
            foreground_channels(ARCHITECTURE.condition, (name,))

    def test_a_map_condition_has_no_classes(self):
        with pytest.raises(ConfigError, match="no classes"):
            foreground_channels(ConditionSpec(kind="maps", map_channels=3), ("0",))


class TestLoadTrained:
    @pytest.mark.parametrize("ema", [True, False])
    def test_averaged_weights_are_delivered_where_they_are_kept(self, tmp_path, ema):
        expected = write_checkpoint(tmp_path, 10, architecture_dict(ARCHITECTURE), ema=ema)
        trained = load_trained(tmp_path)
        assert same_weights(trained.generator, expected)
        assert not trained.generator.training
        assert trained.architecture == ARCHITECTURE
        assert (trained.step, trained.checkpoint.name) == (10, "step-00000010")

    def test_latest_unless_told_or_one_by_name(self, tmp_path):
        described = architecture_dict(ARCHITECTURE)
        first = write_checkpoint(tmp_path, 10, described, best=10)
        second = write_checkpoint(tmp_path, 20, described, best=10)
        assert same_weights(load_trained(tmp_path).generator, second)
        assert same_weights(load_trained(tmp_path, "best").generator, first)
        assert same_weights(load_trained(tmp_path / "checkpoints/step-00000010").generator, first)

    @pytest.mark.parametrize("described", [{}, {"generator": {"width": 2}}, {"colour": "red"}])
    def test_a_checkpoint_that_describes_no_generator_is_refused(self, tmp_path, described):
        write_checkpoint(tmp_path, 10, described)
        with pytest.raises(CheckpointError, match="does not describe a generator of this version"):
            load_trained(tmp_path)

    def test_weights_of_another_architecture_are_refused(self, tmp_path):
        wider = replace(ARCHITECTURE, generator=replace(ARCHITECTURE.generator, width=3))
        write_checkpoint(tmp_path, 10, architecture_dict(wider))
        with pytest.raises(CheckpointError, match="another architecture"):
            load_trained(tmp_path)

    def test_a_run_without_a_checkpoint_is_refused(self, tmp_path):
        with open_run(tmp_path / "run", {}):
            pass
        with pytest.raises(CheckpointError, match="neither a complete checkpoint nor a run"):
            load_trained(tmp_path / "run")


def make_data(root, parts=("train",), frames=10):
    """Frames of brightness t with label maps of class 0."""
    for part in parts:
        for name, image in (("A", np.zeros((16, 32), np.uint8)), ("B", np.zeros((16, 32, 3), np.uint8))):
            folder = root / f"{part}_{name}" / "drive"
            folder.mkdir(parents=True)
            for t in range(frames):
                cv2.imwrite(str(folder / f"{t:03d}.png"), image if name == "A" else image + t)
    return root


def trained_on(**folder):
    """An architecture whose run read its data so."""
    config = FolderConfig(root=UNSET_ROOT, geometry=ARCHITECTURE.folder.geometry, **folder)
    names = preset_classes(config.classes).names if config.classes else ("0", "1", "2")
    return replace(ARCHITECTURE, foreground=(), condition=ConditionSpec(class_names=names), folder=config)


class TestDataOf:
    def test_the_split_is_that_of_the_run(self, tmp_path):
        root, run = make_data(tmp_path), trained_on(test_tail=3)
        train, test = (open_folder(data_of(run, root, phase)) for phase in ("train", "test"))
        assert (train.lengths, test.lengths) == ((7,), (3,))
        assert not set(train.sequences[0].files["frames"]) & set(test.sequences[0].files["frames"])
        assert open_folder(data_of(run, root, "test", test_tail=2)).sequences[0].stems == ("008", "009")

    @pytest.mark.parametrize("tail", [0, 4])
    def test_a_tail_that_was_trained_on_is_refused(self, tmp_path, tail):
        with pytest.raises(ConfigError, match="must lie in 1 to 3"):
            data_of(trained_on(test_tail=3), make_data(tmp_path), "test", test_tail=tail)

    def test_a_run_that_saw_everything_has_no_test_part(self, tmp_path):
        with pytest.raises(ConfigError, match="no held-out part"):
            data_of(trained_on(), make_data(tmp_path), "test")

    def test_test_folders_hold_out_by_themselves(self, tmp_path):
        root = make_data(tmp_path, ("train", "test"))
        assert open_folder(data_of(trained_on(), root, "test")).lengths == (10,)
        with pytest.raises(ConfigError, match="leave it out"):
            data_of(trained_on(test_tail=3), root, "test", test_tail=2)

    def test_no_data_at_all_is_named_as_such(self, tmp_path):
        with pytest.raises(DataError, match="no such data set"):
            open_folder(data_of(trained_on(), tmp_path / "nowhere", "test"))

    def test_classes_of_a_preset_keep_their_names(self, tmp_path):
        run = trained_on(classes="camvid", test_tail=2)
        check_condition(run, open_folder(data_of(run, make_data(tmp_path), "test")), "run")

    def test_a_counted_number_of_classes_stays(self, tmp_path):
        folder = open_folder(data_of(trained_on(test_tail=2), make_data(tmp_path), "test"))
        assert folder.spec.num_classes == 3  # the label maps hold class 0 only

    def test_chance_is_taken_out_and_the_rest_kept(self, tmp_path):
        geometry = GeometryConfig(mode="randomScaleHeight_and_crop", load_size=64, fine_size=32, interpolation="area")
        run = replace(ARCHITECTURE, folder=replace(ARCHITECTURE.folder, geometry=geometry))
        read = data_of(run, tmp_path, "train").geometry
        assert (read.mode, read.load_size, read.interpolation) == ("scaleHeight", 32, "area")

    def test_an_architecture_names_no_place(self, tmp_path):
        with pytest.raises(ConfigError, match="names no root"):
            replace(ARCHITECTURE, folder=replace(ARCHITECTURE.folder, root=tmp_path))


class TestChecks:
    def test_stage(self, tmp_path):
        write_checkpoint(tmp_path, 10, architecture_dict(ARCHITECTURE))
        trained = load_trained(tmp_path)
        check_stage(trained, ("spatial", "temporal"), "the student", "a run of train-skd")
        with pytest.raises(ConfigError, match="student of the spatial stage and cannot be the teacher; give a run of"):
            check_stage(trained, ("teacher",), "the teacher", "a run of train-teacher")

    def test_size(self):
        generator = ARCHITECTURE.build()
        check_size(generator, (16, 32), "the student")
        with pytest.raises(
            ConfigError, match=f"18x32 do not suit the student.* multiples of {generator.size_multiple}"
        ):
            check_size(generator, (18, 32), "the student")

    def test_frames_too_small_for_a_network_are_refused_before_it_is_trained(self):
        deep = replace(ARCHITECTURE, generator=replace(ARCHITECTURE.generator, num_downsamples=3)).build()
        deep.train()
        before = {name: value.clone() for name, value in deep.state_dict().items()}
        check_size(deep, (32, 32), "the student")
        with pytest.raises(ConfigError, match=r"8x32 are too small for the student .*; change --recipe"):
            check_size(deep, (8, 32), "the student")
        assert deep.training
        assert all(torch.equal(value, before[name]) for name, value in deep.state_dict().items())

    def test_held_out_length(self, tmp_path):
        clip = keyframe_clip(open_folder(data_of(trained_on(), make_data(tmp_path), "train")), 3, 16)
        check_held_out([], 9, "")
        check_held_out([clip], 4, "")
        with pytest.raises(ConfigError, match="4 frames and scoring needs at least 5; wait"):
            check_held_out([clip], 5, "wait")


class TestExportParts:
    def test_keyframes_are_spaced_and_from_the_training_part(self, tmp_path):
        folder = open_folder(data_of(trained_on(test_tail=2), make_data(tmp_path), "train"))
        assert keyframe_clip(folder, 3, 16).info[0].names == ("000", "003", "006")
        assert keyframe_clip(folder, 3, 2).num_frames == 2
        with pytest.raises(DataError, match="at least 9"):
            keyframe_clip(folder, 8, 16)

    def test_the_commit_is_that_of_the_run(self, tmp_path):
        checkpoint = tmp_path / "checkpoints" / "step-00000010"
        assert training_commit(checkpoint) is None
        (tmp_path / "environment.json").write_text('{"commit": "abc123"}')
        assert training_commit(checkpoint) == "abc123"
        (tmp_path / "environment.json").write_text("{")
        with pytest.raises(CheckpointError, match="no JSON object"):
            training_commit(checkpoint)
