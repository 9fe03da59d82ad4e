"""``train-predictor`` and ``predict``: future label maps, and the teacher's frames drawn from them."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from fastv2v.architecture import Trained, load_trained
from fastv2v.commands.arguments import parse, parse_preset
from fastv2v.commands.parts import (
    check_condition,
    check_held_out,
    check_stage,
    data_of,
    has_test_part,
    held_out_clips,
    num_parameters,
    open_train,
    palette_of,
)
from fastv2v.commands.synthesize import output_name, to_picture
from fastv2v.commands.train import report_fit
from fastv2v.config import to_dict
from fastv2v.data.classes import colourise
from fastv2v.data.clip import Clip
from fastv2v.data.folder import VideoFolder, open_folder
from fastv2v.data.loader import read_sequence
from fastv2v.device import Device, DeviceConfig, open_device
from fastv2v.errors import ConfigError, MediaError
from fastv2v.log import BarProgress, SilentProgress
from fastv2v.ops.flow import DISFlow
from fastv2v.ops.labels import encode_clip
from fastv2v.recipe import UNSET_ROOT
from fastv2v.render import rollout, start_history
from fastv2v.run import open_run, write_bytes, write_json
from fastv2v.score import clip_psnr
from fastv2v.seed import derive_seed, seed_everything
from fastv2v.train import FitResult, fit
from fastv2v.video import write_image, write_video
from teachers.prediction import (
    PredictionTask,
    PredictorArchitecture,
    TrainedPredictor,
    check_label_condition,
    class_probabilities,
    confusion,
    label_score,
    load_predictor,
    predict_labels,
)
from teachers.prediction_presets import PRESETS, PredictorRecipe

_LOG = logging.getLogger(__name__)

_COLUMNS = ("accuracy", "copy_accuracy", "mean_iou", "copy_mean_iou", "psnr", "true_labels_psnr", "copy_psnr")
"""What is known of each step, in the order of the table."""


@dataclass(frozen=True, kw_only=True)
class TrainPredictor:
    """Train a predictor of future label maps."""

    data: Path
    """Data set folder with label maps; the one the teacher was trained on."""
    run: Path
    """Run folder: config, curves, samples, checkpoints. The same command again goes on where it stopped."""
    recipe: PredictorRecipe = field(default_factory=PredictorRecipe)
    """What the preset says, open to change."""
    overwrite: bool = False
    """Delete what the run folder holds and start anew."""
    quiet: bool = False
    """No progress bar."""


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Predict the label maps that follow observed ones, and let a teacher draw them from the observed frames on.

    A teacher that knows instance borders is shown the borders between classes of predicted maps in their place.
    """

    predictor: Path
    """Run or checkpoint of train-predictor."""
    teacher: Path
    """Run or checkpoint of train-teacher, of the same classes and size."""
    data: Path
    """Data set folder; its held-out sequences are predicted, each from its beginning."""
    out: Path
    """Folder for label maps, frames, videos and scores."""
    observed: int = 4
    """Frames that are seen, with their label maps."""
    frames: int = 10
    """Frames that are predicted after them."""
    fps: float = 15.0
    """Rate of the written videos."""
    overwrite: bool = False
    """Replace files of the same names."""
    device: DeviceConfig = field(default_factory=DeviceConfig)
    """Where and in what precision."""

    def __post_init__(self) -> None:
        if self.observed < 1 or self.frames < 1:
            raise ConfigError(f"observed and frames must be at least 1, got {self.observed} and {self.frames}")


