"""Cost and latency against values worked out by hand."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from benchmarks.cost import step_cost
from benchmarks.fps import compare_streams, measure_step, measure_stream, speed_ratio
from benchmarks.results import BenchmarkResult
from fastv2v.contracts import FrameOutput
from fastv2v.errors import ConfigError, DataError
from fastv2v.measure.cost import count_macs
from fastv2v.measure.latency import Latency, measure_latency, peak_memory_mb
from fastv2v.render import advance


class TestCountMacs:
    def test_convolution(self):
        layer = nn.Conv2d(3, 8, 3, padding=1)
        cost = count_macs(lambda: layer(torch.zeros(1, 3, 16, 16)), layer)
        assert cost.true_macs == cost.output_position_macs == 55_296
        assert cost.parameters == cost.trainable_parameters == 8 * 3 * 9 + 8

    def test_transposed_convolution_by_both_conventions(self):
        layer = nn.ConvTranspose2d(8, 4, 3, stride=2, padding=1, output_padding=1)
        cost = count_macs(lambda: layer(torch.zeros(1, 8, 16, 16)), layer)
        assert cost.true_macs == 73_728
        assert cost.output_position_macs == 294_912

    def test_groups_divide_the_work(self):
        depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        assert count_macs(lambda: depthwise(torch.zeros(1, 8, 4, 4)), depthwise).true_macs == 8 * 9 * 16
        transposed = nn.ConvTranspose2d(8, 8, 4, stride=2, padding=1, groups=8)
        cost = count_macs(lambda: transposed(torch.zeros(1, 8, 4, 4)), transposed)
        assert (cost.true_macs, cost.output_position_macs) == (8 * 16 * 16, 8 * 16 * 64)

    def test_linear_counts_every_position(self):
        layer = nn.Linear(5, 7)
        assert count_macs(lambda: layer(torch.zeros(2, 3, 5)), layer).true_macs == 2 * 3 * 5 * 7

    def test_table_names_layers_and_repeated_calls_and_sums_up(self):
        net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
        x = torch.zeros(1, 3, 5, 5)
        cost = count_macs(lambda: [net(x), net(x)], net)
        assert [(row.name, row.kind, row.calls) for row in cost.per_module] == [("0", "Conv2d", 2), ("2", "Conv2d", 2)]
        assert cost.true_macs == 2 * 25 * (12 + 8) == sum(row.true_macs for row in cost.per_module)

    def test_meta_tensors_and_frozen_parameters(self):
        layer = nn.Conv2d(3, 8, 3, padding=1, device="meta").requires_grad_(False)
        cost = count_macs(lambda: layer(torch.zeros(1, 3, 16, 16, device="meta")), layer)
        assert (cost.true_macs, cost.parameters, cost.trainable_parameters) == (55_296, 224, 0)

    def test_hooks_are_gone_afterwards_even_when_the_call_fails(self):
        layer = nn.Conv2d(3, 8, 3)
        with pytest.raises(RuntimeError):
            count_macs(lambda: layer(torch.zeros(1, 2, 16, 16)), layer)
        assert not layer._forward_hooks

    def test_a_call_that_runs_nothing_is_refused(self):
        with pytest.raises(ConfigError, match="nothing was counted"):
            count_macs(lambda: None, nn.Conv2d(1, 1, 1))


class TestMeasureLatency:
    def test_percentiles_of_known_times(self):
        latency = Latency.from_times(range(1, 102))
        assert latency == Latency(median_ms=51, p95_ms=96, p99_ms=100, spread_ms=50, repeats=101)

    def test_a_pause_is_measured_and_warmup_is_not(self):
        calls = []
        latency = measure_latency(lambda: (calls.append(1), time.sleep(0.002)), warmup=3, repeats=5)
        assert len(calls) == 8
        assert latency.repeats == 5
        assert latency.p99_ms >= latency.p95_ms >= latency.median_ms >= 2

    def test_waiting_for_the_device_is_inside_the_timing(self):
        assert measure_latency(lambda: None, warmup=0, repeats=3, synchronize=lambda: time.sleep(0.002)).median_ms >= 2

    @pytest.mark.parametrize("wrong", [{"repeats": 0}, {"warmup": -1}])
    def test_nonsense_is_refused(self, wrong):
        with pytest.raises(ConfigError, match="at least"):
            measure_latency(lambda: None, **wrong)

    def test_no_times_are_refused(self):
        with pytest.raises(ConfigError, match="at least one"):
            Latency.from_times([])


def test_peak_memory_is_that_of_a_python_process():
    assert 10 < peak_memory_mb() < 1e6


def test_latency_needs_no_torch():
    check = "import sys, fastv2v.measure.latency; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


class TinyStep(nn.Module):
    """A step of one convolution that needs a full history."""

    condition_channels = 2
    history_length = 2
    size_multiple = 4

    def __init__(self):
        super().__init__()
        self.draw = nn.Conv2d(3 * 2 + 2 * 3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)

    def step(self, condition, history):
        assert history.valid.shape == (1,)
        past = torch.cat([history.conditions.flatten(1, 2), history.frames.flatten(1, 2)], dim=1)
        frame = self.norm(self.draw(torch.cat([condition, past], dim=1)))
        return FrameOutput(frame, frame), advance(history, condition, frame)


class TestStepCost:
    @pytest.mark.parametrize("compute", [False, True])
    def test_keyframe_and_delivered_frame(self, compute):
        cost = step_cost(TinyStep(), 2, (8, 12), keyframe_fraction=0.25, compute=compute)
        macs = 12 * 3 * 9 * 8 * 12
        assert cost.keyframe.true_macs == cost.keyframe.output_position_macs == macs
        assert cost.true_macs_per_frame == cost.output_position_macs_per_frame == macs / 4
        row = cost.row("tiny")
        assert row["gflops_per_keyframe"] == pytest.approx(2 * macs / 1e9)
        assert row["parameters_m"] == pytest.approx((12 * 3 * 9 + 3 + 6) / 1e6)

    def test_the_model_is_left_as_it_was(self):
        model = TinyStep()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        for compute in (False, True):
            step_cost(model, 2, (8, 8), compute=compute)
        assert model.training
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())

    def test_a_model_that_looks_at_values_must_be_computed(self):
        class Looking(TinyStep):
            def step(self, condition, history):
                return super().step(condition + 1 if condition.sum().item() > 0 else condition, history)

        with pytest.raises(ConfigError, match="compute=True"):
            step_cost(Looking(), 2, (8, 8))
        assert step_cost(Looking(), 2, (8, 8), compute=True).keyframe.true_macs > 0

    def test_nonsense_is_refused(self):
        with pytest.raises(ConfigError, match="keyframe_fraction"):
            step_cost(TinyStep(), 2, (8, 8), keyframe_fraction=0)
        with pytest.raises(ConfigError, match="divisible by 4"):
            step_cost(TinyStep(), 2, (8, 9))
        with pytest.raises(ConfigError, match="only torch modules"):
            step_cost(object(), 2, (8, 8))


class TestFps:
    def test_keyframe_fps_is_the_inverse_of_the_median(self):
        speed = measure_step(lambda: time.sleep(0.002), warmup=0, repeats=5)
        assert speed.keyframe_fps == pytest.approx(1000 / speed.latency.median_ms)
        assert speed.keyframe_fps <= 500
        assert speed.row("step", threads=1)["threads"] == 1

    def test_a_stream_is_timed_from_its_start_to_its_last_frame(self):
        def stream():
            time.sleep(0.01)
            for index in range(4):
                time.sleep(0.002)
                yield index

        speed = measure_stream(stream, 4, repeats=3)
        assert len(speed.fps_of_repeats) == 3
        assert speed.delivered_fps <= 4 / 0.018
        assert speed.first_frame_ms >= 12
        assert speed.pause.median_ms >= 2
        assert speed.pause.repeats == 9

    def test_endless_streams_are_closed_and_short_ones_refused(self):
        closed = []

        def endless():
            try:
                while True:
                    yield 0
            finally:
                closed.append(True)

        measure_stream(endless, 3, repeats=2, warmup=1)
        assert len(closed) == 3
        with pytest.raises(DataError, match="delivered 2 of 3"):
            measure_stream(lambda: iter([0, 1]), 3)

    def test_streams_take_turns_and_ratios_are_of_one_round(self):
        order = []

        def make(name, pause_s):
            def stream():
                order.append(name)
                for _ in range(3):
                    time.sleep(pause_s)
                    yield 0

            return stream

        speeds = compare_streams({"fast": make("fast", 0.001), "slow": make("slow", 0.004)}, 3, repeats=2, warmup=0)
        assert order == ["fast", "slow"] * 2
        assert speed_ratio(speeds["fast"], speeds["slow"]) > 1.5
        with pytest.raises(ConfigError, match="one run"):
            speed_ratio(speeds["fast"], measure_stream(make("x", 0), 3, repeats=1))

    def test_rows_fit_the_result_file(self):
        speed = measure_stream(lambda: iter(range(3)), 3, repeats=2)
        rows = [speed.row("stream", ratio=2.0), measure_step(lambda: None, repeats=3).row("step")]
        BenchmarkResult(suite="fps", device="cpu", threads=1, precision="fp32", rows=rows)

    def test_nonsense_is_refused(self):
        with pytest.raises(ConfigError, match="num_frames >= 2"):
            measure_stream(lambda: iter([]), 1)
