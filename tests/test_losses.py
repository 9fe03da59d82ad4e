import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from fastv2v.contracts import FrameOutput
from fastv2v.device import player_gradients
from fastv2v.errors import CheckpointError, ConfigError
from fastv2v.losses import perceptual as perceptual_module
from fastv2v.losses.flow import masked_l1
from fastv2v.losses.gan import feature_matching_loss, lsgan_loss
from fastv2v.losses.objective import LossWeights, ObjectiveConfig, VideoObjective, temporal_tuples
from fastv2v.losses.perceptual import VGG19, EfficientNetLite0, PerceptualLoss
from fastv2v.losses.total import weighted_total
from fastv2v.nn.discriminator import DiscriminatorConfig
from fastv2v.render import Chunk

SMALL = DiscriminatorConfig(width=2, num_layers=1, num_scales=2, norm="none")
SIZE = (8, 12)
TERMS = tuple(LossWeights.__dataclass_fields__)
OFF = dict.fromkeys(TERMS, 0.0)


class EdgeNetwork(nn.Module):
    """Two feature maps: the picture and its differences along a row."""

    def forward(self, frames):
        return [frames, frames[..., 1:] - frames[..., :-1]]


def still(current, previous):
    """A flow estimator that sees no motion and is sure of it."""
    return torch.zeros_like(current[:, :2]), torch.ones_like(current[:, :1])


def objective(weights, estimator=still, channels=4, **config):
    torch.manual_seed(0)
    network = PerceptualLoss(EdgeNetwork(), (1.0, 0.5), relative=False) if weights.perceptual > 0 else None
    config = ObjectiveConfig(weights=weights, image_discriminator=SMALL, temporal_discriminator=SMALL, **config)
    return VideoObjective(config, channels, network, estimator)


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def make_chunk(start=2, count=3, batch=1, valid=1.0, flow=True):
    """A chunk of noise whose parts are leaves, so that gradients into each can be read."""
    parts = [noise(batch, count, c, *SIZE, seed=i).requires_grad_() for i, c in enumerate((3, 3, 3, 2, 1))]
    output = FrameOutput(*parts) if flow else FrameOutput(*parts[:2])
    return Chunk(start, output, noise(batch, count, 3, *SIZE, seed=9), torch.full((batch, count), valid))


def reference_of(target, batch=1, time=6, channels=4):
    return target.reference(noise(batch, time, channels, *SIZE, seed=20), noise(batch, time, 3, *SIZE, seed=21))


class TestAdversarial:
    def features(self, *scores, inner=((1.0, 3.0),)):
        """One scale for each score map: inner maps of constant value, then the scores."""
        return [[*(torch.full((1, 2, 4, 4), v) for v in row), s] for s, row in zip(scores, itertools.cycle(inner))]

    def test_least_squares_is_a_mean_over_the_map_and_a_sum_over_scales(self):
        features = self.features(torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0]]))
        assert lsgan_loss(features, real=True).item() == (0 + 4) / 2 + 1
        assert lsgan_loss(features, real=False).item() == (1 + 9) / 2 + 0

    def test_feature_matching_averages_scales_and_weighs_layers_by_four_over_their_number(self):
        score = torch.zeros(1, 1)
        fake = self.features(score, score, inner=((1.0, 3.0), (2.0, 2.0)))
        real = self.features(score + 5, score + 5, inner=((0.5, 1.0), (2.0, 6.0)))
        # 4/2 * (0.5 + 2) and 4/2 * (0 + 4), averaged; scores do not count.
        assert feature_matching_loss(fake, real).item() == pytest.approx((5 + 8) / 2)

    def test_the_published_depth_weighs_every_layer_by_one(self):
        fake = [[torch.ones(1), torch.ones(1), torch.ones(1), torch.ones(1), torch.zeros(1)]]
        assert feature_matching_loss(fake, [[torch.zeros(1)] * 5]).item() == 4

    def test_real_features_are_targets(self):
        fake, real = torch.ones(2, requires_grad=True), torch.zeros(2, requires_grad=True)
        feature_matching_loss([[fake, fake]], [[real, real]]).backward()
        assert real.grad is None
        assert fake.grad is not None


