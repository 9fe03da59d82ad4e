"""Features of faces: means over parts, the bank, the most similar face; and faces drawn with them."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from shared_data import shared
from torch.testing import assert_close

from fastv2v.architecture import load_trained
from fastv2v.cli import main
from fastv2v.commands.synthesize import Synthesize, data_of, to_picture
from fastv2v.data.face import crop_padded, face_crop, part_labels
from fastv2v.data.folder import FolderConfig, open_folder
from fastv2v.data.loader import read_sequence
from fastv2v.data.transforms import GeometryConfig
from fastv2v.errors import ConfigError, DataError, ShapeError
from fastv2v.nn.face_features import (
    NUM_PARTS,
    BorrowedFeatures,
    FaceBank,
    PartVectors,
    build_bank,
    encoder_digest,
    part_vectors,
    read_bank,
    read_parts,
    write_bank,
)
from fastv2v.nn.features import FeatureConfig, FeatureEncoder, instance_mean
from fastv2v.nn.single_image import SingleImageConfig
from teachers.import_weights import Imported, load_imported, save_imported
from teachers.published import Blueprint

SIZE = (96, 128)


def landmarks(index=0):
    """A round face, 32 pixels wide, whose mouth opens frame by frame."""
    turn = np.linspace(np.pi, 0, 17)
    jaw = np.stack([16 * np.cos(turn), 20 * np.sin(turn)], axis=1)
    rows = [[(-14, -4), (-10, -6), (-7, -6), (-4, -5), (-2, -4)], [(2, -4), (4, -5), (7, -6), (10, -6), (14, -4)]]
    nose = [(0, -1), (0, 2), (0, 4), (0, 7), (-3, 9), (-1, 9), (0, 10), (1, 9), (3, 9)]
    eye = np.array([(-3, 0), (-1, -2), (1, -2), (3, 0), (1, 2), (-1, 2)])
    angle = np.pi - np.arange(12) * np.pi / 6
    outer = np.stack([7 * np.cos(angle), 14 - (2 + index) * np.sin(angle)], axis=1)
    angle = np.pi - np.arange(8) * np.pi / 4
    inner = np.stack([5 * np.cos(angle), 14 - (1 + index) * np.sin(angle)], axis=1)
    eyes = [eye + np.array((x, 0)) for x in (-8, 8)]
    return np.round(np.concatenate([jaw, *map(np.array, rows), nose, *eyes, outer, inner]) + np.array((60, 40)))


def make_faces(root, count):
    """Two sequences of faces in plain colours."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        for kind in ("img", "keypoints"):
            (root / f"train_{kind}" / name).mkdir(parents=True)
        for i in range(count):
            points = landmarks(i)
            colours = rng.integers(40, 220, (NUM_PARTS, 3), dtype=np.uint8)
            frame = cv2.add(colours[part_labels(points, SIZE)], rng.integers(0, 20, (*SIZE, 3), dtype=np.uint8))
            cv2.imwrite(str(root / f"train_img/{name}/{i}.png"), frame)
            np.savetxt(root / f"train_keypoints/{name}/{i}.txt", points, fmt="%d", delimiter=",")
    return root


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    return make_faces(tmp_path_factory.mktemp("faces"), 4)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return make_faces(tmp_path_factory.mktemp("videos"), 6)


def opened(root, size=(32, 32)):
    return open_folder(FolderConfig(root=root, condition="face", geometry=GeometryConfig(mode="exact", size=size)))


def make_encoder(seed=0):
    torch.manual_seed(seed)
    encoder = FeatureEncoder(FeatureConfig(channels=3, width=4, num_downsamples=2, norm="instance"))
    for p in encoder.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return encoder.eval()


def bank_of(*images):
    """A bank of one channel; None where a part is not seen."""
    values = torch.tensor([[x or 0.0 for x in (*image, *[None] * (NUM_PARTS - len(image)))] for image in images])
    seen = torch.tensor([[x is not None for x in (*image, *[None] * (NUM_PARTS - len(image)))] for image in images])
    return FaceBank(PartVectors(values.unsqueeze(2), seen), tuple(f"s/{i}" for i in range(len(images))), "none")


