import errno
import json
import os
import re

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fastv2v.checkpoint import (
    best_checkpoint,
    find_checkpoint,
    latest_checkpoint,
    list_checkpoints,
    load_optimizer,
    load_weights,
    optimizer_tensors,
    prune_checkpoints,
    read_state,
    restore_rng_state,
    rng_state,
    save_checkpoint,
    save_tensors,
    weights_file,
)
from fastv2v.ema import Ema
from fastv2v.errors import CheckpointError, ConfigError
from fastv2v.optim import OptimConfig, build_adam, trainable_parameters
from fastv2v.run import contact_sheet, open_run, read_config, read_metrics, write_bytes


def save(run, step, best=None, **state):
    tensors = {"generator": {"w": torch.full((3,), float(step))}}
    return save_checkpoint(run / "checkpoints", step, tensors, {"best": best, **state})


class TestCheckpointFolders:
    def test_the_newest_is_found_with_its_tensors_and_state(self, tmp_path):
        save(tmp_path, 5)
        newest = save(tmp_path, 20, extra=[1, float("inf")])
        assert latest_checkpoint(tmp_path) == newest == tmp_path / "checkpoints" / "step-00000020"
        assert load_file(newest / "generator.safetensors")["w"].tolist() == [20.0] * 3
        state = read_state(newest)
        assert (state["step"], state["extra"]) == (20, [1, float("inf")])

    def test_none_is_none(self, tmp_path):
        assert latest_checkpoint(tmp_path) is best_checkpoint(tmp_path) is None
        with pytest.raises(CheckpointError, match="neither a complete checkpoint nor a run"):
            find_checkpoint(tmp_path)

    @pytest.mark.parametrize("damage", ["no state", "cut state", "no file", "cut file"])
    def test_half_written_ones_are_ignored(self, tmp_path, damage):
        whole, broken = save(tmp_path, 1), save(tmp_path, 2)
        file = broken / ("state.json" if "state" in damage else "generator.safetensors")
        if damage.startswith("no"):
            file.unlink()
        else:
            os.truncate(file, 20)
        assert list_checkpoints(tmp_path) == [whole]

    def test_leftovers_of_a_killed_save_are_ignored_and_cleared(self, tmp_path):
        leftover = tmp_path / "checkpoints" / ".step-00000009.tmp"
        leftover.mkdir(parents=True)
        (leftover / "generator.safetensors").write_bytes(b"half")
        assert latest_checkpoint(tmp_path) is None
        save(tmp_path, 9)
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000009"]

    def test_pruning_keeps_the_newest_and_the_best(self, tmp_path):
        for step in range(1, 7):
            save(tmp_path, step, best={"step": 2, "metric": "psnr", "value": 9.0})
        prune_checkpoints(tmp_path, keep=2, best_step=2)
        assert [read_state(folder)["step"] for folder in list_checkpoints(tmp_path)] == [2, 5, 6]
        assert read_state(best_checkpoint(tmp_path))["step"] == 2
        assert read_state(find_checkpoint(tmp_path))["step"] == 2
        assert not any((tmp_path / "checkpoints").glob(".*"))
        assert read_state(find_checkpoint(tmp_path, "latest"))["step"] == 6
        (best_checkpoint(tmp_path) / "state.json").unlink()
        with pytest.raises(CheckpointError, match="step-00000002, is gone or damaged"):
            find_checkpoint(tmp_path)

    def test_averaged_weights_are_preferred(self, tmp_path):
        tensors = {"generator": {"w": torch.ones(1)}, "ema": {"w": torch.ones(1)}, "d": {"w": torch.ones(1)}}
        folder = save_checkpoint(tmp_path, 1, tensors, {"ema_player": "generator"})
        assert weights_file(folder).name == "ema.safetensors"
        assert weights_file(folder, "d").name == "d.safetensors"
        with pytest.raises(CheckpointError, match="holds no critic"):
            weights_file(folder, "critic")

    def test_a_newer_format_is_refused(self, tmp_path):
        folder = save(tmp_path, 1)
        (folder / "state.json").write_text('{"format": 99, "files": {}}')
        with pytest.raises(CheckpointError, match="has format 99"):
            read_state(folder)


