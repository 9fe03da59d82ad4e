import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from shared_data import shared
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close

from fastv2v.contracts import History, StepModel
from fastv2v.errors import ConfigError, ShapeError
from fastv2v.measure.cost import count_macs
from fastv2v.nn.blocks import InvertedResidual, ResidualBlock, init_gan_weights, norm_layer
from fastv2v.nn.composite import CompositeConfig, CompositeGenerator
from fastv2v.ops.warp import warp_backward
from fastv2v.render import render_clip

STUDENT = {"block": "inverted", "input_scale": 2}
CHANNELS, SIZE = 5, (16, 24)


def tiny(foreground=(), **settings):
    torch.manual_seed(0)
    defaults = {"width": 4, "num_downsamples": 2, "num_blocks": 2, "norm": "instance"}
    return CompositeGenerator(CompositeConfig(**{**defaults, **settings}), CHANNELS, foreground)


def inputs(batch=1, size=SIZE, valid=1.0, seed=0, past=2, channels=CHANNELS):
    """A one-hot condition and a history of noise."""
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, channels, (batch, past + 1, *size), generator=rng)
    conditions = F.one_hot(ids, channels).permute(0, 1, 4, 2, 3).float()
    frames = torch.rand(batch, past, 3, *size, generator=rng) * 2 - 1
    return conditions[:, -1], History(conditions[:, :-1], frames, torch.full((batch,), valid))


class TestPublishedSizes:
    @pytest.mark.parametrize(
        ("channels", "foreground", "teacher", "student"),
        [
            pytest.param(36, (26,), 411.335, 71.80, id="street"),
            pytest.param(36, (), 365.391, None, id="street without foreground"),
            pytest.param(15, (), 364.996, 63.17, id="face"),
            pytest.param(6, (), 364.827, 63.00, id="pose"),
        ],
    )
    def test_parameters_in_millions(self, channels, foreground, teacher, student):
        with torch.device("meta"):
            assert count(CompositeGenerator(CompositeConfig(), channels, foreground)) == pytest.approx(
                teacher, abs=5e-4
            )
            if student is not None:
                generator = CompositeGenerator(CompositeConfig(**STUDENT), channels, foreground)
                assert count(generator) == pytest.approx(student, abs=5e-3)

    @pytest.mark.parametrize(
        ("settings", "channels", "foreground", "size", "true", "output_position"),
        [
            pytest.param({}, 36, (26,), (256, 512), 1057.5, 1253.2, id="street"),
            pytest.param({}, 15, (), (512, 512), 1717.2, None, id="face"),
            pytest.param({}, 6, (), (512, 448), 1463.7, None, id="pose"),
            pytest.param(STUDENT, 36, (26,), (256, 512), 258.6, 454.2, id="street student"),
            pytest.param(STUDENT, 15, (), (512, 512), 418.1, 766.0, id="face student"),
            pytest.param(STUDENT, 6, (), (512, 448), 356.1, 660.5, id="pose student"),
            pytest.param(
                {"input_scale": 2}, 36, (26,), (256, 512), 953.9, 1149.6, id="street student of residual blocks"
            ),
        ],
    )
    def test_multiply_adds_in_billions(self, settings, channels, foreground, size, true, output_position):
        with FakeTensorMode():  # shapes only
            generator = CompositeGenerator(CompositeConfig(**settings), channels, foreground).eval()
            history = History(torch.zeros(1, 2, channels, *size), torch.zeros(1, 2, 3, *size), torch.ones(1))
            cost = count_macs(lambda: generator.step(torch.zeros(1, channels, *size), history), generator)
        assert cost.true_macs / 1e9 == pytest.approx(true, abs=0.06)
        if output_position is not None:
            assert cost.output_position_macs / 1e9 == pytest.approx(output_position, abs=0.06)

    def test_an_inverted_residual_block(self):
        with torch.device("meta"):
            assert sum(p.numel() for p in InvertedResidual(1024).parameters()) == 2_112_512

    def test_the_motion_head_has_the_weights_of_a_flow_head_and_an_occlusion_head(self):
        head = tiny(width=4).motion_head
        assert sum(p.numel() for p in head.parameters()) == (4 * 49 + 1) * 2 + (4 * 49 + 1) * 1


