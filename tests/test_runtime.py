"""The stream and how a bundle is opened. Needs neither torch nor ``onnx`` (scripts/test_runtime.sh runs it without)."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import SIZE, SPEC, FakeEngine, label_maps, manifest, step_in_numpy, write_tiny

from export.bundle import (
    EngineChoice,
    EngineMeasurement,
    load_manifest,
    record_engine,
)
from export.engines import ENGINES, available_engines, this_machine
from export.runtime import ConditionMap, Stream, StreamError, filling_threads, open_bundle
from fastv2v.data.conditions import ConditionSpec, encode_condition_numpy
from fastv2v.errors import BundleError, ConfigError, DataError, MissingExtraError
from interpolate.motion import BlendInterpolator

ROOT = Path(__file__).resolve().parents[1]
ENGINE = available_engines()[0]
OTHER = next(name for name in ENGINES if name != ENGINE)
needs_both = pytest.mark.skipif(len(available_engines()) < len(ENGINES), reason="needs both engines")


class RecordingEngine:
    """Keeps the unrounded frames of another engine."""

    def __init__(self, engine) -> None:
        self.engine, self.name, self.precision, self.form = engine, engine.name, engine.precision, engine.form
        self.frames: list[np.ndarray] = []

    def run(self, *inputs):
        made = self.engine.run(*inputs)
        self.frames.append(made["frame"])
        return made


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A bundle no test may change."""
    return write_tiny(tmp_path_factory.mktemp("source") / "tiny.v2v")


@pytest.fixture
def bundle(tmp_path):
    """A bundle for one test to change."""
    return write_tiny(tmp_path / "tiny.v2v")


def rolled_out(labels: list[np.ndarray], seed_frame: np.ndarray | None) -> list[np.ndarray]:
    """Keyframes (1, 3, H, W) of these label maps, in double precision; the first is the seed's where one is given."""
    encoded = [encode_condition_numpy(SPEC, x)[None].astype(float) for x in labels]
    conditions, valid = [encoded[0]] * 2, float(seed_frame is not None)
    frames = [np.zeros((1, 3, *SIZE))] * 2
    made = []
    if seed_frame is not None:
        frames = [seed_frame.transpose(2, 0, 1)[None] / 127.5 - 1] * 2
        made, encoded = frames[:1], encoded[1:]
    for condition in encoded:
        past = np.stack(conditions[-2:], axis=1), np.stack(frames[-2:], axis=1)
        frame = step_in_numpy(condition, *past, valid)
        conditions, frames, valid = [*conditions, condition], [*frames, frame], 1.0
        made.append(frame)
    return made


@pytest.mark.parametrize("seeded", [False, True])
def test_keyframes_equal_the_graph_worked_out_in_numpy(source, seeded):
    labels = label_maps(21)
    seed_frame = np.random.default_rng(1).integers(0, 256, (*SIZE, 3), dtype=np.uint8) if seeded else None
    engine = RecordingEngine(ENGINES[ENGINE](source / "step.onnx", 1))
    with Stream(engine, load_manifest(source), seed_frame=seed_frame) as stream:
        keyframes = [d for d in stream.frames(labels) if d.is_keyframe]
    assert [d.index for d in keyframes] == [0, 4, 8, 12, 16, 20]
    expected = rolled_out(labels[::4], seed_frame)
    assert len(engine.frames) == len(expected) - seeded
    for got, wanted in zip(engine.frames, expected[seeded:], strict=True):
        assert np.abs(got - wanted).max() < 1e-4
    for keyframe, level in zip(keyframes, expected, strict=True):
        assert np.abs(keyframe.frame - (level[0].transpose(1, 2, 0) + 1) * 127.5).max() < 0.52


