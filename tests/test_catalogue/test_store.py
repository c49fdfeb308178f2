import random
import threading

import pyarrow as pa
import pytest

from pinhole.catalogue import records
from pinhole.catalogue.records import Rejection
from pinhole.catalogue.store import Catalogue
from pinhole.errors import BadImage, Corrupt, DiskFull, IngestError, UnknownItem, UnknownName, UsageError


def rows(n, **more):
    return pa.Table.from_pylist([{"id": f"i{k:04d}", "title": f"Thing {k}", "category": "ab"[k % 2], "price": k / 2, **more} for k in range(n)])


@pytest.fixture
def catalogue(tmp_path):
    return Catalogue(tmp_path / "shop" / "tables")


def test_upserts_count_what_they_did(catalogue):
    assert catalogue.upsert("items", rows(10)) == records.Counts(added=10)
    assert catalogue.upsert("items", rows(12)) == records.Counts(added=2, unchanged=10)
    changed = rows(3, colour="red")
    assert catalogue.upsert("items", changed) == records.Counts(changed=3)
    assert catalogue.item("i0001")["attributes"] == {"category": "b", "price": 0.5, "colour": "red"}
    assert catalogue.count("items") == 12 and catalogue.count("boards") == 0


def test_a_reader_is_read_batch_by_batch(catalogue):
    table, seen = rows(1000), []
    reader = pa.RecordBatchReader.from_batches(table.schema, table.to_batches(max_chunksize=300))
    assert catalogue.upsert("items", reader, progress=lambda done, total: seen.append(done)) == records.Counts(added=1000)
    assert seen == [300, 600, 900, 1000]


def test_the_fingerprint_is_of_content_only(catalogue, tmp_path):
    table = rows(200)
    catalogue.upsert("items", table)
    other = Catalogue(tmp_path / "other" / "tables")
    order = list(range(200))
    random.Random(1).shuffle(order)
    for start in range(0, 200, 30):
        other.upsert("items", rows(200, wrong="yes").take(pa.array(order[start : start + 10])))  # to be replaced
        other.upsert("items", table.take(pa.array(order[start : start + 30])))
    assert other.fingerprint("items") == catalogue.fingerprint("items")
    assert other.items().equals(catalogue.items())
    other.compact("items")
    assert other.fingerprint("items") == catalogue.fingerprint("items")
    other.upsert("items", rows(1, price=7))
    assert other.fingerprint("items") != catalogue.fingerprint("items")
    assert len(catalogue.fingerprint("events")) == 16


def test_items_come_by_id_or_in_the_order_asked_for(catalogue):
    catalogue.upsert("items", rows(1500).take(pa.array(range(1499, -1, -1))))
    assert catalogue.items(["id"])["id"].to_pylist() == sorted(f"i{k:04d}" for k in range(1500))
    assert catalogue.items(["title", "id"], ids=["i0003", "nope", "i0001", "i0003"]).to_pylist() == [
        {"title": "Thing 3", "id": "i0003"},
        {"title": "Thing 1", "id": "i0001"},
        {"title": "Thing 3", "id": "i0003"},
    ]
    many = [f"i{k:04d}" for k in range(1400, 100, -1)]
    assert catalogue.items(["id"], ids=many)["id"].to_pylist() == many
    assert catalogue.items(["id"], where="category = 'a'", ids=["i0002", "i0001"])["id"].to_pylist() == ["i0002"]
    assert len(catalogue.items(ids=[])) == 0
    assert catalogue.items().schema.names == ["id", "image", "title", "description", "attributes", "created_at"]
    with pytest.raises(UsageError, match="no column `colour`"):
        catalogue.items(["colour"])


def test_an_unknown_item_names_its_neighbours(catalogue):
    catalogue.upsert("items", rows(20))
    with pytest.raises(UnknownItem, match="i0013"):
        catalogue.item("i00133")
    with pytest.raises(UnknownItem):
        catalogue.image("' OR '1'='1")


def test_references_to_unknown_items_are_refused_with_a_reason(catalogue):
    catalogue.upsert("items", rows(3))
    boards = pa.table({"id": ["b1", "b2", "b3"], "items": [["i0000", "i0001"], ["i0002", "x"], ["y", "z"]], "title": ["", "two", ""]})
    assert catalogue.upsert("boards", boards, source="s") == records.Counts(added=2, rejected=2)
    assert [row["items"] for row in catalogue.boards().to_pylist()] == [["i0000", "i0001"], ["i0002"]]
    queries = pa.table({"text": ["red  chair", "blue"], "item": ["i0000", "nope"]})
    assert catalogue.upsert("queries", queries, source="s") == records.Counts(added=1, rejected=1)
    assert catalogue.queries().to_pylist() == [{"text": "red chair", "item": "i0000", "count": 1}]
    reasons = {row["key"]: row["reason"] for row in catalogue.rejected().to_pylist()}
    assert set(reasons) == {"boards:s:2", "boards:s:3", "queries:s:2"}
    assert "unknown items (x): the board keeps the other 1" in reasons["boards:s:2"]
    assert catalogue.upsert("boards", boards, source="s").rejected == 2
    assert catalogue.count("rejected") == 3  # noted once


