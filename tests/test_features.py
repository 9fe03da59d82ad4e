from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fastv2v.architecture import Architecture, Trained, architecture_dict
from fastv2v.commands.initial import InitialWeights
from fastv2v.commands.train import _start_encoder
from fastv2v.config import from_dict
from fastv2v.contracts import StepModel
from fastv2v.data.clip import Clip
from fastv2v.data.conditions import ConditionSpec
from fastv2v.data.folder import FolderConfig
from fastv2v.errors import ConfigError, DataError, ShapeError
from fastv2v.losses.objective import LossWeights, ObjectiveConfig, VideoObjective
from fastv2v.losses.rollout import RolloutConfig
from fastv2v.losses.total import weighted_total
from fastv2v.nn.composite import CompositeConfig
from fastv2v.nn.discriminator import DiscriminatorConfig
from fastv2v.nn.features import (
    EncodingStep,
    FeatureConfig,
    FeatureEncoder,
    clip_conditions,
    instance_groups,
    instance_mean,
    observations,
    pool_instances,
)
from fastv2v.ops.flow import DISFlow
from fastv2v.ops.labels import encode_clip
from fastv2v.recipe import UNSET_ROOT
from fastv2v.render import render_clip, start_history
from teachers.task import TeacherTask, TeacherTaskConfig

SPEC = ConditionSpec(class_names=("road", "car", "sky"), use_instances=True)
FEATURES = FeatureConfig(channels=2, width=4, num_downsamples=2, norm="instance")
DISCRIMINATOR = DiscriminatorConfig(width=2, num_layers=1, num_scales=2, norm="instance")
OBJECTIVE = ObjectiveConfig(
    weights=LossWeights(perceptual=0.0, reconstruction=1.0),
    image_discriminator=DISCRIMINATOR,
    temporal_discriminator=DISCRIMINATOR,
)


def architecture(features=FEATURES, num_scales=1, norm="instance"):
    return Architecture(
        generator=CompositeConfig(width=4, num_downsamples=2, num_blocks=2, norm=norm, num_scales=num_scales),
        foreground=("car",),
        features=features,
        condition=SPEC,
        size=(16, 24),
        folder=FolderConfig(root=UNSET_ROOT, use_instances=True),
    )


def make_model(**settings):
    torch.manual_seed(0)
    return architecture(**settings).build()


def make_clip(batch=2, frames=5, size=(16, 24), seed=0):
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (batch, frames, *size), generator=rng, dtype=torch.uint8)
    instances = torch.randint(0, 2, labels.shape, generator=rng, dtype=torch.int32)
    return Clip(frames=torch.rand(batch, frames, 3, *size, generator=rng) * 2 - 1, labels=labels, instances=instances)


class TestFeatureConfig:
    @pytest.mark.parametrize(
        ("settings", "said"),
        [({"channels": -1}, "channels"), ({"width": 0}, "width"), ({"num_downsamples": 0}, "num_downsamples"),
         ({"norm": "layer"}, "norm")],
    )  # fmt: skip
    def test_nonsense_is_refused(self, settings, said):
        with pytest.raises(ConfigError, match=f"features.{said}"):
            FeatureConfig(**settings)

    def test_there_are_none_by_default(self):
        assert FeatureConfig().channels == 0
        with pytest.raises(ConfigError, match="at least 1"):
            FeatureEncoder(FeatureConfig())


