"""The report: one file that runs nothing and loads nothing, in which every figure and every picture has its place."""

from __future__ import annotations

import base64
import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pinhole.config import GraftConfig
from pinhole.errors import Corrupt
from pinhole.evaluation import page
from pinhole.evaluation.curves import _ticks, drawing, series, smooth, thinned
from pinhole.evaluation.figures import NAMED, clock, grouped, written
from pinhole.evaluation.page import Album, el, raster, text
from pinhole.evaluation.report import KINDS, draw_lessons, messages_of, show_lessons, write_report
from toy_model import OWN
from toy_server import HOSTILE, paint
from toy_world import tiny_world

EVIL = "\x00\u202e<script>alert(1)</script>\"'><img src=x onerror=alert(1)>&amp;</style></title>\ud800"
PNG = paint("red", (48, 48))


class Reader(HTMLParser):
    """Elements with their attributes, and the text between them."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(data.decode("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def share(key: str, value: float) -> dict[str, float]:
    return {key: value, f"{key}.n": 300, f"{key}.low": value - 0.05, f"{key}.high": value + 0.05}


FIGURES = {
    **share("see.pick.accuracy", 0.5),
    "see.pick.accuracy.chance": 0.25,
    "see.pick.accuracy.blind": 0.26,
    **share("search.text_to_image.recall@10.tuned", 0.15),
    "search.text_to_image.recall@10.base": 0.12,
    "search.text_to_image.recall@10.learned": 0.13,
    "search.text_to_image.recall@10.learned.low": 0.11,
    "search.text_to_image.recall@10.weight": 0.4,
    "search.text_to_image.recall@10.ratio": 1.25,
    "search.text_to_image.recall@10.ratio.low": 1.1,
    "search.text_to_image.recall@10.ratio.high": 1.4,
    "speed.first_token_s": 0.0437,
    f"new.{EVIL}": 3.0,
    "tools.unseen.n": 0,
}
TURN = {
    "kind": "pick",
    "messages": [{"role": "user", "parts": ["#1", {"item": "a"}, "\n#2", {"item": EVIL}, f"\nwhich is {EVIL}?"]}],
    "wanted": "#1",
    "said": EVIL,
    "right": False,
}
TALK = {
    "kind": "like",
    "messages": [
        {"role": "user", "parts": ["find lemons"]},
        {"role": "assistant", "parts": ['{"tool":"search","text":"lemons"}']},
        {"role": "user", "parts": ["results:", "\n", "#1", {"item": "a"}, f" {HOSTILE}", "\n", "#2", {"item": "b"}]},
        {"role": "assistant", "parts": ["I found 2 pictures."]},
        {"role": "user", "parts": ["more like #2"]},
    ],
    "wanted": '{"tool":"search","like":"#2"}',
    "said": '{"tool":"search","like":"#2"}',
    "right": True,
}
STAGES = [{"stage": "embed", "seconds": 12.0, "peak_memory_gb": 1.25, "reason": "first time"}, {"stage": EVIL, "seconds": 0, "peak_memory_gb": 0}]


def made(tmp_path: Path, **changes: Any) -> Reader:
    (tmp_path / "curve.json").write_text(json.dumps([{"stage": "seeing", "step": i, "loss": 2 / (i + 1), "lessons": 30} for i in range(50)]))
    given: dict[str, Any] = {
        "name": f"shop {EVIL}",
        "about": {"catalogue": "3 items", "machine": EVIL, "nothing": ""},
        "figures": FIGURES,
        "conversations": [TURN, TALK],
        "curves": {"Language model": tmp_path / "curve.json", "Another": tmp_path / "none.json"},
        "stages": STAGES,
        "thumbnail": lambda id: PNG if id in ("a", "b") else None,
    }
    out = write_report(tmp_path / "report.html", **given | changes)
    assert out == tmp_path / "report.html"
    return Reader(out.read_bytes())


def check_harmless(reader: Reader) -> None:
    allowed = {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "main",
        "header",
        "section",
        "article",
        "div",
        "p",
        "span",
        "b",
        "i",
        "small",
        "code",
    }
    allowed |= {"h1", "h2", "h3", "dl", "dt", "dd", "table", "thead", "tbody", "tfoot", "tr", "th", "td", "figure", "figcaption", "img", "details"}
    allowed |= {"summary", "pre", "svg", "line", "polyline", "text"}
    assert {tag for tag, _ in reader.elements} <= allowed
    for _, attributes in reader.elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("href", "srcdoc", "action", "formaction")]
        assert (attributes.get("src") or "data:image/png;base64,").startswith(("data:image/png;base64,", "data:image/webp;base64,"))
    policy = next(one["content"] for one in reader.all("meta") if one.get("http-equiv") == "Content-Security-Policy")
    assert policy and "default-src 'none'" in policy and "script" not in policy


def test_hostile_words_stay_words(tmp_path: Path) -> None:
    reader = made(tmp_path)
    check_harmless(reader)
    assert "<script>alert(1)</script>" in reader.words and HOSTILE.replace("\x1b", "\ufffd") in reader.words
    assert "\x00" not in reader.words and "\u202e" not in reader.words
    assert "url(" not in (tmp_path / "report.html").read_text() and "@import" not in (tmp_path / "report.html").read_text()


def test_every_figure_has_a_place(tmp_path: Path) -> None:
    reader = made(tmp_path)
    for key in FIGURES:
        assert text(key) in (tmp_path / "report.html").read_text(), key
    assert "Which of the four is it?" in reader.words and "What kind of thing is it?" not in reader.words
    assert ".450 to .550, chance .250, blind .260" in reader.words and "1.10× to 1.40×" in reader.words
    assert "44 ms" in reader.words and "base .120, learned .130" in reader.words and "share of all fusion weights: 0.4" in reader.words
    marks = [one for one in reader.all("i") if "left:25.0%" in (one.get("style") or "")]
    assert [one["class"] for one in marks] == ["mark chance"]


def test_what_it_says_of_stages_and_training(tmp_path: Path) -> None:
    reader = made(tmp_path)
    assert "first time" in reader.words and "1.2 GB" in reader.words and "12 s" in reader.words
    assert len(reader.all("svg")) == 1 and "1,500" in reader.words and "Another" not in reader.words
    (tmp_path / "bad.json").write_text('{"no": "curve"}')
    with pytest.raises(Corrupt, match=r"bad\.json"):
        made(tmp_path, curves={"Language model": tmp_path / "bad.json"})


def test_conversations_are_marked_with_what_was_wanted(tmp_path: Path) -> None:
    reader = made(tmp_path)
    assert "✓ right" in reader.words and "✗ wrong" in reader.words and reader.words.count("wanted") == 1
    assert "1 right, 1 wrong" in reader.words
    pictures = reader.all("img")
    assert len(pictures) == 3 and all(base64.b64decode((one["src"] or "").split(",")[1]) == PNG for one in pictures)
    assert sum(one.get("class") == "nopicture" for one in reader.all("span")) == 1
    assert "results:" not in reader.words and "more like #2" in reader.words


@pytest.mark.parametrize("gone", [{"figures": {}}, {"conversations": []}, {"curves": {}}, {"stages": []}, {"about": {}}])
def test_what_is_not_there_leaves_no_hole(tmp_path: Path, gone: dict[str, Any]) -> None:
    check_harmless(made(tmp_path, **gone))


def test_the_same_input_is_the_same_file(tmp_path: Path) -> None:
    made(tmp_path)
    first = (tmp_path / "report.html").read_bytes()
    made(tmp_path)
    assert (tmp_path / "report.html").read_bytes() == first


# -- pictures -------------------------------------------------------------------------------------


def test_only_small_raster_pictures_are_taken_in() -> None:
    kinds = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp", "gif": "image/gif"}
    for name, kind in kinds.items():
        assert raster(paint("red", (8, 8), name.upper())) == kind
    for bad in (b"", b"<svg xmlns='x' onload='alert(1)'/>", b"<html>", b"RIFFxxxxWAVE", b"%PDF"):
        assert raster(bad) is None
    album = Album({"svg": b"<svg/>", "large": b"\x89PNG" + bytes(page.PICTURE_BYTES), "a": PNG}.get)
    assert [album.picture(id).startswith("<img") for id in ("svg", "large", "none", "a")] == [False, False, False, True]


def test_a_page_of_many_pictures_is_bounded() -> None:
    asked: list[str] = []

    def thumbnail(id: str) -> bytes:
        asked.append(id)
        return PNG

    album = Album(thumbnail, budget=10 * len(PNG))
    shown = [album.picture(str(k % 4)) for k in range(40)]
    assert asked == ["0", "1", "2", "3"] and 0 < sum(len(one) for one in shown if one.startswith("<img")) < 20 * len(PNG)


# -- pieces ---------------------------------------------------------------------------------------


def test_elements_escape_all_but_elements() -> None:
    assert el("p", "a<b", el("i", "&"), None, class_="x\"'y", data_n=3, title=None) == ('<p class="x&quot;&#x27;y" data-n="3">a&lt;b<i>&amp;</i></p>')


@pytest.mark.parametrize(
    ("value", "unit", "words"),
    [
        (0.5789, "share", ".579"),
        (1.0, "share", "1.00"),
        (0.0, "share", ".000"),
        (1.243, "times", "1.24×"),
        (0.0437, "seconds", "44 ms"),
        (7.04, "seconds", "7.0 s"),
        (21.34, "per second", "21.3/s"),
        (14009.4, "number", "14,009"),
        (1.0, "tokens", "1"),
        (float("nan"), "share", "–"),
    ],
)
def test_values_as_people_read_them(value: float, unit: Any, words: str) -> None:
    assert written(value, unit) == words


def test_times() -> None:
    assert [clock(seconds) for seconds in (0.84, 42, 119.6, 425, 3725)] == ["0.8 s", "42 s", "2 min 00 s", "7 min 05 s", "1 h 02 min"]


def test_groups_lose_nothing() -> None:
    figures = dict.fromkeys(NAMED, 0.5) | {f"{key}.n": 7 for key in NAMED} | {"a.b": 1.0, "a.b.n": 3, "a.b.low": 0.5, "d.base": 4.0}
    rows = {row.key: row for group in grouped(figures) for row in group.rows}
    assert set(NAMED) <= set(rows) and all(rows[key].n == 7 and not rows[key].also for key in NAMED)
    assert (rows["a.b"].n, rows["a.b"].low, rows["d.base"].value) == (3, 0.5, 4.0)
    assert grouped({"tools.unseen.n": 0, "tools.unseen.blind": 0.0}) == [] == grouped({})


def test_ticks_are_round() -> None:
    assert _ticks(12, whole=True) == [0, 5, 10] and _ticks(1.7) == [0, 0.5, 1, 1.5] and _ticks(740, whole=True) == [0, 200, 400, 600]
    assert _ticks(1, whole=True) == [0, 1] and _ticks(0.004) == [0, 0.001, 0.002, 0.003, 0.004]


def test_curves_are_split_by_stage_or_signal() -> None:
    staged = [{"stage": stage, "step": 0, "loss": 1.0, "lessons": 10} for stage in ("seeing", "talking")]
    assert series(staged) == ({"seeing": [(10.0, 1.0)], "talking": [(20.0, 1.0)]}, "lessons")
    signals = [{"step": k, "loss": 3.0, "board": 2.0, "title": 1.0} for k in (1, 2)]
    assert series(signals) == ({"board": [(1.0, 2.0), (2.0, 2.0)], "title": [(1.0, 1.0), (2.0, 1.0)]}, "steps")
    assert series([]) == ({}, "lessons") and "Nothing was trained" in drawing([])
    long = [(float(k), random.Random(k).random()) for k in range(5000)]
    assert len(thinned(long)) <= 240 and abs(sum(y for _, y in thinned(long)) / len(thinned(long)) - 0.5) < 0.02
    assert len(smooth(long)) == len(long) and max(y for _, y in smooth(long)) < 0.6
    for odd in ([{"loss": 0.0}], [{"loss": 1e-12, "lessons": 0}] * 3, [{"loss": 5.0}] * 700):
        assert not re.search("nan|inf", drawing(odd))


# -- lessons --------------------------------------------------------------------------------------


def test_lessons_are_shown_with_pictures(tmp_path: Path) -> None:
    world = tiny_world()
    drawn = draw_lessons(world, OWN, GraftConfig(), 20)
    assert len(drawn) == 20 and {lesson.kind for lesson in drawn} <= set(KINDS) and len({lesson.kind for lesson in drawn}) > 6
    trained = {world.pictures[i].id for i in world.train}
    shown = {part["item"] for lesson in drawn for message in messages_of(lesson) for part in message["parts"] if isinstance(part, dict)}
    assert shown and shown <= trained
    reader = Reader(show_lessons(drawn, tmp_path / "lessons.html", lambda id: PNG).read_bytes())
    check_harmless(reader)
    assert len(reader.all("article")) == 20 and "20 lessons" in reader.words and len(reader.all("img")) >= len(shown)
    again = draw_lessons(world, OWN, GraftConfig(), 20)
    assert [(messages_of(one), one.answer) for one in drawn] == [(messages_of(one), one.answer) for one in again]
    assert [len(draw_lessons(world, OWN, GraftConfig(), n)) for n in (0, 1, 3)] == [0, 1, 3]


def test_more_tokens_are_drawn_above_what_they_cost(tmp_path: Path) -> None:
    some = {"see.match.accuracy": 0.8, "cost.tokens_per_item": 16.0}
    assert "More tokens" not in made(tmp_path, figures=FIGURES | some).words  # one number is no curve
    some |= {"nested.1.see.match.accuracy": 0.6, "nested.4.see.match.accuracy": 0.7, "nested.1.see.match.accuracy.low": 0.5}
    some |= {"nested.1.first_token_s": 0.071, "nested.4.first_token_s": 0.072, "nested.16.first_token_s": 0.105}
    seen = made(tmp_path, figures=FIGURES | some)
    assert "More tokens a picture" in seen.words and "105 ms" in seen.words
    [line] = [one for one in seen.all("polyline") if "raw" not in str(one["class"]) and len(str(one["points"]).split()) == 3]
    heights = [float(point.partition(",")[2]) for point in str(line["points"]).split()]
    assert heights == sorted(heights, reverse=True) and heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.2)
    assert any(one.get("aria-label") == "is it this: 0.60 at 1, 0.70 at 4, 0.80 at 16" for one in seen.all("svg"))
