"""Faces, poses, flow files and data set files: from folders of them to clips."""

import itertools
import json
import time
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from shared_data import shared
from torch.testing import assert_close

from fastv2v.config import from_dict, to_dict
from fastv2v.data.clip import Clip
from fastv2v.data.conditions import ConditionSpec, encode_condition_numpy, maps_to_float
from fastv2v.data.face import FaceConfig, crop_padded, draw_face, face_crop
from fastv2v.data.folder import FolderConfig, FrameReader, has_phase, open_folder
from fastv2v.data.images import read_flow
from fastv2v.data.loader import ClipLoader, collate_clips, read_clip, read_sequence
from fastv2v.data.manifest import read_manifest
from fastv2v.data.pose import NUM_PARTS, PoseConfig, PoseDrop, draw_openpose, pose_picture, read_openpose
from fastv2v.data.sampling import SamplingConfig
from fastv2v.data.transforms import GeometryConfig, draw_geometry
from fastv2v.data.world import WorldConfig, render_clip, write_world
from fastv2v.errors import ConfigError, DataError, ShapeError
from fastv2v.ops.labels import condition_pictures, encode_clip

NONE = GeometryConfig(mode="none")
SIZE = (96, 160)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, np.ndarray):
        assert cv2.imwrite(str(path), content[..., ::-1] if content.ndim == 3 else content)
    else:
        path.write_text(content)


def picture(seed, size=SIZE):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def landmarks(index=0, size=SIZE):
    """68 points on an ellipse-like curve of a face, 32 pixels wide, that moves to the right by a pixel each frame."""
    angle = np.linspace(0, np.pi, 17)
    jaw = np.stack([70 - 16 * np.cos(angle), 40 + 20 * np.sin(angle)], axis=1)
    others = np.random.default_rng(1).uniform((60, 35), (80, 55), (51, 2))
    return np.rint(np.concatenate([jaw, others])).astype(int) + np.array((index, 0))


def landmark_text(points):
    return "".join(f"{x},{y}\n" for x, y in points)


def someone(index=0):
    """BODY_25 of a person standing in the picture, moving right."""
    body = np.zeros((25, 3))
    xy = {0: (80, 12), 1: (80, 24), 2: (70, 24), 3: (64, 36), 4: (60, 48), 8: (80, 50), 9: (74, 52), 10: (72, 70)}
    for point, (x, y) in xy.items():
        body[point] = (x + index, y, 0.9)
    return {"pose_keypoints_2d": body.ravel().tolist()}


def pose_text(*people):
    return json.dumps({"version": 1.3, "people": list(people)})


