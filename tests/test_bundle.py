from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_step import TinyStep, random_conditions

from export.build import BundleDetails, build_bundle
from export.bundle import (
    Cost,
    EngineChoice,
    Manifest,
    Parity,
    load_manifest,
    manifest_checksum,
    record_engine,
    write_bundle,
)
from export.choose import EngineGuard, Probe, choose_engine
from export.engines import (
    REFERENCE,
    Candidate,
    GraphEngine,
    OnnxRuntimeEngine,
    available_candidates,
    available_engines,
    open_tested_engine,
)
from export.onnx_graph import export_step, write_self_test
from fastv2v.data.conditions import ConditionSpec
from fastv2v.errors import BundleError, ConfigError, MissingExtraError, ParityError, ShapeError

SIZE = (16, 24)
ROOT = Path(__file__).resolve().parents[1]


def manifest(**changes) -> Manifest:
    values = {
        "name": "tiny",
        "task": "street",
        "condition": ConditionSpec(class_names=("road", "car", "tree", "sky")),
        "palette": ((128, 64, 128), (0, 0, 142), (107, 142, 35), (70, 130, 180)),
        "size": SIZE,
        "history_length": 2,
        "keyframes": {"policy": "uniform", "gap": 4},
        "interpolation": {"method": "blend"},
        "fps": 17.0,
        "parity": Parity(max_abs_diff=2e-6, frames=12),
        "cost": Cost(
            macs_per_keyframe=1e6, macs_per_frame=2.5e5, output_position_macs_per_keyframe=2e6, parameters=1000
        ),
        "training_commit": "abc123",
        "created_by": "fastv2v test",
    }
    return Manifest(**values | changes)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graphs")
    export_step(TinyStep(), folder / "step.onnx", size=SIZE)
    write_self_test(folder / "selftest.onnx")
    return {name: folder / name for name in ("step.onnx", "selftest.onnx")}


@pytest.fixture
def bundle(graphs, tmp_path):
    folder = tmp_path / "tiny.v2v"
    write_bundle(folder, manifest(), graphs)
    return folder


def edit(folder: Path, **changes) -> None:
    """Alter a manifest as someone would who knows about its checksum."""
    record = json.loads((folder / "manifest.json").read_text()) | changes
    record["checksum"] = manifest_checksum(record)
    (folder / "manifest.json").write_text(json.dumps(record))


