"""Packed data sets: the same samples as the folder, damage named, and nothing left half done."""

import builtins
import itertools
import json
import multiprocessing
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
from dataclasses import fields
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

import cv2
import lmdb
import numpy as np
import pytest
import torch
from shared_data import shared

from fastv2v.cli import main
from fastv2v.commands.parts import has_test_part
from fastv2v.data import packed
from fastv2v.data.folder import FolderConfig, FrameReader, open_folder
from fastv2v.data.loader import ClipLoader, read_sequence
from fastv2v.data.manifest import read_manifest
from fastv2v.data.packed import PackedFiles, PackedPath, data_path, is_packed, pack_files, pack_folder
from fastv2v.data.sampling import SamplingConfig
from fastv2v.data.transforms import GeometryConfig
from fastv2v.errors import DataError, MissingExtraError

NONE = GeometryConfig(mode="none")
SAMPLING = SamplingConfig(num_frames=3, max_step=2)
SIZE = (32, 64)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, np.ndarray):
        assert cv2.imwrite(str(path), content)
    else:
        path.write_bytes(content)


def make_streets(root, lengths=(5, 4), phase="train", layout="vid2vid"):
    rng = np.random.default_rng(len(phase))
    for s, length in enumerate(lengths):
        for i in range(length):
            pictures = {
                "A": rng.integers(0, 4, SIZE, dtype=np.uint8),
                "B": rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8),
                "inst": rng.integers(0, 30000, SIZE, dtype=np.uint16),
            }
            for suffix, picture in pictures.items():
                folder = f"{phase}_{suffix}" if layout == "vid2vid" else f"{suffix.capitalize()}/{phase}"
                write(root / folder / f"town/seq{s}/{i}.png", picture)
    return root


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    """Labels, instances, flow and classes, for training and testing."""
    root = make_streets(tmp_path_factory.mktemp("streets"))
    make_streets(root, (3,), "test")
    for s, length in enumerate((5, 4)):
        for i in range(1, length):
            folder = root / f"train_flow/town/seq{s}"
            folder.mkdir(parents=True, exist_ok=True)
            np.savez(folder / f"{i}.npz", to_previous=np.full((*SIZE, 2), i, np.float32))
    classes = [{"name": f"c{i}", "color": [i, i, i]} for i in range(4)]
    (root / "classes.json").write_text(json.dumps({"schema": 1, "classes": classes}))
    (root / "train_B/town/seq0/notes.txt").write_text("fine weather")
    (root / "train_B/town/seq0/.hidden").write_text("")
    (root / "weights.bin").write_bytes(b"not of the data set")
    return root


@pytest.fixture(scope="module")
def streets_lmdb(streets, tmp_path_factory):
    target = tmp_path_factory.mktemp("packed") / "streets.lmdb"
    pack_folder(streets, target)
    return target


@pytest.fixture
def copied(streets_lmdb, tmp_path):
    """A packed data set to damage."""
    return shutil.copytree(streets_lmdb, tmp_path / "copied.lmdb")


def opened(root, **settings):
    return open_folder(FolderConfig(**{"root": root, "geometry": NONE, **settings}))


def take(folder, num=4, **settings):
    loader = ClipLoader(folder, SAMPLING, **{"batch_size": 2, "seed": 3, **settings})
    batches = loader.batches()
    try:
        return list(itertools.islice(batches, num))
    finally:
        batches.close()


def assert_same_clip(a, b):
    assert a.info == b.info
    for name in (field.name for field in fields(a)):
        first, second = getattr(a, name), getattr(b, name)
        assert torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second, name


def assert_same_batches(first, second):
    for a, b in zip(first, second, strict=True):
        assert_same_clip(a, b)


def edit(root, change):
    """Change a database behind our back."""
    env = lmdb.open(str(root), max_dbs=2, lock=False, map_size=2**26)
    with env.begin(write=True) as transaction:
        change(transaction, env.open_db(b"files", txn=transaction), env.open_db(b"checks", txn=transaction))
    env.close()


def refuse(message, call, *args, **settings):
    with pytest.raises(DataError, match=message) as error:
        call(*args, **settings)
    assert "\n" not in str(error.value)


