"""Another person's video drives a bundle: its faces, bodies or pictures become the bundle's conditions.

Runs without torch. All sources are iterators, and with a causal fit nothing is read before it is asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from export.bundle import Manifest
from export.convert import Picture, cover
from export.stream import ConditionMap
from fastv2v.data.classes import bit_palette, colourise
from fastv2v.data.conditions import maps_to_float
from fastv2v.data.driving.body import fit_bodies
from fastv2v.data.driving.config import DrivingConfig
from fastv2v.data.driving.face import fit_faces
from fastv2v.data.driving.profile import DrivingProfile
from fastv2v.data.driving.seen import SeenPerson, faces_seen, moved_parts, people_seen
from fastv2v.data.driving.space import Array
from fastv2v.data.face import draw_face
from fastv2v.data.modalities import MODALITIES
from fastv2v.data.pose import Person, draw_openpose, pose_picture, prepare_densepose
from fastv2v.data.prepare.body import BodyConfig
from fastv2v.data.prepare.edges import draw_edges
from fastv2v.data.prepare.labels import LabelConfig, Segmenter, draw_labels
from fastv2v.data.prepare.landmarks import FaceConfig
from fastv2v.data.prepare.palette import PALETTE_FILE, draw_palette, palette_record
from fastv2v.data.prepare.write import file_digest
from fastv2v.data.transforms import apply_geometry, crop_and_flip
from fastv2v.errors import BundleError, ConfigError, DataError
from fastv2v.run import write_json

log = logging.getLogger(__name__)

DRIVING_FILE: Final = "driving.json"
"""In a bundle: what others need to drive it (``fastv2v.data.driving.profile``)."""

_ENCODERS: Final = {"face": "face", "pose": "pose", "edges": "rgb", "palette": "labels", "labels": "labels"}
_FULL_SCALE: Final = 3.0
_CALM, _NEAR, _FAR = (60, 170, 90), (230, 160, 30), (210, 50, 50)


class Driven(NamedTuple):
    """The condition that a driving frame became."""

    condition: ConditionMap
    """For the stream."""
    shown: Picture
    """The same for people, RGB (H, W, 3)."""
    shape: float | None = None
    """How far face or limbs lie from what was trained: 1 is as far as 99 % of the trained frames; None of others."""
    place: float | None = None
    """The same of where they are."""
    is_held: bool = False
    """Whether nobody was found, so that the frame before stands in."""

    @property
    def reach(self) -> float | None:
        """The larger of both."""
        return None if self.shape is None or self.place is None else max(self.shape, self.place)


def write_driving(profile: DrivingProfile, folder: Path) -> dict[str, Path]:
    """Write what driving needs; gives each file by its path in a bundle.

    Args:
        profile: measured on the training set.
        folder: where the files are put; made where it is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {DRIVING_FILE: folder / DRIVING_FILE}
    write_json(files[DRIVING_FILE], profile.to_json())
    if profile.palette is not None:
        files[PALETTE_FILE] = folder / PALETTE_FILE
        write_json(files[PALETTE_FILE], palette_record(*profile.palette))
    return files


def read_driving(bundle: Path, manifest: Manifest) -> DrivingProfile:
    """What driving needs of a bundle that was opened, and so is known to be whole.

    Args:
        bundle: its folder.
        manifest: its manifest.

    Raises:
        BundleError: if it cannot be driven; the message says what to do.
    """
    if DRIVING_FILE not in manifest.files:
        raise BundleError(
            f"{bundle} has no {DRIVING_FILE}: it was exported by an earlier fastv2v, or from data that were not made "
            "of a video by fastv2v prepare; export it again (fastv2v export), or give --conditions or --data"
        )
    try:
        profile = DrivingProfile.read(Path(bundle) / DRIVING_FILE)
    except DataError as error:
        raise BundleError(str(error)) from error
    geometry, size = profile.geometry(manifest.size), manifest.size
    fits = all(o + s <= r and o >= 0 for o, s, r in zip(geometry.offset, size, geometry.resized, strict=True))
    if manifest.condition.encoder != _ENCODERS[profile.kind] or not fits:
        raise BundleError(f"{bundle / DRIVING_FILE} does not suit the bundle's conditions; export the bundle again")
    return profile


