"""Import of published weights, against small networks written here as the publications number their layers."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from shared_data import shared
from torch import nn
from torch.testing import assert_close

from fastv2v.cli import main
from fastv2v.errors import CheckpointError, ConfigError, DataError
from teachers.import_weights import import_network, load_imported, read_description, read_state_dict, save_imported
from teachers.known_outputs import Difference, compare, read_examples

WIDTH, SIZE = 4, (16, 24)


class Residual(nn.Module):
    def __init__(self, c, norm):
        super().__init__()
        half = [nn.ReflectionPad2d(1), nn.Conv2d(c, c, 3), norm(c)]
        self.conv_block = nn.Sequential(*half, nn.ReLU(), nn.ReflectionPad2d(1), nn.Conv2d(c, c, 3), norm(c))

    def forward(self, x):
        return x + self.conv_block(x)


class Inverted(nn.Module):
    def __init__(self, c, norm):
        super().__init__()
        point = [lambda: nn.Conv2d(c, c, 1, bias=False), lambda: nn.BatchNorm2d(c)]
        depth = nn.Conv2d(c, c, 3, padding=1, groups=c, bias=False)
        head = [point[0](), point[1](), nn.ReLU6(), depth, point[1](), nn.ReLU6()]
        self.conv = nn.Sequential(*head, point[0](), point[1]())

    def forward(self, x):
        return x + self.conv(x)


def norm_of(kind):
    return nn.BatchNorm2d if kind == "batch" else lambda c: nn.InstanceNorm2d(c, affine=False, track_running_stats=True)


def down(c_in, width, depth, norm, first_stride=2):
    layers = [nn.ReflectionPad2d(3), nn.Conv2d(c_in, width, 7), norm(width), nn.ReLU()]
    for i in range(depth):
        c, stride = width * 2**i, first_stride if i == 0 else 2
        layers += [nn.Conv2d(c, 2 * c, 3, stride=stride, padding=1), norm(2 * c), nn.ReLU()]
    return layers


def up(width, depth, norm):
    layers = []
    for i in reversed(range(depth)):
        c = width * 2**i
        layers += [nn.ConvTranspose2d(2 * c, c, 3, stride=2, padding=1, output_padding=1), norm(c), nn.ReLU()]
    return layers


def head(c, c_out, end=None):
    return nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(c, c_out, 7), *([end] if end else []))


class Published(nn.Module):
    """vid2vid's composite generators with their own names: coarse, local, and Fast-Vid2Vid's student."""

    def __init__(
        self, *, network="composite", norm="batch", fg=True, no_flow=False, n_blocks=3, n_downsample=2, scale=0
    ):
        super().__init__()
        self.scale, self.has_flow, self.is_student = scale, not no_flow, network == "sr_mobile_composite"
        is_local = network == "composite_local"
        norm, depth, narrow = norm_of(norm), 1 if is_local else n_downsample, WIDTH // 2 if n_downsample > 2 else WIDTH
        block = Inverted if self.is_student else Residual

        def blocks(width, count):
            return [block(width * 2**depth, norm) for _ in range(count)]

        def encoder(c_in, width, count):
            return nn.Sequential(*down(c_in, width, depth, norm, 1 if self.is_student else 2), *blocks(width, count))

        before, after = (0, n_blocks) if is_local else (n_blocks - n_blocks // 2, n_blocks // 2)
        self.model_down_seg, self.model_down_img = encoder(15, WIDTH, before), encoder(6, WIDTH, before)
        for name in ["img", *(["flow"] if self.has_flow else [])]:
            middle, rise = blocks(WIDTH, after), up(WIDTH, depth, norm)
            if not is_local:
                self.add_module(f"model_res_{name}", nn.Sequential(*middle))
            self.add_module(f"model_up_{name}", nn.Sequential(*(middle if is_local else []), *rise))
        self.model_final_img = head(WIDTH, 3, nn.Tanh())
        if self.has_flow:
            self.model_final_flow, self.model_final_w = head(WIDTH, 2), head(WIDTH, 1, nn.Sigmoid())
        if fg:
            self.indv_down = encoder(15, narrow, 0)
            middle, rise = blocks(narrow, n_blocks), up(narrow, depth, norm)
            if not is_local:
                self.indv_res = nn.Sequential(*middle)
            self.indv_up = nn.Sequential(*(middle if is_local else []), *rise)
            self.indv_final = head(narrow, 3, nn.Tanh())

    def forward(self, seg, prev, mask=None, *coarse):
        latest, coarse = prev[:, -3:], dict(zip(("img", "flow", "fg"), coarse, strict=False))
        if self.is_student:
            seg, prev = (F.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True) for x in (seg, prev))
        bottom = self.model_down_seg(seg) + self.model_down_img(prev)
        final, out = None, [None] * 7
        out[4] = self.decode("img", bottom + coarse.get("img", 0))
        final = out[3] = self.model_final_img(out[4])
        if self.has_flow:
            out[5] = self.decode("flow", bottom + coarse.get("flow", 0))
            out[1], out[2] = self.model_final_flow(out[5]) * 20 * 2**self.scale, self.model_final_w(out[5])
            final = out[2] * out[3] + (1 - out[2]) * self.warp(latest, out[1])
        if mask is not None:
            x = self.indv_down(seg) + coarse.get("fg", 0)
            out[6] = self.indv_up(self.indv_res(x) if hasattr(self, "indv_res") else x)
            drawn = self.indv_final(out[6])
            final, out[3] = mask * drawn + (1 - mask) * final, mask * drawn + (1 - mask) * out[3]
        out[0] = final
        return {str(i): x for i, x in enumerate(out) if x is not None}

    def decode(self, name, x):
        if hasattr(self, f"model_res_{name}"):
            x = getattr(self, f"model_res_{name}")(x)
        return getattr(self, f"model_up_{name}")(x)

    def warp(self, source, flow):
        h, w = source.shape[-2:]
        grid = F.affine_grid(torch.eye(2, 3).unsqueeze(0), (1, 1, h, w), align_corners=True)
        moved = grid + torch.stack([flow[:, 0] / ((w - 1) / 2), flow[:, 1] / ((h - 1) / 2)], dim=-1)
        return F.grid_sample(source, moved, padding_mode="border", align_corners=not self.is_student)


class PublishedGlobal(nn.Module):
    """pix2pixHD's global generator."""

    def __init__(self, norm="instance"):
        super().__init__()
        norm = norm_of(norm)
        middle = [Residual(4 * WIDTH, norm) for _ in range(2)]
        self.model = nn.Sequential(*down(5, WIDTH, 2, norm), *middle, *up(WIDTH, 2, norm), *head(WIDTH, 3, nn.Tanh()))

    def forward(self, x):
        return {"": self.model(x)}


