"""Geometry of clips: vid2vid's arithmetic, and what it does to pixels and ids."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastv2v.data.transforms import (
    Geometry,
    GeometryConfig,
    GeometryMode,
    apply_geometry,
    draw_geometry,
    draw_scale,
)
from fastv2v.errors import ConfigError, ShapeError

MODES = [mode for mode in GeometryMode.__args__ if mode != "exact"]


def rng(seed=0):
    return np.random.default_rng(seed)


def identity(source, **changes):
    return Geometry(**{"source": source, "resized": source, "offset": (0, 0), "size": source, **changes})


class TestDrawGeometry:
    @pytest.mark.parametrize(
        ("mode", "load", "fine", "source", "scaled", "result"),
        [  # all (width, height), as in the table they come from
            ("scaleWidth", 512, 512, (2048, 1024), (512, 256), (512, 256)),
            ("scaleWidth", 896, 512, (2048, 1024), (896, 448), (896, 448)),
            ("scaleWidth", 512, 512, (640, 480), (512, 384), (512, 384)),
            ("scaleWidth_and_crop", 512, 256, (2048, 1024), (512, 256), (256, 256)),
            ("crop", 512, 1024, (2048, 1024), (2048, 1024), (1024, 1024)),
            ("scaleHeight", 256, 512, (1280, 720), (448, 256), (448, 256)),
            ("scaleHeight", 512, 512, (1280, 720), (896, 512), (896, 512)),
            ("none", 512, 512, (1000, 500), (992, 512), (992, 512)),
            ("scaledCrop", 512, 256, (640, 480), (640, 480), (352, 256)),
            ("resize_and_crop", 286, 256, (640, 480), (288, 288), (256, 256)),
        ],
    )
    def test_worked_sizes(self, mode, load, fine, source, scaled, result):
        config = GeometryConfig(mode=mode, load_size=load, fine_size=fine)
        geometry = draw_geometry(config, source[::-1], rng())
        assert geometry.resized[::-1] == scaled
        assert geometry.size[::-1] == result

    def test_worked_random_scale(self):
        config = GeometryConfig(mode="randomScaleHeight_and_scaledCrop", load_size=768, fine_size=512)
        scales = {draw_scale(config, rng(seed)) for seed in range(4000)}
        assert (min(scales), max(scales)) == (512, 769)
        for seed in range(50):
            geometry = draw_geometry(config, (720, 1280), rng(seed))
            assert geometry.size == (512, 896)
            assert 512 <= geometry.resized[0] <= 768  # 769 rounds to 768

    @pytest.mark.parametrize(("length", "rounded"), [(48, 64), (80, 64), (112, 128), (144, 128), (16, 32), (1, 32)])
    def test_halves_round_to_even_and_nothing_vanishes(self, length, rounded):
        assert draw_geometry(GeometryConfig(mode="none"), (length, length), rng()).size == (rounded, rounded)

    def test_a_given_scale_is_the_scaled_length(self):
        config = GeometryConfig(mode="randomScaleWidth", load_size=512, fine_size=256)
        assert draw_geometry(config, (100, 200), rng(), scale=320).size == (160, 320)

    def test_exact_takes_the_size_as_it_is(self):
        geometry = draw_geometry(GeometryConfig(mode="exact", size=(90, 170)), (480, 640), rng())
        assert (geometry.resized, geometry.offset, geometry.size) == ((90, 170), (0, 0), (90, 170))

    def test_a_side_shorter_than_the_crop_is_rounded_instead(self):
        config = GeometryConfig(mode="crop", fine_size=256)
        assert draw_geometry(config, (100, 200), rng()).size == (96, 192)
        assert draw_geometry(config, (200, 512), rng()).size == (192, 256)

    def test_training_crops_near_the_middle_and_the_top(self):
        config = GeometryConfig(mode="crop", fine_size=256)
        offsets = np.array([draw_geometry(config, (1024, 2048), rng(seed)).offset for seed in range(2000)])
        top, left = offsets.T
        assert (top.min(), top.max()) == (0, 128)
        assert left.mean() == pytest.approx(896, abs=30)
        assert left.std() == pytest.approx(896 / 3, abs=20)
        assert left.min() >= 0 and left.max() <= 1792

    def test_testing_crops_in_the_middle_without_a_generator(self):
        config = GeometryConfig(mode="crop", fine_size=256)
        assert draw_geometry(config, (1024, 2048), None, "test").offset == (64, 896)

    def test_testing_refuses_random_scales(self):
        config = GeometryConfig(mode="randomScaleWidth_and_crop")
        with pytest.raises(ConfigError, match="take 'scaleWidth_and_crop' for phase 'test'"):
            draw_geometry(config, (64, 64), rng(), "test")

    def test_training_needs_a_generator(self):
        with pytest.raises(ConfigError, match="needs a random generator"):
            draw_geometry(GeometryConfig(), (64, 64), None)

    @settings(max_examples=150, deadline=None)
    @given(
        mode=st.sampled_from(MODES),
        load=st.integers(1, 900),
        fine=st.integers(1, 900),
        height=st.integers(1, 1200),
        width=st.integers(1, 1200),
        seed=st.integers(0, 2**32),
    )
    def test_sizes_are_multiples_and_crops_lie_inside(self, mode, load, fine, height, width, seed):
        config = GeometryConfig(mode=mode, load_size=max(load, fine), fine_size=fine)
        geometry = draw_geometry(config, (height, width), rng(seed))
        for scaled, offset, size in zip(geometry.resized, geometry.offset, geometry.size, strict=True):
            assert size % 32 == 0 and size >= 32
            assert scaled % 4 == 0
            assert 0 <= offset <= scaled - size
        assert draw_geometry(config, (height, width), rng(seed)) == geometry


class TestCentreCrop:
    def test_follows_scaling_and_cropping(self):
        config = GeometryConfig(mode="scaleHeight", load_size=256, centre_crop=True)
        geometry = draw_geometry(config, (720, 1280), rng())
        assert (geometry.resized, geometry.offset, geometry.size) == ((256, 448), (0, 128), (256, 192))

    def test_is_off_for_others(self):
        config = GeometryConfig(mode="scaleHeight", load_size=256)
        assert draw_geometry(config, (720, 1280), rng()).size == (256, 448)


class TestGeometryConfig:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"mode": "scaleWidth_and_zoom"}, "unknown geometry mode 'scaleWidth_and_zoom'"),
            ({"mode": "none_and_crop"}, "unknown geometry mode"),
            ({"interpolation": "lanczos"}, "unknown interpolation"),
            ({"load_size": 0}, "at least 1"),
            ({"mode": "randomScaleWidth", "load_size": 100, "fine_size": 200}, "make load_size the larger"),
            ({"mode": "exact"}, "go together"),
            ({"size": (64, 64)}, "go together"),
            ({"mode": "exact", "size": (0, 64)}, "at least 1 pixel"),
        ],
    )
    def test_nonsense_is_refused(self, fields, message):
        with pytest.raises(ConfigError, match=message):
            GeometryConfig(**fields)


class TestApplyGeometry:
    def test_same_size_returns_the_pixels(self):
        image = rng().integers(0, 256, (32, 64, 3), dtype=np.uint8)
        np.testing.assert_array_equal(apply_geometry(identity((32, 64)), image), image)

    def test_crop_then_flip(self):
        image = np.arange(24).reshape(4, 6)
        geometry = identity((4, 6), offset=(1, 2), size=(2, 3))
        np.testing.assert_array_equal(apply_geometry(geometry, image, "label"), [[8, 9, 10], [14, 15, 16]])
        np.testing.assert_array_equal(apply_geometry(geometry, image, "label", flip=True), [[10, 9, 8], [16, 15, 14]])

    def test_labels_take_the_pixel_under_the_centre(self):
        labels = np.array([[1, 2, 3, 4, 5, 6]], dtype=np.uint16)
        shrunk = apply_geometry(identity((1, 6), resized=(1, 2), size=(1, 2)), labels, "label")
        np.testing.assert_array_equal(shrunk, [[2, 5]])
        grown = apply_geometry(identity((1, 6), resized=(1, 12), size=(1, 12)), labels, "label")
        np.testing.assert_array_equal(grown, [[1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]])
        assert shrunk.dtype == np.uint16

    def test_labels_agree_with_an_independent_nearest(self):
        image_module = pytest.importorskip("PIL.Image")
        labels = rng().integers(0, 35, (37, 53), dtype=np.uint8)
        expected = image_module.fromarray(labels).resize((40, 30), image_module.Resampling.NEAREST)
        geometry = identity((37, 53), resized=(30, 40), size=(30, 40))
        np.testing.assert_array_equal(apply_geometry(geometry, labels, "label"), np.asarray(expected))

    def test_area_averages_blocks(self):
        image = np.zeros((4, 4, 3), dtype=np.uint8)
        image[:2, :2] = [[[0, 100, 40]], [[200, 100, 80]]]
        geometry = identity((4, 4), resized=(2, 2), size=(2, 2), interpolation="area")
        np.testing.assert_array_equal(apply_geometry(geometry, image)[0], [[100, 100, 60], [0, 0, 0]])

    def test_interpolations_differ_when_shrinking_and_agree_when_enlarging(self):
        image = rng().integers(0, 256, (32, 32, 3), dtype=np.uint8)
        for size, same in (((16, 16), False), ((64, 64), True)):
            bicubic, area = (
                apply_geometry(identity((32, 32), resized=size, size=size, interpolation=i), image)
                for i in ("bicubic", "area")
            )
            assert np.array_equal(bicubic, area) is same

    def test_drawings_are_bilinear_with_any_number_of_channels(self):
        row = np.array([[0, 100, 200, 40]], dtype=np.uint8)
        for channels in (1, 3, 15):
            drawing = np.repeat(row[..., None], channels, axis=2)
            shrunk = apply_geometry(identity((1, 4), resized=(1, 2), size=(1, 2)), drawing, "drawing")
            np.testing.assert_array_equal(shrunk, np.repeat(np.array([[50, 120]])[..., None], channels, axis=2))
            assert apply_geometry(identity((1, 4)), drawing, "drawing").shape == (1, 4, channels)

    def test_flow_is_scaled_by_axis_and_turned_by_mirroring(self):
        flow = np.broadcast_to(np.float32((6, -4)), (4, 8, 2))
        geometry = identity((4, 8), resized=(8, 4), offset=(1, 1), size=(2, 3))
        np.testing.assert_allclose(apply_geometry(geometry, flow, "flow"), np.broadcast_to((3, -8), (2, 3, 2)))
        mirrored = apply_geometry(geometry, flow, "flow", flip=True)
        np.testing.assert_allclose(mirrored, np.broadcast_to((-3, -8), (2, 3, 2)))
        assert mirrored.dtype == np.float32

    def test_another_size_is_refused(self):
        with pytest.raises(ShapeError, match=r"images of \(4, 4\), got one of \(4, 5\)"):
            apply_geometry(identity((4, 4)), np.zeros((4, 5)))

    @settings(max_examples=60, deadline=None)
    @given(
        mode=st.sampled_from(MODES),
        fine=st.integers(1, 96),
        height=st.integers(1, 80),
        width=st.integers(1, 80),
        seed=st.integers(0, 2**32),
        flip=st.booleans(),
    )
    def test_labels_keep_their_ids_and_image_and_labels_their_size(self, mode, fine, height, width, seed, flip):
        generator = rng(seed)
        geometry = draw_geometry(
            GeometryConfig(mode=mode, load_size=fine + 20, fine_size=fine), (height, width), generator
        )
        labels = generator.choice(np.array([0, 7, 26, 255, 26001], dtype=np.int32), (height, width))
        result = apply_geometry(geometry, labels, "label", flip=flip)
        assert set(np.unique(result)) <= set(np.unique(labels))
        assert result.dtype == labels.dtype
        picture = apply_geometry(geometry, np.zeros((height, width, 3), np.uint8), flip=flip)
        assert result.shape == picture.shape[:2] == geometry.size
