"""With little changed the space is kept and the index extended, which finds what one built anew finds; what is deleted is gone at once."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pinhole import freshness, stages, wiring
from pinhole.builder import Build, Standing, root
from pinhole.catalogue.ingest import ingest
from pinhole.catalogue.store import Catalogue
from pinhole.errors import UnknownItem
from pinhole.retrieval import index as index_module
from pinhole.retrieval.declared import POPULARITY
from pinhole.retrieval.extend import Extended, open_nearest
from pinhole.retrieval.item_values import save_popularity
from pinhole.retrieval.student import FEW, distil
from pinhole.stages import build
from pinhole.vision.align import Space
from pinhole.vision.features import Features
from pinhole.workspace import Workspace, write_json
from toy_workspace import draw, make_models, make_source, make_workspace

STAGES = ["embed", "align", "index"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("parts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PINHOLE_CACHE", str(folder / "cache"))
        workspace = make_workspace(folder / "shop", make_source(folder / "source"), make_models(folder / "models"))
        build(workspace, ["index"])
        yield folder


@pytest.fixture
def shop(built: Path, tmp_path: Path) -> Workspace:
    shutil.copytree(built / "shop", tmp_path / "shop")
    return Workspace.open(tmp_path / "shop")


def add(workspace: Workspace, *names: str, colour: str = "pink") -> None:
    """Pictures of pink rings under new ids; an id that is there gets another picture."""
    rows = []
    for number, id in enumerate(names, 5):
        draw("ring", colour, number, workspace.root / f"{id}.png")
        rows.append({"id": id, "image": str(workspace.root / f"{id}.png"), "title": f"{colour} ring {id}", "category": "rings"})
    Catalogue(workspace.tables).upsert("items", pa.Table.from_pylist(rows))


def outcome(workspace: Workspace, **settings: Any) -> tuple[dict[str, str], list[str]]:
    log: list[str] = []
    return {one.stage: one.action for one in build(workspace, ["index"], log=log.append, **settings)}, log


def searched(workspace: Workspace) -> list[list[tuple[str, float]]]:
    searcher = wiring.open_searcher(workspace)
    asked: list[dict[str, Any]] = [
        {"text": "red circle"},
        {"text": "pink ring new-1"},
        {"like": ["cross-blue-1"]},
        {"text": "a ring", "like": ["new-2"]},
    ]
    return [[(hit.id, round(hit.score, 3)) for hit in searcher.search(**one, n=20)] for one in asked]


# -- policies -----------------------------------------------------------------------------------


def test_little_changed_keeps_the_space_and_extends_the_index(shop: Workspace) -> None:
    before = {stage: shop.need(stage) for stage in STAGES}
    add(shop, "new-1", "new-2", "ring-red-1")
    Catalogue(shop.tables).delete("items", ["square-red-0"])
    actions, log = outcome(shop)
    assert actions == {"embed": "built", "align": "kept", "index": "extended"}
    assert shop.need("align") == before["align"]
    figures = shop.need("embed").manifest["figures"]
    assert figures["forwarded"] == 3, "only what is new or changed is looked at"
    said = next(line for line in log if line.startswith("index: "))
    assert "3 appended, 1 removed, tail 2.5% (built anew from 10%)" in said
    assert any(line.startswith("align: kept: 2.5% of the items") and "trained again from 10%" in line for line in log)
    made = shop.need("index")
    assert root(made) == before["index"].key != made.key
    assert (made.path / "learned.faiss").samefile(before["index"].path / "learned.faiss"), "linked, not written again"
    assert outcome(shop)[0] == dict.fromkeys(STAGES, "fresh") | {"align": "kept"}


def test_much_changed_makes_everything_anew_and_says_so(shop: Workspace) -> None:
    add(shop, *(f"new-{k}" for k in range(20)))
    actions, log = outcome(shop)
    assert set(actions.values()) == {"built"}
    assert any("align: items changed" in line and "16.5% of the items changed since, 10% is the limit" in line for line in log)


def test_the_limit_is_a_setting_and_force_goes_past_it(shop: Workspace) -> None:
    space = shop.need("align").key
    shop = shop.change({"align.retrain_at": 0.3, "index.rebuild_at": 0.3})
    assert outcome(shop)[0] == dict.fromkeys(STAGES, "fresh"), "a limit changes nothing that is made"
    add(shop, *(f"new-{k}" for k in range(20)))
    assert outcome(shop)[0] == {"embed": "built", "align": "kept", "index": "extended"}
    log: list[str] = []
    actions = {one.stage: one.action for one in build(shop, ["align"], force=True, log=log.append)}
    assert actions == {"embed": "fresh", "align": "built"} and shop.need("align").key != space
    actions, log = outcome(shop)
    assert actions["index"] == "built", "its space is another"


def test_prices_and_counts_retrain_nothing(shop: Workspace) -> None:
    catalogue = Catalogue(shop.tables)
    rows = catalogue.items(["id", "image", "title"]).to_pylist()
    catalogue.upsert("items", pa.Table.from_pylist([row | {"price": 3.5} for row in rows]))
    queries = catalogue.queries()
    counted = queries.set_column(queries.schema.get_field_index("count"), "count", pa.array([9] * len(queries), queries.schema.field("count").type))
    catalogue.upsert("queries", counted)
    actions, log = outcome(shop)
    assert actions == {"embed": "built", "align": "kept", "index": "extended"}
    assert "align: kept: nothing changed of what it learned from" in log


def test_links_are_counted_not_boards(shop: Workspace) -> None:
    """Every board gains a picture: a sixth of the links is new, all of the boards are others."""
    catalogue = Catalogue(shop.tables)
    boards = catalogue.boards().to_pylist()
    few, many = boards[:2], boards
    features = Features.load(shop.need("embed").path)
    for changed, low, high in ((few, 0.001, 0.05), (many, 0.1, 0.6)):
        rows = [{**row, "items": [*row["items"], "circle-red-0", "ring-pink-0"]} for row in changed]
        catalogue.upsert("boards", pa.Table.from_pylist(rows))
        found = freshness.shares(shop.need("align").path, shop, features, ("boards",))
        assert found is not None and low < found["boards"] < high


def test_a_ranker_learns_from_new_judgements(shop: Workspace) -> None:
    """They bend its teacher's grades, so they count as what it learned from."""
    shop = shop.change({"ranker.enabled": True})
    inputs = {name: shop.need(name) for name in STAGES}
    out = shop.start("ranker", "r")
    freshness.note(Build(shop, inputs, out, None, lambda done, total: None, print), tables=stages.JUDGED)
    made = shop.finish("ranker", "r", {"recipe": {"inputs": {name: artefact.key for name, artefact in inputs.items()}}})
    standing = Standing(shop, made, inputs)
    judge = stages.stages_of(shop.config)["ranker"].judge
    assert judge is not None and judge(standing).action == "kept"
    judged = {"text": ["red circle"] * 2, "item": ["circle-red-0", "circle-red-1"], "grade": [4, 3]}
    Catalogue(shop.tables).upsert("judgements", pa.table(judged))
    assert judge(standing).action == "anew" and "of the judgements changed" in judge(standing).words