class TestMaskedL1:
    def test_is_a_mean_over_all_elements_masked_or_not(self):
        a = torch.tensor([1.0, 2, 3, 4]).view(1, 1, 1, 4)
        mask = torch.tensor([1.0, 0.5, 0, 0]).view(1, 1, 1, 4)
        assert masked_l1(a, torch.zeros_like(a), mask).item() == pytest.approx((1 + 1) / 4)

    def test_one_mask_serves_all_channels_and_a_number_is_a_goal(self):
        a = torch.full((2, 3, 2, 4, 4), 3.0)
        mask = torch.zeros(2, 3, 1, 4, 4)
        mask[0] = 1
        assert masked_l1(a, 1.0, mask).item() == pytest.approx(1.0)


class TestTemporalTuples:
    @pytest.mark.parametrize(
        ("chunk_size", "chunk_start", "expected"),
        [
            (1, 2, [(0, 1, 2)]),
            (1, 6, [(4, 5, 6)]),
            (2, 2, [(1, 2, 3)]),
            (2, 6, [(5, 6, 7)]),
            (6, 0, [(3, 4, 5), (0, 1, 2)]),
            (6, 6, [(9, 10, 11), (6, 7, 8)]),
        ],
    )
    def test_the_worked_example_of_vid2vid(self, chunk_size, chunk_start, expected):
        past = min(chunk_start, 2)
        tuples = temporal_tuples(past, chunk_size, 3)
        assert [tuple(i + chunk_start - past for i in t) for t in tuples] == expected

    @pytest.mark.parametrize(("past", "new"), [(0, 1), (0, 2), (1, 1)])
    def test_too_few_frames_give_none(self, past, new):
        assert temporal_tuples(past, new, 3) == []

    @given(past=st.integers(0, 6), new=st.integers(1, 12), window=st.integers(2, 5))
    def test_tuples_are_consecutive_disjoint_and_end_inside_the_chunk(self, past, new, window):
        past = min(past, window - 1)
        tuples = temporal_tuples(past, new, window)
        frames = [i for t in tuples for i in t]
        assert len(frames) == len(set(frames))
        assert all(t == tuple(range(t[0], t[0] + window)) for t in tuples)
        assert all(t[0] >= 0 and past <= t[-1] < past + new for t in tuples)
        assert bool(tuples) == (past + new >= window)


class TestNames:
    """Weights and terms must meet by name, whatever is switched off."""

    def check(self, weights, uses_flow, chunk=None, past=()):
        target = objective(weights)
        wanted = target.weights(uses_flow=uses_flow)
        losses = target.chunk_losses(chunk or make_chunk(flow=uses_flow), reference_of(target), list(past))
        assert {p: set(terms) for p, terms in losses.items()} == {p: set(terms) for p, terms in wanted.items()}
        assert all(term.ndim == 0 for terms in losses.values() for term in terms.values())
        for player, terms in losses.items():
            if terms:
                weighted_total(terms, wanted[player], player=player)

    @settings(max_examples=60, deadline=None)
    @given(on=st.sets(st.sampled_from(TERMS)), uses_flow=st.booleans())
    def test_any_set_of_terms(self, on, uses_flow):
        self.check(LossWeights(**{**OFF, **dict.fromkeys(on, 0.5)}), uses_flow)

    @pytest.mark.parametrize("term", TERMS)
    def test_one_term_alone(self, term):
        self.check(LossWeights(**{**OFF, term: 2.0}), True)

    @pytest.mark.parametrize("count", [1, 2, 5])
    def test_all_terms_with_and_without_temporal_tuples(self, count):
        weights = LossWeights(reconstruction=1.0, occlusion=1.0)
        for past in ([], [noise(1, 3, *SIZE)] * 2):
            chunk = make_chunk(start=2 if count == 5 else 4, count=min(count, 4))
            self.check(weights, True, chunk, past if chunk.start == 4 else [])

    def test_further_terms_join_the_generators(self):
        weights = objective(LossWeights(**{**OFF, "warp": 3.0})).weights(uses_flow=True, more={"kd_flow": 2.0})
        assert weights == {"generator": {"warp": 3.0, "kd_flow": 2.0}}

    def test_a_discriminator_weighs_fake_and_real_by_half(self):
        weights = objective(LossWeights()).weights(uses_flow=True)
        half = {"fake": 0.5, "real": 0.5}
        assert weights["image_discriminator"] == weights["temporal_discriminator"] == half

    def test_discriminators_exist_only_where_needed(self):
        assert not objective(LossWeights(**OFF)).discriminators
        assert set(objective(LossWeights(**{**OFF, "temporal_feature_matching": 1.0})).discriminators) == {
            "temporal_discriminator"
        }

    def test_nonsense_is_refused(self):
        with pytest.raises(ConfigError, match="loss weight warp is negative"):
            LossWeights(warp=-1.0)
        with pytest.raises(ConfigError, match="temporal_window must be at least 2"):
            ObjectiveConfig(temporal_window=1)
        with pytest.raises(ConfigError, match="no perceptual network was given"):
            VideoObjective(ObjectiveConfig(), 4, None, still)


