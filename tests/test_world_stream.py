"""Guided students as graphs, and streams that paint their world beside them."""

import shutil
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from fake_tensorrt import FakeRunner, World, make
from tiny_bundle import FakeEngine, manifest

from export.bundle import load_manifest, write_bundle
from export.choose import Probe, roll_out
from export.device_stream import DeviceStream
from export.engines import OnnxRuntimeEngine
from export.history import ArrayHistory
from export.inputs import PLAIN, ConditionForm, encode_for, form_of, from_encoded, with_guidance
from export.onnx_graph import compare_rollout, export_step, write_self_test
from export.quantize import calibration_feeds
from export.runtime import ConditionMap, Stream
from export.sources import folder_conditions
from export.tensorrt_builder import ParityClip, TensorRTConfig, build_engine
from export.tensorrt_engine import TensorRTStep
from export.torch_engine import TorchEngine, TorchStep
from fastv2v.data.conditions import ConditionSpec, encode_condition_numpy
from fastv2v.data.unprojection import MAX_POINTS, write_unprojection
from fastv2v.errors import BundleError, ConfigError, DataError, ShapeError
from fastv2v.nn.slim import SlimConfig, SlimGenerator
from fastv2v.render import render_clip

SIZE = (16, 24)
SPEC = ConditionSpec(class_names=("road", "car", "sky"), use_instances=True, guidance_levels=2)
STUDENTS = {
    "compact": SlimConfig(widths=(8, 8), depths=(1, 1), up_depths=(1,), refine_width=4),
    "plain": SlimConfig(widths=(8, 8), depths=(1, 1), up_depths=(1,), input_scale=1),
}


def student(kind: str) -> SlimGenerator:
    torch.manual_seed(3)
    model = SlimGenerator(STUDENTS[kind], SPEC.channels)
    with torch.no_grad():
        model.embed.weight[:, -8:] *= 100  # guidance of a fresh network hardly shows
    return model.eval()


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 3, SIZE).astype(np.uint8), rng.integers(0, 5, SIZE)


def point_ids(t: int) -> list[np.ndarray]:
    """A camera that moves two columns a frame; the top rows show no point."""
    ids = np.arange(16)[:, None] * 100 + np.arange(24)[None] + 2 * t
    ids[:3] = -1
    return [ids.astype(np.int32), ids[::2, ::2].astype(np.int32)]


def video(num_frames: int) -> tuple[list[ConditionMap], torch.Tensor, tuple[torch.Tensor, ...]]:
    """Conditions for a stream, and the same encoded (T, C, H, W) with point ids (T, h, w) of each level."""
    maps = [
        ConditionMap(labels=a, instances=b, points=point_ids(t))
        for t, (a, b) in enumerate(map(drawn, range(num_frames)))
    ]
    encoded = np.stack([encode_condition_numpy(SPEC, m.labels, m.instances) for m in maps])
    levels = tuple(torch.from_numpy(np.stack(level)) for level in zip(*(m.points for m in maps), strict=True))
    return maps, torch.from_numpy(encoded), levels


