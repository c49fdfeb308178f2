"""Lessons in conversation and tools: which tool, with what arguments, what to say of what came back.

The shop's own tools come in as schemas. In a share of lessons they bear other names, or stand among
invented tools, so that the model learns to read schemas. A history (a search and its results) carries
several follow-ups, which a packed row reads once. Exams draw held-out items, words and frames through
the same functions.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pinhole.config import GraftConfig
from pinhole.graft import toolbank
from pinhole.graft.phrasings import Phrases
from pinhole.graft.prompt import Message, ToolSchema, board_note, call_text, card, counted, result, results, system, unknown
from pinhole.graft.seeing import Lesson
from pinhole.graft.world import World

_NAMES = {  # what the shop's tools may be called in a lesson
    "search": ("search", "find", "lookup", "search_items", "query", "retrieve", "find_pictures", "catalogue_search"),
    "related": ("related", "goes_with", "companions", "see_also", "neighbours"),
    "item": ("item", "details", "info", "show_item", "open_item"),
    "board": ("board", "open_board", "collection", "show_board"),
}
_ARGS = {
    "text": ("text", "query", "words", "q", "about"),
    "like": ("like", "similar_to", "example", "near", "resembling"),
    "unlike": ("unlike", "not_like", "avoid", "away_from", "without"),
    "category": ("category", "kind", "section", "type", "group"),
    "item": ("item", "picture", "ref", "id", "which"),
    "title": ("title", "name", "board", "called"),
}

_OPENINGS = 0.25  # share of episodes of first requests
_CHATS = 2  # lines that need no tool, in every episode
_INVENTED = 4  # requests for invented tools in an episode that has some
_SECOND_ROUND = 0.2  # share of histories with two searches
_LATER = 0.35  # share of histories that go on from a longer conversation: their pictures have larger numbers …
_LARGEST = 40  # … which begin up to here

Call = tuple[str, dict[str, Any]]
Shown = dict[int, int]  # the pictures of a conversation: #number → the world's


class ToolSet:
    """The tools on offer in a lesson, and what the shop's own are called there."""

    def __init__(self, own: Sequence[ToolSchema], invented: Sequence[toolbank.Invented], rng: random.Random, *, rename: bool, shuffle: bool) -> None:
        self.tools = {tool["name"]: tool["name"] for tool in own}
        self.args: dict[str, dict[str, str]] = {tool["name"]: {name: name for name in tool["parameters"]["properties"]} for tool in own}
        shown: list[ToolSchema] = list(own)
        if rename:
            shown = [self._rename(tool, rng) for tool in own]
        self.invented = [(tool, toolbank.schema(tool, rng if rename else None)) for tool in invented]
        shown += [schema for _, schema in self.invented]
        if shuffle:
            rng.shuffle(shown)
        self.schemas = tuple(shown)

    def _rename(self, tool: ToolSchema, rng: random.Random) -> ToolSchema:
        name = tool["name"]
        self.tools[name] = rng.choice(_NAMES.get(name, (name,)))
        self.args[name] = {arg: rng.choice(_ARGS.get(arg, (arg,))) for arg in self.args[name]}
        properties = {self.args[name][arg]: value for arg, value in tool["parameters"]["properties"].items()}
        required = [self.args[name][arg] for arg in tool["parameters"].get("required", [])]
        return {
            "name": self.tools[name],
            "description": tool.get("description", ""),
            "parameters": {"type": "object", "properties": properties, "required": required},
        }

    def call(self, name: str, arguments: dict[str, Any]) -> Call:
        """A call to one of the shop's tools, under the names of this set and in the schema's order."""
        order = self.args[name]
        return self.tools[name], {order[arg]: arguments[arg] for arg in order if arg in arguments}


