"""Streams on a device beside the ordinary one; the way to a GPU is played by one that is late."""

import contextlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from device_steps import TinyArrayStep, TinyDeviceStep
from pictures import psnr_db
from tiny_bundle import SIZE, SPEC, label_maps, manifest

from export.device_step import encode_on_device
from export.device_stream import (
    CudaFerry,
    DeviceFiller,
    DeviceStream,
    HostFerry,
    _between,
    _Gap,
    blend_between,
    named_device,
    recorder_for,
)
from export.inputs import ConditionForm
from export.stream import Stream, StreamError
from fastv2v.errors import BundleError, ConfigError, DataError, MissingExtraError
from fastv2v.nn.optical_flow import RAFTFlow, import_raft
from interpolate.fill import fill
from interpolate.motion import BlendInterpolator
from interpolate.torch_motion import from_levels


class LateFerry(HostFerry):
    """What goes down arrives only when somebody waits for it."""

    def __init__(self) -> None:
        self.most_under_way = self._under_way = 0
        self.has_waited = False

    def down(self, data):
        self._under_way += 1
        self.most_under_way = max(self.most_under_way, self._under_way)
        return _Late(super().down(data), self)

    def wait(self):
        assert self._under_way == 0, "it would land in memory that is freed next"
        self.has_waited = True


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU")


class _Late:
    def __init__(self, inner, ferry) -> None:
        self._inner, self._ferry = inner, ferry

    def is_here(self):
        return False

    def take(self):
        self._ferry._under_way -= 1
        return self._inner.take()


def seed_frame():
    return np.random.default_rng(1).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def both(num_frames, details, seed=None, causal=False, ferry=None, overlap=True):
    labels = label_maps(num_frames)
    with Stream(TinyArrayStep(), details, seed_frame=seed, causal=causal) as stream:
        wanted = list(stream.frames(labels))
    with DeviceStream(
        TinyDeviceStep(), details, seed_frame=seed, causal=causal, ferry=ferry, overlap=overlap
    ) as stream:
        made = list(stream.frames(labels))
        assert stream.stats.frames == num_frames
        assert stream.stats.keyframes == sum(d.is_keyframe for d in wanted) - (seed is not None)
    assert [(d.index, d.is_keyframe) for d in made] == [(d.index, d.is_keyframe) for d in wanted]
    for one in made:
        assert one.frame.shape == (*SIZE, 3) and one.frame.dtype == np.uint8
    return made, wanted


class TestSameFrames:
    @pytest.mark.parametrize("late", [False, True])
    @pytest.mark.parametrize("seeded", [False, True])
    @pytest.mark.parametrize("num_frames", [1, 2, 5, 6, 14])
    def test_blended_frames_equal_those_of_the_ordinary_stream_to_a_level(self, num_frames, seeded, late):
        ferry = LateFerry() if late else None
        made, wanted = both(num_frames, manifest(), seed_frame() if seeded else None, ferry=ferry)
        for one, other in zip(made, wanted, strict=True):
            assert np.abs(one.frame.astype(int) - other.frame).max() <= 1
        if ferry is not None:
            assert ferry._under_way == 0

    @pytest.mark.parametrize(
        "keyframes", [{"policy": "adaptive", "gap": 5}, {"policy": "causal", "gap": 4}, {"policy": "uniform", "gap": 1}]
    )
    def test_whatever_chooses_the_keyframes(self, keyframes):
        made, wanted = both(17, manifest(keyframes=keyframes), ferry=LateFerry())
        for one, other in zip(made, wanted, strict=True):
            assert np.abs(one.frame.astype(int) - other.frame).max() <= 1

    def test_compensated_frames_are_close_and_keyframes_equal_to_a_level(self):
        details = manifest(interpolation={"method": "dis", "cut_threshold": None})
        made, wanted = both(13, details)
        for one, other in zip(made, wanted, strict=True):
            if one.is_keyframe:
                assert np.abs(one.frame.astype(int) - other.frame).max() <= 1
            else:
                # Blocks that change at random have no motion to be found: two estimators err differently.
                assert psnr_db(one.frame, other.frame) > 20

    def test_overlap_changes_no_pixel(self):
        details = manifest(interpolation={"method": "dis"})
        one, _ = both(14, details, overlap=True, ferry=LateFerry())
        other, _ = both(14, details, overlap=False)
        assert all(np.array_equal(a.frame, b.frame) for a, b in zip(one, other, strict=True))

    @pytest.mark.parametrize("seeded", [False, True])
    def test_a_causal_stream_gives_each_frame_at_once(self, seeded):
        details = manifest(interpolation={"method": "dis"})
        made, wanted = both(9, details, seed_frame() if seeded else None, causal=True)
        for one, other in zip(made, wanted, strict=True):
            assert np.abs(one.frame.astype(int) - other.frame).mean() < 1

    def test_a_stream_begins_again(self):
        labels = label_maps(9)
        with DeviceStream(TinyDeviceStep(), manifest(), ferry=LateFerry()) as stream:
            first = list(stream.frames(labels))
            stream.restart()
            stream.push(labels[3])
            stream.push(labels[4])
            stream.restart()
            again = list(stream.frames(labels))
        assert all(np.array_equal(a.frame, b.frame) for a, b in zip(first, again, strict=True))


