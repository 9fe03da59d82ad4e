"""The documentation site: it builds strictly, asks nothing of the network, and says what code and results say."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("material", reason="the site needs the extra 'docs'")

from fastv2v.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[1]


def load_hooks():
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs/hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hooks = load_hooks()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
class TestSite:
    def test_every_page_is_reached_from_the_menu(self, site):
        menu = (site / "index.html").read_text(encoding="utf-8")
        pages = [path.relative_to(site).parent.as_posix() for path in site.glob("*/**/index.html")]
        assert len(pages) > 15
        assert [page for page in pages if f'href="{page}/"' not in menu] == []

    def test_nothing_is_loaded_from_elsewhere(self, site):
        for page in site.rglob("*.html"):
            text = page.read_text(encoding="utf-8")
            loaded = re.findall(r'<(?:script|img|link|iframe|source)[^>]*(?:src|href)="(https?:[^"]*)"', text)
            assert [address for address in loaded if "canonical" not in address] == [], page
        assert not list(site.rglob("*.py"))

    def test_commands_python_and_results_are_there(self, site):
        commands = (site / "reference/commands/index.html").read_text(encoding="utf-8")
        assert all(f'id="{name}"' in commands for name in COMMANDS)
        assert "--recipe.train.max-minutes" in commands
        assert "open_bundle" in (site / "reference/python/index.html").read_text(encoding="utf-8")
        results = (site / "results/index.html").read_text(encoding="utf-8")
        assert all(path.name in results for path in (ROOT / "benchmarks/results").glob("*.json"))

    def test_no_machine_is_named_in_the_commands(self, site):
        commands = (site / "reference/commands/index.html").read_text(encoding="utf-8")
        assert str(ROOT) not in commands and str(Path.home()) + "/" not in commands


def test_a_page_that_the_menu_lacks_is_added(tmp_path):
    for name in ("a.md", "new.md", "deep/b.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    nav = [{"Home": "a.md"}, {hooks.OTHERS: [{"B": "deep/b.md"}]}]
    config = hooks.on_config(SimpleNamespace(docs_dir=str(tmp_path), nav=nav))
    assert config.nav == [{"Home": "a.md"}, {hooks.OTHERS: [{"B": "deep/b.md"}, "new.md"]}]


class TestPython:
    def test_a_docstring_becomes_markdown(self):
        text = "Do <it>.\n\nArgs:\n    path: where,\n        two lines.\n    n: `a[0]` and [b].\n\nReturns:\n    Some."
        made = (
            "Do &lt;it>.\n\n**Args**\n\n- `path`: where, two lines.\n- `n`: `a[0]` and \\[b].\n\n**Returns**\n\n- Some."
        )
        assert hooks._prose(text) == made

    def test_long_signatures_have_an_argument_on_each_line_and_stay_python(self):
        rest = ", ".join(f"b{i}: dict[str, int]=None" for i in range(8))
        signature = f"def f(a: tuple[int, int]=(1, 2), {rest}) -> None"
        lines = hooks._wrapped(signature).splitlines()
        assert len(lines) == 11 and lines[1] == "    a: tuple[int, int]=(1, 2),"
        assert ast.dump(ast.parse(f"{hooks._wrapped(signature)}: ...")) == ast.dump(ast.parse(f"{signature}: ..."))

    def test_names_are_followed_to_where_they_are_defined(self):
        name, node = hooks._find("export.runtime", "open_bundle")
        assert name == "open_bundle" and isinstance(node, ast.FunctionDef)
        assert hooks._find("export.runtime", "nothing") == ("nothing", None)

    def test_every_door_exists(self):
        for modules in hooks.DOORS.values():
            for module in modules:
                assert hooks._public(hooks._parse(module)), module


def test_a_result_file_becomes_a_table_without_spreads(tmp_path, monkeypatch):
    found = {
        "rows": [{"name": "a|b", "psnr_db": 17.123456, "psnr_db_std": 1.0, "none": None}, {"name": "c", "ssim": 0.5}],
        "machine": {"cpu": "some", "cores": 2},
        "settings": {"size": [1, 2], "data": "<world>"},
        "threads": 1,
        "device": "cpu",
        "precision": "fp32",
        "commit": None,
        "created": "2026-01-02T03:04:05",
    }
    monkeypatch.setattr(hooks, "ROOT", tmp_path)
    (tmp_path / "speed-big--m--cpu.json").write_text(json.dumps(found))
    title, about, settings, table = hooks._result(tmp_path / "speed-big--m--cpu.json")
    assert title == "## Speed, big" and "commit unknown, 2026-01-02" in about
    assert settings == "- data: &lt;world>"
    assert table.splitlines() == [
        "| name | psnr db | ssim |",
        "|---|---|---|",
        "| a/b | 17.12 | – |",
        "| c | – | 0.5000 |",
    ]


class TestPictures:
    def test_are_small(self):
        pictures = list((ROOT / "docs/images").glob("method-*.jpg"))
        assert len(pictures) == 5 and all(path.stat().st_size < 200_000 for path in pictures)
        assert (ROOT / "docs/images/stream.webp").stat().st_size < 3_000_000

    def test_the_readme_opens_with_the_moving_one(self):
        opening = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## ")[0]
        assert "](docs/images/stream.webp)" in opening
