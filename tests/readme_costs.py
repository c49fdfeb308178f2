"""Writes docs/costs.json and the README's table of costs from what benchmarks printed, on the machine that printed it.

    pinhole bench turn --json | python tests/readme_costs.py
    pinhole bench board -w demo --json | python tests/readme_costs.py
    pinhole bench gateway --json | python tests/readme_costs.py

Reads the last line of its input and replaces the figures of that benchmark. The block is nothing but that file put into words; a
test compares the two.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import readme_figures
from pinhole.evaluation.machine import in_words, machine
from readme_figures import line

ROOT = Path(__file__).parents[1]
FILE, README = ROOT / "docs" / "costs.json", ROOT / "README.md"
BEGIN, END = "<!-- costs: begin. Written by tests/readme_costs.py from docs/costs.json -->", "<!-- costs: end -->"
BENCHMARKS = ("turn", "board", "gateway")


def read(printed: str, names: Sequence[str] = BENCHMARKS) -> tuple[str, dict[str, Any]]:
    """Which benchmark of ``names`` it was, and its figures with the machine and the day."""
    figures = json.loads(printed.strip().splitlines()[-1])
    name = next(name for name in names if any(key.startswith(f"{name}.") for key in figures))
    return name, {"day": time.strftime("%Y-%m-%d"), "machine": machine(), "figures": figures}


def block(runs: dict[str, dict[str, Any]]) -> str:
    """What each benchmark measured, and where."""
    makers = {"turn": _turn, "board": _board, "gateway": _gateway}
    parts = [f"{makers[name](runs[name]['figures'])}{_where(name, runs[name])}" for name in BENCHMARKS if name in runs]
    return "\n\n".join(parts)


def _where(name: str, run: dict[str, Any]) -> str:
    threads = run["figures"].get("turn.threads")
    return f" (`pinhole bench {name}`: {in_words(run['machine'])}{f', {threads:g} threads' if threads else ''}, {run['day']})"


def _turn(figures: dict[str, Any]) -> str:
    """A row for each number of pictures, with the ratio on paper beside the one that was measured."""
    sizes = sorted(int(key.split(".")[1][1:]) for key in figures if key.startswith("turn.n") and key.endswith(".full_s"))
    head = ("pictures in the turn", "Qwen3-VL-2B with its eyes", "its tower's output cached", "**grafted**, one token a picture", "as many words")
    lines = [line(*head, "eyes ÷ graft", "on paper", "graft ÷ words"), line(*["---:"] * 8)]
    for n in sizes:
        spent = [f"{figures[f'turn.n{n}.{side}']:.2f} s" for side in ("full_s", "cached_tower_s", "graft_s", "floor_s")]
        ratios = [f"**{figures[f'turn.n{n}.full_over_graft']:.1f}×**", f"{figures[f'turn.n{n}.flops.full_over_graft']:.1f}×"]
        lines.append(line(str(n), *spent, *ratios, f"{figures[f'turn.n{n}.graft_over_floor']:.2f}"))
    once = f"A picture never seen before is looked at once: {figures['turn.tower_image_s']:.2f} s by that tower"
    if "turn.encoder_image_s" in figures:
        once += f", {1000 * figures['turn.encoder_image_s']:.0f} ms by the default encoder on one thread"
    return "\n".join([*lines, "", f"{once}."])


def _board(figures: dict[str, Any]) -> str:
    first, later, ratio = (figures[f"board.n1000.{name}"] for name in ("first_token_s", "next_question_s", "over_text"))
    n = int(figures["board.n1000.first_token_s.n"])
    return (
        f"A question about a board of 1,000 pictures, default model: **{first:.2f} s** to the first token, {ratio:.2f} times as many words; "
        f"**{later:.3f} s** for the next question about it. n {n}"
    )


def _gateway(figures: dict[str, Any]) -> str:
    added, bare = 1000 * figures["gateway.added_s"], 1000 * figures["gateway.upstream_first_token_s"]
    return f"What the way over a vLLM server adds to the first token, 16 conversations at once: **{added:.1f} ms** to {bare:.0f} ms"


def fill(text: str, inner: str) -> str:
    """The README with its block replaced."""
    return readme_figures.fill(text, inner, BEGIN, END)


if __name__ == "__main__":
    runs = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    name, measured = read(sys.stdin.read())
    runs |= {name: measured}
    FILE.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")
    README.write_text(fill(README.read_text(encoding="utf-8"), block(runs)), encoding="utf-8")
