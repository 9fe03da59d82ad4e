"""How far an engine strays from a reference over a rolled-out clip, output by output. Runs without torch.

A step feeds on its own frames, so a small fault of the warp shows in the tenth frame and not in the first. Warped frame
and blend are told apart where the graph gives both (``export.warp_graph.with_outputs``): engines have sampled wrongly
while everything else was right.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.engines import Array, StepEngine
from export.history import ArrayHistory, Points
from export.inputs import StepCondition, from_encoded
from fastv2v.errors import ParityError, ShapeError

PICTURES = ("frame", "hallucinated", "warped")
"""Outputs in [-1, 1]: the only ones whose PSNR means something."""
FRAME_ALLOWANCE_DB = 3.0
"""How far a single picture may lie below what the whole clip must reach: twice the squared error."""


def psnr_of_rms(rms: float) -> float:
    """PSNR of values in [-1, 1], whose peak-to-peak is 2, from the root of their mean squared difference.

    Infinite where that is 0, minus infinite where it is infinite, NaN where it is.
    """
    if rms == 0 or math.isinf(rms):
        return math.inf if rms == 0 else -math.inf
    return 20 * math.log10(2 / rms)


def psnr(a: Array, b: Array) -> float:
    """PSNR in dB of two arrays of one shape with values in [-1, 1]; infinite where they are equal."""
    return psnr_of_rms(math.sqrt(float(np.mean(np.square(a.astype(np.float64) - b)))))


@dataclass(frozen=True)
class OutputDifference:
    """How one output differs over a clip."""

    name: str
    """Name of the output."""
    greatest: float
    """Greatest absolute difference: of values in [-1, 1] for pictures, in pixels for flow; NaN where any value is."""
    rms: float
    """Root of the mean squared difference."""
    worst_rms: float
    """That of the step at which it is greatest."""

    @property
    def psnr_db(self) -> float | None:
        """PSNR of a picture, infinite where it is equal and NaN where any value is; None for what is no picture."""
        return psnr_of_rms(self.rms) if self.name in PICTURES else None

    @property
    def worst_psnr_db(self) -> float | None:
        """``psnr_db`` of the step that is furthest off."""
        return psnr_of_rms(self.worst_rms) if self.name in PICTURES else None


@dataclass(frozen=True, kw_only=True)
class EngineParity:
    """How an engine compares with a reference."""

    outputs: Mapping[str, OutputDifference]
    """By output, over all steps; ``frame`` always."""
    frames: int
    """Steps that were compared."""
    drift: tuple[float, ...]
    """Greatest difference of the frame at each step: an error that feeds on itself grows."""

    @property
    def frame(self) -> OutputDifference:
        """The finished frame: the blend, and what finishes it."""
        return self.outputs["frame"]

    def require(self, least_psnr_db: float, what: str = "the engine") -> None:
        """Refuse an engine that strays too far, in any of its pictures, over the clip or at any one step of it.

        Args:
            least_psnr_db: what every picture must reach over the clip, and less ``FRAME_ALLOWANCE_DB`` at each step:
                an error that grows from frame to frame would pass by its mean.
            what: the engine, for the message.

        Raises:
            ParityError: naming the picture that is furthest off.
        """
        for difference in self.outputs.values():
            found = difference.psnr_db
            if found is not None and not found >= least_psnr_db:
                raise ParityError(
                    f"{what}: {difference.name} reaches {found:.1f} dB beside the reference over {self.frames} frames "
                    f"(greatest difference {difference.greatest:.3g}), and must reach {least_psnr_db:g}"
                )
            worst = difference.worst_psnr_db
            if worst is not None and not worst >= least_psnr_db - FRAME_ALLOWANCE_DB:
                raise ParityError(
                    f"{what}: {difference.name} reaches {found:.1f} dB beside the reference over {self.frames} frames, "
                    f"but {worst:.1f} dB at the worst of them, and must reach {least_psnr_db - FRAME_ALLOWANCE_DB:g} "
                    "at each"
                )


@dataclass
class _Sum:
    greatest: float = 0.0
    squares: float = 0.0
    values: int = 0
    worst_mean: float = 0.0

    def add(self, a: NDArray[Any], b: NDArray[Any]) -> float:
        difference = np.abs(a.astype(np.float64) - b)
        worst = float(difference.max())  # NaN where any value is
        self.greatest = float(np.maximum(self.greatest, worst))
        squares = float(np.square(difference).sum())
        self.squares += squares
        self.values += difference.size
        self.worst_mean = float(np.maximum(self.worst_mean, squares / difference.size))
        return worst


@dataclass
class _Roll:
    """One engine on its way through a clip."""

    engine: StepEngine
    conditions: Sequence[StepCondition]
    points: Sequence[Points | None]
    length: int
    seed: Array | None
    history: ArrayHistory = field(init=False)

    def __post_init__(self) -> None:
        self.history = ArrayHistory(
            self.conditions[0].past, self.length, self.seed, scale=self.engine.form.scale, points=self.points[0]
        )

    def step(self, index: int, frame: Array | None = None) -> dict[str, NDArray[Any]]:
        """Make one frame; remember it, or the one that is given in its place."""
        condition, ids, past = self.conditions[index], self.points[index], self.history
        made = self.engine.run(past.guided(condition, ids), past.conditions, past.frames, past.valid)
        past.advance(condition.past, made["frame"][0] if frame is None else frame, ids)
        return made


def compare_engines(
    engine: StepEngine,
    reference: StepEngine,
    conditions: Array,
    history_length: int,
    seed_frame: Array | None = None,
    *,
    own_frames: bool = True,
    points: Points | None = None,
) -> EngineParity:
    """Roll a clip out in both and compare all outputs that both give.

    Args:
        engine: what is judged.
        reference: what it is held against.
        conditions: encoded conditions of successive keyframes, (T, C, H, W).
        history_length: N-1.
        seed_frame: the real frame of the first condition, (3, H, W) in [-1, 1]; that one is then not synthesised.
        own_frames: feed the engine its own frames, as in use; otherwise the reference's, which tells errors of single
            steps from what becomes of them.
        points: point ids of each level, (T, H / 2^k, W / 2^k), where the student is guided by its painted world.

    Returns:
        The differences.

    Raises:
        ShapeError: if no frame is left to synthesise.
    """
    first = 0 if seed_frame is None else 1
    if conditions.ndim != 4 or len(conditions) <= first:
        raise ShapeError(f"conditions {conditions.shape} leave nothing to compare engines on")
    ids = [None if points is None else [level[t] for level in points] for t in range(len(conditions))]
    rolls = [
        _Roll(one, [from_encoded(one.form, x) for x in conditions], ids, history_length, seed_frame)
        for one in (engine, reference)
    ]
    sums: dict[str, _Sum] = {}
    drift = []
    for index in range(first, len(conditions)):
        wanted = rolls[1].step(index)
        made = rolls[0].step(index, None if own_frames else wanted["frame"][0])
        for name in (x for x in wanted if x in made):
            worst = sums.setdefault(name, _Sum()).add(made[name], wanted[name])
            if name == "frame":
                drift.append(worst)
    return EngineParity(
        outputs={
            name: OutputDifference(
                name, found.greatest, math.sqrt(found.squares / found.values), math.sqrt(found.worst_mean)
            )
            for name, found in sums.items()
        },
        frames=len(drift),
        drift=tuple(drift),
    )
