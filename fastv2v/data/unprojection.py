"""Unprojections: which point of the world is seen at which pixel of a frame. Read and written; torch-free.

In memory each level is a map of point ids, int32 (H / 2^k, W / 2^k) rounded up, -1 where no point is known. The same
point has the same id in every frame and at every level of a sequence. On disk ours is ``.npz``:

    ``sizes``             (levels, 2) uint32: (height, width) of each level, finest first
    ``pixel0``, ...       (n,) uint32: row * width + column of each mapped pixel of level 0, ...
    ``point0``, ...       (n,) uint32: the id of the point seen there

imaginaire's ``.pkl`` is read and written too, through ``fastv2v.data.plain_pickle``, which runs nothing.
"""

from __future__ import annotations

import io
import os
import pickle
import re
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fastv2v.data.conditions import MAX_GUIDANCE_LEVELS
from fastv2v.data.images import read_bytes
from fastv2v.data.plain_pickle import MAX_BYTES, MAX_NUMBERS, load_plain
from fastv2v.errors import DataError

Levels = tuple[NDArray[np.int32], ...]
"""Point ids of each level, finest first."""

MAX_POINTS: Final = 2**26
"""Ids lie below this: a painted world holds a colour for each."""
MAX_SIDE: Final = 16384
"""Longest side of a frame, in pixels."""

_MAX_LEVELS: Final = 16
_SAME_SURFACE: Final = 0.02
_LEVEL_KEY: Final = re.compile(r"w(?P<width>[1-9][0-9]{0,5})xh(?P<height>[1-9][0-9]{0,5})")
_ARRAY_HEADER: Final = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '<u4', 'fortran_order': False, 'shape': "
    rb"\((?P<rows>\d{1,10}),(?: (?P<columns>\d{1,10}))?\), \} *\n",
    re.DOTALL,
)
"""What NumPy writes before the numbers; its own reader of this text is a parser of Python with errors of its own."""
_NOUN: Final = "unprojection file"
_HINT: Final = "make it again: fastv2v unproject --overwrite"


def read_unprojection(path: Path, size: tuple[int, int] | None = None) -> Levels:
    """Read which point is seen at which pixel.

    Args:
        path: ``.npz`` of our own, or imaginaire's ``.pkl``.
        size: (height, width) of the frame it belongs to. A file of another size is refused before it costs the memory
            that it asks for.

    Returns:
        Point ids of each level, (H / 2^k, W / 2^k) int32, -1 for none.

    Raises:
        DataError: if the file is missing, damaged, of another size, or holds anything else.
    """
    return _parsed(read_bytes(path, _NOUN), str(path), size)


def _parsed(data: bytes, where: str, size: tuple[int, int] | None) -> Levels:
    return (parse_pickle if where.lower().endswith(".pkl") else _parse_npz)(data, where, size)


def write_unprojection(path: Path, levels: Sequence[NDArray[np.integer[Any]]]) -> None:
    """Write which point is seen at which pixel; the file appears whole or not at all.

    Args:
        path: ``.npz``, or ``.pkl`` for imaginaire.
        levels: point ids of each level, finest first; negative for none.

    Raises:
        DataError: if a level has another size than half of the one before, an id is too large, a ``.pkl`` would hold
            more than is read again, or it cannot be written.
    """
    checked = check_levels([np.asarray(level) for level in levels], str(path))
    if path.suffix.lower() == ".pkl":
        numbers = sum(3 * int(np.count_nonzero(ids >= 0)) for ids in checked)
        content = b"" if numbers > MAX_NUMBERS else pickle_bytes(checked)
        if numbers > MAX_NUMBERS or len(content) > MAX_BYTES:
            raise DataError(
                f"{path}: {numbers // 3} entries are more than a .pkl file may hold ({MAX_NUMBERS // 3}, "
                f"{MAX_BYTES >> 20} MB); write .npz"
            )
    else:
        content = _npz_bytes(checked)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        raise DataError(f"{path}: the unprojection cannot be written ({error.strerror})") from error


