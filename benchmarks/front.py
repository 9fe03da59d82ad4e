"""The picture of a search: quality over price, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT, _MARGIN = 720, 440, 56
_CHOSEN, _FRONT, _OTHER = "#c33", "#27c", "#999"


@dataclass(frozen=True, kw_only=True)
class Point:
    """One candidate in the picture."""

    name: str
    """Shown when the pointer rests on it."""
    price: float
    """Its place from left to right."""
    score: float
    """Its place from bottom to top."""
    on_front: bool = False
    """Whether nothing cheaper is as good; such points are joined by a line."""
    is_best: bool = False
    """Whether it was chosen."""


def draw_front(points: Sequence[Point], limit: float, *, price_title: str, score_title: str) -> str:
    """Draw candidates, the front and the budget.

    Args:
        points: at least one.
        limit: the budget, a dashed line.
        price_title: what prices are, with their unit.
        score_title: what scores are, with their unit.

    Returns:
        SVG.
    """
    right = 1.05 * max(limit if limit < 4 * max(p.price for p in points) else 0.0, *(p.price for p in points))
    low, high = min(p.score for p in points) - 0.2, max(p.score for p in points) + 0.2
    inner, bottom = (_WIDTH - 2 * _MARGIN, _HEIGHT - 2 * _MARGIN), _HEIGHT - _MARGIN

    def place(price: float, score: float) -> tuple[float, float]:
        return _MARGIN + inner[0] * price / right, bottom - inner[1] * (score - low) / (high - low)

    def text(x: float, y: float, words: str, anchor: str = "middle") -> str:
        return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" font-family="sans-serif" '
        'font-size="12" fill="#222">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        f'<path d="M{_MARGIN} {_MARGIN}V{bottom}H{_WIDTH - _MARGIN}" fill="none" stroke="#222"/>',
        text(_WIDTH / 2, _HEIGHT - 14, price_title),
        text(8, 20, score_title, "start"),
    ]
    if limit <= right:
        x = place(limit, low)[0]
        parts.append(f'<path d="M{x:.1f} {_MARGIN}V{bottom}" stroke="{_CHOSEN}" stroke-dasharray="4 4"/>')
        parts.append(text(x, _MARGIN - 8, f"budget {limit:.3g}"))
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        score = low + share * (high - low)
        parts.append(text(place(share * right, low)[0], bottom + 18, f"{share * right:.3g}"))
        parts.append(text(_MARGIN - 6, place(0, score)[1] + 4, f"{score:.1f}", "end"))
    front = sorted((p for p in points if p.on_front), key=lambda p: p.price)
    line = " ".join("{:.1f},{:.1f}".format(*place(p.price, p.score)) for p in front)
    parts.append(f'<polyline points="{line}" fill="none" stroke="{_FRONT}"/>')
    for p in points:
        x, y = place(p.price, p.score)
        colour = _CHOSEN if p.is_best else _FRONT if p.on_front else _OTHER
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{6 if p.is_best else 4}" fill="{colour}">'
            f"<title>{escape(p.name)}: {p.score:.2f} at {p.price:.3g}</title></circle>"
        )
    return "\n".join([*parts, "</svg>"]) + "\n"
