"""The imperative shell: files, clocks, signals and the loop over steps.

A run is determined by its config, source and seed. Killing it at any moment and starting it again
with the same working directory leads, on the same machine, to bit-identical parameters; not so a
run of ``num_seconds``, whose learning rate follows the clock.
"""

from __future__ import annotations

import functools
import io
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np
from ml_collections import ConfigDict

from xtalnet_jax.training import checkpoint
from xtalnet_jax.training.batches import CountFn, leading_rows, read_chunks, resident_of
from xtalnet_jax.training.config import complete_config, total_steps
from xtalnet_jax.training.evaluate import make_evaluator
from xtalnet_jax.training.length import Length
from xtalnet_jax.training.metrics_log import MetricsLog
from xtalnet_jax.training.optim import frozen_mask, make_optimizer, make_schedule
from xtalnet_jax.training.parallel import Parallel, make_parallel
from xtalnet_jax.training.progress import Clock, Interrupt, Progress
from xtalnet_jax.training.reporter import Reporter
from xtalnet_jax.training.state import TrainState, averaged_params, init_state
from xtalnet_jax.training.steps import TrainStep, make_train_step, scan_steps
from xtalnet_jax.training.task import BatchSource, ResidentSource, Task
from xtalnet_jax.types import Params, PyTree

__all__ = ["train"]

EvaluateFn = Callable[[Params, int], dict[str, float]]
PrepareFn = Callable[[Params, Callable[[str], None]], tuple[BatchSource, BatchSource | None]]


