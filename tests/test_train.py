"""The loop, on a toy task. Run as a program, this file trains the toy task: ``test_train.py RUN_FOLDER PRECISION``."""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from fastv2v.checkpoint import best_checkpoint, latest_checkpoint, list_checkpoints, read_state
from fastv2v.config import from_dict, to_dict
from fastv2v.data.clip import Clip
from fastv2v.device import Device, DeviceConfig, open_device, player_gradients
from fastv2v.errors import CheckpointError, ConfigError, DataError, DivergenceError, ShapeError
from fastv2v.log import BarProgress, clock
from fastv2v.losses.total import weighted_total
from fastv2v.optim import OptimConfig
from fastv2v.run import open_run, read_metrics
from fastv2v.seed import generator_for
from fastv2v.train import TrainConfig, fit


class ToyTask:
    """A small GAN over clips, in two chunks, with everything a resume can get wrong: buffers, dropout, drawn noise."""

    def __init__(self, dropout=0.1):
        torch.manual_seed(0)
        generator = nn.Sequential(
            nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout(dropout), nn.Conv2d(8, 3, 1), nn.Tanh()
        )
        discriminator = nn.Sequential(
            nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 8, 3)), nn.LeakyReLU(0.2), nn.Conv2d(8, 1, 1)
        )
        self.players = {"generator": generator, "discriminator": discriminator}
        self.weights = {"generator": {"gan": 1.0, "l1": 10.0}, "discriminator": {"gan": 1.0}}
        self.noise = 0.1

    def generate(self, clip, t, rng=None):
        noise = (
            torch.randn(clip.frames[:, t, :1].shape, generator=rng) * self.noise if rng else 0 * clip.frames[:, t, :1]
        )
        return self.players["generator"](torch.cat([clip.frames[:, t - 1], noise], dim=1))

    def step(self, clip, rng, at):
        discriminator = self.players["discriminator"]
        for t in range(1, clip.num_frames):
            real, fake = clip.frames[:, t], self.generate(clip, t, rng)
            yield {
                "generator": {"gan": F.softplus(-discriminator(fake).float()).mean(), "l1": F.l1_loss(fake, real)},
                "discriminator": {
                    "gan": (F.softplus(discriminator(fake.detach())) + F.softplus(-discriminator(real))).float().mean()
                },
            }

    def sample(self, clip):
        fake = torch.stack([self.generate(clip, t) for t in range(1, clip.num_frames)], dim=1)
        return {"real": clip.frames[:, 1:], "synthesised": fake}

    def evaluate(self, clip):
        assert not self.players["generator"].training and not torch.is_grad_enabled()
        error = torch.stack([(self.generate(clip, t) - clip.frames[:, t]).square().mean() for t in (1, 2)]).mean()
        return {"psnr": -10 * error.float().log10().item(), "mse": error.item()}


def toy_clip(index, batch=2, frames=3):
    return Clip(frames=torch.rand(batch, frames, 3, 8, 8, generator=generator_for(9, index)) * 2 - 1)


def toy_batches(start, **sizes):
    return (toy_clip(index, **sizes) for index in itertools.count(start))


CONFIG = TrainConfig(steps=8, log_every=2, sample_every=0, eval_every=4, checkpoint_every=3, ema_decay=0.9)


def train(folder, config=CONFIG, *, task=None, device=None, batches=toy_batches, **options):
    task = task or ToyTask()
    device = device or open_device(DeviceConfig(precision="fp32"))
    options = {"eval_clips": [toy_clip(100)], **options}
    with open_run(folder, to_dict(config)) as run:
        return fit(task, batches, run, config, device, **options), task


def final_tensors(folder):
    """All tensors and the comparable state of the newest checkpoint."""
    newest = latest_checkpoint(folder)
    tensors = {
        f"{file.stem}/{key}": value for file in newest.glob("*.safetensors") for key, value in load_file(file).items()
    }
    state = read_state(newest)
    return tensors, {key: value for key, value in state.items() if key != "elapsed_s"}


def assert_same_ending(one, two):
    (tensors, state), (other_tensors, other_state) = final_tensors(one), final_tensors(two)
    assert state == other_state
    assert tensors.keys() == other_tensors.keys()
    assert [name for name in tensors if not torch.equal(tensors[name], other_tensors[name])] == []


