"""Lessons about pictures alone: what is this, is it that, which one is it, what do they share.

Titles and attributes of the pictures asked about are hidden: what there is to know must come from
the soft tokens. A scene (a few pictures) carries several questions, which a packed row reads once.
Early in training each picture leans on the word it is asked by (privileged information that fades,
in the spirit of generalized distillation, Lopez-Paz et al. 2016): telling which picture is meant is
learned from words and kept while they go. Later, pictures look as those do that the projector was not
fitted to, so that its errors are reckoned with. Each scene shows them with other parts of their content
dropped, so that no picture is learned by heart. Exams draw from the held-out pool with held-out phrasings
through the same functions, and nothing leans or is dropped there.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pinhole.graft.phrasings import Phrases
from pinhole.graft.prompt import Message, Part, Prompt, Prompter, Soft, ToolSchema, card, lines, system
from pinhole.graft.said import Said
from pinhole.graft.world import Board, Drop, Theme, World

_CALL, _TITLE = 4.0, 2.0
_SORTS = (("kind", 0.2), ("board", 0.34), ("concept", 0.87), ("name", 1.0))  # by what pictures are asked for; who has no name of a sort, by the next
_GROUPS = 30  # at least so many groups of a size are drawn from, where boards are few
_LARGE = 3  # pictures of a large group, and of a board in lessons: three are needed to tell a stranger
_TRIES = 8  # draws of a wrong name before a question is given up


@dataclass(frozen=True)
class Lesson:
    """A conversation whose last message is the right answer. ``choices`` are the answers allowed, where they are few.

    If a teacher ``said`` something, that is what is learned in its place.
    """

    kind: str
    messages: tuple[Message, ...]
    tools: tuple[ToolSchema, ...] = ()
    choices: tuple[str, ...] = ()
    expect: dict[str, Any] = field(default_factory=dict)
    said: Said | None = None

    def prompt(self, prompter: Prompter, tokens_per_item: int | None = None) -> Prompt:
        """As it is learned."""
        prompt = prompter.render(self.messages, generate=False, tokens_per_item=tokens_per_item)
        return prompt.asked().then(self.said.tokens.tolist()) if self.said else prompt

    @property
    def answer(self) -> str:
        return self.messages[-1].text

    @property
    def weight(self) -> float:
        """What it weighs in training. A number or a yes is one decision in two or three tokens; a call is several in twenty, a title one in five."""
        return _CALL if "name" in self.expect else _TITLE if self.kind == "theme" else 1.0


class Seeing:
    """Draws lessons (or, with ``held``, exam questions) about pictures.

    Each leans on a word by up to ``lean``, is ``strange`` by that share, and lacks up to ``drop`` of its content.
    """

    def __init__(
        self,
        world: World,
        rng: random.Random,
        *,
        held: bool = False,
        lean: float = 0.0,
        strange: float = 0.0,
        drop: float = 0.0,
        tools: Sequence[ToolSchema] = (),
    ) -> None:
        self.world, self.rng, self.held = world, rng, held
        self.lean, self.strange, self.drop = lean, strange, drop
        self.say = Phrases(rng, held=held)
        self.system = system(tools)
        self.tools = tuple(tools)
        self.pool = world.pool(held)
        self.kinds = set(world.categories)
        self.classed = [i for i in self.pool if world.pictures[i].category in self.kinds]
        self.named = [i for i in self.pool if (world.concepts_of(i) if held else world.pictures[i].names)]
        self.boards = world.themed(held, 5 if held else _LARGE)
        groups = [] if held else world.groups
        self.large, self.small = ([group for group in groups if (len(group[1]) >= _LARGE) == large] for large in (True, False))
        self.leans: dict[int, float] = {}
        self.words: dict[int, str] = {}  # what the pictures of this scene lean on, and are asked by
        self.drops: dict[int, Drop] = {}  # what of them is not shown

    def lesson(self, kind: str, members: Sequence[int], question: str, answer: str, choices: Sequence[str] = ()) -> Lesson:
        shown = (*lines([card(k, self.soft(i), "") for k, i in enumerate(members, 1)]), f"\n{question}")
        expect = {"answer": answer, "items": [self.world.pictures[i].id for i in members]}
        return Lesson(kind, (self.system, Message("user", shown), Message.of("assistant", answer)), self.tools, tuple(choices), expect)

    def soft(self, i: int) -> Soft:
        if self.drop and i not in self.drops:
            self.drops[i] = Drop(self.drop * self.rng.random(), self.rng.getrandbits(32))
        word, soft = self.words.get(i, ""), self.world.soft(i, self.strange, self.drops.get(i))
        return soft.leaning(word, self.leans[i]) if word else soft

    # -- single questions -----------------------------------------------------------------------

    def category(self, members: Sequence[int], at: int) -> Lesson:
        kind = self.world.pictures[members[at]].category
        return self.lesson("category", members, self.say.seeing("category", a=f"#{at + 1}"), kind, self.world.categories)

    def describe(self, members: Sequence[int], at: int) -> Lesson:
        names = self.world.pictures[members[at]].names
        return self.lesson("describe", members, self.say.seeing("describe", a=f"#{at + 1}"), ", ".join(names[:3]))

    def match(self, members: Sequence[int], at: int) -> Lesson | None:
        """As many wrong names as right ones, of every sort: else how it is asked would tell the answer."""
        i, yes = members[at], self.rng.random() < 0.5
        name = self.name_of(i)
        if name and not yes:
            name = self._wrong_name(i, self._sort(i, name))
        if not name:
            return None
        question = self.say.seeing("match", a=f"#{at + 1}", x=self.say.name(name))
        return self.lesson("match", members, question, "yes" if yes else "no", ("yes", "no"))

    def _wrong_name(self, i: int, sort: str) -> str:
        """What another picture is called by names of this sort. One that happens to be right after all is drawn again."""
        for _ in range(_TRIES):
            names = self._names(self.world.other(self.rng, i, self.held))[sort]
            name = self.rng.choice(names) if names else ""
            if name and not self.right(i, name):
                return name
        return ""

    def pick(self, members: Sequence[int], at: int) -> Lesson | None:
        name = self.name_of(members[at])
        if not name or any(self.right(i, name) for j, i in enumerate(members) if j != at):
            return None
        references = [f"#{k}" for k in range(1, len(members) + 1)]
        return self.lesson("pick", members, self.say.seeing("pick", x=self.say.name(name)), references[at], references)

    def right(self, i: int, name: str) -> bool:
        """May a picture be called that? In lessons also by the title of a board it is on."""
        return self.world.pictures[i].answers_to(name) or (not self.held and name in self.world.shelves[i])

    def name_of(self, i: int) -> str:
        """What a picture may be asked for by. Exams: what training pictures were called too. Lessons: that, its kind, a board of it, or any name."""
        if i in self.words:
            return self.words[i]
        names, drawn = self._names(i), 0.0 if self.held else self.rng.random()
        sorts = [sort for sort, until in _SORTS if drawn < until and names.get(sort)]
        return self.rng.choice(names[sorts[0]]) if sorts else ""

    def _names(self, i: int) -> dict[str, Sequence[str]]:
        """By sort what a picture is called; exams know concepts only, for right names and for wrong ones."""
        picture, concepts = self.world.pictures[i], self.world.concepts_of(i)
        if self.held:
            return {"concept": concepts}
        kind = [picture.category] if picture.category in self.kinds else []
        return {"kind": kind, "board": self.world.shelves[i], "concept": concepts, "name": [name for name in picture.names if name not in concepts]}

    def _sort(self, i: int, name: str) -> str:
        return next(sort for sort, names in self._names(i).items() if name in names)

    def odd(self) -> Lesson | None:
        """Three of one board and a stranger, half the time of the same category but another board."""
        themes = self.themes(self.large)
        if not themes:
            return None
        board, inside = self.rng.choice(themes)
        three = self.rng.sample(inside, 3)
        stranger = self.world.other(self.rng, three[0], self.held)
        if stranger in board.pictures:
            return None
        members = [*three, stranger]
        self._lean(lambda: dict.fromkeys(three, board.title) | {stranger: self.name_of(stranger)})
        self.rng.shuffle(members)
        references = [f"#{k}" for k in range(1, 5)]
        lesson = self.lesson("odd", members, self.say.seeing("odd"), references[members.index(stranger)], references)
        lesson.expect["board"] = board.id
        return lesson

    def theme(self) -> Lesson | None:
        """Five pictures of one board (in lessons also fewer) and five titles, two of the same category where there are so many."""
        themes = self.themes(self.large, self.small)
        if len(themes) < 5:
            return None
        board, inside = self.rng.choice(themes)
        members = self.rng.sample(inside, min(5, len(inside)))
        self._lean(lambda: dict.fromkeys(members, board.title))
        return self.titles(board, members)

    def themes(self, *groups: list[Theme]) -> list[Theme]:
        """What a question may be about: all boards, and of each sort of groups others each time, as many as there are boards, or a few.

        There are more groups, and a title must not be likelier for being that of one.
        """
        many = max(_GROUPS, len(self.boards))
        return [*self.boards, *(theme for sort in groups for theme in self.rng.sample(sort, min(len(sort), many)))]

    def titles(self, board: Board, members: list[int]) -> Lesson | None:
        shown = set(members)
        others = [other for other, inner in self.themes(self.large, self.small) if other.title != board.title and not shown & set(inner)]
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
        drawn, self.words, self.drops = self.rng.random(), {}, {}
        if drawn < 0.2:
            yield from self._group(self.odd())
        elif drawn < 0.44:
            yield from self._group(self.theme())
        elif drawn < 0.66:
            yield from self._alone(self.rng.choice(self.pool))
        else:
            yield from self._together(self.members(self.rng.choice((2, 3, 4, 4, 4, 5))))
        self.words = {}

    def again(self, scene: Sequence[Lesson]) -> list[Lesson]:
        """A scene that was drawn before, its pictures as they are shown now; each leans on the word it was asked by."""
        shown = [part for lesson in scene for message in lesson.messages for part in message.parts if isinstance(part, Soft)]
        self.words, self.drops = {}, {}
        self._lean(lambda: {self.world.at[soft.item]: soft.word for soft in shown})

        def now(part: Part) -> Part:
            return self.soft(self.world.at[part.item]) if isinstance(part, Soft) else part

        found = [replace(one, messages=tuple(Message(m.role, tuple(map(now, m.parts))) for m in one.messages)) for one in scene]
        self.words = {}
        return found

    def _group(self, first: Lesson | None) -> Iterator[Lesson]:
        """A question about all of the pictures; once they stand alone, some about single ones."""
        if first:
            yield first
            members = [self.world.at[id] for id in first.expect["items"]]
            if first.kind == "theme":  # the same pictures among other titles
                board = next(board for board, _ in (*self.boards, *self.large, *self.small) if board.id == first.expect["board"])
                yield from self._some([self.titles(board, members)])
            if not self.words:
                yield from self._alone(self.rng.choice(members), members)
                if len(members) > 1:
                    yield from self._some([self.pick(members, self.rng.randrange(len(members)))])

    def _alone(self, i: int, members: Sequence[int] = ()) -> Iterator[Lesson]:
        """All kinds of questions about one picture, among ``members`` or by itself."""
        among, picture = list(members) or [i], self.world.pictures[i]
        at = among.index(i)
        if not members:
            self._lean(lambda: {i: self.name_of(i)})
        if picture.category in self.kinds:
            yield self.category(among, at)
        if picture.names and self.rng.random() < 0.4:
            yield self.describe(among, at)
        yield from self._some(self.match(among, at) for _ in range(2))

    def _together(self, members: list[int]) -> Iterator[Lesson]:
        """Which is which: the same pictures with different answers, and one of them by itself."""
        self._lean(lambda: {i: self.name_of(i) for i in members})
        yield from self._some(self.pick(members, at) for at in self.rng.sample(range(len(members)), min(len(members), 3)))
        at = self.rng.randrange(len(members))
        yield from self._some([self.match(members, at)])
        if self.world.pictures[members[at]].category in self.kinds and self.rng.random() < 0.5:
            yield self.category(members, at)

    def _lean(self, words: Callable[[], dict[int, str]]) -> None:
        """Let the pictures of this scene lean on words, each by another share."""
        if self.lean > 0:
            self.words = {i: word for i, word in words().items() if word}
            self.leans = {i: self.lean * self.rng.random() for i in self.words}

    @staticmethod
    def _some(lessons: Iterable[Lesson | None]) -> Iterator[Lesson]:
        yield from (lesson for lesson in lessons if lesson)
