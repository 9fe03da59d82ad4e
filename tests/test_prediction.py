"""Prediction of future label maps, and of the frames a teacher draws from them."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from fastv2v.architecture import Architecture, architecture_dict, load_trained
from fastv2v.checkpoint import save_checkpoint
from fastv2v.cli import main
from fastv2v.commands.predict import Predict, Prediction, Tally, table, write_label
from fastv2v.config import from_dict, to_dict
from fastv2v.contracts import Task
from fastv2v.data.clip import Clip
from fastv2v.data.conditions import ConditionSpec
from fastv2v.data.folder import FolderConfig
from fastv2v.data.transforms import GeometryConfig
from fastv2v.errors import CheckpointError, ConfigError, DataError, ShapeError
from fastv2v.losses.total import weighted_total
from fastv2v.nn.composite import CompositeConfig
from fastv2v.ops.flow import DISFlow
from fastv2v.recipe import UNSET_ROOT
from fastv2v.seed import generator_for
from fastv2v.video import read_video
from teachers.prediction import (
    LabelPredictor,
    PredictionTask,
    PredictionTaskConfig,
    PredictorArchitecture,
    PredictorConfig,
    blend_labels,
    class_probabilities,
    confusion,
    label_cross_entropy,
    label_score,
    load_predictor,
    predict_labels,
)
from teachers.prediction_presets import PRESETS

CLASSES = ("road", "car", "sky")
PALETTE = ((128, 64, 128), (0, 0, 142), (70, 130, 180))
SPEC = ConditionSpec(class_names=CLASSES, ignore_id=255)
TINY = PredictorConfig(history_length=2, width=4, num_downsamples=2, num_blocks=2, edge_kernel=3)


def make_predictor(config=TINY, classes=3):
    torch.manual_seed(0)
    return LabelPredictor(config, classes)


def make_task(predictor=None, **config):
    return PredictionTask(predictor or make_predictor(), SPEC, PALETTE, DISFlow("fast"), PredictionTaskConfig(**config))


def make_clip(index=0, batch=2, frames=6, size=(32, 64), speed=3):
    """Blocks of classes that move to the right."""
    rng = generator_for(7, index)
    height, width = size
    wide = width + speed * frames
    blocks = torch.randint(0, 3, (batch, height // 8, wide // 8 + 1), generator=rng)
    scene = blocks.repeat_interleave(8, 1).repeat_interleave(8, 2)
    starts = [speed * (frames - 1 - t) for t in range(frames)]
    labels = torch.stack([scene[:, :, x : x + width] for x in starts], dim=1)
    colours = torch.tensor(PALETTE) / 127.5 - 1
    return Clip(frames=colours[labels].movedim(-1, 2), labels=labels.to(torch.uint8))


def past_of(clip, count=2):
    return class_probabilities(clip.labels[:, :count], 3)


class TestClassProbabilities:
    def test_are_one_hot_where_the_class_is_known_and_even_elsewhere(self):
        made = class_probabilities(torch.tensor([[[0, 2, 255]]], dtype=torch.uint8), 3)
        assert_close(made[0, :, 0], torch.tensor([[1.0, 0, 1 / 3], [0, 0, 1 / 3], [0, 1, 1 / 3]]))


class TestLabelPredictor:
    def test_probabilities_sum_to_one_over_a_whole_rollout(self):
        clip = make_clip()
        clip = replace(clip, labels=clip.labels.clone())
        clip.labels[:, :, :4] = 255
        for output in predict_labels(make_predictor().train(), past_of(clip), 4):
            assert output.probabilities.shape == (2, 3, 32, 64)
            assert output.probabilities.min() >= 0
            assert_close(output.probabilities.sum(1), torch.ones(2, 32, 64))

    def test_zero_flow_and_no_occlusion_copy_the_last_map(self):
        hallucinated, previous = torch.rand(2, 1, 3, 8, 8).softmax(dim=2)
        zero = torch.zeros(1, 1, 8, 8)
        copied = blend_labels(hallucinated, previous, torch.zeros(1, 2, 8, 8), zero)
        assert torch.allclose(copied.probabilities, previous, atol=1e-6)
        drawn = blend_labels(hallucinated, previous, torch.zeros(1, 2, 8, 8), zero + 1)
        assert torch.equal(drawn.probabilities, hallucinated)

    def test_flow_points_to_the_previous_map(self):
        previous = class_probabilities(torch.tensor([[[0, 1, 2, 2]] * 4]), 3)
        flow = torch.zeros(1, 2, 4, 4)
        flow[:, 0] = 1
        moved = blend_labels(previous, previous, flow, torch.zeros(1, 1, 4, 4))
        assert moved.probabilities.argmax(1)[0, 0].tolist() == [1, 2, 2, 2]

    def test_starts_near_repeating_the_last_map(self):
        clip = make_clip()
        output = make_predictor().eval()(past_of(clip))
        assert output.flow.abs().max() < 0.5
        assert abs(output.occlusion.mean().item() - 0.1) < 0.02
        assert torch.equal(output.probabilities.argmax(1), clip.labels[:, 1].long())

    def test_rolls_out_from_its_own_soft_maps(self):
        predictor, past = make_predictor().eval(), past_of(make_clip())
        first, second = predict_labels(predictor, past, 2)
        again = predictor(torch.stack([past[:, 1], first.probabilities], dim=1))
        assert torch.equal(second.probabilities, again.probabilities)

    def test_only_the_newest_maps_count(self):
        predictor, past = make_predictor().eval(), past_of(make_clip(), 4)
        outputs = (next(predict_labels(predictor, p, 1)) for p in (past, past[:, 2:]))
        assert torch.equal(*(output.probabilities for output in outputs))

    def test_every_weight_gets_a_gradient(self):
        predictor = make_predictor()
        predictor(past_of(make_clip())).probabilities.square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in predictor.parameters())

    @pytest.mark.parametrize(
        ("shape", "said"),
        [
            ((1, 3, 3, 32, 64), "takes 2 past maps of 3 classes"),
            ((1, 2, 4, 32, 64), "takes 2 past maps of 3 classes"),
            ((1, 2, 3, 30, 64), "must be multiples of 4 and at least 8"),
            ((1, 2, 3, 4, 64), "must be multiples of 4 and at least 8"),
        ],
    )
    def test_other_shapes_are_refused(self, shape, said):
        with pytest.raises(ShapeError, match=said):
            make_predictor()(torch.zeros(shape))

    def test_too_few_observed_maps_are_refused(self):
        with pytest.raises(DataError, match="looks back on 2 label maps and only 1"):
            next(predict_labels(make_predictor(), past_of(make_clip(), 1), 1))

    @pytest.mark.parametrize(
        "wrong",
        [
            {"history_length": 0},
            {"num_blocks": 1},
            {"edge_kernel": 4},
            {"norm": "layer"},
            {"flow_scale": 0.0},
            {"first_occlusion": 1.0},
        ],
    )
    def test_config_refuses_nonsense(self, wrong):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            PredictorConfig(**wrong)


class TestLabelCrossEntropy:
    def test_equals_the_value_worked_out_by_hand_and_leaves_ignored_pixels_out(self):
        probabilities = torch.tensor([[0.5, 0.25, 0.9], [0.5, 0.75, 0.1]]).view(1, 2, 1, 3)
        labels = torch.tensor([[[0, 1, 255]]], dtype=torch.uint8)
        expected = (math.log(2) + math.log(4 / 3)) / 2
        assert_close(label_cross_entropy(probabilities, labels), torch.tensor(expected), atol=1e-5, rtol=0)

    def test_agrees_with_torch(self):
        logits, labels = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))
        expected = torch.nn.functional.cross_entropy(logits, labels)
        assert_close(label_cross_entropy(logits.softmax(1), labels), expected, atol=1e-4, rtol=0)

    def test_is_zero_without_known_pixels_and_finite_for_a_ruled_out_class(self):
        probabilities = class_probabilities(torch.zeros(1, 2, 2, dtype=torch.long), 2)
        assert label_cross_entropy(probabilities, torch.full((1, 2, 2), 255)) == 0
        assert label_cross_entropy(probabilities, torch.ones(1, 2, 2, dtype=torch.long)).isfinite()


class TestScores:
    def test_worked_example(self):
        truth = torch.tensor([[0, 0, 1, 1, 255]])
        predicted = torch.tensor([[0, 1, 1, 255, 0]])
        counts = confusion(predicted, truth, 4)
        assert counts.sum() == 4
        assert counts[1, 4] == 1  # no class was predicted there
        score = label_score(counts)
        assert score.accuracy == 0.5
        assert score.mean_iou == pytest.approx((1 / 2 + 1 / 3) / 2)  # classes 2 and 3 occur nowhere

    def test_equal_maps_score_one(self):
        labels = torch.randint(0, 3, (2, 8, 8))
        assert label_score(confusion(labels, labels, 7)) == (1, 1)

    def test_nothing_scored_is_not_a_number(self):
        score = label_score(confusion(torch.zeros(2, 2), torch.full((2, 2), 255), 3))
        assert math.isnan(score.accuracy) and math.isnan(score.mean_iou)

    def test_other_shapes_are_refused(self):
        with pytest.raises(ShapeError, match="cannot be scored"):
            confusion(torch.zeros(2, 2), torch.zeros(2, 3), 3)


class TestPredictionTask:
    def test_is_a_task_whose_losses_match_its_weights(self):
        task: Task = make_task()
        for chunk in task.step(make_clip(), torch.Generator(), 0):
            assert chunk["generator"].keys() == task.weights["generator"].keys()
            assert all(term.isfinite() and term.requires_grad for term in chunk["generator"].values())

    @pytest.mark.parametrize(("chunk_frames", "expected"), [(0, 1), (1, 4), (3, 2)])
    def test_gives_losses_for_each_chunk(self, chunk_frames, expected):
        task = make_task(chunk_frames=chunk_frames)
        assert len(list(task.step(make_clip(), torch.Generator(), 0))) == expected

    def test_a_flow_weight_of_zero_leaves_the_term_and_the_estimate_out(self):
        task = make_task(flow=0.0)
        task._flow = None
        assert set(next(task.step(make_clip(), torch.Generator(), 0))["generator"]) == {"cross_entropy"}
        assert set(task.weights["generator"]) == {"cross_entropy"}

    def test_gradients_reach_no_further_back_than_told(self):
        task, clip = make_task(chunk_frames=0, backprop_frames=1), make_clip()
        starts = []
        task.predictor.register_forward_hook(lambda _, args, __: starts.append(args[0].requires_grad))
        list(task.step(clip, torch.Generator(), 0))
        task.config = replace(task.config, backprop_frames=2)
        list(task.step(clip, torch.Generator(), 0))
        assert starts == [False] * 4 + [False, True] * 2

    def test_moving_labels_are_learnt_better_than_copying(self):
        torch.manual_seed(0)
        task = make_task(chunk_frames=2)
        optimizer = torch.optim.Adam(task.predictor.parameters(), 1e-2)
        for i in range(30):
            for losses in task.step(make_clip(i, frames=5), torch.Generator(), i):
                optimizer.zero_grad()
                weighted_total(losses["generator"], task.weights["generator"]).backward()
                optimizer.step()
        task.predictor.eval()
        with torch.no_grad():
            rows = task.evaluate(make_clip(1000))
        assert rows["accuracy"] > rows["copy_accuracy"] + 0.3
        assert rows["mean_iou"] > rows["copy_mean_iou"] + 0.3

    def test_an_untrained_predictor_is_its_own_copy_floor(self):
        task = make_task()
        task.predictor.eval()
        rows = task.evaluate(make_clip(frames=3))
        assert rows["accuracy"] == pytest.approx(rows["copy_accuracy"], abs=1e-3)
        assert json.loads(json.dumps(rows))["mean_iou"] == pytest.approx(rows["copy_mean_iou"], abs=1e-3)

    def test_samples_are_maps_in_their_colours_and_observed_ones_are_real(self):
        task, clip = make_task(), make_clip()
        task.predictor.eval()
        clip.labels[0, 0, 0, 0] = 255
        rows = task.sample(clip)
        assert rows["real"].shape == rows["predicted"].shape == clip.frames.shape
        assert torch.equal(rows["predicted"][:, :2], rows["real"][:, :2])
        assert rows["real"][0, 0, :, 0, 0].tolist() == [-1, -1, -1]
        assert_close(rows["real"][1], clip.frames[1])

    @pytest.mark.parametrize("use", ["step", "evaluate", "sample"])
    def test_clips_that_cannot_be_predicted_are_refused(self, use):
        def call(clip):
            return next(task.step(clip, torch.Generator(), 0)) if use == "step" else getattr(task, use)(clip)

        task = make_task()
        with pytest.raises(DataError, match="leaves nothing to predict after 2 observed ones"):
            call(make_clip(frames=2))
        with pytest.raises(DataError, match="the clip has none"):
            call(replace(make_clip(), labels=None))

    def test_clips_without_any_class_to_predict_are_not_scored(self):
        clip = make_clip()
        clip.labels[:, 2:] = 255
        with pytest.raises(DataError, match="nothing can be scored"):
            make_task().evaluate(clip)

    def test_conditions_without_classes_and_unequal_classes_are_refused(self):
        with pytest.raises(ConfigError, match="use a data set with label maps"):
            PredictionTask(
                make_predictor(), ConditionSpec(kind="maps", map_channels=3), PALETTE, DISFlow(), PredictionTaskConfig()
            )
        with pytest.raises(ConfigError, match="the predictor 4 and the palette 3"):
            PredictionTask(make_predictor(classes=4), SPEC, PALETTE, DISFlow(), PredictionTaskConfig())

    @pytest.mark.parametrize("wrong", [{"cross_entropy": 0.0}, {"flow": -1.0}, {"backprop_frames": 0}])
    def test_config_refuses_nonsense(self, wrong):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            PredictionTaskConfig(**wrong)


def test_presets_say_what_their_training_is_judged_by():
    for make in PRESETS.values():
        recipe = make()
        assert recipe.train.best_metric in make_task().evaluate(make_clip())
        assert recipe.data.sampling.num_frames > recipe.predictor.history_length
        assert recipe.data.eval_frames > recipe.predictor.history_length


FOLDER = FolderConfig(root=UNSET_ROOT, geometry=GeometryConfig(mode="exact", size=(32, 64), interpolation="area"))
TEACHER = Architecture(
    generator=CompositeConfig(width=2, num_downsamples=2, num_blocks=2),
    condition=ConditionSpec(class_names=CLASSES),
    palette=PALETTE,
    size=(32, 64),
    folder=FOLDER,
)


def options(**values):
    """Options of a recipe on the command line; two underscores stand for a dot."""
    return [w for k, v in values.items() for w in (f"--recipe.{k.replace('__', '.')}", *str(v).split())]


SHORT = [*options(train__steps=2, train__max_minutes=None, train__checkpoint_every=1), "--quiet"]
NETWORK = options(
    predictor__history_length=2,
    predictor__width=2,
    predictor__num_downsamples=2,
    predictor__num_blocks=2,
    data__sampling__num_frames=5,
    data__folder__geometry__size="32 64",
)


def write_data(root, test_frames=9, tail=False):
    """Moving blocks: one sequence to train on and, unless its tail is held out, one to test on."""
    classes = [{"name": name, "color": colour} for name, colour in zip(CLASSES, PALETTE, strict=True)]
    root.mkdir(parents=True)
    (root / "classes.json").write_text(json.dumps({"schema": 1, "classes": classes}))
    for i, phase in enumerate(("train",) if tail else ("train", "test")):
        clip = make_clip(i, batch=1, frames=20 if phase == "train" else test_frames)
        frames = ((clip.frames[0].permute(0, 2, 3, 1) + 1) * 127.5).round().byte().numpy()
        for kind, pictures in (
            ("A", clip.labels[0].numpy()),
            ("B", frames[..., ::-1]),
            ("inst", clip.labels[0].numpy()),
        ):
            folder = root / f"{phase}_{kind}" / "drive"
            folder.mkdir(parents=True)
            for t, picture in enumerate(pictures):
                cv2.imwrite(str(folder / f"{t:03}.png"), np.ascontiguousarray(picture))
    return root


def write_teacher(run, **changes):
    architecture = replace(TEACHER, **changes)
    torch.manual_seed(1)
    state = {"ema_player": None, "architecture": architecture_dict(architecture), "best": None}
    save_checkpoint(run / "checkpoints", 1, {"generator": architecture.build().state_dict()}, state)
    return run


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A data set, a trained predictor and a teacher."""
    root = tmp_path_factory.mktemp("prediction")
    data = write_data(root / "data")
    assert main(["train-predictor", "demo", "--data", str(data), "--run", str(root / "run"), *NETWORK, *SHORT]) == 0
    write_teacher(root / "teacher")
    return root


