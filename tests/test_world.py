import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import cv2
import numpy as np
import pytest

from fastv2v.data import painter
from fastv2v.data.unprojection import read_unprojection
from fastv2v.data.world import CLASS_NAMES, PALETTE, WorldConfig, render_clip, write_world
from fastv2v.data.world import write as world_write
from fastv2v.data.world.atlas import build_atlas
from fastv2v.data.world.geometry import Builder, place
from fastv2v.data.world.raster import View, _boxes_of_corners, sample_grid
from fastv2v.data.world.textures import fractal_noise
from fastv2v.errors import ConfigError, DataError

CAR, PERSON, CYCLIST = (CLASS_NAMES.index(name) for name in ("car", "person", "cyclist"))
TINY = WorldConfig(size=(32, 64), num_frames=3, seed=5)


@pytest.fixture(scope="module")
def drive():
    return list(render_clip(WorldConfig(size=(64, 128), num_frames=5, fps=8), 0))


def sample(image, flow):
    """Backward warp with OpenCV, as an independent reference: pixel centres have integer coordinates."""
    height, width = flow.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return cv2.remap(image, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def visible(flow, back):
    """Where the way there and back ends within a pixel of its start, inside the picture; and by how much it misses."""
    height, width = flow.shape[:2]
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    to_x, to_y = x + flow[..., 0], y + flow[..., 1]
    inside = (to_x >= 0) & (to_x <= width - 1) & (to_y >= 0) & (to_y <= height - 1)
    miss = np.linalg.norm(flow + sample(back, flow), axis=-1)
    return inside & (miss < 1), miss


class TestConfig:
    @pytest.mark.parametrize("size", [(30, 64), (33, 64), (32, 66), (0, 0), (16, 64), (32,), "ab", (32, 10000)])
    def test_odd_sizes_are_refused(self, size):
        with pytest.raises(ConfigError, match="size must be"):
            WorldConfig(size=size)

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("num_frames", 1), ("fps", 0.0), ("fps", float("nan")), ("seed", -1), ("camera", "fly"), ("cars", 3.0),
            ("people", -0.1), ("trees", float("nan")), ("noise", 99.0),
        ],
    )  # fmt: skip
    def test_nonsense_is_refused_by_name(self, field, value):
        with pytest.raises(ConfigError, match=field):
            WorldConfig(**{field: value})

    def test_a_list_from_json_is_a_size(self):
        assert WorldConfig(size=[32, 64]).size == (32, 64)

    def test_a_negative_clip_is_refused_at_the_call(self):
        with pytest.raises(ConfigError, match="clip must not be negative"):
            render_clip(TINY, -1)


