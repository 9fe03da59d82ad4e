import importlib.util
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from distill.temporal import TemporalConfig
from distill.terms import judged_distance, map_distance, video_distance
from fastv2v.errors import CheckpointError, ConfigError, MissingExtraError, ShapeError
from fastv2v.losses.objective import ObjectiveConfig
from fastv2v.nn import video_features
from fastv2v.nn.discriminator import DiscriminatorConfig, MultiScaleDiscriminator
from fastv2v.nn.video_features import VideoFeatures, build_video_network

has_torchvision = pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None, reason="torchvision (extra raft) is not installed"
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """State dicts of torchvision's networks with fresh weights, by kind."""
    folder = tmp_path_factory.mktemp("weights")
    for kind in ("r3d18", "s3d"):
        torch.manual_seed(0)
        torch.save(build_video_network(kind).state_dict(), folder / f"{kind}.pth")
    return folder


@pytest.fixture(scope="module")
def r3d(weights):
    return VideoFeatures("r3d18", weights / "r3d18.pth")


def frames(count, side=32, seed=0):
    return torch.rand(1, count, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@has_torchvision
class TestVideoFeatures:
    @pytest.mark.parametrize(
        ("kind", "channels", "sizes"),
        [("r3d18", [64, 128, 256, 512], [56, 28, 14, 7]), ("s3d", [192, 480, 832, 1024], [56, 28, 14, 7])],
    )
    def test_four_maps_with_gradients_to_the_frames_and_none_to_the_weights(self, weights, kind, channels, sizes):
        network = VideoFeatures(kind, weights / f"{kind}.pth").train()
        window = frames(2).requires_grad_()
        maps = network(window)
        assert [m.shape[1] for m in maps] == channels
        assert [m.shape[-1] for m in maps] == sizes
        (gradient,) = torch.autograd.grad(sum(m.mean() for m in maps), window)
        assert (gradient.flatten(2).abs().amax(2) > 0).all()
        assert not any(p.requires_grad for p in network.parameters())
        assert not any(m.training for m in network.modules())

    def test_frames_are_normalised_as_the_network_was_trained_and_time_is_seen(self, r3d):
        seen = []
        r3d.network.stem.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        window = frames(2, side=112)
        forward = r3d(window)[-1]
        # Its documented normalisation of pictures in [0, 1].
        mean, deviation = torch.tensor([0.43216, 0.394666, 0.37645]), torch.tensor([0.22803, 0.22145, 0.216989])
        expected = ((window + 1) / 2 - mean.view(3, 1, 1)) / deviation.view(3, 1, 1)
        assert_close(seen[0], expected.transpose(1, 2), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(forward, r3d(window.flip(1))[-1], atol=1e-4)
        assert torch.equal(forward, r3d(window)[-1])

    def test_it_agrees_with_the_classifier_of_torchvision(self, r3d):
        window = frames(2, side=112)
        pooled = r3d(window)[-1].mean(dim=(2, 3, 4))
        whole = r3d.network((window.transpose(1, 2) - r3d.mean) / r3d.deviation)
        assert_close(r3d.network.fc(pooled), whole, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("shape", [(1, 3, 32, 32), (1, 4, 1, 32, 32), (1, 0, 3, 32, 32)])
    def test_other_layouts_are_refused(self, r3d, shape):
        with pytest.raises(ShapeError, match=r"is \(B, K, 3, H, W\), got"):
            r3d(torch.zeros(shape))

    def test_other_weights_are_refused_with_the_option_to_change(self, weights, tmp_path):
        for path in (weights / "s3d.pth", tmp_path / "missing.pth"):
            with pytest.raises(CheckpointError, match=r"r3d_18 for --recipe\.task\.temporal-weights"):
                VideoFeatures("r3d18", path)

    def test_equal_windows_are_no_distance_apart_and_gradients_reach_the_student(self, r3d):
        student = frames(2, seed=1).requires_grad_()
        assert video_distance(r3d, frames(2), frames(2)).item() == 0
        distance = video_distance(r3d, student, frames(2))
        assert distance.item() > 0
        assert torch.autograd.grad(distance, student)[0].abs().sum() > 0


def test_torchvision_is_needed_only_where_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match="temporal-features s3d needs torchvision: pip install torchvision"):
        video_features.build_video_network("s3d")
    code = "import sys, fastv2v.nn.video_features; assert 'torchvision' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


class TestDistances:
    def test_layers_and_samples_count_alike(self):
        goal = torch.tensor([[1.0, -1.0], [4.0, 4.0]])
        made = torch.tensor([[1.0, 1.0], [2.0, 4.0]])  # wrong by 1 of 1 and by 1 of 4
        assert map_distance([made], [goal]).item() == pytest.approx((1 + 1 / 4) / 2)
        assert map_distance([made, 100 * made], [goal, 100 * goal]).item() == pytest.approx((1 + 1 / 4) / 2)

    def test_a_discriminator_sees_every_run_of_frames_with_the_flow_between_them(self):
        seen = []

        def judge(x):
            seen.append(x)
            return [[x, x * 2, x.mean((1, 2, 3))]]  # two maps and the scores, which do not count

        student = torch.arange(4.0).view(1, 4, 1, 1, 1).expand(1, 4, 3, 2, 2)
        flow = torch.tensor([20.0, 40, 60]).view(1, 3, 1, 1, 1).expand(1, 3, 2, 2, 2)
        distance = judged_distance(judge, student, student, flow, 3)
        assert distance.item() == 0
        assert seen[0][:, :, 0, 0].tolist() == [
            [0, 0, 0, 1, 1, 1, 2, 2, 2, 1, 1, 2, 2],
            [1, 1, 1, 2, 2, 2, 3, 3, 3, 2, 2, 3, 3],
        ]

    def test_it_has_nothing_to_say_before_its_window_is_full(self):
        judge = MultiScaleDiscriminator(13, DiscriminatorConfig(width=2, num_layers=1, num_scales=1, norm="instance"))
        judge.eval().requires_grad_(False)
        student = frames(4, side=16, seed=1).requires_grad_()
        flow = torch.zeros(1, 3, 2, 16, 16)
        early = judged_distance(judge, student[:, :2], frames(2, side=16), flow[:, :1], 3)
        assert early.item() == 0
        assert not early.requires_grad
        full = judged_distance(judge, student, frames(4, side=16), flow, 3)
        assert (torch.autograd.grad(full, student)[0].flatten(2).abs().amax(2) > 0).all()


class TestConfig:
    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"temporal_features": "i3d"}, "temporal_features is one of perceptual, discriminator, both, r3d18, s3d"),
            ({"temporal_features": "r3d18"}, "needs --recipe.task.temporal-weights FILE"),
            ({"temporal_weights": "r3d.pth"}, "belong to temporal_features r3d18 or s3d"),
            ({"temporal_features": "both", "window": 2}, "sees 3 keyframes at once and the window has 2"),
            ({"lead_in": -1}, "lead_in must be at least 0"),
        ],
    )
    def test_nonsense_is_refused(self, wrong, message):
        with pytest.raises(ConfigError, match=message):
            replace(TemporalConfig(objective=ObjectiveConfig(temporal_window=3)), **wrong)
