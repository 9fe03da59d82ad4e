"""Training of a full-time teacher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from fastv2v.architecture import Generator
from fastv2v.contracts import Losses, StepModel
from fastv2v.data.clip import Clip
from fastv2v.data.conditions import ConditionSpec
from fastv2v.errors import ConfigError
from fastv2v.losses.objective import ObjectiveConfig, VideoObjective
from fastv2v.losses.rollout import (
    CheckpointedStep,
    RolloutConfig,
    draw_lead_in,
    draw_start,
    opening,
    run_ahead,
    training_rollout,
)
from fastv2v.nn.coarse_to_fine import CoarseToFineGenerator, FinestOnly
from fastv2v.nn.features import EncodingStep, FeatureGenerator, clip_conditions, observations
from fastv2v.nn.generators import ImageGenerator, in_one_style
from fastv2v.nn.norms import batch_statistics
from fastv2v.nn.spade_image import EncodedStyle, SpadeImageGenerator
from fastv2v.ops.labels import condition_pictures, encode_clip, guidance_points
from fastv2v.render import Chunk, render_clip, rollout_chunks
from fastv2v.score import clip_psnr


@dataclass(frozen=True, kw_only=True)
class TeacherTaskConfig:
    """How a teacher is trained."""

    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """Losses and discriminators."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """Starts and truncation of the rollouts."""
    lead_in: int = 0
    """Most frames that the teacher makes, as deployed and without gradients, before those it is trained on; drawn for
    each clip from 0 on. So it learns from histories of its own that are older than a clip. Clips must be longer by as
    many frames."""
    fixed_coarse_steps: int = 0
    """Training steps in which only the finest of several scales learns (vid2vid's niter_fix_global)."""
    style_weight: float = 0.05
    """Weight of the divergence of encoded styles from drawn ones; only where a generator of single images has a
    style."""

    def __post_init__(self) -> None:
        if self.fixed_coarse_steps < 0:
            raise ConfigError(f"fixed_coarse_steps must be at least 0, got {self.fixed_coarse_steps}")
        if self.lead_in < 0:
            raise ConfigError(f"lead_in must be at least 0 frames, got {self.lead_in}")
        if self.style_weight < 0:
            raise ConfigError(f"style_weight must not be negative, got {self.style_weight}")


class TeacherTask:
    """vid2vid's training: roll out from the generator's own frames, judge, repeat.

    Args:
        generator: the teacher; of one scale or several, with instance features or without, or one that draws single
            images. The discriminators see conditions without features.
        spec: how conditions are encoded.
        objective: losses and discriminators.
        config: rollout settings.
        palette: display colour of each label class, for samples.
        first: a frozen generator of single images on the same device. Videos that would begin from nothing then begin
            with frames of its drawing, as they do when deployed with it.

    Raises:
        ConfigError: if coarse scales shall be fixed and there are none.

    Source:
        Wang et al., "Video-to-Video Synthesis", NeurIPS 2018.
    """

    def __init__(
        self,
        generator: Generator,
        spec: ConditionSpec,
        objective: VideoObjective,
        config: TeacherTaskConfig,
        palette: Sequence[Sequence[int]] = (),
        first: ImageGenerator | None = None,
    ) -> None:
        inner = generator.generator if isinstance(generator, FeatureGenerator) else generator
        if config.fixed_coarse_steps and not isinstance(inner, CoarseToFineGenerator):
            raise ConfigError("fixed_coarse_steps is for generators of several scales; this one has one (num_scales)")
        self.generator = generator
        self.spec = spec
        self.objective = objective
        self.config = config
        self.palette = palette
        self.first = first
        self.players: Mapping[str, nn.Module] = {"generator": generator, **objective.discriminators}
        self.weights: Mapping[str, Mapping[str, float]] = objective.weights(
            uses_flow=generator.uses_flow,
            more={"style": config.style_weight} if _has_style(generator) and config.style_weight else None,
        )

    def step(self, clip: Clip, rng: torch.Generator, at: int) -> Iterator[Losses]:
        """Losses of every player, chunk after chunk."""
        start = draw_start(self.config.rollout, rng)
        first, lead = draw_lead_in(self.config.lead_in, clip.num_frames, self.generator.history_length, rng)
        clip = clip.take(first, clip.num_frames) if first else clip
        conditions = encode_clip(self.spec, clip)
        judged = clip.take(lead, clip.num_frames) if lead else clip
        reference = self.objective.reference(conditions[:, lead:], judged.frames, judged.flow)
        if self.first is not None and start == "nothing":
            clip, start = replace(clip, frames=self._with_drawn(self.first, clip.frames, conditions, rng)), "full"
        styled = self._styled(judged.frames, rng)
        past: list[Tensor] = []
        for chunk in self._rollout(clip, conditions, start, at, lead, styled):
            num_made = chunk.start - self.generator.history_length
            losses = self.objective.chunk_losses(chunk, reference, past, num_made=num_made)
            if "style" in self.weights["generator"] and styled is not None and styled.divergence is not None:
                losses["generator"]["style"] = styled.divergence
            yield losses
            past = self.objective.past_after(past, chunk)

    def _styled(self, frames: Tensor, rng: torch.Generator) -> EncodedStyle | None:
        """The generator in the style of the first frame it shall draw, where it has styles."""
        generator = self.generator
        if not isinstance(generator, SpadeImageGenerator) or not generator.style_channels:
            return None
        noise = generator.draw_style(frames.shape[0], rng)
        return EncodedStyle(generator, frames[:, generator.history_length], noise)

    @torch.no_grad()
    def _with_drawn(self, first: ImageGenerator, frames: Tensor, conditions: Tensor, rng: torch.Generator) -> Tensor:
        """The frames of a clip, those of the history drawn from their conditions, all in one style."""
        past, channels = self.generator.history_length, first.condition_channels
        draw = in_one_style(first, frames.shape[0], rng)
        with batch_statistics(first):
            drawn = [draw(condition[:, :channels]) for condition in conditions[:, :past].unbind(1)]
        return torch.cat([torch.stack(drawn, dim=1), frames[:, past:]], dim=1)

    def _rollout(
        self, clip: Clip, conditions: Tensor, start: str, at: int, lead: int, styled: EncodedStyle | None
    ) -> Iterator[Chunk]:
        """Chunks after the lead-in, with the look of the real frames where the generator takes features."""
        if isinstance(self.generator, FeatureGenerator):
            return self._feature_rollout(self.generator, clip, start, at, lead)
        model: StepModel = styled or self.generator
        if isinstance(self.generator, CoarseToFineGenerator) and at < self.config.fixed_coarse_steps:
            model = FinestOnly(self.generator)
        return training_rollout(
            model,
            conditions,
            clip.frames,
            start,
            self.config.rollout,
            at,
            lead_in=lead,
            own_statistics=True,
            points=guidance_points(self.spec, clip),
        )

    def _feature_rollout(
        self, generator: FeatureGenerator, clip: Clip, start: str, at: int, lead: int
    ) -> Iterator[Chunk]:
        """The same with features made anew in each step; see ``EncodingStep``."""
        config = self.config.rollout
        model: StepModel = EncodingStep(generator, finest_only=at < self.config.fixed_coarse_steps)
        with torch.no_grad():  # the history of a start is given, not learnt
            known = clip_conditions(generator, self.spec, clip.take(0, generator.history_length + 1))
        seen = observations(self.spec, clip)
        history = opening(generator, known, clip.frames, start)
        if lead:
            ahead = seen[:, generator.history_length :][:, :lead]
            history = run_ahead(model, ahead, history, own_statistics=True)
        return rollout_chunks(
            CheckpointedStep(model) if config.gradient_checkpointing else model,
            seen[:, lead:],
            history,
            start=generator.history_length,
            chunk_frames=config.chunk_frames,
            backprop_frames=config.backprop_at(at),
        )

    @torch.no_grad()
    def _render(self, clip: Clip) -> Tensor:
        """The rollout from the first real frame; features, where there are any, come from all real frames.

        Norms go by each frame itself, as the published vid2vid generates: what they remember of training, where they
        saw a clip or two at a time, fits single frames badly (4 dB on a dancer).
        """
        conditions = clip_conditions(self.generator, self.spec, clip)
        inner = self.generator.generator if isinstance(self.generator, FeatureGenerator) else self.generator
        with batch_statistics(inner):
            return render_clip(self.generator, conditions, clip.frames[:, :1], guidance_points(self.spec, clip))

    def sample(self, clip: Clip) -> Mapping[str, Tensor]:
        """The condition, the real frames and the teacher's own rollout from the first of them.

        Conditions of classes are shown where there is a palette for them.
        """
        shown = {"real": clip.frames, "teacher": self._render(clip)}
        if self.spec.kind == "labels" and not self.palette:
            return shown
        return {"condition": condition_pictures(self.spec, clip, self.palette), **shown}

    def evaluate(self, clip: Clip) -> Mapping[str, float]:
        """PSNR in dB of the rollout from the first real frame, that frame left out.

        A generator with instance features is told the look of the real frames: its PSNR does not compare with that of
        a generator without.
        """
        return {"psnr": clip_psnr(self._render(clip)[:, 1:], clip.frames[:, 1:])}


def _has_style(generator: Generator) -> bool:
    """Whether it draws in random styles."""
    return isinstance(generator, SpadeImageGenerator) and generator.style_channels > 0
