"""Driving a bundle: what it keeps of its training data, and what becomes of videos and data sets that drive it."""

import contextlib
import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
from test_driving import a_face, a_person, changed, expressions, placed, turned, walk
from test_prepare_people import tiny_network
from tiny_bundle import manifest, self_test_graph, step_graph

from export.bundle import write_bundle
from export.driving import (
    DRIVING_FILE,
    ReachLog,
    drive_bodies,
    drive_faces,
    drive_pictures,
    read_driving,
    with_bar,
    write_driving,
)
from fastv2v.commands.driving import DrivingArgs, open_driver
from fastv2v.commands.stream import StreamArgs, check_output
from fastv2v.commands.stream import main as stream
from fastv2v.data.conditions import ConditionSpec, maps_to_float
from fastv2v.data.driving.body import BodyProfile
from fastv2v.data.driving.config import DrivingConfig
from fastv2v.data.driving.profile import DrivingProfile, measure_profile
from fastv2v.data.driving.seen import SeenPerson, moved_parts
from fastv2v.data.face import FaceConfig, draw_face
from fastv2v.data.folder import FolderConfig, open_folder
from fastv2v.data.pose import PoseConfig, draw_openpose
from fastv2v.data.prepare.body import part_map
from fastv2v.data.prepare.edges import EdgeConfig, draw_edges
from fastv2v.data.prepare.labels import LabelConfig
from fastv2v.data.prepare.landmarks import FaceConfig as FindFaces
from fastv2v.data.prepare.palette import Palette, PaletteConfig
from fastv2v.data.prepare.write import PrepareConfig, prepare_video
from fastv2v.data.transforms import Geometry, GeometryConfig, draw_geometry
from fastv2v.errors import BundleError, ConfigError
from fastv2v.video import VideoWriter, probe_video, write_video

SIZE = (240, 240)
SEQUENCE = DrivingConfig(fit="sequence")
FACE = FaceConfig(background="none", crop="none")
POSE = PoseConfig(densepose=True)
KEYS = ("pose_keypoints_2d", "face_keypoints_2d", "hand_left_keypoints_2d", "hand_right_keypoints_2d")


def write_faces(root, faces, phase="train"):
    for name in ("img", "keypoints"):
        (root / f"{phase}_{name}" / "one").mkdir(parents=True)
    for number, points in enumerate(faces):
        cv2.imwrite(str(root / f"{phase}_img/one/{number:03}.png"), np.zeros((*SIZE, 3), np.uint8))
        text = "".join(f"{x:.3f},{y:.3f}\n" for x, y in points)
        (root / f"{phase}_keypoints/one/{number:03}.txt").write_text(text)
    return root


def content(person):
    return {"people": [{key: points.ravel().tolist() for key, points in zip(KEYS, person, strict=True)}]}


def write_people(root, people, phase="train"):
    for name in ("img", "openpose", "densepose"):
        (root / f"{phase}_{name}" / "one").mkdir(parents=True)
    for number, person in enumerate(people):
        cv2.imwrite(str(root / f"{phase}_img/one/{number:03}.png"), np.zeros((*SIZE, 3), np.uint8))
        cv2.imwrite(str(root / f"{phase}_densepose/one/{number:03}.png"), outline(person)[..., ::-1])
        (root / f"{phase}_openpose/one/{number:03}.json").write_text(json.dumps(content(person)))
    return root


def outline(person, size=SIZE):
    """Parts of a figure whose limbs are strokes."""
    mask = np.zeros(size, np.uint8)
    for a, b in ((1, 8), (1, 0), (2, 3), (3, 4), (5, 6), (6, 7), (9, 10), (10, 11), (12, 13), (13, 14)):
        ends = [tuple(int(v) for v in np.rint(person.body[i, :2])) for i in (a, b)]
        cv2.line(mask, *ends, 255, 10)
    return part_map(content(person), mask, size, 0.5)


def opened(root, condition, **changes):
    geometry = GeometryConfig(mode="exact", size=SIZE, interpolation="area")
    folder = open_folder(FolderConfig(root=root, condition=condition, geometry=geometry, **changes))
    return folder, draw_geometry(geometry, SIZE, None, "test")


@pytest.fixture(scope="module")
def face_set(tmp_path_factory):
    return write_faces(tmp_path_factory.mktemp("faces"), placed(expressions(24)))