def shrunk(x, times=1):
    """Means over 3x3 windows, two pixels apart; pixels outside are not counted."""
    for _ in range(times):
        ones = torch.ones_like(x[:, :1])
        total, count = (F.avg_pool2d(F.pad(y, (1, 1, 1, 1)), 3, 2) for y in (x, ones))
        x = total / count
    return x


class PublishedEnhancer(nn.Module):
    """pix2pixHD's local enhancer: a global generator without its last three layers, then model<n>_1 and model<n>_2."""

    def __init__(self, norm="instance", enhancers=1):
        super().__init__()
        norm, inner, self.count = norm_of(norm), WIDTH * 2**enhancers, enhancers
        middle = [Residual(4 * inner, norm) for _ in range(2)]
        self.model = nn.Sequential(*down(5, inner, 2, norm), *middle, *up(inner, 2, norm))
        for n in range(1, enhancers + 1):
            c = inner // 2**n
            end = head(c, 3, nn.Tanh()) if n == enhancers else []
            self.add_module(f"model{n}_1", nn.Sequential(*down(5, c, 1, norm)))
            local = [Residual(2 * c, norm) for _ in range(3)]
            self.add_module(f"model{n}_2", nn.Sequential(*local, *up(c, 1, norm), *end))

    def forward(self, x):
        made = self.model(shrunk(x, self.count))
        for n in range(1, self.count + 1):
            guide = getattr(self, f"model{n}_1")(shrunk(x, self.count - n))
            made = getattr(self, f"model{n}_2")(guide + made)
        return {"": made}


class PublishedFeatured(nn.Module):
    """vid2vid's global generator with features."""

    def __init__(self, norm="instance"):
        super().__init__()
        norm, z = norm_of(norm), 3
        rise = up(WIDTH, 2, norm)
        rise[0] = nn.ConvTranspose2d(4 * WIDTH + 2 * z, 2 * WIDTH, 3, stride=2, padding=1, output_padding=1)
        self.model_downsample = nn.Sequential(*down(5 + z, WIDTH, 2, norm))
        self.model_resnet = nn.Sequential(*[Residual(4 * WIDTH + z, norm) for _ in range(2)])
        self.model_upsample = nn.Sequential(*rise)
        self.model_upsample_conv = head(WIDTH + z, 3, nn.Tanh())

    def forward(self, x, z):
        small = shrunk(z, 2)
        made = self.model_resnet(torch.hstack([self.model_downsample(torch.hstack([x, z])), small]))
        made = self.model_upsample(torch.hstack([made, small]))
        return {"": self.model_upsample_conv(torch.hstack([made, z]))}


class PublishedEncoder(nn.Module):
    """pix2pixHD's feature encoder; every pixel gets the mean over its instance."""

    def __init__(self, norm="instance"):
        super().__init__()
        norm = norm_of(norm)
        self.model = nn.Sequential(*down(3, WIDTH, 2, norm), *up(WIDTH, 2, norm), *head(WIDTH, 3, nn.Tanh()))

    def forward(self, x, instances):
        made = self.model(x)
        for frame, ids in zip(made, instances[:, 0], strict=True):
            for i in ids.unique():
                frame[:, ids == i] = frame[:, ids == i].mean(dim=1, keepdim=True)
        return {"": made}


