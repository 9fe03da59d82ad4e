"""Prediction of future label maps: the first half of vid2vid's frame prediction, whose second is the teacher."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from fastv2v.checkpoint import find_checkpoint, load_weights, read_state, weights_file
from fastv2v.config import from_dict
from fastv2v.contracts import FlowEstimator, Losses
from fastv2v.data.clip import Clip
from fastv2v.data.conditions import ConditionSpec
from fastv2v.data.folder import FolderConfig
from fastv2v.errors import CheckpointError, ConfigError, DataError, ShapeError
from fastv2v.losses.flow import masked_l1
from fastv2v.nn.blocks import DownPath, Head, NormKind, UpPath, block_stack, init_gan_weights
from fastv2v.ops.flow import clip_flow
from fastv2v.ops.labels import one_hot
from fastv2v.ops.warp import warp_backward

_SMALLEST = 1e-6
"""Added to probabilities before their logarithm: a class that was ruled out costs 13.8 nats, not infinitely many."""


@dataclass(frozen=True, kw_only=True)
class PredictorConfig:
    """Size and shape of a label predictor."""

    history_length: int = 4
    """Past label maps it looks back on. Two show a velocity; more show which motion is steady."""
    width: int = 64
    """Channels after the entry."""
    num_downsamples: int = 3
    """How often the size is halved before the bottleneck."""
    num_blocks: int = 9
    """Residual blocks from input to output; the encoder gets the larger half, each decoder the smaller."""
    edge_kernel: int = 7
    """Kernel of the full-size convolutions at both ends."""
    norm: NormKind = "batch"
    """Normalisation of all layers."""
    flow_scale: float = 20.0
    """Factor between the flow head and pixels."""
    first_occlusion: float = 0.1
    """Blend weight of an untrained predictor, in (0, 1): at the start it nearly repeats the last map."""

    def __post_init__(self) -> None:
        for name in ("history_length", "width", "num_downsamples"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_blocks < 2:
            raise ConfigError(f"num_blocks must be at least 2 (one on each side), got {self.num_blocks}")
        if self.edge_kernel < 1 or self.edge_kernel % 2 == 0:
            raise ConfigError(f"edge_kernel must be odd, got {self.edge_kernel}")
        if self.norm not in get_args(NormKind):
            raise ConfigError(f"norm is one of {', '.join(get_args(NormKind))}, got {self.norm!r}")
        if not self.flow_scale > 0:
            raise ConfigError(f"flow_scale must be positive, got {self.flow_scale}")
        if not 0 < self.first_occlusion < 1:
            raise ConfigError(f"first_occlusion must lie between 0 and 1, got {self.first_occlusion}")


class LabelPrediction(NamedTuple):
    """One predicted label map with its parts."""

    probabilities: Tensor
    """Of each class, (B, L, H, W), summing to 1 at every pixel."""
    hallucinated: Tensor
    """Probabilities before the blend, (B, L, H, W)."""
    warped: Tensor
    """The previous probabilities moved onto this map, (B, L, H, W)."""
    flow: Tensor
    """From this map to the previous one in pixels, (B, 2, H, W): +x right, +y down."""
    occlusion: Tensor
    """Blend weight in [0, 1], (B, 1, H, W): 1 takes the hallucinated probabilities, 0 the warped ones."""


class LabelPredictor(nn.Module):
    """The composite generator with label maps in place of frames and no condition: hallucinate, warp, blend.

    p_t = m softmax(z_t) + (1 - m) warp(p_(t-1), w), with the occlusion m, the logits z and the flow w all from the past
    maps. A blend of distributions is a distribution, so that predictions can be fed back as they are.

    Args:
        config: size and shape.
        num_classes: L.

    Source:
        The future prediction of Wang et al., "Video-to-Video Synthesis", NeurIPS 2018, which first predicts semantic
        maps; the skeleton is that of ``fastv2v.nn.composite``.
    """

    def __init__(self, config: PredictorConfig, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        width, depth, kernel, norm = config.width, config.num_downsamples, config.edge_kernel, config.norm
        num_decoder = config.num_blocks // 2

        def blocks(count: int) -> nn.Sequential:
            return block_stack("residual", width * 2**depth, count, norm=norm)

        self.encoder = nn.Sequential(
            DownPath(num_classes * config.history_length, width, depth, kernel=kernel, norm=norm),
            blocks(config.num_blocks - num_decoder),
        )
        self.label_decoder = nn.Sequential(blocks(num_decoder), UpPath(width, depth, norm=norm))
        self.label_head = Head(width, num_classes, kernel=kernel)
        self.flow_decoder = nn.Sequential(blocks(num_decoder), UpPath(width, depth, norm=norm))
        self.motion_head = Head(width, 3, kernel=kernel)
        init_gan_weights(self)
        with torch.no_grad():
            # Begin close to repeating the last map, the floor every prediction is compared with.
            self.motion_head.conv.weight.mul_(0.1)
            bias = self.motion_head.conv.bias
            assert bias is not None  # a Head has one
            bias.copy_(torch.tensor([0.0, 0.0, math.log(config.first_occlusion / (1 - config.first_occlusion))]))

    @property
    def history_length(self) -> int:
        """Past maps it looks back on."""
        return self.config.history_length

    @property
    def size_multiple(self) -> int:
        """Height and width must be divisible by this."""
        return 2**self.config.num_downsamples

    def forward(self, past: Tensor) -> LabelPrediction:
        """Predict the next map.

        Args:
            past: class probabilities of the last maps, oldest first, (B, P, L, H, W); see ``class_probabilities``.

        Raises:
            ShapeError: if past maps or classes are not as many as the predictor takes, or the size does not divide or
                is too small for the padding.
        """
        self._check(past)
        bottom = self.encoder(past.flatten(1, 2))
        hallucinated = self.label_head(self.label_decoder(bottom)).float().softmax(dim=1)
        motion = self.motion_head(self.flow_decoder(bottom)).float()
        flow, occlusion = motion[:, :2] * self.config.flow_scale, motion[:, 2:].sigmoid()
        return blend_labels(hallucinated, past[:, -1], flow, occlusion)

    def _check(self, past: Tensor) -> None:
        expected = (self.history_length, self.num_classes)
        if past.ndim != 5 or tuple(past.shape[1:3]) != expected:
            raise ShapeError(
                f"this predictor takes {expected[0]} past maps of {expected[1]} classes, (B, {expected[0]}, "
                f"{expected[1]}, H, W), got {tuple(past.shape)}"
            )
        height, width = past.shape[-2:]
        least = max(2 * self.size_multiple, self.config.edge_kernel // 2 + 1)
        if height % self.size_multiple or width % self.size_multiple or min(height, width) < least:
            raise ShapeError(
                f"label maps of {height}x{width} do not suit: height and width must be multiples of "
                f"{self.size_multiple} and at least {least}"
            )


def blend_labels(hallucinated: Tensor, previous: Tensor, flow: Tensor, occlusion: Tensor) -> LabelPrediction:
    """Move the previous probabilities and mix them with the hallucinated ones.

    Args:
        hallucinated: (B, L, H, W), distributions.
        previous: same shape, distributions.
        flow: from the new map to the previous one, (B, 2, H, W) in pixels.
        occlusion: (B, 1, H, W) in [0, 1].
    """
    warped = warp_backward(previous.float(), flow)
    return LabelPrediction(occlusion * hallucinated + (1 - occlusion) * warped, hallucinated, warped, flow, occlusion)


def class_probabilities(labels: Tensor, num_classes: int) -> Tensor:
    """Label maps as distributions over the classes; where the class is not known, all are equally likely.

    Args:
        labels: ids, (..., H, W); ids outside [0, L) are those a data set ignores.
        num_classes: L.

    Returns:
        (..., L, H, W) float32.
    """
    channels = one_hot(labels, num_classes)
    is_known = _is_known(labels, num_classes).unsqueeze(-3)
    return torch.where(is_known, channels, channels.new_full((), 1 / num_classes))


def predict_labels(predictor: LabelPredictor, past: Tensor, steps: int) -> Iterator[LabelPrediction]:
    """Roll a predictor out from its own, soft, predictions.

    Args:
        predictor: the network.
        past: observed maps as probabilities, (B, P, L, H, W), oldest first; only as many as it looks back on are used.
        steps: maps to predict.

    Yields:
        One prediction after the other.

    Raises:
        DataError: if fewer maps were observed than the predictor looks back on.
    """
    length = predictor.history_length
    if past.shape[1] < length:
        raise DataError(f"this predictor looks back on {length} label maps and only {past.shape[1]} were observed")
    past = past[:, past.shape[1] - length :]
    for _ in range(steps):
        output = predictor(past)
        past = _advance(past, output)
        yield output


def _advance(past: Tensor, output: LabelPrediction) -> Tensor:
    """The past after one more map."""
    return torch.cat([past[:, 1:], output.probabilities.unsqueeze(1)], dim=1)


def _is_known(labels: Tensor, num_classes: int) -> Tensor:
    """Where an id is that of a class."""
    return (labels >= 0) & (labels < num_classes)


def label_cross_entropy(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Mean of -log p(true class) over the pixels that have one.

    Args:
        probabilities: (..., L, H, W), summing to 1.
        labels: ids, (..., H, W); those outside [0, L) are left out.

    Returns:
        Scalar in nats; 0 where no pixel has a class.
    """
    num_classes = probabilities.shape[-3]
    is_known = _is_known(labels, num_classes)
    index = torch.where(is_known, labels, 0).long().unsqueeze(-3)
    surprise = -(probabilities.gather(-3, index).squeeze(-3) + _SMALLEST).log()
    return (surprise * is_known).sum() / is_known.sum().clamp_min(1)


