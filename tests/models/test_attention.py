"""Attention without kept weights is attention: values, gradients, dropout, padding, blocks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xtalnet_jax.models import fast
from xtalnet_jax.models.attention import attend, mixed_rows, mixed_values
from xtalnet_jax.models.fast import kept, num_blocks
from xtalnet_jax.models.packed_tokens import pack, packed_tokens, unpack

NUM_KEYS = jnp.array([7, 5, 1, 0, 7, 3])
MASK = jnp.arange(7)[None] < NUM_KEYS[:, None]
ROW_BYTES = 5 * 7 * 2 * 4
"""Of the scores of one graph."""


def inputs() -> list[jax.Array]:
    keys = jax.random.split(jax.random.key(0), 4)
    lengths = (5, 7, 7, 5)  # queries, keys, values, weights of the loss
    return [jax.random.normal(key, (6, n, 2, 4)) * 2 for key, n in zip(keys, lengths)]


def plain(q: jax.Array, k: jax.Array, v: jax.Array, drop: jax.Array | float = 1.0) -> jax.Array:
    """The definition; ``drop`` multiplies the weights."""
    return jnp.einsum("bhqk,bkhd->bqhd", attend(q, k, MASK) * drop, v)


def test_weights_are_a_softmax_of_scaled_scores() -> None:
    q, k, v, _ = inputs()
    found = mixed_values(q, k, v, MASK)
    for graph, n in enumerate(NUM_KEYS):
        for head in range(2):
            score = np.asarray(q[graph, :, head] @ k[graph, :n, head].T, float) / 2.0
            weight = np.exp(score) / np.exp(score).sum(1, keepdims=True)
            expected = weight @ np.asarray(v[graph, :n, head])
            np.testing.assert_allclose(found[graph, :, head], expected, atol=2e-5)


@pytest.mark.parametrize("graphs_in_block", [6, 2, 1])
def test_values_and_gradients_are_those_of_the_definition(
    monkeypatch: pytest.MonkeyPatch, graphs_in_block: int
) -> None:
    monkeypatch.setattr(fast, "CACHE_BYTES", graphs_in_block * ROW_BYTES)
    assert num_blocks(6, ROW_BYTES) == 6 // graphs_in_block
    q, k, v, g = inputs()
    with jax.enable_x64(True):
        q, k, v, g = (jnp.asarray(a, jnp.float64) for a in (q, k, v, g))
        found, back = jax.vjp(lambda *a: mixed_values(*a, MASK), q, k, v)
        exact, exact_back = jax.vjp(plain, q, k, v)
        np.testing.assert_allclose(found, exact, atol=1e-13)
        for a, b in zip(back(g), exact_back(g)):
            np.testing.assert_allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("graphs_in_block", [6, 1])
def test_dropout_is_that_of_the_weights(
    monkeypatch: pytest.MonkeyPatch, graphs_in_block: int
) -> None:
    """Same weights dropped in the values and in their gradient, the others divided by 1 - rate."""
    monkeypatch.setattr(fast, "CACHE_BYTES", graphs_in_block * ROW_BYTES)
    q, k, v, g = inputs()
    rng = jax.random.key(3)
    keys = jax.random.split(rng, 6 // graphs_in_block)
    shape = (graphs_in_block, 2, 5, 7)
    drop = jnp.concatenate([kept(key, shape, 0.3) for key in keys]) / 0.7
    found, back = jax.vjp(lambda *a: mixed_values(*a, MASK, 0.3, rng), q, k, v)
    exact, exact_back = jax.vjp(lambda *a: plain(*a, drop), q, k, v)
    np.testing.assert_allclose(found, exact, atol=2e-5)
    for a, b in zip(back(g), exact_back(g)):
        np.testing.assert_allclose(a, b, atol=1e-4)
    with pytest.raises(ValueError, match="needs a key"):
        mixed_values(q, k, v, MASK, 0.3)


def test_what_is_masked_influences_nothing() -> None:
    q, k, v, g = inputs()
    wild = jnp.where(MASK[:, :, None, None], 0.0, 1e9)
    one, back = jax.vjp(lambda *a: mixed_values(*a, MASK), q, k, v)
    two, back_two = jax.vjp(lambda *a: mixed_values(*a, MASK), q, k + wild, v + wild)
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one[3], 0.0)  # a crystal without keys: 0, not NaN
    for a, b in zip(back(g), back_two(g)):
        np.testing.assert_array_equal(a, b)
        assert np.isfinite(a).all()
    assert not back(g)[0][3].any()


def test_half_precision_is_accumulated_in_single() -> None:
    q, k, v, g = inputs()
    half = [a.astype(jnp.bfloat16) for a in (q, k, v)]
    found, back = jax.vjp(lambda *a: mixed_values(*a, MASK), *half)
    exact, exact_back = jax.vjp(plain, *(a.astype(jnp.float32) for a in half))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), exact, rtol=2**-7, atol=1e-3)
    for a, b in zip(back(g.astype(jnp.bfloat16)), exact_back(g)):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=0.05, atol=0.03 * np.abs(b).max())


COUNTS = [20, 3, 0, 9, 16]
"""Tokens of the graphs of `rows`: one of each length, one at the border of two, none, all."""


def rows() -> tuple[jax.Array, jax.Array, jax.Array]:
    """Heads of queries, keys and values [5, 20, 6, 4], their mask (with a hole), a cotangent."""
    one, two = jax.random.split(jax.random.key(5))
    mask = (jnp.arange(20)[None] < jnp.array(COUNTS)[:, None]).at[0, 4].set(False)
    return jax.random.normal(one, (5, 20, 6, 4)), mask, jax.random.normal(two, (5, 20, 2, 4))


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("spare", [0, 1, 60])
def test_rows_are_mixed_as_padded_tokens(
    monkeypatch: pytest.MonkeyPatch, backend: str, spare: int
) -> None:
    qkv, mask, g = rows()
    packed = packed_tokens(mask, int(mask.sum()) + spare)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    found, back = jax.vjp(lambda x: mixed_rows(x, packed), pack(qkv, packed))
    exact, exact_back = jax.vjp(lambda x: mixed_values(*jnp.split(x, 3, 2), mask), qkv)
    np.testing.assert_allclose(
        unpack(found, packed), jnp.where(mask[..., None, None], exact, 0.0), atol=2e-6
    )
    assert not found[len(found) - spare :].any()
    (a,), (b,) = back(pack(g, packed)), exact_back(jnp.where(mask[..., None, None], g, 0.0))
    np.testing.assert_allclose(unpack(a, packed), b, atol=1e-5)
    assert not a[len(a) - spare :].any()


def test_dropout_of_rows_is_that_of_the_weights() -> None:
    """Graph by graph with a key of its own, drawn for the length to which it is cut."""
    qkv, mask, g = rows()
    packed = packed_tokens(mask, int(mask.sum()))
    rng = jax.random.key(7)
    found, back = jax.vjp(lambda x: mixed_rows(x, packed, 0.4, rng), pack(qkv, packed))
    found, (gradient,) = unpack(found, packed), back(pack(g, packed))
    gradient = unpack(gradient, packed)
    for i, (key, length) in enumerate(zip(jax.random.split(rng, 5), (20, 8, 8, 16, 16))):
        drop = kept(key, (1, 2, length, length), 0.4) / 0.6
        real = mask[i]
        n = int(real.sum())

        def plain(x: jax.Array, n: int = n, drop: jax.Array = drop) -> jax.Array:
            q, k, v = jnp.split(x, 3, 1)
            weight = jax.nn.softmax(jnp.einsum("qhd,khd->hqk", q, k) / 2.0, -1)
            return jnp.einsum("hqk,khd->qhd", weight * drop[0, :, :n, :n], v)

        if n:
            exact, exact_back = jax.vjp(plain, qkv[i][real])
            np.testing.assert_allclose(found[i][real], exact, atol=2e-5)
            np.testing.assert_allclose(gradient[i][real], exact_back(g[i][real])[0], atol=1e-4)


def test_gradients_of_rows_are_finite_however_different_their_scores() -> None:
    """Queries of the next graph, read beyond the rows of one, must not overflow in its gradient."""
    qkv, mask, g = rows()
    strong = jnp.zeros((5, 20, 6, 4)).at[3, :, :, 0].set(1000.0).at[3, :, 2:4].multiply(-1.0)
    strong = strong.at[1, :, 2:4, 0].set(1000.0)
    packed = packed_tokens(mask, int(mask.sum()))
    _, back = jax.vjp(lambda x: mixed_rows(x, packed), pack(qkv + strong, packed))
    assert np.isfinite(back(pack(g, packed))[0]).all()
