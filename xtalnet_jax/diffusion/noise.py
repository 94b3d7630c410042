"""Random draws that depend on nothing but a crystal's own key and the index of the atom.

So a sample is the same whatever else is in the batch, and however far the batch is padded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

DrawFn = Callable[..., jax.Array]
"""``draw(key, shape, dtype)``, such as ``jax.random.normal``."""


def crystal_keys(key: jax.Array, num_graphs: int) -> jax.Array:
    """Return one key per crystal, [n_graph]; the i-th does not depend on ``num_graphs``.

    Keys that are already one per crystal pass unchanged.
    """
    if key.ndim == 1:
        return key
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_graphs))


def fold_in(keys: jax.Array, data: Any) -> jax.Array:
    """``jax.random.fold_in`` of one integer into every key of ``keys`` [n_graph]."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, data)


def per_crystal(
    keys: jax.Array, shape: tuple[int, ...], draw: DrawFn, dtype: Any = float
) -> jax.Array:
    """Draw [n_graph, *shape], one independent draw for each key."""
    return jax.vmap(lambda key: draw(key, shape, dtype))(keys)


def per_atom(
    keys: jax.Array,
    num_nodes: int,
    draw: DrawFn,
    dtype: Any = float,
    shape: tuple[int, ...] = (3,),
) -> jax.Array:
    """Draw [n_graph, n_node, *shape]; what an atom gets depends on its index, not ``num_nodes``."""
    fold_atoms = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
    atom_keys = fold_atoms(keys, jnp.arange(num_nodes))
    return jax.vmap(lambda crystal: per_crystal(crystal, shape, draw, dtype))(atom_keys)
