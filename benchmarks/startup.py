"""How long a user waits before anything happens: ``--help`` of every command, and the import.

    python -m benchmarks.startup

Medians over fresh processes with warm page cache. Limits: 0.5 s for help, 1 s for the import.
"""

from __future__ import annotations

import os
import pkgutil
import subprocess
import sys
import time

import numpy as np

from benchmarks.inputs import parser, write

HELP_LIMIT, IMPORT_LIMIT = 0.5, 1.0


def commands() -> list[str]:
    """Return the names of the launch commands: the modules of ``launch`` that have a ``main``."""
    import launch

    found = [module.name for module in pkgutil.iter_modules(launch.__path__)]
    return [name for name in found if _starts(os.path.join(launch.__path__[0], f"{name}.py"))]


def _starts(path: str) -> bool:
    with open(path, encoding="utf-8") as file:
        return "__main__" in file.read()


def process_seconds(arguments: list[str]) -> tuple[float, float]:
    """Wall and processor time of one process, interpreter included."""
    wall, before = time.perf_counter(), os.times()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    processor = (after.children_user - before.children_user) + (
        after.children_system - before.children_system
    )
    return time.perf_counter() - wall, processor


def main() -> None:
    """Measure every command and write the table."""
    args = parser(__doc__, "results/startup.json").parse_args()
    cases = {
        f"{name} --help": (["-m", f"launch.{name}", "--help"], HELP_LIMIT) for name in commands()
    }
    cases["import xtalnet_jax"] = (["-c", "import xtalnet_jax"], IMPORT_LIMIT)
    rows = []
    for name, (arguments, limit) in cases.items():
        process_seconds(arguments)
        times = [process_seconds(arguments) for _ in range(args.repeats)]
        wall, processor = (float(x) for x in np.median(times, 0))
        rows.append({"what": name, "s": wall, "processor_s": processor, "limit_s": limit})
    write(args.out, "Start-up", rows)


if __name__ == "__main__":
    main()
