"""Which frames make a clip."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastv2v.data.sampling import (
    SamplingConfig,
    draw_clip,
    draw_sequence,
    draw_window,
    generator_at,
    shared_frames,
    start_counts,
)
from fastv2v.errors import ConfigError, DataError


def draw_batch(config, lengths, step, rngs):
    """The clips of one step, as the loader draws them."""
    sequences = [draw_sequence(config, lengths, rng) for rng in rngs]
    num_frames = shared_frames(config, lengths, step, sequences)
    return [draw_window(config, s, lengths[s], num_frames, rng) for s, rng in zip(sequences, rngs, strict=True)]


def draws(config, lengths, num=2000):
    return [draw_clip(config, lengths, np.random.default_rng(seed)) for seed in range(num)]


class TestDrawClip:
    @given(
        num_frames=st.integers(1, 12),
        max_step=st.integers(1, 6),
        lengths=st.lists(st.integers(0, 40), min_size=1, max_size=5),
        seed=st.integers(0, 2**32),
    )
    def test_frames_lie_in_the_sequence_at_one_distance(self, num_frames, max_step, lengths, seed):
        config = SamplingConfig(num_frames=num_frames, max_step=max_step)
        if max(lengths) < num_frames:
            with pytest.raises(DataError, match="no sequence is long enough"):
                draw_clip(config, lengths, np.random.default_rng(seed))
            return
        clip = draw_clip(config, lengths, np.random.default_rng(seed))
        assert len(clip.indices) == num_frames
        assert clip.indices[0] == clip.start >= 0
        assert clip.indices[-1] < lengths[clip.sequence]
        assert set(np.diff(clip.indices)) <= {clip.step}
        assert 1 <= clip.step <= max_step

    def test_every_start_and_every_step_that_fits_is_drawn(self):
        clips = draws(SamplingConfig(num_frames=3, max_step=9), [7])
        # (7 - 1) // 2 = 3 is the widest step; a clip then covers 1 + 2 * step frames
        assert {(c.step, c.start) for c in clips} == {(1, s) for s in range(5)} | {(2, s) for s in range(3)} | {(3, 0)}
        steps = Counter(c.step for c in clips)
        assert all(count == pytest.approx(2000 / 3, rel=0.15) for count in steps.values())

    def test_sequences_are_drawn_by_their_number_of_starts(self):
        clips = draws(SamplingConfig(num_frames=4), [4, 3, 12, 6])  # 1, 0, 9 and 3 starts
        counts = Counter(c.sequence for c in clips)
        assert counts[1] == 0
        assert counts[2] / 2000 == pytest.approx(9 / 13, abs=0.04)
        assert counts[3] / 2000 == pytest.approx(3 / 13, abs=0.04)

    def test_half_of_the_clips_are_mirrored(self):
        assert np.mean([c.flip for c in draws(SamplingConfig(num_frames=1), [1])]) == pytest.approx(0.5, abs=0.04)
        assert not any(c.flip for c in draws(SamplingConfig(num_frames=1, flip=False), [1]))

    def test_switching_mirroring_off_changes_nothing_else(self):
        lengths = [9, 12]
        with_flip, without = (draws(SamplingConfig(num_frames=4, flip=f), lengths, 20) for f in (True, False))
        for a, b in zip(with_flip, without, strict=True):
            assert a.indices == b.indices and a.sequence == b.sequence

    def test_a_single_frame_has_step_one(self):
        assert {c.step for c in draws(SamplingConfig(num_frames=1, max_step=5), [3], 50)} == {1}

    def test_a_fixed_clip_is_always_the_same(self):
        config = SamplingConfig(num_frames=4, flip=False, fixed_sequence=1, fixed_start=2)
        assert {c.indices for c in draws(config, [30, 10], 50)} == {(2, 3, 4, 5)}
        assert {c.sequence for c in draws(config, [30, 10], 50)} == {1}

    def test_a_fixed_start_leaves_room_for_the_step(self):
        config = SamplingConfig(num_frames=3, max_step=5, fixed_start=4)
        assert {c.indices for c in draws(config, [9])} == {(4, 5, 6), (4, 6, 8)}


class TestFramesAt:
    GROWING = SamplingConfig(num_frames=8, given_frames=2, grow_every=5)

    def test_clips_of_vid2vid_double_up_to_the_longest_sequence(self):
        # 6 synthesised frames at first, doubled after every 5 of 20, in sequences of 30
        made = [self.GROWING.frames_at(batch, 30) - 2 for batch in range(20)]
        assert made == [6] * 5 + [12] * 5 + [24] * 5 + [28] * 5

    def test_they_end_at_128_frames_as_in_vid2vid(self):
        assert self.GROWING.frames_at(10**6, 1000) == 128

    def test_they_end_at_max_frames(self):
        config = SamplingConfig(num_frames=8, grow_every=1, max_frames=20)
        assert [config.frames_at(batch, 1000) for batch in range(5)] == [8, 14, 20, 20, 20]
        assert config.frames_at(10**9, 1000) == 20

    def test_without_growth_they_stay(self):
        assert {SamplingConfig(num_frames=8).frames_at(batch, 30) for batch in (0, 10**6)} == {8}

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"grow_every": -1}, "grow_every"),
            ({"given_frames": -1}, "given_frames"),
            ({"grow_every": 1, "num_frames": 2}, r"more than the given_frames \(2\)"),
            ({"grow_every": 1, "max_frames": 7}, r"from num_frames \(8\) to max_frames \(7\)"),
        ],
    )
    def test_nonsense_is_refused(self, fields, message):
        with pytest.raises(ConfigError, match=message):
            SamplingConfig(**fields)


class TestDrawBatch:
    GROWING = SamplingConfig(num_frames=4, given_frames=2, grow_every=1, max_step=3)

    @given(batch=st.integers(0, 6), lengths=st.lists(st.integers(4, 40), min_size=1), seed=st.integers(0, 2**32))
    def test_all_clips_have_the_length_that_fits_the_shortest(self, batch, lengths, seed):
        clips = draw_batch(self.GROWING, lengths, batch, [generator_at(seed, i) for i in range(3)])
        shortest = min(lengths[clip.sequence] for clip in clips)
        expected = min(self.GROWING.frames_at(batch, max(lengths)), shortest)
        assert {len(clip.indices) for clip in clips} == {expected}
        for clip in clips:
            assert clip.start >= 0 and clip.indices[-1] < lengths[clip.sequence]
            assert set(np.diff(clip.indices)) == {clip.step}

    def test_short_sequences_stay_in(self):
        drawn = [draw_batch(self.GROWING, [5, 40], 9, [generator_at(seed)])[0] for seed in range(200)]
        assert {(clip.sequence, len(clip.indices)) for clip in drawn} == {(0, 5), (1, 40)}

    def test_a_fixed_start_leaves_fewer_frames(self):
        config = SamplingConfig(num_frames=4, grow_every=1, fixed_start=3)
        (clip,) = draw_batch(config, [10], 5, [generator_at(0)])
        assert clip.indices == tuple(range(3, 10))

    def test_without_growth_a_clip_does_not_depend_on_its_batch(self):
        config = SamplingConfig(num_frames=4, max_step=3)
        for seed in range(20):
            (clip,) = draw_batch(config, [9, 12], 7, [generator_at(seed)])
            assert clip == draw_clip(config, [9, 12], generator_at(seed))


class TestStartCounts:
    def test_counts(self):
        np.testing.assert_array_equal(start_counts(SamplingConfig(num_frames=4), [3, 4, 10]), [0, 1, 7])

    def test_too_short_names_the_need_and_the_longest(self):
        with pytest.raises(DataError, match=r"a clip of 8 frames needs at least 8, and the longest of 2 .* has 5"):
            start_counts(SamplingConfig(num_frames=8), [5, 3])

    def test_no_sequences(self):
        with pytest.raises(DataError, match="the longest of 0 sequences has 0"):
            start_counts(SamplingConfig(), [])

    def test_fixed_beyond_the_data(self):
        with pytest.raises(DataError, match="fixed_sequence is 2 and there are 2"):
            start_counts(SamplingConfig(fixed_sequence=2), [20, 20])
        with pytest.raises(DataError, match="from frame 15 needs at least 23"):
            start_counts(SamplingConfig(num_frames=8, fixed_start=15), [20])


class TestSamplingConfig:
    @pytest.mark.parametrize("fields", [{"num_frames": 0}, {"max_step": 0}, {"fixed_start": -1}])
    def test_nonsense_is_refused(self, fields):
        with pytest.raises(ConfigError, match=next(iter(fields))):
            SamplingConfig(**fields)


class TestGeneratorAt:
    def test_depends_on_the_place_alone(self):
        first = generator_at(7, "batch", 3).random(4)
        generator_at(7, "batch", 4).random(9)
        np.testing.assert_array_equal(generator_at(7, "batch", 3).random(4), first)
        assert not np.array_equal(generator_at(8, "batch", 3).random(4), first)
