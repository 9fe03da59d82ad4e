"""Engines for GPUs as far as a machine without one goes: names, refusals, and ONNX Runtime's buffers on the CPU."""

from __future__ import annotations

import json
import logging
import sys
import types
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
from tiny_bundle import SIZE, label_maps, manifest, write_tiny

from export.bundle import EngineChoice, EngineMeasurement, load_manifest, record_engine
from export.choose import Probe, choose_engine
from export.engines import (
    GPU_ENGINES,
    REFERENCE,
    Candidate,
    OnnxRuntimeEngine,
    available_candidates,
    open_engine,
    open_tested_engine,
    parse_engine,
    this_machine,
)
from export.onnxruntime_gpu import CudaProviderEngine, ProviderEngine, TensorRTProviderEngine, check_step
from export.runtime import open_bundle
from fastv2v.errors import BundleError, ConfigError, MissingExtraError

pytest.importorskip("onnxruntime", reason="the reference engine is not installed")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("gpu") / "tiny.v2v")


class OnTheCpu(ProviderEngine):
    """The same way through buffers, in the provider that every build has."""

    name, precisions, provider, device_type = "onnxruntime-cpu", ("f32",), "CPUExecutionProvider", "cpu"
    needs = "nothing"

    def options(self, *, cuda_graph):
        return {}

    def _open(self, options):
        # Only the refusal of the CPU is left out.
        return self._runtime.InferenceSession(str(self.path), providers=[self.provider])


class TestNames:
    def test_a_name_may_carry_its_precision(self):
        assert parse_engine("auto") == ("auto", None)
        assert parse_engine("torch") == ("torch", None)
        assert parse_engine("openvino:bf16") == ("openvino", "bf16")

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("abacus", "no engine 'abacus'; choose from onnxruntime, openvino, torch"),
            ("onnxruntime:bf16", "onnxruntime runs in f32 or int8, not in 'bf16'"),
            ("torch:", "torch runs in f32 or tf32 or bf16 or f16, not in ''"),
            ("auto:f32", "auto chooses the precision too"),
        ],
    )
    def test_what_does_not_exist_is_refused(self, text, problem):
        with pytest.raises(ConfigError, match=problem):
            parse_engine(text)

    def test_precisions_that_contradict_each_other_are_refused(self, bundle):
        with pytest.raises(ConfigError, match="contradict each other"):
            open_bundle(bundle, engine="onnxruntime:f32", precision="int8")

    @pytest.mark.parametrize("device", [None, "cpu"])
    def test_no_threads_at_all_are_refused_with_a_device_too(self, bundle, device):
        with pytest.raises(ConfigError, match="threads must be at least 1, got 0"):
            open_bundle(bundle, device=device, threads=0)

    def test_no_single_graph_is_opened_in_an_engine_of_bundles(self, bundle):
        with pytest.raises(ConfigError, match=r"torch opens whole bundles"):
            open_engine(Candidate("torch", "f32"), bundle / "step.onnx")


class TestCandidates:
    def test_engines_of_gpus_are_measured_where_there_is_one(self, bundle, monkeypatch):
        before = available_candidates(bundle)
        assert not {c.engine for c in before} & GPU_ENGINES.keys()
        monkeypatch.setattr("export.engines.this_machine", lambda: {"gpu": "Abacus 9000", "cores": 1})
        after = available_candidates(bundle)
        assert after[: len(before)] == before
        assert Candidate("onnxruntime-cuda", "tf32") in after
        # The bundle holds neither weights for torch nor an int8 graph.
        assert not any(c.engine.startswith("torch") or c.precision == "int8" for c in after[len(before) :])
        assert available_candidates() == tuple(c for c in before if c.precision != "int8")

    def test_what_cannot_run_is_recorded_with_its_reason(self, tmp_path, monkeypatch):
        folder = write_tiny(tmp_path / "tiny.v2v")
        probe = Probe(np.zeros((3, 4, *SIZE), np.float32))
        choice = choose_engine(folder, probe, candidates=[Candidate("onnxruntime-cuda", "f32")], threads=1)
        assert choice.measurements[1].reason.startswith("cannot run here: onnxruntime-cuda needs an NVIDIA GPU")
        assert (choice.engine, choice.gpu) == ("onnxruntime", load_manifest(folder).engine.gpu)

    def test_only_what_was_asked_for_is_chosen(self, tmp_path):
        folder = write_tiny(tmp_path / "tiny.v2v")
        probe = Probe(np.random.default_rng(0).random((3, 4, *SIZE), np.float32))
        with pytest.raises(BundleError, match=r"no engine that was asked for can be chosen \(onnxruntime-cuda f32: "):
            choose_engine(folder, probe, candidates=[Candidate("onnxruntime-cuda", "f32")], forced=True, threads=1)
        assert load_manifest(folder).engine is None
        choice = choose_engine(folder, probe, candidates=[REFERENCE], forced=True, threads=1)
        assert (choice.engine, choice.precision) == REFERENCE


