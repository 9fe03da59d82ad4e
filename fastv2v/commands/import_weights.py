"""``fastv2v import-weights``: published weights become a network of ours, checked against known outputs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from fastv2v.commands.arguments import parse
from fastv2v.errors import ConfigError, DataError
from teachers.import_weights import (
    file_sha256,
    import_network,
    read_description,
    read_state_dict,
    refuse_existing,
    save_imported,
)
from teachers.known_outputs import TOLERANCE, Difference, compare, read_examples


@dataclass(frozen=True, kw_only=True)
class ImportWeights:
    """Read a published state dict of vid2vid or Fast-Vid2Vid, place every tensor, and compare with known outputs."""

    weights: tyro.conf.Positional[Path]
    """State dict of the reference implementation (.pth); code in it is never run."""
    describe: Path
    """JSON with the reference network's name and constructor values."""
    verify: Path | None = None
    """Known inputs and outputs (.npz) to reproduce in training and in evaluation mode."""
    out: Path | None = None
    """Folder to write the network to; must not exist. Nothing is written where the outputs differ."""
    tolerance: float = TOLERANCE
    """Greatest difference from the known outputs, beyond what rounding explains."""

    def __post_init__(self) -> None:
        if not self.tolerance >= 0:
            raise ConfigError(f"tolerance must not be negative, got {self.tolerance}")


def import_weights(args: ImportWeights) -> int:
    """Do as told; returns the exit status."""
    if args.out is not None:
        refuse_existing(args.out)
    description, tensors = read_description(args.describe), read_state_dict(args.weights)
    imported = import_network(tensors, description, str(args.weights))
    blueprint = imported.blueprint
    count = sum(parameter.numel() for parameter in imported.network.parameters())
    print(f"{args.weights}: all {len(tensors)} tensors placed in {blueprint.network!r}, {count / 1e6:.3f} M parameters")
    for note in imported.notes:
        print(f"  note: {note}")
    differences: list[Difference] = []
    if args.verify is not None:
        examples = read_examples(args.verify)
        try:
            differences = compare(imported, examples, args.tolerance)
        except DataError as error:
            raise DataError(f"{args.verify}: {error}") from error
        print(table(differences))
    agrees = all(difference.agrees for difference in differences)
    result: dict[str, Any] = {
        "network": blueprint.network,
        "tensors": len(tensors),
        "verified": bool(differences) and agrees,
        "greatest": _number(max((d.greatest for d in differences), key=_nan_last)) if differences else None,
        "tolerance": args.tolerance,
        "differences": [
            {"mode": d.mode, "output": d.output, "greatest": _number(d.greatest), "rounding": _number(d.rounding)}
            for d in differences
        ],
    }
    if args.out is not None and agrees:
        source = {"file": args.weights.name, "sha256": file_sha256(args.weights), "description": description}
        save_imported(imported, args.out, {"source": source, "verification": result if differences else None})
        print(f"{args.out}: written" + ("" if differences else ", unverified"))
    elif args.out is not None:
        print(f"{args.out}: not written, the outputs differ")
    print(json.dumps({**result, "out": str(args.out) if args.out is not None and agrees else None}))
    return 0 if agrees else 1


def table(differences: list[Difference]) -> str:
    """The differences for people, greatest last."""
    wide = max(len(d.output) for d in differences)
    lines = [f"  {'output':<{wide}}  mode   difference  rounding"]
    lines += [
        f"  {d.output:<{wide}}  {d.mode:<5}  {d.greatest:10.1e}  {d.rounding:8.1e}{'' if d.agrees else '  differs'}"
        for d in differences
    ]
    worst = max(differences, key=lambda d: _nan_last(d.greatest))
    wrong = sum(not d.agrees for d in differences)
    verdict = "the same function" if not wrong else f"{wrong} of {len(differences)} outputs differ"
    lines.append(
        f"greatest difference {worst.greatest:.1e} ({worst.output}, {worst.mode}); accepted are {worst.tolerance:.0e} "
        f"and twice the rounding of float32: {verdict}"
    )
    return "\n".join(lines)


def _nan_last(value: float) -> tuple[bool, float]:
    """Sorts what is no number as the greatest."""
    return (value != value, value)


def _number(value: float) -> float | None:
    """A value that JSON can hold."""
    return value if abs(value) < float("inf") else None


def main(argv: list[str]) -> int:
    """``fastv2v import-weights X.pth --describe X.json --verify X.npz [--out FOLDER]``."""
    return import_weights(parse(ImportWeights, "fastv2v import-weights", argv))
