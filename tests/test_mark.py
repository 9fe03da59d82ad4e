"""The mark of synthesised media: written, kept out on request, read back, and seen by others."""

from __future__ import annotations

import io
import subprocess

import cv2
import numpy as np
import pytest
from PIL import Image

from fastv2v.errors import MediaError
from fastv2v.mark import SOURCE_TYPE, SYNTHETIC_COMMENT, mark_png, mark_text, png_mark
from fastv2v.video import ffmpeg_program, probe_video, read_mark, read_video, write_image, write_video

FRAMES = [np.full((16, 24, 3), level, np.uint8) for level in (10, 200)]
STRANGE = "näh; a=b # \\ 'c'.v2v"
"""A name with all that ffmpeg's metadata format escapes."""


@pytest.mark.parametrize(("suffix", "lossless"), [(".mp4", False), (".mkv", False), (".mkv", True)])
class TestVideos:
    def test_say_who_made_them(self, tmp_path, suffix, lossless):
        path = tmp_path / f"v{suffix}"
        write_video(path, FRAMES, 25, lossless=lossless, made_by=STRANGE)
        assert read_mark(path) == mark_text(STRANGE)
        assert SOURCE_TYPE.encode() in path.read_bytes()
        assert probe_video(path).num_frames == len(list(read_video(path))) == 2

    def test_recordings_say_nothing(self, tmp_path, suffix, lossless):
        path = tmp_path / f"v{suffix}"
        write_video(path, FRAMES, 25, lossless=lossless, synthetic=False)
        assert read_mark(path) is None and SOURCE_TYPE.encode() not in path.read_bytes()


def test_a_video_keeps_the_mark_when_it_is_copied_into_another_container(tmp_path):
    write_video(tmp_path / "a.mp4", FRAMES, 25)
    command = [ffmpeg_program(), "-v", "error", "-i", tmp_path / "a.mp4", "-c", "copy", tmp_path / "b.mkv"]
    subprocess.run(command, check=True)
    assert read_mark(tmp_path / "b.mkv") == SYNTHETIC_COMMENT


class TestPictures:
    def test_say_who_made_them_to_us_and_to_others(self, tmp_path):
        path = tmp_path / "i.png"
        write_image(path, FRAMES[0], synthetic=True, made_by=STRANGE)
        assert read_mark(path) == mark_text(STRANGE)
        other = Image.open(path)
        other.verify()  # checksums of all chunks
        assert other.info["Comment"] == mark_text(STRANGE)
        assert SOURCE_TYPE in other.info["XML:com.adobe.xmp"]
        assert np.array_equal(cv2.imread(str(path)), FRAMES[0])

    def test_are_not_marked_unless_asked(self, tmp_path):
        write_image(tmp_path / "i.png", FRAMES[0])
        assert read_mark(tmp_path / "i.png") is None

    def test_comments_of_others_and_damage_are_no_marks(self):
        buffer = io.BytesIO()
        Image.fromarray(FRAMES[0]).save(buffer, "PNG")
        png = buffer.getvalue()
        assert png_mark(mark_png(png, "a holiday")) is None
        assert png_mark(png[:40]) is None and png_mark(b"") is None


def test_a_name_becomes_one_line():
    assert mark_text("a\n b\x00.v2v") == SYNTHETIC_COMMENT.replace("fastv2v:", "fastv2v (a b .v2v):")
    assert mark_text(" \n") == mark_text() == SYNTHETIC_COMMENT


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(MediaError, match="no such"):
        read_mark(tmp_path / "none.mp4")
    (tmp_path / "text.mp4").write_text("nothing")
    with pytest.raises(MediaError):
        read_mark(tmp_path / "text.mp4")
