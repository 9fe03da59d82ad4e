"""A program in the place of NVIDIA's nvidia-smi."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SPEAKING = """#!/bin/sh
echo "$@" > "$(dirname "$0")/asked"
case "$*" in
    *loop*) echo "250.0, 1000, 1500, 50"; exec sleep 60 ;;
    *) echo "200.0, 500, 1500, 50" ;;
esac
"""
"""Tells 500 MiB when it is asked once and 1000 MiB when it is to go on; notes what it was asked."""


def install(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put it before all others on the path; gives the file in which it notes what it was asked."""
    tool = folder / "nvidia-smi"
    tool.write_text(script)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder / "asked"
