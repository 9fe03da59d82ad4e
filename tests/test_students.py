import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastv2v.errors import ConfigError, DataError
from fastv2v.nn.composite import CompositeGenerator
from students import presets
from students.schedule import GapConfig, draw_gap, gap_probabilities, keyframe_indices


class TestPresets:
    def test_the_published_student_has_the_published_size(self):
        with torch.device("meta"):
            street = CompositeGenerator(presets.published(), 36, (26,))
        assert sum(p.numel() for p in street.parameters()) / 1e6 == pytest.approx(71.80, abs=5e-3)

    def test_the_demo_student_is_small_and_takes_reduced_input(self):
        with torch.device("meta"):
            student = CompositeGenerator(presets.demo(), 36)
        assert student.config.input_scale == 2
        assert sum(p.numel() for p in student.parameters()) < 2e6


class TestGapConfig:
    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"smallest": 0}, "1 <= smallest <= largest"),
            ({"smallest": 5, "largest": 4}, "1 <= smallest <= largest"),
            ({"every_frame": 1.5}, "every_frame is a share"),
            ({"every_frame": -0.1}, "every_frame is a share"),
            ({"probabilities": (0.5, -0.1)}, "must not be negative and not all 0, got 0.5, -0.1"),
            ({"probabilities": (0.0, 0.0)}, "must not be negative and not all 0"),
            ({"probabilities": (1.0,), "adaptive": True}, "give one of the two"),
        ],
    )
    def test_nonsense_is_refused(self, wrong, message):
        with pytest.raises(ConfigError, match=message):
            GapConfig(**wrong)


class TestDrawGap:
    @settings(max_examples=200, deadline=None)
    @given(
        smallest=st.integers(1, 6),
        spread=st.integers(0, 6),
        every_frame=st.floats(0, 1),
        num_frames=st.integers(2, 40),
        history=st.integers(1, 4),
        seed=st.integers(0, 10**6),
    )
    def test_a_keyframe_follows_a_full_history_or_the_clip_is_refused(
        self, smallest, spread, every_frame, num_frames, history, seed
    ):
        config = GapConfig(smallest=smallest, largest=smallest + spread, every_frame=every_frame)
        rng = torch.Generator().manual_seed(seed)
        if smallest * history > num_frames - 1:
            with pytest.raises(DataError, match=f"at least {smallest * history + 1} frames"):
                draw_gap(config, num_frames, history, rng)
            return
        gap = draw_gap(config, num_frames, history, rng)
        assert gap == 1 or smallest <= gap <= config.largest
        assert len(keyframe_indices(num_frames, gap)) > history
        assert gap == draw_gap(config, num_frames, history, torch.Generator().manual_seed(seed))

    def test_gaps_that_fit_are_drawn_alike_often(self):
        # 8 frames after a history of 2: gaps 2 and 3 leave a keyframe, 4 does not.
        rng = torch.Generator().manual_seed(0)
        config = GapConfig(smallest=2, largest=6, every_frame=0.2)
        draws = [draw_gap(config, 8, 2, rng) for _ in range(2000)]
        assert [draws.count(g) / 2000 for g in (1, 2, 3)] == pytest.approx([0.2, 0.4, 0.4], abs=0.04)


class TestProbabilities:
    def test_gaps_are_drawn_as_often_as_told_and_only_those_that_fit(self):
        rng = torch.Generator().manual_seed(0)
        config = GapConfig(probabilities=(1.0, 0.0, 3.0, 4.0))
        draws = [draw_gap(config, 9, 2, rng) for _ in range(2000)]
        assert [draws.count(g) / 2000 for g in (1, 2, 3, 4)] == pytest.approx([1 / 8, 0, 3 / 8, 4 / 8], abs=0.04)
        draws = [draw_gap(config, 8, 2, rng) for _ in range(2000)]  # 4 leaves no keyframe after a history
        assert [draws.count(g) / 2000 for g in (1, 2, 3, 4)] == pytest.approx([1 / 4, 0, 3 / 4, 0], abs=0.04)

    def test_a_clip_too_short_for_the_smallest_is_refused(self):
        config = GapConfig(probabilities=(0.0, 0.0, 1.0))
        with pytest.raises(DataError, match="keyframes 3 frames apart after a history of 2; use clips of at least 7"):
            draw_gap(config, 6, 2, torch.Generator())

    def test_they_are_shares_of_the_frames_that_lie_in_gaps_of_each_length(self):
        assert gap_probabilities([[0, 1, 2, 6], [0, 4, 8]]) == (2 / 14, 0, 0, 12 / 14)
        with pytest.raises(DataError, match="no sequence has two keyframes"):
            gap_probabilities([[0], []])

    def test_clips_drawn_with_them_meet_the_gaps_as_often_as_the_keyframes(self):
        keyframes = [0, 1, 3, 7, 8, 12]  # gaps 1, 2, 4, 1, 4
        config = GapConfig(probabilities=gap_probabilities([keyframes]))
        rng = torch.Generator().manual_seed(0)
        steps = {1: 0.0, 2: 0.0, 4: 0.0}
        for _ in range(3000):
            gap = draw_gap(config, 1000, 2, rng)
            steps[gap] += 1 / gap  # keyframes of a clip of given length
        total = sum(steps.values())
        assert [steps[g] / total for g in (1, 2, 4)] == pytest.approx([2 / 5, 1 / 5, 2 / 5], abs=0.04)


@pytest.mark.parametrize(("gap", "expected"), [(1, list(range(8))), (2, [0, 2, 4, 6]), (3, [0, 3, 6]), (9, [0])])
def test_keyframes_of_a_clip_of_8(gap, expected):
    assert keyframe_indices(8, gap) == expected