class TestPixelTerms:
    def losses(self, weights, chunk, **config):
        target = objective(LossWeights(**{**OFF, **weights}), **config)
        reference = reference_of(target)
        return target.chunk_losses(chunk, reference, [])["generator"], reference.frames[:, 2:5]

    @pytest.mark.parametrize("judge_both", [True, False])
    def test_finished_and_hallucinated_frames_are_both_reconstructed(self, judge_both):
        chunk = make_chunk()
        terms, real = self.losses({"reconstruction": 1.0}, chunk, supervise_hallucinated=judge_both)
        frame, hallucinated = chunk.output.frame, chunk.output.hallucinated
        assert_close(terms["reconstruction"], F.l1_loss(frame, real) + F.l1_loss(hallucinated, real))

    @pytest.mark.parametrize("judge_both", [True, False])
    def test_adversarial_and_perceptual_terms_judge_the_hallucinated_frame_only_when_told(self, judge_both):
        chunk = make_chunk()
        weights = {"gan": 1.0, "feature_matching": 1.0, "perceptual": 1.0}
        terms, _ = self.losses(weights, chunk, supervise_hallucinated=judge_both)
        for name in weights:
            parts = (chunk.output.frame, chunk.output.hallucinated)
            reached = torch.autograd.grad(terms[name], parts, retain_graph=True, allow_unused=True)
            assert [g is not None and bool(g.any()) for g in reached] == [True, judge_both]

    def test_a_frame_that_is_hallucinated_whole_counts_once(self):
        chunk = make_chunk(flow=False)
        terms, real = self.losses({"reconstruction": 1.0}, chunk)
        assert_close(terms["reconstruction"], F.l1_loss(chunk.output.frame, real))

    def test_perceptual_is_the_weighted_sum_over_feature_maps(self):
        chunk = make_chunk(flow=False)
        terms, real = self.losses({"perceptual": 1.0}, chunk)
        difference = chunk.output.frame - real
        expected = difference.abs().mean() + 0.5 * (difference[..., 1:] - difference[..., :-1]).abs().mean()
        assert_close(terms["perceptual"], expected)


