import stat

import numpy as np
import pytest

from fastv2v.errors import ConfigError, MediaError, ShapeError
from interpolate.fill import fill
from interpolate.minterpolate import MinterpolateInterpolator


def bar_at(x: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """A bright bar of 8 pixels with its left side at ``x``, on grey."""
    frame = np.full((*size, 3), 60, dtype=np.uint8)
    frame[:, x : x + 8] = 220
    return frame


def position(frame: np.ndarray) -> float:
    """Centre of brightness along x, in pixels."""
    excess = frame.astype(float).mean(axis=(0, 2)) - 60
    return float((excess * np.arange(frame.shape[1])).sum() / excess.sum())


@pytest.mark.parametrize(
    ("indices", "total"),
    [([0, 4, 8], 9), ([2, 6, 9], 10), ([0, 1, 5, 9], 12), ([0, 2], 3), ([0, 4], 5), ([3], 5), ([0, 1], 2)],
)
@pytest.mark.parametrize("size", [(48, 64), (33, 47)])
def test_exactly_total_frames_and_untouched_keyframes(indices, total, size):
    rng = np.random.default_rng(0)
    keyframes = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in indices]
    frames = fill(keyframes, indices, total, MinterpolateInterpolator())
    assert len(frames) == total
    assert all(frame.shape == (*size, 3) and frame.dtype == np.uint8 for frame in frames)
    for index, keyframe in zip(indices, keyframes, strict=True):
        np.testing.assert_array_equal(frames[index], keyframe)


@pytest.mark.parametrize("indices", [[0, 4, 8, 12], [0, 2, 6, 7]])
def test_frames_lie_at_their_own_time(indices):
    keyframes = [bar_at(10 + 2 * index) for index in indices]
    frames = fill(keyframes, indices, indices[-1] + 1, MinterpolateInterpolator())
    expected = position(bar_at(10)) + 2 * np.arange(len(frames))
    np.testing.assert_allclose([position(frame) for frame in frames], expected, atol=0.6)


def test_one_run_of_ffmpeg_serves_all_equal_gaps(monkeypatch):
    interpolator = MinterpolateInterpolator()
    calls = []
    original = interpolator._call
    monkeypatch.setattr(interpolator, "_call", lambda *args: calls.append(args[-1]) or original(*args))
    interpolator.fill_sequence([bar_at(x) for x in (4, 8, 12, 16, 20)], [0, 4, 8, 12, 14], 15)
    assert calls == [4, 2]


def test_a_missing_program_is_named():
    with pytest.raises(MediaError, match=r"could not be started.*no-such-ffmpeg"):
        fill([bar_at(4), bar_at(8)], [0, 4], 5, MinterpolateInterpolator("/no-such-ffmpeg"))


def test_a_failing_program_shows_what_it_said(tmp_path):
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\ncat > /dev/null\necho 'filter is on strike' >&2\nexit 3\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    with pytest.raises(MediaError, match="filter is on strike"):
        fill([bar_at(4), bar_at(8)], [0, 4], 5, MinterpolateInterpolator(str(program)))


def test_a_program_that_gives_too_little_is_noticed(tmp_path):
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\ncat > /dev/null\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    with pytest.raises(MediaError, match="gave 0 frames where 5 were needed"):
        fill([bar_at(4), bar_at(8)], [0, 4], 5, MinterpolateInterpolator(str(program)))


def test_bad_input_is_refused():
    with pytest.raises(MediaError, match="at least 32 pixels, got 16x64"):
        fill([bar_at(4, (16, 64)), bar_at(8, (16, 64))], [0, 4], 5, MinterpolateInterpolator())
    with pytest.raises(ConfigError, match="twice"):
        MinterpolateInterpolator().fill_sequence([bar_at(4), bar_at(8)], [1, 1], 5)
    with pytest.raises(ShapeError, match="keyframe 4"):
        MinterpolateInterpolator().fill_sequence([bar_at(4), bar_at(8, (50, 64))], [0, 4], 5)
    with pytest.raises(ConfigError, match="threads"):
        MinterpolateInterpolator(threads=0)
