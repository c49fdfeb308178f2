"""A built workspace's catalogue as lessons and exams see it, for benchmarks that train on it. Reads only."""

from __future__ import annotations

from pinhole.catalogue.split import Split
from pinhole.catalogue.store import Catalogue
from pinhole.errors import ConfigError
from pinhole.graft.world import World, build_world
from pinhole.vision.align import Space
from pinhole.vision.features import Features
from pinhole.workspace import Workspace

ALL = 0  # as many tokens a picture as cells of it were kept


def open_worlds(workspace: Workspace, *counts: int) -> list[World]:
    """For each number of tokens a picture a world. Raises :class:`ConfigError` where cells are asked for and too few were kept."""
    space, features, settings = Space.load(workspace.need("align").path), Features.load(workspace.need("embed").path), workspace.config.catalogue
    if counts != (1,) and features.grid < 4:
        raise ConfigError(f"`vision.grid` = {features.grid}", where="pinhole.toml", fix="set [vision] grid = 7 and run `pinhole build align`")
    catalogue, split = Catalogue(workspace.tables), Split(settings)
    each = [count or features.grid**2 for count in counts]
    return [build_world(catalogue, features, space, split, settings.category, tokens_per_item=count) for count in each]
