"""Declared features: numbers that an owner names once, as SQL over an item's columns, attributes and popularity.

    [[ranker.features]]
    name = "cheap"
    expression = "1 / (1 + price)"

An expression is parsed when it is declared and walked row by row by the one function that training and serving both call, so
a value is the same bit for bit whatever rows stand beside it. What is unknown is unknown in what is made of it, as in SQL; what
is no finite number in the end is the feature's ``default``. Nothing of the machine (a clock, chance) can be named.
Knows nothing of what is made of the numbers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from pinhole.errors import ConfigError

if TYPE_CHECKING:
    from pinhole.config import RankerFeature

POPULARITY = ("clicks", "boards", "users")
"""How often a query led to an item, and how many boards and users hold it; see ``popularity``."""
COLUMNS = ("id", "title", "description", "created_at")
LONGEST = 1000  # characters of an expression
Row = Mapping[str, Any]
Value = Callable[[Row], Any]


@dataclass(frozen=True)
class Declared:
    """The features of a configuration, ready to be evaluated."""

    names: tuple[str, ...]
    defaults: tuple[float, ...]
    expressions: tuple[Value, ...]
    asked: tuple[tuple[str, str], ...]
    """(feature, attribute) of every name that is neither a column nor a count."""

    @classmethod
    def of(cls, features: Sequence[RankerFeature]) -> Declared:
        """Raises :class:`ConfigError` that names the feature whose expression is not understood, or whose name is given twice."""
        names = [one.name for one in features]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ConfigError(f"two features are called `{twice[0]}`", where="[[ranker.features]]", fix="give each a name of its own")
        readers = [_Reader(one.name, one.expression) for one in features]
        expressions = tuple(reader.whole() for reader in readers)
        asked = tuple((reader.feature, name) for reader in readers for name in sorted(reader.asked))
        return cls(tuple(names), tuple(one.default for one in features), expressions, asked)

    def check(self, attributes: Collection[str]) -> None:
        """Raises :class:`ConfigError` for a name that is no column, no count, and no item's attribute; lists those that are."""
        for feature, name in self.asked:
            if name not in attributes:
                known = ", ".join([*COLUMNS, *POPULARITY, *sorted(attributes)][:60])
                raise ConfigError(f"feature `{feature}`: no item has `{name}`", where="[[ranker.features]]", fix=f"known: {known}")

    def values(self, rows: Sequence[Row]) -> np.ndarray:
        """(rows, features) float32. A row is an item's columns, with ``attributes`` parsed, and its counts."""
        out = np.empty((len(rows), len(self.names)), np.float32)
        for at, row in enumerate(rows):
            for number, (value, default) in enumerate(zip(self.expressions, self.defaults, strict=True)):
                out[at, number] = _number(value, row, default)
        return out


def _number(value: Value, row: Row, default: float) -> float:
    """What an expression says of a row, where that is a number that float32 can hold."""
    try:
        found = _as_number(value(row))
    except (ArithmeticError, ValueError, TypeError, RecursionError):  # division by nothing, a logarithm of what has none
        return default
    return default if found is None or not abs(found) <= float(np.finfo(np.float32).max) else found


def _as_number(value: Any) -> float | None:
    """Truth is 1 or 0, text that is a number is one, a time is its seconds since 1970."""
    if isinstance(value, bool | int | float):
        return float(value)
    if isinstance(value, datetime):
        return value.timestamp()
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    return None


def _some(value: Any) -> float:
    found = _as_number(value)
    if found is None:
        raise ValueError("no number")
    return found


# -- expressions --------------------------------------------------------------------------------


def _less(left: Any, right: Any) -> bool | None:
    """Numbers as numbers where both are, else texts as texts."""
    pair = _as_number(left), _as_number(right)
    if pair[0] is not None and pair[1] is not None:
        return pair[0] < pair[1]
    return left < right if isinstance(left, str) and isinstance(right, str) else None


def _equal(left: Any, right: Any) -> bool:
    """A list equals each of its members, as in a filter."""
    if isinstance(left, list) and not isinstance(right, list):
        return any(_equal(one, right) for one in left)
    pair = _as_number(left), _as_number(right)
    return pair[0] == pair[1] if pair[0] is not None and pair[1] is not None else str(left) == str(right)


