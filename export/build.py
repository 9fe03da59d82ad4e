"""A trained generator becomes a bundle that proved itself: graph, parity over a clip, checksums, measured engine."""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from export.bundle import (
    INT8_GRAPH,
    SELF_TEST,
    STEP_GRAPH,
    TORCH_ARCHITECTURE,
    TORCH_WEIGHTS,
    Cost,
    Manifest,
    Option,
    Parity,
    check_target,
    load_manifest,
    write_bundle,
)
from export.choose import EngineGuard, Probe, choose_engine
from export.driving import write_driving
from export.engines import (
    AUTO,
    ENGINES,
    INT8,
    REFERENCE,
    Candidate,
    check_warp,
    engine_precisions,
    open_engine,
    parse_engine,
)
from export.interpolation import (
    CORRECTIONS,
    FEATURES,
    INTERPOLATION_GRAPH,
    NETWORK_METHOD,
    Fill,
    Frame,
    GraphNetwork,
    choose_network,
)
from export.onnx_graph import OPSET, compare_rollout, export_network, export_step, write_self_test
from export.quantize import calibration_feeds, quantize_step
from fastv2v.architecture import Architecture, architecture_dict
from fastv2v.checkpoint import save_tensors
from fastv2v.contracts import StepModel
from fastv2v.data.conditions import ConditionSpec
from fastv2v.data.driving.profile import DrivingProfile
from fastv2v.errors import ConfigError, ParityError
from fastv2v.render import Points
from fastv2v.run import write_json

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BundleDetails:
    """What a bundle says about a generator beyond its weights."""

    task: str
    """``street``, ``face``, ``pose``, ``world``, ``demo`` or a name of one's own."""
    condition: ConditionSpec
    """How the generator's condition is encoded."""
    size: tuple[int, int]
    """(height, width) of conditions and frames."""
    keyframes: Mapping[str, Option]
    """Fields of ``interpolate.keyframes.KeyframeConfig``."""
    interpolation: Mapping[str, Option]
    """``method`` and its options; see ``Manifest.interpolation``."""
    fps: float
    """Delivered frames per second of the training data."""
    cost: Cost
    """MACs of the student."""
    palette: tuple[tuple[int, int, int], ...] | None = None
    """One RGB colour for each class."""
    training_commit: str | None = None
    """Commit that trained the generator."""
    created_by: str = ""
    """Program and version that writes the bundle."""


@dataclass(frozen=True, kw_only=True)
class InterpolationPart:
    """A trained interpolation network on its way into a bundle."""

    network: nn.Module
    """Features (1, C, H/2, W/2) to corrections (1, K, H/2, W/2)."""
    probe: Tensor
    """Features of a real moment, (1, C, H/2, W/2), on which graph and module are compared."""
    fill: Fill
    """Fills the gaps of a clip by a network that it is given, to measure engines."""
    real: Sequence[Frame]
    """The real frames in their place."""


