import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from fastv2v.errors import DataError, ShapeError
from fastv2v.ops.flow import DISFlow, clip_flow, photometric_confidence
from fastv2v.ops.warp import warp_backward


def texture(height, width, seed=0):
    """A smooth random picture (1, 3, H, W) in [-1, 1]."""
    coarse = torch.rand(1, 3, height // 8, width // 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False).clamp(-1, 1)


class TestPhotometricConfidence:
    def test_threshold_is_on_the_squared_error_summed_over_channels(self):
        current = torch.zeros(1, 3, 1, 3)
        previous = torch.zeros(1, 3, 1, 3)
        previous[0, :, 0, 1] = 0.08  # 3 * 0.0064 = 0.0192
        previous[0, :, 0, 2] = 0.09  # 3 * 0.0081 = 0.0243
        confidence = photometric_confidence(current, previous, torch.zeros(1, 2, 1, 3))
        assert_close(confidence, torch.tensor([[[[1.0, 1.0, 0.0]]]]))

    def test_the_previous_frame_is_warped_before_it_is_compared(self):
        previous = torch.arange(4.0).view(1, 1, 1, 4).expand(1, 3, 1, 4)
        flow = torch.zeros(1, 2, 1, 4)
        flow[:, 0] = 1
        assert_close(photometric_confidence(previous + 1, previous, flow).flatten(), torch.tensor([1.0, 1, 1, 0]))


class TestDISFlow:
    @pytest.mark.parametrize("preset", ["ultrafast", "fast", "medium"])
    def test_finds_a_translation_from_current_to_previous(self, preset):
        big = texture(80, 112)
        previous, current = big[..., 8:72, 8:104], big[..., 10:74, 5:101]  # p in current lies at p + (-3, +2) before
        flow, confidence = DISFlow(preset)(current, previous)
        assert flow.shape == (1, 2, 64, 96)
        assert confidence.shape == (1, 1, 64, 96)
        inner = flow[0, :, 12:-12, 12:-12].flatten(1)
        assert_close(inner.median(dim=1).values, torch.tensor([-3.0, 2.0]), atol=0.25, rtol=0)
        assert confidence[..., 12:-12, 12:-12].mean() > 0.95
        assert (warp_backward(previous, flow) - current).abs().mean() < 0.25 * (previous - current).abs().mean()

    def test_pairs_of_a_batch_are_independent_and_repeat_exactly(self):
        a, b = texture(32, 48), texture(32, 48, seed=1)
        estimator = DISFlow("fast")
        both, _ = estimator(torch.cat([a, b]), torch.cat([b, a]))
        assert torch.equal(both[:1], estimator(a, b)[0])
        assert torch.equal(both[1:], estimator(b, a)[0])

    def test_no_gradient_runs_through_it(self):
        frame = texture(16, 16).requires_grad_()
        flow, confidence = DISFlow("ultrafast")(frame, frame)
        assert not flow.requires_grad
        assert not confidence.requires_grad

    def test_impossible_sizes_are_refused(self):
        with pytest.raises(ShapeError, match="at least 12x12"):
            DISFlow()(torch.zeros(1, 3, 8, 64), torch.zeros(1, 3, 8, 64))
        with pytest.raises(ShapeError, match="equal shape"):
            DISFlow()(torch.zeros(1, 3, 32, 64), torch.zeros(1, 3, 32, 32))


class TestClipFlow:
    def test_each_frame_is_compared_with_the_one_before(self):
        def estimator(current, previous):  # tells which two frames it was given
            told = torch.cat([current[:, :1], previous[:, :1]], dim=1)
            return told, current[:, :1] - previous[:, :1]

        times = torch.arange(8.0).view(2, 4, 1, 1, 1).expand(2, 4, 3, 2, 2)
        flow, confidence = clip_flow(estimator, times)
        assert flow.shape == (2, 3, 2, 2, 2)
        assert_close(flow[..., 0, 0], torch.tensor([[[1.0, 0], [2, 1], [3, 2]], [[5.0, 4], [6, 5], [7, 6]]]))
        assert_close(confidence, torch.ones(2, 3, 1, 2, 2))

    def test_a_single_frame_is_refused(self):
        with pytest.raises(DataError, match="at least 2 frames"):
            clip_flow(DISFlow(), torch.zeros(1, 1, 3, 16, 16))
