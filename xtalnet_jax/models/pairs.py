"""All ordered pairs of atoms of each crystal, in two layouts that give the same mean messages.

The message to atom i from atom j starts with a linear map of the concatenation
``[h_i, h_j, g, psi(f_j - f_i)]``. `EdgeList` does literally that with gathers and segment sums
(it also serves a ``jraph.GraphsTuple``); `DensePairs` does it three times cheaper:

* the kernel is split by rows and every part is applied where it is small (atoms, crystals, pairs);
* the sine part of psi changes sign and the cosine part does not when i and j swap, so one product
  per unordered pair serves both directions;
* pairs are ordered by offset, ``(i, (i + r) mod n)``, so going from atoms to pairs is a
  tile-and-reshape whose transpose is a pad-and-sum: there is no gather forward, and no scatter
  backward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from xtalnet_jax.models.embeddings import fourier_differences, nearest_distance, radial_basis
from xtalnet_jax.models.fast import product


class EdgeKernel(NamedTuple):
    """The first edge layer: kernel rows are h_i, h_j, lattice features, sines, cosines, radial."""

    kernel: jax.Array  # [2 d + k + 6 num_freqs + num_radial, d]
    bias: jax.Array  # [d]


class DensePairs(NamedTuple):
    """Pairs (i, (i + r) mod n_node) for offsets r = 1 .. n_node // 2 of a padded batch."""

    sin: jax.Array  # [n_graph, n_offset, n_node, 3 num_freqs], of f_{i+r} - f_i
    cos: jax.Array  # [n_graph, n_offset, n_node, 3 num_freqs]
    radial: jax.Array  # [n_graph, n_offset, n_node, num_radial] of the distance
    radial_self: jax.Array  # [num_radial] the same at distance 0
    mask: jax.Array  # [n_graph, n_offset, n_node] both atoms are real
    n_atoms: jax.Array  # [n_graph] at least 1


class EdgeList(NamedTuple):
    """Directed edges of a flat list of atoms, self loops included."""

    senders: jax.Array  # [n_edge] atom j
    receivers: jax.Array  # [n_edge] atom i
    graph: jax.Array  # [n_edge] crystal
    features: jax.Array  # [n_edge, 6 num_freqs + num_radial]: sines, cosines, radial
    mask: jax.Array  # [n_edge] both atoms are real


def spread(x: Shaped[Array, "n_graph n_node ..."], first: int, num: int) -> jax.Array:
    """``out[:, r, i] = x[:, (i + first + r) mod n_node]``, [n_graph, num, n_node, ...]."""
    n = x.shape[1]
    size = num * (n + 1)
    tiled = jnp.tile(x, (1, -(-(size + first) // n)) + (1,) * (x.ndim - 2))
    rows = tiled[:, first : first + size].reshape(x.shape[0], num, n + 1, *x.shape[2:])
    return rows[:, :, :n]


def collect(x: Float[Array, "n_graph n_offset n_node ..."], first: int) -> jax.Array:
    """Transpose of `spread`: ``out[:, (i + first + r) mod n] = sum_r x[:, r, i]``."""
    n_graph, num, n = x.shape[:3]
    size = num * (n + 1)
    total = -(-(size + first) // n) * n
    rest = ((0, 0),) * (x.ndim - 3)
    rows = jnp.pad(x, ((0, 0), (0, 0), (0, 1), *rest)).reshape(n_graph, size, *x.shape[3:])
    rows = jnp.pad(rows, ((0, 0), (first, total - size - first), *rest))
    return rows.reshape(n_graph, total // n, n, *x.shape[3:]).sum(1)


def pair_features(
    difference: Float[Array, "*batch 3"],
    metric: Float[Array, "*batch 3 3"] | None,
    num_freqs: int,
    num_radial: int,
    detach: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sines, cosines and radial functions of fractional differences, each [..., its number].

    Raises:
        ValueError: radial functions are wanted and there is no metric to take distances with.
    """
    sin, cos = fourier_differences(difference, num_freqs)
    if num_radial:
        if metric is None:
            raise ValueError("num_radial > 0 needs the metric tensor of each crystal (metric=...)")
        radial = radial_basis(nearest_distance(difference, metric), num_radial)
    else:
        radial = jnp.zeros((*difference.shape[:-1], 0), difference.dtype)
    return jax.lax.stop_gradient((sin, cos, radial)) if detach else (sin, cos, radial)


def dense_pairs(
    frac_coords: Float[Array, "n_graph n_node 3"],
    node_mask: Bool[Array, "n_graph n_node"],
    num_freqs: int,
    *,
    metric: Float[Array, "n_graph 3 3"] | None = None,
    num_radial: int = 0,
    detach: bool = True,
) -> DensePairs:
    """Features of every unordered pair, shared by all layers of a network.

    With ``detach`` no gradient reaches the coordinates through them, as in the reference.
    """
    num = frac_coords.shape[1] // 2
    difference = spread(frac_coords, 1, num) - frac_coords[:, None]
    metrics = None
    if metric is not None:
        metrics = jnp.broadcast_to(metric[:, None, None], (*difference.shape, 3))
    sin, cos, radial = pair_features(difference, metrics, num_freqs, num_radial, detach)
    return DensePairs(
        sin,
        cos,
        radial,
        radial_basis(jnp.zeros((), frac_coords.dtype), num_radial),
        spread(node_mask, 1, num) & node_mask[:, None],
        jnp.maximum(node_mask.sum(-1), 1).astype(frac_coords.dtype),
    )


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
    features = pair_features(difference, metrics, num_freqs, num_radial, detach)
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
    d, k, n_trig = h.shape[-1], lattice_features.shape[-1], pairs.sin.shape[-1]
    kernel = first.kernel
    cuts = [d, 2 * d, 2 * d + k, 2 * d + k + n_trig, 2 * d + k + 2 * n_trig]
    to_receiver, to_sender, to_lattice, to_sin, to_cos, to_radial = jnp.split(kernel, cuts)
    # The lattice numbers may be large and their differences small: never in half precision.
    exact = jax.lax.Precision.HIGHEST
    per_graph = jnp.matmul(lattice_features, to_lattice, precision=exact) + first.bias[None]

    per_graph = per_graph[:, None].astype(dtype)
    receiver = product(h, to_receiver, dtype)
    sender = product(h, to_sender, dtype)
    odd = product(pairs.sin, to_sin, dtype)
    even = product(pairs.cos, to_cos, dtype)
    alone = to_cos.sum(0)  # cos 0 = 1 and sin 0 = 0 on the pair of an atom with itself
    if pairs.radial.shape[-1]:
        even = even + product(pairs.radial, to_radial, dtype)
        alone = alone + pairs.radial_self @ to_radial
    n = h.shape[1]
    forth, back = n // 2, (n - 1) // 2  # for even n the offset n / 2 is its own way back
    mask = pairs.mask[..., None].astype(h.dtype)

    # The largest term comes last, so that each pair has a rounding error of its own: one that all
    # pairs of an atom share does not average out (20 times the error of a 20-step sample).
    total = rest(receiver + sender + alone[None, None].astype(dtype) + per_graph).astype(h.dtype)
    if forth:
        pre = receiver[:, None] + spread(sender, 1, forth) + even + odd + per_graph[:, None]
        total = total + (rest(pre).astype(h.dtype) * mask).sum(1)
    if back:
        pre = spread(receiver, 1, back) + sender[:, None] + (even - odd)[:, :back]
        pre = pre + per_graph[:, None]
        total = total + collect(rest(pre).astype(h.dtype) * mask[:, :back], 1)
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
