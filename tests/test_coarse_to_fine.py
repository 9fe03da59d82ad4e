"""Several spatial scales in one step, and growing them."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from fastv2v.contracts import History
from fastv2v.errors import ConfigError, ShapeError
from fastv2v.nn.coarse_to_fine import CoarseToFineGenerator, FinestOnly, local_config, pyramid
from fastv2v.nn.composite import CompositeConfig, CompositeGenerator
from fastv2v.nn.generators import build_generator
from fastv2v.render import detach, rollout, start_history

CHANNELS, SIZE = 4, (32, 48)


def tiny(num_scales: int = 2, **changes) -> CoarseToFineGenerator:
    torch.manual_seed(0)
    settings = {"width": 8, "num_downsamples": 2, "num_blocks": 2, "num_local_blocks": 1, "norm": "instance", **changes}
    return build_generator(CompositeConfig(num_scales=num_scales, **settings), CHANNELS, (1,))


def clip(steps: int = 3, size=SIZE, batch: int = 1):
    torch.manual_seed(1)
    return torch.rand(batch, steps, CHANNELS, *size), torch.rand(batch, steps, 3, *size) * 2 - 1


def test_a_pyramid_leaves_the_padding_out_of_its_averages():
    x = torch.rand(2, 3, 4, 8, 6)
    coarse, fine = pyramid(x, 2)
    assert fine is x
    # An independent 3x3 average: sums over what lies inside, divided by how much that is.
    ones = torch.ones(1, 1, 8, 6)
    kernel = torch.ones(1, 1, 3, 3)
    sums = F.conv2d(x.reshape(-1, 1, 8, 6), kernel, stride=2, padding=1)
    assert_close(coarse, (sums / F.conv2d(ones, kernel, stride=2, padding=1)).reshape(2, 3, 4, 4, 3))
    assert [y.shape[-2:] for y in pyramid(x[:, 0], 3)] == [(2, 2), (4, 3), (8, 6)]


@pytest.mark.parametrize("num_scales", [2, 3])
def test_every_scale_keeps_a_history_of_its_own_frames(num_scales):
    generator = tiny(num_scales).eval()
    conditions, frames = clip()
    history = start_history(conditions[:, :2], frames[:, :2], 2)
    given = pyramid(history.frames, num_scales)
    with torch.no_grad():
        output, first = generator.step(conditions[:, 2], history)
        _, second = generator.step(conditions[:, 2], first)
    assert output.frame.shape == (1, 3, *SIZE)
    assert [x.shape[-2:] for x in first.coarse_frames] == [
        (SIZE[0] >> s, SIZE[1] >> s) for s in range(num_scales - 1, 0, -1)
    ]
    for before, after, later in zip(given, first.coarse_frames, second.coarse_frames, strict=False):
        assert_close(after[:, 0], before[:, 1])  # the older of two given frames has left
        assert_close(later[:, 0], after[:, 1])
        assert not torch.allclose(after[:, 1], F.avg_pool2d(before[:, 1], 1))
    reduced = pyramid(second.frames, num_scales)[0]
    assert (second.coarse_frames[0] - reduced).abs().max() > 1e-3  # own frames, not reduced fine ones


def test_the_finest_scale_takes_features_and_counts_flow_in_its_pixels():
    generator = tiny().eval()
    conditions, frames = clip()
    history = start_history(conditions[:, :2], frames[:, :2], 2)
    with torch.no_grad():
        output, _ = generator.step(conditions[:, 2], history)
        coarse_condition = pyramid(conditions[:, 2], 2)[0]
        coarse_history = History(pyramid(history.conditions, 2)[0], pyramid(history.frames, 2)[0], history.valid)
        _, features = generator.coarse.parts(coarse_condition, coarse_history)
        expected, _ = generator.local[0].parts(conditions[:, 2], history, features)
    for mine, theirs in zip(output, expected, strict=True):
        assert_close(mine, theirs)
    assert generator.local[0].config.scale == 1
    assert generator.local[0].config.width == 4


def test_coarse_scales_learn_through_the_features_alone_and_rest_while_fixed():
    generator = tiny()
    conditions, frames = clip()
    history = start_history(conditions[:, :2], frames[:, :2], 2)

    def learners(model) -> set[str]:
        output, _ = model.step(conditions[:, 2], history)
        parts = (output.frame, output.flow, output.occlusion, output.hallucinated)
        loss = torch.stack([x.square().mean() for x in parts]).sum()
        names = dict(generator.named_parameters())
        gradients = torch.autograd.grad(loss, list(names.values()), allow_unused=True)
        return {name for name, g in zip(names, gradients, strict=True) if g is not None}

    everything = {name for name, _ in generator.named_parameters()}
    heads = {
        n for n in everything if n.startswith(("coarse.image_head", "coarse.motion_head", "coarse.foreground_head"))
    }
    assert learners(generator) == everything - heads
    assert learners(FinestOnly(generator)) == {n for n in everything if n.startswith("local.0")}


def test_fixed_coarse_scales_do_not_change_the_frame():
    generator = tiny().eval()
    conditions, frames = clip()
    history = start_history(conditions[:, :2], frames[:, :2], 2)
    with torch.no_grad():
        free, _ = generator.step(conditions[:, 2], history)
        fixed, _ = FinestOnly(generator).step(conditions[:, 2], history)
    assert_close(fixed.frame, free.frame)


def test_rollouts_cut_gradients_at_every_scale():
    generator = tiny()
    conditions, frames = clip(5)
    history = start_history(conditions[:, :2], frames[:, :2], 2)
    _, after = generator.step(conditions[:, 2], history)
    assert after.coarse_frames[0].requires_grad
    assert not detach(after).coarse_frames[0].requires_grad
    outputs = list(rollout(generator, conditions[:, 2:], history))
    assert len(outputs) == 3


def test_a_start_from_nothing_hallucinates_at_every_scale():
    generator = tiny().eval()
    conditions, _ = clip()
    history = start_history(conditions[:, :0], None, 2, first_condition=conditions[:, 0])
    with torch.no_grad():
        output, _ = generator.step(conditions[:, 0], history)
    assert output.occlusion.min() == 1


def test_sizes_and_configs_are_checked():
    generator = tiny(3)
    assert generator.size_multiple == 16
    conditions, frames = clip(size=(40, 48))
    with pytest.raises(ShapeError, match="multiples of 16"):
        generator.step(conditions[:, 2], start_history(conditions[:, :2], frames[:, :2], 2))
    conditions, frames = clip()
    history = start_history(conditions[:, :2], frames[:, :2], 2)
    with pytest.raises(ShapeError, match="coarse frames"):
        generator.step(conditions[:, 2], history._replace(coarse_frames=(frames[:, :2],)))
    with pytest.raises(ConfigError, match="cannot be halved often enough"):
        tiny(3, width=6)
    with pytest.raises(ConfigError, match="full-size inputs"):
        tiny(input_scale=2)
    with pytest.raises(ConfigError, match="num_scales"):
        CompositeConfig(num_scales=0)
    with pytest.raises(ConfigError, match="at least 2"):
        CoarseToFineGenerator(CompositeConfig(width=8), CHANNELS)


def test_one_scale_is_the_composite_generator():
    assert isinstance(build_generator(CompositeConfig(width=8), CHANNELS), CompositeGenerator)


@pytest.mark.parametrize(("scale", "millions"), [(1, 2.880), (2, 0.860)])
def test_published_local_generators_have_their_counted_weights(scale, millions):
    # Street at 1024x512 and 2048x1024: 108 condition channels over three frames, six of past frames, foreground.
    config = local_config(CompositeConfig(num_scales=3), scale)
    with torch.device("meta"):
        generator = build_generator(CompositeConfig(num_scales=3), 36, (26,))
    count = sum(p.numel() for p in generator.local[scale - 1].parameters()) / 1e6
    assert count == pytest.approx(millions, abs=5e-4)
    assert config.width == 128 >> scale
