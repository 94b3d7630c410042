"""Time of the powder simulator against pymatgen, per structure, in one process.

    python benchmarks/simulation.py --data STRUCTURES_DIR --out results/simulation.json

Reads ``mp20_val.npz`` and ``qmof.npz``. Both sides start from the crystal as stored; ours is timed
for a whole batch (`lines_of`, float32, and a profile on a 0.02-degree grid on top), pymatgen's
``XRDCalculator.get_pattern`` for one structure after another. Medians over alternating repeats,
compilation excluded (a first call of the same shapes). Processor time, summed over threads, is the
figure to compare on a machine that others use.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xtalnet_jax.crystals.crystal import Crystal, PackedCrystals, pack_crystals, unpack_crystals
from xtalnet_jax.pxrd import simulate
from xtalnet_jax.pxrd.instrument import Instrument
from xtalnet_jax.pxrd.pattern import CU_KALPHA, Lines
from xtalnet_jax.pxrd.profile import render_uniform, sticks

STEP = 0.02
CASES = {
    # file, least and most atoms, 2-theta range, our crystals, pymatgen's, lines kept
    "MP-20, 5-90 degrees": ("mp20_val.npz", 1, 20, (5.0, 90.0), 2048, 48, 512),
    "MOF, 50-100 atoms, 3-30 degrees": ("qmof.npz", 50, 100, (3.0, 30.0), 2048, 24, 256),
    "MOF, 50-100 atoms, 5-90 degrees": ("qmof.npz", 50, 100, (5.0, 90.0), 256, 8, 4096),
}


def load(path: Path, least: int, most: int, num: int) -> PackedCrystals:
    """Draw crystals of a size from one of the flattened files."""
    with np.load(path) as data:
        z, frac, offset, lattice = (
            data[k] for k in ("atomic_numbers", "frac_coords", "offset", "lattice")
        )
    size = np.diff(offset)
    fitting = np.flatnonzero((size >= least) & (size <= most))
    chosen = np.random.default_rng(0).choice(fitting, min(num, len(fitting)), replace=False)
    spans = [slice(offset[k], offset[k + 1]) for k in chosen]
    return pack_crystals([Crystal(z[s], frac[s], lattice[k]) for s, k in zip(spans, chosen)])


@partial(jax.jit, static_argnums=(1, 2))
def profiles(lines: Lines, first: float, num_bins: int) -> jax.Array:
    """Profiles [n_graph, n_bin] of one width, as a training step makes them."""

    def one(inv_d: jax.Array, strength: jax.Array) -> jax.Array:
        placed = sticks(Lines(inv_d, strength), CU_KALPHA, Instrument())
        return render_uniform(*placed, first, STEP, num_bins, 0.1, 0.5)

    return jax.vmap(one)(jnp.asarray(lines.inv_d), jnp.asarray(lines.strength))


def seconds(fn: Any) -> tuple[float, float]:
    """Wall and processor time (of all threads) of one call."""
    wall, processor = time.perf_counter(), time.process_time()
    fn()
    return time.perf_counter() - wall, time.process_time() - processor


def measure(folder: Path, case: tuple, repeats: int) -> dict[str, Any]:
    """Return median milliseconds per structure of both, and the ratios."""
    from pymatgen.analysis.diffraction.xrd import XRDCalculator

    name, least, most, angles, num, num_theirs, num_lines = case
    packed = load(folder / name, least, most, num)
    structures = [c.to_structure() for c in unpack_crystals(packed)[:num_theirs]]
    low, high = simulate.inv_d_range(CU_KALPHA, angles)
    num_bins = round((angles[1] - angles[0]) / STEP) + 1
    calculator = XRDCalculator(CU_KALPHA)

    def theirs() -> None:
        for structure in structures:
            calculator.get_pattern(structure, two_theta_range=angles)

    def ours() -> Lines:
        return simulate.lines_of(packed, high, num_lines, inv_d_min=low)

    found = ours()
    chunks = [Lines(*(v[i : i + 256] for v in found)) for i in range(0, len(found.inv_d), 256)]

    def render() -> None:
        for chunk in chunks:
            profiles(chunk, angles[0], num_bins).block_until_ready()

    render()
    times = np.array([(seconds(theirs), seconds(ours), seconds(render)) for _ in range(repeats)])
    count = np.array([len(structures), len(packed.lattice), len(packed.lattice)])
    result = {
        "structures": len(packed.lattice),
        "mean_atoms": round(float(np.diff(packed.offset).mean()), 1),
    }
    medians = 1e3 * np.median(times, 0) / count[:, None]  # [program, clock]
    for clock, (pymatgen, lines, profile) in zip(("wall", "processor"), medians.T):
        result[clock] = {
            "pymatgen_ms": round(pymatgen, 4),
            "lines_ms": round(lines, 5),
            "lines_and_profile_ms": round(lines + profile, 5),
            "lines_speedup": round(pymatgen / lines, 1),
            "lines_and_profile_speedup": round(pymatgen / (lines + profile), 1),
        }
    return result


def main() -> None:
    """Measure all cases and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of structure .npz files")
    parser.add_argument("--out", type=Path, default=Path("results/simulation.json"))
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    import pymatgen.core

    result = {
        "command": "python benchmarks/simulation.py --data STRUCTURES_DIR",
        "device": str(jax.devices()[0].platform),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load_average_at_start": round(os.getloadavg()[0], 1),
        "versions": {"jax": jax.__version__, "pymatgen": pymatgen.core.__version__},
        "cases": {name: measure(args.data, case, args.repeats) for name, case in CASES.items()},
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
