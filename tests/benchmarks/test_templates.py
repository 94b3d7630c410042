"""The benchmark of templates asks the questions that it says."""

from __future__ import annotations

import numpy as np

from benchmarks import templates as benchmark
from xtalnet_jax.data.fixtures import textbook_crystals, textbook_set
from xtalnet_jax.pxrd.simulate import simulate_pattern
from xtalnet_jax.solve.templates import Templates


def rows(templates: Templates) -> set[int]:
    return {int(k) for own in templates.rows.values() for k in own}


def test_parts_grow_and_the_whole_is_all():
    whole = Templates.build(textbook_set(), "textbook")
    parts = [rows(benchmark.part_of(whole, share, 0)) for share in (0.25, 0.5, 1.0)]
    assert [len(p) for p in parts] == [3, 6, 13]
    assert parts[0] < parts[1] < parts[2] == rows(whole)


def test_own_composition_is_left_out():
    whole = Templates.build(textbook_set(), "textbook")
    salt = np.array([17, 11])
    left = rows(benchmark.without_composition(whole, salt))
    ids = whole.crystals.id
    assert {str(ids[k]) for k in left} == {"caesium_chloride", "zinc_blende"}


def test_matches_are_counted():
    crystals = {k: textbook_crystals()[k] for k in ("rutile", "rock_salt")}
    patterns = simulate_pattern(list(crystals.values()))
    questions = [benchmark.Question(k, c, p) for (k, c), p in zip(crystals.items(), patterns)]
    whole = Templates.build(textbook_set(), "textbook")
    found = benchmark.measure(questions, whole, True, 1)
    assert found["have_any_%"] == 100
    assert found["field_top1_%"].startswith("100.0 ")
    without = benchmark.measure(questions, whole, False, 1)
    assert without["field_top1_%"].startswith("0.0 ")
