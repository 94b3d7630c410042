"""Known structures as templates: exchanges of elements, cells, and settings in a given cell."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xtalnet_jax.crystals import typical
from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.crystals.lattice import matrix_from_parameters
from xtalnet_jax.crystals.reduction import standardise
from xtalnet_jax.data.fixtures import textbook_crystals, textbook_set
from xtalnet_jax.evaluation.matching import TOLERANCES, match_rmse
from xtalnet_jax.pxrd.peaks import peak_batch
from xtalnet_jax.pxrd.simulate import simulate_pattern
from xtalnet_jax.solve import solver as solver_module
from xtalnet_jax.solve.templates import Templates, exchanges, mendeleev_numbers, settings_in

pytestmark = pytest.mark.optimised

KNOWN = {name: standardise(c) for name, c in textbook_crystals().items()}


@pytest.fixture(scope="module")
def templates() -> Templates:
    return Templates.build(textbook_set(), "textbook")


def like(name: str, elements: dict[int, int], scale: float) -> Crystal:
    """A textbook crystal with other elements and a scaled cell."""
    c = KNOWN[name]
    numbers = np.array([elements[int(z)] for z in c.atomic_numbers], np.int32)
    return Crystal(numbers, c.frac_coords, np.asarray(c.lattice) * scale)


def measured(crystal: Crystal):
    pattern = simulate_pattern([crystal])[0]
    return peak_batch([pattern], 64), pattern.wavelength


def test_mendeleev_numbers_put_similar_elements_together():
    number = mendeleev_numbers()
    assert np.isfinite(number).all()
    na, k, f, cl, ti, zr = (number[z] for z in (11, 19, 9, 17, 22, 40))
    assert max(abs(na - k), abs(f - cl), abs(ti - zr)) < 4
    assert abs(na - cl) > 50


def test_exchanges_keep_counts_and_cost_the_mean_difference():
    template, wanted = {38: 1, 22: 1, 8: 3}, {9: 3, 12: 1, 11: 1}
    ways = list(exchanges(template, wanted))
    assert len(ways) == 2
    for cost, way in ways:
        assert sorted(way.values()) == [9, 11, 12]
        assert all(template[old] == wanted[new] for old, new in way.items())
        number = mendeleev_numbers()
        total = sum(template[old] * abs(number[old] - number[way[old]]) for old in template)
        assert cost == pytest.approx(total / 5)
    assert min(exchanges({11: 1, 17: 1}, {17: 1, 11: 1}))[0] == 0


def test_many_elements_of_one_count_are_exchanged_in_the_cheapest_order():
    old = dict.fromkeys((3, 11, 19, 37, 55, 9), 2)
    ways = list(exchanges(old, dict.fromkeys((17, 55, 37, 19, 11, 3), 2)))
    assert len(ways) == 1
    assert ways[0][1] == {3: 3, 11: 11, 19: 19, 37: 37, 55: 55, 9: 17}


def test_exchanged_crystals_have_the_atoms_and_the_room_of_the_new_elements(templates):
    wanted = np.array([35, 19])
    made = templates.exchanged(wanted)
    for c in made:
        assert sorted(c.atomic_numbers) == [19, 35]
    first = typical.volume_ratio(made[0].atomic_numbers, made[0].lattice)
    salt = KNOWN["rock_salt"]
    caesium = KNOWN["caesium_chloride"]
    kinds = [typical.volume_ratio(c.atomic_numbers, c.lattice) for c in (salt, caesium)]
    assert first == pytest.approx(kinds[0], rel=1e-3)  # NaCl is nearer to KBr than CsCl is
    assert len(templates.exchanged(wanted, most=3)) == 3


def test_nothing_is_made_where_no_template_has_the_counts(templates):
    strange = np.array([26] * 7 + [8] * 11)
    peaks, wavelength = measured(KNOWN["rock_salt"])
    assert templates.exchanged(strange) == []
    assert templates.propose(strange, peaks, wavelength, 5) == []
    assert templates.propose(strange, peaks, wavelength, 5, np.eye(3)[None] * 6) == []


@pytest.mark.parametrize(
    ("name", "elements", "scale"),
    [
        ("rutile", {22: 50, 8: 9}, 1.06),
        ("perovskite", {38: 56, 22: 40, 8: 8}, 1.07),
        ("rock_salt", {11: 12, 17: 8}, 0.75),
        ("caesium_chloride", {55: 81, 17: 35}, 0.97),
    ],
)
def test_the_pattern_picks_the_right_template_and_its_cell(templates, name, elements, scale):
    truth = like(name, elements, scale)
    peaks, wavelength = measured(truth)
    found = templates.propose(truth.atomic_numbers, peaks, wavelength, 3)
    assert match_rmse(found[0], truth, TOLERANCES["strict"]) is not None
    volumes = [abs(np.linalg.det(c.lattice)) for c in (found[0], truth)]
    assert volumes[0] == pytest.approx(volumes[1], rel=0.03)
    assert len(found) <= 3


def test_structures_are_proposed_once(templates):
    twice = Templates.build(textbook_set(), "a")
    twice = twice._replace(rows={k: np.tile(v, 3) for k, v in twice.rows.items()})
    peaks, wavelength = measured(KNOWN["rutile"])
    once = templates.propose(np.array([8, 8, 8, 8, 22, 22]), peaks, wavelength, 10)
    again = twice.propose(np.array([8, 8, 8, 8, 22, 22]), peaks, wavelength, 10)
    assert len(once) == len(again) > 1


def test_given_cells_are_taken_over(templates):
    """The template's axes ratio is wrong; in the true cell all lines agree."""
    rutile = KNOWN["rutile"]
    stretched = rutile._replace(lattice=np.asarray(rutile.lattice) @ np.diag([1.04, 0.99, 0.99]))
    peaks, wavelength = measured(stretched)
    found = templates.propose(
        rutile.atomic_numbers, peaks, wavelength, 2, np.asarray(stretched.lattice)[None]
    )
    np.testing.assert_allclose(found[0].lattice, stretched.lattice, rtol=1e-5, atol=1e-5)
    assert match_rmse(found[0], stretched, TOLERANCES["strict"]) < 0.02


