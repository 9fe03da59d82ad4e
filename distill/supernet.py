"""One set of weights for every student of a space: a super-network, trained by sub-networks drawn step by step.

No layer is elastic. A sub-network is an ordinary generator whose weights are the leading channels and blocks of the
super-network's, put in for the length of a step, so that gradients reach them there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastv2v.contracts import FrameOutput, History, Losses, Task
from fastv2v.data.clip import Clip
from fastv2v.errors import ConfigError, DataError
from fastv2v.nn.norms import SharedBatchNorm2d, share_batch_norms
from fastv2v.nn.slim import SlimConfig, SlimGenerator
from fastv2v.render import Points, render_clip
from fastv2v.score import clip_psnr
from students.inherit import ChannelPlan, check_heir, cut, inherit_weights, leading
from students.space import SearchSpace


class SlimView(SlimGenerator):
    """A sub-network that borrows its weights from a super-network at every step.

    Its batch norms always go by the statistics of what they are given: running ones would be those of all sub-networks
    together. ``extract`` and ``recalibrate`` make a student with its own.

    Args:
        whole: the super-network.
        config: a student no wider and no deeper.

    Raises:
        ConfigError: if it is wider or deeper somewhere, or no sub-network at all.
    """

    def __init__(self, whole: SlimGenerator, config: SlimConfig) -> None:
        # Its own weights are never used, and drawing them must leave no trace: how many views are made between two
        # checkpoints depends on where a training was resumed.
        with torch.random.fork_rng(devices=[]):
            super().__init__(config, whole.condition_channels, whole.foreground_channels, whole.shown_channels)
        check_heir(self, whole)
        if any(isinstance(part, SharedBatchNorm2d) for part in whole.modules()):
            share_batch_norms(self)
        for part in self.modules():
            if isinstance(part, nn.BatchNorm2d):
                # Without buffers: in evaluation mode, as in a lead-in, a norm goes by those it has, tracked or not.
                part.track_running_stats = False
                part.running_mean = part.running_var = part.num_batches_tracked = None
        names = [name for name, _ in self.named_parameters()]
        self._cuts = ChannelPlan(whole).cuts(names, leading(ChannelPlan(self).sizes))
        self._whole: Callable[[], Mapping[str, Tensor]] = lambda: dict(whole.named_parameters())

    def step(self, condition: Tensor, history: History) -> tuple[FrameOutput, History]:
        """See ``SlimGenerator.step``; with the weights the super-network has now."""
        made: tuple[FrameOutput, History] = torch.func.functional_call(
            self, cut(self._whole(), self._cuts), (condition, history)
        )
        return made

    def forward(self, condition: Tensor, history: History) -> tuple[FrameOutput, History]:
        """What ``step`` calls once the weights are in place."""
        return super().step(condition, history)


class SuperTask:
    """Trains a super-network by a distillation task that is asked about one sub-network after the other.

    The sandwich rule, over successive steps: the largest, the smallest, then two drawn at random. All of them follow
    the same teacher, so that the largest need not teach the others.

    Args:
        whole: the super-network.
        space: what sub-networks there are.
        make: builds the distillation task of one sub-network; all of them must share discriminators and weights.

    Raises:
        ConfigError: if the super-network is not the largest of the space.

    Source:
        Yu and Huang, "Universally Slimmable Networks and Improved Training Techniques", ICCV 2019.
    """

    def __init__(self, whole: SlimGenerator, space: SearchSpace, make: Callable[[SlimGenerator], Task]) -> None:
        if whole.config != space.largest:
            raise ConfigError("the super-network must be the largest student of the space")
        self.space = space
        self._whole, self._make = whole, make
        self._largest = make(SlimView(whole, space.largest))
        self._smallest = make(SlimView(whole, space.smallest))
        self.players: Mapping[str, nn.Module] = {**self._largest.players, "generator": whole}
        self.weights = self._largest.weights

    def step(self, clip: Clip, rng: torch.Generator, at: int) -> Iterator[Losses]:
        """Losses of the sub-network whose turn it is."""
        yield from self._task_at(at, rng).step(clip, rng, at)

    def _task_at(self, at: int, rng: torch.Generator) -> Task:
        turn = at % 4
        if turn < 2:
            return (self._largest, self._smallest)[turn]
        # Not kept: the space has more students than a training has steps, and a view costs milliseconds.
        return self._make(SlimView(self._whole, self.space.draw(rng)))

    def sample(self, clip: Clip) -> Mapping[str, Tensor]:
        """What the task shows of the largest sub-network, and the smallest below it."""
        rows = dict(self._largest.sample(clip))
        return {**rows, "smallest": self._smallest.sample(clip)["student"]}

    def evaluate(self, clip: Clip) -> Mapping[str, float]:
        """What the task finds of the largest and of the smallest, and the mean of both."""
        largest, smallest = self._largest.evaluate(clip), self._smallest.evaluate(clip)
        return {
            **{name: (value + smallest[name]) / 2 for name, value in largest.items()},
            **{f"{name}_largest": value for name, value in largest.items()},
            **{f"{name}_smallest": value for name, value in smallest.items()},
        }


def extract(whole: SlimGenerator, config: SlimConfig) -> SlimGenerator:
    """A sub-network as a generator of its own.

    Args:
        whole: the super-network.
        config: a student no wider and no deeper.

    Returns:
        A copy of its weights. Its running statistics are not its own yet; ``recalibrate`` makes them so.

    Raises:
        ConfigError: if it is no sub-network.
    """
    student = SlimGenerator(config, whole.condition_channels, whole.foreground_channels)
    inherit_weights(student, whole, choose="leading")
    return student.to(next(whole.parameters()).device)


class KeyClip(NamedTuple):
    """A clip as a part-time student meets it: its keyframes only."""

    conditions: Tensor
    """(B, K, C, H, W)."""
    real: Tensor
    """(B, K, 3, H, W) in [-1, 1]."""
    teacher: Tensor | None = None
    """The teacher's frames of the same moments, from the same first frame; (B, K, 3, H, W)."""
    points: Points | None = None
    """Point ids of these moments, where the student is guided by a painted world."""


