"""Flow searched for in torch: known motions, OpenCV's flow as a yardstick, and what it is for."""

import importlib.util

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import moving_texture, psnr_db, square_over_background
from shared_data import shared

from benchmarks.interpolation import interpolation_benchmark, load_frames, load_labels
from fastv2v.errors import ConfigError, ShapeError
from fastv2v.nn.optical_flow import RAFTFlow, import_raft
from interpolate.motion import DISInterpolator, MotionConfig
from interpolate.torch_flow import SearchConfig, scaled_flow, search_flow
from interpolate.torch_motion import ArrayInterpolator, TorchInterpolator


def grey(frame):
    return torch.from_numpy(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)).float()[None, None]


class TestSearch:
    @given(
        dx=st.floats(-6, 6), dy=st.floats(-4, 4), config=st.sampled_from([SearchConfig(), SearchConfig(refinements=0)])
    )
    @settings(deadline=None, max_examples=12)
    def test_a_moving_texture_is_followed_to_a_tenth_of_a_pixel(self, dx, dy, config):
        one, other = moving_texture(2, (dx, dy), (64, 96))
        flow = search_flow(grey(one), grey(other), config)[0, :, 12:-12, 12:-12]
        off = (flow - torch.tensor([dx, dy]).view(2, 1, 1)).square().sum(0).sqrt()
        assert off.median() < 0.1

    def test_equal_pictures_stand_still(self):
        (one,) = moving_texture(1, (0, 0), (40, 56))
        assert search_flow(grey(one), grey(one)).abs().max() < 1e-3

    def test_flat_pictures_stand_still_whatever_their_brightness(self):
        flat = torch.full((1, 1, 32, 48), 90.0)
        assert search_flow(flat, flat + 20).abs().max() < 0.05

    @pytest.mark.parametrize("size", [(3, 5), (8, 8), (17, 70), (33, 31)])
    def test_any_size_is_taken(self, size):
        rng = np.random.default_rng(0)
        pictures = torch.from_numpy(rng.uniform(0, 255, (2, 1, *size)).astype(np.float32))
        flow = search_flow(pictures[:1], pictures[1:])
        assert flow.shape == (1, 2, *size)
        assert flow.isfinite().all()

    def test_pictures_of_a_batch_do_not_mix(self):
        frames = [grey(x) for x in moving_texture(4, (2, 1), (48, 64))]
        one, other = torch.cat(frames[:2]), torch.cat(frames[2:])
        both = search_flow(one, other)
        for k in range(2):
            assert torch.allclose(both[k : k + 1], search_flow(one[k : k + 1], other[k : k + 1]), atol=1e-3)

    def test_it_gives_no_gradients(self):
        one, other = (grey(x).requires_grad_() for x in moving_texture(2, (1, 0), (32, 32)))
        assert not search_flow(one, other).requires_grad

    def test_strangers_are_refused(self):
        with pytest.raises(ShapeError, match=r"\(B, 1, h, w\), got \(1, 3, 8, 8\)"):
            search_flow(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))
        with pytest.raises(ConfigError, match="stride must divide 8, got 3"):
            SearchConfig(stride=3)
        with pytest.raises(ConfigError, match="rounds and sweeps must be at least 1"):
            SearchConfig(rounds=0)


def test_a_scaled_flow_is_in_the_pixels_of_its_new_size():
    flow = torch.tensor([3.0, -2.0]).view(1, 2, 1, 1).expand(1, 2, 4, 6)
    assert torch.equal(scaled_flow(flow, 8, 18)[0, :, 3, 5], torch.tensor([9.0, -4.0]))
    assert torch.equal(scaled_flow(flow, 2, 3)[0, :, 1, 1], torch.tensor([1.5, -1.0]))
    assert scaled_flow(flow, 4, 6) is flow


class TestFilling:
    def test_things_that_cover_each_other_are_filled_as_well_as_on_the_cpu(self):
        frames = square_over_background(5, step=4)
        times = [0.25, 0.5, 0.75]
        scores = [
            np.mean([psnr_db(a, b) for a, b in zip(x.between(frames[0], frames[4], times), frames[1:4], strict=True)])
            for x in (ArrayInterpolator(TorchInterpolator()), DISInterpolator())
        ]
        assert scores[0] > scores[1] - 0.3

    def test_arrays_are_the_callers_and_of_the_wanted_type(self):
        frames = moving_texture(5, (2, 0), (40, 64))
        labels = [np.full((40, 64), 3, np.uint16)] * 3
        (made,) = ArrayInterpolator(TorchInterpolator()).between(frames[0], frames[4], [np.float64(0.5)], labels)
        assert made.shape == (40, 64, 3) and made.dtype == np.uint8 and made.flags["C_CONTIGUOUS"]
        assert psnr_db(made, frames[2]) > 30

    def test_an_estimator_is_asked_once_for_both_directions(self):
        asked = []

        def estimator(current, previous):
            asked.append(current.shape)
            return current.new_zeros(current.shape[0], 2, *current.shape[2:]), None

        frames = moving_texture(2, (0, 0), (32, 48))
        interpolator = TorchInterpolator(MotionConfig(cut_threshold=None), estimator)
        (made,) = ArrayInterpolator(interpolator).between(frames[0], frames[1], [0.5])
        assert asked == [(2, 3, 32, 48)]
        assert np.array_equal(made, frames[0])

    def test_raft_small_fills_too(self):
        if importlib.util.find_spec("torchvision") is None:
            pytest.skip("RAFT is torchvision's, which is not installed (extra 'raft')")
        torch.manual_seed(0)
        network = import_raft().raft_small()
        frames = moving_texture(5, (2, 0), (128, 128))
        rows = interpolation_benchmark(frames, 4, ["blend"], repeats=1, threads=1, raft=RAFTFlow(network))
        assert [row["method"] for row in rows] == ["blend", "ours (torch, RAFT)"]


def test_on_real_driving_it_is_within_a_fifth_of_a_decibel_of_the_cpu_path():
    camvid = shared("street_camvid")
    frames = load_frames(camvid / "train_B/0016E5", (256, 512), limit=13)
    labels = load_labels(camvid / "train_A/0016E5", (256, 512), limit=13)
    rows = interpolation_benchmark(frames, 4, ["dis-fast", "ours (torch)"], repeats=1, threads=1, labels=labels)
    scores = {row["method"]: row["psnr_db"] for row in rows}
    assert scores["ours (torch)"] > scores["dis-fast"] - 0.2
    assert scores["ours (torch), labels"] > scores["dis-fast, labels"] - 0.2
