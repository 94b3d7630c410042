"""Hints, contacts and equality of structures against what a crystallographer knows."""

import jax.numpy as jnp
import numpy as np
import pytest
import spglib

from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.crystals.elements import ATOMIC_RADII
from xtalnet_jax.crystals.lattice import matrix_from_parameters
from xtalnet_jax.crystals.reduction import standardise
from xtalnet_jax.data.fixtures import textbook_crystals
from xtalnet_jax.solve import plausibility

TEXTBOOK = textbook_crystals()
SKEW = np.array([[1, 1, 0], [0, 1, 0], [0, 2, 1]])


def skewed(crystal: Crystal) -> Crystal:
    """The same crystal in another cell of the same volume, its origin moved, its atoms permuted."""
    frac = (crystal.frac_coords + [0.1, 0.2, 0.3]) @ np.linalg.inv(SKEW)
    order = np.random.default_rng(0).permutation(len(frac))
    return Crystal(crystal.atomic_numbers[order], frac[order] % 1.0, SKEW @ crystal.lattice)


# Formula units ------------------------------------------------------------------------------------


def test_formula_units_fit_the_model_and_the_cell():
    assert plausibility.formula_units("TiO2", None, 20) == (1, 2, 4, 3)
    assert plausibility.formula_units("TiO2", None, 8) == (1, 2)
    assert plausibility.formula_units("TiO2", 5, 20) == (5,)
    rutile = TEXTBOOK["rutile"].lattice  # 62.4 cubic angstrom: 20.8 an atom with Z = 1, 10.4 with 2
    assert plausibility.formula_units("TiO2", None, 20, rutile) == (1, 2)


@pytest.mark.parametrize(
    ("formula", "z", "message"),
    [("TiO2", 0, "at least 1"), ("TiO2", 7, "has 21 atoms"), ("Ca10P6O26H2", None, "has 44 atoms")],
)
def test_formula_units_that_cannot_be(formula, z, message):
    with pytest.raises(ValueError, match=message):
        plausibility.formula_units(formula, z, 20)


# Lattice hint -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEXTBOOK)
def test_known_lattice_goes_through_the_reduction_of_the_training_data(name):
    crystal = TEXTBOOK[name]
    expected = standardise(crystal).lattice
    for cell in (crystal.lattice, SKEW @ crystal.lattice, crystal.lattice[[1, 0, 2]]):
        found = plausibility.lattice_from_hint(cell)
        np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-3)


def test_cell_parameters_are_a_lattice_hint():
    found = plausibility.lattice_from_hint((4.594, 4.594, 2.959, 90, 90, 90))
    np.testing.assert_allclose(found, np.diag([2.959, 4.594, 4.594]), atol=1e-5)
    assert plausibility.lattice_from_hint(None) is None


CENTRED = {
    "Fm-3m": ((5.64, 5.64, 5.64, 90, 90, 90), 4),
    "Im-3m": ((2.87, 2.87, 2.87, 90, 90, 90), 2),
    "R-3c": ((4.99, 4.99, 17.06, 90, 90, 120), 3),
    "C2/c": ((9.75, 8.90, 5.25, 90, 106.3, 90), 2),
    "I2/a": ((6.52, 13.07, 8.55, 90, 115.7, 90), 2),
    "Amm2": ((3.99, 5.67, 5.68, 90, 90, 90), 2),
    "P2_1/c": ((5.1, 5.2, 5.3, 90, 99.0, 90), 1),
}


@pytest.mark.parametrize("group", CENTRED)
def test_conventional_cells_are_made_primitive(group):
    """Every lattice vector of the known centring is one of the primitive cell, and no other."""
    parameters, points = CENTRED[group]
    found = plausibility.lattice_from_hint(parameters, group)
    conventional = np.asarray(
        matrix_from_parameters(*jnp.reshape(jnp.array(parameters), (2, 3))), float
    )
    assert np.linalg.det(conventional) / np.linalg.det(found) == pytest.approx(points, rel=1e-4)
    centrings = {
        "F": [(0, 0.5, 0.5), (0.5, 0, 0.5)], "I": [(0.5, 0.5, 0.5)], "A": [(0, 0.5, 0.5)],
        "C": [(0.5, 0.5, 0)], "R": [(2 / 3, 1 / 3, 1 / 3)], "P": [(1, 0, 0)],
    }  # fmt: skip
    shortest = [np.linalg.norm(np.array(t) @ conventional) for t in centrings[group[0]]]
    steps = np.stack(np.meshgrid(*[range(-3, 4)] * 3, indexing="ij"), -1).reshape(-1, 3)
    lengths = np.linalg.norm(steps @ found, axis=1)
    for length in shortest:
        assert np.abs(lengths - length).min() < 1e-3
    again = plausibility.lattice_from_hint(found, group)
    np.testing.assert_allclose(np.linalg.det(again), np.linalg.det(found), rtol=1e-5)


