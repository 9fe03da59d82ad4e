from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from tiny_step import TinyStep, random_conditions
from torch import nn

from export.choose import roll_out
from export.engines import (
    STEP_INPUTS,
    WARP_SELF_TEST,
    GraphEngine,
    OnnxRuntimeEngine,
    OpenVINOEngine,
    check_warp,
    has_fast_bf16,
)
from export.onnx_graph import EngineStep, GraphReport, compare_rollout, deployable, export_step, write_self_test
from fastv2v.contracts import FrameOutput
from fastv2v.errors import BundleError, ConfigError, ShapeError
from fastv2v.render import advance

SIZE = (16, 24)


@dataclass
class Exported:
    model: TinyStep
    path: str
    report: GraphReport


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("graph") / "step.onnx"
    model = TinyStep()
    report = export_step(model, path, size=SIZE)
    return Exported(model, path, report)


class TestGraph:
    def test_inputs_and_outputs_have_the_documented_names_and_fixed_shapes(self, exported):
        graph = onnx.load(exported.path).graph
        shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in [*graph.input, *graph.output]}
        assert shapes == {
            "condition": [1, 4, 16, 24],
            "history_conditions": [1, 2, 4, 16, 24],
            "history_frames": [1, 2, 3, 16, 24],
            "valid": [1],
            "frame": [1, 3, 16, 24],
            "hallucinated": [1, 3, 16, 24],
            "flow": [1, 2, 16, 24],
            "occlusion": [1, 1, 16, 24],
        }
        assert exported.report.outputs == ("frame", "hallucinated", "flow", "occlusion")

    def test_the_graph_holds_no_casts_constants_or_batch_norms(self, exported):
        nodes = exported.report.nodes
        assert not {"Cast", "Constant", "BatchNormalization", "Shape", "Transpose", "Identity"} & nodes.keys()
        assert nodes["GridSample"] == 1
        assert nodes["Resize"] == 1
        assert sum(nodes.values()) < 45

    def test_grid_sample_is_bilinear_under_its_old_name(self, exported):
        proto = onnx.load(exported.path)
        (node,) = [n for n in proto.graph.node if n.op_type == "GridSample"]
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        assert attributes == {"mode": b"bilinear", "padding_mode": b"border", "align_corners": 1}
        assert [(e.domain, e.version) for e in proto.opset_import] == [("", 18)]

    def test_no_path_of_the_exporting_machine_is_left_in_the_file(self, exported):
        assert b".py" not in exported.path.read_bytes()

    def test_equal_weights_give_equal_files(self, exported, tmp_path):
        export_step(TinyStep(), tmp_path / "again.onnx", size=SIZE)
        assert (tmp_path / "again.onnx").read_bytes() == exported.path.read_bytes()

    def test_the_model_is_left_as_it_was(self, exported):
        fresh = TinyStep()
        assert exported.model.training
        left = exported.model.state_dict()
        assert all(torch.equal(value, left[name]) for name, value in fresh.state_dict().items())

    def test_normalised_weights_become_plain_tensors(self, tmp_path):
        model = TinyStep()
        model.encoder[1] = nn.utils.parametrizations.spectral_norm(model.encoder[1])
        model.head = nn.utils.spectral_norm(model.head)
        report = export_step(model, tmp_path / "step.onnx", size=SIZE)
        assert not {"Div", "MatMul", "ReduceSum"} & report.nodes.keys()
        engine = OnnxRuntimeEngine(tmp_path / "step.onnx", 1)
        assert compare_rollout(model, engine, random_conditions(3, SIZE)) < 1e-4

    @pytest.mark.parametrize("normalise", [nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm])
    def test_a_norm_behind_a_shuffle_folds_into_a_normalised_convolution(self, normalise):
        norm = nn.BatchNorm2d(2)
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        part = nn.Sequential(normalise(nn.Conv2d(3, 8, 1)), nn.PixelShuffle(2), norm).eval()
        folded, x = deployable(part), torch.rand(1, 3, 4, 4)
        assert isinstance(folded[2], nn.Identity)
        assert torch.allclose(folded(x), part(x), atol=1e-5)

    def test_a_generator_without_flow_has_one_output(self, tmp_path):
        class Plain(TinyStep):
            def step(self, condition, history):
                frame = self.head(self.encoder(torch.cat([condition, condition, condition[:, :2]] * 2, 1)[:, :18]))
                frame = frame[:, :3].tanh()
                return FrameOutput(frame, frame), advance(history, condition, frame)

        report = export_step(Plain(), tmp_path / "step.onnx", size=SIZE)
        assert report.outputs == ("frame",)
        engine = OnnxRuntimeEngine(tmp_path / "step.onnx", 1)
        assert compare_rollout(Plain(), engine, random_conditions(3, SIZE)) < 1e-4


