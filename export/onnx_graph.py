"""From a torch generator to a stateless ONNX step graph, and the proof that both draw the same clip.

The dynamo exporter is used. On a small generator (reflection padding, batch norm, transposed convolution, bilinear
resize, ``grid_sample``) it wrote 54 nodes with every shape fixed and every batch norm folded; the older tracer wrote
207 for the same network, 86 of them constants, kept the shape arithmetic of each padding and one batch norm behind the
transposed convolution, and declared outputs of height 0. What dynamo leaves undone is done here: weights behind
spectral or weight normalisation are computed once before the export, and the source paths it writes into every node are
removed, so that equal weights give equal files.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm

from export.engines import STEP_OUTPUTS, WARP_SELF_TEST, StepEngine
from export.graph_check import RENAMED_OPSET
from export.graphs import check_valid, opset_of, save_graph
from fastv2v.contracts import FrameOutput, History, StepModel
from fastv2v.data.conditions import ConditionSpec
from fastv2v.errors import BundleError, ConfigError, MissingExtraError, ShapeError
from fastv2v.nn.slim import SlimGenerator
from fastv2v.render import Points, advance, cut, rollout, start_history

if TYPE_CHECKING:
    from onnx import ModelProto

log = logging.getLogger(__name__)

OPSET = 18
"""The newest operator set in which a bilinear ``GridSample`` still carries the name every engine understands."""


@dataclass(frozen=True, kw_only=True)
class GraphReport:
    """What an exported graph is made of."""

    opset: int
    """Version of the default operator set."""
    nodes: dict[str, int]
    """How many nodes of each operator, most frequent first."""
    outputs: tuple[str, ...]
    """Names of the outputs, ``frame`` first."""


class StepGraph(nn.Module):
    """A step that takes and gives plain tensors."""

    outputs: tuple[str, ...]
    """Names of what it gives, in order."""


class _StepGraph(StepGraph):
    """A step with its state spread into four plain inputs, which is all that an ONNX graph can take."""

    def __init__(self, model: StepModel, outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.outputs = outputs

    def forward(
        self, condition: Tensor, history_conditions: Tensor, history_frames: Tensor, valid: Tensor
    ) -> tuple[Tensor, ...]:
        output, _ = self.model.step(condition, History(history_conditions, history_frames, valid))
        return tuple(getattr(output, name) for name in self.outputs)


class _CompactGraph(StepGraph):
    """A slim generator's step behind what a host prepares once for each keyframe: see ``export.inputs``.

    Channels that are one-hot need not be written: mixing them into a few, pixel by pixel, is looking up a table. The
    ``further`` channels, given by name with their number, follow the classes in a condition and come as inputs.
    """

    def __init__(self, model: SlimGenerator, outputs: tuple[str, ...], further: Mapping[str, int]) -> None:
        super().__init__()
        self.model, self.outputs = model, outputs
        weight, bias = model.embed.weight[..., 0, 0], model.embed.bias  # (E, C), (E,)
        assert bias is not None, "the embedding has a bias"
        classes, *shares = weight.split([weight.shape[1] - sum(further.values()), *further.values()], dim=1)
        # One row more than classes: pixels that are of none.
        table = classes.T
        self.register_buffer("table", torch.cat([table, torch.zeros_like(table[:1])]) + bias)
        for name, share in zip(further, shares, strict=True):
            self.register_buffer(f"{name}_weight", share[..., None, None].clone())  # as a 1x1 convolution's
        foreground = torch.zeros(len(table) + 1, 1)
        foreground[list(model.foreground_channels)] = 1
        self.register_buffer("foreground", foreground if model.foreground_channels else None)

    def forward(
        self,
        labels: Tensor,
        coarse: Tensor,
        history_conditions: Tensor,
        history_frames: Tensor,
        valid: Tensor,
        edges: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        embedded = F.embedding(labels, cast(Tensor, self.table)).permute(0, 3, 1, 2)
        if edges is not None:
            embedded = embedded + F.conv2d(edges, cast(Tensor, self.edges_weight))
        if guidance is not None:
            embedded = embedded + F.conv2d(guidance, cast(Tensor, self.guidance_weight))
        mask = None
        if self.foreground is not None:
            mask = F.embedding(labels, cast(Tensor, self.foreground)).permute(0, 3, 1, 2)
        conditions = torch.cat([history_conditions.flatten(1, 2), coarse], dim=1)
        output = self.model.draw(embedded, conditions, History(history_conditions, history_frames, valid), mask)
        return tuple(getattr(output, name) for name in self.outputs)


def is_compact(model: StepModel, spec: ConditionSpec) -> bool:
    """Whether the generator's graph can begin behind the channels of a label condition."""
    return isinstance(model, SlimGenerator) and model.config.input_scale > 1 and spec.kind == "labels"


