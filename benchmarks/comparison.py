"""Students beside their teacher on held-out frames: rollouts, scores of groups of runs, and verdicts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.features import FD_IMAGE, FD_VIDEO, EfficientNetFeatures, frame_features
from benchmarks.judge import Judge
from benchmarks.pretrained import LPIPS, I3DFeatures, InceptionFeatures
from benchmarks.quality import (
    MEASURES,
    TEACHER_MEASURES,
    WORLD_MEASURES,
    PointIds,
    mean_scores,
    score_rows,
    score_video,
)
from benchmarks.results import Scalar, format_number
from fastv2v.contracts import StepModel
from fastv2v.data.clip import Clip
from fastv2v.data.conditions import ConditionSpec
from fastv2v.device import Device
from fastv2v.errors import ConfigError, ShapeError
from fastv2v.metrics import (
    drift,
    flows_and_masks,
    frechet_distance,
    psnr,
    segmentation_score,
    video_features,
)
from fastv2v.metrics.drift import EARLY, LATE, Window, check_windows
from fastv2v.ops.labels import encode_clip, guidance_points
from fastv2v.render import at_frame, guided_step, start_history
from fastv2v.score import to_uint8
from interpolate.fill import StreamFiller
from interpolate.keyframes import uniform_keyframes
from interpolate.motion import DISInterpolator, MotionConfig

Frame = NDArray[np.uint8]
Row = dict[str, Scalar]
Set = Literal["all", "keyframes", "interpolated"]
SETS: Final[tuple[Set, ...]] = ("all", "keyframes", "interpolated")

SET_MEASURES: Final = {
    "fd_efficientnet_lite0": FD_IMAGE,
    "fd_video_efficientnet_lite0": FD_VIDEO,
    "fid": "FID",
    "fvd": "FVD",
    "lpips": "LPIPS",
    "drift_db": "drift dB",
    "miou": "mIoU",
    "pixel_accuracy": "pixel accuracy",
    "class_accuracy": "class accuracy",
}
"""Measures of a whole data set with their headings; drift is lower, accuracy higher for the better model."""

ALL_MEASURES: Final = MEASURES | TEACHER_MEASURES | WORLD_MEASURES | SET_MEASURES
QUALITY_COLUMNS: Final = {"name": "model", "frames": "frames", "num_frames": "count", "runs": "runs"} | {
    key: ALL_MEASURES[key]
    for key in (
        "psnr_db", "ssim", "vmaf", "fd_efficientnet_lite0", "warping_error", "flicker", "miou", "pixel_accuracy",
    )
}  # fmt: skip
"""Columns of the first table: against the real frames."""
PRETRAINED_COLUMNS: Final = {"name": "model", "frames": "frames"} | {
    key: SET_MEASURES[key] for key in ("fid", "fvd", "lpips")
}
"""Columns of the third table: what needs networks that do not come with a package."""
TEACHER_COLUMNS: Final = {"name": "model", "frames": "frames"} | {
    key: ALL_MEASURES[key]
    for key in (*TEACHER_MEASURES, "drift_db", "fd_video_efficientnet_lite0", "class_accuracy", "vmaf_p5")
}
"""Columns of the second table: against the teacher, and what is known of whole rollouts."""
WORLD_COLUMNS: Final = {"name": "model", "frames": "frames"} | WORLD_MEASURES
"""Columns of a table more: whether places keep their looks, where point ids are known."""


class Delivered(NamedTuple):
    """One frame of a rollout as a deployment would hand it over."""

    frame: Frame
    """RGB, (H, W, 3)."""
    is_keyframe: bool
    """Synthesised; else interpolated."""


@torch.no_grad()
def deliver(
    model: StepModel, spec: ConditionSpec, clip: Clip, *, gap: int, given_frames: int, device: Device
) -> Iterator[Delivered]:
    """Roll a model out from the first real frames of a clip, as ``export.stream`` does with the exported graph.

    The last given frame is the first keyframe; every ``gap``-th frame after it is synthesised, and the last one of the
    clip; the others are filled in by motion compensation (DIS, grade ``fast``, guided by label maps). A history that
    reaches further back is made of given frames in steps of the gap, the oldest repeated; where the model is guided,
    all given frames in these steps paint its world, also those that the history is too short for.

    Args:
        model: in evaluation mode, on the device.
        spec: its condition.
        clip: B = 1, more frames than are given.
        gap: distance of keyframes; 1 synthesises every frame.
        given_frames: real frames to start from, at least 1.
        device: where and in what precision.

    Yields:
        The frames after the given ones, in order.

    Raises:
        ConfigError: if a number makes no sense for this clip.
    """
    if gap < 1 or not 1 <= given_frames < clip.num_frames:
        raise ConfigError(
            f"a rollout needs a gap of at least 1 and a given frame before others, got a gap of {gap} and "
            f"{given_frames} given of {clip.num_frames} frames"
        )
    first = given_frames - 1

    def conditions(*times: int) -> Tensor:
        """Encoded one by one: a whole clip would not fit into memory."""
        return torch.cat([encode_clip(spec, clip.take(t, t + 1).to(device.device)) for t in times], dim=1)

    ids = guidance_points(spec, clip)
    ids = None if ids is None else tuple(level.to(device.device) for level in ids)
    past = list(range(first % gap, given_frames, gap))
    past = past if ids is not None else past[-model.history_length :]
    history = start_history(
        conditions(*past),
        clip.frames[:, past].to(device.device),
        model.history_length,
        points=None if ids is None else tuple(level[:, past] for level in ids),
    )
    filler = StreamFiller(DISInterpolator(MotionConfig(grade="fast")))
    filler.push(first, _picture(clip.frames[:, first]))
    for before, keyframe in pairwise(first + k for k in uniform_keyframes(clip.num_frames - first, gap)):
        with device.autocast():
            output, history = guided_step(model, conditions(keyframe)[:, 0], history, at_frame(ids, keyframe))
        for index, frame in filler.push(keyframe, _picture(output.frame), _classes(clip, before, keyframe)):
            yield Delivered(frame, index == keyframe)


def _classes(clip: Clip, first: int, last: int) -> list[NDArray[np.integer[Any]]] | None:
    """Label maps (H, W) of these frames, both included; None where the clip has none."""
    if clip.labels is None:
        return None
    return [labels.cpu().numpy() for labels in clip.labels[0, first : last + 1]]


def _picture(frame: Tensor) -> Frame:
    """A frame (1, 3, H, W) in [-1, 1] as RGB (H, W, 3)."""
    return np.ascontiguousarray(to_uint8(frame)[0].permute(1, 2, 0).cpu().numpy())


class Video(NamedTuple):
    """Frames of one model for one sequence, without the given ones."""

    frames: Sequence[Frame]
    """T of them, RGB (H, W, 3)."""
    is_keyframe: Sequence[bool] | None = None
    """T marks for a part-time model."""

    @classmethod
    def collect(cls, delivered: Iterable[Delivered], *, part_time: bool) -> Video:
        """The frames of a rollout; those of a full-time model are not told apart."""
        items = list(delivered)
        return cls([x.frame for x in items], [x.is_keyframe for x in items] if part_time else None)

    def indices(self, frames: Set) -> list[int]:
        """Which frames belong to a set."""
        count = len(self.frames)
        if frames == "all":
            return list(range(count))
        marks = self.is_keyframe or ()
        return [t for t, mark in enumerate(marks) if mark == (frames == "keyframes")]


_Pair = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Features of a model's frames and of the real ones, for one sequence."""


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """Networks that the user named files of; None leaves their measure out."""

    inception: InceptionFeatures | None = None
    """For FID."""
    i3d: I3DFeatures | None = None
    """For FVD, of all frames; sequences are cut into its clips."""
    lpips: LPIPS | None = None
    """For LPIPS."""


