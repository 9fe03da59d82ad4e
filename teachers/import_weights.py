"""Published weights become our networks: every tensor of a reference state dict has its place, or nothing is imported.

Files are read without running code they may hold. What was imported is kept as safetensors beside a JSON description.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastv2v.checkpoint import load_weights, save_tensors
from fastv2v.config import from_dict, to_dict
from fastv2v.errors import CheckpointError, ConfigError
from fastv2v.run import write_json
from teachers.published import CONFIGS, Blueprint, Layers, plan

_FORMAT = 1


class Imported(NamedTuple):
    """A network with published weights."""

    network: nn.Module
    """In evaluation mode."""
    blueprint: Blueprint
    """What it is made of."""
    notes: tuple[str, ...]
    """What the description left open and how it was understood, for the person who imports."""


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a ``.pth`` file; code in it is never run.

    Raises:
        CheckpointError: if the file is missing or damaged, or holds anything but named tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist or is no file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is damaged or holds objects beside its tensors; their code is not run. Where the file comes from, "
            "save network.state_dict() instead of the network"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        # What a torn or foreign file makes of the unpickler is anyone's guess.
        raise CheckpointError(f"{path} is damaged or no file of PyTorch ({first_line(error)})") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state dict of named tensors")
    if odd := [name for name, value in content.items() if not isinstance(name, str) or not isinstance(value, Tensor)]:
        raise CheckpointError(f"{path} is no state dict: {odd[0]!r} is a {type(content[odd[0]]).__name__}, no tensor")
    return {name: value.detach() for name, value in content.items()}


def read_description(path: Path) -> dict[str, Any]:
    """Read the JSON description of a published network.

    Raises:
        ConfigError: if the file is missing or no JSON object.
    """
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON ({error})") from error
    if not isinstance(description, dict):
        raise ConfigError(f"{path} must hold a JSON object")
    return description


def import_network(tensors: Mapping[str, Tensor], description: Mapping[str, Any], source: str = "the file") -> Imported:
    """Put every tensor of a reference state dict into a network of ours.

    Args:
        tensors: by reference name.
        description: constructor values of the reference network; ``network`` names it.
        source: where the tensors come from, for messages.

    Returns:
        The network, in float32 and in evaluation mode.

    Raises:
        ConfigError: if the description is of an unknown network, lacks a key or contradicts itself.
        CheckpointError: if a tensor is missing, left over or mis-shaped; the message lists them.
    """
    blueprint, layers, notes = plan(description, tensors)
    with torch.device("meta"):  # shapes only; the file's own memory becomes the weights
        network = blueprint.build()
    own = {name: value for name, value in network.state_dict().items() if isinstance(value, Tensor)}
    found, more = _fit(own, layers, tensors, f"{source} does not fit the described network {blueprint.network!r}")
    network.load_state_dict(found, assign=True)
    return Imported(network.eval(), blueprint, (*notes, *more))


def save_imported(imported: Imported, folder: Path, record: Mapping[str, Any]) -> None:
    """Write ``weights.safetensors`` and ``network.json``, both or neither.

    Args:
        imported: the network.
        folder: made; must not exist.
        record: where the weights come from and how they were checked, as JSON values.

    Raises:
        ConfigError: if the folder exists.
    """
    refuse_existing(folder)
    blueprint = imported.blueprint
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        tensors = {name: value for name, value in imported.network.state_dict().items() if isinstance(value, Tensor)}
        save_tensors(temporary / "weights.safetensors", tensors)
        content = {
            "format": _FORMAT,
            "network": blueprint.network,
            "config": to_dict(blueprint.config),
            "channels": blueprint.channels,
            "foreground": list(blueprint.foreground),
            "intermediate_features": blueprint.intermediate_features,
            **record,
        }
        write_json(temporary / "network.json", content)
        refuse_existing(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_imported(folder: Path) -> Imported:
    """Load what ``save_imported`` wrote.

    Raises:
        CheckpointError: if it is incomplete, damaged or of another version.
    """
    file = folder / "network.json"
    try:
        content = read_description(file)
        if content["format"] != _FORMAT:
            raise CheckpointError(f"{file} has format {content['format']}; this version of fastv2v reads {_FORMAT}")
        config = from_dict(CONFIGS[content["network"]], content["config"])
        blueprint = Blueprint(
            content["network"],
            config,
            int(content["channels"]),
            tuple(content["foreground"]),
            bool(content["intermediate_features"]),
        )
        network = blueprint.build()
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file} does not describe an imported network ({first_line(error)})") from error
    load_weights(network, folder / "weights.safetensors")
    return Imported(network.eval(), blueprint, ())


def refuse_existing(folder: Path) -> None:
    """Raise ConfigError if there is anything under this name."""
    if os.path.lexists(folder):
        raise ConfigError(f"{folder} exists already; nothing is overwritten, choose another name or remove it")


def file_sha256(path: Path) -> str:
    """Checksum of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fit(
    own: Mapping[str, Tensor], layers: Layers, tensors: Mapping[str, Tensor], complaint: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Our tensors from the reference's, each used once; and what to tell about it."""
    sources: dict[str, list[str]] = {}
    shapes: dict[str, Tensor] = {}
    for name, value in own.items():
        layer, _, leaf = name.rpartition(".")
        sources[name] = [f"{piece.layer}.{leaf}" for piece in layers[layer]]
        shapes |= {f"{p.layer}.{leaf}": value[p.rows] if value.ndim else value for p in layers[layer]}
    counters = {name for name in shapes if name.endswith(".num_batches_tracked")}
    missing = [name for name in shapes if name not in tensors]
    notes = []
    filled: dict[str, Tensor] = {}
    if counters and counters <= set(missing):  # PyTorch counts batches since 0.4.1; nothing depends on it here
        filled = {name: torch.zeros((), dtype=torch.long) for name in counters}
        missing = [name for name in missing if name not in counters]
        notes.append("the file was written before PyTorch 0.4.1: its norms count no batches, so they start at 0")
    wrong = [
        f"{name} (is {_shape(tensors[name])} there, {_shape(like)} here)"
        for name, like in shapes.items()
        if name in tensors
        and (tensors[name].shape != like.shape or tensors[name].is_floating_point() != like.is_floating_point())
    ]
    lists = {"missing": missing, "left over": [name for name in tensors if name not in shapes], "mis-shaped": wrong}
    if any(lists.values()):
        lines = [f"  {len(names)} {what}: {_listed(names)}" for what, names in lists.items() if names]
        raise CheckpointError("\n".join([f"{complaint}, so nothing was imported:", *lines]))
    available = {**tensors, **filled}
    found = {}
    for name, value in own.items():
        parts = [available[source] for source in sources[name]]
        joined = torch.cat(parts) if len(parts) > 1 else parts[0]
        found[name] = joined.to(value.dtype).contiguous()
    return found, notes


def _shape(value: Tensor) -> str:
    """Shape and, where it is no ordinary weight, type."""
    return f"{list(value.shape)}{'' if value.is_floating_point() else f' of {value.dtype}'}"


def _listed(names: Iterable[str], limit: int = 8) -> str:
    """The first few names."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def first_line(error: BaseException) -> str:
    """What an error says, short enough for a sentence."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
