"""The stream makes the keyframes that the torch module itself makes when it is rolled out."""

import numpy as np
import pytest
import torch
from test_runtime import RecordingEngine
from tiny_bundle import SIZE, SPEC, label_maps, manifest
from tiny_step import TinyStep

from export.bundle import load_manifest, write_bundle
from export.engines import OnnxRuntimeEngine
from export.onnx_graph import export_step, write_self_test
from export.runtime import Stream
from fastv2v.data.conditions import encode_condition_numpy
from fastv2v.render import rollout, start_history


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    export_step(TinyStep(), folder / "step.onnx", size=SIZE)
    write_self_test(folder / "selftest.onnx")
    files = {name: folder / name for name in ("step.onnx", "selftest.onnx")}
    write_bundle(folder / "tiny.v2v", manifest(), files)
    return folder / "tiny.v2v"


def torch_keyframes(labels: list[np.ndarray], seed_frame: np.ndarray | None) -> torch.Tensor:
    """Frames (T, 3, H, W) the module itself makes of these conditions."""
    conditions = torch.from_numpy(np.stack([encode_condition_numpy(SPEC, x) for x in labels]))[None]
    given = 0 if seed_frame is None else 1
    frames = None
    if seed_frame is not None:
        frames = (torch.from_numpy(seed_frame).permute(2, 0, 1).float() / 127.5 - 1)[None, None]
    history = start_history(conditions[:, :given], frames, 2, first_condition=conditions[:, 0])
    with torch.no_grad():
        return torch.cat([out.frame for out in rollout(TinyStep().eval(), conditions[:, given:], history)])


class TestAgainstTorch:
    @pytest.mark.parametrize("seeded", [False, True])
    def test_keyframes_equal_the_module_rolled_out(self, source, seeded):
        labels = label_maps(21)
        seed_frame = np.random.default_rng(1).integers(0, 256, (*SIZE, 3), dtype=np.uint8) if seeded else None
        expected = torch_keyframes(labels[::4], seed_frame).numpy()
        engine = RecordingEngine(OnnxRuntimeEngine(source / "step.onnx", 1))
        with Stream(engine, load_manifest(source), seed_frame=seed_frame) as stream:
            delivered = list(stream.frames(labels))
        assert np.abs(np.concatenate(engine.frames) - expected).max() < 1e-4
        keyframes = [d for d in delivered if d.is_keyframe]
        assert [d.index for d in keyframes] == [0, 4, 8, 12, 16, 20]
        if seeded:
            assert np.array_equal(keyframes.pop(0).frame, seed_frame)
        levels = (expected.transpose(0, 2, 3, 1) + 1) * 127.5
        for keyframe, level in zip(keyframes, levels, strict=True):
            assert keyframe.frame.dtype == np.uint8
            assert np.abs(keyframe.frame - level).max() < 0.52
