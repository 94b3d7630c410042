"""Time and recall of the exact search in an index of a million unit vectors.

    python -m benchmarks.retrieval_index

*Random* vectors are the hardest for the search and *clustered* ones (1,000 centres, spread 0.3, as
families of similar crystals give) hold more near ties. A query is a disturbed entry. Recall is the
share of the 10 best of a brute force in NumPy float64 that the search finds. A filter is asked for
by element, and its time counts. Compilation is not included (a first call).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.inputs import clocked, parser, write
from xtalnet_jax.contrastive.index import VectorIndex
from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.solve.crystal_table import Composition, CrystalTable, concatenate

K = 10
BATCH = 32
BLOCK = 1 << 16
NUM_CENTRES, SPREAD = 1000, 0.3
FILTERS = {
    "none": Composition(),
    "1 of 10 entries": Composition(elements=["O"]),
    "1 of 1,000 entries": Composition(elements=["Ti"]),
}


def unit(x: np.ndarray) -> np.ndarray:
    """Divide rows by their norms (float32)."""
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def vectors_of(kind: str, num: int, width: int) -> np.ndarray:
    """Draw [num, width] unit vectors."""
    rng = np.random.default_rng(0)
    drawn = unit(rng.standard_normal((num, width), np.float32))
    if kind == "random":
        return drawn
    centres = unit(rng.standard_normal((NUM_CENTRES, width), np.float32))
    return unit(centres[rng.integers(NUM_CENTRES, size=num)] + SPREAD * drawn)


def table_of(num: int) -> CrystalTable:
    """Make crystals of four atoms, one in ten with O, one in a thousand with Ti."""
    atoms = np.tile(np.array([3, 9, 14, 29]), (1000, 1))
    atoms[::10, 1] = 8
    atoms[500, 2] = 22
    frac, cell = np.zeros((4, 3)), np.eye(3)
    few = CrystalTable.from_crystals([Crystal(z, frac, cell) for z in atoms])
    return concatenate([few] * -(-num // 1000))


def brute_force(vectors: np.ndarray, queries: np.ndarray, allowed: np.ndarray | None) -> np.ndarray:
    """Return the rows of the K best in float64, [n_query, K]."""
    exact = queries.astype(np.float64)
    scores = np.concatenate(
        [vectors[i : i + BLOCK].astype(np.float64) @ exact.T for i in range(0, len(vectors), BLOCK)]
    ).T
    if allowed is not None:
        scores = np.where(allowed[None], scores, -np.inf)
    return np.argsort(-scores, axis=1, kind="stable")[:, :K]


def measure(num: int, width: int, kind: str, repeats: int) -> list[dict[str, Any]]:
    """Measure one query and a batch, with and without filters."""
    vectors, table = vectors_of(kind, num, width), table_of(num)
    index = VectorIndex.build(vectors, range(num))
    rng = np.random.default_rng(1)
    disturbed = vectors[rng.integers(num, size=BATCH)] + 0.5 * unit(
        rng.standard_normal((BATCH, width), np.float32)
    )
    queries, rows = unit(disturbed), []
    for named, composition in FILTERS.items():
        mask = table.having(composition)
        allowed = None if mask is None else mask[:num]
        expected = brute_force(vectors, queries, allowed)
        for count in (1, BATCH):

            def search(count: int = count, composition: Composition = composition) -> np.ndarray:
                mask = table.having(composition)
                return index.query_vectors(
                    queries[:count], K, None if mask is None else mask[:num]
                )[1]

            found = search()
            recall = np.mean([np.isin(e, f).mean() for e, f in zip(expected, found)])
            time = clocked(search, repeats)
            rows.append(
                {
                    "vectors": kind,
                    "entries": num,
                    "width": width,
                    "filter": named,
                    "queries": count,
                    "wall_ms": 1e3 * time.wall,
                    "processor_ms": 1e3 * time.processor,
                    "recall": float(recall),
                }
            )
    return rows


def main() -> None:
    """Measure and write the results."""
    arguments = parser(__doc__, "results/retrieval_index.json")
    arguments.add_argument("--num", type=int, default=1_000_000, help="entries")
    arguments.add_argument("--width", type=int, default=128, help="of the bundled weights")
    arguments.add_argument("--kinds", nargs="+", default=["random", "clustered"])
    args = arguments.parse_args()
    rows = [row for kind in args.kinds for row in measure(args.num, args.width, kind, args.repeats)]
    notes = [
        "Processor time is summed over threads: what to compare on a machine that others use.",
        "Recall against NumPy float64 brute force, k = 10.",
    ]
    write(args.out, "Exact search in an index", rows, notes)


if __name__ == "__main__":
    main()
