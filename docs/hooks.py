"""Pages of the site that are made from the code at build time: commands, Python, results. MkDocs calls ``on_...``.

Commands are the ``--help`` of every verb; Python is read from the source without importing it; results are the files of
``benchmarks/results/``.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import re
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final
from unittest import mock

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from benchmarks.results import format_number
from fastv2v.cli import COMMANDS, main, overview

ROOT: Final = Path(__file__).resolve().parents[1]
OTHERS: Final = "Using it"
"""Part of the menu that takes pages which stand nowhere."""
WITH_PRESET: Final = {"train-teacher": "demo", "train-skd": "demo", "train-tkd": "demo"}
"""Verbs whose settings follow a preset, and the one that is shown."""
DOORS: Final = {
    "Streams": ("export.runtime", "export.camera"),
    "Bundles": ("export.build", "export.bundle", "export.choose"),
    "Data": ("fastv2v.data.folder", "fastv2v.data.loader", "fastv2v.data.clip", "fastv2v.video", "fastv2v.mark"),
    "Models": ("fastv2v.contracts", "fastv2v.architecture", "fastv2v.render"),
    "Training": ("fastv2v.train", "teachers.presets", "students.presets", "distill.spatial", "distill.temporal"),
    "Frames between keyframes": ("interpolate.keyframes", "interpolate.motion", "interpolate.fill"),
    "Measuring": ("benchmarks.results", "benchmarks.report", "fastv2v.metrics.image", "fastv2v.metrics.temporal"),
    "Errors": ("fastv2v.errors",),
}
"""Modules that programs around this one use; the rest is described where it stands."""
SECTIONS: Final = ("Args", "Returns", "Yields", "Raises", "Source")
_SPREADS: Final = re.compile(r"_(min|max|std|p5)$")
_SAME_FOR_ALL: Final = ("unit", "height", "width", "size", "method")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put pages that ``mkdocs.yml`` does not name into the menu, so that none is forgotten."""
    pages = {path.relative_to(config.docs_dir).as_posix() for path in Path(config.docs_dir).rglob("*.md")}
    section = next(entry[OTHERS] for entry in config.nav or [] if OTHERS in entry)
    section += sorted(pages - set(_named(config.nav)))
    return config


def _named(entry: Any) -> Iterator[str]:
    """Every page of a menu."""
    if isinstance(entry, str):
        yield entry
    else:
        for inner in entry.values() if isinstance(entry, dict) else entry:
            yield from _named(inner)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from the code."""
    made = {"reference/commands.md": commands(), "reference/python.md": python(), "results.md": results()}
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    return files


def commands() -> str:
    """A page with what every verb says about itself."""
    parts = [
        "# Commands",
        "Made from the code when this site is built. Every verb prints one JSON object as the last line of its output, "
        "for programs.",
        _block(overview()),
    ]
    for name, verb in COMMANDS.items():
        parts += [f"## {name}", f"*{verb.summary[0].upper()}{verb.summary[1:]}.*", _block(_help(name))]
        if name in WITH_PRESET:
            preset = WITH_PRESET[name]
            parts += [f"### {name} {preset}", "All settings of one preset.", _block(_help(name, preset))]
    return "\n\n".join(parts)


def _help(*words: str) -> str:
    """What ``fastv2v WORDS --help`` prints, one option below the other and without colours."""
    out = io.StringIO()
    with (
        mock.patch.dict(os.environ, {"COLUMNS": "79", "NO_COLOR": "1", "TERM": "dumb"}),
        contextlib.redirect_stdout(out),
        contextlib.suppress(SystemExit),
    ):
        main([*words, "--help"])
    plain = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    return plain.replace(str(Path.home()), "~").replace(str(ROOT), ".")


def _block(text: str) -> str:
    return f"````text\n{text.strip()}\n````"


def python() -> str:
    """A page with signature and docstring of everything public in the modules that others use."""
    parts = [
        "# Python",
        "Made from the code when this site is built. Shapes: B batch, T frames, C channels, H height, W width.",
    ]
    for title, modules in DOORS.items():
        parts.append(f"## {title}")
        for module in modules:
            tree = _parse(module)
            parts += [f"### {module}", _prose(ast.get_docstring(tree) or "")]
            for name in _public(tree):
                parts += _describe(*_find(module, name))
    return "\n\n".join(parts)


@cache
def _parse(module: str) -> ast.Module:
    path = ROOT / module.replace(".", "/")
    file = path.with_suffix(".py")
    file = file if file.is_file() else path / "__init__.py"
    return ast.parse(file.read_text(encoding="utf-8"))


def _public(tree: ast.Module) -> list[str]:
    """Names of ``__all__``, or else of the public functions and classes that stand here."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return list(ast.literal_eval(node.value))
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_"]


def _find(module: str, name: str) -> tuple[str, ast.stmt | None]:
    """Where a name is defined, through the modules that pass it on; None where it is a plain value."""
    for node in _parse(module).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return name, node
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _find(node.module, alias.name)
    return name, None


