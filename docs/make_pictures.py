"""Draws the pictures of the documentation from a teacher, the bundle of its student and their data set.

    python docs/make_pictures.py --teacher RUN --bundle NAME.v2v --data DIR

They were made of the procedural street: ``fastv2v world --world.num-frames 110``, recipe ``demo``, student ``micro``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from export.runtime import open_bundle
from fastv2v.architecture import load_trained
from fastv2v.commands.arguments import parse
from fastv2v.commands.benchmark import condition_maps
from fastv2v.commands.synthesize import Made, data_of, roll_out, to_picture
from fastv2v.data.classes import colourise
from fastv2v.data.folder import open_folder
from fastv2v.data.loader import read_sequence
from fastv2v.device import DeviceConfig, open_device
from fastv2v.nn.norms import batch_statistics
from fastv2v.ops.labels import encode_clip
from fastv2v.ops.pictures import part_pictures

Image = NDArray[np.uint8]
SHOWN = (1, 8, 16, 32)
"""Frames of a rollout that are shown."""
FOREGROUND = ("car", "person", "cyclist")
GAP, GAP_COLOUR = 4, (255, 255, 255)
"""Pixels between pictures of a sheet, and their colour."""


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Draw the pictures of the documentation."""

    teacher: Path
    """Run of the teacher."""
    bundle: Path
    """Bundle of its student, NAME.v2v."""
    data: Path
    """Data set folder with label maps."""
    out: Path = Path(__file__).parent / "images"
    """Where they go."""
    sequence: int = 0
    """Which held-out sequence."""
    frames: int = 72
    """Frames of the moving picture."""
    detail_frame: int = 3
    """Frame of which the parts are shown."""


def sheet(rows: Sequence[Sequence[Image]]) -> Image:
    """Pictures (H, W, 3) of one size in rows, with a gap between them."""
    height, width = rows[0][0].shape[:2]
    shape = (len(rows) * (height + GAP) - GAP, max(map(len, rows)) * (width + GAP) - GAP, 3)
    made = np.full(shape, GAP_COLOUR, np.uint8)
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            top, left = y * (height + GAP), x * (width + GAP)
            made[top : top + height, left : left + width] = picture
    return made


def write(path: Path, picture: Image) -> None:
    """Write a JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88]):
        raise OSError(f"{path} cannot be written")


def write_moving(path: Path, frames: Sequence[Image], fps: float) -> None:
    """Write an animated WebP that repeats for ever."""
    animation: Any = cv2.Animation()
    animation.frames = [np.ascontiguousarray(frame[..., ::-1]) for frame in frames]
    animation.durations = [round(1000 / fps)] * len(frames)
    if not cv2.imwriteanimation(str(path), animation, [cv2.IMWRITE_WEBP_QUALITY, 85]):
        raise OSError(f"{path} cannot be written")


def framed(picture: Image) -> Image:
    """The picture with a border inside it."""
    return cv2.rectangle(picture.copy(), (1, 1), (picture.shape[1] - 2, picture.shape[0] - 2), (255, 200, 0), 3)


def grey(mask: NDArray[np.floating[Any]]) -> Image:
    """Values in [0, 1], (H, W), as a picture."""
    return np.repeat((255 * mask).astype(np.uint8)[..., None], 3, axis=2)


def main(argv: list[str]) -> int:
    """Roll teacher and stream out over one held-out sequence and draw everything."""
    args = parse(Pictures, "make_pictures", argv)
    device = open_device(DeviceConfig())
    teacher = load_trained(args.teacher)
    generator = teacher.generator.to(device.device)
    folder = open_folder(data_of(teacher.architecture, args.data, "test"))
    clip = read_sequence(folder, args.sequence, 0, min(args.frames, folder.lengths[args.sequence]))
    assert clip.labels is not None  # Pictures asks for label maps
    ids = clip.labels[0].numpy()
    maps = [colourise(x, folder.palette) for x in ids]
    real = [to_picture(frame[None]) for frame in clip.frames[0]]
    with batch_statistics(generator):
        rolled: list[Made] = list(roll_out(generator, partial(encode_clip, folder.spec), [clip], 1, device))
    taught = [to_picture(made.output.frame) for made in rolled]
    with open_bundle(args.bundle) as stream:
        stream.restart(real[0])
        delivered = list(stream.frames(condition_maps(clip)))
    made, keys = [item.frame for item in delivered], [item.is_keyframe for item in delivered]

    shown = [t for t in SHOWN if t < len(real)]
    write(args.out / "method-rollout.jpg", sheet([[row[t] for t in shown] for row in (maps, real, taught)]))
    at = args.detail_frame
    parts = {name: to_picture(part) for name, part in part_pictures(rolled[at].output).items()}
    below = [parts["warped"], parts["flow"], parts["occlusion"]]
    write(args.out / "method-parts.jpg", sheet([[maps[at], parts["hallucinated"], taught[at]], below]))
    names = folder.spec.class_names
    moving = np.isin(ids[at], [names.index(name) for name in FOREGROUND]).astype(np.float32)
    responsible = (real[at] * moving[..., None]).astype(np.uint8)
    write(args.out / "method-foreground.jpg", sheet([[maps[at], grey(moving), responsible]]))
    key = next(t for t in range(at, len(keys)) if keys[t])
    height, width = maps[key].shape[:2]
    coarse = cv2.resize(maps[key], (width // 4, height // 4), interpolation=cv2.INTER_AREA)
    read = np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8)
    write(args.out / "method-distillation.jpg", sheet([[maps[key], read, taught[key], made[key]]]))
    strip = [framed(made[t]) if keys[t] else made[t] for t in range(key, key + 5)]
    write(args.out / "method-keyframes.jpg", sheet([strip]))
    moved = [sheet([[maps[t], made[t], real[t]]]) for t in range(len(real))]
    write_moving(args.out / "stream.webp", moved, 15.0)
    print(f"{args.out}: 5 pictures, {len(moved)} frames in the moving one")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
