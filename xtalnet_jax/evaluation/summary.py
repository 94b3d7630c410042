"""The short form of results: match rates at a glance, and for which crystals they hold."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence

from xtalnet_jax.evaluation.generation import Attempt, breakdown
from xtalnet_jax.evaluation.intervals import Estimate
from xtalnet_jax.evaluation.tables import ResultRow


def overview(rows: Sequence[ResultRow]) -> str:
    """Markdown table of the first method of every control in ranked order: a line per tolerance.

    Cells are the match rate in per cent with its interval, and the RMSE.
    """
    best: dict[tuple[str, str], dict[int, ResultRow]] = {}
    methods: dict[str, str] = {}
    for row in rows:
        s = row.setting
        ranked = row.order == "ranked" and "match %" in row.values
        if ranked and methods.setdefault(s.control, s.method) == s.method:
            best.setdefault((s.control, s.tolerance), {})[row.k] = row
    ks = sorted({k for found in best.values() for k in found})
    lines = [_line("control", "tolerance", "n", *(f"k = {k}" for k in ks)), _rule(2, 1 + len(ks))]
    for (control, tolerance), found in best.items():
        cells = [_cell(found[k].values) if k in found else "" for k in ks]
        num_items = next(iter(found.values())).num_items
        lines.append(_line(control or "none", tolerance, f"{num_items:,}", *cells))
    return "\n".join(lines)


def breakdowns(
    attempts: Sequence[Attempt],
    labels: Mapping[str, Mapping[str, Iterable[Hashable]]],
    ks: Sequence[int],
    fewest: int = 1,
) -> str:
    """Markdown table of match rates for kinds of crystals.

    Args:
        attempts: of all items at one tolerance.
        labels: what is told apart (e.g. ``"atoms"``) -> item -> its labels.
        ks: numbers of ranked candidates of which the best counts.
        fewest: labels of fewer items are left out.
    """
    lines = [_line("", "", "n", *(f"k = {k}" for k in ks)), _rule(2, 1 + len(ks))]
    for title, of_items in labels.items():
        found = [breakdown(attempts, of_items, k) for k in ks]
        for label, first in found[0].items():
            if first.num_items >= fewest:
                cells = [_percent(at_k[label].match_rate) for at_k in found]
                lines.append(_line(title, str(label), f"{first.num_items:,}", *cells))
    return "\n".join(lines)


def _cell(values: Mapping[str, Estimate]) -> str:
    rmse = values.get("RMSE")
    return _percent(values["match %"]) + ("" if rmse is None else f", RMSE {rmse.value:.4f}")


def _percent(rate: Estimate) -> str:
    return f"{100 * rate.value:.1f} [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _rule(words: int, numbers: int) -> str:
    return _line(*["---"] * words, *["---:"] * numbers)
