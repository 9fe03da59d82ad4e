"""The report: one HTML page that holds everything it shows and asks nothing of the network."""

from __future__ import annotations

import base64
import math
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import cv2
import jinja2
import numpy as np
from numpy.typing import NDArray

from benchmarks.results import Row, format_number
from fastv2v.errors import ConfigError, MediaError
from fastv2v.video import check_frame, probe_video, read_video

_MAX_POINTS: Final = 240
_CHART_SIZE: Final = (230, 440)  # (height, width) of a chart in its own units
_PLOT: Final = (10, 12, 200, 428)  # top, left, bottom, right of the area a curve may use; left grows with tick labels


@dataclass(frozen=True, kw_only=True)
class Headline:
    """A number that one should remember."""

    value: str
    """The number with its unit, such as ``3.4 x``."""
    label: str
    """What it is."""
    note: str = ""
    """What it is compared with, or under which conditions."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of a benchmark."""

    title: str
    """Heading."""
    columns: Mapping[str, str]
    """Keys of the rows, in order, with their headings."""
    rows: Sequence[Row]
    """The lines; a missing value is shown as a dash."""
    note: str = ""
    """How to read it: units, which direction is better, what is inside the timing."""
    floor: str = ""
    """Name of the row that others must beat; rows whose names begin with ``floor`` are set apart."""
    higher_is_better: Sequence[str] = ()
    """Columns in which a value below that of the floor is marked."""

    def below_floor(self, row: Row, key: str) -> bool:
        """Whether a row does not beat the floor in a column where more is better."""
        found = next((other for other in self.rows if other["name"] == self.floor), None)
        values = (row.get(key), None if found is None else found.get(key))
        if found is None or key not in self.higher_is_better or str(row["name"]).startswith("floor"):
            return False
        return all(isinstance(value, int | float) for value in values) and values[0] <= values[1]  # type: ignore[operator]


@dataclass(frozen=True, kw_only=True)
class VideoPanel:
    """One video among others that are played in step."""

    name: str
    """What it shows: condition, real, teacher, student."""
    path: str | os.PathLike[str]
    """An ``.mp4`` that browsers play (``write_video`` without ``lossless``)."""
    keyframes: Sequence[bool] | None = None
    """For a part-time student: for each frame, whether it was synthesised."""
    note: str = ""
    """A line below it."""


@dataclass(frozen=True, kw_only=True)
class VideoGroup:
    """Videos of the same length and rate, side by side under one control."""

    title: str
    """Heading."""
    panels: Sequence[VideoPanel]
    """The videos, in order."""
    note: str = ""
    """A line below the heading."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A sample picture."""

    name: str
    """What it shows."""
    image: NDArray[np.uint8]
    """RGB, (H, W, 3), 8-bit."""
    note: str = ""
    """A line below it."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One series of a run's ``metrics.jsonl``."""

    name: str
    """Name of the term or measure."""
    steps: Sequence[float]
    """Training steps, ascending."""
    values: Sequence[float]
    """One value each; NaN and infinity leave a hole."""

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.values):
            raise ConfigError(f"curve {self.name!r} has {len(self.steps)} steps and {len(self.values)} values")


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Curves that share their axes."""

    title: str
    """Heading."""
    curves: Sequence[Curve]
    """What is drawn; curves without a finite value are only listed."""
    log_scale: bool = False
    """Logarithmic values; those of 0 and below leave a hole."""
    note: str = ""
    """A line below it."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training stage: what was trained, for how long, with which settings, and how it went."""

    title: str
    """Heading, such as ``teacher``."""
    note: str = ""
    """What this stage does, in a sentence."""
    facts: Mapping[str, object] = field(default_factory=dict)
    """What one wants to know first: steps, time, best score."""
    charts: Sequence[Chart] = ()
    """Its curves."""
    pictures: Sequence[Picture] = ()
    """What it made of held-out clips."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """Every setting, by its name on the command line; folded up on the page."""


@dataclass(frozen=True, kw_only=True)
class RepeatStep:
    """How a stranger gets one of the figures."""

    figure: str
    """Which table, number or video."""
    command: str
    """What to type."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything the page shows; parts that are empty are left out."""

    title: str
    """Heading of the page."""
    summary: str = ""
    """What was done and what came of it, in a few sentences."""
    setup: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """What was run, by group: configuration, machine, versions and commit, each name -> value."""
    headlines: Sequence[Headline] = ()
    """The numbers on top."""
    tables: Sequence[Table] = ()
    """Quality with the floors, cost, speed."""
    videos: Sequence[VideoGroup] = ()
    """Videos side by side."""
    pictures: Sequence[Picture] = ()
    """Sample pictures."""
    charts: Sequence[Chart] = ()
    """Curves that belong to no stage."""
    stages: Sequence[Stage] = ()
    """The training stages in their order."""
    repeats: Sequence[RepeatStep] = ()
    """How to repeat each figure."""