def stored_bytes(data: bytes, where: str, size: tuple[int, int] | None = None) -> bytes:
    """An unprojection file of either kind as ``.npz`` that is not compressed, which is read several times faster.

    Args:
        data: its content.
        where: its path; the suffix says which kind it is.
        size: (height, width) of the frame it belongs to.

    Raises:
        DataError: as ``read_unprojection``.
    """
    return _npz_bytes(_parsed(data, where, size), np.savez)


def _npz_bytes(levels: Levels, save: Callable[..., None] = np.savez_compressed) -> bytes:
    arrays: dict[str, NDArray[Any]] = {"sizes": np.array([level.shape for level in levels], np.uint32)}
    for k, ids in enumerate(levels):
        pixels = np.flatnonzero(ids >= 0)
        arrays[f"pixel{k}"] = pixels.astype(np.uint32)
        arrays[f"point{k}"] = ids.ravel()[pixels].astype(np.uint32)
    buffer = io.BytesIO()
    save(buffer, **arrays)
    return buffer.getvalue()


def pickle_bytes(levels: Levels) -> bytes:
    """Unprojections in imaginaire's layout: of each level ``w<W>xh<H>`` a flat list of row, column and point id.

    Args:
        levels: point ids of each level, finest first, -1 for none.

    Returns:
        A pickle of protocol 3 with plain whole numbers.
    """
    entries = {}
    for ids in levels:
        rows, columns = np.nonzero(ids >= 0)
        entries[f"w{ids.shape[1]}xh{ids.shape[0]}"] = np.stack([rows, columns, ids[rows, columns]], 1).ravel().tolist()
    return pickle.dumps(entries, protocol=3)


def parse_pickle(data: bytes, where: str, size: tuple[int, int] | None = None) -> Levels:
    """Read imaginaire's layout without running anything (see ``fastv2v.data.plain_pickle``).

    Args:
        data: the content of a ``.pkl`` file.
        where: the file, for messages.
        size: (height, width) of the frame it belongs to.

    Returns:
        As ``read_unprojection``.

    Raises:
        DataError: if it is damaged, of another size, holds anything else, or lacks a level between two others.
    """
    entries = load_plain(data, where)
    if not isinstance(entries, dict) or not 1 <= len(entries) <= _MAX_LEVELS:
        raise DataError(f"{where}: expected a dictionary of 1 to {_MAX_LEVELS} levels, named w1024xh512 and so on")
    sized: dict[tuple[int, int], Any] = {}
    for key, value in entries.items():
        match = _LEVEL_KEY.fullmatch(key) if isinstance(key, str) else None
        if match is None:
            raise DataError(f"{where}: a level is named {str(key)[:30]!r}; expected w1024xh512 and so on")
        sized[int(match["height"]), int(match["width"])] = value
    shapes = sorted(sized, reverse=True)
    check_sizes(shapes, where)
    _check_finest(shapes, size, where)
    levels = []
    for shape in shapes:
        at = f"{where}, level w{shape[1]}xh{shape[0]}"
        triples = _triples(sized[shape], at)
        rows, columns, points = triples.T
        inside = (rows >= 0) & (rows < shape[0]) & (columns >= 0) & (columns < shape[1])
        if not inside.all():
            row, column, _ = triples[~inside][0]
            raise DataError(f"{at}: row {row}, column {column} lies outside; entries are row, column, point: {_HINT}")
        levels.append(dense_level(rows * shape[1] + columns, points, shape, at))
    return check_levels(levels, where)


