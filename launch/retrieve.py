"""Look a powder pattern up in a database of crystals.

  python -m launch.retrieve --build=cifs/ --index=index.npz
  python -m launch.retrieve --index=index.npz --pattern=scan.xy --wavelength=1.5406
  python -m launch.retrieve --index=index.npz --pattern=scan.xy --elements=Ti,O --exclude_elements=H

--build takes a folder of CIFs, a csv with a cif column, an LMDB file or a compact npz set. Running
the same command again goes on where it was interrupted. Each line of the answer is rank, agreement
with the peaks (0 to 1), similarity (-1 to 1), id and formula of a crystal.
"""

import sys
from pathlib import Path
from typing import Any

from absl import flags

from launch import cli

FLAGS = flags.FLAGS
_SHOWN = 5  # records left out that are named on the screen

if __name__ == "__main__":
    flags.DEFINE_string("index", None, "the index file (.npz)")
    flags.DEFINE_string("build", None, "database to build the index from")
    flags.DEFINE_string("pattern", None, "file of the pattern to look up")
    flags.DEFINE_string(
        "wavelength", None, "angstrom, or a line as CuKa, MoKa1; default: the file's"
    )
    flags.DEFINE_enum(
        "axis", None, ["two_theta", "q", "d"], "abscissa; default: the file's, or 2-theta"
    )
    flags.DEFINE_integer("k", 10, "how many crystals to list")
    flags.DEFINE_integer("rerank", 50, "most similar crystals to compare with the peaks; 0: none")
    flags.DEFINE_string("formula", None, "only this formula, in any multiple")
    flags.DEFINE_list("elements", [], "only crystals that contain all of these")
    flags.DEFINE_list("only_elements", None, "only crystals that contain nothing else")
    flags.DEFINE_list("exclude_elements", [], "only crystals that contain none of these")
    flags.DEFINE_string("weights", "default", "bundled name, or folder with both weight files")


def main() -> None:
    """Build an index, or query one."""
    if not FLAGS.index or not (FLAGS.build or FLAGS.pattern):
        raise ValueError("--index and at least one of --build and --pattern are needed")
    if FLAGS.k < 1:
        raise ValueError(f"--k={FLAGS.k}, expected at least 1")
    if FLAGS.rerank < 0:
        raise ValueError(f"--rerank={FLAGS.rerank}, expected at least 0")
    from xtalnet_jax import compilation
    from xtalnet_jax.data.sources import open_source
    from xtalnet_jax.pxrd.io import assumptions, load_pattern
    from xtalnet_jax.solve.crystal_table import Composition
    from xtalnet_jax.solve.output import writable_folder
    from xtalnet_jax.solve.retrieval import RetrievalIndex
    from xtalnet_jax.solve.retrieval_build import build_file
    from xtalnet_jax.solve.solver import load_solver

    compilation.use_cache()
    known = Composition(
        FLAGS.formula, FLAGS.elements, FLAGS.only_elements, FLAGS.exclude_elements
    ).checked()
    pattern = load_pattern(FLAGS.pattern, FLAGS.wavelength, FLAGS.axis) if FLAGS.pattern else None
    if FLAGS.build:
        if not FLAGS.index.endswith(".npz"):
            raise ValueError(f"--index={FLAGS.index} must end in .npz")
        writable_folder(Path(FLAGS.index).parent)
        bad: list[tuple[str, str]] = []
        index = build_file(
            open_source(FLAGS.build), FLAGS.index, load_solver(FLAGS.weights), bad.append, _show
        )
        for name, reason in bad[:_SHOWN]:
            print(f"left out {name}: {reason}", file=sys.stderr)
        left_out = f"; {len(bad)} records left out" if bad else ""
        print(f"{FLAGS.index}: {len(index.entries.ids)} crystals{left_out}")
    if pattern is not None:
        hits = RetrievalIndex.load(FLAGS.index).query(
            pattern, FLAGS.k, rerank=FLAGS.rerank, **known._asdict()
        )
        for text in assumptions(pattern):
            print(f"assumed: {text}", file=sys.stderr)
        if not hits:
            print("no crystal of the index has such a composition", file=sys.stderr)
        for hit in hits:
            compared = "     -" if hit.agreement is None else f"{hit.agreement:.4f}"
            print(f"{hit.rank:3d}  {compared}  {hit.score:7.4f}  {hit.id}  {hit.formula}")


def _show(progress: Any) -> None:
    end = "   \r" if sys.stderr.isatty() and progress.seconds_left else "\n"
    print(progress, end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    cli.run(main)
