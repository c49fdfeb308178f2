"""A user's condition on items, made safe and pointed at the right columns.

``category = 'chair' AND price < 30`` is parsed, and written again from the few kinds of node that this
file knows; anything else is refused, so nothing of the user's text reaches Lance unparsed. A name that
is no column becomes a look-up inside the JSON column ``attributes`` that never fails on a row of
another type: a list equals each of its members, text that is no number is no number.
Knows nothing of tables; does not limit how much work a condition is beyond its length.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pinhole.catalogue.values import as_time
from pinhole.errors import UsageError

if TYPE_CHECKING:
    from sqlglot import exp

LONGEST = 4000  # characters of a condition
COMPARE = {"EQ": "=", "NEQ": "<>", "GT": ">", "GTE": ">=", "LT": "<", "LTE": "<="}
ARITHMETIC = {"Add": "+", "Sub": "-", "Mul": "*", "Div": "/", "Mod": "%"}
FUNCTIONS = {"Lower": "lower", "Upper": "upper", "Length": "length", "Abs": "abs", "Coalesce": "coalesce", "StartsWith": "starts_with"}
NUMERIC = ("Length", "Abs", "Neg", *ARITHMETIC)
FIX = "write one condition, like category = 'chair' AND price < 30"


def rewrite(where: str, columns: Sequence[str]) -> str:
    """The condition as Lance runs it, over a table with ``columns``. Raises :class:`UsageError` saying what is not understood."""
    try:
        return _Writer(where, columns).truth(parsed(where))
    except RecursionError:
        raise UsageError("the filter is nested too deeply", where=where[:200], fix=FIX) from None


def parsed(where: str) -> Any:
    """The condition's tree, of sqlglot's nodes. Raises :class:`UsageError` where there is not exactly one."""
    import sqlglot
    from sqlglot.errors import SqlglotError

    if len(where) > LONGEST:
        raise UsageError(f"a filter of {len(where)} characters; at most {LONGEST}", fix="use a shorter one")
    try:
        trees = sqlglot.parse(where, read="postgres")
    except SqlglotError as error:
        told = getattr(error, "errors", None)
        what = told[0].get("description", "") if told else str(error).splitlines()[0]
        raise UsageError(f"the filter is not valid SQL: {what.rstrip('.')}", where=where[:200], fix=FIX) from None
    except RecursionError:
        raise UsageError("the filter is nested too deeply", where=where[:200], fix=FIX) from None
    if len(trees) != 1 or trees[0] is None:
        raise UsageError("a filter is exactly one condition", where=where[:200], fix=FIX)
    return trees[0]


@contextmanager
def explained(where: str | None) -> Iterator[None]:
    """What Lance says against a condition, as a :class:`UsageError`."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        text = str(error).splitlines()[0]
        if where is None or not any(sign in text for sign in ("Invalid input", "planning", "Schema error", "cast", "Cast", "Arrow error", "type")):
            raise
        raise UsageError(f"the filter cannot be applied: {text.split(', /', 1)[0][:200]}", where=where[:200], fix=FIX) from None


