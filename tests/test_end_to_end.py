"""The whole line on small frames: data, teacher, both distillations, export, stream, benchmark, page."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from shared_data import shared

from export.bundle import load_manifest
from fastv2v.checkpoint import find_checkpoint, load_tensors, weights_file
from fastv2v.cli import main
from fastv2v.run import read_metrics
from fastv2v.video import read_video

SIZE = ["--recipe.data.folder.geometry.size", "64", "128"]
SHORT = ["--recipe.train.steps", "2", "--recipe.train.max-minutes", "None", "--recipe.train.checkpoint-every", "1"]


def run_line(data: Path, out: Path, clip_frames: int) -> dict[str, object]:
    """All verbs in order, two steps each; returns what the benchmark wrote."""
    clips = ["--recipe.data.sampling.num-frames", str(clip_frames), "--recipe.data.batch-size", "1", "--quiet"]
    given = ["--data", str(data)]
    teacher, skd, tkd, bundle = (str(out / name) for name in ("teacher", "skd", "tkd", "student.v2v"))
    assert main(["train-teacher", "demo", *given, "--run", teacher, *SIZE, *SHORT, *clips]) == 0
    assert main(["train-skd", "demo", *given, "--teacher", teacher, "--run", skd, *SIZE, *SHORT, *clips]) == 0
    both = ["--teacher", teacher, "--student", skd]
    assert main(["train-tkd", "demo", *given, *both, "--run", tkd, *SIZE, *SHORT, *clips]) == 0
    assert main(["export", "--run", tkd, *given, "--out", bundle, "--frames", "8"]) == 0
    made = ["--teacher", teacher, "--bundle", bundle]
    runs = ["--runs", teacher, skd, tkd, "--repeats", "1", "--max-frames", "12"]
    assert main(["benchmark", *made, *given, "--out", str(out / "benchmark"), *runs]) == 0
    return {s: json.loads((out / "benchmark" / f"{s}.json").read_text()) for s in ("cost", "fps", "quality")}


def check_line(out: Path, results: dict[str, object]) -> None:
    """What a user finds afterwards."""
    assert load_manifest(out / "student.v2v").parity.max_abs_diff < 1e-3
    page = (out / "benchmark" / "report.html").read_text()
    assert page.count("data:video/mp4") >= 4
    assert "http" not in page.split("<body")[1].split("xmlns")[0] or "https://" not in page
    names = {row["name"] for row in results["quality"]["rows"]}  # type: ignore[index]
    assert {"teacher", "delivered stream", "floor: mean colour per label", "floor: previous real frame"} <= names
    teacher, student = results["cost"]["rows"]  # type: ignore[index]
    assert student["gmacs_per_frame"] < teacher["gmacs_per_frame"]
    assert read_metrics(out / "teacher", "eval")[-1]["psnr"] > 5


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "world"
    size = ["--world.size", "64", "128", "--world.num-frames", "12"]
    assert main(["world", "--out", str(folder), *size, "--train-clips", "1", "--test-clips", "1"]) == 0
    return folder


def test_the_line_runs_on_the_procedural_world_and_streams_every_frame(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_line(tmp_path, run_line(world, tmp_path, 9))
    labels = next((world / "test_A").iterdir())
    video = tmp_path / "stream.mp4"
    first = sorted((world / "test_B" / labels.name).iterdir())[0]
    arguments = ["stream", "--bundle", str(tmp_path / "student.v2v"), "--conditions", str(labels), "--out", str(video)]
    assert main([*arguments, "--seed-frame", str(first)]) == 0
    assert len(list(read_video(video))) == 12
    assert main(arguments) == 2  # never overwritten silently
    frames = tmp_path / "frames"
    assert main([*arguments[:-1], str(frames), "--engine", "onnxruntime"]) == 0
    assert [p.stem for p in sorted(frames.iterdir())] == [p.stem for p in sorted(labels.iterdir())]
    synthesised = tmp_path / "synthesised"
    assert main(["synthesize", "--run", str(tmp_path / "tkd"), "--data", str(world), "--out", str(synthesised)]) == 0
    assert cv2.imread(str(synthesised / labels.name / f"{first.stem}.png")).shape == (64, 128, 3)
    check_refusals(world, tmp_path, capsys)
    check_damage(tmp_path / "student.v2v", labels, capsys)


def check_refusals(world: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What would spoil results or lose files is answered with one sentence before any work."""
    teacher, skd, tkd = (str(out / name) for name in ("teacher", "skd", "tkd"))
    given, again = ["--data", str(world)], ["--out", str(out / "synthesised")]
    distil = ["train-tkd", "demo", *given, "--run", str(out / "refused"), *SIZE, *SHORT, "--quiet"]
    pair, frames = ["--teacher", teacher, "--student", skd], "--recipe.data.sampling.num-frames"
    cases = {
        "exists already": ["synthesize", "--run", tkd, *given, *again],
        "none is left": ["synthesize", "--run", tkd, *given, "--out", str(out / "other"), "--given-frames", "12"],
        "student.v2v exists already": ["export", "--run", tkd, *given, "--out", str(out / "student.v2v")],
        "cannot be the teacher": [*distil, "--teacher", skd, "--student", skd, frames, "9"],
        "cannot be the student": [*distil, "--teacher", teacher, "--student", teacher, frames, "9"],
        "too short for keyframes": [*distil, *pair, frames, "3"],
        "scoring needs at least 13": [*distil, *pair, frames, "9", "--recipe.task.deployed-gap", "12"],
        "must be multiples of": [*distil, *pair, frames, "9", "--recipe.data.folder.geometry.size", "66", "130"],
    }
    for said, command in cases.items():
        capsys.readouterr()
        assert main(command) == 2, said
        assert said in capsys.readouterr().err
    assert not (out / "refused").exists()
    assert main(["synthesize", "--run", tkd, *given, *again, "--overwrite", "--write", "frames"]) == 0


