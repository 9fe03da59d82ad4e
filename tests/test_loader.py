"""Clips as tensors and the stream of training batches."""

import itertools
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from fastv2v.data.folder import FolderConfig, FrameReader, open_folder
from fastv2v.data.loader import ClipLoader, collate_clips, read_clip, read_sequence
from fastv2v.data.sampling import SamplingConfig
from fastv2v.data.transforms import GeometryConfig, draw_geometry
from fastv2v.errors import ConfigError, DataError, ShapeError
from fastv2v.ops.labels import encode_clip

NONE = GeometryConfig(mode="none")
SAMPLING = SamplingConfig(num_frames=3, max_step=2)


def make_folder(root, lengths=(7, 5), size=(32, 64), phase="train"):
    """Frames of noise with label ids 0 to 3 and 16-bit instance ids, a sequence for each length."""
    rng = np.random.default_rng(0)
    for s, length in enumerate(lengths):
        for i in range(length):
            pictures = {
                "A": rng.integers(0, 4, size, dtype=np.uint8),
                "B": rng.integers(0, 256, (*size, 3), dtype=np.uint8),
                "inst": rng.integers(0, 30000, size, dtype=np.uint16),
            }
            for suffix, picture in pictures.items():
                path = root / f"{phase}_{suffix}" / f"seq{s}" / f"{i:03d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(path), picture)
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("data"))


def opened(root, **fields):
    return open_folder(FolderConfig(**{"root": root, "num_classes": 4, "geometry": NONE, **fields}))


def geometry_of(folder, size=(32, 64), seed=0):
    return draw_geometry(folder.config.geometry, size, np.random.default_rng(seed), folder.phase)


def take(loader, num, start=0):
    batches = loader.batches(start)
    try:
        return list(itertools.islice(batches, num))
    finally:
        batches.close()


def assert_same(first, second):
    assert [clip.info for clip in first] == [clip.info for clip in second]
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.frames, b.frames)
        assert torch.equal(a.labels, b.labels)


class TestReadClip:
    def test_frames_labels_and_instances_hold_what_the_files_hold(self, root):
        folder = opened(root, use_instances=True)
        clip = read_clip(folder, 1, (2, 4), geometry_of(folder))
        picture = cv2.imread(str(root / "train_B/seq1/004.png"))[..., ::-1].astype(np.float32)
        assert clip.frames.shape == (1, 2, 3, 32, 64)
        assert clip.frames.dtype == torch.float32
        assert clip.frames.is_contiguous()
        assert_close(clip.frames[0, 1].permute(1, 2, 0).numpy(), (picture / 255 - 0.5) / 0.5, atol=1e-6, rtol=0)
        assert (clip.frames.min(), clip.frames.max()) == (-1, 1)
        assert clip.labels.dtype == torch.uint8
        np.testing.assert_array_equal(clip.labels[0, 0], cv2.imread(str(root / "train_A/seq1/002.png"), -1))
        assert clip.instances.dtype == torch.int32
        np.testing.assert_array_equal(clip.instances[0, 0], cv2.imread(str(root / "train_inst/seq1/002.png"), -1))
        assert encode_clip(folder.spec, clip).shape == (1, 2, 5, 32, 64)

    def test_info_names_the_files(self, root):
        folder = opened(root)
        info = read_clip(folder, 1, (2, 4), geometry_of(folder), flip=True).info[0]
        assert (info.sequence, info.indices, info.names, info.flipped) == ("seq1", (2, 4), ("002", "004"), True)

    def test_flip_mirrors_everything(self, root):
        folder = opened(root, use_instances=True)
        plain, mirrored = (read_clip(folder, 0, (0, 1), geometry_of(folder), flip) for flip in (False, True))
        for name in ("frames", "labels", "instances"):
            assert torch.equal(getattr(plain, name).flip(-1), getattr(mirrored, name))

    def test_images_and_labels_are_cut_alike(self, tmp_path):
        ids = np.random.default_rng(0).integers(0, 250, (96, 160), dtype=np.uint8)
        for part in ("A", "B"):
            (tmp_path / f"train_{part}/s").mkdir(parents=True)
            picture = ids if part == "A" else np.repeat(ids[..., None], 3, axis=2)
            cv2.imwrite(str(tmp_path / f"train_{part}/s/0.png"), picture)
        folder = opened(tmp_path, num_classes=250, geometry=GeometryConfig(mode="crop", fine_size=64))
        clip = read_clip(folder, 0, (0,), geometry_of(folder, (96, 160), seed=5), flip=True)
        assert clip.size == (64, 64)
        assert torch.equal(((clip.frames[:, :, 0] + 1) * 127.5).round().to(torch.uint8), clip.labels)

    def test_many_classes_give_int64_whatever_the_files_hold(self, root):
        for fields in ({"num_classes": 300}, {"ignore_id": 1000}):
            folder = opened(root, **fields)
            assert read_clip(folder, 0, (0,), geometry_of(folder)).labels.dtype == torch.int64

    def test_rgb_conditions_are_maps(self, root, tmp_path):
        for part in ("train_A", "train_B"):
            (tmp_path / part).symlink_to(root / "train_B")
        folder = opened(tmp_path, condition="rgb", num_classes=None)
        clip = read_clip(folder, 0, (0, 1), geometry_of(folder))
        assert clip.labels is None
        assert torch.equal(clip.maps, clip.frames)
        assert encode_clip(folder.spec, clip).shape == (1, 2, 3, 32, 64)

    def test_refusals(self, root):
        folder = opened(root)
        with pytest.raises(DataError, match="at least one frame"):
            read_clip(folder, 0, (), geometry_of(folder))
        with pytest.raises(DataError, match="no frame 7 in sequence 'seq0'"):
            read_clip(folder, 0, (7,), geometry_of(folder))
        with pytest.raises(ShapeError, match="geometry was drawn for images of"):
            read_clip(folder, 0, (0,), geometry_of(folder, (64, 64)))