class TestLoadWeights:
    def test_it_restores_parameters_and_buffers(self, tmp_path):
        one, two = (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)) for _ in range(2))
        one(torch.randn(2, 3, 8, 8))
        save_tensors(tmp_path / "w.safetensors", one.state_dict())
        load_weights(two, tmp_path / "w.safetensors")
        assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())

    def test_tied_weights_and_views_survive(self, tmp_path):
        one = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
        one["b"].weight = one["a"].weight
        save_tensors(tmp_path / "w.safetensors", one.state_dict())
        load_weights(one, tmp_path / "w.safetensors")

    def test_another_architecture_is_one_readable_sentence(self, tmp_path):
        save_tensors(tmp_path / "w.safetensors", {"weight": torch.ones(2, 3), "scale": torch.ones(1)})
        module = nn.Linear(4, 2)
        before = module.weight.detach().clone()
        message = (
            "w.safetensors is a checkpoint of another architecture: missing bias; unexpected scale; "
            "mis-shaped weight is [2, 3] there and [2, 4] here; take one of this network, or build the network with "
            "the settings it was trained with"
        )
        with pytest.raises(CheckpointError, match=re.escape(message)):
            load_weights(module, tmp_path / "w.safetensors")
        assert torch.equal(module.weight, before)

    def test_many_differences_are_counted(self, tmp_path):
        save_tensors(tmp_path / "w.safetensors", {f"t{i}": torch.ones(1) for i in range(9)})
        with pytest.raises(CheckpointError, match="t0, t1, t2, t3 and 5 more"):
            load_weights(nn.Identity(), tmp_path / "w.safetensors")

    @pytest.mark.parametrize("content", [b"", b"not tensors at all", b"\xff" * 64])
    def test_a_damaged_file_is_named(self, tmp_path, content):
        (tmp_path / "w.safetensors").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"w\.safetensors is damaged"):
            load_weights(nn.Linear(1, 1), tmp_path / "w.safetensors")

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"gone\.safetensors does not exist"):
            load_weights(nn.Linear(1, 1), tmp_path / "gone.safetensors")


def test_an_optimiser_continues_exactly(tmp_path):
    def train(module, optimizer, steps):
        for i in steps:
            torch.manual_seed(i)
            optimizer.zero_grad()
            module(torch.randn(5, 3)).square().sum().backward()
            optimizer.step()

    torch.manual_seed(0)
    one = nn.Linear(3, 2)
    one_adam = build_adam(one.parameters(), OptimConfig(lr=0.1))
    train(one, one_adam, range(3))
    save_tensors(tmp_path / "o.safetensors", optimizer_tensors(one_adam, trainable_parameters(one)))
    two = nn.Linear(3, 2)
    two.load_state_dict(one.state_dict())
    two_adam = build_adam(two.parameters(), OptimConfig(lr=0.1))
    load_optimizer(two_adam, trainable_parameters(two), tmp_path / "o.safetensors")
    train(one, one_adam, range(3, 6))
    train(two, two_adam, range(3, 6))
    assert torch.equal(one.weight, two.weight)
    with pytest.raises(CheckpointError, match="another architecture: weight"):
        load_optimizer(two_adam, trainable_parameters(nn.Linear(4, 2)), tmp_path / "o.safetensors")


def test_global_random_state_is_restored():
    import random

    import numpy as np

    def draw():
        return random.gauss(0, 1), random.random(), np.random.randn(), torch.rand(1).item()

    draw()
    state = rng_state()
    first = draw()
    draw()
    restore_rng_state(*state)
    assert draw() == first


