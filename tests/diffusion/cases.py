"""Batches for the tests of this folder: random ones, and the reference's in dense form."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from xtalnet_jax.crystals.crystal import Crystal, CrystalBatch, stack_crystals


def random_crystals(seed: int, sizes: tuple[int, ...], num_species: int = 3) -> list[Crystal]:
    """Triclinic cells with every atom somewhere else; no symmetry hides a mistake."""
    rng = np.random.default_rng(seed)
    return [
        Crystal(
            rng.integers(1, num_species + 1, n),
            rng.random((n, 3)),
            4 * np.eye(3) + rng.normal(0, 0.7, (3, 3)),
        )
        for n in sizes
    ]


def random_batch(
    seed: int, sizes: tuple[int, ...], num_nodes: int | None = None, num_graphs: int | None = None
) -> CrystalBatch:
    batch = stack_crystals(random_crystals(seed, sizes), num_nodes, num_graphs)
    return CrystalBatch(*(jnp.asarray(x) for x in batch))


class GoldenCase(NamedTuple):
    """One input batch of the reference with everything scattered to [n_graph, n_node]."""

    batch: CrystalBatch
    inputs: dict[str, np.ndarray]
    num_nodes: int

    def dense(self, flat: np.ndarray) -> jnp.ndarray:
        """Scatter [..., n, 3] of all atoms in a row to [..., n_graph, n_node, 3]."""
        counts, graph = self.inputs["num_atoms"], self.inputs["node2graph"]
        place = np.arange(len(graph)) - (np.cumsum(counts) - counts)[graph]
        out = np.zeros((*flat.shape[:-2], len(counts), self.num_nodes, 3), flat.dtype)
        out[..., graph, place, :] = flat
        return jnp.asarray(out)


def golden_case(golden: Path, name: str, padding: int = 2) -> GoldenCase:
    inputs = dict(np.load(golden / f"inputs_{name}.npz"))
    lattice = np.load(golden / f"narrow_cpcp_{name}_f32.npz")["lattices"]
    case = GoldenCase(None, inputs, int(inputs["num_atoms"].max()) + padding)
    numbers = case.dense(np.repeat(inputs["atom_types"][:, None], 3, 1))[..., 0]
    return case._replace(
        batch=CrystalBatch(numbers, case.dense(inputs["frac_coords"]), jnp.asarray(lattice))
    )
