"""Match rate of single draws against network evaluations: how many steps does sampling need?

    python -m benchmarks.steps --data data/mp20_val.npz

Every crystal's pattern (simulated, Cu K-alpha, 5 to 90 degrees), composition and Z are given; the
generator draws a few candidates with every number of steps, from the same noise. Nothing is
searched, refined or ranked. One step is one evaluation of the network per candidate.
"""

from __future__ import annotations

import time

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks.inputs import parser, write
from xtalnet_jax import compilation, tasks
from xtalnet_jax.data.fixtures import load_set
from xtalnet_jax.evaluation.intervals import wilson
from xtalnet_jax.evaluation.matching import MatchPair, match_many
from xtalnet_jax.pretrained.weights import load_weights, solver_files
from xtalnet_jax.pxrd.simulate import simulate_pattern
from xtalnet_jax.solve.solver import Solver, load_solver


def with_steps(solver: Solver, num_steps: int) -> Solver:
    """Return the solver with another number of sampling steps."""
    config = ConfigDict(load_weights(solver_files(solver.name)[1])[1])
    config.sampling.num_steps = num_steps
    return solver._replace(generator=tasks.make_generator(config))


def main() -> None:
    """Draw with every number of steps, match, write the table."""
    arguments = parser(__doc__, "results/sampling_steps.json")
    arguments.add_argument("--data", required=True, help="packed validation set")
    arguments.add_argument("--weights", default="default")
    arguments.add_argument("--num_items", type=int, default=100)
    arguments.add_argument("--num_candidates", type=int, default=4)
    arguments.add_argument(
        "--steps", nargs="+", type=int, default=[2, 3, 5, 8, 12, 20, 30, 50, 100]
    )
    args = arguments.parse_args()
    compilation.use_cache()
    solver = load_solver(args.weights)
    packed = load_set(args.data, solver.max_atoms)
    chosen = np.random.default_rng(0).permutation(packed.num_crystals)[: args.num_items]
    crystals = [packed.crystal(k) for k in chosen]
    peaks = [solver.peaks_of([p]) for p in simulate_pattern(crystals)]
    rows = []
    for num_steps in args.steps:
        drawing = with_steps(solver, num_steps)
        pairs, seconds = [], 0.0
        for i, (crystal, peak) in enumerate(zip(crystals, peaks)):
            numbers, key = np.sort(crystal.atomic_numbers), jax.random.key(i)
            start = time.process_time()
            drawn = drawing.draw(peak, key, numbers, args.num_candidates)
            seconds += time.process_time() - start
            pairs += [MatchPair(str(i), k, c, crystal) for k, c in enumerate(drawn)]
        found = match_many(pairs, workers=2, timeout_s=20.0)
        row = {"steps": num_steps}
        for tolerance in ("field", "strict"):
            hits = [r for r in found if r.rmse[tolerance] is not None]
            single = wilson(len(hits), args.num_items * args.num_candidates)
            any_of = wilson(len({r.item for r in hits}), args.num_items)
            row |= {
                f"{tolerance}_single": 100 * single.value,
                f"{tolerance}_low": 100 * single.low,
                f"{tolerance}_high": 100 * single.high,
                f"{tolerance}_best_of_{args.num_candidates}": 100 * any_of.value,
                f"{tolerance}_rmse": float(np.mean([r.rmse[tolerance] for r in hits] or [np.nan])),
            }
        row["processor_s"] = seconds / args.num_items
        rows.append(row)
        print(row, flush=True)
    note = (
        f"{args.num_items} crystals of {args.data}, {args.num_candidates} candidates each; match "
        "rates in per cent with 95 % intervals of single draws (candidates of one crystal are not "
        "independent, so the true ones are wider); processor seconds for all candidates of one "
        "crystal, first calls and compilation included, rows padded to 20."
    )
    write(args.out, "Match rate against network evaluations", rows, [note])


if __name__ == "__main__":
    main()
