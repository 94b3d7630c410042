"""Padded batches of static shape, as a pure function of the step.

``batch(step)`` depends on nothing but the set, the seed and the step: a run that restarts at any
step sees what an uninterrupted one would have seen, and no iterator has to be saved. Crystals of
similar size share a bucket, so that little of the n x n work of a batch is spent on padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import jax
import numpy as np

from xtalnet_jax.crystals.sizes import Sizes
from xtalnet_jax.data.examples import Example, device_resident, gather, take
from xtalnet_jax.data.packed import PackedSet

DEFAULT_BUCKETS = (4, 8, 12, 16, 20)
PAD = -1  # index of an empty crystal


class _Plan(NamedTuple):
    """The batches of one epoch: which bucket, and which crystals."""

    bucket: np.ndarray  # [num_steps] int
    rows: list[np.ndarray]  # per step [n_graph] int32, -1 padded


def buckets_for(packed: PackedSet, num_buckets: int = 5, multiple: int = 4) -> tuple[int, ...]:
    """Bucket edges that hold about equally many crystals each, rounded up to ``multiple``."""
    levels = np.linspace(0, 1, num_buckets + 1)[1:]
    edges = np.quantile(packed.num_atoms, levels, method="higher")
    return tuple(int(e) for e in np.unique(-(-edges // multiple) * multiple))


def sort_into(
    packed: PackedSet, num_atoms_buckets: Sequence[int], num_devices: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Edges of the buckets, and the crystals (positions in the set) in each."""
    edges = np.asarray(num_atoms_buckets, np.int64)
    if edges.size == 0 or edges[0] < 1 or (np.diff(edges) <= 0).any():
        raise ValueError(f"num_atoms_buckets must rise from at least 1, got {num_atoms_buckets}")
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
    bucket = np.searchsorted(edges, packed.num_atoms)
    return edges, [np.flatnonzero(bucket == b).astype(np.int32) for b in range(len(edges))]


