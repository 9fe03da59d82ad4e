"""Label maps from a segmentation network: an ONNX file of one's own, or torchvision's, which alone needs torch."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from fastv2v.data.classes import ClassPreset, ClassTable, generic_classes, preset_classes
from fastv2v.data.prepare.steady import Follower, steady_argmin, without_specks
from fastv2v.data.prepare.survey import Frame
from fastv2v.errors import ConfigError, DataError, MissingExtraError

Network = Literal[
    "deeplabv3_mobilenet_v3_large",
    "deeplabv3_resnet50",
    "deeplabv3_resnet101",
    "fcn_resnet50",
    "fcn_resnet101",
    "lraspp_mobilenet_v3_large",
]
"""Segmentation networks of torchvision; its weights know the 20 classes of Pascal VOC and the background."""

_MAX_CLASSES: Final = 255


@dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """Which network reads the classes, and how it wants its pictures."""

    model: Path | None = None
    """An ONNX file: takes one picture (1, 3, H, W), RGB in float32, and gives scores (1, classes, h, w) or class ids
    (1, h, w) or (1, 1, h, w)."""
    network: Network | None = None
    """In place of a file, a network of torchvision (extra 'labels'); its own weights are downloaded once."""
    weights: Path | None = None
    """State dict of that network on disk, where its weights cannot be downloaded, or are yours."""
    size: tuple[int, int] | None = None
    """(height, width) of the pictures it is shown; by default the size it states, else that of the frames."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Taken from pictures in 0 to 1, by channel; ImageNet's by default."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """What they are divided by then."""
    classes: ClassPreset | None = None
    """Names and colours of its classes; by default class_0, class_1, ..."""
    hold: float = 0.5
    """How much surer another class must be before a pixel changes to it, in natural logarithms of probability. Networks
    that give class ids say nothing of how sure they are, and are not held."""
    min_area: float = 0.0002
    """Pieces smaller than this share of the frame are given to their neighbours."""

    def __post_init__(self) -> None:
        if self.network not in (None, *get_args(Network)):
            raise ConfigError(f"network is one of {', '.join(get_args(Network))}, got '{self.network}'")
        if self.model is not None and self.network is not None:
            raise ConfigError("labels are read by a file of yours (model) or by a network of torchvision, not by both")
        if self.weights is not None and self.network is None:
            raise ConfigError(f"the weights {self.weights} need to know their network (--labels.network)")
        if self.size is not None and min(self.size) < 8:
            raise ConfigError(f"size is (height, width) of 8 pixels or more, got {self.size}")
        if min(self.std) <= 0 or not 0 <= self.hold <= 100 or not 0 <= self.min_area <= 0.1:
            raise ConfigError(f"std must be positive, hold lie in 0 to 100 and min_area in 0 to 0.1, got {self}")

    @property
    def is_named(self) -> bool:
        """Whether there is a network."""
        return self.model is not None or self.network is not None


class Segmenter:
    """The network, ready to be asked.

    Args:
        config: which.

    Raises:
        ConfigError: if no network is named, it is none of that kind, or its weights cannot be had.
        CheckpointError: if a file of weights holds something else.
        MissingExtraError: if what runs it is not installed.
    """

    def __init__(self, config: LabelConfig) -> None:
        self._config, self._size = config, config.size
        self.names: tuple[str, ...] = ()
        """What its classes are called, where it says so."""
        self._ask: Callable[[NDArray[np.float32]], NDArray[Any]]
        if config.network is not None:
            self._where: str = config.network
            if config.weights is not None and not config.weights.is_file():
                raise ConfigError(f"{config.weights}: there is no such file; --labels.weights names a state dict")
            try:
                networks = importlib.import_module("fastv2v.nn.segmentation")
            except ModuleNotFoundError as error:
                raise MissingExtraError(f"--labels.network needs {error.name}: pip install fastv2v[labels]") from error
            self._ask, self.names = networks.segmentation_network(config.network, config.weights)
        else:
            self._where = str(config.model)
            self._ask, stated = _open_onnx(config.model)
            self._size = config.size or stated

    def answer(self, frame: Frame) -> NDArray[Any]:
        """What it reads in a frame, in the size it answers in.

        Args:
            frame: RGB, (H, W, 3).

        Returns:
            Minus the logarithm of each class's probability, (h, w, L) in float32; or class ids (h, w), where that is
            all it gives.

        Raises:
            ConfigError: if the network cannot take the picture, or answers with something else.
        """
        config, picture = self._config, frame
        if self._size is not None and frame.shape[:2] != self._size:
            picture = cv2.resize(frame, self._size[::-1], interpolation=cv2.INTER_AREA).astype(np.uint8)
        values = (picture.astype(np.float32) / 255 - np.array(config.mean, np.float32)) / np.array(
            config.std, np.float32
        )
        try:
            answer = self._ask(np.ascontiguousarray(values.transpose(2, 0, 1)[None]))
        except Exception as error:  # neither ONNX Runtime's nor torch's errors have a common class of their own
            height, width = picture.shape[:2]
            raise ConfigError(
                f"{self._where}: the network does not take pictures of {width}x{height} ({error}); --labels.size says "
                "what it is shown"
            ) from error
        return _costs_or_ids(np.asarray(answer), self._where)


