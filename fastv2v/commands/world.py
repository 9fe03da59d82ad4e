"""``fastv2v world``: write the procedural street world."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from fastv2v.commands.arguments import parse
from fastv2v.data.world import WorldConfig, write_world


@dataclass(frozen=True, kw_only=True)
class World:
    """Write the procedural street world: frames, labels, instances, depth and cameras in vid2vid's folder layout."""

    out: Path
    """Folder to write; an identical world found there is kept."""
    world: WorldConfig = field(default_factory=WorldConfig)
    """What is drawn."""
    train_clips: int = 6
    """Clips to train on, each another street."""
    test_clips: int = 2
    """Clips held out, other streets again."""
    flow: bool = False
    """Also write the exact optical flow both ways."""
    unprojections: bool = False
    """Also write which point of the world is seen at which pixel, exact, for world-consistent teachers. With
    --world.camera return the camera leaves and comes back."""
    num_workers: int = 2
    """Processes that draw; the result does not depend on it."""
    overwrite: bool = False
    """Replace another world found there."""


def make_world(args: World) -> Path:
    """Write the world with a progress bar; returns its folder."""
    with tqdm(unit="frame", desc="world", dynamic_ncols=True) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return write_world(
            args.out,
            args.world,
            train_clips=args.train_clips,
            test_clips=args.test_clips,
            num_workers=args.num_workers,
            overwrite=args.overwrite,
            write_flow=args.flow,
            write_points=args.unprojections,
            progress=progress,
        )


def main(argv: list[str]) -> int:
    """``fastv2v world --out DIR``."""
    args = parse(World, "fastv2v world", argv)
    out = make_world(args)
    print(f"{out}: {args.train_clips} clips to train on, {args.test_clips} to test on")
    print(json.dumps({"out": str(out), "train_clips": args.train_clips, "test_clips": args.test_clips}))
    return 0