def count(module):
    return sum(p.numel() for p in module.parameters()) / 1e6


class TestBlocks:
    """Convolutions that pass on what they get show the shape of a block."""

    x = torch.tensor([-3.0, 1.0, 8.0]).view(1, 1, 1, 3).expand(1, 1, 3, 3)

    def passing_on(self, block):
        for layer in block.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.dirac_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        return block.eval()

    def test_an_inverted_residual_adds_a_branch_cut_to_0_and_6_with_a_linear_end(self):
        block = self.passing_on(InvertedResidual(1))
        assert_close(block(self.x)[0, 0, 0], torch.tensor([-3.0, 2.0, 14.0]), atol=1e-3, rtol=0)
        nn.init.constant_(block.branch[6].weight, -1.0)
        assert_close(block(self.x)[0, 0, 0], torch.tensor([-3.0, 0.0, 2.0]), atol=1e-3, rtol=0)

    def test_a_residual_adds_a_branch_with_one_activation_inside_and_none_behind(self):
        block = self.passing_on(ResidualBlock(1, norm="none"))
        assert_close(block(self.x)[0, 0, 0], torch.tensor([-3.0, 2.0, 16.0]))
        block.branch[5].weight.data.neg_()
        assert_close(block(self.x)[0, 0, 0], torch.tensor([-3.0, 0.0, 0.0]))

    def test_a_residual_reflects_at_the_border_and_an_inverted_one_pads_zeros(self):
        ones = torch.ones(1, 1, 3, 3)
        reflecting, padding = ResidualBlock(1, norm="none"), self.passing_on(InvertedResidual(1))
        self.passing_on(reflecting)
        for layer in (reflecting.branch[5], padding.branch[3]):
            nn.init.constant_(layer.weight, 1 / 9)
        assert_close(reflecting(ones), 2 * ones)
        assert padding(ones)[0, 0, 0, 0].item() == pytest.approx(1 + 4 / 9, abs=1e-3)


class TestPublishedOutputs:
    """Small instances of the published networks with weights, inputs and outputs of their own implementations."""

    @pytest.mark.parametrize("mode", ["train", "eval"])
    @pytest.mark.parametrize("name", ["composite", "sr_mobile_face_student_fg"])
    def test_step_equals_the_published_implementation(self, name, mode):
        folder = shared("reference-weights")
        described = json.loads((folder / f"{name}.json").read_text())
        data = {key: torch.from_numpy(value) for key, value in np.load(folder / f"{name}.npz").items()}
        generator = CompositeGenerator(
            CompositeConfig(
                width=described["ngf"],
                num_downsamples=described["n_downsample"],
                num_blocks=described["n_blocks"],
                warp_align_corners=described["warp_align_corners"],
                **(STUDENT if "mobile" in described["network"] else {}),
            ),
            described["input_channels"] // 3,
            (0,) if described["fg"] else (),
        )
        load_published(generator, torch.load(folder / f"{name}.pth", weights_only=True))
        if described["fg"]:  # the reference is handed its mask; ours reads it from the condition
            paint, mask = generator._paint_foreground, data["in2"].expand(-1, 1, -1, -1)
            generator._paint_foreground = lambda output, _, stack: paint(output, mask, stack)
        if generator.config.input_scale > 1:  # these outputs were made with a later torchvision, which anti-aliases
            generator._reduce = lambda x: F.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True)
        conditions = data["in0"].unflatten(1, (3, -1))
        history = History(conditions[:, :2], data["in1"].unflatten(1, (2, 3)), torch.ones(1))
        with torch.no_grad():
            output, _ = generator.train(mode == "train").step(conditions[:, 2], history)
        for i, part in enumerate([output.frame, output.flow, output.occlusion, output.hallucinated]):
            assert_close(part, data[f"{mode}/out.{i}"], atol=1e-4, rtol=1e-4, msg=lambda m, i=i: f"output {i}: {m}")


