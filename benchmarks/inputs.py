"""What the speed benchmarks share: input batches, clocks, fresh processes, result files.

The inputs are two ``.npz`` files of the reference implementation's own timing runs, flat arrays
``num_atoms``, ``atom_types``, ``frac_coords``, ``lengths``, ``angles``, ``peak_id`` and
``peak_intensity``; see `Size` for its figures, which were taken with 2 threads in float32.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.crystals.lattice import matrix_from_parameters
from xtalnet_jax.data.packed import PackedSet, from_crystals
from xtalnet_jax.evaluation.tables import collect_provenance
from xtalnet_jax.pxrd.pattern import CU_KALPHA, inv_d_from_two_theta
from xtalnet_jax.tasks import GRID_SIZE, GRID_START, GRID_STEP


class Size(NamedTuple):
    """One input batch and the reference's figures on it."""

    file: str
    edges: tuple[int, ...]  # numbers of atoms to which crystals are padded
    training: Mapping[str, float]  # crystals per second of a training step
    sampling: float  # seconds per crystal, 1000 steps


SIZES = {
    "MP-20": Size("bench_mp20_b64.npz", (4, 8, 12, 16, 20), {"ccsg": 8.0, "cpcp": 3.95}, 18.4),
    "MOF": Size(
        "bench_hmof100_b8.npz", (48, 56, 64, 72, 80, 88, 100), {"ccsg": 0.82, "cpcp": 0.72}, 922.0
    ),
}
REFERENCE_PEAK_GB = 8.6  # of the CPCP training step

ENVIRONMENT = ("GLIBC_TUNABLES", "JAX_PLATFORMS", "XLA_FLAGS")
"""Variables that change the speed. ``GLIBC_TUNABLES=glibc.malloc.hugetlb=1`` gives temporaries huge
pages where the kernel's setting is "madvise": first use of memory is then no longer what an
elementwise operation spends its time on."""


def load_inputs(folder: str | Path, size: str) -> PackedSet:
    """Read the crystals and peaks of one input batch."""
    with np.load(Path(folder) / SIZES[size].file) as data:
        count, numbers, coords = (data[k] for k in ("num_atoms", "atom_types", "frac_coords"))
        parameters = (jnp.asarray(data[k]) for k in ("lengths", "angles"))
        lattice = np.asarray(matrix_from_parameters(*parameters))
        peak_id, intensity = data["peak_id"], data["peak_intensity"]
    stop = np.cumsum(count)
    crystals = [
        Crystal(numbers[b - n : b], coords[b - n : b], cell)
        for n, b, cell in zip(count, stop, lattice)
    ]
    last = GRID_START + GRID_STEP * (GRID_SIZE - 1)
    measured = inv_d_from_two_theta(np.array([GRID_START, last]), CU_KALPHA)
    position = inv_d_from_two_theta(GRID_START + GRID_STEP * peak_id, CU_KALPHA)
    peaks = (
        np.where(intensity > 0, position, 0.0),
        intensity,
        np.tile(measured, (len(count), 1)),
    )
    no_lines = np.zeros((2, len(count), 1), np.float32)
    ids = [str(i) for i in range(len(count))]
    return from_crystals(ids, crystals, (no_lines[0], no_lines[1]), peaks)


# Measuring --------------------------------------------------------------------------------------


class Clocked(NamedTuple):
    """Medians over repeats."""

    wall: float  # seconds
    processor: float  # seconds, of all threads: what to compare on a machine that others use


def clocked(call: Callable[[], Any], repeats: int, warm_up: int = 1) -> Clocked:
    """Time ``call`` until its arrays are there, after ``warm_up`` calls that compile it."""
    for _ in range(warm_up):
        jax.block_until_ready(call())
    rows = []
    for _ in range(repeats):
        wall, processor = time.perf_counter(), time.process_time()
        jax.block_until_ready(call())
        rows.append((time.perf_counter() - wall, time.process_time() - processor))
    return Clocked(*(float(x) for x in np.median(rows, 0)))


def peak_gb() -> float:
    """Largest memory this process has held, on the accelerator if there is one."""
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def in_fresh_process(module: str, case: Mapping[str, Any], env: Mapping[str, str] = {}) -> Any:
    """Run ``python -m module --case=JSON`` and read the JSON of its last line of output.

    Memory of one case is not that of the cases before, and one that fails takes nothing with it.
    """
    command = [sys.executable, "-m", module, f"--case={json.dumps(case)}"]
    done = subprocess.run(
        command, env={**os.environ, **env}, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"the case {case} ended with exit code {done.returncode}")
    return json.loads(done.stdout.strip().splitlines()[-1])


# Files ------------------------------------------------------------------------------------------


def parser(doc: str, out: str) -> argparse.ArgumentParser:
    """Return the arguments that every benchmark has."""
    arguments = argparse.ArgumentParser(description=doc.splitlines()[0])
    arguments.add_argument("--out", type=Path, default=Path(out), help="JSON file; .md beside it")
    arguments.add_argument("--repeats", type=int, default=5, help="of which the median is taken")
    arguments.add_argument("--case", help=argparse.SUPPRESS)  # one case, in a fresh process
    return arguments


def input_parser(doc: str, out: str) -> argparse.ArgumentParser:
    """`parser` for a benchmark on the reference's own inputs."""
    arguments = parser(doc, out)
    arguments.add_argument("--inputs", help="folder with bench_*.npz")
    arguments.add_argument("--size", nargs="+", default=list(SIZES))
    arguments.add_argument("--set", default="{}", help="recipe fields to change, as JSON")
    return arguments


def parse(
    arguments: argparse.ArgumentParser, measure: Callable[[dict[str, Any]], dict[str, Any]]
) -> argparse.Namespace:
    """Parse; the process of a single case measures it, prints the result and ends here."""
    args = arguments.parse_args()
    if args.case:
        print(json.dumps(measure(json.loads(args.case))))
        sys.exit()
    if not args.inputs:
        arguments.error("--inputs=FOLDER with the bench_*.npz files is needed")
    return args


def write(path: Path, title: str, rows: list[dict[str, Any]], notes: Iterable[str] = ()) -> None:
    """Write rows of equal keys as ``path`` (JSON) and as a table in markdown beside it."""
    made = collect_provenance()
    content = {
        "title": title,
        "notes": list(notes),
        "rows": rows,
        "load_average_at_end": round(os.getloadavg()[0], 1),
        "provenance": made._asdict(),
        "environment": {k: os.environ[k] for k in ENVIRONMENT if k in os.environ},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    names = list(rows[0])
    table = [names, ["---"] * len(names), *([_shown(row[k]) for k in names] for row in rows)]
    lines = [f"# {title}", "", *("| " + " | ".join(cells) + " |" for cells in table), ""]
    lines += [*content["notes"], ""] if content["notes"] else []
    versions = ", ".join(f"{name} {version}" for name, version in made.versions.items())
    settings = "".join(f"{name}={value} " for name, value in content["environment"].items())
    lines += [
        f"`{settings}{made.command}`; {made.hardware}; {versions}; load {os.getloadavg()[0]:.1f}",
        "",
    ]
    path.with_suffix(".md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
