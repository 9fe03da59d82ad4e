"""Every error this project raises on purpose.

Each also derives from the built-in class a caller would expect. The command line turns all of them into one sentence
on standard error and the error's exit status; anything else is a defect and keeps its traceback.
"""

from __future__ import annotations

from typing import ClassVar


class FastV2VError(Exception):
    """Base of the errors whose message is written for the person who called."""

    exit_status: ClassVar[int] = 2
    """What the command line returns: 2, could not run, or 1, ran and fell short of what was asked."""


class ConfigError(FastV2VError, ValueError):
    """A setting contradicts itself or another setting."""


class ShapeError(FastV2VError, ValueError):
    """A tensor or image does not have the shape that was promised."""


class DataError(FastV2VError, ValueError):
    """A file of a data set is missing, damaged or disagrees with its neighbours; the message names it."""


class CheckpointError(FastV2VError, RuntimeError):
    """A checkpoint is incomplete, damaged or of another architecture."""


class BundleError(FastV2VError, RuntimeError):
    """A deployed bundle is incomplete, altered, or cannot run here."""


class ParityError(BundleError):
    """An exported graph ran and strays further from its module than was allowed."""

    exit_status = 1


class MachineError(BundleError):
    """Whatever is tried with the bundle, this machine cannot run it now: no working driver, or no memory left."""


class BuildCancelledError(BundleError):
    """The caller stopped the build of an engine."""

    exit_status = 1


class MediaError(FastV2VError, RuntimeError):
    """A video or picture could not be read or written."""


class DivergenceError(FastV2VError, RuntimeError):
    """A loss became NaN or infinite; the message names step, player and term."""

    exit_status = 1


class MissingExtraError(FastV2VError, ImportError):
    """An optional dependency is not installed; the message names the extra."""