def numbers(report):
    """A report without what differs from run to run."""
    return {key: value for key, value in report.items() if key not in ("kind", "frames_per_second")}


class StopError(Exception):
    pass


class StopAfter:
    """A progress display that interrupts training."""

    def __init__(self, step, error=StopError):
        self.step, self.error, self.reports, self.closed = step, error, [], False

    def start(self, steps, step):
        self.started = (steps, step)

    def advance(self, step, done, left_s):
        if step == self.step:
            raise self.error

    def report(self, step, kind, values):
        self.reports.append((step, kind, dict(values)))

    def close(self):
        self.closed = True


class TestWeightedTotal:
    def test_it_is_the_sum_by_name(self):
        terms = {"a": torch.tensor(2.0), "b": torch.tensor(3.0, dtype=torch.bfloat16)}
        total = weighted_total(terms, {"b": 10, "a": 0.5})
        assert total.item() == 31.0 and total.dtype == torch.float32

    def test_missing_and_extra_names_are_errors(self):
        with pytest.raises(
            ConfigError, match=r"g: loss terms without a weight: \['b'\]; weights without a term: \['c'\]"
        ):
            weighted_total({"a": torch.ones(()), "b": torch.ones(())}, {"a": 1, "c": 1}, player="g")
        with pytest.raises(ConfigError):
            weighted_total({}, {})

    def test_a_term_that_is_no_scalar_is_an_error(self):
        with pytest.raises(ShapeError, match=r"loss term a must be a scalar, got shape \(2,\)"):
            weighted_total({"a": torch.ones(2)}, {"a": 1})


class TestOptimConfig:
    def test_the_rate_is_constant_then_falls(self):
        config = OptimConfig(decay_fraction=0.5, final_factor=0.0)
        assert [config.lr_factor(p) for p in (0, 0.5, 0.75, 1)] == [1, 1, 0.5, 0]

    def test_the_rate_warms_up(self):
        config = OptimConfig(warmup_fraction=0.1, decay_fraction=0.0, final_factor=0.2)
        assert [config.lr_factor(p) for p in (0, 0.05, 0.1, 1)] == pytest.approx([0.2, 0.6, 1, 1])

    @pytest.mark.parametrize(
        "bad",
        [{"lr": 0}, {"betas": (0.5, 1.0)}, {"decay_fraction": 1.5}, {"decay_fraction": 0.9, "warmup_fraction": 0.2}],
    )
    def test_nonsense_is_refused(self, bad):
        with pytest.raises(ConfigError):
            OptimConfig(**bad)


class TestTrainConfig:
    def test_it_survives_json(self):
        config = TrainConfig(max_minutes=3, ema_decay=None, optim=OptimConfig(betas=(0.0, 0.9)))
        assert from_dict(TrainConfig, json.loads(json.dumps(to_dict(config)))) == config

    @pytest.mark.parametrize(
        "bad", [{"steps": -1}, {"max_minutes": 0}, {"eval_every": -1}, {"ema_decay": 1.0}, {"best_is": "good"}]
    )
    def test_nonsense_is_refused(self, bad):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            TrainConfig(**bad)


class TestDevice:
    def test_precision_is_what_was_asked(self):
        for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            device = open_device(DeviceConfig(precision=precision, cpu=True))
            with device.autocast():
                assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == dtype
        assert (device.rank, device.world_size, device.is_main) == (0, 1, True)

    def test_fp16_needs_a_gpu(self):
        with pytest.raises(ConfigError, match="fp16 needs a CUDA GPU"):
            open_device(DeviceConfig(precision="fp16", cpu=True))
        with pytest.raises(ConfigError, match="gradient_accumulation must be at least 1"):
            DeviceConfig(gradient_accumulation=0)

    def test_gradients_of_one_player_do_not_touch_the_other(self):
        task = ToyTask()
        generator, discriminator = ([*task.players[name].parameters()] for name in ("generator", "discriminator"))
        losses = next(task.step(toy_clip(0), generator_for(0), 0))
        g_total = losses["generator"]["gan"]
        got = player_gradients(g_total, generator, retain_graph=True)
        assert all(p.grad is None for p in generator + discriminator)
        g_total.backward()
        assert all(torch.equal(a, p.grad) for a, p in zip(got, generator, strict=True))
        assert any(p.grad is not None for p in discriminator)  # what backward() would have leaked


