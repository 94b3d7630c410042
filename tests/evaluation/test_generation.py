import itertools
import math

import numpy as np
import pytest

from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.evaluation.generation import (
    Attempt,
    atom_count_label,
    attempts_from_records,
    breakdown,
    crystal_system_label,
    element_labels,
    match_at_k,
)
from xtalnet_jax.evaluation.intervals import wilson
from xtalnet_jax.evaluation.matching import MatchRecord

TWO_ITEMS = [
    Attempt("a", 0, 0.1, 0.2),
    Attempt("a", 1, 0.9, None),
    Attempt("a", 2, 0.5, 0.4),
    Attempt("b", 0, 0.3, 0.1),
    Attempt("b", 1, 0.2, None),
    Attempt("b", 2, 0.1, None),
]


def test_ranked_order_takes_the_best_of_the_top_k():
    results = match_at_k(TWO_ITEMS, ks=(1, 2, 3))
    assert [r.match_rate.value for r in results] == [0.5, 1.0, 1.0]
    assert [r.rmse.value for r in results] == pytest.approx([0.1, 0.25, 0.15])
    assert results[0].match_rate == wilson(1, 2)


def test_equal_scores_keep_the_order_of_the_candidates():
    attempts = [Attempt("a", 1, 0.0, 0.1), Attempt("a", 0, 0.0, None)]
    assert match_at_k(attempts, ks=(1,))[0].match_rate.value == 0.0


def test_items_without_attempts_count_as_not_matched():
    result = match_at_k(TWO_ITEMS, ks=(3,), items=["a", "b", "c", "d"])[0]
    assert (result.match_rate.value, result.num_items, result.num_matched) == (0.5, 4, 2.0)
    assert match_at_k([], ks=(1,), items=["a"])[0].rmse is None
    assert match_at_k([], ks=(1,), items=["a"], order="random")[0].match_rate.value == 0.0


def test_random_order_of_one_match_is_k_of_n():
    attempts = [Attempt("a", i, 0.0, 0.3 if i == 4 else None) for i in range(10)]
    for result in match_at_k(attempts, ks=(1, 3, 10), order="random"):
        assert result.match_rate.value == pytest.approx(result.k / 10)
        assert result.rmse.value == pytest.approx(0.3)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 9])
def test_random_order_is_the_mean_over_all_permutations(k):
    rmse = {"a": [0.5, None, 0.2, 0.7, None], "b": [None, 0.1, None, None, 0.1], "c": [None] * 5}
    attempts = [Attempt(i, j, 0.0, r) for i, row in rmse.items() for j, r in enumerate(row)]
    matched, best = 0.0, 0.0
    for row in rmse.values():
        orders = list(itertools.permutations(row))
        for order in orders:
            found = [r for r in order[:k] if r is not None]
            matched += bool(found) / len(orders)
            best += min(found, default=0.0) / len(orders)
    result = match_at_k(attempts, ks=(k,), order="random")[0]
    assert result.match_rate.value == pytest.approx(matched / 3)
    assert result.rmse.value == pytest.approx(best / matched)


def test_all_candidates_make_the_order_irrelevant():
    ranked = match_at_k(TWO_ITEMS, ks=(3,))[0]
    random = match_at_k(TWO_ITEMS, ks=(3,), order="random")[0]
    assert random.rmse == ranked.rmse
    assert random.match_rate == ranked.match_rate


def test_a_good_score_beats_random_and_a_bad_one_does_not():
    rng = np.random.default_rng(0)
    rmse = [[float(r) if r < 0.5 else None for r in row] for row in rng.uniform(0, 1, (200, 8))]

    def attempts(sign):
        return [
            Attempt(str(i), j, sign * (9.0 if r is None else r), r)
            for i, row in enumerate(rmse)
            for j, r in enumerate(row)
        ]

    bad, good = (match_at_k(attempts(s), ks=(1, 3)) for s in (1.0, -1.0))
    random = match_at_k(attempts(1.0), ks=(1, 3), order="random")
    for low, middle, high in zip(bad, random, good):
        assert low.match_rate.high < middle.match_rate.value < high.match_rate.low
        assert high.rmse.high < middle.rmse.value


def test_breakdown_counts_an_item_under_each_of_its_labels():
    labels = {"a": ("Na", "Cl"), "b": ("Na",), "c": ("K",)}
    result = breakdown(TWO_ITEMS, labels, k=1)
    assert list(result) == ["Cl", "K", "Na"]
    assert {name: (r.match_rate.value, r.num_items) for name, r in result.items()} == {
        "Cl": (0.0, 1),
        "K": (0.0, 1),
        "Na": (0.5, 2),
    }
    with pytest.raises(ValueError, match="labels"):
        breakdown(TWO_ITEMS, {"a": ["Na"]})


def test_labels_of_a_crystal():
    rock_salt = Crystal(np.array([11, 17]), np.array([[0.0, 0, 0], [0.5, 0.5, 0.5]]), np.eye(3) * 4)
    assert element_labels(rock_salt) == ("Na", "Cl")
    assert crystal_system_label(rock_salt) == "cubic"
    stretched = rock_salt._replace(lattice=np.diag([4.0, 4.0, 5.0]))
    assert crystal_system_label(stretched) == "tetragonal"
    labels = [
        atom_count_label(Crystal(np.ones(n, int), np.zeros((n, 3)), np.eye(3)))
        for n in (1, 5, 6, 100, 101)
    ]
    assert labels == ["001-005", "001-005", "006-010", "051-100", "101+"]


def test_records_and_scores_are_joined():
    record = MatchRecord("a", 3, {"field": 0.2, "strict": None}, "ok", 0.1)
    assert attempts_from_records([record], {("a", 3): 0.7}, "strict") == [
        Attempt("a", 3, 0.7, None)
    ]
    with pytest.raises(ValueError, match="no score"):
        attempts_from_records([record], {}, "field")
    with pytest.raises(ValueError, match="paper"):
        attempts_from_records([record], {("a", 3): 0.7}, "paper")


@pytest.mark.parametrize(
    ("attempts", "kwargs", "message"),
    [
        ([], {}, "no items"),
        (TWO_ITEMS, {"ks": (0,)}, "k >= 1"),
        (TWO_ITEMS, {"items": ["a"]}, "not among"),
        ([Attempt("a", 0, math.nan, None)], {}, "finite"),
        ([Attempt("a", 0, 0.0, None)] * 2, {}, "twice"),
    ],
)
def test_bad_input_is_named(attempts, kwargs, message):
    with pytest.raises(ValueError, match=message):
        match_at_k(attempts, **kwargs)
