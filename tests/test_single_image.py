import itertools

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fastv2v.errors import ConfigError, ShapeError
from fastv2v.nn.single_image import SingleImageConfig, SingleImageGenerator


def tiny(**settings):
    torch.manual_seed(0)
    defaults = {"width": 4, "num_downsamples": 2, "num_blocks": 1}
    return SingleImageGenerator(SingleImageConfig(**{**defaults, **settings}), 5)


def test_a_frame_has_the_size_of_its_condition_and_lies_within_tanh():
    frame = tiny()(torch.randn(2, 5, 16, 24))
    assert frame.shape == (2, 3, 16, 24)
    assert frame.abs().max() < 1


def test_published_size_in_parameters():
    # Convolutions of pix2pixHD's default generator for 35 classes, by hand: entry, 4 down, 9 blocks, 4 up, head.
    channels = [64, 128, 256, 512, 1024]
    pairs = list(itertools.pairwise(channels))
    expected = 35 * 64 * 49 + 64 + 9 * 2 * (1024 * 1024 * 9 + 1024) + 64 * 3 * 49 + 3
    expected += sum(a * b * 9 + b for a, b in pairs) + sum(a * b * 9 + a for a, b in pairs)
    with torch.device("meta"):
        network = SingleImageGenerator(SingleImageConfig(num_downsamples=4), 35)
    assert sum(p.numel() for p in network.parameters()) == expected


def test_no_layer_is_wider_than_told():
    widths = [m.out_channels for m in tiny(max_width=6).modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert widths == [4, 6, 6, 6, 6, 6, 4, 3]
    assert tiny(max_width=6)(torch.randn(1, 5, 8, 8)).shape == (1, 3, 8, 8)


def test_every_parameter_gets_a_gradient():
    network = tiny(norm="batch")
    (network(torch.randn(2, 5, 16, 16)) * torch.randn(2, 3, 16, 16)).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters() if p.ndim > 1)


def test_batch_entries_are_independent():
    network, x = tiny(norm="instance"), torch.randn(2, 5, 16, 16)
    assert_close(network(x)[:1], network(x[:1]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(1, 4, 16, 16), (1, 5, 18, 16), (1, 5, 4, 16), (5, 16, 16)])
def test_conditions_that_do_not_fit_are_refused(shape):
    with pytest.raises(ShapeError, match=r"multiples of 4|wants conditions"):
        tiny()(torch.zeros(shape))


@pytest.mark.parametrize(
    "settings",
    [{"width": 0}, {"num_blocks": 0}, {"num_downsamples": 0}, {"max_width": 3}, {"edge_kernel": 4}, {"norm": "layer"}],
)
def test_nonsense_is_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        tiny(**settings)


def convolution(c_in, c_out, kernel):
    return c_in * c_out * kernel**2 + c_out


def parameters(config, channels):
    with torch.device("meta"):
        network = SingleImageGenerator(config, channels)
    return sum(p.numel() for p in network.parameters())


class TestEnhancers:
    def test_published_size_in_parameters(self):
        # Street at 2048: a global generator of width 64 without its head, and one enhancer of width 32, by hand.
        pairs = list(itertools.pairwise([64, 128, 256, 512, 1024]))
        inner = convolution(35, 64, 7) + 9 * 2 * convolution(1024, 1024, 3)
        inner += sum(convolution(a, b, 3) + convolution(b, a, 3) for a, b in pairs)
        enhancer = convolution(35, 32, 7) + convolution(32, 64, 3) + 3 * 2 * convolution(64, 64, 3)
        enhancer += convolution(64, 32, 3) + convolution(32, 3, 7)
        config = SingleImageConfig(width=32, num_downsamples=4, num_enhancers=1)
        assert parameters(config, 35) == inner + enhancer

    @pytest.mark.parametrize(("count", "multiple"), [(1, 8), (2, 16)])
    def test_each_doubles_what_sizes_must_divide_by(self, count, multiple):
        network = tiny(num_enhancers=count)
        assert network.size_multiple == multiple
        assert network(torch.randn(1, 5, 2 * multiple, 3 * multiple)).shape == (1, 3, 2 * multiple, 3 * multiple)
        with pytest.raises(ShapeError, match=f"multiples of {multiple}"):
            network(torch.zeros(1, 5, 2 * multiple, 2 * multiple + 4))

    def test_large_kernels_need_pixels_at_the_coarsest_size(self):
        # Reflecting 8 pixels takes 9, which are 18 before the size was halved; multiples of 4 begin at 20.
        network = tiny(num_downsamples=1, num_enhancers=1, edge_kernel=17)
        with pytest.raises(ShapeError, match="at least 18"):
            network(torch.zeros(1, 5, 16, 16))
        assert network(torch.zeros(1, 5, 20, 20)).shape == (1, 3, 20, 20)

    def test_widths_halve_from_scale_to_scale(self):
        network = tiny(num_enhancers=2)
        assert network.encoder[0][1].out_channels == 16
        assert [e.encoder[0][1].out_channels for e in network.enhancers] == [8, 4]
        assert [len(e.blocks) for e in network.enhancers] == [3, 3]

    def test_every_parameter_gets_a_gradient(self):
        network = tiny(norm="batch", num_enhancers=1, num_local_blocks=1)
        (network(torch.randn(2, 5, 16, 16)) * torch.randn(2, 3, 16, 16)).sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in network.parameters() if p.ndim > 1)


