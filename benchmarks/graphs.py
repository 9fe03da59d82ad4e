"""What TensorRT is given, for every student: whether its parser takes it, and how far it strays from the torch network.

Each student is exported, made ready in every number format, walked against the list of operators, checked as ONNX with
all types and shapes inferred, and rolled out in ONNX Runtime over a procedural drive, beside the torch module; each is
fed its own frames. Students are untrained, but their norms have seen the drive, so that activations have a spread as in
use. 16-bit layers are rounded one by one (see ``export.mixed``); what the graph gives as ONNX Runtime runs it stands
beside. Teachers are only walked.
"""

from __future__ import annotations

import json as json_format
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple, cast

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from torch import nn

from benchmarks.realtime import Drive, make_drive, untrained_student
from benchmarks.results import BenchmarkResult, Row, format_table, result_path, write_result
from export.choose import Probe, roll_out
from export.engines import OnnxRuntimeEngine, StepEngine
from export.graph_check import check_graph
from export.graphs import opset_of, save_graph
from export.onnx_graph import export_step
from export.outside import OutsideEngine
from export.parity import psnr
from export.prepare import TOLERANCES, Precision, PreparedGraph, emulate, prepare_graph
from export.quantize import Feeds, calibration_feeds
from export.warp_graph import Warp
from fastv2v.contracts import History, StepModel
from fastv2v.errors import ConfigError, FastV2VError, ParityError
from fastv2v.nn.generators import build_generator
from fastv2v.render import rollout, start_history
from students.presets import STUDENTS
from teachers.presets import PRESETS

FORMS: Final[tuple[tuple[Precision, Warp], ...]] = (
    ("f32", "grid_sample"),
    ("f32", "gather"),
    ("f32", "outside"),
    ("f16", "grid_sample"),
    ("f16", "gather"),
    ("f16", "outside"),
    ("bf16", "gather"),
    ("int8", "grid_sample"),
)
"""Number formats and forms of the warp that are looked at."""
MOST_LOSS_DB: Final[Mapping[Precision, float]] = {"f16": 65.0, "bf16": 80.0, "int8": 90.0, "fp8": 90.0}
"""What a format may lose of what f32 reaches, where it does: untrained networks of much depth turn rounding into noise.
Rounding every layer to f16 would cost 78 dB: 13 bits less, of 6.02 dB each."""
_VERSIONS: Final = {"f32": "10.0", "f16": "10.0", "bf16": "10.16", "int8": "10.0", "fp8": "10.0"}
"""The oldest TensorRT each format is made for; bf16 needs operator set 22."""
TEACHERS: Final = ("demo", "street")
"""Teachers whose graphs are walked."""
COLUMNS: Final = {
    "name": "network",
    "precision": "format",
    "warp": "warp",
    "nodes": "nodes",
    "layers_16_bit": "in 16 bits",
    "layers_f32": "in f32",
    "quantised": "quantised",
    "opset": "opset",
    "faults": "faults",
    "psnr_db": "dB to torch",
    "least_psnr_db": "at least",
    "greatest": "greatest",
    "as_run_psnr_db": "dB as run",
}
"""Columns of the table."""

Frames = NDArray[np.float32]


class Case(NamedTuple):
    """A network with what it is shown and what it makes of it."""

    name: str
    model: StepModel
    drive: Drive
    conditions: Frames
    """(T, C, H, W)."""
    frames: Frames
    """What the torch module makes, (T, 3, H, W) in [-1, 1]."""


def settle_norms(model: nn.Module, conditions: Frames, seed: int = 0) -> None:
    """Let batch norms see a drive, from past frames of noise: untrained statistics let activations fade away.

    Args:
        model: a step model; left in evaluation mode.
        conditions: (T, C, H, W).
        seed: of the noise.
    """
    noise = torch.Generator().manual_seed(seed)
    norms = [x for x in model.modules() if isinstance(x, nn.BatchNorm2d)]
    kept = [x.momentum for x in norms]
    step = cast(StepModel, model)
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all steps
    model.train()
    with torch.no_grad():
        for condition in torch.from_numpy(conditions):
            past = condition.expand(1, step.history_length, *condition.shape)
            frames = torch.rand(1, step.history_length, 3, *condition.shape[-2:], generator=noise) * 2 - 1
            step.step(condition[None], History(past, frames, torch.ones(1)))
    model.eval()
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum


