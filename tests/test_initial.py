"""Runs that start from other weights: growing by a scale, imported networks; and long rollouts of what they make."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from fastv2v.architecture import load_trained
from fastv2v.checkpoint import find_checkpoint, load_tensors, weights_file
from fastv2v.cli import main
from fastv2v.commands import synthesize
from fastv2v.errors import ConfigError
from fastv2v.nn.composite import CompositeConfig
from fastv2v.nn.discriminator import DiscriminatorConfig
from fastv2v.nn.single_image import SingleImageConfig
from teachers.import_weights import Imported, save_imported
from teachers.published import Blueprint

CLASSES = 3
SMALL = ["--recipe.data.folder.num-classes", str(CLASSES), "--recipe.data.sampling.num-frames", "4", "--quiet"]
SMALL += ["--recipe.data.batch-size", "1", "--recipe.data.folder.test-tail", "5", "--recipe.data.eval-frames", "4"]
SHORT = ["--recipe.train.max-minutes", "None", "--recipe.train.steps"]
TINY = ["--recipe.generator.width", "4", "--recipe.generator.num-blocks", "2"]


def size(height: int, width: int) -> list[str]:
    return ["--recipe.data.folder.geometry.size", str(height), str(width)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rectangle that moves over two stripes."""
    root = tmp_path_factory.mktemp("data")
    for modality in ("A", "B"):
        (root / f"train_{modality}" / "seq").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for t in range(24):
        labels = np.zeros((64, 128), np.uint8)
        labels[32:] = 1
        labels[20:44, 4 * t : 4 * t + 24] = 2
        colours = np.array([[200, 120, 60], [90, 90, 90], [40, 40, 220]], np.uint8)
        frame = cv2.add(colours[labels], rng.integers(0, 12, (64, 128, 3), dtype=np.uint8))
        cv2.imwrite(str(root / "train_A" / "seq" / f"{t:03d}.png"), labels)
        cv2.imwrite(str(root / "train_B" / "seq" / f"{t:03d}.png"), frame)
    return root


