import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import moving_texture, numbered, psnr_db, two_scenes

from fastv2v.errors import ConfigError, ShapeError
from interpolate.fill import StreamFiller, fill
from interpolate.motion import BlendInterpolator, DISInterpolator, MotionConfig


class TimeWriter:
    """Writes the time asked for into the frame, so that timing can be read back."""

    def between(self, first, second, times, labels=None):
        self.labels = labels
        return [np.full_like(first, round(time * 240)) for time in times]


class TestFill:
    def test_indices_2_6_9_of_10(self):
        keyframes = [numbered(n) for n in (250, 251, 252)]
        frames = fill(keyframes, [2, 6, 9], 10, TimeWriter())
        assert [int(frame[0, 0, 0]) for frame in frames] == [250, 250, 250, 60, 120, 180, 251, 80, 160, 252]

    def test_held_ends(self):
        frames = fill([numbered(1), numbered(2)], [1, 2], 5, TimeWriter())
        assert [int(frame[0, 0, 0]) for frame in frames] == [1, 1, 2, 2, 2]

    @settings(deadline=None)
    @given(total=st.integers(1, 40), data=st.data())
    def test_any_indices_give_exactly_total_frames_with_keyframes_untouched(self, total, data):
        indices = sorted(data.draw(st.sets(st.integers(0, total - 1), min_size=1)))
        rng = np.random.default_rng(total)
        keyframes = [rng.integers(0, 256, (5, 7, 3), dtype=np.uint8) for _ in indices]
        copies = [keyframe.copy() for keyframe in keyframes]
        frames = fill(keyframes, indices, total, BlendInterpolator())
        assert len(frames) == total
        assert all(frame.shape == (5, 7, 3) and frame.dtype == np.uint8 for frame in frames)
        for index, copy in zip(indices, copies, strict=True):
            np.testing.assert_array_equal(frames[index], copy)

        filler = StreamFiller(BlendInterpolator())
        due = [
            item for index, keyframe in zip(indices, keyframes, strict=True) for item in filler.push(index, keyframe)
        ]
        due += filler.finish(total)
        assert [index for index, _ in due] == list(range(total))
        for (_, streamed), frame in zip(due, frames, strict=True):
            np.testing.assert_array_equal(streamed, frame)

    @pytest.mark.parametrize(
        ("indices", "total", "message"),
        [
            ([0, 4, 2], 9, "must increase, got 2 after 4"),
            ([0, 4, 4], 9, "4 was given twice"),
            ([0, 4, 9], 9, "must lie in 0 to 8 for 9 frames"),
            ([-1, 4, 8], 9, "must lie in 0 to 8"),
            ([0, 4], 9, "3 keyframes came with 2 indices"),
        ],
    )
    def test_wrong_indices_are_refused(self, indices, total, message):
        with pytest.raises(ConfigError, match=message):
            fill([numbered(n) for n in range(3)], indices, total, BlendInterpolator())

    def test_wrong_frames_are_refused(self):
        with pytest.raises(ConfigError, match="no keyframes"):
            fill([], [], 4, BlendInterpolator())
        with pytest.raises(ShapeError, match=r"keyframe 4 is \(5, 6\) where the first one is \(4, 6\)"):
            fill([numbered(0), numbered(1, (5, 6))], [0, 4], 5, BlendInterpolator())
        with pytest.raises(ShapeError, match="float32"):
            fill([numbered(0), numbered(1).astype(np.float32)], [0, 4], 5, BlendInterpolator())


class TestStreamFiller:
    def test_frames_come_as_soon_as_their_gap_is_closed(self):
        filler = StreamFiller(TimeWriter())
        assert [index for index, _ in filler.push(1, numbered(9))] == [0, 1]
        assert [index for index, _ in filler.push(4, numbered(8))] == [2, 3, 4]
        assert [index for index, _ in filler.finish(6)] == [5]

    def test_misuse_is_refused(self):
        filler = StreamFiller(TimeWriter())
        with pytest.raises(ConfigError, match="before its first keyframe"):
            filler.finish(3)
        filler.push(3, numbered(0))
        with pytest.raises(ConfigError, match="must increase, got 2 after 3"):
            filler.push(2, numbered(0))
        with pytest.raises(ShapeError, match="keyframe 5"):
            filler.push(5, numbered(0, (8, 8)))
        with pytest.raises(ConfigError, match="3 frames cannot hold keyframe 3"):
            filler.finish(3)
        filler.finish(4)
        with pytest.raises(ConfigError, match="after finish"):
            filler.push(9, numbered(0))


