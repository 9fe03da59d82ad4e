"""What TensorRT's parser lacks or takes wrongly, found in graphs that each hold one such node."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.graph_check import check_graph, parser_table, require_supported
from fastv2v.errors import BundleError, ConfigError

F32, F16, I8, U8, I64 = (getattr(TensorProto, x) for x in ("FLOAT", "FLOAT16", "INT8", "UINT8", "INT64"))


def graph(*nodes, inputs, outputs, constants=None, opset=18):
    """A model of named nodes; inputs and outputs as name: (type, shape)."""
    info = helper.make_tensor_value_info
    held = [numpy_helper.from_array(np.asarray(x), name) for name, x in (constants or {}).items()]
    made = helper.make_graph(
        list(nodes), "g", [info(n, *x) for n, x in inputs.items()], [info(n, *x) for n, x in outputs.items()], held
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def node(operator, inputs, outputs=("y",), **attributes):
    return helper.make_node(operator, list(inputs), list(outputs), name=f"the_{operator}", **attributes)


def reasons(model, version="10.0"):
    return [str(x) for x in check_graph(model, version)]


PICTURE = {"x": (F32, (1, 2, 4, 6))}
SAME = {"y": (F32, (1, 2, 4, 6))}
GRID = {**PICTURE, "grid": (F32, (1, 4, 6, 2))}


def grid_sample(mode="bilinear", opset=18, inputs=GRID):
    return graph(node("GridSample", ["x", "grid"], mode=mode), inputs=inputs, outputs=SAME, opset=opset)


class TestGridSample:
    def test_bilinear_at_opset_18_passes(self):
        assert reasons(grid_sample()) == []
        assert reasons(grid_sample(opset=19)) == []

    @pytest.mark.parametrize("opset", [20, 22])
    def test_its_new_name_is_sampled_as_nearest(self, opset):
        (reason,) = reasons(grid_sample("linear", opset), "11.1")
        assert reason.startswith("GridSample 'the_GridSample': operator set")
        assert "nearest; export at operator set 18" in reason

    def test_nearest_is_nearest_under_any_name(self):
        assert reasons(grid_sample("nearest", 20)) == []

    def test_picture_and_grid_are_of_one_type(self):
        (reason,) = reasons(grid_sample(inputs={"x": (F16, (1, 2, 4, 6)), "grid": (F32, (1, 4, 6, 2))}))
        assert "its inputs are f16, f32 and must be of one type" in reason

    def test_bf16_came_with_11_2(self):
        assert "bf16" not in parser_table("11.1").types["GridSample"]
        assert "bf16" in parser_table("11.2").types["GridSample"]


def resize(**attributes):
    scales = {"scales": np.array([1, 1, 2, 2], np.float32)}
    made = node("Resize", ["x", "", "scales"], **{"mode": "linear", **attributes})
    return graph(made, inputs=PICTURE, outputs={"y": (F32, (1, 2, 8, 12))}, constants=scales)


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({}, None),
        ({"mode": "cubic"}, "mode 'cubic' is not taken"),
        ({"antialias": 1}, "antialiasing is not taken"),
        ({"keep_aspect_ratio_policy": "not_larger"}, "keep_aspect_ratio_policy 'not_larger'"),
        ({"coordinate_transformation_mode": "tf_crop_and_resize"}, "'tf_crop_and_resize' is not taken"),
    ],
)
def test_resizing(attributes, reason):
    found = reasons(resize(**attributes))
    assert (found == []) if reason is None else (len(found) == 1 and reason in found[0])


def test_pads_that_are_computed():
    pads = {"x": PICTURE["x"], "pads": (I64, (8,))}
    made = graph(node("Pad", ["x", "pads"], mode="reflect"), inputs=pads, outputs={"y": (F32, (1, 2, None, None))})
    assert reasons(made) == ["Pad 'the_Pad': its input 1 ('pads') must be written in the graph, not computed"]


def test_bytes_inside_the_network():
    nodes = [node("Cast", ["x"], ["bytes"], to=U8), helper.make_node("Cast", ["bytes"], ["y"], name="back", to=F32)]
    found = reasons(graph(*nodes, inputs=PICTURE, outputs=SAME))
    assert found == ["bytes: bytes (u8) exist at the network's inputs and outputs only; cast them there"]
    entering = graph(node("Cast", ["x"], to=F32), inputs={"x": (U8, (1, 2, 4, 6))}, outputs=SAME)
    assert reasons(entering) == []


def test_whole_numbers_where_only_others_are_taken():
    made = graph(node("Clip", ["x"]), inputs={"x": (I64, (4,))}, outputs={"y": (I64, (4,))})
    assert reasons(made) == ["Clip 'the_Clip': takes bf16, f16, f32, not i64"]
    (reason,) = reasons(graph(node("Relu", ["x"]), inputs={"x": (11, (4,))}, outputs={"y": (11, (4,))}))[:1]
    assert reason == "x: f64 is cut down to f32; write f32"


@pytest.mark.parametrize(("operator", "outputs"), [("Det", {"y": (F32, (1,))}), ("CenterCropPad", SAME)])
def test_operators_that_the_parser_lacks(operator, outputs):
    given = {"x": (F32, (1, 4, 4))} if operator == "Det" else PICTURE
    names = ["x"] if operator == "Det" else ["x", "size"]
    made = graph(node(operator, names), inputs=given, outputs=outputs, constants={"size": np.array([1, 2, 4, 6])})
    assert reasons(made) == [f"{operator} 'the_{operator}': the parser has no such operator"]


def test_operators_of_others():
    made = graph(node("FusedConv", ["x"], domain="com.microsoft"), inputs=PICTURE, outputs=SAME)
    with pytest.raises(BundleError, match=r"cannot be inferred: .*No opset import for domain com\.microsoft"):
        check_graph(made)
    made.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert reasons(made) == ["FusedConv 'the_FusedConv': operators of com.microsoft are unknown to the parser"]


TENTH = np.float32(0.1)


def quantised(zero=0, kind=np.int8, scale=TENTH, opset=18, given=F32):
    zeros = np.full(np.shape(scale), zero, kind)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="q", axis=0),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], name="d", axis=0),
    ]
    side = {"x": (given, (1, 2, 4, 6))}
    return graph(*nodes, inputs=side, outputs={"y": side["x"]}, constants={"s": scale, "z": zeros}, opset=opset)


class TestQuantisation:
    def test_symmetric_int8_passes(self):
        assert reasons(quantised()) == []
        assert reasons(quantised(scale=np.float16(0.1), opset=19, given=F16)) == []

    def test_a_zero_point(self):
        found = reasons(quantised(zero=3))
        assert len(found) == 2 and all("zero point 3 is not 0: only symmetric" in x for x in found)

    def test_unsigned_bytes(self):
        found = reasons(quantised(kind=np.uint8))
        assert any("quantises to u8; the parser takes i8" in x for x in found)

    def test_half_scales_need_opset_19(self):
        found = reasons(quantised(scale=np.float16(0.1), opset=18, given=F16))
        assert any("scales in f16 need operator set 19; this is 18" in x for x in found)

    def test_a_scale_for_each_channel_of_an_activation(self):
        found = reasons(quantised(scale=np.full(1, 0.1, np.float32)))
        assert found == []
        found = reasons(quantised(scale=np.array([0.1, 0.2], np.float32)))
        assert any("activations take one scale, not 2" in x for x in found)

    @pytest.mark.parametrize(
        ("operator", "axis", "right"), [("Conv", 0, True), ("Conv", 1, False), ("ConvTranspose", 0, False)]
    )
    def test_a_scale_for_each_channel_of_a_weight(self, operator, axis, right):
        nodes = [
            helper.make_node("QuantizeLinear", ["w", "s", "z"], ["q"], name="q", axis=axis),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["v"], name="d", axis=axis),
            node(operator, ["x", "v"]),
        ]
        constants = {
            "w": np.ones((2, 2, 1, 1), np.float32), "s": np.array([0.1, 0.2], np.float32), "z": np.zeros(2, np.int8)
        }  # fmt: skip
        found = reasons(graph(*nodes, inputs=PICTURE, outputs=SAME, constants=constants))
        assert (found == []) if right else ("for Conv along axis 0 only" in found[0])

    def test_a_scale_that_is_not_positive(self):
        assert any("not positive" in x for x in reasons(quantised(scale=np.float32(0))))


def test_every_fault_is_named_at_once():
    nodes = [node("Resize", ["x", "", "s"], ["a"], mode="cubic"), node("Mystery", ["a"])]
    made = graph(*nodes, inputs=PICTURE, outputs=SAME, constants={"s": np.array([1, 1, 1, 1], np.float32)})
    with pytest.raises(BundleError, match=r"11\.1: Resize 'the_Resize': mode 'cubic'.*; Mystery 'the_Mystery'"):
        require_supported(made, "11.1")
    require_supported(grid_sample())


class TestVersions:
    def test_opsets_grow(self):
        model = graph(node("Relu", ["x"]), inputs=PICTURE, outputs=SAME, opset=22)
        assert reasons(model, "10.16.1.11") == reasons(model, "11.4") == []
        assert "operator set 22 is not among 9 to 20 of TensorRT 10.3" in reasons(model, "10.3")[0]

    @pytest.mark.parametrize("version", ["9.3", "ten", "10"])
    def test_unknown_versions(self, version):
        with pytest.raises(ConfigError, match=version):
            check_graph(grid_sample(), version)

    def test_files(self, tmp_path):
        onnx.save(grid_sample(), tmp_path / "g.onnx")
        assert check_graph(tmp_path / "g.onnx") == ()
        (tmp_path / "no.onnx").write_bytes(b"nothing of the kind")
        with pytest.raises(BundleError, match="no ONNX file"):
            check_graph(tmp_path / "no.onnx")
        with pytest.raises(BundleError, match=r"away\.onnx is missing"):
            check_graph(tmp_path / "away.onnx")
