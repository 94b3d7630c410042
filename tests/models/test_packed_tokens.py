"""Tokens in consecutive rows: none that has room is lost, and the two ways are transposes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xtalnet_jax.models.packed_tokens import pack, packed_tokens, strongest, unpack

MASK = jnp.array([[True, True, False, True], [False] * 4, [True, False, False, False]])


@pytest.mark.parametrize("num_rows", [4, 6, 20])
def test_real_tokens_come_first_in_order_and_come_back(num_rows):
    x = jnp.arange(24.0).reshape(3, 4, 2) + 1.0
    to = packed_tokens(MASK, num_rows)
    rows = pack(x, to)
    np.testing.assert_array_equal(rows[:4], x[MASK])
    assert rows.shape == (num_rows, 2)
    assert not rows[4:].any()
    np.testing.assert_array_equal(unpack(rows, to), jnp.where(MASK[..., None], x, 0.0))


def test_tokens_beyond_the_last_row_are_left_out():
    to = packed_tokens(MASK, 3)
    x = jnp.ones((3, 4, 2))
    assert pack(x, to).sum() == 6.0
    assert not unpack(pack(x, to), to)[2].any()


@pytest.mark.parametrize("num_rows", [3, 6])
def test_gradients_are_those_of_a_plain_gather(num_rows):
    to = packed_tokens(MASK, num_rows)
    x = jax.random.normal(jax.random.key(0), (3, 4, 2))
    rows = jax.random.normal(jax.random.key(1), (num_rows, 2))

    def plain_pack(x):
        real = to.token < 12
        return jnp.where(real[:, None], x.reshape(12, 2)[jnp.minimum(to.token, 11)], 0.0)

    def plain_unpack(rows):
        padded = jnp.concatenate([rows, jnp.zeros((1, 2))])
        return padded[to.row]

    for ours, plain, at in ((pack, plain_pack, x), (unpack, plain_unpack, rows)):
        found, expected = ours(at, to), plain(at)
        np.testing.assert_array_equal(found, expected)
        weight = jax.random.normal(jax.random.key(2), found.shape)
        (gradient,) = jax.vjp(lambda a, ours=ours: ours(a, to), at)[1](weight)
        np.testing.assert_allclose(gradient, jax.vjp(plain, at)[1](weight)[0])


def test_strongest_keeps_the_strongest_of_the_whole_batch():
    intensity = jnp.array([[1.0, 0.2, 9.0, 0.5], [0.9, 0.9, 0.9, 0.9], [0.3, 0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(
        strongest(MASK, intensity, 2), [[True, False, False, True], [False] * 4, [False] * 4]
    )
    np.testing.assert_array_equal(strongest(MASK, intensity, 4), MASK)
    np.testing.assert_array_equal(strongest(MASK, intensity, 11), MASK)
