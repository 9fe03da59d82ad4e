"""``fastv2v report``: the page of a benchmark, from the files it wrote."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2

from benchmarks.quality import MEAN_COLOUR, WORLD_MEASURES
from benchmarks.report import (
    Chart,
    Curve,
    Headline,
    Picture,
    RepeatStep,
    Report,
    Stage,
    Table,
    VideoGroup,
    VideoPanel,
    write_report,
)
from benchmarks.results import BenchmarkResult, format_number, load_result
from fastv2v.checkpoint import latest_checkpoint, read_state
from fastv2v.commands.arguments import parse
from fastv2v.data.images import read_image
from fastv2v.errors import DataError
from fastv2v.run import read_config, read_metrics

COLUMNS: Mapping[str, Mapping[str, str]] = {
    "cost": {
        "name": "network",
        "gmacs_per_keyframe": "GMACs / keyframe",
        "gmacs_per_frame": "GMACs / delivered frame",
        "output_position_gmacs_per_keyframe": "GMACs / keyframe (output positions)",
        "output_position_gmacs_per_frame": "GMACs / delivered frame (output positions)",
        "gflops_per_keyframe": "GFLOPs / keyframe",
        "parameters_m": "weights M",
        "keyframe_fraction": "keyframes / frames",
    },
    "fps": {
        "name": "pipeline",
        "engine": "engine",
        "keyframe_ms": "ms / keyframe",
        "keyframe_fps": "keyframe FPS",
        "median": "delivered FPS",
        "spread": "spread (IQR)",
        "ratio_to_teacher": "x teacher",
    },
    "quality": {
        "name": "video",
        "frames": "frames",
        "psnr_db": "PSNR dB",
        "ssim": "SSIM",
        "vmaf": "VMAF",
        "warping_error": "warping error",
        "flicker": "flicker",
    },
    "interpolation": {
        "name": "method",
        "psnr_db": "PSNR dB",
        "psnr_min_db": "worst frame dB",
        "ms_per_frame": "ms / interpolated frame",
        "speedup": "x minterpolate",
    },
}
"""Columns of each suite's table, on the screen and on the page."""


