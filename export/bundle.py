"""The bundle: a folder ``<name>.v2v`` with everything a deployment needs, checked before any of it is used.

One JSON manifest, ONNX graphs, weights and engine files, each listed with its sha256. Nothing in it is unpickled. A
TensorRT engine is code for the GPU, however, and where it is version-compatible for the CPU too; the latter runs only
where a person names the engine and allows it. Runs without torch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any, get_args

from export.schema import schema_problem
from fastv2v.config import from_dict
from fastv2v.data.conditions import MAX_GUIDANCE_LEVELS, ConditionSpec, Encoder
from fastv2v.errors import BundleError, ConfigError
from fastv2v.places import check_place

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
STEP_GRAPH = "step.onnx"
INT8_GRAPH = "step.int8.onnx"
"""The step with quantised convolutions, where a bundle has one."""
SELF_TEST = "selftest.onnx"
TORCH_WEIGHTS = "torch/weights.safetensors"
"""The student's own weights, for the engines of torch, where a bundle has them."""
TORCH_ARCHITECTURE = "torch/architecture.json"
"""What network they belong to, as checkpoints say it."""
ENGINES_FOLDER = "engines"
"""Where engines lie that were compiled for a machine, each in a folder of its own."""
SUFFIX = ".v2v"

Option = str | int | float | bool | None


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How closely the exported graph follows the trained module, both rolled out on their own frames."""

    max_abs_diff: float
    """Greatest difference of a frame value, in units of [-1, 1]."""
    frames: int
    """Length of the compared clip."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Arithmetic of the student. One MAC is two FLOPs; the manifest holds both under their names."""

    macs_per_keyframe: float
    """Multiply-accumulates to synthesise one keyframe."""
    macs_per_frame: float
    """The same, spread over all delivered frames."""
    output_position_macs_per_keyframe: float
    """Counted as Fast-Vid2Vid's table does: transposed convolutions at every output position."""
    parameters: int
    """Weights of the step."""


@dataclass(frozen=True, kw_only=True)
class EngineMeasurement:
    """One candidate engine, measured on a clip that it rolled out itself."""

    engine: str
    """``onnxruntime``, ``openvino``, ..."""
    precision: str
    """``f32``, ``bf16``, ..."""
    threads: int
    """CPU threads it was given."""
    median_ms: float | None = None
    """Median time of one step; None where it could not run."""
    spread_ms: float | None = None
    """Distance between the first and third quartile of the step time."""
    parity_psnr_db: float | None = None
    """PSNR of its frames against those of ONNX Runtime in float32; None where they are equal or it could not run."""
    psnr_loss_db: float | None = None
    """How much further from the real frames it is than ONNX Runtime in float32; None without real frames."""
    accepted: bool
    """Whether it may be chosen."""
    reason: str
    """Why, in words."""


