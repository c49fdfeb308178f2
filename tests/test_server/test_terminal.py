"""The conversation in a terminal: what is printed, what is remembered, and what may not reach the terminal."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console

from pinhole.assistant.loop import Finished, Shown, ShownItem, Text
from pinhole.catalogue.store import Catalogue
from pinhole.engines.base import Usage
from pinhole.errors import PromptTooLong
from pinhole.server.terminal import chat, clean
from toy_server import Scripted, fruit, paint


def talk(assistant: Scripted, catalogue: Any, *lines: str, terminal: bool = False) -> str:
    out = io.StringIO()
    said = iter(lines)

    def read() -> str:
        try:
            return next(said)
        except StopIteration:
            raise EOFError from None

    chat(assistant, catalogue, Console(file=out, force_terminal=terminal, width=100, color_system="truecolor" if terminal else None), read)
    return out.getvalue()


def test_a_conversation(catalogue: Any) -> None:
    out = talk(Scripted(), catalogue, "fruit", "/help", "/new", "/quit")
    assert "◉ search  text fruit" in out and "#1 a yellow lemon" in out and "Here: #1 a yellow lemon and #2 a green lime." in out
    assert "(item:" not in out and "/image PATH" in out


def test_titles_are_hyperlinks(tmp_path: Path) -> None:
    (tmp_path / "a picture.png").write_bytes(paint("red"))
    catalogue = Catalogue(tmp_path / "tables")
    catalogue.upsert("items", pa.Table.from_pylist([{"id": "fruit/lemon", "image": str(tmp_path / "a picture.png"), "title": "x"}]))
    out = talk(Scripted(), catalogue, "fruit", terminal=True)
    target = re.escape((tmp_path / "a picture.png").as_uri())
    assert len(re.findall(rf"\x1b\]8;[^;]*;{target}\x1b\\.*?a yellow lemon", out)) == 2  # in the list and in the sentence


def test_the_next_turn_knows_the_last(catalogue: Any) -> None:
    seen: list[Any] = []

    def script(conversation: Any, cancelled: Any) -> Iterator[Any]:
        seen.append(conversation)
        yield from fruit(conversation, cancelled)

    talk(Scripted(script), catalogue, "fruit", "more like #3")
    assert "[#3 a red apple](item:fruit%2Fapple)" in seen[1].said[1].text


def test_failures_are_one_line(catalogue: Any) -> None:
    def script(*_: Any) -> Iterator[Any]:
        raise PromptTooLong("9,000 tokens of 8,192")
        yield

    out = talk(Scripted(script), catalogue, "x", "/image /no/such/file what is it?")
    assert "9,000 tokens of 8,192" in out and "cannot read it: No such file" in out and "Traceback" not in out


def test_a_picture_is_sent(catalogue: Any, tmp_path: Path) -> None:
    (tmp_path / "p.png").write_bytes(paint("red"))
    out = talk(Scripted(), catalogue, f"/image {tmp_path / 'p.png'} like this")
    assert "Here:" in out


def test_control_characters_do_not_pass(catalogue: Any) -> None:
    item = ShownItem(1, "fruit/lime", "evil \x1b]0;title\x07 [bold]x[/] \u202egnp", 1.0)

    def script(*_: Any) -> Iterator[Any]:
        yield Shown([item])
        yield Text("look \x1b[2J")
        yield Finished("look \x1b[2J ", Usage(), [])

    out = talk(Scripted(script), catalogue, "x")
    assert "\x1b" not in out and "\x07" not in out and "\u202e" not in out and "[bold]x[/]" in out
    assert clean("a\tb\nc\x9b") == "a\tb\nc"
