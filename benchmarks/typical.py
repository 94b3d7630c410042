"""Fit what is usual in solids (`xtalnet_jax.crystals.typical`), and measure how usual it is.

    python -m benchmarks.typical --data data/mp20_train.npz data/mp_extra.npz \
        --check data/mp20_val.npz

Writes the tables into the package, and their errors on ``--check`` into ``results/typical.md``.
"""

from __future__ import annotations

import json

import numpy as np

from benchmarks import inputs
from xtalnet_jax.crystals import typical
from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.data.packed import load

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def crystals_of(path: str) -> list[Crystal]:
    """All crystals of a packed set."""
    packed = load(path)
    return [packed.crystal(i) for i in range(packed.num_crystals)]


def distance_errors(crystal: Crystal) -> np.ndarray:
    """[n] logarithms of nearest-neighbour distances over typical ones."""
    numbers = np.asarray(crystal.atomic_numbers)
    neighbour, distance = typical.nearest_neighbours(crystal)
    return np.log(distance / typical.typical().distance(numbers, numbers[neighbour]))


def main() -> None:
    """Fit on ``--data``, tell the errors on ``--check``."""
    arguments = inputs.parser(__doc__, "results/typical.json")
    arguments.add_argument("--data", nargs="+", required=True)
    arguments.add_argument("--check", required=True)
    args = arguments.parse_args()
    known = [crystal for path in args.data for crystal in crystals_of(path)]
    made = typical.fit(known)
    typical.FILE.write_text(json.dumps(made, indent=0) + "\n", encoding="utf-8")
    typical.typical.cache_clear()
    check = crystals_of(args.check)
    errors = {
        "volume of the cell": np.log(
            [typical.volume_ratio(c.atomic_numbers, c.lattice) for c in check]
        ),
        "distance to the nearest neighbour": np.concatenate([distance_errors(c) for c in check]),
        "crowding": np.array([typical.crowding(c) for c in check]),
    }
    rows = [
        {
            "logarithm of": name,
            "rms": float(np.sqrt((error**2).mean())),
            **{f"{100 * q:g} %": float(np.quantile(error, q)) for q in QUANTILES},
        }
        for name, error in errors.items()
    ]
    notes = [
        f"Fitted to {len(known)} crystals, {len(made['corrections'])} pairs of elements; quantiles "
        f"over {len(check)} other crystals, the first two relative to what is typical."
    ]
    inputs.write(args.out, "What is usual in solids", rows, notes)


if __name__ == "__main__":
    main()
