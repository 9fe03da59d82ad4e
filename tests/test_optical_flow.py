import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from fastv2v.errors import CheckpointError, MissingExtraError, ShapeError
from fastv2v.nn import optical_flow
from fastv2v.nn.optical_flow import RAFTFlow, import_raft

has_torchvision = pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None, reason="torchvision (extra raft) is not installed"
)


class Recorder(nn.Module):
    """In place of RAFT: keeps its inputs and gives a constant flow after a wrong one."""

    def __init__(self, dx=0.0, dy=0.0):
        super().__init__()
        self.flow = nn.Parameter(torch.tensor([dx, dy]))
        self.pairs = []

    def forward(self, first, second):
        self.pairs.append((first, second))
        flow = self.flow.view(1, 2, 1, 1).expand(first.shape[0], 2, *first.shape[-2:])
        return [flow + 50, flow]


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


class TestSizes:
    def test_sizes_that_suit_the_network_are_untouched_and_the_current_frame_comes_first(self):
        network = Recorder()
        current, previous = noise(2, 3, 128, 136), noise(2, 3, 128, 136, seed=1)
        flow, confidence = RAFTFlow(network)(current, previous)
        assert torch.equal(network.pairs[0][0], current)
        assert torch.equal(network.pairs[0][1], previous)
        assert flow.shape == (2, 2, 128, 136)
        assert confidence.shape == (2, 1, 128, 136)
        assert not flow.requires_grad

    def test_other_sizes_are_padded_by_their_border_and_cut_back(self):
        network = Recorder(3.0, -2.0)
        frame = noise(1, 3, 130, 129)
        flow, _ = RAFTFlow(network)(frame, frame)
        assert torch.equal(network.pairs[0][0], F.pad(frame, (0, 7, 0, 6), mode="replicate"))
        assert_close(flow, torch.tensor([3.0, -2.0]).view(1, 2, 1, 1).expand(1, 2, 130, 129))

    def test_small_frames_are_enlarged_and_each_axis_is_scaled_back_by_its_own_factor(self):
        network = Recorder(8.0, 8.0)
        frame = noise(1, 3, 60, 100)
        flow, _ = RAFTFlow(network)(frame, frame)
        assert network.pairs[0][0].shape == (1, 3, 128, 216)  # 100 * 128 / 60 = 213.3
        assert_close(flow, torch.tensor([8 * 100 / 216, 8 * 60 / 128]).view(1, 2, 1, 1).expand(1, 2, 60, 100))

    def test_confidence_is_photometric_at_the_size_of_the_frames(self):
        current = noise(1, 3, 128, 128)
        previous = current.clone()
        previous[..., :10, :] += 0.5
        _, confidence = RAFTFlow(Recorder())(current, previous)
        assert confidence[0, 0, :10].sum() == 0
        assert confidence[0, 0, 10:].all()

    def test_frames_of_two_shapes_are_refused(self):
        with pytest.raises(ShapeError, match="two frames of equal shape"):
            RAFTFlow(Recorder())(noise(1, 3, 128, 128), noise(1, 3, 128, 136))

    def test_the_network_is_frozen_and_works_in_full_precision(self):
        network = Recorder()
        frame = noise(1, 3, 128, 128).bfloat16()
        with torch.autocast("cpu", torch.bfloat16):
            flow, _ = RAFTFlow(network)(frame, frame)
        assert flow.dtype == network.pairs[0][0].dtype == torch.float32
        assert not network.training
        assert not any(p.requires_grad for p in network.parameters())


@has_torchvision
class TestTorchvision:
    def test_the_real_network_runs_after_a_file_of_its_weights_was_read(self, tmp_path):
        torch.manual_seed(0)
        models = import_raft()
        torch.save(models.raft_small().state_dict(), tmp_path / "raft.pth")
        estimator = RAFTFlow.torchvision("small", tmp_path / "raft.pth")
        current, previous = noise(1, 3, 128, 128), noise(1, 3, 128, 128, seed=1)
        flow, confidence = estimator(current, previous)
        assert flow.shape == (1, 2, 128, 128)
        assert flow.isfinite().all()
        assert set(confidence.unique().tolist()) <= {0.0, 1.0}
        expected = estimator.network(current, previous)[-1]
        assert_close(flow, expected, atol=1e-3, rtol=1e-3)
        assert not torch.allclose(flow, estimator.network(previous, current)[-1], atol=0.1)

    def test_weights_of_the_other_network_are_refused(self, tmp_path):
        torch.save({"weight": torch.zeros(1)}, tmp_path / "raft.pth")
        with pytest.raises(CheckpointError, match=r"raft\.pth is no state dict of torchvision's raft_small"):
            RAFTFlow.torchvision("small", tmp_path / "raft.pth")

    def test_a_second_import_is_the_same_module(self):
        assert import_raft() is import_raft()


class FakeWeights:
    """torchvision's weights when there is no network."""

    def get_state_dict(self, **_):
        raise OSError("Name or service not known")


def test_a_download_that_fails_names_the_option(monkeypatch):
    models = SimpleNamespace(raft_large=Recorder, Raft_Large_Weights=SimpleNamespace(DEFAULT=FakeWeights()))
    monkeypatch.setattr(optical_flow, "import_raft", lambda: models)
    with pytest.raises(CheckpointError, match=r"not known\); name a file of them with --recipe\.helpers\.raft-weights"):
        RAFTFlow.torchvision("large", None)


@pytest.mark.parametrize("content", [None, b"no tensors"])
def test_unreadable_weights_are_named(content, tmp_path, monkeypatch):
    monkeypatch.setattr(optical_flow, "import_raft", lambda: SimpleNamespace(raft_small=Recorder))
    path = tmp_path / "raft.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"raft\.pth: no readable weights .*state dict of torchvision"):
        RAFTFlow.torchvision("small", path)


def test_without_torchvision_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install torchvision, or pip install 'fastv2v\[raft\]'"):
        import_raft.__wrapped__()


def test_torchvision_is_loaded_only_when_raft_is_wanted():
    code = "import sys, fastv2v.commands.parts; sys.exit('torchvision' in sys.modules)"
    import subprocess

    subprocess.run([sys.executable, "-c", code], check=True)