def _open_onnx(
    model: Path | None,
) -> tuple[Callable[[NDArray[np.float32]], NDArray[Any]], tuple[int, int] | None]:
    """A network in a file, and the (height, width) it states."""
    if model is None:
        raise ConfigError(
            "--kind labels needs a segmentation network: one of your own, --labels.model FILE.onnx, or torchvision's, "
            "--labels.network deeplabv3_resnet50; without one, --kind palette makes label maps by colour and texture"
        )
    if not model.is_file():
        raise ConfigError(f"{model}: there is no such file; --labels.model names an ONNX file")
    try:
        runtime = importlib.import_module("onnxruntime")
    except ModuleNotFoundError as error:
        raise MissingExtraError("--labels.model needs onnxruntime: pip install onnxruntime") from error
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1  # pieces of the video run side by side
    try:
        session: Any = runtime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common class of their own
        raise ConfigError(f"{model}: not a network that ONNX Runtime opens ({error})") from error
    inputs = session.get_inputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type != "tensor(float)":
        raise ConfigError(f"{model}: expected one input of shape (1, 3, H, W) in float32")
    name, (height, width) = inputs[0].name, inputs[0].shape[2:]
    is_fixed = isinstance(height, int) and isinstance(width, int)
    return lambda picture: session.run(None, {name: picture})[0], (height, width) if is_fixed else None


def _costs_or_ids(answer: NDArray[Any], where: str) -> NDArray[Any]:
    """Scores (1, L, h, w) as costs, (h, w, L), or ids (1, h, w) as (h, w)."""
    if answer.ndim == 4 and answer.shape[1] == 1:
        answer = answer[:, 0]
    if answer.ndim == 3 and len(answer) == 1:
        if not answer.min() >= 0 or not answer.max() < _MAX_CLASSES:
            raise ConfigError(
                f"{where}: class ids lie in 0 to {_MAX_CLASSES - 1}, got {answer.min()} to {answer.max()}"
            )
        return answer[0].astype(np.uint8)
    if answer.ndim != 4 or len(answer) != 1 or not 2 <= answer.shape[1] < _MAX_CLASSES:
        raise ConfigError(f"{where}: expected scores (1, classes, h, w) or ids (1, h, w), got shape {answer.shape}")
    scores = np.ascontiguousarray(answer[0].transpose(1, 2, 0), np.float32)
    if not np.isfinite(scores).all():
        raise ConfigError(f"{where}: gives scores that are not finite; check --labels.mean and --labels.std")
    scores -= scores.max(axis=-1, keepdims=True)
    return np.log(np.exp(scores).sum(axis=-1, keepdims=True)) - scores


def draw_labels(frames: Iterable[Frame], segmenter: Segmenter, config: LabelConfig) -> Iterator[NDArray[np.uint8]]:
    """Classes of frames that follow each other.

    Yields:
        For each frame class ids, (H, W).
    """
    follower = Follower()
    labels: NDArray[np.uint8] | None = None
    for frame in frames:
        answer = segmenter.answer(frame)
        if answer.ndim == 2:
            labels = answer
        else:
            small = cv2.resize(frame, answer.shape[1::-1], interpolation=cv2.INTER_AREA).astype(np.uint8)
            follower.advance(small)
            labels = steady_argmin(answer, labels, follower, config.hold)
        large = cv2.resize(labels, frame.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        yield without_specks(large.astype(np.uint8), round(config.min_area * large.size))


def classes_of(largest: int, config: LabelConfig) -> ClassTable:
    """The table of classes up to an id.

    Raises:
        DataError: if the preset has fewer.
    """
    if config.classes is None:
        table, names = generic_classes(largest + 1), segmenter_of(config).names
        return replace(table, names=names[: largest + 1]) if names else table
    table = preset_classes(config.classes)
    if largest >= len(table.names):
        raise DataError(f"the network gave class {largest}, and '{config.classes}' has {len(table.names)} classes")
    return table


@functools.cache
def segmenter_of(config: LabelConfig) -> Segmenter:
    """The network of a config, once for a process."""
    return Segmenter(config)
