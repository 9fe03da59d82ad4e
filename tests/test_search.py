import itertools
import json
import re
from dataclasses import replace
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from benchmarks.cost import step_cost
from distill.search import Candidate, LatencyBudget, MacBudget, SearchConfig, pareto_front, search
from distill.spatial import SpatialConfig, SpatialTask
from distill.supernet import KeyClip, SlimView, SuperTask, extract, judge, recalibrate
from distill.terms import DistillWeights
from fastv2v.architecture import load_trained
from fastv2v.checkpoint import find_checkpoint, load_tensors, weights_file
from fastv2v.cli import main
from fastv2v.config import to_dict
from fastv2v.contracts import History
from fastv2v.data.clip import Clip
from fastv2v.data.conditions import ConditionSpec
from fastv2v.device import DeviceConfig, open_device
from fastv2v.errors import CheckpointError, ConfigError, DataError
from fastv2v.losses.objective import LossWeights, ObjectiveConfig, VideoObjective
from fastv2v.losses.rollout import RolloutConfig, run_ahead
from fastv2v.nn.slim import SlimConfig, SlimGenerator
from fastv2v.render import render_clip
from fastv2v.run import open_run
from fastv2v.seed import generator_for
from fastv2v.train import TrainConfig, fit
from students import presets
from students.inherit import order_channels
from students.space import SearchSpace, describe_student, slim_macs

LARGE = SlimConfig(widths=(8, 12), depths=(1, 2), up_depths=(1,), refine_width=4, input_scale=2)
SMALL = replace(LARGE, widths=(4, 4), depths=(0, 1), up_depths=(0,), refine_width=0)
SPACE = SearchSpace(largest=LARGE, smallest=SMALL)
MIDDLE = replace(LARGE, widths=(4, 8), depths=(1, 1), up_depths=(0,), refine_width=4)
SIZE = (32, 32)


def macs(config):
    return slim_macs(config, 3, SIZE)


def inputs(seed=0):
    rng = torch.Generator().manual_seed(seed)
    past = torch.rand(1, 2, 3, *SIZE, generator=rng), torch.rand(1, 2, 3, *SIZE, generator=rng) * 2 - 1
    return torch.rand(1, 3, *SIZE, generator=rng), History(*past, torch.ones(1))


def super_network(config=LARGE):
    torch.manual_seed(0)
    return SlimGenerator(config, 3, (1,))


def key_clips(count=2, frames=4):
    rng = torch.Generator().manual_seed(1)
    shape = (1, frames, 3, *SIZE)
    return [KeyClip(*(torch.rand(shape, generator=rng) * 2 - 1 for _ in range(3))) for _ in range(count)]