class TestWrite:
    def test_what_is_written_is_read_back(self, bundle, graphs):
        loaded = load_manifest(bundle)
        assert replace(loaded, files={}) == manifest()
        assert set(loaded.files) == set(graphs)
        assert sorted(p.name for p in bundle.iterdir()) == ["manifest.json", "selftest.onnx", "step.onnx"]
        assert [p.name for p in bundle.parent.iterdir()] == ["tiny.v2v"]

    def test_macs_and_flops_stand_under_their_names(self, bundle):
        cost = json.loads((bundle / "manifest.json").read_text())["cost"]
        assert cost == {
            "macs_per_keyframe": 1e6,
            "flops_per_keyframe": 2e6,
            "macs_per_frame": 2.5e5,
            "flops_per_frame": 5e5,
            "output_position_macs_per_keyframe": 2e6,
            "parameters": 1000,
        }

    def test_an_existing_bundle_is_kept_unless_asked(self, bundle, graphs):
        with pytest.raises(BundleError, match=r"tiny\.v2v exists already; choose another name or pass --overwrite"):
            write_bundle(bundle, manifest(name="other"), graphs)
        assert load_manifest(bundle).name == "tiny"
        write_bundle(bundle, manifest(name="other"), graphs, overwrite=True)
        assert load_manifest(bundle).name == "other"
        assert [p.name for p in bundle.parent.iterdir()] == ["tiny.v2v"]

    def test_a_folder_that_is_no_bundle_is_never_replaced(self, graphs, tmp_path):
        folder = tmp_path / "photos.v2v"
        folder.mkdir()
        (folder / "precious.png").write_text("x")
        with pytest.raises(BundleError, match="is not a bundle and is not replaced"):
            write_bundle(folder, manifest(), graphs, overwrite=True)
        assert (folder / "precious.png").exists()

    def test_nothing_is_left_when_a_file_is_missing(self, graphs, tmp_path):
        files = graphs | {"engines/openvino-cpu/step.blob": tmp_path / "nowhere"}
        with pytest.raises(BundleError, match="nowhere is not a file"):
            write_bundle(tmp_path / "tiny.v2v", manifest(), files)
        assert not list(tmp_path.iterdir())

    def test_a_failed_overwrite_leaves_the_old_bundle(self, bundle, graphs, monkeypatch):
        rename = os.rename

        def fail_into_place(source, target):
            if Path(target) == bundle:
                monkeypatch.setattr(os, "rename", rename)
                raise OSError("disk")
            rename(source, target)

        monkeypatch.setattr(os, "rename", fail_into_place)
        with pytest.raises(OSError, match="disk"):
            write_bundle(bundle, manifest(name="other"), graphs, overwrite=True)
        assert load_manifest(bundle).name == "tiny"
        assert [p.name for p in bundle.parent.iterdir()] == ["tiny.v2v"]

    @pytest.mark.parametrize(
        "inside", ["../evil", "/etc/evil", "a/../../evil", "manifest.json", "a\\b", "C:evil", "a//b"]
    )
    def test_paths_outside_the_folder_are_refused(self, graphs, tmp_path, inside):
        with pytest.raises(BundleError, match="not a plain path inside the bundle"):
            write_bundle(tmp_path / "tiny.v2v", manifest(), graphs | {inside: graphs["step.onnx"]})
        assert not list(tmp_path.iterdir())

    def test_names_and_values_that_make_no_sense_are_refused(self, graphs, tmp_path):
        with pytest.raises(ConfigError, match=r"ends in \.v2v"):
            write_bundle(tmp_path / "tiny", manifest(), graphs)
        with pytest.raises(ConfigError, match=r"needs selftest\.onnx"):
            write_bundle(tmp_path / "tiny.v2v", manifest(), {"step.onnx": graphs["step.onnx"]})
        with pytest.raises(ConfigError, match="keyframes: 'gap' is a required property"):
            write_bundle(tmp_path / "tiny.v2v", manifest(keyframes={"policy": "uniform"}), graphs)
        with pytest.raises(ConfigError, match="palette has 1 colours and the condition 4 classes"):
            manifest(palette=((0, 0, 0),))
        assert not list(tmp_path.iterdir())