def parts_map(index=0):
    """A DensePose map: parts 1 to 24 as vertical bars, coordinates noise."""
    image = picture(100 + index)
    image[..., 2] = (np.arange(SIZE[1]) // 4 % 25)[None]
    image[image[..., 2] == 0] = 0
    return image


def make_faces(root, lengths=(6,), phase="train"):
    for s, length in enumerate(lengths):
        for i in range(length):
            write(root / f"{phase}_img/seq{s}/{i:03d}.png", picture(10 * s + i))
            write(root / f"{phase}_keypoints/seq{s}/{i:03d}.txt", landmark_text(landmarks(i)))
    return root


def make_poses(root, lengths=(6,), phase="train"):
    for s, length in enumerate(lengths):
        for i in range(length):
            write(root / f"{phase}_img/seq{s}/{i:03d}.png", picture(10 * s + i))
            write(root / f"{phase}_openpose/seq{s}/{i:03d}_keypoints.json", pose_text(someone(i)))
            write(root / f"{phase}_densepose/seq{s}/{i:03d}_IUV.png", parts_map(i))
    return root


def faces(root, **fields):
    return open_folder(FolderConfig(**{"root": root, "condition": "face", "geometry": NONE, **fields}))


def poses(root, **fields):
    settings = {"root": root, "condition": "pose", "geometry": GeometryConfig(mode="exact", size=SIZE), **fields}
    return open_folder(FolderConfig(**settings))


def take(folder, num, sampling=None, start=0, **settings):
    settings = {"batch_size": 1, "seed": 3, **settings}
    batches = ClipLoader(folder, sampling or SamplingConfig(num_frames=3), **settings).batches(start)
    try:
        return list(itertools.islice(batches, num))
    finally:
        batches.close()


def names(folder):
    return [(s.name, s.stems) for s in folder.sequences]


class TestFaces:
    def test_maps_are_drawn_then_cropped_then_scaled(self, tmp_path):
        folder = faces(make_faces(tmp_path), geometry=GeometryConfig(mode="exact", size=(64, 48)))
        clip = read_sequence(folder, 0, 2, 4)
        image = picture(3)
        box = face_crop(landmarks(0), SIZE)
        drawn = crop_padded(draw_face(landmarks(3).astype(float), SIZE, FaceConfig(), image), box)
        expected = cv2.resize(drawn, (48, 64), interpolation=cv2.INTER_LINEAR).astype(np.float32) / 255
        assert clip.maps.shape == (1, 2, 15, 64, 48)
        assert_close(clip.maps[0, 1].permute(1, 2, 0).numpy(), expected, atol=1e-6, rtol=0)
        frame = cv2.resize(crop_padded(image, box), (48, 64), interpolation=cv2.INTER_CUBIC).astype(np.float32)
        assert_close(clip.frames[0, 1].permute(1, 2, 0).numpy(), frame / 127.5 - 1, atol=1e-6, rtol=0)
        assert clip.labels is None
        assert folder.spec.encoder == "face"

    def test_the_geometry_starts_from_the_box(self, tmp_path):
        folder = faces(make_faces(tmp_path), geometry=GeometryConfig(mode="scaleWidth", load_size=64))
        assert FrameReader(folder).image_size(0) == (80, 80)  # 2.5 times the face of 32 pixels
        assert read_sequence(folder, 0).size == (64, 64)

    def test_one_box_serves_the_sequence_whatever_part_is_read(self, tmp_path):
        folder = faces(make_faces(tmp_path, (6, 4)))
        whole = read_sequence(folder, 0)
        reader = FrameReader(folder)
        for start in (3, 0, 1):
            window = read_sequence(folder, 0, start, start + 2, reader=reader)
            assert torch.equal(window.frames, whole.frames[:, start : start + 2])
            assert torch.equal(window.maps, whole.maps[:, start : start + 2])

    def test_a_box_beyond_the_frame_is_padded_with_black(self, tmp_path):
        for i in range(2):
            write(tmp_path / f"train_img/s/{i}.png", np.full((70, 60, 3), 200, np.uint8))
            write(tmp_path / f"train_keypoints/s/{i}.txt", landmark_text(landmarks(-40)))
        folder = faces(tmp_path, geometry=GeometryConfig(mode="exact", size=(80, 80)))
        frame = read_sequence(folder, 0).frames[0, 0]
        assert (frame[:, :, 0] == -1).all() and (frame.max() > 0.5)

    def test_windows_are_read_and_drawn_once(self, tmp_path):
        folder = faces(make_faces(tmp_path))
        reader = FrameReader(folder)
        first = read_sequence(folder, 0, 0, 4, reader=reader)
        for path in tmp_path.rglob("*.*"):
            path.unlink()
        again = read_sequence(folder, 0, 1, 4, reader=reader)
        assert torch.equal(again.maps, first.maps[:, 1:]) and torch.equal(again.frames, first.frames[:, 1:])

    def test_maps_may_be_mirrored(self, tmp_path):
        folder = faces(make_faces(tmp_path))
        geometry = draw_geometry(NONE, (80, 80), np.random.default_rng(0))
        plain, mirrored = (read_clip(folder, 0, (0, 1), geometry, flip) for flip in (False, True))
        assert torch.equal(plain.maps.flip(-1), mirrored.maps)

    def test_one_channel_without_distances(self, tmp_path):
        folder = faces(make_faces(tmp_path), face=FaceConfig(distance_maps=False, background="none"))
        clip = read_sequence(folder, 0, 0, 1)
        assert clip.maps.shape == (1, 1, 1, 64, 64)  # 80 in multiples of 32, halves to even
        assert encode_clip(folder.spec, clip) is clip.maps

    def test_the_other_layout(self, tmp_path):
        make_faces(tmp_path / "a")
        for name in ("img", "keypoints"):
            (tmp_path / "b" / name).mkdir(parents=True)
            (tmp_path / "a" / f"train_{name}").rename(tmp_path / "b" / name / "train")
        assert len(faces(tmp_path / "b").sequences[0]) == 6

    def test_random_scales_and_the_cache_agree(self, tmp_path):
        geometry = GeometryConfig(mode="randomScaleWidth", load_size=96, fine_size=32)
        folder = faces(make_faces(tmp_path), geometry=geometry)
        for kept, fresh in zip(take(folder, 4), take(folder, 4, cache_mb=0), strict=True):
            assert torch.equal(kept.maps, fresh.maps)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("1,2\n" * 67, "002.txt: 67 landmarks instead of 68"),
            ("1;2\n" * 68, "002.txt"),
        ],
    )
    def test_damage_is_refused_at_any_setting(self, tmp_path, text, message):
        write(make_faces(tmp_path) / "train_keypoints/seq0/002.txt", text)
        for missing in ("fail", "hold", "skip"):
            with pytest.raises(DataError, match=message):
                faces(tmp_path, missing=missing)

    def test_a_face_outside_the_frame_is_named(self, tmp_path):
        write(make_faces(tmp_path) / "train_keypoints/seq0/002.txt", landmark_text(landmarks(400)))
        with pytest.raises(DataError, match=r"002\.txt: 68 of 68 landmarks lie outside the 160x96 frame"):
            faces(tmp_path)

    def test_a_stray_point_is_named(self, tmp_path):
        points = landmarks(0)
        points[7] = 9000, 50
        write(make_faces(tmp_path) / "train_keypoints/seq0/000.txt", landmark_text(points))
        with pytest.raises(DataError, match=r"000\.txt: landmark 7 .* is at \(9000, 50\)"):
            faces(tmp_path)

    def test_a_face_without_width_is_named(self, tmp_path):
        write(make_faces(tmp_path) / "train_keypoints/seq0/000.txt", "50,40\n" * 68)
        with pytest.raises(DataError, match=r"000\.txt: the face is 0 pixels wide"):
            faces(tmp_path)

    def test_training_draws_no_other_face(self, tmp_path):
        folder = faces(make_faces(tmp_path), face=FaceConfig(scale_points=True))
        assert read_sequence(folder, 0).num_frames == 6
        with pytest.raises(ConfigError, match=r"scale_points .* inference only; switch it off"):
            take(folder, 1)


