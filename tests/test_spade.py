from dataclasses import replace
from functools import partial

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_composite import inputs as composite_inputs
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close

from distill.features import feature_channels
from fastv2v.architecture import Architecture
from fastv2v.config import from_dict, to_dict
from fastv2v.contracts import History, StepModel
from fastv2v.data.clip import Clip
from fastv2v.data.conditions import ConditionSpec
from fastv2v.data.folder import FolderConfig, open_folder
from fastv2v.data.loader import ClipLoader
from fastv2v.data.sampling import SamplingConfig
from fastv2v.data.transforms import GeometryConfig
from fastv2v.data.unprojection import write_unprojection
from fastv2v.device import DeviceConfig, open_device
from fastv2v.errors import ConfigError, ShapeError
from fastv2v.losses.guidance import guidance_loss, unseen_loss
from fastv2v.losses.objective import LossWeights, ObjectiveConfig, VideoObjective
from fastv2v.losses.rollout import CheckpointedStep, RolloutConfig, run_ahead
from fastv2v.nn.composite import CompositeConfig, CompositeGenerator
from fastv2v.nn.discriminator import DiscriminatorConfig
from fastv2v.nn.generators import build_generator
from fastv2v.nn.norms import batch_statistics
from fastv2v.nn.spade import (
    Hint,
    Modulation,
    ModulationConfig,
    MultiSpade,
    PartialModulation,
    SpadeConfig,
    SpadeGenerator,
    guidance_at,
    partial_conv,
)
from fastv2v.nn.spade_image import SpadeImageConfig, SpadeImageGenerator
from fastv2v.nn.spectral import SpectralNorm, spectral_norm
from fastv2v.ops.flow import DISFlow
from fastv2v.ops.painter import empty_world, paint, render_levels
from fastv2v.recipe import UNSET_ROOT
from fastv2v.render import Chunk, render_clip, rollout_chunks, stack_outputs, start_history
from fastv2v.run import open_run
from fastv2v.seed import generator_for
from fastv2v.train import TrainConfig, fit
from students.inherit import inherit_weights
from teachers.presets import FIRST_PRESETS, PRESETS
from teachers.task import TeacherTask, TeacherTaskConfig

LABELS, SIZE = 3, (16, 24)
SHAPE = SpadeConfig(
    base_width=3,
    max_width=12,
    frame_downsamples=2,
    bottleneck_blocks=2,
    flow_width=3,
    flow_downsamples=2,
    flow_blocks=1,
    guidance=ModulationConfig(hidden=4),
)
IMAGE = SpadeImageConfig(finest_width=2, doublings=3, label=ModulationConfig(hidden=2), norm="instance")


def spade(levels=0, **settings):
    torch.manual_seed(0)
    return SpadeGenerator(replace(SHAPE, **settings), LABELS + 4 * levels, levels)


def inputs(levels=0, batch=1, valid=1.0, seed=0):
    """A condition whose guidance is noise with holes, and a history of noise."""
    condition, history = composite_inputs(batch, SIZE, valid, seed, channels=LABELS)
    if not levels:
        return condition, history
    rng = torch.Generator().manual_seed(seed)
    mask = (torch.rand(batch, levels, 1, *SIZE, generator=rng) < 0.5).float()
    colours = torch.rand(batch, levels, 3, *SIZE, generator=rng) * 2 - 1
    guidance = torch.cat([colours * mask, mask], dim=2).flatten(1, 2)
    past = history.conditions
    none = past.new_zeros(batch, past.shape[1], 4 * levels, *SIZE)
    return torch.cat([condition, guidance], dim=1), history._replace(conditions=torch.cat([past, none], dim=2))


def without_gradient(module):
    return [name for name, p in module.named_parameters() if p.grad is None]


def millions(module):
    return sum(p.numel() for p in module.parameters()) / 1e6


