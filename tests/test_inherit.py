from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fastv2v.contracts import History
from fastv2v.errors import ConfigError
from fastv2v.nn.composite import CompositeConfig
from fastv2v.nn.generators import build_generator
from fastv2v.nn.slim import SlimConfig, SlimGenerator
from students import presets
from students.inherit import ChannelPlan, cut, inherit_weights, leading, order_channels
from teachers import presets as teachers

SLIM = SlimConfig(widths=(6, 8, 10), depths=(1, 1, 2), up_depths=(1, 2), refine_width=4)
COMPOSITE = CompositeConfig(width=4, num_downsamples=3, num_blocks=3, edge_kernel=3)
SHAPES = [
    SLIM,
    replace(SLIM, block="inverted", up="resize", shared_decoder=False, input_scale=2),
    replace(SLIM, block="separable", up="transposed", refine_width=0, use_flow=False, input_scale=1),
    COMPOSITE,
    replace(COMPOSITE, block="inverted", input_scale=2, norm="instance_tracked"),
    replace(COMPOSITE, norm="none", use_flow=False),
    replace(COMPOSITE, skips=True),
    replace(COMPOSITE, skips=True, input_scale=2),
]


def inputs(size=32):
    past = torch.rand(1, 2, 3, size, size), torch.rand(1, 2, 3, size, size) * 2 - 1
    return torch.rand(1, 3, size, size), History(*past, torch.ones(1))


def lively(config, foreground=(1,)):
    """A generator whose weights, scales and running statistics all tell channels apart."""
    torch.manual_seed(0)
    model = build_generator(config, 3, foreground)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    for _ in range(2):
        model.step(*inputs())
    return model.eval()


class TestPlan:
    @pytest.mark.parametrize("config", SHAPES)
    def test_every_tensor_with_channels_is_known_in_its_full_length(self, config):
        model = lively(config)
        plan = ChannelPlan(model)
        state = model.state_dict()
        assert state.keys() - plan.axes.keys() == {name for name in state if name.endswith("num_batches_tracked")}
        for name, axes in plan.axes.items():
            known = [sum(n if g is None else n * plan.sizes[g] for g, n in axis) for axis in axes]
            assert known == list(state[name].shape[: len(axes)]), name

    def test_streams_skips_and_shuffled_channels_belong_together(self):
        plan = ChannelPlan(lively(SLIM))
        assert plan.sizes["level 0"] == 6 and plan.sizes["level 2"] == 10 and plan.sizes["embedding"] == 4
        (up,) = plan.axes["decoder.ups.0.0.weight"][0]
        assert up == ("level 0", 4)
        for name in ("encoder.levels.0.0.branch.5", "encoder.downs.0.0", "decoder.levels.0.0.branch.1", "head"):
            assert "level 0" in str(plan.axes[f"{name}.weight"])

    def test_cut_tensors_share_memory_and_gradients_with_the_whole(self):
        model = lively(SLIM)
        plan = ChannelPlan(model)
        parts = cut(dict(model.named_parameters()), plan.cuts(["head.weight"], leading({**plan.sizes, "level 0": 2})))
        assert parts["head.weight"].shape == (64, 2, 3, 3)
        assert parts["head.weight"].data_ptr() == model.head.weight.data_ptr()
        parts["head.weight"].sum().backward()
        assert torch.equal(model.head.weight.grad[:, :2], torch.ones(64, 2, 3, 3))
        assert not model.head.weight.grad[:, 2:].any()


class TestImportance:
    def test_it_is_the_product_of_scale_and_filters_that_write_and_read(self):
        model = build_generator(SlimConfig(widths=(3,), depths=(0,), up_depths=(), use_flow=False, embedding=1), 3)
        with torch.no_grad():
            model.encoder.entry[0].weight.copy_(torch.tensor([1.0, -2.0, 3.0]).view(3, 1, 1, 1))
            model.encoder.entry[1].weight.copy_(torch.tensor([1.0, 1.0, -2.0]))
            model.head.weight.copy_(torch.tensor([4.0, 1.0, 1.0]).view(1, 3, 1, 1))
        found = ChannelPlan(model).importance(model.state_dict())["level 0"]
        # written 1, 2, 6 of mean 3; read 4, 1, 1 of mean 2
        assert_close(found, torch.tensor([1 * 4, 2 * 1, 6 * 1], dtype=torch.float64) / 6)

    @pytest.mark.parametrize("config", SHAPES)
    def test_ordering_the_channels_leaves_the_function_as_it_is(self, config):
        model, given = lively(config), inputs()
        before, weights = model.step(*given)[0].frame, {n: p.clone() for n, p in model.state_dict().items()}
        order_channels(model)
        assert_close(model.step(*given)[0].frame, before, atol=2e-5, rtol=0)
        assert any(not torch.equal(weights[name], value) for name, value in model.state_dict().items())
        ranked = ChannelPlan(model).importance(model.state_dict())
        assert all((values.diff() <= 1e-9).all() for values in ranked.values())

    def test_a_silent_channel_is_the_first_to_go(self):
        shallow = replace(SLIM, depths=(0, 1, 1), up_depths=(0, 1))
        model = lively(shallow)
        with torch.no_grad():
            for name in ("encoder.entry.1", "decoder.ups.0.2"):
                model.get_submodule(name).weight[2] = model.get_submodule(name).bias[2] = 0
        narrow = build_generator(replace(shallow, widths=(5, 8, 10)), 3, (1,)).eval()
        inherit_weights(narrow, model)
        given = inputs()
        assert_close(narrow.step(*given)[0].frame, model.step(*given)[0].frame, atol=1e-5, rtol=0)


