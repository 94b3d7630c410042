"""Batches prepared ahead of the device in a background thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

__all__ = ["prefetch"]

In = TypeVar("In")
Out = TypeVar("Out")


def prefetch(
    fn: Callable[[In], Out], items: Iterable[In], depth: int
) -> Generator[Out, None, None]:
    """``map(fn, items)``, in order, computed at most ``depth`` items ahead in one thread.

    An exception in ``fn`` is raised at its place in the sequence. Closing the iterator ends the
    thread after the item in work.
    """
    results: queue.Queue = queue.Queue(maxsize=depth)
    closed = threading.Event()

    def put(entry: tuple) -> bool:
        while not closed.is_set():
            try:
                results.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((fn(item), None, False)):
                    return
            put((None, None, True))
        except BaseException as error:
            put((None, error, True))

    thread = threading.Thread(target=work, daemon=True, name="prefetch")
    thread.start()
    try:
        while True:
            value, error, last = results.get()
            if error is not None:
                raise error
            if last:
                return
            yield value
    finally:
        closed.set()
        thread.join(timeout=10.0)
