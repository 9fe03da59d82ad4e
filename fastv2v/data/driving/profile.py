"""What a bundle keeps of the data its generator was trained on, so that others can drive it. Torch-free."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np

from fastv2v.data.driving.body import BodyProfile, main_person
from fastv2v.data.driving.face import FaceProfile
from fastv2v.data.driving.space import Array
from fastv2v.data.face import CropBox, read_landmarks
from fastv2v.data.folder import VideoFolder
from fastv2v.data.images import image_size, read_bytes
from fastv2v.data.modalities import MODALITIES
from fastv2v.data.pose import Person, read_openpose
from fastv2v.data.prepare.edges import EdgeConfig
from fastv2v.data.prepare.labels import LabelConfig
from fastv2v.data.prepare.palette import PALETTE_FILE, Palette, PaletteConfig, read_palette
from fastv2v.data.prepare.write import read_summary
from fastv2v.data.sequences import Sequence, face_box
from fastv2v.data.transforms import Geometry, Size
from fastv2v.errors import ConfigError, DataError

Kind = Literal["face", "pose", "edges", "palette", "labels"]
"""What conditions are made from: those of ``fastv2v prepare``."""

_SCHEMA: Final = 1
_MOST_FRAMES: Final = 4000
_INTERPOLATIONS: Final = ("bicubic", "area")


@dataclass(frozen=True, kw_only=True)
class DrivingProfile:
    """What driving needs besides the bundle itself."""

    kind: Kind
    """What the conditions were made from."""
    size: Size
    """(height, width) of the frames, or of the squares cut around faces, that conditions are drawn in."""
    resized: Size
    """(height, width) they are scaled to."""
    offset: tuple[int, int]
    """(top, left) of what is then cut out, in the bundle's size."""
    interpolation: Literal["bicubic", "area"]
    """How pictures are scaled."""
    prepared: bool
    """Whether ``fastv2v prepare`` made the data set."""
    face: FaceProfile | None = None
    """Of bundles of faces."""
    body: BodyProfile | None = None
    """Of bundles of people."""
    edges: EdgeConfig = field(default_factory=EdgeConfig)
    """Of bundles of edge maps: which edges."""
    labels: LabelConfig = field(default_factory=LabelConfig)
    """Of bundles of labels: how the network is shown pictures, and how its maps are cleaned; without its files."""
    network: str | None = None
    """Of bundles of labels: sha256 of the network's file, or of its weights; None where torchvision has them."""
    palette: tuple[Palette, PaletteConfig] | None = None
    """Of bundles of palettes: the classes and how they are cleaned. Kept in a file of its own, ``palette.json``."""

    def geometry(self, target: Size) -> Geometry:
        """How what is drawn becomes a condition of the bundle's size, ``target``."""
        return Geometry(
            source=self.size,
            resized=self.resized,
            offset=self.offset,
            size=target,
            interpolation=self.interpolation,
        )

    def to_json(self) -> dict[str, Any]:
        """As values that JSON has."""
        return {
            "schema": _SCHEMA,
            "kind": self.kind,
            "size": list(self.size),
            "resized": list(self.resized),
            "offset": list(self.offset),
            "interpolation": self.interpolation,
            "prepared": self.prepared,
            "face": None if self.face is None else self.face.to_json(),
            "body": None if self.body is None else self.body.to_json(),
            "edges": vars(self.edges),
            "labels": vars(self.labels) | {"model": None, "weights": None},
            "network": self.network,
        }

    @classmethod
    def read(cls, path: Path) -> DrivingProfile:
        """Read what ``to_json`` gave, and the palette beside it where there is one.

        Raises:
            DataError: if a file is damaged or of a newer version.
        """
        where = str(path)
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["schema"] != _SCHEMA:
                raise DataError(
                    f"{where}: schema {record['schema']}, and this fastv2v reads {_SCHEMA}; upgrade fastv2v"
                )
            kind, scaled = record["kind"], record["interpolation"]
            sizes = [tuple(int(side) for side in record[key]) for key in ("size", "resized", "offset")]
            if kind not in get_args(Kind) or scaled not in _INTERPOLATIONS or any(len(pair) != 2 for pair in sizes):
                raise DataError(f"{where}: not what driving needs; export the bundle again")
            (height, width), (tall, wide), (top, left) = sizes
            return cls(
                kind=kind,
                size=(height, width),
                resized=(tall, wide),
                offset=(top, left),
                interpolation=scaled,
                prepared=bool(record["prepared"]),
                face=FaceProfile.from_json(record["face"], where) if kind == "face" else None,
                body=BodyProfile.from_json(record["body"], where) if kind == "pose" else None,
                edges=EdgeConfig(**record["edges"]),
                labels=_label_config(record.get("labels", {})),
                network=record.get("network"),
                palette=read_palette(path.with_name(PALETTE_FILE)) if kind == "palette" else None,
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{where}: not what driving needs ({error}); export the bundle again") from error


def measure_profile(folder: VideoFolder, geometry: Geometry) -> DrivingProfile | None:
    """Measure a training set for driving.

    Args:
        folder: its training part, opened as for training.
        geometry: how frames of the longest sequence become conditions of the bundle.

    Returns:
        The profile; None where nothing but the data set itself could make such conditions, as of label maps that
        were not prepared from a video.

    Raises:
        DataError: if key points cannot be read, or are too few.
    """
    root, condition = folder.config.root, folder.config.condition
    request = _request(root)
    kind: Kind | None = {"face": "face", "pose": "pose"}.get(condition, request.get("kind"))  # type: ignore[assignment]
    if kind is None or (kind == "pose" and not folder.config.pose.openpose):
        return None
    face = body = palette = None
    if kind == "face":
        face = FaceProfile.of(np.stack(_landmarks(folder, geometry.source)))
    elif kind == "pose":
        body = BodyProfile.of(_people(folder, geometry.source))
    elif kind == "palette":
        if not (root / PALETTE_FILE).is_file():
            return None  # prepared before palettes were kept
        palette = read_palette(root / PALETTE_FILE)
    return DrivingProfile(
        kind=kind,
        size=geometry.source,
        resized=geometry.resized,
        offset=geometry.offset,
        interpolation=geometry.interpolation,
        prepared=bool(request),
        face=face,
        body=body,
        edges=EdgeConfig(**request["edges"]) if kind == "edges" else EdgeConfig(),
        labels=_label_config(request["labels"]) if kind == "labels" else LabelConfig(),
        network=request["labels"]["model"] or request["labels"].get("weights") if kind == "labels" else None,
        palette=palette,
    )


def _label_config(record: dict[str, Any]) -> LabelConfig:
    """How labels were read, from JSON values, without the files of the network."""
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in record.items()}
    return LabelConfig(**values | {"model": None, "weights": None})


