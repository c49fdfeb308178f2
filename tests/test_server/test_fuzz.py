"""No body, path or header makes a 5xx, a trace or a hang."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from pinhole.server.app import create_app
from pinhole.server.chat import ROLES
from pinhole.server.edge import parse_object
from toy_server import Scripted

PROFILE = settings(
    max_examples=250, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)

words = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["", "\ud800", "#2", "[#1 x](item:y)", "data:image/png;base64,AAAA", "http://127.0.0.1/", "\x00", "<|im_end|>"]),
)
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), words)
anything = st.recursive(scalars, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=3)), max_leaves=8)
part = st.one_of(
    anything,
    st.fixed_dictionaries(
        {"type": st.sampled_from(["text", "image_url", "item", "refusal", "file"])},
        optional={"text": anything, "image_url": anything, "id": anything},
    ),
    st.fixed_dictionaries({"type": st.just("image_url"), "image_url": st.fixed_dictionaries({"url": words})}),
    st.fixed_dictionaries({"type": st.just("item"), "id": words}),
)
content = st.one_of(anything, words, st.lists(part, max_size=4))
message = st.one_of(
    anything, st.fixed_dictionaries({"role": st.sampled_from([*ROLES, "x"])}, optional={"content": content, "tool_calls": anything, "name": anything})
)
ask = st.fixed_dictionaries({"role": st.just("user")}, optional={"content": content})
conversation = st.lists(message, max_size=2).flatmap(lambda before: ask.map(lambda last: [*before, last]))
others = ("model", "stream", "n", "seed", "tools", "tool_choice", "max_tokens", "temperature", "stream_options", "stop", "user")
body = st.fixed_dictionaries(
    {},
    optional={"messages": st.one_of(anything, st.lists(message, max_size=4), conversation), **dict.fromkeys(others, anything)},
)


def post(web: TestClient, body: Any) -> Any:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return web.post("/v1/chat/completions", content=raw, headers={"Content-Type": "application/json"})


def check(response: Any) -> None:
    assert response.status_code in (200, 400, 404, 413), response.text
    assert "Traceback" not in response.text and "server_error" not in response.text
    if response.status_code != 200:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_bodies(catalogue: Any) -> None:
    with TestClient(create_app(Scripted(), catalogue)) as web:

        @PROFILE
        @given(body)
        def bodies(value: Any) -> None:
            check(post(web, value))

        @PROFILE
        @given(st.binary(max_size=200))
        def raws(value: bytes) -> None:
            check(post(web, value))

        bodies()
        raws()


def test_paths(catalogue: Any) -> None:
    with TestClient(create_app(Scripted(), catalogue)) as web:

        @PROFILE
        @given(
            st.lists(
                st.sampled_from(
                    ["items", "image", "..", "%2e%2e", "%00", "%ff", "v1", "models", "web", "fruit%2Flime", "é", "%", "?size=", "a" * 300]
                ),
                max_size=6,
            )
        )
        def paths(parts: list[str]) -> None:
            response = web.get("/" + "/".join(parts))
            assert response.status_code in (200, 400, 404, 405), response.text

        paths()


@PROFILE
@given(anything)
def test_what_is_parsed_can_be_encoded(value: Any) -> None:
    """Lone surrogates, which JSON can spell and no encoder takes, are gone."""
    json.dumps(parse_object(json.dumps({"x": value}).encode()), ensure_ascii=False).encode()
