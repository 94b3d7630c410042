"""Measured patterns of known structures: match rates, R_wp, verdicts and time.

    python -m benchmarks.measured --data=EXPERIMENTAL_DIR --out=results/measured
    python -m benchmarks.measured --data=EXPERIMENTAL_DIR --given=z            (or lattice)
    python -m benchmarks.measured --data=EXPERIMENTAL_DIR --wrong=pattern      (or formula)

EXPERIMENTAL_DIR holds ``cases.json`` and a folder per case with ``pattern.csv`` and
``structure.cif``. Solved are cases of the given quality whose primitive cell has at most 20 atoms.
With ``--wrong`` each case gets the pattern, or the formula, of another one: the right verdict is
then "none" or "uncertain". One line per case is appended to OUT/NAME.jsonl as soon as it is done;
an interrupted run goes on there. Verdicts are those of the ranker of the weights now, so that the
same command makes the table again after the ranker was fitted anew.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xtalnet_jax import Crystal, Pattern, compilation, load_pattern, load_solver
from xtalnet_jax.crystals.elements import parse_formula
from xtalnet_jax.evaluation.intervals import wilson
from xtalnet_jax.evaluation.matching import TOLERANCES, MatchPair, match_many
from xtalnet_jax.solve import ranking
from xtalnet_jax.solve.solution import verdict_of
from xtalnet_jax.solve.solver import Solver


class Case(NamedTuple):
    """One measured pattern."""

    name: str
    formula: str
    num_atoms: int  # in the primitive cell of the known structure
    pattern: Pattern
    truth: Crystal


def load_cases(folder: Path, qualities: list[str], most: int) -> list[Case]:
    """Read the cases of the given qualities that have an ordered cell of at most ``most`` atoms."""
    cases = []
    for entry in json.loads((folder / "cases.json").read_text(encoding="utf-8")):
        fits = entry["ordered"] and 0 < entry["n_atoms_primitive"] <= most
        if entry["quality"] in qualities and fits:
            lines = np.atleast_1d(np.asarray(entry["wavelength_A"], float))
            mean = lines[0] if len(lines) == 1 else (2 * lines[0] + lines[1]) / 3
            home = folder / entry["name"]
            structure = Crystal.from_file(home / "structure.cif").to_structure()
            cases.append(
                Case(
                    entry["name"],
                    structure.composition.reduced_formula,
                    entry["n_atoms_primitive"],
                    load_pattern(home / "pattern.csv", wavelength=float(mean)),
                    Crystal.from_structure(structure.get_primitive_structure()),
                )
            )
    return cases


def permuted(cases: list[Case], wrong: str) -> list[Case]:
    """Give every case the pattern or the formula of one of other elements."""
    out = []
    for i, case in enumerate(cases):
        own = set(parse_formula(case.formula))
        others = cases[i + 1 :] + cases[:i]
        other = next(c for c in others if set(parse_formula(c.formula)) != own)
        if wrong == "pattern":
            out.append(case._replace(pattern=other.pattern))
        else:
            out.append(case._replace(formula=other.formula))
    return out


def solve(solver: Solver, case: Case, given: str, num_candidates: int) -> dict[str, Any]:
    """Solve one case and compare every candidate with the known structure."""
    start = time.perf_counter()
    units = sum(parse_formula(case.formula).values())
    hints: dict[str, Any] = {}
    if given == "z":
        hints["z"] = case.num_atoms // units
    if given == "lattice":
        hints["lattice"] = case.truth.lattice
    solution = solver.solve(case.pattern, case.formula, num_candidates, **hints)
    seconds = time.perf_counter() - start
    pairs = [
        MatchPair(case.name, k, c.crystal, case.truth) for k, c in enumerate(solution.candidates)
    ]
    records = match_many(pairs, workers=1, timeout_s=20.0)
    return {
        "name": case.name,
        "formula": case.formula,
        "num_atoms": case.num_atoms,
        "seconds": round(seconds, 1),
        "candidates": [
            {
                "rwp": round(c.rwp, 4),
                "space_group": c.space_group,
                "evidence": {k: round(v, 5) for k, v in c.evidence.items()},
                "crystal": [np.round(x, 5).tolist() for x in c.crystal],
                "rmse": record.rmse,
            }
            for c, record in zip(solution.candidates, records)
        ],
    }


def judged(row: dict[str, Any], ranker: ranking.Ranker) -> dict[str, Any]:
    """Return what a ranker makes of a record: rank of the truth, verdict, first candidate."""
    found = row["candidates"]
    inputs = [[c["evidence"][name] for name in ranking.FEATURES] for c in found]
    confidence = ranker.confidence(np.reshape(inputs, (-1, len(ranking.FEATURES))))
    order = np.argsort(-confidence, kind="stable")
    ranks = {
        name: next((k + 1 for k, i in enumerate(order) if found[i]["rmse"][name] is not None), None)
        for name in TOLERANCES
    }
    first = found[order[0]] if found else {"rwp": None, "space_group": None}
    return {
        **{name: row[name] for name in ("name", "formula", "num_atoms", "seconds")},
        "rank": ranks,  # of the first candidate that matches, from 1
        "verdict": verdict_of(confidence.tolist()),
        "confidence": round(float(confidence.max(initial=0.0)), 3),
        "rwp": first["rwp"],
        "space_group": first["space_group"],
        "num_candidates": len(found),
    }


def summary(rows: list[dict[str, Any]], title: str, tolerance: str = "field") -> str:
    """Return the table in markdown."""
    n = len(rows)
    ranks = [row["rank"][tolerance] for row in rows]

    def share(num: int) -> str:
        e = wilson(num, n)
        return f"{100 * e.value:.1f} [{100 * e.low:.0f}, {100 * e.high:.0f}] ({num} of {n})"

    lines = [f"# {title}", "", f"Match at {tolerance} tolerances, per cent:"]
    lines += [
        f"- first candidate: {share(sum(r == 1 for r in ranks))}",
        f"- among 20: {share(sum(r is not None for r in ranks))}",
    ]
    for verdict in ("match", "uncertain", "none"):
        named = [row for row in rows if row["verdict"] == verdict]
        right = sum(row["rank"][tolerance] == 1 for row in named)
        lines.append(f"- verdict {verdict}: {len(named)}, the first candidate is right in {right}")
    lines += [
        f"- median seconds {np.median([row['seconds'] for row in rows]):.1f}",
        "",
        "| case | formula | atoms | rank | R_wp | verdict | confidence | space group | s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        rank = row["rank"][tolerance] or "-"
        lines.append(
            f"| {row['name']} | {row['formula']} | {row['num_atoms']} | {rank} | {row['rwp']} | "
            f"{row['verdict']} | {row['confidence']} | {row['space_group']} | {row['seconds']} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Solve all cases that are not on record yet and write the table."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--data", type=Path, required=True)
    arguments.add_argument("--out", type=Path, default=Path("results/measured"))
    arguments.add_argument("--quality", nargs="+", default=["good"])
    arguments.add_argument("--given", choices=["formula", "z", "lattice"], default="formula")
    arguments.add_argument("--wrong", choices=["pattern", "formula"])
    arguments.add_argument("--weights", default="default")
    arguments.add_argument("--templates", help="known structures to try: a set of launch.prepare")
    arguments.add_argument("--num_candidates", type=int, default=20)
    arguments.add_argument("--num_cases", type=int, help="the first so many only")
    args = arguments.parse_args()
    compilation.use_cache()
    solver = load_solver(args.weights, args.templates)
    cases = load_cases(args.data, args.quality, solver.max_atoms)
    if args.wrong:
        cases = permuted(cases, args.wrong)
    cases = cases[: args.num_cases]
    name = "_".join([*args.quality, f"wrong_{args.wrong}" if args.wrong else args.given])
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"{name}.jsonl"
    done = {}
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        done = {r["name"]: r for r in (json.loads(x) for x in lines if x.endswith("\n"))}
    for i, case in enumerate(cases):
        if case.name not in done:
            done[case.name] = solve(solver, case, args.given, args.num_candidates)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(done[case.name]) + "\n")
        row = judged(done[case.name], solver.rankers["refined"])
        print(
            f"{i + 1}/{len(cases)} {case.name} {row['formula']}: rank {row['rank']['field']}, "
            f"{row['verdict']} {row['confidence']}, {row['seconds']} s",
            flush=True,
        )
    rows = [judged(done[case.name], solver.rankers["refined"]) for case in cases]
    title = f"Measured patterns, {', '.join(args.quality)}: " + (
        f"wrong {args.wrong}" if args.wrong else f"{args.given} given"
    )
    text = summary(rows, title)
    (args.out / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