def command(place, out, *more, predictor="run", teacher="teacher", data="data"):
    runs = ["--predictor", str(place / predictor), "--teacher", str(place / teacher)]
    return ["predict", *runs, "--data", str(place / data), "--out", str(out), "--frames", "3", *more]


def refused(capsys, arguments):
    capsys.readouterr()
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0 and error.startswith(f"fastv2v {arguments[0]}: "), error
    return error


class TestVerbs:
    def test_a_run_keeps_its_architecture_and_goes_on(self, place, capsys):
        trained = load_predictor(place / "run")
        assert trained.step == 2
        assert trained.architecture.condition.class_names == CLASSES
        assert from_dict(PredictorArchitecture, to_dict(trained.architecture)) == trained.architecture
        assert not trained.predictor.training
        again = ["--data", str(place / "data"), "--run", str(place / "run"), *NETWORK, *SHORT]
        assert main(["train-predictor", "demo", *again]) == 0
        result = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert result["step"] == 2
        assert result["best"]["metric"] == "mean_iou"
        assert {"accuracy", "copy_accuracy", "mean_iou", "copy_mean_iou"} == result["metrics"].keys()
        assert list((place / "run/samples").glob("*.png"))

    def test_predict_writes_maps_frames_video_and_scores(self, place, tmp_path, capsys):
        capsys.readouterr()
        assert main(command(place, tmp_path / "out")) == 0
        lines = capsys.readouterr().out.splitlines()
        result = json.loads(lines[-1])
        assert result == json.loads((tmp_path / "out/scores.json").read_text())
        assert [line.split()[0] for line in lines[-4:-1]] == ["1", "2", "3"]
        assert result["sequences"] == ["drive"] and result["borders"] is None
        for kind, shape in (("labels", (32, 64)), ("colours", (32, 64, 3)), ("frames", (32, 64, 3))):
            files = sorted((tmp_path / "out/drive" / kind).iterdir())
            assert [file.stem for file in files] == ["004", "005", "006"]
            assert cv2.imread(str(files[0]), cv2.IMREAD_UNCHANGED).shape == shape
        video = list(read_video(tmp_path / "out/drive.mp4"))
        assert len(video) == 7 and video[0].shape == (64, 128, 3)

    def test_scores_are_those_of_the_written_maps(self, place, tmp_path, capsys):
        assert main(command(place, tmp_path / "out")) == 0
        result = json.loads(capsys.readouterr().out.splitlines()[-1])
        truth = [cv2.imread(str(place / f"data/test_A/drive/{t:03}.png"), cv2.IMREAD_UNCHANGED) for t in range(7)]
        for row, t in zip(result["steps"], range(4, 7), strict=True):
            made = cv2.imread(str(tmp_path / f"out/drive/labels/{t:03}.png"), cv2.IMREAD_UNCHANGED)
            assert row["accuracy"] == pytest.approx((made == truth[t]).mean(), abs=1e-4)
            assert row["copy_accuracy"] == pytest.approx((truth[3] == truth[t]).mean(), abs=1e-4)
            assert 0 < row["mean_iou"] <= 1 and row["psnr"] > 0
        means = {name: np.mean([row[name] for row in result["steps"]]) for name in result["steps"][0]}
        assert result["mean"] == pytest.approx(means, abs=1e-4)

    def test_existing_outputs_are_kept_unless_told(self, place, tmp_path, capsys):
        assert main(command(place, tmp_path)) == 0
        assert "exists already" in refused(capsys, command(place, tmp_path))
        assert main(command(place, tmp_path, "--overwrite")) == 0

    def test_a_teacher_with_instances_gets_borders_of_classes_and_this_is_said(self, place, tmp_path, capsys, caplog):
        spec, folder = replace(TEACHER.condition, use_instances=True), replace(FOLDER, use_instances=True)
        write_teacher(place / "bordered", condition=spec, folder=folder)
        assert main(command(place, tmp_path / "out", teacher="bordered")) == 0
        assert "borders between classes" in caplog.text
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["borders"] == "between classes"

    def test_frames_that_the_predictor_learnt_from_are_not_scored(self, tmp_path, capsys):
        data = write_data(tmp_path / "data", tail=True)
        write_teacher(tmp_path / "teacher", folder=replace(FOLDER, test_tail=10))
        for tail in ("8", "0"):
            train = ["train-predictor", "demo", "--data", str(data), "--run", str(tmp_path / f"run{tail}")]
            assert main([*train, *NETWORK, *SHORT, "--recipe.data.folder.test-tail", tail]) == 0
        capsys.readouterr()
        assert main(command(tmp_path, tmp_path / "out", predictor="run8")) == 0
        assert sorted(p.stem for p in (tmp_path / "out/drive/labels").iterdir())[0] == "016"  # 20 - 8 + 4
        assert "trained on every frame" in refused(capsys, command(tmp_path, tmp_path / "no", predictor="run0"))

    def test_what_does_not_go_together_is_refused_before_anything_is_written(self, place, tmp_path, capsys):
        out = tmp_path / "out"
        others = ConditionSpec(class_names=("road", "tram", "sky"))
        write_teacher(place / "tram", condition=others)
        write_teacher(place / "wide", size=(32, 128))
        write_teacher(place / "student", stage="spatial")
        maps = ConditionSpec(kind="maps", map_channels=3)
        write_teacher(place / "maps", condition=maps, folder=replace(FOLDER, condition="rgb"), palette=())
        cases = {
            "3 classes (road, car, sky) and the teacher": command(place, out, teacher="tram"),
            "trained at 32x64 and the teacher": command(place, out, teacher="wide"),
            "cannot be the teacher; give a run of train-teacher": command(place, out, teacher="student"),
            "use a data set with label maps": command(place, out, teacher="maps"),
            "holds no label predictor; give a run of train-predictor": command(place, out, predictor="teacher"),
            "does not describe a generator": command(place, out, teacher="run"),
            "looks back on 2 label maps; raise --observed": command(place, out, "--observed", "1"),
            "has 9 held-out frames and 4 observed with 6 predicted": command(place, out, "--frames", "6"),
        }
        for said, arguments in cases.items():
            assert said in refused(capsys, arguments), said
        assert not out.exists()

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (["--recipe.data.folder.geometry.size", "30", "64"], "must be multiples of 4"),
            (["--recipe.data.sampling.num-frames", "2"], "leave nothing to predict"),
            (["--recipe.data.folder.condition", "rgb"], "use a data set with label maps"),
            (["--recipe.data.eval-frames", "2"], "scoring needs at least 3"),
        ],
    )
    def test_training_refuses_what_cannot_be_learnt(self, change, said, place, tmp_path, capsys):
        run = ["--data", str(place / "data"), "--run", str(tmp_path / "run")]
        assert said in refused(capsys, ["train-predictor", "demo", *run, *NETWORK, *SHORT, *change])
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("wrong", [{"observed": 0}, {"frames": 0}])
    def test_predict_needs_something_to_see_and_to_predict(self, wrong, place):
        paths = {name: place / name for name in ("predictor", "teacher", "data", "out")}
        with pytest.raises(ConfigError, match="observed and frames must be at least 1"):
            Predict(**paths, **wrong)


