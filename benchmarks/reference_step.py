"""A plain transcription of vid2vid's training step: the same networks and losses as ours, in the order of its code.

It is the other side of the training benchmark and good for nothing else. It shares the networks and the warp with our
task but none of its loss code, so that equal losses mean something.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastv2v.contracts import FrameOutput
from fastv2v.data.clip import Clip
from fastv2v.errors import ConfigError
from fastv2v.losses.objective import FLOW_INPUT_SCALE, VideoObjective
from fastv2v.losses.perceptual import PerceptualLoss
from fastv2v.losses.total import weighted_total
from fastv2v.nn.discriminator import Features
from fastv2v.ops.labels import encode_clip
from fastv2v.ops.warp import warp_backward
from fastv2v.optim import OptimConfig, trainable_parameters
from fastv2v.render import detach, start_history
from teachers.task import TeacherTask

Terms = dict[str, Tensor]
PlayerTerms = dict[str, Terms]

IMAGE, TEMPORAL = "image_discriminator", "temporal_discriminator"
_TERMS = ("gan", "feature_matching", "perceptual", "flow", "flow_warp", "warp")


class _Judged(NamedTuple):
    """What the image-level losses see of some frames of a chunk; n frames, (B * n, channels, H, W) each."""

    condition: Tensor
    frame: Tensor
    hallucinated: Tensor
    flow: Tensor
    previous: Tensor
    """The finished frame before each, detached."""
    real: Tensor
    real_previous: Tensor
    flow_reference: Tensor
    confidence: Tensor


class ReferenceTraining:
    """Trains a teacher in the order of vid2vid's code.

    For each chunk: frames one at a time through the generator; reference flow; for the finished and for the
    hallucinated frames apart, three passes of the image discriminator (real, fake detached, fake) and a perceptual
    loss that computes the features of the real frames each time; three passes of each temporal discriminator; then
    backward and update of the generator, of the image discriminator, of the temporal discriminators. The generator's
    backward also fills the discriminators' weight gradients, which nobody uses.

    One factor differs: vid2vid adds up the discriminator's losses of finished and hallucinated frames, here as in our
    objective they are averaged. Adam's update does not depend on it.

    Args:
        task: networks, losses' weights, condition and chunk length; its starts are ignored: clips start from real
            frames, as in vid2vid.
        optim: Adam's settings.
        frames_at_once: how many frames of a chunk the image-level losses take together; 0 takes all, as vid2vid's code
            does for the frames of one chunk (one, by default).

    Raises:
        ConfigError: if the task has terms that this order does not know.

    Source:
        Wang et al., "Video-to-Video Synthesis", NeurIPS 2018, and the behaviour of its published code.
    """

    def __init__(self, task: TeacherTask, optim: OptimConfig, *, frames_at_once: int = 0) -> None:
        self._task, self._frames_at_once = task, frames_at_once
        self._objective = _checked(task)
        assert self._objective.perceptual is not None  # checked just above
        self._perceptual: PerceptualLoss = self._objective.perceptual
        self._discriminators: dict[str, nn.Module] = dict(self._objective.discriminators.items())
        self._optimizers = {
            name: torch.optim.Adam(trainable_parameters(module).values(), lr=optim.lr, betas=optim.betas)
            for name, module in task.players.items()
        }

    def step(self, clip: Clip) -> list[PlayerTerms]:
        """Train on one clip, one update of every player for each chunk.

        Args:
            clip: on the device of the networks.

        Returns:
            Detached terms of each chunk by player, named as in our objective.
        """
        generator, rollout = self._task.generator, self._task.config.rollout
        conditions, real = encode_clip(self._task.spec, clip), clip.frames
        given, total = generator.history_length, clip.num_frames
        history = start_history(conditions[:, :given], real[:, :given], given)
        made: list[
            Tensor
        ] = []  # own frames, detached, and the reference flow of each: what temporal tuples look back on
        flows: list[Tensor] = []
        report = []
        chunk_frames = rollout.chunk_frames or total - given
        for first in range(given, total, chunk_frames):
            times = range(first, min(first + chunk_frames, total))
            outputs, previous = [], []
            for t in times:
                if (t - first) % rollout.backprop_frames == 0:
                    history = detach(history)
                previous.append(history.frames[:, -1].detach())
                output, history = generator.step(conditions[:, t], history)
                outputs.append(output)
            history = detach(history)
            references = self._reference_flow(real, times)
            groups = [
                _gather(indices, times, conditions, real, outputs, previous, references)
                for indices in _split(len(times), self._frames_at_once)
            ]
            flows += [flow for flow, _ in references]
            report.append(self._train_chunk(groups, outputs, made, flows, real[:, given : times[-1] + 1]))
            made += [output.frame.detach() for output in outputs]
        return report

    def _reference_flow(self, real: Tensor, times: range) -> list[tuple[Tensor, Tensor]]:
        """Flow and confidence of each frame of a chunk to the real frame before it."""
        now, before = real[:, times[0] : times[-1] + 1], real[:, times[0] - 1 : times[-1]]
        flow, confidence = self._objective.estimator(now.flatten(0, 1), before.flatten(0, 1))
        shape = now.shape[:2]
        return list(zip(flow.unflatten(0, shape).unbind(1), confidence.unflatten(0, shape).unbind(1), strict=True))

    def _train_chunk(
        self,
        groups: Sequence[_Judged],
        outputs: Sequence[FrameOutput],
        made: Sequence[Tensor],
        flows: Sequence[Tensor],
        real: Tensor,
    ) -> PlayerTerms:
        """Losses and updates of one chunk."""
        sizes = [group.frame.shape[0] for group in groups]
        shares = [size / sum(sizes) for size in sizes]
        parts = [self._image_level(group) for group in groups]
        terms: PlayerTerms = {
            player: {name: _weighted_mean([part[player][name] for part in parts], shares) for name in parts[0][player]}
            for player in parts[0]
        }
        frames = [*made, *(output.frame for output in outputs)]
        for scale in range(len(self._discriminators) - 1):
            own, terms[f"{TEMPORAL}_{scale}"] = self._temporal_level(scale, frames, flows, real, len(outputs))
            terms["generator"].update(own)
        totals = {name: weighted_total(terms[name], self._task.weights[name], player=name) for name in self._optimizers}
        for name, optimizer in self._optimizers.items():
            if totals[name].requires_grad:
                optimizer.zero_grad()
                totals[name].backward()
                optimizer.step()
        return {player: {name: term.detach() for name, term in of.items()} for player, of in terms.items()}

    def _image_level(self, seen: _Judged) -> PlayerTerms:
        """Terms of single frames: flow, warping, image discriminator, perceptual."""
        moved = warp_backward(seen.previous, seen.flow_reference)
        real_moved = warp_backward(seen.real_previous, seen.flow)
        terms: Terms = {
            "flow": _masked_l1(seen.flow, seen.flow_reference, seen.confidence),
            "flow_warp": _masked_l1(real_moved, seen.real, seen.confidence),
            "warp": _masked_l1(seen.frame, moved, seen.confidence),
        }
        net = self._discriminators[IMAGE]
        real_pair = torch.cat([seen.condition, seen.real], dim=1)
        judged = [
            _adversarial(net, real_pair, torch.cat([seen.condition, fake], dim=1))
            for fake in (seen.frame, seen.hallucinated)
        ]
        terms["gan"] = judged[0].gan + judged[1].gan
        terms["feature_matching"] = judged[0].feature_matching + judged[1].feature_matching
        terms["perceptual"] = self._distance(seen.frame, seen.real) + self._distance(seen.hallucinated, seen.real)
        own = {"fake": (judged[0].fake + judged[1].fake) / 2, "real": (judged[0].real + judged[1].real) / 2}
        return {"generator": terms, IMAGE: own}

    def _distance(self, fake: Tensor, real: Tensor) -> Tensor:
        """Perceptual distance; the target's features are computed on the spot."""
        fake_features, real_features = self._perceptual.network(fake), self._perceptual.network(real)
        pairs = zip(self._perceptual.weights, fake_features, real_features, strict=True)
        return torch.stack([weight * F.l1_loss(f, r.detach()) for weight, f, r in pairs]).sum()

    def _temporal_level(
        self, scale: int, frames: Sequence[Tensor], flows: Sequence[Tensor], real: Tensor, num_new: int
    ) -> tuple[Terms, Terms]:
        """Terms of the generator and of one temporal discriminator over the tuples that end in this chunk.

        ``frames``, ``flows`` and ``real`` begin at the first synthesised frame of the clip. The tuples are those of
        vid2vid's dense rule.
        """
        window = self._objective.config.temporal_window
        stride = window**scale
        span = stride * (window - 1)
        count = min(len(frames) - span, num_new)
        fakes, reals = [], []
        for last in range(len(frames) - 1, len(frames) - 1 - count, -window):
            picked = range(last - span, last + 1, stride)
            between = [self._flow_back(t, stride, flows, real) / FLOW_INPUT_SCALE for t in picked[1:]]
            fakes.append(torch.cat([*(frames[t] for t in picked), *between], dim=1))
            reals.append(torch.cat([*(real[:, t] for t in picked), *between], dim=1))
        names = f"temporal_gan_{scale}", f"temporal_feature_matching_{scale}"
        if not fakes:
            zero = frames[0].new_zeros(())
            return dict.fromkeys(names, zero), {"fake": zero, "real": zero}
        judged = _adversarial(self._discriminators[f"{TEMPORAL}_{scale}"], torch.cat(reals), torch.cat(fakes))
        own = dict(zip(names, (judged.gan, judged.feature_matching), strict=True))
        return own, {"fake": judged.fake, "real": judged.real}

    def _flow_back(self, t: int, stride: int, flows: Sequence[Tensor], real: Tensor) -> Tensor:
        """Reference flow from frame ``t`` to the one ``stride`` before it."""
        return flows[t] if stride == 1 else self._objective.estimator(real[:, t], real[:, t - stride])[0]


