"""How conditions enter a step graph. Runs without torch.

A plain graph takes what a torch step takes: one channel for each class at full size, now and for every past step. That
is 57 MB a keyframe at 36 channels and 512x256, of which the engine makes averages and a few mixed channels before it
begins; a small student spends more time on that than on its convolutions. A compact graph begins behind it: it takes
the label map itself, and averages, which are made once for each keyframe and remembered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from fastv2v.data.conditions import ConditionSpec, check_label_ids, encode_condition_numpy, instance_edges_numpy
from fastv2v.errors import DataError, ShapeError

Array = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class ConditionForm:
    """How a graph wants its conditions."""

    scale: int = 1
    """Past conditions are averaged over squares of so many pixels; 1 keeps them whole."""
    labels: bool = False
    """The present condition is a label map and its averages, instead of channels of full size."""
    edges: bool = False
    """With ``labels``: the borders of instances come beside the label map."""
    guidance: int = 0
    """With ``labels``: so many channels of guidance come beside it."""


PLAIN = ConditionForm()
"""Channels of full size, as the torch step takes them."""


class StepCondition(NamedTuple):
    """One frame's condition, ready for a graph."""

    inputs: Mapping[str, NDArray[Any]]
    """Inputs of the graph by name, batch 1."""
    past: Array
    """(C, h, w): what a history keeps of it; without guidance."""