COMPARE: dict[str, Callable[[Any, Any], bool | None]] = {
    "EQ": _equal,
    "NEQ": lambda a, b: not _equal(a, b),
    "LT": _less,
    "GT": lambda a, b: _less(b, a),
    "LTE": lambda a, b: None if (more := _less(b, a)) is None else not more,
    "GTE": lambda a, b: None if (less := _less(a, b)) is None else not less,
}
ARITHMETIC: dict[str, Callable[[float, float], float]] = {
    "Add": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
    "Div": lambda a, b: a / b,
    "Mod": math.fmod,
    "Pow": lambda a, b: float(math.pow(a, b)),
}
FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "Abs": lambda a: abs(_some(a)),
    "Ln": lambda a: math.log(_some(a)),
    "Sqrt": lambda a: math.sqrt(_some(a)),
    "Exp": lambda a: math.exp(_some(a)),
    "Floor": lambda a: math.floor(_some(a)),
    "Ceil": lambda a: math.ceil(_some(a)),
    "Round": lambda a: math.floor(_some(a) + 0.5),
    "Lower": lambda a: str(a).lower(),
    "Upper": lambda a: str(a).upper(),
    "Length": lambda a: len(a if isinstance(a, list) else str(a)),
}
WRITTEN = "+ - * / %, comparisons, AND, OR, NOT, IN, BETWEEN, LIKE, IS NULL, CASE, abs, ln, sqrt, exp, power, floor, ceil, round, "
WRITTEN += "lower, upper, length, coalesce, nullif, greatest, least"