def _triples(value: Any, where: str) -> NDArray[np.int64]:
    """(n, 3): row, column and point id of each entry; none where there is no mapping."""
    if value is None:
        return np.zeros((0, 3), np.int64)
    if isinstance(value, np.ndarray):
        flat_or_triples = value.ndim == 1 or (value.ndim == 2 and value.shape[1] == 3)
        if not np.issubdtype(value.dtype, np.integer) or value.size % 3 or not flat_or_triples:
            raise DataError(f"{where}: expected row, column and point id of each entry, flat or (n, 3); {_HINT}")
        return value.reshape(-1, 3).astype(np.int64)
    # Types first: NumPy would follow lists of lists of shared lists without end.
    if not isinstance(value, list | tuple) or not set(map(type, value)) <= {int}:
        raise DataError(f"{where}: expected a list of whole numbers; {_HINT}")
    if len(value) % 3:
        raise DataError(f"{where}: {len(value)} numbers are no multiple of 3 (row, column, point); {_HINT}")
    return np.array(value, np.int64).reshape(-1, 3)


def check_levels(levels: Sequence[NDArray[np.integer[Any]]], where: str) -> Levels:
    """Levels of point ids that are known to fit together.

    Args:
        levels: point ids, finest first; every negative id is none.
        where: file or frame, for messages.

    Returns:
        The same as int32, with -1 for none.

    Raises:
        DataError: if there is none or too many, a level is no map, is larger than a frame may be, or has another size
            than half of the one before, or an id is too large.
    """
    if not 1 <= len(levels) <= _MAX_LEVELS:
        raise DataError(f"{where}: an unprojection has 1 to {_MAX_LEVELS} levels, got {len(levels)}")
    check_sizes([level.shape for level in levels], where)
    for k, level in enumerate(levels):
        if level.size and int(level.max()) >= MAX_POINTS:
            raise DataError(f"{where}: point id {int(level.max())} at level {k} is not below {MAX_POINTS}; number anew")
    return tuple(np.maximum(level, -1).astype(np.int32, copy=False) for level in levels)


def check_sizes(sizes: Sequence[tuple[int, ...]], where: str) -> None:
    """Refuse sizes (height, width) that are not each half of the one before, rounded either way.

    Raises:
        DataError: if they are not.
    """
    for k, size in enumerate(sizes):
        if len(size) != 2 or not 1 <= min(size) <= max(size) <= MAX_SIDE:
            raise DataError(f"{where}: level {k} has size {size}; expected (height, width) of 1 to {MAX_SIDE} pixels")
        wanted = [{max(side >> k, 1), -(-side >> k)} for side in sizes[0]]
        if any(side not in either for side, either in zip(size, wanted, strict=True)):
            raise DataError(
                f"{where}: level {k} is {size[1]}x{size[0]} and level 0 {sizes[0][1]}x{sizes[0][0]} pixels; every "
                f"level is half the size of the one before: {_HINT}"
            )


def _check_finest(sizes: Sequence[tuple[int, ...]], size: tuple[int, int] | None, where: str) -> None:
    """Refuse levels of another frame."""
    if size is not None and sizes and tuple(sizes[0]) != tuple(size):
        raise DataError(
            f"{where} is {sizes[0][1]}x{sizes[0][0]} pixels and its frame is {size[1]}x{size[0]}; both must have the "
            f"same size: {_HINT}"
        )


def dense_level(
    pixels: NDArray[np.integer[Any]], points: NDArray[np.integer[Any]], size: tuple[int, int], where: str
) -> NDArray[np.int32]:
    """A map of point ids from its entries.

    Args:
        pixels: row * width + column, (n,).
        points: the id at each, (n,).
        size: (height, width).
        where: file and level, for messages.

    Returns:
        (height, width) int32, -1 for none.

    Raises:
        DataError: if the two differ in length, a pixel lies outside or comes twice, or an id is out of range.
    """
    if pixels.shape != points.shape:
        raise DataError(f"{where}: {len(pixels)} pixels and {len(points)} points; {_HINT}")
    if len(pixels) and not 0 <= int(pixels.min()) <= int(pixels.max()) < size[0] * size[1]:
        raise DataError(f"{where}: a pixel lies outside of {size[1]}x{size[0]}; {_HINT}")
    if len(points) and not 0 <= int(points.min()) <= int(points.max()) < MAX_POINTS:
        raise DataError(f"{where}: a point id is not in 0 to {MAX_POINTS - 1}; {_HINT}")
    ids = np.full(size, -1, np.int32)
    ids.ravel()[pixels] = points
    if np.count_nonzero(ids >= 0) != len(pixels):
        raise DataError(f"{where}: a pixel comes twice; {_HINT}")
    return ids


