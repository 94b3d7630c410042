"""From atoms to pairs of atoms and back, without gather and scatter.

Pairs of a padded batch are ordered by offset: pair (r, i) is that of the atoms i and
(i + r) mod n_node. What an atom brings to its pairs is a tile-and-reshape of it, and sums over the
pairs of an atom are products with a matrix of zeros and ones.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped


class Incidence(NamedTuple):
    """1 where a pair of real atoms has an atom, else 0: sums over pairs are products with it."""

    near: jax.Array  # [n_graph, n_node, n_offset, n_node] atom i of the pair (r, i)
    far: jax.Array  # its atom i + r


def incidence(mask: Bool[Array, "n_graph n_offset n_node"], dtype: Any) -> Incidence:
    """Atoms of the pairs that `spread` forms."""
    num, n = mask.shape[1:]
    atom = jnp.arange(n)
    near = atom[:, None, None] == atom[None, None, :]
    far = atom[:, None, None] == (atom[None, None, :] + jnp.arange(num)[None, :, None]) % n
    return Incidence(*((which[None] & mask[:, None]).astype(dtype) for which in (near, far)))


def spread(x: Shaped[Array, "n_graph n_node ..."], num: int) -> jax.Array:
    """``out[:, r, i] = x[:, (i + r) mod n_node]``, [n_graph, num, n_node, ...]."""
    n, rest = x.shape[1], x.shape[2:]
    size = num * (n + 1)
    tiles = jnp.broadcast_to(x[:, None], (x.shape[0], -(-size // n), n, *rest))
    rows = tiles.reshape(x.shape[0], -1, *rest)[:, :size].reshape(x.shape[0], num, n + 1, *rest)
    return rows[:, :, :n]


@jax.custom_vjp
def collect(
    which: Float[Array, "n_graph n_node n_offset n_node"],
    x: Float[Array, "n_graph n_offset n_node d"],
) -> Float[Array, "n_graph n_node d"]:
    """Sum over the pairs of each atom, in float32 at least; ``which`` is one of `Incidence`.

    A product, since XLA's sums over an axis that is not the last are slow on a CPU.
    """
    return _contract(which.reshape(*which.shape[:2], -1), x.reshape(len(x), -1, x.shape[-1]), 2)


def _contract(which: jax.Array, x: jax.Array, axis: int) -> jax.Array:
    """Product of ``which`` and ``x`` [n_graph, m, d] over one axis of the former."""
    # The unit axes keep it quick to contract the first of two, see `xtalnet_jax.models.fast`.
    return jax.lax.dot_general(
        which[:, None],
        x[:, None],
        (((1, axis + 1), (1, 2)), ((0,), (0,))),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
    )


def _collect_back(saved: tuple[jax.Array, Any], g: jax.Array) -> tuple[None, jax.Array]:
    which, like = saved
    rows = _contract(which.reshape(*which.shape[:2], -1), g.astype(which.dtype), 1)
    return None, rows.reshape(len(g), *which.shape[2:], -1).astype(like.dtype)


collect.defvjp(lambda which, x: (collect(which, x), (which, x[:0])), _collect_back)


@jax.custom_vjp
def add_pairs(
    atoms: Incidence, near: jax.Array, far: jax.Array, pair: jax.Array, shared: jax.Array
) -> Float[Array, "n_graph n_offset n_node d"]:
    """Sum of what the two atoms, the pair and the crystal bring, rounded once.

    What comes back from it stays in the type of the result and is summed by `collect`, which leaves
    out pairs that are not real.

    Args:
        atoms: of these pairs; the result has its type.
        near: [n_graph, n_node, d] of atom i.
        far: [n_graph, n_node, d] of atom i + r.
        pair: [n_graph, n_offset, n_node, d].
        shared: [n_graph, 1, d].
    """
    # The largest term comes last, so that each pair has a rounding error of its own: one that all
    # pairs of an atom share does not average out (20 times the error of a 20-step sample).
    total = near[:, None] + spread(far, pair.shape[1]) + pair + shared[:, None]
    return total.astype(atoms.near.dtype)


def _add_pairs_back(saved: tuple[Incidence, Any], g: jax.Array) -> tuple[Any, ...]:
    atoms, like = saved
    near, far = collect(atoms.near, g), collect(atoms.far, g)
    terms = near, far, g, near.sum(1, keepdims=True)
    return None, *(x.astype(term.dtype) for x, term in zip(terms, like))


add_pairs.defvjp(
    lambda atoms, *terms: (add_pairs(atoms, *terms), (atoms, [x[:0] for x in terms])),
    _add_pairs_back,
)
