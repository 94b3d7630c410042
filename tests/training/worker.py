"""Trains the toy in a process of its own: ``worker.py workdir config.json [task]``."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from tests.training import toy
from xtalnet_jax.training.parallel import initialize_processes


def main() -> None:
    workdir, settings, task = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
    slow = settings.pop("_seconds_per_batch", 0.0)
    source = toy.Source(**settings.pop("_source", {}))
    initialize_processes(heartbeat_seconds=10)
    import numpy as np

    from xtalnet_jax.training.loop import train

    if slow:
        quick = source.batch

        def batch(step):
            time.sleep(slow)
            return quick(step)

        source.batch = batch
    state = train(getattr(toy, task), source, settings, workdir)
    import jax

    leaves = [np.asarray(x) for x in jax.tree.leaves((state.params, state.ema_params))]
    np.savez(workdir / f"final-{jax.process_index()}.npz", *leaves, step=state.step)


if __name__ == "__main__":
    main()
