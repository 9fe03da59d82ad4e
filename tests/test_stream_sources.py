"""``fastv2v stream`` on videos and pipes: the same frames as from a folder, and what is due when one breaks off."""

import io
import json
import os
import signal
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from tiny_bundle import PALETTE, SIZE, SPEC, label_maps, write_tiny

from export.convert import ClassColours
from fastv2v.cli import main as run
from fastv2v.commands.stream import main
from fastv2v.errors import ConfigError, DataError, MediaError
from fastv2v.video import probe_video, read_image, read_video, write_video

HEIGHT, WIDTH = SIZE


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    with_borders = replace(SPEC, class_names=SPEC.class_names[:3], use_instances=True)
    write_tiny(folder / "plain.v2v")
    write_tiny(folder / "borders.v2v", condition=with_borders)
    return write_tiny(folder / "tiny.v2v", palette=PALETTE)


MAPS = [(x % 4).astype(np.uint8) for x in label_maps(10)]


@pytest.fixture
def wanted(bundle, tmp_path):
    """What the same label maps give from a folder."""
    (tmp_path / "labels").mkdir()
    for index, ids in enumerate(MAPS):
        assert cv2.imwrite(str(tmp_path / "labels" / f"{index:02}.png"), ids)
    assert main(words(bundle, tmp_path / "labels", tmp_path / "wanted")) == 0
    return [read_image(path) for path in sorted((tmp_path / "wanted").iterdir())]


def words(bundle, conditions, out, *more):
    options = ["--bundle", bundle, "--conditions", conditions, "--engine", "onnxruntime", "--threads", 1]
    options += [] if out is None else ["--out", out]
    return [str(word) for word in (*options, *more)]


def made(folder):
    return [read_image(path) for path in sorted(folder.iterdir())]


def same(a, b):
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def pipe(monkeypatch, content):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(content)))


class TestVideo:
    def test_a_lossless_video_of_ids(self, bundle, wanted, tmp_path):
        video = tmp_path / "ids.mkv"
        write_video(video, [np.repeat(x[..., None], 3, axis=2) for x in MAPS], 15, lossless=True)
        assert main(words(bundle, video, tmp_path / "out")) == 0
        assert same(made(tmp_path / "out"), wanted)
        assert sorted(path.name for path in (tmp_path / "out").iterdir())[:2] == ["000000.png", "000001.png"]

    def test_a_video_of_the_classes_colours(self, bundle, wanted, tmp_path):
        video = tmp_path / "colours.mkv"
        write_video(video, [np.array(PALETTE, np.uint8)[x] for x in MAPS], 15, lossless=True)
        assert main(words(bundle, video, tmp_path / "out")) == 0
        assert same(made(tmp_path / "out"), wanted)
        with pytest.raises(ConfigError, match="names no colours of classes; give a lossless"):
            main(words(bundle.with_name("plain.v2v"), video, tmp_path / "more"))

    def test_colours_that_were_compressed_are_still_told_apart(self, tmp_path):
        ids = np.kron(np.array([[0, 1], [2, 3]], np.uint8), np.ones((32, 32), np.uint8))
        write_video(tmp_path / "lossy.mp4", [np.array(PALETTE, np.uint8)[ids]] * 3, 15, crf=28)
        (seen, *_) = read_video(tmp_path / "lossy.mp4")
        assert np.mean(ClassColours(PALETTE).of(seen) == ids) > 0.95

    def test_the_first_frame_decides_what_grey_means(self, bundle, tmp_path):
        colours = [np.array(PALETTE, np.uint8)[x] for x in MAPS[:3]]
        building = np.full((*SIZE, 3), 70, np.uint8)  # a colour that is grey, and no id
        write_video(tmp_path / "a.mkv", [building, *colours], 15, lossless=True)
        assert main(words(bundle, tmp_path / "a.mkv", tmp_path / "a")) == 0
        assert len(made(tmp_path / "a")) == 4
        write_video(tmp_path / "b.mkv", [np.zeros((*SIZE, 3), np.uint8), *colours], 15, lossless=True)
        with pytest.raises(DataError, match=r"frame 1 is coloured, and the frames before it were class ids"):
            main(words(bundle, tmp_path / "b.mkv", tmp_path / "b"))

    def test_another_size_and_rate(self, bundle, wanted, tmp_path, caplog):
        large = [cv2.resize(x, (3 * WIDTH, 3 * HEIGHT), interpolation=cv2.INTER_NEAREST) for x in MAPS]
        write_video(tmp_path / "large.mkv", [np.repeat(x[..., None], 3, 2) for x in large], 30, lossless=True)
        assert main(words(bundle, tmp_path / "large.mkv", tmp_path / "out.mkv")) == 0
        assert probe_video(tmp_path / "out.mkv").fps == 30
        assert "has 30 frames/s and the bundle was trained at 17" in caplog.text
        assert main(words(bundle, tmp_path / "large.mkv", tmp_path / "out")) == 0
        assert same(made(tmp_path / "out"), wanted)

    def test_what_a_video_cannot_hold_is_refused(self, bundle, tmp_path):
        video = tmp_path / "ids.mkv"
        write_video(video, [np.zeros((*SIZE, 3), np.uint8)] * 2, 15, lossless=True)
        with pytest.raises(ConfigError, match=r"needs an instance map .*, which .*ids\.mkv does not hold"):
            main(words(bundle.with_name("borders.v2v"), video, tmp_path / "out"))
        with pytest.raises(ConfigError, match="leave out --instances"):
            main(words(bundle, video, tmp_path / "out", "--instances", tmp_path))
        (tmp_path / "broken.mp4").write_bytes(b"no video")
        with pytest.raises(MediaError, match=r"broken\.mp4"):
            main(words(bundle, tmp_path / "broken.mp4", tmp_path / "out"))
        assert not (tmp_path / "out").exists()


