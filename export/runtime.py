"""What a deployment imports: open a bundle, push conditions, get frames. No torch, but numpy, OpenCV and an engine.

Conditions are arrays, or come from folders, video files and cameras::

    with open_bundle("street.v2v") as stream, Camera(0) as camera:
        for item in stream.frames(camera_conditions(camera, stream.manifest, convert)):
            show(item.frame)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from export.bundle import EngineChoice, Manifest, load_manifest
from export.camera import Camera, CameraConfig
from export.convert import Converter, edge_converter, picture_conditions
from export.engines import (
    AUTO,
    DEVICE_ENGINES,
    ENGINES,
    GPU_ENGINES,
    INT8,
    REFERENCE,
    Candidate,
    OpenedEngine,
    built_precisions,
    engine_precisions,
    offering_the_cpu,
    open_device_step,
    open_tested_engine,
    parse_engine,
    this_machine,
)
from export.interpolation import NETWORK_METHOD, open_network
from export.sources import camera_conditions, folder_conditions, piped_conditions, video_conditions
from export.stream import (
    Condition,
    ConditionMap,
    DeliveredFrame,
    Stream,
    StreamError,
    StreamStats,
    filling_threads,
)
from fastv2v.errors import BundleError, ConfigError, MissingExtraError

__all__ = [
    "Camera",
    "CameraConfig",
    "Condition",
    "ConditionMap",
    "Converter",
    "DeliveredFrame",
    "Stream",
    "StreamError",
    "StreamStats",
    "camera_conditions",
    "edge_converter",
    "filling_threads",
    "folder_conditions",
    "open_bundle",
    "picture_conditions",
    "piped_conditions",
    "video_conditions",
]

log = logging.getLogger(__name__)

HOST_CODE_UNNAMED = "only an engine that is named may bring code of its own: give --engine tensorrt too"
"""Why ``auto`` and ``host_code`` do not go together."""

Opened = TypeVar("Opened")


def open_bundle(
    path: Path | str,
    *,
    engine: str = AUTO,
    precision: str | None = None,
    threads: int | None = None,
    overlap: bool = True,
    seed_frame: NDArray[np.uint8] | None = None,
    causal: bool = False,
    device: str | None = None,
    raft_weights: Path | None = None,
    host_code: bool = False,
) -> Stream:
    """Check a bundle and open it as a stream.

    Args:
        path: the bundle's folder.
        engine: ``auto`` takes the fastest that was measured and accepted for this bundle and runs here, else
            ONNX Runtime; a named engine, ``NAME`` or ``NAME:PRECISION``, is taken or fails. So it is with the
            interpolation network, if there is one; beside engines of GPUs that stays on the CPU, as measured.
        precision: number format, or None for the measured one of that engine, else its widest.
        threads: CPU threads of the engine, None for all; not used with a device.
        overlap: synthesise in a worker thread while the calling thread interpolates.
        seed_frame: real first frame, uint8 RGB (H, W, 3), or None to start from nothing.
        causal: hand over the frame of each condition at once, see ``Stream``.
        device: ``cuda``, ``cuda:1`` ... or ``cpu``: make, keep and fill in frames there with torch, so that they leave
            it once (``export.device_stream``). Needs one of ``DEVICE_ENGINES``; ``auto`` takes the fastest measured
            one of them, else torch.
        raft_weights: with a device, state dict of torchvision's raft_small, which then finds the flow between
            keyframes.
        host_code: let a named engine that was built into the bundle bring code of its own for the CPU, as
            version-compatible ones of TensorRT do. Only for bundles from people you trust; never under ``auto``.

    Returns:
        A stream that waits for its first condition.

    Raises:
        BundleError: if the bundle is damaged, or no engine can run it here.
        CheckpointError: if the file of weights does not hold RAFT's.
        ConfigError: if there is no such engine or precision, threads is below 1, a causal stream cannot choose its
            keyframes, or code was allowed without naming the engine.
        DataError: if the seed frame does not suit the bundle.
        MissingExtraError: if the named engine is not installed.
    """
    folder = Path(path)
    engine, named = parse_engine(engine)
    if None not in (named, precision) and named != precision:
        raise ConfigError(f"{engine}:{named} and precision {precision} contradict each other; give one of the two")
    precision = precision or named
    if host_code and engine == AUTO:
        raise ConfigError(HOST_CODE_UNNAMED)
    if threads is not None and threads < 1:
        raise ConfigError(f"threads must be at least 1, got {threads}")
    manifest = load_manifest(folder)
    if device is not None:
        return _open_on_device(
            _device_order(folder, manifest, engine, precision),
            folder,
            manifest,
            device,
            raft_weights,
            host_code=host_code,
            overlap=overlap,
            seed_frame=seed_frame,
            causal=causal,
        )
    if raft_weights is not None:
        raise ConfigError("RAFT fills gaps on a device; give one (--device cuda) or leave its weights out")
    opened: OpenedEngine
    if engine == AUTO:
        opened = _open_best(folder, manifest, precision, threads)
    else:
        with offering_the_cpu(engine):
            candidate, opened = _open_first(
                folder,
                _named_order(folder, manifest, engine, precision),
                lambda one: open_tested_engine(one, folder, threads, host_code=host_code),
            )
        log.info("%s: using %s %s, as asked for", folder.name, candidate, opened.where)
    is_network = manifest.interpolation["method"] == NETWORK_METHOD
    asked = _asked_of_network(manifest, opened, engine, precision)
    network = open_network(folder, manifest, threads, asked) if is_network else None
    return Stream(opened, manifest, overlap=overlap, seed_frame=seed_frame, causal=causal, network=network)


def _named_order(folder: Path, manifest: Manifest, engine: str, precision: str | None) -> list[Candidate]:
    """A named engine in the precision asked for, else as measured; of one that is built, also as it was built."""
    if precision is not None:
        return [Candidate(engine, precision)]
    measured = measured_precision(manifest, engine)
    built = built_precisions(engine, folder)
    return [Candidate(engine, x) for x in sorted(built, key=lambda x: x != measured) or [measured]]


def _device_order(folder: Path, manifest: Manifest, engine: str, precision: str | None) -> list[Candidate]:
    """The engines of a stream on a device in the order in which they are tried: measured ones, and torch last."""
    if engine != AUTO:
        return _named_order(folder, manifest, engine, precision)
    known = [c for c in _known(folder, manifest) if c.engine in DEVICE_ENGINES and precision in (None, c.precision)]
    if not known:
        log.info("%s: no engine that keeps frames on a device was measured for this bundle; taking torch", folder.name)
    formats = engine_precisions("torch")
    last = [Candidate("torch", precision or formats[0])] if precision in (None, *formats) or not known else []
    return list(dict.fromkeys([*known, *last]))


def _open_first(
    folder: Path, order: Sequence[Candidate], open_one: Callable[[Candidate], Opened]
) -> tuple[Candidate, Opened]:
    """Open the first that runs here, and say aloud which do not.

    Raises:
        BundleError: if none does, with the reasons; a single one's own error.
    """
    if len(order) == 1:
        return order[0], open_one(order[0])
    refused = []
    for candidate in order:
        try:
            return candidate, open_one(candidate)
        except (BundleError, MissingExtraError) as error:
            log.warning("%s: %s cannot be used: %s", folder.name, candidate, error)
            refused.append(f"{candidate}: {error}")
    raise BundleError(f"no engine can run {folder} here ({'; '.join(refused)})")


def _open_on_device(
    order: Sequence[Candidate],
    folder: Path,
    manifest: Manifest,
    name: str,
    raft_weights: Path | None,
    *,
    host_code: bool,
    **options: Any,
) -> Stream:
    """A stream on a device; only here does this module meet torch.

    Raises:
        MissingExtraError: if torch is not installed.
    """
    try:
        from export.device_stream import DeviceStream, named_device
        from fastv2v.nn.optical_flow import RAFTFlow
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingExtraError("streams on a device need torch: pip install torch") from error
    device = named_device(name)
    raft = None if raft_weights is None else RAFTFlow.torchvision("small", raft_weights, device)
    with offering_the_cpu(order[0].engine):
        candidate, step = _open_first(
            folder, order, lambda one: open_device_step(one, folder, device, host_code=host_code)
        )
    log.info("%s: using %s on %s", folder.name, candidate, device)
    return DeviceStream(step, manifest, estimator=raft, **options)


def _asked_of_network(manifest: Manifest, step: OpenedEngine, engine: str, precision: str | None) -> Candidate | None:
    """What the interpolation network shall run on where an engine or a precision was named; None: as measured."""
    if step.name not in ENGINES or (precision is None and engine in (AUTO, manifest.interpolation.get("engine"))):
        return None
    # There is no int8 copy of its graph.
    return Candidate(step.name, "f32" if precision in (None, INT8) else precision)


def _measured(manifest: Manifest) -> list[Candidate]:
    """Engines that were measured and accepted for this bundle, fastest first."""
    if manifest.engine is None:
        return []
    accepted = [m for m in manifest.engine.measurements if m.accepted and m.median_ms is not None]
    accepted.sort(key=lambda m: m.median_ms or 0.0)
    chosen = Candidate(manifest.engine.engine, manifest.engine.precision)
    return list(dict.fromkeys([chosen, *(Candidate(m.engine, m.precision) for m in accepted)]))


def measured_precision(manifest: Manifest, engine: str) -> str:
    """The precision in which an engine was measured best for a bundle, else its widest.

    Raises:
        ConfigError: if there is no engine of this name.
    """
    default = engine_precisions(engine)[0]
    return next((c.precision for c in _measured(manifest) if c.engine == engine), default)


def _known(folder: Path, manifest: Manifest) -> list[Candidate]:
    """The measured engines that this version knows, fastest first."""
    known = []
    for candidate in _measured(manifest):
        is_known = candidate.engine in ENGINES or candidate.engine in GPU_ENGINES
        if is_known and candidate.precision in engine_precisions(candidate.engine):
            known.append(candidate)
        else:
            log.warning("%s: %s cannot be used: this version of fastv2v does not know it", folder.name, candidate)
    return known


def _open_best(folder: Path, manifest: Manifest, precision: str | None, threads: int | None) -> OpenedEngine:
    """Open the first engine of the measured order that runs here, and say why it was taken."""
    order = list(dict.fromkeys([*_known(folder, manifest), REFERENCE, Candidate("openvino", "f32")]))
    if precision is not None:
        order = [c for c in order if c.precision == precision] or [Candidate("openvino", precision)]
    candidate, opened = _open_first(folder, order, lambda one: open_tested_engine(one, folder, threads))
    log.info("%s: using %s %s: %s", folder.name, candidate, opened.where, _why(manifest, candidate))
    return opened


def _why(manifest: Manifest, candidate: Candidate) -> str:
    choice = manifest.engine
    if choice is None:
        return "no engine was measured for this bundle"
    ms = next((m.median_ms for m in choice.measurements if (m.engine, m.precision) == candidate), None)
    if ms is None:
        return "none of the measured engines runs here"
    is_gpu = candidate.engine in GPU_ENGINES and choice.gpu is not None
    kind, measured_on = ("graphics card", choice.gpu) if is_gpu else ("processor", choice.cpu)
    is_here = measured_on == this_machine()["gpu" if is_gpu else "cpu"]
    where = f"this {kind}" if is_here else f"another {kind} ({measured_on}); measure again here"
    rank = "the fastest accepted" if candidate == (choice.engine, choice.precision) else "the next best"
    return f"{rank}, {ms:g} ms a keyframe on {where}{_unmeasured(choice)}{_off_the_device(choice)}"


def _off_the_device(choice: EngineChoice) -> str:
    """What to say where engines were timed that can do better than with arrays, which go up and down at every step."""
    kept = [m.engine for m in choice.measurements if m.engine in DEVICE_ENGINES and m.accepted]
    if not kept or this_machine()["gpu"] is None:
        return ""
    return f"; {kept[0]} was timed with frames copied to the GPU and back, --device cuda keeps them there"


def _unmeasured(choice: EngineChoice) -> str:
    """What to say where this machine has a GPU that took no part in the measurement."""
    gpu = this_machine()["gpu"]
    if gpu in (None, choice.gpu):
        return ""
    return f"; engines of the {gpu} here were not measured, fastv2v benchmark --engine compares them"