def pyramid(
    ids: NDArray[np.integer[Any]], depth: NDArray[np.floating[Any]], num_levels: int = MAX_GUIDANCE_LEVELS
) -> Levels:
    """Coarser levels of a map of point ids, by a depth buffer of its points at each level.

    A pixel of level k takes one of the nearest points in its 2^k by 2^k pixels: of those within 2 % of the least depth,
    which lie on one surface, that of the smallest id. It was seen first and may have a colour.

    Args:
        ids: point ids of level 0, (H, W), negative for none.
        depth: of each point along the optical axis, (H, W), in any unit; used where there is a point.
        num_levels: levels wanted, with level 0. There are fewer where the frame is too small to be halved so often.

    Returns:
        The levels, finest first.

    Raises:
        DataError: if the sizes differ, or as ``check_levels``.
    """
    if ids.shape != depth.shape:
        raise DataError(f"point ids are {ids.shape} and depth is {depth.shape}; they must have one size")
    rows, columns = np.nonzero(ids >= 0)
    points, distance = ids[rows, columns].astype(np.int64), depth[rows, columns].astype(np.float64)
    levels: list[NDArray[np.integer[Any]]] = [np.asarray(ids)]
    for k in range(1, num_levels):
        if min(ids.shape) < 2**k:
            break
        size = (-(-ids.shape[0] >> k), -(-ids.shape[1] >> k))
        block = (rows >> k) * size[1] + (columns >> k)
        least = np.full(size[0] * size[1], np.inf)
        np.minimum.at(least, block, distance)
        near = distance <= least[block] * (1 + _SAME_SURFACE)
        coarse = np.full(size[0] * size[1], MAX_POINTS, np.int64)
        np.minimum.at(coarse, block[near], points[near])
        levels.append(np.where(coarse < MAX_POINTS, coarse, -1).reshape(size))
    return check_levels(levels, "point ids")


def _parse_npz(data: bytes, where: str, size: tuple[int, int] | None) -> Levels:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            sizes = _read_array(archive, "sizes", 2 * _MAX_LEVELS).reshape(-1, 2)
            shapes = [(int(height), int(width)) for height, width in sizes]
            check_sizes(shapes, where)
            _check_finest(shapes, size, where)
            entries = [
                (_read_array(archive, f"pixel{k}", height * width), _read_array(archive, f"point{k}", height * width))
                for k, (height, width) in enumerate(shapes)
            ]
    except (zipfile.BadZipFile, zlib.error, KeyError, ValueError, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{where}: the unprojection file is damaged or of another kind ({error}); {_HINT}") from error
    if not shapes:
        raise DataError(f"{where}: an unprojection has at least one level; {_HINT}")
    return tuple(
        dense_level(pixels, points, shape, f"{where}, level {k}")
        for k, ((pixels, points), shape) in enumerate(zip(entries, shapes, strict=True))
    )


def _read_array(archive: zipfile.ZipFile, name: str, max_items: int) -> NDArray[np.uint32]:
    """One array; its length is known before anything is unpacked, so that no file asks for more memory than it may."""
    info = archive.getinfo(f"{name}.npy")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"'{name}' is compressed in a way that NumPy does not write")
    if info.file_size > 4 * max_items + 256:
        raise ValueError(f"'{name}' holds more than {max_items} numbers")
    with archive.open(info) as file:
        content = file.read(info.file_size)  # no more: without a number all that there is would be unpacked
    header = _ARRAY_HEADER.match(content)
    if header is None or len(content) - header.end() != 4 * int(header["rows"]) * int(header["columns"] or 1):
        raise ValueError(f"'{name}' is no array of numbers as NumPy writes it, or of another type: expected uint32")
    return np.frombuffer(content, "<u4", offset=header.end())
