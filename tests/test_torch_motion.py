"""Interpolation in torch: the same frames as the OpenCV path, in batches, with gradients."""

import numpy as np
import pytest
import torch
from pictures import moving_texture, square_over_background, two_scenes

from fastv2v.errors import ConfigError, ShapeError
from fastv2v.ops.flow import DISFlow
from interpolate.motion import DISInterpolator, MotionConfig
from interpolate.torch_motion import TorchInterpolator

TIMES = (0.25, 0.5, 0.75)


def to_torch(frame):
    return torch.from_numpy(frame).permute(2, 0, 1).float()[None] / 127.5 - 1


def levels(frames):
    """(1, T, 3, H, W) to (T, H, W, 3) in levels of 255."""
    return ((frames[0].permute(0, 2, 3, 1) + 1) * 127.5).numpy()


def dis_flows(first, second, config=None):
    """What DISInterpolator finds, both ways."""
    motion = DISInterpolator(config or MotionConfig(cut_threshold=None)).estimate(first, second)
    return tuple(
        torch.from_numpy(np.ascontiguousarray(x)).permute(2, 0, 1)[None] for x in (motion.forward, -motion.reverse)
    )


def steady(shape, x, y=0.0, dtype=torch.float32):
    """Flow there and back of a picture that moves as a whole."""
    there = torch.tensor([x, y], dtype=dtype).view(1, 2, 1, 1).expand(shape[0], 2, *shape[-2:])
    return there, -there


class TestAgainstOpenCV:
    """It computes in bytes and 32nds of a pixel; where two motions are nearly as good, that may decide otherwise."""

    def check(self, first, second, config=None, labels=None):
        config = config or MotionConfig()
        maps = None if labels is None else torch.from_numpy(np.stack(labels))[None]
        made = TorchInterpolator(config).between(
            to_torch(first), to_torch(second), TIMES, flows=dis_flows(first, second, config), labels=maps
        )
        wanted = np.stack(DISInterpolator(config).between(first, second, TIMES, labels))
        off = np.abs(levels(made) - wanted)
        assert off.mean() < 0.4
        assert np.percentile(off, 99.5) < 2
        return off

    @pytest.mark.parametrize(("step", "size"), [((3.0, 1.0), (128, 192)), ((-2.0, 1.5), (96, 160)), ((1, 1), (50, 70))])
    def test_a_moving_texture(self, step, size):
        frames = moving_texture(5, step, size)
        self.check(frames[0], frames[4])

    @pytest.mark.parametrize("config", [MotionConfig(), MotionConfig(working_scale=1.0, grade="medium")])
    def test_things_that_cover_each_other(self, config):
        frames = square_over_background(5, 6)
        self.check(frames[0], frames[4], config)

    @pytest.mark.parametrize("doubt", [0.0, 0.5, 1.0, None])
    def test_label_maps_count_as_much(self, doubt):
        frames = square_over_background(5, 6)
        labels = [(frame.mean(axis=2) > 90).astype(np.uint8) for frame in frames]
        labels[2][30:60, 40:80] = 7  # a class that neither keyframe shows, and one that both do
        labels[3][:30] = 0
        self.check(frames[0], frames[4], MotionConfig(doubt=doubt), labels)

    def test_borders_fade(self):
        frames = moving_texture(5, (9.0, -5.0), (96, 160))
        off = self.check(frames[0], frames[4], MotionConfig(cut_threshold=None))
        assert off[:, :, -12:].mean() < 0.5


