"""Prepare a data set for training: reduce cells, check, simulate powder lines, pack into one file.

  python -m launch.prepare --source=mp20/train.csv --out=mp20_train.npz
  python -m launch.prepare --dataset=hmof100 --manual_dir=hmof --split=val --out=hmof100_val.npz

The source is a set in npz form, an LMDB of the authors, a csv with a `cif` column, a folder of CIF
files, or a built tfds data set. Running the same command again goes on where it was interrupted;
where --out is already what is asked for, nothing is done. Records left out are in OUT.bad.json.
"""

import sys
import time
from pathlib import Path
from typing import Any

from absl import flags

from launch import cli

_SHOWN = 5  # records left out that are named on the screen

flags.DEFINE_string("source", None, "File or folder to read.")
flags.DEFINE_string("dataset", None, "Instead of --source: a named data set, from --manual_dir.")
flags.DEFINE_string("manual_dir", None, "Folder with the downloaded files of --dataset.")
flags.DEFINE_string("data_dir", None, "Where --dataset is built; by default `tfds` beside --out.")
flags.DEFINE_string("out", None, "The .npz to write.")
flags.DEFINE_string("split", None, "train, val or test, where the source has splits.")
flags.DEFINE_integer("max_atoms", None, "Leave out crystals with more atoms.", lower_bound=1)
flags.DEFINE_integer("num_lines", 256, "Powder lines kept per crystal.", lower_bound=1)
flags.DEFINE_float("inv_d_max", 1.0, "Largest 1/d of a line, 1/angstrom.", lower_bound=0.01)
flags.DEFINE_bool("niggli", True, "Niggli-reduce the cells.")
flags.DEFINE_integer("workers", 0, "Processes; 0 works in this one.", lower_bound=0)


def main() -> None:
    """Check the flags, pack, and say what came out."""
    given = flags.FLAGS
    if given.out is None or not given.out.endswith(".npz"):
        raise ValueError(f"--out must name the .npz to write, got {given.out}")
    if (given.source is None) == (given.dataset is None):
        raise ValueError("give either --source=PATH or --dataset=NAME (see --help)")
    if given.dataset is not None and given.manual_dir is None:
        raise ValueError(f"--dataset={given.dataset} needs --manual_dir=FOLDER with its files")
    from xtalnet_jax.data.packing import pack_file

    start = time.monotonic()
    bad: list[tuple[str, str]] = []
    packed = pack_file(
        _source(given),
        given.out,
        num_lines=given.num_lines,
        inv_d_max=given.inv_d_max,
        max_atoms=given.max_atoms,
        niggli=given.niggli,
        workers=given.workers,
        on_bad=bad.append,
        on_progress=_show,
    )
    for name, reason in bad[:_SHOWN]:
        print(f"left out {name}: {reason}")
    if bad:
        print(f"{len(bad)} records left out, listed in {given.out}.bad.json")
    size = Path(given.out).stat().st_size / 2**20
    print(
        f"{given.out}: {packed.num_crystals} crystals of at most {packed.num_atoms.max()} atoms, "
        f"{size:.1f} MiB, {time.monotonic() - start:.0f} s"
    )


def _source(given: Any) -> Any:
    if given.source is not None:
        from xtalnet_jax.data.sources import open_source

        return open_source(given.source, given.split)
    from xtalnet_jax.data.builders import build

    data_dir = Path(given.data_dir or Path(given.out).parent / "tfds")
    return build(given.dataset, given.manual_dir, data_dir, given.split or "train")


def _show(progress: Any) -> None:
    end = "   \r" if sys.stderr.isatty() and progress.seconds_left else "\n"
    print(progress, end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    cli.run(main)