class TestSameSamples:
    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_training_batches_with_instances(self, streets, streets_lmdb, num_workers):
        plain = take(opened(streets, use_instances=True))
        assert plain[0].instances is not None
        assert_same_batches(plain, take(opened(streets_lmdb, use_instances=True), num_workers=num_workers))

    def test_workers_that_are_spawned(self, streets, streets_lmdb):
        spawned = take(opened(streets_lmdb), 2, num_workers=1, start_method="spawn")
        assert_same_batches(take(opened(streets), 2), spawned)

    def test_flow_files(self, streets, streets_lmdb):
        clips = [read_sequence(opened(root, flow_files=True), 0) for root in (streets, streets_lmdb)]
        assert clips[0].flow is not None
        assert_same_clip(*clips)

    def test_testing_part_and_counted_classes(self, streets, streets_lmdb, tmp_path):
        for phase in ("train", "test"):
            folders = [opened(root, phase=phase) for root in (streets, streets_lmdb)]
            assert_same_clip(*(read_sequence(folder, 0) for folder in folders))
        assert folders[0].classes == folders[1].classes
        make_streets(tmp_path / "plain")
        pack_folder(tmp_path / "plain", tmp_path / "plain.lmdb")
        assert opened(tmp_path / "plain.lmdb").spec.num_classes == 4

    def test_fast_vid2vid_layout(self, tmp_path):
        make_streets(tmp_path / "plain", layout="Fast-Vid2Vid")
        make_streets(tmp_path / "plain", (2,), "test", layout="Fast-Vid2Vid")
        summary = pack_folder(tmp_path / "plain", tmp_path / "plain.lmdb", phases=("train",))
        assert (summary.num_files, summary.num_sequences) == (27, 2)
        roots = tmp_path / "plain", tmp_path / "plain.lmdb"
        assert_same_batches(*(take(opened(root, use_instances=True)) for root in roots))
        assert [has_test_part(FolderConfig(root=root)) for root in roots] == [True, False]

    def test_faces(self, tmp_path):
        landmarks = np.random.default_rng(0).integers(20, 44, (68, 2))
        for i in range(4):
            write(tmp_path / f"plain/train_img/s/{i}.jpg", np.full((64, 64, 3), 40 * i, np.uint8))
            text = "\n".join(f"{x},{y}" for x, y in landmarks)
            write(tmp_path / f"plain/train_keypoints/s/{i}.txt", b"" if i == 2 else text.encode())
        pack_folder(tmp_path / "plain", tmp_path / "plain.lmdb")
        folders = [opened(tmp_path / n, condition="face", missing="hold") for n in ("plain", "plain.lmdb")]
        assert_same_batches(*(take(folder) for folder in folders))
        refuse("no usable landmark file", opened, tmp_path / "plain.lmdb", condition="face")

    @pytest.mark.parametrize(("name", "condition"), [("face_vid2vid", "face"), ("pose_vid2vid", "pose")])
    def test_published_examples(self, name, condition, tmp_path):
        source = shared(name)
        pack_folder(source, tmp_path / "real.lmdb")
        folders = [
            opened(root, condition=condition, geometry=GeometryConfig(load_size=256))
            for root in (source, tmp_path / "real.lmdb")
        ]
        assert folders[0].lengths == folders[1].lengths
        assert_same_clip(*(read_sequence(folder, 0, 0, 2) for folder in folders))

    def test_gaps_are_found_alike(self, tmp_path):
        root = make_streets(tmp_path / "plain")
        (root / "train_A/town/seq0/2.png").unlink()
        (root / "train_A/empty").mkdir()
        pack_folder(root, tmp_path / "plain.lmdb")
        for place in (root, tmp_path / "plain.lmdb"):
            refuse("sequence 'empty' is empty", opened, place)
        (root / "train_A/empty").rmdir()
        pack_folder(root, tmp_path / "plain.lmdb", overwrite=True)
        for place in (root, tmp_path / "plain.lmdb"):
            refuse(r"1 frames have no label map \(2\)", opened, place)

    def test_linked_folders_are_packed_and_circles_are_not(self, tmp_path):
        real = make_streets(tmp_path / "real")
        for part in ("train_A", "train_B"):
            (tmp_path / "set" / part).mkdir(parents=True)
            (tmp_path / "set" / part / "linked").symlink_to(real / part / "town")
            (tmp_path / "set" / part / "circle").symlink_to(tmp_path / "set" / part)
        pack_folder(tmp_path / "set", tmp_path / "set.lmdb")
        assert [s.name for s in opened(tmp_path / "set.lmdb").sequences] == ["linked/seq0", "linked/seq1"]


