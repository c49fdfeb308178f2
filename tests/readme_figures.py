"""Writes docs/figures.json and the README's table from what the demo printed, on the machine that printed it.

    make demo ARGS="--no-serve --json" | python tests/readme_figures.py

Reads the last line of its input, which may also be what `pinhole build --json` printed. The table is nothing but that file put
into words; a test compares the two.
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
DEMO, BUILD = 'make demo ARGS="--no-serve --json"', "pinhole build --json"
SHOWN = (
    *("search.text_to_image.recall@10", "search.text_to_image.recall@10.ratio", "boards.recall@10", "boards.recall@10.ratio"),
    *("see.category.accuracy", "see.pick.accuracy", "see.match.accuracy", "board.theme.accuracy", "board.odd_one_out.accuracy"),
    *("tools.valid", "tools.name", "tools.arguments", "tools.references", "tools.unseen"),
    *("speed.first_token_s", "speed.first_token_over_forward", "speed.tool_call_s", "speed.train.samples_per_s", "speed.embed.fraction"),
    *("cost.tokens_per_item", "cost.tokens_per_card"),
)


def read(printed: str) -> dict[str, Any]:
    """What the demo printed, with the machine and the day; figures apart from the rest."""
    value = json.loads(printed.strip().splitlines()[-1])
    figures = {key: one for key, one in value.items() if isinstance(one, (int, float)) and "." in key}
    rest = {key: value[key] for key in ("demo", "stages", "wall_s", "peak_memory_gb") if key in value}
    return {"command": DEMO if "demo" in value else BUILD, "day": time.strftime("%Y-%m-%d"), "machine": machine(), **rest, "figures": figures}


def block(measured: dict[str, Any]) -> str:
    """The README's tables: figures, then stages."""
    rows = {row.key: row for group in grouped(measured["figures"]) for row in group.rows}
    lines = [f"`{measured['command']}` on {in_words(measured['machine'])}, {measured['day']}:", ""]
    lines += ["| figure | | value | 95% | beside it | n |", "|---|---|---:|---|---|---:|"]
    lines += [_row(rows[key]) for key in SHOWN if key in rows]
    if "stages" in measured:
        stages = [(name, one["seconds"], one["peak_memory_gb"]) for name, one in measured["stages"].items()]
        lines += ["", "| stage | time | peak memory |", "|---|---:|---:|"]
        lines += [f"| `{name}` | {clock(seconds)} | {memory:.1f} GB |" for name, seconds, memory in stages]
    if "wall_s" in measured:
        lines += [f"| the whole way | {clock(measured['wall_s'])} | {measured['peak_memory_gb']:.1f} GB |"]
    return "\n".join(lines)


def _row(row: Row) -> str:
    unit = row.named.unit
    interval = f"{written(row.low, unit)} – {written(row.high, unit)}" if row.low is not None and row.high is not None else ""
    beside = ", ".join(f"{mark} {written(value, unit)}" for mark, value in row.marks.items())
    count = "" if row.n is None else f"{row.n:,}"
    return f"| `{row.key}` | {row.named.label.removeprefix('… ')} | **{written(row.value, unit)}** | {interval} | {beside} | {count} |"


def fill(text: str, inner: str) -> str:
    """The README with its block replaced."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{inner}{chr(10) if inner else ''}{END}{after}"


if __name__ == "__main__":
    measured = read(sys.stdin.read())
    FILE.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    README.write_text(fill(README.read_text(encoding="utf-8"), block(measured)), encoding="utf-8")
