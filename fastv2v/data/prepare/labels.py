"""Label maps from a segmentation network of one's own, an ONNX file. Torch-free."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from fastv2v.data.classes import ClassPreset, ClassTable, generic_classes, preset_classes
from fastv2v.data.prepare.steady import Follower, steady_argmin, without_specks
from fastv2v.data.prepare.survey import Frame
from fastv2v.errors import ConfigError, DataError, MissingExtraError

_MAX_CLASSES: Final = 255


@dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """Which network reads the classes, and how it wants its pictures."""

    model: Path | None = None
    """An ONNX file: takes one picture (1, 3, H, W), RGB in float32, and gives scores (1, classes, h, w) or class ids
    (1, h, w) or (1, 1, h, w)."""
    size: tuple[int, int] | None = None
    """(height, width) of the pictures it is shown; by default the size it states, else that of the frames."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Taken from pictures in 0 to 1, by channel; ImageNet's by default."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """What they are divided by then."""
    classes: ClassPreset | None = None
    """Names and colours of its classes; by default class_0, class_1, ..."""
    hold: float = 0.5
    """How much surer another class must be before a pixel changes to it, in natural logarithms of probability."""
    min_area: float = 0.0002
    """Pieces smaller than this share of the frame are given to their neighbours."""

    def __post_init__(self) -> None:
        if self.size is not None and min(self.size) < 8:
            raise ConfigError(f"size is (height, width) of 8 pixels or more, got {self.size}")
        if min(self.std) <= 0 or not 0 <= self.hold <= 100 or not 0 <= self.min_area <= 0.1:
            raise ConfigError(f"std must be positive, hold lie in 0 to 100 and min_area in 0 to 0.1, got {self}")


class Segmenter:
    """The network, ready to be asked.

    Raises:
        ConfigError: if no file is named, or it is no such network.
        MissingExtraError: if ONNX Runtime is not installed.
    """

    def __init__(self, config: LabelConfig) -> None:
        if config.model is None:
            raise ConfigError(
                "--kind labels needs a segmentation network of your own: --labels.model FILE.onnx; without one, "
                "--kind palette makes label maps by colour and texture"
            )
        if not config.model.is_file():
            raise ConfigError(f"{config.model}: there is no such file; --labels.model names an ONNX file")
        try:
            runtime = importlib.import_module("onnxruntime")
        except ModuleNotFoundError as error:
            raise MissingExtraError("--kind labels needs onnxruntime: pip install onnxruntime") from error
        options = runtime.SessionOptions()
        options.intra_op_num_threads = 1  # pieces of the video run side by side
        try:
            self._session: Any = runtime.InferenceSession(
                str(config.model), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's errors have no common class of their own
            raise ConfigError(f"{config.model}: not a network that ONNX Runtime opens ({error})") from error
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type != "tensor(float)":
            raise ConfigError(f"{config.model}: expected one input of shape (1, 3, H, W) in float32")
        stated = inputs[0].shape[2:]
        self._config, self._input = config, inputs[0].name
        self._size = config.size or (tuple(stated) if all(isinstance(side, int) for side in stated) else None)

    def costs(self, frame: Frame) -> NDArray[np.float32]:
        """Minus the logarithm of each class's probability, (h, w, L), in the size the network answers in.

        Raises:
            ConfigError: if the network cannot take the picture, or answers with something else.
        """
        config = self._config
        picture = frame
        if self._size is not None and frame.shape[:2] != self._size:
            picture = cv2.resize(frame, self._size[::-1], interpolation=cv2.INTER_AREA).astype(np.uint8)
        values = (picture.astype(np.float32) / 255 - np.array(config.mean, np.float32)) / np.array(
            config.std, np.float32
        )
        try:
            answer = self._session.run(None, {self._input: np.ascontiguousarray(values.transpose(2, 0, 1)[None])})[0]
        except Exception as error:  # as above
            raise ConfigError(
                f"{config.model}: the network does not take {picture.shape[:2]} pictures ({error})"
            ) from error
        return _as_costs(np.asarray(answer), str(config.model))


def _as_costs(answer: NDArray[Any], where: str) -> NDArray[np.float32]:
    """Scores (1, L, h, w) or ids (1, h, w) as costs, (h, w, L)."""
    if answer.ndim == 4 and answer.shape[1] == 1:
        answer = answer[:, 0]
    if answer.ndim == 3 and len(answer) == 1:
        ids = answer[0].astype(np.int64)
        if ids.min() < 0 or ids.max() >= _MAX_CLASSES:
            raise ConfigError(f"{where}: class ids lie in 0 to {_MAX_CLASSES - 1}, got {ids.min()} to {ids.max()}")
        return np.where(ids[..., None] == np.arange(_MAX_CLASSES), 0, 1).astype(np.float32)
    if answer.ndim != 4 or len(answer) != 1 or not 2 <= answer.shape[1] < _MAX_CLASSES:
        raise ConfigError(f"{where}: expected scores (1, classes, h, w) or ids (1, h, w), got shape {answer.shape}")
    scores = np.ascontiguousarray(answer[0].transpose(1, 2, 0), np.float32)
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
        costs = segmenter.costs(frame)
        small = cv2.resize(frame, costs.shape[1::-1], interpolation=cv2.INTER_AREA).astype(np.uint8)
        follower.advance(small)
        labels = steady_argmin(costs, labels, follower, config.hold)
        large = cv2.resize(labels, frame.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        yield without_specks(large.astype(np.uint8), round(config.min_area * large.size))


def classes_of(largest: int, config: LabelConfig) -> ClassTable:
    """The table of classes up to an id.

    Raises:
        DataError: if the preset has fewer.
    """
    if config.classes is None:
        return generic_classes(largest + 1)
    table = preset_classes(config.classes)
    if largest >= len(table.names):
        raise DataError(f"the network gave class {largest}, and '{config.classes}' has {len(table.names)} classes")
    return table


@functools.cache
def segmenter_of(config: LabelConfig) -> Segmenter:
    """The network of a config, once for a process."""
    return Segmenter(config)
