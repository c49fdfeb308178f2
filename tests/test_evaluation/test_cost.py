"""What a turn costs, against sums done by hand; and what nobody measured stays a blank."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pinhole.catalogue.prices import Prices, load_prices
from pinhole.engines.base import Usage
from pinhole.evaluation.cost import bills, flat, measured
from pinhole.evaluation.flops import Language
from pinhole.evaluation.report import write_report
from toy_model import tiny_lm

TABLE = """
[use]
machine = "ours"
[machine.ours]
usd_per_hour = 0.36
source = "https://example.com/ours"
date = 2026-10-01
[frontier.sees]
input = 2.0
cached_input = 0.5
output = 10.0
image_tokens = 300
image_source = "https://example.com/pictures"
source = "https://example.com/sees"
date = 2026-10-02
[frontier.blind]
input = 1.0
cached_input = 0.1
output = 4.0
source = "https://example.com/blind"
date = 2026-10-03
"""
USAGES = [Usage(500, 400, 10), Usage(700, 400, 30)]


@pytest.fixture
def prices(tmp_path: Path) -> Prices:
    (tmp_path / "prices.toml").write_text(TABLE)
    return load_prices(tmp_path)


def test_means_and_throughput() -> None:
    found = measured(USAGES, [2, 6], seconds=4.0)
    assert {key: value for key, value in found.items() if not key.endswith(".n")} == {
        "cost.turn.prompt_tokens": 600,
        "cost.turn.cached_tokens": 400,
        "cost.turn.completion_tokens": 20,
        "cost.turn.pictures": 4,
        "cost.turns_per_s": 0.5,
    }
    assert found["cost.turns_per_s.n"] == 2
    assert measured([], [], 1.0) == {}


def test_money_by_hand(prices: Prices) -> None:
    figures = measured(USAGES, [2, 6], seconds=4.0) | {"cost.tokens_per_item": 1.0}
    found = {bill.key: bill for bill in bills(figures, prices)}
    # 0.36 USD buy 3,600 s, in which 1,800 turns are answered
    assert found["cost.own"].usd == pytest.approx(1000 * 0.36 / 1800)
    # 600 read, less 400 cached and 4 soft tokens: 196 of text; 4 pictures of 300; 20 said
    by_hand = ((196 + 4 * 300) * 2.0 + 400 * 0.5 + 20 * 10.0) / 1e6 * 1000
    assert found["cost.frontier.sees"].usd == pytest.approx(by_hand) == pytest.approx(3.192)
    assert "cost.frontier.blind" not in found, "it has no rule for pictures"
    for part in ("0.36", "ours", "0.5 turns/s"):
        assert part in found["cost.own"].formula
    for part in ("196 new", "4.00 pictures × 300", "400 cached × 0.5", "20.0 said × 10"):
        assert part in found["cost.frontier.sees"].formula
    assert found["cost.frontier.sees"].date == "2026-10-02"
    assert found["cost.frontier.sees"].source == "https://example.com/sees; pictures: https://example.com/pictures"
    money = flat(list(found.values()))
    assert money["cost.frontier.sees.over_own"] == pytest.approx(by_hand / 0.2)
    assert {f"{key}.usd_per_1000" for key, bill in found.items() if bill.usd is not None} <= set(money)


def test_a_machine_without_a_measurement_is_a_blank(prices: Prices) -> None:
    found = bills(measured(USAGES, [2, 6], seconds=4.0), prices)
    blank = next(bill for bill in found if bill.key == "cost.machine.h100-sxm")
    cheapest = min(bill.usd for bill in found if bill.key.startswith("cost.frontier.") and bill.usd)
    assert blank.usd is None and f"{3.5 / 3600 / (cheapest / 1000):.2g} turns/s" in blank.formula
    assert not any("h100" in key for key in flat(found))


def test_nothing_measured_nothing_charged(prices: Prices) -> None:
    assert bills({}, prices) == [] and flat([]) == {}


def test_text_alone_needs_no_rule_for_pictures(prices: Prices) -> None:
    found = flat(bills(measured(USAGES, [0, 0], seconds=1.0), prices))
    assert found["cost.frontier.blind.usd_per_1000"] == pytest.approx((200 * 1.0 + 400 * 0.1 + 20 * 4.0) / 1000)


def test_arithmetic_of_an_answer() -> None:
    """Prompt at once over a cache, then a token at a time: as torch counts it."""
    lm = tiny_lm(300)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        cache = lm(input_ids=torch.ones((1, 40), dtype=torch.long), use_cache=True, logits_to_keep=1).past_key_values
        first = counter.get_total_flops()
        lm(input_ids=torch.ones((1, 9), dtype=torch.long), past_key_values=cache, logits_to_keep=1)
        for _ in range(4):
            lm(input_ids=torch.ones((1, 1), dtype=torch.long), past_key_values=cache, logits_to_keep=1)
    language = Language.of(lm.config)
    assert language.prefill(40) == pytest.approx(first, rel=2e-3)
    assert language.answer(49, 40, 5) == pytest.approx(counter.get_total_flops() - first, rel=2e-3)
    found = measured([Usage(49, 40, 5)] * 2, [0, 0], 1.0, language)
    assert found["cost.turn.gflops"] == language.answer(49, 40, 5) / 1e9


def test_the_report_shows_every_bill_with_its_inputs(prices: Prices, tmp_path: Path) -> None:
    figures = measured(USAGES, [2, 6], seconds=4.0)
    found = bills(figures, prices)
    nothing = {"conversations": [], "curves": {}, "stages": [], "thumbnail": lambda id: None}
    path = write_report(tmp_path / "r.html", name="shop", about={"machine": "2 cores of tin"}, figures=figures, bills=found, **nothing)  # type: ignore[arg-type]
    page = path.read_text(encoding="utf-8")
    for bill in found:
        assert bill.formula in page and bill.source in page and bill.date in page
    assert "measured on 2 cores of tin" in page and "not measured" in page and "cost.own.usd_per_1000" in page
    bare = write_report(tmp_path / "r.html", name="shop", about={}, figures={}, **nothing)  # type: ignore[arg-type]
    assert "What a turn costs" not in bare.read_text(encoding="utf-8")
