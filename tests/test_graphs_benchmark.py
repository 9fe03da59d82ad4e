"""Every student's graph, in every format: taken by TensorRT's parser, valid, and beside torch within what is stated."""

import json
from dataclasses import replace

import pytest
import torch

from benchmarks import graphs
from benchmarks.graphs import (
    FORMS,
    failures,
    graph_rows,
    least_psnr_db,
    main,
    make_case,
    settle_norms,
    teacher_row,
)
from benchmarks.realtime import make_drive
from export.prepare import Tolerance
from fastv2v.errors import ConfigError, ParityError
from fastv2v.nn.generators import build_generator
from fastv2v.nn.slim import SlimConfig, SlimGenerator
from students.presets import STUDENTS, published

SIZE = (32, 64)
ACCEPTED = (
    ("f32", "grid_sample"),
    ("f16", "grid_sample"),
    ("bf16", "gather"),
    ("int8", "grid_sample"),
)
"""One form for each format; all of them for the smallest student."""


@pytest.fixture(scope="module")
def drive():
    return make_drive(SIZE, 2)


@pytest.mark.parametrize("student", STUDENTS)
def test_every_student_suits_tensorrt_and_follows_torch(student, drive, tmp_path):
    narrow = None
    if student == "published":  # 70 million weights take half a minute; the graph of fewer has the same layers
        narrow = build_generator(replace(published(), width=32), drive.spec.channels, (26,)).eval()
    case = make_case(student, drive, narrow)
    assert case.frames.std() > 0.05  # there is something to lose
    forms = FORMS if student == "pico" else ACCEPTED
    rows = list(graph_rows(case, tmp_path, forms))
    assert failures(rows) == []
    assert [(row["precision"], row["warp"]) for row in rows] == list(forms)
    by_format = {row["precision"]: row for row in rows}
    assert by_format["f16"]["layers_16_bit"] > by_format["f16"]["layers_f32"] > 5
    assert by_format["int8"]["quantised"] > 3
    assert by_format["f32"]["psnr_db"] > by_format["f16"]["psnr_db"] > by_format["bf16"]["psnr_db"]


@pytest.mark.parametrize("teacher", ["demo", "world-small-plain"])
def test_teachers_are_walked(teacher, drive, tmp_path):
    row = teacher_row(teacher, drive, (64, 128), tmp_path)
    assert row["faults"] == 0 and row["nodes"] > 100
    assert failures([row]) == []


def test_what_falls_short_is_told():
    good = {"name": "tiny", "precision": "f16", "warp": "gather", "faults": 0, "psnr_db": 70.0, "least_psnr_db": 60.0}
    assert failures([good]) == []
    assert failures([good | {"psnr_db": 59.0}]) == ["tiny in f16 with the warp by gather reaches 59.0 dB of 60.0"]
    assert failures([good | {"psnr_db": None}]) == ["tiny in f16 with the warp by gather reaches None dB of 60.0"]
    faulty = failures([good | {"faults": 1, "reason": "Resize 'r': antialiasing is not taken"}])
    assert faulty == ["tiny in f16 with the warp by gather: Resize 'r': antialiasing is not taken"]


def test_what_amplifies_rounding_is_held_to_what_it_reaches_in_f32():
    assert least_psnr_db("f32", 70.0) == 90.0
    assert least_psnr_db("f16", 130.0) == least_psnr_db("f16", None) == 50.0
    assert least_psnr_db("f16", 95.0) == 30.0


def test_norms_see_the_drive(drive):
    torch.manual_seed(0)
    model = SlimGenerator(SlimConfig(widths=(8,), depths=(1,), up_depths=()), drive.spec.channels).eval()
    settle_norms(model, drive.encoded(0)[None])
    norm = next(x for x in model.modules() if isinstance(x, torch.nn.BatchNorm2d))
    assert norm.momentum == 0.1 and not norm.training
    assert norm.running_mean.abs().max() > 0


def test_the_command_writes_a_table_and_a_result(tmp_path, capsys, monkeypatch):
    settings = {"size": SIZE, "frames": 2, "teachers": (), "json": tmp_path / "r.json"}
    monkeypatch.setattr(graphs, "FORMS", FORMS[:1])
    monkeypatch.setattr(graphs.graph_rows, "__defaults__", (FORMS[:1],))
    main(("pico",), **settings)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("network") and lines[2].startswith("pico")
    assert json.loads(lines[-1]) == json.loads((tmp_path / "r.json").read_text())
    monkeypatch.setattr(graphs, "TOLERANCES", dict.fromkeys(graphs.TOLERANCES, Tolerance(300.0, 300.0)))
    with pytest.raises(ParityError, match=r"pico in f32 with the warp by grid_sample reaches .* dB of 300"):
        main(("pico",), **settings)
    assert capsys.readouterr().out.startswith("network")
    with pytest.raises(ConfigError, match="unknown student 'huge'"):
        main(("pico", "huge"), size=SIZE)  # before the first is measured
    assert not capsys.readouterr().err
    with pytest.raises(ConfigError, match="frames and threads must be at least 1, got 3 and 0"):
        main(("pico",), size=SIZE, threads=0)
    with pytest.raises(ConfigError, match="unknown teacher 'huge'"):
        main(("pico",), teachers=("huge",))
