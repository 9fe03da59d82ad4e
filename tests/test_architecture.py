import json
from dataclasses import replace

import pytest
import torch

from fastv2v.architecture import Architecture, architecture_dict, foreground_channels, load_trained
from fastv2v.checkpoint import save_checkpoint
from fastv2v.config import from_dict, to_dict
from fastv2v.data.conditions import ConditionSpec
from fastv2v.errors import CheckpointError, ConfigError
from fastv2v.losses.objective import ObjectiveConfig
from fastv2v.nn.composite import CompositeConfig
from fastv2v.run import open_run

ARCHITECTURE = Architecture(
    generator=CompositeConfig(width=2, num_downsamples=2, num_blocks=2, norm="instance", input_scale=2),
    foreground=("car",),
    condition=ConditionSpec(class_names=("road", "car", "7"), use_instances=True, ignore_id=255),
    palette=((128, 64, 128), (0, 0, 142), (70, 130, 180)),
    size=(16, 32),
    stage="spatial",
    objective=to_dict(ObjectiveConfig()),
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
