import pytest
import torch

from benchmarks.cost import family_cost, step_cost
from export.engines import OnnxRuntimeEngine
from export.onnx_graph import compare_rollout, export_step
from fastv2v.config import from_dict, to_dict
from fastv2v.contracts import History
from fastv2v.errors import ConfigError, ShapeError
from fastv2v.nn.composite import CompositeConfig
from fastv2v.nn.generators import VideoConfig, build_generator
from fastv2v.nn.slim import SlimConfig, SlimGenerator
from fastv2v.render import start_history
from students import presets

TINY = SlimConfig(widths=(6, 8, 10), depths=(1, 0, 1), up_depths=(0, 1), refine_width=2, embedding=2)


def inputs(channels=3, size=(32, 32), batch=1, past=2, seed=0):
    rng = torch.Generator().manual_seed(seed)
    condition = torch.rand(batch, channels, *size, generator=rng)
    conditions = torch.rand(batch, past, channels, *size, generator=rng)
    frames = torch.rand(batch, past, 3, *size, generator=rng) * 2 - 1
    return condition, History(conditions, frames, torch.ones(batch))


class TestConfig:
    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"input_scale": 3}, "input_scale must be 1, 2 or 4"),
            ({"widths": ()}, "widths must be positive"),
            ({"depths": (1, 1)}, "3 widths need 3 depths and 2 up_depths"),
            ({"up_depths": (1, -1)}, "must not be negative"),
            ({"block": "dense"}, "block is one of"),
            ({"head_kernel": 2}, "head_kernel must be odd"),
            ({"flow_scale": 0.0}, "flow_scale must be positive"),
            ({"embedding": 0}, "embedding must be at least 1"),
        ],
    )
    def test_nonsense_is_refused(self, wrong, message):
        with pytest.raises(ConfigError, match=message):
            SlimConfig(**wrong)

    @pytest.mark.parametrize("config", [TINY, CompositeConfig(width=8), CompositeConfig(width=8, num_scales=2)])
    def test_a_checkpoint_says_which_kind_it_holds(self, config):
        from dataclasses import make_dataclass

        record = make_dataclass("Record", [("generator", VideoConfig)], frozen=True)
        assert from_dict(record, to_dict(record(config))).generator == config


class TestStep:
    @pytest.mark.parametrize("scale", [1, 2, 4])
    @pytest.mark.parametrize("block", ["residual", "inverted", "separable"])
    @pytest.mark.parametrize("up", ["shuffle", "resize", "transposed"])
    @pytest.mark.parametrize("shared", [True, False])
    def test_every_shape_draws_full_size_parts_and_learns(self, scale, block, up, shared):
        config = SlimConfig(
            input_scale=scale, widths=(4, 6), depths=(1, 1), up_depths=(1,), block=block, up=up, shared_decoder=shared
        )
        model = SlimGenerator(config, 3)
        condition, history = inputs(batch=2)
        output, after = model.step(condition, history)
        assert output.frame.shape == output.hallucinated.shape == output.warped.shape == (2, 3, 32, 32)
        assert output.flow.shape == (2, 2, 32, 32) and output.occlusion.shape == (2, 1, 32, 32)
        assert output.frame.abs().max() <= 1
        assert torch.equal(after.frames[:, -1], output.frame) and torch.equal(after.conditions[:, -1], condition)
        (output.frame.square().mean() + output.flow.square().mean()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())

    def test_the_frame_is_the_blend_of_its_parts(self):
        model = SlimGenerator(SlimConfig(widths=(4,), depths=(1,), up_depths=()), 3).eval()
        output, _ = model.step(*inputs())
        blend = output.occlusion * output.hallucinated + (1 - output.occlusion) * output.warped
        assert torch.allclose(output.frame, blend)

    def test_without_a_past_nothing_old_is_used(self):
        model = SlimGenerator(TINY, 3).eval()
        condition, history = inputs()
        first = start_history(history.conditions[:, :0], None, 2, first_condition=condition)
        output, _ = model.step(condition, first)
        assert torch.equal(output.occlusion, torch.ones_like(output.occlusion))

    def test_foreground_classes_are_never_warped(self):
        model = SlimGenerator(SlimConfig(widths=(4,), depths=(1,), up_depths=()), 3, foreground_channels=(1,)).eval()
        _, history = inputs()
        condition = torch.zeros(1, 3, 32, 32)
        condition[:, 1, :, :16], condition[:, 0, :, 16:] = 1, 1
        output, _ = model.step(condition, history)
        assert torch.equal(output.frame[..., :16], output.hallucinated[..., :16])
        assert not torch.equal(output.frame[..., 16:], output.hallucinated[..., 16:])

    def test_sizes_and_inputs_that_do_not_fit_are_refused(self):
        model = SlimGenerator(TINY, 3)
        assert model.size_multiple == 16
        with pytest.raises(ShapeError, match=r"24x32 do not divide: .* multiples of 16"):
            model.step(*inputs(size=(24, 32)))
        with pytest.raises(ShapeError, match="16x32 are too small: this generator needs at least 32x32"):
            model.step(*inputs(size=(16, 32)))
        with pytest.raises(ShapeError, match="conditions of 3 channels and a history of 2"):
            model.step(*inputs(channels=4))
        with pytest.raises(ConfigError, match="foreground channel 3 does not exist"):
            SlimGenerator(TINY, 3, foreground_channels=(3,))

    def test_nothing_is_remembered_between_steps(self):
        model = SlimGenerator(TINY, 3).eval()
        once, _ = model.step(*inputs())
        model.step(*inputs(seed=1))
        again, _ = model.step(*inputs())
        assert torch.equal(once.frame, again.frame)