def build_bundle(
    model: StepModel,
    folder: Path,
    details: BundleDetails,
    conditions: Tensor,
    frames: Tensor | None = None,
    *,
    tolerance: float = 1e-3,
    measure: bool = True,
    int8: bool = True,
    guard: EngineGuard | None = None,
    engine: str = AUTO,
    architecture: Architecture | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    interpolation: InterpolationPart | None = None,
    points: Points | None = None,
    driving: DrivingProfile | None = None,
) -> Manifest:
    """Export a generator, compare graph and module over a clip, choose the engine and write the bundle.

    The bundle appears when all of that is done; until then an earlier one of its name stays whole.

    Args:
        model: the trained generator, a torch module.
        folder: where; its name ends in ``.v2v``.
        details: what the bundle says about it.
        conditions: encoded conditions of successive keyframes, (T, C, H, W), T of some dozens; none of them is shown
            a real frame.
        frames: the real frames of the same moments, (T, 3, H, W) in [-1, 1], to judge engines by.
        tolerance: greatest difference allowed between graph and module, in units of [-1, 1].
        measure: choose the engine by measurement on this machine; otherwise ``auto`` means ONNX Runtime.
        int8: also measure engines on a quantised copy of the graph, calibrated on the same clip; the bundle keeps the
            copy where it passes the guard.
        guard: how much quality an engine may cost.
        engine: ``NAME`` or ``NAME:PRECISION`` to choose among those alone; ``auto`` takes all that can run here.
        architecture: what the generator is made of, to keep its weights in the bundle for the engines of torch; None
            leaves them out.
        threads: CPU threads for the measurement, None for all.
        overwrite: replace an earlier bundle of this name.
        interpolation: the network that fills the gaps, where ``details.interpolation`` names one.
        points: point ids of the same moments, (T, H / 2^k, W / 2^k) of each level, where the generator is guided by a
            painted world; the painter stays outside the graph.
        driving: what others need to drive the bundle; None leaves it out.

    Returns:
        The manifest as written.

    Raises:
        BundleError: if the folder exists and may not be replaced, or the named engine cannot be chosen.
        ParityError: if the graph strays from the module. A generator that instance-normalises the empty history strays
            by nature: over constant features the norm divides rounding errors by almost zero.
        ConfigError: if the name, condition or size do not suit the model.
        ShapeError: if conditions and frames do not suit each other.
        MissingExtraError: if onnx, onnxscript or onnxruntime is not installed.
    """
    folder = Path(folder)
    check_target(folder, overwrite=overwrite)  # again when it is written; here so that no work is done in vain
    candidates = _named_candidates(engine, int8=int8)
    if candidates is not None and not measure:
        raise ConfigError(f"engine {engine} can be chosen only by measuring; leave it out, or measure")
    if (details.interpolation["method"] == NETWORK_METHOD) != (interpolation is not None):
        raise ConfigError(f"interpolation by {details.interpolation['method']!r} and a network do not go together")
    if details.condition.channels != model.condition_channels:
        raise ConfigError(
            f"the condition encodes to {details.condition.channels} channels and the generator takes "
            f"{model.condition_channels}"
        )
    if points is not None and len(points) != details.condition.guidance_levels:
        raise ConfigError(
            f"the condition has guidance of {details.condition.guidance_levels} levels, and point ids come in "
            f"{len(points)}"
        )
    with tempfile.TemporaryDirectory() as scratch:
        step, self_test = Path(scratch, STEP_GRAPH), Path(scratch, SELF_TEST)
        filling = Path(scratch, INTERPOLATION_GRAPH)
        if interpolation is not None:
            options = _export_interpolation(interpolation, filling, tolerance, measure, guard, threads)
        write_self_test(self_test)
        check_warp(open_engine(REFERENCE, self_test, 1))
        export_step(model, step, size=details.size, spec=details.condition, outputs=("frame",))
        difference = compare_rollout(model, open_engine(REFERENCE, step, threads), conditions, points=points)
        if not difference <= tolerance:
            raise ParityError(
                f"the exported graph differs from {type(model).__name__} by {difference:.2g} over {len(conditions)} "
                f"frames, more than {tolerance:g}; nothing was written"
            )
        manifest = Manifest(
            name=folder.stem,
            history_length=model.history_length,
            parity=Parity(max_abs_diff=difference, frames=len(conditions)),
            opset=OPSET,
            **vars(details),
        )
        files = {STEP_GRAPH: step, SELF_TEST: self_test}
        if interpolation is not None:
            files[INTERPOLATION_GRAPH] = filling
            manifest = replace(manifest, interpolation={**manifest.interpolation, **options})
        if architecture is not None:
            files |= _write_torch_part(model, architecture, Path(scratch, "torch"))
        if driving is not None:
            files |= write_driving(driving, Path(scratch, "driving"))
        if measure:
            draft = Path(scratch, folder.name)
            probe = Probe(
                conditions.cpu().numpy(),
                None if frames is None else frames.cpu().numpy(),
                None if points is None else [level.cpu().numpy() for level in points],
            )
            if int8:
                feeds = calibration_feeds(open_engine(REFERENCE, step, threads), probe, model.history_length)
                if quantize_step(step, quantised := Path(scratch, INT8_GRAPH), feeds):
                    files[INT8_GRAPH] = quantised
            write_bundle(draft, manifest, files)
            choice = choose_engine(
                draft, probe, candidates=candidates, forced=candidates is not None, guard=guard, threads=threads
            )
            manifest = load_manifest(draft)
            if not any(m.accepted for m in choice.measurements if m.precision == INT8):
                files.pop(INT8_GRAPH, None)
        write_bundle(folder, manifest, files, overwrite=overwrite)
    return load_manifest(folder)


def _named_candidates(engine: str, *, int8: bool) -> list[Candidate] | None:
    """Every precision of a named engine, or the one that is named with it; None for ``auto``.

    Raises:
        ConfigError: if the quantised graph that it needs shall not be made.
    """
    name, precision = parse_engine(engine)
    if name == AUTO:
        return None
    lacks = {INT8} if name in ENGINES and not int8 else set()
    if precision in lacks:
        raise ConfigError(f"{engine} needs the quantised graph; leave out --no-int8, or choose another precision")
    return [Candidate(name, p) for p in ((precision,) if precision else engine_precisions(name)) if p not in lacks]


def _write_torch_part(model: StepModel, architecture: Architecture, folder: Path) -> dict[str, Path]:
    """Write the weights of a generator and what they belong to; gives each file by its path in a bundle."""
    if not isinstance(model, nn.Module):
        raise ConfigError(f"only a torch module has weights to keep, got {type(model).__name__}")
    folder.mkdir()
    weights, described = folder / "weights", folder / "architecture"
    save_tensors(weights, model.state_dict())
    write_json(described, architecture_dict(architecture))
    return {TORCH_WEIGHTS: weights, TORCH_ARCHITECTURE: described}


def _export_interpolation(
    part: InterpolationPart,
    graph: Path,
    tolerance: float,
    measure: bool,
    guard: EngineGuard | None,
    threads: int | None,
) -> Mapping[str, Option]:
    """Write the graph of the interpolation network, hold it against the module, choose its engine.

    Returns:
        What the manifest says of the engine; nothing where none was measured.

    Raises:
        ParityError: if the graph strays from the module.
    """
    export_network(part.network, graph, tuple(part.probe.shape), (FEATURES, CORRECTIONS))
    probe = part.probe.detach().cpu().float()
    with torch.no_grad():
        wanted = copy.deepcopy(part.network).cpu().float().eval()(probe).numpy()
    made = GraphNetwork(open_engine(REFERENCE, graph, threads))(probe.numpy())
    difference = float(np.abs(made - wanted).max())
    if not difference <= tolerance:
        raise ParityError(
            f"the graph of the interpolation network differs from the module by {difference:.2g}, more than "
            f"{tolerance:g}; nothing was written"
        )
    return choose_network(graph, part.fill, part.real, guard=guard, threads=threads).options() if measure else {}
