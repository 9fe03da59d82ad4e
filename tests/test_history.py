"""The past of a stream as arrays, beside its torch twin; conditions encoded right into it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from export.history import ArrayHistory
from export.stream import from_uint8, to_uint8
from fastv2v.data.conditions import ConditionSpec, encode_condition_numpy
from fastv2v.ops.labels import one_hot
from fastv2v.render import advance, start_history

SIZE = (4, 6)


@given(length=st.integers(1, 4), steps=st.integers(0, 30), seeded=st.booleans(), in_place=st.booleans())
@settings(deadline=None, max_examples=40)
def test_it_holds_what_the_torch_twin_holds(length, steps, seeded, in_place):
    rng = np.random.default_rng(steps)
    first, seed = rng.random((2, *SIZE), np.float32), rng.random((3, *SIZE), np.float32)
    ours = ArrayHistory(first, length, seed if seeded else None)
    condition = torch.from_numpy(first)[None]
    frames = torch.from_numpy(seed)[None, None] if seeded else None
    theirs = start_history(condition[:, None][:, : int(seeded)], frames, length, first_condition=condition)
    for _ in range(steps):
        condition, frame = rng.random((2, *SIZE), np.float32), rng.random((3, *SIZE), np.float32)
        entering = condition
        if in_place:
            entering = ours.next_condition
            entering[:] = condition
        ours.advance(entering, frame)
        theirs = advance(theirs, torch.from_numpy(condition)[None], torch.from_numpy(frame)[None])
    assert np.array_equal(ours.conditions, theirs.conditions)
    assert np.array_equal(ours.frames, theirs.frames)
    assert np.array_equal(ours.valid, theirs.valid)
    assert ours.conditions.flags["C_CONTIGUOUS"] and ours.frames.flags["C_CONTIGUOUS"]


@pytest.mark.parametrize("ignore", [None, 9, 1])
def test_encoding_into_a_used_array_is_encoding(ignore):
    spec = ConditionSpec(class_names=("a", "b", "c"), use_instances=True, ignore_id=ignore)
    rng = np.random.default_rng(0)
    labels = rng.choice([0, 1, 2] + [9] * (ignore == 9), SIZE).astype(np.uint8)
    instances = rng.integers(0, 3, SIZE)
    place = np.full((4, *SIZE), 7, np.float32)
    made = encode_condition_numpy(spec, labels, instances, out=place)
    assert made is place
    assert np.array_equal(made, encode_condition_numpy(spec, labels, instances))
    assert np.array_equal(made[:3], one_hot(torch.from_numpy(labels), 3).numpy())
    maps = rng.random((5, *SIZE), np.float32)
    there = np.zeros_like(maps)
    assert encode_condition_numpy(ConditionSpec(kind="maps", map_channels=5), maps=maps, out=there) is there
    assert np.array_equal(there, maps)


def test_frames_are_rounded_and_saturate():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 256).repeat(3, 0)[:, None, :]
    exact = np.ascontiguousarray(levels.transpose(1, 2, 0))
    assert np.array_equal(to_uint8(from_uint8(exact)), exact)
    values = np.array([-3.0, -1.01, -1.0, -1 + 0.6 / 127.5, 0.0, 1.0, 1.4], np.float32)
    made = to_uint8(np.broadcast_to(values, (3, 1, 7)).copy())
    assert made[0, :, 0].tolist() == [0, 0, 0, 1, 128, 255, 255]
    assert made.shape == (1, 7, 3) and made.dtype == np.uint8 and made.flags["C_CONTIGUOUS"]
