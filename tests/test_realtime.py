"""Benchmarks of whole pipelines run in processes of their own: they hold several engines, torch and ffmpeg at once."""

import json
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.realtime import PUBLISHED, make_drive, published_pipeline, published_student, realtime_benchmark, soak
from export.engines import available_candidates
from fastv2v.errors import ConfigError
from fastv2v.metrics.image import psnr

SIZE = (64, 128)


def measured(*options: str) -> dict:
    """What the command prints in its last line."""
    command = [sys.executable, "-m", "benchmarks.realtime", "--students", "pico", "--size", "64", "128"]
    done = subprocess.run([*command, "--threads", "1", *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_engine_stands_beside_the_published_pipeline(tmp_path):
    document = measured("--gap", "2", "--num-frames", "7", "--repeats", "1", "--json", str(tmp_path / "r.json"))
    assert json.loads((tmp_path / "r.json").read_text()) == document
    ours = [row for row in document["rows"] if row["name"] == "pico"]
    int8 = ["onnxruntime int8", "openvino int8"]
    assert [row["engine"] for row in ours] == [*map(str, available_candidates()), *int8]
    (theirs,) = (row for row in document["rows"] if row["name"] == PUBLISHED)
    assert theirs["ratio"] == 1
    assert theirs["gmacs_per_keyframe"] > 500 * ours[0]["gmacs_per_keyframe"]
    for row in ours:
        assert row["ratio"] == pytest.approx(row["median"] / theirs["median"])
        assert 0 < row["synthesis_share"] <= 1.01 and 0 < row["fill_share"] < 1
        assert 0 < row["interval_p50_ms"] <= row["interval_p95_ms"] <= row["interval_p99_ms"]


def test_the_published_pipeline_delivers_every_frame_through_jpeg():
    drive = make_drive(SIZE, 6)
    made = list(published_pipeline(published_student(drive.spec.channels), drive, 3, 1))
    assert len(made) == 6
    for index in (0, 3, 5):  # keyframes, exchanged for those of the drive
        assert 28 < psnr(made[index], drive.frames[index]) < 60
    assert all(frame.dtype == np.uint8 and frame.shape == (*SIZE, 3) for frame in made)


def test_a_soak_counts_frames_and_compares_with_offline():
    (row,) = measured("--soak-frames", "1100")["rows"]
    assert row["frames"] == 1100
    assert row["same_as_offline"]
    assert row["late_p99_ms"] > 0


def test_nonsense_is_refused():
    with pytest.raises(ConfigError, match="unknown student 'huge'; there are published"):
        realtime_benchmark(["huge"], SIZE)
    with pytest.raises(ConfigError, match="more than two gaps"):
        realtime_benchmark(["pico"], SIZE, gap=4, num_frames=8)
    with pytest.raises(ConfigError, match="at least 1100 frames"):
        soak("pico", SIZE, 1000)
