import random

import numpy as np
import torch

from fastv2v.seed import derive_seed, deterministic_algorithms, generator_for, seed_everything


class TestDeriveSeed:
    def test_it_is_the_same_on_every_machine(self):
        # printf '[7, "step", 3]' | sha256sum: the first eight bytes, shifted right by one bit
        assert derive_seed(7, "step", 3) == 0x2945E81FA18743F7 >> 1

    def test_every_part_and_its_type_counts(self):
        seeds = {
            derive_seed(*parts)
            for parts in [(0,), (1,), (0, "a"), (0, "a", 1), (0, "a", "1"), (0, "a1"), (0, "a/1"), (0, 1, "a")]
        }
        assert len(seeds) == 8

    def test_it_fits_every_generator(self):
        assert all(0 <= derive_seed(0, i) < 2**63 for i in range(100))


def test_generators_of_the_same_place_draw_the_same():
    first, again, other = (torch.rand(4, generator=generator_for(0, "step", i)) for i in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_seed_everything_reaches_python_numpy_and_torch():
    def draw():
        seed_everything(2**62 + 5)
        return random.random(), np.random.rand(), torch.rand(1).item()

    assert draw() == draw()


def test_deterministic_algorithms_are_put_back():
    assert not torch.are_deterministic_algorithms_enabled()
    with deterministic_algorithms(True):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.benchmark
    assert not torch.are_deterministic_algorithms_enabled()
