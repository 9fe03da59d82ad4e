import json
from dataclasses import replace
from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from fastv2v.architecture import Architecture, architecture_dict
from fastv2v.checkpoint import save_checkpoint
from fastv2v.cli import main
from fastv2v.data.clip import ClipInfo
from fastv2v.data.conditions import ConditionSpec
from fastv2v.data.folder import FolderConfig, open_folder
from fastv2v.data.loader import read_sequence
from fastv2v.data.transforms import GeometryConfig
from fastv2v.errors import ConfigError, DataError
from fastv2v.nn.composite import CompositeConfig
from fastv2v.nn.features import FeatureConfig
from fastv2v.ops.labels import encode_clip
from fastv2v.recipe import UNSET_ROOT
from teachers import looks
from teachers.looks import (
    ClassLooks,
    InstanceVectors,
    LookTable,
    choose_looks,
    cluster_looks,
    collect_features,
    conditions_with_look,
    encoder_digest,
    fit_mixture,
    kmeans,
    paint_features,
    read_looks,
    sample_look,
    write_looks,
)

NAMES = ("road", "car", "sky")
GEOMETRY = GeometryConfig(mode="exact", size=(16, 32), interpolation="area")
FOLDER = FolderConfig(root=UNSET_ROOT, use_instances=True, ignore_id=255, num_classes=3, geometry=GEOMETRY)
SPEC = ConditionSpec(class_names=("class_0", "class_1", "class_2"), use_instances=True, ignore_id=255)


def rng(seed=0):
    return np.random.default_rng(seed)


def seen(classes, areas, vectors):
    return InstanceVectors(np.array(vectors, float), np.array(classes), np.array(areas, float))


def table(method="kmeans"):
    """Roads have no look, cars two, the sky one."""
    none = ClassLooks(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0), 0, 0.0)
    narrow = np.full((2, 2), 0.05 if method == "gmm" else 0.0)
    cars = ClassLooks(np.array([[0.5, -0.5], [-0.25, 1.0]]), narrow, np.array([0.5, 0.5]), 7, 0.4)
    sky = ClassLooks(np.array([[0.1, 0.2]]), np.zeros((1, 2)), np.ones(1), 1, 0.0)
    return LookTable(NAMES, (none, cars, sky), 2, method, "abc")


class TestKMeans:
    def test_by_hand(self):
        centres, nearest = kmeans(np.array([[0.0, 0], [0, 2], [10, 0], [10, 4]]), 2, rng())
        order = np.argsort(centres[:, 0])
        assert_allclose(centres[order], [[0, 1], [10, 2]])
        assert nearest[0] == nearest[1] != nearest[2] == nearest[3]

    def test_is_no_worse_than_an_independent_one(self):
        vq = pytest.importorskip("scipy.cluster.vq")
        vectors = rng(3).normal(size=(60, 3))
        centres, nearest = kmeans(vectors, 5, rng(1))
        theirs, _ = vq.kmeans(vectors, vectors[rng(1).choice(60, 5, replace=False)])
        ours = ((vectors - centres[nearest]) ** 2).sum()
        assert ours <= (vq.vq(vectors, theirs)[1] ** 2).sum() * (1 + 1e-9)

    def test_every_vector_goes_to_its_nearest_centre_and_every_centre_is_a_mean(self):
        vectors = rng(4).normal(size=(50, 2))
        centres, nearest = kmeans(vectors, 4, rng())
        assert_allclose(nearest, ((vectors[:, None] - centres) ** 2).sum(-1).argmin(1))
        assert_allclose(centres, [vectors[nearest == k].mean(0) for k in range(4)])

    def test_equal_vectors_give_no_more_centres_than_there_are_different_ones(self):
        centres, _ = kmeans(np.array([[1.0], [1], [2]]), 3, rng())
        assert sorted(centres[:, 0]) == [1, 2]

    def test_the_same_seed_gives_the_same_centres(self):
        vectors = rng(5).normal(size=(40, 3))
        assert_allclose(kmeans(vectors, 6, rng(9))[0], kmeans(vectors, 6, rng(9))[0])


