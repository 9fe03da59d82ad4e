"""Procedural textures: facades, shops, road, leaves, cars, signs and the rest, painted with numpy and OpenCV.

Every painter returns a ``Tile``: RGB, a tint mask (where the paint of a surface shows) and, for cut-outs, an alpha
map. Colours are 8-bit sRGB values; sizes in texels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Colour = tuple[float, float, float]
NUM_FACADES, NUM_SHOPS, NUM_CARS, NUM_SIGNS, NUM_LEAVES, NUM_ROADS = 8, 8, 3, 5, 3, 4
ROAD_HALF_WIDTH = 5.4
ROAD_PERIOD = 21.6
BAY, STOREY, GROUND_STOREY = 3.0, 3.2, 3.75


def dim(colour: Colour, factor: float) -> Colour:
    """The colour, darker or brighter."""
    red, green, blue = colour
    return min(255.0, red * factor), min(255.0, green * factor), min(255.0, blue * factor)


class Tile(NamedTuple):
    """One texture before packing."""

    rgb: NDArray[np.uint8]  # (h, w, 3)
    tint: NDArray[np.uint8]  # (h, w), 255 where the colour is multiplied by the surface's own tint
    alpha: NDArray[np.uint8] | None = None  # (h, w), below 128 is a hole


def fractal_noise(rng: Generator, size: tuple[int, int], cell: float, octaves: int = 4) -> NDArray[np.float32]:
    """Tileable noise with zero mean and a standard deviation near 1.

    Args:
        rng: source of randomness.
        size: (height, width) in texels.
        cell: size of the largest features in texels.
        octaves: number of layers, each half the size and half the strength of the one before.

    Returns:
        (height, width) float32.
    """
    height, width = size
    total = np.zeros(size, np.float32)
    for octave in range(octaves):
        step = cell / 2**octave
        if step < 1 and octave:
            break
        rows, cols = max(2, round(height / step)), max(2, round(width / step))
        grid = np.pad(rng.standard_normal((rows, cols)).astype(np.float32), 2, mode="wrap")
        # Two wrapped cells on each side make the cubic interpolation periodic.
        sy, sx = height / rows, width / cols
        ys = (np.arange(height, dtype=np.float32) + 0.5) / sy + 1.5
        xs = (np.arange(width, dtype=np.float32) + 0.5) / sx + 1.5
        map_x, map_y = np.meshgrid(xs, ys)
        layer = cv2.remap(grid, map_x, map_y, cv2.INTER_CUBIC)
        total += layer * np.float32(0.5**octave)
    return np.asarray((total - total.mean()) / (total.std() + 1e-6), np.float32)


class _Canvas:
    """A picture being painted, in float RGB, with its tint mask."""

    def __init__(self, height: int, width: int, colour: Colour, tint: float = 255) -> None:
        self.rgb = np.full((height, width, 3), colour, np.float32)
        self.tint = np.full((height, width), tint, np.float32)
        self.height, self.width = height, width

    def rect(self, x0: float, y0: float, x1: float, y1: float, colour: Colour, tint: float = 0) -> None:
        """Fill a rectangle given in texels; ends are exclusive."""
        part = (slice(max(0, round(y0)), max(0, round(y1))), slice(max(0, round(x0)), max(0, round(x1))))
        self.rgb[part], self.tint[part] = colour, tint

    def poly(self, points: list[tuple[float, float]], colour: Colour, tint: float = 0) -> None:
        """Fill a polygon given in texels."""
        corners = np.array(points).round().astype(np.int32)
        cv2.fillPoly(self.rgb, [corners], colour)
        cv2.fillPoly(self.tint, [corners], tint)

    def disc(self, x: float, y: float, radius: float, colour: Colour, tint: float = 0) -> None:
        """Fill a disc given in texels."""
        cv2.circle(self.rgb, (round(x), round(y)), round(radius), colour, -1, cv2.LINE_AA)
        cv2.circle(self.tint, (round(x), round(y)), round(radius), tint, -1)

    def line(self, x0: float, y0: float, x1: float, y1: float, colour: Colour, width: int = 1) -> None:
        """Draw a line without changing the tint mask."""
        ends = (round(x0), round(y0)), (round(x1), round(y1))
        cv2.line(self.rgb, ends[0], ends[1], colour, width, cv2.LINE_AA)

    def scale(self, factor: NDArray[np.floating]) -> None:
        """Multiply the colours by a factor of shape (h, w)."""
        self.rgb *= factor[..., None]

    def tile(self, alpha: NDArray[np.generic] | None = None) -> Tile:
        """The finished texture."""
        mask = None if alpha is None else np.clip(alpha.astype(np.float32), 0, 255).astype(np.uint8)
        return Tile(np.clip(self.rgb, 0, 255).astype(np.uint8), np.clip(self.tint, 0, 255).astype(np.uint8), mask)


def _grain(rng: Generator, canvas: _Canvas, cell: float, strength: float, octaves: int = 4) -> None:
    """Roughen a surface."""
    canvas.scale(1 + strength * fractal_noise(rng, (canvas.height, canvas.width), cell, octaves))


def _masonry(rng: Generator, canvas: _Canvas, brick: tuple[int, int], joint: float, spread: float) -> None:
    """Lay bricks or slabs of (height, width) texels in running bond: joints scaled by ``joint``, each brick varied."""
    bh, bw = brick
    y, x = np.mgrid[: canvas.height, : canvas.width]
    row = y // bh
    shifted = x + (row % 2) * (bw // 2)
    column = (shifted // bw) % max(1, canvas.width // bw)
    shades = 1 + spread * rng.standard_normal((canvas.height // bh + 1, canvas.width // bw + 1))
    factor = shades[row, column]
    factor[(y % bh == 0) | (shifted % bw == 0)] *= joint
    canvas.scale(factor.astype(np.float32))


def _road(rng: Generator, variant: int) -> Tile:
    """A stretch of road, ROAD_PERIOD metres long (down) and two half-widths wide (across)."""
    canvas = _Canvas(1024, 512, (104, 104, 107))
    scale = 512 / (2 * ROAD_HALF_WIDTH)
    _grain(rng, canvas, 160, 0.05)
    _grain(rng, canvas, 5, 0.07, 3)
    across = (np.arange(512) + 0.5) / scale - ROAD_HALF_WIDTH
    tracks = sum(np.exp(-(((np.abs(across) - c) / 0.28) ** 2)) for c in (0.85, 2.35))
    gutter = np.exp(-(((ROAD_HALF_WIDTH - np.abs(across)) / 0.35) ** 2))
    canvas.scale(np.broadcast_to(1 - 0.09 * tracks - 0.22 * gutter, (1024, 512)).astype(np.float32))
    for _ in range(3 + 2 * variant):  # repaired patches
        x, y = rng.uniform(30, 440), rng.uniform(30, 900)
        w, h = rng.uniform(30, 90), rng.uniform(50, 180)
        shade = float(rng.uniform(62, 112))
        tone = (shade, shade, shade * 1.03)
        part = canvas.rgb[int(y) : int(y + h), int(x) : int(x + w)]
        part *= 0.35
        part += 0.65 * np.array(tone, np.float32) * (1 + 0.06 * rng.standard_normal((*part.shape[:2], 1)))
        cv2.rectangle(canvas.rgb, (int(x), int(y)), (int(x + w), int(y + h)), (58, 58, 60), 2)
    for _ in range(7):  # cracks
        points = np.cumsum(rng.normal((0, 9), (7, 8), (30, 2)), 0) + rng.uniform((40, 0), (470, 700))
        cv2.polylines(canvas.rgb, [points.astype(np.int32)], False, (60, 60, 62), 1, cv2.LINE_AA)
    for _ in range(2):
        x, y = rng.uniform(70, 440), rng.uniform(40, 980)
        canvas.disc(x, y, 17, (66, 64, 62), 255)
        canvas.disc(x, y, 13, (84, 80, 76), 255)
        for k in range(-10, 11, 5):
            canvas.line(x - 9, y + k, x + 9, y + k, (58, 56, 54), 1)
    worn = np.clip(0.86 + 0.10 * fractal_noise(rng, (1024, 512), 24), 0.35, 1)[..., None]
    paint = np.zeros((1024, 512), np.float32)
    zebra = variant == 3
    for k in range(4):  # dashes: 2.7 m of every 5.4 m
        paint[k * 256 + 40 : k * 256 + 168, 252:260] = 1
    for side in (-1, 1):
        edge = round((side * 3.25 + ROAD_HALF_WIDTH) * scale)
        paint[:, edge - 3 : edge + 3] = 1
        if variant % 2:  # bays in the parking lane
            outer = round((side * (ROAD_HALF_WIDTH - 0.15) + ROAD_HALF_WIDTH) * scale)
            for k in range(4):
                paint[k * 256 : k * 256 + 6, min(edge, outer) : max(edge, outer)] = 1
    if zebra:
        paint[360:620] = 0
        for x in range(18, 500, 48):
            paint[400:560, x : x + 25] = 1
        for x in (40, 300):
            paint[600:616, x : x + 180] = 1
    canvas.rgb += (np.array((226, 226, 220), np.float32) - canvas.rgb) * worn * cv2.blur(paint, (3, 3))[..., None]
    return canvas.tile()


def _pavement(rng: Generator, variant: int) -> Tile:
    """Paving slabs, 4 m square."""
    canvas = _Canvas(256, 256, (160, 154, 144) if variant == 0 else (170, 144, 126))
    _masonry(rng, canvas, (32, 64) if variant == 0 else (16, 32), 0.72, 0.06)
    _grain(rng, canvas, 64, 0.05)
    _grain(rng, canvas, 3, 0.04, 2)
    for _ in range(14):
        x, y, radius = rng.uniform((4, 4, 1), (252, 252, 3))
        canvas.disc(x, y, radius, (110, 106, 100), 255)
    return canvas.tile()


def _kerb(rng: Generator) -> Tile:
    canvas = _Canvas(64, 256, (182, 180, 174))
    _masonry(rng, canvas, (64, 64), 0.7, 0.04)
    _grain(rng, canvas, 12, 0.06)
    return canvas.tile()


def _grass(rng: Generator) -> Tile:
    canvas = _Canvas(256, 256, (96, 128, 58))
    _grain(rng, canvas, 90, 0.12)
    _grain(rng, canvas, 6, 0.16, 3)
    return canvas.tile()


def _leaves(rng: Generator, variant: int) -> Tile:
    """Foliage: overlapping leaf strokes from dark to bright, 2.2 m square. Alpha holes make ragged outlines."""
    size = 256
    base: Colour = ((74, 108, 44), (98, 122, 46), (58, 98, 54))[variant]
    canvas = _Canvas(size, size, dim(base, 0.45))
    for layer in range(4):
        shade = 0.55 + 0.25 * layer
        for _ in range(420 - 60 * layer):
            x, y = rng.integers(0, size, 2)
            angle, tone = float(rng.uniform(0, 180)), shade * float(rng.uniform(0.82, 1.18))
            colour = tuple(tone * c for c in base)
            axes = (int(rng.integers(5, 10)), int(rng.integers(2, 5)))
            for dx in (-size, 0, size):  # draw across the seam, so that the tile repeats
                for dy in (-size, 0, size):
                    if -12 < x + dx < size + 12 and -12 < y + dy < size + 12:
                        centre = (int(x + dx), int(y + dy))
                        cv2.ellipse(canvas.rgb, centre, axes, angle, 0, 360, colour, -1)
    canvas.scale(1 + 0.16 * fractal_noise(rng, (size, size), 80, 2))
    holes = 128 + 70 * fractal_noise(rng, (size, size), 26, 3)
    return canvas.tile(holes)


def _treeline(rng: Generator) -> Tile:
    """Distant treetops as a cut-out, 24 m by 12 m."""
    foliage = _leaves(rng, 2)
    rgb = np.tile(cv2.resize(foliage.rgb, (64, 64), interpolation=cv2.INTER_AREA), (2, 4, 1)).astype(np.float32)
    canvas = _Canvas(128, 256, (0, 0, 0))
    canvas.rgb = rgb * (1 + 0.25 * fractal_noise(rng, (128, 256), 40, 3))[..., None]
    x = np.arange(256)
    waves = sum(a * np.sin(2 * np.pi * (k * x / 256 + rng.uniform())) for k, a in ((2, 8), (3, 7), (7, 5), (17, 3)))
    top = 34 + waves + rng.normal(0, 1.2, 256)
    return canvas.tile(np.where(np.arange(128)[:, None] > top, 255.0, 0.0))


def _window(rng: Generator, canvas: _Canvas, x0: float, y0: float, x1: float, y1: float, trim: Colour) -> None:
    """A window with frame, glass that mirrors the sky, sometimes a curtain, and a sill that throws a shadow."""
    canvas.rect(x0 - 4, y0 - 4, x1 + 4, y1 + 4, trim)
    canvas.rect(x0 - 1, y0 - 1, x1 + 1, y1 + 1, dim(trim, 0.55))
    h, w = max(1, round(y1) - round(y0)), max(1, round(x1) - round(x0))
    dark = np.array((44, 54, 66), np.float32) * rng.uniform(0.75, 1.35)
    bright = np.array((128, 150, 172), np.float32)
    yy, xx = np.mgrid[:h, :w] / max(h, w)
    mirror = np.clip(0.42 - 0.5 * yy + 0.25 * ((xx + 0.7 * yy + rng.uniform()) % 0.8 < 0.24), 0, 1)[..., None]
    glass = dark + (bright - dark) * mirror
    if rng.random() < 0.5:  # curtains left and right
        cloth = np.array(((214, 204, 188), (190, 180, 176), (200, 170, 140))[rng.integers(3)], np.float32)
        reach = rng.uniform(0.14, 0.3) * w / max(h, w)
        drawn = (xx < reach) | (xx > w / max(h, w) - reach)
        glass[drawn] = (cloth * (0.72 + 0.12 * np.sin(xx[..., None] * 80)))[drawn]
    if rng.random() < 0.18:  # a lamp inside
        glass = glass * 0.5 + np.array((150, 118, 66)) * 0.6
    canvas.rect(x0, y0, x1, y1, (0, 0, 0))
    canvas.rgb[round(y0) : round(y0) + h, round(x0) : round(x0) + w] = glass[
        : canvas.height - round(y0), : canvas.width - round(x0)
    ]


def _facade(rng: Generator, style: int) -> Tile:
    """Four bays of two storeys (12 m by 6.4 m)."""
    width, height = 512, 256
    walls: tuple[Colour, ...] = (
        (176, 96, 76),  # brick
        (222, 206, 172),  # cream plaster
        (196, 190, 182),  # stone
        (206, 158, 118),  # terracotta plaster
        (150, 88, 72),  # dark brick
        (184, 196, 200),  # pale blue plaster
        (168, 170, 172),  # concrete
        (224, 218, 208),  # white render
    )
    canvas = _Canvas(height, width, walls[style])
    if style in (0, 4):
        _masonry(rng, canvas, (4, 16), 0.84, 0.09)
    elif style == 2:
        _masonry(rng, canvas, (16, 64), 0.8, 0.045)
    elif style == 6:
        _masonry(rng, canvas, (128, 128), 0.66, 0.03)
    _grain(rng, canvas, 120, 0.05)
    _grain(rng, canvas, 4, 0.035, 2)
    streaks = cv2.blur(fractal_noise(rng, (height, width), 10, 2), (1, 61))
    canvas.scale(1 + 0.05 * streaks)
    trim: Colour = ((232, 228, 218), (240, 236, 226), (120, 112, 104), (246, 240, 228))[style % 4]
    if style in (4, 6):
        trim = (70, 72, 76)
    half = (24, 21, 19, 26, 22, 20, 46, 30)[style]
    tall = (76, 84, 88, 70, 72, 82, 56, 66)[style]
    for floor in range(2):
        top = floor * 128 + (128 - tall) // 2 - 2
        for bay in range(4):
            x = bay * 128 + 64
            canvas.rect(x - half - 5, top + tall + 5, x + half + 8, top + tall + 16, dim(walls[style], 0.7), 255)
            if style in (1, 3, 5):  # shutters
                leaf: Colour = ((84, 110, 92), (124, 70, 56), (88, 104, 130))[style // 2]
                for x0 in (x - half - 22, x + half + 4):
                    canvas.rect(x0, top - 3, x0 + 18, top + tall + 3, leaf)
                    for y in range(top, top + tall, 5):
                        canvas.line(x0 + 2, y, x0 + 16, y, dim(leaf, 0.72))
            _window(rng, canvas, x - half, top, x + half, top + tall, trim)
            if style == 6:
                for k in (-0.33, 0.33):
                    canvas.rect(x + k * half - 2, top, x + k * half + 2, top + tall, trim)
            else:
                canvas.rect(x - 2, top, x + 2, top + tall, trim)
                canvas.rect(x - half, top + tall * 0.36 - 1, x + half, top + tall * 0.36 + 2, trim)
            canvas.rect(x - half - 8, top + tall + 2, x + half + 8, top + tall + 8, dim(trim, 0.95))
            if style in (0, 2, 4):  # lintel
                canvas.rect(x - half - 8, top - 13, x + half + 8, top - 4, (206, 196, 178))
            if style == 7:  # balcony
                y = top + tall - 26
                canvas.rect(x - 46, top + tall + 2, x + 46, top + tall + 11, (190, 186, 180))
                for k in range(-44, 46, 6):
                    canvas.line(x + k, y, x + k, top + tall + 2, (60, 62, 66))
                canvas.line(x - 46, y, x + 46, y, (52, 54, 58), 2)
        if style not in (6,):  # string course
            canvas.rect(0, floor * 128 + 118, width, floor * 128 + 125, dim(walls[style], 1.12), 255)
            canvas.rect(0, floor * 128 + 125, width, floor * 128 + 128, dim(walls[style], 0.62), 255)
    return canvas.tile()


def _ground_floor(rng: Generator, style: int) -> Tile:
    """Four bays of a ground floor (12 m by 3.75 m): shops in the first five styles, homes in the others."""
    return _shop(rng, style) if style < 5 else _home(rng, style)


def _home(rng: Generator, style: int) -> Tile:
    """Windows, a door and a plinth."""
    width, height = 512, 160
    canvas = _Canvas(height, width, ((176, 160, 140), (150, 90, 74), (200, 192, 180))[style - 5])
    _masonry(rng, canvas, (16, 32) if style != 6 else (4, 16), 0.76, 0.06)
    _grain(rng, canvas, 60, 0.05)
    for bay in range(4):
        x = bay * 128 + 64
        if bay % 4 == 1:
            door: Colour = ((48, 72, 58), (110, 40, 38), (44, 56, 86))[style - 5]
            canvas.rect(x - 30, 26, x + 30, 154, (226, 222, 212))
            canvas.rect(x - 24, 48, x + 24, 154, door)
            _window(rng, canvas, x - 22, 32, x + 22, 44, (226, 222, 212))
            for y0, y1 in ((56, 92), (102, 146)):
                for x0 in (x - 18, x + 4):
                    canvas.rect(x0, y0, x0 + 14, y1, dim(door, 0.75))
            canvas.disc(x + 20, 100, 2, (220, 190, 90))
            canvas.rect(x - 36, 152, x + 36, 160, (170, 166, 158))
        else:
            _window(rng, canvas, x - 27, 36, x + 27, 116, (232, 228, 220))
            canvas.rect(x - 2, 36, x + 2, 116, (232, 228, 220))
            canvas.rect(x - 36, 118, x + 36, 126, (206, 200, 188))
    canvas.rect(0, 146, 160 - 34, 160, (120, 114, 106))
    canvas.rect(160 + 70, 146, width, 160, (120, 114, 106))
    return canvas.tile()


def _shop(rng: Generator, style: int) -> Tile:
    """Two shops with a sign, goods behind glass and a door."""
    width, height = 512, 160
    fascia: Colour = ((34, 74, 62), (146, 40, 38), (36, 56, 104), (214, 168, 62), (58, 54, 56))[style]
    canvas = _Canvas(height, width, (70, 66, 64), 0)
    _grain(rng, canvas, 30, 0.06)
    for x0 in (0.0, 256.0):  # two shops of two bays
        canvas.rect(x0, 0, x0 + 256, 8, (206, 200, 190))
        canvas.rect(x0 + 6, 10, x0 + 250, 42, fascia)
        canvas.rect(x0 + 6, 40, x0 + 250, 42, dim(fascia, 0.6))
        ink: Colour = (246, 240, 222) if style != 3 else (60, 40, 30)
        x = x0 + float(rng.uniform(30, 60))
        while x < x0 + 200:  # letters nobody can read
            w = float(rng.uniform(6, 13))
            canvas.rect(x, 18, x + w, 34, ink)
            hole = rng.integers(3)
            canvas.rect(x + 3, (18, 22, 26)[hole], x + w - 3, (28, 30, 34)[hole], fascia)
            x += w + (4 if rng.random() < 0.8 else 14)
        for side, (a, b) in enumerate(((x0 + 14, x0 + 150), (x0 + 204, x0 + 246))):
            _window(rng, canvas, a, 50, b, 134, dim(fascia, 0.8))
            for _ in range(9 - 5 * side):  # goods behind the glass
                gx, gh, gw = rng.uniform(a + 4, b - 16), rng.uniform(10, 34), rng.uniform(8, 18)
                red, green, blue = rng.uniform(70, 230, 3).tolist()
                canvas.rect(gx, 130 - gh, gx + gw, 130, (red, green, blue))
        canvas.rect(x0 + 160, 48, x0 + 194, 156, dim(fascia, 0.7))
        _window(rng, canvas, x0 + 165, 56, x0 + 189, 130, (60, 60, 60))
        canvas.rect(x0 + 6, 138, x0 + 156, 158, dim(fascia, 0.85))
        canvas.rect(x0 + 198, 138, x0 + 250, 158, dim(fascia, 0.85))
        canvas.rect(x0, 8, x0 + 6, 160, (176, 170, 160))
        canvas.rect(x0 + 250, 8, x0 + 256, 160, (176, 170, 160))
    return canvas.tile()


def _wall(rng: Generator, brick: bool) -> Tile:
    canvas = _Canvas(128, 128, (176, 104, 84) if brick else (206, 196, 180))
    if brick:
        _masonry(rng, canvas, (4, 16), 0.84, 0.09)
    _grain(rng, canvas, 60, 0.07)
    _grain(rng, canvas, 3, 0.03, 2)
    return canvas.tile()


def _roof(rng: Generator) -> Tile:
    canvas = _Canvas(128, 128, (132, 78, 62))
    _masonry(rng, canvas, (8, 8), 0.7, 0.1)
    _grain(rng, canvas, 40, 0.06)
    canvas.scale(np.broadcast_to(1.08 - 0.2 * (np.arange(128)[:, None] % 8) / 8, (128, 128)))
    return canvas.tile()


def _plain(rng: Generator, colour: Colour, strength: float = 0.04, cell: float = 12) -> Tile:
    canvas = _Canvas(64, 64, colour)
    _grain(rng, canvas, cell, strength)
    return canvas.tile()


def _awning(rng: Generator) -> Tile:
    canvas = _Canvas(64, 64, (240, 236, 226), 0)
    for x in range(0, 64, 16):
        canvas.rect(x, 0, x + 8, 64, (236, 236, 236), 255)
    _grain(rng, canvas, 20, 0.03)
    return canvas.tile()


def _car_side(rng: Generator, body: int) -> Tile:
    """Lower body with wheels, rear at the left, 4.3 m by 0.95 m, a cut-out below the sill."""
    width, height = 256, 64
    canvas = _Canvas(height, width, (236, 236, 236))
    shade = np.interp(np.arange(height), (0, 6, 22, 46, 64), (1.05, 0.94, 1.0, 0.74, 0.5))
    canvas.scale(np.broadcast_to(shade[:, None], (height, width)).astype(np.float32))
    canvas.rect(0, 44, width, 50, (52, 52, 54))
    for x in ((116, 176), (108, 170), (100, 160))[body]:
        canvas.line(x, 0, x, 44, (110, 110, 110))
        canvas.rect(x - 22, 12, x - 10, 15, (150, 150, 150), 120)
    canvas.line(0, 20, width, 18, (180, 180, 180))
    canvas.rect(0, 8, 9, 20, (190, 30, 26))
    canvas.rect(246, 10, 256, 20, (236, 232, 206))
    alpha = np.zeros((height, width), np.float32)
    alpha[:50] = 255
    for x in (48, 206):
        canvas.disc(x, 43, 23, (30, 30, 32))
        canvas.disc(x, 44, 19, (26, 26, 28))
        canvas.disc(x, 44, 12, (150, 152, 156))
        for k in range(5):
            angle = 2 * np.pi * k / 5 + 0.3
            canvas.line(x, 44, x + 11 * np.cos(angle), 44 + 11 * np.sin(angle), (92, 94, 98), 2)
        canvas.disc(x, 44, 3, (90, 92, 96))
        cv2.circle(alpha, (x, 44), 19, 255.0, -1)
    return canvas.tile(alpha)


def _car_glass(rng: Generator, pillars: tuple[float, ...]) -> Tile:
    """Glass with paint around it."""
    canvas = _Canvas(64, 128, (226, 226, 226))
    edges = (0.0, *pillars, 1.0)
    y, x = np.mgrid[:64, :128] / 64.0
    glass = 46 + 90 * np.clip(0.75 - 0.9 * y, 0, 1) + 46 * (((x + 0.6 * y) % 1.1) < 0.25)
    glass = glass[..., None] * np.array((0.84, 0.95, 1.06))
    for a, b in pairwise(edges):
        part = (slice(6, 60), slice(round(a * 128) + 4, round(b * 128) - 3))
        canvas.rgb[part], canvas.tint[part] = glass[part], 0
    return canvas.tile()


def _car_front(rng: Generator) -> Tile:
    canvas = _Canvas(64, 128, (228, 228, 228))
    canvas.scale(np.broadcast_to(np.interp(np.arange(64), (0, 40, 64), (1.02, 0.86, 0.6))[:, None], (64, 128)))
    canvas.rect(34, 12, 94, 30, (34, 34, 38))
    for x in range(36, 94, 6):
        canvas.line(x, 13, x, 29, (88, 88, 92))
    for x in (16, 112):
        cv2.ellipse(canvas.rgb, (x, 18), (14, 8), 0, 0, 360, (244, 242, 226), -1)
        cv2.ellipse(canvas.tint, (x, 18), (14, 8), 0, 0, 360, 0, -1)
        canvas.disc(x, 18, 4, (190, 196, 200))
    canvas.rect(44, 36, 84, 44, (240, 236, 200))
    for x in range(48, 82, 6):
        canvas.rect(x, 38, x + 3, 42, (40, 40, 40))
    canvas.rect(0, 50, 128, 64, (44, 44, 46))
    return canvas.tile()


def _car_back(rng: Generator) -> Tile:
    canvas = _Canvas(64, 128, (222, 222, 222))
    canvas.scale(np.broadcast_to(np.interp(np.arange(64), (0, 40, 64), (1.02, 0.86, 0.6))[:, None], (64, 128)))
    for x in (2, 104):
        canvas.rect(x, 8, x + 22, 24, (182, 26, 22))
        canvas.rect(x + 3, 11, x + 12, 21, (238, 92, 66))
    canvas.line(0, 30, 128, 30, (120, 120, 120), 2)
    canvas.rect(44, 14, 84, 24, (244, 238, 190))
    for x in range(48, 82, 6):
        canvas.rect(x, 16, x + 3, 22, (40, 40, 40))
    canvas.rect(0, 48, 128, 64, (44, 44, 46))
    canvas.disc(22, 58, 3, (150, 150, 150))
    return canvas.tile()


def _sign(rng: Generator, kind: int) -> Tile:
    """A traffic sign, 64 texels square."""
    canvas = _Canvas(64, 64, (120, 120, 124), 0)
    alpha = np.zeros((64, 64), np.float32)
    if kind == 0:  # limit
        cv2.circle(alpha, (32, 32), 30, 255.0, -1)
        canvas.disc(32, 32, 31, (206, 32, 34))
        canvas.disc(32, 32, 23, (246, 246, 242))
        for x in (20, 35):
            canvas.rect(x, 22, x + 11, 42, (24, 24, 24))
            canvas.rect(x + 3, 26, x + 8, 38 if x > 30 else 31, (246, 246, 242))
    elif kind == 1:  # warning
        triangle = np.array([(32, 3), (61, 56), (3, 56)], np.int32)
        cv2.fillPoly(alpha, [triangle], 255.0)
        canvas.rect(0, 0, 64, 64, (206, 32, 34))
        canvas.poly([(32, 16), (50, 50), (14, 50)], (246, 244, 236))
        canvas.rect(29, 26, 35, 40, (24, 24, 24))
        canvas.rect(29, 43, 35, 48, (24, 24, 24))
    elif kind == 2:  # crossing
        alpha[2:62, 2:62] = 255
        canvas.rect(0, 0, 64, 64, (36, 86, 176))
        canvas.poly([(32, 9), (56, 54), (8, 54)], (244, 244, 244))
        canvas.disc(32, 26, 4, (24, 24, 24))
        canvas.line(32, 28, 30, 40, (24, 24, 24), 4)
        canvas.line(30, 40, 23, 50, (24, 24, 24), 3)
        canvas.line(30, 40, 38, 50, (24, 24, 24), 3)
    elif kind == 3:  # stop
        points = [(32 + 31 * np.cos(a), 32 + 31 * np.sin(a)) for a in np.pi / 8 + np.arange(8) * np.pi / 4]
        cv2.fillPoly(alpha, [np.array(points).astype(np.int32)], 255.0)
        canvas.rect(0, 0, 64, 64, (196, 28, 32))
        for x in (12, 23, 34, 45):
            canvas.rect(x, 24, x + 8, 40, (248, 244, 240))
            canvas.rect(x + 3, 28, x + 6, 36, (196, 28, 32))
    else:  # directions
        alpha[12:52, 1:63] = 255
        canvas.rect(0, 0, 64, 64, (38, 110, 74))
        canvas.rect(3, 14, 61, 15, (240, 240, 240))
        for y in (22, 36):
            for x in range(8, 46, 7):
                canvas.rect(x, y, x + 5, y + 7, (240, 244, 240))
        canvas.poly([(50, 30), (58, 36), (50, 42)], (240, 240, 240))
    return canvas.tile(alpha)


def _sign_back(rng: Generator, kind: int) -> Tile:
    """The grey back of a sign."""
    canvas = _Canvas(64, 64, (126, 128, 130), 0)
    _grain(rng, canvas, 20, 0.05)
    for y in (20, 42):
        canvas.rect(0, y, 64, y + 4, (92, 94, 96))
    return canvas.tile(_sign(rng, kind).alpha)


def _fence(rng: Generator, wood: bool) -> Tile:
    """Two metres of fence, 1.2 m high: iron railings or planks."""
    canvas = _Canvas(80, 128, (150, 112, 74) if wood else (48, 54, 54), 255 if wood else 0)
    alpha = np.zeros((80, 128), np.float32)
    if wood:
        for x in range(0, 128, 16):
            canvas.rgb[:, x : x + 16] *= rng.uniform(0.82, 1.12)
            canvas.rect(x + 14, 0, x + 16, 80, (60, 46, 32))
            cv2.fillPoly(alpha, [np.array([(x, 8), (x + 7, 1), (x + 14, 8), (x + 14, 80), (x, 80)], np.int32)], 255.0)
        canvas.scale(1 + 0.1 * cv2.blur(fractal_noise(rng, (80, 128), 6, 3), (1, 25)))
        for y in (20, 62):
            canvas.rgb[y : y + 3] *= 0.7
    else:
        _grain(rng, canvas, 10, 0.1)
        for x in range(4, 128, 12):
            alpha[4:, x : x + 4] = 255
            canvas.rgb[:, x : x + 1] *= 1.5
        alpha[12:17] = alpha[68:73] = 255
    return canvas.tile(alpha)


def _bicycle(rng: Generator) -> Tile:
    """A bicycle from the side, front at the right, 1.8 m by 1.1 m."""
    canvas = _Canvas(80, 128, (40, 40, 44), 0)
    alpha = np.zeros((80, 128), np.float32)
    for x in (26, 102):
        cv2.circle(alpha, (x, 54), 23, 255.0, 4)
        cv2.circle(alpha, (x, 54), 3, 255.0, -1)
    frame = [((26, 54), (48, 22)), ((48, 22), (88, 18)), ((88, 18), (60, 54)), ((60, 54), (26, 54))]
    for a, b in [*frame, ((60, 54), (46, 14)), ((102, 54), (86, 10)), ((86, 10), (96, 6))]:
        cv2.line(alpha, a, b, 255.0, 5)
        cv2.line(canvas.rgb, a, b, (226, 226, 226), 7)
        cv2.line(canvas.tint, a, b, 255.0, 7)
    canvas.rect(36, 8, 56, 16, (30, 30, 30))
    alpha[9:15, 37:55] = 255
    return canvas.tile(alpha)


def _postbox(rng: Generator) -> Tile:
    canvas = _Canvas(64, 64, (190, 36, 34), 0)
    _grain(rng, canvas, 30, 0.06)
    canvas.rect(0, 0, 64, 6, (120, 22, 22))
    canvas.rect(14, 12, 50, 17, (26, 20, 20))
    canvas.rect(20, 24, 44, 40, (236, 230, 214))
    canvas.rect(0, 56, 64, 64, (40, 36, 36))
    return canvas.tile()


def _bin(rng: Generator) -> Tile:
    canvas = _Canvas(64, 64, (66, 92, 78), 0)
    for x in range(0, 64, 8):
        canvas.rect(x, 10, x + 2, 60, (40, 58, 48))
    canvas.rect(0, 0, 64, 8, (36, 44, 40))
    canvas.rect(22, 22, 42, 36, (220, 214, 190))
    _grain(rng, canvas, 20, 0.06)
    return canvas.tile()


def _planks(rng: Generator) -> Tile:
    canvas = _Canvas(64, 64, (158, 112, 70), 0)
    for y in range(0, 64, 16):
        canvas.rgb[y : y + 16] *= rng.uniform(0.85, 1.1)
        canvas.rect(0, y + 13, 64, y + 16, (70, 48, 30))
    _grain(rng, canvas, 14, 0.08)
    return canvas.tile()


def painters() -> dict[str, Callable[[Generator], Tile]]:
    """Every texture's painter by name."""
    table: dict[str, Callable[[Generator], Tile]] = {
        "kerb": _kerb,
        "grass": _grass,
        "treeline": _treeline,
        "brick": lambda rng: _wall(rng, True),
        "plaster": lambda rng: _wall(rng, False),
        "roof": _roof,
        "metal": lambda rng: _plain(rng, (118, 122, 124)),
        "paint": lambda rng: _plain(rng, (232, 232, 232), 0.015, 40),
        "stone": lambda rng: _plain(rng, (196, 190, 180)),
        "bark": lambda rng: _plain(rng, (98, 78, 60), 0.22, 6),
        "cloth": lambda rng: _plain(rng, (228, 228, 228), 0.07, 10),
        "awning": _awning,
        "windscreen": lambda rng: _car_glass(rng, ()),
        "car_front": _car_front,
        "car_back": _car_back,
        "railings": lambda rng: _fence(rng, False),
        "planks_fence": lambda rng: _fence(rng, True),
        "bicycle": _bicycle,
        "postbox": _postbox,
        "bin": _bin,
        "planks": _planks,
        "pavement0": lambda rng: _pavement(rng, 0),
        "pavement1": lambda rng: _pavement(rng, 1),
    }
    numbered: tuple[tuple[str, int, Callable[[Generator, int], Tile]], ...] = (
        ("road", NUM_ROADS, _road),
        ("facade", NUM_FACADES, _facade),
        ("shop", NUM_SHOPS, _ground_floor),
        ("leaves", NUM_LEAVES, _leaves),
        ("car_side", NUM_CARS, _car_side),
        ("sign", NUM_SIGNS, _sign),
        ("sign_back", NUM_SIGNS, _sign_back),
    )
    for name, count, paint in numbered:
        for i in range(count):
            table[f"{name}{i}"] = partial(_numbered, paint=paint, number=i)
    for i, pillars in enumerate(((0.48,), (0.36, 0.7), (0.3, 0.66))):
        table[f"car_window{i}"] = partial(_car_glass, pillars=pillars)
    return table


def _numbered(rng: Generator, paint: Callable[[Generator, int], Tile], number: int) -> Tile:
    return paint(rng, number)