def test_judgements_are_replaced_by_their_key_and_bad_grades_refused(catalogue):
    catalogue.upsert("items", rows(3))
    given = [
        ("a  chair", "i0000", 4),
        ("a chair", "i0001", 0),
        ("a chair", "i0002", 5),
        ("a chair", "i0002", None),
        ("a chair", "gone", 1),
        ("", "i0000", 1),
    ]
    table = pa.table({"text": [one[0] for one in given], "item": [one[1] for one in given], "grade": [one[2] for one in given]})
    assert catalogue.upsert("judgements", table, source="x") == records.Counts(added=2, rejected=4)
    assert sorted(row["reason"].split(":")[0] for row in catalogue.rejected().to_pylist()) == ["grade", "no grade", "no text", "unknown item `gone`"]
    again = pa.table({"text": ["a chair"], "item": ["i0000"], "grade": ["2"]})
    assert catalogue.upsert("judgements", again) == records.Counts(changed=1)
    assert catalogue.judgements().to_pylist() == [{"text": "a chair", "item": f"i000{k}", "grade": grade} for k, grade in ((0, 2), (1, 0))]
    with pytest.raises(IngestError, match="`grade`"):
        catalogue.upsert("judgements", pa.table({"text": ["a"], "item": ["i0000"]}))
    catalogue.delete("items", ["i0000"])
    assert [row["item"] for row in catalogue.judgements().to_pylist()] == ["i0001"]


def test_query_counts_are_replaced_and_events_keyed(catalogue):
    catalogue.upsert("items", rows(2))
    catalogue.upsert("queries", pa.table({"text": ["red"], "item": ["i0000"], "count": [2]}))
    assert catalogue.upsert("queries", pa.table({"text": ["red", "red"], "item": ["i0000", "i0001"], "count": [5, 1]})) == records.Counts(1, 1)
    assert catalogue.queries()["count"].to_pylist() == [5, 1]
    event = {"user": "u", "item": "i0000", "action": "Save", "time": "2026-01-01T00:00:00Z", "page": 3}
    assert catalogue.upsert("events", pa.Table.from_pylist([event, event])) == records.Counts(added=1)  # the same event twice
    assert catalogue.upsert("events", pa.Table.from_pylist([{**event, "time": "2026-01-01T01:00:00+01:00"}])) == records.Counts(unchanged=1)
    assert catalogue.upsert("events", pa.Table.from_pylist([{**event, "event_id": "e1"}])) == records.Counts(added=1)
    assert {row["action"] for row in catalogue.events().to_pylist()} == {"save"}
    assert records.attributes(catalogue.events(), "context") == [{"page": 3}, {"page": 3}]


def test_repeats_in_a_source_last_row_counts_and_the_other_is_noted(catalogue):
    table = pa.table({"id": ["a", "b", "a", "b"], "title": ["1", "2", "3", "2"]})
    assert catalogue.upsert("items", table, source="s") == records.Counts(added=2, rejected=1)
    assert catalogue.item("a")["title"] == "3"
    assert [(row["row"], row["reason"]) for row in catalogue.rejected().to_pylist()] == [(1, "row 3 has the same key and replaces this one")]


def test_rejections_by_id_and_settling(catalogue):
    catalogue.reject("items", "embed", [Rejection(None, "a", "no picture"), Rejection(None, "b", "a bomb")])
    catalogue.reject("items", "embed", [Rejection(None, "a", "no picture at all")])
    assert [(row["id"], row["reason"]) for row in catalogue.rejected().to_pylist()] == [("a", "no picture at all"), ("b", "a bomb")]
    catalogue.settle("items", "embed", {"items:embed:b"})
    assert catalogue.rejected()["id"].to_pylist() == ["b"]


def test_deleting_items_leaves_no_reference(catalogue):
    catalogue.upsert("items", rows(3))
    catalogue.upsert("boards", pa.table({"id": ["b1", "b2"], "items": [["i0000", "i0001"], ["i0000"]]}))
    catalogue.upsert("queries", pa.table({"text": ["q"], "item": ["i0000"]}))
    catalogue.upsert("events", pa.table({"user": ["u"], "item": ["i0000"], "action": ["view"]}))
    catalogue.delete("items", ["i0000", "it's not there"])
    assert catalogue.boards().to_pylist() == [{"id": "b1", "title": "", "owner": "", "items": ["i0001"], "private": False}]
    assert catalogue.count("items") == 2 and catalogue.count("queries") == 0 and catalogue.count("events") == 0


