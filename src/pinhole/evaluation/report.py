"""``report.html``: what was measured, what it cost, how training went, and held-out conversations, good and bad.

One file that opens anywhere: no script, nothing loaded, pictures inside as thumbnails. It shows what it is
handed and measures nothing, so a number here is a number of the exams or of a manifest. ``show_lessons`` writes
lessons in the same style.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from pinhole.config import GraftConfig
from pinhole.errors import Corrupt
from pinhole.evaluation.cost import Bill, flat
from pinhole.evaluation.curves import drawing
from pinhole.evaluation.figures import ALSO, MARKS, Group, Row, clock, grouped, written
from pinhole.evaluation.nested import curve, of_benchmark, of_exams
from pinhole.evaluation.page import Album, Html, Thumbnail, el, join, page, said, turns
from pinhole.graft.prompt import ToolSchema
from pinhole.graft.seeing import Lesson
from pinhole.graft.world import World
from pinhole.workspace import disk_errors, read_json, write_atomic

KINDS = {  # of lessons and of exam questions
    "category": "What kind of thing is it?",
    "describe": "What does it show?",
    "match": "Is it this?",
    "pick": "Which one is it?",
    "odd": "Which one is the stranger?",
    "theme": "What do they share?",
    "open": "A first request",
    "like": "More like one",
    "like_text": "Like one, but different",
    "like_unlike": "Like one, unlike another",
    "text_unlike": "Words, unlike one",
    "related": "What goes with one",
    "item": "Details of one",
    "again": "Something else",
    "chat": "No tool needed",
    "answer": "Telling what was found",
    "outcome": "Telling how it went",
    "invented": "An invented tool",
    "unseen": "A tool never seen in training",
}
_APART = 7  # of so many lessons in a row, one is shown


def write_report(
    out: Path,
    *,
    name: str,
    about: Mapping[str, str],
    figures: Mapping[str, float],
    conversations: Sequence[Mapping[str, Any]],
    curves: Mapping[str, Path],
    stages: Sequence[Mapping[str, Any]],
    thumbnail: Thumbnail,
    bills: Sequence[Bill] = (),
    against_eyes: Mapping[str, float] | None = None,
) -> Path:
    """Write the page and return its path.

    ``about`` are facts for its head (what the workspace holds, the models, the machine, the day), ``conversations``
    as :mod:`pinhole.evaluation.exams` writes them, ``curves`` titles and ``curve.json`` files (absent ones are left out),
    ``stages`` manifests in the order of the build, ``thumbnail`` gives an item's small picture by id, ``bills`` are what the
    measured turns come to in money, ``against_eyes`` the figures of ``pinhole bench tokens`` where it was run. Raises
    ``DiskFull``, and ``Corrupt`` where a curve cannot be read.
    """
    groups = grouped(figures)
    drawn = {title: read_json(path) for title, path in curves.items() if path.exists()}
    for title, points in drawn.items():
        if not isinstance(points, list) or not all(isinstance(point, dict) for point in points):
            raise Corrupt("not a loss curve", where=str(curves[title]), fix="delete the artefact and run `pinhole build`")
    body = [
        _head(name, about),
        _glance(groups),
        _figures(groups),
        _tokens(figures, against_eyes),
        _section("How training went", "Loss of the training lessons, a point a step; the line is a running mean.", *_curves(drawn))
        if drawn
        else None,
        _section("What the build cost", "When each stage last ran, on the machine it ran on.", _stages(stages)) if stages else None,
        _money(bills, figures, about.get("machine", "")) if bills else None,
        _conversations(conversations, Album(thumbnail)) if conversations else None,
        _everything({**figures, **flat(bills)}),
    ]
    with disk_errors(out):
        write_atomic(out, page(f"{name}: Pinhole report", *body))
    return out


def _section(title: str, about: str, *content: Html | None) -> Html:
    return el("section", el("h2", title), el("p", about, class_="lead"), *content)


def _head(name: str, about: Mapping[str, str]) -> Html:
    facts = el("dl", *(el("div", el("dt", key), el("dd", value)) for key, value in about.items() if value), class_="facts")
    what = (
        "An open language model sees this catalogue with no vision encoder: every picture was encoded once and is soft tokens in a prompt, "
        "one unless more were set. "
        "What stands here was measured on items, boards, words and sentences that training never saw."
    )
    return el("header", el("p", "Pinhole report", class_="brand"), el("h1", name), el("p", what, class_="lead"), facts)


# -- figures --------------------------------------------------------------------------------------

_NESTED = "Under each number: the time to the first token of a question about four pictures that were not shown before."
_GLANCE = {
    "see.category.accuracy": "of unseen pictures are put into the right category",
    "see.pick.accuracy": "of names are matched to the right one of four pictures",
    "tools.arguments": "of requests become exactly the right call",
    "search.text_to_image.recall@10.ratio": "as many right pictures in a search by words, against no training",
    "boards.recall@10.ratio": "as many board-mates found, against no training",
    "speed.first_token_s": "until an answer begins",
    "speed.tool_call_s": "for a whole search call",
}


def _glance(groups: Sequence[Group]) -> Html | None:
    """The few figures that a visitor asks for first."""
    rows = {row.key: row for group in groups for row in group.rows}
    tiles: list[Html] = []
    for key, words in _GLANCE.items():
        if key in rows and len(tiles) < 6:
            row = rows[key]
            value = f"{row.value:.0%}" if row.named.unit == "share" else written(row.value, row.named.unit)
            beside = [f"{mark} {row.marks[mark]:.0%}" for mark in ("probe", "base", "blind", "chance") if mark in row.marks]
            note = el("small", ", ".join(beside)) if beside else None
            tiles.append(el("div", el("b", value), el("span", words), note))
    return el("div", *tiles, class_="glance") if tiles else None


def _tokens(figures: Mapping[str, float], against_eyes: Mapping[str, float] | None) -> Html | None:
    """Scores over the tokens of a picture: of this graft, and of a benchmark's beside a model that looks at every patch."""
    drawn = []
    if reads := of_exams(figures):
        drawn.append(el("figure", el("h3", "This graft, with each picture pooled to fewer tokens"), curve(reads), class_="curve"))
    if against_eyes:
        title = (
            f"After {against_eyes['tokens.steps']:,.0f} steps of seeing alone, n {against_eyes['tokens.n']:,.0f} each (pinhole bench tokens). "
            "Line: one nested graft; squares: a small model with eyes, to which every patch is a token at every turn"
        )
        drawn.append(el("figure", el("h3", title), curve(of_benchmark(against_eyes)), class_="curve"))
    return _section("More tokens a picture", _NESTED, el("div", *drawn, class_="curves")) if drawn else None


