"""Cameras and point ids from depth and pose, on a small room whose true surfaces are known."""

from typing import ClassVar

import numpy as np
import pytest

from fastv2v.data import painter
from fastv2v.data.cameras import Camera, checked_pose, read_intrinsics, read_pose, scaled_intrinsics
from fastv2v.data.registration import PointRegister, PosedDepth, RegistrationConfig, seen_from
from fastv2v.errors import ConfigError, DataError

SIZE = (48, 64)
K = np.array([[60.0, 0, 31.5], [0, 60.0, 23.5], [0, 0, 1]])
CAMERA = Camera(K)
WALL, BOX = 4.0, 2.0
"""Depth of a wall, and of a box in front of its middle."""


def pose_at(x=0.0, y=0.0, turn=0.0):
    pose = np.eye(4)
    c, s = np.cos(turn), np.sin(turn)
    pose[:3, :3] = [[c, 0, s], [0, 1, 0], [-s, 0, c]]
    pose[:3, 3] = x, y, 0
    return pose


def look(pose, box=True):
    """Depth, and the colour of the surface point that each pixel's ray meets: a smooth pattern, red only on the box."""
    rays = CAMERA.rays(SIZE).reshape(-1, 3) @ pose[:3, :3].T
    at = pose[:3, 3]
    reach = np.full(len(rays), np.inf)
    for plane in (WALL, BOX) if box else (WALL,):
        t = (plane - at[2]) / rays[:, 2]
        place = at + rays * t[:, None]
        hit = (t > 0) & (t < reach) & ((plane == WALL) | (np.abs(place[:, :2]).max(1) < 0.4))
        reach = np.where(hit, t, reach)
    place = at + rays * reach[:, None]
    on_box = place[:, 2] < WALL - 0.5
    colour = np.stack([np.where(on_box, 0.9, -0.9), np.sin(place[:, 0]), np.cos(place[:, 1])])
    depth = reach  # rays have depth 1, and the camera's own z is what counts
    return depth.reshape(SIZE), colour.reshape(3, *SIZE).astype(np.float32)


def path(steps=6):
    """Away to the side and back again."""
    out = np.concatenate([np.linspace(0, 1, steps), np.linspace(1, 0, steps)[1:]])
    return [pose_at(x=0.8 * s, turn=0.25 * s) for s in out]


DEFAULT = RegistrationConfig()


def register(frames, config):
    points = PointRegister(config)
    for frame in frames:
        yield points.add(frame)


def run(poses, config=DEFAULT, change=lambda depth, pose: (depth, pose, CAMERA)):
    """Guidance errors and masks of an oracle that paints true colours."""
    looks = [look(pose) for pose in poses]
    frames = []
    for (depth, _), pose in zip(looks, poses, strict=True):
        depth, pose, camera = change(depth, pose)
        frames.append(PosedDepth(depth, camera, pose))
    world, errors, shares, all_ids = painter.empty_world(), [], [], []
    for ids, (_, colour) in zip(register(frames, config), looks, strict=True):
        guidance = painter.render(world, ids)
        mask = guidance[3] > 0
        errors.append(np.abs(guidance[:3] - colour)[:, mask].mean() * 127.5 if mask.any() else 0.0)
        shares.append(mask.mean())
        world = painter.paint(world, colour, ids)
        all_ids.append(ids)
    return errors, shares, all_ids


