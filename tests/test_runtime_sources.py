"""Conditions from folders, videos and cameras, as a deployment reads them (scripts/test_runtime.sh runs it)."""

from __future__ import annotations

import io
import sys
import threading
import time
from dataclasses import replace

import cv2
import numpy as np
import pytest
from tiny_bundle import PALETTE, SIZE, SPEC, FakeEngine, label_maps, manifest, write_tiny

from export.runtime import (
    Camera,
    CameraConfig,
    ConditionMap,
    Stream,
    camera_conditions,
    edge_converter,
    folder_conditions,
    open_bundle,
    picture_conditions,
    piped_conditions,
    video_conditions,
)
from export.sources import settle_missing
from fastv2v.cli import COMMANDS, Verb
from fastv2v.cli import main as run
from fastv2v.data.conditions import ConditionSpec
from fastv2v.errors import ConfigError, DataError, MediaError, MissingExtraError

MAPS = label_maps(10)
RGB = ConditionSpec(kind="maps", map_channels=3)


def save(folder, pictures, names=None):
    folder.mkdir()
    for index, picture in enumerate(pictures):
        assert cv2.imwrite(str(folder / f"{names[index] if names else f'{index:03}'}.png"), picture)
    return folder


def red_is_a_car(picture):
    """A converter: class 1 where a picture is red, at the picture's own size."""
    return ConditionMap(labels=(picture[..., 0] > 128).astype(np.uint8))


def frames_of(conditions, **changes):
    with Stream(FakeEngine(), manifest(**changes)) as stream:
        return [d.frame for d in stream.frames(conditions)]


def same(a, b):
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


class FakeCapture:
    """A camera that gives numbered pictures, may hang, break or end, and never waits for anybody."""

    def __init__(self, num_pictures, *, hangs=False, breaks=False, is_open=True, pause_s=0.0):
        self.num_pictures, self.hangs, self.breaks, self.is_open = num_pictures, hangs, breaks, is_open
        self.pause_s, self.count, self.released = pause_s, 0, threading.Event()
        self.all_given = threading.Event()

    def __call__(self, source):
        return self

    def isOpened(self):  # noqa: N802
        return self.is_open

    def read(self):
        time.sleep(self.pause_s)
        if self.count == self.num_pictures:
            self.all_given.set()
            if self.hangs:
                self.released.wait(5)
            if self.breaks:
                raise OSError("bus error")
            return False, None
        self.count += 1
        picture = np.zeros((*SIZE, 3), np.uint8)
        picture[..., 2] = self.count % 256  # BGR: red
        return True, picture

    def release(self):
        self.released.set()


def numbers(pictures):
    return [int(picture[0, 0, 0]) for picture in pictures]


