"""The verb ``fastv2v stream``: what it refuses, in which order it reads, and that outputs appear whole."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from tiny_bundle import SIZE, SPEC, label_maps, write_tiny

from export.sources import condition_files, read_conditions, read_seed
from fastv2v.commands.stream import main
from fastv2v.data.transforms import GeometryConfig, apply_geometry, draw_geometry
from fastv2v.errors import ConfigError, DataError
from fastv2v.video import probe_video, read_image, read_mark

HEIGHT, WIDTH = SIZE


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    with_borders = replace(SPEC, class_names=SPEC.class_names[:3], use_instances=True)
    write_tiny(folder / "borders.v2v", condition=with_borders)
    return write_tiny(folder / "tiny.v2v")


def save(folder, maps, name="frame_{}.png"):
    folder.mkdir(exist_ok=True)
    for index, ids in enumerate(maps):
        assert cv2.imwrite(str(folder / name.format(index)), ids)
    return folder


@pytest.fixture
def labels(tmp_path):
    """Eleven unpadded names, so that the order of letters is not that of numbers."""
    return save(tmp_path / "labels", [x % 3 for x in label_maps(11)])


def stream(bundle, labels, out, *more):
    options = ["--bundle", bundle, "--conditions", labels, "--out", out, "--engine", "onnxruntime", "--threads", 1]
    return main([str(word) for word in (*options, *more)])


def only_these(folder, *names):
    return sorted(path.name for path in folder.iterdir()) == sorted(names)


def test_raft_its_weights_and_a_device_go_together(bundle, labels, tmp_path, capsys):
    out = tmp_path / "out"
    for more in (["--flow", "raft"], ["--raft-weights", "raft.pth"], ["--flow", "raft", "--raft-weights", "raft.pth"]):
        with pytest.raises(SystemExit):
            stream(bundle, labels, out, *more)
        assert "RAFT, its weights and a device go together" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="onnxruntime keeps no frames on a device"):
        stream(bundle, labels, out, "--device", "cpu")
    assert not out.exists()


class TestConditions:
    def test_files_come_in_the_order_of_their_numbers(self, labels):
        assert [path.stem for path in condition_files(labels)] == [f"frame_{i}" for i in range(11)]

    def test_two_files_of_one_stem_are_refused(self, labels):
        (labels / "frame_3.bmp").touch()
        with pytest.raises(DataError, match="same stem"):
            condition_files(labels)

    def test_another_size_names_both_files(self, labels):
        cv2.imwrite(str(labels / "frame_2.png"), np.zeros((8, 8), np.uint8))
        with pytest.raises(DataError, match=r"frame_2\.png is 8x8 pixels and .*frame_0\.png is 24x16"):
            list(read_conditions(condition_files(labels), SIZE, labels=True, instances=None))

    def test_instances_of_another_size_name_both_files(self, labels, tmp_path):
        instances = save(tmp_path / "inst", [np.zeros((8, 8), np.uint8)] * 11)
        with pytest.raises(DataError, match=r"inst/frame_0\.png is 8x8 pixels and .*labels/frame_0\.png is 24x16"):
            list(read_conditions(condition_files(labels), SIZE, labels=True, instances=condition_files(instances)))

    def test_scaling_agrees_with_training_data(self, tmp_path):
        rng = np.random.default_rng(0)
        ids, picture = rng.integers(0, 4, (37, 50), np.uint8), rng.integers(0, 256, (37, 50, 3), np.uint8)
        geometry = draw_geometry(
            GeometryConfig(mode="exact", size=SIZE, interpolation="area"), (37, 50), np.random.default_rng(0)
        )
        files = condition_files(save(tmp_path / "a", [ids]))
        (condition,) = read_conditions(files, SIZE, labels=True, instances=files)
        np.testing.assert_array_equal(condition.labels, apply_geometry(geometry, ids, "label"))
        np.testing.assert_array_equal(condition.instances, condition.labels)
        files = condition_files(save(tmp_path / "b", [picture[..., ::-1]]))
        expected = apply_geometry(geometry, picture)
        (condition,) = read_conditions(files, SIZE, labels=False, instances=None)
        np.testing.assert_allclose(condition.maps, expected.transpose(2, 0, 1) / 127.5 - 1, atol=1e-6)
        np.testing.assert_array_equal(read_seed(files[0], files[0], SIZE), expected)

    def test_a_seed_frame_of_a_third_size_is_refused(self, labels, tmp_path):
        seed = save(tmp_path / "seed", [np.zeros((9, 9, 3), np.uint8)]) / "frame_0.png"
        with pytest.raises(DataError, match=r"seed/frame_0\.png is 9x9 pixels and .*labels/frame_0\.png is 24x16"):
            read_seed(seed, labels / "frame_0.png", SIZE)


class TestMessages:
    def test_an_unknown_id_names_the_file_and_leaves_nothing(self, bundle, labels, tmp_path):
        cv2.imwrite(str(labels / "frame_9.png"), np.full(SIZE, 7, np.uint8))
        for out in ("frames", "video.mp4"):
            with pytest.raises(DataError, match=r"frame_9\.png: label id 7 .* 0 \(road\) to 3 \(sky\)"):
                stream(bundle, labels, tmp_path / out)
        assert only_these(tmp_path, "labels")

    def test_a_missing_number_is_refused_held_or_skipped(self, bundle, labels, tmp_path, caplog):
        (labels / "frame_5.png").unlink()
        with pytest.raises(DataError, match=r"1 of 11 files are missing \(frame_5\); add them, or set .*--missing"):
            stream(bundle, labels, tmp_path / "frames")
        assert stream(bundle, labels, tmp_path / "held", "--missing", "hold") == 0
        assert only_these(tmp_path / "held", *(f"frame_{i}.png" for i in range(11)))
        assert stream(bundle, labels, tmp_path / "skipped", "--missing", "skip") == 0
        assert only_these(tmp_path / "skipped", *(f"frame_{i}.png" for i in range(11) if i != 5))
        assert caplog.text.count("1 of 11 files are missing (frame_5)") == 2

    def test_the_first_frames_only(self, bundle, labels, tmp_path):
        assert stream(bundle, labels, tmp_path / "frames", "--frames", 3) == 0
        assert only_these(tmp_path / "frames", "frame_0.png", "frame_1.png", "frame_2.png")

    def test_missing_instances_name_the_option(self, bundle, labels, tmp_path):
        borders = bundle.with_name("borders.v2v")
        with pytest.raises(DataError, match=r"frame_0\.png: .*give --instances DIR"):
            stream(borders, labels, tmp_path / "frames")
        instances = save(tmp_path / "inst", label_maps(10))
        with pytest.raises(DataError, match=r"labels/frame_10\.png: its instance map .*inst/frame_10\.png is missing"):
            stream(borders, labels, tmp_path / "frames", "--instances", instances)

    def test_instances_that_nobody_uses_are_refused(self, bundle, labels, tmp_path):
        with pytest.raises(ConfigError, match="uses no instance maps"):
            stream(bundle, labels, tmp_path / "frames", "--instances", labels)


class TestOutput:
    def test_a_folder_and_a_video_hold_every_frame(self, bundle, labels, tmp_path):
        assert stream(bundle, labels, tmp_path / "frames") == 0
        assert only_these(tmp_path / "frames", *(f"frame_{i}.png" for i in range(11)))
        assert stream(bundle, labels, tmp_path / "video.mp4") == 0
        assert probe_video(tmp_path / "video.mp4").num_frames == 11
        assert only_these(tmp_path, "labels", "frames", "video.mp4")
        assert "(tiny.v2v)" in read_mark(tmp_path / "video.mp4") and read_mark(tmp_path / "frames/frame_0.png")

    def test_the_mark_is_left_out_on_request(self, bundle, labels, tmp_path):
        assert stream(bundle, labels, tmp_path / "frames", "--frames", 1, "--no-mark") == 0
        assert stream(bundle, labels, tmp_path / "video.mp4", "--frames", 1, "--no-mark") == 0
        assert read_mark(tmp_path / "video.mp4") is None and read_mark(tmp_path / "frames/frame_0.png") is None

    def test_an_older_folder_is_replaced_as_a_whole_and_only_when_asked(self, bundle, labels, tmp_path):
        out = save(tmp_path / "frames", [np.zeros((4, 4), np.uint8)], "old_{}.png")
        with pytest.raises(ConfigError, match="--overwrite"):
            stream(bundle, labels, out)
        assert only_these(out, "old_0.png")
        assert stream(bundle, labels, out, "--overwrite") == 0
        assert only_these(out, *(f"frame_{i}.png" for i in range(11)))
        assert read_image(out / "frame_0.png").shape == (HEIGHT, WIDTH, 3)

    def test_a_failure_keeps_the_older_folder(self, bundle, labels, tmp_path):
        out = save(tmp_path / "frames", [np.zeros((4, 4), np.uint8)], "old_{}.png")
        (labels / "frame_10.png").write_bytes(b"broken")
        with pytest.raises(DataError, match=r"frame_10\.png"):
            stream(bundle, labels, out, "--overwrite")
        assert only_these(out, "old_0.png")
        assert only_these(tmp_path, "labels", "frames")

    def test_a_folder_of_other_things_is_never_replaced(self, bundle, labels, tmp_path):
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / "diary.txt").write_text("mine")
        with pytest.raises(ConfigError, match=r"diary\.txt"):
            stream(bundle, labels, tmp_path / "home", "--overwrite")
        with pytest.raises(ConfigError, match="to be read"):
            stream(bundle, labels, labels, "--overwrite")

    def test_an_unknown_suffix_is_refused(self, bundle, labels, tmp_path):
        with pytest.raises(ConfigError, match=r"video\.avi: nothing is written as \.avi; .*\.mp4 or \.mkv"):
            stream(bundle, labels, tmp_path / "video.avi")
