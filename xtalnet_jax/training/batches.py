"""From a source to batches on the devices: grouping of steps, prefetching, counting of rows."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from xtalnet_jax.training.parallel import Parallel
from xtalnet_jax.training.prefetch import prefetch
from xtalnet_jax.training.task import BatchSource, ResidentSource
from xtalnet_jax.types import PyTree

__all__ = ["Chunk", "CountFn", "leading_rows", "read_chunks", "resident_of"]

CountFn = Callable[[PyTree], int]


class Chunk(NamedTuple):
    """Consecutive steps that are dispatched together."""

    parts: list[tuple[int, int, PyTree]]  # (first step, number of steps, batch on the devices)
    stop: int  # the step after the last
    rows: int  # in all


def leading_rows(batch: PyTree) -> int:
    """Length of the leading axis of the first array of ``batch``."""
    return len(jax.tree.leaves(batch)[0])


def resident_of(source: BatchSource) -> tuple[PyTree, Any]:
    """``(resident, gather)`` of a source whose data live on the device, else ``((), None)``."""
    if isinstance(source, ResidentSource):
        return source.resident, source.gather
    return (), None


def read_chunks(
    source: BatchSource,
    parallel: Parallel,
    start: int,
    stop: int,
    *,
    group: int = 1,
    depth: int = 2,
    count_fn: CountFn = leading_rows,
) -> Generator[Chunk, None, None]:
    """Batches of steps ``start`` to ``stop``, prepared in the background.

    Groups begin at multiples of ``group`` whatever ``start`` is, so that a resumed run is cut like
    an uninterrupted one. A group whose batches differ in shape is dispatched step by step.
    """

    def groups() -> Iterator[range]:
        first = start
        while first < stop:
            last = min((first // group + 1) * group, stop)
            yield range(first, last)
            first = last

    def load(steps: range) -> Chunk:
        batches = [source.batch(step) for step in steps]
        rows = sum(count_fn(batch) for batch in batches)
        if len({_shapes(batch) for batch in batches}) == 1:
            parts = [(steps.start, len(steps), parallel.shard(batches))]
        else:
            parts = [(step, 1, parallel.shard([batch])) for step, batch in zip(steps, batches)]
        return Chunk(parts, steps.stop, rows)

    return prefetch(load, groups(), depth)


def _shapes(batch: PyTree) -> tuple:
    leaves, treedef = jax.tree.flatten(batch)
    return treedef, tuple((np.shape(x), str(x.dtype)) for x in leaves)
