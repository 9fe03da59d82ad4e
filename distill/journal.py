"""What a search has found out so far, in one file, so that it can go on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.search import Candidate
from fastv2v.config import from_dict, to_dict
from fastv2v.errors import ConfigError, DataError
from fastv2v.run import write_json


class Journal:
    """What a search has found out so far: times and judged students, in one file that is always whole.

    Args:
        path: of the file.
        asked: what decides which student is found, but for the super-network's weights.
        fresh: delete what is there.

    Raises:
        ConfigError: if the file is of another search, naming what differs.
        DataError: if it is damaged.
    """

    def __init__(self, path: Path, asked: Mapping[str, Any], *, fresh: bool) -> None:
        self._path, self._asked = path, dict(asked)
        self.weights_sha256: str | None = None
        """Of the super-network's weights file."""
        self.latencies: dict[str, float] = {}
        """Milliseconds by ``describe_student``."""
        self.candidates: list[Candidate] = []
        if fresh:
            path.unlink(missing_ok=True)
        if path.exists():
            self._read()

    def _read(self) -> None:
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            there = dict(content["asked"])
            self.weights_sha256 = str(content["weights_sha256"])
            self.latencies = {str(name): float(ms) for name, ms in content["latencies_ms"].items()}
            self.candidates = [from_dict(Candidate, row) for row in content["candidates"]]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{self._path}: no record of a search ({error}); give --overwrite to search anew"
            ) from error
        self._refuse([key for key in self._asked if there.get(key) != self._asked[key]])

    def _refuse(self, differing: Sequence[str]) -> None:
        if differing:
            raise ConfigError(
                f"{self._path} is of another search (other {', '.join(differing)}); use another --run, with "
                "--super-run to keep the super-network, or --overwrite"
            )

    def begin(self, weights: Path) -> None:
        """Judge by these weights from now on; until then nothing is written.

        Raises:
            ConfigError: if there are candidates that were judged by others.
        """
        with weights.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        self._refuse(["weights of the super-network"] if self.weights_sha256 not in (None, found) else [])
        self.weights_sha256 = found
        self.write()

    def write(self) -> None:
        """Put everything on disk."""
        if self.weights_sha256 is not None:
            rows = [to_dict(candidate) for candidate in self.candidates]
            content = {"asked": self._asked, "weights_sha256": self.weights_sha256}
            write_json(self._path, {**content, "latencies_ms": self.latencies, "candidates": rows})
