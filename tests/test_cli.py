"""The command line: what it answers, and how it refuses."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from fastv2v.cli import COMMANDS, Verb, main
from fastv2v.errors import BundleError, DivergenceError, ParityError


def test_help_names_every_verb_without_importing_torch() -> None:
    code = (
        "import sys; from fastv2v.cli import main; status = main(['--help']);"
        "heavy = {'torch', 'numpy', 'cv2', 'tyro'} & set(sys.modules); print('HEAVY', sorted(heavy)); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(verb in done.stdout for verb in COMMANDS)
    assert "HEAVY []" in done.stdout


def test_unknown_verb_suggests_the_near_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian-teacher"]) == 2
    assert "did you mean train-teacher" in capsys.readouterr().err


@pytest.mark.parametrize("verb", sorted(COMMANDS))
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_status:
        main([verb, "--help"])
    assert exit_status.value.code == 0
    assert f"fastv2v {verb}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train-teacher", "demo", "--data", "nowhere", "--run", "runs/none"], "nowhere"),
        (["synthesize", "--run", "nowhere", "--data", ".", "--out", "out"], "nowhere"),
        (["export", "--run", "nowhere", "--data", ".", "--out", "x.v2v"], "nowhere"),
        (["export", "--run", "nowhere", "--data", ".", "--out", "x"], ".v2v"),
        (["stream", "--bundle", "nowhere.v2v", "--conditions", ".", "--out", "x.mp4"], "no pictures"),
        (["train-predictor", "demo", "--data", "nowhere", "--run", "runs/none"], "nowhere"),
        (["predict", "--predictor", "nowhere", "--teacher", ".", "--data", ".", "--out", "out"], "nowhere"),
        (["report", "--out", "nowhere"], "fastv2v benchmark"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: object,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(str(tmp_path))
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert error.count("\n") == 0


def write_world(root: Path, frames: int = 34, size: tuple[int, int] = (128, 256)) -> Path:
    """A data set of one sequence: three classes in stripes, frames in grey."""
    table = {
        "schema": 1,
        "classes": [{"name": name, "color": [i, i, i]} for i, name in enumerate(("road", "car", "sky"))],
    }
    for folder in ("train_A/a", "train_B/a"):
        (root / folder).mkdir(parents=True)
    (root / "classes.json").write_text(json.dumps(table))
    for t in range(frames):
        label = np.repeat(np.arange(size[0], dtype=np.uint8)[:, None] * 3 // size[0], size[1], axis=1)
        cv2.imwrite(str(root / f"train_A/a/{t:03}.png"), label)
        cv2.imwrite(str(root / f"train_B/a/{t:03}.png"), np.stack([label * 80 + t] * 3, axis=-1))
    return root


def without_labels(root: Path) -> None:
    for file in (root / "train_A/a").iterdir():
        file.unlink()


def label_out_of_range(root: Path) -> None:
    cv2.imwrite(str(root / "train_A/a/001.png"), np.full((128, 256), 9, np.uint8))


def unequal_sizes(root: Path) -> None:
    cv2.imwrite(str(root / "train_A/a/001.png"), np.zeros((64, 128), np.uint8))


def truncated_image(root: Path) -> None:
    file = root / "train_B/a/001.png"
    file.write_bytes(file.read_bytes()[:60])


def empty_sequence(root: Path) -> None:
    without_labels(root)
    for file in (root / "train_B/a").iterdir():
        file.unlink()


def short_sequence(root: Path) -> None:
    for file in [*root.glob("train_?/a/*.png")]:
        if file.stem > "017":  # 16 of the 18 that stay are held out
            file.unlink()


def one_sentence(capsys: pytest.CaptureFixture[str]) -> str:
    """What was said on standard error. OpenCV's own words go past Python and are not seen here."""
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0 and error.startswith("fastv2v"), error
    return error


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (without_labels, "in sequence 'a' 34 frames"),
        (label_out_of_range, "001.png"),
        (unequal_sizes, "001.png"),
        (truncated_image, "001.png"),
        (empty_sequence, "sequence 'a' is empty"),
        (short_sequence, "no sequence is long enough"),
    ],
)
def test_a_damaged_data_set_is_one_sentence_and_nothing_is_written(damage, said, capsys, tmp_path):
    data = write_world(tmp_path / "data")
    damage(data)
    before = sorted(tmp_path.rglob("*"))
    assert main(["train-teacher", "demo", "--data", str(data), "--run", str(tmp_path / "run")]) == 2
    assert said in one_sentence(capsys)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_checkpoint_of_another_architecture_is_one_sentence(capsys, tmp_path):
    from test_architecture import ARCHITECTURE, write_checkpoint

    from fastv2v.architecture import architecture_dict

    wider = replace(ARCHITECTURE, generator=replace(ARCHITECTURE.generator, width=3))
    write_checkpoint(tmp_path / "run", 1, architecture_dict(wider))
    data = write_world(tmp_path / "data")
    before = sorted(tmp_path.rglob("*"))
    for verb, out in (("synthesize", "out"), ("export", "x.v2v")):
        assert main([verb, "--run", str(tmp_path / "run"), "--data", str(data), "--out", str(tmp_path / out)]) == 2
        error = one_sentence(capsys)
        assert "generator.safetensors is a checkpoint of another architecture" in error
        assert "; take one of this network" in error
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch):
    """Make a verb raise."""

    def fail(verb: str, error: BaseException) -> int:
        def raising(arguments: list[str]) -> int:
            raise error

        monkeypatch.setattr(sys.modules[__name__], "raising", raising, raising=False)
        monkeypatch.setitem(COMMANDS, verb, Verb("fails", f"{__name__}:raising"))
        return main([verb])

    return fail


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/data/x.png"), "/data/x.png: Permission denied; check"),
        (OSError(errno.ENOSPC, "No space left on device", "/full"), "/full: No space left on device; check"),
        (OSError("two\nlines"), "two lines; check"),
    ],
)
def test_what_the_system_refuses_is_one_sentence(error, said, failing, capsys):
    assert failing("stream", error) == 2
    assert said in one_sentence(capsys)


def test_a_file_where_a_folder_is_needed_is_named(capsys, tmp_path):
    (tmp_path / "file").write_text("x")
    assert main(["world", "--out", str(tmp_path / "file" / "world")]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err.splitlines()[-1]  # after the progress bar


def test_falling_short_is_status_1(failing, capsys):
    assert failing("export", ParityError("strays")) == failing("train-skd", DivergenceError("nan")) == 1
    assert failing("export", BundleError("exists")) == 2
    capsys.readouterr()


def test_what_can_go_on_promises_to(failing, capsys):
    for verb in COMMANDS:
        assert failing(verb, KeyboardInterrupt()) == 130
        promised = "the same command goes on" in one_sentence(capsys)
        assert promised == (verb in ("demo", "prepare", "search", "precompute") or verb.startswith("train-"))


def test_an_unknown_log_level_is_one_sentence(capsys, monkeypatch):
    monkeypatch.setenv("FASTV2V_LOG", "loud")
    assert main(["world", "--help"]) == 2
    assert "FASTV2V_LOG is 'loud'; set it to one of debug" in one_sentence(capsys)
