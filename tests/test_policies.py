import json

import cv2
import numpy as np
import pytest

from benchmarks.policies import main, policy_benchmark
from fastv2v.errors import ConfigError


def scene(num_frames=41):
    """A square that stands still, hurries across, and stands still again; with its label maps."""
    texture = np.random.default_rng(0).integers(0, 256, (12, 20, 3)).astype(np.uint8)
    background = cv2.resize(texture, (160, 96), interpolation=cv2.INTER_CUBIC)
    frames, labels = [], []
    for t in range(num_frames):
        left = 20 + 8 * int(np.clip(t - 14, 0, 12))
        frame, label = background.copy(), np.zeros((96, 160), np.uint8)
        frame[30:66, left : left + 36], label[30:66, left : left + 36] = (250, 240, 20), 1
        frames.append(frame)
        labels.append(label)
    return frames, labels


def test_policies_that_follow_the_condition_do_better_with_as_many_keyframes():
    frames, labels = scene()
    rows = {row["policy"]: row for row in policy_benchmark(frames, labels, gap=4, fps=16)}
    assert list(rows) == ["uniform", "adaptive", "causal", "budgeted"]
    uniform, causal = rows["uniform"], rows["causal"]
    assert (uniform["keyframes"], uniform["longest_gap"]) == (11, 4)
    assert all(row["keyframes"] <= 11 and row["longest_gap"] <= 8 for row in rows.values())
    assert causal["all_psnr_db"] > uniform["all_psnr_db"]
    assert causal["worst_psnr_db"] <= causal["filled_psnr_db"]
    assert rows["budgeted"]["setting"]["per_second"] >= 4


def test_nonsense_is_refused():
    frames, labels = scene(9)
    with pytest.raises(ConfigError, match="8 label maps came for 9 frames"):
        policy_benchmark(frames, labels[1:], gap=2, fps=16)
    with pytest.raises(ConfigError, match="more than two gaps"):
        policy_benchmark(frames, labels, gap=5, fps=16)


def test_the_last_line_is_json(tmp_path, capsys):
    for kind, pictures in zip(("frames", "labels"), scene(13), strict=True):
        (tmp_path / kind).mkdir()
        for number, picture in enumerate(pictures):
            cv2.imwrite(str(tmp_path / kind / f"{number:02}.png"), picture)
    main(tmp_path / "frames", tmp_path / "labels", gap=3, fps=12, size=(48, 80))
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [row["policy"] for row in rows] == ["uniform", "adaptive", "causal", "budgeted"]