def load_published(generator, published):
    """Fill a generator from published tensors: our parts, in order of definition, under the reference's names."""
    parts = {
        "condition_encoder": ["model_down_seg"],
        "frame_encoder": ["model_down_img"],
        "image_decoder": ["model_res_img", "model_up_img"],
        "image_head": ["model_final_img"],
        "flow_decoder": ["model_res_flow", "model_up_flow"],
        "foreground_branch": ["indv_down", "indv_res", "indv_up"],
        "foreground_head": ["indv_final"],
    }
    for name, part in generator.named_children():
        if name == "motion_head":
            flow, weight = "model_final_flow.1", "model_final_w.1"
            found = [torch.cat([published.pop(f"{n}.{kind}") for n in (flow, weight)]) for kind in ("weight", "bias")]
        else:
            names = [key for prefix in parts[name] for key in published if key.startswith(f"{prefix}.")]
            found = [published.pop(key) for key in names]
        part.load_state_dict(dict(zip(part.state_dict(), found, strict=True)))
    assert not published


class TestShapes:
    @pytest.mark.parametrize("edge_kernel", [3, 7])
    @pytest.mark.parametrize("block", ["residual", "inverted"])
    @pytest.mark.parametrize("input_scale", [1, 2, 4])
    def test_the_output_has_full_size_at_every_input_scale(self, input_scale, block, edge_kernel):
        generator = tiny((1,), input_scale=input_scale, block=block, edge_kernel=edge_kernel)
        bottoms = []
        generator.condition_encoder.register_forward_hook(lambda *args: bottoms.append(args[2].shape[1:]))
        condition, history = inputs(2)
        output, after = generator.step(condition, history)
        assert output.frame.shape == output.hallucinated.shape == output.warped.shape == (2, 3, *SIZE)
        assert output.flow.shape == (2, 2, *SIZE)
        assert output.occlusion.shape == (2, 1, *SIZE)
        assert [x.shape for x in after[:3]] == [x.shape for x in history[:3]]
        assert bottoms == [(16, 4, 6)]  # the bottleneck is the teacher's at every scale

    @pytest.mark.parametrize("past", [1, 3])
    def test_other_history_lengths(self, past):
        generator = tiny(history_length=past)
        output, history = generator(*inputs(past=past))
        assert output.frame.shape == (1, 3, *SIZE)
        assert history.frames.shape == (1, past, 3, *SIZE)

    @pytest.mark.parametrize("input_scale", [1, 2, 4])
    def test_sizes_that_do_not_divide_are_refused(self, input_scale):
        generator = tiny(input_scale=input_scale)
        assert generator.size_multiple == 4
        generator.step(*inputs(size=(20, 28)))
        with pytest.raises(ShapeError, match="multiples of 4"):
            generator.step(*inputs(size=(16, 26)))

    @pytest.mark.parametrize(("settings", "least"), [({}, 8), ({"input_scale": 4}, 16), ({"num_downsamples": 3}, 16)])
    def test_frames_too_small_for_the_padding_are_refused(self, settings, least):
        generator = tiny(**settings)
        generator.step(*inputs(size=(least, least)))
        with pytest.raises(ShapeError, match=f"at least {least}x{least}"):
            generator.step(*inputs(size=(least, least - generator.size_multiple)))

    def test_conditions_and_histories_that_do_not_fit_are_refused(self):
        generator = tiny()
        condition, history = inputs()
        wrong = [
            (condition[:, :4], history),
            (condition, history._replace(conditions=history.conditions[:, :1])),
            (condition, history._replace(frames=history.frames[:, :1])),
            (condition, history._replace(frames=history.frames[..., :12])),
            (condition, history._replace(valid=torch.ones(2))),
        ]
        for arguments in wrong:
            with pytest.raises(ShapeError, match="conditions of 5 channels and a history of 2"):
                generator.step(*arguments)

    def test_it_is_a_step_model(self):
        generator = tiny()
        assert isinstance(generator, StepModel)
        assert (generator.condition_channels, generator.history_length) == (CHANNELS, 2)