def export_step(
    model: StepModel,
    path: Path,
    *,
    size: tuple[int, int],
    opset: int = OPSET,
    spec: ConditionSpec | None = None,
    outputs: tuple[str, ...] | None = None,
) -> GraphReport:
    """Write one step of a generator as an ONNX graph of fixed shapes: batch 1, float32, evaluation mode.

    Inputs are ``condition`` (1, C, H, W), ``history_conditions`` (1, N-1, C, H, W), ``history_frames``
    (1, N-1, 3, H, W) and ``valid`` (1,). Where the generator allows it (``is_compact``) ``labels`` (1, H, W) int32 in
    [0, L], ``edges`` (1, 1, H, W) for instance borders, ``guidance`` (1, G, H, W) for what is painted of the world and
    ``coarse`` (1, C, h, w) stand in for ``condition``, and
    ``history_conditions`` are (1, N-1, C, h, w). The model itself is left untouched.

    Args:
        model: a step model that is also a torch module.
        path: the file to write; it appears complete or not at all.
        size: (height, width) in pixels.
        opset: ONNX operator set, 18 or newer; 20 and newer only for graphs without ``GridSample``.
        spec: how conditions are encoded; None: not known, and the graph takes all channels.
        outputs: which of ``STEP_OUTPUTS`` to write; None takes those that the generator has.

    Returns:
        The operator set and the nodes of the written graph.

    Raises:
        ConfigError: if the size does not suit the model, or the operator set does not suit the graph.
        BundleError: if the model cannot be exported or its graph is not valid.
        MissingExtraError: if onnx or onnxscript is not installed.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"only a torch module can be exported, got {type(model).__name__}")
    if size[0] % model.size_multiple or size[1] % model.size_multiple or min(size) < 1:
        raise ConfigError(f"export size {size[0]}x{size[1]} must be a multiple of {model.size_multiple} both ways")
    if opset < OPSET:
        raise ConfigError(f"opset {opset} is too old: the exporter writes opset {OPSET} or newer")
    graph, example = step_module(model, size, spec, outputs)
    proto = _trace(graph, example, graph.outputs, opset, f"{type(model).__name__}.step")
    _check_graph(proto, opset, size)
    save_graph(proto, Path(path))
    nodes = dict(Counter(node.op_type for node in proto.graph.node).most_common())
    outputs = tuple(output.name for output in proto.graph.output)
    log.info("exported %s: opset %d, %d nodes, outputs %s", path, opset, sum(nodes.values()), ", ".join(outputs))
    return GraphReport(opset=opset, nodes=nodes, outputs=outputs)


def step_module(
    model: StepModel,
    size: tuple[int, int],
    spec: ConditionSpec | None = None,
    outputs: tuple[str, ...] | None = None,
) -> tuple[StepGraph, dict[str, Tensor]]:
    """The module that is exported: a step with plain inputs, on the CPU in float32, its weights plain and frozen.

    Args:
        model: a step model that is also a torch module; left untouched.
        size: (height, width).
        spec: how conditions are encoded; None: not known, and the module takes all channels.
        outputs: which of ``STEP_OUTPUTS`` it gives, as a tuple; None takes those that the generator has.

    Returns:
        The module, and an example of each of its inputs by name.

    Raises:
        ConfigError: if the generator lacks an output.
    """
    assert isinstance(model, nn.Module), "the caller checks it"
    deployed = cast(StepModel, deployable(model))
    example = _example_inputs(deployed, size)
    names = ("frame",) if outputs == ("frame",) else _present(deployed, example)  # which takes a step to find out
    if outputs is not None and (missing := [name for name in outputs if name not in names]):
        raise ConfigError(f"{type(model).__name__} has no output {missing[0]!r}; it has {', '.join(names)}")
    if spec is not None and isinstance(deployed, SlimGenerator) and is_compact(deployed, spec):
        further = {"edges": int(spec.use_instances), "guidance": spec.guidance_channels}
        further = {name: count for name, count in further.items() if count}
        compact = _CompactGraph(deployed, outputs or names, further)
        return compact, _compact_example(example, deployed.config.input_scale, further)
    return _StepGraph(deployed, outputs or names), example


def export_network(network: nn.Module, path: Path, shape: tuple[int, ...], names: tuple[str, str]) -> GraphReport:
    """Write a network of one input and one output as an ONNX graph of fixed shapes, in float32 and evaluation mode.

    Args:
        network: the network, left untouched.
        path: the file to write; it appears complete or not at all.
        shape: (1, C, H, W) of its input; its output has the same height and width.
        names: of input and output in the graph.

    Returns:
        The operator set and the nodes of the written graph.

    Raises:
        BundleError: if the network cannot be exported or its graph is not valid.
        MissingExtraError: if onnx or onnxscript is not installed.
    """
    example = {names[0]: torch.zeros(shape)}
    proto = _trace(deployable(network), example, names[1:], OPSET, type(network).__name__, in_order=True)
    _check_graph(proto, OPSET, (shape[-2], shape[-1]))
    save_graph(proto, Path(path))
    nodes = dict(Counter(node.op_type for node in proto.graph.node).most_common())
    return GraphReport(opset=OPSET, nodes=nodes, outputs=names[1:])


def deployable(model: nn.Module) -> nn.Module:
    """A frozen float32 copy on the CPU whose weights are plain tensors.

    Args:
        model: left untouched.
    """
    model = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            _bake(module)
        # The older forms of both normalisations are forward hooks, recognised by their class alone.
        hooks: list[Any] = list(module._forward_pre_hooks.values())
        for hook in hooks:
            if type(hook).__name__ == "SpectralNorm":
                remove_spectral_norm(module, hook.name)
            elif type(hook).__name__ == "WeightNorm":
                remove_weight_norm(module, hook.name)
    for module in model.modules():  # only now, for parts come after their whole and their weights must be plain
        if isinstance(module, nn.Sequential):
            _fold_shuffled_norm(module)
    return model


def _fold_shuffled_norm(part: nn.Sequential) -> None:
    """Fold a batch norm behind a pixel shuffle into the convolution before it: the exporter only sees neighbours.

    Channel c behind the shuffle comes from channels c r^2 to (c + 1) r^2 - 1 before it: all of these take its factor.
    """
    layers = list(part)
    for index, (conv, shuffle, norm) in enumerate(zip(layers, layers[1:], layers[2:], strict=False)):
        if not (
            isinstance(conv, nn.Conv2d) and isinstance(shuffle, nn.PixelShuffle) and isinstance(norm, nn.BatchNorm2d)
        ):
            continue
        if norm.running_var is None or norm.running_mean is None:
            continue
        scale = torch.rsqrt(norm.running_var + norm.eps)
        shift = -norm.running_mean * scale
        if norm.affine:
            scale, shift = scale * norm.weight, shift * norm.weight + norm.bias
        repeats = shuffle.upscale_factor**2
        scale, shift = scale.repeat_interleave(repeats), shift.repeat_interleave(repeats)
        bias = shift if conv.bias is None else conv.bias * scale + shift
        conv.weight = nn.Parameter(conv.weight * scale.view(-1, 1, 1, 1), requires_grad=False)
        conv.bias = nn.Parameter(bias, requires_grad=False)
        part[index + 2] = nn.Identity()


def _bake(module: nn.Module) -> None:
    """Turn computed weights into plain ones.

    ``remove_parametrizations`` would do so by changing the module's class, which a copy shares with its original.
    """
    names = list(cast(Any, module.parametrizations))
    weights = {name: getattr(module, name).detach().clone() for name in names}
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for name, weight in weights.items():
        module.register_parameter(name, nn.Parameter(weight, requires_grad=False))


def _example_inputs(model: StepModel, size: tuple[int, int]) -> dict[str, Tensor]:
    """Inputs of the right shapes, by name."""
    past = model.history_length
    return {
        "condition": torch.zeros(1, model.condition_channels, *size),
        "history_conditions": torch.zeros(1, past, model.condition_channels, *size),
        "history_frames": torch.zeros(1, past, 3, *size),
        "valid": torch.ones(1),
    }


def _compact_example(plain: dict[str, Tensor], scale: int, further: Mapping[str, int]) -> dict[str, Tensor]:
    """Inputs of the compact graph of the same size."""
    condition, past = plain["condition"], plain["history_conditions"]
    size = condition.shape[-2:]
    example = {
        "labels": torch.zeros(1, *size, dtype=torch.int32),
        "coarse": condition[..., ::scale, ::scale].clone(),
        "history_conditions": past[..., ::scale, ::scale].clone(),
        "history_frames": plain["history_frames"],
        "valid": plain["valid"],
    }
    return example | {name: torch.zeros(1, count, *size) for name, count in further.items()}


def _trace(
    graph: nn.Module,
    example: dict[str, Tensor],
    names: tuple[str, ...],
    opset: int,
    what: str,
    *,
    in_order: bool = False,
) -> ModelProto:
    """Run the exporter on ``what`` and strip what only its authors need.

    Inputs are handed over by their names in the graph, or ``in_order`` where the module calls them otherwise.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"the export needs {error.name}: pip install onnx onnxscript") from error
    try:
        with warnings.catch_warnings(), _quiet("torch.onnx", "torch.export", "onnxscript", "onnx_ir"):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                graph.eval(),
                tuple(example.values()) if in_order else (),
                kwargs=None if in_order else example,
                dynamo=True,
                opset_version=opset,
                optimize=True,
                verbose=False,
                input_names=list(example),
                output_names=list(names),
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BundleError(f"{what} cannot be exported to ONNX: {reason}") from error
    assert program is not None, "the dynamo exporter gives a program"
    proto = program.model_proto
    _strip(proto)
    return proto


