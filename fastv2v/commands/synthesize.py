"""``fastv2v synthesize``: roll a trained generator out over a data set."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from fastv2v.architecture import load_trained
from fastv2v.commands.arguments import parse
from fastv2v.commands.parts import check_condition
from fastv2v.contracts import StepModel
from fastv2v.data.clip import Clip
from fastv2v.data.conditions import ConditionSpec
from fastv2v.data.folder import FolderConfig, open_folder
from fastv2v.data.loader import read_sequence
from fastv2v.data.transforms import GeometryConfig
from fastv2v.device import Device, DeviceConfig, open_device
from fastv2v.errors import ConfigError
from fastv2v.ops.labels import encode_clip
from fastv2v.recipe import UNSET_ROOT
from fastv2v.render import rollout, start_history
from fastv2v.score import to_uint8
from fastv2v.video import write_image, write_video


@dataclass(frozen=True, kw_only=True)
class Synthesize:
    """Roll a trained generator out over the sequences of a data set, from its own frames."""

    run: Path
    """Run or checkpoint of a teacher or student."""
    data: Path
    """Data set folder."""
    out: Path
    """Folder for frames and videos; files of the same names are replaced."""
    folder: FolderConfig = field(default_factory=lambda: FolderConfig(root=UNSET_ROOT, phase="test", test_tail=16))
    """Which part of the data set; size and classes follow the run."""
    given_frames: int = 1
    """Real frames to start from; 0 starts from nothing."""
    fps: float = 15.0
    """Rate of the written videos."""
    write: Literal["both", "frames", "video"] = "both"
    """PNG frames, an MP4 video, or both."""
    device: DeviceConfig = field(default_factory=DeviceConfig)
    """Where and in what precision."""

    def __post_init__(self) -> None:
        if self.given_frames < 0:
            raise ConfigError(f"given_frames must be at least 0, got {self.given_frames}")


def data_of(spec: ConditionSpec, size: tuple[int, int], folder: FolderConfig, data: Path) -> FolderConfig:
    """The folder as a network of this condition and size reads it."""
    return replace(
        folder,
        root=data,
        condition="rgb" if spec.kind == "maps" else "labels",
        num_classes=spec.num_classes if spec.kind == "labels" else None,
        use_instances=spec.use_instances,
        ignore_id=spec.ignore_id,
        geometry=GeometryConfig(mode="exact", size=size, interpolation="area"),
    )


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


def main(argv: list[str]) -> int:
    """``fastv2v synthesize --run RUN --data DIR --out DIR``."""
    args = parse(Synthesize, "fastv2v synthesize", argv)
    device = open_device(args.device)
    trained = load_trained(args.run)
    spec, size = trained.architecture.condition, trained.architecture.size
    folder = open_folder(data_of(spec, size, args.folder, args.data))
    check_condition(trained.architecture, folder, str(args.run))
    generator = trained.generator.to(device.device)
    written = []
    for i, sequence in enumerate(folder.sequences):
        frames = []
        clip = read_sequence(folder, i)
        made = synthesise(generator, spec, clip, args.given_frames, device)
        for stem, frame in zip(sequence.stems, tqdm(made, total=len(sequence), desc=sequence.name), strict=True):
            frames.append(frame)
            if args.write != "video":
                write_image(args.out / sequence.name / f"{stem}.png", frame)
        if args.write != "frames":
            path = args.out / f"{sequence.name}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_video(path, frames, args.fps)
        written.append(sequence.name)
    print(f"{args.out}: {len(written)} sequences from {trained.checkpoint} (step {trained.step})")
    print(json.dumps({"out": str(args.out), "sequences": written, "checkpoint": str(trained.checkpoint)}))
    return 0