def train_predictor(args: TrainPredictor) -> FitResult:
    """Train a predictor as told; resumes a run that is there."""
    recipe, train = args.recipe, args.recipe.train
    device = open_device(recipe.device)
    folder, loader = open_train(recipe.data, args.data, device, train.seed)
    check_label_condition(folder.spec)
    seed_everything(derive_seed(train.seed, "weights"))
    architecture = PredictorArchitecture(
        predictor=recipe.predictor,
        condition=folder.spec,
        palette=palette_of(folder),
        size=next(iter(loader.batches(0))).size,
        folder=replace(recipe.data.folder, root=UNSET_ROOT, phase="train"),
    )
    predictor = architecture.build()
    height, width = architecture.size
    if height % predictor.size_multiple or width % predictor.size_multiple:
        raise ConfigError(
            f"label maps of {height}x{width} do not suit the predictor: height and width must be multiples of "
            f"{predictor.size_multiple}; change --recipe.data.folder.geometry"
        )
    least = predictor.history_length + 1
    if recipe.data.sampling.num_frames < least:
        raise ConfigError(
            f"clips of {recipe.data.sampling.num_frames} frames leave nothing to predict after "
            f"{predictor.history_length} observed ones; raise --recipe.data.sampling.num-frames to at least {least}"
        )
    task = PredictionTask(predictor, folder.spec, architecture.palette, DISFlow(recipe.flow_preset), recipe.task)
    _LOG.info("predictor: %.2f M weights, %d classes", num_parameters(predictor) / 1e6, folder.spec.num_classes)
    clips = held_out_clips(recipe.data, args.data, device)
    check_held_out(clips, least, "hold out longer sequences or raise --recipe.data.eval-frames")
    config: dict[str, Any] = to_dict(args)
    for name in ("overwrite", "quiet"):
        config.pop(name)  # say how this call behaves, not what the run is
    with open_run(args.run, config, overwrite=args.overwrite, is_main=device.is_main) as run:
        return fit(
            task,
            loader.batches,
            run,
            train,
            device,
            sample_clip=clips[0] if clips else None,
            eval_clips=clips,
            progress=SilentProgress() if args.quiet or not device.is_main else BarProgress(args.run.name),
            architecture=to_dict(architecture),
        )


class Prediction(NamedTuple):
    """The future of one sequence; n predicted steps."""

    labels: Tensor
    """Predicted ids, (1, n, H, W)."""
    frames: Tensor
    """What the teacher drew from them, (1, n, 3, H, W) in [-1, 1]."""
    true_labels_frames: Tensor
    """What it drew from the true label maps instead: the share of an error that is the teacher's own."""


@torch.no_grad()
def predict_clip(
    predictor: TrainedPredictor, teacher: Trained, clip: Clip, observed: int, device: Device
) -> Prediction:
    """Predict what follows the first frames of a clip.

    Args:
        predictor: predicts the label maps, from its own predictions.
        teacher: draws them, from its own frames, the observed ones as its history.
        clip: B = 1, with the frames to predict, on the device; what follows the observed frames is only scored.
        observed: frames that are seen.
        device: where, in what precision.
    """
    assert clip.labels is not None  # the data set of a label condition
    spec, steps = teacher.architecture.condition, clip.num_frames - observed
    with device.autocast():
        past = class_probabilities(clip.labels[:, :observed], spec.num_classes)
        made = predict_labels(predictor.predictor, past, steps)
        labels = torch.stack([output.probabilities.argmax(dim=1) for output in made], dim=1)
        true = encode_clip(spec, clip)
        history = start_history(true[:, :observed], clip.frames[:, :observed], teacher.generator.history_length)
        future = clip.take(observed, clip.num_frames)
        # Instances are not predicted. Where classes meet, instances do, so these borders are the ones that are known.
        guessed = encode_clip(spec, replace(future, labels=labels, instances=labels if spec.use_instances else None))
        frames, upper = (
            torch.stack([output.frame.float() for output in rollout(teacher.generator, conditions, history)], dim=1)
            for conditions in (guessed, true[:, observed:])
        )
    return Prediction(labels, frames, upper)


class Tally:
    """Scores of all sequences by the number of the predicted step.

    Label maps are counted over all sequences together, PSNR is averaged over them.
    """

    def __init__(self, num_classes: int, steps: int) -> None:
        self._num_classes = num_classes
        shape = (steps, num_classes, num_classes + 1)
        self._counts = {name: torch.zeros(shape, dtype=torch.int64) for name in ("", "copy_")}
        self._psnr: dict[str, list[list[float]]] = {name: [] for name in ("psnr", "true_labels_psnr", "copy_psnr")}

    def add(self, made: Prediction, clip: Clip, observed: int) -> None:
        """Take in one sequence."""
        assert clip.labels is not None
        truth, real = clip.labels[:, observed:], clip.frames[:, observed:]
        last_map, last_frame = clip.labels[:, observed - 1], clip.frames[:, observed - 1 : observed]
        steps = range(truth.shape[1])
        for t in steps:
            for name, maps in (("", made.labels[:, t]), ("copy_", last_map)):
                self._counts[name][t] += confusion(maps, truth[:, t], self._num_classes).cpu()
        drawn = {"psnr": made.frames, "true_labels_psnr": made.true_labels_frames, "copy_psnr": last_frame}
        for name, frames in drawn.items():
            frames = frames.expand_as(real)
            self._psnr[name].append([clip_psnr(frames[:, t : t + 1], real[:, t : t + 1]) for t in steps])

    def rows(self) -> list[dict[str, float]]:
        """``_COLUMNS`` of each step: PSNR in dB, the others in [0, 1] and NaN where no true pixel has a class."""
        psnr = {name: np.mean(values, axis=0) for name, values in self._psnr.items()}
        rows = []
        for t in range(len(next(iter(psnr.values())))):
            row = {name: float(values[t]) for name, values in psnr.items()}
            for name, counts in self._counts.items():
                score = label_score(counts[t])
                row |= {f"{name}accuracy": score.accuracy, f"{name}mean_iou": score.mean_iou}
            rows.append({name: row[name] for name in _COLUMNS})
        return rows


