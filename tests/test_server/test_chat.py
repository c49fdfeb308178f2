"""The chat endpoint, spoken to by the real `openai` client over a real socket."""

from __future__ import annotations

import http.client
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest

from pinhole.assistant.loop import Finished, Problem, Started, Text
from pinhole.config import Config
from pinhole.engines.base import Call, Usage
from pinhole.errors import PromptTooLong, UnknownItem
from pinhole.server.app import create_app, running
from toy_server import Scripted, endless, fruit, until

ASK = [{"role": "user", "content": "fruit, please"}]


def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=60)


def serving(catalogue: Any, assistant: Scripted, **serve: Any) -> Any:
    return running(create_app(assistant, catalogue, config=Config.model_validate({"serve": serve})))


@pytest.fixture(scope="module")
def address(catalogue: Any) -> Iterator[str]:
    with serving(catalogue, Scripted()) as address:
        yield address


# -- the two forms ----------------------------------------------------------------------------------


def test_whole_answer(address: str) -> None:
    done = client(address).chat.completions.create(model="pinhole", messages=ASK)
    message = done.choices[0].message
    assert message.role == "assistant" and done.choices[0].finish_reason == "stop"
    assert "[#1 a yellow lemon](item:fruit%2Flemon)" in message.content and "item:fruit%2Fapple" in message.content
    assert (done.usage.prompt_tokens, done.usage.completion_tokens, done.usage.prompt_tokens_details.cached_tokens) == (100, 12, 80)
    told = message.model_extra["pinhole"]
    assert told["calls"][0]["name"] == "search" and told["calls"][0]["arguments"] == {"text": "fruit"} and told["calls"][0]["items"] == 3
    assert told["calls"][0]["seconds"] >= 0 and told["usage"]["first_token_s"] == 0.02 and told["problems"] == []
    assert told["items"][1] == {
        "id": "fruit/lime", "k": 2, "title": "a green lime", "score": 0.5, "url": "/items/fruit%2Flime", "image": "/items/fruit%2Flime/image",
    }  # fmt: skip


def test_stream_says_the_same(address: str) -> None:
    whole = client(address).chat.completions.create(model="pinhole", messages=ASK)
    chunks = list(client(address).chat.completions.create(model="pinhole", messages=ASK, stream=True, stream_options={"include_usage": True}))
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content
    assert deltas[0].role == "assistant" and len({chunk.id for chunk in chunks}) == 1
    events = [delta.model_extra["pinhole"] for delta in deltas if delta.model_extra.get("pinhole")]
    assert [event["type"] for event in events] == ["call", "items", "finished"]
    assert events[1]["items"] == whole.choices[0].message.model_extra["pinhole"]["items"]
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage.total_tokens == 112 and chunks[-1].choices == []


def test_answer_can_be_sent_back(address: str) -> None:
    """Clients append the message object itself, with every extra field."""
    first = client(address).chat.completions.create(model="pinhole", messages=ASK).choices[0].message
    again = client(address).chat.completions.create(model="pinhole", messages=[*ASK, first, {"role": "user", "content": "more like #2"}])
    assert again.choices[0].message.content


def test_models(address: str) -> None:
    assert [model.id for model in client(address).models.list()] == ["pinhole"]
    assert client(address).models.retrieve("pinhole").owned_by == "pinhole"
    with pytest.raises(openai.NotFoundError, match="no model 'gpt'"):
        client(address).models.retrieve("gpt")


def test_async_client(address: str) -> None:
    import asyncio

    async def ask() -> int:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none") as asking:
            answers = await asyncio.gather(*(asking.chat.completions.create(model="pinhole", messages=ASK) for _ in range(8)))
        return len({answer.id for answer in answers})

    assert asyncio.run(ask()) == 8


def test_client_tool_calls(catalogue: Any) -> None:
    def script(*_: Any) -> Iterator[Any]:
        yield Finished("", Usage(1, 0, 1, 0.1, 0.1), [Call("buy", {"item": "#1"}, "")], "calls")

    with serving(catalogue, Scripted(script)) as address:
        choice = client(address).chat.completions.create(model="pinhole", messages=ASK).choices[0]
        assert choice.finish_reason == "tool_calls" and json.loads(choice.message.tool_calls[0].function.arguments) == {"item": "#1"}
        chunks = list(client(address).chat.completions.create(model="pinhole", messages=ASK, stream=True))
        calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
        assert calls[0].function.name == "buy" and chunks[-1].choices[0].finish_reason == "tool_calls"


