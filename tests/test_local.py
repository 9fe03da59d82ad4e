import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fastv2v.contracts import History
from fastv2v.errors import ConfigError, ShapeError
from fastv2v.nn.composite import CompositeConfig, CompositeGenerator, Features
from fastv2v.nn.local import LocalConfig, LocalGenerator
from fastv2v.ops.warp import warp_backward

CHANNELS, SIZE = 5, (16, 24)


def tiny(foreground=(), **settings):
    torch.manual_seed(0)
    defaults = {"width": 4, "num_blocks": 1, "norm": "instance"}
    return LocalGenerator(LocalConfig(**{**defaults, **settings}), CHANNELS, foreground)


def inputs(batch=1, valid=1.0, size=SIZE):
    rng = torch.Generator().manual_seed(1)
    conditions = torch.rand(batch, 3, CHANNELS, *size, generator=rng)
    frames = torch.rand(batch, 2, 3, *size, generator=rng) * 2 - 1
    half = (size[0] // 2, size[1] // 2)
    coarse = Features(*(torch.randn(batch, c, *half, generator=rng) for c in (8, 8, 4)))
    return conditions[:, 2], History(conditions[:, :2], frames, torch.full((batch,), valid)), coarse


@pytest.mark.parametrize(
    ("width", "millions"),
    [pytest.param(64, 2.880, id="street, scale 1"), pytest.param(32, 0.860, id="street, scale 2")],
)
def test_published_size_in_parameters(width, millions):
    with torch.device("meta"):
        network = LocalGenerator(LocalConfig(width=width), 36, (26,))
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=5e-4)


def test_it_stands_on_a_composite_generator_of_half_the_size_and_on_another_local_one():
    torch.manual_seed(0)
    settings = {"num_downsamples": 3, "num_blocks": 2, "norm": "instance"}
    scales = [
        CompositeGenerator(CompositeConfig(width=8, **settings), CHANNELS, (1,)),
        tiny((1,), width=4, scale=1),
        tiny((1,), width=2, scale=2),
    ]
    features = None
    for i, scale in enumerate(scales):
        condition, history, _ = inputs(size=(16 * 2**i, 24 * 2**i))
        output, features = scale.parts(condition, history, *([features] if features else []))
        assert output.frame.shape == (1, 3, 16 * 2**i, 24 * 2**i)
        assert [f.shape[1] for f in features] == [8 // 2**i, 8 // 2**i, 4 // 2**i]


def test_flow_counts_in_pixels_of_its_own_scale():
    network = tiny(scale=2, flow_scale=5.0)
    nn.init.zeros_(network.motion_head.conv.weight)
    network.motion_head.conv.bias.data = torch.tensor([0.1, -0.05, 0.0])
    output, _ = network.parts(*inputs())
    assert_close(output.flow[0, :, 0, 0], torch.tensor([2.0, -1.0]))


def test_a_frame_is_blended_from_a_hallucinated_and_a_warped_one():
    condition, history, coarse = inputs()
    output, _ = tiny().parts(condition, history, coarse)
    assert_close(output.warped, warp_backward(history.frames[:, -1], output.flow))
    assert_close(output.frame, output.occlusion * output.hallucinated + (1 - output.occlusion) * output.warped)


def test_a_history_that_is_not_valid_has_no_influence():
    condition, history, coarse = inputs(valid=0.0)
    network = tiny((1,))
    output, _ = network.parts(condition, history, coarse)
    other, _ = network.parts(condition, history._replace(frames=torch.zeros_like(history.frames)), coarse)
    assert torch.equal(output.frame, output.hallucinated)
    assert torch.equal(output.frame, other.frame)


def test_the_mask_decides_where_the_foreground_is_painted():
    condition, history, coarse = inputs()
    network = tiny((1, 3))
    everywhere, features = network.parts(condition, history, coarse, mask=torch.ones(1, 1, *SIZE))
    drawn = network.foreground_head(features.foreground).tanh()
    assert_close(everywhere.frame, drawn)
    mixed, _ = network.parts(condition, history, coarse)
    mask = (condition[:, 1] + condition[:, 3]).clamp(0, 1).unsqueeze(1)
    nowhere, _ = network.parts(condition, history, coarse, mask=torch.zeros(1, 1, *SIZE))
    assert_close(mixed.frame, mask * drawn + (1 - mask) * nowhere.frame)


@pytest.mark.parametrize("use_flow", [True, False])
def test_every_parameter_and_every_coarse_feature_gets_a_gradient(use_flow):
    condition, history, coarse = inputs(2)
    coarse = Features(*(x.requires_grad_() for x in coarse))
    network = tiny((1,), use_flow=use_flow)
    output, _ = network(condition, history, coarse)
    (output.frame * torch.randn(output.frame.shape)).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters() if p.ndim > 1)
    assert [x.grad is not None for x in coarse] == [True, use_flow, True]


def test_coarse_features_that_do_not_fit_are_refused():
    condition, history, coarse = inputs()
    wrong = {
        "image": coarse._replace(image=coarse.image[:, :4]),
        "flow": coarse._replace(flow=None),
        "foreground": coarse._replace(foreground=coarse.foreground[..., :3]),
    }
    for name, features in wrong.items():
        with pytest.raises(ShapeError, match=f"wants a coarse {name} feature of"):
            tiny((1,)).parts(condition, history, features)


@pytest.mark.parametrize("size", [(15, 24), (16, 2)])
def test_sizes_that_do_not_divide_or_are_too_small_are_refused(size):
    with pytest.raises(ShapeError, match="must be even and at least 4"):
        tiny().parts(*inputs(size=size))


@pytest.mark.parametrize(
    "settings",
    [{"width": 0}, {"num_blocks": 0}, {"scale": 0}, {"edge_kernel": 2}, {"flow_scale": 0.0}, {"norm": "layer"}],
)
def test_nonsense_is_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        tiny(**settings)


def test_an_unknown_foreground_channel_is_refused():
    with pytest.raises(ConfigError, match="channel 5 does not exist"):
        tiny((5,))
