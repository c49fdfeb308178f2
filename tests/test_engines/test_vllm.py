"""The engine before a server: what it sends and tells, and every way in which a server fails. Real servers: tests/engines_vllm."""

from __future__ import annotations

import gc
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pinhole.config import EngineConfig
from pinhole.engines.base import Call, Done, TextDelta
from pinhole.engines.upstream import KEY, addresses
from pinhole.engines.vllm import VllmEngine
from pinhole.errors import EngineDown, PinholeError, PromptTooLong, SpaceMismatch, UsageError
from pinhole.graft.lens import Lens
from pinhole.graft.prompt import Message, Soft, card
from toy_model import DIM, TOOLS, vectors
from toy_vllm import MODEL, TEXT, Faulty, engine_on, served, tiny_lens


@pytest.fixture(scope="module")
def lens(tmp_path_factory: pytest.TempPathFactory) -> Lens:
    return tiny_lens(tmp_path_factory.mktemp("lens"))


@pytest.fixture
def server() -> Faulty:
    return Faulty()


@pytest.fixture
def engine(lens: Lens, server: Faulty) -> Iterator[VllmEngine]:
    with engine_on(lens, server) as engine:
        yield engine


def user(*parts: Any) -> Message:
    return Message("user", parts)


def answer(engine: VllmEngine, messages: list[Message], tools: Any = (), **options: Any) -> tuple[str, list[Call], Done]:
    events = list(engine.chat(messages, tools, **options))
    assert isinstance(events[-1], Done) and not any(isinstance(event, Done) for event in events[:-1])
    return "".join(event.text for event in events if isinstance(event, TextDelta)), [event for event in events if isinstance(event, Call)], events[-1]


def eventually(true: Any) -> None:
    end = time.monotonic() + 5
    while not true() and time.monotonic() < end:
        time.sleep(0.005)
    assert true()


# -- what is sent and told ----------------------------------------------------------------------


def test_text_comes_as_it_is_said(engine: VllmEngine) -> None:
    events = list(engine.chat([user("#1", Soft("s", vectors(1)[0]), " what is it?")]))
    assert len(events) > 4, "piece by piece"
    text, calls, done = answer(engine, [user("hello")])
    assert (text, calls, done.reason) == (TEXT, [], "stop")
    usage = done.usage
    assert usage.prompt_tokens == len(engine.prompt([user("hello")]).tokens) and usage.cached_tokens == 16
    assert usage.completion_tokens == len(engine.lens.tokenizer(TEXT)["input_ids"])
    assert 0 < usage.first_token_s <= usage.total_s


def test_limits(engine: VllmEngine, server: Faulty) -> None:
    _, _, done = answer(engine, [user("hello")], max_tokens=3)
    assert (done.reason, done.usage.completion_tokens, done.usage.cached_tokens) == ("length", 3, 16)
    _, _, done = answer(engine, [user("hello")], TOOLS, max_tokens=3, call_tokens=50)
    assert (done.reason, done.usage.completion_tokens, server.asked[-1]["max_tokens"]) == ("length", 3, 50)
    eventually(lambda: server.working == 0)
    with pytest.raises(UsageError, match="max_tokens"):
        engine.chat([user("x")], max_tokens=0)
    with pytest.raises(PromptTooLong, match=r"1,\d\d\d tokens, the model reads 1,024"):
        engine.chat([user("lemon " * 1100)])
    with pytest.raises(UsageError, match="nothing to answer"):
        engine.chat([user("")])


def test_the_context_is_the_servers(lens: Lens) -> None:
    with engine_on(lens, Faulty(context=128), Faulty(context=200)) as engine:
        assert engine.context == 128
        with pytest.raises(PromptTooLong, match="the model reads 128"):
            engine.chat([user("lemon " * 100)])
        answer(engine, [user("x")], max_tokens=900)


def test_a_call_is_one_event_and_valid(lens: Lens) -> None:
    with engine_on(lens, Faulty('{"tool":"search","text":" winter"}')) as engine:
        text, calls, done = answer(engine, [user("find")], TOOLS)
        assert (text, done.reason, done.usage.cached_tokens) == ("", "call", 16)
        assert calls == [Call("search", {"text": "winter"}, '{"tool":"search","text":" winter"}')]
        for most in (1, 4, 9, 14):
            text, (call,), done = answer(engine, [user("find")], TOOLS, call_tokens=most)
            assert call.name in ("search", "related", "board") and json.loads(call.text)["tool"] == call.name and done.reason == "call"
        with pytest.raises(PinholeError, match="does not keep to the grammar.*guidance"):
            answer(engine, [user("find")], TOOLS, tool_choice="related")