class TestFlowTerms:
    weights = LossWeights(**{**OFF, "flow": 1.0, "flow_warp": 1.0, "warp": 1.0, "occlusion": 1.0})

    def test_values_by_hand_where_nothing_moves(self):
        target, chunk = objective(self.weights), make_chunk()
        reference = reference_of(target)
        terms = target.chunk_losses(chunk, reference, [])["generator"]
        assert_close(terms["flow"], chunk.output.flow.abs().mean())
        assert_close(terms["warp"], F.l1_loss(chunk.output.frame, chunk.previous))
        assert_close(terms["occlusion"], chunk.output.occlusion.abs().mean())

    def test_flow_warp_moves_the_real_previous_frame_by_the_predicted_flow(self):
        target, chunk = objective(self.weights), make_chunk()
        flow = torch.zeros_like(chunk.output.flow)
        flow[:, :, 0] = 1
        chunk = chunk._replace(output=chunk.output._replace(flow=flow))
        reference = reference_of(target)
        moved = torch.cat([reference.frames[:, 1:4, ..., 1:], reference.frames[:, 1:4, ..., -1:]], dim=-1)
        terms = target.chunk_losses(chunk, reference, [])["generator"]
        assert_close(terms["flow_warp"], F.l1_loss(moved, reference.frames[:, 2:5]), atol=1e-5, rtol=1e-5)

    def test_each_frame_meets_the_reference_flow_that_ends_at_it(self):
        def tells_the_time(current, _):
            return current[:, :2], torch.ones_like(current[:, :1])

        target = objective(self.weights, tells_the_time)
        frames = torch.arange(6.0).view(1, 6, 1, 1, 1).expand(1, 6, 3, *SIZE)
        reference = target.reference(torch.zeros(1, 6, 4, *SIZE), frames)
        chunk = make_chunk(start=3, count=2)
        flow = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1, 1).expand(1, 2, 2, *SIZE)
        chunk = chunk._replace(output=chunk.output._replace(flow=flow))
        assert target.chunk_losses(chunk, reference, [])["generator"]["flow"].item() == 0

    def test_frames_without_a_previous_one_teach_no_motion(self):
        target = objective(self.weights)
        reference = reference_of(target)
        cold = target.chunk_losses(make_chunk(valid=0.0), reference, [])["generator"]
        assert [term.item() for term in cold.values()] == [0, 0, 0, 0]
        half = make_chunk()._replace(valid=torch.tensor([[0.0, 1.0, 1.0]]))
        terms = target.chunk_losses(half, reference, [])["generator"]
        assert_close(terms["flow"], half.output.flow[:, 1:].abs().sum() / half.output.flow.numel())

    def test_unsure_pixels_do_not_count(self):
        def unsure(current, previous):
            return torch.zeros_like(current[:, :2]), torch.zeros_like(current[:, :1])

        target = objective(self.weights, unsure)
        terms = target.chunk_losses(make_chunk(), reference_of(target), [])["generator"]
        assert [term.item() for term in terms.values()] == [0, 0, 0, 0]

    def test_the_previous_made_frame_is_a_target(self):
        target = objective(LossWeights(**{**OFF, "warp": 1.0}))
        previous = noise(1, 3, 3, *SIZE).requires_grad_()
        chunk = make_chunk()
        moved = target.chunk_losses(chunk._replace(previous=previous.detach()), reference_of(target), [])
        moved["generator"]["warp"].backward()
        assert previous.grad is None
        assert chunk.output.frame.grad.any()


