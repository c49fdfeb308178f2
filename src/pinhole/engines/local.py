"""The engine in this process: several conversations at once on one model, their keys and values kept.

Every step is one forward pass over the next piece of each conversation: one token of those that
speak, a chunk of the prompt of those that are being read, so that a long prompt stalls nobody.
Greedy answers are deterministic: the same prompt alone gives the same text. Read in other pieces (a
cached prefix, other conversations beside it) the sums are rounded in another order, which in
bfloat16 may tip a close choice. Knows nothing of catalogues and of what tools do.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pinhole.engines.answer import Answer, Events, Settings
from pinhole.engines.grammar import Vocabulary
from pinhole.engines.kv_cache import KVCache, sequence
from pinhole.engines.packed import serving_copy
from pinhole.engines.queue import FairQueue
from pinhole.engines.ragged import forward, prepare
from pinhole.engines.reading import check_lengths, read, whole
from pinhole.engines.threads import Threads
from pinhole.graft.model import Graft
from pinhole.graft.prompt import Message, Part, Prompt, Soft, ToolSchema, card, system
from pinhole.processes import cores

ALONE = 512  # tokens of a prompt read in one step when nobody else waits
SHARED = 96  # … and by all together while somebody speaks, so that nobody waits long for a word
CACHE = 512 << 20  # bytes of keys and values kept
IN_BULK = 4  # engines at most, where work is shared out: each has weights packed for itself
MANY = 64  # pictures in a step from which the projector multiplies in bfloat16 where the model does: a third of the time, one rounding more


class LocalEngine:
    """A graft, served. Any number of threads may call :meth:`chat`; close it, or use it in a ``with``.

    ``cache_bytes`` bounds the keys and values kept of past conversations, ``active`` the
    conversations that are stepped at once, ``waiting`` those in line behind them, ``shared`` the tokens of
    prompts read in a step while somebody speaks (more is faster for all together, and speech stutters).
    ``pack`` and ``threads`` are chosen by what the machine has and what it is doing.
    """

    def __init__(
        self,
        graft: Graft,
        *,
        name: str = "pinhole",
        cache_bytes: int = CACHE,
        active: int = 8,
        waiting: int = 64,
        shared: int = SHARED,
        pack: bool | None = None,
        threads: int | None = None,
    ) -> None:
        self.graft, self.name, self.shared = graft, name, shared
        self.lm = serving_copy(graft.lm, pack)
        prepare(self.lm)
        self._embedding = graft.lm.get_input_embeddings()
        self._vocabulary = Vocabulary(graft.tokenizer, graft.lm.config.get_text_config().vocab_size, _ends(graft))
        self.cache = KVCache(cache_bytes)
        self._queue: FairQueue[Answer] = FairQueue(self._step, active=active, waiting=waiting)
        self.threads = Threads(threads)

    @property
    def context(self) -> int:
        return self.graft.context

    @property
    def space(self) -> str:
        return self.graft.space

    @property
    def nested(self) -> tuple[int, ...]:
        return self.graft.nested

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the worker; whoever still reads gets :class:`~pinhole.errors.Busy`."""
        self._queue.close()

    def card(self, k: int, soft: Soft | None, title: str) -> tuple[Part, ...]:
        return card(k, soft, title, self.graft.card, self.graft.card_words)

    # -- asking ---------------------------------------------------------------------------------

    def chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSchema] = (),
        *,
        tool_choice: str = "auto",
        max_tokens: int = 160,
        call_tokens: int = 96,
        temperature: float = 0.0,
        seed: int = 0,
        tokens_per_item: int | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Events:
        """See :class:`~pinhole.engines.base.Engine`."""
        began = time.perf_counter()
        check_lengths(max_tokens, call_tokens)
        grammar = self._vocabulary.grammar(tools, tool_choice)
        prompt = self.prompt(messages, tools, tokens_per_item)
        room = self.context - len(prompt.tokens)
        settings = Settings(min(max_tokens, room), min(call_tokens, room), temperature, seed)
        answer = Answer(prompt, sequence(prompt), settings, grammar, cancelled, began)
        self._queue.submit(answer)
        return Events(answer)

    def prompt(self, messages: Sequence[Message], tools: Sequence[ToolSchema] = (), tokens_per_item: int | None = None) -> Prompt:
        """What the model will read. Raises :class:`PromptTooLong` with both numbers."""
        messages = whole(messages, tools, self.context, self.name)
        return read(messages, self.graft.prompter, self.context, self.name, tokens_per_item)

    def warm(self, tools: Sequence[ToolSchema] = ()) -> None:
        """Read the system prompt for these tools and keep it whatever comes; make their grammar."""
        grammar = self._vocabulary.grammar(tools)
        prompt = self.graft.prompter.render([system(tools)], generate=False)
        answer = Answer(prompt, sequence(prompt), Settings(0, 0, 0.0, 0, pin=True), grammar, None, time.perf_counter())
        self._queue.submit(answer)
        for _ in Events(answer):
            pass

    # -- the worker's step ----------------------------------------------------------------------

    def _embed(self, tokens: Sequence[int], soft: Sequence[Soft]) -> Tensor:
        ids = torch.tensor(tokens, device=self.graft.device)
        if not soft:
            return self._embedding(ids)  # type: ignore[no-any-return]
        board = len(soft) >= MANY and self.graft.lm.dtype is torch.bfloat16
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=board):
            return self.graft.embed_tokens(ids, soft)

    @torch.inference_mode()
    def _step(self, answers: Sequence[Answer]) -> None:
        """One forward pass: everybody's next token, and a share of the prompts that are being read."""
        for answer in answers:
            answer.take(self.cache)
        readers = sum(1 for answer in answers if answer.reading)
        share = max(16, self.shared // max(1, readers)) if len(answers) > readers else max(32, ALONE // max(1, readers))
        pieces = [answer.piece(self._embed, share) for answer in answers]
        with self.threads:
            logits = iter(forward(self.lm, pieces))
        for answer, piece in zip(answers, pieces, strict=True):
            if piece.wants_logits:
                row = next(logits)
                try:
                    answer.accept(row)
                except Exception as error:  # its own trouble: what the others read in this step stays read
                    answer.end(error)


@contextlib.contextmanager
def in_bulk(graft: Graft, active: int) -> Iterator[list[LocalEngine]]:
    """Engines for many conversations that nobody listens to, ``active`` at once in each: whole prompts are read at once.

    On a CPU there is one for each core, with a thread of its own (`pinhole bench engine` compares that with one engine on all cores).
    """
    count = min(IN_BULK, cores(), torch.get_num_threads()) if graft.device.type == "cpu" else 1
    threads = cores() // count if count > 1 else None
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(LocalEngine(graft, active=active, shared=ALONE, cache_bytes=CACHE // count, threads=threads)) for _ in range(count)
        ]


def _ends(graft: Graft) -> list[int]:
    """Tokens that end the assistant's turn: the template's own first, then those the model's settings name."""
    named: Any = getattr(graft.lm.generation_config, "eos_token_id", None)
    named = named if isinstance(named, list) else [named]
    return list(dict.fromkeys(token for token in (graft.prompter.end, *named) if token is not None))
