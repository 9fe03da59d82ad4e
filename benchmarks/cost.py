"""Multiply-adds of a step model, for each keyframe and for each delivered frame.

``python -m benchmarks.cost`` counts the teachers and all students at full size.
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
import tyro
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from benchmarks.results import BenchmarkResult, Scalar, format_table, write_result
from fastv2v.contracts import History, StepModel
from fastv2v.errors import ConfigError, FastV2VError
from fastv2v.measure.cost import Cost, count_macs
from fastv2v.nn.generators import build_generator
from students.presets import STUDENTS
from teachers import presets as teachers

COLUMNS: Final = {
    "name": "model",
    "gmacs_per_keyframe": "GMACs / keyframe",
    "gmacs_per_frame": "GMACs / delivered frame",
    "output_position_gmacs_per_keyframe": "(output positions) / keyframe",
    "output_position_gmacs_per_frame": "/ delivered frame",
    "parameters_m": "parameters M",
}
"""Columns of a cost table."""


@dataclass(frozen=True)
class StepCost:
    """Cost of one step at batch size 1, and its share per delivered frame."""

    keyframe: Cost
    """One step: one synthesised frame."""
    keyframe_fraction: float
    """Synthesised frames among all delivered ones; 1 for a full-time model."""

    @property
    def true_macs_per_frame(self) -> float:
        """Multiply-adds of the network per delivered frame; interpolation counts as nothing."""
        return self.keyframe.true_macs * self.keyframe_fraction

    @property
    def output_position_macs_per_frame(self) -> float:
        """The same under the convention of published tables ("m.MACs")."""
        return self.keyframe.output_position_macs * self.keyframe_fraction

    def row(self, name: str) -> dict[str, Scalar]:
        """One row for a table or result file; G is 10⁹, M is 10⁶, 1 MAC is 2 FLOPs."""
        return {
            "name": name,
            "gmacs_per_keyframe": self.keyframe.true_macs / 1e9,
            "gmacs_per_frame": self.true_macs_per_frame / 1e9,
            "output_position_gmacs_per_keyframe": self.keyframe.output_position_macs / 1e9,
            "output_position_gmacs_per_frame": self.output_position_macs_per_frame / 1e9,
            "gflops_per_keyframe": 2 * self.keyframe.true_macs / 1e9,
            "keyframe_fraction": self.keyframe_fraction,
            "parameters_m": self.keyframe.parameters / 1e6,
        }


def step_cost(
    model: StepModel,
    channels: int,
    size: tuple[int, int],
    *,
    keyframe_fraction: float = 1.0,
    compute: bool = False,
) -> StepCost:
    """Count one step of a generator with a full history.

    Args:
        model: a step model that is a torch module.
        channels: C of its encoded condition.
        size: (height, width).
        keyframe_fraction: synthesised frames among all delivered ones, in (0, 1].
        compute: really run the step. Without, only shapes are followed, in no time at any size; a model that looks at
            values to decide what to do needs it.

    Returns:
        Both conventions, parameters, and the table of layers.

    Raises:
        ConfigError: if the model is no torch module, the numbers make no sense, or the step must be computed.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"only torch modules can be counted, got {type(model).__name__}; count what it was made from")
    if not 0 < keyframe_fraction <= 1:
        raise ConfigError(f"keyframe_fraction must lie in (0, 1], got {keyframe_fraction}")
    if channels != model.condition_channels or any(side % model.size_multiple or side <= 0 for side in size):
        raise ConfigError(
            f"the model takes {model.condition_channels} channels and sizes divisible by {model.size_multiple}, "
            f"got {channels} channels and size {size}"
        )
    was_training = model.training
    model.eval()  # a count must not move running statistics
    try:
        with nullcontext() if compute else FakeTensorMode(allow_non_fake_inputs=True):
            condition, history = _blank_inputs(model, next(model.parameters()), size)
            cost = count_macs(lambda: model.step(condition, history), model)
    except DataDependentOutputException as error:
        raise ConfigError("this model looks at values to decide what to do; count it with compute=True") from error
    finally:
        model.train(was_training)
    return StepCost(cost, keyframe_fraction)


def _blank_inputs(model: StepModel, like: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, History]:
    """A condition and a full history of zeros, of the type and on the device of ``like``."""
    past, channels = model.history_length, model.condition_channels
    history = History(like.new_zeros(1, past, channels, *size), like.new_zeros(1, past, 3, *size), like.new_ones(1))
    return like.new_zeros(1, channels, *size), history


def family_cost(
    size: tuple[int, int] = (256, 512), channels: int = 36, foreground: bool = True, gap: int = 4
) -> list[dict[str, Scalar]]:
    """Cost of the full-size teacher and of every student that shares its condition.

    Args:
        size: (height, width).
        channels: C of the encoded condition; 36 are Cityscapes' classes and their instance borders.
        foreground: whether composite generators have a foreground branch, as in the published street models.
        gap: distance between two keyframes of the students.

    Returns:
        Rows for ``COLUMNS``, the teacher first, with ``teacher_ratio``: how often a student's cost per delivered frame
        goes into the teacher's, under the convention that counts true work.

    Raises:
        ConfigError: if the size does not suit a generator, or the gap is no gap.
    """
    if gap < 1:
        raise ConfigError(f"gap must be at least 1 frame, got {gap}")
    configs = {"teacher (street)": teachers.street().generator, **{name: make() for name, make in STUDENTS.items()}}
    rows: list[dict[str, Scalar]] = []
    for name, config in configs.items():
        with FakeTensorMode(allow_non_fake_inputs=True):  # 400 M weights need not be drawn to be counted
            model = build_generator(config, channels, (0,) if foreground else ())
            fraction = 1.0 if not rows else 1 / gap
            cost = step_cost(model, channels, size, keyframe_fraction=fraction, compute=True)
        rows.append(cost.row(name))
        rows[-1]["teacher_ratio"] = float(str(rows[0]["gmacs_per_frame"])) / (cost.true_macs_per_frame / 1e9)
    return rows


def main(
    size: tuple[int, int] = (256, 512),
    channels: int = 36,
    foreground: bool = True,
    gap: int = 4,
    out: Path | None = None,
) -> None:
    """Count the street teacher and every student, for each keyframe and each delivered frame.

    Args:
        size: (height, width) in pixels.
        channels: Channels of the encoded condition.
        foreground: Whether composite generators have a foreground branch.
        gap: Distance between two keyframes of the students.
        out: Also write the result file.
    """
    rows = family_cost(size, channels, foreground, gap)
    print(format_table(rows, {**COLUMNS, "teacher_ratio": "teacher / delivered"}))
    settings = {"size": list(size), "channels": channels, "foreground": foreground, "gap": gap}
    if out is not None:
        write_result(
            out,
            BenchmarkResult(
                suite="cost", rows=tuple(rows), device="cpu", threads=1, precision="fp32", settings=settings
            ),
        )
    print(json.dumps({"suite": "cost", "rows": rows, **settings}))


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except FastV2VError as error:
        print(f"benchmarks.cost: {error}", file=sys.stderr)
        raise SystemExit(2) from error