class TestReadSequence:
    def test_all_frames_or_a_part(self, root):
        folder = opened(root)
        clip = read_sequence(folder, 0)
        assert clip.info[0].indices == tuple(range(7))
        assert torch.equal(read_sequence(folder, 0, 2, 5).frames, clip.frames[:, 2:5])

    def test_crops_in_the_middle(self, root):
        geometry = GeometryConfig(mode="crop", fine_size=32)
        cut = read_sequence(opened(root, geometry=geometry), 0)
        assert torch.equal(cut.frames, read_sequence(opened(root), 0).frames[..., 16:48])

    def test_ranges_outside_are_refused(self, root):
        folder = opened(root)
        for start, stop in ((3, 3), (2, 8)):
            with pytest.raises(DataError, match=f"no frames {start}:{stop} in sequence 'seq0' of 7"):
                read_sequence(folder, 0, start, stop)
        with pytest.raises(DataError, match="no frame 9"):
            read_sequence(folder, 0, 9)

    def test_random_scales_are_refused(self, root):
        folder = opened(root, geometry=GeometryConfig(mode="randomScaleWidth"))
        with pytest.raises(ConfigError, match="for training only"):
            read_sequence(folder, 0)


class TestCollateClips:
    def test_batch_and_info(self, root):
        folder = opened(root, use_instances=True)
        clips = [read_clip(folder, s, (0, 1), geometry_of(folder)) for s in (0, 1)]
        batch = collate_clips(clips)
        for name in ("frames", "labels", "instances"):
            assert torch.equal(getattr(batch, name)[1:], getattr(clips[1], name))
        assert [info.sequence for info in batch.info] == ["seq0", "seq1"]

    def test_other_lengths_and_sizes_are_refused(self, root):
        folder = opened(root)
        short, long = (read_clip(folder, 0, range(n), geometry_of(folder)) for n in (1, 2))
        with pytest.raises(DataError, match=r"'seq0' \(1 frames of 64x32\) and 'seq0' \(2 frames of 64x32\)"):
            collate_clips([short, long])
        with pytest.raises(DataError, match="32x32"):
            collate_clips([short, replace(short, frames=short.frames[..., :32])])


