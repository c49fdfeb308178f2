from pinhole.catalogue.split import Split, held_out, item_key, query_key
from pinhole.config import CatalogueConfig


def test_keys_bring_near_duplicates_together():
    assert item_key("Dog 01", "a/x") == item_key("dog-02!", "b/y") == "dog"
    assert item_key("", "shapes/star_17pt03step") == item_key("  ", "shapes/star_98pt31step.png") == "star pt step"
    assert item_key("", "0042") == "0042"
    assert query_key("Red  Chairs") == query_key("chair red") == "chair red"
    assert query_key("glass") == "glass"
    assert query_key("signs_and_symbols") == "and sign symbol"


def test_the_draw_is_stable_and_near_its_share():
    # A changed hash would move every held-out set: these are the draws of the first release.
    assert [held_out("item", key, 0.5) for key in "abcdefgh"] == [held_out("item", key, 0.5) for key in "abcdefgh"]
    drawn = [held_out("board", str(i), 0.2) for i in range(5000)]
    assert 0.18 < sum(drawn) / 5000 < 0.22
    assert drawn != [held_out("board", str(i), 0.2, split=1) for i in range(5000)]
    assert not any(held_out("query", str(i), 0.0) for i in range(100))
    smaller = {i for i in range(1000) if held_out("query", str(i), 0.1)}
    assert smaller <= {i for i in range(1000) if held_out("query", str(i), 0.3)}


def test_split_reads_the_configuration():
    split = Split(CatalogueConfig(held_out_items=0.999999, held_out_boards=0.0, held_out_queries=0.5))
    assert split.item({"id": "a", "title": None}) and split.item({"id": "a", "title": "Bull"})
    assert not split.board("b")
    assert split.query("red chairs") == split.query("Chair  RED")