def _figures(groups: Sequence[Group]) -> Html:
    if not groups:
        return _section("Figures", "Nothing has been measured yet: run `pinhole evaluate`.")
    used = [mark for mark in MARKS if any(mark in row.marks for group in groups for row in group.rows)]
    keys = [el("span", _mark(mark, None), el("b", mark), f" {MARKS[mark]}") for mark in used]
    scale = [el("span", el("i", class_="span"), el("i", class_="value"), el("b", "value"), " with its 95% interval"), *keys]
    lead = "Each share is a dot with its 95% interval, beside what others reach on the same questions. n is how many were asked."
    return _section("Figures", lead, el("p", *scale, class_="legend marks"), *(_group(group) for group in groups))


def _group(group: Group) -> Html:
    shares = [row for row in group.rows if row.named.unit == "share"]
    peak = max([max(row.value, row.high or 0, *row.marks.values()) for row in shares], default=1.0)
    top = next((limit for limit in (0.25, 0.5) if peak <= limit), 1.0)
    plain = not any(row.low is not None or row.marks for row in shares)
    head = el("tr", el("th", "figure"), el("th", "value", class_="end"), el("th", None if plain else _axis(top)), el("th", "n", class_="end"))
    rows = [_line(row, top, plain) for row in group.rows]
    return join(
        [
            el("h3", group.title, el("small", group.about)),
            el("div", el("table", el("thead", head), el("tbody", *rows)), class_="wide"),
        ]
    )