@pytest.fixture(scope="module")
def people_set(tmp_path_factory):
    return write_people(tmp_path_factory.mktemp("people"), walk(24))


def bundle_of(root, folder, geometry):
    """Profile and manifest as a bundle of this data set would have them, by way of its files."""
    files = write_driving(measure_profile(folder, geometry), root)
    made = manifest(condition=folder.spec, size=SIZE, files=dict.fromkeys(files, "0" * 64))
    return read_driving(root, made), made


class TestProfile:
    def test_faces_of_a_data_set_return_as_its_own_conditions(self, face_set, tmp_path):
        profile, made = bundle_of(tmp_path, *opened(face_set, "face", face=FACE))
        faces = placed(expressions(24))
        driven = list(drive_faces(profile, made, turned(faces, 1.5, 0, (9, 9)), SEQUENCE))
        for one, points in zip(driven, faces, strict=True):
            wanted = maps_to_float(made.condition, draw_face(points, SIZE, FACE))
            # Points that round otherwise move a curve by a pixel, a distance map by a third of a level.
            assert np.abs(one.condition.maps[1:] - wanted[1:]).max() < 0.02 and one.shown.shape == (*SIZE, 3)
        assert max(one.reach for one in driven) < 1.3

    def test_people_of_a_data_set_return_as_its_own_conditions(self, people_set, tmp_path):
        profile, made = bundle_of(tmp_path, *opened(people_set, "pose", pose=POSE))
        people = walk(24)
        seen = [SeenPerson(changed(p, 1, (7, -3)), np.roll(outline(p), (-3, 7), (0, 1))) for p in people]
        for one, person in zip(drive_bodies(profile, made, seen, SEQUENCE), people, strict=True):
            wanted = maps_to_float(made.condition, np.dstack([outline(person), draw_openpose([person], SIZE, POSE)]))
            assert (np.abs(one.condition.maps - wanted) > 0.1).mean() < 0.01

    def test_landmarks_are_measured_in_the_square_that_is_cut_out(self, face_set):
        folder, _ = opened(face_set, "face", face=FaceConfig(background="none"))
        from fastv2v.data.folder import FrameReader

        square = FrameReader(folder).image_size(0)
        profile = measure_profile(folder, draw_geometry(folder.config.geometry, square, None, "test"))
        assert profile.size == square
        assert profile.face.head[:2] == pytest.approx(np.array(square) / 2, rel=0.2)

    def test_label_maps_of_no_video_have_no_profile(self, tmp_path):
        (tmp_path / "train_A/one").mkdir(parents=True)
        (tmp_path / "train_B/one").mkdir(parents=True)
        for number in range(3):
            cv2.imwrite(str(tmp_path / f"train_A/one/{number}.png"), np.zeros(SIZE, np.uint8))
            cv2.imwrite(str(tmp_path / f"train_B/one/{number}.png"), np.zeros((*SIZE, 3), np.uint8))
        assert measure_profile(*opened(tmp_path, "labels")) is None

    def test_a_bundle_without_it_says_what_to_do(self, tmp_path):
        with pytest.raises(BundleError, match=r"has no driving\.json: it was exported by an earlier"):
            read_driving(tmp_path, manifest())

    def test_damage_is_named(self, face_set, tmp_path):
        _, made = bundle_of(tmp_path, *opened(face_set, "face", face=FACE))
        path = tmp_path / DRIVING_FILE
        whole = json.loads(path.read_text())
        for change, message in (
            ({"schema": 9}, "schema 9"),
            ({"kind": "dance"}, "not what driving needs"),
            ({"face": {}}, "'neutral' is missing"),
            ({"size": [1]}, "not what driving needs"),
            ({"resized": [10, 10]}, "does not suit"),
        ):
            path.write_text(json.dumps(whole | change))
            with pytest.raises(BundleError, match=message):
                read_driving(tmp_path, made)
        path.write_text(json.dumps(whole))
        with pytest.raises(BundleError, match="does not suit"):
            read_driving(tmp_path, manifest(files=made.files))


