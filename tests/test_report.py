"""The result file, and the page that shows everything."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from benchmarks.quality import MEAN_COLOUR
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
from benchmarks.results import BenchmarkResult, format_number, format_table, load_result, result_path, write_result
from fastv2v.commands.report import write_page
from fastv2v.errors import ConfigError, DataError, MediaError, ShapeError
from fastv2v.video import write_video


def make_result(**changes):
    facts = {
        "suite": "fps",
        "device": "cpu",
        "threads": 1,
        "precision": "fp32",
        "rows": [{"name": "student", "median": 2.5, "spread": 0.1, "unit": "ms"}],
        "machine": {"cpu": "none", "cores": 1, "os": "Linux", "python": "3.11"},
        "versions": {"numpy": "2"},
        "commit": None,
    }
    return BenchmarkResult(**(facts | changes))


class TestResultFile:
    def test_round_trip(self, tmp_path):
        result = make_result(settings={"size": [128, 256]}, repeats=7)
        write_result(tmp_path / "new" / "r.json", result)
        assert load_result(tmp_path / "new" / "r.json") == result
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["r.json"]

    def test_machine_versions_and_commit_are_filled_in(self):
        result = BenchmarkResult(suite="fps", device="cpu", threads=1, precision="fp32", rows=[{"name": "a"}])
        assert result.versions["numpy"] == np.__version__
        assert result.machine["cores"] >= 1

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"rows": []}, "rows"),
            ({"rows": [{"median": 1.0, "spread": 0.0, "unit": "ms"}]}, "'name' is a required"),
            ({"rows": [{"name": "a", "median": 1.0}]}, "spread"),
            ({"rows": [{"name": "a", "psnr_db": math.nan}]}, "psnr_db of 'a' is nan"),
            ({"rows": [{"name": "a", "list": [1]}]}, "rows/0/list"),
            ({"threads": 0}, "threads"),
            ({"suite": "a b"}, "suite"),
        ],
    )
    def test_what_breaks_the_schema_is_refused(self, changes, message):
        with pytest.raises(ConfigError, match=message):
            make_result(**changes)

    @pytest.mark.parametrize(
        ("text", "message"),
        [(None, "no such result"), ("{", "no JSON"), ("{}", "required"), ("[]", "is not of type 'object'")],
    )
    def test_damaged_files_are_named(self, tmp_path, text, message):
        path = tmp_path / "r.json"
        if text is not None:
            path.write_text(text)
        with pytest.raises(DataError, match=message) as caught:
            load_result(path)
        assert str(path) in str(caught.value)

    def test_another_schema_version_is_refused(self, tmp_path):
        write_result(tmp_path / "r.json", make_result())
        document = json.loads((tmp_path / "r.json").read_text()) | {"schema_version": 99}
        (tmp_path / "r.json").write_text(json.dumps(document))
        with pytest.raises(DataError, match="schema_version"):
            load_result(tmp_path / "r.json")

    def test_path_names_suite_machine_and_device(self):
        path = result_path("quality", "openvino-cpu", machine="amd-epyc-2-cores")
        assert path.parts[-3:] == ("benchmarks", "results", "quality--amd-epyc-2-cores--openvino-cpu.json")
        with pytest.raises(ConfigError, match="file name"):
            result_path("quality", "../cpu")


class TestTextTable:
    def test_names_left_numbers_right(self):
        rows = [{"name": "teacher", "fps": 4.0, "n": 1200}, {"name": "student", "n": None}]
        assert format_table(rows, {"name": "model", "fps": "FPS", "n": "count"}).splitlines() == [
            "model      FPS  count",
            "-------  -----  -----",
            "teacher  4.000  1,200",
            "student      –      –",
        ]

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (0.0, "0"),
            (48.1308, "48.13"),
            (-0.4567, "-0.4567"),
            (123456.7, "123,457"),
            (0.0001377, "0.0001377"),
            (1e-9, "1e-09"),
            (True, "yes"),
            (math.inf, "–"),
            ("text", "text"),
        ],
    )
    def test_four_digits(self, value, text):
        assert format_number(value) == text


@pytest.fixture
def clip(tmp_path):
    """A function that writes a small video and returns its path."""

    def write(name="v.mp4", num_frames=6, fps=10, **options):
        rng = np.random.default_rng(0)
        frames = rng.integers(0, 256, (num_frames, 16, 24, 3), dtype=np.uint8)
        write_video(tmp_path / name, frames, fps, **options)
        return tmp_path / name

    return write


class _Page(HTMLParser):
    """Tags, attributes and texts of a page, and whether its tags are balanced."""

    def __init__(self, path):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in {"meta", "img", "input", "link", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data.strip())

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def full_report(clip):
    keyframes = [True, False, False, True, False, False]
    return Report(
        title="Street",
        summary="What came of it.",
        setup={"Machine": {"cpu": "none", "gpu": None, "size": (128, 256)}},
        headlines=[Headline(value="6.8 x", label="faster", note="in one run")],
        tables=[Table(title="Quality", columns={"name": "video", "psnr_db": "PSNR", "a.b": "dot"},
                      note="higher is better", rows=[{"name": "teacher", "psnr_db": 24.5}, {"name": "student"}])],
        videos=[VideoGroup(title="Clip 7", panels=[
            VideoPanel(name="Real", path=clip("real.mp4")),
            VideoPanel(name="Student", path=clip("student.mp4"), keyframes=keyframes, note="delivered"),
        ])],
        pictures=[Picture(name="Sample", image=np.zeros((4, 4, 3), np.uint8))],
        charts=[Chart(title="Losses", curves=[Curve(name="gan", steps=[0, 10, 20], values=[3.0, 2.0, 1.5])])],
        repeats=[RepeatStep(figure="Quality", command="fastv2v benchmark quality")],
    )  # fmt: skip


class TestReport:
    def test_everything_given_is_on_the_page(self, tmp_path, clip):
        write_report(tmp_path / "new" / "report.html", full_report(clip))
        page = _Page(tmp_path / "new" / "report.html")
        assert page.open == []
        for text in (
            "Street", "What came of it.", "6.8 x", "faster", "in one run", "Quality", "PSNR", "24.50", "–",
            "higher is better", "Clip 7", "Real", "Student", "delivered", "Sample", "Losses", "gan", "1.500",
            "fastv2v benchmark quality", "128, 256",
        ):  # fmt: skip
            assert text in page.texts
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.html"]

    def test_every_text_is_escaped(self, tmp_path, clip):
        evil = "<script>alert('x')</script>\"&"
        report = full_report(clip)
        report = Report(
            title=evil,
            summary=evil,
            setup={evil: {evil: evil}},
            headlines=[Headline(value=evil, label=evil, note=evil)],
            tables=[Table(title=evil, columns={"name": evil, evil: evil}, note=evil,
                          rows=[{"name": evil, evil: evil}])],
            videos=[replace(report.videos[0], title=evil, note=evil,
                            panels=[replace(p, name=evil, note=evil) for p in report.videos[0].panels])],
            pictures=[replace(report.pictures[0], name=evil, note=evil)],
            charts=[Chart(title=evil, note=evil, curves=[Curve(name=evil, steps=[0, 1], values=[0, 1])])],
            repeats=[RepeatStep(figure=evil, command=evil)],
        )  # fmt: skip
        write_report(tmp_path / "report.html", report)
        page = _Page(tmp_path / "report.html")
        assert "alert('x')" not in page.source
        assert len(page.all("script")) == 1
        assert page.texts.count(evil) >= 15

    def test_the_page_needs_nothing_from_elsewhere(self, tmp_path, clip):
        write_report(tmp_path / "report.html", full_report(clip))
        page = _Page(tmp_path / "report.html")
        addresses = [a[key] for _, a in page.tags for key in ("src", "href", "poster") if key in a]
        assert addresses
        assert all(address.startswith(("data:", "#")) for address in addresses)
        assert not re.search(r"https?://", page.source)
        (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
        assert "default-src 'none'" in policy

    def test_one_control_plays_all_videos_and_is_labelled(self, tmp_path, clip):
        write_report(tmp_path / "report.html", full_report(clip))
        page = _Page(tmp_path / "report.html")
        assert len(page.all("video")) == 2
        assert not any("controls" in video or "autoplay" in video for video in page.all("video"))
        assert all(a.get("aria-label") for tag in ("button", "input", "select", "video") for a in page.all(tag))
        (player,) = [a for a in page.all("div") if "data-fps" in a]
        assert (player["data-fps"], player["data-frames"]) == ("10.0", "6")

    def test_keyframes_are_marked(self, tmp_path, clip):
        write_report(tmp_path / "report.html", full_report(clip))
        page = _Page(tmp_path / "report.html")
        assert [a["data-marks"] for a in page.all("figure") if a.get("data-marks")] == ["100100"]
        assert [a["x1"] for a in page.all("line") if a.get("y2") == "1"] == ["0", "3"]

    def test_stages_stand_in_their_order_with_settings_folded_up(self, tmp_path):
        curve = Chart(title="Losses", curves=[Curve(name="gan", steps=[0, 1], values=[2.0, 1.0])])
        stages = [
            Stage(title="teacher", note="slow", facts={"steps": 9}, charts=[curve], settings={"recipe.seed": 3}),
            Stage(title="student"),
        ]
        write_report(tmp_path / "report.html", Report(title="t", stages=stages))
        page = _Page(tmp_path / "report.html")
        for text in ("1. teacher", "slow", "9", "Losses", "All 1 settings", "recipe.seed", "3", "2. student"):
            assert text in page.texts
        assert len(page.all("details")) == 1 and "open" not in page.all("details")[0]

    def test_what_does_not_beat_the_floor_is_marked(self, tmp_path):
        rows = [
            {"name": "floor: mean", "psnr_db": 16.0, "flicker": 1.0},
            {"name": "floor: last", "psnr_db": 15.0, "flicker": 1.0},
            {"name": "good", "psnr_db": 17.0, "flicker": 0.5},
            {"name": "bad", "psnr_db": 16.0, "flicker": 0.5},
            {"name": "unknown", "psnr_db": None, "flicker": 0.5},
        ]
        columns = {"name": "video", "psnr_db": "PSNR", "flicker": "flicker"}
        table = Table(title="Q", columns=columns, rows=rows, floor="floor: mean", higher_is_better=["psnr_db"])
        assert [row["name"] for row in rows if table.below_floor(row, "psnr_db")] == ["bad"]
        write_report(tmp_path / "report.html", Report(title="t", tables=[table]))
        page = _Page(tmp_path / "report.html")
        assert len([a for a in page.all("td") if "below" in a.get("class", "")]) == 1
        assert "(not above the floor)" in page.texts
        assert len([a for a in page.all("tr") if a.get("class") == "floor"]) == 2

    def test_contents_lead_to_the_sections_there_are(self, tmp_path, clip):
        write_report(tmp_path / "report.html", full_report(clip))
        page = _Page(tmp_path / "report.html")
        aims = [a["href"].removeprefix("#") for a in page.all("a")]
        assert set(aims) <= {a.get("id") for _, a in page.tags}
        assert {"videos", "results", "curves", "repeat", "setup"} <= set(aims) and "stages" not in aims

    def test_an_empty_report_is_a_page(self, tmp_path):
        write_report(tmp_path / "report.html", Report(title="Nothing yet"))
        page = _Page(tmp_path / "report.html")
        assert page.open == []
        assert page.all("section") == []

    def test_videos_of_other_lengths_or_rates_are_refused(self, tmp_path, clip):
        for other in (clip("long.mp4", num_frames=7), clip("fast.mp4", fps=20)):
            group = VideoGroup(title="G", panels=[VideoPanel(name="a", path=clip()), VideoPanel(name="b", path=other)])
            with pytest.raises(ConfigError, match="one length and rate"):
                write_report(tmp_path / "report.html", Report(title="t", videos=[group]))
        assert not (tmp_path / "report.html").exists()

    @pytest.mark.parametrize(
        ("error", "report"),
        [
            (MediaError, lambda clip: [VideoPanel(name="a", path="missing.mp4")]),
            (MediaError, lambda clip: [VideoPanel(name="a", path=clip("v.mkv"))]),
            (ConfigError, lambda clip: [VideoPanel(name="a", path=clip(), keyframes=[True])]),
        ],
    )
    def test_videos_that_cannot_be_shown_are_refused(self, tmp_path, clip, error, report):
        with pytest.raises(error):
            videos = [VideoGroup(title="G", panels=report(clip))]
            write_report(tmp_path / "report.html", Report(title="t", videos=videos))

    def test_pictures_and_curves_that_cannot_be_shown_are_refused(self, tmp_path):
        with pytest.raises(ConfigError, match="2 steps and 1 values"):
            Curve(name="a", steps=[0, 1], values=[1])
        wrong = Chart(title="C", curves=[Curve(name="a", steps=[0], values=[math.nan])])
        with pytest.raises(ConfigError, match="'C' has no finite value"):
            write_report(tmp_path / "report.html", Report(title="t", charts=[wrong]))
        with pytest.raises(ShapeError, match="'P'"):
            picture = Picture(name="P", image=np.zeros((4, 4), np.uint8))
            write_report(tmp_path / "report.html", Report(title="t", pictures=[picture]))


class TestBenchmarkPage:
    """The page of ``fastv2v benchmark``, from its files and its runs."""

    @pytest.fixture
    def bench(self, tmp_path):
        """A benchmark's folder, one of its runs and one that is gone."""
        run, out = tmp_path / "taught", tmp_path / "bench"
        run.mkdir()
        (run / "config.json").write_text('{"data": "world", "recipe": {"data": {"batch_size": 2}}}')
        (run / "environment.json").write_text(
            '{"command": ["/usr/bin/fastv2v", "train-teacher", "demo"], "commit": "c0ffee"}'
        )
        reports = [{"step": s, "kind": "train", "generator/gan": g} for s, g in ((10, 0.5), (20, None), (30, 0.25))]
        reports.append({"step": 30, "kind": "eval", "psnr": 20.0})
        (run / "metrics.jsonl").write_text("".join(f"{json.dumps(report)}\n" for report in reports))
        rows = [{"name": MEAN_COLOUR, "frames": "all", "psnr_db": 17.0}]
        rows += [{"name": name, "frames": "all", "psnr_db": 18.0} for name in ("teacher", "delivered stream")]
        settings = {"teacher": "taught", "bundle": "s.v2v", "data": "world"}
        write_result(out / "quality.json", make_result(suite="quality", rows=rows, settings=settings))
        asked = {"runs": [str(run), str(tmp_path / "gone")], "suites": ["quality"], "engine": "auto"}
        (out / "sources.json").write_text(json.dumps(asked | {"threads": 1, "repeats": 5, "max_frames": 64}))
        return out

    def test_a_stage_says_what_it_was_trained_with(self, bench):
        page = _Page(write_page(bench))
        for text in (
            "1. run: taught",
            "c0ffee",
            "clips in a batch",
            "All 2 settings",
            "recipe.data.batch_size",
            "0.2500",
        ):
            assert text in page.texts
        assert "held-out clips" not in page.texts  # one point is no curve
        assert any(text.endswith("gone is not there any more.") for text in page.texts)

    def test_each_figure_says_how_to_repeat_it(self, bench):
        page = _Page(write_page(bench, shown_as=Path("out")))
        commands = [text for text in page.texts if text.startswith("fastv2v ")]
        assert commands[0] == "fastv2v train-teacher demo"
        assert (
            len(commands) == 3 and "--out out " in commands[1] and "--out out-quality --suites quality" in commands[2]
        )


