"""Real data beside the repository, for the tests that want it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def shared(name: str) -> Path:
    """A folder of the shared data; skips the test where it is absent."""
    root = Path(os.environ.get("FASTV2V_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    path = root / "data" / name
    if not path.exists():
        pytest.skip(f"{name} is not here: set FASTV2V_SHARED to the folder that holds data/{name}")
    return path