class TestLabels:
    """Known classes of the frames between guide what is blended there."""

    still = np.full((128, 192, 3), 90, np.uint8)
    square = np.s_[60:120, 80:160]

    def scene(self):
        """A square (class 9) that the first keyframe shows and the second does not, over a still background."""
        first, labels = self.still.copy(), np.full(self.still.shape[:2], 4, np.uint8)
        first[self.square] = 170
        with_square = labels.copy()
        with_square[self.square] = 9
        return first, self.still, with_square, labels

    def error(self, frame, truth):
        inner = np.s_[66:114, 86:154]
        return float(np.abs(frame[inner].astype(int) - truth[inner]).mean())

    def made(self, doubt, wanted, dtype=np.uint8):
        first, second, with_square, without = self.scene()
        labels = [x.astype(dtype) for x in (with_square, with_square if wanted else without, without)]
        config = MotionConfig(cut_threshold=None, doubt=doubt)
        return DISInterpolator(config).between(first, second, [0.5], labels)[0]

    @pytest.mark.parametrize(("wanted", "side"), [(True, 0), (False, 1)])
    def test_the_keyframe_that_shows_the_known_class_wins(self, wanted, side):
        truth = self.scene()[side]
        sure, unsure, blind = (self.error(self.made(doubt, wanted), truth) for doubt in (0.0, 0.5, None))
        assert sure < 3
        assert sure < unsure < blind
        assert self.error(self.made(1.0, wanted), truth) == blind

    def test_any_ids_of_any_type_mean_the_same(self):
        assert np.array_equal(self.made(0.5, True), self.made(0.5, True, np.int64))
        first, second, _, _ = self.scene()
        ids = [np.full(first.shape[:2], 70_000 + k, np.int32) for k in (0, 0, 1)]
        made = DISInterpolator(MotionConfig(cut_threshold=None, doubt=0.0)).between(first, second, [0.5], ids)[0]
        assert self.error(made, first) < 3
        mixed = [x.astype(t) for x, t in zip(ids, (np.int32, np.uint16, np.int64), strict=True)]
        small = [np.ones(first.shape[:2], t) for t in (np.uint8, np.uint16, np.uint8)]
        for maps in (mixed, small):
            assert DISInterpolator().between(first, second, [0.5], maps)[0].shape == first.shape

    def test_a_side_that_does_not_see_a_pixel_does_not_fit_it(self):
        frames = moving_texture(5, (6.0, 0.0))
        labels = [np.zeros(frames[0].shape[:2], np.uint8)] * 3
        config = MotionConfig(doubt=0.0)
        guided = DISInterpolator(config).between(frames[0], frames[4], [0.5], labels)[0]
        blind = DISInterpolator().between(frames[0], frames[4], [0.5])[0]
        rim = np.s_[20:-20, -12:]  # the second keyframe has lost it
        assert psnr_db(guided[rim], frames[2][rim]) > psnr_db(blind[rim], frames[2][rim])

    def test_inside_and_where_classes_agree_nothing_changes(self):
        frames = moving_texture(3, (2.0, 1.0))
        labels = [np.ones(frames[0].shape[:2], np.uint8)] * 3
        times, inner = [0.5], np.s_[8:-8, 8:-8]
        guided = DISInterpolator().between(frames[0], frames[2], times, labels)[0]
        assert np.array_equal(guided[inner], DISInterpolator().between(frames[0], frames[2], times)[0][inner])

    def test_maps_that_do_not_belong_are_refused(self):
        first, second, label, _ = self.scene()
        with pytest.raises(ShapeError, match="1 frames between two keyframes have 3 label maps with theirs, got 2"):
            DISInterpolator().between(first, second, [0.5], [label, label])
        with pytest.raises(ShapeError, match=r"label map 1 must be integers .* got \(4, 6\) uint8"):
            DISInterpolator().between(first, second, [0.5], [label, label[:4, :6], label])
        with pytest.raises(ShapeError, match=r"got .* float32"):
            DISInterpolator().between(first, second, [0.5], [label.astype(np.float32)] * 3)
        with pytest.raises(ShapeError, match="2 label maps came for 3 frames"):
            fill([numbered(1), numbered(2)], [0, 2], 3, TimeWriter(), [label, label])

    def test_every_gap_gets_the_maps_from_keyframe_to_keyframe(self):
        seen = []

        class Recorder(TimeWriter):
            def between(self, first, second, times, labels=None):
                seen.append([int(x[0, 0]) for x in labels])
                return super().between(first, second, times)

        maps = [np.full((4, 6), k, np.uint8) for k in range(9)]
        fill([numbered(n) for n in (1, 2, 3, 4)], [1, 3, 4, 7], 9, Recorder(), maps)
        assert seen == [[1, 2, 3], [4, 5, 6, 7]]


