"""SPADE vid2vid: a generator whose normalisations are modulated by labels, the warped past and the painted world.

Widths double from scale to scale; scale i has 1/2^i of the frame's height and width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastv2v.contracts import FrameOutput, History
from fastv2v.data.painter import GUIDANCE_CHANNELS
from fastv2v.errors import ConfigError, ShapeError
from fastv2v.nn.blocks import NormKind, norm_layer, path_widths, used_channels
from fastv2v.nn.composite import check_step_inputs
from fastv2v.nn.spectral import spectral_norm
from fastv2v.ops.warp import warp_backward
from fastv2v.render import advance

SLOPE: Final = 0.2
"""Of every LeakyReLU."""
GAIN: Final = 0.02
"""Of the Xavier initialisation of what is not normalised spectrally: modulations then begin near nothing."""

Combine = Literal["modulate", "blend"]


@dataclass(frozen=True, kw_only=True)
class ModulationConfig:
    """How one condition becomes the scale and shift of a normalised map."""

    hidden: int = 0
    """Channels between its two convolutions; 0 makes do with one convolution."""
    kernel: int = 3
    """Of its convolutions, odd."""

    def __post_init__(self) -> None:
        if self.hidden < 0:
            raise ConfigError(f"hidden must be 0 (one convolution) or more, got {self.hidden}")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ConfigError(f"kernel must be odd, got {self.kernel}")


@dataclass(frozen=True, kw_only=True)
class SpadeConfig:
    """Size and shape of a SPADE video generator. The defaults are the published ones for streets at 1024x512."""

    history_length: int = 2
    """N-1: past steps the flow network looks back on."""
    base_width: int = 32
    """Channels at full size; each scale has twice as many as the one before."""
    max_width: int = 1024
    """No layer has more channels than this."""
    frame_downsamples: int = 4
    """How often the past frame is halved before the bottleneck. Labels are embedded over one scale more."""
    bottleneck_blocks: int = 4
    """Residual blocks at the bottleneck, an even number: half see the previous label, half the current one."""
    scratch_blocks: int = 0
    """Blocks that draw the bottleneck of a first frame from its label alone, each at twice the size of the one before
    (published: 3). 0 builds none: such a frame then begins from nothing but the modulations."""
    label: ModulationConfig = field(default_factory=ModulationConfig)
    """How labels modulate."""
    flow: ModulationConfig = field(default_factory=ModulationConfig)
    """How the warped previous frame modulates (``modulate`` only)."""
    guidance: ModulationConfig = field(default_factory=lambda: ModulationConfig(hidden=128))
    """How the painted world modulates, where the condition has guidance."""
    partial_guidance: bool = False
    """Whether the convolutions on guidance look at pixels with a colour only; where none is near, nothing changes."""
    combine_scales: int = 3
    """The finest so many decoder blocks take the warped frame and the guidance."""
    combine: Combine = "modulate"
    """``modulate``: the warped frame and its occlusion modulate the decoder, and the frame is drawn (published).
    ``blend``: the frame is mixed from drawn and warped pixels, as in vid2vid: less work, and faster to learn."""
    flow_width: int = 32
    """Channels of the flow network at full size."""
    flow_downsamples: int = 5
    """How often the flow network halves the size."""
    flow_blocks: int = 6
    """Residual blocks of the flow network."""
    flow_scale: float = 40.0
    """Factor between the flow head and pixels."""
    spectral: bool = True
    """Whether the weights of the main convolutions are normalised by their largest singular value."""

    def __post_init__(self) -> None:
        for name in ("history_length", "base_width", "frame_downsamples", "flow_width", "flow_downsamples"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("scratch_blocks", "flow_blocks"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be 0 (none) or more, got {getattr(self, name)}")
        if self.max_width < max(self.base_width, self.flow_width):
            raise ConfigError(f"max_width ({self.max_width}) must not be below base_width or flow_width")
        if self.bottleneck_blocks < 2 or self.bottleneck_blocks % 2:
            raise ConfigError(f"bottleneck_blocks must be an even number of at least 2, got {self.bottleneck_blocks}")
        if not 1 <= self.combine_scales <= self.frame_downsamples + 1:
            raise ConfigError(
                f"combine_scales must lie in 1 to {self.frame_downsamples + 1}, the number of decoder blocks, got "
                f"{self.combine_scales}"
            )
        if self.combine not in get_args(Combine):
            raise ConfigError(f"combine is one of {', '.join(get_args(Combine))}, got {self.combine!r}")
        if not self.flow_scale > 0:
            raise ConfigError(f"flow_scale must be positive, got {self.flow_scale}")

    @property
    def widths(self) -> list[int]:
        """Channels at scales 0, 1, ... down to that of the embedding's end, one below the bottleneck's."""
        return path_widths(self.base_width, self.frame_downsamples + 1, self.max_width)


class Hint(NamedTuple):
    """What a normalisation is modulated by."""

    maps: Tensor
    """(B, K, h, w), of the size of what is normalised."""
    weight: Tensor | None = None
    """(B, 1, 1, 1) in [0, 1]: how far it counts; None: fully."""


class NormedConv2d(nn.Conv2d):
    """A convolution that keeps the size (divided by its stride); ``init_normed`` normalises its weight spectrally."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 3, *, stride: int = 1) -> None:
        super().__init__(c_in, c_out, kernel, stride=stride, padding=kernel // 2)


class NormedLinear(nn.Linear):
    """A linear layer whose weight ``init_normed`` normalises spectrally."""


class Modulation(nn.Module):
    """Scale and shift from one condition.

    Source:
        Park et al., "Semantic Image Synthesis with Spatially-Adaptive Normalization", CVPR 2019.
    """

    def __init__(self, c_in: int, channels: int, config: ModulationConfig) -> None:
        super().__init__()
        self.first = plain_conv(c_in, config.hidden, config.kernel) if config.hidden else None
        self.last = plain_conv(config.hidden or c_in, 2 * channels, config.kernel)

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K, h, w) to gamma and beta, each (B, C, h, w)."""
        hidden = maps if self.first is None else F.relu(self.first(maps))
        gamma, beta = self.last(hidden).chunk(2, dim=1)
        return gamma, beta


class PartialModulation(Modulation):
    """The same from a picture with holes, whose last channel is 1 where there is a colour and 0 elsewhere.

    Source:
        Partial convolutions: Liu et al., "Image Inpainting for Irregular Holes Using Partial Convolutions", ECCV 2018.
    """

    def __init__(self, c_in: int, channels: int, config: ModulationConfig) -> None:
        super().__init__(c_in - 1, channels, config)

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K, h, w) to gamma and beta, both 0 where no colour is in reach."""
        x, mask = maps[:, :-1], maps[:, -1:]
        if self.first is not None:
            x, mask = partial_conv(self.first, x, mask)
            x = F.relu(x)
        x, _ = partial_conv(self.last, x, mask)
        gamma, beta = x.chunk(2, dim=1)
        return gamma, beta


