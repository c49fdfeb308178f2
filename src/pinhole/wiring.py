"""Opens a workspace for reading: each function joins rooms to one thing that a command needs.

Beside ``stages`` the only place that knows several rooms at once. Imports happen inside, so that a
command pays for what it uses. Everything opened here is of one embedding space or refused.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pinhole.config import ServeConfig
from pinhole.console import Console
from pinhole.errors import MissingArtefact, PinholeError, UsageError, WorkspaceError
from pinhole.workspace import Artefact, Workspace

if TYPE_CHECKING:
    from pinhole.assistant.loop import Assistant
    from pinhole.assistant.shop import CatalogueShop
    from pinhole.catalogue.store import Catalogue
    from pinhole.engines.local import LocalEngine
    from pinhole.engines.vllm import VllmEngine
    from pinhole.graft.world import World
    from pinhole.retrieval.guesses import Guesses
    from pinhole.retrieval.index import Searcher
    from pinhole.retrieval.ranker import Ranker
    from pinhole.retrieval.related import Related
    from pinhole.vision.align import Space


def find_workspace(folder: Path | None) -> Workspace:
    """The one named with -w, else ``PINHOLE_WORKSPACE``, else the current folder."""
    named = folder or (Path(os.environ["PINHOLE_WORKSPACE"]) if os.environ.get("PINHOLE_WORKSPACE") else None)
    return Workspace.open(named or Path("."))


def open_catalogue(workspace: Workspace) -> Catalogue:
    from pinhole.catalogue.store import Catalogue

    return Catalogue(workspace.tables)


def need_items(workspace: Workspace) -> Catalogue:
    """The catalogue, or an error where nothing was ingested."""
    catalogue = open_catalogue(workspace)
    if not catalogue.count("items"):
        raise WorkspaceError(
            "the catalogue is empty", where=str(workspace.root), fix="run `pinhole ingest items SOURCE` or `pinhole sample openclipart`"
        )
    return catalogue


def made_from(workspace: Workspace, artefact: Artefact, stage: str) -> Artefact:
    """The artefact of ``stage`` that this one was made from, which need not be the latest."""
    key = artefact.manifest["recipe"]["inputs"][stage]
    found = workspace.find(stage, key)
    if found is None:
        raise MissingArtefact(f"`{artefact.stage}` was made from an artefact of `{stage}` that is gone", where=key, fix="run `pinhole build`")
    return found


def open_searcher(workspace: Workspace) -> Searcher:
    """Index, space and features that were built together, over the catalogue as it is now."""
    from pinhole.retrieval.index import Searcher
    from pinhole.vision.align import Space
    from pinhole.vision.encoders import image_encoder, text_encoder
    from pinhole.vision.features import Features

    index = workspace.need("index")
    features = Features.load(made_from(workspace, index, "embed").path)
    space = Space.load(made_from(workspace, index, "align").path)
    encoders = (lambda: text_encoder(features.text_encoder.spec), lambda: image_encoder(features.image_spec))
    settings, catalogue = workspace.config, open_catalogue(workspace)
    ranker = open_ranker(workspace, index, catalogue, space)
    guesses = open_guesses(workspace, index, space)
    given = (settings.vision.max_pixels, settings.diversify, ranker, guesses, settings.tags.weight)
    return Searcher(catalogue, features, space, index.path, encoders[0], encoders[1], *given)


def open_ranker(workspace: Workspace, index: Artefact, catalogue: Catalogue, space: Space) -> Ranker | None:
    """The ranker of the space of the index; None where that was not made yet, as long as a build that made both anew is not done."""
    settings, made = workspace.config.ranker, workspace.latest("ranker")
    if not settings.enabled or made is None or made.manifest["recipe"]["inputs"]["align"] != index.manifest["recipe"]["inputs"]["align"]:
        return None
    from pinhole.retrieval.ranker import Ranker

    return Ranker.load(made.path, catalogue, settings, space.identity)


def open_guesses(workspace: Workspace, index: Artefact, space: Space) -> Guesses | None:
    """What is guessed in the space of the index; None where that was not made yet."""
    from pinhole.retrieval.guesses import Guesses

    made = workspace.latest("tags")
    if made is None or made.manifest["recipe"]["inputs"]["align"] != index.manifest["recipe"]["inputs"]["align"]:
        return None
    return Guesses.load(made.path, space.identity)


def open_related(workspace: Workspace) -> Related:
    """The searcher and the graph of the same index."""
    from pinhole.catalogue.graph import Graph
    from pinhole.retrieval.related import Related

    searcher = open_searcher(workspace)
    return Related(searcher, Graph.load(searcher.path / "graph.safetensors"), workspace.config.graph)


def open_assistant(workspace: Workspace) -> Assistant:
    """The graft in its engine, the built-in tools, the searcher. Raises :class:`SpaceMismatch` where graft and index are of two spaces."""
    from pinhole.assistant.loop import Assistant
    from pinhole.assistant.shop import CatalogueShop
    from pinhole.assistant.tools import Toolbox

    workspace.need("graft")
    related = open_related(workspace)
    searcher = related.searcher
    engine = open_engine(workspace, searcher.space.identity)
    shop = CatalogueShop(searcher.catalogue, searcher.features, searcher.space, searcher, workspace.config, engine.nested[-1], related)
    toolbox = Toolbox()
    engine.warm(toolbox.schemas)
    shop.search("a", [], [], "")  # the text encoder is loaded now, not in the first person's turn
    return Assistant(engine, toolbox, shop, workspace.config.assistant)


def open_engine(workspace: Workspace, space: str) -> LocalEngine | VllmEngine:
    """The latest graft, running as ``[engine]`` says. Raises :class:`SpaceMismatch` where it reads another space, and what is wrong with a server."""
    grafted, settings = workspace.need("graft"), workspace.config.engine
    if settings.kind == "vllm":
        from pinhole.engines.vllm import VllmEngine
        from pinhole.graft.export import serving_name
        from pinhole.graft.lens import Lens

        lens = Lens(grafted.path)
        lens.check_space(space)
        return VllmEngine(lens, settings, model=serving_name(grafted.key))
    from pinhole.engines.local import LocalEngine
    from pinhole.graft.model import Graft

    graft = Graft.load(grafted.path)
    graft.check_space(space)
    return LocalEngine(graft, waiting=workspace.config.serve.queue)


def on_engine(workspace: Workspace, kind: str | None, url: str | None) -> Workspace:
    """The workspace with another engine than its ``pinhole.toml`` names; an address alone means vLLM. Raises :class:`UsageError`."""
    from pinhole.engines.upstream import addresses

    kind = kind or ("vllm" if url else workspace.config.engine.kind)
    if kind not in ("local", "vllm"):
        raise UsageError(f"no engine `{kind}`", where="--engine", fix="local, or vllm with --engine-url URL")
    if kind == "local" and url:
        raise UsageError("the engine in this process has no address", where="--engine-url", fix="leave it out, or take --engine vllm")
    engine = workspace.config.engine.model_copy(update={"kind": kind, **({"url": url} if url else {})})
    if kind == "vllm":
        addresses(engine.url)
    return Workspace(workspace.root, workspace.config.model_copy(update={"engine": engine}))


def open_world(workspace: Workspace) -> World:
    """The catalogue as lessons see it, in the space that was built last."""
    from pinhole.catalogue.split import Split
    from pinhole.graft.world import build_world
    from pinhole.vision.align import Space
    from pinhole.vision.features import Features

    space, features = Space.load(workspace.need("align").path), Features.load(workspace.need("embed").path)
    config = workspace.config
    split, each = Split(config.catalogue), config.graft.tokens_per_item
    return build_world(need_items(workspace), features, space, split, config.catalogue.category, tokens_per_item=each)


def thumbnails(workspace: Workspace) -> Callable[[str], bytes | None]:
    """A function from an item's id to a small picture of it; None where there is none to show."""
    from pinhole.server.pictures import Pictures

    pictures = Pictures(open_catalogue(workspace), max_pixels=workspace.config.vision.max_pixels)

    def thumbnail(id: str) -> bytes | None:
        try:
            return pictures.get(id, 256).body
        except PinholeError:
            return None

    return thumbnail