@pytest.fixture(scope="module", params=list(STUDENTS))
def exported(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    model = student(request.param)
    export_step(model, folder / "step.onnx", size=SIZE, spec=SPEC, outputs=("frame",))
    write_self_test(folder / "selftest.onnx")
    record = manifest(gap=2, condition=SPEC, size=SIZE, history_length=model.history_length)
    write_bundle(folder / "guided.v2v", record, {n: folder / n for n in ("step.onnx", "selftest.onnx")})
    return model, folder / "guided.v2v"


def engine_of(bundle) -> OnnxRuntimeEngine:
    return OnnxRuntimeEngine(bundle / "step.onnx", 1)


def test_the_graph_takes_guidance_as_the_module_does(exported):
    model, bundle = exported
    _, encoded, points = video(7)
    engine = engine_of(bundle)
    assert compare_rollout(model, engine, encoded, points=points) < 1e-3
    unguided = np.stack(list(roll_out(engine, encoded.numpy(), 2)))
    guided = np.stack(list(roll_out(engine, encoded.numpy(), 2, points=[x.numpy() for x in points])))
    assert np.array_equal(unguided[0], guided[0]) and np.abs(unguided[1:] - guided[1:]).mean() > 0.01
    module = render_clip(model, encoded[None], None, tuple(level[None] for level in points))[0].numpy()
    assert np.abs(guided - module).max() < 1e-3
    in_torch = TorchEngine(model, SIZE, SPEC, device=torch.device("cpu"))
    again = roll_out(in_torch, encoded.numpy(), 2, points=[x.numpy() for x in points])
    assert np.abs(np.stack(list(again)) - module).max() < 1e-3


@pytest.mark.parametrize("seeded", [False, True])
def test_the_stream_paints_by_its_keyframes(exported, seeded):
    model, bundle = exported
    maps, encoded, points = video(9)
    seed = np.random.default_rng(1).integers(0, 256, (*SIZE, 3), dtype=np.uint8) if seeded else None
    given = None if seed is None else (torch.from_numpy(seed).permute(2, 0, 1).float() / 127.5 - 1)[None, None]
    keyframes = tuple(level[None, ::2] for level in points)
    wanted = ((render_clip(model, encoded[None, ::2], given, keyframes)[0] + 1) * 127.5).permute(0, 2, 3, 1).numpy()
    with Stream(engine_of(bundle), load_manifest(bundle), seed_frame=seed) as stream:
        made = [item.frame for item in stream.frames(maps) if item.is_keyframe]
        assert all(np.abs(a - b).max() < 0.7 for a, b in zip(made, wanted, strict=True))
        stream.restart(seed)
        again = [item.frame for item in stream.frames(maps) if item.is_keyframe]  # nothing is left of the first video
        assert all(np.array_equal(a, b) for a, b in zip(made, again, strict=True))
        stream.restart(seed)
        without = [x.frame for x in stream.frames([replace(m, points=None) for m in maps]) if x.is_keyframe]
        assert any(np.abs(a.astype(int) - b).max() > 3 for a, b in zip(made, without, strict=True))
        stream.time_step(maps[0])()


def test_calibration_and_engine_choice_see_guidance(exported):
    _, bundle = exported
    _, encoded, points = video(4)
    probe = Probe(encoded.numpy(), None, [x.numpy() for x in points])
    feeds = calibration_feeds(engine_of(bundle), probe, 2)
    name = "guidance" if "guidance" in feeds[0] else "condition"
    assert not feeds[0][name][:, -8:].any() and feeds[3][name][:, -5].mean() > 0.7  # mask of the full size
    assert not any(feed["history_conditions"][:, :, -8:].any() for feed in feeds)


def test_guidance_enters_beside_labels_and_in_the_averages():
    labels, instances = drawn(0)
    form = ConditionForm(scale=4, labels=True, edges=True, guidance=8)
    base = encode_for(form, SPEC, labels, instances)
    guidance = np.random.default_rng(0).normal(size=(8, *SIZE)).astype(np.float32)
    made = with_guidance(base, guidance)
    assert np.array_equal(made.inputs["guidance"][0], guidance)
    assert np.allclose(made.inputs["coarse"][0, -8:], guidance.reshape(8, 4, 4, 6, 4).mean((2, 4)), atol=1e-6)
    assert not made.past[-8:].any() and not base.inputs["guidance"].any()
    encoded = encode_condition_numpy(SPEC, labels, instances)
    encoded[-8:] = guidance
    whole = from_encoded(form, encoded)
    assert all(np.array_equal(made.inputs[name], whole.inputs[name]) for name in whole.inputs)
    plain = with_guidance(encode_for(PLAIN, SPEC, labels, instances), guidance)
    assert np.array_equal(plain.inputs["condition"][0], encoded) and not plain.past[-8:].any()
    assert form_of({"labels": (1, *SIZE), "guidance": (1, 8, *SIZE)}).guidance == 8
    with pytest.raises(ShapeError, match="takes no guidance"):
        with_guidance(
            encode_for(replace(form, guidance=0), replace(SPEC, guidance_levels=0), labels, instances), guidance
        )


def test_the_history_renders_before_it_paints():
    labels, instances = drawn(0)
    first = encode_for(PLAIN, SPEC, labels, instances)
    history = ArrayHistory(first.past, 2)
    assert history.guided(first, point_ids(0)) is first  # nothing is painted yet
    for level, t in ((0.5, 0), (-0.5, 1)):
        history.advance(first.past, np.full((3, *SIZE), level, np.float32), point_ids(t))
    shown = history.guided(first, point_ids(1)).inputs["condition"][0, -8:]
    assert (shown[0, 3:, :-2] == 0.5).all() and (shown[0, 3:, -2:] == -0.5).all()  # the first colour wins
    assert not shown[:4, :3].any() and (shown[3, 3:] == 1).all()
    assert np.array_equal(shown[4:, ::2, ::2][0, 2:, :-1], np.full((6, 11), 0.5))
    seeded = ArrayHistory(first.past, 2, np.ones((3, *SIZE), np.float32), points=point_ids(0))
    assert seeded.world.seen.sum() == 13 * 24 and history.guided(first, None) is first


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (point_ids(0)[:1], "point ids of 1 levels, and this bundle has guidance of 2"),
        ([point_ids(0)[0], point_ids(0)[0]], "map of point ids of level 1 has shape"),
        ([x.astype(float) for x in point_ids(0)], "level 0 has values of type float64"),
        ([np.full(x.shape, MAX_POINTS) for x in point_ids(0)], f"point id {MAX_POINTS} is too large"),
    ],
)
def test_bad_point_ids_are_refused(points, message):
    labels, instances = drawn(0)
    with Stream(FakeEngine(), manifest(condition=SPEC)) as stream, pytest.raises(DataError, match=message):
        stream.push(ConditionMap(labels=labels, instances=instances, points=points))