class TestFrames:
    def test_types_and_shapes(self, drive):
        for frame in drive:
            assert frame.frame.shape == (64, 128, 3) and frame.frame.dtype == np.uint8
            assert frame.labels.shape == (64, 128) and frame.labels.dtype == np.uint8
            assert frame.instances.dtype == np.uint16
            assert frame.depth.dtype == np.float32 and (frame.depth > 0).all()
            assert frame.labels.max() < len(CLASS_NAMES) == len(PALETTE)
        assert drive[0].flow_to_previous is None and drive[-1].flow_to_next is None
        assert all(f.flow_to_previous.dtype == np.float32 for f in drive[1:])
        assert all(f.flow_to_next.shape == (64, 128, 2) for f in drive[:-1])

    def test_equal_settings_give_equal_frames_and_others_do_not(self):
        first, again = (list(render_clip(replace(TINY, noise=2.0), 1)) for _ in range(2))
        for a, b in zip(first, again, strict=True):
            for x, y in zip(a, b, strict=True):
                assert (x is None and y is None) or np.array_equal(x, y)
        other_clip, other_seed = next(render_clip(TINY, 2)), next(render_clip(replace(TINY, seed=6), 1))
        assert not np.array_equal(first[0].labels, other_clip.labels)
        assert not np.array_equal(first[0].labels, other_seed.labels)

    def test_noise_changes_only_the_picture(self):
        clean, noisy = next(render_clip(TINY, 0)), next(render_clip(replace(TINY, noise=8.0), 0))
        difference = noisy.frame.astype(float) - clean.frame
        assert 5 < difference.std() < 9
        assert np.array_equal(clean.labels, noisy.labels)

    def test_instances_are_the_movable_things_and_keep_their_label(self, drive):
        seen = {}
        for frame in drive:
            things = np.isin(frame.labels, (CAR, PERSON, CYCLIST))
            assert np.array_equal(frame.instances > 0, things)
            for instance in np.unique(frame.instances[things]):
                labels = np.unique(frame.labels[frame.instances == instance])
                assert len(labels) == 1
                assert seen.setdefault(int(instance), int(labels[0])) == labels[0]
        assert {CAR, PERSON} <= set(seen.values())

    def test_sky_and_nothing_else_is_infinitely_far(self, drive):
        for frame in drive:
            assert np.array_equal(np.isinf(frame.depth), frame.labels == 0)
            assert (frame.labels == 0).any()

    def test_a_street_has_all_its_parts(self):
        seen = set()
        for clip in range(3):
            seen |= set(np.unique(next(render_clip(WorldConfig(size=(64, 128), num_frames=2), clip)).labels).tolist())
        assert seen >= set(range(12)) - {CYCLIST}

    def test_nothing_moves_in_an_empty_world(self):
        config = replace(TINY, cars=0.0, people=0.0, trees=0.0)
        assert all(not frame.instances.any() for frame in render_clip(config, 0))

    def test_road_depth_is_that_of_the_level_plane(self, drive):
        frame = drive[0]
        rows, columns = np.nonzero(frame.labels == CLASS_NAMES.index("road"))
        pixels = np.stack([columns, rows, np.ones_like(rows)])
        points = np.linalg.inv(frame.intrinsics) @ pixels * frame.depth[rows, columns]
        heights = (frame.camera_to_world[:3, :3] @ points + frame.camera_to_world[:3, 3:])[1]
        assert np.abs(heights).max() < 1e-3

    def test_camera_returns_to_where_it_began(self):
        frames = list(render_clip(WorldConfig(size=(32, 64), num_frames=7, camera="return", cars=0, people=0), 0))
        assert np.allclose(frames[0].camera_to_world, frames[-1].camera_to_world)
        assert np.array_equal(frames[0].frame, frames[-1].frame)
        assert not np.allclose(frames[0].camera_to_world, frames[3].camera_to_world, atol=0.5)
        assert np.allclose(frames[1].camera_to_world, frames[5].camera_to_world)

    def test_torch_is_not_needed(self):
        code = "import sys, fastv2v.data.world; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class TestFlow:
    def test_warping_the_past_gives_the_present(self, drive):
        for before, now in pairwise(drive):
            seen, _ = visible(now.flow_to_previous, before.flow_to_next)
            right, off = (
                np.abs(sample(before.frame, now.flow_to_previous + shift).astype(float) - now.frame)[seen].mean()
                for shift in (np.float32(0), np.float32(0.5))
            )
            still = np.abs(before.frame.astype(float) - now.frame)[seen].mean()
            assert seen.mean() > 0.6
            assert right < 0.45 * still
            assert right < 0.65 * off  # half a pixel beside the truth is clearly worse

    def test_there_and_back_ends_where_it_began(self, drive):
        for before, now in pairwise(drive):
            seen, miss = visible(now.flow_to_previous, before.flow_to_next)
            assert miss[seen].mean() < 0.1

    def test_depth_and_cameras_explain_all_that_stands_still(self, drive):
        before, now = drive[1], drive[2]
        still = (now.instances == 0) & np.isfinite(now.depth)
        rows, columns = np.nonzero(still)
        rays = np.linalg.inv(now.intrinsics) @ np.stack([columns, rows, np.ones_like(rows)])
        points = np.vstack([rays * now.depth[rows, columns], np.ones(len(rows))])
        there = np.linalg.inv(before.camera_to_world) @ now.camera_to_world @ points
        pixels = now.intrinsics @ there[:3] / there[2]
        expected = np.stack([pixels[0] - columns, pixels[1] - rows], -1)
        assert np.abs(expected - now.flow_to_previous[still]).max() < 1e-2

    def test_sky_turns_with_the_camera_but_does_not_pass(self, drive):
        before, now = drive[1], drive[2]
        rows, columns = np.nonzero(now.labels == 0)
        turn = before.camera_to_world[:3, :3].T @ now.camera_to_world[:3, :3]
        pixels = now.intrinsics @ turn @ np.linalg.inv(now.intrinsics) @ np.stack([columns, rows, np.ones_like(rows)])
        expected = np.stack([pixels[0] / pixels[2] - columns, pixels[1] / pixels[2] - rows], -1)
        assert np.abs(expected - now.flow_to_previous[rows, columns]).max() < 1e-3

    def test_moving_things_keep_their_instance_along_the_flow(self):
        frames = list(render_clip(WorldConfig(size=(64, 128), num_frames=3, cars=2.0, people=2.0), 3))
        before, now = frames[1], frames[2]
        seen, _ = visible(now.flow_to_previous, before.flow_to_next)
        inner = cv2.erode((now.instances > 0).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
        rows, columns = np.nonzero(seen & inner)
        to = now.flow_to_previous[rows, columns] + np.stack([columns, rows], -1)
        found = before.instances[np.rint(to[:, 1]).astype(int), np.rint(to[:, 0]).astype(int)]
        assert len(rows) > 100
        assert (found == now.instances[rows, columns]).mean() > 0.97


class TestParts:
    def test_noise_tiles_without_a_seam(self):
        noise = fractal_noise(np.random.default_rng(0), (64, 96), 16)
        for axis in (0, 1):
            around = np.concatenate([noise, noise.take([0], axis)], axis)
            steps = np.abs(np.diff(around, axis=axis)).mean(1 - axis)
            assert steps[-1] <= 1.2 * steps[:-1].max()
        assert abs(noise.mean()) < 1e-5 and abs(noise.std() - 1) < 1e-3

    def test_texture_coordinates_meet_the_corners(self):
        atlas = build_atlas(0)
        build = Builder(dict(atlas.index), atlas.sizes, frozenset(atlas.alpha))
        build.wall(place(3, 4, 0.7), (-1, 0), (2, 0), 5, 1, "stone", 1, uv=(0.25, 0.5, 2.0, 3.0))
        quads = build.quads()
        uv = np.einsum("ij,kj->ki", quads.uv[0, :, :3], quads.corners[0]) + quads.uv[0, :, 3]
        assert np.allclose(uv, [(0.25, 0.5), (2.0, 0.5), (2.0, 3.0), (0.25, 3.0)])
        assert np.allclose(quads.normals[0], place(0, 0, 0.7)[:3, :3] @ (0, 0, -1))

    def test_sampling_the_middle_of_a_texel_returns_it(self):
        atlas = build_atlas(0)
        tile = atlas.index["road0"]
        x, y, width, height = atlas.rects.reshape(-1, 9, 4)[tile, 0].astype(int)
        u, v = np.float32([(5 + 0.5) / width]), np.float32([(9 + 0.5) / height])
        texel = atlas.sample(np.int32([tile]), u, v, np.float32([0]))
        assert np.allclose(texel[:, 0], atlas.image[y + 9, x + 5], atol=1)

    def test_a_quad_through_the_camera_plane_has_the_box_of_its_visible_part(self):
        config = WorldConfig(size=(32, 64))
        view = View(np.eye(4), config.intrinsics, *sample_grid(config.size))
        floor = np.array([[(-1, 1, 50.0), (1, 1, 50.0), (1, 1, -50.0), (-1, 1, -50.0)]])
        x0, x1, y0, y1 = _boxes_of_corners(view, floor)[0]
        horizon = config.intrinsics[1, 2] + config.intrinsics[1, 1] / 50
        assert (x0, x1, y1) == (0, len(view.xs), len(view.ys))
        assert view.ys[y0 - 1] < horizon <= view.ys[y0]


class TestWrite:
    def test_folder_holds_what_was_rendered(self, tmp_path):
        calls = []
        out = write_world(
            tmp_path / "world", TINY, train_clips=1, test_clips=1, write_flow=True, progress=lambda *n: calls.append(n)
        )
        assert calls == [(n, 6) for n in range(1, 7)]
        assert sorted(p.name for p in out.iterdir()) == sorted(
            [f"{phase}_{kind}" for phase in ("train", "test") for kind in ("A", "B", "inst", "depth", "camera", "flow")]
            + ["classes.json", "world.json"]
        )
        assert list(tmp_path.iterdir()) == [out]
        frame = list(render_clip(TINY, 1))[1]
        at = lambda kind, end: str(out / f"test_{kind}" / "clip_001" / f"000001.{end}")  # noqa: E731
        assert np.array_equal(cv2.imread(at("A", "png"), cv2.IMREAD_UNCHANGED), frame.labels)
        assert np.array_equal(cv2.imread(at("B", "png"))[..., ::-1], frame.frame)
        instances = cv2.imread(at("inst", "png"), cv2.IMREAD_UNCHANGED)
        assert instances.dtype == np.uint16 and np.array_equal(instances, frame.instances)
        depth = cv2.imread(at("depth", "png"), cv2.IMREAD_UNCHANGED)
        near = frame.depth < 65
        assert np.abs(depth[near] / 1000 - frame.depth[near]).max() < 6e-4
        assert not depth[frame.depth > 66].any()
        assert np.allclose(np.loadtxt(at("camera", "txt")), frame.camera_to_world, atol=1e-6)
        assert np.allclose(np.loadtxt(out / "test_camera" / "clip_001" / "intrinsics.txt"), frame.intrinsics)
        with np.load(at("flow", "npz")) as flow:
            assert np.array_equal(flow["to_previous"], frame.flow_to_previous)
        with np.load(str(out / "train_flow" / "clip_000" / "000000.npz")) as flow:
            assert list(flow) == ["to_next"]
        classes = json.loads((out / "classes.json").read_text())
        assert classes["schema"] == 1
        assert [c["name"] for c in classes["classes"]] == list(CLASS_NAMES)
        assert [tuple(c["color"]) for c in classes["classes"]] == list(PALETTE)

    def test_the_same_request_does_nothing_and_another_is_refused(self, tmp_path, monkeypatch):
        out = write_world(tmp_path / "world", TINY, train_clips=1, test_clips=0)
        before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
        with monkeypatch.context() as patched:
            patched.setattr(world_write, "render_clip", None)
            write_world(out, TINY, train_clips=1, test_clips=0)
        assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*")}
        with pytest.raises(DataError, match="other settings"):
            write_world(out, replace(TINY, seed=9), train_clips=1, test_clips=0)
        write_world(out, replace(TINY, num_frames=2), train_clips=1, test_clips=0, overwrite=True)
        assert len(list((out / "train_A" / "clip_000").iterdir())) == 2
        assert list(tmp_path.iterdir()) == [out]

    def test_other_folders_are_never_replaced(self, tmp_path):
        (tmp_path / "letters").mkdir()
        (tmp_path / "letters" / "dear.txt").write_text("hello")
        for overwrite in (False, True):
            with pytest.raises(DataError, match="is not a world"):
                write_world(tmp_path / "letters", TINY, overwrite=overwrite)
        (tmp_path / "file").write_text("")
        with pytest.raises(DataError, match="is a file"):
            write_world(tmp_path / "file", TINY)
        with pytest.raises(ConfigError, match="train_clips"):
            write_world(tmp_path / "none", TINY, train_clips=0)

    def test_an_empty_folder_is_used(self, tmp_path):
        write_world(tmp_path, replace(TINY, num_frames=2), train_clips=1, test_clips=0)
        assert (tmp_path / "world.json").is_file()

    def test_an_interrupted_run_leaves_nothing(self, tmp_path):
        def stop(done, total):
            if done == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write_world(tmp_path / "world", TINY, train_clips=1, progress=stop)
        assert list(tmp_path.iterdir()) == []

    def test_workers_write_the_same_files(self, tmp_path):
        config = replace(TINY, num_frames=2)
        here = write_world(tmp_path / "here", config, train_clips=1, test_clips=1)
        there = write_world(tmp_path / "there", config, train_clips=1, test_clips=1, num_workers=1)
        files = sorted(p.relative_to(here) for p in here.rglob("*") if p.is_file())
        assert files == sorted(p.relative_to(there) for p in there.rglob("*") if p.is_file())
        assert all((here / p).read_bytes() == (there / p).read_bytes() for p in files)


class TestPoints:
    @pytest.fixture(scope="class")
    def returning(self):
        config = WorldConfig(size=(64, 128), num_frames=7, camera="return", cars=0, people=0)
        return list(render_clip(config, 1, points=True))

    def test_every_surface_has_a_point_and_sky_has_none(self, returning):
        for frame in returning:
            assert np.array_equal(frame.points >= 0, np.isfinite(frame.depth))

    def test_points_are_not_numbered_unless_asked_for(self, drive):
        assert all(frame.points is None for frame in drive)

    def test_numbers_leave_no_gap_and_follow_time(self, returning):
        met = 0
        for frame in returning:
            ids = np.unique(frame.points[frame.points >= 0])
            assert np.array_equal(ids[ids >= met], np.arange(met, max(met, ids.max() + 1)))
            met = max(met, ids.max() + 1)

    def test_a_camera_that_is_back_sees_the_same_points(self, returning):
        assert np.array_equal(returning[0].points, returning[-1].points)
        assert np.array_equal(returning[1].points, returning[-2].points)

    def test_a_point_stays_where_it_is_in_the_world(self, returning):
        """Every pixel of one id lies within the reach of its cell, whichever frame shows it."""
        places = {}
        for frame in returning:
            rows, columns = np.nonzero((frame.points >= 0) & (frame.depth < 40))
            k, depth = frame.intrinsics, frame.depth[rows, columns].astype(float)
            rays = np.stack([(columns - k[0, 2]) / k[0, 0], (rows - k[1, 2]) / k[1, 1], np.ones(len(rows))], -1)
            world = (rays * depth[:, None]) @ frame.camera_to_world[:3, :3].T + frame.camera_to_world[:3, 3]
            for point, at, z in zip(frame.points[rows, columns].tolist(), world, depth, strict=True):
                first, near = places.setdefault(point, (at, z))
                footprint = max(z, near) / k[0, 0]
                assert np.abs(at - first).max() < 6 * footprint * max(max(z, near) / 1.5, 1)
        assert len(places) > 5000

    def test_painted_colours_come_back_at_their_points(self, returning):
        world, errors = painter.empty_world(), []
        for frame in returning:
            picture = frame.frame.transpose(2, 0, 1) / np.float32(127.5) - 1
            guidance = painter.render(world, frame.points)
            mask = guidance[3] > 0
            errors += [127.5 * np.abs(guidance[:3] - picture)[:, mask].mean()] if mask.any() else []
            world = painter.paint(world, picture.astype(np.float32), frame.points)
        assert max(errors) < 14
        assert mask[frame.points >= 0].all(), "the last camera is the first one"

    def test_a_moving_car_carries_its_points(self):
        config = WorldConfig(size=(64, 128), num_frames=4, fps=8, cars=2, people=0)
        frames = [f for clip in range(3) for f in [list(render_clip(config, clip, points=True))]]
        shared = 0
        for clip in frames:
            first, last = (set(f.points[f.labels == CAR].tolist()) for f in (clip[0], clip[-1]))
            shared += len(first & last)
        assert shared > 50

    def test_unprojections_are_written_on_request(self, tmp_path):
        write_world(tmp_path / "w", TINY, train_clips=1, test_clips=0, write_points=True)
        files = sorted((tmp_path / "w/train_unprojections/clip_000").iterdir())
        frames = list(render_clip(TINY, 0, points=True))
        assert [f.name for f in files] == ["000000.npz", "000001.npz", "000002.npz"]
        levels = read_unprojection(files[2])
        assert np.array_equal(levels[0], frames[2].points)
        assert [level.shape for level in levels] == [(32 >> k, 64 >> k) for k in range(6)]
        with pytest.raises(DataError, match="other settings"):
            write_world(tmp_path / "w", TINY, train_clips=1, test_clips=0)
