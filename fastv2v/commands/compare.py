"""``fastv2v compare``: students beside their teacher on held-out frames, with verdicts."""

from __future__ import annotations

import json
import logging
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import cv2
import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks import cost as costs
from benchmarks.comparison import (
    PRETRAINED_COLUMNS,
    QUALITY_COLUMNS,
    TEACHER_COLUMNS,
    VERDICT_COLUMNS,
    WORLD_COLUMNS,
    Comparison,
    Criteria,
    Pretrained,
    Row,
    Verdict,
    Video,
    group_rows,
    verdicts,
    with_spread,
)
from benchmarks.cost import step_cost
from benchmarks.features import DIMENSION, FD_IMAGE, EfficientNetFeatures
from benchmarks.judge import Judge, JudgeConfig, check_judge_file, judged_classes, load_judge, save_judge, train_judge
from benchmarks.pretrained import LPIPS, MIN_CLIP_FRAMES, I3DFeatures, InceptionFeatures
from benchmarks.quality import MEAN_COLOUR, PREVIOUS_FRAME, REAL
from benchmarks.results import BenchmarkResult, format_table, write_result
from fastv2v.commands.arguments import parse
from fastv2v.commands.benchmark import check_round_trip, pictures, return_distance, round_trip
from fastv2v.commands.contenders import PLAIN, TEACHER, Contest, open_contest, parse_groups
from fastv2v.commands.synthesize import output_name
from fastv2v.config import to_dict
from fastv2v.data.folder import VideoFolder
from fastv2v.data.loader import read_sequence
from fastv2v.device import DeviceConfig, open_device
from fastv2v.errors import ConfigError
from fastv2v.metrics.drift import EARLY, LATE, Window, check_windows
from fastv2v.metrics.floors import MeanColourFloor, previous_frame_floor
from fastv2v.metrics.frechet import has_few_samples
from fastv2v.metrics.vmaf import MIN_SIDE
from fastv2v.run import contact_sheet, write_json
from fastv2v.video import write_image, write_video

_LOG = logging.getLogger(__name__)

