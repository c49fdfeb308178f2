"""What the model may say next, so that an answer is free text or one well-formed call, by construction.

The first token decides: one that begins with ``{`` begins a call, and from there every token is
constrained to the offered tools' schemas (llguidance: Willard & Louf 2023's idea on an Earley parser); any other
begins text, which is free. A call that runs out of tokens is closed by the grammar itself. Knows
nothing of what tools do.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pinhole.errors import UsageError
from pinhole.graft.prompt import ToolSchema, spaced

STRING = 100  # characters of a string argument, where its schema sets no limit
ITEMS = 16  # elements of a list argument, where its schema sets no limit
CLOSING = 600  # tokens that closing a call may take before it is given up
SCHEMA_BYTES = 100_000
# Tried in this order when a call must end: a quote ends a string, a brace an object, a bracket a list.
CLOSERS = ('"', "}", "]", "0", ",", ":")


def call_schema(tools: Sequence[ToolSchema]) -> dict[str, Any]:
    """One JSON schema for a call in the short form: the tool's name, its arguments beside it in schema order."""
    layout = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":", "json_allowed_escapes": 'nt"\\'}
    calls = []
    for tool in tools:
        try:
            calls.append(_call(tool))
        except (TypeError, AttributeError, ValueError, KeyError, RecursionError) as error:
            raise UsageError(f"its parameters are no JSON schema: {error}", where=f"tool {tool['name']}") from None
    return {"x-guidance": layout, "anyOf": calls}


def _call(tool: ToolSchema) -> dict[str, Any]:
    parameters = tool.get("parameters") or {}
    properties = parameters.get("properties") or {}
    if "tool" in properties:
        raise UsageError("a parameter cannot be called `tool`", where=f"tool {tool['name']}", fix="rename it")
    schema = {
        "type": "object",
        "properties": {"tool": {"const": tool["name"]}, **{name: _spaced(_bounded(value)) for name, value in properties.items()}},
        "required": ["tool", *(name for name in parameters.get("required") or () if name in properties)],
        "additionalProperties": False,
    }
    return schema | {key: parameters[key] for key in ("$defs", "definitions") if key in parameters}


def _spaced(schema: Any) -> Any:
    """An argument as :func:`~pinhole.graft.prompt.call_text` writes it: choices, and words of the length that is allowed, behind a space."""
    if not isinstance(schema, Mapping):
        return schema
    if isinstance(schema.get("enum"), list):
        return {**schema, "enum": [spaced(value) for value in schema["enum"]]}
    if "const" in schema:
        return {**schema, "const": spaced(schema["const"])}
    if schema.get("type") == "string" and not {"pattern", "format"} & set(schema):
        least, most = schema.get("minLength", 0), schema["maxLength"]
        plain = {key: value for key, value in schema.items() if key not in ("minLength", "maxLength")}
        words, mark = f" (?s:.){{{least},{most}}}", f"#(?s:.){{{max(0, least - 1)},{most - 1}}}"
        return {**plain, "pattern": f"^({words}|{mark})$" if most else "^ $"}
    return schema


def _bounded(schema: Any) -> Any:
    """The schema with a limit on every string and list, so that no argument can go on for ever."""
    if not isinstance(schema, Mapping):
        return schema
    bounded = {key: _nested(key, value) for key, value in schema.items() if key not in ("description", "title", "default", "examples")}
    if bounded.get("type") == "string" and not {"enum", "const", "pattern", "format"} & set(bounded):
        bounded.setdefault("maxLength", max(STRING, bounded.get("minLength", 0)))
    if bounded.get("type") == "array":
        bounded.setdefault("maxItems", max(ITEMS, bounded.get("minItems", 0)))
    return bounded


def _nested(key: str, value: Any) -> Any:
    if key in ("items", "additionalProperties"):
        return _bounded(value)
    if key in ("anyOf", "oneOf", "allOf", "prefixItems"):
        return [_bounded(part) for part in value]
    if key == "properties":
        return {name: _bounded(part) for name, part in value.items()}
    return value


