"""Unprojections of posed RGB-D video: do painted colours land where they belong, and does motion give the given poses?

``python -m benchmarks.unprojection --data DIR`` takes a data set with depth and camera poses. A sequence that goes on
in the part for testing is joined: its end may see again what its start saw.
"""

from __future__ import annotations

import json as json_format
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro
from numpy.typing import NDArray

from benchmarks.results import BenchmarkResult, Row, Scalar, format_table, write_result
from fastv2v.data.cameras import Float
from fastv2v.data.images import read_image
from fastv2v.data.painter import empty_world, paint, render
from fastv2v.data.registration import PointRegister, PosedDepth
from fastv2v.data.sequences import by_number
from fastv2v.data.sfm import Reconstruction, SfmConfig, find_poses
from fastv2v.data.unproject import UnprojectConfig, find_videos, posed_frames
from fastv2v.errors import DataError, FastV2VError

COLUMNS = {
    "name": "what",
    "frames": "frames",
    "value": "value",
    "beside": "beside it",
    "wanted": "wanted",
    "met": "met",
}
README_UNMOVED, README_WARPED = 15.0, 6.2
"""What the data's own notes measured, frame 0 into frame 10, in 8-bit levels."""


class Posed(NamedTuple):
    """One frame of the joined sequence."""

    stem: str
    path: Path
    depth: PosedDepth


def joined_sequence(root: Path, config: UnprojectConfig) -> list[Posed]:
    """The frames of the first sequence, of all phases, in order of their names, those with depth and pose.

    Raises:
        DataError: as ``find_videos`` and ``posed_frames``.
    """
    videos = find_videos(root, config.phases)
    same = [video for video in videos if video.name == videos[0].name]
    frames = [
        Posed(stem, path, depth)
        for video in same
        for (stem, path), depth in zip(video.frames.items(), posed_frames(root, video, config), strict=True)
        if depth is not None
    ]
    return sorted(frames, key=lambda frame: by_number(frame.stem))


class Shown(NamedTuple):
    """How one frame fits what earlier ones painted; differences are mean grey levels, 8-bit."""

    stem: str
    """Its name."""
    first_moved: float
    """Difference from the first frame, painted on its points."""
    first_unmoved: float
    """Difference from the first frame left where it was, over the same pixels."""
    painted: float
    """Share of pixels that earlier frames have painted."""
    by_age: dict[int, tuple[int, float, float]]
    """Of the pixels painted so many frames before: how many, and the sums of their differences from the painted colour
    and from the same pixel of the frame that painted it."""


AGES: tuple[tuple[int, int], ...] = ((1, 1), (2, 4), (5, 9), (10, 19), (20, 10**9))
"""Frames since a point was painted, first and last of each row."""


def mean_differences(shown: Iterable[Shown], ages: tuple[int, int] = (1, 10**9)) -> tuple[int, float, float]:
    """Over the pixels that were painted so many frames before, all frames together.

    Args:
        shown: as from ``played``.
        ages: first and last number of frames since.

    Returns:
        Number of pixels; their mean difference from the painted colours, and the same unmoved; NaN for none.
    """
    found = [values for frame in shown for age, values in frame.by_age.items() if ages[0] <= age <= ages[1]]
    count, off, unmoved = (sum(column) for column in zip(*found, strict=True)) if found else (0, 0.0, 0.0)
    return (count, off / count, unmoved / count) if count else (0, float("nan"), float("nan"))


def picture(path: Path) -> NDArray[np.float32]:
    """A frame as the painter takes it, (3, H, W) in [-1, 1]."""
    return (read_image(path).astype(np.float32) / 127.5 - 1).transpose(2, 0, 1)


def grey(frame: NDArray[np.float32]) -> NDArray[np.float32]:
    """Grey levels (H, W) of a frame (3, H, W) in [-1, 1]; differences of two are 8-bit levels."""
    weights = np.array((0.299, 0.587, 0.114), np.float32)
    return np.asarray(np.tensordot(weights, frame, 1) * 127.5, np.float32)


def difference(a: NDArray[np.float32], b: NDArray[np.float32], mask: NDArray[np.bool_]) -> float:
    """Mean grey-level difference of two frames where a mask says so, 8-bit levels."""
    return float(np.abs(grey(a) - grey(b))[mask].mean()) if mask.any() else float("nan")


