"""What finished training runs cost and reached: rate, FLOP, losses on the way and held out.

    python -m benchmarks.runs --run runs/flow --train data/mp20_train.npz --eval data/mp20_val.npz

Reads ``metrics.jsonl`` and ``weights.safetensors`` of each run folder; ``--train`` and ``--eval``
replace the sets of its recipe, where these lie elsewhere now. FLOP are those of the matrix products
of the traced step (`benchmarks.accelerator.matmul_flop`), averaged over the sizes of batches as
they occur. Losses of the averaged weights on both sets are taken with the same noise, on at most
``--num_eval`` crystals of each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks.accelerator import matmul_flop
from benchmarks.inputs import parser, write
from benchmarks.training import make_step
from xtalnet_jax import compilation, experiment, tasks
from xtalnet_jax.data.batches import BucketedBatches, count_crystals
from xtalnet_jax.data.fixtures import load_set
from xtalnet_jax.data.packed import PackedSet
from xtalnet_jax.pretrained.weights import load_weights
from xtalnet_jax.training.evaluate import make_evaluator
from xtalnet_jax.training.metrics_log import read_metrics
from xtalnet_jax.training.parallel import make_parallel

LOSSES = ("loss_coord", "loss_lattice")
PARTS = 4  # of a run, at whose ends the training losses are shown


def flop_per_crystal(config: ConfigDict, packed: PackedSet) -> float:
    """Matrix-product FLOP of a training step over the crystals in it, mean of an epoch."""
    source = experiment.batches(config, packed, shuffle=False)
    assert isinstance(source, BucketedBatches)
    by_size: dict[int, list[int]] = {}
    for step in range(source.num_steps_per_epoch):
        by_size.setdefault(source.indices(step)[0], []).append(step)
    step_fn, state = make_step(config, jax.tree.map(lambda x: x[:1], source.batch(0)))
    total = 0.0
    for steps in by_size.values():
        example = source.batch(steps[0])
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), example)
        total += len(steps) * matmul_flop(jax.make_jaxpr(step_fn)(state, (), shapes))
    return total / packed.num_crystals


def losses(config: ConfigDict, params: Any, packed: PackedSet, num: int) -> dict[str, float]:
    """Losses on ``num`` crystals drawn from the set with seed 0, without training effects."""
    rows = np.sort(np.random.default_rng(0).permutation(packed.num_crystals)[:num])
    source = experiment.batches(config, packed.select(rows), shuffle=False)
    parallel = make_parallel()
    evaluate = make_evaluator(
        tasks.task_from_config(config), source, parallel, count_fn=count_crystals
    )
    return evaluate(parallel.replicate(params))


def rows_of(folder: Path, train: str, held_out: str, num_eval: int) -> list[dict[str, Any]]:
    """One row for each part of the run; the last one has the losses of the averaged weights."""
    params, recipe = load_weights(folder)
    config = ConfigDict(recipe)
    config.model.encoder.dtype = config.model.network.dtype = "float32"  # of the evaluation
    sets = [load_set(s, max(config.data.num_atoms_buckets)) for s in (train, held_out)]
    records = [r for r in read_metrics(folder / "metrics.jsonl") if r["split"] == "train"]
    flop = flop_per_crystal(config, sets[0])
    rate = float(np.median([r["rows_per_s"] for r in records]))
    ends = [records[round(k * (len(records) - 1) / PARTS)] for k in range(1, PARTS + 1)]
    rows = []
    for end in ends:
        crystals = end["epoch"] * sets[0].num_crystals
        row = {"run": folder.name, "crystals": round(crystals), "seconds": crystals / rate}
        row |= {"crystals_per_s": rate, "gflop_each": flop / 1e9, "tflop_per_s": flop * rate / 1e12}
        rows.append(row | {k: end[k] for k in LOSSES} | {f"{k}_train_set": "" for k in LOSSES})
        rows[-1] |= {f"{k}_held_out": "" for k in LOSSES}
    for name, packed in zip(("train_set", "held_out"), sets):
        found = losses(config, params, packed, num_eval)
        rows[-1] |= {f"{k}_{name}": found[k] for k in LOSSES}
    return rows


def main() -> None:
    """Read the runs, evaluate their weights, write the table."""
    arguments = parser(__doc__, "results/runs.json")
    arguments.add_argument("--run", nargs="+", type=Path, required=True, help="run folders")
    arguments.add_argument("--train", nargs="+", required=True, help="packed set of each run")
    arguments.add_argument("--eval", nargs="+", required=True, help="held-out set of each run")
    arguments.add_argument("--num_eval", type=int, default=256)
    arguments.add_argument("--device", default="", help="what the runs were made on, for the note")
    args = arguments.parse_args()
    compilation.use_cache()
    rows = []
    for folder, train, held_out in zip(args.run, args.train, args.eval, strict=True):
        rows += rows_of(folder, train, held_out, args.num_eval)
    notes = [f"Trained on {args.device}."] if args.device else []
    write(args.out, "Training runs", rows, notes)


if __name__ == "__main__":
    main()
