"""The feature-pyramid discriminator."""

import pytest
import torch
import torch.nn.functional as F
from test_losses import OFF, noise, still
from torch.testing import assert_close

from fastv2v.contracts import FrameOutput
from fastv2v.errors import ConfigError, ShapeError
from fastv2v.losses.gan import hinge_generator_loss, hinge_loss
from fastv2v.losses.objective import LossWeights, ObjectiveConfig, VideoObjective
from fastv2v.nn.discriminator import DiscriminatorConfig
from fastv2v.nn.pyramid import PyramidConfig, PyramidDiscriminator
from fastv2v.render import Chunk

LABELS = 4


def pyramid(width=3):
    torch.manual_seed(0)
    return PyramidDiscriminator(LABELS, PyramidConfig(width=width))


def one_hot(batch=1, size=(64, 96), seed=0):
    ids = torch.randint(0, LABELS, (batch, *size), generator=torch.Generator().manual_seed(seed))
    return F.one_hot(ids, LABELS).movedim(-1, 1).float()


class TestScores:
    @pytest.mark.parametrize("size", [(64, 96), (65, 97), (63, 33), (70, 51), (20, 100)])
    def test_three_sizes_rounded_up(self, size):
        scores = pyramid()(one_hot(2, size), noise(2, 3, *size))
        rounded = [tuple(-(-n // by) for n in size) for by in (4, 8, 16)]
        assert [tuple(level[-1].shape) for level in scores] == [(2, 1, *s) for s in rounded]

    def test_the_fit_is_an_inner_product_with_the_embedding(self):
        """With the features (1, 2) everywhere and weights by hand."""
        net = pyramid(1).eval()
        for conv in (net.real, net.fit, net.embedding):
            torch.nn.utils.parametrize.remove_parametrizations(conv, "weight")
        with torch.no_grad():
            net.real.weight.zero_()
            net.real.bias.fill_(0.25)
            net.fit.weight.zero_()
            net.fit.bias.copy_(torch.tensor([1.0, 2.0]))
            # class 0 is embedded as (1, 0), class 1 as (0, 3), the others as nothing; and all are moved by (0, 0.5)
            net.embedding.weight.zero_()
            net.embedding.weight[0, 0] = 1.0
            net.embedding.weight[1, 1] = 3.0
            net.embedding.bias.copy_(torch.tensor([0.0, 0.5]))
        ids = torch.zeros(64, 64, dtype=torch.long)
        ids[:, 32:] = 1
        ids[:2, :4] = 2  # half of the first block of 4x4
        fine, middle, coarse = net(F.one_hot(ids, LABELS).movedim(-1, 0)[None].float(), noise(1, 3, 64, 64))
        left, right = 0.25 + 1 * 1 + 2 * 0.5, 0.25 + 2 * (3 + 0.5)
        assert_close(fine[-1][0, 0, 1], torch.tensor([left] * 8 + [right] * 8))
        assert_close(fine[-1][0, 0, 0, 0].item(), left - 0.5)
        assert_close(middle[-1][0, 0, 0, 0].item(), left - 1 / 8)
        assert_close(coarse[-1][0, 0, :, 0].tolist(), [left - 1 / 32, left, left, left])

    def test_the_embedding_of_means_is_the_mean_of_embeddings(self):
        net, condition = pyramid().eval(), one_hot(1, (65, 98))
        wanted = net.embedding(condition)
        for _ in range(2):
            wanted = F.avg_pool2d(wanted, 2, ceil_mode=True)
        assert_close(net._embedded(condition)[0], wanted, rtol=1e-4, atol=1e-5)

    def test_pictures_are_judged_apart(self):
        net, condition = pyramid().eval(), one_hot(2)
        pictures = [noise(2, 3, 64, 96), noise(2, 3, 64, 96, seed=1)]
        judged = net.judge(condition, pictures)
        assert_close(judged, [net(condition, picture) for picture in pictures])
        second = net(condition[1:], pictures[0][1:])
        assert_close([[score[1:] for score in level] for level in judged[0]], second, rtol=1e-3, atol=1e-4)

    def test_gradients_reach_every_weight_and_the_picture(self):
        net, picture = pyramid(), noise(1, 3, 65, 97).requires_grad_()
        torch.stack([scores[-1].square().mean() for scores in net(one_hot(1, (65, 97)), picture)]).sum().backward()
        assert [name for name, p in net.named_parameters() if p.grad is None] == []
        assert picture.grad.abs().sum() > 0
        for name in ("embedding", "fit", "real"):
            assert getattr(net, name).parametrizations.weight.original.grad.abs().sum() > 0, name

    def test_wrong_input_is_refused(self):
        with pytest.raises(ShapeError, match="wants 4 condition channels, got 3"):
            pyramid()(torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 64))
        with pytest.raises(ShapeError, match=r"32x32 are too small .* must exceed 32"):
            pyramid()(torch.zeros(1, 4, 32, 32), torch.zeros(1, 3, 32, 32))
        with pytest.raises(ConfigError, match=r"0 .none. or more, got -1"):
            PyramidConfig(width=-1)


class TestTerms:
    size = (64, 48)

    def objective(self, width=2, **weights):
        torch.manual_seed(0)
        config = ObjectiveConfig(
            weights=LossWeights(**{**OFF, "pyramid_gan": 0.5, **weights}),
            image_discriminator=DiscriminatorConfig(width=2, num_layers=1, num_scales=1, norm="none"),
            pyramid_discriminator=PyramidConfig(width=width),
            temporal_scales=0,
            gan="hinge",
        )
        return VideoObjective(config, LABELS, None, still)

    def losses(self, target):
        frame = noise(1, 1, 3, *self.size).requires_grad_()
        reference = target.reference(one_hot(2, self.size)[None], noise(1, 2, 3, *self.size, seed=1))
        chunk = Chunk(1, FrameOutput(frame, frame), frame.detach(), torch.ones(1, 1))
        return target.chunk_losses(chunk, reference, []), reference, frame

    def test_they_are_the_hinge_losses_of_its_scores(self):
        target = self.objective().eval()
        losses, reference, frame = self.losses(target)
        net = target.discriminators["pyramid_discriminator"]
        condition = reference.conditions[:, 1]
        fake, real = net(condition, frame[:, 0]), net(condition, reference.frames[:, 1])
        assert set(losses) == {"generator", "pyramid_discriminator"}
        assert_close(losses["generator"], {"pyramid_gan": hinge_generator_loss(fake)})
        goal = {"fake": hinge_loss(fake, real=False), "real": hinge_loss(real, real=True)}
        assert_close(losses["pyramid_discriminator"], goal)
        assert target.weights(uses_flow=False) == {
            "generator": {"pyramid_gan": 0.5},
            "pyramid_discriminator": {"fake": 0.5, "real": 0.5},
        }

    def test_it_stands_beside_the_patches_and_changes_nothing_of_theirs(self):
        alone, beside = (self.objective(width, gan=1.0, feature_matching=1.0) for width in (0, 2))
        assert set(alone.discriminators) == {"image_discriminator"}
        a, b = self.losses(alone)[0], self.losses(beside)[0]
        assert torch.equal(a["generator"]["gan"], b["generator"]["gan"])
        assert b["generator"].keys() - a["generator"].keys() == {"pyramid_gan"}
        assert {p: set(t) for p, t in b.items()} == {p: set(t) for p, t in beside.weights(uses_flow=False).items()}

    def test_without_weight_it_is_not_built(self):
        assert not self.objective(pyramid_gan=0.0).discriminators
