"""What docs/families.md shows is run, and its table is the dict."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from pinhole.graft.base import load_base
from pinhole.graft.surgery import FAMILIES
from tiny_vlms import SHAPES, save_vlm

PAGE = (Path(__file__).parents[2] / "docs" / "families.md").read_text(encoding="utf-8")
READ, ADDED = re.findall(r"```python\n(.*?)```", PAGE, re.S)


def test_the_table_names_every_family() -> None:
    assert re.findall(r"^\| `(\w+)` \|", PAGE, re.M) == list(FAMILIES)


def test_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_vlm("smolvlm", tmp_path / "some-vlm")
    names: dict[str, Any] = {}
    exec(compile(READ, "docs/families.md", "exec"), names)
    assert type(names["lm"]).__name__ == "LlamaForCausalLM"
    assert names["left"]["model.connector.modality_projection.proj.weight"] is None
    assert names["left"]["model.text_model.norm.weight"] == "model.norm.weight"


def test_a_family_is_added_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    eyes = {"depth": 2, "embed_dim": 32, "num_heads": 2, "hidden_size": 48}
    monkeypatch.setitem(SHAPES, "qwen2_vl", ("Qwen2VL", SHAPES["qwen2_5_vl"][1], eyes, {}))
    vlm = save_vlm("qwen2_vl", tmp_path)
    monkeypatch.setitem(FAMILIES, "qwen2_vl", FAMILIES["qwen3_vl"])  # taken back after the test
    exec(compile(ADDED, "docs/families.md", "exec"), {})
    lm, _ = load_base(str(tmp_path), torch.float32)
    ids = torch.randint(3, 300, (2, 30))
    with torch.no_grad():
        assert type(lm).__name__ == "Qwen2ForCausalLM" and torch.equal(lm(input_ids=ids).logits, vlm(input_ids=ids).logits)