def distances(crystal: Crystal) -> np.ndarray:
    return np.sort(crystal.to_structure().distance_matrix.ravel())


def test_settings_in_a_rotated_and_permuted_cell_are_the_same_structure():
    rng = np.random.default_rng(0)
    lattice = matrix_from_parameters(jnp.array([5.0, 5.6, 6.5]), jnp.array([82.0, 95.0, 101.0]))
    crystal = Crystal(np.array([3, 8, 22, 26]), rng.random((4, 3)), np.asarray(lattice))
    permutation = np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]])
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    rotation *= np.sign(np.linalg.det(rotation))
    target = permutation @ crystal.lattice @ rotation
    found = settings_in(crystal, target)
    assert found
    errors = [np.abs(distances(c) - distances(crystal)).max() for c in found]
    assert min(errors) < 1e-3
    for c in found:
        np.testing.assert_allclose(c.lattice, target, atol=1e-5)


def test_a_cell_of_another_shape_takes_no_template():
    flat = np.diag([3.0, 3.0, 12.0])
    assert settings_in(KNOWN["rock_salt"], flat) == []


def test_solver_fills_up_with_draws(tiny_solver, templates):
    solver = tiny_solver._replace(templates=templates)
    truth = like("rutile", {22: 50, 8: 9}, 1.06)
    peaks, wavelength = measured(truth)
    found = solver.propose(peaks, wavelength, jax.random.key(0), truth.atomic_numbers, 6)
    most = round(solver_module.TEMPLATE_SHARE * 6)
    own = templates.propose(truth.atomic_numbers, peaks, wavelength, most)
    assert 1 <= len(own) <= most
    for a, b in zip(found, own):
        np.testing.assert_array_equal(a.frac_coords, b.frac_coords)
    assert 1 <= len(found) <= 6
    assert match_rmse(found[0], truth, TOLERANCES["field"]) is not None
    plain = tiny_solver.propose(peaks, wavelength, jax.random.key(0), truth.atomic_numbers, 6)
    matched = [match_rmse(c, truth, TOLERANCES["field"]) is not None for c in plain]
    assert not any(matched)
    assert len(plain) <= 6
    assert solver.label == f"{tiny_solver.name}, templates textbook"
    assert tiny_solver.label == tiny_solver.name


def test_missing_set_is_one_sentence():
    with pytest.raises(ValueError, match=r"there is no packed set at nowhere\.npz"):
        Templates.load("nowhere.npz")
