"""docs/cost.md: its commands are run (benchmarks at tiny shapes), its table of prices is read, its keys are printed."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from built_shop import built_shop, inside
from pinhole import cli
from pinhole.benchmarks import board, turn
from pinhole.catalogue.prices import load_prices
from test_evaluation.test_flops import DENSE

PAGE = (Path(__file__).parents[2] / "docs" / "cost.md").read_text(encoding="utf-8")
COMMANDS = [shlex.split(line.removeprefix("$ pinhole "), comments=True) for line in re.findall(r"^\$ pinhole .*", PAGE, re.MULTILINE)]
PRICES = re.search(r"```toml\n(.*?)```", PAGE, re.DOTALL)[1]  # type: ignore[index]


@pytest.fixture
def shop(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The built shop as it was; the model of the benchmark of turns is a tiny one, and boards are small."""
    for name, value in {"SHAPE": DENSE, "EDGE": 64, "CONTENT": 24, "ROUNDS": 1, "_encoder": lambda workspace: {"turn.encoder_image_s": 0.01}}.items():
        monkeypatch.setattr(turn, name, value)
    measure = board.run
    monkeypatch.setattr(board, "ROUNDS", 2)
    monkeypatch.setattr(board, "run", lambda workspace, progress: measure(workspace, progress, items=200))
    folder = built_shop(tmp_path_factory)
    with inside(folder):
        yield folder
    for left in ("prices.toml", "report.html"):
        (folder / "shop" / left).unlink(missing_ok=True)


def test_every_command_runs(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed: dict[str, Any] = {}
    for command in COMMANDS:
        if command[0] != "report":
            command = [*command, *([] if "--json" in command else ["--json"])]
        assert cli.run(command) == 0, command
        out, _ = capsys.readouterr()
        printed |= json.loads(out) if command[0] != "report" else {}
    assert (shop / "turn.png").read_bytes()[:4] == b"\x89PNG"
    assert "What a turn costs" in (shop / "shop" / "report.html").read_text(encoding="utf-8")
    keys = [cell for line in PAGE.splitlines() if line.startswith("| `") for cell in re.findall(r"`([\w.<>@-]+)`", line.split("|")[1])]
    keys += re.findall(r"`(board\.[\w.]+)`", PAGE)
    for key in keys:
        wanted = key.replace("<name>", "gpt-5.5").replace("board.n1000", "board.n200")
        assert any(wanted == one or wanted.startswith(".") and one.endswith(wanted) for one in printed), key
    (shop / "turn.png").unlink()


def test_the_table_of_prices_is_one(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["evaluate", "--json", "-w", "shop"]) == 0
    before = json.loads(capsys.readouterr().out)
    (shop / "shop" / "prices.toml").write_text(PRICES, encoding="utf-8")
    assert cli.run(["evaluate", "--json", "-w", "shop"]) == 0
    after = json.loads(capsys.readouterr().out)
    assert after["cost.turns_per_s"] == before["cost.turns_per_s"], "nothing was measured again"
    prices = load_prices(shop / "shop")
    assert after["cost.own.usd_per_1000"] == pytest.approx(1000 * prices.own.usd_per_hour / 3600 / after["cost.turns_per_s"])
    assert after["cost.frontier.gpt-5.5.usd_per_1000"] < before["cost.frontier.gpt-5.5.usd_per_1000"]
    (shop / "shop" / "prices.toml").write_text(PRICES.replace("usd_per_hour = 0.05", "usd_per_hour = -1"), encoding="utf-8")
    assert cli.run(["evaluate", "-w", "shop"]) == 2
    assert "machine.our-server.usd_per_hour" in capsys.readouterr().err


def test_what_the_page_says_of_sizes() -> None:
    assert "`--quick` stops at N = 4, the default is 1, 4, 10, `--long` adds 30" in PAGE
    assert turn.SIZES == {"quick": (1, 4), "default": (1, 4, 10), "long": (1, 4, 10, 30)}
