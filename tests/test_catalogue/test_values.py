from datetime import UTC, date, datetime

import pyarrow as pa
import pytest

from pinhole.catalogue import values
from pinhole.catalogue.records import Batch, normalise


@pytest.mark.parametrize(
    "convert, given, wanted",
    [
        (values.as_text, 3.0, "3"),
        (values.as_text, 2.5, "2.5"),
        (values.as_integer, " 12 ", 12),
        (values.as_integer, "1e3", 1000),
        (values.as_integer, "", None),
        (values.as_truth, "Yes", True),
        (values.as_truth, 0.0, False),
        (values.as_time, "2026-01-31", datetime(2026, 1, 31, tzinfo=UTC)),
        (values.as_time, "2026-01-31T12:00:00+02:00", datetime(2026, 1, 31, 10, tzinfo=UTC)),
        (values.as_time, 1767225600, datetime(2026, 1, 1, tzinfo=UTC)),
        (values.as_time, "1767225600000", datetime(2026, 1, 1, tzinfo=UTC)),
        (values.as_time, date(2026, 1, 1), datetime(2026, 1, 1, tzinfo=UTC)),
        (values.as_time, " ", None),
        (values.as_ids, "a; b|a,c", ["a", "b", "c"]),
        (values.as_ids, '["a,b", 3, null]', ["a,b", "3"]),
        (values.as_bytes, "data:image/png;base64,AAEC", b"\0\1\2"),
        (values.as_object, '{"a": null, "b": "", "c": [1.5], "d": NaN}', {"c": [1.5]}),
        (values.as_object, [("k", 1)], {"k": 1}),
        (values.as_json, 10**30, 1e30),
    ],
)
def test_what_is_read(convert, given, wanted):
    assert convert(given) == wanted


@pytest.mark.parametrize(
    "convert, given",
    [
        (values.as_text, True),
        (values.as_text, {}),
        (values.as_text, "\udc80"),
        (values.as_integer, 1.5),
        (values.as_integer, float("inf")),
        (values.as_integer, 2**70),
        (values.as_integer, "many"),
        (values.as_integer, True),
        (values.as_truth, "perhaps"),
        (values.as_time, "soon"),
        (values.as_time, 1e300),
        (values.as_time, True),
        (values.as_time, []),
        (values.as_ids, 3),
        (values.as_ids, "[1, 2"),
        (values.as_ids, [[1]]),
        (values.as_bytes, 3),
        (values.as_object, "[1]"),
        (values.as_object, 3),
        (values.as_json, "a\0"),
    ],
)
def test_what_is_refused(convert, given):
    with pytest.raises(ValueError):
        convert(given)


def test_arrow_and_python_columns_give_the_same_rows():
    columns = {
        "id": [1, 2, 3],
        "title": ["a", None, " c "],
        "private": [True, None, False],
        "items": [["x", "x"], ["y"], []],
        "owner": [None, "o", "p"],
    }
    table = pa.table({**columns, "id": pa.array([1, 2, 3], pa.int32())})
    one, other = normalise("boards", Batch.of(table)), normalise("boards", Batch(columns, range(1, 4)))
    assert one.table.equals(other.table) and one.places == [1, 2]
    assert [(r.row, r.id, r.reason) for r in one.refused] == [(r.row, r.id, r.reason) for r in other.refused] == [(3, "3", "no items")]
    assert one.table.to_pylist()[0] == {"id": "1", "title": "a", "owner": "", "items": ["x"], "private": True}
