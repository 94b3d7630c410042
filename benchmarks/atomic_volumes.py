"""Fit the room that each element takes in solids, and measure how well volumes are foretold.

    python -m benchmarks.atomic_volumes --data data/mp20_train.npz data/mp_extra.npz \
        --check data/mp20_val.npz

Writes the table of `xtalnet_jax.crystals.volumes` and ``results/atomic_volumes.{json,md}``.
"""

from __future__ import annotations

import json

import numpy as np

from benchmarks import inputs
from xtalnet_jax.crystals import volumes
from xtalnet_jax.data.packed import PackedSet, load


def numbers_of(packed: PackedSet) -> list[np.ndarray]:
    """Atomic numbers of every crystal."""
    return [packed.crystal(i).atomic_numbers for i in range(packed.num_crystals)]


def main() -> None:
    """Fit on ``--data``, tell the errors on ``--check``."""
    arguments = inputs.parser(__doc__, "results/atomic_volumes.json")
    arguments.add_argument("--data", nargs="+", required=True)
    arguments.add_argument("--check", required=True)
    args = arguments.parse_args()
    sets = [load(path) for path in args.data]
    numbers = [z for packed in sets for z in numbers_of(packed)]
    cells = np.concatenate([np.abs(np.linalg.det(packed.lattice)) for packed in sets])
    table = volumes.fit_atomic_volumes(numbers, cells)
    rounded = {symbol: round(volume, 2) for symbol, volume in table.items()}
    volumes.TABLE.write_text(json.dumps(rounded, indent=0) + "\n", encoding="utf-8")
    volumes.atomic_volumes.cache_clear()
    check = load(args.check)
    ratios = [volumes.volume_ratio(z, a) for z, a in zip(numbers_of(check), check.lattice)]
    error = np.log(ratios)
    row = {"crystals": len(error), "rms_log_error": float(np.sqrt((error**2).mean()))}
    row |= {f"quantile_{q:g}": float(np.quantile(error, q)) for q in (0.05, 0.25, 0.5, 0.75, 0.95)}
    note = f"Logarithm of volume over expected volume; {len(numbers)} crystals in the fit."
    inputs.write(args.out, "Volumes of cells from those of elements", [row], [note])


if __name__ == "__main__":
    main()
