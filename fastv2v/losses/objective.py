"""The vid2vid objective: all losses and discriminators that teacher and student share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor, nn

from fastv2v.contracts import FlowEstimator
from fastv2v.errors import ConfigError
from fastv2v.losses.flow import masked_l1
from fastv2v.losses.gan import feature_matching_loss, lsgan_loss
from fastv2v.losses.perceptual import PerceptualLoss
from fastv2v.nn.discriminator import DiscriminatorConfig, Features, MultiScaleDiscriminator
from fastv2v.ops.flow import clip_flow
from fastv2v.ops.warp import warp_backward
from fastv2v.render import Chunk

Terms = dict[str, Tensor]

FLOW_INPUT_SCALE = 20.0
"""Reference flow is divided by this before it enters a temporal discriminator (vid2vid)."""


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Weight of every generator term. A term of weight 0 is not computed."""

    gan: float = 1.0
    """Least-squares adversarial term of the image discriminator."""
    feature_matching: float = 10.0
    """Distance of the image discriminator's features."""
    perceptual: float = 10.0
    """Distance of ImageNet features to the real frame's."""
    reconstruction: float = 0.0
    """Mean absolute distance to the real frame. Not among vid2vid's terms; it steadies short trainings."""
    flow: float = 10.0
    """Predicted against reference flow, where that is confident."""
    flow_warp: float = 10.0
    """Real previous frame warped by the predicted flow against the real frame."""
    warp: float = 10.0
    """Finished frame against the previous finished frame warped by the reference flow."""
    occlusion: float = 0.0
    """Pulls the occlusion to 0 where the reference flow is confident (vid2vid: 1 with no_first_img)."""
    temporal_gan: float = 1.0
    """Adversarial term of the temporal discriminator."""
    temporal_feature_matching: float = 10.0
    """Distance of the temporal discriminator's features."""

    def __post_init__(self) -> None:
        for f in fields(self):
            if getattr(self, f.name) < 0:
                raise ConfigError(f"loss weight {f.name} is negative: {getattr(self, f.name)}")


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Losses and discriminators."""

    weights: LossWeights = field(default_factory=LossWeights)
    """Weights of the generator's terms."""
    image_discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    """Judges single frames with their condition."""
    temporal_discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    """Judges short runs of frames with the flow between them."""
    temporal_window: int = 3
    """Frames a temporal discriminator sees at once (vid2vid's n_frames_D)."""
    supervise_hallucinated: bool = True
    """Whether the adversarial and perceptual terms also judge the hallucinated frame before blending. The
    reconstruction term always does: where nothing else draws it, the blend would never come to trust it."""

    judged_frames: int = 0
    """The image discriminator and the perceptual loss judge the last so many frames of each chunk, which gradients
    reach over the longest way; 0 judges all. (vid2vid's paper samples one frame, its code takes all.)"""

    def __post_init__(self) -> None:
        if self.judged_frames < 0:
            raise ConfigError(f"judged_frames must be at least 0, got {self.judged_frames}")
        if self.temporal_window < 2:
            raise ConfigError(f"temporal_window must be at least 2 frames, got {self.temporal_window}")

    @property
    def uses_image_discriminator(self) -> bool:
        """Whether any term needs it."""
        return self.weights.gan > 0 or self.weights.feature_matching > 0

    @property
    def uses_temporal_discriminator(self) -> bool:
        """Whether any term needs it."""
        return self.weights.temporal_gan > 0 or self.weights.temporal_feature_matching > 0


@dataclass(frozen=True)
class Reference:
    """What the losses compare a clip with: computed once per clip."""

    conditions: Tensor
    """(B, T, C, H, W)."""
    frames: Tensor
    """Real frames, (B, T, 3, H, W)."""
    flow: Tensor
    """Flow from frame t+1 to frame t at entry t, (B, T-1, 2, H, W)."""
    confidence: Tensor
    """(B, T-1, 1, H, W) in [0, 1]."""


def temporal_tuples(num_past: int, num_new: int, window: int) -> list[tuple[int, ...]]:
    """Which frames a temporal discriminator sees after a chunk, newest first.

    Tuples do not overlap, and each ends inside the chunk.

    Args:
        num_past: frames made before this chunk.
        num_new: frames of this chunk.
        window: frames per tuple.

    Returns:
        Tuples of indices into past and new frames together; empty while there are too few.

    Source:
        The dense rule of vid2vid at its first temporal scale.
    """
    total = num_past + num_new
    num_groups = min(total - (window - 1), num_new)
    return [tuple(range(total - window - t, total - t)) for t in range(0, num_groups, window)]