class TestDelivery:
    @pytest.mark.parametrize("overlap", [False, True])
    @pytest.mark.parametrize("num_frames", range(1, 11))
    def test_every_frame_comes_once_and_in_order(self, num_frames, overlap):
        with Stream(FakeEngine(), manifest(), overlap=overlap) as stream:
            delivered = list(stream.frames(label_maps(num_frames)))
        assert [d.index for d in delivered] == list(range(num_frames))
        assert all(d.frame.shape == (*SIZE, 3) for d in delivered)
        expected = {i for i in range(num_frames) if i % 4 == 0} | {num_frames - 1}
        assert {d.index for d in delivered if d.is_keyframe} == expected
        assert stream.stats.frames == num_frames
        assert stream.stats.keyframes == len(expected)

    @pytest.mark.parametrize("policy", ["uniform", "adaptive"])
    @pytest.mark.parametrize("method", ["blend", "dis"])
    def test_overlap_changes_no_pixel(self, policy, method):
        made = []
        for overlap in (False, True):
            engine = FakeEngine(delay_s=0.002)
            details = manifest(keyframes={"policy": policy, "gap": 3}, interpolation={"method": method})
            with Stream(engine, details, overlap=overlap) as stream:
                made.append(list(stream.frames(label_maps(12))))
            assert (threading.get_ident() in engine.threads) == (not overlap)
        for one, other in zip(*made, strict=True):
            assert one.index == other.index
            assert one.is_keyframe == other.is_keyframe
            assert np.array_equal(one.frame, other.frame)

    def test_without_overlap_a_gap_is_handed_over_with_its_last_keyframe(self):
        stream = Stream(FakeEngine(), manifest(), overlap=False)
        handed = [[d.index for d in stream.push(labels)] for labels in label_maps(6)]
        assert handed == [[0], [], [], [], [1, 2, 3, 4], []]
        assert [d.index for d in stream.flush()] == [5]
        assert stream.flush() == []

    @pytest.mark.parametrize("method", ["blend", "dis"])
    @pytest.mark.parametrize("policy", ["uniform", "causal"])
    def test_a_causal_stream_gives_every_frame_at_once(self, method, policy):
        details = manifest(keyframes={"policy": policy, "gap": 3}, interpolation={"method": method})
        labels = label_maps(11)
        waiting = list(Stream(FakeEngine(), details, overlap=False).frames(labels))
        with Stream(FakeEngine(), details, causal=True) as stream:
            handed = [stream.push(x) for x in labels]
            assert [[d.index for d in frames] for frames in handed] == [[i] for i in range(11)]
            assert stream.flush() == []
            assert (stream.stats.frames, stream.frames_waited) == (11, 0)
            with pytest.raises(StreamError, match="ended"):
                stream.push(labels[0])
        made = [d for (d,) in handed]
        keyframes = [d for d in waiting if d.is_keyframe and d.index < 10]  # the last of a sequence is known too late
        assert [d.index for d in made if d.is_keyframe and d.index < 10] == [d.index for d in keyframes]
        assert all(np.array_equal(made[d.index].frame, d.frame) for d in keyframes)
        if method == "blend":
            assert np.array_equal(made[1].frame, made[0].frame)

    @pytest.mark.parametrize("delay_s", [0.0, 0.03])
    @pytest.mark.parametrize("overlap", [False, True])
    @pytest.mark.parametrize("policy", ["uniform", "adaptive"])
    def test_no_frame_waits_longer_than_is_said(self, policy, overlap, delay_s):
        details = manifest(keyframes={"policy": policy, "gap": 4, "window": 5})
        with Stream(FakeEngine(delay_s=delay_s), details, overlap=overlap) as stream:
            waited = [now - d.index for now, x in enumerate(label_maps(30)) for d in stream.push(x)]
            assert 3 <= max(waited) <= stream.frames_waited <= 9

    def test_a_causal_stream_can_begin_again(self):
        details = manifest(keyframes={"policy": "uniform", "gap": 3}, interpolation={"method": "dis"})
        labels = label_maps(8)
        with Stream(FakeEngine(), details, causal=True) as stream:
            first = [d.frame for d in stream.frames(labels)]
            stream.restart()
            again = [d.frame for d in stream.frames(labels)]
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))

    def test_keyframes_that_cannot_be_kept_are_a_damaged_bundle(self):
        for budget, said in ((1, "fewer than a gap of 4 needs"), (2.5, "whole number")):
            details = manifest(keyframes={"policy": "budgeted", "gap": 4, "per_second": budget})
            with pytest.raises(BundleError, match=said):
                Stream(FakeEngine(), details)

    def test_adaptive_keyframes_cannot_be_causal(self):
        details = manifest(keyframes={"policy": "adaptive", "gap": 4, "window": 5})
        with pytest.raises(ConfigError, match="cannot stream causally; export it with"):
            Stream(FakeEngine(), details, causal=True)

    def test_a_causal_stream_names_the_keyframe_that_failed(self):
        with Stream(FakeEngine(fail_at=1), manifest(gap=2), causal=True) as stream:
            labels = label_maps(4)
            assert [len(stream.push(x)) for x in labels[:2]] == [1, 1]
            with pytest.raises(StreamError, match="keyframe 2 could not be synthesised"):
                stream.push(labels[2])

    def test_an_interpolated_frame_lies_between_its_keyframes(self):
        frames = [d.frame.astype(int) for d in Stream(FakeEngine(), manifest(2)).frames(label_maps(3))]
        assert np.abs(2 * frames[1] - frames[0] - frames[2]).max() <= 1

    def test_history_keeps_unrounded_frames(self):
        engine = FakeEngine()
        list(Stream(engine, manifest(1)).frames(label_maps(4)))
        second = engine.calls[2][2][0, -1]
        assert not np.allclose(np.rint((second + 1) * 127.5), (second + 1) * 127.5, atol=1e-3)
        first_valid, later_valid = engine.calls[0][3], engine.calls[1][3]
        assert (first_valid, later_valid) == (0, 1)

    def test_conditions_are_not_kept(self):
        stream = Stream(FakeEngine(), manifest(), overlap=False)
        for labels in label_maps(50):
            stream.push(labels)
            assert len(stream._waiting) <= 4

    def test_a_caller_may_reuse_its_buffer(self):
        labels = label_maps(9)
        expected = [d.frame for d in Stream(FakeEngine(), manifest()).frames(labels)]
        buffer = np.empty_like(labels[0])

        def one_buffer():
            for x in labels:
                buffer[:] = x
                yield buffer

        made = [d.frame for d in Stream(FakeEngine(delay_s=0.005), manifest()).frames(one_buffer())]
        assert np.array_equal(expected, made)

    def test_a_caller_may_draw_on_a_delivered_frame(self):
        labels = label_maps(9)
        expected = [d.frame for d in Stream(FakeEngine(), manifest()).frames(labels)]
        made = []
        for delivered in Stream(FakeEngine(), manifest(), overlap=False).frames(labels):
            made.append(delivered.frame.copy())
            delivered.frame[:] = 0
        assert np.array_equal(expected, made)

    def test_a_restarted_stream_equals_a_new_one(self):
        stream = Stream(FakeEngine(delay_s=0.002), manifest())
        for labels in label_maps(6, seed=3):
            stream.push(labels)
        stream.restart()
        again = list(stream.frames(label_maps(7)))
        fresh = list(Stream(FakeEngine(), manifest()).frames(label_maps(7)))
        assert all(np.array_equal(a.frame, b.frame) for a, b in zip(again, fresh, strict=True))
        assert stream.stats.frames == 7

    def test_an_empty_stream_delivers_nothing(self):
        assert list(Stream(FakeEngine(), manifest()).frames([])) == []

    def test_map_conditions_reach_the_engine_as_they_are(self):
        spec = ConditionSpec(kind="maps", map_channels=5)
        maps = list(np.random.default_rng(0).random((5, 5, *SIZE), dtype=np.float32))
        engine = FakeEngine()
        delivered = list(Stream(engine, manifest(condition=spec), overlap=False).frames(maps))
        assert len(delivered) == 5
        assert np.array_equal(engine.calls[1][0][0], maps[4])

    def test_instances_become_the_last_channel(self):
        spec = ConditionSpec(class_names=("road", "car", "sky"), use_instances=True)
        labels = np.zeros(SIZE, np.uint8)
        instances = np.zeros(SIZE, np.uint16)
        instances[:, 12:] = 7
        for condition in ((labels, instances), ConditionMap(labels=labels, instances=instances)):
            engine = FakeEngine()
            list(Stream(engine, manifest(condition=spec)).frames([condition]))
            edges = engine.calls[0][0][0, 3]
            assert edges.sum() == 2 * SIZE[0]
            assert (edges[:, 11:13] == 1).all()


