"""The step graph in int8: what is quantised, what it costs, and when a bundle keeps it."""

import numpy as np
import onnx
import pytest
import torch
from tiny_bundle import SIZE, SPEC
from tiny_step import TinyStep, random_conditions

from export.build import BundleDetails, build_bundle
from export.bundle import INT8_GRAPH, Cost
from export.choose import EngineGuard, Probe, roll_out
from export.engines import REFERENCE, Candidate, OnnxRuntimeEngine, available_candidates, open_engine
from export.onnx_graph import export_step
from export.quantize import calibration_feeds, quantize_step
from export.runtime import open_bundle
from fastv2v.errors import BundleError
from fastv2v.nn.slim import SlimConfig, SlimGenerator

CONFIG = SlimConfig(widths=(16, 24), depths=(1, 1), up_depths=(1,), refine_width=4)
DETAILS = BundleDetails(
    task="street",
    condition=SPEC,
    size=SIZE,
    keyframes={"policy": "uniform", "gap": 2},
    interpolation={"method": "blend"},
    fps=15.0,
    cost=Cost(macs_per_keyframe=1e6, macs_per_frame=5e5, output_position_macs_per_keyframe=1e6, parameters=1000),
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = SlimGenerator(CONFIG, SPEC.channels)
    for module in made.modules():  # statistics as after training, so that activations have a spread
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    return made.eval()


@pytest.fixture(scope="module")
def conditions():
    return random_conditions(8, SIZE)


def parity_db(a, b):
    return 10 * np.log10(4 / np.mean((a - b) ** 2))


def rolled_out(engine, conditions):
    return np.stack(list(roll_out(engine, conditions.numpy(), CONFIG.history_length)))


def test_inner_convolutions_are_quantised_and_the_frames_stay_close(model, conditions, tmp_path):
    export_step(model, tmp_path / "step.onnx", size=SIZE)
    reference = open_engine(REFERENCE, tmp_path / "step.onnx", 1)
    frames = torch.rand(8, 3, *SIZE) * 2 - 1
    feeds = calibration_feeds(reference, Probe(conditions.numpy(), frames.numpy()), CONFIG.history_length)
    assert len(feeds) == 8 + 7  # from nothing, and from the first real frame
    assert [float(feed["valid"][0]) for feed in feeds][:2] == [0.0, 1.0]
    count = quantize_step(tmp_path / "step.onnx", tmp_path / INT8_GRAPH, feeds)
    made = onnx.load(str(tmp_path / INT8_GRAPH)).graph
    weights = {x.name: tuple(x.dims) for x in onnx.load(str(tmp_path / "step.onnx")).graph.initializer}
    all_of_them = [n for n in onnx.load(str(tmp_path / "step.onnx")).graph.node if n.op_type == "Conv"]
    small = [n for n in all_of_them if min(weights[n.input[1]][:2]) < 16]
    assert count == len(all_of_them) - len(small) > 3
    assert small
    int8 = [x for x in made.initializer if x.data_type == onnx.TensorProto.INT8 and len(x.dims) == 4]
    assert len(int8) == count
    engine = OnnxRuntimeEngine(tmp_path / INT8_GRAPH, 1, "int8")
    assert 25 < parity_db(rolled_out(engine, conditions), rolled_out(reference, conditions)) < 80


def test_a_graph_without_large_convolutions_is_left_alone(conditions, tmp_path):
    export_step(TinyStep(), tmp_path / "step.onnx", size=SIZE)
    assert quantize_step(tmp_path / "step.onnx", tmp_path / INT8_GRAPH, []) == 0
    assert not (tmp_path / INT8_GRAPH).exists()


def test_a_bundle_keeps_int8_where_it_passes_the_guard(model, conditions, tmp_path):
    folder = tmp_path / "loose.v2v"
    manifest = build_bundle(model, folder, DETAILS, conditions, guard=EngineGuard(min_parity_psnr_db=20.0), threads=1)
    assert INT8_GRAPH in manifest.files
    assert Candidate("onnxruntime", "int8") in available_candidates(folder)
    measured = {(m.engine, m.precision): m for m in manifest.engine.measurements}
    assert measured["onnxruntime", "int8"].accepted
    assert measured["onnxruntime", "int8"].parity_psnr_db > 20
    labels = [np.zeros(SIZE, np.uint8)] * 3
    with open_bundle(folder, engine="onnxruntime", precision="int8", threads=1) as stream:
        assert stream.engine_name == "onnxruntime int8"
        quantised = [x.frame for x in stream.frames(labels)]
    with open_bundle(folder, engine="onnxruntime", precision="f32", threads=1) as stream:
        plain = [x.frame for x in stream.frames(labels)]
    assert 0 < np.abs(quantised[0].astype(int) - plain[0]).max() < 64


def test_a_bundle_lets_go_of_int8_that_loses_too_much(model, conditions, tmp_path):
    folder = tmp_path / "strict.v2v"
    manifest = build_bundle(model, folder, DETAILS, conditions, guard=EngineGuard(min_parity_psnr_db=200.0), threads=1)
    assert INT8_GRAPH not in manifest.files and not (folder / INT8_GRAPH).exists()
    (refused,) = (m for m in manifest.engine.measurements if (m.engine, m.precision) == ("onnxruntime", "int8"))
    assert not refused.accepted and "parity" in refused.reason
    with pytest.raises(BundleError, match=r"step\.int8\.onnx is missing"):
        open_bundle(folder, engine="onnxruntime", precision="int8", threads=1)
    plain = build_bundle(model, tmp_path / "plain.v2v", DETAILS, conditions, int8=False, threads=1)
    assert all(m.precision != "int8" for m in plain.engine.measurements)
