"""Every figure that the docs of ``speed`` promise is measured, here on a model of no size."""

from __future__ import annotations

import json
import re

import pytest

from pinhole.benchmarks import engine as benchmark
from pinhole.engines import speed
from pinhole.engines.local import LocalEngine
from toy_model import TOOLS, tiny_graft


def test_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    with LocalEngine(tiny_graft(context=2048)) as engine:
        figures = speed.measure(engine, TOOLS, rounds=3, progress=lambda done, total: seen.append((done, total)))
    promised = re.findall(r"^    ((?:speed|engine)\.[\w.]+)", speed.__doc__ or "", re.MULTILINE)
    assert set(promised) <= set(figures) and "engine.tokens_per_s.together" in figures
    assert all(value > 0 for value in figures.values())
    assert figures["speed.tool_call_s"] >= figures["speed.first_token_s"] and figures["speed.first_token_s.n"] == 3
    assert seen == [(i + 1, 5) for i in range(5)]


def test_the_benchmark_is_that_measure_and_many_at_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(benchmark, "_graft", lambda workspace: tiny_graft(context=2048))
    monkeypatch.setattr(speed, "measure", lambda engine, tools, progress: {"tools": float(len(tools))})
    monkeypatch.setattr(benchmark.sys, "argv", ["engine"])
    benchmark.main()
    figures = json.loads(capsys.readouterr().out)
    assert figures["tools"] == 4.0 and figures["engine.in_bulk_over_one"] > 0 and figures["engine.in_bulk_over_one.n"] == 96