def kind_of(root: Path) -> Kind | None:
    """What a prepared data set was made from; None where its folders must say it."""
    kind = _request(root).get("kind")
    return kind if kind in get_args(Kind) else None


def driving_landmarks(sequence: Sequence) -> list[Array]:
    """Landmarks (68, 2) in pixels of every frame of a sequence that has them."""
    paths = [sequence.path("keypoints", t) for t in range(len(sequence))]
    return [read_landmarks(read_bytes(path, MODALITIES["keypoints"].noun), str(path)) for path in paths]


def driving_people(sequence: Sequence) -> list[Person | None]:
    """The tallest person of every frame of a sequence that has OpenPose files; None where no neck is seen."""
    paths = [sequence.path("openpose", t) for t in range(len(sequence))]
    noun = MODALITIES["openpose"].noun
    return [main_person(read_openpose(read_bytes(path, noun), str(path))) for path in paths]


def _request(root: Path) -> dict[str, Any]:
    """Settings a data set was prepared with; nothing where it was not prepared from a video."""
    summary = read_summary(root)
    return {} if summary is None else dict(summary["request"]["config"])


def _landmarks(folder: VideoFolder, size: Size) -> list[Array]:
    """Landmarks of all frames in pixels of the square that is cut out, as if all squares were of one size."""
    found: list[Array] = []
    for sequence, step in _thinned(folder):
        box = face_box(sequence, image_size(sequence.path("frames", 0)), folder.config.face.crop)
        found += [_moved(points, box, size) for points in driving_landmarks(sequence)[::step]]
    return found


def _people(folder: VideoFolder, size: Size) -> list[Person]:
    """The tallest person of all frames, in pixels of frames of one size."""
    found: list[Person] = []
    for sequence, step in _thinned(folder):
        height, width = image_size(sequence.path("frames", 0))
        factor = np.array([size[1] / width, size[0] / height, 1])
        found += [
            Person(*(points * factor for points in person))
            for person in driving_people(sequence)[::step]
            if person is not None
        ]
    return found


def _thinned(folder: VideoFolder) -> list[tuple[Sequence, int]]:
    """Sequences, and every how many of their frames suffice."""
    step = max(1, sum(folder.lengths) // _MOST_FRAMES)
    return [(sequence, step) for sequence in folder.sequences]


def _moved(points: Array, box: CropBox, size: Size) -> Array:
    scale = np.array([size[1] / (box.right - box.left), size[0] / (box.bottom - box.top)])
    moved: Array = (points - (box.left, box.top)) * scale
    return moved