class TestSpace:
    def test_it_counts_and_holds_what_lies_between_its_ends(self):
        # widths 4 8, 4 8 12; depths 0 1, 1 2; up 0 1; refine 0 4
        assert SPACE.num_students == 2 * 3 * 2 * 2 * 2 * 2
        assert LARGE in SPACE and SMALL in SPACE and MIDDLE in SPACE
        assert replace(MIDDLE, widths=(5, 8)) not in SPACE
        assert replace(MIDDLE, widths=(4, 16)) not in SPACE
        assert replace(MIDDLE, block="separable") not in SPACE
        rng = generator_for(0)
        drawn = {SPACE.draw(rng) for _ in range(600)}
        assert all(config in SPACE for config in drawn) and len(drawn) > 90

    def test_every_slim_preset_lies_in_the_usual_space(self):
        for name in ("base", "small", "tiny", "micro", "nano", "pico"):
            assert presets.STUDENTS[name]() in SearchSpace()

    def test_changes_stay_inside_and_come_from_the_generator(self):
        rng = generator_for(1)
        assert SPACE.mutate(MIDDLE, 0.0, rng) == MIDDLE
        children = {SPACE.mutate(MIDDLE, 0.5, rng) for _ in range(50)}
        assert len(children) > 5 and all(child in SPACE for child in children)
        mixed = {SPACE.cross(SMALL, LARGE, rng) for _ in range(50)}
        assert all({*child.widths} <= {4, 8, 12} and child in SPACE for child in mixed)
        assert SPACE.draw(generator_for(3)) == SPACE.draw(generator_for(3))

    @given(st.integers(0, 1000), st.floats(0.0, 1.2))
    @settings(max_examples=30, deadline=None)
    def test_a_filled_student_uses_its_budget_up(self, seed, share):
        rng = generator_for(seed)
        limit = share * macs(LARGE)
        made = SPACE.fill(SPACE.draw(rng), lambda config: macs(config) <= limit, rng)
        assert made in SPACE
        if macs(SMALL) > limit:
            assert made == SMALL
            return
        assert macs(made) <= limit
        for name, index in (("widths", 0), ("widths", 1), ("depths", 0), ("depths", 1)):
            more = list(getattr(made, name))
            more[index] += 4 if name == "widths" else 1
            grown = replace(made, **{name: tuple(more)})
            assert grown not in SPACE or macs(grown) > limit

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"smallest": replace(SMALL, block="separable")}, "do not fit across block: it is separable"),
            ({"smallest": replace(SMALL, embedding=2)}, "do not fit across embedding"),
            ({"smallest": LARGE, "largest": SMALL}, r"exceeds the largest in widths: \(8, 12\) and \(4, 4\)"),
            ({"smallest": SlimConfig(input_scale=2, widths=(4,), depths=(1,), up_depths=())}, "has 1 sizes"),
            ({"width_step": 0}, "width_step must be at least 1"),
        ],
    )
    def test_nonsense_is_refused(self, wrong, message):
        with pytest.raises(ConfigError, match=message):
            SearchSpace(**{"largest": LARGE, "smallest": SMALL, **wrong})

    @pytest.mark.parametrize(
        ("block", "up"), [("residual", "shuffle"), ("inverted", "resize"), ("separable", "transposed")]
    )
    def test_the_closed_form_of_the_cost_is_what_is_counted(self, block, up):
        rng = generator_for(2)
        for more in ({}, {"shared_decoder": False, "entry_kernel": 3}, {"use_flow": False, "head_kernel": 1}):
            config = replace(SPACE.draw(rng), block=block, up=up, input_scale=4, **more)
            counted = step_cost(SlimGenerator(config, 5), 5, (64, 96), compute=True).keyframe.true_macs
            assert slim_macs(config, 5, (64, 96)) == counted

    def test_a_shown_frame_costs_what_is_counted(self):
        student = SlimGenerator(LARGE, 5, shown_channels=(2, 3, 4))
        counted = step_cost(student, 5, (64, 96), compute=True).keyframe.true_macs
        assert slim_macs(LARGE, 5, (64, 96), num_shown=3) == counted

    def test_a_student_is_described_in_a_few_words(self):
        assert describe_student(MIDDLE) == "4-8 1/1 0 +4"
        assert describe_student(SMALL) == "4-4 0/1 0"


