"""Results as files: one row per number, with everything needed to judge and to repeat it.

A row states what was given to the method, the test set and its size, how many candidates were
drawn and how they were ordered, the 95 % interval, and the command, hardware and versions that
made it. `to_markdown` prints rows; README tables are made from the JSON file by it.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from xtalnet_jax.evaluation.generation import MatchAtK
from xtalnet_jax.evaluation.intervals import Estimate
from xtalnet_jax.evaluation.retrieval import RetrievalReport

PACKAGES = ("xtalnet-jax", "jax", "flax", "numpy", "pymatgen")


class Provenance(NamedTuple):
    """How a number was made."""

    command: str
    hardware: str
    versions: Mapping[str, str]
    seconds: float | None = None  # wall time


class Setting(NamedTuple):
    """What was asked of whom; together with k and order it identifies a row."""

    method: str  # model or baseline, e.g. "default, 20 candidates, refined"
    dataset: str
    given: str  # e.g. "pattern, composition, Z"
    num_candidates: int  # drawn per item (generation) or searched (retrieval)
    tolerance: str = ""  # of the matcher, e.g. "stol 0.5, angle 10, ltol 0.3"
    control: str = ""  # e.g. "patterns shuffled"; empty for the real thing


class ResultRow(NamedTuple):
    """One row of a table; a value whose name ends in ``%`` is a fraction shown in percent."""

    setting: Setting
    k: int
    order: str
    num_items: int
    values: Mapping[str, Estimate]
    provenance: Provenance

    @property
    def identity(self) -> tuple[object, ...]:
        """What makes two rows answers to the same question."""
        return (*self.setting, self.k, self.order)


def generation_rows(
    results: Iterable[MatchAtK], setting: Setting, provenance: Provenance
) -> list[ResultRow]:
    """Rows of `generation.match_at_k`."""
    rows = []
    for result in results:
        values = {"match %": result.match_rate}
        if result.rmse is not None:
            values["RMSE"] = result.rmse
        rows.append(
            ResultRow(setting, result.k, result.order, result.num_items, values, provenance)
        )
    return rows


def retrieval_rows(
    report: RetrievalReport, setting: Setting, provenance: Provenance
) -> list[ResultRow]:
    """Rows of `retrieval.retrieval_report`; the mean reciprocal rank stands in the first."""
    setting = setting._replace(num_candidates=report.num_candidates)
    rows = []
    for i, (k, recall) in enumerate(report.recall.items()):
        values = {"recall %": recall} | ({"MRR": report.mrr} if i == 0 else {})
        rows.append(ResultRow(setting, k, "ranked", report.num_queries, values, provenance))
    return rows


def collect_provenance(seconds: float | int | None = None) -> Provenance:
    """Command line, processor or accelerator, and package versions of this process."""
    import jax

    kinds = [device.device_kind for device in jax.devices()]
    devices = ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
    cpu = f"{os.cpu_count()} CPU cores ({platform.machine()})"
    hardware = cpu if jax.default_backend() == "cpu" else f"{devices}; {cpu}"
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # a checkout that is not installed
            continue
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    program = ["-m", spec.name] if spec is not None else [Path(sys.argv[0]).name]
    command = shlex.join(["python", *program, *sys.argv[1:]])
    return Provenance(command, hardware, versions, seconds)


# --- files ---------------------------------------------------------------------------------------


def save_results(path: str | Path, rows: Iterable[ResultRow]) -> None:
    """Write rows as JSON."""
    content = [
        {
            **row._asdict(),
            "setting": row.setting._asdict(),
            "values": {name: list(value) for name, value in row.values.items()},
            "provenance": row.provenance._asdict(),
        }
        for row in rows
    ]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def load_results(path: str | Path) -> list[ResultRow]:
    """Read rows that `save_results` wrote.

    Raises:
        ValueError: the file is not one of these.
    """
    try:
        return [
            ResultRow(
                setting=Setting(**row["setting"]),
                k=row["k"],
                order=row["order"],
                num_items=row["num_items"],
                values={name: Estimate(*value) for name, value in row["values"].items()},
                provenance=Provenance(**row["provenance"]),
            )
            for row in json.loads(Path(path).read_text(encoding="utf-8"))
        ]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} does not hold results ({type(error).__name__}: {error}); expected a file "
            "written by save_results"
        ) from None


def update_results(path: str | Path, rows: Iterable[ResultRow]) -> list[ResultRow]:
    """Put rows into a results file, replacing those with the same identity; return all rows."""
    existing = load_results(path) if Path(path).exists() else []
    merged = {row.identity: row for row in existing} | {row.identity: row for row in rows}
    save_results(path, merged.values())
    return list(merged.values())


# --- markdown ------------------------------------------------------------------------------------


def to_markdown(rows: Sequence[ResultRow], provenance: bool = True) -> str:
    """Rows as a markdown table, the ways they were made as numbered notes below it.

    Columns that are empty in every row are left out; the columns of values are the names that
    occur, in order of appearance.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("no rows for the table; expected at least one result")
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    notes = list(dict.fromkeys(_note(row.provenance) for row in rows))
    header = ["method", "test set", "n", "given", "tolerance", "control"]
    header += ["candidates", "order", "k", *names] + (["note"] if provenance else [])
    body = []
    for row in rows:
        s = row.setting
        cells = [s.method, s.dataset, f"{row.num_items:,}", s.given, s.tolerance, s.control]
        cells += [f"{s.num_candidates:,}", row.order, str(row.k)]
        cells += [_format(name, row.values.get(name)) for name in names]
        cells += [f"[{notes.index(_note(row.provenance)) + 1}]"] if provenance else []
        body.append([cell.replace("|", r"\|") for cell in cells])
    used = [j for j in range(len(header)) if any(cells[j] for cells in body)]
    first_number = header.index("candidates")
    rule = ["---:" if j >= first_number or j == 2 else "---" for j in range(len(header))]
    lines = ["| " + " | ".join(cells[j] for j in used) + " |" for cells in (header, rule, *body)]
    if provenance:
        lines += ["", "Square brackets after a value: 95 % interval.", ""]
        lines += [f"[{i}] {note}  " for i, note in enumerate(notes, 1)]
    return "\n".join(lines) + "\n"


def _note(p: Provenance) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in p.versions.items())
    wall = "" if p.seconds is None else f"; {p.seconds:,.0f} s"
    return f"`{p.command}`; {p.hardware}{wall}; {versions}"


def _format(name: str, value: Estimate | None) -> str:
    if value is None:
        return ""
    factor, digits = (100.0, 2) if name.endswith("%") else (1.0, 4)
    number, low, high = (f"{factor * x:.{digits}f}" for x in value)
    return f"{number} [{low}, {high}]"