def _line(row: Row, top: float, plain: bool) -> Html:
    named = row.named
    about = el("small", named.about) if named.about else None
    key = el("code", row.key) if row.key != named.label else None
    also = [f"{ALSO.get(name, name)}: {written(value)}" for name, value in row.also.items() if not name.endswith((".n", ".low", ".high"))]
    more = el("small", "; ".join(also)) if also else None
    beside = [f"{mark} {written(value, named.unit)}" for mark, value in row.marks.items()]
    if row.low is not None and row.high is not None:
        beside.insert(0, f"{written(row.low, named.unit)} to {written(row.high, named.unit)}")
    measured = [_bar(row, top) if named.unit == "share" and not plain else None, el("small", ", ".join(beside)) if beside else None]
    return el(
        "tr",
        el("td", el("b", named.label), None if plain else about, key, more, class_="sub" if named.label.startswith("…") else None),
        el("td", el("b", written(row.value, named.unit)), class_="end number"),
        el("td", about if plain else None, *measured, class_="measure"),
        el("td", "" if row.n is None else f"{row.n:,}", class_="end number"),
    )


def _axis(top: float) -> Html:
    return el("span", *(el("i", written(top * part / 4) if part else "0") for part in range(5)), class_="axis")


def _bar(row: Row, top: float) -> Html:
    shapes = []
    if row.low is not None and row.high is not None:
        shapes.append(el("i", class_="span", style=f"left:{_percent(row.low, top)}%;right:{100 - _percent(row.high, top):.2f}%"))
    shapes += [_mark(mark, _percent(value, top)) for mark, value in row.marks.items()]
    shapes.append(el("i", class_="value", style=f"left:{_percent(row.value, top)}%"))
    return el("span", *shapes, class_="bar")


def _mark(name: str, at: float | None) -> Html:
    return el("i", class_=f"mark {name}", title=name, style=None if at is None else f"left:{at}%")


def _percent(value: float, top: float) -> float:
    return round(100 * min(max(value / top, 0.0), 1.0), 2)


def _everything(figures: Mapping[str, Any]) -> Html | None:
    """Every key as it was printed, for whoever looks for one."""
    rows = [el("tr", el("td", el("code", key)), el("td", value, class_="end number")) for key, value in sorted(figures.items())]
    note = el("p", "These are the keys of ", el("code", "pinhole evaluate --json"), "; docs/evaluation.md says what each one asks.", class_="lead")
    return el("details", el("summary", f"All {len(rows)} figures as they were printed"), note, el("table", *rows), class_="all") if rows else None


# -- training and cost ----------------------------------------------------------------------------


def _curves(curves: Mapping[str, list[Any]]) -> list[Html]:
    return [el("div", *(el("figure", el("h3", title), drawing(curve), class_="curve") for title, curve in curves.items()), class_="curves")]


def _stages(stages: Sequence[Mapping[str, Any]]) -> Html:
    longest = max([float(stage.get("seconds", 0)) for stage in stages] + [1e-9])
    total = sum(float(stage.get("seconds", 0)) for stage in stages)
    peak = max(float(stage.get("peak_memory_gb", 0)) for stage in stages)
    rows = [
        el(
            "tr",
            el("td", el("b", stage.get("stage", "")), el("small", f"ran because: {stage['reason']}") if stage.get("reason") else None),
            el("td", clock(float(stage.get("seconds", 0))), class_="end number"),
            el("td", el("span", el("i", style=f"width:{100 * float(stage.get('seconds', 0)) / longest:.2f}%"), class_="length"), class_="measure"),
            el("td", f"{float(stage.get('peak_memory_gb', 0)):.1f} GB", class_="end number"),
        )
        for stage in stages
    ]
    head = el("tr", el("th", "stage"), el("th", "time", class_="end"), el("th", ""), el("th", "peak memory", class_="end"))
    foot = el("tr", el("td", "all"), el("td", clock(total), class_="end number"), el("td"), el("td", f"{peak:.1f} GB", class_="end number"))
    return el("div", el("table", el("thead", head), el("tbody", *rows), el("tfoot", foot)), class_="wide")


