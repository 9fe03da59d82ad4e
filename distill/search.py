"""Which student of a space makes the best of a budget: chance first, then offspring of the best ones so far."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from fastv2v.errors import ConfigError
from fastv2v.nn.slim import SlimConfig
from fastv2v.seed import generator_for
from students.space import SearchSpace, describe_student


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """How students are looked for."""

    candidates: int = 24
    """Students that are judged."""
    population: int = 10
    """How many of them are drawn by chance; the others descend from the best found so far. Every second one of these
    uses a part of the budget only, to show what a smaller one would buy."""
    parents: int = 4
    """How many of the best have offspring."""
    mutation: float = 0.15
    """Probability at which each width and depth of an offspring is drawn anew."""

    def __post_init__(self) -> None:
        if self.candidates < 1 or self.population < 1 or self.parents < 1:
            raise ConfigError(
                f"candidates, population and parents must be at least 1, got {self.candidates}, {self.population} and "
                f"{self.parents}"
            )
        if not 0 < self.mutation <= 1:
            raise ConfigError(f"mutation is a probability above 0, got {self.mutation}")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A student that was judged by weights of the super-network."""

    config: SlimConfig
    """Its size and shape."""
    macs: int
    """Multiply-adds of one keyframe."""
    latency_ms: float | None = None
    """Time of one keyframe, where it was measured."""
    psnr: float
    """PSNR of its keyframes to the real ones, in dB."""
    teacher_psnr: float
    """PSNR of its keyframes to the teacher's, in dB."""

    @property
    def score(self) -> float:
        """What students are ranked by, in dB: the mean of both, since few frames are a noisy measure by themselves."""
        return (self.psnr + self.teacher_psnr) / 2


class Budget(Protocol):
    """What a keyframe may cost."""

    limit: float
    """In the unit of ``price``."""

    def price(self, config: SlimConfig) -> float:
        """What a keyframe of this student costs."""
        ...

    def settle(self, config: SlimConfig, share: float, rng: torch.Generator) -> SlimConfig:
        """The student that chance makes of one when it uses a share of the budget, in (0, 1], up.

        A budget that the largest student does not use up counts as what that costs.
        """
        ...

    def show(self, price: float) -> str:
        """A price with its unit."""
        ...


class MacBudget:
    """A budget of multiply-adds per keyframe.

    Args:
        limit: multiply-adds.
        space: what there is to choose from.
        macs: counts a student.

    Raises:
        ConfigError: if not even the smallest student is within the budget.
    """

    def __init__(self, limit: float, space: SearchSpace, macs: Callable[[SlimConfig], int]) -> None:
        self.limit, self._space, self._macs = limit, space, macs
        _check_smallest(self, space)

    def price(self, config: SlimConfig) -> float:
        """See ``Budget.price``."""
        return self._macs(config)

    def settle(self, config: SlimConfig, share: float, rng: torch.Generator) -> SlimConfig:
        """See ``Budget.settle``."""
        most = share * min(self.limit, self._macs(self._space.largest))
        return self._space.fill(config, lambda made: self._macs(made) <= most, rng)

    def show(self, price: float) -> str:
        """See ``Budget.show``."""
        return f"{price / 1e9:.3g} GMACs"