class TestPlayers:
    def test_every_player_gets_gradients_of_its_own_losses_only(self):
        target = objective(LossWeights(reconstruction=1.0, occlusion=1.0))
        generator = nn.Conv2d(3, 3, 1)
        reference = reference_of(target)
        chunk = make_chunk()

        def losses(cut=False):
            frame = generator(chunk.output.frame.detach().flatten(0, 1)).unflatten(0, (1, 3))
            frame = frame.detach() if cut else frame
            made = chunk._replace(output=FrameOutput(frame, frame))
            return target.chunk_losses(made, reference, [])

        weights = target.weights(uses_flow=False)
        players = {"generator": generator, **target.discriminators}
        once = losses()
        gradients = {
            name: player_gradients(
                weighted_total(once[name], weights[name], player=name), list(net.parameters()), retain_graph=True
            )
            for name, net in players.items()
        }
        assert all(p.grad is None for net in players.values() for p in net.parameters())
        assert all(g is not None and g.any() for g in gradients["generator"])
        for name in target.discriminators:  # the usual way: judge frames that are cut from the generator's graph
            total = weighted_total(losses(cut=True)[name], weights[name], player=name)
            expected = torch.autograd.grad(total, list(players[name].parameters()))
            assert all(torch.equal(a, b) for a, b in zip(gradients[name], expected, strict=True))
        total = weighted_total(losses()["generator"], weights["generator"])
        expected = torch.autograd.grad(total, list(generator.parameters()))
        assert all(torch.equal(a, b) for a, b in zip(gradients["generator"], expected, strict=True))

    def test_image_terms_are_those_of_the_discriminator_on_condition_and_frame(self):
        target = objective(LossWeights(**{**OFF, "gan": 1.0, "feature_matching": 1.0}))
        chunk, reference = make_chunk(flow=False), reference_of(target)
        losses = target.chunk_losses(chunk, reference, [])
        net = target.discriminators["image_discriminator"]
        condition = reference.conditions[0, 2:5]
        fake, real = (net(torch.cat([condition, x[0]], dim=1)) for x in (chunk.output.frame, reference.frames[:, 2:5]))
        assert_close(losses["generator"]["gan"], lsgan_loss(fake, real=True))
        assert_close(losses["generator"]["feature_matching"], feature_matching_loss(fake, real))
        assert_close(losses["image_discriminator"]["fake"], lsgan_loss(fake, real=False))
        assert_close(losses["image_discriminator"]["real"], lsgan_loss(real, real=True))

    def test_only_the_last_frames_are_judged_when_told(self):
        weights = LossWeights(**{**OFF, "gan": 1.0, "perceptual": 1.0, "reconstruction": 1.0})
        chunk = make_chunk()
        target = objective(weights, judged_frames=1)
        terms = target.chunk_losses(chunk, reference_of(target), [])["generator"]
        for name in ("gan", "perceptual"):
            gradient = torch.autograd.grad(terms[name], chunk.output.frame, retain_graph=True)[0]
            assert [bool(frame.any()) for frame in gradient[0]] == [False, False, True]
        assert all(frame.any() for frame in torch.autograd.grad(terms["reconstruction"], chunk.output.frame)[0][0])

    def test_the_temporal_discriminator_sees_frames_and_scaled_flow_of_the_same_moments(self):
        def tells_the_time(current, _):
            return 20 * current[:, :2], torch.ones_like(current[:, :1])

        target = objective(LossWeights(**{**OFF, "temporal_gan": 1.0}), tells_the_time)
        frames = torch.arange(8.0).view(1, 8, 1, 1, 1).expand(1, 8, 3, *SIZE)
        reference = target.reference(torch.zeros(1, 8, 4, *SIZE), frames)
        seen = []
        target.discriminators["temporal_discriminator"].register_forward_hook(lambda _, x, __: seen.append(x[0]))
        chunk = make_chunk(start=4, count=2, flow=False)
        made = chunk._replace(output=FrameOutput(*[-frames[:, 4:6]] * 2))
        past = [-frames[:, 2], -frames[:, 3]]
        target.chunk_losses(made, reference, past)
        fake, real = (x[:, :, 0, 0].tolist() for x in seen)
        assert fake == [[-3, -3, -3, -4, -4, -4, -5, -5, -5, 4, 4, 5, 5]]
        assert real == [[3, 3, 3, 4, 4, 4, 5, 5, 5, 4, 4, 5, 5]]

    def test_without_a_tuple_the_temporal_discriminator_has_nothing_to_learn(self):
        target = objective(LossWeights(**{**OFF, "temporal_gan": 1.0, "reconstruction": 1.0}))
        losses = target.chunk_losses(make_chunk(count=1), reference_of(target), [])
        assert not any(term.requires_grad for term in losses["temporal_discriminator"].values())
        assert losses["generator"]["temporal_gan"].item() == 0


