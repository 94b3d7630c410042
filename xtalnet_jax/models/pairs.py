"""All ordered pairs of atoms of each crystal, in three layouts that give the same mean messages.

The message to atom i from atom j starts with a linear map of the concatenation
``[h_i, h_j, g, psi(f_j - f_i)]``. `EdgeList` does literally that. The two others split the kernel
by rows and apply every part where it is small (atoms, crystals, pairs): `OffsetPairs` multiply psi
of each unordered pair, `SquarePairs` interpolate its part without making psi.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xtalnet_jax.models.edge_list import EdgeList, complete_edges, edge_list, edge_list_messages
from xtalnet_jax.models.offset_pairs import OffsetPairs, offset_messages, offset_pairs
from xtalnet_jax.models.pair_features import EdgeKernel
from xtalnet_jax.models.square_pairs import SquarePairs, square_messages, square_pairs
from xtalnet_jax.models.trig_series import grid_size

Pairs: TypeAlias = OffsetPairs | SquarePairs | EdgeList

LAYOUTS = ("dense", "square", "offsets", "sparse")
"""What `make_pairs` knows."""


def make_pairs(
    frac_coords: Float[Array, "n_graph n_node 3"],
    node_mask: Bool[Array, "n_graph n_node"],
    num_freqs: int,
    *,
    layout: str,
    dtype: Any,
    metric: Float[Array, "n_graph 3 3"] | None = None,
    num_radial: int = 0,
    detach: bool = True,
    chunk: int | None = None,
) -> Pairs:
    """Pairs of a padded batch in one of `LAYOUTS`; ``dtype`` is that of the products to come.

    ``"dense"`` is ``"square"`` where that is quicker, in float32 on a CPU from some thousand pairs
    on, and possible, without a gradient to the coordinates; else ``"offsets"``.

    Raises:
        ValueError: ``"square"`` is wanted with a gradient to the coordinates.
    """
    if layout == "dense":
        float32 = frac_coords.dtype == jnp.dtype(dtype) == jnp.float32
        quicker = float32 and jax.default_backend() == "cpu"
        many = node_mask.size * node_mask.shape[1] >= 4 * grid_size(num_freqs)
        layout = "square" if detach and quicker and many else "offsets"
    if layout == "square" and not detach:
        raise ValueError('layout "square" gives no gradient to the coordinates, detach=False wants')
    common: dict[str, Any] = {"metric": metric, "num_radial": num_radial}
    if layout == "square":
        return square_pairs(frac_coords, node_mask, num_freqs, chunk=chunk, **common)
    if layout == "offsets":
        return offset_pairs(frac_coords, node_mask, num_freqs, detach=detach, chunk=chunk, **common)
    edges = complete_edges(*node_mask.shape)
    coords, mask = frac_coords.reshape(-1, 3), node_mask.reshape(-1)
    return edge_list(coords, mask, *edges, num_freqs, detach=detach, **common)


def mean_messages(
    pairs: Pairs,
    h: jax.Array,
    lattice_features: Float[Array, "n_graph k"],
    first: EdgeKernel,
    rest: Callable[[jax.Array], jax.Array],
    dtype: Any = None,
) -> jax.Array:
    """Mean over the senders j of ``rest(first([h_i, h_j, g, psi_ij]))``, for every atom i.

    Args:
        pairs: Which pairs there are, and their features.
        h: Normalised atom features, [n_atom, d] for an `EdgeList`, else [n_graph, n_node, d].
        lattice_features: The numbers g of each crystal.
        first: The first edge layer.
        rest: What follows it, acting on the last axis.
        dtype: Type of the products; by default that of ``h``.

    Returns:
        Array of the shape of ``h``; 0 for a padded atom.
    """
    dtype = h.dtype if dtype is None else dtype
    of_layout: dict[type, Callable] = {
        EdgeList: edge_list_messages,
        OffsetPairs: offset_messages,
        SquarePairs: square_messages,
    }
    return of_layout[type(pairs)](pairs, h, lattice_features, first, rest, dtype)