class TestCharts:
    def draw(self, tmp_path, curves, **options):
        chart = Chart(title="C", curves=curves, **options)
        write_report(tmp_path / "report.html", Report(title="t", charts=[chart]))
        page = _Page(tmp_path / "report.html")
        paths = [a["d"] for a in page.all("path")][: len(curves)]
        return page, [[tuple(map(float, p)) for p in re.findall(r"[ML]([\d.]+) ([\d.]+)", path)] for path in paths]

    def test_a_falling_straight_line_stays_straight_and_falls(self, tmp_path):
        _, (points,) = self.draw(tmp_path, [Curve(name="a", steps=[0, 1, 2], values=[4, 2, 0])])
        (x0, y0), (x1, y1), (x2, y2) = points
        assert x0 < x1 < x2
        assert y0 < y1 < y2  # down the page
        assert y1 == pytest.approx((y0 + y2) / 2, abs=0.1)
        assert x1 == pytest.approx((x0 + x2) / 2, abs=0.1)

    def test_logarithmic_decades_are_equally_far_apart(self, tmp_path):
        curve = Curve(name="a", steps=[0, 1, 2], values=[100, 10, 1])
        page, (points,) = self.draw(tmp_path, [curve], log_scale=True)
        assert points[1][1] - points[0][1] == pytest.approx(points[2][1] - points[1][1], abs=0.2)
        assert {"1", "10", "100"} <= set(page.texts)

    def test_holes_lift_the_pen(self, tmp_path):
        curve = Curve(name="a", steps=[0, 1, 2, 3], values=[1, 2, math.nan, 4])
        page, (points,) = self.draw(tmp_path, [curve])
        assert len(points) == 3
        assert page.all("path")[0]["d"].count("M") == 2

    @pytest.mark.parametrize("values", [[5.0], [2.0, 2.0], [1e-7, 1.00001e-7], [-3e6, 8e9]])
    def test_any_range_can_be_drawn(self, tmp_path, values):
        for log_scale in {False, min(values) > 0}:
            curve = Curve(name="a", steps=list(range(len(values))), values=values)
            _, (points,) = self.draw(tmp_path, [curve], log_scale=log_scale)
            assert len(points) == len(values)

    def test_long_curves_are_thinned(self, tmp_path):
        curve = Curve(name="a", steps=range(10_000), values=np.ones(10_000))
        assert len(self.draw(tmp_path, [curve])[1][0]) <= 240
