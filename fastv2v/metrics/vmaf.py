"""VMAF through the libvmaf filter of ffmpeg, whose model is built in. Torch-free."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

import ffmpeg
import numpy as np
from numpy.typing import NDArray

from fastv2v.errors import ShapeError
from fastv2v.metrics.image import aligned
from fastv2v.video import FfmpegProcess

LOG_NAME: Final = "vmaf.json"
"""Relative to the folder ffmpeg runs in: an absolute path would need escaping in a filter."""

MIN_SIDE: Final = 32
"""libvmaf crashes on pictures of 16 pixels; its coarsest scale is an eighth of the frame."""


class VmafScore(NamedTuple):
    """VMAF of a video against its reference: 0 (bad) to 100."""

    harmonic_mean: float
    """1 / mean(1 / (score + 1)) - 1 over frames, as libvmaf pools: bad frames weigh more."""
    percentile_5: float
    """The score that 5 % of the frames stay below."""
    per_frame: tuple[float, ...]
    """Score of each frame. It includes the motion to the previous one, so always give whole videos."""


def vmaf(
    frames: Iterable[NDArray[np.uint8]], reference: Iterable[NDArray[np.uint8]], *, num_threads: int = 1
) -> VmafScore:
    """Score a video against its reference with the default model ``vmaf_v0.6.1``.

    The model was trained on 1080p television; at other sizes use scores side by side only. A frame identical to its
    reference scores a little below 100.

    Args:
        frames: RGB, each (H, W, 3) 8-bit, at least 32 pixels high and wide; consumed one by one.
        reference: the same number of frames of the same size.
        num_threads: threads of libvmaf.

    Returns:
        Pooled and per-frame scores.

    Raises:
        ShapeError: if counts or sizes differ, there are no frames, or they are too small.
        MediaError: if ffmpeg fails.

    Source:
        Li et al., "Toward a practical perceptual video quality metric", Netflix, 2016.
    """
    with tempfile.TemporaryDirectory() as folder:
        _run_vmaf(frames, reference, folder, num_threads)
        log = json.loads((Path(folder) / LOG_NAME).read_text(encoding="utf-8"))
    return pool_vmaf([frame["metrics"]["vmaf"] for frame in log["frames"]])


def pool_vmaf(per_frame: Iterable[float]) -> VmafScore:
    """Pool the scores of some frames of a video, for example those of its keyframes.

    Raises:
        ShapeError: if there are none.
    """
    scores = np.array(list(per_frame), np.float64)
    if scores.size == 0:
        raise ShapeError("VMAF needs at least one frame")
    harmonic = 1 / np.mean(1 / (scores + 1)) - 1
    return VmafScore(float(harmonic), float(np.percentile(scores, 5)), tuple(scores.tolist()))


def _run_vmaf(
    frames: Iterable[NDArray[np.uint8]], reference: Iterable[NDArray[np.uint8]], folder: str, num_threads: int
) -> None:
    """Send both videos through one pipe, each pair of frames as one tall picture that ffmpeg cuts in two."""
    process: FfmpegProcess | None = None
    try:
        for frame, real in aligned(frames, reference):
            if process is None:
                process = _start(frame.shape[0], frame.shape[1], folder, num_threads)
            process.write(np.concatenate([frame, real]))
        if process is None:
            raise ShapeError("VMAF needs at least one frame")
        process.finish()
    finally:
        if process is not None:
            process.kill()


def _start(height: int, width: int, folder: str, num_threads: int) -> FfmpegProcess:
    if min(height, width) < MIN_SIDE:
        raise ShapeError(f"VMAF needs frames of at least {MIN_SIDE}x{MIN_SIDE} pixels, got {height}x{width}")
    both = ffmpeg.input("pipe:", f="rawvideo", pix_fmt="rgb24", s=f"{width}x{2 * height}", r=25).split()
    views = [
        both[i].crop(0, i * height, width, height).filter("scale", out_color_matrix="bt709").filter("format", "yuv420p")
        for i in (0, 1)
    ]
    scored = ffmpeg.filter(views, "libvmaf", log_path=LOG_NAME, log_fmt="json", n_threads=num_threads)
    return FfmpegProcess(ffmpeg.output(scored, "-", f="null"), "VMAF", stdin=subprocess.PIPE, cwd=folder)
