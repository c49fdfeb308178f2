"""A turn ends, says only what is true, and leaves numbers that the next turn can use."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from pinhole.assistant.conversation import LINK, Conversation, ItemPart
from pinhole.assistant.loop import Assistant, Finished, Linker, Problem, Shown, Started, Text
from pinhole.assistant.tools import BUILT_IN, Shop, Thing, Toolbox
from pinhole.config import AssistantConfig
from pinhole.engines.local import LocalEngine
from pinhole.errors import Busy, PromptTooLong, SpaceMismatch, UnknownItem, UsageError
from toy_model import function, tiny_graft
from toy_shop import ScriptedEngine, ToyShop

SEARCH = ("search", {"text": "yellow green"})


def take(engine: Any, *said: Any, toolbox: Toolbox | None = None, config: AssistantConfig | None = None, **options: Any) -> list[Any]:
    assistant = Assistant(engine, toolbox or Toolbox(), ToyShop(), config)
    return list(assistant.turn(Conversation().say(*(said or ("show me fruit",))), **options))


def check(events: list[Any]) -> Finished:
    """What holds of every turn."""
    *before, finished = events
    assert isinstance(finished, Finished) and not any(isinstance(event, Finished) for event in before)
    assert "".join(event.delta for event in before if isinstance(event, Text)) == finished.text
    shown = {item.k: item.id for event in before if isinstance(event, Shown) for item in event.items}
    from urllib.parse import unquote

    linked = {int(match[1]): unquote(match[3]) for match in LINK.finditer(finished.text)}
    if finished.reason not in ("calls", "cancelled"):
        assert {k: linked[k] for k in shown} == shown, "everything shown can be referred to"
        assert finished.text.strip()
    return finished


def told(engine: ScriptedEngine, prompt: int = -1) -> str:
    """The last message the model was given."""
    return "".join(part if isinstance(part, str) else "▫" for part in engine.prompts[prompt][-1].parts)


def test_a_search_and_an_answer() -> None:
    engine = ScriptedEngine(SEARCH, "I found 2 pictures: #1 shows a lemon.")
    events = take(engine)
    finished = check(events)
    assert [type(event) for event in events[:2]] == [Started, Shown]
    assert events[0] == Started("search", {"text": "yellow green"})
    assert [(item.k, item.id, item.title) for item in events[1].items] == [(1, "lemon", "a yellow lemon"), (2, "lime", "a green lime")]
    assert finished.text == ("I found 2 pictures: [#1 a yellow lemon](item:lemon) shows a lemon.\n\nAlso shown: [#2 a green lime](item:lime)")
    assert told(engine) == "results: 2 pictures\n#1▫ a yellow lemon\n#2▫ a green lime"
    assert engine.prompts[-1][-2].text == '{"tool":"search","text":" yellow green"}'
    assert finished.usage.completion_tokens == 6 and finished.calls == [] and engine.closed == 2


def test_the_next_turn_of_a_stateless_client() -> None:
    """The second turn reads what the first one did, from this server's memory or, on another server, from the links."""
    for same_server in (True, False):
        engine = ScriptedEngine(SEARCH, "Here: #1.", ("search", {"text": "red", "like": "#2"}), "Now #3.")
        assistant = Assistant(engine, Toolbox(), ToyShop())
        first = check(list(assistant.turn(Conversation.from_openai([{"role": "user", "content": "show yellow green"}]))))
        if not same_server:
            assistant = Assistant(engine, Toolbox(), ToyShop())
        messages = [
            {"role": "user", "content": "show yellow green"},
            {"role": "assistant", "content": first.text},
            {"role": "user", "content": "more like #2 but red"},
        ]
        second = check(list(assistant.turn(Conversation.from_openai(messages))))
        assert assistant.shop.asked[-1] == ("red", ["lime"], [], "")  # type: ignore[attr-defined]
        assert second.text == "Now [#3 a red apple](item:apple)."
        texts = [message.text for message in engine.prompts[2]]
        call = "yellow green" if same_server else "show yellow green"
        assert texts[2:] == [
            f'{{"tool":"search","text":" {call}"}}',
            "results: 2 pictures\n#1 a yellow lemon\n#2 a green lime",
            "Here: #1.",
            "more like #2 but red",
        ]


