"""``fastv2v pack``: put all files of a data set into one LMDB database."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from fastv2v.commands.arguments import parse
from fastv2v.data.packed import PackSummary, pack_folder
from fastv2v.data.paired import PairedSummary, pack_paired
from fastv2v.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Pack:
    """Put all files of a data set into one LMDB database, which every verb reads with --data NAME.lmdb."""

    data: Path
    """Folder of the data set."""
    out: Path
    """The packed data set to write, NAME.lmdb."""
    paired: bool = False
    """Pack only frames, label maps, instance maps and unprojections, and only of frames that have them all (an
    unprojection may lack); unprojections are stored so that they are read fastest."""
    remove_missing: bool = False
    """With --paired: leave out frames that lack a file, instead of refusing the data set."""
    overwrite: bool = False
    """Replace a packed data set found there."""


def pack(args: Pack) -> PackSummary | PairedSummary:
    """Pack with a progress bar; every file counts twice, when it is written and when it is read back.

    Raises:
        ConfigError: if the name to write does not end in ``.lmdb``.
        DataError: as ``pack_folder`` and ``pack_paired``.
    """
    if args.out.suffix != ".lmdb":
        raise ConfigError(f"the name of a packed data set ends in .lmdb, got {args.out}; change --out")
    if args.remove_missing and not args.paired:
        raise ConfigError("remove_missing goes with --paired; pack without it takes every file as it is")
    with tqdm(unit="file", desc="pack", dynamic_ncols=True) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        if args.paired:
            return pack_paired(
                args.data, args.out, remove_missing=args.remove_missing, overwrite=args.overwrite, progress=progress
            )
        return pack_folder(args.data, args.out, overwrite=args.overwrite, progress=progress)


def main(argv: list[str]) -> int:
    """``fastv2v pack --data DIR --out NAME.lmdb``."""
    done = pack(parse(Pack, "fastv2v pack", argv))
    if isinstance(done, PairedSummary):
        rows = {
            "frames": f"{done.num_frames}",
            "sequences": f"{done.num_sequences}",
            "left out": f"{done.num_left_out}",
            "without points": f"{done.num_without_points}",
        }
    else:
        rows = {
            "files": f"{done.num_files}",
            "sequences": f"{done.num_sequences}",
            "MB packed": f"{done.packed_bytes / 1e6:.1f}",
        }
    rows |= {"MB of files": f"{done.num_bytes / 1e6:.1f}", "seconds": f"{done.seconds:.1f}"}
    width = max(map(len, rows))
    print(done.target, *(f"  {name:<{width}}  {value:>8}" for name, value in rows.items()), sep="\n")
    print(json.dumps({**asdict(done), "target": str(done.target)}))
    return 0
