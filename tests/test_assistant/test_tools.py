"""Schemas come from functions; whatever is wrong with a call is said in words."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from pinhole.assistant.shop import nearest
from pinhole.assistant.tools import BUILT_IN, Found, Refused, Shop, Thing, Tool, Toolbox
from pinhole.graft.prompt import tools_text
from toy_shop import ToyShop


@pytest.fixture
def shop() -> ToyShop:
    return ToyShop()


def resolve(reference: str) -> Thing:
    if reference != "#2":
        raise Refused(f"there is no {reference}")
    return Thing("lime", "a green lime", None)


def test_the_built_in_schemas() -> None:
    schemas = {schema["name"]: schema for schema in Toolbox().schemas}
    assert list(schemas) == ["search", "related", "item", "board"]
    search = schemas["search"]["parameters"]
    assert list(search["properties"]) == ["text", "like", "unlike", "category"] and search["required"] == []
    assert search["properties"]["like"]["pattern"] == "^#[0-9]{1,3}$"
    assert search["properties"]["text"] == {"type": "string", "maxLength": 100, "description": "words for what is wanted"}
    assert schemas["item"]["parameters"]["required"] == ["item"]
    assert tools_text(Toolbox().schemas).splitlines()[0] == "search(text, like=#, unlike=#, category): find pictures"
    assert all(schema["description"] for schema in schemas.values())


def order(shop: Shop, thing: Thing, size: Literal["small", "large"], count: int = 1, price: float = 0.5, gift: bool = False) -> str:
    """order something

    thing: what to order
    count: how many
    """
    return f"{count} {size} {thing.title}, {price}, {gift}"


def test_a_tool_is_a_function(shop: ToyShop) -> None:
    toolbox = Toolbox([*BUILT_IN, order])
    parameters = toolbox.schemas[-1]["parameters"]
    assert parameters["properties"]["size"] == {"type": "string", "enum": ["small", "large"]}
    assert parameters["properties"]["count"] == {"type": "integer", "description": "how many"}
    assert parameters["required"] == ["thing", "size"]
    assert toolbox.call(shop, "order", {"thing": "#2", "size": "small", "count": 3}, resolve) == "3 small a green lime, 0.5, False"


def test_a_parameter_needs_a_type() -> None:
    def odd(shop: Shop, what: dict[str, int]) -> str:
        return ""

    with pytest.raises(TypeError, match=r"odd\(what\)"):
        Tool.of(odd)


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("delete", {}, 'no tool "delete"; there are search'),
        ("search", {"colour": "red"}, 'search has no argument "colour"; it takes text'),
        ("search", {}, "say what to search for"),
        ("search", {"unlike": "#2"}, "say what to search for"),
        ("search", {"like": "#9"}, "there is no #9"),
        ("search", {"text": 3}, "text of search is a string"),
        ("search", {"text": None}, "text of search is a string"),
        ("search", {"category": "zebra crossings"}, 'no category "zebra crossings"; nearest: '),
        ("related", {}, "related needs item"),
        ("related", {"item": ["#2"]}, "there is no"),
        ("board", {"title": "cars"}, 'no board "cars"; nearest: '),
        ("order", {"thing": "#2", "size": "tiny"}, "size of order is one of small, large"),
        ("order", {"thing": "#2", "size": "small", "count": True}, "count of order is a integer"),
    ],
)
def test_what_is_wrong_is_said(shop: ToyShop, name: str, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(Refused) as refused:
        Toolbox([*BUILT_IN, order]).call(shop, name, arguments, resolve)
    assert words in str(refused.value) and len(str(refused.value)) < 200


def test_the_built_in_tools(shop: ToyShop) -> None:
    box = Toolbox()
    found = box.call(shop, "search", {"text": " red ", "like": "#2", "category": "Animal"}, resolve)
    assert found == Found([("apple", pytest.approx(1.0))]) and shop.asked == [("red", ["lime"], [], "animals")]
    assert box.call(shop, "related", {"item": "#2"}, resolve) == Found([("plum", 0.5), ("pear", 0.5)])
    assert box.call(shop, "item", {"item": "#2"}, resolve) == "title: a green lime; id: lime"
    assert box.call(shop, "item", {"item": "#2"}, lambda _: Thing(None, "", None)) == "a picture that was sent, not one of the catalogue"
    board = box.call(shop, "board", {"title": "sour"}, resolve)
    assert isinstance(board, Found) and [id for id, _ in board.items] == ["lemon", "lime", "apple", "plum"]
    assert board.note == 'board "sour fruit", 5 pictures'


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("Animals", "animals"),
        ("animal", "animals"),
        ("odd", "odd things"),
        ("Odd_Things", "odd things"),
        ("animls", "animals"),
        ("fruits", "fruit"),
        ("cars", ""),
        ("", ""),
    ],
)
def test_the_nearest_name(name: str, meant: str) -> None:
    found, near = nearest(name, ["fruit", "animals", "odd things"])
    assert found == meant and (bool(near) != bool(found))


def test_an_ambiguous_name_is_no_name() -> None:
    assert nearest("fruit", ["sour fruit", "sweet fruit"]) == ("", ["sour fruit", "sweet fruit"])
    assert nearest("x", []) == ("", [])
