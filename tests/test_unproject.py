"""``fastv2v unproject``: unprojections for a whole data set, kept, refused, judged and shown."""

import json
import logging
import sys

import cv2
import numpy as np
import pytest

from fastv2v.cli import main
from fastv2v.data import unproject
from fastv2v.data.cameras import Camera
from fastv2v.data.folder import FolderConfig, open_folder
from fastv2v.data.loader import read_sequence
from fastv2v.data.registration import PosedDepth
from fastv2v.data.sfm import NoMotionError, SfmConfig, triangulated_depth
from fastv2v.data.transforms import GeometryConfig
from fastv2v.data.unproject import UnprojectConfig, find_videos, unproject_folder
from fastv2v.data.unprojection import read_unprojection
from fastv2v.data.world import CLASS_NAMES, WorldConfig, render_clip, write_world
from fastv2v.errors import ConfigError, DataError, MissingExtraError

CONFIG = WorldConfig(size=(64, 128), num_frames=5, camera="return", people=0, cars=0)
DEPTH = UnprojectConfig(source="depth")


@pytest.fixture
def world(tmp_path):
    return write_world(tmp_path / "world", CONFIG, train_clips=1, test_clips=1)


def files(root, phase="train", clip="clip_000"):
    return sorted((root / f"{phase}_unprojections" / clip).glob("0*"))


class TestSources:
    def test_the_world_gives_its_own_points(self, world):
        results = unproject_folder(world, UnprojectConfig())
        assert [r.source for r in results] == ["world", "world"]
        for path, frame in zip(files(world), render_clip(CONFIG, 0, points=True), strict=True):
            assert np.array_equal(read_unprojection(path)[0], frame.points)
        assert results[0].guided[0] > 0.5 and results[0].colour_error < 14 and results[0].num_points > 1000

    def test_depth_and_pose_find_nearly_the_same_places(self, world):
        (train, _) = unproject_folder(world, DEPTH)
        assert train.guided[0] > 0.5
        assert train.colour_error < 16
        first, last = (read_unprojection(files(world)[i])[0] for i in (0, -1))
        assert (first == last)[first >= 0].mean() > 0.99, "the camera is back where it was"

    def test_clips_of_the_data_set_get_the_points(self, world):
        unproject_folder(world, DEPTH)
        folder = open_folder(FolderConfig(root=world, geometry=GeometryConfig(mode="none"), guidance_levels=3))
        points = read_sequence(folder, 0).points
        assert [tuple(level.shape[2:]) for level in points] == [(64, 128), (32, 64), (16, 32)]
        assert (points[0] >= 0).float().mean() > 0.7

    def test_movable_classes_get_no_points(self, world):
        unproject_folder(world, UnprojectConfig(source="depth", movable=("road",)))
        ids = read_unprojection(files(world)[0])[0]
        labels = cv2.imread(str(world / "train_A/clip_000/000000.png"), cv2.IMREAD_UNCHANGED)
        road = labels == CLASS_NAMES.index("road")
        assert road.any() and (ids[road] == -1).all() and (ids[~road] >= 0).any()

    def test_imaginaires_layout_is_written_on_request(self, world):
        unproject_folder(world, UnprojectConfig(source="depth", file_format="pkl", levels=2))
        assert [f.name for f in files(world)] == [f"{i:06d}.pkl" for i in range(5)]
        assert len(read_unprojection(files(world)[0])) == 2