def test_full_text_finds_titles_descriptions_and_keywords(catalogue):
    table = pa.table(
        {
            "id": ["a", "b", "c"],
            "title": ["A red chair", "", ""],
            "description": ["", "stands beside chairs", ""],
            "keywords": [["wood"], None, ["chair"]],
        }
    )
    catalogue.upsert("items", table)
    assert {id for id, _ in catalogue.text_search("chair", 10)} == {"a", "b", "c"}  # makes the index itself
    assert [id for id, _ in catalogue.text_search("wood", 10)] == ["a"]
    catalogue.upsert("items", pa.table({"id": ["d"], "title": ["wooden wood"]}))
    assert {id for id, _ in catalogue.text_search("wood", 10)} == {"a", "d"}  # rows since the index was made
    catalogue.refresh_text_index()
    assert {id for id, _ in catalogue.text_search("wood", 10)} == {"a", "d"}
    assert catalogue.text_search("wood", 10, "keywords = 'wood'")[0][0] == "a"
    assert len(catalogue.text_search("chair", 2)) == 2
    for odd in ("", "   ", '"', "AND OR (", "a:b*", "x" * 20_000, "\x00", "'; DROP"):
        assert isinstance(catalogue.text_search(odd, 3), list)
    with pytest.raises(UsageError):
        catalogue.text_search("wood", 3, "DROP TABLE items")


def test_images_by_path_bytes_and_neither(catalogue, tmp_path):
    inside = tmp_path / "shop" / "pictures" / "a.png"
    inside.parent.mkdir(parents=True)
    inside.write_bytes(b"inside")
    (tmp_path / "b.png").write_bytes(b"outside")
    table = pa.Table.from_pylist(
        [
            {"id": "in", "image": str(inside)},
            {"id": "out", "image": "b.png"},
            {"id": "url", "image": "https://example.com/x.png"},
            {"id": "gone", "image": "gone.png"},
            {"id": "none", "image": ""},
            {"id": "nul", "image": "a" * 5000},
        ]
    )
    catalogue.upsert("items", table, base=tmp_path)
    catalogue.upsert("items", pa.table({"id": ["blob"], "image_bytes": pa.array([b"blob"], pa.binary())}))
    assert [catalogue.image(id) for id in ("in", "out", "blob")] == [b"inside", b"outside", b"blob"]
    for id, why in {"url": "URL", "gone": "No such file", "none": "no image", "nul": "cannot be read"}.items():
        with pytest.raises(BadImage, match=why):
            catalogue.image(id)
    assert catalogue.item("in")["image"] == str(inside) and catalogue.item("url")["image"] == "https://example.com/x.png"
    (tmp_path / "shop").rename(tmp_path / "moved")  # a workspace can be moved with what is inside it
    moved = Catalogue(tmp_path / "moved" / "tables")
    assert moved.image("in") == b"inside" and moved.image("blob") == b"blob"
    assert moved.items(["image"], ids=["in"])["image"].to_pylist() == [str(tmp_path / "moved" / "pictures" / "a.png")]


def test_a_replaced_picture_file_is_a_changed_item(catalogue, tmp_path):
    (tmp_path / "a.png").write_bytes(b"one")
    table = pa.table({"id": ["a"], "image": [str(tmp_path / "a.png")]})
    catalogue.upsert("items", table)
    before = catalogue.fingerprint("items")
    assert catalogue.upsert("items", table).unchanged == 1
    (tmp_path / "a.png").write_bytes(b"another")
    assert catalogue.upsert("items", table).changed == 1 and catalogue.fingerprint("items") != before


def test_two_handles_see_each_others_writes(catalogue):
    catalogue.upsert("items", rows(1))
    other = Catalogue(catalogue.path)
    assert other.count("items") == 1
    catalogue.upsert("items", rows(5))
    assert other.count("items") == 5 and len(other.items()) == 5


def test_reads_from_several_threads_while_somebody_writes(catalogue):
    catalogue.upsert("items", rows(300))
    catalogue.refresh_text_index()
    wrong = []

    def read():
        for _ in range(6):
            try:
                assert len(catalogue.items()) >= 300 and catalogue.item("i0007")["title"].startswith("Thing")
                assert len(catalogue.filter_ids("category = 'a'")) >= 150
                catalogue.text_search("thing", 5)
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for n in range(310, 360, 10):
        catalogue.upsert("items", rows(n))
    for thread in threads:
        thread.join()
    assert not wrong


def test_what_was_put_wrongly_is_said(catalogue):
    with pytest.raises(UnknownName, match="known: items, boards"):
        catalogue.upsert("item", rows(1))
    with pytest.raises(UnknownName):
        catalogue.count("things")
    with pytest.raises(IngestError, match="need a column `items`.*--map items=COLUMN"):
        catalogue.upsert("boards", pa.table({"id": ["a"], "things": [["x"]]}))


def test_a_damaged_table_and_a_full_disk_are_one_line(catalogue):
    catalogue.upsert("items", rows(50))
    with pytest.raises(DiskFull, match="no space left"), catalogue._trouble("items"):
        raise RuntimeError("lance error: IO: No space left on device (os error 28)")
    for file in (catalogue.path / "items.lance" / "data").iterdir():
        file.write_bytes(file.read_bytes()[:10])
    with pytest.raises(Corrupt, match="table `items`"):
        Catalogue(catalogue.path).items()
    for file in (catalogue.path / "items.lance" / "_versions").iterdir():
        file.write_bytes(b"")
    with pytest.raises(Corrupt, match="table `items`"):
        Catalogue(catalogue.path).items()
