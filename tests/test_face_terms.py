import pytest
import torch
from torch.testing import assert_close

from fastv2v.config import from_dict, to_dict
from fastv2v.contracts import FrameOutput
from fastv2v.errors import ConfigError, ShapeError
from fastv2v.losses.face import FaceBoxes, crop_faces, face_boxes, face_side, head_pixels
from fastv2v.losses.gan import feature_matching_loss, lsgan_loss
from fastv2v.losses.objective import LossWeights, ObjectiveConfig, VideoObjective, face_discriminator_like
from fastv2v.nn.discriminator import DiscriminatorConfig
from fastv2v.render import Chunk

SMALL = DiscriminatorConfig(width=2, num_layers=1, num_scales=2, norm="none")
OFF = dict.fromkeys(LossWeights.__dataclass_fields__, 0.0)
SIZE = (64, 96)
LIMB = torch.tensor([153.0, 0.0, 51.0]) / 127.5 - 1


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def densepose(*parts, batch=1, frames=1):
    """Maps without any part but the given (clip, frame, id, rows, columns)."""
    maps = torch.full((batch, frames, 6, *SIZE), -1.0)
    for clip, frame, part, rows, columns in parts:
        maps[clip, frame, 2, rows, columns] = part / 24 * 2 - 1
    return maps


class TestHeadPixels:
    def test_densepose_parts_23_and_24_are_heads(self):
        parts = [(0, 0, part, slice(0, 1), slice(part, part + 1)) for part in range(25)]
        head = head_pixels(densepose(*parts), "densepose")
        assert head.nonzero().tolist() == [[0, 0, 0, 23], [0, 0, 0, 24]]

    def test_an_openpose_head_is_the_limb_from_neck_to_nose(self):
        maps = torch.full((1, 1, 3, 4, 4), -1.0)
        maps[0, 0, :, 1, 2] = LIMB
        maps[0, 0, :, 2, 2] = torch.tensor([153.0, 0.0, 102.0]) / 127.5 - 1  # nose to eye
        assert head_pixels(maps, "openpose").nonzero().tolist() == [[0, 0, 1, 2]]

    def test_openpose_comes_after_densepose(self):
        maps = torch.full((1, 1, 6, 4, 4), -1.0)
        maps[0, 0, 3:, 1, 2] = LIMB
        assert head_pixels(maps, "openpose").sum() == 1


class TestFaceBoxes:
    @pytest.mark.parametrize(
        ("size", "side"), [((512, 512), 128), ((1024, 896), 224), ((32, 100), 8), ((63, 40), 8), ((256, 192), 48)]
    )
    def test_side_is_a_quarter_of_the_shorter_one_in_multiples_of_8(self, size, side):
        assert face_side(*size) == side

    def test_frames_below_32_pixels_are_refused(self):
        with pytest.raises(ShapeError, match="at least 32x32 pixels, got 31x64"):
            face_side(31, 64)

    def test_the_square_lies_around_the_middle_of_the_bounding_box(self):
        boxes = face_boxes(densepose((0, 0, 23, slice(20, 31), slice(40, 51))), "densepose")
        assert boxes.side == 16
        assert boxes.found.tolist() == [True]
        assert boxes.corners.tolist() == [[25 - 8, 45 - 8]]

    @pytest.mark.parametrize(
        ("rows", "columns", "corner"),
        [(slice(0, 3), slice(0, 3), [0, 0]), (slice(60, 64), slice(90, 96), [64 - 1 - 16, 96 - 1 - 16])],
    )
    def test_it_is_moved_inside(self, rows, columns, corner):
        assert face_boxes(densepose((0, 0, 24, rows, columns)), "densepose").corners.tolist() == [corner]

    def test_one_box_for_all_frames_of_a_clip_and_another_for_each_clip(self):
        maps = densepose(
            (0, 0, 23, slice(20, 21), slice(30, 31)),
            (0, 1, 24, slice(40, 41), slice(60, 61)),
            (2, 1, 24, slice(30, 31), slice(50, 51)),
            batch=3,
            frames=2,
        )
        boxes = face_boxes(maps, "densepose")
        assert boxes.found.tolist() == [True, False, True]
        assert boxes.corners[[0, 2]].tolist() == [[30 - 8, 45 - 8], [30 - 8, 50 - 8]]

    def test_crops_equal_slices_and_pass_gradients(self):
        frames = noise(2, 3, 5, *SIZE).requires_grad_()
        boxes = FaceBoxes(torch.tensor([[4, 7], [30, 50]]), torch.tensor([True, True]), 16)
        faces = crop_faces(frames, boxes)
        assert torch.equal(faces[0], frames[0, ..., 4:20, 7:23])
        assert torch.equal(faces[1], frames[1, ..., 30:46, 50:66])
        faces.sum().backward()
        assert frames.grad[0, ..., 4:20, 7:23].eq(1).all()
        assert frames.grad.sum() == faces.numel()


def face_objective(**weights):
    torch.manual_seed(0)
    config = ObjectiveConfig(
        weights=LossWeights(**{**OFF, **weights}), image_discriminator=SMALL, face_discriminator=SMALL
    )

    def still(current, previous):
        return torch.zeros_like(current[:, :2]), torch.ones_like(current[:, :1])

    return VideoObjective(config, 6, None, still)


