"""The vid2vid objective: all losses and discriminators that teacher and student share."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field, fields, replace
from typing import get_args

import torch
from torch import Tensor, nn

from fastv2v.contracts import FlowEstimator
from fastv2v.data.painter import GUIDANCE_CHANNELS
from fastv2v.errors import ConfigError, ShapeError
from fastv2v.losses.contrast import contrast_distance
from fastv2v.losses.face import FaceRegion, crop_faces, face_boxes
from fastv2v.losses.flow import masked_l1
from fastv2v.losses.gan import GanKind, discriminator_loss, feature_matching_loss, generator_loss
from fastv2v.losses.guidance import guidance_loss, unseen_loss
from fastv2v.losses.perceptual import PerceptualLoss
from fastv2v.losses.tuples import dense_tuples, past_needed, sparse_tuples
from fastv2v.nn.discriminator import DiscriminatorConfig, Features, MultiScaleDiscriminator
from fastv2v.nn.pyramid import PyramidConfig, PyramidDiscriminator
from fastv2v.ops.flow import FilesFlow, clip_flow
from fastv2v.ops.warp import compose_flow, warp_backward
from fastv2v.render import Chunk

Terms = dict[str, Tensor]

FLOW_INPUT_SCALE = 20.0
"""Reference flow is divided by this before it enters a temporal discriminator (vid2vid)."""


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Weight of every generator term. A term of weight 0 is not computed."""

    gan: float = 1.0
    """Adversarial term of the image discriminator."""
    feature_matching: float = 10.0
    """Distance of the image discriminator's features."""
    pyramid_gan: float = 1.0
    """Adversarial term of the pyramid discriminator, where there is one."""
    perceptual: float = 10.0
    """Distance of ImageNet features to the real frame's."""
    reconstruction: float = 0.0
    """Mean absolute distance to the real frame. Not among vid2vid's terms; it steadies short trainings."""
    contrast: float = 0.0
    """Distance of local contrast, at several scales, to that of the real frame. Not among vid2vid's terms either."""
    flow: float = 10.0
    """Predicted against reference flow, where that is confident."""
    flow_warp: float = 10.0
    """Real previous frame warped by the predicted flow against the real frame."""
    warp: float = 10.0
    """Finished frame against the previous finished frame warped by the reference flow."""
    own_warp: float = 0.0
    """Own previous frame warped by the predicted flow against the real frame (world-consistent vid2vid: 10)."""
    unseen: float = 0.0
    """Pulls the occlusion to 1 where that warped frame shows something else than the real one, to 0 elsewhere
    (world-consistent vid2vid: 10)."""
    guidance: float = 0.0
    """Finished frame against the colours that the painted world showed it (world-consistent vid2vid: 20). Only where
    the condition has guidance."""
    occlusion: float = 0.0
    """Pulls the occlusion to 0 where the reference flow is confident (vid2vid: 1 with no_first_img)."""
    temporal_gan: float = 1.0
    """Adversarial term of every temporal discriminator."""
    temporal_feature_matching: float = 10.0
    """Distance of every temporal discriminator's features."""
    face_gan: float = 2.0
    """Adversarial term of the face discriminator, where there is one."""
    face_feature_matching: float = 20.0
    """Distance of the face discriminator's features, where there is one."""

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
    pyramid_discriminator: PyramidConfig = field(default_factory=PyramidConfig)
    """Judges single frames beside it, by how well each place fits its condition; of width 0, the default, none.
    Published for the first frames of world-consistent vid2vid, where conditions are label maps."""
    temporal_discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    """Judges short runs of frames with the flow between them; every temporal scale has its own network of this kind."""
    temporal_window: int = 3
    """Frames a temporal discriminator sees at once (vid2vid's n_frames_D)."""
    temporal_scales: int = 1
    """Number of temporal discriminators; number s sees every temporal_window^s-th frame (vid2vid's n_scales_temporal,
    2 there). 0 for none."""
    sparse_temporal: bool = False
    """Coarse temporal discriminators see fixed frames, counted from the first synthesised one, instead of tuples that
    end with each chunk: less work where chunks are short (vid2vid's sparse_D)."""
    face_discriminator: DiscriminatorConfig | None = None
    """Judges the faces of finished frames, cut out where the condition shows a head; None for none.
    ``face_discriminator_like`` gives vid2vid's."""
    face_region: FaceRegion = "densepose"
    """How the condition shows a head: the third channel of a DensePose map, or the neck of a drawn OpenPose map."""
    gan: GanKind = "lsgan"
    """Adversarial loss of all discriminators: least squares as in vid2vid, or hinge as in its successors."""
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
        if self.temporal_scales < 0:
            raise ConfigError(f"temporal_scales must be at least 0, got {self.temporal_scales}")
        for name, kinds in (("face_region", get_args(FaceRegion)), ("gan", get_args(GanKind))):
            if getattr(self, name) not in kinds:
                raise ConfigError(f"{name} is one of {', '.join(kinds)}, got {getattr(self, name)!r}")

    @property
    def uses_image_discriminator(self) -> bool:
        """Whether any term needs it."""
        return self.weights.gan > 0 or self.weights.feature_matching > 0

    @property
    def uses_pyramid_discriminator(self) -> bool:
        """Whether there is one and its term is needed."""
        return self.pyramid_discriminator.width > 0 and self.weights.pyramid_gan > 0

    @property
    def uses_temporal_discriminator(self) -> bool:
        """Whether any term needs one."""
        is_weighed = self.weights.temporal_gan > 0 or self.weights.temporal_feature_matching > 0
        return self.temporal_scales > 0 and is_weighed

    @property
    def uses_face_discriminator(self) -> bool:
        """Whether there is one and any term needs it."""
        is_weighed = self.weights.face_gan > 0 or self.weights.face_feature_matching > 0
        return self.face_discriminator is not None and is_weighed

    @property
    def past_frames(self) -> int:
        """How many frames from before a chunk ``chunk_losses`` looks back on."""
        return past_needed(self.temporal_window, self.temporal_scales) if self.uses_temporal_discriminator else 0


