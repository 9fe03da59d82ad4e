"""FID, FVD and LPIPS with networks made for the test: what is fed in, what comes out, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.pretrained import LPIPS, I3DFeatures, InceptionFeatures
from fastv2v.errors import CheckpointError, ShapeError

CPU = torch.device("cpu")


class TinyInception(nn.Module):
    """Mean colour of 8-bit pictures; logits are something else."""

    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        assert img.dtype == torch.uint8
        x = img.float().mean(dim=[2, 3])
        return x if return_features else x[:, :1]


class TinyI3D(nn.Module):
    """Mean colour of the first and of the last frame, in [-1, 1]."""

    def forward(self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False) -> Tensor:
        assert rescale and resize and return_features
        x = 2 * x / 255 - 1
        return torch.cat([x[:, :, 0].mean(dim=[2, 3]), x[:, :, -1].mean(dim=[2, 3])], dim=1)


def script(module: nn.Module, file: Path) -> Path:
    torch.jit.script(module).save(str(file))
    return file


def grey(*values: int) -> list[np.ndarray]:
    return [np.full((16, 24, 3), value, np.uint8) for value in values]


def test_inception_sees_every_frame_as_it_is(tmp_path: Path) -> None:
    network = InceptionFeatures(script(TinyInception(), tmp_path / "inception.pt"), CPU)
    assert network(grey(0, 100, 255)).tolist() == [[0] * 3, [100] * 3, [255] * 3]


def test_i3d_sees_whole_clips_one_after_the_other(tmp_path: Path) -> None:
    file = script(TinyI3D(), tmp_path / "i3d.pt")
    network = I3DFeatures(file, CPU, 10)
    found = network(grey(*[0] * 9, 255, *[255] * 10, 7, 7))
    np.testing.assert_allclose(found, [[-1] * 3 + [1] * 3, [1] * 6], atol=1e-6)
    assert len(network(grey(*[0] * 9))) == 0
    with pytest.raises(ShapeError, match="at least 10"):
        I3DFeatures(file, CPU, 9)


def test_what_is_not_the_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no rescale and no resize"):
        I3DFeatures(script(TinyInception(), tmp_path / "other.pt"), CPU)
    for file in (tmp_path / "nowhere.pt", tmp_path / "damaged.pt"):
        (tmp_path / "damaged.pt").write_bytes(b"no network")
        with pytest.raises(CheckpointError, match=file.name):
            InceptionFeatures(file, CPU)
        with pytest.raises(CheckpointError, match=file.name):
            LPIPS(file, file)


@pytest.fixture
def lpips(tmp_path: Path) -> LPIPS:
    rng = torch.Generator().manual_seed(0)
    shapes = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
    trunk = {f"features.{i}.weight": 0.1 * torch.randn(o, c, k, k, generator=rng) for i, (o, c, k) in shapes.items()}
    trunk |= {f"features.{i}.bias": torch.zeros(o) for i, (o, *_) in shapes.items()}
    linear = {f"lin{i}.model.1.weight": torch.ones(1, o, 1, 1) for i, (o, *_) in enumerate(shapes.values())}
    torch.save(trunk | {"classifier.1.weight": torch.zeros(1)}, tmp_path / "alexnet.pth")
    torch.save(linear, tmp_path / "alex.pth")
    return LPIPS(tmp_path / "alexnet.pth", tmp_path / "alex.pth")


def test_lpips_is_zero_for_equal_frames_and_grows_with_noise(lpips: LPIPS) -> None:
    rng = np.random.default_rng(0)
    frame = rng.integers(60, 200, (64, 96, 3), dtype=np.uint8)
    little, much = (np.clip(frame + rng.normal(0, s, frame.shape), 0, 255).astype(np.uint8) for s in (5, 40))
    same, near, far = lpips.distances([frame] * 3, [frame, little, much])
    assert same == 0
    assert 0 < near < far
    assert lpips.distances([little], [frame])[0] == pytest.approx(near)


def test_lpips_agrees_with_its_definition(lpips: LPIPS) -> None:
    """The layers of torchvision's AlexNet in their order, unit vectors, squared distance, sum over five ReLUs."""
    layers: list[nn.Module] = []
    for i, convolution in enumerate(lpips.convolutions):
        layers += [convolution, nn.ReLU()] + ([nn.MaxPool2d(3, 2)] if i in (0, 1, 4) else [])
    a, b = torch.rand(2, 1, 3, 70, 90, generator=torch.Generator().manual_seed(1)) * 2 - 1
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    x, total = torch.cat([(y - shift.view(3, 1, 1)) / scale.view(3, 1, 1) for y in (a, b)]), torch.zeros(())
    with torch.no_grad():
        for layer in layers:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                first, second = nn.functional.normalize(x, dim=1)
                total += (first - second).square().sum(dim=0).mean()
    assert float(lpips(a, b)) == pytest.approx(float(total), rel=1e-5)


def test_lpips_refuses_other_weights(lpips: LPIPS, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="AlexNet"):
        LPIPS(tmp_path / "alex.pth", tmp_path / "alex.pth")
    torch.save({f"lin{i}.model.1.weight": torch.ones(1, 7, 1, 1) for i in range(5)}, tmp_path / "vgg.pth")
    with pytest.raises(CheckpointError, match="not AlexNet and its LPIPS weights"):
        LPIPS(tmp_path / "alexnet.pth", tmp_path / "vgg.pth")