class TestCamera:
    def test_the_centre_of_the_top_left_pixel_is_the_origin(self):
        assert np.allclose(CAMERA.rays(SIZE)[0, 0], (-31.5 / 60, -23.5 / 60, 1))
        x, y = CAMERA.project(np.array([[-31.5 / 60, -23.5 / 60, 1.0], [0, 0, 5]]))
        assert np.allclose(x, (0, 31.5)) and np.allclose(y, (0, 23.5))

    @pytest.mark.parametrize("radial", [0.0, -0.08, 0.12])
    def test_rays_and_projection_undo_each_other(self, radial):
        camera = Camera(K, radial)
        x, y = camera.project(camera.rays(SIZE).reshape(-1, 3) * 3)
        rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
        assert np.abs(x - columns.ravel()).max() < 1e-3 and np.abs(y - rows.ravel()).max() < 1e-3

    def test_halving_a_frame_halves_corners_and_not_centres(self):
        half = scaled_intrinsics(K, 0.5)
        # The corner of the picture, (-0.5, -0.5), stays the corner.
        corner = np.linalg.inv(K) @ (-0.5, -0.5, 1)
        assert np.allclose(half @ corner, (-0.5, -0.5, 1))
        assert half[0, 0] == 30

    def test_files_are_read_and_rounded_rotations_made_exact(self, tmp_path):
        pose = pose_at(1, 2, 0.3)
        rounded = np.round(pose, 3)
        np.savetxt(tmp_path / "p.txt", rounded)
        np.savetxt(tmp_path / "k.txt", K)
        read = read_pose(tmp_path / "p.txt")
        assert np.abs(read[:3, :3].T @ read[:3, :3] - np.eye(3)).max() < 1e-12
        assert np.allclose(read, pose, atol=1e-3)
        assert np.allclose(read_intrinsics(tmp_path / "k.txt"), K)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda p: 1.1 * p[:3, :3], "is no rotation"),
            (lambda p: p[:3, :3] * [1, 1, -1], "mirrors"),
            (lambda p: p[:3, :3] + 0.05, "is no rotation"),
            (lambda p: p[:3, :3] * np.nan, "not finite"),
        ],
    )
    def test_what_is_no_rotation_is_refused(self, change, message):
        pose = pose_at(turn=0.2)
        pose[:3, :3] = change(pose)
        with pytest.raises(DataError, match=f"frame 7.*{message}"):
            checked_pose(pose, "frame 7")

    def test_a_transposed_pose_and_other_numbers_are_refused(self, tmp_path):
        with pytest.raises(DataError, match="last row"):
            checked_pose(pose_at(1).T, "frame 7")
        (tmp_path / "p.txt").write_text("1 2 3")
        with pytest.raises(DataError, match="4x4 numbers, and this file has 3"):
            read_pose(tmp_path / "p.txt")
        (tmp_path / "p.txt").write_text("no pose")
        with pytest.raises(DataError, match="as text"):
            read_pose(tmp_path / "p.txt")
        np.savetxt(tmp_path / "k.txt", K.T)
        with pytest.raises(DataError, match="fx 0 cx"):
            read_intrinsics(tmp_path / "k.txt")
        with pytest.raises(DataError, match="no such camera pose"):
            read_pose(tmp_path / "q.txt")


