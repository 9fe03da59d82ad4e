"""Point ids on their way from files into clips: scaled, cropped and mirrored like the frames they belong to."""

import logging
import struct
import tracemalloc
import zipfile

import cv2
import numpy as np
import pytest
import torch

from fastv2v.data.conditions import ConditionSpec, encode_condition_numpy
from fastv2v.data.folder import FolderConfig, open_folder
from fastv2v.data.loader import ClipLoader, collate_clips, read_sequence
from fastv2v.data.sampling import SamplingConfig
from fastv2v.data.transforms import GeometryConfig, apply_geometry, draw_geometry, take_points
from fastv2v.data.unprojection import pyramid as make_pyramid
from fastv2v.data.unprojection import read_unprojection, write_unprojection
from fastv2v.errors import ConfigError, DataError, ShapeError
from fastv2v.ops.labels import condition_pictures, encode_clip

SIZE = (64, 96)


def pyramid(ids, num_levels=3):
    """Levels by every 2^k-th pixel: with ids that tell the pixel, whatever is taken can be traced."""
    return [np.ascontiguousarray(ids[:: 2**k, :: 2**k]).astype(np.int32) for k in range(num_levels)]


def make_data(root, without=(), num_levels=3):
    """Four frames whose red channel, green channel and ids all tell the pixel."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    for i in range(4):
        frame = np.stack([np.full(SIZE, i), columns, rows], -1).astype(np.uint8)
        for suffix, picture in {"A": (columns % 3).astype(np.uint8), "B": frame}.items():
            path = root / f"train_{suffix}" / "seq" / f"{i:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), picture)
        folder = root / "train_unprojections" / "seq"
        folder.mkdir(parents=True, exist_ok=True)
        if i not in without:
            write_unprojection(folder / f"{i:03d}.npz", pyramid(rows * SIZE[1] + columns, num_levels))
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


def opened(root, mode="none", **fields):
    geometry = fields.pop("geometry", GeometryConfig(mode=mode))
    return open_folder(FolderConfig(root=root, num_classes=3, geometry=geometry, guidance_levels=2, **fields))


class TestClips:
    def test_a_sequence_has_the_ids_of_its_files(self, root):
        clip = read_sequence(opened(root), 0)
        assert [level.shape for level in clip.points] == [(1, 4, 64, 96), (1, 4, 32, 48)]
        assert all(level.dtype == torch.int32 for level in clip.points)

    def test_ids_follow_their_pixels_through_crops_and_mirrors(self, root):
        folder = opened(root, geometry=GeometryConfig(mode="crop", fine_size=32))
        loader = ClipLoader(folder, SamplingConfig(num_frames=2), batch_size=2, seed=0)
        flips = set()
        for _, clip in zip(range(6), loader.batches(), strict=False):
            pixels = ((clip.frames + 1) * 127.5).round().int()
            ids = pixels[:, :, 0] * SIZE[1] + pixels[:, :, 1]  # red holds the row, green the column
            assert torch.equal(clip.points[0], ids)
            # Level 1 holds the id of the top left pixel of each block; mirrored it is the right one.
            for sample, info in enumerate(clip.info):
                assert torch.equal(clip.points[1][sample], ids[sample, :, ::2, info.flipped :: 2])
                flips.add(info.flipped)
        assert flips == {False, True}

    def test_parts_and_batches_of_clips_keep_their_ids(self, root):
        clip = read_sequence(opened(root), 0)
        batch = collate_clips([clip, clip])
        assert batch.points[1].shape[0] == 2
        assert torch.equal(batch.take(1, 4, 2).points[0][1], clip.points[0][0, 1:4:2])
        assert clip.to("cpu").points[0].shape == clip.points[0].shape

    def test_clips_without_guidance_have_none(self, root):
        folder = open_folder(FolderConfig(root=root, num_classes=3, geometry=GeometryConfig(mode="none")))
        assert read_sequence(folder, 0).points is None
        assert collate_clips([read_sequence(folder, 0)] * 2).points is None

    def test_frames_without_a_file_are_all_holes_and_counted_in_a_warning(self, tmp_path, caplog):
        with caplog.at_level(logging.WARNING):
            clip = read_sequence(opened(make_data(tmp_path, without=(1, 2))), 0)
        assert "2 of 4 frames have no unprojection file" in caplog.text
        assert (clip.points[0][0, 1:3] == -1).all()
        assert (clip.points[0][0, ::3] >= 0).all()

    @pytest.mark.parametrize("workers", [0, 2])
    def test_files_without_a_point_are_counted_in_one_warning(self, tmp_path, workers):
        data = make_data(tmp_path / "data")
        for stem in ("001", "003"):
            write_unprojection(data / f"train_unprojections/seq/{stem}.npz", pyramid(np.full(SIZE, -1)))
        loader = ClipLoader(opened(data), SamplingConfig(num_frames=4), batch_size=1, num_workers=workers, seed=0)
        handler = logging.FileHandler(tmp_path / "log")  # of workers too, unlike caplog
        logging.getLogger("fastv2v.data.reader").addHandler(handler)
        try:
            for _ in zip(range(5), loader.batches(), strict=False):
                pass
        finally:
            logging.getLogger("fastv2v.data.reader").removeHandler(handler)
        assert (tmp_path / "log").read_text().count("2 of the first 4 unprojections that were read hold no point") == 1

    def test_a_data_set_without_unprojections_says_how_to_make_them(self, root, tmp_path):
        for kind in ("train_A", "train_B"):
            (tmp_path / kind).symlink_to(root / kind)
        with pytest.raises(DataError, match=r"train_unprojections is missing.*fastv2v unproject"):
            opened(tmp_path)

    def test_unprojections_of_another_size_are_refused(self, root, tmp_path):
        data = make_data(tmp_path)
        write_unprojection(data / "train_unprojections/seq/002.npz", pyramid(np.zeros((64, 92), np.int32)))
        with pytest.raises(DataError, match=r"002.npz is 92x64 pixels and .*96x64"):
            read_sequence(opened(data), 0)

    def test_too_few_levels_are_refused(self, tmp_path):
        with pytest.raises(DataError, match="has 1 levels and guidance_levels is 2"):
            read_sequence(opened(make_data(tmp_path, num_levels=1)), 0)

    def test_faces_have_no_guidance(self, root):
        with pytest.raises(ConfigError, match="condition face"):
            FolderConfig(root=root, condition="face", guidance_levels=1)
        with pytest.raises(ConfigError, match="0 to 6"):
            FolderConfig(root=root, guidance_levels=7)


class TestTakePoints:
    def geometry(self, size, source=SIZE):
        config = GeometryConfig(mode="exact", size=size)
        return draw_geometry(config, source, None, "test")

    def test_level_0_moves_as_label_maps_do(self):
        ids = np.arange(64 * 96, dtype=np.int32).reshape(SIZE)
        for size in (SIZE, (128, 192), (96, 120)):
            geometry = self.geometry(size)
            expected = apply_geometry(geometry, ids, "label", flip=True)
            assert np.array_equal(take_points(geometry, [ids], 0, flip=True), expected)

    def test_a_frame_of_half_the_size_takes_the_stored_level_of_half_the_size(self):
        levels = [np.full((64 >> k, 96 >> k), k, np.int32) for k in range(3)]
        levels[1][5, 7] = 99
        half = take_points(self.geometry((32, 48)), levels, 0)
        assert np.array_equal(half, levels[1])
        assert (take_points(self.geometry((32, 48)), levels, 1) == 2).all()
        assert (take_points(self.geometry((32, 48)), levels, 2) == 2).all(), "the coarsest stored one serves the rest"

    @pytest.mark.parametrize(("size", "stored"), [((244, 324), [1, 2]), ((485, 646), [0, 1]), ((260, 346), [0, 1])])
    def test_a_scale_that_is_nearly_that_of_a_stored_level_takes_it(self, size, stored):
        """Ratios of 1.98 and 0.99 to the stored frame; 1.85 is too far from 2."""
        levels = [np.full((480 >> k, 640 >> k), k, np.int32) for k in range(3)]
        geometry = self.geometry(size, (480, 640))
        assert [int(np.unique(take_points(geometry, levels, k)).item()) for k in (0, 1)] == stored

    def test_the_corner_of_a_crop_lies_on_the_coarsest_grid(self):
        rng = np.random.default_rng(0)
        config = GeometryConfig(mode="scaleWidth_and_crop", load_size=256, fine_size=64)
        corners = [draw_geometry(config, (200, 256), rng, multiple=8).offset for _ in range(20)]
        assert not np.array(corners).ravel().__mod__(8).any()
        assert len(set(corners)) > 5

    def test_odd_sizes_keep_their_last_pixel_and_mirror_about_the_middle(self):
        ids = np.arange(15, dtype=np.int32).reshape(3, 5)
        coarse = np.array([[0, 2, 4], [10, 12, 14]], np.int32)
        geometry = self.geometry((3, 5), (3, 5))
        assert np.array_equal(take_points(geometry, [ids, coarse], 1), coarse)
        # Mirrored, the blocks show columns 4 and 3, 2 and 1, 0: their centres lie at the borders 4 and 2, and before 0.
        assert take_points(geometry, [ids, coarse], 1, flip=True)[0].tolist() == [4, 2, 0]

    def test_ids_of_another_size_are_refused(self):
        with pytest.raises(ShapeError, match="drawn for images"):
            take_points(self.geometry(SIZE), [np.zeros((4, 4), np.int32)], 0)


class TestConditions:
    SPEC = ConditionSpec(class_names=("a", "b", "c"), guidance_levels=2)

    def test_guidance_comes_last_and_is_left_zero(self, root):
        clip = read_sequence(opened(root), 0)
        channels = encode_clip(self.SPEC, clip)
        assert self.SPEC.channels == 11 and self.SPEC.given_channels == 3 and self.SPEC.guidance_channels == 8
        assert channels.shape[2] == 11
        assert (channels[:, :, :3].sum(2) == 1).all() and not channels[:, :, 3:].any()

    def test_both_encoders_agree(self, root):
        clip = read_sequence(opened(root), 0)
        out = np.full((11, *clip.size), 7, np.float32)
        for target in (None, out):
            encoded = encode_condition_numpy(self.SPEC, clip.labels[0, 0].numpy(), out=target)
            assert np.array_equal(encoded, encode_clip(self.SPEC, clip)[0, 0].numpy())

    def test_maps_get_their_guidance_too(self):
        spec = ConditionSpec(kind="maps", map_channels=3, guidance_levels=1)
        maps = np.ones((3, 2, 2), np.float32)
        for target in (None, np.full((7, 2, 2), 5, np.float32)):
            encoded = encode_condition_numpy(spec, maps=maps, out=target)
            assert (encoded[:3] == 1).all() and not encoded[3:].any()

    def test_pictures_show_what_is_given_only(self, root):
        clip = read_sequence(opened(root), 0)
        palette = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
        plain = ConditionSpec(class_names=("a", "b", "c"))
        assert torch.equal(condition_pictures(self.SPEC, clip, palette), condition_pictures(plain, clip, palette))

    def test_the_description_names_the_guidance(self):
        assert self.SPEC.describe().endswith("and guidance of 2 levels")

    def test_levels_out_of_range_are_refused(self):
        with pytest.raises(ConfigError, match="0 to 6"):
            ConditionSpec(class_names=("a",), guidance_levels=-1)


class TestPyramid:
    def test_a_coarse_pixel_takes_a_point_of_its_block_and_the_nearest_surface(self):
        ids = np.array([[5, 2, -1, 7], [3, 9, -1, -1]], np.int32)
        depth = np.array([[1.0, 4.0, 1, 2], [1.01, 1.5, 1, 1]])
        level = make_pyramid(ids, depth, 2)[1]
        assert level.tolist() == [[3, 7]], "2 lies behind; of 5 and 3 on one surface 3 was seen first"

    def test_an_empty_block_stays_a_hole_and_small_frames_have_fewer_levels(self):
        levels = make_pyramid(np.full((4, 6), -1), np.ones((4, 6)))
        assert [level.shape for level in levels] == [(4, 6), (2, 3), (1, 2)]
        assert all((level == -1).all() for level in levels)

    def test_coverage_grows_where_every_second_pixel_would_keep_it(self):
        rng = np.random.default_rng(0)
        ids = np.where(rng.random((64, 64)) < 0.33, rng.integers(0, 999, (64, 64)), -1)
        shares = [(level >= 0).mean() for level in make_pyramid(ids, np.ones((64, 64)), 3)]
        assert shares[1] > 0.75 and shares[2] > 0.99

    def test_depth_of_another_size_is_refused(self):
        with pytest.raises(DataError, match="one size"):
            make_pyramid(np.zeros((4, 4)), np.zeros((4, 5)))


class TestFile:
    def test_what_is_written_is_read(self, tmp_path):
        rng = np.random.default_rng(0)
        levels = [rng.integers(-1, 50, (-(-9 >> k), -(-13 >> k))).astype(np.int32) for k in range(3)]
        write_unprojection(tmp_path / "a.npz", levels)
        for written, read in zip(levels, read_unprojection(tmp_path / "a.npz"), strict=True):
            assert read.dtype == np.int32 and np.array_equal(written, read)
        assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]

    def write(self, path, **changed):
        arrays = {
            "sizes": np.array([[2, 3]], np.uint32),
            "pixel0": np.array([0, 5], np.uint32),
            "point0": np.array([7, 1], np.uint32),
        }
        np.savez(path, **{**arrays, **changed})
        return path

    def test_pixels_run_along_rows(self, tmp_path):
        ids = read_unprojection(self.write(tmp_path / "a.npz"))[0]
        assert ids.tolist() == [[7, -1, -1], [-1, -1, 1]]

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"pixel0": np.array([0, 6], np.uint32)}, "outside of 3x2"),
            ({"pixel0": np.array([5, 5], np.uint32)}, "comes twice"),
            ({"point0": np.array([1], np.uint32)}, "2 pixels and 1 points"),
            ({"point0": np.array([1, 2**31], np.uint32)}, "point id"),
            ({"point0": np.array([1, 2], np.int64)}, "expected uint32"),
            ({"pixel0": np.zeros(2000, np.uint32)}, "more than 6 numbers"),
            ({"sizes": np.array([[2, 3], [2, 3]], np.uint32)}, "half the size"),
            ({"sizes": np.array([[20000, 3]], np.uint32)}, "16384"),
            ({"sizes": np.zeros((0, 2), np.uint32)}, "at least one level"),
            ({"pixel0": np.array([{}], object)}, "damaged or of another kind"),
        ],
    )
    def test_nonsense_is_refused_by_name(self, tmp_path, changed, message):
        with pytest.raises(DataError, match=rf"a\.npz.*{message}"):
            read_unprojection(self.write(tmp_path / "a.npz", **changed))

    def test_a_file_of_another_frame_is_refused_before_it_is_unpacked(self, tmp_path):
        path = self.write(tmp_path / "a.npz", sizes=np.array([[9000, 9000]], np.uint32))
        with pytest.raises(DataError, match=r"a\.npz is 9000x9000 pixels and its frame is 3x2"):
            read_unprojection(path, (2, 3))

    @pytest.mark.parametrize("way", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    def test_other_compression_is_refused(self, tmp_path, way):
        plain = self.write(tmp_path / "a.npz")
        with zipfile.ZipFile(plain) as archive, zipfile.ZipFile(tmp_path / "b.npz", "w", way) as other:
            for name in archive.namelist():
                other.writestr(name, archive.read(name))
        with pytest.raises(DataError, match=r"b\.npz.*compressed in a way"):
            read_unprojection(tmp_path / "b.npz")

    @pytest.mark.parametrize("text", ["{'descr': '<u4', 'shape': (", "{", "", "{'descr': '<u4', 'a': [" * 9])
    def test_headers_that_are_no_header_are_refused_by_name(self, tmp_path, text):
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("sizes.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode())
        with pytest.raises(DataError, match=r"a\.npz.*no array"):
            read_unprojection(tmp_path / "a.npz")

    def test_an_array_that_unpacks_to_more_than_it_says_is_refused(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("sizes.npy", bytes(2**25))
        data = (tmp_path / "a.npz").read_bytes().replace(struct.pack("<I", 2**25), struct.pack("<I", 200))
        (tmp_path / "a.npz").write_bytes(data)
        tracemalloc.start()
        with pytest.raises(DataError, match=r"a\.npz"):
            read_unprojection(tmp_path / "a.npz")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**22

    def test_files_cut_short_or_of_another_kind_are_refused(self, tmp_path):
        whole = self.write(tmp_path / "a.npz").read_bytes()
        for data in (whole[:-30], whole[: len(whole) // 2], b"", b"hello"):
            (tmp_path / "b.npz").write_bytes(data)
            with pytest.raises(DataError, match=r"b\.npz"):
                read_unprojection(tmp_path / "b.npz")
        with pytest.raises(DataError, match="no such unprojection file"):
            read_unprojection(tmp_path / "c.npz")