class TestPoses:
    def test_densepose_then_openpose_by_the_nearest_pixel(self, tmp_path):
        folder = poses(make_poses(tmp_path), geometry=GeometryConfig(mode="exact", size=(48, 80)))
        clip = read_sequence(folder, 0, 1, 3)
        people = read_openpose(pose_text(someone(2)).encode(), "")
        both = np.concatenate([parts_map(2), draw_openpose(people, SIZE, PoseConfig())], axis=-1)
        expected = both[1::2, 1::2].astype(np.float32) / 127.5 - 1  # centres lie on the odd pixels
        expected[..., 2] = parts_map(2)[1::2, 1::2, 2] / 12.0 - 1
        assert clip.maps.shape == (1, 2, 6, 48, 80)
        assert_close(clip.maps[0, 1].permute(1, 2, 0).numpy(), expected, atol=1e-6, rtol=0)
        assert folder.spec.encoder == "pose"
        assert folder.sequences[0].stems[0] == "000"

    @pytest.mark.parametrize("name", ["densepose", "openpose"])
    def test_one_kind_alone_needs_no_other_folder(self, tmp_path, name):
        make_poses(tmp_path)
        other = {"densepose": "openpose", "openpose": "densepose"}[name]
        (tmp_path / f"train_{other}").rename(tmp_path / "elsewhere")
        folder = poses(tmp_path, pose=PoseConfig(**{other: False}))
        assert read_sequence(folder, 0, 0, 1).maps.shape[2] == 3
        with pytest.raises(DataError, match=f"the folder train_{other} is missing"):
            poses(tmp_path)

    def test_the_middle_columns_are_kept_unless_told_otherwise(self, tmp_path):
        make_poses(tmp_path)
        geometry = GeometryConfig(mode="scaleWidth", load_size=320)
        folder = poses(tmp_path, geometry=geometry)
        kept, whole = (
            read_sequence(f, 0) for f in (folder, poses(tmp_path, geometry=replace(geometry, centre_crop=False)))
        )
        assert kept.size == (192, 128) and whole.size == (192, 320)
        assert torch.equal(kept.frames, whole.frames[..., 96:224])
        assert torch.equal(kept.maps, whole.maps[..., 96:224])
        assert from_dict(FolderConfig, to_dict(folder.config)) == folder.config

    @pytest.mark.parametrize(
        ("geometry", "size", "expected"),
        [
            (GeometryConfig(mode="scaleHeight", load_size=512), (720, 1280), (512, 448)),
            (
                GeometryConfig(mode="randomScaleHeight_and_scaledCrop", load_size=768, fine_size=512),
                (720, 1280),
                (512, 448),
            ),
        ],
    )
    def test_published_sizes(self, geometry, size, expected):
        config = replace(geometry, centre_crop=True)
        for seed in range(4):
            assert draw_geometry(config, size, np.random.default_rng(seed)).size == expected

    def test_exact_states_the_final_size(self):
        with pytest.raises(ConfigError, match="leave centre_crop out"):
            GeometryConfig(mode="exact", size=(64, 64), centre_crop=True)

    def test_frames_too_narrow_for_the_centre_crop_are_explained(self, tmp_path):
        folder = poses(make_poses(tmp_path), geometry=GeometryConfig(mode="scaleWidth", load_size=96))
        with pytest.raises(ConfigError, match="scale the frames to at least 128 columns"):
            read_sequence(folder, 0)

    def test_poses_are_never_mirrored(self, tmp_path):
        (clip,) = take(poses(make_poses(tmp_path)), 1, batch_size=16)
        assert not any(info.flipped for info in clip.info)

    def test_another_size_than_the_frame_is_named(self, tmp_path):
        write(make_poses(tmp_path) / "train_densepose/seq0/003_IUV.png", np.zeros((96, 150, 3), np.uint8))
        with pytest.raises(DataError, match=r"003_IUV\.png is 150x96 pixels and .*003\.png is 160x96"):
            read_sequence(poses(tmp_path), 0)

    def test_unknown_parts_are_named(self, tmp_path):
        image = parts_map()
        image[0, 1, 2] = 77
        write(make_poses(tmp_path) / "train_densepose/seq0/003_IUV.png", image)
        with pytest.raises(DataError, match=r"003_IUV\.png: part id 77"):
            read_sequence(poses(tmp_path, geometry=GeometryConfig(mode="exact", size=(32, 32))), 0)

    @pytest.mark.parametrize(
        ("image", "message"),
        [(np.zeros(SIZE, np.uint8), "1 of uint8"), (np.zeros((*SIZE, 3), np.uint16), "3 of uint16")],
    )
    def test_densepose_is_three_channels_of_eight_bits(self, tmp_path, image, message):
        path = make_poses(tmp_path) / "train_densepose/seq0/003_IUV.png"
        assert cv2.imwrite(str(path), image)
        with pytest.raises(
            DataError, match=rf"003_IUV\.png: expected 3 channels of 8 bits, .* {message}; write it again"
        ):
            read_sequence(poses(tmp_path), 0)

    def test_several_people_are_one_warning(self, tmp_path, caplog):
        make_poses(tmp_path)
        for i in (1, 4):
            write(tmp_path / f"train_openpose/seq0/{i:03d}_keypoints.json", pose_text(someone(), someone(9)))
        poses(tmp_path)
        assert caplog.text.count("WARNING") == 1
        assert "2 of 6 frames show several people (001_keypoints.json, 004_keypoints.json)" in caplog.text

    def test_people_outside_the_frame_are_named(self, tmp_path):
        far = np.array(someone()["pose_keypoints_2d"]).reshape(25, 3) + np.array((4000, 0, 0))
        text = pose_text({"pose_keypoints_2d": far.ravel().tolist()})
        write(make_poses(tmp_path) / "train_openpose/seq0/003_keypoints.json", text)
        with pytest.raises(
            DataError, match=r"003_keypoints\.json: 8 of 8 points of bodies lie outside the 160x96 frame"
        ):
            poses(tmp_path)

    def test_nobody_but_zeros_is_a_gap(self, tmp_path):
        zeros = pose_text({"pose_keypoints_2d": [0] * 75})
        write(make_poses(tmp_path) / "train_openpose/seq0/003_keypoints.json", zeros)
        with pytest.raises(DataError, match=r"1 frames have no usable OpenPose file \(003\)"):
            poses(tmp_path)
        assert names(poses(tmp_path, missing="skip")) == [("seq0#1", ("000", "001", "002")), ("seq0#2", ("004", "005"))]

    def test_damaged_json_is_refused_at_any_setting(self, tmp_path):
        write(make_poses(tmp_path) / "train_openpose/seq0/003_keypoints.json", "{")
        for missing in ("fail", "hold", "skip"):
            with pytest.raises(DataError, match=r"003_keypoints\.json: not a readable JSON file"):
                poses(tmp_path, missing=missing)