def open_future(args: Predict, predictor: TrainedPredictor, teacher: Trained) -> VideoFolder:
    """The held-out sequences, read as the teacher's run did and free of frames that either network learnt from.

    Raises:
        ConfigError: if predictor, teacher, data set and the number of frames do not go together.
    """
    ours, theirs = predictor.architecture, teacher.architecture
    check_stage(teacher, ("teacher",), "the teacher", "a run of train-teacher")
    check_label_condition(theirs.condition)
    if ours.condition.class_names != theirs.condition.class_names:
        raise ConfigError(
            f"the predictor {args.predictor} knows {_listed(ours.condition.class_names)} and the teacher "
            f"{args.teacher} {_listed(theirs.condition.class_names)}; train both on one data set"
        )
    if ours.size != theirs.size:
        sizes = ["{}x{}".format(*size) for size in (ours.size, theirs.size)]
        raise ConfigError(
            f"the predictor {args.predictor} was trained at {sizes[0]} and the teacher {args.teacher} at {sizes[1]}; "
            "motion in pixels depends on the size: train both at one"
        )
    if args.observed < predictor.predictor.history_length:
        raise ConfigError(
            f"the predictor {args.predictor} looks back on {predictor.predictor.history_length} label maps; raise "
            f"--observed, now {args.observed}"
        )
    config = data_of(theirs, args.data, "test")
    if not has_test_part(config) and ours.folder.test_tail < theirs.folder.test_tail:
        if not ours.folder.test_tail:
            raise ConfigError(
                f"{args.data} has no test folders and the predictor was trained on every frame (test_tail 0); train it "
                "with --recipe.data.folder.test-tail N"
            )
        config = replace(config, test_tail=ours.folder.test_tail)
    folder = open_folder(config)
    check_condition(theirs, folder, str(args.teacher))
    needed = args.observed + args.frames
    for sequence in folder.sequences:
        if len(sequence) < needed:
            raise ConfigError(
                f"sequence '{sequence.name}' has {len(sequence)} held-out frames and {args.observed} observed with "
                f"{args.frames} predicted ones are {needed}; lower --frames or hold out longer sequences"
            )
    return folder


def check_outputs(args: Predict, folder: VideoFolder) -> None:
    """Refuse to replace what is there.

    Raises:
        ConfigError: if an output exists and may not be replaced.
    """
    made = [args.out / "scores.json"]
    for sequence in folder.sequences:
        name = output_name(folder, sequence)
        made += [args.out / name, args.out / f"{name}.mp4"]
    if not args.overwrite and (there := next((path for path in made if path.exists()), None)):
        raise ConfigError(f"{there} exists already; name another folder with --out or pass --overwrite")


def write_prediction(
    args: Predict, name: str, folder: VideoFolder, clip: Clip, made: Prediction, stems: tuple[str, ...]
) -> None:
    """Write predicted label maps, their colours and frames, and a video of real beside predicted."""
    assert clip.labels is not None
    truth, labels = clip.labels[0].cpu().numpy(), made.labels[0].cpu().numpy()
    real = [to_picture(frame) for frame in clip.frames.unbind(1)]
    drawn = [to_picture(frame) for frame in made.frames.unbind(1)]
    for stem, ids, frame in zip(stems, labels, drawn, strict=True):
        write_label(args.out / name / "labels" / f"{stem}.png", ids, folder.spec.num_classes)
        write_image(args.out / name / "colours" / f"{stem}.png", colourise(ids, folder.palette))
        write_image(args.out / name / "frames" / f"{stem}.png", frame, synthetic=True)
    shown = [*real[: args.observed], *drawn]
    maps = np.concatenate([truth[: args.observed].astype(np.int64), labels])
    pictures = (
        np.vstack([np.hstack([a, b]), np.hstack([colourise(c, folder.palette), colourise(d, folder.palette)])])
        for a, b, c, d in zip(real, shown, truth, maps, strict=True)
    )
    write_video(args.out / f"{name}.mp4", pictures, args.fps)


