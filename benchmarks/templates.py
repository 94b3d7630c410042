"""What known structures are worth as templates, by the size of their set; no network takes part.

    python -m benchmarks.templates --templates=data/mp20_train.npz --data=data/mp20_val.npz
    python -m benchmarks.templates --templates=data/qmof_train.npz --data=data/qmof_test.npz \
        --two_theta 3 30 --out=results/templates_qmof.json

For the clean pattern of each crystal, composition and number of atoms given, templates of the set
and of random parts of it are proposed and ordered by how well their lines agree with the peaks.
The last row leaves out templates of the crystal's own composition: only exchanged elements count.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.inputs import write
from xtalnet_jax.compilation import make_room, use_cache
from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.data.fixtures import load_set
from xtalnet_jax.evaluation.intervals import wilson
from xtalnet_jax.evaluation.matching import TOLERANCES, MatchPair, match_many
from xtalnet_jax.pxrd.pattern import Pattern
from xtalnet_jax.pxrd.peaks import peak_batch
from xtalnet_jax.pxrd.simulate import simulate_pattern
from xtalnet_jax.solve.templates import Templates

KS = (1, 3, 10)
NUM_PEAKS = 64


class Question(NamedTuple):
    """A crystal and its pattern."""

    name: str
    truth: Crystal
    pattern: Pattern


def part_of(templates: Templates, share: float, seed: int) -> Templates:
    """Templates of a random part of the set; the smaller part is in the larger one."""
    place = np.random.default_rng(seed).permutation(templates.crystals.num_crystals)
    limit = round(share * len(place))
    rows = {key: own[place[own] < limit] for key, own in templates.rows.items()}
    return templates._replace(rows=rows)


def without_composition(templates: Templates, numbers: np.ndarray) -> Templates:
    """Templates that are not of this composition."""
    key = tuple(sorted(np.unique(numbers, return_counts=True)[1].tolist()))
    crystals, wanted = templates.crystals, np.sort(numbers)
    left = [
        k
        for k in templates.rows.get(key, ())
        if not np.array_equal(np.sort(crystals.crystal(int(k)).atomic_numbers), wanted)
    ]
    return templates._replace(rows={key: np.array(left, int)})


def measure(
    questions: list[Question], templates: Templates, own_composition: bool, workers: int
) -> dict[str, Any]:
    """Propose for all questions and match; shares of the questions, with Wilson intervals."""
    pairs, covered, start = [], 0, time.perf_counter()
    for question in questions:
        make_room()
        numbers = question.truth.atomic_numbers
        known = templates if own_composition else without_composition(templates, numbers)
        peaks = peak_batch([question.pattern], NUM_PEAKS)
        found = known.propose(numbers, peaks, float(question.pattern.wavelength), max(KS))
        covered += bool(found)
        pairs += [MatchPair(question.name, k, c, question.truth) for k, c in enumerate(found)]
    seconds = (time.perf_counter() - start) / len(questions)
    records = match_many(pairs, workers=workers, timeout_s=20.0)
    row: dict[str, Any] = {"have_any_%": 100 * covered / len(questions)}
    for tolerance in ("paper", "field"):
        for k in KS:
            matched = {r.item for r in records if r.candidate < k and r.rmse[tolerance] is not None}
            share = wilson(len(matched), len(questions))
            low, high = 100 * share.low, 100 * share.high
            row[f"{tolerance}_top{k}_%"] = f"{100 * share.value:.1f} [{low:.1f}, {high:.1f}]"
    row["s_each"] = seconds
    return row


def main() -> None:
    """Measure parts of the set, then the whole without own compositions; write the table."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--templates", required=True, help="set written by launch.prepare")
    arguments.add_argument("--data", required=True, help="set whose crystals are asked for")
    arguments.add_argument("--num_items", type=int, default=200)
    arguments.add_argument("--two_theta", type=float, nargs=2, default=(5.0, 90.0))
    arguments.add_argument("--shares", type=float, nargs="+", default=[1 / 16, 1 / 4, 1 / 2, 1])
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--workers", type=int, default=2)
    arguments.add_argument("--out", type=Path, default=Path("results/templates.json"))
    args = arguments.parse_args()
    use_cache()
    templates, asked = Templates.load(args.templates), load_set(args.data)
    order = np.random.default_rng(args.seed).permutation(asked.num_crystals)[: args.num_items]
    crystals = [asked.crystal(int(k)) for k in order]
    patterns = simulate_pattern(crystals, two_theta_range=tuple(args.two_theta))
    questions = [Question(str(asked.id[k]), c, p) for k, c, p in zip(order, crystals, patterns)]
    rows = []
    for share, own in [*((share, True) for share in args.shares), (1.0, False)]:
        known = part_of(templates, share, args.seed)
        row = {
            "templates": sum(map(len, known.rows.values())),
            "own_composition": "allowed" if own else "left out",
            **measure(questions, known, own, args.workers),
        }
        print(row, file=sys.stderr, flush=True)
        rows.append(row)
    limits = ", ".join(
        f"{name}: stol {t.stol}, angle {t.angle_tol}, ltol {t.ltol}"
        for name, t in TOLERANCES.items()
        if name in ("paper", "field")
    )
    notes = [
        f"{len(questions)} crystals of {Path(args.data).stem}, templates of random parts of "
        f"{Path(args.templates).stem}; clean patterns, {args.two_theta[0]:g} to "
        f"{args.two_theta[1]:g} degrees, Cu K-alpha; composition and number of atoms given, "
        f"nothing refined. Per cent with 95 % Wilson intervals, best of the first k; {limits}."
    ]
    write(args.out, "Known structures as templates", rows, notes)


if __name__ == "__main__":
    main()
