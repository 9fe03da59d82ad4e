"""Quality of finished videos: scores per video, and tables with the floors beside the candidates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.results import Scalar
from fastv2v.errors import ConfigError, ShapeError
from fastv2v.metrics.floors import MeanColourFloor, previous_frame_floor
from fastv2v.metrics.image import aligned, psnr, ssim
from fastv2v.metrics.temporal import Motion, flickers, flows_and_masks, nan_mean, warping_errors
from fastv2v.metrics.vmaf import pool_vmaf, vmaf
from fastv2v.metrics.world import world_errors

Frames = Sequence[NDArray[np.uint8]]
PointIds = Sequence[NDArray[np.integer[Any]]]
Scores = dict[str, float | int | None]

MEASURES: Final = {
    "psnr_db": "PSNR dB",
    "ssim": "SSIM",
    "vmaf": "VMAF",
    "vmaf_p5": "VMAF 5 %",
    "warping_error": "warping error",
    "flicker": "flicker",
}
"""Measures of a video with their headings; higher is better for the first four, lower for the last two."""

COLUMNS: Final = {"name": "video", "frames": "frames", "num_frames": "count"} | MEASURES
"""Columns of a quality table."""

TEACHER_MEASURES: Final = {
    "teacher_psnr_db": "PSNR dB to teacher",
    "teacher_ssim": "SSIM to teacher",
    "teacher_vmaf": "VMAF to teacher",
}
"""Likeness to the teacher's frames in place of the real ones; only where these are given."""

WORLD_MEASURES: Final = {
    "world_error": "world error",
    "return_error": "world error on return",
    "forward_backward": "there and back",
}
"""How far places move from the colour they were first seen in, in 8-bit levels, lower is better; only where a data set
says which point of the world is seen at which pixel."""

REAL: Final = "real video"
MEAN_COLOUR: Final = "floor: mean colour per label"
PREVIOUS_FRAME: Final = "floor: previous real frame"


def score_video(
    name: str,
    frames: Frames,
    real: Frames,
    *,
    keyframe_mask: Sequence[bool] | None = None,
    flows: Motion | None = None,
    with_vmaf: bool = True,
    teacher: Frames | None = None,
    points: PointIds | None = None,
    forward_backward: float | None = None,
) -> dict[str, Any]:
    """Score one video against the real one, frame by frame of the same index.

    PSNR and SSIM are means over frames. Warping error and flicker look at a frame and the one before it, and count for
    the later one. VMAF is the harmonic mean over frames (``vmaf``) and its 5th percentile (``vmaf_p5``), always
    computed on the whole video.

    Args:
        name: for the table and for messages.
        frames: T frames to judge, RGB, (H, W, 3) 8-bit; without the given ones.
        real: the T real frames.
        keyframe_mask: T truth values, True where the frame was synthesised and False where it was interpolated.
        flows: motion of the real video, when it is known already.
        with_vmaf: also run VMAF, which needs 32x32 pixels.
        teacher: T frames of the teacher's own rollout; adds ``TEACHER_MEASURES``.
        points: T maps of point ids, (H, W), -1 for none; adds ``world_error`` and ``return_error``.
        forward_backward: mean distance of a rollout there and back to itself, see ``fastv2v.metrics.world``, where
            there was one.

    Returns:
        ``name``, and under ``all``, ``keyframes`` and ``interpolated`` the measures with ``num_frames``; None for a set
        without frames. A measure that has no value (VMAF when left out, flicker of one frame) is None.

    Raises:
        ShapeError: naming the video, if counts or sizes disagree.
    """
    if not len(frames) == len(real) > 0:
        raise ShapeError(f"{name}: {len(frames)} frames against {len(real)} real ones; they are compared by index")
    if keyframe_mask is not None and len(keyframe_mask) != len(frames):
        raise ShapeError(f"{name}: {len(keyframe_mask)} keyframe marks for {len(frames)} frames")
    try:
        per_frame = _score_frames(frames, real, flows, with_vmaf)
        if teacher is not None:
            likeness = _likeness(frames, teacher, with_vmaf)
            per_frame |= {f"teacher_{key}": values for key, values in likeness.items()}
        if points is not None:
            errors = world_errors(frames, points)
            per_frame |= {"world_error": errors.seen_again, "return_error": errors.returned}
    except ShapeError as error:
        raise ShapeError(f"{name}: {error}") from error
    everything = np.ones(len(frames), bool)
    is_keyframe = None if keyframe_mask is None else np.asarray(keyframe_mask, bool)
    whole = _pool(per_frame, everything)
    if whole is not None and forward_backward is not None:
        whole["forward_backward"] = forward_backward
    return {
        "name": name,
        "all": whole,
        "keyframes": None if is_keyframe is None else _pool(per_frame, is_keyframe),
        "interpolated": None if is_keyframe is None else _pool(per_frame, ~is_keyframe),
    }