# -- what goes wrong --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"messages": []}, "at least one message"),
        ({}, "at least one message"),
        ({"messages": "hi"}, "at least one message"),
        ({"messages": [1]}, r"messages\[0\]"),
        ({"messages": [{"role": "king", "content": "x"}]}, r"messages\[0\].role"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\].content"),
        ({"messages": [{"role": "user", "content": 7}]}, r"messages\[0\].content"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, r"content\[0\]"),
        ({"messages": [{"role": "user", "content": "  \n"}]}, "is empty"),
        ({"messages": [{"role": "user", "content": []}]}, "is empty"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": " "}]}]}, "is empty"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "nothing to answer"),
        ({"messages": ASK, "stream": "yes"}, "`stream`"),
        ({"messages": ASK, "n": 2}, "`n`"),
        ({"messages": ASK, "temperature": "hot"}, "`temperature`"),
        ({"messages": ASK, "temperature": 9}, "`temperature`"),
        ({"messages": ASK, "max_tokens": 0}, "`max_tokens`"),
        ({"messages": ASK, "max_tokens": True}, "`max_tokens`"),
        ({"messages": ASK, "seed": "x"}, "`seed`"),
        ({"messages": ASK, "model": 5}, "`model`"),
        ({"messages": ASK, "tools": [{}]}, r"tools\[0\]"),
        ({"messages": ASK, "tool_choice": "buy"}, "`tool_choice`"),
        ({"messages": ASK, "tool_choice": {"type": "function", "function": {"name": "buy"}}}, "`tool_choice`"),
        ({"messages": ASK, "stream_options": []}, "`stream_options`"),
    ],
)
def test_bad_fields_are_named(address: str, body: dict[str, Any], words: str) -> None:
    with pytest.raises(openai.BadRequestError, match=words) as caught:
        client(address).post("/chat/completions", body=body, cast_to=object)
    assert caught.value.body["type"] == "invalid_request_error"


def test_unknown_model(address: str) -> None:
    with pytest.raises(openai.NotFoundError, match="use 'pinhole'"):
        client(address).chat.completions.create(model="gpt-9", messages=ASK)


def post(address: str, body: Any, **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json", **headers})
    return connection.getresponse()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"x"',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 3000 + b"1" + b"}" * 3000,
        b'{"messages": NaN}',
        b'{"seed": ' + b"9" * 6000 + b"}",
    ],
)
def test_what_is_no_json(address: str, body: bytes) -> None:
    response = post(address, body)
    error = json.loads(response.read())["error"]
    assert response.status == 400 and error["type"] == "invalid_request_error" and "Traceback" not in error["message"]


def test_other_content_types_are_refused(address: str) -> None:
    """A page of another site can send text/plain without asking; JSON it cannot."""
    assert post(address, b"{}", **{"Content-Type": "text/plain"}).status == 415


def test_other_paths_and_methods(address: str) -> None:
    for method, path, status in (("GET", "/v1/chat/completions", 405), ("GET", "/nothing", 404), ("POST", "/", 405), ("GET", "/web/../app.py", 404)):
        connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
        connection.request(method, path)
        response = connection.getresponse()
        assert response.status == status and json.loads(response.read())["error"]["code"] == f"http_{status}"


def test_too_large_is_told(catalogue: Any) -> None:
    large = [{"role": "user", "content": "x" * 10_000_000}]
    assistant = Scripted()
    with serving(catalogue, assistant) as address:
        with pytest.raises(openai.APIStatusError, match="larger than 8,000,000 bytes") as caught:
            client(address).chat.completions.create(model="pinhole", messages=large)
        assert caught.value.status_code == 413 and not assistant.stopped.is_set()
        # without a length to go by: counted while it comes
        body = json.dumps({"messages": large}).encode()
        chunks = (body[i : i + 65536] for i in range(0, 10_000_050, 65536))
        response = post(address, chunks)
        assert response.status == 413 and json.loads(response.read())["error"]["code"] == "too_large"


def test_too_large_is_not_read(catalogue: Any) -> None:
    """A declared length is enough: the answer comes though the body never does."""
    with serving(catalogue, Scripted()) as address, socket.create_connection(urlsplit(address).netloc.split(":"), timeout=5) as raw:
        raw.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n")
        assert raw.recv(1000).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(("error", "status"), [(UnknownItem("no item `x`"), 404), (PromptTooLong("9,000 tokens of 8,192"), 400)])
@pytest.mark.parametrize("stream", [True, False])
def test_errors_at_once_have_their_status(catalogue: Any, error: Exception, status: int, stream: bool) -> None:
    def script(*_: Any) -> Iterator[Any]:
        raise error
        yield

    with serving(catalogue, Scripted(script)) as address, pytest.raises(openai.APIStatusError, match=str(error)) as caught:
        client(address).chat.completions.create(model="pinhole", messages=ASK, stream=stream)
    assert caught.value.status_code == status


def test_errors_later_end_the_stream(catalogue: Any, caplog: pytest.LogCaptureFixture) -> None:
    secret = " ".join(["secret", "words"])

    def script(*_: Any) -> Iterator[Any]:
        yield Text("well ")
        raise ValueError(secret)

    with serving(catalogue, Scripted(script)) as address:
        with pytest.raises(openai.APIError, match="something went wrong in the server"):
            list(client(address).chat.completions.create(model="pinhole", messages=ASK, stream=True))
        with pytest.raises(openai.InternalServerError, match="something went wrong in the server"):
            client(address).chat.completions.create(model="pinhole", messages=ASK)
    assert "ValueError" in caplog.text and secret not in caplog.text


