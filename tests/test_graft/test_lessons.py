"""What lessons may and may not hold: right answers, held-out items and words on one side only."""

from __future__ import annotations

import itertools
import random
import re
from dataclasses import replace

import numpy as np
import pytest

from pinhole.config import GraftConfig
from pinhole.evaluation.seeing_exams import questions
from pinhole.graft import toolbank
from pinhole.graft.phrasings import Phrases, banks
from pinhole.graft.prompt import Soft, parse_call
from pinhole.graft.seeing import Seeing
from pinhole.graft.talking import Talking, talking_lessons
from pinhole.graft.world import Drop, World
from toy_model import OWN
from toy_world import tiny_world


@pytest.fixture(scope="module")
def world() -> World:
    return tiny_world()


def drawn(world: World, n: int, *, held: bool = False) -> list[object]:
    rng = random.Random(0)
    seeing, talking = Seeing(world, rng, held=held), Talking(world, rng, OWN, GraftConfig(), held=held)
    found: list[object] = []
    while len(found) < n:
        found += [*seeing.scene(), *talking.episode()]
    return found


@pytest.mark.parametrize("held", [False, True])
def test_pictures_come_from_one_pool_only(world: World, held: bool) -> None:
    pool = {f"{world.space}:{world.pictures[i].id}" for i in world.pool(held)}
    shown = {part.key for lesson in drawn(world, 400, held=held) for message in lesson.messages for part in message.parts if isinstance(part, Soft)}
    assert shown and shown <= pool


@pytest.mark.parametrize("kind", ["category", "match", "pick", "odd", "theme"])
def test_titles_are_hidden_in_exams(world: World, kind: str) -> None:
    asked = questions(world, kind, 40, seed=0)
    assert asked
    for lesson in asked:
        cards = lesson.messages[1].text.split("\n")[:-1]
        assert all(re.fullmatch(r"#\d", line) for line in cards)


def test_answers_are_right(world: World) -> None:
    """Read back from the pictures, without the code that made them."""
    by_id = {picture.id: picture for picture in world.pictures}
    kinds = set()
    for lesson in drawn(world, 800):
        if "items" not in lesson.expect:
            continue
        kinds.add(lesson.kind)
        shown = [by_id[id] for id in lesson.expect["items"]]
        question = lesson.messages[1].text.split("\n")[-1].lower()
        if lesson.kind == "pick":
            picture = shown[int(lesson.answer[1:]) - 1]
            assert any(name in question for name in (*picture.names, picture.category))
            assert sum(any(name in question for name in (*p.names, p.category)) for p in shown) == 1
        elif lesson.kind == "category":
            assert lesson.answer == shown[int(re.search(r"#(\d)", question)[1]) - 1].category
        elif lesson.kind == "match":
            picture = shown[int(re.search(r"#(\d)", question)[1]) - 1]
            assert (lesson.answer == "yes") == any(name in question for name in (*picture.names, picture.category))
        elif lesson.kind == "odd":
            stranger = shown.pop(int(lesson.answer[1:]) - 1)
            assert set.intersection(*(set(picture.names) for picture in shown)) - set(stranger.names)
        elif lesson.kind == "theme":
            assert lesson.answer in question and all(lesson.answer in picture.names for picture in shown)
    assert kinds == {"category", "describe", "match", "pick", "odd", "theme"}


@pytest.mark.parametrize("held", [False, True])
def test_yes_is_right_as_often_as_no(world: World, held: bool) -> None:
    seeing = Seeing(world, random.Random(2), held=held)
    asked = [lesson.answer for _ in range(600) if (lesson := seeing.match([seeing.rng.choice(seeing.named)], 0))]
    assert len(asked) > 450 and 0.44 < asked.count("yes") / len(asked) < 0.56


