"""Plots of the benchmarks, drawn from their JSON files while the documentation is built."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Plot(NamedTuple):
    """Columns ``ys`` against column ``x``, a line for each value of the columns ``by``."""

    x: str
    ys: tuple[str, ...]
    label: str  # of the vertical axis
    by: tuple[str, ...] = ()
    log: bool = True  # both axes; otherwise the horizontal one alone


PLOTS: Mapping[str, tuple[Plot, ...]] = {
    "scaling": (
        Plot("num_atoms", ("s",), "seconds", ("what", "chunk")),
        Plot("num_atoms", ("peak_gb",), "GB", ("what", "chunk")),
    ),
    "sampling_steps": (
        Plot("steps", ("field_single", "field_best_of_4", "strict_single", "strict_best_of_4"),
             "match %", log=False),
    ),
}  # fmt: skip
"""What is drawn, by the name of the file in ``results/`` without its ending."""


def svg(rows: Sequence[Mapping[str, Any]], plot: Plot) -> str:
    """Return one plot as an ``<svg>`` element on a single line.

    Raises:
        KeyError: a column is not in the table.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 3.5), layout="constrained")
    axes = figure.subplots()
    kinds = list(dict.fromkeys(tuple(row[name] for name in plot.by) for row in rows))
    for kind in kinds:
        own = [row for row in rows if tuple(row[name] for name in plot.by) == kind]
        facts = ", ".join(
            v if isinstance(v, str) else f"{n} {v}" for n, v in zip(plot.by, kind) if v is not None
        )
        for y in plot.ys:
            label = ", ".join(filter(None, [facts, y if len(plot.ys) > 1 else ""]))
            axes.plot([r[plot.x] for r in own], [r[y] for r in own], marker="o", label=label)
    axes.set(xscale="log", yscale="log" if plot.log else "linear")
    axes.set(xlabel=plot.x, ylabel=plot.label)
    axes.grid(visible=True, which="both", alpha=0.2)
    axes.legend(fontsize="small")
    out = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": plot.label}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return " ".join(text[text.index("<svg") :].split())
