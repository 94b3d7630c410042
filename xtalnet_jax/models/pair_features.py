"""What the first edge layer reads of a pair of atoms, and the rows of its kernel that read it."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from xtalnet_jax.models.embeddings import fourier_differences, nearest_distance, radial_basis


class EdgeKernel(NamedTuple):
    """The first edge layer: kernel rows are h_i, h_j, lattice features, sines, cosines, radial."""

    kernel: jax.Array  # [2 d + k + 6 num_freqs + num_radial, d]
    bias: jax.Array  # [d]

    def rows(self, num_lattice: int, num_radial: int) -> KernelRows:
        """Split the kernel by what its rows read, ``num_lattice`` being k."""
        d = self.kernel.shape[-1]
        rest = 2 * d + num_lattice
        num_trig = (len(self.kernel) - rest - num_radial) // 2
        cuts = [d, 2 * d, rest, rest + num_trig, rest + 2 * num_trig]
        return KernelRows(*jnp.split(self.kernel, cuts))

    def of_crystals(self, lattice_features: jax.Array, to_lattice: jax.Array) -> jax.Array:
        """What the lattice numbers and the bias bring, [n_graph, d].

        The numbers may be large and their differences small: never in half precision.
        """
        exact = jax.lax.Precision.HIGHEST
        return jnp.matmul(lattice_features, to_lattice, precision=exact) + self.bias[None]


class KernelRows(NamedTuple):
    """Parts of the kernel of an `EdgeKernel`."""

    receiver: jax.Array  # [d, d] what h_i is multiplied with
    sender: jax.Array  # [d, d] h_j
    lattice: jax.Array  # [k, d]
    sin: jax.Array  # [3 num_freqs, d]
    cos: jax.Array  # [3 num_freqs, d]
    radial: jax.Array  # [num_radial, d]


class Separation(NamedTuple):
    """How far apart the two atoms of each pair are: 4 numbers of which hundreds are made."""

    difference: jax.Array  # [..., 3] fractional
    distance: jax.Array | None  # [...] angstrom, to the nearest image; None where nobody looks


class Features(NamedTuple):
    """What the first edge layer reads of each pair, see `pair_features`."""

    sin: jax.Array  # [..., 3 num_freqs]
    cos: jax.Array  # [..., 3 num_freqs]
    radial: jax.Array  # [..., num_radial]


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
    sin, cos = fourier_differences(apart.difference, num_freqs)
    return Features(sin, cos, radial_features(apart, num_radial))


def radial_features(apart: Separation, num_radial: int) -> Float[Array, "*batch num_radial"]:
    """Radial functions of the distances, none if these are unknown."""
    if apart.distance is None:
        return jnp.zeros((*apart.difference.shape[:-1], 0), apart.difference.dtype)
    return radial_basis(apart.distance, num_radial)
