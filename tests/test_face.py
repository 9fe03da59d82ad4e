"""Face landmarks and the maps drawn from them."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from fastv2v.data.drawing import fit_curve, stroke
from fastv2v.data.face import (
    PARTS,
    CropBox,
    FaceConfig,
    MissingFace,
    canny_edges,
    check_in_frame,
    crop_padded,
    draw_face,
    face_crop,
    part_labels,
    read_landmarks,
)
from fastv2v.errors import ConfigError, DataError, ShapeError
from tests.shared_data import shared

SIZE = (240, 320)
CURVES = FaceConfig(background="none", distance_maps=False)
EDGES = [edge for part in PARTS for edge in part.edges]


def face(x=160.0, y=110.0, width=80.0):
    """A face that looks straight ahead: jaw as a half ellipse, the rest placed by hand."""
    turn = np.linspace(np.pi, 0, 17)
    jaw = np.stack([np.cos(turn) / 2, np.sin(turn) * 0.7], axis=1)
    brows = [(-0.4, -0.1), (-0.33, -0.16), (-0.25, -0.18), (-0.16, -0.17), (-0.08, -0.13)]
    nose = [(0, -0.03), (0, 0.08), (0, 0.18), (0, 0.28), (-0.1, 0.33), (-0.05, 0.35), (0, 0.36), (0.05, 0.35)]
    eye = [(-0.31, 0), (-0.26, -0.04), (-0.2, -0.04), (-0.14, 0), (-0.2, 0.03), (-0.26, 0.03)]
    outer = [(0.2 * np.cos(a), 0.5 - 0.08 * np.sin(a)) for a in np.pi - np.arange(12) * np.pi / 6]
    inner = [(0.12 * np.cos(a), 0.5 - 0.03 * np.sin(a)) for a in np.pi - np.arange(8) * np.pi / 4]
    mirrored = [(-px, py) for px, py in brows[::-1]]
    other_eye = [(-eye[i][0], eye[i][1]) for i in (3, 2, 1, 0, 5, 4)]
    shape = np.array([*jaw.tolist(), *brows, *mirrored, *nose, (0.1, 0.33), *eye, *other_eye, *outer, *inner])
    return np.round(shape * width + (x, y))


def noise(size=SIZE, seed=0):
    """A picture of smooth blobs, rich in edges."""
    rough = np.random.default_rng(seed).random((*size, 3)).astype(np.float32)
    return cv2.normalize(cv2.GaussianBlur(rough, (0, 0), 2), None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def text(points):
    return "\n".join(f"{x:g},{y:g}" for x, y in points).encode()


class TestConfig:
    def test_channels(self):
        assert FaceConfig().channels == 15
        assert FaceConfig(distance_maps=False).channels == 1

    @pytest.mark.parametrize("bad", [{"background": "blur"}, {"canny_sigma": 0}, {"canny_sigma": float("nan")}])
    def test_refuses_nonsense(self, bad):
        with pytest.raises(ConfigError):
            FaceConfig(**bad)


class TestParts:
    def test_fourteen_edges(self):
        assert [len(part.edges) for part in PARTS] == [1, 1, 1, 3, 2, 2, 2, 2]
        assert [part.label for part in PARTS] == [1, 2, 2, 3, 4, 4, 5, 6]

    def test_counts_of_points(self):
        assert [len(edge) for edge in EDGES] == [33, 5, 5, 2, 5, 2, 4, 4, 4, 4, 7, 7, 5, 5]
        assert [len(part.points) for part in PARTS] == [32, 5, 5, 6, 6, 6, 12, 8]

    def test_every_point_is_drawn_but_the_bridge_of_the_nose(self):
        assert {index for edge in EDGES for index in edge} == set(range(83)) - {27, 29, 30}

    @pytest.mark.parametrize("name", ["contour", "nose", "right eye", "left eye", "mouth", "inner mouth"])
    def test_closed_parts_end_where_they_begin(self, name):
        edges = next(part.edges for part in PARTS if part.name == name)
        assert all(a[-1] == b[0] for a, b in zip(edges, (*edges[1:], edges[0]), strict=True))


class TestReadLandmarks:
    def test_reads_pairs(self):
        points = face()
        assert_array_equal(read_landmarks(text(points), "a.txt"), points)

    def test_tolerates_floats_blank_lines_and_carriage_returns(self):
        points = face() + 0.25
        data = b"\r\n" + text(points).replace(b"\n", b"\r\n\r\n").replace(b",", b" , ") + b"\r\n\r\n"
        assert_array_equal(read_landmarks(data, "a.txt"), points)

    @pytest.mark.parametrize("data", [b"", b"\n  \r\n"])
    def test_an_empty_file_is_a_missing_face(self, data):
        with pytest.raises(MissingFace, match=r"seq/7\.txt: empty, no face"):
            read_landmarks(data, "seq/7.txt")
        assert issubclass(MissingFace, DataError)

    @pytest.mark.parametrize("count", [1, 67, 69])
    def test_another_count_is_refused(self, count):
        with pytest.raises(DataError, match=rf"a\.txt: {count} landmarks instead of 68; extract") as caught:
            read_landmarks(b"1,2\n" * count, "a.txt")
        assert not isinstance(caught.value, MissingFace)

    @pytest.mark.parametrize("line", [b"1;2", b"1,2,3", b"one,two", b"5", b","])
    def test_a_bad_line_is_named(self, line):
        with pytest.raises(DataError, match=r"a\.txt, line 3: expected two numbers"):
            read_landmarks(b"1,2\n\n" + line + b"\n1,2", "a.txt")

    @pytest.mark.parametrize("line", [b"nan,1", b"1,inf", b"1,1e999"])
    def test_a_coordinate_must_be_finite(self, line):
        with pytest.raises(DataError, match=r"a\.txt, line 1: coordinates must be finite"):
            read_landmarks(line, "a.txt")

    def test_other_files_are_refused(self):
        with pytest.raises(DataError, match=r"a\.txt: not a text file"):
            read_landmarks(b"\xff\xd8\xff\xe0", "a.txt")


class TestCheckInFrame:
    def test_up_to_half_may_lie_outside(self):
        points = np.full((68, 2), 5.0)
        points[:34] = (-1, 5)
        check_in_frame(points, (10, 20), "a.txt")

    @pytest.mark.parametrize("outside", [(-0.5, 5), (20, 5), (5, -1), (5, 10)])
    def test_more_is_refused(self, outside):
        points = np.full((68, 2), 5.0)
        points[:35] = outside
        with pytest.raises(DataError, match=r"a\.txt: 35 of 68 landmarks lie outside the 20x10 frame; check"):
            check_in_frame(points, (10, 20), "a.txt")

    @pytest.mark.parametrize(("x", "y"), [(9000, 200), (1e6, 200), (-641, 200), (200, 961), (200, -480.5)])
    def test_a_point_astray_is_named(self, x, y):
        points = np.full((68, 2), 200.0)
        points[41] = x, y
        with pytest.raises(
            DataError, match=r"a\.txt: landmark 41 .* is at \(.*\), more than one frame outside the 640x"
        ):
            check_in_frame(points, (480, 640), "a.txt")

    def test_a_point_up_to_one_frame_outside_is_not_astray(self):
        points = np.full((68, 2), 200.0)
        points[:2] = (1280, 960), (-640, -480)
        check_in_frame(points, (480, 640), "a.txt")


def spanning(left, top, right, bottom):
    points = np.full((68, 2), ((left + right) / 2, (top + bottom) / 2))
    points[0], points[1] = (left, top), (right, bottom)
    return points


class TestCrop:
    @pytest.mark.parametrize(
        ("extent", "size", "box"),
        [
            # 160 wide, so 400 on a side, half 200. Centre (280, (3·200 + 360)//4 = 240).
            ((200, 200, 360, 360), (640, 800), (80, 40, 480, 440)),
            # Centre y = (3·150 + 310)//4 = 190: ten pixels too high.
            ((200, 150, 360, 310), (480, 640), (80, 0, 480, 400)),
            # Centre (580, 440) of 640x480: moved left by 140 and up by 160.
            ((500, 400, 660, 560), (480, 640), (240, 80, 640, 480)),
            # Larger than the image: right and bottom are kept.
            ((80, 60, 240, 220), (240, 320), (-80, -160, 320, 240)),
            # 163 wide: side 407.5, half 203. x = 0 + 407.5 - 203 = 204.5, y = 37 + 407.5 - 203 = 241.5; rounded down.
            ((100, 200, 263, 360), (640, 800), (1, 38, 407, 444)),
            # The same at the left of a small image: x = 320 - 203 = 117, y = 240 - 203 = 37, square all the same.
            ((20, 60, 183, 220), (240, 320), (-86, -166, 320, 240)),
        ],
    )
    def test_worked_boxes(self, extent, size, box):
        assert face_crop(spanning(*extent), size) == box

    def test_points_without_width_are_refused(self):
        with pytest.raises(DataError, match="0 pixels wide"):
            face_crop(np.ones((68, 2)), SIZE)

    def test_a_face_wider_than_the_frame_is_refused(self):
        assert face_crop(spanning(0, 60, 320, 220), (240, 320)) == (-480, -560, 320, 240)
        with pytest.raises(DataError, match="322 pixels wide in a 320x240 frame"):
            face_crop(spanning(-2, 60, 320, 220), (240, 320))

    def test_a_box_inside_is_a_copy(self):
        image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
        cut = crop_padded(image, CropBox(1, 2, 3, 4))
        assert_array_equal(cut, image[2:4, 1:3])
        assert not np.shares_memory(cut, image)

    def test_what_lies_outside_is_black(self):
        image = np.full((2, 3), 7, np.uint8)
        assert_array_equal(
            crop_padded(image, CropBox(-1, -1, 4, 2)), [[0, 0, 0, 0, 0], [0, 7, 7, 7, 0], [0, 7, 7, 7, 0]]
        )
        assert not crop_padded(image, CropBox(-9, 0, -7, 2)).any()
        assert crop_padded(np.ones((2, 3, 15), np.uint8), CropBox(2, 1, 8, 9)).shape == (8, 6, 15)

    def test_an_empty_box_is_refused(self):
        with pytest.raises(ShapeError, match="at least one pixel"):
            crop_padded(np.ones((2, 3), np.uint8), CropBox(2, 0, 2, 1))


class TestPartLabels:
    def test_labels_lie_where_the_parts_are(self):
        points = face()
        labels = part_labels(points, SIZE)
        assert labels.dtype == np.uint8 and labels.shape == SIZE
        for indices, label in [((17, 19, 21), 2), ((28, 31, 35), 3), ((36, 39), 4), ((42, 45), 4), ((60, 64), 6)]:
            x, y = points[list(indices)].mean(axis=0).astype(int)
            assert labels[y, x] == label
        assert labels[140, 130] == 1 and labels[10, 10] == 0

    def test_the_upper_face_mirrors_the_jaw_at_two_thirds(self):
        points = face()
        points[:17, 1] = 110
        points[8] = (160, 170)  # mirrored to 110 - 60·2/3 = 70
        labels = part_labels(points, SIZE)
        assert_array_equal(np.flatnonzero(labels[:, 160] > 0)[[0, -1]], [70, 170])

    @pytest.mark.parametrize(
        ("ends", "y", "mirrored"),
        [
            ((100, 100), 130, 80),
            ((100, 100), 131, 79),  # floor(-62/3) = -21
            ((100, 101), 131, 79),  # base 100.5, floor(-61/3) = -21, 79.5 truncated
            ((100, 100), 95, 103),
        ],
    )
    def test_worked_mirror_points(self, ends, y, mirrored):
        points = np.full((68, 2), 60.0)
        points[:17, 1] = y
        points[[0, 16], 1] = ends
        points[:17, 0] = np.arange(17) * 10 + 60
        # Everything but the contour sits in one place, so the extent of label 1 is that of the jaw and its mirror.
        rows = np.flatnonzero((part_labels(points, SIZE) == 1)[:, 140])
        assert_array_equal(rows[[0, -1]], sorted((y, mirrored)))


class TestDrawFace:
    def test_shapes(self):
        frame = noise()
        for config in (FaceConfig(), FaceConfig(background="none"), FaceConfig(distance_maps=False)):
            maps = draw_face(face(), SIZE, config, frame)
            assert maps.shape == (*SIZE, config.channels) and maps.dtype == np.uint8
            assert set(np.unique(maps[..., 0])) == {0, 255}

    def test_curves_pass_through_the_landmarks(self):
        points = face()
        edges = draw_face(points, SIZE, CURVES)[..., 0]
        drawn = [index for index in range(68) if index not in (27, 29, 30)]
        near = cv2.dilate(edges, np.ones((5, 5), np.uint8))
        x, y = points[drawn].astype(int).T
        assert (near[y, x] == 255).all()

    def test_the_contour_is_closed(self):
        points = face()
        points[17:] = 160, 130  # one place: no other part is drawn
        edges = draw_face(points, SIZE, CURVES)[..., 0]
        num, regions = cv2.connectedComponents((edges == 0).astype(np.uint8), connectivity=4)
        assert num == 3  # edges, outside, inside
        assert regions[0, 0] != regions[130, 160]

    def test_distances_to_a_worked_line(self):
        points = face()
        points[28], points[31] = (100, 50), (140, 50)  # the stroke covers x 99..140, y 49..50
        away = draw_face(points, (60, 1000), FaceConfig(background="none"))[..., 4]
        assert not away[49:51, 99:141].any()
        for x, y, distance in [(120, 58, 8), (94, 50, 5), (170, 40, 39), (740, 50, 600), (904, 50, 764)]:
            assert away[y, x] == distance // 3
        assert (away[:, 905:] == 255).all()

    @pytest.mark.parametrize("centre", [(160, 110), (5, 230), (320, -40), (-500, 120)])
    def test_distances_equal_those_of_the_whole_frame(self, centre):
        points = face(*centre)
        maps = draw_face(points, SIZE, FaceConfig(background="none"))
        every = np.zeros(SIZE, np.uint8)
        for channel, edge in enumerate(EDGES, 1):
            if max(edge) > 67:
                continue  # the mirrored points are not in reach here
            canvas = np.zeros(SIZE, np.uint8)
            for start in range(0, max(1, len(edge) - 1), 2):
                limits = np.array([[-320, -240], [640, 480]])
                stroke(canvas, fit_curve(points[list(edge[start : start + 3])].clip(*limits)), 255, width=1)
            expected = np.full(SIZE, 255)
            if canvas.any():
                expected = np.clip(cv2.distanceTransform(255 - canvas, cv2.DIST_L1, 3) / 3, 0, 255).astype(np.uint8)
            assert_array_equal(maps[..., channel], expected)
            every |= canvas
        assert (maps[..., 0] >= every).all()

    def test_channel_zero_is_where_a_distance_is_zero_and_a_stroke(self):
        maps = draw_face(face(), SIZE, FaceConfig(background="none"))
        assert (maps[maps[..., 0] == 255][:, 1:].min(axis=1) == 0).all()

    def test_a_curve_that_is_not_drawn_is_far_away(self):
        points = face()
        points[28] = points[31]
        assert (draw_face(points, SIZE, FaceConfig(background="none"))[..., 4] == 255).all()

    def test_background_edges_lie_outside_the_face_only(self):
        points, frame = face(), noise()
        curves = draw_face(points, SIZE, CURVES)[..., 0]
        both = draw_face(points, SIZE, FaceConfig(distance_maps=False), frame)[..., 0]
        inside = part_labels(points, SIZE) > 0
        assert_array_equal(both[inside], curves[inside])
        assert_array_equal(
            both[~inside], np.maximum(curves, canny_edges(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)))[~inside]
        )
        assert (both[~inside] > curves[~inside]).sum() > 500

    def test_background_edges_do_not_depend_on_scaling_the_face(self):
        points, frame = face(), noise()
        added = []
        for scale in (False, True):
            config = FaceConfig(distance_maps=False, scale_points=scale)
            both = draw_face(points, SIZE, config, frame)[..., 0]
            curves = draw_face(points, SIZE, FaceConfig(distance_maps=False, scale_points=scale, background="none"))
            added.append(both[curves[..., 0] == 0].sum())
        assert added[1] > 0.95 * added[0]

    def test_scaling_narrows_the_face(self):
        points = face()
        maps = [draw_face(points, SIZE, FaceConfig(background="none", scale_points=scale)) for scale in (False, True)]
        columns = [[np.flatnonzero((m[..., k] == 0).any(axis=0))[[0, -1]] for k in (1, 2, 11)] for m in maps]
        widths = [[right - left for left, right in row] for row in columns]
        assert widths[1][0] == pytest.approx(0.9 * widths[0][0], abs=4)  # contour
        assert widths[1][1] == pytest.approx(widths[0][1], abs=2)  # a brow keeps its size
        assert widths[1][2] == pytest.approx(0.9 * widths[0][2], abs=4)  # mouth
        # The brow's centre moves a tenth of its way, 0.25 · 80 = 20 pixels, to the middle.
        assert np.mean(columns[1][1]) - np.mean(columns[0][1]) == pytest.approx(2, abs=1)

    def test_the_canny_background_needs_the_frame(self):
        with pytest.raises(ConfigError, match="use 'none'"):
            draw_face(face(), SIZE, FaceConfig())

    @pytest.mark.parametrize(
        "frame", [np.zeros((240, 321, 3), np.uint8), np.zeros(SIZE, np.uint8), np.zeros((*SIZE, 3))]
    )
    def test_another_frame_is_refused(self, frame):
        with pytest.raises(ShapeError, match="expected an RGB frame"):
            draw_face(face(), SIZE, FaceConfig(), frame)

    def test_other_landmarks_are_refused(self):
        with pytest.raises(ShapeError, match=r"\(67, 2\)"):
            draw_face(face()[1:], SIZE, CURVES)
        with pytest.raises(DataError, match="finite"):
            part_labels(face() * np.nan, SIZE)

    @settings(max_examples=40, deadline=None)
    @given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1.0, 40.0, 1e3, 1e9, 1e300]), st.booleans(), st.booleans())
    @pytest.mark.filterwarnings("error")
    def test_any_finite_points_are_drawn(self, seed, spread, scale, whole):
        generator = np.random.default_rng(seed)
        points = generator.normal(20, 1, (68, 2)) * max(spread, 1e-3) + generator.normal(0, 1, 2)
        points = points.round() if whole else points
        config = FaceConfig(scale_points=scale)
        maps = draw_face(points, (40, 56), config, noise((40, 56)))
        assert maps.shape == (40, 56, 15) and maps.dtype == np.uint8


def mismatch(grey, sigma):
    """Pixels decided otherwise than scikit-image does, as a share of its edge pixels."""
    feature = pytest.importorskip("skimage.feature")
    expected = feature.canny(grey, sigma=sigma)
    assert expected.sum() > 50
    return ((canny_edges(grey, sigma) > 0) != expected).sum() / expected.sum()


class TestCanny:
    @pytest.mark.parametrize("sigma", [0.6, 1.0, 2.5])
    def test_agrees_with_scikit_image_on_texture(self, sigma):
        rough = np.random.default_rng(3).random((200, 260)).astype(np.float32)
        grey = cv2.normalize(cv2.GaussianBlur(rough, (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
        assert mismatch(grey, sigma) <= 0.001

    def test_agrees_with_scikit_image_on_a_real_frame(self):
        folder = shared("face_vid2vid") / "train_img" / "0005"
        grey = cv2.imread(str(folder / "00003.jpg"), cv2.IMREAD_GRAYSCALE)
        assert mismatch(grey, 1.0) <= 0.001

    def test_a_flat_picture_has_no_edges_even_at_its_border(self):
        assert not canny_edges(np.full((20, 30), 200, np.uint8)).any()

    def test_a_step_of_even_grey_is_found_where_it_is(self):
        grey = np.zeros((20, 30), np.uint8)
        grey[:, 15:] = 200
        edges = canny_edges(grey)
        assert (edges[1:-1, 14:16] == 255).any(axis=1).all() and not np.delete(edges, [14, 15], axis=1).any()

    def test_weak_edges_stay_only_beside_strong_ones(self):
        grey = np.zeros((40, 40), np.uint8)
        grey[:, 20:] = np.linspace(12, 60, 40)[:, None]  # a step that grows downwards
        assert canny_edges(grey)[5:, 18:22].any(axis=1).sum() > 30
        weak = np.zeros((40, 40), np.uint8)
        weak[:, 20:] = 18
        assert not canny_edges(weak).any()

    @pytest.mark.parametrize("size", [(1, 1), (2, 9), (3, 3)])
    def test_tiny_pictures(self, size):
        assert canny_edges(np.zeros(size, np.uint8)).shape == size


def test_real_landmarks_are_read_and_drawn():
    folder = shared("face_vid2vid") / "train_keypoints"
    for clip, size in (("0005", (480, 640)), ("0009", (1080, 1920))):
        path = folder / clip / "00000.txt"
        points = read_landmarks(path.read_bytes(), str(path))
        check_in_frame(points, size, str(path))
        box = face_crop(points, size)
        assert box.left >= 0 and box.top >= 0 and box.right <= size[1] and box.bottom <= size[0]
        edges = crop_padded(draw_face(points, size, CURVES), box)
        assert 0.005 < (edges > 0).mean() < 0.05
