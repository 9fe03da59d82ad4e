import subprocess
import sys

import numpy as np
import pytest
from pictures import moving_texture, numbered, psnr_db, two_scenes

from fastv2v.errors import ConfigError, ShapeError
from interpolate.extrapolate import DISExtrapolator, HoldExtrapolator
from interpolate.motion import MotionConfig


def after_two(first, second, distance=2, config=None):
    extrapolator = DISExtrapolator(config)
    extrapolator.observe(first, 1)
    extrapolator.observe(second, distance)
    return extrapolator


@pytest.mark.parametrize("step", [(3.0, 1.0), (-2.5, 0.0), (0.7, -2.2)])
def test_steady_motion_goes_on(step):
    frames = moving_texture(6, step)
    inner = np.s_[24:-24, 24:-24]
    extrapolator, hold = after_two(frames[0], frames[2]), HoldExtrapolator()
    hold.observe(frames[2], 2)
    for steps in (1, 2, 3):
        truth = frames[2 + steps][inner]
        assert psnr_db(extrapolator.ahead(steps)[inner], truth) > 34
        assert psnr_db(extrapolator.ahead(steps)[inner], truth) > psnr_db(hold.ahead(steps)[inner], truth) + 8


def test_one_keyframe_and_a_scene_cut_are_held():
    first, second = two_scenes()
    alone = DISExtrapolator()
    alone.observe(first, 1)
    assert np.array_equal(alone.ahead(3), first)
    made = after_two(first, second).ahead(1)
    assert np.array_equal(made, second)
    assert made is not second


def test_a_pixel_that_stays_what_it_is_shows_the_keyframe():
    frames = moving_texture(3, (4.0, 0.0))
    now = np.zeros(frames[0].shape[:2], np.uint8)
    now[:, 96:] = 1
    sure = after_two(frames[0], frames[2], config=MotionConfig(doubt=0.0))
    # What moved four pixels to the right would put class 0 at columns 96 to 99; they are known to stay class 1.
    guided, blind = sure.ahead(2, [now, now]), sure.ahead(2)
    assert np.array_equal(guided[:, 97:99], frames[2][:, 97:99])
    assert not np.array_equal(blind[:, 97:99], frames[2][:, 97:99])
    far = np.s_[:, 120:160]
    assert np.array_equal(guided[far], blind[far])
    unguided = after_two(frames[0], frames[2], config=MotionConfig(doubt=None))
    assert np.array_equal(unguided.ahead(2, [now, now]), blind)


def test_the_distance_of_keyframes_sets_the_pace():
    frames = moving_texture(8, (2.0, 0.0))
    inner = np.s_[24:-24, 24:-24]
    extrapolator = after_two(frames[0], frames[2], distance=2)
    extrapolator.observe(frames[6], 4)
    assert psnr_db(extrapolator.ahead(1)[inner], frames[7][inner]) > 34


def test_misuse_is_refused():
    with pytest.raises(ConfigError, match="at least one step after a keyframe"):
        DISExtrapolator().ahead(1)
    extrapolator = after_two(numbered(1, (40, 40)), numbered(2, (40, 40)))
    with pytest.raises(ConfigError, match="got 0"):
        extrapolator.ahead(0)
    with pytest.raises(ConfigError, match="by at least one frame"):
        extrapolator.observe(numbered(1, (40, 40)), 0)
    with pytest.raises(ShapeError, match="label map 1"):
        extrapolator.ahead(1, [np.zeros((40, 40), np.uint8), np.zeros((4, 4), np.uint8)])


def test_the_room_runs_without_torch():
    program = "import sys, interpolate.extrapolate; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
