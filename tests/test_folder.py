"""Finding sequences, classes and pictures on disk."""

import io
import json
import logging
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from fastv2v.config import from_dict, to_dict
from fastv2v.data.classes import bit_palette, colourise, generic_classes, preset_classes, read_classes
from fastv2v.data.folder import FolderConfig, FrameReader, open_folder
from fastv2v.data.images import ArrayCache, image_size, read_image, read_label
from fastv2v.data.transforms import GeometryConfig, draw_geometry
from fastv2v.errors import ConfigError, DataError

SHARED = Path(os.environ.get("FASTV2V_SHARED", Path(__file__).parents[2] / "shared"))
NONE = GeometryConfig(mode="none")


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array)
    return path


def frame(index=0, size=(32, 64)):
    return np.full((*size, 3), index % 256, dtype=np.uint8)


def label(top=2, size=(32, 64), dtype=np.uint8):
    return (np.arange(size[0] * size[1]).reshape(size) % (top + 1)).astype(dtype)


def make_folder(root, sequences=(("seq0", 6), ("seq1", 4)), phase="train", layout="vid2vid", instances=False):
    """A data set whose frame i of sequence s is grey level 10 * s + i, with label ids 0 to 2."""
    for s, (name, num) in enumerate(sequences):
        for i in range(num):
            stem = f"{name}/{i:04d}.png"
            pictures = {"A": label(), "B": frame(10 * s + i)}
            if instances:
                pictures["inst"] = label(300, dtype=np.uint16)
            for suffix, picture in pictures.items():
                folder = f"{phase}_{suffix}" if layout == "vid2vid" else f"{suffix.capitalize()}/{phase}"
                write(root / folder / stem, picture)
    return root


