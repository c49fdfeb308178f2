"""Writes docs/trainings.json and the figures of docs/graft.md from what benchmarks of training printed, on the machine that printed it.

    pinhole bench tokens -w shop --json --plot docs/tokens.png | python tests/graft_figures.py
    pinhole bench distil -w shop --json | python tests/graft_figures.py
    pinhole bench start -w shop --json | python tests/graft_figures.py

Reads the last line of its input and replaces the figures of that benchmark. Each block is nothing but that file put into words; a
test compares the two.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pinhole.evaluation.machine import in_words
from pinhole.evaluation.nested import EXAMS
from readme_costs import read
from readme_figures import fill, line

ROOT = Path(__file__).parents[1]
FILE, PAGE = ROOT / "docs" / "trainings.json", ROOT / "docs" / "graft.md"
BENCHMARKS = ("tokens", "distil", "start")
SIDES = {
    "tokens": {"alone": "a graft of one token", "k1": "nested, 1", "k4": "nested, 4", "k16": "nested, 16", "patches": "small VLM with eyes"},
    "distil": {"eyes": "with eyes", "gutted": "gutted, untrained", "lessons": "by lessons alone", "taught": "taught by its eyes"},
}


def page(text: str, runs: dict[str, dict[str, Any]]) -> str:
    """The page with its blocks replaced; a benchmark that was not run has an empty one."""
    for name in BENCHMARKS:
        begin, end = f"<!-- {name}: begin. Written by tests/graft_figures.py from docs/trainings.json -->", f"<!-- {name}: end -->"
        text = fill(text, block(name, runs[name]) if name in runs else "", begin, end)
    return text


def block(name: str, run: dict[str, Any]) -> str:
    figures = run["figures"]
    made = {"tokens": _tokens, "distil": _distil, "start": _start}[name](figures)
    return f"{made}\n\n(`pinhole bench {name}`: {in_words(run['machine'])}, {run['day']})"


def _tokens(figures: dict[str, Any]) -> str:
    sides = SIDES["tokens"]
    lines = _scores("tokens", figures)
    lines.append(line("tokens a picture", *[f"{figures[f'tokens.{side}.per_item']:.0f}" for side in sides]))
    lines.append(line("first token, four new pictures", *[f"{1000 * figures[f'tokens.{side}.first_token_s']:.0f} ms" for side in sides]))
    about = f"After {figures['tokens.steps']:.0f} steps of seeing each, n {figures['tokens.n']:.0f} an exam{_wide(figures)}:"
    return "\n".join([about, "", *lines, "", "![Scores over the time to the first token](tokens.png)"])


def _distil(figures: dict[str, Any]) -> str:
    head, rule, *rows = _scores("distil", figures)
    rows = [f"{row} {_share(figures, 'kept_alone', exam)} | {_share(figures, 'kept', exam)} |" for row, exam in zip(rows, EXAMS, strict=True)]
    head, rule = f"{head} kept by lessons | kept, taught |", f"{rule} ---: | ---: |"
    about = f"After {figures['distil.steps']:.0f} steps each, n {figures['distil.n']:.0f} an exam{_wide(figures)}; "
    about += f"the teacher said what the tables say in {figures['distil.teacher_right']:.0%} of its lessons, and took "
    about += f"{figures['distil.teacher_s'] / 60:.0f} minutes for them:"
    return "\n".join([about, "", head, rule, *rows])


def _start(figures: dict[str, Any]) -> str:
    names = {"random": "at random", "ridge": "ridge regression", "words": "the warm start"}
    lines = [line("", *names.values()), line("---", *["---:"] * len(names))]
    lines.append(line("loss at first", *[f"{figures[f'start.{name}.first']:.2f}" for name in names]))
    lines.append(line(f"loss after {figures['start.of_steps']:.0f} steps", *[f"{figures[f'start.{name}.last']:.2f}" for name in names]))
    lines.append(line("steps to the random start's last loss", *[f"{figures[f'start.{name}.steps']:.0f}" for name in names]))
    return "\n".join(lines)


def _scores(name: str, figures: dict[str, Any]) -> list[str]:
    sides = SIDES[name]
    lines = [line("", *sides.values()), line("---", *["---:"] * len(sides))]
    for exam, words in EXAMS.items():
        lines.append(line(words, *[f"{figures[f'{name}.{side}.{exam}']:.3f}".removeprefix("0") for side in sides]))
    return lines


def _wide(figures: dict[str, Any]) -> str:
    """How far the widest 95% interval goes to either side."""
    reach = [(figures[key] - figures[f"{key.removesuffix('.high')}.low"]) / 2 for key in figures if key.endswith(".high")]
    return f" (95% intervals reach ±{max(reach):.3f} at most)".replace("±0", "±") if reach else ""


def _share(figures: dict[str, Any], kept: str, exam: str) -> str:
    return f"{figures[f'distil.{kept}.{exam}']:.0%}" if f"distil.{kept}.{exam}" in figures else ""


if __name__ == "__main__":
    runs = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    name, measured = read(sys.stdin.read(), BENCHMARKS)
    runs |= {name: measured}
    FILE.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), runs), encoding="utf-8")