def test_search_goes_on_while_its_ranker_is_of_the_space_before(shop: Workspace) -> None:
    """A build that trains the space anew comes to the ranker last, and may be stopped before."""
    shop = shop.change({"ranker.enabled": True})
    inputs, space = {name: shop.need(name).key for name in STAGES}, Space.load(shop.need("align").path)
    out, width = shop.start("ranker", "r"), FEW + len(POPULARITY) + space.dim
    student = distil(np.zeros((4, width), np.float32), np.zeros(4), np.zeros(4, dtype=bool), shop.config.ranker, space.identity, ())
    student.save(out)
    save_popularity({}, out)
    write_json(out / "ranker.json", {"weight": 0.5, "share": 0.0, "sees": True})
    shop.finish("ranker", "r", {"recipe": {"inputs": inputs}})
    assert wiring.open_searcher(shop).ranker is not None
    shop = shop.change({"align.steps": 7})
    assert outcome(shop)[0]["align"] == "built"
    searcher = wiring.open_searcher(shop)
    assert searcher.ranker is None and searcher.search("red circle")


def test_a_new_query_is_read_where_the_space_is_kept(shop: Workspace) -> None:
    """An index built anew in a kept space needs vectors of texts that ``align`` never met."""
    Catalogue(shop.tables).upsert("queries", pa.table({"text": ["quite another question"], "item": ["ring-red-1"], "count": [1]}))
    shop = shop.change({"index.storage": "int8"})
    actions, log = outcome(shop)
    assert actions == {"embed": "fresh", "align": "kept", "index": "built"}
    assert "quite another question" not in json.loads((shop.need("align").path / "queries.json").read_text())