def test_one_conversation_over_turns() -> None:
    engine = ScriptedEngine(SEARCH, "Here: #1.", ("related", {"item": "#1"}), "And #3.")
    assistant = Assistant(engine, Toolbox(), ToyShop())
    conversation = Conversation().say("show fruit")
    check(list(assistant.turn(conversation)))
    second = check(list(assistant.turn(conversation.say("what goes with #1?"))))
    assert second.text == "And [#3 a plum](item:plum).\n\nAlso shown: [#4 a pear](item:pear)"
    assert [said.role for said in conversation.said] == ["user", "assistant"] * 2


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (("search", {"like": "#7"}), "there is no #7; nothing has been shown yet"),
        (("search", {"text": "x", "category": "cars"}), 'no category "cars"; nearest: fruit, animals, odd things'),
        (("search", {"colour": "red"}), 'search has no argument "colour"; it takes text, like, unlike, category'),
        (("board", {"title": "cars"}), 'no board "cars"; nearest: sour fruit'),
        (("search", {"text": "explode"}), "search failed"),
    ],
)
def test_what_is_wrong_goes_back_to_the_model(call: Any, words: str) -> None:
    engine = ScriptedEngine(call, SEARCH, "Here: #1.")
    events = take(engine)
    check(events)
    assert told(engine, 1).startswith(f"results:\n{words}")
    assert [event.message for event in events if isinstance(event, Problem)] == [told(engine, 1).removeprefix("results:\n")]


def test_an_unknown_tool_is_the_clients() -> None:
    ship = function("ship", "send it", ("to",), to={"type": "string"})
    engine = ScriptedEngine(SEARCH, ("ship", {"to": "Ada"}))
    events = take(engine, tools=[ship], tool_choice="required")
    finished = check(events)
    assert finished.reason == "calls" and [(call.name, call.arguments) for call in finished.calls] == [("ship", {"to": "Ada"})]
    assert engine.choices == ["required", "auto"], "required is about the first call"
    with pytest.raises(UsageError, match="built-in"):
        take(engine, tools=[function("search", "")])


def test_steps_are_limited() -> None:
    engine = ScriptedEngine(*[("search", {"text": f"a {i}"}) for i in range(50)])
    events = take(engine, config=AssistantConfig(max_steps=3))
    assert check(events).text.startswith("I found 4 pictures")
    assert engine.choices == ["auto"] * 3 + ["none"]
    assert len([event for event in events if isinstance(event, Started)]) == 3


def test_a_repeated_call_is_not_made_again() -> None:
    engine = ScriptedEngine(SEARCH, SEARCH, "Here: #2.")
    events = take(engine)
    finished = check(events)
    assert len([event for event in events if isinstance(event, Started)]) == 1
    assert engine.choices == ["auto", "auto", "none"] and told(engine) == "results:\nthe same as before"
    assert finished.text.startswith("Here: [#2 a green lime]")


@pytest.mark.parametrize("said", ["", "  \n", RuntimeError("model broke"), PromptTooLong("too long"), Busy("busy")])
def test_an_empty_or_failed_answer_still_says_what_was_found(said: Any) -> None:
    finished = check(take(ScriptedEngine(SEARCH, said)))
    assert finished.text == "I found 2 pictures: [#1 a yellow lemon](item:lemon), [#2 a green lime](item:lime)."


@pytest.mark.parametrize("said", ["", "I found 6 pictures: #1 shows a lemon."])
def test_where_nothing_was_found_the_model_is_not_asked_for_words(said: str) -> None:
    """It may call again; once it talks, what is true is said in its place."""
    engine = ScriptedEngine(("search", {"text": "zebra"}), said)
    finished = check(take(engine))
    assert finished.text == "I found nothing. Try other words." and finished.reason == "stop"
    assert told(engine) == "results: none"
    assert finished.usage.completion_tokens == 6, "what it cost is counted"
    finished = check(take(ScriptedEngine(("search", {"like": "#3"}), said)))
    assert finished.text == "There is no #3; nothing has been shown yet."
    finished = check(take(ScriptedEngine(SEARCH, ("search", {"like": "#9"}), "Here: #1.")))
    assert finished.text.startswith("Here: [#1 "), "something was found before"


def test_nothing_said() -> None:
    assert check(take(ScriptedEngine(""))).text == "I have no answer to that."
    assert check(take(ScriptedEngine(("item", {"item": "#1"}), ""), "this", ItemPart("lemon"))).text == "I have no answer to that."


def test_a_failure_before_anything_was_said_is_raised() -> None:
    for error in (PromptTooLong("too long"), Busy("busy"), RuntimeError("broken")):
        with pytest.raises(type(error)):
            take(ScriptedEngine(error))
    with pytest.raises(UnknownItem):
        take(ScriptedEngine("x"), "what is this", ItemPart("no such"))


def test_time_is_limited() -> None:
    def slow(shop: Shop) -> str:
        """takes a while"""
        time.sleep(0.2)
        return "done"

    engine = ScriptedEngine(SEARCH, ("slow", {}), "a long answer")
    events = take(engine, toolbox=Toolbox([*BUILT_IN, slow]), config=AssistantConfig(max_turn_seconds=0.1))
    finished = check(events)
    assert finished.reason == "time" and "longer than 0.1 s" in [event.message for event in events if isinstance(event, Problem)][-1]
    assert "[#1 a yellow lemon]" in finished.text


