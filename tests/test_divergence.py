"""A training that explodes stops with the step and the term named, and keeps the last good checkpoint."""

import pytest
import torch
from torch import nn

from fastv2v.checkpoint import latest_checkpoint
from fastv2v.data.clip import Clip
from fastv2v.device import DeviceConfig, open_device
from fastv2v.errors import ConfigError, DivergenceError
from fastv2v.run import open_run
from fastv2v.train import TrainConfig, fit


class Scripted:
    """One weight and losses that follow a script: terms by step, two chunks each."""

    weights = {"generator": {"gan": 2.0, "l1": 10.0}}  # noqa: RUF012

    def __init__(self, script):
        self.players = {"generator": nn.Linear(1, 1, bias=False)}
        self.script = script

    def step(self, clip, rng, at):
        for chunk in range(2):
            one = self.players["generator"].weight.sum() * 0 + 1
            yield {"generator": {name: one * value for name, value in self.script(at + 1, chunk).items()}}

    def sample(self, clip):
        return {"real": clip.frames}

    def evaluate(self, clip):
        return {"psnr": 0.0}


def train(folder, script, **config):
    def batches(start):
        while True:
            yield Clip(frames=torch.zeros(1, 2, 3, 4, 4))

    settings = {"steps": 80, "checkpoint_every": 10, "sample_every": 0, "eval_every": 0, "log_every": 20, **config}
    with open_run(folder / "run", {}) as run:
        device = open_device(DeviceConfig(cpu=True, precision="fp32"))
        fit(Scripted(script), batches, run, TrainConfig(**settings), device)
    return latest_checkpoint(folder / "run").name


def exploding(at, chunk_at=1, l1=1.0, gan=1.0):
    def script(step, chunk):
        there = (step, chunk) == (at, chunk_at)
        return {"gan": gan if there else 0.5, "l1": l1 if there else 0.1}  # 2 * 0.5 + 10 * 0.1 = 2 usually

    return script


def test_step_and_largest_term_are_named_and_the_checkpoint_before_stays(tmp_path):
    message = r"exploded at step 75: the loss of generator is 222 after a median of 2 over 50 steps, mostly by l1"
    with pytest.raises(DivergenceError, match=message) as caught:
        train(tmp_path, exploding(75, l1=22.0))
    assert caught.value.exit_status == 1
    assert latest_checkpoint(tmp_path / "run").name == "step-00000070"


def test_a_negative_adversarial_term_explodes_too(tmp_path):
    with pytest.raises(DivergenceError, match=r"exploded at step 60: .* mostly by gan"):
        train(tmp_path, exploding(60, gan=-500.0))


def test_a_step_that_would_be_saved_is_looked_at_first(tmp_path):
    with pytest.raises(DivergenceError, match="step 70"):
        train(tmp_path, exploding(70, l1=22.0))
    assert latest_checkpoint(tmp_path / "run").name == "step-00000060"


@pytest.mark.parametrize(
    ("script", "config"),
    [
        (exploding(75, l1=19.0), {}),  # not a hundred times
        (exploding(50, l1=1000.0), {}),  # too early to know what is usual
        (exploding(75, l1=1000.0), {"explosion_factor": None}),
        (lambda step, chunk: {"gan": 0.5, "l1": 0.1 * 1.1**step}, {}),  # grows, but its median follows
        (lambda step, chunk: {"gan": 0.5 * (-1) ** step, "l1": 0.1}, {}),  # totals of 0 and 2
    ],
)
def test_what_is_no_explosion_goes_on(tmp_path, script, config):
    assert train(tmp_path, script, **config) == "step-00000080"


def test_a_factor_that_any_step_exceeds_is_refused():
    with pytest.raises(ConfigError, match=r"explosion_factor must exceed 1, got 1\.0; None switches it off"):
        TrainConfig(explosion_factor=1.0)
