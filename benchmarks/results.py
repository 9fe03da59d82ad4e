"""The result file of a benchmark: one JSON document, checked against a schema at writing and at reading."""

from __future__ import annotations

import json
import math
import os
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import jsonschema

from fastv2v.environment import describe_commit, describe_machine, describe_versions, machine_slug
from fastv2v.errors import ConfigError, DataError

SCHEMA_VERSION: Final = 1

Scalar = str | int | float | bool | None
Row = Mapping[str, Scalar]
"""One line of a table: a ``name`` and what was found for it. A measured time or rate is a ``median`` with its ``unit``
and ``spread``."""

_SCALAR: Final = {"type": ["string", "number", "boolean", "null"]}
SCHEMA: Final[dict[str, Any]] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "fastv2v benchmark result",
    "type": "object",
    "additionalProperties": False,
    "required": [
        "schema_version",
        "suite",
        "created",
        "machine",
        "device",
        "commit",
        "versions",
        "threads",
        "precision",
        "repeats",
        "settings",
        "rows",
    ],
    "properties": {
        "schema_version": {"const": SCHEMA_VERSION},
        "suite": {"type": "string", "pattern": "^[a-z0-9][a-z0-9_]*$"},
        "created": {"type": "string", "minLength": 1},
        "machine": {"type": "object", "required": ["cpu", "cores", "os", "python"]},
        "device": {"type": "string", "pattern": "^[a-z0-9][a-z0-9._-]*$"},
        "commit": {"type": ["string", "null"]},
        "versions": {"type": "object", "additionalProperties": {"type": "string"}},
        "threads": {"type": "integer", "minimum": 1},
        "precision": {"type": "string", "minLength": 1},
        "repeats": {"type": "integer", "minimum": 1},
        "settings": {"type": "object"},
        "rows": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": {"type": "string", "minLength": 1},
                    "median": {"type": "number"},
                    "spread": {"type": "number", "minimum": 0},
                    "unit": {"type": "string"},
                },
                "additionalProperties": _SCALAR,
                "dependentRequired": {"median": ["spread", "unit"]},
            },
        },
    },
}
"""JSON schema of the file."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkResult:
    """What one suite found, and on what."""

    suite: str
    """Name of the suite: fps, cost, quality, interpolation, training, roofline."""
    rows: tuple[Row, ...]
    """The findings."""
    device: str
    """What the network ran on, as it goes into the file's name: ``cpu``, ``cuda``, ``openvino-cpu``."""
    threads: int
    """CPU threads used."""
    precision: str
    """Number format of the network: fp32, bf16, fp16, int8."""
    repeats: int = 1
    """How often each timed thing was done."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What else one needs to repeat it: sizes, presets, seeds, the command."""
    machine: Mapping[str, Any] = field(default_factory=describe_machine)
    """As ``fastv2v.environment.describe_machine`` gives."""
    versions: Mapping[str, str] = field(default_factory=describe_versions)
    """Versions of the libraries."""
    commit: str | None = field(default_factory=describe_commit)
    """Commit of this project, with ``-dirty`` for a changed tree."""
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    """Time of writing, ISO 8601 in UTC."""
    schema_version: int = SCHEMA_VERSION
    """Version of the file's schema."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(self.rows))
        if wrong := find_fault(self.to_dict()):
            raise ConfigError(f"this is no valid benchmark result: {wrong}")

    def to_dict(self) -> dict[str, Any]:
        """The document as plain lists and dictionaries."""
        return asdict(self) | {"rows": [dict(row) for row in self.rows]}


def find_fault(document: Any) -> str | None:
    """What is wrong with a result document, in one sentence; None for a valid one. NaN and infinity are refused."""
    validator = jsonschema.Draft202012Validator(SCHEMA)
    error = jsonschema.exceptions.best_match(validator.iter_errors(document))
    if error is not None:
        where = "/".join(map(str, error.absolute_path)) or "the document"
        return f"{where}: {error.message}"
    for row in document["rows"]:
        for key, value in row.items():
            if isinstance(value, float) and not math.isfinite(value):
                return f"{key} of {row['name']!r} is {value}; give null for what could not be measured"
    return None


def result_path(
    suite: str, device: str = "cpu", *, machine: str | None = None, folder: str | os.PathLike[str] | None = None
) -> Path:
    """Where the result of a suite belongs: ``<suite>--<machine>--<device>.json``.

    Args:
        suite: name of the suite.
        device: as in ``BenchmarkResult.device``.
        machine: short name of the machine; this one's by default.
        folder: ``benchmarks/results`` beside this file by default.

    Raises:
        ConfigError: if a name could not stand in a file name, or holds the separator.
    """
    machine = machine_slug() if machine is None else machine
    for part in (suite, device, machine):
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", part) or "--" in part:
            raise ConfigError(f"{part!r} cannot be part of a result's file name; use a-z, 0-9, '.', '_' and single '-'")
    base = Path(__file__).parent / "results" if folder is None else Path(folder)
    return base / f"{suite}--{machine}--{device}.json"


def write_result(path: str | os.PathLike[str], result: BenchmarkResult) -> None:
    """Write a result; the file appears complete or not at all.

    Args:
        path: see ``result_path``; its folder is created.
        result: what to write.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    text = json.dumps(result.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
    try:
        temporary.write_text(text + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_result(path: str | os.PathLike[str]) -> BenchmarkResult:
    """Read a result back.

    Raises:
        DataError: if the file is missing, is no JSON, or breaks the schema; the message names file and place.
    """
    path = Path(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such result file") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the result file is no JSON ({error}); run the benchmark again") from error
    if wrong := find_fault(document):
        raise DataError(f"{path}: {wrong}; run the benchmark again")
    return BenchmarkResult(**document)


def format_number(value: Scalar) -> str:
    """A value for people: four significant digits, thousands apart, a dash for what is missing.

    Args:
        value: what a row holds.
    """
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if value != 0 and not 1e-6 <= abs(value) < 1e9:
            return f"{value:.3g}"
        decimals = 3 - math.floor(math.log10(abs(value))) if value else 0
        return f"{value:,.{max(decimals, 0)}f}"
    return value


def format_table(rows: Sequence[Row], columns: Mapping[str, str] | Sequence[str]) -> str:
    """Rows as a text table: names left, numbers right.

    Args:
        rows: what to show; a key that a row lacks is shown as a dash.
        columns: keys in order, with their headings if it is a mapping.

    Returns:
        Lines without a final line break.
    """
    headings = dict(columns) if isinstance(columns, Mapping) else {key: key for key in columns}
    is_text = [any(isinstance(row.get(key), str) for row in rows) for key in headings]
    lines = [list(headings.values()), *([format_number(row.get(key)) for key in headings] for row in rows)]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    aligned = (
        [cell.ljust(w) if text else cell.rjust(w) for cell, w, text in zip(line, widths, is_text, strict=True)]
        for line in lines
    )
    return "\n".join("  ".join(cells).rstrip() for cells in aligned)
