"""A conversation as a request to vLLM, which reads from it exactly the tokens that the engine in process reads.

Pictures go as embeddings. Text goes as text wherever the server's tokenizer makes the same ids of it; where it would
not, above all where somebody wrote a special token's name into a message or a title, those ids go as their own
embeddings, and no text is left to be misread. What the server must report to have read is known beforehand. Knows
nothing of HTTP.
"""

from __future__ import annotations

import base64
import copy
import io
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from typing import Any

from torch import Tensor

from pinhole.engines.kv_cache import soft_identity
from pinhole.errors import PinholeError, SpaceMismatch
from pinhole.graft.lens import Lens
from pinhole.graft.prompt import Message, Prompt, Soft, runs

PLACEHOLDER = "<prompt_embeds>"  # vLLM's own mark for embeddings in a rendered prompt; it refuses text that holds it
BILLING = "x-anthropic-billing-header"  # a first line of a system message that vLLM drops
KEPT = 64 << 20  # bytes of encoded embeddings that are kept

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Letter:
    """``messages`` of the request, and the ``ids`` that the server must say it has read: the prompt's, with the placeholder for embeddings."""

    messages: list[dict[str, Any]]
    ids: Ids


@dataclass(frozen=True)
class _Text:
    """Text of the template (``message`` is -1) or of a message, and its ids; ``bare`` content goes as its ids' embeddings."""

    content: str
    ids: Ids
    message: int = -1
    bare: bool = False


@dataclass(frozen=True)
class _Picture:
    """A soft token: a picture, or one cell of it."""

    soft: Soft
    message: int