class TestClipLoader:
    def loader(self, root, sampling=SAMPLING, seed=1, batch_size=2, fields=None, **settings):
        return ClipLoader(opened(root, **(fields or {})), sampling, batch_size=batch_size, seed=seed, **settings)

    def test_batches_are_clips_of_the_asked_length(self, root):
        for clip in take(self.loader(root), 5):
            assert clip.frames.shape == (2, 3, 3, 32, 64)
            assert clip.labels.shape == (2, 3, 32, 64)
            for info in clip.info:
                assert len(set(np.diff(info.indices))) == 1

    def test_same_seed_same_batches_and_another_seed_others(self, root):
        first = take(self.loader(root), 4)
        assert_same(first, take(self.loader(root), 4))
        assert [c.info for c in first] != [c.info for c in take(self.loader(root, seed=2), 4)]

    def test_clips_vary_between_batches_and_within_them(self, root):
        assert len({clip.info for clip in take(self.loader(root, batch_size=1), 12)}) > 6
        (clip,) = take(self.loader(root, batch_size=12), 1)
        assert len(set(clip.info)) > 6

    def test_resuming_gives_what_would_have_come(self, root):
        loader = self.loader(root)
        assert_same(take(loader, 6)[4:], take(loader, 2, start=4))

    @pytest.mark.parametrize("num_workers", [1, 2])
    def test_workers_change_nothing(self, root, num_workers):
        expected = take(self.loader(root), 6)
        loader = self.loader(root, num_workers=num_workers)
        assert_same(expected, take(loader, 6))
        assert_same(expected[3:], take(loader, 3, start=3))

    def test_spawned_workers_change_nothing(self, root):
        assert_same(take(self.loader(root), 2), take(self.loader(root, num_workers=1, start_method="spawn"), 2))

    def test_a_cache_changes_nothing(self, root):
        assert_same(take(self.loader(root, cache_mb=0), 6), take(self.loader(root), 6))

    def test_the_random_state_of_the_run_is_left_alone(self, root):
        torch.manual_seed(0)
        before = torch.get_rng_state()
        take(self.loader(root), 2)
        assert torch.equal(torch.get_rng_state(), before)

    def test_ranks_share_out_the_global_batch(self, root):
        whole = take(self.loader(root, batch_size=4), 3)
        parts = [take(self.loader(root, batch_size=4, rank=rank, world_size=2), 3) for rank in (0, 1)]
        assert_same(whole, [collate_clips(pair) for pair in zip(*parts, strict=True)])

    @pytest.mark.parametrize("num_workers", [0, 1])
    def test_a_damaged_file_is_one_plain_sentence(self, tmp_path, num_workers):
        make_folder(tmp_path, lengths=(3,))
        path = tmp_path / "train_B/seq0/001.png"
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(DataError) as error:
            take(self.loader(tmp_path, num_workers=num_workers), 1)
        assert str(error.value) == f"{path}: the image file is cut short; copy or extract it again"

    def test_random_scales_are_drawn_for_the_batch_on_all_ranks(self, root):
        fields = {"geometry": GeometryConfig(mode="randomScaleWidth", load_size=256, fine_size=64)}
        ranks = [take(self.loader(root, fields=fields, rank=r, world_size=2), 8) for r in (0, 1)]
        sizes = [[clip.size for clip in clips] for clips in ranks]
        assert sizes[0] == sizes[1]
        assert len(set(sizes[0])) > 1

    def test_crops_are_drawn_for_each_clip_and_flips_too(self, root):
        fields = {"geometry": GeometryConfig(mode="crop", fine_size=32)}
        sampling = SamplingConfig(num_frames=1, flip=False, fixed_sequence=0, fixed_start=0)
        (clip,) = take(self.loader(root, sampling, batch_size=6, fields=fields), 1)
        assert clip.size == (32, 32)
        assert any(not torch.equal(clip.frames[0], other) for other in clip.frames[1:])
        (clip,) = take(self.loader(root, batch_size=16), 1)
        assert {info.flipped for info in clip.info} == {True, False}

    def test_clips_to_test_on_are_not_mirrored(self, root):
        (clip,) = take(self.loader(root, batch_size=16, fields={"phase": "test", "test_tail": 4}), 1)
        assert {info.flipped for info in clip.info} == {False}

    def test_growing_clips_fit_the_shortest_sequence_of_the_batch_on_all_ranks(self, root):
        sampling = SamplingConfig(num_frames=3, given_frames=1, grow_every=2)
        whole = take(self.loader(root, sampling, batch_size=4), 8)
        assert [clip.num_frames for clip in whole[:4]] == [3, 3, 5, 5]
        assert {clip.num_frames for clip in whole[4:]} <= {5, 7}  # sequences of 7 and 5 frames
        for clip in whole[4:]:
            assert clip.num_frames == 5 or {info.sequence for info in clip.info} == {"seq0"}
        ranks = [take(self.loader(root, sampling, batch_size=4, rank=r, world_size=2), 8) for r in (0, 1)]
        assert_same(whole, [collate_clips(pair) for pair in zip(*ranks, strict=True)])
        assert_same(whole[5:], take(self.loader(root, sampling, batch_size=4, num_workers=1), 3, start=5))

    def test_all_batches_of_a_step_share_one_length(self, root):
        sampling = SamplingConfig(num_frames=3, given_frames=1, grow_every=1)
        loader = ClipLoader(opened(root), sampling, batch_size=1, seed=0, batches_per_step=2)
        lengths = [clip.num_frames for clip in take(loader, 40)]
        assert lengths[::2] == lengths[1::2]
        assert lengths[0] == 3 and set(lengths[2:]) == {5, 7}  # sequences of 7 and 5 frames

    def test_sizes_that_differ_between_sequences_are_explained(self, tmp_path):
        make_folder(tmp_path, lengths=(3,))
        for part in ("A", "B"):
            folder = tmp_path / f"train_{part}/wide"
            folder.mkdir()
            for i in range(3):
                cv2.imwrite(str(folder / f"{i}.png"), np.zeros((32, 96, 3) if part == "B" else (32, 96), np.uint8))
        with pytest.raises(DataError, match="choose a geometry that gives all sequences one size"):
            take(self.loader(tmp_path, batch_size=16), 1)

    def test_short_sequences_are_left_out_with_one_line(self, root, caplog):
        loader = self.loader(root, SamplingConfig(num_frames=6))
        assert {info.sequence for clip in take(loader, 6) for info in clip.info} == {"seq0"}
        assert caplog.text.count("1 of 2 sequences are shorter than a clip of 6 frames") == 1

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"batch_size": 0}, "batch_size"),
            ({"batch_size": 3, "world_size": 2}, r"batch_size \(3\) must be a positive multiple of world_size \(2\)"),
            ({"rank": 1}, r"rank \(1\) must lie below world_size \(1\)"),
            ({"world_size": 0}, "world_size"),
            ({"num_workers": -1}, "num_workers"),
            ({"prefetch": 0}, "prefetch"),
            ({"cache_mb": -1}, "0 MB or more"),
        ],
    )
    def test_nonsense_is_refused(self, root, settings, message):
        with pytest.raises(ConfigError, match=message):
            self.loader(root, **settings)

    def test_clips_longer_than_all_sequences_are_refused_at_once(self, root):
        with pytest.raises(
            DataError, match="a clip of 8 frames needs at least 8, and the longest of 2 sequences has 7"
        ):
            self.loader(root, SamplingConfig(num_frames=8))

    def test_a_negative_step_is_refused(self, root):
        with pytest.raises(ConfigError, match="start_step"):
            next(self.loader(root).batches(-1))


def test_a_reader_can_be_shared(root):
    folder = opened(root)
    reader = FrameReader(folder)
    first = read_sequence(folder, 0, reader=reader)
    assert torch.equal(read_sequence(folder, 0, reader=reader).frames, first.frames)
