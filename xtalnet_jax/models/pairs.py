"""All ordered pairs of atoms of each crystal, in two layouts that give the same mean messages.

The message to atom i from atom j starts with a linear map of the concatenation
``[h_i, h_j, g, psi(f_j - f_i)]``. `EdgeList` does literally that with gathers and segment sums
(it also serves a ``jraph.GraphsTuple``); `DensePairs` does it three times cheaper:

* the kernel is split by rows and every part is applied where it is small (atoms, crystals, pairs);
* the sine part of psi changes sign and the cosine part does not when i and j swap, so one product
  per unordered pair serves both directions;
* pairs are ordered by offset, so there is neither gather nor scatter between atoms and pairs
  (`xtalnet_jax.models.incidence`), and of a message only what its gradient needs is kept;
* for large cells the offsets can be taken a block at a time, each block's features and messages
  being made anew wherever they are needed: memory then goes with the block, not with the square.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from xtalnet_jax.models.embeddings import fourier_differences, nearest_distance, radial_basis
from xtalnet_jax.models.fast import product
from xtalnet_jax.models.incidence import Incidence, add_pairs, collect, incidence, spread


class EdgeKernel(NamedTuple):
    """The first edge layer: kernel rows are h_i, h_j, lattice features, sines, cosines, radial."""

    kernel: jax.Array  # [2 d + k + 6 num_freqs + num_radial, d]
    bias: jax.Array  # [d]


class Separation(NamedTuple):
    """How far apart the two atoms of each pair are: 4 numbers of which hundreds are made."""

    difference: jax.Array  # [..., 3] fractional
    distance: jax.Array | None  # [...] angstrom, to the nearest image; None where nobody looks


class Features(NamedTuple):
    """What the first edge layer reads of each pair, see `pair_features`."""

    sin: jax.Array  # [..., 3 num_freqs]
    cos: jax.Array  # [..., 3 num_freqs]
    radial: jax.Array  # [..., num_radial]


class PairBlock(NamedTuple):
    """Pairs (i, (i + r) mod n_node) for successive offsets r; differences are f_{i+r} - f_i."""

    apart: Separation | Features  # [n_graph, n_offset, n_node, ...]; features if they are kept
    mask: jax.Array  # [n_graph, n_offset, n_node] both atoms are real


class DensePairs(NamedTuple):
    """Pairs at the offsets r = 1 .. n_node // 2 of a padded batch."""

    blocks: PairBlock | None  # the first offsets, with an axis [n_block] before all others
    rest: PairBlock  # the offsets after them, without that axis
    radial_self: jax.Array  # [num_radial] radial functions at distance 0
    n_atoms: jax.Array  # [n_graph] at least 1


class EdgeList(NamedTuple):
    """Directed edges of a flat list of atoms, self loops included."""

    senders: jax.Array  # [n_edge] atom j
    receivers: jax.Array  # [n_edge] atom i
    graph: jax.Array  # [n_edge] crystal
    features: jax.Array  # [n_edge, 6 num_freqs + num_radial]: sines, cosines, radial
    mask: jax.Array  # [n_edge] both atoms are real


def separation(
    difference: Float[Array, "*batch 3"],
    metric: Float[Array, "*batch 3 3"] | None,
    num_radial: int,
    detach: bool = False,
) -> Separation:
    """Fractional differences with their lengths, if radial functions are to be made of these.

    With ``detach`` no gradient reaches the coordinates through them, as in the reference.

    Raises:
        ValueError: radial functions are wanted and there is no metric to take distances with.
    """
    distance = None
    if num_radial:
        if metric is None:
            raise ValueError("num_radial > 0 needs the metric tensor of each crystal (metric=...)")
        distance = nearest_distance(difference, metric)
    apart = Separation(difference, distance)
    return jax.lax.stop_gradient(apart) if detach else apart


def pair_features(apart: Separation, num_freqs: int, num_radial: int) -> Features:
    """Sines and cosines of the differences and radial functions of the distances."""
    if apart.distance is None:
        radial = jnp.zeros((*apart.difference.shape[:-1], 0), apart.difference.dtype)
    else:
        radial = radial_basis(apart.distance, num_radial)
    return Features(*fourier_differences(apart.difference, num_freqs), radial)


def dense_pairs(
    frac_coords: Float[Array, "n_graph n_node 3"],
    node_mask: Bool[Array, "n_graph n_node"],
    num_freqs: int,
    *,
    metric: Float[Array, "n_graph 3 3"] | None = None,
    num_radial: int = 0,
    detach: bool = True,
    chunk: int | None = None,
) -> DensePairs:
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
        return DensePairs(None, kept, radial_self, n_atoms)
    # Blocks are alike, so they hold offsets with a way back only; for even n the last has none.
    n_block = (n_node - 1) // 2 // chunk
    end = n_block * chunk

    def stacked(x: jax.Array) -> jax.Array:
        return x[:, :end].reshape(n_graph, n_block, chunk, *x.shape[2:]).swapaxes(0, 1)

    blocks = jax.tree.map(stacked, whole) if n_block else None
    rest = jax.tree.map(lambda x: x[:, end:], whole)
    return DensePairs(blocks, rest, radial_self, n_atoms)