class TestFailures:
    @pytest.mark.parametrize("overlap", [False, True])
    def test_a_failing_keyframe_surfaces_after_the_frames_before_it(self, overlap):
        delivered = []
        with (
            Stream(FakeEngine(fail_at=2), manifest(), overlap=overlap) as stream,
            pytest.raises(StreamError, match="keyframe 8 could not be synthesised by fake: out of coffee") as caught,
        ):
            for frame in stream.frames(label_maps(30)):
                delivered.append(frame.index)
        assert delivered == [0, 1, 2, 3, 4]
        assert isinstance(caught.value.__cause__, RuntimeError)
        with pytest.raises(StreamError, match="keyframe 8"):
            stream.push(label_maps(1)[0])

    @pytest.mark.parametrize("overlap", [False, True])
    @pytest.mark.parametrize("causal", [False, True])
    @pytest.mark.parametrize("good", [1, 2, 5, 6])
    def test_what_is_due_comes_before_the_error_of_the_source(self, good, causal, overlap):
        labels = label_maps(good)

        def unplugged():
            yield from labels
            raise OSError("cable")

        for source, error in ((unplugged(), OSError), (iter([*labels, np.zeros((8, 8), np.uint8)]), DataError)):
            delivered = []
            with Stream(FakeEngine(), manifest(), overlap=overlap, causal=causal) as stream, pytest.raises(error):
                for item in stream.frames(source):
                    delivered.append(item)
            expected = Stream(FakeEngine(), manifest(), overlap=False, causal=causal).frames(labels)
            for got, wanted in zip(delivered, expected, strict=True):
                assert np.array_equal(got.frame, wanted.frame)

    @pytest.mark.parametrize("overlap", [False, True])
    def test_a_failure_in_the_last_keyframe_surfaces_in_flush(self, overlap):
        delivered = []
        with (
            Stream(FakeEngine(fail_at=2), manifest(), overlap=overlap) as stream,
            pytest.raises(StreamError, match="6"),
        ):
            for frame in stream.frames(label_maps(7)):
                delivered.append(frame.index)
        assert delivered == [0, 1, 2, 3, 4]

    @pytest.mark.parametrize("overlap", [False, True])
    @pytest.mark.parametrize("num_frames", [8, 18])
    def test_a_gap_that_cannot_be_filled_ends_the_stream(self, num_frames, overlap):
        class Tired(BlendInterpolator):
            def between(self, first, second, times, labels=None):
                if np.array_equal(labels[0], wanted[4]):
                    raise ConfigError("no more coffee")
                return super().between(first, second, times, labels)

        delivered, wanted = [], label_maps(num_frames)
        with Stream(FakeEngine(), manifest(), overlap=overlap) as stream:
            stream._interpolator = Tired()
            stream.restart()
            with pytest.raises(StreamError, match=r"before keyframe [78] could not be interpolated: no more coffee"):
                for frame in stream.frames(wanted):
                    delivered.append(frame.index)
            with pytest.raises(StreamError, match="no more coffee"):
                stream.flush()
        assert delivered == [0, 1, 2, 3, 4]

    def test_values_that_are_not_finite_are_refused(self):
        class Overflowing(FakeEngine):
            def run(self, *inputs):
                return {"frame": np.full((1, 3, *SIZE), np.inf, np.float32)}

        with pytest.raises(StreamError, match=r"keyframe 0 .* not finite; choose precision f32"):
            list(Stream(Overflowing(), manifest()).frames(label_maps(2)))

    @pytest.mark.parametrize(
        ("bad", "problem"),
        [
            (np.zeros((8, 8), np.uint8), r"frame 2: label map has shape \(8, 8\) .* exported for \(16, 24\)"),
            (np.full(SIZE, 4, np.uint8), "frame 2: label id 4 is out of range"),
            (np.zeros(SIZE, np.float32), "frame 2: label map has values of type float32, expected integers"),
            (ConditionMap(), "frame 2: label map is missing"),
        ],
    )
    def test_a_bad_condition_is_refused_by_its_index_and_not_counted(self, bad, problem):
        labels = label_maps(5)
        stream = Stream(FakeEngine(), manifest(), overlap=False)
        delivered = [d for x in labels[:2] for d in stream.push(x)]
        with pytest.raises(DataError, match=problem):
            stream.push(bad)
        delivered += stream.frames(labels[2:])
        expected = list(Stream(FakeEngine(), manifest()).frames(labels))
        assert all(np.array_equal(a.frame, b.frame) for a, b in zip(delivered, expected, strict=True))

    def test_an_ended_stream_takes_no_more(self):
        stream = Stream(FakeEngine(), manifest())
        list(stream.frames(label_maps(2)))
        with pytest.raises(StreamError, match="has ended; restart it"):
            stream.push(label_maps(1)[0])
        stream.close()
        with pytest.raises(StreamError, match="closed"):
            stream.restart()

    def test_a_seed_frame_of_another_size_is_refused(self):
        with pytest.raises(DataError, match=r"seed frame: expected uint8 RGB of shape \(16, 24, 3\)"):
            Stream(FakeEngine(), manifest(), seed_frame=np.zeros((8, 8, 3), np.uint8))

    @pytest.mark.parametrize(
        ("changes", "problem"),
        [
            ({"interpolation": {"method": "magic"}}, "interpolation method 'magic' is not one of dis, blend"),
            ({"interpolation": {"method": "dis", "grade": "epic"}}, "interpolation: grade 'epic' is unknown"),
            ({"interpolation": {"method": "dis", "colour": 1}}, "interpolation: .*colour"),
            ({"keyframes": {"policy": "uniform", "gap": 0}}, "keyframes: .*gap"),
            ({"keyframes": {"policy": "uniform", "gap": 2, "mood": 1}}, "keyframes: .*mood"),
        ],
    )
    def test_a_manifest_of_unknown_parts_is_refused(self, changes, problem):
        with pytest.raises(BundleError, match=problem):
            Stream(FakeEngine(), manifest(**changes))


