"""Videos and pictures: exact round trips, odd sizes, damaged files."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction

import cv2
import numpy as np
import pytest

from fastv2v.errors import DataError, MediaError, ShapeError
from fastv2v.video import (
    VideoWriter,
    ffmpeg_program,
    probe_video,
    read_image,
    read_label,
    read_video,
    write_image,
    write_video,
)


def make_frames(num_frames=4, size=(48, 64), seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(num_frames)]


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir())


class TestRoundTrip:
    @pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
    @pytest.mark.parametrize("size", [(48, 64), (37, 53)])
    def test_lossless_keeps_every_pixel_of_any_size(self, tmp_path, suffix, size):
        frames = make_frames(size=size)
        assert write_video(tmp_path / f"v{suffix}", iter(frames), 25, lossless=True) == 4
        np.testing.assert_array_equal(list(read_video(tmp_path / f"v{suffix}")), frames)

    def test_lossy_keeps_flat_colours(self, tmp_path):
        frame = np.full((32, 48, 3), (200, 50, 90), np.uint8)
        write_video(tmp_path / "v.mp4", [frame] * 3, 25)
        assert np.abs(np.stack(list(read_video(tmp_path / "v.mp4"))).astype(int) - frame).max() <= 2

    def test_lossy_odd_sizes_repeat_the_last_row_and_column(self, tmp_path):
        frame = np.full((33, 47, 3), 180, np.uint8)
        write_video(tmp_path / "v.mp4", [frame], 25)
        (back,) = read_video(tmp_path / "v.mp4")
        assert back.shape == (34, 48, 3)
        assert np.abs(back.astype(int) - 180).max() <= 2

    def test_frames_read_belong_to_the_caller(self, tmp_path):
        write_video(tmp_path / "v.mkv", make_frames(), 25, lossless=True)
        first, second, *_ = read_video(tmp_path / "v.mkv")
        first[:] = 0
        assert second.any()

    def test_reading_may_stop_early(self, tmp_path):
        write_video(tmp_path / "v.mkv", make_frames(30), 25, lossless=True)
        frames = read_video(tmp_path / "v.mkv")
        next(frames)
        frames.close()

    def test_names_that_look_like_addresses_or_patterns(self, tmp_path):
        path = tmp_path / "a:b %03d 'c'.mkv"
        write_video(path, make_frames(), 25, lossless=True)
        assert len(list(read_video(path))) == probe_video(path).num_frames == 4


class TestProbe:
    @pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
    @pytest.mark.parametrize("fps", [25, Fraction(30000, 1001)])
    def test_size_rate_count_and_duration(self, tmp_path, suffix, fps):
        write_video(tmp_path / f"v{suffix}", make_frames(7), fps)
        info = probe_video(tmp_path / f"v{suffix}")
        assert (info.size, info.fps, info.num_frames) == ((48, 64), fps, 7)
        assert info.duration_s == pytest.approx(7 / fps)


class TestWriter:
    def test_browsers_find_the_index_before_the_pictures(self, tmp_path):
        write_video(tmp_path / "v.mp4", make_frames(), 25)
        data = (tmp_path / "v.mp4").read_bytes()
        assert 0 < data.find(b"moov") < data.find(b"mdat")

    def test_an_exception_leaves_the_old_file_and_nothing_else(self, tmp_path):
        path = tmp_path / "v.mkv"
        path.write_bytes(b"old")
        with pytest.raises(KeyError), VideoWriter(path, 25) as writer:
            writer.write(make_frames(1)[0])
            raise KeyError
        assert path.read_bytes() == b"old"
        assert leftovers(tmp_path) == ["v.mkv"]

    def test_nothing_but_the_video_is_left_and_folders_are_created(self, tmp_path):
        write_video(tmp_path / "new" / "v.mp4", make_frames(), 25)
        assert leftovers(tmp_path / "new") == ["v.mp4"]

    def test_no_frames_are_refused(self, tmp_path):
        with pytest.raises(MediaError, match="at least one frame"):
            write_video(tmp_path / "v.mp4", [], 25)
        assert leftovers(tmp_path) == []

    @pytest.mark.parametrize("wrong", [{"fps": 0}, {"fps": float("nan")}, {"fps": 25, "crf": 60}])
    def test_nonsense_is_refused(self, tmp_path, wrong):
        with pytest.raises(MediaError, match=r"v\.mp4"):
            VideoWriter(tmp_path / "v.mp4", **wrong)

    def test_unknown_extension_is_refused(self, tmp_path):
        with pytest.raises(MediaError, match=r"v\.avi: a video is written as"):
            VideoWriter(tmp_path / "v.avi", 25)

    def test_frames_of_another_kind_or_size_are_refused(self, tmp_path):
        frame = make_frames(1)[0]
        for wrong in (frame.astype(np.float32), frame[..., 0], frame[:0], "frame"):
            with pytest.raises(ShapeError, match="frame 0: expected 8-bit RGB"):
                write_video(tmp_path / "v.mp4", [wrong], 25)
        with pytest.raises(ShapeError, match="frame 1 is"):
            write_video(tmp_path / "v.mp4", [frame, frame[:-2]], 25)
        assert leftovers(tmp_path) == []

    def test_a_folder_that_is_a_file_is_named(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(MediaError, match="folder cannot be created"):
            write_video(tmp_path / "file" / "v.mp4", make_frames(), 25)
        (tmp_path / "folder.mp4").mkdir()
        with pytest.raises(MediaError, match=r"folder\.mp4: the video cannot be written"):
            write_video(tmp_path / "folder.mp4", make_frames(), 25)
        assert leftovers(tmp_path) == ["file", "folder.mp4"]


class TestDamagedVideos:
    @pytest.mark.parametrize("read", [probe_video, lambda path: list(read_video(path))], ids=["probe", "read"])
    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("missing.mp4", None, "no such video file"),
            ("empty.mp4", b"", "empty"),
            ("text.mp4", b"this is no video\n" * 20, "could not process"),
        ],
    )
    def test_files_without_video_are_named(self, tmp_path, read, name, content, message):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(MediaError, match=message) as caught:
            read(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)

    @pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
    def test_a_video_cut_short_is_an_error(self, tmp_path, suffix):
        path = tmp_path / f"v{suffix}"
        write_video(path, make_frames(8), 25)
        data = path.read_bytes()
        path.write_bytes(data[: len(data) * 2 // 3])
        with pytest.raises(MediaError, match="cut short"):
            list(read_video(path))

    def test_sound_alone_is_no_video(self, tmp_path):
        path = tmp_path / "sound.mkv"
        tone = ["-f", "lavfi", "-i", "sine=d=0.1", str(path)]
        subprocess.run([ffmpeg_program(), "-v", "error", *tone], check=True)
        with pytest.raises(MediaError, match="no picture"):
            list(read_video(path))
        with pytest.raises(MediaError, match="no picture"):
            probe_video(path)


class TestImages:
    def test_png_round_trip_is_exact_and_rgb(self, tmp_path):
        image = make_frames(1)[0]
        write_image(tmp_path / "new" / "i.png", image)
        np.testing.assert_array_equal(read_image(tmp_path / "new" / "i.png"), image)
        assert leftovers(tmp_path / "new") == ["i.png"]

    @pytest.mark.parametrize("suffix", [".png", ".jpg"])
    def test_truncated_pictures_are_errors(self, tmp_path, suffix):
        path = tmp_path / f"i{suffix}"
        write_image(path, make_frames(1)[0])
        path.write_bytes(path.read_bytes()[:-40])
        with pytest.raises(DataError, match="cut short"):
            read_image(path)

    def test_labels_keep_16_bits_and_three_channels_are_refused(self, tmp_path):
        labels = np.arange(12, dtype=np.uint16).reshape(3, 4) * 1000
        cv2.imwrite(str(tmp_path / "l.png"), labels)
        np.testing.assert_array_equal(read_label(tmp_path / "l.png"), labels)
        write_image(tmp_path / "rgb.png", make_frames(1)[0])
        with pytest.raises(DataError, match="one channel"):
            read_label(tmp_path / "rgb.png")

    def test_what_cannot_be_written_is_named(self, tmp_path):
        image = make_frames(1)[0]
        with pytest.raises(MediaError, match="no picture format"):
            write_image(tmp_path / "i.xyz", image)
        with pytest.raises(ShapeError, match=r"i\.png"):
            write_image(tmp_path / "i.png", image[..., 0])
        (tmp_path / "file").write_text("")
        with pytest.raises(MediaError, match="cannot be written"):
            write_image(tmp_path / "file" / "i.png", image)


def test_importing_needs_no_torch():
    check = "import sys, fastv2v.video, fastv2v.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