def not_in_pictures(profile: DrivingProfile, manifest: Manifest, *, has_background: bool) -> list[str]:
    """What the generator was trained with and somebody else's pictures do not hold, as sentences for people.

    Args:
        profile: of the bundle.
        manifest: of the bundle.
        has_background: whether a real frame of the trained person is there for what surrounds a face.
    """
    spec, told = manifest.condition, []
    if spec.face is not None and spec.face.background == "canny" and not has_background:
        told.append(
            f"{manifest.name} was trained with edges of the background, and a driver has none of it: it is left black; "
            "give a real frame of the trained person as background"
        )
    if spec.pose is not None and spec.pose.densepose and not profile.prepared:
        told.append(
            f"{manifest.name} was trained on maps of DensePose, and pictures give only a stand-in for them: drive it "
            "by a data set that has DensePose maps, if there is one"
        )
    return told


def drive_by_pictures(
    profile: DrivingProfile,
    manifest: Manifest,
    pictures: Iterable[Picture],
    config: DrivingConfig,
    *,
    face: FaceConfig | None = None,
    body: BodyConfig | None = None,
    labels: LabelConfig | None = None,
    background: Picture | None = None,
) -> Iterator[Driven]:
    """Conditions of any bundle that can be driven, from somebody else's pictures.

    Args:
        profile: of the bundle.
        manifest: of the bundle.
        pictures: of the driver, of one size, one after the other.
        config: how faces and bodies are fitted; ``fit`` is settled.
        face: how faces are found.
        body: how people are found.
        labels: the segmentation network, for a bundle of labels.
        background: as for ``drive_faces``.

    Raises:
        ConfigError: if a bundle of labels is driven without a network.
        DataError: if nobody is found in a whole sequence, or the network gives unknown classes.
        MissingExtraError: if what finds faces or people is not installed.
    """
    if profile.kind == "face":
        return drive_faces(profile, manifest, faces_seen(pictures, face or FaceConfig()), config, background)
    if profile.kind == "pose":
        return drive_bodies(profile, manifest, people_seen(pictures, body or BodyConfig()), config)
    return drive_pictures(profile, manifest, pictures, labels)


def drive_faces(
    profile: DrivingProfile,
    manifest: Manifest,
    landmarks: Iterable[Array | None],
    config: DrivingConfig,
    background: Picture | None = None,
) -> Iterator[Driven]:
    """Conditions of a bundle of faces.

    Args:
        profile: of a bundle of faces.
        manifest: of the bundle.
        landmarks: the driver's of each frame, (68, 2) in its pixels; None where no face is.
        config: how they are fitted; ``fit`` is settled.
        background: a real frame of the trained person, of any size, whose edges surround the face where the bundle was
            trained with edges of the background. None leaves it black.

    Raises:
        DataError: if no face is found in a whole sequence.
    """
    spec = manifest.condition
    assert profile.face is not None and spec.face is not None, "read_driving sees to it"
    frame = None
    if spec.face.background == "canny":
        frame = np.zeros((*profile.size, 3), np.uint8) if background is None else cover(background, profile.size)
    geometry = profile.geometry(manifest.size)
    for fitted, is_held in fit_faces(profile.face, landmarks, config):
        maps = draw_face(fitted.landmarks, profile.size, spec.face, frame)
        maps = apply_geometry(geometry, maps, MODALITIES["keypoints"].kind)
        shown = cv2.merge([maps[..., 0]] * 3).astype(np.uint8)
        yield Driven(ConditionMap(maps=maps_to_float(spec, maps)), shown, fitted.shape, fitted.place, is_held)