def grey_png(ids, bits):
    """A grey PNG of 1, 2 or 4 bits a pixel, which OpenCV does not write."""
    shifted = ids.reshape(len(ids), -1, 8 // bits).astype(int) << np.arange(8 - bits, -1, -bits)
    rows = np.insert(shifted.sum(-1).astype(np.uint8), 0, 0, axis=1)  # each row begins with the filter "none"

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", ids.shape[1], ids.shape[0], bits, 0, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows.tobytes())) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def names(folder):
    return [(sequence.name, len(sequence)) for sequence in folder.sequences]


class TestOpenFolder:
    def test_sequences_stems_and_files(self, tmp_path):
        folder = open_folder(FolderConfig(root=make_folder(tmp_path)))
        assert names(folder) == [("seq0", 6), ("seq1", 4)]
        assert folder.lengths == (6, 4)
        sequence = folder.sequences[1]
        assert sequence.stems == ("0000", "0001", "0002", "0003")
        assert sequence.files["frames"][2] == tmp_path / "train_B/seq1/0002.png"
        assert sequence.files["labels"][2] == tmp_path / "train_A/seq1/0002.png"
        assert folder.phase == "train"

    def test_fast_vid2vid_layout(self, tmp_path):
        make_folder(tmp_path, layout="Fast-Vid2Vid", instances=True)
        folder = open_folder(FolderConfig(root=tmp_path, use_instances=True))
        assert names(folder) == [("seq0", 6), ("seq1", 4)]
        assert folder.sequences[0].files["instances"][0] == tmp_path / "Inst/train/seq0/0000.png"

    def test_nested_and_flat_sequences(self, tmp_path):
        make_folder(tmp_path, (("town/b", 2), ("town/a", 1), (".", 3)))
        assert names(open_folder(FolderConfig(root=tmp_path))) == [(".", 3), ("town/a", 1), ("town/b", 2)]

    def test_files_are_matched_by_stem_whatever_their_format(self, tmp_path):
        for stem in ("a", "b"):
            write(tmp_path / f"train_A/s/{stem}.PNG", label())
            write(tmp_path / f"train_B/s/{stem}.jpeg", frame())
        (tmp_path / "train_B/s/._a.png").write_bytes(b"not ours")
        (tmp_path / "train_B/s/notes.txt").write_text("not a picture")
        assert names(open_folder(FolderConfig(root=tmp_path))) == [("s", 2)]

    def test_unpadded_numbers_are_in_the_order_of_time(self, tmp_path):
        for i in (1, 2, 10):
            write(tmp_path / f"train_A/s/frame_{i}.png", label())
            write(tmp_path / f"train_B/s/frame_{i}.png", frame())
        assert open_folder(FolderConfig(root=tmp_path)).sequences[0].stems == ("frame_1", "frame_2", "frame_10")

    def test_linked_folders_are_followed_and_circles_are_not(self, tmp_path):
        real = make_folder(tmp_path / "real", (("s", 2),))
        for part in ("train_A", "train_B"):
            (tmp_path / "set" / part).mkdir(parents=True)
            (tmp_path / "set" / part / "linked").symlink_to(real / part / "s")
            (tmp_path / "set" / part / "circle").symlink_to(tmp_path / "set" / part)
        assert names(open_folder(FolderConfig(root=tmp_path / "set"))) == [("linked", 2)]

    def test_rgb_conditions(self, tmp_path):
        write(tmp_path / "train_A/s/0.png", frame())
        write(tmp_path / "train_B/s/0.png", frame())
        folder = open_folder(FolderConfig(root=tmp_path, condition="rgb"))
        assert (folder.spec.kind, folder.spec.channels) == ("maps", 3)
        assert folder.palette.shape == (0, 3)
        assert set(folder.sequences[0].files) == {"frames", "maps"}

    def test_needs_no_torch(self):
        code = "import sys, fastv2v.data.folder, fastv2v.data.sampling; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0

    def test_config_survives_json(self, tmp_path):
        config = FolderConfig(root=tmp_path, geometry=GeometryConfig(mode="exact", size=(128, 256)))
        assert from_dict(FolderConfig, json.loads(json.dumps(to_dict(config)))) == config


class TestRefusals:
    def refuse(self, root, message, **fields):
        with pytest.raises(DataError, match=message) as error:
            open_folder(FolderConfig(root=root, **fields))
        assert "\n" not in str(error.value)

    def test_no_root(self, tmp_path):
        self.refuse(tmp_path / "nowhere", "nowhere: there is no such data set folder")

    def test_missing_folders_name_the_convention(self, tmp_path):
        self.refuse(
            tmp_path, r"train_B and train_A are missing; looked for train_B and train_A \(or B/train and A/train\)"
        )
        (tmp_path / "train_A").mkdir()
        self.refuse(tmp_path, "the folder train_B is missing")

    def test_missing_instances(self, tmp_path):
        make_folder(tmp_path)
        self.refuse(tmp_path, "the folder train_inst is missing", use_instances=True)
        write(tmp_path / "train_inst/seq0/0000.png", label())
        self.refuse(
            tmp_path,
            r"in sequence 'seq0' 5 frames and label maps have no instance map \(0001, 0002, 0003, \.\.\.\)",
            use_instances=True,
        )

    def test_frames_without_labels_and_labels_without_frames(self, tmp_path):
        make_folder(tmp_path)
        (tmp_path / "train_A/seq1/0001.png").unlink()
        (tmp_path / "train_A/seq1/0003.png").unlink()
        self.refuse(tmp_path, r"in sequence 'seq1' 2 frames have no label map \(0001, 0003\)")
        (tmp_path / "train_B/seq1/0000.png").unlink()
        self.refuse(tmp_path, r"1 label maps have no frame \(0000\), and 2 frames have no label map")

    def test_sequence_of_one_modality(self, tmp_path):
        make_folder(tmp_path)
        shutil.rmtree(tmp_path / "train_B/seq1")
        self.refuse(tmp_path, "in sequence 'seq1' 4 label maps have no frame")

    def test_empty_sequence(self, tmp_path):
        make_folder(tmp_path)
        (tmp_path / "train_A/seq2").mkdir()
        (tmp_path / "train_B/seq2").mkdir()
        self.refuse(tmp_path, "sequence 'seq2' is empty")

    def test_no_sequences(self, tmp_path):
        (tmp_path / "train_A").mkdir()
        (tmp_path / "train_B").mkdir()
        self.refuse(tmp_path, "no sequence was found")

    def test_one_stem_twice(self, tmp_path):
        make_folder(tmp_path)
        write(tmp_path / "train_B/seq0/0000.jpg", frame())
        self.refuse(tmp_path, "0000.png and 0000.jpg have the same stem")

    def test_nothing_to_test_on(self, tmp_path):
        self.refuse(
            make_folder(tmp_path), "nothing to test on; looked for test_B and test_A .* set test_tail", phase="test"
        )

    def test_test_folder_that_is_half_there(self, tmp_path):
        make_folder(tmp_path)
        (tmp_path / "test_A").mkdir()
        self.refuse(tmp_path, "the folder test_B is missing", phase="test", test_tail=2)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"phase": "val"}, "phase is 'train' or 'test'"),
            ({"condition": "depth"}, "condition is"),
            ({"classes": "kitti"}, "unknown class preset 'kitti'; there are camvid, cityscapes"),
            ({"num_classes": 0}, "num_classes"),
            ({"ignore_id": -1}, "ignore_id"),
            ({"test_tail": -1}, "test_tail"),
            ({"condition": "rgb", "num_classes": 3, "use_instances": True}, "num_classes and use_instances belong to"),
            ({"phase": "test", "geometry": GeometryConfig(mode="randomScaleWidth")}, "must not be"),
        ],
    )
    def test_config_nonsense(self, fields, message):
        with pytest.raises(ConfigError, match=message):
            FolderConfig(root=Path("x"), **fields)