class TestMixture:
    def test_one_component_has_mean_and_deviation_of_the_sample(self):
        vectors = rng().normal(size=(30, 2))
        weights, means, deviations = fit_mixture(vectors, 1, rng())
        assert_allclose(weights, [1])
        assert_allclose(means[0], vectors.mean(0))
        assert_allclose(deviations[0], vectors.std(0))

    def test_two_far_components_are_told_apart(self):
        draw = rng(1)
        vectors = np.concatenate([draw.normal(-5, 0.1, (300, 1)), draw.normal(5, 1.0, (100, 1))])
        weights, means, deviations = fit_mixture(vectors, 2, rng())
        order = np.argsort(means[:, 0])
        assert_allclose(weights[order], [0.75, 0.25], atol=1e-6)
        assert_allclose(means[order, 0], [vectors[:300].mean(), vectors[300:].mean()], atol=1e-6)
        assert_allclose(deviations[order, 0], [vectors[:300].std(), vectors[300:].std()], atol=1e-6)

    def test_more_steps_never_lower_the_likelihood(self):
        vectors = rng(2).normal(size=(80, 2)) * [1, 0.2]

        def likelihood(steps):
            weights, means, deviations = fit_mixture(vectors, 3, rng(), max_steps=steps)
            density = np.exp(-0.5 * ((vectors[:, None] - means) / deviations) ** 2) / deviations / np.sqrt(2 * np.pi)
            return np.log((weights * density.prod(-1)).sum(1)).mean()

        values = [likelihood(n) for n in (1, 2, 4, 16)]
        assert all(b >= a - 1e-12 for a, b in pairwise(values))

    def test_a_component_of_one_vector_keeps_some_width(self):
        _, means, deviations = fit_mixture(np.array([[0.3, 0.3], [-0.3, 0.1]]), 10, rng())
        assert sorted(means[:, 0]) == pytest.approx([-0.3, 0.3])
        assert_allclose(deviations, 0.01)


class TestCluster:
    def test_by_hand(self):
        """k is the smaller of the clusters and the count, for each class anew; small instances do not count."""
        vectors = [[0, 0], [0, 1], [1, 0], [0.5, 0.5], [0.9, 0.9], [0.7, 0.7]]
        found = cluster_looks(seen([1, 1, 1, 0, 2, 2], [0.6, 1, 2, 0.5, 3, 3], vectors), NAMES, encoder="e", clusters=2)
        assert [len(x) for x in found.classes] == [0, 2, 2]
        assert [x.instances for x in found.classes] == [0, 3, 2]
        assert_allclose(found.classes[2].centres[:, 0].sum(), 1.6)
        assert found.classes[2].spread == pytest.approx(np.sqrt(0.02))
        assert_allclose(found.classes[1].weights, 0.5)

    def test_a_scarce_class_does_not_shrink_the_next_one(self):
        classes = [0] + 5 * [1]
        found = cluster_looks(seen(classes, 6 * [1], rng().normal(size=(6, 2))), NAMES[:2], encoder="e", clusters=4)
        assert [len(x) for x in found.classes] == [1, 4]

    @pytest.mark.parametrize("method", ["kmeans", "gmm"])
    def test_the_most_frequent_look_is_number_0(self, method):
        vectors = np.concatenate([np.full((2, 2), -0.5), np.full((5, 2), 0.5)]) + rng().normal(0, 0.01, (7, 2))
        found = cluster_looks(seen(7 * [0], 7 * [1], vectors), ("car",), encoder="e", clusters=2, method=method)
        assert found.classes[0].centres[:, 0] == pytest.approx([0.5, -0.5], abs=0.02)
        assert (found.classes[0].deviations > 0).all() == (method == "gmm")

    @pytest.mark.parametrize("settings", [{"clusters": 0}, {"min_area": -1}, {"method": "som"}])
    def test_nonsense_is_refused(self, settings):
        with pytest.raises(ConfigError):
            cluster_looks(seen([0], [1], [[0, 0]]), NAMES, encoder="e", **settings)


