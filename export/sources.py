"""Where conditions come from: folders, videos, cameras and pipes. Runs without torch.

All are iterators: nothing is read before it is asked for. What a picture means is in ``export.convert``.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from export.bundle import Manifest
from export.camera import Camera
from export.convert import Converter, at_size, check_plain, picture_conditions, scale
from export.stream import ConditionMap
from fastv2v.data.conditions import maps_to_float
from fastv2v.data.images import is_image_file, read_image, read_label
from fastv2v.data.modalities import MODALITIES
from fastv2v.data.sequences import Missing, by_number
from fastv2v.data.transforms import GeometryConfig, Size, draw_geometry, take_points
from fastv2v.data.unprojection import read_unprojection
from fastv2v.errors import ConfigError, DataError
from fastv2v.video import read_video

log = logging.getLogger(__name__)


def folder_conditions(
    folder: Path | str,
    manifest: Manifest,
    *,
    instances: Path | str | None = None,
    unprojections: Path | str | None = None,
    convert: Converter | None = None,
    missing: Missing = "fail",
) -> Iterator[ConditionMap]:
    """Conditions from the pictures of a folder, in the order of the numbers in their names.

    Args:
        folder: label maps, or pictures where the bundle takes those or there is a converter; all of one size.
        manifest: of the bundle.
        instances: folder of instance maps of the same names, where the bundle uses them and there is no converter.
        unprojections: folder of unprojections of the same names, where the bundle has guidance and there is no
            converter; such as ``test_unprojections/<sequence>`` of a data set.
        convert: makes the condition of each picture, read as RGB.
        missing: what is done where numbers are missing between others; see ``settle_missing``.

    Raises:
        ConfigError: if the folder cannot hold what the bundle takes, or instances come beside a converter.
        DataError: if a picture is missing, damaged or of another size than the first.
    """
    files = list(settle_missing(condition_files(Path(folder)), missing).values())
    if convert is not None:
        if instances is not None:
            raise ConfigError(f"a converter makes instance maps itself; leave out the folder {instances}")
        if unprojections is not None:
            raise ConfigError(f"a converter gives point ids itself; leave out the folder {unprojections}")
        first = files[0], _size(read_image(files[0]))
        for file in files:
            picture = read_image(file)
            _check_size(file, _size(picture), *first)
            yield at_size(convert(picture), manifest.size, str(file))
        return
    check_drawn(manifest)
    yield from read_conditions(
        files,
        manifest.size,
        labels=manifest.condition.kind == "labels",
        instances=instance_files(manifest, files, None if instances is None else Path(instances)),
        unprojections=unprojection_files(manifest, files, None if unprojections is None else Path(unprojections)),
    )


def video_conditions(path: Path | str, manifest: Manifest, convert: Converter | None = None) -> Iterator[ConditionMap]:
    """Conditions from a video; see ``picture_conditions``. One of class ids must be lossless: compression changes them.

    Args:
        path: any video that ffmpeg reads.
        manifest: of the bundle.
        convert: makes the condition of each frame.

    Raises:
        ConfigError: if a video cannot hold what the bundle takes.
        DataError: if colours follow ids.
        MediaError: if the video is missing or damaged.
        MissingExtraError: if the packages that read videos are not installed.
    """
    return picture_conditions(read_video(path), manifest, convert, source=f"{path}")


def camera_conditions(camera: Camera, manifest: Manifest, convert: Converter | None = None) -> Iterator[ConditionMap]:
    """Conditions from a camera; see ``picture_conditions``.

    Args:
        camera: opened; the caller closes it.
        manifest: of the bundle.
        convert: makes the condition of each frame.

    Raises:
        ConfigError: if a camera cannot show what the bundle takes.
        MediaError: if the camera stops.
    """
    return picture_conditions(camera, manifest, convert, source=camera.name)


def piped_conditions(source: IO[bytes], manifest: Manifest) -> Iterator[ConditionMap]:
    """Conditions as raw bytes of the bundle's size, one frame after the other.

    A frame is H x W bytes of class ids where the bundle takes label maps, and H x W x 3 bytes, red, green, blue, where
    it takes pictures.

    Args:
        source: binary stream, such as standard input.
        manifest: of the bundle.

    Raises:
        ConfigError: if the bundle's conditions are no single pictures.
        DataError: if it ends in the middle of a frame; after the frames before it.
    """
    check_plain(manifest, "standard input")
    height, width = manifest.size
    is_picture = manifest.condition.encoder == "rgb"
    length = height * width * (3 if is_picture else 1)
    index = 0
    while data := _read_whole(source, length):
        name = f"standard input frame {index}"
        if len(data) < length:
            raise DataError(
                f"{name}: the input broke off after {len(data)} of {length} bytes; a frame of this bundle is "
                f"{width}x{height} {'RGB pixels' if is_picture else 'class ids'} of a byte each"
            )
        pixels = np.frombuffer(data, np.uint8)
        if is_picture:
            yield ConditionMap(maps=maps_to_float(manifest.condition, pixels.reshape(height, width, 3)), name=name)
        else:
            yield ConditionMap(labels=pixels.reshape(height, width), name=name)
        index += 1


def _read_whole(source: IO[bytes], length: int) -> bytes:
    """``length`` bytes, fewer only at the end; an unbuffered pipe gives no more at once than it holds."""
    taken = bytearray()
    while len(taken) < length and (part := source.read(length - len(taken))):
        taken += part
    return bytes(taken)


def condition_files(folder: Path) -> list[Path]:
    """Pictures of a folder in the order of a data set: by the numbers in their names.

    Raises:
        DataError: if there is no such folder, it holds none, or two have the same stem.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder of pictures, or video; check the path")
    files: dict[str, Path] = {}
    for path in sorted(path for path in folder.iterdir() if is_image_file(path) and path.is_file()):
        other = files.setdefault(path.stem, path)
        if other != path:
            raise DataError(f"{path} and {other.name} have the same stem; keep one of them")
    if not files:
        raise DataError(f"{folder} holds no pictures; give the folder of one sequence, such as DATA/test_A/clip_006")
    return [files[stem] for stem in sorted(files, key=by_number)]