def played(frames: list[Posed], config: UnprojectConfig) -> Iterator[Shown]:
    """Play the sequence with its real frames; every frame but the first is compared with what was painted."""
    points = PointRegister(config.registration)
    first_ids = points.add(frames[0].depth)
    first = picture(frames[0].path)
    world = only_first = paint(empty_world(), first, first_ids)
    greys = [grey(first)]
    painter = np.zeros(len(world.seen), np.int64)  # which frame gave each point its colour
    for number, frame in enumerate(frames[1:], 1):
        ids, now = points.add(frame.depth), picture(frame.path)
        moved, guidance = render(only_first, ids), render(world, ids)
        seen, painted = moved[3] > 0, guidance[3] > 0
        greys.append(grey(now))
        places = np.flatnonzero(painted)
        by = painter[ids.ravel()[places]]
        here = greys[-1].ravel()[places]
        off = np.abs(grey(guidance[:3]).ravel()[places] - here)
        unmoved = np.empty_like(off)
        for source in np.unique(by):
            unmoved[by == source] = np.abs(greys[source].ravel()[places] - here)[by == source]
        by_age = {
            number - int(source): (int(which.sum()), float(off[which].sum()), float(unmoved[which].sum()))
            for source in np.unique(by)
            for which in [by == source]
        }
        yield Shown(
            frame.stem,
            difference(moved[:3], now, seen),
            difference(first, now, seen),
            float(painted.mean()),
            by_age,
        )
        world = paint(world, now, ids)
        # Points are numbered by first appearance, so that what is new has the highest ids.
        painter = np.concatenate([painter, np.full(len(world.seen) - len(painter), number)])


def alignment(found: Mapping[str, Float], given: Mapping[str, Float]) -> tuple[float, float, float]:
    """How far poses are off after the best similarity: rotation from the rotations, then scale and shift.

    Args:
        found: camera-to-world by stem.
        given: the true ones.

    Returns:
        Root mean square distance of the positions, in the unit of ``given``; the same of the given positions from their
        middle; the median angle between rotations, in degrees.

    Raises:
        DataError: if fewer than three frames have both.
    """
    both = sorted(set(found) & set(given))
    if len(both) < 3:
        raise DataError(f"{len(both)} frames have a found and a given pose; at least 3 are needed to compare them")
    a, b = (np.stack([poses[stem] for stem in both]) for poses in (found, given))
    left, _, right = np.linalg.svd((b[:, :3, :3] @ a[:, :3, :3].transpose(0, 2, 1)).sum(0))
    rotation = left @ np.diag((1, 1, np.linalg.det(left @ right))) @ right
    there = a[:, :3, 3] @ rotation.T
    there, here = there - there.mean(0), b[:, :3, 3] - b[:, :3, 3].mean(0)
    scale = (there * here).sum() / (there * there).sum()
    off = np.sqrt(((scale * there - here) ** 2).sum(1).mean())
    turned = (rotation @ a[:, :3, :3]).transpose(0, 2, 1) @ b[:, :3, :3]
    angles = np.degrees(np.arccos(np.clip((np.trace(turned, axis1=1, axis2=2) - 1) / 2, -1, 1)))
    return float(off), float(np.sqrt((here**2).sum(1).mean())), float(np.median(angles))


def warp_rows(frames: list[Posed], config: UnprojectConfig, revisit_from: int) -> list[Row]:
    """Painted colours in later frames, and how much of the frames that see the start again is painted."""
    found = list(played(frames, config))
    number = {row.stem: int("".join(filter(str.isdigit, row.stem)) or 0) for row in found}
    start = int("".join(filter(str.isdigit, frames[0].stem)) or 0)
    near = [row for row in found if 8 <= number[row.stem] - start <= 12] or found[:1]
    warped = float(np.mean([row.first_moved for row in near]))
    unmoved = float(np.mean([row.first_unmoved for row in near]))
    rows: list[Row] = [
        {
            "name": "first frame into the ones about 10 later, grey levels",
            "frames": ", ".join(row.stem for row in near),
            "value": warped,
            "beside": f"{unmoved:.1f} left where it was",
            "wanted": f"{README_UNMOVED / README_WARPED:.2f} times less",
            "met": unmoved >= warped * README_UNMOVED / README_WARPED,
        }
    ]
    late = [row for row in found if number[row.stem] >= revisit_from]
    parts = {"all frames, painted": found, f"frames from {revisit_from} on, painted": late}
    for name, part in parts.items():
        if part:
            shares = [row.painted for row in part]
            _, off, left = mean_differences(part)
            row: dict[str, Scalar] = {"name": name, "frames": f"{len(part)}", "value": float(np.mean(shares))}
            row |= {"beside": f"{min(shares):.2f} at least; {off:.1f} grey levels off, {left:.1f} unmoved"}
            rows.append(row | ({"wanted": "0.5 in each", "met": min(shares) >= 0.5} if part is late else {}))
    total = mean_differences(found)[0]
    for first, last in AGES:
        count, off, left = mean_differences(found, (first, last))
        if count:
            age = f"{first}" if first == last else f"{first} to {last}" if last < 10**9 else f"{first} or more"
            row = {"name": f"painted {age} frames before, grey levels off", "frames": f"{len(found)}", "value": off}
            rows.append(row | {"beside": f"{left:.1f} unmoved, {count / total:.0%} of these pixels"})
    if not late:
        logging.getLogger(__name__).warning("there is no frame from %d on: nothing sees the start again", revisit_from)
    return rows


