"""Graphs of slim students that begin with label maps and averages: the same frames as from channels of full size."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bundle import FakeEngine

from export.choose import roll_out
from export.engines import OnnxRuntimeEngine
from export.inputs import PLAIN, ConditionForm, average, encode_for, from_encoded
from export.onnx_graph import compare_rollout, export_step, is_compact
from fastv2v.data.conditions import ConditionSpec, encode_condition_numpy
from fastv2v.errors import ConfigError, DataError, ShapeError
from fastv2v.nn.slim import SlimConfig, SlimGenerator

CLASSES = ("road", "car", "sky")
SMALL = SlimConfig(widths=(8, 8), depths=(1, 1), up_depths=(1,), refine_width=4, history_length=2)


def spec(*, instances: bool = True, ignore: int | None = 255) -> ConditionSpec:
    return ConditionSpec(class_names=CLASSES, use_instances=instances, ignore_id=ignore)


def drawn(seed: int, size=(16, 24)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, size).astype(np.uint8)
    labels[rng.random(size) < 0.1] = 255
    return labels, rng.integers(0, 5, size)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.sampled_from([2, 4]), instances=st.booleans())
def test_averages_and_codes_are_those_of_the_channels(seed, scale, instances):
    labels, ids = drawn(seed)
    encoded = encode_condition_numpy(spec(instances=instances), labels, ids)
    form = ConditionForm(scale=scale, labels=True, edges=instances)
    made = encode_for(form, spec(instances=instances), labels, ids)
    expected = F.avg_pool2d(torch.from_numpy(encoded)[None], scale)[0].numpy()
    assert np.allclose(made.past, expected, atol=1e-7)
    assert np.allclose(average(encoded, scale), expected, atol=1e-7)
    assert np.array_equal(made.inputs["labels"][0], np.where(labels == 255, 3, labels))
    from_channels = from_encoded(form, encoded)
    assert set(made.inputs) == set(from_channels.inputs) == {"labels", "coarse"} | ({"edges"} if instances else set())
    for name, values in made.inputs.items():
        assert np.array_equal(values, from_channels.inputs[name]) and values.dtype == from_channels.inputs[name].dtype


def test_what_the_history_keeps_is_written_into_its_place():
    labels, ids = drawn(1)
    place = np.full((4, 4, 6), np.nan, np.float32)
    made = encode_for(ConditionForm(scale=4, labels=True, edges=True), spec(), labels, ids, out=place)
    assert made.past is place and np.isfinite(place).all()
    whole = np.empty((4, 16, 24), np.float32)
    assert encode_for(PLAIN, spec(), labels, ids, out=whole).past is whole


def test_bytes_have_room_for_256_classes():
    every = ConditionSpec(class_names=tuple(map(str, range(256))))
    labels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    made = encode_for(ConditionForm(scale=4, labels=True), every, labels)
    assert np.array_equal(made.inputs["labels"][0], labels) and made.past.sum() == 16


def test_conditions_of_a_rollout_are_converted_before_its_first_step(monkeypatch):
    converted = []
    monkeypatch.setattr("export.choose.from_encoded", lambda form, x: converted.append(x) or from_encoded(form, x))
    conditions = np.zeros((5, 4, 16, 24), np.float32)
    steps = roll_out(FakeEngine(), conditions, 2)
    assert len(converted) == 5  # so that none of the steps, which are timed, bears it
    assert len(list(steps)) == 5


def test_bad_conditions_are_refused():
    form, (labels, ids) = ConditionForm(scale=4, labels=True, edges=True), drawn(2)
    with pytest.raises(DataError, match=r"frame 3: an instance map is needed"):
        encode_for(form, spec(), labels, where="frame 3")
    with pytest.raises(DataError, match=r"a label map is needed"):
        encode_for(form, spec())
    with pytest.raises(DataError, match=r"label id 7 is out of range"):
        encode_for(form, spec(), np.full((16, 24), 7), ids)
    with pytest.raises(ShapeError, match=r"instance map \(8, 8\) and label map \(16, 24\)"):
        encode_for(form, spec(), labels, ids[:8, :8])
    with pytest.raises(ShapeError, match=r"18x24 does not divide by 4"):
        encode_for(form, spec(), np.zeros((18, 24), np.uint8), np.zeros((18, 24), int))


class TestGraph:
    @pytest.fixture(scope="class", params=[True, False], ids=["instances", "labels only"])
    def exported(self, request, tmp_path_factory):
        torch.manual_seed(0)
        condition = spec(instances=request.param)
        model = SlimGenerator(SMALL, condition.channels, foreground_channels=(1,))
        with torch.no_grad():
            model(torch.rand(2, condition.channels, 16, 24), _history(condition.channels))  # statistics of its own
            model.embed.bias.normal_()
        path = tmp_path_factory.mktemp("graph") / "step.onnx"
        report = export_step(model.eval(), path, size=(16, 24), spec=condition, outputs=("frame",))
        return model, condition, path, report

    def test_it_takes_labels_and_gives_the_frame_alone(self, exported):
        _, condition, path, report = exported
        edges = {"edges": (1, 1, 16, 24)} if condition.use_instances else {}
        assert OnnxRuntimeEngine(path, 1).shapes == {
            "labels": (1, 16, 24),
            "coarse": (1, condition.channels, 4, 6),
            "history_conditions": (1, 2, condition.channels, 4, 6),
            "history_frames": (1, 2, 3, 16, 24),
            "valid": (1,),
            **edges,
        }
        assert report.outputs == ("frame",)

    def test_a_rollout_equals_that_of_the_module(self, exported):
        model, condition, path, _ = exported
        conditions = torch.stack(
            [torch.from_numpy(encode_condition_numpy(condition, *drawn(seed))) for seed in range(6)]
        )
        seeds = torch.rand(1, 3, 16, 24) * 2 - 1
        for seed_frames in (None, seeds):
            assert compare_rollout(model, OnnxRuntimeEngine(path, 1), conditions, seed_frames) < 1e-4

    def test_it_gives_what_the_plain_graph_gives(self, exported, tmp_path):
        model, condition, path, _ = exported
        export_step(model, plain := tmp_path / "plain.onnx", size=(16, 24))
        engines = [OnnxRuntimeEngine(x, 1) for x in (path, plain)]
        assert engines[1].form == PLAIN
        encoded = encode_condition_numpy(condition, *drawn(9))[None]
        past = np.repeat(encoded[:, None], 2, axis=1)
        frames = np.random.default_rng(0).uniform(-1, 1, (1, 2, 3, 16, 24)).astype(np.float32)
        ours, theirs = (engine.run(encoded, past, frames, np.ones(1, np.float32)) for engine in engines)
        assert np.allclose(ours["frame"], theirs["frame"], atol=1e-4)
        assert set(theirs) == {"frame", "hallucinated", "flow", "occlusion"}

    def test_an_output_that_is_not_there_is_refused(self, tmp_path):
        model = SlimGenerator(SlimConfig(widths=(8,), depths=(1,), up_depths=(), use_flow=False), 3)
        with pytest.raises(ConfigError, match=r"SlimGenerator has no output 'flow'; it has frame"):
            export_step(model, tmp_path / "step.onnx", size=(16, 24), outputs=("flow",))


def test_only_slim_generators_of_label_maps_can_be_compact():
    whole = SlimGenerator(SlimConfig(widths=(8,), depths=(1,), up_depths=(), input_scale=1), 4)
    slim = SlimGenerator(SMALL, 4)
    assert is_compact(slim, spec()) and not is_compact(whole, spec())
    assert not is_compact(slim, ConditionSpec(kind="maps", map_channels=4))


def _history(channels: int):
    from fastv2v.contracts import History

    return History(torch.zeros(2, 2, channels, 16, 24), torch.rand(2, 2, 3, 16, 24), torch.ones(2))
