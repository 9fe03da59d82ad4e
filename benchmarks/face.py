"""Whether a student draws the face it was asked for: on held-out frames, beside floors, measured by dlib's landmarks.

Two things are asked. Inside the face, delivered frames should be nearer to the real ones than the floor, which is the
training frame whose landmarks lie nearest. And landmarks found on delivered frames should be those of the condition;
how far they are on the real frames says what the measure itself is good for. Distances are means over the 68 points, in
distances between the centres of the eyes.
"""

from __future__ import annotations

import json as json_format
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import tyro
from numpy.typing import NDArray

from benchmarks.results import BenchmarkResult, Row, format_table, write_result
from export.bundle import Manifest, load_manifest
from export.runtime import ConditionMap, open_bundle
from fastv2v.data.conditions import maps_to_float
from fastv2v.data.face import part_labels, read_landmarks
from fastv2v.data.folder import FolderConfig, FrameReader, Phase, VideoFolder, open_folder
from fastv2v.data.images import image_size, read_bytes
from fastv2v.data.prepare import landmarks as detector
from fastv2v.data.sequences import face_box
from fastv2v.data.transforms import GeometryConfig, draw_geometry
from fastv2v.errors import ConfigError, DataError
from fastv2v.metrics.image import psnr

Frame = NDArray[np.uint8]
Points = NDArray[np.float64]

_DETECTION_SIDE = 640
_LEFT_EYE, _RIGHT_EYE = slice(36, 42), slice(42, 48)

COLUMNS = {
    "sequence": "sequence",
    "frames": "frames",
    "face_psnr_db": "PSNR in the face dB",
    "floor_psnr_db": "floor dB",
    "gain_db": "gain dB",
    "landmark_error": "landmarks off, eye distances",
    "real_landmark_error": "on real frames",
    "undetected": "no face found",
}
"""Columns of the table."""


@dataclass(frozen=True)
class FaceFrames:
    """A sequence as a bundle sees it."""

    name: str
    """Of the sequence."""
    frames: list[Frame]
    """RGB, (H, W, 3)."""
    points: list[Points]
    """Landmarks in their pixels, (68, 2)."""
    conditions: list[ConditionMap]
    """What the bundle is given."""


def eye_distance(points: Points) -> float:
    """Pixels between the centres of the eyes."""
    return float(np.linalg.norm(points[_LEFT_EYE].mean(axis=0) - points[_RIGHT_EYE].mean(axis=0)))


def landmark_error(found: Points, asked: Points) -> float:
    """Mean distance of 68 points, (68, 2), in eye distances of what was asked for."""
    return float(np.linalg.norm(found - asked, axis=1).mean()) / eye_distance(asked)


def nearest_frame(points: Points, known: Sequence[FaceFrames]) -> Frame:
    """The frame whose landmarks have the least mean distance from these."""
    pairs = [
        (other, frame) for sequence in known for other, frame in zip(sequence.points, sequence.frames, strict=True)
    ]
    distances = [float(np.linalg.norm(other - points, axis=1).mean()) for other, _ in pairs]
    return pairs[int(np.argmin(distances))][1]


def face_psnr_db(frame: Frame, real: Frame, points: Points) -> float:
    """PSNR over the pixels of the face, the upper one mirrored from the jaw included."""
    inside = part_labels(points, (real.shape[0], real.shape[1])) > 0
    if not inside.any():
        raise DataError("the face covers no pixel of the frame; check its landmarks")
    error = float(np.mean((frame[inside].astype(np.float64) - real[inside]) ** 2))
    return 10 * float(np.log10(255**2 / error)) if error else 100.0


def find_landmarks(frame: Frame, near: Points) -> Points | None:
    """Landmarks of the face nearest to a place, looked for without knowing it; None where no face is found.

    Args:
        frame: RGB, (H, W, 3); enlarged before, as the detector needs faces of 80 pixels.
        near: landmarks that say which of several faces is meant, (68, 2).
    """
    scale = max(1.0, _DETECTION_SIDE / min(frame.shape[:2]))
    large = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC).astype(np.uint8)
    faces = detector.find_faces([large], detector.FaceConfig(detection_side=_DETECTION_SIDE))[0]
    # Centres of pixels, as where landmarks are written.
    found = [(face + 0.5) / scale - 0.5 for face in faces]
    return min(found, key=lambda face: float(np.abs(face - near).mean()), default=None)


