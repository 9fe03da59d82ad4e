"""What steps on a device share: history, inputs and encoding beside their numpy twins. On the CPU device."""

import contextlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from export.device_step import (
    DeviceHistory,
    DeviceInputs,
    Recorder,
    TensorCondition,
    check_device_warp,
    encode_on_device,
    record_graph,
)
from export.history import ArrayHistory
from export.inputs import ConditionForm, StepCondition, encode_for
from fastv2v.data.conditions import ConditionSpec
from fastv2v.errors import BundleError, DataError, ShapeError

SIZE = (8, 12)
LABELS = ConditionSpec(class_names=("a", "b", "c"), use_instances=True, ignore_id=200)
MAPS = ConditionSpec(kind="maps", map_channels=2)


def _maps(spec, seed=0):
    rng = np.random.default_rng(seed)
    if spec.kind == "maps":
        return {"maps": rng.normal(size=(2, *SIZE)).astype(np.float32)}
    labels = rng.choice(np.array([0, 1, 2, 200], np.uint8), SIZE)
    return {"labels": labels, "instances": rng.integers(0, 3, SIZE, dtype=np.int32)}


@given(length=st.integers(1, 4), steps=st.integers(0, 9), seeded=st.booleans(), scale=st.sampled_from([1, 2]))
@settings(deadline=None, max_examples=40)
def test_the_history_holds_what_its_array_twin_holds(length, steps, seeded, scale):
    rng = np.random.default_rng(steps)
    first = rng.random((2, 4, 6), np.float32)
    size = (4 * scale, 6 * scale)
    seed = rng.random((3, *size), np.float32) if seeded else None
    ours = DeviceHistory((2, 4, 6), length, scale=scale)
    addresses = [x.data_ptr() for x in (ours.conditions, ours.frames, ours.valid)]
    for _ in range(2):  # the second time over what the first left behind
        theirs = ArrayHistory(first, length, seed, scale=scale)
        ours.start(torch.from_numpy(first), seed)
        for _ in range(steps):
            past, frame = rng.random((2, 4, 6), np.float32), rng.random((3, *size), np.float32)
            theirs.advance(past, frame)
            ours.advance(torch.from_numpy(past), torch.from_numpy(frame)[None])
        assert np.array_equal(ours.conditions, theirs.conditions)
        assert np.array_equal(ours.frames, theirs.frames)
        assert np.array_equal(ours.valid, theirs.valid)
    assert addresses == [x.data_ptr() for x in (ours.conditions, ours.frames, ours.valid)]


def test_a_history_refuses_other_shapes():
    history = DeviceHistory((2, 4, 6), 2)
    with pytest.raises(ShapeError, match="first condition"):
        history.start(torch.zeros(2, 4, 5))
    with pytest.raises(ShapeError, match="seed frame"):
        history.start(torch.zeros(2, 4, 6), np.zeros((3, 4, 5), np.float32))


FORMS = [
    (LABELS, ConditionForm()),
    (LABELS, ConditionForm(scale=4)),
    (LABELS, ConditionForm(scale=4, labels=True, edges=True)),
    (MAPS, ConditionForm()),
    (MAPS, ConditionForm(scale=2)),
]


@pytest.mark.parametrize(("spec", "form"), FORMS)
def test_encoding_on_the_device_is_encoding_on_the_host(spec, form):
    maps = _maps(spec)
    expected = encode_for(form, spec, **maps)
    made = encode_on_device(form, spec, **{name: torch.from_numpy(x) for name, x in maps.items()})
    assert made.inputs.keys() == expected.inputs.keys()
    for name, array in expected.inputs.items():
        assert made.inputs[name].dtype == torch.from_numpy(array).dtype
        np.testing.assert_allclose(made.inputs[name], array, atol=1e-6)
    np.testing.assert_allclose(made.past, expected.past, atol=1e-6)


def test_encoding_refuses_what_it_cannot_encode():
    with pytest.raises(DataError, match="label and instance maps"):
        encode_on_device(ConditionForm(), LABELS, torch.zeros(SIZE, dtype=torch.uint8))
    with pytest.raises(ShapeError, match="does not divide by 5"):
        encode_on_device(ConditionForm(scale=5), MAPS, maps=torch.zeros(2, *SIZE))