def test_pictures_lean_on_the_word_they_are_asked_by(world: World) -> None:
    seeing, asked = Seeing(world, random.Random(1), lean=0.6), 0
    for lesson in (lesson for _ in range(200) for lesson in seeing.scene()):
        shown = [part for part in lesson.messages[1].parts if isinstance(part, Soft)]
        assert all(part.lean <= 0.6 and (not part.lean or part.word and part.key.startswith(f"{world.space}:")) for part in shown)
        if lesson.kind == "pick":
            asked += 1
            assert shown[int(lesson.answer[1:]) - 1].word in lesson.messages[1].text.lower()
        if lesson.kind == "theme":
            assert {part.word for part in shown} == {lesson.answer}
    assert asked > 50


@pytest.mark.parametrize("held", [False, True])
def test_without_leaning_a_picture_is_its_vector(world: World, held: bool) -> None:
    seeing = Seeing(world, random.Random(1), held=held)
    lessons = [lesson for _ in range(50) for lesson in seeing.scene()]
    assert all(part.lean == 0 and not part.word for lesson in lessons for part in lesson.messages[1].parts if isinstance(part, Soft))


def test_each_scene_drops_other_content(world: World) -> None:
    seeing, lacking, seen = Seeing(world, random.Random(1), drop=0.6), [], set()
    for _ in range(60):
        shown = [part for lesson in seeing.scene() for part in lesson.messages[1].parts if isinstance(part, Soft)]
        assert len({part.key for part in shown}) == len({part.vector.tobytes() for part in shown}), "within a scene a picture stays what it is"
        assert not seen & {part.key for part in shown}
        seen |= {part.key for part in shown}
        lacking += [float((part.vector == world.mean).mean()) for part in shown]
    assert max(lacking) < 0.8 and 0.2 < sum(lacking) / len(lacking) < 0.4


def test_what_is_dropped_is_made_up_for_by_the_rest(world: World) -> None:
    shown = [world.soft(3, drop=Drop(0.5, seed)).vector for seed in range(3000)]
    np.testing.assert_allclose(np.mean(shown, 0), world.vectors[3], atol=0.1 * np.abs(world.vectors[3] - world.mean).max())


