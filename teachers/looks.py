"""Looks: what objects of each class looked like in the training data, and drawing other ones from them.

Observe the vectors of all instances, cluster them class by class, sample one for each object of a video.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastv2v.data.clip import Clip
from fastv2v.data.conditions import ConditionSpec
from fastv2v.data.folder import FrameReader, VideoFolder
from fastv2v.data.loader import read_clip
from fastv2v.data.sampling import generator_at
from fastv2v.data.transforms import draw_geometry
from fastv2v.errors import ConfigError, DataError
from fastv2v.nn.features import FeatureGenerator, instance_groups, instance_keys, pool_instances
from fastv2v.ops.labels import encode_clip
from fastv2v.run import write_bytes

# Shape letters beyond those of the contracts: F feature channels, n observed instances, k looks of a class.

Method = Literal["kmeans", "gmm"]
"""``kmeans``: looks are cluster centres. ``gmm``: looks are Gaussians, and a sample varies around their means."""

Vectors = NDArray[np.float64]

LOOKS_FILE: Final = "looks.npz"
"""Name of a table of looks in the folder of its run."""

_SCHEMA: Final = 1
_MIN_VARIANCE: Final = 1e-4  # features lie in [-1, 1]: a component is no narrower than 0.01


@dataclass(frozen=True)
class InstanceVectors:
    """What the encoder saw: one row for each instance in each frame."""

    vectors: Vectors
    """(n, F)."""
    classes: NDArray[np.int64]
    """Class ids, (n,)."""
    areas: NDArray[np.float64]
    """Pixels of the instance / (H * W // 32), (n,): 0.5 is a 64th of the picture."""


@dataclass(frozen=True)
class ClassLooks:
    """The looks of one class, most frequent first; none (k = 0) where no instance of it was large enough."""

    centres: Vectors
    """(k, F)."""
    deviations: Vectors
    """Standard deviations around the centres, (k, F); zeros for k-means."""
    weights: Vectors
    """How likely each is drawn, (k,); even for k-means."""
    instances: int
    """How many instances they were learnt from."""
    spread: float
    """Root mean square distance of the vectors from their mean: 0 where all instances look alike."""

    def __len__(self) -> int:
        return len(self.centres)


@dataclass(frozen=True)
class LookTable:
    """The looks of all classes, as one encoder sees them."""

    class_names: tuple[str, ...]
    """In id order."""
    classes: tuple[ClassLooks, ...]
    """One for each name."""
    channels: int
    """F."""
    method: Method
    """How they were found."""
    encoder: str
    """``encoder_digest`` of the encoder: vectors mean nothing to another one."""


def encoder_digest(model: FeatureGenerator) -> str:
    """A short text that changes with any weight of the encoder."""
    digest = hashlib.sha256()
    for name, value in model.encoder.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


@torch.no_grad()
def collect_features(
    model: FeatureGenerator,
    folder: VideoFolder,
    *,
    every: int = 1,
    window: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> InstanceVectors:
    """The vector of every instance in the frames of a data set.

    Args:
        model: whose encoder looks; in evaluation mode.
        folder: data set with label and instance maps.
        every: look at every so many-th frame.
        window: frames that are held at a time.
        progress: called with (frames done, frames in all).

    Returns:
        One row for each instance and frame, in the order of sequences, frames, classes and instance ids; pixels that
        belong to no class are left out.

    Raises:
        ConfigError: if ``every`` or ``window`` is below 1.
        DataError: if a file is damaged or the data set has no instance maps.

    Source:
        pix2pixHD (Wang et al., CVPR 2018), there for single images.
    """
    if every < 1 or window < 1:
        raise ConfigError(f"every and window must be at least 1, got {every} and {window}")
    device = next(model.parameters()).device
    reader = FrameReader(folder, cache_mb=0)
    chosen = [range(0, length, every) for length in folder.lengths]
    done, total = 0, sum(map(len, chosen))
    found: list[InstanceVectors] = []
    for i, frames in enumerate(chosen):
        geometry = draw_geometry(folder.config.geometry, reader.image_size(i), None, "test")
        for first in range(0, len(frames), window):
            indices = frames[first : first + window]
            clip = read_clip(folder, i, indices, geometry, reader=reader).to(device)
            found.append(_instances_of(model, clip, folder.spec.num_classes))
            done += len(indices)
            if progress is not None:
                progress(done, total)
    return InstanceVectors(
        np.concatenate([x.vectors for x in found]),
        np.concatenate([x.classes for x in found]),
        np.concatenate([x.areas for x in found]),
    )


def _instances_of(model: FeatureGenerator, clip: Clip, num_classes: int) -> InstanceVectors:
    """The instances of each frame of a clip (B = 1)."""
    groups = instance_groups(clip)[0]
    assert clip.labels is not None  # instance_groups needs them too
    pooled = pool_instances(model.encoder(clip.frames[0]), groups)
    _, first = np.unique(pooled.group.cpu().numpy(), return_index=True)  # one pixel of each, all are alike
    classes = clip.labels[0].cpu().numpy().reshape(-1)[first].astype(np.int64)
    known = classes < num_classes
    height, width = clip.size
    areas = pooled.counts.cpu().numpy() / (height * width // 32)
    return InstanceVectors(pooled.means.cpu().numpy().astype(np.float64)[known], classes[known], areas[known])


def cluster_looks(
    seen: InstanceVectors,
    class_names: Sequence[str],
    *,
    encoder: str,
    clusters: int = 10,
    method: Method = "kmeans",
    min_area: float = 0.5,
    seed: int = 0,
) -> LookTable:
    """Find the looks of each class.

    Args:
        seen: vectors of instances.
        class_names: in id order.
        encoder: ``encoder_digest`` of whose vectors they are.
        clusters: looks of a class at most; fewer where it has fewer instances.
        method: k-means centres, or a mixture of Gaussians.
        min_area: instances of smaller area are left out, see ``InstanceVectors.areas``.
        seed: where k-means starts.

    Raises:
        ConfigError: if a setting is out of range.

    Source:
        k-means as in pix2pixHD, a mixture of Gaussians as in Wang et al., "Video-to-Video Synthesis", NeurIPS 2018.
    """
    if clusters < 1 or min_area < 0:
        raise ConfigError(f"clusters must be at least 1 and min_area at least 0, got {clusters} and {min_area}")
    if method not in get_args(Method):
        raise ConfigError(f"method is one of {', '.join(get_args(Method))}, got {method!r}")
    large = seen.areas > min_area
    tables = []
    for class_id in range(len(class_names)):
        vectors = seen.vectors[large & (seen.classes == class_id)]
        tables.append(_looks_of(vectors, clusters, method, generator_at(seed, "looks", class_id)))
    return LookTable(tuple(class_names), tuple(tables), seen.vectors.shape[1], method, encoder)


def _looks_of(vectors: Vectors, clusters: int, method: Method, rng: np.random.Generator) -> ClassLooks:
    """The looks of one class."""
    count, channels = vectors.shape
    if count == 0:
        none = np.zeros((0, channels))
        return ClassLooks(none, none, np.zeros(0), 0, 0.0)
    spread = float(np.sqrt(vectors.var(axis=0).sum()))
    if method == "gmm":
        weights, means, deviations = fit_mixture(vectors, clusters, rng)
        order = np.argsort(-weights, kind="stable")
        return ClassLooks(means[order], deviations[order], weights[order], count, spread)
    centres, nearest = kmeans(vectors, clusters, rng)
    centres = centres[np.argsort(-np.bincount(nearest, minlength=len(centres)), kind="stable")]
    return ClassLooks(centres, np.zeros_like(centres), np.full(len(centres), 1 / len(centres)), count, spread)


def kmeans(
    vectors: Vectors, clusters: int, rng: np.random.Generator, *, restarts: int = 10
) -> tuple[Vectors, NDArray[np.intp]]:
    """Lloyd's algorithm from several k-means++ starts; the result of least squared distance.

    Args:
        vectors: (n, F), n at least 1.
        clusters: k at most; fewer where there are fewer different vectors.
        rng: draws the starts.
        restarts: number of starts.

    Returns:
        Centres (k, F) and the nearest centre of each vector (n,).

    Source:
        Arthur and Vassilvitskii, "k-means++: The Advantages of Careful Seeding", SODA 2007.
    """
    best: tuple[float, Vectors, NDArray[np.intp]] | None = None
    for _ in range(restarts):
        centres = _careful_seeds(vectors, clusters, rng)
        nearest = np.full(len(vectors), -1)
        while True:
            distances = _squared_distances(vectors, centres)
            now = distances.argmin(axis=1)
            if np.array_equal(now, nearest):
                break
            nearest = now
            counts = np.bincount(nearest, minlength=len(centres))[:, None]
            sums = np.zeros_like(centres)
            np.add.at(sums, nearest, vectors)
            centres = np.where(counts > 0, sums / np.maximum(counts, 1), centres)  # an empty one stays where it is
        cost = float(distances.min(axis=1).sum())
        if best is None or cost < best[0]:
            best = cost, centres, nearest
    assert best is not None  # restarts is at least 1
    return best[1], best[2]


def _careful_seeds(vectors: Vectors, clusters: int, rng: np.random.Generator) -> Vectors:
    """k-means++: each further seed is drawn with the squared distance to the nearest one so far."""
    seeds = [vectors[rng.integers(len(vectors))]]
    while len(seeds) < clusters:
        distances = _squared_distances(vectors, np.stack(seeds)).min(axis=1)
        if not distances.any():  # no other vectors are left
            break
        seeds.append(vectors[rng.choice(len(vectors), p=distances / distances.sum())])
    return np.stack(seeds)


def _squared_distances(vectors: Vectors, centres: Vectors) -> Vectors:
    """(n, k), centre by centre: n may be large."""
    return np.stack([((vectors - centre) ** 2).sum(axis=1) for centre in centres], axis=1)


def fit_mixture(
    vectors: Vectors, clusters: int, rng: np.random.Generator, *, max_steps: int = 200
) -> tuple[Vectors, Vectors, Vectors]:
    """A mixture of axis-aligned Gaussians by expectation maximisation, from k-means.

    Args:
        vectors: (n, F), n at least 1.
        clusters: k at most; fewer where there are fewer different vectors.
        rng: for k-means.
        max_steps: where it ends if the likelihood still grows.

    Returns:
        Weights (k,) of sum 1, means (k, F) and standard deviations (k, F), none below 0.01.

    Source:
        Dempster, Laird and Rubin, "Maximum Likelihood from Incomplete Data via the EM Algorithm", 1977.
    """
    means, nearest = kmeans(vectors, clusters, rng)
    share = np.eye(len(means))[nearest]  # (n, k): how much of each vector each component explains
    before = -math.inf
    for _ in range(max_steps):
        total = np.maximum(share.sum(axis=0), 1e-12)
        weights = total / total.sum()
        means = share.T @ vectors / total[:, None]
        variances = np.stack([s @ (vectors - m) ** 2 / t for s, m, t in zip(share.T, means, total, strict=True)])
        variances = np.maximum(variances, _MIN_VARIANCE)
        log_joint = np.log(weights) + np.stack(
            [
                -0.5 * ((vectors - m) ** 2 / v + np.log(2 * np.pi * v)).sum(axis=1)
                for m, v in zip(means, variances, strict=True)
            ],
            axis=1,
        )
        log_evidence = np.logaddexp.reduce(log_joint, axis=1, keepdims=True)
        share, now = np.exp(log_joint - log_evidence), float(log_evidence.mean())
        if now - before < 1e-6:
            break
        before = now
    return weights, means, np.sqrt(variances)


def write_looks(path: Path, table: LookTable) -> None:
    """Write a table of looks, whole or not at all: arrays and a JSON header in an npz file, nothing pickled."""
    header = {
        "schema": _SCHEMA,
        "method": table.method,
        "channels": table.channels,
        "encoder": table.encoder,
        "classes": [
            {"name": name, "looks": len(looks), "instances": looks.instances, "spread": looks.spread}
            for name, looks in zip(table.class_names, table.classes, strict=True)
        ],
    }
    file = io.BytesIO()
    np.savez(
        file,
        header=np.frombuffer(json.dumps(header).encode(), dtype=np.uint8),
        centres=np.concatenate([looks.centres for looks in table.classes]),
        deviations=np.concatenate([looks.deviations for looks in table.classes]),
        weights=np.concatenate([looks.weights for looks in table.classes]),
    )
    write_bytes(path, file.getvalue())


def read_looks(path: Path) -> LookTable:
    """Read what ``write_looks`` wrote.

    Raises:
        DataError: if the file is missing, damaged or of another version.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such table of looks; make one: fastv2v looks --run RUN --data DIR")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            stored = {name: arrays[name] for name in ("centres", "deviations", "weights")}
            header = json.loads(arrays["header"].tobytes())
        return _table(header, stored)
    except (KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is no table of looks of this version ({error}); run fastv2v looks again") from error


def _table(header: Mapping[str, Any], stored: Mapping[str, Vectors]) -> LookTable:
    """The table of a header and its arrays; any of the errors that ``read_looks`` expects where they disagree."""
    if header["schema"] != _SCHEMA or header["method"] not in get_args(Method):
        raise ValueError(f"schema {header['schema']}, method {header['method']}")
    entries, channels = header["classes"], int(header["channels"])
    total = sum(entry["looks"] for entry in entries)
    shapes = {name: value.shape for name, value in stored.items()}
    if shapes != {"centres": (total, channels), "deviations": (total, channels), "weights": (total,)}:
        raise ValueError(f"{total} looks of {channels} channels and arrays of {shapes}")
    if not all(np.isfinite(value).all() for value in stored.values()):
        raise ValueError("a value is not finite")
    classes, start = [], 0
    for entry in entries:
        here = slice(start, start := start + entry["looks"])
        centres, deviations, weights = (stored[name][here] for name in ("centres", "deviations", "weights"))
        classes.append(ClassLooks(centres, deviations, weights, int(entry["instances"]), float(entry["spread"])))
    names = tuple(str(entry["name"]) for entry in entries)
    return LookTable(names, tuple(classes), channels, header["method"], str(header["encoder"]))


def check_looks(table: LookTable, model: FeatureGenerator, spec: ConditionSpec) -> None:
    """Refuse a table that was made for another model.

    Raises:
        ConfigError: if classes, channels or the weights of the encoder differ.
    """
    if table.class_names != spec.class_names or table.channels != model.feature_channels:
        raise ConfigError("the looks were made for other classes or features than the run's; run fastv2v looks again")
    if table.encoder != encoder_digest(model):
        raise ConfigError("the looks were made with other weights than the run's now; run fastv2v looks again")


def choose_looks(table: LookTable, override: Mapping[str, int]) -> dict[int, int]:
    """Check which classes get a certain look.

    Args:
        table: the looks.
        override: number of the look by class name.

    Returns:
        Number of the look by class id.

    Raises:
        ConfigError: if there is no such class or look.
    """
    chosen = {}
    for name, look in override.items():
        if name not in table.class_names:
            raise ConfigError(f"there is no class {name!r} to give a look; there are {', '.join(table.class_names)}")
        class_id = table.class_names.index(name)
        if not 0 <= look < len(table.classes[class_id]):
            raise ConfigError(
                f"the class {name!r} has {len(table.classes[class_id])} looks, counted from 0; got {look}"
            )
        chosen[class_id] = look
    return chosen


def sample_look(
    table: LookTable,
    seed: int,
    sequence: str,
    class_id: int,
    instance: int,
    *,
    override: Mapping[str, int] | None = None,
) -> NDArray[np.float32]:
    """The vector of one object of a video, the same in all frames and however often it is asked for.

    Args:
        table: to draw from.
        seed: another one gives other looks.
        sequence: name of the video.
        class_id: class of the object.
        instance: its instance id.
        override: number of the look by class name, for classes whose objects all get the centre of that one.

    Returns:
        (F,) in [-1, 1]; zeros for a class without looks.

    Raises:
        ConfigError: if the override names no class or look of the table.
    """
    chosen = choose_looks(table, override or {})
    if class_id in chosen:
        return _bounded(table.classes[class_id].centres[chosen[class_id]])
    looks = table.classes[class_id] if 0 <= class_id < len(table.classes) else None
    if looks is None or len(looks) == 0:
        return np.zeros(table.channels, dtype=np.float32)
    rng = generator_at(seed, "look", sequence, class_id, instance)
    drawn = rng.choice(len(looks), p=looks.weights)
    return _bounded(looks.centres[drawn] + looks.deviations[drawn] * rng.standard_normal(table.channels))


def _bounded(vector: Vectors) -> NDArray[np.float32]:
    return np.clip(vector, -1, 1).astype(np.float32)


class Object(NamedTuple):
    """An object of a video."""

    class_id: int
    """Its class."""
    instance: int
    """Its instance id, unique within the class."""


def paint_features(labels: Tensor, instances: Tensor, look: Callable[[Object], NDArray[np.float32]]) -> Tensor:
    """Give every pixel the vector of its object.

    Args:
        labels: class ids, (T, H, W).
        instances: instance ids, (T, H, W).
        look: gives the vector (F,) of an object; asked once for each that occurs.

    Returns:
        (T, F, H, W) float32, on the device of the labels.
    """
    keys, group = torch.unique(instance_keys(labels, instances), return_inverse=True)
    vectors = np.stack([look(Object(key >> 32, key & 0xFFFFFFFF)) for key in keys.tolist()])
    return torch.from_numpy(vectors).to(labels.device)[group].movedim(-1, 1)


def conditions_with_look(
    model: FeatureGenerator,
    spec: ConditionSpec,
    clip: Clip,
    looks: LookTable,
    *,
    seed: int,
    override: Mapping[str, int] | None = None,
) -> Tensor:
    """Conditions of a clip whose objects look as drawn; the real frames are not looked at.

    Windows of one video may be asked for one by one: an object keeps its look where its instance id persists.

    Args:
        model: what the conditions are for.
        spec: how conditions are encoded, features left out.
        clip: with label and instance maps and the names of its sequences.
        looks: of this model.
        seed: another one gives other looks.
        override: number of the look by class name, for classes whose objects all get that one.

    Returns:
        (B, T, C + F, H, W) float32.

    Raises:
        ConfigError: if the looks are of another model, or the override names no class or look of theirs.
        DataError: if the clip lacks a map or the name of a sequence.
    """
    check_looks(looks, model, spec)
    choose_looks(looks, override or {})
    if clip.labels is None or clip.instances is None or len(clip.info) != len(clip.labels):
        raise DataError("drawing looks needs label maps, instance maps and the names of the sequences")
    painted = []
    for info, labels, instances in zip(clip.info, clip.labels, clip.instances, strict=True):

        def look(thing: Object, sequence: str = info.sequence) -> NDArray[np.float32]:
            return sample_look(looks, seed, sequence, thing.class_id, thing.instance, override=override)

        painted.append(paint_features(labels, instances, look))
    return torch.cat([encode_clip(spec, clip), torch.stack(painted)], dim=2)
