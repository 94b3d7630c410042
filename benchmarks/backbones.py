"""CSPNet and the transformer over atoms, from scratch on the same data for the same time.

    python -m benchmarks.backbones --seconds 3600 --pin \
        --set '{"model.encoder.dtype": "bfloat16", "model.network.dtype": "bfloat16"}'

Each backbone of ``configs/flow.py`` is trained in a fresh process: a few hundred steps first to
learn its pace, then a new run of as many steps as fit into the time, so that its learning rate has
come down to 0 at the end. The table holds the losses of the averaged parameters
on the validation crystals along the way, with the same noise for both. Seconds are of training
alone. With ``--pin`` the runs go side by side on one core each, otherwise one after the other on
all cores. The weights stay in ``WORKDIR/KIND/run``, for `launch.evaluate`.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from benchmarks.inputs import in_fresh_process, write

MODULE = "benchmarks.backbones"
VARIANTS = {"cspnet": "", "transformer": "transformer"}
LOSSES = ("loss", "loss_coord", "loss_lattice")


def recipe(case: dict[str, Any]) -> Any:
    """Return ``configs/flow.py`` with the backbone, sets and overrides of one case."""
    from configs import flow

    config = flow.get_config(",".join([case["variant"], VARIANTS[case["kind"]]]))
    with config.unlocked():
        config.update_from_flattened_dict(case["overrides"])
    config.train.update({"num_epochs": 0, "checkpoint_format": "npz", "tensorboard": False})
    for split in ("train", "eval"):
        config.data[split] = case[split] or config.data[split]
    return config


def seconds_per_step(config: Any, folder: Path, num_steps: int) -> float:
    """Train for ``num_steps`` and time the second half, by when every shape is compiled."""
    from xtalnet_jax.experiment import run
    from xtalnet_jax.training.metrics_log import read_metrics

    config = config.copy_and_resolve_references()
    config.train.update({"num_steps": num_steps, "log_every": num_steps // 2, "eval_every": 0})
    config.train.optim.warmup_epochs = 0.0
    run(config, folder)
    begin, end = read_metrics(folder / "metrics.jsonl")[:2]
    return (end["time"] - begin["time"]) / (end["step"] - begin["step"])


def curve(records: list[dict[str, Any]], num_crystals: int, pace: float) -> list[dict[str, Any]]:
    """Return the evaluations of a run with the crystals and seconds of training before each.

    An interval of training lasts from the record before, which may be of an evaluation, to its own
    record; the first one has none before and is taken as long as ``pace`` says.
    """
    points, seconds, epoch, begin = [], 0.0, 0.0, None
    for record in records:
        if record["split"] == "train":
            seconds += pace * record["step"] if begin is None else record["time"] - begin
            epoch = record["epoch"]
        else:
            point = {"step": record["step"], "crystals": round(epoch * num_crystals)}
            points.append(point | {"seconds": seconds} | {k: record[k] for k in LOSSES})
        begin = record["time"]
    return points


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """Train one backbone in this process."""
    from xtalnet_jax.compilation import use_cache
    from xtalnet_jax.data.fixtures import load_set
    from xtalnet_jax.experiment import run
    from xtalnet_jax.training.metrics_log import read_metrics

    use_cache()
    config, folder = recipe(case), Path(case["workdir"])
    pace = seconds_per_step(config, folder / "pace", case["pace_steps"])
    num_steps = max(round(case["seconds"] / pace), case["evaluations"])
    log_every = max(num_steps // (10 * case["evaluations"]), 1)
    config.train.update(
        {"num_steps": num_steps, "log_every": log_every, "eval_every": 10 * log_every}
    )
    config.train.optim.update({"warmup_epochs": 0.0, "warmup_steps": num_steps // 20})
    begin = time.process_time()
    # The number of steps is what ends the run; the clock only guards against a stalled machine.
    limit = 2 * case["seconds"] + 1800
    params = run(config, folder / "run", stop_after_seconds=limit)
    processor = time.process_time() - begin
    num_crystals = load_set(config.data.train, max(config.data.num_atoms_buckets)).num_crystals
    points = curve(read_metrics(folder / "run" / "metrics.jsonl"), num_crystals, pace)
    if not points or points[-1]["step"] < num_steps:
        raise RuntimeError(
            f"{case['kind']} did not get through its {num_steps} steps in {limit:.0f} s, so its "
            "learning rate is not at its end and nothing can be compared; is the machine busy?"
        )
    sizes = {k: sum(x.size for x in jax.tree.leaves(v)) for k, v in params["params"].items()}
    return {
        "points": points,
        "parameters": sum(sizes.values()),
        "backbone_parameters": sizes["decoder"],
        "s_per_step": pace,
        "num_steps": num_steps,
        "processor_s": processor,
    }


def summary(kind: str, found: dict[str, Any]) -> str:
    """One sentence on a finished run, for the notes."""
    return (
        f"{kind}: {found['parameters']:,} parameters ({found['backbone_parameters']:,} in the "
        f"backbone), {found['s_per_step']:.4f} s a step at first, {found['num_steps']:,} steps in "
        f"{found['points'][-1]['seconds']:.0f} s ({found['processor_s']:.0f} s of processor time, "
        "evaluation and compilation included)."
    )


def compare(cases: Sequence[dict[str, Any]], pin: bool) -> list[dict[str, Any]]:
    """Measure all cases, side by side on a core each or one after the other."""
    cores = sorted(os.sched_getaffinity(0))
    if pin and len(cores) < len(cases):
        raise ValueError(f"--pin needs {len(cases)} cores, this process may use {len(cores)}")

    def one(numbered: tuple[int, dict[str, Any]]) -> dict[str, Any]:
        number, case = numbered
        if pin:  # of this thread, which the process that it starts inherits
            os.sched_setaffinity(0, {cores[number]})
        return in_fresh_process(MODULE, case)

    with ThreadPoolExecutor(len(cases) if pin else 1) as pool:
        return list(pool.map(one, enumerate(cases)))


def main() -> None:
    """Train both and write the table."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--seconds", type=float, default=3600, help="of training, for each")
    arguments.add_argument("--pin", action="store_true", help="side by side, one core each")
    arguments.add_argument("--kind", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    arguments.add_argument("--variant", default="cpu", help="of configs/flow.py: cpu or smoke")
    arguments.add_argument("--train", default="", help="packed set; default: the recipe's")
    arguments.add_argument("--eval", default="", help="packed set; default: the recipe's")
    arguments.add_argument("--set", default="{}", help="recipe fields to change, as JSON")
    arguments.add_argument("--evaluations", type=int, default=12, help="about how many")
    arguments.add_argument("--pace_steps", type=int, default=400, help="to learn the pace with")
    arguments.add_argument("--workdir", type=Path, default=Path("runs/backbones"))
    arguments.add_argument("--out", type=Path, default=Path("results/backbones.json"))
    arguments.add_argument("--case", help=argparse.SUPPRESS)  # one case, in a fresh process
    args = arguments.parse_args()
    if args.case:
        print(json.dumps(measure(json.loads(args.case))))
        return
    names = ("seconds", "variant", "train", "eval", "evaluations", "pace_steps")
    common = {name: getattr(args, name) for name in names} | {"overrides": json.loads(args.set)}
    folders = [args.workdir / kind for kind in args.kind]
    if taken := [str(f) for f in folders if f.exists()]:
        arguments.error(f"{', '.join(taken)} exists, and a run there would go on; move it away")
    cases = [{"kind": k, "workdir": str(f), **common} for k, f in zip(args.kind, folders)]
    found = compare(cases, args.pin)
    rows = [{"backbone": k} | point for k, f in zip(args.kind, found) for point in f["points"]]
    notes = [summary(kind, f) for kind, f in zip(args.kind, found)]
    write(args.out, "Two backbones for the same time", rows, notes)


if __name__ == "__main__":
    main()
