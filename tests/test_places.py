"""Outputs that cannot be written are refused at once, by everything that deploys and measures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tiny_bundle import write_tiny

from export.bundle import check_target
from fastv2v.cli import main
from fastv2v.errors import ConfigError
from fastv2v.places import check_place


def test_folders_that_are_missing_yet_are_no_hindrance(tmp_path):
    check_place(tmp_path / "new" / "newer" / "file.json")
    check_target(tmp_path / "new" / "tiny.v2v")


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "file").touch()
    for check, path in ((check_place, "x.json"), (check_target, "tiny.v2v")):
        with pytest.raises(ConfigError, match=r"cannot be written: .*/file is not a folder; choose another place"):
            check(tmp_path / "file" / "new" / path)


@pytest.fixture
def locked(tmp_path, monkeypatch):
    """A folder without rights; tests may run as root, who has them all."""
    folder = tmp_path / "locked"
    folder.mkdir()
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != folder and allowed(path, mode))
    return folder


@pytest.mark.parametrize(
    "command",
    [
        "doctor --json {out}/doctor.json",
        "stream --bundle {bundle} --conditions {labels} --out {out}/x.mp4",
        "stream --bundle {bundle} --conditions {labels} --out {out}/frames",
        "benchmark --bundle {bundle} --engine onnxruntime --json {out}/x.json",
        "benchmark --bundle {bundle} --teacher t --data d --out {out}/benchmark",
        "export --run r --data d --out {out}/x.v2v",
    ],
)
def test_a_folder_without_rights_is_refused_before_anything_is_done(command, locked, tmp_path, capsys):
    pytest.importorskip("onnxruntime", reason="the engine that is named is not installed")
    bundle, labels = write_tiny(tmp_path / "tiny.v2v"), tmp_path / "labels"
    labels.mkdir()
    assert main(command.format(out=locked, bundle=bundle, labels=labels).split()) == 2
    said = capsys.readouterr()
    assert not said.out
    assert f"{locked} gives this user no right to; choose another place" in said.err
    assert not list(locked.iterdir())
