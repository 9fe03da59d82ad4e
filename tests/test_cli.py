"""The command line: what it answers, and how it refuses."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fastv2v.cli import COMMANDS, main


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
