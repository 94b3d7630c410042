"""The lattice as six standardised numbers: the state that flow matching moves.

``S = (1/2) log(L L^T)`` is symmetric, knows nothing of the crystal's orientation, and every real
symmetric matrix is the S of some cell, so the state space is flat and unbounded. Its trace is the
logarithm of the volume; subtracting ``log(n) / 3`` on the diagonal makes that the logarithm of the
volume per atom, which hardly varies between crystals. Mean and spread of the data finish the job.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from xtalnet_jax.crystals.lattice import lattice_from_log_metric, log_metric


class LatticeStats(NamedTuple):
    """Statistics of the lattice code over a data set; kept with the weights that learned them."""

    mean: Any  # [6]
    std: Any  # [6]


def _raw(lattice: jax.Array, num_atoms: jax.Array) -> jax.Array:
    """Six numbers of S per atom, [n_graph, 6]: three of the diagonal, then three beside it."""
    return log_metric(lattice) - _size_shift(num_atoms, lattice.dtype)


def _size_shift(num_atoms: jax.Array, dtype: Any) -> jax.Array:
    diagonal = jnp.array([1, 1, 1, 0, 0, 0], dtype)
    log_n = jnp.log(jnp.maximum(num_atoms, 1).astype(dtype))
    return log_n[:, None] / 3 * diagonal[None]


def encode(
    lattice: Float[Array, "n_graph 3 3"], num_atoms: Int[Array, " n_graph"], stats: LatticeStats
) -> Float[Array, "n_graph 6"]:
    """Return the standardised code of a lattice (rows are vectors, angstrom)."""
    mean, std = (jnp.asarray(x, lattice.dtype)[None] for x in stats)
    return (_raw(lattice, num_atoms) - mean) / std


def decode(
    code: Float[Array, "n_graph 6"], num_atoms: Int[Array, " n_graph"], stats: LatticeStats
) -> Float[Array, "n_graph 3 3"]:
    """Return the lattice of a code, in the standard orientation of `lattice_from_log_metric`."""
    mean, std = (jnp.asarray(x, code.dtype)[None] for x in stats)
    return lattice_from_log_metric(code * std + mean + _size_shift(num_atoms, code.dtype))


def fit_stats(lattices: Any, num_atoms: Any, min_std: float = 1e-3) -> LatticeStats:
    """Mean and standard deviation of the code over a data set, NumPy float32 [6] each.

    Args:
        lattices: [n, 3, 3] angstrom.
        num_atoms: [n] atoms per cell, at least 1.
        min_std: floor of the spread, for data sets in which a component is constant.

    Raises:
        ValueError: shapes that do not fit, no data, or a cell that is singular or not finite.
    """
    lattices, num_atoms = np.asarray(lattices), np.asarray(num_atoms)
    if lattices.ndim != 3 or lattices.shape[1:] != (3, 3) or lattices.shape[0] == 0:
        raise ValueError(f"lattices has shape {lattices.shape}, expected (n, 3, 3) with n > 0")
    if num_atoms.shape != lattices.shape[:1] or num_atoms.min() < 1:
        raise ValueError(
            f"num_atoms has shape {num_atoms.shape}, expected {lattices.shape[:1]} counts of at "
            "least 1: leave padded crystals out"
        )
    raw = np.asarray(jax.jit(_raw)(jnp.asarray(lattices), jnp.asarray(num_atoms)))
    bad = np.flatnonzero(~np.isfinite(raw).all(-1))
    if bad.size:
        raise ValueError(f"lattice {bad[0]} is singular or not finite: {lattices[bad[0]].tolist()}")
    std = np.maximum(raw.std(0), min_std)
    return LatticeStats(raw.mean(0).astype(np.float32), std.astype(np.float32))
