import math
import subprocess
import sys

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastv2v.errors import ConfigError, ShapeError
from interpolate.keyframes import (
    KeyframeConfig,
    KeyframeSelector,
    adaptive_keyframes,
    change_peaks,
    condition_change,
    label_change,
    picture_change,
    select_keyframes,
    smooth_change,
    uniform_keyframes,
)

EXAMPLE = [5, 3, 8, 2, 9, 1, 4, 7, 6]


def stream(config: KeyframeConfig, conditions: list[np.ndarray]) -> list[int]:
    selector = KeyframeSelector(config)
    chosen = [index for condition in conditions for index in selector.push(condition)]
    return chosen + selector.finish()


def conditions_with_changes(changes: list[int]) -> list[np.ndarray]:
    """Float conditions (1, 1, 1) whose mean absolute differences are exactly ``changes``."""
    return [np.full((1, 1, 1), value, dtype=np.float64) for value in np.cumsum([0, *changes])]


def test_uniform_takes_every_gapth_frame_and_the_last():
    assert uniform_keyframes(10, 4) == [0, 4, 8, 9]
    assert uniform_keyframes(9, 4) == [0, 4, 8]
    assert uniform_keyframes(3, 8) == [0, 2]
    assert uniform_keyframes(1, 4) == [0]


def test_uniform_refuses_nothing():
    with pytest.raises(ConfigError, match="got 0 and 4"):
        uniform_keyframes(0, 4)


class TestChange:
    def test_label_change_is_the_share_of_changed_pixels(self):
        a = np.zeros((4, 5), dtype=np.uint8)
        b = a.copy()
        b[0, :3] = 200  # ids, not amounts: how far apart they are does not matter, nor does wrapping
        assert label_change(a, b) == label_change(b, a) == 3 / 20

    def test_picture_change_is_the_luv_difference_per_pixel(self):
        rng = np.random.default_rng(0)
        a, b = rng.integers(0, 256, (2, 7, 9, 3), dtype=np.uint8)
        luv = [cv2.cvtColor(x, cv2.COLOR_RGB2LUV).astype(np.int64) for x in (a, b)]
        assert picture_change(a, b) == pytest.approx(np.abs(luv[0] - luv[1]).sum() / 63)

    def test_grey_pictures_are_three_equal_channels(self):
        a, b = np.random.default_rng(1).integers(0, 256, (2, 6, 6), dtype=np.uint8)
        as_colour = [np.repeat(x[..., None], 3, axis=2) for x in (a, b)]
        assert picture_change(a, b) == picture_change(*as_colour)

    def test_every_kind_of_condition_has_its_measure(self):
        labels = np.zeros((2, 2), dtype=np.int64)
        assert condition_change(labels, labels + 7) == 1.0
        assert condition_change(np.zeros((3, 2, 2), np.float32), np.full((3, 2, 2), 0.5, np.float32)) == 0.5
        with pytest.raises(ShapeError, match="a condition is"):
            condition_change(np.zeros(4), np.zeros(4))

    def test_different_sizes_are_refused(self):
        with pytest.raises(ShapeError, match="must share a size"):
            label_change(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8))


class TestPeaks:
    def test_hann_of_three_smooths_nothing(self):
        np.testing.assert_allclose(smooth_change(EXAMPLE, 3), EXAMPLE)
        assert change_peaks(EXAMPLE, 3) == change_peaks(EXAMPLE, 1) == [3, 5, 8]

    def test_hann_of_five_gives_the_values_worked_out_by_hand(self):
        np.testing.assert_allclose(smooth_change(EXAMPLE, 5), [3.75, 4.75, 5.25, 5.25, 5.25, 3.75, 4, 6, 6.25])
        assert change_peaks(EXAMPLE, 5) == []  # a plateau and an end are no peaks

    def test_fewer_values_than_the_window_are_left_alone(self):
        assert change_peaks([0, 5, 0, 1], 5) == [2]

    @pytest.mark.parametrize("length", [0, 1, 2])
    def test_too_few_values_have_no_peak(self, length):
        assert change_peaks([1.0] * length, 5) == []

    def test_an_even_window_is_refused(self):
        with pytest.raises(ConfigError, match="odd and positive, got 4"):
            change_peaks(EXAMPLE, 4)