class TestDeployment:
    def test_the_exported_graph_draws_the_same_clip(self, tmp_path):
        torch.manual_seed(0)
        model = SlimGenerator(TINY, 3, foreground_channels=(1,))
        for seed in range(3):
            model.step(*inputs(seed=seed))  # moves the running statistics off their start
        export_step(model.eval(), tmp_path / "step.onnx", size=(32, 32))
        engine = OnnxRuntimeEngine(tmp_path / "step.onnx")
        conditions = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        assert compare_rollout(model, engine, conditions) < 1e-4
        assert compare_rollout(model, engine, conditions, torch.zeros(1, 3, 32, 32)) < 1e-4


class TestStudents:
    @pytest.mark.parametrize(
        ("name", "gmacs"),
        [("base", 9.8), ("small", 4.9), ("tiny", 2.0), ("micro", 1.08), ("nano", 0.46), ("pico", 0.26), ("demo", 4.2)],
    )
    def test_a_preset_costs_what_it_says(self, name, gmacs):
        config = presets.STUDENTS[name]()
        cost = step_cost(build_generator(config, 36), 36, (256, 512)).keyframe
        assert cost.true_macs / 1e9 == pytest.approx(gmacs, rel=0.03)
        assert f"; {gmacs:g} GMACs" in presets.STUDENTS[name].__doc__

    def test_the_family_is_counted_beside_the_published_teacher(self):
        rows = {str(row["name"]): row for row in family_cost()}
        assert [*rows] == ["teacher (street)", *presets.STUDENTS]
        teacher, base = rows["teacher (street)"], rows["base"]
        assert teacher["gmacs_per_frame"] == pytest.approx(1057.5, abs=0.1)
        assert teacher["output_position_gmacs_per_frame"] == pytest.approx(1253.2, abs=0.1)
        assert rows["published"]["gmacs_per_keyframe"] == pytest.approx(258.6, abs=0.1)
        assert base["gmacs_per_keyframe"] <= 10 and base["gmacs_per_frame"] <= 2.5
        assert base["output_position_gmacs_per_keyframe"] == base["gmacs_per_keyframe"]  # nothing is transposed
        assert base["teacher_ratio"] == pytest.approx(1057.5 / base["gmacs_per_frame"], rel=1e-3)
        with pytest.raises(ConfigError, match="gap must be at least 1"):
            family_cost(gap=0)
