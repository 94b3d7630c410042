"""What a training step receives, and how host and device cut it out of a packed set."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xtalnet_jax.crystals.crystal import CrystalBatch
from xtalnet_jax.crystals.sizes import Sizes
from xtalnet_jax.data.packed import PackedSet
from xtalnet_jax.pxrd.pattern import Lines, PeakBatch


class Example(NamedTuple):
    """What a training or evaluation step receives; NumPy on the host, arrays on the device."""

    crystals: CrystalBatch
    lines: Lines
    index: Any  # [n_graph] int32, position in the packed set, -1 where padded
    peaks: PeakBatch | None = None  # of the patterns that the source brought, if it did
    sizes: Sizes | None = None  # of groups of rows (of one device), where the batch mixes sizes
    pattern: Any = None  # [n_graph, d] what the encoder says of each pattern, where that is fixed


def gather(packed: PackedSet, index: np.ndarray, num_nodes: int) -> Example:
    """Cut crystals out of a packed set and pad them (NumPy).

    Args:
        packed: the set.
        index: [..., n_graph] positions, -1 for an empty crystal (atomic numbers 0, unit lattice,
            no lines).
        num_nodes: atoms to pad to.
    """
    real = index >= 0
    row = np.where(real, index, 0)
    slot = np.arange(num_nodes)
    count = np.where(real, packed.num_atoms[row], 0)
    if count.max(initial=0) > num_nodes:
        raise ValueError(f"a crystal has {count.max()} atoms, more than the {num_nodes} asked for")
    mask = slot < count[..., None]
    atom = np.where(mask, packed.offset[row][..., None] + slot, 0)
    crystals = CrystalBatch(
        np.where(mask, packed.atomic_numbers[atom], 0).astype(np.int32),
        np.where(mask[..., None], packed.frac_coords[atom], np.float32(0)),
        np.where(real[..., None, None], packed.lattice[row], np.eye(3, dtype=np.float32)),
    )
    lines = Lines(
        *(
            np.where(real[..., None], v[row], np.float32(0))
            for v in (packed.lines_inv_d, packed.lines_strength)
        )
    )
    return Example(crystals, lines, index.astype(np.int32), _own_peaks(packed, row, real))


def _own_peaks(packed: PackedSet, row: np.ndarray, real: np.ndarray) -> PeakBatch | None:
    if not packed.peaks_inv_d.shape[1]:
        return None
    position, intensity, measured = (
        np.where(real[..., None], values[row], np.float32(0))
        for values in (packed.peaks_inv_d, packed.peaks_strength, packed.measured)
    )
    return PeakBatch(position, intensity, intensity > 0, measured)


def device_resident(packed: PackedSet, max_atoms: int | None = None) -> Example:
    """The whole set padded to one number of atoms, to be put into device memory once.

    With it a step only needs row numbers, and `take` cuts the batch on the device.
    """
    num_nodes = int(packed.num_atoms.max(initial=1)) if max_atoms is None else max_atoms
    return gather(packed, np.arange(packed.num_crystals), num_nodes)


@partial(jax.jit, static_argnums=2)
def take(resident: Example, index: jax.Array, num_nodes: int) -> Example:
    """`gather` on the device, from what `device_resident` made.

    Args:
        resident: the whole set.
        index: [..., n_graph] positions, -1 for an empty crystal.
        num_nodes: atoms to pad to, at least those of every crystal asked for.
    """
    real = index >= 0
    row = jnp.where(real, index, 0)

    def pick(values: jax.Array, empty: Any = 0) -> jax.Array:
        chosen = jnp.asarray(values)[row]
        shape = real.shape + (1,) * (chosen.ndim - real.ndim)
        empty = jnp.broadcast_to(jnp.asarray(empty, chosen.dtype), chosen.shape)
        return jnp.where(real.reshape(shape), chosen, empty)

    numbers, frac, lattice = resident.crystals
    identity = jnp.eye(3).reshape((1,) * index.ndim + (3, 3))
    crystals = CrystalBatch(
        pick(numbers[:, :num_nodes]), pick(frac[:, :num_nodes]), pick(lattice, identity)
    )
    lines = Lines(*(pick(v) for v in resident.lines))
    peaks = resident.peaks and PeakBatch(*(pick(v) for v in resident.peaks))
    pattern = None if resident.pattern is None else pick(resident.pattern)
    index = jnp.asarray(index, jnp.int32)
    return Example(crystals, lines, index, peaks, pattern=pattern)