def edge_list(
    frac_coords: Float[Array, "n_atom 3"],
    node_mask: Bool[Array, "n_atom"],
    senders: Int[Array, "n_edge"],
    receivers: Int[Array, "n_edge"],
    graph: Int[Array, "n_edge"],
    num_freqs: int,
    *,
    metric: Float[Array, "n_graph 3 3"] | None = None,
    num_radial: int = 0,
    detach: bool = True,
) -> EdgeList:
    """Features of given directed edges of a flat list of atoms."""
    difference = frac_coords[senders] - frac_coords[receivers]
    metrics = None if metric is None else metric[graph]
    apart = separation(difference, metrics, num_radial, detach)
    features = pair_features(apart, num_freqs, num_radial)
    mask = node_mask[senders] & node_mask[receivers]
    return EdgeList(senders, receivers, graph, jnp.concatenate(features, -1), mask)


def complete_edges(n_graph: int, n_node: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """``(senders, receivers, graph)`` of complete graphs with self loops, receivers sorted."""
    index = jnp.arange(n_graph * n_node * n_node)
    receivers = index // n_node
    graph = receivers // n_node
    return graph * n_node + index % n_node, receivers, graph


def mean_messages(
    pairs: DensePairs | EdgeList,
    h: jax.Array,
    lattice_features: Float[Array, "n_graph k"],
    first: EdgeKernel,
    rest: Callable[[jax.Array], jax.Array],
    dtype: Any = None,
) -> jax.Array:
    """Mean over the senders j of ``rest(first([h_i, h_j, g, psi_ij]))``, for every atom i.

    Args:
        pairs: Which pairs there are, and their features.
        h: Normalised atom features, [n_graph, n_node, d] for `DensePairs`, [n_atom, d] else.
        lattice_features: The numbers g of each crystal.
        first: The first edge layer.
        rest: What follows it, acting on the last axis.
        dtype: Type of the products; by default that of ``h``.

    Returns:
        Array of the shape of ``h``; 0 for a padded atom.
    """
    dtype = h.dtype if dtype is None else dtype
    if isinstance(pairs, EdgeList):
        return _edge_list_messages(pairs, h, lattice_features, first, rest, dtype)
    n, d, k, num_radial = *h.shape[1:], lattice_features.shape[-1], len(pairs.radial_self)
    kernel = first.kernel
    n_trig = (len(kernel) - 2 * d - k - num_radial) // 2
    cuts = [d, 2 * d, 2 * d + k, 2 * d + k + n_trig, 2 * d + k + 2 * n_trig]
    to_receiver, to_sender, to_lattice, to_sin, to_cos, to_radial = jnp.split(kernel, cuts)
    # The lattice numbers may be large and their differences small: never in half precision.
    exact = jax.lax.Precision.HIGHEST
    per_graph = jnp.matmul(lattice_features, to_lattice, precision=exact) + first.bias[None]

    per_graph = per_graph[:, None].astype(dtype)
    receiver = product(h, to_receiver, dtype)
    sender = product(h, to_sender, dtype)
    # cos 0 = 1 and sin 0 = 0 on the pair of an atom with itself
    alone = to_cos.sum(0) + pairs.radial_self @ to_radial

    def messages(
        total: jax.Array, block: PairBlock, start: int | jax.Array, num_back: int
    ) -> jax.Array:
        """Sum over a block from offset ``start``; of its offsets the first have a way back."""
        apart = block.apart
        if isinstance(apart, Separation):
            apart = pair_features(apart, n_trig // 3, num_radial)
        odd = product(apart.sin, to_sin, dtype)
        even = product(apart.cos, to_cos, dtype)
        if num_radial:
            even = even + product(apart.radial, to_radial, dtype)
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


def _edge_list_messages(
    edges: EdgeList,
    h: jax.Array,
    lattice_features: jax.Array,
    first: EdgeKernel,
    rest: Callable[[jax.Array], jax.Array],
    dtype: Any,
) -> jax.Array:
    parts = [h[edges.receivers], h[edges.senders], lattice_features[edges.graph], edges.features]
    pre = jnp.concatenate([p.astype(dtype) for p in parts], -1) @ first.kernel.astype(dtype)
    weight = edges.mask.astype(h.dtype)
    messages = rest(pre + first.bias[None].astype(dtype)).astype(h.dtype) * weight[:, None]
    total = jax.ops.segment_sum(messages, edges.receivers, h.shape[0])
    count = jax.ops.segment_sum(weight, edges.receivers, h.shape[0])
    return total / jnp.maximum(count, 1.0)[:, None]
