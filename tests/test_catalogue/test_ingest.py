import csv
import json
import sys
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pinhole.catalogue.ingest import ingest
from pinhole.catalogue.records import Counts
from pinhole.catalogue.store import Catalogue
from pinhole.errors import IngestError, MissingDependency, UnknownName, UsageError

ROWS = [
    {"id": "a", "image": "pictures/a.png", "title": "Bull", "price": 3, "keywords": ["farm", "big"], "created_at": "2025-01-01T00:00:00+02:00"},
    {"id": "b", "title": "Dög", "price": 19.5, "keywords": None, "nested": {"x": [1, {"y": None}]}},
    {"id": 7, "title": 12, "description": "a number"},
]


@pytest.fixture
def catalogue(tmp_path):
    return Catalogue(tmp_path / "shop" / "tables")


def jsonl(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return path


def test_jsonl(catalogue, tmp_path):
    source, seen = jsonl(tmp_path / "items.jsonl", ROWS), []
    assert ingest(catalogue, "items", source, progress=lambda done, total: seen.append((done, total))) == Counts(added=3)
    assert seen == [(3, 3)]
    first = catalogue.item("a")
    assert first["image"] == str(tmp_path / "pictures" / "a.png")
    assert first["attributes"] == {"price": 3, "keywords": ["farm", "big"]} and first["created_at"].isoformat() == "2024-12-31T22:00:00+00:00"
    assert catalogue.item("7")["title"] == "12" and catalogue.item("b")["attributes"]["nested"] == {"x": [1, {"y": None}]}
    assert ingest(catalogue, "items", source) == Counts(unchanged=3)


def test_the_same_rows_from_every_kind_of_file_are_the_same_table(tmp_path):
    rows = [{"id": f"i{k}", "title": f'A "{k}", é\nline', "image": f"{k}.png", "colour": "red", "created_at": "2026-01-02"} for k in range(7)]
    (tmp_path / "x.json").write_text(json.dumps(rows))
    jsonl(tmp_path / "x.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    for name, comma in (("x.csv", ","), ("semi.csv", ";"), ("x.tsv", "\t")):
        with open(tmp_path / name, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter=comma)
            writer.writeheader()
            writer.writerows(rows)
    prints = set()
    for name in ("x.json", "x.jsonl", "x.parquet", "x.csv", "semi.csv", "x.tsv"):
        made = Catalogue(tmp_path / name.replace(".", "_") / "tables")
        assert ingest(made, "items", tmp_path / name, rows=3) == Counts(added=7), name
        prints.add(made.fingerprint("items"))
    assert len(prints) == 1


def test_bad_rows_are_kept_apart_with_a_reason_and_their_line(catalogue, tmp_path):
    rows = [
        ROWS[0],
        '{"id": "half',
        "",
        "[1]",
        {"title": "no id"},
        {"id": "t", "title": ["x"]},
        {"id": "d", "created_at": "soon"},
        {"id": "deep", "x": json.loads("[" * 60 + "]" * 60)},
        {"id": "s", "note": "\ud800"},
        {"id": "n", "title": "a\0b"},
        {"id": True},
        {"id": "o", "attributes": "no object"},
        '{"id": "big", "x": ' + "9" * 30 + ', "y": NaN, "z": 1e999}',
        "[" * 100_000,
        {"id": "o2", "attributes": {"own": 1}, "own": 2, "more": 3},
        {"id": "p", "image_bytes": "AAEC"},
        {"id": "q", "image_bytes": "*"},
    ]
    source = jsonl(tmp_path / "items.jsonl", rows)
    counts = ingest(catalogue, "items", source)
    assert counts == Counts(added=4, rejected=12)
    reasons = {row["row"]: row["reason"] for row in catalogue.rejected().to_pylist()}
    assert {line: reason.split(":")[0] for line, reason in reasons.items()} == {
        2: "not a JSON object",
        4: "not a JSON object",
        5: "no id",
        6: "title",
        7: "created_at",
        8: "nested more than 32 levels deep",
        9: "not valid UTF-8 text",
        10: "title",
        11: "id",
        12: "attributes",
        14: "not a JSON object",
        17: "image_bytes",
    }
    assert catalogue.item("o2")["attributes"] == {"own": 1, "more": 3} and catalogue.image("p") == b"\0\1\2"
    assert catalogue.item("big")["attributes"] == {"x": 1e30}
    assert ingest(catalogue, "items", source) == Counts(unchanged=4, rejected=12) and catalogue.count("rejected") == 12
    rows[4] = {"id": "e", "title": "now with an id"}
    assert ingest(catalogue, "items", jsonl(source, rows)) == Counts(added=1, unchanged=4, rejected=11)
    assert catalogue.count("rejected") == 11  # the mended row is no longer among them


def test_rows_without_an_id_in_a_later_batch_do_not_stop_it(catalogue, tmp_path):
    source = jsonl(tmp_path / "items.jsonl", [{"id": "a"}, {"id": "b"}, {"title": "x"}, {"title": "y"}, {"id": "c", "title": "z"}])
    assert ingest(catalogue, "items", source, rows=2) == Counts(added=3, rejected=2)


def test_repeats_across_batches(catalogue, tmp_path):
    source = jsonl(tmp_path / "items.jsonl", [{"id": "a", "title": str(k // 2)} for k in range(6)])
    ingest(catalogue, "items", source, rows=2)
    assert catalogue.item("a")["title"] == "2"
    assert [row["row"] for row in catalogue.rejected().to_pylist()] == [2, 4]


def test_csv_rows_of_another_width_and_encoding(catalogue, tmp_path):
    source = tmp_path / "items.csv"
    source.write_bytes(b'\xef\xbb\xbfid,title,price\na,"two\nlines",3\nb,too,many,cells\nc,caf\xe9,1\nd,"not ended,1\n')
    assert ingest(catalogue, "items", source) == Counts(added=1, rejected=3)
    reasons = {row["row"]: row["reason"] for row in catalogue.rejected().to_pylist()}
    assert reasons == {4: "4 cells, the header has 3", 5: "title: not valid UTF-8 text", 6: "not CSV: unexpected end of data"}
    assert catalogue.item("a")["title"] == "two\nlines" and catalogue.item("a")["attributes"] == {"price": "3"}
    assert catalogue.filter_ids("price > 2") == ["a"]


def test_boards_queries_and_events_from_csv(catalogue, tmp_path):
    jsonl(tmp_path / "items.jsonl", [{"id": "a"}, {"id": "b,c"}])
    ingest(catalogue, "items", tmp_path / "items.jsonl")
    (tmp_path / "boards.csv").write_text('id,title,items,private,unused\nx,X,"a|z",yes,1\ny,Y,"[""b,c"", ""a""]",,1\nz,Z,a,maybe,1\n')
    assert ingest(catalogue, "boards", tmp_path / "boards.csv") == Counts(added=2, rejected=2)
    assert [(b["items"], b["private"]) for b in catalogue.boards().to_pylist()] == [(["a"], True), (["b,c", "a"], False)]
    (tmp_path / "queries.csv").write_text("text,item,count\nred,a,3\nred,a,x\nblue,a,\ngreen,a,0\npink,a,2.0\npink,a,2.5\n")
    assert ingest(catalogue, "queries", tmp_path / "queries.csv") == Counts(added=3, rejected=3)
    (tmp_path / "events.csv").write_text(
        "user,item,action,time\nu,a,view,1767225600\nu,a,view,2026-01-01T00:00:00Z\nu,a,,2026-01-01\nu,a,view,99999999999999999999\n"
    )
    assert ingest(catalogue, "events", tmp_path / "events.csv") == Counts(added=1, rejected=2)  # the first two are one event


def test_mapping_renames_columns(catalogue, tmp_path):
    source = jsonl(tmp_path / "items.jsonl", [{"sku": "a", "id": 1, "name": "x"}, {"sku": "b", "id": 2}])
    assert ingest(catalogue, "items", source, {"id": "sku", "title": "name"}, rows=1) == Counts(added=2)
    assert catalogue.item("a")["title"] == "x" and catalogue.item("a")["attributes"] == {"source_id": 1}
    with pytest.raises(IngestError, match="no column `skuu` to map to `id`.*columns there: sku, id, name"):
        ingest(catalogue, "items", source, {"id": "skuu"})
    with pytest.raises(UsageError, match="queries have no column `colour`"):
        ingest(catalogue, "queries", source, {"colour": "name"})


def test_a_folder_of_images(catalogue, tmp_path):
    for name in ("cats/black cat_01.png", "cats/IMG_2041.JPG", "cats/wild/lion.webp", ".hidden/x.png", "top.png", "cats/note.txt"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".txt":
            path.write_text("no image")
        else:
            Image.new("RGB", (2, 2)).save(path, format="PNG")
    assert ingest(catalogue, "items", tmp_path / "photos") == Counts(added=4)
    rows = {row["id"]: row for row in catalogue.items().to_pylist()}
    assert {id: row["title"] for id, row in rows.items()} == {
        "cats/IMG_2041.JPG": "",
        "cats/black cat_01.png": "black cat",
        "cats/wild/lion.webp": "lion",
        "top.png": "top",
    }
    assert catalogue.filter_ids("category = 'cats'") == ["cats/IMG_2041.JPG", "cats/black cat_01.png", "cats/wild/lion.webp"]
    assert {board["id"]: board["items"] for board in catalogue.boards().to_pylist()} == {
        "folder/cats": ["cats/IMG_2041.JPG", "cats/black cat_01.png"],
        "folder/cats/wild": ["cats/wild/lion.webp"],
    }
    assert catalogue.image("top.png").startswith(b"\x89PNG")
    with pytest.raises(IngestError, match="use `pinhole ingest items FOLDER`"):
        ingest(catalogue, "boards", tmp_path / "photos")


def test_sources_that_cannot_be_read(catalogue, tmp_path):
    pq.write_table(pa.table({"id": [str(k) for k in range(1000)]}), tmp_path / "whole.parquet")
    (tmp_path / "half.parquet").write_bytes((tmp_path / "whole.parquet").read_bytes()[:900])
    (tmp_path / "empty.parquet").touch()
    (tmp_path / "empty.csv").touch()
    (tmp_path / "repeat.csv").write_text("id,id\n1,2\n")
    (tmp_path / "half.json").write_text('[{"id": "a"}, {"id"')
    (tmp_path / "no_id.jsonl").write_text('{"sku": "a"}\n')
    (tmp_path / "empty").mkdir()
    wrong = {
        "half.parquet": "half written",
        "empty.parquet": "half written",
        "empty.csv": "no header line",
        "repeat.csv": "column names",
        "half.json": "not valid JSON",
        "no_id.jsonl": "items need a column `id`.*--map id=COLUMN",
        "empty": "no images in this folder",
        "nowhere.csv": "no such file",
        "items.xlsx": "cannot tell what this file is",
    }
    for name, why in wrong.items():
        with pytest.raises(IngestError, match=why) as caught:
            ingest(catalogue, "items", tmp_path / name)
        assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UnknownName, match="unknown kind `item`"):
        ingest(catalogue, "item", tmp_path / "whole.parquet")
    with pytest.raises(IngestError, match="download it first"):
        ingest(catalogue, "items", "https://example.com/items.csv")
    (tmp_path / "empty.jsonl").touch()
    assert ingest(catalogue, "items", tmp_path / "empty.jsonl") == Counts()


def test_parquet_with_types_of_its_own(catalogue, tmp_path):
    table = pa.table(
        {
            "id": pa.array([1, 2, None], pa.int64()),
            "title": pa.array(["x", "y", "x"]).dictionary_encode(),
            "image": pa.array([{"bytes": b"1", "path": "a.png"}, None, None]),
            "created_at": pa.array([0, 1, 2], pa.timestamp("ns")),
            "tags": pa.array([["a", "b"], [], None]),
            "map": pa.array([[("k", 1)], None, None], pa.map_(pa.string(), pa.int64())),
            "vector": pa.array([[1.5, float("nan")], None, None], pa.list_(pa.float32())),
            "money": pa.array([Decimal("1.50"), None, None], pa.decimal128(5, 2)),
            "seen": pa.array([None, 1, 2], pa.timestamp("ns")),
            "raw": pa.array([b"x", b"y", b"z"]),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    assert ingest(catalogue, "items", tmp_path / "t.parquet") == Counts(added=2, rejected=1)
    assert catalogue.image("1") == b"1"
    assert catalogue.item("1")["attributes"] == {"tags": ["a", "b"], "map": {"k": 1}, "money": 1.5, "vector": [1.5, None]}
    assert catalogue.rejected().to_pylist()[0]["row"] == 3


def test_hugging_face_datasets(catalogue, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependency, match=r"pinhole-vlm\[hf\]"):
        ingest(catalogue, "items", "hf:some/thing")


def test_a_local_hugging_face_dataset(catalogue, tmp_path):
    datasets = pytest.importorskip("datasets")
    picture = Image.new("RGB", (3, 3), "red")
    data = datasets.Dataset.from_dict({"image": [picture] * 3, "product_title": ["a", "b", "c"], "price": [1, 2, 3]}).cast_column(
        "image", datasets.Image()
    )
    datasets.DatasetDict({"test": data, "train": data.select([0, 1])}).save_to_disk(str(tmp_path / "set"))
    assert ingest(catalogue, "items", f"hf:{tmp_path / 'set'}", {"title": "product_title"}) == Counts(added=2)
    assert catalogue.item("train/2")["title"] == "b" and catalogue.image("train/1").startswith(b"\x89PNG")
    assert ingest(catalogue, "items", f"hf:{tmp_path / 'set'}:test", {"title": "product_title"}) == Counts(added=3)
    with pytest.raises(IngestError, match="no split `dev`.*test, train"):
        ingest(catalogue, "items", f"hf:{tmp_path / 'set'}:dev")
    with pytest.raises(IngestError, match="the dataset cannot be had"):
        ingest(catalogue, "items", f"hf:{tmp_path / 'nowhere'}")
