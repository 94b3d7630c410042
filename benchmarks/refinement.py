"""How often refinement brings a perturbed crystal back, and what it costs.

    python benchmarks/refinement.py --data STRUCTURES_DIR --num 40 --strain 0.03 --move 0.2

Draws crystals of ``mp20_val.npz``, simulates their patterns (5 to 90 degrees, Cu K-alpha), strains
every cell and displaces every atom at random, and refines the copies together, as the solver does
with its candidates. ``--strain`` is the root mean square of the nine strain components, ``--move``
that of the atoms' displacements in angstrom. A copy is *returned* if every principal strain left
is below 0.3 % and the atoms are within 0.05 angstrom (rms). A match is StructureMatcher's with
pymatgen's own tolerances; it is lenient, so its RMSE is shown as well.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path

import jax
import numpy as np

from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.crystals.reduction import standardise
from xtalnet_jax.data.sources import open_source
from xtalnet_jax.evaluation.matching import STRICT, match_rmse
from xtalnet_jax.pxrd.simulate import simulate_pattern
from xtalnet_jax.refine.profile_fit import Refined
from xtalnet_jax.refine.refine import compare, refine
from xtalnet_jax.refine.settings import RefineSettings
from xtalnet_jax.refine.variants import displacement


def perturbed(crystal: Crystal, rng: np.random.Generator, strain: float, move: float) -> Crystal:
    """Copy with a random symmetric strain and random displacements of given rms."""
    e = rng.normal(size=(3, 3))
    e = (e + e.T) / 2
    lattice = crystal.lattice @ (np.eye(3) + e * strain / np.sqrt((e**2).mean()))
    u = rng.normal(size=crystal.frac_coords.shape)
    u *= move / np.sqrt((u**2).sum(1).mean())
    return Crystal(
        crystal.atomic_numbers, (crystal.frac_coords + u @ np.linalg.inv(lattice)) % 1.0, lattice
    )


def strain_between(truth: Crystal, other: Crystal) -> float:
    """Largest principal strain of one cell against another in the same setting."""
    f = np.linalg.inv(truth.lattice) @ other.lattice
    return float(np.abs(np.sqrt(np.linalg.eigvalsh(f.T @ f)) - 1).max())


def measures(truth: Crystal, r: Refined) -> dict[str, float | None]:
    """What is reported of one copy."""
    rmse = match_rmse(r.crystal, truth, STRICT)
    return {
        "strain": strain_between(truth, r.crystal),
        "move": displacement(truth, r.crystal),
        "rmse": rmse,
        "rwp": r.rwp,
        "cosine": r.cosine,
        "space_group": r.space_group,
        "num_free": r.num_free,
    }


def summary(rows: list[dict[str, float | None]]) -> dict[str, float]:
    """Shares and medians over copies."""
    strain, move = (np.array([r[k] for r in rows]) for k in ("strain", "move"))
    matched = [r["rmse"] for r in rows if r["rmse"] is not None]
    return {
        "returned_%": 100 * float(((strain < 0.003) & (move < 0.05)).mean()),
        "cell_within_0.3_%": 100 * float((strain < 0.003).mean()),
        "atoms_within_0.05_A_%": 100 * float((move < 0.05).mean()),
        "match_%": 100 * len(matched) / len(rows),
        "match_rmse": float(np.mean(matched)) if matched else float("nan"),
        "median_rwp": float(np.median([r["rwp"] for r in rows])),
    }


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with mp20_val.npz")
    parser.add_argument("--num", type=int, default=40, help="crystals")
    parser.add_argument("--copies", type=int, default=4, help="perturbed copies of each")
    parser.add_argument("--strain", type=float, default=0.03)
    parser.add_argument("--move", type=float, default=0.2, help="angstrom")
    parser.add_argument("--max_atoms", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", default="{}", help="RefineSettings to change, as JSON")
    parser.add_argument("--cache", help="folder of JAX's persistent compilation cache")
    parser.add_argument("--out", type=Path, help="JSON file for settings, rows and summary")
    args = parser.parse_args()
    if args.cache:
        jax.config.update("jax_compilation_cache_dir", args.cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    settings = RefineSettings()._replace(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(args.set).items()}
    )
    source = open_source(args.data / "mp20_val.npz")
    rng = np.random.default_rng(args.seed)
    before, after, best, seconds = [], [], [], []
    for i in rng.permutation(len(source)):
        truth = standardise(source[int(i)].crystal)
        if not 2 <= len(truth.atomic_numbers) <= args.max_atoms:
            continue
        pattern = simulate_pattern(truth)
        copies = [perturbed(truth, rng, args.strain, args.move) for _ in range(args.copies)]
        start = time.perf_counter(), time.process_time()
        results = refine(copies, pattern, settings)
        spent = [b - a for a, b in zip(start, (time.perf_counter(), time.process_time()))]
        seconds.append([s / args.copies for s in spent])
        before += [measures(truth, r) for r in compare(copies, pattern, settings)]
        rows = [measures(truth, r) for r in results]
        after += rows
        best.append(min(rows, key=lambda row: row["rwp"]))
        print(
            f"{source.name(int(i))} {len(truth.atomic_numbers)} atoms, "
            f"{abs(np.linalg.det(truth.lattice)):.0f} A^3: "
            + "; ".join(
                f"{r['strain']:.4f} {r['move']:.3f} {r['rwp']:.3f} {r['space_group']}" for r in rows
            )
            + f"; {spent[0]:.1f} s, cpu {spent[1]:.1f} s",
            flush=True,
        )
        if len(best) == args.num:
            break
    report = {
        "settings": settings._asdict(),
        "arguments": {k: str(v) for k, v in vars(args).items()},
        "machine": f"{platform.processor()} {os.cpu_count()} cores, {jax.devices()[0].device_kind}",
        "before": summary(before),
        "after": summary(after),
        "copy_of_lowest_rwp": summary(best),
        # Medians: the first crystal of a shape pays for its compilation.
        "seconds_per_candidate": float(np.median([s[0] for s in seconds])),
        "cpu_seconds_per_candidate": float(np.median([s[1] for s in seconds])),
        "cpu_seconds_in_all": float(np.sum([s[1] for s in seconds]) * args.copies),
    }
    for key in ("before", "after", "copy_of_lowest_rwp"):
        print(f"{key:20s}", {k: round(v, 3) for k, v in report[key].items()})
    print({k: round(v, 2) for k, v in report.items() if k.startswith(("seconds", "cpu"))})
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report | {"rows": after}, indent=1))


if __name__ == "__main__":
    main()
