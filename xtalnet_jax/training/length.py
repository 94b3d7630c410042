"""How many steps a run has: said in the config, or what the clock leaves at the pace measured."""

from __future__ import annotations

from ml_collections import ConfigDict

from xtalnet_jax.training.config import total_steps
from xtalnet_jax.training.progress import Clock

__all__ = ["Length"]

_ENDLESS = 2**30


class Length:
    """The number of steps of a run; with ``num_seconds`` an estimate that follows the pace.

    Until the pace is known the run counts as endless, so its learning rate stays at the top.

    Attributes:
        num_steps: as known now.
    """

    def __init__(self, config: ConfigDict, steps_per_epoch: int, start: int, clock: Clock):
        self._seconds = config.num_seconds
        self._clock = clock
        self._first: tuple[int, float] | None = None
        self.num_steps = total_steps(config, steps_per_epoch) or start + _ENDLESS

    def observe(self, step: int) -> bool:
        """Note that ``step`` steps are done by now; whether the estimate has changed.

        The pace is that since the first call, which comes after compilation.
        """
        if not self._seconds:
            return False
        now = self._clock.elapsed
        if self._first is None:
            self._first = step, now
            return False
        first_step, begin = self._first
        pace = max(now - begin, 1e-9) / max(step - first_step, 1)
        self.num_steps = step + max(round((self._seconds - now) / pace), 0)
        return True