class TestDrops:
    def folder(self, root, drop_per="clip", p=0.5, **fields):
        return poses(make_poses(root), pose=PoseConfig(random_drop=p, drop_per=drop_per), **fields)

    def parts(self, clip):
        """The DensePose ids of each frame."""
        ids = ((clip.maps[0, :, 2] + 1) * 12).round().int()
        return [set(frame.unique().tolist()) for frame in ids]

    def test_a_drop_that_leaves_the_limbs_alone_draws_nothing_anew(self, tmp_path, monkeypatch):
        folder = poses(make_poses(tmp_path))
        geometry = draw_geometry(folder.config.geometry, SIZE, None, "test")
        reader = FrameReader(folder)
        whole = reader.read(0, [0, 1], geometry)["maps"]
        calls = []
        monkeypatch.setattr(
            "fastv2v.data.reader.draw_openpose", lambda *a, **k: calls.append(k) or draw_openpose(*a, **k)
        )
        same = reader.read(0, [0, 1], geometry, drops=[PoseDrop(), PoseDrop(parts=frozenset({3}))])["maps"]
        assert not calls and np.array_equal(same[..., 3:], whole[..., 3:]) and not np.array_equal(same, whole)
        reader.read(0, [0, 1], geometry, drops=[PoseDrop(left_hand=True), PoseDrop(face_shift=(1.0, 0.0))])
        assert len(calls) == 2

    def test_key_points_are_parsed_once(self, tmp_path):
        folder = poses(make_poses(tmp_path), pose=PoseConfig(densepose=False))
        geometry = draw_geometry(folder.config.geometry, SIZE, None, "test")
        reader = FrameReader(folder)
        reader.read(0, [2], geometry)
        folder.sequences[0].path("openpose", 2).unlink()
        drop = PoseDrop(segments=frozenset({5}))
        (drawn,) = reader.read(0, [2], geometry, drops=[drop])["maps"]
        people = read_openpose(pose_text(someone(2)).encode(), "")
        assert np.array_equal(drawn, draw_openpose(people, SIZE, PoseConfig(), drop=drop))

    def test_everything_dropped_is_empty(self, tmp_path):
        for clip in take(self.folder(tmp_path, p=1.0), 2):
            assert (clip.maps == -1).all()
            assert clip.frames.std() > 0.1

    def test_a_clip_or_a_frame_loses_its_own_parts(self, tmp_path):
        for drop_per, same in (("clip", True), ("frame", False)):
            found = self.parts(take(self.folder(tmp_path, drop_per), 1)[0])
            assert (found[0] == found[1] == found[2]) is same
            assert 1 < len(found[0]) < 25

    def test_clips_differ_and_the_cache_is_not_spoiled(self, tmp_path):
        folder = self.folder(tmp_path)
        sampling = SamplingConfig(num_frames=3, fixed_start=0)
        clips = take(folder, 6, sampling)
        assert len({tuple(sorted(self.parts(clip)[0])) for clip in clips}) > 3
        for kept, fresh in zip(clips, take(folder, 6, sampling, cache_mb=0), strict=True):
            assert torch.equal(kept.maps, fresh.maps)

    def test_batches_depend_on_their_number_alone(self, tmp_path):
        folder = self.folder(tmp_path, "frame")
        expected = take(folder, 5)
        for start, num_workers in ((3, 0), (3, 1)):
            for a, b in zip(expected[start:], take(folder, 2, start=start, num_workers=num_workers), strict=True):
                assert torch.equal(a.maps, b.maps)

    def test_nothing_is_dropped_in_tests_or_when_switched_off(self, tmp_path):
        make_poses(tmp_path, phase="test")
        for folder in (self.folder(tmp_path, phase="test"), self.folder(tmp_path, p=0.0)):
            assert self.parts(take(folder, 1)[0])[0] == set(range(25))
        assert self.parts(read_sequence(self.folder(tmp_path, p=1.0), 0))[0] == set(range(25))

    def test_given_drops_are_applied_frame_by_frame(self, tmp_path):
        folder = self.folder(tmp_path)
        geometry = draw_geometry(folder.config.geometry, SIZE, None, "test")
        drops = [PoseDrop(parts=frozenset({5})), PoseDrop()]
        found = self.parts(read_clip(folder, 0, (0, 1), geometry, drops=drops))
        assert (5 in found[0], 5 in found[1]) == (False, True)


