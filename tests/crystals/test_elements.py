"""Symbols, masses and formulas."""

import numpy as np
import pytest

from xtalnet_jax.crystals import elements


def test_table_is_the_periodic_table():
    from pymatgen.core import Element

    assert len(elements.SYMBOLS) == len(elements.MASSES) == 119
    for z in range(1, 119):
        assert Element.from_Z(z).symbol == elements.SYMBOLS[z]
    stable = [z for z in range(1, 93) if z not in (43, 61, *range(84, 90))]
    masses = [float(Element.from_Z(z).atomic_mass) for z in stable]
    np.testing.assert_allclose(elements.MASSES[stable], masses, rtol=1e-3)


@pytest.mark.parametrize(
    ("formula", "counts"),
    [
        ("NaCl", {"Na": 1, "Cl": 1}),
        ("Li2(MnO3)2", {"Li": 2, "Mn": 2, "O": 6}),
        ("K4[Fe(CN)6]", {"K": 4, "Fe": 1, "C": 6, "N": 6}),
        ("CuSO4·5H2O", {"Cu": 1, "S": 1, "O": 9, "H": 10}),
        (" Mg3 {Al2 (SiO4)}3 ", {"Mg": 3, "Al": 6, "Si": 3, "O": 12}),
        ("CO", {"C": 1, "O": 1}),
        ("Co", {"Co": 1}),
    ],
)
def test_formulas(formula, counts):
    assert elements.parse_formula(formula) == counts


@pytest.mark.parametrize(
    ("formula", "reason"),
    [
        ("Xx2O", "'Xx'"),
        ("Li0.5CoO2", "0.5"),
        ("Li0CoO2", "count 0"),
        ("Ca(OH", "brackets"),
        ("Ca(OH]2", "brackets"),
        ("CaO)", "brackets"),
        ("2NaCl", "'2'"),
        ("Na+Cl", r"'\+'"),
        ("nacl", "'n'"),
        ("", "no atoms"),
    ],
)
def test_bad_formulas_are_explained(formula, reason):
    with pytest.raises(ValueError, match=reason):
        elements.parse_formula(formula)


def test_units_and_atoms():
    assert elements.reduce_formula({"Mn": 4, "O": 6}) == ({"Mn": 2, "O": 3}, 2)
    atoms = elements.atomic_numbers_from_formula("Mn2O3", 2)
    assert atoms.tolist() == [25] * 4 + [8] * 6
    assert elements.parse_formula(elements.formula_of(atoms)) == {"Mn": 4, "O": 6}
    assert elements.formula_of(np.array([8, 0, 0])) == "O"
    for z in (0, -2):
        with pytest.raises(ValueError, match="formula units"):
            elements.atomic_numbers_from_formula("MnO", z)