class PublishedDiscriminator(nn.Module):
    """pix2pixHD's discriminator; without features its blocks are one sequence."""

    def __init__(self, num_D=2, features=True, norm="instance"):
        super().__init__()
        self.features, norm = features, norm_of(norm)
        for i in range(num_D):
            c = [5, *(WIDTH * 2 ** (num_D - 1 - i + j) for j in range(3))]
            stack = [[nn.Conv2d(c[0], c[1], 4, 2, 2), nn.LeakyReLU(0.2)]]
            stack += [[nn.Conv2d(c[j], c[j + 1], 4, 3 - j, 2), norm(c[j + 1]), nn.LeakyReLU(0.2)] for j in (1, 2)]
            stack += [[nn.Conv2d(c[3], 1, 4, 1, 2)]]
            if features:
                for j, layers in enumerate(stack):
                    self.add_module(f"scale{i}_layer{j}", nn.Sequential(*layers))
            else:
                self.add_module(f"layer{i}", nn.Sequential(*(layer for layers in stack for layer in layers)))
        self.num_D = num_D

    def forward(self, x):
        out = {}
        for i in range(self.num_D):
            y, net = x, self.num_D - 1 - i
            for j in range(4 if self.features else 1):
                y = getattr(self, f"scale{net}_layer{j}" if self.features else f"layer{net}")(y)
                out[f"{i}.{j}"] = y
            x = F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
        return out


GENERATOR = {"input_channels": 15, "previous_channels": 6, "ngf": WIDTH, "n_downsample": 2, "norm": "batch"}
CASES = {
    "composite": {"n_blocks": 3},
    "composite, instance norm": {"n_blocks": 3, "norm": "instance"},
    "composite, foreground": {"n_blocks": 3, "fg": True},
    "composite, narrow foreground": {"n_blocks": 2, "fg": True, "n_downsample": 3},
    "composite, no flow": {"n_blocks": 2, "fg": True, "no_flow": True},
    "student": {"network": "sr_mobile_composite", "n_blocks": 3, "internal_resolution": [8, 12]},
    "student, instance norm": {"network": "sr_mobile_composite", "n_blocks": 2, "fg": True, "norm": "instance"},
    "local": {"network": "composite_local", "n_blocks_local": 2, "scale": 1},
    "local, foreground": {
        "network": "composite_local",
        "n_blocks_local": 2,
        "scale": 2,
        "fg": True,
        "norm": "instance",
    },
    "local, no flow": {"network": "composite_local", "n_blocks_local": 1, "scale": 1, "no_flow": True},
    "global": {"network": "global", "norm": "instance"},
    "local enhancer": {"network": "local_enhancer", "norm": "instance"},
    "local enhancer, two": {"network": "local_enhancer", "norm": "batch", "n_local_enhancers": 2},
    "features": {"network": "global_with_features", "norm": "instance"},
    "features, batch norm": {"network": "global_with_features", "norm": "batch"},
    "encoder": {"network": "encoder", "norm": "instance"},
    "encoder, batch norm": {"network": "encoder", "norm": "batch"},
    "discriminator": {"network": "multiscale_discriminator", "num_D": 2, "norm": "batch"},
    "discriminator, 3 scales": {"network": "multiscale_discriminator", "num_D": 3, "norm": "instance"},
    "discriminator, scores": {"network": "multiscale_discriminator", "num_D": 2, "norm": "batch", "features": False},
}


