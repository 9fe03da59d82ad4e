"""The painted world: the first colour of a point stays, holes are 0, and both twins agree bit for bit."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from fastv2v.data import painter as arrays
from fastv2v.errors import ConfigError, ShapeError
from fastv2v.ops.painter import PaintedWorld, empty_world, paint, render, render_levels

EXACT = {"rtol": 0, "atol": 0}


def frame_of(*rows, batch=1):
    """A grey frame (B, 3, H, W) with the given values."""
    return torch.tensor(rows, dtype=torch.float32).expand(batch, 3, -1, -1).clone()


def ids_of(*rows):
    return torch.tensor([rows], dtype=torch.int32)


def noise(size=(4, 6), batch=2, seed=0):
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def some_ids(size=(4, 6), batch=2, num_points=30, seed=0):
    ids = torch.randint(0, num_points, (batch, *size), generator=torch.Generator().manual_seed(seed))
    return (ids - num_points // 5).clamp_min(-1).int()


class TestRender:
    def test_nothing_painted_gives_holes_of_zero(self):
        assert not render(empty_world(2), some_ids()).any()
        assert not render(empty_world(2, 50), some_ids()).any()

    def test_what_was_painted_is_shown_where_it_is_mapped_now(self):
        # Rows go down, columns right: id 1 is painted at row 0, column 1, and seen again at row 1, column 0.
        world = paint(empty_world(1), frame_of([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]), ids_of([0, 1, 2], [3, 4, 5]))
        guidance = render(world, ids_of([-1, 5, -1], [1, -1, 9]))
        assert_close(guidance[0, 0], torch.tensor([[0, 0.6, 0], [0.2, 0, 0]]))
        assert_close(guidance[0, 3], torch.tensor([[0, 1.0, 0], [1, 0, 0]]))

    def test_a_frame_comes_back_bit_equal_where_each_point_has_one_pixel(self):
        frame, ids = noise(), torch.arange(24, dtype=torch.int32).view(1, 4, 6).expand(2, -1, -1).clone()
        ids[:, ::2, 1] = -1
        guidance = render(paint(empty_world(2), frame, ids), ids)
        assert_close(guidance[:, :3], frame * (ids >= 0).unsqueeze(1), rtol=0, atol=1e-9)
        assert_close(guidance[:, 3], (ids >= 0).float())

    def test_a_colour_that_is_not_finite_stays_out_of_holes(self):
        world = PaintedWorld(torch.full((1, 3, 3), torch.nan), torch.zeros(1, 3, dtype=torch.bool))
        assert not render(world, ids_of([0, 1, 2, -1])).any()

    def test_another_batch_is_refused(self):
        with pytest.raises(ShapeError, match="2 samples"):
            render(empty_world(2), ids_of([0]))


class TestPaint:
    def test_the_first_colour_wins(self):
        first = paint(empty_world(1), frame_of([0.1, 0.2]), ids_of([0, 1]))
        second = paint(first, frame_of([0.7, 0.8, 0.9]), ids_of([1, 2, -1]))
        assert_close(second.colours[0, :, 0], torch.tensor([0.1, 0.2, 0.8]))
        assert second.seen.all()
        assert first.seen.shape == (1, 2), "the world before is left as it was"

    def test_several_pixels_of_one_point_give_their_mean(self):
        world = paint(empty_world(1), frame_of([0.0, 0.5], [1.0, -0.3]), ids_of([4, 4], [4, 0]))
        assert_close(world.colours[0, 4], torch.full((3,), 0.5))
        assert_close(world.seen[0], torch.tensor([True, False, False, False, True]))

    def test_the_order_of_pixels_changes_no_bit(self):
        frame, ids = noise((8, 8), 1), some_ids((8, 8), 1, 7)
        order = torch.randperm(64, generator=torch.Generator().manual_seed(3))
        mixed = paint(
            empty_world(1), frame.flatten(2)[..., order].view_as(frame), ids.flatten(1)[:, order].view_as(ids)
        )
        assert_close(mixed.colours, paint(empty_world(1), frame, ids).colours, **EXACT)

    def test_guidance_rests_on_earlier_frames_only(self):
        def guidance(third):
            world, shown = empty_world(1), []
            for t in range(4):
                ids = some_ids(batch=1, seed=t)
                shown.append(render(world, ids))
                world = paint(world, third if t == 2 else noise(batch=1, seed=t), ids)
            return shown

        one, other = guidance(noise(batch=1, seed=8)), guidance(noise(batch=1, seed=9))
        assert all(torch.equal(a, b) for a, b in zip(one[:3], other[:3], strict=True))
        assert not torch.equal(one[3], other[3])

    def test_a_larger_id_makes_room_and_samples_do_not_mix(self):
        ids = torch.tensor([[[0, 3]], [[6, -1]]])
        world = paint(paint(empty_world(2), frame_of([0.5], batch=2), ids[:, :, :1]), noise((1, 2)), ids)
        assert world.seen.tolist() == [[True, False, False, True, *[False] * 3], [*[False] * 6, True]]
        assert world.colours[0, 0, 0] == world.colours[1, 6, 0] == 0.5

    def test_a_frame_without_points_paints_nothing(self):
        world = paint(empty_world(1), noise(batch=1), torch.full((1, 4, 6), -1))
        assert world.seen.shape == (1, 0)

    def test_no_gradient_is_kept(self):
        frame = noise(batch=1).requires_grad_()
        assert not paint(empty_world(1), frame, some_ids(batch=1)).colours.requires_grad

    def test_half_precision_frames_are_painted_in_float32(self):
        assert paint(empty_world(1), noise(batch=1).bfloat16(), some_ids(batch=1)).colours.dtype == torch.float32

    def test_a_mirrored_run_is_the_mirror_of_the_run(self):
        def run(mirror):
            world = empty_world(2)
            for t in range(3):
                frame, ids = noise(seed=t), some_ids(seed=t)
                world = paint(world, frame.flip(-1) if mirror else frame, ids.flip(-1) if mirror else ids)
            return render(world, some_ids(seed=1).flip(-1) if mirror else some_ids(seed=1))

        assert_close(run(mirror=True).flip(-1), run(mirror=False), **EXACT)

    def test_other_sizes_are_refused(self):
        with pytest.raises(ShapeError, match="3 channels"):
            paint(empty_world(2), noise((4, 5)), some_ids())

    def test_a_world_of_no_sample_is_refused(self):
        with pytest.raises(ConfigError, match="1 sample"):
            empty_world(0)


class TestRenderLevels:
    @pytest.mark.parametrize("size", [(8, 16), (5, 7)])
    def test_every_level_is_found_again_by_taking_every_nth_pixel(self, size):
        world = paint(empty_world(2), noise(size), some_ids(size))
        points = [some_ids((-(-size[0] >> k), -(-size[1] >> k)), seed=k) for k in range(3)]
        guidance = render_levels(world, points)
        assert guidance.shape == (2, 12, *size)
        for k, ids in enumerate(points):
            level = guidance[:, 4 * k : 4 * k + 4, :: 2**k, :: 2**k]
            assert_close(level, render(world, ids), **EXACT)

    def test_a_level_of_another_size_is_refused(self):
        with pytest.raises(ShapeError, match="level 1"):
            render_levels(empty_world(2), [some_ids((8, 8)), some_ids((8, 8))])

    def test_no_level_is_refused(self):
        with pytest.raises(ShapeError, match="at least one level"):
            render_levels(empty_world(2), [])


class TestTwins:
    def test_arrays_and_tensors_agree_bit_for_bit(self):
        world, twin = empty_world(1), arrays.empty_world()
        for t in range(4):
            frame, ids = noise((9, 6), 1, t), some_ids((9, 6), 1, 20 + 5 * t, t)
            coarse = some_ids((5, 3), 1, 20, t)
            shown = arrays.render_levels(twin, [ids[0].numpy(), coarse[0].numpy()])
            assert np.array_equal(render_levels(world, [ids, coarse])[0].numpy(), shown)
            world, twin = paint(world, frame, ids), arrays.paint(twin, frame[0].numpy(), ids[0].numpy())
            assert np.array_equal(world.colours[0].numpy(), twin.colours)
            assert np.array_equal(world.seen[0].numpy(), twin.seen)

    def test_the_twin_refuses_what_does_not_fit(self):
        with pytest.raises(ShapeError, match=r"\(H, W\)"):
            arrays.render(arrays.empty_world(), np.zeros((1, 2, 2), np.int32))
        with pytest.raises(ShapeError, match=r"\(3, H, W\)"):
            arrays.paint(arrays.empty_world(), np.zeros((3, 2, 2), np.float32), np.zeros((2, 3), np.int32))
        with pytest.raises(ShapeError, match="level 1"):
            arrays.render_levels(arrays.empty_world(), [np.zeros((4, 4), np.int32)] * 2)
        with pytest.raises(ConfigError, match="0 points or more"):
            arrays.empty_world(-1)
