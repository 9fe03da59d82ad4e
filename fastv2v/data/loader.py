"""Clips as tensors: single ones, whole sequences, and an endless, repeatable stream of training batches."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fastv2v.data.clip import Clip, ClipInfo
from fastv2v.data.conditions import maps_to_float
from fastv2v.data.folder import FolderConfig, FrameReader, VideoFolder
from fastv2v.data.pose import PoseDrop, draw_drop
from fastv2v.data.reader import points_key
from fastv2v.data.sampling import (
    SamplingConfig,
    draw_sequence,
    draw_window,
    generator_at,
    shared_frames,
    start_counts,
)
from fastv2v.data.transforms import Geometry, draw_geometry, draw_scale
from fastv2v.errors import ConfigError, DataError, FastV2VError

logger = logging.getLogger(__name__)


def read_clip(
    folder: VideoFolder,
    sequence_index: int,
    indices: Sequence[int],
    geometry: Geometry,
    flip: bool = False,
    *,
    reader: FrameReader | None = None,
    drops: Sequence[PoseDrop] | None = None,
) -> Clip:
    """Read one clip.

    Args:
        folder: the data set.
        sequence_index: which sequence.
        indices: which frames of it, T of them.
        geometry: what is done to every image and map.
        flip: mirror the clip.
        reader: reads the files and may remember them; a new one when ``None``.
        drops: what is left out of the pose of each frame, T of them; nothing when ``None``.

    Returns:
        A clip with B = 1. It has flow where the data set has flow files and the frames are neighbours.

    Raises:
        DataError: if a file is damaged or disagrees with its neighbours.
    """
    reader = reader or FrameReader(folder, cache_mb=0)
    if not indices:
        raise DataError("a clip needs at least one frame")
    arrays = reader.read(sequence_index, indices, geometry, flip, drops=drops)
    sequence = folder.sequences[sequence_index]
    info = ClipInfo(sequence.name, tuple(indices), tuple(sequence.stems[i] for i in indices), flip)
    return Clip(
        frames=_images_to_tensor(arrays["frames"]),
        labels=_labels_to_tensor(arrays["labels"], folder) if "labels" in arrays else None,
        instances=torch.from_numpy(arrays["instances"].astype(np.int32))[None] if "instances" in arrays else None,
        maps=torch.from_numpy(maps_to_float(folder.spec, arrays["maps"]))[None] if "maps" in arrays else None,
        flow=torch.from_numpy(np.moveaxis(arrays["flow"], -1, 1).copy())[None] if "flow" in arrays else None,
        points=_points_to_tensors(arrays, folder.config.guidance_levels),
        info=(info,),
    )


def read_sequence(
    folder: VideoFolder,
    sequence_index: int,
    start: int = 0,
    stop: int | None = None,
    *,
    reader: FrameReader | None = None,
) -> Clip:
    """Read consecutive frames for testing: never mirrored, the crop in its middle position.

    Args:
        folder: the data set, of either phase.
        sequence_index: which sequence.
        start: first frame.
        stop: one past the last frame; the end of the sequence when ``None``.
        reader: as for ``read_clip``.

    Returns:
        A clip with B = 1.

    Raises:
        DataError: as ``read_clip``, and if the range is empty or leaves the sequence.
        ConfigError: if the geometry is of a random mode.
    """
    reader = reader or FrameReader(folder, cache_mb=0)
    size = reader.image_size(sequence_index, start)
    sequence = folder.sequences[sequence_index]
    stop = len(sequence) if stop is None else stop
    if not start < stop <= len(sequence):
        raise DataError(f"there are no frames {start}:{stop} in sequence '{sequence.name}' of {len(sequence)} frames")
    geometry = draw_geometry(folder.config.geometry, size, None, "test", multiple=_multiple(folder.config))
    return read_clip(folder, sequence_index, range(start, stop), geometry, reader=reader)


def collate_clips(clips: Sequence[Clip]) -> Clip:
    """Put clips of equal length and size into one batch.

    Args:
        clips: at least one, all with the same kinds of maps.

    Returns:
        The clips along the batch dimension, with the ``info`` of each.

    Raises:
        DataError: if lengths or sizes differ; the message names two sequences that do.
    """
    first = clips[0]
    for clip in clips:
        if clip.num_frames != first.num_frames or clip.size != first.size:
            raise DataError(
                f"one batch cannot hold {_describe(first)} and {_describe(clip)}; "
                "choose a geometry that gives all sequences one size, such as 'exact', or a batch size of 1"
            )
    if len(clips) == 1:
        return first

    def joined(name: str) -> Tensor | None:
        return None if getattr(first, name) is None else torch.cat([getattr(clip, name) for clip in clips])

    return replace(
        first,
        frames=torch.cat([clip.frames for clip in clips]),
        labels=joined("labels"),
        instances=joined("instances"),
        maps=joined("maps"),
        flow=joined("flow"),
        points=_joined_points(clips),
        info=tuple(info for clip in clips for info in clip.info),
    )


class ClipLoader:
    """An endless stream of random training batches, the same every time.

    Batch k depends on the data set, the settings and (seed, k) only: not on the number of workers, and not on the
    batches before it, so that a run which resumes at step k sees what it would have seen. All clips of a batch, on all
    ranks, share one scale, and all clips of a training step one length; step, crop, mirroring and what is left out of
    poses are drawn for each clip.
    Clips of a folder of the phase ``test`` are never mirrored, cropped at random or left incomplete; poses are never
    mirrored.
    """

    def __init__(
        self,
        folder: VideoFolder,
        sampling: SamplingConfig,
        *,
        batch_size: int,
        seed: int,
        batches_per_step: int = 1,
        num_workers: int = 0,
        prefetch: int = 2,
        cache_mb: float = 512,
        rank: int = 0,
        world_size: int = 1,
        start_method: Literal["fork", "spawn", "forkserver"] | None = None,
    ) -> None:
        """Check the settings; nothing is read yet.

        Args:
            folder: the data set.
            sampling: what a clip is.
            batch_size: clips of one step on all ranks together; each rank gets its own share of them.
            seed: of the run.
            batches_per_step: batches of one training step (gradient accumulation); their clips share one length.
            num_workers: processes that read; 0 reads in this one.
            prefetch: batches each worker keeps ready.
            cache_mb: memory for images that were read, in each reading process; 0 for none.
            rank: which share this process takes.
            world_size: number of shares.
            start_method: how workers are started; the platform's own way when ``None``.

        Raises:
            ConfigError: if the settings contradict each other or the data set.
            DataError: if no sequence is as long as a clip.
        """
        if world_size < 1 or not 0 <= rank < world_size:
            raise ConfigError(f"rank ({rank}) must lie below world_size ({world_size}), from 0 on")
        if batch_size < 1 or batch_size % world_size:
            raise ConfigError(f"batch_size ({batch_size}) must be a positive multiple of world_size ({world_size})")
        if batches_per_step < 1:
            raise ConfigError(f"batches_per_step must be at least 1, got {batches_per_step}")
        if num_workers < 0 or prefetch < 1:
            raise ConfigError(f"num_workers ({num_workers}) must be 0 or more and prefetch ({prefetch}) 1 or more")
        if folder.config.face.scale_points:
            raise ConfigError(
                "scale_points draws another face than the frames show and is for inference only; switch it off to train"
            )
        if folder.config.flow_files and sampling.max_step > 1:
            raise ConfigError(
                f"flow files hold flow between neighbouring frames and max_step is {sampling.max_step}; set it to 1, "
                "or set flow_files to False to have flow estimated"
            )
        too_short = int((start_counts(sampling, folder.lengths) == 0).sum())
        if too_short and sampling.fixed_sequence is None:
            logger.warning(
                "%d of %d sequences are shorter than a clip of %d frames and are left out",
                too_short,
                len(folder.sequences),
                sampling.num_frames,
            )
        share = batch_size // world_size
        samples = range(rank * share, (rank + 1) * share)
        self._batches = _Batches(
            folder, sampling, seed, batch_size, batches_per_step, samples, FrameReader(folder, cache_mb)
        )
        self._num_workers = num_workers
        self._prefetch = prefetch
        self._start_method = start_method

    def batches(self, start_step: int = 0) -> Iterator[Clip]:
        """Batches ``start_step``, ``start_step + 1``, ... without end.

        Raises:
            DataError: if a file turns out to be damaged, also where a worker reads it.
        """
        if start_step < 0:
            raise ConfigError(f"start_step must be 0 or more, got {start_step}")
        loader = DataLoader(
            self._batches,
            batch_size=None,
            sampler=_Steps(start_step),
            num_workers=self._num_workers,
            prefetch_factor=self._prefetch if self._num_workers else None,
            collate_fn=_unchanged,
            worker_init_fn=_prepare_worker,
            multiprocessing_context=self._start_method if self._num_workers else None,
            # Of its own, lest every start of the loader advance the random state of the run.
            generator=torch.Generator(),
        )
        for item in loader:
            if isinstance(item, _Failure):
                raise item.error
            yield item


@dataclass(frozen=True)
class _Failure:
    """An error on its way out of a worker; raised there, it would arrive wrapped in the text of a traceback."""

    error: FastV2VError


@dataclass(frozen=True)
class _Steps:
    """All steps from the first on: what the loader takes for a sampler."""

    first: int

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.first)


@dataclass
class _Batches(Dataset[Any]):
    """Batch k by its number."""

    folder: VideoFolder
    sampling: SamplingConfig
    seed: int
    batch_size: int
    batches_per_step: int
    samples: Iterable[int]
    reader: FrameReader

    def __getitem__(self, step: int) -> Clip | _Failure:
        try:
            scale = draw_scale(self.folder.config.geometry, generator_at(self.seed, "batch", step))
            # Every rank draws for all ranks, and for all batches of an update: one length must serve them all.
            update = step // self.batches_per_step
            drawn = {
                batch: [self._draw(batch, sample) for sample in range(self.batch_size)]
                for batch in range(update * self.batches_per_step, (update + 1) * self.batches_per_step)
            }
            sequences = [sequence for clips in drawn.values() for sequence, _ in clips]
            num_frames = shared_frames(self.sampling, self.folder.lengths, update, sequences)
            return collate_clips([self._clip(*drawn[step][sample], num_frames, scale) for sample in self.samples])
        except FastV2VError as error:
            return _Failure(error)

    def _draw(self, batch: int, sample: int) -> tuple[int, np.random.Generator]:
        """The sequence of one clip, and where the rest of its chances come from."""
        rng = generator_at(self.seed, "batch", batch, "sample", sample)
        return draw_sequence(self.sampling, self.folder.lengths, rng), rng

    def _clip(self, sequence: int, rng: np.random.Generator, num_frames: int, scale: int | None) -> Clip:
        request = draw_window(self.sampling, sequence, self.folder.lengths[sequence], num_frames, rng)
        config = self.folder.config
        size = self.reader.image_size(request.sequence, request.start)
        multiple = _multiple(config)
        geometry = draw_geometry(config.geometry, size, rng, config.phase, scale=scale, multiple=multiple)
        flip = request.flip and config.phase == "train" and config.condition != "pose"
        drops = self._drops(len(request.indices), rng)
        return read_clip(
            self.folder, request.sequence, request.indices, geometry, flip, reader=self.reader, drops=drops
        )

    def _drops(self, num_frames: int, rng: np.random.Generator) -> list[PoseDrop] | None:
        """What is left out of the pose in each frame; ``None`` where nothing is."""
        config = self.folder.config
        if config.condition != "pose" or config.phase != "train" or not config.pose.random_drop:
            return None
        if config.pose.drop_per == "clip":
            return [draw_drop(config.pose, rng)] * num_frames
        return [draw_drop(config.pose, rng) for _ in range(num_frames)]


def _images_to_tensor(images: NDArray[np.uint8]) -> Tensor:
    """(T, H, W, 3) of 0 to 255 -> (1, T, 3, H, W) float32 in [-1, 1]."""
    frames_TCHW = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return frames_TCHW.float().div_(127.5).sub_(1.0)[None]


def _multiple(config: FolderConfig) -> int:
    """Crops begin where a pixel of the coarsest level begins."""
    return 2 ** max(config.guidance_levels - 1, 0)


def _points_to_tensors(arrays: Mapping[str, NDArray[Any]], levels: int) -> tuple[Tensor, ...] | None:
    """Point ids of each level, (T, h, w) -> (1, T, h, w)."""
    return tuple(torch.from_numpy(arrays[points_key(k)])[None] for k in range(levels)) or None


def _joined_points(clips: Sequence[Clip]) -> tuple[Tensor, ...] | None:
    """Point ids of clips that all have them, level by level."""
    given = [clip.points for clip in clips if clip.points is not None]
    return tuple(torch.cat(level) for level in zip(*given, strict=True)) or None


def _labels_to_tensor(labels: NDArray[np.integer[Any]], folder: VideoFolder) -> Tensor:
    """(T, H, W) -> (1, T, H, W): uint8 where all ids of the data set fit, else int64, whatever the files hold."""
    highest = max(folder.spec.num_classes - 1, folder.spec.ignore_id or 0)
    return torch.from_numpy(labels.astype(np.uint8 if highest <= 255 else np.int64, copy=False))[None]


def _describe(clip: Clip) -> str:
    name = clip.info[0].sequence if clip.info else "a clip"
    return f"'{name}' ({clip.num_frames} frames of {clip.size[1]}x{clip.size[0]})"


def _unchanged(item: Any) -> Any:
    return item


def _prepare_worker(worker: int) -> None:
    # Threads of OpenCV do not survive a fork, and workers share the cores already.
    cv2.setNumThreads(0)
    info = torch.utils.data.get_worker_info()
    assert info is not None and isinstance(info.dataset, _Batches)
    info.dataset.reader.warns = worker == 0  # once is enough