class TestPerceptualLoss:
    def test_identical_frames_are_at_distance_0(self):
        frames = noise(2, 3, *SIZE)
        assert PerceptualLoss(EdgeNetwork(), (1.0, 1.0), relative=True)(frames, frames).item() == 0

    def test_relative_distances_are_fractions_of_the_target(self):
        loss = PerceptualLoss(EdgeNetwork(), (1.0, 0.0), relative=True)
        target = torch.full((1, 3, *SIZE), 0.5)
        assert loss(target * 1.5, target).item() == pytest.approx(0.5, rel=1e-4)

    def test_a_target_or_its_features_give_the_same_and_get_no_gradient(self):
        loss = PerceptualLoss(EdgeNetwork(), (1.0, 1.0), relative=False)
        frames, target = noise(1, 3, *SIZE, seed=1).requires_grad_(), noise(1, 3, *SIZE).requires_grad_()
        assert_close(loss(frames, target), loss(frames, loss.features(target)))
        loss(frames, target).backward()
        assert target.grad is None
        assert frames.grad.any()

    def test_a_weight_for_each_map_is_needed(self):
        with pytest.raises(ValueError, match="zip"):
            PerceptualLoss(EdgeNetwork(), (1.0,), relative=False)(noise(1, 3, 4, 4), noise(1, 3, 4, 4))

    def test_efficientnet_gives_five_scales_stays_frozen_and_passes_gradients_on(self):
        loss = PerceptualLoss.efficientnet()
        frames, target = noise(1, 3, 64, 96, seed=1).requires_grad_(), noise(1, 3, 64, 96)
        before = {name: value.clone() for name, value in loss.state_dict().items()}
        loss.train()
        assert not any(module.training for module in loss.network.modules())
        assert not any(p.requires_grad for p in loss.parameters())
        assert [f.shape[-2:] for f in loss.features(target)] == [(32, 48), (16, 24), (8, 12), (4, 6), (2, 3)]
        distance = loss(frames, target)
        distance.backward()
        assert distance > 0
        assert frames.grad.abs().sum() > 0
        assert loss(target, target).item() == 0
        assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())
        assert isinstance(loss.network, EfficientNetLite0)


class TestVGG19:
    def test_maps_are_those_after_the_first_relu_of_each_stage(self, tmp_path, monkeypatch):
        narrow = tuple(width // 32 for width in perceptual_module._VGG19_WIDTHS)  # a slim VGG-19 of the same depth
        monkeypatch.setattr(perceptual_module, "_VGG19_WIDTHS", narrow)
        convolutions = [(i, c) for i, c in enumerate(layers(narrow)) if c]
        state = {"classifier.0.weight": torch.zeros(1)}  # torchvision's file holds more than is used
        for (i, width), before in zip(convolutions, [3, *(c for _, c in convolutions)], strict=False):
            state[f"features.{i}.weight"] = noise(width, before, 3, 3, seed=i)
            state[f"features.{i}.bias"] = noise(width, seed=i)
        torch.save(state, tmp_path / "vgg.pth")
        network = VGG19(tmp_path / "vgg.pth")
        features = network.train()(noise(1, 3, 32, 32))
        assert [tuple(f.shape[1:]) for f in features] == [(2, 32, 32), (4, 16, 16), (8, 8, 8), (16, 4, 4), (16, 2, 2)]
        assert all(f.min() >= 0 for f in features)
        assert_close(features[0], F.relu(F.conv2d(noise(1, 3, 32, 32), state["features.0.weight"],
                                                  state["features.0.bias"], padding=1)))  # fmt: skip
        assert not network.training

    @pytest.mark.parametrize("content", [None, b"no tensors", {"features.0.weight": torch.zeros(64, 3, 3, 3)}])
    def test_a_file_that_is_not_vgg19_is_named(self, content, tmp_path):
        path = tmp_path / "weights.pth"
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            torch.save(content, path)
        with pytest.raises(CheckpointError, match=r"weights\.pth: no torchvision VGG-19 state dict"):
            VGG19(path)


def layers(widths):
    """Output channels at each index of the layer list; 0 where there is a ReLU or a pool."""
    return [c for width in widths for c in ((width, 0) if width else (0,))]
