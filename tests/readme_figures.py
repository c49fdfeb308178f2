"""Writes docs/figures.json and the README's table from what the demo printed, on the machine that printed it.

    make demo ARGS="--no-serve --json" | python tests/readme_figures.py
    make demo ARGS="--full --no-serve --json" | python tests/readme_figures.py
    pinhole evaluate --json -w demo | python tests/readme_figures.py default    # its exams alone, asked again

Reads the last line of its input and replaces that size's figures. The table is nothing but that file put into words; a
test compares the two.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from pinhole.evaluation.figures import Row, clock, grouped, written
from pinhole.evaluation.machine import in_words, machine

ROOT = Path(__file__).parents[1]
FILE, README = ROOT / "docs" / "figures.json", ROOT / "README.md"
BEGIN, END = "<!-- figures: begin. Written by tests/readme_figures.py from docs/figures.json -->", "<!-- figures: end -->"
COMMANDS = {"default": 'make demo ARGS="--no-serve --json"', "full": 'make demo ARGS="--full --no-serve --json"'}
SHOWN = (
    *("search.text_to_image.recall@10", "search.text_to_image.recall@10.ratio", "boards.recall@10", "boards.recall@10.ratio"),
    *("related.placed.recall@10", "related.placed.recall@10.ratio", "related.new.recall@10", "related.new.recall@10.ratio"),
    *("search.fine.recall@10", "search.cold.recall@10", "see.fine.accuracy"),
    *("see.category.accuracy", "see.pick.accuracy", "see.match.accuracy", "board.theme.accuracy", "board.odd_one_out.accuracy"),
    *("tools.valid", "tools.name", "tools.arguments", "tools.references", "tools.unseen"),
    *("speed.first_token_s", "speed.first_token_over_forward", "speed.tool_call_s", "speed.train.samples_per_s", "speed.embed.fraction"),
    *("cost.tokens_per_item", "cost.tokens_per_card"),
)


def read(printed: str) -> tuple[str, dict[str, Any]]:
    """The demo's size, and what it printed with the machine and the day; figures apart from the rest."""
    value = json.loads(printed.strip().splitlines()[-1])
    figures = {key: one for key, one in value.items() if isinstance(one, (int, float)) and "." in key}
    rest = {key: value[key] for key in ("stages", "wall_s", "peak_memory_gb")}
    size = value["demo"]
    return size, {"command": COMMANDS[size], "day": time.strftime("%Y-%m-%d"), "machine": machine(), **rest, "figures": figures}


def again(printed: str, before: dict[str, Any]) -> dict[str, Any]:
    """What a demo printed, with figures of a later evaluation of its workspace."""
    figures = json.loads(printed.strip().splitlines()[-1])
    return {**before, "day": time.strftime("%Y-%m-%d"), "figures": {key: one for key, one in figures.items() if isinstance(one, (int, float))}}


def block(runs: dict[str, dict[str, Any]]) -> str:
    """The README's tables, a column or two for each size: figures, then stages."""
    sizes = [size for size in COMMANDS if size in runs]
    lines = [f"{size}: `{runs[size]['command']}` on {in_words(runs[size]['machine'])}, {runs[size]['day']}  " for size in sizes]
    lines += ["", line("figure", "", *[cell for size in sizes for cell in (size, "beside it")]), line("---", "---", *["---"] * 2 * len(sizes))]
    rows = {size: {row.key: row for group in grouped(runs[size]["figures"]) for row in group.rows} for size in sizes}
    for key in SHOWN:
        found = [rows[size].get(key) for size in sizes]
        label = next((row.named.label.removeprefix("… ") for row in found if row), "")
        if label:
            lines.append(line(f"`{key}`", label, *[cell for row in found for cell in _cells(row)]))
    lines += ["", line("stage", *[cell for size in sizes for cell in (size, "peak memory")]), line("---", *["---:"] * 2 * len(sizes))]
    for name in dict.fromkeys(name for size in sizes for name in runs[size]["stages"]):
        lines.append(line(f"`{name}`", *[cell for size in sizes for cell in _cost(runs[size]["stages"].get(name), "seconds")]))
    return "\n".join([*lines, line("the whole way", *[cell for size in sizes for cell in _cost(runs[size], "wall_s")])])


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(row: Row | None) -> tuple[str, str]:
    """A value with its interval and how many were asked; what stands beside it."""
    if row is None:
        return "", ""
    unit = row.named.unit
    interval = f" {written(row.low, unit)} – {written(row.high, unit)}" if row.low is not None and row.high is not None else ""
    count = "" if row.n is None else f", n {row.n:,}"
    return f"**{written(row.value, unit)}**{interval}{count}", ", ".join(f"{mark} {written(value, unit)}" for mark, value in row.marks.items())


def _cost(measured: dict[str, Any] | None, seconds: str) -> tuple[str, str]:
    return (clock(measured[seconds]), f"{measured['peak_memory_gb']:.1f} GB") if measured else ("", "")


def fill(text: str, inner: str, begin: str = BEGIN, end: str = END) -> str:
    """The README with its block replaced."""
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{inner}{chr(10) if inner else ''}{end}{after}"


if __name__ == "__main__":
    runs = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    size, measured = (sys.argv[1], again(sys.stdin.read(), runs[sys.argv[1]])) if sys.argv[1:] else read(sys.stdin.read())
    runs |= {size: measured}
    FILE.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")
    README.write_text(fill(README.read_text(encoding="utf-8"), block(runs)), encoding="utf-8")