def settle_missing(files: Sequence[Path], missing: Missing) -> dict[str, Path]:
    """Refuse, fill or pass over numbers that are missing between the files of a folder.

    Names are looked at where they differ in one number only, and most of these follow each other by the same step;
    where they do not, the numbers do not count frames and nothing is missing.

    Args:
        files: in order.
        missing: ``fail`` refuses; ``hold`` repeats the file before in place of each, so that time stays right; ``skip``
            goes on with the next. The latter two are announced.

    Returns:
        The file of each frame, by the frame's name.

    Raises:
        DataError: if files are missing and ``missing`` is ``fail``.
    """
    stems = [file.stem for file in files]
    taken = dict(zip(stems, files, strict=True))
    gone = {before: names for before, names in _missing_after(stems).items() if names}
    if not gone:
        return taken
    lacking = [name for names in gone.values() for name in names]
    where = f"{files[0].parent}: {len(lacking)} of {len(files) + len(lacking)} files are missing ({_first(lacking)})"
    if missing == "fail":
        raise DataError(
            f"{where}; add them, or set missing (--missing) to 'hold' (repeat the one before) or to 'skip' (go on with "
            "the next)"
        )
    log.warning("%s; %s", where, "the one before is repeated" if missing == "hold" else "they are passed over")
    if missing == "skip":
        return taken
    return {name: taken[stem] for stem in stems for name in (stem, *gone.get(stem, ()))}


_LARGEST_HOLE = 10_000
"""Files that may be missing in one place; further apart, numbers do not count the same thing."""


def _missing_after(stems: Sequence[str]) -> dict[str, list[str]]:
    """The names that are missing after each."""
    split = [re.split(r"(\d+)", stem) for stem in stems]  # text, number, text, number, ..., text
    if len({len(parts) for parts in split}) > 1:
        return {}
    changing = [place for place, values in enumerate(zip(*split, strict=True)) if len(set(values)) > 1]
    if len(changing) != 1 or changing[0] % 2 == 0:
        return {}
    (place,) = changing
    numbers = [int(parts[place]) for parts in split]
    steps = [after - before for before, after in pairwise(numbers)]
    step, count = Counter(steps).most_common(1)[0]
    if step <= 0 or 2 * count <= len(steps) or any(s % step or s <= 0 for s in steps):
        return {}
    if max(steps) // step > _LARGEST_HOLE:
        return {}  # another numbering begins there, such as a time stamp's
    return {
        stem: [
            "".join([*parts[:place], f"{number:0{len(parts[place])}}", *parts[place + 1 :]])
            for number in range(here + step, after, step)
        ]
        for stem, parts, (here, after) in zip(stems, split, pairwise(numbers), strict=False)
    }


def check_drawn(manifest: Manifest) -> None:
    """Refuse bundles whose conditions are drawn from points, which pictures do not hold.

    Raises:
        ConfigError: naming what it needs.
    """
    if manifest.condition.encoder in ("face", "pose"):
        raise ConfigError(
            f"the bundle {manifest.name} takes {manifest.condition.describe()}, which are drawn from a data set: "
            "give --data DIR instead of --conditions"
        )