class TestPublishedSizes:
    """Millions of weights of the published recipe for streets, counted from its layers by others."""

    def test_the_video_generator(self):
        with FakeTensorMode():
            generator = SpadeGenerator(SpadeConfig(scratch_blocks=3), 35 + 4, 1)
        parts = {
            "up": 46.1,
            "middle": 226.5,
            "label_embedding": 12.6,
            "flow_embedding": 14.1,
            "flow_network": 132.2,
            "scratch": 169.9,
        }
        for name, expected in parts.items():
            assert millions(getattr(generator, name)) == pytest.approx(expected, abs=0.05), name
        # 633.5, but for the modulations by flow and guidance in its encoder, which never run.
        unused = 3 * [0.0]
        for i, (c_in, c_out) in enumerate([(32, 64), (64, 128), (128, 256)]):
            for c in (c_in, c_in, c_in):  # before both convolutions and in the shortcut; the inner width is c_in
                flow = (c_in * 9 + 1) * 2 * c
                guidance = (4 * 9 + 1) * 128 + (128 * 9 + 1) * 2 * c
                unused[i] += (flow + guidance) / 1e6
            assert c_out == 2 * c_in
        assert millions(generator) + sum(unused) == pytest.approx(633.519, abs=0.01)

    def test_presets_build(self):
        for name in ("world", "world-small", "world-plain", "world-small-plain"):
            recipe = PRESETS[name]()
            assert isinstance(recipe.generator, SpadeConfig)
            levels = recipe.data.folder.guidance_levels
            assert (levels == 0) == name.endswith("plain")
            with FakeTensorMode():
                generator = build_generator(recipe.generator, 20 + 4 * levels, guidance_levels=levels)
            height, width = recipe.data.folder.geometry.size
            assert height % generator.size_multiple == width % generator.size_multiple == 0
        for name in ("world", "world-small"):
            recipe = FIRST_PRESETS[name]()
            assert isinstance(recipe.generator, SpadeImageConfig)
            assert recipe.data.folder.guidance_levels == 0


