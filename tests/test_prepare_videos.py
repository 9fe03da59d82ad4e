"""Videos as people have them, made by ffmpeg itself: each gives the right frames, or one clear sentence."""

import subprocess

import cv2
import numpy as np
import pytest

from fastv2v.data.folder import FolderConfig, open_folder
from fastv2v.data.images import read_image
from fastv2v.data.prepare.survey import Excerpt, read_frames, reading_rate, survey_video
from fastv2v.data.prepare.write import PrepareConfig, prepare_video, prepared_fps
from fastv2v.errors import ConfigError, DataError, MediaError
from fastv2v.run import lock_folder
from fastv2v.video import ffmpeg_program, write_video

CORNER = (230, 20, 20)


def ffmpeg(*words):
    subprocess.run([ffmpeg_program(), "-y", "-v", "error", *map(str, words)], check=True)


def numbered(num_frames, size=(64, 96), seed=0):
    """A pattern of its own under a disc that moves a pixel a frame, with a red corner at the top left."""
    rng = np.random.default_rng(seed)
    ground = cv2.resize(rng.integers(60, 160, (8, 12, 3), dtype=np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST)
    frames = []
    for index in range(num_frames):
        frame = ground.copy()
        cv2.circle(frame, (16 + index, 40), 10, (240, 240, 200), -1)
        frame[:12, :12] = CORNER
        frames.append(frame)
    return frames


def noisy(num_frames, seed=0):
    """Frames that need many bytes each, so that damage hits their pictures."""
    rng = np.random.default_rng(seed)
    return [np.clip(f + rng.integers(-30, 30, f.shape), 0, 255).astype(np.uint8) for f in numbered(num_frames)]


def made(path, frames, *words):
    """Frames without loss, brought into their final shape by ffmpeg."""
    source = path.with_name("source.mkv")
    write_video(source, frames, 25, lossless=True, synthetic=False)
    ffmpeg("-i", source, *words, path)
    return path


def seen(path, excerpt=None, **options):
    excerpt = excerpt or Excerpt()
    survey = survey_video(path, excerpt, lambda *told: None)
    return survey, list(read_frames(path, excerpt, survey, **options))


def difference(a, b):
    return np.abs(a.astype(int) - b).mean()


LOSSLESS = ("-c:v", "libx264rgb", "-qp", "0")


class TestFramesAreRight:
    def test_a_rotated_video_stands_upright(self, tmp_path):
        made(tmp_path / "flat.mp4", numbered(14), *LOSSLESS)
        ffmpeg("-display_rotation", "90", "-i", tmp_path / "flat.mp4", "-c", "copy", tmp_path / "turned.mp4")
        survey, frames = seen(tmp_path / "turned.mp4")
        assert survey.size == (96, 64)
        # ffmpeg counts counter-clockwise: the top left corner comes to the bottom left.
        assert all(np.array_equal(f, np.rot90(g)) for f, g in zip(frames, numbered(14), strict=True))

    @pytest.mark.parametrize("size", [(63, 95), (64, 95), (37, 101)])
    def test_odd_sides_become_multiples_by_a_cut(self, tmp_path, size):
        frames = numbered(14, size)
        path = tmp_path / "odd.mkv"
        write_video(path, frames, 25, lossless=True, synthetic=False)
        prepare_video(path, tmp_path / "out", PrepareConfig(kind="edges", holdout=0), num_workers=1)
        written = read_image(tmp_path / "out/train_B/shot_000/000003.png")
        height, width = (side // 16 * 16 for side in size)
        top, left = (size[0] - height) // 2, (size[1] - width) // 2
        assert np.array_equal(written, frames[3][top : top + height, left : left + width])

    @pytest.mark.parametrize("suffix", ["mp4", "mkv"])
    def test_a_variable_rate_is_made_constant(self, tmp_path, suffix):
        late = "setpts='(N+max(0,2*floor((N-9)/2)))/25/TB'"  # from frame 9 on every second one is shown for three
        path = made(tmp_path / f"uneven.{suffix}", numbered(20), "-vf", late, "-fps_mode", "vfr",
                    "-enc_time_base", "1/1000", *LOSSLESS)  # fmt: skip
        rate, uneven = reading_rate(path)
        assert uneven and float(rate) == pytest.approx(25, rel=0.01)
        survey, frames = seen(path)
        assert survey.resampled and survey.num_frames == pytest.approx(30, abs=2)
        originals = numbered(20)
        shown = [int(np.argmin([difference(frame, one) for one in originals])) for frame in frames]
        assert shown == sorted(shown) and set(shown) == set(range(20))
        assert max(np.bincount(shown)) == 3 and shown.count(3) == 1

    def test_milliseconds_of_an_even_rate_do_not_make_it_variable(self, tmp_path):
        path = made(tmp_path / "ntsc.mkv", numbered(14), "-r", "30000/1001", *LOSSLESS)
        rate, uneven = reading_rate(path)
        assert not uneven and float(rate) == pytest.approx(29.97, abs=0.01)

    def test_sound_is_passed_over(self, tmp_path):
        path = made(tmp_path / "sound.mp4", numbered(14), "-f", "lavfi", "-i", "sine=d=3", *LOSSLESS, "-c:a", "aac")
        survey, frames = seen(path)
        assert survey.damage is None
        assert all(np.array_equal(a, b) for a, b in zip(frames, numbered(14), strict=True))

    def test_letterbox_goes_and_the_picture_stays(self, tmp_path):
        path = made(tmp_path / "boxed.mp4", numbered(14), "-vf", "pad=iw:ih+40:0:20", *LOSSLESS)
        survey, frames = seen(path)
        top = survey.picture.top - 20
        assert 0 <= top <= 2
        assert np.array_equal(frames[5], numbered(14)[5][top : top + len(frames[5])])

    def test_two_shots_with_repeats_are_two_sequences(self, tmp_path):
        shots = numbered(14), [255 - frame for frame in numbered(14, seed=1)]
        shots[1][6] = shots[1][5]
        path = made(tmp_path / "two.mp4", [*shots[0], *shots[1]], *LOSSLESS)
        config = PrepareConfig(kind="edges", holdout=0, drop_repeats=True)
        summary = prepare_video(path, tmp_path / "out", config, num_workers=1)
        folder = open_folder(FolderConfig(root=tmp_path / "out", condition="rgb"))
        assert folder.lengths == (14, 13) and summary["lost"] == {"repeats of the frame before": 1}
        assert np.array_equal(read_image(folder.sequences[1].path("frames", 6)), shots[1][7])
        assert prepared_fps(tmp_path / "out", 1.0) == 25.0


class TestDamage:
    def broken(self, tmp_path, num_frames=60, suffix="ts"):
        """A stream that plays on behind a damaged place, with its middle overwritten."""
        words = ("-c:v", "libx264", "-qp", "10", "-g", "15", "-pix_fmt", "yuv444p")
        path = made(tmp_path / f"middle.{suffix}", noisy(num_frames), *words)
        data = bytearray(path.read_bytes())
        middle = len(data) // 2
        data[middle : middle + 8000] = np.random.default_rng(0).bytes(8000)
        path.write_bytes(data)
        return path

    def test_damage_in_the_middle_leaves_the_frames_before_it(self, tmp_path):
        path = self.broken(tmp_path)
        originals = noisy(60)
        for _ in range(3):  # how far ffmpeg gets before it stops differs; what is counted must come again
            survey, frames = seen(path)
            assert 2 <= survey.num_frames < 60 and survey.damage and survey.unread > 0
            assert len(frames) == survey.num_frames
            # Encoding loses a little; a broken picture is far off.
            assert max(difference(a, b) for a, b in zip(frames, originals, strict=False)) < 6

    def test_what_lies_behind_it_can_be_had(self, tmp_path):
        path = self.broken(tmp_path, suffix="mkv")
        assert seen(path)[0].damage
        _, frames = seen(path, Excerpt(start=1.9))
        assert len(frames) == 12
        assert min(difference(frames[-1], one) for one in noisy(60)[-3:]) < 6

    def test_the_summary_counts_what_is_lost(self, tmp_path):
        path = self.broken(tmp_path)
        summary = prepare_video(path, tmp_path / "out", PrepareConfig(kind="edges"), num_workers=1)
        (count,) = summary["lost"].values()
        assert count > 0 and "breaks off" in next(iter(summary["lost"]))
        assert summary["video"]["damage"]

    def test_a_file_cut_short_is_read_as_far_as_it_goes(self, tmp_path):
        path = made(tmp_path / "cut.mp4", noisy(40), "-qp", "10", "-movflags", "+faststart")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        survey, frames = seen(path)
        assert 2 <= len(frames) == survey.num_frames < 40 and survey.damage

    @pytest.mark.parametrize(
        ("name", "words", "message"),
        [
            ("one.mp4", ("-frames:v", "1"), "holds 1 frame; a sequence needs at least two"),
            ("sound.m4a", ("-f", "lavfi", "-i", "sine=d=1", "-map", "1:a"), "no picture stream"),
            ("empty.mp4", None, "is empty"),
            ("missing.mp4", None, "there is no such video file"),
            ("letter.mp4", None, "could not process the video"),
        ],
    )
    def test_what_is_no_video_gets_one_sentence_and_leaves_nothing(self, tmp_path, name, words, message):
        path = tmp_path / name
        if words is not None:
            made(path, numbered(4), *words)
        elif name == "letter.mp4":
            path.write_text("dear reader")
        elif name == "empty.mp4":
            path.touch()
        with pytest.raises(MediaError, match=message) as raised:
            prepare_video(path, tmp_path / "out", PrepareConfig(kind="edges"), num_workers=1)
        assert "\n" not in str(raised.value) and name in str(raised.value)
        assert not (tmp_path / "out").exists() and not (tmp_path / ".out.partial").exists()


def test_two_at_once_in_one_folder_are_refused(tmp_path):
    (tmp_path / ".out.partial").mkdir()
    path = made(tmp_path / "a.mp4", numbered(14), *LOSSLESS)
    with lock_folder(tmp_path / ".out.partial", "a test"), pytest.raises(ConfigError, match="another process"):
        prepare_video(path, tmp_path / "out", PrepareConfig(kind="edges"), num_workers=1)


def test_a_summary_of_something_else_is_refused(tmp_path):
    (tmp_path / "summary.json").write_text("[]")
    with pytest.raises(DataError, match="not a summary"):
        prepared_fps(tmp_path, 15.0)
    assert prepared_fps(tmp_path / "none", 15.0) == 15.0
