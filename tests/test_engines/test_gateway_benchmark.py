"""The benchmark of the gateway runs its three processes and measures all that it names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pinhole.benchmarks import gateway
from toy_model import tiny_graft


@pytest.mark.slow
def test_it_measures_what_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    def tiny(folder: Path) -> None:
        from pinhole.graft.projector import Projector

        graft = tiny_graft(context=8192)
        graft.projector, graft.space = Projector(gateway.DIM, 48, 16), gateway.SPACE
        graft.save(folder)

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(gateway.__file__).parents[2]), os.environ.get("PYTHONPATH", "")]))
    for name, value in {"_graft": tiny, "ROUNDS": 1, "TURNS": 2, "AT_ONCE": 3, "SECONDS": 0.1}.items():
        monkeypatch.setattr(gateway, name, value)
    steps: list[tuple[int, int]] = []
    figures = gateway.run(None, lambda done, of: steps.append((done, of)))
    assert steps == [(i, 4) for i in range(1, 5)]
    assert figures["gateway.first_token_s.n"] == 6 and figures["gateway.at_once"] == 3
    assert 0.1 <= figures["gateway.upstream_first_token_s"] < figures["gateway.first_token_s"] < 2
    added = figures["gateway.first_token_s"] - figures["gateway.upstream_first_token_s"]
    assert figures["gateway.added_s"] == pytest.approx(added)
    assert figures["gateway.added_over_allowed"] == pytest.approx(added / max(0.003, 0.05 * figures["gateway.upstream_first_token_s"]))