class TestHoldOut:
    def test_tail_frames_are_in_one_phase_only(self, tmp_path):
        make_folder(tmp_path, (("a", 6), ("b", 9)))
        train, test = (open_folder(FolderConfig(root=tmp_path, phase=p, test_tail=2)) for p in ("train", "test"))
        assert names(train) == [("a", 4), ("b", 7)]
        assert names(test) == [("a", 2), ("b", 2)]
        for kept, held in zip(train.sequences, test.sequences, strict=True):
            assert kept.stems[-1] < held.stems[0]
            assert not {f for m in kept.files.values() for f in m} & {f for m in held.files.values() for f in m}
        assert train.spec == test.spec

    def test_short_sequences_are_held_out_whole(self, tmp_path, caplog):
        make_folder(tmp_path, (("a", 6), ("b", 2)))
        assert names(open_folder(FolderConfig(root=tmp_path, test_tail=2))) == [("a", 4)]
        assert "1 of 2 sequences are held out whole" in caplog.text
        assert names(open_folder(FolderConfig(root=tmp_path, phase="test", test_tail=2))) == [("a", 2), ("b", 2)]

    def test_holding_out_everything_is_refused(self, tmp_path):
        with pytest.raises(DataError, match=r"test_tail \(9\) holds out every frame"):
            open_folder(FolderConfig(root=make_folder(tmp_path), test_tail=9))

    def test_a_test_folder_wins_over_the_tail(self, tmp_path, caplog):
        make_folder(tmp_path)
        make_folder(tmp_path, (("other", 3),), phase="test")
        with caplog.at_level(logging.INFO):
            assert names(open_folder(FolderConfig(root=tmp_path, test_tail=2))) == [("seq0", 6), ("seq1", 4)]
        assert "test_tail is not used" in caplog.text
        assert names(open_folder(FolderConfig(root=tmp_path, phase="test", test_tail=2))) == [("other", 3)]


