import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from fastv2v.errors import ConfigError, DataError, ShapeError
from fastv2v.ops.flow import (
    DISFlow,
    FilesFlow,
    TwoWayFlow,
    clip_flow,
    forward_backward_confidence,
    photometric_confidence,
    resize_flow,
    with_confidence,
)
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


def constant_flow(dx, dy, height=6, width=8):
    return torch.tensor([dx, dy]).view(1, 2, 1, 1).expand(1, 2, height, width)


class TestForwardBackwardConfidence:
    def test_a_way_back_that_cancels_is_trusted_inside_the_picture_only(self):
        confidence = forward_backward_confidence(constant_flow(2.0, -1.0), constant_flow(-2.0, 1.0))
        expected = torch.zeros(6, 8)
        expected[1:, :6] = 1  # the first row and the last two columns are not in the other picture
        assert_close(confidence[0, 0], expected)

    @pytest.mark.parametrize(("back", "trusted"), [(-0.3, 1.0), (-0.29, 0.0)])
    def test_the_bound_grows_with_the_motion(self, back, trusted):
        # (1 + b)^2 < r (1 + b^2) + a: with r = 0.1 and a = 0.384, 0.49 < 0.493 holds and 0.5041 < 0.4924 does not.
        there, back = constant_flow(1.0, 0.0), constant_flow(back, 0.0)
        assert forward_backward_confidence(there, back, relative=0.1, absolute=0.384)[0, 0, 2, 2] == trusted

    def test_published_bounds(self):
        still = torch.zeros(1, 2, 1, 2)
        back = torch.tensor([[0.70, 0.72], [0.0, 0.0]]).view(1, 2, 1, 2)  # 0.49 < 0.505; 0.518 is not
        assert forward_backward_confidence(still, back).flatten().tolist() == [1, 0]

    def test_the_way_back_is_looked_up_where_the_way_there_ends(self):
        there, back = torch.zeros(1, 2, 1, 6), torch.zeros(1, 2, 1, 6)
        there[0, 0, 0, 1] = 3
        back[0, 0, 0, 4] = -3
        # Pixel 1 goes to 4 and comes back; pixel 4 stays, and the way back leads elsewhere.
        assert forward_backward_confidence(there, back).flatten().tolist() == [1, 1, 1, 1, 0, 1]

    def test_every_estimator_can_be_asked_both_ways(self):
        asked = []

        def estimator(current, previous):
            asked.append((current.mean().item(), previous.mean().item()))
            flow = (previous - current)[:, :2] * torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
            own = torch.ones_like(flow[:, :1])
            own[..., 0] = 0
            return flow, own

        zeros, ones = torch.zeros(1, 3, 4, 6), torch.ones(1, 3, 4, 6)
        flow, agreed = TwoWayFlow(estimator, "forward-backward")(zeros, ones)
        assert asked == [(0, 1), (1, 0)]
        assert_close(flow, constant_flow(1.0, 0.0, 4, 6))
        assert agreed[0, 0, 0].tolist() == [1, 1, 1, 1, 1, 0]
        assert TwoWayFlow(estimator, "both")(zeros, ones)[1][0, 0, 0].tolist() == [0, 1, 1, 1, 1, 0]

    def test_settings(self):
        estimator = DISFlow("fast")
        assert with_confidence(estimator, "photometric") is estimator
        assert isinstance(with_confidence(estimator, "both"), TwoWayFlow)
        with pytest.raises(ConfigError, match="flow files hold one direction only"):
            with_confidence(FilesFlow(), "both")
        with pytest.raises(ConfigError, match="flow_confidence is one of photometric, forward-backward, both"):
            with_confidence(estimator, "none")

    def test_real_motion_agrees_both_ways(self):
        big = texture(80, 112)
        previous, current = big[..., 8:72, 8:104], big[..., 10:74, 5:101]
        _, confidence = with_confidence(DISFlow("fast"), "both")(current, previous)
        assert confidence[..., 12:-12, 12:-12].mean() > 0.9
        assert confidence[..., 0].sum() == 0  # three columns came into view


class TestResizeFlow:
    def test_each_component_follows_its_own_axis(self):
        assert_close(resize_flow(constant_flow(2.0, 3.0, 6, 8), (12, 40)), constant_flow(10.0, 6.0, 12, 40))
        assert_close(resize_flow(constant_flow(2.0, 3.0, 6, 8), (3, 8)), constant_flow(2.0, 1.5, 3, 8))


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

    def test_flow_from_files_is_taken_as_it_is_and_trusted_by_its_colours(self):
        frames = torch.rand(2, 3, 3, 4, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
        read = torch.rand(2, 2, 2, 4, 6, generator=torch.Generator().manual_seed(1))
        flow, confidence = clip_flow(FilesFlow(), frames, read)
        assert flow is read
        for b, t in ((0, 0), (1, 1)):
            expected = photometric_confidence(frames[b : b + 1, t + 1], frames[b : b + 1, t], read[b : b + 1, t])
            assert torch.equal(confidence[b, t], expected[0])

    def test_an_estimator_does_not_look_at_files(self):
        frames = texture(16, 16).unsqueeze(1).expand(1, 2, 3, 16, 16)
        flow, _ = clip_flow(DISFlow("fast"), frames, torch.full((1, 1, 2, 16, 16), 9.0))
        assert flow.abs().max() < 1

    def test_flow_files_that_are_missing_or_of_another_clip_are_refused(self):
        with pytest.raises(DataError, match="these frames carry none"):
            clip_flow(FilesFlow(), torch.zeros(1, 3, 3, 4, 4))
        with pytest.raises(ShapeError, match=r"must be \(1, 2, 2, 4, 4\) for these frames, got \(1, 2, 2, 4, 5\)"):
            clip_flow(FilesFlow(), torch.zeros(1, 3, 3, 4, 4), torch.zeros(1, 2, 2, 4, 5))

    def test_a_single_frame_is_refused(self):
        with pytest.raises(DataError, match="at least 2 frames"):
            clip_flow(DISFlow(), torch.zeros(1, 1, 3, 16, 16))
