"""Ways to choose keyframes, beside each other at no more keyframes than ``uniform``: what the filled frames are worth.

Keyframes are real frames, so nothing but their choice and the filling counts. ``uniform`` sets the most there may be;
the other policies may leave gaps twice as long and are tuned to come as close to it from below as they can.
``adaptive`` sees the whole sequence, the others nothing of the future.
"""

from __future__ import annotations

import json as json_format
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from benchmarks.interpolation import Frame, Labels, load_frames, load_labels, psnr_db
from benchmarks.results import format_table
from fastv2v.errors import ConfigError, FastV2VError
from interpolate.fill import fill
from interpolate.keyframes import KeyframeConfig, select_keyframes, uniform_keyframes
from interpolate.motion import DISInterpolator

Row = dict[str, Any]

COLUMNS = {
    "policy": "policy",
    "keyframes": "keyframes",
    "longest_gap": "longest gap",
    "filled_psnr_db": "PSNR filled dB",
    "all_psnr_db": "PSNR of all frames' error dB",
    "worst_psnr_db": "worst frame dB",
}
"""Columns of the table."""


def policy_benchmark(frames: Sequence[Frame], labels: Sequence[Labels], gap: int, fps: float) -> list[Row]:
    """Fill a sequence from keyframes that each policy chooses.

    Args:
        frames: consecutive (H, W, 3) uint8 RGB frames.
        labels: class ids (H, W) of each.
        gap: distance of the uniform keyframes, at least 2.
        fps: frames a second, for the budget.

    Returns:
        One row for each policy that can do with as many keyframes: ``policy``, ``keyframes``, ``longest_gap``,
        ``setting`` (what it was tuned to), ``filled_psnr_db`` (mean over the filled-in frames), ``all_psnr_db`` (of the
        mean squared error over all frames, keyframes counting as exact: what a policy with fewer keyframes cannot win
        by) and ``worst_psnr_db``.

    Raises:
        ConfigError: if there is not one label map for each frame, or too few frames for two gaps.
    """
    if len(labels) != len(frames):
        raise ConfigError(f"{len(labels)} label maps came for {len(frames)} frames; give one for each")
    if gap < 2 or len(frames) <= 2 * gap:
        raise ConfigError(f"a gap of at least 2 and more than two gaps of frames are needed; got {gap}, {len(frames)}")
    most = len(uniform_keyframes(len(frames), gap))
    rows = []
    for config in _policies(gap, fps):
        choice = _closest(config, labels, fps, most)
        if choice is None:
            continue
        chosen, tuned = choice
        made = fill([frames[i] for i in chosen], chosen, len(frames), DISInterpolator(), labels)
        known = set(chosen)
        scores = [psnr_db(made[i], frames[i]) for i in range(len(frames)) if i not in known]
        errors = [float(np.mean((x.astype(np.float32) - y) ** 2)) for x, y in zip(made, frames, strict=True)]
        rows.append(
            {
                "policy": config.policy,
                "keyframes": len(chosen),
                "longest_gap": int(np.diff(chosen).max()),
                "setting": {name: getattr(tuned, name) for name in ("gap", "min_gap", "every", "per_second")},
                "filled_psnr_db": round(statistics.fmean(scores), 3),
                "all_psnr_db": round(10 * float(np.log10(255**2 / max(statistics.fmean(errors), 1e-9))), 3),
                "worst_psnr_db": round(min(scores), 3),
            }
        )
    return rows


def _policies(gap: int, fps: float) -> list[KeyframeConfig]:
    """Every policy once; the others may leave gaps twice as long as uniform ones."""
    return [
        KeyframeConfig(gap=gap),
        KeyframeConfig(policy="adaptive", gap=2 * gap, window=3),
        KeyframeConfig(policy="causal", gap=2 * gap),
        KeyframeConfig(policy="budgeted", gap=2 * gap, per_second=max(1, int(fps / gap))),
    ]


def _closest(
    config: KeyframeConfig, labels: Sequence[Labels], fps: float, most: int
) -> tuple[list[int], KeyframeConfig] | None:
    """The choice with the most keyframes, but no more than ``most``, over the settings of a policy; None if all have.

    Of two with as many, the one with the shorter longest gap.
    """
    within = []
    for setting in _settings(config, fps):
        chosen = select_keyframes(setting, labels, fps)
        if len(chosen) <= most:
            within.append((chosen, setting))
    return max(within, key=lambda choice: (len(choice[0]), -max(np.diff(choice[0]))), default=None)


def _settings(config: KeyframeConfig, fps: float) -> Iterator[KeyframeConfig]:
    """What a policy can be tuned by."""
    match config.policy:
        case "adaptive":
            for gap in range(config.gap // 2, config.gap + 1):
                for min_gap in range(1, (gap + 1) // 2 + 1):
                    yield replace(config, gap=gap, min_gap=min_gap)
        case "causal":
            for every in np.arange(1, config.gap + 0.01, 0.1):
                yield replace(config, every=round(float(every), 1))
        case "budgeted":
            for per_second in range(math.ceil(fps / config.gap), math.ceil(fps) + 1):
                yield replace(config, per_second=per_second)
        case _:
            yield config


def main(
    frames: Annotated[Path, tyro.conf.Positional],
    labels: Annotated[Path, tyro.conf.Positional],
    *,
    gap: int = 4,
    fps: float = 24.0,
    size: tuple[int, int] = (256, 512),
    limit: int | None = None,
) -> None:
    """Compare ways to choose keyframes on real frames and print a table, then one line of JSON.

    Args:
        frames: folder of pictures of one sequence, or a video file.
        labels: folder of their label maps.
        gap: distance of the uniform keyframes; the others get no more keyframes.
        fps: frames a second, for the budget.
        size: height and width to reduce the frames to (INTER_AREA).
        limit: use no more than this many frames.

    Raises:
        DataError: if a folder does not exist or holds no pictures.
        MediaError: if a file cannot be decoded.
        ConfigError: if a setting is out of range.
    """
    material, known = load_frames(frames, size, limit), load_labels(labels, size, limit)
    rows = policy_benchmark(material, known, gap, fps)
    print(f"{frames.name}: {len(material)} frames at {size[1]}x{size[0]}, {fps:g} frames/s")
    print(format_table(rows, COLUMNS))
    print(json_format.dumps({"suite": "policies", "source": frames.name, "gap": gap, "fps": fps, "rows": rows}))


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except FastV2VError as error:
        print(f"benchmarks.policies: {error}", file=sys.stderr)
        raise SystemExit(2) from error
