"""The random style of first frames: its formulas, its training and where it is drawn."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from test_spade import SIZE, SPEC, make_clip, make_clips, train
from test_spade import make_task as make_teacher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from fastv2v.config import from_dict, to_dict
from fastv2v.contracts import StepModel
from fastv2v.errors import ConfigError, ShapeError
from fastv2v.losses.objective import LossWeights, ObjectiveConfig, VideoObjective
from fastv2v.losses.rollout import RolloutConfig
from fastv2v.nn.discriminator import DiscriminatorConfig
from fastv2v.nn.generators import in_one_style
from fastv2v.nn.pyramid import PyramidConfig
from fastv2v.nn.single_image import SingleImageConfig, SingleImageGenerator
from fastv2v.nn.spade import ModulationConfig
from fastv2v.nn.spade_image import (
    EncodedStyle,
    SpadeImageConfig,
    SpadeImageGenerator,
    StyleBlock,
    StyleConfig,
    StyleEncoder,
    style_divergence,
)
from fastv2v.ops.flow import DISFlow
from fastv2v.render import start_history
from teachers.presets import FIRST_PRESETS
from teachers.task import TeacherTask, TeacherTaskConfig

LABELS = 3
STYLE = StyleConfig(channels=4, code=5, encoder_width=2, encoder_size=64)
PLAIN = SpadeImageConfig(finest_width=2, doublings=3, label=ModulationConfig(hidden=2), norm="instance")
STYLED = replace(PLAIN, style=STYLE, coordinates=True)


def styled(config=STYLED, seed=0):
    torch.manual_seed(seed)
    generator = SpadeImageGenerator(config, LABELS)
    for part in (generator.style_head, *generator.style_up):  # fresh ones hardly modulate
        torch.nn.init.normal_(part.norm.modulations["style"].last.weight)
    return generator


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def labels(batch=1, size=SIZE):
    ids = torch.randint(0, LABELS, (batch, *size), generator=torch.Generator().manual_seed(5))
    return F.one_hot(ids, LABELS).movedim(-1, 1).float()


class TestFormulas:
    def test_the_adaptive_norm_by_hand(self):
        """Two pixels 1 and 3 become -1 and 1; with the code 2, gamma = 0.5 * 2 and beta = 0.25 * 2 - 1 = -0.5."""
        block = StyleBlock(1, 1, 1, norm="instance")
        modulation = block.norm.modulations["style"].last
        with torch.no_grad():
            modulation.weight.copy_(torch.tensor([0.5, 0.25]).view(2, 1, 1, 1))
            modulation.bias.copy_(torch.tensor([0.0, -1.0]))
            block.conv.weight.zero_()[0, 0, 1, 1] = 1.0
            block.conv.bias.zero_()
        made = block(torch.tensor([1.0, 3.0]).view(1, 1, 1, 2), torch.tensor(2.0).view(1, 1, 1, 1))
        # -1 * 2 - 0.5 = -2.5, through the leaky activation -0.5; 1 * 2 - 0.5 = 1.5
        assert_close(made.flatten(), torch.tensor([-0.5, 1.5]), rtol=1e-4, atol=1e-4)

    def test_the_divergence_in_closed_form(self):
        assert style_divergence(torch.zeros(3, 2), torch.zeros(3, 2)) == 0
        # means 1 and 0, variance 1 and e: 0.5 * 1 and 0.5 * (e - 1 - 1)
        value = style_divergence(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
        assert value.item() == pytest.approx(0.5 + 0.5 * (2.718281828 - 2), rel=1e-6)
        mean, log_variance = noise(5, 7), noise(5, 7, seed=1)
        each = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0))
        assert_close(style_divergence(mean, log_variance), each.sum(1).mean())

    def test_more_pictures_of_a_kind_weigh_as_one(self):
        mean, log_variance = noise(1, 7), noise(1, 7, seed=1)
        one = style_divergence(mean, log_variance)
        assert_close(style_divergence(mean.expand(4, 7), log_variance.expand(4, 7)), one)


class TestGenerator:
    def test_published_sizes(self):
        """About 402 M weights and an encoder of 10.5 M, counted by others."""
        with FakeTensorMode():
            generator = SpadeImageGenerator(FIRST_PRESETS["world"]().generator, 35)
            encoder = sum(p.numel() for p in generator.style_encoder.parameters()) / 1e6
            assert generator(torch.zeros(1, 35, 64, 128)).shape == (1, 3, 64, 128)
        assert encoder == pytest.approx(10.5, abs=0.05)
        assert sum(p.numel() for p in generator.parameters()) / 1e6 - encoder == pytest.approx(402, abs=1)
        assert generator.entry.in_channels == 37

    @pytest.mark.parametrize(("doublings", "size"), [(2, (4, 12)), (3, (8, 24)), (4, (16, 48))])
    @pytest.mark.parametrize("norm", ["instance", "batch"])
    def test_every_size_and_style(self, doublings, size, norm):
        generator = styled(replace(STYLED, doublings=doublings, norm=norm)).eval()
        frame = generator(labels(2, size), noise(2, 4))
        assert frame.shape == (2, 3, *size) and frame.isfinite().all()

    def test_a_style_changes_the_frame_and_its_own_only(self):
        generator = styled().eval()
        condition = labels(1).expand(2, -1, -1, -1)
        mean = generator(condition)
        assert torch.equal(mean, generator(condition, torch.zeros(2, 4)))
        style = torch.stack([torch.zeros(4), 3 * noise(4)])
        other = generator(condition, style)
        assert_close(other[0], mean[0])
        assert (other[1] - mean[1]).abs().max() > 1e-4

    def test_a_step_takes_the_mean_style(self):
        generator = styled().eval()
        assert isinstance(generator, StepModel)
        history = start_history(labels()[:, None], noise(1, 1, 3, *SIZE), 1)
        assert torch.equal(generator.step(labels(), history)[0].frame, generator(labels()))

    def test_gradients_reach_every_weight(self):
        generator, target = styled(), noise(2, 3, *SIZE)
        model = EncodedStyle(generator, target, generator.draw_style(2, torch.Generator()))
        history = start_history(labels(2)[:, None], target[:, None], 1)
        output, _ = model.step(labels(2), history)
        ((output.frame - target).square().mean() + model.divergence).backward()
        assert [name for name, p in generator.named_parameters() if p.grad is None] == []
        assert all(p.grad.isfinite().all() for p in generator.parameters())

    def test_without_a_style_nothing_changes(self):
        """Names of weights, random numbers used and so the frame; and a record of before reads as none."""
        torch.manual_seed(0)
        generator = SpadeImageGenerator(PLAIN, LABELS)
        assert not any("style" in name for name in generator.state_dict())
        assert generator.entry.in_channels == LABELS and generator.entry.out_channels == 8
        before = {key: value for key, value in to_dict(PLAIN).items() if key not in ("style", "coordinates")}
        assert from_dict(SpadeImageConfig, before) == PLAIN
        rng = torch.Generator().manual_seed(1)
        assert generator.draw_style(2, rng).shape == (2, 0)
        assert torch.equal(rng.get_state(), torch.Generator().manual_seed(1).get_state())

    def test_coordinates_tell_places_apart(self):
        """Under one label everywhere, nothing else does but the borders."""
        generator = SpadeImageGenerator(replace(PLAIN, coordinates=True), LABELS)
        seen = generator._start(torch.zeros(2, LABELS, 24, 40), (3, 5))
        assert seen.shape == (2, LABELS + 2, 3, 5)
        assert_close(seen[1, -2, :, 0], torch.tensor([-1.0, 0.0, 1.0]))
        assert_close(seen[1, -1, 0], torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0]))

    def test_wrong_styles_are_refused(self):
        with pytest.raises(ShapeError, match=r"wants a style \(1, 4\), got \(1, 3\)"):
            styled()(labels(), torch.zeros(1, 3))
        with pytest.raises(ShapeError, match=r"wants a style \(1, 0\), got \(1, 4\)"):
            SpadeImageGenerator(PLAIN, LABELS)(labels(), torch.zeros(1, 4))

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"channels": -1}, "0 .no style. or more"),
            ({"code": 0}, "must be at least 1"),
            ({"encoder_width": 0}, "must be at least 1"),
            ({"encoder_size": 96}, "multiple of 64"),
        ],
    )
    def test_nonsense_is_refused(self, wrong, message):
        with pytest.raises(ConfigError, match=message):
            replace(STYLE, **wrong)
        with pytest.raises(ConfigError, match="style_weight must not be negative"):
            TeacherTaskConfig(style_weight=-1.0)


class TestEncoder:
    def test_it_takes_frames_of_any_size(self):
        encoder = StyleEncoder(replace(STYLE, encoder_size=128))
        for size in ((17, 31), (64, 64), (300, 200)):
            mean, log_variance = encoder(noise(2, 3, *size))
            assert mean.shape == log_variance.shape == (2, 4) and mean.dtype == torch.float32

    def test_a_fresh_one_is_near_the_styles_that_are_drawn(self):
        generator = styled()
        mean, log_variance = generator.style_encoder(noise(2, 3, *SIZE))
        assert style_divergence(mean, log_variance).item() < 0.1


class TestDrawing:
    def test_one_style_for_all_frames_by_the_seed(self):
        generator, rng = styled().eval(), torch.Generator().manual_seed(3)
        draw = in_one_style(generator, 1, rng)
        first = draw(labels())
        assert torch.equal(draw(labels()), first)
        assert torch.equal(in_one_style(generator, 1, torch.Generator().manual_seed(3))(labels()), first)
        assert not torch.equal(in_one_style(generator, 1, rng)(labels()), first)
        assert torch.equal(in_one_style(generator, 1, None)(labels()), generator(labels()))

    def test_generators_without_style_draw_nothing(self):
        for generator in (
            SpadeImageGenerator(PLAIN, LABELS),
            SingleImageGenerator(SingleImageConfig(width=2, num_downsamples=1, num_blocks=1), LABELS),
        ):
            rng = torch.Generator().manual_seed(3)
            assert in_one_style(generator, 1, rng) is generator
            assert torch.equal(rng.get_state(), torch.Generator().manual_seed(3).get_state())

    def test_a_clip_in_training_begins_in_one_random_style(self):
        """The same for both frames of the history, by the generator that was passed in."""
        first = styled().eval().requires_grad_(False)
        begun = []
        for seed in (0, 0, 1):
            task = make_teacher(first, start_from_nothing=1, start_from_one=0)
            step = task.generator.step
            task.generator.step = lambda c, h, step=step: (begun.append(h.frames), step(c, h))[1]
            next(task.step(make_clip(), torch.Generator().manual_seed(seed), 0))
        assert torch.equal(begun[0], begun[1])
        assert not torch.equal(begun[0], begun[2])
        rng = torch.Generator().manual_seed(0)
        torch.rand((), generator=rng)  # how the clip begins
        style = first.draw_style(1, rng)
        condition = F.one_hot(make_clip().labels[:, :2].long(), 3).movedim(-1, 2).float()
        for t in range(2):
            assert_close(begun[0][:, t], first(condition[:, t], style), rtol=1e-4, atol=1e-5)


OBJECTIVE = ObjectiveConfig(
    weights=LossWeights(
        perceptual=0.0, reconstruction=1.0, warp=0.0, temporal_gan=0.0, temporal_feature_matching=0.0, pyramid_gan=0.5
    ),
    image_discriminator=DiscriminatorConfig(width=2, num_layers=1, num_scales=1, norm="instance"),
    temporal_scales=0,
    gan="hinge",
)


def make_task(generator=None, objective=OBJECTIVE, **settings):
    torch.manual_seed(0)
    rollout = RolloutConfig(start_from_nothing=0, start_from_one=1, **settings.pop("rollout", {}))
    config = TeacherTaskConfig(objective=objective, rollout=rollout, **settings)
    judges = VideoObjective(objective, SPEC.channels, None, DISFlow("ultrafast"))
    return TeacherTask(generator or styled(), SPEC, judges, config)


class TestTraining:
    def test_the_style_term_is_the_encoders_divergence(self):
        task, clip = make_task(), make_clip(frames=2)
        assert task.weights["generator"]["style"] == 0.05
        (losses,) = task.step(clip, torch.Generator(), 0)
        with torch.no_grad():
            expected = style_divergence(*task.generator.style_encoder(clip.frames[:, 1]))
        assert_close(losses["generator"]["style"].detach(), expected, rtol=0.05, atol=1e-3)  # a power iteration later
        assert losses["generator"].keys() == task.weights["generator"].keys()

    def test_nobody_else_has_the_term(self):
        assert "style" not in make_task(SpadeImageGenerator(PLAIN, LABELS)).weights["generator"]
        assert "style" not in make_task(style_weight=0.0).weights["generator"]
        assert "style" not in make_teacher().weights["generator"]
        (losses,) = make_task(style_weight=0.0).step(make_clip(frames=2), torch.Generator(), 0)
        assert "style" not in losses["generator"]

    def test_chunks_and_gradient_checkpointing_learn_the_same(self):
        ends = []
        for rollout in ({}, {"gradient_checkpointing": True}):
            task = make_task(rollout=rollout)
            (losses,) = task.step(make_clip(frames=2), torch.Generator(), 0)
            (losses["generator"]["reconstruction"] + losses["generator"]["style"]).backward()
            ends.append({name: p.grad for name, p in task.generator.named_parameters()})
        assert all(torch.equal(grad, ends[1][name]) for name, grad in ends[0].items())
        for losses in make_task(rollout={"chunk_frames": 1}).step(make_clip(frames=4), torch.Generator(), 0):
            (losses["generator"]["reconstruction"] + losses["generator"]["style"]).backward()

    def test_stopping_and_going_on_changes_nothing(self, tmp_path):
        ends = []
        for name, stops in (("whole", False), ("parts", True)):
            train(make_task(), tmp_path / name, 2, make_clips)
            if stops:  # forget the second half and make it again
                for file in sorted((tmp_path / name / "checkpoints").iterdir())[1:]:
                    for part in file.iterdir():
                        part.unlink()
                    file.rmdir()
            task = make_task()
            train(task, tmp_path / name, 2, make_clips)
            ends.append(task.generator.state_dict())
        assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())

    def test_every_player_moves(self, tmp_path):
        objective = replace(OBJECTIVE, pyramid_discriminator=PyramidConfig(width=2))
        task = make_task(objective=objective)
        large = lambda start: (make_large(start + i) for i in iter(int, 1))  # noqa: E731
        before = {n: {k: v.clone() for k, v in m.named_parameters()} for n, m in task.players.items()}
        assert set(before) == {"generator", "image_discriminator", "pyramid_discriminator"}
        train(task, tmp_path / "run", 4, large)
        for name, module in task.players.items():
            moved = [not torch.equal(value, before[name][key]) for key, value in module.named_parameters()]
            assert sum(moved) > 0.5 * len(moved), name  # biases before an instance norm stay


def make_large(index):
    """A clip that the pyramid discriminator can look at."""
    clip = make_clip(index, frames=2)
    return replace(clip, frames=clip.frames.repeat(1, 1, 1, 3, 2), labels=clip.labels.repeat(1, 1, 3, 2))