@pytest.mark.parametrize(
    "lattice",
    [
        (4, 4, 4, 90, 90),
        (4, 4, 4, 90, 90, 0),
        (4, 4, 0, 90, 90, 90),
        (4, 4, 4, 20, 20, 120),
        (4, 4, np.nan, 90, 90, 90),
        np.ones((3, 3)),
        np.zeros((2, 3)),
        "abcdef",
    ],
)
def test_lattice_that_is_no_cell(lattice):
    with pytest.raises(ValueError, match="is no cell"):
        plausibility.lattice_from_hint(lattice)


# Space groups -------------------------------------------------------------------------------------


def test_every_spelling_of_every_space_group_leads_to_its_own():
    for hall in range(1, 531):
        group = spglib.get_spacegroup_type(hall)
        standard = plausibility.space_group_from_hint(group.number)
        assert plausibility.space_group_from_hint(str(group.number)) == standard
        assert plausibility.space_group_from_hint(standard) == standard
        assert plausibility.space_group_from_hint(group.international_full) == standard
    symbols = {plausibility.space_group_from_hint(number) for number in range(1, 231)}
    assert len(symbols) == 230


@pytest.mark.parametrize(
    ("hint", "symbol"),
    [
        ("p 42/m n m", "P4_2/mnm"),
        ("P21/n", "P2_1/c"),
        ("I2/a", "C2/c"),
        ("Pbnm", "Pnma"),
        ("R-3m:H", "R-3m"),
        ("Fd3m", "Fd-3m"),
        ("Cmca", "Cmce"),
        ("1", "P1"),
    ],
)
def test_spellings_in_use(hint, symbol):
    assert plausibility.space_group_from_hint(hint) == symbol


@pytest.mark.parametrize("hint", ["P5", "0", "231", "", "Fm-3mm", -1])
def test_unknown_space_group(hint):
    with pytest.raises(ValueError, match="is unknown"):
        plausibility.space_group_from_hint(hint)


@pytest.mark.parametrize(
    ("name", "symbol"),
    [
        ("silicon", "Fd-3m"),
        ("rock_salt", "Fm-3m"),
        ("caesium_chloride", "Pm-3m"),
        ("wurtzite", "P6_3mc"),
        ("rutile", "P4_2/mnm"),
        ("cuprite", "Pn-3m"),
        ("cadmium_iodide", "P-3m1"),
        ("graphite", "P6_3/mmc"),
    ],
)
def test_space_group_found_is_one_a_hint_can_name(name, symbol):
    found = plausibility.space_group_of(TEXTBOOK[name])
    assert found == symbol == plausibility.space_group_from_hint(found)
    assert plausibility.space_group_of(skewed(TEXTBOOK[name])) == symbol


def test_no_symmetry_is_p1():
    rng = np.random.default_rng(0)
    crystal = Crystal(np.array([6, 7, 8, 9]), rng.random((4, 3)), np.diag([4.0, 5, 6]) + 0.3)
    assert plausibility.space_group_of(crystal) == "P1"
    on_top = Crystal(np.array([6, 6]), np.zeros((2, 3)), np.eye(3) * 4)  # spglib gives up on it
    assert plausibility.space_group_of(on_top) == "P1"


# Contacts and equality ----------------------------------------------------------------------------


def test_radii_are_slaters():
    assert [float(ATOMIC_RADII[z]) for z in (1, 6, 8, 22, 55, 95)] == [
        0.25, 0.7, 0.6, 1.4, 2.6, 1.75,
    ]  # fmt: skip
    assert ATOMIC_RADII[2] == ATOMIC_RADII[118] == 1.5
    assert ATOMIC_RADII.shape == (119,)


def test_equal_structures_share_a_group_whatever_their_cell():
    rutile, rock_salt = TEXTBOOK["rutile"], TEXTBOOK["rock_salt"]
    double = Crystal(
        np.tile(rutile.atomic_numbers, 2),
        np.concatenate([rutile.frac_coords * [1, 1, 0.5] + [0, 0, z] for z in (0, 0.5)]),
        rutile.lattice * np.array([[1.0], [1.0], [2.0]]),
    )
    moved = rutile._replace(frac_coords=rutile.frac_coords + np.eye(6, 3) * 0.02)
    other = rutile._replace(frac_coords=np.random.default_rng(1).random((6, 3)))
    larger = rutile._replace(lattice=rutile.lattice * 1.2)  # the matcher alone would rescale it
    some = [other, skewed(rutile), rock_salt, rutile, double, moved, larger]
    groups = plausibility.group_equal(some, np.array([0.1, 0.9, 0.8, 0.5, 0.5, 0.5, 0.2]))
    assert groups.tolist() == [3, 0, 1, 0, 0, 0, 2]


def test_impossible_cells_are_recognised():
    rutile = TEXTBOOK["rutile"]
    assert plausibility.is_possible(rutile)
    nan = rutile.frac_coords.copy()
    nan[0, 0] = np.nan
    for changes in (
        {"frac_coords": nan},
        {"lattice": rutile.lattice * np.nan},
        {"lattice": rutile.lattice * 0.1},
        {"lattice": rutile.lattice * 20},
        {"lattice": rutile.lattice * np.array([[10.0], [1.0], [0.1]])},
    ):
        assert not plausibility.is_possible(rutile._replace(**changes))
