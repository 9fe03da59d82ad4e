"""The whole line with a painted world, on a picture that is panned over: train, distil, compare, export, stream."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from benchmarks.comparison import Criteria, deliver, verdicts
from benchmarks.quality import mean_scores, score_rows, score_video
from benchmarks.results import load_result
from export.bundle import load_manifest
from fastv2v.cli import main
from fastv2v.commands.benchmark import round_trip
from fastv2v.commands.compare import Compare
from fastv2v.commands.parts import with_points
from fastv2v.contracts import FrameOutput, History
from fastv2v.data.clip import Clip
from fastv2v.data.conditions import ConditionSpec
from fastv2v.data.folder import FolderConfig
from fastv2v.data.unprojection import write_unprojection
from fastv2v.device import DeviceConfig, open_device
from fastv2v.errors import ConfigError
from fastv2v.render import advance


def write_pan(root: Path, count: int = 14) -> Path:
    """A camera pans over a picture and back; every pixel of the picture is a point."""
    rng = np.random.default_rng(0)
    labels = (np.arange(64)[None] // 9 + np.arange(32)[:, None] // 9) % 2
    picture = np.array([[90, 90, 90], [40, 40, 220]])[labels] + rng.integers(0, 40, (32, 64, 3))
    ids = np.arange(32 * 64).reshape(32, 64)
    for modality in ("A", "B", "unprojections"):
        (root / f"train_{modality}" / "seq").mkdir(parents=True)
    for t in range(count):
        left = 2 * min(t, count - 1 - t)
        window = np.s_[:, left : left + 32]
        cv2.imwrite(str(root / "train_A" / "seq" / f"{t:03d}.png"), labels[window].astype(np.uint8))
        cv2.imwrite(str(root / "train_B" / "seq" / f"{t:03d}.png"), picture[window].astype(np.uint8))
        levels = [ids[window], ids[window][::2, ::2]]
        write_unprojection(root / "train_unprojections" / "seq" / f"{t:03d}.npz", levels)
    return root


COMMON = ["--quiet", "--recipe.data.folder.geometry.size", "32", "32", "--recipe.data.sampling.num-frames", "6"]
COMMON += ["--recipe.data.folder.test-tail", "7", "--recipe.data.eval-frames", "5", "--recipe.data.batch-size", "1"]
COMMON += ["--recipe.train.steps", "2", "--recipe.train.max-minutes", "None"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a guided teacher, the same without guidance, and a part-time student of the first."""
    root = tmp_path_factory.mktemp("world")
    data = ["--data", str(write_pan(root / "data")), *COMMON]
    small = ["--recipe.generator.width", "4", "--recipe.generator.num-blocks", "2", "--recipe.task.lead-in", "1"]
    guided = ["--recipe.data.folder.guidance-levels", "2"]
    assert main(["train-teacher", "demo", *data, "--run", str(root / "teacher"), *small, *guided]) == 0
    assert main(["train-teacher", "demo", *data, "--run", str(root / "plain"), *small]) == 0
    teacher = [*data, *guided, "--teacher", str(root / "teacher")]
    taught = ["precompute", "--teacher", str(root / "teacher"), "--data", str(root / "data"), "--quiet"]
    assert main([*taught, "--out", str(root / "taught")]) == 0
    assert main(["train-skd", "demo", *teacher, "--run", str(root / "spatial"), "--taught", str(root / "taught")]) == 0
    part_time = ["--student", str(root / "spatial"), "--run", str(root / "temporal"), "--recipe.task.deployed-gap", "2"]
    gaps = ["--recipe.task.gap.smallest", "1", "--recipe.task.gap.largest", "2"]
    assert main(["train-tkd", "demo", *teacher, *part_time, *gaps]) == 0
    return root


