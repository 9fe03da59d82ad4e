"""What the two stages of distillation share: one step, in which the student follows the teacher at its own pace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from distill.features import (
    Maps,
    Projections,
    alignment_distance,
    captured,
    change_distance,
    feature_channels,
    feature_distance,
)
from distill.teacher import LiveTeacher, Taught, TeacherSource, shown_teacher, teacher_source
from distill.terms import (
    DistillWeights,
    MaskKind,
    composed_flow,
    distill_mask,
    judged_distance,
    temporal_distance,
    video_distance,
)
from fastv2v.contracts import Losses
from fastv2v.data.clip import Clip
from fastv2v.data.conditions import ConditionSpec
from fastv2v.errors import ConfigError
from fastv2v.losses.contrast import contrast_distance
from fastv2v.losses.flow import masked_l1
from fastv2v.losses.objective import Reference, VideoObjective
from fastv2v.losses.rollout import WORN, RolloutConfig, draw_lead_in, draw_start, training_rollout
from fastv2v.nn.generators import VideoGenerator
from fastv2v.ops.labels import encode_clip, guidance_points
from fastv2v.render import Chunk, cut, render_clip
from fastv2v.score import clip_psnr

TemporalFeatures = Literal["perceptual", "discriminator", "both", "r3d18", "s3d"]
"""What looks at a window of keyframes for ``kd_temporal``: changes of the perceptual network's features; the teacher's
temporal discriminator; both, half each; or a 3-D network of torchvision."""


class DistillConfig(Protocol):
    """What the step reads of a stage's config."""

    @property
    def weights(self) -> DistillWeights:
        """Weights of the distillation terms."""
        ...

    @property
    def mask(self) -> MaskKind:
        """Mask of the local terms."""
        ...

    @property
    def rollout(self) -> RolloutConfig:
        """Starts and truncation."""
        ...

    @property
    def lead_in(self) -> int:
        """Most frames that the student makes before those it is trained on."""
        ...


