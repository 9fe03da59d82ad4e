"""Known outputs: does an imported network compute what the reference implementation computes?"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fastv2v.contracts import History
from fastv2v.errors import DataError
from fastv2v.nn.composite import CompositeGenerator, Features
from fastv2v.nn.discriminator import MultiScaleDiscriminator
from fastv2v.nn.features import FeatureEncoder, instance_mean
from fastv2v.nn.local import LocalGenerator
from fastv2v.nn.single_image import SingleImageGenerator
from teachers.import_weights import Imported, first_line

TOLERANCE = 1e-5
"""Greatest difference from known outputs, on top of what the rounding of float32 explains."""
COMPOSITE_OUTPUTS = ("final", "flow", "weight", "raw", "image feature", "flow feature", "foreground feature")
"""What the reference generators return, by position."""


class Difference(NamedTuple):
    """How far one output is from the stored one."""

    mode: str
    """``train`` (batch statistics) or ``eval`` (running statistics)."""
    output: str
    """Name of the output."""
    greatest: float
    """Greatest absolute difference; NaN where either holds one."""
    rounding: float
    """Greatest absolute difference of our own outputs in float32 and in float64."""
    tolerance: float
    """Difference that is accepted beyond rounding."""

    @property
    def agrees(self) -> bool:
        """Whether the outputs are the same function's: twice the rounding, for both sides are rounded."""
        return self.greatest <= self.tolerance + 2 * self.rounding