class TestViews:
    def test_the_view_of_the_largest_is_the_super_network(self):
        whole = super_network().train()
        assert torch.equal(SlimView(whole, LARGE).step(*inputs())[0].frame, whole.step(*inputs())[0].frame)

    def test_gradients_reach_the_leading_weights_and_no_others(self):
        whole = super_network()
        SlimView(whole, MIDDLE).step(*inputs())[0].frame.square().mean().backward()
        gradient = whole.encoder.downs[0][0].weight.grad
        assert gradient[:8, :4].all() and not gradient[8:].any() and not gradient[:, 4:].any()
        assert whole.bottom[0].branch[1].weight.grad is not None
        assert whole.bottom[1].branch[1].weight.grad is None  # a block that MIDDLE does not have
        assert all(value.isfinite().all() for value in (p.grad for p in whole.parameters()) if value is not None)

    def test_a_view_follows_the_weights_and_keeps_nothing(self):
        whole, state = super_network(), torch.get_rng_state()
        view = SlimView(whole, MIDDLE)
        before = view.step(*inputs())[0].frame
        assert torch.equal(torch.get_rng_state(), state)  # or a resumed run would draw other numbers
        assert torch.equal(view.step(*inputs())[0].frame, before)
        with torch.no_grad():
            whole.head.weight.mul_(2)
        assert not torch.equal(view.step(*inputs())[0].frame, before)
        assert not any(buffer.any() for name, buffer in whole.named_buffers() if "running_mean" in name)

    def test_a_view_made_to_lead_in_still_goes_by_the_statistics_of_its_frames(self):
        view, (condition, history) = SlimView(super_network(), MIDDLE), inputs()
        led = run_ahead(view, condition[:, None], history)
        assert torch.equal(led.frames[:, -1], view.step(condition, history)[0].frame)

    def test_what_is_extracted_draws_as_the_view_does(self):
        whole = super_network()
        student = extract(whole, MIDDLE)
        assert torch.equal(student.train().step(*inputs())[0].frame, SlimView(whole, MIDDLE).step(*inputs())[0].frame)
        assert student.head.weight.data_ptr() != whole.head.weight.data_ptr()
        with pytest.raises(ConfigError, match="wider than its source"):
            extract(whole, replace(LARGE, widths=(8, 16)))

    def test_statistics_are_the_mean_over_all_steps_of_the_rollouts(self):
        student, clips = extract(super_network(), MIDDLE), key_clips()
        seen = []
        norm = student.encoder.entry[1]
        hook = norm.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
        recalibrate(student, clips)
        hook.remove()
        assert len(seen) == 6 and not student.training and norm.momentum == 0.1
        assert_close(norm.running_mean, torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0))
        assert_close(norm.running_var, torch.stack([x.var((0, 2, 3)) for x in seen]).mean(0))
        before = norm.running_mean.clone()
        recalibrate(student, clips)
        assert torch.equal(norm.running_mean, before)
        with pytest.raises(DataError, match="no clip has a frame to synthesise"):
            recalibrate(student, key_clips(frames=1))

    def test_on_one_frame_the_recalibrated_student_draws_as_in_training(self):
        student, (clip,) = extract(super_network(), MIDDLE), key_clips(count=1, frames=2)
        student.train()
        drawn = render_clip(student, clip.conditions, clip.real[:, :1])
        recalibrate(student, [clip])
        assert_close(
            render_clip(student, clip.conditions, clip.real[:, :1]), drawn, atol=2e-2, rtol=0
        )  # the variance kept is the unbiased one

    def test_quality_is_the_mean_distance_to_the_real_and_to_the_teachers_frames(self):
        student, clips = extract(super_network(), SMALL).eval(), key_clips()
        made = [render_clip(student, clip.conditions, clip.real[:, :1]) for clip in clips]
        perfect = judge(student, [clip._replace(teacher=frames) for clip, frames in zip(clips, made, strict=True)])
        assert perfect.teacher_psnr == 100 and perfect.psnr < 20


def super_task(whole):
    silent = ObjectiveConfig(
        weights=LossWeights(**{**dict.fromkeys(LossWeights.__dataclass_fields__, 0.0), "reconstruction": 1.0})
    )
    objective = VideoObjective(silent, 3, None, lambda a, _b: (torch.zeros_like(a[:, :2]), torch.ones_like(a[:, :1])))
    config = SpatialConfig(weights=DistillWeights.none(), objective=silent, rollout=RolloutConfig())
    spec = ConditionSpec(kind="maps", map_channels=3)
    return SuperTask(whole, SPACE, lambda view: SpatialTask(view, None, spec, objective, config))


def random_clip():
    rng = torch.Generator().manual_seed(4)
    return Clip(
        frames=torch.rand(1, 4, 3, *SIZE, generator=rng) * 2 - 1, maps=torch.rand(1, 4, 3, *SIZE, generator=rng)
    )