class TestClasses:
    def table(self, root, classes, **extra):
        (root / "classes.json").write_text(json.dumps({"schema": 1, "classes": classes, **extra}))

    def test_own_file_first(self, tmp_path):
        make_folder(tmp_path)
        self.table(tmp_path, [{"name": n, "color": [i, 2 * i, 255]} for i, n in enumerate(("road", "car", "sky"))])
        folder = open_folder(FolderConfig(root=tmp_path))
        assert folder.spec.class_names == ("road", "car", "sky")
        assert folder.palette.tolist() == [[0, 0, 255], [1, 2, 255], [2, 4, 255]]

    def test_then_the_preset(self, tmp_path):
        folder = open_folder(FolderConfig(root=make_folder(tmp_path), classes="camvid"))
        assert folder.spec.class_names[:3] == ("Sky", "Building", "Pole")
        assert folder.spec.num_classes == 12

    def test_then_the_number_given(self, tmp_path):
        folder = open_folder(FolderConfig(root=make_folder(tmp_path), num_classes=5))
        assert folder.spec.class_names == ("class_0", "class_1", "class_2", "class_3", "class_4")

    def test_then_the_highest_id_for_training_in_both_phases(self, tmp_path):
        make_folder(tmp_path)
        write(tmp_path / "train_A/seq1/0003.png", label(6))
        for phase in ("train", "test"):
            assert open_folder(FolderConfig(root=tmp_path, phase=phase, test_tail=1)).spec.num_classes == 7

    def test_an_ignored_id_is_no_class(self, tmp_path):
        make_folder(tmp_path)
        ids = label(2)
        ids[0, 0] = 255
        write(tmp_path / "train_A/seq0/0000.png", ids)
        assert open_folder(FolderConfig(root=tmp_path, ignore_id=255)).spec.num_classes == 3

    def test_very_many_classes_are_mentioned(self, tmp_path, caplog):
        make_folder(tmp_path)
        ids = label(2, dtype=np.uint16)
        ids[0, 0] = 299
        write(tmp_path / "train_A/seq0/0000.png", ids)
        assert open_folder(FolderConfig(root=tmp_path)).spec.num_classes == 300
        assert "the highest label id" in caplog.text

    def test_counting_needs_training_labels(self, tmp_path):
        make_folder(tmp_path, phase="test")
        with pytest.raises(DataError, match="no label maps for training to count classes in; set num_classes"):
            open_folder(FolderConfig(root=tmp_path, phase="test"))
        assert open_folder(FolderConfig(root=tmp_path, phase="test", num_classes=3)).spec.num_classes == 3

    def test_contradictions_are_refused(self, tmp_path):
        make_folder(tmp_path)
        with pytest.raises(ConfigError, match="num_classes is 19 and the preset has 35"):
            open_folder(FolderConfig(root=tmp_path, classes="cityscapes", num_classes=19))
        self.table(tmp_path, [{"name": "road", "color": [1, 2, 3]}])
        with pytest.raises(ConfigError, match=r"num_classes is 2 and classes\.json has 1"):
            open_folder(FolderConfig(root=tmp_path, num_classes=2))
        with pytest.raises(ConfigError, match="set classes to None"):
            open_folder(FolderConfig(root=tmp_path, classes="camvid"))

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "not a readable JSON"),
            ("[]", '"schema": 1'),
            ('{"schema": 2, "classes": []}', '"schema": 1'),
            ('{"schema": 1}', 'list under "classes"'),
            ('{"schema": 1, "classes": []}', "at least one class"),
            ('{"schema": 1, "classes": [{"name": "a", "color": [0, 0, 256]}]}', "class 0 is not"),
            ('{"schema": 1, "classes": [{"name": "a", "color": [0, 0, true]}]}', "class 0 is not"),
            ('{"schema": 1, "classes": [{"color": [0, 0, 0]}]}', "class 0 is not"),
            (
                json.dumps({"schema": 1, "classes": [{"name": "a", "color": [0, 0, 0]}] * 2}),
                "'a' occurs more than once",
            ),
        ],
    )
    def test_damaged_tables(self, tmp_path, text, message):
        (tmp_path / "classes.json").write_text(text)
        with pytest.raises(DataError, match=message) as error:
            read_classes(tmp_path)
        assert "classes.json" in str(error.value)

    def test_presets(self):
        cityscapes = preset_classes("cityscapes")
        assert (len(cityscapes.names), len(preset_classes("camvid").names)) == (35, 12)
        assert {cityscapes.names[i]: cityscapes.colours[i] for i in (7, 23, 26, 33)} == {
            "road": (128, 64, 128),
            "sky": (70, 130, 180),
            "car": (0, 0, 142),
            "bicycle": (119, 11, 32),
        }

    def test_the_twenty_classes_of_cityscapes(self):
        table = preset_classes("cityscapes20")
        assert ",".join(table.names) == (
            "road,sidewalk,building,wall,fence,pole,traffic light,traffic sign,vegetation,terrain,sky,person,rider,car,"
            "truck,bus,train,motorcycle,bicycle,unlabeled"
        )
        assert table.colours[5:7] == ((153, 153, 153), (250, 170, 30))
        assert table.colours[18:] == ((119, 11, 32), (0, 0, 0))

    def test_bit_palette(self):
        palette = bit_palette(22)
        assert palette[[0, 1, 2, 3, 4, 7, 8, 9, 16, 21]].tolist() == [
            [0, 0, 0],
            [128, 0, 0],
            [0, 128, 0],
            [128, 128, 0],
            [0, 0, 128],
            [128, 128, 128],
            [64, 0, 0],
            [192, 0, 0],
            [0, 64, 0],
            [128, 64, 128],
        ]
        assert generic_classes(22).palette.tolist() == palette.tolist()

    def test_colourise(self):
        palette = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.uint8)
        painted = colourise(np.array([[[0, 1, 255, 2]]], dtype=np.uint8), palette)
        assert painted.tolist() == [[[[1, 2, 3], [4, 5, 6], [0, 0, 0], [0, 0, 0]]]]
        assert painted.dtype == np.uint8