class TestMultiSpade:
    sources = {  # noqa: RUF012
        "label": (2, ModulationConfig()),
        "flow": (3, ModulationConfig(kernel=1)),
        "guidance": (4, ModulationConfig(hidden=5)),
    }

    def hints(self, *names):
        rng = torch.Generator().manual_seed(1)
        return {name: Hint(torch.randn(2, self.sources[name][0], 4, 6, generator=rng)) for name in self.sources}

    def layer(self, *names):
        torch.manual_seed(0)
        return MultiSpade(3, {name: self.sources[name] for name in names})

    def test_it_is_the_chain_of_its_modulations_on_one_instance_norm(self):
        x, hints, layer = torch.randn(2, 3, 4, 6), self.hints(), self.layer("label", "flow", "guidance")
        y = (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()
        for name in self.sources:
            gamma, beta = layer.modulations[name](hints[name].maps)
            y = y * (1 + gamma) + beta
        assert_close(layer(x, hints), y)

    def test_a_last_branch_of_zeros_changes_nothing(self):
        x, hints = torch.randn(2, 3, 4, 6), self.hints()
        two, three = self.layer("label", "flow"), self.layer("label", "flow", "guidance")
        three.load_state_dict(two.state_dict(), strict=False)
        assert not torch.allclose(two(x, hints), three(x, hints))
        for parameter in three.modulations["guidance"].last.parameters():
            nn.init.zeros_(parameter)
        assert torch.equal(two(x, hints), three(x, hints))

    def test_order_matters(self):
        x, hints = torch.randn(2, 3, 4, 6), self.hints()
        a, b = self.layer("label", "flow"), self.layer("flow", "label")
        b.load_state_dict(a.state_dict())
        assert not torch.allclose(a(x, hints), b(x, hints))

    def test_a_hint_of_weight_zero_is_no_hint(self):
        x, hints = torch.randn(2, 3, 4, 6), self.hints()
        gated = {**hints, "flow": Hint(hints["flow"].maps, torch.tensor([0.0, 1.0]).view(2, 1, 1, 1))}
        one, two = self.layer("label"), self.layer("label", "flow")
        one.load_state_dict(two.state_dict(), strict=False)
        made = two(x, gated)
        assert_close(made[0], one(x, hints)[0])
        assert_close(made[1], two(x, hints)[1])


class TestPartialConvolution:
    def conv(self):
        conv = nn.Conv2d(1, 1, 3, padding=1)
        nn.init.constant_(conv.weight, 1.0)
        nn.init.constant_(conv.bias, 2.0)
        return conv

    def test_sums_are_scaled_up_by_what_is_missing(self):
        x, mask = torch.full((1, 1, 3, 5), 7.0), torch.zeros(1, 1, 3, 5)
        mask[0, 0, 1, 0] = mask[0, 0, 0, 1] = 1
        made, known = partial_conv(self.conv(), x, mask)
        # Two pixels under the kernel at (1, 1): their sum 14 times 9/2, plus the bias; one at (2, 0) and at (1, 2).
        assert made[0, 0, 1, 1].item() == pytest.approx(14 * 4.5 + 2, rel=1e-5)
        assert made[0, 0, 1, 2].item() == made[0, 0, 2, 0].item() == pytest.approx(7 * 9 + 2, rel=1e-5)
        assert (made[0, 0, :, 3:] == 0).all() and (known[0, 0, :, 3:] == 0).all()
        assert known[0, 0, 1, 1] == 1

    def test_where_no_colour_is_near_nothing_is_modulated(self):
        torch.manual_seed(0)
        modulation = PartialModulation(4, 2, ModulationConfig(hidden=3))
        for parameter in modulation.parameters():
            nn.init.normal_(parameter)
        maps = torch.randn(1, 4, 3, 9)
        maps[:, 3] = 0
        maps[:, 3, 1, 0] = 1
        gamma, beta = modulation(maps)
        assert (gamma[..., 3:] == 0).all() and (beta[..., 3:] == 0).all()  # two kernels of 3 reach two pixels
        assert (gamma[:, :, 1, 1] != 0).all()

    def test_full_knowledge_is_a_plain_convolution_inside(self):
        x, mask = torch.randn(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
        conv = self.conv()
        assert_close(partial_conv(conv, x, mask)[0][..., 1:-1, 1:-1], conv(x)[..., 1:-1, 1:-1], rtol=1e-4, atol=1e-4)


class TestGuidance:
    def test_each_scale_gets_its_own_level_exactly(self):
        rng = torch.Generator().manual_seed(0)
        frame = torch.rand(1, 3, 8, 16, generator=rng) * 2 - 1
        points = [torch.randint(-1, 20, (1, 8 >> k, 16 >> k), generator=rng, dtype=torch.int32) for k in range(3)]
        world = paint(empty_world(1, 20), frame, points[0])
        channels = render_levels(world, points)
        for k in range(3):
            assert torch.equal(guidance_at(channels, k), render_levels(world, [points[k]]))
        assert torch.equal(guidance_at(channels[:, :4], 2), channels[:, :4, ::4, ::4])  # one level: thinned out

    def test_it_is_built_into_the_finest_decoder_blocks_alone(self):
        generator = spade(3, frame_downsamples=3)
        named = {name.split(".modulations")[0] for name, _ in generator.named_parameters() if ".guidance." in name}
        assert {".".join(name.split(".")[:2]) for name in named} == {"up.0", "up.1", "up.2"}
        assert not [name for name, _ in spade(0).named_parameters() if ".guidance." in name]

    @pytest.mark.parametrize("combine", ["modulate", "blend"])
    def test_the_frame_depends_on_it_and_the_bottleneck_does_not(self, combine):
        generator = spade(2, combine=combine)
        condition, history = inputs(2)
        condition.requires_grad_()
        seen = []
        generator.up[-1].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        output, _ = generator.step(condition, history)
        (gradient,) = torch.autograd.grad(output.frame.sum(), condition, retain_graph=True)
        assert gradient[:, LABELS:].abs().sum() > 0
        (gradient,) = torch.autograd.grad(seen[0].sum(), condition)
        assert (gradient[:, LABELS:] == 0).all()

    def test_too_many_levels_are_refused(self):
        with pytest.raises(ConfigError, match="combine_scales lets 1 blocks see them"):
            spade(2, combine_scales=1)


@pytest.mark.parametrize("settings", [{}, {"combine": "blend"}, {"partial_guidance": True}, {"spectral": False}])
def test_every_weight_gets_a_gradient(settings):
    generator = spade(2, **settings)
    output, _ = generator.step(*inputs(2))
    (output.frame.square().mean() + output.flow.mean() + output.occlusion.mean()).backward()
    assert without_gradient(generator) == []


def test_every_weight_of_a_start_from_nothing_gets_a_gradient_too():
    generator = spade(scratch_blocks=1)
    output, _ = generator.step(*inputs(valid=0.0))
    output.frame.square().mean().backward()
    assert {name.split(".")[0] for name in without_gradient(generator)} == set()
    assert all(p.grad.abs().sum() > 0 for p in generator.scratch[0].conv_0.parameters() if p.ndim > 1)


class TestStep:
    def test_it_is_a_step_model(self):
        generator = spade(2)
        assert isinstance(generator, StepModel)
        condition, history = inputs(2, batch=2)
        output, after = generator.step(condition, history)
        assert output.frame.shape == output.warped.shape == (2, 3, *SIZE)
        assert output.flow.shape == (2, 2, *SIZE) and output.occlusion.shape == (2, 1, *SIZE)
        assert torch.equal(after.frames[:, -1], output.frame)
        assert generator.condition_channels == LABELS + 8

    def test_modulating_draws_the_frame_and_blending_mixes_it(self):
        output, _ = spade().step(*inputs())
        assert output.frame is output.hallucinated
        output, _ = spade(combine="blend").step(*inputs())
        mixed = output.occlusion * output.hallucinated + (1 - output.occlusion) * output.warped
        assert_close(output.frame, mixed)

    @pytest.mark.parametrize("settings", [{}, {"combine": "blend"}, {"scratch_blocks": 1}])
    def test_without_a_past_frame_nothing_of_it_is_used(self, settings):
        generator = spade(1, **settings).eval()
        condition, history = inputs(1, valid=0.0)
        a, _ = generator.step(condition, history)
        b, _ = generator.step(condition, history._replace(frames=torch.zeros_like(history.frames)))
        assert torch.equal(a.frame, b.frame)
        assert (a.occlusion == 1).all()

    def test_samples_of_a_batch_do_not_mix(self):
        generator = spade(2).eval()
        one, two = inputs(2, seed=1), inputs(2, seed=2, valid=0.0)
        both = generator.step(
            torch.cat([one[0], two[0]]), History(*(torch.cat(p) for p in zip(one[1][:3], two[1][:3], strict=True)))
        )
        assert_close(both[0].frame[:1], generator.step(*one)[0].frame, rtol=1e-4, atol=1e-5)
        assert_close(both[0].frame[1:], generator.step(*two)[0].frame, rtol=1e-4, atol=1e-5)

    def test_a_clip_renders(self):
        condition, _ = inputs()
        frames = render_clip(spade().eval(), condition.expand(4, -1, -1, -1)[None], None)
        assert frames.shape == (1, 4, 3, *SIZE) and frames.isfinite().all()

    def test_wrong_sizes_and_channels_are_refused(self):
        generator = spade()
        condition, history = inputs()
        with pytest.raises(ShapeError, match="multiples of 8"):
            generator.step(condition[..., :20], history)
        with pytest.raises(ShapeError, match="wants conditions of 3 channels"):
            generator.step(condition[:, :2], history)

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"base_width": 0}, "base_width must be at least 1"),
            ({"bottleneck_blocks": 3}, "must be an even number"),
            ({"combine": "mix"}, "modulate, blend"),
            ({"combine_scales": 4}, "must lie in 1 to 3"),
            ({"flow_scale": 0.0}, "flow_scale must be positive"),
            ({"max_width": 2}, "must not be below"),
            ({"scratch_blocks": -1}, "0 .none. or more"),
        ],
    )
    def test_nonsense_is_refused(self, wrong, message):
        with pytest.raises(ConfigError, match=message):
            replace(SHAPE, **wrong)
        with pytest.raises(ConfigError, match="kernel must be odd"):
            ModulationConfig(kernel=2)


