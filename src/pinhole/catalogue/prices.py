"""``prices.toml``: what a million tokens of a frontier model and an hour of a machine cost, each row with source and date.

The package has a table; a workspace's own replaces rows by name and adds others. Knows nothing of how much is
used: that is for ``evaluation/cost.py``.
"""

from __future__ import annotations

import datetime
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pinhole.errors import ConfigError

NAME = "prices.toml"
Usd = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Source = Annotated[str, Field(pattern=r"^https?://\S+$")]


class Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Source
    date: datetime.date


class Frontier(Row):
    """USD per million tokens. ``image_tokens`` are of a picture of 512 × 512 pixels, where that is known."""

    input: Usd
    cached_input: Usd
    output: Usd
    image_tokens: int | None = Field(None, ge=1)
    image_source: Source | None = None

    @model_validator(mode="after")
    def _pictures_have_a_source(self) -> Self:
        if (self.image_tokens is None) != (self.image_source is None):
            raise ValueError("image_tokens and image_source come together")
        return self


class Machine(Row):
    usd_per_hour: Usd
    about: str = ""


class Use(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    machine: str


class Prices(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    use: Use
    frontier: dict[str, Frontier]
    machine: dict[str, Machine]

    @property
    def own(self) -> Machine:
        """The row that machine time is multiplied with."""
        return self.machine[self.use.machine]


def load_prices(folder: Path | None = None) -> Prices:
    """The package's table, with what ``folder``/prices.toml replaces and adds. Raises :class:`ConfigError` naming row and key."""
    table = tomllib.loads(files("pinhole.catalogue").joinpath(NAME).read_text(encoding="utf-8"))
    path = folder / NAME if folder is not None else None
    if path is None or not path.exists():
        return _checked(table, NAME)
    try:
        own = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"not valid TOML: {error}", where=str(path), fix="correct the line named") from None
    return _checked(_laid_over(table, own, path), str(path))


def _laid_over(table: dict[str, Any], own: dict[str, Any], path: Path) -> dict[str, Any]:
    """Rows are replaced whole: half a row of ours under half a row of theirs would have the wrong source."""
    for section, rows in own.items():
        if section in table and not isinstance(rows, dict):
            raise ConfigError(f"`{section}` is not a table", where=str(path), fix=f'begin a row with [{section}."NAME"]')
    return table | {section: {**table.get(section, {}), **rows} if isinstance(rows, dict) else rows for section, rows in own.items()}


def _checked(data: dict[str, Any], where: str) -> Prices:
    try:
        prices = Prices.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            kinds: dict[str, type[BaseModel]] = {"frontier": Frontier, "machine": Machine, "use": Use}
            kind = kinds.get(str(first["loc"][0]), Prices)
            raise ConfigError(f"unknown key `{key}`", where=where, fix="known here: " + ", ".join(kind.model_fields)) from None
        if first["type"] == "missing":
            raise ConfigError(f"`{key}` is missing", where=where, fix="every price has a source (a URL) and the date on which it was read") from None
        raise ConfigError(f"`{key}` = {first['input']!r}: {first['msg'].lower()}", where=where) from None
    if prices.use.machine not in prices.machine:
        raise ConfigError(f"`use.machine` = {prices.use.machine!r} is no row", where=where, fix="machines: " + ", ".join(prices.machine))
    return prices
