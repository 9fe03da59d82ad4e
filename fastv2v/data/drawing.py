"""Curves through key points and strokes along them, from which face and pose maps are drawn. Torch-free.

Both follow the drawing of vid2vid to the pixel, odd habits included, so that its trained weights see what they know.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from fastv2v.errors import ConfigError, DataError, ShapeError

Compositing = Literal["reference", "max"]
"""How a stroke meets what is drawn already, see `stroke`."""

MAX_COORDINATE: Final = 1e5
"""Largest coordinate of a point, in pixels: a curve takes memory by its length, and no picture is this wide."""

_SHARPEST = 1.0
_DECIMALS = 6


def fit_curve(points: NDArray[np.floating[Any] | np.integer[Any]]) -> NDArray[np.int64]:
    """Sample a line through two points or a parabola through three, about one sample a pixel.

    The curve is a function of x, or of y where neighbouring points lie further apart in y than in x. It is sampled
    from the first to the last point at ``int(last - first)`` places, both ends included; positions are truncated
    towards zero. The samples run in the direction in which that variable grows.

    Args:
        points: (x, y) in pixels, shape (K, 2), K of 2 or 3.

    Returns:
        (x, y) of the samples in pixels, shape (M, 2). M is 0 where nothing is to be drawn: the ends are less than a
        pixel apart, or the parabola bends sharply (a quadratic coefficient beyond 1). Where two of three points share
        their abscissa, many parabolas fit equally well and the straight one is taken.

    Raises:
        ShapeError: if the points have another shape.
        DataError: if a coordinate is not finite or beyond ``MAX_COORDINATE``.

    Source:
        Section "Face" of Wang et al., "Video-to-Video Synthesis", NeurIPS 2018, as its published code draws.
    """
    places = np.asarray(points, dtype=np.float64)
    if places.shape not in ((2, 2), (3, 2)):
        raise ShapeError(f"a curve is fitted to points of shape (2, 2) or (3, 2), got {places.shape}")
    if not (np.abs(places) <= MAX_COORDINATE).all():
        raise DataError(f"a curve needs finite points within {MAX_COORDINATE:g} pixels, got {places.tolist()}")
    reach = np.abs(np.diff(places, axis=0)).max(axis=0)
    if reach[0] < reach[1]:
        return _sample(places[:, 1], places[:, 0])[:, ::-1]
    return _sample(places[:, 0], places[:, 1])


def stroke(
    canvas: NDArray[np.uint8],
    points: NDArray[np.integer[Any]],
    colour: int | tuple[int, int, int],
    *,
    width: int,
    ends: bool = False,
    compositing: Compositing = "reference",
) -> None:
    """Draw along samples, in place.

    Every sample paints a square of ``2 * width`` pixels, from ``-width`` to ``width - 1`` around it. What would fall
    outside the canvas is painted on its border.

    Args:
        canvas: (H, W) or (H, W, 3), changed in place.
        points: (x, y) in pixels, shape (M, 2), as `fit_curve` gives; none draws nothing.
        colour: 0 to 255; a number is grey. One-channel canvases take the first of a tuple.
        width: half the thickness of the stroke, in pixels.
        ends: also paint discs of radius ``2 * width`` around the first and the last sample.
        compositing: ``reference`` overwrites a canvas of one channel. With three it goes through the offsets of the
            square in turn: the pixels that one offset reaches take the colour if all of them are black, and otherwise
            all become the mean of what they were and the colour. This darkens crossings and depends on the order of
            strokes, as in the code of vid2vid. ``max`` keeps the larger value per channel, in whatever order.

    Raises:
        ShapeError: if canvas or points have another shape or type.
        ConfigError: if width, colour or compositing make no sense.
    """
    _check_canvas(canvas)
    rgb = _check_colour(colour)
    if width < 1:
        raise ConfigError(f"a stroke has a width of at least 1, got {width}")
    if compositing not in ("reference", "max"):
        raise ConfigError(f"compositing is 'reference' or 'max', got {compositing!r}")
    if points.ndim != 2 or points.shape[1] != 2 or not np.issubdtype(points.dtype, np.integer):
        raise ShapeError(f"a stroke follows integer points of shape (M, 2), got {points.dtype} of {points.shape}")
    if not len(points):
        return
    value = rgb if canvas.ndim == 3 else rgb[0]
    _paint(canvas, points, _square(width), value, compositing)
    if ends:
        _paint(canvas, points[[0, -1]], _disc(width), value, compositing)


def _sample(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.int64]:
    """Samples of y as a function of x, (M, 2)."""
    slope, bend, origin = _fit(x - x[0], y)
    left, right = min(x[0], x[-1]), max(x[0], x[-1])
    if abs(bend) > _SHARPEST:
        return np.empty((0, 2), np.int64)
    across = np.linspace(left, right, int(right - left))
    along = across - x[0]
    curve = origin + along * (slope + along * bend)
    # Rounding noise must not push a whole number below itself, where truncation would lose a pixel.
    return np.trunc(np.round(np.stack([across, curve], axis=1), _DECIMALS)).astype(np.int64)


def _fit(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float, float]:
    """(b, a, c) of the least-squares y = c + b x + a x², with a = 0 for fewer than three different x; x[0] is 0."""
    if len(np.unique(x.round(_DECIMALS))) == 3:  # nearer than that, slopes would overflow
        first, second = (y[1] - y[0]) / x[1], (y[2] - y[1]) / (x[2] - x[1])
        bend = (second - first) / x[2]
        return float(first - bend * x[1]), float(bend), float(y[0])
    centred = x - x.mean()
    spread = float(centred @ centred)
    slope = float(centred @ y) / spread if spread else 0.0
    return slope, 0.0, float(y.mean() - slope * x.mean())


def _square(width: int) -> NDArray[np.int64]:
    """Offsets (dx, dy) of one sample, rows first as the reference goes through them."""
    steps = np.arange(-width, width)
    return np.stack([np.tile(steps, 2 * width), np.repeat(steps, 2 * width)], axis=1)


def _disc(width: int) -> NDArray[np.int64]:
    """Offsets (dx, dy) around an end point."""
    offsets = _square(2 * width)
    return offsets[(offsets**2).sum(axis=1) < 4 * width**2]


def _paint(
    canvas: NDArray[np.uint8],
    points: NDArray[np.integer[Any]],
    offsets: NDArray[np.int64],
    value: int | tuple[int, int, int],
    compositing: Compositing,
) -> None:
    """Put a value on every point plus every offset."""
    x, y = (np.clip(points[:, i] + offsets[:, i, None], 0, canvas.shape[1 - i] - 1) for i in (0, 1))  # (offsets, M)
    if compositing == "max":
        canvas[y, x] = np.maximum(canvas[y, x], np.array(value, np.uint8))
    elif canvas.ndim == 2:
        canvas[y, x] = value
    else:
        flat = np.ascontiguousarray(canvas).reshape(-1, 3)
        _average(flat, y * canvas.shape[1] + x, np.array(value, np.uint16))
        if not np.may_share_memory(flat, canvas):
            canvas[...] = flat.reshape(canvas.shape)


def _average(pixels: NDArray[np.uint8], places: NDArray[np.integer[Any]], value: NDArray[np.uint16]) -> None:
    """Reference compositing on pixels (N, 3), offset by offset, in place; ``places`` are indices (offsets, M)."""
    colour = value.astype(np.uint8)
    if places.shape[1] <= 2 and len(np.unique(places)) == places.size:
        # Discs apart from each other: no offset meets what another one painted, so that all may be done at once.
        old = pixels[places]
        mean = ((old + value) >> 1).astype(np.uint8)
        pixels[places] = np.where(old.any(axis=(1, 2))[:, None, None], mean, colour)
        return
    for row in places:
        old = pixels.take(row, axis=0)
        pixels[row] = (old + value) >> 1 if old.any() else colour


def _check_canvas(canvas: NDArray[np.uint8]) -> None:
    fits = canvas.ndim == 2 or (canvas.ndim == 3 and canvas.shape[2] == 3)
    if not fits or canvas.dtype != np.uint8 or not canvas.size:
        raise ShapeError(f"a canvas is uint8 of shape (H, W) or (H, W, 3), got {canvas.dtype} of {canvas.shape}")


def _check_colour(colour: int | tuple[int, int, int]) -> tuple[int, int, int]:
    parts = colour if isinstance(colour, tuple) else (colour, colour, colour)
    if len(parts) != 3 or not all(0 <= part <= 255 for part in parts):
        raise ConfigError(f"a colour is one number or a tuple of three, each 0 to 255, got {colour}")
    return parts
