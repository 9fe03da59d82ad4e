"""World-consistency error and forward-backward consistency, by values worked out by hand."""

import numpy as np
import pytest

from fastv2v.errors import ShapeError
from fastv2v.metrics.world import forward_backward, there_and_back, world_errors


def grey(*levels: int, size: tuple[int, int] = (2, 2)) -> list[np.ndarray]:
    return [np.full((*size, 3), level, np.uint8) for level in levels]


def ids(*rows: list[list[int]]) -> list[np.ndarray]:
    return [np.array(row) for row in rows]


class TestWorldErrors:
    def test_points_are_compared_with_their_first_view(self):
        found = world_errors(grey(10, 14, 20), ids([[0, 1], [-1, -1]], [[1, 2], [0, -1]], [[2, 2], [-1, -1]]))
        assert np.isnan(found.seen_again[0])
        assert found.seen_again[1:].tolist() == [4.0, 6.0]  # point 2 was first seen at 14
        assert found.error == 5.0
        assert found.by_lag[1] == pytest.approx((4 + 4 + 6) / 3) and np.isnan(found.by_lag[2])
        assert np.isnan(found.return_error)

    def test_the_first_colour_counts_and_not_the_latest(self):
        same = ids(*[[[0, 1], [2, 3]]] * 3)
        assert world_errors(grey(10, 50, 20), same).seen_again[1:].tolist() == [40.0, 10.0]

    def test_several_pixels_of_a_point_count_once_by_their_mean(self):
        frame = np.zeros((2, 2, 3), np.uint8)
        frame[0] = 20
        found = world_errors([frame, *grey(13)], ids([[0, 5], [0, -1]], [[0, -1], [5, -1]]))
        assert found.seen_again[1] == pytest.approx((abs(13 - 10) + abs(13 - 20)) / 2)

    def test_channels_are_averaged(self):
        red = np.zeros((1, 1, 3), np.uint8)
        red[..., 0] = 30
        assert world_errors([np.zeros((1, 1, 3), np.uint8), red], ids([[7]], [[7]])).error == 10.0

    def test_what_was_out_of_sight_returns(self):
        here, gone = [[0, 1]], [[0, -1]]
        frames = grey(10, 10, 10, 30, 30, size=(1, 2))
        found = world_errors(frames, ids(here, gone, gone, here, here), away=2)
        assert np.isnan(found.returned[:3]).all()
        assert found.returned[3:].tolist() == [20.0, 20.0]  # point 1 alone, and it stays one that returned
        assert found.seen_again.tolist()[1:] == [0, 0, 20, 20]
        assert np.isnan(world_errors(frames, ids(here, gone, gone, here, here), away=3).return_error)

    def test_a_consistent_world_has_no_error_however_the_camera_moves(self):
        rng = np.random.default_rng(0)
        colours = rng.integers(0, 256, (500, 3), dtype=np.uint8)
        points = [rng.integers(-1, 500, (9, 12)) for _ in range(6)]
        frames = [np.where(p[..., None] >= 0, colours[p], 7).astype(np.uint8) for p in points]
        assert world_errors(frames, points).error == 0.0

    def test_nothing_seen_again_has_no_error(self):
        none = world_errors(grey(1, 2), ids([[-1, -1], [-1, -1]], [[0, -1], [-1, -1]]))
        assert np.isnan(none.error) and np.isnan(none.by_lag).all()
        assert np.isnan(world_errors([], []).error)

    @pytest.mark.parametrize(
        ("frames", "points", "message"),
        [
            (grey(1, 2), ids([[0, 0], [0, 0]]), "1 maps of point ids"),
            (grey(1), ids([[0, 0]]), "point ids of"),
            (grey(1), ids(*[[[0, 0], [0, 0]]] * 2), "1 frames and 2 maps"),
        ],
    )
    def test_other_counts_and_sizes_are_refused(self, frames, points, message):
        with pytest.raises(ShapeError, match=message):
            world_errors(frames, points)


class TestForwardBackward:
    def test_frames_meet_their_return(self):
        assert there_and_back(3) == [0, 1, 2, 1, 0] and there_and_back(1) == [0]
        found = forward_backward(grey(0, 10, 20, 13, 8))
        assert found.rgb.tolist() == [8.0, 3.0]

    def test_lab_is_that_of_known_colours(self):
        black, white, red = (np.full((1, 1, 3), c, np.uint8) for c in (0, 255, (255, 0, 0)))
        assert forward_backward([black, red, white]).lab[0] == pytest.approx(100, abs=0.05)
        # sRGB red is (53.24, 80.09, 67.20) in CIELAB under D65.
        assert forward_backward([black, white, red]).lab[0] == pytest.approx(
            np.hypot(53.24, np.hypot(80.09, 67.20)), abs=0.1
        )

    def test_bad_videos_are_refused(self):
        with pytest.raises(ShapeError, match="odd number of frames, got 2"):
            forward_backward(grey(1, 2))
        with pytest.raises(ShapeError, match="its return"):
            forward_backward([*grey(1, 2), *grey(1, size=(3, 2))])
