"""Batch norm of one frame, and over several processes; and the first steps of real teachers in two processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fastv2v.contracts import Losses
from fastv2v.data.clip import Clip
from fastv2v.data.conditions import ConditionSpec
from fastv2v.device import Device, DeviceConfig, open_device, player_gradients
from fastv2v.losses.objective import LossWeights, ObjectiveConfig, VideoObjective
from fastv2v.losses.perceptual import PerceptualLoss
from fastv2v.losses.rollout import CheckpointedStep, RolloutConfig
from fastv2v.nn.composite import CompositeConfig
from fastv2v.nn.discriminator import DiscriminatorConfig
from fastv2v.nn.generators import build_generator
from fastv2v.nn.norms import SharedBatchNorm2d, batch_statistics, share_batch_norms
from fastv2v.nn.spade import ModulationConfig, SpadeConfig
from fastv2v.ops.flow import DISFlow
from fastv2v.render import start_history
from teachers.task import TeacherTask, TeacherTaskConfig


class TestBatchStatistics:
    def test_each_frame_is_normalised_by_itself_and_nothing_is_remembered(self):
        torch.manual_seed(0)
        norm = nn.BatchNorm2d(3).eval()
        norm.running_mean.fill_(5.0)
        x = torch.randn(1, 3, 8, 8) * 2 + 1
        before = {name: value.clone() for name, value in norm.state_dict().items()}
        with batch_statistics(nn.Sequential(norm)):
            made = norm(x)
        assert_close(made.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-6, rtol=0)
        assert_close(made.var(dim=(0, 2, 3), unbiased=False), torch.ones(3), atol=1e-4, rtol=0)
        assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
        assert not norm.training and norm.track_running_stats

    def test_instance_norms_that_keep_statistics_follow_the_frame_as_well(self):
        torch.manual_seed(0)
        norm = nn.InstanceNorm2d(3, track_running_stats=True).eval()
        x = torch.randn(1, 3, 8, 8) * 2 + 1
        with batch_statistics(norm):
            made = norm(x)
        assert_close(made, nn.functional.instance_norm(x))
        assert torch.equal(norm.running_mean, torch.zeros(3)) and torch.equal(norm.running_var, torch.ones(3))
        assert not torch.allclose(norm(x), made)

    def test_the_module_is_put_back_after_an_error(self):
        norm = nn.BatchNorm2d(1).eval()
        with pytest.raises(RuntimeError), batch_statistics(norm):
            norm(torch.zeros(1, 2, 4, 4))
        assert not norm.training and norm.track_running_stats


def test_shared_norms_are_plain_ones_in_a_lone_process():
    torch.manual_seed(0)
    plain, shared = nn.BatchNorm2d(3), share_batch_norms(nn.Sequential(nn.BatchNorm2d(3)))
    assert isinstance(shared[0], SharedBatchNorm2d)
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(plain(x), shared(x))
    assert torch.equal(plain.running_var, shared[0].running_var)


@pytest.mark.parametrize("norm", ["batch", "instance", "instance_tracked"])
def test_checkpointed_steps_have_the_gradients_and_statistics_of_plain_ones(norm):
    def run(checkpointed: bool):
        torch.manual_seed(0)
        config = CompositeConfig(width=4, num_downsamples=1, num_blocks=2, edge_kernel=3, norm=norm)
        model = build_generator(config, 2)
        conditions, frames = torch.rand(2, 3, 2, 16, 16), torch.rand(2, 2, 3, 16, 16)
        history = start_history(conditions[:, :2], frames, 2)
        step = CheckpointedStep(model) if checkpointed else model
        first, history = step.step(conditions[:, 2], history)
        second, _ = step.step(conditions[:, 2], history)
        gradients = torch.autograd.grad((first.frame + second.frame).square().mean(), list(model.parameters()))
        return gradients, dict(model.named_buffers())

    (plain, buffers), (again, others) = run(False), run(True)
    for a, b in zip(plain, again, strict=True):
        assert_close(a, b)
    for name, value in buffers.items():
        assert_close(others[name], value)


def test_backprop_spans_double_up_to_the_chunk():
    config = RolloutConfig(chunk_frames=6, backprop_grow_every=10, max_backprop_frames=8)
    assert [config.backprop_at(at) for at in (0, 9, 10, 20, 30, 1000)] == [1, 1, 2, 3, 6, 6]
    assert RolloutConfig(chunk_frames=0, backprop_frames=4).backprop_at(0) == 4


# Real teachers in two processes.


class Taps(nn.Module):
    """A perceptual network of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 4, 3, stride=2)])

    def forward(self, frames: torch.Tensor) -> list[torch.Tensor]:
        first = torch.relu(self.layers[0](frames))
        return [first, torch.relu(self.layers[1](first))]


