import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.testing import assert_close

from fastv2v.data.clip import Clip
from fastv2v.data.conditions import ConditionSpec, encode_condition_numpy, instance_edges_numpy
from fastv2v.errors import ConfigError, DataError
from fastv2v.ops.labels import condition_pictures, encode_clip, instance_edges, one_hot

SPEC = ConditionSpec(class_names=("road", "car", "sky"), use_instances=True, ignore_id=255)
id_maps = hnp.arrays(np.int32, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.integers(0, 3))


def label_clip(labels, instances=None):
    frames = torch.zeros(*labels.shape[:2], 3, *labels.shape[2:])
    return Clip(frames=frames, labels=labels, instances=instances)


def test_a_negative_ignored_id_is_refused():
    with pytest.raises(ConfigError, match=r"ignore_id must be 0 or more, .* got -1"):
        ConditionSpec(class_names=("road",), ignore_id=-1)


class TestOneHot:
    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
    def test_each_id_lights_its_channel_and_others_light_none(self, dtype):
        encoded = one_hot(torch.tensor([[0, 2, 255]], dtype=dtype), 3)
        assert_close(encoded, torch.tensor([[[1.0, 0, 0]], [[0.0, 0, 0]], [[0.0, 1, 0]]]))

    def test_leading_dimensions_stay(self):
        assert one_hot(torch.zeros(2, 5, 4, 6, dtype=torch.uint8), 7).shape == (2, 5, 7, 4, 6)


class TestInstanceEdges:
    def test_both_sides_of_a_border_are_marked(self):
        assert_close(instance_edges(torch.tensor([[1, 1, 2, 2]])), torch.tensor([[[0.0, 1, 1, 0]]]))

    def test_a_border_between_rows_is_marked(self):
        assert_close(instance_edges(torch.tensor([[7], [7], [9]])).flatten(), torch.tensor([0.0, 1, 1]))

    def test_diagonal_neighbours_make_no_edge(self):
        ids = torch.zeros(3, 3, dtype=torch.int32)
        ids[0, 0] = 5
        assert_close(instance_edges(ids)[0], torch.tensor([[1.0, 1, 0], [1, 0, 0], [0, 0, 0]]))

    def test_one_instance_has_no_edge_not_even_at_the_image_border(self):
        assert not instance_edges(torch.full((2, 3, 4, 5), 26001)).any()

    @settings(max_examples=60, deadline=None)
    @given(id_maps)
    def test_equals_the_numpy_twin(self, ids):
        assert np.array_equal(instance_edges(torch.from_numpy(ids))[0].numpy(), instance_edges_numpy(ids))


class TestEncodeClip:
    @settings(max_examples=30, deadline=None)
    @given(id_maps)
    def test_equals_the_numpy_encoder_frame_by_frame(self, ids):
        labels = np.where(ids == 3, 255, ids).astype(np.uint8)
        expected = encode_condition_numpy(SPEC, labels, ids)
        clip = label_clip(torch.from_numpy(labels)[None, None], torch.from_numpy(ids)[None, None])
        assert np.array_equal(encode_clip(SPEC, clip)[0, 0].numpy(), expected)

    def test_channels_are_classes_then_the_edge(self):
        labels = torch.randint(0, 3, (2, 4, 6, 8), dtype=torch.uint8)
        encoded = encode_clip(SPEC, label_clip(labels, labels.int()))
        assert encoded.shape == (2, 4, SPEC.channels, 6, 8)
        assert encoded.dtype == torch.float32
        assert torch.equal(encoded[:, :, 3:], instance_edges(labels))

    def test_pictures_have_the_colours_of_classes_and_white_borders(self):
        labels = torch.tensor([[[[0, 0, 2, 2], [255, 255, 2, 2]]]], dtype=torch.uint8)
        instances = torch.tensor([[[[1, 1, 1, 1], [1, 1, 1, 9]]]], dtype=torch.int32)
        shown = condition_pictures(SPEC, label_clip(labels, instances), ((0, 255, 51), (1, 1, 1), (255, 0, 0)))
        assert shown.shape == (1, 1, 3, 2, 4)
        assert_close(shown[0, 0, :, 0, 0], torch.tensor([-1, 1, -0.6]))
        assert_close(shown[0, 0, :, 0, 2], torch.tensor([1.0, -1, -1]))
        assert_close(shown[0, 0, :, 1, 0], torch.full((3,), -1.0))
        assert_close(shown[0, 0, :, 1, 3], torch.ones(3))

    def test_pictures_need_a_colour_for_each_class(self):
        with pytest.raises(ConfigError, match="the palette has 0 colours and the condition 3 classes"):
            condition_pictures(SPEC, label_clip(torch.zeros(1, 1, 4, 4, dtype=torch.uint8)), ())

    def test_maps_pass_through(self):
        maps = torch.rand(1, 2, 5, 4, 4)
        clip = Clip(frames=torch.zeros(1, 2, 3, 4, 4), maps=maps)
        assert torch.equal(encode_clip(ConditionSpec(kind="maps", map_channels=5), clip), maps)

    def test_missing_maps_are_named(self):
        labels = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
        with pytest.raises(DataError, match="uses instance borders and the clip has no instance maps"):
            encode_clip(SPEC, label_clip(labels))
        with pytest.raises(DataError, match="needs label maps"):
            encode_clip(SPEC, Clip(frames=torch.zeros(1, 1, 3, 4, 4)))
        with pytest.raises(DataError, match="needs maps with 5 channels"):
            encode_clip(
                ConditionSpec(kind="maps", map_channels=5),
                Clip(frames=torch.zeros(1, 1, 3, 4, 4), maps=torch.zeros(1, 1, 4, 4, 4)),
            )