class TestPaths:
    def test_what_is_packed(self, streets, streets_lmdb):
        wanted = {path.relative_to(streets).as_posix() for path in streets.rglob("*") if path.is_file()}
        wanted -= {"weights.bin", "train_B/town/seq0/.hidden"}
        paths = PackedFiles(streets_lmdb).paths()
        assert {str(path) for path in paths} == wanted
        assert list(paths) == sorted(paths)
        assert all(PackedFiles(streets_lmdb).read_bytes(p) == (streets / p).read_bytes() for p in paths)
        assert PackedFiles(streets_lmdb).record["num_files"] == len(wanted)
        assert sorted(p.name for p in streets_lmdb.iterdir()) == ["data.mdb"]

    def test_a_path_behaves_like_one_on_disk(self, streets, streets_lmdb):
        disk, path = streets, data_path(streets_lmdb)
        assert isinstance(path, PackedPath)
        for below in ("", "classes.json", "train_B", "train_B/town", "train_B/town/seq0/0.png", "train", "nothing/x"):
            there, here = disk / below, path / below
            assert isinstance(here, PackedPath)
            assert (here.is_file(), here.is_dir(), here.exists()) == (there.is_file(), there.is_dir(), there.exists())
        for below in ("train_B", "train_B/town/seq1"):
            assert sorted(p.name for p in (path / below).iterdir()) == sorted(os.listdir(disk / below))
        assert {p.name for p in path.iterdir()} == {p.name for p in disk.iterdir()} - {"weights.bin"}
        notes = path / "train_B" / "town/seq0/notes.txt"
        assert notes.read_text() == "fine weather"
        with notes.open("rb") as file:
            assert file.read() == b"fine weather"
        with notes.open() as file:
            assert file.readline() == "fine weather"
        assert notes.relative_to(path).as_posix() == "train_B/town/seq0/notes.txt"
        assert notes.parent.parent.is_dir()
        assert str(notes) == f"{streets_lmdb}/train_B/town/seq0/notes.txt"

    def test_it_can_be_pickled_and_compared(self, streets_lmdb):
        path = data_path(streets_lmdb) / "classes.json"
        again = pickle.loads(pickle.dumps(path))
        assert again == path == streets_lmdb / "classes.json"
        assert again.read_bytes() == path.read_bytes()
        files = pickle.loads(pickle.dumps(PackedFiles(streets_lmdb)))
        assert files.read_bytes("classes.json") == path.read_bytes()

    def test_relative_and_linked_roots_share_one_database(self, streets_lmdb, tmp_path, monkeypatch):
        (tmp_path / "link.lmdb").symlink_to(streets_lmdb)
        monkeypatch.chdir(streets_lmdb.parent)
        for root in (streets_lmdb, Path("streets.lmdb"), tmp_path / "link.lmdb"):
            assert (data_path(root) / "classes.json").is_file()

    def test_nothing_is_written_and_what_is_missing_is_named(self, streets_lmdb):
        path = data_path(streets_lmdb)
        with pytest.raises(OSError, match="read-only"):
            (path / "new.txt").write_text("new")
        with pytest.raises(NotADirectoryError, match=r"classes\.json"):
            list((path / "classes.json").iterdir())
        refuse(r"town/9\.png: there is no such file", (path / "town/9.png").read_bytes)

    def test_a_folder_stays_an_ordinary_path(self, tmp_path):
        assert type(data_path(tmp_path)) is type(tmp_path)
        assert not is_packed(tmp_path)

    def test_data_set_file_inside(self, streets, tmp_path):
        manifest = {"train": [{"name": "s", "frames": "train_B/town/seq0", "labels": "train_A/town/seq0"}]}
        root = shutil.copytree(streets, tmp_path / "plain")
        (root / "split.json").write_text(json.dumps(manifest))
        pack_folder(root, tmp_path / "plain.lmdb")
        assert read_manifest(data_path(tmp_path / "plain.lmdb") / "split.json")["train"][0]["name"] == "s"

    def test_needs_no_torch(self):
        code = "import sys, fastv2v.data.packed; sys.exit('torch' in sys.modules or 'lmdb' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0