class TestRegister:
    def test_the_first_frame_numbers_its_pixels(self):
        depth, _ = look(pose_at())
        depth[3, 4] = 0
        depth[5, 6] = np.nan
        (ids,) = register([PosedDepth(depth, CAMERA, pose_at())], RegistrationConfig())
        assert ids[3, 4] == ids[5, 6] == -1
        assert np.array_equal(ids[ids >= 0], np.arange(ids.size - 2))

    def test_the_same_view_again_gets_the_same_ids(self):
        frame = PosedDepth(look(pose_at())[0], CAMERA, pose_at())
        first, second = register([frame, frame], RegistrationConfig())
        assert np.array_equal(first, second)

    def test_a_camera_that_comes_back_sees_what_it_saw(self):
        _, shares, ids = run(path())
        assert np.array_equal(ids[0], ids[-1])
        assert shares[-1] == 1

    def test_painted_colours_land_on_their_surfaces(self):
        errors, shares, _ = run(path())
        assert max(errors) < 2.5
        assert min(shares[1:]) > 0.7

    def test_a_sideways_step_of_whole_pixels_shifts_the_ids(self):
        step = WALL / 60 * 5  # five pixels on the wall
        poses = [pose_at(), pose_at(x=step)]
        frames = [PosedDepth(look(pose, box=False)[0], CAMERA, pose) for pose in poses]
        first, second = register(frames, RegistrationConfig(share_ids=False))
        assert np.array_equal(first[:, 5:], second[:, :-5])
        assert (second[:, -5:] >= first.size).all()

    def test_the_box_never_shows_through_the_wall_nor_the_wall_through_the_box(self):
        world = painter.empty_world()
        for pose, ids in zip(path(), run(path())[2], strict=True):
            _, colour = look(pose)
            guidance = painter.render(world, ids)
            mask = guidance[3] > 0
            assert (np.abs(guidance[0] - colour[0])[mask] < 0.1).all()
            world = painter.paint(world, colour, ids)

    def test_without_sharing_every_id_has_one_pixel(self):
        for share in (False, True):
            _, _, all_ids = run(path(), RegistrationConfig(share_ids=share))
            repeats = sum(len(ids[ids >= 0]) - len(np.unique(ids[ids >= 0])) for ids in all_ids)
            assert (repeats > 0) == share

    WRONG: ClassVar = {
        "mirrored": lambda d, p: (d[:, ::-1], np.diag([-1.0, 1, 1, 1]) @ p @ np.diag([-1.0, 1, 1, 1]), CAMERA),
        "poses turned round": lambda d, p: (d, np.linalg.inv(p), CAMERA),
    }

    @pytest.mark.parametrize("wrong", ["mirrored", "poses turned round"])
    def test_wrong_conventions_give_wrong_colours(self, wrong):
        right = np.mean(run(path())[0])
        errors, shares, _ = run(path(), change=self.WRONG[wrong])
        assert np.mean(errors) > 3 * right or np.mean(shares[1:]) < 0.5

    def test_half_a_pixel_can_be_told(self):
        """In front of a close wall, a principal point half a pixel off moves colours when the camera turns about z."""
        roll = np.eye(4)
        roll[:2, :2] = [[0, -1], [1, 0]]

        def error(off):
            k = np.array([[60.0, 0, 23.5 + off], [0, 60.0, 23.5 + off], [0, 0, 1]])
            rows, columns = np.mgrid[:48, :48]
            colours = [columns, 47 - rows]  # what a quarter turn makes of a ramp
            depth = np.ones((48, 48))
            frames = [PosedDepth(depth, Camera(k), pose) for pose in (np.eye(4), roll)]
            first, second = register(frames, RegistrationConfig(share_ids=False))
            both = np.isin(second, first[first >= 0])
            painted = np.zeros(first.max() + 1)
            painted[first.ravel()] = colours[0].ravel()
            return np.abs(painted[second[both]] - colours[1][both]).mean()

        assert error(0.0) < 0.01
        assert error(0.5) > 0.5

    def test_things_that_move_get_no_points(self):
        depth, _ = look(pose_at())
        mask = depth < 3
        (ids,) = register([PosedDepth(depth, CAMERA, pose_at(), mask)], RegistrationConfig())
        assert np.array_equal(ids < 0, mask)

    def test_points_end_where_their_bound_is(self):
        frames = [PosedDepth(look(pose)[0], CAMERA, pose) for pose in path()]
        all_ids = list(register(frames, RegistrationConfig(max_points=2000)))
        assert max(ids.max() for ids in all_ids) == 1999

    def test_a_mask_of_another_size_is_refused(self):
        frame = PosedDepth(look(pose_at())[0], CAMERA, pose_at(), np.zeros((4, 4), bool))
        with pytest.raises(DataError, match="sizes differ"):
            list(register([frame], RegistrationConfig()))

    @pytest.mark.parametrize(
        "fields",
        [{"relative_tolerance": 0}, {"absolute_tolerance": -1}, {"min_depth": 5, "max_depth": 4}, {"max_points": 0}],
    )
    def test_nonsense_settings_are_refused(self, fields):
        with pytest.raises(ConfigError):
            RegistrationConfig(**fields)


class TestSeenFrom:
    def test_the_same_camera_sees_the_same(self):
        depth, _ = look(pose_at())
        depth[0, :5] = 0
        assert np.allclose(seen_from(depth, CAMERA, CAMERA, (0, 0, 0)), depth, rtol=1e-6)

    def test_a_camera_beside_it_sees_a_wall_shifted(self):
        step = WALL / 60 * 5
        moved = seen_from(np.full(SIZE, WALL), CAMERA, CAMERA, (step, 0, 0))
        assert (moved[:, :5] == 0).all() and np.allclose(moved[:, 5:], WALL)

    def test_the_nearest_of_two_wins(self):
        depth = np.zeros(SIZE)
        depth[24, 28], depth[24, 30] = 4.0, 2.0
        wide = Camera(np.array([[1.0, 0, 31.5], [0, 1.0, 23.5], [0, 0, 1]]))  # all of it falls into few pixels
        assert seen_from(depth, CAMERA, wide, (0, 0, 0)).max() == 2
