"""Weights handed down: a narrower or shallower generator takes the most important channels of a wider one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from fastv2v.errors import ConfigError
from fastv2v.nn.composite import CompositeConfig, CompositeGenerator
from fastv2v.nn.generators import VideoConfig, VideoGenerator
from fastv2v.nn.slim import SlimDecoder, SlimGenerator
from fastv2v.nn.spade import SpadeGenerator

Selection = Mapping[str, Tensor]
"""Channels that are kept of each group, (kept,) of int64."""
Cuts = Mapping[str, Sequence[int | Tensor]]
"""For tensors by name what is kept along each leading dimension: so many entries from the first on, or those listed."""

_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
_MAY_DIFFER: Mapping[type[nn.Module], tuple[str, ...]] = {
    SlimGenerator: ("widths", "depths", "up_depths", "embedding", "refine_width"),
    CompositeGenerator: ("width", "num_blocks", "input_scale", "input_antialias", "skips"),
}
"""What may differ between two generators of one kind; everything else must be equal for weights to fit."""


class Span(NamedTuple):
    """Neighbouring entries along one dimension of a weight."""

    group: str | None
    """The channels they belong to; None where they belong to none, as pictures and conditions do."""
    entries: int
    """Entries for each channel of the group (4 in front of a pixel shuffle); all of them where there is no group."""


Axis = tuple[Span, ...]
"""What the entries along one dimension of a weight stand for, in order."""


class _Link(NamedTuple):
    """A convolution: what it reads, what it writes, the norm behind it."""

    name: str
    reads: Axis | None  # None for a depth-wise filter, which reads what it writes
    writes: Axis
    transposed: bool
    norm: str | None


class ChannelPlan:
    """Which dimension of which weight belongs to which group of channels.

    Channels that are added to each other (residual streams, skips, the encoders' sum) form one group, since they can
    only be kept or dropped together; those between the convolutions of a block form one of their own.

    Args:
        generator: of one scale.
        like: group the channels of a composite generator as this one's skips ask for; by default as its own do.

    Raises:
        ConfigError: if it has several scales, or is made of SPADE blocks.
    """

    def __init__(self, generator: VideoGenerator, like: VideoGenerator | None = None) -> None:
        self.sizes: dict[str, int] = {}
        """Channels of every group."""
        self.axes: dict[str, tuple[Axis, ...]] = {}
        """Leading dimensions of every tensor of the state dict that has channels; further dimensions stay whole."""
        self._links: list[_Link] = []
        if isinstance(generator, SlimGenerator):
            self._follow_slim(generator)
        elif isinstance(generator, CompositeGenerator):
            self._follow_composite(generator, (like or generator).config)
        elif isinstance(generator, SpadeGenerator):
            raise ConfigError(
                "a SPADE generator hands no weights down: its layers are like no student's; leave --inherit out"
            )
        else:
            raise ConfigError(
                f"a generator of {generator.config.num_scales} scales hands no weights down; inherit from one of a "
                "single scale"
            )

    def importance(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """How much every channel matters.

        A channel counts as much as the filters that write it, times the scale that batch norm gives it, times the
        filters that read it; filters count by their L1 norm, divided by the layer's mean so that layers count alike.

        Args:
            state: of the generator the plan was made for.

        Returns:
            For every group one number for each channel, (channels,).

        Source:
            Scales of batch norm: Liu et al., "Learning Efficient Convolutional Networks through Network Slimming",
            ICCV 2017. L1 norm of filters: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017.
        """
        written: dict[str, list[Tensor]] = {group: [] for group in self.sizes}
        read: dict[str, list[Tensor]] = {group: [] for group in self.sizes}
        for link in self._links:
            weight = state[f"{link.name}.weight"].detach().abs().double()
            weight = weight.transpose(0, 1) if link.transposed else weight
            scale = state.get(f"{link.norm}.weight") if link.norm is not None else None
            for group, norms in self._per_channel(link.writes, weight.flatten(1).sum(1)):
                written[group].append(norms if scale is None else norms * scale.detach().abs())
            if link.reads is not None:
                for group, norms in self._per_channel(link.reads, weight.transpose(0, 1).flatten(1).sum(1)):
                    read[group].append(norms)
        return {group: _mean_share(written[group]) * _mean_share(read[group]) for group in self.sizes}

    def _per_channel(self, axis: Axis, values: Tensor) -> list[tuple[str, Tensor]]:
        """Sums over the entries of each channel, for every group on an axis."""
        spans = values.split([self._length(span) for span in axis])
        return [
            (span.group, part.unflatten(0, (-1, span.entries)).sum(1))
            for span, part in zip(axis, spans, strict=True)
            if span.group is not None
        ]

    def _length(self, span: Span) -> int:
        return span.entries if span.group is None else self.sizes[span.group] * span.entries

    def cuts(self, names: Iterable[str], chosen: Selection) -> Cuts:
        """Where to cut tensors as wide as the plan, so that the chosen channels are left.

        Args:
            names: of the tensors.
            chosen: channels of every group that occurs in them.
        """
        return {name: [self._kept(axis, chosen) for axis in self.axes.get(name, ())] for name in names}

    def _kept(self, axis: Axis, chosen: Selection) -> int | Tensor:
        """The entries that are kept along one dimension: so many leading ones, or these."""
        index, start = [], 0
        for span in axis:
            if span.group is None:
                index.append(torch.arange(span.entries) + start)
            else:
                index.append(
                    (chosen[span.group][:, None] * span.entries + torch.arange(span.entries)).flatten() + start
                )
            start += self._length(span)
        kept = torch.cat(index)
        return len(kept) if torch.equal(kept, torch.arange(len(kept))) else kept

    def _follow_slim(self, generator: SlimGenerator) -> None:
        """Groups: the embedding, one for each size, the inner channels of blocks and of the finishing stage."""
        config, c = generator.config, generator.condition_channels
        patch = config.input_scale**2
        levels: list[Axis] = [(Span(f"level {i}", 1),) for i in range(len(config.widths))]
        embedding: Axis = (Span("embedding", 1),)
        self._row("embed", generator.embed, (Span(None, c),), embedding)
        averaged = c * (config.history_length + 1) + 3 * (config.history_length - 1)
        shown = len(generator.shown_channels)
        entering = (Span(None, averaged), Span("embedding", patch), Span(None, (3 + shown) * patch + 1))
        encoder = generator.encoder
        self._row("encoder.entry", encoder.entry, entering, levels[0])
        for i, (blocks, down) in enumerate(zip(encoder.levels, encoder.downs, strict=True)):
            self._stack(f"encoder.levels.{i}", blocks, levels[i])
            self._row(f"encoder.downs.{i}", down, levels[i], levels[i + 1])
        self._stack("bottom", generator.bottom, levels[-1])
        decoders: dict[str, SlimDecoder | None] = {"decoder": generator.decoder}
        if config.use_flow:
            decoders["motion_decoder"] = generator.motion_decoder
            self._row("flow_head", generator.flow_head, levels[0], (Span(None, 2),))
        for name, decoder in decoders.items():
            if decoder is not None:
                for i, (blocks, up) in enumerate(zip(decoder.levels, decoder.ups, strict=True)):
                    self._row(f"{name}.ups.{i}", up, levels[i + 1], levels[i])
                    self._stack(f"{name}.levels.{i}", blocks, levels[i])
        self._row("head", generator.head, levels[0], (Span(None, generator.head.out_channels),))
        if config.refine_width:
            shown_span: Axis = (Span(None, shown),) if shown else ()
            self._row("refine", generator.refine, (Span(None, 6), *embedding, *shown_span), (Span(None, 3),))

    def _follow_composite(self, generator: CompositeGenerator, grouped: VideoConfig) -> None:
        """Groups: the bottom, which both encoders and all decoders share; each size of each path; inner channels.

        With skips the paths share a group for each size, also where a reduced entry leaves a size without its partner.
        """
        config, c = generator.config, generator.condition_channels
        bottom: Axis = (Span("bottom", 1),)
        tie = "level" if isinstance(grouped, CompositeConfig) and grouped.skips else None
        conditions: Axis = (Span(None, c * (config.history_length + 1)),)
        entering = {"condition_encoder": conditions, "frame_encoder": (Span(None, 3 * config.history_length),)}
        for name, reads in entering.items():
            self._path(f"{name}.0", generator, reads, [*_sizes(f"{name}.0", config.num_downsamples, tie), bottom])
            self._stack(f"{name}.1", generator.get_submodule(f"{name}.1"), bottom)
        heads = {"image": "image_head", **({"flow": "motion_head"} if config.use_flow else {})}
        for name, head in heads.items():
            self._stack(f"{name}_decoder.0", generator.get_submodule(f"{name}_decoder.0"), bottom)
            sizes = _sizes(f"{name}_decoder.1", config.num_downsamples, tie)
            self._path(f"{name}_decoder.1", generator, bottom, sizes[::-1])
            self._row(head, generator.get_submodule(head), sizes[0], (Span(None, 3),))
        if generator.foreground_channels:
            name, own, tie = "foreground_branch", (Span("foreground bottom", 1),), tie and "foreground level"
            self._path(f"{name}.0", generator, conditions, [*_sizes(f"{name}.0", config.num_downsamples, tie), own])
            self._stack(f"{name}.1", generator.get_submodule(f"{name}.1"), own)
            sizes = _sizes(f"{name}.2", config.num_downsamples, tie)
            self._path(f"{name}.2", generator, own, sizes[::-1])
            self._row("foreground_head", generator.foreground_head, sizes[0], (Span(None, 3),))

    def _path(self, name: str, generator: nn.Module, reads: Axis, writes: Sequence[Axis]) -> None:
        """Rows behind each other, and what each of them writes."""
        for i, (row, written) in enumerate(zip(generator.get_submodule(name).children(), writes, strict=True)):
            self._row(f"{name}.{i}", row, reads, written)
            reads = written

    def _stack(self, name: str, blocks: nn.Module, stream: Axis) -> None:
        """Blocks that each add to one stream of channels."""
        for i, block in enumerate(blocks.children()):
            self._row(f"{name}.{i}", block, stream, stream)

    def _row(self, name: str, module: nn.Module, reads: Axis, writes: Axis) -> None:
        """Convolutions behind each other with their norms; what lies between two of them is a group of its own."""
        parts = [
            (f"{name}.{inner}" if inner else name, part)
            for inner, part in module.named_modules()
            if isinstance(part, (*_CONVOLUTIONS, _NormBase, nn.PixelShuffle))
        ]
        mixing = [part for _, part in parts if isinstance(part, _CONVOLUTIONS) and part.groups == 1]
        shuffled = any(isinstance(part, nn.PixelShuffle) for _, part in parts)
        current = reads
        for at, (path, part) in enumerate(parts):
            if isinstance(part, _CONVOLUTIONS):
                written = current
                if part.groups == 1:
                    written = writes if part is mixing[-1] else (Span(path, 1),)
                    if part is mixing[-1] and shuffled:
                        written = tuple(Span(span.group, 4 * span.entries) for span in writes)
                self._note_sizes(written, part.out_channels)
                norm = next((p for p, later in parts[at + 1 :] if isinstance(later, _NormBase)), None)
                transposed = isinstance(part, nn.ConvTranspose2d)
                # A depth-wise filter has one input: nothing to choose from there.
                both = (written,) if part.groups > 1 else (current, written) if transposed else (written, current)
                self.axes[f"{path}.weight"] = both
                if part.bias is not None:
                    self.axes[f"{path}.bias"] = (written,)
                self._links.append(_Link(path, current if part.groups == 1 else None, written, transposed, norm))
                current = written
            elif isinstance(part, nn.PixelShuffle):
                current = writes
            else:
                for own, value in part.state_dict().items():
                    if value.ndim:
                        self.axes[f"{path}.{own}"] = (current,)

    def _note_sizes(self, axis: Axis, length: int) -> None:
        """Learn the size of a group from a convolution that writes it and nothing else."""
        for span in axis:
            if span.group is not None:
                self.sizes[span.group] = length // span.entries


def _sizes(name: str, count: int, tie: str | None) -> list[Axis]:
    """The groups of a path, finest first: its own, or those of a tie."""
    return [(Span(f"{tie or name} {i}", 1),) for i in range(count)]


def _mean_share(norms: list[Tensor]) -> Tensor:
    """Mean over layers of what each layer gives a channel, relative to the layer's mean."""
    return torch.stack([values / values.mean().clamp_min(1e-12) for values in norms]).mean(0)


def cut(state: Mapping[str, Tensor], cuts: Cuts) -> dict[str, Tensor]:
    """Tensors with the kept entries only; gradients flow back into the whole ones.

    Args:
        state: tensors by name.
        cuts: from ``ChannelPlan.cuts``; tensors that it does not name are left out.

    Returns:
        Views where leading entries are kept along every dimension, else copies.
    """
    made = {}
    for name, dims in cuts.items():
        tensor = state[name]
        for dim, kept in enumerate(dims):
            if isinstance(kept, int):
                tensor = tensor.narrow(dim, 0, kept)
            else:
                tensor = tensor.index_select(dim, kept.to(tensor.device))
        made[name] = tensor
    return made


def leading(sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """The first channels of every group."""
    return {group: torch.arange(size) for group, size in sizes.items()}


@torch.no_grad()
def inherit_weights(
    student: VideoGenerator, source: VideoGenerator, *, choose: Literal["importance", "leading"] = "importance"
) -> None:
    """Start a student from a wider or deeper generator of its kind.

    Of every group the most important channels are taken, in their old order, of every stack of blocks the first ones.
    Running statistics come along. At equal width and depth the student becomes the source.

    Args:
        student: overwritten in place.
        source: a slim generator for a slim student, a composite one for a composite student.
        choose: ``importance`` ranks channels by ``ChannelPlan.importance``; ``leading`` takes the first ones.

    Raises:
        ConfigError: if the two do not correspond, or the student is wider or deeper somewhere.
    """
    check_heir(student, source)
    plan, state, sizes = ChannelPlan(source), source.state_dict(), ChannelPlan(student, source).sizes
    chosen = leading(sizes)
    if choose == "importance":
        order = {
            group: values.argsort(descending=True, stable=True) for group, values in plan.importance(state).items()
        }
        chosen = {group: order[group][:size].sort().values for group, size in sizes.items()}
    student.load_state_dict(cut(state, plan.cuts(student.state_dict(), chosen)))


@torch.no_grad()
def order_channels(generator: VideoGenerator) -> None:
    """Put the channels of every group in order, the most important first; the function stays the same.

    A super-network of which sub-networks take the leading channels then begins with the best ones.

    Args:
        generator: of one scale; changed in place.

    Raises:
        ConfigError: if it has several scales.

    Source:
        Sorting channels before the width becomes elastic: Cai et al., "Once-for-All", ICLR 2020.
    """
    plan, state = ChannelPlan(generator), generator.state_dict()
    chosen = {group: values.argsort(descending=True, stable=True) for group, values in plan.importance(state).items()}
    generator.load_state_dict({**state, **cut(state, plan.cuts(state, chosen))})


def check_heir(student: VideoGenerator, source: VideoGenerator) -> None:
    """Refuse a student that cannot inherit from a source.

    Raises:
        ConfigError: naming the first thing in which they do not correspond.
    """
    kinds = {True: "slim", False: "composite"}
    ours, theirs = isinstance(student, SlimGenerator), isinstance(source, SlimGenerator)
    if ours != theirs:
        raise ConfigError(
            f"a {kinds[ours]} student cannot inherit from a {kinds[theirs]} generator: their layers do not "
            f"correspond; inherit from a run of a {kinds[ours]} one"
        )
    wide, narrow = ChannelPlan(source).sizes, ChannelPlan(student, source).sizes
    if student.condition_channels != source.condition_channels:
        raise ConfigError(
            f"the student's condition has {student.condition_channels} channels and its source's "
            f"{source.condition_channels}; inherit from a run on the same classes"
        )
    if student.foreground_channels != source.foreground_channels:
        raise ConfigError(
            f"student and source must share their foreground, got the channels {student.foreground_channels} and "
            f"{source.foreground_channels}"
        )
    free = _MAY_DIFFER[type(source)]
    for name in (f.name for f in fields(source.config) if f.name not in free):
        if getattr(student.config, name) != getattr(source.config, name):
            raise ConfigError(
                f"{name} is {getattr(student.config, name)} in the student and {getattr(source.config, name)} in its "
                f"source, so that their weights do not fit; the two may differ in {', '.join(free)}"
            )
    if len(getattr(student.config, "widths", ())) < len(getattr(source.config, "widths", ())):
        raise ConfigError("the student has fewer sizes than its source; inherit from a generator with as many widths")
    there = source.state_dict()
    if extra := [name for name in student.state_dict() if name not in there]:
        raise ConfigError(
            f"the student has layers that its source lacks ({extra[0]} is the first); inherit from a generator with as "
            "many sizes and at least as many blocks"
        )
    if wider := [group for group, size in narrow.items() if size > wide[group]]:
        raise ConfigError(
            f"the student is wider than its source: {narrow[wider[0]]} channels in '{wider[0]}' against "
            f"{wide[wider[0]]}; inherit from a wider generator"
        )