class TestPartVectors:
    def test_by_hand(self):
        features = torch.tensor([[[[1.0, 3.0, 8.0]]], [[[2.0, 4.0, 6.0]]]])
        made = part_vectors(features, torch.tensor([[[0, 0, 6]], [[2, 2, 2]]], dtype=torch.uint8))
        assert made.means[:, :, 0].tolist() == [[2, 0, 0, 0, 0, 0, 8], [0, 0, 4, 0, 0, 0, 0]]
        assert made.seen.nonzero().tolist() == [[0, 0], [0, 6], [1, 2]]

    def test_painted_on_their_own_parts_they_are_instance_means(self):
        rng = torch.Generator().manual_seed(0)
        features = torch.randn(3, 4, 6, 8, generator=rng)
        parts = torch.randint(0, NUM_PARTS, (3, 6, 8), generator=rng)
        assert_close(part_vectors(features, parts).paint(parts), instance_mean(features, parts))

    def test_a_part_that_is_not_seen_is_painted_zero(self):
        painted = bank_of((5, 7)).vectors.paint(torch.tensor([[[0, 1, 2]]]))
        assert painted.tolist() == [[[[5, 7, 0]]]]

    def test_nonsense_is_refused(self):
        with pytest.raises(ShapeError, match="do not match"):
            part_vectors(torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 5, dtype=torch.uint8))
        for label in (-1, 7):
            with pytest.raises(DataError, match="0 to 6"):
                part_vectors(torch.zeros(1, 2, 1, 1), torch.full((1, 1, 1), label))


class TestNearest:
    @pytest.mark.parametrize(
        ("face", "expected"),
        [
            ((0, 0), 0),  # 1 + 16, 25 + 9 and 49
            ((5, 3), 1),  # itself
            ((4, 0), 1),  # 9 + 16, 1 + 9 and 9 + 49
            ((1,), 0),  # part 1 is not there, so that it does not count
            ((None, 3), 1),
            ((None, 5), 0),  # as far from 4 as from 6: the first
            ((9, 9, 9), 2),  # only the third face shows all three parts
            ((None, None, None, 1), 0),  # nobody shows what it shows: nothing to choose by
        ],
    )
    def test_by_hand(self, face, expected):
        bank = bank_of((1, 4), (5, 3), (7, 6.0, 50))
        assert bank.nearest(bank_of(face).vectors).tolist() == [expected]

    def test_is_the_smallest_sum_over_parts_and_channels(self):
        rng = torch.Generator().manual_seed(3)
        seen = torch.ones(6, NUM_PARTS, dtype=torch.bool)
        bank = FaceBank(PartVectors(torch.randn(6, NUM_PARTS, 4, generator=rng), seen), tuple("abcdef"), "none")
        query = PartVectors(torch.randn(2, NUM_PARTS, 4, generator=rng), seen[:2].clone())
        query.seen[1, 2:] = False
        for i, found in enumerate(bank.nearest(query).tolist()):
            sums = [
                sum(
                    (float(bank.vectors.means[n, p, c]) - float(query.means[i, p, c])) ** 2
                    for p in range(NUM_PARTS)
                    if query.seen[i, p]
                    for c in range(4)
                )
                for n in range(6)
            ]
            assert found == int(np.argmin(sums))


class TestReadParts:
    def test_crop_and_scale_as_the_frames(self, faces):
        # The box is 80 pixels; at 40 the centre of a pixel lies in the second of two.
        parts = read_parts(opened(faces, (40, 40)), 1, [2, 0])
        box = face_crop(landmarks(0), SIZE)
        for made, index in zip(parts, (2, 0), strict=True):
            whole = crop_padded(part_labels(landmarks(index), SIZE), box)
            assert whole.shape == (80, 80)
            assert np.array_equal(made.numpy(), whole[1::2, 1::2])
        assert set(parts.unique().tolist()) == set(range(NUM_PARTS))

    def test_lie_where_the_frame_shows_them(self, faces):
        folder = opened(faces, (80, 80))
        frame = read_sequence(folder, 0, 0, 1).frames[0]
        parts = read_parts(folder, 0, [0])
        for label in range(NUM_PARTS):  # plain colours, apart from the noise of the picture
            assert (frame[0][:, parts[0] == label].std(dim=1) < 0.06).all()

    def test_other_data_sets_have_none(self, tmp_path):
        for kind in ("A", "B"):
            (tmp_path / f"train_{kind}").mkdir()
            cv2.imwrite(str(tmp_path / f"train_{kind}/0.png"), np.zeros((8, 8), np.uint8))
        folder = open_folder(FolderConfig(root=tmp_path, num_classes=1))
        with pytest.raises(ConfigError, match="the condition is 'labels'"):
            read_parts(folder, 0, [0])

    def test_real_faces(self):
        folder = opened(shared("face_vid2vid"), (64, 64))
        assert set(range(6)) <= set(read_parts(folder, 0, [0, 1]).unique().tolist())


