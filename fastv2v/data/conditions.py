"""What a generator is given for each frame, and how it is encoded. Needs numpy only, so deployments share it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fastv2v.errors import ConfigError, DataError, ShapeError


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

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", tuple(self.class_names))
        if self.kind == "labels" and not self.class_names:
            raise ConfigError("a label condition needs at least one class name")
        if self.kind == "maps" and self.map_channels < 1:
            raise ConfigError(f"a map condition needs map_channels of at least 1, got {self.map_channels}")
        if self.kind == "maps" and self.use_instances:
            raise ConfigError("instance borders go with label conditions; set use_instances to False for maps")

    @property
    def num_classes(self) -> int:
        """L: number of label classes, 0 for maps."""
        return len(self.class_names)

    @property
    def channels(self) -> int:
        """C: channels of one encoded condition."""
        return self.map_channels if self.kind == "maps" else self.num_classes + int(self.use_instances)


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
) -> NDArray[np.float32]:
    """Encode the condition of one frame.

    Args:
        spec: what to encode to.
        labels: class ids, (H, W), for label conditions.
        instances: instance ids, (H, W), when the spec uses them.
        maps: channels, (C, H, W), for map conditions.
        where: file or frame, for messages.

    Returns:
        (C, H, W) float32: one-hot labels, then the instance edge channel; or the maps as they are.

    Raises:
        DataError: if a label id is out of range or a needed map is missing.
        ShapeError: if the sizes disagree.
    """
    if spec.kind == "maps":
        if maps is None or maps.ndim != 3 or maps.shape[0] != spec.map_channels:
            got = "none" if maps is None else str(maps.shape)
            raise ShapeError(f"{where}: expected maps of shape ({spec.map_channels}, H, W), got {got}")
        return np.ascontiguousarray(maps, dtype=np.float32)
    if labels is None:
        raise DataError(f"{where}: a label map is needed and none was given")
    if labels.ndim != 2:
        raise ShapeError(f"{where}: a label map has shape (H, W), got {labels.shape}")
    check_label_ids(labels, spec, where)
    ids = np.arange(spec.num_classes).reshape(-1, 1, 1)
    channels = [(labels[None] == ids).astype(np.float32)]
    if spec.use_instances:
        if instances is None:
            raise DataError(f"{where}: an instance map is needed and none was given")
        if instances.shape != labels.shape:
            raise ShapeError(f"{where}: instance map {instances.shape} and label map {labels.shape} differ in size")
        channels.append(instance_edges_numpy(instances)[None])
    return np.concatenate(channels)
