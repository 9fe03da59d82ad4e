"""The benchmark for GPUs at tiny sizes on the CPU: every piece of it but what only a GPU has."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from types import SimpleNamespace

import fake_smi
import pytest
import torch
from torch import nn

from benchmarks import gpu
from benchmarks.gpu import (
    BUNDLED,
    FILLING,
    PEAKS,
    TEACHER,
    VARIANTS,
    Case,
    Journal,
    ModelStep,
    Settings,
    build_model,
    floor_ms,
    list_cases,
    measure_all,
    measure_peaks,
    open_case,
    parse_size,
    verdicts,
    with_ratios,
)
from benchmarks.results import find_fault, load_result
from export.device_step import encode_on_device
from export.torch_engine import card_id
from fastv2v.errors import ConfigError
from fastv2v.measure.cost import count_macs
from fastv2v.measure.gpu import GpuUse, GpuWatch, memory_beyond, parse_gpu_use, read_gpu_use
from fastv2v.nn.coarse_to_fine import CoarseToFineGenerator
from fastv2v.nn.composite import CompositeConfig
from fastv2v.nn.generators import build_generator
from fastv2v.render import rollout, start_history

SIZE = (32, 64)
TINY = Settings(device="cpu", gap=2, num_frames=5, repeats=1, narrow=4)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(gpu, "_MEASURED_S", 0.01)


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    return fake_smi.install(tmp_path, fake_smi.SPEAKING, monkeypatch)


class TestCases:
    def test_what_matters_most_comes_first_and_nothing_twice(self):
        cases = list_cases((FILLING, "base", TEACHER), [SIZE, (64, 128)], VARIANTS, ("bf16", "f32"))
        names = [case.name for case in cases]
        assert len(set(names)) == len(names) == 2 * 2 * 2 * 3 + 2 * 2
        assert names[4:6] == ["base 32x64 graph bf16", "base 32x64 graph f32"]
        assert [n for n in names if n.startswith(FILLING)] == [
            f"filling {size} {way} f32" for way in ("graph", "eager") for size in ("32x64", "64x128")
        ]

    def test_engines_of_bundles_run_students_in_what_they_know(self):
        cases = list_cases((TEACHER, "tiny"), [SIZE], BUNDLED, ("bf16", "f32"))
        assert [(c.model, c.variant, c.precision) for c in cases] == [
            ("tiny", "tensorrt", "bf16"),
            ("tiny", "tensorrt", "f32"),
            ("tiny", "onnxruntime-tensorrt", "bf16"),
            ("tiny", "onnxruntime-cuda", "f32"),
        ]

    @pytest.mark.parametrize("wrong", [("nobody", "eager", "f32"), ("base", "warp", "f32"), ("base", "eager", "f8")])
    def test_unknown_names_are_refused(self, wrong):
        with pytest.raises(ConfigError, match=r"there is no '(nobody|warp|f8)'; choose from"):
            list_cases((wrong[0],), [SIZE], (wrong[1],), (wrong[2],))

    def test_sizes_are_height_by_width(self):
        assert parse_size("256x512") == (256, 512)
        with pytest.raises(ConfigError, match="height x width"):
            parse_size("512,256")

    def test_the_teacher_grows_a_scale_with_every_doubling(self):
        scales = [build_model(TEACHER, size, 8).config.num_scales for size in ((256, 512), (512, 1024), (1024, 2048))]
        assert scales == [1, 2, 3]


def test_a_step_of_several_scales_draws_what_the_module_draws():
    torch.manual_seed(0)
    config = CompositeConfig(width=4, num_downsamples=2, num_blocks=2, norm="batch", num_scales=2)
    model = build_generator(config, gpu.SPEC.channels, (26,)).eval()
    assert isinstance(model, CoarseToFineGenerator)
    step = ModelStep(model, SIZE, torch.device("cpu"), "f32", compiled=False, graph=False)
    maps = [
        (torch.from_numpy(x.labels), torch.from_numpy(x.instances)) for x in gpu.moving_conditions(gpu.SPEC, SIZE, 4)
    ]
    given = [encode_on_device(step.form, gpu.SPEC, *x) for x in maps]
    encoded = torch.stack([x.past for x in given])[None]
    history = start_history(encoded[:, :0], None, model.history_length, first_condition=encoded[:, 0])
    with torch.no_grad():
        wanted = [output.frame for output in rollout(model, encoded, history)]
    for _ in range(2):
        step.start(given[0])
        assert max(float((step.step(x) - w).abs().max()) for x, w in zip(given, wanted, strict=True)) < 1e-4


class TestFloor:
    def test_each_layer_takes_the_longer_of_arithmetic_and_traffic(self):
        net = nn.Sequential(nn.Conv2d(2, 3, 1, bias=False), nn.Conv2d(3, 1, 3, padding=1, bias=False))
        cost = count_macs(lambda: net(torch.zeros(1, 2, 4, 5)), net)
        assert [layer.values for layer in cost.per_module] == [5 * 20, 4 * 20]
        assert [layer.true_macs for layer in cost.per_module] == [120, 540]
        # 10^3 multiply-adds a millisecond, 10^6 bytes a millisecond: the first layer moves 424 bytes, the second 428.
        peaks = {"f32_tmacs_per_s": 1e-6, "copy_gb_per_s": 1.0}
        found = floor_ms(cost, "f32", peaks)
        assert found["arithmetic_floor_ms"] == pytest.approx(0.66)
        assert found["bytes_floor_ms"] == pytest.approx(4 * (106 + 107) / 1e6)
        assert found["floor_ms"] == pytest.approx(0.66)
        fast = floor_ms(cost, "f32", {"f32_tmacs_per_s": 1e3, "copy_gb_per_s": 1.0})
        assert fast["floor_ms"] == pytest.approx(fast["bytes_floor_ms"])

    def test_a_format_without_a_peak_has_none(self):
        assert floor_ms(SimpleNamespace(per_module=()), "tf32", {"copy_gb_per_s": 1.0})["floor_ms"] is None

    def test_peaks_are_measured_on_the_device_itself(self):
        row = measure_peaks(TINY, ("f32", "tf32", "bf16"))
        assert set(row) == {"name", "copy_gb_per_s", "f32_tmacs_per_s", "bf16_tmacs_per_s"}
        assert all(value > 0 for key, value in row.items() if key != "name")


class TestJournal:
    def test_every_row_is_measured_once_and_failures_are_kept(self, tmp_path, monkeypatch):
        path = tmp_path / "rows.jsonl"
        cases = list_cases((FILLING, "pico", TEACHER), [SIZE], ("eager", "graph"), ("f32",))
        assert measure_all(cases, TINY, Journal(path), time.monotonic() + 100)
        rows = Journal(path).rows
        assert list(rows) == [PEAKS, *(case.name for case in cases)]
        for name, row in rows.items():
            assert ("a CUDA graph needs" in row["failed"]) if "graph" in name else ("failed" not in row)
            assert find_fault({"rows": []}) is not None and not any(
                isinstance(x, float) and not math.isfinite(x) for x in row.values()
            )
        student, teacher = rows["pico 32x64 eager f32"], rows["teacher 32x64 eager f32"]
        assert (student["gap"], teacher["gap"]) == (2, 1)
        assert student["gflops_per_keyframe"] == 2 * student["gmacs_per_keyframe"]
        assert 0 < student["keyframe_ms"] <= student["keyframe_p95_ms"] <= student["keyframe_p99_ms"]
        assert student["median"] > 0 and rows["filling 32x64 eager f32"]["filled_frames"] == 1
        monkeypatch.setattr(gpu, "measure_case", lambda *_: pytest.fail("measured again"))
        assert measure_all(cases, TINY, Journal(path), time.monotonic() + 100)

    def test_whatever_fails_leaves_the_others(self, tmp_path, monkeypatch):
        def measure(case, settings, peaks):
            if case.precision == "f16":
                raise RuntimeError("CUDA out of memory\nby far")
            return {"name": case.name, "median": 1.0, "unit": "frames / s", "spread": 0.0, "keyframe_ms": 1.0}

        monkeypatch.setattr(gpu, "measure_case", measure)
        journal = Journal(tmp_path / "rows.jsonl")
        measure_all(list_cases(("pico",), [SIZE], ("eager",), ("f16", "f32")), TINY, journal, time.monotonic() + 100)
        assert journal.rows["pico 32x64 eager f16"]["failed"] == "RuntimeError: CUDA out of memory"
        assert journal.rows["pico 32x64 eager f32"]["median"] == 1

    def test_no_row_is_begun_when_time_is_up(self, tmp_path):
        journal = Journal(tmp_path / "rows.jsonl")
        cases = list_cases(("pico",), [SIZE], ("eager",), ("f32",))
        assert not measure_all(cases, TINY, journal, time.monotonic() - 1)
        assert list(journal.rows) == [PEAKS]

    def test_a_row_that_took_the_process_down_is_kept_as_that(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        journal = Journal(path)
        journal.add({"name": "a", "median": 1.0})
        journal.begin({"name": "b", "model": "base"})
        path.write_text(path.read_text() + '{"name": "c", "med')  # cut off
        again = Journal(path)
        assert again.rows["a"] == {"name": "a", "median": 1.0}
        assert again.rows["b"]["failed"] == "the process ended while this was measured"
        again.close_case("killed")
        assert Journal(path).rows["b"]["failed"] == "killed"

    def test_a_worker_that_hangs_is_given_up(self, tmp_path):
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        assert gpu._watched(process, tmp_path / "rows.jsonl", 0.3) == "given up after 0.005 minutes"
        assert process.returncode < 0


def row(model: str, size: tuple[int, int], fps: float, variant: str = "graph", precision: str = "f16") -> dict:
    labels = gpu._labels(Case(model, size, variant, precision))
    return {**labels, "median": fps, "unit": "frames / s", "spread": 0.0}


class TestVerdicts:
    def test_targets_are_held_against_the_best_and_ratios_against_the_same_way(self):
        rows = [
            row("base", (256, 512), 2000.0),
            row("base", (256, 512), 900.0, "eager"),
            row(TEACHER, (256, 512), 50.0),
            row(TEACHER, (256, 512), 10.0, "eager"),
            row(TEACHER, (256, 512), 5.0, "eager", "f32"),
            row("base", (1024, 2048), 59.0),
            {**gpu._labels(Case(TEACHER, (1024, 2048), "graph", "f16")), "failed": "CUDA out of memory"},
        ]
        found = {v["name"].removeprefix("verdict: base "): (v["value"], v["passed"]) for v in verdicts(rows)}
        assert found == {
            "delivers at 256x512": (2000.0, True),
            "over the teacher in the same way at 256x512": (90.0, True),  # eager f16; the graphs are 40 apart
            "over the teacher as published (eager f32) at 256x512": (400.0, True),
            "delivers at 1024x2048": (59.0, False),
        }
        assert [r.get("ratio") for r in with_ratios(rows)] == [40.0, 90.0, None, None, None, None, None]

    def test_nothing_is_said_without_base(self):
        assert verdicts([row("tiny", (256, 512), 9.0)]) == []


class TestWatch:
    def test_what_the_driver_does_not_tell_is_none(self):
        said = "301.5, 1000, 1980, 40\n[N/A], 1200, 1900, 44\n299.5, 1100, [N/A], 43\n30"
        assert parse_gpu_use(said) == GpuUse(power_w=300.5, memory_mb=1258.2912, clock_mhz=1940, temperature_c=44)
        assert parse_gpu_use("") == GpuUse()

    def test_a_watch_begins_when_the_tool_has_begun_to_speak(self, nvidia_smi):
        with GpuWatch("GPU-3") as watch:
            pass
        assert watch.use == GpuUse(power_w=250, memory_mb=1048.576, clock_mhz=1500, temperature_c=50)
        assert nvidia_smi.read_text().split()[0] == "--id=GPU-3"

    def test_now_is_one_sample(self, nvidia_smi):
        assert read_gpu_use("GPU-3") == GpuUse(power_w=200, memory_mb=524.288, clock_mhz=1500, temperature_c=50)
        asked = nvidia_smi.read_text().split()
        assert asked[0] == "--id=GPU-3" and not any("loop" in word for word in asked)

    def test_a_tool_that_ends_at_once_holds_nobody_up(self, tmp_path, monkeypatch):
        fake_smi.install(tmp_path, "#!/bin/sh\nexit 9\n", monkeypatch)
        with GpuWatch() as watch:
            pass
        assert watch.use == read_gpu_use() == GpuUse()

    def test_memory_is_what_came_on_top(self):
        before, now, later = (GpuUse(memory_mb=mb) for mb in (100.0, 250.0, 180.0))
        assert memory_beyond(before, now, later, GpuUse()) == 150
        assert memory_beyond(now, before) == 0
        assert memory_beyond(GpuUse(), now) is memory_beyond(before, GpuUse()) is None

    def test_the_card_is_the_one_that_cuda_is_let_see(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        assert card_id() == "0"
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0")
        assert card_id() == "2"
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1f-2e"))
        assert card_id() == "GPU-1f-2e"

    def test_no_tool_sees_nothing(self, monkeypatch):
        monkeypatch.setenv("PATH", "")
        with GpuWatch() as watch:
            pass
        assert watch.use == read_gpu_use() == GpuUse()


def test_a_student_is_exported_for_engines_of_bundles(tmp_path, monkeypatch):
    folder, seen = tmp_path / "student.v2v", []
    monkeypatch.setattr(gpu, "build_bundle", lambda *args, **options: seen.append((args, options)))
    monkeypatch.setattr(gpu, "open_tested_engine", lambda candidate, folder: seen.append((candidate, folder)))
    monkeypatch.setattr(gpu, "Stream", lambda engine, manifest: "stream")
    monkeypatch.setattr(gpu, "build_engine", lambda *args: seen.append(args))
    monkeypatch.setattr(gpu, "open_device_step", lambda *args: seen.append(args))
    monkeypatch.setattr(gpu, "DeviceStream", lambda step, manifest: "device stream")
    model = build_model("pico", SIZE)
    case = Case("pico", SIZE, "onnxruntime-cuda", "f32")
    assert open_case(case, TINY, model, folder) == ("stream", None)
    (args, options), opened = seen
    assert args[:2] == (model, folder) and args[2].size == SIZE and args[3].shape == (4, gpu.SPEC.channels, *SIZE)
    assert options == {"measure": False, "int8": False}
    assert opened == (("onnxruntime-cuda", "f32"), folder)
    assert open_case(Case("pico", SIZE, "tensorrt", "bf16"), TINY, model, folder) == ("device stream", None)
    assert seen[3][2].precision == "bf16" and seen[4] == (("tensorrt", "bf16"), folder, torch.device("cpu"))


def test_the_command_writes_a_valid_result_and_goes_on_where_it_stopped(tmp_path):
    out = tmp_path / "gpu.json"
    journal = Journal(out.with_suffix(".rows.jsonl"))
    journal.add({"name": PEAKS, "copy_gb_per_s": 1.0, "f32_tmacs_per_s": 1.0, "bf16_tmacs_per_s": 1.0})
    journal.add({**row("pico", SIZE, 12.0, "eager", "f32"), "keyframe_ms": 1.0})
    journal.begin(gpu._labels(Case("pico", SIZE, "eager", "f16")))
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--sizes", "32x64", "--models", "pico"]
    command += ["--variants", "eager", "--gap", "2", "--num-frames", "5", "--repeats", "1", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [line.split(":")[0] for line in done.stderr.splitlines() if "pico" in line] == ["pico 32x64 eager bf16"]
    document = json.loads(done.stdout.splitlines()[-1])
    assert json.loads(json.dumps(load_result(out).to_dict())) == document
    measured = {r["name"]: r for r in document["rows"]}
    assert list(measured) == [PEAKS, *(f"pico 32x64 eager {precision}" for precision in ("bf16", "f16", "f32"))]
    assert measured["pico 32x64 eager f32"]["median"] == 12
    assert measured["pico 32x64 eager f16"]["failed"] == "the process ended while this was measured"
    assert measured["pico 32x64 eager bf16"]["floor_ms"] > 0


def test_a_machine_without_a_gpu_says_so():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match="torch finds no CUDA GPU here; run this where nvidia-smi shows one"):
        gpu.main(("base",))


@pytest.mark.parametrize("device", ["gpu", "meta"])
def test_a_device_that_is_none_is_refused(device):
    with pytest.raises(ConfigError, match=f"{device}"):
        gpu.main(("base",), device=device)