class TestDelivery:
    def test_one_gap_is_under_way_beside_the_one_that_was_queued_last(self):
        ferry = LateFerry()
        with DeviceStream(TinyDeviceStep(), manifest(), ferry=ferry) as stream:
            came = [[d.index for d in stream.push(x)] for x in label_maps(10)]
            assert came == [[], [], [], [], [0], [], [], [], [1, 2, 3, 4], []]
            assert [d.index for d in stream.flush()] == [5, 6, 7, 8, 9]
            assert ferry.most_under_way == 2
            assert stream.frames_waited == 7

    def test_without_overlap_frames_come_with_their_keyframe(self):
        with DeviceStream(TinyDeviceStep(), manifest(), ferry=LateFerry(), overlap=False) as stream:
            came = [[d.index for d in stream.push(x)] for x in label_maps(5)]
        assert came == [[0], [], [], [], [1, 2, 3, 4]]

    def test_what_was_handed_over_stays_as_it_is(self):
        with DeviceStream(TinyDeviceStep(), manifest()) as stream:
            frames = list(stream.frames(label_maps(9)))
            copies = [d.frame.copy() for d in frames]
            stream.restart()
            list(stream.frames(label_maps(9, seed=5)))
        assert all(np.array_equal(d.frame, x) for d, x in zip(frames, copies, strict=True))

    def test_what_is_under_way_has_landed_before_its_memory_is_freed(self):
        ferry = LateFerry()
        with DeviceStream(TinyDeviceStep(), manifest(), ferry=ferry) as stream:
            for labels in label_maps(10):
                stream.push(labels)
            assert not ferry.has_waited
        assert ferry.has_waited

    def test_a_long_video_is_not_remembered(self):
        with DeviceStream(TinyDeviceStep(), manifest(gap=2), ferry=LateFerry()) as stream:
            most = 0
            for labels in label_maps(30):
                stream.push(labels)
                most = max(most, len(stream._keyframes_out))
        assert most <= 3

    def test_a_step_is_timed_before_a_video_begins(self):
        labels = label_maps(5)
        with DeviceStream(TinyDeviceStep(), manifest()) as stream:
            stream.time_step(labels[0])()
            made = list(stream.frames(labels))
            with pytest.raises(StreamError, match="before a video begins"):
                stream.time_step(labels[0])
        with DeviceStream(TinyDeviceStep(), manifest()) as stream:
            assert all(np.array_equal(a.frame, b.frame) for a, b in zip(made, stream.frames(labels), strict=True))


class TestFailures:
    @pytest.mark.parametrize("late", [False, True])
    @pytest.mark.parametrize("num_frames", [9, 14])
    def test_frames_before_a_keyframe_that_is_not_finite_come_first(self, num_frames, late):
        ferry = LateFerry() if late else HostFerry()
        with DeviceStream(TinyDeviceStep(spoil_at=2), manifest(), ferry=ferry) as stream:
            frames = []
            with pytest.raises(StreamError, match=r"keyframe 8 could not be synthesised by tiny f32.*not finite"):
                for item in stream.frames(label_maps(num_frames)):
                    frames.append(item.index)
            assert frames == [0, 1, 2, 3, 4]

    def test_a_keyframe_that_fails_comes_after_the_frames_before_it(self):
        with DeviceStream(TinyDeviceStep(fail_at=2), manifest(), ferry=LateFerry()) as stream:
            frames = []
            with pytest.raises(StreamError, match="keyframe 8 could not be synthesised by tiny: out of coffee"):
                for item in stream.frames(label_maps(14)):
                    frames.append(item.index)
            assert frames == [0, 1, 2, 3, 4]

    def test_a_causal_keyframe_that_is_not_finite_is_named(self):
        with (
            DeviceStream(TinyDeviceStep(spoil_at=1), manifest(), causal=True) as stream,
            pytest.raises(StreamError, match="keyframe 4 could not be synthesised by tiny: it gave values"),
        ):
            list(stream.frames(label_maps(6)))

    def test_a_bad_condition_costs_nothing(self):
        with DeviceStream(TinyDeviceStep(), manifest()) as stream:
            with pytest.raises(DataError, match="label id 9 is out of range"):
                stream.push(np.full(SIZE, 9, np.uint8))
            assert len(list(stream.frames(label_maps(5)))) == 5

    def test_a_gap_that_cannot_be_filled_is_told(self):
        def fails(first, second, times, *, labels=None):
            raise RuntimeError("out of memory")

        with DeviceStream(TinyDeviceStep(), manifest()) as stream:
            stream._device_filler._between = fails
            with pytest.raises(StreamError, match="gaps could not be filled on cpu: out of memory"):
                list(stream.frames(label_maps(6)))

    def test_what_devices_cannot_do_is_refused(self):
        with pytest.raises(BundleError, match="by a network, which runs on the CPU; stream it without --device"):
            DeviceStream(TinyDeviceStep(), manifest(interpolation={"method": "network"}))
        with pytest.raises(BundleError, match="in an unknown way"):
            DeviceStream(TinyDeviceStep(), manifest(interpolation={"method": "magic"}))
        with pytest.raises(BundleError, match="grade 'magic' is unknown"):
            DeviceStream(TinyDeviceStep(), manifest(interpolation={"method": "dis", "grade": "magic"}))
        with pytest.raises(ConfigError, match="on cuda devices and the cpu, not on meta"):
            named_device("meta")
        with pytest.raises(ConfigError, match="'toaster' is no device"):
            named_device("toaster")
        with pytest.raises(BundleError, match="cuda:999 is not to be had here"):
            named_device("cuda:999")


