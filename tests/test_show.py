"""The contact sheet of a data set, and the figure that the page about conditions shows."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from fastv2v.cli import main
from fastv2v.commands.show import Show, is_held, laid_over, show_sequences, spread
from fastv2v.data.clip import Clip
from fastv2v.data.conditions import ConditionSpec
from fastv2v.data.face import FaceConfig
from fastv2v.data.folder import FolderConfig, open_folder
from fastv2v.data.pose import PoseConfig
from fastv2v.data.transforms import GeometryConfig
from fastv2v.errors import ConfigError

# The figure: BODY_25 points and how thick each limb is, with the DensePose part it belongs to.
PARTS = (
    ((9, 10), 9, 10), ((12, 13), 9, 9), ((10, 11), 7, 14), ((13, 14), 7, 13), ((11, 22), 5, 6), ((14, 19), 5, 5),
    ((2, 3), 6, 18), ((5, 6), 6, 17), ((3, 4), 5, 22), ((6, 7), 5, 21),
)  # fmt: skip
TROUSERS, SHIRT, SKIN, SHOES = (70, 75, 110), (190, 90, 60), (224, 180, 150), (40, 40, 45)
CLOTHES = {10: TROUSERS, 9: TROUSERS, 14: TROUSERS, 13: TROUSERS, 6: SHOES, 5: SHOES, 18: SHIRT, 17: SHIRT}


def figure(swing: float) -> np.ndarray:
    """BODY_25 points (25, 2) of somebody who faces us, arms and legs swung out by ``swing`` from -1 to 1, 640x360."""
    points = np.zeros((25, 2))

    def limb(start: int, ends: tuple[int, ...], lengths: tuple[float, ...], angles: tuple[float, ...]) -> None:
        place = points[start]
        for end, length, angle in zip(ends, lengths, angles, strict=True):
            place = points[end] = place + length * np.array([math.sin(angle), math.cos(angle)])

    points[1] = 320 + 6 * swing, 108
    points[8] = 320, 188
    points[[0, 15, 16, 17, 18]] = points[1] + [(0, -26), (-6, -33), (6, -33), (-14, -30), (14, -30)]
    points[[2, 5]] = points[1] + [(-26, 4), (26, 4)]
    points[[9, 12]] = points[8] + [(-13, 2), (13, 2)]
    for side, arm, leg in ((-1, (2, 3, 4), (9, 10, 11, 22, 23, 24)), (1, (5, 6, 7), (12, 13, 14, 19, 20, 21))):
        raised = 0.5 + 0.6 * side * swing
        limb(arm[0], arm[1:], (42, 38), (side * raised, side * (raised + 0.9 + 0.3 * swing)))
        stride = 0.12 + 0.22 * max(side * swing, 0)
        limb(leg[0], leg[1:3], (60, 58), (side * stride, -side * stride / 3))
        points[list(leg[3:])] = points[leg[2]] + [(side * 12, 8), (side * 9, 10), (-side * 4, 7)]
    return points


def write_figure(root: Path | str, num_frames: int = 5) -> None:
    """A pose data set of a drawn figure before a plain wall: frames, OpenPose files and DensePose maps."""
    for index in range(num_frames):
        points = figure(math.sin(2 * math.pi * index / num_frames))
        picture = np.full((360, 640, 3), (205, 208, 214), np.uint8)
        picture[300:] = (150, 132, 118)
        parts = np.zeros((360, 640), np.uint8)
        for canvas, colour in ((picture, CLOTHES), (parts, None)):
            for (a, b), thickness, part in PARTS:
                tint = part if colour is None else colour.get(part, SKIN)
                ends = [tuple(map(int, points[i])) for i in (a, b)]
                cv2.line(canvas, *ends, tint, 2 * thickness, cv2.LINE_8)
            trunk = points[[2, 5, 12, 9]].astype(np.int32)
            cv2.fillPoly(canvas, [trunk], 2 if colour is None else SHIRT)
            cv2.line(canvas, *(tuple(map(int, points[i])) for i in (1, 0)), 23 if colour is None else SKIN, 10)
            head = tuple(map(int, points[0] + (0, -6)))
            cv2.ellipse(canvas, head, (15, 19), 0, 0, 360, 23 if colour is None else SKIN, -1)
        across = np.linspace(0, 255, 640).astype(np.uint8)[None].repeat(360, 0)
        down = np.linspace(0, 255, 360).astype(np.uint8)[:, None].repeat(640, 1)
        body = (parts > 0).astype(np.uint8)
        values = [value for x, y in points for value in (round(x, 1), round(y, 1), 0.9)]
        stem = f"frame{index:06d}"
        files = {
            f"train_img/figure/{stem}.png": picture[..., ::-1],
            f"train_densepose/figure/{stem}_IUV.png": cv2.merge([parts, across * body, down * body]),
        }
        for name, content in files.items():
            (Path(root) / name).parent.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(Path(root) / name), content)
        poses = Path(root) / f"train_openpose/figure/{stem}_keypoints.json"
        poses.parent.mkdir(parents=True, exist_ok=True)
        poses.write_text(json.dumps({"people": [{"pose_keypoints_2d": values}]}))


def write_labels(root: Path, num_frames: int = 4, size: tuple[int, int] = (64, 128)) -> Path:
    """A street of two classes: class 0 on the left, class 1 on the right."""
    ids = np.zeros(size, np.uint8)
    ids[:, size[1] // 2 :] = 1
    for index in range(num_frames):
        for name, picture in (("A", ids), ("B", np.full((*size, 3), 25 * index, np.uint8))):
            (root / f"train_{name}/drive").mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(root / f"train_{name}/drive/{index:03d}.png"), picture)
    return root


def write_face(root: Path, empty: tuple[int, ...] = (), num_frames: int = 3) -> Path:
    """A face of 68 landmarks on a circle in a grey frame with one bright square, which has edges."""
    angles = np.linspace(0, 2 * np.pi, 68, endpoint=False)
    landmarks = np.stack([80 + 25 * np.cos(angles), 80 + 25 * np.sin(angles)], axis=1)
    picture = np.full((160, 160, 3), 60, np.uint8)
    picture[10:40, 110:140] = 220
    for kind in ("img", "keypoints"):
        (root / f"train_{kind}/talk").mkdir(parents=True, exist_ok=True)
    for index in range(num_frames):
        assert cv2.imwrite(str(root / f"train_img/talk/{index:03d}.png"), picture)
        text = "" if index in empty else "".join(f"{x:.1f},{y:.1f}\n" for x, y in landmarks)
        (root / f"train_keypoints/talk/{index:03d}.txt").write_text(text)
    return root


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit status, standard output and error of ``fastv2v show``."""
    try:
        status = main(["show", *map(str, words)])
    except SystemExit as left:  # a value that the options refuse
        status = int(left.code or 0)
    out, err = capsys.readouterr()
    return status, out, err


