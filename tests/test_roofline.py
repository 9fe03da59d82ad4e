import json

import pytest

from benchmarks.roofline import layer_profile, main, matrix_peak, roofline
from export.engines import available_candidates
from fastv2v.errors import ConfigError

SIZE = (64, 128)


def test_rates_are_work_over_time_beside_the_peak():
    rows = roofline(("pico",), SIZE, threads=1, repeats=3, side=256)
    int8 = ["onnxruntime int8", "openvino int8"]
    assert [row["engine"] for row in rows] == [*map(str, available_candidates()), *int8]
    assert all(row["share"] is None for row in rows[-2:])
    for row in rows[:-2]:
        assert row["gmacs_per_s"] == pytest.approx(row["gmacs_per_keyframe"] / row["median"] * 1000)
        assert row["share"] == pytest.approx(row["gmacs_per_s"] / row["peak_gmacs_per_s"])
        assert row["share"] > 0


def test_the_profile_tells_where_the_time_goes():
    rows = layer_profile("pico", SIZE, threads=1, repeats=3)
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert [row["median"] for row in rows] == sorted((row["median"] for row in rows), reverse=True)
    assert "Convolution" in {row["name"] for row in rows}
    assert all(row["count"] >= 1 for row in rows)


def test_peaks_are_measured_in_known_formats_only():
    assert matrix_peak("f32", side=64, repeats=3) > 0
    with pytest.raises(ConfigError, match="peaks are measured in f32, bf16"):
        matrix_peak("int8")
    with pytest.raises(ConfigError, match="unknown student"):
        roofline(("huge",), SIZE)


def test_the_last_line_is_json(capsys, tmp_path):
    main(("pico",), size=SIZE, threads=1, repeats=2, profile=False, json=tmp_path / "r.json")
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["suite"] == "roofline"
    assert json.loads((tmp_path / "r.json").read_text()) == document