def train(
    task: Task,
    source: BatchSource,
    config: Mapping[str, Any] | ConfigDict,
    workdir: str | Path,
    eval_source: BatchSource | None = None,
    stop_after_seconds: float | None = None,
    *,
    count_fn: CountFn = leading_rows,
    initialize: Callable[[Params], Params] | None = None,
    evaluate_fn: EvaluateFn | None = None,
    prepare: PrepareFn | None = None,
    record: Mapping[str, Any] | None = None,
    stream: TextIO | io.TextIOBase | None = sys.stderr,
) -> TrainState:
    """Train, or go on training, and return the state on the host.

    ``workdir`` receives ``config.json``, ``metrics.jsonl``, ``tensorboard/`` and ``checkpoints/``;
    where it holds checkpoints the run resumes from the latest. SIGINT and SIGTERM end the run after
    the step in work with a checkpoint, as does the time limit.

    Args:
        task: what to minimise.
        source: training batches; see :class:`xtalnet_jax.training.task.BatchSource`.
        config: fields of :func:`xtalnet_jax.training.config.default_config`.
        workdir: of this run, on a file system that all processes share.
        eval_source: its first ``num_steps_per_epoch`` batches are evaluated every ``eval_every``
            steps and at the end.
        stop_after_seconds: from this call, compilation included.
        count_fn: rows of a batch that count, for the rate and for weighing the evaluation.
        initialize: turns freshly drawn parameters into those to start from (a pretrained encoder).
        evaluate_fn: further metrics of ``(averaged parameters, step)`` at each evaluation, called
            on the main process only.
        prepare: makes of the parameters of the first step the two sources that are read in place
            of those given, with what depends on frozen parameters alone computed beforehand; the
            second argument prints a line.
        record: stored in every checkpoint (the config of the model, say).
        stream: where the progress goes; None is nowhere.

    Returns:
        The final state; its ``step`` tells whether the run was completed.

    Raises:
        ValueError: bad config, or checkpoints of another run in ``workdir``.
        NonFiniteError: a metric or a parameter is not finite. No later checkpoint is written.
        RuntimeError: another process of the run was lost.
    """
    clock, cfg, root = Clock(), complete_config(config), Path(workdir) / "checkpoints"
    parallel = make_parallel(cfg.parallel)
    per_epoch = source.num_steps_per_epoch
    if per_epoch < 1:
        raise ValueError("the training source has no batches; use more data or smaller batches")
    schedule = make_schedule(cfg.optim, total_steps(cfg, per_epoch), per_epoch)
    step_fn, fresh, shapes = _functions(task, source, cfg, schedule, parallel, initialize)

    restored = checkpoint.restore(root, shapes)
    state, meta = restored if restored is not None else (fresh(), None)
    start = int(state.step)
    parallel.require_same(start, "the step to resume from")
    if cfg.num_seconds and parallel.num_processes > 1:
        raise ValueError("num_seconds is for one process: the clocks of several differ")
    length = Length(cfg, per_epoch, start, clock)
    state = state._replace(num_steps=np.int32(length.num_steps))

    progress = Progress(stream if parallel.is_main else None, task.name, length.num_steps)
    about = _about(task, cfg, record)
    if meta is not None:
        _compare(about, meta, root, progress)
        progress.say(f"resumed {task.name} from step {start}")
    if start >= length.num_steps:
        return state
    if prepare is not None:
        source, eval_source = prepare(state.params, progress.say)
    log = MetricsLog(Path(workdir), start, cfg.tensorboard) if parallel.is_main else None
    if parallel.is_main:
        (Path(workdir) / "config.json").write_text(json.dumps(about, indent=1))
    reporter = Reporter(parallel.fetch, log, progress, clock, per_epoch)
    evaluator = None
    if eval_source is not None and cfg.eval_every:
        evaluator = make_evaluator(task, eval_source, parallel, seed=cfg.seed, count_fn=count_fn)
    run = _Run(cfg, parallel, root, about, reporter, evaluator, evaluate_fn)
    chunks = read_chunks(
        source,
        parallel,
        start,
        length.num_steps,
        group=cfg.steps_per_dispatch,
        depth=cfg.prefetch,
        count_fn=count_fn,
    )
    run_many = parallel.compile(scan_steps(step_fn), donate=(0,))
    resident = parallel.replicate(resident_of(source)[0])
    state = parallel.replicate(state)
    kinds = source.kinds() if isinstance(source, ResidentSource) else []
    if kinds:
        progress.say(f"compiling for {len(kinds)} sizes of batches")
    arguments = [(state, resident, parallel.shard([kind])) for kind in kinds]
    run_one = parallel.compile_ahead(step_fn, arguments, donate=(0,))
    if kinds:
        progress.say(f"compiled after {clock.elapsed:.0f} s")
    step = start
    try:
        with Interrupt() as interrupt:
            for chunk in chunks:
                for first, number, batch in chunk.parts:
                    advance = run_many if number > 1 else run_one
                    state, metrics = advance(state, resident, batch)
                    reporter.flush()  # the interval before, now that the devices have work again
                    reporter.push(first, metrics)
                if step == start:
                    reporter.begin(chunk.stop)
                else:
                    reporter.count(chunk.rows)
                step = chunk.stop
                if step % cfg.log_every == 0 and length.observe(step):
                    progress.num_steps = length.num_steps
                    state = state._replace(num_steps=parallel.replicate(np.int32(length.num_steps)))
                last = step >= length.num_steps
                if last or step % cfg.log_every == 0:
                    reporter.schedule(step)
                over = stop_after_seconds is not None and clock.elapsed >= stop_after_seconds
                stop = run.boundary(state, step, last, interrupt.signal is not None or over)
                if last:
                    break
                if stop:
                    why = interrupt.signal or ("the time limit" if over else "another process")
                    progress.say(f"stopped by {why} after step {step}; checkpoint written")
                    break
    except jax.errors.JaxRuntimeError as error:
        if parallel.num_processes == 1:
            raise
        raise RuntimeError(
            f"lost contact with another process of the run after step {step}; the latest "
            f"checkpoint is step {checkpoint.latest_step(root)}; start all processes again with "
            "the same workdir to go on from there"
        ) from error
    finally:
        chunks.close()
        progress.close()
        if log is not None:
            log.close()
    return parallel.fetch(state)


