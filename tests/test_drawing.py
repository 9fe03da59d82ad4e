"""Curves through key points and the strokes along them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from fastv2v.data.drawing import fit_curve, stroke
from fastv2v.errors import ConfigError, DataError, ShapeError


def curve(*points):
    return fit_curve(np.array(points)).tolist()


class TestFitCurve:
    def test_a_level_line_takes_as_many_samples_as_pixels_between_its_ends(self):
        # 10, 11.25, 12.5, 13.75, 15
        assert curve((10, 4), (15, 4)) == [[10, 4], [11, 4], [12, 4], [13, 4], [15, 4]]

    def test_a_line_falls_with_its_slope(self):
        # y = x / 2 at 0, 4/3, 8/3, 4
        assert curve((0, 0), (4, 2)) == [[0, 0], [1, 0], [2, 1], [4, 2]]

    def test_a_steep_line_is_sampled_along_y(self):
        assert curve((4, 10), (4, 15)) == [[4, 10], [4, 11], [4, 12], [4, 13], [4, 15]]

    def test_the_direction_of_the_points_does_not_matter(self):
        assert curve((15, 4), (10, 9)) == curve((10, 9), (15, 4))

    def test_equal_reach_keeps_x_as_the_variable(self):
        # From (5, 0) to (0, 5): ascending x means descending y.
        assert curve((5, 0), (0, 5))[0] == [0, 5]

    def test_a_parabola_passes_through_its_three_points(self):
        # y = (x - 5)² / 5 at 0, 10/9, ..., 10: between samples 4 and 5 it stays below 0.2.
        samples = curve((0, 5), (5, 0), (10, 5))
        at = np.linspace(0, 10, 10)
        assert samples == np.stack([at, (at - 5) ** 2 / 5], axis=1).round(9).astype(int).tolist()
        assert samples[0] == [0, 5] and samples[-1] == [10, 5]

    def test_a_parabola_in_y(self):
        across = curve((0, 5), (6, 0), (10, 5))
        assert curve((5, 0), (0, 6), (5, 10)) == [[y, x] for x, y in across]

    def test_a_whole_number_is_not_lost_to_rounding_noise(self):
        for end in range(3, 300, 3):
            assert curve((0, 7), (end, 7 + end // 3))[-1] == [end, 7 + end // 3]

    def test_a_sharp_bend_draws_nothing(self):
        # y = 2 x² has a coefficient of 2, y = x² just 1.
        assert curve((-1, 2), (0, 0), (1, 2)) == []
        assert curve((-1, 1), (0, 0), (1, 1)) == [[-1, 1], [1, 1]]

    @pytest.mark.parametrize("points", [[(3, 3), (3, 3)], [(3, 3), (3, 3), (3, 3)], [(0, 0), (9, 1), (0, 2)]])
    def test_ends_at_one_place_draw_nothing(self, points):
        assert curve(*points) == []

    def test_float_points_take_the_whole_part_of_their_distance(self):
        # Distance 3.9: three samples at 0.5, 2.45, 4.4.
        assert curve((0.5, 1.9), (4.4, 1.9)) == [[0, 1], [2, 1], [4, 1]]
        assert curve((0.0, 0.0), (0.9, 0.0)) == []

    def test_truncation_is_towards_zero(self):
        assert curve((-2.5, -1.5), (0.5, -1.5)) == [[-2, -1], [-1, -1], [0, -1]]

    def test_two_points_above_each_other_give_the_straight_fit(self):
        # Least squares through (0, 0), (0, 2), (8, 1) is the level line y = 1.
        assert {y for _, y in curve((0, 0), (0, 2), (8, 1))} == {1}

    def test_agrees_with_polyfit(self):
        generator = np.random.default_rng(0)
        for _ in range(200):
            x = generator.choice(60, 3, replace=False)
            y = generator.integers(0, 20, 3)
            if np.abs(np.diff(x)).max() < np.abs(np.diff(y)).max():
                continue
            fit = np.polyfit(x, y, 2)
            expected = np.empty((0, 2), int)
            if abs(fit[0]) < 1 + 1e-9:
                at = np.linspace(min(x[0], x[2]), max(x[0], x[2]), abs(x[2] - x[0]))
                expected = np.trunc(np.stack([at, np.polyval(fit, at)], axis=1).round(6)).astype(int)
            assert_array_equal(fit_curve(np.stack([x, y], axis=1)), expected)

    @given(
        st.lists(
            st.tuples(*[st.floats(-1e3, 1e3)] * 2),
            min_size=2,
            max_size=3,
        )
    )
    def test_any_points_give_integers(self, points):
        samples = fit_curve(np.array(points))
        assert samples.dtype == np.int64 and samples.ndim == 2 and samples.shape[1] == 2

    @pytest.mark.parametrize("near", [5e-324, 1e-9, 1e-5])
    @pytest.mark.filterwarnings("error")
    def test_nearly_equal_points_overflow_nowhere(self, near):
        samples = fit_curve(np.array([[0.0, 0.0], [near, 3.0], [8.0, 1.0]]))
        assert len(samples) == (8 if near < 1e-6 else 0)

    def test_refuses_other_shapes_and_lost_points(self):
        with pytest.raises(ShapeError, match=r"\(4, 2\)"):
            fit_curve(np.zeros((4, 2)))
        with pytest.raises(DataError, match="finite"):
            fit_curve(np.array([[0.0, np.nan], [1.0, 1.0]]))
        with pytest.raises(DataError, match="within 100000 pixels"):
            fit_curve(np.array([[0.0, 0.0], [1e12, 1.0]]))


class TestStroke:
    def test_a_sample_is_a_block_biased_up_and_left(self):
        canvas = np.zeros((6, 6), np.uint8)
        stroke(canvas, np.array([[3, 2]]), 255, width=1)
        assert_array_equal(np.argwhere(canvas), [[1, 2], [1, 3], [2, 2], [2, 3]])

    def test_width_is_half_the_thickness(self):
        canvas = np.zeros((20, 20), np.uint8)
        stroke(canvas, np.array([[10, 10]]), 9, width=3)
        assert (canvas[7:13, 7:13] == 9).all() and (canvas > 0).sum() == 36

    def test_ends_are_discs(self):
        canvas = np.zeros((9, 20), np.uint8)
        stroke(canvas, np.stack([np.arange(4, 16), np.full(12, 4)], axis=1), 255, width=1, ends=True)
        # Offsets -2..1 with dx² + dy² < 4 leave the 3x3 block around each end.
        assert_array_equal(np.flatnonzero(canvas[5]), [3, 4, 5, 14, 15, 16])
        assert_array_equal(np.flatnonzero(canvas[4]), np.arange(3, 17))
        assert not canvas[2].any() and not canvas[6].any()

    def test_what_falls_outside_lands_on_the_border(self):
        canvas = np.zeros((4, 5), np.uint8)
        stroke(canvas, np.array([[-7, 2], [90, 90]]), 255, width=1)
        assert_array_equal(np.argwhere(canvas), [[1, 0], [2, 0], [3, 4]])

    def test_one_channel_is_overwritten_with_the_first_component(self):
        canvas = np.full((4, 4), 200, np.uint8)
        stroke(canvas, np.array([[2, 2]]), (7, 8, 9), width=1)
        assert canvas[2, 2] == 7 and canvas[0, 0] == 200

    def test_no_points_draw_nothing(self):
        canvas = np.zeros((4, 4, 3), np.uint8)
        stroke(canvas, np.empty((0, 2), int), (1, 2, 3), width=1, ends=True)
        assert not canvas.any()

    def test_on_black_the_colour_is_set(self):
        canvas = np.zeros((8, 8, 3), np.uint8)
        stroke(canvas, np.array([[4, 4]]), (10, 20, 30), width=1)
        assert_array_equal(canvas[3:5, 3:5].reshape(-1, 3), [[10, 20, 30]] * 4)

    def test_one_coloured_pixel_makes_the_whole_offset_an_average(self):
        canvas = np.zeros((4, 8, 3), np.uint8)
        canvas[1, 1] = 100, 0, 0
        # Only the offset (-1, -1) of the samples x = 2, 5 at y = 2 meets the coloured pixel.
        stroke(canvas, np.array([[2, 2], [5, 2]]), (0, 51, 0), width=1)
        assert canvas[1, 1].tolist() == [50, 25, 0]
        assert canvas[1, 4].tolist() == [0, 25, 0]
        assert canvas[1, 2].tolist() == canvas[2, 5].tolist() == [0, 51, 0]

    def test_neighbouring_samples_average_with_themselves(self):
        # The second offset of a row meets the pixels of the first, and the far one, still black, is halved.
        canvas = np.zeros((3, 6, 3), np.uint8)
        stroke(canvas, np.array([[2, 1], [3, 1]]), (100, 0, 0), width=1)
        assert canvas[0, :, 0].tolist() == [0, 100, 100, 50, 0, 0]

    @pytest.mark.parametrize("view", [np.s_[:], np.s_[:, ::2], np.s_[::-1]])
    @pytest.mark.parametrize(("height", "width"), [(12, 14), (60, 80)])  # of the larger one, discs lie apart
    def test_agrees_with_a_plain_walk_over_the_pixels(self, height, width, view):
        generator = np.random.default_rng(1)
        for width_px in (1, 1, 1, 2, 2, 2):
            canvas = (generator.integers(0, 2, (height, 2 * width, 3), dtype=np.uint8) * 90)[view][:, :width]
            canvas[: height // 2] = 0
            points = generator.integers(-3, (width + 3, height + 3), (9, 2))
            expected = canvas.copy()
            square = [(i, j) for i in range(-width_px, width_px) for j in range(-width_px, width_px)]
            reach = range(-2 * width_px, 2 * width_px)
            disc = [(i, j) for i in reach for j in reach if i * i + j * j < 4 * width_px * width_px]
            for where, offsets in ((points, square), (points[[0, -1]], disc)):
                for i, j in offsets:
                    pixels = [
                        (min(max(y + i, 0), height - 1), min(max(x + j, 0), width - 1)) for x, y in where.tolist()
                    ]
                    black = all(not expected[p].any() for p in pixels)
                    for p, old in [(p, expected[p].astype(int)) for p in pixels]:
                        expected[p] = (50, 60, 71) if black else (old + np.array([50, 60, 71])) // 2
            stroke(canvas, points, (50, 60, 71), width=width_px, ends=True)
            assert_array_equal(canvas, expected)

    def test_max_does_not_depend_on_the_order(self):
        generator = np.random.default_rng(2)
        strokes = [(generator.integers(0, 20, (15, 2)), tuple(generator.integers(0, 256, 3).tolist())) for _ in "abc"]
        pictures = []
        for order in (strokes, strokes[::-1]):
            canvas = np.zeros((20, 20, 3), np.uint8)
            for points, colour in order:
                stroke(canvas, points, colour, width=2, ends=True, compositing="max")
            pictures.append(canvas)
        assert_array_equal(*pictures)

    def test_max_keeps_the_larger_value_of_each_channel(self):
        canvas = np.full((4, 4, 3), 100, np.uint8)
        stroke(canvas, np.array([[2, 2]]), (50, 100, 150), width=1, compositing="max")
        assert canvas[2, 2].tolist() == [100, 100, 150]

    def test_a_number_is_grey(self):
        canvas = np.zeros((4, 4, 3), np.uint8)
        stroke(canvas, np.array([[2, 2]]), 40, width=1)
        assert canvas[2, 2].tolist() == [40, 40, 40]

    @pytest.mark.parametrize(
        ("canvas", "options", "error"),
        [
            (np.zeros((4, 4)), {}, ShapeError),
            (np.zeros((4, 4, 2), np.uint8), {}, ShapeError),
            (np.zeros((0, 4), np.uint8), {}, ShapeError),
            (np.zeros((4, 4), np.uint8), {"points": np.zeros((1, 2))}, ShapeError),
            (np.zeros((4, 4), np.uint8), {"points": np.zeros((1, 3), int)}, ShapeError),
            (np.zeros((4, 4), np.uint8), {"colour": 256}, ConfigError),
            (np.zeros((4, 4), np.uint8), {"colour": (1, 2)}, ConfigError),
            (np.zeros((4, 4), np.uint8), {"width": 0}, ConfigError),
            (np.zeros((4, 4), np.uint8), {"compositing": "mean"}, ConfigError),
        ],
    )
    def test_refuses_nonsense(self, canvas, options, error):
        given_ = {"points": np.zeros((1, 2), int), "colour": 1, "width": 1} | options
        with pytest.raises(error):
            stroke(canvas, given_.pop("points"), given_.pop("colour"), **given_)