class TestImages:
    def test_colours_are_rgb(self, tmp_path):
        picture = np.zeros((2, 3, 3), dtype=np.uint8)
        picture[..., 0] = 200  # blue in OpenCV's order
        np.testing.assert_array_equal(read_image(write(tmp_path / "a.png", picture))[0, 0], [0, 0, 200])

    @pytest.mark.parametrize("suffix", ["jpg", "JPEG", "png", "ppm", "bmp", "tiff"])
    def test_formats(self, tmp_path, suffix):
        assert read_image(write(tmp_path / f"a.{suffix}", frame(77))).mean() == pytest.approx(77, abs=1)

    def test_grey_16_bit_and_transparent_become_rgb(self, tmp_path):
        assert read_image(write(tmp_path / "grey.pgm", frame(9)[..., 0])).tolist() == frame(9).tolist()
        assert (read_image(write(tmp_path / "deep.png", frame(9).astype(np.uint16) * 257)) == 9).all()
        assert read_image(write(tmp_path / "clear.png", np.full((4, 4, 4), 9, np.uint8))).shape == (4, 4, 3)

    @pytest.mark.parametrize(
        ("name", "dtype", "top"),
        [("a.png", np.uint8, 255), ("a.png", np.uint16, 1999), ("a.pgm", np.uint8, 34), ("a.tiff", np.int32, 2000)],
    )
    def test_labels_keep_their_ids(self, tmp_path, name, dtype, top):
        ids = label(top, dtype=dtype)
        result = read_label(write(tmp_path / name, ids))
        np.testing.assert_array_equal(result, ids)
        assert result.dtype == dtype

    @pytest.mark.parametrize("bits", [1, 2, 4])
    def test_labels_of_few_bits_are_not_spread_over_the_greys(self, tmp_path, bits):
        ids = label(2**bits - 1)
        (tmp_path / "a.png").write_bytes(grey_png(ids, bits))
        np.testing.assert_array_equal(read_label(tmp_path / "a.png"), ids)

    def test_labels_with_colours_are_refused(self, tmp_path):
        with pytest.raises(DataError, match=r"a\.png: a label map has one channel of ids and this file has 3"):
            read_label(write(tmp_path / "a.png", frame()))

    def test_labels_with_a_palette_are_refused(self, tmp_path):
        image_module = pytest.importorskip("PIL.Image")
        picture = image_module.fromarray(label())
        picture.putpalette(list(range(9)))
        picture.save(tmp_path / "a.png")
        with pytest.raises(DataError, match=r"a\.png: a palette PNG"):
            read_label(tmp_path / "a.png")

    def test_labels_of_fractions_are_refused(self, tmp_path):
        with pytest.raises(DataError, match="holds float32"):
            read_label(write(tmp_path / "a.tiff", np.ones((4, 4), np.float32)))

    def test_missing_empty_and_foreign_files(self, tmp_path):
        with pytest.raises(DataError, match=r"a\.png: there is no such image file"):
            read_image(tmp_path / "a.png")
        (tmp_path / "a.png").touch()
        with pytest.raises(DataError, match=r"a\.png: the image file is empty"):
            read_image(tmp_path / "a.png")
        (tmp_path / "a.png").write_text("not a picture at all")
        with pytest.raises(DataError, match=r"a\.png: not a readable image"):
            read_image(tmp_path / "a.png")
        with pytest.raises(DataError, match="cannot be read"):
            read_image(tmp_path)

    @pytest.mark.parametrize("suffix", ["png", "jpg"])
    @pytest.mark.parametrize("cut", [1, 12, 300])
    def test_files_cut_short(self, tmp_path, suffix, cut):
        noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        path = write(tmp_path / f"a.{suffix}", noise)
        whole = path.read_bytes()
        for data in (whole[:-cut], whole[:-cut] + bytes(cut)):  # ends early, or was never filled
            path.write_bytes(data)
            with pytest.raises(DataError, match=rf"a\.{suffix}: the image file is cut short"):
                read_image(path)
        path.write_bytes(whole + b"trailing bytes do no harm")
        assert read_image(path).shape == (40, 40, 3)

    @pytest.mark.parametrize("keep", [8, 12, 20, 24, 25, 32])
    def test_a_png_of_nothing_but_its_ends(self, tmp_path, keep):
        write(tmp_path / "a.png", label())
        whole = (tmp_path / "a.png").read_bytes()
        (tmp_path / "a.png").write_bytes(whole[:keep] + whole[-8:])
        for read in (read_image, read_label, image_size):
            with pytest.raises(DataError, match=r"a\.png: the image file is cut short"):
                read(tmp_path / "a.png")

    @pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tiff", ".ppm"])
    def test_the_size_is_that_of_the_decoded_picture(self, tmp_path, suffix):
        path = tmp_path / f"a{suffix}"
        for size in ((3, 500), (300, 7)):
            write(path, frame(size=size))
            assert image_size(path) == size == read_image(path).shape[:2]

    def test_a_thumbnail_does_not_hide_that_a_file_is_cut_short(self, tmp_path):
        image_module = pytest.importorskip("PIL.Image")
        noise = image_module.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
        small = io.BytesIO()
        noise.resize((8, 8)).save(small, "JPEG")
        noise.save(tmp_path / "a.jpg", exif=b"Exif\0\0" + small.getvalue())
        assert read_image(tmp_path / "a.jpg").shape == (40, 40, 3)
        (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-200])
        with pytest.raises(DataError, match="cut short"):
            read_image(tmp_path / "a.jpg")