class TestFit:
    def test_each_player_follows_its_own_loss_only(self, tmp_path):
        class Opposed(ToyTask):
            def step(self, clip, rng, at):
                for losses in super().step(clip, rng, at):
                    yield {**losses, "discriminator": {"gan": 0 * losses["discriminator"]["gan"]}}

        task = Opposed()
        before = {name: [p.detach().clone() for p in m.parameters()] for name, m in task.players.items()}
        train(tmp_path, replace(CONFIG, steps=2), task=task)
        for name, same in (("generator", False), ("discriminator", True)):
            pairs = zip(before[name], task.players[name].parameters(), strict=True)
            assert all(torch.equal(a, b) == same for a, b in pairs)

    def test_it_learns_and_reports(self, tmp_path):
        progress = StopAfter(None)
        config = replace(CONFIG, steps=60, eval_every=30, log_every=30, optim=OptimConfig(lr=1e-2))
        result, _ = train(tmp_path, config, progress=progress, batches=lambda start: itertools.repeat(toy_clip(100)))
        reports = read_metrics(tmp_path, "train")
        assert [r["step"] for r in reports] == [30, 60]
        assert reports[1]["generator/l1"] < reports[0]["generator/l1"]
        names = {"gan", "l1", "total", "grad_norm"}
        assert {f"generator/{name}" for name in names} <= reports[0].keys()
        assert reports[0]["generator/total"] == pytest.approx(
            reports[0]["generator/gan"] + 10 * reports[0]["generator/l1"], rel=1e-5
        )
        assert reports[1]["lr"] == pytest.approx(1e-4) and reports[0]["frames_per_second"] > 0
        assert result.step == 60 and result.elapsed_s > 0 and result.best.value >= result.metrics["psnr"]
        assert [(step, kind) for step, kind, _ in progress.reports] == [
            (30, "train"), (30, "eval"), (60, "train"), (60, "eval")
        ]  # fmt: skip
        assert progress.started == (60, 0) and progress.closed

    def test_the_end_is_saved_and_the_same_call_again_does_nothing(self, tmp_path):
        first, _ = train(tmp_path)
        names = [folder.name for folder in list_checkpoints(tmp_path)]
        assert names[-1] == "step-00000008"
        again, task = train(tmp_path)
        assert (again.step, again.best, dict(again.metrics)) == (first.step, first.best, dict(first.metrics))
        saved = load_file(latest_checkpoint(tmp_path) / "generator.safetensors")
        assert all(torch.equal(value, saved[name]) for name, value in task.players["generator"].state_dict().items())

    def test_what_is_evaluated_is_the_average(self, tmp_path):
        result, task = train(tmp_path)
        generator = task.players["generator"].eval()
        generator.load_state_dict(load_file(latest_checkpoint(tmp_path) / "ema.safetensors"))
        with torch.no_grad():
            assert task.evaluate(toy_clip(100))["psnr"] == pytest.approx(result.metrics["psnr"], rel=1e-6)

    def test_the_best_is_kept(self, tmp_path):
        class Peaked(ToyTask):
            scores = iter([1.0, 5.0, 3.0, 2.0])

            def evaluate(self, clip):
                return {"psnr": next(self.scores)}

        result, _ = train(tmp_path, replace(CONFIG, eval_every=2, keep_checkpoints=1), task=Peaked())
        assert (result.best.step, result.best.value) == (4, 5.0)
        assert [read_state(folder)["step"] for folder in list_checkpoints(tmp_path)] == [4, 8]
        assert read_state(best_checkpoint(tmp_path))["step"] == 4

    def test_pictures_are_made(self, tmp_path):
        train(tmp_path, replace(CONFIG, sample_every=4), sample_clip=toy_clip(50))
        assert [file.name for file in sorted((tmp_path / "samples").iterdir())] == [
            "step-00000004.png", "step-00000008.png"
        ]  # fmt: skip
        assert any((tmp_path / "tensorboard").iterdir())

    def test_looking_does_not_change_the_training(self, tmp_path):
        train(tmp_path / "a", replace(CONFIG, eval_every=0))
        train(tmp_path / "b", replace(CONFIG, eval_every=1, sample_every=1), sample_clip=toy_clip(50))
        (one, _), (two, _) = final_tensors(tmp_path / "a"), final_tensors(tmp_path / "b")
        assert all(torch.equal(one[name], two[name]) for name in one)

    def test_accumulation_equals_the_larger_batch(self, tmp_path):
        ends = []
        for accumulation, batch in ((1, 4), (2, 2)):
            task = ToyTask(dropout=0.0)
            task.players["generator"][1] = nn.Identity()  # batch statistics do see the difference
            task.noise = 0.0
            halves = [Clip(frames=toy_clip(0, batch=4).frames[i : i + batch]) for i in range(0, 4, batch)]
            device = open_device(DeviceConfig(precision="fp32", gradient_accumulation=accumulation))
            discriminator = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LeakyReLU(), nn.Conv2d(4, 1, 1))
            torch.manual_seed(1)
            for p in discriminator.parameters():
                nn.init.normal_(p, std=0.1)
            task.players["discriminator"] = discriminator
            config = replace(CONFIG, steps=2, eval_every=0)
            train(
                tmp_path / str(batch), config, task=task, device=device,
                batches=lambda start, halves=halves: itertools.cycle(halves),
            )  # fmt: skip
            ends.append(task)
        for name in ("generator", "discriminator"):
            for a, b in zip(ends[0].players[name].parameters(), ends[1].players[name].parameters(), strict=True):
                torch.testing.assert_close(a, b)

    def test_the_clock_ends_training(self, tmp_path):
        result, _ = train(tmp_path, replace(CONFIG, steps=10**6, max_minutes=0.5 / 60))
        assert 0 < result.step < 10**6 and result.elapsed_s >= 0.5
        assert latest_checkpoint(tmp_path).name == f"step-{result.step:08d}"

    def test_gradients_are_clipped(self, tmp_path):
        # Adam ignores the scale of a gradient, so the clip shows only against its epsilon
        before = ToyTask().players["generator"][0].weight
        _, task = train(tmp_path, replace(CONFIG, steps=1, gradient_clip=1e-12))
        assert (task.players["generator"][0].weight - before).abs().max() < 1e-6

    def test_divergence_names_step_player_and_term(self, tmp_path):
        class Bad(ToyTask):
            count = 0

            def step(self, clip, rng, at):
                self.count += 1
                for losses in super().step(clip, rng, at):
                    if self.count == 5:
                        losses["generator"]["l1"] = losses["generator"]["l1"] * float("nan")
                    yield losses

        with pytest.raises(DivergenceError, match="step 5: l1 of generator is nan") as caught:
            train(tmp_path, task=Bad())
        assert caught.value.exit_status == 1
        assert latest_checkpoint(tmp_path).name == "step-00000004"

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda losses: {"generator": {"gan": losses["generator"]["gan"]}}, r"weights without a term: \['l1'\]"),
            (
                lambda losses: {**losses, "critic": losses["generator"]},
                r"losses for \['critic'\], which are not players",
            ),
            (
                lambda losses: {"generator": {"gan": losses["discriminator"]["gan"], "l1": torch.zeros(())}},
                "losses of generator depend on none of its parameters",
            ),
        ],
    )
    def test_losses_must_fit_the_players(self, tmp_path, change, message):
        class Odd(ToyTask):
            def step(self, clip, rng, at):
                return map(change, super().step(clip, rng, at))

        with pytest.raises(ConfigError, match=message):
            train(tmp_path, task=Odd())

    @pytest.mark.parametrize("losses_of_other", [{}, {"discriminator": {"gan": torch.zeros(())}}])
    def test_a_player_without_losses_is_not_updated_and_told(self, tmp_path, caplog, losses_of_other):
        class Alone(ToyTask):
            def step(self, clip, rng, at):
                return ({"generator": losses["generator"], **losses_of_other} for losses in super().step(clip, rng, at))

        before = [p.detach().clone() for p in ToyTask().players["discriminator"].parameters()]
        result, task = train(tmp_path, task=Alone())
        assert result.step == 8 and "no loss has reached discriminator" in caplog.text
        assert all(map(torch.equal, before, task.players["discriminator"].parameters()))

    def test_players_must_be_trainable_and_well_named(self, tmp_path):
        task = ToyTask()
        task.players["discriminator"].requires_grad_(False)
        with pytest.raises(ConfigError, match="discriminator has no trainable parameter"):
            train(tmp_path, task=task)
        task = ToyTask()
        task.weights["ema"], task.players["ema"] = {}, nn.Linear(1, 1)
        with pytest.raises(ConfigError, match="'ema' cannot name a player"):
            train(tmp_path, task=task)
        with pytest.raises(ConfigError, match="ema_player teacher is not a player"):
            train(tmp_path, ema_player="teacher")
        task = ToyTask()
        del task.weights["discriminator"]
        with pytest.raises(ConfigError, match="must be the same"):
            train(tmp_path, task=task)

    def test_data_must_last(self, tmp_path):
        with pytest.raises(DataError, match="batches ended after step 2"):
            train(tmp_path / "a", batches=lambda start: iter([toy_clip(0)] * 2))
        with pytest.raises(DataError, match="the clip gave no losses"):
            train(tmp_path / "b", batches=lambda start: toy_batches(start, frames=1))
        device = open_device(DeviceConfig(precision="fp32", gradient_accumulation=2))
        uneven = [toy_clip(0, frames=3), toy_clip(0, frames=4)]
        with pytest.raises(DataError, match="differ in their number of chunks"):
            train(tmp_path / "c", device=device, batches=lambda start: iter(uneven))