def _present(model: StepModel, example: dict[str, Tensor]) -> tuple[str, ...]:
    """Names of the outputs a generator has; ``hallucinated`` counts only where it is not the frame itself."""
    past = History(example["history_conditions"], example["history_frames"], example["valid"])
    with torch.no_grad():
        output, _ = model.step(example["condition"], past)
    names = [name for name in STEP_OUTPUTS if getattr(output, name) is not None]
    if output.hallucinated is output.frame:
        names.remove("hallucinated")
    return tuple(names)


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Keep the exporter's own progress out of the log; its errors arrive as exceptions."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _strip(proto: ModelProto) -> None:
    """Remove the exporter's notes: stack traces hold paths of the machine that exported."""
    graph = proto.graph
    values = chain(graph.input, graph.output, graph.value_info, graph.initializer)
    for item in chain([proto, graph], graph.node, values):
        del item.metadata_props[:]
        item.doc_string = ""


def _check_graph(proto: ModelProto, opset: int, size: tuple[int, int]) -> None:
    """Refuse a graph that an engine would reject or, worse, run differently."""
    reached = opset_of(proto)
    if reached != opset:
        raise ConfigError(f"opset {opset} was asked for and the exporter wrote {reached}; choose {OPSET}")
    _refuse_renamed_grid_sample(proto, reached)
    check_valid(proto, "the exported graph")
    for value in chain(proto.graph.input, proto.graph.output):
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        averaged = value.name in ("coarse", "history_conditions")
        if 0 in shape or (value.name != "valid" and not averaged and tuple(shape[-2:]) != size):
            raise BundleError(f"{value.name} of the exported graph has shape {shape}, not a fixed {size[0]}x{size[1]}")