class TestRefusals:
    @pytest.mark.parametrize("engine", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
    def test_the_build_for_cpus_says_what_to_install_and_what_to_use_meanwhile(self, bundle, engine, monkeypatch):
        runtime = types.SimpleNamespace(
            __version__="1.31.1", get_available_providers=lambda: ["CPUExecutionProvider"], __spec__=None
        )
        monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
        monkeypatch.setattr("export.engines.available_engines", lambda: ("onnxruntime", "openvino"))
        candidate = Candidate(engine, GPU_ENGINES[engine].precisions[0])
        with pytest.raises(MissingExtraError, match="pip install 'onnxruntime-gpu") as refused:
            open_tested_engine(candidate, bundle)
        assert "\n" not in str(refused.value)
        with pytest.raises(MissingExtraError, match="meanwhile --engine openvino runs here, on the CPU"):
            open_bundle(bundle, engine=f"{engine}:{candidate.precision}")

    def test_no_onnxruntime_at_all_says_the_same(self, bundle, monkeypatch):
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(MissingExtraError, match="needs onnxruntime-gpu"):
            open_tested_engine(Candidate("onnxruntime-cuda", "f32"), bundle)

    def test_a_provider_that_hands_over_to_the_cpu_is_refused(self, bundle, monkeypatch):
        monkeypatch.setattr("export.onnxruntime_gpu._runtime", lambda *_: fake_runtime(["CPUExecutionProvider"]))
        with pytest.raises(BundleError, match=r"ONNX Runtime took CPUExecutionProvider in its place.*cuDNN"):
            CudaProviderEngine(bundle / "step.onnx", 1)

    def test_a_session_that_fails_says_why(self, bundle, monkeypatch):
        failing = fake_runtime([], RuntimeError("[ONNXRuntimeError] : 1 : FAIL : no libnvinfer.\nat line 3"))
        monkeypatch.setattr("export.onnxruntime_gpu._runtime", lambda *_: failing)
        monkeypatch.setattr(TensorRTProviderEngine, "cache_folder", lambda self: bundle.parent / "cache")
        with pytest.raises(
            BundleError, match=r"onnxruntime-tensorrt cannot run step.onnx here \(no libnvinfer\): it needs"
        ):
            TensorRTProviderEngine(bundle / "step.onnx", 1, "f16")

    def test_torch_without_weights_says_how_to_get_them(self, bundle):
        pytest.importorskip("torch", reason="the engine torch needs it")
        with pytest.raises(BundleError, match=r"no weights for torch .*--torch-weights-mb"):
            open_tested_engine(Candidate("torch", "f32"), bundle, 1)

    def test_torch_that_is_not_installed_is_named(self, bundle, monkeypatch):
        monkeypatch.delitem(sys.modules, "export.torch_engine", raising=False)
        monkeypatch.setitem(sys.modules, "torch", None)
        with pytest.raises(MissingExtraError, match="torch needs torch: pip install torch"):
            open_tested_engine(Candidate("torch", "f32"), bundle)


def fake_runtime(taken: list[str], failure: Exception | None = None) -> types.SimpleNamespace:
    """The part of ONNX Runtime that opens sessions, with sessions in the providers of ``taken``."""

    class Options:
        def add_session_config_entry(self, name, value):
            assert (name, value) == ("session.disable_cpu_ep_fallback", "1")

    def session(path, sess_options, providers, enable_fallback):
        assert enable_fallback == 0 and isinstance(sess_options, Options)
        if failure is not None:
            raise failure
        return types.SimpleNamespace(get_providers=lambda: taken)

    return types.SimpleNamespace(SessionOptions=Options, InferenceSession=session)


class TestBuffers:
    def test_bound_buffers_give_what_plain_runs_give(self, bundle):
        bound, plain = OnTheCpu(bundle / "step.onnx", 1), OnnxRuntimeEngine(bundle / "step.onnx", 1)
        rng = np.random.default_rng(0)
        kept = []
        for _ in range(3):
            feeds = {name: rng.random(shape, dtype=np.float32) for name, shape in plain.shapes.items()}
            made = bound.infer(feeds)["frame"]
            assert np.array_equal(made, plain.infer(feeds)["frame"])
            kept.append((made, made.copy()))
        assert all(np.array_equal(a, b) for a, b in kept)  # the caller's to keep

    def test_an_engine_that_draws_something_else_is_refused(self, bundle, monkeypatch):
        engine = OnTheCpu(bundle / "step.onnx", 1)
        check_step(engine)
        infer = OnTheCpu.infer
        for wrong in (0.1, np.nan):
            monkeypatch.setattr(
                OnTheCpu, "infer", lambda self, feeds, w=wrong: {"frame": infer(self, feeds)["frame"] + w}
            )
            with pytest.raises(BundleError, match="onnxruntime-cpu f32 draws other frames than ONNX Runtime"):
                check_step(engine)

    def test_options_are_spelt_as_the_providers_do(self, bundle, monkeypatch):
        monkeypatch.setattr("export.onnxruntime_gpu._runtime", lambda *_: None)
        monkeypatch.setattr(ProviderEngine, "_open", lambda self, options: pytest.fail(json.dumps(options)))
        monkeypatch.setattr(TensorRTProviderEngine, "cache_folder", lambda self: bundle.parent / "cache")
        with pytest.raises(pytest.fail.Exception) as said:
            CudaProviderEngine(bundle / "step.onnx", 1, "tf32", device_id=1)
        options = json.loads(str(said.value))
        assert options["use_tf32"] == "1" and options["enable_cuda_graph"] == "1" and options["device_id"] == "1"
        with pytest.raises(pytest.fail.Exception) as said:
            TensorRTProviderEngine(bundle / "step.onnx", 1, "f16", cuda_graph=False)
        options = json.loads(str(said.value))
        assert (
            options["trt_fp16_enable"] == "1" and options["trt_bf16_enable"] == "0" and "trt_int8_enable" not in options
        )
        assert options["trt_cuda_graph_enable"] == "0"
        assert options["trt_engine_cache_path"] == str(bundle.parent / "cache")

    def test_engines_of_other_graphs_and_precisions_have_other_caches(self, bundle, monkeypatch):
        monkeypatch.setattr("export.onnxruntime_gpu._runtime", lambda *_: None)
        folders = set()
        for file, precision in (("step.onnx", "f16"), ("step.onnx", "tf32"), ("selftest.onnx", "f16")):
            engine = TensorRTProviderEngine.__new__(TensorRTProviderEngine)
            engine.path, engine.precision = bundle / file, precision
            folders.add(engine.cache_folder())
        assert len(folders) == 3 and not any(f.is_relative_to(bundle) for f in folders)

    def test_a_guided_student_is_tested_with_labels_it_knows(self):
        class Compact:
            name, precision, threads, path = "compact", "f32", 1, "step.onnx"
            shapes: ClassVar = {
                "labels": (1, 16, 16),
                "coarse": (1, 4 + 1 + 8, 4, 4),
                "edges": (1, 1, 16, 16),
                "guidance": (1, 8, 16, 16),
                "history_conditions": (1, 1, 13, 4, 4),
                "history_frames": (1, 1, 3, 16, 16),
                "valid": (1,),
            }

            def infer(self, feeds):
                seen.append(feeds["labels"])
                return {"frame": np.zeros((1, 3, 16, 16), np.float32)}

        seen = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("export.onnxruntime_gpu.OnnxRuntimeEngine", lambda *_: Compact())
            check_step(Compact())
        assert {x.max() for x in seen} == {3} and {x.min() for x in seen} == {0}

    def test_a_run_that_fails_is_one_sentence(self, bundle):
        engine = OnTheCpu(bundle / "step.onnx", 1)

        def fail(_):
            raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL : no kernel image.\nat line 3")

        engine._session = types.SimpleNamespace(run_with_iobinding=fail)
        feeds = {name: np.zeros(shape, np.float32) for name, shape in engine.shapes.items()}
        with pytest.raises(BundleError, match=r"onnxruntime-cpu f32 failed in step.onnx \(no kernel image\); choose"):
            engine.infer(feeds)


class TestDeviceOrder:
    """What ``auto`` tries where a device is given."""

    def test_torch_runs_where_what_was_measured_does_not(self, tmp_path, monkeypatch, caplog):
        folder = write_tiny(tmp_path / "tiny.v2v")
        measured = [
            EngineMeasurement(engine=e, precision="f16", threads=1, median_ms=ms, accepted=True, reason="")
            for e, ms in (("tensorrt", 1.0), ("torch", 2.0))
        ]
        choice = EngineChoice(engine="tensorrt", precision="f16", median_ms=1.0, cpu="c", measurements=tuple(measured))
        record_engine(folder, choice)
        tried = []

        def opened(candidate, *_, **__):
            tried.append(str(candidate))
            raise BundleError("not here")

        pytest.importorskip("torch", reason="streams on a device need it")
        monkeypatch.setattr("export.runtime.open_device_step", opened)
        with pytest.raises(BundleError, match=r"tensorrt f16: not here; torch f16: not here; torch f32: not here"):
            open_bundle(folder, device="cpu")
        assert tried == ["tensorrt f16", "torch f16", "torch f32"]
        assert "tensorrt f16 cannot be used: not here" in caplog.text

    def test_measurements_by_arrays_say_so(self, tmp_path, caplog, monkeypatch):
        folder = write_tiny(tmp_path / "tiny.v2v")
        measured = [
            EngineMeasurement(engine=e, precision="f32", threads=1, median_ms=1.0, accepted=True, reason="")
            for e in ("onnxruntime", "torch")
        ]
        record_engine(
            folder,
            EngineChoice(engine="onnxruntime", precision="f32", median_ms=1.0, cpu="c", measurements=tuple(measured)),
        )
        gpu = {**this_machine(), "gpu": "Abacus 9000"}
        monkeypatch.setattr("export.runtime.this_machine", lambda: gpu)
        with caplog.at_level(logging.INFO, "export.runtime"), open_bundle(folder):
            pass
        assert "torch was timed with frames copied to the GPU and back, --device cuda keeps them there" in caplog.text


class TestMeasuredBefore:
    def test_other_candidates_stay_and_can_be_chosen_on_the_same_machine_only(self, tmp_path):
        folder = write_tiny(tmp_path / "tiny.v2v")
        here = this_machine()
        fast = EngineMeasurement(
            engine="tensorrt", precision="f16", threads=1, median_ms=1e-6, accepted=True, reason="parity"
        )
        before = EngineChoice(
            engine="tensorrt",
            precision="f16",
            median_ms=1e-6,
            cpu=here["cpu"],
            gpu=here["gpu"],
            measurements=(fast,),
        )
        probe = Probe(np.random.default_rng(0).random((3, 4, *SIZE), np.float32))
        record_engine(folder, before)
        choice = choose_engine(folder, probe, candidates=[], threads=1)
        assert [m.engine for m in choice.measurements] == ["onnxruntime", "tensorrt"]
        assert (choice.engine, choice.precision) == ("tensorrt", "f16")
        record_engine(folder, replace(before, gpu="Abacus 9000"))
        assert choose_engine(folder, probe, candidates=[], threads=1).engine == "onnxruntime"


class TestManifest:
    def choice(self, **changes) -> EngineChoice:
        measured = EngineMeasurement(
            engine="torch", precision="bf16", threads=1, median_ms=0.5, accepted=True, reason="the fastest"
        )
        values = {"engine": "torch", "precision": "bf16", "median_ms": 0.5, "cpu": "c", "measurements": (measured,)}
        return EngineChoice(**values | changes)

    def test_the_gpu_is_recorded_and_older_files_may_lack_it(self, tmp_path):
        folder = write_tiny(tmp_path / "tiny.v2v")
        record_engine(folder, self.choice(gpu="Abacus 9000"))
        assert load_manifest(folder).engine.gpu == "Abacus 9000"
        record = replace(manifest(), engine=self.choice()).to_json()
        del record["engine"]["gpu"]
        assert type(manifest()).from_json(record).engine.gpu is None

    def test_a_choice_from_another_gpu_falls_back_aloud(self, tmp_path, caplog):
        folder = write_tiny(tmp_path / "tiny.v2v")
        record_engine(folder, self.choice(gpu="Abacus 9000"))
        with caplog.at_level(logging.INFO, "export"), open_bundle(folder, threads=1) as stream:
            assert stream.engine.name == "onnxruntime"
            assert len(list(stream.frames(label_maps(5)))) == 5
        assert "torch bf16 cannot be used: " in caplog.text

    def test_a_gpu_that_was_not_measured_is_said(self, tmp_path, caplog, monkeypatch):
        folder = write_tiny(tmp_path / "tiny.v2v")
        probe = Probe(np.zeros((3, 4, *SIZE), np.float32))
        choose_engine(folder, probe, candidates=[], threads=1)
        here = {"cpu": load_manifest(folder).engine.cpu, "gpu": "Abacus 9000", "cores": 1, "cpu_features": []}
        monkeypatch.setattr("export.runtime.this_machine", lambda: here)
        with caplog.at_level(logging.INFO, "export"):
            open_bundle(folder, threads=1).close()
        assert "engines of the Abacus 9000 here were not measured" in caplog.text
