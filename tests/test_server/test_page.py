"""The page in a real browser: a message, pictures, a click on one, a second turn; hostile titles stay words."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pinhole.assistant.loop import Finished, Problem, Shown, ShownItem, Started, Text
from pinhole.engines.base import Usage
from pinhole.errors import PromptTooLong
from pinhole.server.app import create_app, running
from toy_server import HOSTILE, Scripted, endless, fruit, paint

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None and not os.environ.get("CI"), reason="no chromium on this machine")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Any, catalogue: Any) -> Iterator[Callable[[Scripted], Any]]:
    """``visit(assistant)`` is the page of a server with that assistant; anything it complains about fails the test."""
    complaints: list[str] = []
    ends: list[Any] = []

    def opened(assistant: Scripted, **context: Any) -> Any:
        server = running(create_app(assistant, catalogue))
        address = server.__enter__()
        page = browser.new_context(**context).new_page()
        ends.extend([lambda: server.__exit__(None, None, None), page.context.close])
        page.set_default_timeout(45_000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" and "404" not in message.text else None)
        page.goto(address)
        page.locator(".kind").first.wait_for()
        return page

    yield opened
    for end in reversed(ends):
        end()
    assert complaints == []


def say(page: Any, text: str) -> None:
    page.fill("#text", text)
    page.keyboard.press("Enter")


def settled(page: Any, turns: int) -> None:
    page.locator(".turn.answer").nth(turns - 1).wait_for()
    page.locator("#send").wait_for()


def test_two_turns(visit: Callable[..., Any], toy: Any) -> None:
    """With the real loop and a tiny trained model behind it."""
    page = visit(toy)
    assert page.locator("#facts").inner_text() == "13 pictures · 1 token each"
    assert page.locator(".kind").count() == 2
    say(page, "fruit, please")
    settled(page, 1)
    assert [badge.inner_text() for badge in page.locator(".badge").all()] == ["#1", "#2", "#3"]
    page.locator(".tile img").nth(2).evaluate("image => image.decode()")
    assert page.locator(".tile img").nth(0).evaluate("image => image.naturalWidth") == 256
    assert page.locator(".call").inner_text().startswith("search") and "text fruit" in page.locator(".call").inner_text()
    assert "3 pictures · " in page.locator(".call .took").inner_text()
    assert page.locator(".text").inner_text().replace("\n", " ").count("#") == 2  # the list of the rest is not shown twice
    assert page.locator(".usage").inner_text().startswith("3 pictures = 3 tokens · prompt ")
    page.locator(".picture[data-k='2']").click()
    assert page.locator("#text").input_value() == "more like #2" and page.locator("#hints").is_visible()
    page.keyboard.press("Enter")
    settled(page, 2)
    second = page.locator(".turn.answer").nth(1)
    assert [badge.inner_text() for badge in second.locator(".badge").all()] == ["#4", "#5", "#6"]
    assert second.locator(".call").inner_text().startswith("related") and page.locator(".bubble .pictured img").count() == 1
    page.locator("#new").click()
    assert page.locator("#welcome").is_visible() and page.locator(".turn").count() == 0


def test_hostile_words(visit: Callable[..., Any]) -> None:
    item = ShownItem(1, "odd/hostile ?#%2F", HOSTILE, 0.5)

    def script(*_: Any) -> Iterator[Any]:
        yield Started("search", {"text": HOSTILE, "<b>": [HOSTILE]})
        yield Shown([item])
        said = f"{HOSTILE} <script>document.title='owned'</script> [#1 <img src=x onerror=alert(1)>](item:odd%2Fhostile%20%3F%23%252F)"
        yield Text(said)
        yield Finished(said, Usage(), [])

    page = visit(Scripted(script))
    say(page, HOSTILE)
    settled(page, 1)
    page.locator(".tile img").evaluate("image => image.decode()")  # an id that needs escaping, twice
    assert HOSTILE[:30] in page.locator("figcaption").inner_text()
    assert "<script>" in page.locator(".text").inner_text() and HOSTILE[:30] in page.locator(".bubble").inner_text()
    assert page.locator("script").count() == 1 and page.locator("img[onerror]").count() == 0 and page.title() == "Pinhole"
    page.locator(".tile").hover()
    page.locator(".tile .open").click()
    page.locator("#detail dd").first.wait_for()
    assert HOSTILE[:30] in page.locator("#detail h2").inner_text() and page.title() == "Pinhole"
    page.keyboard.press("Escape")
    assert not page.locator("#detail").is_visible()


def test_stop_keeps_what_was_shown(visit: Callable[..., Any]) -> None:
    seen: list[Any] = []

    def script(conversation: Any, cancelled: Any) -> Iterator[Any]:
        seen.append(conversation)
        if len(seen) == 1:
            yield Shown([ShownItem(1, "fruit/lime", "a green [lime]", 1.0)])
            yield from endless(conversation, cancelled)
        else:
            yield from fruit(conversation, cancelled)

    assistant = Scripted(script)
    page = visit(assistant)
    say(page, "talk")
    page.locator(".badge").wait_for()
    page.locator(".text p").wait_for()
    page.locator("#stop").click()
    settled(page, 1)
    assert assistant.stopped.wait(15) and page.locator(".note").inner_text() == "Stopped."
    say(page, "more like #1")
    settled(page, 2)
    assert "(item:fruit%2Flime)" in seen[1].said[1].text
    seen.clear()
    say(page, "talk again")
    page.locator(".turn.answer").nth(2).locator(".text p").wait_for()
    page.locator("#new").click()  # while it is being answered
    assert page.locator("#welcome").is_visible() and page.locator("#send").is_visible() and page.locator(".turn").count() == 0
    say(page, "fruit")
    settled(page, 1)
    assert len(seen[1].said) == 1  # nothing of the conversation before


def test_errors_in_words(visit: Callable[..., Any]) -> None:
    calls: list[int] = []

    def script(conversation: Any, cancelled: Any) -> Iterator[Any]:
        calls.append(1)
        if len(calls) == 1:
            yield Started("search", {"like": "#9"})
            yield Problem("there is no #9 here")
            raise PromptTooLong("9,000 tokens of 8,192", fix="start a new conversation")
        yield from fruit(conversation, cancelled)

    page = visit(Scripted(script))
    say(page, "x")
    page.locator(".error").wait_for()
    assert page.locator(".error p").text_content() == "9,000 tokens of 8,192. start a new conversation"
    assert "there is no #9 here" in page.locator(".call.failed").inner_text()
    page.get_by_text("Try again").click()
    page.locator(".badge").first.wait_for()
    settled(page, 1)
    assert page.locator(".turn.user").count() == 1 and page.locator(".error").count() == 0


def test_a_picture_is_made_small_and_sent(visit: Callable[..., Any], tmp_path: Path) -> None:
    large, words = tmp_path / "large.png", tmp_path / "words.txt"
    large.write_bytes(paint("red", (3000, 1000)))
    words.write_text("no picture")
    page = visit(Scripted())
    page.set_input_files("#file", [str(large), str(words)])
    page.locator(".thumb img").wait_for()
    assert "Only pictures" in page.locator("#hints").inner_text()
    assert page.locator(".thumb img").evaluate("image => [image.naturalWidth, image.naturalHeight]") == [768, 256]
    with page.expect_request("**/v1/chat/completions") as sent:
        say(page, "like this")
    settled(page, 1)
    parts = sent.value.post_data_json["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["text", "image_url"] and parts[1]["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert page.locator(".sent img").count() == 1 and page.locator(".sent .badge").inner_text() == "#1"
    page.locator(".sent .picture").click()
    assert page.locator("#text").input_value() == "more like #1"


def test_keyboard_alone(visit: Callable[..., Any]) -> None:
    page = visit(Scripted())
    page.locator(".kind").first.focus()
    page.keyboard.press("Enter")
    settled(page, 1)
    page.locator(".picture[data-k='3']").focus()
    page.keyboard.press("Space")
    assert page.evaluate("document.activeElement.id") == "text" and page.locator("#text").input_value() == "more like #3"
    page.keyboard.press("Shift+Enter")
    assert page.locator("#text").get_attribute("rows") == "2"


def test_narrow_and_dark(visit: Callable[..., Any]) -> None:
    page = visit(Scripted(), viewport={"width": 360, "height": 640}, color_scheme="dark")
    say(page, "fruit " * 60)
    settled(page, 1)
    time.sleep(0.1)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 20, 18)"
