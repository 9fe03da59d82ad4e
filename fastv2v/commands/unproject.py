"""``fastv2v unproject``: say which point of the world is seen at which pixel of every frame of a data set."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from fastv2v.commands.arguments import parse
from fastv2v.data.unproject import ABOUT, PICTURE, Coverage, UnprojectConfig, unproject_folder


@dataclass(frozen=True, kw_only=True)
class Unproject:
    """Say which point of the world is seen at which pixel of every frame, for world-consistent teachers."""

    data: Path
    """The data set."""
    out: Path | None = None
    """Where <phase>_unprojections are written; by default into the data set."""
    overwrite: bool = False
    """Make sequences again that are there. Without, finished ones are kept, so that a second call goes on."""
    config: Annotated[UnprojectConfig, tyro.conf.arg(name="")] = field(default_factory=UnprojectConfig)
    """Where points come from."""


def unproject(args: Unproject) -> tuple[Coverage, ...]:
    """Make unprojections with a progress bar.

    Raises:
        DataError: as ``unproject_folder``.
        MissingExtraError: if structure from motion is wanted and not installed.
    """
    with tqdm(unit="frame", desc="unproject", dynamic_ncols=True) as bar:

        def progress(done: int, total: int, text: str) -> None:
            bar.total = total
            bar.set_postfix_str(text, refresh=False)
            bar.update(done - bar.n)
            bar.refresh()

        return unproject_folder(args.data, args.config, out=args.out, overwrite=args.overwrite, progress=progress)


def _table(results: tuple[Coverage, ...]) -> list[str]:
    """A row for each sequence, percentages of pixels."""
    head = f"{'sequence':<24} {'frames':>6} {'points':>9} {'covered':>8} {'painted':>8} {'kept':>6} {'error':>6}"
    rows = [
        f"{f'{r.phase} {r.sequence}':<24} {r.num_frames:>6} {r.num_points:>9} {r.covered[0]:>8.1%} {r.guided[0]:>8.1%} "
        f"{r.kept:>6.1%} {r.colour_error:>6.1f}"
        for r in results
    ]
    return [head, *rows]


def main(argv: list[str]) -> int:
    """``fastv2v unproject --data DIR``."""
    args = parse(Unproject, "fastv2v unproject", argv)
    results = unproject(args)
    print(*_table(results), sep="\n")
    print(f"each sequence has {ABOUT} and {PICTURE} beside its files")
    print(json.dumps({"sequences": [asdict(result) for result in results]}))
    return 0
