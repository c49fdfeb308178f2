"""docs/assistant.md says what is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pinhole.assistant.tools import Refused, Thing, Toolbox
from pinhole.graft.prompt import tools_text
from toy_shop import ToyShop

PAGE = (Path(__file__).parents[2] / "docs" / "assistant.md").read_text(encoding="utf-8")


def test_the_tool_of_your_own(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    page: dict[str, object] = {}
    exec(compile(code, "docs/assistant.md", "exec", dont_inherit=True), page)
    assert capsys.readouterr().out == "['item']\n"
    toolbox = page["toolbox"]
    assert isinstance(toolbox, Toolbox)
    assert toolbox.call(ToyShop(), "price", {"item": "#1", "pieces": 2}, lambda _: Thing("a", "a lemon", None)) == "2 of a lemon: 6 euros"
    with pytest.raises(Refused, match="not for sale"):
        toolbox.call(ToyShop(), "price", {"item": "#1"}, lambda _: Thing(None, "", None))


def test_the_signature_shown_is_the_one_the_model_reads() -> None:
    assert tools_text(Toolbox().schemas).splitlines()[0] in PAGE


def test_the_numbers_are_the_defaults() -> None:
    import inspect

    from pinhole.engines.local import LocalEngine

    defaults = {name: parameter.default for name, parameter in inspect.signature(LocalEngine).parameters.items()}
    assert f"At most {defaults['active']} are stepped" in PAGE and f"({defaults['cache_bytes'] >> 20} MB of them)" in PAGE