class TestFrameReader:
    def read(self, root, sequence=0, indices=(0, 1, 2), config=NONE, **fields):
        reader = FrameReader(open_folder(FolderConfig(root=root, geometry=config, **fields)))
        geometry = draw_geometry(config, reader.image_size(sequence, indices[0]), np.random.default_rng(0))
        return reader.read(sequence, indices, geometry)

    def test_arrays(self, tmp_path):
        arrays = self.read(make_folder(tmp_path, instances=True), 1, (1, 3), use_instances=True)
        assert arrays["frames"].shape == (2, 32, 64, 3)
        assert arrays["frames"][:, 0, 0, 0].tolist() == [11, 13]
        np.testing.assert_array_equal(arrays["labels"][0], label())
        np.testing.assert_array_equal(arrays["instances"][1], label(300, dtype=np.uint16))

    def test_unequal_sizes_name_both_files(self, tmp_path):
        write(make_folder(tmp_path) / "train_B/seq0/0002.png", frame(size=(32, 66)))
        with pytest.raises(DataError, match=r"seq0/0002\.png is 66x32 pixels and .*seq0/0000\.png is 64x32"):
            self.read(tmp_path)

    def test_labels_of_another_size_name_their_frame(self, tmp_path):
        write(make_folder(tmp_path) / "train_A/seq0/0001.png", label(size=(30, 64)))
        with pytest.raises(DataError, match=r"train_A/seq0/0001\.png is 64x30 .*train_B/seq0/0001\.png is 64x32"):
            self.read(tmp_path)

    def test_unknown_ids_name_the_file(self, tmp_path):
        with pytest.raises(DataError, match=r"train_A/seq0/0000\.png: label id 2 is out of range"):
            self.read(make_folder(tmp_path), num_classes=2)

    def test_frames_and_sequences_that_are_not_there(self, tmp_path):
        make_folder(tmp_path)
        with pytest.raises(DataError, match="no frame 4 in sequence 'seq1'; it has 4"):
            self.read(tmp_path, 1, (3, 4))
        with pytest.raises(DataError, match="no sequence 2"):
            self.read(tmp_path, 2)

    @pytest.mark.parametrize("mode", ["resize", "randomScaleWidth_and_crop"])
    def test_what_was_read_is_remembered(self, tmp_path, mode):
        make_folder(tmp_path)
        config = GeometryConfig(mode=mode, load_size=96, fine_size=64)
        reader = FrameReader(open_folder(FolderConfig(root=tmp_path, geometry=config)))
        geometry = draw_geometry(config, reader.image_size(0), np.random.default_rng(0))
        first = reader.read(0, (0, 1), geometry)
        for i in (0, 1):
            (tmp_path / f"train_B/seq0/{i:04d}.png").unlink()
        np.testing.assert_array_equal(reader.read(0, (0, 1), geometry)["frames"], first["frames"])