class _Writer:
    """Writes a parsed condition; each method knows one kind of node, an unknown one is refused."""

    def __init__(self, where: str, columns: Sequence[str]) -> None:
        self.where, self.columns = where, columns

    def truth(self, node: Any) -> str:
        kind = type(node).__name__
        if kind == "Paren":
            return f"({self.truth(node.this)})"
        if kind in ("And", "Or"):
            return f"({self.truth(node.this)} {kind.upper()} {self.truth(node.expression)})"
        if kind == "Not":
            return f"(NOT {self.truth(node.this)})"
        if kind == "Boolean":
            return "true" if node.this else "false"
        if kind in COMPARE:
            return self.compare(kind, node.this, node.expression)
        if kind == "In" and node.expressions and not node.args.get("query"):
            return "(" + " OR ".join(self.compare("EQ", node.this, entry) for entry in node.expressions) + ")"
        if kind == "Between":
            return f"({self.compare('GTE', node.this, node.args['low'])} AND {self.compare('LTE', node.this, node.args['high'])})"
        if kind in ("Like", "ILike"):
            return f"({self.scalar(node.this)} {kind.upper()} {self.scalar(node.expression)})"
        if kind == "Is":
            return self.is_(node)
        if kind == "StartsWith":
            return self.scalar(node)
        if kind == "Column":  # a true-or-false attribute by itself
            return self.compare("EQ", node, self.boolean(True))
        raise self.refuse(node)

    def compare(self, kind: str, left: exp.Expression, right: exp.Expression) -> str:
        if self.path(left) is None and self.path(right) is not None:
            flipped = {"GT": "LT", "GTE": "LTE", "LT": "GT", "LTE": "GTE"}.get(kind, kind)
            return self.compare(flipped, right, left)
        path, value = self.path(left), self.literal(right)
        if path is None or kind not in ("EQ", "NEQ") or not isinstance(value, (str, bool)):
            if type(left).__name__ == "Column" and left.name == "created_at" and isinstance(value, str):
                return f'("created_at" {COMPARE[kind]} {self.time(value)})'
            number = self.numeric(left) or self.numeric(right)
            return f"({self.scalar(left, number)} {COMPARE[kind]} {self.scalar(right, number)})"
        found = f"json_extract(attributes, {path})"
        forms = [json.dumps(value, ensure_ascii=False)]
        if isinstance(value, str) and value and json_scalar(value):
            forms.append(value)  # size = '3' also finds the number 3
        equal = f"{found} IN ({', '.join(map(quoted, forms))})"
        if isinstance(value, str):
            equal += f" OR coalesce(json_array_contains(attributes, {path}, {quoted(value)}), false)"
        return f"({equal})" if kind == "EQ" else f"({found} IS NOT NULL AND NOT ({equal}))"

    def is_(self, node: exp.Expression) -> str:
        right = type(node.expression).__name__
        negate = "NOT " if node.args.get("negate") else ""
        if right == "Null" and type(node.this).__name__ == "Column" and node.this.name == "image_bytes":
            return f'("image_bytes" IS {negate}NULL)'
        if right == "Null":
            path = self.path(node.this)
            return f"({f'json_extract(attributes, {path})' if path else self.scalar(node.this)} IS {negate}NULL)"
        if right == "Boolean":
            return f"({negate}{self.compare('EQ', node.this, node.expression)})"
        raise self.refuse(node)

    def scalar(self, node: exp.Expression, number: bool = False) -> str:
        kind = type(node).__name__
        if kind == "Paren":
            return f"({self.scalar(node.this, number)})"
        if kind == "Literal":
            return quoted(node.this) if node.is_string else node.this
        if kind == "Boolean":
            return "true" if node.this else "false"
        if kind == "Column":
            path = self.path(node)
            if path is None:
                return f'"{node.name}"'
            text = f"btrim(json_extract(attributes, {path}), '\"')"
            return f"try_cast({text} AS double)" if number else text
        if kind in ARITHMETIC:
            return f"({self.scalar(node.this, True)} {ARITHMETIC[kind]} {self.scalar(node.expression, True)})"
        if kind == "Neg":
            return f"(- {self.scalar(node.this, True)})"
        if kind in FUNCTIONS:
            inside = number if kind == "Coalesce" else kind == "Abs"
            parts = [node.this, *(node.expressions or ([node.expression] if node.args.get("expression") else []))]
            return f"{FUNCTIONS[kind]}({', '.join(self.scalar(part, inside) for part in parts)})"
        raise self.refuse(node)

    def path(self, node: Any) -> str | None:
        """The JSON path of a name that is no column, quoted for SQL; None for anything else."""
        while type(node).__name__ == "Paren":
            node = node.this
        if type(node).__name__ != "Column":
            return None
        names = [part.name for part in node.parts]
        if len(names) == 1 and names[0] in self.columns and names[0] not in ("attributes", "image_bytes"):
            return None
        if names[0] == "attributes":
            names = names[1:]
        if not names or names == ["image_bytes"] or any('"' in name or "\\" in name or not name for name in names):
            raise self.refuse(node)
        return quoted("$" + "".join(f'."{name}"' for name in names))

    def numeric(self, node: exp.Expression) -> bool:
        kind = type(node).__name__
        return kind in NUMERIC or (kind == "Literal" and not node.is_string) or (kind == "Paren" and self.numeric(node.this))

    def time(self, text: str) -> str:
        try:
            return f"timestamp {quoted(f'{as_time(text):%Y-%m-%d %H:%M:%S.%f}')}"
        except (ValueError, TypeError):
            raise UsageError(f"no time: {text[:40]!r}", where=self.where[:200], fix="write one like '2026-01-31'") from None

    @staticmethod
    def literal(node: exp.Expression) -> str | bool | None:
        kind = type(node).__name__
        if kind == "Literal" and node.is_string:
            return str(node.this)
        return bool(node.this) if kind == "Boolean" else None

    @staticmethod
    def boolean(value: bool) -> exp.Expression:
        from sqlglot import exp

        return exp.Boolean(this=value)

    def refuse(self, node: exp.Expression) -> UsageError:
        return UsageError(f"not understood in a filter: {node.sql(dialect='postgres')[:80]}", where=self.where[:200], fix=FIX)


def json_scalar(text: str) -> bool:
    """True where the text, unquoted, is a JSON number, true or false."""
    try:
        return isinstance(json.loads(text), (int, float))
    except json.JSONDecodeError:
        return False


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