class TestBlending:
    def test_occlusion_mixes_the_hallucinated_and_the_warped_frame(self):
        condition, history = inputs()
        output, _ = tiny().step(condition, history)
        assert_close(output.warped, warp_backward(history.frames[:, -1], output.flow))
        assert_close(output.frame, output.occlusion * output.hallucinated + (1 - output.occlusion) * output.warped)
        assert 0 < output.occlusion.min() < output.occlusion.max() < 1

    def test_flow_is_in_pixels_of_the_full_size(self):
        generator = tiny(input_scale=2, flow_scale=20.0)
        nn.init.zeros_(generator.motion_head.conv.weight)
        generator.motion_head.conv.bias.data = torch.tensor([0.1, -0.05, -30.0])
        condition, history = inputs()
        output, _ = generator.step(condition, history)
        assert_close(output.flow[0, :, 0, 0], torch.tensor([2.0, -1.0]))
        # Occlusion is all but 0, so the frame is the previous one, moved.
        assert_close(output.frame[..., 1:, :-2], history.frames[:, -1, :, :-1, 2:], atol=1e-5, rtol=0)

    def test_without_a_previous_frame_everything_is_hallucinated(self):
        output, history = tiny().step(*inputs(valid=0.0))
        assert torch.equal(output.frame, output.hallucinated)
        assert torch.equal(output.occlusion, torch.ones_like(output.occlusion))
        assert history.valid.tolist() == [1]

    def test_a_history_that_is_not_valid_has_no_influence(self):
        generator = tiny().eval()
        condition, history = inputs(valid=0.0)
        expected, _ = generator.step(condition, history._replace(frames=torch.zeros_like(history.frames)))
        output, _ = generator.step(condition, history)
        assert torch.equal(output.frame, expected.frame)

    def test_valid_counts_for_each_batch_entry(self):
        condition, history = inputs(2)
        output, _ = tiny().step(condition, history._replace(valid=torch.tensor([0.0, 1.0])))
        assert torch.equal(output.frame[0], output.hallucinated[0])
        assert not torch.allclose(output.frame[1], output.hallucinated[1])

    def test_without_a_flow_branch_the_frame_is_the_hallucinated_one(self):
        generator = tiny(use_flow=False)
        output, _ = generator.step(*inputs())
        assert output.frame is output.hallucinated
        assert output.flow is output.warped is output.occlusion is None
        assert not any("flow" in name or "motion" in name for name, _ in generator.named_parameters())


