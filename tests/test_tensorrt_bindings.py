"""Holds the typed stub and the stand-in of the tests against each other and against TensorRT's real Python bindings.

The real ones load without TensorRT and without a GPU beside stub libraries; scripts/check_tensorrt_bindings.sh fetches
both versions and runs this. Without them, only stub and stand-in are compared.
"""

import ast
import functools
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import fake_tensorrt
import pytest

STUB = Path(__file__).resolve().parents[1] / "typings/tensorrt/__init__.pyi"
FOLDER = "FASTV2V_TENSORRT_BINDINGS"
"""Names a folder with a folder for each version (10.16.1.11), in which the wheel is unpacked, with ``libs`` beside."""

DUMP = """
import inspect, json
import tensorrt_bindings as trt

def about(owner, name):
    static = inspect.getattr_static(owner, name, None)
    value = static if isinstance(static, property) else getattr(owner, name)
    made = {"doc": getattr(value, "__doc__", None) or "", "is_property": isinstance(static, property)}
    made["settable"] = isinstance(static, property) and static.fset is not None
    if not inspect.isclass(value) and hasattr(value, "__int__") and hasattr(value, "name"):
        made["number"] = int(value)
    return made

print(json.dumps({"__version__": trt.__version__} | {
    kind.__name__: {name: about(kind, name) for name in dir(kind) if not name.startswith("__") or name == "__init__"}
    for kind in vars(trt).values() if inspect.isclass(kind)
}))
"""


def versions() -> list[Path]:
    folder = os.environ.get(FOLDER)
    return sorted(path.parent for path in Path(folder).glob("*/tensorrt_bindings")) if folder else []


