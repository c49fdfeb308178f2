"""What a turn costs: tokens, arithmetic and machine time as measured, and money by an editable table, beside its inputs.

A turn here is one answer of the model, a call or a text. An own model costs the machine's hour ÷ the turns that it was
measured to answer in that hour, all slots taken: reserved time, not a price per token. A frontier model costs the same turn's
tokens at its prices, with every picture at its own rule. Knows nothing of where prices come from
(``catalogue/prices.py``), and claims nothing for a machine on which nothing was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pinhole.catalogue.prices import Frontier, Machine, Prices
from pinhole.engines.base import Usage
from pinhole.evaluation.flops import Language

HOUR = 3600


def measured(usages: Sequence[Usage], pictures: Sequence[int], seconds: float, language: Language | None = None) -> dict[str, float]:
    """Figures of turns that were asked together and took ``seconds`` of wall time: means a turn, and ``cost.turns_per_s``.

    ``pictures`` are those in each turn's prompt; ``language`` adds ``cost.turn.gflops``. Nothing where nothing was asked.
    """
    if not usages:
        return {}
    n = len(usages)
    sums = {
        "prompt_tokens": sum(usage.prompt_tokens for usage in usages),
        "cached_tokens": sum(usage.cached_tokens for usage in usages),
        "completion_tokens": sum(usage.completion_tokens for usage in usages),
        "pictures": sum(pictures),
    }
    found = {f"cost.turn.{name}": total / n for name, total in sums.items()}
    if language is not None:
        spent = sum(language.answer(usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) for usage in usages)
        found["cost.turn.gflops"] = spent / n / 1e9
    found["cost.turns_per_s"] = n / seconds
    return found | {f"{key}.n": n for key in found}


@dataclass(frozen=True)
class Bill:
    """What a thousand turns cost in USD, with everything that went into it; ``usd`` None is a blank that nobody measured."""

    key: str
    name: str
    usd: float | None
    formula: str
    source: str
    date: str


def machine_usd(machine: Machine, turns_per_s: float) -> float:
    """Of one turn, where a reserved machine answers so many in a second."""
    return machine.usd_per_hour / HOUR / turns_per_s


def tokens_usd(row: Frontier, fresh: float, cached: float, pictures: float, said: float) -> float | None:
    """Of one turn with so many tokens of text, new and cached, and so many pictures; None where the row has no rule for pictures."""
    if pictures and row.image_tokens is None:
        return None
    read = fresh + pictures * (row.image_tokens or 0)
    return (read * row.input + cached * row.cached_input + said * row.output) / 1e6


def bills(figures: Mapping[str, float], prices: Prices) -> list[Bill]:
    """The own model first, then every frontier model of the table, then machines on which nothing was measured: what they would have to reach.

    Nothing where the figures have no turns (see :func:`measured`).
    """
    if "cost.turns_per_s" not in figures:
        return []
    rate, machine = figures["cost.turns_per_s"], prices.own
    usd = 1000 * machine_usd(machine, rate)
    what = f"{prices.use.machine} ({machine.about})" if machine.about else prices.use.machine
    formula = f"{machine.usd_per_hour:g} USD an hour of {what} ÷ ({HOUR:,} s × {rate:.3g} turns/s measured here) × 1,000"
    found = [Bill("cost.own", "the own model", usd, formula, machine.source, str(machine.date))]
    priced = [bill for name, row in prices.frontier.items() if (bill := _frontier(name, row, figures)) is not None]
    return [*found, *priced, *_elsewhere(priced, prices)]


def _frontier(name: str, row: Frontier, figures: Mapping[str, float]) -> Bill | None:
    pictures, cached, said = (figures[f"cost.turn.{part}"] for part in ("pictures", "cached_tokens", "completion_tokens"))
    soft = pictures * figures.get("cost.tokens_per_item", 1.0)
    fresh = max(0.0, figures["cost.turn.prompt_tokens"] - cached - soft)
    usd = tokens_usd(row, fresh, cached, pictures, said)
    if usd is None:
        return None
    read = f"{fresh:.0f} new tokens + {pictures:.2f} pictures × {row.image_tokens or 0}"
    formula = f"(({read}) × {row.input:g} + {cached:.0f} cached × {row.cached_input:g} + {said:.1f} said × {row.output:g}) USD ÷ 10⁶ × 1,000"
    source = f"{row.source}; pictures: {row.image_source}" if pictures else row.source
    return Bill(f"cost.frontier.{name}", name, 1000 * usd, formula, source, str(row.date))


def _elsewhere(priced: Sequence[Bill], prices: Prices) -> list[Bill]:
    """Machines whose throughput nobody measured: no cost, but the turns a second from which they beat the cheapest of the others."""
    rows = [bill for bill in priced if bill.usd]
    if not rows:
        return []
    cheapest = min(rows, key=lambda bill: bill.usd or 0.0)
    found = []
    for name, machine in prices.machine.items():
        if name != prices.use.machine:
            even = machine.usd_per_hour / HOUR / ((cheapest.usd or 0.0) / 1000)
            formula = f"not measured there; {machine.usd_per_hour:g} USD an hour is less than {cheapest.name} from {even:.2g} turns/s on"
            found.append(Bill(f"cost.machine.{name}", f"the own model on {name}", None, formula, machine.source, str(machine.date)))
    return found


def flat(found: Sequence[Bill]) -> dict[str, float]:
    """``cost.own.usd_per_1000``, ``cost.frontier.<name>.usd_per_1000`` and its ``.over_own``; blanks are no figures."""
    own = next((bill.usd for bill in found if bill.key == "cost.own"), None)
    figures: dict[str, float] = {}
    for bill in found:
        if bill.usd is not None:
            figures[f"{bill.key}.usd_per_1000"] = bill.usd
            if own and bill.key != "cost.own":
                figures[f"{bill.key}.over_own"] = bill.usd / own
    return figures