class TestFeatureEncoder:
    def test_layers_are_those_of_the_specification(self):
        """Reflected 7x7 to the width, doublings by stride 2, transposed halvings, reflected 7x7 to the features."""
        encoder = FeatureEncoder(FeatureConfig(channels=3))
        convolutions = [m for m in encoder.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
        shapes = [(m.in_channels, m.out_channels, m.kernel_size[0], m.stride[0]) for m in convolutions]
        down = [(3, 32, 7, 1), (32, 64, 3, 2), (64, 128, 3, 2), (128, 256, 3, 2)]
        assert shapes == [*down, (256, 128, 3, 2), (128, 64, 3, 2), (64, 32, 3, 2), (32, 3, 7, 1)]
        assert [isinstance(m, nn.ConvTranspose2d) for m in convolutions] == 4 * [False] + 3 * [True] + [False]
        assert [m.padding for m in encoder.modules() if isinstance(m, nn.ReflectionPad2d)] == 2 * [(3, 3, 3, 3)]

    def test_makes_maps_of_the_same_size_in_bounds(self):
        made = FeatureEncoder(FEATURES)(10 * torch.randn(2, 3, 16, 24))
        assert made.shape == (2, 2, 16, 24)
        assert made.abs().max() <= 1

    @pytest.mark.parametrize("size", [(16, 22), (4, 24)])
    def test_sizes_that_do_not_divide_are_refused(self, size):
        with pytest.raises(ShapeError, match="multiples of 4, at least 8"):
            FeatureEncoder(FEATURES)(torch.zeros(1, 3, *size))


class TestInstanceMean:
    def test_by_hand(self):
        features = torch.tensor([[[[1.0, 3.0], [5.0, 9.0]], [[0.0, 2.0], [4.0, 4.0]]]])
        instances = torch.tensor([[[7, 7], [26001, 7]]])
        expected = torch.tensor([[[[13 / 3, 13 / 3], [5.0, 13 / 3]], [[2.0, 2.0], [4.0, 2.0]]]])
        assert_close(instance_mean(features, instances), expected)

    def test_one_id_in_two_samples_is_two_instances(self):
        features = torch.arange(8.0).view(2, 1, 2, 2)
        made = instance_mean(features, torch.full((2, 2, 2), 5))
        assert_close(made[:, 0, 0, 0], torch.tensor([1.5, 5.5]))

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
    def test_equals_a_loop_over_instances(self, dtype):
        rng = torch.Generator().manual_seed(1)
        features = torch.randn(3, 4, 8, 8, generator=rng)
        instances = torch.randint(0, 5, (3, 8, 8), generator=rng).to(dtype) * 40
        expected = torch.empty_like(features)
        for b in range(3):
            for i in instances[b].unique():
                inside = instances[b] == i
                expected[b][:, inside] = features[b][:, inside].mean(dim=1, keepdim=True)
        assert_close(instance_mean(features, instances), expected)

    def test_gradients_spread_evenly_over_an_instance(self):
        features = torch.zeros(1, 1, 2, 2, requires_grad=True)
        instance_mean(features, torch.tensor([[[0, 1], [1, 1]]]))[0, 0, 0, 1].backward()
        assert_close(features.grad[0, 0], torch.tensor([[0, 1 / 3], [1 / 3, 1 / 3]]))

    def test_groups_are_counted_in_order(self):
        pooled = pool_instances(torch.ones(2, 1, 1, 3), torch.tensor([[[9, 2, 9]], [[2, 2, 2]]]))
        assert pooled.counts.tolist() == [1, 2, 3]
        assert pooled.group.tolist() == [[[1, 0, 1]], [[2, 2, 2]]]

    def test_shapes_must_match(self):
        with pytest.raises(ShapeError, match="do not match"):
            instance_mean(torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 5, dtype=torch.int64))


class TestInstanceGroups:
    def test_two_classes_never_share_one_even_under_the_id_of_no_instance(self):
        labels = torch.tensor([[[[0, 0, 1, 1]]]], dtype=torch.uint8)
        instances = torch.tensor([[[[255, 255, 255, 3]]]], dtype=torch.int32)
        clip = Clip(frames=torch.zeros(1, 1, 3, 1, 4), labels=labels, instances=instances)
        assert instance_groups(clip).flatten().tolist() == [0, 0, 2, 1]

    def test_a_clip_without_instances_is_refused(self):
        with pytest.raises(DataError, match="instance maps"):
            instance_groups(replace(make_clip(), instances=None))