@dataclass(frozen=True, kw_only=True)
class EngineChoice:
    """The engine to use on machines like the one it was measured on."""

    engine: str
    precision: str
    median_ms: float
    cpu: str
    """Model name of the processor."""
    cpu_features: tuple[str, ...] = ()
    """Matrix and low-precision features of the processor."""
    gpu: str | None = None
    """Name of the GPU that was there; None where there was none."""
    measurements: tuple[EngineMeasurement, ...] = ()
    """All candidates, in the order they were measured."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a bundle holds and how it was made."""

    name: str
    """Name of the bundle."""
    task: str
    """``street``, ``face``, ``pose``, ``world``, ``demo`` or a name of one's own."""
    condition: ConditionSpec
    """How a label map becomes the channels of ``step.onnx``."""
    size: tuple[int, int]
    """(height, width) of conditions and frames."""
    history_length: int
    """Past keyframes a step looks back on."""
    keyframes: Mapping[str, Option]
    """Fields of ``interpolate.keyframes.KeyframeConfig``."""
    interpolation: Mapping[str, Option]
    """``method`` (``dis``, ``blend`` or ``network``) and, but for ``blend``, fields of
    ``interpolate.motion.MotionConfig``; for ``network`` also ``engine``, ``precision`` and ``median_ms``, where engines
    were measured."""
    fps: float
    """Delivered frames per second of the data the student was trained on."""
    parity: Parity
    """Tolerance reached by the export."""
    cost: Cost
    """MACs of the student."""
    precision: str = "f32"
    """Number format of the weights in ``step.onnx``."""
    opset: int = 18
    """ONNX operator set of ``step.onnx``."""
    palette: tuple[tuple[int, int, int], ...] | None = None
    """One RGB colour for each class, for pictures of label maps."""
    training_commit: str | None = None
    """Commit of this project that trained the student."""
    created_by: str = ""
    """Program and version that wrote the bundle."""
    engine: EngineChoice | None = None
    """The measured choice, where one was made."""
    files: Mapping[str, str] = field(default_factory=dict)
    """sha256 of every file, by path inside the bundle; filled in by ``write_bundle``."""

    def __post_init__(self) -> None:
        if self.palette is not None and len(self.palette) != self.condition.num_classes:
            raise ConfigError(
                f"the palette has {len(self.palette)} colours and the condition {self.condition.num_classes} classes"
            )

    def to_json(self) -> dict[str, Any]:
        """The manifest as plain JSON values.

        Raises:
            ConfigError: if a value does not fit the schema.
        """
        record = {"schema_version": SCHEMA_VERSION, **asdict(self)}
        cost = asdict(self.cost)
        record["cost"] |= {n.replace("macs", "flops"): 2 * cost[n] for n in ("macs_per_keyframe", "macs_per_frame")}
        record = json.loads(json.dumps(record))  # tuples become lists, as they will on disk
        record["checksum"] = manifest_checksum(record)
        problem = schema_problem(record, SCHEMA)
        if problem:
            raise ConfigError(f"a bundle manifest cannot hold this: {problem}")
        return record

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Manifest:
        """The manifest from values that fit the schema."""
        values = {name: value for name, value in record.items() if name not in ("schema_version", "checksum")}
        choice = values["engine"]
        if choice is not None:
            measured = tuple(EngineMeasurement(**entry) for entry in choice["measurements"])
            features = tuple(choice["cpu_features"])
            values["engine"] = EngineChoice(**(choice | {"measurements": measured, "cpu_features": features}))
        if values["palette"] is not None:
            values["palette"] = tuple(tuple(colour) for colour in values["palette"])
        cost = {f.name: values["cost"][f.name] for f in fields(Cost)}
        return cls(
            **values
            | {
                "condition": from_dict(ConditionSpec, values["condition"]),
                "size": tuple(values["size"]),
                "parity": Parity(**values["parity"]),
                "cost": Cost(**cost),
            }
        )


def manifest_checksum(record: Mapping[str, Any]) -> str:
    """sha256 of a manifest's content, apart from the field ``checksum``; key order and white space do not count."""
    content = {name: value for name, value in record.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _record(properties: dict[str, Any], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    """Schema of an object with exactly these keys; files of earlier versions lack the optional ones."""
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }


_TEXT = {"type": "string"}
_NAME = {"type": "string", "minLength": 1}
_COUNT = {"type": "integer", "minimum": 1}
_AMOUNT = {"type": "number", "minimum": 0}
_MAYBE_NUMBER = {"type": ["number", "null"]}
_OPTIONS = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean", "null"]}}
_BYTE = {"type": "integer", "minimum": 0, "maximum": 255}
_SHA256 = {"type": "string", "pattern": "^[0-9a-f]{64}$"}

SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "fastv2v bundle manifest",
    **_record(
        {
            "schema_version": {"const": SCHEMA_VERSION},
            "name": _NAME,
            "task": _NAME,
            "condition": _record(
                {
                    "kind": {"enum": ["labels", "maps"]},
                    "class_names": {"type": "array", "items": _TEXT, "maxItems": 65535},
                    "map_channels": {"type": "integer", "minimum": 0},
                    "use_instances": {"type": "boolean"},
                    "ignore_id": {"type": ["integer", "null"]},
                    "encoder": {"enum": list(get_args(Encoder))},
                    "face": {"anyOf": [_OPTIONS, {"type": "null"}]},
                    "pose": {"anyOf": [_OPTIONS, {"type": "null"}]},
                    "guidance_levels": {"type": "integer", "minimum": 0, "maximum": MAX_GUIDANCE_LEVELS},
                }
            )
            # Bundles that were written before conditions had an encoder lack the rest.
            | {"required": ["kind", "class_names", "map_channels", "use_instances", "ignore_id"]},
            "size": {"type": "array", "items": _COUNT, "minItems": 2, "maxItems": 2},
            "history_length": _COUNT,
            "keyframes": _OPTIONS | {"required": ["policy", "gap"]},
            "interpolation": _OPTIONS | {"required": ["method"]},
            "fps": {"type": "number", "exclusiveMinimum": 0},
            "parity": _record({"max_abs_diff": _AMOUNT, "frames": _COUNT}),
            "cost": _record(
                {
                    "macs_per_keyframe": _AMOUNT,
                    "macs_per_frame": _AMOUNT,
                    "flops_per_keyframe": _AMOUNT,
                    "flops_per_frame": _AMOUNT,
                    "output_position_macs_per_keyframe": _AMOUNT,
                    "parameters": _COUNT,
                }
            ),
            "precision": _NAME,
            "opset": _COUNT,
            "palette": {
                "anyOf": [
                    {"type": "null"},
                    {"type": "array", "items": {"type": "array", "items": _BYTE, "minItems": 3, "maxItems": 3}},
                ]
            },
            "training_commit": {"type": ["string", "null"]},
            "created_by": _TEXT,
            "engine": {
                "anyOf": [
                    {"type": "null"},
                    _record(
                        {
                            "engine": _NAME,
                            "precision": _NAME,
                            "median_ms": _AMOUNT,
                            "cpu": _TEXT,
                            "cpu_features": {"type": "array", "items": _TEXT},
                            "gpu": {"type": ["string", "null"]},
                            "measurements": {
                                "type": "array",
                                "items": _record(
                                    {
                                        "engine": _NAME,
                                        "precision": _NAME,
                                        "threads": _COUNT,
                                        "median_ms": _MAYBE_NUMBER,
                                        "spread_ms": _MAYBE_NUMBER,
                                        "parity_psnr_db": _MAYBE_NUMBER,
                                        "psnr_loss_db": _MAYBE_NUMBER,
                                        "accepted": {"type": "boolean"},
                                        "reason": _TEXT,
                                    }
                                ),
                            },
                        },
                        optional=("gpu",),
                    ),
                ]
            },
            "files": {
                "type": "object",
                "propertyNames": {"minLength": 1},
                "additionalProperties": _SHA256,
            },
            "checksum": _SHA256,
        }
    ),
}
"""JSON Schema of ``manifest.json``."""