def test_problems_are_told(catalogue: Any) -> None:
    def script(*_: Any) -> Iterator[Any]:
        yield Started("search", {"like": "#9"})
        yield Problem("there is no #9")
        yield Finished("Sorry.", Usage(1, 0, 1, 0.1, 0.1), [])

    with serving(catalogue, Scripted(script)) as address:
        told = client(address).chat.completions.create(model="pinhole", messages=ASK).choices[0].message.model_extra["pinhole"]
    assert told["problems"] == ["there is no #9"] and told["calls"][0]["items"] == 0 and told["calls"][0]["seconds"] is not None


def test_logs_hold_no_contents(catalogue: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), serving(catalogue, Scripted()) as address:
        client(address).chat.completions.create(model="pinhole", messages=[{"role": "user", "content": "my secret wish"}])
    ours = [record.getMessage() for record in caplog.records if record.name.startswith(("pinhole", "uvicorn"))]
    assert any("POST /v1/chat/completions 200" in line for line in ours) and not any("secret" in line or "lemon" in line for line in ours)


# -- many at once -----------------------------------------------------------------------------------


def test_leaving_stops_the_turn(catalogue: Any) -> None:
    assistant = Scripted(endless)
    with serving(catalogue, assistant, queue=1) as address:
        stream = client(address).chat.completions.create(model="pinhole", messages=ASK, stream=True)
        for _, _chunk in zip(range(5), stream, strict=False):
            pass
        with pytest.raises(openai.APIStatusError, match="waiting already") as caught:  # the only place is taken
            client(address).chat.completions.create(model="pinhole", messages=ASK)
        assert caught.value.status_code == 503 and int(caught.value.response.headers["retry-after"]) >= 1
        stream.close()
        assert assistant.stopped.wait(15) and until(lambda: assistant.inside == 0)
        assistant.script = fruit
        assert until(lambda: health(address)["turns"] == 0)
        assert client(address).chat.completions.create(model="pinhole", messages=ASK).choices  # and free again


def test_leaving_stops_an_unstreamed_turn(catalogue: Any) -> None:
    assistant = Scripted(endless)
    with serving(catalogue, assistant) as address:
        with pytest.raises(openai.APITimeoutError):
            client(address).with_options(timeout=0.5).chat.completions.create(model="pinhole", messages=ASK)
        assert assistant.stopped.wait(15)


def health(address: str) -> Any:
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=5)
    connection.request("GET", "/healthz")
    return json.loads(connection.getresponse().read())


def test_a_slow_turn_blocks_nobody(catalogue: Any) -> None:
    free = threading.Event()

    def script(conversation: Any, cancelled: Any) -> Iterator[Any]:
        free.wait(10)
        yield from fruit(conversation, cancelled)

    with serving(catalogue, Scripted(script)) as address:
        answers: list[Any] = []
        asking = [
            threading.Thread(target=lambda: answers.append(client(address).chat.completions.create(model="pinhole", messages=ASK))) for _ in range(6)
        ]
        for thread in asking:
            thread.start()
        assert until(lambda: health(address)["turns"] == 6)
        started = time.monotonic()
        assert health(address)["status"] == "ok" and time.monotonic() - started < 1
        free.set()
        for thread in asking:
            thread.join(10)
    assert len(answers) == 6


def test_shutdown_lets_an_answer_finish(catalogue: Any) -> None:
    def script(*_: Any) -> Iterator[Any]:
        yield Text("one ")
        time.sleep(0.7)
        yield Text("two")
        yield Finished("one two", Usage(1, 0, 2, 0.1, 0.1), [])

    words: list[str] = []
    with serving(catalogue, Scripted(script)) as address:
        stream = client(address).chat.completions.create(model="pinhole", messages=ASK, stream=True)
        words.append(next(iter(stream)).choices[0].delta.content)
        reader = threading.Thread(target=lambda: words.extend(chunk.choices[0].delta.content or "" for chunk in stream))
        reader.start()
    reader.join(5)
    assert "".join(words) == "one two"


def test_shutdown_ends_an_endless_answer(catalogue: Any, caplog: pytest.LogCaptureFixture) -> None:
    assistant = Scripted(endless)
    caught: list[BaseException] = []

    def read(stream: Any) -> None:
        try:
            list(stream)
        except openai.APIError as error:
            caught.append(error)

    with running(create_app(assistant, catalogue), grace=1) as address:
        stream = client(address).chat.completions.create(model="pinhole", messages=ASK, stream=True)
        next(iter(stream))
        reader = threading.Thread(target=read, args=(stream,))
        reader.start()
        started = time.monotonic()
    assert time.monotonic() - started < 15 and until(lambda: assistant.inside == 0)
    reader.join(10)
    assert "shutting down" in str(caught[0]) and "Traceback" not in caplog.text and "Cancelled" not in caplog.text
