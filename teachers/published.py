"""Published networks in our words: what a description means, and which reference layer becomes which of ours.

Reference layers are numbered as NVIDIA's vid2vid and Fast-Vid2Vid number them: padding and activations count too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from torch import Tensor, nn

from fastv2v.errors import ConfigError
from fastv2v.nn.blocks import NormKind
from fastv2v.nn.composite import CompositeConfig, CompositeGenerator
from fastv2v.nn.discriminator import DiscriminatorConfig, MultiScaleDiscriminator
from fastv2v.nn.features import FeatureConfig, FeatureEncoder
from fastv2v.nn.local import LocalConfig, LocalGenerator
from fastv2v.nn.single_image import SingleImageConfig, SingleImageGenerator

T = TypeVar("T")
Config = CompositeConfig | LocalConfig | SingleImageConfig | FeatureConfig | DiscriminatorConfig

PUBLISHED_FOREGROUND = 26
"""The class that vid2vid paints separately where it is not told otherwise: Cityscapes' cars."""
_INFORMATION = {"inputs", "outputs", "output_channels", "name", "source", "warp_align_corners"}
"""Keys of a description that are for people, or stand there for networks that do not need them."""


@dataclass(frozen=True)
class Blueprint:
    """A network that can be built: what a description says, in our words."""

    network: str
    """Name of the published network."""
    config: Config
    """Size and shape."""
    channels: int
    """Of one encoded condition, features left out; of the whole input for a discriminator or an encoder."""
    foreground: tuple[int, ...] = ()
    """Condition channels of the foreground branch; empty for none."""
    intermediate_features: bool = True
    """Whether the reference returns all blocks of a discriminator, or the score maps alone; ours always has them."""

    def build(self) -> nn.Module:
        """The network with fresh weights."""
        match self.config:
            case CompositeConfig():
                return CompositeGenerator(self.config, self.channels, self.foreground)
            case LocalConfig():
                return LocalGenerator(self.config, self.channels, self.foreground)
            case SingleImageConfig():
                return SingleImageGenerator(self.config, self.channels)
            case FeatureConfig():
                return FeatureEncoder(self.config)
            case DiscriminatorConfig():
                return MultiScaleDiscriminator(self.channels, self.config)


class Piece(NamedTuple):
    """A reference layer that fills some output channels of one of ours."""

    layer: str
    """Its name."""
    rows: slice = slice(None)
    """Which channels it fills."""


Layers = dict[str, tuple[Piece, ...]]
"""Our layer -> the reference layers that make it up."""


