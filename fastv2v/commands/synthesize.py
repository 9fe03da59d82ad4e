"""``fastv2v synthesize``: roll a trained generator out over a data set."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from fastv2v.architecture import Trained, load_trained
from fastv2v.checkpoint import find_checkpoint
from fastv2v.commands.arguments import parse
from fastv2v.commands.initial import IMPORTED
from fastv2v.commands.parts import check_condition, data_of
from fastv2v.contracts import FrameOutput, StepModel
from fastv2v.data.clip import Clip
from fastv2v.data.conditions import ConditionSpec
from fastv2v.data.folder import FolderConfig, FrameReader, Phase, Sequence, VideoFolder, open_folder
from fastv2v.data.loader import read_sequence
from fastv2v.data.prepare.write import prepared_fps
from fastv2v.device import Device, DeviceConfig, open_device
from fastv2v.errors import ConfigError
from fastv2v.nn.face_features import BorrowedFeatures, build_bank, read_bank, read_parts, write_bank
from fastv2v.nn.features import FeatureEncoder, FeatureGenerator, clip_conditions
from fastv2v.nn.generators import ImageGenerator, VideoGenerator, in_one_style
from fastv2v.nn.norms import batch_statistics
from fastv2v.nn.spade_image import SpadeImageGenerator
from fastv2v.ops.labels import condition_pictures, encode_clip, guidance_points
from fastv2v.ops.pictures import part_pictures
from fastv2v.render import Points, at_frame, cut, guided_step, start_history
from fastv2v.score import to_uint8
from fastv2v.seed import generator_for
from fastv2v.video import VideoWriter, write_image, write_video
from teachers.import_weights import load_imported
from teachers.looks import check_looks, choose_looks, conditions_with_look, read_looks

__all__ = ["Synthesize", "data_of", "main", "roll_out", "synthesise", "to_picture"]

WINDOW = 16
"""Frames that are read and encoded at a time: memory does not grow with the length of a sequence."""


@dataclass(frozen=True, kw_only=True)
class Synthesize:
    """Roll a trained generator out over the sequences of a data set, from its own frames."""

    run: Path
    """Run or checkpoint of a teacher or student."""
    data: Path
    """Data set folder."""
    out: Path
    """Folder for frames and videos."""
    phase: Phase = "test"
    """Which part of the data set, split and read as the run did: what it held out, or what it was trained on."""
    test_tail: int | None = None
    """Fewer held-out frames than the run's, counted from the end of each sequence; for data without test folders."""
    given_frames: int = 1
    """Real frames to start from; 0 starts from nothing. With --first-frames: how many of those to draw."""
    first_frames: Path | None = None
    """Draw the first frames by this single-image generator instead of taking real ones: a run of train-first, or a
    folder of import-weights."""
    first_style: int | None = None
    """Seed of the random style that --first-frames draws in, another for each sequence; by default all are drawn in the
    mean style."""
    first_encoder: Path | None = None
    """Imported ``encoder`` of a face generator with features (``global_with_features``): it looks at the real frames,
    and the drawn ones borrow the features of the most similar face of --first-bank."""
    first_bank: Path | None = None
    """Bank of faces (.npz) to borrow from; where it does not exist it is made from the training frames of the data."""
    first_face: int | None = None
    """Number of a face of the bank to borrow from, instead of the most similar one; real frames are then not used."""
    start: int = 0
    """First frame of each sequence."""
    frames: int | None = None
    """At most this many frames of each sequence; all by default."""
    scale_points: bool = False
    """Change the proportions of the driving face a little, by vid2vid's fixed ratios (faces only)."""
    look_seed: int | None = None
    """For teachers with instance features: draw the look of every object by this seed from the table of ``fastv2v
    looks``. Without it objects look as in the real frames."""
    look: tuple[str, ...] = ()
    """Give all objects of a class one look of the table, as CLASS=NUMBER."""
    looks: Path | None = None
    """The table; by default the run's own looks.npz."""
    norm_statistics: Literal["auto", "running", "batch"] = "auto"
    """Norms go by what training remembered (``running``) or by each frame itself (``batch``), as the published vid2vid
    generates. ``auto``: batch for teachers, which were trained on few clips at a time; running for students, whose
    exported graph has nothing else."""
    parts: bool = False
    """Also write NAME-parts.mp4: condition, real frame, finished frame and what it was made of, side by side."""
    fps: float | None = None
    """Rate of the written videos; by default that of the video the data were prepared from, else 15."""
    write: Literal["both", "frames", "video"] = "both"
    """PNG frames, an MP4 video, or both."""
    mark: bool = True
    """Say in the metadata of what is written (videos and PNG) that it was synthesised, and by which run. Real given
    frames are marked in the video only, of which they are part."""
    overwrite: bool = False
    """Replace files of the same names."""
    device: DeviceConfig = field(default_factory=DeviceConfig)
    """Where and in what precision."""

    def __post_init__(self) -> None:
        if self.given_frames < 0 or self.start < 0:
            raise ConfigError(f"given_frames and start must be at least 0, got {self.given_frames} and {self.start}")
        if self.frames is not None and self.frames < 1:
            raise ConfigError(f"frames must be at least 1, got {self.frames}")
        if (self.look or self.looks is not None) and self.look_seed is None:
            raise ConfigError("--look and --looks need --look-seed, by which all other objects get their look")
        if self.first_frames is not None and self.given_frames < 1:
            raise ConfigError("--first-frames draws the given frames: --given-frames must be at least 1")
        if self.first_frames is None and (self.first_encoder or self.first_bank or self.first_face is not None):
            raise ConfigError("--first-encoder, --first-bank and --first-face belong to --first-frames")
        if self.first_frames is None and self.first_style is not None:
            raise ConfigError("--first-style belongs to --first-frames")