def read_all(root, results):
    files = PackedFiles(root)
    results.put(sum(len(files.read_bytes(path)) for path in files.paths()))


class TestProcesses:
    def test_four_processes_read_at_once(self, streets_lmdb):
        total = PackedFiles(streets_lmdb).record["num_bytes"]  # so that it is open here before the fork
        context = multiprocessing.get_context("fork")
        results = context.Queue()
        readers = [context.Process(target=read_all, args=(streets_lmdb, results)) for _ in range(4)]
        for reader in readers:
            reader.start()
        assert [results.get(timeout=60) for _ in readers] == [total] * 4
        for reader in readers:
            reader.join()
        assert PackedFiles(streets_lmdb).read_bytes("classes.json")  # a child that closed its copy has not closed ours

    def test_closed_and_opened_again(self, streets_lmdb):
        files = PackedFiles(streets_lmdb)
        first = files.read_bytes("classes.json")
        files.close()
        files.close()
        assert files.read_bytes("classes.json") == first

    def test_a_data_set_that_was_replaced_is_read_anew(self, copied, tmp_path):
        assert (data_path(copied) / "classes.json").is_file()
        (tmp_path / "a.txt").write_text("new")
        pack_files({"a.txt": tmp_path / "a.txt"}, tmp_path / "other.lmdb", record={})
        os.replace(tmp_path / "other.lmdb/data.mdb", copied / "data.mdb")
        assert [p.name for p in data_path(copied).iterdir()] == ["a.txt"]


class TestDamage:
    def test_a_flipped_byte_is_named(self, copied, streets):
        content = (streets / "train_B/town/seq0/3.png").read_bytes()
        stored = bytearray((copied / "data.mdb").read_bytes())
        where = stored.index(content) + len(content) // 2
        stored[where] ^= 1
        (copied / "data.mdb").write_bytes(stored)
        folder = opened(copied)
        refuse(r"train_B/town/seq0/3\.png: this packed file is damaged", read_sequence, folder, 0)
        refuse(r"3\.png: this packed file is damaged", take, folder, 20, num_workers=2)
        assert read_sequence(folder, 1).num_frames == 4

    def test_wrong_checks_and_missing_bytes_are_named(self, copied):
        def change(transaction, files, checks):
            size = len(transaction.get(b"train_B/town/seq0/0.png", db=files))
            transaction.put(b"train_B/town/seq0/0.png", struct.pack("<QI", size, 1), db=checks)
            transaction.put(b"train_B/town/seq0/1.png", b"short", db=checks)
            transaction.delete(b"train_B/town/seq0/2.png", db=files)
            transaction.delete(b"train_B/town/seq0/3.png", db=checks)

        edit(copied, change)
        files = PackedFiles(copied)
        for frame, what in enumerate(("is damaged", "is damaged", "bytes of this packed file are missing", "no such")):
            refuse(rf"seq0/{frame}\.png: .*{what}", files.read_bytes, f"train_B/town/seq0/{frame}.png")

    @pytest.mark.parametrize(
        ("keep", "message"), [(0.5, "cut short"), (0.01, "no LMDB database"), (0, "is empty; copy it again or pack")]
    )
    def test_a_file_cut_short(self, copied, keep, message):
        size = (copied / "data.mdb").stat().st_size
        os.truncate(copied / "data.mdb", int(size * keep))
        refuse(message, opened, copied)
        refuse(message, opened, copied)  # the first attempt leaves nothing open

    def test_a_damaged_head(self, copied):
        with (copied / "data.mdb").open("r+b") as file:
            file.write(bytes(8192))
        refuse("no LMDB database", opened, copied)

    def test_foreign_folders(self, tmp_path):
        refuse("no packed data set", PackedFiles(tmp_path).paths)
        (tmp_path / "data.mdb").write_bytes(os.urandom(20000))
        refuse("no LMDB database", opened, tmp_path)
        (tmp_path / "data.mdb").unlink()
        edit(tmp_path, lambda transaction, files, checks: transaction.put(b"a", b"b"))
        refuse("of another program", opened, tmp_path)

    @pytest.mark.parametrize(("record", "message"), [(b"{", "is damaged"), (b'{"schema": 9}', "schema 1")])
    def test_other_records(self, copied, record, message):
        edit(copied, lambda transaction, files, checks: transaction.put(b"fastv2v-packed", record))
        refuse(message, opened, copied)

    def test_missing_tables(self, copied):
        edit(copied, lambda transaction, files, checks: transaction.drop(checks))
        refuse("damaged", opened, copied)

    def test_a_data_set_that_went_away(self, copied):
        path = data_path(copied) / "classes.json"
        shutil.rmtree(copied)
        packed._files_around.cache_clear()
        refuse("is gone", path.read_bytes)