class TestBank:
    def test_has_the_parts_of_every_frame(self, faces):
        folder, encoder, told = opened(faces), make_encoder(), []
        bank = build_bank(encoder, folder, window=3, progress=lambda *at: told.append(at))
        assert bank.names == ("a/0", "a/1", "a/2", "a/3", "b/0", "b/1", "b/2", "b/3")
        assert told == [(3, 8), (4, 8), (7, 8), (8, 8)]
        assert (len(bank), bank.channels, bank.encoder) == (8, 3, encoder_digest(encoder))
        with torch.no_grad():
            features = encoder(read_sequence(folder, 1, 2, 3).frames[0])
        expected = features[0, :, read_parts(folder, 1, [2])[0] == 1].mean(dim=1)
        assert_close(bank.vectors.means[6, 1], expected)

    def test_may_leave_frames_out(self, faces):
        assert build_bank(make_encoder(), opened(faces), every=3).names == ("a/0", "a/3", "b/0", "b/3")
        with pytest.raises(ConfigError, match="at least 1"):
            build_bank(make_encoder(), opened(faces), every=0)

    def test_survives_writing(self, faces, tmp_path):
        bank = build_bank(make_encoder(), opened(faces), every=2)
        write_bank(tmp_path / "bank.npz", bank)
        again = read_bank(tmp_path / "bank.npz")
        assert (again.names, again.encoder) == (bank.names, bank.encoder)
        assert torch.equal(again.vectors.means, bank.vectors.means)
        assert torch.equal(again.vectors.seen, bank.vectors.seen)

    @pytest.mark.parametrize(
        "change",
        [
            {"means": np.zeros((2, NUM_PARTS, 2), np.float32)},
            {"means": np.zeros((1, NUM_PARTS, 1))},
            {"means": np.full((1, NUM_PARTS, 1), np.nan, np.float32)},
            {"seen": np.ones((1, NUM_PARTS), np.uint8)},
            {"seen": np.array([{}], dtype=object)},
            {"header": {"schema": 2}},
            {"header": {"names": []}},
            {"header": {"channels": "x"}},
        ],
    )
    def test_damaged_ones_are_refused(self, tmp_path, change):
        file = tmp_path / "bank.npz"
        write_bank(file, bank_of((1, 2)))
        stored = dict(np.load(file))
        header = {**json.loads(stored["header"].tobytes()), **change.pop("header", {})}
        np.savez(file, **{**stored, "header": np.frombuffer(json.dumps(header).encode(), np.uint8), **change})
        with pytest.raises(DataError, match=r"bank\.npz is no bank of faces"):
            read_bank(file)

    @pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 torn", b"\x93NUMPY"])
    def test_other_files_are_refused(self, tmp_path, content):
        if content is not None:
            (tmp_path / "bank.npz").write_bytes(content)
        with pytest.raises(DataError, match=r"bank\.npz is no bank of faces"):
            read_bank(tmp_path / "bank.npz")


class TestBorrowedFeatures:
    def test_a_face_of_the_bank_gets_its_own(self, faces):
        folder, encoder = opened(faces), make_encoder()
        bank = build_bank(encoder, folder)
        frames, parts = read_sequence(folder, 0).frames[0], read_parts(folder, 0, range(4))
        made = BorrowedFeatures(bank=bank, encoder=encoder)(frames, parts)
        assert_close(made, instance_mean(encoder(frames).detach(), parts))

    def test_another_face_gets_those_of_the_bank_and_not_its_own(self, faces):
        folder, encoder = opened(faces), make_encoder()
        bank = build_bank(encoder, folder, every=4)
        parts = read_parts(folder, 1, [3])
        made = BorrowedFeatures(bank=bank, encoder=encoder)(read_sequence(folder, 1, 3, 4).frames[0], parts)
        borrowed = [bank.vectors.take(torch.tensor([i])).paint(parts) for i in range(2)]
        assert any(torch.equal(made, x) for x in borrowed)

    def test_a_chosen_face_needs_no_encoder(self):
        bank = bank_of((1, 2), (3, 4))
        parts = torch.tensor([[[0, 1]], [[1, 2]]])
        made = BorrowedFeatures(bank=bank, face=1)(torch.zeros(2, 3, 1, 2), parts)
        assert made.tolist() == [[[[3, 4]]], [[[4, 0]]]]

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({}, "chosen face, or"),
            ({"face": 2}, r"0 to 1; there is no number 2"),
            ({"face": -1}, "no number -1"),
            ({"encoder": make_encoder()}, "another encoder"),
        ],
    )
    def test_what_does_not_go_together_is_refused(self, settings, said):
        with pytest.raises(ConfigError, match=said):
            BorrowedFeatures(bank=bank_of((1,), (2,)), **settings)


