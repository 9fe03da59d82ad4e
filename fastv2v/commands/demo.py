"""``fastv2v demo``: the whole line, from frames and label maps to a deployed bundle and its numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastv2v.commands.arguments import parse
from fastv2v.commands.prepare import Prepare, draw_sheet, prepare
from fastv2v.data.folder import open_folder
from fastv2v.data.images import image_size
from fastv2v.data.prepare.body import BodyConfig
from fastv2v.data.prepare.write import CONDITIONS, Kind
from fastv2v.errors import ConfigError, DataError

if TYPE_CHECKING:
    from teachers.presets import TeacherRecipe


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Run the whole line: teacher, spatial and temporal distillation, export, stream, benchmark, page.

    Without --data or --video it draws a procedural street world first. Run again, it goes on where it stopped.
    """

    data: Path | None = None
    """Data set folder in vid2vid's layout; the last 16 frames of each sequence are held out if it has no test part."""
    video: Path | None = None
    """A plain video of your own, which is prepared first (fastv2v prepare has more to choose)."""
    kind: Kind | None = None
    """What its frames shall be generated from: see fastv2v prepare. Goes with --video."""
    size: int = 192
    """Shorter side of the frames, in pixels, a multiple of 16. Goes with --video."""
    pose_python: Path | None = None
    """A Python that has mediapipe. Goes with --kind pose."""
    out: Path | None = None
    """Folder for everything that is made; runs/demo or runs/demo-NAME by default."""
    minutes: float | None = None
    """Training time of all three stages together; 6 on the procedural world, 16 on a data set, 20 on a video."""
    gap: int = 4
    """Distance between two keyframes of the delivered stream, 1 to 12; the student is trained for it."""
    seed: int = 0
    """Root of all randomness."""
    overwrite: bool = False
    """Delete the runs of an earlier demo in the same folder and train anew, for example with other minutes."""

    def __post_init__(self) -> None:
        if self.minutes is not None and not 0 < self.minutes < float("inf"):
            raise ConfigError(f"minutes must be a positive number, got {self.minutes}")
        if (self.video is None) != (self.kind is None) or (self.video is not None and self.data is not None):
            raise ConfigError("--video and --kind go together, and not with --data")
        if self.size < 64 or self.size % 16:
            raise ConfigError(f"size must be a multiple of 16, 64 or more, got {self.size}")
        if not 1 <= self.gap <= 12:
            raise ConfigError(f"gap must lie in 1 to 12, got {self.gap}")


SHARES = {"teacher": 0.55, "spatial": 0.2, "temporal": 0.25}
"""How the training time is divided."""