def confusion(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """How often which class was predicted where which is true.

    Args:
        predicted: ids, any shape; those outside [0, L) count as another, always wrong, class.
        labels: true ids, same shape; pixels with an id outside [0, L) are left out.
        num_classes: L.

    Returns:
        Counts (L, L + 1), int64: true class by predicted class, the last column for predictions of no class.

    Raises:
        ShapeError: if the shapes differ.
    """
    if predicted.shape != labels.shape:
        raise ShapeError(f"label maps of {tuple(predicted.shape)} cannot be scored against {tuple(labels.shape)}")
    is_scored = _is_known(labels, num_classes)
    truth, guess = labels[is_scored].long(), predicted[is_scored].long()
    guess = torch.where(_is_known(guess, num_classes), guess, num_classes)
    counts = torch.bincount(truth * (num_classes + 1) + guess, minlength=num_classes * (num_classes + 1))
    return counts.view(num_classes, num_classes + 1)


class LabelScore(NamedTuple):
    """How well label maps were predicted, both in [0, 1]; NaN where no pixel was scored."""

    accuracy: float
    """Share of the pixels with the true class."""
    mean_iou: float
    """Intersection over union, averaged over the classes that occur in truth or prediction."""


def label_score(counts: Tensor) -> LabelScore:
    """Pixel accuracy and mean intersection over union of pooled counts.

    IoU_i = n_ii / (sum_j n_ij + sum_j n_ji - n_ii). Classes that occur nowhere are left out of the mean, not counted
    as 0 or 1.

    Args:
        counts: sum of what ``confusion`` gave, (L, L + 1).
    """
    table = counts.double()
    hits = table[:, :-1].diagonal()
    union = table.sum(1) + table[:, :-1].sum(0) - hits
    return LabelScore(float(hits.sum() / table.sum()), float((hits / union)[union > 0].mean()))


@dataclass(frozen=True, kw_only=True)
class PredictionTaskConfig:
    """Losses and rollouts of a label predictor."""

    cross_entropy: float = 1.0
    """Weight of the cross entropy between predicted probabilities and true labels."""
    flow: float = 0.5
    """Weight of the distance, in pixels, to the reference flow of the real frames, where that is confident."""
    chunk_frames: int = 0
    """Predicted maps between two weight updates; 0 takes the whole clip at once."""
    backprop_frames: int = 2
    """Gradients run back over at most this many predicted maps."""

    def __post_init__(self) -> None:
        if not self.cross_entropy > 0 or self.flow < 0:
            raise ConfigError(
                f"the weight cross_entropy must be positive and flow at least 0, "
                f"got {self.cross_entropy} and {self.flow}"
            )
        if self.chunk_frames < 0 or self.backprop_frames < 1:
            raise ConfigError(
                f"chunk_frames must be at least 0 and backprop_frames at least 1, "
                f"got {self.chunk_frames} and {self.backprop_frames}"
            )


class PredictionTask:
    """Training of a label predictor: it sees the first maps of a clip and predicts the others from its own.

    Args:
        predictor: the network.
        spec: the condition whose label maps are predicted.
        palette: display colours of the classes, (L, 3), for pictures.
        flow: estimator of the reference flow.
        config: losses and rollouts.

    Raises:
        ConfigError: if the condition is no label map or of another number of classes than the predictor or the palette.
    """

    def __init__(
        self,
        predictor: LabelPredictor,
        spec: ConditionSpec,
        palette: Sequence[tuple[int, int, int]],
        flow: FlowEstimator,
        config: PredictionTaskConfig,
    ) -> None:
        check_label_condition(spec)
        if not spec.num_classes == predictor.num_classes == len(palette):
            raise ConfigError(
                f"the condition has {spec.num_classes} classes, the predictor {predictor.num_classes} and the palette "
                f"{len(palette)} colours; all must be equal"
            )
        self.predictor = predictor
        self.spec = spec
        self.config = config
        self.players: Mapping[str, nn.Module] = {"generator": predictor}
        weights = {"cross_entropy": config.cross_entropy, "flow": config.flow}
        self.weights: Mapping[str, Mapping[str, float]] = {"generator": {k: w for k, w in weights.items() if w > 0}}
        self._palette = torch.tensor(palette, dtype=torch.float32) / 127.5 - 1
        self._flow = flow

    def step(self, clip: Clip, rng: torch.Generator, at: int) -> Iterator[Losses]:
        """Losses of the predictor, chunk after chunk; nothing is drawn at random."""
        first, labels = self._observed(clip), _labels(clip)
        uses_flow = self.config.flow > 0
        reference, confidence = clip_flow(self._flow, clip.frames[:, first - 1 :]) if uses_flow else (None, None)
        past = class_probabilities(labels[:, :first], self.spec.num_classes)
        size = self.config.chunk_frames or clip.num_frames - first
        for start in range(first, clip.num_frames, size):
            stop = min(start + size, clip.num_frames)
            made = []
            for t in range(start, stop):
                past = past.detach() if (t - start) % self.config.backprop_frames == 0 else past
                made.append(self.predictor(past))
                past = _advance(past, made[-1])
            past = past.detach()
            probabilities = torch.stack([output.probabilities for output in made], dim=1)
            terms = {"cross_entropy": label_cross_entropy(probabilities, labels[:, start:stop])}
            if reference is not None and confidence is not None:
                flow = torch.stack([output.flow for output in made], dim=1)
                span = slice(start - first, stop - first)
                terms["flow"] = masked_l1(flow, reference[:, span], confidence[:, span])
            yield {"generator": terms}

    def sample(self, clip: Clip) -> Mapping[str, Tensor]:
        """True label maps and, after the observed ones, the predicted ones, in the colours of the classes."""
        labels, predicted = _labels(clip).long(), self._predict(clip)
        observed = labels[:, : self.predictor.history_length]
        return {"real": self._colour(labels), "predicted": self._colour(torch.cat([observed, predicted], dim=1))}

    def evaluate(self, clip: Clip) -> Mapping[str, float]:
        """Pixel accuracy and mean IoU of the predicted maps, and of repeating the last observed one instead.

        The last one's ignored pixels count as wrong where the truth is known.

        Raises:
            DataError: if nothing is left to predict, or nothing that could be scored.
        """
        first, labels = self._observed(clip), _labels(clip)
        truth = labels[:, first:]
        if not _is_known(truth, self.spec.num_classes).any():
            raise DataError("no pixel of the label maps to predict has a class, so that nothing can be scored")
        copied = labels[:, first - 1 : first].expand_as(truth)
        score, floor = (
            label_score(confusion(maps, truth, self.spec.num_classes)) for maps in (self._predict(clip), copied)
        )
        return {
            "accuracy": score.accuracy,
            "mean_iou": score.mean_iou,
            "copy_accuracy": floor.accuracy,
            "copy_mean_iou": floor.mean_iou,
        }

    def _predict(self, clip: Clip) -> Tensor:
        """Ids of the maps after the observed ones, (B, T - P, H, W)."""
        first = self._observed(clip)
        past = class_probabilities(_labels(clip)[:, :first], self.spec.num_classes)
        made = predict_labels(self.predictor, past, clip.num_frames - first)
        return torch.stack([output.probabilities.argmax(dim=1) for output in made], dim=1)

    def _observed(self, clip: Clip) -> int:
        """How many maps are observed, if the clip goes on after them."""
        length = self.predictor.history_length
        if clip.num_frames <= length:
            raise DataError(
                f"a clip of {clip.num_frames} frames leaves nothing to predict after {length} observed ones; use clips "
                f"of at least {length + 1} frames"
            )
        return length

    def _colour(self, labels: Tensor) -> Tensor:
        """(B, T, H, W) ids as (B, T, 3, H, W) in [-1, 1]; ids of no class are black."""
        table = torch.cat([self._palette, torch.full((1, 3), -1.0)]).to(labels.device)
        index = torch.where(_is_known(labels, self.spec.num_classes), labels, self.spec.num_classes)
        return table[index].movedim(-1, 2)


def _labels(clip: Clip) -> Tensor:
    """Label maps of a clip, (B, T, H, W)."""
    if clip.labels is None:
        raise DataError("label maps are predicted and the clip has none")
    return clip.labels


def check_label_condition(spec: ConditionSpec) -> None:
    """Refuse conditions that have no classes to predict.

    Raises:
        ConfigError: if the condition is made of maps.
    """
    if spec.kind != "labels":
        raise ConfigError("label maps are predicted and this condition is made of maps; use a data set with label maps")


@dataclass(frozen=True, kw_only=True)
class PredictorArchitecture:
    """A label predictor and what it was trained on. Written into every checkpoint of one."""

    predictor: PredictorConfig
    """Size and shape."""
    condition: ConditionSpec
    """The condition whose label maps it predicts."""
    palette: tuple[tuple[int, int, int], ...]
    """Display colour of each label class."""
    size: tuple[int, int]
    """(height, width) it was trained at."""
    folder: FolderConfig
    """How its training data were read, and what was held out of them; where they lay is left out."""

    def __post_init__(self) -> None:
        check_label_condition(self.condition)

    def build(self) -> LabelPredictor:
        """The predictor with fresh weights."""
        return LabelPredictor(self.predictor, self.condition.num_classes)


class TrainedPredictor(NamedTuple):
    """A label predictor with its weights."""

    predictor: LabelPredictor
    """In evaluation mode."""
    architecture: PredictorArchitecture
    """What it is made of."""
    checkpoint: Path
    """Where it came from."""
    step: int
    """Training steps behind it."""


def load_predictor(path: Path | str, which: Literal["best", "latest"] = "latest") -> TrainedPredictor:
    """Load a label predictor from a run or a checkpoint folder; averaged weights where they are kept.

    Args:
        path: a run or one checkpoint.
        which: which checkpoint of a run. ``latest``, the default, keeps reported numbers honest: ``best`` was picked by
            its score on held-out clips.

    Raises:
        CheckpointError: if there is none, it is damaged, or it holds no label predictor.
    """
    checkpoint = find_checkpoint(path, which)
    state = read_state(checkpoint)
    described: Mapping[str, object] = state.get("architecture") or {}
    if "predictor" not in described:
        raise CheckpointError(f"{checkpoint} holds no label predictor; give a run of train-predictor")
    try:
        architecture = from_dict(PredictorArchitecture, described)
    except ConfigError as error:
        raise CheckpointError(
            f"{checkpoint}: does not describe a label predictor of this version ({error}); train it again"
        ) from error
    predictor = architecture.build()
    load_weights(predictor, weights_file(checkpoint))
    return TrainedPredictor(predictor.eval(), architecture, checkpoint, int(state["step"]))