class TestFeatureGenerator:
    @pytest.mark.parametrize("num_scales", [1, 2])
    def test_is_a_step_model_of_labels_edges_and_features(self, num_scales):
        model = make_model(num_scales=num_scales)
        assert isinstance(model, StepModel)
        assert (model.condition_channels, model.feature_channels, model.history_length) == (6, 2, 2)
        clip = make_clip()
        conditions = model.encode(SPEC, clip)
        assert_close(conditions[:, :, :4], encode_clip(SPEC, clip))
        assert render_clip(model, conditions, clip.frames[:, :1]).shape == clip.frames.shape

    def test_the_size_suits_generator_and_encoder(self):
        assert make_model(features=replace(FEATURES, num_downsamples=4)).size_multiple == 16
        assert make_model(num_scales=2).size_multiple == 8

    def test_every_frame_is_pooled_by_itself(self):
        model, clip = make_model(), make_clip()
        conditions = model.encode(SPEC, clip)
        alone = model.encode(SPEC, clip.take(3, 4))
        assert_close(conditions[:, 3:4], alone)
        pixel = (clip.labels[0, 2] == 1) & (clip.instances[0, 2] == 1)
        vectors = conditions[0, 2, 4:, pixel]
        assert_close(vectors, vectors[:, :1].expand_as(vectors))

    def test_gradients_reach_the_encoder(self):
        model = make_model()
        model.encode(SPEC, make_clip())[:, :, 4:].square().sum().backward()
        assert all(p.grad is not None for p in model.encoder.parameters())

    def test_clip_conditions_serve_both_kinds(self):
        clip = make_clip()
        assert clip_conditions(make_model(), SPEC, clip).shape[2] == 6
        assert clip_conditions(make_model(features=FeatureConfig()), SPEC, clip).shape[2] == 4


class TestEncodingStep:
    @pytest.mark.parametrize("num_scales", [1, 2])
    def test_equals_encoding_before(self, num_scales):
        model, clip = make_model(num_scales=num_scales), make_clip()
        conditions, seen = model.encode(SPEC, clip), observations(SPEC, clip)
        history = start_history(conditions[:, :1], clip.frames[:, :1], 2)
        expected, after = model.step(conditions[:, 1], history)
        for finest_only in {False, num_scales > 1}:
            made, then = EncodingStep(model, finest_only=finest_only).step(seen[:, 1], history)
            assert_close(made.frame, expected.frame)
            assert_close(then.conditions, after.conditions)

    def test_refuses_what_it_cannot_do(self):
        model = make_model()
        with pytest.raises(ConfigError, match="several scales"):
            EncodingStep(model, finest_only=True)
        with pytest.raises(ShapeError, match="expected 8 channels"):
            EncodingStep(model).step(torch.zeros(1, 6, 16, 24), start_history(*2 * [torch.zeros(1, 1, 3, 16, 24)], 2))


class TestArchitecture:
    def test_survives_a_checkpoint_and_older_ones_have_none(self):
        described = architecture_dict(architecture())
        assert from_dict(Architecture, described).features == FEATURES
        described.pop("features")
        assert from_dict(Architecture, described).features.channels == 0

    def test_needs_instances_and_a_teacher(self):
        plain = ConditionSpec(class_names=SPEC.class_names)
        with pytest.raises(ConfigError, match="instance features need label maps with instance maps"):
            replace(architecture(), condition=plain)
        with pytest.raises(ConfigError, match="only teachers"):
            replace(architecture(), stage="spatial")

    def test_verbs_that_cannot_give_features_get_one_sentence(self, tmp_path):
        trained = Trained(make_model(), architecture(), tmp_path, 1)
        with pytest.raises(ConfigError, match=r"takes instance features.*--recipe\.features\.channels 0"):
            _ = trained.generator
        with pytest.raises(ConfigError, match="takes instance features"):
            architecture().build_video()


def make_task(rollout=None, *, fixed=0, **settings):
    model = make_model(**settings)
    config = TeacherTaskConfig(
        objective=OBJECTIVE, rollout=rollout or RolloutConfig(chunk_frames=1), fixed_coarse_steps=fixed
    )
    return TeacherTask(model, SPEC, VideoObjective(OBJECTIVE, SPEC.channels, None, DISFlow("ultrafast")), config)


