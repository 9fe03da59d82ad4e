"""Bodies and labels from a plain video, and how a face that was drawn is measured."""

import json
import sys

import numpy as np
import pytest
from test_prepare import scene, video_of

from benchmarks.face import FaceFrames, eye_distance, face_psnr_db, landmark_error, nearest_frame
from fastv2v.data.classes import read_classes
from fastv2v.data.folder import FolderConfig, open_folder
from fastv2v.data.images import read_label
from fastv2v.data.pose import PoseConfig, prepare_densepose, read_openpose
from fastv2v.data.prepare import body
from fastv2v.data.prepare.chunks import Piece
from fastv2v.data.prepare.labels import LabelConfig, Segmenter, draw_labels
from fastv2v.data.prepare.write import PrepareConfig, prepare_video
from fastv2v.errors import ConfigError, DataError, MissingExtraError

SIZE = (200, 100)


def seen(**points):
    """One frame of what mediapipe gives: everybody at the middle but the points named by number."""
    found = {name: np.zeros((1, count, 3), np.float32) for name, count in body._COUNTS.items()}
    for name, places in points.items():
        for number, place in places.items():
            found[name][0, number] = place
    found["mask"] = np.full((1, 100, 50), 255, np.uint8)
    return found


UPRIGHT = {
    0: (0.5, 0.1, 1), 11: (0.7, 0.3, 1), 12: (0.3, 0.3, 1), 13: (0.8, 0.5, 1), 14: (0.2, 0.5, 1), 15: (0.8, 0.7, 0.9),
    16: (0.2, 0.7, 0.9), 23: (0.6, 0.7, 0.8), 24: (0.4, 0.7, 0.8),
}  # fmt: skip