class _Verdict(NamedTuple):
    """What one discriminator makes of one kind of fake."""

    fake: Tensor
    real: Tensor
    gan: Tensor
    feature_matching: Tensor


def _adversarial(net: nn.Module, real: Tensor, fake: Tensor) -> _Verdict:
    """Three passes of a discriminator: real, fake for its own loss, fake for the generator's."""
    of_real = net(real)
    of_detached = net(fake.detach())
    of_fake = net(fake)
    matching = [
        F.l1_loss(f, r.detach()) * 4 / (len(scale) - 1) / len(of_fake)
        for scale, real_scale in zip(of_fake, of_real, strict=True)
        for f, r in zip(scale[:-1], real_scale[:-1], strict=True)
    ]
    return _Verdict(_lsgan(of_detached, 0.0), _lsgan(of_real, 1.0), _lsgan(of_fake, 1.0), torch.stack(matching).sum())


def _lsgan(features: Features, target: float) -> Tensor:
    """Squared distance of the scores to the target, summed over scales."""
    return torch.stack([F.mse_loss(scale[-1], torch.full_like(scale[-1], target)) for scale in features]).sum()


def _masked_l1(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """vid2vid's masked distance: both sides are masked, the mean is over all elements."""
    mask = mask.expand_as(a)
    return F.l1_loss(a * mask, b * mask)


def _weighted_mean(values: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    return torch.stack([value * share for value, share in zip(values, shares, strict=True)]).sum()


def _split(count: int, size: int) -> list[range]:
    """Consecutive groups of at most ``size``; one group for 0."""
    size = size or count
    return [range(i, min(i + size, count)) for i in range(0, count, size)]


def _gather(
    indices: range,
    times: range,
    conditions: Tensor,
    real: Tensor,
    outputs: Sequence[FrameOutput],
    previous: Sequence[Tensor],
    references: Sequence[tuple[Tensor, Tensor]],
) -> _Judged:
    """The frames of a chunk with these indices, batched."""
    flows = [flow for flow in (outputs[i].flow for i in indices) if flow is not None]
    return _Judged(
        condition=torch.cat([conditions[:, times[i]] for i in indices]),
        frame=torch.cat([outputs[i].frame for i in indices]),
        hallucinated=torch.cat([outputs[i].hallucinated for i in indices]),
        flow=torch.cat(flows),
        previous=torch.cat([previous[i] for i in indices]),
        real=torch.cat([real[:, times[i]] for i in indices]),
        real_previous=torch.cat([real[:, times[i] - 1] for i in indices]),
        flow_reference=torch.cat([references[i][0] for i in indices]),
        confidence=torch.cat([references[i][1] for i in indices]),
    )


def _checked(task: TeacherTask) -> VideoObjective:
    """The objective of a task that this order can train."""
    objective = task.objective
    config = objective.config
    scales = range(config.temporal_scales)
    terms = {*_TERMS, *(f"temporal_{kind}_{scale}" for kind in ("gan", "feature_matching") for scale in scales)}
    players = {"generator", IMAGE, *(f"{TEMPORAL}_{scale}" for scale in scales)}
    if task.weights["generator"].keys() != terms or task.players.keys() != players:
        raise ConfigError(
            f"the reference's order knows the generator terms {sorted(terms)} and the players {sorted(players)}, the "
            f"task has {sorted(task.weights['generator'])} and {sorted(task.players)}"
        )
    if not config.supervise_hallucinated or config.judged_frames or config.sparse_temporal or config.gan != "lsgan":
        raise ConfigError(
            "the reference judges every frame of a chunk, the hallucinated one too, by least squares, in dense tuples: "
            "leave supervise_hallucinated, judged_frames, sparse_temporal and gan as they are by default"
        )
    if objective.perceptual is None or objective.perceptual.relative:
        raise ConfigError("the reference's perceptual distance is absolute: build PerceptualLoss with relative=False")
    return objective