class TestResume:
    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    @pytest.mark.parametrize("stop", [2, 5, 7])
    def test_stop_and_resume_equals_not_stopping(self, tmp_path, precision, stop):
        device = open_device(DeviceConfig(precision=precision))
        train(tmp_path / "whole", device=device)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "parts", device=device, progress=StopAfter(stop, KeyboardInterrupt))
        torch.manual_seed(123)
        train(tmp_path / "parts", device=device)
        assert_same_ending(tmp_path / "whole", tmp_path / "parts")
        whole, parts = (read_metrics(tmp_path / name, "eval") for name in ("whole", "parts"))
        assert whole == parts

    def test_the_loss_scale_of_fp16_is_kept(self, tmp_path):
        device = Device(Accelerator(cpu=True), torch.float16, 1)  # no GPU here: the same code, slowly
        train(tmp_path / "whole", device=device)
        with pytest.raises(StopError):
            train(tmp_path / "parts", device=device, progress=StopAfter(5))
        train(tmp_path / "parts", device=device)
        assert_same_ending(tmp_path / "whole", tmp_path / "parts")
        assert read_state(latest_checkpoint(tmp_path / "parts"))["scalers"]["generator"]["scale"] > 0
        assert "generator/loss_scale" in read_metrics(tmp_path / "parts", "train")[0]

    def test_accumulated_batches_are_counted(self, tmp_path):
        device = open_device(DeviceConfig(precision="fp32", gradient_accumulation=3))
        train(tmp_path / "whole", device=device)
        with pytest.raises(StopError):
            train(tmp_path / "parts", device=device, progress=StopAfter(5))
        train(tmp_path / "parts", device=device)
        assert_same_ending(tmp_path / "whole", tmp_path / "parts")

    def test_another_architecture_is_refused(self, tmp_path):
        train(tmp_path)
        task = ToyTask()
        task.players["generator"][3] = nn.Conv2d(8, 3, 3, padding=1)
        with pytest.raises(CheckpointError, match=r"generator.safetensors is a checkpoint of another architecture"):
            train(tmp_path, task=task)

    @pytest.mark.slow
    def test_kill_at_any_moment_and_the_same_command_continues(self, tmp_path):
        whole = start_program(tmp_path / "whole")
        process = start_program(tmp_path / "parts")
        deadline = time.monotonic() + 60
        while not (latest_checkpoint(tmp_path / "parts") or process.poll() is not None or time.monotonic() > deadline):
            time.sleep(0.002)
        time.sleep(0.05 * (os.getpid() % 7))  # another moment each time
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        assert latest_checkpoint(tmp_path / "parts") is not None
        assert start_program(tmp_path / "parts").wait(60) == whole.wait(60) == 0
        assert_same_ending(tmp_path / "whole", tmp_path / "parts")


