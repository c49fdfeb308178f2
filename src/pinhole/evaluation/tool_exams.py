"""Does the model call the right tool with the right arguments? Turns on held-out items, words and frames.

A call counts as right only when its name and *all* its arguments are right; a turn that needs no tool
is right when none is called. ``unseen`` are tools that appear in no lesson: all the model has is
their schema. ``lessons_file`` asks anybody's questions (JSONL: ``messages``, ``tools``, ``expect``).
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pinhole.config import GraftConfig
from pinhole.engines.base import Call, Done, Engine, TextDelta, Usage
from pinhole.errors import PinholeError, UsageError
from pinhole.evaluation import cost
from pinhole.evaluation.answers import blinded
from pinhole.evaluation.flops import Language
from pinhole.evaluation.intervals import share
from pinhole.graft import toolbank
from pinhole.graft.prompt import Message, Part, Soft, ToolSchema, system
from pinhole.graft.seeing import Lesson
from pinhole.graft.talking import Talking, ToolSet
from pinhole.graft.world import World

AT_ONCE = 24  # conversations asked at the same time
_KINDS = ("open", "open", "open", "like", "like_text", "like_unlike", "text_unlike", "related", "item", "chat")
_REFERENCE = re.compile(r"#\d+")
_ARTICLE = re.compile(r"^(a|an|the|some) ")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Reply:
    """What the engine answered: a call, or text."""

    call: Call | None
    text: str
    usage: Usage = Usage()

    @property
    def said(self) -> str:
        return self.call.text if self.call else self.text


# -- questions ------------------------------------------------------------------------------------


def core_turns(world: World, own: Sequence[ToolSchema], config: GraftConfig, n: int, seed: int) -> list[Lesson]:
    """Turns for the shop's own tools: openings and follow-ups in equal shares of kinds."""
    rng = random.Random(f"exam:tools:{seed}")
    talking = Talking(world, rng, own, config, held=True)
    tools = ToolSet(own, (), rng, rename=False, shuffle=False)
    return [_core(talking, tools, _KINDS[i % len(_KINDS)]) for i in range(n)] if talking.named else []


def _core(talking: Talking, tools: ToolSet, kind: str) -> Lesson:
    if kind == "open":
        said, call, _ = talking.opening(tools)
        return talking.lesson(kind, tools, (), said, call)
    history, shown = talking.history(tools)
    if kind == "chat":
        return talking.lesson(kind, tools, history if talking.rng.random() < 0.5 else (), talking.say.chat()[0])
    made = talking.follow_up(kind, tools, shown)
    assert made, "the shop's own tools serve every kind of follow-up"
    return talking.lesson(kind, tools, history, *made)


def unseen_turns(world: World, own: Sequence[ToolSchema], config: GraftConfig, n: int, seed: int) -> list[Lesson]:
    """Turns for invented tools that no lesson has, offered beside the shop's own and another unseen one."""
    rng = random.Random(f"exam:unseen:{seed}")
    talking = Talking(world, rng, own, config, held=True)
    found: list[Lesson] = []
    while len(found) < n and talking.named:
        wanted = toolbank.EXAM[len(found) % len(toolbank.EXAM)]
        other = rng.choice([tool for tool in toolbank.EXAM if tool is not wanted])
        tools = ToolSet(own, (wanted, other), rng, rename=False, shuffle=True)
        tools.invented = [pair for pair in tools.invented if pair[0] is wanted]
        needs_pictures = "#" in wanted.args.values()
        history, shown = talking.history(tools) if needs_pictures else ([], {})
        made = talking.invented(tools, shown)
        if made:
            found.append(talking.lesson("unseen", tools, history, made[0], made[1]))
    return found


# -- asking and marking ---------------------------------------------------------------------------


