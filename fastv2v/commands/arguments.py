"""Command lines made from dataclasses: every field is an option, its sentence the help."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import tyro

Args = TypeVar("Args")


def parse(kind: type[Args], prog: str, argv: list[str]) -> Args:
    """Arguments of a verb without presets; exits with status 2 where they are wrong."""
    return tyro.cli(kind, prog=prog, description=kind.__doc__, args=argv)


def parse_preset(prog: str, description: str, presets: Mapping[str, tuple[str, Any]], argv: list[str]) -> Any:
    """Arguments of a verb whose first word is a preset; every field of the preset can be changed after it.

    Args:
        prog: how the verb is called.
        description: one sentence.
        presets: by name: a sentence and the arguments they stand for.
        argv: words after the verb.
    """
    return tyro.extras.overridable_config_cli(dict(presets), prog=prog, description=description, args=argv)
