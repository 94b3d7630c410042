"""Where the numbers go: JSON lines always, TensorBoard where a writer is installed."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from xtalnet_jax.training.checkpoint import NonFiniteError
from xtalnet_jax.types import PyTree

__all__ = ["MetricBuffer", "MetricsLog", "read_metrics"]


class MetricBuffer:
    """Metrics still on the device, fetched and checked in one go when somebody looks at them."""

    def __init__(self, fetch: Callable[[PyTree], PyTree]):
        self._fetch = fetch
        self._waiting: list[tuple[int, PyTree]] = []
        self._rows: list[dict[str, float]] = []

    def push(self, first_step: int, metrics: PyTree) -> None:
        """Keep the metrics of one step, or of several from ``first_step`` (leading axis)."""
        self._waiting.append((first_step, metrics))

    def check(self) -> None:
        """Fetch what is waiting.

        Raises:
            NonFiniteError: names the metric and the step, counted from 0.
        """
        waiting, self._waiting = self._waiting, []
        for first, metrics in zip(
            [step for step, _ in waiting], self._fetch([metrics for _, metrics in waiting])
        ):
            columns = {name: np.atleast_1d(value) for name, value in metrics.items()}
            for i in range(len(next(iter(columns.values())))):
                row = {name: float(column[i]) for name, column in columns.items()}
                bad = {name: value for name, value in row.items() if not math.isfinite(value)}
                if bad:
                    raise NonFiniteError(
                        f"step {first + i}: "
                        + ", ".join(f"{name} is {value}" for name, value in bad.items())
                    )
                self._rows.append(row)

    def mean(self) -> dict[str, float]:
        """Mean of each metric since the last call; empties the buffer."""
        self.check()
        rows, self._rows = self._rows, []
        return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


class MetricsLog:
    """Appends records to ``metrics.jsonl``; after a resume no step stands there twice."""

    def __init__(self, workdir: Path, step: int, tensorboard: bool = True):
        """Drop records later than ``step`` (and a last line cut off by a crash), then append."""
        workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / "metrics.jsonl"
        kept = [json.dumps(row) + "\n" for row in read_metrics(path) if row["step"] <= step]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(kept))
        os.replace(temporary, path)
        self._file = open(path, "a")  # noqa: SIM115 - closed by close()
        self._board = _board(workdir / "tensorboard", step) if tensorboard else None

    def write(self, step: int, split: str, values: dict[str, Any]) -> None:
        """One record, flushed; ``step`` is the number of steps done."""
        row = {"step": step, "split": split, "time": round(time.time(), 3), **values}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board(f"{split}/{name}", value, step)

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._board is not None:
            self._board(None, None, None)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Records of a ``metrics.jsonl``; a last line cut off by a crash is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def _board(directory: Path, step: int) -> Callable | None:
    """``write(tag, value, step)``, ``write(None, ...)`` closes; None without a writer."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        pass
    else:
        writer = SummaryWriter(str(directory), purge_step=step + 1 if step else None)

        def write(tag: str | None, value: float | None, step: int | None) -> None:
            writer.close() if tag is None else writer.add_scalar(tag, value, step)

        return write
    try:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError:
        return None
    events = EventFileWriter(str(directory))

    def write_event(tag: str | None, value: float | None, step: int | None) -> None:
        if tag is None:
            events.close()
            return
        scalar = summary_pb2.Summary.Value(tag=tag, simple_value=value)
        summary = summary_pb2.Summary(value=[scalar])
        events.add_event(event_pb2.Event(wall_time=time.time(), step=step, summary=summary))

    return write_event