def run_demo(args: Demo) -> Path:
    """Run the line; returns the page."""
    # Imported here so that a wrong option is answered before torch is loaded.
    from distill import presets as distilled
    from fastv2v.commands import benchmark, export, train, world
    from fastv2v.data.world import WorldConfig
    from students import presets as students

    given = args.data or args.video
    out = args.out or Path("runs") / ("demo" if given is None else f"demo-{_name(given, args.kind)}")
    minutes = args.minutes or (6.0 if given is None else 16.0 if args.video is None else 20.0)
    data = args.data
    if args.video is not None and args.kind is not None:
        _say(f"{args.kind} of {args.video}")
        data = out / "data"
        prepared = Prepare(
            video=args.video,
            kind=args.kind,
            out=data,
            size=args.size,
            pose=BodyConfig(python=args.pose_python),
            overwrite=args.overwrite,
        )
        prepare(prepared)
        print(draw_sheet(data, args.kind))
    elif data is None:
        _say("procedural world")
        data = world.make_world(
            world.World(out=out / "world", world=WorldConfig(seed=args.seed), overwrite=args.overwrite)
        )

    def timed(config: Any, stage: str) -> Any:
        return replace(config, max_minutes=round(minutes * SHARES[stage], 3), seed=args.seed)

    recipe = _recipe(args.kind, data)
    longest = max(open_folder(recipe.data.at(data, "train")).lengths)
    shortest = 2 * args.gap + 1
    if longest < shortest:
        raise DataError(
            f"{data}: the longest training sequence has {longest} frames; keyframes {args.gap} frames apart need at "
            f"least {shortest}: add a longer sequence or give a smaller --gap"
        )

    def shortened(recipe: Any) -> Any:
        """The recipe with clips that fit into the longest sequence."""
        sampling = recipe.data.sampling
        sampling = replace(sampling, num_frames=min(sampling.num_frames, longest))
        return replace(recipe, data=replace(recipe.data, sampling=sampling))

    _say(f"teacher, {minutes * SHARES['teacher']:.1f} minutes")
    recipe = shortened(recipe)
    recipe = replace(recipe, train=timed(recipe.train, "teacher"))
    train.train_teacher(train.TrainTeacher(data=data, run=out / "teacher", recipe=recipe, overwrite=args.overwrite))

    _say(f"spatial distillation, {minutes * SHARES['spatial']:.1f} minutes")
    parts = recipe.data, recipe.helpers, recipe.task.objective, recipe.train
    spatial = distilled.spatial_demo(students.tiny(), *parts)
    spatial = replace(spatial, train=timed(spatial.train, "spatial"))
    train.train_spatial(
        train.TrainSpatial(
            data=data, teacher=out / "teacher", run=out / "student-skd", recipe=spatial, overwrite=args.overwrite
        )
    )

    _say(f"temporal distillation, {minutes * SHARES['temporal']:.1f} minutes")
    temporal = shortened(distilled.temporal_demo(*parts, num_frames=29))
    temporal = replace(
        temporal,
        train=timed(temporal.train, "temporal"),
        task=replace(
            temporal.task,
            deployed_gap=args.gap,
            gap=replace(temporal.task.gap, smallest=max(1, args.gap - 1), largest=args.gap),
        ),
    )
    train.train_temporal(
        train.TrainTemporal(
            data=data,
            teacher=out / "teacher",
            student=out / "student-skd",
            run=out / "student-tkd",
            recipe=temporal,
            overwrite=args.overwrite,
        )
    )

    _say("export")
    bundle = out / "student.v2v"
    keyframes = replace(export.KeyframeConfig(), gap=args.gap)
    request = export.Export(run=out / "student-tkd", data=data, out=bundle, keyframes=keyframes, overwrite=True)
    export.show(request, export.export_bundle(request))

    _say("stream and benchmark")
    runs = tuple(out / name for name in ("teacher", "student-skd", "student-tkd"))
    return benchmark.measure_and_show(
        benchmark.Benchmark(teacher=out / "teacher", bundle=bundle, data=data, out=out / "benchmark", runs=runs)
    )


def _name(given: Path, kind: Kind | None) -> str:
    """What the folder of a demo is called after."""
    return given.resolve().name if kind is None else f"{given.stem}-{kind}"


def _recipe(kind: Kind | None, data: Path) -> TeacherRecipe:
    """The teacher of a demo: frames of a video keep the size they were prepared in."""
    from teachers import presets as teachers

    if kind is None:
        return teachers.demo()
    recipe = teachers.face_demo() if kind == "face" else teachers.demo()
    folder = replace(recipe.data.folder, condition=CONDITIONS[kind])
    first = open_folder(replace(folder, root=data)).sequences[0].path("frames", 0)
    folder = replace(folder, geometry=replace(folder.geometry, size=image_size(first)))
    return replace(recipe, data=replace(recipe.data, folder=folder, sampling=replace(recipe.data.sampling, flip=False)))


def _say(stage: str) -> None:
    print(f"== {stage}", flush=True)


def main(argv: list[str]) -> int:
    """``fastv2v demo [--data DIR | --video FILE --kind KIND]``."""
    run_demo(parse(Demo, "fastv2v demo", argv))
    return 0