class TestPictures:
    def profile(self, kind, **more):
        return DrivingProfile(
            kind=kind, size=(32, 48), resized=(16, 24), offset=(0, 0), interpolation="area", prepared=True, **more
        )

    def video(self, count=3):
        rng = np.random.default_rng(0)
        return [cv2.resize(rng.integers(0, 256, (8, 12, 3), np.uint8), (96, 64)) for _ in range(count)]

    def test_edges_are_those_prepare_draws(self):
        made = manifest(condition=ConditionSpec(kind="maps", map_channels=3, encoder="rgb"), size=(16, 24))
        edges = EdgeConfig(hold=False)
        driven = list(drive_pictures(self.profile("edges", edges=edges), made, self.video()))
        small = [cv2.resize(frame, (48, 32), interpolation=cv2.INTER_AREA) for frame in self.video()]
        for one, drawn in zip(driven, draw_edges(small, edges), strict=True):
            wanted = cv2.resize(drawn, (24, 16), interpolation=cv2.INTER_AREA)
            assert np.abs(one.shown[..., 0].astype(int) - wanted).max() <= 1 and one.reach is None

    def test_a_palette_is_the_trained_one(self, tmp_path):
        palette = Palette(
            np.array([[0, 0, 0, 0], [60, 0, 0, 0]], np.float32), np.array([[0] * 3, [255] * 3], np.uint8), 1.0
        )
        files = write_driving(self.profile("palette", palette=(palette, PaletteConfig(classes=2))), tmp_path)
        made = manifest(
            condition=replace(manifest().condition, class_names=("a", "b")), files=dict.fromkeys(files, "0" * 64)
        )
        picture = np.zeros((64, 96, 3), np.uint8)
        picture[:, 48:] = 255
        (driven,) = drive_pictures(read_driving(tmp_path, made), made, [picture])
        assert driven.condition.labels[:, 0].max() == 0 and driven.condition.labels[:, -1].min() == 1

    def test_labels_need_their_network(self):
        with pytest.raises(ConfigError, match=r"--driving\.model"):
            next(drive_pictures(self.profile("labels"), manifest(), self.video()))

    def test_labels_are_read_as_they_were_prepared(self, tmp_path):
        """By the same file, shown pictures in the same way: another one would mean other classes."""
        network = tiny_network(tmp_path / "net.onnx")
        config = LabelConfig(model=network, mean=(0.0,) * 3, std=(1.0,) * 3, hold=0.0, min_area=0.0)
        frames = [np.full((32, 48, 3), (255 * (t % 2), 0, 0), np.uint8) for t in range(20)]
        write_video(tmp_path / "v.mkv", frames, 25, lossless=True, synthetic=False)
        made = PrepareConfig(kind="labels", labels=config, multiple=8)
        prepare_video(tmp_path / "v.mkv", tmp_path / "data", made, num_workers=1)
        folder = open_folder(FolderConfig(root=tmp_path / "data", geometry=GeometryConfig(mode="none")))
        whole = Geometry(source=(32, 48), resized=(32, 48), offset=(0, 0), size=(32, 48), interpolation="area")
        profile = measure_profile(folder, whole)
        write_driving(profile, tmp_path / "driving")
        again = DrivingProfile.read(tmp_path / "driving" / "driving.json")
        assert again == profile and again.labels == replace(config, model=None)
        taken = manifest(condition=replace(manifest().condition, class_names=("a", "b")), size=(32, 48))
        driven = [
            one.condition.labels.max() for one in drive_pictures(again, taken, frames, LabelConfig(model=network))
        ]
        assert driven == [0, 1] * 10
        other = tmp_path / "other.onnx"
        other.write_bytes(network.read_bytes() + b" ")
        with pytest.raises(ConfigError, match="is not the file that the data of"):
            next(drive_pictures(again, taken, frames, LabelConfig(model=other)))

    def test_nothing_is_read_ahead(self):
        made = manifest(condition=ConditionSpec(kind="maps", map_channels=3, encoder="rgb"), size=(16, 24))
        asked = []

        def source():
            for number, picture in enumerate(self.video(4)):
                asked.append(number)
                yield picture

        driven = drive_pictures(self.profile("edges"), made, source())
        for number in range(4):
            next(driven)
            assert asked[-1] == number


class TestParts:
    def test_they_are_carried_along_with_a_limb(self):
        driver, size = a_person(3), (240, 240)
        fitted = a_person(9)
        moved = moved_parts(SeenPerson(driver, outline(driver)), fitted, size)
        wanted = outline(fitted)
        inside, held = wanted[..., 2] > 0, moved[..., 2] > 0
        assert (inside & held).sum() / (inside | held).sum() > 0.7
        both = inside & held
        assert (moved[both, 2] == wanted[both, 2]).mean() > 0.9

    def test_somebody_without_limbs_has_none(self):
        driver = a_person(3)
        nobody = driver._replace(body=np.zeros((25, 3)))
        assert not moved_parts(SeenPerson(driver, outline(driver)), nobody, SIZE).any()


