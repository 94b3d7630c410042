"""Seconds per candidate and network evaluations of both samplers, default size, random weights.

    python -m benchmarks.sampling --inputs FOLDER_OF_BENCH_NPZ

``ccsg`` is the paper's predictor-corrector (2 evaluations a step): a few steps are timed and the
1,000 of the paper follow from the slope between two lengths, as every step costs the same. ``flow``
is timed as it is used. Crystals are drawn in batches of similar size, each pattern encoded once,
its time included. Ratios are to the reference's 1,000 steps; what fewer steps do to the match rate
is measured elsewhere, weights do not change the time.
"""

from __future__ import annotations

import json
from typing import Any

import jax
import numpy as np

from benchmarks.inputs import (
    SIZES,
    clocked,
    in_fresh_process,
    input_parser,
    load_inputs,
    parse,
    peak_gb,
    write,
)
from benchmarks.training import cut

MODULE = "benchmarks.sampling"
PAPER_STEPS = 1000


def recipe(task: str, num_steps: int, overrides: dict[str, Any], packed: Any) -> Any:
    """Return the published diffusion recipe or our flow recipe for so many steps."""
    from configs import ccsg_hmof100, flow
    from xtalnet_jax.tasks import with_statistics

    if task == "ccsg":
        config = ccsg_hmof100.get_config()
        config.diffusion.num_steps = num_steps
    else:
        config = flow.get_config()
        config.sampling.num_steps = num_steps
        config = with_statistics(config, packed.lattice, packed.num_atoms)
    with config.unlocked():
        config.update_from_flattened_dict(overrides)
    return config


def seconds(case: dict[str, Any], num_steps: int, packed: Any) -> np.ndarray:
    """Wall and processor seconds to draw one candidate for every crystal of the input."""
    from xtalnet_jax.tasks import make_generator, task_from_config

    config = recipe(case["task"], num_steps, case["overrides"], packed)
    config.pattern.source = "own"
    batches, generator = cut(packed, SIZES[case["size"]].edges), make_generator(config)
    task = task_from_config(config)
    params = jax.jit(lambda: task.init(jax.random.key(0), batches[0]))()

    def draw() -> Any:
        return [
            generator.sample(
                params,
                jax.random.key(1),
                generator.condition(params, batch.peaks),
                batch.crystals.atomic_numbers,
            )
            for batch in batches
        ]

    return np.array(clocked(draw, case["repeats"]))


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """Seconds per candidate of one case in this process."""
    packed = load_inputs(case["inputs"], case["size"])
    if case["task"] == "flow":
        total, evaluations = seconds(case, case["num_steps"], packed), case["num_steps"]
    else:
        few = case["num_steps"]
        short, long = (seconds(case, n, packed) for n in (few, 3 * few))
        slope = (long - short) / (2 * few)
        total, evaluations = short + slope * (PAPER_STEPS - few), 2 * PAPER_STEPS
    wall, processor = total / packed.num_crystals
    return {
        "evaluations": evaluations,
        "s_per_candidate": float(wall),
        "processor_s_per_candidate": float(processor),
        "peak_gb": peak_gb(),
    }


def main() -> None:
    """Measure both samplers at both sizes and write the table."""
    arguments = input_parser(__doc__, "results/sampling_speed.json")
    arguments.add_argument("--flow_steps", nargs="+", type=int, default=[10, 20, 30])
    arguments.add_argument("--timed_steps", type=int, default=2, help="and three times as many")
    args = parse(arguments, measure)
    wanted = [("ccsg", args.timed_steps), *(("flow", n) for n in args.flow_steps)]
    rows = []
    for size in args.size:
        for task, num_steps in wanted:
            case = {"task": task, "size": size, "num_steps": num_steps, "inputs": args.inputs}
            case |= {"repeats": args.repeats, "overrides": json.loads(args.set)}
            steps = PAPER_STEPS if task == "ccsg" else num_steps
            found = in_fresh_process(MODULE, case)
            reference = SIZES[size].sampling
            row = {"task": task, "size": size, "steps": steps, **found}
            rows.append(
                row | {"reference_s": reference, "ratio": reference / row["s_per_candidate"]}
            )
            print(json.dumps(rows[-1]), flush=True)
    notes = [
        f"ccsg: extrapolated to {PAPER_STEPS} steps from {args.timed_steps} and "
        f"{3 * args.timed_steps} timed ones. Random weights."
    ]
    write(args.out, "Sampling at default size", rows, notes)


if __name__ == "__main__":
    main()