class Wire:
    """Makes letters. Any number of threads may."""

    def __init__(self, lens: Lens) -> None:
        self._lens, self._prompter = lens, lens.prompter
        self._server = copy.deepcopy(lens.tokenizer)  # as vLLM has it, where special tokens are read in any text
        self._server.add_special_tokens({"additional_special_tokens": [PLACEHOLDER]})
        self.placeholder = int(self._server.convert_tokens_to_ids(PLACEHOLDER))
        names = {str(token.content) for token in self._server.added_tokens_decoder.values()} | {BILLING}
        self._cuts = re.compile("|".join([r"\A\s+", r"\s+\Z", *(re.escape(name) for name in sorted(names, key=len, reverse=True))]))
        self._read = lru_cache(maxsize=65_536)(self._tokenise)
        self._kept = _Kept()

    def letter(self, messages: Sequence[Message], prompt: Prompt, tokens_per_item: int | None = None) -> Letter:
        """The request for ``messages``; ``prompt`` is what the model shall read. Raises :class:`SpaceMismatch` for vectors of another width."""
        pieces = list(self._pieces(messages, tokens_per_item or self._prompter.nested[-1]))
        contents: list[list[dict[str, Any]]] = [[] for _ in messages]
        for (message, embedded), group in groupby(pieces, lambda piece: (piece.message, isinstance(piece, _Picture) or piece.bare)):
            some = list(group)
            if message >= 0:
                contents[message].append(self._embeddings(some) if embedded else {"type": "text", "text": _joined(some)})
        sent = [{"role": one.role, "content": parts or ""} for one, parts in zip(messages, contents, strict=True)]
        return Letter(sent, tuple(self._expected(pieces, prompt)))

    # -- text -----------------------------------------------------------------------------------

    def _pieces(self, messages: Sequence[Message], each: int) -> Iterator[_Text | _Picture]:
        """The rendered prompt in order, its text such that the server reads it as it must."""
        stretch: list[_Text] = []
        first = True
        for piece in self._prompter.layout(tuple(message.role for message in messages), True):
            if isinstance(piece, str):
                stretch.append(_Text(piece, self._prompter.literal(piece)))
                continue
            for part in runs(messages[piece].parts):
                if isinstance(part, str):
                    stretch.append(_Text(part, self._prompter.text(part), piece))
                    continue
                yield from self._checked(stretch, first)
                yield from (_Picture(token, piece) for token in part.tokens(each))
                stretch, first = [], False
        yield from self._checked(stretch, first)

    def _checked(self, stretch: list[_Text], first: bool) -> list[_Text]:
        """Text between two pictures: as it is, else without what is misread, else without any content."""
        if self._fits(stretch, first):
            return stretch
        cut = [piece for text in stretch for piece in (self._cut(text) if text.message >= 0 else [text])]
        if self._fits(cut, first):
            return cut
        bare = [replace(text, bare=text.message >= 0) for text in stretch]
        if self._fits(bare, first):
            return bare
        raise PinholeError("the server's tokenizer reads the chat template otherwise", where=_joined(stretch)[:80], fix="serve this base in process")

    def _fits(self, texts: Sequence[_Text], first: bool) -> bool:
        for bare, group in groupby(texts, lambda text: text.bare):
            if not bare:
                whole = list(group)
                if any(text.content.startswith(BILLING) for text in whole if text.message >= 0):
                    return False
                if self._read(_joined(whole), first) != tuple(token for text in whole for token in text.ids):
                    return False
            first = False
        return True

    def _tokenise(self, text: str, first: bool) -> Ids:
        """A text as the server reads it, at the beginning of a prompt or behind an embedding."""
        ids = self._server.backend_tokenizer.encode(text if first else PLACEHOLDER + text, add_special_tokens=False).ids
        return tuple(ids if first else ids[1:])

    def _cut(self, text: _Text) -> Iterator[_Text]:
        """A text in pieces, of which those are bare that the server would take for something else."""
        spans, done, at = self._prompter.spans(text.content), 0, 0
        for found in self._cuts.finditer(text.content):
            tokens = [i for i, (start, end) in enumerate(spans) if start < found.end() and end > found.start() and i >= done]
            if not tokens:
                continue
            begin, end = tokens[0], tokens[-1] + 1
            if begin > done:
                yield _Text(text.content[at : spans[begin][0]], text.ids[done:begin], text.message)
            at, done = spans[end - 1][1], end
            yield _Text("", text.ids[begin:end], text.message, bare=True)
        if done < len(spans):
            yield _Text(text.content[at:], text.ids[done:], text.message)

    def _expected(self, pieces: Iterable[_Text | _Picture], prompt: Prompt) -> Iterator[int]:
        at = 0
        for piece in pieces:
            length = len(piece.ids) if isinstance(piece, _Text) else 1
            sent = isinstance(piece, _Text) and not piece.bare
            yield from prompt.tokens[at : at + length] if sent else [self.placeholder] * length
            at += length

    # -- embeddings -----------------------------------------------------------------------------

    def _embeddings(self, group: Sequence[_Text | _Picture]) -> dict[str, Any]:
        """Neighbours go as one tensor."""
        key = tuple(soft_identity(piece.soft) if isinstance(piece, _Picture) else piece.ids for piece in group)
        data = self._kept.get(key)
        if data is None:
            data = encode(self._stacked(group), self._lens.hidden)
            self._kept.put(key, data)
        return {"type": "prompt_embeds", "data": data}

    def _stacked(self, group: Sequence[_Text | _Picture]) -> Tensor:
        import torch

        found = []
        for picture, some in groupby(group, lambda piece: isinstance(piece, _Picture)):
            pieces = list(some)
            if picture:
                found.append(self._lens.soft_tokens([piece.soft for piece in pieces if isinstance(piece, _Picture)]))
            else:
                found.append(self._lens.tokens([token for piece in pieces if isinstance(piece, _Text) for token in piece.ids]))
        return torch.cat(found)  # (tokens, hidden)


def encode(tokens: Tensor, hidden: int) -> str:
    """(tokens, hidden) as vLLM takes it. Raises :class:`SpaceMismatch` where the model's embeddings have another width."""
    import torch

    if tokens.ndim != 2 or tokens.shape[1] != hidden:
        what = f"soft tokens of shape {tuple(tokens.shape)} for a model whose embeddings have {hidden} numbers"
        raise SpaceMismatch(what, fix="projector and model are of different grafts: run `pinhole build graft`")
    file = io.BytesIO()
    torch.save(tokens.contiguous().clone(), file)
    return base64.b64encode(file.getbuffer()).decode()


def _joined(texts: Iterable[Any]) -> str:
    return "".join(text.content for text in texts)


class _Kept:
    """Encoded embeddings by what they are of; those used longest ago go first."""

    def __init__(self, most: int = KEPT) -> None:
        self._most, self._size = most, 0
        self._held: OrderedDict[Any, str] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Any) -> str | None:
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
            return self._held.get(key)

    def put(self, key: Any, data: str) -> None:
        with self._lock:
            if key not in self._held:
                self._held[key] = data
                self._size += len(data)
            while self._size > self._most:
                self._size -= len(self._held.popitem(last=False)[1])
