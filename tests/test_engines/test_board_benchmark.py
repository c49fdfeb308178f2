"""The benchmark of a large board prints what it promises, on a model of no size. How fast it is, is for a quiet machine."""

from __future__ import annotations

import pytest

from pinhole.benchmarks import board
from pinhole.benchmarks import engine as engine_benchmark
from pinhole.engines.local import LocalEngine
from pinhole.errors import PromptTooLong
from toy_model import tiny_graft


def test_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_benchmark, "_graft", lambda workspace: tiny_graft(context=512))
    monkeypatch.setattr(board, "ROUNDS", 3)
    seen: list[tuple[int, int]] = []
    figures = board.run(None, lambda done, total: seen.append((done, total)), items=100)
    timed = ("first_token_s", "next_question_s", "text_s", "render_s", "embed_s")
    assert set(figures) == {f"board.n100.{name}" for name in (*timed, *(f"{name}.n" for name in timed), "over_text", "prompt_tokens")}
    assert all(value > 0 for value in figures.values()) and figures["board.n100.first_token_s.n"] == 3
    assert figures["board.n100.over_text"] == figures["board.n100.first_token_s"] / figures["board.n100.text_s"]
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_text_is_as_long_as_the_board_and_neither_is_cached() -> None:
    with LocalEngine(tiny_graft(context=512)) as engine:
        engine.warm()
        asking, asked = board._Asking(engine, 60), []
        ask = asking._ask

        def note(messages: object) -> object:
            asked.append(ask(messages))  # type: ignore[arg-type]
            return asked[-1]

        asking._ask = note  # type: ignore[method-assign]
        asking.round(1)
        asking.round(2)
    first, _, text, text_again, first_again, later_again = asked
    assert first.prompt_tokens == text.prompt_tokens == first_again.prompt_tokens == text_again.prompt_tokens
    rules = {usage.cached_tokens for usage in (first, text, first_again, text_again)}
    assert max(rules) < first.prompt_tokens - 60 and later_again.cached_tokens >= 60


def test_a_board_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_benchmark, "_graft", lambda workspace: tiny_graft(context=256))
    with pytest.raises(PromptTooLong, match="the model reads 256"):
        board.run(None, items=300)