@dataclass
class _Tally:
    """What is kept of one model while sequences come in."""

    videos: list[Mapping[str, Any]] = field(default_factory=list)
    features: dict[tuple[str, Set], list[_Pair]] = field(default_factory=dict)
    lpips: dict[Set, list[float]] = field(default_factory=dict)
    confusion: dict[Set, NDArray[np.int64]] = field(default_factory=dict)
    curves: dict[str, list[float | None]] = field(default_factory=dict)


class Comparison:
    """Scores of several models over the sequences of a data set; frames are let go sequence by sequence.

    Args:
        features: network of the Fréchet distances.
        judge: of segmentation; None leaves these measures out.
        pretrained: networks of further measures.
        with_vmaf: also run VMAF.
        early: frames whose quality drift starts from, see ``fastv2v.metrics.drift``.
        late: frames at which it is taken again; drift is None unless every sequence reaches them.

    Raises:
        ConfigError: if the windows make no sense.
    """

    def __init__(
        self,
        *,
        features: EfficientNetFeatures,
        judge: Judge | None,
        pretrained: Pretrained | None = None,
        with_vmaf: bool = True,
        early: Window = EARLY,
        late: Window = LATE,
    ) -> None:
        check_windows(early, late)
        self._judge, self._with_vmaf = judge, with_vmaf
        self._pretrained = pretrained or Pretrained()
        self._extractors: dict[str, Callable[[Sequence[Frame]], NDArray[np.float32]]] = {
            "fd_efficientnet_lite0": partial(frame_features, features)
        }
        if self._pretrained.inception is not None:
            self._extractors["fid"] = self._pretrained.inception
        self._windows = early, late
        self._tallies: dict[str, _Tally] = {}

    def add(
        self,
        sequence: str,
        real: Sequence[Frame],
        videos: Mapping[str, Video],
        *,
        labels: Sequence[NDArray[np.integer[Any]]] | None = None,
        teacher: Sequence[Frame] | None = None,
        students: Iterable[str] = (),
        given_frames: int = 1,
        points: PointIds | None = None,
        forward_backward: Mapping[str, float] | None = None,
    ) -> Iterator[str]:
        """Score one sequence.

        Args:
            sequence: its name.
            real: its T real frames, without the given ones.
            videos: T frames of every model; the same models for every sequence.
            labels: T label maps (H, W), which the judge compares with.
            teacher: the teacher's T frames, where students are compared with it.
            students: names of the models that are.
            given_frames: real frames before these, which count in the frame numbers of drift.
            points: T maps of point ids, (H, W), where the data set has them; they add ``WORLD_MEASURES``.
            forward_backward: by model, for those that were rolled out there and back.

        Yields:
            The name of each model once it is scored.

        Raises:
            ShapeError: naming the model, if counts or sizes disagree.
        """
        if labels is not None and len(labels) != len(real):
            raise ShapeError(f"{sequence}: {len(labels)} label maps for {len(real)} frames; they are compared by index")
        motion = flows_and_masks(real)
        real_features = {key: extract(real) for key, extract in self._extractors.items()}
        real_clips = None if self._pretrained.i3d is None else self._pretrained.i3d(real)
        compared = frozenset(students)
        for name, video in videos.items():
            tally = self._tallies.setdefault(name, _Tally())
            tally.videos.append(
                score_video(
                    name,
                    video.frames,
                    real,
                    keyframe_mask=video.is_keyframe,
                    flows=motion,
                    with_vmaf=self._with_vmaf,
                    teacher=teacher if name in compared else None,
                    points=points,
                    forward_backward=(forward_backward or {}).get(name),
                )
            )
            curve = [psnr(frame, original) for frame, original in zip(video.frames, real, strict=True)]
            tally.curves[sequence] = [None] * given_frames + curve
            matrices = None
            if self._judge is not None and labels is not None:
                judged = zip(video.frames, labels, strict=True)
                matrices = np.stack([self._judge.confusion(frame, truth) for frame, truth in judged])
            made = real_features  # the row of the real video is not looked at twice
            if video.frames is not real:
                made = {key: extract(video.frames) for key, extract in self._extractors.items()}
            lpips = self._pretrained.lpips
            distances = None if lpips is None else np.array(lpips.distances(video.frames, real))
            for frames in SETS:
                if chosen := video.indices(frames):
                    for key, features in made.items():
                        pair = features[chosen], real_features[key][chosen]
                        tally.features.setdefault((key, frames), []).append(pair)
                    if matrices is not None:
                        tally.confusion[frames] = tally.confusion.get(frames, 0) + matrices[chosen].sum(axis=0)
                    if distances is not None:
                        tally.lpips.setdefault(frames, []).append(float(distances[chosen].mean()))
            if self._pretrained.i3d is not None and real_clips is not None and len(real_clips):
                pair = self._pretrained.i3d(video.frames), real_clips
                tally.features.setdefault(("fvd", "all"), []).append(pair)
            yield name

    @property
    def curves(self) -> dict[str, dict[str, list[float | None]]]:
        """PSNR in dB of every frame, by model and sequence; None for the given ones."""
        return {name: tally.curves for name, tally in self._tallies.items()}

    def rows(self) -> dict[str, list[Row]]:
        """Scores of every model: one row for each set of frames that has any, with all measures.

        Means over frames, then over sequences, as ``mean_scores``; Fréchet distances and segmentation scores over the
        whole data set, the former with the number of frames, ``fd_samples``, against the real frames of the same times.
        """
        return {
            name: [self._row(row, tally) for row in self._video_rows(name)] for name, tally in self._tallies.items()
        }

    def _video_rows(self, name: str) -> list[Row]:
        return score_rows(mean_scores(name, self._tallies[name].videos))

    def _row(self, row: Row, tally: _Tally) -> Row:
        frames: Set = row["frames"]  # type: ignore[assignment]
        for (key, of), pairs in tally.features.items():
            if of == frames:
                row[key] = _distance(*(np.concatenate(side) for side in zip(*pairs, strict=True)))
        row["fd_samples"] = row["num_frames"]
        if frames in tally.lpips:
            row["lpips"] = float(np.mean(tally.lpips[frames]))
        if frames == "all":
            pairs = tally.features["fd_efficientnet_lite0", "all"]
            row["fd_video_efficientnet_lite0"] = None
            if min(len(made) for made, _ in pairs) > 1:
                whole = ([video_features(x) for x in side] for side in zip(*pairs, strict=True))
                row["fd_video_efficientnet_lite0"] = _distance(*map(np.stack, whole))
            row["drift_db"] = self._drift(tally)
        if frames in tally.confusion:
            score = segmentation_score(tally.confusion[frames])
            row |= {"miou": score.miou, "pixel_accuracy": score.pixel_accuracy, "class_accuracy": score.class_accuracy}
        return row

    def _drift(self, tally: _Tally) -> float | None:
        """Mean over sequences of what is lost; None where one is too short or a window holds a given frame."""
        early, late = self._windows
        curves = [[math.nan if x is None else x for x in curve] for curve in tally.curves.values()]
        if any(len(curve) < late[1] or math.isnan(curve[early[0]]) for curve in curves):
            return None
        return float(np.mean([drift(curve, early, late).drop_db for curve in curves]))


