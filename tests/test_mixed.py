"""Step graphs in 16 bits and int8 as TensorRT wants them, the warp in three forms, and what they cost."""

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from tiny_step import TinyStep, random_conditions

from export.choose import Probe
from export.engines import WARP_SELF_TEST, OnnxRuntimeEngine
from export.graph_check import check_graph
from export.graphs import load_graph, save_graph
from export.inputs import ConditionForm
from export.mixed import MixedConfig, mixed_graph, plan_mixed, rounded_graph, to_bf16_bits
from export.onnx_graph import export_step, write_self_test
from export.outside import OutsideEngine, OutsideWarp
from export.parity import compare_engines
from export.prepare import precision_loss, prepare_for_tensorrt, prepare_graph
from export.quantize import calibration_feeds
from export.warp_graph import cut_warp, gather_warp, name_warp, with_outputs
from fastv2v.data.conditions import ConditionSpec
from fastv2v.errors import BundleError, ConfigError, ParityError, ShapeError
from fastv2v.nn.slim import SlimConfig, SlimGenerator

SIZE = (16, 24)
SPEC = ConditionSpec(class_names=("road", "car", "sky", "tree"))
CLIP = random_conditions(6, SIZE).numpy()


@pytest.fixture(scope="module")
def slim(tmp_path_factory):
    torch.manual_seed(0)
    config = SlimConfig(widths=(16, 16), depths=(1, 1), up_depths=(1,), refine_width=4)
    model = SlimGenerator(config, 4, foreground_channels=(1,))
    path = tmp_path_factory.mktemp("slim") / "step.onnx"
    export_step(model.eval(), path, size=SIZE, spec=SPEC)
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """All operator families: instance norm, transposed convolution, leaky ReLU, resize, warp."""
    path = tmp_path_factory.mktemp("plain") / "step.onnx"
    export_step(TinyStep().eval(), path, size=SIZE)
    return path


@pytest.fixture(scope="module")
def feeds(slim):
    return calibration_feeds(OnnxRuntimeEngine(slim, 1), Probe(CLIP), 2)


def kinds(path, **settings):
    plan = plan_mixed(load_graph(path), MixedConfig(**settings))
    return plan, {layer.operator: layer.kind for layer in plan.layers}


def types(model):
    return {x.name: x.type.tensor_type.elem_type for x in (*model.graph.input, *model.graph.output)}


class TestPlan:
    def test_convolutions_leave_f32_and_flow_sampling_norms_and_blends_stay(self, plain):
        plan, kind = kinds(plain)
        assert {kind[x] for x in ("Conv", "ConvTranspose", "LeakyRelu", "Relu", "Pad")} == {"f16"}
        assert {kind[x] for x in ("GridSample", "InstanceNormalization", "Tanh", "Sigmoid")} == {"f32"}
        flow = next(x for x in load_graph(plain).graph.node if "flow" in x.output)
        assert next(x for x in plan.layers if x.node == flow.name).reason == "flow, coordinates, sampling"

    def test_each_exception_can_be_lifted(self, plain):
        assert kinds(plain, keep_norms=False)[1]["InstanceNormalization"] == "f16"
        assert kinds(plain, keep_warp=False)[1]["GridSample"] == "f16"
        assert kinds(plain, keep_blend=False)[1]["Tanh"] == "f16"
        model = load_graph(plain)
        everything = MixedConfig(keep_norms=False, keep_warp=False, keep_blend=False)
        made = mixed_graph(model, plan_mixed(model, everything))
        assert plan_mixed(model, everything).count("f32") == 0
        assert check_graph(made) == ()
        assert types(made) == types(model)

    def test_layers_can_be_kept_by_name(self, plain):
        name = next(x.name for x in load_graph(plain).graph.node if x.op_type == "Conv")
        plan, _ = kinds(plain, keep=(name,))
        assert next(x for x in plan.layers if x.node == name)[2:] == ("f32", "asked for")
        with pytest.raises(ConfigError, match="no node 'nobody'"):
            kinds(plain, keep=("nobody",))
        with pytest.raises(ConfigError, match="low must be f16 or bf16, got 'f8'"):
            MixedConfig(low="f8")

    def test_what_only_moves_numbers_follows_them(self, slim):
        plan, kind = kinds(slim)
        assert kind["DepthToSpace"] == "f16"
        assert any(x.reason == "moves what is in 16 bits" for x in plan.layers)
        assert kind["GridSample"] == "f32"

    def test_constants_that_do_not_fit_stay(self):
        model = chain(offset=7e4)
        assert [x.kind for x in plan_mixed(model).layers] == ["f16", "f32", "f16"]
        assert plan_mixed(model).layers[1].reason == "constants up to 7e+04"
        assert [x.kind for x in plan_mixed(model, MixedConfig(low="bf16")).layers] == ["bf16"] * 3

    def test_it_prints_as_a_table(self, plain):
        lines = str(kinds(plain)[0]).splitlines()
        assert lines[0].split()[:3] == ["Reshape", "f16", "features"]
        assert any(line.startswith("GridSample") and "f32" in line for line in lines)