def _refuse_renamed_grid_sample(proto: ModelProto, opset: int) -> None:
    """Opset 20 renamed ``bilinear`` to ``linear``; an engine that knows only the old name samples the nearest pixel."""
    if opset >= RENAMED_OPSET and any(node.op_type == "GridSample" for node in proto.graph.node):
        raise ConfigError(
            f"opset {opset} cannot be used for a generator that warps: from opset {RENAMED_OPSET} on "
            "GridSample's 'bilinear' is named 'linear', which TensorRT's parser silently samples as nearest; "
            f"export at opset {OPSET}"
        )


def write_self_test(path: Path) -> None:
    """Write the half-pixel warp every engine must pass before it is trusted (``export.engines.check_warp``).

    One ``GridSample`` at opset 18, bilinear, border padding, corners aligned, whose picture and grid are inputs, so
    that no engine can compute it ahead of time.

    Args:
        path: the file to write.
    """
    from onnx import TensorProto, helper

    case = WARP_SELF_TEST
    node = helper.make_node(
        "GridSample", ["image", "grid"], ["warped"], mode="bilinear", padding_mode="border", align_corners=1
    )
    values = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, getattr(case, name).shape)
        for name in ("image", "grid", "warped")
    }
    graph = helper.make_graph([node], "half_pixel_warp", [values["image"], values["grid"]], [values["warped"]])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    save_graph(proto, Path(path))