def average(channels: Array, scale: int) -> Array:
    """Means over squares of ``scale`` pixels, (..., H, W) to (..., H / scale, W / scale)."""
    if scale == 1:
        return channels
    *lead, height, width = channels.shape
    squares = channels.reshape(*lead, height // scale, scale, width // scale, scale)
    means: Array = squares.mean(axis=(-3, -1), dtype=np.float32)
    return means


def form_of(shapes: Mapping[str, tuple[int, ...]]) -> ConditionForm:
    """The form a graph with inputs of these shapes wants; ``PLAIN`` for what is no step graph."""
    frames, past = shapes.get("history_frames"), shapes.get("history_conditions")
    scale = 1 if frames is None or past is None else frames[-1] // past[-1]
    guidance = shapes["guidance"][1] if "guidance" in shapes else 0
    return ConditionForm(scale=scale, labels="labels" in shapes, edges="edges" in shapes, guidance=guidance)


def encode_for(
    form: ConditionForm,
    spec: ConditionSpec,
    labels: NDArray[np.integer] | None = None,
    instances: NDArray[np.integer] | None = None,
    maps: Array | None = None,
    *,
    where: str = "condition",
    out: Array | None = None,
) -> StepCondition:
    """Encode the condition of one frame for a graph, without guidance (see ``with_guidance``).

    Args:
        form: what the graph wants.
        spec: how conditions are encoded.
        labels: class ids, (H, W), for label conditions.
        instances: instance ids, (H, W), when the spec uses them.
        maps: channels, (C, H, W), for map conditions.
        where: file or frame, for messages.
        out: (C, h, w) to write what the history keeps into; a new array by default.

    Raises:
        DataError: if a label id is out of range or a needed map is missing.
        ShapeError: if sizes disagree, or a size does not divide.
    """
    if not form.labels:
        whole = out if form.scale == 1 else None
        encoded = encode_condition_numpy(spec, labels, instances, maps, where=where, out=whole)
        return _plain(form, encoded, out)
    if labels is None or (spec.use_instances and instances is None):
        raise DataError(f"{where}: {'a label' if labels is None else 'an instance'} map is needed and none was given")
    check_label_ids(labels, spec, where)
    if instances is not None and instances.shape != labels.shape:
        raise ShapeError(f"{where}: instance map {instances.shape} and label map {labels.shape} differ in size")
    # Ignored pixels are of a class after the last, which has no channel.
    # A number of numpy's own widens the type where that has no room for it: bytes of 256 classes.
    codes = np.minimum(labels, np.int32(spec.num_classes)).astype(np.int32)
    edges = instance_edges_numpy(instances) if spec.use_instances and instances is not None else None
    return _compact(form, codes, edges, spec.num_classes, where, out)


def from_encoded(form: ConditionForm, encoded: Array) -> StepCondition:
    """A condition of full size, (C, H, W), for a graph: slower than ``encode_for``, for what only has the channels.

    Args:
        form: what the graph wants.
        encoded: one-hot labels, then borders; or maps; then guidance. ``past`` is meant for a history only where that
            is all 0.
    """
    if not form.labels:
        return _plain(form, encoded, None)
    num_classes = encoded.shape[0] - form.edges - form.guidance
    classes = encoded[:num_classes]
    codes = np.where(classes.any(axis=0), classes.argmax(axis=0), num_classes).astype(np.int32)
    made = _compact(form, codes, encoded[num_classes] if form.edges else None, num_classes, "condition", None)
    return with_guidance(made, encoded[num_classes + form.edges :]) if form.guidance else made


def with_guidance(condition: StepCondition, guidance: Array) -> StepCondition:
    """The same condition with what is painted of the world; what a history keeps of it stays without.

    Args:
        condition: made with room for guidance in its last channels.
        guidance: (G, H, W), as ``fastv2v.data.painter.render_levels`` gives it.

    Raises:
        ShapeError: if the graph takes no such guidance.
    """
    inputs, count = dict(condition.inputs), len(guidance)
    name, shown = "condition", guidance
    if "condition" not in inputs:
        if "guidance" not in inputs or inputs["guidance"].shape[1:] != guidance.shape:
            raise ShapeError(f"the graph takes no guidance of shape {guidance.shape}; export the student again")
        inputs["guidance"] = np.ascontiguousarray(guidance[None], dtype=np.float32)
        name, shown = "coarse", average(guidance, guidance.shape[-1] // inputs["coarse"].shape[-1])
    # A copy: the history may keep the array itself.
    inputs[name] = inputs[name].copy()
    inputs[name][0, -count:] = shown
    return StepCondition(inputs, condition.past)


def _plain(form: ConditionForm, encoded: Array, out: Array | None) -> StepCondition:
    past = average(encoded, form.scale)
    if out is not None and past is not out:
        out[:] = past
        past = out
    return StepCondition({"condition": encoded[None]}, past)


def _compact(
    form: ConditionForm,
    codes: NDArray[np.int32],
    edges: Array | None,
    num_classes: int,
    where: str,
    out: Array | None,
) -> StepCondition:
    """Label codes (H, W) in [0, L], L for none, and borders (H, W), with their averages; no guidance yet."""
    scale, (height, width) = form.scale, codes.shape
    if height % scale or width % scale:
        raise ShapeError(f"{where}: {height}x{width} does not divide by {scale}")
    rows, columns = height // scale, width // scale
    channels = num_classes + (edges is not None) + form.guidance
    past = np.empty((channels, rows, columns), np.float32) if out is None else out
    # Counting where each pixel's class goes: one pass over the pixels, not one for each class.
    places = (np.arange(height, dtype=np.int32) // scale * columns)[:, None]
    places = places + np.arange(width, dtype=np.int32) // scale
    counts = np.bincount(
        (codes * np.int32(rows * columns) + places).ravel(), minlength=(num_classes + 1) * rows * columns
    )
    counted = counts[: num_classes * rows * columns].reshape(num_classes, rows, columns)
    np.multiply(counted, np.float32(1 / scale**2), out=past[:num_classes], casting="unsafe")
    inputs: dict[str, NDArray[Any]] = {"labels": codes[None], "coarse": past[None]}
    if edges is not None:
        past[num_classes] = cv2.resize(edges, (columns, rows), interpolation=cv2.INTER_AREA)
        inputs["edges"] = np.ascontiguousarray(edges, dtype=np.float32)[None, None]
    if form.guidance:
        past[-form.guidance :] = 0
        inputs["guidance"] = np.zeros((1, form.guidance, height, width), np.float32)
    return StepCondition(inputs, past)
