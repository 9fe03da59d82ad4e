"""A teacher and groups of students that are compared: loaded, checked against each other, rolled out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks.comparison import Delivered, deliver
from fastv2v.architecture import Trained, load_trained
from fastv2v.commands.parts import check_condition, check_stage, data_of, with_points
from fastv2v.data.clip import Clip
from fastv2v.data.folder import VideoFolder, open_folder
from fastv2v.data.transforms import Size
from fastv2v.device import Device
from fastv2v.errors import ConfigError
from fastv2v.nn.norms import batch_statistics
from interpolate.keyframes import uniform_keyframes

TEACHER: Final = "teacher"
PLAIN: Final = "plain"
"""The same teacher without guidance."""

_NAME = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.+-]*)(?:@([1-9][0-9]{0,3}))?")
_TAKEN: Final = (TEACHER, PLAIN, "real")


class Group(NamedTuple):
    """Runs that are the same student but for their seed."""

    runs: tuple[Path, ...]
    """Runs or checkpoints."""
    gap: int
    """Distance of its keyframes."""


def parse_groups(words: Sequence[str], gap: int) -> dict[str, Group]:
    """Groups of runs from ``NAME[@GAP]=RUN[,RUN...]``.

    Args:
        words: one for each group.
        gap: of groups that name none.

    Raises:
        ConfigError: if a word has another form, a name is taken, a run is named twice, or there is no group.
    """
    groups: dict[str, Group] = {}
    for word in words:
        left, _, runs = word.partition("=")
        paths = tuple(Path(run) for run in runs.split(","))
        match = _NAME.fullmatch(left)
        if match is None or not all(runs.split(",")):
            raise ConfigError(
                "--student is NAME=RUN[,RUN...] or NAME@GAP=RUN[,RUN...], a name of letters, digits and . _ + -, a gap "
                f"of 1 to 9999, got {word!r}"
            )
        name = match[1]
        if name in groups or name in _TAKEN:
            raise ConfigError(f"--student {name}: another row has this name; choose one for each group of runs")
        if len(set(paths)) != len(paths):
            raise ConfigError(f"--student {name}: a run is named twice; a spread needs runs of different seeds")
        groups[name] = Group(paths, int(match[2] or gap))
    if not groups:
        raise ConfigError("nothing is compared; name students with --student NAME=RUN[,RUN...]")
    return groups


@dataclass(frozen=True)
class Contender:
    """One model of a comparison."""

    name: str
    """Its own name: the group's, with the number of the run where there are several."""
    group: str
    """Name of its group; ``TEACHER`` for the teacher, ``PLAIN`` for the one without guidance."""
    run: Path
    """As it was named."""
    trained: Trained
    """The network, on the device."""
    gap: int
    """Distance of its keyframes; 1 for the teacher, which synthesises every frame."""

    @property
    def is_teacher(self) -> bool:
        """Whether it synthesises every frame, as what students are compared with."""
        return self.group in (TEACHER, PLAIN)


@dataclass(frozen=True)
class Contest:
    """Who is compared, and on what."""

    contenders: tuple[Contender, ...]
    """The teacher first."""
    folder: VideoFolder
    """Held-out part of the data set, as the teacher reads it."""
    seen: VideoFolder
    """The same with its point ids, where it has any."""
    lengths: tuple[int, ...]
    """Frames taken of each sequence."""
    given_frames: int
    """Real frames that every rollout starts from."""
    device: Device
    """Where the networks are."""

    @property
    def groups(self) -> dict[str, list[Contender]]:
        """Contenders by group, the teacher's first."""
        found: dict[str, list[Contender]] = {}
        for contender in self.contenders:
            found.setdefault(contender.group, []).append(contender)
        return found

    @property
    def size(self) -> Size:
        """(height, width) of all frames."""
        return self.contenders[0].trained.architecture.size

    @property
    def num_frames(self) -> int:
        """Frames that each contender delivers."""
        return sum(count - self.given_frames for count in self.lengths)

    def keyframe_fraction(self, gap: int) -> float:
        """Synthesised frames among the delivered ones with keyframes that far apart."""
        first = self.given_frames - 1
        made = sum(len(uniform_keyframes(count - first, gap)) - 1 for count in self.lengths)
        return made / self.num_frames

    @property
    def training_part(self) -> VideoFolder:
        """What the teacher learnt from."""
        return open_folder(replace(self.folder.config, phase="train"))

    def roll_out(self, contender: Contender, clip: Clip) -> Iterator[Delivered]:
        """Frames of a clip after the given ones.

        A teacher synthesises all of them, its norms going by each frame's own statistics; a student keyframes at the
        gap, with the running statistics that it is deployed with.
        """
        generator = contender.trained.generator
        with batch_statistics(generator) if contender.is_teacher else nullcontext():
            yield from deliver(
                generator,
                contender.trained.architecture.condition,
                clip,
                gap=contender.gap,
                given_frames=self.given_frames,
                device=self.device,
            )