def _distance(a: NDArray[Any], b: NDArray[Any]) -> float | None:
    """Fréchet distance; None for single samples."""
    return max(0.0, frechet_distance(a, b)) if len(a) > 1 else None


def group_rows(name: str, runs: Sequence[Sequence[Row]]) -> list[Row]:
    """Mean and spread over the runs of a group.

    Args:
        name: of the group.
        runs: the rows of each run, as ``Comparison.rows`` gives them.

    Returns:
        One row for each set of frames: ``runs``, every measure as the mean, and with ``_min``, ``_max`` and ``_std``
        (sample standard deviation, 0 for one run) after its name. None where a run has no value.

    Raises:
        ConfigError: if there are no runs or they have different sets of frames.
    """
    if not runs or len({tuple(row["frames"] for row in rows) for rows in runs}) != 1:
        raise ConfigError(f"{name}: a group needs at least one run, and all of one gap")
    grouped: list[Row] = []
    for rows in zip(*runs, strict=True):
        first = rows[0]
        merged: Row = {"name": name, "frames": first["frames"], "runs": len(rows)}
        merged |= {key: first[key] for key in ("num_frames", "fd_samples")}
        for key in [key for key in ALL_MEASURES if key in first]:
            values = [row[key] for row in rows]
            known = None if None in values else np.array(values, float)
            merged[key] = None if known is None else float(known.mean())
            merged[f"{key}_min"] = None if known is None else float(known.min())
            merged[f"{key}_max"] = None if known is None else float(known.max())
            merged[f"{key}_std"] = None if known is None else float(known.std(ddof=1)) if len(known) > 1 else 0.0
        grouped.append(merged)
    return grouped


