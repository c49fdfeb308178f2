"""Items and their pictures over HTTP: the right bytes under the right type, and never active content."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from PIL import Image
from starlette.testclient import TestClient

from pinhole.errors import BadImage
from pinhole.server.app import create_app, item_of_path
from pinhole.server.pictures import Pictures, look, snap
from toy_server import HOSTILE, Scripted, paint


@pytest.fixture(scope="module")
def web(catalogue: Any) -> Iterator[TestClient]:
    with TestClient(create_app(Scripted(), catalogue)) as web:
        yield web


def address(item_id: str) -> str:
    return f"/items/{quote(item_id, safe='')}"


def test_item(web: TestClient) -> None:
    item = web.get(address("fruit/lemon")).json()
    assert item["title"] == "a yellow lemon" and item["attributes"] == {"category": "fruit", "keywords": ["lemon", "yellow"]}
    assert item["image"] == "/items/fruit%2Flemon/image" and "image_bytes" not in item
    assert web.get("/items/fruit/lemon").json() == item  # plain slashes work too
    assert web.get(address("odd/hostile ?#%2F")).json()["title"] == HOSTILE


def test_where_a_picture_is_kept_is_not_told(web: TestClient) -> None:
    assert "gone.png" not in web.get(address("odd/gone")).text
    missing = web.get(address("odd/gone") + "/image")
    assert missing.status_code == 404 and "gone.png" not in missing.text


def test_original(web: TestClient) -> None:
    response = web.get(address("fruit/lime") + "/image")
    assert response.content == paint("green") and response.headers["content-type"] == "image/png"
    assert response.headers["x-content-type-options"] == "nosniff" and "sandbox" in response.headers["content-security-policy"]
    assert web.get(address("odd/photo") + "/image").headers["content-type"] == "image/jpeg"


def test_thumbnail(web: TestClient) -> None:
    response = web.get(address("odd/photo") + "/image?size=256")
    image = Image.open(io.BytesIO(response.content))
    assert response.headers["content-type"] == "image/webp" and image.size == (256, 64)
    corner = Image.open(io.BytesIO(web.get(address("fruit/lime") + "/image?size=64").content)).convert("RGB").getpixel((0, 0))
    assert min(corner) > 245  # transparent is shown on white
    small = Image.open(io.BytesIO(web.get(address("fruit/lime") + "/image?size=4096").content))
    assert small.size == (320, 240)  # never larger than it is


def test_thumbnails_are_revalidated(web: TestClient) -> None:
    first = web.get(address("fruit/plum") + "/image?size=128")
    etag = first.headers["etag"]
    for tags in (etag, f'"x", W/{etag}', "*"):
        again = web.get(address("fruit/plum") + "/image?size=128", headers={"If-None-Match": tags})
        assert again.status_code == 304 and again.content == b"" and again.headers["etag"] == etag
    assert web.get(address("fruit/plum") + "/image?size=256", headers={"If-None-Match": etag}).status_code == 200
    assert web.head(address("fruit/plum") + "/image").headers["content-length"] == str(len(paint("purple")))


def test_a_turned_photo_stands_upright(web: TestClient) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert look(paint("red", (300, 100), "JPEG", exif=exif), 10**6) == ("JPEG", 100, 300)


@pytest.mark.parametrize("item_id", ["odd/svg", "odd/html", "odd/broken", "odd/bomb", "odd/gone"])
@pytest.mark.parametrize("query", ["", "?size=128"])
def test_what_is_no_picture(web: TestClient, item_id: str, query: str) -> None:
    response = web.get(address(item_id) + "/image" + query)
    if item_id == "odd/broken" and not query:
        assert response.headers["content-type"] == "image/png"  # its header is in order: a browser shows what it can
        return
    assert response.status_code == 404 and response.headers["content-type"] == "application/json" and "<script" not in response.text


@pytest.mark.parametrize(
    "path",
    [
        "/items/nothing",
        "/items/nothing/image",
        "/items/",
        "/items/%00",
        "/items/..%2F..%2Fetc%2Fpasswd/image",
        "/items/%ff%fe",
        "/items/" + "x" * 5000,
        "/items/image",
    ],
)
def test_unknown(web: TestClient, path: str) -> None:
    response = web.get(path)
    assert response.status_code == 404 and response.json()["error"]["code"] == "unknown_item"


@pytest.mark.parametrize("size", ["0", "-1", "x", "1e3", "99999999999999999999", "٣", ""])
def test_bad_size(web: TestClient, size: str) -> None:
    assert web.get(address("fruit/lime") + "/image", params={"size": size}).status_code == 400


def test_ids_with_slashes_cannot_be_mixed_up() -> None:
    def of(raw: bytes) -> tuple[str, bool]:
        return item_of_path({"raw_path": raw, "path": ""})

    assert of(b"/items/a%2Fimage") == ("a/image", False) and of(b"/items/a%2Fimage/image") == ("a/image", True)
    assert of(b"/items/a/b/image?size=3") == ("a/b", True) and of(b"/items/items%2Fx") == ("items/x", False)


def test_cache_is_bounded(catalogue: Any) -> None:
    pictures = Pictures(catalogue, cache_bytes=3000)
    first = pictures.get("fruit/lime", 256)
    assert pictures.get("fruit/lime", 256) is first and snap(200) == 256 and snap(9999) == 1024
    for name in ("lemon", "apple", "plum", "orange", "blueberry"):
        pictures.get(f"fruit/{name}", 256)
    assert pictures.get("fruit/lime", 256) is not first and sum(len(kept.body) for kept in pictures._cache.values()) <= 3000
    with pytest.raises(BadImage):
        look(b"<svg/>", 100)


def test_about(web: TestClient) -> None:
    about = web.get("/v1/pinhole/about").json()
    assert about["items"] == 13 and about["boards"] == 1 and about["tokens_per_item"] == 1 and about["embedding"] == "0123456789abcdef"
    assert [(kind["name"], kind["count"], len(kind["items"])) for kind in about["categories"]] == [("odd", 7, 4), ("fruit", 6, 4)]
    assert all(isinstance(example, str) for example in about["examples"]) and len(about["examples"]) >= 3


def test_page_is_strict(web: TestClient) -> None:
    page = web.get("/")
    assert page.headers["content-type"].startswith("text/html") and "script-src 'self';" in page.headers["content-security-policy"]
    assert web.get("/", headers={"If-None-Match": page.headers["etag"]}).status_code == 304
    names = [
        name
        for name in ("app.js", "client.js", "dom.js", "view.js", "attach.js", "style.css", "icon.svg")
        if web.get(f"/web/{name}").status_code == 200
    ]
    assert len(names) == 7
    sources = page.text + "".join(web.get(f"/web/{name}").text for name in names)
    assert "innerHTML" not in sources and "https://" not in sources and "<script>" not in sources and " style=" not in sources
    assert web.get("/web/app.py").status_code == 404
    assert hashlib.sha256(web.get("/web/app.js").content).hexdigest()[:20] in web.get("/web/app.js").headers["etag"]
