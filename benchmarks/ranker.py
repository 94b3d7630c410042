"""Which inputs the ranker needs: cross-validated losses of first candidates, from recorded runs.

    python -m benchmarks.ranker --runs runs/laboratory runs/laboratory/shuffled runs/clean

RUNS are folders that ``launch.evaluate`` left (candidates of validation crystals and their
matches). Items are left out in tenths; what counts is the most confident candidate of each: is it
right (strict tolerances), and does its confidence say so?
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import inputs
from xtalnet_jax.evaluation.calibration import brier_score, expected_calibration_error
from xtalnet_jax.solve import assess, ranking
from xtalnet_jax.solve.report_card import RANKED_BY
from xtalnet_jax.solve.solution import MATCH_CONFIDENCE

CHOICES: dict[str, tuple[str, ...]] = {
    "all": ranking.FEATURES,
    "as shipped": ranking.INPUTS["refined"],
    **{
        f"as shipped without {name}": tuple(n for n in ranking.INPUTS["refined"] if n != name)
        for name in ranking.INPUTS["refined"]
    },
}
NUM_FOLDS = 10


def cross_validated(
    items: list[ranking.Question], names: tuple[str, ...], penalty: float = ranking.PENALTY
) -> dict[str, Any]:
    """Losses of the first candidates of items that were left out of the fit."""
    order = np.random.default_rng(0).permutation(len(items))
    confidence, right = [], []
    for fold in range(NUM_FOLDS):
        left_out = order[fold::NUM_FOLDS]
        rest = [items[i] for i in np.setdiff1d(order, left_out)]
        ranker = ranking.fit_ranker(rest, penalty, names)
        for i in left_out:
            own = ranker.confidence(items[i].features)
            confidence.append(own.max())
            right.append(items[i].matched[own.argmax()])
    p, y = np.clip(confidence, 1e-3, 1 - 1e-3), np.array(right)
    return {
        "right": int(y.sum()),
        "log_loss": round(float(-np.log(np.where(y, p, 1 - p)).mean()), 3),
        "brier": round(float(brier_score(p, y)), 3),
        "calibration_error": round(float(expected_calibration_error(p, y)), 3),
        "called_match": int((p >= MATCH_CONFIDENCE).sum()),
        "of_these_right": int(y[p >= MATCH_CONFIDENCE].sum()),
    }


def main() -> None:
    """Compare all choices and write the table."""
    arguments = inputs.parser(__doc__, "results/ranker.json")
    arguments.add_argument("--runs", nargs="+", type=Path, required=True)
    args = arguments.parse_args()
    items = [item for run in args.runs for item in assess.recorded(run, "refined", RANKED_BY)]
    rows = [{"inputs": name, **cross_validated(items, names)} for name, names in CHOICES.items()]
    notes = [
        f"{len(items)} items of {', '.join(str(run) for run in args.runs)}; first candidates, "
        f"left out in {NUM_FOLDS} parts; a match is one at {RANKED_BY} tolerances."
    ]
    inputs.write(args.out, "Inputs of the ranker", rows, notes)


if __name__ == "__main__":
    main()