class TestSpread:
    @pytest.mark.parametrize(
        ("total", "count", "expected"),
        [(10, 3, (0, 4, 9)), (2, 3, (0, 1)), (1, 4, (0,)), (5, 5, (0, 1, 2, 3, 4)), (9, 1, (4,)), (1, 1, (0,))],
    )
    def test_first_and_last_are_among_them(self, total, count, expected):
        assert spread(total, count) == expected


class TestLaidOver:
    def test_labels_show_borders_in_their_colours_and_a_quarter_of_the_rest(self):
        spec = ConditionSpec(class_names=("road", "sky"))
        labels = torch.tensor([[[[0, 0, 0, 1, 1, 1]]]])
        clip = Clip(frames=torch.full((1, 1, 3, 1, 6), -1.0), labels=labels)
        colours = np.array([[[200, 0, 0]] * 3 + [[0, 100, 0]] * 3], np.uint8).reshape(1, 6, 3)
        expected = [[50, 0, 0], [50, 0, 0], [200, 0, 0], [0, 100, 0], [0, 25, 0], [0, 25, 0]]
        np.testing.assert_array_equal(laid_over(spec, clip, colours)[0], expected)

    def test_borders_of_instances_are_shown_too(self):
        spec = ConditionSpec(class_names=("car",), use_instances=True)
        clip = Clip(
            frames=torch.full((1, 1, 3, 1, 4), -1.0),
            labels=torch.zeros((1, 1, 1, 4), dtype=torch.uint8),
            instances=torch.tensor([[[[1, 1, 2, 2]]]], dtype=torch.int32),
        )
        condition = np.full((1, 4, 3), 240, np.uint8)
        assert laid_over(spec, clip, condition)[0, :, 0].tolist() == [60, 240, 240, 60]

    def test_faces_show_their_curves_green(self):
        spec = ConditionSpec(kind="maps", map_channels=1, face=FaceConfig(distance_maps=False))
        maps = torch.tensor([0.0, 1.0, 0.0]).view(1, 1, 1, 1, 3)
        clip = Clip(frames=torch.ones((1, 1, 3, 1, 3)), maps=maps)
        shown = laid_over(spec, clip, np.zeros((1, 3, 3), np.uint8))
        assert shown[0].tolist() == [[255] * 3, [80, 255, 80], [255] * 3]

    def test_lines_that_will_be_shrunk_are_widened(self):
        spec = ConditionSpec(kind="maps", map_channels=1, face=FaceConfig(distance_maps=False))
        maps = torch.zeros((1, 1, 1, 1, 9))
        maps[..., 4] = 1
        clip = Clip(frames=torch.ones((1, 1, 3, 1, 9)), maps=maps)
        shown = laid_over(spec, clip, np.zeros((1, 9, 3), np.uint8), thickness=3)
        assert (shown[0, :, 0] < 255).sum() == 3

    def test_poses_show_limbs_whole_and_densepose_half(self):
        spec = ConditionSpec(kind="maps", map_channels=6, pose=PoseConfig())
        maps = torch.full((1, 1, 6, 1, 3), -1.0)
        maps[0, 0, 3:, 0, 2] = 0.2  # a limb on the last pixel
        clip = Clip(frames=torch.ones((1, 1, 3, 1, 3)), maps=maps)
        condition = np.array([[[0, 0, 0], [0, 100, 0], [153, 153, 153]]], np.uint8)
        assert laid_over(spec, clip, condition)[0].tolist() == [[255] * 3, [128, 178, 128], [153] * 3]

    def test_colour_images_are_half_transparent(self):
        spec = ConditionSpec(kind="maps", map_channels=3, encoder="rgb")
        clip = Clip(frames=torch.ones((1, 1, 3, 1, 1)), maps=torch.zeros((1, 1, 3, 1, 1)))
        assert laid_over(spec, clip, np.full((1, 1, 3), 55, np.uint8))[0, 0].tolist() == [155] * 3


