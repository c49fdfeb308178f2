"""A watched folder or table: what is new is read once it rests and built, what vanished goes where that is wanted, and nothing stops it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pinhole import tasks
from pinhole.catalogue.store import Catalogue
from pinhole.cli import run
from pinhole.console import Console
from pinhole.errors import IngestError, PinholeError, UnknownName, UsageError
from pinhole.tasks import Answer
from pinhole.watch import PATIENCE, Round, Watch, follow, seconds
from pinhole.workspace import Workspace
from toy_workspace import draw, make_models, make_source, make_workspace


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Builds are noted, not run; an error that is put there is raised by the next."""
    asked: list[Any] = []

    def build(workspace: Workspace, names: list[str], console: Console) -> Answer:
        if asked and isinstance(asked[-1], Exception):
            raise asked.pop()
        asked.append(names)
        return Answer({"stages": {name: {"action": "built"} for name in names}}, [])

    monkeypatch.setattr(tasks, "build", build)
    return asked


def ids(workspace: Workspace) -> list[str]:
    found: list[str] = Catalogue(workspace.tables).items(["id"])["id"].to_pylist()
    return found


def settle(watch: Watch, looks: int = 4) -> list[Round]:
    """Some looks at a source; what the rounds did that did something."""
    rounds = [watch.act() for _ in range(looks) if watch.look()]
    return [one for one in rounds if not one.idle]


def write(path: Path, *rows: Any) -> None:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def test_a_table_is_followed(workspace: Workspace, tmp_path: Path, builds: list[Any]) -> None:
    file = tmp_path / "items.jsonl"
    write(file, {"id": "a", "title": "one"}, {"id": "b"})
    watch = Watch(workspace, "items", str(file))
    assert not watch.look(), "one look says nothing of rest"
    [first] = settle(watch)
    assert first.changes == {"added": 2, "changed": 0, "unchanged": 0, "rejected": 0} and builds == [["index"]]
    assert settle(watch) == [] and len(builds) == 1, "nothing new, nothing done"
    write(file, {"id": "a", "title": "two"}, {"id": "b"}, "{half a ro", {"id": "c"})
    [second] = settle(watch)
    assert second.changes == {"added": 1, "changed": 1, "unchanged": 1, "rejected": 1} and len(builds) == 2
    os.utime(file)  # written again, the same
    assert settle(watch)[0].changes == {"added": 0, "changed": 0, "unchanged": 3, "rejected": 1} and len(builds) == 2
    assert ids(workspace) == ["a", "b", "c"]
    again = Watch(workspace, "items", str(file))
    assert [one.changes for one in settle(again)] == [{}] and len(builds) == 3, "a new start reads nothing twice, and builds what was left stale"


def test_a_file_that_is_still_written_is_left_alone_but_not_for_ever(workspace: Workspace, tmp_path: Path, builds: list[Any]) -> None:
    file = tmp_path / "items.jsonl"
    write(file, {"id": "a"})
    watch = Watch(workspace, "items", str(file))
    looks = 0
    while not watch.look():
        looks += 1
        assert Catalogue(workspace.tables).count("items") == 0
        with open(file, "a") as out:
            out.write(json.dumps({"id": f"more-{looks}"}) + "\n")
    assert looks == PATIENCE
    assert watch.act().changes["added"] == PATIENCE + 1


def test_what_vanished_goes_where_that_is_wanted(workspace: Workspace, tmp_path: Path, builds: list[Any]) -> None:
    file = tmp_path / "items.jsonl"
    write(file, {"id": "a"}, {"id": "b"}, {"id": "c"})
    kept, removing = Watch(workspace, "items", str(file)), Watch(workspace, "items", str(file), remove=True)
    settle(removing)
    Catalogue(workspace.tables).upsert("items", pa.table({"id": ["from elsewhere"]}))
    write(file, {"id": "a"}, {"id": "b"})
    settle(kept)
    assert ids(workspace) == ["a", "b", "c", "from elsewhere"]
    file.write_text("")
    assert settle(removing) == [] and len(ids(workspace)) == 4, "an empty source is a mishap, not a wish"
    write(file, {"id": "a"}, {"id": "d"})
    assert [one.removed for one in settle(removing)] == [2]
    assert ids(workspace) == ["a", "d", "from elsewhere"]