def test_the_sort_of_a_name_does_not_tell_the_answer(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seeing, asked = Seeing(world, random.Random(4)), []
    say = seeing.say.seeing
    monkeypatch.setattr(seeing.say, "seeing", lambda kind, **parts: asked.append(parts["x"]) or say(kind, **parts))
    answers: dict[bool, list[str]] = {True: [], False: []}
    for _ in range(1500):
        lesson = seeing.match([seeing.rng.choice(seeing.named)], 0)
        if lesson:
            answers[asked[-1].strip('"') in seeing.kinds].append(lesson.answer)
    for among in answers.values():
        assert len(among) > 150 and 0.43 < among.count("yes") / len(among) < 0.57


def test_some_names_are_quoted_in_lessons(world: World) -> None:
    lessons, exams = Phrases(random.Random(0), held=False), Phrases(random.Random(0), held=True)
    written = [lessons.name("apple") for _ in range(400)]
    assert set(written) == {"apple", '"apple"'} and 0.1 < written.count('"apple"') / 400 < 0.2
    assert {exams.name("apple") for _ in range(100)} == {"apple"}
    talking = Talking(world, random.Random(1), OWN, GraftConfig())
    said = [talking.opening(talking.tool_set()) for _ in range(400)]
    assert any(f'"{x}"' in request for request, _, x in said) and all('"' not in str(call) for _, call, _ in said)


def test_exams_ask_by_concepts_only(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in world.held:  # a concept that is also a board's title
        monkeypatch.setitem(world.shelves, i, [*world.concepts_of(i)[:1], "a title"])
    seeing, asked = Seeing(world, random.Random(4), held=True), []
    say = seeing.say.seeing
    monkeypatch.setattr(seeing.say, "seeing", lambda kind, **parts: asked.append(parts["x"]) or say(kind, **parts))
    answers = {lesson.answer for _ in range(300) if (lesson := seeing.match([seeing.rng.choice(seeing.named)], 0))}
    assert answers == {"yes", "no"} and set(asked) <= world.concepts


@pytest.mark.parametrize("held", [False, True])
def test_some_conversations_are_longer_than_what_is_shown(world: World, held: bool) -> None:
    talking = Talking(world, random.Random(3), OWN, GraftConfig(), held=held)
    first, tools = [], talking.tool_set()
    for _ in range(200):
        turns, shown = talking.history(tools)
        cards = [int(k) for turn in turns if turn.text.startswith("results:") for k in re.findall(r"^#(\d+)", turn.text, re.MULTILINE)]
        assert set(cards) == set(shown), "a picture is asked for by the number that stands before it"
        said = [int(k) for k in re.findall(r"#(\d+) shows", turns[-1].text)]
        assert said and set(said) <= set(shown)
        first.append(min(shown))
    assert max(first) > 20 and 0.5 < first.count(1) / len(first) < 0.8


def test_training_never_sees_a_held_out_board(world: World) -> None:
    hidden = {i for board in world.boards if board.held for i in board.pictures}
    for board, members in world.themed(False, 3):
        assert not board.held and not hidden & set(members)


def test_groups_are_training_pictures_of_one_name_and_no_board(world: World) -> None:
    free = next(i for i in world.train if not any(board.held for board in world.boards if i in board.pictures))
    alone = replace(world.pictures[free], names=("lighthouse",))
    world = replace(world, pictures=[alone if i == free else picture for i, picture in enumerate(world.pictures)])
    titles = {board.title for board in world.boards}
    lessons, exam = Seeing(world, random.Random(0)), Seeing(world, random.Random(0), held=True)
    assert not exam.large and not exam.small
    assert lessons.large and all(len(members) >= 3 for _, members in lessons.large)
    assert [(group.title, members) for group, members in lessons.small] == [("lighthouse", [free])]
    hidden = {i for board in world.boards if board.held for i in board.pictures}
    for group, members in world.groups:
        assert group.title not in titles and not hidden & set(members)
        assert all(i in world.train and group.title in world.pictures[i].names for i in members)
    themes = {lesson.answer: lesson for _ in range(300) if (lesson := lessons.theme())}
    assert themes["lighthouse"].expect["items"] == [alone.id]


def test_being_a_board_does_not_tell_the_theme(world: World) -> None:
    """Right titles and offered ones are those of boards equally often, however many groups there are."""
    seeing, boards = Seeing(world, random.Random(5)), {board.title for board in world.boards}
    drawn = [lesson for _ in range(600) if (lesson := seeing.theme())]
    right = sum(lesson.answer in boards for lesson in drawn) / len(drawn)
    offered = sum(title in boards for lesson in drawn for title in lesson.choices) / sum(len(lesson.choices) for lesson in drawn)
    assert len(drawn) > 100 and 0 < right < 1 and abs(right - offered) < 0.12


def test_calls_are_to_tools_on_offer_with_their_arguments(world: World) -> None:
    for lesson in drawn(world, 600):
        call = parse_call(lesson.answer)
        if call is None:
            continue
        tool = next(tool for tool in lesson.tools if tool["name"] == call[0])
        properties = tool["parameters"]["properties"]
        assert set(tool["parameters"].get("required", [])) <= set(call[1]) <= set(properties)
        assert list(call[1]) == [name for name in properties if name in call[1]], "in the schema's order"
        shown = {match for message in lesson.messages[:-1] for match in re.findall(r"#\d+", message.text)}
        assert {value for value in call[1].values() if isinstance(value, str) and value.startswith("#")} <= shown


def test_answers_speak_of_what_came_back(world: World) -> None:
    outcomes = [lesson for lesson in drawn(world, 2000) if lesson.kind == "outcome"]
    assert len(outcomes) > 20
    for lesson in outcomes:
        told, answer = lesson.messages[-2], lesson.answer
        assert told.text.startswith("results:") and parse_call(lesson.messages[-3].text)
        cards = re.findall(r"^#\d+", told.text, re.MULTILINE)
        if cards:
            assert told.text.startswith(f"results: {len(cards)} picture")
            assert answer.startswith(f"I found {len(cards)} ") and cards[0] in answer
        elif told.text == "results: none":
            assert "nothing" in answer


def test_what_is_asked_for_is_in_the_request(world: World) -> None:
    for lesson in drawn(world, 600):
        call = parse_call(lesson.answer)
        if call:
            said = lesson.messages[-2].text.lower()
            assert all(str(value).lower() in said for value in call[1].values()), (said, call)


def test_the_two_halves_share_no_frame_and_no_verb() -> None:
    bank = banks()
    for name, pair in [*bank["seeing"].items(), *bank["frames"].items(), ("verbs", bank["verbs"]), ("adjectives", bank["adjectives"])]:
        lessons, exams = ({" ".join(text.lower().split()).strip(" ?.") for text in pair[half]} for half in ("lessons", "exams"))
        assert lessons and exams and not lessons & exams, name
    verbs = {verb.split()[0] for verb in bank["verbs"]["lessons"]} & {verb.split()[0] for verb in bank["verbs"]["exams"]}
    assert verbs <= {"i", "i'm"}  # pronouns, not verbs
    assert not {m for group in bank["chat"]["lessons"] for m in group["messages"]} & set(bank["chat"]["exams"])


# Words that carry no meaning of their own, or are the very thing that is asked about.
_FUNCTION = re.compile(
    "a|and|as|be|board|could|does|don|for|from|i|in|into|is|it|m|me|number|of|on|one|or|out|s|t|that|the|these|this|to|under"
    "|what|which|who|with|would|you"
)


def test_no_word_of_an_exam_frame_that_matters_is_in_a_lesson_of_its_kind() -> None:
    """Neither a verb nor anything else that says what is wanted, whatever its ending."""
    bank = banks()
    for name, pair in [*bank["seeing"].items(), *bank["frames"].items()]:
        lessons, exams = ({_stem(word) for frame in pair[half] for word in _words(frame)} for half in ("lessons", "exams"))
        assert not lessons & exams, name


def _words(frame: str) -> list[str]:
    return [word for word in re.findall(r"[a-z]+", re.sub(r"\{.\}", " ", frame.lower())) if not _FUNCTION.fullmatch(word)]


def _stem(word: str) -> str:
    return re.sub(r"(ing|es|s|e)$", "", word) or word


def test_unseen_tools_are_unseen() -> None:
    def words(tools):  # type: ignore[no-untyped-def]
        return (
            {name for tool in tools for name in tool.names.split("|")},
            {frame for tool in tools for frame in tool.frames},
            {tool.about for tool in tools},
        )

    for lessons, exams in zip(words(toolbank.LESSONS), words(toolbank.EXAM), strict=True):
        assert not lessons & exams
    values = [{name for tool in tools for args in tool.args for name in args.split("|")} for tools in (toolbank.LESSONS, toolbank.EXAM)]
    assert not values[0] & values[1], "argument names are unseen too"


def test_the_same_seed_draws_the_same_lessons(world: World) -> None:
    stream = talking_lessons(OWN, GraftConfig())
    texts = [
        [lesson.messages[-1].text + lesson.messages[-2].text for lesson in itertools.islice(stream(world, random.Random(5), 0.0), 60)]
        for _ in range(2)
    ]
    assert texts[0] == texts[1]


def test_phrases_fill_every_frame() -> None:
    for held in (False, True):
        say = Phrases(random.Random(0), held=held)
        for intent in banks()["frames"]:
            for _ in range(20):
                assert "{" not in say.frame(intent, x="owl", a="#1", b="#2", c="food")
