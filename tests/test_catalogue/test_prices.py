"""Prices: every row of ours is whole, a workspace's rows replace them, and a wrong one is named."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from pinhole.catalogue.prices import load_prices
from pinhole.errors import ConfigError

MINE = """
[use]
machine = "ours"
[machine.ours]
usd_per_hour = 0.05
source = "https://example.com/invoice"
date = 2026-10-01
[frontier."gpt-5.5"]
input = 4
cached_input = 0.4
output = 20
source = "https://example.com/contract"
date = 2026-10-02
"""


def test_the_table_is_whole() -> None:
    prices = load_prices()
    assert prices.own is prices.machine[prices.use.machine]
    assert {"claude-sonnet-4.6", "gpt-5.5"} <= set(prices.frontier) and {"a100-80gb", "h100-sxm"} <= set(prices.machine)
    for row in (*prices.frontier.values(), *prices.machine.values()):
        assert row.source.startswith("https://") and row.date >= date(2026, 1, 1)
    for row in prices.frontier.values():
        assert 0 < row.cached_input < row.input < row.output


def test_a_workspace_replaces_whole_rows_and_adds_others(tmp_path: Path) -> None:
    assert load_prices(tmp_path) == load_prices()
    (tmp_path / "prices.toml").write_text(MINE)
    prices = load_prices(tmp_path)
    assert prices.own.usd_per_hour == 0.05 and prices.frontier["gpt-5.5"].output == 20
    assert prices.frontier["gpt-5.5"].image_tokens is None  # a row of ours under a row of theirs would have the wrong source
    assert prices.frontier["claude-opus-4.6"] == load_prices().frontier["claude-opus-4.6"] and "h100-sxm" in prices.machine


ROW = '[machine.ours]\nusd_per_hour = 1\nsource = "https://example.com"\ndate = 2026-10-01\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[machine", "not valid TOML"),
        ("machine = 3", "`machine` is not a table"),
        (ROW.replace("= 1\n", "= -1\n"), "`machine.ours.usd_per_hour` = -1"),
        (ROW.replace("= 1\n", "= nan\n"), "`machine.ours.usd_per_hour` = nan"),
        (ROW.replace("= 1\n", "= 'dear'\n"), "`machine.ours.usd_per_hour` = 'dear'"),
        (ROW.replace("usd_per_hour", "usd_an_hour"), "`machine.ours.usd_per_hour` is missing"),
        (ROW + "colour = 'red'\n", "unknown key `machine.ours.colour`"),
        (ROW.replace('source = "https://example.com"\n', ""), "`machine.ours.source` is missing"),
        (ROW.replace('"https://example.com"', '"a friend"'), "`machine.ours.source` = 'a friend'"),
        (ROW.replace("date = 2026-10-01\n", ""), "`machine.ours.date` is missing"),
        (ROW.replace("2026-10-01", "'soon'"), "`machine.ours.date` = 'soon'"),
        ("[prices]\n", "unknown key `prices`"),
        ('[use]\nmachine = "nowhere"', "`use.machine` = 'nowhere' is no row"),
        (MINE + "image_tokens = 300\n", "image_tokens and image_source come together"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "prices.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_prices(tmp_path)
    assert words in str(caught.value) and str(tmp_path / "prices.toml") in str(caught.value)