class TestBody:
    def test_points_are_those_of_body_25(self):
        content = body.to_openpose(seen(body=UPRIGHT), 0, SIZE, 0.3)
        (person,) = read_openpose(json.dumps(content).encode(), "frame")
        assert person.body.shape == (25, 3) and person.face.shape == (70, 3) and person.left_hand.shape == (21, 3)
        assert np.allclose(person.body[0], (50, 20, 1))  # nose
        assert np.allclose(person.body[1], (50, 60, 1))  # neck, between the shoulders
        assert np.allclose(person.body[2, :2], (30, 60))  # the right shoulder lies on the left of the picture
        assert np.allclose(person.body[8], (50, 140, 0.8))  # middle of the hips
        assert (person.body[[10, 13], 2] == 0).all()  # knees were not seen

    def test_what_is_not_sure_or_outside_is_left_out(self):
        doubtful = {0: (0.5, 0.1, 0.2), 11: (1.2, 0.3, 1), 12: (0.3, 0.3, 1)}
        content = body.to_openpose(seen(body=doubtful), 0, SIZE, 0.3)
        (person,) = read_openpose(json.dumps(content).encode(), "frame")
        assert (person.body[:, 2] > 0).tolist() == [i in (1, 2) for i in range(25)]

    def test_nobody_is_an_empty_list(self):
        assert body.to_openpose(seen(), 0, SIZE, 0.3)["people"] == []

    def test_points_follow_the_cut(self):
        cut = body.cut_to(seen(body={0: (0.5, 0.5, 1)}), 0, (220, 110), SIZE)
        content = body.to_openpose(cut | seen(body={}) | {"body": cut["body"]}, 0, SIZE, 0.3)
        assert content["people"][0]["pose_keypoints_2d"][:2] == [50.0, 100.0]
        assert cut["mask"].shape == (1, *SIZE)

    def test_every_pixel_of_the_mask_gets_the_part_nearest_to_it(self):
        found = seen(body=UPRIGHT)
        content = body.to_openpose(found, 0, SIZE, 0.3)
        mask = np.zeros(SIZE, np.uint8)
        mask[10:180, 15:85] = 255
        parts = body.part_map(content, mask, SIZE, 0.5)
        assert (parts[mask == 0] == 0).all() and (parts[mask > 0, 2] > 0).all()
        assert parts[100, 50, 2] == 2  # trunk
        assert parts[80, 25, 2] == 16 and parts[80, 75, 2] == 15  # right and left upper arm
        assert parts[20, 50, 2] in (23, 24)  # head
        assert prepare_densepose(parts, PoseConfig(remove_face_labels=True), "frame")[20, 50].max() == 0

    def test_without_mediapipe_it_is_named(self, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(MissingExtraError, match=r"--pose\.python"):
            body.BodyFinder(body.BodyConfig(), 1)

    def test_a_python_without_mediapipe_is_named_too(self, tmp_path):
        fake = tmp_path / "python"
        fake.write_text("#!/bin/sh\nexit 1\n")
        fake.chmod(0o755)
        with pytest.raises(MissingExtraError, match="mediapipe"), body.BodyFinder(body.BodyConfig(python=fake), 1):
            pass

    def test_a_worker_is_asked_frame_by_frame(self, tmp_path, monkeypatch):
        worker = tmp_path / "worker.py"
        worker.write_text(
            "import json, sys\n"
            "print('ready', flush=True)\n"
            "for line in iter(sys.stdin.buffer.readline, b''):\n"
            "    a = json.loads(line)\n"
            "    for n in range(a['frames']):\n"
            "        data = sys.stdin.buffer.read(a['height'] * a['width'] * 3)\n"
            "        if n >= a['lead']:\n"
            "            answer = dict.fromkeys(('body', 'left_hand', 'right_hand', 'face'))\n"
            "            answer['body'] = [[data[0] / 100, 0, 1]] * 33\n"
            "            mask = bytes(a['height'] * a['width'])\n"
            "            sys.stdout.buffer.write(json.dumps(answer).encode() + b'\\n' + mask)\n"
            "            sys.stdout.buffer.flush()\n"
        )
        monkeypatch.setattr(body, "_WORKER", worker)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
        frames = [np.full((4, 6, 3), value, np.uint8) for value in (10, 20, 30)]
        with body.BodyFinder(body.BodyConfig(), 1) as finder:
            found = finder.look(Piece("a", (1, 2), (0,)), frames)
        assert found["body"][:, 0, 0].tolist() == pytest.approx([0.2, 0.3])
        assert found["mask"].shape == (2, 4, 6) and not found["left_hand"].any()
        assert sys.executable


def tiny_network(path, size=None):
    """Scores of two classes: how dark a pixel is, and how red."""
    onnx = pytest.importorskip("onnx")
    helper, proto = onnx.helper, onnx.TensorProto
    weights = np.array([[0, 0, 0], [20, 0, 0]], np.float32).reshape(2, 3, 1, 1)
    bias = np.array([0, -10], np.float32)
    shape = [1, 3, *(size or ("h", "w"))]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"])],
        "tiny",
        [helper.make_tensor_value_info("x", proto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", proto.FLOAT, [1, 2, *shape[2:]])],
        [onnx.numpy_helper.from_array(weights, "w"), onnx.numpy_helper.from_array(bias, "b")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


class TestLabels:
    def test_a_network_of_ones_own_names_the_classes(self, tmp_path):
        out, frames = tmp_path / "out", scene(1, 20)
        for frame in frames:
            frame[...] = (frame[..., :1] > 200) * np.array([255, 0, 0], np.uint8)
        config = LabelConfig(model=tiny_network(tmp_path / "net.onnx"), **PLAIN)
        prepare_video(video_of(tmp_path, frames), out, PrepareConfig(kind="labels", labels=config), num_workers=1)
        folder = open_folder(FolderConfig(root=out, condition="labels"))
        assert len(read_classes(out).names) == folder.spec.num_classes
        read = read_label(folder.sequences[0].path("labels", 3))
        assert np.mean(read == (frames[3][..., 0] > 0)) > 0.99

    def test_its_own_size_is_kept_to(self, tmp_path):
        segmenter = Segmenter(LabelConfig(model=tiny_network(tmp_path / "net.onnx", (32, 48)), **PLAIN))
        (labels,) = draw_labels([np.zeros((64, 96, 3), np.uint8)], segmenter, LabelConfig())
        assert segmenter.answer(np.zeros((64, 96, 3), np.uint8)).shape == (32, 48, 2)
        assert labels.shape == (64, 96)

    def test_without_a_network_the_way_out_is_named(self):
        with pytest.raises(ConfigError, match="--kind palette"):
            Segmenter(LabelConfig())

    def test_what_is_no_network_is_refused(self, tmp_path):
        (tmp_path / "net.onnx").write_bytes(b"not a network")
        with pytest.raises(ConfigError, match="not a network"):
            Segmenter(LabelConfig(model=tmp_path / "net.onnx"))


def face(x, y, width=40.0):
    points = np.random.default_rng(1).random((68, 2)) * width / 2 + width / 4
    points[:17, 0], points[:17, 1] = (
        np.linspace(0, width, 17),
        width / 2 + np.sin(np.linspace(0, np.pi, 17)) * width / 2,
    )
    points[36:42], points[42:48] = (width / 4, width / 3), (3 * width / 4, width / 3)
    return points + np.array([x, y])


class TestFaceMeasure:
    def test_errors_are_in_eye_distances(self):
        assert eye_distance(face(5, 5)) == pytest.approx(20)
        assert landmark_error(face(5, 5) + np.array([0, 1.0]), face(5, 5)) == pytest.approx(0.05)

    def test_only_pixels_of_the_face_count(self):
        real = np.zeros((64, 64, 3), np.uint8)
        other = real.copy()
        other[:, :4] = 255
        assert face_psnr_db(other, real, face(12, 20)) == 100.0
        assert face_psnr_db(real + np.uint8(10), real, face(12, 20)) == pytest.approx(28.13, abs=0.01)

    def test_a_face_outside_is_refused(self):
        with pytest.raises(DataError, match="covers no pixel"):
            face_psnr_db(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3), np.uint8), face(100, 100))

    def test_the_floor_is_the_frame_with_the_nearest_landmarks(self):
        frames = [np.full((8, 8, 3), value, np.uint8) for value in (1, 2, 3)]
        known = [FaceFrames("a", frames, [face(0, 0), face(6, 0), face(20, 0)], [])]
        assert nearest_frame(face(5, 0), known)[0, 0, 0] == 2