def make_case(name: str, drive: Drive, model: nn.Module | None = None) -> Case:
    """An untrained student on a drive.

    Args:
        name: a student's preset.
        drive: what it is shown.
        model: stands in for the preset, as a narrower one of the same layers.

    Raises:
        ConfigError: if the student is unknown.
    """
    if name not in STUDENTS:
        raise ConfigError(f"unknown student {name!r}; there are {', '.join(STUDENTS)}")
    model = untrained_student(name, drive.spec.channels) if model is None else model
    conditions = np.stack([drive.encoded(i) for i in range(len(drive.frames))])
    settle_norms(model, conditions)
    step = cast(StepModel, model)
    given = torch.from_numpy(conditions)[None]
    with torch.no_grad():
        history = start_history(given[:, :0], None, step.history_length, first_condition=given[:, 0])
        frames = torch.cat([output.frame for output in rollout(step, given, history)]).numpy()
    return Case(name, step, drive, conditions, frames)


def graph_rows(case: Case, folder: Path, forms: tuple[tuple[Precision, Warp], ...] = FORMS) -> Iterator[Row]:
    """Make one student ready in every form and judge each.

    Args:
        case: see ``make_case``.
        folder: for the files.
        forms: number formats and forms of the warp.

    Yields:
        One row for each form, see ``COLUMNS``; ``reason`` names the faults.

    Raises:
        BundleError: if a graph is not valid ONNX or ONNX Runtime cannot run it.
    """
    step = folder / "step.onnx"
    export_step(case.model, step, size=case.drive.size, spec=case.drive.spec, outputs=("frame",))
    feeds: list[Feeds] = calibration_feeds(_opened(step), Probe(case.conditions), case.model.history_length)
    in_f32: float | None = None
    for precision, warp in forms:
        made = prepare_graph(step, precision, warp=warp, feeds=feeds)
        faults = check_graph(made.model, _VERSIONS[precision])
        rounded, as_run = _frames(case, made, warp, step, folder)
        difference = np.abs(rounded - case.frames)
        plan, reached = made.plan, _shown(psnr(rounded, case.frames))
        if precision == "f32":
            in_f32 = reached
        yield {
            "name": case.name,
            "precision": precision,
            "warp": warp,
            "nodes": len(made.model.graph.node),
            "layers_16_bit": 0 if plan is None else plan.count(plan.low),
            "layers_f32": None if plan is None else plan.count("f32"),
            "quantised": sum(x.op_type == "QuantizeLinear" for x in made.model.graph.node) // 2,
            "opset": opset_of(made.model),
            "tensorrt": _VERSIONS[precision],
            "faults": len(faults),
            "reason": "; ".join(map(str, faults)) or None,
            "psnr_db": reached,
            "least_psnr_db": least_psnr_db(precision, in_f32),
            "greatest": float(difference.max()) if np.isfinite(difference).all() else None,
            "as_run_psnr_db": None if as_run is None else _shown(psnr(as_run, case.frames)),
        }


def _frames(case: Case, made: PreparedGraph, warp: Warp, step: Path, folder: Path) -> tuple[Frames, Frames | None]:
    """Frames with every 16-bit layer rounded, and as ONNX Runtime runs the graph, which it cannot in bf16."""

    def rolled(graph: object, name: str) -> Frames:
        save_graph(graph, path := folder / name)  # type: ignore[arg-type]
        engine: StepEngine = _opened(path)
        if warp == "outside":
            engine = OutsideEngine(_opened(path), step)
        return np.stack(list(roll_out(engine, case.conditions, case.model.history_length)))

    graphs = emulate(made)
    rounded = rolled(graphs.rounded, "rounded.onnx")
    if graphs.as_run is None or graphs.as_run is graphs.rounded:
        return rounded, rounded if graphs.as_run is graphs.rounded else None
    return rounded, rolled(graphs.as_run, "made.onnx")


def _opened(path: Path) -> OnnxRuntimeEngine:
    return OnnxRuntimeEngine(path, torch.get_num_threads())


def _shown(psnr_db: float) -> float | None:
    """A PSNR as JSON can hold it: None where it is no number, 200 where frames are equal."""
    return None if math.isnan(psnr_db) else min(200.0, max(-200.0, psnr_db))


