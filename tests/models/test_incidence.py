"""Between atoms and pairs: which atoms a pair has, and sums that are transposes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xtalnet_jax.models.incidence import add_pairs, collect, incidence, spread

SIZES = [(1, 1), (2, 1), (5, 2), (6, 3), (6, 6)]


def _mask(n_node: int, num: int) -> jax.Array:
    """Pairs of two crystals of which the second lacks an atom."""
    atoms = jnp.arange(n_node)[None] < jnp.array([[n_node], [n_node - 1]])
    return spread(atoms, num) & atoms[:, None]


@pytest.mark.parametrize(("n_node", "num"), SIZES)
def test_spread_reads_the_partner_and_incidence_knows_it(n_node: int, num: int) -> None:
    x = jax.random.normal(jax.random.key(0), (2, n_node, 3))
    out, atoms = spread(x, num), incidence(_mask(n_node, num), jnp.float32)
    real = _mask(n_node, num)[..., None]
    for r in range(num):
        np.testing.assert_array_equal(out[:, r], jnp.roll(x, -r, 1))
    for which, theirs in ((atoms.near, x[:, None]), (atoms.far, out)):
        found = jnp.einsum("gari,gad->grid", which, x)
        np.testing.assert_array_equal(found, jnp.where(real, theirs, 0.0))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("n_node", "num"), SIZES)
def test_collect_adds_up_real_pairs_and_its_gradient_is_the_transpose(
    n_node: int, num: int, dtype: str
) -> None:
    x = jax.random.normal(jax.random.key(1), (2, num, n_node, 3)).astype(dtype)
    g = jax.random.normal(jax.random.key(2), (2, n_node, 3))
    real = np.asarray(_mask(n_node, num))[..., None]
    rows = np.where(real, np.asarray(x, np.float32), 0.0)
    near, far = incidence(_mask(n_node, num), dtype)
    rolled = sum(np.roll(rows[:, r], r, 1) for r in range(num))
    for which, total in ((near, rows.sum(1)), (far, rolled)):
        found, back = jax.vjp(lambda x, which=which: collect(which, x), x)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, total, rtol=1e-5, atol=1e-5)
        (by_x,) = back(g)
        assert by_x.dtype == x.dtype
        wanted = jnp.einsum("gari,gad->grid", which.astype(jnp.float32), g)
        tolerance = 1e-6 if dtype == "float32" else 1e-2
        np.testing.assert_allclose(by_x.astype("float32"), wanted, tolerance, tolerance)


@pytest.mark.parametrize(("n_node", "num"), SIZES)
def test_gradients_of_the_sum_of_terms(n_node: int, num: int) -> None:
    """As found by differentiating the plain sum, if what comes back is 0 where no pair is."""
    keys = jax.random.split(jax.random.key(3), 5)
    shapes = (2, n_node, 4), (2, n_node, 4), (2, num, n_node, 4), (2, 1, 4)
    terms = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes)]
    mask = _mask(n_node, num)
    g = jax.random.normal(keys[4], shapes[2]) * mask[..., None]

    def plain(near: jax.Array, far: jax.Array, pair: jax.Array, shared: jax.Array) -> jax.Array:
        rolled = jnp.stack([jnp.roll(far, -r, 1) for r in range(num)], 1)
        return near[:, None] + rolled + pair + shared[:, None]

    wanted, wanted_back = jax.vjp(plain, *terms)
    found, back = jax.vjp(lambda *terms: add_pairs(incidence(mask, g.dtype), *terms), *terms)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)
    for a, b in zip(back(g), wanted_back(g), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_terms_are_rounded_once() -> None:
    """(1 + 2^-9) - 1: 0 if the terms were rounded to bfloat16, kept if their sum is."""
    one = jnp.ones((1, 2, 1))
    atoms = incidence(jnp.ones((1, 1, 2), bool), jnp.bfloat16)
    found = add_pairs(atoms, one + 2.0**-9, -one, jnp.zeros((1, 1, 2, 1)), jnp.zeros((1, 1, 1)))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found.astype(jnp.float32), np.full((1, 1, 2, 1), 2.0**-9))
