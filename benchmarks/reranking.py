"""Retrieval with the shortlist in the order of similarity, and re-ranked by its lines.

    python -m benchmarks.reranking --data mp20_val.npz

Patterns are simulated (Cu K-alpha, 5 to 90 degrees) from 200 crystals of a pool of 2,000 that the
weights were not trained on; composition is not given. A calculated or a room-temperature structure
has never quite the cell of the sample: in the second half of the table every measured cell differs
from that of the database by 1 % in size and by 0.3 % more along each axis (standard deviations).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.inputs import parser, write
from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.data.sources import open_source
from xtalnet_jax.evaluation.intervals import wilson
from xtalnet_jax.pxrd.simulate import simulate_pattern
from xtalnet_jax.solve.retrieval import RERANK, RetrievalIndex
from xtalnet_jax.solve.solver import load_solver

KS = (1, 3, 5, 10)
SIZE, AXIS = 0.01, 0.003


def strained(crystal: Crystal, rng: np.random.Generator) -> Crystal:
    """Return the crystal with a slightly different cell."""
    factor = 1 + SIZE * rng.standard_normal() + AXIS * rng.standard_normal(3)
    return crystal._replace(lattice=crystal.lattice * factor[:, None])


def measure(index: RetrievalIndex, ids: list[str], crystals: list[Crystal], cells: str) -> list:
    """Return the rows of one half of the table."""
    patterns = simulate_pattern(crystals)
    rows: list[dict[str, Any]] = []
    for rerank in (0, RERANK):
        index.query(patterns[0], max(KS), rerank=rerank)  # compiles
        ranks, start = [], time.process_time()
        for name, pattern in zip(ids, patterns):
            hits = index.query(pattern, max(KS), rerank=rerank)
            ranks.append(next((h.rank for h in hits if h.id == name), np.inf))
        spent = (time.process_time() - start) / len(ids)
        found = {k: wilson(int((np.array(ranks) <= k).sum()), len(ranks)) for k in KS}
        rows.append(
            {
                "cells": cells,
                "re-ranked": rerank,
                "queries": len(ids),
                "pool": len(index.entries.ids),
                **{
                    f"top-{k} %": f"{100 * e.value:.1f} [{100 * e.low:.1f}, {100 * e.high:.1f}]"
                    for k, e in found.items()
                },
                "processor_s": spent,
            }
        )
    return rows


def main() -> None:
    """Measure and write the results."""
    arguments = parser(__doc__, "results/reranking.json")
    arguments.add_argument("--data", type=Path, required=True, help="crystals, any source")
    arguments.add_argument("--weights", default="default")
    arguments.add_argument("--pool", type=int, default=2000)
    arguments.add_argument("--queries", type=int, default=200)
    args = arguments.parse_args()
    source, rng = open_source(args.data), np.random.default_rng(0)
    records = [source[i] for i in rng.permutation(len(source))[: args.pool].tolist()]
    solver = load_solver(args.weights)
    index = RetrievalIndex.build([(r.id, r.crystal) for r in records], solver)
    asked = records[: args.queries]
    ids, crystals = [r.id for r in asked], [r.crystal for r in asked]
    rows = measure(index, ids, crystals, "as stored")
    rows += measure(index, ids, [strained(c, rng) for c in crystals], "off by 1 %")
    write(args.out, "Retrieval, shortlist re-ranked by its lines", rows, ["95 % intervals."])


if __name__ == "__main__":
    main()