class TestFiller:
    def test_it_gives_what_filling_a_whole_sequence_gives(self):
        rng = np.random.default_rng(3)
        keyframes = list(rng.integers(0, 256, (4, *SIZE, 3), dtype=np.uint8))
        indices = [0, 3, 4, 9]
        recorded = []

        def record(work):
            recorded.append(work)
            work()  # as a CUDA graph does before it is recorded
            return work

        filler = DeviceFiller(SIZE, torch.device("cpu"), HostFerry(), blend_between, record=record)
        made = []
        for index, keyframe in zip(indices, keyframes, strict=True):
            made += filler.push(index, from_levels(torch.from_numpy(keyframe[None])))
        made += filler.finish(10)
        assert [index for index, _ in made] == list(range(10))
        for (_, ours), theirs in zip(made, fill(keyframes, indices, 10, BlendInterpolator()), strict=True):
            assert np.abs(ours.astype(int) - theirs).max() <= 1
        assert len(recorded) == 3  # one for each length: 0, 2 and 4 frames between

    @pytest.mark.parametrize("kind", [np.uint8, np.int64, np.uint16])
    def test_label_maps_guide_it_whatever_their_type(self, kind):
        asked = []

        def between(first, second, times, *, labels=None):
            asked.append(labels.clone())
            return blend_between(first, second, times)

        filler = DeviceFiller(SIZE, torch.device("cpu"), HostFerry(), between)
        labels = [x.astype(kind) for x in label_maps(3)]
        frame = torch.zeros(1, 3, *SIZE)
        filler.push(0, frame, labels[:1])
        filler.push(2, frame, labels)
        assert np.array_equal(asked[-1][0], np.stack(labels))


@pytest.mark.parametrize("method", ["dis", "blend"])
@pytest.mark.parametrize("guided", [False, True])
def test_filling_asks_the_gpu_nothing_and_stays_on_it(method, guided, monkeypatch):
    """Tensors without values stand for those of a GPU: to ask for one, or to mix in one of the CPU, is an error."""
    device = torch.device("meta")
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # it knows no such device
    with torch.no_grad():
        between = _between(manifest(interpolation={"method": method}), None)
        labels = torch.zeros(1, 5, 64, 96, dtype=torch.int32, device=device) if guided else None
        ends = [torch.zeros(1, 3, 64, 96, device=device) for _ in range(2)]
        gap = _Gap(*ends, 3, labels, between)
        gap.fill()
        encoded = encode_on_device(
            ConditionForm(scale=4, labels=True, edges=True),
            replace(SPEC, use_instances=True),
            torch.zeros(64, 96, dtype=torch.uint8, device=device),
            torch.zeros(64, 96, dtype=torch.int32, device=device),
        )
        assert {x.device.type for x in (gap.packed, gap.rounded, encoded.past, *encoded.inputs.values())} == {"meta"}


