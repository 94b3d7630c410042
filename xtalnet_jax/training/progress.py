"""What a person at the terminal sees, and how they stop it."""

from __future__ import annotations

import io
import signal
import threading
import time
from types import FrameType
from typing import TextIO

__all__ = ["Clock", "Interrupt", "Progress"]


class Clock:
    """Seconds of training, leaving out those spent on evaluation and checkpoints."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self._mark = self.start
        self._paused = 0.0

    def pause(self, seconds: float) -> None:
        """Do not count ``seconds`` that have just passed."""
        self._paused += seconds

    def lap(self) -> float:
        """Seconds of training since the last lap."""
        now = time.monotonic()
        seconds = max(now - self._mark - self._paused, 1e-9)
        self._mark, self._paused = now, 0.0
        return seconds

    @property
    def elapsed(self) -> float:
        """All seconds since the start."""
        return time.monotonic() - self.start


class Progress:
    """One tidy line per log interval, rewritten in place on a terminal."""

    def __init__(self, stream: TextIO | io.TextIOBase | None, name: str, num_steps: int):
        self._stream = stream
        self._name = name
        self.num_steps = num_steps
        self._inplace = stream is not None and stream.isatty()
        self._smooth: float | None = None
        self._width = 0

    def update(self, step: int, loss: float, rate: float, seconds_per_step: float) -> None:
        """Show step, loss (average over about ten intervals), rows per second and time left."""
        self._smooth = loss if self._smooth is None else 0.9 * self._smooth + 0.1 * loss
        left = format_seconds((self.num_steps - step) * seconds_per_step)
        line = (
            f"{self._name} {step}/{self.num_steps} {step / self.num_steps:.1%}"
            f" | loss {self._smooth:.4g} | {rate:.4g} rows/s | {left} left"
        )
        if self._inplace:
            self._put("\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            self._put(line + "\n")

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._inplace and self._width:
            self._put("\n")
            self._width = 0
        self._put(text + "\n")

    def close(self) -> None:
        """End the line that is rewritten in place."""
        if self._inplace and self._width:
            self._put("\n")

    def _put(self, text: str) -> None:
        if self._stream is not None:
            self._stream.write(text)
            self._stream.flush()


class Interrupt:
    """Turns SIGINT and SIGTERM into a flag, so that the step in work can be finished and saved.

    A second SIGINT interrupts at once. Outside the main thread, where Python cannot catch signals,
    the flag simply stays down.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self._old: dict[int, object] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number).name


def format_seconds(seconds: float) -> str:
    """``h:mm:ss``."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"
