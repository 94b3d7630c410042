"""Controls change the question, not the truth; draws depend on the item alone."""

import numpy as np
import pytest

from xtalnet_jax.crystals.elements import SYMBOLS
from xtalnet_jax.data.fixtures import textbook_crystals
from xtalnet_jax.pxrd.simulate import simulate_pattern
from xtalnet_jax.solve import assess, controls

TEXTBOOK = textbook_crystals()
NAMES = [name for name in TEXTBOOK if len(set(TEXTBOOK[name].atomic_numbers)) > 1][:4]


@pytest.fixture(scope="module")
def items():
    crystals = [TEXTBOOK[name] for name in NAMES]
    patterns = simulate_pattern(crystals)
    return [assess.Item(*parts) for parts in zip(NAMES, crystals, patterns)]


def test_shuffled_patterns_are_those_of_the_others(items):
    wrong = controls.patterns_shuffled(items)
    assert [w.id for w in wrong] == NAMES
    for i, item in enumerate(wrong):
        assert item.pattern is items[(i + 1) % len(items)].pattern
        assert item.truth is items[i].truth
        np.testing.assert_array_equal(item.numbers, items[i].numbers)


def test_one_element_becomes_a_similar_one_that_x_rays_tell_apart(items):
    from pymatgen.core import Element

    for item, wrong in zip(items, controls.element_exchanged(items)):
        assert wrong.truth is item.truth
        assert wrong.pattern is item.pattern
        own, claimed = np.unique(item.numbers), np.unique(wrong.numbers)
        (gone,), (new,) = np.setdiff1d(own, claimed), np.setdiff1d(claimed, own)
        assert (wrong.numbers == new).sum() == (item.numbers == gone).sum()
        assert abs(new - gone) >= max(3, controls.LEAST_DIFFERENCE * gone)
        before, after = Element(SYMBOLS[gone]), Element(SYMBOLS[new])
        assert abs(before.group - after.group) <= 3
        assert abs(before.row - after.row) <= 1
        assert (np.diff(wrong.numbers) >= 0).all()


def test_the_exchange_depends_on_item_and_seed_only(items):
    every = controls.element_exchanged(items)
    (alone,) = controls.element_exchanged(items[2:3])
    np.testing.assert_array_equal(alone.numbers, every[2].numbers)
    other = [controls.element_exchanged(items[:1], seed)[0].numbers.tolist() for seed in range(8)]
    assert len({tuple(n) for n in other}) > 1


def test_an_item_draws_the_same_alone_and_among_others(items, tiny_solver, tmp_path):
    def drawn(some, name):
        return assess.assess(tiny_solver, some, tmp_path / name, 2, refine=False, profile=False)

    together, alone = drawn(items[:3], "together.jsonl"), drawn(items[2:3], "alone.jsonl")
    for a, b in zip(together[2].candidates, alone[0].candidates, strict=True):
        np.testing.assert_allclose(a.frac_coords, b.frac_coords, atol=1e-6)
    assert not np.allclose(together[1].candidates[0].lattice, together[2].candidates[0].lattice)
