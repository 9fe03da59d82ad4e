"""TensorRT engines inside a bundle: where they lie, what is known of each, and whether one fits this machine.

An engine belongs to the GPU, the TensorRT version and the graph it was built for, and to nothing else. So a bundle may
hold several, each in a folder of its own below ``engines/``: the plan, the plan of the half-pixel self-test, the timing
cache (which makes building again fast) and a record in JSON. The manifest lists them with their sha256 like every other
file. That shows damage, not origin: **a plan is executable code**, so load bundles with plans from people you trust, or
build the engines anew from the graph. Runs without torch and without TensorRT.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, NamedTuple, get_args

from export.bundle import ENGINES_FOLDER, STEP_GRAPH, Manifest, load_manifest, write_bundle
from export.prepare import TOLERANCES, Precision
from export.warp_graph import Warp
from fastv2v.config import from_dict, to_dict
from fastv2v.errors import BundleError, ConfigError

log = logging.getLogger(__name__)

PREFIX: Final = "tensorrt-"
RECORD: Final = "engine.json"
STEP_PLAN: Final = "step.plan"
SELF_TEST_PLAN: Final = "selftest.plan"
TIMING_CACHE: Final = "timing.cache"

PRECISIONS: Final = get_args(Precision)
WARPS: Final[tuple[Warp, ...]] = get_args(Warp)
"""How an engine moves the last frame, in the order they are tried: by TensorRT's own layer, by gathers, or not at all:
the engine then ends before the warp and torch does the rest."""
Hardware = Literal["same", "same-capability", "ampere-plus"]

_PREFERENCE: Final[tuple[Precision, ...]] = ("f16", "bf16", "f32", "int8", "fp8")
_AMPERE: Final = (8, 0)


@dataclass(frozen=True, kw_only=True)
class TensorRTConfig:
    """How a TensorRT engine is built."""

    precision: Precision = "f16"
    """Number format: f32, f16, bf16 (compute capability 8.0 and later), or int8 or fp8 (8.9 and later) for the inner
    convolutions."""
    hardware: Hardware = "same"
    """Which GPUs may run the engine: the very model it was built on, those of the same compute capability, or Ampere
    and all later ones; the wider, the slower it may be."""
    version_compatible: bool = False
    """Also runs on later versions of TensorRT than the one that built it; may be slower, and brings code of its own for
    the CPU, so that auto never takes it: whoever opens it names it and allows that."""
    optimization_level: int = 3
    """How long the builder searches for fast kernels, 0 to 5."""
    workspace_mb: int | None = None
    """Device memory that kernels may use while they run, in MiB; by default all there is."""
    tf32: bool = False
    """Let float32 convolutions round their inputs to 10 bits."""
    min_parity_psnr_db: float | None = None
    """Least PSNR between its frames and those of ONNX Runtime in float32 over the compared clip, each rolled out on its
    own frames; by default 60 for f32, 40 for f16, 35 for bf16 and int8 and 30 for fp8."""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ConfigError(f"TensorRT runs in {', '.join(PRECISIONS)}, not in {self.precision!r}")
        if self.hardware not in get_args(Hardware):
            raise ConfigError(f"hardware is one of {', '.join(get_args(Hardware))}, got {self.hardware!r}")
        if not 0 <= self.optimization_level <= 5:
            raise ConfigError(f"optimization_level is 0 to 5, got {self.optimization_level}")
        if self.workspace_mb is not None and self.workspace_mb < 1:
            raise ConfigError(f"workspace_mb must be at least 1, got {self.workspace_mb}")

    @property
    def least_parity_db(self) -> float:
        """``min_parity_psnr_db``, or what this precision must reach."""
        if self.min_parity_psnr_db is not None:
            return self.min_parity_psnr_db
        return TOLERANCES[self.precision].engine_db


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU and what drives it."""

    name: str
    capability: tuple[int, int]
    """Compute capability, major and minor."""
    memory_bytes: int
    multiprocessors: int
    cuda: str
    """CUDA version of torch."""
    driver: str = ""
    """Version of the driver, where it is known."""

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.capability[0]}.{self.capability[1]})"


@dataclass(frozen=True, kw_only=True)
class Site:
    """What an engine depends on beside its graph: where it is built, or where it shall run."""

    tensorrt: str
    """Version of TensorRT."""
    gpu: Gpu
    system: str = field(default_factory=lambda: f"{platform.system()} {platform.machine()}")
    """Operating system and processor family."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One way of warping that was tried for an engine."""

    warp: Warp
    outcome: str
    """``kept``, or why not."""