class TestBadInput:
    def test_frames_without_pose_are_named_and_go_without(self, world, caplog):
        (world / "train_camera/clip_000/000002.txt").unlink()
        with caplog.at_level(logging.WARNING):
            results = unproject_folder(world, DEPTH)
        assert "1 of 5 frames have no points (000002)" in caplog.text
        assert [f.stem for f in files(world)] == ["000000", "000001", "000003", "000004"]
        assert results[0].frames_without == ("000002",)

    def test_no_pose_at_all_is_refused(self, world):
        for path in (world / "train_camera/clip_000").glob("0*.txt"):
            path.unlink()
        with pytest.raises(DataError, match="no frame of sequence 'clip_000' has a depth map and a pose"):
            unproject_folder(world, DEPTH)

    def test_depth_of_another_size_is_refused(self, world):
        cv2.imwrite(str(world / "train_depth/clip_000/000001.png"), np.ones((32, 64), np.uint16))
        with pytest.raises(DataError, match=r"000001.png is 64x32 pixels and the frames 128x64"):
            unproject_folder(world, DEPTH)
        assert not (world / "train_unprojections/clip_000").exists(), "nothing half done is left"
        assert not list((world / "train_unprojections").iterdir())

    def test_a_pose_that_is_no_rotation_is_refused(self, world):
        np.savetxt(world / "train_camera/clip_000/000001.txt", np.diag([2.0, 2, 2, 1]))
        with pytest.raises(DataError, match=r"000001.txt: the camera pose is no rotation"):
            unproject_folder(world, DEPTH)

    def test_missing_intrinsics_and_folders_are_named(self, world, tmp_path):
        (world / "train_camera/clip_000/intrinsics.txt").unlink()
        with pytest.raises(DataError, match=r"no intrinsics\.txt"):
            unproject_folder(world, DEPTH)
        (tmp_path / "bare").mkdir()
        (tmp_path / "bare/train_B").symlink_to(world / "train_B")
        with pytest.raises(DataError, match="train_depth and train_camera is missing"):
            unproject_folder(tmp_path / "bare", DEPTH)
        with pytest.raises(DataError, match=r"no world\.json"):
            unproject_folder(tmp_path / "bare", UnprojectConfig(source="world"))
        with pytest.raises(DataError, match="there are no frames"):
            find_videos(tmp_path, ("train",))

    @pytest.mark.parametrize("nothing", [0, 65535])
    def test_depth_without_a_measurement_is_an_empty_cloud(self, world, caplog, nothing):
        for phase, clip in (("train", "clip_000"), ("test", "clip_001")):
            for path in (world / f"{phase}_depth" / clip).iterdir():
                cv2.imwrite(str(path), np.full((64, 128), nothing, np.uint16))
        with caplog.at_level(logging.WARNING), pytest.raises(DataError, match="no frame of any sequence has a point"):
            unproject_folder(world, DEPTH)
        assert "no pixel has a point; it is trained as plain vid2vid" in caplog.text

    def test_guidance_that_covers_nothing_is_warned_of_with_numbers(self, world, caplog):
        for i in range(5):  # every frame a kilometre away from the one before
            pose = np.eye(4)
            pose[0, 3] = 1000 * i
            np.savetxt(world / f"train_camera/clip_000/{i:06d}.txt", pose)
        with caplog.at_level(logging.WARNING):
            unproject_folder(world, UnprojectConfig(source="depth", phases=("train",)))
        assert "earlier frames paint 0.0 % of the pixels" in caplog.text

    @pytest.mark.parametrize(
        "fields", [{"source": "x"}, {"levels": 0}, {"levels": 9}, {"file_format": "json"}, {"phases": ()}]
    )
    def test_nonsense_is_refused(self, fields):
        with pytest.raises(ConfigError):
            UnprojectConfig(**fields)


class TestAgain:
    def test_finished_sequences_are_kept_and_a_second_call_goes_on(self, world, monkeypatch):
        first = unproject_folder(world, UnprojectConfig(phases=("train",)))
        made = files(world)[0].stat().st_mtime_ns
        both = unproject_folder(world, UnprojectConfig())
        assert both[0] == first[0] and len(both) == 2
        assert files(world)[0].stat().st_mtime_ns == made

    def test_other_settings_need_overwriting(self, world):
        unproject_folder(world, UnprojectConfig())
        with pytest.raises(DataError, match="made with other settings"):
            unproject_folder(world, UnprojectConfig(levels=3))
        unproject_folder(world, UnprojectConfig(levels=3), overwrite=True)
        assert len(read_unprojection(files(world)[0])) == 3

    def test_files_of_another_origin_are_not_replaced(self, tmp_path):
        root = write_world(tmp_path / "w", CONFIG, train_clips=1, test_clips=0, write_points=True)
        with pytest.raises(DataError, match="another origin"):
            unproject_folder(root, UnprojectConfig())


