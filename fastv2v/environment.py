"""What a result was obtained on: machine, library versions, commit. Does not import torch."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

DEPENDENCIES: Final = (
    "fastv2v",
    "torch",
    "torchvision",
    "numpy",
    "opencv-python",
    "opencv-python-headless",
    "ffmpeg-python",
    "imageio-ffmpeg",
    "scikit-image",
    "accelerate",
    "safetensors",
    "tyro",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "nncf",
    "tensorrt",
    "tensorrt-cu12",
    "tensorrt-cu13",
    "lmdb",
    "pycolmap",
    "torchmetrics",
)
"""Distributions whose version may change a number."""

CPU_FEATURES: Final = ("amx_bf16", "avx512_bf16", "avx512_vnni", "avx512f", "avx2")
"""Instruction sets that decide how fast a network runs, fastest first."""


def describe_machine() -> dict[str, Any]:
    """The machine this runs on.

    Returns:
        ``cpu`` (model name), ``cores`` (usable by this process), ``cpu_features`` (those of ``CPU_FEATURES`` it has),
        ``memory_gib`` (None where the system does not say), ``os``, ``python`` and ``gpu`` (name or None).
    """
    return {
        "cpu": _cpu_model(),
        "cores": usable_cores(),
        "cpu_features": _cpu_features(),
        "memory_gib": _memory_gib(),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "gpu": _gpu_name(),
    }


def describe_versions() -> dict[str, str]:
    """Versions of the installed ones among ``DEPENDENCIES``, by name; what is not installed is not listed."""
    versions = {}
    for name in DEPENDENCIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def package_version(name: str) -> str | None:
    """The version of an importable package, ``unknown`` where it states none; None where it is not installed."""
    if importlib.util.find_spec(name) is None:
        return None
    for distribution in importlib.metadata.packages_distributions().get(name, [name]):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"


def torch_cuda() -> str | None:
    """The CUDA version torch was built for, read without importing it; None for a build without, or no torch."""
    spec = importlib.util.find_spec("torch")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        stated = Path(place, "version.py")
        if stated.is_file():
            text = stated.read_text(errors="replace")
            found = re.search(r"^cuda\b[^=\n]*=\s*['\"]([\d.]+)['\"]", text, re.MULTILINE)
            return found.group(1) if found else None
    return None


def describe_gpus() -> list[dict[str, str]]:
    """NVIDIA's GPUs as the driver tells: ``name``, ``memory``, ``driver`` and ``compute_capability`` of each."""
    fields = {"name": "name", "memory": "memory.total", "driver": "driver_version", "compute_capability": "compute_cap"}
    told = _run("nvidia-smi", f"--query-gpu={','.join(fields.values())}", "--format=csv,noheader")
    rows = [line.split(",") for line in (told or "").splitlines()]
    return [dict(zip(fields, (x.strip() for x in row), strict=True)) for row in rows if len(row) == len(fields)]


def program_version(program: str) -> str | None:
    """The version a program tells in the first line of ``PROGRAM -version``; None where it cannot be run."""
    told = _run(program, "-version")
    found = re.search(r"version (\S+)", told.splitlines()[0]) if told else None
    return found.group(1) if found else None


def driver_cuda() -> str | None:
    """The newest CUDA version the NVIDIA driver can run; None without one."""
    found = re.search(r"CUDA Version\s*:\s*([\d.]+)", _run("nvidia-smi") or "")
    return found.group(1) if found else None


def describe_commit(root: str | os.PathLike[str] | None = None) -> str | None:
    """The git commit of a source tree.

    Args:
        root: a folder of the tree; by default the one this package belongs to, which an installed copy does not.

    Returns:
        The full hash, with ``-dirty`` when tracked files were changed; None outside a git tree or without git.
    """
    if root is None:
        here = Path(__file__)
        if _run("git", "-C", str(here.parent), "ls-files", "--error-unmatch", here.name) is None:
            return None  # a copy in an environment that happens to lie inside somebody else's tree
        root = here.parent
    commit = _run("git", "-C", str(root), "rev-parse", "HEAD")
    if commit is None:
        return None
    changes = _run("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no")
    return commit + ("-dirty" if changes else "")


def has_fast_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware (AMX or AVX-512), so that bf16 is worth using on it."""
    return not {"amx_bf16", "avx512_bf16"}.isdisjoint(_cpu_features())


def machine_slug() -> str:
    """A short name of this machine for file names: its processor and usable cores, such as ``amd-epyc-2-cores``."""
    model = re.sub(r"\((r|tm)\)|\bcpu\b|\bprocessor\b|@.*", " ", _cpu_model().lower())
    words = "-".join(re.findall(r"[a-z0-9.]+", model)) or "unknown-cpu"
    return f"{words}-{usable_cores()}-cores"


def _run(*command: str) -> str | None:
    """Standard output of a command; None if it is not installed, fails or hangs."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except subprocess.TimeoutExpired:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpuinfo(*keys: str) -> str:
    """The first value under one of ``keys`` in Linux's /proc/cpuinfo; empty elsewhere."""
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in keys:
                return value.strip()
    return ""


def _cpu_model() -> str:
    mac = _run("sysctl", "-n", "machdep.cpu.brand_string") if sys.platform == "darwin" else None
    return mac or _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpu_features() -> list[str]:
    flags = _cpuinfo("flags").split()
    return [name for name in CPU_FEATURES if name in flags]


def usable_cores() -> int:
    """Cores this process may use: its affinity, bounded by a container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota_file = Path("/sys/fs/cgroup/cpu.max")
    if quota_file.is_file():
        quota, _, period = quota_file.read_text().strip().partition(" ")
        if quota.isdigit() and period.isdigit():
            cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def _memory_gib() -> float | None:
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)


def _gpu_name() -> str | None:
    """The first GPU, asked of torch only where it is loaded already: importing it takes seconds."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return str(torch.cuda.get_device_name(0))
    names = _run("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    return names.splitlines()[0] if names else None