@dataclass(frozen=True, kw_only=True)
class EngineRecord:
    """What is known of one engine; ``engine.json`` beside its plan."""

    site: Site
    """Where it was built."""
    graph: str
    """sha256 of the step graph of the bundle it was built from."""
    config: TensorRTConfig
    """How it was built."""
    attempts: tuple[Attempt, ...]
    """What was tried, the last of which was kept."""
    frames: int
    """Length of the clip over which it was compared with ONNX Runtime."""
    clip: str
    """What the clip was."""
    max_abs_diff: float
    """Greatest difference of a frame value there, in units of [-1, 1]."""
    parity_psnr_db: float | None
    """PSNR between the frames of both; None where they are equal."""
    expected_psnr_db: float | None = None
    """The same as worked out on a CPU before, by rounding every layer of the graph; None in f32, or where they are
    equal."""

    @property
    def warp(self) -> Warp:
        """How it warps."""
        return self.attempts[-1].warp

    @property
    def plans(self) -> tuple[str, ...]:
        """Files of plans it has: a self-test only where it warps."""
        return (STEP_PLAN,) if self.warp == "outside" else (STEP_PLAN, SELF_TEST_PLAN)

    @property
    def key(self) -> str:
        """Name of its folder."""
        return engine_key(self.site, self.config.precision, self.graph)

    def __str__(self) -> str:
        return f"TensorRT {self.site.tensorrt} {self.config.precision} for {self.site.gpu}"


def engine_key(site: Site, precision: Precision, graph: str) -> str:
    """Name of the folder of an engine: equal for equal GPU, TensorRT, system, precision and graph.

    Args:
        site: where it is built.
        precision: number format.
        graph: sha256 of the step graph.
    """
    parts = [site.gpu.name, list(site.gpu.capability), site.tensorrt, site.system, precision, graph]
    return PREFIX + hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def plan_version(plan: bytes) -> tuple[int, int, int] | None:
    """The TensorRT version that wrote a plan, read from its first bytes; None where they are not as known.

    Source:
        ``printPlanVersion`` in NVIDIA/TensorRT, ``samples/common/sampleEngines.cpp``: a tag, the version of the format,
        and at bytes 24 to 27 major, minor, patch and build.
    """
    if len(plan) < 28 or plan[:4] != b"ftrt" or plan[4:8] != bytes(4):
        return None
    return plan[24], plan[25], plan[26]


def version_numbers(version: str) -> tuple[int, int, int]:
    """Major, minor and patch of a version such as ``10.16.1.11``."""
    numbers = [int(part) for part in version.split(".")[:3] if part.isdigit()]
    major, minor, patch = (*numbers, 0, 0, 0)[:3]
    return major, minor, patch


def misfit(record: EngineRecord, here: Site, graph: str) -> str | None:
    """Why an engine cannot be used, in words; None where it fits.

    Args:
        record: of the engine.
        here: where it shall run.
        graph: sha256 of the bundle's step graph.
    """
    built, config = record.site, record.config
    if record.graph != graph:
        return "it was built from another step graph than the bundle holds"
    if built.system != here.system:
        return f"it was built on {built.system} and this is {here.system}"
    if built.tensorrt != here.tensorrt:
        is_newer = version_numbers(here.tensorrt) >= version_numbers(built.tensorrt)
        if not (config.version_compatible and is_newer):
            return f"it was built by TensorRT {built.tensorrt} and this is {here.tensorrt}"
    capability = here.gpu.capability
    suits = {
        "same": (built.gpu.name, built.gpu.capability) == (here.gpu.name, capability),
        "same-capability": built.gpu.capability == capability,
        "ampere-plus": capability >= _AMPERE,
    }
    return None if suits[config.hardware] else f"it was built for {built.gpu} and this is {here.gpu}"


class EngineSurvey(NamedTuple):
    """The TensorRT engines of a bundle, by the folder inside it."""

    whole: dict[str, EngineRecord]
    """Those whose record can be read and whose files are there."""
    damaged: dict[str, str]
    """What is wrong with the others. Who builds treats them as gone."""