RESULT: Final = "comparison.json"
"""Means and spreads of all groups; marks a folder as a comparison."""
JUDGE: Final = "judge.safetensors"
_Criteria = Annotated[Criteria, tyro.conf.arg(name=""), tyro.conf.FlagCreatePairsOff]  # options without a prefix
COST_COLUMNS: Final = (
    {"name": costs.COLUMNS["name"], "gap": "gap"}
    | costs.COLUMNS
    | {
        "times_fewer_gmacs_per_frame": "x fewer",
        "times_fewer_output_position_gmacs_per_frame": "x fewer (output positions)",
    }
)
"""Columns of the cost table; how many times fewer than the teacher's, per delivered frame."""


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Roll teacher and students out over held-out frames, score them alike, say whether a student is good."""

    teacher: Path
    """Run or checkpoint of the teacher. It synthesises every frame, its norms going by each frame's own statistics."""
    student: Annotated[tuple[str, ...], tyro.conf.UseAppendAction]
    """NAME=RUN[,RUN...]: one group of students, its runs differing in their seed only; NAME@GAP=RUN[,RUN...] for
    keyframes of its own distance. Repeat the option for further groups. Students synthesise keyframes, with running
    statistics as they are deployed."""
    plain: Path | None = None
    """Run or checkpoint of the same teacher trained without guidance, to see what that gains: --world-gain."""
    data: Path
    """Data set folder; its held-out part is used."""
    out: Path
    """Folder for results, videos and pictures. An earlier comparison there is replaced as a whole, once this one is
    complete; any other folder that is not empty is refused."""
    gap: int = 4
    """Distance between two keyframes of students that name none; frames between them are interpolated."""
    given_frames: int = 1
    """Real frames that every rollout starts from; they are not scored."""
    max_frames: int | None = None
    """At most this many frames of each sequence."""
    judge: Path | None = None
    """Segmentation judge, NAME.safetensors; where there is no such file one is trained on the real frames of the
    training part and written there, so that every comparison on a data set has the same. By default it lies in
    --out."""
    judging: JudgeConfig = field(default_factory=JudgeConfig)
    """How the judge is trained."""
    vmaf: bool = True
    """Also run VMAF."""
    round_trip_frames: int = 24
    """Where point ids are known: frames from which a further rollout runs back to its start, to be compared with
    itself; 0 leaves it out."""
    fid_weights: Path | None = None
    """Also FID: Inception-v3 as TorchScript, inception-2015-12-05.pt."""
    fvd_weights: Path | None = None
    """Also FVD: I3D as TorchScript, i3d_torchscript.pt."""
    fvd_frames: int = 16
    """Frames of a clip for FVD; sequences are cut into as many as they hold."""
    lpips_weights: tuple[Path, Path] | None = None
    """Also LPIPS: torchvision's AlexNet state dict, and the calibration alex.pth of version 0.1."""
    drift_early: Window = EARLY
    """Frames whose quality drift starts from, START STOP, counted from the first frame of a sequence."""
    drift_late: Window = LATE
    """Frames at which quality is taken again; drift is left out where a sequence is shorter."""
    criteria: Annotated[Criteria, tyro.conf.arg(name=""), tyro.conf.FlagCreatePairsOff] = field(
        default_factory=Criteria
    )
    """What is asked of a student; the exit status is 1 if anything is missed."""
    fps: float = 15.0
    """Rate of the written videos."""
    threads: int | None = None
    """CPU threads; all by default."""
    quiet: bool = False
    """Show no progress bar."""
    device: DeviceConfig = field(default_factory=DeviceConfig)
    """Where and in what precision the networks run."""

    def __post_init__(self) -> None:
        if self.gap < 1 or self.given_frames < 1 or not 0 < self.fps < 1000:
            raise ConfigError(
                "gap and given_frames must be at least 1 and fps lie between 0 and 1000, got "
                f"{self.gap}, {self.given_frames} and {self.fps}"
            )
        if self.max_frames is not None and self.max_frames < 2:
            raise ConfigError(f"max_frames must be at least 2, got {self.max_frames}")
        if self.judge is not None:
            check_judge_file(self.judge)
        if self.fvd_frames < MIN_CLIP_FRAMES:
            raise ConfigError(f"fvd_frames must be at least {MIN_CLIP_FRAMES}, got {self.fvd_frames}")
        check_windows(self.drift_early, self.drift_late)
        check_round_trip(self.round_trip_frames)
        if self.plain is None and self.criteria.judges_guidance:
            raise ConfigError(
                "--world-gain, --keeps-gain and --guidance-costs-... compare with a teacher without guidance; name it, "
                "--plain"
            )
        groups = parse_groups(self.student, self.gap)
        for option, name in (("subject", self.criteria.subject), ("alone", self.criteria.alone)):
            if name is not None and name not in groups:
                raise ConfigError(f"--{option} names no student: there are {', '.join(groups)}, got {name}")
        if self.criteria.alone == (self.criteria.subject or next(iter(groups))):
            raise ConfigError("--alone names the student that is judged; name the one trained without a teacher")
        if self.criteria.within_vmaf is not None and not self.vmaf:
            raise ConfigError("--within-vmaf needs VMAF; leave --no-vmaf out")


def _check_asked(args: Compare, contest: Contest) -> None:
    """Refuse criteria that nothing here could answer, before any work."""
    criteria = args.criteria
    beats = criteria.beats or ()
    if contest.folder.spec.kind != "labels":
        if args.judge is not None or criteria.within_miou is not None or "miou" in beats:
            raise ConfigError(f"segmentation is judged for label maps only, not for {contest.folder.spec.describe()}")
    else:
        judged_classes(contest.folder.spec, args.judging)
    if criteria.judges_places and not contest.seen.config.guidance_levels:
        raise ConfigError(f"{args.data} has no unprojections to judge consistency by; make them: fastv2v unproject")
    if "vmaf" in beats and not args.vmaf:
        raise ConfigError("--beats vmaf needs VMAF; leave --no-vmaf out")
    if args.vmaf and min(contest.size) < MIN_SIDE:
        raise ConfigError(f"VMAF needs frames of at least {MIN_SIDE}x{MIN_SIDE} pixels; pass --no-vmaf")
    shortest = min(contest.lengths)
    if shortest < args.drift_late[1] or args.drift_early[0] < args.given_frames:
        said = (
            f"drift from frames {args.drift_early} to {args.drift_late} needs sequences of {args.drift_late[1]} frames "
            f"and no given frame in them; the shortest has {shortest}: choose --drift-early and --drift-late"
        )
        if criteria.max_drift is not None:
            raise ConfigError(said)
        _LOG.warning("%s; it is left out", said)


