"""Time and memory of one training step and one evaluation of the network against size.

    python -m benchmarks.scaling

One crystal of random atoms per batch, 5 to 400 of them, generator of ``configs/ccsg_hmof100.py``
(that of ``configs/flow.py`` has the same network with ``--set '{"model.network.num_radial": 16,
"model.network.cross_attention": 2}'``). Each case runs in a fresh process: with all pairs at once,
and in blocks of ``--chunk`` offsets if the cell has so many. A case that wants more memory than
``--limit`` is compiled only, and so are all with ``--repeats=0``.
"""

from __future__ import annotations

import json
from typing import Any

import jax
import numpy as np

from benchmarks.inputs import clocked, in_fresh_process, parser, peak_gb, write
from benchmarks.training import cut, make_step, recipe
from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.data.packed import PackedSet, from_crystals

MODULE = "benchmarks.scaling"
NUM_PEAKS = 50


def random_set(num_atoms: int, num_crystals: int) -> PackedSet:
    """Random atoms in cubes of 15 cubic angstrom each, with random peaks."""
    rng = np.random.default_rng(num_atoms)
    cell = np.eye(3) * (15.0 * num_atoms) ** (1 / 3)
    crystals = [
        Crystal(rng.integers(1, 90, num_atoms), rng.random((num_atoms, 3)), cell)
        for _ in range(num_crystals)
    ]
    shape = (num_crystals, NUM_PEAKS)
    peaks = (
        np.sort(rng.uniform(0.1, 0.3, shape)),
        rng.uniform(0.05, 1.0, shape),
        np.tile([0.04, 0.5], (num_crystals, 1)),
    )
    lines = np.zeros((2, num_crystals, 1))
    ids = [str(i) for i in range(num_crystals)]
    return from_crystals(ids, crystals, (lines[0], lines[1]), peaks)


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """Time and memory of one size in this process."""
    from xtalnet_jax.tasks import make_generator

    n = case["num_atoms"]
    (batch,) = cut(random_set(n, case["batch"]), (n,))
    fields = {"model.network.width": case["width"], "model.network.chunk": case["chunk"]}
    config = recipe("ccsg", {"diffusion.num_steps": 2} | fields | case["overrides"])
    if case["what"] == "training":
        step, state = make_step(config, batch)
        batch = jax.device_put(batch)
        compiled, per_call = step.lower(state, (), batch).compile(), 1

        def advance() -> Any:
            nonlocal state
            state, metrics = compiled(state, (), batch)
            return metrics
    else:
        from xtalnet_jax.tasks import task_from_config

        generator: Any = make_generator(config)  # typed as if its functions were not compiled
        params = jax.jit(lambda: task_from_config(config).init(jax.random.key(0), batch))()
        condition = generator.condition(params, batch.peaks)
        arguments = (params, jax.random.key(1), condition, batch.crystals.atomic_numbers)
        compiled, per_call = generator.sample.lower(*arguments).compile(), 4

        def advance() -> Any:
            return compiled(*arguments)

    wanted, seconds = compiled.memory_analysis().temp_size_in_bytes / 1e9, float("nan")
    if case["repeats"] and wanted <= case["limit"]:
        seconds = clocked(advance, case["repeats"]).wall / per_call
    return {"s": seconds, "temporary_gb": wanted, "peak_gb": peak_gb()}


def main() -> None:
    """Measure all sizes and write the table."""
    arguments = parser(__doc__, "results/scaling.json")
    arguments.add_argument(
        "--num_atoms", nargs="+", type=int, default=[5, 10, 20, 50, 100, 200, 400]
    )
    arguments.add_argument("--width", type=int, default=512)
    arguments.add_argument("--batch", type=int, default=1, help="crystals")
    arguments.add_argument("--what", nargs="+", default=["training", "sampling"])
    arguments.add_argument("--chunk", type=int, default=16, help="offsets of pairs in a block")
    arguments.add_argument("--limit", type=float, default=14.0, help="GB of temporary memory")
    arguments.add_argument("--set", default="{}", help="recipe fields to change, as JSON")
    args = arguments.parse_args()
    if args.case:
        print(json.dumps(measure(json.loads(args.case))))
        return
    shared = {k: getattr(args, k) for k in ("width", "batch", "repeats", "limit")}
    shared["overrides"] = json.loads(args.set)
    rows = []
    for num_atoms in args.num_atoms:
        for what in args.what:
            for chunk in (None, args.chunk):
                if chunk is None or (num_atoms - 1) // 2 >= chunk:
                    case = {"what": what, "num_atoms": num_atoms, "chunk": chunk}
                    found = in_fresh_process(MODULE, case | shared)
                    shown = case | {k: shared[k] for k in ("width", "batch")}
                    rows.append(shown | found)
                    print(json.dumps(rows[-1]), flush=True)
    notes = [
        "s: of one training step, or of one evaluation of the network in the paper's sampler "
        "(2 steps, 4 evaluations with their share of everything else, timed and divided); nan: "
        "not run.",
        "temporary_gb: what the compiled program says it needs beside its arguments; peak_gb: the "
        "most that the process held, compilation included.",
    ]
    write(args.out, "Time and memory against size", rows, notes)


if __name__ == "__main__":
    main()