class DistillTask:
    """Teacher and student roll out a clip, each from its own history; they meet at the student's keyframes.

    Args:
        student: the generator that is trained.
        teacher: a generator, which is frozen, or another source of its frames. None trains the student alone; every
            distillation weight must then be 0. It is not asked either where all of them are.
        spec: how conditions are encoded.
        objective: losses and discriminators, applied to the student's keyframes.
        config: distillation settings.
        window: keyframes the global temporal term looks at together.
        temporal_features: with what.
        video: the frozen network for that, unless it is the perceptual one: ``VideoFeatures``, or the teacher's
            temporal discriminator.

    Raises:
        ConfigError: if teacher and student do not fit each other, or a term lacks its network.
    """

    deployed_gap = 1
    """Gap at which held-out clips are shown and scored."""

    def __init__(
        self,
        student: VideoGenerator,
        teacher: VideoGenerator | TeacherSource | None,
        spec: ConditionSpec,
        objective: VideoObjective,
        config: DistillConfig,
        *,
        window: int = 2,
        temporal_features: TemporalFeatures = "perceptual",
        video: nn.Module | None = None,
    ) -> None:
        weights = config.weights
        weights.check_taught(teacher is not None)
        source = teacher_source(student, teacher, features=weights.uses_features)
        changes = weights.kd_temporal > 0 and temporal_features in ("perceptual", "both")
        perceptual = ["kd_perceptual"] * (weights.kd_perceptual > 0) + ["kd_temporal"] * changes
        if perceptual and objective.perceptual is None:
            raise ConfigError(f"{' and '.join(perceptual)} need the perceptual network")
        if weights.kd_temporal and temporal_features != "perceptual" and video is None:
            raise ConfigError(f"kd_temporal on {temporal_features} features needs the network that makes them")
        if weights.kd_flow and not (student.uses_flow and source is not None and source.has_flow):
            raise ConfigError("kd_flow needs a flow branch in teacher and student")
        self.student, self.teacher = student, source
        self.spec, self.objective = spec, objective
        self.config, self._window = config, window
        self._features: TemporalFeatures = temporal_features
        self._video = video
        # Features of the student's frames are computed once, for both terms; masked frames have others.
        self._keeps_maps = changes or (weights.kd_perceptual > 0 and config.mask == "none")
        self._sees_all = changes
        players: dict[str, nn.Module] = {"generator": student, **objective.discriminators}
        by_player = objective.weights(uses_flow=student.uses_flow, more=weights.active())
        self._projections: Projections | None = None
        if weights.kd_features and isinstance(source, LiveTeacher):
            self._projections = Projections(feature_channels(student), feature_channels(source.generator))
            # A player of its own: trained by the same term, saved for resuming, no part of what is delivered.
            players["projections"] = self._projections
            by_player["projections"] = {"kd_features": weights.kd_features}
        self.players: Mapping[str, nn.Module] = players
        self.weights: Mapping[str, Mapping[str, float]] = by_player

    def _draw_gap(self, clip: Clip, rng: torch.Generator) -> int:
        """Frames from one keyframe of the clip to the next."""
        return 1

    def step(self, clip: Clip, rng: torch.Generator, at: int) -> Iterator[Losses]:
        """Losses of every player, chunk after chunk."""
        config, past_steps = self.config, self.student.history_length
        gap = self._draw_gap(clip, rng)
        start = draw_start(config.rollout, rng)
        clip, lead = self._begin(clip, gap, rng)
        conditions = encode_clip(self.spec, clip)
        key_conditions, key_frames = conditions[:, ::gap], clip.frames[:, ::gap]
        # Only keyframes paint the student's world, as in its deployment.
        key_points = cut(guidance_points(self.spec, clip), slice(None, None, gap))
        # Losses and teacher see what follows the lead-in. The teacher begins there from real frames: what a student
        # that has drifted away should come back to.
        conditions, clip = conditions[:, lead * gap :], clip.take(lead * gap, clip.num_frames)
        taught = None
        if self.teacher is not None and config.weights.active():
            begin = "full" if lead or start in WORN else start
            taught = self.teacher.teach(clip, conditions, begin, guidance_points(self.spec, clip))
        flow = clip.flow if gap == 1 else None  # flow files know no gaps
        reference = self.objective.reference(key_conditions[:, lead:], key_frames[:, lead:], flow)
        past: list[Tensor] = []
        seen: _Seen | None = None
        taps = captured(self.student, clip.size) if config.weights.uses_features else nullcontext()
        with taps as kept:
            for chunk in training_rollout(
                self.student, key_conditions, key_frames, start, config.rollout, at, lead_in=lead, points=key_points
            ):
                losses = self.objective.chunk_losses(chunk, reference, past, num_made=chunk.start - past_steps)
                if taught is not None:
                    made = {} if kept is None else kept.take(chunk.output.frame.shape[1])
                    seen = self._see(chunk, taught, gap, made).after(seen, self._window)
                    losses["generator"].update(self._terms(seen, chunk, taught, reference, gap))
                    if self._projections is not None:
                        losses["projections"] = {"kd_features": losses["generator"]["kd_features"]}
                yield losses
                past = self.objective.past_after(past, chunk)
                if kept is not None:
                    kept.clear()  # gradient checkpointing has made the chunk a second time
                if seen is not None:
                    seen = seen.kept(self._window - 1)

    def _begin(self, clip: Clip, gap: int, rng: torch.Generator) -> tuple[Clip, int]:
        """Draw a lead-in, in keyframes, and cut the clip to it: what is trained on is the same for each length."""
        num_keyframes = -(-clip.num_frames // gap)
        first, lead = draw_lead_in(self.config.lead_in, num_keyframes, self.student.history_length, rng)
        return (clip.take(first * gap, clip.num_frames) if first else clip), lead

    def teacher_entry(self, keyframe: int, gap: int) -> int:
        """Entry of what the teacher made that shows the same moment as keyframe number ``keyframe``."""
        return keyframe * gap - self.student.history_length

    def _see(self, chunk: Chunk, taught: Taught, gap: int, taps: Maps) -> _Seen:
        """A chunk beside what the teacher made at the same moments."""
        frames = chunk.output.frame
        count = frames.shape[1]
        entries = [self.teacher_entry(k, gap) for k in range(chunk.start, chunk.start + count)]
        goals = taught.frame[:, entries]
        made_maps: list[Tensor] = []
        goal_maps: list[Tensor] = []
        if self._keeps_maps and self.objective.perceptual is not None:
            network = self.objective.perceptual
            seen = slice(None) if self._sees_all else slice(-self._num_judged(count), None)
            shape = (frames.shape[0], -1)
            made_maps = [m.unflatten(0, shape) for m in network.network(frames[:, seen].flatten(0, 1))]
            goal_maps = [m.unflatten(0, shape) for m in network.features(goals[:, seen].flatten(0, 1))]
        goal_taps = {name: maps[:, entries] for name, maps in (taught.features or {}).items()}
        return _Seen(count, frames, goals, made_maps, goal_maps, taps, goal_taps)

    def _num_judged(self, count: int) -> int:
        """How many frames of a chunk the perceptual network judges: as many as in the objective."""
        return min(self.objective.config.judged_frames or count, count)

    def _terms(self, seen: _Seen, chunk: Chunk, taught: Taught, reference: Reference, gap: int) -> dict[str, Tensor]:
        """Distillation terms of one chunk; ``seen`` is the window of keyframes that ends with it."""
        weights, count = self.config.weights, seen.count
        terms: dict[str, Tensor] = {}
        before = slice(chunk.start - 1, chunk.start - 1 + count)
        mask = distill_mask(self.config.mask, reference.flow[:, before], reference.confidence[:, before])
        made, goal = seen.frames[:, -count:], seen.goals[:, -count:]
        if mask is not None:
            made, goal = made * mask, goal * mask
        if weights.kd_reconstruction > 0:
            terms["kd_reconstruction"] = (made - goal).abs().mean()
        if self.objective.perceptual is not None and weights.kd_perceptual > 0:
            judged = slice(-self._num_judged(count), None)
            if mask is None:
                maps = ([m[:, judged].flatten(0, 1) for m in side] for side in (seen.made_maps, seen.goal_maps))
                terms["kd_perceptual"] = self.objective.perceptual.distance(*maps)
            else:
                pictures = (x[:, judged].flatten(0, 1) for x in (made, goal))
                terms["kd_perceptual"] = self.objective.perceptual(*pictures)
        if weights.kd_contrast > 0:
            whole = (x[:, -count:].flatten(0, 1) for x in (seen.frames, seen.goals))  # a mask has edges of its own
            terms["kd_contrast"] = contrast_distance(*whole)
        if weights.kd_temporal > 0:
            last = chunk.start + count
            between = reference.flow[:, last - seen.frames.shape[1] : last - 1]
            terms["kd_temporal"] = self._temporal_term(seen, between)
        if weights.kd_flow > 0:
            terms["kd_flow"] = self._flow_term(chunk, taught, reference, gap)
        if weights.uses_features:
            terms.update(self._feature_terms(seen))
        return terms

    def _temporal_term(self, seen: _Seen, flow: Tensor) -> Tensor:
        """The global term over the window, between whose keyframes ``flow`` lies."""
        distances = []
        if self._features in ("perceptual", "both"):
            distances.append(temporal_distance(seen.made_maps, seen.goal_maps))
        if self._features in ("discriminator", "both") and self._video is not None:
            window = self.objective.config.temporal_window
            distances.append(judged_distance(self._video, seen.frames, seen.goals, flow, window))
        if self._features in ("r3d18", "s3d") and self._video is not None:
            distances.append(video_distance(self._video, seen.frames, seen.goals))
        return torch.stack(distances).mean()

    def _flow_term(self, chunk: Chunk, taught: Taught, reference: Reference, gap: int) -> Tensor:
        """Student flow against the teacher's flow composed over the gap, where the reference flow is confident."""
        distances = []
        for i in range(chunk.output.frame.shape[1]):
            entry = self.teacher_entry(chunk.start + i, gap)
            if entry - gap + 1 < 0 or chunk.output.flow is None or taught.flow is None:
                continue
            goal = composed_flow(taught.flow, entry, gap)
            confidence = reference.confidence[:, chunk.start + i - 1] * chunk.valid[:, i].view(-1, 1, 1, 1)
            distances.append(masked_l1(chunk.output.flow[:, i], goal, confidence))
        return torch.stack(distances).mean() if distances else chunk.output.frame.new_zeros(())

    def _feature_terms(self, seen: _Seen) -> dict[str, Tensor]:
        """Terms of the inner feature maps; the change also looks at the frame before the chunk."""
        weights = self.config.weights
        now, goal = ({name: m[:, -seen.count :] for name, m in taps.items()} for taps in (seen.taps, seen.goal_taps))
        terms = {}
        if self._projections is not None:
            terms["kd_features"] = feature_distance(self._projections(now), goal)
        if weights.kd_alignment > 0:
            terms["kd_alignment"] = alignment_distance(now, goal)
        if weights.kd_feature_change > 0:
            recent = slice(-seen.count - 1, None)
            both = ({name: m[:, recent] for name, m in taps.items()} for taps in (seen.taps, seen.goal_taps))
            terms["kd_feature_change"] = change_distance(*both)
        return terms

    def sample(self, clip: Clip) -> Mapping[str, Tensor]:
        """Keyframes at the deployed gap: real, live teacher and student, rolled out from the first real frame."""
        conditions, gap = encode_clip(self.spec, clip), self.deployed_gap
        points = guidance_points(self.spec, clip)
        return {
            "real": clip.frames[:, ::gap],
            **shown_teacher(self.teacher, conditions, clip.frames[:, :1], gap, points),
            "student": self._render(clip, conditions),
        }

    def evaluate(self, clip: Clip) -> Mapping[str, float]:
        """PSNR in dB against the real frames of the student's keyframes at the deployed gap."""
        frames = self._render(clip, encode_clip(self.spec, clip))
        return {"psnr": clip_psnr(frames[:, 1:], clip.frames[:, :: self.deployed_gap][:, 1:])}

    def _render(self, clip: Clip, conditions: Tensor) -> Tensor:
        """The student's keyframes at the deployed gap, from the first real frame."""
        keyframes = slice(None, None, self.deployed_gap)
        points = cut(guidance_points(self.spec, clip), keyframes)
        return render_clip(self.student, conditions[:, keyframes], clip.frames[:, :1], points)


@dataclass(frozen=True)
class _Seen:
    """The newest keyframes of student and teacher with what was computed of them, so that nothing is computed twice."""

    count: int
    """How many of them belong to the present chunk."""
    frames: Tensor
    """The student's, (B, K, 3, H, W)."""
    goals: Tensor
    """The teacher's."""
    made_maps: list[Tensor]
    """Perceptual features of the student's, (B, K, C, h, w) each; empty where no term needs them."""
    goal_maps: list[Tensor]
    """The same of the teacher's."""
    taps: Maps
    """The student's inner feature maps by tap point, (B, K, C, h, w); empty where no term needs them."""
    goal_taps: Maps
    """The teacher's."""

    def after(self, earlier: _Seen | None, window: int) -> _Seen:
        """This chunk behind earlier keyframes: a window, or the whole of a longer chunk with the step into it."""
        if earlier is None:
            return self
        length = max(window, self.count + 1)

        def join(old: Tensor, new: Tensor) -> Tensor:
            return torch.cat([old, new], dim=1)[:, -length:]

        return _Seen(
            self.count,
            join(earlier.frames, self.frames),
            join(earlier.goals, self.goals),
            [join(a, b) for a, b in zip(earlier.made_maps, self.made_maps, strict=True)],
            [join(a, b) for a, b in zip(earlier.goal_maps, self.goal_maps, strict=True)],
            {name: join(earlier.taps[name], maps) for name, maps in self.taps.items()},
            {name: join(earlier.goal_taps[name], maps) for name, maps in self.goal_taps.items()},
        )

    def kept(self, count: int) -> _Seen:
        """The newest ``count`` keyframes, cut from the graph, for the next chunk."""

        def cut(x: Tensor) -> Tensor:
            return x[:, -count:].detach()

        return replace(
            self,
            frames=cut(self.frames),
            goals=cut(self.goals),
            made_maps=[cut(m) for m in self.made_maps],
            goal_maps=[cut(m) for m in self.goal_maps],
            taps={name: cut(m) for name, m in self.taps.items()},
            goal_taps={name: cut(m) for name, m in self.goal_taps.items()},
        )
