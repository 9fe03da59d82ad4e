"""A label map without labels: clusters of colour and texture, fitted over a whole video. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from fastv2v.data.prepare.chunks import Found, Piece
from fastv2v.data.prepare.steady import Follower, steady_argmin, without_specks
from fastv2v.data.prepare.survey import Frame
from fastv2v.errors import ConfigError, DataError

_WORKING_SIDE: Final = 256
_SAMPLES_OF_A_FRAME: Final = 400
_MOST_SAMPLES: Final = 60_000
_ROUNDS: Final = 40
_LIGHT, _COLOUR, _TEXTURE = 0.6, 1.2, 1.0  # what a step of each counts for; light changes with shadows
_WINDOW: Final = 7
_FEATURES: Final = 4

PALETTE_FILE: Final = "palette.json"
"""Beside the classes of a data set: what finds them in other pictures."""


@dataclass(frozen=True, kw_only=True)
class PaletteConfig:
    """How a video is divided into classes of colour and texture."""

    classes: int = 16
    """Number of classes, 2 to 64."""
    hold: float = 0.5
    """How much more another class must fit before a pixel changes to it, in variances of a class; 0 lets maps
    flicker."""
    min_area: float = 0.0005
    """Pieces smaller than this share of the frame are given to their neighbours."""
    seed: int = 0
    """Where the classes begin."""

    def __post_init__(self) -> None:
        if not 2 <= self.classes <= 64:
            raise ConfigError(f"a palette has 2 to 64 classes, got {self.classes}")
        if not 0 <= self.hold <= 100 or not 0 <= self.min_area <= 0.1 or self.seed < 0:
            raise ConfigError(f"hold lies in 0 to 100, min_area in 0 to 0.1 and seed at 0 or more, got {self}")


@dataclass(frozen=True)
class Palette:
    """Classes that were fitted."""

    centres: NDArray[np.float32]
    """In feature space, (L, F), from dark to light."""
    colours: NDArray[np.uint8]
    """Mean RGB of each, (L, 3)."""
    variance: float
    """Mean squared distance of a pixel from its centre."""


def palette_record(palette: Palette, config: PaletteConfig) -> dict[str, Any]:
    """A palette and how its maps are cleaned, as values that JSON has."""
    return {
        "schema": 1,
        "centres": palette.centres.tolist(),
        "colours": palette.colours.tolist(),
        "variance": palette.variance,
        "config": asdict(config),
    }


def read_palette(path: Path) -> tuple[Palette, PaletteConfig]:
    """Read what ``palette_record`` wrote.

    Args:
        path: ``palette.json`` of a prepared data set.

    Raises:
        DataError: if it is missing or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        centres, colours = np.array(content["centres"], np.float32), np.array(content["colours"], np.uint8)
        palette, config = Palette(centres, colours, float(content["variance"])), PaletteConfig(**content["config"])
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; name the palette.json of a data set made by prepare") from error
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise DataError(f"{path}: not a palette as fastv2v prepare writes it ({error}); prepare it again") from error
    is_palette = centres.ndim == 2 and centres.shape[1] == _FEATURES and colours.shape == (len(centres), 3)
    if not is_palette or not np.isfinite(centres).all() or not 0 < palette.variance < float("inf"):
        raise DataError(f"{path}: not a palette as fastv2v prepare writes it; prepare the video again")
    return palette, config


def features_of(frame: Frame) -> NDArray[np.float32]:
    """What pixels are compared by: lightness, two colour axes, and how rough their surroundings are, (H, W, 4)."""
    smooth = cv2.bilateralFilter(frame, 5, 24, 3)
    lab = cv2.cvtColor(smooth.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    light = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32) * (100 / 255)
    mean, square = (cv2.blur(values, (_WINDOW, _WINDOW)) for values in (light, light * light))
    rough = cv2.blur(np.sqrt(np.maximum(square - mean * mean, 0)), (_WINDOW, _WINDOW))
    return np.dstack([lab * np.array([_LIGHT, _COLOUR, _COLOUR], np.float32), _TEXTURE * rough]).astype(np.float32)


