"""``fastv2v pack --paired``: whole frames in one database, read like the folder they come from."""

import logging
import shutil

import cv2
import numpy as np
import pytest

from benchmarks import reading
from benchmarks.unprojection import Posed, alignment, mean_differences, played, warp_rows
from fastv2v.cli import main
from fastv2v.data.cameras import Camera
from fastv2v.data.packed import data_path
from fastv2v.data.registration import PosedDepth
from fastv2v.data.unproject import UnprojectConfig
from fastv2v.data.unprojection import read_unprojection, write_unprojection
from fastv2v.data.world import WorldConfig, write_world
from fastv2v.errors import ConfigError, DataError

pytest.importorskip("lmdb", reason="needs the extra 'lmdb'")
from fastv2v.data.paired import pack_paired

SIZE = (32, 64)


@pytest.fixture
def world(tmp_path):
    config = WorldConfig(size=SIZE, num_frames=4)
    return write_world(tmp_path / "world", config, train_clips=2, test_clips=1, write_points=True)


class TestSamples:
    @pytest.mark.parametrize("workers", [0, 3])
    def test_they_equal_those_of_folders_whatever_the_workers(self, world, workers):
        packed = world.parent / "p.lmdb"
        done = pack_paired(world, packed)
        assert (done.num_frames, done.num_sequences, done.num_left_out, done.num_without_points) == (12, 3, 0, 0)
        streams = [reading.loader(root, w, 3, SIZE).batches() for root, w in ((world, 0), (packed, workers))]
        for _ in range(6):
            assert reading.equal(*(next(stream) for stream in streams))

    def test_reference_files_are_stored_in_our_form(self, world):
        for path in sorted((world / "train_unprojections/clip_000").iterdir()):
            write_unprojection(path.with_suffix(".pkl"), read_unprojection(path))
            path.unlink()
        packed = world.parent / "p.lmdb"
        pack_paired(world, packed)
        assert reading.first_difference({"folders": world, "packed": packed}, 4, 3, SIZE) is None
        names = [path.name for path in (data_path(packed) / "train_unprojections/clip_000").iterdir()]
        assert names == [f"{i:06d}.npz" for i in range(4)]

    def test_only_what_belongs_to_frames_is_packed(self, world):
        pack_paired(world, world.parent / "p.lmdb")
        root = data_path(world.parent / "p.lmdb")
        names = {path.name for path in root.iterdir()}
        assert names == {
            *(f"{phase}_{kind}" for phase in ("train", "test") for kind in ("A", "B", "inst", "unprojections")),
            "classes.json",
        }

    def test_a_data_set_without_label_maps_or_points_is_packed_as_it_is(self, tmp_path):
        folder = tmp_path / "set/train_img/seq"
        folder.mkdir(parents=True)
        cv2.imwrite(str(folder / "1.png"), np.zeros((4, 4, 3), np.uint8))
        assert pack_paired(tmp_path / "set", tmp_path / "p.lmdb").num_frames == 1


class TestGaps:
    def test_a_frame_without_its_label_map_is_refused_or_left_out(self, world, caplog):
        (world / "train_A/clip_000/000001.png").unlink()
        with pytest.raises(DataError, match=r"clip_000.*000001"):
            pack_paired(world, world.parent / "p.lmdb")
        with caplog.at_level(logging.WARNING):
            done = pack_paired(world, world.parent / "p.lmdb", remove_missing=True)
        assert (done.num_frames, done.num_left_out) == (11, 1)
        assert "1 frames are left out" in caplog.text

    def test_a_sequence_may_have_no_instance_maps(self, world):
        shutil.rmtree(world / "train_inst/clip_000")
        assert pack_paired(world, world.parent / "p.lmdb").num_frames == 12
        names = [path.name for path in (data_path(world.parent / "p.lmdb") / "train_inst").iterdir()]
        assert names == ["clip_001"]
        (world / "train_inst/clip_001/000001.png").unlink()
        with pytest.raises(DataError, match=r"clip_001.*000001"):
            pack_paired(world, world.parent / "q.lmdb")

    def test_unprojections_of_another_size_are_refused(self, world):
        write_unprojection(world / "train_unprojections/clip_000/000001.npz", [np.zeros((8, 16), np.int32)])
        with pytest.raises(DataError, match=r"clip_000/000001\.npz is 16x8 pixels and its frame is 64x32"):
            pack_paired(world, world.parent / "p.lmdb")

    def test_frames_without_unprojection_are_counted(self, world, caplog):
        (world / "train_unprojections/clip_000/000001.npz").unlink()
        with caplog.at_level(logging.WARNING):
            assert pack_paired(world, world.parent / "p.lmdb").num_without_points == 1
        assert "1 have no unprojection" in caplog.text

    def test_a_damaged_unprojection_is_named_and_nothing_is_left(self, world):
        (world / "train_unprojections/clip_001/000002.npz").write_bytes(b"PK hello")
        with pytest.raises(DataError, match=r"train_unprojections/clip_001/000002\.npz"):
            pack_paired(world, world.parent / "p.lmdb")
        assert not list(world.parent.glob("*.lmdb"))

    def test_a_hostile_pickle_is_refused_by_name(self, world):
        path = world / "train_unprojections/clip_000/000000.npz"
        path.with_suffix(".pkl").write_bytes(b"\x80\x03cos\nsystem\n(X\x04\x00\x00\x00truetR.")
        path.unlink()
        with pytest.raises(DataError, match=r"clip_000/000000\.pkl.*os\.system"):
            pack_paired(world, world.parent / "p.lmdb")

    def test_a_damaged_entry_of_the_database_is_named(self, world):
        packed = world.parent / "p.lmdb"
        pack_paired(world, packed)
        stored = (data_path(packed) / "train_unprojections/clip_000/000001.npz").read_bytes()
        content = bytearray((packed / "data.mdb").read_bytes())
        content[content.find(stored[200:400]) + 50] ^= 0xFF
        (packed / "copy").mkdir()
        (packed / "copy/data.mdb").write_bytes(content)
        with pytest.raises(DataError, match=r"000001\.npz: this packed file is damaged"):
            read_unprojection(data_path(packed / "copy") / "train_unprojections/clip_000/000001.npz")

    def test_a_folder_without_frames_is_refused(self, tmp_path):
        with pytest.raises(DataError, match="nothing to pack"):
            pack_paired(tmp_path, tmp_path / "p.lmdb")
        with pytest.raises(DataError, match="no folder"):
            pack_paired(tmp_path / "none", tmp_path / "p.lmdb")


