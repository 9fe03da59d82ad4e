"""``fastv2v compare`` end to end on small boxes that move, and its parts: groups, verdicts, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import pytest
import torch

from benchmarks.comparison import Comparison, Criteria, Pretrained, Video, deliver, group_rows, verdicts
from benchmarks.results import load_result
from fastv2v.architecture import load_trained
from fastv2v.cli import main
from fastv2v.commands.compare import Compare
from fastv2v.commands.parts import data_of
from fastv2v.commands.synthesize import synthesise
from fastv2v.data.folder import open_folder
from fastv2v.data.loader import read_sequence
from fastv2v.device import DeviceConfig, open_device
from fastv2v.errors import ConfigError, ShapeError
from fastv2v.video import probe_video

CPU = DeviceConfig(cpu=True)


def write_boxes(root: Path, count: int = 12) -> Path:
    """A box on a ground with the labels of both."""
    rng = np.random.default_rng(0)
    for modality in ("A", "B"):
        (root / f"train_{modality}" / "seq").mkdir(parents=True)
    for t in range(count):
        labels = np.zeros((32, 32), np.uint8)
        labels[8:24, t : t + 16] = 1
        frame = np.array([[90, 90, 90], [40, 40, 220]], np.uint8)[labels]
        cv2.imwrite(str(root / "train_A" / "seq" / f"{t:03d}.png"), labels)
        noisy = cv2.add(frame, rng.integers(0, 9, frame.shape, np.uint8))
        cv2.imwrite(str(root / "train_B" / "seq" / f"{t:03d}.png"), noisy)
    return root


def train(data: Path, run: Path, *, width: int = 4, seed: int = 0, more: tuple[str, ...] = ()) -> Path:
    arguments = ["train-teacher", "demo", "--data", str(data), "--run", str(run), "--quiet"]
    arguments += ["--recipe.data.folder.geometry.size", "32", "32", "--recipe.data.sampling.num-frames", "4"]
    arguments += ["--recipe.data.folder.test-tail", "6", "--recipe.data.eval-frames", "3"]
    arguments += ["--recipe.data.batch-size", "1", "--recipe.generator.width", str(width)]
    arguments += ["--recipe.generator.num-blocks", "2", "--recipe.train.seed", str(seed)]
    arguments += ["--recipe.train.steps", "1", "--recipe.train.max-minutes", "None", *more]
    assert main(arguments) == 0
    return run


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a teacher and students of two seeds and another network."""
    root = tmp_path_factory.mktemp("compare")
    data = write_boxes(root / "data")
    train(data, root / "teacher", width=8)
    for seed in (1, 2):
        train(data, root / f"student-{seed}", seed=seed)
    train(data, root / "wide", width=6)
    return root


def command(root: Path, out: Path, *more: str) -> list[str]:
    students = f"distilled={root / 'student-1'},{root / 'student-2'}"
    given = ["compare", "--teacher", str(root / "teacher"), "--data", str(root / "data"), "--student", students]
    given += ["--out", str(out), "--judging.steps", "3", "--quiet", "--device.cpu"]
    return [*given, "--drift-early", "1", "3", "--drift-late", "4", "6", *more]