def sample_pixels(piece: Piece, frames: list[Frame]) -> Found:
    """Features and colours of some pixels of each frame, always the same ones."""
    features, colours = [], []
    for number, frame in zip(piece.frames, frames, strict=True):
        small = _working_copy(frame)
        rng = np.random.default_rng(number)
        chosen = rng.integers(0, small.shape[0] * small.shape[1], _SAMPLES_OF_A_FRAME)
        features.append(features_of(small).reshape(-1, 4)[chosen])
        colours.append(small.reshape(-1, 3)[chosen])
    return {"features": np.concatenate(features), "colours": np.concatenate(colours)}


def fit_palette(features: NDArray[np.float32], colours: NDArray[np.uint8], config: PaletteConfig) -> Palette:
    """Find the classes of a video.

    Args:
        features: of pixels from all over it, (N, F).
        colours: their RGB, (N, 3).
        config: how many.

    Returns:
        The classes. A video with fewer different pixels than classes has fewer of them.

    Raises:
        DataError: if all pixels are alike.

    Source:
        k-means (Lloyd, 1982) from k-means++ centres (Arthur and Vassilvitskii, SODA 2007).
    """
    rng = np.random.default_rng(config.seed)
    if len(features) > _MOST_SAMPLES:
        chosen = np.sort(rng.choice(len(features), _MOST_SAMPLES, replace=False))
        features, colours = features[chosen], colours[chosen]
    centres = _spread_centres(features, config.classes, rng)
    if len(centres) < 2:
        raise DataError("every pixel of the video looks alike, which makes no palette; choose another kind")
    for _ in range(_ROUNDS):
        nearest = _distances(features, centres).argmin(axis=1)
        counts = np.bincount(nearest, minlength=len(centres))
        sums = np.stack([np.bincount(nearest, column, len(centres)) for column in features.T], axis=1)
        moved = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], centres).astype(np.float32)
        if np.abs(moved - centres).max() < 1e-3:
            break
        centres = moved
    centres = centres[np.argsort(centres[:, 0], kind="stable")]
    distances = _distances(features, centres)
    nearest = distances.argmin(axis=1)
    counts = np.maximum(np.bincount(nearest, minlength=len(centres)), 1)
    means = np.stack([np.bincount(nearest, column, len(centres)) / counts for column in colours.T], axis=1)
    return Palette(centres, np.rint(means).astype(np.uint8), float(distances.min(axis=1).mean()) or 1.0)


def _spread_centres(features: NDArray[np.float32], count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Centres far from each other, drawn one by one in proportion to the squared distance from those before."""
    centres = [features[rng.integers(len(features))]]
    nearest = ((features - centres[0]) ** 2).sum(axis=1)
    while len(centres) < count and nearest.max() > 1e-6:
        centres.append(features[rng.choice(len(features), p=nearest / nearest.sum(dtype=np.float64))])
        nearest = np.minimum(nearest, ((features - centres[-1]) ** 2).sum(axis=1))
    return np.array(centres, np.float32)


def _distances(features: NDArray[np.float32], centres: NDArray[np.float32]) -> NDArray[np.float32]:
    """Squared distances, (..., L)."""
    squares = (features**2).sum(axis=-1, keepdims=True) + (centres**2).sum(axis=1)
    return np.maximum(squares - 2 * (features @ centres.T), 0)


def draw_palette(frames: Iterable[Frame], palette: Palette, config: PaletteConfig) -> Iterator[NDArray[np.uint8]]:
    """Classes of frames that follow each other.

    Args:
        frames: RGB, (H, W, 3).
        palette: the classes.
        config: how they are cleaned and held.

    Yields:
        For each frame class ids, (H, W).
    """
    follower = Follower()
    labels: NDArray[np.uint8] | None = None
    for frame in frames:
        small = _working_copy(frame)
        follower.advance(small)
        cost = cv2.blur(_distances(features_of(small), palette.centres), (3, 3)) / palette.variance
        labels = steady_argmin(cost, labels, follower, config.hold)
        labels = without_specks(cv2.medianBlur(labels, 5), round(config.min_area * labels.size))
        if small.shape == frame.shape:
            yield labels
        else:
            large = cv2.resize(labels, frame.shape[1::-1], interpolation=cv2.INTER_NEAREST)
            yield cv2.medianBlur(large, 5).astype(np.uint8)


def _working_copy(frame: Frame) -> Frame:
    scale = _WORKING_SIDE / min(frame.shape[:2])
    if scale >= 1:
        return frame
    return cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA).astype(np.uint8)
