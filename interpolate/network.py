"""Grade ``best``: a small network fuses what motion compensation offers. Runs without torch.

The network sees both keyframes as motion compensation would warp them, at half the size of the frames, and what is
known about that motion. It answers with corrections: residual motion for each side, log odds of one side against the
other, and how soft each pixel shall be, for texture whose motion is uncertain errs less when it is blurred. Warping,
blending and blurring happen here, at full size and in float32 and bytes: only small corrections pass through an engine
of low precision, and corrections of zero give the frame of ``DISInterpolator``.

A residual picture in place of the softness taught nothing that held on other footage within the same training.

Training computes features by the same functions and differentiates through its own copy of ``fuse``
(``interpolate.learned``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from fastv2v.errors import ConfigError, ShapeError
from interpolate.motion import (
    DISInterpolator,
    Evidence,
    Field,
    Frame,
    Labels,
    MotionConfig,
    check_labels,
    check_pair,
    class_at,
    comparable,
    pixel_grid,
)

SIZE_MULTIPLE = 16
"""Height and width of frames must be divisible by this: the network halves features that are half the size thrice."""
MOTION_UNIT = 16.0
"""Full-size pixels that count as 1 among the features; a power of two, so that the division is exact."""
ERROR_UNIT = 12.0
"""The largest return error, in the units of ``Evidence.errors``."""
LOG_ODDS_LIMIT = 8.0
"""Largest log odds of one side against the other, before time."""
SOFTNESS_LIMIT = 1.0
"""Largest softness: the blurred frame itself; as much below zero sharpens."""
BLUR_SIDE, BLUR_SIGMA = 5, 1.0
"""Gaussian that softens, in full-size pixels."""


class Channels(NamedTuple):
    """Where the features of a frame stand, by channel."""

    first: slice = slice(0, 3)
    """The first keyframe warped to the time, RGB in [-1, 1]."""
    second: slice = slice(3, 6)
    """The second one."""
    motion: slice = slice(6, 8)
    """Motion from first to second, x and y, in units of ``MOTION_UNIT``."""
    errors: slice = slice(8, 10)
    """Return error at either end, in [0, 1]."""
    log_odds: slice = slice(10, 11)
    """Log odds of the first side against the second from borders and label maps; time does not count here."""
    time: slice = slice(11, 12)
    """The time, in (0, 1)."""
    fits: slice = slice(12, 14)
    """Whether either side shows the known class: 1 yes, -1 no, 0 not known."""


CHANNELS = Channels()
NUM_FEATURES = 14
"""Channels of the network's input."""
NUM_CORRECTIONS = 6
"""Channels of its output: residual offset of the first side (x, y), of the second, log odds, softness."""

