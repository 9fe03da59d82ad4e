import json
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from fastv2v.contracts import Task
from fastv2v.data.clip import Clip
from fastv2v.data.conditions import ConditionSpec
from fastv2v.device import DeviceConfig, open_device
from fastv2v.errors import ConfigError, DataError
from fastv2v.losses.objective import LossWeights, ObjectiveConfig, VideoObjective
from fastv2v.losses.rollout import RolloutConfig
from fastv2v.losses.total import weighted_total
from fastv2v.nn.composite import CompositeConfig, CompositeGenerator
from fastv2v.nn.discriminator import DiscriminatorConfig
from fastv2v.ops.flow import DISFlow
from fastv2v.run import open_run, read_metrics
from fastv2v.seed import generator_for
from fastv2v.train import TrainConfig, fit
from teachers.task import TeacherTask, TeacherTaskConfig

SPEC = ConditionSpec(class_names=("road", "car", "sky"), use_instances=True)
DISCRIMINATOR = DiscriminatorConfig(width=2, num_layers=1, num_scales=2, norm="instance")
OBJECTIVE = ObjectiveConfig(
    weights=LossWeights(perceptual=0.0, reconstruction=1.0, occlusion=1.0),
    image_discriminator=DISCRIMINATOR,
    temporal_discriminator=DISCRIMINATOR,
)
PLAYERS = ("generator", "image_discriminator", "temporal_discriminator_0")


def make_task(rollout=None, objective=OBJECTIVE, **settings):
    torch.manual_seed(0)
    config = CompositeConfig(**{"width": 2, "num_downsamples": 2, "num_blocks": 2, "norm": "instance", **settings})
    generator = CompositeGenerator(config, SPEC.channels, (1,))
    config = TeacherTaskConfig(objective=objective, rollout=rollout or RolloutConfig(chunk_frames=2))
    return TeacherTask(generator, SPEC, VideoObjective(objective, SPEC.channels, None, DISFlow("ultrafast")), config)


def make_clip(index=0, batch=2, frames=6, size=(16, 24)):
    rng = generator_for(3, index)
    labels = torch.randint(0, 3, (batch, frames, *size), generator=rng, dtype=torch.uint8)
    colours = torch.tensor([[-0.8, -0.8, -0.6], [0.9, -0.5, -0.5], [0.2, 0.4, 0.9]])
    return Clip(frames=colours[labels.long()].movedim(-1, 2), labels=labels, instances=labels.int())


def clips(start):
    while True:
        yield make_clip(start)
        start += 1


def snapshot(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def train(task, folder, steps=2, **config):
    with open_run(folder, {}) as run:
        return fit(
            task,
            clips,
            run,
            TrainConfig(steps=steps, eval_every=1, sample_every=steps, log_every=1, **config),
            open_device(DeviceConfig(cpu=True, precision="fp32")),
            sample_clip=make_clip(90, batch=1),
            eval_clips=[make_clip(91, batch=1)],
        )


def test_training_moves_every_player_and_reports_every_term(tmp_path):
    task = make_task()
    before = {name: snapshot(module) for name, module in task.players.items()}
    result = train(task, tmp_path / "run")
    assert result.step == 2
    assert result.metrics["psnr"] > 0
    for name, module in task.players.items():
        moved = [not torch.equal(value, before[name][key]) for key, value in module.named_parameters()]
        assert sum(moved) > len(moved) * 0.7  # biases before an instance norm stay
    rows = [row for row in read_metrics(tmp_path / "run") if row["kind"] == "train"]
    for player, weights in task.weights.items():
        assert {f"{player}/{term}" for term in weights} <= rows[-1].keys()
    assert list((tmp_path / "run/samples").glob("*.png"))


def test_training_is_repeatable(tmp_path):
    ends = []
    for name in ("a", "b"):
        task = make_task()
        train(task, tmp_path / name)
        ends.append(snapshot(task.generator))
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())


def test_a_few_steps_on_one_clip_lower_its_loss():
    task = make_task(RolloutConfig(start_from_nothing=0, start_from_one=0), use_flow=False)
    clip, optimizer = make_clip(batch=1), torch.optim.Adam(task.generator.parameters(), 1e-2)
    weights, history = {"reconstruction": 1.0}, []
    for _ in range(12):
        for losses in task.step(clip, torch.Generator(), 0):
            loss = weighted_total({"reconstruction": losses["generator"]["reconstruction"]}, weights)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.8 * history[0]