class Talking:
    """Draws lessons (or, with ``held``, exam turns) of conversation."""

    def __init__(self, world: World, rng: random.Random, own: Sequence[ToolSchema], config: GraftConfig, *, held: bool = False) -> None:
        self.world, self.rng, self.own, self.config, self.held = world, rng, list(own), config, held
        self.say = Phrases(rng, held=held)
        self.pool = world.pool(held)
        self.named = [i for i in self.pool if world.pictures[i].names]
        self.boards = [board.title for board in world.boards if board.held == held and len(board.pictures) >= 3] or ["favourites"]

    # -- pieces ---------------------------------------------------------------------------------

    def tool_set(self) -> ToolSet:
        drawn = self.rng.random()
        bank = toolbank.EXAM if self.held else toolbank.LESSONS
        if drawn < 0.45:
            return ToolSet(self.own, (), self.rng, rename=False, shuffle=False)
        if drawn < 0.6:
            return ToolSet(self.own, (), self.rng, rename=True, shuffle=True)
        own = self.own if drawn < 0.8 else self._some_of_own()
        return ToolSet(own, self.rng.sample(bank, self.rng.randint(1, 3)), self.rng, rename=drawn >= 0.7, shuffle=True)

    def _some_of_own(self) -> list[ToolSchema]:
        """Search, and one more."""
        return [tool for tool in self.own if tool["name"] == "search"] + self.rng.sample([tool for tool in self.own if tool["name"] != "search"], 1)

    def subject(self) -> str:
        """What somebody may look for: a name, sometimes with an adjective, sometimes two of them."""
        picture = self.world.pictures[self.rng.choice(self.named)]
        name = self.rng.choice(picture.names[:3])
        drawn = self.rng.random()
        if drawn < 0.25 and len(name.split()) < 3:
            return f"{self.say.adjective()} {name}"
        if drawn < 0.32:
            return f"{name} and {self.rng.choice(self.world.pictures[self.rng.choice(self.named)].names[:2])}"
        return name

    def refinement(self) -> str:
        return self.say.adjective() if self.rng.random() < 0.5 else self.subject()

    def lesson(
        self, kind: str, tools: ToolSet, history: Sequence[Message], said: str, call: Call | None = None, answer: str = "", **expect: Any
    ) -> Lesson:
        text = call_text(*call) if call else answer
        if call:
            expect |= {"name": call[0], "arguments": call[1]}
        else:
            expect |= {"answer": answer}
        messages = (system(tools.schemas), *history, Message.of("user", said), Message.of("assistant", text))
        return Lesson(kind, messages, tools.schemas, (), expect)

    # -- requests -------------------------------------------------------------------------------

    def opening(self, tools: ToolSet) -> tuple[str, Call, str]:
        """What is said first, the call that answers it, and the words that were looked for."""
        x = self.subject()
        drawn = self.rng.random()
        if drawn < 0.62:
            return self.say.search(self.say.name(x)), tools.call("search", {"text": x}), x
        if drawn < 0.78 and self.world.categories:
            c = self.rng.choice(self.world.categories)
            return self.say.frame("in_category", x=x, c=c), tools.call("search", {"text": x, "category": c}), x
        if drawn < 0.84 and self.world.categories:
            c = self.rng.choice(self.world.categories)
            return self.say.frame("category_only", c=c), tools.call("search", {"category": c}), c
        if "board" in tools.tools:
            title = self.rng.choice(self.boards)
            return self.say.frame("board", x=title), tools.call("board", {"title": title}), title
        return self.say.search(self.say.name(x)), tools.call("search", {"text": x}), x

    def follow_up(self, kind: str, tools: ToolSet, shown: Shown) -> tuple[str, Call] | None:
        """A request about pictures ``shown``; None where this set has no tool for it."""
        a, b = (f"#{k}" for k in self.rng.sample(list(shown), 2))
        if kind == "like":
            return self.say.frame("like", a=a), tools.call("search", {"like": a})
        if kind == "like_text":
            x = self.refinement()
            return self.say.frame("like_text", a=a, x=x), tools.call("search", {"text": x, "like": a})
        if kind == "like_unlike":
            return self.say.frame("like_unlike", a=a, b=b), tools.call("search", {"like": a, "unlike": b})
        if kind == "text_unlike":
            x = self.subject()
            return self.say.frame("text_unlike", x=x, b=b), tools.call("search", {"text": x, "unlike": b})
        if kind in ("related", "item") and kind in tools.tools:
            return self.say.frame(kind, a=a), tools.call(kind, {"item": a})
        if kind == "again":
            said, call, _ = self.opening(tools)
            return said, call
        return None

    def invented(self, tools: ToolSet, shown: Shown) -> tuple[str, Call, str] | None:
        """A request for one of the set's invented tools, if it has one that fits."""
        fitting = [(tool, schema) for tool, schema in tools.invented if shown or "#" not in tool.args.values()]
        if not fitting:
            return None
        tool, schema = self.rng.choice(fitting)
        references = [f"#{k}" for k in self.rng.sample(list(shown) or [1, 2], 2)]
        values = [toolbank.value(kind, self.rng, self.held, self.subject(), references[i % 2]) for i, kind in enumerate(tool.args.values())]
        said = self.say.politely(self.rng.choice(tool.frames).format(*values))
        return said, (schema["name"], dict(zip(schema["parameters"]["properties"], values, strict=True))), str(values[0])

    # -- histories ------------------------------------------------------------------------------

    def found(self, count: int) -> list[int]:
        """Pictures that a search might have brought: one in the middle, company from its category."""
        first = self.rng.choice(self.named)
        found = [first]
        while len(found) < count:
            other = self.world.other(self.rng, first, self.held)
            if other not in found:
                found.append(other)
        return found

    def history(self, tools: ToolSet) -> tuple[list[Message], Shown]:
        """A search or a board with its results and the answer given; in some lessons a second round. Returns also what was shown."""
        members = self.found(self.rng.choice((2, 3, 4, 5, 6, 6)))
        picture = self.world.pictures[members[0]]
        said, call, x = self.opening(tools)
        if call[0] == tools.tools["search"] and self.rng.random() < 0.8:
            x = self.rng.choice(picture.names[:2])
            said, call = self.say.search(x), tools.call("search", {"text": x})
        note = ""
        if not self.held and "board" in tools.tools and call[0] == tools.tools["board"]:
            note = board_note(next(iter(call[1].values())), self.rng.randint(len(members), 60))
        first = self.rng.randint(2, _LARGEST) if self.rng.random() < _LATER else 1
        shown = dict(enumerate(members, first))
        turns = self.round(said, call, list(shown), shown, note)
        if not self.held and self.rng.random() < _SECOND_ROUND:
            return self.second(tools, turns, shown)
        return turns, shown

    def round(self, said: str, call: Call, numbers: Sequence[int], shown: Shown, note: str = "") -> list[Message]:
        """A request, its call, the pictures that were found and what is said of them."""
        found = results([self.card(k, shown[k]) for k in numbers], note)
        return [Message.of("user", said), Message.of("assistant", call_text(*call)), found, Message.of("assistant", self.answer(numbers, shown))]

    def second(self, tools: ToolSet, turns: Sequence[Message], shown: Shown) -> tuple[list[Message], Shown]:
        """One more round. Pictures that were shown before keep their numbers, so the results' numbers may begin anywhere."""
        made = self.follow_up(self.rng.choice(("like", "like_text", "related", "again")), tools, shown)
        if not made:
            return list(turns), shown
        known = self.rng.sample(list(shown), self.rng.randint(0, min(3, len(shown) - 1)))
        fresh = [i for i in self.found(self.rng.choice((1, 2, 3, 4, 5))) if i not in shown.values()]
        grown = shown | dict(enumerate(fresh, max(shown) + 1))
        numbers = [*known, *(k for k in grown if k not in shown)]
        if self.rng.random() < 0.7:
            self.rng.shuffle(numbers)
        return [*turns, *self.round(*made, numbers, grown)], grown

    def card(self, k: int, i: int) -> Any:
        return card(k, self.world.soft(i), self.world.pictures[i].title, self.config.card, self.config.card_words)

    def answer(self, numbers: Sequence[int], shown: Shown) -> str:
        """What is said of results: how many, and what the first two show."""
        if not numbers:
            return "I found nothing. Try other words."
        named = [(k, self.world.pictures[shown[k]]) for k in numbers[:2]]
        described = [f"#{k} shows {picture.title.lower() or picture.category or 'something else'}" for k, picture in named]
        return f"I found {counted(len(numbers))}: {', '.join(described)}."

    # -- lessons --------------------------------------------------------------------------------

    FOLLOW = ("like", "like_text", "like_text", "like_unlike", "text_unlike", "text_unlike", "related", "related", "item", "item", "item", "again")

    def episode(self) -> Iterator[Lesson]:
        """Lessons under one set of tools, in any order: first requests, or what may follow one conversation."""
        tools = self.tool_set()
        lessons = list(self.openings(tools) if self.rng.random() < _OPENINGS else self.turns(tools))
        self.rng.shuffle(lessons)
        yield from lessons

    def openings(self, tools: ToolSet) -> Iterator[Lesson]:
        for _ in range(8):
            said, call, _ = self.opening(tools)
            yield self.lesson("open", tools, (), said, call)
        yield from self._invented(tools, (), {})
        yield from self._chats(tools, ())

    def turns(self, tools: ToolSet) -> Iterator[Lesson]:
        history, shown = self.history(tools)
        yield Lesson("answer", (system(tools.schemas), *history), tools.schemas)
        for kind in self.FOLLOW:
            made = self.follow_up(kind, tools, shown)
            if made:
                yield self.lesson(kind, tools, history, *made)
        yield from self._invented(tools, history, shown)
        yield from self._chats(tools, history)
        yield from self.about(tools, history, shown)
        yield from self.outcomes(tools, history, shown)

    def _invented(self, tools: ToolSet, history: Sequence[Message], shown: Shown) -> Iterator[Lesson]:
        for _ in range(_INVENTED if tools.invented else 0):
            made = self.invented(tools, shown)
            if made:
                yield self.lesson("invented", tools, history, made[0], made[1])

    def _chats(self, tools: ToolSet, history: Sequence[Message]) -> Iterator[Lesson]:
        for _ in range(_CHATS):
            said, answer = self.say.chat()
            yield self.lesson("chat", tools, history, said, answer=answer)

    def outcomes(self, tools: ToolSet, history: Sequence[Message], shown: Shown) -> Iterator[Lesson]:
        """What to say after a second search, after one that found nothing, and of results in words."""
        kind = self.rng.choice(("second", "second", "nothing", "details", "refused", "no_board"))
        if kind == "second":
            turns, _ = self.second(tools, history, shown)
            yield Lesson("outcome", (system(tools.schemas), *turns), tools.schemas)
            return
        made = self.follow_up("item" if kind == "details" else self.rng.choice(("like", "like_text", "related")), tools, shown)
        if not made:
            return
        said, call = made
        told, answer = results([]), "I found nothing. Try other words."
        if kind == "details":
            reference = next(iter(call[1].values()))
            told, answer = self.details(reference, shown[int(reference[1:])])
        elif kind == "refused":
            last = max(shown)
            k = last + 1 + self.rng.randint(0, 9)
            said, call = self.say.frame("like", a=f"#{k}"), tools.call("search", {"like": f"#{k}"})
            told, answer = result(f"there is no #{k}; there are #1 to #{last}"), f"There is no #{k}; there are #1 to #{last}."
        elif kind == "no_board" and "board" in tools.tools:
            title = self.subject()
            said, call = self.say.frame("board", x=title), tools.call("board", {"title": title})
            near = self.rng.sample(self.boards, min(2, len(self.boards)))
            told = result(unknown("board", title, near))
            answer = f'There is no board "{title}". The nearest are {", ".join(near)}.'
        turns = [*history, Message.of("user", said), Message.of("assistant", call_text(*call)), told, Message.of("assistant", answer)]
        yield Lesson("outcome", (system(tools.schemas), *turns), tools.schemas)

    def details(self, reference: str, i: int) -> tuple[Message, str]:
        """An item's details as its tool tells them, and a sentence about them."""
        picture = self.world.pictures[i]
        known = {"title": picture.title, "category": picture.category, "keywords": ", ".join(picture.names[-3:])}
        text = "; ".join(f"{name}: {value}" for name, value in known.items() if value)
        called = picture.title.lower() or picture.category or "a picture"
        return result(text or "nothing is known of it"), f"{reference} shows {called}" + (f": {known['keywords']}." if known["keywords"] else ".")

    def about(self, tools: ToolSet, history: Sequence[Message], shown: Shown) -> Iterator[Lesson]:
        """Questions about the pictures shown that need no tool."""
        k = self.rng.choice(list(shown))
        picture = self.world.pictures[shown[k]]
        if picture.category in self.world.categories and (not picture.names or self.rng.random() < 0.5):
            yield self.lesson("category", tools, history, self.say.seeing("category", a=f"#{k}"), answer=picture.category)
        elif picture.names:
            yield self.lesson("describe", tools, history, self.say.seeing("describe", a=f"#{k}"), answer=", ".join(picture.names[:3]))


def talking_lessons(own: Sequence[ToolSchema], config: GraftConfig) -> Callable[[World, random.Random, float], Iterator[Lesson]]:
    """The second stage's stream: episodes of conversation."""

    def stream(world: World, rng: random.Random, progress: float) -> Iterator[Lesson]:
        talking = Talking(world, rng, own, config)
        while True:
            yield from talking.episode()

    return stream
