"""Whatever the model prefers, what comes out is text or one valid call."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from pinhole.engines.grammar import STRING, Vocabulary, call_schema
from pinhole.errors import UsageError
from pinhole.graft.prompt import call_text, parse_call
from toy_model import TOOLS, function, tiny_tokenizer


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    tokenizer = tiny_tokenizer()
    return Vocabulary(tokenizer, len(tokenizer) + 5, [tokenizer.eos_token_id])


def accepts(vocabulary: Vocabulary, text: str, tools: Any = TOOLS, tool_choice: str = "auto") -> bool:
    """Can the model say exactly this?"""
    grammar = vocabulary.grammar(tools, tool_choice)
    tokens = vocabulary.tokens.tokenize_str(text)
    if not grammar.first[tokens[0]]:
        return False
    guide = grammar.call(tokens[0])
    if guide is None:
        return True
    for token in tokens[1:]:
        if not guide.allowed()[token]:
            return False
        guide.consume(token)
    return guide.complete


@pytest.mark.parametrize(
    "text",
    [
        '{"tool":"search","text":" winter"}',
        '{"tool":"search","text":" winter","like":"#2"}',
        '{"tool":"search","text":"#2 and such"}',
        '{"tool":"search","like":"#12","unlike":"#999"}',
        '{"tool":"search","text":" café \\"中文\\""}',
        '{"tool":"related","item":"#1"}',
        '{"tool":"board","title":" "}',
        "I found 6 pictures: #1 shows a lemon.",
        'a {"tool"',
    ],
)
def test_what_may_be_said(vocabulary: Vocabulary, text: str) -> None:
    assert accepts(vocabulary, text)


@pytest.mark.parametrize(
    "text",
    [
        '{"tool":"delete","item":"#1"}',
        '{"tool":"related"}',
        '{"tool":"related","item":"2"}',
        '{"tool":"related","item":"#1234"}',
        '{"tool":"search","like":"#2","text":" the order is the schema\'s"}',
        '{"tool":"search","colour":"red"}',
        '{"tool": "search"}',
        '{"tool":"search","text":" ' + "x" * (STRING + 1) + '"}',
        '{"tool":"search","text":"winter"}',
        '{"tool":"board","title":" a\nb"}',
        ' {"tool":"search"}',
        "\n\n{",
        "{ hello",
        '{"tool":"search"}}',
    ],
)
def test_what_may_not(vocabulary: Vocabulary, text: str) -> None:
    assert not accepts(vocabulary, text)


def test_tool_choice(vocabulary: Vocabulary) -> None:
    call, other, words = '{"tool":"search","text":" sea"}', '{"tool":"board","title":" sea"}', "a sea"
    assert [accepts(vocabulary, text, tool_choice="none") for text in (call, words)] == [False, True]
    assert [accepts(vocabulary, text, tool_choice="required") for text in (call, other, words)] == [True, True, False]
    assert [accepts(vocabulary, text, tool_choice="board") for text in (call, other, words)] == [False, True, False]
    assert accepts(vocabulary, '{"any": "json"}', tools=())


def test_special_tokens_are_never_said(vocabulary: Vocabulary) -> None:
    start = vocabulary.tokens.tokenize_str("<|im_start|>", parse_special=True)
    assert len(start) == 1
    grammar = vocabulary.grammar(TOOLS)
    assert not grammar.first[start[0]] and not grammar.later[start[0]]
    assert not grammar.later[-5:].any(), "rows of the embedding that are no token"


CLIENT = function(
    "ship",
    "send things",
    ("to", "what", "when"),
    to={"type": "string", "minLength": 3},
    what={
        "type": "array",
        "items": {
            "type": "object",
            "properties": {"name": TOOLS[0]["parameters"]["properties"]["text"], "n": {"type": "integer"}},
            "required": ["n"],
        },
    },
    when={"enum": ["now", "later"]},
    weight={"type": "number"},
)


@pytest.mark.parametrize("seed", range(12))
def test_a_call_cut_anywhere_is_closed_to_a_valid_one(vocabulary: Vocabulary, seed: int) -> None:
    tools = [*TOOLS, CLIENT]
    schemas = {tool["name"]: tool["parameters"] for tool in tools}
    rng = np.random.default_rng(seed)
    grammar = vocabulary.grammar(tools, "required")
    guide = grammar.call(int(rng.choice(np.flatnonzero(grammar.first))))
    assert guide is not None
    for _ in range(int(rng.integers(0, 30))):
        if guide.complete:
            break
        guide.consume(int(rng.choice(np.flatnonzero(guide.allowed()))))
        guide.forced()
    assert guide.close()
    name, arguments = parse_call(guide.text) or ("", {})
    assert set(schemas[name]["required"]) <= set(arguments) <= set(schemas[name]["properties"])
    assert call_text(name, arguments).encode()
    assert json.loads(guide.text)["tool"] == name


def test_the_same_tools_share_a_grammar(vocabulary: Vocabulary) -> None:
    assert vocabulary.grammar(TOOLS) is vocabulary.grammar([dict(tool) for tool in TOOLS])
    assert vocabulary.grammar(TOOLS) is not vocabulary.grammar(TOOLS[:2])


def test_descriptions_do_not_reach_the_grammar() -> None:
    tool = function("t", "about", text={"type": "string", "description": "words"})
    assert "words" not in json.dumps(call_schema([tool]))


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def walk(vocabulary: Vocabulary, schema: Any) -> bool:
    """Begin a call with such an argument, at random, and close it."""
    rng = np.random.default_rng(0)
    grammar = vocabulary.grammar([*TOOLS, function("t", "", ("a",), a=schema)], "t")
    guide = grammar.call(int(grammar.first.argmax()))
    assert guide is not None
    for _ in range(8):
        if not guide.complete:
            guide.consume(int(rng.choice(np.flatnonzero(guide.allowed()))))
            guide.forced()
    return guide.close()


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "(((a{0,100}){0,100}){0,100}){0,100}"},
        {"type": "string", "pattern": "(a|b)*a(a|b){40}"},
        {"type": "string", "minLength": 100_000, "maxLength": 100_001},
        {"type": "array", "items": {"type": "string"}, "minItems": 5000},
        {"anyOf": [{"type": "object", "properties": {f"k{i}": {"type": "integer"}}} for i in range(500)]},
        {"$ref": "#"},
        {"enum": [f"value {i}" for i in range(4000)]},
        {},
        True,
    ],
)
def test_a_hostile_schema_is_refused_or_served(vocabulary: Vocabulary, schema: Any) -> None:
    """Never a hang, never another error."""
    try:
        assert walk(vocabulary, schema) in (True, False)
    except UsageError as error:
        assert "schema" in str(error) or "grammar" in str(error)


@pytest.mark.parametrize(
    ("tools", "words"),
    [
        ([function("t", "", tool={"type": "string"})], "cannot be called `tool`"),
        ([function("t", "", a={"type": "no such type"})], "tool t"),
        ([*TOOLS, function("t", "", a={"type": "string", "pattern": "(?<=x)y("})], "tool t"),
        ([*TOOLS, TOOLS[0]], "two tools"),
        ([function("t", "", a={"enum": ["x" * 90_000, "y" * 90_000]})], "characters"),
        ([function("t", "", a={"type": "object", "anyOf": 3})], "tool t"),
        ([{"name": "t", "parameters": {"properties": 3}}], "tool t"),
        ([{"name": "t", "parameters": {"properties": {"a": {}}, "required": 3}}], "tool t"),
        ([function("t", "", a=deep(2000))], "no.* JSON schema"),
    ],
)
def test_tools_without_a_grammar_are_named(vocabulary: Vocabulary, tools: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        vocabulary.grammar(tools)


def test_an_unknown_choice_is_named(vocabulary: Vocabulary) -> None:
    with pytest.raises(UsageError, match="names no tool"):
        vocabulary.grammar(TOOLS, "delete")
    with pytest.raises(UsageError, match="names no tool"):
        vocabulary.grammar((), "required")


@pytest.mark.parametrize(("code", "allowed"), [("US", True), ("U", False), ("USA", False), ("#1", True), ("#12", False)])
def test_the_space_takes_nothing_of_a_string_s_length(vocabulary: Vocabulary, code: str, allowed: bool) -> None:
    parameters = {"properties": {"country": {"type": "string", "minLength": 2, "maxLength": 2}}, "required": ["country"]}
    tool = {"name": "ship", "description": "", "parameters": {"type": "object", **parameters}}
    assert accepts(vocabulary, call_text("ship", {"country": code}), [tool]) is allowed


def test_choices_are_said_behind_a_space(vocabulary: Vocabulary) -> None:
    parameters = {"properties": {"to": {"type": "string", "enum": ["oak", "#1"]}, "all": {"const": "yes"}}, "required": ["to", "all"]}
    tool = {"name": "frame", "description": "", "parameters": {"type": "object", **parameters}}
    assert all(accepts(vocabulary, call_text("frame", {"to": to, "all": "yes"}), [tool]) for to in ("oak", "#1"))
    assert not accepts(vocabulary, '{"tool":"frame","to":"oak","all":" yes"}', [tool])
