"""What training runs: a task (what to minimise) and a source (what to feed it).

Nothing here, or anywhere in :mod:`xtalnet_jax.training`, knows what a batch means.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

from xtalnet_jax.types import Params, PyTree

__all__ = ["BatchSource", "ResidentSource", "Task"]


class Task(NamedTuple):
    """A thing to minimise, as two pure functions.

    ``loss(params, key, batch, train, axis_name)`` returns the loss of the *local* rows and a dict
    of scalars to log. ``axis_name`` is None on one device; under several it names the device axis,
    so that a contrastive loss can ``all_gather`` its negatives. Means over devices of the loss, the
    scalars and the gradients are taken by the training step, never by the task.
    """

    init: Callable[[jax.Array, PyTree], Params]  # (key, example batch) -> params
    loss: Callable[[Params, jax.Array, PyTree, bool, str | None], tuple[jax.Array, dict]]
    name: str  # static, for logs and checkpoints


@runtime_checkable
class BatchSource(Protocol):
    """Batches as a pure function of the step number, so that resuming needs no iterator state."""

    @property
    def num_steps_per_epoch(self) -> int:
        """Steps after which every row has been seen once."""
        ...

    def batch(self, step: int) -> PyTree:
        """The *global* batch of ``step`` (from 0): arrays that all share their leading axis.

        Shapes may differ from step to step (size buckets); each new shape compiles once.
        """
        ...


@runtime_checkable
class ResidentSource(BatchSource, Protocol):
    """A source whose data live on the device: ``batch`` is then only row numbers.

    The training step calls ``gather(resident, batch)`` inside jit. Buckets of different sizes can
    be told apart by the *structure* of the batch, which is static: ``{"n32": rows}``.
    """

    resident: PyTree

    def kinds(self) -> list[PyTree]:
        """One batch of every structure and shape there will be, to compile for all at once."""
        ...

    def gather(self, resident: PyTree, batch: PyTree) -> Any:
        """The rows of ``resident`` that ``batch`` names (traced)."""
        ...
