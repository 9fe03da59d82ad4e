"""Frames between two keyframes: plain average, and motion compensation on DIS optical flow.

How ``DISInterpolator`` finds the frame at time t between ``first`` (t = 0) and ``second`` (t = 1), and what each part
gave on CamVid at 512x256 with every 4th frame known (the plainest average of two warps by DIS scores 26.20 dB there):

1. Both flows are estimated on pictures of ``working_scale``, and everything up to the last step happens on a grid half
   as fine again, where it costs next to nothing. At half size a closer stride of patches can be afforded, which wins
   more than fine scales do; full size (``working_scale=1``) gives up to 0.3 dB more, for four times the time.
2. The flow of ``first`` is wanted at the pixels of the middle frame, so u(p) = F(p - t u(p)) is solved by one
   fixed-point step, and likewise from the other side (+0.25 dB over using F(p) as it stands).
3. Of these two motions each pixel takes the one that explains it better: same brightness at both ends, and flow there
   and back that returns to its start. Motion of a surface that only one keyframe shows loses here (+0.1 dB over each
   side following its own).
4. Both keyframes are warped once by that one motion and averaged by time. A side whose sample falls outside the
   picture does not see the pixel and fades out (+0.1 dB with a hand-held camera).
5. Where label maps are known, of the keyframes and of the frame between them: motion that joins pixels of other classes
   than the known one counts as a worse explanation in step 3, and in step 4 a keyframe that shows another class at a
   pixel, or does not see it, gives way to one that shows the right class (+0.05 dB on CamVid, +0.08 to 0.1 dB on
   three clips of Cityscapes; it must keep a part of its weight, for label maps err).

Tried and left out. Switching a side off inside the picture where flow there and back disagrees, or where the projection
leaves a hole: 0.02 to 0.2 dB lost on every clip, since with estimated flow the average is the safer guess. Bicubic and
Lanczos sampling: 0.2 dB lost. Median filtering the flow: no change. Averaging two warps by each of the two motions:
0.08 dB won for twice the cost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from fastv2v.errors import ConfigError, ShapeError

Frame = NDArray[np.uint8]
Field = NDArray[np.float32]
Labels = NDArray[np.number[Any]]
Grade = Literal["ultrafast", "fast", "medium"]


class _FlowSettings(NamedTuple):
    """Settings of DIS that differ between grades. The finest scale is 1 (half the working size), patches are 8x8."""

    stride: int
    refinements: int


_GRADES: dict[str, _FlowSettings] = {
    "ultrafast": _FlowSettings(stride=3, refinements=0),
    "fast": _FlowSettings(stride=3, refinements=2),
    "medium": _FlowSettings(stride=2, refinements=5),
}
# Less smoothness and more weight on the image gradient than OpenCV's 20 and 10: driving scenes change brightness as
# they move.
_SMOOTHNESS_WEIGHT = 10.0
_GRADIENT_WEIGHT = 20.0
_DESCENT_STEPS = 12
# DIS needs room for a pyramid of 8x8 patches; smaller pictures are enlarged to this for the estimation.
_LEAST_WORKING_SIDE = 32
RETURN_ERROR_WEIGHT = 3.0
"""How many grey levels one grid pixel of disagreement between the two flows counts for."""
RETURN_ERROR_LIMIT = 4.0
"""Where that stops counting, in grid pixels."""
MATCH_GREY_LEVELS = 25
"""Brightness by which a pixel and its counterpart may differ, in grey levels."""
STRANGE_CLASS_GREY_LEVELS = 40
"""What it counts for, without any doubt, when motion leads to another class than the known one, in grey levels."""
OUTSIDE_LOG_ODDS = 0.7
"""Log odds against a side that looks one grid pixel or more past the border."""


@dataclass(frozen=True, kw_only=True)
class MotionConfig:
    """How ``DISInterpolator`` trades time for quality."""

    grade: Grade = "fast"
    """Effort of the flow estimator: ``ultrafast``, ``fast`` (for deployment) or ``medium``."""
    working_scale: float = 0.5
    """Size of the pictures flow is estimated on, relative to the frames, in (0, 1]."""
    cut_threshold: float | None = 0.8
    """Share of pixels without a counterpart in the other keyframe above which the two belong to different scenes, in
    (0, 1]; the nearer keyframe is then held. None: never. Ten real clips, keyframes four frames apart, stayed below
    0.62, cuts from one of them to another above 0.88 (frames 256 pixels wide and more; smaller ones part less well)."""
    doubt: float | None = 0.5
    """How much a keyframe that shows another class at a pixel than the known one still counts there, beside one that
    shows that class, in [0, 1]: label maps are not without error. None, as 1: label maps are not looked at."""

    def __post_init__(self) -> None:
        if self.grade not in _GRADES:
            raise ConfigError(f"grade {self.grade!r} is unknown; choose one of {', '.join(_GRADES)}")
        if not 0 < self.working_scale <= 1:
            raise ConfigError(f"working_scale must lie in (0, 1], got {self.working_scale}")
        if self.cut_threshold is not None and not 0 < self.cut_threshold <= 1:
            raise ConfigError(f"cut_threshold must lie in (0, 1] or be None, got {self.cut_threshold}")
        if self.doubt is not None and not 0 <= self.doubt <= 1:
            raise ConfigError(f"doubt must lie in [0, 1] or be None, got {self.doubt}")


def check_pair(first: Frame, second: Frame, times: Sequence[float]) -> None:
    """Refuse what no interpolator can work on.

    Raises:
        ShapeError: if a frame is not (H, W, 3) uint8 or the two differ in size.
        ConfigError: if a time does not lie strictly between 0 and 1.
    """
    for name, frame in (("first", first), ("second", second)):
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or frame.size == 0:
            raise ShapeError(f"the {name} keyframe must be (H, W, 3) uint8, got {frame.shape} {frame.dtype}")
    if first.shape != second.shape:
        raise ShapeError(f"keyframes must share one size, got {first.shape[:2]} and {second.shape[:2]}")
    for time in times:
        if not 0 < time < 1:
            raise ConfigError(f"an in-between time must lie strictly between 0 and 1, got {time}")


def check_labels(labels: Sequence[Labels], size: tuple[int, int], times: Sequence[float]) -> None:
    """Refuse label maps that do not belong to a pair of keyframes and the frames between.

    Raises:
        ShapeError: naming counts or sizes.
    """
    if len(labels) != len(times) + 2:
        raise ShapeError(
            f"{len(times)} frames between two keyframes have {len(times) + 2} label maps with theirs, got {len(labels)}"
        )
    for index, label in enumerate(labels):
        if label.shape != size or label.dtype.kind not in "iu":
            raise ShapeError(
                f"label map {index} must be integers of the keyframes' size {size}, got {label.shape} {label.dtype}"
            )


def _average(first: Frame, second: Frame, time: float) -> Frame:
    return cv2.addWeighted(first, 1 - time, second, time, 0)


class BlendInterpolator:
    """The plain average of both keyframes, weighted by time. Knows no motion: the floor others must beat."""

    def between(
        self, first: Frame, second: Frame, times: Sequence[float], labels: Sequence[Labels] | None = None
    ) -> list[Frame]:
        """Frames at ``times``; see ``Interpolator.between``. Labels are not looked at."""
        check_pair(first, second, times)
        return [_average(first, second, time) for time in times]


class _Plan:
    """Flow estimator, grids and scratch space for one frame size.

    The scratch arrays are written by every frame and never handed out: fresh ones of this size would come from the
    system page by page, which took longer than the arithmetic (3.6 ms instead of 1.9 ms for a 512x256 frame).
    """

    def __init__(self, size: tuple[int, int], config: MotionConfig) -> None:
        height, width = size
        self.full_size = width, height
        self.last_pixel = width - 1.0, height - 1.0
        self.working_size = working_side(width, config.working_scale), working_side(height, config.working_scale)
        # One estimator for each size: for a small picture OpenCV's changes its own settings for good.
        self.flow = _flow_estimator(_GRADES[config.grade])
        self.grid_size = (self.working_size[0] + 1) // 2, (self.working_size[1] + 1) // 2
        self.full_grid = pixel_grid(width, height)
        self.grid = pixel_grid(*self.grid_size)
        self.working_to_grid = np.divide(self.grid_size, self.working_size, dtype=np.float32)
        self.grid_to_full = np.divide(self.full_size, self.grid_size, dtype=np.float32)
        # A pixel is lost when it comes back further off than 1/128 of the picture's width.
        self.lost = max(0.5, self.grid_size[0] / 128)
        self.motion, self.positions = np.empty((2, height, width, 2), dtype=np.float32)
        self.weights = np.empty((2, height, width), dtype=np.float32)
        # Four channels, as OpenCV warps and blends them in half the time three take.
        self.keyframes = np.empty((2, height, width, 4), dtype=np.uint8)
        self.warped = np.empty((2, height, width, 4), dtype=np.uint8)
        self.blended, self.favoured = np.empty((2, height, width, 4), dtype=np.uint8)


def _flow_estimator(settings: _FlowSettings) -> cv2.DISOpticalFlow:
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    flow.setFinestScale(1)
    flow.setPatchSize(8)
    flow.setPatchStride(settings.stride)
    flow.setGradientDescentIterations(_DESCENT_STEPS)
    flow.setVariationalRefinementIterations(settings.refinements)
    flow.setVariationalRefinementAlpha(_SMOOTHNESS_WEIGHT)
    flow.setVariationalRefinementGamma(_GRADIENT_WEIGHT)
    return flow


def working_side(side: int, scale: float) -> int:
    """Pixels along a side of the picture on which motion is estimated: the frame's, scaled, but enough for DIS."""
    return max(_LEAST_WORKING_SIDE, round(side * scale))