def test_steps_without_labels_have_no_score_and_no_part_in_the_mean():
    clip = make_clip(batch=1, frames=4)
    clip.labels[:, 3] = 255
    tally = Tally(3, 2)
    tally.add(Prediction(clip.labels[:, 2:].long(), clip.frames[:, 2:], clip.frames[:, 2:]), clip, 2)
    first, second = tally.rows()
    assert first["accuracy"] == first["mean_iou"] == 1 and first["psnr"] == 100
    assert first["copy_accuracy"] < 1 and first["copy_psnr"] < 100
    assert math.isnan(second["accuracy"]) and second["psnr"] == 100
    assert "nan" in table([first, second])


def test_a_damaged_record_is_named(tmp_path):
    state = {"ema_player": None, "architecture": {"predictor": {"width": 0}}, "best": None}
    save_checkpoint(tmp_path / "checkpoints", 1, {"generator": {}}, state)
    with pytest.raises(CheckpointError, match="does not describe a label predictor of this version"):
        load_predictor(tmp_path)
    with pytest.raises(CheckpointError):
        load_trained(tmp_path)


def test_many_classes_make_16_bit_label_maps(tmp_path):
    ids = np.array([[0, 300]])
    write_label(tmp_path / "a.png", ids, 301)
    assert cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED).tolist() == [[0, 300]]