class TestEma:
    def test_it_is_the_decayed_sum_of_past_values(self):
        module = nn.Linear(1, 1, bias=False)
        ema = Ema(module, 0.2)
        average = start = module.weight.item()
        for n in range(1, 6):
            with torch.no_grad():
                module.weight.fill_(n)
            ema.update()
            decay = min(0.2, (1 + n) / (10 + n))
            average = decay * average + (1 - decay) * n
        assert ema.state_dict()["weight"].item() == pytest.approx(average, rel=1e-5)
        assert start != average

    def test_buffers_are_copied(self):
        module = nn.BatchNorm1d(2)
        ema = Ema(module, 0.999)
        module(torch.randn(8, 2))
        ema.update()
        assert torch.equal(ema.state_dict()["running_mean"], module.running_mean)
        assert ema.state_dict()["num_batches_tracked"].item() == 1

    def test_swap_puts_the_live_weights_back_bit_for_bit_even_after_an_error(self):
        module = nn.Linear(3, 3)
        module.tied = module.weight
        ema = Ema(module, 0.5)
        with torch.no_grad():
            module.weight.add_(1)
        live, average = module.weight.detach().clone(), ema.state_dict()["weight"].clone()
        with pytest.raises(RuntimeError, match="inside"), ema.swap():
            assert torch.equal(module.weight, average) and not torch.equal(module.weight, live)
            raise RuntimeError("inside")
        assert torch.equal(module.weight, live)
        assert torch.equal(ema.state_dict()["tied"], average)

    def test_decay_is_checked(self):
        with pytest.raises(ConfigError, match="ema_decay must lie"):
            Ema(nn.Linear(1, 1), 1.0)


