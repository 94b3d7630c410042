"""Fractional coordinates on the torus."""

import jax.numpy as jnp
import numpy as np

from xtalnet_jax.crystals import periodic


def test_wrap_lands_inside():
    x = jnp.array([-0.25, 0.0, 1.0, 1.75, -1e-9, 5.5])
    np.testing.assert_allclose(periodic.wrap(x), [0.75, 0.0, 0.0, 0.75, 0.0, 0.5])
    many = periodic.wrap(jnp.asarray(np.random.default_rng(0).normal(size=10000) * 3))
    assert ((many >= 0) & (many < 1)).all()


def test_shortest_difference_is_periodic_and_bounded():
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.random((1000, 3)), jnp.float32) for _ in range(2))
    d = periodic.shortest_difference(a, b)
    assert ((d >= -0.5) & (d < 0.5)).all()
    np.testing.assert_allclose(periodic.wrap(b + d - a + 0.5), 0.5, atol=1e-6)
    np.testing.assert_allclose(periodic.shortest_difference(a + 3, b - 2), d, atol=2e-6)
    assert float(periodic.shortest_difference(jnp.array(0.5), jnp.array(0.0))) == -0.5
