"""Whole turns through everything that is real: the client, the socket, the loop, the engine, a tiny trained model."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from starlette.testclient import TestClient

from pinhole.assistant.loop import Assistant
from pinhole.config import AssistantConfig
from pinhole.server.app import create_app, running
from test_server.test_fuzz import PROFILE, body, check, post
from toy_server import paint, until

FIRST = [{"role": "user", "content": "fruit, please"}]


@pytest.fixture(scope="module")
def client(toy: Any, catalogue: Any) -> Iterator[openai.OpenAI]:
    with running(create_app(toy, catalogue)) as address:
        yield openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=60)


def ask(client: openai.OpenAI, messages: list[Any], **settings: Any) -> Any:
    return client.chat.completions.create(model="pinhole", messages=messages, **settings).choices[0].message


def shown(message: Any) -> dict[int, str]:
    return {item["k"]: item["id"] for item in message.pinhole["items"]}


def test_a_reference_in_the_next_turn(client: openai.OpenAI, toy: Any) -> None:
    first = ask(client, FIRST)
    assert first.content.startswith("Here: [#1 a red apple](item:fruit%2Fapple) and [#2 a blue blueberry](item:fruit%2Fblueberry).")
    assert shown(first) == {1: "fruit/apple", 2: "fruit/blueberry", 3: "fruit/lemon"}
    messages = [*FIRST, first, {"role": "user", "content": "more like #2"}]
    second = ask(client, messages)
    assert second.pinhole["calls"][0]["name"] == "related" and second.pinhole["calls"][0]["arguments"] == {"item": "#2"}
    assert shown(second) == {4: "fruit/lime", 5: "fruit/orange", 6: "fruit/plum"} and "[#4 a green lime](item:fruit%2Flime)" in second.content
    assert second.pinhole["usage"]["cached_tokens"] > 0
    plain = [*FIRST, {"role": "assistant", "content": first.content}, messages[-1]]  # a client that keeps only the text
    toy._memory._kept.clear()  # and a server that was started anew
    assert shown(ask(client, plain)) == shown(second)


def test_a_stream_says_the_same(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="pinhole", messages=FIRST, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ask(client, FIRST).content


def test_many_at_once(client: openai.OpenAI, catalogue: Any, toy: Any) -> None:
    import asyncio

    async def all_of_them() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=client.base_url, api_key="none", timeout=60) as many:
            return await asyncio.gather(*(many.chat.completions.create(model="pinhole", messages=FIRST) for _ in range(12)))

    answers = asyncio.run(all_of_them())
    assert {answer.choices[0].message.content for answer in answers} == {ask(client, FIRST).content}


def test_pictures_and_items_are_sent(client: openai.OpenAI) -> None:
    url = "data:image/png;base64," + base64.b64encode(paint("red")).decode()
    parts = [{"type": "text", "text": "hello"}, {"type": "image_url", "image_url": {"url": url}}, {"type": "item", "id": "fruit/lime"}]
    assert ask(client, [{"role": "user", "content": parts}], max_tokens=4).content


@pytest.mark.parametrize(
    ("part", "status", "words"),
    [
        ({"type": "item", "id": "fruit/lemmon"}, 404, "nearest: fruit/lemon"),
        ({"type": "image_url", "image_url": {"url": "http://127.0.0.1:22/"}}, 400, "not fetched"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}, 400, "not an image"),
        ({"type": "image_url", "image_url": {"url": "data:image/svg+xml;base64," + base64.b64encode(b"<svg/>").decode()}}, 400, "SVG"),
        ({"type": "video"}, 400, "unknown form"),
        ({"type": "text", "text": "long " * 30_000}, 400, "tokens"),
    ],
)
def test_what_cannot_be_answered(client: openai.OpenAI, part: Any, status: int, words: str) -> None:
    for stream in (False, True):
        with pytest.raises(openai.APIStatusError, match=words) as caught:
            ask(client, [{"role": "user", "content": [part]}]) if not stream else list(
                client.chat.completions.create(model="pinhole", messages=[{"role": "user", "content": [part]}], stream=True)
            )
        assert caught.value.status_code == status


def test_the_clients_own_tool(client: openai.OpenAI) -> None:
    size = {"type": "string", "enum": ["small", "large"]}
    tool = {
        "type": "function",
        "function": {"name": "buy", "description": "buy it", "parameters": {"type": "object", "properties": {"size": size}, "required": ["size"]}},
    }
    choice = {"type": "function", "function": {"name": "buy"}}
    called = ask(client, FIRST, tools=[tool], tool_choice=choice)
    arguments = json.loads(called.tool_calls[0].function.arguments)
    assert called.tool_calls[0].function.name == "buy" and arguments["size"] in ("small", "large")
    answer = {"role": "tool", "tool_call_id": called.tool_calls[0].id, "content": "sold"}
    assert ask(client, [*FIRST, called, answer], tools=[tool], tool_choice="none", max_tokens=4).content
    with pytest.raises(openai.BadRequestError, match="built-in"):
        ask(client, FIRST, tools=[{"type": "function", "function": {"name": "search"}}])


def test_leaving_frees_the_engine(client: openai.OpenAI, toy: Any) -> None:
    for _ in range(4):
        stream = client.chat.completions.create(model="pinhole", messages=FIRST, stream=True)
        next(iter(stream))
        stream.close()
    assert until(lambda: len(toy.engine._queue) == 0)
    assert ask(client, FIRST).content


def test_no_body_makes_an_error_of_ours(toy: Any, catalogue: Any) -> None:
    short = Assistant(toy.engine, toy.toolbox, toy.shop, AssistantConfig(max_tokens=4, max_steps=1))
    with TestClient(create_app(short, catalogue)) as web:

        @settings(PROFILE, max_examples=80)
        @given(body)
        def bodies(value: Any) -> None:
            check(post(web, value))

        bodies()