def street_task() -> TeacherTask:
    torch.manual_seed(0)
    spec = ConditionSpec(class_names=("road", "car", "sky"))
    generator = build_generator(
        CompositeConfig(width=4, num_downsamples=1, num_blocks=2, edge_kernel=3, num_scales=2, norm="batch"),
        spec.channels,
        (1,),
    )
    judge = DiscriminatorConfig(width=4, num_layers=2, num_scales=1, norm="batch")
    weights = LossWeights(perceptual=1.0, reconstruction=1.0)
    perceptual = PerceptualLoss(Taps(), (0.5, 0.5), relative=True).requires_grad_(False)
    objective = VideoObjective(
        ObjectiveConfig(weights=weights, image_discriminator=judge, temporal_discriminator=judge),
        spec.channels,
        perceptual,
        DISFlow("ultrafast"),
    )
    rollout = RolloutConfig(chunk_frames=3, backprop_frames=3, start_from_nothing=0, start_from_one=0)
    return TeacherTask(generator, spec, objective, TeacherTaskConfig(objective=objective.config, rollout=rollout))


def world_task() -> TeacherTask:
    """Guided by a painted world, its weights spectrally normalised."""
    torch.manual_seed(0)
    spec = ConditionSpec(class_names=("road", "car", "sky"), guidance_levels=2)
    shape = SpadeConfig(
        base_width=3,
        max_width=12,
        frame_downsamples=2,
        bottleneck_blocks=2,
        flow_width=3,
        flow_downsamples=2,
        flow_blocks=1,
        guidance=ModulationConfig(hidden=4),
        combine="blend",
    )
    judge = DiscriminatorConfig(width=4, num_layers=2, num_scales=1, norm="batch")
    weights = LossWeights(
        perceptual=0.0, reconstruction=1.0, guidance=2.0, temporal_gan=0.0, temporal_feature_matching=0.0
    )
    objective = VideoObjective(
        ObjectiveConfig(weights=weights, image_discriminator=judge, temporal_scales=0, gan="hinge"),
        spec.channels,
        None,
        DISFlow("ultrafast"),
        guidance_levels=2,
    )
    rollout = RolloutConfig(chunk_frames=1, start_from_nothing=0, start_from_one=0)
    config = TeacherTaskConfig(objective=objective.config, rollout=rollout, lead_in=1)
    return TeacherTask(build_generator(shape, spec.channels, guidance_levels=2), spec, objective, config)


TASKS = {"street": street_task, "world": world_task}