def variant_rows(data: Path, config: UnprojectConfig) -> list[Row]:
    """How far painted colours are off with other settings: every pixel a point of its own, and another camera."""
    own = replace(config, registration=replace(config.registration, share_ids=not config.registration.share_ids))
    variants = {"every pixel without a point makes a new one (share_ids off), grey levels off": own}
    if config.colour_focal is not None:
        variants["without colour_focal, grey levels off"] = replace(
            config, colour_focal=None, colour_shift=(0.0, 0.0, 0.0)
        )
    rows: list[Row] = []
    for name, variant in variants.items():
        found = list(played(joined_sequence(data, variant), variant))
        _, off, left = mean_differences(found)
        row: dict[str, Scalar] = {"name": name, "frames": f"{len(found)}", "value": off}
        rows.append(row | {"beside": f"{left:.1f} unmoved, {np.mean([shown.painted for shown in found]):.0%} painted"})
    return rows


def pose_rows(frames: list[Posed], config: SfmConfig) -> list[Row]:
    """Structure from motion on the same frames, beside the given poses."""
    found: Reconstruction = find_poses({frame.stem: frame.path for frame in frames}, config)
    given = {frame.stem: frame.depth.camera_to_world for frame in frames}
    off, reach, angle = alignment(found.poses, given)
    registered = len(found.poses) / len(frames)
    return [
        {
            "name": "poses found by structure from motion",
            "frames": f"{len(found.poses)} of {len(frames)}",
            "value": registered,
            "beside": f"{found.num_points} points, {found.error:.2f} pixels off",
            "wanted": f"{config.min_registered:g}",
            "met": registered >= config.min_registered,
        },
        {
            "name": "their positions off, cm",
            "frames": f"{len(found.poses)}",
            "value": 100 * off,
            "beside": f"{100 * reach:.1f} from their middle",
        },
        {
            "name": "their rotations off, degrees (median)",
            "frames": f"{len(found.poses)}",
            "value": angle,
            "beside": f"focal length {found.camera.intrinsics[0, 0]:.0f}, k {found.camera.radial:.3f}",
        },
    ]


def main(
    *,
    data: Path,
    colour_focal: float | None = None,
    colour_shift: tuple[float, float, float] = (0.0, 0.0, 0.0),
    revisit_from: int = 160,
    variants: bool = True,
    sfm: bool = True,
    threads: int = 2,
    json: Path | None = None,
) -> None:
    """Measure unprojections from depth and pose and print a table, then one line of JSON.

    Args:
        data: data set with depth maps and camera poses.
        colour_focal: focal length of the colour camera, where it is not the depth sensor's.
        colour_shift: where the colour camera is seen from the depth sensor, metres.
        revisit_from: number of the first frame that sees the start again.
        variants: also play the sequence with every pixel a point of its own and, where ``colour_focal`` is given,
            without it.
        sfm: also find the poses from plain frames (extra ``world``; minutes).
        threads: of structure from motion.
        json: result file to write.
    """
    config = UnprojectConfig(source="depth", colour_focal=colour_focal, colour_shift=colour_shift)
    frames = joined_sequence(data, config)
    rows = warp_rows(frames, config, revisit_from)
    if variants:
        rows += variant_rows(data, config)
    if sfm:
        rows += pose_rows(frames, replace(config.sfm, num_threads=threads))
    result = BenchmarkResult(
        suite="unprojection",
        rows=tuple(rows),
        device="cpu",
        threads=threads,
        precision="fp64 geometry, fp32 colours",
        repeats=1,
        settings={
            "data": data.name,
            "frames": len(frames),
            "colour_focal": colour_focal,
            "colour_shift": list(colour_shift),
            "revisit_from": revisit_from,
        },
    )
    print(format_table(result.rows, COLUMNS))
    if json is not None:
        write_result(json, result)
    print(json_format.dumps(result.to_dict()))
    if failures := [str(row["name"]) for row in rows if row.get("met") is False]:
        print(f"benchmarks.unprojection: fell short: {'; '.join(failures)}", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s %(message)s")
    try:
        tyro.cli(main)
    except FastV2VError as error:
        print(f"benchmarks.unprojection: {error}", file=sys.stderr)
        raise SystemExit(2) from error
