"""``fastv2v show``: a contact sheet of a data set, to see whether conditions lie where they belong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import cv2
import numpy as np
import tyro
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.results import Row, format_table
from fastv2v.commands.arguments import parse
from fastv2v.commands.synthesize import to_picture
from fastv2v.data.clip import Clip
from fastv2v.data.conditions import ConditionSpec
from fastv2v.data.face import NO_REFERENCE
from fastv2v.data.folder import MODALITIES, FolderConfig, FrameReader, Sequence, VideoFolder, open_folder
from fastv2v.data.loader import read_sequence
from fastv2v.data.modalities import MAY_LACK
from fastv2v.errors import ConfigError
from fastv2v.ops.labels import condition_pictures, instance_edges
from fastv2v.recipe import UNSET_ROOT
from fastv2v.video import write_image

Picture = NDArray[np.uint8]
"""RGB, (H, W, 3), 0 to 255."""

_SUFFIXES: Final = (".png", ".jpg", ".jpeg")
_WIDEST, _MOST_ROWS = 2048, 400
_WHITE: Final = 255
_CURVES: Final = (80, 255, 80)
_HALF, _TINT = 0.5, 0.25
_GAP_PX, _BLOCK_GAP_PX, _TEXT_PX = 2, 12, 20
_FONT, _FONT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.4


@dataclass(frozen=True, kw_only=True)
class Show:
    """Draw a contact sheet of a data set: frames, their conditions as a generator gets them, and both in one."""

    data: Path
    """Data set: a folder, a packed one (NAME.lmdb) or a JSON file that lists its sequences."""
    out: Path
    """Picture to write, SHEET.png or SHEET.jpg."""
    frames: int = 3
    """Frames of each sequence, spread over its length."""
    sequences: int = 8
    """At most this many sequences, spread over all of them by name."""
    width: int = 256
    """Width of one picture on the sheet, in pixels."""
    folder: Annotated[FolderConfig, tyro.conf.arg(name="")] = field(
        default_factory=lambda: FolderConfig(root=UNSET_ROOT)
    )
    """How the data set is read: the options of --recipe.data.folder in training, here without that prefix. Frames in
    which nobody was detected are shown with the condition before, and marked, unless they are skipped."""
    overwrite: bool = False
    """Replace a picture found there."""

    def __post_init__(self) -> None:
        if self.frames < 1 or self.sequences < 1:
            raise ConfigError(f"frames and sequences must be at least 1, got {self.frames} and {self.sequences}")
        if not 32 <= self.width <= _WIDEST or self.frames * self.sequences > _MOST_ROWS:
            raise ConfigError(
                f"a sheet holds pictures of 32 to {_WIDEST} pixels, at most {_MOST_ROWS} of them; got width "
                f"{self.width}, frames {self.frames} and sequences {self.sequences}"
            )
        if self.out.suffix.lower() not in _SUFFIXES:
            raise ConfigError(f"the sheet is a picture, {' or '.join(_SUFFIXES)}, got {self.out}; change --out")
        if self.folder.root != UNSET_ROOT:
            raise ConfigError("name the data set with --data; leave --root alone")


class Shown(NamedTuple):
    """One sequence on the sheet."""

    row: Picture
    """Its frames side by side, each as frame, condition and both in one, with their names below."""
    size: tuple[int, int]
    """(height, width) of its frames, or of the box around its face."""
    scaled: tuple[int, int]
    """(height, width) of its clips."""
    stems: tuple[str, ...]
    """Names of the frames that are shown."""


def spread(total: int, count: int) -> tuple[int, ...]:
    """At most ``count`` of the numbers 0 to ``total - 1``, evenly spread, the first and the last among them.

    One number is the middle one.
    """
    if count == 1:
        return ((total - 1) // 2,)
    return tuple(dict.fromkeys(round(i * (total - 1) / (count - 1)) for i in range(count)))


def is_held(sequence: Sequence, frame: int) -> bool:
    """Whether nothing was detected in a frame, so that it has the landmarks or the pose of another one."""
    own = sequence.stems[frame]
    return any(
        sequence.path(modality, frame).stem.removesuffix(MODALITIES[modality].stem_end) != own
        for modality in sequence.files
        if modality in MAY_LACK
    )


def laid_over(spec: ConditionSpec, clip: Clip, condition: Picture, *, thickness: int = 1) -> Picture:
    """The condition of a frame on the frame itself.

    Args:
        spec: what the condition is.
        clip: one frame; for faces its maps are the curves without any background.
        condition: the condition as ``condition_pictures`` shows it, of the size of the clip.
        thickness: how many pixels wide a line must be to be seen, more than it is drawn with where it is shrunk after.

    Returns:
        Of labels the borders between classes and between instances in their colours, all else a quarter of them; of
        faces the curves, green; of poses the limbs, and DensePose half transparent; colour images half transparent.
    """
    frame = to_picture(clip.frames[:, 0])
    weight = np.full(frame.shape[:2], _HALF, np.float32)
    colours = condition
    if clip.labels is not None:
        marked = instance_edges(clip.labels.long())
        if spec.use_instances and clip.instances is not None:
            marked = marked.maximum(instance_edges(clip.instances))
        weight = np.maximum(_thick(marked[0, 0, 0].numpy(), thickness), _TINT)
    elif clip.maps is not None and spec.face is not None:
        weight = _thick((clip.maps[0, 0, 0] > _HALF).float().numpy(), thickness)
        colours = np.broadcast_to(np.array(_CURVES, np.uint8), frame.shape)
    elif clip.maps is not None and spec.pose is not None:
        weight *= condition.any(axis=-1)
        if spec.pose.openpose:
            weight[(clip.maps[0, 0, -3:] > -1).any(dim=0).numpy()] = 1
    mixed = frame * (1 - weight[..., None]) + colours * weight[..., None]
    return np.rint(mixed).astype(np.uint8)


def _thick(lines: NDArray[np.float32], thickness: int) -> NDArray[np.float32]:
    """Lines (H, W) of 1 on 0, widened by ``thickness - 1`` pixels."""
    return cv2.dilate(lines, np.ones((thickness, thickness), np.uint8)).astype(np.float32)


def show_sequences(folder: VideoFolder, sequences: int, frames: int, width: int) -> Iterator[Shown]:
    """Rows of the sheet, one after the other: no more than the frames of one are read and held.

    Args:
        folder: the data set.
        sequences: how many of its sequences at most.
        frames: how many frames of each at most.
        width: of one picture on the sheet, in pixels.

    Raises:
        DataError: if a file is damaged or disagrees with its neighbours.
        ConfigError: if the geometry is of a random mode.
    """
    bare = _without_background(folder)
    reader, bare_reader = FrameReader(folder, cache_mb=0), FrameReader(bare, cache_mb=0)
    for index in spread(len(folder.sequences), sequences):
        sequence = folder.sequences[index]
        chosen = spread(len(sequence), frames)
        blocks = []
        for frame in chosen:
            clip = read_sequence(folder, index, frame, frame + 1, reader=reader)
            curves = clip if bare is folder else read_sequence(bare, index, frame, frame + 1, reader=bare_reader)
            condition = to_picture(condition_pictures(folder.spec, clip, folder.palette)[:, 0])
            thickness = max(1, round(clip.size[1] / width))
            both = laid_over(folder.spec, curves, condition, thickness=thickness)
            cells = [_scaled(picture, width) for picture in (to_picture(clip.frames[:, 0]), condition, both)]
            note = " (nobody detected)" if is_held(sequence, frame) else ""
            blocks.append(_captioned(_joined(cells, _GAP_PX), f"{sequence.name}/{sequence.stems[frame]}{note}"))
        blocks += [np.full_like(blocks[0], _WHITE)] * (frames - len(blocks))
        size = reader.image_size(index)
        yield Shown(_joined(blocks, _BLOCK_GAP_PX), size, clip.size, tuple(sequence.stems[frame] for frame in chosen))


def _without_background(folder: VideoFolder) -> VideoFolder:
    """The same data set with nothing but the curves of faces in its maps; itself where it shows no faces."""
    if folder.spec.face is None:
        return folder
    face = replace(folder.config.face, background="none", distance_maps=False, reference=NO_REFERENCE)
    spec = ConditionSpec(kind="maps", map_channels=face.channels, encoder="face", face=face)
    return replace(folder, config=replace(folder.config, face=face), spec=spec)


def _scaled(picture: Picture, width: int) -> Picture:
    height = max(1, round(picture.shape[0] * width / picture.shape[1]))
    method = cv2.INTER_AREA if width < picture.shape[1] else cv2.INTER_NEAREST
    return cv2.resize(picture, (width, height), interpolation=method).astype(np.uint8)


def _joined(pictures: list[Picture], gap: int) -> Picture:
    """Pictures of one height side by side, white between them."""
    between = np.full((pictures[0].shape[0], gap, 3), _WHITE, np.uint8)
    return np.concatenate([part for picture in pictures for part in (between, picture)][1:], axis=1)


def _captioned(picture: Picture, text: str) -> Picture:
    """A picture with its name below; of a name too long for it, the end."""
    strip = np.full((_TEXT_PX, picture.shape[1], 3), _WHITE, np.uint8)
    # The font has ASCII only, and OpenCV ends the process at a name that is not UTF-8.
    shown = text.encode("ascii", "replace").decode()
    while len(shown) > 4 and cv2.getTextSize(shown, _FONT, _FONT_SCALE, 1)[0][0] > picture.shape[1]:
        shown = "..." + shown.removeprefix("...")[1:]
    cv2.putText(strip, shown, (0, _TEXT_PX - 7), _FONT, _FONT_SCALE, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([picture, strip])


def show(args: Show) -> None:
    """Write the sheet, print its table and, last, one JSON object.

    Raises:
        ConfigError: if there is a picture already, or the data set is not what the options say.
        DataError: if the data set is damaged.
    """
    if args.out.exists() and not args.overwrite:
        raise ConfigError(f"{args.out} exists already; name another picture with --out or pass --overwrite")
    config = replace(args.folder, root=args.data)
    if config.condition in ("face", "pose") and config.missing == "fail":
        config = replace(config, missing="hold")  # gaps are to be seen here, not refused
    folder = open_folder(config)
    places = spread(len(folder.sequences), args.sequences)
    rows = show_sequences(folder, args.sequences, args.frames, args.width)
    shown = dict(zip(places, tqdm(rows, total=len(places), desc="show", unit="sequence"), strict=True))
    write_image(args.out, np.concatenate([one.row for one in shown.values()]))

    lengths = {place: len(folder.sequences[place]) for place in shown}
    gaps = {place: sum(is_held(folder.sequences[place], i) for i in range(length)) for place, length in lengths.items()}
    table: list[Row] = [
        {
            "sequence": _printable(folder.sequences[place].name),
            "frames": lengths[place],
            "size": _size(one.size),
            "clips": _size(one.scaled),
            "channels": folder.spec.channels,
            "gaps": gaps[place],
        }
        for place, one in shown.items()
    ]
    print(format_table(table, ("sequence", "frames", "size", "clips", "channels", "gaps")))
    print(f"{_printable(str(args.out))}: {len(shown)} of {len(folder.sequences)} sequences, {folder.spec.describe()}")
    names = {folder.sequences[place].name: list(one.stems) for place, one in shown.items()}
    totals = {"sequences": len(folder.sequences), "frames": sum(folder.lengths), "channels": folder.spec.channels}
    total_gaps = sum(is_held(sequence, i) for sequence in folder.sequences for i in range(len(sequence)))
    print(json.dumps({"out": str(args.out), **totals, "gaps": total_gaps, "shown": names}))


def _printable(text: str) -> str:
    """A name for people; bytes that are not UTF-8 are shown by their numbers."""
    return text.encode("utf-8", "backslashreplace").decode()


def _size(size: tuple[int, int]) -> str:
    """Width and height as people write them."""
    return f"{size[1]}x{size[0]}"


def main(argv: list[str]) -> int:
    """``fastv2v show --data DIR --out SHEET.png``."""
    show(parse(Show, "fastv2v show", argv))
    return 0
