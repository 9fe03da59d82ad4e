"""Who may import whom: the table of the architecture page as data, checked against every import statement."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("fastv2v", "teachers", "students", "distill", "interpolate", "export", "benchmarks")
CLI = ("fastv2v.cli", "fastv2v.commands")
DEPLOYED = ("export.runtime", "export.stream", "export.device_stream", "export.live")

MAY_IMPORT = {
    "fastv2v": ("fastv2v",),
    "teachers": ("fastv2v", "teachers"),
    "students": ("fastv2v", "teachers", "students"),
    "distill": ("fastv2v", "distill", "students.schedule", "students.space", "students.inherit"),
    "interpolate": ("fastv2v", "interpolate"),
    "export": ("fastv2v", "export"),
    "benchmarks": ROOMS,
    # Narrower places than a room; the longest name that fits decides.
    **dict.fromkeys(DEPLOYED, ("fastv2v", "export", "interpolate")),
    **dict.fromkeys(CLI, ROOMS),
    "scripts": CLI,
    "scripts.serve": ("fastv2v", "export"),
}
"""Each place and the parts of the project it may import. The command line is imported by itself and scripts only."""

TORCH_FREE = (
    "fastv2v",
    "fastv2v.errors",
    "fastv2v.contracts",
    "fastv2v.metrics",
    "fastv2v.mark",
    "fastv2v.video",
    "fastv2v.data.cameras",
    "fastv2v.data.classes",
    "fastv2v.data.conditions",
    "fastv2v.data.drawing",
    "fastv2v.data.driving",
    "fastv2v.data.face",
    "fastv2v.data.folder",
    "fastv2v.data.images",
    "fastv2v.data.manifest",
    "fastv2v.data.modalities",
    "fastv2v.data.packed",
    "fastv2v.data.paired",
    "fastv2v.data.painter",
    "fastv2v.data.plain_pickle",
    "fastv2v.data.pose",
    "fastv2v.data.prepare",
    "fastv2v.data.reader",
    "fastv2v.data.registration",
    "fastv2v.data.sampling",
    "fastv2v.data.sequences",
    "fastv2v.data.sfm",
    "fastv2v.data.transforms",
    "fastv2v.data.unproject",
    "fastv2v.data.unprojection",
    "fastv2v.data.world",
    "fastv2v.cli",
    "fastv2v.commands.live",
    "fastv2v.commands.stream",
    "fastv2v.commands.doctor",
    "interpolate",
    "export.runtime",
    "export.stream",
    "export.engines",
    "export.bundle",
    "export.camera",
    "export.choose",
    "export.convert",
    "export.driving",
    "export.graph_check",
    "export.graphs",
    "export.history",
    "export.inputs",
    "export.interpolation",
    "export.live",
    "export.onnxruntime_gpu",
    "export.mixed",
    "export.parity",
    "export.prepare",
    "export.quantize",
    "export.schema",
    "export.sources",
    "export.warp_graph",
    "export.tensorrt_store",
    "benchmarks.results",
)
"""Modules that must load without torch, with everything inside them where they are packages but the core itself."""

NEEDS_TORCH = ("interpolate.torch_flow", "interpolate.torch_motion", "interpolate.learned")
"""The exceptions inside them: interpolation for GPUs and training. No torch-free module imports them."""


def within(name: str, place: str) -> bool:
    """Whether a module is ``place`` or lies inside it."""
    return name == place or name.startswith(f"{place}.")


def modules() -> dict[str, Path]:
    """Every module of the project by dotted name."""
    found = {}
    for room in (*ROOMS, "scripts"):
        for path in sorted((ROOT / room).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(source: str, module: str, *, is_package: bool = False) -> Iterator[tuple[str, int]]:
    """Everything a source imports, wherever the statement stands, as (dotted name, line).

    ``from a import b`` gives ``a.b`` where that is a module of the project, else ``a``.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                parents = parents[: len(parents) - node.level + is_package]
                base = ".".join([*parents, base] if base else parents)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield (inner if inner in MODULES else base), node.lineno


def all_imports(module: str) -> list[tuple[str, int]]:
    path = MODULES[module]
    return list(imports(path.read_text(encoding="utf-8"), module, is_package=path.name == "__init__.py"))


def allowed(importer: str, imported: str) -> bool:
    """What the table says of one import between parts of the project."""
    place = max((p for p in MAY_IMPORT if within(importer, p)), key=len)
    if any(within(imported, part) for part in CLI) and not any(within(place, p) for p in (*CLI, "scripts")):
        return False
    return any(within(imported, part) for part in MAY_IMPORT[place])