class TestSheet:
    def test_it_holds_a_row_for_each_sequence_and_says_what_it_shows(self, tmp_path, capsys):
        data, out = write_labels(tmp_path / "data"), tmp_path / "sheet.png"
        status, text, _ = run(capsys, "--data", data, "--out", out, "--frames", 2, "--width", 64)
        assert status == 0
        # Three cells and two gaps of 2 pixels make a block, 12 pixels lie between two; 20 pixels of names below.
        assert cv2.imread(str(out)).shape == (64 * 256 // 512 + 20, 2 * (3 * 64 + 4) + 12, 3)
        last = json.loads(text.splitlines()[-1])
        assert last == {
            "out": str(out),
            "sequences": 1,
            "frames": 4,
            "channels": 2,
            "gaps": 0,
            "shown": {"drive": ["000", "003"]},
        }
        assert "drive          4  128x64  512x256         2     0" in text

    def test_cells_are_frame_condition_and_both(self, tmp_path):
        folder = open_folder(FolderConfig(root=write_labels(tmp_path), geometry=GeometryConfig(mode="none")))
        (only,) = show_sequences(folder, sequences=1, frames=1, width=128)
        frame, condition, both = (only.row[:64, x : x + 128] for x in (0, 130, 260))
        assert (frame == 25).all()
        assert (condition[:, :64] == folder.palette[0]).all() and (condition[:, 64:] == folder.palette[1]).all()
        assert (both[:, 64] == folder.palette[1]).all() and not (both[:, 70] == folder.palette[1]).all()
        assert only.stems == ("001",) and only.size == only.scaled == (64, 128)

    def test_only_the_chosen_frames_are_read(self, tmp_path, capsys):
        data = write_labels(tmp_path / "data", num_frames=9)
        for index in set(range(9)) - {0, 4, 8}:
            for kind in "AB":
                (data / f"train_{kind}/drive/{index:03d}.png").write_bytes(b"spoiled")
        words = ("--data", data, "--out", tmp_path / "sheet.png", "--num-classes", 2)
        assert run(capsys, *words)[0] == 0
        (data / "train_B/drive/004.png").write_bytes(b"spoiled")
        status, _, err = run(capsys, *words, "--overwrite")
        assert status == 2 and "train_B/drive/004.png" in err

    def test_sequences_are_spread_and_short_ones_leave_room(self, tmp_path, capsys):
        for index in range(5):
            data = write_labels(tmp_path / "data", num_frames=2)
            for kind in "AB":
                (data / f"train_{kind}/drive").rename(data / f"train_{kind}/drive{index}")
        status, text, _ = run(
            capsys, "--data", data, "--out", tmp_path / "sheet.png", "--sequences", 3, "--num-classes", 2
        )
        assert status == 0
        assert list(json.loads(text.splitlines()[-1])["shown"]) == ["drive0", "drive2", "drive4"]
        assert cv2.imread(str(tmp_path / "sheet.png")).shape[1] == 3 * (3 * 256 + 4) + 2 * 12

    def test_a_face_shows_its_background_in_the_condition_and_not_on_the_frame(self, tmp_path):
        folder = open_folder(
            FolderConfig(root=write_face(tmp_path), condition="face", geometry=GeometryConfig(mode="none"))
        )
        (only,) = show_sequences(folder, sequences=1, frames=1, width=128)
        assert only.size == (124, 124) and only.scaled == (128, 128)  # 2.5 times 50 pixels, rounded as vid2vid does
        frame, condition, both = (only.row[:128, x : x + 128].astype(int) for x in (0, 130, 260))
        top_right = np.s_[:40, 80:]
        assert condition[top_right].max() > 100  # edges of the square
        np.testing.assert_array_equal(both[top_right], frame[top_right])
        assert (both - frame)[..., 1].max() > 100  # curves of the face

    def test_limbs_of_a_pose_lie_on_the_body(self, tmp_path):
        write_figure(tmp_path, num_frames=1)
        geometry = GeometryConfig(mode="none", centre_crop=False)
        folder = open_folder(FolderConfig(root=tmp_path, condition="pose", geometry=geometry))
        (only,) = show_sequences(folder, sequences=1, frames=1, width=640)
        frame, condition = (only.row[:352, x : x + 640].astype(int) for x in (0, 642))
        limbs = condition.any(axis=-1)
        wall = np.abs(frame - np.array([214, 208, 205])).max(axis=-1) < 3
        assert limbs.sum() > 3000 and (limbs & wall).sum() < 0.1 * limbs.sum()

    def test_a_name_that_is_not_utf8_is_no_trouble(self, tmp_path):
        data = write_labels(tmp_path / "data")
        name = os.fsdecode(b"caf\xe9")
        try:
            for kind in "AB":
                (data / f"train_{kind}/drive").rename(data / f"train_{kind}" / name)
        except OSError:
            pytest.skip("this file system holds UTF-8 names only")
        out = tmp_path / "sheet.png"
        words = ("show", "--data", data, "--out", out, "--frames", 1, "--num-classes", 2)
        # In a process of its own, which OpenCV used to end.
        code = "import sys; from fastv2v.cli import main; sys.exit(main(sys.argv[1:]))"
        done = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "caf\\udce9" in done.stdout and out.exists()

    def test_a_sheet_may_be_a_jpeg(self, tmp_path, capsys):
        data = write_labels(tmp_path / "data")
        assert run(capsys, "--data", data, "--out", tmp_path / "sheet.jpg")[0] == 0
        assert (tmp_path / "sheet.jpg").read_bytes().startswith(b"\xff\xd8")


class TestGaps:
    def test_they_are_shown_and_counted_where_training_would_refuse_them(self, tmp_path, capsys):
        data = write_face(tmp_path / "data", empty=(0, 2))
        status, text, _ = run(capsys, "--data", data, "--condition", "face", "--out", tmp_path / "sheet.png")
        assert status == 0 and json.loads(text.splitlines()[-1])["gaps"] == 2
        folder = open_folder(FolderConfig(root=data, condition="face", missing="hold"))
        assert [is_held(folder.sequences[0], i) for i in range(3)] == [True, False, True]

    def test_skipped_ones_are_not_there(self, tmp_path, capsys):
        data = write_face(tmp_path / "data", empty=(1,))
        words = ("--data", data, "--condition", "face", "--missing", "skip", "--out", tmp_path / "sheet.png")
        last = json.loads(run(capsys, *words)[1].splitlines()[-1])
        assert last["gaps"] == 0 and last["shown"] == {"talk#1": ["000"], "talk#2": ["002"]}

    def test_suffixes_of_pose_tools_are_no_gaps(self, tmp_path):
        write_figure(tmp_path, num_frames=2)
        folder = open_folder(FolderConfig(root=tmp_path, condition="pose"))
        assert not any(is_held(folder.sequences[0], i) for i in range(2))


class TestRefusals:
    def test_a_picture_is_not_written_over(self, tmp_path, capsys):
        data, out = write_labels(tmp_path / "data"), tmp_path / "sheet.png"
        out.write_bytes(b"precious")
        status, _, err = run(capsys, "--data", data, "--out", out)
        assert status == 2 and "exists already" in err and "--overwrite" in err
        assert out.read_bytes() == b"precious"
        assert run(capsys, "--data", data, "--out", out, "--overwrite")[0] == 0
        assert cv2.imread(str(out)) is not None

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("--out", "sheet.gif"), "change --out"),
            (("--out", "sheet.png", "--frames", "0"), "frames and sequences"),
            (("--out", "sheet.png", "--sequences", "0"), "frames and sequences"),
            (("--out", "sheet.png", "--width", "8"), "32 to 2048 pixels"),
            (("--out", "sheet.png", "--root", "elsewhere"), "--data"),
            (("--out", "sheet.png", "--geometry.mode", "randomScaleWidth"), "random scale"),
            (("--out", "sheet.png", "--condition", "face"), "train_img"),
        ],
    )
    def test_nonsense_gets_one_sentence(self, tmp_path, capsys, monkeypatch, words, message):
        monkeypatch.chdir(tmp_path)
        status, _, err = run(capsys, "--data", write_labels(tmp_path / "data"), *words)
        assert status == 2 and message in err
        assert not (tmp_path / "sheet.png").exists()

    def test_a_missing_data_set_is_named(self, tmp_path, capsys):
        status, _, err = run(capsys, "--data", tmp_path / "nowhere", "--out", tmp_path / "sheet.png")
        assert status == 2 and "nowhere: there is no such data set" in err

    def test_the_config_itself_refuses(self):
        with pytest.raises(ConfigError, match="picture"):
            Show(data=Path("data"), out=Path("sheet"))
