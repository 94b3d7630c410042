"""Shared aliases, protocols, and the names of the dimensions used in every annotation.

Dimension glossary (used verbatim in shape annotations)::

    n_graph   crystals in a batch            n_node   atoms per crystal, padded
    n_peak    peaks per pattern, padded      n_line   powder lines per crystal, padded
    n_bin     points of a measured grid      n_hkl    reflections enumerated for a cell
    n_step    diffusion steps                d        feature width
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Bool, Float, Int, Key

__all__ = ["Array", "Bool", "DenoiseFn", "Float", "Int", "Key", "Params", "PyTree"]

Params = Any
PyTree = Any


@runtime_checkable
class DenoiseFn(Protocol):
    """A network (or an oracle) with species, mask and condition already bound.

    The diffusion modules only know this signature, so an exact analytic score and a trained
    network can stand in for each other. What the two outputs mean is fixed by the process that
    calls it: for the reference's diffusion ``coord`` is the normalised score target of
    :func:`xtalnet_jax.diffusion.losses.coordinate_target` and ``lattice`` the noise epsilon;
    for flow matching both are velocities.
    """

    def __call__(
        self, frac_coords: jax.Array, lattice: jax.Array, t: jax.Array, /
    ) -> tuple[jax.Array, jax.Array]:
        """Map [n_graph, n_node, 3], lattice state [n_graph, ...], t [n_graph] to coord, lattice."""
        ...