def _money(bills: Sequence[Bill], figures: Mapping[str, float], machine: str) -> Html:
    n = int(figures["cost.turns_per_s.n"])
    lead = (
        f"USD for a thousand turns like those of the exams (n {n:,}; one answer each, a call or a text). The own model is charged by reserved "
        f"machine time at the throughput measured on {machine or 'this machine'}, every slot taken: an idle hour costs as much. "
        "Frontier models are charged by tokens, with the text counted by the own model's tokenizer and pictures of 512 × 512 pixels."
    )
    dearest = max(bill.usd or 0.0 for bill in bills)
    rows = [_bill(bill, dearest) for bill in bills]
    head = el("tr", el("th", "a thousand turns by"), el("th", "USD", class_="end"), el("th", "what it was made of"))
    return _section("What a turn costs", lead, el("div", el("table", el("thead", head), el("tbody", *rows)), class_="wide"))


def _bill(bill: Bill, dearest: float) -> Html:
    length = el("span", el("i", style=f"width:{100 * bill.usd / dearest:.2f}%"), class_="length") if bill.usd and dearest else None
    return el(
        "tr",
        el("td", el("b", bill.name), el("code", bill.key)),
        el("td", el("b", "not measured" if bill.usd is None else f"{bill.usd:,.3g}"), class_="end number"),
        el("td", length, el("small", bill.formula), el("small", f"price read {bill.date}: {bill.source}"), style="width:60%;overflow-wrap:anywhere"),
    )


# -- conversations --------------------------------------------------------------------------------


def _conversations(conversations: Sequence[Mapping[str, Any]], album: Album) -> Html:
    good = sum(bool(one["right"]) for one in conversations)
    counts = f"{len(conversations)} turns, drawn from the exams by a fixed seed: {good} right, {len(conversations) - good} wrong."
    lead = f"{counts} None of these items was trained on."
    cards = [_card(one, album) for one in conversations]
    return _section("Conversations that it had never seen", lead, el("div", *cards, class_="cards"))


def _card(one: Mapping[str, Any], album: Album) -> Html:
    right = bool(one["right"])
    verdict = el("span", "✓ right" if right else "✗ wrong", class_="verdict")
    told = [el("div", el("dt", "it said"), el("dd", said(one["said"])))]
    if not right:
        told.append(el("div", el("dt", "wanted"), el("dd", said(one["wanted"]))))
    title = el("h3", KINDS.get(one["kind"], one["kind"]), verdict)
    return el("article", title, turns(one["messages"], album), el("dl", *told, class_="told"), class_="card right" if right else "card wrong")


def draw_lessons(world: World, tools: Sequence[ToolSchema], config: GraftConfig, n: int) -> list[Lesson]:
    """``n`` lessons as training draws them, half of each stage, spread so that few share their pictures."""
    from pinhole.graft.talking import talking_lessons
    from pinhole.graft.train import seeing_lessons

    rng = random.Random(f"show:{config.seed}")
    talking = talking_lessons(tools, config)
    half = n // 2
    return [*islice(seeing_lessons(world, rng, 1.0), 0, (n - half) * _APART, _APART), *islice(talking(world, rng, 1.0), 0, half * _APART, _APART)]


def show_lessons(lessons: Iterable[Lesson], path: Path, thumbnail: Thumbnail) -> Path:
    """``lessons.html``: what the language model is taught, as conversations with their pictures; returns ``path``."""
    album = Album(thumbnail)
    cards = []
    for lesson in lessons:
        title = el("h3", KINDS.get(lesson.kind, lesson.kind))
        answer = el("dl", el("div", el("dt", "answer"), el("dd", said(lesson.answer))), class_="told")
        cards.append(el("article", title, turns(messages_of(lesson), album), answer, class_="card"))
    lead = (
        f"{len(cards)} lessons as they are drawn in training. A picture is one soft token: "
        "the model is shown no pixels, and no title but what stands beside it here."
    )
    head = el("header", el("p", "Pinhole lessons", class_="brand"), el("h1", "What the language model is taught"), el("p", lead, class_="lead"))
    with disk_errors(path):
        write_atomic(path, page("Pinhole lessons", head, el("section", el("div", *cards, class_="cards"))))
    return path


def messages_of(lesson: Lesson) -> list[dict[str, Any]]:
    """A lesson's messages without the answer, as plain data."""
    return [message.plain() for message in lesson.messages[:-1]]
