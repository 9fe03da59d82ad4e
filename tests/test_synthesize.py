"""What ``fastv2v synthesize`` makes of a teacher with instance features, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from fastv2v.architecture import load_trained
from fastv2v.cli import main
from fastv2v.commands.synthesize import Synthesize, condition_encoder, data_of, video_model
from fastv2v.data.folder import open_folder
from fastv2v.data.loader import read_sequence
from fastv2v.video import read_mark


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two boxes on a ground, each with an instance id."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for modality in ("A", "B", "inst"):
        (root / f"train_{modality}" / "seq").mkdir(parents=True)
    for t in range(8):
        labels, instances = np.zeros((32, 64), np.uint8), np.zeros((32, 64), np.uint8)
        for number, left in ((1, 4 + t), (2, 36 + t)):
            labels[8:24, left : left + 16] = 1
            instances[8:24, left : left + 16] = number
        frame = np.array([[90, 90, 90], [40, 40, 220], [220, 40, 40]], np.uint8)[instances]
        for modality, picture in (
            ("A", labels),
            ("B", cv2.add(frame, rng.integers(0, 9, frame.shape, np.uint8))),
            ("inst", instances),
        ):
            cv2.imwrite(str(root / f"train_{modality}" / "seq" / f"{t:03d}.png"), picture)
    return root


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "features"
    arguments = ["train-teacher", "demo", "--data", str(data), "--run", str(run), "--quiet"]
    arguments += ["--recipe.data.folder.geometry.size", "32", "64", "--recipe.data.folder.use-instances"]
    arguments += ["--recipe.data.folder.num-classes", "2", "--recipe.data.sampling.num-frames", "4"]
    arguments += ["--recipe.data.folder.test-tail", "3", "--recipe.data.eval-frames", "3"]
    arguments += ["--recipe.data.batch-size", "1"]
    arguments += ["--recipe.generator.width", "4", "--recipe.generator.num-blocks", "2"]
    arguments += ["--recipe.features.channels", "2", "--recipe.features.width", "4"]
    arguments += ["--recipe.train.steps", "2", "--recipe.train.max-minutes", "None"]
    assert main(arguments) == 0
    assert main(["looks", "--run", str(run), "--data", str(data), "--phase", "train", "--clusters", "2"]) == 0
    return run


def conditions(run: Path, data: Path, **choices: object) -> torch.Tensor:
    """Conditions of the first training frames, as synthesize gives them to the generator."""
    trained = load_trained(run)
    folder = open_folder(data_of(trained.architecture, data, "train"))
    args = Synthesize(run=run, data=data, out=Path("unused"), **choices)
    with torch.no_grad():
        return condition_encoder(args, video_model(trained), folder.spec)(read_sequence(folder, 0, 0, 3))


def test_objects_look_as_drawn_and_alike_for_one_seed(run: Path, data: Path) -> None:
    real, drawn, again = (conditions(run, data, look_seed=seed) for seed in (None, 1, 1))
    assert torch.equal(drawn, again)
    assert torch.equal(drawn[:, :, :3], real[:, :, :3])  # two classes and borders
    assert not torch.equal(drawn[:, :, 3:], real[:, :, 3:])
    assert len(drawn[0, :, 3:, 16, 12].unique(dim=0)) == 1  # constant over the video
    first, second = (conditions(run, data, look_seed=1, look=(f"class_1={n}",)) for n in (0, 1))
    assert not torch.equal(first[:, :, 3:, 16, 12], second[:, :, 3:, 16, 12])
    assert torch.equal(first[:, :, 3:, 2, 2], second[:, :, 3:, 2, 2])  # the ground keeps its look


def test_frames_with_a_drawn_look_are_written(run: Path, data: Path, tmp_path: Path) -> None:
    arguments = ["synthesize", "--run", str(run), "--data", str(data), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--write", "frames", "--look-seed", "1"]) == 0
    files = sorted((tmp_path / "out" / "seq").iterdir())
    assert len(files) == 3
    assert [read_mark(file) is not None for file in files] == [False, True, True]  # the first is real and given
    assert f"({run.name}, step " in str(read_mark(files[1]))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--look-seed", "1", "--look", "1"], "CLASS=NUMBER"),
        (["--look-seed", "1", "--look", "class_1=9"], "9"),
        (["--look-seed", "1", "--looks", "nowhere.npz"], "nowhere.npz"),
        (["--scale-points"], "faces"),
        (["--given-frames", "7"], "none is left"),
    ],
)
def test_what_cannot_be_made_is_refused(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    out = tmp_path / "out"
    assert main(["synthesize", "--run", str(run), "--data", str(data), "--out", str(out), *more]) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()