class TestSuperTask:
    def test_turns_are_the_largest_the_smallest_and_two_by_chance(self):
        whole = super_network()
        task, clip, spare = super_task(whole), random_clip(), whole.bottom[1].branch[1].weight

        def run(at, seed=0):
            losses = [row["generator"] for row in task.step(clip, generator_for(seed), at)]
            return torch.stack([sum(terms.values()) for terms in losses]).sum()

        reached = [torch.autograd.grad(run(at), spare, allow_unused=True)[0] for at in range(2)]
        assert reached[0] is not None and reached[1] is None
        assert run(2) == run(2) == run(6)
        assert len({run(3, seed).item() for seed in range(4)}) > 2

    def test_it_trains_the_super_network_and_shows_both_ends(self):
        whole = super_network()
        task = super_task(whole)
        assert task.players == {"generator": whole}
        assert set(task.sample(random_clip())) == {"real", "student", "smallest"}
        found = task.evaluate(random_clip())
        assert found["psnr"] == pytest.approx((found["psnr_largest"] + found["psnr_smallest"]) / 2)
        with pytest.raises(ConfigError, match="must be the largest student"):
            super_task(super_network(MIDDLE))

    def test_a_stopped_training_ends_with_the_same_weights(self, tmp_path):
        config = TrainConfig(steps=7, checkpoint_every=1, sample_every=0, eval_every=0)

        def train(folder, stop=None):
            def batches(first):
                for number in itertools.count(first):
                    if number == stop:
                        raise KeyboardInterrupt
                    yield random_clip()

            whole = super_network()
            with open_run(tmp_path / folder, {}) as run:
                fit(super_task(whole), batches, run, config, open_device(DeviceConfig(cpu=True, precision="fp32")))
            return whole.state_dict()

        with pytest.raises(KeyboardInterrupt):
            train("stopped", stop=4)
        resumed, whole = train("stopped"), train("whole")
        assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
        assert not torch.equal(whole["head.weight"], super_network().head.weight)


def candidate(config, psnr, teacher_psnr=None):
    return Candidate(config=config, macs=macs(config), psnr=psnr, teacher_psnr=psnr if teacher_psnr is None else 0.0)


def rate(config):
    """Width of the second size is all that counts; the first one harms a little."""
    return candidate(config, config.widths[1] - 0.1 * config.widths[0])


WIDE = SearchSpace(largest=replace(LARGE, widths=(16, 32)), smallest=SMALL)


def found(limit, known=(), count=12, seed=0, **config):
    budget = MacBudget(limit, WIDE, macs)
    chosen = SearchConfig(**{"candidates": count, "population": 5, "parents": 2, "mutation": 0.3, **config})
    return list(search(WIDE, budget, chosen, rate, seed=seed, known=known))