class TestTold:
    def test_the_log_counts_and_names_the_worst_frame(self, face_set, tmp_path):
        profile, made = bundle_of(tmp_path, *opened(face_set, "face", face=FACE))
        faces = placed(expressions(24))
        faces[7, 48:68, 1] += 60
        log = ReachLog(1.5)
        driven = list(drive_faces(profile, made, [*faces, None], DrivingConfig(fit="causal")))
        for one in driven:
            log.note(one)
        told = log.to_json()
        assert told["largest_at"] == 7 and told["held"] == 1 and told["frames"] == 25 and len(told["shape"]) == 25
        assert "(frame 7)" in log.told() and "1 frames held" in log.told()
        assert ReachLog(1.5).told() == "" and ReachLog(1.5).to_json()["frames"] == 0

        calm, wild = with_bar(driven[3], 1.5), with_bar(driven[7], 1.5)
        assert calm.shape == (SIZE[0] + 10, SIZE[1], 3)
        filled = [int((bar[-5, :, 0] != 40).sum()) for bar in (calm, wild)]
        assert filled[0] < filled[1]


class TestCommand:
    def test_a_data_set_of_another_kind_is_named(self, face_set, people_set, tmp_path):
        _, made = bundle_of(tmp_path, *opened(face_set, "face", face=FACE))
        other = tmp_path / "dance"
        other.mkdir()
        (other / "summary.json").write_text(json.dumps({"request": {"config": {"kind": "pose"}}, "video": {}}))
        with pytest.raises(
            ConfigError, match="prepared for a person and tiny shows a face; prepare that video with --kind face"
        ):
            open_driver(str(other), tmp_path, made, DrivingArgs(), contextlib.ExitStack())
        with pytest.raises(ConfigError, match="no such video, data set or camera"):
            open_driver("nothing.mp4", tmp_path, made, DrivingArgs(), contextlib.ExitStack())
        with pytest.raises(ConfigError, match="a camera has no end"):
            args = DrivingArgs(fitting=DrivingConfig(fit="sequence"))
            open_driver("0", tmp_path, made, args, contextlib.ExitStack())

    def test_a_data_set_drives(self, face_set, people_set, tmp_path):
        _, made = bundle_of(tmp_path, *opened(face_set, "face", face=FACE))
        driver = open_driver(str(face_set), tmp_path, made, DrivingArgs(), contextlib.ExitStack(), phase="train")
        assert driver.names[:2] == ["000", "001"] and len(list(driver.frames)) == 24
        people = tmp_path / "people"
        people.mkdir()
        _, made = bundle_of(people, *opened(people_set, "pose", pose=POSE))
        driver = open_driver(str(people_set), people, made, DrivingArgs(), contextlib.ExitStack(), phase="train")
        driven = list(driver.frames)
        assert len(driven) == 24 and all(one.shown.any() for one in driven)

    def test_a_video_drives_a_bundle(self, tmp_path, capsys):
        centres = np.array([[15 * i, 0, 0, 0] for i in range(4)], np.float32)
        palette = Palette(centres, np.repeat(np.arange(4, dtype=np.uint8)[:, None] * 80, 3, axis=1), 1.0)
        profile = DrivingProfile(
            kind="palette", size=(32, 48), resized=(16, 24), offset=(0, 0), interpolation="area", prepared=True,
            palette=(palette, PaletteConfig(classes=4)),
        )  # fmt: skip
        files = write_driving(profile, tmp_path / "driving")
        for name, graph in {"step.onnx": step_graph(), "selftest.onnx": self_test_graph()}.items():
            files[name] = tmp_path / name
            files[name].write_bytes(graph)
        write_bundle(tmp_path / "b.v2v", manifest(), files)
        with VideoWriter(tmp_path / "other.mp4", 17) as writer:
            for number in range(6):
                writer.write(np.full((64, 96, 3), 40 * number, np.uint8))
        out, preview, report = (tmp_path / name for name in ("out.mp4", "seen.mp4", "reach.json"))
        words = ["--bundle", tmp_path / "b.v2v", "--drive", tmp_path / "other.mp4", "--out", out, "--causal"]
        words += ["--engine", "onnxruntime", "--threads", 1, "--driving.preview", preview, "--driving.report", report]
        assert stream([str(word) for word in words]) == 0
        assert [probe_video(path).num_frames for path in (out, preview)] == [6, 6]
        assert json.loads(report.read_text())["frames"] == 0  # nobody is measured in colours
        assert "6 frames" in capsys.readouterr().out

    def test_what_is_told_replaces_nothing_that_is_read_or_written(self, tmp_path):
        driver = tmp_path / "other.mp4"
        driver.write_bytes(b"a video")
        given = {"bundle": tmp_path / "b.v2v", "drive": str(driver), "out": tmp_path / "out.mp4"}
        for told, message in (
            ({"preview": driver}, "holds what is to be read"),
            ({"preview": tmp_path / "out.mp4"}, "is written twice"),
            ({"report": tmp_path / "b.v2v"}, "holds what is to be read"),
        ):
            with pytest.raises(ConfigError, match=message):
                check_output(StreamArgs(**given, driving=DrivingArgs(**told), overwrite=True))
        (tmp_path / "reach.json").write_text("{}")
        there = DrivingArgs(report=tmp_path / "reach.json")
        with pytest.raises(ConfigError, match="--overwrite"):
            check_output(StreamArgs(**given, driving=there))
        check_output(StreamArgs(**given, driving=there, overwrite=True))

    def test_a_video_of_variable_rate_drives_at_its_usual_one(self, tmp_path, monkeypatch):
        from test_prepare_videos import LOSSLESS, made, numbered

        late = "setpts='(N+max(0,2*floor((N-9)/2)))/25/TB'"
        video = made(tmp_path / "uneven.mp4", numbered(20), "-vf", late, "-fps_mode", "vfr",
                     "-enc_time_base", "1/1000", *LOSSLESS)  # fmt: skip
        edges = DrivingProfile(
            kind="edges", size=(64, 96), resized=(64, 96), offset=(0, 0), interpolation="area", prepared=True
        )
        monkeypatch.setattr("fastv2v.commands.driving.read_driving", lambda *given: edges)
        taken = manifest(condition=ConditionSpec(kind="maps", map_channels=3, encoder="rgb"), size=(64, 96))
        driver = open_driver(str(video), tmp_path, taken, DrivingArgs(), contextlib.ExitStack())
        assert float(driver.fps) == pytest.approx(25, rel=0.01) and len(list(driver.frames)) in (29, 30, 31)

    def test_which_of_several_faces_drives(self, face_set, tmp_path, monkeypatch):
        profile, taken = bundle_of(tmp_path, *opened(face_set, "face", face=FACE))
        monkeypatch.setattr("fastv2v.commands.driving.read_driving", lambda *given: profile)
        asked = []
        monkeypatch.setattr(
            "export.driving.faces_seen", lambda pictures, config: asked.append(config) or iter([a_face()])
        )
        with VideoWriter(tmp_path / "two.mp4", 25) as writer:
            writer.write(np.zeros((64, 96, 3), np.uint8))
        args = DrivingArgs(face=FindFaces(choose="leftmost"))
        open_driver(str(tmp_path / "two.mp4"), tmp_path, taken, args, contextlib.ExitStack())
        assert asked == [FindFaces(choose="leftmost")]

    def test_options_that_belong_together(self, tmp_path):
        given = {"bundle": tmp_path, "out": tmp_path / "x.mp4"}
        StreamArgs(**given, drive="a.mp4")
        for wrong in ({"drive": "a.mp4", "camera": "0"}, {"camera": "0", "driving": DrivingArgs(report=tmp_path / "r")},
                      {"drive": "a.mp4", "given_frame": True}, {"drive": "a.mp4", "instances": tmp_path}):  # fmt: skip
            with pytest.raises(ConfigError):
                StreamArgs(**given, **wrong)
        with pytest.raises(ConfigError, match="no such file"):
            DrivingArgs(model=tmp_path / "net.onnx")
        with pytest.raises(ConfigError, match="a preview is a video"):
            DrivingArgs(preview=tmp_path / "net.onnx")


def test_the_figures_are_people():
    """What the tests above stand on."""
    assert a_face().shape == (68, 2)
    assert BodyProfile.of(walk(5)).points == frozenset(range(25))