def check_place(settings: ServeConfig, host: str | None = None, port: int | None = None) -> tuple[str, int]:
    """Where to listen. Raises where it is taken or cannot be had, before anything slow is begun."""
    from pinhole.server.listen import listen

    place = (settings.host if host is None else host, settings.port if port is None else port)
    listen(*place).close()
    return place


def serve(workspace: Workspace, console: Console, *, host: str | None = None, port: int | None = None) -> None:
    """Serve until Ctrl-C."""
    from pinhole.server.app import create_app
    from pinhole.server.listen import run

    place = check_place(workspace.config.serve, host, port)
    workspace.need("graft")
    console.say("opening the assistant …")
    assistant = open_assistant(workspace)
    app = create_app(assistant, open_catalogue(workspace), config=workspace.config, guesses=cast("CatalogueShop", assistant.shop).guesses)
    with contextlib.suppress(KeyboardInterrupt):  # the way to end it
        run(app, *place, ready=lambda address: console.say(f"serving {address} (Ctrl-C stops)"))


def chat(workspace: Workspace, console: Console) -> None:
    """Converse in the terminal."""
    from rich.console import Console as Terminal

    from pinhole.server.terminal import chat as converse

    workspace.need("graft")
    console.say("opening the assistant …")
    converse(open_assistant(workspace), open_catalogue(workspace), Terminal(stderr=True))