def open_contest(
    teacher: Path,
    students: Mapping[str, Group],
    data: Path,
    *,
    given_frames: int,
    max_frames: int | None,
    device: Device,
    plain: Path | None = None,
) -> Contest:
    """Load all runs and refuse what cannot be compared.

    Args:
        teacher: run or checkpoint.
        students: runs of each group, and how far apart its keyframes are.
        data: data set folder.
        given_frames: real frames that every rollout starts from.
        max_frames: at most this many frames of each sequence; all by default.
        device: where the networks go.
        plain: run or checkpoint of the same teacher without guidance.

    Returns:
        The contest.

    Raises:
        ConfigError: if a run is of another condition, size or held-out part, the teacher is none, a group mixes
            networks, or a sequence is shorter than the gap.
        CheckpointError: if a run cannot be loaded.
    """
    contenders = [Contender(TEACHER, TEACHER, teacher, load_trained(teacher), 1)]
    check_stage(contenders[0].trained, ("teacher",), "the teacher of a comparison", "a run of train-teacher")
    for group, (runs, gap) in students.items():
        for number, run in enumerate(runs, start=1):
            name = group if len(runs) == 1 else f"{group}/{number}"
            contenders.append(Contender(name, group, run, load_trained(run), gap))
    if plain is not None:
        contenders.append(Contender(PLAIN, PLAIN, plain, load_trained(plain), 1))
        check_stage(contenders[-1].trained, ("teacher",), "the teacher without guidance", "a run of train-teacher")
    folder = open_folder(data_of(contenders[0].trained.architecture, data, "test"))
    levels = max(contender.trained.architecture.condition.guidance_levels for contender in contenders)
    seen = open_folder(with_points(folder.config, max(levels, 1)))
    lengths = tuple(min(count, max_frames or count) for count in folder.lengths)
    contest = Contest(tuple(contenders), folder, seen, lengths, given_frames, device)
    for contender in contenders:
        _check(contender, contest, data)
        contender.trained.generator.to(device.device)
    for group, members in contest.groups.items():
        if any(m.trained.architecture.generator != members[0].trained.architecture.generator for m in members):
            raise ConfigError(f"--student {group}: its runs are different networks; give each network its own name")
    gap = max(group.gap for group in students.values())
    for sequence, count in zip(folder.sequences, lengths, strict=True):
        if count < given_frames + gap:
            raise ConfigError(
                f"sequence '{sequence.name}' has {count} frames, and a gap of {gap} after {given_frames} given needs "
                f"{given_frames + gap}; lower the gap or take longer sequences"
            )
    return contest


def _check(contender: Contender, contest: Contest, data: Path) -> None:
    """Refuse a run that was trained on something else, or on frames it would be judged by."""
    architecture, size = contender.trained.architecture, contest.size
    held_out = open_folder(data_of(architecture, data, "test"))
    check_condition(architecture, held_out, str(contender.run))
    given = (replace(spec, guidance_levels=0) for spec in (architecture.condition, contest.folder.spec))
    if len(set(given)) > 1:  # guidance may differ: that is one of the things compared
        check_condition(architecture, contest.folder, str(contender.run))
    if architecture.size != size:
        raise ConfigError(
            f"{contender.run} was trained at {architecture.size} and the teacher at {size} (height, width); compare "
            "runs of one size"
        )
    unseen = {(s.name, stem) for s in held_out.sequences for stem in s.stems}
    for sequence in contest.folder.sequences:
        for stem in sequence.stems:
            if (sequence.name, stem) not in unseen:
                raise ConfigError(
                    f"{contender.run} was trained on frame {stem} of sequence '{sequence.name}', which the teacher "
                    "holds out; train it with the teacher's --recipe.data.folder.test-tail"
                )
