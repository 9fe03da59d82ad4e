"""``fastv2v synthesize``: roll a trained generator out over a data set."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from fastv2v.architecture import load_trained
from fastv2v.commands.arguments import parse
from fastv2v.commands.parts import check_condition, data_of
from fastv2v.contracts import StepModel
from fastv2v.data.clip import Clip
from fastv2v.data.conditions import ConditionSpec
from fastv2v.data.folder import Phase, Sequence, VideoFolder, open_folder
from fastv2v.data.loader import read_sequence
from fastv2v.device import Device, DeviceConfig, open_device
from fastv2v.errors import ConfigError
from fastv2v.ops.labels import encode_clip
from fastv2v.render import rollout, start_history
from fastv2v.score import to_uint8
from fastv2v.video import write_image, write_video

__all__ = ["Synthesize", "data_of", "main", "synthesise", "to_picture"]


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
    """Real frames to start from; 0 starts from nothing."""
    fps: float = 15.0
    """Rate of the written videos."""
    write: Literal["both", "frames", "video"] = "both"
    """PNG frames, an MP4 video, or both."""
    overwrite: bool = False
    """Replace files of the same names."""
    device: DeviceConfig = field(default_factory=DeviceConfig)
    """Where and in what precision."""

    def __post_init__(self) -> None:
        if self.given_frames < 0:
            raise ConfigError(f"given_frames must be at least 0, got {self.given_frames}")


@torch.no_grad()
def synthesise(
    model: StepModel, spec: ConditionSpec, clip: Clip, given_frames: int, device: Device
) -> Iterator[NDArray[np.uint8]]:
    """Frames of a clip, RGB (H, W, 3): the given ones as they are, then the model's own, one by one."""
    clip = clip.to(device.device)
    conditions = encode_clip(spec, clip)
    given = clip.frames[:, :given_frames] if given_frames else None
    history = start_history(conditions[:, :given_frames], given, model.history_length, first_condition=conditions[:, 0])
    for frame in clip.frames[:, :given_frames].unbind(1):
        yield to_picture(frame)
    steps = rollout(model, conditions[:, given_frames:], history)
    for _ in range(given_frames, clip.num_frames):
        with device.autocast():
            output = next(steps)
        yield to_picture(output.frame)


def to_picture(frame: torch.Tensor) -> NDArray[np.uint8]:
    """A frame (1, 3, H, W) in [-1, 1] as RGB (H, W, 3)."""
    return np.ascontiguousarray(to_uint8(frame)[0].permute(1, 2, 0).cpu().numpy())


def output_name(folder: VideoFolder, sequence: Sequence) -> str:
    """Name of what is written for a sequence; frames that lie directly in the data set take its name."""
    return folder.root.resolve().name if sequence.name == "." else sequence.name


def check_outputs(args: Synthesize, folder: VideoFolder) -> None:
    """Refuse what cannot be written before anything is.

    Raises:
        ConfigError: if a sequence has no frame beyond the given ones, or an output exists and may not be replaced.
    """
    for sequence in folder.sequences:
        if args.given_frames >= len(sequence):
            raise ConfigError(
                f"sequence '{sequence.name}' has {len(sequence)} frames and {args.given_frames} are given, so that "
                "none is left to synthesise; lower --given-frames"
            )
        name = output_name(folder, sequence)
        made = [args.out / f"{name}.mp4"] if args.write != "frames" else []
        made += [args.out / name / f"{stem}.png" for stem in sequence.stems] if args.write != "video" else []
        if not args.overwrite and (there := next((path for path in made if path.exists()), None)):
            raise ConfigError(f"{there} exists already; name another folder with --out or pass --overwrite")


def write_sequence(args: Synthesize, name: str, sequence: Sequence, frames: Iterator[NDArray[np.uint8]]) -> None:
    """Write the frames of one sequence as they come."""

    def kept() -> Iterator[NDArray[np.uint8]]:
        for stem, frame in zip(sequence.stems, tqdm(frames, total=len(sequence), desc=name), strict=True):
            if args.write != "video":
                write_image(args.out / name / f"{stem}.png", frame)
            yield frame

    if args.write == "frames":
        for _ in kept():
            pass
    else:
        write_video(args.out / f"{name}.mp4", kept(), args.fps)


def main(argv: list[str]) -> int:
    """``fastv2v synthesize --run RUN --data DIR --out DIR``."""
    args = parse(Synthesize, "fastv2v synthesize", argv)
    device = open_device(args.device)
    trained = load_trained(args.run)
    folder = open_folder(data_of(trained.architecture, args.data, args.phase, args.test_tail))
    check_condition(trained.architecture, folder, str(args.run))
    check_outputs(args, folder)
    generator = trained.generator.to(device.device)
    written = []
    for i, sequence in enumerate(folder.sequences):
        name = output_name(folder, sequence)
        made = synthesise(generator, folder.spec, read_sequence(folder, i), args.given_frames, device)
        write_sequence(args, name, sequence, made)
        written.append(name)
    print(f"{args.out}: {len(written)} sequences from {trained.checkpoint} (step {trained.step})")
    print(json.dumps({"out": str(args.out), "sequences": written, "checkpoint": str(trained.checkpoint)}))
    return 0