class TestTask:
    def test_one_player_holds_generator_and_encoder(self):
        task = make_task()
        names = [name for name, _ in task.players["generator"].named_parameters()]
        assert {name.split(".")[0] for name in names} == {"generator", "encoder"}

    @pytest.mark.parametrize("checkpointing", [False, True])
    @pytest.mark.parametrize("start", ["nothing", "one", "full"])
    def test_the_encoder_learns_from_every_chunk_though_weights_change_between(self, start, checkpointing):
        task = make_task(
            RolloutConfig(
                chunk_frames=1,
                start_from_nothing=float(start == "nothing"),
                start_from_one=float(start == "one"),
                gradient_checkpointing=checkpointing,
            )
        )
        encoder = list(task.generator.encoder.parameters())
        optimizer = torch.optim.SGD(task.generator.parameters(), 1e-2)
        chunks = 0
        for losses in task.step(make_clip(), torch.Generator(), 0):
            total = weighted_total(losses["generator"], task.weights["generator"])
            optimizer.zero_grad()
            total.backward(inputs=list(task.generator.parameters()))
            assert sum(p.grad.abs().sum() for p in encoder if p.grad is not None) > 0
            optimizer.step()
            chunks += 1
        assert chunks == 3

    def test_recomputing_gives_the_same_losses(self):
        kept, again = (
            next(make_task(RolloutConfig(gradient_checkpointing=on)).step(make_clip(), torch.Generator(), 0))
            for on in (False, True)
        )
        assert_close(kept["generator"]["reconstruction"], again["generator"]["reconstruction"])

    def test_discriminators_see_no_features(self):
        task = make_task()
        first = next(m for m in task.players["image_discriminator"].modules() if isinstance(m, nn.Conv2d))
        assert first.in_channels == SPEC.channels + 3

    def test_fixed_coarse_scales_get_no_gradients_and_the_encoder_does(self):
        task = make_task(fixed=5, num_scales=2)
        for at, coarse_learns in ((4, False), (5, True)):
            task.generator.zero_grad()
            losses = next(task.step(make_clip(), torch.Generator(), at))
            losses["generator"]["reconstruction"].backward()
            assert any(p.grad is not None for p in task.generator.generator.coarse.parameters()) is coarse_learns
            assert any(p.grad is not None for p in task.generator.encoder.parameters())

    def test_one_scale_has_nothing_to_fix(self):
        with pytest.raises(ConfigError, match="several scales"):
            make_task(fixed=5)

    def test_sample_and_evaluation_take_the_look_of_the_real_frames(self):
        task, clip = make_task(), make_clip(batch=1)
        task.generator.eval()
        made = task.sample(clip)["teacher"]
        assert made.shape == clip.frames.shape
        other = task.sample(replace(clip, frames=torch.cat([clip.frames[:, :1], -clip.frames[:, 1:]], dim=1)))
        assert not torch.equal(other["teacher"], made)
        assert task.evaluate(clip)["psnr"] > 0


class TestInit:
    """Growing a run of one scale into one of two starts its encoder too."""

    def initial(self, tmp_path, **settings):
        model, described = make_model(**settings), architecture(**settings)
        return InitialWeights(run=Trained(model, described, tmp_path, 1)), model

    def test_the_encoder_goes_on_and_the_rest_is_for_the_generator(self, tmp_path):
        initial, source = self.initial(tmp_path)
        grown = architecture(num_scales=2).build()
        rest = _start_encoder(initial, grown, FEATURES)
        state = source.encoder.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in grown.encoder.state_dict().items())
        assert rest.run.generator is source.generator

    @pytest.mark.parametrize("features", [FeatureConfig(), replace(FEATURES, channels=3), replace(FEATURES, width=5)])
    def test_other_features_are_refused(self, tmp_path, features):
        initial, _ = self.initial(tmp_path)
        with pytest.raises(ConfigError, match="--init has"):
            _start_encoder(initial, architecture(features=features).build(), features)

    def test_weights_without_features_cannot_start_a_teacher_with_them(self, tmp_path):
        initial, _ = self.initial(tmp_path, features=FeatureConfig())
        with pytest.raises(ConfigError, match=r"--init has 0 channels .* set --recipe\.features\.channels 0"):
            _start_encoder(initial, make_model(), FEATURES)
