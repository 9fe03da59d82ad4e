"""Triplets to learn interpolation from: two keyframes and a frame between them, with the features of its moment."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastv2v.data.clip import Clip, ClipInfo
from fastv2v.data.images import is_image_file, read_image, read_label
from fastv2v.data.modalities import MODALITIES
from fastv2v.data.sampling import generator_at
from fastv2v.data.sequences import by_number
from fastv2v.errors import ConfigError, DataError
from fastv2v.video import read_video
from interpolate.motion import DISInterpolator, Frame, Labels, MotionConfig, PairMotion
from interpolate.network import CHANNELS, SIZE_MULTIPLE, features, half_size, halved_labels

_LOG = logging.getLogger(__name__)
_FRAMES = ("B", "img")
"""What the folder of frames of a data set ends in, after ``train_``."""
_VIDEOS = frozenset({".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v", ".mpg", ".mpeg"})

_MOST_CUTS = 50
"""Pairs of keyframes in a row that may lie across a scene cut."""


@dataclass(frozen=True, kw_only=True)
class TripletConfig:
    """Which frames are read and how triplets are drawn from them."""

    size: tuple[int, int] = (256, 512)
    """(height, width) that frames are reduced to (area averaging), multiples of 16."""
    crop: tuple[int, int] = (128, 128)
    """(height, width) of the part that is learnt from, multiples of 16; motion is that of the whole frame."""
    batch_size: int = 8
    """Triplets of one step, over all processes."""
    gaps: tuple[int, ...] = (2, 3, 4, 5, 6, 8)
    """Distances between the two keyframes, drawn alike; the frame between them is any one."""
    label_share: float = 0.5
    """How often the label maps are shown where a sequence has them, in [0, 1]."""
    held_out: int = 9
    """Last frames of every sequence that are scored and not learnt from; 0 for none."""
    eval_gap: int = 4
    """Distance of the keyframes in scored frames."""
    eval_sequences: int = 8
    """Sequences that are scored at most, spread over all."""
    max_frames: int = 600
    """Frames of a video that are read at most; videos are kept in memory."""
    cache_mb: float = 1024.0
    """Memory for decoded pictures and for motion, each, in MiB."""

    def __post_init__(self) -> None:
        for name in ("size", "crop"):
            sides = getattr(self, name)
            if len(sides) != 2 or min(sides) < SIZE_MULTIPLE or any(side % SIZE_MULTIPLE for side in sides):
                raise ConfigError(f"{name} must be (height, width) in multiples of {SIZE_MULTIPLE}, got {sides}")
        if self.crop[0] > self.size[0] or self.crop[1] > self.size[1]:
            raise ConfigError(f"the crop {self.crop} is larger than the frames {self.size}")
        if not self.gaps or min(self.gaps) < 2 or self.eval_gap < 2:
            raise ConfigError(f"gaps must be at least 2, got {self.gaps} and eval_gap {self.eval_gap}")
        if self.batch_size < 1 or self.eval_sequences < 1 or self.max_frames < 3 or not self.cache_mb > 0:
            raise ConfigError("batch_size, eval_sequences and cache_mb must be positive, max_frames at least 3")
        if not 0 <= self.label_share <= 1:
            raise ConfigError(f"label_share must lie in [0, 1], got {self.label_share}")
        if self.held_out and self.held_out <= self.eval_gap:
            raise ConfigError(f"held_out ({self.held_out}) must exceed eval_gap ({self.eval_gap}), or be 0")


@dataclass(frozen=True, kw_only=True)
class Triplets(Clip):
    """A batch of two keyframes and a frame between them; ``frames`` holds first, wanted and second, whole.

    ``info`` names the three frames of each.
    """

    shown: Tensor
    """Features of a part of the wanted frame, (B, NUM_FEATURES, h/2, w/2)."""
    origin: Tensor
    """(B, 2) x and y of that part's first pixel in the whole frame."""

    def wanted(self) -> Tensor:
        """The part of the wanted frame, (B, 3, h, w) in [-1, 1]."""
        height, width = self.shown.shape[-2] * 2, self.shown.shape[-1] * 2
        places = self.origin.tolist()
        return torch.stack(
            [frames[1, :, y : y + height, x : x + width] for frames, (x, y) in zip(self.frames, places, strict=True)]
        )

    def _map(self, fn: Callable[[Tensor], Tensor]) -> Triplets:
        return replace(self, frames=fn(self.frames), shown=fn(self.shown), origin=fn(self.origin))


