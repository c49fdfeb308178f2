"""What a person sees of a command: lines and progress bars on stderr; and the one JSON object on stdout.

The only file that prints. Knows nothing of commands. Bars are shown on a terminal only; lines always.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Progress = Callable[[int, int], None]


class Console:
    """``json`` says that stdout belongs to a program: one object, nothing else."""

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json

    def say(self, message: str = "") -> None:
        """A line for a person. Broken terminals and closed pipes are not worth an error."""
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(clean(message) + "\n")
            sys.stderr.flush()

    def result(self, value: Mapping[str, Any], for_people: Sequence[str] = ()) -> None:
        """The end of a command: ``value`` for programs when they asked, else the lines."""
        if self.as_json:
            try:
                print(json.dumps(plain(value), ensure_ascii=False), flush=True)
            except BrokenPipeError:  # whoever read our output has left: nothing to say, and nothing more to flush at exit
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        else:
            for line in for_people:
                self.say(line)

    @contextlib.contextmanager
    def bar(self, label: str) -> Iterator[Progress]:
        """``with console.bar("embed") as progress: progress(done, total)``: a bar with rate and time left."""
        if not sys.stderr.isatty():
            yield lambda done, total: None
            return
        from rich.console import Console as Terminal
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        rate, left = TextColumn("{task.fields[rate]}"), TextColumn("left")
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), rate, TimeElapsedColumn(), left, TimeRemainingColumn())
        with Bars(*columns, console=Terminal(stderr=True), transient=True) as bars:
            task = bars.add_task(label, total=None, rate="")

            def progress(done: int, total: int) -> None:
                bars.update(task, completed=done, total=total or None, rate=_rate(bars.tasks[0].speed))

            yield progress


def _rate(speed: float | None) -> str:
    return "" if not speed else f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.2g}/s"


def clean(text: str) -> str:
    """Without control characters: a title must not move the cursor."""
    return "".join(one if one == "\n" or one == "\t" or one.isprintable() else " " for one in text)


def plain(value: Any) -> Any:
    """JSON-able: numbers of other libraries as Python's own, NaN as null, anything else as text."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if hasattr(value, "item") and callable(value.item):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def columns(rows: Sequence[Sequence[Any]]) -> list[str]:
    """Rows as lines of aligned text; numbers to the right."""
    texts = [[f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    lines = []
    for row, text in zip(rows, texts, strict=True):
        cells = zip(row, text, widths, strict=True)
        lines.append("  ".join(one.rjust(width) if isinstance(cell, (int, float)) else one.ljust(width) for cell, one, width in cells).rstrip())
    return lines