class TestCudaFerry:
    """The order of its calls, with streams and events that only note them; the same for real where there is a GPU."""

    @pytest.fixture
    def noted(self, monkeypatch):
        """What is asked of CUDA, in order."""
        calls = []

        class Stream:
            def __init__(self, device):
                self.name = f"stream {sum(call.startswith('new') for call in calls)}"
                calls.append(f"new {self.name}")

            def wait_stream(self, other):
                calls.append(f"{self.name} waits for {other.name}")

            def synchronize(self):
                calls.append(f"wait for {self.name}")

        class Event:
            def record(self, stream):
                calls.append(f"event on {stream.name}")

            def query(self):
                return False

            def synchronize(self):
                calls.append("wait for event")

        current = []

        @contextlib.contextmanager
        def stream(wanted):
            current.append(wanted)
            yield
            current.pop()

        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "stream", stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current[-1])
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda x, s: calls.append(f"memory used on {s.name}"))
        empty = torch.empty

        def pinned(length, *, dtype, pin_memory):
            assert pin_memory
            calls.append(f"pin {length}")
            return empty(length, dtype=dtype)

        monkeypatch.setattr(torch, "empty", pinned)
        return calls

    def test_bytes_go_down_on_a_stream_of_their_own_after_the_work(self, noted):
        ferry = CudaFerry(torch.device("cuda"))
        data = torch.arange(5, dtype=torch.uint8)
        with ferry.working():
            arrival = ferry.down(data)
        data.zero_()  # as the next gap would
        assert not arrival.is_here()
        assert arrival.take().tolist() == [0, 1, 2, 3, 4]
        assert noted == [
            "new stream 0", "new stream 1", "stream 1 waits for stream 0", "pin 5", "event on stream 1",
            "memory used on stream 1", "wait for event",
        ]  # fmt: skip

    def test_pinned_memory_is_used_again_once_it_was_taken(self, noted):
        ferry = CudaFerry(torch.device("cuda"))
        data = torch.arange(6, dtype=torch.uint8)
        with ferry.working():
            first, second = ferry.down(data), ferry.down(data[:4])
            taken = first.take()
            third = ferry.down(data[3:])
        assert [call for call in noted if call.startswith("pin")] == ["pin 6", "pin 4"]
        assert (taken.tolist(), second.take().tolist(), third.take().tolist()) == (
            [0, 1, 2, 3, 4, 5], [0, 1, 2, 3], [3, 4, 5]
        )  # fmt: skip
        ferry.wait()
        assert noted[-2:] == ["wait for stream 0", "wait for stream 1"]

    @needs_gpu
    def test_on_a_gpu_everything_arrives_as_it_was(self):
        device = torch.device("cuda")
        ferry = CudaFerry(device)
        sent = [np.random.default_rng(k).integers(0, 256, 1 << 20, dtype=np.uint8) for k in range(4)]
        with ferry.working():
            arrivals = [ferry.down(ferry.up(x)) for x in sent]
        assert all(np.array_equal(arrival.take(), x) for arrival, x in zip(arrivals, sent, strict=True))


def test_only_the_search_that_needs_no_weights_is_recorded():
    """torchvision's RAFT copies tensors of the CPU inside, which no CUDA graph may hold."""
    assert recorder_for(torch.device("cuda"), lambda first, second: (first, second)) is None
    assert recorder_for(torch.device("cpu")) is None


@needs_gpu
class TestOnAGpu:
    @pytest.mark.parametrize("method", ["dis", "blend"])
    @pytest.mark.parametrize("policy", ["uniform", "adaptive"])
    def test_a_stream_gives_the_frames_of_the_cpu(self, method, policy):
        details = manifest(interpolation={"method": method}, keyframes={"policy": policy, "gap": 4})
        labels = label_maps(14)
        with DeviceStream(TinyDeviceStep(), details) as stream:
            wanted = list(stream.frames(labels))
        with DeviceStream(TinyDeviceStep(device="cuda"), details) as stream:
            for _ in range(2):  # the second video replays what the first recorded
                made = list(stream.frames(labels))
                assert [d.is_keyframe for d in made] == [d.is_keyframe for d in wanted]
                for one, other in zip(made, wanted, strict=True):
                    assert psnr_db(one.frame, other.frame) > (40 if one.is_keyframe or method == "blend" else 20)
                stream.restart()

    def test_a_keyframe_that_is_not_finite_is_named(self):
        with (
            DeviceStream(TinyDeviceStep(spoil_at=2, device="cuda"), manifest()) as stream,
            pytest.raises(StreamError, match="keyframe 8 could not be synthesised"),
        ):
            list(stream.frames(label_maps(14)))

    def test_raft_finds_the_flow(self):
        """With the weights it begins with: that it runs, not what it finds."""
        try:
            models = import_raft()
        except MissingExtraError as error:
            pytest.skip(str(error))
        torch.manual_seed(0)
        raft = RAFTFlow(models.raft_small().cuda())
        details = manifest(interpolation={"method": "dis"})
        with DeviceStream(TinyDeviceStep(device="cuda"), details, estimator=raft) as stream:
            made = list(stream.frames(label_maps(9)))
        assert [d.index for d in made] == list(range(9))
        assert [d.index for d in made if d.is_keyframe] == [0, 4, 8]
