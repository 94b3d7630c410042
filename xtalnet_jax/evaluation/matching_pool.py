"""Processes that match pairs and can be killed: a hanging matcher cannot be stopped otherwise.

The pools of the standard library cannot end one task: their time limits only stop waiting, and the
busy process stays busy. Here each worker is one process with one pipe and at most one pair.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from xtalnet_jax.evaluation.matching import (
    MatchFn,
    MatchPair,
    MatchRecord,
    Tolerance,
    match_pair,
    match_rmse,
)

STARTUP_S = 600.0
"""A worker that has not reported after this time (imports included) counts as unable to start.

Generous, because a worker that cannot start usually dies, which is seen at once.
"""


def _serve(connection: Connection, tolerances: Mapping[str, Tolerance], match_fn: MatchFn) -> None:
    """Worker: say ready, then answer pairs, one message per tolerance, until None comes."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    if match_fn is match_rmse:  # the import must not count against the first pair's time
        import pymatgen.analysis.structure_matcher  # noqa: F401
    connection.send("ready")
    while (pair := connection.recv()) is not None:
        for result in match_pair(pair, tolerances, match_fn):
            connection.send(result)


def _die_with_parent() -> None:
    """End this process, in the middle of a match if need be, when its parent is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class _Worker:
    """One process, the pair it works on, and what it has said about it so far."""

    def __init__(self, context: Any, tolerances: Mapping[str, Tolerance], match_fn: MatchFn):
        self.connection, child = context.Pipe()
        arguments = (child, tolerances, match_fn)
        self.process = context.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        child.close()  # so that the death of the worker is seen as end of file
        self.num_tolerances = len(tolerances)
        self.is_ready = False
        self.started = time.monotonic()
        self.work: tuple[int, MatchPair] | None = None
        self.rmse: dict[str, float | None] = {}
        self.status = "ok"

    def assign(self, index: int, pair: MatchPair) -> None:
        self.work, self.rmse, self.status = (index, pair), {}, "ok"
        self.started = time.monotonic()
        # A worker that died idle is noticed by the next `listen`, as one that died at work.
        with contextlib.suppress(BrokenPipeError):
            self.connection.send(pair)

    def deadline(self, timeout_s: float | int | None) -> float:
        limit = timeout_s if self.is_ready else STARTUP_S
        return math.inf if limit is None else self.started + limit

    def listen(self, timeout_s: float | int | None) -> str | None:
        """Take in what the worker has sent; return why it has to be given up, or None."""
        try:
            while self.connection.poll():
                message = self.connection.recv()
                if message == "ready":
                    self.is_ready = True
                    return None
                name, value, status = message
                self.rmse[name] = value
                self.status = status if self.status == "ok" else self.status
        except (EOFError, ConnectionResetError):
            self.process.join()
            return f"error: worker died with exit code {self.process.exitcode}"
        is_late = len(self.rmse) < self.num_tolerances and time.monotonic() >= self.deadline(
            timeout_s
        )
        return "timeout" if is_late else None

    def record(self, tolerances: Mapping[str, Tolerance], failure: str | None) -> MatchRecord:
        assert self.work is not None
        pair = self.work[1]
        rmse = {name: self.rmse.get(name) for name in tolerances}
        seconds = round(time.monotonic() - self.started, 3)
        return MatchRecord(pair.item, int(pair.candidate), rmse, failure or self.status, seconds)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def run_pool(
    pairs: Sequence[MatchPair],
    tolerances: Mapping[str, Tolerance],
    workers: int,
    timeout_s: float | int | None,
    match_fn: MatchFn,
) -> Iterator[tuple[int, MatchRecord]]:
    """Yield (index of the pair, record) in the order in which pairs finish.

    Raises:
        RuntimeError: a worker process ended, or said nothing, before its first pair.
    """
    context = multiprocessing.get_context("spawn")
    queue = deque(enumerate(pairs))
    num_open = len(pairs)
    pool = [_Worker(context, tolerances, match_fn) for _ in range(workers)]
    try:
        while num_open:
            active = [w for w in pool if w.work is not None or not w.is_ready]
            soonest = min(w.deadline(timeout_s) for w in active)
            patience = None if soonest == math.inf else max(soonest - time.monotonic(), 0.0)
            wait([w.connection for w in active], patience)
            for worker in active:
                failure = worker.listen(timeout_s)
                if failure and not worker.is_ready:
                    raise RuntimeError(
                        f"a matching process could not start ({failure}); a script that uses "
                        'several workers or a time limit needs `if __name__ == "__main__":`'
                    )
                finished = None
                if worker.work is not None and (failure or len(worker.rmse) == len(tolerances)):
                    finished = worker.work[0], worker.record(tolerances, failure)
                    worker.work = None
                if failure:
                    worker.kill()
                    pool.remove(worker)
                    if queue:
                        pool.append(_Worker(context, tolerances, match_fn))
                elif worker.is_ready and worker.work is None and queue:
                    worker.assign(*queue.popleft())
                if finished is not None:
                    num_open -= 1
                    yield finished
    finally:
        for worker in pool:
            worker.kill()