def ask(engines: Sequence[Engine], lessons: Sequence[Lesson], progress: Progress | None = None) -> list[Reply]:
    """Greedy answers in the order of the lessons; the engines take them in turn, each several at once."""
    replies = []
    with contextlib.ExitStack() as stack:
        pools = [stack.enter_context(ThreadPoolExecutor(AT_ONCE)) for _ in engines]
        waiting = [pools[i % len(pools)].submit(_reply, engines[i % len(pools)], lesson) for i, lesson in enumerate(lessons)]
        for future in waiting:
            replies.append(future.result())
            if progress:
                progress(len(replies), len(lessons))
    return replies


def _reply(engine: Engine, lesson: Lesson) -> Reply:
    call, text, usage = None, "", Usage()
    for event in engine.chat(lesson.messages[:-1], lesson.tools, max_tokens=48):
        if isinstance(event, Call):
            call = event
        elif isinstance(event, TextDelta):
            text += event.text
        elif isinstance(event, Done):
            usage = event.usage
            break
    return Reply(call, text, usage)


def _plain(value: Any) -> Any:
    return _ARTICLE.sub("", " ".join(value.lower().split())) if isinstance(value, str) else value


def same_arguments(given: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Equal but for capitals, spaces and a leading article; an empty argument is none."""
    return {k: _plain(v) for k, v in given.items() if v != ""} == {k: _plain(v) for k, v in wanted.items()}


def references(arguments: Mapping[str, Any]) -> dict[str, str]:
    return {name: value for name, value in arguments.items() if isinstance(value, str) and _REFERENCE.fullmatch(value)}


def right_name(reply: Reply, expect: Mapping[str, Any]) -> bool:
    return (reply.call.name if reply.call else None) == expect.get("name")


def right_call(reply: Reply, expect: Mapping[str, Any]) -> bool:
    if reply.call is None or "name" not in expect:
        return right_name(reply, expect)
    return right_name(reply, expect) and same_arguments(reply.call.arguments, expect["arguments"])


def is_valid(reply: Reply, tools: Sequence[ToolSchema]) -> bool:
    """Text, or a call to a tool on offer with its required arguments, none unknown, and values of its enumerations."""
    if reply.call is None:
        return not reply.text.lstrip().startswith("{")
    tool = next((tool for tool in tools if tool["name"] == reply.call.name), None)
    if tool is None:
        return False
    properties = tool["parameters"]["properties"]
    given = reply.call.arguments
    if not set(tool["parameters"].get("required", [])) <= set(given) <= set(properties):
        return False
    return all(value in properties[name].get("enum", [value]) for name, value in given.items())


def marks(turns: Sequence[Lesson], replies: Sequence[Reply]) -> dict[str, list[bool]]:
    """What is right, by figure. A turn of an unseen tool counts for ``tools.unseen`` (and is valid or not); all others for the rest."""
    found: dict[str, list[bool]] = {f"tools.{name}": [] for name in ("valid", "name", "arguments", "references", "unseen")}
    for turn, reply in zip(turns, replies, strict=True):
        found["tools.valid"].append(is_valid(reply, turn.tools))
        if turn.kind == "unseen":
            found["tools.unseen"].append(right_call(reply, turn.expect))
            continue
        found["tools.name"].append(right_name(reply, turn.expect))
        found.setdefault(f"tools.by_kind.{turn.kind}", []).append(right_call(reply, turn.expect))
        if "name" not in turn.expect:
            continue
        found["tools.arguments"].append(right_call(reply, turn.expect))
        if wanted := references(turn.expect["arguments"]):
            found["tools.references"].append(reply.call is not None and references(reply.call.arguments) == wanted)
    return found


def tool_exams(
    engines: Sequence[Engine],
    world: World,
    own: Sequence[ToolSchema],
    config: GraftConfig,
    n: int,
    seed: int,
    progress: Progress | None = None,
    language: Language | None = None,
) -> tuple[dict[str, float], list[tuple[Lesson, str]]]:
    """Figures, and every turn with what the model said. Chance is a name drawn among the tools and none; nobody draws arguments.

    What the turns cost is measured on the way (``language``: arithmetic too).
    """
    turns = [*core_turns(world, own, config, n, seed), *unseen_turns(world, own, config, n, seed)]
    pictured = [_pictures(turn) > 0 for turn in turns]
    questions = [*turns, *(blinded(turn, world.mean) for turn, dark in zip(turns, pictured, strict=True) if dark)]
    began = time.perf_counter()
    replies = ask(engines, questions, progress)
    seconds = time.perf_counter() - began
    later = iter(replies[len(turns) :])
    unseeing = [next(later) if dark else reply for reply, dark in zip(replies, pictured, strict=False)]  # no picture: the same question
    right, blind = marks(turns, replies[: len(turns)]), marks(turns, unseeing)
    figures = cost.measured([reply.usage for reply in replies], [_pictures(question) for question in questions], seconds, language)
    for key, answers in right.items():
        figures |= share(key, answers)
        if answers and not key.startswith("tools.by_kind."):
            figures[f"{key}.blind"] = sum(blind[key]) / len(blind[key])
            figures[f"{key}.chance"] = 1 / (len(own) + 1) if key == "tools.name" else 0.0
    return figures, [(turn, reply.said) for turn, reply in zip(turns, replies, strict=False)]


def _pictures(turn: Lesson) -> int:
    return sum(isinstance(part, Soft) for message in turn.messages for part in message.parts)


# -- anybody's questions --------------------------------------------------------------------------


def read_lessons(path: Path, show: Callable[[int, str], tuple[Part, ...]]) -> list[Lesson]:
    """A JSONL file as lessons. ``show(k, id)`` makes an item's card. Raises :class:`UsageError` naming the line."""
    found = []
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            try:
                found.append(_read(json.loads(line), show))
            except PinholeError as error:
                raise UsageError(error.what, where=f"{path}:{number}", fix=error.fix) from None
            except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
                raise UsageError(
                    f"not a lesson: {type(error).__name__} {error}",
                    where=f"{path}:{number}",
                    fix='a line is {"messages": [...], "tools": [...], "expect": {...}}',
                ) from None
    return found


def _lines(path: Path) -> Iterator[str]:
    try:
        yield from path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read lessons: {error}", where=str(path), fix="name a JSONL file") from None


def _read(row: Mapping[str, Any], show: Callable[[int, str], tuple[Part, ...]]) -> Lesson:
    tools = tuple(tool.get("function", tool) for tool in row.get("tools", []))
    expect = dict(row["expect"])
    if not (isinstance(expect.get("arguments"), dict) if "name" in expect else isinstance(expect.get("answer"), str)):
        raise KeyError("expect needs `name` and `arguments`, or `answer`")
    k = 0
    messages = [] if row["messages"][0]["role"] == "system" else [system(tools)]
    for message in row["messages"]:
        parts: list[Part] = []
        content = message["content"]
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part["type"] == "item":
                k += 1
                parts += [*show(k, part["id"]), "\n"]
            else:
                parts.append(part["text"])
        messages.append(Message(message["role"], tuple(parts)))
    return Lesson("file", (*messages, Message.of("assistant", "")), tools, (), expect)


def lessons_file(path: Path, engine: Engine, show: Callable[[int, str], tuple[Part, ...]], progress: Progress | None = None) -> dict[str, float]:
    """Figures of a file: ``lessons.name``, ``lessons.right`` (a call with all its arguments, or the very answer)."""
    lessons = read_lessons(path, show)
    replies = ask([engine], lessons, progress)
    right = [
        right_call(reply, lesson.expect)
        if "name" in lesson.expect
        else reply.call is None and _plain(reply.text).rstrip(".") == _plain(lesson.expect["answer"]).rstrip(".")
        for reply, lesson in zip(replies, lessons, strict=True)
    ]
    figures = share("lessons.right", right)
    return figures | share("lessons.name", [right_name(reply, lesson.expect) for reply, lesson in zip(replies, lessons, strict=True)])