def read_sequences(data: Path, phase: Phase, manifest: Manifest) -> list[FaceFrames]:
    """All sequences of a part of a data set, at the size of a bundle.

    Raises:
        ConfigError: if the bundle is of another condition.
        DataError: if the data set is damaged or lacks that part.
    """
    face = manifest.condition.face
    if face is None:
        raise ConfigError(f"the bundle {manifest.name} takes {manifest.condition.describe()}; give one of faces")
    folder = open_folder(
        FolderConfig(
            root=data,
            phase=phase,
            condition="face",
            face=face,
            missing="hold",
            geometry=GeometryConfig(mode="exact", size=manifest.size, interpolation="area"),
        )
    )
    reader = FrameReader(folder, cache_mb=0)
    return [_read_one(folder, reader, index, manifest) for index in range(len(folder.sequences))]


def _read_one(folder: VideoFolder, reader: FrameReader, index: int, manifest: Manifest) -> FaceFrames:
    sequence = folder.sequences[index]
    geometry = draw_geometry(folder.config.geometry, reader.image_size(index), None, "test")
    read = reader.read(index, range(len(sequence)), geometry)
    conditions = [ConditionMap(maps=maps) for maps in maps_to_float(manifest.condition, read["maps"])]
    box = face_box(sequence, image_size(sequence.path("frames", 0)), folder.config.face.crop)
    scale = np.array(manifest.size[::-1]) / (box.right - box.left, box.bottom - box.top)
    paths = [sequence.path("keypoints", i) for i in range(len(sequence))]
    raw = [read_landmarks(read_bytes(path, "landmark file"), str(path)) for path in paths]
    points = [(one - (box.left, box.top) + 0.5) * scale - 0.5 for one in raw]
    return FaceFrames(sequence.name, list(read["frames"]), points, conditions)


def face_benchmark(bundle: Path, data: Path, engine: str = "auto") -> tuple[list[Row], Sequence[Frame], FaceFrames]:
    """Stream every held-out sequence from its first real frame, and measure the others.

    Args:
        bundle: of faces.
        data: data set with a part for testing; its training part gives the floor.
        engine: see ``open_bundle``.

    Returns:
        One row for each sequence and, of several, one for all (``gain_db`` is the delivered PSNR over the floor's);
        and what was delivered of the first sequence, with that.

    Raises:
        BundleError: if the bundle cannot run.
        ConfigError: if it is not of faces.
        DataError: if the data set is damaged, or a sequence has no second frame.
        MissingExtraError: if dlib is not installed.
    """
    detector.check_installed()
    manifest = load_manifest(bundle)
    known, held_out = (read_sequences(data, phase, manifest) for phase in ("train", "test"))
    rows: list[dict[str, Any]] = []
    kept: list[list[Frame]] = []
    with open_bundle(bundle, engine=engine) as stream:
        for sequence in held_out:
            stream.restart(sequence.frames[0])
            delivered = [one.frame for one in stream.frames(sequence.conditions)]
            kept.append(delivered)
            rows.append({"sequence": sequence.name} | _measure(sequence, delivered, known))
    if len(rows) > 1:
        rows.append(_mean(rows))
    return rows, kept[0], held_out[0]  # type: ignore[return-value]


