import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.cases import random_batch
from xtalnet_jax.diffusion import coupling, torus

SIZES = (1, 2, 5, 8, 13)
BATCH = random_batch(0, SIZES, num_nodes=15)
NOISE = jax.random.uniform(jax.random.key(0), BATCH.frac_coords.shape)
COUPLE = jax.jit(coupling.couple, static_argnums=3)
centred_displacement = jax.jit(coupling.centred_displacement)
remove_mean = jax.jit(coupling.remove_mean)


def cost(x0):
    """[n_graph] mean square torus displacement per component."""
    square = np.asarray(torus.wrap(BATCH.frac_coords - x0) ** 2 * BATCH.node_mask[:, :, None])
    return square.sum((1, 2)) / (3 * np.array(SIZES))


def test_sweeps_only_shorten_and_do_so_strongly():
    costs = [cost(COUPLE(NOISE, BATCH.frac_coords, BATCH.atomic_numbers, k)) for k in range(5)]
    np.testing.assert_allclose(costs[0], cost(NOISE))
    for before, after in itertools.pairwise(costs):
        assert (after <= before + 1e-6).all()
    assert costs[2][3:].mean() < 0.75 * costs[0][3:].mean()


def test_it_is_a_translation_and_a_permutation_within_species():
    x0 = np.asarray(COUPLE(NOISE, BATCH.frac_coords, BATCH.atomic_numbers, 1))
    for before, after, z, n in zip(np.asarray(NOISE), x0, BATCH.atomic_numbers, SIZES):
        # one sweep translates once, then swaps: some translation matches both sets by species
        shifts = torus.wrap(after[:1] - before[:n]) % 1.0
        errors = []
        for shift in shifts:
            moved = before[:n] + shift
            distance = np.abs(torus.wrap(moved[:, None] - after[None, :n])).max(-1)
            distance[np.asarray(z)[:n, None] != np.asarray(z)[None, :n]] = 1
            errors.append(distance.min(0).max())
        assert min(errors) < 1e-5


def test_no_exchange_of_two_atoms_would_help_at_the_end():
    x0 = np.asarray(COUPLE(NOISE, BATCH.frac_coords, BATCH.atomic_numbers, 30))
    for start, end, z, n in zip(x0, np.asarray(BATCH.frac_coords), BATCH.atomic_numbers, SIZES):
        square = (torus.wrap(end[None, :n] - start[:n, None]) ** 2).sum(-1)
        for i, j in itertools.combinations(range(n), 2):
            if z[i] == z[j]:
                assert square[i, i] + square[j, j] <= square[i, j] + square[j, i] + 1e-5
        assert np.abs(torus.wrap(end[:n] - start[:n]).mean(0)).max() < 1e-5


@pytest.mark.parametrize("num_sweeps", [0, 2])
def test_padding_takes_no_part(num_sweeps):
    wide = random_batch(0, SIZES, num_nodes=33)
    noise = jnp.zeros(wide.frac_coords.shape).at[:, :15].set(NOISE)
    a = COUPLE(NOISE, BATCH.frac_coords, BATCH.atomic_numbers, num_sweeps)
    b = COUPLE(noise, wide.frac_coords, wide.atomic_numbers, num_sweeps)
    np.testing.assert_allclose(
        np.where(BATCH.node_mask[:, :, None], a - b[:, :15], 0), 0, atol=1e-6
    )


def test_centred_displacement_leads_from_the_shifted_noise_to_the_data():
    d = centred_displacement(NOISE, BATCH.frac_coords, BATCH.node_mask)
    np.testing.assert_allclose(d.sum(1), 0, atol=1e-5)
    assert not np.where(BATCH.node_mask[:, :, None], 0, d).any()
    start = BATCH.frac_coords - d
    for moved, noise, n in zip(start, NOISE, SIZES):
        shift = torus.wrap(moved[:n] - noise[:n])
        np.testing.assert_allclose(torus.wrap(shift - shift[:1]), 0, atol=1e-5)


def test_remove_mean_is_a_projection_with_clean_padding():
    x = jax.random.normal(jax.random.key(1), BATCH.frac_coords.shape)
    once = remove_mean(x, BATCH.node_mask)
    np.testing.assert_allclose(remove_mean(once, BATCH.node_mask), once, atol=1e-6)
    np.testing.assert_allclose(
        remove_mean(x + jnp.array([1.0, 2, 3])[None, None], BATCH.node_mask), once, atol=1e-5
    )
    assert not np.where(BATCH.node_mask[:, :, None], 0, once).any()
