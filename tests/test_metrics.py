"""Measures against closed forms and independent implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from benchmarks.quality import MEAN_COLOUR, PREVIOUS_FRAME, REAL, mean_scores, quality_table, score_rows, score_video
from fastv2v.errors import ConfigError, DataError, ShapeError
from fastv2v.metrics import (
    MeanColourFloor,
    flicker,
    flows_and_masks,
    previous_frame_floor,
    psnr,
    ssim,
    vmaf,
    warping_error,
)
from fastv2v.metrics.temporal import warp_numpy, warping_errors
from fastv2v.metrics.vmaf import pool_vmaf


def noise(size=(48, 64), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def texture(size=(64, 96), seed=0):
    """A smooth random picture, on which motion can be found."""
    coarse = np.random.default_rng(seed).normal(size=(*size, 3))
    spectrum = np.fft.fft2(coarse, axes=(0, 1))
    y, x = np.fft.fftfreq(size[0])[:, None], np.fft.fftfreq(size[1])[None]
    smooth = np.fft.ifft2(spectrum * np.exp(-((x**2 + y**2) * 200))[..., None], axes=(0, 1)).real
    smooth = (smooth - smooth.min()) / np.ptp(smooth)
    return (smooth * 255).astype(np.uint8)


class TestPsnr:
    def test_a_constant_difference_of_one(self):
        a = np.full((8, 8, 3), 100, np.uint8)
        assert psnr(a, a + 1) == pytest.approx(20 * math.log10(255), abs=1e-9)
        assert psnr(a, a + 1) == pytest.approx(48.13, abs=0.005)

    def test_black_and_white_are_zero_decibels_apart(self):
        assert psnr(np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)) == 0

    def test_identical_frames_have_the_cap(self):
        assert psnr(noise(), noise()) == 100

    def test_equals_scikit_image(self):
        a, b = noise(seed=1), noise(seed=2)
        assert psnr(a, b) == pytest.approx(peak_signal_noise_ratio(a, b), abs=1e-9)

    def test_other_frames_are_refused(self):
        with pytest.raises(ShapeError, match="one size"):
            psnr(noise(), noise((48, 65)))
        with pytest.raises(ShapeError, match="second frame"):
            psnr(noise(), noise().astype(np.float32))


class TestSsim:
    @pytest.mark.parametrize("change", ["noise", "inverse", "shift", "flat"])
    def test_equals_scikit_image(self, change):
        a = texture()
        b = {
            "noise": np.clip(a + np.random.default_rng(0).normal(0, 12, a.shape), 0, 255).astype(np.uint8),
            "inverse": 255 - a,
            "shift": np.roll(a, 3, axis=1),
            "flat": np.full_like(a, 77),
        }[change]
        gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
        assert ssim(a, b) == pytest.approx(structural_similarity(a, b, channel_axis=2, **gaussian), abs=2e-6)

    def test_identical_frames_score_one(self):
        assert ssim(noise(), noise()) == pytest.approx(1, abs=1e-7)
        assert ssim(noise(), noise()) <= 1

    def test_constant_frames_follow_the_luminance_term(self):
        a, b = np.full((12, 12, 3), 100, np.uint8), np.full((12, 12, 3), 110, np.uint8)
        c1 = (0.01 * 255) ** 2
        assert ssim(a, b) == pytest.approx((2 * 100 * 110 + c1) / (100**2 + 110**2 + c1), abs=1e-6)

    def test_frames_smaller_than_the_window_are_refused(self):
        with pytest.raises(ShapeError, match="11x11"):
            ssim(noise((10, 20)), noise((10, 20)))


class TestVmaf:
    def test_identical_video_is_near_100_and_noise_costs(self):
        video = [np.roll(texture((72, 96)), 2 * t, axis=1) for t in range(6)]
        rng = np.random.default_rng(0)
        noisy = [np.clip(f + rng.normal(0, 25, f.shape), 0, 255).astype(np.uint8) for f in video]
        same, worse = vmaf(iter(video), iter(video)), vmaf(noisy, video)
        assert same.harmonic_mean > 95
        assert len(same.per_frame) == 6
        assert worse.harmonic_mean < same.harmonic_mean - 5

    def test_odd_sizes_are_scored(self):
        video = [texture((67, 45))] * 3
        assert vmaf(video, video).harmonic_mean > 90

    def test_pooling_of_known_scores(self):
        score = pool_vmaf([0, 1, 3])
        assert score.harmonic_mean == pytest.approx(3 / (1 + 1 / 2 + 1 / 4) - 1)
        assert score.percentile_5 == pytest.approx(0.1)

    @pytest.mark.parametrize(
        ("frames", "real", "message"),
        [
            ([noise()], [noise()] * 2, "ends after 1 frames"),
            ([], [], "at least one frame"),
            ([noise((16, 16))], [noise((16, 16))], "at least 32x32"),
            ([noise(), noise((50, 64))], [noise(), noise((50, 64))], "frame 1 is"),
        ],
    )
    def test_what_cannot_be_compared_is_refused(self, frames, real, message):
        with pytest.raises(ShapeError, match=message):
            vmaf(frames, real)


class TestWarpingError:
    def test_a_static_video_has_none(self):
        video = [texture()] * 3
        motion = flows_and_masks(video)
        assert warping_error(video, *motion) == 0
        assert all(mask.mean() > 0.99 for mask in motion.masks)

    def test_flow_points_from_the_later_frame_to_the_earlier(self):
        wide = texture((64, 128))
        video = [wide[:, 4:100], wide[:, 2:98]]  # the content moves 2 pixels to the right
        flow, mask = (part[0] for part in flows_and_masks(video))
        assert np.median(flow[..., 0][mask]) == pytest.approx(-2, abs=0.1)
        assert np.median(flow[..., 1][mask]) == pytest.approx(0, abs=0.1)

    def test_a_translated_texture_with_its_true_flow_has_none(self):
        wide = texture((64, 128))
        video = [wide[:, 4:100], wide[:, 2:98]]
        flow = np.zeros((64, 96, 2), np.float32)
        flow[..., 0] = -2
        mask = np.ones((64, 96), bool)
        mask[:, :2] = False  # newly come into view
        assert warping_error(video, [flow], [mask]) == pytest.approx(0, abs=1e-12)
        assert warping_error(video, *flows_and_masks(video)) < 1e-5

    def test_a_brightness_step_is_its_square(self):
        video = [np.full((16, 16, 3), value, np.uint8) for value in (50, 101)]
        still = [np.zeros((16, 16, 2), np.float32)]
        assert warping_error(video, still, [np.ones((16, 16), bool)]) == pytest.approx((51 / 255) ** 2)

    def test_pixels_that_leave_the_frame_are_masked(self):
        wide = texture((64, 160))
        masks = flows_and_masks([wide[:, 8:104], wide[:, 0:96]]).masks
        assert not masks[0][16:48, :6].any()

    def test_an_empty_mask_is_left_out_and_nothing_left_is_nan(self):
        video = [np.full((16, 16, 3), value, np.uint8) for value in (0, 255, 255)]
        still = [np.zeros((16, 16, 2), np.float32)] * 2
        masks = [np.zeros((16, 16), bool), np.ones((16, 16), bool)]
        assert warping_error(video, still, masks) == 0
        assert math.isnan(warping_errors(video, still, masks)[0])
        assert math.isnan(warping_error(video[:1], [], []))

    def test_zero_flow_is_the_identity_and_one_pixel_right_samples_the_right_neighbour(self):
        source = np.arange(4, dtype=np.float32).reshape(1, 4)
        flow = np.zeros((1, 4, 2), np.float32)
        np.testing.assert_array_equal(warp_numpy(source, flow), source)
        flow[..., 0] = 1
        np.testing.assert_array_equal(warp_numpy(source, flow), [[1, 2, 3, 3]])

    def test_disagreeing_counts_and_sizes_are_refused(self):
        flow, mask = np.zeros((16, 16, 2), np.float32), np.ones((16, 16), bool)
        with pytest.raises(ShapeError, match="belong to 2 frames, got 3"):
            warping_error([noise((16, 16))] * 3, [flow], [mask])
        with pytest.raises(ShapeError, match="its flow"):
            warping_error([noise((16, 18))] * 2, [flow], [mask])
        with pytest.raises(ShapeError, match="every flow has its mask"):
            warping_error([noise((16, 16))] * 2, [flow], [])
        with pytest.raises(ShapeError, match="12x12"):
            flows_and_masks([noise((8, 8))] * 2)


class TestFlicker:
    def test_a_constant_offset_does_not_flicker(self):
        real = [np.full((8, 8, 3), v, np.uint8) for v in (10, 60, 90)]
        assert flicker([f + 7 for f in real], real) == 0

    def test_alternating_brightness_is_its_change(self):
        real = [np.full((8, 8, 3), 100, np.uint8)] * 3
        assert flicker([f + d for f, d in zip(real, (0, 51, 0), strict=True)], real) == pytest.approx(0.2)

    def test_a_single_frame_has_no_number(self):
        assert math.isnan(flicker([noise()], [noise()]))

    def test_another_count_is_refused(self):
        with pytest.raises(ShapeError, match="ends after 1"):
            flicker([noise()], [noise(), noise()])


class TestMeanColourFloor:
    def test_means_are_taken_over_all_pixels_of_a_label(self):
        labels = [np.array([[0, 0, 2]]), np.array([[2, 2, 2]])]
        frames = [np.full((1, 3, 3), 10, np.uint8), np.full((1, 3, 3), 50, np.uint8)]
        floor = MeanColourFloor.fit(zip(labels, frames, strict=True))
        # label 0: 10; label 2: (10 + 3 * 50) / 4 = 40; label 1 and unknown ids: (3 * 10 + 3 * 50) / 6 = 30
        painted = floor.paint(np.array([[0, 1, 2, 9]]))
        np.testing.assert_array_equal(painted[0, :, 0], [10, 30, 40, 30])
        assert painted.dtype == np.uint8

    def test_channels_stay_apart_and_later_labels_extend_the_table(self):
        red = np.broadcast_to(np.array([255, 0, 0], np.uint8), (2, 2, 3))
        blue = np.broadcast_to(np.array([0, 0, 255], np.uint8), (2, 2, 3))
        floor = MeanColourFloor.fit([(np.zeros((2, 2), np.uint8), red), (np.full((2, 2), 300, np.uint16), blue)])
        np.testing.assert_array_equal(floor.paint(np.array([[0, 300]]))[0], [[255, 0, 0], [0, 0, 255]])

    def test_no_data_and_misfits_are_refused(self):
        with pytest.raises(DataError, match="at least one"):
            MeanColourFloor.fit([])
        with pytest.raises(ShapeError, match="differ in size"):
            MeanColourFloor.fit([(np.zeros((3, 3), int), noise((4, 4)))])
        with pytest.raises(DataError, match=r"0\.\.65535"):
            MeanColourFloor.fit([(np.full((4, 4), -1), noise((4, 4)))])


def test_previous_frame_floor_stays_aligned():
    before, *real = (noise(seed=s) for s in range(4))
    floor = previous_frame_floor(real, before)
    assert len(floor) == len(real)
    assert floor[0] is before
    assert floor[2] is real[1]
    assert previous_frame_floor([], before) == []


class TestScoreVideo:
    def video(self, num_frames=5):
        return [np.roll(texture((48, 64)), t, axis=1) for t in range(num_frames)]

    def test_real_video_scores_itself(self):
        real = self.video()
        scores = score_video("real", real, real)
        assert (scores["all"]["psnr_db"], scores["all"]["ssim"], scores["all"]["flicker"]) == (100, 1, 0)
        assert scores["all"]["vmaf"] > 90
        assert scores["all"]["num_frames"] == 5
        assert scores["keyframes"] is scores["interpolated"] is None

    def test_sets_are_taken_apart_by_frame_index(self):
        real = [np.full((32, 32, 3), 100, np.uint8)] * 4
        frames = [real[0], real[0] + 1, real[0], real[0] + 1]
        scores = score_video("s", frames, real, keyframe_mask=[True, False, True, False], with_vmaf=False)
        assert scores["keyframes"]["psnr_db"] == 100
        assert scores["interpolated"]["psnr_db"] == pytest.approx(48.1308, abs=1e-4)
        assert scores["all"]["psnr_db"] == pytest.approx((100 + 48.1308) / 2, abs=1e-4)
        # the first frame has no earlier one: of the keyframes only frame 2 has a flicker
        assert scores["keyframes"]["flicker"] == pytest.approx(1 / 255)
        assert scores["keyframes"]["warping_error"] == pytest.approx(1 / 255**2)
        assert scores["all"]["vmaf"] is None

    def test_vmaf_of_a_set_is_pooled_from_the_whole_video(self):
        real = self.video()
        frames = [f if t % 2 == 0 else 255 - f for t, f in enumerate(real)]
        whole = vmaf(frames, real).per_frame
        scores = score_video("s", frames, real, keyframe_mask=[t % 2 == 0 for t in range(5)])
        assert scores["keyframes"]["vmaf"] == pytest.approx(pool_vmaf(whole[::2]).harmonic_mean)

    def test_likeness_to_the_teacher_stands_beside_likeness_to_the_real_frames(self):
        real = [np.full((32, 32, 3), 100, np.uint8)] * 3
        frames, teacher = [x + 1 for x in real], [x + 3 for x in real]
        marks = [True, False, True]
        scores = score_video("s", frames, real, keyframe_mask=marks, with_vmaf=False, teacher=teacher)
        assert scores["all"]["psnr_db"] == pytest.approx(48.1308, abs=1e-4)
        assert scores["all"]["teacher_psnr_db"] == pytest.approx(48.1308 - 20 * math.log10(2), abs=1e-4)
        assert scores["keyframes"]["teacher_ssim"] < 1
        assert scores["all"]["teacher_vmaf"] is None
        assert mean_scores("set", [scores, scores])["all"]["teacher_psnr_db"] == scores["all"]["teacher_psnr_db"]
        with pytest.raises(ShapeError, match="s: videos of equal length"):
            score_video("s", frames, real, with_vmaf=False, teacher=teacher[:2])

    def test_disagreeing_counts_name_the_video(self):
        real = self.video()
        with pytest.raises(ShapeError, match="student: 4 frames against 5"):
            score_video("student", real[:4], real)
        with pytest.raises(ShapeError, match="student: 2 keyframe marks for 5"):
            score_video("student", real, real, keyframe_mask=[True, False])
        with pytest.raises(ShapeError, match=r"student: .*one size"):
            score_video("student", [f[:-2] for f in real], real)

    def test_rows_and_means(self):
        one = {"num_frames": 4, "psnr_db": 20.0, "ssim": 0.5, "vmaf": None, "vmaf_p5": None, "warping_error": 0.0}
        two = one | {"psnr_db": 30.0, "num_frames": 2, "vmaf": 50.0, "vmaf_p5": 40.0}
        videos = [
            {"name": "a", "all": one | {"flicker": 0.1}, "keyframes": None, "interpolated": None},
            {"name": "b", "all": two | {"flicker": None}, "keyframes": None, "interpolated": None},
        ]
        (row,) = score_rows(mean_scores("set", videos))
        assert row["name"] == "set"
        assert row["frames"] == "all"
        assert (row["num_frames"], row["psnr_db"], row["vmaf"], row["flicker"]) == (6, 25.0, 50.0, 0.1)
        with pytest.raises(ConfigError, match="at least one"):
            mean_scores("set", [])


class TestQualityTable:
    def test_floors_stand_beside_the_candidates(self):
        before, *real = (np.roll(texture((48, 64)), 2 * t, axis=1) for t in range(5))
        labels = [(frame[..., 0] // 64) for frame in real]
        floor = MeanColourFloor.fit(zip(labels, real, strict=True))
        rows = quality_table(
            real,
            {"student": real},
            keyframe_masks={"student": [True, False, True, False]},
            before=before,
            labels=labels,
            mean_colour=floor,
            with_vmaf=False,
        )
        assert [row["name"] for row in rows] == [REAL, MEAN_COLOUR, PREVIOUS_FRAME, "student"]
        psnr_of = {row["name"]: row["all"]["psnr_db"] for row in rows}
        assert psnr_of[REAL] == psnr_of["student"] == 100
        assert psnr_of[MEAN_COLOUR] == pytest.approx(
            np.mean([psnr(floor.paint(x), r) for x, r in zip(labels, real, strict=True)])
        )
        assert psnr_of[PREVIOUS_FRAME] == pytest.approx(
            np.mean([psnr(a, b) for a, b in zip([before, *real[:-1]], real, strict=True)])
        )
        assert len(score_rows(rows[-1])) == 3

    def test_what_fits_no_candidate_is_refused(self):
        real = [texture((48, 64))] * 2
        with pytest.raises(ConfigError, match="no candidates"):
            quality_table(real, {"a": real}, keyframe_masks={"b": [True, True]})
        with pytest.raises(ConfigError, match="both labels and"):
            quality_table(real, {"a": real}, labels=[np.zeros((48, 64), int)] * 2)
        with pytest.raises(ConfigError, match="may not be called"):
            quality_table(real, {REAL: real})