class TestForeground:
    @pytest.mark.parametrize("use_flow", [True, False])
    def test_foreground_pixels_are_drawn_and_never_warped(self, use_flow):
        generator = tiny((1, 3), use_flow=use_flow).eval()
        condition, history = inputs()
        drawn = generator.foreground_head(
            generator.foreground_branch(torch.cat([history.conditions.flatten(1, 2), condition], dim=1))
        ).tanh()
        output, _ = generator.step(condition, history)
        inside = (condition[:, 1] + condition[:, 3]).bool().unsqueeze(1).expand(-1, 3, -1, -1)
        assert_close(output.frame[inside], drawn[inside])
        assert_close(output.hallucinated[inside], drawn[inside])
        if use_flow:
            blend = output.occlusion * output.hallucinated + (1 - output.occlusion) * output.warped
            assert_close(output.frame[~inside], blend[~inside])

    def test_past_frames_reach_foreground_pixels_by_no_way(self):
        generator = tiny((0,))
        condition, history = inputs()
        frames = history.frames.clone().requires_grad_()
        output, _ = generator.step(condition, history._replace(frames=frames))
        mask = condition[:, :1]
        inside = torch.autograd.grad((output.frame * mask).sum(), frames, retain_graph=True)[0]
        outside = torch.autograd.grad((output.frame * (1 - mask)).sum(), frames)[0]
        assert not inside.any()
        assert outside.any()

    def test_soft_and_overlapping_masks_stay_within_0_and_1(self):
        generator = tiny((0, 1)).eval()
        condition, history = inputs()
        condition = torch.full_like(condition, 0.9)  # two channels sum up to 1.8
        output, _ = generator.step(condition, history)
        assert output.frame.abs().max() <= 1

    def test_unknown_channels_are_refused(self):
        with pytest.raises(ConfigError, match="foreground channel 5 does not exist"):
            tiny((2, 5))


class TestState:
    def test_two_videos_in_turn_equal_each_on_its_own(self):
        generator = tiny((1,)).eval()
        videos = [torch.cat([inputs(seed=s)[1].conditions for s in (seed, seed + 9)], dim=1) for seed in (1, 2)]
        given = [inputs(seed=seed)[1].frames for seed in (1, 2)]
        expected = [render_clip(generator, c, g) for c, g in zip(videos, given, strict=True)]
        histories = [History(c[:, :2], g, torch.ones(1)) for c, g in zip(videos, given, strict=True)]
        made = [[], []]
        with torch.no_grad():
            for t in (2, 3):
                for i in (0, 1):
                    output, histories[i] = generator.step(videos[i][:, t], histories[i])
                    made[i].append(output.frame)
        for i in (0, 1):
            assert torch.equal(torch.stack(made[i], dim=1), expected[i][:, 2:])

    def test_a_step_changes_neither_its_inputs_nor_the_generator_in_evaluation_mode(self):
        generator = tiny(norm="batch").eval()
        condition, history = inputs()
        before = [x.clone() for x in (condition, *history[:3], *generator.state_dict().values())]
        generator.step(condition, history)
        after = [condition, *history[:3], *generator.state_dict().values()]
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))

    @pytest.mark.parametrize("settings", [{}, {"norm": "batch", **STUDENT}])
    def test_batch_entries_are_independent(self, settings):
        generator = tiny((1,), **settings).eval()
        condition, history = inputs(3)
        together, _ = generator.step(condition, history)
        for i in range(3):
            alone, _ = generator.step(condition[i : i + 1], History(*(x[i : i + 1] for x in history[:3])))
            assert_close(together.frame[i : i + 1], alone.frame, atol=1e-5, rtol=1e-4)

    def test_the_history_moves_on_by_this_step(self):
        condition, history = inputs()
        output, after = tiny().step(condition, history)
        assert torch.equal(after.frames[:, 0], history.frames[:, 1])
        assert torch.equal(after.frames[:, 1], output.frame)
        assert torch.equal(after.conditions[:, 1], condition)


