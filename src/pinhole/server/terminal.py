"""The same conversation in a terminal: streaming text, one line a tool call, item titles as hyperlinks.

A stateless client like the page: it keeps OpenAI-style messages and hands them back. Titles and answers are
cleaned of control characters before they reach the terminal. Knows nothing of models or of HTTP.
"""

from __future__ import annotations

import base64
import contextlib
import mimetypes
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from pinhole.assistant.conversation import LINK, Conversation
from pinhole.assistant.loop import Finished, Problem, Shown, Started, Text
from pinhole.errors import BadImage, PinholeError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text as Styled

HELP = "/image PATH [words]   send a picture\n/new                  start again\n/quit                 leave (or Ctrl-D); Ctrl-C stops an answer"
PARTIAL = re.compile(r"\[(#[^\]\n]*(\](\([^)\n]*)?)?)?$")  # the beginning of a link that has not come whole
LARGEST_FILE = 5_000_000


def chat(assistant: Any, catalogue: Any, console: Console, read: Callable[[], str] | None = None) -> None:
    """Converse until the end of input. ``read`` returns a line or raises EOFError."""
    read = read or (lambda: console.input("[bold]you ›[/] "))
    console.print(f"[dim]{catalogue.count('items'):,} items. /help says what else there is.[/]", highlight=False)
    messages: list[dict[str, Any]] = []
    while True:
        try:
            line = read().strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if line in ("/quit", "/exit"):
            return
        if line == "/help":
            console.print(HELP, highlight=False, markup=False)
        elif line == "/new":
            messages = []
        elif line:
            _turn(assistant, catalogue, console, messages, line)


def _turn(assistant: Any, catalogue: Any, console: Console, messages: list[dict[str, Any]], line: str) -> None:
    """One turn; ``messages`` grows by the question and the answer, or stays as it was where the turn failed."""
    try:
        question = {"role": "user", "content": _content(line)}
        with _interruptible() as cancelled:
            said = _show(assistant.turn(Conversation.from_openai([*messages, question]), cancelled=cancelled), catalogue, console)
    except PinholeError as error:
        console.print(f"\n{clean(str(error))}", style="red", highlight=False, markup=False)
        return
    messages += [question, {"role": "assistant", "content": said}]


def _content(line: str) -> Any:
    if not line.startswith("/image"):
        return line
    name, _, words = line.removeprefix("/image").strip().partition(" ")
    path = Path(name).expanduser()
    try:
        data = path.read_bytes() if path.stat().st_size <= LARGEST_FILE else b""
    except OSError as error:
        raise BadImage(f"cannot read it: {error.strerror}", where=name, fix="/image PATH [words]") from None
    if not data:
        raise BadImage(f"a picture of no bytes, or of more than {LARGEST_FILE:,}", where=name)
    kind = mimetypes.guess_type(path.name)[0] or "image/png"
    picture = {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{base64.b64encode(data).decode()}"}}
    return [*([{"type": "text", "text": words.strip()}] if words.strip() else []), picture]


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """While inside, the first Ctrl-C asks the turn to stop instead of ending the program."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop.is_set
        return

    def on_signal(*_: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield stop.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def _show(events: Iterator[Any], catalogue: Any, console: Console) -> str:
    """Print a turn as it happens; returns the answer as the next turn must see it."""
    said, printed, items = "", 0, {}
    text = ""
    for event in events:
        if isinstance(event, Started):
            words = "  ".join(f"{name} {value if isinstance(value, str) else repr(value)}" for name, value in event.arguments.items())
            console.print(f"◉ {clean(event.name)}  {clean(words)}", style="dim", highlight=False, markup=False)
        elif isinstance(event, Shown):
            links = picture_links(catalogue, [item.id for item in event.items])
            for item in event.items:
                items[item.k] = links.get(item.id)
                console.print("  ", named(item.k, item.title, items[item.k]), sep="", highlight=False)
        elif isinstance(event, Problem):
            console.print(f"  {clean(event.message)}", style="yellow", highlight=False, markup=False)
        elif isinstance(event, Text):
            said += event.delta
            whole = PARTIAL.sub("", said)
            printed = _print_new(whole, printed, items, catalogue, console)
        elif isinstance(event, Finished):
            text = event.text
    _print_new(said, printed, items, catalogue, console)
    console.print()
    return text or said


def _print_new(said: str, printed: int, items: dict[int, str | None], catalogue: Any, console: Console) -> int:
    """Print what of ``said`` is beyond ``printed`` characters, links as named items."""
    at = printed
    for match in LINK.finditer(said, printed):
        console.print(clean(said[at : match.start()]), end="", highlight=False, markup=False, soft_wrap=True)
        k, item_id = int(match[1]), unquote(match[3])
        if k not in items:
            items[k] = picture_links(catalogue, [item_id]).get(item_id)
        console.print(named(k, re.sub(r"\\(.)", r"\1", match[2]).strip(), items[k]), end="", soft_wrap=True)
        at = match.end()
    console.print(clean(said[at:]), end="", highlight=False, markup=False, soft_wrap=True)
    return max(len(said), printed)


def named(k: int, title: str, link: str | None) -> Styled:
    """``#2 lemon``, the title a hyperlink where the picture is a file."""
    from rich.style import Style
    from rich.text import Text as Styled

    return Styled.assemble((f"#{k}", "bold"), " ", (clean(title) or "untitled", Style(link=link, underline=link is not None)))


def picture_links(catalogue: Any, ids: list[str]) -> dict[str, str]:
    """``file:`` addresses of the items whose picture is a file."""
    table = catalogue.items(columns=["id", "image"], ids=ids)
    pairs = zip(table["id"].to_pylist(), table["image"].to_pylist(), strict=True)
    return {item_id: (catalogue.root / image).absolute().as_uri() for item_id, image in pairs if image and "://" not in image}


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def clean(text: str) -> str:
    """Without control characters (an escape sequence in a title must not reach the terminal) and direction overrides."""
    return _CONTROL.sub("", text)