def test_it_is_a_task_whose_players_share_names_with_their_weights():
    task = make_task()
    assert tuple(task.players) == tuple(task.weights) == PLAYERS
    assert isinstance(task.players, dict)
    _: Task = task


@pytest.mark.parametrize(("chunk_frames", "expected"), [(0, 1), (1, 4), (2, 2), (3, 2)])
def test_every_chunk_gives_every_term(chunk_frames, expected):
    task = make_task(RolloutConfig(chunk_frames=chunk_frames))
    chunks = list(task.step(make_clip(), torch.Generator().manual_seed(0), 0))
    assert len(chunks) == expected
    for losses in chunks:
        assert {p: set(terms) for p, terms in losses.items()} == {p: set(w) for p, w in task.weights.items()}
        assert all(term.isfinite() for terms in losses.values() for term in terms.values())


def test_past_frames_reach_the_temporal_discriminator_of_the_next_chunk():
    task = make_task(RolloutConfig(chunk_frames=1))
    chunks = list(task.step(make_clip(), torch.Generator().manual_seed(0), 0))
    judged = [chunk["temporal_discriminator_0"]["real"].requires_grad for chunk in chunks]
    assert judged == [False, False, True, True]  # the third made frame completes the first three


def test_the_same_generator_state_gives_the_same_losses():
    task = make_task()
    first, second = (list(task.step(make_clip(), torch.Generator().manual_seed(5), 0)) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert all(torch.equal(a[player][term], b[player][term]) for player in PLAYERS for term in a[player])


def test_a_cold_start_teaches_no_motion_in_its_first_frame():
    task = make_task(RolloutConfig(chunk_frames=1, start_from_nothing=1, start_from_one=0))
    first, second, *_ = task.step(make_clip(), torch.Generator(), 0)
    for name in ("flow", "flow_warp", "warp", "occlusion"):
        assert first["generator"][name].item() == 0
    assert second["generator"]["flow_warp"].item() > 0


def test_sample_and_evaluation_roll_out_from_the_first_real_frame():
    task = make_task()
    task.generator.eval()
    clip = make_clip()
    rows = task.sample(clip)
    assert torch.equal(rows["real"], clip.frames)
    assert rows["teacher"].shape == clip.frames.shape
    assert_close(rows["teacher"][:, 0], clip.frames[:, 0])
    changed = replace(clip, frames=torch.cat([clip.frames[:, :1], 0 * clip.frames[:, 1:]], dim=1))
    assert torch.equal(task.sample(changed)["teacher"], rows["teacher"])  # later real frames have no influence
    assert json.loads(json.dumps(task.evaluate(clip)))["psnr"] > 0


@pytest.mark.parametrize("frames", [1, 2])
def test_clips_that_are_too_short_are_refused(frames):
    with pytest.raises(DataError, match=r"at least \d frames"):
        next(make_task().step(make_clip(frames=frames), torch.Generator(), 0))


class TestLeadIn:
    def steps(self, lead_in, seed, frames=8):
        """Frames the generator made for one clip, by the value of their condition, and the number of chunks."""
        task = make_task(RolloutConfig(chunk_frames=2, start_from_nothing=0, start_from_one=0))
        task.config = replace(task.config, lead_in=lead_in)
        made, step = [], task.generator.step
        task.generator.step = lambda condition, history: (
            made.append(torch.is_grad_enabled()),
            step(condition, history),
        )[1]
        chunks = list(task.step(make_clip(frames=frames, batch=1), torch.Generator().manual_seed(seed), 0))
        return made, len(chunks)

    def test_frames_before_those_that_are_trained_on_are_made_without_gradients(self):
        leads = set()
        for seed in range(12):
            made, chunks = self.steps(3, seed)
            lead = made.count(False)
            assert made == [False] * lead + [True] * 3  # 8 frames, 2 of history, at most 3 ahead
            assert chunks == 2
            leads.add(lead)
        assert leads == {0, 1, 2, 3}

    def test_none_is_the_plain_task(self):
        made, chunks = self.steps(0, 0)
        assert made == [True] * 6 and chunks == 3

    def test_a_short_clip_keeps_one_frame_to_train_on(self):
        made, _ = self.steps(50, 1, frames=4)
        assert made[-1] and len(made) - made.count(False) == 1

    def test_nonsense_is_refused(self):
        with pytest.raises(ConfigError, match="lead_in must be at least 0"):
            TeacherTaskConfig(lead_in=-1)