@functools.cache
def real(folder: Path) -> dict:
    """Everything the bindings of a version hold, by class and name."""
    paths = {"PYTHONPATH": str(folder), "LD_LIBRARY_PATH": str(folder / "libs")}
    done = subprocess.run(
        [sys.executable, "-c", DUMP], env={**os.environ, **paths}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(params=versions() or [None], ids=lambda p: p.name if p else "none")
def bindings(request):
    if request.param is None:
        pytest.skip(f"{FOLDER} names no bindings: bash scripts/check_tensorrt_bindings.sh fetches them and runs this")
    return real(request.param)


def overloads(name: str, doc: str) -> list[list[tuple[str, bool]]]:
    """Parameters of every form of a function, (name, has a default), read from its docstring."""
    found = []
    for text in re.findall(rf"(?m)^(?:\d+\. )?{name}\((self: .*)\)(?: -> |$)", doc):
        # Commas inside brackets belong to types and defaults.
        while (plain := re.sub(r"\[[^\[\]]*\]|\([^()]*\)|<[^<>]*>", "", text)) != text:
            text = plain
        parameters = [part.strip() for part in text.split(",")][1:]
        found.append([(part.split(":")[0].strip(), "=" in part) for part in parameters])
    return found


def fits(ours: list[str], theirs: list[tuple[str, bool]]) -> bool:
    """Whether our parameters are the first of theirs, and the rest may be left out."""
    names = [name for name, _ in theirs]
    return names[: len(ours)] == ours and all(has_default for _, has_default in theirs[len(ours) :])


def stub_members() -> dict[str, dict[str, object]]:
    """What the stub declares: parameters of functions, and ``read``, ``write`` or ``member`` for the rest."""
    found: dict[str, dict[str, object]] = {}

    def enter(node: ast.ClassDef) -> None:
        members = found.setdefault(node.name, {})
        for item in node.body:
            if isinstance(item, ast.FunctionDef):
                is_property = any(isinstance(d, ast.Name) and d.id == "property" for d in item.decorator_list)
                names = [a.arg for a in item.args.args][1:]
                members[item.name] = "read" if is_property else names
            elif isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                members[item.target.id] = "member" if "ClassVar" in ast.unparse(item.annotation) else "write"
            elif isinstance(item, ast.ClassDef):
                members[item.name] = "member"

    for node in ast.parse(STUB.read_text()).body:
        if isinstance(node, ast.ClassDef) and node.name != "_Enum":
            enter(node)
    return found


MEMBERS = [
    (kind, name, what)
    for kind, members in stub_members().items()
    for name, what in members.items()
    if name != "__buffer__"
]


def test_the_stub_is_read():
    assert ("OnnxParser", "num_errors", "read") in MEMBERS
    assert ("IProgressMonitor", "step_complete", ["phase_name", "step"]) in MEMBERS
    assert ("BuilderFlag", "TF32", "member") in MEMBERS
    assert ("Runtime", "engine_host_code_allowed", "write") in MEMBERS
    assert len(MEMBERS) > 100


def test_docstrings_are_read():
    one = "set(self: a.B, name: str, shape: list[tuple[int, str]] = <X.Y: 1>) -> bool\n\n   words"
    assert overloads("set", one) == [[("name", False), ("shape", True)]]
    two = (
        "run(*args, **kwargs)\nOverloaded function.\n\n1. run(self: a.B, x: int) -> c\n\n  w\n\n2. run(self: a.B) -> c"
    )
    assert overloads("run", two) == [[("x", False)], []]
    assert fits(["name"], [("name", False), ("shape", True)])
    assert not fits(["name"], [("name", False), ("shape", False)])
    assert not fits(["label"], [("name", False)])


class TestStub:
    def test_every_name_and_parameter_is_real(self, bindings):
        wrong = []
        for kind, name, what in MEMBERS:
            place = bindings[kind].get(name)
            if place is None:
                wrong.append(f"{kind}.{name} does not exist")
            elif isinstance(what, list):
                forms = overloads(name, place["doc"])
                if not any(fits(what, form) for form in forms):
                    wrong.append(f"{kind}.{name}({', '.join(what)}) and the real one takes {forms}")
            elif what in ("read", "write") and not place["is_property"]:
                wrong.append(f"{kind}.{name} is no property")
            elif what == "write" and not place["settable"]:
                wrong.append(f"{kind}.{name} cannot be set")
        assert not wrong

    def test_it_is_checked_against_both_major_versions(self):
        if not versions():
            pytest.skip(f"{FOLDER} names no bindings")
        assert {path.name.split(".")[0] for path in versions()} >= {"10", "11"}


@pytest.fixture(params=[10, 11])
def fake(request):
    pytest.importorskip("onnx")
    return fake_tensorrt.make(request.param, fake_tensorrt.World())


def fake_parameters(function) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


class TestStandIn:
    def test_has_all_that_the_stub_declares(self, fake):
        """So that code which passes mypy meets nothing in the tests that does not exist."""
        missing = []
        for kind, name, what in MEMBERS:
            place = getattr(fake, kind)
            made = place.__init__ if name == "__init__" else getattr(place, name, None)
            if isinstance(what, list):
                if made is None or (what and fake_parameters(made)[: len(what)] != what):
                    missing.append(f"{kind}.{name}({', '.join(what)})")
            elif what == "member" and made is None:
                missing.append(f"{kind}.{name}")
        assert not missing

    def test_every_method_and_number_is_real(self, bindings):
        edition = int(bindings["__version__"].split(".")[0])
        fake = fake_tensorrt.make(edition, fake_tensorrt.World())
        wrong = []
        for kind, members in {**fake_tensorrt.ENUMS, **fake_tensorrt.EDITIONS[edition]}.items():
            for name, number in members.items():
                if bindings[kind].get(name, {}).get("number") != number:
                    wrong.append(f"{kind}.{name} = {number}")
        inner = {"read"}
        for kind, place in vars(fake).items():
            if not inspect.isclass(place) or kind in (*fake_tensorrt.ENUMS, *fake_tensorrt.EDITIONS[edition]):
                continue
            for name, function in vars(place).items():
                if name.startswith("_") or name in inner or not inspect.isfunction(function):
                    continue
                forms = overloads(name, bindings[kind].get(name, {}).get("doc", ""))
                if not any(fits(fake_parameters(function), form) for form in forms):
                    wrong.append(f"{kind}.{name}({', '.join(fake_parameters(function))}): {forms}")
        assert not wrong

    def test_editions_differ_as_the_versions_do(self):
        old, new = (fake_tensorrt.make(edition, fake_tensorrt.World()) for edition in (10, 11))
        assert int(old.NetworkDefinitionCreationFlag.STRONGLY_TYPED) == 1
        assert int(new.NetworkDefinitionCreationFlag.STRONGLY_TYPED) == 0
        assert not hasattr(new.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH")
        assert not hasattr(new.BuilderFlag, "FP16")
        with pytest.raises(AttributeError):
            new.Builder.create_builder_config(None).builder_optimisation_level = 3
