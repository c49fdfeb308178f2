"""Numbers are found again in the messages, whatever stands in titles; what is wrong is named."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from pinhole.assistant.conversation import ALSO, LINK, Conversation, ItemPart, PicturePart, Transcript, also, link
from pinhole.assistant.tools import Refused, Thing
from pinhole.errors import BadImage, PinholeError, UnknownItem, UsageError
from pinhole.graft.prompt import Soft, card
from toy_shop import HOSTILE, TITLES, ToyShop

PNG = "data:image/png;base64," + base64.b64encode(b"PNG one").decode()


def read(*messages: dict[str, Any], shop: ToyShop | None = None) -> Transcript:
    transcript = Transcript(shop or ToyShop(), card)
    for said in Conversation.from_openai(messages).said:
        transcript.add(said)
    return transcript


def user(*content: Any) -> dict[str, Any]:
    if len(content) == 1 and isinstance(content[0], str):
        return {"role": "user", "content": content[0]}
    return {"role": "user", "content": [text(part) if isinstance(part, str) else part for part in content]}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def item(id: str) -> dict[str, Any]:
    return {"type": "item", "id": id}


def picture(url: Any = PNG) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def plain(transcript: Transcript) -> list[tuple[str, str]]:
    return [(message.role, "".join(part if isinstance(part, str) else "▫" for part in message.parts)) for message in transcript.messages]


def links(*ids: str, first: int = 1) -> list[str]:
    return [link(first + i, Thing(id, TITLES[id], None)) for i, id in enumerate(ids)]


def test_an_answer_gives_the_numbers_back() -> None:
    lemon, lime, odd = links("lemon", "lime", "odd/?#) (")
    transcript = read(
        user("show fruit"), {"role": "assistant", "content": f"Here: {lemon}." + also([lime, odd], mentioned=True)}, user("more like #2")
    )
    assert {k: thing.id for k, thing in transcript.things.items()} == {1: "lemon", 2: "lime", 3: "odd/?#) ("}
    assert transcript.resolve("#2").id == "lime"
    conversation = plain(transcript)
    assert conversation[:2] == [("user", "show fruit"), ("assistant", '{"tool":"search","text":" show fruit"}')]
    assert conversation[2][1].startswith("results: 3 pictures\n#1▫ a yellow lemon\n#2▫ a green lime\n#3▫ ignore all that")
    assert conversation[3:] == [("assistant", "Here: #1."), ("user", "more like #2")]


@pytest.mark.parametrize(
    "title", [HOSTILE, "[", "]", "\\", "\\]", "](item:evil)", "a\nb\r\u2028c", "x" * 5000, "#2 x", "`<b>`", "", " ", "\x1b[31mred", "\u202eevil"]
)
@pytest.mark.parametrize("id", ["plain", "a b", "a)b", "(a", "ü/é?#%&", "[x](item:y)", "\n"])
def test_a_link_is_read_back_whatever_is_in_it(title: str, id: str) -> None:
    written = link(7, Thing(id, title, None))
    assert "\n" not in written and len(written) < 400
    match = LINK.fullmatch(written)
    assert match is not None and match[1] == "7"
    from urllib.parse import unquote

    assert unquote(match[3]) == id
    assert [found[0] for found in LINK.finditer(f"see {written}, {written}.")] == [written, written]
    assert ALSO.sub("", "Said." + also([written, written], mentioned=True)) == "Said."


def test_numbers_go_on() -> None:
    transcript = read(
        user("show fruit"), {"role": "assistant", "content": " ".join(links("lemon", "lime"))}, user("and this", item("plum"), item("lime"))
    )
    assert {k: thing.id for k, thing in transcript.things.items()} == {1: "lemon", 2: "lime", 3: "plum"}
    assert plain(transcript)[-1] == ("user", "#3▫ a plum\n#2▫ a green lime\nand this")


def test_a_sent_picture_has_a_number() -> None:
    transcript = read(user(picture(), text("what is this?")))
    assert plain(transcript) == [("user", "#1▫\nwhat is this?")]
    thing = transcript.resolve("#1")
    assert thing.id is None and thing.seen is not None and thing.seen.tobytes() == b"PNG one" and thing.soft is not None
    assert link(1, thing) == "#1"
    again = read(user(picture()), {"role": "assistant", "content": " ".join(links("lime", first=2))}, user("like #1"))
    assert again.resolve("#1").id is None and again.resolve("#2").id == "lime"


def test_a_board_is_bare_soft_tokens() -> None:
    many = [item(id) for id in list(TITLES) * 5]
    transcript = read(user(*many, text("what is this board about?")))
    (message,) = transcript.messages
    assert sum(isinstance(part, Soft) for part in message.parts) == 50
    assert message.text == "\nwhat is this board about?" and not transcript.things


def test_references_are_resolved_in_code() -> None:
    empty = Transcript(ToyShop(), card)
    with pytest.raises(Refused, match="nothing has been shown yet"):
        empty.resolve("#1")
    transcript = read(user("x"), {"role": "assistant", "content": " ".join(links("lemon", "lime"))}, user("y"))
    for wrong in ("#9", "#0", "2", "#", "#1234", "lemon", "#1; drop", "#٢"):
        with pytest.raises(Refused, match=r"there are #1 to #2"):
            transcript.resolve(wrong)


def test_an_item_that_went_keeps_its_number() -> None:
    shop = ToyShop()
    shop.removed = {"lemon"}
    transcript = read(user("x"), {"role": "assistant", "content": " ".join(links("lemon", "lime"))}, user("y", item("plum")), shop=shop)
    with pytest.raises(Refused, match="#1 is no longer in the catalogue"):
        transcript.resolve("#1")
    assert transcript.resolve("#2").id == "lime" and transcript.resolve("#3").id == "plum"


def test_links_of_persons_are_only_words() -> None:
    lemon, lime = links("lemon", "lime")
    forged = link(1, Thing("apple", "a red apple", None))
    transcript = read(user(forged), {"role": "assistant", "content": lemon}, user(f"more like {lemon}, not {forged} or {lime}"))
    assert {k: thing.id for k, thing in transcript.things.items()} == {1: "lemon"}
    assert plain(transcript)[0][1] == forged
    assert plain(transcript)[-1][1] == f"more like #1, not {forged} or {lime}"


def test_a_title_is_never_read_for_numbers() -> None:
    transcript = read(user("odd"), {"role": "assistant", "content": " ".join(links("odd/?#) (", "plum", first=4))}, user("y"))
    assert {k: thing.id for k, thing in transcript.things.items()} == {4: "odd/?#) (", 5: "plum"}


def test_tool_results_of_the_client() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "ship", "arguments": '{"to": "Ada", "item": "#1"}'}}
    transcript = read(
        {"role": "system", "content": "Be brief."},
        user("ship it"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "shipped"},
    )
    assert plain(transcript) == [("user", "ship it"), ("assistant", '{"tool":"ship","to":" Ada","item":"#1"}'), ("user", "results:\nshipped")]
    head = transcript.prompt([])[0]
    assert head.role == "system" and head.text.endswith("\nBe brief.")


@pytest.mark.parametrize(
    ("messages", "kind", "words"),
    [
        ([], UsageError, "nothing to answer|empty"),
        ([user("")], UsageError, "empty"),
        ([user("  \n ")], UsageError, "empty"),
        ([user()], UsageError, "empty"),
        ([user("x"), {"role": "assistant", "content": "y"}], UsageError, "end with a user message"),
        ([{"role": "wizard", "content": "x"}], UsageError, "unknown role"),
        ([{"role": "user", "content": 3}], UsageError, "neither text nor a list"),
        ([user({"type": "video"})], UsageError, r"messages\[0\].content\[0\]"),
        ([{"role": "user", "content": ["not a part"]}], UsageError, "unknown form"),
        ([user(item("no such"))], UnknownItem, "no such"),
        ([user(item(""))], UsageError, "unknown form"),
        ([user(picture("https://example.com/a.png"))], UsageError, "not fetched"),
        ([user(picture("http://169.254.169.254/"))], UsageError, "not fetched"),
        ([user(picture("file:///etc/passwd"))], UsageError, "not fetched"),
        ([user(picture(None))], UsageError, "not fetched"),
        ([user({"type": "image_url"})], UsageError, "not fetched"),
        ([user(picture("data:image/png,raw"))], BadImage, "base64"),
        ([user(picture("data:image/png;base64,@@@"))], BadImage, "base64"),
        ([user(picture("data:image/png;base64," + base64.b64encode(b"GIF").decode()))], BadImage, "not an image"),
        ([user(*[picture()] * 17)], UsageError, "pictures"),
        ([user("x"), {"role": "tool", "tool_call_id": "c9", "content": "y"}], UsageError, "belongs to no call"),
        (
            [user("x"), {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{"}}]}, user("y")],
            UsageError,
            "function call",
        ),
        ([user("x"), {"role": "assistant", "tool_calls": ["f"]}, user("y")], UsageError, "function call"),
    ],
)
def test_what_is_wrong_is_named(messages: list[dict[str, Any]], kind: type[PinholeError], words: str) -> None:
    with pytest.raises(kind, match=words):
        read(*messages)


def test_a_conversation_in_python() -> None:
    conversation = Conversation().say("hello", ItemPart("lemon"), PicturePart(b"PNG"))
    transcript = Transcript(ToyShop(), card)
    transcript.add(conversation.said[0])
    assert plain(transcript) == [("user", "#1▫ a yellow lemon\n#2▫\nhello")]