class Made(NamedTuple):
    """One frame of a rollout."""

    clip: Clip
    """The frame of the data set, one frame long."""
    output: FrameOutput
    """What was made for it; for a given frame only the frame itself."""


Encode = Callable[[Clip], Tensor]
"""Conditions (B, T, C, H, W) of a clip."""
PointsOf = Callable[[Clip], Points | None]
"""Point ids of a clip, where a model is guided by a painted world."""
FirstFeatures = Callable[[int, Clip], Tensor]
"""Features (T, F, H, W) for frames of a sequence, which is given by its position."""


@torch.no_grad()
def roll_out(
    model: StepModel,
    encode: Encode,
    windows: Iterable[Clip],
    given_frames: int,
    device: Device,
    *,
    first: ImageGenerator | None = None,
    first_features: Encode | None = None,
    first_style: torch.Generator | None = None,
    points_of: PointsOf | None = None,
) -> Iterator[Made]:
    """Synthesise a sequence of any length.

    Args:
        model: any step model, on the device.
        encode: how conditions are encoded.
        windows: consecutive parts of the sequence; the first has more frames than are given.
        given_frames: how many frames begin it; 0 starts from nothing.
        device: where and in what precision.
        first: draws the given frames; real ones by default.
        first_features: features (T, F, H, W) of the given frames, for a ``first`` that takes them.
        first_style: draws the style of the given frames, on the CPU; the mean style by default.
        points_of: point ids, for a guided model.

    Yields:
        Every frame in order, the given ones among them.
    """
    history = None
    for window in windows:
        clip = window.to(device.device)
        conditions, points = encode(clip), None if points_of is None else points_of(clip)
        begin = 0
        if history is None:
            begin = given_frames
            given = clip.frames[:, :begin]
            if first is not None:
                shown = [_own_channels(first, conditions[:, t]) for t in range(begin)]
                if first_features is not None:
                    features = first_features(clip.take(0, begin))
                    shown = [torch.cat([x, features[t : t + 1]], dim=1) for t, x in enumerate(shown)]
                draw = in_one_style(first, conditions.shape[0], first_style)
                with device.autocast():
                    drawn = [draw(x) for x in shown]
                given = torch.stack(drawn, dim=1)
            history = start_history(
                conditions[:, :begin],
                given if begin else None,
                model.history_length,
                first_condition=conditions[:, 0],
                points=cut(points, slice(begin)),
            )
            for t, frame in enumerate(given.unbind(1)):
                yield Made(clip.take(t, t + 1), FrameOutput(frame, frame))
        for t in range(begin, clip.num_frames):
            with device.autocast():
                output, history = guided_step(model, conditions[:, t], history, at_frame(points, t))
            yield Made(clip.take(t, t + 1), output)


