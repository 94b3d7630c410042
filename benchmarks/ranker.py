"""Which inputs the ranker needs: cross-validated losses of first candidates, from recorded runs.

    python -m benchmarks.ranker --runs runs/laboratory runs/laboratory/shuffled runs/clean
    python -m benchmarks.ranker --runs ... --raw runs/raw runs/raw/shuffled --fit ranker.json

RUNS are folders that ``launch.evaluate`` left (candidates of validation crystals and their
matches), of controls as well. Items are left out in tenths; what counts is the most confident
candidate of each: is it right (strict tolerances), and does its confidence say so? With ``--fit``
the rankers that the package ships are fitted to all items: RUNS hold refined candidates, RAW ones
that were not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import inputs
from xtalnet_jax.evaluation.calibration import brier_score, expected_calibration_error
from xtalnet_jax.solve import assess, ranking
from xtalnet_jax.solve.controls import is_control
from xtalnet_jax.solve.report_card import RANKED_BY
from xtalnet_jax.solve.solution import MATCH, NONE, verdict_of

CHOICES: dict[str, tuple[str, ...]] = {
    "all": ranking.FEATURES,
    "as shipped": ranking.INPUTS["refined"],
    **{
        f"as shipped and {name}": (*ranking.INPUTS["refined"], name)
        for name in ranking.FEATURES
        if name not in ranking.INPUTS["refined"]
    },
    **{
        f"as shipped without {name}": tuple(n for n in ranking.INPUTS["refined"] if n != name)
        for name in ranking.INPUTS["refined"]
    },
}
NUM_FOLDS = 10


def cross_validated(
    items: list[ranking.Question], names: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Confidence of each first candidate, whether it is right, and verdict, when left out."""
    order = np.random.default_rng(0).permutation(len(items))
    found: dict[int, tuple[float, bool, str]] = {}
    for fold in range(NUM_FOLDS):
        left_out = order[fold::NUM_FOLDS]
        rest = [items[i] for i in np.setdiff1d(order, left_out)]
        ranker = ranking.fit_ranker(rest, inputs=names)
        for i in left_out:
            own = ranker.confidence(items[i].features)
            first = own.argmax()
            found[i] = float(own[first]), bool(items[i].matched[first]), verdict_of(own.tolist())
    confidence, right, verdicts = zip(*(found[i] for i in range(len(items))))
    return np.clip(confidence, 1e-3, 1 - 1e-3), np.array(right), list(verdicts)


def losses(confidence: np.ndarray, right: np.ndarray, verdicts: list[str]) -> dict[str, Any]:
    """One row of the table."""
    called = [np.array([v == verdict for v in verdicts]) for verdict in (MATCH, NONE)]
    return {
        "items": len(right),
        "right": int(right.sum()),
        "log_loss": round(float(-np.log(np.where(right, confidence, 1 - confidence)).mean()), 3),
        "brier": round(float(brier_score(confidence, right)), 3),
        "calibration_error": round(float(expected_calibration_error(confidence, right)), 3),
        "match (right)": f"{called[0].sum()} ({right[called[0]].sum()})",
        "none (right)": f"{called[1].sum()} ({right[called[1]].sum()})",
    }


def questions_of(
    runs: list[Path], kind: str
) -> tuple[dict[Path, int], list[ranking.Question], list[ranking.Question]]:
    """How many items each run has, those with a right answer, and the controls."""
    asked = {run: assess.recorded(run, kind, RANKED_BY) for run in runs}
    right = [q for run, found in asked.items() if not is_control(run) for q in found]
    wrong = [q for run, found in asked.items() if is_control(run) for q in found]
    return {run: len(found) for run, found in asked.items()}, right, wrong


def main() -> None:
    """Compare all choices and write the table, or fit what is shipped."""
    arguments = inputs.parser(__doc__, "results/ranker.json")
    arguments.add_argument("--runs", nargs="+", type=Path, required=True)
    arguments.add_argument("--raw", nargs="+", type=Path, default=[])
    arguments.add_argument("--fit", type=Path, help="ranker.json to write, instead of a table")
    args = arguments.parse_args()
    if args.fit:
        rankers = {}
        for kind, runs in (("refined", args.runs), ("raw", args.raw)):
            _, right, wrong = questions_of(runs, kind)
            pool = ranking.pooled(right, wrong)
            rankers[kind] = ranking.fit_ranker(pool, inputs=ranking.INPUTS[kind])
        ranking.save_rankers(args.fit, rankers)
        return
    asked, right, wrong = questions_of(args.runs, "refined")
    items, rows = ranking.pooled(right, wrong), []
    for name, names in CHOICES.items():
        confidence, matched, verdicts = cross_validated(items, names)
        for kind, part in (
            ("right questions", slice(len(right))),
            ("controls", slice(len(right), len(items))),
        ):
            row = losses(confidence[part], matched[part], verdicts[part])
            rows.append({"inputs": name, "items are": kind, **row})
    notes = [
        f"{', '.join(f'{num} of {run}' for run, num in asked.items())}; first candidates, "
        f"left out in {NUM_FOLDS} parts; a match is one at {RANKED_BY} tolerances. In the fit "
        f"controls weigh as {ranking.WRONG_SHARE:.0%} of all questions."
    ]
    inputs.write(args.out, "Inputs of the ranker", rows, notes)


if __name__ == "__main__":
    main()