def _place(step: int, num_steps_per_epoch: int) -> tuple[int, int]:
    """Epoch, and place in it."""
    if step < 0:
        raise ValueError(f"a step is at least 0, got {step}")
    return divmod(step, num_steps_per_epoch)


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
        edges, members = sort_into(packed, num_atoms_buckets, num_devices)
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
        kept = [b for b, rows in enumerate(members) if len(rows)]
        self.packed = packed
        self.sizes = None  # a batch has one size
        self.num_nodes = tuple(int(edges[b]) for b in kept)
        self.batch_sizes = tuple(sizes[b] for b in kept)  # per device
        self._members = [members[b] for b in kept]
        self._seed, self._shuffle = seed, shuffle
        self._num_devices = num_devices
        self._epoch_plan = lru_cache(maxsize=2)(self._make_plan)

    @property
    def num_steps_per_epoch(self) -> int:
        """Batches after which every crystal has been seen exactly once."""
        return sum(-(-len(m) // b) for m, (_, b) in zip(self._members, self.shapes()))

    def indices(self, step: int) -> tuple[int, np.ndarray]:
        """Number of atoms to pad to, and positions in the set ([n_graph] int32, -1 padded)."""
        epoch, place = _place(step, self.num_steps_per_epoch)
        plan = self._epoch_plan(epoch if self._shuffle else 0)
        return self.num_nodes[plan.bucket[place]], plan.rows[place]

    def batch(self, step: int) -> Example:
        """The batch of all devices at ``step`` (NumPy); a pure function of the step."""
        num_nodes, index = self.indices(step)
        return gather(self.packed, index, num_nodes)

    def shapes(self) -> list[tuple[int, int]]:
        """Atoms to pad to and crystals, on all devices together, of a batch of each bucket."""
        return [(n, size * self._num_devices) for n, size in zip(self.num_nodes, self.batch_sizes)]

    def _make_plan(self, epoch: int) -> _Plan:
        rng = np.random.default_rng((self._seed, epoch))
        bucket: list[int] = []
        steps: list[np.ndarray] = []
        for b, (rows, (_, size)) in enumerate(zip(self._members, self.shapes())):
            rows = rng.permutation(rows) if self._shuffle else rows
            padded = np.full(-(-len(rows) // size) * size, PAD, np.int32)
            padded[: len(rows)] = rows
            # Dealt like cards, so that no device is left with the padding of the last batch.
            dealt = padded.reshape(-1, self.batch_sizes[b], self._num_devices).swapaxes(1, 2)
            steps.extend(dealt.reshape(-1, size))
            bucket.extend([b] * len(dealt))
        order = rng.permutation(len(steps)) if self._shuffle else np.arange(len(steps))
        return _Plan(np.array(bucket)[order], [steps[i] for i in order])


class MixedBatches:
    """Every crystal once an epoch, in batches that all hold the same share of every size.

    One step then learns from small and large crystals alike, as if batches were drawn at random,
    and yet little is computed for padding: the rows of a batch are sorted by bucket, and `Sizes`
    says how many there are of each.

    Args:
        packed: the set.
        num_atoms_buckets: rising numbers of atoms to which crystals are padded.
        budget_pairs: ordered pairs of atoms per batch and device, padding included: about so
            many crystals, within ``batch_size_range``.
        batch_size: crystals per batch and device instead. There are some empty rows more where
            buckets do not divide evenly.
        batch_size_range: smallest and largest batch the budget may lead to.
        seed: of the order.
        shuffle: False gives a fixed order, the same every epoch, for evaluation.
        num_devices: of all processes together. A batch holds the rows of the first device, then
            those of the second, and so on.

    Raises:
        ValueError: a crystal is too large for the largest bucket, or an argument makes no sense.
    """

    def __init__(
        self,
        packed: PackedSet,
        num_atoms_buckets: Sequence[int] = DEFAULT_BUCKETS,
        *,
        budget_pairs: int = 16384,
        batch_size: int | None = None,
        batch_size_range: tuple[int, int] = (1, 256),
        seed: int = 0,
        shuffle: bool = True,
        num_devices: int = 1,
    ):
        edges, members = sort_into(packed, num_atoms_buckets, num_devices)
        kept = [(int(n), rows) for n, rows in zip(edges, members) if len(rows)]
        if batch_size is None:
            each = sum(n**2 * len(rows) for n, rows in kept) / packed.num_crystals
            batch_size = int(np.clip(budget_pairs // each, *batch_size_range))
        if batch_size < 1:
            raise ValueError(f"every batch needs at least one crystal, got batch size {batch_size}")
        self.packed = packed
        self.num_steps_per_epoch = max(round(packed.num_crystals / (batch_size * num_devices)), 1)
        places = self.num_steps_per_epoch * num_devices
        self.sizes = Sizes(
            tuple(-(-len(rows) // places) for _, rows in kept), tuple(n for n, _ in kept)
        )
        self.num_nodes = self.sizes.num_nodes
        self._members = [rows for _, rows in kept]
        self._seed, self._shuffle = seed, shuffle
        self._num_devices = num_devices
        self._epoch_plan = lru_cache(maxsize=2)(self._make_plan)

    def indices(self, step: int) -> tuple[int, np.ndarray]:
        """Number of atoms to pad to, and positions in the set ([n_graph] int32, -1 padded)."""
        epoch, place = _place(step, self.num_steps_per_epoch)
        return self.num_nodes[-1], self._epoch_plan(epoch if self._shuffle else 0)[place]

    def batch(self, step: int) -> Example:
        """The batch of all devices at ``step`` (NumPy); a pure function of the step."""
        num_nodes, index = self.indices(step)
        return gather(self.packed, index, num_nodes)._replace(sizes=self.sizes)

    def shapes(self) -> list[tuple[int, int]]:
        """Atoms to pad to and crystals, on all devices together, of the one kind of batch."""
        return [(self.num_nodes[-1], sum(self.sizes.num_rows) * self._num_devices)]

    def _make_plan(self, epoch: int) -> np.ndarray:
        """Rows [num_steps, n_graph] of one epoch, dealt so that each step gets like shares."""
        rng = np.random.default_rng((self._seed, epoch))
        columns, num_empty = [], 0
        for rows, size in zip(self._members, self.sizes.num_rows):
            rows = rng.permutation(rows) if self._shuffle else rows
            padded = np.full((size, self.num_steps_per_epoch * self._num_devices), PAD, np.int32)
            padded.reshape(-1)[: len(rows)] = rows
            # Empty places of one bucket follow those of the last, so that none has them all.
            columns.append(np.roll(padded.T, -num_empty, 0))
            num_empty += padded.size - len(rows)
        return np.concatenate(columns, 1).reshape(self.num_steps_per_epoch, -1)


class EncodedBatches:
    """The same batches, each pattern with what a frozen encoder says of it.

    Args:
        batches: the batches.
        patterns: [num_crystals, d] of every crystal of the set.
    """

    def __init__(self, batches: BucketedBatches | MixedBatches, patterns: np.ndarray):
        self._batches, self._patterns = batches, patterns
        self.num_steps_per_epoch = batches.num_steps_per_epoch

    def batch(self, step: int) -> Example:
        """The batch of all devices at ``step`` (NumPy); a pure function of the step."""
        batch = self._batches.batch(step)
        return batch._replace(pattern=self._patterns[np.maximum(batch.index, 0)])


class ResidentBatches:
    """The same batches with the whole set in device memory: a step sends row numbers only.

    Attributes:
        resident: every array of the set, padded to the largest bucket.
        num_steps_per_epoch: as of the batches given.
    """

    def __init__(self, batches: BucketedBatches | MixedBatches, patterns: np.ndarray | None = None):
        self._batches = batches
        self.num_steps_per_epoch = batches.num_steps_per_epoch
        resident = device_resident(batches.packed, batches.num_nodes[-1])
        self.resident = resident._replace(pattern=patterns)

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Row numbers of the crystals of ``step``, under a name that says what to pad to."""
        num_nodes, index = self._batches.indices(step)
        return {f"n{num_nodes}": index}

    def kinds(self) -> list[dict[str, np.ndarray]]:
        """One batch of empty crystals for every bucket."""
        return [{f"n{n}": np.full(size, PAD, np.int32)} for n, size in self._batches.shapes()]

    def gather(self, resident: Example, batch: Mapping[str, jax.Array]) -> Example:
        """The batch that `BucketedBatches.batch` would give; runs on the device."""
        ((name, index),) = batch.items()
        return take(resident, index, int(name[1:]))._replace(sizes=self._batches.sizes)


def count_crystals(batch: Example | Mapping[str, np.ndarray]) -> int:
    """Real crystals in a batch of either class, on the host."""
    index = batch.index if isinstance(batch, Example) else next(iter(batch.values()))
    return int((np.asarray(index) >= 0).sum())