class Vocabulary:
    """What the tokenizer's tokens are to a grammar. Made once; (vocabulary,) boolean arrays say what may begin an answer."""

    def __init__(self, tokenizer: Any, size: int, ends: Sequence[int]) -> None:
        from llguidance.hf import from_tokenizer

        self.size = size
        self.special = np.zeros(size, dtype=bool)
        for token, added in tokenizer.added_tokens_decoder.items():
            if added.special and token < size:
                self.special[token] = True
        self.special[len(tokenizer) :] = True  # rows of the embedding that are no token
        self.ends = np.zeros(size, dtype=bool)
        self.ends[list(ends)] = True
        self.tokens = from_tokenizer(tokenizer, n_vocab=size, eos_token=ends[0])
        texts = [self.tokens.decode_bytes([token]) for token in range(min(size, len(tokenizer)))]
        self.brace = np.zeros(size, dtype=bool)
        self.blank = np.zeros(size, dtype=bool)
        for token, text in enumerate(texts):
            stripped = text.lstrip()
            self.brace[token] = stripped.startswith(b"{")
            self.blank[token] = not stripped and bool(text)
        self.closers = [token for text in CLOSERS if (token := self._single(text)) is not None]
        self._grammars: OrderedDict[str, Grammar] = OrderedDict()
        self._lock = threading.Lock()

    def _single(self, text: str) -> int | None:
        tokens = self.tokens.tokenize_str(text)
        return tokens[-1] if tokens and self.tokens.decode_bytes(tokens[-1:]) == text.encode() else None

    @property
    def silent(self) -> np.ndarray:
        """Tokens that text never holds: special ones, except those that end a turn."""
        return self.special & ~self.ends

    def grammar(self, tools: Sequence[ToolSchema], tool_choice: str = "auto") -> Grammar:
        """The grammar of an answer; compiled once for the same tools. Raises :class:`UsageError` naming the tool that has none."""
        key = _text([tool_choice, [[tool["name"], tool.get("parameters")] for tool in tools]])
        if len(key) > SCHEMA_BYTES:
            raise UsageError(f"the tools' schemas have {len(key):,} characters, more than {SCHEMA_BYTES:,}", where="tools", fix="offer fewer")
        with self._lock:
            if key not in self._grammars:
                self._grammars[key] = Grammar(self, tools, tool_choice)
                while len(self._grammars) > 64:
                    self._grammars.popitem(last=False)
            self._grammars.move_to_end(key)
            return self._grammars[key]


class Grammar:
    """Answers in text or in a call to one of the tools. ``tool_choice``: "auto", "none", "required", or a tool's name.

    ``first`` and ``later`` are (vocabulary,) bool, ``lark`` the same as text, or None where there are no tools.
    """

    def __init__(self, vocabulary: Vocabulary, tools: Sequence[ToolSchema], tool_choice: str = "auto") -> None:
        self.vocabulary = vocabulary
        names = [tool["name"] for tool in tools]
        if len(set(names)) < len(names):
            raise UsageError(f"two tools are called `{max(names, key=names.count)}`", where="tools", fix="rename one")
        if tool_choice not in ("auto", "none", "required", *names) or tool_choice == "required" and not tools:
            fix = f"offered: {', '.join(names) or 'none'}"
            raise UsageError(f"`{tool_choice}` names no tool that is offered", where="tool_choice", fix=fix)
        if tool_choice in names:
            tools = [tool for tool in tools if tool["name"] == tool_choice]
        self._start = _compile(vocabulary.tokens, tools) if tools and tool_choice != "none" else None
        self.later = ~vocabulary.silent
        may_talk = tool_choice in ("auto", "none")
        self.first = self._first(may_call=self._start is not None, may_talk=may_talk, guard=bool(tools))
        self.lark = _lark(tools if self._start is not None else (), may_talk) if tools else None

    @property
    def may_call(self) -> bool:
        return self._start is not None

    def _first(self, may_call: bool, may_talk: bool, guard: bool) -> np.ndarray:
        """(vocabulary,) bool: tokens that may begin the answer. With tools about, text begins neither with ``{`` nor with blanks."""
        allowed = np.zeros(self.vocabulary.size, dtype=bool)
        if may_talk:
            allowed |= ~self.vocabulary.silent
            if guard:
                allowed &= ~(self.vocabulary.brace | self.vocabulary.blank)
        if may_call:
            allowed |= _mask(self._start, self.vocabulary.size) & self.vocabulary.brace
        return allowed

    def call(self, first: int) -> CallGuide | None:
        """The guide of the call that a first token begins, or None where it begins text."""
        if self._start is None or not self.vocabulary.brace[first]:
            return None
        guide = CallGuide(self._start.deep_copy(), self.vocabulary)
        guide.consume(first)
        return guide


