"""Speed and memory of the training step at default size, against the reference implementation.

    python -m benchmarks.training --inputs FOLDER_OF_BENCH_NPZ

Runs forward, backward and Adam of both published recipes (``configs/cpcp_hmof100.py`` and
``configs/ccsg_hmof100.py``, networks 512 wide) on the reference's own two input batches, each case
in a fresh process. ``buckets`` cuts the crystals into batches of similar size, as training does by
default (a rate is all crystals over the time of all batches). ``mixed`` puts them all into one
batch with one update, each padded to the size of its bucket and none of its peaks padded, as
training does with ``data.mixed`` and ``model.encoder.room``. ``one batch`` pads them all to the
largest. CCSG's encoder is frozen and reads the data set's own patterns: a step of ``ccsg`` encodes
them all the same, as the reference's does; one of ``ccsg, encoded`` has them encoded beforehand, as
training does.
Ratios are to the reference's figures in `benchmarks.inputs`.
"""

from __future__ import annotations

import json
from typing import Any

import jax
import numpy as np

from benchmarks import machine
from benchmarks.inputs import (
    REFERENCE_PEAK_GB,
    SIZES,
    clocked,
    in_fresh_process,
    input_parser,
    load_inputs,
    parse,
    peak_gb,
    write,
)
from xtalnet_jax.data.batches import BucketedBatches, MixedBatches
from xtalnet_jax.data.packed import PackedSet
from xtalnet_jax.experiment import encode_patterns
from xtalnet_jax.tasks import pattern_encoder
from xtalnet_jax.training.parallel import make_parallel

MODULE = "benchmarks.training"


def recipe(task: str, overrides: dict[str, Any]) -> Any:
    """Return the published recipe; ``overrides`` maps dotted names to values."""
    from configs import ccsg_hmof100, cpcp_hmof100

    config = {"ccsg": ccsg_hmof100, "cpcp": cpcp_hmof100}[task].get_config()
    with config.unlocked():
        config.update_from_flattened_dict(overrides)
    return config


def pure_step(config: Any, example: Any) -> tuple[Any, Any]:
    """Return the training step of a recipe, not compiled, and its first state."""
    from xtalnet_jax.tasks import task_from_config
    from xtalnet_jax.training.config import complete_config
    from xtalnet_jax.training.optim import frozen_mask, make_optimizer, make_schedule
    from xtalnet_jax.training.state import init_state
    from xtalnet_jax.training.steps import make_train_step

    task, train = task_from_config(config), complete_config(config.train)
    key = jax.random.key(0)
    frozen = frozen_mask(jax.eval_shape(task.init, key, example), train.freeze)
    tx, schedule = make_optimizer(train, frozen), make_schedule(train.optim, 10_000, 10)
    state = jax.jit(lambda: init_state(task.init(key, example), tx, False, 10_000))()
    return make_train_step(task, tx, schedule, frozen), state


def make_step(config: Any, example: Any) -> tuple[Any, Any]:
    """`pure_step` compiled as in training, state donated."""
    step, state = pure_step(config, example)
    return make_parallel("jit").compile(step, donate=(0,)), state


def cut(packed: PackedSet, edges: tuple[int, ...], layout: str = "buckets") -> list[Any]:
    """Cut the set into one batch for each bucket of sizes, or into a single one."""
    if layout == "mixed":
        return [MixedBatches(packed, edges, batch_size=packed.num_crystals).batch(0)]
    if layout == "one batch":
        edges = (int(packed.num_atoms.max()),)
    members = np.bincount(np.searchsorted(edges, packed.num_atoms), minlength=len(edges))
    rows = {n: max(int(m), 1) for n, m in zip(edges, members)}
    source = BucketedBatches(packed, edges, batch_sizes=rows, shuffle=False)
    return [source.batch(i) for i in range(source.num_steps_per_epoch)]


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """Time the steps of one case in this process."""
    packed = load_inputs(case["inputs"], case["size"])
    edges = SIZES[case["size"]].edges
    batches = cut(packed, edges, case["layout"])
    task, encoded = case["task"].split(",")[0], "encoded" in case["task"]
    overrides = dict(case["overrides"])
    if case["layout"] == "mixed":  # room for every peak
        overrides["model.encoder.room"] = float((packed.peaks_strength > 0).sum(1).mean())
    config = recipe(task, overrides)
    step, state = pure_step(config, batches[0])
    if encoded:
        patterns = encode_patterns(pattern_encoder(config), state.params, packed)
        batches = [b._replace(pattern=patterns[np.maximum(b.index, 0)]) for b in batches]
    step = make_parallel("jit").compile_ahead(step, [], donate=(0,))
    wall = processor = 0.0
    losses = []
    for batch in map(jax.device_put, batches):

        def advance(batch: Any = batch) -> Any:
            nonlocal state
            state, metrics = step(state, (), batch)
            return metrics

        losses.append(float(advance()["loss"]))
        time = clocked(advance, case["repeats"], warm_up=0)
        wall, processor = wall + time.wall, processor + time.processor
    if not np.isfinite(losses).all():
        raise RuntimeError(f"the losses {losses} are not finite")
    return {
        "crystals_per_s": packed.num_crystals / wall,
        "processor_s_per_crystal": processor / packed.num_crystals,
        "peak_gb": peak_gb(),
    }


def main() -> None:
    """Measure all cases and write the table."""
    arguments = input_parser(__doc__, "results/training_speed.json")
    arguments.add_argument("--task", nargs="+", default=["ccsg", "ccsg, encoded", "cpcp"])
    arguments.add_argument("--layout", nargs="+", default=["mixed", "buckets", "one batch"])
    args = parse(arguments, measure)
    rows, notes = [], [machine.note(args.repeats)]
    for task in args.task:
        for size in args.size:
            for layout in args.layout:
                case = {"task": task, "size": size, "layout": layout, "inputs": args.inputs}
                case |= {"repeats": args.repeats, "overrides": json.loads(args.set)}
                found = in_fresh_process(MODULE, case)
                reference = SIZES[size].training[task.split(",")[0]]
                row = {"task": task, "size": size, "layout": layout, **found}
                row["reference_crystals_per_s"] = reference
                row["ratio"] = found["crystals_per_s"] / reference
                rows.append(row)
                print(json.dumps(row), flush=True)
    notes += [
        "Memory is the peak of the whole process, compilation included; "
        f"the reference's CPCP step takes {REFERENCE_PEAK_GB} GB."
    ]
    write(args.out, "Training step at default size", rows, notes)


if __name__ == "__main__":
    main()