class TestSample:
    def test_depends_on_seed_sequence_class_and_instance_alone(self):
        mixture = table("gmm")
        first = sample_look(mixture, 1, "a", 1, 7)
        assert first.dtype == np.float32
        assert_allclose(sample_look(mixture, 1, "a", 1, 7), first)
        others = [(2, "a", 1, 7), (1, "b", 1, 7), (1, "a", 1, 8)]
        assert all(not np.array_equal(sample_look(mixture, *place), first) for place in others)

    def test_gives_centres_of_the_class_and_all_of_them(self):
        drawn = {tuple(sample_look(table(), 0, "a", 1, i)) for i in range(30)}
        assert drawn == {(0.5, -0.5), (-0.25, 1.0)}

    @pytest.mark.parametrize("class_id", [0, 255])
    def test_without_looks_it_is_zero(self, class_id):
        assert sample_look(table(), 0, "a", class_id, 3).tolist() == [0, 0]

    def test_an_override_changes_its_class_only(self):
        for instance in range(5):
            assert sample_look(table("gmm"), 0, "a", 1, instance, override={"car": 1}).tolist() == [-0.25, 1]
            plain = sample_look(table("gmm"), 0, "a", 1, instance)
            assert_allclose(sample_look(table("gmm"), 0, "a", 1, instance, override={"sky": 0}), plain)

    def test_samples_stay_in_the_range_of_the_encoder(self):
        wide = replace(table().classes[1], deviations=np.full((2, 2), 5.0))
        mixture = replace(table("gmm"), classes=(wide, wide, wide))
        assert max(abs(sample_look(mixture, 0, "a", 0, i)).max() for i in range(20)) == 1

    @pytest.mark.parametrize(
        ("override", "said"), [({"tram": 0}, "no class 'tram'"), ({"car": 2}, "has 2 looks"), ({"road": 0}, "0 looks")]
    )
    def test_unknown_choices_are_refused(self, override, said):
        with pytest.raises(ConfigError, match=said):
            choose_looks(table(), override)


def test_painting_by_hand():
    labels = torch.tensor([[[0, 1]], [[1, 255]]], dtype=torch.uint8)
    instances = torch.tensor([[[0, 0]], [[26001, 0]]], dtype=torch.int32)
    asked = []

    def look(thing):
        asked.append(tuple(thing))
        return np.array([thing.class_id, thing.instance], np.float32)

    painted = paint_features(labels, instances, look)
    assert painted.tolist() == [[[[0, 1]], [[0, 0]]], [[[1, 255]], [[26001, 0]]]]
    assert asked == [(0, 0), (1, 0), (1, 26001), (255, 0)]  # each once