class TestProcesses:
    @pytest.mark.slow
    def test_two_processes_train_like_one_with_the_whole_batch(self, tmp_path):
        train(tmp_path / "one", PAIR_CONFIG, task=pair_task(), batches=pair_batches(0, 1), eval_clips=PAIR_EVAL)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        processes = [start_program(tmp_path / "two", "pair", rank=rank, port=port) for rank in range(2)]
        assert [process.wait(60) for process in processes] == [0, 0]
        (one, state), (two, other) = final_tensors(tmp_path / "one"), final_tensors(tmp_path / "two")
        assert one.keys() == two.keys()
        for name in one:
            if not name.startswith("rng"):
                torch.testing.assert_close(one[name], two[name], msg=lambda text, name=name: f"{name}: {text}")
        assert state["metrics"] == pytest.approx(other["metrics"], rel=1e-4)
        one_reports, two_reports = ([numbers(r) for r in read_metrics(tmp_path / name)] for name in ("one", "two"))
        assert len(one_reports) == len(two_reports)
        assert all(a == pytest.approx(b, rel=1e-3) for a, b in zip(one_reports, two_reports, strict=True))


class TestBarProgress:
    def test_off_a_terminal_every_report_is_a_line(self):
        stream = StringIO()
        bar = BarProgress("teacher", stream)
        bar.start(10, 0)
        bar.advance(5, 0.5, 65.0)
        bar.report(5, "train", {"generator/gan": 0.123456, "generator/total": 9, "lr": 2e-4})
        bar.close()
        assert stream.getvalue() == "teacher: step 5/10, 1:05 left  train: gan 0.123 lr 0.0002\n"

    def test_on_a_terminal_it_is_one_line(self):
        class Terminal(StringIO):
            def isatty(self):
                return True

        stream = Terminal()
        bar = BarProgress("teacher", stream)
        bar.start(10, 0)
        bar.report(5, "train", {"gan": 0.5})
        bar.advance(5, 0.5, 65.0)
        bar.close()
        assert "teacher  50%|" in stream.getvalue() and "step 5/10, 1:05 left" in stream.getvalue()
        assert "gan 0.5" in stream.getvalue()

    def test_clock(self):
        assert [clock(s) for s in (0, 65.4, 3600, 7445)] == ["0:00", "1:05", "1:00:00", "2:04:05"]