def _own_channels(first: ImageGenerator, condition: Tensor) -> Tensor:
    """The condition as a single-image generator knows it: published ones have no channel of instance borders."""
    return condition[:, : first.condition_channels - first.config.feature_channels]


def synthesise(
    model: StepModel, spec: ConditionSpec, clip: Clip, given_frames: int, device: Device
) -> Iterator[NDArray[np.uint8]]:
    """Frames of a clip, RGB (H, W, 3): the given ones as they are, then the model's own, one by one."""
    encode, points_of = partial(encode_clip, spec), partial(guidance_points, spec)
    for made in roll_out(model, encode, [clip], given_frames, device, points_of=points_of):
        yield to_picture(made.output.frame)


def to_picture(frame: torch.Tensor) -> NDArray[np.uint8]:
    """A frame (1, 3, H, W) in [-1, 1] as RGB (H, W, 3)."""
    return np.ascontiguousarray(to_uint8(frame)[0].permute(1, 2, 0).cpu().numpy())


def output_name(folder: VideoFolder, sequence: Sequence) -> str:
    """Name of what is written for a sequence; frames that lie directly in the data set take its name."""
    return folder.root.resolve().name if sequence.name == "." else sequence.name


def load_first(path: Path, spec: ConditionSpec) -> ImageGenerator:
    """A single-image generator that suits a condition.

    Args:
        path: a run of train-first, or a folder of import-weights.
        spec: the condition it will be given.

    Raises:
        ConfigError: if it is another kind of network, or takes other conditions.
    """
    network = load_imported(path).network if (path / IMPORTED).is_file() else load_trained(path).model
    if not isinstance(network, ImageGenerator):
        raise ConfigError(
            f"{path} holds no generator of single images; give a run of train-first, or an imported 'global', "
            "'local_enhancer' or 'global_with_features'"
        )
    channels = network.condition_channels - network.config.feature_channels
    # Of what is given: no first frame has guidance.
    if channels not in {spec.channels, spec.given_channels, spec.given_channels - int(spec.use_instances)}:
        raise ConfigError(
            f"{path} takes conditions of {channels} channels and the teacher's have {spec.given_channels}; "
            "train it on the same data set"
        )
    return network


def load_first_features(
    args: Synthesize, first: ImageGenerator, trained: Trained, folder: VideoFolder, device: Device
) -> FirstFeatures | None:
    """Where the features of drawn first frames come from; None for a generator that takes none.

    A bank that does not exist is made from the training frames and written.

    Raises:
        ConfigError: if the generator, the encoder and the bank do not go together, or one of them is missing.
        DataError: if the bank is damaged.
    """
    if not first.config.feature_channels:
        if args.first_encoder or args.first_bank or args.first_face is not None:
            raise ConfigError(f"{args.first_frames} takes no features: leave out --first-encoder, -bank and -face")
        return None
    bank_file = args.first_bank
    if folder.config.condition != "face" or not bank_file or (args.first_encoder is None and args.first_face is None):
        raise ConfigError(
            f"{args.first_frames} draws faces with features: it needs a data set of faces, --first-bank, and "
            "--first-encoder or --first-face"
        )
    encoder = None if args.first_encoder is None else load_imported(args.first_encoder).network.to(device.device)
    if encoder is not None and not isinstance(encoder, FeatureEncoder):
        raise ConfigError(f"{args.first_encoder} holds no feature encoder; give an imported 'encoder'")
    if encoder is not None and not bank_file.exists():
        training = open_folder(data_of(trained.architecture, args.data, "train"))
        with tqdm(unit="frame", desc=str(bank_file)) as bar:
            write_bank(bank_file, build_bank(encoder, training, progress=lambda done, _: bar.update(done - bar.n)))
    bank = read_bank(bank_file).to(device.device)
    if bank.channels != first.config.feature_channels:
        raise ConfigError(
            f"{bank_file} has features of {bank.channels} channels and {args.first_frames} takes "
            f"{first.config.feature_channels}; make a bank with the encoder that belongs to it"
        )
    borrowed = BorrowedFeatures(bank=bank, encoder=encoder, face=args.first_face)

    def features(sequence: int, clip: Clip) -> Tensor:
        return borrowed(clip.frames[0], read_parts(folder, sequence, clip.info[0].indices).to(device.device))

    return features