class _Reader:
    """One feature's expression to one function; a kind of node that it does not know is refused."""

    def __init__(self, feature: str, expression: str) -> None:
        self.feature, self.expression = feature, expression
        self.asked: set[str] = set()

    def whole(self) -> Value:
        import sqlglot
        from sqlglot.errors import SqlglotError

        if len(self.expression) > LONGEST:
            raise self.wrong(f"{len(self.expression)} characters, at most {LONGEST}")
        try:
            trees = sqlglot.parse(self.expression, read="postgres")
        except (SqlglotError, RecursionError) as error:
            told = getattr(error, "errors", None)
            raise self.wrong((told[0].get("description", "") if told else str(error).splitlines()[0]).rstrip(".") or "no SQL") from None
        if len(trees) != 1 or trees[0] is None:
            raise self.wrong("exactly one expression is expected")
        try:
            return self.value(trees[0])
        except RecursionError:
            raise self.wrong("nested too deeply") from None

    def wrong(self, why: str) -> ConfigError:
        known = ", ".join((*COLUMNS, *POPULARITY))
        fix = f"columns: {known}, and the items' attributes; understood: {WRITTEN}"
        return ConfigError(f"feature `{self.feature}`: {why}: {self.expression[:200]!r}", where="[[ranker.features]]", fix=fix)

    def value(self, node: Any) -> Value:
        kind = type(node).__name__
        read = getattr(self, f"_{kind.lower()}", None)
        if read is not None:
            found: Value = read(node)
            return found
        if kind in COMPARE:
            return self.known(COMPARE[kind], node.this, node.expression)
        if kind in ARITHMETIC:
            apply = ARITHMETIC[kind]
            return self.known(lambda a, b: apply(_some(a), _some(b)), node.this, node.expression)
        if kind in FUNCTIONS and not node.args.get("expression") and not node.args.get("decimals"):
            return self.known(FUNCTIONS[kind], node.this)
        raise self.wrong(f"not understood: {node.sql(dialect='postgres')[:80]}")

    def known(self, apply: Callable[..., Any], *nodes: Any) -> Value:
        """A function of values that are all there; without one of them its answer is unknown."""
        parts = [self.value(node) for node in nodes]

        def value(row: Row) -> Any:
            found = [part(row) for part in parts]
            return None if any(one is None for one in found) else apply(*found)

        return value

    # -- one method a kind of node --------------------------------------------------------------

    def _paren(self, node: Any) -> Value:
        return self.value(node.this)

    def _literal(self, node: Any) -> Value:
        held = str(node.this) if node.is_string else float(node.this)
        return lambda row: held

    def _boolean(self, node: Any) -> Value:
        held = bool(node.this)
        return lambda row: held

    def _null(self, node: Any) -> Value:
        return lambda row: None

    def _neg(self, node: Any) -> Value:
        return self.known(lambda a: -_some(a), node.this)

    def _column(self, node: Any) -> Value:
        names = [part.name for part in node.parts]
        if len(names) == 1 and names[0] in (*COLUMNS, *POPULARITY):
            return lambda row: _there(row.get(names[0]))
        names = names[1:] if names[0] == "attributes" else names
        if not names or not all(names):
            raise self.wrong("no column is named")
        self.asked.add(names[0])

        def value(row: Row) -> Any:
            found: Any = row.get("attributes") or {}
            for name in names:
                found = found.get(name) if isinstance(found, dict) else None
            return _there(found)

        return value

    def _and(self, node: Any) -> Value:
        return self._both(node, False)

    def _or(self, node: Any) -> Value:
        return self._both(node, True)

    def _both(self, node: Any, decides: bool) -> Value:
        parts = [self.value(node.this), self.value(node.expression)]

        def value(row: Row) -> Any:
            found = [_truth(part(row)) for part in parts]
            return decides if decides in found else None if None in found else not decides

        return value

    def _not(self, node: Any) -> Value:
        return self.known(lambda a: None if (found := _truth(a)) is None else not found, node.this)

    def _is(self, node: Any) -> Value:
        if type(node.expression).__name__ not in ("Null", "Boolean"):
            raise self.wrong(f"not understood: {node.sql(dialect='postgres')[:80]}")
        value, wanted = self.value(node.this), self.value(node.expression)

        negated = bool(node.args.get("negate"))

        def same(row: Row) -> bool:
            found, meant = value(row), wanted(row)
            return (found is None if meant is None else found is not None and _truth(found) is meant) != negated

        return same

    def _in(self, node: Any) -> Value:
        if not node.expressions or node.args.get("query"):
            raise self.wrong(f"not understood: {node.sql(dialect='postgres')[:80]}")
        return self.known(lambda a, *others: any(_equal(a, one) for one in others), node.this, *node.expressions)

    def _between(self, node: Any) -> Value:
        within = lambda a, low, high: None if None in (pair := (_less(a, low), _less(high, a))) else not any(pair)  # noqa: E731
        return self.known(within, node.this, node.args["low"], node.args["high"])

    def _like(self, node: Any, flags: int = 0) -> Value:
        if not (type(node.expression).__name__ == "Literal" and node.expression.is_string):
            raise self.wrong("LIKE takes a text in single quotes")
        pattern = "".join({"%": ".*", "_": "."}.get(sign, re.escape(sign)) for sign in node.expression.this)
        matches = re.compile(pattern, flags | re.DOTALL).fullmatch
        return self.known(lambda a: any(matches(str(one)) is not None for one in (a if isinstance(a, list) else [a])), node.this)

    def _ilike(self, node: Any) -> Value:
        return self._like(node, re.IGNORECASE)

    def _case(self, node: Any) -> Value:
        subject = self.value(node.this) if node.this else None
        branches = [(self.value(one.this), self.value(one.args["true"])) for one in node.args["ifs"]]
        other = self.value(node.args["default"]) if node.args.get("default") else lambda row: None

        def value(row: Row) -> Any:
            asked = subject(row) if subject else None
            for condition, answer in branches:
                found = condition(row)
                if (found is not None and asked is not None and _equal(asked, found)) if subject else _truth(found):
                    return answer(row)
            return other(row)

        return value

    def _coalesce(self, node: Any) -> Value:
        parts = [self.value(one) for one in (node.this, *node.expressions)]
        return lambda row: next((found for part in parts if (found := part(row)) is not None), None)

    def _nullif(self, node: Any) -> Value:
        return self.known(lambda a, b: None if _equal(a, b) else a, node.this, node.expression)

    def _greatest(self, node: Any) -> Value:
        return self.known(lambda *each: max(map(_some, each)), node.this, *node.expressions)

    def _least(self, node: Any) -> Value:
        return self.known(lambda *each: min(map(_some, each)), node.this, *node.expressions)


def _there(value: Any) -> Any:
    """A number that is none (NaN, endless) is unknown."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _truth(value: Any) -> bool | None:
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.lower())
    return None if value is None else bool(value)
