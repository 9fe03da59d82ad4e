"""``fastv2v looks``: what the objects of each class look like to a teacher with instance features."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from fastv2v.architecture import Trained, load_trained
from fastv2v.commands.arguments import parse
from fastv2v.commands.parts import check_condition, data_of
from fastv2v.data.folder import Phase, VideoFolder, open_folder
from fastv2v.device import Device, DeviceConfig, open_device
from fastv2v.errors import ConfigError
from fastv2v.nn.features import FeatureGenerator
from teachers.looks import (
    LOOKS_FILE,
    InstanceVectors,
    LookTable,
    Method,
    cluster_looks,
    collect_features,
    encoder_digest,
    write_looks,
)


@dataclass(frozen=True, kw_only=True)
class Looks:
    """Learn what the objects of each class look like to a teacher with instance features.

    Other looks can then be drawn when it synthesises.
    """

    run: Path
    """Run or checkpoint of train-teacher, with --recipe.features.channels above 0."""
    data: Path
    """Data set folder; the one the teacher was trained on."""
    out: Path | None = None
    """File to write; by default looks.npz in the folder of the run."""
    phase: Phase = "train"
    """Which part of the data set is looked at."""
    every: int = 1
    """Look at every so many-th frame."""
    clusters: int = 10
    """Looks of a class at most; a class with fewer instances has fewer."""
    method: Method = "kmeans"
    """``kmeans``: an object gets the centre of a cluster. ``gmm``: it is drawn from a mixture of Gaussians."""
    min_area: float = 0.5
    """Instances of at most this area are left out, in 32nds of the picture."""
    seed: int = 0
    """Where clustering starts."""
    overwrite: bool = False
    """Replace the file."""
    device: DeviceConfig = field(default_factory=DeviceConfig)
    """Where and in what precision."""

    def __post_init__(self) -> None:
        if self.every < 1 or self.clusters < 1 or self.min_area < 0:
            raise ConfigError(
                f"every and clusters must be at least 1 and min_area at least 0, got {self.every}, {self.clusters} and "
                f"{self.min_area}"
            )


def observe(
    trained: Trained, folder: VideoFolder, every: int, device: Device
) -> tuple[FeatureGenerator, InstanceVectors]:
    """The teacher, on the device, and what its encoder sees; with a progress bar.

    Raises:
        ConfigError: if it has no encoder.
    """
    model = trained.model
    if not isinstance(model, FeatureGenerator):
        raise ConfigError(
            f"{trained.checkpoint} has no instance features; give a run of train-teacher with "
            "--recipe.features.channels 3"
        )
    model.to(device.device)
    with device.autocast(), tqdm(unit="frame", desc="looks", dynamic_ncols=True) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return model, collect_features(model, folder, every=every, progress=progress)


def table_text(table: LookTable) -> str:
    """The classes that have looks, for people."""
    width = max(map(len, ("class", *table.class_names)))
    rows = [
        f"{name:<{width}}  {looks.instances:>9}  {len(looks):>5}  {looks.spread:>6.3f}"
        for name, looks in zip(table.class_names, table.classes, strict=True)
        if len(looks)
    ]
    return "\n".join([f"{'class':<{width}}  instances  looks  spread", *rows])


def main(argv: list[str]) -> int:
    """``fastv2v looks --run RUN --data DIR``."""
    args = parse(Looks, "fastv2v looks", argv)
    device = open_device(args.device)
    trained = load_trained(args.run)
    out = args.out or trained.checkpoint.parent.parent / LOOKS_FILE
    if out.exists() and not args.overwrite:
        raise ConfigError(f"{out} exists already; name another file with --out or pass --overwrite")
    folder = open_folder(data_of(trained.architecture, args.data, args.phase))
    check_condition(trained.architecture, folder, str(args.run))
    model, seen = observe(trained, folder, args.every, device)
    table = cluster_looks(
        seen,
        folder.spec.class_names,
        encoder=encoder_digest(model),
        clusters=args.clusters,
        method=args.method,
        min_area=args.min_area,
        seed=args.seed,
    )
    if not any(map(len, table.classes)):
        raise ConfigError(f"{args.data}: no instance is large enough; lower --min-area (it is {args.min_area})")
    write_looks(out, table)
    print(f"{out}: looks of {trained.checkpoint} (step {trained.step})")
    print(table_text(table))
    classes = {
        name: {"instances": looks.instances, "looks": len(looks), "spread": round(looks.spread, 4)}
        for name, looks in zip(table.class_names, table.classes, strict=True)
    }
    print(json.dumps({"out": str(out), "method": table.method, "channels": table.channels, "classes": classes}))
    return 0