def partial_conv(conv: nn.Conv2d, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Convolve what is known, scaled up for what is not.

    Args:
        conv: with bias; keeps the size.
        x: (B, K, h, w).
        mask: where it is known, (B, 1, h, w), 0 or 1.

    Returns:
        The result, 0 where nothing is known under the kernel, and where something is, (B, 1, h, w).
    """
    area = conv.kernel_size[0] * conv.kernel_size[1]
    assert conv.bias is not None and not isinstance(conv.padding, str)  # as built by plain_conv
    with torch.no_grad():
        window = mask.new_ones(1, 1, *conv.kernel_size)
        counted = F.conv2d(mask, window, padding=conv.padding).float()
        known = counted.clamp(0, 1)
        ratio = area / (counted + 1e-6) * known
    bias = conv.bias.view(1, -1, 1, 1)
    return ((conv(x * mask) - bias) * ratio + bias) * known, known


class MultiSpade(nn.Module):
    """Normalises once, then modulates by one condition after the other, in the order they were given in.

    Args:
        channels: C.
        sources: channels and modulation of each condition, by name, in order.
        norm: the normalisation, without knowledge of any condition.
        partial: names of conditions with holes.
    """

    def __init__(
        self,
        channels: int,
        sources: Mapping[str, tuple[int, ModulationConfig]],
        *,
        norm: NormKind = "instance",
        partial: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.norm = norm_layer(norm, channels)
        self.modulations = nn.ModuleDict(
            {
                name: (PartialModulation if name in partial else Modulation)(c_in, channels, config)
                for name, (c_in, config) in sources.items()
            }
        )

    def forward(self, x: Tensor, hints: Mapping[str, Hint]) -> Tensor:
        """(B, C, h, w) to the same shape.

        Args:
            x: what is normalised.
            hints: every condition by name.
        """
        y = self.norm(x)
        for name, modulation in self.modulations.items():
            maps, weight = hints[name]
            gamma, beta = modulation(maps)
            if weight is not None:
                gamma, beta = gamma * weight, beta * weight
            y = y * (1 + gamma) + beta
        return y


class SpadeBlock(nn.Module):
    """Two modulated convolutions beside a shortcut, which is modulated too where the number of channels changes.

    Args:
        c_in: channels in.
        c_out: channels out.
        sources: see ``MultiSpade``; all its normalisations take the same.
        norm: see there.
        partial: see there.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        sources: Mapping[str, tuple[int, ModulationConfig]],
        *,
        norm: NormKind = "instance",
        partial: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        inner = min(c_in, c_out)
        self.spade_0 = MultiSpade(c_in, sources, norm=norm, partial=partial)
        self.conv_0 = NormedConv2d(c_in, inner)
        self.spade_1 = MultiSpade(inner, sources, norm=norm, partial=partial)
        self.conv_1 = NormedConv2d(inner, c_out)
        if c_in != c_out:
            self.spade_s = MultiSpade(c_in, sources, norm=norm, partial=partial)
            self.conv_s = NormedConv2d(c_in, c_out, 1)
        self._changes_width = c_in != c_out

    def forward(self, x: Tensor, hints: Mapping[str, Hint]) -> Tensor:
        """(B, C_in, h, w) to (B, C_out, h, w)."""
        main = self.conv_0(F.leaky_relu(self.spade_0(x, hints), SLOPE))
        main = self.conv_1(F.leaky_relu(self.spade_1(main, hints), SLOPE))
        return main + (self.conv_s(self.spade_s(x, hints)) if self._changes_width else x)


class Embedding(nn.Module):
    """What lies around each pixel, at every scale: down to the last, and up again.

    Args:
        c_in: channels in.
        widths: channels at scales 0, 1, ...
        skips: whether the way up sees what the way down saw at its sizes.
    """

    def __init__(self, c_in: int, widths: list[int], *, skips: bool) -> None:
        super().__init__()
        self._skips, last = skips, len(widths) - 2
        self.entry = NormedConv2d(c_in, widths[0])
        self.down = nn.ModuleList(NormedConv2d(a, b, stride=2) for a, b in pairwise(widths))
        self.up = nn.ModuleList(
            NormedConv2d(widths[i + 1] * (2 if skips and i != last else 1), widths[i]) for i in range(last + 1)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, c_in, H, W) to maps (B, widths[i], H/2^i, W/2^i) of all scales, finest first."""
        seen = [F.leaky_relu(self._enter(x), SLOPE)]
        for conv in self.down:
            seen.append(F.leaky_relu(conv(seen[-1]), SLOPE))
        made = [seen[-1]]  # coarsest first
        for i in reversed(range(len(self.up))):
            given = made[-1] if len(made) == 1 or not self._skips else torch.cat([made[-1], seen[i + 1]], dim=1)
            made.append(F.leaky_relu(self.up[i](doubled(given)), SLOPE))
        return made[::-1]

    def _enter(self, x: Tensor) -> Tensor:
        """The entry convolution, in training without channels that are zero everywhere."""
        used = used_channels(x) if self.training else None
        if used is None:
            return self.entry(x)
        weight = self.entry.weight.index_select(1, used)
        return F.conv2d(x.index_select(1, used), weight, self.entry.bias, padding=self.entry.padding)


class FlowNetwork(nn.Module):
    """Flow to the previous frame and occlusion, from the labels of all N steps and the past frames.

    Args:
        label_channels: channels of one label.
        config: size and shape.
    """

    def __init__(self, label_channels: int, config: SpadeConfig) -> None:
        super().__init__()
        past = config.history_length
        widths = path_widths(config.flow_width, config.flow_downsamples, config.max_width)

        def encoder(c_in: int) -> nn.Sequential:
            pairs = pairwise(widths)
            return nn.Sequential(_flow_layer(c_in, widths[0]), *(_flow_layer(a, b, stride=2) for a, b in pairs))

        self.labels = encoder(label_channels * (past + 1))
        self.frames = encoder(3 * past)
        self.blocks = nn.ModuleList(_flow_branch(widths[-1]) for _ in range(config.flow_blocks))
        self.up = nn.ModuleList(_flow_layer(widths[i + 1], widths[i]) for i in range(config.flow_downsamples))
        self.head = plain_conv(widths[0], 3, 3)

    def forward(self, labels: Tensor, frames: Tensor, valid: Tensor) -> Tensor:
        """Outputs of the head, (B, 3, H, W): flow x, flow y, occlusion before its sigmoid.

        Args:
            labels: of all steps as channels, oldest first, (B, N * L, H, W).
            frames: of the past as channels, (B, (N-1) * 3, H, W).
            valid: (B, 1, 1, 1), 0 where there are no frames.
        """
        x = self.labels(labels) + self.frames(frames) * valid
        for block in self.blocks:
            x = x + block(x)
        for layer in reversed(self.up):
            x = layer(doubled(x))
        return self.head(x)


class SpadeGenerator(nn.Module):
    """A video generator of SPADE blocks, as a stateless step.

    The previous frame is encoded under its label and decoded under the current one. In the finest decoder blocks the
    previous frame, warped onto this one, and the painted world modulate as well. Guidance lies in the last channels of
    the condition, four a level: level k has 1/2^k of the size and is used at scale k, the coarsest level also at the
    scales below it.

    Args:
        config: size and shape.
        condition_channels: C, guidance included.
        guidance_levels: how many levels of guidance the condition ends with; 0 builds no part for it.

    Raises:
        ConfigError: if there are more levels than blocks that take them, or no channels are left for labels.

    Source:
        Mallya et al., "World-Consistent Video-to-Video Synthesis", ECCV 2020; without guidance the generator that
        their published code calls vid2vid.
    """

    def __init__(self, config: SpadeConfig, condition_channels: int, guidance_levels: int = 0) -> None:
        super().__init__()
        labels = condition_channels - GUIDANCE_CHANNELS * guidance_levels
        if labels < 1:
            raise ConfigError(f"{condition_channels} condition channels leave none beside {guidance_levels} levels")
        if guidance_levels > config.combine_scales:
            raise ConfigError(
                f"the condition has {guidance_levels} levels of guidance and combine_scales lets "
                f"{config.combine_scales} blocks see them; change one of the two"
            )
        self.config = config
        self._condition_channels, self._label_channels, self._levels = condition_channels, labels, guidance_levels
        depth, widths = config.frame_downsamples, config.widths
        bottom = widths[-1]
        self.label_embedding = Embedding(labels, widths, skips=False)
        self.flow_network = FlowNetwork(labels, config)
        if config.combine == "modulate":
            self.flow_embedding = Embedding(4, widths, skips=True)  # the warped frame and its occlusion

        def sources(scale: int, *, combined: bool) -> dict[str, tuple[int, ModulationConfig]]:
            """Conditions of a block, in the order they modulate in: each is built only where it is used."""
            found = {"label": (widths[scale], config.label)}
            if combined and config.combine == "modulate":
                found["flow"] = (widths[scale], config.flow)
            if combined and guidance_levels:
                found["guidance"] = (GUIDANCE_CHANNELS, config.guidance)
            return found

        def of_label(scale: int, c_in: int, c_out: int) -> SpadeBlock:
            return SpadeBlock(c_in, c_out, sources(scale, combined=False))

        partial = ("guidance",) if config.partial_guidance else ()
        self.frame_entry = plain_conv(3, widths[0], 3)
        self.down = nn.ModuleList(of_label(i, widths[i], widths[i + 1]) for i in range(depth + 1))
        self.middle = nn.ModuleList(of_label(depth + 1, bottom, bottom) for _ in range(config.bottleneck_blocks))
        self.up = nn.ModuleList(
            SpadeBlock(widths[i + 1], widths[i], sources(i, combined=i < config.combine_scales), partial=partial)
            for i in range(depth + 1)
        )
        if config.scratch_blocks:
            self.scratch_entry = plain_conv(labels, bottom, 3)
            self.scratch = nn.ModuleList(of_label(depth + 1, bottom, bottom) for _ in range(config.scratch_blocks))
        self.image_head = plain_conv(widths[0], 3, 3)
        init_normed(self, spectral=config.spectral)
        with torch.no_grad():
            # Begin close to standing still: random motion of many pixels would have to be unlearnt first.
            self.flow_network.head.weight.mul_(0.1)

    @property
    def condition_channels(self) -> int:
        """C: channels of one encoded condition, guidance included."""
        return self._condition_channels

    @property
    def guidance_levels(self) -> int:
        """Levels of guidance that the condition ends with."""
        return self._levels

    @property
    def history_length(self) -> int:
        """N-1."""
        return self.config.history_length

    @property
    def size_multiple(self) -> int:
        """Height and width must be divisible by this."""
        config = self.config
        return 2 ** max(config.frame_downsamples + max(config.scratch_blocks, 1), config.flow_downsamples)

    @property
    def uses_flow(self) -> bool:
        """It predicts flow and warps the previous frame."""
        return True

    @property
    def foreground_channels(self) -> tuple[int, ...]:
        """It has no branch for a foreground."""
        return ()

    def step(self, condition: Tensor, history: History) -> tuple[FrameOutput, History]:
        """Synthesise one frame.

        Args:
            condition: (B, C, H, W), the last channels guidance, if any.
            history: the last N-1 steps.

        Returns:
            The frame with its parts, and the advanced history. Under ``modulate`` the frame is the hallucinated one.

        Raises:
            ShapeError: if the size does not divide, or condition and history do not fit the generator or each other.
        """
        self._check(condition, history)
        past_labels, label = history.conditions[:, :, : self._label_channels], condition[:, : self._label_channels]
        valid = history.valid.view(-1, 1, 1, 1)
        previous, current = self._embedded(past_labels[:, -1], label)
        motion = self.flow_network(
            torch.cat([past_labels.flatten(1, 2), label], dim=1), history.frames.flatten(1, 2), valid
        ).float()
        flow = motion[:, :2] * self.config.flow_scale
        warped = warp_backward(history.frames[:, -1], flow)
        # Without a previous frame everything is unseen.
        occlusion = 1 - valid * (1 - torch.sigmoid(motion[:, 2:]))
        x = self._encoded(history.frames[:, -1], previous, current, label, valid)
        drawn = self._decoded(x, current, self._finest_hints(condition, warped, occlusion, valid))
        frame = drawn
        if self.config.combine == "blend":
            frame = occlusion * drawn + (1 - occlusion) * warped
        return FrameOutput(frame, drawn, warped, flow, occlusion), advance(history, condition, frame)

    def forward(self, condition: Tensor, history: History) -> tuple[FrameOutput, History]:
        """Same as ``step``."""
        return self.step(condition, history)

    def _embedded(self, previous: Tensor, current: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Both labels embedded, all scales, at one go."""
        pairs = [maps.chunk(2) for maps in self.label_embedding(torch.cat([previous, current]))]
        return [a for a, _ in pairs], [b for _, b in pairs]

    def _encoded(
        self, frame: Tensor, previous: list[Tensor], current: list[Tensor], label: Tensor, valid: Tensor
    ) -> Tensor:
        """The bottleneck: the previous frame under its label, or a start from the label where there is none."""
        x = self.frame_entry(frame)
        for i, block in enumerate(self.down):
            x = F.avg_pool2d(x, 3, stride=2, padding=1) if i else x
            x = block(x, {"label": Hint(previous[i])})
        # Before the first frame the norms blow the rounding errors of an empty picture up to noise.
        x = x * valid
        if self.config.scratch_blocks:
            x = x + self._from_scratch(label, current[-1], x.shape[-2:]) * (1 - valid)
        half = self.config.bottleneck_blocks // 2
        for i, block in enumerate(self.middle):
            x = block(x, {"label": Hint(resized((previous if i < half else current)[-1], x.shape[-2:]))})
        return x

    def _from_scratch(self, label: Tensor, embedded: Tensor, size: torch.Size) -> Tensor:
        """The bottleneck of a first frame, from its label."""
        count = self.config.scratch_blocks
        x = self.scratch_entry(resized(label, (size[0] >> count, size[1] >> count)))
        for block in self.scratch:
            x = doubled(block(x, {"label": Hint(resized(embedded, x.shape[-2:]))}))
        return x

    def _finest_hints(
        self, condition: Tensor, warped: Tensor, occlusion: Tensor, valid: Tensor
    ) -> list[dict[str, Hint]]:
        """What the finest blocks see besides labels, finest first."""
        hints: list[dict[str, Hint]] = [{} for _ in range(self.config.combine_scales)]
        if self.config.combine == "modulate":
            embedded = self.flow_embedding(torch.cat([warped, occlusion], dim=1))
            for hint, maps in zip(hints, embedded, strict=False):
                hint["flow"] = Hint(maps, valid)
        if self._levels:
            for scale, hint in enumerate(hints):
                hint["guidance"] = Hint(guidance_at(condition[:, self._label_channels :], scale))
        return hints

    def _decoded(self, x: Tensor, current: list[Tensor], finest: list[dict[str, Hint]]) -> Tensor:
        """The drawn frame, (B, 3, H, W), float32."""
        for i in reversed(range(len(self.up))):
            hints = {"label": Hint(current[i]), **(finest[i] if i < len(finest) else {})}
            x = self.up[i](x, hints)
            x = doubled(x) if i else x
        return torch.tanh(self.image_head(F.leaky_relu(x, SLOPE)).float())

    def _check(self, condition: Tensor, history: History) -> None:
        height, width = condition.shape[-2:]
        if height % self.size_multiple or width % self.size_multiple:
            raise ShapeError(
                f"frames of {height}x{width} do not divide: height and width must be multiples of {self.size_multiple}"
            )
        check_step_inputs(condition, history, self.condition_channels, self.history_length)


def guidance_at(channels: Tensor, scale: int) -> Tensor:
    """Guidance of one scale, exactly as it was rendered where it has a level of its own.

    Args:
        channels: (B, 4 * levels, H, W); level k enlarged to full size by nearest neighbours.
        scale: k. Beyond the coarsest level that one is thinned out further.

    Returns:
        (B, 4, H/2^k, W/2^k).
    """
    level = min(scale, channels.shape[1] // GUIDANCE_CHANNELS - 1)
    own = channels[:, level * GUIDANCE_CHANNELS : (level + 1) * GUIDANCE_CHANNELS]
    return own[..., :: 2**scale, :: 2**scale]


def plain_conv(c_in: int, c_out: int, kernel: int) -> nn.Conv2d:
    """A convolution that keeps the size, of plain weights."""
    return nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2)


def _flow_layer(c_in: int, c_out: int, *, stride: int = 1) -> nn.Sequential:
    """Convolution, norm, activation of the flow network."""
    return nn.Sequential(
        NormedConv2d(c_in, c_out, stride=stride), nn.InstanceNorm2d(c_out, affine=True), nn.LeakyReLU(SLOPE)
    )


def _flow_branch(channels: int) -> nn.Sequential:
    """What a residual block of the flow network adds."""
    return nn.Sequential(
        *_flow_layer(channels, channels), NormedConv2d(channels, channels), nn.InstanceNorm2d(channels, affine=True)
    )


def doubled(x: Tensor) -> Tensor:
    """Twice the size, by nearest neighbours."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def resized(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Another size, by nearest neighbours."""
    return x if tuple(x.shape[-2:]) == tuple(size) else F.interpolate(x, size=tuple(size), mode="nearest")


@torch.no_grad()
def init_normed(module: nn.Module, *, spectral: bool) -> None:
    """Draw all weights, then normalise those of the main convolutions."""
    for part in list(module.modules()):
        if not isinstance(part, nn.Conv2d | nn.Linear):
            continue
        main = isinstance(part, NormedConv2d | NormedLinear)
        if main and not spectral:
            # Embeddings have no norms: only weights of full size carry anything through them.
            nn.init.kaiming_normal_(part.weight, SLOPE)
        else:
            nn.init.xavier_normal_(part.weight, GAIN)
        if part.bias is not None:
            nn.init.zeros_(part.bias)
        if main and spectral:
            spectral_norm(part)