def chain(offset=0.0003):
    """Arithmetic before a convolution: f32 keeps a small offset and 16 bits lose it."""
    nodes = [
        helper.make_node("Neg", ["x"], ["a"], name="first"),
        helper.make_node("Add", ["a", "c"], ["b"], name="second"),
        helper.make_node("Conv", ["b", "w"], ["y"], name="third"),
    ]
    return before_conv(nodes, {"c": offset}, (1, 1, 1, 2))


def before_conv(nodes, constants, sides):
    info = helper.make_tensor_value_info
    held = [numpy_helper.from_array(np.float32([x]), name) for name, x in constants.items()]
    held.append(numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "w"))
    graph = helper.make_graph(nodes, "g", [info("x", 1, sides)], [info("y", 1, sides)], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


class TestRounding:
    @pytest.mark.parametrize(("low", "dtype"), [("f16", np.float16), ("bf16", ml_dtypes.bfloat16)])
    def test_every_layer_is_rounded(self, low, dtype, tmp_path):
        model = chain()
        save_graph(rounded_graph(model, plan_mixed(model, MixedConfig(low=low))), tmp_path / "g.onnx")
        x = np.float32([[[[-1.0, 0.3337]]]])
        (made,) = OnnxRuntimeEngine(tmp_path / "g.onnx", 1).infer({"x": x}).values()

        def rounded(values):
            return np.asarray(values, dtype).astype(np.float32)

        wanted = rounded(rounded(-rounded(x)) + rounded(np.float32(0.0003)))
        assert np.array_equal(made, wanted)
        assert not np.array_equal(made, -x + np.float32(0.0003))

    def test_bf16_is_rounded_to_the_nearest_even(self):
        values = np.random.default_rng(0).normal(size=1000).astype(np.float32)
        values = np.concatenate([values, np.float32([0, -0.0, 1 + 2**-8, 1 + 3 * 2**-8, 3e38, 1e-40])])
        assert np.array_equal(to_bf16_bits(values), values.astype(ml_dtypes.bfloat16).view(np.uint16))

    def test_the_loss_is_measured_over_a_rollout(self, slim):
        loss = precision_loss(slim, "f16", CLIP, 2, threads=1)
        assert set(loss.rounded.outputs) == {"frame", "warped"}
        assert loss.rounded.frames == len(loss.rounded.drift) == 6
        assert 60 < loss.rounded.frame.psnr_db < 130
        assert 60 < loss.as_run.frame.psnr_db < 130
        coarse = precision_loss(slim, "bf16", CLIP, 2, warp="gather", threads=1)
        assert coarse.as_run is None
        assert coarse.rounded.frame.psnr_db < loss.rounded.frame.psnr_db - 10
        exact = precision_loss(slim, "f32", CLIP, 2, threads=1)
        assert exact.rounded.frame.psnr_db == np.inf
        with pytest.raises(ConfigError, match="has no frame"):
            precision_loss(slim, "f16", CLIP, 2, warp="outside")

    def test_an_overflow_is_not_a_number(self, tmp_path):
        nodes = [
            helper.make_node("Mul", ["x", "big"], ["a"], name="m"),
            helper.make_node("Sub", ["a", "a"], ["b"], name="s"),
            helper.make_node("Conv", ["b", "w"], ["y"], name="c"),
        ]
        model = before_conv(nodes, {"big": 6e4}, (1, 1, 1, 1))
        save_graph(rounded_graph(model, plan_mixed(model)), tmp_path / "g.onnx")
        (made,) = OnnxRuntimeEngine(tmp_path / "g.onnx", 1).infer({"x": np.full((1, 1, 1, 1), 2, np.float32)}).values()
        assert np.isnan(made).all()


class TestWarp:
    def test_gathers_sample_as_torch_does_also_outside_the_picture(self, tmp_path):
        write_self_test(tmp_path / "selftest.onnx")
        for aligned in (True, False):
            model = load_graph(tmp_path / "selftest.onnx")
            next(x for x in model.graph.node[0].attribute if x.name == "align_corners").i = int(aligned)
            made = gather_warp(model)
            assert "GridSample" not in {x.op_type for x in made.graph.node}
            assert sum(x.op_type == "GatherElements" for x in made.graph.node) == 4
            assert check_graph(made) == ()
            save_graph(made, tmp_path / "g.onnx")
            rng = np.random.default_rng(0)
            image = rng.normal(size=WARP_SELF_TEST.image.shape).astype(np.float32)
            grid = rng.uniform(-2, 2, WARP_SELF_TEST.grid.shape).astype(np.float32)
            (warped,) = OnnxRuntimeEngine(tmp_path / "g.onnx", 1).infer({"image": image, "grid": grid}).values()
            wanted = torch.nn.functional.grid_sample(
                torch.from_numpy(image), torch.from_numpy(grid), padding_mode="border", align_corners=aligned
            )
            assert np.allclose(warped, wanted, atol=1e-5)

    def test_other_sampling_is_not_taken_for_bilinear(self, tmp_path):
        write_self_test(tmp_path / "selftest.onnx")
        model = load_graph(tmp_path / "selftest.onnx")
        next(x for x in model.graph.node[0].attribute if x.name == "padding_mode").s = b"zeros"
        with pytest.raises(BundleError, match="samples bilinear with zeros around"):
            gather_warp(model)
        with pytest.raises(BundleError, match="nothing lies before the warp"):
            cut_warp(load_graph(tmp_path / "selftest.onnx"))

    @pytest.mark.parametrize("which", ["slim", "plain"])
    @pytest.mark.parametrize("precision", ["f32", "f16"])
    def test_a_graph_cut_before_its_warp_is_finished_in_torch(self, which, precision, request, tmp_path):
        path = request.getfixturevalue(which)
        prepare_for_tensorrt(path, precision, "outside", out=tmp_path / "head.onnx")
        head = OnnxRuntimeEngine(tmp_path / "head.onnx", 1)
        assert "GridSample" not in {x.op_type for x in load_graph(tmp_path / "head.onnx").graph.node}
        parity = compare_engines(OutsideEngine(head, path), OnnxRuntimeEngine(path, 1), CLIP, 2)
        assert parity.outputs["frame"].greatest < (1e-5 if precision == "f32" else 5e-3)
        assert set(parity.outputs) == {"frame", "hallucinated", "flow", "occlusion"}

    def test_what_is_handed_over_is_flow_weight_and_hallucinated_frame(self, tmp_path):
        config = SlimConfig(widths=(8,), depths=(1,), up_depths=())
        export_step(SlimGenerator(config, 4).eval(), tmp_path / "step.onnx", size=SIZE, outputs=("frame",))
        cut = cut_warp(load_graph(tmp_path / "step.onnx"))
        sides = {x.name: [d.dim_value for d in x.type.tensor_type.shape.dim] for x in cut.head.graph.output}
        assert sorted(x[1] for x in sides.values()) == [1, 2, 3]
        finish = OutsideWarp(tmp_path / "step.onnx")
        assert set(finish.inputs) <= {"history_frames", "valid"}
        save_graph(cut.head, tmp_path / "head.onnx")
        head, whole = (OnnxRuntimeEngine(tmp_path / x, 1) for x in ("head.onnx", "step.onnx"))
        given = {x: np.full(s, 0.5, np.float32) for x, s in whole.shapes.items()}
        made, inputs = ({k: torch.from_numpy(v) for k, v in x.items()} for x in (head.infer(given), given))
        assert np.allclose(finish(made, inputs)["frame"], whole.infer(given)["frame"], atol=1e-5)

    def test_a_graph_without_a_warp_is_left_alone(self, tmp_path):
        config = SlimConfig(widths=(8,), depths=(1,), up_depths=(), use_flow=False)
        export_step(SlimGenerator(config, 4).eval(), tmp_path / "step.onnx", size=SIZE)
        models = [prepare_for_tensorrt(tmp_path / "step.onnx", "f16", x) for x in ("grid_sample", "gather", "outside")]
        assert models[0] == models[1] == models[2]
        with pytest.raises(BundleError, match="no warp to leave out"):
            cut_warp(load_graph(tmp_path / "step.onnx"))
        assert set(precision_loss(tmp_path / "step.onnx", "f16", CLIP, 2, threads=1).rounded.outputs) == {"frame"}

    def test_other_outputs(self, slim):
        model = name_warp(load_graph(slim))
        made = with_outputs(model, ["warped"])
        assert [x.name for x in made.graph.output] == ["warped"]
        assert len(made.graph.node) < len(model.graph.node)
        assert not any("refine" in x.name for x in made.graph.initializer)
        onnx.checker.check_model(made, full_check=True)
        with pytest.raises(ConfigError, match="no tensor 'nothing'"):
            with_outputs(model, ["nothing"])


class TestPrepared:
    @pytest.mark.parametrize("warp", ["grid_sample", "gather", "outside"])
    @pytest.mark.parametrize("precision", ["f32", "f16", "bf16", "int8", "fp8"])
    def test_every_form_is_valid_and_suits_the_parser(self, slim, feeds, precision, warp, tmp_path):
        settings = {"out": tmp_path / "g.onnx", "version": "11.0", "feeds": feeds}
        if (precision, warp) == ("bf16", "grid_sample"):
            with pytest.raises(
                ConfigError, match="sample the warp as nearest; warp by gather or outside, or choose f16"
            ):
                prepare_for_tensorrt(slim, precision, warp, **settings)
            return
        made = prepare_for_tensorrt(slim, precision, warp, **settings)
        onnx.checker.check_model(made, full_check=True)
        assert load_graph(tmp_path / "g.onnx") == made
        before = load_graph(slim)
        assert all(types(before).get(name, 1) == kind for name, kind in types(made).items())
        weights = {x.data_type for x in made.graph.initializer if len(x.dims) == 4}
        code = {"f32": 1, "f16": 10, "bf16": 16, "int8": 10, "fp8": 10}[precision]
        assert code in weights
        opset = next(x.version for x in made.opset_import)
        assert opset == {"f32": 18, "f16": 18, "bf16": 22, "int8": 19, "fp8": 19}[precision]

    def test_int8_is_symmetric_and_only_at_the_doors_of_convolutions(self, slim, feeds):
        model = prepare_graph(slim, "int8", feeds=feeds).model
        nodes = {x.name: x for x in model.graph.node}
        made_by = {y: x for x in nodes.values() for y in x.output}
        held = {x.name: numpy_helper.to_array(x) for x in model.graph.initializer}
        quantising = [x for x in nodes.values() if x.op_type == "QuantizeLinear"]
        assert quantising
        for node in quantising:
            assert not held[node.input[2]].any() and held[node.input[2]].dtype == np.int8
            assert (held[node.input[1]] >= 2.0**-14).all() and held[node.input[1]].dtype == np.float16
        dequantised = {x.output[0] for x in nodes.values() if x.op_type == "DequantizeLinear"}
        readers = [x for x in nodes.values() if dequantised.intersection(x.input)]
        assert {x.op_type for x in readers} == {"Conv"}
        for conv in readers:
            data, weight = (made_by[x] for x in conv.input[:2])
            assert data.op_type == weight.op_type == "DequantizeLinear"
            assert held[data.input[1]].size == 1 and held[weight.input[1]].size > 1
            assert len(conv.input) < 3 or held[conv.input[2]].dtype == np.float16

    def test_fp8_lies_where_int8_does_and_its_ranges_end_at_448(self, slim, feeds):
        eight, floating = (prepare_graph(slim, x, feeds=feeds).plain for x in ("int8", "fp8"))
        assert [x.op_type for x in floating.graph.node] == [x.op_type for x in eight.graph.node]
        held = [{x.name: numpy_helper.to_array(x) for x in m.graph.initializer} for m in (eight, floating)]
        quantising = [x for x in floating.graph.node if x.op_type == "QuantizeLinear"]
        assert quantising
        for node in quantising:
            wide, narrow = (h[node.input[1]] for h in held)
            assert np.allclose(narrow, np.maximum(wide * 127 / 448, 2.0**-14), rtol=1e-6)
            assert held[1][node.input[2]].dtype == ml_dtypes.float8_e4m3fn and not held[1][node.input[2]].any()
        activation = next(x for x in quantising if x.input[0] not in held[1])
        weight = next(x for x in quantising if x.input[0] in held[1])
        assert held[1][activation.input[1]].size == 1
        largest = np.abs(held[1][weight.input[0]]).max(axis=(1, 2, 3))
        assert np.allclose(held[1][weight.input[1]].ravel(), np.maximum(largest / 448, 2.0**-14), rtol=1e-5)

    def test_fp8_runs_on_a_cpu_and_rounds_as_the_type_does(self, slim, feeds):
        loss = precision_loss(slim, "fp8", CLIP, 2, feeds=feeds, threads=1)
        plain = precision_loss(slim, "f16", CLIP, 2, threads=1)
        assert 30 < loss.rounded.frame.psnr_db < plain.rounded.frame.psnr_db - 5
        assert abs(loss.rounded.frame.psnr_db - loss.as_run.frame.psnr_db) < 3

    def test_tiny_scales_are_raised(self, tmp_path):
        torch.manual_seed(0)
        model = SlimGenerator(SlimConfig(widths=(16, 16), depths=(1, 1), up_depths=(1,)), 4)
        with torch.no_grad():
            for part in model.modules():
                if isinstance(part, torch.nn.Conv2d):
                    part.weight[0].zero_()
        export_step(model.eval(), tmp_path / "step.onnx", size=SIZE, spec=SPEC)
        feeds = calibration_feeds(OnnxRuntimeEngine(tmp_path / "step.onnx", 1), Probe(CLIP), 2)
        prepare_for_tensorrt(tmp_path / "step.onnx", "int8", feeds=feeds)

    def test_settings_that_contradict_each_other(self, slim, plain, feeds):
        with pytest.raises(ConfigError, match="int8 needs inputs to take ranges from"):
            prepare_graph(slim, "int8")
        with pytest.raises(
            ConfigError, match=r"precision is one of f32, f16, bf16, int8, fp8 .* got 'f8' and 'gather'"
        ):
            prepare_graph(slim, "f8", warp="gather")
        with pytest.raises(ConfigError, match="in bf16 was asked for and the plan's format is f16"):
            prepare_graph(slim, "bf16", config=MixedConfig())
        with pytest.raises(BundleError, match="no convolution of the graph is large enough"):
            prepare_graph(plain, "int8", feeds=calibration_feeds(OnnxRuntimeEngine(plain, 1), Probe(CLIP), 2))

    def test_faults_are_told_with_version_and_node(self, slim):
        with pytest.raises(BundleError, match=r"TensorRT 10\.3: the graph: operator set 22 is not among 9 to 20"):
            prepare_for_tensorrt(slim, "bf16", "gather", version="10.3")


class TestParity:
    def test_an_error_that_grows_is_refused_though_the_mean_passes(self):
        class Drifting:
            name, precision, form = "drifting", "f32", ConditionForm()

            def __init__(self, slope):
                self.slope, self.step = slope, 0

            def run(self, *_):
                self.step += 1
                return {"frame": np.full((1, 3, *SIZE), self.slope * 2.0**self.step, np.float32)}

        parity = compare_engines(Drifting(1e-3), Drifting(0.0), CLIP, 2)
        frame = parity.frame
        assert frame.worst_rms == pytest.approx(0.064) and frame.psnr_db > frame.worst_psnr_db + 6
        parity.require(frame.worst_psnr_db)
        with pytest.raises(ParityError, match=r"frame reaches 3\d\.\d dB .* but 29\.9 dB at the worst of them"):
            parity.require(frame.psnr_db - 1)

    def test_an_engine_that_samples_nearest_is_found_in_the_warped_frame(self, slim, tmp_path):
        model = with_outputs(name_warp(load_graph(slim)), ["frame", "warped", "hallucinated"])
        save_graph(model, tmp_path / "right.onnx")
        node = next(x for x in model.graph.node if x.op_type == "GridSample")
        next(x for x in node.attribute if x.name == "mode").s = b"nearest"
        save_graph(model, tmp_path / "wrong.onnx")
        wrong, right = (OnnxRuntimeEngine(tmp_path / f"{x}.onnx", 1) for x in ("wrong", "right"))
        seed = np.random.default_rng(0).uniform(-1, 1, (3, *SIZE)).astype(np.float32)
        single = compare_engines(wrong, right, CLIP, 2, seed, own_frames=False)
        assert single.frames == 5
        assert single.outputs["warped"].psnr_db < 50 < single.outputs["hallucinated"].psnr_db
        with pytest.raises(ParityError, match=r"this one: .* reaches .* over 5 frames .* and must reach 60"):
            single.require(60, "this one")
        same = compare_engines(right, right, CLIP, 2, seed)
        same.require(200)
        assert same.drift == (0.0,) * 5

    def test_a_guided_student_sees_what_each_engine_painted_itself(self):
        class Guided:
            """Draws what it is shown of the world, one brighter."""

            name, precision, form = "guided", "f32", ConditionForm(scale=4, labels=True, guidance=4)

            def __init__(self, first):
                self.first = first

            def run(self, condition, past, frames, valid):
                shown = condition.inputs["guidance"][:, :3]
                return {"frame": np.clip(shown + 0.25, -1, 1) if valid[0] else np.full_like(shown, self.first)}

        conditions = np.zeros((4, 8, *SIZE), np.float32)
        points = [np.tile(np.arange(SIZE[0] * SIZE[1], dtype=np.int64).reshape(SIZE), (4, 1, 1))]
        parity = compare_engines(Guided(-0.5), Guided(0.0), conditions, 2, points=points)
        unguided = compare_engines(Guided(-0.5), Guided(0.0), conditions, 2)
        assert parity.drift[0] == unguided.drift[0] == 0.5
        assert min(parity.drift[1:]) > 0.4  # each went on from its own world
        assert unguided.drift[1:] == (0.0,) * 3

    def test_a_frame_that_is_not_a_number_is_refused(self, slim):
        right = OnnxRuntimeEngine(slim, 1)

        class Broken:
            name, precision, form = "broken", "f32", right.form

            def run(self, *inputs):
                return {"frame": np.full((1, 3, *SIZE), np.nan, np.float32)}

        parity = compare_engines(Broken(), right, CLIP, 2)
        assert np.isnan(parity.frame.greatest) and set(parity.outputs) == {"frame"}
        with pytest.raises(ParityError):
            parity.require(0)

    def test_a_clip_without_a_frame_to_make(self, slim):
        engine = OnnxRuntimeEngine(slim, 1)
        with pytest.raises(ShapeError, match="leave nothing to compare"):
            compare_engines(engine, engine, CLIP[:1], 2, np.zeros((3, *SIZE), np.float32))


def test_constants_of_the_graph_keep_their_names_where_both_formats_need_them(slim):
    model = load_graph(slim)
    made = mixed_graph(model, plan_mixed(model))
    names = [x.name for x in made.graph.initializer]
    assert len(set(names)) == len(names)
    assert TensorProto.FLOAT16 in {x.data_type for x in made.graph.initializer}
