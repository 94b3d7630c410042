"""Retrieval by the towers of a contrastive run alone, of crystals of any size.

    python -m benchmarks.towers --run runs/cpcp_qmof --data data/qmof_test.npz data/core_mof.npz

Patterns are measured from the stored lines without effects, over the range that the recipe trains
on; each is looked up among all crystals of its set. Beside it the control: patterns shuffled.
"""

from __future__ import annotations

import numpy as np
from ml_collections import ConfigDict

from benchmarks.inputs import parser, write
from xtalnet_jax import compilation, tasks
from xtalnet_jax.data.batches import buckets_for
from xtalnet_jax.data.examples import gather
from xtalnet_jax.data.fixtures import load_set
from xtalnet_jax.data.packed import PackedSet
from xtalnet_jax.evaluation.retrieval import RetrievalReport, retrieval_report
from xtalnet_jax.pretrained.weights import load_weights

CHUNK = 128
KS = (1, 3, 5, 10)


def embed(run: str, packed: PackedSet) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors of the patterns and of the crystals of a set, in its order."""
    params, recipe = load_weights(run)
    config = ConfigDict(recipe)
    embedder = tasks.make_embedder(config)
    effects = tasks.clean_effects(config.pattern)
    edges = np.asarray(buckets_for(packed))
    bucket = np.searchsorted(edges, packed.num_atoms)
    found: list[list[np.ndarray]] = [[], []]
    order: list[np.ndarray] = []
    for b, edge in enumerate(edges):
        members = np.flatnonzero(bucket == b)
        for start in range(0, len(members), CHUNK):
            rows = members[start : start + CHUNK]
            padded = np.pad(rows, (0, CHUNK - len(rows)), constant_values=-1)
            example = gather(packed, padded, int(edge))
            peaks = tasks.peaks_from_lines(None, example.lines, effects, config.pattern.num_peaks)
            vectors = embedder.patterns(params, peaks), embedder.crystals(params, example.crystals)
            for kept, vector in zip(found, vectors):
                kept.append(np.asarray(vector)[: len(rows)])
            order.append(rows)
    back = np.argsort(np.concatenate(order))
    patterns, crystals = (np.concatenate(kept)[back] for kept in found)
    return patterns, crystals


def row(data: str, patterns: str, report: RetrievalReport) -> dict[str, object]:
    """One line of the table, in per cent."""
    rates = {f"top{k}": 100 * report.recall[k].value for k in KS}
    first = report.recall[1]
    interval = {"top1_low": 100 * first.low, "top1_high": 100 * first.high}
    return {"set": data, "patterns": patterns, "among": report.num_candidates} | rates | interval


def main() -> None:
    """Look up every pattern, right and shuffled, and write the table."""
    arguments = parser(__doc__, "results/towers.json")
    arguments.add_argument("--run", required=True, help="folder of the contrastive run, or a file")
    arguments.add_argument("--data", nargs="+", required=True, help="packed sets")
    args = arguments.parse_args()
    compilation.use_cache()
    rows = []
    for data in args.data:
        patterns, crystals = embed(args.run, load_set(data))
        similarity = patterns @ crystals.T
        shuffled = similarity[np.random.default_rng(0).permutation(len(similarity))]
        for name, values in (("right", similarity), ("shuffled", shuffled)):
            rows.append(row(data, name, retrieval_report(values, ks=KS)))
            print(rows[-1], flush=True)
    _, recipe = load_weights(args.run)
    note = f"Recipe: {recipe['train']['num_epochs']} epochs of {recipe['data']['train']}."
    write(args.out, "Retrieval by the towers alone", rows, [note])


if __name__ == "__main__":
    main()