class TestFile:
    @pytest.mark.parametrize("method", ["kmeans", "gmm"])
    def test_survives_the_disk(self, tmp_path, method):
        write_looks(tmp_path / "looks.npz", table(method))
        found = read_looks(tmp_path / "looks.npz")
        assert replace(found, classes=()) == replace(table(method), classes=())
        for a, b in zip(found.classes, table(method).classes, strict=True):
            assert (a.instances, a.spread) == (b.instances, b.spread)
            for name in ("centres", "deviations", "weights"):
                assert_allclose(getattr(a, name), getattr(b, name))
        assert [path.name for path in tmp_path.iterdir()] == ["looks.npz"]

    def test_holds_no_pickle(self, tmp_path):
        write_looks(tmp_path / "looks.npz", table())
        with np.load(tmp_path / "looks.npz", allow_pickle=False) as arrays:
            assert json.loads(arrays["header"].tobytes())["classes"][1]["name"] == "car"

    def test_a_missing_file_names_the_verb(self, tmp_path):
        with pytest.raises(DataError, match=r"looks\.npz.*fastv2v looks"):
            read_looks(tmp_path / "looks.npz")

    @pytest.mark.parametrize("damage", ["text", "cut", "pickle", "schema", "shape", "nan"])
    def test_damage_is_one_sentence(self, tmp_path, damage, monkeypatch):
        path = tmp_path / "looks.npz"
        if damage == "schema":
            monkeypatch.setattr(looks, "_SCHEMA", 2)
        broken = {"shape": np.zeros((2, 3)), "nan": np.full((2, 2), np.nan)}.get(damage)
        bad = (
            table() if broken is None else replace(table(), classes=(replace(table().classes[1], centres=broken),) * 3)
        )
        write_looks(path, bad)
        monkeypatch.undo()
        content = path.read_bytes()
        path.write_bytes({"text": b"looks", "cut": content[: len(content) // 2]}.get(damage, content))
        if damage == "pickle":
            np.savez(path, header=np.array([{}], dtype=object))
        with pytest.raises(DataError, match=r"looks\.npz is no table of looks") as caught:
            read_looks(path)
        assert "\n" not in str(caught.value)


def make_data(root, frames=5):
    """A road with a car that grows by a row in each frame; everything but the sky has one colour of its own."""
    for name in ("A", "B", "inst"):
        (root / f"train_{name}" / "drive").mkdir(parents=True)
    for t in range(frames):
        labels = np.zeros((16, 32), np.uint8)
        labels[:4] = 2
        labels[6 : 8 + t, 4:12] = 1
        labels[15, 31] = 255
        instances = np.where(labels == 1, 41000, 0).astype(np.uint16)
        frame = np.array([[90, 90, 90], [20, 40, 220], [250, 200, 60]], np.uint8)[np.minimum(labels, 2)]
        for name, image in (("A", labels), ("B", frame), ("inst", instances)):
            cv2.imwrite(str(root / f"train_{name}/drive/{t:03}.png"), image)
    return root


ARCHITECTURE = Architecture(
    generator=CompositeConfig(width=2, num_downsamples=2, num_blocks=2, norm="instance"),
    features=FeatureConfig(channels=2, width=4, num_downsamples=2, norm="instance"),
    condition=SPEC,
    size=(16, 32),
    folder=FOLDER,
)


def make_model():
    torch.manual_seed(0)
    return ARCHITECTURE.build().eval()


def open_data(tmp_path):
    return open_folder(replace(FOLDER, root=make_data(tmp_path / "data")))


class TestCollect:
    def test_gives_class_vector_and_area_of_each_instance(self, tmp_path):
        folder, model, calls = open_data(tmp_path), make_model(), []
        found = collect_features(model, folder, every=2, window=2, progress=lambda *call: calls.append(call))
        assert found.classes.tolist() == 3 * [0, 1, 2]  # the pixel without a class is left out
        assert_allclose(found.areas[1::3], [16 / 16, 32 / 16, 48 / 16])  # pixels / (16 * 32 // 32)
        assert calls == [(2, 3), (3, 3)]
        clip = read_sequence(folder, 0)
        encoded = model.encode(SPEC, clip)[0, :, 4:].detach()
        assert_allclose(found.vectors[4], encoded[2, :, 7, 5], atol=1e-5)  # second frame looked at, a pixel of the car

    def test_windows_do_not_matter(self, tmp_path):
        folder, model = open_data(tmp_path), make_model()
        a, b = (collect_features(model, folder, window=n) for n in (1, 5))
        assert_allclose(a.vectors, b.vectors, atol=1e-5)

    def test_nonsense_is_refused(self, tmp_path):
        with pytest.raises(ConfigError, match="every and window"):
            collect_features(make_model(), open_data(tmp_path), every=0)


class TestConditions:
    def own_table(self, model):
        return replace(table("gmm"), class_names=SPEC.class_names, encoder=encoder_digest(model))

    def test_windows_of_a_video_agree_and_real_frames_do_not_matter(self, tmp_path):
        folder, model = open_data(tmp_path), make_model()
        chosen, clip = self.own_table(model), read_sequence(folder, 0)
        whole = conditions_with_look(model, SPEC, clip, chosen, seed=3)
        assert torch.equal(whole[:, :, :4], encode_clip(SPEC, clip))
        windows = [
            conditions_with_look(model, SPEC, replace(x, frames=0 * x.frames), chosen, seed=3)
            for x in (clip.take(0, 2), clip.take(2, 5))
        ]
        assert torch.equal(torch.cat(windows, dim=1), whole)
        assert whole[0, :, 4:, 10, 20].abs().max() == 0  # roads have no look
        assert_allclose(whole[0, 0, 4:, 7, 5], sample_look(chosen, 3, "drive", 1, 41000))

    def test_an_override_changes_the_look_of_a_class(self, tmp_path):
        model, clip = make_model(), read_sequence(open_data(tmp_path), 0)
        made = conditions_with_look(model, SPEC, clip, self.own_table(model), seed=3, override={"class_1": 1})
        assert made[0, 0, 4:, 7, 5].tolist() == [-0.25, 1]

    def test_looks_of_another_model_are_refused(self, tmp_path):
        model, clip = make_model(), read_sequence(open_data(tmp_path), 0)
        chosen = self.own_table(model)
        with pytest.raises(ConfigError, match="other classes or features"):
            conditions_with_look(model, SPEC, clip, replace(chosen, class_names=NAMES), seed=0)
        with torch.no_grad():
            next(model.encoder.parameters()).add_(0.1)
        with pytest.raises(ConfigError, match="other weights"):
            conditions_with_look(model, SPEC, clip, chosen, seed=0)

    @pytest.mark.parametrize("lost", [{"instances": None}, {"info": ()}, {"info": (ClipInfo("a", (0,)),) * 2}])
    def test_what_is_needed_is_named(self, tmp_path, lost):
        model, clip = make_model(), read_sequence(open_data(tmp_path), 0)
        with pytest.raises(DataError, match="names of the sequences"):
            conditions_with_look(model, SPEC, replace(clip, **lost), self.own_table(model), seed=0)


class TestVerb:
    def write_run(self, root, architecture=ARCHITECTURE):
        torch.manual_seed(0)
        model = architecture.build()
        state = {"ema_player": None, "architecture": architecture_dict(architecture), "best": None}
        save_checkpoint(root / "checkpoints", 10, {"generator": model.state_dict()}, state)
        return root

    def test_writes_looks_and_ends_with_json(self, tmp_path, capsys):
        run, data = self.write_run(tmp_path / "run"), make_data(tmp_path / "data")
        arguments = ["looks", "--run", str(run), "--data", str(data), "--clusters", "2", "--device.cpu"]
        assert main(arguments) == 0
        *_, row, last = capsys.readouterr().out.strip().splitlines()
        assert row.split()[:3] == ["class_2", "5", "2"]
        assert json.loads(last)["classes"]["class_1"]["looks"] == 2
        assert read_looks(run / "looks.npz").class_names == SPEC.class_names
        assert main(arguments) == 2
        assert "exists already" in capsys.readouterr().err
        assert main([*arguments, "--overwrite", "--method", "gmm"]) == 0
        assert read_looks(run / "looks.npz").method == "gmm"

    def test_a_run_without_features_is_refused(self, tmp_path, capsys):
        run = self.write_run(tmp_path / "run", replace(ARCHITECTURE, features=FeatureConfig()))
        assert main(["looks", "--run", str(run), "--data", str(make_data(tmp_path / "data")), "--device.cpu"]) == 2
        assert "has no instance features" in capsys.readouterr().err

    def test_nothing_large_enough_is_said(self, tmp_path, capsys):
        run, data = self.write_run(tmp_path / "run"), make_data(tmp_path / "data")
        assert main(["looks", "--run", str(run), "--data", str(data), "--min-area", "99", "--device.cpu"]) == 2
        assert "lower --min-area" in capsys.readouterr().err
