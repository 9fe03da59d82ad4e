"""The segmentation judge: it learns from real frames, is the same every time, and is read back as it was."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from benchmarks.features import DIMENSION, EfficientNetFeatures, frame_features, to_tensor
from benchmarks.judge import JudgeConfig, frames_digest, judged_classes, load_judge, save_judge, train_judge
from fastv2v.data.classes import preset_classes
from fastv2v.data.conditions import ConditionSpec
from fastv2v.data.folder import FolderConfig, VideoFolder, open_folder
from fastv2v.data.transforms import GeometryConfig
from fastv2v.errors import CheckpointError, ConfigError, DataError, ShapeError
from fastv2v.losses.perceptual import EfficientNetLite0
from fastv2v.metrics import segmentation_score
from fastv2v.metrics.segmentation import IGNORED

FEW = JudgeConfig(steps=3, width=4, batch_size=2)
COLOURS = np.array([[60, 160, 60], [200, 40, 40], [30, 60, 200]], np.uint8)


def picture(t: int) -> tuple[np.ndarray, np.ndarray]:
    """Two boxes on a ground: labels and frame, RGB."""
    labels = np.zeros((48, 64), np.uint8)
    labels[8:32, 2 + 3 * t : 22 + 3 * t], labels[24:44, 40 - 3 * t : 60 - 3 * t] = 1, 2
    noise = np.random.default_rng(t).integers(0, 20, (48, 64, 3), dtype=np.uint8)
    return labels, cv2.add(COLOURS[labels], noise)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> VideoFolder:
    root = tmp_path_factory.mktemp("judge") / "data"
    for t in range(8):
        labels, frame = picture(t)
        for modality, image in (("A", labels), ("B", frame[..., ::-1])):
            path = root / f"train_{modality}" / "seq" / f"{t}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), image)
    exact = GeometryConfig(mode="exact", size=(48, 64))
    return open_folder(FolderConfig(root=root, phase="train", num_classes=4, test_tail=2, geometry=exact))


def test_a_judge_learns_colours_and_sees_when_they_are_swapped(folder: VideoFolder) -> None:
    reports = []
    config = JudgeConfig(steps=40, width=16, batch_size=2)
    judge = train_judge(folder, config, lambda step, loss: reports.append((step, loss)))
    assert [step for step, _ in reports] == list(range(1, 41))
    assert reports[-1][1] < 0.5 * reports[0][1]
    labels, frame = picture(7)  # held out
    score = segmentation_score(judge.confusion(frame, labels))
    assert score.miou > 0.75
    assert np.isnan(score.iou[3])  # the class that never occurs is never seen either
    swapped = segmentation_score(judge.confusion(np.ascontiguousarray(COLOURS[[0, 2, 1]][labels]), labels))
    assert swapped.miou < 0.5
    assert judge.record["num_frames"] == 6
    assert judge.record["training_miou"] > 0.75
    with pytest.raises(ShapeError, match="trained on frames of"):
        judge.predict(frame[:32])


def test_one_seed_gives_one_judge_and_another_seed_another(folder: VideoFolder) -> None:
    a, b, c = (train_judge(folder, config).network.decoder.state_dict() for config in (FEW, FEW, replace(FEW, seed=1)))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


def test_a_judge_is_read_back_only_as_it_was_asked_for(folder: VideoFolder, tmp_path: Path) -> None:
    file = tmp_path / "judges" / "street.safetensors"
    judge = train_judge(folder, FEW)
    save_judge(file, judge)
    again = load_judge(file, folder, FEW)
    assert again.record == judge.record
    _, frame = picture(3)
    assert np.array_equal(again.predict(frame), judge.predict(frame))
    with pytest.raises(ConfigError, match="otherwise than asked"):
        load_judge(file, folder, replace(FEW, seed=5))
    fewer = open_folder(replace(folder.config, test_tail=3))
    assert frames_digest(fewer) != frames_digest(folder)
    with pytest.raises(ConfigError, match="other frames"):
        load_judge(file, fewer, FEW)
    with pytest.raises(ConfigError, match="judge lies in"):
        load_judge(tmp_path / "judge.pth", folder, FEW)
    record = json.loads(file.with_suffix(".json").read_text())
    file.with_suffix(".json").write_text(json.dumps(record | {"sha256": "0"}))
    with pytest.raises(CheckpointError, match="is not the judge"):
        load_judge(file, folder, FEW)
    file.with_suffix(".json").unlink()
    with pytest.raises(CheckpointError, match="no judge can be read"):
        load_judge(file, folder, FEW)


class TestClasses:
    def test_cityscapes_is_judged_by_its_nineteen_evaluation_classes(self):
        spec = ConditionSpec(class_names=preset_classes("cityscapes").names)
        classes = judged_classes(spec, JudgeConfig())
        pairs = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13}
        pairs |= {27: 14, 28: 15, 31: 16, 32: 17, 33: 18}
        assert {i: int(x) for i, x in enumerate(classes.table) if x != IGNORED} == pairs
        assert (classes.names[0], classes.names[18]) == ("road", "bicycle")
        unnamed = ConditionSpec(class_names=tuple(f"class_{i}" for i in range(35)))
        assert np.array_equal(judged_classes(unnamed, JudgeConfig(classes="cityscapes")).table, classes.table)
        assert len(judged_classes(unnamed, JudgeConfig()).names) == 35
        assert len(judged_classes(spec, JudgeConfig(classes="all")).names) == 35

    def test_void_and_what_is_ignored_are_left_out(self):
        spec = ConditionSpec(class_names=preset_classes("camvid").names)
        assert judged_classes(spec, JudgeConfig()).names == preset_classes("camvid").names[:-1]
        classes = judged_classes(spec, JudgeConfig(ignore=(0,)))
        assert (classes.table[[0, 1, 11, 255]] == [IGNORED, 0, IGNORED, IGNORED]).all()

    def test_what_cannot_be_judged_is_refused(self, folder: VideoFolder):
        with pytest.raises(ConfigError, match="colour images"):
            judged_classes(ConditionSpec(kind="maps", map_channels=3), FEW)
        with pytest.raises(ConfigError, match="35 label ids"):
            judged_classes(folder.spec, JudgeConfig(classes="cityscapes"))
        with pytest.raises(ConfigError, match="no class is left"):
            judged_classes(folder.spec, JudgeConfig(ignore=(0, 1, 2, 3)))
        with pytest.raises(DataError, match="no pixel of the training part"):
            train_judge(folder, replace(FEW, ignore=(0, 1, 2)))
        with pytest.raises(ConfigError, match="held-out"):
            train_judge(open_folder(replace(folder.config, phase="test")), FEW)
        for wrong in ({"steps": 0}, {"balance": 2.0}, {"learning_rate": 0.0}, {"ignore": (255,)}):
            with pytest.raises(ConfigError):
                JudgeConfig(**wrong)


class TestFeatures:
    def test_pooled_features_are_those_of_the_perceptual_network_under_its_head(self):
        network, trunk = EfficientNetFeatures(), EfficientNetLite0()
        frame = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
        with torch.no_grad():
            head = network.net._swish(network.net._bn1(network.net._conv_head(trunk(to_tensor(frame, network))[-1])))
        found = frame_features(network, [frame])
        assert found.shape == (1, DIMENSION)
        np.testing.assert_allclose(found, head.mean(dim=(2, 3)).numpy(), atol=1e-5)
        with pytest.raises(ShapeError, match="at least one frame"):
            frame_features(network, [])
