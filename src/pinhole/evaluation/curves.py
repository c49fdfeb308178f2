"""A loss curve as an inline drawing: raw values faint, their running mean on top, one colour a stage or signal.

Reads ``curve.json`` as the trainers write it (a list of steps with ``loss``, perhaps ``stage``, ``lessons`` and
further losses by name). Knows nothing of what was trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from pinhole.evaluation.page import Html, el, join

_NOT_A_LOSS = ("step", "stage", "seconds", "lessons", "tokens", "plain")
_POINTS = 240  # a longer series is averaged down to so many
_COLOURS = 5
WIDTH, HEIGHT = 480, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 18, 10, 40

Points = list[tuple[float, float]]


def series(curve: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Points], str]:
    """(x, loss) of every stage or signal, and what x counts."""
    counts = all("lessons" in point for point in curve)
    places = list(accumulate(point["lessons"] for point in curve)) if counts else list(range(1, len(curve) + 1))
    names = [key for key, value in curve[0].items() if key not in _NOT_A_LOSS and isinstance(value, (int, float))] if curve else []
    names.sort(key=lambda name: name != "loss")
    found: dict[str, Points] = {}
    for x, point in zip(places, curve, strict=True):
        for name in names:
            label = str(point.get("stage", "loss")) if name == "loss" else name
            if point.get(name) is not None:
                found.setdefault(label, []).append((float(x), float(point[name])))
    if len(names) > 2:  # the sum of several losses only hides them
        found.pop("loss", None)
    return found, "lessons" if counts else "steps"


def drawing(curve: Sequence[Mapping[str, Any]]) -> Html:
    """The curve as SVG, or a sentence where nothing was trained."""
    lines, unit = series(curve)
    lines = {name: thinned(points) for name, points in lines.items() if points}
    if not lines:
        return el("p", "Nothing was trained.", class_="quiet")
    right = max(1.0, *(points[-1][0] for points in lines.values()))
    # The first steps may be far above all others: they are cut off rather than flatten the rest.
    values = sorted(y for points in lines.values() for _, y in points)
    top = 1.08 * max(values[int(0.985 * (len(values) - 1))], max(smooth(points)[0][1] for points in lines.values()) * 0.8, 1e-6)

    def at(x: float, y: float) -> str:
        across = _LEFT + (WIDTH - _LEFT - _RIGHT) * x / right
        down = HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * min(y, top) / top
        return f"{across:.1f},{down:.1f}"

    shapes: list[Html] = [*_grid(right, top, unit)]
    for number, points in enumerate(lines.values()):
        colour = f"line c{number % _COLOURS}"
        shapes.append(el("polyline", points=" ".join(at(*point) for point in points), class_=f"{colour} raw"))
        shapes.append(el("polyline", points=" ".join(at(*point) for point in smooth(points)), class_=colour))
    names = [el("span", el("i", class_=f"swatch c{number % _COLOURS}"), name) for number, name in enumerate(lines)]
    ends = ", ".join(f"{name} from {smooth(points)[0][1]:.2f} to {smooth(points)[-1][1]:.2f}" for name, points in lines.items())
    picture = el("svg", *shapes, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=f"loss: {ends}")
    return join([el("p", *names, class_="legend"), picture])


def _grid(right: float, top: float, unit: str) -> list[Html]:
    found = []
    for value in _ticks(top):
        y = HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * value / top
        found.append(el("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=f"{y:.1f}", y2=f"{y:.1f}", class_="grid"))
        found.append(el("text", f"{value:g}", x=_LEFT - 9, y=f"{y + 4:.1f}", text_anchor="end"))
    for value in _ticks(right, whole=True):
        x = _LEFT + (WIDTH - _LEFT - _RIGHT) * value / right
        found.append(el("text", f"{value:,.0f}" if value else "0", x=f"{x:.1f}", y=HEIGHT - _BOTTOM + 19, text_anchor="middle"))
    found.append(el("text", unit, x=WIDTH - _RIGHT, y=HEIGHT - 2, text_anchor="end"))
    return found


def _ticks(top: float, whole: bool = False) -> list[float]:
    """About four round numbers from 0 to ``top``."""
    size = 10.0 ** math.floor(math.log10(top / 4))
    steps = [size * factor for factor in (1, 2, 2.5, 5, 10, 20)]
    step = next(step for step in steps if top / step <= 5 and (not whole or step == int(step)))
    return [round(step * number, 10) for number in range(int(top / step + 1e-9) + 1)]


def thinned(points: Points) -> Points:
    """At most ``_POINTS`` points, each the mean of its neighbours."""
    size = max(1, -(-len(points) // _POINTS))
    pieces = [points[start : start + size] for start in range(0, len(points), size)]
    return [(piece[-1][0], sum(y for _, y in piece) / len(piece)) for piece in pieces]


def smooth(points: Points) -> Points:
    """Running mean over a twentieth of the series on either side."""
    reach = max(1, len(points) // 20)
    found = []
    for place, (x, _) in enumerate(points):
        around = points[max(0, place - reach) : place + reach + 1]
        found.append((x, sum(y for _, y in around) / len(around)))
    return found