class TestVerb:
    def test_it_writes_elsewhere_with_a_sheet_and_a_record(self, world, tmp_path, capsys):
        assert main(["unproject", "--data", str(world), "--source", "depth", "--out", str(tmp_path / "out")]) == 0
        folder = tmp_path / "out/train_unprojections/clip_000"
        sheet = cv2.imread(str(folder / "coverage.png"))
        assert sheet.shape == (300, 1000, 3)
        about = json.loads((folder / "about.json").read_text())
        assert about["coverage"]["sequence"] == "clip_000" and about["request"]["source"] == "depth"
        printed = capsys.readouterr().out
        assert "train clip_000" in printed
        assert len(json.loads(printed.splitlines()[-1])["sequences"]) == 2

    def test_world_writes_its_points_itself(self, tmp_path):
        words = ["--world.size", "32", "64", "--world.num-frames", "2", "--train-clips", "1", "--test-clips", "0"]
        assert main(["world", "--out", str(tmp_path / "w"), "--unprojections", "--num-workers", "0", *words]) == 0
        assert len(files(tmp_path / "w")) == 2


class TestMotion:
    def test_structure_from_motion_names_its_extra(self, world, monkeypatch):
        monkeypatch.setitem(sys.modules, "pycolmap", None)
        with pytest.raises(MissingExtraError, match=r"fastv2v\[world\]"):
            unproject_folder(world, UnprojectConfig(source="sfm"))

    def test_still_frames_are_refused_with_what_to_try(self, tmp_path):
        pytest.importorskip("pycolmap", reason="needs the extra 'world'")
        folder = tmp_path / "train_B/seq"
        folder.mkdir(parents=True)
        picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        for i in range(3):
            cv2.imwrite(str(folder / f"{i}.png"), picture)
        told = []
        with pytest.raises(DataError, match=r"no camera motion.*--sfm\.forward-motion"):
            unproject_folder(
                tmp_path, UnprojectConfig(source="sfm", phases=("train",)), progress=lambda *what: told.append(what)
            )
        assert (0, 3, "seq: matching features") in told and told[-1] == (3, 3, "seq")

    def test_a_sequence_without_motion_goes_without_and_the_others_on(self, world, caplog, monkeypatch):
        failing = ["clip_000"]

        def reconstructed(frames, config, *, excluded, notice):
            if next(iter(frames.values())).parent.name in failing:
                raise NoMotionError("found no camera motion")
            notice("depth from optical flow")
            camera = Camera(np.array([[100.0, 0, 63.5], [0, 100.0, 31.5], [0, 0, 1]]))
            yield from (PosedDepth(np.ones((64, 128)), camera, np.eye(4)) for _ in frames)

        monkeypatch.setattr(unproject, "reconstruct", reconstructed)
        monkeypatch.setattr(unproject, "_versions", lambda source: {})  # pycolmap need not be here
        config = UnprojectConfig(source="sfm")
        with caplog.at_level(logging.WARNING):
            failed, done = unproject_folder(world, config)
        assert "sequence 'clip_000' (train): found no camera motion" in caplog.text
        assert (failed.num_points, failed.failure) == (0, "found no camera motion") and done.num_points == 64 * 128
        about = json.loads((world / "train_unprojections/clip_000/about.json").read_text())
        assert about["coverage"]["failure"] and not files(world)
        failing.clear()
        again = unproject_folder(world, config)
        assert again[0].num_points == 64 * 128 and again[1] == done, "what failed is tried again"

    def test_depth_from_flow_is_that_of_the_surface(self):
        """A textured wall, seen from two places: its depth is known."""
        rng = np.random.default_rng(0)
        texture = cv2.GaussianBlur(rng.random((120, 260)).astype(np.float32), (0, 0), 2)
        texture = cv2.normalize(texture, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
        camera = Camera(np.array([[100.0, 0, 79.5], [0, 100.0, 59.5], [0, 0, 1]]))
        here, there = np.eye(4), np.eye(4)
        there[0, 3] = 0.4  # at depth 4 this is 10 pixels
        pictures = [np.ascontiguousarray(texture[:, shift : shift + 160]) for shift in (0, 10)]
        depth = triangulated_depth(pictures[0], here, [(pictures[1], there)], camera, SfmConfig())
        known = depth[:, 20:] > 0
        assert known.mean() > 0.9
        assert abs(np.median(depth[:, 20:][known]) - 4) < 0.05
        assert not triangulated_depth(pictures[0], here, [], camera, SfmConfig()).any()
        close = there.copy()
        close[0, 3] = 0.01
        assert not triangulated_depth(pictures[0], here, [(pictures[0], close)], camera, SfmConfig()).any()

    @pytest.mark.parametrize("fields", [{"overlap": 0}, {"focal": -1.0}, {"min_registered": 0}, {"min_angle": 0}])
    def test_nonsense_is_refused(self, fields):
        with pytest.raises(ConfigError):
            SfmConfig(**fields)