def drive_bodies(
    profile: DrivingProfile, manifest: Manifest, people: Iterable[SeenPerson | None], config: DrivingConfig
) -> Iterator[Driven]:
    """Conditions of a bundle of people.

    Args:
        profile: of a bundle of people.
        manifest: of the bundle.
        people: the driver in each frame; None where nobody is.
        config: how they are fitted; ``fit`` is settled.

    Raises:
        DataError: if nobody is found in a whole sequence.
    """
    spec, size = manifest.condition, profile.size
    pose = spec.pose
    assert profile.body is not None and pose is not None, "read_driving sees to it"
    geometry = profile.geometry(manifest.size)
    if config.fit == "sequence":
        people = list(people)
    latest: list[SeenPerson | None] = []

    def persons() -> Iterator[Person | None]:
        for seen in people:
            latest.append(seen)
            yield None if seen is None else seen.person

    fits = fit_bodies(profile.body, size, persons(), config)
    last: Driven | None = None
    for number, (fitted, is_held) in enumerate(fits):
        # A sequence is asked for as a whole first, so that latest then holds all of it.
        seen = latest[number] if config.fit == "sequence" else latest.pop()
        if is_held and last is not None:
            yield last._replace(is_held=True)
            continue
        if not is_held:
            seen = seen or next(one for one in latest if one is not None)
        planes = []
        if pose.densepose:
            # Carried in the size that is wanted: of a larger map most pixels would be thrown away.
            ratio = np.array([geometry.resized[1] / size[1], geometry.resized[0] / size[0], 1])
            scaled = fitted.person._replace(body=fitted.person.body * ratio)
            carried = np.zeros((*geometry.resized, 3), np.uint8)
            carried = carried if seen is None else moved_parts(seen, scaled, geometry.resized)
            parts = prepare_densepose(carried, pose, "driving frame")
            planes.append(crop_and_flip(geometry, parts, MODALITIES["densepose"].kind))
        if pose.openpose:
            drawn = draw_openpose([fitted.person], size, pose)
            planes.append(apply_geometry(geometry, drawn, MODALITIES["openpose"].kind))
        maps = np.concatenate(planes, axis=-1)
        last = Driven(
            ConditionMap(maps=maps_to_float(spec, maps)), pose_picture(maps, pose), fitted.shape, fitted.place
        )
        yield last


def drive_pictures(
    profile: DrivingProfile, manifest: Manifest, pictures: Iterable[Picture], labels: LabelConfig | None = None
) -> Iterator[Driven]:
    """Conditions of a bundle of edges, of a palette, or of labels: what ``fastv2v prepare`` makes of pictures.

    Args:
        profile: of such a bundle.
        manifest: of the bundle.
        pictures: of the driver, of any size; their middle is taken in the proportions of the trained frames.
        labels: names the files of the segmentation network, for a bundle of labels. How it is shown pictures is taken
            from the bundle, where that knows the network.

    Raises:
        ConfigError: if a bundle of labels is driven without its network, or by another one.
        DataError: if the network gives a class that the bundle does not have.
    """
    spec, geometry = manifest.condition, profile.geometry(manifest.size)
    fitted = (cover(picture, profile.size) for picture in pictures)
    if profile.kind == "edges":
        for edges in draw_edges(fitted, profile.edges):
            shown = apply_geometry(geometry, cv2.merge([edges] * 3), MODALITIES["maps"].kind)
            yield Driven(ConditionMap(maps=maps_to_float(spec, shown)), shown)
        return
    if profile.kind == "palette":
        assert profile.palette is not None, "read_driving sees to it"
        drawn = draw_palette(fitted, *profile.palette)
    else:
        network = _same_network(profile, manifest, labels)
        drawn = draw_labels(fitted, Segmenter(network), network)
    colours = bit_palette(spec.num_classes) if manifest.palette is None else np.array(manifest.palette, np.uint8)
    for ids in drawn:
        if (largest := int(ids.max())) >= spec.num_classes:
            raise DataError(f"the network gave class {largest}, and {manifest.name} has {spec.num_classes} classes")
        ids = apply_geometry(geometry, ids, MODALITIES["labels"].kind)
        yield Driven(ConditionMap(labels=ids, instances=ids if spec.use_instances else None), colourise(ids, colours))


