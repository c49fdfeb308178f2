"""What docs/search.md says is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pinhole.retrieval import index
from pinhole.retrieval.index import Hit, Searcher, build_index
from pinhole.retrieval.weights import KINDS, UNLIKE, WORDS_LEAST
from pinhole.vision.heads import fit
from pinhole.vision.signals import read_signals
from toy_search import make_toy

DOC = (Path(__file__).parents[2] / "docs" / "search.md").read_text(encoding="utf-8")


def test_numbers_and_names_are_those_of_the_code() -> None:
    assert f"{index.TEXT_MOST:,} characters" in DOC and f"up to {index.RESULTS_MOST:,}" in DOC and f"Up to {index.EXACT:,} items" in DOC
    assert "half as much" in DOC and UNLIKE == 0.5
    assert f"at least {WORDS_LEAST:.0f}," in DOC
    assert all(f"`{kind}`" in DOC for kind in KINDS)
    columns = {name.split(".")[1] for names in KINDS.values() for name in names}
    assert all(f"| {column} |" in DOC for column in columns) and "seven columns" in DOC and len(KINDS["both"]) == 7
    assert all(f"`{field}`" in DOC for field in Hit.__dataclass_fields__)


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", DOC, re.S))
def test_the_example_runs(block: str, tmp_path: Path) -> None:
    toy = make_toy(tmp_path, n=96, align={"steps": 2})
    part, _ = read_signals(toy.catalogue, toy.features).part(toy.config.catalogue)
    space = fit(toy.features, part, toy.asked.of([query.key for query in part.queries]), toy.config.align).space
    (tmp_path / "index").mkdir()
    build_index(toy.catalogue, toy.features, space, toy.config, tmp_path / "index", asked=toy.asked)
    searcher = Searcher(toy.catalogue, toy.features, space, tmp_path / "index", toy.text_encoder, lambda: pytest.fail("no picture was given"))
    for theirs, ours in {"transport/boat_03": "boat/0000", "transport/ferry": "boat/0008", "'transport'": "'boat'"}.items():
        block = block.replace(theirs, ours)
    names: dict[str, object] = {"searcher": searcher}
    exec(block, names)
    hits = names["hits"]
    assert isinstance(hits, list) and hits and set(hits[0].parts) >= {"text.learned", "like.learned", "unlike.learned"}
