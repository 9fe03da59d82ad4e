import numpy as np
import pytest
import torch
import torch.nn.functional as F
from shared_data import shared
from torch import nn
from torch.testing import assert_close

from fastv2v.errors import ConfigError
from fastv2v.nn.discriminator import DiscriminatorConfig, MultiScaleDiscriminator, PatchDiscriminator


def seen_sizes(net, size):
    """Input size of each ``nets[i]`` for a picture of ``size``."""
    sizes = {}
    for i, part in enumerate(net.nets):
        part.register_forward_hook(lambda _, inputs, __, i=i: sizes.update({i: tuple(inputs[0].shape[-2:])}))
    net(torch.zeros(1, 3, *size))
    return sizes


def test_map_sizes_of_a_256x512_picture():
    net = MultiScaleDiscriminator(3, DiscriminatorConfig(width=2, norm="none"))
    finest, coarsest = net(torch.zeros(1, 3, 256, 512))
    assert [tuple(f.shape[-2:]) for f in finest] == [(129, 257), (65, 129), (33, 65), (34, 66), (35, 67)]
    assert [tuple(f.shape[-2:]) for f in coarsest] == [(65, 129), (33, 65), (17, 33), (18, 34), (19, 35)]


def test_widths_double_up_to_512_and_the_last_map_is_one_score():
    with torch.device("meta"):
        net = PatchDiscriminator(39, DiscriminatorConfig(width=64, num_layers=5, norm="none"))
        features = net(torch.zeros(1, 39, 64, 64))
    assert [f.shape[1] for f in features] == [64, 128, 256, 512, 512, 512, 1]


@pytest.mark.parametrize("channels", [39, 13])
def test_parameters_of_the_published_street_discriminators(channels):
    # 4x4 kernels, one bias for each output channel, two numbers for each normalised channel (128 + 256 + 512).
    by_hand = 16 * (channels * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512) + (64 + 128 + 256 + 512 + 1) + 2 * 896
    with torch.device("meta"):
        net = PatchDiscriminator(channels, DiscriminatorConfig())
    assert sum(p.numel() for p in net.parameters()) == by_hand


def test_the_last_net_sees_the_full_size_and_the_first_the_coarsest():
    net = MultiScaleDiscriminator(3, DiscriminatorConfig(width=2, num_scales=3))
    assert seen_sizes(net, (32, 64)) == {2: (32, 64), 1: (16, 32), 0: (8, 16)}


def test_after_growing_old_nets_keep_their_resolution():
    small = seen_sizes(MultiScaleDiscriminator(3, DiscriminatorConfig(width=2, num_scales=2)), (32, 64))
    grown = seen_sizes(MultiScaleDiscriminator(3, DiscriminatorConfig(width=2, num_scales=3)), (64, 128))
    assert small.items() <= grown.items()


@pytest.mark.parametrize(
    ("width", "scales", "widths"),
    [(64, 3, [64, 64, 64]), (32, 2, [64, 32]), (16, 4, [64, 64, 32, 16]), (8, 3, [32, 16, 8])],
)
def test_coarse_widths_double_up_to_64_as_published(width, scales, widths):
    net = MultiScaleDiscriminator(3, DiscriminatorConfig(width=width, num_scales=scales, coarse_widths=True))
    assert [part.blocks[0][0].out_channels for part in net.nets] == widths
    even = MultiScaleDiscriminator(3, DiscriminatorConfig(width=width, num_scales=scales))
    assert [part.blocks[0][0].out_channels for part in even.nets] == [width] * scales


def test_finest_scale_comes_first_and_borders_are_averaged_over_real_pixels_only():
    torch.manual_seed(0)
    net = MultiScaleDiscriminator(1, DiscriminatorConfig(width=2, norm="none")).eval()
    x = torch.rand(1, 1, 16, 16)
    finest, coarsest = net(x)
    assert torch.equal(finest[-1], net.nets[1](x)[-1])
    ones = net(torch.ones(1, 1, 32, 32))[1]
    assert torch.equal(ones[0], net.nets[0](torch.ones(1, 1, 16, 16))[0])
    pooled = F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 2) / F.avg_pool2d(F.pad(torch.ones_like(x), (1, 1, 1, 1)), 3, 2)
    assert_close(coarsest[-1], net.nets[0](pooled)[-1])


def test_only_inner_blocks_are_normalised_and_scores_are_unbounded():
    net = PatchDiscriminator(3, DiscriminatorConfig(width=4))
    norms = [any(isinstance(m, nn.BatchNorm2d) for m in block) for block in net.blocks]
    assert norms == [False, True, True, True, False]
    assert [type(m) for m in net.blocks[-1]] == [nn.Conv2d]


def test_every_parameter_and_the_input_get_a_gradient():
    torch.manual_seed(0)
    net = MultiScaleDiscriminator(4, DiscriminatorConfig(width=4, norm="instance"))
    x = torch.randn(2, 4, 32, 32, requires_grad=True)
    sum(scale[-1].square().mean() for scale in net(x)).backward()
    assert x.grad.abs().sum() > 0
    assert all(p.grad is not None for p in net.parameters())
    assert all(p.grad.abs().sum() > 0 for p in net.parameters() if p.ndim > 1)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_features_equal_those_of_the_published_implementation(mode):
    folder = shared("reference-weights")
    net = MultiScaleDiscriminator(9, DiscriminatorConfig(width=8, coarse_widths=True))
    published = torch.load(folder / "multiscale_d.pth", weights_only=True)
    assert len(published) == len(net.state_dict())
    net.load_state_dict(dict(zip(net.state_dict(), published.values(), strict=True)))
    data = np.load(folder / "multiscale_d.npz")
    with torch.no_grad():
        features = net.train(mode == "train")(torch.from_numpy(data["in0"]))
    for i, scale in enumerate(features):
        for j, feature in enumerate(scale):
            assert_close(feature, torch.from_numpy(data[f"{mode}/out.{i}.{j}"]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("wrong", [{"width": 0}, {"num_layers": 0}, {"num_scales": 0}, {"norm": "layer"}])
def test_nonsense_is_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        DiscriminatorConfig(**wrong)


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_pictures_judged_under_one_condition_get_the_features_and_gradients_of_single_passes(norm):
    torch.manual_seed(0)
    net = MultiScaleDiscriminator(8, DiscriminatorConfig(width=4, num_layers=2, norm=norm)).double()
    condition, real, fake = (torch.rand(2, c, 20, 24, dtype=torch.float64) for c in (5, 3, 3))
    fake.requires_grad_()
    gradients = []
    for found in (net.judge(condition, [real, fake]), [net(torch.cat([condition, x], dim=1)) for x in (real, fake)]):
        flat = [feature for features in found for scale in features for feature in scale]
        total = torch.stack([(i + 1) * feature.square().mean() for i, feature in enumerate(flat)]).sum()
        gradients.append([*flat, *torch.autograd.grad(total, [fake, *net.parameters()])])
    for a, b in zip(*gradients, strict=True):
        assert_close(a, b, rtol=1e-7, atol=1e-10)