def test_it_hands_no_weights_down():
    student = CompositeGenerator(CompositeConfig(width=2, num_downsamples=2, num_blocks=2), LABELS)
    with pytest.raises(ConfigError, match="a SPADE generator hands no weights down"):
        inherit_weights(student, spade())


class TestArchitecture:
    spec = ConditionSpec(class_names=("a", "b", "c"), guidance_levels=2)

    def describe(self, **changes):
        settings = {"generator": SHAPE, "condition": self.spec, "size": SIZE, "folder": FolderConfig(root=UNSET_ROOT)}
        return Architecture(**{**settings, **changes})

    def test_a_record_builds_the_same_generator(self):
        record = from_dict(Architecture, to_dict(self.describe()))
        assert record.generator == SHAPE
        generator = record.build_video()
        assert isinstance(generator, SpadeGenerator) and generator.guidance_levels == 2
        first = self.describe(generator=IMAGE, stage="first", condition=replace(self.spec, guidance_levels=0))
        assert isinstance(from_dict(Architecture, to_dict(first)).build(), SpadeImageGenerator)

    def test_a_foreground_is_refused(self):
        with pytest.raises(ConfigError, match="no foreground branch"):
            self.describe(foreground=("a",)).build()


class TestSpectralNorm:
    def test_the_largest_singular_value_becomes_one(self):
        torch.manual_seed(0)
        conv = nn.Conv2d(4, 6, 3)
        before = conv.weight.detach().clone()
        spectral_norm(conv)
        for _ in range(30):
            weight = conv.weight
        sigma = torch.linalg.svdvals(before.flatten(1))[0]
        assert_close(weight, before / sigma, rtol=1e-4, atol=1e-6)

    def test_it_agrees_with_torch(self):
        torch.manual_seed(0)
        ours, theirs = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        theirs.load_state_dict(ours.state_dict())
        spectral_norm(ours)
        nn.utils.parametrizations.spectral_norm(theirs)
        for _ in range(50):
            a, b = ours.weight, theirs.weight
        assert_close(a, b, rtol=1e-4, atol=1e-6)
        goal = torch.randn_like(a)
        for layer, weight in ((ours, a), (theirs, b)):
            (weight * goal).sum().backward()
            assert layer.parametrizations.weight.original.grad is not None
        assert_close(
            ours.parametrizations.weight.original.grad,
            theirs.parametrizations.weight.original.grad,
            rtol=1e-3,
            atol=1e-5,
        )

    def test_evaluation_and_autocast_leave_the_estimate_alone(self):
        torch.manual_seed(0)
        conv = nn.Conv2d(4, 6, 3)
        spectral_norm(conv)
        conv.eval()
        plain = conv.weight
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(conv.weight, plain)
        assert conv.weight.dtype == torch.float32

    def test_main_convolutions_have_it_and_modulations_and_heads_do_not(self):
        generator = spade(1)
        normed = {
            name.split(".parametrizations")[0] for name, m in generator.named_modules() if type(m) is SpectralNorm
        }
        assert "up.0.conv_0" in normed and "flow_network.labels.0.0" in normed and "label_embedding.entry" in normed
        plain = {n for n, m in generator.named_modules() if isinstance(m, Modulation)} | {"image_head", "frame_entry"}
        assert not any(name.startswith(tuple(plain)) or "head" in name for name in normed)

    def test_gradient_checkpointing_changes_nothing(self):
        results = []
        for checkpointed in (False, True):
            generator = spade(1, combine="blend").train()
            model = CheckpointedStep(generator) if checkpointed else generator
            conditions = torch.stack([inputs(1, seed=s)[0] for s in range(3)], dim=1)
            chunk = next(rollout_chunks(model, conditions, inputs(1)[1], start=0, chunk_frames=0, backprop_frames=3))
            chunk.output.frame.square().mean().backward()
            results.append(([p.grad for p in generator.parameters()], [b.clone() for b in generator.buffers()]))
        for plain, again in zip(*results, strict=True):
            for a, b in zip(plain, again, strict=True):
                assert_close(a, b, rtol=1e-4, atol=1e-7)


