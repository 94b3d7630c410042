"""Metrics of a task over all batches of a source."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from xtalnet_jax.training.batches import CountFn, leading_rows, read_chunks, resident_of
from xtalnet_jax.training.parallel import Parallel
from xtalnet_jax.training.steps import make_eval_step
from xtalnet_jax.training.task import BatchSource, Task
from xtalnet_jax.types import Params

__all__ = ["make_evaluator"]


def make_evaluator(
    task: Task,
    source: BatchSource,
    parallel: Parallel,
    *,
    seed: int = 0,
    count_fn: CountFn = leading_rows,
) -> Callable[[Params], dict[str, float]]:
    """``evaluate(params) -> metrics`` of the first ``num_steps_per_epoch`` batches of ``source``.

    Batches weigh as many rows as ``count_fn`` says. Every call sees the same batches and the same
    random numbers, so differences between calls are differences between parameters.

    Args:
        task: its loss is called with ``train=False``.
        source: what to evaluate on.
        parallel: where; ``params`` must come from its ``replicate``.
        seed: of the random numbers.
        count_fn: rows of a batch that count.
    """
    resident, gather = resident_of(source)
    resident = parallel.replicate(resident)
    step = parallel.compile(
        make_eval_step(task, seed=seed, gather=gather, axis_name=parallel.axis_name)
    )

    def evaluate(params: Params) -> dict[str, float]:
        waiting, rows = [], []
        for chunk in read_chunks(
            source, parallel, 0, source.num_steps_per_epoch, count_fn=count_fn
        ):
            ((index, _, batch),) = chunk.parts
            waiting.append(step(params, parallel.replicate(np.int32(index)), resident, batch))
            rows.append(chunk.rows)
        fetched = parallel.fetch(waiting)
        if not fetched or sum(rows) == 0:
            raise ValueError("the evaluation source has no rows")
        return {
            name: float(np.average([float(metrics[name]) for metrics in fetched], weights=rows))
            for name in fetched[0]
        }

    return evaluate
