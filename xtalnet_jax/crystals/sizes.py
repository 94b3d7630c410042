"""Crystals of several sizes in one padded batch: which rows hold how many atoms at most.

The work of a graph network goes with the square of the padded size, so a batch of mixed sizes whose
rows are sorted lets it run on one group of rows after another, each padded to its own size only.
Noise, masks and losses go on seeing one batch of one shape.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax

from xtalnet_jax.crystals.crystal import CrystalBatch


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Sizes:
    """The first ``num_rows[0]`` crystals have at most ``num_nodes[0]`` atoms, and so on.

    A pytree without leaves: under jit it is part of what a program is compiled for.

    Attributes:
        num_rows: crystals of each group.
        num_nodes: atoms to which a group needs to be padded; the batch is padded to the largest.
    """

    num_rows: tuple[int, ...]
    num_nodes: tuple[int, ...]

    def groups(self, num_rows: int) -> Iterator[tuple[slice, int]]:
        """Rows and padded size of each group.

        Args:
            num_rows: of the batch at hand.

        Raises:
            ValueError: these are sizes of another batch.
        """
        if sum(self.num_rows) != num_rows:
            raise ValueError(
                f"a batch of {num_rows} crystals does not have the sizes {self}; one of mixed "
                "sizes cannot be cut into equal parts (train.accumulate must be 1)"
            )
        first = 0
        for rows, nodes in zip(self.num_rows, self.num_nodes):
            yield slice(first, first + rows), nodes
            first += rows

    def split(self, batch: CrystalBatch) -> list[CrystalBatch]:
        """Each group as a batch of its own, padded to its own size."""
        numbers, coords, lattice = batch
        return [
            CrystalBatch(numbers[rows, :n], coords[rows, :n], lattice[rows])
            for rows, n in self.groups(len(numbers))
        ]