class TestFeatures:
    def test_published_size_in_parameters(self):
        # Faces: 15 condition channels, 16 features, width 64, 3 downsamplings, by hand.
        pairs = [(64, 128), (128, 256), (256, 512)]
        expected = convolution(15 + 16, 64, 7) + 9 * 2 * convolution(512 + 16, 512 + 16, 3)
        expected += sum(convolution(a, b, 3) for a, b in pairs) + convolution(128, 64, 3) + convolution(256, 128, 3)
        expected += convolution(512 + 2 * 16, 256, 3) + convolution(64 + 16, 3, 7)
        assert parameters(SingleImageConfig(feature_channels=16), 15) == expected

    def test_conditions_end_with_the_features(self):
        network = tiny(feature_channels=3)
        assert network.condition_channels == 8
        assert network(torch.randn(2, 8, 16, 24)).shape == (2, 3, 16, 24)
        with pytest.raises(ShapeError, match=r"wants conditions \(B, 8, H, W\)"):
            network(torch.zeros(1, 5, 16, 16))

    @pytest.mark.parametrize("place", ["entry", "blocks", "decoder", "head"])
    def test_they_enter_at_four_places(self, place):
        """With the weights of the three other places at zero, each alone still lets a feature through."""
        network = tiny(feature_channels=1, norm="none")
        slots = {
            "entry": network.encoder[0][1].weight[:, 5:],
            "blocks": network.blocks[0].branch[1].weight[:, 16:],
            "decoder": network.decoder[0][0].weight[16:],
            "head": network.head.conv.weight[:, 4:],
        }
        with torch.no_grad():
            for p in network.parameters():
                nn.init.normal_(p, std=0.3)
            for name, slot in slots.items():
                if name == "decoder":
                    slot[0 if place == "decoder" else slice(None)] = 0  # the one after the blocks, or both
                elif name != place:
                    slot.zero_()
            if place != "decoder":
                network.blocks[0].branch[5].weight[16:] = 0
        condition = torch.randn(1, 6, 8, 8)
        other = condition.clone()
        other[:, 5] += 1
        assert not torch.equal(network(condition), network(other))

    def test_a_flat_feature_stays_flat_at_the_bottleneck(self):
        """Pixels outside do not count in the means, or the border would differ."""
        network = tiny(feature_channels=2)
        seen = []
        network.blocks.register_forward_hook(lambda _m, given, _out: seen.append(given[0]))
        network(torch.cat([torch.randn(1, 5, 16, 16), torch.full((1, 2, 16, 16), 0.75)], dim=1))
        assert_close(seen[0][:, -2:], torch.full((1, 2, 4, 4), 0.75))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_enhancers": -1}, "num_enhancers"),
        ({"num_local_blocks": 0}, "num_local_blocks"),
        ({"feature_channels": -1}, "feature_channels"),
        ({"feature_channels": 2, "num_enhancers": 1}, "do not go together"),
        ({"num_enhancers": 1, "max_width": 7}, "max_width"),
    ],
)
def test_nonsense_about_enhancers_and_features_is_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        tiny(**settings)
