import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from fastv2v.errors import ShapeError
from fastv2v.ops.warp import compose_flow, warp_backward


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def constant_flow(dx, dy, size, batch=1):
    return torch.tensor([float(dx), float(dy)]).view(1, 2, 1, 1).expand(batch, 2, *size).clone()


class TestWarpBackward:
    @pytest.mark.parametrize("size", [(1, 1), (1, 7), (16, 24), (33, 17)])
    def test_zero_flow_returns_the_source(self, size):
        source = noise(2, 3, *size)
        assert_close(warp_backward(source, torch.zeros(2, 2, *size)), source, atol=1e-5, rtol=0)

    def test_flow_of_one_pixel_right_samples_the_right_neighbour_and_repeats_the_border(self):
        source = torch.arange(4.0).view(1, 1, 1, 4)
        warped = warp_backward(source, constant_flow(1, 0, (1, 4)))
        assert_close(warped, torch.tensor([[[[1.0, 2.0, 3.0, 3.0]]]]))

    def test_flow_of_one_pixel_down_samples_the_pixel_below(self):
        source = torch.arange(3.0).view(1, 1, 3, 1)
        warped = warp_backward(source, constant_flow(0, 1, (3, 1)))
        assert_close(warped.flatten(), torch.tensor([1.0, 2.0, 2.0]))

    def test_half_a_pixel_is_the_mean_of_two(self):
        source = torch.tensor([0.0, 1.0, 4.0, 9.0]).view(1, 1, 1, 4)
        warped = warp_backward(source, constant_flow(0.5, 0, (1, 4)))
        assert_close(warped.flatten(), torch.tensor([0.5, 2.5, 6.5, 9.0]))

    @settings(max_examples=25, deadline=None)
    @given(dx=st.integers(-6, 6), dy=st.integers(-6, 6))
    def test_whole_pixels_are_a_clamped_shift(self, dx, dy):
        source = noise(1, 2, 5, 9)
        rows = (torch.arange(5) + dy).clamp(0, 4)
        columns = (torch.arange(9) + dx).clamp(0, 8)
        expected = source[:, :, rows][..., columns]
        assert_close(warp_backward(source, constant_flow(dx, dy, (5, 9))), expected, atol=1e-5, rtol=0)

    def test_batch_entries_follow_their_own_flow(self):
        source = noise(2, 1, 4, 6)
        flow = torch.cat([constant_flow(1, 0, (4, 6)), constant_flow(0, -1, (4, 6))])
        both = warp_backward(source, flow)
        assert_close(both[:1], warp_backward(source[:1], flow[:1]))
        assert_close(both[1:], warp_backward(source[1:], flow[1:]))

    def test_gradients_of_source_and_flow_are_right(self):
        source = noise(1, 2, 4, 5).double().requires_grad_()
        # Away from whole pixels, where bilinear sampling has a kink.
        flow = (0.25 + 0.1 * noise(1, 2, 4, 5, seed=1)).double().requires_grad_()
        # Sampling happens in float32, so the numerical step is wide and the tolerance with it.
        assert torch.autograd.gradcheck(warp_backward, (source, flow), eps=1e-2, atol=2e-3, rtol=1e-2)

    def test_autocast_changes_nothing(self):
        source, flow = noise(1, 3, 64, 512), 30 * noise(1, 2, 64, 512, seed=1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = warp_backward(source, flow)
        assert inside.dtype == torch.float32
        assert torch.equal(inside, warp_backward(source, flow))

    def test_a_bf16_source_is_sampled_at_exact_places(self):
        source, flow = noise(1, 1, 2, 512).bfloat16(), constant_flow(3, 0, (2, 512)).bfloat16()
        warped = warp_backward(source, flow)
        assert torch.equal(warped, warp_backward(source.float(), flow.float()).bfloat16())
        assert_close(warped[..., :-3], source[..., 3:], atol=0.005, rtol=0)

    def test_the_other_convention_is_not_the_identity(self):
        source = noise(1, 1, 4, 8)
        assert not torch.allclose(warp_backward(source, torch.zeros(1, 2, 4, 8), align_corners=False), source)

    @pytest.mark.parametrize("shape", [(2, 2, 4, 6), (1, 2, 4, 5), (1, 2, 3, 6), (1, 3, 4, 6)])
    def test_other_sizes_are_refused(self, shape):
        with pytest.raises(ShapeError, match="must share B, H, W"):
            warp_backward(torch.zeros(1, 3, 4, 6), torch.zeros(shape))


class TestComposeFlow:
    def test_translations_add_up(self):
        composed = compose_flow(constant_flow(2, -1, (8, 8)), constant_flow(0.5, 3, (8, 8)))
        assert_close(composed, constant_flow(2.5, 2, (8, 8)))

    def test_the_second_flow_is_read_where_the_first_one_points(self):
        second = torch.zeros(1, 2, 1, 6)
        second[0, 0, 0] = torch.tensor([0.0, 10, 20, 30, 40, 50])
        composed = compose_flow(constant_flow(2, 0, (1, 6)), second)
        assert_close(composed[0, 0, 0], torch.tensor([22.0, 32, 42, 52, 52, 52]))

    def test_warping_by_the_composition_is_warping_twice(self):
        # A smooth picture, so that two samplings differ little from one.
        y, x = torch.meshgrid(torch.linspace(0, 3, 32), torch.linspace(0, 3, 32), indexing="ij")
        c = torch.stack([x.sin() * y.cos(), (x + y).cos(), x * y / 9])[None]
        ab = torch.stack([2 + y.sin(), x.cos()])[None]
        bc = torch.stack([x.cos(), 1 + y.cos()])[None]
        twice = warp_backward(warp_backward(c, bc), ab)
        once = warp_backward(c, compose_flow(ab, bc))
        assert_close(once[..., 5:-5, 5:-5], twice[..., 5:-5, 5:-5], atol=5e-3, rtol=0)

    def test_zero_is_neutral_on_both_sides(self):
        flow, zero = 2 * noise(1, 2, 6, 6), torch.zeros(1, 2, 6, 6)
        assert_close(compose_flow(flow, zero), flow)
        assert_close(compose_flow(zero, flow), flow, atol=1e-5, rtol=0)
