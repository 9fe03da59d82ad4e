"""Segmentation networks of torchvision, with weights of our own making: they cannot be downloaded everywhere."""

import numpy as np
import pytest
import torch

from fastv2v.data.prepare.labels import LabelConfig, Segmenter, classes_of, draw_labels
from fastv2v.errors import CheckpointError, ConfigError, MissingExtraError
from fastv2v.nn.optical_flow import import_raft

NAME = "lraspp_mobilenet_v3_large"  # the smallest


def weights_file(path, num_classes=21):
    pytest.importorskip("PIL", reason="torchvision needs pillow")
    try:
        import_raft()
    except MissingExtraError as error:
        pytest.skip(f"torchvision cannot be used here: {error}")
    from torchvision.models import get_model

    torch.manual_seed(0)
    network = get_model(NAME, weights=None, weights_backbone=None, num_classes=num_classes)
    torch.save(network.state_dict(), path)
    return path, network.eval()


def test_it_reads_what_the_network_reads(tmp_path):
    path, network = weights_file(tmp_path / "w.pth")
    segmenter = Segmenter(LabelConfig(network=NAME, weights=path))
    frame = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    costs = segmenter.answer(frame)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    picture = ((torch.from_numpy(frame) / 255 - mean) / std).permute(2, 0, 1)[None]
    with torch.no_grad():
        wanted = -network(picture)["out"].log_softmax(1)[0].permute(1, 2, 0)
    assert np.abs(costs - wanted.numpy()).max() < 1e-4
    (labels,) = draw_labels([frame], segmenter, LabelConfig(min_area=0))
    assert np.array_equal(labels, wanted.argmin(-1))


def test_classes_have_torchvisions_names(tmp_path):
    path, _ = weights_file(tmp_path / "w.pth")
    table = classes_of(15, LabelConfig(network=NAME, weights=path))
    assert table.names[0] == "__background__" and table.names[15] == "person"


def test_weights_of_other_classes_are_counted(tmp_path):
    path, _ = weights_file(tmp_path / "w.pth", num_classes=5)
    segmenter = Segmenter(LabelConfig(network=NAME, weights=path))
    assert segmenter.names == ()
    assert segmenter.answer(np.zeros((32, 32, 3), np.uint8)).shape == (32, 32, 5)


def test_other_weights_and_no_weights_are_refused(tmp_path):
    path, _ = weights_file(tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="not the weights of torchvision's fcn_resnet50"):
        Segmenter(LabelConfig(network="fcn_resnet50", weights=path))
    path.write_bytes(b"not weights")
    with pytest.raises(CheckpointError, match=r"--labels\.weights"):
        Segmenter(LabelConfig(network=NAME, weights=path))
    with pytest.raises(ConfigError, match="there is no such file"):
        Segmenter(LabelConfig(network=NAME, weights=tmp_path / "none.pth"))


def test_code_in_a_file_of_weights_is_not_run(tmp_path):
    path, _ = weights_file(tmp_path / "w.pth")
    torch.save({"classifier.high_classifier.weight": pytest.raises}, path)
    with pytest.raises(CheckpointError, match="no state dict"):
        Segmenter(LabelConfig(network=NAME, weights=path))


def test_weights_that_cannot_be_downloaded_say_what_to_do(tmp_path, monkeypatch):
    weights_file(tmp_path / "w.pth")

    def offline(*args, **options):
        assert options["weights_only"] and options["check_hash"]
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(
        ConfigError, match=r"cannot be had \(no route to host\); fetch https://.*--labels\.weights FILE"
    ):
        Segmenter(LabelConfig(network=NAME))


def test_without_torchvision_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install fastv2v\[labels\]"):
        Segmenter(LabelConfig(network=NAME))


@pytest.mark.parametrize(
    "settings", [{"network": "unet"}, {"weights": "w.pth"}, {"network": NAME, "model": "net.onnx"}]
)
def test_settings_are_checked(settings):
    with pytest.raises(ConfigError, match="network"):
        LabelConfig(**settings)