def list_engines(folder: Path, manifest: Manifest) -> EngineSurvey:
    """The TensorRT engines of a bundle, damaged ones apart.

    Args:
        folder: the bundle.
        manifest: as ``load_manifest`` gave it, so that every file is known to be as it was written.
    """
    found = EngineSurvey({}, {})
    for inside in sorted(manifest.files):
        place, _, name = inside.rpartition("/")
        if name != RECORD or not place.startswith(f"{ENGINES_FOLDER}/{PREFIX}"):
            continue
        try:
            record = _read_record(folder / inside)
        except BundleError as error:
            found.damaged[place] = str(error)
            continue
        if missing := [x for x in record.plans if f"{place}/{x}" not in manifest.files]:
            found.damaged[place] = f"{folder / place} lacks {missing[0]}"
        else:
            found.whole[place] = record
    return found


def _read_record(path: Path) -> EngineRecord:
    try:
        return from_dict(EngineRecord, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, ConfigError) as error:
        raise BundleError(f"{path} is no record of an engine ({error})") from error


def built_precisions(folder: Path) -> tuple[Precision, ...]:
    """The precisions of the engines in a bundle whose record can be read, the preferred one first.

    Whether one fits this machine, and is whole, shows when it is opened.

    Args:
        folder: the bundle.
    """
    found = set()
    for path in folder.glob(f"{ENGINES_FOLDER}/{PREFIX}*/{RECORD}"):
        try:
            found.add(_read_record(path).config.precision)
        except BundleError as error:
            log.warning("%s", error)
    return tuple(x for x in _PREFERENCE if x in found)


def how_to_build(folder: Path) -> str:
    """What to do where no engine fits, as the end of a sentence."""
    return f"build one here: fastv2v export --bundle {folder} --engine tensorrt"


def find_engine(
    folder: Path, here: Site, precision: str | None = None, *, manifest: Manifest | None = None
) -> tuple[Path, EngineRecord]:
    """The engine of a bundle that fits this machine.

    Args:
        folder: the bundle.
        here: this machine.
        precision: number format; None takes the first there is of f16, bf16, f32, int8 and fp8.
        manifest: as ``load_manifest`` gave it; None checks the bundle first.

    Returns:
        Its folder and record.

    Raises:
        BundleError: if the bundle is damaged, or no engine fits, with the reason for each it has.
    """
    manifest = manifest or load_manifest(folder)
    graph = manifest.files[STEP_GRAPH]
    engines = list_engines(folder, manifest)
    refused = list(engines.damaged.values())
    for wanted in _PREFERENCE if precision is None else (precision,):
        for place, record in engines.whole.items():
            if record.config.precision != wanted:
                continue
            reason = misfit(record, here, graph)
            if reason is None:
                return folder / place, record
            refused.append(f"{place} ({wanted}): {reason}")
    asked = "" if precision is None else f" in {precision}"
    if not refused:
        raise BundleError(f"{folder} holds no TensorRT engine{asked}; {how_to_build(folder)}")
    raise BundleError(f"no TensorRT engine{asked} of {folder} fits: {'; '.join(refused)}; {how_to_build(folder)}")


def find_timing_cache(folder: Path, here: Site) -> bytes:
    """The timing cache of an engine that the same TensorRT built on the same GPU; empty where there is none."""
    for place, record in list_engines(folder, load_manifest(folder)).whole.items():
        cache = folder / place / TIMING_CACHE
        if (record.site.tensorrt, record.site.gpu.name) == (here.tensorrt, here.gpu.name) and cache.is_file():
            return cache.read_bytes()
    return b""


def store_engine(folder: Path, record: EngineRecord, files: Mapping[str, bytes], scratch: Path) -> Manifest:
    """Put an engine into a bundle, in place of one of the same key and of those that are damaged or of another graph.

    The bundle is written anew beside the old one and takes its place when it is whole.

    Args:
        folder: the bundle; it is checked first.
        record: of the engine.
        files: content by name: plans and timing cache.
        scratch: an empty folder to write them to first.

    Returns:
        The manifest as written.

    Raises:
        BundleError: if the bundle is damaged.
    """
    manifest = load_manifest(folder)
    engines = list_engines(folder, manifest)
    stale = {p for p, other in engines.whole.items() if other.graph != record.graph or other.key == record.key}
    gone = stale | engines.damaged.keys()
    kept = {inside: folder / inside for inside in manifest.files if inside.rpartition("/")[0] not in gone}
    text = json.dumps(to_dict(record), indent=2) + "\n"
    for name, content in {**files, RECORD: text.encode()}.items():
        (scratch / name).write_bytes(content)
        kept[f"{ENGINES_FOLDER}/{record.key}/{name}"] = scratch / name
    return write_bundle(folder, manifest, kept, overwrite=True)
