"""``fastv2v benchmark`` without a teacher: a bundle in several engines."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import fake_smi
import numpy as np
import pytest
from tiny_bundle import SIZE, SPEC, manifest, write_tiny

from benchmarks import engines
from benchmarks.engines import measure_engines, moving_conditions, wanted_candidates
from export.bundle import load_manifest
from export.engines import REFERENCE, Candidate, available_candidates
from fastv2v.cli import main
from fastv2v.data.conditions import ConditionSpec
from fastv2v.errors import BundleError, ConfigError

pytest.importorskip("onnxruntime", reason="the engine that is timed is not installed")


@pytest.fixture
def bundle(tmp_path):
    return write_tiny(tmp_path / "tiny.v2v")


class TestConditions:
    def test_blocks_move_to_the_left_two_pixels_a_frame(self):
        spec = ConditionSpec(class_names=SPEC.class_names, use_instances=True)
        made = moving_conditions(spec, SIZE, 4)
        for before, after in itertools.pairwise(made):
            assert np.array_equal(before.labels[:, 2:], after.labels[:, :-2])
            assert np.array_equal(before.instances[:, 2:], after.instances[:, :-2])
        assert made[0].labels.max() < spec.num_classes and made[0].labels.dtype == np.uint8
        assert len(np.unique(made[0].instances)) > 4

    def test_maps_move_too(self):
        spec = ConditionSpec(kind="maps", class_names=(), map_channels=3)
        made = moving_conditions(spec, SIZE, 20)
        assert len(made) == 20 and all(x.maps.shape == (3, *SIZE) and x.maps.dtype == np.float32 for x in made)
        assert np.array_equal(made[0].maps[..., 2:], made[1].maps[..., :-2])


class TestCandidates:
    def test_auto_stands_for_all_that_may_run_here_and_nothing_comes_twice(self, bundle):
        assert wanted_candidates(bundle, ("auto", "onnxruntime:f32")) == list(available_candidates(bundle))
        assert wanted_candidates(bundle, ("onnxruntime-tensorrt", "torch:bf16")) == [
            ("onnxruntime-tensorrt", "tf32"),
            ("torch", "bf16"),
        ]


def test_an_engine_that_cannot_run_does_not_stop_the_others(bundle):
    candidates = [Candidate("onnxruntime-cuda", "f32"), REFERENCE]
    failed, measured = measure_engines(bundle, candidates, num_frames=9, repeats=1, threads=1)
    assert "onnxruntime-gpu" in failed["failed"] and "median" not in failed
    assert measured["name"] == "onnxruntime f32" and measured["where"] == "with 1 threads"
    assert 0 < measured["keyframe_ms"] <= measured["keyframe_p95_ms"] <= measured["keyframe_p99_ms"]
    assert measured["keyframe_fps"] == pytest.approx(1000 / measured["keyframe_ms"])
    assert measured["median"] > 0 and measured["unit"] == "frames / s"
    assert measured["gflops_per_keyframe"] == 2 * measured["gmacs_per_keyframe"] == 2e6 / 1e9
    with pytest.raises(ConfigError, match="num_frames must be at least 2"):
        measure_engines(bundle, candidates, num_frames=1)


def test_memory_is_what_the_engine_took_and_power_is_told(bundle, tmp_path, monkeypatch):
    """Told by a program in the place of nvidia-smi, which speaks of other numbers once an engine is at work."""
    fake_smi.install(tmp_path, fake_smi.SPEAKING, monkeypatch)
    (row,) = measure_engines(bundle, [REFERENCE], num_frames=5, repeats=1, threads=1)
    assert row["gpu_memory_mb"] == pytest.approx(500 * 1.048576)
    assert row["power_w"] == 250


@pytest.mark.parametrize(
    ("changes", "device"),
    [
        ({}, "cuda"),
        ({"interpolation": {"method": "network"}}, None),
        ({"condition": replace(SPEC, guidance_levels=1)}, None),
    ],
)
def test_bundles_that_no_device_streams_are_measured_without(changes, device, monkeypatch):
    """Gaps filled by a network, and guidance by what was painted, stay on the host."""
    asked = []

    def opened(folder, **options):
        asked.append(options["device"])
        raise BundleError("enough")

    monkeypatch.setattr(engines, "open_bundle", opened)
    monkeypatch.setattr(engines, "load_manifest", lambda folder: manifest(**changes))
    monkeypatch.setattr(engines, "moving_conditions", lambda *_: [])
    monkeypatch.setattr(engines, "this_machine", lambda: {"gpu": "Abacus 9000"})
    measure_engines("x.v2v", [Candidate("torch", "f32")])
    assert asked == [device]


def test_code_in_an_engine_is_allowed_only_where_one_says_so(monkeypatch):
    asked = []

    def opened(folder, **options):
        asked.append(options["host_code"])
        raise BundleError("enough")

    monkeypatch.setattr(engines, "open_bundle", opened)
    monkeypatch.setattr(engines, "load_manifest", lambda folder: manifest())
    for allowed in (False, True):
        measure_engines("x.v2v", [Candidate("tensorrt", "f16")], num_frames=2, host_code=allowed)
    assert asked == [False, True]


class TestVerb:
    def test_several_engines_stand_in_one_table_and_one_line_of_json(self, bundle, tmp_path, capsys):
        options = ["--frames", "9", "--repeats", "1", "--threads", "1", "--json", str(tmp_path / "line.json")]
        engines = ["--engine", "onnxruntime", "onnxruntime-cuda:tf32"]
        assert main(["benchmark", "--bundle", str(bundle), *engines, *options]) == 1  # the second cannot run
        said = capsys.readouterr().out
        document = json.loads(said.splitlines()[-1])
        assert [row["name"] for row in document["engines"]] == ["onnxruntime f32", "onnxruntime-cuda tf32"]
        assert json.loads((tmp_path / "line.json").read_text()) == document
        assert "ms / keyframe" in said and "delivered frames / s" in said
        assert load_manifest(bundle).engine is None

    def test_the_choice_is_written_into_the_bundle_where_that_is_asked(self, bundle, capsys):
        options = ["--frames", "9", "--repeats", "1", "--threads", "1", "--engine", "onnxruntime", "--record"]
        assert main(["benchmark", "--bundle", str(bundle), *options]) == 0
        assert load_manifest(bundle).engine.engine == "onnxruntime"
        assert "written into" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("options", "problem"),
        [
            (["--teacher", "t"], "--teacher, --data and --out go together"),
            (["--engine", "abacus"], "no engine 'abacus'"),
            (["--frames", "1"], "--frames must be at least 2, got 1"),
            (["--threads", "0"], "--threads must be at least 1, got 0"),
            (["--host-code"], "only an engine that is named may bring code of its own"),
            (["--engine", "tensorrt", "auto", "--host-code"], "only an engine that is named may bring code of its own"),
            (
                ["--teacher", "t", "--data", "d", "--out", "o", "--engine", "onnxruntime", "openvino"],
                "beside a teacher one engine is measured",
            ),
            (["--teacher", "t", "--data", "d", "--out", "o", "--record"], "--record goes without"),
        ],
    )
    def test_what_does_not_go_together_is_refused(self, bundle, options, problem, capsys):
        with pytest.raises(SystemExit, match="2"):
            main(["benchmark", "--bundle", str(bundle), *options])
        assert problem in " ".join(capsys.readouterr().err.split())
