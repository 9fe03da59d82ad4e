"""What is said about machine, versions and commit."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from fastv2v import environment


def _git(folder, *arguments):
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_machine_is_described_and_fits_into_json():
    machine = environment.describe_machine()
    assert set(machine) == {"cpu", "cores", "cpu_features", "memory_gib", "os", "python", "gpu"}
    assert machine["cores"] >= 1
    assert set(machine["cpu_features"]) <= set(environment.CPU_FEATURES)
    json.dumps(machine)


def test_versions_are_the_installed_ones():
    versions = environment.describe_versions()
    assert versions["numpy"] == np.__version__
    assert all(versions.values())


def test_slug_is_a_file_name():
    assert re.fullmatch(r"[a-z0-9][a-z0-9.-]*-\d+-cores", environment.machine_slug())


@pytest.mark.parametrize(
    ("model", "slug"),
    [
        ("Intel(R) Xeon(R) CPU @ 2.20GHz", "intel-xeon-3-cores"),
        ("AMD EPYC 7B13 64-Core Processor", "amd-epyc-7b13-64-core-3-cores"),
        ("Apple M2", "apple-m2-3-cores"),
        ("", "unknown-cpu-3-cores"),
    ],
)
def test_slug_drops_trademarks(monkeypatch, model, slug):
    monkeypatch.setattr(environment, "_cpu_model", lambda: model)
    monkeypatch.setattr(environment, "usable_cores", lambda: 3)
    assert environment.machine_slug() == slug


@pytest.mark.parametrize(("features", "fast"), [(["amx_bf16"], True), (["avx512_bf16"], True), (["avx512f"], False)])
def test_bf16_is_fast_only_in_hardware(monkeypatch, features, fast):
    monkeypatch.setattr(environment, "_cpu_features", lambda: features)
    assert environment.has_fast_bf16() is fast


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
class TestDescribeCommit:
    def test_clean_and_changed_trees(self, tmp_path):
        _git(tmp_path, "init")
        (tmp_path / "file").write_text("1")
        _git(tmp_path, "add", "file")
        _git(tmp_path, "commit", "-m", "first")
        commit = environment.describe_commit(tmp_path)
        assert re.fullmatch("[0-9a-f]{40}", commit)
        (tmp_path / "untracked").write_text("1")
        assert environment.describe_commit(tmp_path) == commit
        (tmp_path / "file").write_text("2")
        assert environment.describe_commit(tmp_path) == f"{commit}-dirty"

    def test_outside_a_tree_there_is_none(self, tmp_path, monkeypatch):
        monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
        assert environment.describe_commit(tmp_path) is None


def test_importing_needs_no_torch():
    check = "import sys, fastv2v.environment as e; e.describe_machine(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