def teacher_row(name: str, drive: Drive, size: tuple[int, int], folder: Path) -> Row:
    """Walk a teacher's graph, exported at a small size: what it is made of does not depend on that.

    Args:
        name: a teacher's preset.
        drive: gives the number of channels.
        size: (height, width).
        folder: for the file.
    """
    torch.manual_seed(0)
    recipe = PRESETS[name]()
    cars = (26,) if recipe.foreground else ()
    model = cast(nn.Module, build_generator(recipe.generator, drive.spec.channels, cars)).eval()
    report = export_step(cast(StepModel, model), folder / "teacher.onnx", size=size, spec=drive.spec)
    faults = check_graph(folder / "teacher.onnx")
    return {
        "name": f"teacher {name}",
        "precision": "f32",
        "warp": "grid_sample",
        "nodes": sum(report.nodes.values()),
        "opset": report.opset,
        "faults": len(faults),
        "reason": "; ".join(map(str, faults)) or None,
    }


def least_psnr_db(precision: Precision, reached_in_f32: float | None) -> float:
    """What the frames of a format must reach beside torch's.

    Args:
        precision: the format.
        reached_in_f32: PSNR of the same network in f32; None where that is not known.
    """
    least = TOLERANCES[precision].graph_db
    if precision == "f32" or reached_in_f32 is None:
        return least
    return min(least, reached_in_f32 - MOST_LOSS_DB[precision])


def failures(rows: list[Row]) -> list[str]:
    """Rows with a fault of the parser or a frame too far off, each in one sentence."""
    found = []
    for row in rows:
        what = f"{row['name']} in {row['precision']} with the warp by {row['warp']}"
        if row["faults"]:
            found.append(f"{what}: {row['reason']}")
        reached, least = row.get("psnr_db"), row.get("least_psnr_db")
        if least is not None and not (isinstance(reached, float) and reached >= cast(float, least)):
            found.append(f"{what} reaches {reached} dB of {least}")
    return found


def main(
    students: tuple[str, ...] = tuple(STUDENTS),
    *,
    size: tuple[int, int] = (256, 512),
    frames: int = 3,
    teachers: tuple[str, ...] = TEACHERS,
    teacher_size: tuple[int, int] = (64, 128),
    threads: int = 1,
    json: Path | None = None,
    record: bool = False,
) -> None:
    """Judge the graphs of students and teachers and print a table, then one line of JSON.

    Args:
        students: which students.
        size: (height, width) of their frames.
        frames: steps of the rollout.
        teachers: which teachers to walk.
        teacher_size: (height, width) their graphs are exported at.
        threads: CPU threads of torch.
        json: also write the result to this file.
        record: also write it among the results of the project.

    Raises:
        ConfigError: if a student or teacher is unknown, or a number makes no sense.
        ParityError: if the parser would not take a graph, or its frames stray too far; the table is printed before.
    """
    for kind, given, known in (("student", students, STUDENTS), ("teacher", teachers, PRESETS)):
        if unknown := [x for x in given if x not in known]:
            raise ConfigError(f"unknown {kind} {unknown[0]!r}; there are {', '.join(known)}")
    if frames < 1 or threads < 1:
        raise ConfigError(f"frames and threads must be at least 1, got {frames} and {threads}")
    torch.set_num_threads(threads)
    drive = make_drive(size, frames)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in students:
            rows += graph_rows(make_case(name, drive), Path(scratch))
            print(f"{name}: done", file=sys.stderr)
        rows += [teacher_row(name, drive, teacher_size, Path(scratch)) for name in teachers]
    print(format_table(rows, COLUMNS))
    result = BenchmarkResult(
        suite="graphs",
        rows=tuple(rows),
        device="cpu",
        threads=threads,
        precision="as named",
        settings={"size": list(size), "frames": frames, "teacher_size": list(teacher_size)},
    )
    if json is not None:
        write_result(json, result)
    if record:
        write_result(result_path("graphs"), result)
    print(json_format.dumps(result.to_dict()))
    if wrong := failures(rows):
        raise ParityError("; ".join(wrong))


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except FastV2VError as error:
        print(f"benchmarks.graphs: {error}", file=sys.stderr)
        raise SystemExit(error.exit_status) from error