def face_discriminator_like(image: DiscriminatorConfig) -> DiscriminatorConfig:
    """vid2vid's face discriminator: the image discriminator with two scales less, as faces are a quarter as large."""
    return replace(image, num_scales=max(1, image.num_scales - 2))


def temporal_discriminator(config: ObjectiveConfig) -> MultiScaleDiscriminator:
    """A temporal discriminator with fresh weights: it sees the frames of a window and the flow between them."""
    window = config.temporal_window
    return MultiScaleDiscriminator(3 * window + 2 * (window - 1), config.temporal_discriminator)


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
    skipping: dict[tuple[int, int], Tensor] = field(default_factory=dict, repr=False, compare=False)
    """Flow (B, 2, H, W) between frames further apart, by (later, earlier): found when first asked for."""


class VideoObjective(nn.Module):
    """All vid2vid losses over one chunk of synthesised frames, for every player in one pass.

    The discriminators see each frame once: the generator's terms and their own share the same forward pass, because
    the training loop takes each player's gradients with respect to that player's weights alone.

    Args:
        config: losses and discriminators.
        condition_channels: C.
        perceptual: frozen perceptual loss; may be None only if its weight is 0.
        estimator: reference flow.
        guidance_levels: levels of guidance that the condition ends with. No discriminator sees them: a real frame has
            none.

    Raises:
        ConfigError: if a loss lacks what it needs.
    """

    def __init__(
        self,
        config: ObjectiveConfig,
        condition_channels: int,
        perceptual: PerceptualLoss | None,
        estimator: FlowEstimator,
        *,
        guidance_levels: int = 0,
    ) -> None:
        super().__init__()
        if config.weights.perceptual > 0 and perceptual is None:
            raise ConfigError("the perceptual weight is positive and no perceptual network was given")
        self.config = config
        self.guidance_levels = guidance_levels
        condition_channels -= GUIDANCE_CHANNELS * guidance_levels
        self.perceptual = perceptual
        self.estimator = estimator
        self.discriminators = nn.ModuleDict()
        if config.uses_image_discriminator:
            self.discriminators["image_discriminator"] = MultiScaleDiscriminator(
                condition_channels + 3, config.image_discriminator
            )
        if config.uses_pyramid_discriminator:
            self.discriminators["pyramid_discriminator"] = PyramidDiscriminator(
                condition_channels, config.pyramid_discriminator
            )
        if config.uses_temporal_discriminator:
            for scale in range(config.temporal_scales):
                self.discriminators[f"temporal_discriminator_{scale}"] = temporal_discriminator(config)
        if config.uses_face_discriminator and config.face_discriminator is not None:
            if condition_channels < 3:
                raise ConfigError(
                    f"the face discriminator finds heads in {config.face_region} maps of three channels, and the "
                    f"condition has {condition_channels}; set face_discriminator to None"
                )
            self.discriminators["face_discriminator"] = MultiScaleDiscriminator(
                condition_channels + 3, config.face_discriminator
            )

    def weights(self, *, uses_flow: bool, more: Mapping[str, float] | None = None) -> dict[str, dict[str, float]]:
        """Weights by player and term, for the terms that ``chunk_losses`` gives.

        Args:
            uses_flow: whether the generator has a flow branch.
            more: further generator terms a task adds, with their weights.
        """
        flow_terms = {"flow", "flow_warp", "occlusion", "own_warp", "unseen"}
        generator: dict[str, float] = {}
        for name in (f.name for f in fields(LossWeights)):
            weight = float(getattr(self.config.weights, name))
            possible = (uses_flow or name not in flow_terms) and (self.guidance_levels or name != "guidance")
            if weight > 0 and possible:
                generator.update(dict.fromkeys(self._names(name), weight))
        generator.update(more or {})
        return {"generator": generator, **{name: {"fake": 0.5, "real": 0.5} for name in self.discriminators}}

    def _names(self, weight: str) -> list[str]:
        """The terms that one of the ``LossWeights`` stands for."""
        if weight.startswith("temporal_"):
            return [f"{weight}_{scale}" for scale in range(self.config.temporal_scales)]
        if weight.startswith("pyramid_") and not self.config.pyramid_discriminator.width:
            return []
        return [] if weight.startswith("face_") and self.config.face_discriminator is None else [weight]

    def reference(self, conditions: Tensor, frames: Tensor, flow: Tensor | None = None) -> Reference:
        """Reference flow of a clip.

        Args:
            conditions: (B, T, C, H, W).
            frames: real frames, (B, T, 3, H, W).
            flow: flow read from files, (B, T-1, 2, H, W); used where the estimator is ``FilesFlow``, which needs it.

        Raises:
            DataError: if the clip is too short, or flow should come from files and there is none.
        """
        return Reference(conditions, frames, *clip_flow(self.estimator, frames, flow))

    def past_after(self, past: list[Tensor], chunk: Chunk) -> list[Tensor]:
        """What to hand to ``chunk_losses`` as ``past`` with the next chunk: no more frames than it can look back on."""
        kept = [*past, *chunk.output.frame.detach().unbind(1)]
        return kept[max(len(kept) - self.config.past_frames, 0) :]

    def chunk_losses(
        self, chunk: Chunk, reference: Reference, past: list[Tensor], *, num_made: int | None = None
    ) -> dict[str, Terms]:
        """Losses of every player.

        Args:
            chunk: synthesised frames.
            reference: the clip they belong to.
            past: detached frames (B, 3, H, W) made before this chunk, oldest first; see ``past_after``.
            num_made: how many frames of the clip were made before this chunk, of which ``past`` holds the newest; None
                means exactly those. Sparse temporal scales count frames from the first one made.

        Returns:
            {player: {term: scalar}}, with exactly the names of ``weights``. A temporal scale that finds no tuple in
            this chunk gives constant zeros, which move nobody. Without a face on them, clips count as zero distance.
        """
        now = slice(chunk.start, chunk.start + chunk.output.frame.shape[1])
        real = reference.frames[:, now]
        output = chunk.output
        blends = output.flow is not None and output.hallucinated is not output.frame
        drawn = [output.frame, output.hallucinated] if blends else [output.frame]
        losses: dict[str, Terms] = {"generator": {}}
        generator = losses["generator"]
        if self.config.weights.reconstruction > 0:
            generator["reconstruction"] = torch.stack([(x - real).abs().mean() for x in drawn]).sum()
        if self.config.weights.contrast > 0:
            generator["contrast"] = contrast_distance(drawn[0].flatten(0, 1), real.flatten(0, 1))
        if self.config.weights.guidance > 0 and self.guidance_levels:
            generator["guidance"] = self._guidance_term(chunk)
        self._flow_terms(generator, chunk, reference, now)
        seen = slice(-self.config.judged_frames, None) if self.config.judged_frames else slice(None)
        judged = drawn if self.config.supervise_hallucinated else drawn[:1]
        judged, real = [x[:, seen] for x in judged], real[:, seen]
        self._perceptual_terms(generator, judged, real)
        for name in ("image_discriminator", "pyramid_discriminator"):
            if name in self.discriminators:
                conditions = self._without_guidance(reference.conditions[:, now][:, seen])
                losses[name] = self._image_terms(generator, name, judged, real, conditions)
        if "face_discriminator" in self.discriminators:
            conditions = self._without_guidance(reference.conditions[:, now][:, seen])
            losses["face_discriminator"] = self._face_terms(generator, judged[0], real, conditions)
        if self.config.uses_temporal_discriminator:
            for scale in range(self.config.temporal_scales):
                tuples = self._tuples(scale, chunk, len(past), num_made)
                losses[f"temporal_discriminator_{scale}"] = self._temporal_terms(
                    generator, scale, tuples, chunk, reference, past
                )
        return losses

    def _guidance_term(self, chunk: Chunk) -> Tensor:
        if chunk.guidance is None:
            raise ShapeError("the guidance term needs a rollout that says what guidance each frame was given")
        return guidance_loss(chunk.output.frame, chunk.guidance[:, :, :GUIDANCE_CHANNELS])

    def _without_guidance(self, conditions: Tensor) -> Tensor:
        """Conditions (B, n, C, H, W) as the discriminators see them."""
        return conditions[:, :, : conditions.shape[2] - GUIDANCE_CHANNELS * self.guidance_levels]

    def _perceptual_terms(self, terms: Terms, judged: list[Tensor], real: Tensor) -> None:
        if self.config.weights.perceptual > 0 and self.perceptual is not None:
            goal = self.perceptual.features(real.flatten(0, 1))
            terms["perceptual"] = torch.stack([self.perceptual(x.flatten(0, 1), goal) for x in judged]).sum()

    def _flow_terms(self, terms: Terms, chunk: Chunk, reference: Reference, now: slice) -> None:
        weights, output = self.config.weights, chunk.output
        before = slice(now.start - 1, now.stop - 1)
        flow = reference.flow[:, before]
        # Without a previous frame there is nothing to follow: those frames teach no motion.
        valid = chunk.valid.view(*chunk.valid.shape, 1, 1, 1)
        confidence = reference.confidence[:, before] * valid
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
        if output.warped is not None and weights.own_warp > 0:
            terms["own_warp"] = masked_l1(output.warped, reference.frames[:, now], valid)
        if output.warped is not None and weights.unseen > 0:
            terms["unseen"] = unseen_loss(output.occlusion, output.warped, reference.frames[:, now], valid)
        if weights.occlusion > 0:
            terms["occlusion"] = masked_l1(output.occlusion, 0.0, confidence)

    def _image_terms(self, terms: Terms, name: str, judged: list[Tensor], real: Tensor, conditions: Tensor) -> Terms:
        net = self.discriminators[name]
        assert isinstance(net, MultiScaleDiscriminator | PyramidDiscriminator)
        pictures = [x.flatten(0, 1) for x in (real, *judged)]
        real_features, *fakes = net.judge(conditions.flatten(0, 1), pictures)
        if isinstance(net, PyramidDiscriminator):
            terms["pyramid_gan"] = self._fooling_term(fakes)
        else:
            self._add(terms, "", *self._fooling_terms(fakes, real_features))
        return self._own_terms(fakes, real_features)

    def _face_terms(self, terms: Terms, frames: Tensor, real: Tensor, conditions: Tensor) -> Terms:
        net, config = self.discriminators["face_discriminator"], self.config
        boxes = face_boxes(conditions, config.face_region)
        # All clips are judged and those without a face count nothing: every process then normalises the same clips and
        # has gradients (zeros, perhaps) to share.
        weight = boxes.found.float().repeat_interleave(frames.shape[1])
        condition, true, fake = (crop_faces(x, boxes).flatten(0, 1) for x in (conditions, real, frames))
        real_features = net(torch.cat([condition, true], dim=1))
        fakes = [net(torch.cat([condition, fake], dim=1))]
        # vid2vid divides by the number of the image discriminator's scales here too.
        scales = len(real_features) / config.image_discriminator.num_scales
        gan, matching = self._fooling_terms(fakes, real_features, weight)
        self._add(terms, "face", gan, scales * matching)
        return self._own_terms(fakes, real_features, weight)

    def _tuples(self, scale: int, chunk: Chunk, num_past: int, num_made: int | None) -> list[tuple[int, ...]]:
        """What a temporal discriminator looks at after a chunk, as frame numbers of the clip."""
        window, num_new = self.config.temporal_window, chunk.output.frame.shape[1]
        if not self.config.sparse_temporal:
            first, tuples = chunk.start - num_past, dense_tuples(num_past, num_new, window, scale)
        else:
            num_made = num_past if num_made is None else num_made
            first, tuples = chunk.start - num_made, sparse_tuples(num_made, num_new, window, scale)
        tuples = [tuple(first + i for i in frames) for frames in tuples]
        missing = chunk.start - num_past - min((frames[0] for frames in tuples), default=chunk.start)
        if missing > 0:
            raise ShapeError(
                f"temporal scale {scale} looks back on {missing} more frames than the {num_past} in past; keep "
                f"{self.config.past_frames}, as past_after does"
            )
        return tuples

    def _temporal_terms(
        self,
        terms: Terms,
        scale: int,
        tuples: list[tuple[int, ...]],
        chunk: Chunk,
        reference: Reference,
        past: list[Tensor],
    ) -> Terms:
        if not tuples:
            zero = chunk.output.frame.new_zeros((), dtype=torch.float32)
            self._add(terms, "temporal", zero, zero, f"_{scale}")
            return {"fake": zero, "real": zero}
        made = dict(enumerate([*past, *chunk.output.frame.unbind(1)], start=chunk.start - len(past)))
        flow = self._flow_between(reference, {pair for frames in tuples for pair in _steps(frames)})
        # Both sides see the flow of the real frames, so that it tells them apart by nothing but how the frames fit it.
        flows = torch.cat([_stack(flow[pair] for pair in _steps(frames)) for frames in tuples]) / FLOW_INPUT_SCALE
        fake = torch.cat([_stack(made[i] for i in frames) for frames in tuples])
        true = torch.cat([_stack(reference.frames[:, i] for i in frames) for frames in tuples])
        net = self.discriminators[f"temporal_discriminator_{scale}"]
        fakes = [net(torch.cat([fake, flows], dim=1))]
        real_features = net(torch.cat([true, flows], dim=1))
        self._add(terms, "temporal", *self._fooling_terms(fakes, real_features), f"_{scale}")
        return self._own_terms(fakes, real_features)

    def _flow_between(self, reference: Reference, pairs: Set[tuple[int, int]]) -> dict[tuple[int, int], Tensor]:
        """Reference flow (B, 2, H, W) from the later to the earlier real frame of each pair (later, earlier)."""
        found = {(later, earlier): reference.flow[:, earlier] for later, earlier in pairs if later == earlier + 1}
        missing = sorted(pair for pair in pairs if pair not in found and pair not in reference.skipping)
        if missing and isinstance(self.estimator, FilesFlow):
            for later, earlier in missing:
                flow = reference.flow[:, later - 1]
                for t in range(later - 2, earlier - 1, -1):
                    flow = compose_flow(flow, reference.flow[:, t])
                reference.skipping[later, earlier] = flow
        elif missing:
            ends = [torch.cat([reference.frames[:, i] for i in times]) for times in zip(*missing, strict=True)]
            flows = self.estimator(*ends)[0].chunk(len(missing))
            reference.skipping.update(zip(missing, flows, strict=True))
        return reference.skipping | found

    def _fooling_terms(
        self, fakes: list[Features], real: Features, weight: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The generator's adversarial and feature-matching terms against one discriminator."""
        gan = self._fooling_term(fakes, weight)
        return gan, torch.stack([feature_matching_loss(fake, real, weight) for fake in fakes]).sum()

    def _fooling_term(self, fakes: list[Features], weight: Tensor | None = None) -> Tensor:
        """The generator's adversarial term against one discriminator."""
        return torch.stack([generator_loss(fake, self.config.gan, weight) for fake in fakes]).sum()

    def _add(self, terms: Terms, of: str, gan: Tensor, matching: Tensor, suffix: str = "") -> None:
        """Keep the generator's terms whose weight is positive."""
        for name, value in (("gan", gan), ("feature_matching", matching)):
            weight = f"{of}_{name}" if of else name
            if getattr(self.config.weights, weight) > 0:
                terms[weight + suffix] = value

    def _own_terms(self, fakes: list[Features], real: Features, weight: Tensor | None = None) -> Terms:
        """A discriminator's own terms. The real frames count once, however many fakes are judged beside them."""
        kind = self.config.gan
        return {
            "fake": torch.stack([discriminator_loss(fake, kind, real=False, weight=weight) for fake in fakes]).mean(),
            "real": discriminator_loss(real, kind, real=True, weight=weight),
        }


def _steps(frames: tuple[int, ...]) -> list[tuple[int, int]]:
    """Neighbours within a tuple as (later, earlier), oldest first."""
    return [(later, earlier) for earlier, later in itertools.pairwise(frames)]


def _stack(parts: Iterable[Tensor]) -> Tensor:
    """Pictures of one moment after the other as channels."""
    return torch.cat(list(parts), dim=1)
