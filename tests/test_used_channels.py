"""Channels of a condition that are zero everywhere: left out of convolutions in training, without a trace."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close

from fastv2v.nn.blocks import DownPath, used_channels
from fastv2v.nn.discriminator import DiscriminatorConfig, MultiScaleDiscriminator

SIZE = (32, 32)


def condition(channels=8, used=(1, 4, 6), batch=2):
    """Noise of either sign in the channels used, one of them for one picture only."""
    torch.manual_seed(0)
    maps = torch.zeros(batch, channels, *SIZE)
    maps[:, list(used)] = torch.randn(batch, len(used), *SIZE)
    maps[0, used[0]] = 0
    maps[:, used[-1]] = -maps[:, used[-1]].abs()
    return maps


def outcome(module, run):
    """What comes out, and the gradients of every weight."""
    module.zero_grad()
    found = run()
    sum(x.square().sum() for x in found).backward()
    return [x.detach() for x in found], {name: p.grad for name, p in module.named_parameters()}


def dense(monkeypatch):
    for place in ("blocks", "discriminator"):
        monkeypatch.setattr(f"fastv2v.nn.{place}.used_channels", lambda x: None)


class TestUsedChannels:
    def test_those_of_any_picture_and_either_sign(self):
        assert used_channels(condition()).tolist() == [1, 4, 6]

    def test_not_a_number_is_not_zero(self):
        maps = condition()
        maps[1, 3, 2, 2] = torch.nan
        assert used_channels(maps).tolist() == [1, 3, 4, 6]

    def test_all_are_taken_where_little_can_be_left_out(self):
        assert used_channels(condition(used=range(6))).tolist() == list(range(6))
        assert used_channels(condition(used=range(7))) is None
        assert used_channels(torch.zeros(1, 8, 4, 4)) is None

    def test_all_are_taken_where_the_input_wants_gradients_or_nothing_does(self):
        assert used_channels(condition().requires_grad_()) is None
        with torch.no_grad():
            assert used_channels(condition()) is None

    def test_tensors_without_values_are_taken_whole(self):
        with FakeTensorMode():
            assert used_channels(torch.zeros(1, 8, 4, 4)) is None
        assert used_channels(torch.zeros(1, 8, 4, 4, device="meta")) is None


class TestDownPath:
    def test_nothing_changes_but_the_work(self, monkeypatch):
        path = DownPath(8, 4, 2, norm="instance").train()
        maps, seen = condition(), []
        path[0][0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
        found, gradients = outcome(path, lambda: [path(maps)])
        dense(monkeypatch)
        expected, wanted = outcome(path, lambda: [path(maps)])
        assert seen == [3, 8]
        assert_close(found, expected)
        assert_close(gradients, wanted)
        assert not gradients["0.1.weight"][:, [0, 2, 3, 5, 7]].any()

    def test_outside_training_all_channels_are_seen(self):
        path, seen = DownPath(8, 4, 1, norm="none").eval(), []
        path[0][0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
        path(condition())
        assert seen == [8]


@pytest.mark.parametrize("num_scales", [1, 2])
def test_a_discriminator_judges_the_same(num_scales, monkeypatch):
    net = MultiScaleDiscriminator(11, DiscriminatorConfig(width=4, num_scales=num_scales, norm="instance")).train()
    pictures = [torch.randn(2, 3, *SIZE) for _ in range(2)]

    def judge():
        return [x for features in net.judge(condition(), pictures) for scale in features for x in scale]

    found, gradients = outcome(net, judge)
    dense(monkeypatch)
    expected, wanted = outcome(net, judge)
    assert_close(found, expected)
    assert_close(gradients, wanted, atol=1e-4, rtol=1e-4)
