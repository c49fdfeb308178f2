"""docs/evaluation.md names every figure there is, and its lessons are lessons."""

from __future__ import annotations

import re
from pathlib import Path

from pinhole.cli import app
from pinhole.config import Config
from pinhole.evaluation.figures import ALSO, MARKS, NAMED
from pinhole.evaluation.tool_exams import lessons_file, read_lessons
from pinhole.graft.prompt import Soft, card
from test_evaluation.oracle import Oracle
from toy_model import vectors

PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")


def show(k: int, id: str) -> tuple[object, ...]:
    return card(k, Soft(id, vectors(1)[0]), f"item {id}")


def test_every_figure_is_explained_and_no_other() -> None:
    rows = [cell for line in PAGE.splitlines() if line.startswith("| `") for cell in re.findall(r"`([\w.@]+)`", line.split("|")[1])]
    explained = {name for name in rows if not name.startswith(".")}
    assert explained == set(NAMED)
    assert {f".{name}" for name in (*MARKS, *ALSO, "n", "low", "high", "tuned", "ratio")} == {name for name in rows if name.startswith(".")}


def test_the_lessons_are_lessons(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(re.search(r"```json\n(.*?)```", PAGE, re.DOTALL)[1], encoding="utf-8")  # type: ignore[index]
    lessons = read_lessons(path, show)  # type: ignore[arg-type]
    assert [len(lesson.tools) for lesson in lessons] == [1, 1, 0]
    assert lessons[1].messages[1].text == "#1 item a\n#2 item b\norder #2 please"
    found = lessons_file(path, Oracle(change=lambda _: "Yes."), show)  # type: ignore[arg-type]
    assert {key for key in found if not key.endswith((".n", ".low", ".high"))} == {"lessons.right", "lessons.name"}
    assert found["lessons.right"] == 1 / 3


def test_commands_and_settings_exist() -> None:
    commands = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert set(re.findall(r"^\$ pinhole (\w+)", PAGE, re.MULTILINE)) <= commands
    for section, key in re.findall(r"`\[(\w+)\] (\w+)`", PAGE):
        assert hasattr(getattr(Config(), section), key)