class TestPacking:
    def test_progress_and_summary(self, streets, tmp_path):
        steps = []
        summary = pack_folder(streets, tmp_path / "a.lmdb", progress=lambda done, total: steps.append((done, total)))
        num = summary.num_files
        assert steps == [(i, 2 * num) for i in range(1, 2 * num + 1)]
        files = PackedFiles(tmp_path / "a.lmdb")
        assert num == len(files.paths()) == 12 * 3 + 7 + 2
        assert summary.num_bytes == sum(len(files.read_bytes(path)) for path in files.paths())
        assert summary.packed_bytes == (tmp_path / "a.lmdb/data.mdb").stat().st_size
        assert summary.num_sequences == 3
        assert files.record["source"] == streets.name
        assert files.record["folders"] == [
            "train_A",
            "train_B",
            "train_flow",
            "train_inst",
            "test_A",
            "test_B",
            "test_inst",
        ]

    def test_small_batches_in_a_map_that_must_grow(self, streets, tmp_path, monkeypatch):
        monkeypatch.setattr(packed, "_BATCH_BYTES", 16384)
        pack_folder(streets, tmp_path / "a.lmdb")
        assert_same_batches(take(opened(streets)), take(opened(tmp_path / "a.lmdb")))

    def test_no_target_is_replaced_unasked(self, streets, tmp_path):
        target = tmp_path / "a.lmdb"
        pack_folder(streets, target)
        before = (target / "data.mdb").read_bytes()
        refuse("exists; .*--overwrite", pack_folder, streets, target)
        assert (target / "data.mdb").read_bytes() == before
        assert opened(target).lengths == (5, 4)
        other = make_streets(tmp_path / "other", (2,))
        pack_folder(other, target, overwrite=True)
        assert opened(target, num_classes=4).lengths == (2,)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a.lmdb", "other"]
        for name in ("file", "full/a.txt"):
            write(tmp_path / name, b"mine")
        for name in ("file", "full"):
            refuse("no packed data set", pack_folder, streets, tmp_path / name, overwrite=True)

    def test_nothing_to_pack(self, streets, streets_lmdb, tmp_path):
        refuse("no such data set folder", pack_folder, tmp_path / "nowhere", tmp_path / "a.lmdb")
        refuse("nothing to pack", pack_folder, tmp_path, tmp_path / "a.lmdb")
        write(tmp_path / "set.json", b'{"train": []}')
        refuse(
            "data sets listed in JSON cannot be packed; train", pack_folder, tmp_path / "set.json", tmp_path / "a.lmdb"
        )
        refuse("packed already", pack_folder, streets_lmdb, tmp_path / "a.lmdb")
        (tmp_path / "train_A").mkdir()
        refuse("nothing to pack", pack_folder, tmp_path, tmp_path / "a.lmdb")
        assert not (tmp_path / "a.lmdb").exists()

    def test_failures_leave_nothing_behind(self, streets, tmp_path, monkeypatch):
        def interrupt(done, total):
            if done == 30:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            pack_folder(streets, tmp_path / "a.lmdb", progress=interrupt)
        long = {"/".join(["f" * 100] * 6): streets / "classes.json"}
        refuse("at most 511 bytes", pack_files, long, tmp_path / "a.lmdb", record={})
        gone = {"a": streets / "classes.json", "b": tmp_path / "gone"}
        refuse(r"gone: the file cannot be read", pack_files, gone, tmp_path / "a.lmdb", record={})
        monkeypatch.setattr(packed.shutil, "disk_usage", lambda path: SimpleNamespace(free=1))
        refuse("make room", pack_folder, streets, tmp_path / "a.lmdb")
        assert list(tmp_path.iterdir()) == []

    def test_a_disk_that_fills_up(self, streets, tmp_path):
        code = (
            "import resource, signal, sys; from pathlib import Path; from fastv2v.data.packed import pack_folder\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (60000, 60000))\n"
            "pack_folder(Path(sys.argv[1]), Path(sys.argv[2]))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, streets, tmp_path / "a.lmdb"],
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
        )
        assert re.search(r"DataError: .*a\.lmdb cannot be written .*free space", done.stderr)
        assert list(tmp_path.iterdir()) == []

    def test_a_damaged_copy_is_noticed_before_it_appears(self, streets, tmp_path, monkeypatch):
        put = packed._put

        def spoil(lmdb, env, tables, batch):
            put(lmdb, env, tables, batch)
            with env.begin(write=True) as transaction:
                transaction.put(b"classes.json", b"{}", db=tables[0])

        monkeypatch.setattr(packed, "_put", spoil)
        refuse(r"classes\.json: this packed file is damaged", pack_folder, streets, tmp_path / "a.lmdb")
        assert list(tmp_path.iterdir()) == []

    def test_any_keys(self, tmp_path):
        (tmp_path / "é b.txt").write_text("x")
        pack_files({"ünpaired/é b.txt": tmp_path / "é b.txt", "empty/": None}, tmp_path / "a.lmdb", record={"a": 1})
        files = PackedFiles(tmp_path / "a.lmdb")
        assert files.paths() == (PurePosixPath("ünpaired/é b.txt"),)
        assert files.list_directory() == ((), ("empty", "ünpaired"))
        assert files.list_directory("empty") == files.list_directory("nowhere") == ((), ())
        assert files.record["a"] == 1

    def test_without_lmdb(self, streets, streets_lmdb, tmp_path, monkeypatch):
        real = builtins.__import__

        def blocked(name, *args, **settings):
            if name == "lmdb":
                raise ModuleNotFoundError(name)
            return real(name, *args, **settings)

        monkeypatch.setattr(builtins, "__import__", blocked)
        for call in (lambda: pack_folder(streets, tmp_path / "a.lmdb"), lambda: opened(streets_lmdb)):
            with pytest.raises(MissingExtraError, match=r"pip install \"fastv2v\[lmdb\]\""):
                call()


class TestCommand:
    def test_packs_and_reports(self, streets, tmp_path, capsys):
        assert main(["pack", "--data", str(streets), "--out", str(tmp_path / "a.lmdb")]) == 0
        lines = capsys.readouterr().out.splitlines()
        report = json.loads(lines[-1])
        assert (report["num_files"], report["num_sequences"]) == (45, 3)
        assert report["target"] == str(tmp_path / "a.lmdb")
        assert any(line.split() == ["files", "45"] for line in lines)
        assert main(["pack", "--data", str(streets), "--out", str(tmp_path / "a.lmdb")]) == 2
        assert "--overwrite" in capsys.readouterr().err
        assert main(["pack", "--data", str(streets), "--out", str(tmp_path / "a.lmdb"), "--overwrite"]) == 0
        assert opened(tmp_path / "a.lmdb").lengths == (5, 4)

    def test_another_ending_is_refused(self, streets, tmp_path, capsys):
        assert main(["pack", "--data", str(streets), "--out", str(tmp_path / "a")]) == 2
        assert "ends in .lmdb" in capsys.readouterr().err

    def test_frame_reader_reads_it(self, streets_lmdb):
        assert FrameReader(opened(streets_lmdb)).image_size(0) == SIZE