class TestGaps:
    def gappy(self, root):
        """Of nine frames 0, 4 and 5 have no face: two empty files and one that is not there."""
        make_faces(root, (9, 3))
        for i in (0, 4):
            write(root / f"train_keypoints/seq0/{i:03d}.txt", "\n" if i else "")
        (root / "train_keypoints/seq0/005.txt").unlink()
        return root

    def test_fail_counts_names_and_tells_the_choices(self, tmp_path):
        with pytest.raises(DataError) as error:
            faces(self.gappy(tmp_path))
        assert str(error.value) == (
            f"{tmp_path}: in sequence 'seq0' 3 frames have no usable landmark file (000, 004, 005); detect them again, "
            "or set missing to 'hold' (repeat the one before) or to 'skip' (cut the sequence there)"
        )

    def test_skip_cuts_there(self, tmp_path, caplog):
        folder = faces(self.gappy(tmp_path), missing="skip")
        assert names(folder) == [
            ("seq0#1", ("001", "002", "003")),
            ("seq0#2", ("006", "007", "008")),
            ("seq1", ("000", "001", "002")),
        ]
        assert caplog.text.count("WARNING") == 1
        assert "3 frames have no usable landmark file (000, 004, 005); the sequences are cut there" in caplog.text
        clip = read_sequence(folder, 1)
        assert clip.info[0].names == ("006", "007", "008")
        assert torch.equal(clip.frames, read_sequence(folder, 1, reader=FrameReader(folder)).frames)

    def test_hold_repeats_the_one_before_and_the_first_at_the_start(self, tmp_path, caplog):
        folder = faces(self.gappy(tmp_path), missing="hold", face=FaceConfig(background="none"))
        stems = [path.stem for path in folder.sequences[0].files["keypoints"]]
        assert stems == ["001", "001", "002", "003", "003", "003", "006", "007", "008"]
        assert caplog.text.count("WARNING") == 1
        clip = read_sequence(folder, 0)
        assert torch.equal(clip.maps[:, 4], clip.maps[:, 3])
        assert not torch.equal(clip.frames[:, 4], clip.frames[:, 3])

    def test_held_landmarks_get_the_background_of_their_own_frame(self, tmp_path):
        clip = read_sequence(faces(self.gappy(tmp_path), missing="hold"), 0)
        assert not torch.equal(clip.maps[:, 4, 0], clip.maps[:, 3, 0])
        assert torch.equal(clip.maps[:, 4, 1:], clip.maps[:, 3, 1:])

    def test_nothing_to_hold_and_nothing_left(self, tmp_path):
        make_faces(tmp_path, (2,))
        for i in range(2):
            write(tmp_path / f"train_keypoints/seq0/{i:03d}.txt", "")
        with pytest.raises(DataError, match="sequence 'seq0' has no usable landmark file to hold"):
            faces(tmp_path, missing="hold")
        with pytest.raises(DataError, match="nobody was detected in any frame"):
            faces(tmp_path, missing="skip")

    def test_each_map_of_a_pose_may_lack(self, tmp_path):
        make_poses(tmp_path)
        write(tmp_path / "train_openpose/seq0/001_keypoints.json", pose_text())
        (tmp_path / "train_densepose/seq0/004_IUV.png").unlink()
        with pytest.raises(
            DataError, match=r"1 frames have no usable DensePose map \(004\), in .* OpenPose file \(001\)"
        ):
            poses(tmp_path)
        folder = poses(tmp_path, missing="skip")
        assert [stems for _, stems in names(folder)] == [("000",), ("002", "003"), ("005",)]
        held = poses(tmp_path, missing="hold").sequences[0]
        assert held.files["openpose"][1] == held.files["openpose"][0]
        for kind in ("openpose", "densepose"):  # one frame gives both, though only one lacks
            stems = [path.stem[:3] for path in held.files[kind]]
            assert stems == ["000", "000", "002", "003", "003", "005"]

    def test_a_pose_without_any_whole_frame_cannot_be_held(self, tmp_path):
        make_poses(tmp_path, (2,))
        write(tmp_path / "train_openpose/seq0/001_keypoints.json", pose_text())
        (tmp_path / "train_densepose/seq0/000_IUV.png").unlink()
        with pytest.raises(DataError, match="no usable DensePose map and OpenPose file of one frame to hold"):
            poses(tmp_path, missing="hold")

    def test_maps_without_a_frame_are_an_error_at_any_setting(self, tmp_path):
        (make_faces(tmp_path) / "train_img/seq0/002.png").unlink()
        for missing in ("fail", "hold", "skip"):
            with pytest.raises(DataError, match=r"1 landmark files have no frame \(002\)"):
                faces(tmp_path, missing=missing)

    def test_long_lists_break_off(self, tmp_path):
        make_faces(tmp_path, (6,) * 5)
        for path in (tmp_path / "train_keypoints").rglob("*.txt"):
            if path.stem != "000":
                path.write_text("")
        with pytest.raises(DataError, match=r"'seq2' 5 frames have .* \(001, 002, 003, \.\.\.\), and 2 more; detect"):
            faces(tmp_path)

    def test_the_tail_is_counted_before_sequences_are_cut(self, tmp_path):
        self.gappy(tmp_path)
        train, test = (faces(tmp_path, missing="skip", phase=p, test_tail=2) for p in ("train", "test"))
        assert names(test) == [("seq0", ("007", "008")), ("seq1", ("001", "002"))]
        assert names(train) == [("seq0#1", ("001", "002", "003")), ("seq0#2", ("006",)), ("seq1", ("000",))]

    def test_sampling_sees_the_pieces(self, tmp_path):
        for clip in take(faces(self.gappy(tmp_path), missing="skip"), 6):
            assert clip.info[0].names in {("001", "002", "003"), ("006", "007", "008"), ("000", "001", "002")}