# -- an index that grew -------------------------------------------------------------------------


@pytest.mark.parametrize("exact", [0, 8192])
def test_extended_finds_what_one_built_anew_finds(shop: Workspace, exact: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the weights and the memory of the base, which are kept: the same ids, the same scores; by candidates too."""
    monkeypatch.setattr(index_module, "EXACT", exact)
    monkeypatch.setattr(index_module, "CANDIDATES", 1000)
    add(shop, "new-1", "aaa-first", "ring-red-1")
    Catalogue(shop.tables).delete("items", ["square-red-0"])
    outcome(shop)
    add(shop, "new-2", "zzz-last")
    assert outcome(shop)[0]["index"] == "extended"
    grown, tail = searched(shop), shop.need("index")
    assert "new-1" in [id for id, _ in grown[1][:5]]
    features = Features.load(wiring.made_from(shop, tail, "embed").path)
    usable = np.flatnonzero(features.has_image | features.has_text)
    anew = index_module.Nearest.build(index_module.learned_vectors(_space(shop), features)[usable], usable, shop.config.index)
    extended = open_nearest(tail.path, "learned")
    assert isinstance(extended, Extended) and len(extended) == len(anew)
    asked = np.random.default_rng(0).standard_normal((30, anew.width)).astype(np.float32)
    for allowed in (None, usable[::3], usable[-2:]):
        count = 15 if allowed is None else min(15, len(allowed))
        ours, theirs = extended.many(asked, count, allowed), anew.many(asked, count, allowed)
        assert np.allclose(ours[1], theirs[1], atol=1e-5)
        assert (ours[0] == theirs[0]).mean() > 0.9  # equal scores may change places
    # whole: rebuilt files in place of base and tail, the same weights and memory
    for name, rows, vectors in (
        ("learned", usable, index_module.learned_vectors(_space(shop), features)[usable]),
        ("titles", np.flatnonzero(features.has_text), features.text[features.has_text]),
    ):
        index_module.Nearest.build(np.asarray(vectors), rows, shop.config.index).save(tail.path / f"{name}.faiss")
    (tail.path / "rows.npy").unlink()
    assert searched(shop) == grown


def _space(workspace: Workspace) -> Any:
    from pinhole.vision.align import Space

    return Space.load(workspace.need("align").path)


def test_an_extended_index_hangs_on_its_base_and_on_what_there_is_now(shop: Workspace, tmp_path: Path) -> None:
    """One build after two changes, or a build after each: the same artefact, but for the last bits of a vector whose batch was another."""
    shutil.copytree(shop.root, tmp_path / "other")
    other = Workspace.open(tmp_path / "other")
    for id in ("new-1", "new-2"):
        add(shop, id)
        outcome(shop)
    for id in ("new-1", "new-2"):
        shutil.copy2(shop.root / f"{id}.png", other.root / f"{id}.png")
        rows = [{"id": id, "image": str(other.root / f"{id}.png"), "title": f"pink ring {id}", "category": "rings"}]
        Catalogue(other.tables).upsert("items", pa.Table.from_pylist(rows))
    outcome(other)
    one, two = shop.need("index"), other.need("index")
    names = sorted(path.name for path in one.path.iterdir() if path.name != "manifest.json")
    assert names == sorted(path.name for path in two.path.iterdir() if path.name != "manifest.json") and one.key == two.key
    other_bytes = {name for name in names if (one.path / name).read_bytes() != (two.path / name).read_bytes()}
    assert other_bytes <= {"learned.tail.faiss", "titles.tail.faiss"} and searched(shop) == searched(other)


def test_many_gone_neighbours_leave_none_short() -> None:
    from pinhole.config import IndexConfig
    from pinhole.retrieval.nearest import Nearest

    vectors = np.random.default_rng(1).standard_normal((500, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    base = Nearest.build(vectors, np.arange(500), IndexConfig())
    near = np.argsort(-vectors @ vectors[0])[:100]
    now = np.arange(500)
    now[near] = -1
    found = Extended(base, now, Nearest.build(vectors[near[:3]], near[:3][np.argsort(near[:3])], IndexConfig()))
    rows, _ = found.many(vectors[:1], 20)
    assert (rows >= 0).all() and len(set(rows[0].tolist())) == 20


def test_lost_recall_builds_anew(shop: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index that does not look at every vector is measured against a scan before it is extended."""
    shop = shop.change({"index.flat_below": 0})
    assert outcome(shop)[0]["index"] == "built"
    add(shop, "new-1")
    actions, log = outcome(shop)
    assert actions["index"] == "extended"
    monkeypatch.setattr("pinhole.retrieval.extend.recall", lambda found: 0.6)
    add(shop, "new-2")
    actions, log = outcome(shop)
    assert actions["index"] == "built" and any("recall@10 would be 0.600, 0.95 is the least" in line for line in log)


def test_recall_is_that_of_a_scan(shop: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    from pinhole.retrieval.extend import recall

    add(shop, "new-1", "new-2")
    outcome(shop)
    found = open_nearest(shop.need("index").path, "learned")
    assert isinstance(found, Extended) and recall(found) == 1.0
    honest = found.many
    monkeypatch.setattr(found, "many", lambda asked, count: (np.where(np.arange(count) % 2, honest(asked, count)[0], -1), None))
    assert 0.4 < recall(found) < 0.6, "half of what was found is thrown away"


# -- deletions ----------------------------------------------------------------------------------


def test_a_deleted_item_is_gone_from_an_open_searcher(shop: Workspace) -> None:
    searcher, related = wiring.open_searcher(shop), wiring.open_related(shop)
    first = searcher.search("red circle", n=5)[0].id
    walked = related("circle-red-1", 3)[0].id
    elsewhere = Catalogue(shop.tables)  # another process
    elsewhere.delete("items", [first, walked])
    assert first not in [hit.id for hit in searcher.search("red circle", n=1000)]
    assert walked not in [hit.id for hit in related("circle-red-1", 1000, "graph")] + [hit.id for hit in related("circle-red-1", 1000)]
    with pytest.raises(UnknownItem):
        searcher.search(like=[first])
    elsewhere.upsert("items", pa.Table.from_pylist([{"id": first, "title": "it is back"}]))
    assert first in [hit.id for hit in searcher.search("red circle", n=1000)]


def test_a_shop_shows_no_deleted_item(built: Path, shop: Workspace) -> None:
    """What the assistant finds, and what it has boards of."""
    from pinhole.assistant.shop import CatalogueShop

    searcher = wiring.open_searcher(shop)
    served = CatalogueShop(searcher.catalogue, searcher.features, searcher.space, searcher, shop.config)
    first = served.search("red circle", [], [], "")[0][0]
    assert served.board("red circles")[1]
    Catalogue(shop.tables).delete("items", [first])
    assert first not in [id for id, _ in served.search("red circle", [], [], "")]
    assert first not in served.board("red circles")[1]
    ingest(Catalogue(shop.tables), "items", built / "source" / "items.jsonl")
    assert first in [id for id, _ in served.search("red circle", [], [], "")]


def test_what_was_open_goes_on_while_builds_replace_what_it_reads(shop: Workspace) -> None:
    """Two builds later its artefacts are gone from the disk; nothing of them may be opened only when it is first asked for."""
    from pinhole.assistant.shop import CatalogueShop

    shop = shop.change({"vision.grid": 2})
    outcome(shop)
    add(shop, "new-0")
    outcome(shop)
    opened = shop.need("embed").path, shop.need("index").path
    calm, served = (
        CatalogueShop(searcher.catalogue, searcher.features, searcher.space, searcher, shop.config, 4)
        for searcher in (wiring.open_searcher(shop) for _ in range(2))
    )
    picture = shop.root.parent / "like.png"
    draw("ring", "red", 3, picture)

    def asked(one: CatalogueShop) -> Any:
        found = [one.searcher.search("red circle"), one.searcher.search(like=["cross-blue-1"]), one.searcher.search(like=[picture.read_bytes()])]
        return [[hit.id for hit in hits] for hits in found], one.things(["ring-red-1"])[0].soft

    before = asked(calm)
    for number in range(1, 4):
        add(shop, f"new-{number}")
        assert outcome(shop)[0] == {"embed": "built", "align": "kept", "index": "extended"}
    assert not any(path.exists() for path in opened)
    after = asked(served)
    assert after[0] == before[0] and all(np.array_equal(*pair) for pair in zip(after[1].cells, before[1].cells, strict=True))


# -- kills --------------------------------------------------------------------------------------

# Imports once, then forks a process for each build that it is told to run: lines are a workspace in, a process id out, then how it ended.
NURSERY = """
import os, sys
import lancedb, sklearn, torch, transformers
import pinhole.retrieval.index, pinhole.vision.heads, pinhole.vision.precompute
from pinhole.stages import build
from pinhole.workspace import Workspace
torch.set_num_threads(1)
for line in sys.stdin:
    process = os.fork()
    if not process:
        build(Workspace.open(line.strip()), ["index"])
        os._exit(0)
    print(process, flush=True)
    print(os.waitpid(process, 0)[1], flush=True)
"""


class Nursery:
    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-W", "ignore", "-c", NURSERY]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def told(self, root: Path) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{root}\n")
        self.process.stdin.flush()
        return self.heard()

    def heard(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@pytest.fixture
def nursery() -> Iterator[Nursery]:
    found = Nursery()
    yield found
    found.close()


def contents(workspace: Workspace, stages: Sequence[str] = tuple(STAGES)) -> dict[str, Any]:
    """Every file of the latest artefacts, less times and counts of one run."""
    found: dict[str, Any] = {}
    for stage in stages:
        latest = workspace.need(stage)
        found[stage] = latest.key
        for path in sorted(latest.path.iterdir()):
            found[f"{stage}/{path.name}"] = np.load(path).tobytes() if path.suffix == ".npy" else path.read_bytes()
            if path.suffix == ".parquet":  # pictures beside the workspace have other addresses
                found[f"{stage}/{path.name}"] = pq.read_table(path).drop_columns(["path"]).to_pylist()
            if path.name in ("manifest.json", "features.json"):
                timed = ("seconds", "peak_memory_gb", "reason", "planned_at", "figures")
                found[f"{stage}/{path.name}"] = {key: value for key, value in json.loads(path.read_text()).items() if key not in timed}
    return found


def assert_whole(workspace: Workspace) -> None:
    """Every item is embedded, and once."""
    ids = Features.load(workspace.need("embed").path).ids
    assert sorted(set(ids)) == ids == Catalogue(workspace.tables).items(["id"])["id"].to_pylist()


KILLS = 7  # of each of three stages


@pytest.mark.slow
def test_twenty_one_kills_of_embed_align_and_index(shop: Workspace, nursery: Nursery, tmp_path: Path) -> None:
    """kill -9 at random instants of each stage as it is made for the first time: what readers use is whole at every instant, a rerun goes on
    and ends as an undisturbed one does, and no item is lost or twice."""
    shutil.rmtree(shop.root / "artefacts")
    shop = shop.change({"align.steps": 60})  # a checkpoint, and some steps after it
    shutil.copytree(shop.root, tmp_path / "killed")
    killed, instants, kills = Workspace.open(tmp_path / "killed"), random.Random(17), dict.fromkeys(STAGES, 0)
    nursery.told(shop.root)
    assert nursery.heard() == 0
    expected = contents(shop)
    for number, stage in enumerate(STAGES):
        took, folder = shop.need(stage).manifest["seconds"], killed.folder(stage)
        while kills[stage] < KILLS:
            child, deadline = nursery.told(killed.root), time.monotonic() + 60
            while not list(folder.glob("*.part")) and not killed.latest(stage):
                assert time.monotonic() < deadline
                time.sleep(0.001)
            time.sleep(instants.uniform(0, 1.2 * took))
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            assert nursery.heard() in (0, signal.SIGKILL)
            if list(folder.glob("*.part")):
                kills[stage] += 1
            else:  # it was made: see that it is right, and make it once more
                nursery.told(killed.root)
                assert nursery.heard() == 0
                assert contents(killed) == expected
                for later in STAGES[number:]:
                    os.rename(killed.folder(later), tmp_path / f"aside-{later}-{time.monotonic_ns()}")
            if killed.latest("embed"):
                assert_whole(killed)
            if killed.latest("index"):
                assert len(wiring.open_searcher(killed).search(where="category = 'rings'", n=1000)) == 24
    nursery.told(killed.root)
    assert nursery.heard() == 0
    got = contents(killed)
    assert got.keys() == expected.keys() and [name for name in expected if got[name] != expected[name]] == []
    assert_whole(killed)
    assert [row["id"] for row in Catalogue(killed.tables).rejected().to_pylist()] == ["broken"]


@pytest.mark.slow
@pytest.mark.parametrize("changed", [3, 20])
def test_ten_kills_of_a_refresh(shop: Workspace, nursery: Nursery, tmp_path: Path, changed: int) -> None:
    """kill -9 at random instants of a build after few changes (kept, extended) or many (trained, built anew): a rerun ends as an undisturbed
    one does, no item is lost or twice, and what readers use is whole at every instant."""
    add(shop, *(f"new-{k}" for k in range(changed - 1)), "ring-red-1")
    shutil.copytree(shop.root, tmp_path / "killed")
    base = shutil.copytree(shop.root / "artefacts", tmp_path / "base")
    killed = Workspace.open(tmp_path / "killed")
    nursery.told(shop.root)
    begun = time.perf_counter()
    assert nursery.heard() == 0
    took, instants, kills, done = time.perf_counter() - begun, random.Random(changed), 0, 0
    expected = contents(shop)
    while kills < 10:
        child = nursery.told(killed.root)
        time.sleep(instants.uniform(0, took / 2))
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        if nursery.heard() == signal.SIGKILL:
            kills += 1
        else:  # it was done: begin once more
            assert contents(killed) == expected
            done += 1
            os.rename(killed.root / "artefacts", tmp_path / f"aside-{done}")
            shutil.copytree(base, killed.root / "artefacts")
        if killed.latest("index"):
            assert len(wiring.open_searcher(killed).search(where="category = 'rings'", n=1000)) >= 24
    nursery.told(killed.root)
    assert nursery.heard() == 0
    got = contents(killed)
    assert got.keys() == expected.keys() and [name for name in expected if got[name] != expected[name]] == []
    assert_whole(killed)


def test_the_benchmark_counts_what_a_change_costs(shop: Workspace) -> None:
    from pinhole.benchmarks import refresh

    figures = refresh.run(shop)
    assert figures["refresh.kept"] == figures["refresh.extended"] == 1 and figures["refresh.items"] == Catalogue(shop.tables).count("items")
    assert figures["refresh.cpu_s"] > 0 and figures["refresh.cost"] == pytest.approx(figures["refresh.cpu_s"] / figures["refresh.full_cpu_s"])


def test_drawings_stand_in_for_a_catalogue(shop: Workspace, tmp_path: Path) -> None:
    from pinhole.benchmarks import refresh

    made = refresh._drawn(tmp_path / "drawn", shop, 100)
    before = set(Catalogue(made.tables).ids().to_pylist())
    assert len(before) == 100 and Catalogue(made.tables).count("boards") == 3
    prints = Catalogue(made.tables).fingerprint("items")
    refresh._change(made, 8, 1)
    after = set(Catalogue(made.tables).ids().to_pylist())
    assert len(after - before) == len(before - after) == 2 and Catalogue(made.tables).fingerprint("items") != prints
