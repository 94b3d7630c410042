"""Directed edges of a flat list of atoms, by gathers and segment sums; also for jraph's graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from xtalnet_jax.models.pair_features import EdgeKernel, pair_features, separation


class EdgeList(NamedTuple):
    """Directed edges of a flat list of atoms, self loops included."""

    senders: jax.Array  # [n_edge] atom j
    receivers: jax.Array  # [n_edge] atom i
    graph: jax.Array  # [n_edge] crystal
    features: jax.Array  # [n_edge, 6 num_freqs + num_radial]: sines, cosines, radial
    mask: jax.Array  # [n_edge] both atoms are real


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


def edge_list_messages(
    edges: EdgeList,
    h: jax.Array,
    lattice_features: jax.Array,
    first: EdgeKernel,
    rest: Callable[[jax.Array], jax.Array],
    dtype: Any,
) -> jax.Array:
    """See `xtalnet_jax.models.pairs.mean_messages`; ``h`` is [n_atom, d]."""
    parts = [h[edges.receivers], h[edges.senders], lattice_features[edges.graph], edges.features]
    pre = jnp.concatenate([p.astype(dtype) for p in parts], -1) @ first.kernel.astype(dtype)
    weight = edges.mask.astype(h.dtype)
    messages = rest(pre + first.bias[None].astype(dtype)).astype(h.dtype) * weight[:, None]
    total = jax.ops.segment_sum(messages, edges.receivers, h.shape[0])
    count = jax.ops.segment_sum(weight, edges.receivers, h.shape[0])
    return total / jnp.maximum(count, 1.0)[:, None]