class TestLosses:
    frame = torch.tensor([[0.5, -0.5], [1.0, 0.0]]).expand(1, 3, 2, 2)

    def guidance(self, mask, colour=0.0):
        mask = torch.tensor(mask).view(1, 1, 2, 2)
        return torch.cat([torch.full((1, 3, 2, 2), colour) * mask, mask], dim=1)

    def test_the_guidance_term_by_hand(self):
        guidance = self.guidance([[1.0, 0.0], [1.0, 0.0]], colour=0.25)
        assert guidance_loss(self.frame, guidance).item() == pytest.approx((0.25 + 0.75) / 2)

    def test_more_holes_change_nothing(self):
        guidance = self.guidance([[1.0, 1.0], [0.0, 0.0]], colour=-1.0)
        wider = F.pad(guidance, (0, 3, 0, 5))
        assert_close(
            guidance_loss(F.pad(self.frame, (0, 3, 0, 5), value=0.7), wider), guidance_loss(self.frame, guidance)
        )

    def test_an_empty_mask_gives_zero_and_zero_gradient(self):
        frame = self.frame.clone().requires_grad_()
        loss = guidance_loss(frame, torch.zeros(1, 4, 2, 2))
        assert loss.item() == 0
        loss.backward()
        assert (frame.grad == 0).all()

    def test_it_is_float32(self):
        assert (
            guidance_loss(self.frame.bfloat16(), self.guidance([[1.0, 1.0], [0.0, 0.0]]).bfloat16()).dtype
            == torch.float32
        )

    def test_the_unseen_term_by_hand(self):
        occlusion = torch.tensor([0.25, 0.25]).view(1, 1, 1, 2)
        real = torch.zeros(1, 3, 1, 2)
        warped = torch.tensor([0.0, 0.2]).view(1, 1, 1, 2).expand(1, 3, 1, 2)  # 0 and 0.6 off, over three colours
        expected = (0.25 + (0.4 * 0.25 + 0.6 * 0.75)) / 2
        assert unseen_loss(occlusion, warped, real, torch.ones(1, 1, 1, 1)).item() == pytest.approx(expected)
        assert unseen_loss(occlusion, warped, real, torch.zeros(1, 1, 1, 1)).item() == 0