def write_bundle(folder: Path, manifest: Manifest, files: Mapping[str, Path], *, overwrite: bool = False) -> Manifest:
    """Write a bundle; it appears complete under its name or not at all.

    Args:
        folder: where; its name ends in ``.v2v`` and its parent exists.
        manifest: what it holds; ``files`` of it is filled in here.
        files: the file to copy for each path inside the bundle; ``step.onnx`` and ``selftest.onnx`` are among them.
        overwrite: replace an earlier bundle of this name. Anything else is never replaced.

    Returns:
        The manifest as written.

    Raises:
        BundleError: if the folder exists and may not be replaced, or a file is missing.
        ConfigError: if the manifest or the name is not valid.
    """
    folder = Path(folder)
    check_target(folder, overwrite=overwrite)
    for needed in (STEP_GRAPH, SELF_TEST):
        if needed not in files:
            raise ConfigError(f"a bundle needs {needed}; got only {', '.join(sorted(files)) or 'nothing'}")
    for inside in files:
        _check_inside(inside, folder)
    staging = _sibling(folder)
    staging.mkdir()
    try:
        checksums = {inside: _copy(Path(source), staging / inside) for inside, source in sorted(files.items())}
        manifest = replace(manifest, files=checksums)
        _write_manifest(staging, manifest)
        _put_in_place(staging, folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    log.info("wrote bundle %s with %d files", folder, len(checksums))
    return manifest


def check_target(folder: Path, *, overwrite: bool = False) -> None:
    """Refuse a place where ``write_bundle`` would not write.

    Args:
        folder: where the bundle shall be.
        overwrite: whether an earlier bundle of this name may be replaced.

    Raises:
        BundleError: if the folder exists and may not be replaced.
        ConfigError: if its name does not end in ``.v2v``, or nothing can be written there.
    """
    if folder.suffix != SUFFIX:
        raise ConfigError(f"{folder}: the name of a bundle's folder ends in {SUFFIX}")
    check_place(folder)
    if not os.path.lexists(folder):
        return
    if not overwrite:
        raise BundleError(f"{folder} exists already; choose another name or pass --overwrite")
    if folder.is_symlink() or not (folder / MANIFEST).is_file():
        raise BundleError(f"{folder} is not a bundle and is not replaced; move it away or choose another name")


def _sibling(folder: Path) -> Path:
    """A hidden, unused name beside ``folder``, so that a rename stays on one file system."""
    return folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:12]}")


def _copy(source: Path, target: Path) -> str:
    """Copy one file and return the sha256 of what was written."""
    if not source.is_file():
        raise BundleError(f"{source} is not a file, so it cannot go into the bundle; export it first")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    with target.open("rb+") as file:
        os.fsync(file.fileno())
    return _sha256(target)


