"""The command line: ``fastv2v VERB``. Nothing heavy is imported before a verb is chosen."""

from __future__ import annotations

import difflib
import importlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from fastv2v.errors import FastV2VError, MissingExtraError

_LOG = logging.getLogger(__name__)

DONE, FELL_SHORT, COULD_NOT_RUN, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses."""

_NO_MEMORY = ("can't allocate memory", "out of memory", "failed to allocate")
"""What libraries say when there is too little of it."""
_OWN = ("fastv2v", "teachers", "students", "distill", "interpolate", "export", "benchmarks")
"""Packages of this project: one of them missing is a defect, not an installation."""
_LOG_LEVELS = ("debug", "info", "warning", "error", "critical")


class Verb(NamedTuple):
    """A verb of the command line."""

    summary: str
    """One line for the overview."""
    function: str
    """``module:function``, imported when the verb is called; takes the arguments after it, returns the exit status."""


COMMANDS = {
    "doctor": Verb("tell what this machine can run, and what to install", "fastv2v.commands.doctor:main"),
    "demo": Verb("run the whole line on a data set or the procedural world", "fastv2v.commands.demo:main"),
    "world": Verb("write the procedural street world as a data set", "fastv2v.commands.world:main"),
    "prepare": Verb("make a data set from a plain video", "fastv2v.commands.prepare:main"),
    "show": Verb("draw a data set and its conditions on one sheet", "fastv2v.commands.show:main"),
    "unproject": Verb("find which point of the world each pixel shows", "fastv2v.commands.unproject:main"),
    "pack": Verb("put a data set into one LMDB database", "fastv2v.commands.pack:main"),
    "train-teacher": Verb("train a full-time teacher", "fastv2v.commands.train:main_teacher"),
    "train-first": Verb("train a generator for the first frames", "fastv2v.commands.train:main_first"),
    "precompute": Verb("write a teacher's frames, for students to learn from", "fastv2v.commands.precompute:main"),
    "train-skd": Verb("distil a low-resolution student from it", "fastv2v.commands.train:main_spatial"),
    "train-tkd": Verb("make the student part-time: keyframes only", "fastv2v.commands.train:main_temporal"),
    "search": Verb("find the best student that a budget buys", "fastv2v.commands.search:main"),
    "looks": Verb("learn what the objects of each class look like", "fastv2v.commands.looks:main"),
    "synthesize": Verb("roll a trained generator out over label maps", "fastv2v.commands.synthesize:main"),
    "train-predictor": Verb("train a predictor of future label maps", "fastv2v.commands.predict:main_train"),
    "predict": Verb("predict label maps and let a teacher draw them", "fastv2v.commands.predict:main"),
    "train-interpolation": Verb(
        "train the network that fills frames best", "fastv2v.commands.train_interpolation:main"
    ),
    "export": Verb("turn a student into a deployable bundle", "fastv2v.commands.export:main"),
    "stream": Verb("run a bundle: label maps in, every frame out", "fastv2v.commands.stream:main"),
    "live": Verb("drive a bundle from a page: camera, video or clip", "fastv2v.commands.live:main"),
    "benchmark": Verb("measure cost, speed, quality and interpolation", "fastv2v.commands.benchmark:main"),
    "compare": Verb("hold students against their teacher, with verdicts", "fastv2v.commands.compare:main"),
    "report": Verb("write the page of a benchmark again", "fastv2v.commands.report:main"),
    "import-weights": Verb("turn published weights into a network of ours", "fastv2v.commands.import_weights:main"),
}
"""Every verb, in the order of the line."""

_GOES_ON = dict.fromkeys(
    (
        "demo",
        "train-teacher",
        "train-first",
        "train-skd",
        "train-tkd",
        "search",
        "train-predictor",
        "train-interpolation",
    ),
    "from the last checkpoint",
) | {
    "precompute": "with the sequence at which it was stopped",
    "prepare": "where it was stopped",
}
"""Verbs that go on where they were interrupted, and from where."""


def overview() -> str:
    """The text of ``fastv2v --help``."""
    width = max(map(len, COMMANDS))
    verbs = "\n".join(f"  {name:<{width}}  {verb.summary}" for name, verb in COMMANDS.items())
    return (
        "usage: fastv2v VERB [options]\n\n"
        "Real-time video-to-video synthesis: train a teacher, distil a student, deploy and measure it.\n\n"
        f"verbs:\n{verbs}\n\n"
        "fastv2v VERB --help explains a verb. FASTV2V_LOG=debug shows more of what happens.\n"
        "exit status: 0 done, 1 ran and fell short, 2 could not run, 130 interrupted"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: arguments after the program's name; those of the process by default.

    Returns:
        Exit status: 0 done, 1 ran and fell short of what was asked, 2 could not run, 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return DONE
    if arguments[0] == "--version":
        from fastv2v import __version__

        print(__version__)
        return DONE
    name = arguments.pop(0)
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"; did you mean {near[0]}?" if near else "; fastv2v --help lists the verbs"
        print(f"fastv2v: unknown verb {name!r}{hint}", file=sys.stderr)
        return COULD_NOT_RUN
    level = os.environ.get("FASTV2V_LOG", "warning")
    if level.lower() not in _LOG_LEVELS:
        print(f"fastv2v: FASTV2V_LOG is {level!r}; set it to one of {', '.join(_LOG_LEVELS)}", file=sys.stderr)
        return COULD_NOT_RUN
    logging.basicConfig(level=level.upper(), format="%(levelname)s: %(message)s", stream=sys.stderr)
    try:
        return int(_function(name)(arguments))
    except FastV2VError as error:
        print(f"fastv2v {name}: {error}", file=sys.stderr)
        return error.exit_status
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(sign in str(error).lower() for sign in _NO_MEMORY):
            raise
        _LOG.debug("where it happened", exc_info=True)
        print(
            f"fastv2v {name}: out of memory; take a smaller size, width, batch or clip, or for training "
            "--recipe.task.rollout.gradient-checkpointing",
            file=sys.stderr,
        )
        return COULD_NOT_RUN
    except OSError as error:
        _LOG.debug("where it happened", exc_info=True)
        print(f"fastv2v {name}: {_describe(error)}", file=sys.stderr)
        return COULD_NOT_RUN
    except KeyboardInterrupt:
        hint = f"; the same command goes on {_GOES_ON[name]}" if name in _GOES_ON else ""
        print(f"\nfastv2v {name}: interrupted{hint}", file=sys.stderr)
        return INTERRUPTED


def _function(verb: str) -> Callable[[list[str]], int]:
    """The function of a verb; its module is imported here.

    Raises:
        MissingExtraError: if a package that it needs is not installed, as in an environment made for deployment only.
    """
    module, function = COMMANDS[verb].function.split(":")
    try:
        found: Callable[[list[str]], int] = getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in _OWN:
            raise
        raise MissingExtraError(
            f"this verb needs the package {error.name}, which is not installed here; install it, or fastv2v with all "
            "its dependencies (bash scripts/setup.sh)"
        ) from error
    return found


def _describe(error: OSError) -> str:
    """One sentence on what the system refused: the file where it names one, its reason, what to look at."""
    reason = " ".join((error.strerror or str(error) or type(error).__name__).split())
    if error.filename is None:
        return f"{reason}; check permissions and free space"
    return f"{os.fsdecode(error.filename)}: {reason}; check this path, its permissions and the free space"


if __name__ == "__main__":
    sys.exit(main())