OBJECTIVE = ObjectiveConfig(
    weights=LossWeights(
        perceptual=0.0,
        reconstruction=1.0,
        own_warp=1.0,
        unseen=1.0,
        guidance=2.0,
        temporal_gan=0.0,
        temporal_feature_matching=0.0,
    ),
    image_discriminator=DiscriminatorConfig(width=2, num_layers=1, num_scales=1, norm="instance"),
    temporal_scales=0,
    gan="hinge",
)


def objective(levels=1, config=OBJECTIVE):
    torch.manual_seed(0)
    return VideoObjective(config, LABELS + 4 * levels, None, DISFlow("ultrafast"), guidance_levels=levels)


class TestObjective:
    def chunk(self, generator, levels=1):
        condition, history = inputs(levels)
        output, _ = generator.step(condition, history)
        guidance = condition[:, None, LABELS:] if levels else None
        return Chunk(2, stack_outputs([output]), history.frames[:, -1:], torch.ones(1, 1), guidance), condition

    def losses(self, generator, target, levels=1):
        chunk, condition = self.chunk(generator, levels)
        real = torch.rand(1, 3, 3, *SIZE, generator=torch.Generator().manual_seed(5)) * 2 - 1
        reference = target.reference(condition[:, None].expand(-1, 3, -1, -1, -1), real)
        return target.chunk_losses(chunk, reference, []), chunk, real[:, 2]

    def test_terms_and_weights_meet(self):
        for levels in (0, 1):
            target = objective(levels)
            found, chunk, real = self.losses(spade(levels), target, levels)
            weights = target.weights(uses_flow=True)
            assert {p: set(t) for p, t in found.items()} == {p: set(t) for p, t in weights.items()}
            assert ("guidance" in found["generator"]) == bool(levels)
            assert_close(found["generator"]["own_warp"], (chunk.output.warped[:, 0] - real).abs().mean())
        assert_close(found["generator"]["guidance"], guidance_loss(chunk.output.frame, chunk.guidance))

    def test_discriminators_do_not_see_guidance(self):
        net = objective(1).discriminators["image_discriminator"]
        assert net.nets[0].blocks[0][0].in_channels == LABELS + 3
        target, generator = objective(1), spade(1)
        chunk, condition = self.chunk(generator)
        frames = torch.zeros(1, 3, 3, *SIZE)
        totals = []
        for shown in (condition, torch.cat([condition[:, :LABELS], 5 * condition[:, LABELS:]], dim=1)):
            reference = target.reference(shown[:, None].expand(-1, 3, -1, -1, -1), frames)
            totals.append(target.chunk_losses(chunk, reference, [])["image_discriminator"]["fake"])
        assert torch.equal(*totals)

    def test_a_drawn_frame_is_judged_once(self):
        found, chunk, real = self.losses(spade(1), objective(1))
        assert_close(found["generator"]["reconstruction"], (chunk.output.frame[:, 0] - real).abs().mean())
        found, chunk, real = self.losses(spade(1, combine="blend"), objective(1))
        twice = sum((x[:, 0] - real).abs().mean() for x in (chunk.output.frame, chunk.output.hallucinated))
        assert_close(found["generator"]["reconstruction"], twice)

    def test_a_rollout_that_hides_its_guidance_is_refused(self):
        target, generator = objective(1), spade(1)
        chunk, condition = self.chunk(generator)
        reference = target.reference(condition[:, None].expand(-1, 3, -1, -1, -1), torch.zeros(1, 3, 3, *SIZE))
        with pytest.raises(ShapeError, match="what guidance each frame was given"):
            target.chunk_losses(chunk._replace(guidance=None), reference, [])