def _open_judge(args: Compare, contest: Contest, out: Path) -> Judge | None:
    """The judge of this data set: the file that was named, that of the comparison to be replaced, or a fresh one."""
    if contest.folder.spec.kind != "labels":
        return None
    training, file = contest.training_part, args.judge or out / JUDGE
    judge = _kept_judge(args, training)
    if judge is None:
        with tqdm(total=args.judging.steps, desc="segmentation judge", unit="step", disable=args.quiet) as bar:
            judge = train_judge(training, args.judging, lambda step, loss: bar.update(step - bar.n))
    if not file.is_file():
        save_judge(file, judge)
    judge.network.to(contest.device.device)
    return judge


def _kept_judge(args: Compare, training: VideoFolder) -> Judge | None:
    """The judge in the file that was named, or in the comparison that will be replaced; None where there is none."""
    file = args.judge or args.out / JUDGE
    if not file.is_file():
        return None
    try:
        return load_judge(file, training, args.judging)
    except ConfigError as error:
        if args.judge is not None:
            raise
        _LOG.warning("%s; it is replaced with the comparison", error)
        return None


def _open_pretrained(args: Compare, contest: Contest) -> Pretrained:
    """The networks that files were named of."""
    device = contest.device.device
    return Pretrained(
        inception=None if args.fid_weights is None else InceptionFeatures(args.fid_weights, device),
        i3d=None if args.fvd_weights is None else I3DFeatures(args.fvd_weights, device, args.fvd_frames),
        lpips=None if args.lpips_weights is None else LPIPS(*args.lpips_weights).to(device),
    )


def _mean_colours(contest: Contest, quiet: bool) -> MeanColourFloor | None:
    """Mean colour of each label over the training part; None without labels."""
    if contest.folder.spec.kind != "labels":
        return None
    folder = contest.training_part

    def pairs() -> Iterator[tuple[NDArray[np.integer[Any]], NDArray[np.uint8]]]:
        for i in tqdm(range(len(folder.sequences)), desc="mean colours", disable=quiet):
            clip = read_sequence(folder, i)
            assert clip.labels is not None  # the condition is of labels
            yield from zip(clip.labels[0].numpy(), pictures(clip), strict=True)

    return MeanColourFloor.fit(pairs())


def _compare(args: Compare, contest: Contest, comparison: Comparison, out: Path) -> None:
    """Roll out, score and film one sequence after the other."""
    floor = _mean_colours(contest, args.quiet)
    students = [model.name for model in contest.contenders if not model.is_teacher]
    rows_each = len(contest.contenders) + 2 + (floor is not None)
    rolled, scored = contest.num_frames * len(contest.contenders), rows_each * len(contest.lengths)
    with (
        tqdm(total=rolled, desc="rollouts", unit="frame", disable=args.quiet) as frames_bar,
        tqdm(total=scored, desc="scores", unit="video", disable=args.quiet) as videos_bar,
    ):
        for i, (sequence, count) in enumerate(zip(contest.folder.sequences, contest.lengths, strict=True)):
            clip = read_sequence(contest.seen, i, 0, count)
            shown = pictures(clip)
            real, before = shown[args.given_frames :], shown[args.given_frames - 1]
            labels = None if clip.labels is None else list(clip.labels[0, args.given_frames :].numpy())
            videos = {REAL: Video(real)}
            if floor is not None and labels is not None:
                videos[MEAN_COLOUR] = Video([floor.paint(x) for x in labels])
            videos[PREVIOUS_FRAME] = Video(previous_frame_floor(real, before))
            for model in contest.contenders:
                frames = _counted(contest.roll_out(model, clip), frames_bar)
                videos[model.name] = Video.collect(frames, part_time=not model.is_teacher)
            turned: dict[str, float] = {}
            if clip.points is not None and args.round_trip_frames > args.given_frames:
                gaps = math.lcm(*(model.gap for model in contest.contenders))
                way = round_trip(clip, args.round_trip_frames, gap=gaps, given_frames=args.given_frames)
                for model in contest.contenders:
                    made = [*pictures(way)[: args.given_frames], *(x.frame for x in contest.roll_out(model, way))]
                    turned[model.name] = return_distance(made, args.given_frames)
            scored_names = comparison.add(
                sequence.name,
                real,
                videos,
                labels=labels,
                teacher=videos[TEACHER].frames,
                students=students,
                given_frames=args.given_frames,
                points=None if clip.points is None else list(clip.points[0][0, args.given_frames :].numpy()),
                forward_backward=turned,
            )
            for _ in scored_names:
                videos_bar.update()
            first_runs = {group: videos[members[0].name].frames for group, members in contest.groups.items()}
            _write_pictures(out, output_name(contest.folder, sequence), {"real": real, **first_runs}, args.fps)


