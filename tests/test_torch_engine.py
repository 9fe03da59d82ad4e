"""The engine torch on a CPU: the same frames as the module, from channels and from label maps, in every format."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from export.build import BundleDetails, build_bundle
from export.bundle import TORCH_ARCHITECTURE, TORCH_WEIGHTS, Cost, load_manifest
from export.choose import roll_out
from export.engines import Candidate, open_tested_engine
from export.inputs import encode_for
from export.runtime import open_bundle
from export.torch_engine import (
    DTYPES,
    Replay,
    TorchEngine,
    TorchStep,
    deploy,
    load_student,
    open_torch,
    open_torch_step,
)
from fastv2v.architecture import Architecture
from fastv2v.data.conditions import ConditionSpec, encode_condition_numpy
from fastv2v.data.folder import FolderConfig
from fastv2v.errors import BundleError, ConfigError, ShapeError
from fastv2v.nn.composite import CompositeConfig
from fastv2v.nn.generators import build_generator
from fastv2v.nn.slim import SlimConfig
from fastv2v.recipe import UNSET_ROOT
from fastv2v.render import rollout, start_history

SIZE = (32, 48)
SPEC = ConditionSpec(class_names=("road", "car", "sky"), use_instances=True)
SLIM = SlimConfig(widths=(8, 12), depths=(1, 1), up_depths=(1,), refine_width=4)
COMPOSITE = CompositeConfig(width=4, num_downsamples=2, num_blocks=2, norm="batch", input_scale=2)
CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU")


def generator(config, seed: int = 0):
    """With running statistics that are not those of a fresh norm, as folding must see them."""
    torch.manual_seed(seed)
    model = build_generator(config, SPEC.channels, (1,)).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return model


def drawn(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 3, (4, 6)).repeat(8, 0).repeat(8, 1).astype(np.uint8) for _ in range(count)]


def expected(model, labels, seed_frame=None) -> list[np.ndarray]:
    """Frames of the module itself, rolled out."""
    encoded = torch.from_numpy(np.stack([encode_condition_numpy(SPEC, x, x) for x in labels]))[None]
    given = 0 if seed_frame is None else 1
    frames = None if seed_frame is None else torch.from_numpy(seed_frame)[None, None]
    history = start_history(encoded[:, :given], frames, model.history_length, first_condition=encoded[:, 0])
    with torch.no_grad():
        return [output.frame.numpy() for output in rollout(model, encoded[:, given:], history)]


@pytest.mark.parametrize("config", [SLIM, COMPOSITE], ids=["compact", "plain"])
@pytest.mark.parametrize("seeded", [False, True])
@pytest.mark.parametrize(("precision", "tolerance"), [("f32", 1e-5), ("bf16", 0.05), ("f16", 0.01)])
def test_a_step_on_a_device_draws_what_the_module_draws(config, seeded, precision, tolerance):
    model, labels = generator(config), drawn(6)
    seed_frame = np.random.default_rng(1).uniform(-1, 1, (3, *SIZE)).astype(np.float32) if seeded else None
    step = TorchStep(model, SIZE, SPEC, device=CPU, precision=precision)
    conditions = [encode_for(step.form, SPEC, x, x) for x in labels]
    wanted = expected(model, labels, seed_frame)
    for _ in range(2):  # a second video begins anew
        step.start(conditions[0], seed_frame)
        for condition, frame in zip(conditions[seeded:], wanted, strict=True):
            assert np.abs(step.step(condition).numpy() - frame).max() < tolerance
    assert step.memory_bytes is None and step.form.labels == (config is SLIM)


@pytest.mark.parametrize("config", [SLIM, COMPOSITE], ids=["compact", "plain"])
def test_the_engine_on_arrays_draws_the_same(config):
    model, labels = generator(config), drawn(5)
    engine = TorchEngine(model, SIZE, SPEC, device=CPU)
    conditions = np.stack([encode_condition_numpy(SPEC, x, x) for x in labels])
    frames = list(roll_out(engine, conditions, model.history_length))
    assert all(np.abs(a[None] - b).max() < 1e-5 for a, b in zip(frames, expected(model, labels), strict=True))
    assert len({frame.ctypes.data for frame in frames}) == 5  # each the caller's to keep
    assert engine.where == "on the CPU"


def test_norms_are_folded_and_the_model_is_left_as_it_was():
    model = generator(SLIM)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    step = TorchStep(model, SIZE, SPEC, device=CPU, precision="bf16")
    inside = list(step._network._run.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in inside)
    assert all(m.weight.dtype == torch.bfloat16 for m in inside if isinstance(m, nn.Conv2d))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(p.dtype != torch.float32 for p in model.parameters())


def test_a_norm_of_its_own_statistics_is_not_folded():
    part = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)).eval()
    assert isinstance(deploy(part, CPU, "f32")[1], nn.BatchNorm2d)


def test_work_is_done_once_when_it_is_not_recorded():
    counted = []
    replay = Replay(lambda: counted.append(1), CPU, graph=False)
    replay()
    assert len(counted) == 2


@needs_gpu
class TestOnAGpu:
    @pytest.mark.parametrize("config", [SLIM, COMPOSITE], ids=["compact", "plain"])
    @pytest.mark.parametrize("graph", [False, True])
    @pytest.mark.parametrize(("precision", "tolerance"), [("f32", 1e-3), ("tf32", 0.02), ("bf16", 0.1), ("f16", 0.02)])
    def test_a_step_draws_what_the_module_draws(self, config, graph, precision, tolerance):
        model, labels = generator(config), drawn(6)
        step = TorchStep(model, SIZE, SPEC, device=torch.device("cuda"), precision=precision, cuda_graph=graph)
        conditions = [encode_for(step.form, SPEC, x, x) for x in labels]
        for _ in range(2):
            step.start(conditions[0])
            for condition, frame in zip(conditions, expected(model, labels), strict=True):
                assert np.abs(step.step(condition).cpu().numpy() - frame).max() < tolerance
        assert step.memory_bytes > 0

    def test_work_is_replayed_over_its_buffers(self):
        device = torch.device("cuda")
        source, made = torch.ones(2, 1000, device=device)
        replay = Replay(lambda: made.copy_(source.exp()), device, graph=True)
        source.fill_(2)
        replay()
        assert torch.allclose(made, source.exp())

    def test_the_engine_on_arrays_draws_the_same(self):
        model, labels = generator(SLIM), drawn(5)
        engine = TorchEngine(model, SIZE, SPEC, device=torch.device("cuda"))
        conditions = np.stack([encode_condition_numpy(SPEC, x, x) for x in labels])
        frames = list(roll_out(engine, conditions, model.history_length))
        assert all(np.abs(a[None] - b).max() < 1e-3 for a, b in zip(frames, expected(model, labels), strict=True))


def test_what_cannot_be_is_refused_in_one_sentence(monkeypatch):
    model = generator(SLIM)
    with pytest.raises(ConfigError, match="torch runs in f32 or tf32"):
        TorchStep(model, SIZE, SPEC, device=CPU, precision="int8")
    with pytest.raises(BundleError, match="tf32 is a format of NVIDIA's GPUs and this is the CPU"):
        TorchStep(model, SIZE, SPEC, device=CPU, precision="tf32")
    with pytest.raises(ConfigError, match="a CUDA graph needs a CUDA GPU"):
        TorchStep(model, SIZE, SPEC, device=CPU, cuda_graph=True)
    with pytest.raises(ShapeError, match="does not divide"):
        TorchStep(model, (30, 48), SPEC, device=CPU)

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("export.torch_engine.deploy", full)
    with pytest.raises(BundleError, match="torch f32: the CPU has too little free memory"):
        TorchStep(model, SIZE, SPEC, device=CPU)

    def broken(*_, **__):
        raise RuntimeError("no C++ compiler\nat line 7")

    monkeypatch.setattr("export.torch_engine.deploy", broken)
    with pytest.raises(BundleError, match=r"torch f32 cannot run this step on the CPU: no C\+\+ compiler$"):
        TorchStep(model, SIZE, SPEC, device=CPU)


def test_a_gpu_that_torch_cannot_use_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr("export.torch_engine.usable_device", lambda: CPU)
    monkeypatch.setattr("export.torch_engine.this_machine", lambda: {"gpu": "Abacus 9000"})
    with pytest.raises(BundleError, match=r"torch cannot use the Abacus 9000 here .*pytorch.org"):
        open_torch(tmp_path, "f32")


ARCHITECTURE = Architecture(
    generator=SLIM,
    foreground=("car",),
    condition=SPEC,
    size=SIZE,
    stage="temporal",
    folder=FolderConfig(root=UNSET_ROOT, use_instances=True),
)


def details() -> BundleDetails:
    return BundleDetails(
        task="street",
        condition=SPEC,
        size=SIZE,
        keyframes={"policy": "uniform", "gap": 2},
        interpolation={"method": "blend"},
        fps=15.0,
        cost=Cost(macs_per_keyframe=1, macs_per_frame=1, output_position_macs_per_keyframe=1, parameters=1),
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A bundle with weights for torch, and the generator in it."""
    pytest.importorskip("onnxscript", reason="the export needs it")
    model = generator(SLIM)
    conditions = torch.from_numpy(np.stack([encode_condition_numpy(SPEC, x, x) for x in drawn(3)]))
    folder = tmp_path_factory.mktemp("torch") / "student.v2v"
    build_bundle(
        model, folder, details(), conditions, engine="torch:f32", architecture=ARCHITECTURE, int8=False, threads=1
    )
    return folder, model


