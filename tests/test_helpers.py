import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distill.temporal import TemporalConfig, TemporalTask
from distill.terms import DistillWeights
from fastv2v.checkpoint import save_checkpoint
from fastv2v.commands.parts import build_flow, build_objective, continue_discriminators
from fastv2v.data.conditions import ConditionSpec
from fastv2v.device import DeviceConfig, open_device
from fastv2v.errors import CheckpointError, ConfigError, DataError, MissingExtraError
from fastv2v.losses.objective import LossWeights, ObjectiveConfig, VideoObjective, face_discriminator_like
from fastv2v.nn.composite import CompositeConfig, CompositeGenerator
from fastv2v.nn.discriminator import DiscriminatorConfig
from fastv2v.ops.flow import DISFlow, FilesFlow, TwoWayFlow
from fastv2v.recipe import HelperRecipe

SMALL = DiscriminatorConfig(width=2, num_layers=1, num_scales=2, norm="batch")
CONFIG = ObjectiveConfig(
    weights=LossWeights(perceptual=0.0), image_discriminator=SMALL, temporal_discriminator=SMALL, temporal_scales=2
)


@pytest.fixture
def device():
    return open_device(DeviceConfig(cpu=True, precision="fp32"))


def objective(config, seed):
    torch.manual_seed(seed)
    return VideoObjective(config, 6, None, DISFlow())


def grown(config, scales):
    larger = replace(config.image_discriminator, num_scales=scales)
    return replace(config, image_discriminator=larger, temporal_discriminator=larger)


def saved(target, folder):
    """Save the discriminators as a checkpoint does."""
    return save_checkpoint(folder, 1, {name: net.state_dict() for name, net in target.discriminators.items()}, {})


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class TestContinueDiscriminators:
    def test_all_weights_continue(self, tmp_path):
        old, new = objective(CONFIG, 0), objective(CONFIG, 1)
        continue_discriminators(new, saved(old, tmp_path))
        assert same(old.discriminators, new.discriminators)

    def test_another_shape_or_a_missing_one_is_refused(self, tmp_path):
        checkpoint = saved(objective(CONFIG, 0), tmp_path)
        with pytest.raises(CheckpointError, match=r"image_discriminator.*missing"):
            continue_discriminators(objective(grown(CONFIG, 3), 1), checkpoint)
        with pytest.raises(CheckpointError, match="holds no temporal_discriminator_2"):
            continue_discriminators(objective(replace(CONFIG, temporal_scales=3), 1), checkpoint)

    def test_a_grown_discriminator_keeps_its_coarse_scales(self, tmp_path, caplog):
        old, new, untouched = objective(CONFIG, 0), objective(grown(CONFIG, 3), 1), objective(grown(CONFIG, 3), 1)
        with caplog.at_level(logging.INFO):
            continue_discriminators(new, saved(old, tmp_path), grown=True)
        for name in old.discriminators:
            nets = new.discriminators[name].nets
            assert same(nets[:2], old.discriminators[name].nets)
            assert same(nets[2], untouched.discriminators[name].nets[2])
            assert f"{name}: 2 scales continue, the finest 1 are new" in caplog.text

    def test_new_discriminators_stay_fresh_when_growing(self, tmp_path, caplog):
        larger = replace(CONFIG, face_discriminator=face_discriminator_like(SMALL), temporal_scales=3)
        old, new, untouched = objective(CONFIG, 0), objective(larger, 1), objective(larger, 1)
        with caplog.at_level(logging.INFO):
            continue_discriminators(new, saved(old, tmp_path), grown=True)
        for name in ("face_discriminator", "temporal_discriminator_2"):
            assert same(new.discriminators[name], untouched.discriminators[name])
            assert f"{name} is new" in caplog.text
        assert same(new.discriminators["temporal_discriminator_1"], old.discriminators["temporal_discriminator_1"])

    @pytest.mark.parametrize(
        "other", [{"width": 3}, {"num_layers": 2}, {"num_scales": 1}, {"width": 1, "num_scales": 3}]
    )
    def test_shared_scales_must_fit(self, other, tmp_path):
        checkpoint = saved(objective(CONFIG, 0), tmp_path)
        config = replace(CONFIG, image_discriminator=replace(SMALL, **other))
        with pytest.raises(CheckpointError, match="image_discriminator"):
            continue_discriminators(objective(config, 1), checkpoint, grown=True)

    def test_published_widths_fit_when_the_width_is_halved_with_each_scale(self, tmp_path):
        narrow = replace(SMALL, width=32, coarse_widths=True)
        wide = replace(narrow, width=16, num_scales=3)
        old, new = (objective(replace(CONFIG, image_discriminator=c, temporal_scales=0), 0) for c in (narrow, wide))
        continue_discriminators(new, saved(old, tmp_path), grown=True)
        name = "image_discriminator"
        assert same(new.discriminators[name].nets[:2], old.discriminators[name].nets)


class TestFlow:
    def test_estimators_by_name(self, device):
        assert build_flow(HelperRecipe(flow="ultrafast"), device).preset == "ultrafast"
        assert isinstance(build_flow(HelperRecipe(flow="files"), device), FilesFlow)
        two_way = build_flow(HelperRecipe(flow="fast", flow_confidence="both"), device)
        assert isinstance(two_way, TwoWayFlow)
        assert isinstance(two_way.estimator, DISFlow)

    def test_flow_files_reach_the_objective(self, device):
        spec = ConditionSpec(kind="maps", map_channels=6)
        target = build_objective(replace(CONFIG, weights=LossWeights()), spec, HelperRecipe(flow="files"), device)
        flow = torch.rand(1, 1, 2, 16, 16)
        assert target.reference(torch.zeros(1, 2, 6, 16, 16), torch.zeros(1, 2, 3, 16, 16), flow).flow is flow
        with pytest.raises(DataError, match="these frames carry none"):
            target.reference(torch.zeros(1, 2, 6, 16, 16), torch.zeros(1, 2, 3, 16, 16))

    def test_temporal_distillation_refuses_files(self):
        generator = CompositeGenerator(CompositeConfig(width=2, num_downsamples=1, num_blocks=2), 6, ())
        target = VideoObjective(CONFIG, 6, None, FilesFlow())
        spec = ConditionSpec(kind="maps", map_channels=6)
        with pytest.raises(ConfigError, match="needs flow across keyframe gaps and flow files hold neighbouring"):
            TemporalTask(generator, generator, spec, target, TemporalConfig(weights=DistillWeights(kd_perceptual=0.0)))

    def test_settings_that_contradict_each_other_are_refused(self):
        with pytest.raises(ConfigError, match="raft_weights belong to flow raft-small or raft-large"):
            HelperRecipe(raft_weights=Path("raft.pth"))
        with pytest.raises(ConfigError, match="flow files hold one direction only"):
            HelperRecipe(flow="files", flow_confidence="both")

    def test_weights_that_do_not_exist_are_named(self, device):
        with pytest.raises((CheckpointError, MissingExtraError), match=r"nowhere\.pth|pip install torchvision"):
            build_flow(HelperRecipe(flow="raft-small", raft_weights=Path("nowhere.pth")), device)
