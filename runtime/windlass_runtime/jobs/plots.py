"""Draw simple charts as SVG text: lines over categories, and labelled points. Equal data give equal bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

_WIDTH: Final = 720
_HEIGHT: Final = 400
_LEFT: Final = 80
_RIGHT: Final = 20
_TOP: Final = 50
_BOTTOM: Final = 60
_COLOURS: Final = ("#2f6f9f", "#d98032", "#4c9a5b", "#a04a8c", "#7a7a7a", "#c23b3b")


@dataclass(frozen=True, slots=True)
class Axis:
    """A linear scale with its name; the unit belongs into the name."""

    name: str
    low: float
    high: float

    @classmethod
    def around(cls, name: str, values: Sequence[float], *, from_zero: bool = True) -> Axis:
        """A scale that shows all values, with some room beyond them."""
        low, high = min(values), max(values)
        low = min(0.0, low) if from_zero else low - 0.05 * (high - low or 1.0)
        return cls(name, low, high + 0.08 * (high - low or 1.0))

    def place(self, value: float) -> float:
        """0 at the low end, 1 at the high one."""
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """About five round values."""
        step = 10.0 ** math.floor(math.log10((self.high - self.low) / 4.0))
        step *= next(factor for factor in (1, 2, 5, 10) if (self.high - self.low) / (step * factor) <= 6.0)
        first = math.ceil(self.low / step - 1e-9)
        return [index * step for index in range(first, math.floor(self.high / step + 1e-9) + 1)]


@dataclass(frozen=True, slots=True)
class Point:
    """One labelled point."""

    x: float
    y: float
    label: str


def draw_lines(title: str, axis: Axis, categories: Sequence[str], series: Mapping[str, Sequence[float]]) -> str:
    """One line for each series over the same categories."""
    parts = [*_frame(title, "", axis), *_categories(categories)]
    for index, (name, values) in enumerate(series.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        places = [(_x((at + 0.5) / len(categories)), _y(axis.place(value))) for at, value in enumerate(values)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        parts.append(_text(_WIDTH - _RIGHT - 160, _TOP + 16 * index, name, colour=colour))
    return _document(parts)


def draw_points(title: str, x_axis: Axis, y_axis: Axis, points: Sequence[Point]) -> str:
    """Points with their labels beside them."""
    parts = _frame(title, x_axis.name, y_axis)
    for tick in x_axis.ticks():
        parts.append(_text(_x(x_axis.place(tick)), _HEIGHT - _BOTTOM + 18, f"{tick:g}", anchor="middle"))
    for index, point in enumerate(points):
        colour = _COLOURS[index % len(_COLOURS)]
        x, y = _x(x_axis.place(point.x)), _y(y_axis.place(point.y))
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>')
        anchor, shift = ("end", -9) if x > _WIDTH / 2 else ("start", 9)
        parts.append(_text(x + shift, y - 6, point.label, anchor=anchor, colour=colour))
    return _document(parts)


def _categories(names: Sequence[str]) -> list[str]:
    every = max(1, math.ceil(len(names) / 16))
    return [
        _text(_x((at + 0.5) / len(names)), _HEIGHT - _BOTTOM + 18, name, anchor="middle")
        for at, name in enumerate(names)
        if at % every == 0
    ]


def _frame(title: str, x_name: str, axis: Axis) -> list[str]:
    parts = [_text(_LEFT, 26, title, size=16)]
    for tick in axis.ticks():
        y = _y(axis.place(tick))
        parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}" stroke="#dddddd"/>')
        parts.append(_text(_LEFT - 8, y + 4, f"{tick:g}", anchor="end"))
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 14, x_name, anchor="middle"))
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    turned = f'text-anchor="middle" transform="rotate(-90 20 {middle:.0f})"'
    parts.append(f'<text x="20" y="{middle:.0f}" {turned}>{escape(axis.name)}</text>')
    return parts


def _x(share: float) -> float:
    return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)


def _y(share: float) -> float:
    return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _text(x: float, y: float, text: str, *, anchor: str = "start", colour: str = "#333333", size: int = 12) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} fill="{colour}" font-size="{size}">{escape(text)}</text>'


def _document(parts: list[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="12">'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>'
    )
    return "\n".join([head, *parts, "</svg>"]) + "\n"
