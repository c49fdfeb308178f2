"""What more soft tokens a picture buy: scores of one graft at every number of tokens that it reads, above what each costs.

Reads the figures of the exams. Knows nothing of how a picture becomes tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from pinhole.evaluation.page import Html, el, join

EXAMS = {
    "see.category.accuracy": "what kind of thing is it",
    "see.match.accuracy": "is it this",
    "see.pick.accuracy": "which of the four is it",
    "board.theme.accuracy": "what do they share",
    "board.odd_one_out.accuracy": "which is the stranger",
}
WIDTH, HEIGHT = 480, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 24, 10, 56
_STEPS = 5

Points = dict[int, float]  # tokens a picture → score


def scores(figures: Mapping[str, float]) -> dict[str, Points]:
    """By exam, at each number of tokens; nothing where pictures are one token."""
    most = round(figures.get("cost.tokens_per_item", 1))
    found: dict[str, Points] = {}
    for key in EXAMS:
        fewer = {int(name.split(".")[1]): value for name, value in figures.items() if name.startswith("nested.") and name.endswith(f".{key}")}
        if fewer and key in figures:
            found[key] = dict(sorted({**fewer, most: figures[key]}.items()))
    return found


def curve(figures: Mapping[str, float]) -> Html | None:
    """The scores as SVG over the tokens of a picture, with the time to the first token of a question about four pictures under each."""
    lines = scores(figures)
    if not lines:
        return None
    counts = sorted({count for points in lines.values() for count in points})
    widest = math.log2(counts[-1])

    def at(count: int, score: float) -> str:
        across = _LEFT + (WIDTH - _LEFT - _RIGHT) * math.log2(count) / widest
        return f"{across:.1f},{_TOP + (HEIGHT - _TOP - _BOTTOM) * (1 - score):.1f}"

    shapes: list[Html] = []
    for step in range(_STEPS + 1):
        y = at(1, step / _STEPS).partition(",")[2]
        shapes.append(el("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=y, y2=y, class_="grid"))
        shapes.append(el("text", f"{step / _STEPS:g}", x=_LEFT - 9, y=f"{float(y) + 4:.1f}", text_anchor="end"))
    for count in counts:
        x, seconds = at(count, 0).partition(",")[0], figures.get(f"nested.{count}.first_token_s")
        shapes.append(el("text", f"{count} token{'s' if count > 1 else ''}", x=x, y=HEIGHT - _BOTTOM + 20, text_anchor="middle"))
        if seconds is not None:
            shapes.append(el("text", f"{1000 * seconds:.0f} ms", x=x, y=HEIGHT - _BOTTOM + 38, text_anchor="middle"))
    for number, points in enumerate(lines.values()):
        shapes.append(el("polyline", points=" ".join(at(*point) for point in points.items()), class_=f"line c{number}"))
    names = [el("span", el("i", class_=f"swatch c{number}"), EXAMS[key]) for number, key in enumerate(lines)]
    told = "; ".join(f"{EXAMS[key]}: " + ", ".join(f"{score:.2f} at {count}" for count, score in points.items()) for key, points in lines.items())
    return join([el("p", *names, class_="legend"), el("svg", *shapes, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=told)])