class TestSearch:
    def test_candidates_are_new_within_the_budget_and_get_better(self):
        limit = 0.6 * macs(WIDE.largest)
        made = found(limit, count=16)
        assert len({c.config for c in made}) == len(made) == 16
        assert all(c.macs <= limit and c.config in WIDE for c in made)
        scores = [c.score for c in made]
        assert max(scores[5:]) > max(scores[:5]) and np.mean(scores[5:]) > np.mean(scores[:5])

    def test_every_second_one_by_chance_leaves_a_part_of_the_budget(self):
        most = macs(WIDE.largest)
        made = found(most, count=6, population=6)
        assert made[0].config == WIDE.largest and all(0.2 * most < c.macs < most for c in made[1:])

    def test_a_search_goes_on_as_if_it_had_not_been_stopped(self):
        whole = found(0.5 * macs(WIDE.largest))
        assert [*whole[:7], *found(0.5 * macs(WIDE.largest), known=whole[:7])] == whole
        assert found(0.5 * macs(WIDE.largest), known=whole) == []
        assert found(0.5 * macs(WIDE.largest), seed=1) != whole

    def test_given_students_come_first_and_a_space_may_be_used_up(self):
        budget = MacBudget(macs(SMALL), SPACE, macs)
        made = list(search(SPACE, budget, SearchConfig(), rate, seed=0, seeds=[SMALL]))
        assert [c.config for c in made] == [SMALL]

    def test_a_budget_nothing_meets_names_the_nearest(self):
        with pytest.raises(ConfigError, match=r"no student .* budget of 1e-06 GMACs .* 4-4 0/1 0, takes 0.00\d+ GMACs"):
            found(1e3)
        with pytest.raises(ConfigError, match=r"budget of 3 ms .* takes 5 ms"):
            LatencyBudget(3.0, SPACE, macs, lambda config: 5.0)

    @pytest.mark.parametrize("power", [0.7, 1.0, 1.4])
    def test_measured_times_decide_where_they_do_not_follow_the_count(self, power):
        def measure(config):
            return 2 + (macs(config) / 1e5) ** power

        limit = measure(SMALL) + 0.4 * (measure(LARGE) - measure(SMALL))
        budget, rng = LatencyBudget(limit, SPACE, macs, measure), generator_for(0)
        taken = [budget.price(budget.settle(SPACE.draw(rng), 1.0, rng)) for _ in range(12)]
        assert max(taken) <= limit and max(taken) > 0.6 * limit
        assert budget.settle(LARGE, 1e-3, rng) == SMALL
        assert budget.show(12.345) == "12.3 ms"

    def test_the_front_holds_what_nothing_cheaper_beats(self):
        configs = [SMALL, replace(SMALL, widths=(4, 8)), MIDDLE, LARGE]
        rated = [candidate(c, psnr) for c, psnr in zip(configs, (20.0, 19.0, 21.0, 21.0), strict=True)]
        assert pareto_front(rated, lambda c: c.macs) == [rated[0], rated[2]]
        assert rated[1].score == 19

    @pytest.mark.parametrize("wrong", [{"candidates": 0}, {"parents": 0}, {"population": 0}, {"mutation": 0.0}])
    def test_nonsense_is_refused(self, wrong):
        with pytest.raises(ConfigError):
            SearchConfig(**wrong)


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    """A data set of coloured blocks that move, and a teacher that has seen nothing of it."""
    root = tmp_path_factory.mktemp("search")
    rng = np.random.default_rng(0)
    for phase, count in (("train", 2), ("test", 1)):
        for s in range(count):
            blocks = rng.integers(0, 3, (8, 24)).repeat(4, 0).repeat(4, 1).astype(np.uint8)
            for t in range(20):
                labels = blocks[:, t : t + 64]
                frame = np.stack([labels * 90, 255 - labels * 60, labels * 40 + 50], -1)
                for kind, picture in (("A", labels), ("B", frame)):
                    path = root / "data" / f"{phase}_{kind}" / f"seq{s}" / f"{t:03d}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    assert cv2.imwrite(str(path), picture)
    given = ["--data", str(root / "data"), "--quiet", "--recipe.data.folder.geometry.size", "32", "64"]
    teacher = ["--run", str(root / "teacher"), "--recipe.train.steps", "0", "--recipe.train.max-minutes", "None"]
    assert main(["train-teacher", "demo", *given, *teacher, "--recipe.data.sampling.num-frames", "4"]) == 0
    return root


def command(root, run, *more, budget=("--budget-gmacs", "0.0008")):
    settings = {
        **{f"recipe.{kind}.steps": "2" for kind in ("train", "finetune-train")},
        **{f"recipe.{kind}.max-minutes": "None" for kind in ("train", "finetune-train")},
        **{f"recipe.{kind}.{often}-every": "0" for kind in ("train", "finetune-train") for often in ("eval", "sample")},
        # The networks that judge take most of the time and none of the decisions.
        **{f"recipe.{kind}.objective.weights.perceptual": "0" for kind in ("task", "finetune")},
        **{f"recipe.{kind}.objective.weights.temporal-{term}": "0" for kind in ("task", "finetune") for term in TERMS},
        "recipe.data.sampling.num-frames": "4",
        "recipe.data.batch-size": "1",
        "recipe.clip-frames": "9",
        "select-frames": "9",
        "candidates": "4",
        "calibration-clips": "1",
    }
    given = ["--data", str(root / "data"), "--teacher", str(root / "teacher"), "--run", str(run), "--quiet"]
    size = ["--recipe.data.folder.geometry.size", "32", "64"]
    space = ["--space.largest.widths", "8", "12", "16", "--space.smallest.widths", "4", "4", "4"]
    options = [word for name, value in settings.items() for word in (f"--{name}", value)]
    return ["search", "demo:nano", *given, *budget, *size, *space, *options, *more]


