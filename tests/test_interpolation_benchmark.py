"""The interpolation benchmark, and what it is for: ours beside the plainest use of flow."""

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from pictures import moving_texture, psnr_db, square_over_background

from benchmarks.interpolation import PlainDIS, interpolation_benchmark, load_frames, load_labels, main
from fastv2v.errors import ConfigError, DataError
from interpolate.motion import BlendInterpolator, DISInterpolator, MotionConfig

SHARED = Path(os.environ.get("FASTV2V_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.mark.parametrize("grade", ["ultrafast", "fast", "medium"])
def test_every_grade_beats_the_plainest_use_of_flow_where_things_cover_each_other(grade):
    frames = square_over_background(5, step=4)
    made = DISInterpolator(MotionConfig(grade=grade)).between(frames[0], frames[4], [0.25, 0.5, 0.75])
    plain = PlainDIS().between(frames[0], frames[4], [0.25, 0.5, 0.75])
    blend = BlendInterpolator().between(frames[0], frames[4], [0.25, 0.5, 0.75])
    scores = [np.mean([psnr_db(a, b) for a, b in zip(x, frames[1:4], strict=True)]) for x in (made, plain, blend)]
    assert scores[0] > scores[1]
    assert scores[0] > scores[2] + 4


class TestBenchmark:
    def test_rows_compare_methods_in_one_run(self):
        rows = interpolation_benchmark(moving_texture(10, (2.0, 0.0)), 4, ["blend", "dis-fast"], repeats=1, threads=1)
        blend, dis = rows
        assert dis["psnr_db"] > blend["psnr_db"] + 5
        assert dis["num_interpolated"] == 6  # frames 0, 4, 8 are given; frame 9 belongs to no full gap
        assert dis["ms_per_frame"] > blend["ms_per_frame"] > 0
        assert dis["speedup"] is None

    def test_label_maps_add_a_method_that_sees_them(self):
        frames = square_over_background(5, step=4)
        labels = [(frame[..., 0] > 128).astype(np.uint8) for frame in frames]
        rows = interpolation_benchmark(frames, 4, ["dis-fast"], repeats=1, threads=1, labels=labels)
        assert [row["method"] for row in rows] == ["dis-fast", "dis-fast, labels"]
        assert rows[1]["psnr_db"] > rows[0]["psnr_db"]

    def test_the_last_line_and_the_file_are_json(self, tmp_path, capsys):
        for number, frame in enumerate(moving_texture(5, (2.0, 0.0))):
            cv2.imwrite(str(tmp_path / f"{number}.png"), frame)
        main(tmp_path, gap=2, size=(64, 96), repeats=1, methods=("blend",), json=tmp_path / "result.json")
        last_line = capsys.readouterr().out.splitlines()[-1]
        assert json.loads(last_line) == json.loads((tmp_path / "result.json").read_text())
        assert json.loads(last_line)["rows"][0]["method"] == "blend"

    def test_bad_requests_are_refused(self, tmp_path):
        with pytest.raises(ConfigError, match="unknown method 'magic'"):
            interpolation_benchmark(moving_texture(5, (1, 0)), 4, ["magic"])
        with pytest.raises(ConfigError, match="needs at least 5 frames, got 4"):
            interpolation_benchmark(moving_texture(4, (1, 0)), 4, ["blend"])
        with pytest.raises(DataError, match="holds no pictures"):
            load_frames(tmp_path, (8, 8))
        with pytest.raises(DataError, match="does not exist"):
            load_frames(tmp_path / "nothing", (8, 8))
        with pytest.raises(ConfigError, match="3 label maps came for 5 frames"):
            frames = moving_texture(5, (1, 0))
            interpolation_benchmark(frames, 4, ["blend"], labels=[frames[0][..., 0]] * 3)
        with pytest.raises(DataError, match="no such folder; give the label maps"):
            load_labels(tmp_path / "nothing", (8, 8))
        cv2.imwrite(str(tmp_path / "colour.png"), np.zeros((4, 4, 3), np.uint8))
        with pytest.raises(DataError, match="a label map has one channel of ids"):
            load_labels(tmp_path, (8, 8))

    def test_frames_are_read_as_rgb_in_order(self, tmp_path):
        for number in (2, 1):
            cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((8, 8, 3), (0, 0, 100 * number), dtype=np.uint8))
        frames = load_frames(tmp_path, (4, 6), limit=2)
        assert [frame.shape for frame in frames] == [(4, 6, 3)] * 2
        assert [frame[0, 0].tolist() for frame in frames] == [[100, 0, 0], [200, 0, 0]]


CAMVID = SHARED / "data/street_camvid/train_B/0016E5"


@pytest.mark.skipif(not CAMVID.is_dir(), reason=f"no real driving video at {CAMVID}")
def test_real_driving_video_beats_the_plain_use_of_flow_by_a_third_of_a_decibel():
    frames = load_frames(CAMVID, (256, 512), limit=21)
    plain, ours = interpolation_benchmark(frames, 4, ["dis-plain", "dis-fast"], repeats=1)
    assert ours["psnr_db"] > plain["psnr_db"] + 0.33
