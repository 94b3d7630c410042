"""Unordered pairs of atoms by offset: pair (r, i) is that of the atoms i and (i + r) mod n_node.

* The sine part of psi changes sign and the cosine part does not when i and j swap, so one product
  per unordered pair serves both directions.
* There is neither gather nor scatter between atoms and pairs (`xtalnet_jax.models.incidence`), and
  of a message only what its gradient needs is kept.
* For large cells the offsets can be taken a block at a time, each block's features and messages
  being made anew wherever they are needed: memory then goes with the block, not with the square.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xtalnet_jax.models.embeddings import radial_basis
from xtalnet_jax.models.fast import product
from xtalnet_jax.models.incidence import Incidence, add_pairs, collect, incidence, spread
from xtalnet_jax.models.pair_features import (
    EdgeKernel,
    Features,
    Separation,
    pair_features,
    separation,
)


class PairBlock(NamedTuple):
    """Pairs (i, (i + r) mod n_node) for successive offsets r; differences are f_{i+r} - f_i."""

    apart: Separation | Features  # [n_graph, n_offset, n_node, ...]; features if they are kept
    mask: jax.Array  # [n_graph, n_offset, n_node] both atoms are real


class OffsetPairs(NamedTuple):
    """Pairs at the offsets r = 1 .. n_node // 2 of a padded batch."""

    blocks: PairBlock | None  # the first offsets, with an axis [n_block] before all others
    rest: PairBlock  # the offsets after them, without that axis
    radial_self: jax.Array  # [num_radial] radial functions at distance 0
    n_atoms: jax.Array  # [n_graph] at least 1


def offset_pairs(
    frac_coords: Float[Array, "n_graph n_node 3"],
    node_mask: Bool[Array, "n_graph n_node"],
    num_freqs: int,
    *,
    metric: Float[Array, "n_graph 3 3"] | None = None,
    num_radial: int = 0,
    detach: bool = True,
    chunk: int | None = None,
) -> OffsetPairs:
    """Every unordered pair, shared by all layers of a network.

    Without ``chunk`` the features are made here and kept. With it, each layer takes ``chunk``
    offsets (times n_node pairs of every crystal) at a time and makes their features itself.
    For ``detach`` see `separation`.
    """
    n_graph, n_node = node_mask.shape
    num = n_node // 2
    difference = spread(jnp.roll(frac_coords, -1, 1), num) - frac_coords[:, None]
    metrics = None
    if metric is not None:
        metrics = jnp.broadcast_to(metric[:, None, None], (*difference.shape, 3))
    apart = separation(difference, metrics, num_radial, detach)
    whole = PairBlock(apart, spread(jnp.roll(node_mask, -1, 1), num) & node_mask[:, None])
    radial_self = radial_basis(jnp.zeros((), frac_coords.dtype), num_radial)
    n_atoms = jnp.maximum(node_mask.sum(-1), 1).astype(frac_coords.dtype)
    if chunk is None:
        kept = whole._replace(apart=pair_features(apart, num_freqs, num_radial))
        return OffsetPairs(None, kept, radial_self, n_atoms)
    # Blocks are alike, so they hold offsets with a way back only; for even n the last has none.
    n_block = (n_node - 1) // 2 // chunk
    end = n_block * chunk

    def stacked(x: jax.Array) -> jax.Array:
        return x[:, :end].reshape(n_graph, n_block, chunk, *x.shape[2:]).swapaxes(0, 1)

    blocks = jax.tree.map(stacked, whole) if n_block else None
    rest = jax.tree.map(lambda x: x[:, end:], whole)
    return OffsetPairs(blocks, rest, radial_self, n_atoms)


def offset_messages(
    pairs: OffsetPairs,
    h: jax.Array,
    lattice_features: jax.Array,
    first: EdgeKernel,
    rest: Callable[[jax.Array], jax.Array],
    dtype: Any,
) -> jax.Array:
    """See `xtalnet_jax.models.pairs.mean_messages`."""
    n, num_radial = h.shape[1], len(pairs.radial_self)
    rows = first.rows(lattice_features.shape[-1], num_radial)
    per_graph = first.of_crystals(lattice_features, rows.lattice)[:, None].astype(dtype)
    receiver = product(h, rows.receiver, dtype)
    sender = product(h, rows.sender, dtype)
    # cos 0 = 1 and sin 0 = 0 on the pair of an atom with itself
    alone = rows.cos.sum(0) + pairs.radial_self @ rows.radial

    def messages(
        total: jax.Array, block: PairBlock, start: int | jax.Array, num_back: int
    ) -> jax.Array:
        """Sum over a block from offset ``start``; of its offsets the first have a way back."""
        apart = block.apart
        if isinstance(apart, Separation):
            apart = pair_features(apart, len(rows.sin) // 3, num_radial)
        odd = product(apart.sin, rows.sin, dtype)
        even = product(apart.cos, rows.cos, dtype)
        if num_radial:
            even = even + product(apart.radial, rows.radial, dtype)
        atoms, far = incidence(block.mask, dtype), jnp.roll(sender, -start, 1)
        message = rest(add_pairs(atoms, receiver, far, even + odd, per_graph))
        total = total + collect(atoms.near, message).astype(h.dtype)
        if num_back:
            atoms = Incidence(*(which[:, :, :num_back] for which in atoms))
            far, back = jnp.roll(receiver, -start, 1), (even - odd)[:, :num_back]
            message = rest(add_pairs(atoms, sender, far, back, per_graph))
            total = total + jnp.roll(collect(atoms.far, message), start, 1).astype(h.dtype)
        return total

    total = rest((receiver + sender + alone[None, None].astype(dtype) + per_graph).astype(dtype))
    total = total.astype(h.dtype)
    start = 1
    if pairs.blocks is not None:
        n_block, _, chunk = pairs.blocks.mask.shape[:3]

        # Inside a loop nothing can be merged with the forward pass, so nothing need prevent it.
        @functools.partial(jax.checkpoint, prevent_cse=False)
        def add(total: jax.Array, numbered: tuple[jax.Array, PairBlock]) -> tuple[jax.Array, None]:
            number, block = numbered
            return messages(total, block, 1 + chunk * number, chunk), None

        total, _ = jax.lax.scan(add, total, (jnp.arange(n_block), pairs.blocks))
        start += n_block * chunk
    if pairs.rest.mask.shape[1]:
        kept = isinstance(pairs.rest.apart, Features)
        last = messages if kept else jax.checkpoint(messages, static_argnums=(2, 3))
        total = last(total, pairs.rest, start, (n - 1) // 2 - start + 1)
    return total / pairs.n_atoms[:, None, None].astype(h.dtype)