class LatencyBudget:
    """A budget of milliseconds per keyframe, as measured.

    Measuring takes seconds, so students are filled up to the multiply-adds that the budget should buy, on a line
    through the smallest and the largest, and what then turns out slower shrinks until it is not.

    Args:
        limit: milliseconds.
        space: what there is to choose from.
        macs: counts a student.
        measure: times a keyframe of a student, in milliseconds; the same at every call.

    Raises:
        ConfigError: if not even the smallest student is within the budget.
    """

    def __init__(
        self,
        limit: float,
        space: SearchSpace,
        macs: Callable[[SlimConfig], int],
        measure: Callable[[SlimConfig], float],
    ) -> None:
        self.limit, self._space, self._macs, self._measure = limit, space, macs, measure
        _check_smallest(self, space)
        low, high = macs(space.smallest), macs(space.largest)
        base = measure(space.smallest)
        slope = (measure(space.largest) - base) / max(high - low, 1)
        self._bought: Callable[[float], float] = lambda ms: low + (ms - base) / slope if slope > 0 else high

    def price(self, config: SlimConfig) -> float:
        """See ``Budget.price``."""
        return self._measure(config)

    def settle(self, config: SlimConfig, share: float, rng: torch.Generator) -> SlimConfig:
        """See ``Budget.settle``."""
        limit = share * min(self.limit, self.price(self._space.largest))
        allowed = self._bought(limit)
        for _ in range(6):
            config = self._filled(config, allowed, rng)
            taken = self.price(config)
            if taken <= limit:
                return config
            allowed = 0.9 * self._macs(config) * limit / taken
        return self._space.smallest

    def _filled(self, config: SlimConfig, allowed: float, rng: torch.Generator) -> SlimConfig:
        """A student of so many multiply-adds."""
        return self._space.fill(config, lambda made: self._macs(made) <= allowed, rng)

    def show(self, price: float) -> str:
        """See ``Budget.show``."""
        return f"{price:.3g} ms"


def _check_smallest(budget: Budget, space: SearchSpace) -> None:
    """Refuse a budget that nothing meets, naming the nearest."""
    if (least := budget.price(space.smallest)) > budget.limit:
        raise ConfigError(
            f"no student of the space meets a budget of {budget.show(budget.limit)} per keyframe: the cheapest, "
            f"{describe_student(space.smallest)}, takes {budget.show(least)}; raise the budget, lower --space.smallest "
            "or take smaller frames"
        )


def search(
    space: SearchSpace,
    budget: Budget,
    config: SearchConfig,
    judge: Callable[[SlimConfig], Candidate],
    *,
    seed: int,
    seeds: Sequence[SlimConfig] = (),
    known: Sequence[Candidate] = (),
) -> Iterator[Candidate]:
    """Judge students within a budget, one after the other.

    Candidate number i depends on the seed, on i and on the candidates before it only, so that a search that goes on
    from what it ``known`` ends as one that was never stopped.

    Args:
        space: what there is to choose from.
        budget: what a keyframe may cost.
        config: how many, and how they are made.
        judge: rates a student.
        seed: root of all chance.
        seeds: students to begin with, each within the budget.
        known: candidates this search has yielded before it was stopped.

    Yields:
        Each new candidate; fewer than asked for where chance finds none that is new.

    Source:
        Evolution over sub-networks of one super-network: Guo et al., "Single Path One-Shot Neural Architecture Search",
        ECCV 2020.
    """
    found = list(known)
    for number in range(len(found), config.candidates):
        rng = generator_for(seed, "candidate", number)
        taken = {candidate.config for candidate in found}
        proposals = (_propose(number, space, budget, config, seeds, found, rng) for _ in range(50))
        fresh = next((student for student in proposals if student not in taken), None)
        if fresh is None:
            return
        found.append(judge(fresh))
        yield found[-1]


def _propose(
    number: int,
    space: SearchSpace,
    budget: Budget,
    config: SearchConfig,
    seeds: Sequence[SlimConfig],
    found: Sequence[Candidate],
    rng: torch.Generator,
) -> SlimConfig:
    """The student to look at next."""
    if number < len(seeds) and seeds[number] not in {candidate.config for candidate in found}:
        return seeds[number]
    if number < config.population:
        share = 1.0 if number % 2 == 0 else 0.3 + 0.7 * float(torch.rand((), generator=rng))
        return budget.settle(space.draw(rng), share, rng)
    best = sorted(found, key=lambda candidate: -candidate.score)[: config.parents]
    one, other = (best[int(torch.randint(len(best), (), generator=rng))].config for _ in range(2))
    return budget.settle(space.mutate(space.cross(one, other, rng), config.mutation, rng), 1.0, rng)


def pareto_front(candidates: Sequence[Candidate], price: Callable[[Candidate], float]) -> list[Candidate]:
    """Candidates that no other one beats at the same or a lower price, cheapest first."""
    front: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (price(c), -c.score)):
        if not front or candidate.score > front[-1].score:
            front.append(candidate)
    return front
