"""Sums over the square of pairs, and gradients that are those of the plain sums."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xtalnet_jax.models import pairs
from xtalnet_jax.models.edge_list import EdgeList
from xtalnet_jax.models.offset_pairs import OffsetPairs
from xtalnet_jax.models.square_pairs import SquarePairs, add_atoms, mean_of_senders

SHAPE = (3, 2, 4, 5)  # crystals, receivers, senders, width
MASK = jnp.array([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]], bool)


def _random(*shapes: tuple[int, ...]) -> list[jax.Array]:
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes)]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 2e-2)])
def test_sum_of_what_atoms_and_pair_bring(dtype: str, tolerance: float) -> None:
    n_graph, m, n_node, d = SHAPE
    *terms, g = _random((n_graph, m, d), (n_graph, n_node, d), SHAPE, SHAPE)

    def plain(receiver: jax.Array, sender: jax.Array, pair: jax.Array) -> jax.Array:
        return receiver[:, :, None] + sender[:, None] + pair

    found, back = jax.vjp(lambda *terms: add_atoms(*terms, dtype), *terms)
    wanted, wanted_back = jax.vjp(plain, *terms)
    assert found.dtype == dtype
    grads = back(g.astype(dtype)), wanted_back(g)
    for ours, theirs in zip((found, *grads[0]), (wanted, *grads[1]), strict=True):
        np.testing.assert_allclose(ours.astype("float32"), theirs, tolerance, 2 * tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 1e-2)])
def test_mean_of_real_senders(dtype: str, tolerance: float) -> None:
    x, g = _random(SHAPE, SHAPE[:2] + SHAPE[3:])
    x = x.astype(dtype)

    def plain(x: jax.Array) -> jax.Array:
        total = jnp.where(MASK[:, None, :, None], x, 0).astype(jnp.float32).sum(2)
        return total / jnp.maximum(MASK.sum(1), 1)[:, None, None]

    found, back = jax.vjp(lambda x: mean_of_senders(MASK, x), x)
    wanted, wanted_back = jax.vjp(plain, x)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, wanted, 1e-6, 1e-6)
    assert not found[2].any()
    ours, theirs = (f(g)[0].astype("float32") for f in (back, wanted_back))
    np.testing.assert_allclose(ours, theirs, tolerance, tolerance)


@pytest.mark.parametrize(
    ("changed", "kind"),
    [
        ({}, SquarePairs),
        ({"dtype": "bfloat16"}, OffsetPairs),
        ({"detach": False}, OffsetPairs),
        ({"n_node": 3}, OffsetPairs),  # too few pairs for a table to pay
        ({"n_node": 3, "layout": "square"}, SquarePairs),
        ({"layout": "offsets"}, OffsetPairs),
        ({"layout": "sparse"}, EdgeList),
    ],
)
def test_the_quicker_layout_is_chosen(changed: dict[str, Any], kind: type) -> None:
    options = {"layout": "dense", "dtype": "float32", "n_node": 8, **changed}
    n_node = options.pop("n_node")
    made = pairs.make_pairs(
        jnp.zeros((2, n_node, 3)), jnp.ones((2, n_node), bool), num_freqs=4, **options
    )
    assert type(made) is kind


def test_a_gradient_that_the_square_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match='"square" gives no gradient'):
        pairs.make_pairs(
            jnp.zeros((1, 2, 3)),
            jnp.ones((1, 2), bool),
            num_freqs=4,
            layout="square",
            dtype="float32",
            detach=False,
        )