def test_folders_give_point_ids(tmp_path, caplog):
    spec = replace(SPEC, use_instances=False)
    for t in range(3):
        (tmp_path / "labels").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "labels" / f"{t:03}.png"), drawn(t)[0])
        if t < 2:
            (tmp_path / "ids").mkdir(exist_ok=True)
            write_unprojection(tmp_path / "ids" / f"{t:03}.npz", point_ids(t))
    taken = list(folder_conditions(tmp_path / "labels", manifest(condition=spec), unprojections=tmp_path / "ids"))
    for t, one in enumerate(taken[:2]):
        assert all(np.array_equal(a, b) for a, b in zip(one.points, point_ids(t), strict=True))
    assert taken[2].points is None and "1 of 3 frames have no unprojection (002)" in caplog.text
    half = manifest(condition=spec, size=(8, 12))
    (first, *_) = folder_conditions(tmp_path / "labels", half, unprojections=tmp_path / "ids")
    assert np.array_equal(first.points[0], point_ids(0)[1])  # the stored level of that size
    assert all(one.points is None for one in folder_conditions(tmp_path / "labels", manifest(condition=spec)))
    assert "without --unprojections DIR no frame is" in caplog.text
    with pytest.raises(ConfigError, match="has no guidance"):
        list(folder_conditions(tmp_path / "labels", manifest(), unprojections=tmp_path / "ids"))
    with pytest.raises(DataError, match="holds no unprojection of 000"):
        list(folder_conditions(tmp_path / "labels", manifest(condition=spec), unprojections=tmp_path))


def test_streams_on_a_device_say_that_they_do_not_paint(exported):
    model, bundle = exported
    step = TorchStep(model, SIZE, SPEC, device=torch.device("cpu"))
    with pytest.raises(BundleError, match="painted, which is kept on the host; stream it without --device"):
        DeviceStream(step, load_manifest(bundle))


def test_a_tensorrt_step_keeps_conditions_without_guidance(exported, tmp_path, monkeypatch):
    _, bundle = exported
    folder = shutil.copytree(bundle, tmp_path / bundle.name)
    world = World()
    monkeypatch.setitem(sys.modules, "tensorrt", make(11, world))
    _, encoded, points = video(5)
    clip = ParityClip(encoded.numpy(), "video", tuple(level.numpy() for level in points))
    record = build_engine(folder, clip, TensorRTConfig(precision="f32"), runner=FakeRunner(world))
    assert record.parity_psnr_db is None or record.parity_psnr_db > 100, "the fake computes in float32"
    step = TensorRTStep(folder, runner=FakeRunner(world))
    given = [from_encoded(step.form, x) for x in encoded.numpy()]
    beside = ArrayHistory(given[0].past, 2, scale=step.form.scale)
    step.start(given[0])
    frames = []
    for t, condition in enumerate(given):
        ids = [level[t].numpy() for level in points]
        guided = beside.guided(condition, ids)
        frames.append(step.step(guided)[0].numpy().copy())
        beside.advance(guided.past, frames[-1], ids)
    wanted = roll_out(engine_of(folder), encoded.numpy(), 2, points=[x.numpy() for x in points])
    np.testing.assert_allclose(frames, list(wanted), atol=1e-5)
