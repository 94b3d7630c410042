"""Prepare a data set for training: reduce, check, simulate powder lines, pack into one file.

    python -m launch.prepare --source=mp20.csv --out=mp20.npz
    python -m launch.prepare --dataset=hmof100 --manual_dir=DOWNLOADS --split=train --out=hmof.npz

The source is an .npz set, an LMDB of the authors, a csv with a ``cif`` column, a folder of CIF
files, or a prepared tfds data set. Interrupted runs go on where they stopped.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

_SHOWN = 5  # records left out that are named on the screen; all are in the .bad.json


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code (0 done, 2 bad input)."""
    flags = _parse(argv)
    try:
        _check(flags)
        _run(flags)
    except (ValueError, OSError) as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nprepare: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m launch.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--source", help="file or folder to read")
    add("--dataset", help="instead of --source: a named data set, read from --manual_dir")
    add("--manual_dir", help="folder with the downloaded files of --dataset")
    add("--data_dir", help="where --dataset is built; default: beside --out")
    add("--out", required=True, help="the .npz to write")
    add("--split", help="train, val or test, where the source has splits")
    add("--max_atoms", type=int, help="leave out crystals with more atoms")
    add("--num_lines", type=int, default=256, help="powder lines kept per crystal (256)")
    add("--inv_d_max", type=float, default=1.0, help="largest 1/d in 1/angstrom (1.0)")
    add("--keep_cell", action="store_true", help="do not Niggli-reduce the cells")
    add("--workers", type=int, default=0, help="processes; 0 works in this one (0)")
    return parser.parse_args(argv)


def _check(flags: argparse.Namespace) -> None:
    if (flags.source is None) == (flags.dataset is None):
        raise ValueError("give either --source=PATH or --dataset=NAME")
    if flags.dataset is not None and flags.manual_dir is None:
        raise ValueError(f"--dataset={flags.dataset} needs --manual_dir=FOLDER with its files")
    if not flags.out.endswith(".npz"):
        raise ValueError(f"--out={flags.out} must end in .npz")
    for name in ("max_atoms", "num_lines", "inv_d_max"):
        value = getattr(flags, name)
        if value is not None and value <= 0:
            raise ValueError(f"--{name} must be positive, got {value}")
    if flags.workers < 0:
        raise ValueError(f"--workers must not be negative, got {flags.workers}")


def _run(flags: argparse.Namespace) -> None:
    from xtalnet_jax.data.packing import pack_file

    start = time.monotonic()
    bad: list[tuple[str, str]] = []
    packed = pack_file(
        _source(flags),
        flags.out,
        num_lines=flags.num_lines,
        inv_d_max=flags.inv_d_max,
        max_atoms=flags.max_atoms,
        niggli=not flags.keep_cell,
        workers=flags.workers,
        on_bad=bad.append,
        on_progress=_show,
    )
    for name, reason in bad[:_SHOWN]:
        print(f"left out {name}: {reason}")
    if bad:
        print(f"{len(bad)} records left out, all listed in {flags.out}.bad.json")
    import os

    print(
        f"{flags.out}: {packed.num_crystals} crystals of up to {packed.num_atoms.max()} atoms, "
        f"{os.path.getsize(flags.out) / 2**20:.1f} MiB, {time.monotonic() - start:.0f} s"
    )


def _source(flags: argparse.Namespace) -> Any:
    if flags.source is not None:
        from xtalnet_jax.data.sources import open_source

        return open_source(flags.source, flags.split)
    from pathlib import Path

    from xtalnet_jax.data.builders import build

    data_dir = Path(flags.data_dir or Path(flags.out).parent / "tfds")
    return build(flags.dataset, flags.manual_dir, data_dir, flags.split or "train")


def _show(progress: Any) -> None:
    end = "\n" if progress.num_done == progress.num_records else "\r"
    if not sys.stderr.isatty():
        end = "\n"
    minutes, seconds = divmod(round(progress.seconds_left), 60)
    print(
        f"{progress.num_done}/{progress.num_records} records, {progress.num_bad} left out, "
        f"{progress.per_second:.0f}/s, {minutes}:{seconds:02d} left ",
        end=end,
        file=sys.stderr,
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