def write_report(path: str | os.PathLike[str], report: Report) -> None:
    """Write a report as one self-contained HTML page: styles, script, pictures and videos are inside.

    The page forbids itself any request by its content security policy, follows the reader's light or dark scheme, and
    escapes every text it is given.

    Args:
        path: file to write; its folder is created. It appears complete or not at all.
        report: what to show.

    Raises:
        MediaError: naming the video, if one is missing, damaged or of a kind that browsers do not play.
        ConfigError: if the videos of a group differ in length or rate, keyframe marks do not fit, or a chart is wrong.
    """
    path = Path(path)
    page = _template().render(
        report=report,
        groups=[_load_group(group) for group in report.videos],
        pictures=[(picture, _picture_uri(picture)) for picture in report.pictures],
        charts=[(chart, _draw(chart)) for chart in report.charts],
        stages=[
            {
                "stage": stage,
                "charts": [(chart, _draw(chart)) for chart in stage.charts],
                "pictures": [(picture, _picture_uri(picture)) for picture in stage.pictures],
            }
            for stage in report.stages
        ],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        temporary.write_text(page, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = format_number
    environment.filters["fact"] = _fact
    environment.filters["starts_with"] = str.startswith
    environment.filters["has_text"] = lambda rows, key: any(isinstance(row.get(key), str) for row in rows)
    return environment.get_template("report.html.j2")


def _fact(value: object) -> str:
    """A setting for people: sequences without brackets, a dash for nothing."""
    if value is None or value == "" or value == () or value == []:
        return "–"
    if isinstance(value, list | tuple):
        return ", ".join(map(_fact, value))
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _picture_uri(picture: Picture) -> str:
    check_frame(picture.image, f"picture {picture.name!r}")
    return _uri("image/png", cv2.imencode(".png", cv2.cvtColor(picture.image, cv2.COLOR_RGB2BGR))[1].tobytes())


def _load_group(group: VideoGroup) -> dict[str, Any]:
    """The group's videos as the template needs them, checked to be playable in step."""
    infos = [probe_video(panel.path) for panel in group.panels]
    lengths = {panel.name: (info.num_frames, info.fps) for panel, info in zip(group.panels, infos, strict=True)}
    if len(set(lengths.values())) != 1:
        found = ", ".join(f"{name}: {count} frames at {float(fps):g}/s" for name, (count, fps) in lengths.items())
        raise ConfigError(f"videos of {group.title!r} are played in step and need one length and rate; got {found}")
    num_frames, fps = infos[0].num_frames or 0, float(infos[0].fps)
    return {
        "title": group.title,
        "note": group.note,
        "fps": fps,
        "num_frames": num_frames,
        "panels": [_load_panel(panel, num_frames) for panel in group.panels],
        # One strip of marks serves the group: that of its first part-time video.
        "keyframes": next((p.keyframes for p in group.panels if p.keyframes is not None), None),
    }


def _load_panel(panel: VideoPanel, num_frames: int) -> dict[str, Any]:
    path = Path(panel.path)
    if path.suffix.lower() != ".mp4":
        raise MediaError(f"{path}: a report shows .mp4 videos, which browsers play; write it with write_video")
    if panel.keyframes is not None and len(panel.keyframes) != num_frames:
        raise ConfigError(f"{panel.name!r} has {len(panel.keyframes)} keyframe marks for {num_frames} frames")
    frames = read_video(path)
    first = next(frames)
    frames.close()  # type: ignore[attr-defined]
    poster = cv2.imencode(".jpg", cv2.cvtColor(first, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    return {
        "name": panel.name,
        "note": panel.note,
        "size": first.shape[:2],
        "poster": _uri("image/jpeg", poster.tobytes()),
        "video": _uri("video/mp4", path.read_bytes()),
        "marks": "" if panel.keyframes is None else "".join("1" if k else "0" for k in panel.keyframes),
    }


def _draw(chart: Chart) -> dict[str, Any]:
    """Lines, ticks and legend of a chart in the units of its picture."""
    series = [(curve.name, *_thin(curve, chart.log_scale)) for curve in chart.curves]
    steps = np.concatenate([x for _, x, _ in series] or [np.empty(0)])
    values = np.concatenate([y for _, _, y in series] or [np.empty(0)])
    steps, values = steps[np.isfinite(values)], values[np.isfinite(values)]
    if not values.size:
        raise ConfigError(f"chart {chart.title!r} has no finite value to draw")
    x_ticks = _ticks(steps.min(), steps.max())
    y_ticks = _log_ticks(values.min(), values.max()) if chart.log_scale else _ticks(values.min(), values.max())
    x_low, x_high = _range(steps)
    y_low, y_high = _range(np.concatenate([values, y_ticks]))
    labels = [format_number(float(10**tick if chart.log_scale else tick)) for tick in y_ticks]
    labels = [label.rstrip("0").rstrip(".") if "." in label and "e" not in label else label for label in labels]
    top, left, bottom, right = _PLOT
    left += 7 * max(map(len, labels))

    def x_of(step: float) -> float:
        return round(left + (step - x_low) / (x_high - x_low) * (right - left), 1)

    def y_of(value: float) -> float:
        return round(bottom - (value - y_low) / (y_high - y_low) * (bottom - top), 1)

    return {
        "height": _CHART_SIZE[0],
        "width": _CHART_SIZE[1],
        "plot": {"top": top, "left": left, "bottom": bottom, "right": right},
        "x_ticks": [(x_of(tick), f"{tick:,.6g}") for tick in x_ticks],
        "y_ticks": [(y_of(tick), label) for tick, label in zip(y_ticks, labels, strict=True)],
        "lines": [
            {"name": name, "path": _svg_path([(x_of(s), y_of(v)) for s, v in zip(x, y, strict=True)])}
            for name, x, y in series
        ],
        "last": [_last_value(curve) for curve in chart.curves],
    }


def _thin(curve: Curve, log_scale: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """At most ``_MAX_POINTS`` points, each the mean of its stretch; NaN where there is nothing to draw."""
    steps, values = np.asarray(curve.steps, np.float64), np.asarray(curve.values, np.float64)
    values = np.where(np.isfinite(values), values, np.nan)
    if log_scale:
        values = np.log10(np.where(values > 0, values, np.nan))
    pieces = np.array_split(np.arange(len(steps)), min(len(steps), _MAX_POINTS) or 1)
    pieces = [piece for piece in pieces if piece.size]
    return np.array([steps[p].mean() for p in pieces]), np.array([values[p].mean() for p in pieces])


def _svg_path(points: Sequence[tuple[float, float]]) -> str:
    """A path through the points, lifted at those that are not finite; a lone point becomes a dot of no length."""
    parts, is_down = [], False
    for x, y in points:
        if not math.isfinite(y):
            is_down = False
            continue
        parts.append(f"L{x:g} {y:g}" if is_down else f"M{x:g} {y:g}h0")
        is_down = True
    return "".join(parts)


def _range(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _ticks(low: float, high: float) -> NDArray[np.float64]:
    """Two to six round numbers that lie within the range."""
    span = (high - low) or abs(low) or 1.0
    unit = 10.0 ** math.floor(math.log10(span / 4))
    step = next(factor * unit for factor in (1, 2, 5, 10) if span / (factor * unit) <= 5)
    count = np.arange(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1, dtype=np.float64)
    ticks = count * step
    return ticks if ticks.size else np.array([low])


def _log_ticks(low: float, high: float) -> NDArray[np.float64]:
    """Logarithms of round numbers: powers of ten, or 1, 2, 5 times them where the range is short."""
    decades = np.arange(math.floor(low), math.ceil(high) + 1, max(1, math.ceil((high - low) / 5)))
    ticks = decades[(decades >= low) & (decades <= high)].astype(float)
    if ticks.size < 2:
        finer = (np.arange(math.floor(low), math.ceil(high) + 1)[:, None] + np.log10([1, 2, 5])).ravel()
        ticks = finer[(finer >= low) & (finer <= high)]
    return ticks if ticks.size else np.array([low, high])


def _last_value(curve: Curve) -> str:
    finite = [value for value in curve.values if math.isfinite(value)]
    return format_number(float(finite[-1])) if finite else "–"