@pytest.fixture(scope="module")
def networks(videos, tmp_path_factory):
    """A teacher of faces, and what import-weights leaves of single-image networks."""
    root = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    single = SingleImageConfig(width=4, num_downsamples=2, num_blocks=1, feature_channels=3)
    encoder = FeatureConfig(channels=3, width=4, num_downsamples=2, norm="instance")
    shapes = {
        "single": ("global_with_features", single, 15),
        "narrow": ("global_with_features", SingleImageConfig(width=4, num_blocks=1, feature_channels=2), 15),
        "plain": ("global", SingleImageConfig(width=4, num_downsamples=2, num_blocks=1), 15),
        "encoder": ("encoder", encoder, 3),
        "other": ("encoder", encoder, 3),
    }
    for name, (network, config, channels) in shapes.items():
        blueprint = Blueprint(network, config, channels)
        built = blueprint.build().eval()
        for p in built.parameters():
            torch.nn.init.normal_(p, std=0.2)
        save_imported(Imported(built, blueprint, ()), root / name, {"source": {}})
    arguments = ["--data", str(videos), "--run", str(root / "run"), "--quiet"]
    arguments += ["--recipe.data.folder.geometry.size", "32", "32", "--recipe.data.folder.test-tail", "3"]
    arguments += ["--recipe.data.sampling.num-frames", "3", "--recipe.data.eval-frames", "3"]
    arguments += ["--recipe.data.batch-size", "1"]
    arguments += ["--recipe.generator.width", "4", "--recipe.generator.num-blocks", "2"]
    arguments += ["--recipe.train.steps", "1", "--recipe.train.max-minutes", "None"]
    assert main(["train-teacher", "face-small", *arguments]) == 0
    return root


def draw(networks, videos, out, *more, first="single"):
    arguments = ["--run", str(networks / "run"), "--data", str(videos), "--out", str(out), "--write", "frames"]
    arguments += ["--device.precision", "fp32"]
    code = main(["synthesize", *arguments, "--first-frames", str(networks / first), *map(str, more)])
    return code, [cv2.imread(str(path)) for path in sorted(out.rglob("*.png"))]


class TestSynthesize:
    def test_first_faces_are_drawn_with_borrowed_features(self, networks, videos, tmp_path):
        bank, encoder = tmp_path / "bank.npz", networks / "encoder"
        more = ["--first-encoder", encoder, "--first-bank", bank]
        code, found = draw(networks, videos, tmp_path / "found", *more)
        assert code == 0
        assert len(found) == 6  # three held-out frames of two sequences
        assert read_bank(bank).names == ("a/0", "a/1", "a/2", "b/0", "b/1", "b/2")  # of the training frames alone
        folder = open_folder(data_of(load_trained(networks / "run").architecture, videos, "test"))
        clip, stored = read_sequence(folder, 0, 0, 1), load_imported(encoder).network
        features = BorrowedFeatures(bank=read_bank(bank), encoder=stored)(clip.frames[0], read_parts(folder, 0, [0]))
        with torch.no_grad():
            frame = load_imported(networks / "single").network(torch.cat([clip.maps[0], features], dim=1))
        assert np.array_equal(found[0], to_picture(frame)[..., ::-1])

    def test_a_chosen_face_changes_what_is_drawn(self, networks, videos, tmp_path):
        bank, made = tmp_path / "bank.npz", []
        for i in (0, 5):
            encoder = ["--first-encoder", networks / "encoder"] if i == 0 else []  # to make the bank
            more = ["--first-bank", bank, "--first-face", i, *encoder]
            made.append(draw(networks, videos, tmp_path / str(i), *more)[1][0])
        assert not np.array_equal(*made)

    def test_options_of_drawn_frames_want_them(self):
        with pytest.raises(ConfigError, match="belong to --first-frames"):
            Synthesize(run=Path("r"), data=Path("d"), out=Path("o"), first_bank=Path("b"))

    @pytest.mark.parametrize(
        ("first", "more", "said"),
        [
            ("single", ["--first-bank", "BANK"], "it needs a data set of faces, --first-bank, and"),
            ("single", ["--first-encoder", "encoder"], "it needs a data set of faces, --first-bank, and"),
            ("single", ["--first-bank", "BANK", "--first-encoder", "plain"], "no feature encoder"),
            ("single", ["--first-bank", "BANK", "--first-encoder", "other"], "another encoder"),
            ("single", ["--first-bank", "BANK", "--first-face", "6"], "no number 6"),
            ("single", ["--first-bank", "nowhere.npz", "--first-face", "0"], "nowhere.npz"),
            ("narrow", ["--first-bank", "BANK", "--first-face", "0"], "features of 3 channels"),
            ("plain", ["--first-bank", "BANK"], "takes no features"),
            ("encoder", [], "no generator of single images"),
        ],
    )
    def test_what_does_not_go_together_is_refused(self, networks, videos, tmp_path, capsys, first, more, said):
        bank = networks / "bank.npz"
        if not bank.exists():
            draw(networks, videos, tmp_path / "make", "--first-bank", bank, "--first-encoder", networks / "encoder")
        more = [bank if x == "BANK" else networks / x if (networks / x).is_dir() else x for x in more]
        code, made = draw(networks, videos, tmp_path / "out", *more, first=first)
        assert (code, made) == (2, [])
        assert said in capsys.readouterr().err