PAIR_CONFIG = replace(CONFIG, steps=3, log_every=1, eval_every=3)
PAIR_EVAL = [toy_clip(200 + i) for i in range(3)]


def pair_task():
    """A task whose loss does not depend on how a batch is split: no batch statistics, no noise."""
    task = ToyTask(dropout=0.0)
    task.players["generator"][1] = nn.Identity()
    task.noise = 0.0
    torch.manual_seed(1)
    task.players["discriminator"] = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LeakyReLU(), nn.Conv2d(4, 1, 1))
    return task


def pair_batches(rank, world_size):
    size = 4 // world_size
    return lambda start: (
        Clip(frames=toy_clip(i, batch=4).frames[rank * size : (rank + 1) * size]) for i in itertools.count(start)
    )


def start_program(folder, mode="single", rank=None, port=None):
    root = Path(__file__).resolve().parent.parent
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    if rank is not None:  # what torchrun and accelerate launch set
        env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return subprocess.Popen([sys.executable, __file__, str(folder), mode], env=env)


def main(folder, mode):
    torch.set_num_threads(1)
    device = open_device(DeviceConfig(precision="bf16" if mode == "single" else "fp32"))
    pair = mode == "pair"
    config = PAIR_CONFIG if pair else replace(CONFIG, steps=20, checkpoint_every=2, sample_every=10)
    task = pair_task() if pair else ToyTask()
    if device.rank == 1:  # other processes take over the weights of the first
        for parameter in task.players["generator"].parameters():
            nn.init.zeros_(parameter)
    batches = pair_batches(device.rank, device.world_size) if pair else toy_batches
    clips = PAIR_EVAL if pair else [toy_clip(100)]
    with open_run(folder, to_dict(config), is_main=device.is_main) as run:
        fit(task, batches, run, config, device, eval_clips=clips, sample_clip=toy_clip(50))
    device.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