class TestBundle:
    def test_the_named_engine_was_measured_and_chosen(self, bundle):
        choice = load_manifest(bundle[0]).engine
        assert (choice.engine, choice.precision) == ("torch", "f32")
        assert [m.engine for m in choice.measurements] == ["onnxruntime", "torch"]
        assert choice.measurements[1].parity_psnr_db > 80

    def test_the_weights_are_listed_and_come_back(self, bundle):
        folder, model = bundle
        assert {TORCH_WEIGHTS, TORCH_ARCHITECTURE} <= load_manifest(folder).files.keys()
        loaded, size, spec = load_student(folder)
        assert (spec, size) == (SPEC, SIZE)
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())

    def test_a_stream_in_torch_gives_the_frames_of_onnx_runtime(self, bundle):
        streams = []
        for engine in ("auto", "torch:f32", "onnxruntime"):
            with open_bundle(bundle[0], engine=engine, threads=1) as stream:
                streams.append([item.frame for item in stream.frames([(x, x) for x in drawn(5)])])
                assert stream.engine.name == ("onnxruntime" if engine == "onnxruntime" else "torch")
        for other in streams[1:]:
            assert max(np.abs(a.astype(int) - b).max() for a, b in zip(streams[0], other, strict=True)) <= 1

    @pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
    @pytest.mark.parametrize("engine", ["auto", "torch", "torch:f32"])
    def test_a_stream_on_a_device_gives_the_same_keyframes(self, bundle, engine, device):
        conditions = [(x, x) for x in drawn(9)]
        with open_bundle(bundle[0], engine="onnxruntime", threads=1) as stream:
            wanted = list(stream.frames(conditions))
        with open_bundle(bundle[0], engine=engine, device=device) as stream:
            assert stream.engine_name == "torch f32"
            made = list(stream.frames(conditions))
        assert [d.is_keyframe for d in made] == [d.is_keyframe for d in wanted]
        for one, other in zip(made, wanted, strict=True):
            if one.is_keyframe:
                assert np.abs(one.frame.astype(int) - other.frame).max() <= 1

    def test_devices_that_are_not_there_and_engines_that_keep_nothing_are_refused(self, bundle):
        with pytest.raises(BundleError, match="cuda:999 is not to be had here"):
            open_bundle(bundle[0], device="cuda:999")
        with pytest.raises(ConfigError, match=r"onnxruntime keeps no frames on a device; .*choose from torch, "):
            open_bundle(bundle[0], engine="onnxruntime", device="cpu")
        with pytest.raises(ConfigError, match=r"RAFT fills gaps on a device; give one"):
            open_bundle(bundle[0], raft_weights=bundle[0] / "raft.pth")

    def test_a_step_is_opened_by_the_folder_alone(self, bundle):
        step = open_torch_step(bundle[0], device=CPU)
        assert (step.name, step.precision, step.device) == ("torch", "f32", CPU)

    def test_weights_of_another_network_are_refused(self, bundle, monkeypatch):
        wider = replace(ARCHITECTURE, generator=replace(SLIM, widths=(8, 16)))
        monkeypatch.setattr("export.torch_engine.from_dict", lambda *_: wider)
        with pytest.raises(BundleError, match=r"torch does not suit this fastv2v .*mis-shaped"):
            open_tested_engine(Candidate("torch", "f32"), bundle[0], 1)
        monkeypatch.setattr("export.torch_engine.from_dict", lambda *_: replace(ARCHITECTURE, condition=other()))
        with pytest.raises(BundleError, match="speak of different conditions"):
            load_student(bundle[0])

    def test_an_altered_weight_is_noticed(self, bundle, tmp_path):
        import shutil

        copy = tmp_path / "student.v2v"
        shutil.copytree(bundle[0], copy)
        described = json.loads((copy / TORCH_ARCHITECTURE).read_text())
        (copy / TORCH_ARCHITECTURE).write_text(json.dumps(described | {"stage": "spatial"}))
        with pytest.raises(BundleError, match=r"torch/architecture.json is damaged"):
            open_torch_step(copy)


def other() -> ConditionSpec:
    return replace(SPEC, class_names=("road", "car", "tree"))


def test_every_format_is_known_by_the_list_of_engines():
    from export.engines import GPU_ENGINES

    assert all(GPU_ENGINES[name].precisions == tuple(DTYPES) for name in ("torch", "torch-compiled"))