def test_a_folder_is_followed(workspace: Workspace, tmp_path: Path, builds: list[Any]) -> None:
    folder = tmp_path / "pictures"
    (folder / "rings").mkdir(parents=True)
    for number in range(3):
        draw("ring", "red", number, folder / "rings" / f"{number}.png")
    watch = Watch(workspace, "items", str(folder), remove=True)
    settle(watch)
    assert ids(workspace) == [f"rings/{number}.png" for number in range(3)]
    draw("ring", "blue", 1, folder / "rings" / "1.png")
    draw("cross", "blue", 1, folder / "cross.png")
    (folder / "rings" / "2.png").unlink()
    (folder / "note.txt").write_text("no picture")
    [done] = settle(watch)
    assert (done.changes["added"], done.changes["changed"], done.removed) == (1, 1, 1)
    assert ids(workspace) == ["cross.png", "rings/0.png", "rings/1.png"]
    assert Catalogue(workspace.tables).boards()["items"].to_pylist() == [["rings/0.png", "rings/1.png"]]


def test_a_vanished_source_removes_nothing_and_is_waited_for(
    workspace: Workspace, tmp_path: Path, builds: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "items.jsonl"
    write(file, {"id": "a"})
    watch = Watch(workspace, "items", str(file), remove=True)
    settle(watch)
    file.rename(tmp_path / "away")
    assert settle(watch) == [] and ids(workspace) == ["a"]
    assert capsys.readouterr().err.count("is gone: waiting for it") == 1
    write(file, {"id": "a"}, {"id": "b"})
    assert [one.changes["added"] for one in settle(watch)] == [1]


def test_trouble_is_said_once_and_tried_again_when_something_changes(
    workspace: Workspace, tmp_path: Path, builds: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "items.parquet"
    file.write_bytes(b"PAR1 half")
    watch = Watch(workspace, "items", str(file))
    [done] = settle(watch, 8)
    assert "cannot be read" in done.trouble[0] and capsys.readouterr().err.count("cannot be read") == 1
    pq.write_table(pa.table({"id": ["a"]}), file)
    builds.append(PinholeError("too few items"))
    [done] = settle(watch, 8)
    assert done.changes["added"] == 1 and done.trouble == ["too few items"]
    pq.write_table(pa.table({"id": ["a", "b"]}), file)
    [done] = settle(watch, 8)
    assert not done.trouble and done.stages


def test_another_writer_is_waited_for(workspace: Workspace, tmp_path: Path, builds: list[Any]) -> None:
    file = tmp_path / "items.jsonl"
    write(file, {"id": "a"})
    watch = Watch(workspace, "items", str(file))
    with workspace.lock("somebody"):
        [done] = settle(watch, 6)
        assert "another writer" in done.trouble[0]
    assert [one.changes["added"] for one in settle(watch)] == [1]


def test_what_was_built_before_is_built_again(workspace: Workspace, tmp_path: Path, builds: list[Any]) -> None:
    file = tmp_path / "items.jsonl"
    write(file, {"id": "a"})
    workspace.start("graft", "k")
    workspace.finish("graft", "k", {"recipe": {"inputs": {}}})
    settle(Watch(workspace, "items", str(file)))
    assert builds == [["index", "graft"]]


@pytest.mark.parametrize(
    ("text", "found"), [("2s", 2.0), ("500ms", 0.5), ("1m", 60.0), ("0.5", 0.5), ("3 parsecs", None), ("soon", None), ("0", None)]
)
def test_pauses(text: str, found: float | None) -> None:
    if found is None:
        with pytest.raises(UsageError, match="is no pause"):
            seconds(text)
    else:
        assert seconds(text) == found


def test_what_cannot_be_watched(workspace: Workspace, tmp_path: Path) -> None:
    for error, arguments in (
        (IngestError, ("items", str(tmp_path / "none"))),
        (UsageError, ("items", "hf:cats")),
        (UnknownName, ("cats", str(tmp_path))),
    ):
        with pytest.raises(error):
            Watch(workspace, *arguments)
    with pytest.raises(UsageError, match="not removed"):
        Watch(workspace, "queries", str(tmp_path), remove=True)


def test_once_is_one_round_and_its_trouble_an_error(workspace: Workspace, tmp_path: Path, builds: list[Any]) -> None:
    told: list[Round] = []
    file = tmp_path / "items.jsonl"
    write(file, {"id": "a"})
    follow(Watch(workspace, "items", str(file)), 0.01, True, told.append)
    follow(Watch(workspace, "items", str(file)), 0.01, True, told.append)
    assert [one.changes.get("added") for one in told] == [1, None]
    (tmp_path / "empty").mkdir()
    with pytest.raises(IngestError, match="no images"):
        follow(Watch(workspace, "items", str(tmp_path / "empty")), 0.01, True, told.append)


# -- the command --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("toy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PINHOLE_CACHE", str(folder / "cache"))
        workspace = make_workspace(folder / "shop", make_source(folder / "source"), make_models(folder / "models"))
        assert run(["build", "index", "-w", str(workspace.root)]) == 0
        yield folder


def test_the_command_reads_builds_and_finds(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(toy / "shop", tmp_path / "shop")
    shutil.copytree(toy / "source", tmp_path / "source")
    where = ("-w", str(tmp_path / "shop"))
    draw("ring", "pink", 9, tmp_path / "source" / "odd.png")
    with open(tmp_path / "source" / "items.jsonl", "a") as file:
        file.write("\n" + json.dumps({"id": "odd", "image": str(tmp_path / "source" / "odd.png"), "title": "an odd ring"}) + "\n")
    capsys.readouterr()
    assert run(["watch", str(tmp_path / "source" / "items.jsonl"), "--once", "--every", "50ms", "--json", *where]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert said.out.count("\n") == 1 and found["added"] == 1 and found["kind"] == "items" and found["errors"] == []
    assert {name: stage["action"] for name, stage in found["stages"].items()}["embed"] == "built"
    assert run(["search", "an odd ring", "-n", "3", "--json", *where]) == 0
    assert "odd" in [hit["id"] for hit in json.loads(capsys.readouterr().out)["hits"]]


def test_ctrl_c_ends_it_and_says_how_to_go_on(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "items.jsonl").write_text("")
    heard = "signal.signal(signal.SIGINT, signal.default_int_handler)"  # a shell starts what runs in the background with Ctrl-C ignored
    code = f"import signal; {heard}; from pinhole.cli import main; main()"
    command = [sys.executable, "-c", code, "watch", str(tmp_path / "items.jsonl"), "--every", "50ms", "-w", str(workspace.root)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        assert process.stderr.readline().startswith("watching ")
        time.sleep(0.3)
    finally:
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "run `pinhole watch" in rest, rest


def test_rounds_are_told_as_they_come(workspace: Workspace, tmp_path: Path, builds: list[Any]) -> None:
    file, told = tmp_path / "items.jsonl", list[dict[str, Any]]()
    write(file, {"id": "a"})

    def hear(done: Round) -> None:
        told.append(done.value("items", str(file)))
        if len(told) == 2:
            raise KeyboardInterrupt
        write(file, {"id": "a"}, {"id": "b"})

    tell: Callable[[Round], None] = hear
    with pytest.raises(KeyboardInterrupt):
        follow(Watch(workspace, "items", str(file)), 0.01, False, tell)
    assert [one["added"] for one in told] == [1, 1] and ids(workspace) == ["a", "b"]