def with_spread(rows: Iterable[Row]) -> list[Row]:
    """Group rows for people: ``mean ± standard deviation`` where there are several runs."""
    shown = []
    for row in rows:
        several = int(row["runs"] or 0) > 1
        shown.append(
            {
                key: f"{format_number(value)} ± {format_number(row[f'{key}_std'])}"
                if several and value is not None and f"{key}_std" in row
                else value
                for key, value in row.items()
            }
        )
    return shown


Measure = Literal["psnr", "ssim", "vmaf", "miou"]
_KEYS: Final[dict[Measure, tuple[str, str, float]]] = {
    "psnr": ("psnr_db", "PSNR dB", 1.0),
    "ssim": ("ssim", "SSIM", 1.0),
    "vmaf": ("vmaf", "VMAF points", 1.0),
    "miou": ("miou", "mIoU points", 100.0),
}
"""Key of a row, heading and factor to the unit that is asked in."""


@dataclass(frozen=True, kw_only=True)
class Criteria:
    """What is asked of a student, on all delivered frames, each in the mean over its runs."""

    subject: str | None = None
    """Name of the student that is judged, the subject; the first one by default."""
    within_psnr: float | None = None
    """The subject may fall below the teacher by at most this many dB."""
    within_ssim: float | None = None
    """The subject may fall below the teacher's SSIM by at most this."""
    within_vmaf: float | None = None
    """The subject may fall below the teacher by at most this many VMAF points."""
    within_miou: float | None = None
    """The subject may fall below the teacher by at most this many points (hundredths) of mIoU."""
    no_worse_warping: bool = False
    """The subject's warping error may not be higher than the teacher's."""
    max_drift: float | None = None
    """The subject may lose at most this many dB from the early to the late frames of a rollout."""
    max_cost: float | None = None
    """The subject may cost at most this share of the teacher's multiply-adds per delivered frame, for example 0.05."""
    alone: str | None = None
    """Name of the same student trained without a teacher, which the subject must beat by more than the spread over
    runs: the difference of the means must exceed the distance from the worst to the best run, in either group."""
    world_gain: float | None = None
    """The teacher's world-consistency error must lie at least this share below that of the teacher without guidance
    (--plain), for example 0.3."""
    keeps_gain: float | None = None
    """The subject must keep at least this share of what guidance gains its teacher, for example 0.8."""
    guidance_costs_psnr: float | None = None
    """The teacher's PSNR may lie at most this share below that of the teacher without guidance, for example 0.03:
    consistency must not be bought with blur."""
    guidance_costs_fd: float | None = None
    """The teacher's Frechet distance of frames may lie at most this share above that of the teacher without guidance,
    for example 0.1."""
    world_measure: Literal["world_error", "return_error"] = "world_error"
    """By which error world_gain and keeps_gain go: of all points that are seen again, or of those that were out of
    sight since."""
    beats: tuple[Measure, ...] | None = None
    """Measures in which the subject must beat the student of --alone; by default all that are measured."""

    def __post_init__(self) -> None:
        limits = (
            *(self.within_psnr, self.within_ssim, self.within_vmaf, self.within_miou),
            *(self.max_drift, self.max_cost, *self._of_guidance),
        )
        if any(limit is not None and not 0 <= limit < math.inf for limit in limits):
            raise ConfigError("what is asked of a student is a number of at least 0")
        if self.beats is not None and self.alone is None:
            raise ConfigError("--beats says in what the student is better than the one of --alone; name that too")
        if self.beats is not None and not set(self.beats) <= _KEYS.keys():
            raise ConfigError(f"measures to beat are {', '.join(_KEYS)}; got {', '.join(self.beats)}")

    @property
    def within(self) -> dict[Measure, float]:
        """The distances to the teacher that are asked, in their units."""
        asked: dict[Measure, float | None] = {
            "psnr": self.within_psnr,
            "ssim": self.within_ssim,
            "vmaf": self.within_vmaf,
            "miou": self.within_miou,
        }
        return {measure: limit for measure, limit in asked.items() if limit is not None}

    @property
    def asks_anything(self) -> bool:
        """Whether there is a verdict to give."""
        limits = (self.max_drift, self.max_cost, self.alone)
        return bool(self.within) or self.no_worse_warping or self.judges_guidance or any(x is not None for x in limits)

    @property
    def judges_guidance(self) -> bool:
        """Whether anything is asked that the teacher without guidance (--plain) is needed for."""
        return any(limit is not None for limit in self._of_guidance)

    @property
    def judges_places(self) -> bool:
        """Whether anything is asked that point ids are needed for."""
        return (self.world_gain, self.keeps_gain) != (None, None)

    @property
    def _of_guidance(self) -> tuple[float | None, ...]:
        return self.world_gain, self.keeps_gain, self.guidance_costs_psnr, self.guidance_costs_fd


