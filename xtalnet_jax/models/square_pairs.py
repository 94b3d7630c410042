"""Pairs as a square, receiver by sender, of every crystal; their trigonometric part interpolated.

What the atoms of a pair bring is broadcast along the rows and columns of the square, what their
difference brings is read from a table (`xtalnet_jax.models.trig_series`), and XLA makes one pass of
all that. Sums over senders and over receivers are products with a vector, since XLA's own sums over
an axis that is not the last are slow on a CPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xtalnet_jax.models.fast import product
from xtalnet_jax.models.pair_features import EdgeKernel, radial_features, separation
from xtalnet_jax.models.trig_series import Points, grid_values, interpolate, locate


class SquarePairs(NamedTuple):
    """All ordered pairs of a padded batch, in blocks of ``m`` receivers, the last ones padding."""

    points: Points  # of the differences f_j - f_i, [n_block, n_graph, m, n_node, ...]
    radial: jax.Array  # [n_block, n_graph, m, n_node, num_radial]
    mask: jax.Array  # [n_graph, n_node] which atoms are real


def square_pairs(
    frac_coords: Float[Array, "n_graph n_node 3"],
    node_mask: Bool[Array, "n_graph n_node"],
    num_freqs: int,
    *,
    metric: Float[Array, "n_graph 3 3"] | None = None,
    num_radial: int = 0,
    chunk: int | None = None,
) -> SquarePairs:
    """Every ordered pair, an atom with itself included, shared by all layers of a network.

    With ``chunk`` a layer takes so many receivers of every crystal at a time. No gradient reaches
    the coordinates.
    """
    n_node = node_mask.shape[1]
    chunk = n_node if chunk is None else min(chunk, n_node)
    n_block = -(-n_node // chunk)
    receivers = _cut(frac_coords, n_block, chunk)
    difference = frac_coords[None, :, None] - receivers[:, :, :, None]
    metrics = None
    if metric is not None:
        metrics = jnp.broadcast_to(metric[None, :, None, None], (*difference.shape, 3))
    apart = separation(difference, metrics, num_radial, detach=True)
    radial = radial_features(apart, num_radial)
    return SquarePairs(locate(apart.difference, num_freqs), radial, node_mask)


def square_messages(
    pairs: SquarePairs,
    h: Float[Array, "n_graph n_node d"],
    lattice_features: Float[Array, "n_graph k"],
    first: EdgeKernel,
    rest: Callable[[jax.Array], jax.Array],
    dtype: Any,
) -> Float[Array, "n_graph n_node d"]:
    """See `xtalnet_jax.models.pairs.mean_messages`."""
    n_block, _, chunk, n_node, num_radial = pairs.radial.shape
    rows = first.rows(lattice_features.shape[-1], num_radial)
    receiver = product(h, rows.receiver, dtype)
    receiver = receiver + first.of_crystals(lattice_features, rows.lattice)[:, None]
    sender = product(h, rows.sender, dtype)
    tables = grid_values(rows.sin, rows.cos)

    def mean(receiver: jax.Array, points: Points, radial: jax.Array) -> jax.Array:
        pair = interpolate(points, tables)
        if num_radial:
            pair = pair + product(radial, rows.radial, dtype)
        return mean_of_senders(pairs.mask, rest(add_atoms(receiver, sender, pair, dtype)))

    if n_block == 1:
        means = mean(receiver, *jax.tree.map(lambda a: a[0], (pairs.points, pairs.radial)))
    else:
        # Inside a loop nothing can be merged with the forward pass, so nothing need prevent it.
        again = jax.checkpoint(mean, prevent_cse=False)
        blocks = _cut(receiver, n_block, chunk), pairs.points, pairs.radial
        means = jax.lax.map(lambda block: again(*block), blocks)
        means = jnp.moveaxis(means, 0, 1).reshape(len(h), -1, h.shape[-1])[:, :n_node]
    return jnp.where(pairs.mask[..., None], means, 0.0).astype(h.dtype)


def _cut(x: jax.Array, n_block: int, chunk: int) -> jax.Array:
    """``x`` [n_graph, n_node, ...], padded by 0, as [n_block, n_graph, chunk, ...]."""
    missing = n_block * chunk - x.shape[1]
    x = jnp.pad(x, ((0, 0), (0, missing), *((0, 0),) * (x.ndim - 2)))
    return jnp.moveaxis(x.reshape(len(x), n_block, chunk, *x.shape[2:]), 1, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def add_atoms(
    receiver: Float[Array, "n_graph m d"],
    sender: Float[Array, "n_graph n_node d"],
    pair: Float[Array, "n_graph m n_node d"],
    dtype: Any,
) -> Float[Array, "n_graph m n_node d"]:
    """Sum of what the two atoms and the pair bring, rounded once to ``dtype``."""
    return (receiver[:, :, None] + sender[:, None] + pair).astype(dtype)


def _add_atoms_back(dtype: Any, like: Any, g: jax.Array) -> tuple[jax.Array, ...]:
    del dtype
    n_graph, m, n_node, d = g.shape
    by_receiver = _along_senders(jnp.ones((n_graph, n_node), g.dtype), g)
    by_sender = jax.lax.dot_general(
        jnp.ones((n_graph, m), g.dtype),
        g.reshape(n_graph, m, n_node * d),
        (((1,), (1,)), ((0,), (0,))),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.promote_types(g.dtype, jnp.float32),
    ).reshape(n_graph, n_node, d)
    return tuple(x.astype(term.dtype) for x, term in zip((by_receiver, by_sender, g), like))


add_atoms.defvjp(
    lambda *terms: (add_atoms(*terms), [x[:0] for x in terms[:3]]),
    _add_atoms_back,
)


@jax.custom_vjp
def mean_of_senders(
    mask: Bool[Array, "n_graph n_node"], x: Float[Array, "n_graph m n_node d"]
) -> Float[Array, "n_graph m d"]:
    """Mean over the real senders, in float32 at least; 0 where there is none."""
    total = _along_senders(mask.astype(x.dtype), x)
    return total / jnp.maximum(mask.sum(1), 1).astype(total.dtype)[:, None, None]


def _along_senders(weight: jax.Array, x: jax.Array) -> jax.Array:
    """Sums over the senders with weights [n_graph, n_node]."""
    n_graph, m, n_node, _ = x.shape
    return jax.lax.dot_general(
        jnp.broadcast_to(weight[:, None, None], (n_graph, m, 1, n_node)),
        x,
        (((3,), (2,)), ((0, 1), (0, 1))),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
    )[:, :, 0]


def _mean_back(saved: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[None, jax.Array]:
    mask, like = saved
    share = mask.astype(g.dtype) / jnp.maximum(mask.sum(1, keepdims=True), 1).astype(g.dtype)
    return None, (g[:, :, None] * share[:, None, :, None]).astype(like.dtype)


mean_of_senders.defvjp(lambda mask, x: (mean_of_senders(mask, x), (mask, x[:0])), _mean_back)