def street_clip(rank: int, world_size: int) -> Clip:
    rng = torch.Generator().manual_seed(3)
    coarse = torch.rand(4, 5, 3, 4, 6, generator=rng).flatten(0, 1)
    frames = nn.functional.interpolate(coarse, size=(32, 48), mode="bilinear").view(4, 5, 3, 32, 48) * 2 - 1
    labels = torch.randint(0, 3, (4, 5, 32, 48), generator=rng, dtype=torch.uint8)
    own = slice(rank * 4 // world_size, (rank + 1) * 4 // world_size)
    # A still world of which each frame shows another part.
    ids = torch.arange(32 * 48, dtype=torch.int32).view(32, 48)
    seen = (torch.rand(4, 5, 4, 6, generator=rng) < 0.7).repeat_interleave(8, -1).repeat_interleave(8, -2)
    points = torch.where(seen, ids, -1)
    return Clip(frames=frames[own], labels=labels[own], points=(points[own], points[own, :, ::2, ::2]))


def first_gradients(kind: str) -> dict[str, torch.Tensor]:
    """Gradients and buffers of a first chunk by the names of players; weights and buffers after three steps."""
    device = open_device(DeviceConfig(precision="fp32", cpu=True))
    task = TASKS[kind]()
    for module in task.players.values():
        device.place(module).train()
    chunks = task.step(street_clip(device.rank, device.world_size), torch.Generator().manual_seed(1), 0)
    found = step(task, device, next(chunks))
    for losses in chunks:
        step(task, device, losses)
    for player, module in task.players.items():
        found |= {f"after.{player}.{name}": value.clone() for name, value in module.state_dict().items()}
    device.close()
    return found


def step(task: TeacherTask, device: Device, losses: Losses) -> dict[str, torch.Tensor]:
    """One step of plain descent; its gradients, and the buffers after it."""
    found, updates = {}, []
    for player, terms in losses.items():
        module = task.players[player]
        total = torch.stack([task.weights[player][name] * term for name, term in terms.items()]).sum()
        parameters = list(module.parameters())
        mean = device.average_gradients(player_gradients(total, parameters, retain_graph=True), parameters)
        named = zip(module.named_parameters(), mean, strict=True)
        for (name, parameter), gradient in named:
            if gradient is not None:
                found[f"{player}.{name}"] = gradient
                updates.append((parameter, gradient))
        found |= {f"{player}.{name}": buffer.clone() for name, buffer in module.named_buffers()}
    with torch.no_grad():
        for parameter, gradient in updates:
            parameter.sub_(gradient, alpha=1e-3)
    return found


@pytest.mark.parametrize("kind", TASKS)
def test_two_processes_find_the_first_gradients_of_one(tmp_path, kind):
    """And end with equal weights, running statistics and spectral vectors, though their clips differ."""
    alone = {name: value for name, value in first_gradients(kind).items() if not name.startswith("after.")}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(2):
        environment = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(str(p) for p in (Path(__file__).parent, Path(__file__).parents[1])),
        }
        command = [sys.executable, __file__, str(tmp_path / f"{rank}.pt"), kind]
        processes.append(subprocess.Popen(command, env=environment))
    assert [process.wait(120) for process in processes] == [0, 0]
    ends = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    after = [name for name in ends[0] if name.startswith("after.")]
    assert [name for name in after if not torch.equal(ends[0][name], ends[1][name])] == []
    assert any(name.endswith((".u", ".v")) for name in after) == (kind == "world")
    for end in ends:
        together = {name: value for name, value in end.items() if name not in after}
        assert together.keys() == alone.keys()
        players = {name.partition(".")[0] for name in alone}
        assert players >= {"generator", "image_discriminator"}
        assert any(player.startswith("temporal_discriminator") for player in players) == (kind == "street")
        for player in players:
            names = [name for name in alone if name.startswith(f"{player}.")]
            one, two = (torch.cat([found[name].double().flatten() for name in names]) for found in (alone, together))
            assert (one - two).norm() < 1e-3 * one.norm(), player
        for name, gradient in alone.items():
            scale = float(gradient.abs().max()) or 1.0
            difference = float((together[name] - gradient).abs().max()) / scale
            # Rounding turns signs over at the kinks of L1 and ReLU. A convolution before a batch norm has a bias
            # without effect: its gradient is rounding noise.
            assert difference < 1e-2 or scale < 1e-5, f"{name}: {difference:.1e} of {scale:.1e}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.save(first_gradients(sys.argv[2]), sys.argv[1])
