"""Solve a powder pattern: ranked, refined crystal structures for a pattern and a formula.

  python -m launch.sample                                    the bundled example
  python -m launch.sample --pattern=scan.xy --formula=TiO2 --wavelength=1.5406

Writes candidates.csv, candidate_01.cif ..., result.json and report.html to --out.
"""

import sys

from absl import flags

from launch import cli

FLAGS = flags.FLAGS

if __name__ == "__main__":
    flags.DEFINE_string("pattern", None, "file of the pattern; without it the bundled example")
    flags.DEFINE_string("formula", None, "composition, reduced or full, e.g. TiO2")
    flags.DEFINE_integer("z", None, "formula units per primitive cell; default: try the likely")
    flags.DEFINE_float("wavelength", None, "angstrom; default: what the file says")
    flags.DEFINE_integer("num_candidates", 20, "structures drawn, and at most so many written")
    flags.DEFINE_integer("seed", 0, "equal seeds give equal results")
    flags.DEFINE_list("lattice", None, "known primitive cell a,b,c,alpha,beta,gamma")
    flags.DEFINE_string("space_group", None, "known space group, e.g. Fm-3m or 225")
    flags.DEFINE_bool("refine", True, "fit every candidate to the pattern before ranking")
    flags.DEFINE_string("weights", "default", "bundled name, or folder with both weight files")
    flags.DEFINE_string("out", "solution", "folder for the results")


def main() -> None:
    """Check the input, solve, write, and say what was found."""
    from xtalnet_jax import compilation
    from xtalnet_jax.pretrained.example import example_formula, example_pattern
    from xtalnet_jax.pxrd.io import load_pattern

    if FLAGS.pattern is None and FLAGS.formula is not None:
        raise ValueError("--formula was given without --pattern; name the pattern's file")
    if FLAGS.pattern is None:
        pattern, formula = example_pattern(), example_formula()
    else:
        if FLAGS.formula is None:
            raise ValueError("--pattern was given without --formula; add e.g. --formula=TiO2")
        pattern, formula = load_pattern(FLAGS.pattern, FLAGS.wavelength), FLAGS.formula
    lattice = None
    if FLAGS.lattice is not None:
        try:
            lattice = [float(x) for x in FLAGS.lattice]
        except ValueError:
            raise ValueError(f"--lattice={','.join(FLAGS.lattice)} holds no six numbers") from None

    from xtalnet_jax.solve.output import save_solution, writable_folder
    from xtalnet_jax.solve.solver import load_solver

    compilation.use_cache()
    solver = load_solver(FLAGS.weights)
    writable_folder(FLAGS.out)
    solution = solver.solve(
        pattern,
        formula,
        num_candidates=FLAGS.num_candidates,
        seed=FLAGS.seed,
        refine=FLAGS.refine,
        z=FLAGS.z,
        lattice=lattice,
        space_group=FLAGS.space_group,
        report=lambda text: print(text, file=sys.stderr, flush=True),
    )
    save_solution(solution, FLAGS.out)
    print(f"{formula}: verdict {solution.verdict}, {len(solution.candidates)} candidates")
    for rank, c in enumerate(solution.candidates[:5], start=1):
        print(f"{rank:3d}  {c.space_group:12s} R_wp {c.rwp:.3f}  confidence {c.confidence:.2f}")
    for warning in solution.warnings:
        print(f"warning: {warning}")
    print(f"written to {FLAGS.out}: candidates.csv, candidate_01.cif ..., report.html")


if __name__ == "__main__":
    cli.run(main)
