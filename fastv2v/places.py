"""Where results go: refused before anything is computed, not after minutes of work."""

from __future__ import annotations

import os
from pathlib import Path

from fastv2v.errors import ConfigError


def check_place(path: Path) -> None:
    """Refuse a file or folder to be made where nothing can be made.

    Args:
        path: what shall be written; folders above it may be missing yet.

    Raises:
        ConfigError: if the nearest folder above it that exists is none, or may not be written to.
    """
    above = Path(path).absolute().parents
    existing = next(place for place in above if os.path.lexists(place))
    if not existing.is_dir():
        raise ConfigError(f"{path} cannot be written: {existing} is not a folder; choose another place")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(
            f"{path} cannot be written: {existing} gives this user no right to; choose another place, or change its "
            "permissions"
        )
