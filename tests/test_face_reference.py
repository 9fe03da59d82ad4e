"""A training frame bent to the landmarks of each frame, from the data set to the generator."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_driving import expressions, placed
from test_face import face
from test_slim import TINY, inputs
from tiny_bundle import SIZE as TINY_SIZE
from tiny_bundle import FakeEngine, manifest

from export.runtime import ConditionMap, Stream
from fastv2v.config import from_dict, to_dict
from fastv2v.data.conditions import ConditionSpec, maps_to_float
from fastv2v.data.face import TYPICAL, FaceConfig, draw_face, part_labels
from fastv2v.data.face_reference import FaceReference, bend, decode_reference, typical
from fastv2v.data.folder import FolderConfig, FrameReader, open_folder
from fastv2v.data.transforms import GeometryConfig, draw_geometry
from fastv2v.errors import ConfigError, DataError, ShapeError
from fastv2v.nn.composite import CompositeConfig
from fastv2v.nn.generators import build_generator
from fastv2v.render import start_history
from students.inherit import inherit_weights

SIZE = (240, 240)
HERE = face(120, 90, 80)


def places(size=SIZE):
    """A picture whose red and green say where a pixel lies."""
    y, x = np.mgrid[: size[0], : size[1]]
    return np.stack([x, y, np.full_like(x, 128)], axis=-1).astype(np.uint8)


def at(picture, points):
    """What a picture says at points, red and green."""
    x, y = points.round().astype(int).T
    return picture[y, x, :2].astype(float)


def write_faces(root, faces, phase="train", start=0):
    for name in ("img", "keypoints"):
        (root / f"{phase}_{name}" / "one").mkdir(parents=True)
    for number, points in enumerate(faces, start):
        picture = np.full((*SIZE, 3), 10 * number % 256, np.uint8)
        cv2.imwrite(str(root / f"{phase}_img/one/{number:03}.png"), picture)
        (root / f"{phase}_keypoints/one/{number:03}.txt").write_text("\n".join(f"{x:.3f},{y:.3f}" for x, y in points))
    return root


def folder_config(root, **changes):
    shown = FaceConfig(background="none", crop="none", reference=TYPICAL)
    geometry = GeometryConfig(mode="exact", size=SIZE, interpolation="area")
    return FolderConfig(root=root, condition="face", face=shown, geometry=geometry, **changes)


class TestBend:
    @pytest.mark.parametrize("still", [True, False])
    def test_its_own_landmarks_leave_it_as_it_is(self, still):
        bent = bend(FaceReference(places(), HERE), HERE, HERE, SIZE, still=still)
        assert np.abs(bent.astype(int) - places()).max() <= 1

    @pytest.mark.parametrize("still", [True, False])
    def test_every_landmark_arrives_where_it_is_asked_for(self, still):
        rng = np.random.default_rng(0)
        there = face(128, 96, 74) + rng.uniform(-1.5, 1.5, (68, 2))
        bent = bend(FaceReference(places(), HERE), there, there, SIZE, still=still)
        assert np.abs(at(bent, there) - HERE).mean() < 1.2

    def test_a_face_that_moves_takes_the_picture_along_or_leaves_it(self):
        shift = np.array([12, -7])
        there = HERE + shift
        moved, left = (bend(FaceReference(places(), HERE), there, there, SIZE, still=still) for still in (False, True))
        far = np.array([[30, 200], [200, 210], [220, 30]])
        assert np.abs(at(moved, far) - (far - shift)).max() <= 1
        assert np.abs(at(left, far) - far).max() <= 1

    def test_a_picture_of_another_size_is_scaled_with_its_points(self):
        small = cv2.resize(places(), (120, 120), interpolation=cv2.INTER_AREA)
        bent = bend(FaceReference(small, (HERE + 0.5) / 2 - 0.5), HERE, HERE, SIZE, still=True)
        assert np.abs(bent[8:-8, 8:-8].astype(int) - places()[8:-8, 8:-8]).max() <= 2

    def test_points_that_meet_and_points_on_a_line_fold_nothing(self):
        closed = HERE.copy()
        closed[60:68] = closed[64]
        line = np.stack([np.linspace(60, 180, 68), np.full(68, 100.0)], axis=1)
        for there in (closed, line, np.full((68, 2), 100.0)):
            bent = bend(FaceReference(places(), HERE), there, there, SIZE, still=True)
            assert bent.shape == (*SIZE, 3)
        opened = bend(FaceReference(places(), HERE), closed, closed, SIZE, still=True)
        inside = part_labels(closed, SIZE) > 0
        rows = np.diff(opened[..., 1].astype(int), axis=0)[inside[1:]]
        assert (rows < -2).mean() < 0.01  # further down shows further down


class TestText:
    def test_it_returns_as_it_was_kept(self):
        kept = decode_reference(FaceReference(places(), HERE).encode())
        assert np.abs(kept.landmarks - HERE).max() <= 0.005
        assert np.abs(kept.picture.astype(int) - places()).mean() < 2
        assert not kept.picture.flags.writeable

    def test_damage_is_one_sentence(self):
        text = FaceReference(places(), HERE).encode()
        picture, _, numbers = text.partition(":")
        wrong = {
            "!" + text: "damaged",
            f"{picture}:{numbers[:-9]}": "landmarks instead of 68",
            f"{picture}:{numbers}x": "damaged",
            f":{numbers}": "no JPEG",
            f"{picture[:40]}:{numbers}": "no JPEG|damaged",
            f"{picture[: len(picture) // 8 * 4]}:{numbers}": None,  # cut short: OpenCV may pad it
        }
        for damaged, message in wrong.items():
            if message is not None:
                with pytest.raises(DataError, match=message):
                    decode_reference(damaged)

    @settings(max_examples=40, deadline=None)
    @given(st.text(max_size=60))
    def test_no_text_does_more_than_be_refused(self, text):
        with pytest.raises(DataError):
            decode_reference(text)

    def test_wrong_points_are_not_kept(self):
        with pytest.raises(ShapeError, match="68"):
            FaceReference(places(), HERE[:5]).encode()


class TestDataSet:
    def test_the_typical_frame_is_nearest_to_the_mean(self):
        assert typical(np.array([HERE - 9, HERE + 1, HERE + 8])) == 1

    def test_both_phases_show_the_same_frame_of_the_training_part(self, tmp_path):
        faces = list(placed(expressions(8)))
        root = write_faces(tmp_path, faces)
        train = open_folder(folder_config(root, test_tail=3))
        test = open_folder(folder_config(root, test_tail=3, phase="test"))
        assert train.spec == test.spec
        shown = decode_reference(train.spec.face.reference)
        at_best = typical(np.array(faces[:5]).round(3))
        assert np.abs(shown.picture.astype(int) - 10 * at_best).max() <= 1

    def test_a_clip_shows_it_in_its_last_channels(self, tmp_path):
        faces = list(placed(expressions(4)))
        folder = open_folder(folder_config(write_faces(tmp_path, faces)))
        geometry = draw_geometry(folder.config.geometry, SIZE, None, "test")
        maps = FrameReader(folder, cache_mb=0).read(0, range(4), geometry)["maps"]
        assert maps.shape[-1] == folder.spec.channels == 18
        assert folder.spec.shown_channels == (15, 16, 17)
        plain = draw_face(faces[2].round(3), SIZE, FaceConfig(background="none", crop="none"))
        assert np.array_equal(maps[2][..., :15], plain)
        colour = int(decode_reference(folder.spec.face.reference).picture[0, 0, 0])
        assert np.abs(maps[..., 15:].astype(int) - colour).max() <= 1
        floats = maps_to_float(folder.spec, maps)
        assert np.allclose(floats[:, :15], np.moveaxis(maps[..., :15], -1, 1) / 255)
        assert np.allclose(floats[:, 15:], np.moveaxis(maps[..., 15:], -1, 1) / 127.5 - 1, atol=1e-6)

    def test_a_condition_keeps_it_as_text(self, tmp_path):
        spec = open_folder(folder_config(write_faces(tmp_path, placed(expressions(4))))).spec
        assert from_dict(ConditionSpec, json.loads(json.dumps(to_dict(spec)))) == spec
        assert "and a bent frame, 18 channels" in spec.describe()

    def test_what_cannot_be_drawn_is_said(self):
        with pytest.raises(ConfigError, match="there are none and typical"):
            FaceConfig(reference="first")
        with pytest.raises(ConfigError, match="chosen when that is opened"):
            draw_face(HERE, SIZE, FaceConfig(background="none", reference=TYPICAL))


class TestGenerators:
    CHANNELS = (2, 3, 4)

    @pytest.mark.parametrize("config", [TINY, replace(TINY, input_scale=1, refine_width=0), CompositeConfig(width=4)])
    def test_a_fresh_one_begins_with_what_is_shown(self, config):
        torch.manual_seed(0)
        model = build_generator(config, 5, shown_channels=self.CHANNELS).eval()
        condition, _ = inputs(channels=5)
        shown = condition[:, list(self.CHANNELS)]
        history = start_history(condition[:, None][:, :0], None, model.history_length, first_condition=condition)
        with torch.no_grad():
            output, _ = model.step(condition, history)
        assert float((output.hallucinated - shown).abs().mean()) < 0.1
        plain = build_generator(config, 5).eval()
        with torch.no_grad():
            other, _ = plain.step(condition, history)
        assert float((other.hallucinated - shown).abs().mean()) > 0.2

    def test_a_smaller_student_inherits_from_a_larger_one(self):
        torch.manual_seed(0)
        whole = build_generator(replace(TINY, widths=(12, 16, 20)), 5, shown_channels=self.CHANNELS)
        part = build_generator(TINY, 5, shown_channels=self.CHANNELS)
        inherit_weights(part, whole)
        condition, history = inputs(channels=5)
        part.step(condition, history)[0].frame.mean().backward()
        missing = [name for name, weight in part.named_parameters() if weight.grad is None]
        assert not missing

    @pytest.mark.parametrize("channels", [(1, 2), (3, 4, 5)])
    def test_channels_that_show_nothing_are_refused(self, channels):
        for config in (TINY, CompositeConfig(width=4)):
            with pytest.raises(ConfigError, match="can show a frame"):
                build_generator(config, 5, shown_channels=channels)


class TestStream:
    SPEC = ConditionSpec(
        kind="maps",
        map_channels=18,
        face=FaceConfig(background="none", crop="none", reference=FaceReference(places(), HERE).encode()),
    )

    def conditions(self, count=6):
        rng = np.random.default_rng(2)
        return [ConditionMap(maps=rng.uniform(-1, 1, (18, *TINY_SIZE)).astype(np.float32)) for _ in range(count)]

    def test_without_a_seed_the_past_is_what_the_first_condition_shows(self):
        conditions, engine = self.conditions(), FakeEngine()
        with Stream(engine, manifest(condition=self.SPEC)) as stream:
            assert len(list(stream.frames(conditions))) == 6
            stream.restart(np.full((*TINY_SIZE, 3), 255, np.uint8))
            list(stream.frames(conditions))
        first, seeded = engine.calls[0], engine.calls[3]
        assert np.allclose(first[2][0], conditions[0].maps[15:]) and first[3] == 1
        assert np.allclose(seeded[2][0, -1], 1)

    def test_so_it_is_on_a_device(self):
        from device_steps import TinyDeviceStep

        from export.device_stream import DeviceStream

        begun = []

        class Recording(TinyDeviceStep):
            def start(self, first, seed_frame=None):
                begun.append(seed_frame)
                super().start(first, seed_frame)

            def step(self, condition):
                return self._history.frames[:, -1]

        conditions = self.conditions(1)
        with DeviceStream(Recording(), manifest(condition=self.SPEC)) as stream:
            assert len(list(stream.frames(conditions))) == 1
        assert np.allclose(begun[0], conditions[0].maps[15:])