class TestVerb:
    def test_it_packs_and_says_how_much(self, world, capsys):
        assert main(["pack", "--data", str(world), "--out", str(world.parent / "p.lmdb"), "--paired"]) == 0
        assert '"num_frames": 12' in capsys.readouterr().out

    def test_remove_missing_needs_paired(self, world, capsys):
        words = ["pack", "--data", str(world), "--out", str(world.parent / "p.lmdb"), "--remove-missing"]
        assert main(words) == 2
        assert "goes with --paired" in capsys.readouterr().err


class TestBenchmark:
    def test_every_way_of_reading_gets_a_rate(self, world):
        pack_paired(world, world.parent / "p.lmdb")
        roots = {"folders": world, "paired": world.parent / "p.lmdb"}
        rows = reading.reading_rows(roots, (0,), num_clips=2, clip_frames=2, size=SIZE, repeats=1)
        assert [row["name"] for row in rows] == ["folders", "paired"]
        assert all(row["median"] > 0 for row in rows)
        assert "met" not in rows[0] and isinstance(rows[1]["met"], bool)

    @pytest.mark.parametrize(("rate", "spread", "met"), [(101, 0, True), (95, 0, True), (94, 0, False), (85, 15, True)])
    def test_a_database_must_be_as_fast_as_folders_but_for_the_spread(self, rate, spread, met):
        folders = {"name": "folders", "workers": 2, "median": 100.0, "spread": 5.0}
        other = {"name": "folders", "workers": 0, "median": 900.0, "spread": 0.0}
        packed = {"name": "packed", "workers": 2, "median": rate, "spread": spread}
        assert reading.keeps_up(packed, [other, folders, packed])["met"] is met
        assert reading.keeps_up(folders, [folders]) == {}

    def test_colours_are_told_by_the_age_of_their_painting(self, tmp_path):
        """A flat wall seen by a camera at rest: every pixel was painted in the first frame; the light rises by 10."""
        camera = Camera(np.array([[20.0, 0, 7.5], [0, 20.0, 3.5], [0, 0, 1]]))
        frames = []
        for number in range(3):
            path = tmp_path / f"{number}.png"
            cv2.imwrite(str(path), np.full((8, 16, 3), 100 + 10 * number, np.uint8))
            frames.append(Posed(str(number), path, PosedDepth(np.ones((8, 16)), camera, np.eye(4))))
        shown = list(played(frames, UnprojectConfig(source="depth")))
        assert [list(row.by_age) for row in shown] == [[1], [2]]
        assert [row.painted for row in shown] == [1, 1]
        assert mean_differences(shown, (2, 4)) == (128, pytest.approx(20, abs=0.01), pytest.approx(20, abs=0.01))
        assert mean_differences(shown)[:2] == (256, pytest.approx(15, abs=0.01))
        names = [row["name"] for row in warp_rows(frames, UnprojectConfig(source="depth"), revisit_from=2)]
        assert "painted 1 frames before, grey levels off" in names and "frames from 2 on, painted" in names

    def test_nonsense_is_refused(self):
        with pytest.raises(ConfigError):
            reading.main(repeats=0)

    def test_poses_are_compared_after_the_best_similarity(self):
        rng = np.random.default_rng(0)
        given = {}
        for i in range(6):
            left, _ = np.linalg.qr(rng.normal(size=(3, 3)))
            pose = np.eye(4)
            pose[:3, :3], pose[:3, 3] = left * np.linalg.det(left), rng.normal(size=3)
            given[str(i)] = pose
        turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        turn *= np.linalg.det(turn)
        found = {}
        for stem, pose in given.items():
            moved = pose.copy()
            moved[:3, :3], moved[:3, 3] = turn @ pose[:3, :3], 0.3 * turn @ pose[:3, 3] + (1, 2, 3)
            found[stem] = moved
        off, reach, angle = alignment(found, given)
        assert off < 1e-9 and reach > 0.5 and angle < 1e-3
        found["0"][:3, 3] += 0.03  # a tenth of a unit in the scale of the given poses
        assert 0.01 < alignment(found, given)[0] < 0.1
        with pytest.raises(DataError, match="at least 3"):
            alignment({"0": given["0"]}, given)