def columns_of(suite: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Columns of a table: those of its suite, and of the world's consistency where that was measured."""
    further = WORLD_MEASURES if suite == "quality" else {}
    return dict(COLUMNS[suite]) | {
        key: heading for key, heading in further.items() if any(row.get(key) is not None for row in rows)
    }


PAGE = "report.html"
"""Name of the page in a benchmark's folder."""
SOURCES = "sources.json"
"""Name of the file that says what a benchmark was asked; it marks the folder as one."""

_TITLES = {
    "quality": "Quality on held-out frames",
    "cost": "Arithmetic",
    "fps": "Speed",
    "interpolation": "Interpolation of real frames",
}
_NOTES = {
    "quality": (
        "All videos start from one real frame, which is left out. The floors are the mean colour of each label and the "
        "previous real frame; a model that does not beat the first has not learnt. Higher PSNR, SSIM and VMAF are "
        "better; lower warping error and flicker are better, but blur lowers them too."
    ),
    "cost": "1 MAC = 2 FLOPs. 'Output positions' counts transposed convolutions as Fast-Vid2Vid's table does.",
    "fps": "Medians of one run, frames in memory: condition map in, 8-bit frame out, interpolation included.",
    "interpolation": "Every gap-th real frame given, PSNR over the others only.",
}

_STAGES = {
    "teacher": (
        "Teacher",
        "Full size, every frame, from real frames and label maps. Slow, and what students learn from.",
    ),
    "spatial": ("Spatial distillation", "The student reads its input at a fraction of the size and makes every frame."),
    "temporal": ("Temporal distillation", "The student makes keyframes only, as it is deployed."),
    "first": ("First frames", "Draws the frame a video begins with."),
}
"""Name of each training stage, and what it does."""


@dataclass(frozen=True, kw_only=True)
class ReportArgs:
    """Write the page of a benchmark again, for example after its training runs went on."""

    out: Path
    """Folder that ``fastv2v benchmark`` wrote."""


def write_page(out: Path, *, shown_as: Path | None = None) -> Path:
    """Write the page from the results in a benchmark's folder.

    Args:
        out: the folder.
        shown_as: its name in the command that repeats the figures, where it will be moved.

    Raises:
        DataError: if the folder holds no results.
    """
    results = {suite: load_result(out / f"{suite}.json") for suite in _TITLES if (out / f"{suite}.json").exists()}
    if not results:
        raise DataError(f"{out} holds no benchmark results; run fastv2v benchmark --out {out} first")
    if not (out / SOURCES).is_file():
        raise DataError(f"{out} has results but no {SOURCES}; run fastv2v benchmark --out {out} again")
    sources = json.loads((out / SOURCES).read_text())
    runs = [Path(run) for run in sources["runs"]]
    first = next(iter(results.values()))
    report = Report(
        title="fastv2v: teacher and deployed student",
        summary=(
            "A full-time teacher, the part-time student distilled from it, and the stream its bundle delivers, "
            "measured in one run on frames neither was trained on."
        ),
        setup={"settings": first.settings, "machine": first.machine, "versions": first.versions}
        | {"commit": {"commit": first.commit}},
        headlines=_headlines(results),
        tables=[
            Table(
                title=_TITLES[suite],
                columns=columns_of(suite, result.rows),
                rows=result.rows,
                note=_NOTES[suite],
                floor=MEAN_COLOUR if suite == "quality" else "",
                higher_is_better=("psnr_db", "ssim", "vmaf"),
            )
            for suite, result in results.items()
            if result.rows
        ],
        videos=_videos(out / "videos"),
        stages=[_stage(run) for run in runs],
        repeats=_repeats(results, sources, shown_as or out, runs),
    )
    path = out / PAGE
    write_report(path, report)
    return path


def _headlines(results: Mapping[str, BenchmarkResult]) -> list[Headline]:
    """The numbers on top."""
    lines = []
    by_name = {suite: {row["name"]: row for row in result.rows} for suite, result in results.items()}
    if "fps" in by_name:
        row = by_name["fps"]["delivered stream"]
        lines.append(
            Headline(
                value=f"{row['median']:.0f} FPS", label="delivered", note=f"{row['ratio_to_teacher']:.1f} x teacher"
            )
        )
    if "cost" in by_name:
        teacher, student = by_name["cost"]["teacher"], by_name["cost"]["student"]
        ratio = _number(teacher["gmacs_per_frame"]) / _number(student["gmacs_per_frame"])
        lines.append(Headline(value=f"{ratio:.0f} x", label="fewer MACs per delivered frame", note="than the teacher"))
    if "quality" in results:
        scores = {row["name"]: row for row in results["quality"].rows if row["frames"] == "all"}
        for name in ("teacher", "delivered stream"):
            gain = _number(scores[name]["psnr_db"]) - _number(
                scores.get("floor: mean colour per label", {"psnr_db": math.nan})["psnr_db"]
            )
            note = f"{gain:+.2f} dB over mean colours" if math.isfinite(gain) else ""
            lines.append(Headline(value=f"{scores[name]['psnr_db']:.2f} dB", label=f"PSNR, {name}", note=note))
    return lines


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _videos(folder: Path) -> list[VideoGroup]:
    """The videos of each sequence, side by side."""
    names = {"condition": "condition", "real": "real", "teacher": "teacher", "delivered": "delivered stream"}
    groups = []
    for sequence in sorted(path.parent for path in folder.rglob("keyframes.json")) if folder.is_dir() else ():
        marks = json.loads((sequence / "keyframes.json").read_text())
        panels = [
            VideoPanel(name=title, path=sequence / f"{kind}.mp4", keyframes=marks if kind == "delivered" else None)
            for kind, title in names.items()
            if (sequence / f"{kind}.mp4").exists()
        ]
        groups.append(VideoGroup(title=sequence.relative_to(folder).as_posix(), panels=panels))
    return groups


def _stage(run: Path) -> Stage:
    """What a run says about itself; a folder that was moved or deleted since is said to be gone."""
    if not run.is_dir():
        return Stage(title=run.name, note=f"The run {run} is not there any more.")
    checkpoint = latest_checkpoint(run)
    state = {} if checkpoint is None else read_state(checkpoint)
    title, note = _STAGES.get(state.get("architecture", {}).get("stage", ""), ("run", ""))
    settings = _flat(read_config(run))
    best = state.get("best")
    facts = {
        "steps": state.get("step"),
        "time": _duration(state.get("elapsed_s")),
        "best held-out score": best and f"{format_number(best['value'])} {best['metric']} at step {best['step']}",
        "clips in a batch": settings.get("recipe.data.batch_size"),
        "frames in a clip": settings.get("recipe.data.sampling.num_frames"),
        "commit": (_environment(run).get("commit") or "")[:12],
    }
    return Stage(
        title=f"{title}: {run.name}",
        note=note,
        facts={name: value for name, value in facts.items() if value not in (None, "")},
        charts=_charts(run),
        pictures=_pictures(run),
        settings=settings,
    )


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted names, as the command line calls them."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _environment(run: Path) -> dict[str, Any]:
    """What a run was started with; empty where nothing was kept."""
    path = run / "environment.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found if isinstance(found, dict) else {}


def _duration(seconds: float | None) -> str | None:
    """Hours, minutes and seconds, as 1:02:03 or 2:03."""
    if seconds is None:
        return None
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def _pictures(run: Path) -> list[Picture]:
    """The newest contact sheet of a run."""
    sheets = sorted((run / "samples").glob("*.png"))
    if not sheets:
        return []
    image = read_image(sheets[-1])
    scale = min(1.0, 1600 / image.shape[1])
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else image
    return [Picture(name="held-out clip", image=small.astype("uint8"), note=sheets[-1].stem)]


def _charts(run: Path) -> list[Chart]:
    """The generator's terms over training, and what was measured on held-out clips; no chart of one point."""
    charts = []
    for kind, title in (("train", "losses of the generator"), ("eval", "held-out clips")):
        entries = read_metrics(run, kind)
        keys = sorted({key for entry in entries for key in entry} - {"step", "kind"})
        keys = [key for key in keys if kind == "eval" or (key.startswith("generator/") and "grad_norm" not in key)]
        curves = []
        for key in keys:
            points = [
                (entry["step"], math.nan if entry[key] is None else entry[key]) for entry in entries if key in entry
            ]
            if any(math.isfinite(value) for _, value in points):
                name = key.removeprefix("generator/")
                curves.append(Curve(name=name, steps=[p[0] for p in points], values=[p[1] for p in points]))
        if any(len(curve.steps) > 1 for curve in curves):
            charts.append(Chart(title=title, curves=curves, log_scale=kind == "train"))
    return charts


def _repeats(
    results: Mapping[str, BenchmarkResult], sources: Mapping[str, Any], out: Path, runs: Sequence[Path]
) -> list[RepeatStep]:
    """What to type for each figure: the stages as they were started, then the benchmark, whole and by table."""
    started: dict[str, list[str]] = {}
    for run in runs:
        if command := _environment(run).get("command"):
            words = [Path(command[0]).name, *map(str, command[1:])]
            started.setdefault(shlex.join(words), []).append(run.name)
    settings = next(iter(results.values())).settings
    words = ["fastv2v", "benchmark", "--teacher", settings["teacher"], "--bundle", settings["bundle"]]
    words += ["--data", settings["data"], "--engine", sources["engine"]]
    words += ["--threads", str(sources["threads"]), "--repeats", str(sources["repeats"])]
    words += ["--max-frames", str(sources["max_frames"])]
    whole = [*words, "--out", str(out), "--suites", *sources["suites"], "--runs", *sources["runs"]]
    steps = [RepeatStep(figure=f"Training of {', '.join(names)}", command=line) for line, names in started.items()]
    steps.append(RepeatStep(figure="This page: all tables and videos", command=shlex.join(whole)))
    for suite in results:
        alone = [*words, "--out", f"{out}-{suite}", "--suites", suite]
        steps.append(RepeatStep(figure=_TITLES[suite], command=shlex.join(alone)))
    return steps


def main(argv: list[str]) -> int:
    """``fastv2v report --out DIR``."""
    args = parse(ReportArgs, "fastv2v report", argv)
    page = write_page(args.out)
    print(page)
    print(json.dumps({"page": str(page)}))
    return 0
