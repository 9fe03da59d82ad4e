"""``fastv2v prepare``: a data set from a plain video."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import tyro
from tqdm import tqdm

from fastv2v.commands.arguments import parse
from fastv2v.data.face import FaceConfig as FaceMaps
from fastv2v.data.folder import FolderConfig
from fastv2v.data.prepare.survey import Excerpt, Progress
from fastv2v.data.prepare.write import CONDITIONS, Kind, PrepareConfig, prepare_video
from fastv2v.data.transforms import GeometryConfig
from fastv2v.errors import ConfigError

SHEET: Final = "sheet.png"
"""The contact sheet, beside the summary."""


@dataclass(frozen=True, kw_only=True)
class Prepare(PrepareConfig):
    """Make a data set from a plain video: frames, and what they shall be generated from.

    Any file ffmpeg reads. Stopped and run again, it goes on where it was.
    """

    video: Annotated[Path, tyro.conf.Positional]
    """The video."""
    out: Path
    """Folder to make."""
    excerpt: Annotated[Excerpt, tyro.conf.arg(name="")] = field(default_factory=Excerpt)
    """Part and rate."""
    num_workers: int = 0
    """Processes; 0 for one on each core. The files are the same."""
    overwrite: bool = False
    """Replace a data set that was prepared otherwise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_workers < 0:
            raise ConfigError(f"num_workers must be 0 or more, got {self.num_workers}")

    def config(self) -> PrepareConfig:
        """What the library is asked for."""
        return PrepareConfig(**{f.name: getattr(self, f.name) for f in dataclasses.fields(PrepareConfig)})


def prepare(args: Prepare) -> dict[str, Any]:
    """Make the data set with progress bars, then its contact sheet; returns the summary."""
    with stage_bars() as progress:
        summary = prepare_video(
            args.video,
            args.out,
            args.config(),
            num_workers=args.num_workers,
            overwrite=args.overwrite,
            progress=progress,
        )
    for line in tell(summary):
        print(line)
    return summary


def folder_of(data: Path, kind: Kind) -> FolderConfig:
    """How a prepared data set is read, frames in their own size."""
    face = FaceMaps(crop="none", background="none") if kind == "face" else FaceMaps()
    return FolderConfig(root=data, condition=CONDITIONS[kind], geometry=GeometryConfig(mode="none"), face=face)


def draw_sheet(data: Path, kind: Kind) -> Path:
    """Draw frames of a prepared data set with their conditions, once; returns the picture."""
    # Imported here, since reading a data set into clips needs torch.
    import numpy as np

    from fastv2v.commands.show import show_sequences
    from fastv2v.data.folder import open_folder
    from fastv2v.video import write_image

    sheet = data / SHEET
    if not sheet.exists():
        rows = show_sequences(open_folder(folder_of(data, kind)), sequences=6, frames=4, width=192)
        write_image(sheet, np.concatenate([shown.row for shown in rows]))
    return sheet


def tell(summary: dict[str, Any]) -> Iterator[str]:
    """What was done, for people."""
    video = summary["video"]
    height, width = video["size"]
    yield f"video: {video['frames']} frames of {width}x{height} at {video['fps']:.5g} per second"
    if video["rate_made_constant"]:
        yield "its frames were brought to a constant rate"
    left, top, right, bottom = video["picture"]
    if (left, top, right, bottom) != (0, 0, width, height):
        yield f"black bars around the picture: left {left}, top {top}, right {width - right}, bottom {height - bottom}"
    if video["cuts"]:
        yield f"{len(video['cuts'])} cuts, at frames {', '.join(map(str, video['cuts'][:8]))}" + (
            ", ..." if len(video["cuts"]) > 8 else ""
        )
    if video["repeated_frames"]:
        yield f"{len(video['repeated_frames'])} frames repeat the one before (--drop-repeats leaves them out)"
    if video["damage"]:
        yield f"it ends early: {video['damage']}"
    if "frames_with_a_face" in summary:
        found, looked = summary["frames_with_a_face"], summary["frames_looked_at"]
        yield f"a face in {found} of {looked} frames ({100 * found / looked:.1f} %)"
    if "frames_with_a_person" in summary:
        looked = summary["frames_looked_at"]
        yield (
            f"a person in {summary['frames_with_a_person']} of {looked} frames, the left hand in "
            f"{summary['left_hands']}, the right hand in {summary['right_hands']}"
        )
    if summary.get("frames_with_several_faces"):
        yield f"several faces in {summary['frames_with_several_faces']} frames; --face.choose says whose is taken"
    if summary.get("frames_mirrored_at_the_border"):
        yield f"{summary['frames_mirrored_at_the_border']} heads reach out of the picture, which is mirrored there"
    for reason, count in summary["lost"].items():
        yield f"left out: {count} frames {reason}"
    height, width = summary["size"]
    yield (
        f"kept: {summary['kept']} frames of {width}x{height} in {len(summary['sequences'])} sequences, "
        f"{summary['train']} to train on and {summary['test']} to test on"
    )


@contextmanager
def stage_bars() -> Iterator[Progress]:
    """A progress bar with the time left for each stage."""
    bars: dict[str, tqdm[Any]] = {}

    def progress(stage: str, done: int, total: int) -> None:
        if stage not in bars:
            for other in bars.values():
                other.close()
            bars[stage] = tqdm(desc=stage, unit="frame", dynamic_ncols=True, initial=done)
        bar = bars[stage]
        bar.total = total
        bar.update(done - bar.n)

    try:
        yield progress
    finally:
        for bar in bars.values():
            bar.close()


def main(argv: list[str]) -> int:
    """``fastv2v prepare VIDEO --kind KIND --out DIR``."""
    args = parse(Prepare, "fastv2v prepare", argv)
    summary = prepare(args)
    sheet = draw_sheet(args.out, args.kind)
    counts = {key: summary[key] for key in ("kept", "train", "test", "lost")}
    print(json.dumps({"out": str(args.out), "sheet": str(sheet), "kind": args.kind, **counts}))
    return 0