class TestFlowFiles:
    @pytest.fixture(scope="class")
    def world(self, tmp_path_factory):
        config = WorldConfig(size=(64, 128), num_frames=4, fps=8)
        root = write_world(tmp_path_factory.mktemp("w") / "world", config, train_clips=1, test_clips=0, write_flow=True)
        return root, [frame.flow_to_previous for frame in render_clip(config, 0)]

    def folder(self, root, **fields):
        return open_folder(FolderConfig(**{"root": root, "flow_files": True, "geometry": NONE, **fields}))

    def test_entry_t_is_that_of_frame_t_plus_1(self, world):
        root, flows = world
        clip = read_sequence(self.folder(root), 0)
        assert clip.flow.shape == (1, 3, 2, 64, 128)
        assert clip.flow.is_contiguous()
        for t in range(3):
            np.testing.assert_array_equal(clip.flow[0, t].permute(1, 2, 0).numpy(), flows[t + 1])
        assert read_sequence(self.folder(root, flow_files=False), 0).flow is None

    def test_windows_and_batches(self, world):
        folder = self.folder(world[0])
        clip = read_sequence(folder, 0)
        assert torch.equal(read_sequence(folder, 0, 1, 4).flow, clip.flow[:, 1:])
        assert collate_clips([clip, clip]).flow.shape[0] == 2
        assert read_sequence(folder, 0, 2, 3).flow is None

    def test_middlebury_files(self, world, tmp_path):
        flows = world[1]
        path = tmp_path / "x.flo"
        path.write_bytes(b"PIEH" + np.array([128, 64], "<i4").tobytes() + flows[1].astype("<f4").tobytes())
        np.testing.assert_array_equal(read_flow(path), flows[1])

    def constant(self, root, flow, size=(32, 64), num=3):
        for i in range(num):
            write(root / f"train_A/s/{i}.png", np.zeros(size, np.uint8))
            write(root / f"train_B/s/{i}.png", np.zeros((*size, 3), np.uint8))
            path = root / f"train_flow/s/{i}.npz"
            path.parent.mkdir(parents=True, exist_ok=True)
            if i:
                np.savez(path, to_previous=np.broadcast_to(np.float32(flow), (*size, 2)))
        return root

    def test_flow_is_scaled_cropped_and_mirrored_like_the_frames(self, tmp_path):
        self.constant(tmp_path, (4, -2))
        folder = self.folder(tmp_path, geometry=GeometryConfig(mode="exact", size=(64, 32)))
        geometry = draw_geometry(folder.config.geometry, (32, 64), None, "test")
        plain, mirrored = (read_clip(folder, 0, (0, 1), geometry, flip).flow for flip in (False, True))
        assert plain.shape == (1, 1, 2, 64, 32)
        assert_close(plain[0, 0].mean((1, 2)), torch.tensor([2.0, -4.0]))
        assert_close(mirrored[0, 0].mean((1, 2)), torch.tensor([-2.0, -4.0]))
        cut = self.folder(tmp_path, geometry=GeometryConfig(mode="crop", fine_size=32))
        assert_close(read_sequence(cut, 0).flow[0, 1].mean((1, 2)), torch.tensor([4.0, -2.0]))

    def test_mirrored_flow_points_where_mirrored_pixels_lie(self, tmp_path):
        ramp = np.zeros((32, 64, 2), np.float32)
        ramp[..., 0] = np.arange(64)
        folder = self.folder(self.constant(tmp_path, ramp))
        geometry = draw_geometry(NONE, (32, 64), None, "test")
        assert_close(read_clip(folder, 0, (0, 1), geometry, True).flow[0, 0, 0, 5], torch.arange(64.0).flip(0).neg())

    def test_frames_further_apart_have_none(self, world):
        folder = self.folder(world[0])
        geometry = draw_geometry(NONE, (64, 128), None, "test")
        assert read_clip(folder, 0, (0, 2), geometry).flow is None
        with pytest.raises(ConfigError, match="max_step is 2; set it to 1, or set flow_files to False"):
            ClipLoader(folder, SamplingConfig(num_frames=2, max_step=2), batch_size=1, seed=0)

    def test_only_the_first_frame_may_lack_its_file(self, tmp_path):
        self.constant(tmp_path, (0, 0))
        (tmp_path / "train_flow/s/1.npz").unlink()
        with pytest.raises(
            DataError, match=r"1 label maps have no flow file|1 frames and label maps have no flow file"
        ):
            self.folder(tmp_path)

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (np.zeros((32, 64, 2)), "must be float32 of shape .* got float64"),
            (np.zeros((32, 64, 3), np.float32), r"got float32 of \(32, 64, 3\)"),
            (np.zeros((31, 64, 2), np.float32), "is 64x31 pixels and"),
            (np.full((32, 64, 2), np.nan, np.float32), "unknown or not finite"),
            (np.full((32, 64, 2), 1e10, np.float32), "unknown or not finite"),
        ],
    )
    def test_wrong_arrays_are_one_sentence(self, tmp_path, array, message):
        self.constant(tmp_path, (0, 0))
        np.savez(tmp_path / "train_flow/s/1.npz", to_previous=array)
        with pytest.raises(DataError, match=message) as error:
            read_sequence(self.folder(tmp_path), 0)
        assert "1.npz" in str(error.value) and "\n" not in str(error.value)

    def test_damaged_files_are_one_sentence(self, tmp_path):
        path = tmp_path / "a.npz"
        np.savez(path, to_next=np.zeros((2, 2, 2), np.float32))
        with pytest.raises(DataError, match=r"a\.npz: has no array 'to_previous'"):
            read_flow(path)
        whole = path.read_bytes()
        for content in (b"", whole[:-30], b"nonsense", whole[:40] + b"\0" * 10 + whole[50:]):
            path.write_bytes(content)
            with pytest.raises(DataError, match=r"a\.npz: (not a readable \.npz file|has no array)"):
                read_flow(path)
        for array in (np.array([{}], object), np.array([[1.0]])):
            np.save(path.with_suffix(".npy"), array, allow_pickle=True)
            path.write_bytes(path.with_suffix(".npy").read_bytes())
            with pytest.raises(DataError, match=r"a\.npz: not a readable \.npz .*write it again") as error:
                read_flow(path)
            assert "pickle" not in str(error.value) and "unsafe" not in str(error.value)
        for content in (b"", b"PIEH", b"PIEH" + np.array([4, 4], "<i4").tobytes() + b"\0" * 60, b"x" * 12):
            path.with_suffix(".flo").write_bytes(content)
            with pytest.raises(DataError, match=r"a\.flo: not a Middlebury flow file, or cut short"):
                read_flow(path.with_suffix(".flo"))
        with pytest.raises(DataError, match="there is no such flow file"):
            read_flow(tmp_path / "none.npz")