class TestTraining:
    @pytest.mark.parametrize(
        "settings", [{}, {"norm": "batch"}, {"edge_kernel": 3}, STUDENT, {"input_scale": 4}, {"use_flow": False}]
    )
    def test_every_parameter_gets_a_gradient_from_the_frame(self, settings):
        generator = tiny((1,), **settings)
        output, _ = generator.step(*inputs(2))
        (output.frame * torch.randn(output.frame.shape)).sum().backward()
        without = [name for name, p in generator.named_parameters() if p.grad is None]
        dead = [name for name, p in generator.named_parameters() if p.ndim > 1 and not p.grad.any()]
        assert (without, dead) == ([], [])

    def test_bf16_keeps_frames_and_flow_in_float32(self):
        generator = tiny((1,)).eval()
        condition, history = inputs()
        exact, _ = generator.step(condition, history)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output, after = generator.step(condition, history)
        assert {x.dtype for x in (*output, *after[:3])} == {torch.float32}
        assert (output.frame - exact.frame).abs().mean() < 0.02

    def test_weights_are_drawn_narrow_and_independent(self):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(64, 64, 3), nn.BatchNorm2d(640), nn.ConvTranspose2d(64, 64, 3))
        init_gan_weights(net)
        for convolution in (net[0], net[2]):
            assert convolution.weight.std().item() == pytest.approx(0.02, rel=0.03)
        assert net[1].weight.mean().item() == pytest.approx(1, abs=0.005)
        assert net[1].weight.std().item() == pytest.approx(0.02, rel=0.15)
        assert not net[1].bias.any()
        twins = tiny()
        for image, motion in zip(twins.image_decoder.parameters(), twins.flow_decoder.parameters(), strict=True):
            assert image.ndim == 1 or not torch.equal(image, motion)


class TestConfig:
    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"history_length": 0}, "history_length must be at least 1"),
            ({"width": 0}, "width must be at least 1"),
            ({"edge_kernel": 4}, "edge_kernel must be odd"),
            ({"num_blocks": 1}, "num_blocks must be at least 2"),
            ({"input_scale": 3}, "input_scale must be 1, 2 or 4"),
            ({"input_scale": 4, "num_downsamples": 1}, "at most 2\\^num_downsamples"),
            ({"norm": "layer"}, "norm is one of batch, instance, none"),
            ({"block": "dense"}, "block one of residual, inverted"),
            ({"flow_scale": 0.0}, "flow_scale must be positive"),
        ],
    )
    def test_nonsense_is_refused(self, wrong, message):
        with pytest.raises(ConfigError, match=message):
            CompositeConfig(**wrong)

    def test_norms(self):
        assert norm_layer("batch", 4).affine
        assert not norm_layer("instance", 4).affine
        assert isinstance(norm_layer("none", 4), nn.Identity)


class TestSkips:
    """Features of the encoders added in the decoders, beyond vid2vid."""

    @pytest.mark.parametrize("settings", [{}, {"input_scale": 2}, {"input_scale": 4}, {"foreground": (1,)}])
    def test_they_change_the_picture_but_neither_weights_nor_shapes(self, settings):
        plain, skipping = tiny(**settings), tiny(**settings, skips=True)
        skipping.load_state_dict(plain.state_dict())
        size = (32, 48)
        a, _ = plain.step(*inputs(size=size))
        b, _ = skipping.step(*inputs(size=size))
        assert b.frame.shape == a.frame.shape
        # Reduced to a quarter, two halvings leave no decoder feature of an encoder's size.
        assert torch.equal(a.frame, b.frame) == (settings.get("input_scale") == 4)

    def test_a_pixel_of_the_condition_reaches_the_picture_past_a_blocked_bottleneck(self):
        model = tiny(skips=True, norm="none", use_flow=False).eval()
        for blocks in (model.image_decoder[0], model.image_decoder[1][0]):
            for parameter in blocks.parameters():
                parameter.data.zero_()  # what remains of the bottleneck is the identity of its blocks
        model.condition_encoder[0][2][0].weight.data.zero_()
        condition, history = inputs()
        condition.requires_grad_()
        output, _ = model.step(condition, history)
        output.frame[0, :, 8, 12].sum().backward()
        assert condition.grad[0, :, 8, 12].abs().sum() > 0

    def test_without_a_past_the_past_has_no_say(self):
        model = tiny(skips=True)
        condition, history = inputs(valid=0.0)
        a, _ = model.step(condition, history)
        b, _ = model.step(condition, history._replace(frames=torch.zeros_like(history.frames)))
        assert_close(a.frame, b.frame)
