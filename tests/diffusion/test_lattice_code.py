import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.cases import random_crystals
from xtalnet_jax.diffusion import lattice_code
from xtalnet_jax.diffusion.lattice_code import LatticeStats, fit_stats

CRYSTALS = random_crystals(0, tuple(range(1, 41)))
LATTICES = jnp.asarray(np.stack([c.lattice for c in CRYSTALS]), jnp.float32)
NUM_ATOMS = jnp.asarray([len(c.atomic_numbers) for c in CRYSTALS])
STATS = fit_stats(LATTICES, NUM_ATOMS)
encode, decode = jax.jit(lattice_code.encode), jax.jit(lattice_code.decode)


def metric(lattice):
    return np.einsum("gik,gjk->gij", lattice, lattice)


def test_decode_inverts_encode_up_to_rotation():
    code = encode(LATTICES, NUM_ATOMS, STATS)
    back = decode(code, NUM_ATOMS, STATS)
    np.testing.assert_allclose(metric(back), metric(LATTICES), rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(encode(back, NUM_ATOMS, STATS), code, atol=2e-4)


def test_any_code_is_a_cell():
    code = 3 * jax.random.normal(jax.random.key(0), (100, 6))
    lattice = decode(code, jnp.full(100, 8), STATS)
    volume = np.abs(np.linalg.det(lattice))
    assert np.isfinite(lattice).all()
    assert (volume > 0).all()
    gradient = jax.jit(jax.grad(lambda c: decode(c, jnp.full(100, 8), STATS).sum()))(code)
    assert np.isfinite(gradient).all()


def test_statistics_standardise_and_rotation_does_not_matter():
    code = encode(LATTICES, NUM_ATOMS, STATS)
    np.testing.assert_allclose(code.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(code.std(0), 1, atol=1e-4)
    rotation = jnp.asarray(
        np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0], jnp.float32
    )
    np.testing.assert_allclose(encode(LATTICES @ rotation, NUM_ATOMS, STATS), code, atol=5e-4)


def test_a_larger_cell_of_the_same_density_has_the_same_code():
    code = encode(2 * LATTICES, 8 * NUM_ATOMS, STATS)
    np.testing.assert_allclose(code, encode(LATTICES, NUM_ATOMS, STATS), atol=1e-4)


def test_the_diagonal_sums_to_the_log_volume_per_atom():
    identity = LatticeStats(np.zeros(6), np.ones(6))
    code = encode(LATTICES, NUM_ATOMS, identity)
    volume = np.abs(np.linalg.det(LATTICES)) / np.asarray(NUM_ATOMS)
    np.testing.assert_allclose(code[:, :3].sum(-1), np.log(volume), atol=1e-4)


@pytest.mark.parametrize(
    ("lattices", "num_atoms", "message"),
    [
        (np.eye(3), [1], r"lattices has shape \(3, 3\)"),
        (np.eye(3)[None], [1, 2], r"num_atoms has shape \(2,\)"),
        (np.eye(3)[None], [0], "counts of at least 1"),
        (np.full((1, 3, 3), np.nan), [1], "lattice 0 is singular or not finite"),
    ],
)
def test_fit_refuses(lattices, num_atoms, message):
    with pytest.raises(ValueError, match=message):
        fit_stats(lattices, num_atoms)