class TestDataSetFile:
    def make(self, root, content=None):
        """Two sequences for training and one for testing, anywhere."""
        for name in ("one", "two", "three"):
            for i in range(3):
                write(root / f"videos/{name}/{i}.png", picture(i))
                write(root / f"ids/{name}/{i}.png", np.full(SIZE, i, np.uint8))
        entry = {n: {"name": n, "frames": f"videos/{n}", "labels": f"ids/{n}"} for n in ("one", "two", "three")}
        whole = {"train": [entry["two"], entry["one"]], "test": [entry["three"]]}
        path = root / "set.json"
        path.write_text(json.dumps(whole if content is None else content))
        return path

    def test_sequences_come_from_the_file(self, tmp_path):
        path = self.make(tmp_path)
        train, test = (open_folder(FolderConfig(root=path, phase=p, geometry=NONE)) for p in ("train", "test"))
        assert [s.name for s in train.sequences] == ["one", "two"]
        assert [s.name for s in test.sequences] == ["three"]
        assert train.spec == test.spec and train.spec.num_classes == 3
        assert read_sequence(test, 0).labels[0, 2].unique().tolist() == [2]
        assert has_phase(test.config, "test")

    def test_classes_lie_beside_it_and_a_tail_may_be_held_out(self, tmp_path):
        content = {"train": [{"name": "a/b", "frames": "videos/one", "labels": "ids/one"}]}
        path = self.make(tmp_path, content)
        classes = [{"name": n, "color": [1, 2, 3]} for n in "abc"]
        (tmp_path / "classes.json").write_text(json.dumps({"schema": 1, "classes": classes}))
        folder = open_folder(FolderConfig(root=path, phase="test", test_tail=1))
        assert folder.spec.class_names == ("a", "b", "c")
        assert names(folder) == [("a/b", ("2",))]
        assert not has_phase(folder.config, "test")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ([], "keys train and test, and no others"),
            ({}, "keys train and test, and no others"),
            ({"train": [], "val": []}, "keys train and test, and no others"),
            ({"train": {}}, "'train' must be a list"),
            ({"train": [[]]}, "sequence 0 of 'train' must be an object of texts"),
            ({"train": [{"name": "a", "frames": 3}]}, "must be an object of texts"),
            ({"train": [{"frames": "videos/one"}]}, "has no name"),
            ({"train": [{"name": "a", "rgb": "videos/one"}]}, "has rgb; it needs a name and may have frames, labels"),
            ({"train": [{"name": "a"}, {"name": "a"}]}, "two sequences of 'train' have the name 'a'"),
            ({"train": [{"name": "a", "frames": "videos/one"}]}, "'a' names no directory of label maps; add 'labels'"),
            ({"train": [{"name": "a", "frames": "x", "labels": "ids/one"}]}, "the frames of sequence 'a', is no dir"),
            ({"train": []}, "no sequence was found under 'train'; add one"),
        ],
    )
    def test_refusals(self, tmp_path, content, message):
        path = self.make(tmp_path, content)
        with pytest.raises(DataError, match=message) as error:
            open_folder(FolderConfig(root=path))
        assert "set.json" in str(error.value)

    @pytest.mark.parametrize(
        "name", ["/tmp/a", "..", "../a", "a/../../b", "a\\b", "c:a", "C:/a", "//host/a", "a\0b", "a\ud800", "a\udcff"]
    )
    def test_names_that_would_lead_out_of_a_folder_are_refused(self, tmp_path, name):
        path = self.make(tmp_path, {"train": [{"name": name, "frames": "videos/one", "labels": "ids/one"}]})
        with pytest.raises(DataError, match=r"set\.json: sequence 0 of 'train' has the name '.*'; results") as error:
            open_folder(FolderConfig(root=path))
        assert str(error.value).isprintable()

    def test_many_sequences_are_read_in_no_time(self, tmp_path):
        entries = [{"name": f"s{i}"} for i in range(20000)]
        (tmp_path / "set.json").write_text(json.dumps({"train": entries}))
        start = time.process_time()
        assert len(read_manifest(tmp_path / "set.json")["train"]) == 20000
        assert time.process_time() - start < 2

    @pytest.mark.parametrize("name", ["a/b", "a..b", "Straße 1", ".", "a#1"])
    def test_other_names_are_not(self, tmp_path, name):
        path = self.make(tmp_path, {"train": [{"name": name, "frames": "videos/one", "labels": "ids/one"}]})
        assert open_folder(FolderConfig(root=path)).sequences[0].name == name

    def test_damaged_json(self, tmp_path):
        path = self.make(tmp_path)
        path.write_text("{")
        with pytest.raises(DataError, match="not a readable JSON"):
            open_folder(FolderConfig(root=path))


class TestSettings:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"missing": "interpolate"}, "missing is one of fail, hold, skip"),
            ({"missing": "hold"}, "missing belong to the condition face or pose"),
            ({"face": FaceConfig(background="none")}, "face belong to the condition face"),
            ({"condition": "face", "pose": PoseConfig(openpose=False)}, "pose belong to the condition pose"),
            ({"condition": "pose", "num_classes": 3}, "num_classes belong to the condition labels"),
        ],
    )
    def test_settings_without_effect_are_refused(self, tmp_path, fields, message):
        with pytest.raises(ConfigError, match=message):
            FolderConfig(root=tmp_path, **fields)

    @pytest.mark.parametrize("fields", [{"condition": "face"}, {"condition": "pose"}, {"flow_files": True}])
    def test_missing_folders_name_the_convention(self, tmp_path, fields):
        endings = {"face": ".txt", "pose": ".json"}.get(fields.get("condition"), ".npz")
        with pytest.raises(DataError, match=rf"(is|are) missing; looked for train_.* with .* as .*<frame>{endings}"):
            open_folder(FolderConfig(root=tmp_path, **fields))