class TestDISInterpolator:
    @pytest.mark.parametrize("step", [(3.0, 1.0), (-2.5, 0.0), (0.7, -2.2)])
    def test_a_moving_texture_is_found_in_between(self, step):
        frames = moving_texture(5, step)
        inner = np.s_[20:-20, 20:-20]
        made = DISInterpolator().between(frames[0], frames[4], [0.25, 0.5, 0.75])
        blended = BlendInterpolator().between(frames[0], frames[4], [0.25, 0.5, 0.75])
        for truth, ours, blend in zip(frames[1:4], made, blended, strict=True):
            assert psnr_db(ours[inner], truth[inner]) > 38
            assert psnr_db(ours[inner], truth[inner]) > psnr_db(blend[inner], truth[inner]) + 8

    def test_a_side_that_looks_past_the_picture_fades_out(self):
        frames = moving_texture(
            5, (6.0, 0.0)
        )  # everything moves right: the right rim leaves before the second keyframe
        made = DISInterpolator().between(frames[0], frames[4], [0.5])[0]
        x = np.clip(np.arange(192) + 12, 0, 191)
        one_sided_loss = psnr_db(frames[4][:, x][:, -12:], frames[2][:, -12:])
        assert psnr_db(made[:, -12:], frames[2][:, -12:]) > one_sided_loss + 3

    def test_the_same_frame_twice_stays_as_it_is(self):
        frame = moving_texture(1, (0, 0))[0]
        for made in DISInterpolator().between(frame, frame.copy(), [0.3, 0.5]):
            assert np.abs(made.astype(int) - frame).max() <= 1

    def test_a_scene_cut_is_held_and_never_blended(self):
        first, second = two_scenes()
        made = DISInterpolator().between(first, second, [0.25, 0.5, 0.75])
        for frame, expected in zip(made, (first, second, second), strict=True):
            np.testing.assert_array_equal(frame, expected)
            assert frame is not expected

    def test_a_cut_to_a_flat_picture_is_a_cut(self):
        first, black = two_scenes()[0], np.zeros((192, 256, 3), dtype=np.uint8)
        np.testing.assert_array_equal(DISInterpolator().between(first, black, [0.25])[0], first)

    def test_cuts_can_be_ignored(self):
        first, second = two_scenes()
        made = DISInterpolator(MotionConfig(cut_threshold=None)).between(first, second, [0.25])[0]
        assert not np.array_equal(made, first)

    @pytest.mark.parametrize("size", [(1, 1), (3, 200), (33, 47), (101, 63), (128, 129)])
    def test_any_size_works(self, size):
        frames = [cv2.resize(frame, size[::-1]) for frame in moving_texture(2, (1.0, 1.0))]
        for made in DISInterpolator().between(frames[0], frames[1], [0.2, 0.5]):
            assert made.shape == (*size, 3)
            assert made.dtype == np.uint8

    def test_results_do_not_depend_on_what_came_before(self):
        frames, small = moving_texture(5, (3.0, 1.0)), moving_texture(2, (2.0, 0.0), (64, 80))
        interpolator = DISInterpolator()
        first = interpolator.between(frames[0], frames[4], [0.5])[0].copy()
        interpolator.between(frames[4], frames[1], [0.25, 0.75])
        interpolator.between(small[0], small[1], [0.5])
        np.testing.assert_array_equal(interpolator.between(frames[0], frames[4], [0.5])[0], first)
        np.testing.assert_array_equal(DISInterpolator().between(frames[0], frames[4], [0.75, 0.5])[1], first)

    def test_keyframes_are_not_written_to(self):
        frames = moving_texture(2, (3.0, 1.0))
        copies = [frame.copy() for frame in frames]
        for frame in frames:
            frame.flags.writeable = False
        DISInterpolator().between(frames[0], frames[1], [0.5])
        np.testing.assert_array_equal(frames, copies)

    def test_stream_equals_offline(self):
        frames = moving_texture(8, (2.0, 1.0))
        offline = fill([frames[0], frames[3], frames[7]], [0, 3, 7], 8, DISInterpolator())
        filler = StreamFiller(DISInterpolator())
        streamed = [item for index in (0, 3, 7) for item in filler.push(index, frames[index])]
        assert [index for index, _ in streamed] == list(range(8))
        np.testing.assert_array_equal([frame for _, frame in streamed], offline)

    @pytest.mark.parametrize("interpolator", [DISInterpolator(), BlendInterpolator()])
    def test_bad_input_is_refused(self, interpolator):
        frame = numbered(0, (40, 40))
        with pytest.raises(ConfigError, match=r"strictly between 0 and 1, got 1\.0"):
            interpolator.between(frame, frame, [0.5, 1.0])
        with pytest.raises(ShapeError, match="share one size"):
            interpolator.between(frame, numbered(0, (40, 41)), [0.5])
        with pytest.raises(ShapeError, match="second keyframe"):
            interpolator.between(frame, frame[..., 0], [0.5])
        assert interpolator.between(frame, frame, []) == []

    @pytest.mark.parametrize(
        "fields", [{"grade": "slow"}, {"working_scale": 0.0}, {"cut_threshold": 1.5}, {"doubt": -0.1}]
    )
    def test_config_refuses_nonsense(self, fields):
        with pytest.raises(ConfigError, match=next(iter(fields))):
            MotionConfig(**fields)
