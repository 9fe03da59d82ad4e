"""Checkpoints: folders that appear whole or not at all, hold tensors and JSON only, and refuse another architecture.

``checkpoints/step-00001000/`` holds ``<player>.safetensors``, ``<player>.optimizer.safetensors``, ``ema.safetensors``,
``rng.safetensors`` and ``state.json``, which lists the others with their sizes and names the best step so far. A folder
that lacks any of them, or has a temporary name, does not count.
"""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from fastv2v.errors import CheckpointError
from fastv2v.run import write_bytes

_LOG = logging.getLogger(__name__)
_FORMAT = 1


def checkpoint_name(step: int) -> str:
    """Folder name of the checkpoint after ``step`` updates."""
    return f"step-{step:08d}"


def save_checkpoint(
    checkpoints: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
) -> Path:
    """Write a checkpoint: under a temporary name, every file fsynced, then renamed.

    Args:
        checkpoints: the run's folder of checkpoints.
        step: updates made.
        tensors: contents of each ``<name>.safetensors``, by name. Views and shared tensors are written in full.
        state: everything else, as plain JSON values.

    Returns:
        The finished folder. One that existed under this name is replaced.
    """
    checkpoints.mkdir(parents=True, exist_ok=True)
    for leftover in checkpoints.glob(".step-*"):
        shutil.rmtree(leftover)
    final = checkpoints / checkpoint_name(step)
    temporary = checkpoints / f".{final.name}.tmp"
    temporary.mkdir()
    for name, group in tensors.items():
        save_tensors(temporary / f"{name}.safetensors", group)
    files = {file.name: file.stat().st_size for file in sorted(temporary.iterdir())}
    # Not write_json: a perfect evaluation may be infinite, and Python reads its own Infinity back.
    content = json.dumps({"format": _FORMAT, "step": step, **state, "files": files}, indent=1)
    write_bytes(temporary / "state.json", content.encode())
    _sync_folder(temporary)
    _discard(final)
    temporary.rename(final)
    _sync_folder(checkpoints)
    return final


