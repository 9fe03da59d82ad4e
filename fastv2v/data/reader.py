"""Reading the frames of a data set with their maps: decoded or drawn, checked, scaled, and remembered. Torch-free."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastv2v.data.conditions import check_label_ids
from fastv2v.data.face import CropBox, check_in_frame, crop_padded, draw_face, read_landmarks
from fastv2v.data.images import ArrayCache, read_bytes, read_flow, read_image, read_label, read_planes
from fastv2v.data.modalities import MODALITIES
from fastv2v.data.pose import (
    PERSON_SPLITS,
    Person,
    PoseDrop,
    check_people_in_frame,
    draw_openpose,
    prepare_densepose,
    read_openpose,
)
from fastv2v.data.sequences import face_box
from fastv2v.data.transforms import Geometry, Size, crop_and_flip, resize, take_points
from fastv2v.data.unprojection import read_unprojection
from fastv2v.errors import DataError

if TYPE_CHECKING:
    from fastv2v.data.folder import VideoFolder

logger = logging.getLogger(__name__)

_POINTS_LOOKED_AT = 16
"""After so many frames, or all, it is said how many show no point of the world."""
_DRAWN = ("keypoints", "densepose", "openpose")
"""What makes the channels of ``maps``, in their order."""


def points_key(level: int) -> str:
    """Under which name point ids of a level are given by ``FrameReader.read``."""
    return f"points{level}"


class FrameReader:
    """Reads frames with their maps, checks them, and keeps what was used last.

    Kept are scaled images and drawn maps, or those of the file's size where the scale changes from clip to clip, so
    that a small data set is decoded and drawn once. Each process has its own.

    Faces are cut out of their frames before anything else: one box for each sequence, placed by the landmarks of its
    first frame, whichever part of it is read.
    """

    def __init__(self, folder: VideoFolder, cache_mb: float = 512) -> None:
        self._folder = folder
        self._cache = ArrayCache(cache_mb)
        self._sizes: dict[int, tuple[Path, Size]] = {}
        self._boxes: dict[int, CropBox] = {}
        self._last_frame: tuple[Path, NDArray[np.uint8]] | None = None
        self._shows_points: dict[tuple[int, int], bool] = {}
        self.warns = True
        """Whether it says, once, how many frames show no point of the world; of many workers one should."""

    def image_size(self, sequence: int, frame: int = 0) -> Size:
        """(height, width) that the geometry of a sequence starts from: that of its images, or of the box of its face.

        ``frame`` is read where no image of the sequence was read before.
        """
        if self._folder.config.condition == "face":
            box = self._box(sequence, frame)
            return box.bottom - box.top, box.right - box.left
        return self._frame_size(sequence, frame)

    def read(
        self,
        sequence: int,
        indices: Sequence[int],
        geometry: Geometry,
        flip: bool = False,
        *,
        drops: Sequence[PoseDrop] | None = None,
    ) -> dict[str, NDArray[Any]]:
        """Read some frames of a sequence.

        Args:
            sequence: its position in the folder.
            indices: which frames, T of them.
            geometry: what is done to every image and map.
            flip: mirror them.
            drops: what is left out of the pose of each frame; T of them.

        Returns:
            ``frames`` (T, H, W, 3) uint8 and, as the data set has them, ``labels`` and ``instances`` (T, H, W)
            integers, ``maps`` (T, H, W, C) uint8, and, where the frames are neighbours, ``flow`` (T-1, H, W, 2)
            float32: entry t from frame t+1 to frame t. Of each level k of guidance, point ids under ``points_key(k)``,
            (T, ceil(H / 2^k), ceil(W / 2^k)) int32, all -1 where a frame has no unprojection.

        Raises:
            DataError: if a file is damaged, differs in size from its neighbours or counterparts, or holds an unknown
                id; or if there is no such frame.
        """
        stacks: dict[str, list[NDArray[Any]]] = {}
        modalities = self._folder.config.modalities
        neighbours = all(b - a == 1 for a, b in itertools.pairwise(indices))
        for position, index in enumerate(indices):
            drop = None if drops is None else drops[position]
            for modality in modalities:
                if modality == "flow" and not (position and neighbours):
                    continue
                if modality == "unprojections":
                    for key, ids in self._points(sequence, index, geometry, flip).items():
                        stacks.setdefault(key, []).append(ids)
                    continue
                image = self._scaled(sequence, modality, index, geometry, drop)
                window = crop_and_flip(geometry, image, MODALITIES[modality].kind, flip=flip)
                stacks.setdefault(modality, []).append(window)
        arrays = {modality: np.stack(images) for modality, images in stacks.items()}
        drawn = [arrays.pop(modality) for modality in _DRAWN if modality in arrays]
        if drawn:
            arrays["maps"] = drawn[0] if len(drawn) == 1 else np.concatenate(drawn, axis=-1)
        return arrays

    def _scaled(
        self, sequence: int, modality: str, frame: int, geometry: Geometry, drop: PoseDrop | None
    ) -> NDArray[Any]:
        kind = MODALITIES[modality].kind
        if drop is not None and drop.changes_key_points and modality == "openpose":  # drawn for this clip alone
            return resize(geometry, self._openpose(sequence, frame, drop), kind)
        keep_raw = self._folder.config.geometry.is_random
        key = (sequence, modality, frame, None if keep_raw else (geometry.resized, geometry.interpolation))
        kept = self._cache.get(key)
        if kept is None:
            raw = self._cropped(sequence, modality, frame)
            kept = self._cache.put(key, raw if keep_raw else resize(geometry, raw, kind))
        scaled = resize(geometry, kept, kind) if keep_raw else kept
        if drop is None or modality != "densepose":
            return scaled
        # Parts are emptied pixel by pixel, so that it may be done after the nearest pixel was taken.
        where = str(self._path(sequence, modality, frame))
        return prepare_densepose(scaled, self._folder.config.pose, where, drop=drop)

    def _points(self, sequence: int, frame: int, geometry: Geometry, flip: bool) -> dict[str, NDArray[np.int32]]:
        """Point ids of each level of guidance."""
        levels = range(self._folder.config.guidance_levels)
        if self._folder.sequences[sequence].files["unprojections"][frame] is None:
            height, width = geometry.size
            return {points_key(k): np.full((-(-height >> k), -(-width >> k)), -1, np.int32) for k in levels}
        stored = self._stored_points(sequence, frame)
        return {points_key(k): take_points(geometry, stored, k, flip=flip) for k in levels}

    def _stored_points(self, sequence: int, frame: int) -> list[NDArray[np.int32]]:
        """All levels of a file; each is kept on its own, and read again together where one is gone."""
        key = (sequence, "unprojections", frame)
        sizes = self._cache.get(key)
        kept = [self._cache.get((*key, level)) for level in range(0 if sizes is None else len(sizes))]
        levels = [level for level in kept if level is not None]
        if sizes is not None and len(levels) == len(sizes):
            return levels
        path = self._path(sequence, "unprojections", frame)
        stored = read_unprojection(path, self._frame_size(sequence, frame))
        if len(stored) < self._folder.config.guidance_levels:
            raise DataError(
                f"{path} has {len(stored)} levels and guidance_levels is {self._folder.config.guidance_levels}; ask "
                "for fewer, or make it again: fastv2v unproject --levels"
            )
        self._cache.put(key, np.array([level.shape for level in stored]))
        if self.warns:
            self._count_points(sequence, frame, stored[0])
        return [self._cache.put((*key, k), level) for k, level in enumerate(stored)]

    def _count_points(self, sequence: int, frame: int, ids: NDArray[np.int32]) -> None:
        """Warn, once, of files that guide nothing."""
        seen = self._shows_points
        seen[sequence, frame] = bool((ids >= 0).any())
        files = itertools.chain.from_iterable(s.files["unprojections"] for s in self._folder.sequences)
        if len(seen) < min(_POINTS_LOOKED_AT, sum(path is not None for path in files)):
            return
        self.warns = False
        if empty := [place for place, shows in seen.items() if not shows]:
            logger.warning(
                "%s: %d of the first %d unprojections that were read hold no point, and their frames get no guidance: "
                "%s%s; make them again: fastv2v unproject",
                self._folder.config.root,
                len(empty),
                len(seen),
                self._path(empty[0][0], "unprojections", empty[0][1]),
                ", ..." if len(empty) > 1 else "",
            )

    def _cropped(self, sequence: int, modality: str, frame: int) -> NDArray[Any]:
        whole = self._whole(sequence, modality, frame)
        return crop_padded(whole, self._box(sequence, frame)) if self._folder.config.condition == "face" else whole

    def _whole(self, sequence: int, modality: str, frame: int) -> NDArray[Any]:
        """One file, decoded or drawn in the pixels of the frame."""
        if modality == "frames":
            return self._frame(sequence, frame)
        if modality == "keypoints":
            return self._face(sequence, frame)
        if modality == "openpose":
            return self._openpose(sequence, frame, None)
        path = self._path(sequence, modality, frame)
        if modality == "flow":
            image: NDArray[Any] = read_flow(path)
        elif modality in ("labels", "instances"):
            image = read_label(path)
        elif modality == "densepose":
            image = read_planes(path)
        else:
            image = read_image(path)
        _check_size(path, image, self._path(sequence, "frames", frame), self._frame_size(sequence, frame))
        if modality == "labels":
            check_label_ids(image, self._folder.spec, str(path))
        return prepare_densepose(image, self._folder.config.pose, str(path)) if modality == "densepose" else image

    def _frame(self, sequence: int, frame: int) -> NDArray[np.uint8]:
        path = self._path(sequence, "frames", frame)
        if self._last_frame is not None and self._last_frame[0] == path:
            return self._last_frame[1]
        image = read_image(path)
        first, size = self._sizes.setdefault(sequence, (path, (image.shape[0], image.shape[1])))
        _check_size(path, image, first, size)
        # The same frame is wanted again: after its size its pixels, and the edges of its background.
        self._last_frame = (path, image)
        return image

    def _face(self, sequence: int, frame: int) -> NDArray[np.uint8]:
        config = self._folder.config.face
        landmarks = self._landmarks(sequence, frame)
        shown = self._frame(sequence, frame) if config.background == "canny" else None
        return draw_face(landmarks, self._frame_size(sequence, frame), config, shown)

    def _openpose(self, sequence: int, frame: int, drop: PoseDrop | None) -> NDArray[np.uint8]:
        people = self._people(sequence, frame)
        return draw_openpose(people, self._frame_size(sequence, frame), self._folder.config.pose, drop=drop)

    def _people(self, sequence: int, frame: int) -> tuple[Person, ...]:
        """Who is in a frame; kept as one array (people, points, 3), so that the bound of the cache holds."""
        key = (sequence, "people", frame)
        kept = self._cache.get(key)
        if kept is None:
            path = self._path(sequence, "openpose", frame)
            people = read_openpose(read_bytes(path, MODALITIES["openpose"].noun), str(path))
            check_people_in_frame(people, self._frame_size(sequence, frame), str(path))
            kept = self._cache.put(key, np.stack([np.concatenate(person) for person in people]))
        return tuple(Person(*np.split(points, PERSON_SPLITS)) for points in kept)

    def _landmarks(self, sequence: int, frame: int) -> NDArray[np.float64]:
        path = self._path(sequence, "keypoints", frame)
        landmarks = read_landmarks(read_bytes(path, MODALITIES["keypoints"].noun), str(path))
        check_in_frame(landmarks, self._frame_size(sequence, frame), str(path))
        return landmarks

    def _box(self, sequence: int, frame: int) -> CropBox:
        if sequence not in self._boxes:
            size = self._frame_size(sequence, frame)
            self._boxes[sequence] = face_box(self._folder.sequences[sequence], size, self._folder.config.face.crop)
        return self._boxes[sequence]

    def _frame_size(self, sequence: int, frame: int) -> Size:
        if sequence not in self._sizes:
            self._frame(sequence, frame)
        return self._sizes[sequence][1]

    def _path(self, sequence: int, modality: str, frame: int) -> Path:
        if not 0 <= sequence < len(self._folder.sequences):
            raise DataError(f"there is no sequence {sequence}; {self._folder.root} has {len(self._folder.sequences)}")
        return self._folder.sequences[sequence].path(modality, frame)


def _check_size(path: Path, image: NDArray[Any], other: Path, size: Size) -> None:
    if image.shape[:2] != size:
        raise DataError(
            f"{path} is {image.shape[1]}x{image.shape[0]} pixels and {other} is {size[1]}x{size[0]}; all images and "
            "maps of a sequence must have the same size: extract or scale them again"
        )