class EngineStep:
    """A step engine behind the torch contract, so that what rolls out modules also rolls out graphs.

    Args:
        engine: takes and gives arrays; batch 1.
        condition_channels: C.
        history_length: N-1.
        size_multiple: what height and width must be divisible by.
    """

    def __init__(
        self, engine: StepEngine, *, condition_channels: int, history_length: int, size_multiple: int = 1
    ) -> None:
        self.engine = engine
        self.condition_channels = condition_channels
        self.history_length = history_length
        self.size_multiple = size_multiple

    def step(self, condition: Tensor, history: History) -> tuple[FrameOutput, History]:
        """Synthesise one frame.

        Raises:
            ShapeError: if the batch is not 1.
        """
        if condition.shape[0] != 1:
            raise ShapeError(f"an engine takes one video at a time, got a batch of {condition.shape[0]}")
        arrays = (x.detach().cpu().float().numpy() for x in (condition, *history[:3]))
        made = {name: torch.from_numpy(x).to(condition.device) for name, x in self.engine.run(*arrays).items()}
        frame = made["frame"]
        output = FrameOutput(frame, made.get("hallucinated", frame), None, made.get("flow"), made.get("occlusion"))
        return output, advance(history, condition, frame)


def compare_rollout(
    model: StepModel,
    engine: StepEngine,
    conditions: Tensor,
    seed_frames: Tensor | None = None,
    points: Points | None = None,
) -> float:
    """Greatest difference between module and engine over a whole clip, each fed its own frames.

    A recurrent error grows with time, so one step proves little.

    Args:
        model: the module that was exported; put into evaluation mode for the comparison, and back.
        engine: the graph in an engine.
        conditions: encoded conditions, (T, C, H, W).
        seed_frames: the first K real frames, (K, 3, H, W) in [-1, 1]; None or K = 0 starts from nothing.
        points: point ids of each level, (T, H / 2^k, W / 2^k), where the model is guided. Each side paints a world of
            its own.

    Returns:
        Greatest absolute difference of ``frame``, in units of [-1, 1].

    Raises:
        ShapeError: if no frame is left to synthesise.
    """
    given = 0 if seed_frames is None else seed_frames.shape[0]
    if conditions.ndim != 4 or conditions.shape[0] <= given:
        raise ShapeError(f"conditions {tuple(conditions.shape)} leave nothing to synthesise after {given} given frames")
    twin = EngineStep(engine, condition_channels=model.condition_channels, history_length=model.history_length)
    worst = 0.0
    with torch.no_grad(), _evaluation(model):
        batch = conditions.unsqueeze(0)
        frames = None if seed_frames is None or not given else seed_frames.unsqueeze(0)
        ids = None if points is None else tuple(level.unsqueeze(0) for level in points)
        history = start_history(
            batch[:, :given],
            frames,
            model.history_length,
            first_condition=batch[:, 0],
            points=cut(ids, slice(given)),
        )
        ids = cut(ids, slice(given, None))
        for ours, theirs in zip(
            rollout(model, batch[:, given:], history, ids), rollout(twin, batch[:, given:], history, ids), strict=True
        ):
            # Compared in numpy, whose maximum is NaN where any difference is: a broken engine must not look perfect.
            difference = (ours.frame - theirs.frame).abs().cpu().numpy()
            worst = float(np.maximum(worst, difference.max()))
    return worst


@contextmanager
def _evaluation(model: StepModel) -> Iterator[None]:
    """Evaluation mode for a while, where the model is a module."""
    if not isinstance(model, nn.Module):
        yield
        return
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