def _measure(sequence: FaceFrames, delivered: Sequence[Frame], known: Sequence[FaceFrames]) -> dict[str, Any]:
    """Figures of all frames but the first, which was given."""
    triples = list(zip(delivered, sequence.frames, sequence.points, strict=True))[1:]
    if not triples:
        raise DataError(f"the held-out sequence '{sequence.name}' has one frame, and that is given; hold out more")
    own = [face_psnr_db(frame, real, points) for frame, real, points in triples]
    floor = [face_psnr_db(nearest_frame(points, known), real, points) for _, real, points in triples]
    found, found_on_real = (
        [find_landmarks(picture, points) for picture, points in zip(pictures, sequence.points[1:], strict=True)]
        for pictures in (delivered[1:], sequence.frames[1:])
    )
    return {
        "frames": len(triples),
        "face_psnr_db": float(np.mean(own)),
        "floor_psnr_db": float(np.mean(floor)),
        "gain_db": float(np.mean(own) - np.mean(floor)),
        "psnr_db": float(np.mean([psnr(frame, real) for frame, real, _ in triples])),
        "landmark_error": _mean_error(found, sequence.points[1:]),
        "real_landmark_error": _mean_error(found_on_real, sequence.points[1:]),
        "undetected": sum(points is None for points in found),
    }


def _mean_error(found: Sequence[Points | None], asked: Sequence[Points]) -> float | None:
    errors = [landmark_error(one, other) for one, other in zip(found, asked, strict=True) if one is not None]
    return float(np.mean(errors)) if errors else None


def _mean(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means weighted by frames."""
    counts = [row["frames"] for row in rows]
    total: dict[str, Any] = {"sequence": "all", "frames": sum(counts)}
    for key in rows[0].keys() - total.keys():
        values = [(row[key], count) for row, count in zip(rows, counts, strict=True) if row[key] is not None]
        weights = [1 if key == "undetected" else count for _, count in values]
        mean = float(np.average([value for value, _ in values], weights=weights)) if values else None
        total[key] = sum(value for value, _ in values) if key == "undetected" else mean
    return total


def main(
    bundle: Annotated[Path, tyro.conf.Positional],
    data: Annotated[Path, tyro.conf.Positional],
    *,
    engine: str = "auto",
    json: Path | None = None,
    moving: Path | None = None,
) -> None:
    """Measure a bundle of faces on the held-out part of a data set; print a table, then one line of JSON.

    Args:
        bundle: the bundle's folder.
        data: data set as fastv2v prepare makes it.
        engine: which engine runs it.
        json: result file to write.
        moving: animated WebP to write, of the first held-out sequence: condition, delivered, real.
    """
    rows, delivered, first = face_benchmark(bundle, data, engine)
    print(format_table(rows, COLUMNS))
    print(json_format.dumps({"suite": "face", "bundle": str(bundle), "data": str(data), "rows": rows}))
    if json is not None:
        result = BenchmarkResult(
            suite="face",
            rows=tuple({"name": row["sequence"], **row} for row in rows),
            device="cpu",
            threads=cv2.getNumThreads(),
            precision=f"engine {engine}",
            settings={"bundle": bundle.name, "data": data.name, "size": list(load_manifest(bundle).size)},
        )
        write_result(json, result)
    if moving is not None:
        write_moving(moving, delivered, first)


def write_moving(path: Path, delivered: Sequence[Frame], sequence: FaceFrames, fps: float = 30.0) -> None:
    """Write an animated WebP that repeats for ever: the curves that went in, what was delivered, the real video.

    Args:
        path: file to write.
        delivered: RGB, (H, W, 3) each.
        sequence: what they were made of.
        fps: frames a second.

    Raises:
        DataError: if it cannot be written.
    """
    animation: Any = cv2.Animation()
    animation.frames = [
        np.ascontiguousarray(np.hstack([_curves(condition), frame, real])[..., ::-1])
        for condition, frame, real in zip(sequence.conditions, delivered, sequence.frames, strict=True)
    ]
    animation.durations = [round(1000 / fps)] * len(animation.frames)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwriteanimation(str(path), animation, [cv2.IMWRITE_WEBP_QUALITY, 85]):
        raise DataError(f"{path} cannot be written; give another place")


def _curves(condition: ConditionMap) -> Frame:
    """The curves of a condition, white on black."""
    assert condition.maps is not None  # read_sequences makes it so
    return np.repeat((condition.maps[0] * 255).astype(np.uint8)[..., None], 3, axis=2)


if __name__ == "__main__":
    from fastv2v.errors import FastV2VError

    try:
        tyro.cli(main)
    except FastV2VError as error:
        print(f"benchmarks.face: {error}", file=sys.stderr)
        raise SystemExit(2) from error