def write_label(path: Path, labels: NDArray[np.integer[Any]], num_classes: int) -> None:
    """Write a label map (H, W) as a single-channel PNG, 8-bit where all ids fit, else 16-bit.

    Raises:
        MediaError: if it cannot be encoded.
    """
    is_done, data = cv2.imencode(".png", labels.astype(np.uint8 if num_classes <= 256 else np.uint16))
    if not is_done:
        raise MediaError(f"{path}: a label map of shape {labels.shape} could not be encoded")
    write_bytes(path, data.tobytes())


def table(rows: list[dict[str, float]]) -> str:
    """Scores for people: a line for each step, predictions beside the floors."""
    lines = [
        "      pixel accuracy      mean IoU          PSNR (dB)",
        "step  predicted   copy    predicted  copy   predicted  true labels  copy",
    ]
    for step, row in enumerate(rows, start=1):
        lines.append(
            f"{step:>4}  {row['accuracy']:>9.4f} {row['copy_accuracy']:>7.4f}  {row['mean_iou']:>9.4f} "
            f"{row['copy_mean_iou']:>7.4f}  {row['psnr']:>8.2f} {row['true_labels_psnr']:>11.2f} "
            f"{row['copy_psnr']:>8.2f}"
        )
    return "\n".join(lines)


def _plain(row: Mapping[str, float]) -> dict[str, float | None]:
    """Rounded numbers for JSON, which has no NaN."""
    return {name: None if math.isnan(value) else round(value, 4) for name, value in row.items()}


def _mean(values: list[float]) -> float:
    """Mean of the numbers among them, NaN where there is none."""
    numbers = [value for value in values if not math.isnan(value)]
    return sum(numbers) / len(numbers) if numbers else math.nan


def _listed(names: tuple[str, ...]) -> str:
    """Classes, short enough for a sentence."""
    return f"{len(names)} classes ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"


def main_train(argv: list[str]) -> int:
    """``fastv2v train-predictor PRESET --data DIR --run DIR ...``."""
    args = parse_preset(
        "fastv2v train-predictor",
        TrainPredictor.__doc__ or "",
        {
            name: (make.__doc__ or "", TrainPredictor(data=tyro.MISSING, run=tyro.MISSING, recipe=make()))
            for name, make in PRESETS.items()
        },
        argv,
    )
    return report_fit(args.run, train_predictor(args))


def main(argv: list[str]) -> int:
    """``fastv2v predict --predictor RUN --teacher RUN --data DIR --out DIR``."""
    args = parse(Predict, "fastv2v predict", argv)
    device = open_device(args.device)
    predictor, teacher = load_predictor(args.predictor), load_trained(args.teacher)
    folder = open_future(args, predictor, teacher)
    check_outputs(args, folder)
    spec = teacher.architecture.condition
    if spec.use_instances:
        _LOG.warning("instances are not predicted: the teacher gets borders between classes in place of theirs")
    predictor.predictor.to(device.device)
    teacher.generator.to(device.device)
    tally, written = Tally(spec.num_classes, args.frames), []
    for i, sequence in enumerate(tqdm(folder.sequences, unit="sequence", desc="predict")):
        clip = read_sequence(folder, i, 0, args.observed + args.frames).to(device.device)
        made = predict_clip(predictor, teacher, clip, args.observed, device)
        tally.add(made, clip, args.observed)
        stems = sequence.stems[args.observed : args.observed + args.frames]
        write_prediction(args, output_name(folder, sequence), folder, clip, made, stems)
        written.append(output_name(folder, sequence))
    rows = tally.rows()
    result: Mapping[str, Any] = {
        "out": str(args.out),
        "sequences": written,
        "observed": args.observed,
        "predictor": str(predictor.checkpoint),
        "teacher": str(teacher.checkpoint),
        "borders": "between classes" if spec.use_instances else None,
        "steps": [_plain(row) for row in rows],
        "mean": _plain({name: _mean([row[name] for row in rows]) for name in _COLUMNS}),
    }
    write_json(args.out / "scores.json", result)
    print(f"{args.out}: {args.frames} frames after {args.observed} observed ones in {len(written)} sequences")
    print(table(rows))
    print(json.dumps(result))
    return 0