def losses_of(target, conditions):
    """Losses of a two-frame chunk of noise after two given frames, and what went in."""
    batch = conditions.shape[0]
    given = torch.full((batch, 2, *conditions.shape[2:]), -1.0)
    reference = target.reference(torch.cat([given, conditions], dim=1), noise(batch, 4, 3, *SIZE, seed=1))
    frame, raw = noise(batch, 2, 3, *SIZE, seed=2).requires_grad_(), noise(batch, 2, 3, *SIZE, seed=3).requires_grad_()
    chunk = Chunk(2, FrameOutput(frame, raw), frame.detach(), torch.ones(batch, 2))
    return target.chunk_losses(chunk, reference, []), reference, frame, raw


class TestFaceTerms:
    head = (0, 0, 23, slice(20, 31), slice(40, 51))
    box = (..., slice(17, 33), slice(37, 53))

    def test_terms_are_those_of_the_discriminator_on_the_square(self):
        target = face_objective(face_gan=2.0, face_feature_matching=20.0)
        conditions = densepose(self.head, frames=2)
        losses, reference, frame, _ = losses_of(target, conditions)
        assert set(losses) == {"generator", "face_discriminator"}
        assert target.weights(uses_flow=True)["generator"] == {"face_gan": 2.0, "face_feature_matching": 20.0}
        net = target.discriminators["face_discriminator"]
        fake, real = (
            net(torch.cat([conditions[self.box], x[self.box]], dim=2).flatten(0, 1))
            for x in (frame, reference.frames[:, 2:])
        )
        assert_close(losses["generator"]["face_gan"], lsgan_loss(fake, real=True))
        assert_close(losses["generator"]["face_feature_matching"], feature_matching_loss(fake, real))
        assert_close(losses["face_discriminator"]["fake"], lsgan_loss(fake, real=False))
        assert_close(losses["face_discriminator"]["real"], lsgan_loss(real, real=True))

    def test_gradients_reach_the_finished_face_and_nothing_else(self):
        target = face_objective(face_gan=1.0)
        losses, _, frame, raw = losses_of(target, densepose(self.head, frames=2))
        losses["generator"]["face_gan"].backward()
        assert raw.grad is None
        inside = torch.zeros(SIZE, dtype=torch.bool)
        inside[17:33, 37:53] = True
        assert frame.grad[..., ~inside].eq(0).all()
        assert frame.grad[0, :, :, inside].abs().sum(dim=(1, 2)).gt(0).all()

    def test_a_clip_without_a_head_counts_zero_beside_one_with(self):
        target = face_objective(face_gan=1.0, face_feature_matching=1.0)
        alone, _, _, _ = losses_of(target, densepose(self.head, frames=2))
        both, _, frame, _ = losses_of(target, densepose(self.head, batch=2, frames=2))
        assert both["generator"].keys() == alone["generator"].keys()
        torch.stack(list(both["generator"].values())).sum().backward()
        assert frame.grad[0].any()
        assert not frame.grad[1].any()
        assert both["face_discriminator"]["real"] < alone["face_discriminator"]["real"]

    def test_without_any_head_all_terms_are_zero_yet_every_process_has_gradients_to_average(self):
        target = face_objective(face_gan=1.0, face_feature_matching=1.0)
        losses, _, frame, _ = losses_of(target, densepose(batch=2, frames=2))
        assert all(term.item() == 0 for terms in losses.values() for term in terms.values())
        total = sum(losses["face_discriminator"].values())
        gradients = torch.autograd.grad(total, list(target.discriminators.parameters()), retain_graph=True)
        assert all(not g.any() for g in gradients)
        assert not torch.autograd.grad(sum(losses["generator"].values()), frame)[0].any()

    def test_feature_matching_is_divided_by_the_scales_of_the_image_discriminator(self):
        terms = []
        for scales in (1, 4):
            target = face_objective(face_feature_matching=1.0)
            image = DiscriminatorConfig(width=2, num_layers=1, num_scales=scales, norm="none")
            target.config = ObjectiveConfig(
                weights=target.config.weights, image_discriminator=image, face_discriminator=SMALL
            )
            terms.append(losses_of(target, densepose(self.head, frames=2))[0]["generator"]["face_feature_matching"])
        assert_close(terms[0], 4 * terms[1])


class TestFaceConfig:
    def test_published_faces_are_judged_at_two_scales_less_and_at_least_one(self):
        scales = [face_discriminator_like(DiscriminatorConfig(num_scales=n)).num_scales for n in (1, 2, 3, 4)]
        assert scales == [1, 1, 1, 2]

    def test_weights_count_only_where_there_is_a_face_discriminator(self):
        config = ObjectiveConfig(weights=LossWeights(**{**OFF, "face_gan": 2.0}))
        target = VideoObjective(config, 6, None, lambda a, b: (a, b))
        assert target.weights(uses_flow=True) == {"generator": {}}
        assert not target.discriminators

    def test_conditions_without_a_pose_are_refused(self):
        config = ObjectiveConfig(weights=LossWeights(perceptual=0.0), face_discriminator=SMALL)
        with pytest.raises(ConfigError, match="maps of three channels, and the condition has 1"):
            VideoObjective(config, 1, None, lambda a, b: (a, b))

    @pytest.mark.parametrize("face", [None, SMALL])
    def test_it_survives_a_config_file(self, face):
        config = ObjectiveConfig(face_discriminator=face, face_region="openpose", temporal_scales=2, gan="hinge")
        assert from_dict(ObjectiveConfig, to_dict(config)) == config
