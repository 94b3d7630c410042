"""Match rate and RMSE of the best of the top k candidates, in ranked or random order.

The unit is the test item (one pattern). An item without attempts, an attempt without a match and
an attempt that timed out all count as not matched: nothing leaves the denominator.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.evaluation.intervals import Estimate, bootstrap, wilson
from xtalnet_jax.evaluation.matching import MatchRecord

Order = Literal["ranked", "random"]


class Attempt(NamedTuple):
    """One candidate of one item at one tolerance."""

    item: str
    candidate: int
    score: float  # orders the candidates, higher is better
    rmse: float | None  # None = no match


class MatchAtK(NamedTuple):
    """Result for the best of the top ``k`` candidates."""

    k: int
    order: str
    match_rate: Estimate  # over all items
    rmse: Estimate | None  # over the matched items; None if no item matched
    num_items: int
    num_matched: float  # expected number, where the order is random


def attempts_from_records(
    records: Iterable[MatchRecord], scores: Mapping[tuple[str, int], float], tolerance: str
) -> list[Attempt]:
    """Join match records with the scores that order the candidates.

    Args:
        records: records of `matching.match_many`.
        scores: (item, candidate) -> score, higher is better.
        tolerance: name of the tolerance whose RMSE is taken.

    Raises:
        ValueError: a score or the tolerance is missing.
    """
    attempts = []
    for record in records:
        key = (record.item, record.candidate)
        if key not in scores:
            raise ValueError(f"no score for {key}; expected one for every candidate")
        if tolerance not in record.rmse:
            raise ValueError(f"{key} was not matched at {tolerance!r}, only at {[*record.rmse]}")
        attempts.append(Attempt(*key, float(scores[key]), record.rmse[tolerance]))
    return attempts


def match_at_k(
    attempts: Iterable[Attempt],
    ks: Sequence[int] = (1, 3, 5, 10, 20),
    order: Order = "ranked",
    items: Iterable[str] | None = None,
    seed: int = 0,
) -> list[MatchAtK]:
    """Match rate and RMSE of the best (smallest RMSE) of the top k candidates of every item.

    ``ranked`` takes the candidates by falling score, equal scores by candidate number. ``random``
    is the exact expectation over all orders: with n candidates whose matches are sorted
    r_1 <= .. <= r_m, the best of k is r_j with probability C(n-j, k-1) / C(n, k); the RMSE is
    sum(E[best, matched]) / sum(P[matched]), the same ratio of sums as in a fixed order.

    Args:
        attempts: all attempts of the test set at one tolerance.
        ks: numbers of candidates; an item with fewer counts with what it has.
        order: ``ranked`` or ``random``.
        items: all test items, so that those without any attempt count as not matched; None takes
            the items that occur.
        seed: seed of the bootstrap (RMSE interval; the match rate has a Wilson interval).

    Raises:
        ValueError: no items, a k below 1, a score that is not finite, or a candidate given twice.
    """
    table = _rmse_by_item(attempts, items)
    if not table:
        raise ValueError("no items to evaluate; expected at least one attempt or `items`")
    if min(ks) < 1 or order not in ("ranked", "random"):
        raise ValueError(f"ks={list(ks)}, order={order!r}; expected k >= 1, 'ranked' or 'random'")
    outcome = _ranked_outcome if order == "ranked" else _random_outcome
    return [_summary(k, order, [outcome(rmse, k) for rmse in table.values()], seed) for k in ks]


def breakdown(
    attempts: Iterable[Attempt],
    labels: Mapping[str, Iterable[Hashable]],
    k: int = 1,
    order: Order = "ranked",
) -> dict[Hashable, MatchAtK]:
    """`match_at_k` for every label; an item with several labels (its elements) counts in each.

    Args:
        attempts: attempts of the test set.
        labels: item -> its labels; the keys are all test items.
        k: number of candidates.
        order: ``ranked`` or ``random``.

    Returns:
        Label -> result, in the order of the labels where they can be sorted.

    Raises:
        ValueError: an attempt belongs to an item without entry in ``labels``.
    """
    by_item: dict[str, list[Attempt]] = {item: [] for item in labels}
    for attempt in attempts:
        if attempt.item not in by_item:
            raise ValueError(f"item {attempt.item!r} has no labels; expected one entry per item")
        by_item[attempt.item].append(attempt)
    members: dict[Hashable, list[str]] = {}
    for item, item_labels in labels.items():
        for label in dict.fromkeys(item_labels):
            members.setdefault(label, []).append(item)
    try:
        names = sorted(members)  # type: ignore[type-var]
    except TypeError:
        names = list(members)
    return {
        name: match_at_k(
            [attempt for item in members[name] for attempt in by_item[item]],
            (k,),
            order,
            members[name],
        )[0]
        for name in names
    }


def atom_count_label(crystal: Crystal, edges: Sequence[int] = (5, 10, 20, 50, 100)) -> str:
    """Label for a breakdown by size, e.g. ``006-010``: zero-padded, so that labels sort.

    Example:
        >>> atom_count_label(Crystal(np.ones(7, int), np.zeros((7, 3)), np.eye(3)))
        '006-010'
    """
    num_atoms = len(crystal.atomic_numbers)
    low = 1
    for high in edges:
        if num_atoms <= high:
            return f"{low:03d}-{high:03d}"
        low = high + 1
    return f"{low:03d}+"


def element_labels(crystal: Crystal) -> tuple[str, ...]:
    """Symbols of the elements of a crystal, for a breakdown by element."""
    from pymatgen.core import Element

    numbers = np.unique(np.asarray(crystal.atomic_numbers))
    return tuple(Element.from_Z(int(z)).symbol for z in numbers)


def crystal_system_label(crystal: Crystal, symprec: float | int = 0.01) -> str:
    """Crystal system of a crystal (spglib, ``symprec`` in angstrom); ``unknown`` if it fails."""
    import spglib

    cell = (
        np.asarray(crystal.lattice, np.float64),
        np.asarray(crystal.frac_coords, np.float64),
        np.asarray(crystal.atomic_numbers),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about its ways of reporting failure
        try:
            dataset = spglib.get_symmetry_dataset(cell, symprec=symprec)  # type: ignore[arg-type]
        except Exception:  # newer spglib raises where older ones return None
            dataset = None
    if dataset is None:
        return "unknown"
    last = {
        2: "triclinic",
        15: "monoclinic",
        74: "orthorhombic",
        142: "tetragonal",
        167: "trigonal",
        194: "hexagonal",
        230: "cubic",
    }
    return next(name for number, name in last.items() if dataset.number <= number)


# --- one item ------------------------------------------------------------------------------------


def _rmse_by_item(
    attempts: Iterable[Attempt], items: Iterable[str] | None
) -> dict[str, np.ndarray]:
    """Item -> RMSEs by falling score, inf where not matched."""
    grouped: dict[str, list[Attempt]] = {item: [] for item in items or ()}
    for attempt in attempts:
        if not math.isfinite(attempt.score):
            raise ValueError(f"{attempt} has a score that is not finite; expected a number")
        if items is not None and attempt.item not in grouped:
            raise ValueError(f"{attempt.item!r} is not among the given test items")
        grouped.setdefault(attempt.item, []).append(attempt)
    for item, found in grouped.items():
        if len({a.candidate for a in found}) != len(found):
            raise ValueError(f"item {item!r} has one candidate twice; expected distinct numbers")
        found.sort(key=lambda a: (-a.score, a.candidate))
    return {
        item: np.array([math.inf if a.rmse is None else a.rmse for a in found])
        for item, found in grouped.items()
    }


def _ranked_outcome(rmse: np.ndarray, k: int) -> tuple[float, float]:
    """(matched, RMSE of the best if matched else 0) of the first k."""
    best = rmse[:k].min(initial=math.inf)
    return (1.0, float(best)) if math.isfinite(best) else (0.0, 0.0)


def _random_outcome(rmse: np.ndarray, k: int) -> tuple[float, float]:
    """(P[matched], E[RMSE of the best, matched]) over all orders of the candidates."""
    n, matches = len(rmse), np.sort(rmse[np.isfinite(rmse)])
    k = min(k, n)
    if not len(matches):
        return 0.0, 0.0
    first = range(1, len(matches) + 1)
    probability = np.array([math.comb(n - j, k - 1) / math.comb(n, k) for j in first])
    return float(probability.sum()), float(probability @ matches)


def _summary(k: int, order: str, outcomes: list[tuple[float, float]], seed: int) -> MatchAtK:
    matched, best = np.array(outcomes).T
    rmse = None
    if matched.sum() > 0:

        def ratio(index: np.ndarray) -> float:
            weight = matched[index].sum()
            return float(best[index].sum() / weight) if weight > 0 else math.nan

        rmse = bootstrap(ratio, len(matched), seed=seed)
    rate = wilson(float(matched.sum()), len(matched))
    return MatchAtK(k, order, rate, rmse, len(matched), float(matched.sum()))
