"""What a generator is given for each frame, and how it is encoded. Torch-free, so that deployments share it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fastv2v.data.face import FaceConfig
from fastv2v.data.painter import GUIDANCE_CHANNELS
from fastv2v.data.pose import PoseConfig, pose_to_float
from fastv2v.errors import ConfigError, DataError, ShapeError

Encoder = Literal["labels", "maps", "rgb", "face", "pose"]
"""What the channels of a condition show; ``maps``: something else, known to whoever makes them."""

_RGB: Final = 3

MAX_GUIDANCE_LEVELS: Final = 6
"""Levels an unprojection may have; the coarsest is 1/32 of the frame."""


@dataclass(frozen=True, kw_only=True)
class ConditionSpec:
    """How the condition of one frame is encoded into channels. Written into every checkpoint and bundle."""

    kind: Literal["labels", "maps"] = "labels"
    """``labels``: one-hot class ids. ``maps``: channels used as they are (edges, poses, RGB)."""
    class_names: tuple[str, ...] = ()
    """Names of the label classes, in id order (``labels`` only)."""
    map_channels: int = 0
    """Number of channels (``maps`` only)."""
    use_instances: bool = False
    """Append one channel with the borders of the instance map."""
    ignore_id: int | None = None
    """A label id that becomes the all-zero vector instead of an error, for example 255."""
    encoder: Encoder | None = None
    """What the channels show. ``None``: ``face`` or ``pose`` where one of these is given, ``rgb`` for three channels,
    else as ``kind``."""
    face: FaceConfig | None = None
    """How face maps are drawn (encoder ``face`` only, where ``None`` is the default drawing)."""
    pose: PoseConfig | None = None
    """How pose maps are drawn (encoder ``pose`` only, where ``None`` is the default drawing). Random drops belong to
    training and are left out here."""
    guidance_levels: int = 0
    """Levels of guidance, 4 channels each (red, green, blue, mask), behind all others. Encoders leave these channels 0:
    whoever rolls out renders the painted world into them."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", tuple(self.class_names))
        self._settle_encoder()
        if self.kind == "labels" and not self.class_names:
            raise ConfigError("a label condition needs at least one class name")
        if self.ignore_id is not None and self.ignore_id < 0:
            raise ConfigError(f"ignore_id must be 0 or more, as label maps hold no negative ids; got {self.ignore_id}")
        if not 0 <= self.guidance_levels <= MAX_GUIDANCE_LEVELS:
            raise ConfigError(f"guidance_levels is 0 to {MAX_GUIDANCE_LEVELS}, got {self.guidance_levels}")
        if self.kind == "maps" and self.map_channels < 1:
            raise ConfigError(f"a map condition needs map_channels of at least 1, got {self.map_channels}")
        if self.kind == "maps" and self.use_instances:
            raise ConfigError("instance borders go with label conditions; set use_instances to False for maps")

    def _settle_encoder(self) -> None:
        """Fill in what follows from the rest, and refuse what contradicts it."""
        encoder = self.encoder
        if encoder is None:
            encoder = "face" if self.face is not None else "pose" if self.pose is not None else self.kind
            encoder = "rgb" if encoder == "maps" and self.map_channels == _RGB else encoder
        if encoder not in get_args(Encoder):
            raise ConfigError(f"unknown encoder '{encoder}'; there are {', '.join(get_args(Encoder))}")
        if (encoder == "labels") != (self.kind == "labels"):
            raise ConfigError(f"the encoder '{encoder}' does not go with a condition of kind '{self.kind}'")
        face = self.face or FaceConfig() if encoder == "face" else self.face
        pose = self.pose or PoseConfig() if encoder == "pose" else self.pose
        if (face is not None and encoder != "face") or (pose is not None and encoder != "pose"):
            raise ConfigError(f"face and pose settings go with their own encoders, not with '{encoder}'")
        drawn = face.channels if face is not None else pose.channels if pose is not None else _RGB
        if encoder in ("rgb", "face", "pose") and self.map_channels != drawn:
            raise ConfigError(
                f"the encoder '{encoder}' makes {drawn} channels as it is set, and map_channels is {self.map_channels}"
            )
        object.__setattr__(self, "encoder", encoder)
        object.__setattr__(self, "face", face)
        object.__setattr__(self, "pose", None if pose is None else replace(pose, random_drop=0.0, drop_per="clip"))

    @property
    def num_classes(self) -> int:
        """L: number of label classes, 0 for maps."""
        return len(self.class_names)

    @property
    def channels(self) -> int:
        """C: channels of one encoded condition, guidance included."""
        return self.given_channels + self.guidance_channels

    @property
    def given_channels(self) -> int:
        """Channels that show what is given for each frame; those of the guidance follow them."""
        return self.map_channels if self.kind == "maps" else self.num_classes + int(self.use_instances)

    @property
    def shown_channels(self) -> tuple[int, ...]:
        """Channels that show a frame already (RGB in [-1, 1]), which a generator may begin from; mostly none."""
        count = 0 if self.face is None else self.face.shown_channels
        return tuple(range(self.given_channels - count, self.given_channels))

    @property
    def guidance_channels(self) -> int:
        """Channels of the guidance, 0 without."""
        return GUIDANCE_CHANNELS * self.guidance_levels

    def describe(self) -> str:
        """What a generator with this condition wants to be given, in a few words, for messages."""
        levels = f"{self.guidance_levels} level{'s' if self.guidance_levels > 1 else ''}"
        return self._describe_given() + (f" and guidance of {levels}" if self.guidance_levels else "")

    def _describe_given(self) -> str:
        if self.face is not None:
            maps = "curves and distances" if self.face.distance_maps else "curves"
            around = " with background edges" if self.face.background == "canny" else ""
            shown = " and a bent frame" if self.face.shown_channels else ""
            return f"face maps ({maps}{around}{shown}, {self.given_channels} channels)"
        if self.pose is not None:
            parts = [("DensePose", self.pose.densepose), ("OpenPose", self.pose.openpose)]
            return f"pose maps ({' and '.join(name for name, used in parts if used)}, {self.given_channels} channels)"
        if self.encoder == "rgb":
            return "colour images"
        if self.kind == "maps":
            return f"maps of {self.given_channels} channels"
        names = ", ".join(self.class_names[:5]) + (", ..." if self.num_classes > 5 else "")
        return f"label maps of {self.num_classes} classes ({names}){' with instances' if self.use_instances else ''}"