class TestPipes:
    def test_bytes_in_and_bytes_out(self, bundle, wanted, tmp_path, monkeypatch, capfdbinary):
        pipe(monkeypatch, b"".join(x.tobytes() for x in MAPS))
        capfdbinary.readouterr()
        assert main(words(bundle, "-", "-")) == 0
        said = capfdbinary.readouterr()
        frames = np.frombuffer(said.out, np.uint8).reshape(-1, HEIGHT, WIDTH, 3)
        assert same(list(frames), wanted)
        summary = json.loads(said.err.decode().splitlines()[-1])
        assert summary["out"] == "-" and summary["frames"] == 10
        assert 0 < summary["mean_delay_s"] <= summary["longest_delay_s"]

    @pytest.mark.parametrize(
        ("content", "delivered", "message"),
        [
            (b"".join(x.tobytes() for x in MAPS[:6]) + b"123", 6, r"frame 6: the input broke off after 3 of 384 bytes"),
            (b"".join(x.tobytes() for x in MAPS[:7]) + b"\x09" * 384 + MAPS[0].tobytes(), 7, r"frame 7: label id 9"),
        ],
    )
    def test_frames_before_a_break_are_delivered(
        self, bundle, wanted, tmp_path, monkeypatch, capsys, content, delivered, message
    ):
        pipe(monkeypatch, content)
        with pytest.raises(DataError, match=rf"{message}.*\(the {delivered} frames before it are in .*out\)"):
            main(words(bundle, "-", tmp_path / "out"))
        frames = made(tmp_path / "out")
        assert len(frames) == delivered
        assert same(frames[:5], wanted[:5])  # the last gap is a shorter one

    def test_nothing_at_all_is_an_error_of_its_own(self, bundle, tmp_path, monkeypatch, capsys):
        pipe(monkeypatch, b"123")
        assert run(["stream", *words(bundle, "-", tmp_path / "out")]) == 2
        assert "broke off after 3 of 384 bytes" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


