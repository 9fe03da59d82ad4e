"""``fastv2v search``: the best student that a budget buys, found in a super-network and fine-tuned."""

from __future__ import annotations

import itertools
import json
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
import torch
import tyro
from tqdm import tqdm

from benchmarks.front import Point, draw_front
from benchmarks.results import format_table
from distill import presets as distill_presets
from distill.cache import TaughtFrames, weights_sha256
from distill.journal import Journal
from distill.presets import SpatialRecipe
from distill.search import Budget, Candidate, LatencyBudget, MacBudget, SearchConfig, pareto_front, search
from distill.spatial import SpatialConfig, SpatialTask
from distill.supernet import KeyClip, SuperTask, extract, judge, recalibrate
from distill.teacher import LiveTeacher
from distill.temporal import TemporalConfig, TemporalTask
from export.engines import Candidate as EngineChoice
from export.engines import open_engine
from export.onnx_graph import export_step
from fastv2v.architecture import Architecture, Trained, architecture_dict, load_trained
from fastv2v.checkpoint import find_checkpoint, load_weights, read_state, weights_file
from fastv2v.commands.arguments import parse_preset
from fastv2v.commands.parts import (
    build_objective,
    check_condition,
    check_flow,
    check_size,
    check_stage,
    continue_discriminators,
    data_of,
    num_parameters,
    palette_of,
)
from fastv2v.commands.train import TrainSpatial, train_spatial
from fastv2v.config import to_dict
from fastv2v.data.clip import Clip
from fastv2v.data.folder import VideoFolder, open_folder
from fastv2v.data.loader import ClipLoader, read_sequence
from fastv2v.device import Device, DeviceConfig, open_device
from fastv2v.errors import ConfigError, DataError
from fastv2v.log import BarProgress, Progress, SilentProgress
from fastv2v.measure.latency import measure_latency
from fastv2v.nn.slim import SlimConfig, SlimGenerator
from fastv2v.ops.labels import encode_clip, guidance_points
from fastv2v.recipe import UNSET_ROOT, DataRecipe, HelperRecipe
from fastv2v.render import cut
from fastv2v.run import open_run, write_bytes
from fastv2v.seed import derive_seed, seed_everything
from fastv2v.train import FitResult, TrainConfig, fit
from students import presets as student_presets
from students.inherit import inherit_weights, order_channels
from students.schedule import GapConfig, draw_gap
from students.space import SearchSpace, describe_student, slim_macs
from teachers import presets as teacher_presets

_LOG = logging.getLogger(__name__)

CANDIDATES: Final = "candidates.json"
FRONT: Final = "pareto.svg"
SUPER, FOUND, STUDENT = "super", "found", "student"