class TestFolders:
    def test_a_folder_gives_what_its_arrays_give(self, tmp_path):
        folder = save(tmp_path / "labels", MAPS)
        conditions = list(folder_conditions(folder, manifest()))
        assert conditions[3].name == str(folder / "003.png")
        assert same(frames_of(conditions), frames_of(MAPS))

    def test_from_the_files_of_a_bundle_to_frames(self, tmp_path):
        folder = save(tmp_path / "labels", MAPS)
        with open_bundle(write_tiny(tmp_path / "tiny.v2v"), threads=1) as stream:
            frames = list(stream.frames(folder_conditions(folder, stream.manifest)))
        assert [item.index for item in frames] == list(range(10))

    def test_a_converter_makes_conditions_of_photographs(self, tmp_path):
        photographs = [np.zeros((32, 48, 3), np.uint8) for _ in range(3)]
        photographs[1][:, 24:, 2] = 255
        folder = save(tmp_path / "photographs", photographs)
        made = list(folder_conditions(folder, manifest(), convert=red_is_a_car))
        assert [int(c.labels.sum()) for c in made] == [0, SIZE[0] * SIZE[1] // 2, 0]
        assert made[1].labels.shape == SIZE and made[1].name == str(folder / "001.png")

    @pytest.mark.parametrize("convert", [None, red_is_a_car])
    def test_another_size_in_the_middle_comes_after_what_is_due(self, tmp_path, convert):
        folder = save(tmp_path / "labels", [np.repeat(x[..., None], 3, 2) if convert else x for x in MAPS])
        cv2.imwrite(str(folder / "006.png"), np.zeros((8, 8, 3) if convert else (8, 8), np.uint8))
        delivered = []
        size = r"006\.png is 8x8 pixels and .*000\.png is 24x16"
        with Stream(FakeEngine(), manifest()) as stream, pytest.raises(DataError, match=size):
            for item in stream.frames(folder_conditions(folder, manifest(), convert=convert)):
                delivered.append(item.index)
        assert delivered == list(range(6))

    def test_a_class_the_bundle_does_not_know_names_the_file(self, tmp_path):
        folder = save(tmp_path / "labels", [*MAPS[:2], np.full(SIZE, 9, np.uint8)])
        with pytest.raises(DataError, match=r"002\.png: label id 9 is out of range"):
            frames_of(folder_conditions(folder, manifest()))

    def test_instances_come_from_a_folder_of_their_own(self, tmp_path):
        spec = replace(SPEC, use_instances=True)
        labels, instances = save(tmp_path / "labels", MAPS), save(tmp_path / "inst", MAPS[::-1])
        made = list(folder_conditions(labels, manifest(condition=spec), instances=instances))
        assert np.array_equal(made[0].instances, MAPS[-1])
        with pytest.raises(DataError, match="needs an instance map"):
            list(folder_conditions(labels, manifest(condition=spec)))

    def test_instances_beside_a_converter_would_go_unseen(self, tmp_path):
        folder = save(tmp_path / "photographs", MAPS[:1])
        with pytest.raises(ConfigError, match=r"leave out the folder borders"):
            list(folder_conditions(folder, manifest(), instances="borders", convert=red_is_a_car))

    def test_what_is_drawn_from_points_is_no_picture(self, tmp_path):
        spec = ConditionSpec(kind="maps", encoder="face", map_channels=15)
        with pytest.raises(ConfigError, match="drawn from a data set"):
            list(folder_conditions(save(tmp_path / "a", MAPS), manifest(condition=spec)))


class TestMissingFiles:
    def folder(self, tmp_path, names):
        return save(tmp_path / "labels", MAPS[: len(names)], names)

    def test_a_hole_in_the_numbers_is_refused_with_the_names(self, tmp_path):
        folder = self.folder(tmp_path, ["f_08", "f_09", "f_10", "f_13", "f_14", "f_16"])
        with pytest.raises(DataError, match=r"labels: 3 of 9 files are missing \(f_11, f_12, f_15\); add them, or set"):
            list(folder_conditions(folder, manifest()))

    def test_holding_repeats_the_one_before_and_is_announced(self, tmp_path, caplog):
        folder = self.folder(tmp_path, ["8", "9", "10", "13", "14"])
        made = list(folder_conditions(folder, manifest(), missing="hold"))
        assert [c.name.rsplit("/", 1)[1] for c in made] == [f"{n}.png" for n in (8, 9, 10, 10, 10, 13, 14)]
        assert "2 of 7 files are missing (11, 12); the one before is repeated" in caplog.text
        files = [folder / f"{n}.png" for n in (8, 9, 10, 13, 14)]
        assert list(settle_missing(files, "hold")) == ["8", "9", "10", "11", "12", "13", "14"]

    def test_skipping_goes_on_and_is_announced(self, tmp_path, caplog):
        folder = self.folder(tmp_path, ["a1", "a2", "a4", "a5"])
        assert len(list(folder_conditions(folder, manifest(), missing="skip"))) == 4
        assert "(a3); they are passed over" in caplog.text

    @pytest.mark.parametrize(
        "names",
        [
            ["0", "5", "10", "15"],  # every fifth frame
            ["1", "2", "7", "19", "31"],  # numbers that do not count frames
            ["a_1_x", "b_1_x", "b_2_x"],  # more than one part changes
            ["one", "two"],
            ["7"],
            ["take1_000", "take2_000"],
            ["01", "1"],  # one number twice
            ["1", "2", "3", "4", "1700000000"],  # a time stamp among them
        ],
    )
    def test_other_numbers_are_left_alone(self, tmp_path, names):
        files = [tmp_path / f"{name}.png" for name in names]
        assert list(settle_missing(files, "fail").values()) == files


class TestPictures:
    def test_ids_in_grey_and_colours_of_classes_mean_the_same(self):
        grey = [np.repeat(x[..., None], 3, 2) for x in MAPS]
        coloured = [np.array(PALETTE, np.uint8)[x] for x in MAPS]
        for pictures in (grey, coloured):
            made = list(picture_conditions(pictures, manifest(palette=PALETTE), source="x"))
            assert same([c.labels for c in made], MAPS)
            assert made[2].name == "x frame 2"

    def test_a_converter_may_name_and_size_what_it_makes(self):
        big = np.zeros((40, 60, 3), np.uint8)
        (made,) = picture_conditions([big], manifest(), lambda p: replace(red_is_a_car(p), name="mine"))
        assert made.labels.shape == SIZE and made.name == "mine"

    def test_maps_of_another_size_are_refused_by_name(self):
        maps = ConditionMap(maps=np.zeros((3, 8, 8), np.float32))
        with pytest.raises(DataError, match=r"x frame 0: condition maps has shape \(3, 8, 8\)"):
            frames_of(picture_conditions([np.zeros((8, 8, 3), np.uint8)], manifest(), lambda _: maps, source="x"),
                      condition=RGB)  # fmt: skip

    def test_an_error_of_a_converter_comes_after_what_is_due(self):
        def fails_at_three(picture):
            if picture[0, 0, 0] == 3:
                raise ZeroDivisionError
            return red_is_a_car(picture)

        pictures = [np.full((*SIZE, 3), i, np.uint8) for i in range(6)]
        delivered = []
        with Stream(FakeEngine(), manifest()) as stream, pytest.raises(ZeroDivisionError):
            for item in stream.frames(picture_conditions(pictures, manifest(), fails_at_three)):
                delivered.append(item.index)
        assert delivered == [0, 1, 2]

    def test_edges_for_bundles_of_edges(self):
        picture = np.zeros((32, 48, 3), np.uint8)
        picture[:, 24:] = 255
        (drawn,) = picture_conditions([picture], manifest(), edge_converter(manifest(condition=RGB)))
        assert drawn.maps.shape == (3, *SIZE) and set(np.unique(drawn.maps)) == {-1.0, 1.0}
        columns = np.flatnonzero((drawn.maps[0] > 0).any(axis=0))
        assert columns.size and set(columns) <= {11, 12}  # the border lies between the two
        one = manifest(condition=ConditionSpec(kind="maps", map_channels=1))
        (marked,) = picture_conditions([picture], one, edge_converter(one))
        assert np.array_equal(marked.maps[0], (drawn.maps[0] + 1) / 2)
        with pytest.raises(ConfigError, match=r"takes label maps of 4 classes .* and not edges"):
            edge_converter(manifest())


class TestPipes:
    def test_an_unbuffered_pipe_may_give_a_frame_in_parts(self):
        class Parts(io.BytesIO):
            def read(self, size=-1):
                return super().read(min(size, 100))

        made = list(piped_conditions(Parts(b"".join(x.tobytes() for x in MAPS)), manifest()))
        assert len(made) == len(MAPS) and all(np.array_equal(c.labels, x) for c, x in zip(made, MAPS, strict=True))

    def test_an_input_that_ends_inside_a_frame_says_so_after_those_before(self):
        source = piped_conditions(io.BytesIO(MAPS[0].tobytes() + b"12345"), manifest())
        assert np.array_equal(next(source).labels, MAPS[0])
        with pytest.raises(DataError, match=r"frame 1: the input broke off after 5 of 384 bytes"):
            next(source)


class TestVideos:
    def test_a_video_or_what_it_lacks(self, tmp_path):
        path = tmp_path / "ids.mkv"
        pictures = [np.repeat(x[..., None], 3, 2) for x in MAPS]
        try:
            import ffmpeg  # noqa: F401
            import imageio_ffmpeg  # noqa: F401
        except ModuleNotFoundError:
            path.write_bytes(b"some video")
            with pytest.raises(MissingExtraError, match="pip install ffmpeg-python imageio-ffmpeg"):
                list(video_conditions(path, manifest()))
            return
        from fastv2v.video import write_video

        write_video(path, pictures, 15, lossless=True)
        made = list(video_conditions(path, manifest()))
        assert same([c.labels for c in made], MAPS) and made[1].name == f"{path} frame 1"
        made = list(video_conditions(path, manifest(), red_is_a_car))
        assert all(c.labels.max() == 0 for c in made)

    def test_without_the_packages_the_message_names_them(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "ffmpeg", None)
        (tmp_path / "a.mp4").write_bytes(b"some video")
        with pytest.raises(MissingExtraError, match="pip install ffmpeg-python imageio-ffmpeg"):
            list(video_conditions(tmp_path / "a.mp4", manifest()))


class TestCamera:
    def test_every_picture_comes_as_rgb_where_the_reader_keeps_up(self):
        capture = FakeCapture(5)
        with Camera(0, CameraConfig(when_full="wait"), open_capture=capture) as camera:
            seen = []
            with pytest.raises(MediaError, match="camera 0 stopped after 5 pictures; check its connection"):
                seen.extend(camera)
        assert capture.released.is_set()
        with Camera(0, CameraConfig(when_full="wait"), open_capture=FakeCapture(5)) as camera:
            pictures = iter(camera)
            assert numbers([next(pictures) for _ in range(5)]) == [1, 2, 3, 4, 5]
            assert camera.stats.dropped == 0

    def test_a_slow_reader_gets_the_newest_and_hears_of_the_rest(self, caplog):
        capture = FakeCapture(50)
        camera = Camera(0, CameraConfig(capacity=3), open_capture=capture)
        assert capture.all_given.wait(5)
        pictures = iter(camera)
        assert numbers([next(pictures) for _ in range(3)]) == [48, 49, 50]
        assert (camera.stats.taken, camera.stats.dropped) == (50, 47)
        camera.close()
        assert caplog.text.count("camera 0 is faster than the stream: its oldest waiting pictures are dropped") == 1
        assert "camera 0: 47 of 50 pictures were dropped" in caplog.text
        camera.close()
        assert caplog.text.count("were dropped") == 1

    def test_waiting_holds_the_camera_back(self):
        capture = FakeCapture(50)
        with Camera(0, CameraConfig(capacity=2, when_full="wait"), open_capture=capture):
            time.sleep(0.05)
            assert capture.count <= 3

    def test_what_a_stopped_camera_gave_is_delivered(self):
        delivered = []
        config = CameraConfig(when_full="wait")
        with (
            Camera("rtsp://roof", config, open_capture=FakeCapture(7)) as camera,
            Stream(FakeEngine(), manifest()) as stream,
            pytest.raises(MediaError, match="rtsp://roof stopped after 7 pictures"),
        ):
            for item in stream.frames(camera_conditions(camera, manifest(), red_is_a_car)):
                delivered.append(item.index)
        assert delivered == list(range(7))

    def test_a_camera_that_hangs_or_fails_says_so(self):
        with (
            Camera(1, CameraConfig(timeout_s=0.05), open_capture=FakeCapture(0, hangs=True)) as camera,
            pytest.raises(MediaError, match=r"camera 1 gave no picture for 0\.05 seconds after 0; check"),
        ):
            next(iter(camera))
        with (
            Camera(1, open_capture=FakeCapture(0, breaks=True)) as camera,
            pytest.raises(MediaError, match="camera 1 failed after 0 pictures: bus error"),
        ):
            next(iter(camera))

    def test_a_camera_that_is_not_there(self):
        with pytest.raises(MediaError, match="camera 3 cannot be opened; check its number"):
            Camera(3, open_capture=FakeCapture(0, is_open=False))

    def test_closing_ends_the_iteration_from_another_thread(self):
        camera = Camera(0, open_capture=FakeCapture(10**9, pause_s=0.001))
        timer = threading.Timer(0.05, camera.close)
        timer.start()
        assert sum(1 for _ in camera) < 1000
        timer.join()

    def test_a_file_that_opencv_opens_ends_as_files_do(self, tmp_path):
        path = tmp_path / "ids.avi"
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 15, (48, 32))
        for index in range(6):
            writer.write(np.full((32, 48, 3), 40 * index, np.uint8))
        writer.release()
        with Camera(path) as camera:
            time.sleep(0.05)  # nothing is dropped meanwhile
            made = list(camera_conditions(camera, manifest(condition=RGB)))
        assert len(made) == 6 and made[1].name == f"{path} frame 1"
        assert [round(float((c.maps.mean() + 1) * 127.5) / 40) for c in made] == list(range(6))

    def test_bundles_that_pictures_cannot_serve_are_refused(self):
        spec = replace(SPEC, use_instances=True)
        with (
            Camera(0, open_capture=FakeCapture(3)) as camera,
            pytest.raises(ConfigError, match="which camera 0 does not"),
        ):
            list(camera_conditions(camera, manifest(condition=spec)))

    @pytest.mark.parametrize(
        ("settings", "problem"),
        [({"capacity": 0}, "capacity"), ({"when_full": "panic"}, "when_full"), ({"timeout_s": 0}, "timeout_s")],
    )
    def test_settings_that_make_no_sense(self, settings, problem):
        with pytest.raises(ConfigError, match=problem):
            CameraConfig(**settings)


