"""What the documentation takes from the code and the measurements while it is built.

Three markers are replaced in the pages: ``<!-- options NAME -->`` by what ``python -m launch.NAME
--help`` says about its flags, ``<!-- results -->`` by tables of every ``results/*/results.json``,
``<!-- benchmarks -->`` by the tables ``results/*.md`` and plots of them. So no flag and no number
is typed by hand.
"""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = re.compile(r"<!-- options (\w+) -->")
RESULTS = "<!-- results -->"
BENCHMARKS = "<!-- benchmarks -->"


def on_startup(**kwargs: Any) -> None:
    """Document this checkout, whatever is installed (called by mkdocs)."""
    sys.path.insert(0, str(ROOT))


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Replace the markers of a page (called by mkdocs)."""
    markdown = OPTIONS.sub(lambda found: options(found[1]), markdown)
    if RESULTS in markdown:
        markdown = markdown.replace(RESULTS, results(ROOT / "results"))
    if BENCHMARKS in markdown:
        markdown = markdown.replace(BENCHMARKS, benchmarks(ROOT / "results"))
    return markdown


# Options -----------------------------------------------------------------------------------------


def options(command: str) -> str:
    """Return the flags of a command as a code block.

    Raises:
        ValueError: the command does not answer ``--help``.
    """
    done = subprocess.run(
        [sys.executable, "-m", f"launch.{command}", "--help"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    _, found, flags = done.stdout.partition("Options:")
    if done.returncode or not found:
        raise ValueError(f"launch.{command} --help failed: {done.stderr.strip()[-300:]}")
    lines = [line.rstrip() for line in flags.splitlines()]
    body = "\n".join(line[2:] if line.startswith("  ") else line for line in lines).strip("\n")
    heading = re.sub(r"\A\S[^\n]*:\n", "", body)  # the name of the module
    return f"```text\n{heading}\n```"


# Results -----------------------------------------------------------------------------------------


def results(folder: Path) -> str:
    """Return one section for each results file below a folder, in the order of their names."""
    sections = [section(path) for path in sorted(folder.glob("*/results.json"))]
    if not sections:
        return "Nothing has been measured yet."
    return "\n\n".join(sections)


def section(path: Path) -> str:
    """Return the tables of one file, headed by the name of its folder.

    Raises:
        ValueError: the file does not hold results.
    """
    title = f"## {path.parent.name}\n"
    if not isinstance(json.loads(path.read_text(encoding="utf-8")), list):
        return f"{title}\n{numbers(path)}"
    from xtalnet_jax.evaluation.tables import load_results

    rows = load_results(path)
    tables = []
    for _, group in groupby(sorted(rows, key=question), key=question):
        alike = list(group)
        tables += [pivot(alike, name) for name in dict.fromkeys(n for r in alike for n in r.values)]
    notes = dict.fromkeys(made_by(row.provenance) for row in rows)
    return "\n".join([title, *tables, "Made by\n", *(f"- {n}" for n in notes)])


def question(row: Any) -> tuple[Any, ...]:
    """What rows of one table have in common: test set, what was given, tolerance, sizes."""
    s = row.setting
    return (s.dataset, s.given, s.tolerance, s.num_candidates, row.num_items)


def benchmarks(folder: Path) -> str:
    """Return the tables ``*.md`` of a folder in the order of their names, each with its plots."""
    from docs.plots import PLOTS, svg

    parts = []
    for path in sorted(folder.glob("*.md")):
        parts.append(lowered(path, 1))
        if path.stem in PLOTS:
            rows = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["rows"]
            parts += [svg(rows, plot) for plot in PLOTS[path.stem]]
    return "\n\n".join(parts)


def pivot(rows: Sequence[Any], name: str) -> str:
    """Return one value of rows of one `question`: a line for each method, a column for each k."""
    rows = [row for row in rows if name in row.values]
    dataset, given, tolerance, num_candidates, num_items = question(rows[0])
    ks = sorted({row.k for row in rows})
    lines: dict[tuple[str, str, str], dict[int, str]] = {}
    for row in rows:
        label = (row.setting.method, row.order, row.setting.control)
        lines.setdefault(label, {})[row.k] = estimate(name, row.values[name])
    facts = [
        f"{num_items:,} items of {dataset}",
        f"given {given}",
        f"{num_candidates:,} candidates",
    ]
    caption = f"**{name}** ({', '.join(facts + [tolerance] * bool(tolerance))})\n"
    header = ["method", "order", "control", *(f"k = {k}" for k in ks)]
    body = ([*label, *(cells.get(k, "") for k in ks)] for label, cells in lines.items())
    return f"{caption}\n{table(header, body, num_text=3)}\n"


def estimate(name: str, value: Sequence[float]) -> str:
    """Return a value with its 95 % interval; names that end in ``%`` are fractions."""
    factor, digits = (100.0, 1) if name.endswith("%") else (1.0, 3)
    middle, low, high = (f"{factor * x:.{digits}f}" for x in value)
    return f"{middle} [{low}, {high}]"


def made_by(p: Any) -> str:
    """Return command, hardware, time and versions in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in p.versions.items())
    wall = "" if p.seconds is None else f"{p.seconds:,.0f} s, "
    return f"`{p.command}` on {p.hardware}, {wall}{versions}"


def numbers(path: Path) -> str:
    """Return a nested record that is no table of results: its own markdown, or path and value."""
    written = path.with_suffix(".md")
    if written.is_file():
        return lowered(written, 2)
    return table(["quantity", "value"], leaves(json.loads(path.read_text(encoding="utf-8"))), 1)


def lowered(path: Path, levels: int) -> str:
    """Return a page whose headings are so many levels lower."""
    return re.sub(r"^#", "#" * (levels + 1), path.read_text(encoding="utf-8"), flags=re.M)


def leaves(record: Any, prefix: str = "") -> Iterable[list[str]]:
    """Yield path and value of every number and text in a nested record."""
    if isinstance(record, dict):
        for name, value in record.items():
            yield from leaves(value, f"{prefix} / {name}" if prefix else name)
    elif isinstance(record, list) and any(isinstance(v, dict | list) for v in record):
        for i, value in enumerate(record):
            yield from leaves(value, f"{prefix} / {i + 1}")
    else:
        yield [prefix, f"{record:.6g}" if isinstance(record, float) else str(record)]


def table(header: Sequence[str], body: Iterable[Sequence[str]], num_text: int) -> str:
    """Return a markdown table; columns after the first ``num_text`` are aligned to the right.

    Columns that are empty in every line are left out.
    """
    lines = [list(line) for line in body]
    used = [j for j in range(len(header)) if any(line[j] for line in lines)]
    rule = ["---" if j < num_text else "---:" for j in range(len(header))]
    rows = [header, rule, *([html.escape(c).replace("|", r"\|") for c in row] for row in lines)]
    return "\n".join("| " + " | ".join(row[j] for j in used) + " |" for row in rows)