class TestConditionSpec:
    @pytest.mark.parametrize(
        ("fields", "encoder"),
        [
            ({"class_names": ("a",)}, "labels"),
            ({"kind": "maps", "map_channels": 3}, "rgb"),
            ({"kind": "maps", "map_channels": 5}, "maps"),
            ({"kind": "maps", "map_channels": 15, "face": FaceConfig()}, "face"),
            ({"kind": "maps", "map_channels": 15, "encoder": "face"}, "face"),
            ({"kind": "maps", "map_channels": 6, "encoder": "pose"}, "pose"),
        ],
    )
    def test_the_encoder_follows_from_the_rest(self, fields, encoder):
        spec = ConditionSpec(**fields)
        assert spec.encoder == encoder
        assert (spec.face is not None, spec.pose is not None) == (encoder == "face", encoder == "pose")
        assert from_dict(ConditionSpec, json.loads(json.dumps(to_dict(spec)))) == spec

    def test_conditions_of_as_many_channels_are_told_apart(self):
        three = [
            ConditionSpec(kind="maps", map_channels=3, encoder=encoder, pose=pose)
            for encoder, pose in (
                ("rgb", None),
                ("maps", None),
                ("pose", PoseConfig(openpose=False)),
                ("pose", PoseConfig(densepose=False)),
            )
        ]
        assert len({spec.describe() for spec in three}) == 4
        assert all(a != b for a, b in itertools.combinations(three, 2))

    def test_random_drops_are_no_part_of_it(self):
        specs = {ConditionSpec(kind="maps", map_channels=6, pose=PoseConfig(random_drop=p)) for p in (0.0, 0.3)}
        assert len(specs) == 1

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"kind": "maps", "map_channels": 3, "encoder": "depth"}, "unknown encoder 'depth'"),
            ({"class_names": ("a",), "encoder": "rgb"}, "'rgb' does not go with a condition of kind 'labels'"),
            ({"kind": "maps", "map_channels": 5, "encoder": "rgb"}, "makes 3 channels as it is set, and .* is 5"),
            ({"kind": "maps", "map_channels": 6, "encoder": "face"}, "makes 15 channels"),
            ({"kind": "maps", "map_channels": 3, "encoder": "rgb", "face": FaceConfig()}, "go with their own encoders"),
        ],
    )
    def test_contradictions_are_refused(self, fields, message):
        with pytest.raises(ConfigError, match=message):
            ConditionSpec(**fields)


class TestMapsToFloat:
    def test_value_ranges(self):
        stored = np.array([0, 51, 255], np.uint8).reshape(1, 3, 1)
        rgb = ConditionSpec(kind="maps", map_channels=3)
        assert_close(maps_to_float(rgb, stored.repeat(3, -1))[1].ravel(), np.float32([-1, -0.6, 1]))
        face = ConditionSpec(kind="maps", map_channels=1, face=FaceConfig(distance_maps=False))
        assert_close(maps_to_float(face, stored).ravel(), np.float32([0, 0.2, 1]))

    def test_part_ids_span_the_range(self):
        pose = ConditionSpec(kind="maps", map_channels=6, encoder="pose")
        stored = np.zeros((2, 1, 3, 6), np.uint8)
        stored[:, 0, :, 2] = (0, 23, 24)
        values = maps_to_float(pose, stored)
        assert values.shape == (2, 6, 1, 3) and values.flags.c_contiguous
        assert_close(values[1, 2, 0], np.float32([-1, 0.9166667, 1]))

    def test_the_encoders_pass_it_on(self, tmp_path):
        folder = poses(make_poses(tmp_path))
        clip = read_sequence(folder, 0, 0, 1)
        encoded = encode_condition_numpy(folder.spec, maps=clip.maps[0, 0].numpy())
        assert np.array_equal(encode_clip(folder.spec, clip)[0, 0].numpy(), encoded)

    def test_refusals(self):
        with pytest.raises(ConfigError, match="maps of 5 channels is not known"):
            maps_to_float(ConditionSpec(kind="maps", map_channels=5), np.zeros((2, 2, 5), np.uint8))
        with pytest.raises(ShapeError, match=r"expected maps of shape \(\.\.\., H, W, 3\)"):
            maps_to_float(ConditionSpec(kind="maps", map_channels=3), np.zeros((2, 2, 4), np.uint8))


class TestConditionPictures:
    def test_faces_are_white_on_black(self, tmp_path):
        folder = faces(make_faces(tmp_path))
        clip = read_sequence(folder, 0, 0, 2)
        shown = condition_pictures(folder.spec, clip, folder.palette)
        assert_close(shown, (clip.maps[:, :, :1] * 2 - 1).expand(-1, -1, 3, -1, -1))

    def test_poses_follow_the_picture_rule(self, tmp_path):
        folder = poses(make_poses(tmp_path))
        clip = read_sequence(folder, 0, 0, 2)
        shown = condition_pictures(folder.spec, clip, folder.palette)
        people = read_openpose(pose_text(someone(1)).encode(), "")
        stored = np.concatenate([parts_map(1), draw_openpose(people, SIZE, PoseConfig())], axis=-1)
        expected = pose_picture(stored, PoseConfig()).astype(np.float32) / 127.5 - 1
        assert_close(shown[0, 1].permute(1, 2, 0).numpy(), expected, atol=1e-6, rtol=0)
        assert NUM_PARTS == 24

    def test_colours_stay(self):
        maps = torch.rand(1, 2, 3, 4, 4)
        clip = read_like(maps)
        assert torch.equal(condition_pictures(ConditionSpec(kind="maps", map_channels=3), clip, ()), maps)

    def test_other_maps_show_their_first_channel(self):
        maps = torch.rand(1, 2, 5, 4, 4) * 4 - 2
        shown = condition_pictures(ConditionSpec(kind="maps", map_channels=5), read_like(maps), ())
        assert torch.equal(shown[:, :, 1], maps[:, :, 0].clamp(-1, 1))


def read_like(maps):
    return Clip(frames=torch.zeros(*maps.shape[:2], 3, *maps.shape[3:]), maps=maps)


class TestSharedData:
    def test_faces(self):
        folder = faces(shared("face_vid2vid"), geometry=GeometryConfig(mode="scaleWidth", load_size=128))
        clip = read_sequence(folder, 0, 0, 2)
        assert clip.maps.shape == (1, 2, 15, 128, 128)
        assert 0 < clip.maps[:, :, 0].mean() < 0.3

    def test_poses(self, caplog):
        folder = poses(shared("pose_vid2vid"), geometry=GeometryConfig(mode="scaleHeight", load_size=256))
        clip = read_sequence(folder, 0, 0, 2)
        assert clip.maps.shape == (1, 2, 6, 256, 192)
        both = (clip.maps[:, :, 2] > -1) & (clip.maps[:, :, 3:] > -1).any(dim=2)
        limbs = (clip.maps[:, :, 3:] > -1).any(dim=2)
        assert both.sum() / limbs.sum() > 0.8  # limbs lie on the body
