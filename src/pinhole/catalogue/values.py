"""One value of a source as one value of a table: text, number, truth, time, ids, bytes, object.

Each function takes what JSON, CSV or Arrow may hand over and raises ``ValueError`` with a reason for
what it cannot read. Knows nothing of columns or tables.
"""

from __future__ import annotations

import base64
import json
import math
import re
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

DEEPEST = 32  # levels of nesting inside attributes
_TRUTHS = {"true": True, "1": True, "1.0": True, "yes": True, "false": False, "0": False, "0.0": False, "no": False, "": False}
_NAMES = {bool: "true or false", dict: "an object", list: "a list", bytes: "bytes", str: "text", type(None): "null"}


def dumps(value: Any) -> str:
    """JSON in one canonical form: sorted keys, no spaces, characters as they are."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)


def as_text(value: Any) -> str:
    """Text as it is, numbers written out."""
    if isinstance(value, str):
        return _valid(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"text expected, got {named(value)}")
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def as_integer(value: Any) -> int | None:
    if isinstance(value, bool):
        raise ValueError("number expected, got true or false")
    if isinstance(value, str):
        if not value.strip():
            return None
        value = int(value) if re.fullmatch(r"\s*[+-]?\d{1,18}\s*", value) else _number(value)
    if not isinstance(value, (int, float)) or not math.isfinite(value) or int(value) != value or abs(value) >= 2**63:
        raise ValueError(f"whole number expected, got {value!r:.40}")
    return int(value)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"whole number expected, got {text!r:.40}") from None


def as_truth(value: Any) -> bool:
    known = _TRUTHS.get(str(value).strip().lower())
    if known is None:
        raise ValueError(f"true or false expected, got {value!r:.40}")
    return known


def as_time(value: Any) -> datetime | None:
    """ISO 8601, or seconds (or milliseconds) since 1970. Without a zone it is UTC."""
    if isinstance(value, str):
        text = value.strip()
        if not text:
            return None
        try:
            found = datetime.fromisoformat(text)
        except ValueError:
            if not re.fullmatch(r"\d{9,13}(\.\d+)?", text):
                raise ValueError(f"a time like 2026-01-31T12:00:00Z expected, got {text!r:.40}") from None
            return as_time(float(text))
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            found = datetime.fromtimestamp(value / 1000 if abs(value) > 1e11 else value, UTC)
        except (ValueError, OverflowError, OSError):
            raise ValueError(f"time expected, got {value!r:.40}") from None
    elif isinstance(value, datetime):
        found = value
    elif isinstance(value, date):
        found = datetime(value.year, value.month, value.day, tzinfo=UTC)
    else:
        raise ValueError(f"time expected, got {named(value)}")
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


def as_ids(value: Any) -> list[str]:
    """A list of ids; in text, a JSON list or ids parted by ``|``, ``;`` or ``,``. Repeats go, order stays."""
    if isinstance(value, str):
        text = value.strip()
        try:
            value = json.loads(text) if text.startswith("[") else re.split(r"[|;,]", text)
        except (ValueError, RecursionError):
            raise ValueError(f"list of ids expected, got {text!r:.40}") from None
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"list of ids expected, got {named(value)}")
    ids = (as_text(part).strip() for part in value if part is not None)
    return list(dict.fromkeys(id for id in ids if id))


def as_bytes(value: Any) -> bytes:
    """Bytes, or their base64 text (what JSON and CSV can hold), with or without a ``data:`` head."""
    if isinstance(value, str):
        try:
            return base64.b64decode(re.sub(r"^data:[^,]*,", "", value), validate=True)
        except ValueError:
            raise ValueError("base64 text expected") from None
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise ValueError(f"bytes expected, got {named(value)}")
    return bytes(value)


def as_object(value: Any) -> dict[str, Any]:
    """A JSON object (or its text, or an Arrow map) without its empty entries."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else {}
        except (ValueError, RecursionError) as error:
            raise ValueError(f"a JSON object expected: {error}") from None
    if isinstance(value, list) and value and all(isinstance(part, tuple) and len(part) == 2 for part in value):
        value = dict(value)
    if not isinstance(value, dict):
        raise ValueError(f"a JSON object expected, got {named(value)}")
    return {str(key): kept for key, entry in value.items() if (kept := as_json(entry)) is not None}


def as_json(value: Any, depth: int = 0) -> Any:
    """A value as JSON has it; None for what is empty, binary, or no number."""
    if depth > DEEPEST:
        raise ValueError(f"nested more than {DEEPEST} levels deep")
    if isinstance(value, str):
        return _valid(value) if value else None
    if isinstance(value, (bool, int)) or value is None:
        return value if not isinstance(value, int) or abs(value) < 2**63 else float(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):
        return as_json(float(value))
    if isinstance(value, list) and value and isinstance(value[0], tuple):
        value = dict(value)  # an Arrow map
    if isinstance(value, dict):
        return {_valid(str(key)): as_json(entry, depth + 1) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(entry, depth + 1) for entry in value]
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    return None if isinstance(value, (bytes, bytearray, memoryview)) else str(value)


def named(value: Any) -> str:
    """What a value is, in a word for a message."""
    return _NAMES.get(type(value), type(value).__name__)


def _valid(text: str) -> str:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError("not valid UTF-8 text") from None
    if "\x00" in text:
        raise ValueError("text with a NUL character")
    return text
