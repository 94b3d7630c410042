"""Turns what the steps return into log records and progress, without stalling the devices."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from xtalnet_jax.training.metrics_log import MetricBuffer, MetricsLog
from xtalnet_jax.training.progress import Clock, Progress
from xtalnet_jax.types import PyTree

__all__ = ["Reporter"]


class Reporter:
    """Collects metrics over log intervals.

    ``schedule`` only notes that an interval has ended; ``flush``, called after the next step was
    dispatched, waits for its numbers. So the devices always have a step to work on meanwhile.
    """

    def __init__(
        self,
        fetch: Callable[[PyTree], PyTree],
        log: MetricsLog | None,
        progress: Progress,
        clock: Clock,
        steps_per_epoch: int,
    ):
        self.clock = clock
        self._buffer = MetricBuffer(fetch)
        self._log, self._progress, self._steps_per_epoch = log, progress, steps_per_epoch
        self._rows, self._since = 0, 0
        self._due: int | None = None

    def begin(self, step: int) -> None:
        """The first steps, up to ``step``, are done: leave their compilation out of the rate."""
        self._buffer.check()
        self.clock.lap()
        self._since = step

    def push(self, first_step: int, metrics: PyTree) -> None:
        """Metrics on the device of one or several steps."""
        self._buffer.push(first_step, metrics)

    def count(self, rows: int) -> None:
        """Rows that were trained on."""
        self._rows += rows

    def schedule(self, step: int) -> None:
        """An interval ends with ``step``."""
        self._due = step

    def flush(self) -> None:
        """Log the interval that has ended, if any.

        Raises:
            NonFiniteError: one of its metrics is not finite.
        """
        if self._due is None:
            return
        step, self._due = self._due, None
        values = self._buffer.mean()
        seconds = self.clock.lap()
        rate, self._rows = self._rows / seconds, 0
        per_step = seconds / max(step - self._since, 1)
        self._since = step
        if self._log is not None:
            more = {"epoch": step / self._steps_per_epoch, "rows_per_s": rate}
            self._log.write(step, "train", {**values, **more})
        self._progress.update(step, values["loss"], rate, per_step)

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        """Log a record of another kind, and show it."""
        if self._log is not None:
            self._log.write(step, split, values)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        self._progress.say(f"{split} at step {step}: {shown}")

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time that is no training; before it, everything up to here is logged and checked."""
        self.flush()
        self._buffer.check()
        begin = time.monotonic()
        try:
            yield
        finally:
            self.clock.pause(time.monotonic() - begin)
