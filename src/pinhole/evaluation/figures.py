"""What each figure is called in plain words, and how flat keys become rows with what they are compared with.

A figure is a key; ``.n``, ``.low``, ``.high`` and the marks (``.chance``, ``.blind`` …) hang on it. A key that
nobody described here still gets a row under its own name, so nothing that was measured is left out. Knows
nothing of how a figure was measured or of how it is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

Unit = Literal["share", "times", "seconds", "per second", "tokens", "number"]

MARKS = {
    "chance": "guessing",
    "blind": "the same model with every picture replaced by the mean one",
    "probe": "a linear classifier on the same vectors",
    "base": "the best way without training",
    "before": "the order of the search as it is",
    "learned": "the trained part by itself, before it is fused with the rest",
}
ALSO = {
    "weight": "the trained part's share of all fusion weights",
    "clusters": "different queries or boards",
    "walks": "random walks by themselves",
    "same": "share of what whole vectors find first, found",
    "bytes": "bytes an item",
    "strange": "of pictures that the fit left out",
    "known": "known items, for the same queries",
    "base_known": "known items, without training",
    "items": "new items",
    "by_time": "1 where the newest by date are asked about",
}
_OWN = ("n", "low", "high", "tuned")


@dataclass(frozen=True)
class Named:
    """A figure in plain words."""

    label: str
    about: str = ""
    unit: Unit = "share"


GROUPS: dict[str, tuple[str, str, dict[str, Named]]] = {
    "search": (
        "Search",
        "Finding pictures by words and by company, with texts and boards that no stage trained on.",
        {
            "search.text_to_image.recall@10": Named("Words find pictures", "right pictures among the first ten, found by the picture alone"),
            "search.text_to_image.recall@10.ratio": Named("… against no training", "tuned ÷ base; interval by resampling the queries", "times"),
            "search.fine.recall@10": Named("Fine distinctions", "a query's pictures before those of its near twin, by the picture alone"),
            "search.fine.recall@10.ratio": Named("… against no training", "tuned ÷ base; interval by resampling the queries", "times"),
            "search.with_titles.recall@10": Named("Words find items", "the same queries, items with their titles"),
            "search.with_titles.recall@10.ratio": Named("… against no training", "tuned ÷ base; interval by resampling the queries", "times"),
            "boards.recall@10": Named("New boards", "board-mates among the first ten, from one item of the board"),
            "boards.recall@10.ratio": Named("… against no training", "tuned ÷ base; interval by resampling the boards", "times"),
            "related.placed.recall@10": Named("What goes with it, new board", "mates of a known item on a new board, among known items"),
            "related.placed.recall@10.ratio": Named("… against no training", "tuned ÷ base; interval by resampling the boards", "times"),
            "related.new.recall@10": Named("What goes with a new item", "its mates on a known board, among known items"),
            "related.new.recall@10.ratio": Named("… against no training", "tuned ÷ base; interval by resampling the boards", "times"),
            "search.cold.recall@10": Named(
                "New items among known ones", "pictures on no board, clicked by nobody: right ones among the first ten of all"
            ),
            "search.cold.recall@10.ratio": Named(
                "… against no training", "tuned ÷ base, for the new ones; interval by resampling the queries", "times"
            ),
            "search.cold.recall@10.known.ratio": Named("… and for the known ones", "tuned ÷ base: new items sink where it is the larger", "times"),
            "search.splits": Named("Splits", "drawings of what is held out, pooled", "number"),
        },
    ),
    "ranker": (
        "Ranking",
        "The first 200 hits put in another order by what a teacher's grades taught, for queries that no stage trained on.",
        {
            key: named
            for k in (10, 20)
            for key, named in {
                f"ranker.ndcg@{k}": Named(f"What people chose, first {k}", "nDCG by the items that the query led to"),
                f"ranker.ndcg@{k}.ratio": Named("… against the search as it is", "after ÷ before; interval by resampling the queries", "times"),
                f"ranker.graded.ndcg@{k}": Named(f"What the teacher grades high, first {k}", "nDCG by its grades of what either order shows"),
                f"ranker.graded.ndcg@{k}.ratio": Named(
                    "… against the search as it is", "after ÷ before; interval by resampling the queries", "times"
                ),
            }.items()
        }
        | {
            "ranker.agreement.teacher_human.exact": Named("The teacher grades as people do", "the same of five levels, held-out judgements"),
            "ranker.agreement.teacher_human.within_one": Named("… or one level off", "held-out judgements"),
            "ranker.agreement.teacher_human.rank": Named("… in what order", "Spearman's correlation", "number"),
            "ranker.agreement.student_teacher.exact": Named("The student grades as its teacher", "the same of five levels, held-out queries"),
            "ranker.agreement.student_teacher.within_one": Named("… or one level off", "held-out queries"),
            "ranker.agreement.student_teacher.rank": Named("… in what order", "Spearman's correlation", "number"),
        },
    ),
    "tags": (
        "Guessed words",
        "What is guessed of held-out items, beside what their owner says. A word that the owner left out counts as wrong, fitting or not.",
        {
            "tags.precision": Named("A guessed word is the owner's", "of the guesses sure enough to be shown; interval by resampling items"),
            "tags.recall": Named("An owner's word is guessed", "of the words that are common enough to be learned"),
            "tags.coverage": Named("Items of which anything is guessed", "held-out items whose owner says something"),
            "tags.category.accuracy": Named("The best guess of the kind", "however sure; kinds common enough to be learned"),
            "tags.calibration": Named("Distance of confidence from truth", "expected calibration error, ten bins: less is better"),
        },
    ),
    "storage": (
        "Storage",
        "The learned vectors by themselves, kept in fewer bits and cut to fewer numbers, for the questions of the first row above.",
        {
            f"storage.{storage}.{width}.recall@10": Named(f"{storage}, {width} numbers", "words find pictures, by the learned vector alone")
            for storage, width in (
                *((storage, 256) for storage in ("float32", "float16", "int8", "bit")),
                *((storage, width) for width in (128, 64) for storage in ("float32", "int8")),
            )
        },
    ),
    "see": (
        "Seeing",
        "Questions about pictures never trained on, with title and attributes hidden.",
        {
            "see.category.accuracy": Named("What kind of thing is it?", "one picture, every category of the catalogue to choose from"),
            "see.pick.accuracy": Named("Which of the four is it?", "four pictures and a name"),
            "see.match.accuracy": Named("Is it this?", "one picture and a name, yes or no"),
            "see.fine.accuracy": Named(
                "Which of two that are much alike?", "one picture, the titles of two boards (or two kinds) whose middles are nearest"
            ),
        },
    ),
    "board": (
        "Boards",
        "Questions about several pictures at once.",
        {
            "board.theme.accuracy": Named("What do they share?", "five pictures of one board, five titles"),
            "board.theme.accuracy.new": Named("… on new boards", "boards that training never showed as boards"),
            "board.odd_one_out.accuracy": Named("Which one is the stranger?", "three pictures of one board and one of another"),
        },
    ),
    "nested": (
        "Fewer tokens a picture",
        "The same questions to the same model, with each picture pooled to fewer soft tokens.",
        {
            f"nested.{count}.{key}": Named(f"{label} {count} token{'s' if count > 1 else ''} a picture")
            for count in (1, 4)
            for key, label in (
                ("see.category.accuracy", "What kind of thing is it?"),
                ("see.pick.accuracy", "Which of the four is it?"),
                ("see.match.accuracy", "Is it this?"),
                ("board.theme.accuracy", "What do they share?"),
                ("board.odd_one_out.accuracy", "Which one is the stranger?"),
            )
        }
        | {
            f"nested.{count}.first_token_s": Named(
                f"First token, {count} token{'s' if count > 1 else ''} a picture", "a question about four pictures never shown before", "seconds"
            )
            for count in (1, 4, 16)
        },
    ),
    "tools": (
        "Tools",
        "What the model does when it is asked for something, in words and sentences that no lesson has.",
        {
            "tools.valid": Named("A call that can be run", "a tool on offer, its required arguments, no unknown one"),
            "tools.name": Named("The right tool", "or none, where none is needed"),
            "tools.arguments": Named("The right call", "the right tool and all arguments"),
            "tools.references": Named("The right pictures", "every #number in the call, and no other"),
            "tools.unseen": Named("A tool never seen", "known only from its schema; tool and all arguments"),
            "tools.by_kind.open": Named("… first request", "“find …”, “… in animals”, “open the board …”"),
            "tools.by_kind.like": Named("… more like #2"),
            "tools.by_kind.like_text": Named("… like #2, but blue"),
            "tools.by_kind.like_unlike": Named("… like #2, not like #5"),
            "tools.by_kind.text_unlike": Named("… boats, not like #5"),
            "tools.by_kind.related": Named("… what goes with #3"),
            "tools.by_kind.item": Named("… details of #1"),
            "tools.by_kind.chat": Named("… no tool needed"),
        },
    ),
    "start": (
        "The start",
        "Training pictures, before the language model is trained.",
        {
            "graft.warm_start": Named("The nearest of all words is its own", "where the warm start puts the pictures that it was fitted to"),
            "graft.warm_start.tower": Named(
                "What the base's own eyes say is foretold", "variance of the tower's tokens, pictures left out of the fit"
            ),
            "graft.taught.right": Named("The teacher says what the tables say", "lessons that the model with its eyes answered"),
        },
    ),
    "lessons": (
        "Your lessons",
        "The turns of the file that was named.",
        {
            "lessons.right": Named("Right", "the call with all its arguments, or the very answer"),
            "lessons.name": Named("The right tool", "or none, where none is expected"),
        },
    ),
    "speed": (
        "Speed",
        "On the machine named above.",
        {
            "speed.first_token_s": Named("First word of an answer", "a short question, the tools and rules already in the cache", "seconds"),
            "speed.first_token_over_forward": Named("… against the bare model", "÷ one forward pass of the new tokens", "times"),
            "speed.tool_call_s": Named("A whole search call", "from the question to the last token of the call", "seconds"),
            "speed.tool_call_tokens": Named("… its tokens", "", "tokens"),
            "speed.train.samples_per_s": Named("Lessons trained on", "over both stages", "per second"),
            "speed.embed.fraction": Named("Embedding, of what is possible", "bare decode and bare forward ÷ end to end, same pictures and workers"),
            "speed.embed.cpu_fraction": Named("… of processor time", "the same, in seconds of processor time: other programs do not count"),
            "speed.embed.images_per_s": Named("Pictures embedded", "end to end, with the start of the workers", "per second"),
            "engine.tokens_per_s": Named("Words written, alone", "tokens of one conversation", "per second"),
            "engine.tokens_per_s.together": Named("… eight at once", "tokens of all of them", "per second"),
            "engine.in_bulk_over_one": Named("Many short conversations, an engine a core", "÷ one engine with all of them", "times"),
            "engine.cached_over_uncached": Named("A long conversation's next turn", "÷ reading it all anew", "times"),
            "engine.packed_over_plain": Named("Forward pass, packed weights", "÷ weights as they come", "times"),
        },
    ),
    "cost": (
        "Cost",
        "What a picture takes in a prompt, and what a turn of the exams of tools took: one answer, a call or a text.",
        {
            "cost.tokens_per_item": Named("Tokens of a picture", "", "tokens"),
            "cost.tokens_per_card": Named("Tokens of a card", "number, picture and short title", "tokens"),
            "cost.turn.prompt_tokens": Named("Tokens a turn reads", "with rules, tools and pictures", "tokens"),
            "cost.turn.cached_tokens": Named("… of them cached", "rules and tools, mostly", "tokens"),
            "cost.turn.completion_tokens": Named("Tokens a turn says", "", "tokens"),
            "cost.turn.pictures": Named("Pictures in a turn", "", "number"),
            "cost.turn.gflops": Named("Arithmetic of a turn", "GFLOPs, from the shape of the model and its tokens", "number"),
            "cost.turns_per_s": Named("Turns answered", "by all engines together, as many at once as they take", "per second"),
        },
    ),
}
NAMED: dict[str, Named] = {key: named for _, _, rows in GROUPS.values() for key, named in rows.items()}


@dataclass(frozen=True)
class Row:
    """One figure with its interval, what it is compared with, and whatever else hangs on its key."""

    key: str
    named: Named
    value: float
    n: int | None = None
    low: float | None = None
    high: float | None = None
    marks: dict[str, float] = field(default_factory=dict)
    also: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    name: str
    title: str
    about: str
    rows: list[Row]


def grouped(figures: Mapping[str, float]) -> list[Group]:
    """Rows of all figures in the order above; groups with nothing measured are absent, keys not described come last."""
    left = {key: value for key, value in figures.items() if isinstance(value, (int, float))}
    found = []
    for name, (title, about, named) in GROUPS.items():
        rows = [row for key, one in named.items() if (row := _row(key, one, left))]
        if rows:
            found.append(Group(name, title, about, rows))
    strays = list(_strays(left))
    return [*found, Group("more", "More", "Also measured.", strays)] if strays else found


def _row(key: str, named: Named, left: dict[str, float]) -> Row | None:
    """Take a figure and all that hangs on it out of ``left``; None where it was not measured."""
    main = next((at for at in (key, f"{key}.tuned") if at in left), None)
    if main is None:
        if left.get(f"{key}.n") == 0:  # nothing was asked
            for part in (*_OWN, *MARKS):
                left.pop(f"{key}.{part}", None)
        return None
    value = left.pop(main)
    inner = [other for other in NAMED if other.startswith(f"{key}.")]
    parts: dict[str, float] = {}
    for at in [at for at in left if at.startswith(f"{key}.") and not any(at == one or at.startswith(f"{one}.") for one in inner)]:
        parts[at.removeprefix(f"{key}.").removeprefix("tuned.")] = left.pop(at)
    n, low, high = (parts.pop(own, None) for own in _OWN[:3])
    marks = {mark: parts.pop(mark) for mark in MARKS if mark in parts}
    return Row(key, named, value, None if n is None else int(n), low, high, marks, parts)


def _strays(left: dict[str, float]) -> Iterator[Row]:
    while left:
        key = next(iter(left))
        whole = next((key[: -len(own) - 1] for own in (*_OWN, *MARKS) if key.endswith(f".{own}")), key)
        row = _row(whole, Named(whole, "", "number"), left)
        if row:
            yield row
        elif key in left:
            yield Row(key, Named(key, "", "number"), left.pop(key))


def written(value: float, unit: Unit = "number") -> str:
    """A value as people read it: ``.58``, ``1.24×``, ``41 ms``, ``12,345``."""
    if value != value:
        return "–"
    if unit == "share":
        return f"{value:.3f}".removeprefix("0") if value < 1 else f"{value:.2f}"
    if unit == "times":
        return f"{value:.2f}×"
    if unit == "seconds":
        return f"{value * 1000:.0f} ms" if value < 1 else clock(value)
    number = f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"
    return f"{number}/s" if unit == "per second" else number


def clock(seconds: float) -> str:
    """``0.8 s``, ``42 s``, ``7 min 05 s``, ``1 h 02 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
