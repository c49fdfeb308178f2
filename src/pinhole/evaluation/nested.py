"""What more soft tokens a picture buy: scores at every number of tokens, above what each costs.

Reads figures: of the exams (one graft at every number of tokens that it reads), and of ``pinhole bench tokens``, which has beside
a nested graft a model that looks at every patch. Knows nothing of how a picture becomes tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pinhole.evaluation.page import Html, el, join

EXAMS = {
    "see.category.accuracy": "what kind of thing is it",
    "see.match.accuracy": "is it this",
    "see.pick.accuracy": "which of the four is it",
    "board.theme.accuracy": "what do they share",
    "board.odd_one_out.accuracy": "which is the stranger",
}
WIDTH, HEIGHT = 480, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 36, 10, 56
_STEPS = 5

Points = dict[int, float]  # tokens a picture → score


@dataclass(frozen=True)
class Read:
    """A model that reads ``count`` tokens a picture: ``scores`` by exam, ``seconds`` to its first token. ``joined``: as the one before, with more."""

    count: int
    scores: Mapping[str, float]
    seconds: float | None
    joined: bool = True


def of_exams(figures: Mapping[str, float]) -> list[Read]:
    """The graft at each number of tokens; nothing where pictures are one token."""
    most = round(figures.get("cost.tokens_per_item", 1))
    fewer = sorted({int(key.split(".")[1]) for key in figures if key.startswith("nested.")} - {most})
    if not fewer:
        return []

    def read(count: int, prefix: str) -> Read:
        scores = {key: figures[prefix + key] for key in EXAMS if prefix + key in figures}
        return Read(count, scores, figures.get(f"nested.{count}.first_token_s"))

    return [*(read(count, f"nested.{count}.") for count in fewer), read(most, "")]


def of_benchmark(figures: Mapping[str, float]) -> list[Read]:
    """The nested graft of ``pinhole bench tokens`` at each number, then the model with eyes."""
    return [
        Read(
            round(figures[f"tokens.{side}.per_item"]),
            {key: figures[f"tokens.{side}.{key}"] for key in EXAMS if f"tokens.{side}.{key}" in figures},
            figures[f"tokens.{side}.first_token_s"],
            joined=side != "patches",
        )
        for side in ("k1", "k4", "k16", "patches")
    ]


def curve(reads: Sequence[Read]) -> Html:
    """The scores as SVG over the tokens of a picture, with the time to the first token of a question about four pictures under each."""
    widest = math.log2(max(read.count for read in reads))

    def at(count: int, score: float) -> tuple[str, str]:
        across = _LEFT + (WIDTH - _LEFT - _RIGHT) * math.log2(count) / widest
        return f"{across:.1f}", f"{_TOP + (HEIGHT - _TOP - _BOTTOM) * (1 - score):.1f}"

    shapes: list[Html] = []
    for step in range(_STEPS + 1):
        _, y = at(1, step / _STEPS)
        shapes.append(el("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=y, y2=y, class_="grid"))
        shapes.append(el("text", f"{step / _STEPS:g}", x=_LEFT - 9, y=f"{float(y) + 4:.1f}", text_anchor="end"))
    for read in reads:
        x, _ = at(read.count, 0)
        shapes.append(el("text", f"{read.count} token{'s' if read.count > 1 else ''}", x=x, y=HEIGHT - _BOTTOM + 20, text_anchor="middle"))
        if read.seconds is not None:
            shapes.append(el("text", f"{1000 * read.seconds:.0f} ms", x=x, y=HEIGHT - _BOTTOM + 38, text_anchor="middle"))
    keys = [key for key in EXAMS if sum(key in read.scores for read in reads) > 1]
    told: list[str] = []
    for number, key in enumerate(keys):
        scored = [read for read in reads if key in read.scores]
        line = [at(read.count, read.scores[key]) for read in scored if read.joined]
        shapes.append(el("polyline", points=" ".join(map(",".join, line)), class_=f"line c{number}"))
        for x, y in [at(read.count, read.scores[key]) for read in scored if not read.joined]:
            shapes.append(el("rect", x=f"{float(x) - 4:.1f}", y=f"{float(y) - 4:.1f}", width=8, height=8, class_=f"point c{number}"))
        told.append(f"{EXAMS[key]}: " + ", ".join(f"{read.scores[key]:.2f} at {read.count}" for read in scored))
    names = [el("span", el("i", class_=f"swatch c{number}"), EXAMS[key]) for number, key in enumerate(keys)]
    picture = el("svg", *shapes, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label="; ".join(told))
    return join([el("p", *names, class_="legend"), picture])