class VideoObjective(nn.Module):
    """All vid2vid losses over one chunk of synthesised frames, for every player in one pass.

    The discriminators see each frame once: the generator's terms and their own share the same forward pass, because
    the training loop takes each player's gradients with respect to that player's weights alone.

    Args:
        config: losses and discriminators.
        condition_channels: C.
        perceptual: frozen perceptual loss; may be None only if its weight is 0.
        estimator: reference flow.
    """

    def __init__(
        self,
        config: ObjectiveConfig,
        condition_channels: int,
        perceptual: PerceptualLoss | None,
        estimator: FlowEstimator,
    ) -> None:
        super().__init__()
        if config.weights.perceptual > 0 and perceptual is None:
            raise ConfigError("the perceptual weight is positive and no perceptual network was given")
        self.config = config
        self.perceptual = perceptual
        self.estimator = estimator
        self.discriminators = nn.ModuleDict()
        if config.uses_image_discriminator:
            self.discriminators["image_discriminator"] = MultiScaleDiscriminator(
                condition_channels + 3, config.image_discriminator
            )
        if config.uses_temporal_discriminator:
            window = config.temporal_window
            self.discriminators["temporal_discriminator"] = MultiScaleDiscriminator(
                3 * window + 2 * (window - 1), config.temporal_discriminator
            )

    def weights(self, *, uses_flow: bool, more: Mapping[str, float] | None = None) -> dict[str, dict[str, float]]:
        """Weights by player and term, for the terms that ``chunk_losses`` gives.

        Args:
            uses_flow: whether the generator has a flow branch.
            more: further generator terms a task adds, with their weights.
        """
        flow_terms = {"flow", "flow_warp", "occlusion"}
        generator = {
            f.name: float(getattr(self.config.weights, f.name))
            for f in fields(LossWeights)
            if getattr(self.config.weights, f.name) > 0 and (uses_flow or f.name not in flow_terms)
        }
        generator.update(more or {})
        return {"generator": generator, **{name: {"fake": 0.5, "real": 0.5} for name in self.discriminators}}

    def reference(self, conditions: Tensor, frames: Tensor) -> Reference:
        """Reference flow of a clip: conditions (B, T, C, H, W), real frames (B, T, 3, H, W)."""
        return Reference(conditions, frames, *clip_flow(self.estimator, frames))

    def chunk_losses(self, chunk: Chunk, reference: Reference, past: list[Tensor]) -> dict[str, Terms]:
        """Losses of every player.

        Args:
            chunk: synthesised frames.
            reference: the clip they belong to.
            past: detached frames (B, 3, H, W) made before this chunk, oldest first.

        Returns:
            {player: {term: scalar}}, with exactly the names of ``weights``.
        """
        now = slice(chunk.start, chunk.start + chunk.output.frame.shape[1])
        real = reference.frames[:, now]
        drawn = [chunk.output.frame] + ([] if chunk.output.flow is None else [chunk.output.hallucinated])
        losses: dict[str, Terms] = {"generator": {}}
        generator = losses["generator"]
        if self.config.weights.reconstruction > 0:
            generator["reconstruction"] = torch.stack([(x - real).abs().mean() for x in drawn]).sum()
        self._flow_terms(generator, chunk, reference, now)
        seen = slice(-self.config.judged_frames, None) if self.config.judged_frames else slice(None)
        judged = drawn if self.config.supervise_hallucinated else drawn[:1]
        judged, real = [x[:, seen] for x in judged], real[:, seen]
        self._perceptual_terms(generator, judged, real)
        if "image_discriminator" in self.discriminators:
            conditions = reference.conditions[:, now][:, seen]
            losses["image_discriminator"] = self._image_terms(generator, judged, real, conditions)
        if "temporal_discriminator" in self.discriminators:
            losses["temporal_discriminator"] = self._temporal_terms(generator, chunk, reference, past)
        return losses

    def _perceptual_terms(self, terms: Terms, judged: list[Tensor], real: Tensor) -> None:
        if self.config.weights.perceptual > 0 and self.perceptual is not None:
            goal = self.perceptual.features(real.flatten(0, 1))
            terms["perceptual"] = torch.stack([self.perceptual(x.flatten(0, 1), goal) for x in judged]).sum()

    def _flow_terms(self, terms: Terms, chunk: Chunk, reference: Reference, now: slice) -> None:
        weights, output = self.config.weights, chunk.output
        before = slice(now.start - 1, now.stop - 1)
        flow = reference.flow[:, before]
        # Without a previous frame there is nothing to follow: those frames teach no motion.
        confidence = reference.confidence[:, before] * chunk.valid.view(*chunk.valid.shape, 1, 1, 1)
        if weights.warp > 0:
            moved = warp_backward(chunk.previous.flatten(0, 1), flow.flatten(0, 1)).view_as(chunk.previous)
            terms["warp"] = masked_l1(output.frame, moved, confidence)
        if output.flow is None or output.occlusion is None:
            return
        if weights.flow > 0:
            terms["flow"] = masked_l1(output.flow, flow, confidence)
        if weights.flow_warp > 0:
            real_before, real = reference.frames[:, before], reference.frames[:, now]
            moved = warp_backward(real_before.flatten(0, 1), output.flow.flatten(0, 1)).view_as(real)
            terms["flow_warp"] = masked_l1(moved, real, confidence)
        if weights.occlusion > 0:
            terms["occlusion"] = masked_l1(output.occlusion, 0.0, confidence)

    def _image_terms(self, terms: Terms, judged: list[Tensor], real: Tensor, conditions: Tensor) -> Terms:
        net = self.discriminators["image_discriminator"]
        condition = conditions.flatten(0, 1)
        real_features = net(torch.cat([condition, real.flatten(0, 1)], dim=1))
        fakes = [net(torch.cat([condition, x.flatten(0, 1)], dim=1)) for x in judged]
        self._adversarial(terms, "", fakes, real_features)
        return _discriminator_terms(fakes, real_features)

    def _temporal_terms(self, terms: Terms, chunk: Chunk, reference: Reference, past: list[Tensor]) -> Terms:
        frames = [*past, *chunk.output.frame.unbind(1)]
        tuples = temporal_tuples(len(past), chunk.output.frame.shape[1], self.config.temporal_window)
        if not tuples:
            zero = chunk.output.frame.new_zeros(())
            self._add_adversarial(terms, "temporal_", zero, zero)
            return {"fake": zero, "real": zero}
        first = chunk.start - len(past)  # clip index of the oldest frame in ``frames``
        net = self.discriminators["temporal_discriminator"]
        stacks: list[tuple[Tensor, Tensor]] = []
        for indices in tuples:
            flows = [reference.flow[:, first + i - 1] / FLOW_INPUT_SCALE for i in indices[1:]]
            fake = torch.cat([frames[i] for i in indices] + flows, dim=1)
            true = torch.cat([reference.frames[:, first + i] for i in indices] + flows, dim=1)
            stacks.append((fake, true))
        fake_features = net(torch.cat([fake for fake, _ in stacks]))
        real_features = net(torch.cat([true for _, true in stacks]))
        self._adversarial(terms, "temporal_", [fake_features], real_features)
        return _discriminator_terms([fake_features], real_features)

    def _adversarial(self, terms: Terms, prefix: str, fakes: list[Features], real: Features) -> None:
        gan = torch.stack([lsgan_loss(fake, real=True) for fake in fakes]).sum()
        matching = torch.stack([feature_matching_loss(fake, real) for fake in fakes]).sum()
        self._add_adversarial(terms, prefix, gan, matching)

    def _add_adversarial(self, terms: Terms, prefix: str, gan: Tensor, matching: Tensor) -> None:
        """Keep the terms whose weight is positive."""
        for name, value in ((f"{prefix}gan", gan), (f"{prefix}feature_matching", matching)):
            if getattr(self.config.weights, name) > 0:
                terms[name] = value


def _discriminator_terms(fakes: list[Features], real: Features) -> Terms:
    """A discriminator's own terms. The real frames count once, however many fakes are judged beside them."""
    return {
        "fake": torch.stack([lsgan_loss(fake, real=False) for fake in fakes]).mean(),
        "real": lsgan_loss(real, real=True),
    }