def test_a_whole_comparison(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    more = ["--student", f"alone@3={root / 'wide'}", "--alone", "alone", "--gap", "2"]
    asked = ["--within-psnr", "50", "--max-cost", "0.5", "--within-miou", "100"]
    assert main(command(root, out, *more, *asked, "--beats", "psnr")) in (0, 1)
    said = capsys.readouterr().out
    document = json.loads(said.splitlines()[-1])
    rows = {(row["name"], row["frames"]): row for row in load_result(out / "comparison.json").rows}
    names = {
        "real video",
        "floor: mean colour per label",
        "floor: previous real frame",
        "teacher",
        "distilled",
        "alone",
    }
    assert {name for name, _ in rows} == names
    student = rows["distilled", "all"]
    assert student["runs"] == 2
    assert student["psnr_db_min"] <= student["psnr_db"] <= student["psnr_db_max"]
    assert student["psnr_db_std"] == pytest.approx((student["psnr_db_max"] - student["psnr_db_min"]) / 2**0.5)
    # Frames 0 (given) to 5, gap 2: keyframes 2, 4 and the last.
    assert (rows["distilled", "keyframes"]["num_frames"], rows["distilled", "interpolated"]["num_frames"]) == (3, 2)
    assert ("teacher", "keyframes") not in rows
    for key in ("ssim", "vmaf", "fd_efficientnet_lite0", "warping_error", "flicker", "miou", "drift_db"):
        assert isinstance(student[key], float), key
    assert isinstance(student["teacher_vmaf"], float)
    assert rows["real video", "all"]["fd_efficientnet_lite0"] == pytest.approx(0, abs=1e-6)
    cost = {row["name"]: row for row in load_result(out / "cost.json").rows}
    assert (cost["distilled"]["gap"], cost["distilled"]["keyframe_fraction"]) == (2, 3 / 5)
    # The other student names a gap of its own: keyframes 3 and the last.
    assert (cost["alone"]["gap"], cost["alone"]["keyframe_fraction"]) == (3, 2 / 5)
    assert rows["alone", "keyframes"]["num_frames"] == 2
    ratio = cost["teacher"]["gmacs_per_frame"] / cost["distilled"]["gmacs_per_frame"]
    assert cost["distilled"]["times_fewer_gmacs_per_frame"] == pytest.approx(ratio)
    judged = {row["name"]: row for row in document["verdicts"]}
    assert len(judged) == 4
    assert judged["distilled: PSNR dB below teacher, at most"]["passed"]
    assert judged["distilled: share of the MACs per delivered frame of teacher, at most"]["passed"]
    assert document["passed"] == all(row["passed"] for row in judged.values())
    film = probe_video(out / "videos" / "seq.mp4")
    assert (film.size, film.num_frames) == ((32 + 20, 4 * 32), 5)
    assert cv2.imread(str(out / "pictures" / "seq.png")) is not None
    curves = json.loads((out / "curves.json").read_text())
    assert curves["distilled/1"]["seq"][0] is None
    assert np.mean(curves["distilled/1"]["seq"][1:]) == pytest.approx(
        next(row["psnr_db"] for row in load_result(out / "runs.json").rows if row["name"] == "distilled/1")
    )
    # Again into the same folder: replaced whole, by the same judge.
    weights = (out / "judge.safetensors").read_bytes()
    again = command(root, out, "--no-vmaf", "--within-ssim", "0", "--max-cost", "1e-9")
    assert main(again) == 1
    assert "no" in capsys.readouterr().out.split("verdict")[1]
    assert (out / "judge.safetensors").read_bytes() == weights
    assert not [path for path in tmp_path.iterdir() if path != out]


@torch.no_grad()
def test_a_full_time_rollout_is_that_of_synthesize(root: Path) -> None:
    trained, device = load_trained(root / "student-1"), open_device(CPU)
    folder = open_folder(data_of(trained.architecture, root / "data", "test"))
    clip = read_sequence(folder, 0)
    wanted = list(synthesise(trained.generator, folder.spec, clip, 2, device))[2:]
    made = list(deliver(trained.generator, folder.spec, clip, gap=1, given_frames=2, device=device))
    assert all(x.is_keyframe for x in made)
    assert all(np.array_equal(x.frame, y) for x, y in zip(made, wanted, strict=True))


def test_keyframes_of_a_student_lie_at_the_gap_and_at_the_end(root: Path) -> None:
    trained, device = load_trained(root / "student-1"), open_device(CPU)
    folder = open_folder(data_of(trained.architecture, root / "data", "test"))
    clip = read_sequence(folder, 0)
    made = list(deliver(trained.generator, folder.spec, clip, gap=3, given_frames=1, device=device))
    assert [x.is_keyframe for x in made] == [False, False, True, False, True]
    sparse = replace(clip, frames=clip.frames[:, [0, 3, 5]], labels=clip.labels[:, [0, 3, 5]], info=())
    keyframes = list(synthesise(trained.generator, folder.spec, sparse, 1, device))[1:]
    assert np.array_equal(made[2].frame, keyframes[0])
    assert np.array_equal(made[4].frame, keyframes[1])
    with pytest.raises(ConfigError, match="6 given of 6"):
        next(deliver(trained.generator, folder.spec, clip, gap=1, given_frames=6, device=device))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--gap", "6"], "a gap of 6 after 1 given needs 7"),
        (["--max-frames", "4", "--gap", "4"], "has 4 frames"),
        (["--student", "mixed={root}/student-1,{root}/wide"], "different networks"),
        (["--max-drift", "1", "--drift-late", "90", "100"], "sequences of 100 frames"),
        (["--student", "x={root}/nowhere"], "nowhere"),
        (["--student", "x={root}/other"], "another condition"),
        (["--student", "x={root}/larger"], "(64, 64)"),
        (["--student", "x={root}/seen"], "trained on frame 006"),
        (["--judging.ignore", "0", "1"], "no class is left"),
        (["--fid-weights", "{root}/data/train_A"], "no TorchScript network"),
        (["--out", "{root}/data"], "holds no earlier comparison"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_sentence(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    others = {
        "other": ("--recipe.data.folder.num-classes", "3"),
        "larger": ("--recipe.data.folder.geometry.size", "64", "64"),
        "seen": ("--recipe.data.folder.test-tail", "5"),
    }
    for name, options in others.items():
        if any(word.endswith(f"/{name}") for word in more):
            train(root / "data", root / name, more=options)
    capsys.readouterr()
    assert main(command(root, tmp_path / "out", "--gap", "2", *(word.format(root=root) for word in more))) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len([line for line in error.splitlines() if line.startswith("fastv2v compare")]) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"gap": 0}, "at least 1"),
        ({"max_frames": 1}, "at least 2"),
        ({"student": ("a=x", "a=y")}, "another row has this name"),
        ({"student": ("teacher=x",)}, "another row has this name"),
        ({"student": ("a=x,x",)}, "named twice"),
        ({"student": ("a",)}, "NAME=RUN"),
        ({"student": ("a@0=x",)}, "NAME@GAP=RUN"),
        ({"student": ("a@=x",)}, "NAME@GAP=RUN"),
        ({"student": ("a@2=x", "a@4=y")}, "another row has this name"),
        ({"student": ("a=x,",)}, "NAME=RUN"),
        ({"student": ()}, "nothing is compared"),
        ({"criteria": Criteria(alone="b")}, "--alone names no student"),
        ({"criteria": Criteria(alone="a")}, "the student that is judged"),
        ({"criteria": Criteria(subject="b")}, "--subject names no student"),
        ({"vmaf": False, "criteria": Criteria(within_vmaf=2)}, "--within-vmaf needs VMAF"),
        ({"fvd_frames": 9}, "at least 10"),
        ({"drift_late": (2, 3)}, "early stretch"),
        ({"judge": Path("judge.bin")}, "safetensors"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Compare(**{"teacher": Path(), "student": ("a=x",), "data": Path(), "out": Path(), **given})
    with pytest.raises(ConfigError, match="--beats"):
        Criteria(beats=("psnr",))
    with pytest.raises(ConfigError, match="at least 0"):
        Criteria(within_psnr=-1)


def row(name: str, psnr: float, low: float, high: float, **more: float) -> dict[str, object]:
    return {"name": name, "psnr_db": psnr, "psnr_db_min": low, "psnr_db_max": high, **more}


class TestVerdicts:
    rows: ClassVar = {
        "teacher": row("teacher", 20.0, 20.0, 20.0, warping_error=0.010, miou=0.60),
        "kd": row("kd", 19.8, 19.7, 19.9, warping_error=0.011, miou=0.58),
        "alone": row("alone", 19.5, 19.3, 19.6),
    }
    shares: ClassVar = {"teacher": 1.0, "kd": 0.04, "alone": 0.04}

    def judge(self, **criteria: object) -> list[tuple[float, bool]]:
        found = verdicts(Criteria(**criteria), self.rows, "teacher", self.shares)
        return [(pytest.approx(verdict.measured), verdict.passed) for verdict in found]

    def test_distances_to_the_teacher(self):
        assert self.judge(within_psnr=0.3, within_miou=1) == [(0.2, True), (2.0, False)]
        assert self.judge(no_worse_warping=True, max_cost=0.05) == [(0.001, False), (0.04, True)]

    def test_the_gain_over_the_student_alone_must_exceed_the_wider_spread(self):
        assert self.judge(alone="alone", beats=("psnr",)) == [(0.3, False)]  # 19.3 to 19.6 is as wide
        self_rows = self.rows | {"alone": row("alone", 19.5, 19.45, 19.6)}
        (found,) = verdicts(Criteria(alone="alone", beats=("psnr",)), self_rows, "teacher", self.shares)
        assert found.passed
        assert found.asked == pytest.approx(0.2)

    def test_another_subject_and_what_was_not_measured(self):
        assert self.judge(subject="alone", within_psnr=0.3) == [(0.5, False)]
        with pytest.raises(ConfigError, match="not measured for kd"):
            self.judge(within_vmaf=1)
        with pytest.raises(ConfigError, match="no group 'who'"):
            self.judge(subject="who", within_psnr=1)


class MeanColour(torch.nn.Module):
    """Stands in for a network of features: three numbers a frame."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return frames.mean(dim=(2, 3)) * self.weight


class EveryThird:
    """Stands in for I3D: two clips of a video, each its mean."""

    def __call__(self, frames: list[np.ndarray]) -> np.ndarray:
        return np.array([[float(np.mean(part))] for part in (frames[: len(frames) // 2], frames[len(frames) // 2 :])])


class TestComparison:
    def frames(self, seed: int, count: int = 6) -> list[np.ndarray]:
        rng = np.random.default_rng(seed)
        return [rng.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in range(count)]

    def test_sets_of_frames_are_scored_against_real_frames_of_the_same_times(self):
        pretrained = Pretrained(
            inception=lambda frames: np.array([x.mean(axis=(0, 1)) for x in frames]), i3d=EveryThird()
        )
        comparison = Comparison(
            features=MeanColour(), judge=None, pretrained=pretrained, with_vmaf=False, early=(1, 3), late=(5, 7)
        )
        marks = [False, True, False, True, False, True]
        for name, real in (("a", self.frames(0)), ("b", self.frames(1))):
            made = self.frames(2)
            videos = {
                "same": Video(real),
                "student": Video([r if m else x for r, x, m in zip(real, made, marks, strict=True)], marks),
            }
            assert list(comparison.add(name, real, videos, teacher=made, students=["student"])) == ["same", "student"]
        rows = comparison.rows()
        (same,) = rows["same"]
        for key in ("fd_efficientnet_lite0", "fd_video_efficientnet_lite0", "fid", "fvd", "drift_db"):
            assert same[key] == pytest.approx(0, abs=1e-9), key
        student = {row["frames"]: row for row in rows["student"]}
        assert student["keyframes"]["fid"] == pytest.approx(0, abs=1e-9)
        assert student["interpolated"]["fid"] > 0
        assert student["keyframes"]["fd_samples"] == 6
        assert student["interpolated"]["teacher_psnr_db"] == 100
        assert student["keyframes"]["teacher_psnr_db"] < 20
        assert "teacher_psnr_db" not in same
        assert "fvd" not in student["keyframes"]
        # Frame 0 is given, so the early frames are an interpolated and a real one, as are the late ones.
        curve = comparison.curves["student"]["a"]
        assert curve[0] is None
        assert curve[2] == 100
        drifts = [np.mean(c[1:3]) - np.mean(c[5:7]) for c in comparison.curves["student"].values()]
        assert student["all"]["drift_db"] == pytest.approx(np.mean(drifts))

    def test_drift_needs_every_sequence_to_be_long_enough(self):
        comparison = Comparison(features=MeanColour(), judge=None, with_vmaf=False, early=(1, 3), late=(5, 7))
        for name, count in (("a", 6), ("b", 5)):
            real = self.frames(0, count)
            assert list(comparison.add(name, real, {"x": Video(real)})) == ["x"]
        assert comparison.rows()["x"][0]["drift_db"] is None

    def test_labels_are_as_many_as_frames(self):
        comparison = Comparison(features=MeanColour(), judge=None, with_vmaf=False)
        with pytest.raises(ShapeError, match="1 label maps for 6 frames"):
            next(comparison.add("a", self.frames(0), {}, labels=[np.zeros((16, 16), np.uint8)]))
        with pytest.raises(ConfigError, match="early stretch"):
            Comparison(features=MeanColour(), judge=None, early=(3, 2))


def test_groups_have_means_and_spreads_and_keep_what_is_missing():
    runs = [
        [{"name": "r", "frames": "all", "num_frames": 4, "fd_samples": 4, "psnr_db": x, "vmaf": None}]
        for x in (1.0, 3.0)
    ]
    (found,) = group_rows("g", runs)
    assert (found["psnr_db"], found["psnr_db_min"], found["psnr_db_max"]) == (2, 1, 3)
    assert found["psnr_db_std"] == pytest.approx(2**0.5)
    assert found["vmaf"] is None
    assert group_rows("g", runs[:1])[0]["psnr_db_std"] == 0
    with pytest.raises(ConfigError, match="at least one run"):
        group_rows("g", [])
