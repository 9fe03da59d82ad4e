"""``fastv2v stream``: label maps in, every frame out. Runs without torch."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from tqdm import tqdm

from export.runtime import ConditionMap, open_bundle
from fastv2v.commands.arguments import parse
from fastv2v.data.images import is_image_file, read_image, read_label
from fastv2v.errors import ConfigError, DataError
from fastv2v.video import VideoWriter, write_image


@dataclass(frozen=True, kw_only=True)
class StreamArgs:
    """Run a bundle over a folder of label maps and write every frame."""

    bundle: Path
    """Bundle folder, NAME.v2v."""
    conditions: Path
    """Folder of one sequence's label maps, in the order of their names."""
    out: Path
    """Video to write (.mp4, .mkv), or a folder for PNG frames."""
    instances: Path | None = None
    """Folder of instance maps with the same names, where the bundle uses them."""
    seed_frame: Path | None = None
    """Real picture of the first frame to start from; without it the stream starts from nothing."""
    engine: Literal["auto", "onnxruntime", "openvino"] = "auto"
    """Engine; auto takes the fastest that was measured and accepted at export."""
    threads: int | None = None
    """CPU threads; all by default."""
    overwrite: bool = False
    """Replace an output of this name."""


def condition_files(folder: Path) -> list[Path]:
    """Pictures of a folder, by name.

    Raises:
        DataError: if there is no such folder or it holds none.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder of label maps")
    files = sorted(path for path in folder.iterdir() if is_image_file(path))
    if not files:
        raise DataError(f"{folder} holds no pictures; give the folder of one sequence, such as DATA/test_A/clip_006")
    return files


def read_conditions(
    files: list[Path], size: tuple[int, int], *, labels: bool, instances: Path | None
) -> Iterator[ConditionMap]:
    """Condition of each frame at the bundle's size (height, width), nearest for ids."""
    shape = (size[1], size[0])
    for file in files:
        if not labels:
            picture = cv2.resize(read_image(file), shape, interpolation=cv2.INTER_AREA)
            yield ConditionMap(maps=np.moveaxis(picture, -1, 0).astype(np.float32) / 127.5 - 1)
            continue
        ids = cv2.resize(read_label(file), shape, interpolation=cv2.INTER_NEAREST_EXACT)
        borders = None
        if instances is not None:
            borders = cv2.resize(
                read_label(instances / f"{file.stem}.png"), shape, interpolation=cv2.INTER_NEAREST_EXACT
            )
        yield ConditionMap(labels=ids, instances=borders)


def main(argv: list[str]) -> int:
    """``fastv2v stream --bundle NAME.v2v --conditions DIR --out VIDEO``."""
    args = parse(StreamArgs, "fastv2v stream", argv)
    if args.out.exists() and not args.overwrite:
        raise ConfigError(f"{args.out} exists; name another output or give --overwrite")
    files = condition_files(args.conditions)
    stream = open_bundle(args.bundle, engine=args.engine, threads=args.threads)
    manifest = stream.manifest
    if args.seed_frame is not None:
        height, width = manifest.size
        stream.restart(cv2.resize(read_image(args.seed_frame), (width, height), interpolation=cv2.INTER_AREA))
    conditions = read_conditions(
        files, manifest.size, labels=manifest.condition.kind == "labels", instances=args.instances
    )
    began = time.perf_counter()
    delivered = stream.frames(conditions)
    bar = tqdm(delivered, total=len(files), unit="frame", desc=args.bundle.stem, dynamic_ncols=True)
    if args.out.suffix.lower() in (".mp4", ".mkv"):
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with VideoWriter(args.out, manifest.fps) as writer:
            for item in bar:
                writer.write(item.frame)
    else:
        for item in bar:
            write_image(args.out / f"{files[item.index].stem}.png", item.frame)
    seconds = time.perf_counter() - began
    stats = stream.stats
    stream.close()
    print(
        f"{args.out}: {stats.frames} frames ({stats.keyframes} synthesised) in {seconds:.2f} s with reading and "
        f"writing, {stats.frames / seconds:.1f} frames/s; synthesis {stats.synthesis_s:.2f} s, filling "
        f"{stats.fill_s:.2f} s"
    )
    print(
        json.dumps(
            {
                "out": str(args.out),
                "frames": stats.frames,
                "keyframes": stats.keyframes,
                "seconds": round(seconds, 3),
                "synthesis_s": round(stats.synthesis_s, 3),
                "fill_s": round(stats.fill_s, 3),
            }
        )
    )
    return 0