def published(name):
    """A reference network, its description, its inputs."""
    case = CASES[name]
    kind = case.get("network", "composite")
    torch.manual_seed(0)
    if kind == "global":
        description = {"network": kind, "input_channels": 5, "ngf": WIDTH, "n_downsample": 2, "n_blocks": 2}
        return PublishedGlobal(), {**description, "norm": case["norm"]}, [torch.randn(2, 5, *SIZE)]
    if kind == "local_enhancer":
        description = {"input_channels": 5, "ngf": WIDTH, "n_downsample": 2, "n_blocks": 2, "n_blocks_local": 3, **case}
        return (
            PublishedEnhancer(case["norm"], case.get("n_local_enhancers", 1)),
            description,
            [torch.randn(2, 5, 32, 48)],
        )
    if kind == "global_with_features":
        description = {"input_channels": 5, "ngf": WIDTH, "n_downsample": 2, "n_blocks": 2, "feat_num": 3, **case}
        return PublishedFeatured(case["norm"]), description, [torch.randn(2, c, *SIZE) for c in (5, 3)]
    if kind == "encoder":
        description = {"input_channels": 3, "feat_num": 3, "nef": WIDTH, "n_downsample": 2, **case}
        ids = torch.randint(0, 4, (2, 1, *SIZE)).float()
        return PublishedEncoder(case["norm"]), description, [torch.rand(2, 3, *SIZE) * 2 - 1, ids]
    if kind == "multiscale_discriminator":
        features = case.get("features", True)
        network = PublishedDiscriminator(case["num_D"], features, case["norm"])
        description = {"input_channels": 5, "ndf": WIDTH, "n_layers": 2, "num_D": case["num_D"], "norm": case["norm"]}
        return network, {"network": kind, **description, "intermediate_features": features}, [torch.randn(1, 5, 32, 32)]
    description = {"network": kind, **GENERATOR, **case}
    keys = ("norm", "no_flow", "n_downsample", "scale")
    settings = {key: description[key] for key in keys if key in description}
    count = case.get("n_blocks", case.get("n_blocks_local"))
    network = Published(network=kind, n_blocks=count, fg=case.get("fg", False), **settings)
    inputs = [torch.randn(1, 15, *SIZE), torch.rand(1, 6, *SIZE) * 2 - 1]
    inputs.append(torch.rand(1, 1, *SIZE) if case.get("fg") else None)
    if kind == "composite_local":
        half = (SIZE[0] // 2, SIZE[1] // 2)
        inputs += [torch.randn(1, 2 * WIDTH, *half) for _ in range(2 + case.get("fg", False))]
    return network, description, inputs


def files(folder, name):
    """X.pth, X.json and X.npz as the reference's owner would write them."""
    network, description, inputs = published(name)
    for key, value in network.state_dict().items():
        if key.endswith("running_mean"):
            nn.init.normal_(value, std=0.1)
        elif key.endswith("running_var"):
            nn.init.uniform_(value, 0.5, 2.0)
        elif key.endswith("num_batches_tracked"):
            value.fill_(7)
    torch.save(network.state_dict(), folder / "x.pth")
    (folder / "x.json").write_text(json.dumps(description))
    arrays = {f"in{i}": x.numpy() for i, x in enumerate(inputs) if x is not None}
    with torch.no_grad():
        for mode in ("eval", "train"):
            outputs = network.train(mode == "train")(*inputs)
            arrays |= {f"{mode}/out.{key}".removesuffix("."): value.numpy() for key, value in outputs.items()}
    np.savez(folder / "x.npz", **arrays)
    return folder


def verb(folder, *more, name="x"):
    arguments = [str(folder / f"{name}.pth"), "--describe", str(folder / f"{name}.json")]
    return main(["import-weights", *arguments, *map(str, more)])


def change(file, **arrays):
    """Replace arrays of an .npz; None removes one. Slashes are written as __."""
    new = {key.replace("__", "/").replace("_i", "."): value for key, value in arrays.items()}
    old = dict(np.load(file))
    np.savez(file, **{key: value for key, value in {**old, **new}.items() if value is not None})


class TestSameFunction:
    @pytest.mark.parametrize("name", CASES)
    def test_every_kind_of_network_gives_the_known_outputs(self, tmp_path, capsys, name):
        files(tmp_path, name)
        assert verb(tmp_path, "--verify", tmp_path / "x.npz") == 0, capsys.readouterr()
        result = json.loads(capsys.readouterr().out.splitlines()[-1])
        stored = [key for key in np.load(tmp_path / "x.npz").files if "out" in key]
        assert len(result["differences"]) == len(stored)
        assert {d["mode"] for d in result["differences"]} == {"train", "eval"}
        assert result["verified"] is True
        assert result["greatest"] == max(d["greatest"] for d in result["differences"]) < 1e-4

    @pytest.mark.parametrize("name", ["composite", "multiscale_d", "sr_mobile_face_student_fg"])
    def test_the_reference_files(self, capsys, name):
        folder = shared("reference-weights")
        assert verb(folder, "--verify", folder / f"{name}.npz", name=name) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["greatest"] < 1e-4

    def test_comparing_leaves_the_network_as_it_was(self, tmp_path):
        files(tmp_path, "composite, instance norm")
        tensors = read_state_dict(tmp_path / "x.pth")
        imported = import_network(tensors, read_description(tmp_path / "x.json"))
        before = {key: value.clone() for key, value in imported.network.state_dict().items()}
        compare(imported, read_examples(tmp_path / "x.npz"))
        assert not imported.network.training
        for key, value in imported.network.state_dict().items():
            assert value.dtype == before[key].dtype
            assert torch.equal(value, before[key]), key


class TestPlaces:
    """Single tensors, followed by hand."""

    def imported(self, tmp_path, name, **description):
        files(tmp_path, name)
        tensors = read_state_dict(tmp_path / "x.pth")
        described = {**read_description(tmp_path / "x.json"), **description}
        return import_network(tensors, described), tensors

    def test_flow_and_weight_heads_become_one_motion_head(self, tmp_path):
        (network, _, _), theirs = self.imported(tmp_path, "composite")
        ours = network.state_dict()
        assert torch.equal(ours["motion_head.conv.weight"][:2], theirs["model_final_flow.1.weight"])
        assert torch.equal(ours["motion_head.conv.weight"][2:], theirs["model_final_w.1.weight"])
        assert torch.equal(ours["motion_head.conv.bias"][2:], theirs["model_final_w.1.bias"])

    @pytest.mark.parametrize(
        ("name", "ours", "theirs"),
        [
            ("composite", "frame_encoder.0.2.1.running_var", "model_down_img.8.running_var"),
            ("composite", "condition_encoder.1.1.branch.5.bias", "model_down_seg.11.conv_block.5.bias"),
            ("composite", "flow_decoder.1.1.0.weight", "model_up_flow.3.weight"),
            ("composite, narrow foreground", "foreground_branch.1.1.branch.1.bias", "indv_res.1.conv_block.1.bias"),
            ("student", "image_decoder.0.0.branch.3.weight", "model_res_img.0.conv.3.weight"),
            ("local, foreground", "foreground_decoder.1.0.0.weight", "indv_up.2.weight"),
            ("local", "image_decoder.0.1.branch.1.weight", "model_up_img.1.conv_block.1.weight"),
            ("global", "blocks.0.branch.2.running_mean", "model.10.conv_block.2.running_mean"),
            ("global", "decoder.1.0.weight", "model.15.weight"),
            ("global", "head.conv.weight", "model.19.weight"),
            ("local enhancer", "decoder.1.0.weight", "model.15.weight"),
            ("local enhancer", "enhancers.0.encoder.1.0.weight", "model1_1.4.weight"),
            ("local enhancer", "enhancers.0.blocks.2.branch.5.bias", "model1_2.2.conv_block.5.bias"),
            ("local enhancer", "enhancers.0.decoder.0.1.running_var", "model1_2.4.running_var"),
            ("local enhancer", "head.conv.weight", "model1_2.7.weight"),
            ("local enhancer, two", "enhancers.0.decoder.0.0.weight", "model1_2.3.weight"),
            ("local enhancer, two", "head.conv.bias", "model2_2.7.bias"),
            ("features", "encoder.0.1.weight", "model_downsample.1.weight"),
            ("features", "decoder.0.0.weight", "model_upsample.0.weight"),
            ("features", "blocks.1.branch.1.weight", "model_resnet.1.conv_block.1.weight"),
            ("features", "head.conv.weight", "model_upsample_conv.1.weight"),
            ("encoder", "down.2.0.weight", "model.7.weight"),
            ("encoder", "up.0.0.weight", "model.10.weight"),
            ("encoder", "head.conv.weight", "model.17.weight"),
            ("discriminator", "nets.1.blocks.2.1.weight", "scale1_layer2.1.weight"),
            ("discriminator, scores", "nets.0.blocks.2.0.weight", "layer0.5.weight"),
            ("discriminator, scores", "nets.1.blocks.3.0.bias", "layer1.8.bias"),
        ],
    )
    def test_a_tensor_finds_its_place(self, tmp_path, name, ours, theirs):
        (network, _, _), tensors = self.imported(tmp_path, name)
        assert torch.equal(network.state_dict()[ours], tensors[theirs])

    def test_settings_follow_the_description(self, tmp_path):
        (network, blueprint, notes), _ = self.imported(tmp_path, "student")
        config = blueprint.config
        assert (config.input_scale, config.block, config.input_antialias, config.warp_align_corners) == (
            2,
            "inverted",
            True,
            False,
        )
        assert network.history_length == 2
        assert network.condition_channels == 5
        assert any("smoothed" in note for note in notes)
        assert any("8x12" in note for note in notes)
        told, _ = self.imported(tmp_path, "student", antialias=False, warp_align_corners=True, colour="red")
        assert (told.blueprint.config.input_antialias, told.blueprint.config.warp_align_corners) == (False, True)
        assert any("colour" in note for note in told.notes)

    def test_the_foreground_class_can_be_told(self, tmp_path):
        assert self.imported(tmp_path, "composite, foreground")[0].network.foreground_channels == (0,)
        (network, _, _), _ = self.imported(tmp_path, "composite, foreground", fg_labels=[1, 3])
        assert network.foreground_channels == (1, 3)

    def test_tensors_tell_the_norm_that_a_description_does_not(self, tmp_path):
        files(tmp_path, "global")
        tensors = read_state_dict(tmp_path / "x.pth")
        described = read_description(tmp_path / "x.json")
        del described["norm"]
        assert import_network(tensors, described).blueprint.config.norm == "instance_tracked"
        bare = {key: value for key, value in tensors.items() if "running" not in key and "tracked" not in key}
        assert import_network(bare, described).blueprint.config.norm == "instance"
        assert import_network(PublishedGlobal("batch").state_dict(), described).blueprint.config.norm == "batch"

    def test_files_from_before_batches_were_counted(self, tmp_path):
        files(tmp_path, "composite")
        tensors = read_state_dict(tmp_path / "x.pth")
        old = {key: value for key, value in tensors.items() if "num_batches" not in key}
        imported = import_network(old, read_description(tmp_path / "x.json"))
        assert any("0.4.1" in note for note in imported.notes)
        assert max(d.greatest for d in compare(imported, read_examples(tmp_path / "x.npz"))) < 1e-4

    def test_half_precision_becomes_float32(self, tmp_path):
        files(tmp_path, "composite")
        tensors = {
            key: value.half() if value.ndim else value for key, value in read_state_dict(tmp_path / "x.pth").items()
        }
        network = import_network(tensors, read_description(tmp_path / "x.json")).network
        assert {p.dtype for p in network.parameters()} == {torch.float32}


class TestMisfits:
    def test_all_kinds_are_listed_and_nothing_is_written(self, tmp_path, capsys):
        files(tmp_path, "composite")
        tensors = read_state_dict(tmp_path / "x.pth")
        del tensors["model_down_seg.1.weight"], tensors["model_up_img.1.num_batches_tracked"]
        tensors["netD.extra"] = torch.zeros(2)
        tensors["model_final_w.1.weight"] = torch.zeros(2, WIDTH, 7, 7)
        torch.save(tensors, tmp_path / "x.pth")
        assert verb(tmp_path, "--verify", tmp_path / "x.npz", "--out", tmp_path / "out") == 2
        said = capsys.readouterr().err
        assert "x.pth does not fit the described network 'composite'" in said
        assert "2 missing: model_down_seg.1.weight, model_up_img.1.num_batches_tracked" in said
        assert "1 left over: netD.extra" in said
        assert "1 mis-shaped: model_final_w.1.weight (is [2, 4, 7, 7] there, [1, 4, 7, 7] here)" in said
        assert not (tmp_path / "out").exists()

    def test_long_lists_are_cut(self, tmp_path):
        files(tmp_path, "composite")
        described = read_description(tmp_path / "x.json")
        with pytest.raises(CheckpointError, match=r"\d\d missing: .* and \d+ more"):
            import_network({}, described)
        with pytest.raises(CheckpointError, match=r"left over: .*model_res_flow"):
            import_network(read_state_dict(tmp_path / "x.pth"), {**described, "no_flow": True})

    def test_whole_numbers_are_no_weights(self, tmp_path):
        files(tmp_path, "composite")
        tensors = read_state_dict(tmp_path / "x.pth")
        tensors["model_final_w.1.bias"] = torch.zeros(1, dtype=torch.long)
        with pytest.raises(CheckpointError, match=r"model_final_w.1.bias \(is \[1\] of torch.int64 there, \[1\] here"):
            import_network(tensors, read_description(tmp_path / "x.json"))

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"network": "flownet2"}, "'flownet2' is not known; the description may name composite"),
            ({"network": ["composite"]}, "is not known"),
            ({"ngf": None}, "'ngf' must be of type int"),
            ({"ngf": "8"}, "'ngf' must be of type int"),
            ({"n_blocks": True}, "'n_blocks' must be of type int"),
            ({"norm": "spade"}, "must be batch or instance"),
            ({"input_channels": 16}, "do not belong together"),
            ({"previous_channels": 5}, "do not belong together"),
            ({"fg": True, "fg_labels": [5]}, "must list condition channels below 5"),
            ({"n_downsample": 0}, "num_downsamples must be at least 1"),
            ({"network": "sr_mobile_composite", "internal_resolution": [8]}, r"must be \[height, width\]"),
            ({"network": "composite_local", "scale": 1}, "lacks the key 'n_blocks_local'"),
        ],
    )
    def test_descriptions_that_cannot_be_meant(self, tmp_path, changes, said):
        files(tmp_path, "composite")
        described = {**read_description(tmp_path / "x.json"), **changes}
        with pytest.raises(ConfigError, match=said):
            import_network(read_state_dict(tmp_path / "x.pth"), described)

    @pytest.mark.parametrize(
        ("name", "changes", "said"),
        [
            ("local enhancer", {"n_local_enhancers": 0}, "'n_local_enhancers' must be at least 1"),
            ("features", {"feat_num": 0}, "'feat_num' must be at least 1"),
            ("encoder", {"feat_num": 0}, "'feat_num' must be at least 1"),
            ("encoder", {"input_channels": 4}, "'input_channels' must be 3, got 4"),
        ],
    )
    def test_single_image_networks_that_cannot_be_meant(self, tmp_path, name, changes, said):
        files(tmp_path, name)
        described = {**read_description(tmp_path / "x.json"), **changes}
        with pytest.raises(ConfigError, match=said):
            import_network(read_state_dict(tmp_path / "x.pth"), described)

    @pytest.mark.parametrize(
        ("name", "changes", "said"),
        [
            ("local enhancer", {"n_blocks_local": 2}, r"17 left over: model1_2\.2\.conv_block\.1\.weight"),
            ("local enhancer", {"n_local_enhancers": 2}, r"missing: model2_1\.1\.weight"),
            ("features", {"feat_num": 2}, r"mis-shaped: model_downsample\.1\.weight \(is \[4, 8, 7, 7\] there"),
            ("encoder", {"n_downsample": 3}, r"missing: .*model\.19\.weight"),
        ],
    )
    def test_single_image_tensors_without_a_place_are_listed(self, tmp_path, name, changes, said):
        files(tmp_path, name)
        described = {**read_description(tmp_path / "x.json"), **changes}
        with pytest.raises(CheckpointError, match=said):
            import_network(read_state_dict(tmp_path / "x.pth"), described)