def mean_scores(name: str, scores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Scores of a data set: the mean over its videos, each counting the same.

    Args:
        name: of the data set or the model.
        scores: what ``score_video`` gave for each video.

    Returns:
        The same form; ``num_frames`` is the sum. A video in which a set or measure is missing is left out of its mean.

    Raises:
        ConfigError: if there are no videos.
    """
    if not scores:
        raise ConfigError(f"{name}: a mean needs at least one scored video")
    return {"name": name} | {key: _mean([s[key] for s in scores]) for key in ("all", "keyframes", "interpolated")}


def score_rows(scores: Mapping[str, Any]) -> list[dict[str, Scalar]]:
    """Scores as flat rows for a table or a result file, one for each set of frames that has any."""
    return [
        {"name": scores["name"], "frames": key} | scores[key]
        for key in ("all", "keyframes", "interpolated")
        if scores[key] is not None
    ]


def quality_table(
    real: Frames,
    candidates: Mapping[str, Frames],
    *,
    keyframe_masks: Mapping[str, Sequence[bool]] | None = None,
    before: NDArray[np.uint8] | None = None,
    labels: Sequence[NDArray[np.integer[Any]]] | None = None,
    mean_colour: MeanColourFloor | None = None,
    with_vmaf: bool = True,
    points: PointIds | None = None,
    forward_backward: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Scores of all candidates on one video, beside the real video and the floors.

    The real video's row is for its warping error: what a perfect model would have. Mind that blur lowers that error, so
    that a value below the real one is no merit. A model that does not beat the two floors has not learnt.

    Args:
        real: the T real frames, without the given ones.
        candidates: T frames of each, by name, such as teacher and student.
        keyframe_masks: for part-time candidates, which of their frames were synthesised.
        before: the real frame before the first one; adds the previous-frame floor.
        labels: T label maps, (H, W); together with ``mean_colour`` they add the mean-colour floor.
        mean_colour: fitted on training data.
        with_vmaf: also run VMAF.
        points: T maps of point ids, (H, W), where the data set has them.
        forward_backward: of the candidates that were rolled out there and back.

    Returns:
        What ``score_video`` gives for the real video, the floors and each candidate, in this order. Average several
        videos with ``mean_scores``, flatten with ``score_rows``.

    Raises:
        ConfigError: if keyframe marks belong to no candidate, a candidate has the name of a floor, or only one of
            ``labels`` and ``mean_colour`` is given.
        ShapeError: if counts or sizes disagree.
    """
    masks = dict(keyframe_masks or {})
    if unknown := masks.keys() - candidates.keys():
        raise ConfigError(f"keyframe marks for {sorted(unknown)}, which are no candidates ({sorted(candidates)})")
    if (labels is None) != (mean_colour is None):
        raise ConfigError("the mean-colour floor needs both labels and a fitted MeanColourFloor")
    videos: dict[str, Frames] = {REAL: real}
    if labels is not None and mean_colour is not None:
        videos[MEAN_COLOUR] = [mean_colour.paint(x) for x in labels]
    if before is not None:
        videos[PREVIOUS_FRAME] = previous_frame_floor(real, before)
    if taken := videos.keys() & candidates.keys():
        raise ConfigError(f"a candidate may not be called {sorted(taken)}: a row of this table has that name")
    motion = flows_and_masks(real)
    return [
        score_video(
            name,
            frames,
            real,
            keyframe_mask=masks.get(name),
            flows=motion,
            with_vmaf=with_vmaf,
            points=points,
            forward_backward=(forward_backward or {}).get(name),
        )
        for name, frames in (videos | dict(candidates)).items()
    ]


def _score_frames(frames: Frames, real: Frames, motion: Motion | None, with_vmaf: bool) -> dict[str, NDArray[Any]]:
    """Every measure as one value a frame, NaN where a frame has none."""
    likeness = _likeness(frames, real, with_vmaf)
    motion = flows_and_masks(real) if motion is None else motion
    first = np.full(1, np.nan)
    return likeness | {
        "warping_error": np.concatenate([first, warping_errors(frames, *motion)]),
        "flicker": np.concatenate([first, flickers(frames, real)]),
    }


def _likeness(frames: Frames, reference: Frames, with_vmaf: bool) -> dict[str, NDArray[Any]]:
    """The measures that need no motion, one value a frame."""
    pairs = list(aligned(frames, reference))
    return {
        "psnr_db": np.array([psnr(a, b) for a, b in pairs]),
        "ssim": np.array([ssim(a, b) for a, b in pairs]),
        "vmaf": np.array(vmaf(frames, reference).per_frame if with_vmaf else np.full(len(pairs), np.nan)),
    }


def _pool(per_frame: Mapping[str, NDArray[np.float64]], chosen: NDArray[np.bool_]) -> Scores | None:
    """Means over the chosen frames; None if there are none."""
    if not chosen.any():
        return None
    scores: Scores = {"num_frames": int(chosen.sum())}
    for key, values in per_frame.items():
        if not key.endswith("vmaf"):
            scores[key] = _none_for_nan(nan_mean(values[chosen]))
            continue
        pooled = None if np.isnan(values[chosen]).any() else pool_vmaf(values[chosen])
        scores[key] = None if pooled is None else pooled.harmonic_mean
        if key == "vmaf":
            scores["vmaf_p5"] = None if pooled is None else pooled.percentile_5
    return scores


def _mean(scores: Sequence[Scores | None]) -> Scores | None:
    present = [s for s in scores if s is not None]
    if not present:
        return None
    mean: Scores = {"num_frames": sum(int(s["num_frames"] or 0) for s in present)}
    for key in [key for key in MEASURES | TEACHER_MEASURES | WORLD_MEASURES if key in present[0]]:
        mean[key] = _none_for_nan(nan_mean(np.array([math.nan if s[key] is None else s[key] for s in present], float)))
    return mean


def _none_for_nan(value: float) -> float | None:
    return None if math.isnan(value) else value
