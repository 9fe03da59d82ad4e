"""A clip: T frames with what they are generated from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastv2v.errors import DataError


@dataclass(frozen=True)
class ClipInfo:
    """Where a clip comes from, so that any picture or error can be traced to its files."""

    sequence: str
    """Relative path of the sequence folder."""
    indices: tuple[int, ...]
    """Frame indices within the sequence."""
    names: tuple[str, ...] = ()
    """File stems of the frames."""
    flipped: bool = False
    """Whether the clip was mirrored."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A batch of clips of equal length and size.

    Label clips have ``labels`` (and ``instances`` where the condition uses them); map clips have ``maps``.
    """

    frames: Tensor
    """(B, T, 3, H, W) float32 RGB in [-1, 1]."""
    labels: Tensor | None = None
    """(B, T, H, W) class ids, uint8 or int64."""
    instances: Tensor | None = None
    """(B, T, H, W) instance ids, int32."""
    maps: Tensor | None = None
    """(B, T, C, H, W) float32 condition channels."""
    flow: Tensor | None = None
    """Flow read from files, (B, T-1, 2, H, W) float32 in pixels: entry t from frame t+1 to frame t. Only clips of
    neighbouring frames have it."""
    points: tuple[Tensor, ...] | None = None
    """Which point of the world is seen at which pixel, -1 for none: entry k (B, T, ceil(H / 2^k), ceil(W / 2^k)) int32.
    Clips of data sets without unprojections have none."""
    info: tuple[ClipInfo, ...] = ()
    """One record per batch entry."""

    @property
    def num_frames(self) -> int:
        """T."""
        return self.frames.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.frames.shape[-2], self.frames.shape[-1]

    def to(self, device: torch.device | str) -> Clip:
        """Copy all tensors to ``device``."""
        return self._map(lambda x: x.to(device, non_blocking=True))

    def take(self, start: int, stop: int, step: int = 1) -> Clip:
        """The frames ``start:stop:step`` of every clip.

        Raises:
            DataError: if frames are left out of a clip that carries flow from files.
        """
        cut = slice(start, stop, step)
        if step != 1 and self.flow is not None:
            raise DataError("flow files hold flow between neighbouring frames; estimate it for frames further apart")
        info = tuple(replace(i, indices=i.indices[cut], names=i.names[cut]) for i in self.info)
        between = range(self.num_frames)[cut][1:]
        flow = None if self.flow is None else self.flow[:, [t - 1 for t in between]]
        return replace(replace(self, flow=None)._map(lambda x: x[:, cut]), flow=flow, info=info)

    def _map(self, fn: Callable[[Tensor], Tensor]) -> Clip:
        names = ("frames", "labels", "instances", "maps", "flow")
        tensors: dict[str, Any] = {k: fn(v) for k in names if (v := getattr(self, k)) is not None}
        points = None if self.points is None else tuple(map(fn, self.points))
        return replace(self, points=points, **tensors)
