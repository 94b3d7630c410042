"""The crystal tower on reflections: the list against the host's, absences, invariances, padding."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xtalnet_jax.crystals.crystal import CrystalBatch
from xtalnet_jax.models.cpcp import CPCP
from xtalnet_jax.models.reflection_tower import (
    ReflectionTower,
    half_box,
    normalised_intensity,
    shortest_reflections,
)
from xtalnet_jax.pxrd.hkl import hkl_table

SMALL = {
    "width": 16, "ffn": 32, "heads": 2, "layers": 1, "channels": 4, "num_reflections": 24,
    "num_freqs": 8,
}  # fmt: skip
NUM = 40


def _lattice(seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(np.diag([4.1, 9.3, 6.2]) + 0.4 * rng.standard_normal((3, 3)), jnp.float32)


def _batch(lattice=None, seed=1, num_atoms=5, num_padded=0):
    rng = np.random.default_rng(seed)
    numbers = np.pad(rng.integers(1, 90, num_atoms), (0, num_padded))[None]
    coords = np.pad(rng.random((num_atoms, 3)), ((0, num_padded), (0, 0)))[None]
    lattice = _lattice()[None] if lattice is None else lattice
    return CrystalBatch(jnp.asarray(numbers), jnp.asarray(coords, jnp.float32), lattice)


@pytest.fixture(scope="module")
def embed():
    tower = ReflectionTower(**SMALL)
    params = jax.jit(tower.init)(jax.random.key(0), _batch())
    # The first weights are small; larger ones show a broken symmetry better.
    params = jax.tree.map(lambda x: 3.0 * x, params)
    return jax.jit(lambda batch: tower.apply(params, batch))


def test_half_box_holds_one_of_each_pair():
    box = half_box((1, 2, 2))
    assert len(box) == (3 * 5 * 5 - 1) // 2
    both = {tuple(h) for h in box} | {tuple(-h) for h in box}
    assert len(both) == 2 * len(box)
    assert (0, 0, 0) not in both


@pytest.mark.parametrize("seed", range(4))
def test_shortest_reflections_are_those_of_the_host_list(seed):
    lattice = _lattice(seed)
    hkl, inv_d, mask = (np.asarray(x[0]) for x in shortest_reflections(lattice[None], NUM))
    found = inv_d[mask]
    expected = hkl_table(np.asarray(lattice)[None], 1.0).inv_d[: NUM + 1]
    assert NUM - 2 <= mask.sum() <= NUM
    np.testing.assert_allclose(found, expected[: len(found)], rtol=2e-5)
    direct = np.linalg.norm(hkl @ np.linalg.inv(np.asarray(lattice)).T, axis=1)
    np.testing.assert_allclose(direct, inv_d, rtol=2e-5)


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
def test_order_of_the_axes_does_not_matter(axes):
    lattice = (jnp.diag(jnp.array([3.1, 4.7, 7.9])) + 0.2 * jnp.tri(3, k=-1))[jnp.array(axes)]
    hkl, inv_d, mask = (np.asarray(x[0]) for x in shortest_reflections(lattice[None], NUM))
    expected = hkl_table(np.asarray(lattice)[None], 1.0).inv_d[: NUM + 1]
    np.testing.assert_allclose(inv_d[mask], expected[: mask.sum()], rtol=2e-5)
    direct = np.linalg.norm(hkl @ np.linalg.inv(np.asarray(lattice)).T, axis=1)
    np.testing.assert_allclose(direct, inv_d, rtol=2e-5)


def test_a_shell_is_listed_whole_or_not_at_all():
    cubic = 4.0 * jnp.eye(3)[None]
    # 100 (3 pairs), 110 (6), 111 (4), 200 (3): 15 reflections end within the last shell.
    _, inv_d, mask = shortest_reflections(cubic, 15)
    assert int(mask.sum()) == 13
    np.testing.assert_allclose(
        inv_d[0, :13] * 4, [1.0] * 3 + [2**0.5] * 6 + [3**0.5] * 4, rtol=1e-5
    )


def test_reflections_outside_laboratory_patterns_are_masked():
    _, inv_d, mask = shortest_reflections(2.0 * jnp.eye(3)[None], 30)
    assert 0 < mask.sum() < 30
    assert float(inv_d[mask].max()) <= 1.0


def test_intensities_are_those_of_complex_structure_factors():
    rng = np.random.default_rng(5)
    hkl, x = rng.integers(-4, 5, (2, 7, 3)), rng.random((2, 6, 3))
    power = rng.standard_normal((2, 6, 3))
    amplitude = np.einsum(
        "brn,bnc->brc", np.exp(2j * np.pi * np.einsum("brk,bnk->brn", hkl, x)), power
    )
    expected = abs(amplitude) ** 2 / (power**2).sum(1)[:, None]
    found = normalised_intensity(*map(jnp.asarray, (hkl, x, power)))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_body_centring_extinguishes_odd_reflections():
    hkl = jnp.array([[[1, 0, 0], [1, 1, 0], [1, 1, 1], [2, 0, 0]]])
    x = jnp.array([[[0.1, 0.2, 0.3], [0.6, 0.7, 0.8]]])
    found = normalised_intensity(hkl, x, jnp.ones((1, 2, 1)))[0, :, 0]
    np.testing.assert_allclose(found, [0.0, 2.0, 0.0, 2.0], atol=1e-5)


def test_feature_ignores_origin_orientation_order_and_hand(embed):
    batch = _batch()
    turn, _ = np.linalg.qr(np.random.default_rng(3).standard_normal((3, 3)))
    order = np.array([3, 1, 4, 0, 2])
    changed = CrystalBatch(
        batch.atomic_numbers[:, order],
        (-batch.frac_coords[:, order] + 0.29) % 1.0,
        batch.lattice @ jnp.asarray(turn, jnp.float32),
    )
    np.testing.assert_allclose(embed(changed), embed(batch), rtol=5e-4, atol=5e-4)
    moved = batch._replace(frac_coords=batch.frac_coords.at[0, 0, 0].add(0.1))
    assert jnp.abs(embed(moved) - embed(batch)).max() > 5e-3


@pytest.mark.parametrize(
    "basis", [[[0, 1, 0], [0, 0, 1], [1, 0, 0]], [[1, 0, 0], [1, 1, 0], [0, 0, -1]]]
)
def test_feature_ignores_the_basis_of_the_lattice(embed, basis):
    batch, basis = _batch(), np.array(basis)
    coords = batch.frac_coords @ jnp.asarray(np.linalg.inv(basis), jnp.float32)
    other = batch._replace(
        frac_coords=coords, lattice=jnp.asarray(basis, jnp.float32) @ batch.lattice
    )
    np.testing.assert_allclose(embed(other), embed(batch), rtol=5e-4, atol=5e-4)


def test_padding_changes_nothing(embed):
    np.testing.assert_allclose(embed(_batch(num_padded=3)), embed(_batch()), rtol=1e-4, atol=1e-4)


def test_gradients_are_finite_at_extinct_reflections():
    tower = ReflectionTower(**SMALL)
    numbers = jnp.array([[26, 26]])
    batch = CrystalBatch(numbers, jnp.array([[[0.0] * 3, [0.5] * 3]]), 2.9 * jnp.eye(3)[None])
    params = jax.jit(tower.init)(jax.random.key(0), batch)

    def feature(params, coords):
        return tower.apply(params, batch._replace(frac_coords=coords)).sum()

    for grad in jax.tree.leaves(jax.grad(feature, (0, 1))(params, batch.frac_coords)):
        assert jnp.isfinite(grad).all()


def test_cpcp_takes_the_tower_and_refuses_graphs():
    model = CPCP(
        {"width": 16, "ffn": 32, "heads": 4, "layers": 1}, {"kind": "reflections", **SMALL}, 8
    )
    batch = _batch(num_padded=1)
    empty = jax.tree.map(lambda x: jnp.concatenate([x, jnp.zeros_like(x)]), batch)
    empty = empty._replace(lattice=empty.lattice.at[1].set(jnp.eye(3)))
    params = model.init(jax.random.key(0), empty, method="embed_crystals")
    vectors = model.apply(params, empty, method="embed_crystals")
    np.testing.assert_allclose(jnp.linalg.norm(vectors, axis=1), [1, 0], atol=1e-5)
    with pytest.raises(ValueError, match="'reflections'"):
        model.apply(params, None, method="embed_graphs")


def test_the_box_serves_reduced_cells_of_twenty_atoms():
    # 20 atoms of 20 cubic angstrom, the longest axis eight times the shortest.
    lattice = np.diag([3.7, 3.7, 29.2])[None]
    _, inv_d, mask = (np.asarray(x[0]) for x in shortest_reflections(jnp.asarray(lattice), 64))
    complete = hkl_table(lattice, float(inv_d[mask].max())).inv_d
    assert mask.sum() >= 40
    assert len(complete) <= mask.sum() * 1.35