def maps_to_float(spec: ConditionSpec, maps: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Turn maps as they are stored and drawn into the channels a generator reads.

    Args:
        spec: what they show.
        maps: (..., H, W, C), 0 to 255.

    Returns:
        (..., C, H, W), contiguous: ``x / 127.5 - 1`` for colours; ``x / 255`` for curves and distances of faces, in
        [0, 1]; as ``pose_to_float`` for poses, in [-1, 1].

    Raises:
        ConfigError: if it is not known how the maps are encoded.
        ShapeError: if they have another number of channels.

    Source:
        Value ranges of vid2vid's data (Wang et al., NeurIPS 2018).
    """
    if spec.encoder in ("labels", "maps"):
        raise ConfigError(f"how stored maps become {spec.describe()} is not known; give the channels themselves")
    if maps.ndim < 3 or maps.shape[-1] != spec.map_channels:
        raise ShapeError(f"expected maps of shape (..., H, W, {spec.map_channels}), got {maps.shape}")
    if spec.pose is not None:
        return np.ascontiguousarray(np.moveaxis(pose_to_float(maps, spec.pose), -1, -3))
    # Bytes are moved, not floats: a third of the time.
    values = np.ascontiguousarray(np.moveaxis(maps, -1, -3)).astype(np.float32)
    curves, colours = np.split(values, [0 if spec.face is None else spec.map_channels - len(spec.shown_channels)], -3)
    curves /= 255
    colours /= 127.5
    colours -= 1
    return values


def check_label_ids(labels: NDArray[np.integer], spec: ConditionSpec, where: str) -> None:
    """Refuse label ids the condition does not know.

    Args:
        labels: ids of any shape.
        spec: the condition they are meant for.
        where: file or frame, for the message.

    Raises:
        DataError: if an id lies outside [0, L) and is not the ignored one.
    """
    unknown = labels >= spec.num_classes
    if spec.ignore_id is not None:
        unknown &= labels != spec.ignore_id
    if (labels < 0).any() or unknown.any():
        bad = int(labels[(labels < 0) | unknown].flat[0])
        raise DataError(
            f"{where}: label id {bad} is out of range, the data set has {spec.num_classes} classes "
            f"(0 to {spec.num_classes - 1}); raise num_classes or set ignore_id to {bad}"
        )


def instance_edges_numpy(instances: NDArray[np.integer]) -> NDArray[np.float32]:
    """Mark the pixels that differ from a 4-neighbour in the instance map.

    Args:
        instances: instance ids, (H, W).

    Returns:
        (H, W) float32 of 0 and 1. Both sides of a border are marked; the image border is none.

    Source:
        The boundary map of pix2pixHD (Wang et al., CVPR 2018), used by vid2vid.
    """
    edges = np.zeros(instances.shape, dtype=bool)
    across = instances[:, 1:] != instances[:, :-1]
    edges[:, 1:] |= across
    edges[:, :-1] |= across
    down = instances[1:] != instances[:-1]
    edges[1:] |= down
    edges[:-1] |= down
    return edges.astype(np.float32)


def encode_condition_numpy(
    spec: ConditionSpec,
    labels: NDArray[np.integer] | None = None,
    instances: NDArray[np.integer] | None = None,
    maps: NDArray[np.float32] | None = None,
    *,
    where: str = "condition",
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Encode the condition of one frame.

    Args:
        spec: what to encode to.
        labels: class ids, (H, W), for label conditions.
        instances: instance ids, (H, W), when the spec uses them.
        maps: channels, (C, H, W), for map conditions.
        where: file or frame, for messages.
        out: (C, H, W) to write into and return, contiguous; a new array by default.

    Returns:
        (C, H, W) float32: one-hot labels, then the instance edge channel; or the maps as they are. Guidance channels
        follow, all 0.

    Raises:
        DataError: if a label id is out of range or a needed map is missing.
        ShapeError: if the sizes disagree.
    """
    if spec.kind == "maps":
        if maps is None or maps.ndim != 3 or maps.shape[0] != spec.map_channels:
            got = "none" if maps is None else str(maps.shape)
            raise ShapeError(f"{where}: expected maps of shape ({spec.map_channels}, H, W), got {got}")
        if out is None and not spec.guidance_levels:
            return np.ascontiguousarray(maps, dtype=np.float32)
        out = np.empty((spec.channels, *maps.shape[1:]), np.float32) if out is None else out
        out[: spec.given_channels] = maps
        out[spec.given_channels :] = 0
        return out
    if labels is None:
        raise DataError(f"{where}: a label map is needed and none was given")
    if labels.ndim != 2:
        raise ShapeError(f"{where}: a label map has shape (H, W), got {labels.shape}")
    check_label_ids(labels, spec, where)
    if spec.use_instances:
        if instances is None:
            raise DataError(f"{where}: an instance map is needed and none was given")
        if instances.shape != labels.shape:
            raise ShapeError(f"{where}: instance map {instances.shape} and label map {labels.shape} differ in size")
    if out is None:
        out = np.zeros((spec.channels, *labels.shape), np.float32)
    else:
        out.fill(0)
    # One write for each pixel, not a comparison with every class.
    ids, pixels = labels.ravel(), np.arange(labels.size)
    if (ignored := ids >= spec.num_classes).any():
        ids, pixels = ids[~ignored], pixels[~ignored]
    out.reshape(spec.channels, -1)[ids, pixels] = 1
    if spec.use_instances and instances is not None:
        out[spec.num_classes] = instance_edges_numpy(instances)
    return out