@dataclass(frozen=True)
class FrameSequence:
    """Frames that follow each other, on disk or, of a video, in memory."""

    name: str
    """What messages call it."""
    frames: tuple[Path, ...] | tuple[Frame, ...]
    """Pictures, or reduced frames."""
    labels: tuple[Path, ...] = ()
    """Label map of every frame, or nothing."""

    def __len__(self) -> int:
        return len(self.frames)


def find_sequences(source: Path, config: TripletConfig) -> list[FrameSequence]:
    """Sequences of a video, of a folder of pictures or videos, or of a data set.

    Args:
        source: a video file; a folder of pictures, which are one sequence; a folder of such folders or of videos; or a
            data set with ``train_B`` (or ``train_img``) and, if there are any, label maps in ``train_A``.
        config: size and length of what is read.

    Returns:
        Sequences in the order of their names.

    Raises:
        DataError: if there is nothing of the kind, or label maps do not belong to the frames.
        MediaError: if a video cannot be decoded.
    """
    if source.is_file():
        return [FrameSequence(source.name, _read_video(source, config))]
    if not source.is_dir():
        raise DataError(f"{source} does not exist; give a folder of frames or videos, a data set or a video file")
    for suffix in _FRAMES:
        if (frames := source / f"train_{suffix}").is_dir():
            return _labelled(frames, source / f"train_{MODALITIES['labels'].suffix}")
    found = []
    for folder in [source, *sorted(path for path in source.rglob("*") if path.is_dir())]:
        if pictures := _pictures(folder):
            found.append(FrameSequence(str(folder.relative_to(source.parent)), pictures))
    videos = sorted(path for path in source.iterdir() if path.suffix.lower() in _VIDEOS)
    found += [FrameSequence(video.name, _read_video(video, config)) for video in videos]
    if not found:
        raise DataError(f"{source} holds neither pictures nor videos; give frames that follow each other")
    return found


def _labelled(frames: Path, labels: Path) -> list[FrameSequence]:
    """Sequences of a data set; label maps only where they are maps of ids, one for each frame."""
    found = []
    for folder in [frames, *sorted(path for path in frames.rglob("*") if path.is_dir())]:
        pictures = _pictures(folder)
        if not pictures:
            continue
        inside = folder.relative_to(frames)
        maps = _pictures(labels / inside) if (labels / inside).is_dir() else ()
        if maps and [path.stem for path in maps] != [path.stem for path in pictures]:
            raise DataError(
                f"{labels / inside} has {len(maps)} label maps for {len(pictures)} frames of {folder}; give one of the "
                "same name for each"
            )
        is_ids = bool(maps) and _is_label(maps[0])
        if maps and not is_ids:
            _LOG.info("%s holds pictures and no label maps: its frames are learnt from without", labels / inside)
        found.append(FrameSequence(str(inside), pictures, maps if is_ids else ()))
    if not found:
        raise DataError(f"{frames} holds no pictures; give the frames of at least one sequence")
    return found


def _is_label(path: Path) -> bool:
    """Whether a condition is a label map; drawn conditions are pictures and of no use here.

    Raises:
        DataError: if it cannot be read.
    """
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise DataError(f"{path}: not a readable image; write it again")
    return image.ndim == 2


def _pictures(folder: Path) -> tuple[Path, ...]:
    return tuple(sorted((p for p in folder.iterdir() if is_image_file(p)), key=lambda path: by_number(path.stem)))


def _read_video(path: Path, config: TripletConfig) -> tuple[Frame, ...]:
    frames: list[Frame] = []
    for frame in read_video(path):
        if len(frames) == config.max_frames:
            break
        frames.append(_reduced(frame, config.size))
    return tuple(frames)


def _reduced(frame: Frame, size: tuple[int, int]) -> Frame:
    reduced: Frame = cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA)
    return reduced