def test_the_grammar_goes_along_with_tools_only(engine: VllmEngine, server: Faulty) -> None:
    answer(engine, [user("x")])
    assert "structured_outputs" not in server.asked[-1] and server.asked[-1]["logit_bias"]["0"] == -100
    for choice, start in {"auto": "start: (call | text)?", "none": "start: (text)?", "search": "start: (call)\n"}.items():
        list(engine.chat([user("x")], TOOLS, tool_choice=choice, cancelled=lambda: True))
        grammar = engine._vocabulary.grammar(TOOLS, choice).lark
        assert grammar.startswith(start) and ("related" in grammar) == (choice == "auto")


def test_wrong_widths_are_refused_before_anything_is_sent(engine: VllmEngine, server: Faulty) -> None:
    with pytest.raises(SpaceMismatch, match=f"{DIM + 1} numbers.*reads {DIM}"):
        engine.chat([user("#1", Soft("wide", np.zeros(DIM + 1, np.float32)))])
    assert not server.asked


def test_cards_and_space_are_the_grafts(engine: VllmEngine, lens: Lens) -> None:
    picture = Soft("s", vectors(1)[0])
    assert engine.card(2, picture, "red dog") == card(2, picture, "red dog") and engine.space == lens.space


# -- cancelling ---------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["silent", "hangs"])
def test_cancelling_ends_it_at_the_server_too(engine: VllmEngine, server: Faulty, fault: str) -> None:
    server.fault, stop = fault, threading.Event()
    stream = engine.chat([user("x")], cancelled=stop.is_set)
    events: list[Any] = []
    reader = threading.Thread(target=lambda: events.extend(stream))
    reader.start()
    eventually(lambda: server.working == 1 and (fault == "silent" or events))
    stop.set()
    reader.join(2)
    assert isinstance(events[-1], Done) and events[-1].reason == "cancelled"
    eventually(lambda: server.working == 0)
    assert not engine.replicas.all[0].down and engine.replicas.all[0].busy == 0


def test_closing_and_dropping(engine: VllmEngine, server: Faulty) -> None:
    server.fault = "hangs"
    stream = engine.chat([user("x")])
    next(stream)
    stream.close()
    assert list(stream) == []
    eventually(lambda: server.working == 0)
    stream = engine.chat([user("x")])
    next(stream)
    del stream
    gc.collect()
    eventually(lambda: server.working == 0)
    assert engine.replicas.all[0].busy == 0 and not engine.replicas.all[0].down
    server.fault = ""
    assert answer(engine, [user("x")])[0] == TEXT


def test_who_cannot_say_whether_he_still_wants_it_does_not(engine: VllmEngine, server: Faulty) -> None:
    def broken() -> bool:
        raise ValueError("who knows")

    server.fault = "silent"
    assert answer(engine, [user("x")], cancelled=broken)[2].reason == "cancelled"


def test_a_connection_is_kept_and_one_that_was_closed_is_no_fault(engine: VllmEngine, server: Faulty) -> None:
    upstream = engine.replicas.all[0].server
    answer(engine, [user("x")])
    ((connection, _),) = upstream._idle
    answer(engine, [user("y")])
    assert upstream._idle[0][0] is connection
    connection.sock.shutdown(socket.SHUT_RDWR)
    assert answer(engine, [user("z")])[0] == TEXT


# -- servers that fail --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("dies", "broke the connection off|ended in the middle"),
        ("hangs", "said nothing for 0.3 s"),
        ("silent", "said nothing for 0.[0-9]+ s"),
        ("garbage", "no answer"),
        ("error", "EngineCore died"),
        ("full", r"did not answer \(503\): no room"),
        ("refuses", "refused it: no room"),
        ("other", "read another prompt"),
    ],
)
def test_a_fault_ends_the_answer_in_words_and_the_next_one_is_well(lens: Lens, server: Faulty, fault: str, words: str) -> None:
    with engine_on(lens, server, first_token_seconds=0.5, token_seconds=0.3) as engine:
        server.fault = fault
        with pytest.raises(PinholeError, match=words):
            list(engine.chat([user("x")]))
        assert engine.replicas.all[0].busy == 0
        server.fault = ""
        time.sleep(0.15)  # a server's first pause
        assert answer(engine, [user("x")])[0] == TEXT


def both(lens: Lens, engine: VllmEngine, servers: list[Faulty]) -> tuple[Faulty, Faulty]:
    """The server that a conversation comes to first, and the other."""
    answer(engine, [user("x")])
    return (servers[0], servers[1]) if servers[0].asked else (servers[1], servers[0])


@pytest.mark.parametrize("fault", ["full", "dies at once"])
def test_before_the_first_token_another_server_takes_over_unseen(lens: Lens, fault: str) -> None:
    servers = [Faulty(), Faulty()]
    with engine_on(lens, *servers) as engine:
        first, second = both(lens, engine, servers)
        first.fault = fault
        assert answer(engine, [user("x")])[0] == TEXT and len(second.asked) == 1
        assert [replica.down for replica in engine.replicas.all].count(True) == 1


