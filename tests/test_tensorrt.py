"""The TensorRT builder and engine against a stand-in with the real module's names and manners, in both editions."""

import contextlib
import functools
import json
import logging
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from fake_tensorrt import VERSIONS, FakeRunner, World, make
from onnx import TensorProto, helper
from tiny_step import TinyStep, random_conditions

from export.build import BundleDetails, build_bundle
from export.bundle import STEP_GRAPH, Cost, load_manifest, record_engine, write_bundle
from export.choose import Probe, choose_engine, roll_out
from export.device_stream import DeviceStream
from export.engines import REFERENCE, Candidate, open_engine
from export.inputs import from_encoded
from export.prepare import prepare_for_tensorrt
from export.quantize import quantize_step
from export.runtime import open_bundle
from export.tensorrt_api import CudaRunner, Log, describe_site, require_tensorrt
from export.tensorrt_builder import (
    ParityClip,
    Range,
    TensorRTConfig,
    _Watch,
    build_engine,
    build_plan,
    check_warp_modes,
    moving_blocks,
    moving_points,
)
from export.tensorrt_engine import LoadedPlan, PlanEngine, TensorRTEngine, TensorRTStep
from export.tensorrt_store import (
    RECORD,
    STEP_PLAN,
    TIMING_CACHE,
    EngineRecord,
    find_engine,
    list_engines,
    misfit,
    plan_version,
    version_numbers,
)
from fastv2v.cli import main
from fastv2v.commands.export_engine import clip_for, tensorrt_config
from fastv2v.data.conditions import ConditionSpec
from fastv2v.errors import (
    BuildCancelledError,
    BundleError,
    ConfigError,
    MachineError,
    MissingExtraError,
    ShapeError,
)
from fastv2v.nn.slim import SlimConfig, SlimGenerator
from fastv2v.render import rollout, start_history

