"""Powder lines: known answers, invariances, padding, gradients; the two ways must agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xtalnet_jax.crystals.crystal import Crystal, pack_crystals, stack_crystals
from xtalnet_jax.pxrd import hkl as hkl_lists
from xtalnet_jax.pxrd import simulate
from xtalnet_jax.pxrd.instrument import Instrument
from xtalnet_jax.pxrd.pattern import Lines

INV_D_MAX = 0.9


reflect = jax.jit(simulate.reflections, static_argnames=("hkl", "num_species"))


def rock_salt() -> Crystal:
    face = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    frac = np.concatenate([face, (face + 0.5) % 1])
    return Crystal(np.array([11] * 4 + [17] * 4), frac, np.eye(3) * 5.64)


def triclinic(seed: int = 0, num_atoms: int = 7, size: float = 5.0) -> Crystal:
    rng = np.random.default_rng(seed)
    cell = np.eye(3) * size + rng.uniform(-1.0, 1.0, (3, 3))
    z = rng.choice([3, 8, 26, 56], num_atoms)
    return Crystal(z, rng.random((num_atoms, 3)), cell)


def cumulative(lines: Lines, at: np.ndarray, k: int = 0) -> np.ndarray:
    """Strength (of total 1) below each 1/d: insensitive to which of near lines are merged."""
    inv_d, strength = np.asarray(lines.inv_d[k], float), np.asarray(lines.strength[k], float)
    return np.array([strength[inv_d <= x].sum() for x in at]) / strength.sum()


def assert_same_lines(one: Lines, other: Lines, atol: float = 2e-5) -> None:
    edges = np.unique(np.round(np.asarray(one.inv_d[one.inv_d > 0]), 6))
    middle = (edges[1:] + edges[:-1]) / 2
    middle = middle[np.diff(edges) > 2e-4]  # between lines, never on one
    assert len(middle) > 3
    np.testing.assert_allclose(cumulative(one, middle), cumulative(other, middle), atol=atol)


@pytest.mark.parametrize(
    ("crystal", "positions", "multiplicities"),
    [
        # Simple, body-centred and face-centred cubic: allowed h^2 + k^2 + l^2 and multiplicities.
        (
            Crystal(np.array([84]), np.zeros((1, 3)), np.eye(3) * 3.35),
            [1, 2, 3, 4, 5],
            [6, 12, 8, 6, 24],
        ),
        (
            Crystal(np.array([74, 74]), np.array([[0.0] * 3, [0.5] * 3]), np.eye(3) * 3.165),
            [2, 4, 6, 8],
            [12, 6, 24, 12],
        ),
        (
            Crystal(np.array([29] * 4), rock_salt().frac_coords[:4], np.eye(3) * 3.61),
            [3, 4, 8, 11, 12],
            [8, 6, 12, 24, 8],
        ),
    ],
)
def test_cubic_metals(crystal, positions, multiplicities):
    a = crystal.lattice[0, 0]
    inv_d = np.sqrt(positions) / a
    lines = simulate.lines_of([crystal], inv_d[-1] * 1.01, 8)
    np.testing.assert_allclose(lines.inv_d[0, : len(inv_d)], inv_d, rtol=1e-6)
    assert (lines.inv_d[0, len(inv_d) :] == 0).all()
    # strength / f^2 is the multiplicity, up to the one common factor
    from xtalnet_jax.pxrd.scattering import form_factors

    f = form_factors(jnp.asarray(crystal.atomic_numbers[:1]), jnp.asarray(inv_d**2 / 4))[0]
    ratio = lines.strength[0, : len(inv_d)] / np.asarray(f) ** 2
    np.testing.assert_allclose(
        ratio / ratio[0], np.array(multiplicities) / multiplicities[0], rtol=1e-5
    )


def test_rock_salt_is_the_tabulated_pattern():
    peaks = simulate.simulate_peaks(rock_salt(), 1.5406, two_theta_range=(20, 60), b_iso=1.5)
    # PDF 5-628 (halite): 111 200 220 311 222; observed 13 100 55 2 15, positions to 0.03 degree
    np.testing.assert_allclose(peaks.two_theta, [27.33, 31.69, 45.45, 53.87, 56.48], atol=0.04)
    assert peaks.intensity.argmax() == 1
    assert peaks.intensity.max() == pytest.approx(100)
    np.testing.assert_allclose(peaks.intensity, [13, 100, 55, 2, 15], atol=12)


def test_caesium_chloride_has_weak_odd_lines():
    crystal = Crystal(np.array([55, 17]), np.array([[0.0] * 3, [0.5] * 3]), np.eye(3) * 4.123)
    lines = simulate.lines_of([crystal], 2.1 / 4.123, 8)
    # F = f_Cs + f_Cl for h + k + l even, f_Cs - f_Cl for odd: 100 < 110
    even, odd = lines.strength[0, 1], lines.strength[0, 0]
    from xtalnet_jax.pxrd.scattering import form_factors

    f = np.asarray(form_factors(jnp.array([55, 17]), jnp.asarray(lines.inv_d[0, :2] ** 2 / 4)))
    expected = (6 * (f[0, 0] - f[1, 0]) ** 2) / (12 * (f[0, 1] + f[1, 1]) ** 2)
    assert odd / even == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("crystal", [rock_salt(), triclinic(1), triclinic(2, 20)])
def test_box_list_and_bulk_agree(crystal):
    batch = stack_crystals([crystal])
    box = simulate.hkl_box_for(batch.lattice, INV_D_MAX)
    table = hkl_lists.hkl_table(batch.lattice, INV_D_MAX)
    from_box = simulate.lines(batch, box, INV_D_MAX, 1024)
    from_list = simulate.lines(batch, hkl_lists.padded_hkl(table), INV_D_MAX, 1024)
    from_host = simulate.lines_of([crystal], INV_D_MAX, 1024)
    assert_same_lines(from_box, from_list)
    assert_same_lines(from_box, from_host)
    for lines in (from_box, from_host):
        real = lines.inv_d[0] > 0
        assert float(lines.strength.max()) == pytest.approx(1.0)
        assert (jnp.diff(lines.inv_d[0][real]) > 0).all()
        assert real[: real.sum()].all()


def test_brute_force_sum():
    crystal = triclinic(3)
    box = (6, 6, 6)
    grid = np.arange(-6, 7)
    hkl = np.stack(np.meshgrid(grid, grid, grid, indexing="ij"), -1).reshape(-1, 3)
    q = hkl @ np.linalg.inv(crystal.lattice).T
    inv_d = np.linalg.norm(q, axis=1)
    keep = (inv_d > 0) & (inv_d <= 0.8)
    from xtalnet_jax.pxrd.scattering import form_factors

    f = np.asarray(form_factors(jnp.asarray(crystal.atomic_numbers), jnp.asarray(inv_d**2 / 4)))
    phase = np.exp(2j * np.pi * hkl @ crystal.frac_coords.T)
    square = np.abs((phase * f.T).sum(1)) ** 2 * np.exp(-2 * 0.7 * inv_d**2 / 4)
    found = reflect(stack_crystals([crystal]), box, 0.8, b_iso=0.7)
    assert float(found.strength.sum()) == pytest.approx(square[keep].sum(), rel=1e-5)
    moment = (found.strength * found.inv_d**2).sum()
    assert float(moment) == pytest.approx((square * inv_d**2)[keep].sum(), rel=1e-5)


def test_invariance_to_the_description():
    crystal = triclinic(4)
    rng = np.random.default_rng(0)
    reference = simulate.lines_of([crystal], INV_D_MAX, 1024)
    order = rng.permutation(len(crystal.atomic_numbers))
    permuted = Crystal(crystal.atomic_numbers[order], crystal.frac_coords[order], crystal.lattice)
    shifted = crystal._replace(frac_coords=(crystal.frac_coords + rng.random(3)) % 1)
    inverted = crystal._replace(frac_coords=-crystal.frac_coords % 1)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    rotated = crystal._replace(lattice=crystal.lattice @ rotation)
    change = np.array([[1, 1, 0], [0, 1, 2], [0, 0, 1]])  # unimodular
    other = crystal._replace(
        lattice=change @ crystal.lattice,
        frac_coords=crystal.frac_coords @ np.linalg.inv(change) % 1,
    )
    doubled = Crystal(
        np.tile(crystal.atomic_numbers, 2),
        np.concatenate([crystal.frac_coords, crystal.frac_coords + [0, 0, 1]]) / [1, 1, 2],
        crystal.lattice * np.array([[1], [1], [2]]),
    )
    for same in (permuted, shifted, inverted, rotated, other, doubled):
        assert_same_lines(reference, simulate.lines_of([same], INV_D_MAX, 1024))
    moved = crystal._replace(frac_coords=crystal.frac_coords + rng.normal(size=(7, 3)) * 0.02)
    with pytest.raises(AssertionError):
        assert_same_lines(reference, simulate.lines_of([moved], INV_D_MAX, 1024))


def test_padding_changes_neither_lines_nor_gradients():
    crystals = [triclinic(5), triclinic(6, 4)]
    tight = stack_crystals(crystals[:1])
    padded = stack_crystals(crystals, num_nodes=11, num_graphs=4)
    box = simulate.hkl_box_for(padded.lattice, INV_D_MAX)

    def total(frac, lattice, batch):
        batch = batch._replace(frac_coords=frac, lattice=lattice)
        found = simulate.reflections(batch, box, INV_D_MAX)
        return (found.strength * jnp.sin(9 * found.inv_d)).sum(-1)[0]

    gradient = jax.jit(jax.value_and_grad(total, (0, 1)))
    value, (frac, lattice) = gradient(
        jnp.asarray(tight.frac_coords), jnp.asarray(tight.lattice), tight
    )
    value_p, (frac_p, lattice_p) = gradient(
        jnp.asarray(padded.frac_coords), jnp.asarray(padded.lattice), padded
    )
    scale = float(jnp.abs(frac).max())
    assert float(value_p) == pytest.approx(float(value), rel=1e-5)
    np.testing.assert_allclose(frac_p[0, :7], frac[0], atol=1e-5 * scale)
    np.testing.assert_allclose(lattice_p[0], lattice[0], atol=1e-5 * float(jnp.abs(lattice).max()))
    assert (frac_p[0, 7:] == 0).all()
    assert (frac_p[1:] == 0).all()
    empty = simulate.lines(padded, box, INV_D_MAX, 16)
    assert (empty.strength[2:] == 0).all()


@pytest.mark.parametrize("form", ["box", "list", "atoms"])
def test_gradients_are_finite_differences(form):
    crystal = triclinic(7)
    with jax.enable_x64(True):
        batch = stack_crystals([crystal])
        frac, lattice = (jnp.asarray(v[None]) for v in (crystal.frac_coords, crystal.lattice))
        table = hkl_lists.hkl_table(lattice, 0.75)
        hkl = (4, 4, 4) if form == "box" else hkl_lists.padded_hkl(table)
        b = jnp.full((1, 7), 0.4) if form == "atoms" else jnp.asarray(0.4)

        def value(x):
            moved = batch._replace(frac_coords=x["frac"], lattice=x["lattice"])
            # wider than the list, so that no reflection crosses the cut
            found = simulate.reflections(moved, hkl, 0.76, b_iso=x["b"])
            weight = jnp.exp(-(((found.inv_d - 0.5) / 0.1) ** 2))
            return (found.strength * weight).sum() / 1e4

        at = {"frac": frac, "lattice": lattice, "b": b}
        gradient, value = jax.jit(jax.grad(value))(at), jax.jit(value)
        rng = np.random.default_rng(0)
        for name in at:
            direction = jnp.asarray(rng.normal(size=at[name].shape))
            step = 1e-6
            ends = [value(at | {name: at[name] + sign * step * direction}) for sign in (1, -1)]
            expected = (ends[0] - ends[1]) / (2 * step)
            assert float((gradient[name] * direction).sum()) == pytest.approx(
                float(expected), rel=1e-6
            )


def test_gradient_is_finite_where_everything_is_degenerate():
    batch = stack_crystals([rock_salt()], num_nodes=10, num_graphs=2)

    def value(frac, lattice):
        found = simulate.reflections(
            batch._replace(frac_coords=frac, lattice=lattice), (4, 4, 4), 0.6
        )
        return found.strength.sum() + found.inv_d.sum()

    gradient = jax.jit(jax.grad(value, (0, 1)))(
        jnp.asarray(batch.frac_coords), jnp.asarray(batch.lattice)
    )
    assert all(bool(jnp.isfinite(g).all()) for g in gradient)


def test_few_lines_keep_the_strongest_of_a_pattern():
    crystal = triclinic(8)
    batch = stack_crystals([crystal])
    every = simulate.lines_of([crystal], INV_D_MAX, 1024)
    real = every.inv_d[0] > 0
    rank = every.strength[0][real] / every.inv_d[0][real] ** 2
    expected = np.sort(every.inv_d[0][real][np.argsort(-rank)[:20]])
    box = simulate.hkl_box_for(batch.lattice, INV_D_MAX)
    for few in (
        simulate.lines_of([crystal], INV_D_MAX, 20),
        simulate.lines(batch, box, INV_D_MAX, 20),
    ):
        np.testing.assert_allclose(few.inv_d[0], expected, atol=2e-6)


def test_bulk_does_not_depend_on_batching():
    crystals = [triclinic(k, 3 + k, 4.0 + 0.3 * k) for k in range(9)] + [rock_salt()]
    one = simulate.lines_of(crystals, INV_D_MAX, 256)
    calls = []
    packed = pack_crystals(crystals)
    other = simulate.lines_of(
        packed,
        INV_D_MAX,
        256,
        batch_size=3,
        progress=lambda done, total: calls.append((done, total)),
    )
    np.testing.assert_array_equal(one.inv_d, other.inv_d)
    np.testing.assert_allclose(one.strength, other.strength, atol=1e-6)
    assert calls == [(3, 10), (6, 10), (9, 10), (10, 10)]


def test_listed_reflections_are_complete_and_ordered():
    cell = triclinic(9).lattice
    table = hkl_lists.hkl_table(cell[None], 1.0, 0.3)
    hkl = hkl_lists.full_box((9, 9, 9))
    length = np.linalg.norm(hkl @ np.linalg.inv(cell).T, axis=1)
    box = hkl[(length >= 0.3) & (length <= 1.0)]
    canonical = {max(tuple(h), tuple(-x for x in h)) for h in box.tolist()}
    listed = {max(tuple(h), tuple(-x for x in h)) for h in table.hkl.tolist()}
    assert listed == canonical
    assert len(table.hkl) == len(listed)
    assert (np.diff(table.inv_d) >= 0).all()


def test_bad_input_is_refused():
    batch = stack_crystals([triclinic(1)])
    with pytest.raises(ValueError, match="too small"):
        simulate.lines(batch, (2, 2, 2), INV_D_MAX, 64)
    with pytest.raises(ValueError, match="no crystals"):
        simulate.lines_of([], INV_D_MAX, 64)
    with pytest.raises(ValueError, match="two_theta_range"):
        simulate.simulate_peaks(rock_salt(), two_theta_range=(30, 20))
    with pytest.raises(ValueError, match="wavelength"):
        simulate.simulate_peaks(rock_salt(), wavelength=0)
    with pytest.raises(ValueError, match="flat"):
        simulate.simulate_peaks(rock_salt()._replace(lattice=np.ones((3, 3))))
    with pytest.raises(ValueError, match="step"):
        simulate.simulate_pattern(rock_salt(), step=0)
    with pytest.raises(ValueError, match="reflections"):
        hkl_lists.padded_hkl(hkl_lists.hkl_table(batch.lattice, 0.9), 4)


def test_too_many_species_show_as_nan():
    crystal = Crystal(np.array([3, 8, 26]), np.random.default_rng(0).random((3, 3)), np.eye(3) * 4)
    found = reflect(stack_crystals([crystal]), (3, 3, 3), 0.6, num_species=2)
    assert jnp.isnan(found.strength).any()


def test_pattern_shows_the_peaks():
    sharp = Instrument(w=0.0025, x=0.0, y=0.0)
    peaks = simulate.simulate_peaks(rock_salt(), two_theta_range=(20, 80))
    pattern, other = simulate.simulate_pattern(
        [rock_salt(), triclinic()], 1.54184, (20, 80), 0.01, sharp
    )
    assert other.two_theta.shape == pattern.two_theta.shape == (6001,)
    assert pattern.intensity.max() == pytest.approx(100)
    for angle, intensity in zip(peaks.two_theta, peaks.intensity):
        near = np.abs(pattern.two_theta - angle) < 0.5
        assert pattern.two_theta[near][pattern.intensity[near].argmax()] == pytest.approx(
            angle, abs=0.0051
        )
        area = pattern.intensity[near].sum() * 0.01
        height_of_100 = 100 / (np.sqrt(4 * np.log(2) / np.pi) / 0.05)  # Gaussian of 0.05 degree
        assert area == pytest.approx(intensity / 100 * height_of_100, rel=2e-2)
    with_background = simulate.simulate_pattern(
        rock_salt(), 1.54184, (20, 80), 0.01, sharp._replace(background=(5.0, 2.0))
    )
    ramp = 5 + 2 * np.linspace(-1, 1, 6001)
    np.testing.assert_allclose(with_background.intensity - pattern.intensity, ramp, atol=1e-3)