def _put_in_place(staging: Path, folder: Path) -> None:
    """Rename the finished folder to its name; an earlier one steps aside and goes only when the new one stands."""
    if not folder.exists():
        os.rename(staging, folder)
        return
    old = _sibling(folder)
    os.rename(folder, old)
    try:
        os.rename(staging, folder)
    except OSError:
        os.rename(old, folder)
        raise
    shutil.rmtree(old)


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    text = json.dumps(manifest.to_json(), indent=2, ensure_ascii=False) + "\n"
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{MANIFEST}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, folder / MANIFEST)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def record_engine(folder: Path, choice: EngineChoice) -> Manifest:
    """Write a measured engine choice into an existing bundle's manifest.

    Args:
        folder: the bundle; it is checked first.
        choice: what was measured and chosen.

    Returns:
        The manifest as written.

    Raises:
        BundleError: if the bundle is damaged.
    """
    manifest = replace(load_manifest(folder), engine=choice)
    _write_manifest(Path(folder), manifest)
    return manifest


def load_manifest(folder: Path) -> Manifest:
    """Read a bundle's manifest and check it, by the checksum it states, and every file it lists.

    Args:
        folder: the bundle.

    Returns:
        The manifest; every file of the bundle is now known to be the one that was written.

    Raises:
        BundleError: if the manifest is missing, altered, not valid or of a newer version, if a path leads outside the
            folder, or if a file is missing, altered, unlisted or a symbolic link. The message names the file and what
            to do.
    """
    folder = Path(folder)
    record = _read_manifest(folder)
    listed: Mapping[str, str] = record["files"]
    for inside in listed:
        _check_inside(inside, folder)
    found = set(_walk(folder))
    for needed in (STEP_GRAPH, SELF_TEST):
        if needed not in listed:
            raise BundleError(f"{folder / MANIFEST} does not list {needed}; export the bundle again")
    if missing := sorted(listed.keys() - found):
        raise BundleError(f"{folder / missing[0]} is listed in {MANIFEST} and missing; copy the whole bundle again")
    if unknown := sorted(found - listed.keys() - {MANIFEST}):
        raise BundleError(f"{folder / unknown[0]} is not listed in {MANIFEST}; remove it or copy the bundle again")
    for inside, expected in listed.items():
        if _sha256(folder / inside) != expected:
            raise BundleError(
                f"{folder / inside} is damaged or was altered (its sha256 differs from {MANIFEST}); "
                "copy the bundle again from where it was exported"
            )
    try:
        return Manifest.from_json(record)
    except ConfigError as error:
        raise BundleError(f"{folder / MANIFEST}: {error}; export the bundle again") from error


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest's JSON, known to fit the schema."""
    path = folder / MANIFEST
    if not os.path.lexists(folder):
        raise BundleError(f"{folder} does not exist; check the path, or make a bundle: fastv2v export")
    if not folder.is_dir():
        raise BundleError(f"{folder} is not a folder; a bundle is a folder ending in {SUFFIX}")
    if path.is_symlink():
        raise BundleError(f"{path} is a symbolic link; copy the bundle with its real files")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BundleError(f"{path} is missing; this is not a bundle, or its copy is incomplete") from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not valid JSON ({error}); copy the bundle again") from error
    version = record.get("schema_version") if isinstance(record, dict) else None
    if type(version) is int and version > SCHEMA_VERSION:
        raise BundleError(
            f"{path} has schema version {version} and this fastv2v reads up to {SCHEMA_VERSION}; upgrade fastv2v"
        )
    problem = schema_problem(record, SCHEMA)
    if problem:
        raise BundleError(f"{path} is not a valid manifest ({problem}); export the bundle again")
    if record["checksum"] != manifest_checksum(record):
        raise BundleError(
            f"{path} is damaged or was altered (its content does not have the sha256 it states); copy the bundle again "
            "from where it was exported"
        )
    return record


def _check_inside(inside: str, folder: Path) -> None:
    """Refuse a path that could lead outside the bundle, on any system, or that stands for the manifest."""
    path = PurePosixPath(inside)
    plain = str(path) == inside and "\\" not in inside and ":" not in inside and "\0" not in inside
    if not plain or path.is_absolute() or ".." in path.parts or path.parts in ((), (MANIFEST,)):
        raise BundleError(
            f"{folder}: the file path {inside!r} is not a plain path inside the bundle; do not use this bundle, "
            "or export it again"
        )


def _walk(folder: Path) -> Iterator[str]:
    """Paths of all files below ``folder``; symbolic links are refused."""
    for root, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            path = Path(root, name)
            if path.is_symlink():
                raise BundleError(f"{path} is a symbolic link; copy the bundle with its real files")
        yield from (Path(root, name).relative_to(folder).as_posix() for name in names)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