def test_a_comparison_says_what_guidance_gains(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [
        "compare",
        "--teacher",
        str(root / "teacher"),
        "--plain",
        str(root / "plain"),
        "--data",
        str(root / "data"),
    ]
    given += ["--student", f"student@2={root / 'temporal'}", "--out", str(tmp_path / "out"), "--judging.steps", "1"]
    given += ["--no-vmaf", "--quiet", "--device.cpu", "--world-gain", "0.3", "--keeps-gain", "0.8"]
    given += ["--guidance-costs-psnr", "0.03", "--guidance-costs-fd", "0.1"]
    assert main([*given, "--round-trip-frames", "5"]) in (0, 1)
    said = capsys.readouterr().out
    assert "places that are seen again" in said and "world error on return" in said
    assert [row["name"].split(":")[0] for row in json.loads(said.splitlines()[-1])["verdicts"]] == [
        *("teacher", "teacher", "teacher"),
        "student",
    ]
    rows = {(row["name"], row["frames"]): row for row in load_result(tmp_path / "out" / "comparison.json").rows}
    assert rows["real video", "all"]["world_error"] == 0.0  # the camera moves by whole pixels
    for name in ("teacher", "plain", "student"):
        assert rows[name, "all"]["world_error"] > 0 and rows[name, "all"]["forward_backward"] > 0
    assert rows["student", "keyframes"]["world_error"] > 0 and rows["plain", "all"]["runs"] == 1
    assert load_result(tmp_path / "out" / "comparison.json").rows[0].get("forward_backward") is None


def test_the_bundle_paints_and_is_measured(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = tmp_path / "world.v2v"
    export = ["export", "--run", str(root / "temporal"), "--data", str(root / "data"), "--out", str(bundle)]
    assert main([*export, "--keyframes.gap", "2", "--frames", "3", "--no-measure"]) == 0
    assert load_manifest(bundle).condition.guidance_levels == 2
    stream = ["stream", "--bundle", str(bundle), "--out"]
    data = ["--data", str(root / "data"), "--test-tail", "7", "--given-frame"]
    assert main([*stream, str(tmp_path / "guided"), *data]) == 0
    assert len(list((tmp_path / "guided").iterdir())) == 7
    folder, ids = (str(root / "data" / f"train_{kind}" / "seq") for kind in ("A", "unprojections"))
    assert main([*stream, str(tmp_path / "pan"), "--conditions", folder, "--unprojections", ids]) == 0
    assert main([*stream, str(tmp_path / "none"), "--conditions", folder]) == 0
    frames = [cv2.imread(str(tmp_path / kind / "013.png")) for kind in ("pan", "none")]
    assert not np.array_equal(*frames)
    out = tmp_path / "benchmark"
    given = ["--teacher", str(root / "teacher"), "--data", str(root / "data"), "--out", str(out), "--no-vmaf"]
    assert main(["benchmark", "--bundle", str(bundle), *given, "--suites", "quality", "--device.cpu"]) == 0
    assert "world error" in capsys.readouterr().out
    rows = {(row["name"], row["frames"]): row for row in load_result(out / "quality.json").rows}
    assert rows["delivered stream", "all"]["world_error"] > 0
    assert rows["teacher", "all"]["forward_backward"] > 0
    assert "there and back" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("gap", "given", "num_frames", "turn"), [(1, 1, 9, 8), (3, 1, 9, 6), (4, 1, 9, 8), (3, 2, 9, 7), (16, 1, 6, 5)]
)
def test_a_round_trip_has_its_keyframes_at_the_same_places_on_both_ways(
    gap: int, given: int, num_frames: int, turn: int
) -> None:
    frames = torch.arange(float(num_frames)).view(1, -1, 1, 1, 1).expand(-1, -1, 3, 2, 2)
    way = round_trip(Clip(frames=frames, maps=frames[:, :, :1]), 24, gap=gap, given_frames=given)
    places = way.frames[0, :, 0, 0, 0].int().tolist()
    assert places == [*range(turn + 1), *reversed(range(turn))]
    if num_frames > gap:
        there = {k for k in range(given - 1, turn + 1) if (k - given + 1) % gap == 0}
        back = {2 * turn - k for k in range(turn, 2 * turn + 2 - given) if (k - given + 1) % gap == 0}
        assert there == back


def test_all_given_keyframes_paint_however_short_the_history() -> None:
    """A point that only the first of four given frames shows guides the first frame that is synthesised."""

    class Watcher:
        condition_channels, history_length, size_multiple = 6, 1, 1

        def step(self, condition: torch.Tensor, history: History) -> tuple[FrameOutput, History]:
            shown.append(condition[0, 2:, 0, 0].tolist())
            frame = torch.zeros(1, 3, 32, 32)
            return FrameOutput(frame, frame, None, None), advance(history, condition, frame)

    shown: list[list[float]] = []
    points = torch.full((1, 6, 32, 32), -1, dtype=torch.int32)
    points[0, [0, 4, 5]] = 7
    clip = Clip(
        frames=torch.full((1, 6, 3, 32, 32), 0.5), labels=torch.zeros(1, 6, 32, 32, dtype=torch.uint8), points=(points,)
    )
    spec = ConditionSpec(class_names=("a", "b"), guidance_levels=1)
    list(deliver(Watcher(), spec, clip, gap=1, given_frames=4, device=open_device(DeviceConfig(cpu=True))))
    assert shown == [[0.5, 0.5, 0.5, 1.0]] * 2


def test_synthesis_depends_on_the_point_ids(root: Path, tmp_path: Path) -> None:
    given = ["synthesize", "--run", str(root / "teacher"), "--write", "frames", "--device.cpu"]
    assert main([*given, "--data", str(root / "data"), "--out", str(tmp_path / "guided")]) == 0
    other = write_pan(tmp_path / "data")
    for path in (other / "train_unprojections" / "seq").iterdir():
        write_unprojection(path, [np.full((32, 32), -1), np.full((16, 16), -1)])
    assert main([*given, "--data", str(other), "--out", str(tmp_path / "unguided")]) == 0
    made = [cv2.imread(str(tmp_path / kind / "seq" / "012.png")) for kind in ("guided", "unguided")]
    assert not np.array_equal(*made)


def test_the_table_of_a_video_has_its_world_errors() -> None:
    frames = [np.full((16, 16, 3), level, np.uint8) for level in (10, 14, 20)]
    points = [np.arange(256).reshape(16, 16)] * 3
    scores = score_video("x", frames, frames, with_vmaf=False, points=points, forward_backward=3.0)
    (row,) = score_rows(mean_scores("x", [scores, scores]))
    assert (row["world_error"], row["return_error"], row["forward_backward"]) == (7.0, None, 3.0)
    assert "world_error" not in score_video("x", frames, frames, with_vmaf=False)["all"]


def test_verdicts_on_guidance() -> None:
    rows = {name: {"world_error": value} for name, value in (("teacher", 6.0), ("plain", 10.0), ("student", 6.5))}
    shares = {"teacher": 1.0, "student": 0.1, "plain": 1.0}
    gains, keeps = verdicts(Criteria(world_gain=0.3, keeps_gain=0.9), rows, "teacher", shares)
    assert (gains.measured, gains.passed) == (pytest.approx(0.4), True)
    assert (keeps.measured, keeps.passed) == (pytest.approx(3.5 / 4), False)
    rows["teacher"]["world_error"] = 11.0  # no gain, nothing to keep
    lost, nothing = verdicts(Criteria(world_gain=0.3, keeps_gain=0.9), rows, "teacher", shares)
    assert (lost.measured, lost.passed) == (pytest.approx(-0.1), False)
    assert (nothing.measured, nothing.passed) == (0.0, False)
    with pytest.raises(ConfigError, match="which was not measured for plain"):
        verdicts(Criteria(world_gain=0.3), {"teacher": {}, "plain": {}, "student": {}}, "teacher", shares)


def test_a_gain_in_consistency_must_not_be_bought_with_blur() -> None:
    """A guided teacher that only blurs keeps places alike; its PSNR and Frechet distance say what that costs."""
    shares = {"teacher": 1.0, "student": 0.1, "plain": 1.0}
    asked = Criteria(guidance_costs_psnr=0.03, guidance_costs_fd=0.1)
    rows = {
        "plain": {"psnr_db": 20.0, "fd_efficientnet_lite0": 50.0},
        "teacher": {"psnr_db": 19.5, "fd_efficientnet_lite0": 80.0},
        "student": {},
    }
    psnr, distance = verdicts(asked, rows, "teacher", shares)
    assert (psnr.measured, psnr.passed) == (pytest.approx(0.025), True) and "PSNR dB lies below plain" in psnr.name
    assert (distance.measured, distance.passed) == (pytest.approx(0.6), False) and "lies above plain" in distance.name
    rows["teacher"] = {"psnr_db": 19.0, "fd_efficientnet_lite0": 40.0}
    psnr, distance = verdicts(asked, rows, "teacher", shares)
    assert (psnr.measured, psnr.passed) == (pytest.approx(0.05), False)
    assert (distance.measured, distance.passed) == (pytest.approx(-0.2), True)
    assert asked.asks_anything and asked.judges_guidance and not asked.judges_places
    rows["plain"]["fd_efficientnet_lite0"] = 0.0  # nothing to take a share of
    assert verdicts(asked, rows, "teacher", shares)[1].measured == float("inf")
    with pytest.raises(ConfigError, match="a number of at least 0"):
        Criteria(guidance_costs_fd=-0.1)
    with pytest.raises(ConfigError, match="name it, --plain"):
        Compare(teacher=Path("t"), student=("student=run",), data=Path("d"), out=Path("o"), criteria=asked)


def test_point_ids_are_read_where_there_are_any(tmp_path: Path) -> None:
    data = FolderConfig(root=write_pan(tmp_path / "data", 3), test_tail=1, phase="test")
    assert with_points(data).guidance_levels == 1 and with_points(data, 2).guidance_levels == 2
    for path in (tmp_path / "data" / "train_unprojections" / "seq").iterdir():
        path.unlink()
    (tmp_path / "data" / "train_unprojections" / "seq").rmdir()
    (tmp_path / "data" / "train_unprojections").rmdir()
    assert with_points(data) is data