def test_later_the_answer_ends_and_the_next_goes_elsewhere(lens: Lens) -> None:
    servers = [Faulty(), Faulty()]
    with engine_on(lens, *servers, pause_seconds=30.0) as engine:
        first, second = both(lens, engine, servers)
        first.fault = "dies"
        stream = engine.chat([user("x")])
        assert isinstance(next(stream), TextDelta)
        with pytest.raises(EngineDown):
            list(stream)
        asked = len(first.asked)
        assert answer(engine, [user("x")])[0] == TEXT and len(second.asked) == 1 and len(first.asked) == asked


def test_a_conversation_stays_where_it_began(lens: Lens) -> None:
    servers = [Faulty(), Faulty()]
    with engine_on(lens, *servers) as engine:
        for i in range(8):
            history, homes = [user(f"subject {i}")], []
            for turn in range(4):
                before = [len(server.asked) for server in servers]
                answer(engine, history)
                homes.append([len(server.asked) - n for server, n in zip(servers, before, strict=True)])
                history += [Message.of("assistant", TEXT), user(f"more {turn}")]
            assert homes == homes[:1] * 4
        assert all(server.asked for server in servers), "and not all of them in one place"


# -- servers that are not what was meant --------------------------------------------------------


def opened(lens: Lens, url: str, **settings: Any) -> VllmEngine:
    return VllmEngine(lens, EngineConfig(kind="vllm", url=url, connect_seconds=0.5, **settings), model=MODEL)


def test_a_server_that_is_down_is_said_at_once(lens: Lens) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
    with pytest.raises(EngineDown, match=f"cannot be reached: connection refused .{url}"):
        opened(lens, url)
    with served(Faulty()) as (good,), opened(lens, f"{url},{good}/v1") as engine:
        assert [replica.down for replica in engine.replicas.all] == [True, False]
        assert answer(engine, [user("x")])[0] == TEXT


def test_a_server_that_speaks_something_else(lens: Lens) -> None:
    with socket.create_server(("127.0.0.1", 0)) as bound:

        def greet() -> None:
            while True:
                try:
                    connection, _ = bound.accept()
                except OSError:
                    return
                connection.sendall(b"SSH-2.0-OpenSSH\r\n")
                connection.close()

        threading.Thread(target=greet, daemon=True).start()
        with pytest.raises(EngineDown, match="does not speak HTTP|broke the connection off"):
            opened(lens, f"http://127.0.0.1:{bound.getsockname()[1]}")
        bound.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("broken", "kind", "words"),
    [
        ("page", UsageError, "no JSON came back"),
        ("404 not here", UsageError, r"no vLLM server that we know \(404\)"),
        ("401 who are you", UsageError, f"wants a key.*{KEY}"),
        ("500 oh", EngineDown, r"failed \(500\): 500 oh"),
    ],
)
def test_a_server_of_another_protocol(lens: Lens, server: Faulty, broken: str, kind: type[Exception], words: str) -> None:
    server.broken = broken
    with served(server) as (url,), pytest.raises(kind, match=words):
        opened(lens, url)


def test_a_server_of_another_model_tokenizer_or_template(lens: Lens) -> None:
    other, template, tokenizer = Faulty(), Faulty(), Faulty()
    other.model = "someone-elses"
    template.tokenizer.chat_template = template.tokenizer.chat_template.replace("<|im_end|>", "\n")
    tokenizer.tokenizer.add_tokens(["lemon", "ok"])
    for wrong, words in ((other, f"serves someone-elses, this workspace's graft is {MODEL}"), (template, "chat template"), (tokenizer, "tokenizer")):
        with served(wrong) as (url,), pytest.raises(UsageError, match=words):
            opened(lens, url)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no server"),
        ("localhost:8000", "not an address"),
        ("ftp://a", "not an address"),
        ("http://a:b", "not an address"),
        ("http://a,http://a/", "twice"),
    ],
)
def test_addresses(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        addresses(text)
    assert addresses(" http://a:1/v1/, https://b ") == ["http://a:1", "https://b"]


def test_a_key_is_sent(lens: Lens, server: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "open sesame")
    with engine_on(lens, server) as engine:
        assert engine.replicas.all[0].server._headers["Authorization"] == "Bearer open sesame"
        answer(engine, [user("x")])
    assert "sesame" not in json.dumps(server.asked)


def test_a_closed_engine_ends_what_it_says(lens: Lens, server: Faulty, tmp_path: Path) -> None:
    server.fault = "hangs"
    with engine_on(lens, server) as engine:
        stream = engine.chat([user("x")])
        next(stream)
        engine.close()
        assert list(stream) == []
        eventually(lambda: server.working == 0)