class TestRunFolder:
    def test_the_same_config_continues_and_cuts_later_reports(self, tmp_path):
        with open_run(tmp_path / "r", {"lr": 1, "size": (4, 8)}) as run:
            run.begin(0)
            for step in (10, 20, 30):
                run.log(step, "train", {"gan": 1.0 / step, "bad": float("inf")})
        with (tmp_path / "r" / "metrics.jsonl").open("a") as file:
            file.write('{"step": 40, "ki')  # torn by a kill
        with open_run(tmp_path / "r", {"lr": 1, "size": (4, 8)}) as run:
            run.begin(20)
            run.log(25, "eval", {"psnr": 3.0})
        reports = read_metrics(tmp_path / "r")
        assert [(report["step"], report["kind"]) for report in reports] == [(10, "train"), (20, "train"), (25, "eval")]
        assert reports[0]["gan"] == 0.1 and reports[0]["bad"] is None
        assert read_metrics(tmp_path / "r", "eval") == [{"step": 25, "kind": "eval", "psnr": 3.0}]

    def test_surroundings_are_recorded(self, tmp_path):
        open_run(tmp_path / "r", {"lr": 1}).close()
        assert json.loads((tmp_path / "r" / "environment.json").read_text())["versions"]["torch"] == torch.__version__

    def test_the_first_surroundings_are_kept_and_other_ones_added(self, tmp_path, monkeypatch):
        def begin(commit):
            monkeypatch.setattr("fastv2v.run.describe_commit", lambda: commit)
            open_run(tmp_path, {"lr": 1}).close()
            found = json.loads((tmp_path / "environment.json").read_text())
            return [found["commit"], *(entry["commit"] for entry in found.get("resumed", []))]

        assert begin("failed") == ["failed"]
        assert begin("a") == ["a"]  # nothing was trained before
        save(tmp_path, 7)
        assert [begin("a"), begin("b"), begin("b"), begin("a")] == [["a"], ["a", "b"], ["a", "b"], ["a", "b", "a"]]
        resumed = json.loads((tmp_path / "environment.json").read_text())["resumed"]
        assert all(entry.keys() == {"command", "commit", "versions", "machine"} for entry in resumed)

    def test_a_corrected_config_replaces_that_of_a_failed_start(self, tmp_path):
        with open_run(tmp_path, {"lr": 1}) as run:
            run.begin(0)
            run.log(1, "train", {"gan": 1.0})
        open_run(tmp_path, {"lr": 2}, resume=False).close()
        assert read_config(tmp_path) == {"lr": 2} and read_metrics(tmp_path) == []

    def test_a_run_may_be_moved_and_called_from_another_folder(self, tmp_path, monkeypatch):
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path)
        config = {"data": "data", "teacher": "runs/t", "run": "runs/s"}
        open_run("runs/s", config).close()
        save(tmp_path / "runs" / "s", 7)
        monkeypatch.chdir(tmp_path / "elsewhere")
        (tmp_path / "runs" / "s").rename(tmp_path / "moved")
        typed = {"data": "../data", "teacher": str(tmp_path / "runs" / "t"), "run": "../moved"}
        open_run("../moved", typed).close()
        with pytest.raises(ConfigError, match=r"\(data was .*data\", is .*elsewhere/data\"\); use another name"):
            open_run("../moved", typed | {"data": "data"})

    def test_another_config_is_refused_and_nothing_changes(self, tmp_path):
        open_run(tmp_path / "r", {"lr": 1, "model": {"width": 8, "old": 1}}).close()
        save(tmp_path / "r", 7)
        before = (tmp_path / "r" / "config.json").read_bytes()
        message = "model.width was 8, is 16; model.old is gone; model.new is new); use another name, or --overwrite"
        with pytest.raises(ConfigError, match=re.escape(message)):
            open_run(tmp_path / "r", {"lr": 1, "model": {"width": 16, "new": 1}})
        with pytest.raises(ConfigError, match="already holds a run"):
            open_run(tmp_path / "r", {"lr": 1, "model": {"width": 8, "old": 1}}, resume=False)
        assert (tmp_path / "r" / "config.json").read_bytes() == before

    def test_overwrite_removes_the_run_and_nothing_else(self, tmp_path):
        open_run(tmp_path / "r", {"lr": 1}).close()
        save(tmp_path / "r", 7)
        (tmp_path / "r" / "notes.txt").write_text("mine")
        open_run(tmp_path / "r", {"lr": 2}, overwrite=True).close()
        assert latest_checkpoint(tmp_path / "r") is None
        assert (tmp_path / "r" / "notes.txt").read_text() == "mine"

    def test_a_second_process_is_kept_out(self, tmp_path):
        with (
            open_run(tmp_path / "r", {}),
            pytest.raises(ConfigError, match="another process is training"),
        ):
            open_run(tmp_path / "r", {})
        open_run(tmp_path / "r", {}).close()

    @pytest.mark.parametrize("overwrite", [False, True])
    @pytest.mark.parametrize(
        "files",
        [
            {"photo.png": "x"},
            {"config.json": "{}", "checkpoints/mine.txt": "x"},
            {"config.json": "{}", "environment.json": '{"name": "mine"}'},
            {"environment.json": '{"command": 1, "commit": 1, "versions": 1, "machine": 1}', "samples/mine.txt": "x"},
        ],
    )
    def test_a_folder_that_holds_no_run_is_refused_and_left_alone(self, tmp_path, files, overwrite):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text)
        with pytest.raises(ConfigError, match="is not empty and holds no run"):
            open_run(tmp_path, {}, overwrite=overwrite)
        found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
        assert found == set(files)

    def test_a_start_killed_before_its_config_is_begun_again(self, tmp_path):
        open_run(tmp_path, {"lr": 1}).close()
        for name in ("config.json", "checkpoints", "samples"):
            (tmp_path / name).rmdir() if (tmp_path / name).is_dir() else (tmp_path / name).unlink()
        open_run(tmp_path, {"lr": 2}).close()
        assert read_config(tmp_path) == {"lr": 2}

    def test_a_damaged_config_is_named(self, tmp_path):
        open_run(tmp_path, {}).close()
        (tmp_path / "config.json").write_text("{")
        with pytest.raises(ConfigError, match=r"config\.json is not valid JSON"):
            open_run(tmp_path, {})

    def test_only_the_main_process_writes(self, tmp_path):
        with open_run(tmp_path / "r", {}, is_main=False) as run:
            run.begin(0)
            run.log(1, "train", {"gan": 1.0})
        assert not (tmp_path / "r").exists()


def test_a_full_disk_is_reported_with_the_file(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_bytes(tmp_path / "f", b"new")
    assert caught.value.filename == str(tmp_path / "f")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path):
    write_bytes(tmp_path / "f", b"old")
    with pytest.raises(TypeError):
        write_bytes(tmp_path / "f", "text")  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["f"] and (tmp_path / "f").read_bytes() == b"old"


def test_a_contact_sheet_has_a_titled_row_for_each_clip():
    import numpy as np

    frames = np.arange(10, dtype=np.uint8)[:, None, None, None] * np.ones((1, 6, 512, 3), np.uint8)
    sheet = contact_sheet({"real": frames, "fake": frames}, max_columns=4)
    assert sheet.shape == (2 * (18 + 3), 4 * 256, 3)
    assert sheet[-1, ::256, 0].tolist() == [0, 3, 6, 9]
