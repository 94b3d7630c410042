"""Compositions are found as by counting atoms one by one; crystals come back as they were."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tests.data import cases
from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.crystals.elements import SYMBOLS
from xtalnet_jax.data.fixtures import textbook_crystals
from xtalnet_jax.solve.crystal_table import Composition, CrystalTable, concatenate

TEXTBOOK = textbook_crystals()
NAMES = list(TEXTBOOK)
TABLE = CrystalTable.from_crystals(list(TEXTBOOK.values()))


def having(**known):
    return {NAMES[i] for i in np.flatnonzero(TABLE.having(Composition(**known)))}


@pytest.mark.parametrize(
    ("known", "names"),
    [
        ({"formula": "TiO2"}, {"rutile"}),
        ({"formula": "Ti4O8"}, {"rutile"}),
        ({"formula": "O2Ti"}, {"rutile"}),
        ({"formula": "TiO"}, set()),
        ({"formula": "OCu2"}, {"cuprite"}),
        ({"formula": "C"}, {"graphite"}),
        ({"elements": ["O", "Ti"]}, {"rutile", "perovskite"}),
        ({"elements": ["I"]}, {"cadmium_iodide"}),
        ({"only_elements": ["Ti", "O", "Zn"]}, {"rutile", "wurtzite"}),
        ({"only_elements": ["Ti", "O"], "elements": ["Zn"]}, set()),
        ({"elements": ["O"], "exclude_elements": ["Ti", "Zn", "Ta"]}, {"cuprite"}),
    ],
)
def test_known_compositions(known, names):
    assert having(**known) == names


def test_nothing_asked_masks_nothing():
    assert TABLE.having(Composition()) is None
    assert not TABLE.having(Composition(only_elements=[])).any()


def test_equals_counting_atom_by_atom():
    rng = np.random.default_rng(0)
    kinds = np.array([1, 8, 62, 63, 64, 65, 118])  # on both sides of a word of bits
    some = [c._replace(atomic_numbers=rng.choice(kinds, len(c.atomic_numbers)))
            for c in cases.crystals(400, max_atoms=5)]  # fmt: skip
    table = concatenate(
        [CrystalTable.from_crystals(some[:150]), CrystalTable.from_crystals(some[150:])]
    )
    counts = [Counter(SYMBOLS[z] for z in c.atomic_numbers) for c in some]
    num_found = 0
    for a in ("H", "O", "Eu", "Gd", "Tb", "Og"):
        for b in ("Sm", "O", "Gd"):
            found = table.having(Composition(elements=[a, b]))
            assert found.tolist() == [a in c and b in c for c in counts]
            found = table.having(Composition(only_elements=[a, b], exclude_elements=["O"]))
            assert found.tolist() == [not set(c) - {a, b} and "O" not in c for c in counts]
            if a != b:
                found = table.having(Composition(formula=f"{a}2{b}"))
                assert found.tolist() == [set(c) == {a, b} and c[a] == 2 * c[b] for c in counts]
                num_found += found.sum()
    assert num_found > 5


def test_crystals_come_back():
    some = [
        *cases.crystals(20),
        Crystal(np.array([3]), np.array([[0.9999999, -0.25, 1.5]]), np.eye(3)),
    ]
    table = CrystalTable.from_crystals(some)
    again = CrystalTable.from_arrays(dict(zip(CrystalTable._fields, table), more=None))
    assert again.num_crystals == len(some)
    for k, crystal in enumerate(some):
        found = again.crystal(k)
        np.testing.assert_array_equal(found.atomic_numbers, crystal.atomic_numbers)
        delta = found.frac_coords - crystal.frac_coords
        np.testing.assert_allclose(delta - np.rint(delta), 0, atol=0.51 / 65536)
        assert ((found.frac_coords >= 0) & (found.frac_coords < 1)).all()
        np.testing.assert_allclose(found.lattice, crystal.lattice, rtol=1e-6)


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({"elements": ["Xx"]}, "unknown element 'Xx'"),
        ({"exclude_elements": ["ti"]}, "unknown element 'ti'"),
        ({"formula": "TiO2.5"}, "2.5"),
    ],
)
def test_what_cannot_be_asked(known, message):
    with pytest.raises(ValueError, match=message):
        TABLE.having(Composition(**known))
