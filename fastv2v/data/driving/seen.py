"""Faces and people of a driving video, one frame after the other. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastv2v.data.driving.body import main_person
from fastv2v.data.driving.space import Array
from fastv2v.data.pose import Person, Size
from fastv2v.data.prepare.body import (
    LIMBS,
    BodyConfig,
    BodyFinder,
    limb_axes,
    nearest_limbs,
    part_map,
    to_openpose,
    torso_length,
)
from fastv2v.data.prepare.landmarks import FaceConfig, OnePerson, each_frame_faces
from fastv2v.data.prepare.survey import Frame

_KEYS: Final = ("pose_keypoints_2d", "face_keypoints_2d", "hand_left_keypoints_2d", "hand_right_keypoints_2d")
_AROUND: Final = 3.0
"""How many breadths around its limbs the outline of a person is looked for."""


class SeenPerson(NamedTuple):
    """A person in one frame."""

    person: Person
    """Key points in pixels of the frame."""
    parts: NDArray[np.uint8] | None
    """DensePose map of the frame, or what stands in for it, (H, W, 3); None where none is needed."""


def faces_seen(frames: Iterable[Frame], config: FaceConfig) -> Iterator[Array | None]:
    """The landmarks of one person's face in each frame as it comes, (68, 2) in its pixels; None where it is not found.

    Who comes first by ``config.choose`` is followed; see ``OnePerson`` for what happens when they are lost.

    Raises:
        MissingExtraError: if dlib or its models are not installed.
    """
    person = OnePerson(config.choose)
    for faces in each_frame_faces(frames, config):
        yield person.pick(faces)


def people_seen(frames: Iterable[Frame], config: BodyConfig) -> Iterator[SeenPerson | None]:
    """The person in each frame as it comes; None where nobody is found whose neck is seen.

    Raises:
        MissingExtraError: if mediapipe cannot be run.
        DataError: if it stopped.
    """
    with BodyFinder(config, 1) as finder:
        shapes: list[Size] = []

        def noted() -> Iterator[Frame]:
            for frame in frames:
                shapes[:] = [(frame.shape[0], frame.shape[1])]
                yield frame

        for found in finder.follow(noted()):
            (size,) = shapes
            content = to_openpose(found, 0, size, config.confidence)
            people = [
                Person(*(np.array(one[key], np.float64).reshape(-1, 3) for key in _KEYS)) for one in content["people"]
            ]
            person = main_person(people)
            yield person and SeenPerson(person, part_map(content, found["mask"][0], size, config.min_mask))


def moved_parts(seen: SeenPerson, fitted: Person, size: Size) -> NDArray[np.uint8]:
    """The map of body parts of a driver, carried along with every limb to the fitted body.

    Args:
        seen: the driver, with a map of parts.
        fitted: the body it became.
        size: (height, width) of the frame the fitted body is in.

    Returns:
        (H, W, 3): of each pixel what the driver's map holds at the same place of the same limb, outline included.
    """
    out = np.zeros((*size, 3), np.uint8)
    parts = seen.parts
    assert parts is not None, "only people with a map of parts have one to carry"
    own, new = seen.person.body.astype(np.float32), fitted.body.astype(np.float32)
    limbs = [i for i, (_, a, b, _) in enumerate(LIMBS) if min(own[a, 2], own[b, 2], new[a, 2], new[b, 2]) > 0]
    if not limbs:
        return out
    torsos = torso_length(own, (parts.shape[0], parts.shape[1])), torso_length(new, size)
    found = new[new[:, 2] > 0, :2]
    margin = 1.5 * torsos[1]
    left, top = np.maximum(found.min(axis=0) - margin, 0).astype(int)
    right, bottom = np.minimum(found.max(axis=0) + margin, np.array(size[::-1])).astype(int)
    rows, columns = (grid.ravel() for grid in np.mgrid[top:bottom, left:right])
    pixels = np.stack([columns, rows], axis=1).astype(np.float32)
    best, along, across, distance = nearest_limbs(new, limbs, torsos[1], pixels)
    for limb in limbs:
        here = (best == limb) & (distance < _AROUND)
        origin, axis, long, broad = limb_axes(own, limb, torsos[0])
        source = origin + along[here, None] * long * axis + across[here, None] * broad * np.array([-axis[1], axis[0]])
        x, y = np.rint(source).astype(int).T
        is_in = (x >= 0) & (y >= 0) & (x < parts.shape[1]) & (y < parts.shape[0])
        out[rows[here][is_in], columns[here][is_in]] = parts[y[is_in], x[is_in]]
    return out