class TestRefusals:
    def test_opset_20_with_a_warp_is_refused_with_the_reason(self, tmp_path):
        with pytest.raises(ConfigError, match=r"opset 20 .* nearest; export at opset 18"):
            export_step(TinyStep(), tmp_path / "step.onnx", size=SIZE, opset=20)
        assert not list(tmp_path.iterdir())

    def test_an_older_opset_is_refused(self, tmp_path):
        with pytest.raises(ConfigError, match="opset 17 is too old"):
            export_step(TinyStep(), tmp_path / "step.onnx", size=SIZE, opset=17)

    def test_a_size_the_model_cannot_take_is_refused(self, tmp_path):
        with pytest.raises(ConfigError, match="20x24 must be a multiple of 8"):
            export_step(TinyStep(), tmp_path / "step.onnx", size=(20, 24))

    def test_a_step_that_branches_on_data_is_refused(self, tmp_path):
        class Branching(TinyStep):
            def step(self, condition, history):
                return super().step(condition if history.valid.sum() > 0 else -condition, history)

        with pytest.raises(BundleError, match=r"Branching\.step cannot be exported"):
            export_step(Branching(), tmp_path / "step.onnx", size=SIZE)

    def test_only_modules_are_exported(self, tmp_path, exported):
        twin = EngineStep(OnnxRuntimeEngine(exported.path, 1), condition_channels=4, history_length=2)
        with pytest.raises(ConfigError, match="only a torch module"):
            export_step(twin, tmp_path / "step.onnx", size=SIZE)


class TestRollout:
    @pytest.mark.parametrize("engine", [OnnxRuntimeEngine, OpenVINOEngine])
    @pytest.mark.parametrize("given", [0, 1, 3])
    def test_an_engine_draws_the_same_clip_as_the_module(self, exported, engine, given):
        frames = torch.rand(given, 3, *SIZE) * 2 - 1
        difference = compare_rollout(exported.model, engine(exported.path, 1), random_conditions(8, SIZE), frames)
        assert 0 < difference < 1e-4
        assert exported.model.training

    def test_other_weights_are_noticed(self, exported):
        engine = OnnxRuntimeEngine(exported.path, 1)
        assert compare_rollout(TinyStep(seed=1), engine, random_conditions(3, SIZE)) > 0.01

    def test_a_frame_that_is_not_a_number_is_noticed(self, exported):
        class Broken:
            name, precision = "broken", "f32"

            def run(self, *inputs):
                return {"frame": np.full((1, 3, *SIZE), np.nan, np.float32)}

        assert np.isnan(compare_rollout(exported.model, Broken(), random_conditions(3, SIZE)))

    def test_a_clip_without_a_frame_to_draw_is_refused(self, exported):
        with pytest.raises(ShapeError, match="nothing to synthesise"):
            compare_rollout(exported.model, OnnxRuntimeEngine(exported.path, 1), random_conditions(2, SIZE),
                            torch.zeros(2, 3, *SIZE))  # fmt: skip

    def test_the_array_rollout_equals_the_torch_rollout(self, exported):
        conditions = random_conditions(5, SIZE)
        seed = torch.rand(3, *SIZE) * 2 - 1
        engine = OnnxRuntimeEngine(exported.path, 1)
        made = list(roll_out(engine, conditions.numpy(), 2, seed.numpy()))
        replay = iter(made)

        class Replay:
            name, precision = "replay", "f32"

            def run(self, *inputs):
                return {"frame": next(replay)[None]}

        assert len(made) == 4
        assert compare_rollout(exported.model, Replay(), conditions, seed[None]) < 1e-4


