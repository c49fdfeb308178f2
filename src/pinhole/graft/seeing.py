"""Lessons about pictures alone: what is this, is it that, which one is it, what do they share.

Titles and attributes of the pictures asked about are hidden: what there is to know must come from
the soft tokens. A scene (a few pictures) carries several questions, which a packed row reads once.
Exams draw from the held-out pool with held-out phrasings through the same functions.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pinhole.graft.phrasings import Phrases
from pinhole.graft.prompt import Message, Part, ToolSchema, card, lines, system
from pinhole.graft.world import World

_WORDED = 0.3  # share of mixed scenes whose cards say what they show


@dataclass(frozen=True)
class Lesson:
    """A conversation whose last message is the right answer. ``choices`` are the answers allowed, where they are few."""

    kind: str
    messages: tuple[Message, ...]
    tools: tuple[ToolSchema, ...] = ()
    choices: tuple[str, ...] = ()
    expect: dict[str, Any] = field(default_factory=dict)

    @property
    def answer(self) -> str:
        return self.messages[-1].text


def picture_cards(world: World, members: Sequence[int], *, worded: bool = False) -> tuple[Part, ...]:
    """Cards without titles; ``worded`` ones say what the picture shows."""
    return tuple(lines([card(k, world.soft(i), (world.pictures[i].names or ("",))[0] if worded else "") for k, i in enumerate(members, 1)]))


class Seeing:
    """Draws lessons (or, with ``held``, exam questions) about pictures."""

    def __init__(self, world: World, rng: random.Random, *, held: bool = False, tools: Sequence[ToolSchema] = ()) -> None:
        self.world, self.rng, self.held = world, rng, held
        self.say = Phrases(rng, held=held)
        self.system = system(tools)
        self.tools = tuple(tools)
        self.pool = world.pool(held)
        self.kinds = set(world.categories)
        self.classed = [i for i in self.pool if world.pictures[i].category in self.kinds]
        self.named = [i for i in self.pool if (world.concepts_of(i) if held else world.pictures[i].names)]
        self.themes = world.themed(held, 5)
        self.worded = False  # lessons only: with words beside the pictures, telling which is which is learned before seeing is

    def lesson(self, kind: str, members: Sequence[int], question: str, answer: str, choices: Sequence[str] = ()) -> Lesson:
        shown = (*picture_cards(self.world, members, worded=self.worded), f"\n{question}")
        expect = {"answer": answer, "items": [self.world.pictures[i].id for i in members]}
        return Lesson(kind, (self.system, Message("user", shown), Message.of("assistant", answer)), self.tools, tuple(choices), expect)

    # -- single questions -----------------------------------------------------------------------

    def category(self, members: Sequence[int], at: int) -> Lesson:
        kind = self.world.pictures[members[at]].category
        return self.lesson("category", members, self.say.seeing("category", a=f"#{at + 1}"), kind, self.world.categories)

    def describe(self, members: Sequence[int], at: int) -> Lesson:
        names = self.world.pictures[members[at]].names
        return self.lesson("describe", members, self.say.seeing("describe", a=f"#{at + 1}"), ", ".join(names[:3]))

    def match(self, members: Sequence[int], at: int) -> Lesson | None:
        picture = self.world.pictures[members[at]]
        if self.rng.random() < 0.5:
            name, answer = self.name_of(members[at]), "yes"
        else:
            other = self.world.other(self.rng, members[at], self.held)
            name, answer = self.name_of(other), "no"
            if not name or picture.answers_to(name):
                return None
        return self.lesson("match", members, self.say.seeing("match", a=f"#{at + 1}", x=name), answer, ("yes", "no")) if name else None

    def pick(self, members: Sequence[int], at: int) -> Lesson | None:
        name = self.name_of(members[at])
        if not name or any(self.world.pictures[i].answers_to(name) for j, i in enumerate(members) if j != at):
            return None
        references = [f"#{k}" for k in range(1, len(members) + 1)]
        return self.lesson("pick", members, self.say.seeing("pick", x=name), references[at], references)

    def name_of(self, i: int) -> str:
        """What a picture may be asked for by. Exams: something that training pictures were called too. Lessons: that, its kind, or any name."""
        picture, concepts = self.world.pictures[i], self.world.concepts_of(i)
        drawn = 0.5 if self.held else self.rng.random()
        if drawn < 0.3 and picture.category in self.kinds:
            return picture.category
        if drawn < 0.75 and concepts:
            return self.rng.choice(concepts)
        return self.rng.choice(picture.names) if picture.names and not self.held else ""

    def odd(self) -> Lesson | None:
        """Three of one board and a stranger, half the time of the same category but another board."""
        if not self.themes:
            return None
        board, inside = self.rng.choice(self.themes)
        three = self.rng.sample(inside, 3)
        stranger = self.world.other(self.rng, three[0], self.held)
        if stranger in board.pictures:
            return None
        members = [*three, stranger]
        self.rng.shuffle(members)
        references = [f"#{k}" for k in range(1, 5)]
        return self.lesson("odd", members, self.say.seeing("odd"), references[members.index(stranger)], references)

    def theme(self) -> Lesson | None:
        """Five pictures of one board; five titles to choose from, two of them of the same category where there are so many."""
        if len(self.themes) < 5:
            return None
        board, inside = self.rng.choice(self.themes)
        members = self.rng.sample(inside, 5)
        shown = set(members)
        others = [other for other, inner in self.themes if other.title != board.title and not shown & set(inner)]
        near = [other.title for other in others if other.category == board.category]
        far = [other.title for other in others if other.category != board.category]
        titles = dict.fromkeys([board.title, *self.rng.sample(near, min(2, len(near)))])
        while len(titles) < 5 and far:
            titles[far.pop(self.rng.randrange(len(far)))] = None
        if len(titles) < 5:
            return None
        options = self.rng.sample(list(titles), 5)
        lesson = self.lesson("theme", members, self.say.seeing("theme", x=", ".join(options)), board.title, options)
        lesson.expect["board"] = board.id
        return lesson

    # -- scenes ---------------------------------------------------------------------------------

    def members(self, size: int) -> list[int]:
        """Different pictures; about half of the company is of the first one's category."""
        first = self.rng.choice(self.pool)
        found = [first]
        while len(found) < size:
            other = self.world.other(self.rng, first, self.held)
            if other not in found:
                found.append(other)
        self.rng.shuffle(found)
        return found

    def scene(self) -> Iterator[Lesson]:
        """Several lessons that share their pictures."""
        drawn, self.worded = self.rng.random(), False
        if drawn < 0.35:
            yield from self._group(self.odd())
        elif drawn < 0.6:
            yield from self._group(self.theme())
        else:
            members = self.members(self.rng.choice((1, 1, 1, 1, 2, 3, 4, 4, 5)))
            self.worded = len(members) > 1 and self.rng.random() < _WORDED
            yield from self._questions(members)
        self.worded = False

    def _group(self, first: Lesson | None) -> Iterator[Lesson]:
        """A question about all of the pictures, then some about single ones."""
        if first:
            yield first
            yield from self._questions([self.world.at[id] for id in first.expect["items"]])

    def _questions(self, members: list[int]) -> Iterator[Lesson]:
        """One question of each kind about one picture (all kinds about a picture that stands alone), and which is which."""
        pictures = self.world.pictures
        at = self.rng.randrange(len(members))
        if pictures[members[at]].category in self.kinds and not self.worded:
            yield self.category(members, at)
        if pictures[members[at]].names and self.rng.random() < 0.5:
            yield self.describe(members, at)
        yield from self._some([self.match(members, at)])
        if len(members) > 1:
            yield from self._some(self.pick(members, at) for at in self.rng.sample(range(len(members)), min(len(members), 3)))

    @staticmethod
    def _some(lessons: Any) -> Iterator[Lesson]:
        yield from (lesson for lesson in lessons if lesson)