def pixel_grid(width: int, height: int) -> Field:
    """Coordinates (x, y) of every pixel, (H, W, 2)."""
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return cv2.merge([x, y])


def _sample(source: NDArray, positions: Field) -> NDArray:
    """Read ``source`` (H, W[, C]) at ``positions`` (h, w, 2), bilinear, repeating the border."""
    return cv2.remap(source, positions, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


class PairMotion(NamedTuple):
    """What is known about a pair of keyframes, on the grid. Lengths in grid pixels."""

    first: Frame  # (h, w) grey
    second: Frame  # (h, w) grey
    forward: Field  # (h, w, 2) from first to second, at the pixels of first
    reverse: Field  # (h, w, 2) the negated flow from second to first: also first to second, at the pixels of second
    forward_error: Frame  # (h, w) penalty in grey levels, at the pixels of first
    reverse_error: Frame  # (h, w) the same, at the pixels of second
    unmatched: float  # share of pixels without a counterpart


class Evidence(NamedTuple):
    """What motion compensation knows about the frame at one time, on the grid."""

    motion: Field
    """(h, w, 2) from first to second, at the grid pixels of that time, in grid pixels."""
    errors: tuple[Frame, Frame]
    """(h, w) each: penalty for flow that does not return to its start, where either keyframe is read, 0 to 12."""
    log_odds: Field
    """(h, w) log odds of the first keyframe against the second: one that looks past its border gives way."""


class _Guide(NamedTuple):
    """Label maps of a pair of keyframes and of the frame wanted between them; ids of a type OpenCV can warp."""

    ends: tuple[Labels, Labels]  # (H, W)
    wanted: Labels
    small: tuple[Labels, Labels, Labels]  # the same on the grid
    doubt: float


class DISInterpolator:
    """Motion-compensated frames from OpenCV's DIS optical flow (the module's docstring explains the way).

    Keeps grids and scratch space of the latest frame size, so use one instance per thread. Results depend on the
    arguments only.

    Args:
        config: effort, working size and scene cuts.

    Source:
        Kroeger et al., "Fast Optical Flow using Dense Inverse Search", ECCV 2016 (the flow).
    """

    def __init__(self, config: MotionConfig | None = None) -> None:
        self.config = config or MotionConfig()
        self._plan: _Plan | None = None

    def between(
        self, first: Frame, second: Frame, times: Sequence[float], labels: Sequence[Labels] | None = None
    ) -> list[Frame]:
        """Frames at ``times`` between two keyframes.

        Args:
            first: keyframe at time 0, (H, W, 3) uint8, any size.
            second: keyframe at time 1, same size.
            times: wanted times, strictly between 0 and 1, in any order.
            labels: where they are known, class ids (H, W) of the first keyframe, of each wanted frame, and of the
                second keyframe. Any ids: they are only compared.

        Returns:
            One (H, W, 3) uint8 frame for each time. Across a scene cut the nearer keyframe (the later one at 0.5).

        Raises:
            ShapeError: if the keyframes differ in size or are not (H, W, 3) uint8, or label maps do not belong to them.
            ConfigError: if a time lies outside (0, 1).
        """
        check_pair(first, second, times)
        if labels is not None:
            check_labels(labels, first.shape[:2], times)
        if not times:
            return []
        times = [float(time) for time in times]  # numpy's scalars would widen the arrays that OpenCV writes into
        plan = self._plan_for(first.shape[0], first.shape[1])
        motion = self._estimate(plan, first, second)
        threshold = self.config.cut_threshold
        if threshold is not None and motion.unmatched > threshold:
            return [first.copy() if time < 0.5 else second.copy() for time in times]
        for keyframe, scratch in zip((first, second), plan.keyframes, strict=True):
            cv2.cvtColor(keyframe, cv2.COLOR_RGB2RGBA, dst=scratch)
        guides = self._guides(plan, labels, len(times))
        return [_compensate(plan, motion, time, guide) for time, guide in zip(times, guides, strict=True)]

    def motion_into(self, first: Frame, second: Frame) -> Field | None:
        """How what ``second`` shows has moved since ``first``.

        Args:
            first: an earlier frame, (H, W, 3) uint8.
            second: a later one, same size.

        Returns:
            Motion (h, w, 2) of the pixels of ``second``, x then y, in pixels of a grid of about a quarter of the size;
            None across a scene cut.

        Raises:
            ShapeError: if the frames differ in size or are not (H, W, 3) uint8.
        """
        check_pair(first, second, ())
        motion = self._estimate(self._plan_for(first.shape[0], first.shape[1]), first, second)
        threshold = self.config.cut_threshold
        return None if threshold is not None and motion.unmatched > threshold else motion.reverse

    def estimate(self, first: Frame, second: Frame) -> PairMotion | None:
        """Motion between two keyframes, for ``evidence``; the part of the work that all frames between them share.

        Args:
            first: keyframe at time 0, (H, W, 3) uint8.
            second: keyframe at time 1, same size.

        Returns:
            Both flows and how far they can be trusted; None across a scene cut.

        Raises:
            ShapeError: if the keyframes differ in size or are not (H, W, 3) uint8.
        """
        check_pair(first, second, ())
        motion = self._estimate(self._plan_for(first.shape[0], first.shape[1]), first, second)
        threshold = self.config.cut_threshold
        return None if threshold is not None and motion.unmatched > threshold else motion

    def evidence(
        self, motion: PairMotion, size: tuple[int, int], time: float, labels: Sequence[Labels] | None = None
    ) -> Evidence:
        """What the motion of a pair says about the frame at one time between them.

        Args:
            motion: of ``estimate``.
            size: (height, width) of the keyframes.
            time: in (0, 1).
            labels: where they are known, class ids (H, W) of the first keyframe, of the wanted frame and of the second.

        Returns:
            Motion, return errors and border odds on a grid of ``working_scale`` / 2 of the size.
        """
        plan = self._plan_for(*size)
        (guide,) = self._guides(plan, labels, 1)
        moved = _motion_at(plan, motion, float(time), guide)
        places = [cv2.scaleAdd(moved, amount, plan.grid) for amount in (-float(time), 1 - float(time))]
        errors = _sample(motion.forward_error, places[0]), _sample(motion.reverse_error, places[1])
        return Evidence(moved, errors, _border_log_odds([_beyond_border(plan, place) for place in places]))

    def _guides(self, plan: _Plan, labels: Sequence[Labels] | None, count: int) -> list[_Guide | None]:
        """What label maps say about each wanted frame; None where nothing is known or wanted."""
        doubt = self.config.doubt
        if labels is None or doubt is None or doubt == 1:
            return [None] * count
        maps = comparable(labels)
        small = [cv2.resize(x, plan.grid_size, interpolation=cv2.INTER_NEAREST_EXACT) for x in maps]
        ends, ends_small = (maps[0], maps[-1]), (small[0], small[-1])
        return [_Guide(ends, maps[k], (*ends_small, small[k]), doubt) for k in range(1, count + 1)]

    def _plan_for(self, height: int, width: int) -> _Plan:
        if self._plan is None or self._plan.full_size != (width, height):
            self._plan = _Plan((height, width), self.config)
        return self._plan

    def _estimate(self, plan: _Plan, first: Frame, second: Frame) -> PairMotion:
        greys = [
            cv2.resize(cv2.cvtColor(x, cv2.COLOR_RGB2GRAY), plan.working_size, interpolation=cv2.INTER_AREA)
            for x in (first, second)
        ]
        small = [cv2.resize(grey, plan.grid_size, interpolation=cv2.INTER_AREA) for grey in greys]
        flows = [plan.flow.calc(a, b, None) for a, b in (greys, greys[::-1])]
        forward, backward = (
            cv2.resize(flow, plan.grid_size, interpolation=cv2.INTER_AREA) * plan.working_to_grid for flow in flows
        )
        forward_error, reverse_error = _return_error(plan, forward, backward), _return_error(plan, backward, forward)
        return PairMotion(
            small[0],
            small[1],
            forward,
            -backward,
            _penalty(forward_error),
            _penalty(reverse_error),
            _unmatched(plan, small[0], small[1], forward, forward_error),
        )


def _return_error(plan: _Plan, there: Field, back: Field) -> Field:
    """How far from its start each pixel comes back, (h, w)."""
    astray = there + _sample(back, cv2.add(plan.grid, there))
    return cv2.magnitude(astray[..., 0], astray[..., 1])


def _penalty(return_error: Field) -> Frame:
    return (np.minimum(return_error, RETURN_ERROR_LIMIT) * RETURN_ERROR_WEIGHT).astype(np.uint8)


def _unmatched(plan: _Plan, first: Frame, second: Frame, forward: Field, return_error: Field) -> float:
    """Share of pixels that ``second`` does not show: the flow does not return, or the brightness differs."""
    difference = cv2.absdiff(first, _sample(second, cv2.add(plan.grid, forward)))
    return float(np.mean((return_error > plan.lost) | (difference > MATCH_GREY_LEVELS)))


def comparable(labels: Sequence[Labels]) -> list[Labels]:
    """Label maps in one type that OpenCV can sample: bytes where all are, else floats (exact to 2^24)."""
    if all(label.dtype == np.uint8 for label in labels):
        return [np.ascontiguousarray(label) for label in labels]
    return [label.astype(np.float32) for label in labels]


def class_at(labels: Labels, positions: Field) -> Labels:
    """The class at the nearest pixel to each position."""
    return cv2.remap(labels, positions, None, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)


def _compensate(plan: _Plan, motion: PairMotion, time: float, guide: _Guide | None) -> Frame:
    """The frame at ``time`` from the plan's keyframes: one motion field, two warps, one blend."""
    moved = _motion_at(plan, motion, time, guide)
    cv2.resize(moved * plan.grid_to_full, plan.full_size, dst=plan.motion, interpolation=cv2.INTER_LINEAR)
    fits = []
    for side, amount in enumerate((-time, 1 - time)):
        cv2.scaleAdd(plan.motion, amount, plan.full_grid, dst=plan.positions)
        cv2.remap(
            plan.keyframes[side],
            plan.positions,
            None,
            cv2.INTER_LINEAR,
            dst=plan.warped[side],
            borderMode=cv2.BORDER_REPLICATE,
        )
        if guide is not None:
            fitting = cv2.compare(class_at(guide.ends[side], plan.positions), guide.wanted, cv2.CMP_EQ)
            # What a side does not see does not fit, whatever lies at its border.
            fits.append(cv2.bitwise_and(fitting, cv2.inRange(plan.positions, (0.0, 0.0), plan.last_pixel)))
    cv2.addWeighted(plan.warped[0], 1 - time, plan.warped[1], time, 0, dst=plan.blended)
    _fade_unseen(plan, moved, time)
    if guide is not None:
        _favour_fitting(plan, fits, time, guide.doubt)
    return cv2.cvtColor(plan.blended, cv2.COLOR_RGBA2RGB)


def _favour_fitting(plan: _Plan, fits: Sequence[Frame], time: float, doubt: float) -> None:
    """Blend anew where exactly one side shows the known class; ``fits`` is 255 where a side does, (H, W) each."""
    for side in (0, 1):
        weights = [1 - time, time]
        weights[1 - side] *= doubt
        share = weights[0] / (weights[0] + weights[1])
        cv2.addWeighted(plan.warped[0], share, plan.warped[1], 1 - share, 0, dst=plan.favoured)
        cv2.copyTo(plan.favoured, cv2.compare(fits[side], fits[1 - side], cv2.CMP_GT), plan.blended)


def _motion_at(plan: _Plan, motion: PairMotion, time: float, guide: _Guide | None) -> Field:
    """Motion from ``first`` to ``second`` of what is seen at ``time``, at the grid pixels of that time."""
    candidates = (
        _sample(motion.forward, cv2.scaleAdd(motion.forward, -time, plan.grid)),
        _sample(motion.reverse, cv2.scaleAdd(motion.reverse, 1 - time, plan.grid)),
    )
    costs = []
    for k, candidate in enumerate(candidates):
        in_first = cv2.scaleAdd(candidate, -time, plan.grid)
        in_second = cv2.scaleAdd(candidate, 1 - time, plan.grid)
        difference = cv2.absdiff(_sample(motion.first, in_first), _sample(motion.second, in_second))
        error = _sample(motion.reverse_error, in_second) if k else _sample(motion.forward_error, in_first)
        unlike = cv2.add(difference, error)
        if guide is not None:
            for labels, positions in zip(guide.small[:2], (in_first, in_second), strict=True):
                strange = cv2.compare(class_at(labels, positions), guide.small[2], cv2.CMP_NE)
                cv2.add(unlike, round(STRANGE_CLASS_GREY_LEVELS * (1 - guide.doubt)), dst=unlike, mask=strange)
        cost = cv2.boxFilter(unlike, cv2.CV_32F, (5, 5)) + 1
        costs.append(cv2.pow(cost, 4))
    return cv2.blendLinear(candidates[0], candidates[1], costs[1], costs[0])


def _fade_unseen(plan: _Plan, moved: Field, time: float) -> None:
    """Blend anew, along the borders only, where one side looks past the picture and so does not see the pixel."""
    beyond = [_beyond_border(plan, cv2.scaleAdd(moved, amount, plan.grid)) for amount in (-time, 1 - time)]
    left, right = _clear_stretch(np.maximum(beyond[0][0], beyond[1][0]).max(axis=0), plan.full_size[0])
    top, bottom = _clear_stretch(np.maximum(beyond[0][1], beyond[1][1]).max(axis=1), plan.full_size[1])
    if (left, top, right, bottom) == (0, 0, *plan.full_size):
        return
    odds = cv2.exp(_border_log_odds(beyond)) * ((1 - time) / time)
    cv2.resize(odds / (1 + odds), plan.full_size, dst=plan.weights[0], interpolation=cv2.INTER_LINEAR)
    np.subtract(1, plan.weights[0], out=plan.weights[1])
    inner, every = slice(top, bottom), slice(None)
    for part in (
        (slice(0, top), every),
        (slice(bottom, None), every),
        (inner, slice(0, left)),
        (inner, slice(right, None)),
    ):
        if plan.blended[part].size:
            warped, weights = plan.warped[:, *part], plan.weights[:, *part]
            cv2.blendLinear(warped[0], warped[1], weights[0], weights[1], dst=plan.blended[part])


def _border_log_odds(beyond: Sequence[tuple[Field, Field]]) -> Field:
    """Log odds of the first side against the second from how far outside the picture each looks, (h, w)."""
    unseen = [np.clip(np.maximum(*axes), 0, 1) for axes in beyond]
    return (unseen[1] - unseen[0]) * OUTSIDE_LOG_ODDS


def _beyond_border(plan: _Plan, positions: Field) -> tuple[Field, Field]:
    """How far outside the grid each position lies, along x and along y; negative inside. Each (h, w)."""
    x, y = cv2.split(positions)
    middle_x, middle_y = ((side - 1) / 2 for side in plan.grid_size)
    return cv2.absdiff(x, middle_x) - np.float32(middle_x), cv2.absdiff(y, middle_y) - np.float32(middle_y)


def _clear_stretch(beyond: Field, side: int) -> tuple[int, int]:
    """The full-size pixels, first and last plus one, around the middle that no position beyond the border reaches.

    Args:
        beyond: (n,) the furthest along one side of the grid.
        side: length of the same side in pixels.
    """
    reached = np.flatnonzero(beyond > 0)
    count, middle = len(beyond), len(beyond) // 2
    first = int(reached[reached < middle].max(initial=-1)) + 1
    last = int(reached[reached >= middle].min(initial=count)) - 1
    # Enlarging spreads a grid pixel to the centres of its neighbours.
    scale = side / count
    start = 0 if first == 0 else math.ceil((first + 0.5) * scale - 0.5)
    stop = side if last == count - 1 else math.floor((last + 0.5) * scale - 0.5) + 1
    return (start, stop) if start < stop else (side, side)
