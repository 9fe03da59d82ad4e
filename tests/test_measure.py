"""Cost and latency against values worked out by hand."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from fastv2v.errors import ConfigError
from fastv2v.measure.cost import count_macs
from fastv2v.measure.latency import Latency, measure_latency, peak_memory_mb


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