def save_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors as one safetensors file, whole or not at all."""
    # Copies, since the format refuses tensors that share memory; through bytes, since its own writer makes files that
    # only their owner may read.
    plain = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    write_bytes(file, save(plain))


def load_tensors(file: Path) -> dict[str, Tensor]:
    """Read a safetensors file into memory of the CPU.

    Raises:
        CheckpointError: if it is missing or damaged.
    """
    if not file.is_file():
        raise CheckpointError(f"{file} does not exist")
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is damaged or no safetensors file ({error}); take another checkpoint") from error


def load_weights(module: nn.Module, file: Path | str) -> None:
    """Load saved weights into a network of exactly the same architecture.

    Args:
        module: the network; parameters and buffers are overwritten in place.
        file: a ``.safetensors`` file of its state dict.

    Raises:
        CheckpointError: if the file is missing or damaged, or its tensors are not exactly those of the network; the
            message lists the missing, the unexpected and the mis-shaped. The network is then unchanged.
    """
    file = Path(file)
    tensors = load_tensors(file)
    own = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    wrong = [
        f"{name} is {list(tensors[name].shape)} there and {list(own[name].shape)} here"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    problems = [
        f"{what} {_listed(names)}"
        for what, names in (
            ("missing", [name for name in own if name not in tensors]),
            ("unexpected", [name for name in tensors if name not in own]),
            ("mis-shaped", wrong),
        )
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{file} is a checkpoint of another architecture: {'; '.join(problems)}; take one of this network, or "
            "build the network with the settings it was trained with"
        )
    module.load_state_dict(tensors)


def list_checkpoints(run: Path | str) -> list[Path]:
    """Complete checkpoints of a run folder, oldest first. Half-written ones are left out."""
    found = sorted((Path(run) / "checkpoints").glob("step-*"))
    return [folder for folder in found if _is_complete(folder)]


def latest_checkpoint(run: Path | str) -> Path | None:
    """The newest complete checkpoint of a run folder, or None."""
    found = list_checkpoints(run)
    return found[-1] if found else None


def best_checkpoint(run: Path | str) -> Path | None:
    """The checkpoint with the best evaluation so far, or None where nothing was evaluated yet.

    Raises:
        CheckpointError: if it is gone or damaged.
    """
    latest = latest_checkpoint(run)
    best = read_state(latest).get("best") if latest else None
    if best is None:
        return None
    folder = Path(run) / "checkpoints" / checkpoint_name(best["step"])
    if not _is_complete(folder):
        raise CheckpointError(f"the best checkpoint, {folder}, is gone or damaged; ask for the latest instead")
    return folder


def find_checkpoint(path: Path | str, which: Literal["best", "latest"] = "best") -> Path:
    """The checkpoint that a person means by a path.

    Args:
        path: a checkpoint folder, or a run folder.
        which: which one of a run; ``best`` is the latest where nothing was evaluated.

    Raises:
        CheckpointError: if there is none, or the best one is damaged.
    """
    path = Path(path)
    if _is_complete(path):
        return path
    found = (best_checkpoint(path) if which == "best" else None) or latest_checkpoint(path)
    if found is None:
        if not path.exists():
            raise CheckpointError(f"{path} does not exist; give a run folder or a checkpoint in it")
        if (path / "network.json").is_file():
            raise CheckpointError(
                f"{path} is an imported network; make a run of it: train-teacher PRESET --init {path} "
                "--recipe.train.steps 0"
            )
        raise CheckpointError(f"{path} is neither a complete checkpoint nor a run that holds one; train it first")
    return found


def weights_file(checkpoint: Path, player: str = "generator") -> Path:
    """File of a player's weights in a checkpoint: the averaged ones where they are kept, else its own.

    Raises:
        CheckpointError: if the checkpoint has no such player.
    """
    state = read_state(checkpoint)
    name = "ema" if state.get("ema_player") == player and "ema.safetensors" in state["files"] else player
    if f"{name}.safetensors" not in state["files"]:
        raise CheckpointError(f"{checkpoint} holds no {player}; it holds {', '.join(state['files'])}")
    return checkpoint / f"{name}.safetensors"


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Contents of ``state.json``.

    Raises:
        CheckpointError: if it is missing, damaged or of a newer format.
    """
    file = checkpoint / "state.json"
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
        if state["format"] != _FORMAT:
            raise CheckpointError(f"{file} has format {state['format']}; this version of fastv2v reads {_FORMAT}")
        return {**state, "files": dict(state["files"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} is missing or damaged ({error}); take another checkpoint") from error


def prune_checkpoints(run: Path | str, keep: int, best_step: int | None = None) -> None:
    """Delete all complete checkpoints but the newest ``keep`` and the best."""
    for folder in list_checkpoints(run)[:-keep]:
        if best_step is None or folder.name != checkpoint_name(best_step):
            _discard(folder)


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """State of an optimiser as tensors named ``<parameter>/<entry>``, for example ``conv.weight/exp_avg``."""
    return {
        f"{name}/{entry}": value
        for name, parameter in parameters.items()
        for entry, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], file: Path) -> None:
    """Put saved state back into an optimiser over the same parameters.

    Raises:
        CheckpointError: if the file is missing, damaged, or belongs to other parameters.
    """
    for key, value in load_tensors(file).items():
        name, _, entry = key.rpartition("/")
        parameter = parameters.get(name)
        if parameter is None or value.shape not in (torch.Size(), parameter.shape):
            raise CheckpointError(
                f"{file} is of another architecture: {name} is not trained here or has another shape; take a "
                "checkpoint of this network, or train anew under another name"
            )
        # empty_like keeps the parameter's memory layout, which a file does not
        own = torch.empty_like(parameter) if value.ndim else torch.empty((), device=parameter.device)
        optimizer.state[parameter][entry] = own.detach().to(value.dtype).copy_(value)


def rng_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State of the global generators of python, NumPy and torch, as tensors and as JSON values."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    assert isinstance(keys, np.ndarray)
    tensors = {"python": torch.tensor(words), "numpy": torch.from_numpy(keys.copy()), "torch": torch.get_rng_state()}
    tensors |= {f"cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return tensors, {"python": [version, gauss], "numpy": [kind, int(position), int(has_gauss), float(cached)]}


def restore_rng_state(tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
    """Put back what ``rng_state`` gave; GPUs that this machine does not have are passed over."""
    version, gauss = scalars["python"]
    kind, position, has_gauss, cached = scalars["numpy"]
    random.setstate((version, tuple(tensors["python"].tolist()), gauss))
    np.random.set_state((kind, tensors["numpy"].numpy(), position, has_gauss, cached))
    torch.set_rng_state(tensors["torch"])
    for i in range(torch.cuda.device_count()):
        if f"cuda.{i}" in tensors:
            torch.cuda.set_rng_state(tensors[f"cuda.{i}"], i)


def _is_complete(folder: Path) -> bool:
    """Whether a checkpoint has all of its files in full length."""
    try:
        files = read_state(folder)["files"]
        return all((folder / name).stat().st_size == size for name, size in files.items())
    except (CheckpointError, OSError):
        if folder.name.startswith("step-"):
            _LOG.warning("ignoring the incomplete checkpoint %s", folder)
        return False


def _discard(folder: Path) -> None:
    """Delete a checkpoint, under a name that no longer counts: a kill halfway must not leave half a checkpoint."""
    if folder.exists():
        shutil.rmtree(folder.rename(folder.with_name(f".{folder.name}.old")))


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder durable; only POSIX systems can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _listed(names: Iterable[str], limit: int = 4) -> str:
    """The first few names."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