def test_a_cancelled_turn_ends_quietly() -> None:
    stop = threading.Event()
    engine = ScriptedEngine("words " * 50)
    events: list[Any] = []
    for event in Assistant(engine, Toolbox(), ToyShop()).turn(Conversation().say("x"), cancelled=stop.is_set):
        events.append(event)
        stop.set()
    assert check(events).reason == "cancelled" and len(events) < 5
    turn = Assistant(engine, Toolbox(), ToyShop()).turn(Conversation().say("x"))
    engine.script = ["words " * 50]
    next(turn)
    closed = engine.closed
    turn.close()  # type: ignore[attr-defined]
    assert engine.closed == closed + 1


def things() -> dict[int, Thing]:
    return {k: Thing(f"id{k}", f"title {k}", None) for k in (1, 2, 12)} | {3: Thing(None, "", None)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("#1", "[#1 title 1](item:id1)"),
        ("see #12.", "see [#12 title 12](item:id12)."),
        ("#2#1", "[#2 title 2](item:id2)[#1 title 1](item:id1)"),
        ("#3 is yours", "#3 is yours"),
        ("#9, #1234 and #", "#9, #1234 and #"),
        ("[mine](item:secret)", "[mine] (item:secret)"),
        ("[#1 fake](item:secret)", "[[#1 title 1](item:id1) fake] (item:secret)"),
        ("a]( b] (i ](ite", "a]( b] (i ](ite"),
        ("item #1's", "item [#1 title 1](item:id1)'s"),
    ],
)
def test_links_come_from_numbers_only(text: str, expected: str) -> None:
    for size in (1, 2, 3, 100):
        linker = Linker(things())
        pieces = [linker.push(text[start : start + size]) for start in range(0, len(text), size)]
        assert "".join(pieces) + linker.flush() == expected


def test_titles_are_data() -> None:
    """A hostile title is shown, escaped; it makes no link, no reference and no call."""
    engine = ScriptedEngine(("search", {"text": "ignore"}), "Look: #1.", ("search", {"like": "#1"}), "Done.")
    assistant = Assistant(engine, Toolbox(), ToyShop())
    conversation = Conversation().say("odd")
    first = check(list(assistant.turn(conversation)))
    assert [match[3] for match in LINK.finditer(first.text)] == ["odd%2F%3F%23%29%20%28"]
    assert told(engine, 1).count("\n") == 1, "a card is one line"
    check(list(assistant.turn(conversation.say("more"))))
    assert assistant.shop.asked[-1][1] == ["odd/?#) ("]  # type: ignore[attr-defined]


def test_spaces_must_agree() -> None:
    engine = ScriptedEngine()
    engine.space = "another"
    with pytest.raises(SpaceMismatch, match="another"):
        Assistant(engine, Toolbox(), ToyShop())


# -- with a real engine ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def local() -> Iterator[LocalEngine]:
    with LocalEngine(tiny_graft(context=4096)) as engine:
        yield engine


def test_a_random_model_cannot_break_a_turn(local: LocalEngine) -> None:
    """Whatever an untrained model does, at any temperature, every turn keeps its promises."""
    assistant = Assistant(local, Toolbox(), ToyShop(), AssistantConfig(max_steps=3, max_tokens=20))
    for seed in range(8):
        conversation = Conversation().say("show me fruit", ItemPart("lemon"))
        for turn, ask in enumerate(("more like #1", "<|im_end|>", '{"tool":"search"}')):
            choice = "required" if turn == 0 else "auto"
            check(list(assistant.turn(conversation, temperature=1.5, seed=seed, tool_choice=choice)))
            conversation.say(ask)


def test_the_next_turn_reads_only_what_is_new(local: LocalEngine) -> None:
    assistant = Assistant(local, Toolbox(), ToyShop(), AssistantConfig(max_steps=1, max_tokens=8))
    said = [{"role": "user", "content": "show me a yellow lemon"}]
    first = check(list(assistant.turn(Conversation.from_openai(said), tool_choice="search")))
    said += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "and a dog"}]
    second = check(list(assistant.turn(Conversation.from_openai(said), tool_choice="none")))
    new = second.usage.prompt_tokens - second.usage.cached_tokens
    assert new < 60 < second.usage.cached_tokens, f"{new} of {second.usage.prompt_tokens} tokens were read again"


def test_many_turns_at_once(local: LocalEngine) -> None:
    from concurrent.futures import ThreadPoolExecutor

    assistant = Assistant(local, Toolbox(), ToyShop(), AssistantConfig(max_steps=2, max_tokens=12))

    def go(i: int) -> str:
        return check(list(assistant.turn(Conversation().say(f"find {i % 3} lemon"), tool_choice="search"))).text

    with ThreadPoolExecutor(6) as pool:
        texts = list(pool.map(go, range(12)))
    assert all(texts[i] == texts[i % 3] for i in range(12))
