"""One device or many: the only file that names pmap.

State lives replicated, with a leading axis of local devices under pmap and without one under jit;
everything outside this file sees host trees and never that axis.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from xtalnet_jax.compilation import return_memory
from xtalnet_jax.types import PyTree

__all__ = ["Parallel", "initialize_processes", "make_parallel"]


@functools.cache  # one function, so that it compiles once per tree
def _replicator() -> Callable:
    return jax.pmap(lambda _, x: x, in_axes=(0, None))


class Parallel(NamedTuple):
    """How a pure step function meets the devices."""

    axis_name: str | None  # None: plain jit on one device
    num_local: int  # devices of this process
    num_processes: int
    process: int  # which process this is, from 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes files."""
        return self.process == 0

    def compile(self, fn: Callable, donate: tuple[int, ...] = ()) -> Callable:
        """``fn`` compiled; every argument must come from :meth:`replicate` or :meth:`shard`."""
        if self.axis_name is None:
            return jax.jit(fn, donate_argnums=donate)
        return jax.pmap(fn, axis_name=self.axis_name, donate_argnums=donate)

    def compile_ahead(
        self, fn: Callable, kinds: list[tuple], donate: tuple[int, ...] = ()
    ) -> Callable:
        """`compile`, done now and side by side for all ``kinds`` of arguments that will come.

        Tracing is Python and goes one after the other, the compiler runs in a thread for each.
        Arguments of other shapes are compiled when they come. On one device, what the compiler used
        is given back before a program runs, so that the two never need memory at once.
        """
        lazy: Any = self.compile(fn, donate)
        with ThreadPoolExecutor(max(len(kinds), 1)) as pool:
            waiting = {_kind(args): pool.submit(lazy.lower(*args).compile) for args in kinds}
            ready = {kind: future.result() for kind, future in waiting.items()}
        return_memory()

        def run(*args: Any) -> Any:
            kind = _kind(args)
            # Under pmap only the lazy program takes host arrays.
            if kind not in ready and self.axis_name is None:
                ready[kind] = lazy.lower(*args).compile()
                return_memory()
            return ready.get(kind, lazy)(*args)

        return run

    def replicate(self, tree: PyTree) -> PyTree:
        """The same host tree on every device."""
        if self.axis_name is None:
            return jax.device_put(tree)
        if not jax.tree.leaves(tree):  # which pmap over several processes does not bear
            return tree
        return _replicator()(np.zeros(self.num_local, np.int8), tree)

    def shard(self, batches: list[PyTree]) -> PyTree:
        """Rows of global batches, in order: processes first, then devices of the process.

        One batch stays as it is; several, of equal shapes, are stacked on a new axis of steps, for
        :func:`xtalnet_jax.training.steps.scan_steps`.

        Raises:
            ValueError: the rows cannot be divided evenly.
        """
        num = self.num_processes * self.num_local

        def cut(x: Any) -> np.ndarray:
            x = np.asarray(x)
            if x.ndim == 0 or x.shape[0] % num:
                raise ValueError(
                    f"an array of shape {x.shape} cannot be split evenly over {num} devices; "
                    f"make the batch size a multiple of {num}"
                )
            rows = x.reshape(self.num_processes, self.num_local, x.shape[0] // num, *x.shape[1:])
            return rows[self.process]

        pmapped = self.axis_name is not None
        parts = [jax.tree.map(cut, batch) for batch in batches] if pmapped else batches
        if len(parts) > 1:
            axis = 1 if pmapped else 0
            parts = [jax.tree.map(lambda *xs: np.stack([np.asarray(x) for x in xs], axis), *parts)]
        return parts[0] if pmapped else jax.device_put(parts[0])

    def fetch(self, tree: PyTree) -> PyTree:
        """Host copy of a replicated tree."""
        # One shard is read, because indexing a pmapped array with [0] is 1000 times slower.
        if self.axis_name is not None:
            tree = jax.tree.map(lambda x: x.addressable_shards[0].data, tree)
        host = jax.device_get(tree)
        return host if self.axis_name is None else jax.tree.map(lambda x: x[0], host)

    def agree(self, flags: tuple[bool, ...]) -> tuple[bool, ...]:
        """Each flag, True where any process raised it. All processes must call together."""
        if self.num_processes == 1:
            return flags
        from jax.experimental import multihost_utils

        every = multihost_utils.process_allgather(np.asarray(flags, np.int32))
        return tuple(bool(x) for x in np.asarray(every).reshape(-1, len(flags)).max(0))

    def require_same(self, value: int, what: str) -> None:
        """Raise ValueError unless every process has the same ``value``; all must call together."""
        if self.num_processes == 1:
            return
        from jax.experimental import multihost_utils

        values = np.asarray(multihost_utils.process_allgather(np.asarray(value))).reshape(-1)
        if (values != value).any():
            raise ValueError(
                f"the processes disagree on {what}: {values.tolist()}; "
                "do they share one file system and one config?"
            )


def _kind(args: tuple) -> tuple:
    """What a compiled program depends on: the structure, shapes and types of its arguments."""
    leaves, treedef = jax.tree.flatten(args)
    return treedef, tuple((np.shape(x), str(x.dtype)) for x in leaves)


def make_parallel(kind: str = "auto") -> Parallel:
    """``jit`` on one device, ``pmap`` over all devices of all processes, or ``auto``."""
    several = jax.device_count() > 1
    if kind == "jit" and jax.process_count() > 1:
        raise ValueError("parallel='jit' cannot span several processes; use 'auto' or 'pmap'")
    pmapped = kind == "pmap" or (kind == "auto" and several)
    return Parallel(
        axis_name="device" if pmapped else None,
        num_local=jax.local_device_count() if pmapped else 1,
        num_processes=jax.process_count(),
        process=jax.process_index(),
    )


def initialize_processes(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    heartbeat_seconds: int = 60,
) -> bool:
    """Join the other processes of the run, if there are any; call it before any other use of jax.

    The three values come from the arguments, else from the variables ``JAX_COORDINATOR_ADDRESS``
    (``host:port``), ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``, else from SLURM when the job has
    more than one task.

    Returns:
        Whether there are several processes.

    Raises:
        ValueError: only some of the three values are given.
    """
    env = os.environ
    coordinator = coordinator or env.get("JAX_COORDINATOR_ADDRESS")
    if num_processes is None and "JAX_NUM_PROCESSES" in env:
        num_processes = int(env["JAX_NUM_PROCESSES"])
    if process_id is None and "JAX_PROCESS_ID" in env:
        process_id = int(env["JAX_PROCESS_ID"])
    given = (coordinator, num_processes, process_id)
    if all(value is None for value in given):
        if int(env.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in env:
            jax.distributed.initialize(heartbeat_timeout_seconds=heartbeat_seconds)
            return True
        return False
    if any(value is None for value in given):
        raise ValueError(
            "several processes need a coordinator address, their number and the number of this one,"
            f" got {given}"
        )
    if num_processes == 1:
        return False
    jax.distributed.initialize(*given, heartbeat_timeout_seconds=heartbeat_seconds)
    return True
