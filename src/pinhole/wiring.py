"""Opens a workspace for reading: each function joins rooms to one thing that a command needs.

Beside ``stages`` the only place that knows several rooms at once. Imports happen inside, so that a
command pays for what it uses. Everything opened here is of one embedding space or refused.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pinhole.console import Console
from pinhole.errors import PinholeError, WorkspaceError
from pinhole.workspace import Workspace

if TYPE_CHECKING:
    from pinhole.assistant.loop import Assistant
    from pinhole.catalogue.store import Catalogue
    from pinhole.graft.world import World
    from pinhole.retrieval.index import Searcher


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


def open_searcher(workspace: Workspace) -> Searcher:
    raise NotImplementedError


def open_assistant(workspace: Workspace) -> Assistant:
    raise NotImplementedError


def open_world(workspace: Workspace) -> World:
    """The catalogue as lessons see it, in the space that was built last."""
    from pinhole.catalogue.split import Split
    from pinhole.graft.world import build_world
    from pinhole.vision.align import Space
    from pinhole.vision.features import Features

    space, features = Space.load(workspace.need("align").path), Features.load(workspace.need("embed").path)
    split = Split(workspace.config.catalogue)
    return build_world(need_items(workspace), features, space, split, workspace.config.catalogue.category)


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


def serve(workspace: Workspace, console: Console, *, host: str | None = None, port: int | None = None) -> None:
    """Serve until Ctrl-C. The port is taken first, so that one in use is said before the model is loaded."""
    from pinhole.server.app import create_app
    from pinhole.server.listen import listen, run

    settings = workspace.config.serve
    place = (settings.host if host is None else host, settings.port if port is None else port)
    listen(*place).close()
    console.say("opening the assistant …")
    app = create_app(open_assistant(workspace), open_catalogue(workspace), config=workspace.config)
    run(app, *place, ready=lambda address: console.say(f"serving {address} (Ctrl-C stops)"))


def chat(workspace: Workspace, console: Console) -> None:
    """Converse in the terminal."""
    from rich.console import Console as Terminal

    from pinhole.server.terminal import chat as converse

    console.say("opening the assistant …")
    converse(open_assistant(workspace), open_catalogue(workspace), Terminal(stderr=True))