class TestEngines:
    def test_a_wrong_shape_is_refused_by_name(self, exported):
        inputs = [np.zeros(s, np.float32) for s in ((1, 4, 16, 24), (1, 3, 4, 16, 24), (1, 2, 3, 16, 24), (1,))]
        with pytest.raises(ShapeError, match=r"history_conditions has shape \(1, 3, 4, 16, 24\)"):
            OnnxRuntimeEngine(exported.path, 1).run(*inputs)

    @pytest.mark.parametrize("engine", [OnnxRuntimeEngine, OpenVINOEngine])
    def test_outputs_belong_to_the_caller(self, exported, engine):
        opened = engine(exported.path, 1)
        inputs = [np.zeros(opened.shapes[name], np.float32) for name in STEP_INPUTS]
        first = opened.run(*inputs)
        kept = first["frame"].copy()
        opened.run(*(x + 1 for x in inputs))
        assert np.array_equal(first["frame"], kept)

    @pytest.mark.parametrize("engine", [OnnxRuntimeEngine, OpenVINOEngine])
    def test_a_damaged_graph_is_refused_by_name(self, engine, tmp_path):
        (tmp_path / "step.onnx").write_bytes(b"not a graph")
        with pytest.raises(BundleError, match=r"cannot open .*step\.onnx"):
            engine(tmp_path / "step.onnx", 1)

    def test_a_batch_is_refused(self, exported):
        twin = EngineStep(OnnxRuntimeEngine(exported.path, 1), condition_channels=4, history_length=2)
        with pytest.raises(ShapeError, match="one video at a time"):
            twin.step(torch.zeros(2, 4, *SIZE), None)

    def test_settings_that_make_no_sense_are_refused(self, exported):
        with pytest.raises(ConfigError, match="onnxruntime runs in f32 or int8, not in 'bf16'"):
            OnnxRuntimeEngine(exported.path, 1, "bf16")
        with pytest.raises(ConfigError, match="threads must be at least 1"):
            OnnxRuntimeEngine(exported.path, 0)

    def test_bf16_is_refused_where_it_would_be_emulated(self, exported, monkeypatch):
        monkeypatch.setattr("export.engines.has_fast_bf16", lambda: False)
        with pytest.raises(BundleError, match=r"\(.+\) has neither amx_bf16 nor avx512_bf16; choose precision f32"):
            OpenVINOEngine(exported.path, 1, "bf16")


class TestWarpSelfTest:
    def test_the_expected_values_are_those_of_torch(self):
        case = WARP_SELF_TEST
        warped = nn.functional.grid_sample(
            torch.from_numpy(case.image), torch.from_numpy(case.grid), padding_mode="border", align_corners=True
        )
        assert np.allclose(warped, case.warped, atol=1e-6)

    @pytest.mark.parametrize(
        ("engine", "precision"), [(OnnxRuntimeEngine, "f32"), (OpenVINOEngine, "f32"), (OpenVINOEngine, "bf16")]
    )
    def test_the_engines_here_pass(self, engine, precision, tmp_path):
        if precision == "bf16" and not has_fast_bf16():
            pytest.skip("this processor has no bf16 arithmetic")
        write_self_test(tmp_path / "selftest.onnx")
        check_warp(engine(tmp_path / "selftest.onnx", 1, precision))

    @pytest.mark.parametrize("change", [{"mode": "nearest"}, {"align_corners": 0}, {"padding_mode": "zeros"}])
    def test_another_way_of_sampling_is_noticed(self, change, tmp_path):
        assert not _passes(change, tmp_path)

    def test_the_same_way_of_sampling_passes(self, tmp_path):
        assert _passes({}, tmp_path)


def _passes(change: dict, folder) -> bool:
    """Whether an engine that samples as ``change`` says passes the self-test."""
    attributes = {"mode": "bilinear", "padding_mode": "border", "align_corners": 1} | change
    node = helper.make_node("GridSample", ["image", "grid"], ["warped"], **attributes)
    value = helper.make_tensor_value_info
    inputs = [value("image", TensorProto.FLOAT, (1, 1, 2, 4)), value("grid", TensorProto.FLOAT, (1, 2, 4, 2))]
    graph = helper.make_graph([node], "g", inputs, [value("warped", TensorProto.FLOAT, (1, 1, 2, 4))])
    path = folder / "other.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    engine: GraphEngine = OnnxRuntimeEngine(path, 1)
    try:
        check_warp(engine)
    except BundleError as error:
        assert "warps wrongly" in str(error)
        return False
    return True