class TripletLoader:
    """Endless batches of random triplets, and held-out ones to score.

    Features are those that deployment computes (``interpolate.network.features``); the motion of a pair of keyframes is
    kept for the next time it is drawn. Batch k depends on the seed and k only.

    Args:
        sequences: what to draw from; longer ones are drawn more often.
        config: how.
        motion: how motion is estimated; pairs of keyframes across a scene cut are passed over.
        seed: root of all draws.
        rank: number of this process.
        world_size: how many processes share a batch.

    Raises:
        DataError: if no sequence is long enough, naming the longest.
    """

    def __init__(
        self,
        sequences: Sequence[FrameSequence],
        config: TripletConfig,
        motion: MotionConfig,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._sequences, self.config, self._motion_config = tuple(sequences), config, motion
        self._seed, self._rank, self._world_size = seed, rank, world_size
        if config.batch_size % world_size:
            raise ConfigError(f"batch_size {config.batch_size} must be divisible by {world_size} processes")
        self._lengths = [max(0, len(sequence) - config.held_out) for sequence in sequences]
        least = min(config.gaps) + 1
        if max(self._lengths, default=0) < least:
            longest = max(map(len, sequences), default=0)
            raise DataError(
                f"the longest sequence has {longest} frames, and triplets need {least} beside {config.held_out} "
                "that are held out; give longer sequences or a smaller --recipe.data.held-out"
            )
        self._interpolator = DISInterpolator(motion)
        height, width = config.size
        frames = max(8, int(config.cache_mb * 2**20 / (3 * height * width)))
        pairs = max(8, int(config.cache_mb * 2**20 / (20 * height * width * (motion.working_scale / 2) ** 2)))
        self._frame = functools.lru_cache(frames)(self._read_frame)
        self._label = functools.lru_cache(3 * frames)(self._read_label)
        self._pair = functools.lru_cache(pairs)(self._estimate)

    def batches(self, start: int) -> Iterator[Triplets]:
        """This process's share of batches ``start``, ``start`` + 1, ... without end."""
        share = self.config.batch_size // self._world_size
        number = start
        while True:
            places = range(self._rank * share, (self._rank + 1) * share)
            yield _stacked([self._draw(generator_at(self._seed, "triplet", number, place)) for place in places])
            number += 1

    def held_out(self) -> list[Triplets]:
        """Whole frames of the held-out ends: one batch, of one gap's frames, for each scored sequence."""
        gap, found = self.config.eval_gap, list[Triplets]()
        usable = [i for i, sequence in enumerate(self._sequences) if self.config.held_out and len(sequence) > gap]
        count = min(self.config.eval_sequences, len(usable))
        for place in np.linspace(0, len(usable) - 1, count).round().astype(int) if count else ():
            index = usable[place]
            first = len(self._sequences[index]) - 1 - gap
            has_labels = bool(self._sequences[index].labels)
            made = [self._triplet(index, (first, first + j, first + gap), has_labels) for j in range(1, gap)]
            found += [_stacked([triplet for triplet in made if triplet is not None])] if made[0] is not None else []
        return found

    def _draw(self, rng: np.random.Generator) -> Triplets:
        """A random triplet, cropped, mirrored and played backwards at random.

        Raises:
            DataError: if again and again a scene cut lies between the keyframes.
        """
        for _ in range(_MOST_CUTS):
            if (triplet := self._draw_whole(rng)) is not None:
                return self._varied(triplet, rng)
        raise DataError(
            f"{_MOST_CUTS} pairs of keyframes in a row showed different scenes, {self._sequences[0].name} among them; "
            "give footage without cuts, or set --recipe.motion.cut-threshold None"
        )

    def _draw_whole(self, rng: np.random.Generator) -> Triplets | None:
        """Any frame between any two of a sequence; None across a cut."""
        lengths = self._lengths
        gaps = [gap for gap in self.config.gaps if gap < max(lengths)]
        gap = int(rng.choice(gaps))
        weights = np.array([max(0, length - gap) for length in lengths], dtype=float) ** 0.5
        index = int(rng.choice(len(lengths), p=weights / weights.sum()))
        first = int(rng.integers(lengths[index] - gap))
        middle = first + int(rng.integers(1, gap))
        has_labels = bool(self._sequences[index].labels) and rng.random() < self.config.label_share
        return self._triplet(index, (first, middle, first + gap), has_labels)

    def _varied(self, triplet: Triplets, rng: np.random.Generator) -> Triplets:
        """A part of it, mirrored, played backwards and with its colours exchanged at random."""
        (height, width), (part_height, part_width) = self.config.size, self.config.crop
        x, y = (
            2 * int(rng.integers((side - part) // 2 + 1)) for side, part in ((width, part_width), (height, part_height))
        )
        part = triplet.shown[..., y // 2 : (y + part_height) // 2, x // 2 : (x + part_width) // 2]
        triplet = replace(triplet, shown=part, origin=torch.tensor([[x, y]]))
        if rng.random() < 0.5:
            triplet = reversed_in_time(triplet)
        if rng.random() < 0.5:
            triplet = mirrored(triplet)
        order = torch.from_numpy(rng.permutation(3))
        return with_colours(triplet, order)

    def _triplet(self, index: int, places: tuple[int, int, int], has_labels: bool) -> Triplets | None:
        """The features of a whole frame, B = 1, with frames of bytes; None across a cut."""
        first, middle, second = (self._frame(index, place) for place in places)
        time = (places[1] - places[0]) / (places[2] - places[0])
        motion = self._pair(index, places[0], places[2])
        if motion is None:
            return None
        labels = [self._label(index, place) for place in places] if has_labels else None
        evidence = self._interpolator.evidence(motion, self.config.size, time, labels)
        halved = halved_labels(labels, self._motion_config)
        halves = half_size(first), half_size(second)
        shown = features(halves, evidence, time, halved, self._motion_config.doubt or 1.0)
        # Bytes until the batch is whole: what is done to them in between then costs a quarter.
        frames = torch.from_numpy(np.stack([first, middle, second]).transpose(0, 3, 1, 2))
        info = ClipInfo(self._sequences[index].name, places)
        origin = torch.zeros(1, 2, dtype=torch.int64)
        return Triplets(frames=frames[None], shown=torch.from_numpy(shown)[None], origin=origin, info=(info,))

    def _read_frame(self, index: int, place: int) -> Frame:
        source = self._sequences[index].frames[place]
        return _reduced(read_image(source), self.config.size) if isinstance(source, Path) else source

    def _read_label(self, index: int, place: int) -> Labels:
        label: NDArray[Any] = read_label(self._sequences[index].labels[place])
        return cv2.resize(label, self.config.size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)

    def _estimate(self, index: int, first: int, second: int) -> PairMotion | None:
        return self._interpolator.estimate(self._frame(index, first), self._frame(index, second))


def mirrored(triplet: Triplets) -> Triplets:
    """The same seen in a mirror."""
    shown = triplet.shown.flip(-1)
    shown[:, CHANNELS.motion.start] *= -1
    origin = triplet.origin.clone()
    origin[:, 0] = triplet.size[1] - 2 * shown.shape[-1] - origin[:, 0]
    info = tuple(replace(entry, flipped=not entry.flipped) for entry in triplet.info)
    return replace(triplet, frames=triplet.frames.flip(-1), shown=shown, origin=origin, info=info)


def reversed_in_time(triplet: Triplets) -> Triplets:
    """The same played backwards."""
    first, second = CHANNELS.first, CHANNELS.second
    order = [*range(second.start, second.stop), *range(first.start, first.stop), 6, 7, 9, 8, 10, 11, 13, 12]
    shown = triplet.shown[:, order]
    shown[:, CHANNELS.motion] *= -1
    shown[:, CHANNELS.log_odds] *= -1
    shown[:, CHANNELS.time] = 1 - shown[:, CHANNELS.time]
    info = tuple(replace(entry, indices=entry.indices[::-1]) for entry in triplet.info)
    return replace(triplet, frames=triplet.frames.flip(1), shown=shown, info=info)


def with_colours(triplet: Triplets, order: Tensor) -> Triplets:
    """The same with red, green and blue in another order; motion was found in grey and stays."""
    shown = triplet.shown.clone()
    for side in (CHANNELS.first, CHANNELS.second):
        shown[:, side] = triplet.shown[:, side][:, order]
    return replace(triplet, frames=triplet.frames[:, :, order], shown=shown)


def _stacked(triplets: Sequence[Triplets]) -> Triplets:
    """One batch of triplets whose frames are still bytes."""
    return Triplets(
        frames=torch.cat([x.frames for x in triplets]).float().div_(127.5).sub_(1),
        shown=torch.cat([x.shown for x in triplets]),
        origin=torch.cat([x.origin for x in triplets]),
        info=tuple(entry for x in triplets for entry in x.info),
    )
