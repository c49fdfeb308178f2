"""The HTTP application: the chat endpoint that OpenAI's clients talk to, items and their pictures, and the page.

:func:`create_app` takes everything it serves as arguments; ``run`` listens. What a turn does is the
assistant's business, how its events are written is ``chat``'s, how errors look is ``edge``'s. Does not
authenticate: it listens on the loopback address unless told otherwise.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from importlib.resources import files
from typing import Any
from urllib.parse import unquote

import anyio
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pinhole import __version__
from pinhole.config import Config
from pinhole.errors import PinholeError, UnknownItem
from pinhole.server import edge
from pinhole.server.about import About
from pinhole.server.bridge import Door, Stream
from pinhole.server.chat import Answer, Invalid, UnknownModel, item_path, parse_request, plain, run_turn
from pinhole.server.listen import run, running
from pinhole.server.pictures import Pictures

__all__ = ["create_app", "run", "running"]

PAGE_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
Guesses = Callable[[str], list[dict[str, Any]]]
HIDDEN = ("image", "image_bytes")  # where a picture is kept is nobody's business outside


def unguessed(item_id: str) -> list[dict[str, Any]]:
    """Where nothing is guessed of any item."""
    return []


def create_app(assistant: Any, catalogue: Any, *, name: str = "pinhole", config: Config | None = None, guesses: Guesses = unguessed) -> FastAPI:
    """The application. ``assistant`` has ``turn(conversation, cancelled=…)`` and ``engine``; ``name`` is the model's name to clients.

    ``guesses`` gives what is guessed of an item: name, value and confidence of each.
    """
    config = config or Config()
    door = Door(config.serve.queue)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await anyio.to_thread.run_sync(door.close)

    app = FastAPI(title="Pinhole", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(edge.Edge)
    app.add_exception_handler(PinholeError, edge.on_pinhole_error)
    app.add_exception_handler(edge.TooLarge, edge.on_too_large)
    app.add_exception_handler(HTTPException, edge.on_http_error)
    app.state.door, app.state.stop = door, door.stop
    _add_chat(app, assistant, door, name, config)
    _add_items(app, catalogue, config, guesses)
    _add_facts(app, assistant, catalogue, name, config)
    _add_page(app)
    return app


def _add_chat(app: FastAPI, assistant: Any, door: Door, name: str, config: Config) -> None:
    created = int(time.time())
    model = {"id": name, "object": "model", "created": created, "owned_by": "pinhole"}

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = await edge.read_json(request, config.serve.max_body_bytes)
        asked = parse_request(body, name)
        return await Answer(asked, name, Stream(run_turn(assistant, asked), door)).response(request.receive)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{model_id:path}")
    async def one_model(model_id: str) -> dict[str, Any]:
        if model_id != name:
            raise UnknownModel(f"no model {model_id[:80]!r} here", fix=f"use {name!r}")
        return model


def _add_items(app: FastAPI, catalogue: Any, config: Config, guesses: Guesses) -> None:
    pictures = Pictures(catalogue, max_pixels=config.vision.max_pixels)
    at_once = anyio.CapacityLimiter(2)  # decoding is bounded, so that a page of thumbnails does not starve the model

    @app.api_route("/items/{rest:path}", methods=["GET", "HEAD"])
    async def item(request: Request) -> Response:
        item_id, wants_image = item_of_path(request.scope)
        if not wants_image:
            row = await anyio.to_thread.run_sync(catalogue.item, item_id)
            return JSONResponse({**public_item(row), "guesses": guesses(item_id)})
        size = _size(request.query_params.get("size"))
        picture = await anyio.to_thread.run_sync(pictures.get, item_id, size, limiter=at_once)
        headers = {"ETag": picture.etag, "Cache-Control": "private, max-age=300"}
        if not_modified(request.headers.get("if-none-match"), picture.etag):
            return Response(status_code=304, headers=headers)
        return Response(picture.body, media_type=picture.media_type, headers=headers)


def _add_facts(app: FastAPI, assistant: Any, catalogue: Any, name: str, config: Config) -> None:
    about = About(catalogue, name=name, category=config.catalogue.category, engine=getattr(assistant, "engine", None))

    @app.get("/v1/pinhole/about")
    async def facts() -> dict[str, Any]:
        return await anyio.to_thread.run_sync(about.facts)

    @app.get("/healthz")
    async def healthz() -> dict[str, Any]:
        return {"status": "ok", "model": name, "version": __version__, "turns": len(app.state.door)}


def _add_page(app: FastAPI) -> None:
    page: dict[str, tuple[bytes, str, str]] = {}
    for file in files("pinhole.server").joinpath("web").iterdir():
        kind = PAGE_TYPES.get("." + file.name.rpartition(".")[2])
        if kind is not None:
            data = file.read_bytes()
            page[file.name] = (data, kind, f'"{hashlib.sha256(data).hexdigest()[:20]}"')

    @app.api_route("/", methods=["GET", "HEAD"])
    @app.api_route("/web/{name}", methods=["GET", "HEAD"])
    async def asset(request: Request, name: str = "index.html") -> Response:
        if name not in page:
            raise HTTPException(404, "there is no such page")
        data, kind, etag = page[name]
        headers = {"ETag": etag, "Cache-Control": "no-cache", "Content-Security-Policy": edge.PAGE_POLICY}
        if not_modified(request.headers.get("if-none-match"), etag):
            return Response(status_code=304, headers=headers)
        return Response(data, media_type=kind, headers=headers)


# -- small parts ------------------------------------------------------------------------------------


def item_of_path(scope: Any) -> tuple[str, bool]:
    """Item id, and whether its picture is meant. Read from the undecoded path, where an id's own slashes are ``%2F``;
    ids written with plain slashes work too, but for one that ends in ``/image``."""
    raw = scope.get("raw_path") or scope["path"].encode()
    parts = raw.split(b"?")[0].decode("latin-1").split("/items/", 1)[1].split("/")
    wants_image = len(parts) > 1 and parts[-1] == "image"
    item_id = unquote("/".join(parts[:-1] if wants_image else parts), errors="replace")
    if not item_id or "\x00" in item_id or len(item_id) > 2000:
        raise UnknownItem("no such item", where="the address")
    return item_id, wants_image


def _size(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:9]) <= 4096):
        raise Invalid("size", "is not a whole number between 1 and 4096")
    return int(text[:9])


def not_modified(header: str | None, etag: str) -> bool:
    tags = {tag.strip().removeprefix("W/") for tag in (header or "").split(",")}
    return "*" in tags or etag in tags


def public_item(row: dict[str, Any]) -> dict[str, Any]:
    """An item as the API shows it: everything but where its picture is kept."""
    path = item_path(str(row["id"]))
    shown = {key: value for key, value in row.items() if key not in HIDDEN}
    return {**plain(shown), "url": path, "image": f"{path}/image"}