def check_damage(bundle: Path, labels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One changed byte is noticed before anything is written."""
    graph = bundle / "step.onnx"
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    capsys.readouterr()
    out = bundle.parent / "damaged.mp4"
    assert main(["stream", "--bundle", str(bundle), "--conditions", str(labels), "--out", str(out)]) == 2
    assert "step.onnx" in capsys.readouterr().err
    assert not out.exists()


def test_the_line_runs_on_a_real_drive(tmp_path: Path) -> None:
    check_line(tmp_path, run_line(shared("street_camvid"), tmp_path, 9))


@pytest.mark.slow
def test_a_killed_training_ends_with_the_same_weights(world: Path, tmp_path: Path) -> None:
    def command(run: Path) -> list[str]:
        program = [sys.executable, "-m", "fastv2v.cli", "train-teacher", "demo", "--data", str(world)]
        steps = ["--recipe.train.steps", "6", "--recipe.train.max-minutes", "None"]
        often = ["--recipe.train.checkpoint-every", "1", "--recipe.train.eval-every", "0"]
        clips = ["--recipe.data.sampling.num-frames", "6", "--recipe.data.batch-size", "1", "--quiet"]
        return [*program, "--run", str(run), *SIZE, *steps, *often, *clips]

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole, killed = tmp_path / "whole", tmp_path / "killed" / "whole"
    subprocess.run(command(whole), check=True, env=environment, capture_output=True)
    process = subprocess.Popen(command(killed), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wanted = random.Random(0).randint(2, 4)
    while len(list((killed / "checkpoints").glob("step-*"))) < min(wanted, 3) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run(command(killed), check=True, env=environment, capture_output=True)
    for player in ("generator", "image_discriminator", "temporal_discriminator_0"):
        ends = [weights_file(find_checkpoint(run, "latest"), player) for run in (whole, killed)]
        a, b = (load_tensors(end) for end in ends)
        assert a.keys() == b.keys()
        assert all(np.array_equal(a[name].numpy(), b[name].numpy()) for name in a)
