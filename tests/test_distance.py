import pytest
import torch
from torch.testing import assert_close

from fastv2v.losses.distance import picture_distance


class TestPictureDistance:
    def test_it_is_the_mean_of_each_picture(self):
        maps = torch.tensor([[[1.0, -2.0], [0.0, 4.0]], [[0.0, 0.0], [0.0, -8.0]]])
        assert_close(picture_distance(maps, torch.zeros(2, 2, 2)), torch.tensor([7 / 4, 2.0]))

    def test_its_gradient_is_the_sign_over_the_number_of_elements(self):
        torch.manual_seed(0)
        maps, goal = torch.randn(3, 2, 4, 5, requires_grad=True), torch.randn(3, 2, 4, 5, requires_grad=True)
        weight = torch.tensor([1.0, 0.0, -3.0])
        ours = torch.autograd.grad((picture_distance(maps, goal) * weight).sum(), [maps, goal], allow_unused=True)
        (expected,) = torch.autograd.grad(((maps - goal).abs().mean(dim=(1, 2, 3)) * weight).sum(), [maps])
        assert_close(ours[0], expected)
        assert ours[1] is None

    def test_equal_maps_have_no_gradient(self):
        maps = torch.ones(1, 3, requires_grad=True)
        picture_distance(maps, torch.ones(1, 3)).sum().backward()
        assert not maps.grad.any()

    def test_it_can_be_followed_back_twice(self):
        maps = torch.randn(2, 3, requires_grad=True)
        distance = picture_distance(maps, torch.zeros(2, 3)).sum()
        first, second = (torch.autograd.grad(distance, maps, retain_graph=keep)[0] for keep in (True, False))
        assert torch.equal(first, second)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_compared_in_single(self, dtype):
        maps = torch.full((1, 4), 256.0, dtype=dtype, requires_grad=True)
        distance = picture_distance(maps, torch.full((1, 4), 1.0, dtype=dtype))
        assert distance.dtype == torch.float32
        assert distance.item() == 255
        distance.sum().backward()
        assert maps.grad.dtype == dtype
        assert maps.grad.tolist() == [[0.25] * 4]
