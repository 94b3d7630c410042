"""Crystals as ``jraph.GraphsTuple``: complete graphs, self pairs included.

The only file that imports jraph. Two layouts: `to_graphs` turns a dense `CrystalBatch` into a
graph of static shape (on the device), `pad_graphs` packs crystals of any size into a budget (on
the host). nodes = {"frac_coords", "atomic_numbers"}, globals = {"lattice"}, no edge features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jraph
import numpy as np

from xtalnet_jax.crystals.crystal import Crystal, CrystalBatch


def to_graphs(batch: CrystalBatch) -> jraph.GraphsTuple:
    """View a dense batch as a graph of the same atoms, n_graph * n_node nodes.

    Node g * n_node + i is atom i of crystal g; edges are all ordered pairs (receiver i, sender j)
    of one row, n_graph * n_node^2 of them, in that order. An edge with a padded atom is replaced
    by a self pair of the last padding node (see below), so sums over the edges of a real atom see
    real atoms only. One padding graph with one padding node is appended, jraph's convention:
    ``n_node`` of a crystal counts its whole padded row (mask nodes by ``atomic_numbers > 0``, and
    average over real atoms), ``n_edge`` likewise.

    Returns:
        GraphsTuple with n_graph * n_node + 1 nodes, n_graph * n_node^2 edges, n_graph + 1 graphs.
    """
    num_graphs, num_nodes = batch.atomic_numbers.shape
    spare = num_graphs * num_nodes
    index = jnp.arange(spare).reshape(num_graphs, num_nodes)
    mask = batch.atomic_numbers > 0
    real = mask[:, :, None] & mask[:, None, :]
    receivers = jnp.where(real, index[:, :, None], spare).reshape(-1)
    senders = jnp.where(real, index[:, None, :], spare).reshape(-1)

    def flat(x: Any, fill: jax.Array) -> jax.Array:
        x = jnp.asarray(x)
        rows = x.reshape(spare, *x.shape[2:])
        return jnp.concatenate([rows, jnp.broadcast_to(fill, (1, *rows.shape[1:]))])

    lattice = jnp.asarray(batch.lattice)
    n_edge = real.sum((1, 2)).astype(jnp.int32)
    return jraph.GraphsTuple(
        nodes={
            "frac_coords": flat(batch.frac_coords, jnp.zeros((), lattice.dtype)),
            "atomic_numbers": flat(batch.atomic_numbers, jnp.zeros((), jnp.int32)),
        },
        edges=None,
        receivers=receivers,
        senders=senders,
        globals={"lattice": jnp.concatenate([lattice, jnp.eye(3, dtype=lattice.dtype)[None]])},
        n_node=jnp.asarray([num_nodes] * num_graphs + [1], jnp.int32),
        n_edge=jnp.concatenate([n_edge, real.size - n_edge.sum(keepdims=True)]),
    )


def graph_from_crystal(crystal: Crystal) -> jraph.GraphsTuple:
    """Return the complete graph of one crystal (NumPy), n^2 edges, receiver slowest."""
    n = len(crystal.atomic_numbers)
    receivers, senders = np.divmod(np.arange(n * n, dtype=np.int32), np.int32(max(n, 1)))
    return jraph.GraphsTuple(
        nodes={
            "frac_coords": np.asarray(crystal.frac_coords, np.float32).reshape(n, 3),
            "atomic_numbers": np.asarray(crystal.atomic_numbers, np.int32),
        },
        edges=None,
        receivers=receivers,
        senders=senders,
        globals={"lattice": np.asarray(crystal.lattice, np.float32)[None]},
        n_node=np.array([n], np.int32),
        n_edge=np.array([n * n], np.int32),
    )


def pad_graphs(
    crystals: Sequence[Crystal], max_nodes: int, max_edges: int, max_graphs: int
) -> jraph.GraphsTuple:
    """Pack crystals into one GraphsTuple of exactly the budget's size (NumPy).

    The budget includes jraph's padding: one padding graph with at least one node is always there.

    Raises:
        ValueError: a crystal is too large on its own (all such are named), or together they are
            too many.
    """
    sizes = np.array([len(c.atomic_numbers) for c in crystals], int)
    large = np.flatnonzero((sizes > max_nodes - 1) | (sizes**2 > max_edges))
    if len(large):
        listed = ", ".join(f"number {i} with {sizes[i]} atoms" for i in large[:10])
        raise ValueError(
            f"{len(large)} of {len(sizes)} crystals are too large for max_nodes = {max_nodes}, "
            f"max_edges = {max_edges} (n atoms need n + 1 nodes, n^2 edges): {listed}; "
            "raise the budget or drop them"
        )
    need = (int(sizes.sum()) + 1, int((sizes**2).sum()), len(sizes) + 1)
    if not len(sizes) or any(n > have for n, have in zip(need, (max_nodes, max_edges, max_graphs))):
        raise ValueError(
            f"{len(sizes)} crystals need {need[0]} nodes, {need[1]} edges, {need[2]} graphs "
            f"(padding included); the budget is {max_nodes}, {max_edges}, {max_graphs}"
        )
    joined = jraph.batch_np([graph_from_crystal(c) for c in crystals])
    return jraph.pad_with_graphs(joined, max_nodes, max_edges, max_graphs)


def unbatch_graphs(graphs: jraph.GraphsTuple) -> list[Crystal]:
    """Split `to_graphs` or `pad_graphs` back into crystals, without any padding."""
    nodes = {name: np.asarray(value) for name, value in graphs.nodes.items()}
    bounds = np.cumsum(np.asarray(graphs.n_node))[:-1]
    parts = zip(
        np.split(nodes["atomic_numbers"], bounds),
        np.split(nodes["frac_coords"], bounds),
        np.asarray(graphs.globals["lattice"]),
    )
    return [Crystal(z[z > 0], x[z > 0], cell) for z, x, cell in parts if (z > 0).any()]
