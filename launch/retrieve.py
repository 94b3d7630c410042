"""Look a powder pattern up in a database of crystals.

  python -m launch.retrieve --build=cifs/ --index=index.npz
  python -m launch.retrieve --index=index.npz --pattern=scan.xy --wavelength=1.5406

--build takes a folder of CIFs, a csv with a cif column, an LMDB file or a compact npz set.
"""

import sys
from pathlib import Path

from absl import flags

from launch import cli

FLAGS = flags.FLAGS

if __name__ == "__main__":
    flags.DEFINE_string("index", None, "the index file (.npz)")
    flags.DEFINE_string("build", None, "database to build the index from")
    flags.DEFINE_string("pattern", None, "file of the pattern to look up")
    flags.DEFINE_float("wavelength", None, "angstrom; default: what the file says")
    flags.DEFINE_integer("k", 10, "how many crystals to list")
    flags.DEFINE_string("weights", "default", "bundled name, or folder with both weight files")


def main() -> None:
    """Build an index, or query one."""
    if not FLAGS.index or not (FLAGS.build or FLAGS.pattern):
        raise ValueError("--index and at least one of --build and --pattern are needed")
    if FLAGS.k < 1:
        raise ValueError(f"--k={FLAGS.k}, expected at least 1")
    from xtalnet_jax import compilation
    from xtalnet_jax.data.sources import open_source, readable
    from xtalnet_jax.pxrd.io import load_pattern
    from xtalnet_jax.solve.output import writable_folder
    from xtalnet_jax.solve.retrieval import RetrievalIndex
    from xtalnet_jax.solve.solver import load_solver

    compilation.use_cache()
    pattern = load_pattern(FLAGS.pattern, FLAGS.wavelength) if FLAGS.pattern else None
    if FLAGS.build:
        if not FLAGS.index.endswith(".npz"):
            raise ValueError(f"--index={FLAGS.index} must end in .npz")
        writable_folder(Path(FLAGS.index).parent)
        source, solver = open_source(FLAGS.build), load_solver(FLAGS.weights)
        skipped = {"unreadable": 0, "too large": 0}

        def unreadable(name: str, reason: str) -> None:
            skipped["unreadable"] += 1
            print(f"skipped {name}: {reason}", file=sys.stderr)

        def crystals():
            for record in readable(source, unreadable):
                if len(record.crystal.atomic_numbers) > solver.max_atoms:
                    skipped["too large"] += 1
                else:
                    yield record.id, record.crystal

        index = RetrievalIndex.build(
            crystals(), solver, progress=lambda n: print(f"{n} of {len(source)}", file=sys.stderr)
        )
        index.save(FLAGS.index)
        left_out = ", ".join(f"{n} {why}" for why, n in skipped.items() if n)
        print(
            f"{FLAGS.index}: {len(index.entries.ids)} crystals" + f"; {left_out}" * bool(left_out)
        )
    if pattern is not None:
        for hit in RetrievalIndex.load(FLAGS.index).query(pattern, FLAGS.k):
            print(f"{hit.rank:3d}  {hit.score:.4f}  {hit.id}  {hit.formula}")


if __name__ == "__main__":
    cli.run(main)