def _describe(name: str, node: ast.stmt | None, owner: str = "") -> Iterator[str]:
    """Heading, signature and docstring; of a class also its fields and methods."""
    if not isinstance(node, ast.FunctionDef | ast.ClassDef):
        return
    title = f"{owner}.{name}" if owner else name
    text = ast.get_docstring(node)
    if isinstance(node, ast.FunctionDef):
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        signature = f"def {name}({ast.unparse(node.args)}){returns}"
        is_property = any(isinstance(d, ast.Name) and d.id == "property" for d in node.decorator_list)
        yield f"#### `{title}`"
        mark = "@property\n" if is_property else ""
        yield f"```python\n{mark}{_wrapped(signature)}\n```"
        yield _prose(text or "")
        return
    bases = ", ".join(ast.unparse(base) for base in node.bases)
    yield f"#### `{title}`"
    yield f"```python\nclass {name}{f'({bases})' if bases else ''}\n```"
    yield _prose(text or "")
    yield from _fields(node)
    for inner in node.body:
        if isinstance(inner, ast.FunctionDef) and inner.name[0] != "_" and ast.get_docstring(inner):
            yield from _describe(inner.name, inner, name)


def _fields(node: ast.ClassDef) -> Iterator[str]:
    """The fields of a dataclass, each with the sentence below it, as one list."""
    lines = []
    for field, after in zip(node.body, [*node.body[1:], None], strict=True):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        is_told = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        told = str(after.value.value) if is_told else ""  # type: ignore[union-attr]
        default = f" = {ast.unparse(field.value)}" if field.value else ""
        shown = f"{field.target.id}: {ast.unparse(field.annotation)}{default}"
        lines.append(f"- `` {' '.join(shown.split())} ``: {_inline(' '.join(told.split()))}")
    if lines:
        yield "\n".join(lines)


def _wrapped(signature: str) -> str:
    """A signature that is too long for one line, an argument on each."""
    if len(signature) <= 100:
        return signature
    depth, made, is_inside = 0, "", True
    for letter in signature:
        depth += (letter in "([{") - (letter in ")]}")
        if is_inside and depth == 1 and letter in "(,":
            made += f"{letter}\n   " + " " * (letter == "(")
        elif is_inside and depth == 0 and letter == ")":
            made, is_inside = f"{made},\n)", False
        else:
            made += letter
    return made


def _prose(text: str) -> str:
    """A docstring of Google's style as Markdown."""
    parts = re.split(rf"^({'|'.join(SECTIONS)}):\n", text, flags=re.MULTILINE)
    made = [_inline(parts[0].strip())]
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        entries = re.split(r"\n(?=\S)", textwrap.dedent(body).strip())
        lines = [" ".join(entry.split()) for entry in entries]
        if title in ("Args", "Raises"):
            lines = [re.sub(r"^(\*{0,2}[\w.]+): ", r"`\1`: ", line) for line in lines]
        made.append(f"**{title}**\n\n" + "\n".join(f"- {_inline(line)}" for line in lines))
    return "\n\n".join(made)


def _inline(text: str) -> str:
    """Angle brackets and links of prose are no Markdown; code stays code."""
    pieces = re.split(r"(`+[^`]+`+)", text)
    return "".join(p if p.startswith("`") else p.replace("<", "&lt;").replace("[", "\\[") for p in pieces)


def results() -> str:
    """A page with every result file as a table."""
    parts = [
        "# Results",
        "Made from the files in `benchmarks/results/` when this site is built; the files hold further columns (spread, "
        "worst cases), all settings and versions. Losses are published as well as wins; floors stand beside what must "
        "beat them. Higher PSNR, SSIM, VMAF and mIoU are better, lower Fréchet distance, warping error and flicker, "
        "though blur lowers the last two as well. Speeds compare within a table only.",
    ]
    for path in sorted((ROOT / "benchmarks/results").glob("*.json")):
        parts += _result(path)
    return "\n\n".join(parts)


def _result(path: Path) -> list[str]:
    """Heading, circumstances and table of a result file."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    rows = found["rows"]
    keys = dict.fromkeys(key for row in rows for key in row)
    shown = [key for key in keys if not _SPREADS.search(key) and key not in _SAME_FOR_ALL]
    shown = [key for key in shown if any(row.get(key) is not None for row in rows)]
    settings = {
        key: value for key, value in found["settings"].items() if isinstance(value, str | int | float) and value != ""
    }
    commit = (found["commit"] or "unknown")[:10]
    machine = f"{found['machine']['cpu']}, {found['machine']['cores']} cores"
    table = [f"| {' | '.join(key.replace('_', ' ') for key in shown)} |", "|" + "---|" * len(shown)]
    for row in rows:
        cells = [format_number(row.get(key)) for key in shown]
        table.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    title = path.name.split("--")[0].replace("-", ", ")
    return [
        f"## {title[0].upper()}{title[1:]}",
        f"{machine}, {found['threads']} threads, {found['device']}, {found['precision']}; commit {commit}, "
        f"{found['created'][:10]}; `{path.relative_to(ROOT)}`",
        "\n".join(f"- {key.replace('_', ' ')}: {_inline(str(value))}" for key, value in settings.items()),
        "\n".join(table),
    ]
