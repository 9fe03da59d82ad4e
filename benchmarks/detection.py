"""How far what ``fastv2v prepare`` finds in frames lies from landmarks or key points that came with them.

Faces: the mean over 68 points of their distance, in pixels of the frame. People: the median over all points of the body
that both found, likewise. The frames of a sequence follow each other, as those of a video do.
"""

from __future__ import annotations

import json as json_format
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from benchmarks.results import Row, format_table
from fastv2v.data.face import read_landmarks
from fastv2v.data.folder import FolderConfig, open_folder
from fastv2v.data.images import read_bytes, read_image
from fastv2v.data.pose import PoseConfig, read_openpose
from fastv2v.data.prepare.body import BodyConfig, BodyFinder, to_openpose
from fastv2v.data.prepare.chunks import Piece
from fastv2v.data.prepare.landmarks import FaceConfig, find_faces, follow_one
from fastv2v.data.sequences import Sequence
from fastv2v.errors import ConfigError, FastV2VError

_SURE = 0.1
"""Points that the given file is less sure of are not asked for."""


def face_distances(sequence: Sequence, config: FaceConfig) -> list[float | None]:
    """Mean distance of landmarks in each frame, in pixels; None where no face was found.

    Args:
        sequence: with frames and landmark files.
        config: how to look.
    """
    indices = range(len(sequence))
    frames = [read_image(sequence.path("frames", i)) for i in indices]
    found = follow_one(find_faces(frames, config), config.choose)
    given = [read_landmarks(read_bytes(path, "landmark file"), str(path)) for path in _paths(sequence, "keypoints")]
    return [
        None if own is None else float(np.linalg.norm(own - other, axis=1).mean())
        for own, other in zip(found, given, strict=True)
    ]


def joint_distances(sequence: Sequence, config: BodyConfig) -> list[float | None]:
    """Median distance of the points of the body in each frame, in pixels; None where nobody was found.

    Args:
        sequence: with frames and OpenPose files.
        config: how to look.
    """
    frames = [read_image(sequence.path("frames", i)) for i in range(len(sequence))]
    with BodyFinder(config, 1) as finder:
        found = finder.look(Piece(sequence.name, tuple(range(len(frames)))), frames)
    distances: list[float | None] = []
    for index, (frame, path) in enumerate(zip(frames, _paths(sequence, "openpose"), strict=True)):
        people = to_openpose(found, index, (frame.shape[0], frame.shape[1]), config.confidence)
        given = read_openpose(read_bytes(path, "OpenPose file"), str(path))[0].body
        if not people["people"]:
            distances.append(None)
            continue
        own = np.array(people["people"][0]["pose_keypoints_2d"]).reshape(-1, 3)
        both = (own[:, 2] > 0) & (given[:, 2] > _SURE)
        offsets = np.linalg.norm(own[both, :2] - given[both, :2], axis=1)
        distances.append(float(np.median(offsets)) if both.any() else None)
    return distances


def _paths(sequence: Sequence, modality: str) -> list[Path]:
    return [sequence.path(modality, i) for i in range(len(sequence))]


def detection_benchmark(data: Path, python: Path | None = None) -> list[Row]:
    """One row for each sequence: ``sequence``, ``frames``, ``found``, ``mean_px``, ``median_px``, ``worst_px``.

    Args:
        data: data set of faces or poses, with landmarks or key points of another detector.
        python: a Python that has mediapipe, for poses.

    Raises:
        ConfigError: if it has neither.
        DataError: if it is damaged.
        MissingExtraError: if the detector is not installed.
    """
    if (data / "train_keypoints").is_dir():
        folder = open_folder(FolderConfig(root=data, condition="face"))
        measured = [(s, face_distances(s, FaceConfig())) for s in folder.sequences]
    elif (data / "train_openpose").is_dir():
        folder = open_folder(FolderConfig(root=data, condition="pose", pose=PoseConfig(densepose=False)))
        measured = [(s, joint_distances(s, BodyConfig(python=python))) for s in folder.sequences]
    else:
        raise ConfigError(f"{data}: neither train_keypoints nor train_openpose is there to compare with")
    rows: list[dict[str, Any]] = []
    for sequence, distances in measured:
        known = [value for value in distances if value is not None]
        mean, median, worst = (np.mean(known), np.median(known), max(known)) if known else (None, None, None)
        row = {"sequence": sequence.name, "frames": len(distances), "found": len(known)}
        rows.append(row | {"mean_px": mean, "median_px": median, "worst_px": worst})
    return rows  # type: ignore[return-value]


def main(data: Annotated[Path, tyro.conf.Positional], *, python: Path | None = None) -> None:
    """Find faces or people in the frames of a data set, and print how far they lie from those given.

    Args:
        data: data set of faces or poses.
        python: a Python that has mediapipe, for poses.
    """
    rows = detection_benchmark(data, python)
    print(format_table(rows, ("sequence", "frames", "found", "mean_px", "median_px", "worst_px")))
    print(json_format.dumps({"suite": "detection", "data": str(data), "rows": rows}))


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except FastV2VError as error:
        print(f"benchmarks.detection: {error}", file=sys.stderr)
        raise SystemExit(2) from error