class TestWindow:
    def test_it_needs_a_screen(self, bundle, wanted, tmp_path, monkeypatch):
        monkeypatch.delenv("DISPLAY", raising=False)
        monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
        monkeypatch.setattr("sys.platform", "linux")
        with pytest.raises(ConfigError, match="--window needs a screen and there is none"):
            main(words(bundle, tmp_path / "labels", None, "--window"))

    def test_frames_are_shown_until_q(self, bundle, wanted, tmp_path, monkeypatch):
        shown = []
        monkeypatch.setenv("DISPLAY", ":0")
        monkeypatch.setattr("cv2.imshow", lambda title, picture: shown.append((title, picture)))
        monkeypatch.setattr("cv2.waitKey", lambda ms: ord("q") if len(shown) == 4 else -1)
        assert main(words(bundle, tmp_path / "labels", tmp_path / "out", "--window")) == 0
        assert [title for title, _ in shown] == ["tiny"] * 4
        assert np.array_equal(shown[1][1][..., ::-1], wanted[1])
        assert len(made(tmp_path / "out")) == 4

    def test_other_errors_are_not_blamed_on_the_window(self, bundle, wanted, tmp_path, monkeypatch):
        monkeypatch.setenv("DISPLAY", ":0")
        monkeypatch.setattr("cv2.imshow", lambda title, picture: None)
        monkeypatch.setattr("cv2.waitKey", lambda ms: -1)
        (tmp_path / "labels" / "05.png").write_bytes(b"broken")
        with pytest.raises(DataError, match=r"05\.png"):
            main(words(bundle, tmp_path / "labels", None, "--window"))


class TestCausal:
    def test_every_frame_comes_at_once(self, bundle, wanted, tmp_path, capsys):
        assert main(words(bundle, tmp_path / "labels", tmp_path / "out", "--causal")) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["frames_waited"] == 0
        frames = made(tmp_path / "out")
        assert len(frames) == 10
        assert same([frames[i] for i in (0, 4, 8)], [wanted[i] for i in (0, 4, 8)])


class FakeCamera:
    """Shows colours of classes, then stops."""

    asked: list = []  # noqa: RUF012
    name = "camera 0"
    interrupted_at = -1

    def __init__(self, source):
        self.asked.append(source)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.asked.append("closed")

    def __iter__(self):
        for index, x in enumerate(MAPS):
            if index == self.interrupted_at:
                os.kill(os.getpid(), signal.SIGINT)
            yield np.array(PALETTE, np.uint8)[x]
        raise MediaError("camera 0 stopped")


class TestCamera:
    @pytest.fixture(autouse=True)
    def camera(self, monkeypatch):
        FakeCamera.asked.clear()
        monkeypatch.setattr("fastv2v.commands.stream.Camera", FakeCamera)

    def command(self, bundle, *more):
        return [str(x) for x in ("--bundle", bundle, "--engine", "auto", "--threads", 1, *more)]

    def test_as_many_frames_as_asked_for(self, bundle, wanted, tmp_path):
        assert main(self.command(bundle, "--camera", 0, "--frames", 9, "--out", tmp_path / "out")) == 0
        assert same(made(tmp_path / "out"), wanted[:9])
        assert FakeCamera.asked == [0, "closed"]

    def test_what_is_due_is_written_when_it_stops(self, bundle, wanted, tmp_path):
        with pytest.raises(DataError, match=r"camera 0 stopped \(the 10 frames before it are in .*out\)"):
            main(self.command(bundle, "--camera", "rtsp://roof", "--out", tmp_path / "out"))
        assert same(made(tmp_path / "out"), wanted)
        assert FakeCamera.asked == ["rtsp://roof", "closed"]

    def test_ctrl_c_ends_it_and_keeps_what_was_made(self, bundle, wanted, tmp_path, monkeypatch):
        monkeypatch.setattr(FakeCamera, "interrupted_at", 5)
        before = signal.getsignal(signal.SIGINT)
        assert main(self.command(bundle, "--camera", 0, "--out", tmp_path / "out")) == 0
        assert same(made(tmp_path / "out"), wanted[:5])
        assert signal.getsignal(signal.SIGINT) is before

    def test_a_bundle_it_cannot_serve_is_refused_before_it_is_opened(self, bundle, tmp_path):
        with pytest.raises(ConfigError, match=r"needs an instance map .* which camera 0 does not hold"):
            main(self.command(bundle.with_name("borders.v2v"), "--camera", 0, "--out", tmp_path / "out"))
        assert FakeCamera.asked == []


class TestScreen:
    """What is needed before a window can open."""

    def test_somebody_must_see_the_frames(self, bundle, tmp_path, capsys):
        with pytest.raises(SystemExit, match="2"):
            main(words(bundle, tmp_path, None))
        assert "give --out, --window or both" in " ".join(capsys.readouterr().err.split())
