"""Solve powder patterns: ranked, refined crystal structures for a pattern and a formula.

  python -m launch.sample                                    the bundled example
  python -m launch.sample --pattern=scan.xy --formula=TiO2 --wavelength=CuKa
  python -m launch.sample --patterns='scans/*.xrdml' --formula=TiO2

Writes candidates.csv, candidate_01.cif ..., result.json and report.html to --out; of many files
each to its own folder in --out, and table.csv for all. A file that cannot be solved stops nothing.

Exit status: 0 done, 1 some of several files failed, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from absl import flags

from launch import cli

if TYPE_CHECKING:
    from pathlib import Path

    from xtalnet_jax.pxrd.pattern import Pattern
    from xtalnet_jax.solve.solution import Solution
    from xtalnet_jax.solve.solver import Solver

FLAGS = flags.FLAGS

if __name__ == "__main__":
    flags.DEFINE_string("pattern", None, "file of the pattern; without it the bundled example")
    flags.DEFINE_multi_string("patterns", [], "files as a quoted pattern, e.g. 'scans/*.xrdml'")
    flags.DEFINE_string("formula", None, "composition, reduced or full, e.g. TiO2")
    flags.DEFINE_integer("z", None, "formula units per primitive cell; default: try the likely")
    flags.DEFINE_string(
        "wavelength", None, "angstrom, or a line as CuKa, MoKa1; default: the file's"
    )
    flags.DEFINE_enum(
        "axis", None, ["two_theta", "q", "d"], "abscissa; default: the file's, or two_theta"
    )
    flags.DEFINE_integer("num_candidates", 20, "structures drawn, and at most so many written")
    flags.DEFINE_integer("seed", 0, "equal seeds give equal results")
    flags.DEFINE_list(
        "lattice",
        None,
        "known cell a,b,c,alpha,beta,gamma: primitive, or conventional beside --space_group",
    )
    flags.DEFINE_string("space_group", None, "known space group, e.g. Fm-3m or 225")
    flags.DEFINE_bool("refine", True, "fit every candidate to the pattern before ranking")
    flags.DEFINE_string("weights", "default", "bundled name, or folder with both weight files")
    flags.DEFINE_string("templates", None, "known structures to try: a set of launch.prepare")
    flags.DEFINE_string("out", "solution", "folder for the results")


def main() -> int:
    """Check the input, solve, write, and say what was found."""
    if FLAGS.pattern is not None and FLAGS.patterns:
        raise ValueError("--pattern and --patterns were both given; give one of them")
    given = "--patterns" if FLAGS.patterns else "--pattern"
    if FLAGS.formula is None and (FLAGS.pattern is not None or FLAGS.patterns):
        raise ValueError(f"{given} was given without --formula; add e.g. --formula=TiO2")
    hints = {"z": FLAGS.z, "lattice": _lattice(), "space_group": FLAGS.space_group}
    return _solve_many(hints) if FLAGS.patterns else _solve_one(hints)


def _solve_one(hints: dict[str, Any]) -> int:
    with cli.progress() as say:
        pattern, formula = _one_pattern()
        solver = _ready(formula, hints)
        _describe(pattern, say)
        solution = _solve(solver, pattern, formula, hints, say)

        from xtalnet_jax.solve.output import save_solution

        save_solution(solution, FLAGS.out)
    _tell(solution)
    return 0


def _solve_many(hints: dict[str, Any]) -> int:
    from xtalnet_jax.solve.batch import matching_files, solve_files

    files = matching_files(FLAGS.patterns)
    with cli.progress() as say:
        solver = _ready(FLAGS.formula, hints)
        one = partial(_solve_file, solver=solver, hints=hints, say=say)
        rows = solve_files(files, one, FLAGS.out, say)
    _tell_all(rows)
    failed = sum("folder" not in row for row in rows)
    return 0 if not failed else 1 if failed < len(rows) else 2


def _ready(formula: str, hints: dict[str, Any]) -> Solver:
    """The solver, after the question was judged and the folder for the answer was made."""
    from xtalnet_jax import compilation
    from xtalnet_jax.solve.output import writable_folder
    from xtalnet_jax.solve.solver import load_solver

    compilation.use_cache()
    solver = load_solver(FLAGS.weights, FLAGS.templates)
    solver.check(formula, FLAGS.num_candidates, **hints)
    writable_folder(FLAGS.out)
    return solver


def _one_pattern() -> tuple[Pattern, str]:
    from xtalnet_jax.pretrained.example import example_formula, example_pattern
    from xtalnet_jax.pxrd.io import load_pattern

    if FLAGS.pattern is not None:
        return load_pattern(FLAGS.pattern, FLAGS.wavelength, FLAGS.axis), FLAGS.formula
    if FLAGS.formula is not None:
        raise ValueError("--formula was given without --pattern; name the pattern's file")
    return example_pattern(), example_formula()


def _lattice() -> list[float] | None:
    try:
        return None if FLAGS.lattice is None else [float(x) for x in FLAGS.lattice]
    except ValueError:
        raise ValueError(f"--lattice={','.join(FLAGS.lattice)} holds no six numbers") from None


def _describe(pattern: Pattern, say: Any) -> None:
    """What was read, and what was taken for granted in reading it."""
    from xtalnet_jax.pxrd.io import assumptions

    x = pattern.two_theta
    say(
        f"{pattern.meta['file']}: {len(x)} points, {x[0]:.4g} to {x[-1]:.4g} degrees, "
        f"wavelength {pattern.wavelength:.6g} angstrom"
    )
    for text in assumptions(pattern):
        say(f"assumed: {text}")


def _solve(
    solver: Solver, pattern: Pattern, formula: str, hints: dict[str, Any], say: Any
) -> Solution:
    return solver.solve(
        pattern,
        formula,
        num_candidates=FLAGS.num_candidates,
        seed=FLAGS.seed,
        refine=FLAGS.refine,
        report=say,
        **hints,
    )


def _solve_file(path: Path, solver: Solver, hints: dict[str, Any], say: Any) -> Solution:
    from xtalnet_jax.pxrd.io import load_pattern

    pattern = load_pattern(path, FLAGS.wavelength, FLAGS.axis)
    _describe(pattern, say)
    return _solve(solver, pattern, FLAGS.formula, hints, say)


def _tell(solution: Solution) -> None:
    from xtalnet_jax.pxrd.io import assumptions
    from xtalnet_jax.solve.report import summary

    found = len(solution.candidates)
    print(f"{solution.formula}: verdict {solution.verdict}, {found} candidates")
    print(summary(solution))
    for rank, c in enumerate(solution.candidates[:5], start=1):
        print(f"{rank:3d}  {c.space_group:12s} R_wp {c.rwp:.3f}  confidence {c.confidence:.2f}")
    for text in assumptions(solution.pattern):
        print(f"assumed: {text}")
    for warning in solution.warnings:
        print(f"warning: {warning}")
    print(f"written to {FLAGS.out}: candidates.csv, candidate_01.cif ..., report.html")


def _tell_all(rows: list[dict[str, Any]]) -> None:
    width = max(len(row["file"]) for row in rows)
    for row in rows:
        if "folder" not in row:
            print(f"{row['file']:{width}s}  error      {row['message']}")
            continue
        best = f"{row['space_group']:12s} R_wp {row['rwp']}" if row["candidates"] else ""
        print(f"{row['file']:{width}s}  {row['verdict']:9s}  {best}  {row['message']}".rstrip())
    print(f"written to {FLAGS.out}: table.csv, and a folder for each solved file")


if __name__ == "__main__":
    cli.run(main)