class TestAdaptive:
    def test_peaks_first_and_last(self):
        assert adaptive_keyframes(EXAMPLE, max_gap=4, window=3) == [0, 3, 5, 8, 9]

    def test_long_stretches_are_split_evenly(self):
        assert adaptive_keyframes([0.0] * 9, max_gap=4) == [0, 3, 6, 9]
        assert adaptive_keyframes([0.0] * 10, max_gap=4) == [0, 3, 6, 10]

    def test_close_peaks_are_passed_over(self):
        assert adaptive_keyframes(EXAMPLE, max_gap=5, min_gap=3, window=3) == [0, 3, 8, 9]

    def test_one_frame_has_one_keyframe(self):
        assert adaptive_keyframes([], max_gap=4) == [0]

    def test_a_least_gap_that_cannot_be_kept_is_refused(self):
        with pytest.raises(ConfigError, match="min_gap must lie in 1 to 2 for a largest gap of 4, got 3"):
            adaptive_keyframes(EXAMPLE, max_gap=4, min_gap=3)

    @given(
        change=st.lists(st.integers(0, 20), max_size=60),
        max_gap=st.integers(1, 9),
        window=st.sampled_from([1, 3, 5, 7]),
        data=st.data(),
    )
    def test_gaps_stay_within_bounds(self, change, max_gap, window, data):
        min_gap = data.draw(st.integers(1, (max_gap + 1) // 2))
        keyframes = adaptive_keyframes(change, max_gap=max_gap, min_gap=min_gap, window=window)
        gaps = np.diff(keyframes)
        assert keyframes[0] == 0
        assert keyframes[-1] == len(change)
        assert all(gaps <= max_gap)
        assert all(gaps[:-1] >= min_gap)


class TestSelector:
    @given(num_frames=st.integers(1, 40), gap=st.integers(1, 9))
    def test_uniform_stream_equals_offline(self, num_frames, gap):
        condition = np.zeros((2, 2), dtype=np.uint8)
        config = KeyframeConfig(gap=gap)
        assert stream(config, [condition] * num_frames) == uniform_keyframes(num_frames, gap)

    @given(change=st.lists(st.integers(0, 20), min_size=8, max_size=60), window=st.sampled_from([1, 3, 5, 7]))
    def test_adaptive_stream_finds_the_peaks_of_offline(self, change, window):
        # With a gap that is never reached, only peaks are chosen.
        config = KeyframeConfig(policy="adaptive", gap=100, window=window)
        assert stream(config, conditions_with_changes(change)) == adaptive_keyframes(change, max_gap=100, window=window)

    @settings(max_examples=60)
    @given(change=st.lists(st.integers(0, 20), max_size=50), gap=st.integers(3, 9), data=st.data())
    def test_adaptive_stream_keeps_its_bounds_and_decides_in_time(self, change, gap, data):
        min_gap = data.draw(st.integers(1, (gap + 1) // 2))
        config = KeyframeConfig(
            policy="adaptive", gap=gap, min_gap=min_gap, window=data.draw(st.sampled_from([1, 3, 5]))
        )
        selector = KeyframeSelector(config)
        chosen = []
        for now, condition in enumerate(conditions_with_changes(change)):
            decided = selector.push(condition)
            assert all(now - gap <= index <= now for index in decided)
            chosen += decided
            assert now - chosen[-1] < 2 * gap
        chosen += selector.finish()
        gaps = np.diff(chosen)
        assert chosen[0] == 0
        assert chosen[-1] == len(change)
        assert all(gaps <= gap)
        assert all(gaps[:-1] >= min_gap)

    def test_a_calm_stream_gets_the_largest_gaps(self):
        config = KeyframeConfig(policy="adaptive", gap=4)
        still = [np.zeros((2, 2), dtype=np.uint8)] * 10
        assert stream(config, still) == [0, 4, 8, 9]
        assert select_keyframes(config, still) == [0, 3, 6, 9]  # offline knows the end and splits evenly

    def test_memory_does_not_grow(self):
        selector = KeyframeSelector(KeyframeConfig(policy="adaptive", gap=4))
        for _ in range(500):
            selector.push(np.zeros((2, 2), dtype=np.uint8))
        assert len(selector._changes) < 50

    def test_misuse_is_refused(self):
        selector = KeyframeSelector()
        with pytest.raises(ConfigError, match="before its first frame"):
            selector.finish()
        selector.push(np.zeros((2, 2), dtype=np.uint8))
        assert selector.finish() == []
        with pytest.raises(ConfigError, match="twice"):
            selector.finish()
        with pytest.raises(ConfigError, match="after finish"):
            selector.push(np.zeros((2, 2), dtype=np.uint8))


def changing(shares):
    """Label maps of 100 pixels, of which so many per cent change from each to the next."""
    maps = [np.zeros((10, 10), dtype=np.uint8)]
    for share in shares:
        following = maps[-1].copy()
        following.flat[:share] += 1
        maps.append(following)
    return maps


class TestDecidedAtOnce:
    """Policies that look at no future frame."""

    @given(shares=st.lists(st.integers(0, 100), max_size=60), gap=st.integers(1, 8), data=st.data())
    @settings(deadline=None)
    def test_causal_stays_within_its_gaps_and_announces_frames_as_they_come(self, shares, gap, data):
        min_gap = data.draw(st.integers(1, (gap + 1) // 2))
        every = data.draw(st.floats(1, gap))
        selector = KeyframeSelector(KeyframeConfig(policy="causal", gap=gap, min_gap=min_gap, every=every))
        maps, chosen = changing(shares), []
        for index, labels in enumerate(maps):
            said = selector.push(labels)
            assert said in ([], [index])
            chosen += said
        gaps = np.diff(chosen)
        assert chosen[0] == 0 and (gaps <= gap).all() and (gaps >= min_gap).all()
        assert chosen + selector.finish() == select_keyframes(selector.config, maps)
        assert len(maps) - chosen[-1] <= gap

    @pytest.mark.parametrize("every", range(1, 11))
    def test_steady_change_gets_the_pace_that_was_asked_for(self, every):
        config = KeyframeConfig(policy="causal", gap=10, every=every)
        chosen = select_keyframes(config, changing([10] * 60))
        assert chosen[:-1] == [*range(0, 60, every)][: len(chosen) - 1]
        assert config.mean_gap(25) == every

    def test_a_burst_of_change_gets_keyframes_and_calm_the_largest_gap(self):
        chosen = select_keyframes(KeyframeConfig(policy="causal", gap=8, every=4), changing([5] * 40 + [60] + [0] * 24))
        assert 41 in chosen
        assert chosen[chosen.index(41) :] == [41, 49, 57, 65]

    @given(
        shares=st.lists(st.integers(0, 100), max_size=120),
        per_second=st.integers(1, 6),
        fps=st.floats(2, 30),
        more=st.integers(0, 4),
    )
    @settings(deadline=None)
    def test_a_budget_holds_in_every_second_and_so_does_the_gap(self, shares, per_second, fps, more):
        gap = math.ceil(fps / per_second) + more
        selector = KeyframeSelector(KeyframeConfig(policy="budgeted", gap=gap, per_second=per_second), fps)
        chosen = [index for labels in changing(shares) for index in selector.push(labels)]
        assert (np.diff(chosen) <= gap).all()
        assert all(late - early >= fps for early, late in zip(chosen, chosen[per_second:], strict=False))

    def test_a_budget_is_spent_where_things_change(self):
        calm, busy = [2] * 50, [40] * 50
        config = KeyframeConfig(policy="budgeted", gap=10, per_second=5)
        chosen = np.array(select_keyframes(config, changing(calm + busy + calm), fps=25))
        assert np.sum((chosen > 50) & (chosen <= 100)) > np.sum(chosen > 100)
        assert len(chosen) <= 5 * 150 / 25 + 2
        assert config.mean_gap(25) == 5

    def test_a_gap_beyond_the_budget_is_refused_with_both_remedies(self):
        config = KeyframeConfig(policy="budgeted", gap=4, per_second=5)
        with pytest.raises(ConfigError, match=r"gap of 4 needs at 25 frames/s; allow 7 or widen the gap to 5"):
            KeyframeSelector(config, 25)
        with pytest.raises(ConfigError, match="needs the frame rate"):
            KeyframeSelector(config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"policy": "budgeted"}, "per_second"),
        ({"per_second": 3}, "give both or neither"),
        ({"policy": "budgeted", "per_second": 0}, "at least 1"),
        ({"policy": "budgeted", "per_second": 2.5}, "whole number"),
        ({"every": 2.0}, "policy causal"),
        ({"policy": "causal", "every": 9.0}, "from 1 to the gap of 4"),
        ({"policy": "random"}, "unknown"),
        ({"gap": 0}, "gap must be at least 1"),
        ({"min_gap": 3}, "min_gap must lie in 1 to 2"),
        ({"window": 2}, "odd"),
        ({"policy": "adaptive", "gap": 2, "window": 9}, "looks 4 frames ahead"),
    ],
)
def test_config_refuses_nonsense(fields, message):
    with pytest.raises(ConfigError, match=message):
        KeyframeConfig(**fields)


def test_the_room_runs_without_torch():
    program = (
        "import sys\n"
        "import interpolate, interpolate.keyframes, interpolate.fill, interpolate.motion, interpolate.minterpolate\n"
        "assert not {'torch', 'ffmpeg', 'imageio_ffmpeg'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
