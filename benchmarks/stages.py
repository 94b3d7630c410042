"""What the stages of the search find, each given what the one before should have found.

    python -m benchmarks.stages --data=data/mp20_val.npz --patterns=clean
    python -m benchmarks.stages --data=data/mp20_val.npz --patterns=laboratory

*Indexing*: is the right cell the first, or among the first four, near guesses of the generator?
*Structure*: with the right cell and contents, is the cheapest explanation, or one of the ten
cheapest, the right structure? The crystals are those of ``launch.evaluate`` with the same
``--item_seed`` and ``--skip``.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import inputs
from xtalnet_jax import compilation, load_solver
from xtalnet_jax.crystals.reduction import niggli_transform
from xtalnet_jax.data import packed
from xtalnet_jax.direct_space.structure_search import search_structures
from xtalnet_jax.evaluation.matching import MatchPair, match_many
from xtalnet_jax.indexing import indexing
from xtalnet_jax.pxrd.kalpha import single_wavelength
from xtalnet_jax.solve import assess, report_card
from xtalnet_jax.solve.search import aligned
from xtalnet_jax.solve.solver import Solver

NUM_LOOKED_AT = 10


def same_cell(a: np.ndarray, b: np.ndarray, tolerance: float = 0.01) -> bool:
    """Whether two lattices have the same Niggli-reduced lengths and the same volume."""
    first, second = (np.sort(np.linalg.norm(niggli_transform(x) @ x, axis=1)) for x in (a, b))
    ratio = abs(np.linalg.det(a) / np.linalg.det(b))
    return bool(np.allclose(first, second, rtol=tolerance) and abs(ratio - 1) < 3 * tolerance)


def stages_of(solver: Solver, item: assess.Item, key: jax.Array) -> dict[str, Any]:
    """Rank of the right cell and of the right structure, from 1, or None; seconds of each."""
    pattern = single_wavelength(item.pattern)
    peaks = solver.peaks_of([pattern])
    numbers, lattice = np.sort(item.truth.atomic_numbers), np.asarray(item.truth.lattice, float)
    guesses = [c.lattice for c in solver.draw(peaks, key, numbers, 20)]
    start = time.perf_counter()
    cells = indexing.index_cells(guesses, peaks, pattern.wavelength)
    indexed = time.perf_counter()
    shift = indexing.shift_in(lattice, peaks, pattern.wavelength)
    found = search_structures(key, lattice, numbers, aligned(pattern, peaks, shift)[0])
    searched = time.perf_counter()
    pairs = [
        MatchPair(item.id, k, f.crystal, item.truth) for k, f in enumerate(found[:NUM_LOOKED_AT])
    ]
    records = match_many(pairs, workers=1, timeout_s=20.0)
    right = [r.candidate + 1 for r in records if r.rmse["strict"] is not None]
    cell_ranks = [k + 1 for k, c in enumerate(cells[:4]) if same_cell(c.lattice, lattice)]
    return {
        "id": item.id,
        "num_atoms": len(numbers),
        "cell_rank": cell_ranks[0] if cell_ranks else None,
        "structure_rank": right[0] if right else None,
        "misfit": round(found[0].misfit, 4) if found else None,
        "price": round(found[0].price, 4) if found else None,
        "space_group": found[0].space_group if found else None,
        "cell_seconds": round(indexed - start, 2),
        "structure_seconds": round(searched - indexed, 2),
    }


def main() -> None:
    """Measure all items and write the table."""
    arguments = inputs.parser(__doc__, "results/stages.json")
    arguments.add_argument("--data", type=Path, required=True, help="packed set")
    arguments.add_argument("--patterns", default="clean", choices=["clean", "laboratory"])
    arguments.add_argument("--num_items", type=int, default=60)
    arguments.add_argument("--skip", type=int, default=3000)
    arguments.add_argument("--item_seed", type=int, default=0)
    args = arguments.parse_args()
    compilation.use_cache()
    solver = load_solver()
    data = packed.load(args.data)
    order = np.random.default_rng(args.item_seed).permutation(data.num_crystals)
    options = report_card.Options(patterns=args.patterns, item_seed=args.item_seed)
    items = report_card.make_items(
        data.select(order[args.skip : args.skip + args.num_items]), options
    )
    rows = []
    for k, item in enumerate(items):
        rows.append(stages_of(solver, item, jax.random.fold_in(jax.random.key(0), k)))
        print(rows[-1], flush=True)
    notes = []
    for stage, most in (("cell", 4), ("structure", NUM_LOOKED_AT)):
        ranks = [row[f"{stage}_rank"] for row in rows]
        first, among = sum(r == 1 for r in ranks), sum(r is not None for r in ranks)
        notes.append(
            f"Right {stage}: first in {first} of {len(rows)}, among {most} in {among}; median "
            f"{np.median([row[f'{stage}_seconds'] for row in rows]):.1f} s."
        )
    out = args.out.with_name(f"{args.out.stem}_{args.patterns}{args.out.suffix}")
    inputs.write(out, f"Stages of the search, {args.patterns} patterns", rows, notes)


if __name__ == "__main__":
    main()