@torch.no_grad()
def recalibrate(generator: SlimGenerator, clips: Iterable[KeyClip]) -> None:
    """Give a generator running statistics of its own: the mean over every step of its rollouts.

    Args:
        generator: changed in place, and in evaluation mode afterwards.
        clips: training clips; each is rolled out from its first real frame.

    Raises:
        DataError: if there is no clip with a frame to synthesise.

    Source:
        Yu and Huang, "Universally Slimmable Networks and Improved Training Techniques", ICCV 2019.
    """
    norms = [part for part in generator.modules() if isinstance(part, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's word for a mean over all batches
    generator.train()
    for clip in clips:
        render_clip(generator, clip.conditions, clip.real[:, :1], clip.points)
    generator.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    if any(norm.num_batches_tracked is None or not norm.num_batches_tracked for norm in norms):
        raise DataError(
            "no clip has a frame to synthesise, so there is nothing to take statistics of; give longer clips"
        )


class Quality(NamedTuple):
    """How good a student's keyframes are on clips it has not seen."""

    psnr: float
    """To the real frames, in dB."""
    teacher_psnr: float
    """To the teacher's frames, in dB."""


def judge(generator: SlimGenerator, clips: Sequence[KeyClip]) -> Quality:
    """Score a student's rollouts, each from the first real frame.

    Args:
        generator: in evaluation mode.
        clips: held out, with the teacher's frames.
    """
    psnr, teacher_psnr = [], []
    for clip in clips:
        assert clip.teacher is not None  # they were made to judge by
        frames = render_clip(generator, clip.conditions, clip.real[:, :1], clip.points)[:, 1:]
        psnr.append(clip_psnr(frames, clip.real[:, 1:]))
        teacher_psnr.append(clip_psnr(frames, clip.teacher[:, 1:]))
    return Quality(fmean(psnr), fmean(teacher_psnr))
