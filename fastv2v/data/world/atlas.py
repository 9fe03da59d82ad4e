"""Pack the textures with their mip levels into one picture, and look colours up in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from fastv2v.data.world.textures import Tile, painters

MAX_LEVELS = 9


@dataclass(frozen=True)
class Atlas:
    """All textures with their mip levels in one picture, sampled with trilinear filtering."""

    image: NDArray[np.uint8]
    """(h, w, 4): RGB and tint mask."""
    index: Mapping[str, int]
    """Tile number by name."""
    rects: NDArray[np.float32]
    """(tiles * MAX_LEVELS, 4): x, y of the first texel, width, height of each level."""
    num_levels: NDArray[np.int32]
    """(tiles,) how many levels a tile has."""
    sizes: NDArray[np.float32]
    """(tiles, 2) width and height of level 0."""
    alpha: Mapping[int, tuple[NDArray[np.bool_], ...]]
    """Cut-out levels of the tiles that have holes."""

    def sample(
        self,
        tile: NDArray[np.int32],
        u: NDArray[np.float32],
        v: NDArray[np.float32],
        level: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """Look up colours.

        Args:
            tile: (N,) tile numbers.
            u: (N,) texture coordinate, one unit per repetition.
            v: (N,) likewise, downwards.
            level: (N,) mip level, log2 of texels per sample; clipped to what exists.

        Returns:
            (4, N) float32: red, green, blue and tint mask, each 0..255.
        """
        top = np.take(self.num_levels - 1, tile)
        level = np.clip(level, 0, top.astype(np.float32))
        floor = level.astype(np.int32)
        level -= floor
        u = u - np.floor(u)
        v = v - np.floor(v)
        near = self._bilinear(tile * MAX_LEVELS + floor, u, v)
        far = self._bilinear(tile * MAX_LEVELS + np.minimum(floor + 1, top), u, v)
        out = np.empty((4, len(tile)), np.float32)
        for plane, a, b in zip(out, near, far, strict=True):
            np.subtract(b, a, out=plane, dtype=np.float32)
            plane *= level
            plane += a
        return out

    def _bilinear(
        self, entry: NDArray[np.integer], u: NDArray[np.float32], v: NDArray[np.float32]
    ) -> list[NDArray[np.uint8]]:
        """Four planes of colours, each texture coordinate looked up in one level of a tile."""
        rect = np.take(self.rects, entry, axis=0)
        return lookup(self.image, rect[:, 0] + u * rect[:, 2], rect[:, 1] + v * rect[:, 3])


def lookup(
    image: NDArray[np.uint8], x: NDArray[np.float32], y: NDArray[np.float32], border: int = cv2.BORDER_REPLICATE
) -> list[NDArray[np.uint8]]:
    """Bilinear samples of an 8-bit picture.

    Args:
        image: (h, w, C).
        x: (N,) columns; the first texel covers 0 to 1.
        y: (N,) rows.
        border: OpenCV's border mode.

    Returns:
        C planes of shape (N,).
    """
    count = len(x)
    rows = max(1, -(-count // 1024))  # cv2.remap wants a picture, not a list
    maps = np.zeros((2, rows * 1024), np.float32)
    np.subtract(x, np.float32(0.5), out=maps[0, :count])
    np.subtract(y, np.float32(0.5), out=maps[1, :count])
    shape = (rows, 1024)
    picked = cv2.remap(image, maps[0].reshape(shape), maps[1].reshape(shape), cv2.INTER_LINEAR, borderMode=border)
    return [np.asarray(plane).reshape(-1)[:count] for plane in cv2.split(picked)]


def _mip_levels(tile: Tile) -> list[NDArray[np.uint8]]:
    """The tile and its halvings, each (h, w, 4)."""
    levels = [np.dstack([tile.rgb, tile.tint])]
    while min(levels[-1].shape[:2]) > 4 and len(levels) < MAX_LEVELS:
        h, w = levels[-1].shape[:2]
        levels.append(np.asarray(cv2.resize(levels[-1], (w // 2, h // 2), interpolation=cv2.INTER_AREA)))
    return levels


@lru_cache(maxsize=2)
def build_atlas(seed: int) -> Atlas:
    """Paint and pack all textures of a seed; remembered, since all clips of a seed share them."""
    table = painters()
    names = sorted(table)
    tiles = {name: table[name](np.random.default_rng([seed, 7, i])) for i, name in enumerate(names)}
    chains = {name: _mip_levels(tile) for name, tile in tiles.items()}
    index = {name: i for i, name in enumerate(names)}
    rects = np.zeros((len(names), MAX_LEVELS, 4), np.float32)
    width, x, y, shelf = 2352, 0, 0, 0
    blocks: list[tuple[int, int, NDArray[np.uint8]]] = []
    for name in sorted(names, key=lambda n: (-chains[n][0].shape[0], n)):
        chain = [np.pad(level, ((1, 1), (1, 1), (0, 0)), mode="wrap") for level in chains[name]]
        first = chain[0].shape
        tower = sum(level.shape[0] for level in chain[1:])
        block = (max(first[0], tower), first[1] + (chain[1].shape[1] if len(chain) > 1 else 0))
        if x + block[1] > width:
            x, y, shelf = 0, y + shelf, 0
        at_x, at_y = x, y
        for number, level in enumerate(chain):
            blocks.append((at_x, at_y, level))
            rects[index[name], number] = at_x + 1, at_y + 1, level.shape[1] - 2, level.shape[0] - 2
            at_x, at_y = (x + first[1], y) if number == 0 else (at_x, at_y + level.shape[0])
        x, shelf = x + block[1], max(shelf, block[0])
    image = np.zeros((y + shelf, width, 4), np.uint8)
    for bx, by, level in blocks:
        image[by : by + level.shape[0], bx : bx + level.shape[1]] = level
    alpha: dict[int, tuple[NDArray[np.bool_], ...]] = {}
    for name, tile in tiles.items():
        if tile.alpha is not None:
            masks = [tile.alpha]
            while min(masks[-1].shape) > 4:
                h, w = masks[-1].shape
                masks.append(np.asarray(cv2.resize(masks[-1], (w // 2, h // 2), interpolation=cv2.INTER_AREA)))
            alpha[index[name]] = tuple(np.asarray(m >= 112) for m in masks)
    return Atlas(
        image=image,
        index=index,
        rects=rects.reshape(-1, 4),
        num_levels=np.array([len(chains[n]) for n in names], np.int32),
        sizes=np.array([chains[n][0].shape[1::-1] for n in names], np.float32),
        alpha=alpha,
    )