def plan(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[Blueprint, Layers, tuple[str, ...]]:
    """Find the network of ours that is described.

    Args:
        description: constructor values of the reference network; ``network`` names it.
        tensors: its state dict, which tells what kind of norm it has where the description does not.

    Returns:
        What to build, where each layer comes from, and notes about what the description left open.

    Raises:
        ConfigError: if the network is unknown, or a key is missing or nonsense.
    """
    name = description.get("network")
    if not isinstance(name, str) or name not in _PLANS:
        raise ConfigError(f"network {name!r} is not known; the description may name {', '.join(_PLANS)}")
    keys = _Keys(description)
    notes: list[str] = []
    blueprint, layers = _PLANS[name](keys, tensors, notes)
    if unused := keys.unused():
        notes.append(f"keys of the description that are not used: {', '.join(unused)}")
    return blueprint, layers, tuple(notes)


class _Keys:
    """The keys of a description; remembers which were asked for."""

    def __init__(self, description: Mapping[str, Any]) -> None:
        self._description = description
        self._asked = {"network"}

    def get(self, name: str, kind: type[T], default: T | None = None) -> T:
        """A value of the type told; without a default the key must be there."""
        self._asked.add(name)
        if name not in self._description and default is not None:
            return default
        if name not in self._description:
            raise ConfigError(f"the description of {self._description.get('network')!r} lacks the key {name!r}")
        value = self._description[name]
        if type(value) is not kind:
            raise ConfigError(f"the description's {name!r} must be of type {kind.__name__}, got {value!r}")
        return value

    def has(self, name: str) -> bool:
        """Whether there is a value."""
        return self._description.get(name) is not None

    def unused(self) -> list[str]:
        """Keys nobody asked for."""
        return sorted(set(self._description) - self._asked - _INFORMATION)


def _plan_composite(keys: _Keys, tensors: Mapping[str, Tensor], notes: list[str]) -> tuple[Blueprint, Layers]:
    """vid2vid's composite generator, and Fast-Vid2Vid's student, which differs in three settings."""
    is_student = keys.get("network", str) == "sr_mobile_composite"
    channels, past = _condition_channels(keys)
    if is_student and keys.has("internal_resolution"):
        height, width = _pair(keys.get("internal_resolution", list))
        notes.append(f"the reference always works at {height}x{width}; ours at half of the size it is given")
    antialias = is_student and keys.get("antialias", bool, True)
    if is_student and not keys.has("antialias"):
        notes.append(
            "inputs are smoothed before they are halved, as torchvision does since 0.17; for weights trained with an "
            'older one put "antialias": false into the description'
        )
    config = CompositeConfig(
        history_length=past,
        width=keys.get("ngf", int),
        num_downsamples=keys.get("n_downsample", int),
        num_blocks=keys.get("n_blocks", int),
        norm=_norm(keys, tensors, "model_down_seg.2"),
        use_flow=not keys.get("no_flow", bool, False),
        block="inverted" if is_student else "residual",
        input_scale=2 if is_student else 1,
        input_antialias=antialias,
        warp_align_corners=keys.get("warp_align_corners", bool, not is_student),
    )
    foreground = _foreground(keys, channels, notes)
    depth, encoded, decoded = config.num_downsamples, config.num_blocks - config.num_blocks // 2, config.num_blocks // 2
    layers: Layers = {}
    for ours, theirs in (("condition_encoder", "model_down_seg"), ("frame_encoder", "model_down_img")):
        layers |= _down(f"{ours}.0", theirs, depth)
        layers |= _blocks(f"{ours}.1", theirs, encoded, config.block, first=4 + 3 * depth)
    for ours, theirs in (("image_decoder", "img"), ("flow_decoder", "flow"))[: 1 + config.use_flow]:
        layers |= _blocks(f"{ours}.0", f"model_res_{theirs}", decoded, config.block)
        layers |= _up(f"{ours}.1", f"model_up_{theirs}", depth)
    layers |= _heads(config.use_flow, bool(foreground))
    if foreground:
        layers |= _down("foreground_branch.0", "indv_down", depth)
        layers |= _blocks("foreground_branch.1", "indv_res", config.num_blocks, config.block)
        layers |= _up("foreground_branch.2", "indv_up", depth)
    return Blueprint(keys.get("network", str), config, channels, foreground), layers


def _plan_local(keys: _Keys, tensors: Mapping[str, Tensor], notes: list[str]) -> tuple[Blueprint, Layers]:
    """vid2vid's generator of a finer scale."""
    channels, past = _condition_channels(keys)
    config = LocalConfig(
        history_length=past,
        width=keys.get("ngf", int),
        num_blocks=keys.get("n_blocks_local", int),
        scale=keys.get("scale", int),
        norm=_norm(keys, tensors, "model_down_seg.2"),
        use_flow=not keys.get("no_flow", bool, False),
        narrow_foreground=keys.get("n_downsample", int) > 2,
        warp_align_corners=keys.get("warp_align_corners", bool, True),
    )
    foreground = _foreground(keys, channels, notes)
    blocks = config.num_blocks
    layers = _down("condition_encoder", "model_down_seg", 1) | _down("frame_encoder", "model_down_img", 1)
    decoders = [("image_decoder", "model_up_img")]
    decoders += [("flow_decoder", "model_up_flow")] if config.use_flow else []
    if foreground:
        layers |= _down("foreground_encoder", "indv_down", 1)
        decoders.append(("foreground_decoder", "indv_up"))
    for ours, theirs in decoders:
        layers |= _blocks(f"{ours}.0", theirs, blocks, "residual") | _up(f"{ours}.1", theirs, 1, first=blocks)
    return Blueprint("composite_local", config, channels, foreground), layers | _heads(
        config.use_flow, bool(foreground)
    )


def _plan_global(keys: _Keys, tensors: Mapping[str, Tensor], notes: list[str]) -> tuple[Blueprint, Layers]:
    """pix2pixHD's global generator, one long sequence of layers."""
    config = SingleImageConfig(**_single_shape(keys), norm=_norm(keys, tensors, "model.2"))
    head = 4 + 6 * config.num_downsamples + config.num_blocks + 1  # one layer of padding before it
    layers = _trunk(config) | {"head.conv": (Piece(f"model.{head}"),)}
    return Blueprint("global", config, keys.get("input_channels", int)), layers


def _plan_enhancer(keys: _Keys, tensors: Mapping[str, Tensor], notes: list[str]) -> tuple[Blueprint, Layers]:
    """pix2pixHD's local enhancer: a global generator without its end, then two sequences for each enhancer."""
    config = SingleImageConfig(
        **_single_shape(keys),
        num_enhancers=keys.get("n_local_enhancers", int, 1),
        num_local_blocks=keys.get("n_blocks_local", int),
        norm=_norm(keys, tensors, "model.2"),
    )
    if not config.num_enhancers:
        raise ConfigError("the description's 'n_local_enhancers' must be at least 1; without any it is a 'global'")
    blocks, layers = config.num_local_blocks, _trunk(config)
    for i in range(config.num_enhancers):
        ours, theirs = f"enhancers.{i}", f"model{i + 1}"
        layers |= _down(f"{ours}.encoder", f"{theirs}_1", 1)
        layers |= _blocks(f"{ours}.blocks", f"{theirs}_2", blocks, "residual")
        layers |= _up(f"{ours}.decoder", f"{theirs}_2", 1, first=blocks)
    layers["head.conv"] = (Piece(f"model{config.num_enhancers}_2.{blocks + 4}"),)
    return Blueprint("local_enhancer", config, keys.get("input_channels", int)), layers


def _plan_featured(keys: _Keys, tensors: Mapping[str, Tensor], notes: list[str]) -> tuple[Blueprint, Layers]:
    """vid2vid's global generator with features, for faces."""
    config = SingleImageConfig(
        **_single_shape(keys),
        feature_channels=keys.get("feat_num", int),
        norm=_norm(keys, tensors, "model_downsample.2"),
    )
    if not config.feature_channels:
        raise ConfigError("the description's 'feat_num' must be at least 1; without features it is a 'global'")
    layers = (
        _down("encoder", "model_downsample", config.num_downsamples)
        | _blocks("blocks", "model_resnet", config.num_blocks, "residual")
        | _up("decoder", "model_upsample", config.num_downsamples)
        | {"head.conv": (Piece("model_upsample_conv.1"),)}
    )
    return Blueprint("global_with_features", config, keys.get("input_channels", int)), layers


def _plan_encoder(keys: _Keys, tensors: Mapping[str, Tensor], notes: list[str]) -> tuple[Blueprint, Layers]:
    """pix2pixHD's feature encoder."""
    if (channels := keys.get("input_channels", int, 3)) != 3:
        raise ConfigError(f"an encoder looks at colour images: 'input_channels' must be 3, got {channels}")
    config = FeatureConfig(
        channels=keys.get("feat_num", int),
        width=keys.get("nef", int),
        num_downsamples=keys.get("n_downsample", int),
        norm=_norm(keys, tensors, "model.2"),
    )
    if not config.channels:
        raise ConfigError("the description's 'feat_num' must be at least 1")
    depth = config.num_downsamples
    layers = (
        _down("down", "model", depth)
        | _up("up", "model", depth, first=4 + 3 * depth)
        | {"head.conv": (Piece(f"model.{4 + 6 * depth + 1}"),)}
    )
    return Blueprint("encoder", config, channels), layers


def _plan_discriminator(keys: _Keys, tensors: Mapping[str, Tensor], notes: list[str]) -> tuple[Blueprint, Layers]:
    """pix2pixHD's discriminator; its layers have two names, after what it returns."""
    by_block = keys.get("intermediate_features", bool, True)
    config = DiscriminatorConfig(
        width=keys.get("ndf", int),
        num_layers=keys.get("n_layers", int),
        num_scales=keys.get("num_D", int),
        norm=_norm(keys, tensors, "scale0_layer1.1" if by_block else "layer0.3"),
        coarse_widths=True,
    )
    layers: Layers = {}
    for i in range(config.num_scales):
        for j in range(config.num_layers + 2):
            for k in (0, 1) if 0 < j <= config.num_layers else (0,):
                # Without intermediate features all blocks are one sequence: two layers, then three each.
                flat = f"layer{i}.{max(3 * j - 1, 0) + k}"
                layers[f"nets.{i}.blocks.{j}.{k}"] = (Piece(f"scale{i}_layer{j}.{k}" if by_block else flat),)
    channels = keys.get("input_channels", int)
    return Blueprint("multiscale_discriminator", config, channels, intermediate_features=by_block), layers


_PLANS: dict[Any, Callable[[_Keys, Mapping[str, Tensor], list[str]], tuple[Blueprint, Layers]]] = {
    "composite": _plan_composite,
    "sr_mobile_composite": _plan_composite,
    "composite_local": _plan_local,
    "global": _plan_global,
    "local_enhancer": _plan_enhancer,
    "global_with_features": _plan_featured,
    "encoder": _plan_encoder,
    "multiscale_discriminator": _plan_discriminator,
}
CONFIGS: dict[str, type[Config]] = {
    "composite": CompositeConfig,
    "sr_mobile_composite": CompositeConfig,
    "composite_local": LocalConfig,
    "global": SingleImageConfig,
    "local_enhancer": SingleImageConfig,
    "global_with_features": SingleImageConfig,
    "encoder": FeatureConfig,
    "multiscale_discriminator": DiscriminatorConfig,
}


def _condition_channels(keys: _Keys) -> tuple[int, int]:
    """Channels of one condition, and the number of past steps."""
    total, previous = keys.get("input_channels", int), keys.get("previous_channels", int)
    past = previous // 3
    if previous < 3 or previous % 3 or total < 1 or total % (past + 1):
        raise ConfigError(
            f"input_channels {total} and previous_channels {previous} do not belong together: {previous} must be 3 for "
            f"each past frame, and {total} the same for each of them and the current one"
        )
    return total // (past + 1), past


def _single_shape(keys: _Keys) -> dict[str, int]:
    """What all generators of single images have."""
    return {
        "width": keys.get("ngf", int),
        "num_downsamples": keys.get("n_downsample", int),
        "num_blocks": keys.get("n_blocks", int),
    }


def _pair(size: list[Any]) -> tuple[int, int]:
    """A size (height, width)."""
    if len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
        raise ConfigError(f"the description's 'internal_resolution' must be [height, width], got {size}")
    return size[0], size[1]


def _norm(keys: _Keys, tensors: Mapping[str, Tensor], first: str) -> NormKind:
    """The kind of norm; the tensors of the ``first`` norm layer tell what the description does not."""
    found = "batch" if f"{first}.weight" in tensors else "instance"
    told = keys.get("norm", str, found)
    if told not in ("batch", "instance"):
        raise ConfigError(f"the description's 'norm' must be batch or instance, got {told!r}")
    if told == "batch":
        return "batch"
    # Inverted residual blocks (.conv.) have batch norms whatever the rest has.
    is_tracked = any(name.endswith(".running_mean") and ".conv." not in name for name in tensors)
    return "instance_tracked" if is_tracked else "instance"


def _foreground(keys: _Keys, channels: int, notes: list[str]) -> tuple[int, ...]:
    """Condition channels of the foreground branch."""
    if not keys.get("fg", bool, False):
        return ()
    if keys.has("fg_labels"):
        labels = keys.get("fg_labels", list)
        if not labels or not all(type(label) is int and 0 <= label < channels for label in labels):
            raise ConfigError(f"the description's 'fg_labels' must list condition channels below {channels}: {labels}")
        return tuple(labels)
    label = PUBLISHED_FOREGROUND if channels > PUBLISHED_FOREGROUND else 0
    notes.append(f'the foreground is taken to be condition channel {label}; "fg_labels": [..] would name others')
    return (label,)


def _down(ours: str, theirs: str, depth: int) -> Layers:
    """A ``DownPath``; padding, convolution, norm and activation count as layers there."""
    layers: Layers = {}
    for i in range(depth + 1):
        own = int(i == 0)  # only the first of ours begins with a layer of padding
        layers[f"{ours}.{i}.{own}"] = (Piece(f"{theirs}.{1 + 3 * i}"),)
        layers[f"{ours}.{i}.{own + 1}"] = (Piece(f"{theirs}.{2 + 3 * i}"),)
    return layers


def _blocks(ours: str, theirs: str, count: int, kind: str, *, first: int = 0) -> Layers:
    """A ``block_stack``."""
    branch, inner = ("conv", (0, 1, 3, 4, 6, 7)) if kind == "inverted" else ("conv_block", (1, 2, 5, 6))
    return {
        f"{ours}.{i}.branch.{k}": (Piece(f"{theirs}.{first + i}.{branch}.{k}"),) for i in range(count) for k in inner
    }


def _up(ours: str, theirs: str, depth: int, *, first: int = 0) -> Layers:
    """An ``UpPath``."""
    return {f"{ours}.{i}.{k}": (Piece(f"{theirs}.{first + 3 * i + k}"),) for i in range(depth) for k in (0, 1)}


def _trunk(config: SingleImageConfig) -> Layers:
    """A global generator without its head, numbered through."""
    depth = config.num_downsamples
    return (
        _down("encoder", "model", depth)
        | _blocks("blocks", "model", config.num_blocks, "residual", first=4 + 3 * depth)
        | _up("decoder", "model", depth, first=4 + 3 * depth + config.num_blocks)
    )


def _heads(use_flow: bool, has_foreground: bool) -> Layers:
    """Heads of the composite generators; ours makes flow and occlusion with one convolution, in this order."""
    layers: Layers = {"image_head.conv": (Piece("model_final_img.1"),)}
    if use_flow:
        layers["motion_head.conv"] = (
            Piece("model_final_flow.1", slice(0, 2)),
            Piece("model_final_w.1", slice(2, 3)),
        )
    if has_foreground:
        layers["foreground_head.conv"] = (Piece("indv_final.1"),)
    return layers