@pytest.mark.parametrize(("spec", "form"), FORMS)
@pytest.mark.parametrize("on_device", [False, True])
def test_inputs_keep_their_place(spec, form, on_device):
    def condition(seed):
        maps = _maps(spec, seed)
        if on_device:
            return encode_on_device(form, spec, **{name: torch.from_numpy(x) for name, x in maps.items()})
        return encode_for(form, spec, **maps)

    inputs = DeviceInputs(condition(0))
    addresses = {name: x.data_ptr() for name, x in inputs.tensors.items()}
    for seed in (1, 2):
        inputs.load(condition(seed))
        expected = encode_for(form, spec, **_maps(spec, seed))
        for name, array in expected.inputs.items():
            np.testing.assert_allclose(inputs.tensors[name], array, atol=1e-6)
        np.testing.assert_allclose(inputs.past, expected.past, atol=1e-6)
    assert addresses == {name: x.data_ptr() for name, x in inputs.tensors.items()}


def test_inputs_may_be_narrower_but_ids_are_not():
    form = ConditionForm(scale=4, labels=True, edges=True)
    example = encode_for(form, LABELS, **_maps(LABELS))
    inputs = DeviceInputs(example, dtype=torch.float16)
    kinds = {name: x.dtype for name, x in inputs.tensors.items()}
    assert kinds == {"labels": torch.int32, "coarse": torch.float16, "edges": torch.float16}
    assert inputs.past.data_ptr() == inputs.tensors["coarse"].data_ptr()


def test_inputs_refuse_another_condition():
    inputs = DeviceInputs(encode_for(ConditionForm(), MAPS, **_maps(MAPS)))
    with pytest.raises(ShapeError, match="takes condition and was given labels"):
        inputs.load(StepCondition({"labels": np.zeros(SIZE)}, np.zeros(SIZE, np.float32)))
    with pytest.raises(ShapeError, match=r"condition has shape \(1, 2, 4, 4\)"):
        inputs.load(TensorCondition({"condition": torch.zeros(1, 2, 4, 4)}, torch.zeros(2, 4, 4)))


def test_half_pixel_warps_are_judged():
    def bilinear(image, grid):
        return F.grid_sample(image, grid, padding_mode="border", align_corners=True)

    check_device_warp(bilinear, "torch f32", "cpu")
    check_device_warp(bilinear, "torch bf16", "cpu", torch.bfloat16)
    with pytest.raises(BundleError, match="torch f32 warps wrongly"):
        check_device_warp(lambda x, g: F.grid_sample(x, g, "nearest", "border", True), "torch f32", "cpu")


def test_work_is_recorded_on_the_stream_that_was_given_and_binds_this_thread_only(monkeypatch):
    asked, current = [], ["caller"]

    @contextlib.contextmanager
    def stream(wanted):
        before, current[:] = current[0], [wanted]
        try:
            yield
        finally:
            current[:] = [before]

    @contextlib.contextmanager
    def graph(recorded, **options):
        asked.append(options)
        yield  # torch leaves the stream as it is where the end of the recording fails
        raise RuntimeError("cudaErrorStreamCaptureInvalidated")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    seen = []
    with pytest.raises(RuntimeError, match="Invalidated"):
        record_graph(lambda: seen.append(current[0]), "side", (0, 7))
    assert asked == [{"pool": (0, 7), "stream": "side", "capture_error_mode": "thread_local"}]
    assert seen == ["side"] and current == ["caller"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU")
class TestRecorderOnAGpu:
    def test_graphs_that_share_memory_leave_each_other_alone(self):
        device = torch.device("cuda")
        record = Recorder(device)
        source, doubled, summed = torch.ones(1 << 16, device=device), *torch.zeros(2, 1 << 16, device=device)

        def double():
            doubled.copy_((source * 3).sub(source))

        def add():
            summed.copy_((doubled + source).mul(2))

        one, other = record(double), record(add)
        for value in (1.0, 5.0, -2.0):
            source.fill_(value)
            one()
            other()
            one()
            assert (doubled == 2 * value).all() and (summed == 6 * value).all()

    def test_what_cannot_be_recorded_leaves_the_gpu_usable(self):
        device = torch.device("cuda")
        here = torch.cuda.current_stream(device)
        source = torch.ones(4, device=device)
        with pytest.raises(RuntimeError):
            Recorder(device)(lambda: source.sum().item())  # asks the GPU for a value
        assert torch.cuda.current_stream(device) == here
        assert Recorder(device)(lambda: source.add_(1)) is not None
        assert source.sum().item() > 4