def test_an_endless_camera_keeps_memory_flat():
    """Neither the queue nor the stream holds on to what has passed."""
    with (
        Camera(0, open_capture=FakeCapture(10**9)) as camera,
        Stream(FakeEngine(), manifest(), overlap=False) as stream,
    ):
        for count, _ in enumerate(stream.frames(camera_conditions(camera, manifest(), red_is_a_car))):
            assert len(camera._queue) <= 2 and len(stream._waiting) <= 4
            if count == 200:
                break


class TestVerb:
    """What ``fastv2v`` says where only the runtime is installed."""

    def test_a_package_that_is_missing_is_named(self, monkeypatch, capsys):
        monkeypatch.delitem(sys.modules, "fastv2v.commands.stream", raising=False)
        monkeypatch.setitem(sys.modules, "tqdm", None)
        assert run(["stream", "--help"]) == 2
        assert "fastv2v stream: this verb needs the package tqdm, which is not installed" in capsys.readouterr().err

    def test_a_part_of_the_project_that_is_missing_is_a_defect(self, monkeypatch):
        monkeypatch.setitem(COMMANDS, "nothing", Verb("do nothing", "export.nowhere:main"))
        with pytest.raises(ModuleNotFoundError, match=r"export\.nowhere"):
            run(["nothing"])