class TestArrayCache:
    def test_drops_what_was_not_used_for_longest(self):
        cache = ArrayCache(3 / 1024)
        for key in "abc":
            cache.put(key, np.zeros(1024, np.uint8))
        cache.get("a")
        cache.put("d", np.zeros(1024, np.uint8))
        assert [cache.get(key) is not None for key in "abcd"] == [True, False, True, True]
        assert (len(cache), cache.num_bytes) == (3, 3072)

    def test_replacing_counts_once_and_too_large_is_not_kept(self):
        cache = ArrayCache(1 / 1024)
        for _ in range(3):
            cache.put("a", np.zeros(1000, np.uint8))
        assert cache.num_bytes == 1000
        cache.put("b", np.zeros(1025, np.uint8))
        assert len(cache) == 1

    def test_arrays_are_read_only(self):
        with pytest.raises(ValueError, match="read-only"):
            ArrayCache(1).put("a", np.zeros(3))[0] = 1

    def test_negative_size_is_refused(self):
        with pytest.raises(ConfigError, match="0 MB or more"):
            ArrayCache(-1)


class TestSharedData:
    def open(self, name, **fields):
        root = SHARED / "data" / name
        if not root.is_dir():
            pytest.skip(f"{root} is not here; set FASTV2V_SHARED")
        return open_folder(FolderConfig(root=root, **fields))

    def test_camvid(self):
        for phase, num in (("train", 60), ("test", 16)):
            folder = self.open("street_camvid", classes="camvid", test_tail=16, phase=phase)
            assert names(folder) == [("0016E5", num)]
        assert folder.sequences[0].stems[0] == "0016E5_08079"

    def test_cityscapes(self):
        folder = self.open("street_cityscapes", classes="cityscapes", use_instances=True)
        assert names(folder) == [(f"seq000{i}", 30) for i in range(5)]
        assert folder.spec.channels == 36
