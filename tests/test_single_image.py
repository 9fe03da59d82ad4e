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
