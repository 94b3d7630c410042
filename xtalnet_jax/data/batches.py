"""Padded batches of static shape, as a pure function of the step.

``batch(step)`` depends on nothing but the set, the seed and the step: a run that restarts at any
step sees what an uninterrupted one would have seen, and no iterator has to be saved. Crystals of
similar size share a bucket, so that little of the n x n work of a batch is spent on padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xtalnet_jax.crystals.crystal import CrystalBatch
from xtalnet_jax.data.packed import PackedSet
from xtalnet_jax.pxrd.pattern import Lines, PeakBatch

DEFAULT_BUCKETS = (4, 8, 12, 16, 20)
PAD = -1  # index of an empty crystal


class Example(NamedTuple):
    """What a training or evaluation step receives; NumPy on the host, arrays on the device."""

    crystals: CrystalBatch
    lines: Lines
    index: Any  # [n_graph] int32, position in the packed set, -1 where padded
    peaks: PeakBatch | None = None  # of the patterns that the source brought, if it did


class _Plan(NamedTuple):
    """The batches of one epoch: which bucket, and which crystals."""

    bucket: np.ndarray  # [num_steps] int
    rows: list[np.ndarray]  # per step [n_graph] int32, -1 padded


def buckets_for(packed: PackedSet, num_buckets: int = 5, multiple: int = 4) -> tuple[int, ...]:
    """Bucket edges that hold about equally many crystals each, rounded up to ``multiple``."""
    levels = np.linspace(0, 1, num_buckets + 1)[1:]
    edges = np.quantile(packed.num_atoms, levels, method="higher")
    return tuple(int(e) for e in np.unique(-(-edges // multiple) * multiple))


class BucketedBatches:
    """Every crystal once an epoch, in batches whose crystals have similar numbers of atoms.

    Args:
        packed: the set.
        num_atoms_buckets: rising numbers of atoms to which crystals are padded; `buckets_for`
            proposes some.
        budget_pairs: ordered pairs of atoms per batch and device: a bucket of crystals padded to
            n atoms gets ``budget_pairs // n**2`` of them, within ``batch_size_range``.
        batch_sizes: crystals per batch and device instead, one number or one per bucket.
        batch_size_range: smallest and largest batch the budget may lead to.
        seed: of the order.
        shuffle: False gives a fixed order, the same every epoch, for evaluation.
        num_devices: of all processes together. A batch holds the rows of the first device, then
            those of the second, and so on: all of one bucket, so that one shape serves all.

    Raises:
        ValueError: a crystal is too large for the largest bucket, or an argument makes no sense.
    """

    def __init__(
        self,
        packed: PackedSet,
        num_atoms_buckets: Sequence[int] = DEFAULT_BUCKETS,
        *,
        budget_pairs: int = 16384,
        batch_sizes: int | Mapping[int, int] | None = None,
        batch_size_range: tuple[int, int] = (1, 256),
        seed: int = 0,
        shuffle: bool = True,
        num_devices: int = 1,
    ):
        edges = np.asarray(num_atoms_buckets, np.int64)
        if edges.size == 0 or edges[0] < 1 or (np.diff(edges) <= 0).any():
            raise ValueError(
                f"num_atoms_buckets must rise from at least 1, got {num_atoms_buckets}"
            )
        if packed.num_crystals == 0:
            raise ValueError("the packed set is empty")
        if num_devices < 1:
            raise ValueError(f"num_devices must be at least 1, got {num_devices}")
        too_large = packed.num_atoms > edges[-1]
        if too_large.any():
            raise ValueError(
                f"{too_large.sum()} crystals have more atoms than the largest bucket {edges[-1]} "
                f"(up to {packed.num_atoms.max()}): add a bucket or pack with max_atoms={edges[-1]}"
            )
        if batch_sizes is None:
            low, high = batch_size_range
            sizes = [min(max(budget_pairs // int(n) ** 2, low), high) for n in edges]
        elif isinstance(batch_sizes, int):
            sizes = [batch_sizes] * len(edges)
        else:
            missing = [int(n) for n in edges if int(n) not in batch_sizes]
            if missing:
                raise ValueError(f"batch_sizes has no entry for the buckets {missing}")
            sizes = [batch_sizes[int(n)] for n in edges]
        if min(sizes) < 1:
            raise ValueError(f"every batch needs at least one crystal, got batch sizes {sizes}")
        bucket = np.searchsorted(edges, packed.num_atoms)
        members = [np.flatnonzero(bucket == b).astype(np.int32) for b in range(len(edges))]
        kept = [b for b, rows in enumerate(members) if len(rows)]
        self.packed = packed
        self.num_nodes = tuple(int(edges[b]) for b in kept)
        self.batch_sizes = tuple(sizes[b] for b in kept)  # per device
        self._members = [members[b] for b in kept]
        self._seed, self._shuffle = seed, shuffle
        self._num_devices = num_devices
        self._epoch_plan = lru_cache(maxsize=2)(self._make_plan)

    @property
    def num_steps_per_epoch(self) -> int:
        """Batches after which every crystal has been seen exactly once."""
        return sum(-(-len(m) // b) for m, b in zip(self._members, self.whole_batches()))

    def indices(self, step: int) -> tuple[int, np.ndarray]:
        """Number of atoms to pad to, and positions in the set ([n_graph] int32, -1 padded)."""
        if step < 0:
            raise ValueError(f"a step is at least 0, got {step}")
        epoch, place = divmod(step, self.num_steps_per_epoch)
        plan = self._epoch_plan(epoch if self._shuffle else 0)
        return self.num_nodes[plan.bucket[place]], plan.rows[place]

    def batch(self, step: int) -> Example:
        """The batch of all devices at ``step`` (NumPy); a pure function of the step."""
        num_nodes, index = self.indices(step)
        return gather(self.packed, index, num_nodes)

    def whole_batches(self) -> list[int]:
        """Crystals of a batch of each bucket, on all devices together."""
        return [size * self._num_devices for size in self.batch_sizes]

    def _make_plan(self, epoch: int) -> _Plan:
        rng = np.random.default_rng((self._seed, epoch))
        bucket: list[int] = []
        steps: list[np.ndarray] = []
        for b, (rows, size) in enumerate(zip(self._members, self.whole_batches())):
            rows = rng.permutation(rows) if self._shuffle else rows
            padded = np.full(-(-len(rows) // size) * size, PAD, np.int32)
            padded[: len(rows)] = rows
            # Dealt like cards, so that no device is left with the padding of the last batch.
            dealt = padded.reshape(-1, self.batch_sizes[b], self._num_devices).swapaxes(1, 2)
            steps.extend(dealt.reshape(-1, size))
            bucket.extend([b] * len(dealt))
        order = rng.permutation(len(steps)) if self._shuffle else np.arange(len(steps))
        return _Plan(np.array(bucket)[order], [steps[i] for i in order])


class ResidentBatches:
    """The same batches with the whole set in device memory: a step sends row numbers only.

    Attributes:
        resident: every array of the set, padded to the largest bucket.
        num_steps_per_epoch: as of the batches given.
    """

    def __init__(self, batches: BucketedBatches):
        self._batches = batches
        self.num_steps_per_epoch = batches.num_steps_per_epoch
        self.resident = device_resident(batches.packed, batches.num_nodes[-1])

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Row numbers of the crystals of ``step``, under a name that says what to pad to."""
        num_nodes, index = self._batches.indices(step)
        return {f"n{num_nodes}": index}

    def kinds(self) -> list[dict[str, np.ndarray]]:
        """One batch of empty crystals for every bucket."""
        cut = self._batches
        sizes = zip(cut.num_nodes, cut.whole_batches())
        return [{f"n{num_nodes}": np.full(size, PAD, np.int32)} for num_nodes, size in sizes]

    def gather(self, resident: Example, batch: Mapping[str, jax.Array]) -> Example:
        """The batch that `BucketedBatches.batch` would give; runs on the device."""
        ((name, index),) = batch.items()
        return take(resident, index, int(name[1:]))


def count_crystals(batch: Example | Mapping[str, np.ndarray]) -> int:
    """Real crystals in a batch of either class, on the host."""
    index = batch.index if isinstance(batch, Example) else next(iter(batch.values()))
    return int((np.asarray(index) >= 0).sum())


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

    With it a step only needs `BucketedBatches.indices`, and `take` cuts the batch on the device.
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
    return Example(crystals, lines, jnp.asarray(index, jnp.int32), peaks)
