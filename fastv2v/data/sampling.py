"""Which frames make a training clip. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastv2v.errors import ConfigError, DataError
from fastv2v.seed import derive_seed


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How training clips are drawn from sequences."""

    num_frames: int = 8
    """Frames of a clip, the history that a generator starts from included."""
    given_frames: int = 2
    """How many of them are given to the generator as history; only the others grow."""
    grow_every: int = 0
    """Double the frames that are not given after every so many training steps; 0 never."""
    max_frames: int = 128
    """Where clips stop growing, in frames; also at the length of the longest sequence."""
    max_step: int = 1
    """Largest distance between neighbouring frames of a clip, in source frames; drawn from 1 to this, once a clip."""
    flip: bool = True
    """Mirror half of the clips. Switch off where left and right differ, as in poses and in writing."""
    fixed_sequence: int | None = None
    """Take every clip from this sequence, for learning one clip by heart on purpose."""
    fixed_start: int | None = None
    """Start every clip at this frame."""

    def __post_init__(self) -> None:
        if self.num_frames < 1:
            raise ConfigError(f"num_frames must be at least 1, got {self.num_frames}")
        if self.max_step < 1:
            raise ConfigError(f"max_step must be at least 1, got {self.max_step}")
        if self.given_frames < 0 or self.grow_every < 0:
            raise ConfigError(
                f"given_frames ({self.given_frames}) and grow_every ({self.grow_every}) must be 0 or more"
            )
        if self.grow_every and not self.given_frames < self.num_frames <= self.max_frames:
            raise ConfigError(
                f"clips that grow from num_frames ({self.num_frames}) to max_frames ({self.max_frames}) need more than "
                f"the given_frames ({self.given_frames}) at the start and no less at the end"
            )
        for name in ("fixed_sequence", "fixed_start"):
            if (value := getattr(self, name)) is not None and value < 0:
                raise ConfigError(f"{name} must be 0 or more, got {value}")

    def frames_at(self, step: int, longest: int) -> int:
        """Frames of a clip in one training step.

        Args:
            step: its number, from 0 on.
            longest: frames of the longest sequence.

        Returns:
            T, given frames included. Sequences that are shorter shorten the batches they are drawn for.

        Source:
            The growing clips of vid2vid's training schedule, counted in steps.
        """
        if not self.grow_every:
            return self.num_frames
        most = max(min(self.max_frames, longest), self.num_frames)
        # Bounded, since nothing doubles more often before it reaches the end.
        doublings = min(step // self.grow_every, most.bit_length())
        return min(self.given_frames + (self.num_frames - self.given_frames) * 2**doublings, most)


class ClipRequest(NamedTuple):
    """One drawn clip."""

    sequence: int
    """Position of the sequence in the folder."""
    start: int
    """First frame."""
    step: int
    """Distance between neighbouring frames."""
    flip: bool
    """Whether it is mirrored."""
    indices: tuple[int, ...]
    """All frames: ``start + i * step``."""


def start_counts(config: SamplingConfig, sequence_lengths: Sequence[int]) -> NDArray[np.int64]:
    """In how many places a clip of neighbouring frames can start in each sequence; 0 in one that is too short.

    Args:
        config: what a clip is.
        sequence_lengths: frames of each sequence.

    Returns:
        Counts, (S,).

    Raises:
        DataError: if no sequence is long enough, or a fixed sequence or start does not exist.
    """
    lengths = np.asarray(sequence_lengths, dtype=np.int64)
    if config.fixed_sequence is not None:
        if config.fixed_sequence >= len(lengths):
            raise DataError(f"fixed_sequence is {config.fixed_sequence} and there are {len(lengths)} sequences")
        lengths = np.where(np.arange(len(lengths)) == config.fixed_sequence, lengths, 0)
    need = config.num_frames + (config.fixed_start or 0)
    counts = np.maximum(lengths - need + 1, 0)
    if not counts.any():
        at_start = f" from frame {config.fixed_start}" if config.fixed_start else ""
        raise DataError(
            f"no sequence is long enough: a clip of {config.num_frames} frames{at_start} needs at least {need}, and "
            f"the longest of {len(sequence_lengths)} sequences has {int(lengths.max(initial=0))}; "
            "add a longer sequence or lower num_frames"
        )
    return counts if config.fixed_start is None else np.minimum(counts, 1)


def draw_sequence(config: SamplingConfig, sequence_lengths: Sequence[int], rng: np.random.Generator) -> int:
    """Draw the sequence of a clip, in proportion to the number of places a clip can start in.

    Args:
        config: what a clip is; clips that grow are counted as they are at first, so that no sequence drops out.
        sequence_lengths: frames of each sequence; those too short are left out.
        rng: where the choice comes from.

    Returns:
        Its position.

    Raises:
        DataError: if no sequence is long enough, or a fixed sequence or start does not exist.
    """
    ends = np.cumsum(start_counts(config, sequence_lengths))
    return int(np.searchsorted(ends, rng.integers(ends[-1]), side="right"))


def draw_window(
    config: SamplingConfig, sequence: int, sequence_length: int, num_frames: int, rng: np.random.Generator
) -> ClipRequest:
    """Draw step and start of a clip, and whether it is mirrored.

    The step is drawn uniformly from those that fit, then the start, uniformly.

    Args:
        config: what a clip is.
        sequence: position of its sequence.
        sequence_length: frames of that.
        num_frames: T, frames of this clip; no more than the sequence has from the fixed start on.
        rng: where the choice comes from.

    Returns:
        The clip.
    """
    gaps = num_frames - 1
    first = config.fixed_start or 0
    usable = sequence_length - first
    widest = min(config.max_step, (usable - 1) // gaps) if gaps else 1
    step = int(rng.integers(1, widest, endpoint=True))
    start = first if config.fixed_start is not None else int(rng.integers(usable - gaps * step))
    flip = bool(rng.random() < 0.5) and config.flip
    return ClipRequest(sequence, start, step, flip, tuple(start + i * step for i in range(num_frames)))


def shared_frames(config: SamplingConfig, sequence_lengths: Sequence[int], step: int, sequences: Iterable[int]) -> int:
    """Length of all clips of one training step: that of the schedule, or what the shortest sequence has.

    Args:
        config: what a clip is.
        sequence_lengths: frames of each sequence.
        step: number of the training step.
        sequences: position of every sequence that was drawn for the step.

    Returns:
        T.
    """
    shortest = min(sequence_lengths[sequence] for sequence in sequences) - (config.fixed_start or 0)
    return min(config.frames_at(step, max(sequence_lengths)), shortest)


def draw_clip(config: SamplingConfig, sequence_lengths: Sequence[int], rng: np.random.Generator) -> ClipRequest:
    """Draw one clip by itself, of the length that clips have at first.

    Args:
        config: what a clip is.
        sequence_lengths: frames of each sequence; those too short are left out.
        rng: where the choice comes from.

    Returns:
        The clip.

    Raises:
        DataError: if no sequence is long enough, or a fixed sequence or start does not exist.
    """
    sequence = draw_sequence(config, sequence_lengths, rng)
    num_frames = shared_frames(config, sequence_lengths, 0, [sequence])
    return draw_window(config, sequence, sequence_lengths[sequence], num_frames, rng)


def generator_at(seed: int, *place: int | str) -> np.random.Generator:
    """A random generator that depends on where it is used and on nothing that happened before.

    Args:
        seed: of the run.
        place: for example batch and sample number.

    Returns:
        The same generator on every machine, another one for every place.
    """
    return np.random.default_rng(derive_seed(seed, *place))
