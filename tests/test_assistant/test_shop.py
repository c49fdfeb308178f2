"""The built-in tools on a real catalogue, features, space and index."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pinhole.assistant.conversation import Conversation
from pinhole.assistant.loop import Assistant, Shown
from pinhole.assistant.shop import CatalogueShop
from pinhole.assistant.tools import Found, Refused, Thing, Toolbox
from pinhole.errors import BadImage, UnknownItem
from toy_search import D_IMAGE, make_toy
from toy_shop import ScriptedEngine


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> CatalogueShop:
    from pinhole.retrieval.index import Searcher, build_index
    from pinhole.vision.align import Space, build_align
    from pinhole.vision.encoders.base import ImageEncoder
    from pinhole.vision.images import Recipe

    root = tmp_path_factory.mktemp("shop")
    toy = make_toy(root)
    rows = [
        {"id": "secret", "title": "secret plans", "items": ["boat/0000"], "private": True},
        {"id": "mine", "title": "My Boats", "items": ["boat/0000", "boat/0008", "no such item"], "private": False},
    ]
    toy.catalogue.upsert("boards", pa.Table.from_pylist(rows))
    (root / "space").mkdir()
    (root / "index").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pinhole.vision.encoders.text_encoder", lambda spec: toy.text_encoder)
        build_align(toy.catalogue, toy.features, toy.config, root / "space")
    space = Space.load(root / "space")
    build_index(toy.catalogue, toy.features, space, toy.config, root / "index", asked=toy.asked)

    def look(pixels: np.ndarray) -> np.ndarray:
        return np.repeat(pixels.reshape(len(pixels), -1)[:, :1].astype(np.float32), D_IMAGE, axis=1)

    encoder = ImageEncoder("toy:looks", "i" * 16, Recipe(size=8), D_IMAGE, look)
    searcher = Searcher(toy.catalogue, toy.features, space, root / "index", toy.text_encoder, encoder)
    shop = CatalogueShop(toy.catalogue, toy.features, space, searcher, toy.config)
    shop._encoder = encoder
    return shop


def png(colour: str = "red") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(out, "PNG")
    return out.getvalue()


def call(shop: CatalogueShop, name: str, **arguments: str) -> Any:
    things = {"#1": shop.things(["boat/0000"])[0], "#2": shop.things(["lemon/0001"])[0], "#3": shop.picture(png())}
    return Toolbox().call(shop, name, arguments, things.__getitem__)


def kinds(found: Found) -> list[str]:
    return [id.split("/")[0] for id, _ in found.items]


def test_search(shop: CatalogueShop) -> None:
    found = call(shop, "search", text="boat")
    assert len(found.items) == shop.results == 6 and kinds(found).count("boat") >= 4
    scores = [score for _, score in found.items]
    assert scores == sorted(scores, reverse=True)
    assert set(kinds(call(shop, "search", text="red", category="Trains"))) == {"train"}
    like = call(shop, "search", like="#1", unlike="#2")
    assert "boat/0000" not in [id for id, _ in like.items] and len(like.items) == 6
    assert len(call(shop, "search", category="house").items) == 6
    assert len(call(shop, "search", like="#3").items) == len(call(shop, "related", item="#3").items) == 6
    with pytest.raises(Refused, match='no category "planes"; nearest: '):
        call(shop, "search", category="planes")


def test_related_and_details(shop: CatalogueShop) -> None:
    related = call(shop, "related", item="#1")
    assert len(related.items) == 6 and "boat/0000" not in [id for id, _ in related.items]
    details = call(shop, "item", item="#1")
    assert details.startswith("title: ") and details.endswith("; category: boat")


def test_boards_are_public_ones(shop: CatalogueShop) -> None:
    board = call(shop, "board", title="my boat")
    assert [id for id, _ in board.items] == ["boat/0000", "boat/0008"] and board.note == 'board "My Boats", 2 pictures'
    for title in ("secret plans", "secret"):
        with pytest.raises(Refused) as refused:
            call(shop, "board", title=title)
        assert "secret plans" not in str(refused.value).split(";")[1]


def test_things_carry_their_picture(shop: CatalogueShop) -> None:
    boat, untitled = shop.things(["boat/0000", "house/0004"])
    assert boat.soft is not None and boat.soft.vector.shape == (shop._space.content_dim,)
    assert boat.soft.key == f"{shop.space}:boat/0000" and boat.title.split()[1] == "boat" and untitled.title == ""
    again = shop.things(["house/0004", "boat/0000"])[1]
    assert again.soft is not None and np.array_equal(again.soft.vector, boat.soft.vector)
    blind = shop.features.ids[7]
    assert shop.things([blind])[0].soft is None, "it has no picture"
    with pytest.raises(UnknownItem, match="boat/9999"):
        shop.things(["boat/0000", "boat/9999"])


def test_a_sent_picture(shop: CatalogueShop) -> None:
    red, again, blue = shop.picture(png()), shop.picture(png()), shop.picture(png("blue"))
    assert red.soft is not None and blue.soft is not None and again.soft is not None
    assert red.soft.key == again.soft.key != blue.soft.key and red.soft.vector.shape == (shop._space.content_dim,)
    with pytest.raises(BadImage):
        shop.picture(b"<svg/>")


def test_a_conversation(shop: CatalogueShop) -> None:
    engine = ScriptedEngine(
        ("search", {"text": "boat"}), "Here: #1.", ("search", {"like": "#2", "text": "blue"}), "And #7.", ("board", {"title": "my boats"}), ""
    )
    engine.space = shop.space
    assistant = Assistant(engine, Toolbox(), shop)
    conversation = Conversation().say("boats")
    shown = []
    for ask in ("more like #2 but blue", "open my boats", ""):
        events = list(assistant.turn(conversation))
        shown += [[(item.k, item.id) for item in event.items] for event in events if isinstance(event, Shown)]
        conversation.say(ask)
    assert [k for k, _ in shown[0]] == [1, 2, 3, 4, 5, 6]
    assert {id for k, id in shown[1] if k <= 6} <= {id for _, id in shown[0]}, "what had a number keeps it"
    assert len(shown[2]) == 2, "what a board names and the catalogue lacks is left out"


def test_a_hostile_filter_is_only_a_name(shop: CatalogueShop) -> None:
    things = [Thing(None, "", None, np.ones(D_IMAGE, np.float32))]
    assert shop.search("", things, [], "x' OR '1'='1") == []