def video_model(trained: Trained) -> VideoGenerator | FeatureGenerator:
    """A generator of videos, with instance features or without.

    Raises:
        ConfigError: if the run draws single images.
    """
    return trained.model if isinstance(trained.model, FeatureGenerator) else trained.generator


def condition_encoder(args: Synthesize, generator: VideoGenerator | FeatureGenerator, spec: ConditionSpec) -> Encode:
    """How conditions are encoded: with features of the real frames, with drawn looks, or without features.

    Raises:
        ConfigError: if looks are asked of a generator without features, or are not there.
    """
    if args.look_seed is None:
        return partial(clip_conditions, generator, spec)
    if not isinstance(generator, FeatureGenerator):
        raise ConfigError(
            f"{args.run} has no instance features, so that no look can be chosen; train with "
            "--recipe.features.channels 3"
        )
    table = read_looks(args.looks or find_checkpoint(args.run, "latest").parent.parent / "looks.npz")
    check_looks(table, generator, spec)
    chosen = {}
    for choice in args.look:
        name, _, number = choice.rpartition("=")
        if not name or not number.isdecimal():
            raise ConfigError(f"--look is CLASS=NUMBER, as car=3, got {choice!r}")
        chosen[name] = int(number)
    choose_looks(table, chosen)
    return partial(conditions_with_look, generator, spec, looks=table, seed=args.look_seed, override=chosen)


def check_outputs(args: Synthesize, folder: VideoFolder) -> None:
    """Refuse what cannot be written before anything is.

    Raises:
        ConfigError: if a sequence has no frame beyond the given ones, or an output exists and may not be replaced.
    """
    if args.out.is_file():
        raise ConfigError(f"{args.out} is a file; name a folder with --out")
    if args.fps is not None and not 0 < args.fps < 1000:
        raise ConfigError(f"fps must lie between 0 and 1000 frames per second, got {args.fps}")
    for sequence in folder.sequences:
        left = min(len(sequence) - args.start, args.frames or len(sequence))
        if args.given_frames >= left:
            raise ConfigError(
                f"sequence '{sequence.name}' has {max(left, 0)} frames from {args.start} on and {args.given_frames} "
                "are given, so that none is left to synthesise; lower --given-frames or --start, or raise --frames"
            )
        name = output_name(folder, sequence)
        made = [args.out / f"{name}.mp4"] if args.write != "frames" else []
        made += [args.out / f"{name}-parts.mp4"] if args.parts else []
        stems = sequence.stems[args.start : args.start + left]
        made += [args.out / name / f"{stem}.png" for stem in stems] if args.write != "video" else []
        if not args.overwrite and (there := next((path for path in made if path.exists()), None)):
            raise ConfigError(f"{there} exists already; name another folder with --out or pass --overwrite")


def windows_of(folder: VideoFolder, index: int, start: int, stop: int, least: int) -> Iterator[Clip]:
    """A sequence in parts; the first has more than ``least`` frames."""
    reader = FrameReader(folder, cache_mb=0)
    first = start
    while first < stop:
        last = min(first + max(WINDOW, least + 1 if first == start else 0), stop)
        yield read_sequence(folder, index, first, last, reader=reader)
        first = last