class TestLoad:
    @pytest.mark.parametrize("name", ["step.onnx", "selftest.onnx"])
    def test_one_flipped_byte_is_noticed(self, bundle, name):
        data = bytearray((bundle / name).read_bytes())
        data[len(data) // 2] ^= 1
        (bundle / name).write_bytes(data)
        with pytest.raises(BundleError, match=rf"{name} is damaged .* copy the bundle again"):
            load_manifest(bundle)

    @pytest.mark.parametrize(("old", "new"), [('"fps": 17', '"fps": 19'), ('"name": "tiny"', '"name": "tina"')])
    def test_a_changed_byte_of_the_manifest_is_noticed(self, bundle, old, new):
        text = (bundle / "manifest.json").read_text()
        assert text.count(old) == 1
        (bundle / "manifest.json").write_text(text.replace(old, new))
        with pytest.raises(BundleError, match=r"manifest\.json is damaged or was altered .* copy the bundle again"):
            load_manifest(bundle)

    def test_key_order_and_white_space_do_not_count(self, bundle):
        before = load_manifest(bundle)
        record = json.loads((bundle / "manifest.json").read_text())
        (bundle / "manifest.json").write_text(json.dumps(dict(reversed(record.items()))))
        assert load_manifest(bundle) == before

    def test_a_missing_file_is_named(self, bundle):
        (bundle / "step.onnx").unlink()
        with pytest.raises(BundleError, match=r"step\.onnx is listed in manifest\.json and missing"):
            load_manifest(bundle)

    def test_an_unknown_file_is_named(self, bundle):
        (bundle / "engines").mkdir()
        (bundle / "engines" / "extra.plan").write_text("x")
        with pytest.raises(BundleError, match=r"engines/extra\.plan is not listed .* remove it"):
            load_manifest(bundle)

    def test_symbolic_links_are_refused(self, bundle, graphs):
        (bundle / "step.onnx").unlink()
        (bundle / "step.onnx").symlink_to(graphs["step.onnx"])
        with pytest.raises(BundleError, match=r"step\.onnx is a symbolic link"):
            load_manifest(bundle)

    def test_a_linked_folder_is_refused(self, bundle, tmp_path):
        (tmp_path / "elsewhere").mkdir()
        (bundle / "engines").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(BundleError, match="engines is a symbolic link"):
            load_manifest(bundle)

    @pytest.mark.parametrize("inside", ["../tiny.onnx", "/etc/passwd"])
    def test_a_listed_path_outside_is_refused_before_it_is_read(self, bundle, inside):
        edit(bundle, files=json.loads((bundle / "manifest.json").read_text())["files"] | {inside: "0" * 64})
        with pytest.raises(BundleError, match="not a plain path inside the bundle"):
            load_manifest(bundle)

    def test_a_newer_schema_says_to_upgrade(self, bundle):
        edit(bundle, schema_version=2)
        with pytest.raises(BundleError, match=r"schema version 2 .* upgrade fastv2v"):
            load_manifest(bundle)

    @pytest.mark.parametrize(
        ("changes", "problem"),
        [
            ({"size": [16]}, "size"),
            ({"size": ["16", 24]}, "size.0"),
            ({"surprise": 1}, "surprise"),
            ({"history_length": 0}, "history_length"),
            ({"files": {"step.onnx": "abc"}}, "files.step.onnx"),
            ({"condition": {"kind": "labels"}}, "condition"),
            ({"schema_version": "1"}, "schema_version"),
        ],
    )
    def test_a_manifest_that_does_not_fit_the_schema_names_the_key(self, bundle, changes, problem):
        edit(bundle, **changes)
        with pytest.raises(BundleError, match=rf"manifest\.json is not a valid manifest \(.*{problem}"):
            load_manifest(bundle)

    def test_a_manifest_that_contradicts_itself_is_refused(self, bundle):
        edit(bundle, palette=[[0, 0, 0]])
        with pytest.raises(BundleError, match="palette has 1 colours"):
            load_manifest(bundle)

    @pytest.mark.parametrize("text", ["", "{", "[1, 2]", '{"a": ', "[" * 100_000, "\ufffe"])
    def test_broken_json_is_refused(self, bundle, text):
        (bundle / "manifest.json").write_text(text)
        with pytest.raises(BundleError, match=r"manifest\.json"):
            load_manifest(bundle)

    def test_what_is_no_bundle_is_said_so(self, tmp_path):
        with pytest.raises(BundleError, match=r"nowhere\.v2v does not exist; check the path"):
            load_manifest(tmp_path / "nowhere.v2v")
        (tmp_path / "file.v2v").touch()
        with pytest.raises(BundleError, match="is not a folder"):
            load_manifest(tmp_path / "file.v2v")
        with pytest.raises(BundleError, match=r"manifest\.json is missing"):
            load_manifest(tmp_path)


class FakeEngine(OnnxRuntimeEngine):
    """ONNX Runtime made slower and noisier on purpose."""

    def __init__(self, folder, delay_ms: float, noise: float):
        super().__init__(folder / "step.onnx", 1)
        self.delay_ms, self.noise = delay_ms, noise

    def infer(self, feeds):
        import time

        time.sleep(self.delay_ms / 1000)
        made = super().infer(feeds)
        made["frame"] = made["frame"] + np.float32(self.noise) * np.sign(made["frame"])
        return made


class TestChooseEngine:
    probe = Probe(random_conditions(6, SIZE).numpy())
    candidates = (Candidate("fast", "rough"), Candidate("middle", "fine"), Candidate("absent", "f32"))

    @staticmethod
    def opener(candidate, folder, threads) -> GraphEngine:
        if candidate.engine == "absent":
            raise MissingExtraError("absent is not installed: pip install absent")
        delay, noise = {"onnxruntime": (8, 0), "fast": (0, 0.2), "middle": (3, 1e-4)}[candidate.engine]
        return FakeEngine(folder, delay, noise)

    def choose(self, bundle, probe=None, **guard) -> EngineChoice:
        return choose_engine(
            bundle, probe or self.probe, candidates=self.candidates, guard=EngineGuard(**guard), opener=self.opener
        )

    def test_the_fastest_that_keeps_the_quality_is_chosen_and_recorded(self, bundle):
        choice = self.choose(bundle)
        assert (choice.engine, choice.precision) == ("middle", "fine")
        reference, fast, middle, absent = choice.measurements
        assert reference.accepted
        assert reference.parity_psnr_db is None
        assert not fast.accepted
        assert fast.median_ms < middle.median_ms < reference.median_ms
        assert 50 < middle.parity_psnr_db < 90
        assert absent.median_ms is None
        assert "pip install absent" in absent.reason
        assert load_manifest(bundle).engine == choice

    def test_a_looser_guard_takes_the_faster_one(self, bundle):
        assert self.choose(bundle, min_parity_psnr_db=5).engine == "fast"

    def test_with_real_frames_the_loss_against_them_decides(self, bundle):
        real = np.random.default_rng(0).uniform(-1, 1, (6, 3, *SIZE)).astype(np.float32)
        probe = Probe(self.probe.conditions, real)
        tight, loose = (
            self.choose(bundle, probe, max_psnr_loss_db=0.01),
            self.choose(bundle, probe, max_psnr_loss_db=30),
        )
        assert (tight.engine, loose.engine) == ("middle", "fast")
        assert tight.measurements[1].psnr_loss_db > 0.01

    def test_the_engines_installed_here_are_measured(self, bundle):
        choice = choose_engine(bundle, self.probe, threads=1)
        assert [Candidate(m.engine, m.precision) for m in choice.measurements] == list(available_candidates())
        assert all(m.threads == 1 and m.median_ms > 0 for m in choice.measurements)

    def test_a_probe_of_another_size_is_refused(self, bundle):
        with pytest.raises(ShapeError, match=r"expected \(T, 4, 16, 24\)"):
            self.choose(bundle, Probe(np.zeros((3, 4, 8, 8), np.float32)))
        with pytest.raises(ShapeError, match="the probe has frames"):
            self.choose(bundle, Probe(self.probe.conditions, np.zeros((2, 3, *SIZE), np.float32)))

    def test_recording_needs_an_intact_bundle(self, bundle):
        (bundle / "step.onnx").write_bytes(b"")
        with pytest.raises(BundleError, match="damaged"):
            record_engine(bundle, EngineChoice(engine="x", precision="f32", median_ms=1.0, cpu="c"))


class TestBuild:
    conditions = random_conditions(6, SIZE)
    details = BundleDetails(
        task="street",
        condition=ConditionSpec(class_names=("road", "car", "tree", "sky")),
        size=SIZE,
        keyframes={"policy": "uniform", "gap": 4},
        interpolation={"method": "blend"},
        fps=17.0,
        cost=Cost(macs_per_keyframe=1e6, macs_per_frame=2.5e5, output_position_macs_per_keyframe=2e6, parameters=1000),
    )

    def test_a_module_becomes_a_measured_bundle(self, tmp_path):
        frames = torch.rand(6, 3, *SIZE)
        written = build_bundle(TinyStep(), tmp_path / "tiny.v2v", self.details, self.conditions, frames, threads=1)
        assert written == load_manifest(tmp_path / "tiny.v2v")
        assert written.name == "tiny"
        assert 0 < written.parity.max_abs_diff < 1e-4
        assert written.parity.frames == 6
        assert written.engine is not None
        assert [m.psnr_loss_db is not None for m in written.engine.measurements] == [True] * len(available_candidates())

    def test_a_graph_that_strays_is_not_written(self, tmp_path):
        with pytest.raises(
            ParityError, match=r"differs from TinyStep by .* over 6 frames, more than 0; nothing was"
        ) as e:
            build_bundle(TinyStep(), tmp_path / "tiny.v2v", self.details, self.conditions, tolerance=0)
        assert e.value.exit_status == 1 and isinstance(e.value, BundleError)
        assert not list(tmp_path.iterdir())

    def test_the_old_bundle_stays_until_the_new_one_is_measured(self, bundle, monkeypatch):
        def fail(*args, **options):
            assert load_manifest(bundle).fps == manifest().fps
            raise BundleError("measuring failed")

        monkeypatch.setattr("export.build.choose_engine", fail)
        details = replace(self.details, fps=99.0)
        with pytest.raises(BundleError, match="measuring failed"):
            build_bundle(TinyStep(), bundle, details, self.conditions, overwrite=True)
        assert load_manifest(bundle).fps == manifest().fps
        assert [p.name for p in bundle.parent.iterdir()] == ["tiny.v2v"]

    def test_an_existing_bundle_is_refused_before_any_work(self, bundle, monkeypatch):
        monkeypatch.setattr("export.build.export_step", None)
        with pytest.raises(BundleError, match="exists already"):
            build_bundle(TinyStep(), bundle, self.details, self.conditions)

    def test_a_named_engine_is_not_measured_on_a_graph_that_is_not_made(self, tmp_path):
        options = {"engine": "onnxruntime", "int8": False, "threads": 1}
        written = build_bundle(TinyStep(), tmp_path / "tiny.v2v", self.details, self.conditions, **options)
        assert [m.precision for m in written.engine.measurements] == ["f32"]
        options["engine"] = "onnxruntime:int8"
        with pytest.raises(ConfigError, match="onnxruntime:int8 needs the quantised graph; leave out --no-int8"):
            build_bundle(TinyStep(), tmp_path / "other.v2v", self.details, self.conditions, **options)

    def test_another_condition_is_refused(self, tmp_path):
        details = replace(self.details, condition=ConditionSpec(class_names=("road", "car")))
        with pytest.raises(ConfigError, match="encodes to 2 channels and the generator takes 4"):
            build_bundle(TinyStep(), tmp_path / "tiny.v2v", details, self.conditions)


class TestOpening:
    def test_an_engine_that_warps_wrongly_is_refused_before_it_is_used(self, bundle, monkeypatch):
        infer = OnnxRuntimeEngine.infer
        monkeypatch.setattr(
            OnnxRuntimeEngine, "infer", lambda self, feeds: {k: np.rint(v) for k, v in infer(self, feeds).items()}
        )
        with pytest.raises(BundleError, match="onnxruntime f32 warps wrongly here"):
            open_tested_engine(REFERENCE, bundle)

    def test_an_unknown_engine_lists_the_known(self, bundle):
        with pytest.raises(ConfigError, match="no engine 'abacus'; choose from onnxruntime, openvino"):
            open_tested_engine(Candidate("abacus", "f32"), bundle)

    @pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
    def test_a_missing_engine_says_how_to_install_it(self, bundle, name, monkeypatch):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(MissingExtraError, match=f"pip install {name}"):
            open_tested_engine(Candidate(name, "f32"), bundle)

    def test_both_engines_are_found_here(self):
        assert available_engines() == ("onnxruntime", "openvino")


@pytest.mark.parametrize("module", ["bundle", "engines", "choose", "history", "stream", "runtime"])
def test_the_deployed_part_needs_no_torch(module):
    code = (
        "import sys\n"
        "sys.modules.update(torch=None, onnx=None)\n"
        f"import export.{module}\n"
        "assert not any(name.startswith('torch') for name, m in sys.modules.items() if m)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