class _Run:
    """What happens between steps: evaluation, checkpoints, and the decision to stop."""

    def __init__(
        self,
        cfg: ConfigDict,
        parallel: Parallel,
        root: Path,
        about: dict,
        reporter: Reporter,
        evaluator: Callable[[Params], dict[str, float]] | None,
        evaluate_fn: EvaluateFn | None,
    ):
        self.cfg, self.parallel, self.root, self.about = cfg, parallel, root, about
        self.reporter, self.evaluator, self.evaluate_fn = reporter, evaluator, evaluate_fn
        self.best = checkpoint.best_metric(root)
        self.saved_at = reporter.clock.elapsed

    def boundary(self, state: TrainState, step: int, last: bool, stop: bool) -> bool:
        """Do what is due after ``step``; whether to stop, on which all processes agree."""
        cfg = self.cfg
        late = 0 < cfg.checkpoint_every_seconds <= self.reporter.clock.elapsed - self.saved_at
        if self.parallel.num_processes > 1:
            logged = last or step % cfg.log_every == 0
            stop, late = self.parallel.agree((stop, late)) if logged else (False, False)
        metric = None
        if self.evaluator is not None and (last or step % cfg.eval_every == 0):
            metric = self.evaluate(state, step)
        better = metric is not None and metric < self.best
        due = cfg.checkpoint_every_steps and step % cfg.checkpoint_every_steps == 0
        if last or stop or late or due or better:
            self.save(state, step, metric)
        if metric is not None:
            self.best = min(self.best, metric)
        return stop

    def evaluate(self, state: TrainState, step: int) -> float:
        """Log the metrics of the averaged parameters; the one that ranks checkpoints."""
        with self.reporter.paused():
            params = averaged_params(state)
            values = self.evaluator(params)
            if self.evaluate_fn is not None and self.parallel.is_main:
                values |= self.evaluate_fn(self.parallel.fetch(params), step)
            self.reporter.write(step, "eval", values)
        name = self.cfg.best_metric.removeprefix("-")
        if name not in values and self.parallel.is_main:
            raise ValueError(f"best_metric={name!r} is not one of {', '.join(values)}")
        sign = -1 if self.cfg.best_metric.startswith("-") else 1
        return sign * float(values.get(name, float("inf")))

    def save(self, state: TrainState, step: int, metric: float | None) -> None:
        """Write a checkpoint, after every metric up to here was seen to be finite."""
        with self.reporter.paused():
            host = self.parallel.fetch(state)
            if self.parallel.is_main:
                checkpoint.save(
                    self.root,
                    host,
                    self.about,
                    format=self.cfg.checkpoint_format,
                    keep=self.cfg.checkpoint_keep,
                    metric=metric,
                    part_bytes=int(self.cfg.checkpoint_part_mib * 2**20),
                )
        self.saved_at = self.reporter.clock.elapsed


def _functions(
    task: Task,
    source: BatchSource,
    cfg: ConfigDict,
    schedule: Callable,
    parallel: Parallel,
    initialize: Callable[[Params], Params] | None,
) -> tuple[TrainStep, Callable[[], TrainState], TrainState]:
    """The step, a function that makes the first state, and the shapes of a state."""
    resident, gather = resident_of(source)
    example = source.batch(0)

    def init(key: jax.Array, resident: PyTree, batch: PyTree) -> Params:
        return task.init(key, batch if gather is None else gather(resident, batch))

    # A key that no step uses: steps fold in their number, which is never negative.
    arguments = (jax.random.key(cfg.seed), resident, example)
    shapes = jax.eval_shape(init, *arguments)
    frozen = frozen_mask(shapes, cfg.freeze)
    tx = make_optimizer(cfg, frozen)
    first_state = functools.partial(init_state, tx=tx, ema=cfg.ema_decay > 0)

    def fresh() -> TrainState:
        params = jax.jit(init)(*arguments)
        if initialize is not None:
            params = initialize(params)
            got = jax.tree.map(lambda x: (x.shape, x.dtype), params)
            if got != jax.tree.map(lambda x: (x.shape, x.dtype), shapes):
                raise ValueError("initialize changed the shapes or names of the parameters")
        return jax.device_get(jax.jit(first_state)(params))

    step = make_train_step(
        task,
        tx,
        schedule,
        frozen,
        seed=cfg.seed,
        ema_decay=cfg.ema_decay,
        accumulate=cfg.accumulate,
        gather=gather,
        axis_name=parallel.axis_name,
    )
    return step, fresh, jax.eval_shape(first_state, shapes)


def _about(task: Task, cfg: ConfigDict, record: Mapping[str, Any] | None) -> dict:
    """What a checkpoint says of itself, as plain json."""
    if isinstance(record, ConfigDict):
        record = record.to_dict()
    about = {
        "task": task.name,
        "seed": cfg.seed,
        "config": cfg.to_dict(),
        "record": record,
        "versions": checkpoint.versions(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "command": [os.path.basename(sys.argv[0]), *sys.argv[1:]],
    }
    return json.loads(json.dumps(about, default=str))


def _compare(about: dict, meta: dict, root: Path, progress: Progress) -> None:
    for name in ("task", "seed"):
        if meta.get(name) != about[name]:
            raise ValueError(
                f"{root} holds a run with {name}={meta.get(name)!r}, not {about[name]!r}; "
                "use another workdir"
            )
    old, new = _leaves(meta.get("config", {})), _leaves(about["config"])
    changed = sorted(name for name in old.keys() | new if old.get(name) != new.get(name))
    if changed:
        told = ", ".join(f"{name} {old.get(name)} -> {new.get(name)}" for name in changed)
        progress.say(f"resuming with changed settings: {told}")


def _leaves(tree: dict, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= (
            _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return found