def instance_files(manifest: Manifest, files: Sequence[Path], folder: Path | None) -> list[Path] | None:
    """The instance map of each label map, or None where the bundle uses none.

    Raises:
        ConfigError: if a folder is given to a bundle that uses none.
        DataError: if the bundle uses them and one is missing.
    """
    if not manifest.condition.use_instances:
        if folder is not None:
            raise ConfigError(f"the bundle {manifest.name} uses no instance maps; leave out --instances {folder}")
        return None
    if folder is None:
        raise DataError(
            f"{files[0]}: the bundle {manifest.name} needs an instance map with each label map; give --instances DIR"
        )
    found = {path.stem: path for path in condition_files(folder)}
    lacking = next((file for file in files if file.stem not in found), None)
    if lacking is not None:
        raise DataError(f"{lacking}: its instance map {folder / lacking.stem}.png is missing; give --instances DIR")
    return [found[file.stem] for file in files]


def unprojection_files(manifest: Manifest, files: Sequence[Path], folder: Path | None) -> list[Path | None] | None:
    """The unprojection of each label map, or None where the bundle has no guidance or no folder is given.

    Frames without a file are not guided; a warning counts them.

    Raises:
        ConfigError: if a folder is given to a bundle without guidance.
        DataError: if the folder has none of these frames.
    """
    levels = manifest.condition.guidance_levels
    if folder is None:
        if levels:
            log.warning(
                "%s: the bundle %s is guided by what was painted, and without --unprojections DIR no frame is",
                files[0].parent,
                manifest.name,
            )
        return None
    if not levels:
        raise ConfigError(f"the bundle {manifest.name} has no guidance; leave out --unprojections {folder}")
    endings = MODALITIES["unprojections"].extensions
    found = [next((p for e in endings if (p := folder / f"{file.stem}{e}").is_file()), None) for file in files]
    if not any(found):
        raise DataError(f"{folder} holds no unprojection of {files[0].stem} or another of these frames")
    if lacking := [file.stem for file, path in zip(files, found, strict=True) if path is None]:
        log.warning("%s: %d of %d frames have no unprojection (%s)", folder, len(lacking), len(files), _first(lacking))
    return found


def read_conditions(
    files: Sequence[Path],
    size: Size,
    *,
    labels: bool,
    instances: Sequence[Path] | None,
    unprojections: Sequence[Path | None] | None = None,
) -> Iterator[ConditionMap]:
    """Condition of each frame, scaled as training data are: the nearest pixel for ids, an average for pictures.

    Args:
        files: pictures of one size.
        size: (height, width) the bundle takes.
        labels: whether they hold class ids, or else colours.
        instances: instance map of each, of the same size.
        unprojections: which points of the world each frame shows, of the same size; None for frames without.

    Raises:
        DataError: if a picture is damaged or of another size than the first.
    """
    first: tuple[Path, Size] | None = None
    for index, file in enumerate(files):
        picture = read_label(file) if labels else read_image(file)
        first = first or (file, _size(picture))
        _check_size(file, _size(picture), *first)
        unprojection = None if unprojections is None else unprojections[index]
        points = None if unprojection is None else _points(unprojection, size, first[1])
        if not labels:
            maps = np.moveaxis(scale(picture, size, "image"), -1, 0).astype(np.float32) / 127.5 - 1
            yield ConditionMap(maps=maps, points=points, name=str(file))
            continue
        borders = None
        if instances is not None:
            borders = read_label(instances[index])
            _check_size(instances[index], _size(borders), file, first[1])
            borders = scale(borders, size, "label")
        yield ConditionMap(labels=scale(picture, size, "label"), instances=borders, points=points, name=str(file))


def _points(path: Path, size: Size, expected: Size) -> list[NDArray[np.int32]]:
    """Point ids of all levels of a file, at a bundle's size."""
    levels = read_unprojection(path, expected)
    geometry = draw_geometry(GeometryConfig(mode="exact", size=size), expected, None, "test")
    return [take_points(geometry, levels, k) for k in range(len(levels))]


def read_seed(path: Path, first: Path, size: Size) -> NDArray[np.uint8]:
    """The real first frame at the bundle's size, (H, W, 3).

    Args:
        path: its file, of the bundle's size or that of ``first``.
        first: first condition.
        size: (height, width) the bundle takes.

    Raises:
        DataError: if it is damaged or of a third size.
    """
    picture = read_image(path)
    if _size(picture) != size:
        _check_size(path, _size(picture), first, _size(read_image(first)))
    return scale(picture, size, "image")


def _size(picture: NDArray[Any]) -> Size:
    return picture.shape[0], picture.shape[1]


def _check_size(path: Path, size: Size, other: Path, expected: Size) -> None:
    if size != expected:
        raise DataError(
            f"{path} is {size[1]}x{size[0]} pixels and {other} is {expected[1]}x{expected[0]}; all pictures of a "
            "stream must have the same size"
        )


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