class TestImageGenerator:
    def test_it_draws_from_the_label_alone_and_uses_all_its_weights(self):
        torch.manual_seed(0)
        generator = SpadeImageGenerator(IMAGE, LABELS)
        condition, history = inputs()
        output, after = generator.step(condition, start_history(condition[:, None, :], history.frames[:, -1:], 1))
        assert output.frame.shape == (1, 3, *SIZE)
        assert torch.equal(after.frames[:, -1], output.frame)
        output.frame.square().mean().backward()
        assert without_gradient(generator) == []

    def test_published_size(self):
        with FakeTensorMode():
            generator = SpadeImageGenerator(SpadeImageConfig(), 35)
            assert generator(torch.zeros(1, 35, 64, 128)).shape == (1, 3, 64, 128)
        assert generator.entry.out_channels == 2048

    def test_wrong_inputs_are_refused(self):
        generator = SpadeImageGenerator(IMAGE, LABELS)
        with pytest.raises(ShapeError, match="wants conditions"):
            generator(torch.zeros(1, 2, *SIZE))
        with pytest.raises(ShapeError, match="multiples of 8"):
            generator(torch.zeros(1, LABELS, 12, 24))
        with pytest.raises(ConfigError, match="doublings at least 2"):
            SpadeImageConfig(doublings=1)


SPEC = ConditionSpec(class_names=("road", "car", "sky"))


def make_clip(index=0, frames=5):
    rng = generator_for(3, index)
    labels = torch.randint(0, 3, (1, frames, *SIZE), generator=rng, dtype=torch.uint8)
    colours = torch.tensor([[-0.8, -0.8, -0.6], [0.9, -0.5, -0.5], [0.2, 0.4, 0.9]])
    return Clip(frames=colours[labels.long()].movedim(-1, 2), labels=labels)


def make_task(first=None, **rollout):
    generator = spade(combine="blend")
    config = TeacherTaskConfig(objective=OBJECTIVE, rollout=RolloutConfig(**{"chunk_frames": 1, **rollout}))
    return TeacherTask(generator, SPEC, objective(0), config, (), first)


class TestGuidedTraining:
    """With the painter in the loop."""

    def chunks(self, start):
        torch.manual_seed(0)
        levels, config = 2, replace(OBJECTIVE, weights=replace(OBJECTIVE.weights, gan=0.0, feature_matching=0.0))
        rollout = {"nothing": (1, 0), "one": (0, 1), "full": (0, 0)}[start]
        task = TeacherTask(
            spade(levels),
            replace(SPEC, guidance_levels=levels),
            objective(levels, config),
            TeacherTaskConfig(
                objective=config,
                rollout=RolloutConfig(chunk_frames=1, start_from_nothing=rollout[0], start_from_one=rollout[1]),
            ),
        )
        ids = torch.arange(SIZE[0] * SIZE[1], dtype=torch.int32).view(SIZE)
        still = tuple(ids[:: 2**k, :: 2**k].expand(1, 5, -1, -1) for k in range(levels))
        return task, task.step(replace(make_clip(), points=still), torch.Generator(), 0)

    def test_what_was_painted_comes_back_as_guidance(self):
        task, chunks = self.chunks("full")
        for losses in chunks:
            assert losses["generator"]["guidance"].item() > 0
            task.generator.zero_grad()
            torch.stack(list(losses["generator"].values())).sum().backward()
            assert without_gradient(task.generator) == []

    def test_the_first_frame_of_all_has_none_and_paints(self):
        _, chunks = self.chunks("nothing")
        first, second, *_ = (losses["generator"]["guidance"] for losses in chunks)
        assert first.item() == 0 and second.item() > 0


def test_feature_distillation_finds_its_inner_maps():
    generator = spade(1)
    assert feature_channels(generator) == {"bottom": SHAPE.widths[-1], "decoder": SHAPE.widths[0]}


def make_clips(start):
    while True:
        yield make_clip(start)
        start += 1


def train(task, folder, steps, clips=make_clips):
    with open_run(folder, {}) as run:
        config = TrainConfig(steps=4, eval_every=0, sample_every=0, checkpoint_every=steps, keep_checkpoints=9)
        return fit(task, clips, run, config, open_device(DeviceConfig(cpu=True, precision="fp32")))


def guided_task(spec):
    rollout = RolloutConfig(chunk_frames=1)
    config = TeacherTaskConfig(objective=OBJECTIVE, rollout=rollout, lead_in=3)
    return TeacherTask(spade(2), spec, objective(2), config)


def write_guided(root):
    """Eight noisy frames of a still world."""
    rng = np.random.default_rng(0)
    for kind in ("A", "B", "unprojections"):
        (root / f"train_{kind}" / "seq").mkdir(parents=True)
    ids = np.arange(SIZE[0] * SIZE[1]).reshape(SIZE)
    for i in range(8):
        cv2.imwrite(str(root / f"train_A/seq/{i}.png"), rng.integers(0, 3, SIZE, dtype=np.uint8))
        cv2.imwrite(str(root / f"train_B/seq/{i}.png"), rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8))
        seen = np.where(rng.random(SIZE) < 0.7, ids, -1)
        write_unprojection(root / f"train_unprojections/seq/{i}.npz", [seen, seen[::2, ::2]])