class TestClosedForms:
    def test_a_whole_picture_that_moves_by_whole_pixels(self):
        world = torch.rand(1, 3, 64, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
        first, middle, second = (world[..., 16 - k : 112 - k] for k in (0, 4, 8))  # 8 pixels to the right
        (made,) = TorchInterpolator(MotionConfig(cut_threshold=None)).between(
            first, second, [0.5], flows=steady(first.shape, 8.0)
        )[0]
        assert torch.allclose(made[..., 16:-16], middle[0, ..., 16:-16], atol=1e-5)

    def test_no_motion_is_the_average_by_time(self):
        a, b = torch.full((2, 3, 32, 32), -0.08), torch.full((2, 3, 32, 32), 0.08)
        made = TorchInterpolator().between(a, b, [0.25, 0.9], flows=steady(a.shape, 0.0))
        assert made.shape == (2, 2, 3, 32, 32)
        assert torch.allclose(made[:, 0], torch.full_like(a, -0.04), atol=1e-6)
        assert torch.allclose(made[:, 1], torch.full_like(a, 0.064), atol=1e-6)

    def test_flow_of_any_size_means_the_same(self):
        frames = moving_texture(5, (2.0, 1.0), (64, 96))
        first, second = to_torch(frames[0]), to_torch(frames[4])
        interpolator = TorchInterpolator()
        full = interpolator.between(first, second, [0.5], flows=steady(first.shape, 8.0, 4.0))
        half = interpolator.between(first, second, [0.5], flows=steady((1, 2, 32, 48), 4.0, 2.0))
        assert torch.allclose(full, half, atol=1e-5)

    def test_the_keyframe_that_shows_the_known_class_wins(self):
        a, b = torch.full((1, 3, 32, 32), -0.04), torch.full((1, 3, 32, 32), 0.04)
        labels = torch.zeros(1, 3, 32, 32, dtype=torch.int64)
        labels[:, 1, :16] = labels[:, 2] = 300  # above: as in the second keyframe; below: as in the first
        made = TorchInterpolator(MotionConfig(doubt=0.0)).between(
            a, b, [0.5], flows=steady(a.shape, 0.0), labels=labels
        )[0, 0]
        assert torch.allclose(made[:, :16], b[0, :, :16]) and torch.allclose(made[:, 16:], a[0, :, 16:])


class TestBatches:
    def test_a_pair_does_not_depend_on_its_neighbours_and_cuts_are_held(self):
        frames, (scene, other) = moving_texture(5, (3.0, 1.0), (192, 256)), two_scenes()
        firsts, seconds = (frames[0], scene), (frames[4], other)
        flows = [dis_flows(a, b) for a, b in zip(firsts, seconds, strict=True)]
        first, second = torch.cat([to_torch(x) for x in firsts]), torch.cat([to_torch(x) for x in seconds])
        both = tuple(torch.cat(x) for x in zip(*flows, strict=True))
        made = TorchInterpolator().between(first, second, TIMES, flows=both)
        alone = TorchInterpolator().between(first[:1], second[:1], TIMES, flows=flows[0])
        assert torch.allclose(made[:1], alone, atol=1e-5)
        assert torch.equal(made[1, 0], first[1])
        assert torch.equal(made[1, 1], second[1]) and torch.equal(made[1, 2], second[1])
        blended = TorchInterpolator(MotionConfig(cut_threshold=None)).between(first, second, TIMES, flows=both)
        assert not torch.equal(blended[1, 0], first[1])

    def test_an_estimator_finds_the_flow(self):
        frames = moving_texture(5, (2.0, 0.0), (96, 128))
        made = TorchInterpolator(estimator=DISFlow()).between(to_torch(frames[0]), to_torch(frames[4]), [0.5])
        inner = np.s_[24:-24, 24:-24]
        assert np.abs(levels(made)[0][inner] - frames[2][inner]).mean() < 2

    def test_lower_precision_goes_in_and_comes_out(self):
        frames = [to_torch(x) for x in moving_texture(5, (2.0, 0.0), (64, 96))]
        flows = steady(frames[0].shape, 8.0)
        exact = TorchInterpolator().between(frames[0], frames[4], [0.5], flows=flows)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = TorchInterpolator().between(frames[0].bfloat16(), frames[4].bfloat16(), [0.5], flows=flows)
        assert rounded.dtype == torch.bfloat16
        assert (rounded.float() - exact).abs().mean() < 0.01

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_a_gpu_makes_the_same_frames(self):
        frames = [to_torch(x) for x in square_over_background(5, 6)]
        labels = torch.randint(0, 3, (1, 3, 96, 160), generator=torch.Generator().manual_seed(0))
        flows = steady(frames[0].shape, 6.0, 1.0)
        made = []
        for device in ("cpu", "cuda"):
            first, second, there, back, maps = (x.to(device) for x in (frames[0], frames[4], *flows, labels))
            made.append(TorchInterpolator().between(first, second, [0.5], flows=(there, back), labels=maps).cpu())
        assert (made[0] - made[1]).abs().mean() < 1e-4

    def test_no_times_no_frames(self):
        a = torch.zeros(2, 3, 32, 32)
        assert TorchInterpolator().between(a, a, [], flows=steady(a.shape, 0.0)).shape == (2, 0, 3, 32, 32)


class TestGradients:
    def inputs(self):
        rng = torch.Generator().manual_seed(3)
        frames = [torch.rand(1, 3, 16, 20, generator=rng, dtype=torch.float64) * 1.6 - 0.8 for _ in range(2)]
        flows = [torch.randn(1, 2, 4, 5, generator=rng, dtype=torch.float64) * 0.8 + s * 0.37 for s in (1, -1)]
        return [x.requires_grad_() for x in (*frames, *flows)]

    @pytest.mark.parametrize("guided", [False, True])
    def test_frames_and_flows_have_the_right_gradients(self, guided):
        labels = torch.randint(0, 3, (1, 4, 16, 20), generator=torch.Generator().manual_seed(0)) if guided else None
        interpolator = TorchInterpolator(MotionConfig(cut_threshold=None))

        def made(first, second, there, back):
            return interpolator.between(first, second, [0.3, 0.5], flows=(there, back), labels=labels)

        assert torch.autograd.gradcheck(made, self.inputs(), eps=1e-7, atol=1e-4, fast_mode=True)

    def test_flow_is_learnt_through_interpolation(self):
        """Motion that is off by a pixel is pulled towards the true one by the frame between."""
        frames = [to_torch(x) for x in moving_texture(3, (2.0, 0.0), (64, 96))]
        flow = torch.tensor([3.0, 0.0]).view(1, 2, 1, 1).requires_grad_()
        made = TorchInterpolator().between(
            frames[0], frames[2], [0.5], flows=(flow.expand(1, 2, 64, 96), -flow.expand(1, 2, 64, 96))
        )
        (made[:, 0] - frames[1])[..., 12:-12].square().mean().backward()
        assert flow.grad[0, 0] < 0  # 4 pixels are right

    def test_standing_still_gives_finite_gradients(self):
        a = torch.zeros(1, 3, 32, 32, requires_grad=True)
        flow = torch.zeros(1, 2, 32, 32, requires_grad=True)
        TorchInterpolator().between(a, a, [0.5], flows=(flow, -flow)).sum().backward()
        assert flow.grad.isfinite().all() and a.grad.isfinite().all()


class TestRefusals:
    A = torch.zeros(1, 3, 32, 32)

    @pytest.mark.parametrize("second", [torch.zeros(1, 3, 32, 30), torch.zeros(2, 3, 32, 32)])
    def test_keyframes_of_two_shapes(self, second):
        with pytest.raises(ShapeError, match="keyframes are two float tensors of one shape"):
            TorchInterpolator().between(self.A, second, [0.5], flows=steady(self.A.shape, 0.0))

    def test_keyframes_in_bytes(self):
        with pytest.raises(ShapeError, match=r"torch\.uint8"):
            TorchInterpolator().between(self.A.byte(), self.A.byte(), [0.5], flows=steady(self.A.shape, 0.0))

    @pytest.mark.parametrize("time", [0, 1, -0.5, float("nan")])
    def test_times_outside(self, time):
        with pytest.raises(ConfigError, match="strictly between 0 and 1"):
            TorchInterpolator().between(self.A, self.A, [time], flows=steady(self.A.shape, 0.0))

    def test_flows_that_do_not_belong(self):
        with pytest.raises(ShapeError, match=r"are two of shape \(1, 2, h, w\), got \(2, 2, 32, 32\)"):
            TorchInterpolator().between(self.A, self.A, [0.5], flows=steady((2, 2, 32, 32), 0.0))

    @pytest.mark.parametrize("labels", [torch.zeros(1, 2, 32, 32, dtype=torch.long), torch.zeros(1, 3, 32, 32)])
    def test_label_maps_that_do_not_belong(self, labels):
        with pytest.raises(ShapeError, match=r"integers of shape \(1, 3, 32, 32\)"):
            TorchInterpolator().between(self.A, self.A, [0.5], flows=steady(self.A.shape, 0.0), labels=labels)