def write_sequence(args: Synthesize, name: str, frames: Iterator[Made], total: int, trained: Trained) -> None:
    """Write the frames of one sequence as they come."""
    architecture = trained.architecture
    made_by = f"{trained.checkpoint.resolve().parent.parent.name}, step {trained.step}"
    real = args.given_frames if args.first_frames is None else 0

    def kept(parts: VideoWriter | None) -> Iterator[NDArray[np.uint8]]:
        for i, made in enumerate(tqdm(frames, total=total, desc=name)):
            picture = to_picture(made.output.frame)
            if args.write != "video":
                file = args.out / name / f"{made.clip.info[0].names[0]}.png"
                write_image(file, picture, synthetic=args.mark and i >= real, made_by=made_by)
            if parts is not None:
                parts.write(_sheet(made, architecture.condition, architecture.palette))
            yield picture

    fps = prepared_fps(args.data, 15.0) if args.fps is None else args.fps
    writer = partial(VideoWriter, fps=fps, synthetic=args.mark, made_by=made_by)
    with writer(args.out / f"{name}-parts.mp4") if args.parts else nullcontext() as parts:
        if args.write == "frames":
            for _ in kept(parts):
                pass
        else:
            write_video(args.out / f"{name}.mp4", kept(parts), fps, synthetic=args.mark, made_by=made_by)


def _sheet(made: Made, spec: ConditionSpec, palette: tuple[tuple[int, int, int], ...]) -> NDArray[np.uint8]:
    """Everything about one frame side by side, in two rows."""
    condition = condition_pictures(spec, made.clip, palette)[:, 0]
    parts = part_pictures(made.output)
    black = torch.full_like(condition, -1)
    rows = [
        [condition, made.clip.frames[:, 0], made.output.frame, parts["hallucinated"]],
        [parts.get(name, black) for name in ("warped", "flow", "occlusion")] + [black],
    ]
    return np.concatenate([np.concatenate([to_picture(x) for x in row], axis=1) for row in rows])


def _scaled_points(config: FolderConfig) -> FolderConfig:
    """The same faces with other proportions.

    Raises:
        ConfigError: if these are no faces.
    """
    if config.condition != "face":
        raise ConfigError(f"--scale-points is for faces, and the run takes the condition '{config.condition}'")
    return replace(config, face=replace(config.face, scale_points=True))


def main(argv: list[str]) -> int:
    """``fastv2v synthesize --run RUN --data DIR --out DIR``."""
    args = parse(Synthesize, "fastv2v synthesize", argv)
    device = open_device(args.device)
    trained = load_trained(args.run)
    generator = video_model(trained).to(device.device)
    config = data_of(trained.architecture, args.data, args.phase, args.test_tail)
    check_condition(trained.architecture, open_folder(config), str(args.run))
    folder = open_folder(_scaled_points(config) if args.scale_points else config)
    first = None if args.first_frames is None else load_first(args.first_frames, folder.spec).to(device.device)
    if args.first_style is not None and not (isinstance(first, SpadeImageGenerator) and first.style_channels):
        raise ConfigError(
            f"{args.first_frames} draws in no random style: leave out --first-style, or give a run of train-first "
            "trained with --recipe.generator.style.channels"
        )
    check_outputs(args, folder)
    features = None if first is None else load_first_features(args, first, trained, folder, device)
    encode = condition_encoder(args, generator, folder.spec)
    written = []
    # A feature encoder sees whole windows, whose statistics would depend on where they end: it stays as it was trained.
    inner = generator.generator if isinstance(generator, FeatureGenerator) else generator
    drawing = [inner] if first is None else [inner, first]
    by_frame = args.norm_statistics == "batch"
    if args.norm_statistics == "auto":
        by_frame = trained.architecture.stage == "teacher"
    statistics = batch_statistics(*drawing) if by_frame else nullcontext()
    with statistics:
        for i, sequence in enumerate(folder.sequences):
            name = output_name(folder, sequence)
            stop = min(len(sequence), args.start + (args.frames or len(sequence)))
            windows = windows_of(folder, i, args.start, stop, args.given_frames)
            made = roll_out(
                generator,
                encode,
                windows,
                args.given_frames,
                device,
                first=first,
                first_features=None if features is None else partial(features, i),
                first_style=None if args.first_style is None else generator_for(args.first_style, "style", name),
                points_of=partial(guidance_points, folder.spec),
            )
            write_sequence(args, name, made, stop - args.start, trained)
            written.append(name)
    print(f"{args.out}: {len(written)} sequences from {trained.checkpoint} (step {trained.step})")
    print(json.dumps({"out": str(args.out), "sequences": written, "checkpoint": str(trained.checkpoint)}))
    return 0