class TestTable:
    def test_every_room_is_there(self):
        assert {name.split(".")[0] for name in MODULES} >= set(ROOMS)
        assert len(MODULES) > 50

    @pytest.mark.parametrize("module", sorted(MODULES))
    def test_a_module_imports_only_what_its_room_may(self, module):
        crossed = [
            f"{MODULES[module].relative_to(ROOT)}:{line} imports {name}"
            for name, line in all_imports(module)
            if name.split(".")[0] in (*ROOMS, "scripts", "tests") and not allowed(module, name)
        ]
        assert not crossed

    @pytest.mark.parametrize(
        ("importer", "imported", "verdict"),
        [
            ("fastv2v.render", "fastv2v.errors", True),
            ("fastv2v.render", "teachers.task", False),
            ("fastv2v.train", "fastv2v.cli", False),
            ("fastv2v.commands.train", "distill.spatial", True),
            ("fastv2v.commands.train", "fastv2v.commands.parts", True),
            ("students.presets", "teachers.task", True),
            ("teachers.task", "students.presets", False),
            ("distill.temporal", "students.schedule", True),
            ("distill.supernet", "students.space", True),
            ("distill.temporal", "students.presets", False),
            ("distill.temporal", "students", False),
            ("distill.spatial", "teachers.task", False),
            ("interpolate.fill", "export.bundle", False),
            ("export.runtime", "interpolate.fill", True),
            ("export.onnx_graph", "interpolate.fill", False),
            ("export.onnx_graph", "teachers.task", False),
            ("benchmarks.fps", "distill.spatial", True),
            ("benchmarks.fps", "fastv2v.commands.train", False),
            ("scripts.train_skd", "fastv2v.cli", True),
            ("scripts.train_skd", "distill.spatial", False),
        ],
    )
    def test_verdicts(self, importer, imported, verdict):
        assert allowed(importer, imported) is verdict


class TestReader:
    def test_finds_imports_inside_functions_and_type_checking_blocks(self):
        source = "def f():\n    import distill.terms\nif TYPE_CHECKING:\n    from teachers import task\n"
        assert sorted(imports(source, "fastv2v.x")) == [("distill.terms", 2), ("teachers.task", 4)]

    def test_resolves_relative_imports(self):
        assert list(imports("from . import warp", "fastv2v.ops.flow")) == [("fastv2v.ops.warp", 1)]
        assert list(imports("from ..errors import X", "fastv2v.ops.flow")) == [("fastv2v.errors", 1)]
        assert list(imports("from .flow import X", "fastv2v.ops", is_package=True)) == [("fastv2v.ops.flow", 1)]

    def test_a_name_inside_a_module_counts_as_the_module(self):
        assert list(imports("from students.schedule import draw_gap", "distill.x")) == [("students.schedule", 1)]


def test_only_the_device_file_knows_accelerate():
    found = {module for module in MODULES for name, _ in all_imports(module) if within(name, "accelerate")}
    assert found == {"fastv2v.device"}


def test_nothing_is_moved_to_a_gpu_by_name():
    pinned = [str(path.relative_to(ROOT)) for path in MODULES.values() if ".cuda(" in path.read_text(encoding="utf-8")]
    assert not pinned


BLOCKED = """
import importlib, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in sys.argv[1].split(","):
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Block())
failed = []
for module in sys.argv[2:]:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        failed.append(f"{module}: {error}")
sys.exit("; ".join(failed) or 0)
"""


def test_deployment_and_the_bare_package_load_without_torch():
    inside = [
        m for m in MODULES if any(m == place or (place != "fastv2v" and within(m, place)) for place in TORCH_FREE)
    ]
    names = [m for m in inside if not any(within(m, place) for place in NEEDS_TORCH)]
    assert len(names) > len(TORCH_FREE)
    check_loads_without(("torch", "torchvision", "accelerate"), names)


def test_a_board_that_builds_engines_needs_nothing_of_the_training():
    """What docs/deploy.md has installed on one: no accelerate, jsonschema, tensorboard, onnxscript and so on."""
    page = (ROOT / "docs/deploy.md").read_text(encoding="utf-8")
    (line,) = (x for x in page.splitlines() if x.startswith("pip install --no-deps . && pip install "))
    there = {*line.split("pip install ")[2].split(), "torch"}
    wanted = re.search(r"install_requires=\[(.*?)\]", (ROOT / "setup.py").read_text(encoding="utf-8"), re.DOTALL)
    others = set(re.findall(r'"([\w-]+)', wanted.group(1))) - there
    assert {"accelerate", "jsonschema", "tensorboard"} < others
    module_names = {"ffmpeg-python": "ffmpeg", "imageio-ffmpeg": "imageio_ffmpeg"}
    verbs = [f"fastv2v.commands.{verb}" for verb in ("doctor", "export", "export_engine", "stream")]
    check_loads_without([module_names.get(name, name) for name in others], verbs)


def check_loads_without(packages: Sequence[str], modules: Sequence[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, ",".join(packages), *modules],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