class Verdict(NamedTuple):
    """One criterion and what was found."""

    name: str
    """What was asked, in words."""
    asked: float
    """The limit."""
    measured: float
    """The value."""
    passed: bool
    """Whether it holds."""


VERDICT_COLUMNS: Final = {"name": "criterion", "asked": "asked", "measured": "measured", "passed": "passed"}


def verdicts(
    criteria: Criteria,
    rows: Mapping[str, Row],
    teacher: str,
    cost_share: Mapping[str, float],
    *,
    plain: str = "plain",
) -> list[Verdict]:
    """Hold a student against what was asked of it.

    Args:
        criteria: what was asked.
        rows: for every group, and the teacher, its row of all delivered frames.
        teacher: name of the teacher's row.
        cost_share: multiply-adds per delivered frame of each group, divided by the teacher's.
        plain: name of the row of the teacher without guidance.

    Returns:
        One verdict for each thing asked.

    Raises:
        ConfigError: if a group is unknown, or something was asked that was not measured.
    """
    subject = criteria.subject or next(name for name in cost_share if name != teacher)
    found = []
    for measure, limit in criteria.within.items():
        lost = -_difference(rows, subject, teacher, measure)
        found.append(Verdict(f"{subject}: {_KEYS[measure][1]} below {teacher}, at most", limit, lost, lost <= limit))
    if criteria.no_worse_warping:
        more = _value(rows, subject, "warping_error") - _value(rows, teacher, "warping_error")
        found.append(Verdict(f"{subject}: warping error above {teacher}, at most", 0.0, more, more <= 0))
    if criteria.max_drift is not None:
        lost = _value(rows, subject, "drift_db")
        found.append(Verdict(f"{subject}: drift dB, at most", criteria.max_drift, lost, lost <= criteria.max_drift))
    if criteria.max_cost is not None:
        share = cost_share[subject]
        name = f"{subject}: share of the MACs per delivered frame of {teacher}, at most"
        found.append(Verdict(name, criteria.max_cost, share, share <= criteria.max_cost))
    found += _world_verdicts(criteria, rows, subject, teacher, plain)
    if criteria.alone is not None:
        measured = tuple(m for m in _KEYS if _row_of(rows, subject).get(_KEYS[m][0]) is not None)
        for measure in criteria.beats or measured:
            gain = _difference(rows, subject, criteria.alone, measure)
            spread = max(_range(rows, name, measure) for name in (subject, criteria.alone))
            name = f"{subject}: {_KEYS[measure][1]} above {criteria.alone}, more than the spread over runs"
            found.append(Verdict(name, spread, gain, gain > spread))
    return found