class TestInherit:
    @pytest.mark.parametrize("config", SHAPES)
    @pytest.mark.parametrize("choose", ["importance", "leading"])
    def test_an_equal_student_becomes_its_source(self, config, choose):
        source = lively(config)
        student = build_generator(config, 3, (1,)).eval()
        inherit_weights(student, source, choose=choose)
        given = inputs()
        assert torch.equal(student.step(*given)[0].frame, source.step(*given)[0].frame)

    @pytest.mark.parametrize(
        ("config", "smaller"),
        [
            (SLIM, {"widths": (4, 8, 6), "depths": (0, 1, 1), "up_depths": (1, 0), "refine_width": 0}),
            (SHAPES[1], {"widths": (2, 3, 4), "embedding": 2, "refine_width": 2}),
            (SHAPES[2], {"widths": (2, 3, 4)}),
            (COMPOSITE, {"width": 3, "num_blocks": 2, "input_scale": 2}),
            (SHAPES[4], {"width": 2}),
            (SHAPES[6], {"width": 2, "input_scale": 4}),
            (SHAPES[6], {"width": 3, "skips": False}),
            (COMPOSITE, {"width": 3, "skips": True}),
        ],
    )
    def test_a_smaller_student_takes_part_of_it_and_learns_on(self, config, smaller):
        source, student = lively(config), build_generator(replace(config, **smaller), 3, (1,))
        inherit_weights(student, source)
        values = torch.cat([p.flatten() for p in source.parameters()])
        assert all(torch.isin(p, values).all() for p in student.parameters())
        student.step(*inputs())[0].frame.square().mean().backward()
        assert student.state_dict().keys() <= source.state_dict().keys()

    def test_the_demo_student_inherits_from_the_demo_teacher(self):
        teacher = build_generator(teachers.demo().generator, 12)
        student = build_generator(presets.demo(), 12)
        inherit_weights(student, teacher)
        plan = ChannelPlan(teacher)
        best = (
            plan.importance(teacher.state_dict())["level 0" if teacher.config.skips else "image_decoder.1 0"]
            .argsort(descending=True)[:12]
            .sort()
            .values
        )
        assert torch.equal(student.image_head.conv.weight, teacher.image_head.conv.weight[:, best])

    @pytest.mark.parametrize(
        ("student", "source", "message"),
        [
            (SLIM, COMPOSITE, "a slim student cannot inherit from a composite generator"),
            (COMPOSITE, SLIM, "a composite student cannot inherit from a slim generator"),
            (COMPOSITE, replace(COMPOSITE, num_scales=2), "a generator of 2 scales hands no weights down"),
            (COMPOSITE, replace(COMPOSITE, num_downsamples=2), "num_downsamples is 3 in the student and 2"),
            (COMPOSITE, replace(COMPOSITE, block="inverted"), "block is residual in the student and inverted"),
            (COMPOSITE, replace(COMPOSITE, norm="instance"), "norm is batch in the student and instance"),
            (replace(COMPOSITE, width=6), COMPOSITE, "wider than its source: .* channels in '.*' against"),
            (replace(COMPOSITE, num_blocks=5), COMPOSITE, "layers that its source lacks .condition_encoder.1.2"),
            (SLIM, replace(SLIM, input_scale=2), "input_scale is 4 in the student and 2 in its source"),
            (SLIM, replace(SLIM, widths=(6, 8), depths=(1, 1), up_depths=(1,)), "layers that its source lacks"),
            (replace(SLIM, widths=(6, 8), depths=(1, 1), up_depths=(1,)), SLIM, "fewer sizes than its source"),
            (replace(SLIM, widths=(6, 9, 10)), SLIM, "9 channels in 'level 1' against 8"),
        ],
    )
    def test_what_does_not_correspond_is_refused(self, student, source, message):
        with pytest.raises(ConfigError, match=message):
            inherit_weights(build_generator(student, 3), build_generator(source, 3))

    def test_other_conditions_and_foregrounds_are_refused(self):
        with pytest.raises(ConfigError, match="condition has 3 channels and its source's 4"):
            inherit_weights(SlimGenerator(SLIM, 3), SlimGenerator(SLIM, 4))
        with pytest.raises(ConfigError, match="must share their foreground"):
            inherit_weights(SlimGenerator(SLIM, 3), SlimGenerator(SLIM, 3, (1,)))

    def test_no_batch_norm_is_left_with_the_statistics_of_others(self):
        source, student = lively(SLIM), SlimGenerator(replace(SLIM, widths=(4, 4, 4)), 3, (1,))
        inherit_weights(student, source)
        norms = [part for part in student.modules() if isinstance(part, nn.BatchNorm2d)]
        assert all((norm.running_mean != 0).any() for norm in norms)