Network = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Features (1, NUM_FEATURES, H/2, W/2) to corrections (1, NUM_CORRECTIONS, H/2, W/2): offsets in full-size pixels, log
odds added to those of the features, and how far the frame goes towards a blurred one."""


def check_size(size: tuple[int, int]) -> None:
    """Refuse frames the network cannot halve evenly.

    Raises:
        ShapeError: naming the size.
    """
    if size[0] % SIZE_MULTIPLE or size[1] % SIZE_MULTIPLE:
        raise ShapeError(
            f"the interpolation network takes heights and widths that are multiples of {SIZE_MULTIPLE}, got "
            f"{size[0]}x{size[1]}; resize the frames, or interpolate without a network"
        )


def half_size(image: Frame) -> Frame:
    """A keyframe as features are made from it: half the size, (H/2, W/2, 3)."""
    halved: Frame = cv2.resize(image, (image.shape[1] // 2, image.shape[0] // 2), interpolation=cv2.INTER_AREA)
    return halved


def features(
    halves: tuple[Frame, Frame],
    evidence: Evidence,
    time: float,
    labels: Sequence[Labels] | None = None,
    doubt: float = 0.5,
) -> NDArray[np.float32]:
    """What the network is shown of one frame.

    Args:
        halves: both keyframes through ``half_size``.
        evidence: of their motion at ``time``, on any grid.
        time: in (0, 1).
        labels: class ids of the first keyframe, the wanted frame and the second at half the size, all of a type that
            OpenCV can sample (``comparable``); None where they are not known.
        doubt: weight of a side that shows another class than the known one where the other side shows it, in (0, 1].

    Returns:
        (NUM_FEATURES, H/2, W/2); see ``Channels``.
    """
    height, width = halves[0].shape[:2]
    planes = np.empty((NUM_FEATURES, height, width), dtype=np.float32)
    grid_height, grid_width = evidence.motion.shape[:2]
    # In half-size pixels, then in those of the features.
    motion = evidence.motion * np.divide((width, height), (grid_width, grid_height), dtype=np.float32)
    motion = cv2.resize(motion, (width, height), interpolation=cv2.INTER_LINEAR)
    grid = pixel_grid(width, height)
    fits = []
    for side, (half, amount) in enumerate(zip(halves, (-time, 1 - time), strict=True)):
        positions = cv2.scaleAdd(motion, amount, grid)
        warped = cv2.remap(half, positions, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        for channel, plane in enumerate(cv2.split(warped)):
            np.multiply(plane, np.float32(1 / 127.5), out=planes[3 * side + channel])
        if labels is not None:
            fits.append(_fit(labels[2 * side], labels[1], positions))
    planes[:6] -= 1
    np.multiply(motion.transpose(2, 0, 1), np.float32(2 / MOTION_UNIT), out=planes[CHANNELS.motion])
    for error, plane in zip(evidence.errors, planes[CHANNELS.errors], strict=True):
        np.multiply(_enlarged(error, width, height), np.float32(1 / ERROR_UNIT), out=plane)
    planes[CHANNELS.log_odds] = _enlarged(evidence.log_odds, width, height)
    planes[CHANNELS.time] = time
    if fits:
        planes[CHANNELS.log_odds] -= (fits[0] - fits[1]) * np.float32(0.5 * np.log(doubt))
        planes[CHANNELS.fits] = fits
    else:
        planes[CHANNELS.fits] = 0
    return planes


def _enlarged(plane: NDArray, width: int, height: int) -> NDArray:
    return cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR)


def _fit(labels: Labels, wanted: Labels, positions: Field) -> NDArray[np.float32]:
    """1 where a keyframe, read at ``positions``, shows the wanted class, -1 where another or nothing, (h, w)."""
    height, width = wanted.shape
    fitting = cv2.compare(class_at(labels, positions), wanted, cv2.CMP_EQ)
    fitting = cv2.bitwise_and(fitting, cv2.inRange(positions, (0.0, 0.0), (width - 1.0, height - 1.0)))
    return fitting.astype(np.float32) * np.float32(2 / 255) - 1


class _Canvas:
    """Grids and scratch space for one frame size; fresh arrays of this size cost more than the arithmetic."""

    def __init__(self, size: tuple[int, int]) -> None:
        height, width = self.size = size
        self.grid = pixel_grid(width, height)
        self.offsets, self.positions = np.empty((2, height, width, 2), dtype=np.float32)
        self.weights = np.empty((2, height, width), dtype=np.float32)
        self.keyframes = np.empty((2, height, width, 4), dtype=np.uint8)
        self.warped = np.empty((2, height, width, 4), dtype=np.uint8)
        self.blended, self.blurred = np.empty((2, height, width, 4), dtype=np.uint8)


def _fuse(canvas: _Canvas, shown: NDArray[np.float32], corrections: NDArray[np.float32], time: float) -> Frame:
    """The frame from the canvas's keyframes, its features and the network's answer: two warps, one blend."""
    height, width = canvas.size
    motion = shown[CHANNELS.motion] * np.float32(MOTION_UNIT)
    for side, amount in enumerate((-time, 1 - time)):
        offsets = cv2.merge([motion[axis] * np.float32(amount) + corrections[2 * side + axis] for axis in (0, 1)])
        cv2.resize(offsets, (width, height), dst=canvas.offsets, interpolation=cv2.INTER_LINEAR)
        cv2.add(canvas.offsets, canvas.grid, dst=canvas.positions)
        cv2.remap(
            canvas.keyframes[side],
            canvas.positions,
            None,
            cv2.INTER_LINEAR,
            dst=canvas.warped[side],
            borderMode=cv2.BORDER_REPLICATE,
        )
    log_odds = np.clip(shown[10] + corrections[4], -LOG_ODDS_LIMIT, LOG_ODDS_LIMIT) + np.log(
        np.float32((1 - time) / time)
    )
    share = 1 / (1 + cv2.exp(-log_odds))
    cv2.resize(share, (width, height), dst=canvas.weights[0], interpolation=cv2.INTER_LINEAR)
    np.subtract(1, canvas.weights[0], out=canvas.weights[1])
    cv2.blendLinear(canvas.warped[0], canvas.warped[1], canvas.weights[0], canvas.weights[1], dst=canvas.blended)
    cv2.GaussianBlur(
        canvas.blended,
        (BLUR_SIDE, BLUR_SIDE),
        BLUR_SIGMA,
        dst=canvas.blurred,
        borderType=cv2.BORDER_REPLICATE,
    )
    softness = np.clip(corrections[5], -SOFTNESS_LIMIT, SOFTNESS_LIMIT)
    cv2.resize(softness, (width, height), dst=canvas.weights[1], interpolation=cv2.INTER_LINEAR)
    np.subtract(1, canvas.weights[1], out=canvas.weights[0])
    frame = cv2.blendLinear(canvas.blended, canvas.blurred, canvas.weights[0], canvas.weights[1])
    return cv2.cvtColor(frame, cv2.COLOR_RGBA2RGB)


class NetworkInterpolator:
    """Frames between keyframes from motion compensation and a network that corrects it.

    Keeps grids and scratch space of the latest frame size, so use one instance per thread.

    Args:
        network: the trained network, behind any engine.
        config: effort, working size and scene cuts of the motion, as the network was trained with.
    """

    def __init__(self, network: Network, config: MotionConfig) -> None:
        self.config = config
        self._network = network
        self._motion = DISInterpolator(config)
        self._canvas: _Canvas | None = None

    def between(
        self, first: Frame, second: Frame, times: Sequence[float], labels: Sequence[Labels] | None = None
    ) -> list[Frame]:
        """Frames at ``times`` between two keyframes.

        Args:
            first: keyframe at time 0, (H, W, 3) uint8, H and W multiples of ``SIZE_MULTIPLE``.
            second: keyframe at time 1, same size.
            times: wanted times, strictly between 0 and 1, in any order.
            labels: where they are known, class ids (H, W) of the first keyframe, of each wanted frame, and of the
                second keyframe. Any ids: they are only compared.

        Returns:
            One (H, W, 3) uint8 frame for each time. Across a scene cut the nearer keyframe (the later one at 0.5).

        Raises:
            ShapeError: if the keyframes differ in size, are not (H, W, 3) uint8 or do not suit the network, or label
                maps do not belong to them.
            ConfigError: if a time lies outside (0, 1), or the network gives something else than corrections.
        """
        check_pair(first, second, times)
        size = first.shape[0], first.shape[1]
        check_size(size)
        if labels is not None:
            check_labels(labels, size, times)
        if not times:
            return []
        times = [float(time) for time in times]
        motion = self._motion.estimate(first, second)
        if motion is None:
            return [first.copy() if time < 0.5 else second.copy() for time in times]
        if self._canvas is None or self._canvas.size != size:
            self._canvas = _Canvas(size)
        for keyframe, scratch in zip((first, second), self._canvas.keyframes, strict=True):
            cv2.cvtColor(keyframe, cv2.COLOR_RGB2RGBA, dst=scratch)
        halves = half_size(first), half_size(second)
        frames = []
        for index, time in enumerate(times):
            known = None if labels is None else (labels[0], labels[index + 1], labels[-1])
            evidence = self._motion.evidence(motion, size, time, known)
            shown = features(halves, evidence, time, halved_labels(known, self.config), self.config.doubt or 1.0)
            frames.append(_fuse(self._canvas, shown, self._corrections(shown), time))
        return frames

    def _corrections(self, shown: NDArray[np.float32]) -> NDArray[np.float32]:
        corrections = self._network(shown[None])
        expected = (1, NUM_CORRECTIONS, *shown.shape[1:])
        if corrections.shape != expected:
            raise ConfigError(
                f"the interpolation network gave {corrections.shape}, expected {expected}; train it again"
            )
        if not np.isfinite(corrections).all():
            raise ConfigError("the interpolation network gave values that are not finite; choose precision f32")
        return corrections[0]


def halved_labels(labels: Sequence[Labels] | None, config: MotionConfig) -> list[Labels] | None:
    """Label maps as ``features`` takes them: half the size; None where there are none, or they are not to be used."""
    if labels is None or config.doubt is None or config.doubt == 1:
        return None
    size = labels[0].shape[1] // 2, labels[0].shape[0] // 2
    return [cv2.resize(x, size, interpolation=cv2.INTER_NEAREST_EXACT) for x in comparable(labels)]