def _world_verdicts(
    criteria: Criteria, rows: Mapping[str, Row], subject: str, teacher: str, plain: str
) -> Iterator[Verdict]:
    """What guidance gains the teacher and costs its frames, and how much the student keeps of the gain, if any."""
    for cost, measure, worse in (
        (criteria.guidance_costs_psnr, "psnr_db", -1),
        (criteria.guidance_costs_fd, "fd_efficientnet_lite0", 1),
    ):
        if cost is not None:
            least = _value(rows, plain, measure)
            more = worse * (_value(rows, teacher, measure) - least)
            share = more / least if least else math.copysign(math.inf, more) if more else 0.0
            where = "above" if worse > 0 else "below"
            name = f"{teacher}: share by which its {ALL_MEASURES[measure]} lies {where} {plain}, at most"
            yield Verdict(name, cost, share, share <= cost)
    if not criteria.judges_places:
        return
    key, heading = criteria.world_measure, ALL_MEASURES[criteria.world_measure]
    unguided, guided = _value(rows, plain, key), _value(rows, teacher, key)
    if criteria.world_gain is not None:
        share = 1 - guided / unguided if unguided else 0.0
        name = f"{teacher}: share by which its {heading} lies below {plain}, at least"
        yield Verdict(name, criteria.world_gain, share, share >= criteria.world_gain)
    if criteria.keeps_gain is not None:
        gain = unguided - guided
        kept = (unguided - _value(rows, subject, key)) / gain if gain > 0 else 0.0
        name = f"{subject}: share of the gain in {heading} that is kept, at least"
        yield Verdict(name, criteria.keeps_gain, kept, kept >= criteria.keeps_gain)


def _row_of(rows: Mapping[str, Row], name: str) -> Row:
    if name not in rows:
        raise ConfigError(f"there is no group '{name}' to judge; there are {', '.join(rows)}")
    return rows[name]


def _value(rows: Mapping[str, Row], name: str, key: str) -> float:
    value = _row_of(rows, name).get(key)
    if not isinstance(value, int | float):
        raise ConfigError(f"a limit is set on {ALL_MEASURES[key]}, which was not measured for {name}")
    return float(value)


def _difference(rows: Mapping[str, Row], a: str, b: str, measure: Measure) -> float:
    """How much a is above b, in the unit of the measure."""
    key, _, factor = _KEYS[measure]
    return factor * (_value(rows, a, key) - _value(rows, b, key))


def _range(rows: Mapping[str, Row], name: str, measure: Measure) -> float:
    """From the worst to the best run of a group."""
    key, _, factor = _KEYS[measure]
    return factor * (_value(rows, name, f"{key}_max") - _value(rows, name, f"{key}_min"))