def _same_network(profile: DrivingProfile, manifest: Manifest, given: LabelConfig | None) -> LabelConfig:
    """How the network that the labels were prepared with is asked."""
    given, trained = given or LabelConfig(), profile.labels
    if profile.network is None and trained.network is not None:  # torchvision has its weights
        return trained
    is_model = trained.network is None
    path = given.model if is_model else given.weights
    if path is None and not (given.is_named and profile.network is None):
        raise ConfigError(
            f"{manifest.name} takes labels, which a network reads in pictures: name the file its data were prepared "
            f"with (--driving.{'model' if is_model else 'weights'} FILE)"
        )
    if profile.network is None:  # exported by an earlier version, or made of no video
        return given
    assert path is not None
    if file_digest(path) != profile.network:
        raise ConfigError(
            f"{path} is not the file that the data of {manifest.name} were prepared with: its classes could mean "
            "something else; give that one"
        )
    return replace(trained, model=path) if is_model else replace(trained, weights=path)


@dataclass
class ReachLog:
    """How far driven conditions lay outside what was trained, frame by frame."""

    warn_above: float
    """From which distance on a frame is counted as far outside."""
    shapes: list[float] = field(default_factory=list)
    """Distance of face or limbs in each frame."""
    places: list[float] = field(default_factory=list)
    """Distance of where they were."""
    held: int = 0
    """Frames in which nobody was found."""

    def note(self, driven: Driven) -> None:
        """Remember a frame."""
        self.held += driven.is_held
        if driven.shape is not None and driven.place is not None:
            self.shapes.append(driven.shape)
            self.places.append(driven.place)

    @property
    def reaches(self) -> NDArray[np.float64]:
        """The larger distance of each frame."""
        return np.maximum(self.shapes, self.places)

    def to_json(self) -> dict[str, Any]:
        """Summary and every frame, as values that JSON has."""
        record: dict[str, Any] = {
            "unit": "1 is as far from the mean as 99 % of the trained frames",
            "warn_above": self.warn_above,
            "frames": len(self.shapes),
            "held": self.held,
        }
        if len(self.shapes):
            reaches = self.reaches
            record |= {
                "median": round(float(np.median(reaches)), 3),
                "largest": round(float(reaches.max()), 3),
                "largest_at": int(reaches.argmax()),
                "share_above_1": round(float((reaches > 1).mean()), 4),
                "share_above_warning": round(float((reaches > self.warn_above).mean()), 4),
            }
        return record | {"shape": np.round(self.shapes, 3).tolist(), "place": np.round(self.places, 3).tolist()}

    def told(self) -> str:
        """A line for people; empty where nothing was measured."""
        if not len(self.shapes):
            return ""
        reaches = self.reaches
        held = f"; {self.held} frames held, as nobody was found" if self.held else ""
        return (
            f"driving: distance from what was trained {np.median(reaches):.2f} in the median, {reaches.max():.2f} at "
            f"most (frame {reaches.argmax()}); {100 * (reaches > 1).mean():.0f} % of the frames beyond 1, within which "
            f"99 % of the trained ones lie{held}"
        )


def with_bar(driven: Driven, warn_above: float) -> Picture:
    """A condition for people, with a bar below it that shows how far outside it lies: 0 at the left, 3 at the right.

    The bar is green up to 1, amber up to the warning, red beyond; a white tick stands at 1 and at the warning.
    """
    shown = driven.shown
    if driven.reach is None:
        return shown
    height, width = max(8, shown.shape[0] // 24), shown.shape[1]
    bar = np.full((height, width, 3), 40, np.uint8)
    colour = _CALM if driven.reach <= 1 else _NEAR if driven.reach <= warn_above else _FAR
    bar[2:-2, : _column(driven.reach, width)] = colour
    for tick in (1.0, warn_above):
        bar[:, min(_column(tick, width), width - 1)] = 255
    return np.concatenate([shown, bar])


def _column(reach: float, width: int) -> int:
    return min(width, round(width * reach / _FULL_SCALE))