class TestTraining:
    def test_a_lead_in_leaves_the_weights_at_rest(self):
        """It draws as deployed: without power iterations, which would depend on how many frames lead in."""
        generator, (condition, history) = spade(), inputs()
        generator.train()
        before = {name: value.clone() for name, value in generator.state_dict().items()}
        led = run_ahead(generator, condition[:, None].expand(-1, 3, -1, -1, -1), history, own_statistics=True)
        assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())
        assert all(module.training for module in generator.modules())
        generator.eval()
        with batch_statistics(generator), torch.no_grad():
            for _ in range(3):
                _, history = generator.step(condition, history)
        assert torch.equal(led.frames, history.frames)

    def test_it_moves_every_player(self, tmp_path):
        task = make_task()
        before = {n: {k: v.clone() for k, v in m.named_parameters()} for n, m in task.players.items()}
        train(task, tmp_path / "run", 4)
        for name, module in task.players.items():
            moved = [not torch.equal(value, before[name][key]) for key, value in module.named_parameters()]
            assert sum(moved) > 0.7 * len(moved)  # biases before an instance norm stay

    @pytest.mark.parametrize("guided", [False, True])
    def test_stopping_and_going_on_changes_nothing(self, tmp_path, guided):
        """With guidance also: after a lead-in, from a data set, and with another number of workers."""
        ends, clips, new_task = [], make_clips, make_task
        if guided:
            write_guided(tmp_path / "data")
            config = FolderConfig(root=tmp_path / "data", num_classes=3, guidance_levels=2)
            folder = open_folder(replace(config, geometry=GeometryConfig(mode="exact", size=SIZE)))
            new_task = partial(guided_task, folder.spec)
        for name, stops in (("whole", False), ("parts", True)):
            if guided:
                clips = ClipLoader(folder, SamplingConfig(num_frames=6), batch_size=1, seed=0).batches
            train(new_task(), tmp_path / name, 2, clips)
            if stops:  # forget the second half and make it again
                for file in sorted((tmp_path / name / "checkpoints").iterdir())[1:]:
                    for part in file.iterdir():
                        part.unlink()
                    file.rmdir()
            if guided and stops:
                loader = ClipLoader(folder, SamplingConfig(num_frames=6), batch_size=1, seed=0, num_workers=1)
                clips = loader.batches
            task = new_task()
            train(task, tmp_path / name, 2, clips)
            ends.append(task.generator.state_dict())
        assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())

    def test_videos_from_nothing_begin_with_drawn_frames(self):
        torch.manual_seed(1)
        first = SpadeImageGenerator(IMAGE, LABELS).eval().requires_grad_(False)
        kept = {key: value.clone() for key, value in first.state_dict().items()}
        task, clip = make_task(first, start_from_nothing=1, start_from_one=0), make_clip()
        begun, step = [], task.generator.step
        task.generator.step = lambda condition, history: (begun.append(history), step(condition, history))[1]
        for losses in task.step(clip, torch.Generator(), 0):
            assert losses["generator"]["own_warp"].item() > 0  # there was a frame to warp
            losses["generator"]["reconstruction"].backward()
        condition = F.one_hot(clip.labels[:, :2].long(), 3).movedim(-1, 2).float()
        assert begun[0].valid.tolist() == [1]
        for t in range(2):
            assert_close(begun[0].frames[:, t], first(condition[:, t]), rtol=1e-4, atol=1e-5)
        assert all(torch.equal(value, kept[key]) for key, value in first.state_dict().items())
        assert all(p.grad is None for p in first.parameters())


def test_the_exported_graph_follows_the_module(tmp_path):
    pytest.importorskip("onnxscript", reason="the export needs onnx and onnxscript")
    from export.engines import REFERENCE, open_engine
    from export.onnx_graph import compare_rollout, export_step

    generator = spade(2, combine="blend").eval()
    export_step(generator, tmp_path / "step.onnx", size=SIZE)
    conditions = torch.cat([inputs(2, seed=seed)[0] for seed in range(4)])
    assert compare_rollout(generator, open_engine(REFERENCE, tmp_path / "step.onnx", 1), conditions) < 1e-4