class Trap:
    """Unpickled, it would make a file."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


class TestFiles:
    @pytest.mark.parametrize("as_zip", [True, False])
    def test_code_in_a_file_is_not_run(self, tmp_path, capsys, as_zip):
        files(tmp_path, "composite")
        mark = tmp_path / "executed"
        content = {"model_down_seg.1.weight": torch.zeros(1), "trap": Trap(mark)}
        torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=as_zip)
        assert verb(tmp_path) == 2
        said = capsys.readouterr().err
        assert "their code is not run" in said
        assert said.count("\n") == 1
        assert not mark.exists()
        torch.load(tmp_path / "x.pth", weights_only=False)
        assert mark.exists()  # the trap is real

    def test_plain_pickles_and_whole_modules_are_refused(self, tmp_path):
        (tmp_path / "a.pth").write_bytes(pickle.dumps(Trap(tmp_path / "executed")))
        torch.save(nn.Conv2d(1, 1, 1), tmp_path / "b.pth")
        for name in ("a", "b"):
            with pytest.raises(CheckpointError, match="damaged or holds objects"):
                read_state_dict(tmp_path / f"{name}.pth")
        assert not (tmp_path / "executed").exists()

    @pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 torn", b"\x80\x02", bytes(100)])
    def test_damaged_files_are_refused_in_one_sentence(self, tmp_path, capsys, content):
        for broken in ("x.pth", "x.json", "x.npz"):
            files(tmp_path, "discriminator")
            (tmp_path / broken).write_bytes(content)
            assert verb(tmp_path, "--verify", tmp_path / "x.npz") == 2
            said = capsys.readouterr().err
            assert broken in said
            assert said.count("\n") == 1

    def test_a_torn_file_is_refused(self, tmp_path):
        files(tmp_path, "discriminator")
        whole = (tmp_path / "x.pth").read_bytes()
        (tmp_path / "x.pth").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(CheckpointError, match=r"x\.pth is damaged"):
            read_state_dict(tmp_path / "x.pth")

    def test_other_contents_are_refused(self, tmp_path):
        for content, said in [
            ([torch.zeros(1)], "a list, not"),
            ({"a": 1}, "'a' is a int"),
            ({1: torch.zeros(1)}, "1 is"),
        ]:
            torch.save(content, tmp_path / "x.pth")
            with pytest.raises(CheckpointError, match=said):
                read_state_dict(tmp_path / "x.pth")
        (tmp_path / "x.json").write_text("[]")
        with pytest.raises(ConfigError, match="must hold a JSON object"):
            read_description(tmp_path / "x.json")
        np.savez(tmp_path / "x.npz", in0=np.array([{}], dtype=object))
        with pytest.raises(DataError, match=r"no \.npz of plain arrays"):
            read_examples(tmp_path / "x.npz")
        np.savez(tmp_path / "x.npz", in0=np.zeros(2, np.int64))
        with pytest.raises(DataError, match=r"in0 holds torch\.int64"):
            read_examples(tmp_path / "x.npz")

    def test_missing_files_are_named(self, tmp_path, capsys):
        for missing in ("x.pth", "x.json", "x.npz"):
            files(tmp_path, "discriminator")
            (tmp_path / missing).unlink()
            assert verb(tmp_path, "--verify", tmp_path / "x.npz") == 2
            assert missing in capsys.readouterr().err


class TestKnownOutputs:
    @pytest.mark.parametrize(
        ("arrays", "said"),
        [
            ({"in0": None}, "lack in0; they have in1, in2"),
            (
                {"in0": np.zeros((1, 14, 16, 24), "f")},
                r"in0 is \(1, 14, 16, 24\), but this network wants \(B, 15, H, W\)",
            ),
            ({"in1": np.zeros((1, 6, 16, 16), "f")}, "do not fit the network"),
            ({"in0": np.zeros((1, 15, 14, 24), "f"), "in2": np.zeros((1, 1, 14, 24), "f")}, "multiples of 4"),
            ({"in2": np.zeros((1, 1, 16, 1), "f")}, "the stored mask in2"),
            ({"in2": np.zeros((1, 3, 16, 24), "f")}, r"wants \(B, 1, H, W\)"),
            ({"train__out_i1": np.zeros((1, 2, 16, 16), "f")}, r"train/out.1 is \(1, 2, 16, 16\) in the file, but"),
            ({"eval__out_i7": np.zeros((1, 2, 16, 16), "f")}, "no such output"),
            ({"test__out_i0": np.zeros((1, 2, 16, 16), "f")}, "test/out.0 is not understood"),
        ],
    )
    def test_examples_that_do_not_fit(self, tmp_path, capsys, arrays, said):
        files(tmp_path, "composite, foreground")
        change(tmp_path / "x.npz", **arrays)
        imported = import_network(read_state_dict(tmp_path / "x.pth"), read_description(tmp_path / "x.json"))
        with pytest.raises(DataError, match=said):
            compare(imported, read_examples(tmp_path / "x.npz"))
        assert verb(tmp_path, "--verify", tmp_path / "x.npz") == 2
        assert "x.npz: " in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("name", "arrays", "said"),
        [
            ("features", {"in1": None}, "lack in1; they have in0"),
            ("features", {"in1": np.zeros((2, 2, *SIZE), "f")}, r"wants \(B, 3, H, W\)"),
            ("encoder", {"in1": np.zeros((2, 1, 8, 8), "f")}, r"the stored in1 is \(2, 1, 8, 8\) beside"),
        ],
    )
    def test_a_second_input_that_does_not_fit(self, tmp_path, name, arrays, said):
        files(tmp_path, name)
        change(tmp_path / "x.npz", **arrays)
        imported = import_network(read_state_dict(tmp_path / "x.pth"), read_description(tmp_path / "x.json"))
        with pytest.raises(DataError, match=said):
            compare(imported, read_examples(tmp_path / "x.npz"))

    def test_nothing_to_compare_is_an_error(self, tmp_path):
        files(tmp_path, "global")
        imported = import_network(read_state_dict(tmp_path / "x.pth"), read_description(tmp_path / "x.json"))
        with pytest.raises(DataError, match="no outputs are stored"):
            compare(imported, {"in0": torch.zeros(1, 5, *SIZE)})

    def test_other_outputs_are_status_1_and_nothing_is_written(self, tmp_path, capsys):
        files(tmp_path, "composite")
        stored = np.load(tmp_path / "x.npz")["eval/out.2"]
        change(tmp_path / "x.npz", eval__out_i2=stored + np.float32(5e-5))
        assert verb(tmp_path, "--verify", tmp_path / "x.npz", "--out", tmp_path / "out") == 1
        out = capsys.readouterr().out
        assert "1 of 12 outputs differ" in out
        assert [line for line in out.splitlines() if "weight" in line and line.endswith("differs")]
        assert json.loads(out.splitlines()[-1])["verified"] is False
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("wrong", ["warp_align_corners", "antialias"])
    def test_another_sampling_is_seen(self, tmp_path, wrong):
        files(tmp_path, "student")
        described = {**read_description(tmp_path / "x.json"), "warp_align_corners": False, "antialias": True}
        described[wrong] = not described[wrong]
        imported = import_network(read_state_dict(tmp_path / "x.pth"), described)
        differences = compare(imported, read_examples(tmp_path / "x.npz"))
        assert not all(d.agrees for d in differences)

    def test_one_wrong_weight_is_seen(self, tmp_path):
        files(tmp_path, "composite")
        tensors = read_state_dict(tmp_path / "x.pth")
        tensors["model_res_flow.0.conv_block.1.weight"][0, 0, 0, 0] += 0.1
        imported = import_network(tensors, read_description(tmp_path / "x.json"))
        differing = {d.output for d in compare(imported, read_examples(tmp_path / "x.npz")) if not d.agrees}
        assert "flow feature" in differing
        assert "image feature" not in differing

    def test_numbers_that_are_none_differ(self, tmp_path, capsys):
        files(tmp_path, "global")
        stored = np.load(tmp_path / "x.npz")["train/out"].copy()
        stored[0, 0, 0, 0] = np.nan
        change(tmp_path / "x.npz", train__out=stored)
        assert verb(tmp_path, "--verify", tmp_path / "x.npz") == 1
        result = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert result["greatest"] is None

    def test_rounding_widens_the_tolerance_on_both_sides(self):
        assert Difference("eval", "flow", 2.9e-5, 1e-5, 1e-5).agrees
        assert not Difference("eval", "flow", 3.1e-5, 1e-5, 1e-5).agrees
        assert not Difference("eval", "flow", float("nan"), 1e-5, 1e-5).agrees


class TestWriting:
    @pytest.mark.parametrize(
        "name",
        [
            "composite, foreground",
            "local",
            "global",
            "local enhancer, two",
            "features",
            "encoder",
            "discriminator, scores",
        ],
    )
    def test_what_is_written_is_read_back(self, tmp_path, name):
        files(tmp_path, name)
        out = tmp_path / "deep" / "out"
        assert verb(tmp_path, "--verify", tmp_path / "x.npz", "--out", out) == 0
        assert sorted(path.name for path in out.iterdir()) == ["network.json", "weights.safetensors"]
        assert [path.name for path in out.parent.iterdir()] == ["out"]
        content = json.loads((out / "network.json").read_text())
        assert content["verification"]["verified"] is True
        assert content["source"]["file"] == "x.pth"
        loaded = load_imported(out)
        assert all(d.agrees for d in compare(loaded, read_examples(tmp_path / "x.npz")))
        for key, value in load_file(out / "weights.safetensors").items():
            assert_close(loaded.network.state_dict()[key], value, rtol=0, atol=0)

    def test_nothing_is_overwritten(self, tmp_path, capsys):
        files(tmp_path, "global")
        (tmp_path / "out").mkdir()
        assert verb(tmp_path, "--out", tmp_path / "out") == 2
        assert "exists already" in capsys.readouterr().err
        assert not list((tmp_path / "out").iterdir())

    def test_without_known_outputs_it_says_so(self, tmp_path, capsys):
        files(tmp_path, "global")
        assert verb(tmp_path, "--out", tmp_path / "out") == 0
        out = capsys.readouterr().out
        assert "unverified" in out
        assert json.loads(out.splitlines()[-1])["verified"] is False
        assert json.loads((tmp_path / "out" / "network.json").read_text())["verification"] is None

    def test_a_failed_write_leaves_nothing(self, tmp_path):
        files(tmp_path, "global")
        imported = import_network(read_state_dict(tmp_path / "x.pth"), read_description(tmp_path / "x.json"))
        with pytest.raises(TypeError):
            save_imported(imported, tmp_path / "new" / "out", {"source": object()})
        assert not list((tmp_path / "new").iterdir())

    @pytest.mark.parametrize("damage", [{"format": 9}, {"network": "x"}, {"config": {}}, {"channels": None}])
    def test_damaged_descriptions_are_refused(self, tmp_path, damage):
        files(tmp_path, "discriminator")
        assert verb(tmp_path, "--out", tmp_path / "out") == 0
        file = tmp_path / "out" / "network.json"
        content = {**json.loads(file.read_text()), **damage}
        if damage == {"config": {}}:
            content["config"] = {"hidden": 3}
        file.write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match=r"network\.json"):
            load_imported(tmp_path / "out")