def _counted(frames: Iterator[Any], bar: tqdm[Any]) -> Iterator[Any]:
    for frame in frames:
        bar.update()
        yield frame


def _write_pictures(out: Path, name: str, rows: Mapping[str, Sequence[NDArray[np.uint8]]], fps: float) -> None:
    """A film with all models side by side, and a sheet of four frames."""
    file = out / "videos" / f"{name}.mp4"
    file.parent.mkdir(parents=True, exist_ok=True)

    def columns() -> Iterator[NDArray[np.uint8]]:
        for pictures_of_t in zip(*rows.values(), strict=True):
            yield np.hstack([_titled(title, x) for title, x in zip(rows, pictures_of_t, strict=True)])

    write_video(file, columns(), fps, crf=16)
    write_image(
        out / "pictures" / f"{name}.png",
        contact_sheet({title: np.stack(frames) for title, frames in rows.items()}, max_columns=4, cell_width=512),
    )


def _titled(title: str, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A frame below its name."""
    strip = np.full((20, frame.shape[1], 3), 255, np.uint8)
    cv2.putText(strip, title, (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([strip, frame])


def _cost_rows(contest: Contest) -> list[Row]:
    """Multiply-adds of teacher and groups, and how many times fewer a group needs."""
    rows: list[Row] = []
    for group, (first, *_) in contest.groups.items():
        fraction = contest.keyframe_fraction(first.gap)
        generator, channels = first.trained.generator, first.trained.architecture.condition.channels
        cost = step_cost(generator, channels, contest.size, keyframe_fraction=fraction)
        row = cost.row(group) | {"gap": first.gap}
        for key in ("gmacs_per_frame", "output_position_gmacs_per_frame"):
            row[f"times_fewer_{key}"] = _number((rows[0] if rows else row)[key]) / _number(row[key])
        rows.append(row)
    return rows


def _number(value: Any) -> float:
    return float(value)


@dataclass(frozen=True)
class Outcome:
    """What a comparison found."""

    groups: list[Row]
    """Mean and spread of every group, the floors and the real video, for each set of frames."""
    runs: list[Row]
    """Scores of every single run."""
    cost: list[Row]
    """Multiply-adds of teacher and groups."""
    verdicts: list[Verdict]
    """What was asked, and whether it holds; empty if nothing was."""

    @property
    def passed(self) -> bool:
        """Whether everything that was asked holds."""
        return all(verdict.passed for verdict in self.verdicts)


def run_compare(args: Compare) -> Outcome:
    """Compare, and write everything into the output folder.

    Raises:
        ConfigError: if the output folder holds something else, or something cannot be compared.
    """
    if args.out.is_file() or (args.out.exists() and not (args.out / RESULT).is_file() and any(args.out.iterdir())):
        raise ConfigError(f"{args.out} is not empty and holds no earlier comparison; name another folder with --out")
    torch.set_num_threads(args.threads or torch.get_num_threads())
    cv2.setNumThreads(torch.get_num_threads())
    contest = open_contest(
        args.teacher,
        parse_groups(args.student, args.gap),
        args.data,
        given_frames=args.given_frames,
        max_frames=args.max_frames,
        device=open_device(args.device),
        plain=args.plain,
    )
    _check_asked(args, contest)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{args.out.name}.", dir=args.out.parent))
    try:
        outcome = _measure(args, contest, staging)
        staging.chmod(0o755)
        earlier = staging.with_name(f"{staging.name}.old")
        if args.out.exists():
            args.out.rename(earlier)  # deleted only once the new one is in its place
        staging.rename(args.out)
        shutil.rmtree(earlier, ignore_errors=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return outcome


def _measure(args: Compare, contest: Contest, out: Path) -> Outcome:
    """Everything, into a fresh folder."""
    cost, pretrained = _cost_rows(contest), _open_pretrained(args, contest)
    judge = _open_judge(args, contest, out)
    comparison = Comparison(
        features=EfficientNetFeatures().to(contest.device.device),
        judge=judge,
        pretrained=pretrained,
        with_vmaf=args.vmaf,
        early=args.drift_early,
        late=args.drift_late,
    )
    _compare(args, contest, comparison, out)
    found = comparison.rows()
    members = {name: [found[model.name] for model in models] for name, models in contest.groups.items()}
    in_groups = {model.name for model in contest.contenders}
    others = {name: [rows] for name, rows in found.items() if name not in in_groups}
    groups = [row for name, runs in (others | members).items() for row in group_rows(name, runs)]
    by_name = {model.name: model for model in contest.contenders}
    runs = [
        row | ({"run": str(by_name[name].run), "step": by_name[name].trained.step} if name in by_name else {})
        for name, rows in found.items()
        for row in rows
    ]
    shares = {str(row["name"]): 1 / _number(row["times_fewer_gmacs_per_frame"]) for row in cost}
    delivered = {str(row["name"]): row for row in groups if row["frames"] == "all"}
    judged = verdicts(args.criteria, delivered, TEACHER, shares, plain=PLAIN) if args.criteria.asks_anything else []
    outcome = Outcome(groups, runs, cost, judged)
    _write(args, contest, outcome, comparison, judge, out)
    return outcome


def _write(
    args: Compare, contest: Contest, outcome: Outcome, comparison: Comparison, judge: Judge | None, out: Path
) -> None:
    """The result files."""
    settings = {
        "command": to_dict(args),
        "size": list(contest.size),
        "frames": dict(zip((s.name for s in contest.folder.sequences), contest.lengths, strict=True)),
        "checkpoints": {model.name: str(model.trained.checkpoint) for model in contest.contenders},
        "judge": None if judge is None else judge.record,
    }
    verdict_rows = [verdict._asdict() for verdict in outcome.verdicts]
    suites = {"comparison": outcome.groups, "runs": outcome.runs, "cost": outcome.cost, "verdicts": verdict_rows}
    for suite, rows in suites.items():
        if rows:
            result = BenchmarkResult(
                suite=suite,
                rows=tuple(rows),
                device=str(contest.device.device.type),
                threads=torch.get_num_threads(),
                precision=str(contest.device.dtype).removeprefix("torch."),
                settings=settings,
            )
            write_result(out / f"{suite}.json", result)
    write_json(out / "curves.json", comparison.curves)


def main(argv: list[str]) -> int:
    """``fastv2v compare --teacher RUN --student NAME=RUN[,RUN...] --data DIR --out DIR``."""
    args = parse(Compare, "fastv2v compare", argv)
    outcome = run_compare(args)
    shown = with_spread(outcome.groups)
    print(f"\nagainst the real frames\n{format_table(shown, QUALITY_COLUMNS)}")
    print(f"\nagainst the teacher's frames, and whole rollouts\n{format_table(shown, TEACHER_COLUMNS)}")
    if args.fid_weights or args.fvd_weights or args.lpips_weights:
        print(f"\nby the networks that were given\n{format_table(shown, PRETRAINED_COLUMNS)}")
    if any(row.get("world_error") is not None for row in outcome.groups):
        print(f"\nplaces that are seen again, in 8-bit levels\n{format_table(shown, WORLD_COLUMNS)}")
    print(f"\ncost\n{format_table(outcome.cost, COST_COLUMNS)}")
    few = min(int(str(row["fd_samples"])) for row in outcome.groups)
    if has_few_samples(few, DIMENSION):
        _LOG.warning(
            "%s was taken over %d frames, fewer than %d: it ranks models of this table and means nothing alone",
            FD_IMAGE,
            few,
            2 * DIMENSION,
        )
    if outcome.verdicts:
        rows = [verdict._asdict() for verdict in outcome.verdicts]
        print(f"\nverdict\n{format_table(rows, VERDICT_COLUMNS)}")
        _warn_single_runs(args)
    print(f"\nvideos side by side lie in {args.out / 'videos'}, pictures in {args.out / 'pictures'}")
    document = {
        "out": str(args.out),
        "passed": outcome.passed if outcome.verdicts else None,
        "verdicts": [verdict._asdict() for verdict in outcome.verdicts],
        "groups": outcome.groups,
        "cost": outcome.cost,
    }
    print(json.dumps(document))
    return 0 if outcome.passed else 1


def _warn_single_runs(args: Compare) -> None:
    """Say that a group that is to be beaten, or to beat, has no spread."""
    groups, alone = parse_groups(args.student, args.gap), args.criteria.alone
    subject = args.criteria.subject or next(iter(groups))
    if alone is not None and (single := [name for name in (subject, alone) if len(groups[name].runs) == 1]):
        _LOG.warning("%s: one run has no spread over seeds; give at least three", ", ".join(single))