TERMS = ("gan", "feature-matching")


@pytest.fixture(scope="module")
def searched(line):
    """The folder of a search that ran through."""
    assert main(command(line, line / "a", "--json", str(line / "a.json"))) == 0
    return line / "a"


class TestCommand:
    def test_a_search_finds_a_student_and_tells_of_all(self, line, searched):
        summary = json.loads((line / "a.json").read_text())
        assert len(summary["candidates"]) == 4 and all(row["gmacs"] <= 0.0008 for row in summary["candidates"])
        best = max(summary["candidates"], key=lambda row: row["score"])
        assert best["mark"] == "best" and best["gmacs"] == summary["gmacs"] and best["ms"] is None
        picture = ElementTree.parse(searched / "pareto.svg").getroot()
        assert len(picture.findall("{http://www.w3.org/2000/svg}circle")) == 4
        student, found_one = (load_trained(searched / name) for name in ("student", "found"))
        assert to_dict(student.generator.config) == summary["config"] == to_dict(found_one.generator.config)
        assert student.architecture.stage == "spatial" and student.step == 2 and found_one.step == 0
        channels = student.architecture.condition.channels
        cost = step_cost(student.generator, channels, (32, 64), compute=True).keyframe.true_macs
        assert cost / 1e9 == summary["gmacs"]
        with pytest.raises(CheckpointError, match="super_network"):  # its running statistics are nobody's
            load_trained(searched / "super")

    def test_an_interrupted_search_resumes_to_the_same(self, line, searched, monkeypatch):
        calls = []

        def interrupted(*args):
            calls.append(args)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return judge(*args)

        monkeypatch.setattr("fastv2v.commands.search.judge", interrupted)
        assert main(command(line, line / "b")) == 130
        monkeypatch.undo()
        assert len(json.loads((line / "b" / "candidates.json").read_text())["candidates"]) == 2
        assert main(command(line, line / "b")) == 0
        assert (searched / "candidates.json").read_text() == (line / "b" / "candidates.json").read_text()
        ends = [load_trained(run / "student").generator.state_dict() for run in (searched, line / "b")]
        assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())

    def test_another_budget_takes_the_super_network_as_it_is(self, line, searched, capsys, monkeypatch):
        monkeypatch.setattr("fastv2v.commands.search._time_keyframe", lambda shop, config: shop.macs(config) / 1e5)
        other = {"budget": ("--budget-ms", "8")}
        assert main(command(line, searched, **other)) == 2
        assert "is of another search (other budget_gmacs, budget_ms)" in capsys.readouterr().err
        assert main(command(line, searched, "--recipe.train.seed", "5")) == 2
        assert "is of another search (other seed)" in capsys.readouterr().err
        assert main(command(line, line / "data")) == 2
        assert "data holds" in (said := capsys.readouterr().err) and "and no search" in said
        taught = ["--out", str(line / "taught"), "--teacher", str(line / "teacher"), "--data", str(line / "data")]
        assert main(["precompute", *taught, "--quiet"]) == 0
        capsys.readouterr()
        lent = ["--super-run", str(searched / "super"), "--candidates", "2", "--taught", str(line / "taught")]
        assert main(command(line, line / "d", *lent, **other)) == 0
        assert not (line / "d" / "super").exists()
        told = capsys.readouterr().out.splitlines()
        assert "ms / keyframe" in told[0] and 0 < json.loads(told[-1])["ms"] <= 8
        assert main(command(line, line / "e", *lent, "--select-frames", "8")) == 2
        assert "is no super-network of this search (other held_out)" in capsys.readouterr().err

    def test_a_super_network_may_start_from_a_trained_one_in_the_order_of_its_channels(self, line, searched, capsys):
        wide = line / "wide"
        given = ["--data", str(line / "data"), "--teacher", str(line / "teacher"), "--run", str(wide), "--quiet"]
        shape = ["--recipe.student.widths", "8", "12", "16", "--recipe.data.folder.geometry.size", "32", "64"]
        short = ["--recipe.train.steps", "0", "--recipe.data.sampling.num-frames", "4"]
        assert main(["train-skd", "demo:nano", *given, *shape, *short, "--recipe.train.max-minutes", "None"]) == 0
        none = [word for kind in ("train", "finetune-train") for word in (f"--recipe.{kind}.steps", "0")]
        assert main(command(line, line / "f", "--init", str(wide), "--candidates", "1", *none)) == 0
        source = load_trained(wide).generator
        started = load_tensors(weights_file(find_checkpoint(line / "f" / "super")))
        assert not torch.equal(started["head.weight"], source.head.weight)
        order_channels(source)
        assert all(torch.equal(value, source.state_dict()[name]) for name, value in started.items())
        assert main(command(line, line / "g", "--init", str(searched / "student"))) == 2
        assert "inherit from a generator with as many sizes" in capsys.readouterr().err

    def test_train_skd_starts_from_the_teachers_most_important_channels(self, line, capsys):
        given = ["--data", str(line / "data"), "--teacher", str(line / "teacher"), "--quiet"]
        short = ["--recipe.train.steps", "0", "--recipe.train.max-minutes", "None"]
        size = ["--recipe.data.folder.geometry.size", "32", "64", "--recipe.data.sampling.num-frames", "4"]
        begin = ["--inherit", str(line / "teacher"), "--run", str(line / "heir")]
        assert main(["train-skd", "demo:demo", *given, *short, *size, *begin]) == 0
        student, teacher = (load_trained(line / name).generator for name in ("heir", "teacher"))
        assert all(torch.isin(p, teacher.state_dict()[name]).all() for name, p in student.state_dict().items())
        capsys.readouterr()
        assert main(["train-skd", "demo:pico", *given, *short, *size, *begin[:2], "--run", str(line / "no")]) == 2
        assert "a slim student cannot inherit from a composite generator" in capsys.readouterr().err

    def test_keyframes_are_timed_in_the_engine(self, line, capsys):
        assert main(command(line, line / "slow", "--repeats", "3", budget=("--budget-ms", "0.001"))) == 2
        said = capsys.readouterr().err
        assert float(re.search(r"budget of 0.001 ms .* takes ([0-9.]+) ms;", said).group(1)) > 0.001
        assert not (line / "slow").exists()

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["--budget-gmacs", "0.0001"], "budget of 0.0001 GMACs per keyframe: the cheapest, 4-4-4 0/1/2 0/1, takes"),
            (["--budget-ms", "3"], "give one budget"),
            (["--budget-gmacs", "None"], "a search needs a budget"),
            (["--budget-gmacs", "-1"], "budget_gmacs must be a positive number"),
            (["--select-frames", "16"], "the longest training sequence has 20 frames; a search needs 25, 16 of them"),
            (["--select-frames", "4"], r"select_frames .4. must exceed the gap .4."),
            (["--recipe.clip-frames", "5"], "too short for keyframes 3 frames apart"),
            (["--space.smallest.widths", "4", "4", "20"], "smallest student exceeds the largest in widths"),
            (["--recipe.task.weights.kd-alignment", "1"], "no features of its own to distil"),
            (["--recipe.data.folder.geometry.size", "36", "64"], "do not suit the students"),
        ],
    )
    def test_what_cannot_be_is_refused_in_one_sentence_before_any_work(self, line, capsys, more, message):
        capsys.readouterr()
        try:
            status = main([*command(line, line / "refused"), *more])
        except SystemExit as stop:  # from the command line itself
            status = stop.code
        assert status == 2
        assert re.search(message, " ".join(capsys.readouterr().err.split()))
        assert not (line / "refused").exists()

    def test_an_unknown_largest_student_is_refused(self, line, capsys):
        assert main(["search", "demo:published"]) == 2
        assert "no student 'published' can be a super-network; there are base, small" in capsys.readouterr().err
