"""The published baseline: ffmpeg's ``minterpolate`` between keyframes, made exact in count and in time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastv2v.errors import ConfigError, MediaError
from interpolate.fill import check_keyframes

Frame = NDArray[np.uint8]

_STDERR_TAIL_CHARS = 400
# Below this the filter's 16-pixel blocks and 32-pixel search window have no room, and ffmpeg ends without output.
_LEAST_SIDE = 32


class MinterpolateInterpolator:
    """Overlapped block motion compensation of ffmpeg, with the options of Fast-Vid2Vid.

    Keyframes go in and all frames come out through raw RGB pipes, so nothing is encoded and no file is written. The
    filter works in YUV, hence frames inside the gaps carry its rounding; keyframes are passed through untouched.
    Neighbouring gaps of the same length share one run of ffmpeg, which also gives the filter its four-frame window.

    Args:
        executable: ffmpeg to run; None takes the one that comes with imageio-ffmpeg.
        threads: threads ffmpeg may use; None leaves that to ffmpeg.

    Source:
        ``minterpolate=mi_mode=mci:mc_mode=obmc:me=epzs`` in Zhuo et al., "Fast-Vid2Vid", ECCV 2022. There all gaps
        are taken for equal, the last keyframe is lost, and surplus frames are deleted at random; not so here.
    """

    def __init__(self, executable: str | None = None, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise ConfigError(f"threads must be at least 1, got {threads}")
        self._executable = executable
        self._threads = threads

    def fill_sequence(self, keyframes: Sequence[Frame], indices: Sequence[int], total: int) -> list[Frame]:
        """Every frame of a sequence; see ``interpolate.fill.fill`` for arguments, result and errors.

        Raises:
            MediaError: if ffmpeg is missing, fails, or gives fewer frames than needed; with the end of its messages.
        """
        check_keyframes(keyframes, indices, total)
        frames = [keyframes[0]] * indices[0]
        for start, stop, gap in _equal_gaps(indices):
            made = self._run(keyframes[start : stop + 1], gap)
            for k in range(start, stop):
                offset = (k - start) * gap
                frames += [keyframes[k], *made[offset + 1 : offset + gap]]
        return frames + [keyframes[-1]] * (total - indices[-1])

    def _run(self, keyframes: Sequence[Frame], gap: int) -> NDArray[np.uint8] | list[Frame]:
        """Frames from the first to the last of ``keyframes``, ((n - 1) * gap + 1, H, W, 3)."""
        if gap == 1:
            return list(keyframes)
        height, width = keyframes[0].shape[:2]
        if min(height, width) < _LEAST_SIDE:
            raise MediaError(f"minterpolate needs frames of at least {_LEAST_SIDE} pixels, got {height}x{width}")
        # The filter stops before the last gap it was given, as it waits for a frame that never comes: repeat the end.
        padded = [*keyframes, keyframes[-1]]
        output = self._call(b"".join(np.ascontiguousarray(frame).data for frame in padded), height, width, gap)
        needed, frame_bytes = (len(keyframes) - 1) * gap + 1, height * width * 3
        if len(output) < needed * frame_bytes:
            made = len(output) // frame_bytes
            raise MediaError(f"ffmpeg's minterpolate gave {made} frames where {needed} were needed")
        frames = np.frombuffer(output, dtype=np.uint8, count=needed * frame_bytes)
        return frames.reshape(needed, height, width, 3).copy()  # a buffer of bytes could not be written to

    def _call(self, pixels: bytes, height: int, width: int, gap: int) -> bytes:
        """Raw RGB in, raw RGB out, ``gap`` times as many frames."""
        try:
            import ffmpeg
            import imageio_ffmpeg
        except ModuleNotFoundError as error:
            raise MediaError(f"minterpolate needs {error.name}: pip install ffmpeg-python imageio-ffmpeg") from error
        raw: dict[str, Any] = {"format": "rawvideo", "pix_fmt": "rgb24"}
        threads = {} if self._threads is None else {"threads": self._threads}
        graph = (
            ffmpeg.input("pipe:", s=f"{width}x{height}", r=1, **raw, **threads)
            .filter("minterpolate", fps=gap, mi_mode="mci", mc_mode="obmc", me="epzs", scd="none")
            .output("pipe:", **raw, **threads)
            .global_args("-hide_banner", "-loglevel", "error")
        )
        try:
            executable = self._executable or imageio_ffmpeg.get_ffmpeg_exe()
            output, _ = graph.run(cmd=executable, input=pixels, capture_stdout=True, capture_stderr=True)
        except ffmpeg.Error as error:
            tail = error.stderr.decode(errors="replace").strip()[-_STDERR_TAIL_CHARS:]
            raise MediaError(f"ffmpeg failed to interpolate {width}x{height} frames: {tail}") from error
        except (OSError, RuntimeError) as error:  # imageio-ffmpeg raises RuntimeError when it finds no binary
            raise MediaError(
                f"ffmpeg could not be started; install imageio-ffmpeg or give its path: {error}"
            ) from error
        return output


def _equal_gaps(indices: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Runs of equal gaps as (first keyframe, last keyframe, gap length)."""
    start = 0
    for gap, run in groupby(np.diff(indices).tolist()):
        stop = start + len(list(run))
        yield start, stop, gap
        start = stop
