"""Measure a solver on crystals it was not trained on: retrieval and ranked generation.

  python -m launch.evaluate --data=mp20_val.npz --num_items=200 --out=results/mp20_val
  python -m launch.evaluate --data=mp20_val.npz --skip=1000 --num_items=60 --pool=0 \
      --patterns=laboratory --fit_ranker --out=runs/ranker    (crystals that no table is made of)

--data is a set written by launch.prepare. Patterns are simulated (Cu K-alpha, over --two_theta, or
with --patterns=laboratory as an ordinary laboratory would measure them);
composition and the number of atoms are given. Writes OUT/results.json and OUT/results.md; every
attempt is kept in OUT, so that an interrupted run goes on where it was. With --figures the paper's
figures of the run are drawn into OUT/figures.
"""

from absl import flags

from launch import cli

FLAGS = flags.FLAGS

if __name__ == "__main__":
    flags.DEFINE_string("data", None, "packed set written by launch.prepare, or 'textbook'")
    flags.DEFINE_list("exclude", [], "packed sets; crystals that they hold too are left out")
    flags.DEFINE_string("weights", "default", "bundled name, or folder with both weight files")
    flags.DEFINE_string("templates", None, "known structures to try: a set of launch.prepare")
    flags.DEFINE_string("out", "runs/evaluation", "folder for records and tables")
    flags.DEFINE_integer("num_items", 200, "crystals to solve, drawn with --item_seed")
    flags.DEFINE_integer("num_candidates", 20, "structures drawn for each")
    flags.DEFINE_integer("pool", 1000, "crystals to retrieve among, 0 for no retrieval")
    flags.DEFINE_integer("seed", 0, "of the generator")
    flags.DEFINE_integer("item_seed", 0, "of the choice of crystals")
    flags.DEFINE_integer("skip", 0, "crystals of that order to leave out first")
    flags.DEFINE_bool("refine", True, "refine candidates before ranking")
    flags.DEFINE_bool("profile", True, "compare candidates with the profile; --noprofile is fast")
    flags.DEFINE_bool("search", True, "look for cells and structures; --nosearch takes plain draws")
    flags.DEFINE_list(
        "controls", ["shuffled"],
        "questions without right answer, beside: shuffled patterns, an element exchanged",
    )  # fmt: skip
    flags.DEFINE_bool("fit_ranker", False, "fit the ranker to these items: OUT/ranker.json")
    flags.DEFINE_list("fit_with", [], "OUT folders of earlier runs to fit the ranker to as well")
    flags.DEFINE_enum(
        "patterns", "clean", ["clean", "laboratory"],
        "simulated without faults, or with the noise, shifts, texture, ... of a laboratory",
    )  # fmt: skip
    flags.DEFINE_list("two_theta", ["5", "90"], "first and last angle of clean patterns, degrees")
    flags.DEFINE_bool("figures", False, "draw OUT/figures: PNG, and JSON with the numbers")
    flags.DEFINE_integer("workers", 2, "processes that compare structures")


def _angles(words: list[str]) -> tuple[float, float]:
    try:
        first, last = map(float, words)
    except ValueError:
        first = last = 0.0
    if not 0.0 < first < last < 180.0:
        raise ValueError(
            f"--two_theta is {','.join(words)!r}, expected two angles in degrees, as 3,30"
        )
    return first, last


def main() -> None:
    """Check the flags and hand over to `solve.report_card`."""
    if not FLAGS.data:
        raise ValueError("--data is needed: a set written by launch.prepare, or 'textbook'")
    if FLAGS.num_items < 1 or FLAGS.num_candidates < 1:
        raise ValueError("--num_items and --num_candidates must be at least 1")
    if FLAGS.pool < 0 or FLAGS.workers < 1:
        raise ValueError("--pool must be at least 0 and --workers at least 1")
    two_theta = _angles(FLAGS.two_theta)
    import numpy as np

    from xtalnet_jax import compilation
    from xtalnet_jax.data.fixtures import load_set
    from xtalnet_jax.solve import report_card
    from xtalnet_jax.solve.controls import CONTROLS
    from xtalnet_jax.solve.solver import load_solver

    unknown = set(FLAGS.controls) - set(CONTROLS)
    if unknown:
        raise ValueError(f"--controls has {unknown.pop()!r}, expected some of {[*CONTROLS]}")
    compilation.use_cache()
    solver = load_solver(FLAGS.weights, FLAGS.templates)
    options = report_card.Options(
        num_items=FLAGS.num_items,
        num_candidates=FLAGS.num_candidates,
        pool=FLAGS.pool,
        seed=FLAGS.seed,
        item_seed=FLAGS.item_seed,
        skip=FLAGS.skip,
        refine=FLAGS.refine,
        profile=FLAGS.profile,
        search=FLAGS.search,
        controls=tuple(FLAGS.controls),
        fit_ranker=FLAGS.fit_ranker,
        fit_with=tuple(FLAGS.fit_with),
        workers=FLAGS.workers,
        patterns=FLAGS.patterns,
        two_theta=two_theta,
        figures=FLAGS.figures,
    )
    packed = load_set(FLAGS.data, solver.max_atoms)
    known = np.concatenate([load_set(path).id for path in FLAGS.exclude] or [packed.id[:0]])
    packed = packed.select(np.flatnonzero(~np.isin(packed.id, known)))
    if not packed.num_crystals:
        raise ValueError(f"the sets of --exclude hold every crystal of {FLAGS.data}")
    print(report_card.report(solver, packed, FLAGS.data, options, FLAGS.out))


if __name__ == "__main__":
    cli.run(main)
