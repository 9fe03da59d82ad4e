"""The space of students that one super-network holds, and what each of them costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import NamedTuple

import torch

from fastv2v.errors import ConfigError
from fastv2v.nn.slim import SlimConfig
from students.presets import base, pico

_ELASTIC = ("widths", "depths", "up_depths", "refine_width")
"""What sub-networks of one super-network may differ in; leading channels and blocks of the rest fit."""

Limit = Callable[[SlimConfig], bool]
"""Whether a student is cheap enough."""


class _Knob(NamedTuple):
    """One number of a config that the space leaves open."""

    field: str
    place: int | None
    choices: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """All slim students between two: of every width, in steps, and of every depth."""

    largest: SlimConfig = field(default_factory=base)
    """The widest and deepest student: the super-network itself."""
    smallest: SlimConfig = field(default_factory=pico)
    """The narrowest and shallowest one. In everything but widths, depths and the finishing stage the two are equal."""
    width_step: int = 4
    """Distance between two widths, counted from the smallest."""

    def __post_init__(self) -> None:
        if self.width_step < 1:
            raise ConfigError(f"width_step must be at least 1, got {self.width_step}")
        for f in fields(SlimConfig):
            low, high = getattr(self.smallest, f.name), getattr(self.largest, f.name)
            if f.name not in _ELASTIC and low != high:
                raise ConfigError(
                    f"weights do not fit across {f.name}: it is {low} in the smallest student and {high} in the largest"
                )
        if len(self.smallest.widths) != len(self.largest.widths):
            raise ConfigError(
                f"the smallest student has {len(self.smallest.widths)} sizes and the largest "
                f"{len(self.largest.widths)}; give both as many widths"
            )
        for name in _ELASTIC:
            low, high = _entries(self.smallest, name), _entries(self.largest, name)
            if any(a > b for a, b in zip(low, high, strict=True)):
                raise ConfigError(f"the smallest student exceeds the largest in {name}: {low} and {high}")

    @property
    def num_students(self) -> int:
        """How many there are."""
        return math.prod(len(knob.choices) for knob in self._knobs)

    def __contains__(self, config: SlimConfig) -> bool:
        """Whether a student lies in the space, on its steps."""
        fixed = {name: getattr(self.largest, name) for name in _ELASTIC}
        if replace(config, **fixed) != self.largest or len(config.widths) != len(self.largest.widths):
            return False
        return all(_value(config, knob) in knob.choices for knob in self._knobs)

    def draw(self, rng: torch.Generator) -> SlimConfig:
        """Draw every width and depth for itself."""
        return self._made([knob.choices[_below(len(knob.choices), rng)] for knob in self._knobs])

    def mutate(self, config: SlimConfig, rate: float, rng: torch.Generator) -> SlimConfig:
        """Draw each number anew with probability ``rate``."""
        values = [_value(config, knob) for knob in self._knobs]
        for i, knob in enumerate(self._knobs):
            if float(torch.rand((), generator=rng)) < rate:
                values[i] = knob.choices[_below(len(knob.choices), rng)]
        return self._made(values)

    def cross(self, one: SlimConfig, other: SlimConfig, rng: torch.Generator) -> SlimConfig:
        """Take each number from one of two students."""
        pairs = [(_value(one, knob), _value(other, knob)) for knob in self._knobs]
        return self._made([pair[_below(2, rng)] for pair in pairs])

    def fill(self, config: SlimConfig, fits: Limit, rng: torch.Generator) -> SlimConfig:
        """The student that chance makes of one when it uses a budget up.

        Widths and depths, drawn one by one, shrink step by step until the student fits; then they grow as long as it
        still does, so that none can grow further by itself.

        Args:
            config: where to begin.
            fits: whether a student is within the budget; a smaller one always is where a larger one is.
            rng: source of randomness.

        Returns:
            A student within the budget, or the smallest of all where none is.
        """
        knobs = self._knobs
        places = [knob.choices.index(_value(config, knob)) for knob in knobs]

        def made() -> SlimConfig:
            return self._made([knob.choices[place] for knob, place in zip(knobs, places, strict=True)])

        while not fits(made()) and any(places):
            lowerable = [i for i, place in enumerate(places) if place]
            places[lowerable[_below(len(lowerable), rng)]] -= 1
        growing = list(range(len(knobs)))
        while growing:
            at = growing[_below(len(growing), rng)]
            if places[at] + 1 < len(knobs[at].choices):
                places[at] += 1
                if fits(made()):
                    continue
                places[at] -= 1
            growing.remove(at)
        return made()

    @property
    def _knobs(self) -> list[_Knob]:
        knobs = []
        for name in _ELASTIC:
            whole = getattr(self.largest, name)
            step = self.width_step if "width" in name else 1
            for i, (low, high) in enumerate(
                zip(_entries(self.smallest, name), _entries(self.largest, name), strict=True)
            ):
                choices = (*range(low, high, step), high)
                knobs.append(_Knob(name, i if isinstance(whole, tuple) else None, choices))
        return knobs

    def _made(self, values: list[int]) -> SlimConfig:
        """The student with these numbers, in the order of the knobs."""
        numbers: dict[str, list[int]] = {}
        for knob, value in zip(self._knobs, values, strict=True):
            numbers.setdefault(knob.field, []).append(value)
        changes: Mapping[str, object] = {
            name: tuple(found) if isinstance(getattr(self.largest, name), tuple) else found[0]
            for name, found in numbers.items()
        }
        return replace(self.largest, **changes)  # type: ignore[arg-type]


def slim_macs(config: SlimConfig, condition_channels: int, size: tuple[int, int], num_shown: int = 0) -> int:
    """Multiply-adds of one keyframe, without building the network: what ``count_macs`` counts as true ones.

    Args:
        config: of the student.
        condition_channels: C.
        size: (height, width), divisible as the student wants it.
        num_shown: channels of the condition that show a frame, 3 or 0.
    """
    c, n, widths = condition_channels, config.history_length, config.widths
    full, patch = size[0] * size[1], config.input_scale**2
    at = [full // patch // 4**i for i in range(len(widths))]  # positions of each size

    def blocks(depths: tuple[int, ...]) -> int:
        return sum(d * _block_weights(config.block, w) * p for d, w, p in zip(depths, widths, at, strict=False))

    entering = c * (n + 1) + 3 * (n - 1) + (config.embedding + num_shown + 3) * patch + 1
    down = c * config.embedding * full + entering * widths[0] * config.entry_kernel**2 * at[0]
    down += sum(9 * widths[i] * widths[i + 1] * at[i + 1] for i in range(len(widths) - 1))
    per_pair = {"shuffle": 4, "resize": 1, "transposed": 9}[config.up]
    up = sum(per_pair * widths[i] * widths[i + 1] * at[i + 1] for i in range(len(widths) - 1))
    num_decoders = 2 if config.use_flow and not config.shared_decoder else 1
    drawn = (3 + config.use_flow) * patch + 2 * config.use_flow
    heads = widths[0] * drawn * config.head_kernel**2 * at[0]
    refine = 9 * (6 + config.embedding + num_shown + 3) * config.refine_width * full
    return down + blocks(config.depths) + num_decoders * (up + blocks(config.up_depths)) + heads + refine


def describe_student(config: SlimConfig) -> str:
    """Widths, depths on the way down and up, and the finishing stage, as short as a table wants it."""
    parts = ["-".join(map(str, config.widths)), "/".join(map(str, config.depths)), "/".join(map(str, config.up_depths))]
    return " ".join(part for part in parts if part) + (f" +{config.refine_width}" if config.refine_width else "")


def _block_weights(kind: str, width: int) -> int:
    """Weights of the convolutions of one block."""
    weights = {
        "residual": 18 * width**2,
        "inverted": 2 * width**2 + 9 * width,
        "separable": width**2 + 9 * width,
    }
    return weights[kind]


def _entries(config: SlimConfig, name: str) -> tuple[int, ...]:
    """One field as a tuple."""
    value = getattr(config, name)
    return value if isinstance(value, tuple) else (value,)


def _value(config: SlimConfig, knob: _Knob) -> int:
    return _entries(config, knob.field)[knob.place or 0]


def _below(count: int, rng: torch.Generator) -> int:
    """An integer from 0 to below ``count``."""
    return int(torch.randint(count, (), generator=rng))
