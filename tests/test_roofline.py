"""Rates beside the peak, measured in a process of their own: it holds several engines and torch at once."""

import json
import subprocess
import sys

import pytest

from benchmarks.roofline import matrix_peak, roofline
from export.engines import available_candidates
from fastv2v.errors import ConfigError


def test_rates_are_work_over_time_beside_the_peak_and_the_profile_tells_where_it_goes(tmp_path):
    command = [sys.executable, "-m", "benchmarks.roofline", "--students", "pico", "--size", "64", "128"]
    command += ["--threads", "1", "--repeats", "3", "--json", str(tmp_path / "r.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert json.loads((tmp_path / "r.json").read_text()) == document
    rows = [row for row in document["rows"] if row["name"] == "pico"]
    int8 = ["onnxruntime int8", "openvino int8"]
    assert [row["engine"] for row in rows] == [*map(str, available_candidates()), *int8]
    assert all(row["share"] is None for row in rows[-2:])
    for row in rows[:-2]:
        assert row["gmacs_per_s"] == pytest.approx(row["gmacs_per_keyframe"] / row["median"] * 1000)
        assert row["share"] == pytest.approx(row["gmacs_per_s"] / row["peak_gmacs_per_s"])
        assert row["share"] > 0
    layers = [row for row in document["rows"] if row["name"].startswith("pico: ")]
    assert sum(row["share"] for row in layers) == pytest.approx(1)
    assert [row["median"] for row in layers] == sorted((row["median"] for row in layers), reverse=True)
    assert "pico: Convolution" in {row["name"] for row in layers}
    assert all(row["count"] >= 1 for row in layers)


def test_peaks_are_measured_in_known_formats_only():
    assert matrix_peak("f32", side=64, repeats=3) > 0
    with pytest.raises(ConfigError, match="peaks are measured in f32, bf16"):
        matrix_peak("int8")
    with pytest.raises(ConfigError, match="unknown student"):
        roofline(("huge",), (64, 128))