class CallGuide:
    """One call being written."""

    def __init__(self, matcher: Any, vocabulary: Vocabulary) -> None:
        self._matcher, self._vocabulary = matcher, vocabulary
        self.tokens: list[int] = []

    @property
    def complete(self) -> bool:
        return bool(self._matcher.is_stopped() and not self._matcher.is_error())

    @property
    def text(self) -> str:
        return str(self._vocabulary.tokens.decode_bytes(self.tokens).decode("utf-8", "replace"))

    def allowed(self) -> np.ndarray:
        """(vocabulary,) bool. Raises :class:`UsageError` for a schema that turns out to be too much."""
        self._check()
        return _mask(self._matcher, self._vocabulary.size) & ~self._vocabulary.special

    def consume(self, token: int) -> None:
        if not self._matcher.consume_token(token):
            self._check()
            raise RuntimeError(f"the grammar does not allow token {token}")
        self.tokens.append(token)

    def _check(self) -> None:
        if self._matcher.is_error():
            raise UsageError(f"the tools' schemas are too much for a grammar: {_reason(self._matcher)}", where="tools", fix="use plainer JSON schema")

    def forced(self) -> list[int]:
        """Consume and return the tokens that can only follow, such as the rest of a name: the model need not be asked."""
        tokens = [] if self.complete else list(self._matcher.compute_ff_tokens())
        for token in tokens:
            self.consume(token)
        return tokens

    def close(self) -> bool:
        """End the call by the shortest way the grammar has, without the model. False where there is none."""
        for _ in range(CLOSING):
            if self.complete:
                return True
            if self.forced():
                continue
            allowed = self.allowed()
            token = next((closer for closer in self._vocabulary.closers if allowed[closer]), None)
            if token is None:
                if not allowed.any():
                    return False
                token = int(allowed.argmax())
            self.consume(token)
        return self.complete


def _mask(matcher: Any, size: int) -> np.ndarray:
    return np.unpackbits(np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8), bitorder="little")[:size].astype(bool)


def _compile(tokens: Any, tools: Sequence[ToolSchema]) -> Any:
    from llguidance import LLMatcher

    matcher = LLMatcher(tokens, LLMatcher.grammar_from_json_schema(_text(call_schema(tools))), log_level=0)
    if not matcher.is_error():
        return matcher
    for tool in tools:
        alone = LLMatcher(tokens, LLMatcher.grammar_from_json_schema(_text(call_schema([tool]))), log_level=0)
        if alone.is_error():
            what = f"no grammar can be made of its parameters: {_reason(alone)}"
            raise UsageError(what, where=f"tool {tool['name']}", fix="use plainer JSON schema")
    raise UsageError(f"no grammar can be made of the tools together: {_reason(matcher)}", where="tools", fix="offer fewer")


def _lark(tools: Sequence[ToolSchema], may_talk: bool) -> str:
    """The same for a server that runs llguidance. It cannot name a first token: text begins there with one space at most."""
    ways = (["call"] if tools else []) + (["text"] if may_talk else [])
    lines = [f"start: ({' | '.join(ways)}){'?' if may_talk else ''}"]
    lines += [f"call: %json {_text(call_schema(tools))}"] if tools else []
    lines += [r"text: / ?[^ \t\n\r\f\v{](.|\n)*/"] if may_talk else []
    return "\n".join(lines)


def _text(value: Any) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"not a JSON schema: {error}", where="tools") from None


def _reason(matcher: Any) -> str:
    return (matcher.get_error().strip().splitlines() or ["unknown reason"])[0][:200]
