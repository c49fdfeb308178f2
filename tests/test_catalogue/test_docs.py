"""What docs/catalogue.md says is run: its commands, its Python, and the columns in its table."""

import contextlib
import csv
import io
import json
import re
import shlex
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pinhole.catalogue import records
from pinhole.catalogue.ingest import _READERS
from pinhole.catalogue.samples import SAMPLES

PAGE = (Path(__file__).parents[2] / "docs" / "catalogue.md").read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A shop's own files, under the names that the page uses."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "items.jsonl").write_text(json.dumps({"id": "a", "title": "Oak chair", "price": 20, "keywords": ["wood"]}) + "\n{half\n")
    for name, rows in {
        "more.csv": [{"sku": "b", "name": "Lamp"}],
        "boards.csv": [{"id": "home", "items": "a|b"}],
        "queries.csv": [{"text": "seat", "item": "a"}],
        "judgements.csv": [{"text": "seat", "item": "a", "grade": 4}],
    }.items():
        with open(tmp_path / name, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    pq.write_table(pa.table({"user": ["u"], "item": ["a"], "action": ["view"]}), tmp_path / "events.parquet")
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "photos" / "sofa.png")
    return tmp_path


def test_the_commands_and_the_python(folder):
    from pinhole.cli import run

    lines = [line.removeprefix("$ pinhole ") for line in PAGE.split("## Samples")[0].splitlines() if line.startswith("$ ")]
    assert len(lines) == 8
    for line in lines:
        assert run(shlex.split(line)) == 0, line
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1], {})
    assert printed.getvalue().startswith("['Oak chair'] 20\n[('a', ") and "not a JSON object" in printed.getvalue()


def test_the_tables_name_what_there_is():
    for kind, schema in records.SCHEMAS.items():
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| {kind} |"))
        assert re.findall(r"`(\w+)`", row.split("|")[3]) == schema.names
        key = re.findall(r"`(\w+)`", row.split("|")[2])
        assert tuple(key) == records.KEYS[kind]
    assert all(f"`{ending}`" in PAGE for ending in _READERS)
    for name, sample in SAMPLES.items():
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{name}` |"))
        assert sample.client in row.replace("npm pack", "npm") and sample.licence in row