@dataclass(frozen=True, kw_only=True)
class SearchRecipe:
    """Everything that decides what the super-network and the student learn."""

    data: DataRecipe = field(default_factory=DataRecipe)
    """Data set and clips."""
    clip_frames: int = 17
    """Frames of a clip the super-network learns from; half of them at every frame, the others at keyframes only."""
    task: TemporalConfig = field(default_factory=TemporalConfig)
    """Distillation terms, losses, discriminators and rollouts of the super-network. Its gaps follow --gap."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """How long and how fast the super-network learns, and how often to look."""
    finetune: SpatialConfig = field(default_factory=SpatialConfig)
    """Distillation terms, losses and rollouts of the student that was found."""
    finetune_train: TrainConfig = field(default_factory=TrainConfig)
    """How long and how fast it learns on."""
    helpers: HelperRecipe = field(default_factory=HelperRecipe)
    """Perceptual network and reference flow."""
    device: DeviceConfig = field(default_factory=DeviceConfig)
    """Where and in what precision."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """Find the best student within a budget per keyframe, and fine-tune it by spatial distillation.

    RUN/super is trained once for all students, RUN/found is the best of them as it was found, RUN/student the same
    after fine-tuning: an ordinary run for train-tkd, export and synthesize. The same command again goes on where it
    stopped. Students are chosen by held-out clips of the training part; the test part is not looked at for it.
    """

    data: Path
    """Data set folder; the one the teacher was trained on."""
    teacher: Path
    """Run or checkpoint of the teacher."""
    run: Path
    """Folder of the search."""
    budget_gmacs: float | None = None
    """Most multiply-adds of one keyframe at the size of the data, in 10⁹."""
    budget_ms: float | None = None
    """In its place the longest time of one keyframe: the median over repeats on this machine, in --engine."""
    engine: Literal["onnxruntime", "openvino"] = "onnxruntime"
    """What keyframes are timed in."""
    precision: Literal["f32", "bf16"] = "f32"
    """Number format of the engine; bf16 is OpenVINO's."""
    threads: int | None = None
    """CPU threads of the engine; all by default."""
    repeats: int = 30
    """Timed keyframes of each student."""
    gap: int = 4
    """Distance of two keyframes in deployment; students are judged by it."""
    taught: Path | None = None
    """What ``fastv2v precompute`` made of the teacher, read in its place while networks are trained."""
    init: Path | None = None
    """Run of the largest student that the super-network starts from, its channels put in order of importance first."""
    super_run: Path | None = None
    """RUN/super of an earlier search on the same data and space, taken as it is: only the budget is another."""
    super_minutes: float | None = None
    """Training time of the super-network; by default what the preset says."""
    finetune_minutes: float | None = None
    """Training time of the student that was found; by default what the preset says."""
    select_sequences: int = 4
    """Training sequences that clips for choosing come from. Whole ones where they are at most a quarter of all; else
    their ends are held out. The student is fine-tuned on them again."""
    select_frames: int = 21
    """Frames of each of these clips."""
    calibration_clips: int = 4
    """Training batches that running statistics of a candidate are taken from."""
    space: SearchSpace = field(default_factory=SearchSpace)
    """The students there are."""
    searching: Annotated[SearchConfig, tyro.conf.arg(name="")] = field(default_factory=SearchConfig)
    """How they are looked for."""
    recipe: SearchRecipe = field(default_factory=SearchRecipe)
    """What the preset says, open to change."""
    overwrite: bool = False
    """Delete what an earlier search left in the folder and start anew."""
    quiet: bool = False
    """No progress bars."""
    json: Path | None = None
    """Also write the last line of the output, the JSON object, to this file."""

    def __post_init__(self) -> None:
        if self.init is not None and self.super_run is not None:
            raise ConfigError("--super-run is taken as it is and --init begins a new super-network; give one of them")
        if self.budget_gmacs is not None and self.budget_ms is not None:
            raise ConfigError("give one budget: --budget-gmacs or --budget-ms")
        for name in ("budget_gmacs", "budget_ms", "super_minutes", "finetune_minutes"):
            if (value := getattr(self, name)) is not None and not 0 < value < float("inf"):
                raise ConfigError(f"{name} must be a positive number, got {value}")
        for name in ("gap", "select_sequences", "calibration_clips", "repeats"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.select_frames <= self.gap:
            raise ConfigError(
                f"select_frames ({self.select_frames}) must exceed the gap ({self.gap}): the first keyframe is given"
            )


@dataclass(frozen=True)
class Found:
    """What a search came to."""

    best: Candidate
    """The student that was chosen, judged by weights of the super-network."""
    candidates: tuple[Candidate, ...]
    """All that were judged, in order."""
    student: Path
    """Its run."""
    fitted: FitResult
    """What fine-tuning came to."""


@dataclass(frozen=True)
class _Workshop:
    """What all steps of a search use."""

    args: Search
    recipe: SearchRecipe
    device: Device
    teacher: Trained
    folder: VideoFolder
    loader: ClipLoader
    clips: list[Clip]
    architecture: Architecture

    @property
    def channels(self) -> int:
        return self.architecture.condition.channels

    def macs(self, config: SlimConfig) -> int:
        shown = len(self.architecture.condition.shown_channels)
        return slim_macs(config, self.channels, self.architecture.size, shown)

    def build(self, config: SlimConfig) -> SlimGenerator:
        model = replace(self.architecture, generator=config).build_video()
        assert isinstance(model, SlimGenerator)  # made from a slim config
        return model

    def keyframes(self, clip: Clip, teacher: LiveTeacher | None = None) -> KeyClip:
        """Every gap-th frame of a clip and, where a teacher is given, what that makes of it frame by frame."""
        clip = clip.to(self.device.device)
        conditions, points = encode_clip(self.folder.spec, clip), guidance_points(self.folder.spec, clip)
        keyframes = slice(None, None, self.args.gap)
        taught = None if teacher is None else teacher.render(conditions, clip.frames[:, :1], points)[:, keyframes]
        return KeyClip(conditions[:, keyframes], clip.frames[:, keyframes], taught, cut(points, keyframes))


def run_search(args: Search) -> Found:
    """Search as told; goes on with what an interrupted search has left.

    Raises:
        ConfigError: if nothing in the space meets the budget (naming the nearest), teacher, data and space do not fit
            each other, or the folder holds another search.
        DataError: if no training sequence can spare a clip for choosing.
    """
    if args.budget_gmacs is None and args.budget_ms is None:
        raise ConfigError("a search needs a budget: --budget-gmacs 5, or --budget-ms 12 --engine onnxruntime")
    if args.run.is_file():
        raise ConfigError(f"{args.run} is a file, and a search needs a folder; name another one with --run")
    _check_folder(args.run)
    shop = _open(args)
    journal = Journal(args.run / CANDIDATES, _asked(shop), fresh=args.overwrite)
    budget = _budget(shop, journal)
    checkpoint = _train_super(shop)
    journal.begin(weights_file(checkpoint))
    whole = shop.build(args.space.largest)
    load_weights(whole, weights_file(checkpoint))
    whole.to(shop.device.device)
    candidates = _judge_all(shop, budget, journal, whole)
    best = max(candidates, key=lambda c: c.score)
    write_bytes(args.run / FRONT, _picture(args, candidates, best).encode())
    _save_found(shop, whole, best.config, checkpoint, journal)
    return Found(best, tuple(candidates), args.run / STUDENT, _finetune(shop, best.config))


def _check_folder(run: Path) -> None:
    """Refuse a folder that holds something and no search.

    Raises:
        ConfigError: naming what lies there.
    """
    there = sorted(path.name for path in run.iterdir() if not path.name.startswith(".")) if run.exists() else []
    if there and SUPER not in there and CANDIDATES not in there:
        raise ConfigError(f"{run} holds {there[0]} and no search; name another folder with --run")


def _open(args: Search) -> _Workshop:
    """Data, teacher and the clips that decide, all checked."""
    gaps = GapConfig(smallest=max(1, args.gap - 1), largest=args.gap, every_frame=0.5)
    recipe = replace(args.recipe, task=replace(args.recipe.task, gap=gaps, deployed_gap=args.gap))
    if args.super_minutes is not None:
        recipe = replace(recipe, train=replace(recipe.train, max_minutes=args.super_minutes))
    if args.finetune_minutes is not None:
        tuning = replace(recipe.finetune_train, max_minutes=args.finetune_minutes)
        recipe = replace(recipe, finetune_train=tuning)
    if recipe.task.weights.uses_features or recipe.task.temporal_features != "perceptual":
        raise ConfigError(
            "a super-network has no features of its own to distil: leave kd_features, kd_alignment and "
            "kd_feature_change 0 and temporal_features perceptual in --recipe.task"
        )
    check_flow(recipe.data, recipe.helpers)
    device = open_device(recipe.device)
    if device.world_size > 1:
        raise ConfigError("a search runs in one process; start it without a launcher")
    teacher = load_trained(args.teacher)
    check_stage(teacher, ("teacher",), "the teacher", "a run of train-teacher")
    folder = open_folder(recipe.data.at(args.data, "train"))
    check_condition(teacher.architecture, folder, f"the teacher {args.teacher}")
    past = args.space.largest.history_length
    sampling = replace(recipe.data.sampling, num_frames=recipe.clip_frames, grow_every=0, max_step=1)
    # Draws one gap for nothing: it refuses clips that even the smallest does not fit into.
    draw_gap(gaps, sampling.num_frames, past, torch.Generator())
    cuts = _held_out(folder, args, recipe.clip_frames)
    learnt = tuple(s.take(0, cuts.get(i, len(s))) for i, s in enumerate(folder.sequences) if cuts.get(i) != 0)
    loader = ClipLoader(
        replace(folder, sequences=learnt),
        sampling,
        batch_size=recipe.data.batch_size,
        seed=recipe.train.seed,
        batches_per_step=device.gradient_accumulation,
        num_workers=recipe.data.num_workers,
        cache_mb=recipe.data.cache_mb,
    )
    architecture = Architecture(
        generator=args.space.largest,
        foreground=teacher.architecture.foreground,
        condition=folder.spec,
        palette=palette_of(folder),
        size=next(iter(loader.batches(0))).size,
        stage="spatial",
        folder=replace(folder.config, root=UNSET_ROOT, phase="train"),
    )
    plain = open_folder(data_of(architecture, args.data, "train"))  # the same frames, without chance
    clips = [read_sequence(plain, i, cut, cut + args.select_frames) for i, cut in cuts.items()]
    shop = _Workshop(args, recipe, device, teacher, folder, loader, clips, architecture)
    check_size(shop.build(args.space.smallest), architecture.size, "the students")
    check_size(teacher.generator, architecture.size, "the teacher")
    teacher.generator.to(device.device)
    return shop


def _held_out(folder: VideoFolder, args: Search, least: int) -> dict[int, int]:
    """Sequences that give a clip for choosing, and the frame it begins at; what comes before is learnt from.

    Whole sequences where they are few among many; else the ends of long ones.
    """
    lengths, need = folder.lengths, args.select_frames
    whole = [i for i, length in enumerate(lengths) if length >= need]
    if len(whole) >= 4 * args.select_sequences and len(whole) > args.select_sequences:
        return {whole[i]: 0 for i in _spread(len(whole), args.select_sequences)}
    long = [i for i, length in enumerate(lengths) if length >= need + least]
    if not long:
        raise DataError(
            f"{folder.root}: the longest training sequence has {max(lengths)} frames; a search needs {need + least}, "
            f"{need} of them for choosing and {least} for a clip to learn from: lower --select-frames or "
            "--recipe.clip-frames"
        )
    return {long[i]: lengths[long[i]] - need for i in _spread(len(long), args.select_sequences)}


def _spread(count: int, most: int) -> list[int]:
    """At most so many numbers below ``count``, evenly spread."""
    return sorted({int(i) for i in np.linspace(0, count - 1, min(count, most)).round()})


_DECIDING: Final = (
    "budget_gmacs", "budget_ms", "engine", "precision", "threads", "repeats",
    "gap", "calibration_clips", "select_sequences", "select_frames",
)  # fmt: skip


def _asked(shop: _Workshop) -> dict[str, Any]:
    """What decides which student is found, but for the super-network's weights."""
    args = shop.args
    return {
        **{name: getattr(args, name) for name in _DECIDING},
        "data": args.data.resolve().as_posix(),
        "teacher": weights_sha256(shop.teacher.checkpoint),
        "seed": shop.recipe.train.seed,
        "space": to_dict(args.space),
        "searching": to_dict(args.searching),
    }


def _budget(shop: _Workshop, journal: Journal) -> Budget:
    """The budget, refused where nothing meets it: before anything is trained."""
    args = shop.args
    if args.budget_gmacs is not None:
        return MacBudget(1e9 * args.budget_gmacs, args.space, shop.macs)

    def measured(config: SlimConfig) -> float:
        name = describe_student(config)
        if name not in journal.latencies:
            journal.latencies[name] = round(_time_keyframe(shop, config), 4)
            journal.write()
        return journal.latencies[name]

    assert args.budget_ms is not None
    return LatencyBudget(args.budget_ms, args.space, shop.macs, measured)


def _time_keyframe(shop: _Workshop, config: SlimConfig) -> float:
    """Median time of one keyframe in the engine, in ms. Weights do not matter for it."""
    args, (height, width) = shop.args, shop.architecture.size
    with tempfile.TemporaryDirectory() as scratch:
        graph = Path(scratch, "step.onnx")
        spec = shop.architecture.condition
        export_step(shop.build(config).eval(), graph, size=shop.architecture.size, spec=spec, outputs=("frame",))
        engine = open_engine(EngineChoice(args.engine, args.precision), graph, args.threads)
        past, plane = config.history_length, (height, width)
        blank = (
            np.zeros((1, shop.channels, *plane), np.float32),
            np.zeros((1, past, shop.channels, *plane), np.float32),
            np.zeros((1, past, 3, *plane), np.float32),
            np.ones(1, np.float32),
        )
        feeds = engine.feeds(*blank)
        return measure_latency(lambda: engine.infer(feeds), warmup=5, repeats=args.repeats).median_ms


def _train_super(shop: _Workshop) -> Path:
    """Train the super-network, or find it trained; its last checkpoint.

    Raises:
        ConfigError: if ``super_run`` is one of other data or of another space.
    """
    args, recipe = shop.args, shop.recipe
    clips = {"select_sequences": args.select_sequences, "select_frames": args.select_frames}
    # No ``Architecture`` by itself: the running statistics in it are nobody's, so that it must not be taken for a
    # student.
    described = {
        "super_network": architecture_dict(shop.architecture),
        "space": to_dict(args.space),
        "gap": args.gap,
        "held_out": {**clips, "clip_frames": recipe.clip_frames},
    }
    if args.super_run is not None:
        checkpoint = find_checkpoint(args.super_run, "latest")
        there = read_state(checkpoint).get("architecture") or {}
        if differing := [key for key in described if there.get(key) != json.loads(json.dumps(described[key]))]:
            raise ConfigError(
                f"{args.super_run} is no super-network of this search (other {', '.join(differing)}); train one anew "
                "by leaving --super-run out"
            )
        return checkpoint
    folder = args.run / SUPER
    config = {
        "data": args.data.as_posix(),
        "teacher": args.teacher.as_posix(),
        **described,
        "init": None if args.init is None else args.init.as_posix(),
        "taught": args.taught is not None,
        "recipe": {name: to_dict(getattr(recipe, name)) for name in ("data", "task", "train", "helpers", "device")},
    }
    seed_everything(derive_seed(recipe.train.seed, "weights"))
    whole = shop.build(args.space.largest)
    if args.init is not None:
        trained = load_trained(args.init)
        check_condition(trained.architecture, shop.folder, f"--init {args.init}")
        inherit_weights(whole, trained.generator)
        order_channels(whole)
    _LOG.info("super-network: %.2f M weights, %d students", num_parameters(whole) / 1e6, args.space.num_students)
    objective = build_objective(recipe.task.objective, shop.architecture.condition, recipe.helpers, shop.device)
    continue_discriminators(objective, shop.teacher.checkpoint)
    source = _source(shop)

    def make(view: SlimGenerator) -> TemporalTask:
        return TemporalTask(view, source, shop.folder.spec, objective, recipe.task)

    task = SuperTask(whole, args.space, make)
    with open_run(folder, config, overwrite=args.overwrite) as run:
        fit(
            task,
            shop.loader.batches,
            run,
            recipe.train,
            shop.device,
            sample_clip=shop.clips[0],
            eval_clips=shop.clips,
            progress=_progress(args, SUPER),
            architecture=described,
        )
    return find_checkpoint(folder, "latest")


def _source(shop: _Workshop) -> LiveTeacher | TaughtFrames:
    """What teaches while networks are trained."""
    if shop.args.taught is None:
        return LiveTeacher(shop.teacher.generator)
    taught = TaughtFrames(shop.args.taught, flow=shop.recipe.task.weights.kd_flow > 0)
    taught.check(shop.folder, shop.teacher.checkpoint, shop.args.space.largest.history_length)
    return taught


def _calibration(shop: _Workshop) -> Iterator[KeyClip]:
    """The first training clips, at their keyframes."""
    for clip in itertools.islice(shop.loader.batches(0), shop.args.calibration_clips):
        yield shop.keyframes(clip)


def _judge_all(shop: _Workshop, budget: Budget, journal: Journal, whole: SlimGenerator) -> list[Candidate]:
    """Judge as many students as were asked for, those of an interrupted search among them."""
    args = shop.args
    calibration = list(_calibration(shop))
    exams = [shop.keyframes(clip, LiveTeacher(shop.teacher.generator)) for clip in shop.clips]

    def rate(config: SlimConfig) -> Candidate:
        student = extract(whole, config)
        recalibrate(student, calibration)
        quality = judge(student, exams)
        latency = budget.price(config) if args.budget_ms is not None else None
        return Candidate(config=config, macs=shop.macs(config), latency_ms=latency, **quality._asdict())

    found = search(
        args.space,
        budget,
        args.searching,
        rate,
        seed=shop.recipe.train.seed,
        seeds=_hand_made(args.space, budget, shop.macs),
        known=journal.candidates,
    )
    done = len(journal.candidates)
    with tqdm(total=args.searching.candidates, initial=done, desc="search", unit="student", disable=args.quiet) as bar:
        for candidate in found:
            journal.candidates.append(candidate)
            journal.write()
            bar.update()
            bar.set_postfix_str(f"best {max(c.score for c in journal.candidates):.2f} dB")
    return journal.candidates


def _hand_made(space: SearchSpace, budget: Budget, macs: Callable[[SlimConfig], int]) -> list[SlimConfig]:
    """The largest preset that lies in the space and within the budget, for the search to surpass."""
    presets = (make() for make in student_presets.STUDENTS.values())
    known = [config for config in presets if isinstance(config, SlimConfig) and config in space]
    for config in sorted(known, key=macs, reverse=True):
        if budget.price(config) <= budget.limit:
            return [config]
    return []


def _save_found(shop: _Workshop, whole: SlimGenerator, config: SlimConfig, checkpoint: Path, journal: Journal) -> None:
    """Write the student as it was found: a run of no steps, with the discriminators of the super-network."""
    args, recipe = shop.args, shop.recipe
    student = extract(whole, config)
    recalibrate(student, _calibration(shop))
    objective = build_objective(recipe.finetune.objective, shop.architecture.condition, recipe.helpers, shop.device)
    continue_discriminators(objective, checkpoint)
    task = SpatialTask(student, _source(shop), shop.folder.spec, objective, recipe.finetune)
    described = {"config": to_dict(config), "super_sha256": journal.weights_sha256}
    architecture = replace(shop.architecture, generator=config)
    nothing = replace(recipe.finetune_train, steps=0, max_minutes=None, ema_decay=None)
    with open_run(args.run / FOUND, described, overwrite=args.overwrite) as run:
        fit(
            task,
            shop.loader.batches,
            run,
            nothing,
            shop.device,
            architecture=architecture_dict(architecture),
        )


def _finetune(shop: _Workshop, config: SlimConfig) -> FitResult:
    """Let the student learn by itself, on the whole training part."""
    args, recipe = shop.args, shop.recipe
    return train_spatial(
        TrainSpatial(
            data=args.data,
            teacher=args.teacher,
            run=args.run / STUDENT,
            taught=args.taught,
            inherit=(args.run / FOUND).resolve(),
            recipe=SpatialRecipe(
                data=recipe.data,
                student=config,
                task=recipe.finetune,
                helpers=recipe.helpers,
                train=recipe.finetune_train,
                device=recipe.device,
            ),
            overwrite=args.overwrite,
            quiet=args.quiet,
        )
    )


def _progress(args: Search, title: str) -> Progress:
    return SilentProgress() if args.quiet else BarProgress(f"{args.run.name}/{title}")


def search_presets() -> dict[str, tuple[str, SearchRecipe, SearchSpace]]:
    """Recipes by name, with descriptions and the usual space: each continues the teacher preset of the same name."""
    found = {}
    for name, make in teacher_presets.PRESETS.items():
        recipe, small = make(), name in teacher_presets.SMALL
        space = SearchSpace(largest=student_presets.small() if small else student_presets.base())
        common = (recipe.data, recipe.helpers, recipe.task.objective, recipe.train)
        spatial = distill_presets.spatial_demo if small else distill_presets.spatial
        temporal = distill_presets.temporal_demo if small else distill_presets.temporal
        alone, parted = spatial(space.largest, *common), temporal(*common)
        weights = replace(parted.task.weights, kd_temporal=0.0)
        made = SearchRecipe(
            data=recipe.data,
            # The clips are short: a longer lead-in would leave one keyframe of each to learn from.
            task=replace(
                parted.task, weights=weights, temporal_features="perceptual", lead_in=min(parted.task.lead_in, 1)
            ),
            train=replace(alone.train, max_minutes=10.0) if small else alone.train,
            finetune=alone.task,
            finetune_train=alone.train,
            helpers=recipe.helpers,
            device=recipe.device,
        )
        found[name] = (f"The best student of a budget, after a teacher of the recipe {name}.", made, space)
    return found


def _price(args: Search, candidate: Candidate) -> float:
    """In the unit of the budget: milliseconds or GMACs."""
    return (candidate.latency_ms or 0.0) if args.budget_ms is not None else candidate.macs / 1e9


def _picture(args: Search, candidates: Sequence[Candidate], best: Candidate) -> str:
    """Quality over price, as SVG."""
    front = pareto_front(candidates, lambda c: _price(args, c))
    points = [
        Point(
            name=describe_student(c.config),
            price=_price(args, c),
            score=c.score,
            on_front=c in front,
            is_best=c == best,
        )
        for c in candidates
    ]
    limit = args.budget_ms or args.budget_gmacs or 0.0
    return draw_front(points, limit, price_title=f"{_unit(args)} per keyframe", score_title=_SCORE_TITLE)


def _unit(args: Search) -> str:
    return "GMACs" if args.budget_ms is None else f"ms in {args.engine} {args.precision}"


_SCORE_TITLE: Final = "PSNR of held-out keyframes in dB, mean of that to the real and that to the teacher's"


def _rows(args: Search, found: Found) -> list[dict[str, Any]]:
    """The candidates for table and JSON, the best first."""
    front = pareto_front(found.candidates, lambda c: _price(args, c))
    return [
        {
            "name": describe_student(c.config),
            "gmacs": c.macs / 1e9,
            "ms": c.latency_ms,
            "psnr": c.psnr,
            "teacher_psnr": c.teacher_psnr,
            "score": c.score,
            "mark": "best" if c == found.best else "front" if c in front else "",
        }
        for c in sorted(found.candidates, key=lambda c: -c.score)
    ]


_COLUMNS: Final = {
    "name": "widths depths up +finish",
    "gmacs": "GMACs / keyframe",
    "ms": "ms / keyframe",
    "psnr": "PSNR real dB",
    "teacher_psnr": "PSNR teacher dB",
    "score": "mean dB",
    "mark": "",
}


def show(args: Search, found: Found) -> dict[str, Any]:
    """Tell people what was found; returns the same for programs."""
    rows, best = _rows(args, found), found.best
    columns = {name: title for name, title in _COLUMNS.items() if name != "ms" or args.budget_ms is not None}
    print(format_table(rows, columns))
    print(
        f"best of {len(rows)} within {args.budget_ms or args.budget_gmacs:g} {_unit(args)} per keyframe: "
        f"{describe_student(best.config)} at {_price(args, best):.3g}, fine-tuned in {found.student}; "
        f"the front: {args.run / FRONT}"
    )
    return {
        "run": str(args.run),
        "student": str(found.student),
        "config": to_dict(best.config),
        "gmacs": best.macs / 1e9,
        "ms": best.latency_ms,
        "psnr": best.psnr,
        "teacher_psnr": best.teacher_psnr,
        "budget": {"gmacs": args.budget_gmacs, "ms": args.budget_ms},
        "candidates": rows,
        "finetuned": {**asdict(found.fitted), "metrics": dict(found.fitted.metrics)},
    }


def main(argv: list[str]) -> int:
    """``fastv2v search PRESET[:LARGEST] --data DIR --teacher RUN --run DIR --budget-gmacs G ...``."""
    presets, argv = search_presets(), list(argv)
    if argv and ":" in argv[0]:
        argv[0], _, largest = argv[0].partition(":")
        presets = {name: (text, recipe, _up_to(space, largest)) for name, (text, recipe, space) in presets.items()}
    missing: dict[str, Any] = {"data": tyro.MISSING, "teacher": tyro.MISSING, "run": tyro.MISSING}
    args = parse_preset(
        "fastv2v search",
        f"{Search.__doc__} PRESET:STUDENT, such as street:small, makes another student the largest of the space.",
        {
            name: (text, Search(**missing, recipe=recipe, space=space))
            for name, (text, recipe, space) in presets.items()
        },
        argv,
    )
    summary = show(args, run_search(args))
    line = json.dumps(summary)
    if args.json is not None:
        write_bytes(args.json, (line + "\n").encode())
    sys.stdout.flush()
    print(line)
    return 0


def _up_to(space: SearchSpace, name: str) -> SearchSpace:
    """The space with another largest student.

    Raises:
        ConfigError: if there is no slim student of that name.
    """
    slim = {key: made for key, make in student_presets.STUDENTS.items() if isinstance(made := make(), SlimConfig)}
    if name not in slim:
        raise ConfigError(f"no student {name!r} can be a super-network; there are {', '.join(slim)}")
    return replace(space, largest=slim[name])
