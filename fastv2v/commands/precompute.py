"""``fastv2v precompute``: roll a teacher out over its training data once, for students to learn from."""

from __future__ import annotations

import itertools
import json
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from distill.cache import Span, TaughtRecord, TaughtSequence, TaughtWriter, rollout_spans, weights_sha256
from fastv2v.architecture import load_trained
from fastv2v.commands.arguments import parse
from fastv2v.commands.parts import check_condition, check_stage, data_of
from fastv2v.commands.synthesize import roll_out, video_model, windows_of
from fastv2v.contracts import FrameOutput
from fastv2v.data.folder import VideoFolder, open_folder
from fastv2v.device import Device, DeviceConfig, open_device
from fastv2v.errors import ConfigError
from fastv2v.nn.features import FeatureGenerator, clip_conditions
from fastv2v.nn.generators import VideoGenerator
from fastv2v.nn.norms import batch_statistics
from fastv2v.ops.labels import guidance_points

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Precompute:
    """Write what a teacher makes of its training data, for students to learn from (--taught) while it rests."""

    teacher: Path
    """Run or checkpoint of the teacher."""
    data: Path
    """Data set folder; the one the teacher was trained on."""
    out: Path
    """Folder for the teacher's frames, 3 bytes a pixel. It appears when it is complete; the same command goes on with
    the sequence at which it was stopped."""
    flow: bool = False
    """Keep the teacher's flow as well, for the term kd_flow: 4 more bytes a pixel."""
    window: int = 28
    """The rollout begins again from real frames after so many frames, before the teacher drifts too far; 0 never."""
    max_frames: int | None = None
    """At most so many frames of each sequence, to try it out. Training needs all of them."""
    overwrite: bool = False
    """Replace what was precomputed with other settings."""
    quiet: bool = False
    """No progress bar."""
    device: DeviceConfig = field(default_factory=DeviceConfig)
    """Where and in what precision."""

    def __post_init__(self) -> None:
        if self.window < 0:
            raise ConfigError(f"window must be 0 or more frames, got {self.window}")
        if self.max_frames is not None and self.max_frames < 1:
            raise ConfigError(f"max_frames must be at least 1, got {self.max_frames}")


@dataclass(frozen=True, kw_only=True)
class PrecomputeSummary:
    """What was done."""

    num_sequences: int
    """Sequences there are now."""
    num_frames: int
    """Frames of the teacher in them."""
    num_found: int
    """How many of these were there before."""
    num_bytes: int
    """Bytes of their arrays on disk."""
    seconds: float
    """Time taken."""


def precompute(args: Precompute) -> PrecomputeSummary:
    """Roll out and write, as told.

    Raises:
        ConfigError: if teacher, data and settings do not go together, or the target may not be replaced.
        DataError: if a file is damaged, or the teacher's outputs are not finite.
    """
    begin = time.perf_counter()
    device = open_device(args.device)
    if device.world_size > 1:
        raise ConfigError("precompute runs in one process; start it without accelerate launch or torchrun")
    trained = load_trained(args.teacher)
    check_stage(trained, ("teacher",), "precomputed", "a run of train-teacher")
    model = video_model(trained).to(device.device)
    inner = model.generator if isinstance(model, FeatureGenerator) else model
    if args.flow and not inner.uses_flow:
        raise ConfigError(f"{args.teacher} has no flow branch, so that --flow has nothing to keep; leave it out")
    folder = open_folder(data_of(trained.architecture, args.data, "train"))
    check_condition(trained.architecture, folder, f"the teacher {args.teacher}")
    past = model.history_length
    record = TaughtRecord(
        teacher=trained.checkpoint.resolve(),
        weights_sha256=weights_sha256(trained.checkpoint),
        data=args.data.resolve(),
        condition=folder.spec,
        geometry=folder.config.geometry,
        history_length=past,
        window=args.window,
        has_flow=args.flow,
        sequences=tuple(_long_enough(folder, args.max_frames, past)),
    )
    writer = TaughtWriter(args.out, record, overwrite=args.overwrite)
    lengths = [len(sequence.stems) - past for sequence in record.sequences]
    at = {sequence.name: index for index, sequence in enumerate(folder.sequences)}
    num_before = writer.num_done
    with (
        batch_statistics(inner),
        tqdm(total=sum(lengths), initial=sum(lengths[:num_before]), unit="frame", disable=args.quiet) as bar,
    ):
        for sequence in record.sequences[num_before:]:
            spans = rollout_spans(len(sequence.stems), past, args.window)
            outputs = teacher_outputs(model, folder, at[sequence.name], spans, device)
            writer.add(_counted(outputs, bar))
    num_bytes = writer.finish()
    return PrecomputeSummary(
        num_sequences=len(lengths),
        num_frames=sum(lengths),
        num_found=sum(lengths[:num_before]),
        num_bytes=num_bytes,
        seconds=time.perf_counter() - begin,
    )


def teacher_outputs(
    model: VideoGenerator | FeatureGenerator, folder: VideoFolder, sequence: int, spans: Iterable[Span], device: Device
) -> Iterator[FrameOutput]:
    """What a teacher makes of one sequence, as ``fastv2v synthesize`` would draw each span by itself.

    Args:
        model: the teacher, on the device; one with instance features sees the look of the real frames.
        folder: the data set.
        sequence: which sequence of it.
        spans: its rollouts; each begins from a whole history of real frames, which paints a world of its own where the
            teacher is guided.
        device: where and in what precision.

    Yields:
        One output for every frame that the spans keep, in order.
    """
    past = model.history_length
    for span in spans:
        windows = windows_of(folder, sequence, span.start, span.stop, past)
        encode, points_of = partial(clip_conditions, model, folder.spec), partial(guidance_points, folder.spec)
        made = roll_out(model, encode, windows, past, device, points_of=points_of)
        for one in itertools.islice(made, span.first - span.start, None):
            yield one.output


def _long_enough(folder: VideoFolder, max_frames: int | None, past: int) -> Iterator[TaughtSequence]:
    """Sequences the teacher can draw something of; no clip is drawn from the others either."""
    for sequence in folder.sequences:
        stems = sequence.stems[:max_frames]
        if len(stems) > past:
            yield TaughtSequence(name=sequence.name, stems=stems)
        else:
            _LOG.warning("sequence '%s' is no longer than the teacher's history of %d, left out", sequence.name, past)


def _counted(outputs: Iterable[FrameOutput], bar: tqdm[NoReturn]) -> Iterator[FrameOutput]:
    for output in outputs:
        bar.update()
        yield output


def main(argv: list[str]) -> int:
    """``fastv2v precompute --teacher RUN --data DIR --out DIR``."""
    args = parse(Precompute, "fastv2v precompute", argv)
    done = precompute(args)
    print(
        f"{args.out}: {done.num_frames} frames of {done.num_sequences} sequences, {done.num_bytes / 1e6:.1f} MB; "
        f"{done.num_frames - done.num_found} made in {done.seconds:.1f} s"
    )
    print(json.dumps({"out": str(args.out), **asdict(done)}))
    return 0