def measured(*entries: tuple[str, str, float, bool], cpu: str | None = None) -> EngineChoice:
    results = tuple(
        EngineMeasurement(engine=e, precision=p, threads=1, median_ms=ms, accepted=ok, reason="")
        for e, p, ms, ok in entries
    )
    best = results[0]
    return EngineChoice(
        engine=best.engine,
        precision=best.precision,
        median_ms=best.median_ms or 0.0,
        cpu=this_machine()["cpu"] if cpu is None else cpu,
        measurements=results,
    )


class TestOpenBundle:
    def test_without_a_measurement_the_reference_is_used_and_said(self, source, caplog):
        with caplog.at_level(logging.INFO, "export"), open_bundle(source, threads=1) as stream:
            assert stream.engine_name == f"{ENGINE} f32"
        assert f"using {ENGINE} f32 with 1 threads: no engine was measured" in caplog.text

    @needs_both
    def test_the_measured_engine_is_used_and_said(self, bundle, caplog):
        record_engine(bundle, measured(("openvino", "f32", 2.5, True), ("onnxruntime", "f32", 5.0, True)))
        with caplog.at_level(logging.INFO, "export"), open_bundle(bundle, threads=1) as stream:
            assert stream.engine.name == "openvino"
        assert "the fastest accepted, 2.5 ms a keyframe on this processor" in caplog.text

    @needs_both
    def test_a_measurement_from_elsewhere_is_said(self, bundle, caplog):
        record_engine(bundle, measured(("openvino", "f32", 2.5, True), cpu="Abacus 9"))
        with caplog.at_level(logging.INFO, "export"):
            open_bundle(bundle, threads=1).close()
        assert "another processor (Abacus 9); measure again here" in caplog.text

    @needs_both
    def test_what_cannot_run_here_is_skipped_aloud(self, bundle, caplog, monkeypatch):
        monkeypatch.setattr("export.engines.has_fast_bf16", lambda: False)
        results = measured(
            ("openvino", "bf16", 1.0, True), ("openvino", "f32", 3.0, True), ("onnxruntime", "f32", 2.0, False)
        )
        record_engine(bundle, results)
        with caplog.at_level(logging.INFO, "export"), open_bundle(bundle, threads=1) as stream:
            assert (stream.engine.name, stream.engine.precision) == ("openvino", "f32")
        assert "openvino bf16 cannot be used: this processor" in caplog.text
        assert "the next best, 3 ms" in caplog.text

    @pytest.mark.parametrize(
        ("engine", "precision", "why"),
        [
            (OTHER, "f32", f"pip install {OTHER}"),
            (ENGINE, "int8", r"step\.int8\.onnx is missing"),
            ("abacus", "f32", "this version of fastv2v does not know it"),
            (ENGINE, "base12", "this version of fastv2v does not know it"),
        ],
    )
    def test_a_bundle_measured_elsewhere_falls_back_aloud(self, bundle, caplog, monkeypatch, engine, precision, why):
        monkeypatch.setitem(sys.modules, OTHER, None)
        record_engine(bundle, measured((engine, precision, 1.0, True), cpu="Abacus 9"))
        with caplog.at_level(logging.INFO, "export"), open_bundle(bundle, threads=1) as stream:
            assert stream.engine_name == f"{ENGINE} f32"
            assert len(list(stream.frames(label_maps(6)))) == 6
        assert re.search(rf"{engine} {precision} cannot be used: .*{why}", caplog.text)
        assert f"using {ENGINE} f32 with 1 threads: none of the measured engines runs here" in caplog.text

    @needs_both
    def test_a_named_engine_is_taken_or_fails(self, source, monkeypatch):
        with open_bundle(source, engine="openvino", threads=1) as stream:
            assert (stream.engine.name, stream.engine.precision) == ("openvino", "f32")
        with pytest.raises(ConfigError, match="no engine 'abacus'"):
            open_bundle(source, engine="abacus")
        monkeypatch.setitem(sys.modules, "openvino", None)
        with pytest.raises(MissingExtraError, match="pip install openvino"):
            open_bundle(source, engine="openvino")

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({}, None),
            ({"engine": ENGINE}, None),
            ({"engine": ENGINE, "precision": "f32"}, (ENGINE, "f32")),
            ({"precision": "f32"}, (ENGINE, "f32")),
        ],
    )
    def test_what_is_asked_for_holds_for_the_interpolation_network(self, tmp_path, monkeypatch, options, expected):
        def note(folder, manifest, threads, asked):
            assert asked == expected
            raise BundleError("noted")

        monkeypatch.setattr("export.runtime.open_network", note)
        filling = {"method": "network", "engine": ENGINE, "precision": "bf16"}
        source = write_tiny(tmp_path / "tiny.v2v", interpolation=filling)
        with pytest.raises(BundleError, match="noted"):
            open_bundle(source, threads=1, **options)

    @needs_both
    def test_another_named_engine_runs_the_interpolation_network_in_f32(self, tmp_path, monkeypatch):
        def note(folder, manifest, threads, asked):
            assert asked == (ENGINE, "f32")
            raise BundleError("noted")

        monkeypatch.setattr("export.runtime.open_network", note)
        filling = {"method": "network", "engine": OTHER, "precision": "f32"}
        source = write_tiny(tmp_path / "tiny.v2v", interpolation=filling)
        with pytest.raises(BundleError, match="noted"):
            open_bundle(source, threads=1, engine=ENGINE)

    def test_no_engine_at_all_lists_the_reasons(self, source, monkeypatch):
        monkeypatch.setitem(sys.modules, "openvino", None)
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(BundleError, match=r"no engine can run .*pip install onnxruntime.*pip install openvino"):
            open_bundle(source)

    def test_a_damaged_bundle_is_not_opened(self, bundle):
        data = bytearray((bundle / "step.onnx").read_bytes())
        data[100] ^= 1
        (bundle / "step.onnx").write_bytes(data)
        with pytest.raises(BundleError, match=r"step\.onnx is damaged"):
            open_bundle(bundle)

    def test_a_bundle_streams_without_torch(self, source):
        code = (
            "import sys\n"
            "sys.modules.update(torch=None, onnx=None, jsonschema=None, tqdm=None, tyro=None, ffmpeg=None)\n"
            "import numpy as np\n"
            "from export.runtime import open_bundle\n"
            f"with open_bundle({str(source)!r}, threads=1) as stream:\n"
            "    frames = list(stream.frames(np.zeros((6, 16, 24), np.uint8)))\n"
            "print(len(frames), int(sum(f.frame.astype(int).sum() for f in frames)))\n"
        )
        done = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)
        with open_bundle(source, threads=1) as stream:
            here = list(stream.frames(np.zeros((6, 16, 24), np.uint8)))
        assert done.stdout.split() == ["6", str(int(sum(f.frame.astype(int).sum() for f in here)))]

    def test_the_manifest_travels_with_the_stream(self, source):
        with open_bundle(source, threads=1) as stream:
            assert replace(stream.manifest, files={}) == manifest()


def test_filling_leaves_half_of_the_threads_to_an_engine_that_works_meanwhile():
    assert [filling_threads(n) for n in (1, 2, 4)] == [1, 1, 2]
    assert filling_threads(2, overlap=False) == 2