@pytest.fixture(scope="module")
def coarse(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "coarse"
    assert main(train(data, run, 2, *size(32, 64))) == 0
    return run


def train(data: Path, run: Path, steps: int, *more: str) -> list[str]:
    return [
        *("train-teacher", "demo", "--data", str(data), "--run", str(run)),
        *("--recipe.foreground", "2"),
        *[*SMALL, *SHORT, str(steps), *TINY, *more],
    ]


def final(run: Path, player: str = "generator") -> dict[str, torch.Tensor]:
    return load_tensors(weights_file(find_checkpoint(run, "latest"), player))


def test_a_run_grows_by_a_scale_while_its_coarse_weights_rest(data: Path, coarse: Path, tmp_path: Path) -> None:
    grown = ["--recipe.generator.num-scales", "2", "--recipe.task.fixed-coarse-steps", "2", "--init", str(coarse)]
    fine = tmp_path / "fine"
    assert main(train(data, fine, 2, *size(64, 128), *grown)) == 0
    old, new = final(coarse), final(fine)
    learnt = {name for name, _ in load_trained(coarse).generator.named_parameters()}
    for name in learnt:
        assert_close(new[f"coarse.{name}"], old[name], rtol=0, atol=0)
    assert any(name.startswith("local.0") for name in new)
    # Afterwards every scale learns.
    both = tmp_path / "both"
    assert main(train(data, both, 1, *size(64, 128), *grown[:2], "--init", str(fine))) == 0
    after = final(both)
    assert any(not torch.equal(after[f"coarse.{name}"], old[name]) for name in learnt)


def test_a_stopped_growing_run_ends_with_the_same_weights(data: Path, coarse: Path, tmp_path: Path) -> None:
    grown = ["--recipe.generator.num-scales", "2", "--recipe.task.fixed-coarse-steps", "2", "--init", str(coarse)]
    grown += ["--recipe.data.sampling.grow-every", "2", "--recipe.train.checkpoint-every", "1"]
    for name in ("whole", "stopped"):
        assert main(train(data, tmp_path / name, 4, *size(64, 128), *grown)) == 0
    newest = find_checkpoint(tmp_path / "stopped", "latest")
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()  # as if the process had been killed before the last checkpoint
    assert main(train(data, tmp_path / "stopped", 4, *size(64, 128), *grown)) == 0
    whole, stopped = final(tmp_path / "whole"), final(tmp_path / "stopped")
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


def test_coarse_scales_are_not_fixed_at_random(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grown = ["--recipe.generator.num-scales", "2", "--recipe.task.fixed-coarse-steps", "2"]
    assert main(train(data, tmp_path / "run", 1, *size(64, 128), *grown)) == 2
    assert "without --init" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--recipe.generator.num-scales", "3", "--recipe.generator.width", "16"], "another shape"),
        (["--recipe.foreground", "1"], "as foreground"),
        (["--recipe.generator.width", "6"], "another shape"),
        (["--recipe.task.fixed-coarse-steps", "1"], "several scales"),
        (["--init", "nowhere"], "nowhere"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    data: Path, coarse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    init = [] if "--init" in more else ["--init", str(coarse)]
    assert main(train(data, tmp_path / "run", 1, *size(64, 128), *init, *more)) == 2
    assert said in capsys.readouterr().err


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What import-weights leaves, of a street generator with its judge and of a single-image generator."""
    root = tmp_path_factory.mktemp("imported")
    torch.manual_seed(0)
    shapes = {
        "composite": (CompositeConfig(width=4, num_downsamples=1, num_blocks=2), CLASSES, (2,)),
        "multiscale_discriminator": (DiscriminatorConfig(width=4, num_scales=2), CLASSES + 3, ()),
        "global": (SingleImageConfig(width=4, num_downsamples=1, num_blocks=1), CLASSES, ()),
    }
    for name, (config, channels, foreground) in shapes.items():
        blueprint = Blueprint(name, config, channels, foreground)
        save_imported(Imported(blueprint.build().eval(), blueprint, ()), root / name, {"source": {}})
    return {name: root / name for name in shapes}


def test_imported_networks_become_a_run_without_training(
    data: Path, imported: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    init = ["--init", str(imported["multiscale_discriminator"]), str(imported["composite"])]
    arguments = ["train-teacher", "demo", "--data", str(data), "--run", str(run), *SMALL, *SHORT, "0", *init]
    assert main([*arguments, *size(32, 64)]) == 0
    trained = load_trained(run)
    assert trained.architecture.generator == CompositeConfig(width=4, num_downsamples=1, num_blocks=2)
    assert trained.architecture.foreground == ("2",) or trained.generator.foreground_channels == (2,)
    weights = load_tensors(imported["composite"] / "weights.safetensors")
    state = trained.generator.state_dict()
    assert all(torch.equal(state[name], value) for name, value in weights.items())
    judge = load_tensors(imported["multiscale_discriminator"] / "weights.safetensors")
    assert all(torch.equal(final(run, "image_discriminator")[name], value) for name, value in judge.items())

    capsys.readouterr()
    more = ["--norm-statistics", "batch", "--first-frames", str(imported["global"]), "--given-frames", "2", "--parts"]
    assert main(["synthesize", "--run", str(run), "--data", str(data), "--out", str(out), *more]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["sequences"] == ["seq"]
    assert sorted(p.name for p in out.iterdir()) == ["seq", "seq-parts.mp4", "seq.mp4"]
    first = cv2.imread(str(out / "seq" / "019.png"))
    real = cv2.resize(cv2.imread(str(data / "train_B" / "seq" / "019.png")), (64, 32))
    assert np.abs(first.astype(int) - real).mean() > 20  # drawn by an untrained network, not taken


def test_long_sequences_are_rolled_out_in_windows_that_leave_no_trace(
    data: Path, coarse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {}
    for window in (2, 16):
        monkeypatch.setattr(synthesize, "WINDOW", window)
        out = tmp_path / str(window)
        arguments = ["--run", str(coarse), "--data", str(data), "--out", str(out), "--write", "frames", "--start", "3"]
        assert main(["synthesize", *arguments, "--phase", "train", "--frames", "9"]) == 0
        made[window] = [cv2.imread(str(path)) for path in sorted((out / "seq").iterdir())]
    assert len(made[2]) == len(made[16]) == 9
    assert all(np.array_equal(a, b) for a, b in zip(made[2], made[16], strict=True))


def test_a_single_image_generator_learns_to_draw_first_frames(
    data: Path, coarse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "first"
    small = ["--recipe.generator.width", "4", "--recipe.generator.num-blocks", "1"]
    small += ["--recipe.data.folder.num-classes", str(CLASSES), "--recipe.data.folder.test-tail", "5", "--quiet"]
    arguments = ["train-first", "demo", "--data", str(data), "--run", str(run), *small, *size(32, 64), *SHORT, "2"]
    assert main(arguments) == 0
    drawn = ["--run", str(coarse), "--data", str(data), "--out", str(tmp_path / "out"), "--write", "frames"]
    assert main(["synthesize", *drawn, "--first-frames", str(run)]) == 0
    capsys.readouterr()
    assert main(["synthesize", "--run", str(run), "--data", str(data), "--out", str(tmp_path / "no")]) == 2
    assert "single images" in capsys.readouterr().err
    assert main(["synthesize", *drawn, "--first-frames", str(coarse), "--overwrite"]) == 2
    assert "no generator of single images" in capsys.readouterr().err


def test_first_frames_are_drawn_in_a_style_by_a_seed(
    data: Path, coarse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that is trained with a style and a pyramid discriminator, far enough for styles to differ by grey levels."""
    first, plain = tmp_path / "first", tmp_path / "plain"
    style = ["channels", "4", "code", "8", "encoder-width", "2", "encoder-size", "64"]
    more = [f"--recipe.generator.style.{x}" if i % 2 == 0 else x for i, x in enumerate(style)]
    more += ["--recipe.generator.coordinates", "--recipe.task.objective.pyramid-discriminator.width", "2"]
    shape = ["--recipe.generator.finest-width", "2", "--recipe.generator.doublings", "3", "--recipe.train.ema-decay"]
    shape += ["None", "--recipe.train.optim.lr", "0.02", "--recipe.data.folder.num-classes", str(CLASSES)]
    shape += ["--recipe.data.folder.test-tail", "5", "--quiet", *size(32, 64)]
    for run, options, steps in ((plain, [], "0"), (first, more, "3")):
        arguments = ["train-first", "world-small", "--data", str(data), "--run", str(run), *shape, *options]
        assert main([*arguments, *SHORT, steps]) == 0
    assert "style_encoder.mean.weight" in final(first) and final(first, "pyramid_discriminator")

    def drawn(name: str, *options: str) -> list[np.ndarray]:
        out = ["--out", str(tmp_path / name), "--write", "frames", "--given-frames", "2", "--frames", "3"]
        more = ["--first-frames", str(first), *options]
        assert main(["synthesize", "--run", str(coarse), "--data", str(data), *out, *more]) == 0
        return [cv2.imread(str(file)) for file in sorted((tmp_path / name / "seq").iterdir())]

    mean, one, again = drawn("mean"), drawn("one", "--first-style", "1"), drawn("again", "--first-style", "1")
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    other = drawn("other", "--first-style", "2")
    assert not np.array_equal(one[0], mean[0]) and not np.array_equal(one[0], other[0])
    starts = [f"--recipe.task.rollout.start-from-{how}" for how in ("nothing", "one", "worn")]
    starts = [word for start, share in zip(starts, "100", strict=True) for word in (start, share)]
    assert main(train(data, tmp_path / "teacher", 1, *size(32, 64), "--first-frames", str(first), *starts)) == 0

    capsys.readouterr()
    wrong = ["synthesize", "--run", str(coarse), "--data", str(data), "--out", str(tmp_path / "no")]
    assert main([*wrong, "--first-style", "1", "--first-frames", str(plain)]) == 2
    assert "draws in no random style" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="--first-style belongs to --first-frames"):
        synthesize.Synthesize(run=coarse, data=data, out=tmp_path, first_style=1)