def read_examples(path: Path) -> dict[str, Tensor]:
    """Read inputs ``in<i>`` and known outputs ``train/out.<i>``, ``eval/out.<i>`` of a network.

    Raises:
        DataError: if the file is missing, damaged or holds objects.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            examples = {name: torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in arrays.files}
    except (OSError, ValueError, TypeError, AttributeError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is missing, damaged or no .npz of plain arrays ({first_line(error)})") from error
    if bad := [name for name, value in examples.items() if not value.is_floating_point()]:
        raise DataError(f"{path}: {bad[0]} holds {examples[bad[0]].dtype}, not floating-point numbers")
    return {name: value.float() for name, value in examples.items()}


def compare(imported: Imported, examples: Mapping[str, Tensor], tolerance: float = TOLERANCE) -> list[Difference]:
    """Run the network on stored inputs and compare its outputs with the stored ones.

    Rounding alone moves outputs: a flow of 20 pixels has an error of some 1e-5, and a warp hands it on to the frame.
    How much is measured by running the network in float64 too.

    Args:
        imported: the network; it is left as it was.
        examples: inputs and known outputs.
        tolerance: difference that is accepted beyond rounding.

    Returns:
        One entry for each stored output; ``eval`` with the imported statistics, whatever training mode does to them.

    Raises:
        DataError: if an input is missing or does not fit, or a stored output is not one of this network's or has
            another shape.
    """
    inputs = {name: value for name, value in examples.items() if "/" not in name}
    stored = {name: value for name, value in examples.items() if "/" in name}
    if strange := [name for name in stored if not name.startswith(("train/out", "eval/out"))]:
        raise DataError(f"{strange[0]} is not understood: outputs are named train/out.<i> and eval/out.<i>")
    if not stored:
        raise DataError("no outputs are stored, so nothing can be compared")
    differences = []
    for mode in ("train", "eval"):
        of_mode = {name: value for name, value in stored.items() if name.startswith(f"{mode}/")}
        outputs, exact = _run(imported, mode, inputs) if of_mode else ({}, {})
        for name, known in of_mode.items():
            # A network that returns one tensor alone has it stored without a number.
            key = name.removeprefix(f"{mode}/out").removeprefix(".") or "0"
            if key not in outputs:
                raise DataError(f"{name} is stored, but this network has no such output")
            if outputs[key].shape != known.shape:
                raise DataError(f"{name} is {tuple(known.shape)} in the file, but {tuple(outputs[key].shape)} here")
            greatest, rounding = ((outputs[key] - other).abs().max().item() for other in (known, exact[key]))
            differences.append(Difference(mode, _output_name(imported.network, key), greatest, rounding, tolerance))
    return differences


_Inputs = Mapping[str, Tensor]
_Outputs = dict[str, Tensor]


def _run(imported: Imported, mode: str, inputs: _Inputs) -> tuple[_Outputs, _Outputs]:
    """Outputs in float32 and in float64 by the numbers they are stored under; the network is left as it was."""
    network = imported.network
    buffers = {name: value.clone() for name, value in network.named_buffers()}
    network.train(mode == "train")
    try:
        with torch.no_grad():
            outputs = _outputs(imported, inputs)
            network.double()
            exact = _outputs(imported, {name: value.double() for name, value in inputs.items()})
    except ValueError as error:  # ours about shapes, and those of norms about single pixels
        raise DataError(f"the stored inputs do not fit the network: {error}") from error
    finally:
        network.float().eval()
        for name, value in network.named_buffers():  # training mode moved the running statistics
            value.copy_(buffers[name])
    return outputs, exact


def _outputs(imported: Imported, inputs: _Inputs) -> _Outputs:
    """What the reference returns, in its order; what a network lacks is left out."""
    network, blueprint, _ = imported
    if isinstance(network, SingleImageGenerator):
        condition = _input(inputs, "in0", blueprint.channels)
        if network.config.feature_channels:
            condition = _beside(condition, inputs, network.config.feature_channels)
        return {"0": network(condition)}
    if isinstance(network, FeatureEncoder):
        whole = _beside(_input(inputs, "in0", 3), inputs, 1)
        return {"0": instance_mean(network(whole[:, :3]), whole[:, 3].long())}
    if isinstance(network, MultiScaleDiscriminator):
        scales = network(_input(inputs, "in0", blueprint.channels))
        if not blueprint.intermediate_features:
            scales = [scale[-1:] for scale in scales]
        return {f"{i}.{j}": value for i, scale in enumerate(scales) for j, value in enumerate(scale)}
    assert isinstance(network, CompositeGenerator | LocalGenerator)
    condition, history, mask = _step_inputs(network, inputs)
    if isinstance(network, LocalGenerator):
        image = _input(inputs, "in3", 2 * network.config.width)
        coarse = Features(image, inputs.get("in4"), inputs.get("in5"))
        output, features = network.parts(condition, history, coarse, mask=mask)
    else:
        output, features = network.parts(condition, history, mask=mask)
    parts = (output.frame, output.flow, output.occlusion, output.hallucinated, *features)
    return {str(i): part for i, part in enumerate(parts) if part is not None}


def _input(inputs: _Inputs, name: str, channels: int) -> Tensor:
    """A stored input, (B, channels, H, W)."""
    if name not in inputs:
        raise DataError(f"the stored inputs lack {name}; they have {', '.join(inputs) or 'none'}")
    value = inputs[name]
    if value.ndim != 4 or value.shape[1] != channels:
        raise DataError(
            f"the stored input {name} is {tuple(value.shape)}, but this network wants (B, {channels}, H, W)"
        )
    return value


def _beside(first: Tensor, inputs: _Inputs, channels: int) -> Tensor:
    """in0, followed by the channels of in1."""
    second = _input(inputs, "in1", channels)
    if (second.shape[0], *second.shape[2:]) != (first.shape[0], *first.shape[2:]):
        raise DataError(f"the stored in1 is {tuple(second.shape)} beside an in0 of {tuple(first.shape)}")
    return torch.cat([first, second], dim=1)


def _step_inputs(
    network: CompositeGenerator | LocalGenerator, inputs: _Inputs
) -> tuple[Tensor, History, Tensor | None]:
    """Condition, history and foreground mask from the stacks that the reference is given, oldest first."""
    channels, past = network.condition_channels, network.config.history_length
    conditions = _input(inputs, "in0", channels * (past + 1)).unflatten(1, (past + 1, channels))
    frames = _input(inputs, "in1", 3 * past).unflatten(1, (past, 3))
    mask = _input(inputs, "in2", 1) if network.foreground_channels else None
    if mask is not None and (mask.shape[0], *mask.shape[2:]) != (conditions.shape[0], *conditions.shape[3:]):
        raise DataError(f"the stored mask in2 is {tuple(mask.shape)} beside an in0 of {tuple(inputs['in0'].shape)}")
    valid = conditions.new_ones(conditions.shape[0])
    return conditions[:, past], History(conditions[:, :past], frames, valid), mask


def _output_name(network: nn.Module, key: str) -> str:
    """An output for people."""
    if isinstance(network, MultiScaleDiscriminator):
        scale, _, layer = key.partition(".")
        return f"scale {scale} layer {layer}"
    if isinstance(network, FeatureEncoder):
        return "features"
    return COMPOSITE_OUTPUTS[int(key)]