SIZE = (16, 24)
SPEC = ConditionSpec(class_names=("road", "car", "tree", "sky"))
F32 = TensorRTConfig(precision="f32")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A bundle of a tiny generator, without engines."""
    folder = tmp_path_factory.mktemp("tensorrt") / "tiny.v2v"
    build_bundle(TinyStep(), folder, details(SPEC), random_conditions(4, SIZE), measure=False, int8=False)
    return folder


def details(spec: ConditionSpec) -> BundleDetails:
    return BundleDetails(
        task="street",
        condition=spec,
        size=SIZE,
        keyframes={"policy": "uniform", "gap": 4},
        interpolation={"method": "blend"},
        fps=17.0,
        cost=Cost(macs_per_keyframe=1, macs_per_frame=1, output_position_macs_per_keyframe=1, parameters=1),
    )


@pytest.fixture
def bundle(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / exported.name)


@pytest.fixture(params=[10, 11])
def world(request, monkeypatch):
    """A world with one edition of TensorRT in it."""
    return enter(monkeypatch, request.param)


@pytest.fixture
def world11(monkeypatch):
    """The newer edition only, where the older would show nothing more."""
    return enter(monkeypatch, 11)


def enter(monkeypatch, edition: int) -> World:
    made = World()
    monkeypatch.setitem(sys.modules, "tensorrt", make(edition, made))
    return made


def torch_frames(conditions: np.ndarray) -> np.ndarray:
    """What the module draws from nothing, (T, 3, H, W)."""
    given = torch.from_numpy(conditions)[None]
    with torch.no_grad():
        history = start_history(given[:, :0], None, 2, first_condition=given[:, 0])
        return torch.cat([made.frame for made in rollout(TinyStep().eval(), given, history)]).numpy()


CLIP = ParityClip(random_conditions(5, SIZE, seed=3).numpy(), "test blocks")


def build(bundle, world, config=F32, **options) -> EngineRecord:
    options.setdefault("runner", FakeRunner(world))
    return build_engine(bundle, CLIP, config, **options)


def grid_sample_model(mode: str, opset: int) -> onnx.ModelProto:
    node = helper.make_node("GridSample", ["x", "g"], ["y"], name="warp", mode=mode, align_corners=1)
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", (1, 1, 4, 4)), ("g", (1, 4, 4, 2)), ("y", (1, 1, 4, 4)))
    ]
    graph = helper.make_graph([node], "g", values[:2], values[2:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


class TestBuild:
    def test_keeps_an_engine_that_equals_onnx_runtime(self, bundle, world):
        before = load_manifest(bundle).files
        record = build(bundle, world)
        assert record.parity_psnr_db is None and record.max_abs_diff == 0
        assert (record.frames, record.clip, record.warp) == (5, "test blocks", "grid_sample")
        files = load_manifest(bundle).files
        added = {inside.rpartition("/")[2] for inside in files.keys() - before.keys()}
        assert added == {"step.plan", "selftest.plan", "timing.cache", "engine.json"}
        assert before.items() <= files.items()

    def test_asks_for_what_the_config_says(self, bundle, world):
        build(bundle, world)
        config = TensorRTConfig(
            precision="f32",
            hardware="ampere-plus",
            version_compatible=True,
            tf32=True,
            workspace_mb=2,
            optimization_level=1,
        )
        build(bundle, world, config)
        plain, rich = world.builds[1], world.builds[3]
        assert plain["flags"] == set() and plain["hardware"] == "NONE" and plain["pools"] == {}
        assert rich["flags"] == {"TF32", "VERSION_COMPATIBLE"} and rich["hardware"] == "AMPERE_PLUS"
        assert rich["pools"] == {"WORKSPACE": 2 << 20} and rich["level"] == 1

    def test_the_timing_cache_of_the_last_build_is_used_again(self, bundle, world):
        build(bundle, world)
        build(bundle, world)
        assert [b["cached"] for b in world.builds] == [False, True, True, True]

    def test_a_timing_cache_of_another_gpu_is_left_aside(self, world):
        graph = grid_sample_model("bilinear", 16).SerializeToString()
        built = build_plan(graph, F32, timing_cache=b"of another GPU")
        assert world.builds[0]["cached"] is False and b"of another" not in built.timing_cache

    def test_building_again_replaces_the_engine_and_keeps_another_precision(self, bundle, world):
        f16 = build(bundle, world, TensorRTConfig(precision="f16"))
        f32 = build(bundle, world)
        build(bundle, world)
        found = list_engines(bundle, load_manifest(bundle))
        assert set(found.whole) == {f"engines/{r.key}" for r in (f16, f32)} and not found.damaged

    def test_progress_is_told(self, bundle, world):
        told = []
        build(bundle, world, progress=lambda phase, done, steps: told.append((phase, done, steps)) or True)
        assert told == [("Building Engine", 1, 2), ("Building Engine", 2, 2)]

    def test_a_cancelled_build_leaves_the_bundle_alone(self, bundle, world):
        before = load_manifest(bundle)
        with pytest.raises(BuildCancelledError, match="cancelled"):
            build(bundle, world, progress=lambda *_: False)
        assert load_manifest(bundle) == before

    @pytest.mark.parametrize("place", ["phase_start", "phase_finish"])
    def test_ctrl_c_is_not_lost_wherever_it_is_heard(self, world11, place):
        def stopped(*_):
            raise KeyboardInterrupt

        watch = _Watch(lambda *_: True)
        watch.hear(stopped)
        getattr(watch.monitor, place)(*{"phase_start": ("a", None, 1), "phase_finish": ("a",)}[place])
        assert not watch.monitor.step_complete("a", 0)
        with pytest.raises(KeyboardInterrupt):
            watch.raise_if_stopped()

    def test_what_no_warp_would_mend_is_not_tried_with_another(self, bundle, world):
        world.faults["context"] = True
        with pytest.raises(MachineError, match=r"there is no room to run selftest\.plan"):
            build(bundle, world)
        assert len(world.builds) == 1

    def test_a_reason_is_of_the_call_that_failed(self, world11):
        said = Log()
        said.listener.log(sys.modules["tensorrt"].ILogger.ERROR, "a tactic failed and another was taken")
        said.begin()
        assert said.reason() == "TensorRT gave no reason"
        said.listener.log(sys.modules["tensorrt"].ILogger.ERROR, "no\n  kernel")
        assert said.reason() == "no kernel"

    @pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
    def test_what_the_callback_raises_arrives_when_tensorrt_has_let_go(self, bundle, world11, error):
        def tell(*_):
            raise error

        with pytest.raises(error):
            build(bundle, world11, progress=tell)

    def test_a_graph_tensorrt_cannot_read_is_refused_with_node_and_reason(self, bundle, world):
        world.faults["parse"] = "ConvTranspose"
        with pytest.raises(BundleError, match=r"ConvTranspose '\S+' \(node \d+\): no importer registered"):
            build(bundle, world)

    def test_a_failed_build_gives_what_tensorrt_said(self, bundle, world):
        world.faults["build"] = True
        with pytest.raises(BundleError, match=r"built no engine in f32 on Test GPU 1.*Could not find any impl"):
            build(bundle, world)

    def test_a_clip_of_another_size_is_refused(self, bundle, world11):
        with pytest.raises(ShapeError, match=r"expected \(T, 4, 16, 24\)"):
            build_engine(bundle, ParityClip(np.zeros((3, 4, 8, 8), np.float32), "x"), F32, runner=FakeRunner(world11))

    def test_bf16_needs_a_gpu_that_has_it(self, bundle, world11):
        with pytest.raises(ConfigError, match=r"bf16 needs compute capability 8\.0"):
            build(bundle, world11, TensorRTConfig(precision="bf16"), runner=FakeRunner(world11, (7, 5)))

    def test_fp8_needs_one_too(self, bundle, world11):
        with pytest.raises(
            ConfigError, match=r"fp8 needs compute capability 8\.9.*capability 8\.6.*choose precision f16"
        ):
            build(bundle, world11, TensorRTConfig(precision="fp8"))

    def test_hardware_levels_an_older_version_lacks_are_refused(self, bundle, world11, monkeypatch):
        monkeypatch.delattr(sys.modules["tensorrt"].HardwareCompatibilityLevel, "SAME_COMPUTE_CAPABILITY")
        with pytest.raises(ConfigError, match="cannot build for hardware 'same-capability'"):
            build(bundle, world11, TensorRTConfig(precision="f32", hardware="same-capability"))

    @pytest.mark.parametrize(
        "wrong", [{"precision": "f8"}, {"optimization_level": 6}, {"workspace_mb": 0}, {"hardware": "any"}]
    )
    def test_configs_refuse_nonsense(self, wrong):
        with pytest.raises(ConfigError):
            TensorRTConfig(**wrong)


class TestOpenShapes:
    """The graphs of bundles are fixed; what becomes of others, such as a network that makes label maps."""

    MODEL = helper.make_model(
        helper.make_graph(
            [helper.make_node("Relu", ["x"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, "h", "w"))],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 3, "h", "w"))],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=8,
    ).SerializeToString()

    def test_are_tuned_for_a_range_and_run_at_its_usual_shape(self, world):
        wide = Range((1, 3, 8, 8), (1, 3, 8, 16), (1, 3, 16, 16))
        built = build_plan(self.MODEL, F32, shapes={"x": wide})
        assert world.builds[0]["profiles"] == [{"x": list(wide)}]
        assert LoadedPlan(built.plan, FakeRunner(world), where="x").shapes == {"x": (1, 3, 8, 16)}

    def test_run_at_any_shape_of_their_range(self, world):
        runner = FakeRunner(world)
        built = build_plan(self.MODEL, F32, shapes={"x": Range((1, 3, 8, 8), (1, 3, 8, 16), (1, 3, 16, 16))})
        loaded = LoadedPlan(built.plan, runner, where="net.plan", shapes={"x": (1, 3, 16, 8)})
        given = np.linspace(-1, 1, 384, dtype=np.float32).reshape(1, 3, 16, 8)
        made = PlanEngine(loaded, runner, "f32", Path("net.plan")).infer({"x": given})
        assert np.array_equal(made["y"], np.maximum(given, 0))
        with pytest.raises(BundleError, match=r"net.plan refuses shape \(1, 3, 16, 24\) for x"):
            LoadedPlan(built.plan, runner, where="net.plan", shapes={"x": (1, 3, 16, 24)})
        with pytest.raises(ConfigError, match=r"net.plan has no input z; choose from x"):
            LoadedPlan(built.plan, runner, where="net.plan", shapes={"z": (1, 3, 16, 8)})

    def test_need_a_range(self, world11):
        with pytest.raises(ConfigError, match="shape of x is open"):
            build_plan(self.MODEL, F32)

    def test_ranges_that_run_backwards_are_refused(self, world11):
        with pytest.raises(ConfigError, match="does not take the range"):
            build_plan(self.MODEL, F32, shapes={"x": Range((1, 3, 9, 9), (1, 3, 8, 8), (1, 3, 8, 8))})


class TestWarps:
    def test_opset_20_is_refused_in_the_graph(self, world):
        with pytest.raises(BundleError, match=r"'warp' is of operator set 20.*nearest"):
            build_plan(grid_sample_model("linear", 20).SerializeToString(), F32)

    def test_other_modes_are_refused_in_the_graph(self):
        check_warp_modes(grid_sample_model("bilinear", 18))
        with pytest.raises(BundleError, match="samples nearest"):
            check_warp_modes(grid_sample_model("nearest", 18))

    def test_a_parser_that_reads_nearest_is_refused(self, world):
        world.faults["nearest"] = True
        with pytest.raises(BundleError, match="read the bilinear warp 'warp' as nearest"):
            build_plan(grid_sample_model("bilinear", 16).SerializeToString(), F32)

    def test_fall_backs_are_tried_in_order_and_the_reason_kept(self, bundle, world):
        asked = []

        def prepare(path, precision, warp):
            asked.append((path.name, precision, warp))
            if warp == "grid_sample":
                raise BundleError("this form is broken")
            return prepare_for_tensorrt(path, precision, warp).SerializeToString()

        record = build(bundle, world, prepare=prepare)
        assert [a.warp for a in record.attempts] == ["grid_sample", "gather"]
        assert [a.outcome for a in record.attempts] == ["this form is broken", "kept"]
        assert find_engine(bundle, describe_site(FakeRunner(world)))[1].warp == "gather"
        assert ("step.onnx", "f32", "gather") in asked

    def test_frames_that_stray_are_no_engine_and_the_bundle_stays(self, bundle, world):
        before = load_manifest(bundle)
        world.faults["noise"] = {"warped": 0, "*": 0.05}
        with pytest.raises(BundleError, match=r"no TensorRT engine in f32 was kept.*frame reaches 2\d\.\d dB"):
            build(bundle, world)
        assert load_manifest(bundle) == before

    @pytest.mark.parametrize("precision", ["f32", "f16"])
    @pytest.mark.parametrize("warp", ["grid_sample", "gather", "outside"])
    def test_every_form_follows_torch_on_arrays_and_on_the_device(self, bundle, world11, precision, warp):
        record = build(bundle, world11, TensorRTConfig(precision=precision), warps=[warp])
        assert record.warp == warp and (record.parity_psnr_db or 99) > (60 if precision == "f32" else 50)
        theirs = torch_frames(CLIP.conditions)
        engine = TensorRTEngine(bundle, runner=FakeRunner(world11))
        np.testing.assert_allclose(list(roll_out(engine, CLIP.conditions, 2)), theirs, atol=2e-2)
        step = TensorRTStep(bundle, runner=FakeRunner(world11))
        made = [from_encoded(step.form, x) for x in CLIP.conditions]
        step.start(made[0])
        np.testing.assert_allclose([step.step(x)[0].numpy().copy() for x in made], theirs, atol=2e-2)

    @pytest.mark.parametrize("precision", ["int8", "fp8"])
    def test_quantised_engines_are_calibrated_on_the_clip(self, bundle, world11, monkeypatch, precision):
        small = functools.partial(quantize_step, least_channels=4)
        monkeypatch.setattr("export.prepare.quantize_step", small)
        config = TensorRTConfig(precision=precision, min_parity_psnr_db=20)
        record = build(bundle, world11, config, runner=FakeRunner(world11, (8, 9)))
        assert record.parity_psnr_db > 20 and find_engine(bundle, record.site, precision)[1] == record
        assert record.expected_psnr_db > 20

    def test_bf16_is_not_built_where_its_warp_would_be_read_as_nearest(self, bundle, world11):
        with pytest.raises(BundleError, match=r"warp by grid_sample: bf16 needs operator set 22, and from 20 on"):
            build(bundle, world11, TensorRTConfig(precision="bf16"), warps=["grid_sample"])

    def test_the_tail_outside_an_engine_is_torchs_and_tested_too(self, bundle, world11, monkeypatch):
        record = build(bundle, world11, warps=["outside"])
        assert not (bundle / "engines" / record.key / "selftest.plan").exists()
        nearest = functools.partial(torch.nn.functional.grid_sample)
        monkeypatch.setattr(
            "torch.nn.functional.grid_sample", lambda x, g, mode="", **more: nearest(x, g, mode="nearest", **more)
        )
        with pytest.raises(BundleError, match="torch behind tensorrt f32 warps wrongly"):
            TensorRTStep(bundle, runner=FakeRunner(world11))

    def test_frames_that_are_no_numbers_are_no_engine(self, bundle, world11):
        world11.faults["noise"] = {"frame": np.nan}
        with pytest.raises(BundleError, match="nan dB"):
            build(bundle, world11, warps=["grid_sample"])

    def test_an_engine_is_tested_by_half_a_pixel_when_it_is_opened(self, bundle, world):
        build(bundle, world)
        runner = FakeRunner(world)
        TensorRTEngine(bundle, "f32", runner=runner)
        world.faults["noise"] = {"warped": 0.5}
        with pytest.raises(BundleError, match="tensorrt f32 warps wrongly here"):
            TensorRTStep(bundle, runner=runner)


class TestRun:
    def test_on_arrays_equals_onnx_runtime(self, bundle, world):
        build(bundle, world)
        engine = TensorRTEngine(bundle, "f32", runner=FakeRunner(world))
        assert (engine.name, engine.precision, engine.where) == ("tensorrt", "f32", "on Test GPU 1")
        ours = list(roll_out(engine, CLIP.conditions, 2))
        theirs = list(roll_out(open_engine(REFERENCE, bundle / STEP_GRAPH), CLIP.conditions, 2))
        np.testing.assert_array_equal(ours, theirs)
        (plan,) = bundle.rglob("step.plan")
        assert engine.memory_bytes > (1 << 20) + plan.stat().st_size  # weights, and what a run needs

    @pytest.mark.parametrize("graph", [True, False])
    @pytest.mark.parametrize("seeded", [True, False])
    def test_history_on_the_device_follows_torch(self, bundle, world, graph, seeded):
        build(bundle, world)
        runner = FakeRunner(world)
        step = TensorRTStep(bundle, runner=runner, graph=graph)
        assert step.is_graph is graph
        seed = torch.rand(1, 1, 3, *SIZE, generator=torch.Generator().manual_seed(5)) * 2 - 1 if seeded else None
        conditions = random_conditions(7, SIZE, seed=9)
        model = TinyStep().eval()
        with torch.no_grad():
            given = conditions[None, : 1 if seeded else 0]
            history = start_history(given, seed, 2, first_condition=conditions[None, 0])
            theirs = [o.frame for o in rollout(model, conditions[None, len(given[0]) :], history)]
        for _ in range(2):  # a second video begins anew
            made = [from_encoded(step.form, x) for x in conditions.numpy()]
            step.start(made[0], None if seed is None else seed[0, 0].numpy())
            ours = [step.step(x).clone() for x in made[1 if seeded else 0 :]]
            torch.testing.assert_close(torch.stack(ours), torch.stack(theirs), atol=2e-5, rtol=0)
        assert runner.replays == (2 * len(ours) if graph else 0)
        assert ours[0].shape == (1, 3, *SIZE)

    def test_what_cannot_be_recorded_is_queued_step_by_step(self, bundle, world):
        build(bundle, world)
        world.faults["capture"] = True
        step = TensorRTStep(bundle, runner=FakeRunner(world))
        assert not step.is_graph
        first = from_encoded(step.form, CLIP.conditions[0])
        step.start(first)
        frame = step.step(first).clone()
        wanted = next(roll_out(open_engine(REFERENCE, bundle / STEP_GRAPH), CLIP.conditions, 2))
        np.testing.assert_allclose(frame[0].numpy(), wanted, atol=1e-6)

    def test_a_failed_step_says_why(self, bundle, world):
        build(bundle, world)
        engine = TensorRTEngine(bundle, "f32", runner=FakeRunner(world))
        world.faults["enqueue"] = True
        with pytest.raises(BundleError, match=r"did not run.*Cuda Runtime"):
            next(roll_out(engine, CLIP.conditions, 2))

    def test_memory_that_does_not_suit_is_refused(self, bundle, world11):
        build(bundle, world11)
        place, _ = find_engine(bundle, describe_site(FakeRunner(world11)))
        plan = LoadedPlan((place / STEP_PLAN).read_bytes(), FakeRunner(world11), where="the plan")
        with pytest.raises(ShapeError, match=r"valid is \(1,\) of torch.float32, not \(2,\)"):
            plan.bind("valid", torch.zeros(2))
        wide = torch.zeros(1, 4, SIZE[0], 2 * SIZE[1])
        with pytest.raises(ShapeError, match="not contiguous"):
            plan.bind("condition", wide[..., ::2])
        with pytest.raises(ShapeError, match="not aligned to 8"):
            plan.bind("valid", torch.zeros(2)[1:])
        world11.faults["address"] = True
        with pytest.raises(BundleError, match="refuses the memory for valid"):
            plan.bind("valid", torch.zeros(1))

    def test_layers_can_be_looked_at(self, bundle, world11):
        build(bundle, world11)
        place, _ = find_engine(bundle, describe_site(FakeRunner(world11)))
        plan = LoadedPlan((place / STEP_PLAN).read_bytes(), FakeRunner(world11), where="the plan")
        assert "Layers" in json.loads(plan.describe())

    def test_no_room_is_said(self, bundle, world11):
        build(bundle, world11)
        world11.faults["context"] = True
        with pytest.raises(BundleError, match=r"no room to run .* wants 1 MiB: Error Code 2"):
            TensorRTStep(bundle, runner=FakeRunner(world11))


class TestFit:
    def test_a_bundle_without_engines_says_how_to_build_one(self, bundle, world):
        with pytest.raises(BundleError, match=r"holds no TensorRT engine; build one here: fastv2v export --bundle"):
            TensorRTStep(bundle, runner=FakeRunner(world))

    def test_another_gpu_is_refused_by_name_and_building_again_helps(self, bundle, world):
        build(bundle, world)
        world.gpu = "Test GPU 2"
        with pytest.raises(
            BundleError, match=r"built for Test GPU 1 \(compute capability 8\.6\) and this is Test GPU 2"
        ):
            TensorRTStep(bundle, runner=FakeRunner(world))
        build(bundle, world)
        TensorRTStep(bundle, runner=FakeRunner(world))
        assert len(list_engines(bundle, load_manifest(bundle)).whole) == 2  # that of the first GPU is still there

    def test_another_version_is_refused_with_both(self, bundle, monkeypatch):
        build(bundle, enter(monkeypatch, 10))
        newer = enter(monkeypatch, 11)
        with pytest.raises(BundleError, match=rf"TensorRT {VERSIONS[10]} and this is {VERSIONS[11]}"):
            TensorRTEngine(bundle, "f32", runner=FakeRunner(newer))

    def test_version_compatible_engines_run_on_newer_versions_only(self, bundle, monkeypatch):
        config = TensorRTConfig(precision="f32", version_compatible=True)
        build(bundle, enter(monkeypatch, 10), config)
        newer = enter(monkeypatch, 11)
        TensorRTStep(bundle, runner=FakeRunner(newer), host_code=True)
        build(bundle, newer, config)
        older = enter(monkeypatch, 10)
        assert find_engine(bundle, describe_site(FakeRunner(older)))[1].site.tensorrt == VERSIONS[10]

    @pytest.mark.parametrize(
        ("hardware", "capability", "fits"),
        [
            ("same-capability", (8, 6), True),
            ("same-capability", (8, 9), False),
            ("ampere-plus", (9, 0), True),
            ("ampere-plus", (7, 5), False),
        ],
    )
    def test_hardware_compatible_engines_run_on_other_gpus(self, bundle, world11, hardware, capability, fits):
        build(bundle, world11, TensorRTConfig(precision="f32", hardware=hardware))
        world11.gpu = "Test GPU 2"
        other = FakeRunner(world11, capability)
        if fits:
            TensorRTStep(bundle, runner=other)
        else:
            with pytest.raises(BundleError, match="and this is Test GPU 2"):
                TensorRTStep(bundle, runner=other)

    def test_another_precision_is_not_taken_in_its_place(self, bundle, world11):
        build(bundle, world11)
        with pytest.raises(BundleError, match="holds no TensorRT engine in f16"):
            TensorRTStep(bundle, "f16", runner=FakeRunner(world11))

    def test_another_system_and_another_graph_are_refused(self, bundle, world11):
        record = build(bundle, world11)
        here = describe_site(FakeRunner(world11))
        assert misfit(record, here, record.graph) is None
        assert "Plan 9 pdp11" in str(misfit(record, replace(here, system="Plan 9 pdp11"), record.graph))
        assert "another step graph" in str(misfit(record, here, "0" * 64))

    def test_what_tensorrt_refuses_is_told_with_both_versions(self, bundle, world):
        build(bundle, world)
        world.faults["deserialize"] = True
        version = require_tensorrt()
        written = ".".join(version.split(".")[:3])
        with pytest.raises(BundleError, match=rf"TensorRT {version} refuses \S+ written by {written}: Version tag"):
            TensorRTStep(bundle, runner=FakeRunner(world))

    def test_a_plan_of_another_version_is_refused_before_tensorrt_sees_it(self, world11):
        plan = b"ftrt" + bytes(20) + bytes([10, 3, 0, 26])
        with pytest.raises(BundleError, match=r"written by TensorRT 10\.3\.0 and this is 11\.4"):
            LoadedPlan(plan, FakeRunner(world11), where="old.plan")
        assert "deserialized" not in world11.calls

    def test_another_driver_is_only_a_warning(self, bundle, world11, caplog):
        build(bundle, world11)
        runner = FakeRunner(world11)
        runner.driver = "590.2"
        with caplog.at_level(logging.WARNING, "export.tensorrt_engine"):
            TensorRTStep(bundle, runner=runner)
        assert "under driver 580.1 and this is 590.2" in caplog.text

    def test_altered_plans_and_incomplete_engines_are_refused(self, bundle, world11):
        build(bundle, world11)
        plan = next((bundle / "engines").glob("*/step.plan"))
        content = plan.read_bytes()
        plan.write_bytes(content[:-1] + b"x")
        with pytest.raises(BundleError, match="damaged or was altered"):
            TensorRTStep(bundle, runner=FakeRunner(world11))
        plan.unlink()
        with pytest.raises(BundleError, match="missing"):
            TensorRTStep(bundle, runner=FakeRunner(world11))

    def test_code_of_a_version_compatible_engine_runs_only_where_it_is_allowed(self, bundle, world11, monkeypatch):
        build(bundle, world11, TensorRTConfig(precision="f32", version_compatible=True))
        for opened in (TensorRTStep, TensorRTEngine):
            with pytest.raises(BundleError, match=r"brings code of its own.*--engine tensorrt --host-code"):
                opened(bundle, runner=FakeRunner(world11))
            opened(bundle, runner=FakeRunner(world11), host_code=True)
        monkeypatch.setattr("export.tensorrt_engine.CudaRunner", lambda *_: FakeRunner(world11))
        with pytest.raises(ConfigError, match="only an engine that is named may bring code"):
            open_bundle(bundle, host_code=True)
        with open_bundle(bundle, engine="tensorrt", host_code=True) as stream:
            assert stream.engine.precision == "f32"

    def test_a_bundle_that_denies_its_code_is_refused_by_tensorrt(self, bundle, world11):
        build(bundle, world11, TensorRTConfig(precision="f32", version_compatible=True))
        manifest = load_manifest(bundle)
        path = next((bundle / "engines").glob(f"*/{RECORD}"))
        path.write_text(path.read_text().replace('"version_compatible": true', '"version_compatible": false'))
        write_bundle(bundle, manifest, {x: bundle / x for x in manifest.files}, overwrite=True)
        with pytest.raises(BundleError, match="engine_host_code_allowed is false"):
            TensorRTStep(bundle, runner=FakeRunner(world11), host_code=True)

    @pytest.mark.parametrize("damage", ["record", "plan"])
    def test_a_damaged_engine_is_refused_and_building_again_takes_its_place(self, bundle, world11, damage):
        build(bundle, world11)
        manifest = load_manifest(bundle)
        path = next((bundle / "engines").glob(f"*/{RECORD}"))
        files = {x: bundle / x for x in manifest.files}
        if damage == "record":
            path.write_text("[]")
        else:
            del files[f"engines/{path.parent.name}/{STEP_PLAN}"]
        write_bundle(bundle, manifest, files, overwrite=True)
        found = list_engines(bundle, load_manifest(bundle))
        assert not found.whole and list(found.damaged) == [f"engines/{path.parent.name}"]
        with pytest.raises(BundleError, match=r"(is no record of an engine|lacks step\.plan).*fastv2v export --bundle"):
            TensorRTStep(bundle, runner=FakeRunner(world11))
        build(bundle, world11)
        assert not list_engines(bundle, load_manifest(bundle)).damaged
        TensorRTStep(bundle, runner=FakeRunner(world11))


class TestMissing:
    def test_no_tensorrt_is_one_sentence_that_helps(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "tensorrt", None)
        with pytest.raises(MissingExtraError, match=r"pip install 'fastv2v\[tensorrt\]'") as e:
            require_tensorrt()
        assert "\n" not in str(e.value)

    def test_an_old_one_is_refused(self, world11, monkeypatch):
        monkeypatch.setattr(sys.modules["tensorrt"], "__version__", "8.6.1")
        with pytest.raises(MissingExtraError, match=r"8\.6\.1 is older than 10\.3"):
            require_tensorrt()

    def test_no_gpu_is_one_sentence_that_helps(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(MissingExtraError, match=r"needs an NVIDIA GPU.*driver.*torch built for CUDA"):
            CudaRunner()

    def test_a_processor_is_no_gpu(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        with pytest.raises(ConfigError, match="not on device 'cpu'"):
            CudaRunner(torch.device("cpu"))

    def test_no_driver_is_told_from_a_type_error(self, bundle, world):
        world.has_driver = False
        with pytest.raises(BundleError, match=r"cannot start on this machine \(CUDA initialization failure"):
            build(bundle, world)


class TestNumbers:
    def test_versions_of_plans(self):
        assert plan_version(b"ftrt" + bytes(20) + bytes([11, 4, 0, 106])) == (11, 4, 0)
        assert plan_version(b"blob" + bytes(40)) is None
        assert plan_version(b"ftrt" + bytes([1, 0, 0, 0]) + bytes(40)) is None
        assert plan_version(b"ftrt") is None

    def test_version_numbers(self):
        assert version_numbers("10.16.1.11") == (10, 16, 1)
        assert version_numbers("11.4") == (11, 4, 0)


def test_timing_cache_is_in_the_bundle(bundle, world11):
    record = build(bundle, world11)
    cache = bundle / "engines" / record.key / TIMING_CACHE
    assert cache.read_bytes() == b"11.4.0.106 Test GPU 1"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_real_engine(bundle):
    pytest.importorskip("tensorrt")
    build_engine(bundle, CLIP, F32)
    step = TensorRTStep(bundle)
    first = from_encoded(step.form, CLIP.conditions[0])
    step.start(first)
    frames = [step.step(from_encoded(step.form, x)).cpu().numpy()[0] for x in CLIP.conditions]
    wanted = list(roll_out(open_engine(REFERENCE, bundle / STEP_GRAPH), CLIP.conditions, 2))
    np.testing.assert_allclose(frames, wanted, atol=2e-2)


class TestCommand:
    """``fastv2v export --bundle``."""

    @pytest.fixture
    def run(self, bundle, world11, monkeypatch, capsys):
        for place in ("fastv2v.commands.export_engine", "export.tensorrt_engine"):
            monkeypatch.setattr(f"{place}.CudaRunner", lambda *_: FakeRunner(world11))

        def run(*words: str) -> tuple[int, str, str]:
            status = main(["export", "--bundle", str(bundle), "--engine", "tensorrt:f32", *words])
            return (status, *capsys.readouterr())

        return run

    def test_builds_an_engine_into_a_bundle_and_says_what_it_kept(self, run, bundle):
        status, out, _ = run("--frames", "3")
        assert status == 0
        assert "TensorRT 11.4.0.106 f32 for Test GPU 1" in out and "exactly over 3 frames (moving blocks)" in out
        place = json.loads(out.splitlines()[-1])["engine"]
        manifest = load_manifest(bundle)
        assert f"engines/{place}/step.plan" in manifest.files
        measured = {(m.engine, m.precision): m.accepted for m in manifest.engine.measurements}
        assert measured == {("onnxruntime", "f32"): True, ("tensorrt", "f32"): True}

    def test_builds_anew_only_when_told(self, run, world11):
        run("--frames", "2")
        status, _, err = run("--frames", "2")
        assert status == 2 and "--overwrite" in err
        status, *_ = run("--frames", "2", "--overwrite")
        assert status == 0 and len(world11.builds) == 4

    def test_without_tensorrt_one_line_says_what_to_install_and_what_runs_without(self, bundle, monkeypatch, capsys):
        monkeypatch.setitem(sys.modules, "tensorrt", None)
        assert main(["export", "--bundle", str(bundle), "--engine", "tensorrt"]) == 2
        err = capsys.readouterr().err.strip()
        assert "pip install 'fastv2v[tensorrt]'" in err and "--engine onnxruntime" in err and "\n" not in err

    def test_without_a_gpu_too(self, bundle, world11, monkeypatch, capsys):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert main(["export", "--bundle", str(bundle), "--engine", "tensorrt"]) == 2
        err = capsys.readouterr().err.strip()
        assert "NVIDIA's driver" in err and "--engine onnxruntime" in err and "\n" not in err

    @pytest.mark.parametrize(
        ("engine", "precision", "problem"),
        [
            ("openvino", None, "only tensorrt engines are built"),
            ("tensorrt:f8", None, "not in 'f8'"),
            ("tensorrt:bf16", "f32", "give one of them"),
        ],
    )
    def test_other_engines_and_contradictions_are_refused(self, engine, precision, problem):
        with pytest.raises(ConfigError, match=problem):
            tensorrt_config(engine, TensorRTConfig(**({"precision": precision} if precision else {})))

    def test_the_engine_runs_by_its_name(self, run, bundle):
        run("--frames", "2", "--no-measure")
        assert load_manifest(bundle).engine is None
        with open_bundle(bundle, engine="tensorrt:f32") as stream:
            labels = [np.random.default_rng(t).integers(0, 4, SIZE, dtype=np.uint8) for t in range(5)]
            ours = [item.frame for item in stream.frames(iter(labels))]
        with open_bundle(bundle, engine="onnxruntime:f32") as stream:
            theirs = [item.frame for item in stream.frames(iter(labels))]
        np.testing.assert_array_equal(ours, theirs)
        with open_bundle(bundle, engine="tensorrt:f32", device="cpu") as stream:  # the stand-in's device
            kept = [item.frame for item in stream.frames(iter(labels))]
        assert np.abs(np.stack(kept).astype(int) - theirs).max() <= 1

    def test_without_a_precision_what_was_built_runs_on_arrays_and_on_the_device(self, run, bundle):
        run("--frames", "2", "--no-measure")
        with open_bundle(bundle, engine="tensorrt") as stream:
            assert stream.engine.precision == "f32"
        with open_bundle(bundle, engine="tensorrt", device="cpu") as stream:
            assert stream.engine.precision == "f32"

    def test_what_was_measured_of_others_stays(self, run, bundle):
        choose_engine(bundle, Probe(CLIP.conditions), candidates=[Candidate("openvino", "f32")], threads=1)
        chosen = load_manifest(bundle).engine
        record_engine(bundle, replace(chosen, engine="onnxruntime", precision="f32"))
        run("--frames", "2")
        measured = {m.engine for m in load_manifest(bundle).engine.measurements}
        assert measured == {"onnxruntime", "openvino", "tensorrt"}

    def test_a_version_compatible_engine_is_not_for_auto(self, run, bundle, caplog):
        assert run("--frames", "2", "--tensorrt.version-compatible")[0] == 0
        assert load_manifest(bundle).engine is None and "auto will not take it" in caplog.text


class TestGuided:
    """A student whose condition shows its painted world."""

    SPEC = ConditionSpec(class_names=("road", "car"), guidance_levels=1)

    @pytest.fixture(scope="class")
    def guided(self, tmp_path_factory):
        config = SlimConfig(widths=(8, 8), depths=(1, 1), up_depths=(1,), refine_width=4, history_length=2)
        torch.manual_seed(0)
        model = SlimGenerator(config, self.SPEC.channels)
        blocks = torch.from_numpy(moving_blocks(self.SPEC, SIZE, 3, np.random.default_rng(0)))
        folder = tmp_path_factory.mktemp("guided") / "guided.v2v"
        build_bundle(model, folder, details(self.SPEC), blocks, measure=False, int8=False)
        return folder

    def test_is_compared_with_its_world_painted(self, guided, tmp_path, world11, monkeypatch):
        folder = shutil.copytree(guided, tmp_path / guided.name)
        blocks = moving_blocks(self.SPEC, SIZE, 4, np.random.default_rng(1))
        with pytest.raises(ShapeError, match="needs point ids of 1 levels"):
            build_engine(folder, ParityClip(blocks, "blocks"), F32, runner=FakeRunner(world11))
        shown = []
        infer = PlanEngine.infer
        monkeypatch.setattr(
            PlanEngine, "infer", lambda self, feeds: shown.append(feeds.get("guidance")) or infer(self, feeds)
        )
        clip = ParityClip(blocks, "blocks", moving_points(1, SIZE, 4))
        assert build_engine(folder, clip, F32, runner=FakeRunner(world11)).parity_psnr_db is None
        masks = [x[0, 3].mean() for x in shown if x is not None]
        assert masks == [0, 1, 1, 1]  # nothing is painted before the first frame, and everything after

    def test_without_data_the_points_move_with_the_blocks(self, guided):
        clip = clip_for(guided, load_manifest(guided), None, 3)
        (ids,) = clip.points
        assert ids.shape == (3, *SIZE)
        np.testing.assert_array_equal(np.roll(ids[0], (1, 2), axis=(0, 1)), ids[1])


class TestCompact:
    """A slim student, whose graph takes label maps and averages of them."""

    SPEC = ConditionSpec(class_names=("road", "car", "sky"), use_instances=True, ignore_id=255)

    @pytest.fixture(scope="class")
    def slim(self, tmp_path_factory):
        config = SlimConfig(widths=(8, 8), depths=(1, 1), up_depths=(1,), refine_width=4, history_length=2)
        torch.manual_seed(0)
        model = SlimGenerator(config, self.SPEC.channels)
        blocks = torch.from_numpy(moving_blocks(self.SPEC, SIZE, 3, np.random.default_rng(0)))
        folder = tmp_path_factory.mktemp("slim") / "slim.v2v"
        build_bundle(model, folder, details(self.SPEC), blocks, measure=False, int8=False)
        return folder

    @pytest.mark.parametrize("warp", ["grid_sample", "outside"])
    def test_a_stream_on_the_device_is_that_of_onnx_runtime(self, slim, tmp_path, world11, warp):
        folder = shutil.copytree(slim, tmp_path / slim.name)
        clip = ParityClip(moving_blocks(self.SPEC, SIZE, 4, np.random.default_rng(1)), "blocks")
        build_engine(folder, clip, F32, runner=FakeRunner(world11), warps=[warp])
        rng = np.random.default_rng(2)
        pairs = [(rng.integers(0, 3, SIZE, dtype=np.uint8), rng.integers(0, 5, SIZE)) for _ in range(9)]
        step = TensorRTStep(folder, runner=FakeRunner(world11))
        assert step.form.labels and step.form.edges and step.form.scale > 1
        with DeviceStream(step, load_manifest(folder)) as stream:
            ours = [item.frame for item in stream.frames(iter(pairs))]
        with open_bundle(folder, engine="onnxruntime:f32") as stream:
            theirs = [item.frame for item in stream.frames(iter(pairs))]
        assert len(ours) == 9
        assert np.abs(np.stack(ours).astype(int) - np.stack(theirs)).max() <= 1


class TestBlocks:
    def test_move_and_are_encoded(self):
        rng = np.random.default_rng(0)
        spec = ConditionSpec(class_names=("a", "b", "c"), use_instances=True)
        blocks = moving_blocks(spec, (16, 24), 3, rng)
        assert blocks.shape == (3, 4, 16, 24) and (blocks[:, :3].sum(axis=1) == 1).all()
        np.testing.assert_array_equal(np.roll(blocks[0, :3], (1, 2), axis=(1, 2)), blocks[1, :3])

    def test_maps_lie_between_minus_one_and_one(self):
        blocks = moving_blocks(ConditionSpec(kind="maps", map_channels=3), (16, 24), 2, np.random.default_rng(0))
        assert blocks.shape == (2, 3, 16, 24) and np.abs(blocks).max() <= 1 and blocks.std() > 0.1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU")
class TestCudaRunnerOnAGpu:
    def test_work_on_its_stream_is_ordered_with_the_callers(self):
        runner = CudaRunner()
        here = torch.cuda.current_stream(runner.device)
        numbers = torch.zeros(1 << 20, device=runner.device)
        for step in range(5):
            numbers.fill_(step)
            with contextlib.suppress(ValueError), runner.on():
                numbers.add_(1)
                raise ValueError("an error changes nothing about the order")
            assert (numbers == step + 1).all()
        assert torch.cuda.current_stream(runner.device) == here and runner.handle != 0

    def test_work_is_recorded_or_left_to_be_queued(self):
        runner = CudaRunner()
        here = torch.cuda.current_stream(runner.device)
        numbers = torch.zeros(4, device=runner.device)

        def work():
            numbers.add_(1)

        with runner.on():
            work()
        replay = runner.capture(work)
        assert runner.capture(lambda: numbers.sum().item()) is None  # it asks the GPU for a value
        with runner.on():
            replay()
        assert numbers.tolist() == [2, 2, 2, 2]
        assert torch.cuda.current_stream(runner.device) == here
