"""The order in which results are shown: what ``[diversify]`` asks for, on the best of what was found.

Reads the declared attributes of the results that are to be arranged, and no others. Knows nothing of how they were found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pinhole.catalogue.store import Catalogue
from pinhole.config import DiversifyConfig
from pinhole.retrieval.diversify import Results, represent, space, spread

POOL = 200  # results that are arranged, the best


class Arranger:
    """``pictures`` gives rows' standardised picture vectors (n, width) of length 1, 0 where there is none."""

    def __init__(self, catalogue: Catalogue, ids: Sequence[str], pictures: Callable[[np.ndarray], np.ndarray], config: DiversifyConfig) -> None:
        self.catalogue, self.ids, self.pictures, self.config = catalogue, ids, pictures, config

    @property
    def idle(self) -> bool:
        """Nothing is asked for: results stay as they are."""
        return not (self.config.apart or self.config.strength or self.config.represent)

    def __call__(self, rows: np.ndarray, scores: np.ndarray, n: int) -> np.ndarray:
        """(n,) positions of the results ``rows`` (best first) in the order in which they are shown."""
        count = min(POOL, len(rows))
        if self.idle or count < 2:
            return np.arange(min(n, len(rows)))
        settings, vectors = self.config, self.pictures(rows[:count])
        wanted = dict.fromkeys(name for name in (settings.attribute, settings.represent) if name)
        kinds = {name: self._kinds(rows[:count], name) for name in wanted}
        order = np.arange(count)
        if settings.strength:
            deviation = max(float(scores[:count].std()), 1e-9)
            kind = kinds.get(settings.attribute, np.full(count, -1))
            results = Results((scores[:count] - scores[0]) / deviation, vectors, kind)
            first = spread(results, min(n, count), settings.strength, settings.attribute_share if settings.attribute else 0.0)
            order = np.concatenate([first, np.setdiff1d(order, first)])
        if settings.apart:
            order = space(vectors, order, settings.twin, settings.apart)
        if settings.represent:
            order = represent(kinds[settings.represent], order, min(n, count))
        return np.concatenate([order, np.arange(count, len(rows))])[:n]

    def _kinds(self, rows: np.ndarray, name: str) -> np.ndarray:
        """(n,) the number of each item's value; numbers are cut into bands that hold as many of these items each. −1 where there is none."""
        from pinhole.catalogue.records import attributes

        found = self.catalogue.items(["id", "attributes"], ids=[self.ids[row] for row in rows])
        named = dict(zip(found["id"].to_pylist(), attributes(found), strict=True))
        values = [_value(named.get(self.ids[row], {}).get(name)) for row in rows]
        numbers = [value for value in values if isinstance(value, float)]
        if numbers and len(numbers) == sum(value is not None for value in values) and len(set(numbers)) > self.config.bands:
            edges = np.quantile(numbers, np.linspace(0, 1, self.config.bands + 1)[1:-1])
            return np.array([-1 if value is None else int(np.searchsorted(edges, value, side="right")) for value in values])
        places = {value: number for number, value in enumerate(dict.fromkeys(value for value in values if value is not None))}
        return np.array([-1 if value is None else places[value] for value in values])


def _value(value: Any) -> str | float | None:
    """A list counts by its first member; truth and text as text; what is no number (NaN) as nothing."""
    if isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int | float):
        return float(value) if np.isfinite(value) else None
    return str(value) if value not in (None, "") else None
